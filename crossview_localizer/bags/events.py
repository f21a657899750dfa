"""A recorded drive as a stream of records, in the order in which the node would take them.

Bag time stands for the clock.  As in the node, a fix or velocity waits until odometry has reached
its stamp, unless odometry is silent.  An image is due ``settle_s`` after odometry has reached its
stamp: at once if it had before the image came, and after ``odometry_wait_s`` in any case.  The
node drops images that it has no time for; the stream has all of them.
"""

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
import math
from pathlib import Path

from crossview_localizer.bags.bag import Bag, BagError, header_stamp_ns
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssCourse, GnssFix, OdometrySample
from crossview_localizer.geometry import LocalFrame, Pose2D, wrap_angle
from crossview_localizer.ros import conversions
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
    wanted, where not all are: the others are neither decoded nor returned.

    Raises BagError or OSError where the bag cannot be read.
    """
    stream = _EventStream(
        frame, node_config or NodeConfig(), config or LocalizerConfig(), topics or Topics())
    with Bag(bag) as opened:
        for connection, bag_ns, data in opened.read_raw(stream.fields):
            yield from stream.due(bag_ns)
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
            yield from stream.take(field, bag_ns, stamp_ns, msg)
    yield from stream.due(None)


@dataclass
class _Waiting:
    """A message that waits for odometry of its time, at most until ``until_ns`` of the bag."""

    stamp_ns: int
    msg: object
    until_ns: int


class _EventStream:
    """What is known so far: the sensors, the newest odometry, and the messages that wait."""

    def __init__(self, frame: LocalFrame, node_config: NodeConfig, config: LocalizerConfig,
                 topics: Topics):
        self.fields = {getattr(topics, field): field for field in MESSAGE_TYPES
                       if getattr(topics, field)}
        self._topics, self._base_frame = topics, node_config.base_frame
        self._wait_ns = round(node_config.odometry_wait_s * 1e9)
        self._settle_ns = round(node_config.settle_s * 1e9)
        self._odometry_lost_ns = round(config.filter.odometry_lost_s * 1e9)
        self._rig = rig = SensorRig(node_config, config.camera)
        self._convert = {
            'image': lambda msg: rig.camera_image(
                msg, self._odometry and self._odometry.odom_from_base),
            'camera_info': lambda msg: setattr(rig, 'camera_info', msg),
            'gnss': lambda msg: rig.gnss_fix(msg, frame),
            'gnss_velocity': lambda msg: rig.gnss_course(msg, frame),
            'odometry': self._odometry_sample,
            'tf_static': rig.static_transforms.add,
            'truth': lambda msg: TruePose(
                conversions.stamp_ns_from_msg(msg.header.stamp), true_pose_from_msg(msg, frame)),
        }
        self._queues: dict[str, deque[_Waiting]] = {
            'gnss': deque(), 'gnss_velocity': deque(), 'image': deque()}
        self._odometry: OdometrySample | None = None
        self._odometry_bag_ns = 0
        self._last_image_bag_ns = 0  # when the image before was processed

    def take(self, field: str, bag_ns: int, stamp_ns: int, msg) -> Iterator[Event]:
        """Take the next message; yield what follows from it at once."""
        arrived = _Waiting(stamp_ns, msg, bag_ns + self._wait_ns)
        if field in self._queues:
            self._queues[field].append(arrived)
        else:
            for event in self._converted(field, arrived):
                yield event
                if isinstance(event, OdometrySample) and (
                        self._odometry is None or event.stamp_ns > self._odometry.stamp_ns):
                    self._odometry, self._odometry_bag_ns = event, bag_ns
        for image in self._queues['image']:
            if self._odometry is not None and image.stamp_ns <= self._odometry.stamp_ns:
                image.until_ns = min(image.until_ns, bag_ns)
        yield from self._due_gnss(bag_ns)

    def due(self, now_ns: int | None) -> Iterator[Event]:
        """What has waited long enough by a time of the bag, or at its end (None)."""
        images = self._queues['image']
        while images:
            due_ns = max(images[0].until_ns, self._last_image_bag_ns) + self._settle_ns
            if now_ns is not None and due_ns >= now_ns:
                break
            yield from self._due_gnss(due_ns)
            yield from self._converted('image', images.popleft())
            self._last_image_bag_ns = due_ns
        yield from self._due_gnss(now_ns)

    def _due_gnss(self, now_ns: int | None) -> Iterator[Event]:
        for field in ('gnss', 'gnss_velocity'):
            queue = self._queues[field]
            while queue and self._gnss_is_due(queue[0].stamp_ns, now_ns):
                yield from self._converted(field, queue.popleft())

    def _gnss_is_due(self, stamp_ns: int, now_ns: int | None) -> bool:
        if now_ns is None or self._odometry is None:
            return True
        silent = now_ns - self._odometry_bag_ns > self._wait_ns
        ahead_ns = stamp_ns - self._odometry.stamp_ns
        return silent or not 0 < ahead_ns <= self._odometry_lost_ns

    def _converted(self, field: str, arrived: _Waiting) -> Iterator[Event]:
        """The record of a message, or that it is unusable; nothing where it makes none."""
        try:
            event = self._convert[field](arrived.msg)
        except ValueError as error:
            event = Unusable(getattr(self._topics, field), arrived.stamp_ns, str(error))
        if event is not None:
            yield event

    def _odometry_sample(self, msg) -> OdometrySample:
        if msg.child_frame_id.lstrip('/') not in ('', self._base_frame):
            raise ValueError(
                f'child_frame_id is {msg.child_frame_id!r}; expected {self._base_frame!r}')
        return conversions.odometry_sample_from_msg(msg)


def true_pose_from_msg(msg, frame: LocalFrame) -> Pose2D:
    """GeoPoseStamped, yaw from true east, to a pose in ``map``; ValueError if it is none."""
    position = msg.pose.position
    x_m, y_m = frame.xy_from_latlon(position.latitude, position.longitude)
    if not (math.isfinite(x_m) and math.isfinite(y_m)):
        raise ValueError(f'({position.latitude}, {position.longitude}) is no place on the map')
    enu_yaw_rad = conversions.yaw_from_quaternion(msg.pose.orientation)
    yaw_rad = wrap_angle(enu_yaw_rad + frame.convergence_rad(x_m, y_m))
    return Pose2D(float(x_m), float(y_m), float(yaw_rad))
