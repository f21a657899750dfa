"""Errors of single frames of the dense matcher in simulated cities that it never saw.

The table also has the paper's matcher and controls.  Protocol: images of 231 x 154 px, on another
day than the orthophoto, at least 5 m apart; the prior is off by up to 18.5 m on each axis and by
up to 10 degrees.  The paper's matcher has tiles 1.5 m apart and the temperature that was fitted on
validation drives.  ``shuffled_images`` is the dense matcher with the image of a frame at least
200 m away (in a short drive, of the farthest frame); ``blind_trained``, if its weights are given,
is a network that was trained on grey images; ``image_blind`` is the better of the two.
"""

import argparse
import hashlib
import json
from pathlib import Path
import sys

import numpy as np
import torch

from benchmarks import cpu_name, DENSE_WEIGHTS, REPOSITORY, TILE_WEIGHTS
from benchmarks.accuracy.frame_estimates import (
    FrameEstimate,
    read_estimates,
    summarize,
    table,
    with_image_blind,
    write_estimates,
)
from benchmarks.accuracy.frame_trials import run_trials, WeightsFiles, world_part
from crossview_localizer.command import run_command
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.parameter_file import read_parameters
from training.data.datasets import load_world

RESULT = REPOSITORY / 'docs/results/dense.json'
# A real layout is driven for LAYOUT_S, or less if its town would be wider than LAYOUT_SIDE_M.
LAYOUT_S, LAYOUT_SIDE_M = 240.0, 1000.0
WARPED_FRAMES = 60            # per world


def demo_estimates(demo: Path, paper_weights: Path) -> list[FrameEstimate]:
    """The filtered poses of a finished demo at every image: node, controls, paper's matcher.

    Those of the node and the controls come from ``frames.csv``; the paper's matcher is run here,
    by the offline Localizer on the same bag with a map of its own.
    """
    from benchmarks.demo.ros_run import PARAMETERS
    from benchmarks.demo.stages import build_corridor_map
    from crossview_localizer.bags import replay
    from crossview_localizer.bags.drive import read_drive
    from crossview_localizer.evaluation import pose_metrics
    from crossview_localizer.localizer import load_localizer

    judged = pose_metrics.read_comparison(demo / 'frames.csv')
    node_config, config = read_parameters(PARAMETERS)
    network = load_network(paper_weights)
    map_path = demo / 'maps/paper.map'
    if not map_path.exists():
        route = next((demo / 'world').glob('*/gps/ins.csv'))
        build_corridor_map(demo / 'world', route, network, map_path)
    localizer = load_localizer(map_path, paper_weights, config)
    drive = read_drive(demo / 'bag', localizer.frame, node_config)
    localized = list(replay.localize(demo / 'bag', localizer, node_config))
    rows = {
        'dense': judged.rows['refined'], 'image_blind': judged.rows['image_blind'],
        'prior_centre': judged.rows['prior'], 'random_init': judged.rows['random_init'],
        'raw_correlation': judged.rows['raw_correlation'],
        'paper': pose_metrics.propagate(
            replay.posteriors(localized), drive.odometry, judged.truth.stamps_ns)}
    found = []
    for method, track in rows.items():
        for line in np.flatnonzero(judged.evaluated & np.isfinite(track.poses).all(1)):
            estimate = PoseEstimate(
                int(track.stamps_ns[line]), track.pose(line), track.covariances[line])
            found.append(FrameEstimate(
                demo.name, int(line), method, judged.truth.pose(line), estimate, False))
    return found


