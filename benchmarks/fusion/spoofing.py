"""Spoofed GNSS: fixes that jump or drift for a minute, against that minute without GNSS."""

from copy import deepcopy
from dataclasses import replace
import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import stamp_ns
from benchmarks.fusion.estimates import EstimateLines
from benchmarks.fusion.filter_runs import (
    continue_filter,
    in_order,
    moving_stretch,
    oxford_routes,
    position_matches,
    run_filter,
    SENSORS,
)
from crossview_localizer.datatypes import GnssFix
from crossview_localizer.evaluation.pose_metrics import CHI2_95

SPOOF_S = 60.0
JUMP_M = 50.0
DRAG_MPS = 0.5
MATCH_SIGMA_M, MATCH_HZ = 1.5, 1.0


def run_spoofing(data: Path, seeds, lines: EstimateLines, smoke: bool) -> dict:
    """Run each attack along real routes, with and without matches.

    GNSS, odometry and matches (white errors of 1.5 m) are simulated.
    """
    routes = oxford_routes(data, 2 if smoke else 4)
    begin_s = 100.0 if smoke else 180.0
    times_s = np.arange(begin_s, begin_s + SPOOF_S, 1.0)
    runs, alarms, drifts, warm_up_h = {}, 0, 0, 0.0
    for seed in tqdm(seeds, desc='spoofing', disable=None):
        rng = np.random.default_rng([seed, 5])
        truth = moving_stretch(routes, rng, begin_s + SPOOF_S + 1.0)
        odometry = drive_data.simulated_odometry(truth, rng)
        fixes = drive_data.simulated_gnss(truth, rng, hz=1.0)
        match_s = np.arange(1.0, truth.duration_s, 1.0 / MATCH_HZ)
        matches = position_matches(
            match_s, truth.at(match_s)[:, :2]
            + MATCH_SIGMA_M * rng.standard_normal((len(match_s), 2)), MATCH_SIGMA_M**2 * np.eye(2))
        bearing_rad = rng.uniform(-math.pi, math.pi)
        towards = np.array([math.cos(bearing_rad), math.sin(bearing_rad)])
        for setting, given in (('without_matches', []), ('with_matches', matches)):
            before = [
                m for m in in_order(odometry, fixes, given) if m.stamp_ns < stamp_ns(begin_s)]
            _, updates, (warm,) = run_filter(
                before, SENSORS, [begin_s - 1.0], truth, [begin_s])
            alarms += sum(_raised_alarm(update) for _, update in updates)
            drifts += _begins(['drift apart' in update.reason for measurement, update in updates
                               if isinstance(measurement, GnssFix)])
            warm_up_h += begin_s / 3600.0
            for attack in ('none', 'outage', 'jump', 'drag_off'):
                spoofed = attacked(fixes, attack, begin_s, towards)
                measurements = [
                    m for m in in_order(odometry, spoofed, given)
                    if m.stamp_ns >= stamp_ns(begin_s)]
                estimates, updates = continue_filter(deepcopy(warm), measurements, times_s, truth)
                lines.add('spoof', f'{setting}/{seed}', attack, estimates)
                fixes_after = [
                    (fix, update) for fix, update in updates
                    if isinstance(fix, GnssFix) and fix.stamp_ns < stamp_ns(begin_s + SPOOF_S)]
                detected_s = next((
                    (fix.stamp_ns - stamp_ns(begin_s)) * 1e-9
                    for fix, update in fixes_after if 'GNSS' in update.reason), None)
                runs.setdefault((setting, attack), []).append((estimates, detected_s, fixes_after))
    results = {
        setting: {attack: _attack_result(runs[setting, attack], runs[setting, 'outage'])
                  for attack in ('none', 'jump', 'drag_off')}
        for setting in ('without_matches', 'with_matches')}
    return results | {'alarms_without_attack': alarms, 'drifts_apart_without_attack': drifts,
                      'hours_without_attack': warm_up_h}


def _raised_alarm(update) -> bool:
    """Whether this fix, and not an earlier one, raised the alarm."""
    return update.reason.startswith(('GNSS jumped by', 'GNSS drifts')) and (
        'refused' not in update.reason)


def _begins(told: list[bool]) -> int:
    """How often it begins to be told."""
    return sum(now and not before for before, now in zip([False, *told], told))


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


def _attack_result(runs, outages) -> dict:
    detected_s = [seconds for _, seconds, _ in runs if seconds is not None]
    after = [
        update.outcome.name == 'USED' for _, seconds, fixes in runs if seconds is not None
        for fix, update in fixes if (fix.stamp_ns - fixes[0][0].stamp_ns) * 1e-9 >= seconds]
    until_told = np.concatenate([
        estimates.nees[estimates.stamps_ns - fixes[0][0].stamp_ns
                       <= 1e9 * (math.inf if seconds is None else seconds)]
        for estimates, seconds, fixes in runs])
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
        'coverage_95_until_told': float(np.mean(until_told <= CHI2_95[3])),
        'n': len(runs),
    }
