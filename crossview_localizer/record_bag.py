"""Record topics to an mcap bag; the launch file uses this command.

The options are those of ``ros2 bag record``.  The bag holds the QoS profiles of each topic and the
definition and hash of its type, so that the real ``ros2 bag play`` can play it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
import re
import sys

import rclpy
from rclpy.parameter import Parameter
from rclpy.utilities import remove_ros_args
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

from crossview_localizer.bags.recorder import record_until_stopped
from crossview_localizer.command import run_command
from crossview_localizer.ros.process import ros_session


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='record_bag',
        description='Records topics to an mcap bag until interrupted (SIGINT, SIGTERM). Topics '
                    'that do not exist yet are recorded when they appear.',
        epilog='example: ros2 run crossview_localizer record_bag -o run1 --use-sim-time '
               '--topics /tf /crossview_localizer/pose')
    parser.add_argument('-o', '--output', required=True, metavar='BAG', help='folder to make')
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument('--topics', nargs='+', default=[], metavar='TOPIC', help='topics by name')
    which.add_argument('-e', '--regex', help='topics whose whole name matches this expression')
    which.add_argument('-a', '--all', action='store_true', help='every topic')
    parser.add_argument('-s', '--storage', choices=['mcap'], default='mcap',
                        help='format of the bag: mcap')
    parser.add_argument(
        '--use-sim-time', action='store_true', help='stamp messages by /clock')
    return parser


def chooser(args: argparse.Namespace) -> Callable[[str], bool]:
    """A function that says by name whether a topic is recorded; re.error for a bad regex."""
    pattern = re.compile(args.regex) if args.regex else None
    return lambda topic: args.all or topic in args.topics or bool(
        pattern and pattern.fullmatch(topic))


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def work(args: argparse.Namespace) -> None:
        with ros_session(argv) as stop:
            node = rclpy.create_node('bag_recorder', parameter_overrides=[
                Parameter('use_sim_time', value=args.use_sim_time)])
            with Writer(
                Path(args.output), version=Writer.VERSION_LATEST,
                storage_plugin=StoragePlugin.MCAP,
            ) as writer:
                recorder = record_until_stopped(node, writer, chooser(args), stop)
        print(f'record_bag: {recorder.message_count} messages of {len(recorder.topics)} topics '
              f'in {args.output}', flush=True)

    return run_command(build_parser(), remove_ros_args(['', *argv])[1:], work,
                       more_errors=(WriterError, re.error))


if __name__ == '__main__':
    sys.exit(main())
