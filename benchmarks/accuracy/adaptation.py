"""Adapt weights to drives without truth and to real pictures, beside controls.

Simulation: three drives with wandering GNSS through a region that the shipped weights never saw;
the last one, on other streets, is the test, judged by its truth.  Controls: training with the true
poses, with GNSS as if it were the truth, and with the images of the drives shuffled, which must be
refused.  Real pictures: the pairs of CVUSA and CVACT, whose labels are good to 1 to 4 m; judged on
the pairs of other sources.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
import json
import math
from pathlib import Path
import sys
import time

import cv2
import numpy as np
from scipy.spatial import cKDTree
import torch

from benchmarks import cpu_name, DENSE_WEIGHTS, REPOSITORY
from benchmarks.accuracy import real_pairs
from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import load_network, save_network
from training.adapt import (
    adapt,
    Adaptation,
    CONFIG,
    HELD_OUT_FRAMES,
    LIKELIHOOD,
    network_to_begin_with,
    NoGain,
)
from training.data.datasets import load_world, save_world, World, WorldFiles
from training.data.own_drives import prepare_drives
from training.data.real_pairs import read_views, View
from training.evaluation.held_out import judge_frames, summary
from training.evaluation.overhead_raster import imagery_of
from training.localize_drives import localize_drive
from training.loop import train
from training.recipes.pose_likelihood import PoseLikelihoodConfig, PoseLikelihoodRecipe
from training.recipes.smoothed_drives import estimate_offsets, OffsetConfig

REAL_STEPS = 400
PARTS = ('simulation', 'real')
EXACT = 0.05 ** 2 * np.eye(2)   # the covariance of poses that are taken for true
TEST_FRAMES, MIN_TEST_FRAMES = 300, 30
OTHER_STREETS_M = 30.0          # test frames are farther than this from all frames for training
SOURCES = {'cvusa': ('cvusa_native', 'cvusa_crop256'), 'cvact': ('cvact_256', 'cvact_native')}
REAL_ROWS = {'before': (), 'adapted': ('cvusa', 'cvact'), 'cvusa_only': ('cvusa',),
             'cvact_only': ('cvact',)}
JUDGED_BY = ('dayton', 'london', 'nuscenes')   # how the names of their sets begin
HELD_OUT_PLACES = 6             # every sixth of the real places is held out


# --- simulation


def region():
    """A region, a season and a camera that the shipped weights never saw.

    Red earth, pale roads, other walls and wide blocks; snow on all drives and none on the imagery;
    a camera at 2.3 m with 130 degrees of view, where training has at most 105.
    """
    from training.simulation.region import Region

    return Region(camera_height_m=2.3, view_deg=130.0, block_m=(95.0, 170.0), red_earth=True,
                  snow=0.85)


def simulate_drives(folder: Path, seed: int, duration_s: float, rate_hz: float,
                    jobs: int = 1) -> tuple[list[Path], Path]:
    """Three bags through the region on three winter days, and its orthophoto of another season."""
    from crossview_localizer.bags.robotcar_bag import convert, Options
    from training.simulation import make_world

    # Streets in proportion to the way that is driven, so that others are left for the test.
    city_size_m = round(58.0 * math.sqrt(duration_s), -1)
    names = make_world(folder, seed, duration_s=duration_s, rate_hz=rate_hz, traversals=3,
                       city_size_m=city_size_m, image_size=(320, 240), ortho_px_m=0.25, jobs=jobs,
                       region=region())
    bags = []
    for name in names:
        bags.append(folder / 'bags' / name)
        if not bags[-1].exists():
            bags[-1].parent.mkdir(exist_ok=True)
            convert(Options(folder / name, folder / 'models', folder / 'extrinsics', bags[-1],
                            folder / 'rtk' / name / 'rtk.csv'), progress=False)
    return bags, folder / 'orthophoto.tif'


def simulation(bags: list[Path], orthophoto: Path, init: Path, work: Path, steps: int,
               hours: float, share: float, names: list[str], config,
               ) -> Iterator[tuple[str, dict]]:
    """Name and values of each row, for the test drive.

    That is the last bag, or if there is one bag its held-out places.  ``share`` of the usual
    number of frames is scored.  ``config`` is the LocalizerConfig with the camera's height.
    """
    from crossview_localizer.bags.topics import Topics
    from crossview_localizer.config import NodeConfig
    from training.prepare import prepare

    px_m = load_network(init).config.px_m
    train_files, held_out_files = prepare_drives(
        bags[:-1] or bags, [orthophoto], work / 'prepared', px_m, NodeConfig(), config, Topics())
    if len(bags) > 1:
        seen_m = np.concatenate([
            load_world(path).poses[:, :2] for path in (*train_files, *held_out_files)])
        test = [other_streets(
            prepare(bags[-1:], [orthophoto], 'test', px_m, 3.0, lambda text: None), seen_m,
            config.camera.height_m)]
    else:
        test = [with_true_poses(load_world(path)) for path in held_out_files]

    def judged(weights: Path, name: str) -> dict:
        row = summary(judge_frames(load_network(weights), test, round(share * TEST_FRAMES)))
        row = {key: row[key] for key in ('median_m', 'evidence_nats', 'coverage_95', 'n')}
        if len(bags) > 1 and name != 'shuffled':
            row |= filtered(bags[-1], orthophoto, weights, work, seen_m, config)
        return row

    for name in names:
        if name == 'before':
            yield name, judged(init, name)
            continue
        folder = work / name
        files = [rewrite(paths, folder / part, CHANGES[name])
                 for paths, part in ((train_files, 'train'), (held_out_files, 'held_out'))]
        adaptation = Adaptation(init, *files, folder, steps=steps, hours=hours,
                                validations=max(2, steps // 60) if 0 < steps < 600 else 10,
                                **scored(share))
        try:
            adapt(adaptation)
            refused = ''
        except NoGain as reason:
            refused = str(reason)
        row = judged(adaptation.weights, name) | {'refused': bool(refused), 'reason': refused}
        yield name, row | training_pose_errors(adaptation) if name == 'adapted' else row


def scored(share: float) -> dict:
    """The fields of an Adaptation that scores this share of the usual number of frames."""
    return {
        'held_out_frames': round(share * HELD_OUT_FRAMES),
        'offsets': OffsetConfig(frames=round(share * OffsetConfig.frames),
                                confidence_frames=round(share * OffsetConfig.confidence_frames)),
        'likelihood': replace(LIKELIHOOD, validation_groups=round(
            share * LIKELIHOOD.validation_groups))}


def filtered(bag: Path, orthophoto: Path, weights: Path, work: Path, seen_m: np.ndarray,
             config) -> dict:
    """Error and coverage of the filter's pose on the streets of a drive that are not ``seen_m``.
    """
    from crossview_localizer import build_map
    from crossview_localizer.config import NodeConfig
    from crossview_localizer.evaluation.pose_metrics import metrics_by_row

    map_path = work / f'{load_network(weights).fingerprint[:12]}.map'
    if not map_path.exists() and build_map.main([
            str(orthophoto), '--weights', str(weights), '--route', str(bag),
            '--out', str(map_path)]):
        raise ValueError(f'no map of {orthophoto} could be built; the lines above say why')
    found = localize_drive(bag, map_path, str(weights), None, NodeConfig(), config)
    row = metrics_by_row(replace(
        found, evaluated=found.evaluated & far_from(found.truth.poses, seen_m)))['refined']
    return {'filter_median_m': row['median_m'], 'filter_coverage_95': row['coverage_95'],
            'filter_n': row['n']}


def training_pose_errors(adaptation: Adaptation) -> dict[str, float]:
    """Median errors of the poses that were learned from: smoothed, and with their slow offset."""
    files = WorldFiles(adaptation.train_files)
    network = load_network(adaptation.weights)
    [(offsets_m, _)] = estimate_offsets(
        network, [files], adaptation.offsets, network.config.match_errors)
    frames = [files.frames(number) for number in range(len(files))]
    errors_m = np.concatenate([
        (found['poses'] - found['true_poses'])[:, :2] for found in frames])
    return {'smoothed_poses_m': float(np.nanmedian(np.hypot(*errors_m.T))),
            'corrected_poses_m': float(np.nanmedian(np.hypot(*(errors_m + offsets_m).T)))}


def rewrite(paths: list[Path], folder: Path, change: Callable[[World], World]) -> list[Path]:
    """Write changed copies of prepared files."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        save_world(change(load_world(path)), folder / path.name)
    return [folder / path.name for path in paths]


