"""Replay a rosbag2 bag into ROS 2 where there is no ``ros2 bag play``.

The options are those of ``ros2 bag play``.  Every message is published as the bytes that the bag
holds, in the bag's order and at the bag's pace, so a type needs to be installed but is never
decoded.
"""

import argparse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
import importlib
from pathlib import Path
import sys
import time

from builtin_interfaces.msg import Time
import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args
from rosbags.interfaces import Connection, QosDurability, QosReliability
from rosbags.rosbag2 import Reader, ReaderError
from rosgraph_msgs.msg import Clock
from tqdm import tqdm

from crossview_localizer.ros.interrupts import Interrupt, stop_on_interrupt

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
DEFAULT_CLOCK_HZ = 100.0
# What a slow subscriber may lag behind before a reliable publisher overwrites it.
PUBLISHER_DEPTH = 100
ACKNOWLEDGE_TIMEOUT_S = 5.0


class PlayError(ValueError):
    """The bag or the options cannot be played; the message says what to do."""


@contextmanager
def undamaged(bag: Path | str) -> Iterator[None]:
    """What the reader raises on damaged bytes (its decoders' errors too) becomes a PlayError."""
    try:
        yield
    except (ReaderError, OSError):
        raise
    except Exception as error:
        problem = ' '.join(str(error).split()) or type(error).__name__
        raise PlayError(f'{bag} is damaged ({problem}); expected a whole recording') from error


@dataclass
class Report:
    """What was played; `max_lag_s` is the longest time that a message came after its instant."""

    published: int = 0
    max_lag_s: float = 0.0


@dataclass(frozen=True)
class Pace:
    """Bag time against the wall's monotonic time: `start_ns` is played at `start_s`."""

    start_ns: int
    start_s: float
    rate: float

    def wall_s(self, stamp_ns: int) -> float:
        return self.start_s + (stamp_ns - self.start_ns) * 1e-9 / self.rate

    def stamp_ns(self, wall_s: float) -> int:
        return self.start_ns + int((wall_s - self.start_s) * self.rate * 1e9)


def clock_msg(stamp_ns: int) -> Clock:
    return Clock(clock=Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9))


def message_class(msgtype: str) -> type:
    """Return the installed class of a type such as ``sensor_msgs/msg/Image``.

    Raises ImportError or AttributeError where the package or the type is not installed.
    """
    package, kind, name = msgtype.split('/')
    return getattr(importlib.import_module(f'{package}.{kind}'), name)


