"""The search for a pose: heat maps weigh many hypotheses until one of them wins.

It serves a start without a heading, the time after an outage, and a filter that is in the wrong
street.  Each heading has a grid of log-probabilities of positions.  Odometry moves each grid as a
whole, along its own heading, so that no grid is resampled.  Each image adds a heat map to each
grid.  A mode wins when it has held nearly all of the probability over some distance; ``winner``
then gives a pose for ``PoseFilter.set_pose``.

Shape legend: K headings, R and C rows and columns of a grid.
"""

from collections.abc import Sequence
import math

import cv2
import numpy as np
from scipy.special import log_softmax

from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle

HEADINGS = 48           # number of headings, evenly spaced
CELL_M = 2.0            # spacing of positions
RADIUS_M = 100.0        # largest radius of a search
OUTLIER_SHARE = 0.2     # share of heat maps that say nothing about the true pose
CORRELATION_M = 15.0    # heat maps closer together along the road have correlated errors
DRIFT_SHARE = 0.05      # blur of the grids, metres of sigma for each metre driven
# A mode is all hypotheses this near to the best one, in place and in steps of heading.
MODE_RADIUS_M, MODE_HEADINGS = 10.0, 2
# A mode wins if it has held this probability over this distance.
WIN_PROBABILITY, WIN_DISTANCE_M = 0.95, 20.0
# Smallest distance and time between two images of a search; each takes 0.3 s of a core.
STEP_M, STEP_S = 4.0, 0.9


class PoseHypotheses:
    """Log-probabilities (K, R, C) of poses of base_link."""

    def __init__(self, x_m: float, y_m: float, radius_m: float, headings: int = HEADINGS):
        """All headings, and all positions within ``radius_m`` of a point in ``map``."""
        if not radius_m >= CELL_M:
            raise ValueError(f'radius is {radius_m} m; expected at least {CELL_M} m')
        self._grid = MapGrid.around(x_m, y_m, radius_m, CELL_M)
        xs_m, ys_m = self._grid.cell_centres()
        inside = np.hypot(xs_m[None, :] - x_m, ys_m[:, None] - y_m) <= radius_m
        flat = np.where(inside, 0.0, -np.inf)
        self._log_p = log_softmax(np.repeat(flat[None], headings, axis=0))     # (K, R, C)
        self._heading_step_rad = 2 * math.pi / headings
        self._start_yaws_rad = wrap_angle(self._heading_step_rad * np.arange(headings))
        self._turned_rad = 0.0
        self._moved_m = np.zeros((headings, 2))  # how far each grid has moved since the start
        self._since_update_m = math.inf  # inf: the first heat map counts in full
        # Distance driven since one mode holds WIN_PROBABILITY; None if none does.
        self._leading_m: float | None = None

    @property
    def yaws_rad(self) -> np.ndarray:
        """The present headings (K,)."""
        return wrap_angle(self._start_yaws_rad + self._turned_rad)

    def move(self, increment: Pose2D) -> None:
        """Move all hypotheses by an odometry increment in the old body frame."""
        for index, yaw_rad in enumerate(self.yaws_rad):
            moved = Pose2D(0.0, 0.0, yaw_rad).transform(np.array([increment.x_m, increment.y_m]))
            self._moved_m[index] += moved
        self._turned_rad += increment.yaw_rad
        distance_m = math.hypot(increment.x_m, increment.y_m)
        self._since_update_m += distance_m
        if self._leading_m is not None:
            self._leading_m += distance_m

    def area(self) -> tuple[float, float, float]:
        """Centre (x_m, y_m) and half width in metres of a square that holds all hypotheses."""
        centre_m = np.array(self._grid.xy_from_row_col(
            (self._grid.rows - 1) / 2, (self._grid.cols - 1) / 2))
        low_m, high_m = self._moved_m.min(axis=0), self._moved_m.max(axis=0)
        half_m = (high_m - low_m).max() / 2 + self._grid.rows * self._grid.cell_m / 2
        return (*(centre_m + (low_m + high_m) / 2).tolist(), float(half_m))

    # log p <- log p + share * log((1 - o) h + o / n)       h: heat map, n: its known cells
    def update(self, heatmaps: Sequence[Heatmap | None]) -> None:
        """Weigh the hypotheses of each heading (K,) by a heat map; None leaves them as they are.

        Cells outside a heat map count as outliers.  Raises ValueError for a wrong number of maps.
        """
        if len(heatmaps) != len(self._moved_m):
            raise ValueError(f'{len(heatmaps)} heat maps; expected {len(self._moved_m)}')
        blur = DRIFT_SHARE * min(self._since_update_m, 1e3) / CELL_M
        share = min(1.0, self._since_update_m / CORRELATION_M)
        if share == 0.0:
            return
        for index, heatmap in enumerate(heatmaps):
            if math.isfinite(self._since_update_m):
                self._log_p[index] = _blurred(self._log_p[index], blur)
            if heatmap is not None:
                self._log_p[index] += share * self._log_likelihood(index, heatmap)
        self._log_p = log_softmax(self._log_p)
        self._since_update_m = 0.0
        if self._best_mode()[0].sum() < WIN_PROBABILITY:
            self._leading_m = None
        elif self._leading_m is None:
            self._leading_m = 0.0

    def winner(self, stamp_ns: int) -> PoseEstimate | None:
        """Mean and covariance of the mode that has won; None until one has."""
        if self._leading_m is None or self._leading_m < WIN_DISTANCE_M:
            return None
        weights, xs_m, ys_m, yaws_rad = self._best_mode()
        weights = weights / weights.sum()
        values = np.stack((xs_m, ys_m, yaws_rad))                          # (3, n)
        mean = values @ weights
        deviations = values - mean[:, None]
        covariance = (weights * deviations) @ deviations.T
        # The width of a cell and of a step of heading, and the delay of the blurred grids.
        cell_m2 = CELL_M**2 / 12 + (MODE_RADIUS_M / 4) ** 2
        covariance += np.diag([cell_m2, cell_m2, self._heading_step_rad**2 / 12])
        return PoseEstimate(
            stamp_ns, Pose2D(float(mean[0]), float(mean[1]), wrap_angle(float(mean[2]))),
            covariance)

    def _best_mode(self) -> tuple[np.ndarray, ...]:
        """Probability, x, y and yaw (n,) of the hypotheses of the best mode."""
        heading, row, col = np.unravel_index(np.argmax(self._log_p), self._log_p.shape)
        best_m = np.array(self._grid.xy_from_row_col(row, col)) + self._moved_m[heading]
        xs_m, ys_m = self._grid.cell_centres()
        parts = []
        for step in range(-MODE_HEADINGS, MODE_HEADINGS + 1):
            index = (heading + step) % len(self._moved_m)
            east_m = np.broadcast_to(xs_m + self._moved_m[index, 0], self._log_p.shape[1:])
            north_m = np.broadcast_to(
                (ys_m + self._moved_m[index, 1])[:, None], self._log_p.shape[1:])
            near = np.hypot(east_m - best_m[0], north_m - best_m[1]) <= MODE_RADIUS_M
            yaw_rad = self.yaws_rad[heading] + step * self._heading_step_rad
            parts.append((np.exp(self._log_p[index][near]), east_m[near], north_m[near],
                          np.full(near.sum(), yaw_rad)))
        return tuple(np.concatenate(part) for part in zip(*parts))

    def _log_likelihood(self, index: int, heatmap: Heatmap) -> np.ndarray:
        """Log-likelihood (R, C) of the positions under one heading; 0 for a flat heat map."""
        known = np.isfinite(heatmap.log_probability)
        density = np.exp(heatmap.log_probability) * known.sum()            # 1 if uniform
        row, col = heatmap.grid.row_col_from_xy(
            self._grid.x0_m + self._moved_m[index, 0], self._grid.y0_m + self._moved_m[index, 1])
        step = self._grid.cell_m / heatmap.grid.cell_m
        affine = np.array([[step, 0.0, float(col)], [0.0, step, float(row)]])
        sampled = cv2.warpAffine(
            density.astype(np.float32), affine, self._log_p.shape[:0:-1],
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_CONSTANT,
            borderValue=0.0)
        return np.log((1.0 - OUTLIER_SHARE) * sampled + OUTLIER_SHARE)


