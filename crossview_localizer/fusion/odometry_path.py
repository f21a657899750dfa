"""The path of the last seconds by odometry, without its jumps."""

from bisect import bisect_left

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.fusion.motion_model import (
    interpolated_pose,
    is_jump,
    ODOMETRY_MAX_GAP_S,
)
from crossview_localizer.geometry import Pose2D


class OdometryPath:
    """Poses at any stamp in a frame of its own; a jump of the odometry counts as no motion."""

    def __init__(self, config: FilterConfig):
        self._config = config
        self._last: OdometrySample | None = None
        self._path: list[OdometrySample] = []

    def add(self, sample: OdometrySample) -> None:
        """Append a sample; one that is not finite, or not newer than the last, is ignored."""
        last, pose = self._last, Pose2D(0.0, 0.0, 0.0)
        if not np.isfinite(sample.odom_from_base.as_array()).all() or (
                last is not None and sample.stamp_ns <= last.stamp_ns):
            return
        if last is not None:
            pose = self._path[-1].odom_from_base
            if not is_jump(last, sample):
                pose = pose @ (last.odom_from_base.inverse() @ sample.odom_from_base)
        self._last = sample
        self._path.append(OdometrySample(sample.stamp_ns, pose))
        oldest_ns = sample.stamp_ns - round(self._config.buffer_s * 1e9)
        while len(self._path) > 2 and self._path[1].stamp_ns < oldest_ns:
            del self._path[0]

    def pose_at(self, stamp_ns: int) -> Pose2D | None:
        """The pose at a stamp; None before the oldest sample that is kept.

        It is interpolated between samples, and extrapolated beyond the last for at most
        ODOMETRY_MAX_GAP_S.
        """
        if not self._path or stamp_ns < self._path[0].stamp_ns:
            return None
        if len(self._path) == 1:
            return self._path[0].odom_from_base
        after = bisect_left(
            self._path, stamp_ns, 1, len(self._path) - 1, key=lambda sample: sample.stamp_ns)
        latest_ns = self._path[-1].stamp_ns + round(ODOMETRY_MAX_GAP_S * 1e9)
        return interpolated_pose(
            self._path[after - 1], self._path[after], min(stamp_ns, latest_ns))
