"""A pose one can trust: real errors and logs, outages, spoofing, starts, calibration.

What is simulated and how is in docs/fusion.md.  Writes ``fusion.json``, its pictures and, a line
an estimate, ``frames.csv.gz``.
"""

import argparse
from copy import deepcopy
import csv
from dataclasses import replace
import gzip
import json
import math
import os
from pathlib import Path
import sys

import numpy as np
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from benchmarks import REPOSITORY
from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import Log, Path2D, stamp_ns, START_NS
from benchmarks.fusion.estimates import Estimates, pooled
from benchmarks.fusion.figures import draw
from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    GnssCourse,
    GnssFix,
    Heatmap,
    OdometrySample,
    PoseEstimate,
)
from crossview_localizer.evaluation.pose_metrics import CHI2_95
from crossview_localizer.fusion.correction import MATCH_TAIL_DOF
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle
from crossview_localizer.matching.pose_search import PoseHypotheses

WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'
WARM_UP_S = 300.0
# What a user would read off the data sheets of the simulated sensors; nothing else is set.
SENSORS = FilterConfig(
    odometry_scale_sigma=0.01, odometry_yaw_noise_rad=math.radians(0.03),
    odometry_turn_noise_rad=0.002, odometry_turn_bias_sigma_radps=0.0002,
    gnss_bias_sigma_m=4.0 / math.sqrt(2.0), gnss_bias_tau_s=120.0)
FRAME_FIELDS = (
    'section', 'case', 'method', 'stamp_ns', 'truth_x_m', 'truth_y_m', 'truth_yaw_rad', 'x_m',
    'y_m', 'yaw_rad', 'xx_m2', 'xy_m2', 'xyaw_mrad', 'yy_m2', 'yyaw_mrad', 'yawyaw_rad2',
    'outcome')


