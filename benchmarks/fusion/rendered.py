"""Outages, calibration and wrong images in rendered towns, with the offline Localizer.

This is simulation. Each run is stored in a file beside its town, so that a stopped benchmark goes
on; another configuration, seed or network has another folder.
"""

from dataclasses import asdict, dataclass
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.fusion.estimates import (
    calibration,
    calibration_curve,
    Estimates,
    normalized_errors,
    pooled,
)
from benchmarks.fusion.starts import search_figures
from benchmarks.fusion.town_runs import (
    CONVERGED_WITHIN_S,
    OUTAGES_S,
    run_outage,
    run_searches,
    run_whole_drive,
    run_wrong_images,
    SETTLED_S,
)
from benchmarks.fusion.towns import render, run_in_processes, town_from_seed
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.files import write_atomically

DRIVE_S = 930.0
SEGMENT_S = 10.0          # a drive is cut into segments of this length, one estimate from each


@dataclass(frozen=True)
class TownTask:
    """All runs in one town."""

    folder: Path
    seed: int
    duration_s: float
    outages: int
    trials: int
    weights: Path
    config: LocalizerConfig

    @property
    def results_folder(self) -> Path:
        what = json.dumps([asdict(self.config), self.duration_s], sort_keys=True)
        key = hashlib.sha256(what.encode() + self.weights.read_bytes()).hexdigest()[:12]
        return town_folder(self.folder, self.seed) / key


def run_towns(folder: Path, seeds, duration_s: float, outages: int, trials: int, weights: Path,
              config: LocalizerConfig, jobs: int) -> tuple[dict, list]:
    """The sections outage, calibration and wrong_images, and (section, case, method, Estimates).

    Every outage starts with 5 to 25 m and up to 10 degrees of noise, and has GNSS until
    ``SETTLED_S`` after it has converged.
    """
    tasks = [TownTask(folder, seed, duration_s, outages, trials, weights, config)
             for seed in seeds]
    run_in_processes(run_town, tasks, jobs)
    lines, ends, bands, drives = [], {}, {}, {}
    for task in tasks:
        for path in sorted(task.results_folder.glob('outage_*.npz')):
            runs = _read(path)
            for method, estimates in runs.items():
                lines.append(('outage', f'{task.seed}/{path.stem}', method, estimates))
                bands.setdefault(method, []).append(estimates)
            _add_ends(ends, runs)
        for path in sorted(task.results_folder.glob('drive_*.npz')):
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
            {'town': task.seed, **json.loads((task.results_folder / 'wrong.json').read_text())}
            for task in tasks],
        'search': _search_results(tasks),
        'rendered': {
            'towns': list(seeds), 'duration_s': duration_s, 'segment_s': SEGMENT_S,
            'statement': 'SIMULATION: rendered towns, offline Localizer, shipped dense weights'},
    }
    return results, lines


def render_towns(folder: Path, seeds, duration_s: float, jobs: int) -> None:
    """Render the towns of ``run_towns``, which depend on no weights."""
    for seed in seeds:
        render(town_folder(folder, seed), seed, duration_s, jobs)


def town_folder(folder: Path, seed: int) -> Path:
    return folder / f'town_{seed}'


