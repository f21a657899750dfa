"""Many hypotheses of the pose, held in log space over heat maps until one of them wins.

For a start without a heading, after an outage, or where the Kalman prior has locked onto the wrong
street.  One position grid a heading: all of them are carried along by odometry, each under its
own heading, so a grid moves as a whole and is never resampled.  Each frame's heat map under that
heading is added to it.  Once one mode holds nearly all of the probability for a while,
:meth:`PoseHypotheses.winner` gives a pose that ``PoseFilter.set_pose`` takes.

Legend: K headings, R and C rows and columns of a grid.
"""

from collections.abc import Sequence
import math

import cv2
import numpy as np

from crossview_localizer.config import HypothesesConfig
from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle


class PoseHypotheses:
    """Log-probabilities (K, R, C) of where base_link is and which way it points."""

    def __init__(self, x_m: float, y_m: float, radius_m: float, config: HypothesesConfig):
        """Every heading, and every position within ``radius_m`` of a point in ``map``."""
        if not radius_m >= config.cell_m:
            raise ValueError(f'radius is {radius_m} m; expected at least {config.cell_m} m')
        self._config = config
        self._grid = MapGrid.around(x_m, y_m, radius_m, config.cell_m)
        xs_m, ys_m = self._grid.cell_centres()
        inside = np.hypot(xs_m[None, :] - x_m, ys_m[:, None] - y_m) <= radius_m
        flat = np.where(inside, 0.0, -np.inf)
        self._log_p = _normalized(np.repeat(flat[None], config.headings, axis=0))  # (K, R, C)
        self._start_yaws_rad = wrap_angle(2 * math.pi / config.headings * np.arange(
            config.headings))
        self._turned_rad = 0.0
        self._moved_m = np.zeros((config.headings, 2))  # of each grid since the start
        self._since_update_m = math.inf  # the first heat map counts in full
        self._won_m: float | None = None

    @property
    def yaws_rad(self) -> np.ndarray:
        """The headings (K,) held now; a heat map is wanted under each."""
        return wrap_angle(self._start_yaws_rad + self._turned_rad)

    def move(self, increment: Pose2D) -> None:
        """Carry every hypothesis along by an odometry increment in the old body frame."""
        for index, yaw_rad in enumerate(self.yaws_rad):
            moved = Pose2D(0.0, 0.0, yaw_rad).transform(np.array([increment.x_m, increment.y_m]))
            self._moved_m[index] += moved
        self._turned_rad += increment.yaw_rad
        distance_m = math.hypot(increment.x_m, increment.y_m)
        self._since_update_m += distance_m
        if self._won_m is not None:
            self._won_m += distance_m

    def area(self) -> tuple[float, float, float]:
        """Centre (x_m, y_m) and half width in metres of a square that holds all hypotheses."""
        centre_m = np.array(self._grid.xy_from_row_col(
            (self._grid.rows - 1) / 2, (self._grid.cols - 1) / 2))
        low_m, high_m = self._moved_m.min(axis=0), self._moved_m.max(axis=0)
        half_m = (high_m - low_m).max() / 2 + self._grid.rows * self._grid.cell_m / 2
        return (*(centre_m + (low_m + high_m) / 2).tolist(), float(half_m))

    # log p <- log p + share * log((1 - o) h + o / n)       h: heat map, n: its known cells
    def update(self, heatmaps: Sequence[Heatmap | None]) -> None:
        """Weigh each heading's hypotheses (K) by its heat map; None says nothing.

        Cells outside a heat map count as outliers.  Raises ValueError for another number of maps.
        """
        if len(heatmaps) != len(self._moved_m):
            raise ValueError(f'{len(heatmaps)} heat maps; expected {len(self._moved_m)}')
        blur = self._config.drift_share * min(self._since_update_m, 1e3) / self._config.cell_m
        share = 1.0
        if self._config.correlation_m > 0.0:
            share = min(1.0, self._since_update_m / self._config.correlation_m)
        if share == 0.0:
            return
        for index, heatmap in enumerate(heatmaps):
            if math.isfinite(self._since_update_m):
                self._log_p[index] = _blurred(self._log_p[index], blur)
            if heatmap is not None:
                self._log_p[index] += share * self._log_likelihood(index, heatmap)
        self._log_p = _normalized(self._log_p)
        self._since_update_m = 0.0
        if self._winning_probability()[0] < self._config.win_probability:
            self._won_m = None
        elif self._won_m is None:
            self._won_m = 0.0

    def winner(self, stamp_ns: int) -> PoseEstimate | None:
        """Mean and covariance of the mode that has won; None until one has."""
        if self._won_m is None or self._won_m < self._config.win_distance_m:
            return None
        _, weights, xs_m, ys_m, yaws_rad = self._winning_probability()
        weights = weights / weights.sum()
        values = np.stack((xs_m, ys_m, yaws_rad))                          # (3, n)
        mean = values @ weights
        spread = values - mean[:, None]
        covariance = (weights * spread) @ spread.T
        # A cell stands for all within it; the blur lags behind within a heading.
        cell_m2 = self._config.cell_m**2 / 12 + (self._config.mode_radius_m / 4) ** 2
        step_rad2 = (2 * math.pi / self._config.headings) ** 2 / 12
        covariance += np.diag([cell_m2, cell_m2, step_rad2])
        return PoseEstimate(
            stamp_ns, Pose2D(float(mean[0]), float(mean[1]), wrap_angle(float(mean[2]))),
            covariance)

    def _winning_probability(self):
        """Probability of the best mode; weights, x, y and yaw (n,) of its hypotheses."""
        heading, row, col = np.unravel_index(np.argmax(self._log_p), self._log_p.shape)
        best_m = np.array(self._grid.xy_from_row_col(row, col)) + self._moved_m[heading]
        xs_m, ys_m = self._grid.cell_centres()
        parts = []
        for step in range(-2, 3):
            index = (heading + step) % self._config.headings
            east_m = np.broadcast_to(xs_m + self._moved_m[index, 0], self._log_p.shape[1:])
            north_m = np.broadcast_to(
                (ys_m + self._moved_m[index, 1])[:, None], self._log_p.shape[1:])
            near = np.hypot(
                east_m - best_m[0], north_m - best_m[1]) <= self._config.mode_radius_m
            yaw_rad = self.yaws_rad[heading] + step * 2 * math.pi / self._config.headings
            parts.append((np.exp(self._log_p[index][near]), east_m[near], north_m[near],
                          np.full(near.sum(), yaw_rad)))
        weights, east_m, north_m, yaws_rad = (np.concatenate(part) for part in zip(*parts))
        return float(weights.sum()), weights, east_m, north_m, yaws_rad

    def _log_likelihood(self, index: int, heatmap: Heatmap) -> np.ndarray:
        """Heat map at one heading's positions (R, C), as a density against a uniform one."""
        known = np.isfinite(heatmap.log_probability)
        density = np.exp(heatmap.log_probability) * known.sum()            # 1 where uniform
        row, col = heatmap.grid.row_col_from_xy(
            self._grid.x0_m + self._moved_m[index, 0], self._grid.y0_m + self._moved_m[index, 1])
        step = self._grid.cell_m / heatmap.grid.cell_m
        affine = np.array([[step, 0.0, float(col)], [0.0, step, float(row)]])
        sampled = cv2.warpAffine(
            density.astype(np.float32), affine, self._log_p.shape[:0:-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT,
            borderValue=0.0)
        outliers = self._config.outlier_share
        return np.log((1.0 - outliers) * sampled + outliers)


class PoseSearch:
    """Hypotheses over the frames of a drive until one of them wins.

    Frames follow each other by ``step_m`` and ``step_s`` at least.
    ``matcher`` is one that has ``search_heatmaps``, as the dense one does.
    """

    def __init__(self, x_m: float, y_m: float, radius_m: float, config: HypothesesConfig):
        self._config = config
        self._hypotheses = PoseHypotheses(
            x_m, y_m, max(min(radius_m, config.radius_m), config.cell_m), config)
        self._odom_from_base: Pose2D | None = None
        self._looked_ns = 0
        self.driven_m = 0.0

    def look(self, stamp_ns: int, odom_from_base: Pose2D, ground, matcher,
             embedding_map) -> PoseEstimate | None:
        """Weigh all hypotheses by a frame's ``ground`` embedding; the winner once there is one."""
        if self._odom_from_base is not None:
            increment = self._odom_from_base.inverse() @ odom_from_base
            step_m = math.hypot(increment.x_m, increment.y_m)
            if (step_m < self._config.step_m
                    or stamp_ns - self._looked_ns < self._config.step_s * 1e9):
                return None
            self._hypotheses.move(increment)
            self.driven_m += step_m
        self._odom_from_base, self._looked_ns = odom_from_base, stamp_ns
        heatmaps = matcher.search_heatmaps(
            ground, embedding_map, self._hypotheses.yaws_rad, *self._hypotheses.area())
        if heatmaps is not None:
            self._hypotheses.update(heatmaps)
        return self._hypotheses.winner(stamp_ns)


def _blurred(log_p: np.ndarray, sigma_cells: float) -> np.ndarray:
    highest = log_p.max()
    if sigma_cells == 0.0 or highest == -np.inf:
        return log_p
    # Far below the highest float32 has no digits left; such hypotheses are kept, hardly alive.
    p = cv2.GaussianBlur(
        np.exp(np.maximum(log_p - highest, -80.0)).astype(np.float32), (0, 0), sigma_cells)
    return highest + np.log(np.maximum(p, 1e-35)).astype(float)


def _normalized(log_p: np.ndarray) -> np.ndarray:
    highest = log_p.max()
    return log_p - highest - math.log(np.exp(log_p - highest).sum())
