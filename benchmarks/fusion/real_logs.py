"""Real logs: the filter with several sets of sensors, and GNSS outages cut into the logs."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import SensorLog, stamp_ns, START_NS
from benchmarks.fusion.estimates import EstimateLines
from benchmarks.fusion.filter_runs import in_order, run_filter
from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import GnssFix
from crossview_localizer.fusion.pose_filter import PoseFilter

# Where the fixes of google_nmea lie from its reference, as measured on this very log.
GOOGLE_LEVER_ARM_M = (-0.5, -0.1)
# Others, a hand's breadth off and of the wrong sign.
GOOGLE_WRONG_LEVER_ARMS_M = {'0.3_m_off': (-0.5, 0.2), 'of_wrong_sign': (0.5, 0.1)}
# Begin of the first outage, after the filter has settled, and the lengths of the outages, s.
OUTAGES = {'comma2k19': (20.0, (5.0, 10.0, 20.0)), 'google_nmea': (200.0, (10.0, 30.0, 60.0))}


def run_real_logs(data: Path, seed: int, lines: EstimateLines, smoke: bool) -> tuple[dict, dict]:
    """Error, NEES and coverage per log and sensor set, and the errors at the end of outages."""
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
    lever_arms_m = {'': GOOGLE_LEVER_ARM_M} | {
        f'_{name}': lever_m for name, lever_m in GOOGLE_WRONG_LEVER_ARMS_M.items()}
    for name, lever_m in lever_arms_m.items():
        fixes = [replace(fix, base_from_antenna_m=lever_m) for fix in google.fixes]
        sets['google_nmea', f'gnss_with_lever_arm{name}_simulated_odometry'] = replace(
            google, courses=[], fixes=fixes)
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
        lines.add('logs', name, sensors, estimates)
        results.setdefault(name, {})[sensors] = estimates.metrics()
        outages.setdefault(name, {})[sensors] = {
            f'{length_s:.0f}': log_outages(log, begins_s, filters, length_s)
            for length_s in lengths_s}
    return results, outages


def shortened(log: SensorLog, end_s: float) -> SensorLog:
    def until(measurements):
        return [m for m in measurements if m.stamp_ns <= stamp_ns(end_s)]

    return SensorLog(log.truth.part(0.0, end_s), until(log.odometry), until(log.fixes),
               until(log.courses), until(log.matches))


def log_outages(log: SensorLog, begins_s, filters: list[PoseFilter], length_s: float) -> dict:
    """Errors at the end of outages; ``filters`` are copies of the filter at their beginnings.

    A filter whose heading was lost on the way is ``without_pose``.
    """
    fused_m, held_m = [], []
    ends_s = begins_s + length_s
    for pose_filter, begin_s, end_s, true_pose in zip(
            filters, begins_s, ends_s, log.truth.at(ends_s)):
        pose_filter = deepcopy(pose_filter)
        for sample in log.odometry:
            if stamp_ns(begin_s) < sample.stamp_ns <= stamp_ns(end_s):
                pose_filter.add_odometry(sample)
        estimate = pose_filter.estimate_at(stamp_ns(end_s))
        if estimate is not None:  # else it waits for a new start
            fused_m.append(np.linalg.norm((estimate.pose.as_array() - true_pose)[:2]))
        kept = [fix for fix in log.fixes if fix.stamp_ns <= stamp_ns(begin_s)]
        held_m.append(np.linalg.norm(constant_velocity(kept, end_s) - true_pose[:2]))
    return {
        'fused_end_median_m': float(np.median(fused_m)) if fused_m else None,
        'fused_end_p95_m': float(np.percentile(fused_m, 95)) if fused_m else None,
        'without_pose': len(held_m) - len(fused_m),
        'constant_velocity_end_median_m': float(np.median(held_m)),
        'constant_velocity_end_p95_m': float(np.percentile(held_m, 95)),
        'n': len(held_m),
    }


def constant_velocity(fixes: list[GnssFix], end_s: float, window_s: float = 3.0) -> np.ndarray:
    """The position (2,) by a line through the fixes of the last ``window_s`` (at least three)."""
    since_s = np.array([(fix.stamp_ns - fixes[-1].stamp_ns) * 1e-9 for fix in fixes])
    recent = since_s >= -window_s
    recent[-3:] = True
    positions_m = np.array([(fix.x_m, fix.y_m) for fix in fixes])
    velocity_mps, last_m = np.polyfit(since_s[recent], positions_m[recent], 1)
    return last_m + velocity_mps * (end_s - (fixes[-1].stamp_ns - START_NS) * 1e-9)
