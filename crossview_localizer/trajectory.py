"""Poses over time, and what may be said between two of them."""

from dataclasses import dataclass

import numpy as np

from crossview_localizer.geometry import interpolate_pose, Pose2D


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

    def __len__(self) -> int:
        return len(self.stamps_ns)

    def pose(self, index: int) -> Pose2D:
        return Pose2D(*(float(value) for value in self.poses[index]))

    def pose_at(self, stamp_ns: int) -> Pose2D:
        """Interpolated; before the first and after the last stamp the nearest pose is returned."""
        after = int(np.searchsorted(self.stamps_ns, stamp_ns))
        if after == 0 or after == len(self):
            return self.pose(min(after, len(self) - 1))
        span_ns = int(self.stamps_ns[after] - self.stamps_ns[after - 1])
        fraction = int(stamp_ns - self.stamps_ns[after - 1]) / span_ns
        return interpolate_pose(self.pose(after - 1), self.pose(after), fraction)

    def at(self, stamps_ns, max_gap_s: float) -> 'Track':
        """Interpolated poses; NaN outside the track and inside gaps longer than ``max_gap_s``."""
        found = Track.empty(stamps_ns)
        for row, stamp_ns in enumerate(found.stamps_ns):
            left = int(np.searchsorted(self.stamps_ns, stamp_ns, side='right')) - 1
            right = int(np.searchsorted(self.stamps_ns, stamp_ns))
            if left < 0 or right == len(self):
                continue
            if (self.stamps_ns[right] - self.stamps_ns[left]) * 1e-9 <= max_gap_s:
                found.poses[row] = self.pose_at(stamp_ns).as_array()
        return found
