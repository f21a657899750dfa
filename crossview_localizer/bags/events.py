"""A recorded drive as a stream of records, in the order in which the node would take them.

Bag time stands for the clock.  As in the node, a fix or velocity waits until odometry has reached
its stamp, unless odometry is silent.  An image is due SETTLE_S after odometry has reached its
stamp: at once if it had before the image came, and after ``odometry_wait_s`` in any case.  The
node drops images that it has no time for; the stream has all of them.
"""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
import math
from pathlib import Path

from crossview_localizer.bags.bag import (
    Bag,
    BagError,
    header_stamp_ns,
    refused_messages,
)
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssCourse, GnssFix, OdometrySample
from crossview_localizer.geometry import LocalFrame, Pose2D, wrap_angle
from crossview_localizer.ros import conversions
from crossview_localizer.ros.gnss_queue import clock_problem, GnssQueue
from crossview_localizer.ros.image_worker import SETTLE_S
from crossview_localizer.ros.odometry_reader import OdometryReader
from crossview_localizer.ros.odometry_timeline import OdometryTimeline
from crossview_localizer.ros.sensor_rig import SensorRig

# Field of Topics -> the types that are accepted there.
MESSAGE_TYPES = {
    'image': ('sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/Image'),
    'camera_info': ('sensor_msgs/msg/CameraInfo',),
    'gnss': ('sensor_msgs/msg/NavSatFix',),
    'gnss_velocity': (
        'geometry_msgs/msg/TwistWithCovarianceStamped', 'geometry_msgs/msg/TwistStamped'),
    'odometry': ('nav_msgs/msg/Odometry',),
    'tf_static': ('tf2_msgs/msg/TFMessage',),
    'truth': ('geographic_msgs/msg/GeoPoseStamped',),
}


@dataclass(frozen=True)
class TruePose:
    """The true pose of base_link in ``map``: for evaluation, never for the Localizer."""

    stamp_ns: int
    pose: Pose2D


@dataclass(frozen=True)
class Unusable:
    """A message that cannot be used; ``stamp_ns`` is the bag's time where it has no stamp."""

    topic: str
    stamp_ns: int
    reason: str


Event = GnssFix | GnssCourse | OdometrySample | CameraImage | TruePose | Unusable


def read_events(
    bag: str | Path, frame: LocalFrame, node_config: NodeConfig | None = None,
    config: LocalizerConfig | None = None, topics: Topics | None = None,
    images_ns: Collection[int] | None = None,
) -> Iterator[Event]:
    """The events of a bag, in ``map`` as ``frame`` places it.

    A topic whose name is empty is not read.  ``images_ns`` are the stamps of the images that are
    wanted, where not all are: the others are neither decoded nor returned.  The log names what is
    unusable, once, when the reading ends.

    Raises BagError or OSError where the bag cannot be read.
    """
    stream = _EventStream(
        frame, node_config or NodeConfig(), config or LocalizerConfig(), topics or Topics())
    with refused_messages(bag) as refused:
        for event in _read_all(bag, stream, images_ns):
            if isinstance(event, Unusable):
                refused.add(event.topic, event.reason)
            yield event


def _read_all(
    bag: str | Path, stream: '_EventStream', images_ns: Collection[int] | None,
) -> Iterator[Event]:
    with Bag(bag) as opened:
        for connection, bag_ns, data in opened.read_raw(stream.fields):
            yield from stream.advance(bag_ns)
            field = stream.fields[connection.topic]
            try:
                stamp_ns = bag_ns if field == 'tf_static' else header_stamp_ns(data)
                if field == 'image' and images_ns is not None and stamp_ns not in images_ns:
                    continue
                if connection.msgtype not in MESSAGE_TYPES[field]:
                    raise BagError(f'the type is {connection.msgtype}; expected '
                                   + ' or '.join(MESSAGE_TYPES[field]))
                msg = opened.decode(connection, data)
            except BagError as error:
                yield Unusable(connection.topic, bag_ns, str(error))
                continue
            yield from stream.take(field, stamp_ns, msg)
    yield from stream.advance(None)


