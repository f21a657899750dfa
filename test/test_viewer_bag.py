"""The bag for a viewer without ROS, and the layout that shows it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import rasterio  # noqa: E402
import recorded_drive as drive  # noqa: E402
from rosbags.highlevel import AnyReader  # noqa: E402

from crossview_localizer import viewer_bag  # noqa: E402
from crossview_localizer.bags.viewer_file import ellipse_points, transform_msg  # noqa: E402

SECONDS = 6.0
LAYOUT = Path(__file__).resolve().parent.parent / 'config/viewer_layout.json'
# What the 3D panel of Lichtblick and Foxglove draws of the types that are used here.
DRAWN = {
    'nav_msgs/msg/OccupancyGrid', 'nav_msgs/msg/Path', 'visualization_msgs/msg/MarkerArray',
    'geometry_msgs/msg/PoseWithCovarianceStamped',
}


@pytest.fixture(scope='module')
def recorded(ros, tmp_path_factory):
    """A folder with a recorded run, and the arguments that show it."""
    folder = tmp_path_factory.mktemp('viewer')
    run = drive.write_bag(
        folder / 'run', [*drive.output_messages(SECONDS), *drive.truth_messages(SECONDS)],
        bag_delay_s=3e8)
    played = drive.write_bag(
        folder / 'input', [*drive.input_messages(SECONDS), *drive.odometry_messages(SECONDS)])
    # Imagery in the map's own plane: bright in the west, dark in the east.
    pixels = np.full((3, 150, 150), 51, np.uint8)
    pixels[:, :, :75] = 204
    with rasterio.open(
            folder / 'ortho.tif', 'w', driver='GTiff', width=150, height=150, count=3,
            dtype='uint8', crs=drive.FRAME.proj4,
            transform=rasterio.Affine(2.0, 0.0, -150.0, 0.0, -2.0, 150.0)) as file:
        file.write(pixels)
    return folder, [
        str(run), '--input-bag', str(played), '--imagery', str(folder / 'ortho.tif'), '--out']


@pytest.fixture(scope='module')
def written(recorded):
    """Topic to (type, messages with their times) of a viewer's bag, read from the file alone."""
    folder, arguments = recorded
    out = folder / 'replay.mcap'
    assert viewer_bag.main([*arguments, str(out)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == [
        'input', 'ortho.tif', 'replay.mcap', 'run']
    found = {}
    with AnyReader([out]) as reader:
        for connection, bag_ns, data in reader.messages():
            entry = found.setdefault(connection.topic, (connection.msgtype, []))
            entry[1].append((bag_ns, reader.deserialize(data, connection.msgtype)))
    return found


def test_the_same_run_gives_the_same_bytes(recorded, written, tmp_path):
    folder, arguments = recorded
    assert viewer_bag.main([*arguments, str(tmp_path / 'replay.mcap')]) == 0
    assert (tmp_path / 'replay.mcap').read_bytes() == (folder / 'replay.mcap').read_bytes()


def test_every_topic_of_the_layout_is_in_the_bag_with_a_type_that_its_panel_draws(written):
    panels = json.loads(LAYOUT.read_text())['configById']
    shown = panels['3D!scene']['topics']
    assert {written[topic][0] for topic in shown} == DRAWN
    image = panels['Image!camera']['imageMode']
    assert written[image['imageTopic']][0] == 'sensor_msgs/msg/CompressedImage'
    assert written[image['calibrationTopic']][0] == 'sensor_msgs/msg/CameraInfo'
    diagnostics = panels['DiagnosticSummary!parts']
    assert written[diagnostics['topicToRender']][0] == 'diagnostic_msgs/msg/DiagnosticArray'


def shown_values(written, panel: dict) -> list:
    """What the paths of a panel lead to in the first message of their topics."""
    found = []
    for path in panel['paths']:
        topic, *fields = path['value'].split('.')
        value = written[topic][1][0][1]
        for field in fields:
            name, _, index = field.rstrip(']').partition('[')
            value = getattr(value, name)
            if index:
                value = value[int(index)]
        found.append(value)
    return found


def test_every_plotted_field_is_in_its_message(written):
    panels = json.loads(LAYOUT.read_text())['configById']
    plots = [panel for name, panel in panels.items() if name.startswith('Plot!')]
    assert all(math.isfinite(value) for panel in plots for value in shown_values(written, panel))
    transitions = panels['StateTransitions!images']
    assert shown_values(written, transitions) == ['used', 'trusted']
    # Each viewer reads a title under a key of its own.
    for panel in (*plots, transitions):
        assert panel['lichtblickPanelTitle'] == panel['foxglovePanelTitle'] != ''


def test_the_layout_arranges_the_panels_that_it_configures():
    layout = json.loads(LAYOUT.read_text())

    def leaves(node):
        if isinstance(node, str):
            return [node]
        return leaves(node['first']) + leaves(node['second'])

    assert sorted(leaves(layout['layout'])) == sorted(layout['configById'])


def test_the_frame_that_is_followed_is_joined_to_the_map(written):
    followed = json.loads(LAYOUT.read_text())['configById']['3D!scene']['followTf']
    transforms = [t for _, msg in written['/tf'][1] for t in msg.transforms]
    assert {(t.header.frame_id, t.child_frame_id) for t in transforms} == {('odom', followed)}
    last = transforms[-1].transform.translation
    pose = drive.true_pose(SECONDS - 0.1)
    assert (last.x, last.y) == pytest.approx((pose.x_m, pose.y_m))


def test_a_recording_from_years_later_is_moved_to_the_time_of_its_input(written):
    times_ns = [bag_ns for _, messages in written.values() for bag_ns, _ in messages]
    assert min(times_ns) >= drive.START_NS
    assert max(times_ns) <= drive.START_NS + SECONDS * 1e9


def test_the_satellite_image_lies_under_the_drive_and_is_grey(written):
    [(_, grid)] = written['/viewer/satellite'][1]
    percent = np.asarray(grid.data).reshape(grid.info.height, grid.info.width)
    east_m = grid.info.origin.position.x + (np.arange(grid.info.width) + 0.5) * (
        grid.info.resolution)
    assert (percent[:, east_m < -2.0] == 20).all() and (percent[:, east_m > 2.0] == 80).all()
    path = written['/viewer/path_refined'][1][0][1]
    assert len(path.poses) == SECONDS * 4
    assert all(east_m[0] < pose.pose.position.x < east_m[-1] for pose in path.poses)


def test_each_pose_has_the_outline_of_its_95_percent_ellipse(written):
    poses = [msg for _, msg in written['/crossview_localizer/pose'][1]]
    ellipses = [msg for _, msg in written['/viewer/ellipses'][1]]
    assert len(ellipses) == len(poses)
    centre, outline = poses[7].pose.pose.position, ellipses[7].markers[0]
    distance_m = [math.hypot(p.x - centre.x, p.y - centre.y) for p in outline.points]
    # Variances of 1 m2: a circle with the root of chi-square's 95 % point as its radius.
    assert distance_m == pytest.approx([math.sqrt(5.991464547)] * len(distance_m))
    assert [marker.ns for marker in ellipses[7].markers] == ['pose', 'prior']


def test_an_ellipse_leans_as_its_covariance():
    covariance = np.array([[5.0, 3.0, 0.0], [3.0, 5.0, 0.0], [0.0, 0.0, 1.0]])
    points = ellipse_points(np.array([1.0, 2.0, 0.0]), covariance)
    farthest = points[np.argmax(np.hypot(*(points - [1.0, 2.0]).T))] - [1.0, 2.0]
    assert abs(math.degrees(math.atan2(*farthest[::-1])) % 180.0 - 45.0) < 6.0


def test_a_run_in_a_namespace_is_found_and_a_recorded_transform_is_not_added_again(
        ros, tmp_path):
    """The scene has recorded odom -> base_link too."""
    def in_namespace(messages):
        for topic, time_s, msg in messages:
            yield topic if topic in ('/tf_static', '/diagnostics') else f'/car{topic}', time_s, msg

    recorded = list(in_namespace([
        *drive.output_messages(SECONDS), *drive.odometry_messages(SECONDS)]))
    transforms = [('/tf', time_s, transform_msg(msg)) for topic, time_s, msg in recorded
                  if topic == '/car/odometry']
    run = drive.write_bag(tmp_path / 'run', [*recorded, *transforms])
    out = tmp_path / 'replay.mcap'
    assert viewer_bag.main([str(run), '--out', str(out)]) == 0
    with AnyReader([out]) as reader:
        counts = {connection.topic: connection.msgcount for connection in reader.connections}
    assert counts['/tf'] == len(transforms) > 10
    assert counts['/viewer/ellipses'] == counts['/car/crossview_localizer/pose']


def test_of_several_nodes_in_one_recording_one_must_be_named(ros, tmp_path, capsys):
    messages = list(drive.output_messages(SECONDS))
    run = drive.write_bag(tmp_path / 'run', [
        (f'/{car}{topic}', time_s, msg) for car in ('a', 'b') for topic, time_s, msg in messages])
    arguments = [str(run), '--out', str(tmp_path / 'replay.mcap')]
    assert viewer_bag.main(arguments) == 2
    assert 'the poses of /a/crossview_localizer, /b/crossview_localizer; name one with --node' in (
        capsys.readouterr().err)
    assert viewer_bag.main([*arguments, '--node', '/b/crossview_localizer']) == 0


def test_a_file_that_is_no_recording_gives_one_line_and_no_output(tmp_path, capsys):
    assert viewer_bag.main([str(tmp_path / 'none'), '--out', str(tmp_path / 'a.mcap')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('viewer_bag: error: ') and error.count('\n') == 1
    assert not list(tmp_path.iterdir())
