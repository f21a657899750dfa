"""Draw over frames of a recorded run which parts of the image made the match.

Each picture shows the camera image, the input of the network, and the heat map.  Orange parts
count for the peak of the heat map, blue parts against it.
"""

import argparse
from pathlib import Path
import sys

from crossview_localizer.bags.arguments import add_run_arguments, node_and_topics_from_arguments
from crossview_localizer.bags.bag import BagError
from crossview_localizer.command import run_command
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.evaluation.overlays import find_sources, write_overlays
from crossview_localizer.localizer import load_localizer
from crossview_localizer.parameter_file import read_parameters


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='overlay', formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog='examples:\n'
        '  ros2 run crossview_localizer overlay demo/run --input-bag demo/bag --out overlays\n'
        '  ros2 run crossview_localizer overlay run1 --input-bag drive --map my.map --at 12 60')
    add_run_arguments(parser, ('image',))
    parser.add_argument(
        '--weights', type=Path, help='network weights (default: those that /diagnostics names)')
    parser.add_argument(
        '--params-file', type=Path, metavar='YAML', help='parameters of the node, for its camera '
        'and its search window (default: their defaults)')
    parser.add_argument(
        '--at', type=float, nargs='+', default=[], metavar='S',
        help='seconds from the start (default: the frames with the best, median and worst peak)')
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='folder to write to (default: BAG_overlays)')
    return parser


def main(argv: list[str] | None = None) -> int:
    return run_command(build_parser(), argv, _draw)


def _draw(arguments: argparse.Namespace) -> None:
    bag = arguments.bag
    out = arguments.out or bag.with_name(bag.resolve().name + '_overlays')
    node, topics = node_and_topics_from_arguments(arguments)
    recorded = find_sources(bag, node)
    map_path = arguments.map or recorded.get('map_path')
    weights = arguments.weights or recorded.get('weights')
    for name, value in (('map', map_path), ('weights', weights)):
        if not value:
            raise BagError(f'/diagnostics in {bag} has no {name}; give it with --{name}')
    node_config, config = NodeConfig(), LocalizerConfig()
    if arguments.params_file:
        node_config, config = read_parameters(arguments.params_file)
    for path in write_overlays(
            out, bag, arguments.input_bag or bag, load_localizer(map_path, weights, config),
            node_config, arguments.at, topics, node, progress=True):
        print(f'overlay: {path}')


if __name__ == '__main__':
    sys.exit(main())
