"""What a fault does to messages: hooks that change one, and functions that start such a change.

A hook takes a message and returns it changed, or None to withhold it.
"""

from array import array
from collections.abc import Callable
import math
import struct
import zlib

import cv2
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
import numpy as np
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from benchmarks.robustness import flat_world
from benchmarks.robustness.flat_world import stamp_ns_at, time_s_of, true_pose
from benchmarks.robustness.node_trial import ODOMETRY_HZ
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros import conversions


def nothing(msg):
    return None


def shift_stamps(time_s: float):
    """A hook that shifts stamps by ``time_s``; None sets them to zero."""
    def shift(msg):
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        new_ns = 0 if time_s is None else stamp_ns + round(time_s * 1e9)
        msg.header.stamp = conversions.stamp_msg_from_ns(new_ns)
        return msg
    return shift


def with_fields(**values):
    """A hook that sets fields by name, ``__`` for a dot."""
    def change(msg):
        for name, value in values.items():
            *path, last = name.split('__')
            target = msg
            for step in path:
                target = getattr(target, step)
            setattr(target, last, value)
        return msg
    return change


def once(change: Callable, period: int = 20) -> Callable:
    """A hook that changes one message in ``period``."""
    count = iter(range(10**9))
    return lambda msg: change(msg) if next(count) % period == 0 else msg


def of_pixels(change: Callable, encoding: str = 'rgb8') -> Callable:
    """A hook that changes the pixels (H, W, 3) of an image."""
    def hook(msg):
        pixels = change(np.array(msg.data, np.uint8).reshape(msg.height, msg.width, 3))
        time_s = time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))
        return flat_world.image_msg(np.ascontiguousarray(pixels), time_s, encoding)
    return hook


def wide(bits: int = 16) -> Callable:
    """A hook that gives 16 bits per channel, of which the lower ``bits`` are filled."""
    def hook(msg: Image) -> Image:
        pixels = np.array(msg.data, np.uint8).astype('<u2') << (bits - 8)
        return with_fields(
            encoding='rgb16', step=2 * msg.step, data=array('B', pixels.tobytes()))(msg)
    return hook


def repeated(field: str) -> Callable:
    """A hook that gives each message the field of the first one; the rest goes on."""
    first = []

    def hook(msg):
        first.append(getattr(msg, field))
        setattr(msg, field, first[0])
        return msg
    return hook


def repeated_fix() -> Callable:
    """A hook that gives each fix the position of the first one."""
    latitude, longitude = repeated('latitude'), repeated('longitude')
    return lambda msg: latitude(longitude(msg))


def exchanged(msg):
    """A fix with latitude and longitude exchanged."""
    return with_fields(latitude=msg.longitude, longitude=msg.latitude)(msg)


