"""The topics that the localizer node publishes."""

import time

from diagnostic_msgs.msg import DiagnosticStatus
from geographic_msgs.msg import GeoPoseWithCovarianceStamped
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import OccupancyGrid, Odometry
import numpy as np
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Float64
from tf2_msgs.msg import TFMessage

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import Heatmap, Localization, OdometrySample, PoseEstimate
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.ros import conversions
from crossview_localizer.ros.qos import overridable
from crossview_localizer.ros.status import Status


class LocalizerOutputs:
    """The publishers of a configured node; all but /tf publish only while it is active."""

    def __init__(self, node: LifecycleNode, config: NodeConfig):
        self._node = node
        self._config = config
        self._cleared_heatmap: Heatmap | None = None
        self._publishers = {
            topic: node.create_lifecycle_publisher(
                kind, f'~/{topic}', 10, qos_overriding_options=overridable())
            for topic, kind in (
                ('pose', PoseWithCovarianceStamped), ('geopose', GeoPoseWithCovarianceStamped),
                ('prior', PoseWithCovarianceStamped), ('match', PoseWithCovarianceStamped),
                ('heatmap', OccupancyGrid), ('latency', Float64), ('status', DiagnosticStatus),
                ('odometry', Odometry))}
        self._tf_publisher = node.create_publisher(
            TFMessage, '/tf', 100, qos_overriding_options=overridable())

    def destroy(self) -> None:
        """Destroy all publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_lifecycle_publisher(publisher)
        self._node.destroy_publisher(self._tf_publisher)

    def publish_localization(
        self, localization: Localization, frame: LocalFrame, entered_s: float,
    ) -> float | None:
        """Publish everything about an image.

        ``entered_s`` is the time at which the image's callback began, by ``time.perf_counter``.
        Returns the latency in ms from that time to the published pose; None if there is no pose.
        """
        map_frame, latency_ms = self._config.map_frame, None
        if localization.posterior is not None:
            self._publish(
                'pose', conversions.pose_msg_from_estimate(localization.posterior, map_frame))
            latency_ms = (time.perf_counter() - entered_s) * 1e3
            self._publish('latency', Float64(data=latency_ms))
            self._publish(
                'geopose', conversions.geopose_msg_from_estimate(localization.posterior, frame))
        for topic, estimate in (('prior', localization.prior), ('match', localization.match)):
            if estimate is not None:
                self._publish(topic, conversions.pose_msg_from_estimate(estimate, map_frame))
        heatmap = self._heatmap_to_show(localization)
        if heatmap is not None and self._publishers['heatmap'].get_subscription_count():
            self._publish('heatmap', conversions.heatmap_msg_from_heatmap(heatmap, map_frame))
        return latency_ms

    def publish_status(self, status: Status) -> None:
        """Publish the status of an image."""
        self._publish(
            'status', conversions.status_msg_from_status(status, self._node.get_name()))

    def publish_odometry(
        self, estimate: PoseEstimate, sample: OdometrySample, msg: Odometry,
    ) -> None:
        """Publish the pose at an odometry sample, and ``map`` -> ``odom`` on /tf."""
        config = self._config
        self._publish('odometry', conversions.odometry_msg_from_estimate(
            estimate, config.map_frame, config.base_frame, msg.twist))
        if not config.publish_tf:
            return
        map_from_odom = estimate.pose @ sample.odom_from_base.inverse()
        odom_frame = config.odom_frame or msg.header.frame_id.lstrip('/') or 'odom'
        stamp_ns = sample.stamp_ns + round(config.transform_tolerance_s * 1e9)
        self._tf_publisher.publish(TFMessage(transforms=[conversions.transform_msg_from_pose(
            map_from_odom, stamp_ns, config.map_frame, odom_frame)]))

    def _publish(self, topic: str, msg) -> None:
        self._publishers[topic].publish(msg)

    def _heatmap_to_show(self, localization: Localization) -> Heatmap | None:
        """The heat map of the match; without a match, a cleared one where the last was."""
        if localization.heatmap is not None:
            grid = localization.heatmap.grid
            self._cleared_heatmap = Heatmap(
                0, grid, np.full((grid.rows, grid.cols), -np.inf))
        if localization.match is not None:
            return localization.heatmap
        if self._cleared_heatmap is None:
            return None
        return Heatmap(
            localization.stamp_ns, self._cleared_heatmap.grid,
            self._cleared_heatmap.log_probability)
