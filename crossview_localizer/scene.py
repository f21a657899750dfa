"""What RViz shows of a running localizer, on topics that stock displays understand.

It listens to the node's outputs and inputs and computes nothing that the node would need: the
localization runs the same with and without it, and it may run on another machine.
"""

import argparse
from collections import deque
import math
import sys
import time

from geographic_msgs.msg import GeoPoseStamped, GeoPoseWithCovarianceStamped
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import MarkerArray

from crossview_localizer.config import configs_from_parameters
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.ros import conversions, scene_messages, scene_pictures
from crossview_localizer.ros.parameters import parameter_values
from crossview_localizer.ros.process import run_node
from crossview_localizer.ros.sensor_rig import SensorRig

OWN_PARAMETERS = {'publish_odom_tf': False, 'picture_hz': 5.0, 'heatmap_picture': False}
LOCALIZER = 'crossview_localizer'
# A map frame that puts the refined pose farther than this from its geopose is another one.
FRAME_TOLERANCE_M = 0.5
WAITING_FIXES = 10_000
WAITING_FRAMES = 8
BEST_EFFORT = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)


class Trail:
    """Where something was, thinned out so that a drive of any length stays small to publish."""

    MAX_POINTS = 4000
    RESTART_S = 1.0

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        self.stamps_ns: list[int] = []
        self.xy_m: list[tuple[float, float]] = []
        self.changed = True
        self._step_m = 0.25

    def add(self, stamp_ns: int, x_m: float, y_m: float) -> None:
        """Later points only; one from before the last by RESTART_S starts a new drive."""
        if self.stamps_ns and stamp_ns < self.stamps_ns[-1] - self.RESTART_S * 1e9:
            self.clear()
        if self.xy_m and math.dist(self.xy_m[-1], (x_m, y_m)) < self._step_m:
            return
        self.stamps_ns.append(stamp_ns)
        self.xy_m.append((float(x_m), float(y_m)))
        self.changed = True
        if len(self.xy_m) > self.MAX_POINTS:
            self.stamps_ns, self.xy_m = self.stamps_ns[::2], self.xy_m[::2]
            self._step_m *= 2.0


