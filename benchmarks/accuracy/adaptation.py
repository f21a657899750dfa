"""Adapt weights to drives without truth and to real pictures, beside controls.

Simulation: drives through one town with wandering GNSS; the last one, on other streets, is the
test, judged by its truth.  Controls: training with the true poses, with GNSS as if it were the
truth, and with the images of the drives shuffled, which must be refused.  Real pictures: the pairs
of CVUSA and CVACT, whose labels are good to 1 to 4 m; judged on the pairs of other sources.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
import json
from pathlib import Path
import platform
import sys
import time

import cv2
import numpy as np
import torch

from benchmarks import REPOSITORY
from benchmarks.accuracy import real_pairs
from benchmarks.accuracy.single_frames import WEIGHTS
from crossview_localizer.networks.checkpoint import load_network, save_network
from training.adapt import adapt, Adaptation, CONFIG, network_to_begin_with, NoGain
from training.data.datasets import load_world, save_world, World, WorldFiles
from training.data.own_drives import prepare_drives
from training.data.real_pairs import read_views, View
from training.evaluation.held_out import judge_frames, summary
from training.evaluation.overhead_raster import imagery_of
from training.loop import train
from training.recipes.pose_likelihood import PoseLikelihoodConfig, PoseLikelihoodRecipe
from training.recipes.smoothed_drives import estimate_offsets

REAL_STEPS = 400
PARTS = ('simulation', 'real')
EXACT = 0.05 ** 2 * np.eye(2)   # the covariance of poses that are taken for true
OTHER_STREETS_M = 30.0          # test frames are farther than this from all frames for training
SOURCES = {'cvusa': ('cvusa_native', 'cvusa_crop256'), 'cvact': ('cvact_256', 'cvact_native')}
REAL_ROWS = {'adapted': ('cvusa', 'cvact'), 'cvusa_only': ('cvusa',), 'cvact_only': ('cvact',)}
JUDGED_BY = ('dayton', 'london', 'nuscenes')   # how the names of their sets begin
HELD_OUT_PLACES = 6             # of the real places every sixth is held out


# --- simulation


def simulate_drives(folder: Path, seed: int, duration_s: float) -> tuple[list[Path], Path]:
    """Three bags through a simulated town on three days, and its orthophoto."""
    from crossview_localizer.bags.robotcar_bag import convert, Options
    from training.simulation import make_world

    names = make_world(folder, seed, duration_s=duration_s, traversals=3, city_size_m=900.0,
                       image_size=(320, 240))
    bags = []
    for name in names:
        bags.append(folder / 'bags' / name)
        if not bags[-1].exists():
            bags[-1].parent.mkdir(exist_ok=True)
            convert(Options(folder / name, folder / 'models', folder / 'extrinsics', bags[-1],
                            folder / 'rtk' / name / 'rtk.csv'), progress=False)
    return bags, folder / 'orthophoto.tif'


def simulation(bags: list[Path], orthophoto: Path, init: Path, work: Path, steps: int,
               hours: float, names: list[str]) -> dict[str, dict]:
    """The rows of these names for the test drive: the last bag, or if there is one bag its
    held-out places.
    """
    from crossview_localizer.bags.topics import Topics
    from crossview_localizer.config import LocalizerConfig, NodeConfig
    from training.prepare import prepare

    px_m = load_network(init).config.px_m
    prepared = work / 'prepared'
    train_files, held_out_files = prepare_drives(
        bags[:-1] or bags, [orthophoto], prepared, px_m, NodeConfig(), LocalizerConfig(), Topics())
    if len(bags) > 1:
        test = [other_streets(
            prepare(bags[-1:], [orthophoto], 'test', px_m, 3.0, lambda text: None), train_files)]
    else:
        test = [with_true_poses(load_world(path)) for path in held_out_files]

    def judged(weights: Path) -> dict:
        row = summary(judge_frames(load_network(weights), test, 300))
        return {key: row[key] for key in ('median_m', 'evidence_nats', 'coverage_95', 'n')}

    def adapted(name: str, change: Callable[[World], World]) -> dict:
        folder = work / name
        files = [rewrite(paths, folder / part, change)
                 for paths, part in ((train_files, 'train'), (held_out_files, 'held_out'))]
        adaptation = Adaptation(init, *files, folder, steps=steps, hours=hours,
                                validations=max(2, steps // 30) if 0 < steps < 300 else 10)
        try:
            adapt(adaptation)
            refused = ''
        except NoGain as reason:
            refused = str(reason)
        row = judged(adaptation.weights) | {'refused': bool(refused), 'reason': refused}
        if name == 'adapted':
            row |= training_pose_errors(adaptation)
        return row

    rows = {'before': judged(init)}
    for name in names:
        rows[name] = adapted(name, CHANGES[name])
        print(name, rows[name], flush=True)
    return rows


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


def other_streets(test: World, train_files: list[Path]) -> World:
    """The frames of a test drive that are far from all places of training."""
    seen_m = np.concatenate([load_world(path).poses[:, :2] for path in train_files])
    far = np.array([np.hypot(*(seen_m - pose[:2]).T).min() > OTHER_STREETS_M
                    for pose in test.poses])
    if far.sum() < 30:
        raise ValueError(f'{far.sum()} test frames lie on other streets; expected at least 30')
    return with_exact_poses(replace(
        test, images=test.images[far], poses=test.poses[far], drive=test.drive[far],
        true_poses=test.poses[far]))


# --- real pictures


def world_of(view: View, px_m: float, cell_px: int) -> World:
    """One view with its overhead picture, as far as that reaches, and its label's accuracy."""
    rgb, grid = imagery_of(view.overhead, px_m, cell_px)
    return World(view.overhead.name, rgb, grid, view.image.rgb[None], view.image.camera,
                 view.truth.as_array()[None], np.zeros(1, int),
                 view.accuracy_m ** 2 * np.eye(2)[None])


