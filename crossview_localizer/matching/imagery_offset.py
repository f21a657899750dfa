"""Fits the offset of the imagery to frames with known poses, by means of the dense matcher.

The matcher scores every frame over place and heading.  All known poses are moved by one common
offset; the sum of the log-likelihoods there is highest for the right offset.  A score is that of
the best heading within the window, so that a small error of the known heading does not matter.
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

WINDOW_M = 6.0               # places within this distance of a known pose are scored
MAX_OFFSET_M = 4.0           # largest offset that is tried
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

    ``gain_nats`` is what the offset adds to the mean log-likelihood of a frame.  ``at_edge`` is
    true if it is about as large as MAX_OFFSET_M, ``filtered`` if the poses come from the filter.
    ``without_pose`` counts the images that were left out because their pose is not known.
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

    ``volume(frame)`` gives the log-likelihoods (R, R) of offsets from the known pose, row 0 north,
    normalised over the window, and the size of a cell in metres.  The standard deviations are
    those of fits to resampled frames, so they do not depend on the width of the likelihood.

    Raises ValueError for fewer than ``MIN_FRAMES`` frames.
    """
    if len(frames) < MIN_FRAMES:
        raise ValueError(f'{len(frames)} frames with a known pose; expected at least {MIN_FRAMES}')
    scored = [volume(frame) for frame in progress(frames)]
    cell_m = scored[0][1]
    volumes = np.array([v for v, _ in scored])                               # (n, R, R)
    best_m, value = _highest(volumes.mean(0), cell_m)
    # The errors of neighbouring frames are correlated: they are drawn in blocks.
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
    """The highest point of a surface (R, R), between its cells: its offset (2,) and its height."""
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
    """Computes log-likelihoods of offsets from the known pose of a frame, by the dense matcher."""

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
        # The cells of the heat map are those of the map: resample it around the known pose.
        grid, log_p = heatmap.grid, heatmap.log_probability
        row, col = grid.row_col_from_xy(frame.pose.x_m, frame.pose.y_m)
        reach = int((WINDOW_M - 1.0) / grid.cell_m)
        steps = np.arange(-reach, reach + 1)
        rows, cols = np.meshgrid(float(row) + steps, float(col) + steps, indexing='ij')
        # The floor is the share of outliers: frames that fit nowhere must not decide the fit.
        floor = np.log(0.05 / log_p.size)
        return np.logaddexp(map_coordinates(log_p, [rows, cols], order=1), floor), grid.cell_m


def _known(stamp_ns: int, pose: Pose2D) -> PoseEstimate:
    return PoseEstimate(stamp_ns, pose, np.diag([0.3, 0.3, math.radians(0.7)]) ** 2)
