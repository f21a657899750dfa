"""What the field's benchmarks ask of a matcher: an image, an overhead crop, and a prior.

A benchmark is a sequence of ``BenchmarkFrame``; its readers are ``kitti_frames`` and
``oxford_patches``.  Frames are read as they are asked for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

import cv2
import numpy as np

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.matcher import SearchWindow
from training.data.real_pairs import Overhead, View


@dataclass(frozen=True, eq=False)
class BenchmarkFrame:
    """``prior`` and the truth of ``view`` are in the axes of its overhead picture."""

    view: View
    prior: PoseEstimate
    search: SearchWindow


class Frames(Sequence):
    """A benchmark's frames; ``read(number)`` reads one."""

    def __init__(self, name: str, count: int, read: Callable[[int], BenchmarkFrame]):
        self.name, self._count, self._read = name, count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> BenchmarkFrame:
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._read(number)

    def subset(self, name: str, numbers: Sequence[int]) -> 'Frames':
        """Some of the frames, under a name of their own."""
        return Frames(name, len(numbers), lambda k: self[int(numbers[k])])


def uniform_prior(pose: Pose2D, search: SearchWindow) -> PoseEstimate:
    """The pose with the covariance of a uniform error within a search window."""
    return PoseEstimate(0, pose, np.diag(np.square(
        [search.half_width_m, search.half_width_m, search.half_yaw_rad]) / 3.0))


def overhead_about(picture: Overhead, middle: Pose2D, side_px: int) -> Overhead:
    """The square of a picture about a pose, whose heading points to the right.

    It has the picture's metres a pixel.  What lies beyond the picture is black and not known.
    """
    height, width = picture.rgb.shape[:2]
    col = (width - 1) / 2 + middle.x_m / picture.px_m
    row = (height - 1) / 2 - middle.y_m / picture.px_m
    cos, sin = math.cos(middle.yaw_rad), math.sin(middle.yaw_rad)
    half = (side_px - 1) / 2
    # Column right, row down: heading along the columns of the result.
    source_from_pixel = np.array([
        [cos, sin, col - cos * half - sin * half], [-sin, cos, row + sin * half - cos * half]])
    size_px = side_px, side_px
    inverse = cv2.WARP_INVERSE_MAP
    rgb = cv2.warpAffine(picture.rgb, source_from_pixel, size_px, flags=cv2.INTER_LINEAR | inverse)
    known = cv2.warpAffine(
        np.ones((height, width), np.uint8), source_from_pixel, size_px,
        flags=cv2.INTER_NEAREST | inverse).astype(bool)
    return Overhead(picture.name, rgb, picture.px_m, None if known.all() else known)
