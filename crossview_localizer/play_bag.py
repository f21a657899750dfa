"""Replay a bag into ROS 2; the launch file uses this command.

The options are those of ``ros2 bag play``.  In contrast to that, latched messages from before the
start offset are published too, and /tf_static is latched however it was recorded.  Every message
is published as the bytes in the bag, in the bag's order and at the bag's pace.  Its type must be
installed, but it is never decoded.
"""

import argparse
import sys

import rclpy
from rclpy.node import Node
from rclpy.utilities import remove_ros_args
from tqdm import tqdm

from crossview_localizer.bags.arguments import positive, seconds
from crossview_localizer.bags.bag import Bag, BagError
from crossview_localizer.bags.player import BagPlayer, Playback
from crossview_localizer.command import run_command
from crossview_localizer.ros.interrupts import Interrupt
from crossview_localizer.ros.process import ros_session

DEFAULT_CLOCK_HZ = 100.0


def play_bag(args: argparse.Namespace, node: Node, stop: Interrupt) -> Playback:
    """Play a bag with the options of the command line; see ``build_parser``."""
    total = Playback()
    with Bag(args.bag) as bag:
        if not bag.message_count:
            raise BagError(f'{args.bag} holds no message')
        start_ns, stop_ns = bag.start_ns + int(args.start_offset * 1e9), bag.end_ns
        if args.playback_duration is not None:
            stop_ns = min(stop_ns, start_ns + int(args.playback_duration * 1e9))
        if start_ns >= stop_ns:
            raise BagError(
                f'--start-offset {args.start_offset:g} s is past the end of the bag '
                f'({(bag.end_ns - bag.start_ns) * 1e-9:.1f} s long)')

        player = BagPlayer(
            node, bag, stop, topics=args.topics,
            image_reliability=args.image_reliability, clock_hz=args.clock)
        player.wait_for_subscribers(args.wait_subscribers, args.wait_timeout)
        stop.wait(args.delay)
        player.publish_latched_before(start_ns)
        while not stop.is_set():
            with tqdm(
                total=round((stop_ns - start_ns) * 1e-9, 1), unit='s', desc='bag', disable=None,
                bar_format='{l_bar}{bar}| {n:.1f}/{total:.1f} s',
            ) as progress:
                played = player.play(start_ns, stop_ns, args.rate, progress)
            total.published += played.published
            total.max_lag_s = max(total.max_lag_s, played.max_lag_s)
            if not args.loop:
                break
        if not stop.is_set():
            player.wait_until_received()
    return total


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='play_bag',
        description='Replay a bag (of ROS 2 or ROS 1, a folder or one file) into ROS 2. '
                    'Topics are renamed as in any node: --ros-args --remap FROM:=TO.',
        epilog='example: ros2 run crossview_localizer play_bag drive_bag --clock --rate 2 '
               '--wait-subscribers /camera/image/compressed')
    parser.add_argument('bag', metavar='BAG', help='bag folder, or one .mcap, .db3 or .bag file')
    parser.add_argument(
        '--clock', nargs='?', type=positive, const=DEFAULT_CLOCK_HZ, default=0.0, metavar='HZ',
        help='publish /clock in bag time (default of HZ: %(const)g)')
    parser.add_argument('-r', '--rate', type=positive, default=1.0, help='speed (default: 1)')
    parser.add_argument(
        '--start-offset', type=seconds, default=0.0, metavar='S',
        help='start S seconds into the bag; latched messages from before are published too')
    parser.add_argument(
        '--playback-duration', '--duration', type=positive, metavar='S',
        help='play S seconds of the bag (default: to its end)')
    parser.add_argument('-l', '--loop', action='store_true', help='start again at the end')
    parser.add_argument(
        '-d', '--delay', type=seconds, default=0.0, metavar='S',
        help='wait S seconds before the first message')
    parser.add_argument(
        '--wait-subscribers', nargs='+', default=[], metavar='TOPIC',
        help='wait until each of these topics has a subscriber')
    parser.add_argument(
        '--wait-timeout', type=positive, default=60.0, metavar='S',
        help='give up waiting for subscribers after S seconds (default: 60)')
    parser.add_argument(
        '--topics', nargs='+', default=[], metavar='TOPIC', help='play only these topics')
    parser.add_argument(
        '--image-reliability', choices=('recorded', 'reliable', 'best_effort'),
        default='recorded', help='QoS of image topics (default: as recorded)')
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv

    def work(args: argparse.Namespace) -> None:
        with ros_session(argv) as stop:
            played = play_bag(args, rclpy.create_node('bag_player'), stop)
        print(f'play_bag: {played.published} messages played, at most '
              f'{played.max_lag_s * 1e3:.0f} ms late', flush=True)

    return run_command(build_parser(), remove_ros_args(['', *argv])[1:], work)


if __name__ == '__main__':
    sys.exit(main())
