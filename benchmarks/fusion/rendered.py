"""Outages, calibration and wrong images over rendered towns, through the offline Localizer.

Simulation.  Each run is kept in a file of its own beside the town, so that a killed benchmark goes
on; another configuration, seed or network has another folder.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
import hashlib
import json
import math
import multiprocessing
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.fusion.estimates import (
    calibration,
    calibration_curve,
    Estimates,
    estimates_of,
    normalized_errors,
    pooled,
)
from benchmarks.fusion.towns import feed, ImageAt, Town, town_from_seed
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import GnssFix, OdometrySample, Outcome, PoseEstimate
from crossview_localizer.geometry import Pose2D, wrap_angle
from crossview_localizer.trajectory import TRUTH_MAX_GAP_S

DRIVE_S = 930.0
OUTAGES_S = (10.0, 30.0, 60.0, 300.0)
CONVERGED_SIGMA_M = 1.0   # a run has converged when no position sigma is larger,
CONVERGED_WITHIN_S = 60.0  # and has this long for it;
SETTLED_S = 60.0          # GNSS is lost this much later
SEGMENT_S = 10.0          # a drive is cut into segments of this length, one estimate from each
WARM_UP_S = 30.0          # of a whole drive, not judged
START_RADIUS_M = 100.0
LOCK_M = 40.0             # one street
SEARCH_S = 120.0
WRONG_S = 120.0           # images are wrong for so long, in the middle of a piece of a drive
RIGHT_S = (120.0, 90.0)   # and right for so long before and after


@dataclass(frozen=True)
class Task:
    """All runs of one town."""

    folder: Path
    seed: int
    duration_s: float
    outages: int
    trials: int
    weights: Path
    config: LocalizerConfig

    @property
    def kept(self) -> Path:
        what = json.dumps([asdict(self.config), self.duration_s], sort_keys=True)
        key = hashlib.sha256(what.encode() + self.weights.read_bytes()).hexdigest()[:12]
        return self.folder / f'town_{self.seed}' / key


def rendered(folder: Path, seeds, duration_s: float, outages: int, trials: int, weights: Path,
             config: LocalizerConfig, jobs: int) -> tuple[dict, list]:
    """The sections outage, calibration and wrong_images, and (section, case, method, Estimates).

    Every outage starts at the truth with 5 to 25 m and up to 10 degrees of noise, has GNSS until
    ``SETTLED_S`` after it has converged and then none.
    """
    tasks = [Task(folder, seed, duration_s, outages, trials, weights, config)
        for seed in seeds]
    if jobs > 1:
        context = multiprocessing.get_context('spawn')
        with ProcessPoolExecutor(jobs, context) as pool:
            list(pool.map(run_town, tasks))
    else:
        for task in tasks:
            run_town(task)
    lines, ends, bands, drives = [], {}, {}, {}
    for task in tasks:
        for path in sorted(task.kept.glob('outage_*.npz')):
            runs = _read(path)
            for method, estimates in runs.items():
                lines.append(('outage', f'{task.seed}/{path.stem}', method, estimates))
                bands.setdefault(method, []).append(estimates)
            _add_ends(ends, runs)
        for path in sorted(task.kept.glob('drive_*.npz')):
            for method, estimates in _read(path).items():
                lines.append(('drive', str(task.seed), method, estimates))
                drives.setdefault(method, []).append(estimates)
    results = {
        'outage': {
            f'{length_s:.0f}': {
                method: {'p50_m': float(np.median(errors)),
                         'p95_m': float(np.percentile(errors, 95)), 'max_m': float(max(errors)),
                         'n': len(errors)}
                for method, errors in methods.items()}
            for length_s, methods in ends.items()},
        'outage_calibration': {
            method: calibration(_cut(parts)) for method, parts in bands.items()},
        'calibration': _calibrations(drives),
        'outage_curve': {method: _outage_curve(parts) for method, parts in bands.items()},
        'calibration_curve': {
            method: calibration_curve(_cut(parts)) for method, parts in drives.items()},
        'wrong_images': [
            {'town': task.seed, **json.loads((task.kept / 'wrong.json').read_text())}
            for task in tasks],
        'search': _search_results(tasks),
        'rendered': {
            'towns': list(seeds), 'duration_s': duration_s, 'segment_s': SEGMENT_S,
            'statement': 'SIMULATION: rendered towns, offline Localizer, shipped dense weights'},
    }
    return results, lines


def run_town(task: Task) -> None:
    """Make the town where it is missing, and whatever run of it is."""
    torch.set_num_threads(1)
    town = town_from_seed(
        task.folder / f'town_{task.seed}', task.seed, task.duration_s, task.weights, jobs=1)
    task.kept.mkdir(parents=True, exist_ok=True)
    images = town.images
    first_ns, last_ns = images[0].stamp_ns, images[-1].stamp_ns
    room_s = (last_ns - first_ns) * 1e-9 - CONVERGED_WITHIN_S - SETTLED_S - OUTAGES_S[-1] - 5.0
    if not (task.kept / 'drive_match.npz').exists():
        found = {
            'match': whole_drive(town, town.localizer(task.config)),
            'no_match': whole_drive(town, town.localizer(task.config, match=False))}
        _write(task.kept / 'drive_match.npz', found)
    for number in tqdm(range(task.outages), desc=f'town {task.seed}: outages', disable=None):
        path = task.kept / f'outage_{number:02d}.npz'
        if not path.exists():
            rng = np.random.default_rng([task.seed, 9, number])
            begin_s = max(room_s, 0.0) * (number + rng.uniform()) / task.outages
            _write(path, outage(town, task.config, first_ns + round(begin_s * 1e9), rng))
    if not (task.kept / 'wrong.json').exists():
        found, summary = wrong_images(town, task.config, np.random.default_rng([task.seed, 11]))
        _write(task.kept / 'drive_wrong.npz', found)
        (task.kept / 'wrong.json').write_text(json.dumps(summary))


    for number in tqdm(range(task.trials), desc=f'town {task.seed}: searches', disable=None):
        path = task.kept / f'search_{number:02d}.json'
        if not path.exists():
            rng = np.random.default_rng([task.seed, 13, number])
            path.write_text(json.dumps(searches(town, task.config, rng)))


# --- the runs ------------------------------------------------------------------------------------


def outage(town: Town, config: LocalizerConfig, begin_ns: int, rng) -> dict[str, Estimates]:
    """A start with noise, GNSS until it has settled, then none; with matches and without.

    Estimates from the loss of GNSS on, the first at the first image after it.
    """
    localizer = town.localizer(config)
    localizer.set_pose(noisy_start(town.truth, begin_ns, rng))
    events = [event for event in town.events if event.stamp_ns > begin_ns]
    lost_ns = begin_ns + round((CONVERGED_WITHIN_S + SETTLED_S) * 1e9)
    converged, index = False, 0
    while index < len(events) and events[index].stamp_ns < lost_ns:
        [*found] = feed(localizer, events[index:index + 1])
        index += 1
        if converged or not found or found[0].posterior is None:
            continue
        sigmas_m = np.sqrt(np.linalg.eigvalsh(found[0].posterior.covariance[:2, :2]))
        if sigmas_m.max() < CONVERGED_SIGMA_M:
            converged = True
            lost_ns = found[0].stamp_ns + round(SETTLED_S * 1e9)
    end_ns = lost_ns + round((OUTAGES_S[-1] + 2.0) * 1e9)
    rest = [event for event in events[index:]
            if event.stamp_ns < end_ns and not isinstance(event, GnssFix)]
    odometry_only = localizer.filter.copy()
    with_matches = [result.posterior for result in feed(localizer, rest)]
    without = []
    for event in rest:
        if isinstance(event, ImageAt):
            without.append(odometry_only.estimate_at(event.stamp_ns))
        elif isinstance(event, OdometrySample):
            odometry_only.add_odometry(event)
    return {'match': estimates_of(with_matches, town.truth, TRUTH_MAX_GAP_S),
            'odometry': estimates_of(without, town.truth, TRUTH_MAX_GAP_S)}


def whole_drive(town: Town, localizer) -> Estimates:
    """All poses of a drive with GNSS, from its first fix on, after the warm-up."""
    return _after_warm_up(town, feed(localizer, town.events))


def wrong_images(town: Town, config: LocalizerConfig, rng) -> tuple[dict[str, Estimates], dict]:
    """A piece of a drive whose images are of other places for a while: who notices, and when."""
    elsewhere, images = town.elsewhere(rng), town.images
    ages_s = np.array([(image.stamp_ns - images[0].stamp_ns) * 1e-9 for image in images])
    begin_s = (ages_s[-1] - WRONG_S) / 2
    wrong = (ages_s >= begin_s) & (ages_s < begin_s + WRONG_S)
    exchanged = np.where(wrong, elsewhere, np.arange(len(images)))
    wrong_ns = images[0].stamp_ns + round(begin_s * 1e9)
    piece = [event for event in town.events
             if -RIGHT_S[0] <= (event.stamp_ns - wrong_ns) * 1e-9 < WRONG_S + RIGHT_S[1]]
    results = feed(town.localizer(config, exchanged), piece)
    ages_s = np.array([(result.stamp_ns - wrong_ns) * 1e-9 for result in results])
    refused = np.array([result.outcome is Outcome.DISTRUSTED for result in results])
    wrong = (ages_s >= 0.0) & (ages_s < WRONG_S)
    noticed_s, again_s = ages_s[wrong & refused], ages_s[~refused & (ages_s >= WRONG_S)]
    summary = {
        'noticed_after_s': float(noticed_s[0]) if len(noticed_s) else None,
        'trusted_again_after_s': float(again_s[0] - WRONG_S) if len(again_s) else None,
        'distrusted_while_wrong': float(np.mean(refused[wrong])),
        'distrusted_before': float(np.mean(refused[ages_s < 0.0])),
    }
    posteriors = [result.posterior for result, inside in zip(results, wrong) if inside]
    return {'wrong_images': estimates_of(posteriors, town.truth, TRUTH_MAX_GAP_S)}, summary


def searches(town: Town, config: LocalizerConfig, rng) -> dict[str, tuple]:
    """A start without a heading, and a wrong lock, both without GNSS: (seconds or None, right).

    A start is told a place within ``START_RADIUS_M``; a wrong lock is sure of a pose ``LOCK_M``
    to the side.  Over once the Localizer uses matches again; right within 5 m and 10 degrees.
    """
    images = town.images
    first = int(rng.integers(30, max(len(images) - int(SEARCH_S) - 5, 31)))
    begin_ns = images[first].stamp_ns
    truth = town.truth.pose_at(begin_ns, TRUTH_MAX_GAP_S)
    bearing_rad = rng.uniform(-math.pi, math.pi)
    reach_m = START_RADIUS_M * math.sqrt(rng.uniform())
    place = Pose2D(truth.x_m + reach_m * math.cos(bearing_rad),
                   truth.y_m + reach_m * math.sin(bearing_rad), 0.0)
    aside = truth @ Pose2D(0.0, LOCK_M * rng.choice((-1, 1)), 0.0)
    events = [event for event in town.events
              if begin_ns - 10**9 < event.stamp_ns <= begin_ns + SEARCH_S * 1e9
              and not isinstance(event, GnssFix)]
    starts = {
        'start': PoseEstimate(
            begin_ns, place, np.diag([(START_RADIUS_M / 3) ** 2] * 2 + [10.0])),
        'wrong_lock': PoseEstimate(begin_ns, aside, np.diag([1.0, 1.0, 0.001]))}
    return {kind: _searched(town, config, events, start, kind == 'wrong_lock')
            for kind, start in starts.items()}


def _searched(town: Town, config: LocalizerConfig, events, start: PoseEstimate, locked: bool):
    """When matches are used, after they were distrusted where ``locked``, and whether rightly."""
    localizer = town.localizer(config)
    feed(localizer, [event for event in events if event.stamp_ns <= start.stamp_ns])
    localizer.set_pose(start)
    for event in events:
        if event.stamp_ns <= start.stamp_ns:
            continue
        for result in feed(localizer, [event]):
            locked = locked and result.outcome is not Outcome.DISTRUSTED
            if not locked and result.outcome is Outcome.USED:
                true = town.truth.pose_at(event.stamp_ns, TRUTH_MAX_GAP_S)
                error = true.inverse() @ result.posterior.pose
                right = math.hypot(error.x_m, error.y_m) < 5.0 and (
                    abs(error.yaw_rad) < math.radians(10.0))
                return (event.stamp_ns - start.stamp_ns) * 1e-9, right
    return None, False


def noisy_start(truth, first_ns: int, rng) -> PoseEstimate:
    sigma_m, yaw_sigma_rad = rng.uniform(5.0, 25.0), math.radians(rng.uniform(0.5, 10.0))
    sigmas = np.array([sigma_m, sigma_m, yaw_sigma_rad])
    noisy = truth.pose_at(first_ns, TRUTH_MAX_GAP_S).as_array() + sigmas * rng.standard_normal(3)
    return PoseEstimate(
        first_ns, Pose2D(*noisy[:2], wrap_angle(float(noisy[2]))), np.diag(sigmas**2))


# --- what they say -------------------------------------------------------------------------------


def segments(estimates: Estimates) -> Estimates:
    """The first estimate of each segment of ``SEGMENT_S``."""
    since_s = (estimates.stamps_ns - estimates.stamps_ns[0]) * 1e-9
    _, first = np.unique(np.floor(since_s / SEGMENT_S), return_index=True)
    return _chosen(estimates, first)


def _cut(parts: list[Estimates]) -> Estimates:
    return pooled([segments(part) for part in parts])


def _outage_curve(parts: list[Estimates]) -> dict:
    """Median and 95th percentile over the runs of the error at each second without GNSS."""
    seconds = np.arange(1.0, OUTAGES_S[-1] + 1.0)
    errors_m = np.array([
        np.interp(seconds, (part.stamps_ns - part.stamps_ns[0]) * 1e-9, part.position_m)
        for part in parts])
    return {'seconds': seconds.tolist(), 'n': len(parts),
            'p50_m': np.median(errors_m, axis=0).round(3).tolist(),
            'p95_m': np.percentile(errors_m, 95, axis=0).round(3).tolist()}


def _calibrations(drives: dict) -> dict:
    """Calibration on the segments of whole drives, and how alike one and the next are.

    ``lag_1`` is the correlation of the normalized errors of one segment and the next, per axis:
    segments count as independent while it is small.
    """
    found = {}
    for method, parts in drives.items():
        cut = [segments(part) for part in parts]
        found[method] = calibration(pooled(cut)) | {
            'lag_1': np.mean([
                [np.corrcoef(column[:-1], column[1:])[0, 1]
                 for column in normalized_errors(part).T] for part in cut], axis=0).tolist()}
        errors_m = pooled(cut).position_m
        found[method] |= {'median_m': float(np.median(errors_m)),
                          'p95_m': float(np.percentile(errors_m, 95))}
    # As the issue names them: the whole system's own figures stand first.
    return {**found.pop('match'), 'controls': found}


def _search_results(tasks: list[Task]) -> dict:
    """Of starts and wrong locks over all towns: how many ended right, wrong, and when."""
    results = {}
    for kind in ('start', 'wrong_lock'):
        trials = [json.loads(path.read_text())[kind] for task in tasks
                  for path in sorted(task.kept.glob('search_*.json'))]
        if not trials:
            continue
        seconds = [time_s for time_s, right in trials if right]
        results[kind] = {
            'success': len(seconds) / len(trials),
            'wrong': sum(time_s is not None and not right
                         for time_s, right in trials) / len(trials),
            'seconds_median': float(np.median(seconds)) if seconds else None,
            'seconds_p95': float(np.percentile(seconds, 95)) if seconds else None,
            'n': len(trials)}
    return results


def _add_ends(ends: dict, runs: dict[str, Estimates]) -> None:
    begin_ns = min(estimates.stamps_ns[0] for estimates in runs.values())
    for method, estimates in runs.items():
        for length_s in OUTAGES_S:
            after = np.flatnonzero(estimates.stamps_ns >= begin_ns + (length_s - 0.5) * 1e9)
            if len(after):
                ends.setdefault(length_s, {}).setdefault(method, []).append(
                    float(estimates.position_m[after[0]]))


def _after_warm_up(town: Town, results) -> Estimates:
    from_ns = town.images[0].stamp_ns + round(WARM_UP_S * 1e9)
    return estimates_of(
        [result.posterior for result in results
         if result.posterior is not None and result.stamp_ns >= from_ns],
        town.truth, TRUTH_MAX_GAP_S)


def _chosen(estimates: Estimates, lines) -> Estimates:
    return Estimates(estimates.stamps_ns[lines], estimates.poses[lines],
                     estimates.covariances[lines], estimates.truth[lines])


def _write(path: Path, runs: dict[str, Estimates]) -> None:
    partial = path.with_name(f'partial_{path.name}')
    np.savez(partial, **{
        f'{method}.{name}': getattr(estimates, name)
        for method, estimates in runs.items()
        for name in ('stamps_ns', 'poses', 'covariances', 'truth')})
    partial.replace(path)


def _read(path: Path) -> dict[str, Estimates]:
    with np.load(path) as file:
        methods = sorted({name.partition('.')[0] for name in file.files})
        return {method: Estimates(*(
            file[f'{method}.{name}'] for name in ('stamps_ns', 'poses', 'covariances', 'truth')))
            for method in methods}
