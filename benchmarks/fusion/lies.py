"""Odometry and GNSS that lie for two minutes: does the covariance still hold the truth?

Routes are real; odometry, GNSS (4 m of wander) and matches are simulated.  A match is made only
where the truth lies inside the window that the pose of the filter asks for, as a matcher's is.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import Path2D, stamp_ns
from benchmarks.fusion.estimates import EstimateLines, Estimates, pooled
from benchmarks.fusion.filter_runs import (
    estimates_along,
    in_order,
    moving_stretch,
    oxford_routes,
    SENSORS,
)
from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import GnssFix, OdometrySample, PoseEstimate
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import Pose2D, wrap_angle

HONEST_S = 120.0   # before the lie
LIE_S = 120.0
MATCH_SIGMA_M, MATCH_YAW_SIGMA_RAD = 0.3, math.radians(0.7)
# Share of the route's speed that a vehicle in a jam drives, in turns of so many seconds.
JAM = ((10.0, 1.0), (8.0, 0.08), (6.0, 0.0))


@dataclass(frozen=True)
class AskedMatch:
    """A match that is made when the drive comes to it; ``error`` (3,) in x, y, yaw."""

    stamp_ns: int
    pose: np.ndarray
    error: np.ndarray


# --- what lies

Change = Callable[[float, Pose2D], Pose2D]


def _scaled(factor: float) -> Change:
    return lambda _, step: Pose2D(factor * step.x_m, factor * step.y_m, step.yaw_rad)


def _slipping(time_s: float, step: Pose2D) -> Pose2D:
    """Wheels that spin for 5 s in every 20 s and turn half as fast again."""
    return _scaled(1.5)(time_s, step) if time_s % 20.0 < 5.0 else step


ODOMETRY_LIES: dict[str, Change] = {
    'odometry_turns_the_wrong_way': lambda _, step: Pose2D(step.x_m, -step.y_m, -step.yaw_rad),
    'odometry_three_times_too_fast': _scaled(3.0),
    'odometry_in_feet': _scaled(1.0 / 0.3048),
    'odometry_feet_for_metres': _scaled(0.3048),
    'odometry_ten_percent_too_fast': _scaled(1.1),
    'odometry_slips': _slipping,
    'odometry_stands_still': lambda _, step: Pose2D(0.0, 0.0, 0.0),
    'gyro_drifts': lambda _, step: Pose2D(step.x_m, step.y_m, step.yaw_rad + 0.001),
}


def lying_odometry(odometry: list[OdometrySample], change: Change) -> list[OdometrySample]:
    """The odometry with each increment after ``HONEST_S`` changed."""
    changed = [odometry[0]]
    for before, after in zip(odometry, odometry[1:]):
        step = before.odom_from_base.inverse() @ after.odom_from_base
        since_s = (after.stamp_ns - stamp_ns(HONEST_S)) * 1e-9
        step = change(since_s, step) if since_s > 0.0 else step
        changed.append(OdometrySample(after.stamp_ns, changed[-1].odom_from_base @ step))
    return changed


def _shifted(offset_m: Callable[[float, np.random.Generator], np.ndarray]):
    """A lie that shifts each fix by ``offset_m(seconds since the lie began, rng)``."""
    def lie(fixes, rng, towards):
        return [fix if since_s < 0.0 else _moved(fix, offset_m(since_s, rng), towards)
                for fix in fixes for since_s in [(fix.stamp_ns - stamp_ns(HONEST_S)) * 1e-9]]
    return lie


def _moved(fix: GnssFix, offset_m: float, towards: np.ndarray) -> GnssFix:
    return replace(fix, x_m=fix.x_m + offset_m * towards[0], y_m=fix.y_m + offset_m * towards[1])


def _repeated(fixes, rng, towards):
    """The last fix again and again for a minute, as in a tunnel."""
    last, found = None, []
    for fix in fixes:
        inside = HONEST_S <= (fix.stamp_ns - drive_data.START_NS) * 1e-9 < HONEST_S + 60.0
        last = (last or fix) if inside else None
        found.append(replace(last, stamp_ns=fix.stamp_ns) if inside else fix)
    return found


def _multipath(fixes, rng, towards):
    """A minute between high houses: errors of 15 m on each axis that change within 5 s."""
    decay, error_m, found = math.exp(-1.0 / 5.0), 15.0 * rng.standard_normal(2), []
    for fix in fixes:
        if HONEST_S <= (fix.stamp_ns - drive_data.START_NS) * 1e-9 < HONEST_S + 60.0:
            fix = replace(fix, x_m=fix.x_m + error_m[0], y_m=fix.y_m + error_m[1])
            error_m = decay * error_m + 15.0 * math.sqrt(1 - decay**2) * rng.standard_normal(2)
        found.append(fix)
    return found


def _late(seconds: float):
    """Stamps that are wrong by a constant."""
    def lie(fixes, rng, towards):
        return [replace(fix, stamp_ns=fix.stamp_ns + round(seconds * 1e9)) for fix in fixes]
    return lie


GNSS_LIES = {
    'gnss_dragged_off': _shifted(lambda since_s, rng: 0.5 * min(since_s, 60.0)),
    'gnss_jumps_8_m': _shifted(lambda since_s, rng: 8.0 if since_s < 30.0 else 0.0),
    'gnss_jumps_50_m': _shifted(lambda since_s, rng: 50.0 if since_s < 60.0 else 0.0),
    'gnss_repeats_its_fix': _repeated,
    'gnss_multipath': _multipath,
    'gnss_stamps_half_a_second_late': _late(0.5),
    'gnss_stamps_half_a_second_early': _late(-0.5),
}


def in_a_jam(route: Path2D, duration_s: float) -> Path2D:
    """The route driven in stop-and-go traffic after ``HONEST_S``."""
    time_s = np.arange(0.0, duration_s, 0.02)
    phase_s = (time_s - HONEST_S) % sum(seconds for seconds, _ in JAM)
    ends_s = np.cumsum([seconds for seconds, _ in JAM])
    shares = np.array([share for _, share in JAM])[np.searchsorted(ends_s, phase_s, 'right')]
    return route.slowed(np.where(time_s < HONEST_S, 1.0, shares))


def held(fixes: list[GnssFix], truth: Path2D, rng) -> list[GnssFix]:
    """A receiver that holds its position below 1 m/s."""
    found: list[GnssFix] = []
    for fix in fixes:
        time_s = (fix.stamp_ns - drive_data.START_NS) * 1e-9
        slow = np.linalg.norm(np.diff(truth.at([time_s - 0.5, time_s + 0.5])[:, :2], axis=0)) < 1.0
        found.append(replace(found[-1], stamp_ns=fix.stamp_ns) if slow and found else fix)
    return found


# --- runs


def run_lies(data: Path, seeds, lines: EstimateLines, names=None) -> dict:
    """Each lie with and without matches: coverage, NEES (3), median and p95 of the error."""
    routes = oxford_routes(data, 4)
    lies = ['honest', *ODOMETRY_LIES, *GNSS_LIES, 'gnss_holds_in_a_jam']
    found: dict[str, list[Estimates]] = {}
    for seed in tqdm(seeds, desc='lies', disable=None):
        for lie in lies:
            for setting in ('without_matches', 'with_matches'):
                name = f'{lie}_{setting}'
                if names is not None and name not in names and lie not in names:
                    continue
                estimates = run_lie(routes, lie, setting == 'with_matches', seed)
                lines.add('lies', f'{name}/{seed}', setting, estimates)
                found.setdefault(name, []).append(estimates)
    return {name: _row(pooled(parts)) for name, parts in found.items()}


def run_lie(routes: list[Path2D], lie: str, matched: bool, seed: int) -> Estimates:
    """The poses at each second of a lie, after ``HONEST_S`` without one."""
    rng = np.random.default_rng([seed, 17])
    duration_s = HONEST_S + LIE_S
    truth = moving_stretch(routes, rng, duration_s + 1.0)
    if lie == 'gnss_holds_in_a_jam':
        truth = in_a_jam(truth, duration_s)
    odometry = drive_data.simulated_odometry(truth, rng, hz=5.0)
    fixes = drive_data.simulated_gnss(truth, rng, hz=1.0)
    bearing_rad = rng.uniform(-math.pi, math.pi)
    towards = np.array([math.cos(bearing_rad), math.sin(bearing_rad)])
    match_s = np.arange(1.0, duration_s, 1.0) + 0.03
    errors = rng.standard_normal((len(match_s), 3)) * (
        MATCH_SIGMA_M, MATCH_SIGMA_M, MATCH_YAW_SIGMA_RAD)
    matches = [AskedMatch(stamp_ns(time_s), pose, error)
               for time_s, pose, error in zip(match_s, truth.at(match_s), errors)]
    if lie in ODOMETRY_LIES:
        odometry = lying_odometry(odometry, ODOMETRY_LIES[lie])
    elif lie in GNSS_LIES:
        fixes = GNSS_LIES[lie](fixes, rng, towards)
    elif lie == 'gnss_holds_in_a_jam':
        fixes = held(fixes, truth, rng)
    return _run(in_order(odometry, fixes, matches if matched else []), truth)


def _run(measurements: list, truth: Path2D) -> Estimates:
    pose_filter, found = PoseFilter(SENSORS), []
    asked_ns = [stamp_ns(time_s) for time_s in np.arange(HONEST_S + 1.0, HONEST_S + LIE_S, 1.0)]
    for measurement in measurements:
        while asked_ns and asked_ns[0] < measurement.stamp_ns:
            found.append(pose_filter.estimate_at(asked_ns.pop(0)))
        if isinstance(measurement, AskedMatch):
            match = _match(pose_filter.prior_at(measurement.stamp_ns), measurement)
            if match is not None:
                pose_filter.add_match(match)
        else:
            pose_filter.add(measurement)
    return estimates_along(truth, [estimate for estimate in found if estimate is not None])


def _match(prior: PoseEstimate | None, asked: AskedMatch) -> PoseEstimate | None:
    """The match where the truth lies in the search window about the prior, else None."""
    if prior is None:
        return None
    sigma_m = math.sqrt(np.linalg.eigvalsh(prior.covariance[:2, :2])[1])
    half_width_m = max(MatchConfig().window_min_m, 3.0 * sigma_m)
    off_m = np.abs(asked.pose[:2] - prior.pose.as_array()[:2]).max()
    off_rad = abs(wrap_angle(asked.pose[2] - prior.pose.yaw_rad))
    if half_width_m > MatchConfig().window_max_m or off_m > half_width_m or (
            off_rad > max(0.2, 3.0 * math.sqrt(prior.covariance[2, 2]))):
        return None
    pose = asked.pose + asked.error
    return PoseEstimate(
        asked.stamp_ns, Pose2D(*pose[:2], float(wrap_angle(pose[2]))),
        np.diag([MATCH_SIGMA_M**2, MATCH_SIGMA_M**2, MATCH_YAW_SIGMA_RAD**2]))


def _row(estimates: Estimates) -> dict:
    metrics = estimates.metrics()
    return {'nees': metrics.pop('nees_mean')} | metrics
