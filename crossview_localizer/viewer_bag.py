"""Join a recorded run and its input to one mcap file for a viewer without ROS.

Such a viewer is Lichtblick or Foxglove; config/viewer_layout.json is a layout for them.  Topics
below /viewer are added, which a viewer cannot compute: the satellite image, the paths of the whole
drive, the 95 % ellipses.  odom -> base_link is added to /tf where it is not there.  All message
types are standard, and their definitions are in the file.
"""

import argparse
from pathlib import Path
import sys

from rosbags.rosbag2 import WriterError

from crossview_localizer.bags.arguments import (
    add_imagery_argument,
    add_run_arguments,
    node_and_topics_from_arguments,
)
from crossview_localizer.bags.recorded_run import read_run
from crossview_localizer.bags.viewer_file import write_viewer_file
from crossview_localizer.command import run_command
from crossview_localizer.evaluation.background import find_background


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='viewer_bag', formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog='example:\n  ros2 run crossview_localizer viewer_bag demo/run --input-bag demo/bag '
        '--out demo/replay.mcap')
    add_run_arguments(parser, ('odometry', 'gnss', 'truth'))
    add_imagery_argument(parser)
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='mcap file to write (default: BAG_viewer.mcap)')
    return parser


def main(argv: list[str] | None = None) -> int:
    return run_command(build_parser(), argv, _join, more_errors=(WriterError,))


def _join(arguments: argparse.Namespace) -> None:
    bag = arguments.bag
    out = arguments.out or bag.with_name(bag.resolve().name + '_viewer.mcap')
    node, topics = node_and_topics_from_arguments(arguments)
    run = read_run(bag, arguments.input_bag, topics=topics, node=node, progress=True)
    recorded_map = run.diagnostics.values.get('map', {}).get('map_path', '')
    ground, notes = find_background(run.frame, arguments.map, arguments.imagery, recorded_map)
    write_viewer_file(
        out, run, ground.orthophoto, bag, arguments.input_bag, topics, progress=True)
    for note in (*run.notes, *notes):
        print(f'viewer_bag: {note}')
    print(f'viewer_bag: {out}')


if __name__ == '__main__':
    sys.exit(main())
