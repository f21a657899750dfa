"""Poses over time, and the interpolation between them."""

from dataclasses import dataclass

import numpy as np

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import interpolate_pose, Pose2D

# The ground truth is not interpolated over longer gaps.
TRUTH_MAX_GAP_S = 1.0


@dataclass(frozen=True)
class Track:
    """Poses of base_link at rising stamps; NaN marks what is not estimated.

    ``stamps_ns`` (n,) int64; ``poses`` (n, 3) x_m, y_m, yaw_rad; ``covariances`` (n, 3, 3).
    """

    stamps_ns: np.ndarray
    poses: np.ndarray
    covariances: np.ndarray

    @classmethod
    def empty(cls, stamps_ns) -> 'Track':
        """A track of NaN at these stamps."""
        count = len(stamps_ns)
        return cls(
            np.asarray(stamps_ns, np.int64), np.full((count, 3), np.nan),
            np.full((count, 3, 3), np.nan))

    @classmethod
    def from_poses(cls, stamps_ns, poses: list[Pose2D], covariances=None) -> 'Track':
        """Sort by stamp; of poses with the same stamp the first is kept."""
        stamps_ns, order = np.unique(np.asarray(stamps_ns, np.int64), return_index=True)
        track = cls.empty(stamps_ns)
        for row, index in enumerate(order):
            track.poses[row] = poses[index].as_array()
            if covariances is not None:
                track.covariances[row] = covariances[index]
        return track

    @classmethod
    def from_estimates(cls, estimates: list[PoseEstimate]) -> 'Track':
        """Sort by stamp; of estimates with the same stamp the first is kept."""
        return cls.from_poses(
            [estimate.stamp_ns for estimate in estimates],
            [estimate.pose for estimate in estimates],
            [estimate.covariance for estimate in estimates])

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def pose(self, index: int) -> Pose2D:
        return Pose2D(*(float(value) for value in self.poses[index]))

    def pose_at(self, stamp_ns: int, max_gap_s: float) -> Pose2D | None:
        """The interpolated pose; None if it is not known.

        It is not known outside the track and inside gaps longer than ``max_gap_s``.
        """
        left = int(np.searchsorted(self.stamps_ns, stamp_ns, side='right')) - 1
        right = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if left < 0 or right == len(self):
            return None
        if left == right:
            return self.pose(left)
        span_ns = int(self.stamps_ns[right] - self.stamps_ns[left])
        if span_ns * 1e-9 > max_gap_s:
            return None
        fraction = int(stamp_ns - self.stamps_ns[left]) / span_ns
        return interpolate_pose(self.pose(left), self.pose(right), fraction)

    def at(self, stamps_ns, max_gap_s: float) -> 'Track':
        """The poses of :meth:`pose_at`, NaN where it has none."""
        found = Track.empty(stamps_ns)
        for row, stamp_ns in enumerate(found.stamps_ns):
            pose = self.pose_at(int(stamp_ns), max_gap_s)
            if pose is not None:
                found.poses[row] = pose.as_array()
        return found

    def aligned(self, stamps_ns) -> 'Track':
        """The rows with exactly these stamps; NaN where there is none."""
        found = Track.empty(stamps_ns)
        if len(self):
            row = np.minimum(np.searchsorted(self.stamps_ns, found.stamps_ns), len(self) - 1)
            same = self.stamps_ns[row] == found.stamps_ns
            found.poses[same] = self.poses[row[same]]
            found.covariances[same] = self.covariances[row[same]]
        return found
