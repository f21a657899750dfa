"""Command-line arguments that several commands share."""

import argparse
from collections.abc import Sequence
import math
from pathlib import Path

from crossview_localizer.bags.drive_writer import JPEG_QUALITY
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


def add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that converts a raw recording to a bag."""
    parser.add_argument('--out', type=Path, required=True, help='the bag (a folder) to write')
    parser.add_argument(
        '--start', type=seconds, default=0.0, metavar='S', help='seconds after the first image'
    )
    parser.add_argument(
        '--duration', type=seconds, default=math.inf, metavar='S', help='seconds (default: all)'
    )
    parser.add_argument(
        '--every', type=positive_int, default=1, metavar='N', help='keep each N-th image'
    )
    parser.add_argument(
        '--compress', choices=('jpeg', 'none'), default='jpeg',
        help=f'jpeg (quality {JPEG_QUALITY}, default) or none: raw bgr8, about ten times larger',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an existing bag')


def seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f'{text} is not a number of seconds from 0')
    return value


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a whole number from 1')
    return value
