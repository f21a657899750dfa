"""Record topics to an mcap bag where there is no ``ros2 bag record``.

The options are those of ``ros2 bag record`` and so is the result: each topic with its offered QoS
profiles, the definition and the hash of its type, so that the real ``ros2 bag play`` takes it.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
import re
import sys
import time

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rclpy.utilities import remove_ros_args
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import get_types_from_msg, get_typestore, Stores
from rosbags.typesys.store import Typestore

from crossview_localizer.play_bag import message_class
from crossview_localizer.ros.interrupts import Interrupt, stop_on_interrupt

# Received messages wait here while others are written; images of 4 MB make it 400 MB at worst.
SUBSCRIPTION_DEPTH = 100
DISCOVERY_PERIOD_S = 0.1
# On an interrupt, what is under way is still taken: until it is quiet for this long ...
QUIET_S = 0.3
# ... but no longer than this.
MAX_DRAIN_S = 3.0


class RecordError(ValueError):
    """The recording cannot be made; the message says what to do."""


def register_installed_type(typestore: Typestore, msgtype: str) -> None:
    """Add a type and all that it contains, as installed (share/PACKAGE/msg/NAME.msg).

    Raises RecordError where the definition of the type is not installed.
    """
    if msgtype in typestore.fielddefs:
        return
    package, kind, name = msgtype.split('/')
    try:
        path = Path(get_package_share_directory(package)) / kind / f'{name}.msg'
        text = path.read_text()
    except (PackageNotFoundError, OSError) as error:
        raise RecordError(f'no definition of {msgtype} is installed: {error}') from error
    types = get_types_from_msg(text, msgtype)
    for _, fields in types.values():
        for _, (_, descriptor) in fields:
            for part in nested_types(descriptor):
                register_installed_type(typestore, part)
    typestore.register(types)


def nested_types(descriptor) -> list[str]:
    """Return the message types in the parse tree of a field (nested tuples)."""
    if isinstance(descriptor, str):
        return [descriptor] if descriptor.count('/') == 2 else []
    if isinstance(descriptor, tuple):
        return [name for part in descriptor for name in nested_types(part)]
    return []


def bag_qos(info: TopicEndpointInfo) -> Qos:
    """Return a publisher's profile as a bag holds it."""
    profile = info.qos_profile

    def time_of(duration) -> QosTime:
        return QosTime(*divmod(duration.nanoseconds, 10**9))

    return Qos(
        # The history is not part of what publishers tell each other.
        history=QosHistory.UNKNOWN,
        depth=0,
        reliability=QosReliability[profile.reliability.name],
        durability=QosDurability[profile.durability.name],
        deadline=time_of(profile.deadline),
        lifespan=time_of(profile.lifespan),
        liveliness=QosLiveliness[profile.liveliness.name],
        liveliness_lease_duration=time_of(profile.liveliness_lease_duration),
        avoid_ros_namespace_conventions=profile.avoid_ros_namespace_conventions,
    )


