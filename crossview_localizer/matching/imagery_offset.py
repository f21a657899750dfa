"""The offset of the imagery, fitted to frames of the dense matcher at known poses.

The matcher scores every frame over place and heading.  The sum of the log-likelihoods of many
frames at their known poses, all moved by one common offset, is highest where that offset is right.
A score is taken at the best heading within the window, so that a small error of the known heading
does not matter.
"""

from collections.abc import Callable
from dataclasses import dataclass
import math

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter
from scipy.optimize import minimize

from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import CameraImage, PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.matcher import MIN_HALF_YAW_RAD, SearchWindow

WINDOW_M = 6.0               # of places about each known pose that are scored
MAX_OFFSET_M = 4.0           # of the imagery: the rest of the window is for the view's own reach
MIN_FRAMES = 10
BOOTSTRAPS = 100


@dataclass(frozen=True)
class PosedImage:
    """An image and the pose from which it is known to have been taken."""

    image: CameraImage
    pose: Pose2D


@dataclass(frozen=True)
class Offset:
    """The offset of the imagery, ``xy_m`` (2,) east and north, and its standard deviations.

    ``gain_nats`` is what it adds to the mean log-likelihood of a frame.  ``at_edge`` says that it
    lies at the edge of what was tried, ``filtered`` that the poses were those of the filter;
    ``without_pose`` images were left out because their pose is not known.
    """

    xy_m: np.ndarray
    sigmas_m: np.ndarray
    frames: int
    gain_nats: float
    at_edge: bool
    filtered: bool = False
    without_pose: int = 0


def fit_offset(frames: list[PosedImage], volume: Callable[[PosedImage], tuple[np.ndarray, float]],
               seed: int = 0, progress: Callable[[list], list] = lambda items: items) -> Offset:
    """Maximise the summed log-likelihood of the frames over a common offset.

    ``volume(frame)`` gives log-likelihoods (R, R) of offsets from the known pose, row 0 north,
    normalised over the window, and the cell in metres.  The standard deviations are those of fits
    to resampled frames, so they do not rely on the width of the likelihood.

    Raises ValueError for fewer than ``MIN_FRAMES`` frames.
    """
    if len(frames) < MIN_FRAMES:
        raise ValueError(f'{len(frames)} frames with a known pose; expected at least {MIN_FRAMES}')
    scored = [volume(frame) for frame in progress(frames)]
    cell_m = scored[0][1]
    volumes = np.array([v for v, _ in scored])                               # (n, R, R)
    best_m, value = _highest(volumes.mean(0), cell_m)
    # Neighbouring frames share their errors: blocks of them are drawn together.
    rng = np.random.default_rng(seed)
    block = max(1, len(frames) // 20)
    starts = np.arange(0, len(frames), block)
    resampled = []
    for _ in range(BOOTSTRAPS):
        chosen = np.concatenate([
            np.arange(s, min(s + block, len(frames))) for s in rng.choice(starts, len(starts))])
        resampled.append(_highest(volumes[chosen].mean(0), cell_m)[0])
    middle = (volumes.shape[1] - 1) // 2
    return Offset(best_m, np.std(resampled, axis=0), len(frames),
                  value - float(volumes[:, middle, middle].mean()),
                  bool((np.abs(best_m) > MAX_OFFSET_M - cell_m).any()))


def _highest(surface: np.ndarray, cell_m: float) -> tuple[np.ndarray, float]:
    """Where a surface (R, R) is highest, as offset (2,) between its cells, and how high."""
    spline = spline_filter(surface)
    middle = (surface.shape[0] - 1) // 2
    reach = int(MAX_OFFSET_M / cell_m)
    inner = slice(middle - reach, middle + reach + 1)
    row, col = np.unravel_index(surface[inner, inner].argmax(), (2 * reach + 1,) * 2)
    fitted = minimize(
        lambda xy_m: -float(map_coordinates(
            spline, [[middle - xy_m[1] / cell_m], [middle + xy_m[0] / cell_m]], order=3,
            prefilter=False)[0]),
        ((col - reach) * cell_m, (reach - row) * cell_m), method='L-BFGS-B',
        bounds=[(-MAX_OFFSET_M, MAX_OFFSET_M)] * 2)
    return fitted.x, float(-fitted.fun)


class OffsetVolumes:
    """Log-likelihoods of the dense matcher over offsets from the known pose of a frame."""

    def __init__(self, matcher: DenseMatcher, embedding_map, config: LocalizerConfig):
        self.matcher, self.map = matcher, embedding_map
        self.search = SearchWindow(WINDOW_M, MIN_HALF_YAW_RAD)
        self.pitch_rad = config.camera.pitch_rad

    def covers(self, pose: Pose2D) -> bool:
        """Whether the map holds all places that are tried for a frame at this pose."""
        window = self.map.window(_known(0, pose), WINDOW_M, self.matcher.margin_m)
        return window is not None and window.coverage == 1.0

    def __call__(self, frame: PosedImage) -> tuple[np.ndarray, float]:
        prior = _known(frame.image.stamp_ns, frame.pose)
        ground = self.matcher.embed(frame.image, frame.pose.yaw_rad, self.pitch_rad)
        window = self.map.window(prior, WINDOW_M, self.matcher.margin_m)
        heatmap = self.matcher.match(ground, window, prior, self.search)
        # The cells lie where the map has them: resample about the known pose.
        grid, log_p = heatmap.grid, heatmap.log_probability
        row, col = grid.row_col_from_xy(frame.pose.x_m, frame.pose.y_m)
        reach = int((WINDOW_M - 1.0) / grid.cell_m)
        steps = np.arange(-reach, reach + 1)
        rows, cols = np.meshgrid(float(row) + steps, float(col) + steps, indexing='ij')
        # The floor is the share of outliers: frames that fit nowhere must not decide.
        floor = np.log(0.05 / log_p.size)
        return np.logaddexp(map_coordinates(log_p, [rows, cols], order=1), floor), grid.cell_m


def _known(stamp_ns: int, pose: Pose2D) -> PoseEstimate:
    return PoseEstimate(stamp_ns, pose, np.diag([0.3, 0.3, math.radians(0.7)]) ** 2)
