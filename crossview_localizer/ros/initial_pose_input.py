"""Passes poses that a user gives, as RViz does, to the Localizer."""

from geometry_msgs.msg import PoseWithCovarianceStamped

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import Outcome, PoseEstimate
from crossview_localizer.ros import conversions
from crossview_localizer.ros.localizer_holder import LocalizerHolder, NO_MAP_FRAME
from crossview_localizer.ros.odometry_timeline import OdometryTimeline


class InitialPoseInput:
    """Starts the Localizer at each pose, or near it if the pose has to be searched for.

    A pose that is stamped more than ``buffer_s`` from the odometry is taken as the present one.
    """

    def __init__(self, config: NodeConfig, holder: LocalizerHolder, timeline: OdometryTimeline,
                 buffer_s: float):
        self._map_frame = config.map_frame
        self._holder = holder
        self._timeline = timeline
        self._buffer_s = buffer_s

    def add(self, msg: PoseWithCovarianceStamped) -> str:
        """Use a pose, and return what is done with it; raises ValueError if it is refused."""
        if msg.header.frame_id.lstrip('/') not in ('', self._map_frame):
            raise ValueError(
                f'frame_id is {msg.header.frame_id!r}; expected {self._map_frame!r}')
        if self._holder.localizer is None:
            raise ValueError(NO_MAP_FRAME)
        estimate = conversions.pose_estimate_from_msg(msg)
        # RViz stamps with its own clock, which may differ from that of the bag.
        newest = self._timeline.newest
        if newest and abs(estimate.stamp_ns - newest.stamp_ns) > self._buffer_s * 1e9:
            estimate = PoseEstimate(newest.stamp_ns, estimate.pose, estimate.covariance)
        update = self._holder.localizer.set_pose(estimate)
        if update.outcome not in (Outcome.USED, Outcome.SEARCHING):
            raise ValueError(update.reason or update.outcome.value)
        return update.reason or 'the pose starts there'
