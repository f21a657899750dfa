"""Errors of a real matcher, replayed in time order along real routes.

They are laid along the vehicle's axes, and the vehicle stands where it stood.  What the filter is
told of a drive's matches comes from the other drives: their covariance, what lasts for a drive,
and inflation and correlation as ``fit_match_errors`` finds them.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import Path2D, ReplayedErrors, stamp_ns
from benchmarks.fusion.estimates import EstimateLines, Estimates, pooled
from benchmarks.fusion.filter_runs import (
    continue_filter,
    in_order,
    moving_stretch,
    oxford_routes,
    position_matches,
    run_filter,
    SENSORS,
)
from benchmarks.fusion.fit_match_errors import fit
from crossview_localizer.datatypes import MatchErrors, PoseEstimate
from crossview_localizer.evaluation.pose_metrics import CHI2_95
from crossview_localizer.fusion.match_correction import MATCH_TAIL_DOF
from crossview_localizer.fusion.motion_model import rotation

WARM_UP_S, SHORT_WARM_UP_S = 300.0, 90.0
# A vehicle that stands sees the same scene: distance brings news, time hardly any.
CORRELATION_S = 100.0
# Seeds of the fit begin here.
FIT_SEED = 1000
TRIALS = {
    'inflation': (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0),
    'correlation_m': (4.0, 8.0, 15.0, 30.0, 60.0),
}
SMOKE_TRIALS = {'inflation': (1.0, 2.0)}


class Replay:
    """A drive of the matcher along a stretch of a route, with simulated GNSS and odometry."""

    def __init__(self, routes, replayed: ReplayedErrors, sigmas_m, rng, warm_up_s: float,
                 odometry_hz: float = 10.0):
        """``sigmas_m`` (2,) ahead and left are what the matches claim."""
        count = len(replayed.errors_m)
        self._begin_s = warm_up_s
        self.times_s = warm_up_s + np.arange(count) / drive_data.MATCHER_HZ
        route = moving_stretch(routes, rng, self.times_s[-1] + 0.2)
        time_s = route.time_s
        frame = np.round((time_s - warm_up_s) * drive_data.MATCHER_HZ).astype(int)
        stands = (time_s >= warm_up_s) & replayed.stands[np.clip(frame, 0, count - 1)]
        self.truth = route.slowed(1.0 - stands)
        self._inputs = in_order(
            drive_data.simulated_odometry(self.truth, rng, hz=odometry_hz),
            drive_data.simulated_gnss(self.truth, rng, hz=1.0))
        self._matches = matches_along(self.truth, self.times_s, replayed.errors_m, sigmas_m)

    def run(self, errors: MatchErrors | None, every: int = 1) -> Estimates:
        """The poses at the matches; every so manieth is used, or none without ``errors``."""
        before = [m for m in self._inputs if m.stamp_ns < stamp_ns(self._begin_s)]
        after = [m for m in self._inputs if m.stamp_ns >= stamp_ns(self._begin_s)]
        _, _, [warm] = run_filter(before, SENSORS, [self._begin_s - 1.0], self.truth,
                                  [self._begin_s], errors)
        given = [] if errors is None else self._matches[::every]
        return continue_filter(
            deepcopy(warm), in_order(after, given), self.times_s, self.truth)[0]


def matches_along(truth: Path2D, times_s, errors_m, sigmas_m) -> list[PoseEstimate]:
    """Matches with errors (n, 2) and sigmas (2,) ahead and left of the vehicle."""
    poses = truth.at(times_s)
    turns = np.array([rotation(yaw_rad) for yaw_rad in poses[:, 2]])              # (n, 2, 2)
    return position_matches(
        times_s, poses[:, :2] + np.einsum('nij,nj->ni', turns, errors_m),
        np.einsum('nij,j,nkj->nik', turns, np.square(sigmas_m), turns))


def replayed_matches(data: Path, truth: Path2D) -> tuple[list[PoseEstimate], MatchErrors]:
    """The matcher's errors in motion along a path, over and over, and what is believed of them."""
    drives = [errors for drive, errors in drive_data.matcher_errors(data / 'ccvpe_kitti').items()
              if drive in drive_data.REPRESENTATIVE]
    sigmas_m = tail_sigmas_m([drive.errors_m for drive in drives], MATCH_TAIL_DOF)
    moving_m = np.concatenate([drive.errors_m[~drive.stands] for drive in drives])
    times_s = np.arange(1.0, truth.duration_s, 1.0 / drive_data.MATCHER_HZ)
    errors_m = moving_m[np.arange(len(times_s)) % len(moving_m)]
    return (matches_along(truth, times_s, errors_m, sigmas_m),
            fitted_errors(oxford_routes(data, 4), drives, sigmas_m))