class SceneNode(Node):
    """Node ``crossview_scene``; reads the localizer's parameters and its own.

    Raises ValueError or OSError from the constructor for parameters or a map that are not valid.
    """

    def __init__(self, **kwargs):
        super().__init__(
            'crossview_scene', automatically_declare_parameters_from_overrides=True, **kwargs)
        given = parameter_values(self)
        own = {name: given.pop(name, default) for name, default in OWN_PARAMETERS.items()}
        self._config, localizer_config = configs_from_parameters(given)
        self._publish_odom_tf = bool(own['publish_odom_tf'])
        self._draw_heatmaps = bool(own['heatmap_picture'])
        self._picture_period_s = 1.0 / float(own['picture_hz'])
        self._pitch_rad = localizer_config.camera.pitch_rad
        self._rig = SensorRig(self._config, localizer_config.camera)

        self._frame: LocalFrame | None = None
        self._latest_pose = None
        self._waiting_fixes = deque(maxlen=WAITING_FIXES)
        self._waiting_truth = deque(maxlen=WAITING_FIXES)
        self._frames = {}
        self._last_picture_s = self._last_heatmap_s = 0.0
        self._newest = {}
        self._match_ellipse = MarkerArray()
        self._trails = {name: Trail() for name in ('gnss', 'prior', 'refined', 'ground_truth')}
        self._create_outputs()
        self._orthophoto = self._publish_ground()
        self._create_inputs()
        # A steady clock: paths are drawn whether or not /clock runs.
        self.create_timer(
            1.0, self._publish_trails, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _create_outputs(self) -> None:
        def latched(depth):
            return QoSProfile(
                depth=depth, reliability=ReliabilityPolicy.RELIABLE,
                durability=DurabilityPolicy.TRANSIENT_LOCAL)

        self._ground_publisher = self.create_publisher(MarkerArray, '~/ground', latched(100))
        self._heatmap_publisher = self.create_publisher(OccupancyGrid, '~/heatmap', 5)
        self._alternatives_publisher = self.create_publisher(MarkerArray, '~/alternatives', 5)
        self._ellipse_publisher = self.create_publisher(MarkerArray, '~/ellipses', 20)
        self._frame_publisher = self.create_publisher(Image, '~/camera', 2)
        self._views_publisher = self.create_publisher(Image, '~/views', 2)
        self._trail_publishers = {
            name: self.create_publisher(Path, f'~/path/{name}', latched(1))
            for name in self._trails}
        self._heatmap_picture_publisher = None
        if self._draw_heatmaps:
            self._heatmap_picture_publisher = self.create_publisher(Image, '~/heatmap_picture', 2)
        self._tf_publisher = None
        if self._publish_odom_tf:
            self._tf_publisher = self.create_publisher(TFMessage, '/tf', 100)

    def _publish_ground(self):
        """The map's orthophoto, rgb with its grid, or None without one."""
        if not self._config.map_path:
            self.get_logger().warning('no map_path is set: the ground stays empty')
            return None
        # torch comes with it.
        from crossview_localizer.maps.embedding_map import read_orthophoto
        orthophoto = read_orthophoto(self._config.map_path)
        if orthophoto is None:
            self.get_logger().warning(f'{self._config.map_path} holds no orthophoto')
            return None
        for tile in scene_messages.ground_tiles(*orthophoto, self._config.map_frame):
            self._ground_publisher.publish(tile)
        return orthophoto

    def _create_inputs(self) -> None:
        compressed = self._config.image_transport == 'compressed'
        image_topic = self.resolve_topic_name('image') + ('/compressed' if compressed else '')
        latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        for kind, topic, callback, qos in (
                (TFMessage, '/tf_static', self._on_static_transforms, latched),
                (CameraInfo, 'camera_info', self._on_camera_info, BEST_EFFORT),
                (CompressedImage if compressed else Image, image_topic, self._on_image,
                 BEST_EFFORT),
                (NavSatFix, 'gnss', self._on_gnss, BEST_EFFORT),
                (Odometry, 'odometry', self._on_odometry, BEST_EFFORT),
                (GeoPoseStamped, 'ground_truth', self._on_truth, BEST_EFFORT),
                (PoseWithCovarianceStamped, f'{LOCALIZER}/pose', self._on_pose, 20),
                (PoseWithCovarianceStamped, f'{LOCALIZER}/prior', self._on_prior, 20),
                (PoseWithCovarianceStamped, f'{LOCALIZER}/match', self._on_match, 20),
                (GeoPoseWithCovarianceStamped, f'{LOCALIZER}/geopose', self._on_geopose, 20),
                (OccupancyGrid, f'{LOCALIZER}/heatmap', self._on_heatmap, 5)):
            self.create_subscription(kind, topic, callback, qos)

    # --- what the sensors say

    def _on_static_transforms(self, msg: TFMessage) -> None:
        self._rig.static_transforms.add(msg)

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._rig.camera_info = msg

    def _on_image(self, msg: Image | CompressedImage) -> None:
        """Draw the frame, if anybody looks, and keep it until its pose comes."""
        now_s = time.monotonic()
        looked_at = self._frame_publisher.get_subscription_count() + (
            self._views_publisher.get_subscription_count())
        if not looked_at or now_s - self._last_picture_s < self._picture_period_s:
            return
        self._last_picture_s = now_s
        try:
            image = self._rig.camera_image(msg)
        except ValueError as error:
            self.get_logger().warning(f'image: {error}', throttle_duration_sec=10.0)
            return
        self._frames[image.stamp_ns] = image
        while len(self._frames) > WAITING_FRAMES:
            del self._frames[next(iter(self._frames))]
        self._frame_publisher.publish(scene_messages.image_msg(
            scene_pictures.frame_picture(image, self._pitch_rad), image.stamp_ns,
            msg.header.frame_id))

    def _on_gnss(self, msg: NavSatFix) -> None:
        try:
            latlon_deg = conversions.gnss_latlon_from_msg(msg)
        except ValueError:
            return
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        self._waiting_fixes.append((stamp_ns, *latlon_deg))
        self._place('gnss', self._waiting_fixes)

    def _on_truth(self, msg: GeoPoseStamped) -> None:
        position = msg.pose.position
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        self._waiting_truth.append((stamp_ns, position.latitude, position.longitude))
        self._place('ground_truth', self._waiting_truth)

    def _place(self, name: str, waiting: deque) -> None:
        """Once it is known where the map lies, put what waits for that on its trail."""
        while self._frame is not None and waiting:
            stamp_ns, latitude_deg, longitude_deg = waiting.popleft()
            self._trails[name].add(
                stamp_ns, *self._frame.xy_from_latlon(latitude_deg, longitude_deg))

    def _on_odometry(self, msg: Odometry) -> None:
        if self._tf_publisher is None:
            return
        try:
            sample = conversions.odometry_sample_from_msg(msg)
        except ValueError:
            return
        self._tf_publisher.publish(TFMessage(transforms=[conversions.transform_msg_from_pose(
            sample.odom_from_base, sample.stamp_ns, msg.header.frame_id or 'odom',
            msg.child_frame_id or self._config.base_frame)]))

    # --- what the localizer says

    def _on_pose(self, msg: PoseWithCovarianceStamped) -> None:
        estimate = conversions.pose_estimate_from_msg(msg)
        self._latest_pose = estimate
        self._draw_ellipse('refined', estimate, scene_messages.REFINED_RGB)
        self._trails['refined'].add(estimate.stamp_ns, estimate.pose.x_m, estimate.pose.y_m)
        image = self._frames.pop(estimate.stamp_ns, None)
        if image is not None:
            picture = scene_pictures.views_picture(
                image, estimate.pose, self._pitch_rad, self._orthophoto)
            self._views_publisher.publish(scene_messages.image_msg(
                picture, estimate.stamp_ns, self._config.base_frame))

    def _on_prior(self, msg: PoseWithCovarianceStamped) -> None:
        estimate = conversions.pose_estimate_from_msg(msg)
        self._draw_ellipse('prior', estimate, scene_messages.PRIOR_RGB)
        self._trails['prior'].add(estimate.stamp_ns, estimate.pose.x_m, estimate.pose.y_m)

    def _on_match(self, msg: PoseWithCovarianceStamped) -> None:
        self._match_ellipse = self._draw_ellipse(
            'match', conversions.pose_estimate_from_msg(msg), scene_messages.MATCH_RGB)

    def _draw_ellipse(self, name: str, estimate, rgb) -> MarkerArray:
        self._newest[name] = estimate, rgb
        markers = scene_messages.ellipse_markers(name, estimate, rgb, self._config.map_frame)
        self._ellipse_publisher.publish(markers)
        return markers

    def _on_heatmap(self, msg: OccupancyGrid) -> None:
        self._heatmap_publisher.publish(scene_messages.shown_heatmap(msg))
        self._alternatives_publisher.publish(scene_messages.alternative_markers(msg))
        self._draw_heatmap(msg)
        # The localizer clears its heat map where an image gave no match.
        if max(msg.data, default=-1) < 0 and self._match_ellipse.markers:
            self._ellipse_publisher.publish(scene_messages.removal(self._match_ellipse))
            self._match_ellipse = MarkerArray()

    def _draw_heatmap(self, msg: OccupancyGrid) -> None:
        now_s = time.monotonic()
        if self._heatmap_picture_publisher is None or (
                not self._heatmap_picture_publisher.get_subscription_count()
                or now_s - self._last_heatmap_s < self._picture_period_s):
            return
        self._last_heatmap_s = now_s
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        picture = scene_pictures.heatmap_picture(
            *scene_messages.percent_from_heatmap(msg), self._orthophoto,
            [drawn for drawn in self._newest.values() if drawn[0].stamp_ns == stamp_ns])
        self._heatmap_picture_publisher.publish(scene_messages.image_msg(
            picture, stamp_ns, self._config.map_frame))

    def _on_geopose(self, msg: GeoPoseWithCovarianceStamped) -> None:
        """Pose and geopose of one instant tell where the map frame lies on Earth."""
        estimate = self._latest_pose
        if estimate is None or (
                estimate.stamp_ns != conversions.stamp_ns_from_msg(msg.header.stamp)):
            return
        position = msg.pose.pose.position
        latlon_deg = position.latitude, position.longitude
        xy_m = estimate.pose.x_m, estimate.pose.y_m
        if self._frame is not None:
            if math.dist(self._frame.xy_from_latlon(*latlon_deg), xy_m) < FRAME_TOLERANCE_M:
                return
            for trail in self._trails.values():
                trail.clear()
        self._frame = frame_with(latlon_deg, xy_m)
        self._place('gnss', self._waiting_fixes)
        self._place('ground_truth', self._waiting_truth)

    def _publish_trails(self) -> None:
        for name, trail in self._trails.items():
            if trail.changed:
                trail.changed = False
                self._trail_publishers[name].publish(scene_messages.path_msg(
                    trail.stamps_ns, trail.xy_m, self._config.map_frame))


def frame_with(latlon_deg: tuple[float, float], xy_m: tuple[float, float]) -> LocalFrame:
    """The map frame in which a place on Earth has these coordinates.

    Its origin is found by shifting a frame until it fits; each step leaves about a millionth of
    the error (the planes about two origins are turned against each other and little else).
    """
    frame = LocalFrame(*latlon_deg)
    for _ in range(6):
        x_m, y_m = frame.xy_from_latlon(*latlon_deg)
        frame = LocalFrame(*frame.latlon_from_xy(x_m - xy_m[0], y_m - xy_m[1]))
    return frame


def main(args: list[str] | None = None) -> int:
    """Publish the scene until SIGINT or SIGTERM."""
    return run_node(argparse.ArgumentParser(
        prog='scene',
        description='Publish what config/robotcar.rviz shows: satellite image, heat map, '
        'ellipses, match and alternatives, paths, camera pictures. It takes the parameters and '
        'remappings of localizer_node, and publish_odom_tf (odom to base_link from the odometry, '
        'where nobody else publishes it), heatmap_picture (the heat map over the satellite image '
        'as a live picture) and picture_hz.',
        epilog='example: ros2 run crossview_localizer scene --ros-args --params-file '
        'robotcar.yaml -p map_path:=oxford.map -r image:=/camera/image -r gnss:=/gnss/fix'),
        args, SceneNode, _report)


def _report(node: SceneNode, error: Exception) -> None:
    """A message that makes no sense must not end the picture."""
    if not isinstance(error, ValueError):
        raise error
    node.get_logger().error(str(error), throttle_duration_sec=10.0)


if __name__ == '__main__':
    sys.exit(main())