def bayer(rgb: np.ndarray) -> np.ndarray:
    """An RGGB mosaic: of each pixel the channel that it has there."""
    mosaic = rgb[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
    return mosaic


def with_data(change: Callable) -> Callable:
    """A hook that changes the bytes of a compressed image."""
    def hook(msg):
        msg.data = array('B', change(bytes(msg.data)))
        return msg
    return hook


def png_bomb(data: bytes) -> bytes:
    """A png of 200 bytes that claims 60000 x 60000 pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
            + chunk(b'IDAT', zlib.compress(bytes(10_000))) + chunk(b'IEND', b''))


def jump_of_odometry(away_m: float) -> Callable:
    """A hook that moves the odometry by so much."""
    def hook(msg):
        msg.pose.pose.position.x += away_m
        return msg
    return hook


def reset_of_odometry(trial) -> None:
    """Let the odometry begin at zero again, and stay in its new frame."""
    origin = odom_from_base(flat_world.odometry_msg(trial.time_s)).inverse()

    def hook(msg):
        return with_pose(msg, origin @ odom_from_base(msg))
    trial.hooks['odometry'] = hook


def distort_odometry(change: Callable) -> Callable:
    """The start of a fault in which ``change`` applies to each increment of the odometry."""
    def start(trial):
        before = after = odom_from_base(flat_world.odometry_msg(trial.time_s))

        def hook(msg):
            nonlocal before, after
            now = odom_from_base(msg)
            after, before = after @ change(before.inverse() @ now), now
            return with_pose(msg, after)
        trial.hooks['odometry'] = hook
    return start


def with_pose(msg, pose: Pose2D):
    msg.pose.pose.position.x, msg.pose.pose.position.y = pose.x_m, pose.y_m
    msg.pose.pose.orientation = conversions.quaternion_msg_from_yaw(pose.yaw_rad)
    return msg


mirrored = distort_odometry(lambda step: Pose2D(step.x_m, -step.y_m, -step.yaw_rad))
too_fast = distort_odometry(lambda step: Pose2D(3.0 * step.x_m, 3.0 * step.y_m, step.yaw_rad))


def second_odometry(trial) -> None:
    """Publish a second odometry on the same topic, with the same stamps and another frame."""
    publisher = trial.driver.create_publisher(Odometry, 'odometry', 1000)

    def hook(msg):
        other = flat_world.odometry_msg(time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp)))
        publisher.publish(with_pose(other, Pose2D(100.0, 40.0, 1.0) @ odom_from_base(other)))
        return msg
    trial.hooks['odometry'] = hook
    trial.stop_second = lambda: trial.driver.destroy_publisher(publisher)


def odom_from_base(msg):
    return conversions.odometry_sample_from_msg(msg).odom_from_base


def moved_by(x_m: float, y_m: float) -> Callable:
    """The start of a fault in which the vehicle is elsewhere, by GNSS and by initialpose."""
    def start(trial):
        trial.hooks['moved_m'] = (x_m, y_m)
        trial.hooks['gnss'] = lambda msg: flat_world.gnss_msg(
            time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp)), (x_m, y_m))
        tell_pose(trial, x_m, y_m)
    return start


def tell_pose(trial, x_m: float = 0.0, y_m: float = 0.0) -> None:
    time_s = trial.time_s - 1.0 / ODOMETRY_HZ
    pose = true_pose(time_s)
    estimate = PoseEstimate(
        stamp_ns_at(time_s), type(pose)(pose.x_m + x_m, pose.y_m + y_m, pose.yaw_rad),
        np.diag([1.0, 1.0, 0.01]))
    trial.publish('initialpose', conversions.pose_msg_from_estimate(estimate, 'map'))


def at_time(shift_s: float) -> Callable:
    def start(trial):
        trial.time_s = max(0.0, trial.time_s + shift_s)
    return start


def small_image(rgb: np.ndarray) -> np.ndarray:
    return cv2.resize(rgb, (160, 120), interpolation=cv2.INTER_AREA)


def half_size_info(msg: CameraInfo) -> CameraInfo:
    return flat_world.FlatCamera(160, 120).info_msg()


def upside_down_transforms() -> TFMessage:
    """The camera turned by half about its optical axis."""
    msg = flat_world.static_transforms()
    q = msg.transforms[1].transform.rotation
    q.x, q.y, q.z, q.w = (
        Rotation.from_quat([q.x, q.y, q.z, q.w]) * Rotation.from_euler('z', math.pi)).as_quat()
    return msg


def covariance_of(variance_m2: float) -> Callable:
    covariance = np.zeros((3, 3))
    np.fill_diagonal(covariance, variance_m2)
    return with_fields(position_covariance=covariance.ravel())


def nan_transform() -> TFMessage:
    msg = flat_world.static_transforms()
    msg.transforms[1].transform.translation.x = math.nan
    return msg


def nan_pose() -> PoseWithCovarianceStamped:
    msg = PoseWithCovarianceStamped()
    msg.pose.pose.orientation.w = math.nan
    return msg