def run_town(task: TownTask) -> None:
    """Make the town and those of its runs that are missing."""
    torch.set_num_threads(1)
    town = town_from_seed(
        town_folder(task.folder, task.seed), task.seed, task.duration_s, task.weights,
        jobs=1).thinned()
    task.results_folder.mkdir(parents=True, exist_ok=True)
    images = town.images
    first_ns, last_ns = images[0].stamp_ns, images[-1].stamp_ns
    room_s = (last_ns - first_ns) * 1e-9 - CONVERGED_WITHIN_S - SETTLED_S - OUTAGES_S[-1] - 5.0
    if not (task.results_folder / 'drive_match.npz').exists():
        found = {
            'match': run_whole_drive(town, town.localizer(task.config)),
            'no_match': run_whole_drive(town, town.localizer(task.config, match=False))}
        _write(task.results_folder / 'drive_match.npz', found)
    for number in tqdm(range(task.outages), desc=f'town {task.seed}: outages', disable=None):
        path = task.results_folder / f'outage_{number:02d}.npz'
        if not path.exists():
            rng = np.random.default_rng([task.seed, 9, number])
            begin_s = max(room_s, 0.0) * (number + rng.uniform()) / task.outages
            _write(path, run_outage(town, task.config, first_ns + round(begin_s * 1e9), rng))
    if not (task.results_folder / 'wrong.json').exists():
        found, summary = run_wrong_images(
            town, task.config, np.random.default_rng([task.seed, 11]))
        _write(task.results_folder / 'drive_wrong.npz', found)
        (task.results_folder / 'wrong.json').write_text(json.dumps(summary))
    for number in tqdm(range(task.trials), desc=f'town {task.seed}: searches', disable=None):
        path = task.results_folder / f'search_{number:02d}.json'
        if not path.exists():
            rng = np.random.default_rng([task.seed, 13, number])
            path.write_text(json.dumps(run_searches(town, task.config, rng)))


def segments(estimates: Estimates) -> Estimates:
    """The first estimate of each segment of ``SEGMENT_S``."""
    since_s = (estimates.stamps_ns - estimates.stamps_ns[0]) * 1e-9
    _, first = np.unique(np.floor(since_s / SEGMENT_S), return_index=True)
    return estimates.chosen(first)


def _cut(parts: list[Estimates]) -> Estimates:
    return pooled([segments(part) for part in parts])


def _outage_curve(parts: list[Estimates]) -> dict:
    """The median and 95th percentile of the error over the runs, at each second without GNSS."""
    seconds = np.arange(1.0, OUTAGES_S[-1] + 1.0)
    errors_m = np.array([
        np.interp(seconds, (part.stamps_ns - part.stamps_ns[0]) * 1e-9, part.position_m)
        for part in parts])
    return {'seconds': seconds.tolist(), 'n': len(parts),
            'p50_m': np.median(errors_m, axis=0).round(3).tolist(),
            'p95_m': np.percentile(errors_m, 95, axis=0).round(3).tolist()}


def _calibrations(drives: dict) -> dict:
    """Calibration on the segments of whole drives.

    ``lag_1`` is the correlation, per axis, of the normalized errors of one segment and the next:
    segments count as independent if it is small.
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
    # The whole system stands at the top level, the others are its controls.
    return {**found.pop('match'), 'controls': found}


def _search_results(tasks: list[TownTask]) -> dict:
    """The figures of starts and of wrong locks."""
    results = {}
    for kind in ('start', 'wrong_lock'):
        trials = [json.loads(path.read_text())[kind] for task in tasks
                  for path in sorted(task.results_folder.glob('search_*.json'))]
        if trials:
            results[kind] = search_figures(trials)
    return results


def _add_ends(ends: dict, runs: dict[str, Estimates]) -> None:
    begin_ns = min(estimates.stamps_ns[0] for estimates in runs.values())
    for method, estimates in runs.items():
        for length_s in OUTAGES_S:
            after = np.flatnonzero(estimates.stamps_ns >= begin_ns + (length_s - 0.5) * 1e9)
            if len(after):
                ends.setdefault(length_s, {}).setdefault(method, []).append(
                    float(estimates.position_m[after[0]]))


def _write(path: Path, runs: dict[str, Estimates]) -> None:
    with write_atomically(path) as writing, open(writing, 'wb') as file:
        np.savez(file, **{
            f'{method}.{name}': getattr(estimates, name)
            for method, estimates in runs.items()
            for name in ('stamps_ns', 'poses', 'covariances', 'truth')})


def _read(path: Path) -> dict[str, Estimates]:
    with np.load(path) as file:
        methods = sorted({name.partition('.')[0] for name in file.files})
        return {method: Estimates(*(
            file[f'{method}.{name}'] for name in ('stamps_ns', 'poses', 'covariances', 'truth')))
            for method in methods}