def publisher_qos(connections: list[Connection], image_reliability: str) -> QoSProfile:
    """Return the profile that offers what every recorded publisher of the topic offered.

    Reliable or transient local only where all of them were; reliable and volatile if the bag
    holds no profile.  `image_reliability` (``recorded``, ``reliable``, ``best_effort``) decides
    for images.  A latched topic keeps all of its messages for late subscribers.
    """
    offered = [profile for c in connections for profile in c.ext.offered_qos_profiles]
    reliable = all(p.reliability is not QosReliability.BEST_EFFORT for p in offered)
    if connections[0].msgtype in IMAGE_TYPES and image_reliability != 'recorded':
        reliable = image_reliability == 'reliable'
    latched = all(p.durability is QosDurability.TRANSIENT_LOCAL for p in offered)
    if not offered:
        latched = connections[0].topic.endswith('/tf_static')
    message_count = sum(c.msgcount for c in connections)
    return QoSProfile(
        depth=max(PUBLISHER_DEPTH, message_count if latched else 0),
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class BagPlayer:
    """Publishes the messages of an opened bag.

    If `clock_hz` is positive also /clock in bag time, instead of one that the bag holds.  `stop`,
    set from outside, ends the replay at once.  `topics` are those to play; all if empty.
    Raises PlayError where one of them is not in the bag, or none is left to play.
    """

    def __init__(
        self,
        node: Node,
        reader: Reader,
        stop: Interrupt,
        *,
        topics: list[str] | tuple[str, ...] = (),
        image_reliability: str = 'recorded',
        clock_hz: float = 0.0,
    ):
        self._node = node
        self._reader = reader
        self._stop = stop
        by_topic: dict[str, list[Connection]] = {}
        for connection in reader.connections:
            by_topic.setdefault(connection.topic, []).append(connection)
        if unknown := set(topics) - set(by_topic):
            raise PlayError(
                f'the bag has no topic {", ".join(sorted(unknown))}; it has '
                f'{", ".join(sorted(by_topic))}')

        self._publishers: dict[str, Publisher] = {}
        self._connections: list[Connection] = []
        for topic, connections in sorted(by_topic.items()):
            if topics and topic not in topics or clock_hz > 0 and topic == '/clock':
                continue
            try:
                cls = message_class(connections[0].msgtype)
            except (ImportError, AttributeError, ValueError):
                node.get_logger().warning(
                    f'{topic} is left out: its type {connections[0].msgtype} is not installed')
                continue
            qos = publisher_qos(connections, image_reliability)
            self._publishers[topic] = node.create_publisher(cls, topic, qos)
            self._connections += connections
        if not self._connections:
            raise PlayError('nothing to play: no topic of the bag has an installed type')

        self._clock_period_s = 1.0 / clock_hz if clock_hz > 0 else 0.0
        self._clock = node.create_publisher(Clock, '/clock', 10) if clock_hz > 0 else None

    def wait_for_subscribers(self, topics: list[str], timeout_s: float) -> None:
        """Return when each of these (published) topics has a subscriber, or on stop.

        Raises PlayError for a topic that is not played, or has no subscriber after `timeout_s`.
        """
        by_name = {p.topic_name: p for p in self._publishers.values()}
        if unknown := set(topics) - set(by_name):
            raise PlayError(f'not played, so not waited for: {", ".join(sorted(unknown))}')
        deadline_s = time.monotonic() + timeout_s
        while waiting := [t for t in topics if by_name[t].get_subscription_count() == 0]:
            if self._stop.wait(0.02):
                return
            if time.monotonic() > deadline_s:
                raise PlayError(
                    f'no subscriber on {", ".join(waiting)} within {timeout_s:g} s; is the '
                    'receiving node running with the same ROS_DOMAIN_ID and discovery range?')

    def publish_latched_before(self, start_ns: int) -> None:
        """Publish what latched topics (transient local, /tf_static) said before `start_ns`."""
        latched = [
            c for c in self._connections
            if self._publishers[c.topic].qos_profile.durability
            == DurabilityPolicy.TRANSIENT_LOCAL
        ]
        if latched:
            for connection, _, data in self._messages(latched, stop=start_ns):
                self._publishers[connection.topic].publish(bytes(data))

    def play(self, start_ns: int, stop_ns: int, rate: float, progress: tqdm) -> Report:
        """Publish [start_ns, stop_ns) of the bag at `rate` times real time."""
        report = Report()
        pace = Pace(start_ns, time.monotonic(), rate)
        self._clock_due_s = pace.start_s
        played_ns = start_ns
        for connection, stamp_ns, data in self._messages(
                self._connections, start=start_ns, stop=stop_ns):
            due_s = pace.wall_s(stamp_ns)
            if not self._wait_until(due_s, pace):
                break
            self._publishers[connection.topic].publish(bytes(data))
            report.published += 1
            report.max_lag_s = max(report.max_lag_s, time.monotonic() - due_s)
            progress.update((stamp_ns - played_ns) * 1e-9)
            played_ns = stamp_ns
        return report

    def _messages(self, connections: list[Connection], **limits) -> Iterator[tuple]:
        with undamaged(self._reader.path):
            yield from self._reader.messages(connections, **limits)

    def wait_until_received(self) -> None:
        """Wait (for a few seconds at most) until reliable subscribers have everything."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_TIMEOUT_S))

    def _wait_until(self, due_s: float, pace: Pace) -> bool:
        """Tick /clock until `due_s` has come; False if the replay was stopped meanwhile."""
        while not self._stop.is_set():
            now_s = time.monotonic()
            wake_s = due_s
            if self._clock is not None:
                if now_s >= self._clock_due_s:
                    self._clock.publish(clock_msg(pace.stamp_ns(now_s)))
                    # Stay on the grid of ticks and leave out those that are past.
                    missed = (now_s - self._clock_due_s) // self._clock_period_s
                    self._clock_due_s += (missed + 1) * self._clock_period_s
                wake_s = min(due_s, self._clock_due_s)
            if now_s >= due_s:
                return True
            self._stop.wait(max(0.0, wake_s - now_s))
        return False


def play_bag(args: argparse.Namespace, node: Node, stop: Interrupt) -> Report:
    """Play as the command line asks; see `build_parser`."""
    total = Report()
    with undamaged(args.bag):
        opened = Reader(Path(args.bag))
        opened.open()
    with closing(opened) as reader:
        if not reader.message_count:
            raise PlayError(f'{args.bag} holds no message')
        start_ns = reader.start_time + int(args.start_offset * 1e9)
        stop_ns = reader.end_time
        if args.playback_duration is not None:
            stop_ns = min(stop_ns, start_ns + int(args.playback_duration * 1e9))
        if start_ns >= stop_ns:
            raise PlayError(
                f'--start-offset {args.start_offset:g} s is past the end of the bag '
                f'({reader.duration * 1e-9:.1f} s long)')

        player = BagPlayer(
            node, reader, stop, topics=args.topics,
            image_reliability=args.image_reliability, clock_hz=args.clock)
        player.wait_for_subscribers(args.wait_subscribers, args.wait_timeout)
        stop.wait(args.delay)
        player.publish_latched_before(start_ns)
        while not stop.is_set():
            with tqdm(
                total=round((stop_ns - start_ns) * 1e-9, 1), unit='s', desc='bag', disable=None,
                bar_format='{l_bar}{bar}| {n:.1f}/{total:.1f} s',
            ) as progress:
                report = player.play(start_ns, stop_ns, args.rate, progress)
            total.published += report.published
            total.max_lag_s = max(total.max_lag_s, report.max_lag_s)
            if not args.loop:
                break
        if not stop.is_set():
            player.wait_until_received()
    return total


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='play_bag',
        description='Replays a rosbag2 bag (mcap or sqlite3, a folder or one file) into ROS 2. '
                    'Topics are renamed as in any node: --ros-args --remap FROM:=TO.',
        epilog='example: ros2 run crossview_localizer play_bag drive_bag --clock --rate 2 '
               '--wait-subscribers /camera/image/compressed')
    parser.add_argument('bag', metavar='BAG', help='bag folder, or one .mcap or .db3 file')
    parser.add_argument(
        '--clock', nargs='?', type=positive, const=DEFAULT_CLOCK_HZ, default=0.0, metavar='HZ',
        help='publish /clock in bag time (default of HZ: %(const)g)')
    parser.add_argument('-r', '--rate', type=positive, default=1.0, help='speed (default: 1)')
    parser.add_argument(
        '--start-offset', type=not_negative, default=0.0, metavar='S',
        help='start S seconds into the bag; latched topics are told what came before')
    parser.add_argument(
        '--playback-duration', '--duration', type=positive, metavar='S',
        help='play S seconds of the bag (default: to its end)')
    parser.add_argument('-l', '--loop', action='store_true', help='start again at the end')
    parser.add_argument(
        '-d', '--delay', type=not_negative, default=0.0, metavar='S',
        help='wait S seconds before the first message')
    parser.add_argument(
        '--wait-subscribers', nargs='+', default=[], metavar='TOPIC',
        help='wait until each of these topics has a subscriber')
    parser.add_argument(
        '--wait-timeout', type=positive, default=60.0, metavar='S',
        help='give up waiting for subscribers after S seconds (default: 60)')
    parser.add_argument(
        '--topics', nargs='+', default=[], metavar='TOPIC', help='play only these')
    parser.add_argument(
        '--image-reliability', choices=('recorded', 'reliable', 'best_effort'),
        default='recorded', help='QoS of image topics (default: as recorded)')
    return parser


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'expected a number above 0, found {text}')
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < float('inf'):
        raise argparse.ArgumentTypeError(f'expected a number of at least 0, found {text}')
    return value


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(remove_ros_args(['', *argv])[1:])
    stop = stop_on_interrupt()
    # Arguments after --ros-args are rclpy's.
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node('bag_player')
        report = play_bag(args, node, stop)
        print(f'play_bag: {report.published} messages played, at most '
              f'{report.max_lag_s * 1e3:.0f} ms late', flush=True)
        return 0
    except (PlayError, ReaderError, OSError) as error:
        print(f'play_bag: error: {error}', file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
