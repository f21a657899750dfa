"""A bag without ROS processes: its contents in ``map``, and the offline Localizer over it.

The Localizer gets the messages in the order of the bag and by the node's own rule: an image is
processed once odometry has reached its stamp, or after ``odometry_wait_s`` without.  Where the
node drops no image both give the same poses.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.highlevel import AnyReader
import yaml

from crossview_localizer.bags.topics import Topics
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs
from crossview_localizer.config import (
    CameraConfig,
    config_from_flat,
    LocalizerConfig,
    NodeConfig,
    tunables,
)
from crossview_localizer.datatypes import GnssFix, Localization, PoseEstimate
from crossview_localizer.geometry import LocalFrame, Pose2D, wrap_angle
from crossview_localizer.localizer import Localizer
from crossview_localizer.ros import conversions
from crossview_localizer.ros.sensor_rig import SensorRig
from crossview_localizer.trajectory import Track

# What the node takes on gnss_velocity.
VELOCITY_TYPES = (
    'geometry_msgs/msg/TwistWithCovarianceStamped', 'geometry_msgs/msg/TwistStamped')


@dataclass(frozen=True)
class Drive:
    """What a bag holds beside its pictures, in ``map``; ``truth`` is for evaluation only."""

    image_stamps_ns: np.ndarray
    odometry: Track
    fixes: list[GnssFix]
    truth: Track


@dataclass(frozen=True)
class NodeOutputs:
    """What the node published, by topic."""

    poses: Track
    priors: Track
    matches: Track
    latency_ms: np.ndarray


def read_parameters(path: str | Path) -> tuple[NodeConfig, LocalizerConfig]:
    """The configs of a ROS parameter file (one wildcard node).

    Raises OSError or ValueError with what was found and expected.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
        nested = content['/**']['ros__parameters']
        values = dict(_flattened('', nested))
    except (
        yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError, RecursionError,
    ) as error:
        raise ValueError(
            f'{path} is no parameter file ({" ".join(str(error).split())}); expected /**: '
            'ros__parameters:') from error
    of_node = {name: values.pop(name) for name in tunables(NodeConfig()) if name in values}
    return config_from_flat(NodeConfig, of_node), config_from_flat(LocalizerConfig, values)


def _flattened(prefix: str, nested: dict) -> Iterator[tuple[str, object]]:
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _flattened(f'{prefix}{key}.', value)
        else:
            yield prefix + key, value


def messages(bag: str | Path, topics=None) -> Iterator[tuple[str, int, object]]:
    """(topic, bag time in ns, message) in the bag's order; all topics, or only those named.

    Raises ValueError or OSError where the bag cannot be read.
    """
    bag = Path(bag)
    if not bag.exists():
        raise FileNotFoundError(f'bag {bag} does not exist')
    try:
        typestore = typestore_with_geographic_msgs()
        with AnyReader([bag], default_typestore=typestore) as reader:
            chosen = [c for c in reader.connections if topics is None or c.topic in topics]
            for connection, bag_ns, data in reader.messages(chosen) if chosen else ():
                yield connection.topic, bag_ns, reader.deserialize(data, connection.msgtype)
    except OSError:
        raise
    except Exception as error:  # on damaged bytes rosbags raises whatever its decoders do
        problem = ' '.join(str(error).split()) or type(error).__name__
        raise ValueError(
            f'{bag} cannot be read as a bag ({problem}); expected a whole rosbag2 recording'
        ) from error


def _valid_fix(rig: SensorRig, msg, frame: LocalFrame) -> GnssFix | None:
    """None where the fix is not valid or its antenna's place is not known."""
    try:
        return rig.gnss_fix(msg, frame)
    except ValueError:
        return None


