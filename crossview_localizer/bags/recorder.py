"""Record topics of running nodes to a bag."""

from collections.abc import Callable
import time

from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Writer
from rosbags.typesys import get_typestore, Stores

from crossview_localizer.bags.installed_types import message_class, register_installed_type
from crossview_localizer.ros.interrupts import Interrupt

# Received messages wait here while others are written; images of 4 MB make it 400 MB at worst.
SUBSCRIPTION_DEPTH = 100
DISCOVERY_PERIOD_S = 0.1
# A recorder that is killed loses no more than this.
SAVE_PERIOD_S = 1.0
# After an interrupt, messages under way are still recorded until none has come for QUIET_S, and
# for MAX_DRAIN_S at most.
QUIET_S, MAX_DRAIN_S = 0.3, 3.0


def bag_qos(info: TopicEndpointInfo) -> Qos:
    """The QoS profile of a publisher in the form of a bag."""
    profile = info.qos_profile

    def time_of(duration) -> QosTime:
        return QosTime(*divmod(duration.nanoseconds, 10**9))

    return Qos(
        # Publishers do not announce their history.
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
    """The strictest profile that every one of these publishers can serve."""
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

    ``wanted`` says by name whether a topic is recorded.  Messages are stamped when
    they are received, by the clock of ``node``.  With simulated time, those that come before the
    first /clock get its stamp.
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
        clock = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(DISCOVERY_PERIOD_S, self.subscribe_to_new_topics, clock=clock)
        node.create_timer(SAVE_PERIOD_S, self._save, clock=clock)
        self.subscribe_to_new_topics()

    def subscribe_to_new_topics(self) -> None:
        for topic, msgtypes in self._node.get_topic_names_and_types():
            if topic in self.topics or topic in self._refused or not self._wanted(topic):
                continue
            if infos := self._node.get_publishers_info_by_topic(topic):
                try:
                    self._subscribe(topic, msgtypes, infos)
                except (ValueError, ImportError, AttributeError) as error:
                    self._refused.add(topic)
                    self._node.get_logger().warning(f'{topic} is not recorded: {error}')

    def _subscribe(self, topic: str, msgtypes: list[str], infos: list[TopicEndpointInfo]) -> None:
        if len(msgtypes) > 1:
            raise ValueError(f'it has several types: {", ".join(msgtypes)}')
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

    def _save(self) -> None:
        """Write what was recorded to the file; rosbags itself keeps up to a megabyte in memory."""
        storage = self._writer.storage
        if storage.chunk.msgs:
            storage.close_chunk()
            storage.bio.flush()

    def finish(self) -> None:
        """Write messages that still wait for a first /clock, at time 0."""
        self._flush_before_clock(0)


def record_until_stopped(
    node: Node, writer: Writer, wanted: Callable[[str], bool], stop: Interrupt,
) -> BagRecorder:
    """Record until ``stop`` is set, and then the messages that are still under way."""
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
