"""Publish the messages of a bag at its own pace."""

from dataclasses import dataclass
import time

from builtin_interfaces.msg import Time
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosbags.interfaces import Connection, QosDurability, QosReliability
from rosgraph_msgs.msg import Clock
from tqdm import tqdm

from crossview_localizer.bags.bag import Bag, BagError
from crossview_localizer.bags.installed_types import message_class
from crossview_localizer.ros.interrupts import Interrupt

IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
# A reliable publisher keeps so many messages for a slow subscriber.
PUBLISHER_DEPTH = 100
ACKNOWLEDGE_TIMEOUT_S = 5.0
# A longer time without a message is not waited for: some stamps are those of another clock.
MAX_GAP_S = 3600.0


@dataclass
class Playback:
    """What was played; ``max_lag_s`` is how late the latest message was."""

    published: int = 0
    max_lag_s: float = 0.0


@dataclass(frozen=True)
class Pace:
    """Bag time against the monotonic clock: ``start_ns`` is played at ``start_s``."""

    start_ns: int
    start_s: float
    rate: float

    def wall_s(self, stamp_ns: int) -> float:
        return self.start_s + (stamp_ns - self.start_ns) * 1e-9 / self.rate

    def stamp_ns(self, wall_s: float) -> int:
        return self.start_ns + int((wall_s - self.start_s) * self.rate * 1e9)


def clock_msg(stamp_ns: int) -> Clock:
    return Clock(clock=Time(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9))


def publisher_qos(connections: list[Connection], image_reliability: str) -> QoSProfile:
    """A QoS profile that offers what every recorded publisher of the topic offered.

    Reliable or transient local only where all of them were; reliable and volatile if the bag
    holds no profile.  /tf_static is latched however it was recorded: nobody could use it else.
    ``image_reliability`` (``recorded``, ``reliable``, ``best_effort``) decides for images.  A
    latched topic keeps all of its messages for late subscribers.
    """
    offered = [profile for c in connections for profile in c.ext.offered_qos_profiles]
    reliable = all(p.reliability is not QosReliability.BEST_EFFORT for p in offered)
    if connections[0].msgtype in IMAGE_TYPES and image_reliability != 'recorded':
        reliable = image_reliability == 'reliable'
    latched = bool(offered) and all(
        p.durability is QosDurability.TRANSIENT_LOCAL for p in offered)
    if connections[0].topic.endswith('/tf_static'):
        reliable = latched = True
    message_count = sum(c.msgcount for c in connections)
    return QoSProfile(
        depth=max(PUBLISHER_DEPTH, message_count if latched else 0),
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


class BagPlayer:
    """Publishes the messages of an opened bag.

    If ``clock_hz`` is positive it publishes /clock in bag time too, instead of one that the bag
    holds.  ``stop``, set from outside, ends the replay at once.  ``topics`` are those to play;
    all if empty.  Raises BagError if one of them is not in the bag, or none is left to play.
    """

    def __init__(
        self,
        node: Node,
        bag: Bag,
        stop: Interrupt,
        *,
        topics: list[str] | tuple[str, ...] = (),
        image_reliability: str = 'recorded',
        clock_hz: float = 0.0,
    ):
        self._node = node
        self._bag = bag
        self._stop = stop
        by_topic: dict[str, list[Connection]] = {}
        for connection in bag.connections:
            by_topic.setdefault(connection.topic, []).append(connection)
        if unknown := set(topics) - set(by_topic):
            raise BagError(
                f'the bag has no topic {", ".join(sorted(unknown))}; it has '
                f'{", ".join(sorted(by_topic))}')

        self._publishers: dict[str, Publisher] = {}
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
        if not self._publishers:
            raise BagError('nothing to play: no topic of the bag has an installed type')

        self._clock_period_s = 1.0 / clock_hz if clock_hz > 0 else 0.0
        self._clock = node.create_publisher(Clock, '/clock', 10) if clock_hz > 0 else None

    def wait_for_subscribers(self, topics: list[str], timeout_s: float) -> None:
        """Return when each of these topics has a subscriber, or when ``stop`` is set.

        Raises BagError for a topic that is not played, or has no subscriber after ``timeout_s``.
        """
        by_name = {p.topic_name: p for p in self._publishers.values()}
        if unknown := set(topics) - set(by_name):
            raise BagError(f'not played, so not waited for: {", ".join(sorted(unknown))}')
        deadline_s = time.monotonic() + timeout_s
        while waiting := [t for t in topics if by_name[t].get_subscription_count() == 0]:
            if self._stop.wait(0.02):
                return
            if time.monotonic() > deadline_s:
                raise BagError(
                    f'no subscriber on {", ".join(waiting)} within {timeout_s:g} s; is the '
                    'receiving node running with the same ROS_DOMAIN_ID and discovery range?')

    def publish_latched_before(self, start_ns: int) -> None:
        """Publish the messages of latched topics (transient local) from before ``start_ns``."""
        latched = {
            topic for topic, publisher in self._publishers.items()
            if publisher.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        }
        for connection, _, data in self._bag.read_raw(latched, stop_ns=start_ns):
            self._publishers[connection.topic].publish(bytes(data))

    def play(self, start_ns: int, stop_ns: int, rate: float, progress: tqdm) -> Playback:
        """Publish [start_ns, stop_ns) of the bag at ``rate`` times real time."""
        played = Playback()
        pace = Pace(start_ns, time.monotonic(), rate)
        self._clock_due_s = pace.start_s
        played_ns = start_ns
        for connection, stamp_ns, data in self._bag.read_raw(
                self._publishers, start_ns, stop_ns):
            if (gap_s := (stamp_ns - played_ns) * 1e-9) > MAX_GAP_S:
                self._node.get_logger().warning(
                    f'{gap_s:.0f} s without a message are left out: are the times before or after '
                    'them of another clock?')
                pace = Pace(stamp_ns, max(time.monotonic(), pace.wall_s(played_ns)), rate)
            due_s = pace.wall_s(stamp_ns)
            if not self._wait_until(due_s, pace):
                break
            self._publishers[connection.topic].publish(bytes(data))
            played.published += 1
            played.max_lag_s = max(played.max_lag_s, time.monotonic() - due_s)
            progress.update((stamp_ns - played_ns) * 1e-9)
            played_ns = stamp_ns
        return played

    def wait_until_received(self) -> None:
        """Wait (for a few seconds at most) until reliable subscribers have everything."""
        for publisher in self._publishers.values():
            publisher.wait_for_all_acked(Duration(seconds=ACKNOWLEDGE_TIMEOUT_S))

    def _wait_until(self, due_s: float, pace: Pace) -> bool:
        """Publish /clock until ``due_s``; return False if the replay was stopped meanwhile."""
        while not self._stop.is_set():
            now_s = time.monotonic()
            wake_s = due_s
            if self._clock is not None:
                if now_s >= self._clock_due_s:
                    self._clock.publish(clock_msg(pace.stamp_ns(now_s)))
                    # Keep the regular ticks, and leave out those that are past.
                    missed = (now_s - self._clock_due_s) // self._clock_period_s
                    self._clock_due_s += (missed + 1) * self._clock_period_s
                wake_s = min(due_s, self._clock_due_s)
            if now_s >= due_s:
                return True
            self._stop.wait(max(0.0, wake_s - now_s))
        return False
