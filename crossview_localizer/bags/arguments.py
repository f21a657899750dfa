"""Command-line arguments that several commands share."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from crossview_localizer.bags.recorded_run import NODE
from crossview_localizer.bags.topics import Topics


def add_run_arguments(parser: argparse.ArgumentParser, topics: Sequence[str]) -> None:
    """What every command takes that shows a recording; ``topics`` are fields of Topics."""
    parser.add_argument('bag', type=Path, metavar='BAG', help="recording of the node's outputs")
    parser.add_argument(
        '--input-bag', type=Path, metavar='BAG',
        help='bag that was played to the node, for what the recording itself lacks: pictures, '
        'GNSS fixes, ground truth')
    parser.add_argument(
        '--map', type=Path,
        help='embedding map (default: the one that /diagnostics names, if it is there)')
    parser.add_argument(
        '--node', default=NODE, help='full name of the node (default: %(default)s)')
    for name in topics:
        parser.add_argument(
            f'--{name}-topic', default=getattr(Topics(), name), metavar='TOPIC',
            help='default: %(default)s')


def add_imagery_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--imagery', type=Path, nargs='+', default=[], metavar='TIF',
        help="GeoTIFFs to show instead of the map's orthophoto")


def topics_from_arguments(arguments: argparse.Namespace) -> Topics:
    """The topics that were given with ``add_run_arguments``; the others as they are."""
    return Topics(**{name.removesuffix('_topic'): value for name, value in vars(arguments).items()
                     if name.endswith('_topic')})
