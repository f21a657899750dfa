"""Command-line arguments that several commands share."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
import math
from pathlib import Path

from crossview_localizer.bags.bag import Bag
from crossview_localizer.bags.drive_writer import JPEG_QUALITY
from crossview_localizer.bags.recorded_run import find_node
from crossview_localizer.bags.topics import Topics
from crossview_localizer.command import run_command


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
        '--node', help='full name of the node (default: the one whose poses are recorded)')
    add_topic_arguments(parser, topics)


def add_topic_arguments(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """An option for each of these fields of Topics."""
    for name in names:
        parser.add_argument(
            f'--{name.replace("_", "-")}-topic', default=getattr(Topics(), name), metavar='TOPIC',
            help=f'topic of {name} (default: %(default)s)')


def topics_from_arguments(arguments: argparse.Namespace) -> Topics:
    """The topics that were given with ``add_topic_arguments``."""
    return Topics(**{
        name.removesuffix('_topic'): value for name, value in vars(arguments).items()
        if name.endswith('_topic')})


def add_imagery_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--imagery', type=Path, nargs='+', default=[], metavar='TIF',
        help="GeoTIFFs to show instead of the map's orthophoto")


def node_and_topics_from_arguments(arguments: argparse.Namespace) -> tuple[str, Topics]:
    """What was given with ``add_run_arguments``, and else what the bags hold.

    A topic that is not in the bags by its own name is that in the namespace of the node.  Raises
    BagError or OSError.
    """
    node = arguments.node.rstrip('/') if arguments.node else find_node(arguments.bag)
    topics = topics_from_arguments(arguments)
    recorded = set()
    for path in filter(None, (arguments.bag, arguments.input_bag)):
        with Bag(path) as opened:
            recorded |= opened.topics
    namespace = node.rpartition('/')[0]
    return node, replace(topics, **{
        name: f'{namespace}{topic}' for name, topic in vars(topics).items()
        if topic not in recorded and f'{namespace}{topic}' in recorded})


def add_conversion_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command takes that converts a raw recording to a bag."""
    parser.add_argument('--out', type=Path, required=True, help='the bag (a folder) to write')
    parser.add_argument(
        '--start', type=seconds, default=0.0, metavar='S',
        help='begin S seconds after the first image'
    )
    parser.add_argument(
        '--duration', type=seconds, default=math.inf, metavar='S',
        help='convert S seconds (default: all)'
    )
    parser.add_argument(
        '--every', type=positive_int, default=1, metavar='N', help='keep every N-th image'
    )
    parser.add_argument(
        '--compress', choices=('jpeg', 'none'), default='jpeg',
        help=f'jpeg (quality {JPEG_QUALITY}, default) or none: raw bgr8, about ten times larger',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an existing bag')


def run_conversion(parser: argparse.ArgumentParser, argv: list[str] | None,
                   convert: Callable[..., None]) -> int:
    """Call ``convert`` with the arguments of a converting command; return the exit code.

    They are those of ``add_conversion_arguments`` and the command's own.
    """
    def work(arguments: argparse.Namespace) -> None:
        options = vars(arguments)
        convert(start_s=options.pop('start'), duration_s=options.pop('duration'), **options)

    return run_command(parser, argv, work, 'interrupted, nothing written')


def seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f'expected 0 or more seconds, found {text}')
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f'expected a number above 0, found {text}')
    return value


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'expected a whole number from 1 on, found {text}')
    return value
