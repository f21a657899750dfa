"""Runs of the filter on measurements along a known path."""

from copy import deepcopy
import math
from pathlib import Path

import numpy as np

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import Path2D, stamp_ns, START_NS
from benchmarks.fusion.estimates import Estimates
from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import MatchErrors, OdometrySample, PoseEstimate
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import Pose2D

# What the data sheets of the simulated sensors would say; everything else is the default.
SENSORS = FilterConfig(
    odometry_scale_sigma=0.01, odometry_yaw_noise_rad=math.radians(0.03),
    odometry_turn_noise_rad=0.002, odometry_turn_bias_sigma_radps=0.0002,
    gnss_bias_sigma_m=4.0 / math.sqrt(2.0), gnss_bias_tau_s=120.0)


def in_order(*kinds) -> list:
    """All measurements by stamp, at equal stamps odometry first."""
    everything = [measurement for kind in kinds for measurement in kind]
    return sorted(everything, key=lambda m: (m.stamp_ns, not isinstance(m, OdometrySample)))


def run_filter(measurements: list, config: FilterConfig, times_s, truth: Path2D, copies_s=(),
               errors: MatchErrors | None = None):
    """Feed the measurements to a new filter, and ask it at each time for its estimate.

    ``errors`` are those of the matches.  Returns Estimates, the pairs (measurement,
    FilterUpdate), and copies of the filter at the times ``copies_s``. Raises ValueError if the
    filter never started, or not before a copy.
    """
    pose_filter = PoseFilter(config, errors)
    asked = sorted([*((stamp_ns(time_s), False) for time_s in times_s),
                    *((stamp_ns(time_s), True) for time_s in copies_s)])
    updates, found, copies = [], [], []

    def ask_until(limit_ns):
        while asked and asked[0][0] < limit_ns:
            asked_ns, copy = asked.pop(0)
            estimate = pose_filter.estimate_at(asked_ns)
            if copy and estimate is None:
                raise ValueError(
                    f'not started {(asked_ns - START_NS) * 1e-9:.0f} s into the log')
            if copy:
                copies.append(deepcopy(pose_filter))
            elif estimate is not None:
                found.append(estimate)

    for measurement in measurements:
        ask_until(measurement.stamp_ns)
        updates.append((measurement, pose_filter.add(measurement)))
    ask_until(math.inf)
    if not found:
        raise ValueError('the filter did not start: it has no estimate at any of the times')
    return estimates_along(truth, found), updates, copies


def estimates_along(truth: Path2D, found: list[PoseEstimate]) -> Estimates:
    """The estimates beside the true path."""
    stamps_ns = np.array([estimate.stamp_ns for estimate in found])
    return Estimates.beside(truth.at((stamps_ns - START_NS) * 1e-9), found)


def moving_stretch(routes: list[Path2D], rng, duration_s: float) -> Path2D:
    """A stretch of a route without recording errors, with at least 3 m/s on average."""
    for _ in range(1000):
        route = routes[rng.integers(len(routes))]
        if route.duration_s <= duration_s + 1.0:
            continue
        begin_s = rng.uniform(0.0, route.duration_s - duration_s - 1.0)
        stretch = route.part(begin_s, begin_s + duration_s)
        speeds_mps = np.diff(stretch.driven_m) / np.diff(stretch.time_s)
        if speeds_mps.max() < 20.0 and stretch.driven_m[-1] > 3.0 * duration_s:
            return stretch
    raise ValueError(f'no route holds {duration_s:.0f} s of steady driving')


def continue_filter(pose_filter: PoseFilter, measurements: list, times_s, truth: Path2D):
    """Feed a running filter; returns Estimates at the times, and the updates."""
    updates, found = [], []
    wanted = [stamp_ns(time_s) for time_s in times_s]
    for measurement in measurements:
        while wanted and wanted[0] < measurement.stamp_ns:
            found.append(pose_filter.estimate_at(wanted.pop(0)))
        updates.append((measurement, pose_filter.add(measurement)))
    found += [pose_filter.estimate_at(asked_ns) for asked_ns in wanted]
    return Estimates.beside(truth.at(times_s), found), updates


def position_matches(times_s, positions_m, covariances_m2) -> list[PoseEstimate]:
    """Matches without a heading; ``covariances_m2`` (n, 2, 2), or (2, 2) for all."""
    found = []
    for time_s, position_m, covariance_m2 in zip(
            times_s, positions_m, np.broadcast_to(covariances_m2, (len(positions_m), 2, 2))):
        covariance = np.diag([0.0, 0.0, np.inf])
        covariance[:2, :2] = covariance_m2
        found.append(PoseEstimate(stamp_ns(time_s), Pose2D(*position_m, 0.0), covariance))
    return found


def oxford_routes(data: Path, count: int) -> list[Path2D]:
    """``count`` traversals, evenly chosen from all that are there."""
    paths = sorted((data / 'oxford').glob('*.csv'))
    if not paths:
        raise FileNotFoundError(f'no route (*.csv) in {data / "oxford"}')
    chosen = np.linspace(0, len(paths) - 1, count).round().astype(int)
    return [drive_data.oxford_route(paths[index]) for index in chosen]
