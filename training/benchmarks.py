"""Score our matchers on the field's benchmarks, beside the published figures.

What to download, how it lies in folders and what is printed: docs/field_benchmarks.md.
"""

import argparse
import csv
import gzip
import json
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import load_network, prepare_torch
from crossview_localizer.networks.dense import DENSE
from training.data.benchmark_frames import Frames
from training.data.cvact import cvact_places
from training.data.kitti_frames import kitti_frames, PUBLISHED_COUNTS, SPLIT_FILES
from training.data.oxford import read_splits
from training.data.oxford_patches import oxford_patches
from training.evaluate_retrieval import evaluate
from training.evaluation.pose_benchmark import (
    estimates,
    pose_scores,
    PUBLISHED,
    ROWS,
    rows_of,
    signed_errors,
    table,
)
from training.evaluation.recall import recall
from training.localize_drives import WEIGHTS

DEFAULT_ROWS = ('dense', 'prior_centre', 'image_blind')
CVACT_RADIUS_M = 100.0
# Recall at 1, 5, 10 and 1 % on CVACT_val: SAFA by its README, Sample4Geo by its paper.
CVACT_PUBLISHED = {'SAFA': (81.03, 92.80, 94.84, 98.17), 'Sample4Geo': (90.8, None, None, None)}
CVACT_HEADS = ('recall@1', '@5', '@10', '@1%')


