"""Images that do not show where the vehicle is: black, saturated, or frozen."""

import math

import numpy as np

from crossview_localizer.geometry import Pose2D

# Images are subsampled to about this many rows before they are examined.
SAMPLE_ROWS = 120
# Grey levels below BLACK and above WHITE are clipped.
BLACK, WHITE = 5, 250
# An image whose grey levels have a smaller standard deviation shows nothing.
MIN_CONTRAST = 3.0
# An image with a larger share of clipped pixels shows nothing.
MAX_CLIPPED = 0.97
# A camera that gives the same picture after this distance is frozen.
FROZEN_MOVED_M = 1.0


class BlindImage(ValueError):
    """An image that shows nothing."""


class BlindImageCheck:
    """Refuses blind images."""

    def __init__(self):
        self._last_sample: np.ndarray | None = None
        self._odom_from_first: Pose2D | None = None  # odometry when that sample first appeared

    def examine(self, rgb: np.ndarray, odom_from_base: Pose2D | None) -> None:
        """Examine the next image (H, W, 3), with the newest odometry; raises BlindImage."""
        step = max(1, rgb.shape[0] // SAMPLE_ROWS)
        sample = rgb[::step, ::step].copy()
        grey = sample @ np.full(3, 1 / 3)                                    # (h, w)
        clipped = np.mean((grey < BLACK) | (grey > WHITE))
        if grey.std() < MIN_CONTRAST or clipped > MAX_CLIPPED:
            kind = 'black' if grey.mean() < 64 else 'saturated' if grey.mean() > 192 else 'flat'
            raise BlindImage(
                f'image is {kind}: mean {grey.mean():.0f}, standard deviation {grey.std():.1f}, '
                f'{100 * clipped:.0f} % of the pixels clipped')
        if self._last_sample is None or not np.array_equal(sample, self._last_sample):
            self._last_sample, self._odom_from_first = sample, odom_from_base
            return
        if self._odom_from_first is None or odom_from_base is None:
            return
        motion = self._odom_from_first.inverse() @ odom_from_base
        moved_m = math.hypot(motion.x_m, motion.y_m)
        if moved_m > FROZEN_MOVED_M:
            raise BlindImage(
                f'image is frozen: the same picture again after {moved_m:.1f} m by odometry')