def tail_sigmas_m(drives: list[np.ndarray], tail_dof: float) -> np.ndarray:
    """The scales (2,), one per axis, of the Student t that errors (n, 2) of a matcher follow.

    They are the most likely ones, with the same weight for each drive, by iterating
    s_k^2 <- sum_i w_i (dof + 2) / (dof + sum_k e_ik^2 / s_k^2) e_ik^2.
    """
    squares_m2 = np.concatenate(drives) ** 2
    weights = np.concatenate([np.full(len(e), 1.0 / len(e) / len(drives)) for e in drives])
    variances_m2 = weights @ squares_m2
    for _ in range(500):
        scale = (tail_dof + 2) / (tail_dof + (squares_m2 / variances_m2).sum(axis=1))
        variances_m2 = (weights * scale) @ squares_m2
    return np.sqrt(variances_m2)


def fitted_errors(routes, others: list[ReplayedErrors], sigmas_m, trials=TRIALS) -> MatchErrors:
    """What the filter should believe of such matches, by the drives given.

    What lasts is measured from drive to drive: it is too rare for a search.
    """
    ahead_m, left_m = np.sqrt(np.mean(
        [np.median(other.errors_m, axis=0) ** 2 for other in others], axis=0))
    replays = [Replay(routes, other, sigmas_m, np.random.default_rng([FIT_SEED, number]),
                      SHORT_WARM_UP_S, odometry_hz=2.0) for number, other in enumerate(others)]
    return fit(replays, replace(
        MatchErrors(), correlation_s=CORRELATION_S, ahead_bias_m=float(ahead_m),
        left_bias_m=float(left_m)), trials)[0]


def replay_matcher(data: Path, seeds, lines: EstimateLines, smoke: bool) -> dict:
    """Fuse real matcher errors with simulated GNSS and odometry along real routes.

    The stress drive is in nobody's fit.
    """
    replayed = drive_data.matcher_errors(data / 'ccvpe_kitti')
    routes = oxford_routes(data, 2 if smoke else 4)
    drives = ['0117', drive_data.STRESS] if smoke else list(replayed)
    results, everything = {}, {'fused': [], 'gnss_odometry': []}
    for drive in tqdm(drives, desc='matcher replay', disable=None):
        others = [replayed[other] for other in drive_data.REPRESENTATIVE if other != drive]
        sigmas_m = tail_sigmas_m([other.errors_m for other in others], MATCH_TAIL_DOF)
        errors = (fitted_errors(routes, others[:1], sigmas_m, SMOKE_TRIALS) if smoke
                  else fitted_errors(routes, others, sigmas_m))
        parts = {'fused': [], 'gnss_odometry': []}
        for seed in seeds:
            replay = Replay(routes, replayed[drive], sigmas_m,
                            np.random.default_rng([seed, int(drive)]),
                            SHORT_WARM_UP_S if smoke else WARM_UP_S)
            for name, given in (('fused', errors), ('gnss_odometry', None)):
                parts[name].append(replay.run(given))
                lines.add('matcher_replay', f'{drive}/{seed}', name, parts[name][-1])
        matcher_m = np.linalg.norm(replayed[drive].errors_m, axis=1)
        results[drive] = _row(parts, matcher_m) | {
            f'{name}_median_m_by_seed': [float(np.median(part.position_m)) for part in found]
            for name, found in parts.items()}
        results[drive] |= {'claimed_sigmas_m': sigmas_m.tolist(), 'match_errors': vars(errors),
                           'stands': float(np.mean(replayed[drive].stands))}
        if drive in drive_data.REPRESENTATIVE:
            for name, found in parts.items():
                everything[name] += found
    results['representative'] = _row(everything, np.concatenate(
        [np.linalg.norm(replayed[drive].errors_m, axis=1)
         for drive in drives if drive in drive_data.REPRESENTATIVE]))
    return results


def _row(parts: dict[str, list[Estimates]], matcher_m: np.ndarray) -> dict:
    fused, without = pooled(parts['fused']), pooled(parts['gnss_odometry'])
    fused_m, own_m = float(np.median(fused.position_m)), float(np.median(matcher_m))
    return {
        'fused_median_m': fused_m, 'matcher_median_m': own_m, 'fused_to_matcher': fused_m / own_m,
        'gnss_odometry_median_m': float(np.median(without.position_m)),
        'coverage_95': float(np.mean(fused.nees <= CHI2_95[3])),
        'nees_mean': float(np.mean(fused.nees)),
        'fused_p95_m': float(np.percentile(fused.position_m, 95)),
        'matcher_p95_m': float(np.percentile(matcher_m, 95)), 'n': len(fused.stamps_ns),
    }
