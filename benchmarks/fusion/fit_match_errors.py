"""Fit what the filter believes of a network's matches, and write it into the weights file.

The network looks once at each image of rendered drives; the matches are recorded in one run of the
Localizer and given to the filter again with each trial of MatchErrors, at the rate of the images
and at a third of it.  Chosen are the errors for which the NEES of each axis is nearest to one and
no drive's coverage is too small: what lasts for a drive is seen only from drive to drive.
"""

import argparse
from dataclasses import replace
from functools import cache
import json
from pathlib import Path
import sys

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import REPOSITORY
from benchmarks.fusion.estimates import AXES, Estimates, estimates_of, normalized_errors, pooled
from benchmarks.fusion.town_runs import WARM_UP_S
from benchmarks.fusion.towns import (
    feed,
    ImageAt,
    thinned,
    Town,
    town_from_bag,
    town_from_seed,
)
from crossview_localizer.command import run_command
from crossview_localizer.config import FilterConfig, LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import GnssFix, MatchErrors, OdometrySample, PoseEstimate
from crossview_localizer.evaluation.pose_metrics import CHI2_95
from crossview_localizer.files import write_atomically
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import Pose2D
from crossview_localizer.networks.checkpoint import load_network, write_match_errors
from crossview_localizer.parameter_file import read_parameters
from crossview_localizer.trajectory import Track, TRUTH_MAX_GAP_S

# Each number goes to the next larger or smaller one while that is better, the others held; this
# is done ROUNDS times, or until nothing improves.
TRIALS = {
    'inflation': (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.55, 0.75, 1.0, 1.5, 2.0, 3.0, 4.5),
    'ahead_bias_m': (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45),
    'left_bias_m': (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3),
    'yaw_bias_rad': (0.0, 0.001, 0.002, 0.003, 0.005, 0.008),
    'correlation_m': (2.0, 4.0, 6.0, 8.0, 12.0, 16.0),
    'correlation_s': (2.0, 5.0, 10.0, 20.0),
    'sigma_floor_m': (0.05, 0.1, 0.15, 0.2, 0.3),
}
ROUNDS = 2
SPARSE = 3  # every third image
# A coverage outside this range costs as much as a NEES that is off by the factor e for each tenth.
COVERAGE = (0.90, 0.98)
# So does that of a single drive below this.
DRIVE_COVERAGE = 0.85


class RecordedDrive:
    """The measurements of a drive with one run's matches, and where the truth was.

    ``refined`` are the poses of that run.
    """

    def __init__(self, town: Town, config: LocalizerConfig):
        localizer = town.localizer(config)
        self._filter_config, self._truth = config.filter, town.truth
        self._first_ns = town.images[0].stamp_ns + round(WARM_UP_S * 1e9)
        self._stamps_ns = [image.stamp_ns for image in town.images]
        self._matches: dict[int, PoseEstimate] = {}
        posteriors = []
        for event in tqdm(town.events, desc=f'{town.name}: matches', disable=None):
            for result in feed(localizer, [event]):
                if result.match is not None:
                    self._matches[result.stamp_ns] = result.match
                if result.posterior is not None:
                    posteriors.append(result.posterior)
        self.refined = Track.from_estimates(posteriors)
        self._events = thinned(town.events)

    def run(self, errors: MatchErrors, every: int, shift_m=(0.0, 0.0),
            config: FilterConfig | None = None) -> Estimates:
        """The poses at all images after the warm-up, with every so manieth match.

        All matches are shifted in ``map``, as by imagery that lies there.
        """
        pose_filter, found = PoseFilter(config or self._filter_config, errors), []
        used_ns = set(self._stamps_ns[::every])
        for event in self._events:
            if isinstance(event, ImageAt):
                match = self._matches.get(event.stamp_ns)
                if match is not None and event.stamp_ns in used_ns:
                    pose = match.pose
                    pose_filter.add_match(replace(match, pose=Pose2D(
                        pose.x_m + shift_m[0], pose.y_m + shift_m[1], pose.yaw_rad)))
                estimate = pose_filter.estimate_at(event.stamp_ns)
                if estimate is not None and event.stamp_ns >= self._first_ns:
                    found.append(estimate)
            elif isinstance(event, (GnssFix, OdometrySample)):
                pose_filter.add(event)
        return estimates_of(found, self._truth, TRUTH_MAX_GAP_S)


def figures(drives: list[RecordedDrive], errors: MatchErrors) -> dict[str, dict]:
    """Coverage, NEES of each axis and median error, with all matches and with few."""
    found = {}
    for name, every in (('dense', 1), ('sparse', SPARSE)):
        parts = [drive.run(errors, every) for drive in drives]
        estimates = pooled(parts)
        sigmas2 = np.mean(normalized_errors(estimates) ** 2, axis=0)
        found[name] = {
            'coverage_95': float(np.mean(estimates.nees <= CHI2_95[3])),
            'least_coverage_95': min(float(np.mean(part.nees <= CHI2_95[3])) for part in parts),
            'median_m': float(np.median(estimates.position_m)),
            'n': len(estimates.stamps_ns), **dict(zip(AXES, sigmas2.round(3).tolist()))}
    return found