def merge(run: Path, kept: Path) -> None:
    """Add the parts that a run measured to a kept file, or replace one of other weights."""
    new = json.loads(run.read_text())
    old = json.loads(kept.read_text()) if kept.is_file() else {}
    if old.get('weights') == new['weights']:
        new = {**old, **new, 'world_hash': {**old['world_hash'], **new['world_hash']}}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(new, indent=1) + '\n')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.single_frames', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.single_frames '
        '--worlds runs/test/world_40*.npz')
    parser.add_argument('--worlds', nargs='*', type=Path, default=[],
                        help='prepared test worlds (training.simulate --px-m 0.25 --rate-hz 1)')
    parser.add_argument('--layouts', nargs='*', type=Path, default=[],
                        help='real layouts: folders (see training.simulation --layout) to render '
                        'into OUT first, or prepared worlds')
    parser.add_argument('--demos', nargs='*', type=Path, default=[],
                        help='folders of finished demos, for the part "filtered"')
    parser.add_argument('--seeds', nargs='*', type=int, default=[],
                        help='render these worlds first, into OUT')
    parser.add_argument('--layout-seed', type=int, default=1,
                        help='seed of what a layout leaves open: heights, looks, days (default 1)')
    parser.add_argument('--weights', type=Path, default=DENSE_WEIGHTS,
                        help='weights of the dense matcher')
    parser.add_argument('--paper-weights', type=Path, default=TILE_WEIGHTS,
                        help='weights of the tile matcher')
    parser.add_argument('--blind-weights', type=Path,
                        help='weights of training.train_dense --image-blind')
    parser.add_argument('--frames', type=int, help='at most so many frames per world')
    parser.add_argument('--jobs', type=int, default=2, help='processes (default 2)')
    parser.add_argument('--threads', type=int, default=1, help='CPU threads of torch per process')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'build/dense',
                        help='folder of frames.csv.gz and dense.json')
    parser.add_argument('--keep', action='store_true',
                        help='add the parts of this run to docs/results too')
    return run_command(parser, arguments, run)


def render_layout(folder: Path, seed: int, jobs: int, out: Path) -> Path:
    """Render a drive through a real layout unless it is there; returns the prepared world."""
    from training.simulate import simulate
    from training.simulation.layout import needed_size_m, read_layout

    layout = read_layout(folder)
    duration_s = LAYOUT_S
    while duration_s > 60.0 and needed_size_m(layout, 0.0, duration_s) > LAYOUT_SIDE_M:
        duration_s /= 2
    own = out / f'layout_{layout.name}_{layout.sha256[:8]}_{layout.px_per_m:.3f}'
    own.mkdir(exist_ok=True)
    return simulate(seed, own, (320, 240), 1.0, duration_s, 1, jobs, 0.25, folder)


def run(args: argparse.Namespace) -> None:
    from training.simulate import simulate

    if not (args.worlds or args.layouts or args.seeds or args.demos):
        raise ValueError('no world is given; expected --worlds, --seeds, --layouts or --demos')
    for name in ('jobs', 'threads', 'frames'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f'--{name} {getattr(args, name)}; expected at least 1')
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    files = WeightsFiles(args.weights, args.paper_weights, args.blind_weights)
    fingerprints = files.fingerprints()
    layouts = [render_layout(path, args.layout_seed, args.jobs, args.out) if path.is_dir()
               else path for path in args.layouts]
    worlds = args.worlds + [
        simulate(seed, args.out, (320, 240), 1.0, 130.0, 2, args.jobs, 0.25)
        for seed in args.seeds]
    result = {'device': cpu_name(),
              'weights': fingerprints[:2], 'torch': torch.__version__, 'threads': args.threads}
    if args.blind_weights:
        result['blind_weights'] = fingerprints[2]
    warped_count = min(args.frames or WARPED_FRAMES, WARPED_FRAMES)
    parts = {
        part: [world_part(part, path, number, warp_seed, count, fingerprints, args.out)
               for number, path in enumerate(paths)]
        for part, paths, warp_seed, count in (
            ('synthetic', worlds, None, args.frames), ('warped', worlds, 5, warped_count),
            ('real_layout', layouts, None, args.frames))}
    run_trials([world for part in parts.values() for world in part], files, args.jobs,
               args.threads)
    every, hashes = [], {}
    for part, found in parts.items():
        estimates = with_image_blind([
            estimate for world in found for file, _ in world.chunks()
            for estimate in read_estimates(file)])
        if estimates:
            digest = hashlib.sha256()
            for world in found:
                digest.update(load_world(world.path).imagery.tobytes())
            hashes[part] = digest.hexdigest()[:16]
            result[part] = summarize(estimates)
            print(f'\n{part} (SIMULATION)\n{table(result[part])}', flush=True)
        every += estimates
    if args.demos:
        estimates = [estimate for demo in args.demos
                     for estimate in demo_estimates(demo, args.paper_weights)]
        result['filtered'] = summarize(estimates)
        print(f'\nfiltered (SIMULATION)\n{table(result["filtered"])}', flush=True)
        every += estimates
    result['world_hash'] = hashes
    write_estimates(every, args.out / 'frames.csv.gz')
    text = json.dumps(result, indent=1) + '\n'
    (args.out / 'dense.json').write_text(text)
    if args.keep:
        merge(args.out / 'dense.json', RESULT)
    print(f'\n{args.out / "dense.json"}, {args.out / "frames.csv.gz"}')


if __name__ == '__main__':
    sys.exit(main())