class Frames:
    """Collects the lines of frames.csv.gz."""

    def __init__(self):
        self.lines = []

    def add(self, section: str, case: str, method: str, estimates: Estimates) -> None:
        for stamp, truth, pose, covariance in zip(
                estimates.stamps_ns, estimates.truth, estimates.poses, estimates.covariances):
            upper = covariance[np.triu_indices(3)]
            numbers = [f'{value:.6g}' for value in (*truth, *pose, *upper)]
            self.lines.append((section, case, method, int(stamp), *numbers, 'estimated'))

    def write(self, path: Path) -> None:
        with gzip.open(path, 'wt', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(FRAME_FIELDS)
            writer.writerows(self.lines)


# --- running the filter --------------------------------------------------------------------------


def in_order(*kinds) -> list:
    """All measurements by stamp, odometry first among equals."""
    everything = [measurement for kind in kinds for measurement in kind]
    return sorted(everything, key=lambda m: (m.stamp_ns, not isinstance(m, OdometrySample)))


def run_filter(measurements: list, config: FilterConfig, times_s, truth: Path2D, copies_s=()):
    """Feed the measurements; estimates at the times, each from what was measured up to then.

    Returns Estimates, the (measurement, FilterUpdate) pairs, and copies of the filter as it was
    at ``copies_s``.  Raises ValueError where the filter never started, or not before a copy.
    """
    pose_filter = PoseFilter(config)
    add = adders(pose_filter)
    asked = sorted([*((stamp_ns(time_s), False) for time_s in times_s),
                    *((stamp_ns(time_s), True) for time_s in copies_s)])
    updates, found, copies = [], [], []

    def answer_until(limit_ns):
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
        answer_until(measurement.stamp_ns)
        updates.append((measurement, add[type(measurement)](measurement)))
    answer_until(math.inf)
    if not found:
        raise ValueError('the filter did not start: no estimate at any of the times asked for')
    stamps_ns = np.array([estimate.stamp_ns for estimate in found])
    return Estimates(
        stamps_ns, np.array([estimate.pose.as_array() for estimate in found]),
        np.array([estimate.covariance for estimate in found]),
        truth.at((stamps_ns - START_NS) * 1e-9)), updates, copies


def adders(pose_filter: PoseFilter) -> dict:
    """The filter's method for each kind of measurement."""
    return {OdometrySample: pose_filter.add_odometry, GnssFix: pose_filter.add_gnss,
            PoseEstimate: pose_filter.add_match, GnssCourse: pose_filter.add_course}


def moving_stretch(routes: list[Path2D], rng, duration_s: float) -> Path2D:
    """A stretch of a route without glitches of the recording, at 3 m/s or more on average."""
    for _ in range(1000):
        route = routes[rng.integers(len(routes))]
        if route.duration_s <= duration_s + 1.0:
            continue
        begin_s = rng.uniform(0.0, route.duration_s - duration_s - 1.0)
        stretch = route.part(begin_s, begin_s + duration_s)
        speeds_mps = np.diff(stretch.driven_m) / np.diff(stretch.time_s)
        if speeds_mps.max() < 20.0 and stretch.driven_m[-1] > 3.0 * duration_s:
            return stretch
    raise ValueError(f'no route holds {duration_s:.0f} s of plain driving')


# --- a real matcher's errors ---------------------------------------------------------------------


# Maximum likelihood of a bivariate Student t, every drive with the same weight:
#   s^2 <- sum_i w_i (nu + 2) / (nu + |e_i|^2 / s^2) |e_i|^2 / 2
def tail_sigma_m(drives: list[np.ndarray], tail_dof: float) -> float:
    """Sigma a matcher's errors (n, 2) have on each axis in the core of a Student t."""
    squares_m2 = np.concatenate([(errors**2).sum(axis=1) for errors in drives])
    weights = np.concatenate([np.full(len(e), 1.0 / len(e) / len(drives)) for e in drives])
    variance_m2 = float(weights @ squares_m2) / 2
    for _ in range(500):
        scale = (tail_dof + 2) / (tail_dof + squares_m2 / variance_m2)
        variance_m2 = float(weights @ (scale * squares_m2)) / 2
    return math.sqrt(variance_m2)


def matcher_replay(data: Path, seeds, frames: Frames, smoke: bool) -> dict:
    """A matcher's error vectors in time order along real routes, sensors simulated.

    Its covariance comes from the other drives' errors; nothing is fitted to the drive replayed.
    """
    errors = drive_data.matcher_errors(data / 'ccvpe_kitti')
    routes = oxford_routes(data, 2 if smoke else 4)
    drives = ['0117', drive_data.STRESS] if smoke else list(errors)
    warm_up_s = 90.0 if smoke else WARM_UP_S
    results = {}
    everything = {'fused': [], 'gnss_odometry': []}
    for drive in tqdm(drives, desc='matcher replay', disable=None):
        sigma_m = tail_sigma_m(
            [errors[other] for other in errors if other != drive], MATCH_TAIL_DOF)
        parts = {'fused': [], 'gnss_odometry': []}
        for seed in seeds:
            rng = np.random.default_rng([seed, int(drive)])
            times_s = warm_up_s + np.arange(len(errors[drive])) / drive_data.MATCHER_HZ
            truth = moving_stretch(routes, rng, times_s[-1] + 0.2)
            odometry = drive_data.simulated_odometry(truth, rng)
            fixes = drive_data.simulated_gnss(truth, rng, hz=1.0)
            positions_m = truth.at(times_s)[:, :2] + errors[drive]
            matches = position_matches(times_s, positions_m, sigma_m)
            for name, kinds in (('fused', (odometry, fixes, matches)),
                                ('gnss_odometry', (odometry, fixes))):
                estimates, _, _ = run_filter(in_order(*kinds), SENSORS, times_s, truth)
                frames.add('matcher_replay', f'{drive}/{seed}', name, estimates)
                parts[name].append(estimates)
        fused, without = pooled(parts['fused']), pooled(parts['gnss_odometry'])
        matcher_m = np.linalg.norm(errors[drive], axis=1)
        results[drive] = {
            'fused_median_m': float(np.median(fused.position_m)),
            'matcher_median_m': float(np.median(matcher_m)),
            'gnss_odometry_median_m': float(np.median(without.position_m)),
            'coverage_95': float(np.mean(fused.nees <= CHI2_95[3])),
            'nees_mean': float(np.mean(fused.nees)),
            'fused_p95_m': float(np.percentile(fused.position_m, 95)),
            'matcher_p95_m': float(np.percentile(matcher_m, 95)),
            'fused_median_m_by_seed': [
                float(np.median(part.position_m)) for part in parts['fused']],
            'gnss_odometry_median_m_by_seed': [
                float(np.median(part.position_m)) for part in parts['gnss_odometry']],
            'claimed_sigma_m': sigma_m, 'n': len(fused.stamps_ns),
        }
        if drive in drive_data.REPRESENTATIVE:
            everything['fused'].append(fused)
            everything['gnss_odometry'].append(without)
    representative = [drive for drive in drives if drive in drive_data.REPRESENTATIVE]
    fused = pooled(everything['fused'])
    results['representative'] = {
        'fused_median_m': float(np.median(fused.position_m)),
        'matcher_median_m': float(np.median(np.concatenate(
            [np.linalg.norm(errors[drive], axis=1) for drive in representative]))),
        'gnss_odometry_median_m': float(np.median(
            pooled(everything['gnss_odometry']).position_m)),
        'coverage_95': float(np.mean(fused.nees <= CHI2_95[3])),
        'nees_mean': float(np.mean(fused.nees)), 'n': len(fused.stamps_ns),
    }
    return results


def position_matches(times_s, positions_m, sigma_m: float) -> list[PoseEstimate]:
    covariance = np.diag([sigma_m**2, sigma_m**2, np.inf])
    return [PoseEstimate(stamp_ns(time_s), Pose2D(*position_m, 0.0), covariance)
            for time_s, position_m in zip(times_s, positions_m)]


def oxford_routes(data: Path, count: int) -> list[Path2D]:
    """``count`` traversals spread over all that are there."""
    paths = sorted((data / 'oxford').glob('*.csv'))
    if not paths:
        raise FileNotFoundError(f'no route (*.csv) in {data / "oxford"}')
    chosen = np.linspace(0, len(paths) - 1, count).round().astype(int)
    return [drive_data.oxford_route(paths[index]) for index in chosen]


# --- real logs -----------------------------------------------------------------------------------


# Outages in seconds; the first begins once the filter has had the time to settle.
OUTAGES = {'comma2k19': (20.0, (5.0, 10.0, 20.0)), 'google_nmea': (200.0, (10.0, 30.0, 60.0))}


def real_logs(data: Path, seed: int, frames: Frames, smoke: bool) -> tuple[dict, dict]:
    """Error, NEES and coverage a log and sensor set; end errors of outages cut into the logs."""
    comma = drive_data.comma2k19(data / 'comma2k19')
    straight = drive_data.comma2k19(data / 'comma2k19', with_gyro=False)
    google = drive_data.google_nmea(data / 'google_nmea', np.random.default_rng(seed))
    sets = {
        ('comma2k19', 'gnss_speed_gyro'): replace(comma, courses=[]),
        ('comma2k19', 'gnss_speed_gyro_course'): comma,
        ('comma2k19', 'gnss_speed'): replace(straight, courses=[]),
        ('google_nmea', 'gnss_simulated_odometry'): replace(google, courses=[]),
        ('google_nmea', 'gnss_simulated_odometry_course'): google,
    }
    results, outages = {}, {}
    for (name, sensors), log in tqdm(sets.items(), desc='real logs', disable=None):
        if smoke and name == 'google_nmea':
            log = shortened(log, 400.0)
        first_s, lengths_s = OUTAGES[name]
        times_s = np.arange(10.0, log.truth.duration_s - 0.5, 0.5)
        measurements = in_order(log.odometry, log.fixes, log.courses)
        last_s = log.truth.duration_s - lengths_s[-1] - 1.0
        begins_s = np.linspace(first_s, last_s, min(30, 1 + int((last_s - first_s) / 2.0)))
        estimates, _, filters = run_filter(
            measurements, FilterConfig(), times_s, log.truth, begins_s)
        frames.add('logs', name, sensors, estimates)
        results.setdefault(name, {})[sensors] = estimates.metrics()
        outages.setdefault(name, {})[sensors] = {
            f'{length_s:.0f}': log_outages(log, begins_s, filters, length_s)
            for length_s in lengths_s}
    return results, outages


def shortened(log: Log, end_s: float) -> Log:
    def until(measurements):
        return [m for m in measurements if m.stamp_ns <= stamp_ns(end_s)]

    return Log(log.truth.part(0.0, end_s), until(log.odometry), until(log.fixes),
               until(log.courses), until(log.matches))


def log_outages(log: Log, begins_s, filters: list[PoseFilter], length_s: float) -> dict:
    """End errors of outages, each on a copy of the filter as it was when it began."""
    fused_m, held_m = [], []
    ends_s = begins_s + length_s
    for pose_filter, begin_s, end_s, true_pose in zip(
            filters, begins_s, ends_s, log.truth.at(ends_s)):
        pose_filter = deepcopy(pose_filter)
        for sample in log.odometry:
            if stamp_ns(begin_s) < sample.stamp_ns <= stamp_ns(end_s):
                pose_filter.add_odometry(sample)
        estimate = pose_filter.estimate_at(stamp_ns(end_s))
        fused_m.append(np.linalg.norm((estimate.pose.as_array() - true_pose)[:2]))
        kept = [fix for fix in log.fixes if fix.stamp_ns <= stamp_ns(begin_s)]
        held_m.append(np.linalg.norm(constant_velocity(kept, end_s) - true_pose[:2]))
    return {
        'fused_end_median_m': float(np.median(fused_m)),
        'fused_end_p95_m': float(np.percentile(fused_m, 95)),
        'constant_velocity_end_median_m': float(np.median(held_m)),
        'constant_velocity_end_p95_m': float(np.percentile(held_m, 95)),
        'n': len(fused_m),
    }


def constant_velocity(fixes: list[GnssFix], end_s: float, window_s: float = 3.0) -> np.ndarray:
    """Where the slope of the fixes of the last ``window_s``, at least three, leads: (2,)."""
    since_s = np.array([(fix.stamp_ns - fixes[-1].stamp_ns) * 1e-9 for fix in fixes])
    recent = since_s >= -window_s
    recent[-3:] = True
    positions_m = np.array([(fix.x_m, fix.y_m) for fix in fixes])
    velocity_mps, last_m = np.polyfit(since_s[recent], positions_m[recent], 1)
    return last_m + velocity_mps * (end_s - (fixes[-1].stamp_ns - START_NS) * 1e-9)


# --- spoofing ------------------------------------------------------------------------------------

SPOOF_S = 60.0
JUMP_M = 50.0
DRAG_MPS = 0.5
MATCH_SIGMA_M, MATCH_HZ = 1.5, 1.0


def spoofing(data: Path, seeds, frames: Frames, smoke: bool) -> dict:
    """GNSS that jumps or is dragged off for a minute, against the same minute without GNSS.

    Routes are real; GNSS, odometry and, in half of the runs, matches (white, 1.5 m) are simulated.
    """
    routes = oxford_routes(data, 2 if smoke else 4)
    begin_s = 100.0 if smoke else 180.0
    times_s = np.arange(begin_s, begin_s + SPOOF_S, 1.0)
    runs, alarms, warm_up_h = {}, 0, 0.0
    for seed in tqdm(seeds, desc='spoofing', disable=None):
        rng = np.random.default_rng([seed, 5])
        truth = moving_stretch(routes, rng, begin_s + SPOOF_S + 1.0)
        odometry = drive_data.simulated_odometry(truth, rng)
        fixes = drive_data.simulated_gnss(truth, rng, hz=1.0)
        match_s = np.arange(1.0, truth.duration_s, 1.0 / MATCH_HZ)
        matches = position_matches(
            match_s, truth.at(match_s)[:, :2]
            + MATCH_SIGMA_M * rng.standard_normal((len(match_s), 2)), MATCH_SIGMA_M)
        bearing_rad = rng.uniform(-math.pi, math.pi)
        towards = np.array([math.cos(bearing_rad), math.sin(bearing_rad)])
        for company, given in (('without_matches', []), ('with_matches', matches)):
            before = [
                m for m in in_order(odometry, fixes, given) if m.stamp_ns < stamp_ns(begin_s)]
            _, updates, (warm,) = run_filter(
                before, SENSORS, [begin_s - 1.0], truth, [begin_s])
            alarms += sum(_alarmed(update) for _, update in updates)
            warm_up_h += begin_s / 3600.0
            for attack in ('none', 'outage', 'jump', 'drag_off'):
                spoofed = attacked(fixes, attack, begin_s, towards)
                measurements = [
                    m for m in in_order(odometry, spoofed, given)
                    if m.stamp_ns >= stamp_ns(begin_s)]
                estimates, updates = go_on(deepcopy(warm), measurements, times_s, truth)
                frames.add('spoof', f'{company}/{seed}', attack, estimates)
                fixes_after = [
                    (fix, update) for fix, update in updates
                    if isinstance(fix, GnssFix) and fix.stamp_ns < stamp_ns(begin_s + SPOOF_S)]
                detected_s = next((
                    (fix.stamp_ns - stamp_ns(begin_s)) * 1e-9
                    for fix, update in fixes_after if 'GNSS' in update.reason), None)
                runs.setdefault((company, attack), []).append((estimates, detected_s, fixes_after))
    results = {
        company: {attack: _attack_result(runs[company, attack], runs[company, 'outage'])
                  for attack in ('none', 'jump', 'drag_off')}
        for company in ('without_matches', 'with_matches')}
    return results | {'alarms_without_attack': alarms, 'hours_without_attack': warm_up_h}


def _alarmed(update) -> bool:
    """Whether this very fix raised the alarm."""
    return update.reason.startswith(('GNSS jumped by', 'GNSS drifts')) and (
        'refused' not in update.reason)


def attacked(fixes: list[GnssFix], attack: str, begin_s: float, towards) -> list[GnssFix]:
    """The fixes under an attack from ``begin_s`` on, along the unit vector ``towards`` (2,)."""
    begin_ns = stamp_ns(begin_s)
    if attack == 'outage':
        return [fix for fix in fixes if fix.stamp_ns < begin_ns]
    spoofed = []
    for fix in fixes:
        since_s = (fix.stamp_ns - begin_ns) * 1e-9
        off_m = 0.0
        if since_s >= 0.0:
            off_m = {'none': 0.0, 'jump': JUMP_M, 'drag_off': DRAG_MPS * since_s}[attack]
        spoofed.append(replace(
            fix, x_m=fix.x_m + off_m * towards[0], y_m=fix.y_m + off_m * towards[1]))
    return spoofed


def go_on(pose_filter: PoseFilter, measurements: list, times_s, truth: Path2D):
    """Feed a running filter; Estimates at the times, and the updates."""
    add, updates, found = adders(pose_filter), [], []
    wanted = [stamp_ns(time_s) for time_s in times_s]
    for measurement in measurements:
        while wanted and wanted[0] < measurement.stamp_ns:
            found.append(pose_filter.estimate_at(wanted.pop(0)))
        updates.append((measurement, add[type(measurement)](measurement)))
    found += [pose_filter.estimate_at(asked_ns) for asked_ns in wanted]
    return Estimates(
        np.array([stamp_ns(time_s) for time_s in times_s]),
        np.array([estimate.pose.as_array() for estimate in found]),
        np.array([estimate.covariance for estimate in found]), truth.at(times_s)), updates


def _attack_result(runs, outages) -> dict:
    detected_s = [seconds for _, seconds, _ in runs if seconds is not None]
    after = [
        update.outcome.name == 'USED' for _, seconds, fixes in runs if seconds is not None
        for fix, update in fixes if (fix.stamp_ns - fixes[0][0].stamp_ns) * 1e-9 >= seconds]
    errors_m, outage_m = (
        np.array([estimates.position_m for estimates, *_ in part]) for part in (runs, outages))
    return {
        'detected': len(detected_s) / len(runs),
        'seconds_to_detect_median': float(np.median(detected_s)) if detected_s else None,
        'used_after_detection': float(np.mean(after)) if after else None,
        'median_m': float(np.median(errors_m)), 'p95_m': float(np.percentile(errors_m, 95)),
        'end_median_m': float(np.median(errors_m[:, -1])),
        'outage_median_m': float(np.median(outage_m)),
        'outage_p95_m': float(np.percentile(outage_m, 95)),
        'outage_end_median_m': float(np.median(outage_m[:, -1])),
        'mean_m_minus_outage_by_run': [
            round(float(value), 3) for value in (errors_m - outage_m).mean(axis=1)],
        'coverage_95': float(np.mean(
            np.concatenate([estimates.nees for estimates, *_ in runs]) <= CHI2_95[3])),
        'n': len(runs),
    }


# --- starts and wrong locks ----------------------------------------------------------------------


class SimulatedHeatmaps:
    """Heat maps of a made-up matcher over a made-up world, for the search among hypotheses.

    The world is a smooth random field of descriptors, of which a part repeats every ``period_m``
    along both axes: parallel streets look alike.  A view is the descriptor of the true place
    under noise that lives for a few frames, and fades as the assumed heading departs from the
    true one.  The heat map is exp(cosine / temperature) over the cells.
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
        """A heat map for each assumed heading (K,) over a square window; noise for this frame."""
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
    """Smoothed round the edges, each channel back at unit variance."""
    for axis in (0, 1):
        field = gaussian_filter1d(field, sigma_cells, axis=axis, mode='wrap')
    return field / field.std(axis=(0, 1))


START_RADIUS_M = 100.0
SEARCH_S = 120.0


def starts(data: Path, seed: int, smoke: bool, trials: int = 50) -> tuple[dict, dict]:
    """A start from anywhere within 100 m with no heading, and leaving a wrong lock for the truth.

    Simulated heat maps and odometry along real routes; a frame a second.  A trial succeeds when
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
        # Locked onto a place that looks alike, one period away: search about the wrong pose.
        wrong_m = truth.poses[0, :2] + np.array([40.0, 0.0])
        recovered.append(search(world, truth, odometry, wrong_m, []))
    return (_search_result(started) | {'single_frame_hits': float(np.mean(peak_hits))},
            _search_result(recovered))


def search(world, truth: Path2D, odometry, centre_m, peak_hits: list):
    """(seconds until a winner or None, whether it is right) of one trial."""
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


def _search_result(trials) -> dict:
    seconds = [time_s for time_s, right in trials if right]
    return {
        'success': len(seconds) / len(trials),
        'wrong': sum(time_s is not None and not right for time_s, right in trials) / len(trials),
        'seconds_median': float(np.median(seconds)) if seconds else None,
        'seconds_p95': float(np.percentile(seconds, 95)) if seconds else None,
        'n': len(trials),
    }


# --- the command ---------------------------------------------------------------------------------

SECTIONS = ('matcher_replay', 'logs', 'spoof', 'start', 'rendered')
TOWNS_FROM = 500       # training, validation and the demos' towns have other seeds
TOWNS_A_SEED = 10
SMOKE_DRIVE_S = 150.0


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.fusion', description=__doc__,
        epilog='example: python -m benchmarks.fusion --out build/fusion --smoke')
    parser.add_argument('--data', type=Path, help='real logs and routes (default: CROSSVIEW_DATA, '
                        'or ../shared/data)')
    parser.add_argument('--out', type=Path, default=Path('build/fusion'),
                        help='folder of fusion.json')
    parser.add_argument('--frames', type=Path, help='default: frames.csv.gz beside fusion.json')
    parser.add_argument('--sections', nargs='*', choices=SECTIONS, default=SECTIONS,
                        help='none at all: only --merge')
    parser.add_argument('--seed', type=int, default=0, help='first seed')
    parser.add_argument('--seeds', type=int, default=5, help='how many, of the matcher replay')
    parser.add_argument('--trials', type=int, default=50, help='of starts and of wrong locks')
    parser.add_argument('--smoke', action='store_true', help='a few small runs of everything')
    parser.add_argument('--towns', type=int, default=3, help='rendered towns')
    parser.add_argument('--outages', type=int, default=10, help='outages a town')
    parser.add_argument('--searches', type=int, default=17,
                        help='starts without a heading, and wrong locks, a town')
    parser.add_argument('--worlds', type=Path, default=Path('build/fusion/towns'),
                        help='folder of the rendered towns and their runs')
    parser.add_argument('--jobs', type=int, default=2, help='towns at a time')
    parser.add_argument('--merge', nargs='+', type=Path, default=[],
                        help='fusion.json of other runs, whose sections are added')
    parser.add_argument('--weights', type=Path, default=WEIGHTS, help='of the rendered towns')
    parser.add_argument('--params-file', type=Path, default=REPOSITORY / 'config/robotcar.yaml')
    args = parser.parse_args(arguments)
    data = args.data or Path(os.environ.get('CROSSVIEW_DATA', REPOSITORY.parent / 'shared/data'))
    try:
        if not data.is_dir():
            raise FileNotFoundError(
                f'folder {data} does not exist; give the one that holds oxford/, ccvpe_kitti/, '
                'comma2k19/ and google_nmea/ with --data')
        results = measure(args, data)
    except (ValueError, OSError) as error:
        print(f'fusion: {error}', file=sys.stderr)
        return 2
    print(json.dumps(results, indent=1))
    return 0