# cost = sum over rates of sum over axes log(NEES)^2 + (10 * what coverage lacks)^2
def cost(found: dict[str, dict]) -> float:
    """How far the figures are from honest ones; 0 is perfect."""
    total = 0.0
    for row in found.values():
        total += sum(np.log(max(row[axis], 1e-3)) ** 2 for axis in AXES)
        lacking = max(COVERAGE[0] - row['coverage_95'], row['coverage_95'] - COVERAGE[1], 0.0)
        total += (10.0 * lacking) ** 2
        total += (10.0 * max(DRIVE_COVERAGE - row['least_coverage_95'], 0.0)) ** 2
    return float(total)


def fit(drives: list[RecordedDrive], errors: MatchErrors,
        trials: dict[str, tuple] = TRIALS) -> tuple[MatchErrors, dict]:
    """The errors of least cost, by trying each number in turn, and their figures."""
    @cache
    def judged(trial: MatchErrors) -> dict:
        return figures(drives, trial)

    best = judged(errors)
    for _ in range(ROUNDS):
        before = errors
        for name, values in tqdm(trials.items(), desc='fit', disable=None):
            larger = [value for value in values if value > getattr(errors, name)]
            smaller = [value for value in values[::-1] if value < getattr(errors, name)]
            for way in (larger, smaller):
                for value in way:
                    trial = replace(errors, **{name: value})
                    found = judged(trial)
                    if cost(found) >= cost(best):
                        break
                    errors, best = trial, found
        if errors == before:
            break
    return errors, best


def town_of(folder: Path, weights: Path, kept: Path) -> Town:
    """A rendered drive with ``world`` and ``bag`` in a folder; its map is made in ``kept``.

    Raises OSError or ValueError where they do not serve.
    """
    from benchmarks.demo.stages import build_corridor_map

    network = load_network(weights)
    made_by = network.fingerprint[:12]
    map_path = kept / f'{folder.name}_{made_by}.map'
    if not map_path.exists():
        routes = sorted((folder / 'world').glob('*/gps/ins.csv'))
        if not routes:
            raise FileNotFoundError(f'{folder}/world/*/gps/ins.csv is missing; expected a '
                                    'rendered drive of training.simulation')
        kept.mkdir(parents=True, exist_ok=True)
        with write_atomically(map_path) as partial:
            build_corridor_map(folder / 'world', routes[0], network, partial)
    return town_from_bag(folder.name, folder / 'bag', map_path, weights, NodeConfig(),
                         kept / f'{folder.name}_{made_by}.npz')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.fusion.fit_match_errors', description=__doc__,
        epilog='example: python -m benchmarks.fusion.fit_match_errors --weights new.safetensors')
    parser.add_argument('--weights', type=Path, required=True,
                        help='dense weights; match_errors is written into this file')
    parser.add_argument('--drives', type=Path, nargs='*', default=[],
                        help='rendered drives, each a folder with world/ and bag/; default: the '
                        'towns of --seeds are made')
    parser.add_argument('--seeds', type=int, nargs='*', default=[210, 211, 212],
                        help='towns to fit on; never those that are reported')
    parser.add_argument('--duration-s', type=float, default=130.0, help='of each made drive')
    parser.add_argument('--kept', type=Path, default=Path('build/fusion/fit'),
                        help='folder of maps and views; a killed run goes on from there')
    parser.add_argument('--params-file', type=Path, default=REPOSITORY / 'config/robotcar.yaml')
    parser.add_argument('--dry-run', action='store_true', help='print, and leave the file alone')
    return run_command(parser, arguments, run)


def run(args: argparse.Namespace) -> None:
    """Fit the errors, print them with their figures, and write them into the weights file."""
    torch.set_num_threads(1)
    config = read_parameters(args.params_file)[1]
    towns = [town_of(folder, args.weights, args.kept) for folder in args.drives] or [
        town_from_seed(args.kept / f'town_{seed}', seed, args.duration_s, args.weights, jobs=1)
        for seed in args.seeds]
    before = towns[0].loaded.matcher.errors
    drives = [RecordedDrive(town, config) for town in towns]
    errors, found = fit(drives, before)
    print(json.dumps({'before': {'errors': vars(before), **figures(drives, before)},
                      'fitted': {'errors': vars(errors), **found}}, indent=1))
    if not args.dry_run:
        write_match_errors(args.weights, errors)


if __name__ == '__main__':
    sys.exit(main())
