"""Odometry messages to samples, for the node and the offline tools."""

import math

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.fusion.dead_reckoning import DeadReckoner
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros import conversions, remedies

# The pose is said to stand still if it has moved less than STANDS_SHARE of the distance that the
# twist has covered, and that is at least STANDS_AFTER_M.
STANDS_AFTER_M, STANDS_SHARE = 5.0, 0.1
# The twist of a parked vehicle may be up to this.
MIN_SPEED_MPS = 0.3


class WrongFrame(ValueError):
    """The frames of a message are not those of odometry of the vehicle; has a ``remedy``."""

    def __init__(self, text: str, remedy: str):
        super().__init__(text)
        self.remedy = remedy


class OdometryReader:
    """Reads the pose of each message or, with ``odometry_from_twist``, integrates its twist.

    After each message ``remark`` says what is wrong with it, or is empty.
    """

    def __init__(self, config: NodeConfig):
        self._config = config
        self.reset()

    def reset(self) -> None:
        """Forget all messages: the stamps have gone back."""
        self.remark = ''
        self._reckoner = DeadReckoner()
        self._first: Pose2D | None = None  # the pose since which the distance of the twist counts
        self._last_ns = 0
        self._twist_m = 0.0

    def read(self, msg) -> OdometrySample:
        """The sample of a message; raises WrongFrame, or ValueError where it is not valid."""
        self.check_frames(msg)
        if self._config.odometry_from_twist:
            twist = msg.twist.twist
            return self._reckoner.add_speed(
                conversions.stamp_ns_from_msg(msg.header.stamp), twist.linear.x, twist.linear.y,
                twist.angular.z)
        sample = conversions.odometry_sample_from_msg(msg)
        self._compare(sample, math.hypot(msg.twist.twist.linear.x, msg.twist.twist.linear.y))
        return sample

    def check_frames(self, msg) -> None:
        """Raise WrongFrame if the frames are not those of odometry of the vehicle."""
        base_frame, map_frame = self._config.base_frame, self._config.map_frame
        if msg.child_frame_id.lstrip('/') not in ('', base_frame):
            raise WrongFrame(
                f'child_frame_id is {msg.child_frame_id!r}; expected {base_frame!r} '
                '(parameter base_frame)', remedies.ODOMETRY)
        frame_id = msg.header.frame_id.lstrip('/') or 'odom'
        if frame_id == base_frame:
            raise WrongFrame(
                f"frame_id is {frame_id!r}, the vehicle's own frame; expected the frame in which "
                "it moves, such as 'odom'", remedies.ODOMETRY_FRAME)
        if frame_id == map_frame:
            raise WrongFrame(
                f'frame_id is {frame_id!r}, the frame of the poses that this node '
                'publishes; expected odometry that drifts and never jumps, in a frame such as '
                "'odom'", remedies.ODOMETRY_IN_MAP)

    def _compare(self, sample: OdometrySample, speed_mps: float) -> None:
        """Compare how far pose and twist have gone."""
        seconds = (sample.stamp_ns - self._last_ns) * 1e-9
        self._last_ns = sample.stamp_ns
        if self._first is not None and speed_mps > MIN_SPEED_MPS and 0.0 < seconds < 1.0:
            self._twist_m += speed_mps * seconds
        pose, first = sample.odom_from_base, self._first or sample.odom_from_base
        moved_m = math.hypot(pose.x_m - first.x_m, pose.y_m - first.y_m)
        if self._first is None or moved_m > STANDS_SHARE * self._twist_m:
            self._first, self._twist_m = pose, 0.0
        self.remark = '' if self._twist_m < STANDS_AFTER_M else (
            f'the pose of the odometry stands still while its twist has gone '
            f'{self._twist_m:.0f} m')