def measure(args, data: Path) -> dict:
    """Run the sections asked for and write both files; those not asked for stay as they were."""
    frames, target = Frames(), args.out / 'fusion.json'
    args.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(target.read_text(encoding='utf-8')) if target.exists() else {}
    for path in args.merge:
        other = json.loads(path.read_text(encoding='utf-8'))
        if other.get('seed') != args.seed:
            raise ValueError(
                f'{path} was made from seed {other.get("seed")}; expected {args.seed}')
        results.update(other)
    seeds = range(args.seed, args.seed + (1 if args.smoke else args.seeds))
    if 'matcher_replay' in args.sections:
        results['matcher_replay'] = matcher_replay(data, seeds, frames, args.smoke)
    if 'logs' in args.sections:
        results['logs'], results['log_outages'] = real_logs(data, args.seed, frames, args.smoke)
    if 'spoof' in args.sections:
        attacks = range(args.seed, args.seed + (2 if args.smoke else 20))
        results['spoof'] = spoofing(data, attacks, frames, args.smoke)
    if 'start' in args.sections:
        results['start'], results['wrong_lock'] = starts(
            data, args.seed, args.smoke, args.trials)
    if 'rendered' in args.sections:
        from benchmarks.fusion.rendered import DRIVE_S, rendered
        from crossview_localizer.bags import replay

        first = TOWNS_FROM + TOWNS_A_SEED * args.seed
        found, lines = rendered(
            args.worlds / 'smoke' if args.smoke else args.worlds,
            range(first, first + (1 if args.smoke else args.towns)),
            SMOKE_DRIVE_S if args.smoke else DRIVE_S, 1 if args.smoke else args.outages,
            1 if args.smoke else args.searches, args.weights,
            replay.read_parameters(args.params_file)[1], args.jobs)
        results.update(found)
        for line in lines:
            frames.add(*line)
    results['seed'] = args.seed
    frames_path = args.frames or args.out / 'frames.csv.gz'
    frames_path.parent.mkdir(parents=True, exist_ok=True)
    if frames.lines:
        frames.write(frames_path)
    target.write_text(json.dumps(results, indent=1) + '\n', encoding='utf-8')
    draw(results, args.out)
    return results