class PoseSearch:
    """The hypotheses around a place, and the choice of images that weigh them.

    These images are at least STEP_M and STEP_S apart.
    """

    def __init__(self, x_m: float, y_m: float, radius_m: float):
        self.radius_m = max(min(radius_m, RADIUS_M), CELL_M)
        self.hypotheses = PoseHypotheses(x_m, y_m, self.radius_m)
        self.driven_m = 0.0
        self._odom_from_base: Pose2D | None = None
        self._stamp_ns = 0

    def advance(self, stamp_ns: int, odom_from_base: Pose2D) -> bool:
        """Move the hypotheses to the odometry of an image; False if it is too near the last."""
        if self._odom_from_base is not None:
            increment = self._odom_from_base.inverse() @ odom_from_base
            step_m = math.hypot(increment.x_m, increment.y_m)
            if step_m < STEP_M or stamp_ns - self._stamp_ns < STEP_S * 1e9:
                return False
            self.hypotheses.move(increment)
            self.driven_m += step_m
        self._odom_from_base, self._stamp_ns = odom_from_base, stamp_ns
        return True


def _blurred(log_p: np.ndarray, sigma_cells: float) -> np.ndarray:
    highest = log_p.max()
    if sigma_cells == 0.0 or highest == -np.inf:
        return log_p
    # exp would be 0 in float32 far below the highest; such hypotheses keep a tiny probability.
    p = cv2.GaussianBlur(
        np.exp(np.maximum(log_p - highest, -80.0)).astype(np.float32), (0, 0), sigma_cells)
    return highest + np.log(np.maximum(p, 1e-35)).astype(float)
