"""Starts without a heading, and searches after a wrong lock, on simulated heat maps."""

import math
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import Path2D, START_NS
from benchmarks.fusion.filter_runs import moving_stretch, oxford_routes
from crossview_localizer.datatypes import Heatmap
from crossview_localizer.geometry import MapGrid, wrap_angle
from crossview_localizer.matching.pose_search import PoseHypotheses

START_RADIUS_M = 100.0
SEARCH_S = 120.0


class SimulatedHeatmaps:
    """Heat maps of a simulated matcher in a simulated world, for the search for the pose.

    The world is a smooth random field of descriptors; part of it repeats every ``period_m`` along
    both axes, as parallel streets look alike. A view is the descriptor of the true place with
    noise that is correlated over a few frames; it fades as the assumed heading departs from the
    true one. The heat map is exp(cosine / temperature) over the cells.
    """

    def __init__(self, rng, size_m=1600.0, cell_m=2.0, channels=12, length_m=5.0, period_m=40.0,
                 repeated=0.7, noise=1.2, temperature=0.12, heading_width_rad=0.35):
        self.grid = MapGrid.around(0.0, 0.0, size_m / 2, cell_m)
        self.noise, self.temperature = noise, temperature
        self.heading_width_rad = heading_width_rad
        self._rng = rng
        cells = self.grid.rows
        period = round(period_m / cell_m)
        unique = _smooth(rng.standard_normal((cells, cells, channels)), length_m / cell_m)
        patch = _smooth(rng.standard_normal((period, period, channels)), length_m / cell_m)
        times = -(-cells // period)
        alike = np.tile(patch, (times, times, 1))[:cells, :cells]
        field = math.sqrt(1 - repeated) * unique + math.sqrt(repeated) * alike
        self.descriptors = field / np.linalg.norm(field, axis=-1, keepdims=True)
        self._frame_noise = rng.standard_normal(channels)
        self._elsewhere = rng.standard_normal(channels)

    def frame(self, pose, yaws_rad, centre_m, half_m: float) -> list:
        """A heat map per assumed heading (K,) over a square window, with new noise."""
        channels = self.descriptors.shape[-1]
        self._frame_noise = 0.7 * self._frame_noise + math.sqrt(
            1 - 0.7**2) * self._rng.standard_normal(channels)
        row, col = (int(round(float(value))) for value in self.grid.row_col_from_xy(*pose[:2]))
        here = self.descriptors[row, col]
        top, left = (int(round(float(value))) for value in self.grid.row_col_from_xy(
            centre_m[0] - half_m, centre_m[1] + half_m))
        top, left = max(top, 0), max(left, 0)
        count = int(2 * half_m / self.grid.cell_m) + 1
        window = self.descriptors[top:top + count, left:left + count]
        grid = self.grid.crop(top, left, *window.shape[:2])
        seen = np.exp(-0.5 * (wrap_angle(np.asarray(yaws_rad) - pose[2])
                              / self.heading_width_rad) ** 2)                     # (K,)
        views = (seen[:, None] * here + (1 - seen[:, None]) * _unit(self._elsewhere)
                 + self.noise * self._frame_noise / math.sqrt(channels))
        views /= np.linalg.norm(views, axis=1, keepdims=True)
        scores = np.moveaxis(window @ views.T, -1, 0) / self.temperature          # (K, R, C)
        scores -= scores.max(axis=(1, 2), keepdims=True)
        log_p = scores - np.log(np.exp(scores).sum(axis=(1, 2), keepdims=True))
        return [Heatmap(1, grid, part) for part in log_p]


def _unit(vector):
    return vector / np.linalg.norm(vector)


def _smooth(field, sigma_cells: float):
    """Smooth it, as if it were periodic, and give each channel unit variance."""
    for axis in (0, 1):
        field = gaussian_filter1d(field, sigma_cells, axis=axis, mode='wrap')
    return field / field.std(axis=(0, 1))


def run_starts(data: Path, seed: int, smoke: bool, trials: int = 50) -> tuple[dict, dict]:
    """Searches from up to 100 m off without a heading, and from a wrong lock one street away.

    Heat maps (one per second) and odometry are simulated along real routes. A trial succeeds if
    the first winner within two minutes is within 10 m and 10 degrees of the truth.
    """
    rng = np.random.default_rng([seed, 7])
    routes = oxford_routes(data, 2)
    world = SimulatedHeatmaps(rng)
    started, recovered, peak_hits = [], [], []
    for _ in tqdm(range(3 if smoke else trials), desc='starts', disable=None):
        truth = moving_stretch(routes, rng, SEARCH_S + 1.0)
        middle_m = truth.poses[:, :2].mean(axis=0)
        truth = Path2D(truth.time_s, truth.poses - np.array([*middle_m, 0.0]))
        off_m = START_RADIUS_M * math.sqrt(rng.uniform()) * _direction(rng)
        begin_m = truth.poses[0, :2] + off_m
        odometry = drive_data.simulated_odometry(truth, rng, hz=1.0)
        started.append(search(world, truth, odometry, begin_m, peak_hits))
        # The wrong lock is one period away, where the world looks alike.
        wrong_m = truth.poses[0, :2] + np.array([40.0, 0.0])
        recovered.append(search(world, truth, odometry, wrong_m, []))
    return (search_figures(started) | {'single_frame_hits': float(np.mean(peak_hits))},
            search_figures(recovered))


def search(world, truth: Path2D, odometry, centre_m, peak_hits: list):
    """One trial: the seconds until there is a winner, or None, and whether it is right."""
    hypotheses = PoseHypotheses(*centre_m, START_RADIUS_M)
    for before, after in zip(odometry, odometry[1:]):
        hypotheses.move(before.odom_from_base.inverse() @ after.odom_from_base)
        time_s = (after.stamp_ns - START_NS) * 1e-9
        pose = truth.at(time_s)
        x_m, y_m, half_m = hypotheses.area()
        heatmaps = world.frame(pose, hypotheses.yaws_rad, (x_m, y_m), half_m)
        nearest = int(np.argmin(np.abs(wrap_angle(hypotheses.yaws_rad - pose[2]))))
        best = np.unravel_index(
            np.argmax(heatmaps[nearest].log_probability), heatmaps[nearest].log_probability.shape)
        peak_m = np.array(heatmaps[nearest].grid.xy_from_row_col(*best))
        peak_hits.append(np.linalg.norm(peak_m - pose[:2]) < 5.0)
        hypotheses.update(heatmaps)
        winner = hypotheses.winner(after.stamp_ns)
        if winner is not None:
            error = winner.pose.as_array() - pose
            right = (np.linalg.norm(error[:2]) < 10.0
                     and abs(wrap_angle(error[2])) < math.radians(10.0))
            return time_s, bool(right)
    return None, False


def _direction(rng) -> np.ndarray:
    angle_rad = rng.uniform(-math.pi, math.pi)
    return np.array([math.cos(angle_rad), math.sin(angle_rad)])


def search_figures(trials: list[tuple[float | None, bool]]) -> dict:
    """The shares of trials that ended right and wrong, and the seconds that the right ones took.

    A trial has the seconds until its end, None if it had none, and whether it was right.
    """
    seconds = [time_s for time_s, right in trials if right]
    return {
        'success': len(seconds) / len(trials),
        'wrong': sum(time_s is not None and not right for time_s, right in trials) / len(trials),
        'seconds_median': float(np.median(seconds)) if seconds else None,
        'seconds_p95': float(np.percentile(seconds, 95)) if seconds else None,
        'n': len(trials),
    }
