"""Images that do not show where the vehicle is: black, saturated, or frozen."""

import math

import numpy as np

from crossview_localizer.geometry import Pose2D

# Only every n-th pixel of an image is examined, so that about so many rows are.
SAMPLE_ROWS = 120
# Grey levels below and above these count as clipped.
BLACK, WHITE = 5, 250
# An image shows nothing if its grey levels have a smaller standard deviation,
MIN_CONTRAST = 3.0
# or if a larger share of them is clipped.
MAX_CLIPPED = 0.97
# The same picture twice is a frozen camera once the vehicle has moved this far.
FROZEN_MOVED_M = 1.0


class BlindImage(ValueError):
    """An image that shows nothing."""


class BlindImageCheck:
    """Refuses blind images."""

    def __init__(self):
        self._last_sample: np.ndarray | None = None
        self._last_from: Pose2D | None = None  # odometry when this very picture first came

    def examine(self, rgb: np.ndarray, odom_from_base: Pose2D | None) -> None:
        """Examine the next image (H, W, 3), with the newest odometry; raises BlindImage."""
        step = max(1, rgb.shape[0] // SAMPLE_ROWS)
        sample = rgb[::step, ::step]
        grey = sample.mean(axis=2)                                           # (h, w)
        clipped = np.mean((grey < BLACK) | (grey > WHITE))
        if grey.std() < MIN_CONTRAST or clipped > MAX_CLIPPED:
            kind = 'black' if grey.mean() < 64 else 'saturated' if grey.mean() > 192 else 'flat'
            raise BlindImage(
                f'image is {kind}: mean {grey.mean():.0f}, standard deviation {grey.std():.1f}, '
                f'{100 * clipped:.0f} % of the pixels clipped')
        if self._last_sample is None or not np.array_equal(sample, self._last_sample):
            self._last_sample, self._last_from = sample.copy(), odom_from_base
            return
        if self._last_from is None or odom_from_base is None:
            return
        moved = self._last_from.inverse() @ odom_from_base
        moved_m = math.hypot(moved.x_m, moved.y_m)
        if moved_m > FROZEN_MOVED_M:
            raise BlindImage(
                f'image is frozen: the same picture again after {moved_m:.1f} m by odometry')