def localize(
    bag: str | Path, localizer: Localizer, node_config: NodeConfig | None = None,
    topics: Topics | None = None,
) -> Iterator[Localization]:
    """Feed a bag to the Localizer and yield what each image gave, in order."""
    node_config, topics = node_config or NodeConfig(), topics or Topics()
    rig = SensorRig(node_config, localizer.config.camera)
    waiting = deque()
    sample = None

    def process_first() -> Localization:
        _, msg = waiting.popleft()
        try:
            image = rig.camera_image(msg, sample and sample.odom_from_base)
        except ValueError as error:
            return localizer.pass_image(_stamp_ns(msg), str(error))
        return localizer.process_image(image)

    wanted = (topics.image, topics.camera_info, topics.gnss, topics.gnss_velocity,
              topics.odometry, topics.tf_static)
    for topic, bag_ns, msg in messages(bag, wanted):
        while waiting and bag_ns > waiting[0][0] + node_config.odometry_wait_s * 1e9:
            yield process_first()
        if topic == topics.tf_static:
            rig.static_transforms.add(msg)
        elif topic == topics.camera_info:
            rig.camera_info = msg
        elif topic == topics.image:
            waiting.append((bag_ns, msg))
        elif topic == topics.gnss:
            fix = _valid_fix(rig, msg, localizer.frame)
            if fix is not None:
                localizer.add_gnss(fix)
        elif topic == topics.gnss_velocity and msg.__msgtype__ in VELOCITY_TYPES:
            try:
                localizer.add_course(rig.gnss_course(msg, localizer.frame))
            except ValueError:
                continue
        elif topic == topics.odometry:
            try:
                sample = conversions.odometry_sample_from_msg(msg)
            except ValueError:
                continue
            localizer.add_odometry(sample)
            while waiting and _stamp_ns(waiting[0][1]) <= sample.stamp_ns:
                yield process_first()
    while waiting:
        yield process_first()


def read_drive(
    bag: str | Path, frame: LocalFrame, node_config: NodeConfig | None = None,
    topics: Topics | None = None,
) -> Drive:
    """Odometry, fixes, truth and the images' stamps of a bag."""
    node_config, topics = node_config or NodeConfig(), topics or Topics()
    rig = SensorRig(node_config, CameraConfig())
    image_stamps_ns, fixes, odometry, truth = [], [], [], []
    wanted = (topics.image, topics.gnss, topics.odometry, topics.tf_static, topics.truth)
    for topic, _, msg in messages(bag, wanted):
        if topic == topics.tf_static:
            rig.static_transforms.add(msg)
        elif topic == topics.image:
            image_stamps_ns.append(_stamp_ns(msg))
        elif topic == topics.gnss:
            fix = _valid_fix(rig, msg, frame)
            if fix is not None:
                fixes.append(fix)
        elif topic == topics.odometry:
            odometry.append((_stamp_ns(msg), conversions.odometry_sample_from_msg(msg)))
        elif topic == topics.truth:
            truth.append((_stamp_ns(msg), true_pose_from_msg(msg, frame)))
    return Drive(
        np.unique(np.array(image_stamps_ns, np.int64)),
        Track.from_poses([ns for ns, _ in odometry], [s.odom_from_base for _, s in odometry]),
        fixes, Track.from_poses([ns for ns, _ in truth], [pose for _, pose in truth]))


def true_pose_from_msg(msg, frame: LocalFrame) -> Pose2D:
    """GeoPoseStamped, yaw from true east, to a pose in ``map``."""
    position = msg.pose.position
    x_m, y_m = frame.xy_from_latlon(position.latitude, position.longitude)
    enu_yaw_rad = conversions.yaw_from_quaternion(msg.pose.orientation)
    yaw_rad = wrap_angle(enu_yaw_rad + frame.convergence_rad(x_m, y_m))
    return Pose2D(float(x_m), float(y_m), float(yaw_rad))


def read_outputs(bag: str | Path, node_name: str = '/crossview_localizer') -> NodeOutputs:
    """What the node's recording holds."""
    poses: dict[str, list[PoseEstimate]] = {'pose': [], 'prior': [], 'match': []}
    latency_ms = []
    wanted = [f'{node_name}/{name}' for name in (*poses, 'latency')]
    for topic, _, msg in messages(bag, wanted):
        name = topic.rsplit('/', 1)[1]
        if name in poses:
            poses[name].append(conversions.pose_estimate_from_msg(msg))
        else:
            latency_ms.append(msg.data)
    return NodeOutputs(
        *(_track(poses[name]) for name in ('pose', 'prior', 'match')), np.array(latency_ms))


def posteriors(localizations: list[Localization]) -> Track:
    """The poses that images gave; those before the filter's start are left out."""
    return _track([result.posterior for result in localizations if result.posterior is not None])


def _track(estimates: list[PoseEstimate]) -> Track:
    return Track.from_poses(
        [estimate.stamp_ns for estimate in estimates],
        [estimate.pose for estimate in estimates],
        [estimate.covariance for estimate in estimates])


def _stamp_ns(msg) -> int:
    return conversions.stamp_ns_from_msg(msg.header.stamp)
