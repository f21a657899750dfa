"""What RViz shows: the messages of the scene, and every display compared with the live graph."""

from array import array
from dataclasses import replace
import gc
import importlib.util
import math
from pathlib import Path
import shutil
import sys
import time
from unittest import mock

import cv2
import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from geographic_msgs.msg import GeoPoseStamped, GeoPoseWithCovarianceStamped
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import OccupancyGrid, Odometry
from nav_msgs.msg import Path as PathMsg
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image, NavSatFix
from tf2_msgs.msg import TFMessage
import torch
from visualization_msgs.msg import Marker, MarkerArray
from visualization_msgs.srv import GetInteractiveMarkers
import yaml

from crossview_localizer.datatypes import CameraImage, CameraModel, Heatmap, PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import EmbeddingMap, read_orthophoto
from crossview_localizer.node import LocalizerNode
from crossview_localizer.ros import conversions, scene_messages, scene_pictures
from crossview_localizer.scene import SceneNode

REPOSITORY = Path(__file__).resolve().parent.parent
RVIZ = REPOSITORY / 'config/robotcar.rviz'
FRAME = LocalFrame(51.76, -1.26)
STAMP_NS = 1_400_000_000_000_000_000
# Optical axes (right, down, ahead) in base_link (ahead, left, up).
BASE_FROM_OPTICAL = np.array(
    [[0, 0, 1, 0.0], [-1, 0, 0, 0.0], [0, -1, 0, 0.0], [0, 0, 0, 1.0]], dtype=float)
CAMERA = CameraModel(400, 300, 300.0, 300.0, 199.5, 149.5, BASE_FROM_OPTICAL, 1.5)
# The message that each display subscribes to.
DISPLAY_TYPES = {
    'Image': 'sensor_msgs/msg/Image', 'Map': 'nav_msgs/msg/OccupancyGrid',
    'MarkerArray': 'visualization_msgs/msg/MarkerArray', 'Odometry': 'nav_msgs/msg/Odometry',
    'Path': 'nav_msgs/msg/Path',
    'PoseWithCovariance': 'geometry_msgs/msg/PoseWithCovarianceStamped',
}
WITHOUT_TOPIC = {'Grid', 'TF', 'InteractiveMarkers'}


def smooth_picture(rows: int, cols: int) -> np.ndarray:
    """Red grows to the east, green to the south: smooth enough for JPEG, no two places alike."""
    picture = np.full((rows, cols, 3), 60, np.uint8)
    picture[..., 0] = np.linspace(0, 255, cols)[None, :]
    picture[..., 1] = np.linspace(0, 255, rows)[:, None]
    return picture


def heatmap_msg(*peaks) -> OccupancyGrid:
    """Gaussian peaks of 2 m at (x_m, y_m, height) in a window of 61 m; cleared without any."""
    grid = MapGrid.around(10.0, 20.0, 30.0, 0.5)
    x_m, y_m = grid.cell_centres()
    log_p = np.full((grid.rows, grid.cols), -np.inf)
    if peaks:
        p = sum(height * np.exp(-((x_m[None] - x) ** 2 + (y_m[:, None] - y) ** 2) / 8.0)
                for x, y, height in peaks)
        log_p = np.log(p + 1e-9)
    return conversions.heatmap_msg_from_heatmap(Heatmap(STAMP_NS, grid, log_p), 'map')


# --- messages