def subscription_qos(infos: list[TopicEndpointInfo]) -> QoSProfile:
    """Return the strictest profile that every one of these publishers can serve."""
    profiles = [info.qos_profile for info in infos]
    reliable = all(p.reliability is ReliabilityPolicy.RELIABLE for p in profiles)
    latched = all(p.durability is DurabilityPolicy.TRANSIENT_LOCAL for p in profiles)
    return QoSProfile(
        depth=SUBSCRIPTION_DEPTH,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class BagRecorder:
    """Subscribes to topics as they appear and writes their messages as received, undecoded.

    ``wanted`` tells by its name whether a topic is recorded.

    Messages are stamped when they are received, by `node`'s clock.  With simulated time, those
    that come before the first /clock get its stamp.
    """

    def __init__(self, node: Node, writer: Writer, wanted: Callable[[str], bool]):
        self._node = node
        self._writer = writer
        self._wanted = wanted
        self._typestore = get_typestore(Stores.EMPTY)
        self._before_clock: list[tuple[Connection, bytes]] = []
        self._refused: set[str] = set()
        self.topics: dict[str, Connection] = {}
        self.message_count = 0
        node.create_timer(
            DISCOVERY_PERIOD_S, self.subscribe_to_new_topics,
            clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.subscribe_to_new_topics()

    def subscribe_to_new_topics(self) -> None:
        for topic, msgtypes in self._node.get_topic_names_and_types():
            if topic in self.topics or topic in self._refused or not self._wanted(topic):
                continue
            if infos := self._node.get_publishers_info_by_topic(topic):
                try:
                    self._subscribe(topic, msgtypes, infos)
                except (RecordError, ImportError, AttributeError) as error:
                    self._refused.add(topic)
                    self._node.get_logger().warning(f'{topic} is not recorded: {error}')

    def _subscribe(self, topic: str, msgtypes: list[str], infos: list[TopicEndpointInfo]) -> None:
        if len(msgtypes) > 1:
            raise RecordError(f'it has several types: {", ".join(msgtypes)}')
        cls = message_class(msgtypes[0])
        register_installed_type(self._typestore, msgtypes[0])
        connection = self._writer.add_connection(
            topic, msgtypes[0], typestore=self._typestore,
            offered_qos_profiles=[bag_qos(info) for info in infos])
        self.topics[topic] = connection
        self._node.create_subscription(
            cls, topic, lambda data: self._write(connection, data), subscription_qos(infos),
            raw=True)
        self._node.get_logger().info(f'recording {topic} ({msgtypes[0]})')

    def _write(self, connection: Connection, data: bytes) -> None:
        self.message_count += 1
        stamp_ns = self._node.get_clock().now().nanoseconds
        if stamp_ns == 0:
            self._before_clock.append((connection, data))
            return
        self._flush_before_clock(stamp_ns)
        self._writer.write(connection, stamp_ns, data)

    def _flush_before_clock(self, stamp_ns: int) -> None:
        for connection, data in self._before_clock:
            self._writer.write(connection, stamp_ns, data)
        self._before_clock.clear()

    def finish(self) -> None:
        """Write what still waits for a /clock that never came, at time 0."""
        self._flush_before_clock(0)


def record_bag(args: argparse.Namespace, node: Node, stop: Interrupt) -> BagRecorder:
    """Record until `stop` is set; see `build_parser`."""
    exact = set(args.topics)
    pattern = re.compile(args.regex) if args.regex else None

    def wanted(topic: str) -> bool:
        return args.all or topic in exact or bool(pattern and pattern.fullmatch(topic))

    with Writer(
        Path(args.output), version=Writer.VERSION_LATEST, storage_plugin=StoragePlugin.MCAP,
    ) as writer:
        recorder = BagRecorder(node, writer, wanted)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.1)

        stop.clear()  # a second interrupt ends the draining too
        deadline_s = time.monotonic() + MAX_DRAIN_S
        count, quiet_since_s = recorder.message_count, time.monotonic()
        while not stop.is_set() and time.monotonic() < min(deadline_s, quiet_since_s + QUIET_S):
            executor.spin_once(timeout_sec=0.02)
            if recorder.message_count != count:
                count, quiet_since_s = recorder.message_count, time.monotonic()
        recorder.finish()
    return recorder


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
    parser.add_argument('-s', '--storage', choices=['mcap'], default='mcap', help='always mcap')
    parser.add_argument(
        '--use-sim-time', action='store_true', help='stamp messages by /clock, not by the wall')
    return parser


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(remove_ros_args(['', *argv])[1:])
    stop = stop_on_interrupt()
    # Arguments after --ros-args are rclpy's.
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node('bag_recorder', parameter_overrides=[
            Parameter('use_sim_time', value=args.use_sim_time)])
        recorder = record_bag(args, node, stop)
        print(f'record_bag: {recorder.message_count} messages of {len(recorder.topics)} topics '
              f'in {args.output}', flush=True)
        return 0
    except (RecordError, WriterError, OSError, re.error) as error:
        print(f'record_bag: error: {error}', file=sys.stderr)
        return 2
    finally:
        rclpy.try_shutdown()


if __name__ == '__main__':
    sys.exit(main())