def real(init: Path, work: Path, pairs: Path, steps: int, every: int,
         names: list[str]) -> dict[str, dict]:
    """The rows of these names, and that of the first weights, for each set to judge by."""
    views = [view for view in read_views(pairs)
             if any(view.set in sets for sets in SOURCES.values())]
    judged_by = sorted(name for name in real_pairs.views_by_set(pairs)
                       if name.startswith(JUDGED_BY))
    rows: dict[str, dict] = {name: {} for name in judged_by}

    def judge(weights: Path, row: str) -> None:
        for name, found in real_pairs.score(weights, judged_by, pairs, every).items():
            rows[name][row] = {key: found[key] for key in (
                'median_m', 'lateral_median_m', 'evidence_nats', 'coverage_95', 'n')}

    judge(init, 'before')
    for row in names:
        chosen = [view for view in views if any(view.set in SOURCES[s] for s in REAL_ROWS[row])]
        judge(adapted_to_pairs(init, work / row, chosen, steps), row)
        print(row, json.dumps({name: found[row] for name, found in rows.items()}), flush=True)
    return rows


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


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'adapt.json'
    result = json.loads(path.read_text()) if path.is_file() else {}
    result['device'] = platform.processor() or platform.machine()
    for part in args.parts:
        started_s = time.monotonic()
        if part == 'simulation':
            if args.bags:
                bags, orthophoto = args.bags, args.orthophoto
            else:
                bags, orthophoto = simulate_drives(
                    args.work / 'town', args.seed, args.duration_s)
            result['simulation_data'] = (
                f'{len(bags)} drives of one town' if len(bags) > 1 else
                f'one drive ({bags[0].parent.name}), judged on its held-out places')
            result['simulation'] = result.get('simulation', {}) | simulation(
                bags, orthophoto, args.init, args.work, args.steps, args.hours, args.rows)
        else:
            result['real'] = real(
                args.init, args.work / 'real', args.pairs, args.steps or REAL_STEPS, args.every,
                args.real_rows)
        result[f'{part}_weights'] = load_network(args.init).fingerprint[:12]
        result[f'{part}_steps'] = args.steps or (0 if part == 'simulation' else REAL_STEPS)
        result[f'{part}_hours'] = round((time.monotonic() - started_s) / 3600.0, 2)
        result['hours'] = sum(result.get(f'{name}_hours', 0.0) for name in PARTS)
        path.write_text(json.dumps(result, indent=1) + '\n')
    print(f'{path}')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.adaptation', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.adaptation --parts real --steps 150')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument('--rows', nargs='+', choices=CHANGES, default=list(CHANGES),
                        help='only these rows of the simulation')
    parser.add_argument('--real-rows', nargs='+', choices=REAL_ROWS, default=list(REAL_ROWS),
                        help='only these rows of the real pictures')
    parser.add_argument('--init', type=Path, default=WEIGHTS, help='weights to begin with')
    parser.add_argument('--steps', type=int, default=0,
                        help='steps of each training (default: as many as --hours allow; 400 on '
                        'real pictures)')
    parser.add_argument('--hours', type=float, default=1.8, help='of one adaptation')
    parser.add_argument('--seed', type=int, default=9400, help='of the simulated town')
    parser.add_argument('--duration-s', type=float, default=600.0, help='of each of three drives')
    parser.add_argument('--bags', nargs='+', type=Path,
                        help='drives with truth instead of simulated ones; the last is the test')
    parser.add_argument('--orthophoto', type=Path, help='of these drives')
    parser.add_argument('--pairs', type=Path, default=real_pairs.default_folder(),
                        help='folder of real pairs (docs/real_pairs.md)')
    parser.add_argument('--every', type=int, default=1,
                        help='score every so many views of the real pictures')
    parser.add_argument('--work', type=Path, default=REPOSITORY / 'build/adapt',
                        help='folder of drives, files and weights; weights are never shipped')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'docs/results',
                        help='folder of adapt.json')
    args = parser.parse_args(arguments)
    try:
        if args.bags and not args.orthophoto:
            raise ValueError('--bags without --orthophoto; expected the imagery of the drives')
        run(args)
    except (ValueError, OSError) as error:
        print(f'benchmarks.accuracy.adaptation: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