class _EventStream:
    """What is known so far: the sensors, the newest odometry, and the messages that wait."""

    def __init__(self, frame: LocalFrame, node_config: NodeConfig, config: LocalizerConfig,
                 topics: Topics):
        self.fields = {getattr(topics, field): field for field in MESSAGE_TYPES
                       if getattr(topics, field)}
        self._topics = topics
        self._wait_s = node_config.odometry_wait_s
        self._first_bag_ns: int | None = None
        self._now_s = 0.0  # of the bag, since its first message
        self._timeline = OdometryTimeline(config.filter, lambda: self._now_s)
        self._gnss = {
            field: GnssQueue(self._timeline, self._wait_s, lambda: self._now_s)
            for field in ('gnss', 'gnss_velocity')}
        self._images: deque[_WaitingImage] = deque()
        self._last_image_s = 0.0  # when the image before was due
        self._rig = rig = SensorRig(node_config, config.camera)
        self._convert = {
            'image': lambda msg: rig.camera_image(msg, self._odom_from_base()),
            'camera_info': lambda msg: setattr(rig, 'camera_info', msg),
            'gnss': lambda msg: rig.gnss_fix(msg, frame),
            'gnss_velocity': lambda msg: rig.gnss_course(msg, frame),
            'odometry': OdometryReader(node_config).read,
            'tf_static': rig.static_transforms.add,
            'truth': lambda msg: TruePose(
                conversions.stamp_ns_from_msg(msg.header.stamp), true_pose_from_msg(msg, frame)),
        }

    def advance(self, bag_ns: int | None) -> Iterator[Event]:
        """Go on to a time of the bag, or to its end (None); yield what has waited long enough."""
        if bag_ns is None:
            now_s = math.inf
        else:
            self._first_bag_ns = bag_ns if self._first_bag_ns is None else self._first_bag_ns
            now_s = (bag_ns - self._first_bag_ns) * 1e-9
        while self._images:
            due_s = max(self._images[0].until_s, self._last_image_s) + SETTLE_S
            if due_s >= now_s:
                break
            self._now_s = self._last_image_s = due_s
            yield from self._due_gnss()
            image = self._images.popleft()
            yield from self._converted('image', image.stamp_ns, image.msg)
        # At the end of the bag odometry is silent.
        self._now_s = self._now_s + self._wait_s + SETTLE_S if bag_ns is None else now_s
        yield from self._due_gnss()

    def take(self, field: str, stamp_ns: int, msg) -> Iterator[Event]:
        """Take a message that comes now; yield what follows from it at once."""
        if field == 'image':
            self._images.append(_WaitingImage(stamp_ns, msg, self._now_s + self._wait_s))
        elif field in self._gnss:
            self._gnss[field].add(stamp_ns, msg)
        else:
            for event in self._converted(field, stamp_ns, msg):
                yield event
                if isinstance(event, OdometrySample):
                    self._timeline.advance(event)
        newest = self._timeline.newest
        for image in self._images:
            if newest is not None and image.stamp_ns <= newest.stamp_ns:
                image.until_s = min(image.until_s, self._now_s)
        yield from self._due_gnss()

    def _due_gnss(self) -> Iterator[Event]:
        for field, queue in self._gnss.items():
            for msg, waited_s in queue.take_due():
                stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
                if problem := clock_problem('messages', waited_s):
                    yield Unusable(getattr(self._topics, field), stamp_ns, problem)
                else:
                    yield from self._converted(field, stamp_ns, msg)

    def _converted(self, field: str, stamp_ns: int, msg) -> Iterator[Event]:
        """The record of a message, or that it is unusable; nothing where it makes none."""
        try:
            event = self._convert[field](msg)
        except ValueError as error:
            event = Unusable(getattr(self._topics, field), stamp_ns, str(error))
        if event is not None:
            yield event

    def _odom_from_base(self) -> Pose2D | None:
        return self._timeline.newest and self._timeline.newest.odom_from_base


@dataclass
class _WaitingImage:
    """An image that waits for odometry, at most until ``until_s`` of the bag."""

    stamp_ns: int
    msg: object
    until_s: float


def true_pose_from_msg(msg, frame: LocalFrame) -> Pose2D:
    """GeoPoseStamped, yaw from true east, to a pose in ``map``; ValueError if it is not valid."""
    position = msg.pose.position
    x_m, y_m = frame.xy_from_latlon(position.latitude, position.longitude)
    if not (math.isfinite(x_m) and math.isfinite(y_m)):
        raise ValueError(
            f'({position.latitude}, {position.longitude}) is not a position on the map')
    enu_yaw_rad = conversions.yaw_from_quaternion(msg.pose.orientation)
    yaw_rad = wrap_angle(enu_yaw_rad + frame.convergence_rad(x_m, y_m))
    return Pose2D(float(x_m), float(y_m), float(yaw_rad))
