"""Publishes what RViz shows of a running localizer, for displays that come with RViz.

It subscribes to the outputs and inputs of the localizer. The localizer does not depend on it, and
it may run on another machine.
"""

import argparse
from contextlib import suppress
from dataclasses import dataclass
import sys
import time

from geographic_msgs.msg import GeoPoseStamped, GeoPoseWithCovarianceStamped
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray
from visualization_msgs.srv import GetInteractiveMarkers

from crossview_localizer.config import (
    config_from_flat,
    configs_from_parameters,
    tunable,
    tunables,
)
from crossview_localizer.datatypes import CameraImage, PoseEstimate
from crossview_localizer.ros import conversions, scene_messages, scene_pictures
from crossview_localizer.ros.clock_jump import call_on_backward_jump
from crossview_localizer.ros.inputs import image_topic, subscribe_if_latched
from crossview_localizer.ros.parameters import parameter_values
from crossview_localizer.ros.process import run_node
from crossview_localizer.ros.qos import latched_profile
from crossview_localizer.ros.sensor_rig import SensorRig
from crossview_localizer.ros.trails import Trails

LOCALIZER = 'crossview_localizer'
TRAILS = ('gnss', 'prior', 'refined', 'ground_truth')
# At most so many images wait for their poses.
WAITING_IMAGES = 8
# RViz drops all markers when it is reset, and does not always say so: therefore the coarse ground
# is published again and again.
COARSE_GROUND_PERIOD_S = 5.0
BEST_EFFORT = QoSProfile(depth=20, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class SceneConfig:
    """The parameters of the scene besides those of the localizer."""

    publish_odom_tf: bool = tunable(
        False, 'publish odom -> base_link from the odometry, where nobody else does')
    picture_hz: float = tunable(5.0, 'most pictures of a topic per second', 0.01, 1000.0)
    heatmap_picture: bool = tunable(
        False, 'publish the heat map over the satellite image as a picture')


class SceneNode(Node):
    """Node ``crossview_scene``; reads the localizer's parameters and its own.

    Raises ValueError or OSError from the constructor for parameters or a map that are not valid.
    """

    def __init__(self, **kwargs):
        super().__init__(
            'crossview_scene', automatically_declare_parameters_from_overrides=True, **kwargs)
        given = parameter_values(self)
        own = config_from_flat(SceneConfig, {
            name: given.pop(name) for name in tunables(SceneConfig()) if name in given})
        self._config, localizer_config = configs_from_parameters(given)
        self._picture_period_s = 1.0 / own.picture_hz
        self._pitch_rad = localizer_config.camera.pitch_rad
        self.rig = SensorRig(self._config, localizer_config.camera)
        self._trails = Trails(TRAILS)
        self._latest_pose: PoseEstimate | None = None
        self._drawn_estimates: dict[str, tuple[PoseEstimate, tuple]] = {}  # with their colours
        self._match_ellipse = MarkerArray()
        self._waiting_images: dict[int, CameraImage] = {}   # by stamp
        self._last_picture_s: dict[str, float] = {}         # by topic
        self._create_outputs(own.publish_odom_tf, own.heatmap_picture)
        self._orthophoto = self._read_orthophoto()
        self._ground_tiles = MarkerArray()
        self._is_ground_due = False
        self._latched_camera_info = None    # the subscription, where somebody latches it
        self._publish_ground()
        self._coarse_ground = self._orthophoto and serialize_message(
            scene_messages.coarse_ground(*self._orthophoto, self._config.map_frame))
        self._create_inputs()
        # RViz drops all markers when it is reset and when its clock jumps back, and does not ask
        # for the latched ones again.  Its display of interactive markers then calls this service.
        self.create_service(
            GetInteractiveMarkers, '~/get_interactive_markers', self._on_viewer_reset)
        self._jump_handle = call_on_backward_jump(self, self._on_clock_jump)
        # A steady clock: paths are also drawn while /clock stands still.
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1.0, self._publish_background, clock=clock)
        if self._coarse_ground:
            # A publisher of its own, so that the latched tiles of the other one stay.
            publisher = self.create_publisher(MarkerArray, '~/ground', latched_profile(1))
            self.create_timer(COARSE_GROUND_PERIOD_S,
                              lambda: publisher.publish(self._coarse_ground), clock=clock)

    def _create_outputs(self, publish_odom_tf: bool, heatmap_picture: bool) -> None:
        outputs = {
            'ground': (MarkerArray, latched_profile(100)), 'heatmap': (OccupancyGrid, 5),
            'alternatives': (MarkerArray, 5), 'ellipses': (MarkerArray, 20),
            'camera': (Image, 2), 'views': (Image, 2),
            **{f'path/{name}': (Path, latched_profile(1)) for name in TRAILS}}
        if heatmap_picture:
            outputs['heatmap_picture'] = Image, 2
        self._outputs = {name: self.create_publisher(kind, f'~/{name}', qos)
                         for name, (kind, qos) in outputs.items()}
        if publish_odom_tf:
            self._outputs['tf'] = self.create_publisher(TFMessage, '/tf', 100)

    def _read_orthophoto(self):
        """The map's orthophoto, rgb with its grid, or None without one."""
        if not self._config.map_path:
            self.get_logger().warning('no map_path is set: the ground stays empty')
            return None
        # This import loads torch.
        from crossview_localizer.maps.embedding_map import read_orthophoto
        orthophoto = read_orthophoto(self._config.map_path)
        if orthophoto is None:
            self.get_logger().warning(f'{self._config.map_path} holds no orthophoto')
        return orthophoto

    def _publish_ground(self) -> None:
        """Publish the orthophoto in new markers instead of those published before."""
        if self._orthophoto is None:
            return
        old = self._ground_tiles.markers
        if old:
            self._outputs['ground'].publish(scene_messages.removal(self._ground_tiles))
        self._ground_tiles = MarkerArray()
        for tile in scene_messages.ground_tiles(
                *self._orthophoto, self._config.map_frame, old[-1].id + 1 if old else 0):
            self._outputs['ground'].publish(tile)
            self._ground_tiles.markers += [
                Marker(header=marker.header, ns=marker.ns, id=marker.id)
                for marker in tile.markers]

    def _on_clock_jump(self, back_s: float) -> None:
        self._is_ground_due = True  # in the timer: now RViz might still have to drop its markers

    def _on_viewer_reset(self, request, response):
        """A viewer was started or reset; it gets the ground, and an empty answer."""
        self._publish_ground()
        return response

    def _create_inputs(self) -> None:
        image = CompressedImage if self._config.image_transport == 'compressed' else Image
        for kind, topic, callback, qos in (
                (TFMessage, '/tf_static', self._on_static_transforms, latched_profile(100)),
                (CameraInfo, 'camera_info', self._on_camera_info, BEST_EFFORT),
                (image, image_topic(self, self._config), self._on_image, BEST_EFFORT),
                (NavSatFix, 'gnss', self._on_gnss, BEST_EFFORT),
                (Odometry, 'odometry', self._on_odometry, BEST_EFFORT),
                (GeoPoseStamped, 'ground_truth', self._on_truth, BEST_EFFORT),
                (PoseWithCovarianceStamped, f'{LOCALIZER}/pose', self._on_pose, 20),
                (PoseWithCovarianceStamped, f'{LOCALIZER}/prior', self._on_prior, 20),
                (PoseWithCovarianceStamped, f'{LOCALIZER}/match', self._on_match, 20),
                (GeoPoseWithCovarianceStamped, f'{LOCALIZER}/geopose', self._on_geopose, 20),
                (OccupancyGrid, f'{LOCALIZER}/heatmap', self._on_heatmap, 5)):
            self.create_subscription(kind, topic, callback, qos)

    # --- inputs of the localizer

    def _on_static_transforms(self, msg: TFMessage) -> None:
        self.rig.static_transforms.add(msg)

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self.rig.camera_info = msg

    def _on_image(self, msg: Image | CompressedImage) -> None:
        """Draw the camera's picture, if it has a subscriber; keep the image until its pose."""
        if not self._is_picture_due('camera', 'views'):
            return
        image = self.rig.camera_image(msg)
        self._waiting_images[image.stamp_ns] = image
        while len(self._waiting_images) > WAITING_IMAGES:
            del self._waiting_images[next(iter(self._waiting_images))]
        self._outputs['camera'].publish(scene_messages.image_msg(
            scene_pictures.camera_picture(image, self._pitch_rad), image.stamp_ns,
            msg.header.frame_id))

    def _on_gnss(self, msg: NavSatFix) -> None:
        with suppress(ValueError):  # the localizer reports what is wrong with its inputs
            self._trails.add_geographic(
                'gnss', conversions.stamp_ns_from_msg(msg.header.stamp),
                conversions.gnss_latlon_from_msg(msg))

    def _on_truth(self, msg: GeoPoseStamped) -> None:
        position = msg.pose.position
        self._trails.add_geographic(
            'ground_truth', conversions.stamp_ns_from_msg(msg.header.stamp),
            (position.latitude, position.longitude))

    def _on_odometry(self, msg: Odometry) -> None:
        if 'tf' not in self._outputs:
            return
        with suppress(ValueError):
            sample = conversions.odometry_sample_from_msg(msg)
            self._outputs['tf'].publish(TFMessage(transforms=[conversions.transform_msg_from_pose(
                sample.odom_from_base, sample.stamp_ns, msg.header.frame_id or 'odom',
                msg.child_frame_id or self._config.base_frame)]))

    # --- outputs of the localizer

    def _on_pose(self, msg: PoseWithCovarianceStamped) -> None:
        estimate = conversions.pose_estimate_from_msg(msg)
        self._latest_pose = estimate
        self._publish_ellipse('refined', estimate, scene_messages.REFINED_RGB)
        self._trails.add('refined', estimate.stamp_ns, estimate.pose.x_m, estimate.pose.y_m)
        image = self._waiting_images.pop(estimate.stamp_ns, None)
        if image is not None:
            picture = scene_pictures.views_picture(
                image, estimate.pose, self._pitch_rad, self._orthophoto)
            self._outputs['views'].publish(scene_messages.image_msg(
                picture, estimate.stamp_ns, self._config.base_frame))

    def _on_prior(self, msg: PoseWithCovarianceStamped) -> None:
        estimate = conversions.pose_estimate_from_msg(msg)
        self._publish_ellipse('prior', estimate, scene_messages.PRIOR_RGB)
        self._trails.add('prior', estimate.stamp_ns, estimate.pose.x_m, estimate.pose.y_m)

    def _on_match(self, msg: PoseWithCovarianceStamped) -> None:
        self._match_ellipse = self._publish_ellipse(
            'match', conversions.pose_estimate_from_msg(msg), scene_messages.MATCH_RGB)

    def _publish_ellipse(self, name: str, estimate: PoseEstimate, rgb) -> MarkerArray:
        self._drawn_estimates[name] = estimate, rgb
        markers = scene_messages.ellipse_markers(name, estimate, rgb, self._config.map_frame)
        self._outputs['ellipses'].publish(markers)
        return markers

    def _on_heatmap(self, msg: OccupancyGrid) -> None:
        self._outputs['heatmap'].publish(scene_messages.costmap_from_heatmap(msg))
        self._outputs['alternatives'].publish(scene_messages.alternative_markers(msg))
        # The localizer clears its heat map if an image gave no match.
        if max(msg.data, default=-1) < 0 and self._match_ellipse.markers:
            self._outputs['ellipses'].publish(scene_messages.removal(self._match_ellipse))
            self._match_ellipse = MarkerArray()
        if not self._is_picture_due('heatmap_picture'):
            return
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        picture = scene_pictures.heatmap_picture(
            *scene_messages.percent_from_heatmap(msg), self._orthophoto,
            [drawn for drawn in self._drawn_estimates.values() if drawn[0].stamp_ns == stamp_ns])
        self._outputs['heatmap_picture'].publish(scene_messages.image_msg(
            picture, stamp_ns, self._config.map_frame))

    def _on_geopose(self, msg: GeoPoseWithCovarianceStamped) -> None:
        """Place the map frame on Earth, from pose and geopose of one instant."""
        latest, position = self._latest_pose, msg.pose.pose.position
        if latest is not None and (
                latest.stamp_ns == conversions.stamp_ns_from_msg(msg.header.stamp)):
            self._trails.set_map_frame(
                (position.latitude, position.longitude), (latest.pose.x_m, latest.pose.y_m))

    def _publish_background(self) -> None:
        if self.rig.camera_info is None and self._latched_camera_info is None:
            self._latched_camera_info = subscribe_if_latched(
                self, CameraInfo, 'camera_info', self._on_camera_info)
        if self._is_ground_due:
            self._is_ground_due = False
            self._publish_ground()
        for name, trail in self._trails.take_changed():
            self._outputs[f'path/{name}'].publish(scene_messages.path_msg(
                trail.stamps_ns, trail.xy_m, self._config.map_frame))

    def _is_picture_due(self, *topics: str) -> bool:
        """Whether a picture has a subscriber, and the last one is old enough."""
        now_s, last_s = time.monotonic(), self._last_picture_s.get(topics[0], 0.0)
        is_due = now_s - last_s >= self._picture_period_s and any(
            self._outputs[topic].get_subscription_count()
            for topic in topics if topic in self._outputs)
        if is_due:
            self._last_picture_s[topics[0]] = now_s
        return is_due


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
        args, SceneNode, log_refused_message)


def log_refused_message(node: SceneNode, error: Exception) -> None:
    """Log a message that is not valid; it must not end the node."""
    if not isinstance(error, ValueError):
        raise error
    node.get_logger().warning(str(error), throttle_duration_sec=10.0)


if __name__ == '__main__':
    sys.exit(main())
