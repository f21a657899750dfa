"""Command line arguments that name the places to read: of Oxford, CVACT or one prepared world."""

import argparse
from pathlib import Path

import numpy as np

from crossview_localizer.networks.safa import ModelConfig
from training.data.cvact import cvact_places, SPLIT_RULES
from training.data.datasets import load_world, Places, places_of_world
from training.data.oxford import join, oxford_places, read_raw, read_splits

DATA = ('oxford', 'oxford_raw', 'cvact', 'world')


def add_places_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add the arguments; ``--data`` is required unless ``default`` says what is taken."""
    data = parser.add_argument_group('data')
    data.add_argument('--data', choices=DATA, required=default is None,
                      help=default and f'(default: {default})')
    data.add_argument('--train', nargs='+', type=Path, default=[], metavar='FILE',
                      help='oxford: split files; oxford_raw: traversals; cvact: ACT_data.mat; '
                      'world: a prepared world (training.prepare)')
    data.add_argument('--val', nargs='+', type=Path, default=[], metavar='FILE',
                      help='oxford: split files; oxford_raw: traversals')
    data.add_argument('--test', nargs='+', type=Path, default=[], metavar='FILE',
                      help='as for --val; training uses their tiles as negatives and nothing else')
    for split in ('train', 'val', 'test'):
        data.add_argument(f'--{split}-lookup', type=Path, metavar='FILE',
                          help=f'oxford: frame times of all lines of {split} '
                          '(lookup_*.txt of CrossViewMetricLocalization)')
        data.add_argument(f'--{split}-yaw', type=Path, metavar='FILE',
                          help=f'oxford: headings of all lines of {split} (*_yaw.npy)')
    data.add_argument('--raw', type=Path, metavar='FOLDER',
                      help='oxford: raw traversals whose frames replace the crops (needs lookups)')
    data.add_argument('--root', nargs='+', type=Path, default=[], metavar='FOLDER',
                      help='oxford, cvact: where the images are')
    data.add_argument('--imagery', nargs='+', type=Path, metavar='TIF',
                      help='oxford: georeferenced imagery that replaces the tiles')
    data.add_argument('--rtk', type=Path, metavar='FOLDER',
                      help='oxford_raw: folder of DATE/rtk.csv')
    data.add_argument('--extrinsics', type=Path, metavar='FOLDER',
                      help='oxford_raw: folder with ins.txt; without it positions are those of '
                      'the INS, as in the papers')
    data.add_argument('--split-rule', choices=SPLIT_RULES, default='papers',
                      help="cvact: hold out the papers' two boxes, or use the original splits")
    data.add_argument('--prepared', action='store_true',
                      help='cvact: the images are 616x112 already')
    data.add_argument('--val-drives', nargs='+', type=int, default=[], metavar='K',
                      help='world: traversals for validation')
    data.add_argument('--test-drives', nargs='+', type=int, default=[], metavar='K',
                      help='world: traversals for test; the rest is for training')


def read_places(args: argparse.Namespace, model: ModelConfig) -> Places:
    """The places that the arguments name; ValueError or OSError if they do not fit together."""
    files = {'train': args.train, 'val': args.val, 'test': args.test}
    if args.data == 'cvact':
        if len(args.train) != 1 or not args.root:
            raise ValueError('cvact takes --train ACT_data.mat and --root FOLDER...')
        return cvact_places(args.train[0], args.root, args.split_rule, args.prepared)
    if args.data == 'oxford':
        whole = args.raw is not None and args.imagery is not None
        if not any(files.values()) or len(args.root) > 1 or not (args.root or whole):
            raise ValueError('oxford takes --train, --val, --test split files, and --root FOLDER '
                             'or both --raw FOLDER and --imagery TIF')
        entries = join([
            read_splits(paths, split, getattr(args, f'{split}_lookup'),
                        getattr(args, f'{split}_yaw'))
            for split, paths in files.items() if paths])
        root = args.root[0] if args.root else args.raw
        return oxford_places(entries, root, args.raw, args.imagery)
    if args.data == 'oxford_raw':
        traversals = [(path, split) for split, paths in files.items() for path in paths]
        if not traversals or args.rtk is None or not args.imagery:
            raise ValueError('oxford_raw takes --train, --val, --test traversals, --rtk FOLDER '
                             'and --imagery TIF')
        folders = {path.resolve().parent for path, _ in traversals}
        if len(folders) != 1:
            raise ValueError(f'the traversals lie in {len(folders)} folders; expected one')
        raw = folders.pop()
        entries = join([
            read_raw(path, args.rtk / path.name / 'rtk.csv', split, args.extrinsics,
                     as_published=args.extrinsics is None)
            for path, split in traversals])
        return oxford_places(entries, raw, raw, args.imagery)
    if len(args.train) != 1 or not args.val_drives + args.test_drives:
        raise ValueError('world takes --train of one prepared world, and --val-drives or '
                         '--test-drives')
    world = load_world(args.train[0])
    if abs(world.grid.cell_m / model.px_m - 1.0) > 0.01:
        raise ValueError(
            f'{args.train[0]} has {world.grid.cell_m:.4f} m per pixel, the network '
            f'{model.px_m:.4f}; prepare it with --px-m {model.px_m:.6g}')
    split_of_drive = {int(drive): 'train' for drive in np.unique(world.drive)}
    split_of_drive |= dict.fromkeys(args.test_drives, 'test')
    split_of_drive |= dict.fromkeys(args.val_drives, 'val')
    return places_of_world(
        world, split_of_drive, model.tile_px, model.ground_view, model.view_px)
