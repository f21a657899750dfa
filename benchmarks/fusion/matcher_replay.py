"""Errors of a real matcher, replayed in time order along real routes."""

import math
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.fusion import drive_data
from benchmarks.fusion.estimates import EstimateLines, pooled
from benchmarks.fusion.filter_runs import (
    in_order,
    moving_stretch,
    oxford_routes,
    position_matches,
    run_filter,
    SENSORS,
)
from crossview_localizer.evaluation.pose_metrics import CHI2_95
from crossview_localizer.fusion.match_correction import MATCH_TAIL_DOF

WARM_UP_S = 300.0


def tail_sigma_m(drives: list[np.ndarray], tail_dof: float) -> float:
    """The scale per axis of the Student t that errors (n, 2) of a matcher follow.

    It is the most likely one, with the same weight for each drive, by iterating
    s^2 <- sum_i w_i (dof + 2) / (dof + |e_i|^2 / s^2) |e_i|^2 / 2.
    """
    squares_m2 = np.concatenate([(errors**2).sum(axis=1) for errors in drives])
    weights = np.concatenate([np.full(len(e), 1.0 / len(e) / len(drives)) for e in drives])
    variance_m2 = float(weights @ squares_m2) / 2
    for _ in range(500):
        scale = (tail_dof + 2) / (tail_dof + squares_m2 / variance_m2)
        variance_m2 = float(weights @ (scale * squares_m2)) / 2
    return math.sqrt(variance_m2)


def replay_matcher(data: Path, seeds, lines: EstimateLines, smoke: bool) -> dict:
    """Fuse real matcher errors with simulated GNSS and odometry along real routes.

    The covariance of the matches comes from the errors of the other drives; nothing is fitted to
    the drive that is replayed.
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
                lines.add('matcher_replay', f'{drive}/{seed}', name, estimates)
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