def test_each_ground_tile_puts_its_pixels_where_they_are(ros):
    """The texture coordinates of a map point in a tile lead to the colour of that point."""
    grid = MapGrid(700, 1200, 0.5, -100.0, 50.0)
    rgb = smooth_picture(grid.rows, grid.cols)
    tiles = [message.markers[0] for message in scene_messages.ground_tiles(rgb, grid, 'map')]
    assert len(tiles) == 2 * 3
    assert len({tile.texture_resource for tile in tiles}) == len(tiles)
    for tile in tiles:
        assert tile.type == Marker.TRIANGLE_LIST and tile.texture.format == 'jpg'
        assert len(tile.points) == len(tile.uv_coordinates) == 6 and tile.color.a == 1.0
        pixels = cv2.imdecode(np.frombuffer(tile.texture.data, np.uint8), cv2.IMREAD_COLOR)
        for triangle in (slice(0, 3), slice(3, 6)):
            points = tile.points[triangle]
            # Counter-clockwise from above, in the plane of the ground.
            (ax, ay), (bx, by), (cx, cy) = [(p.x, p.y) for p in points]
            assert (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0
            for point, uv in zip(points, tile.uv_coordinates[triangle]):
                assert point.z + tile.pose.position.z == pytest.approx(scene_messages.GROUND_Z_M)
                u_px = uv.u * pixels.shape[1] - 0.5
                v_px = uv.v * pixels.shape[0] - 0.5
                found = pixels[round(v_px), round(u_px), ::-1].astype(int)
                row, col = grid.row_col_from_xy(point.x, point.y)
                assert abs(found - rgb[round(float(row)), round(float(col))]).max() <= 6
    for x_m, y_m in ((-100.0, 50.0), (499.5, -299.5)):
        assert any((p.x, p.y) == (x_m, y_m) for tile in tiles for p in tile.points)


def test_the_heat_map_uses_only_the_blue_to_red_part_of_the_colours(ros):
    shown = np.asarray(scene_messages.costmap_from_heatmap(heatmap_msg((10.0, 20.0, 1.0))).data)
    assert shown.max() == 98 and shown.min() == 0
    assert not np.asarray(scene_messages.costmap_from_heatmap(heatmap_msg()).data).any()


def test_peaks_are_found_highest_first_and_not_twice(ros):
    found = scene_messages.find_peaks(
        heatmap_msg((0.0, 10.0, 0.5), (25.0, 35.0, 1.0), (26.5, 35.0, 0.9), (-15.0, 40.0, 0.1)))
    assert [percent for *_, percent in found] == [100, pytest.approx(27, abs=3)]
    np.testing.assert_allclose(found[1][:2], (0.0, 10.0), atol=0.51)
    markers = scene_messages.alternative_markers(heatmap_msg((25.0, 35.0, 1.0))).markers
    assert [m.action for m in markers] == [Marker.DELETEALL, Marker.ADD, Marker.ADD]
    assert markers[2].text == '100 %'
    assert len(scene_messages.alternative_markers(heatmap_msg()).markers) == 1


def test_the_ellipse_holds_95_percent_of_the_distribution(ros):
    covariance = np.array([[9.0, 3.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.01]])
    estimate = PoseEstimate(STAMP_NS, Pose2D(7.0, -3.0, 0.3), covariance)
    disc, outline, _ = scene_messages.ellipse_markers(
        'prior', estimate, scene_messages.PRIOR_RGB, 'map').markers
    points = np.array([(p.x, p.y) for p in outline.points]) - (7.0, -3.0)
    mahalanobis2 = np.einsum('ni,ij,nj->n', points, np.linalg.inv(covariance[:2, :2]), points)
    np.testing.assert_allclose(mahalanobis2, 5.9915, rtol=1e-4)
    # The disc's longest radius lies along its own x axis.
    yaw_rad = conversions.yaw_from_quaternion(disc.pose.orientation)
    along = points @ (math.cos(yaw_rad), math.sin(yaw_rad))
    radius_m = np.hypot(*points.T)
    assert disc.scale.x / 2 == pytest.approx(radius_m.max(), rel=0.01)
    assert disc.scale.y / 2 == pytest.approx(radius_m.min(), rel=0.01)
    assert abs(along).max() == pytest.approx(radius_m.max(), rel=0.01)


# --- pictures


def test_the_road_is_projected_as_a_pinhole_camera_sees_it():
    points_m = np.array([[10.0, 0.0], [20.0, -2.0], [-5.0, 0.0]])
    found = scene_pictures.project_ground(points_m, CAMERA)
    np.testing.assert_allclose(found[0], (199.5, 149.5 + 300 * 1.5 / 10, 10.0))
    np.testing.assert_allclose(found[1], (199.5 + 300 * 2 / 20, 149.5 + 300 * 1.5 / 20, 20.0))
    assert found[2, 2] < 0
    # Nose down by 0.1 rad, the far road moves up in the image.
    far = scene_pictures.project_ground(np.array([[1e6, 0.0]]), CAMERA, 0.1)
    assert far[0, 1] == pytest.approx(149.5 - 300 * math.tan(0.1), abs=0.01)


def test_the_camera_picture_draws_horizon_and_marks_where_they_belong():
    image = CameraImage(STAMP_NS, np.zeros((300, 400, 3), np.uint8), CAMERA)
    picture = scene_pictures.camera_picture(image)
    assert picture.shape == (300, scene_pictures.CAMERA_WIDTH_PX, 3)
    rows = np.nonzero(picture[:, 200].any(axis=1))[0]
    expected = [149.5] + [149.5 + 300 * 1.5 / ahead_m for ahead_m in (40, 20, 10, 5)]
    np.testing.assert_allclose(
        sorted({round(float(rows[abs(rows - v).argmin()])) for v in expected}), expected, atol=1)
    assert all(min(abs(row - v) for v in expected) <= 1.5 for row in rows)


@pytest.mark.parametrize('yaw_rad', [0.0, 0.7, -2.0])
def test_the_satellite_view_is_turned_so_that_ahead_is_up(yaw_rad):
    grid = MapGrid(600, 600, 0.25, -75.0, 75.0)
    rgb = smooth_picture(600, 600)
    pose = Pose2D(5.0, -8.0, yaw_rad)
    view = scene_pictures.satellite_view(rgb, grid, pose)
    px_m, ahead_px = scene_pictures.VIEW_PX_M, scene_pictures.VIEW_AHEAD_PX
    for row_px, col_px in ((0, 100), (ahead_px, 0), (ahead_px, 199), (199, 100)):
        body_m = np.array([ahead_px - 0.5 - row_px, 99.5 - col_px]) * px_m
        row, col = grid.row_col_from_xy(*pose.transform(body_m))
        found = view[row_px, col_px].astype(int)
        assert abs(found - rgb[round(float(row)), round(float(col))]).max() <= 2
    image = CameraImage(STAMP_NS, np.zeros((300, 400, 3), np.uint8), CAMERA)
    both = scene_pictures.views_picture(image, pose, 0.0, (rgb, grid))
    assert both.shape == (
        scene_pictures.VIEW_PX + scene_pictures.CAPTION_PX, 2 * scene_pictures.VIEW_PX, 3)


def test_the_pictures_of_a_rear_camera_look_back_and_show_where_the_vehicle_heads():
    rgb = smooth_picture(300, 400)
    ahead = CameraImage(STAMP_NS, rgb, CAMERA)
    turn = np.diag([-1.0, -1.0, 1.0, 1.0])
    back = replace(ahead, camera=replace(CAMERA, base_from_camera=turn @ CAMERA.base_from_camera))
    marked = [scene_pictures.camera_picture(image) for image in (ahead, back)]
    assert (marked[0] != rgb).any(2).sum() > 1000
    assert (marked[0] != marked[1]).any(2).sum() < 500     # lines that are rounded otherwise
    grid, map_rgb = MapGrid(600, 600, 0.25, -75.0, 75.0), smooth_picture(600, 600)
    ours = scene_pictures.views_picture(back, Pose2D(5.0, -8.0, 0.7), 0.0, (map_rgb, grid))
    theirs = scene_pictures.views_picture(
        ahead, Pose2D(5.0, -8.0, 0.7 + math.pi), 0.0, (map_rgb, grid))
    differs = np.nonzero((ours != theirs).any(2))
    # Only the triangles, which point the other way, differ.
    assert len(differs[0]) > 20
    assert np.ptp(differs[0]) < 20
    row = scene_pictures.CAPTION_PX + scene_pictures.VIEW_AHEAD_PX
    assert abs(differs[0].mean() - row) < 4


# --- the live graph


def map_with_orthophoto(path: Path) -> Path:
    """A map of one tile with a picture of 64 m, made without a network."""
    picture_grid = MapGrid(128, 128, 0.5, -31.75, 31.75)
    EmbeddingMap(
        frame=FRAME, grid=MapGrid(1, 1, 3.0, 0.0, 0.0), index=torch.zeros((1, 1)).long(),
        descriptors=torch.ones((1, 8)).half(), fingerprint='f' * 64, tile_m=48.0, tile_px=128,
        orthophoto=smooth_picture(128, 128), orthophoto_grid=picture_grid).save(path)
    return path


def test_the_heat_map_is_painted_over_the_satellite_image_whole_and_around_its_peak():
    percent, grid = scene_messages.percent_from_heatmap(heatmap_msg((25.0, 5.0, 1.0)))
    assert grid == MapGrid.around(10.0, 20.0, 30.0, 0.5)
    blue = np.zeros((200, 200, 3), np.uint8)
    blue[..., 2] = 200
    orthophoto = blue, MapGrid(200, 200, 0.5, -40.0, 70.0)
    open_along = PoseEstimate(STAMP_NS, Pose2D(25.0, 5.0, 0.0), np.diag([1e8, 0.04, 1.0]))
    picture = scene_pictures.heatmap_picture(
        percent, grid, orthophoto, [(open_along, (0, 255, 0))])
    side = scene_pictures.VIEW_PX
    whole, near = picture[-side:, :side].astype(int), picture[-side:, side:].astype(int)
    # 15 m to the east and to the south of the middle of 60.5 m.
    middle, reach = side // 2, round(15.0 / 60.5 * side)
    away = 5                    # below the cross and the ellipse, within the peak
    row, col = middle + reach + away, middle + reach
    assert whole[row, col, 0] > 60 and tuple(whole[middle - reach, middle - reach]) == (0, 0, 200)
    assert near[middle + 3 * away, middle, 0] > 150
    cleared, grid = scene_messages.percent_from_heatmap(heatmap_msg())
    shown = scene_pictures.heatmap_picture(cleared, grid, orthophoto)[-side:]
    assert (shown == (0, 0, 200)).all()
    without = scene_pictures.heatmap_picture(percent, grid, None)
    assert (without[-side, 0] == 127).all()


def test_only_the_picture_of_a_map_is_read(tmp_path):
    path = map_with_orthophoto(tmp_path / 'a.map')
    rgb, grid = read_orthophoto(path)
    whole, whole_grid = EmbeddingMap.open(path).orthophoto()
    assert grid == whole_grid and (rgb == whole).all()
    with pytest.raises(FileNotFoundError, match='does not exist'):
        read_orthophoto(tmp_path / 'b.map')
    shutil.copytree(path, tmp_path / 'c.map')
    (tmp_path / 'c.map/zarr.json').write_text('{')
    with pytest.raises(ValueError, match='damaged'):
        read_orthophoto(tmp_path / 'c.map')


class Stage:
    """A driver, and the nodes under test, in one executor."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.driver = rclpy.create_node('driver', context=self.context)
        self.nodes = [self.driver]
        self.executor.add_node(self.driver)

    def add(self, kind, **parameters):
        overrides = [Parameter(name, value=value) for name, value in parameters.items()]
        node = kind(context=self.context, parameter_overrides=overrides)
        self.nodes.append(node)
        self.executor.add_node(node)
        return node

    def wait(self, condition, deadline_s=60.0):
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, f'not true within {deadline_s} s'
            self.executor.spin_once(timeout_sec=0.02)

    def collect(self, kind, topic, latched=False) -> list:
        received = []
        durability = (
            DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE)
        self.driver.create_subscription(
            kind, topic, received.append, QoSProfile(depth=100, durability=durability))
        return received

    def close(self):
        for node in self.nodes:
            node.destroy_node()
        self.executor.shutdown()
        rclpy.try_shutdown(context=self.context)
        self.nodes.clear()
        self.driver = self.executor = None
        gc.collect()


@pytest.fixture
def stage(ros, own_domain):
    stage = Stage()
    yield stage
    stage.close()


def displays(entries) -> list[dict]:
    found = []
    for entry in entries:
        found += displays(entry['Displays']) if 'Displays' in entry else [entry]
    return found


def test_every_display_finds_its_topic_with_its_type_and_a_qos_that_fits(stage, tmp_path):
    stage.add(LocalizerNode, autostart=True).autostart()
    stage.add(SceneNode, map_path=str(map_with_orthophoto(tmp_path / 'a.map')),
              heatmap_picture=True)
    manager = yaml.safe_load(RVIZ.read_text())['Visualization Manager']
    assert manager['Global Options']['Fixed Frame'] == 'map'
    shown = displays(manager['Displays'])
    with_topic = [display for display in shown if 'Topic' in display]
    stage.wait(lambda: all(
        stage.driver.count_publishers(display['Topic']['Value']) for display in with_topic))
    assert len(with_topic) >= 12
    for display in shown:
        kind = display['Class'].removeprefix('rviz_default_plugins/')
        if kind in WITHOUT_TOPIC:
            continue
        topic = display['Topic']
        for info in stage.driver.get_publishers_info_by_topic(topic['Value']):
            assert info.topic_type == DISPLAY_TYPES[kind], display['Name']
            qos = info.qos_profile
            if topic['Reliability Policy'] == 'Reliable':
                assert qos.reliability == ReliabilityPolicy.RELIABLE, display['Name']
            latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
            assert latched == (topic['Durability Policy'] == 'Transient Local'), display['Name']
    pose_tool, = (tool for tool in manager['Tools'] if 'SetInitialPose' in tool['Class'])
    info, = stage.driver.get_subscriptions_info_by_topic(pose_tool['Topic']['Value'])
    assert info.topic_type == 'geometry_msgs/msg/PoseWithCovarianceStamped'


def test_every_tile_of_the_ground_reaches_a_late_rviz(stage, tmp_path):
    stage.add(SceneNode, map_path=str(map_with_orthophoto(tmp_path / 'a.map')))
    ground = stage.collect(MarkerArray, '/crossview_scene/ground', latched=True)
    stage.wait(lambda: ground)
    display, = (d for d in displays(yaml.safe_load(RVIZ.read_text())[
        'Visualization Manager']['Displays']) if d['Name'] == 'Satellite image')
    # The largest orthophoto of a map has 4096 px a side.
    assert display['Topic']['Depth'] >= (4096 / (scene_messages.TILE_PX - 1) + 1) ** 2


def test_a_reset_rviz_and_one_whose_clock_jumped_back_get_the_ground_in_new_markers(
        stage, tmp_path):
    scene = stage.add(SceneNode, use_sim_time=True,
                      map_path=str(map_with_orthophoto(tmp_path / 'a.map')))
    shown = {}

    def draw(msg):
        for marker in msg.markers:
            if marker.action == Marker.DELETE:
                del shown[marker.id]
            else:
                assert marker.id not in shown  # RViz would stack the textures
                shown[marker.id] = marker.texture_resource

    stage.driver.create_subscription(
        MarkerArray, '/crossview_scene/ground',
        lambda msg: msg.markers[0].ns == 'ground' and draw(msg),
        QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    stage.wait(lambda: shown)
    first = dict(shown)
    client = stage.driver.create_client(
        GetInteractiveMarkers, '/crossview_scene/get_interactive_markers')
    stage.wait(client.service_is_ready)
    answer = client.call_async(GetInteractiveMarkers.Request())
    stage.wait(lambda: answer.done() and len(shown) == len(first) and min(shown) > max(first))
    assert set(shown.values()).isdisjoint(first.values()) and not answer.result().markers
    second = dict(shown)
    clock = stage.driver.create_publisher(Clock, '/clock', 10)
    stage.wait(clock.get_subscription_count)
    clock.publish(Clock(clock=Time(sec=100)))
    stage.wait(lambda: scene.get_clock().now().nanoseconds == 100 * 10**9)
    clock.publish(Clock(clock=Time(sec=50)))
    stage.wait(lambda: len(shown) == len(first) and min(shown) > max(second))


def test_a_viewer_whose_reset_nobody_tells_gets_a_coarse_ground_every_few_seconds(
        stage, tmp_path, monkeypatch):
    monkeypatch.setattr('crossview_localizer.scene.COARSE_GROUND_PERIOD_S', 0.2)
    stage.add(SceneNode, map_path=str(map_with_orthophoto(tmp_path / 'a.map')))
    seen = []
    stage.driver.create_subscription(
        MarkerArray, '/crossview_scene/ground', lambda msg: seen.append(msg.markers[0]),
        QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL))
    stage.wait(lambda: sum(marker.ns == 'coarse ground' for marker in seen) >= 3)
    coarse = [marker for marker in seen if marker.ns == 'coarse ground']
    assert all(marker == coarse[0] for marker in coarse)   # in place of the one before
    # The latched tiles still come to whoever is late.
    late = stage.collect(MarkerArray, '/crossview_scene/ground', latched=True)
    stage.wait(lambda: {msg.markers[0].ns for msg in late} == {'ground', 'coarse ground'})


def test_the_coarse_ground_is_small_has_no_texture_and_the_colours_of_the_picture(ros):
    rgb = np.zeros((300, 200, 3), np.uint8)
    rgb[:150] = (255, 0, 51)                          # the northern half
    marker, = scene_messages.coarse_ground(rgb, MapGrid(300, 200, 0.5, 100.0, 50.0), 'map').markers
    assert not marker.texture_resource and marker.id == 0
    assert len(marker.points) == len(marker.colors) <= 6 * 65 * 65
    xy_m = np.array([(point.x, point.y) for point in marker.points])
    assert xy_m.min(0).tolist() == [100.0, -99.5] and xy_m.max(0).tolist() == [199.5, 50.0]
    for point, colour in zip(marker.points, marker.colors):
        if abs(point.y + 24.75) > 5.0:
            expected = (1.0, 0.0, 0.2) if point.y > -24.75 else (0.0, 0.0, 0.0)
            assert (colour.r, colour.g, colour.b) == pytest.approx(expected, abs=1e-6)
    sides = np.diff(xy_m[:3], axis=0)
    assert np.linalg.det(sides) > 0.0       # counter-clockwise from above


@pytest.mark.parametrize('given, expected', [
    ({'publish_odom_tf': 'false'}, "publish_odom_tf is 'false'; expected true or false"),
    ({'picture_hz': 0.0}, 'picture_hz is 0.0; expected 0.01 to 1000'),
    ({'picture_hertz': 5.0}, "unknown parameter 'picture_hertz'")])
def test_a_parameter_of_the_scene_that_is_not_valid_is_refused(stage, given, expected):
    with pytest.raises(ValueError, match=expected):
        stage.add(SceneNode, **given)


def test_paths_lie_at_heights_of_their_own_and_the_window_state_is_in_the_file():
    layout = yaml.safe_load(RVIZ.read_text())
    paths = [display for display in displays(layout['Visualization Manager']['Displays'])
             if display['Class'].endswith('/Path')]
    assert len({display['Offset']['Z'] for display in paths}) == len(paths) == 4
    assert layout['Window Geometry']['QMainWindow State']


@pytest.mark.parametrize('sigma_m', [0.1, 0.5, 5.0])
def test_the_dot_at_the_mean_does_not_hide_the_ellipse(ros, sigma_m):
    estimate = PoseEstimate(
        STAMP_NS, Pose2D(1.0, 2.0, 0.0), np.diag([sigma_m**2, 4 * sigma_m**2, 0.01]))
    disc, _, dot = scene_messages.ellipse_markers('refined', estimate, (0, 255, 0), 'map').markers
    assert dot.scale.x <= disc.scale.y / 4


def stamped(msg, frame_id='map', seconds=0.0):
    msg.header.frame_id = frame_id
    msg.header.stamp = conversions.stamp_msg_from_ns(STAMP_NS + round(seconds * 1e9))
    return msg


def test_the_messages_of_localizer_and_sensors_are_shown(stage, tmp_path, monkeypatch):
    """Poses, heat map, fixes, truth and images of four instants; then an image without a match."""
    # Nothing that is sent once is lost.
    monkeypatch.setattr('crossview_localizer.scene.BEST_EFFORT', QoSProfile(depth=20))
    scene = stage.add(
        SceneNode, map_path=str(map_with_orthophoto(tmp_path / 'a.map')), publish_odom_tf=True,
        picture_hz=1000.0, heatmap_picture=True)
    latched = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    localizer = '/crossview_localizer'
    publishers = {
        topic: stage.driver.create_publisher(kind, topic, latched if 'static' in topic else 10)
        for topic, kind in {
            '/tf_static': TFMessage, 'camera_info': CameraInfo, 'image': Image,
            'gnss': NavSatFix, 'odometry': Odometry, 'ground_truth': GeoPoseStamped,
            f'{localizer}/pose': PoseWithCovarianceStamped,
            f'{localizer}/prior': PoseWithCovarianceStamped,
            f'{localizer}/match': PoseWithCovarianceStamped,
            f'{localizer}/geopose': GeoPoseWithCovarianceStamped,
            f'{localizer}/heatmap': OccupancyGrid}.items()}
    shown = {
        name: stage.collect(kind, f'/crossview_scene/{name}', latched=name.startswith('path'))
        for name, kind in {
            'ellipses': MarkerArray, 'alternatives': MarkerArray, 'heatmap': OccupancyGrid,
            'camera': Image, 'views': Image, 'heatmap_picture': Image, 'path/gnss': PathMsg,
            'path/prior': PathMsg, 'path/refined': PathMsg, 'path/ground_truth': PathMsg}.items()}
    transforms = stage.collect(TFMessage, '/tf')
    stage.wait(lambda: all(p.get_subscription_count() for p in publishers.values())
               and all(scene.count_subscribers(name) for name in (
                   '/crossview_scene/views', '/crossview_scene/heatmap_picture', '/tf')))

    mounting = TransformStamped(child_frame_id='camera')
    mounting.header.frame_id = 'base_link'
    q = mounting.transform.rotation
    q.x, q.y, q.z, q.w = -0.5, 0.5, -0.5, 0.5
    publishers['/tf_static'].publish(TFMessage(transforms=[mounting]))
    publishers['camera_info'].publish(CameraInfo(
        width=64, height=48, k=[50.0, 0.0, 31.5, 0.0, 50.0, 23.5, 0.0, 0.0, 1.0]))
    stage.wait(lambda: scene.rig.camera_info and scene.rig.static_transforms.lookup(
        'base_link', 'camera') is not None)

    def instant(k: int, matched=True):
        estimate = PoseEstimate(STAMP_NS + k * 10**9, Pose2D(5.0 * k, 2.0, 0.1), np.eye(3))
        image = Image(height=48, width=64, step=192, encoding='rgb8',
                      data=array('B', smooth_picture(48, 64).tobytes()))
        publishers['image'].publish(stamped(image, 'camera', k))
        stage.wait(lambda: len(shown['camera']) > k)
        fix = NavSatFix()
        fix.status.status = 0
        fix.latitude, fix.longitude = FRAME.latlon_from_xy(5.0 * k, 6.0)
        publishers['gnss'].publish(stamped(fix, 'antenna', k))
        truth = GeoPoseStamped()
        truth.pose.position.latitude, truth.pose.position.longitude = FRAME.latlon_from_xy(
            5.0 * k, 1.0)
        publishers['ground_truth'].publish(stamped(truth, 'wgs84', k))
        odometry = Odometry(child_frame_id='base_link')
        odometry.pose.pose.position.x = 5.0 * k
        odometry.pose.pose.orientation.w = 1.0
        publishers['odometry'].publish(stamped(odometry, 'odom', k))
        for name in ('prior', 'match') if matched else ('prior',):
            publishers[f'{localizer}/{name}'].publish(
                conversions.pose_msg_from_estimate(estimate, 'map'))
        publishers[f'{localizer}/heatmap'].publish(
            heatmap_msg((10.0, 20.0, 1.0)) if matched else heatmap_msg())
        publishers[f'{localizer}/pose'].publish(
            conversions.pose_msg_from_estimate(estimate, 'map'))
        stage.wait(lambda: len(shown['views']) > k and len(shown['heatmap']) > k)
        publishers[f'{localizer}/geopose'].publish(
            conversions.geopose_msg_from_estimate(estimate, FRAME))

    for k in range(4):
        instant(k)
    stage.wait(lambda: all(
        received and len(received[-1].poses) == 4
        for name, received in shown.items() if name.startswith('path')))
    for name, y_m in (('gnss', 6.0), ('ground_truth', 1.0), ('refined', 2.0), ('prior', 2.0)):
        last = shown[f'path/{name}'][-1].poses[-1].pose.position
        np.testing.assert_allclose((last.x, last.y), (15.0, y_m), atol=1e-3)
    assert {m.ns for message in shown['ellipses'] for m in message.markers} == {
        'prior', 'match', 'refined'}
    assert len(shown['alternatives'][-1].markers) == 3
    for name in ('views', 'heatmap_picture'):
        assert shown[name][-1].width == 2 * scene_pictures.VIEW_PX
    transform = transforms[-1].transforms[0]
    assert (transform.header.frame_id, transform.child_frame_id) == ('odom', 'base_link')
    assert transform.transform.translation.x == 15.0

    instant(4, matched=False)
    stage.wait(lambda: shown['ellipses'][-1].markers[0].action == Marker.DELETE
               or shown['ellipses'][-2].markers[0].action == Marker.DELETE)
    assert len(shown['alternatives'][-1].markers) == 1
    assert not np.asarray(shown['heatmap'][-1].data).any()


def test_the_launch_file_moves_every_topic_of_rviz_into_a_namespace(monkeypatch):
    spec = importlib.util.spec_from_file_location(
        'robotcar_launch', REPOSITORY / 'launch/robotcar.launch.py')
    launch_file = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules):      # what is imported here goes with the test
        if importlib.util.find_spec('launch_ros') is None:
            monkeypatch.syspath_prepend(str(REPOSITORY / 'test/launch_stand_in'))
            for name in [name for name in sys.modules if name.partition('.')[0] == 'launch']:
                del sys.modules[name]
        spec.loader.exec_module(launch_file)
    manager = yaml.safe_load(RVIZ.read_text())['Visualization Manager']
    used = {entry[key]['Value'] for entry in (*displays(manager['Displays']), *manager['Tools'])
            for key in ('Topic', 'Update Topic') if key in entry}
    # A display of interactive markers talks to its server in three ways.
    used |= {f'{entry["Interactive Markers Namespace"]}/{name}'
             for entry in displays(manager['Displays']) if 'Interactive Markers Namespace' in entry
             for name in ('get_interactive_markers', 'update', 'feedback')}
    assert used == set(launch_file.RVIZ_TOPICS)


def test_the_messages_of_a_scene_are_drawn_into_one_picture(tmp_path):
    from benchmarks.demo.draw_scene import draw
    grid = MapGrid(128, 128, 0.5, -21.75, 51.75)
    estimate = PoseEstimate(STAMP_NS, Pose2D(10.0, 20.0, 0.3), np.diag([4.0, 1.0, 0.01]))
    heatmap = heatmap_msg((10.0, 20.0, 1.0))
    ellipse = scene_messages.ellipse_markers(
        'prior', estimate, scene_messages.PRIOR_RGB, 'map')
    markers = [*ellipse.markers, *scene_messages.alternative_markers(heatmap).markers[1:]]
    tiles = scene_messages.ground_tiles(smooth_picture(128, 128), grid, 'map')
    draw({
        'ground': [tile.markers[0] for tile in tiles], 'markers': markers,
        'heatmap': scene_messages.costmap_from_heatmap(heatmap),
        'path/refined': scene_messages.path_msg([STAMP_NS], [(10.0, 20.0)], 'map'),
        'camera': scene_messages.image_msg(smooth_picture(30, 40), STAMP_NS, 'camera'),
    }, tmp_path / 'scene.png')
    picture = cv2.imread(str(tmp_path / 'scene.png'))
    assert picture.shape == (600, 1100, 3)
    # The ground grows greener to the south, the heat map is red at its peak.
    plan = picture[:, :590, ::-1].astype(int)
    assert plan[560, 60, 1] > plan[60, 60, 1] + 100
    red, green, _ = plan[250:350, 250:350].reshape(-1, 3).T
    assert (red > green + 80).any()