def score(frames: Frames, rows: dict, device: str, out: Path) -> dict[str, dict[str, float]]:
    """The scores of each row; a line for each frame and row goes to ``out``."""
    errors = {name: [] for name in rows}
    with gzip.open(out, 'wt', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(('row', 'frame', 'longitudinal_m', 'lateral_m', 'heading_deg'))
        with tqdm(total=len(frames) * len(rows), desc=frames.name, unit=' images',
                  mininterval=2.0) as bar:
            for name, view, pose in estimates(frames, rows, device):
                errors[name].append(signed_errors(pose, view.truth))
                writer.writerow((name, view.name, *(f'{v:.4f}' for v in errors[name][-1])))
                bar.update()
    return {name: pose_scores(np.array(values)) for name, values in errors.items()}


def report(benchmarks: list[Frames], args: argparse.Namespace) -> None:
    """Score the dense matcher on each of ``benchmarks``; print tables, write files to --out."""
    device, warning = prepare_torch(args.device, args.threads)
    if warning:
        print(warning)
    network = load_network(args.weights, device)
    if network.config.kind != DENSE:
        raise ValueError(
            f'{args.weights} holds a tile network; expected weights of the dense matcher')
    rows = rows_of(network, args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    result = {}
    for frames in benchmarks:
        used = frames.subset(frames.name, range(0, len(frames), args.every))
        stem = frames.name.replace(' ', '_')
        result[frames.name] = score(used, rows, device, args.out / f'{stem}.csv.gz')
        print(table(frames.name, result[frames.name]), end='\n\n')
    path = args.out / f'{args.benchmark}.json'
    path.write_text(json.dumps({
        'weights': network.fingerprint[:12], 'every': args.every, 'ours': result,
        'published': {name: [vars(paper) for paper in PUBLISHED.get(name, ())]
                      for name in result}}, indent=1) + '\n')
    print(path)


def run_kitti(args: argparse.Namespace) -> None:
    benchmarks = []
    for split in args.split:
        frames = kitti_frames(args.root, args.splits / SPLIT_FILES[split])
        if len(frames) != PUBLISHED_COUNTS[split]:
            print(f'{split}: {len(frames)} images; the published figures are of '
                  f'{PUBLISHED_COUNTS[split]}')
        benchmarks.append(frames.subset(f'kitti {split}', range(len(frames))))
    report(benchmarks, args)


def run_oxford(args: argparse.Namespace) -> None:
    entries = read_splits(args.test, 'test', yaw=args.yaw)
    frames = oxford_patches(entries, args.root, args.map, args.models, args.heading_prior_deg)
    report([frames.subset(f'oxford {drive}', np.flatnonzero(entries.drive == drive))
            for drive in dict.fromkeys(entries.drive.tolist())], args)
    print('CCVPE (T-PAMI 2023, abstract): median error below 1 m, median heading error about 1 '
          'degree, heading unknown')


def run_cvact(args: argparse.Namespace) -> None:
    """Retrieval among the tiles of the validation split, as the papers report it."""
    device, warning = prepare_torch(args.device, args.threads)
    if warning:
        print(warning)
    network = load_network(args.weights, device)
    places = cvact_places(args.mat, args.root, 'original', args.prepared).of_split('val')
    _, rows = evaluate(network, places, 'val', CVACT_RADIUS_M, 0.0, 0.0, 0, device)
    one_percent = len(places) // 100
    ours = {name: [recall(found.global_rank, k) for k in (1, 5, 10, max(1, one_percent))]
            for name, found in rows.items()}
    print(f'{"cvact val":24}' + ''.join(f'{head:>10}' for head in CVACT_HEADS) + f'{"n":>7}')
    for name, values in (ours | {
            f'{name} (published)': values for name, values in CVACT_PUBLISHED.items()}).items():
        cells = (f'{"-" if value is None else f"{value:.2f}":>10}' for value in values)
        print(f'{name:24}' + ''.join(cells) + (f'{len(places):7d}' if name in ours else ''))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / 'cvact.json').write_text(json.dumps({
        'weights': network.fingerprint[:12], 'places': len(places), 'columns': CVACT_HEADS,
        'ours': ours, 'published': CVACT_PUBLISHED}, indent=1) + '\n')


def add_common(parser: argparse.ArgumentParser, weights: Path | None) -> None:
    parser.add_argument('--weights', type=Path, default=weights, required=weights is None,
                        help='' if weights is None else 'of the dense matcher (default: shipped)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='torch threads')
    parser.add_argument('--out', type=Path, default=Path('build/field'),
                        help='folder of the results (default %(default)s)')
    if weights is not None:
        parser.add_argument('--rows', nargs='+', choices=ROWS, default=DEFAULT_ROWS,
                            help='rows to score')
        parser.add_argument('--every', type=int, default=1, metavar='N',
                            help='score only every N-th image')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.benchmarks', description=__doc__.splitlines()[0],
        epilog='example: python -m training.benchmarks kitti --root KITTI '
        '--splits HighlyAccurate/dataLoader')
    commands = parser.add_subparsers(dest='benchmark', required=True)

    kitti = commands.add_parser('kitti', help='KITTI with satellite tiles, +-20 m, +-10 degrees')
    kitti.add_argument('--root', type=Path, required=True, help='folder of raw_data/ and satmap/')
    kitti.add_argument('--splits', type=Path, required=True,
                       help='folder of test1_files.txt and test2_files.txt (dataLoader/ of '
                       'YujiaoShi/HighlyAccurate)')
    kitti.add_argument('--split', nargs='+', choices=SPLIT_FILES, default=('test1', 'test2'),
                       help='splits to score (default both)')
    add_common(kitti, WEIGHTS)

    oxford = commands.add_parser('oxford', help="Oxford RobotCar in CCVPE's protocol")
    oxford.add_argument('--root', type=Path, required=True, help='folder of DATE/ground')
    oxford.add_argument('--test', nargs='+', type=Path, required=True, metavar='FILE',
                        help='split files: test1_j.txt test2_j.txt test3_j.txt')
    oxford.add_argument('--yaw', type=Path, required=True,
                        help='headings of all lines of --test: test_yaw.npy')
    oxford.add_argument('--map', type=Path, required=True, help='satellite_map_new.png')
    oxford.add_argument('--models', type=Path, metavar='FOLDER',
                        help='camera models of the SDK: undistort the images')
    oxford.add_argument('--heading-prior-deg', type=float, default=180.0, metavar='DEG',
                        help='give a heading that is off by up to this (default: none is given, '
                        'as published)')
    add_common(oxford, WEIGHTS)

    cvact = commands.add_parser('cvact', help='CVACT_val, retrieval with a tile network')
    cvact.add_argument('--mat', type=Path, required=True, help='ACT_data.mat')
    cvact.add_argument('--root', nargs='+', type=Path, required=True, metavar='FOLDER',
                       help='folders of streetview/ and satview_polish/')
    cvact.add_argument('--prepared', action='store_true', help='the root holds 616x112 PNGs')
    add_common(cvact, None)

    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> None:
    if getattr(args, 'every', 1) < 1:
        raise ValueError(f'--every {args.every}; expected at least 1')
    if not 0.0 < getattr(args, 'heading_prior_deg', 180.0) <= 180.0:
        raise ValueError(f'--heading-prior-deg {args.heading_prior_deg}; expected 0 to 180')
    {'kitti': run_kitti, 'oxford': run_oxford, 'cvact': run_cvact}[args.benchmark](args)


if __name__ == '__main__':
    sys.exit(main())