def with_true_poses(world: World) -> World:
    known = np.isfinite(world.true_poses).all(1)
    return with_exact_poses(replace(
        world, images=world.images[known], poses=world.true_poses[known], drive=world.drive[known],
        stamps_ns=world.stamps_ns[known], true_poses=world.true_poses[known]))


def with_exact_poses(world: World) -> World:
    return replace(world, pose_covariances=np.repeat(EXACT[None], len(world.poses), 0))


def shuffled(world: World) -> World:
    """The images of a file in another order, at least a third of the file from their places."""
    return replace(world, images=np.roll(world.images[::-1], len(world.images) // 3, 0))


# What each row changes in the prepared files.
CHANGES: dict[str, Callable[[World], World]] = {
    'adapted': lambda world: world, 'true_poses': with_true_poses,
    'gnss_as_truth': with_exact_poses, 'shuffled': shuffled}


def other_streets(test: World, seen_m: np.ndarray, camera_height_m: float) -> World:
    """The frames of a test drive that are far from all frames that were learned from."""
    far = far_from(test.poses, seen_m)
    if far.sum() < MIN_TEST_FRAMES:
        raise ValueError(f'{far.sum()} test frames lie on other streets; expected at least '
                         f'{MIN_TEST_FRAMES}')
    return with_exact_poses(replace(
        test, images=test.images[far], poses=test.poses[far], drive=test.drive[far],
        true_poses=test.poses[far], camera=replace(test.camera, height_m=camera_height_m)))


def far_from(poses: np.ndarray, seen_m: np.ndarray) -> np.ndarray:
    """Which poses (N, 3) are farther than OTHER_STREETS_M from all places (M, 2)."""
    known = np.isfinite(poses[:, :2]).all(1)
    nearest_m, _ = cKDTree(seen_m).query(np.where(known[:, None], poses[:, :2], 0.0))
    return known & (nearest_m > OTHER_STREETS_M)


# --- real pictures


def world_of(view: View, px_m: float, cell_px: int) -> World:
    """One view with its overhead picture, as far as that reaches, and its label's accuracy."""
    rgb, grid = imagery_of(view.overhead, px_m, cell_px)
    return World(view.overhead.name, rgb, grid, view.image.rgb[None], view.image.camera,
                 view.truth.as_array()[None], np.zeros(1, int),
                 view.accuracy_m ** 2 * np.eye(2)[None])


def real(init: Path, work: Path, pairs: Path, steps: int, every: int,
         names: list[str]) -> Iterator[tuple[str, dict]]:
    """Name and values for each set of each row."""
    views = [view for view in read_views(pairs)
             if any(view.set in sets for sets in SOURCES.values())]
    judged_by = sorted(name for name in real_pairs.views_by_set(pairs)
                       if name.startswith(JUDGED_BY))

    def judged(weights: Path) -> dict:
        return {name: {key: found[key] for key in (
            'median_m', 'lateral_median_m', 'evidence_nats', 'coverage_95', 'n')}
            for name, found in real_pairs.score(weights, judged_by, pairs, every).items()}

    for row in names:
        chosen = [view for view in views if any(view.set in SOURCES[s] for s in REAL_ROWS[row])]
        yield row, judged(adapted_to_pairs(init, work / row, chosen, steps) if chosen else init)


def adapted_to_pairs(init: Path, folder: Path, views: list[View], steps: int) -> Path:
    """Train on pairs with the accuracy of their labels; some places are held out for validation.
    """
    network = network_to_begin_with(init)
    config = network.config
    places = sorted({view.overhead.name for view in views})
    held_out = set(places[::HELD_OUT_PLACES])
    worlds = [(view.overhead.name in held_out, world_of(view, config.px_m, config.cell_px))
              for view in views]
    recipe = PoseLikelihoodRecipe(
        PoseLikelihoodConfig(groups=4, group_size=1, validation_groups=24), config, 0,
        [world for is_out, world in worlds if not is_out],
        [world for is_out, world in worlds if is_out])
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / 'adapted.safetensors'
    train(network, recipe, replace(CONFIG, steps=steps, validate_steps=max(1, steps // 3),
                                   average_steps=50), weights, {'data': 'pairs, research only'},
          validate_first=True)
    # The claims of a single image are those that the first weights made.
    trained, first = load_network(weights), load_network(init)
    trained.config = replace(
        trained.config, sharpening=first.config.sharpening, min_mass=first.config.min_mass)
    save_network(trained, weights, {'data': 'pairs, research only'})
    return weights


# --- the command


def store(result: dict, part: str, row: str, values: dict, made_with: dict,
          hours: float) -> None:
    """Add a row to those of this part, which are dropped where they were made with other things.

    ``values`` of real pictures are those of each set.
    """
    if any(result.get(f'{part}_{name}') != value for name, value in made_with.items()):
        result |= {part: {}, f'{part}_hours': 0.0}
        result |= {f'{part}_{name}': value for name, value in made_with.items()}
    if part == 'real':
        for name, found in values.items():
            result[part].setdefault(name, {})[row] = found
    else:
        result[part][row] = values
    result[f'{part}_hours'] = round(result[f'{part}_hours'] + hours, 3)
    result['hours'] = round(sum(result.get(f'{name}_hours', 0.0) for name in PARTS), 2)


def simulated(args: argparse.Namespace, weights: str) -> tuple[Iterator, dict]:
    """The rows of the simulation, as they are found, and what they are made with."""
    from crossview_localizer.config import LocalizerConfig

    config = LocalizerConfig()
    if args.bags:
        bags, orthophoto = args.bags, args.orthophoto
        data = (f'{len(bags)} drives of {bags[0].parent.name}' if len(bags) > 1 else
                f'one drive ({bags[0].parent.name}), judged on its held-out places')
    else:
        bags, orthophoto = simulate_drives(
            args.work / 'town', args.seed, args.duration_s, args.rate_hz, args.jobs)
        config = replace(config, camera=replace(
            config.camera, height_m=region().camera_height_m))
        data = (f'region {args.seed}, red earth and snow, wide lens at 2.3 m: two drives of '
                f'{args.duration_s:g} s with {args.rate_hz:g} images a second, and a third to '
                'judge by')
    return (simulation(bags, orthophoto, args.init, args.work, args.steps, args.hours,
                       args.scored_share, args.rows, config),
            {'weights': weights, 'steps': args.steps, 'data': data})


def run(args: argparse.Namespace) -> None:
    if args.bags and not args.orthophoto:
        raise ValueError('--bags without --orthophoto; expected the imagery of the drives')
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'adapt.json'
    weights = load_network(args.init).fingerprint[:12]
    for part in args.parts:
        started_s = time.monotonic()
        if part == 'simulation':
            found, made_with = simulated(args, weights)
        else:
            steps = args.steps or REAL_STEPS
            made_with = {'weights': weights, 'steps': steps}
            found = real(args.init, args.work / 'real', args.pairs, steps, args.every,
                         args.real_rows)
        for row, values in found:
            print(row, json.dumps(values), flush=True)
            # Another process may have added its rows meanwhile.
            result = json.loads(path.read_text()) if path.is_file() else {}
            result['device'] = cpu_name()
            store(result, part, row, values, made_with,
                  (time.monotonic() - started_s) / 3600.0)
            started_s = time.monotonic()
            path.write_text(json.dumps(result, indent=1) + '\n')
    print(f'{path}')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.adaptation', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.adaptation --parts real --steps 150')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS,
                        help='measure only these parts')
    parser.add_argument('--rows', nargs='+', choices=['before', *CHANGES],
                        default=['before', *CHANGES],
                        help='score only these rows of the simulation')
    parser.add_argument('--real-rows', nargs='+', choices=REAL_ROWS, default=list(REAL_ROWS),
                        help='score only these rows of the real pictures')
    parser.add_argument('--init', type=Path, default=DENSE_WEIGHTS, help='weights to begin with')
    parser.add_argument('--steps', type=int, default=0,
                        help='steps of each training (default: as many as --hours allow; 400 on '
                        'real pictures)')
    parser.add_argument('--hours', type=float, default=1.8,
                        help='longest time of one adaptation (default 1.8)')
    parser.add_argument('--scored-share', type=float, default=1.0,
                        help='score this share of the usual number of frames (default 1)')
    parser.add_argument('--seed', type=int, default=9400, help='seed of the simulated town')
    parser.add_argument('--duration-s', type=float, default=600.0,
                        help='length of each of the three drives (default 600)')
    parser.add_argument('--jobs', type=int, default=1, help='rendering processes')
    parser.add_argument('--rate-hz', type=float, default=4.0, help='images a second of the drives')
    parser.add_argument('--bags', nargs='+', type=Path,
                        help='drives with truth instead of simulated ones; the test is the last')
    parser.add_argument('--orthophoto', type=Path, help='imagery of the drives of --bags')
    parser.add_argument('--pairs', type=Path, default=real_pairs.default_folder(),
                        help='folder of real pairs (docs/real_pairs.md)')
    parser.add_argument('--every', type=int, default=1,
                        help='score only every N-th view of the real pictures')
    parser.add_argument('--work', type=Path, default=REPOSITORY / 'build/adapt',
                        help='folder of drives, prepared files and weights')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'docs/results',
                        help='folder of adapt.json')
    return run_command(parser, arguments, run)


if __name__ == '__main__':
    sys.exit(main())
