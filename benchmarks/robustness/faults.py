"""The fault matrix: what a node process says and publishes in each fault, in the flat world.

Each row drives until all is well, breaks one thing, and wants: the diagnostic (level and text),
the pose that is published meanwhile (or that none is), the node running, and all well again once
the fault is over.  A pose counts as honest where the truth is inside its 99.9 % ellipse.
"""

import argparse
from array import array
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
import json
import math
import os
from pathlib import Path
import re
import signal
import struct
import subprocess
import sys
import time
import zlib

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from geographic_msgs.msg import GeoPoseWithCovarianceStamped
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.srv import ChangeState
from nav_msgs.msg import Odometry
import numpy as np
from rcl_interfaces.srv import SetParameters
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from safetensors import safe_open
from safetensors.torch import save_file
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from tf2_msgs.msg import TFMessage

from benchmarks import REPOSITORY
from benchmarks.robustness import flat_world
from benchmarks.robustness.flat_world import FRAME, stamp_ns_at, time_s_of, true_pose
from benchmarks.ros_domain import keep_to_this_machine
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros import conversions

ODOMETRY_HZ, GNSS_HZ, IMAGE_HZ = 20, 5, 4
OK, WARN, ERROR = range(3)
LEVELS = ('OK', 'WARN', 'ERROR')
PARTS_OF_A_DRIVE = ('node', 'camera', 'gnss', 'odometry', 'map', 'matcher', 'filter')
CHI2_999_PLANE = 13.82
SETTLE_S = 0.6           # what was under way when a fault began has come out by then
FAULT_S = 1.5            # a fault lasts at least this long
DEADLINE_S = 120.0
START_DEADLINE_S = 240.0
# On a busy machine the vehicle waits for the node, so that both keep the same time.
MAX_AHEAD_S = 0.3
MAX_HELD_UP_S = 0.5


class FaultError(AssertionError):
    """A row is not as it should be; the message says in what."""


@dataclass
class Row:
    fault: str
    diagnostic: str
    pose: str
    ok: bool


@dataclass(frozen=True)
class Pose:
    """A published pose: driving time of its stamp, distance from the truth, and its gate."""

    time_s: float
    error_m: float
    honest: bool


# --- the node process and a driver


class Trial:
    """One node process at a time, and a driver in this process that plays the vehicle."""

    def __init__(self, folder: Path, files: flat_world.Files):
        self.folder, self.files = folder, files
        self.camera = flat_world.FlatCamera()
        self.time_s = 0.0
        self.hooks: dict[str, Callable] = {}
        self.compressed = self.with_clock = False
        self.processes: list[subprocess.Popen] = []
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.driver = rclpy.create_node('driver', context=self.context)
        self.executor.add_node(self.driver)
        # From the beginning: a node that has not discovered who asks does not answer it.
        self._clients = {
            service: self.driver.create_client(kind, f'/crossview_localizer/{service}')
            for service, kind in (
                ('change_state', ChangeState), ('set_parameters', SetParameters))}
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        image_qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
        self.publishers = {
            name: self.driver.create_publisher(kind, topic, qos)
            for name, kind, topic, qos in (
                ('tf_static', TFMessage, '/tf_static', latched),
                ('camera_info', CameraInfo, 'camera_info', 10),
                ('gnss', NavSatFix, 'gnss', 1000), ('odometry', Odometry, 'odometry', 1000),
                ('image', Image, 'image', image_qos),
                ('jpeg', CompressedImage, 'image/compressed', image_qos),
                ('clock', Clock, '/clock', 10),
                ('initialpose', PoseWithCovarianceStamped, 'initialpose', 10))
        }
        self.publish('tf_static', flat_world.static_transforms())
        self.poses: list[Pose] = []
        self.diagnostics: dict[str, object] = {}
        self.said: dict[str, list[tuple[int, str]]] = defaultdict(list)
        self._next_s = 0.0
        self._echo_s = self._echoed_s = -1.0
        self.driver.create_subscription(
            Odometry, '/crossview_localizer/odometry', self._on_odometry, 100)
        self.driver.create_subscription(
            GeoPoseWithCovarianceStamped, '/crossview_localizer/geopose', self._on_pose, 100)
        self.driver.create_subscription(
            DiagnosticArray, '/diagnostics', self._on_diagnostics, 100)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.driver.destroy_node()
        self.executor.shutdown()
        rclpy.try_shutdown(context=self.context)

    # --- the process

    def start_node(self, *arguments: str, program: tuple[str, ...] = ()) -> subprocess.Popen:
        """A node on the flat map; later ``-p name:=value`` win."""
        parameters = {
            'map_path': self.files.map, 'weights_path': self.files.weights, 'device': 'cpu',
            'image_reliability': 'best_effort', 'sensor_reliability': 'reliable',
            'input_timeout_s': 1.0,
        }
        command = [sys.executable, *(program or ('-m', 'crossview_localizer.node')), '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        log = open(self.folder / f'node{len(self.processes)}.log', 'w+')
        process = subprocess.Popen(
            [*command, *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=REPOSITORY,
            env={**os.environ, 'ROS_HOME': str(self.folder / 'ros_home'),
                 'PYTHONPATH': os.pathsep.join(filter(None, [
                     str(REPOSITORY), os.environ.get('PYTHONPATH')]))})
        process.log = log
        self.processes.append(process)
        return process

    @property
    def process(self) -> subprocess.Popen:
        return self.processes[-1]

    def log_text(self) -> str:
        self.process.log.seek(0)
        return self.process.log.read()

    def _call(self, service: str, request):
        client = self._clients[service]
        self.drive(until=client.service_is_ready)
        future = client.call_async(request)
        self.drive(until=future.done)
        return future.result()

    def change_state(self, *labels: str) -> bool:
        """Lifecycle transitions in turn; False at the first that fails."""
        for label in labels:
            request = ChangeState.Request()
            request.transition.label = label
            if not self._call('change_state', request).success:
                return False
        return True

    def set_parameters(self, **values) -> None:
        request = SetParameters.Request(parameters=[
            Parameter(name, value=value).to_parameter_msg() for name, value in values.items()])
        for result in self._call('set_parameters', request).results:
            if not result.successful:
                raise FaultError(result.reason)

    def reconfigure(self, **values) -> None:
        """Back to unconfigured, other parameters, and up again."""
        self.change_state('deactivate', 'cleanup')
        self.set_parameters(**{name: str(value) for name, value in values.items()})
        if not self.change_state('configure', 'activate'):
            raise FaultError('the node could not be configured again')

    # --- the drive

    def publish(self, topic: str, msg) -> None:
        hook = self.hooks.get(topic)
        msg = hook(msg) if hook else msg
        if msg is not None:
            self.publishers[topic].publish(msg)

    def drive(self, seconds: float = 0.0, until: Callable = lambda: True,
              deadline_s: float = DEADLINE_S) -> None:
        """Drive at least so long and until the condition holds; raises FaultError at the end."""
        end_s, deadline_s = time.monotonic() + seconds, time.monotonic() + deadline_s
        while time.monotonic() < end_s or not until():
            if time.monotonic() > deadline_s:
                raise FaultError(f'not within the deadline; diagnostics: {self.texts()}')
            if self.processes and self.process.poll() is not None:
                raise FaultError(f'the node has ended: {self.log_text()[-500:]}')
            now_s = time.monotonic()
            if now_s >= self._next_s and not self._is_ahead(now_s):
                self._tick()
                # A driver that was held up goes on at its pace and does not rush.
                self._next_s = max(self._next_s, now_s) + 1.0 / ODOMETRY_HZ
            self.executor.spin_once(timeout_sec=max(0.005, self._next_s - time.monotonic()))

    def _is_ahead(self, now_s: float) -> bool:
        """Whether to wait for a node that a busy machine holds up; not for one that is silent."""
        return (now_s - self._echoed_s < MAX_HELD_UP_S
                and self.time_s - self._echo_s > MAX_AHEAD_S)

    def _tick(self) -> None:
        number = round(self.time_s * ODOMETRY_HZ)
        self.time_s = time_s = number / ODOMETRY_HZ
        if self.with_clock:
            self.publish('clock', Clock(clock=conversions.stamp_msg_from_ns(stamp_ns_at(time_s))))
        if number % (ODOMETRY_HZ // GNSS_HZ) == 0:
            self.publish('gnss', flat_world.gnss_msg(time_s))
        self.publish('odometry', flat_world.odometry_msg(time_s))
        if number % (ODOMETRY_HZ // IMAGE_HZ) == 0:
            self.publish('camera_info', self.camera.info_msg())
            msg = self.camera.image_msg(time_s)
            if self.compressed:
                self.publish('jpeg', compressed(msg, '.jpg'))
            else:
                self.publish('image', msg)
        self.time_s += 1.0 / ODOMETRY_HZ

    # --- what comes out

    def _on_pose(self, msg) -> None:
        time_s = time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))
        position = msg.pose.pose.position
        truth = true_pose(time_s)
        away_m = np.array(FRAME.xy_from_latlon(position.latitude, position.longitude)) - [
            truth.x_m, truth.y_m] - np.array(self.hooks.get('moved_m', (0.0, 0.0)))
        covariance = np.array(msg.pose.covariance).reshape(6, 6)[:2, :2]
        finite = np.isfinite(away_m).all() and np.isfinite(covariance).all()
        honest = finite and away_m @ np.linalg.solve(covariance, away_m) < CHI2_999_PLANE
        self.poses.append(Pose(time_s, float(np.hypot(*away_m)), bool(honest)))

    def _on_odometry(self, msg) -> None:
        self._echo_s = time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))
        self._echoed_s = time.monotonic()

    def _on_diagnostics(self, msg) -> None:
        for status in msg.status:
            name = status.name.split(': ')[1]
            self.diagnostics[name] = status
            self.said[name].append((status.level[0], status.message))

    def texts(self) -> dict[str, str]:
        return {
            name: f'{LEVELS[status.level[0]]} {status.message}'
            for name, status in self.diagnostics.items()}

    def heard(self, part: str, level: int, text: str) -> str | None:
        """The part's last message of this level that holds the text, since ``forget``."""
        found = [message for said_level, message in self.said[part]
                 if said_level == level and text in message]
        return found[-1] if found else None

    def is_well(self) -> bool:
        """Every part is OK, but for a match now and then, and poses come."""
        return bool(self.poses) and self.poses[-1].time_s > self.time_s - 1.5 and all(
            self.diagnostics[part].level[0] == OK or part == 'matcher' and any(
                level == OK for level, _ in self.said['matcher'][-4:])
            for part in PARTS_OF_A_DRIVE if part in self.diagnostics
        ) and self.poses[-1].honest and set(PARTS_OF_A_DRIVE) <= set(self.diagnostics)

    def forget(self) -> None:
        self.said.clear()
        self.diagnostics.clear()

    def get_well(self) -> None:
        self.forget()
        self.drive(until=self.is_well)

    def attempt(self, name: str) -> Row:
        """The row of a fault, by its name."""
        fault = next(fault for fault in ALL if fault.name == name)
        self._send_compressed(fault in JPEG_FAULTS)
        return fault(self) if callable(fault) else try_fault(self, fault)

    def _send_compressed(self, compressed: bool) -> None:
        if compressed != self.compressed:
            self.hooks.clear()
            self.reconfigure(image_transport='compressed' if compressed else 'raw')
            self.compressed = compressed


# --- a fault of the usual kind


@dataclass(frozen=True)
class Fault:
    """Something breaks: ``hooks`` change or withhold (None) what is published on a topic.

    ``start`` and ``end`` do once what is not a message's change.  ``poses``: whether poses go on;
    ``honest``: whether each must be, false for what is told in words alone, a known miss.
    """

    name: str
    part: str
    level: int
    text: str
    hooks: dict[str, Callable] = field(default_factory=dict)
    poses: bool = True
    honest: bool = True
    start: Callable = lambda trial: None
    end: Callable = lambda trial: None


def nothing(msg):
    return None


def stamped(time_s: float):
    """A hook that shifts stamps; None sets them to zero."""
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
    """A hook for one message in ``period``, the others untouched."""
    count = iter(range(10**9))
    return lambda msg: change(msg) if next(count) % period == 0 else msg


def of_pixels(change: Callable, encoding: str = 'rgb8') -> Callable:
    """A hook that changes an image's pixels (H, W, 3)."""
    def hook(msg):
        pixels = change(np.array(msg.data, np.uint8).reshape(msg.height, msg.width, 3))
        time_s = time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))
        return flat_world.image_msg(np.ascontiguousarray(pixels), time_s, encoding)
    return hook


def wide(msg: Image) -> Image:
    """The same with 16 bits a channel."""
    pixels = np.array(msg.data, np.uint8).astype('<u2') << 8
    return with_fields(
        encoding='rgb16', step=2 * msg.step, data=array('B', pixels.tobytes()))(msg)


def frozen() -> Callable:
    first = []

    def hook(msg):
        first.append(msg.data)
        msg.data = first[0]
        return msg
    return hook


def bayer(rgb: np.ndarray) -> np.ndarray:
    """Of each pixel the channel that an RGGB mosaic has there."""
    mosaic = rgb[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = rgb[::2, ::2, 0], rgb[1::2, 1::2, 2]
    return mosaic


def compressed(msg: Image, extension: str) -> CompressedImage:
    pixels = np.array(msg.data, np.uint8).reshape(msg.height, msg.width, 3)
    data = cv2.imencode(extension, pixels[..., ::-1])[1]
    return CompressedImage(
        header=msg.header, format=extension[1:], data=array('B', data.tobytes()))


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
    """A hook: from its first message on the odometry's frame lies elsewhere."""
    def hook(msg):
        msg.pose.pose.position.x += away_m
        return msg
    return hook


def reset_of_odometry(trial) -> None:
    """The odometry begins at zero again, and stays with its new frame."""
    origin = odom_from_base(flat_world.odometry_msg(trial.time_s)).inverse()

    def hook(msg):
        return with_pose(msg, origin @ odom_from_base(msg))
    trial.hooks['odometry'] = hook


def bent_odometry(change: Callable) -> Callable:
    """At the start of a fault: from now on odometry tells ``change`` of each of its increments."""
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


mirrored = bent_odometry(lambda step: Pose2D(step.x_m, -step.y_m, -step.yaw_rad))
too_fast = bent_odometry(lambda step: Pose2D(3.0 * step.x_m, 3.0 * step.y_m, step.yaw_rad))


def second_odometry(trial) -> None:
    """Wheel odometry beside the other: same stamps, a frame of its own."""
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
    """Put the vehicle elsewhere, with GNSS, and tell the node by initialpose."""
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


NO_FIX = with_fields(status__status=-1)
GOOD = 'receiving'


def covariance_of(variance_m2: float) -> Callable:
    covariance = np.zeros((3, 3))
    np.fill_diagonal(covariance, variance_m2)
    return with_fields(position_covariance=covariance.ravel())


RAW_FAULTS = [
    Fault('camera stops', 'camera', ERROR, 'nothing received', {'image': nothing}, poses=False),
    Fault('camera freezes', 'camera', ERROR, 'image is frozen', {'image': frozen()}),
    Fault('camera goes black', 'camera', ERROR, 'image is black', {
        'image': of_pixels(lambda rgb: rgb // 100)}),
    Fault('camera saturates', 'camera', ERROR, 'image is saturated', {
        'image': of_pixels(lambda rgb: np.maximum(rgb, 252))}),
    Fault('encoding mono8', 'camera', OK, GOOD, {
        'image': of_pixels(lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), 'mono8')}),
    Fault('encoding bgr8', 'camera', OK, GOOD, {
        'image': of_pixels(lambda rgb: rgb[..., ::-1], 'bgr8')}),
    Fault('encoding bgra8', 'camera', OK, GOOD, {
        'image': of_pixels(lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA), 'bgra8')}),
    Fault('encoding bayer_rggb8', 'camera', OK, GOOD, {
        'image': of_pixels(bayer, 'bayer_rggb8')}),
    Fault('encoding unknown', 'camera', ERROR, "'yuv9'", {
        'image': with_fields(encoding='yuv9')}),
    Fault('encoding rgb16', 'camera', OK, GOOD, {'image': wide}),
    Fault('depth image 32FC1', 'camera', ERROR, "'32FC1'", {
        'image': with_fields(encoding='32FC1')}),
    Fault('image upside down', 'matcher', WARN, '', {
        'image': of_pixels(lambda rgb: rgb[::-1, ::-1])}),
    Fault('image of another frame', 'camera', ERROR, "to 'rear_camera'", {
        'image': with_fields(header__frame_id='rear_camera')}),
    Fault('image of 0 x 0 pixels', 'camera', ERROR, 'image of 0x0 px', {
        'image': with_fields(width=0, height=0, step=0, data=array('B'))}),
    Fault('image that claims 1e9 pixels', 'camera', ERROR, 'expected a step of', {
        'image': with_fields(width=40000, height=25000, step=120000)}),
    Fault('image step too short', 'camera', ERROR, 'expected a step of', {
        'image': with_fields(step=1)}),
    Fault('image shorter than it says', 'camera', ERROR, 'expected a step of', {
        'image': with_fields(data=array('B', bytes(100)))}),
    Fault('image size changes', 'camera', ERROR, 'image is 160x120 px; camera_info describes', {
        'image': of_pixels(small_image)}),
    Fault('image size and camera_info change', 'camera', OK, GOOD, {
        'image': of_pixels(small_image), 'camera_info': half_size_info}),
    Fault('camera_info loses its calibration', 'camera', ERROR, 'not calibrated', {
        'camera_info': with_fields(k=np.zeros(9))}),
    Fault('camera_info with NaN', 'camera', ERROR, 'not finite', {
        'camera_info': with_fields(d=[math.nan] * 5)}),
    Fault('camera_info of 1e9 pixels', 'camera', ERROR, 'camera_info has size', {
        'camera_info': with_fields(width=40000, height=40000)}),
    Fault('camera_info of an unknown lens', 'camera', ERROR, "'octopus'", {
        'camera_info': with_fields(distortion_model='octopus', d=[0.1] * 5)}),
    Fault('GNSS NaN', 'gnss', WARN, 'not a latitude', {
        'gnss': with_fields(latitude=math.nan)}),
    Fault('GNSS without a fix', 'gnss', WARN, 'no fix', {'gnss': NO_FIX}),
    Fault('GNSS at (0, 0)', 'gnss', WARN, 'position (0, 0)', {
        'gnss': with_fields(latitude=0.0, longitude=0.0)}),
    Fault('GNSS covariance zero', 'gnss', WARN, 'are assumed', {'gnss': covariance_of(0.0)}),
    Fault('GNSS covariance NaN', 'gnss', WARN, 'are assumed', {'gnss': covariance_of(math.nan)}),
    Fault('GNSS covariance huge', 'gnss', WARN, 'claim a sigma', {'gnss': covariance_of(1e12)}),
    Fault('GNSS covariance infinite', 'gnss', WARN, 'infinite', {
        'gnss': covariance_of(math.inf)}),
    Fault('GNSS jumps by 300 m', 'gnss', WARN, 'refused by the gate', {
        'gnss': lambda msg: flat_world.gnss_msg(
            time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp)), (300.0, 0.0))}),
    Fault('GNSS of another hemisphere', 'gnss', WARN, 'refused by the gate', {
        'gnss': lambda msg: with_fields(latitude=-msg.latitude)(msg)}),
    Fault('GNSS of another antenna frame', 'gnss', ERROR, "to 'roof'", {
        'gnss': with_fields(header__frame_id='roof')}),
    Fault('GNSS clock 5 s ahead', 'gnss', WARN, 'their clock is ahead', {'gnss': stamped(5.0)}),
    Fault('GNSS stops', 'gnss', ERROR, 'nothing received', {'gnss': nothing}),
    Fault('odometry is reset', 'odometry', WARN, 'odometry jumped', start=reset_of_odometry),
    Fault('odometry jumps', 'odometry', WARN, 'odometry jumped', {
        'odometry': once(jump_of_odometry(50.0))}),
    Fault('odometry NaN', 'odometry', WARN, 'not finite', {
        'odometry': once(with_fields(pose__pose__position__x=math.nan), 3)}),
    Fault('odometry of 1e308 m', 'odometry', WARN, 'position (1e+308', {
        'odometry': once(with_fields(pose__pose__position__x=1e308))}),
    Fault('odometry covariance NaN', 'odometry', OK, GOOD, {
        'odometry': with_fields(pose__covariance=np.full(36, math.nan))}),
    Fault('odometry twist NaN', 'odometry', OK, GOOD, {
        'odometry': with_fields(twist__twist__linear__x=math.nan)}),
    Fault('odometry turns the wrong way', 'filter', ERROR, 'do not trust the pose',
          honest=False, start=mirrored, end=tell_pose),
    Fault('odometry three times too fast', 'filter', ERROR, 'do not trust the pose',
          honest=False, start=too_fast, end=tell_pose),
    Fault('two odometries on one topic', 'odometry', WARN, 'has 2 publishers',
          start=second_odometry, end=lambda trial: trial.stop_second()),
    Fault('odometry clock 10 s behind', 'gnss', WARN, 'for odometry of their time', {
        'odometry': stamped(-10.0)}),
    Fault('odometry without rotation', 'odometry', WARN, 'is not a rotation', {
        'odometry': once(with_fields(
            pose__pose__orientation__w=0.0, pose__pose__orientation__z=0.0), 3)}),
    Fault('odometry of another frame', 'odometry', ERROR, "child_frame_id is 'wheel'", {
        'odometry': with_fields(child_frame_id='wheel')}),
    Fault('odometry stops', 'odometry', ERROR, 'nothing received', {'odometry': nothing}),
    Fault('odometry stamps zero', 'odometry', WARN, 'stamp is 0 ns', {
        'odometry': once(stamped(None), 4)}),
    Fault('odometry stamps in the future', 'odometry', WARN, 'stamp jumped ahead by 3600', {
        'odometry': once(stamped(3600.0), 4)}),
    Fault('odometry stamps jump back', 'odometry', WARN, 'stamp jumped back by 10', {
        'odometry': once(stamped(-10.0), 4)}),
    Fault('image stamps zero', 'camera', WARN, 'stamp is 0 ns', {'image': stamped(None)},
          poses=False),
    Fault('image stamps in the future', 'camera', WARN, 'ahead of the last odometry', {
        'image': stamped(3600.0)}, poses=False),
    Fault('image stamps jump back', 'camera', WARN, 'before the last odometry', {
        'image': stamped(-20.0)}, poses=False),
    Fault('GNSS stamps zero', 'gnss', WARN, 'stamp is 0 ns', {'gnss': stamped(None)}),
    Fault('GNSS stamps in the future', 'gnss', WARN, 'ahead of the last odometry', {
        'gnss': stamped(3600.0)}),
    Fault('GNSS stamps jump back', 'gnss', WARN, 'older than the delay buffer', {
        'gnss': stamped(-20.0)}),
    Fault('/tf_static with NaN', 'node', WARN, '/tf_static: camera_optical',
          start=lambda trial: trial.publish('tf_static', nan_transform()),
          end=lambda trial: trial.publish('tf_static', flat_world.static_transforms())),
    Fault('initialpose NaN', 'node', WARN, 'initialpose',
          start=lambda trial: trial.publish('initialpose', nan_pose()), end=tell_pose),
    Fault('map left by the car', 'matcher', WARN, 'outside the map', {},
          start=moved_by(500.0, 0.0), end=tell_pose),
    Fault('all inputs stop', 'odometry', ERROR, 'nothing received', {
        name: nothing for name in ('image', 'camera_info', 'gnss', 'odometry')}, poses=False),
    Fault('bag looped without /clock', 'node', WARN, 'stamps of the odometry jumped back', {},
          start=at_time(-20.0)),
]
JPEG_FAULTS = [
    Fault('encoding jpeg', 'camera', OK, GOOD, {}),
    Fault('encoding png', 'camera', OK, GOOD, {'jpeg': lambda msg: compressed(
        flat_world.image_msg(cv2.imdecode(np.frombuffer(msg.data, np.uint8), 1)[..., ::-1],
                             time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))),
        '.png')}),
    Fault('jpeg cut short', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(lambda data: data[:len(data) // 2])}),
    Fault('jpeg of random bytes', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(lambda data: np.random.default_rng(0).bytes(len(data)))}),
    Fault('jpeg empty', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(lambda data: b'')}),
    Fault('png of 3.6e9 pixels', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(png_bomb)}),
]


def nan_transform() -> TFMessage:
    msg = flat_world.static_transforms()
    msg.transforms[1].transform.translation.x = math.nan
    return msg


def nan_pose() -> PoseWithCovarianceStamped:
    msg = PoseWithCovarianceStamped()
    msg.pose.pose.orientation.w = math.nan
    return msg


def try_fault(trial: Trial, fault: Fault) -> Row:
    """Drive well, break it, mend it; a Row of what was seen."""
    heard = poses = ''
    try:
        trial.hooks.clear()
        trial.get_well()
        trial.forget()
        trial.poses.clear()
        trial.hooks.update(fault.hooks)
        fault.start(trial)
        began_s = trial.time_s
        trial.drive(FAULT_S, until=lambda: trial.heard(fault.part, fault.level, fault.text)
                    and (not fault.poses or any(
                        pose.time_s > began_s + SETTLE_S for pose in trial.poses)))
        level = LEVELS[fault.level]
        heard = f'{fault.part} {level}: {trial.heard(fault.part, fault.level, fault.text)}'
        during = [pose for pose in trial.poses if pose.time_s > began_s + SETTLE_S]
        poses = described(during)
        if bool(during) != fault.poses:
            raise FaultError(f'expected {"poses" if fault.poses else "no pose"}')
        if fault.honest and not all(pose.honest for pose in during):
            raise FaultError('a pose is not honest')
        if fault.level == OK:
            trial.drive(until=lambda: trial.heard('matcher', OK, 'matching'))

        if fault.start is not reset_of_odometry:
            trial.hooks.clear()
        fault.end(trial)
        trial.get_well()
        if trial.process.poll() is not None:
            raise FaultError(f'the node ended with {trial.process.returncode}')
        return Row(fault.name, heard, poses, True)
    except FaultError as error:
        return Row(fault.name, f'{heard} ({error})', poses, False)


def described(poses: list[Pose]) -> str:
    if not poses:
        return 'none'
    worst_m = max(pose.error_m for pose in poses)
    honest = sum(pose.honest for pose in poses)
    return f'{len(poses)}, at most {worst_m:.1f} m off, {honest} honest'


# --- faults that need more than a hook


def try_steps(name: str, steps: Callable) -> Callable:
    """A row from ``steps(trial)``, which returns the diagnostic and the pose in words."""
    def attempt(trial: Trial) -> Row:
        trial.hooks.clear()
        try:
            diagnostic, pose = steps(trial)
        except FaultError as error:
            return Row(name, f'({error})', '', False)
        return Row(name, diagnostic, pose, True)
    attempt.name = name
    return attempt


def wait_for(trial: Trial, part: str, level: int, text: str) -> str:
    trial.drive(until=lambda: trial.heard(part, level, text))
    return f'{part} {LEVELS[level]}: {trial.heard(part, level, text)}'


def poses_from_now(trial: Trial, count: int = 4) -> str:
    """Wait for poses of from now on and describe them; they must be honest."""
    began_s = trial.time_s + 0.1
    trial.poses.clear()
    trial.drive(until=lambda: sum(pose.time_s > began_s for pose in trial.poses) >= count)
    poses = [pose for pose in trial.poses if pose.time_s > began_s]
    if not all(pose.honest for pose in poses):
        raise FaultError(f'a pose is not honest: {described(poses)}')
    return described(poses)


def bad_file(part: str, text: str, **parameters: Callable) -> Callable:
    """The node is configured with a broken file, then with a good one again."""
    def steps(trial):
        good = {'map_path': trial.files.map, 'weights_path': trial.files.weights}
        trial.forget()
        trial.reconfigure(**{name: make(trial) for name, make in parameters.items()})
        heard = wait_for(trial, part, ERROR, text)
        poses = poses_from_now(trial)
        trial.reconfigure(**good)
        trial.get_well()
        return heard, poses
    return steps


def copy_of(path: Path, name: str, change: Callable) -> Path:
    """A changed copy of a file's bytes."""
    copy = path.with_name(name)
    copy.write_bytes(change(path.read_bytes()))
    return copy


def flipped(data: bytes) -> bytes:
    return data[:100] + bytes(byte ^ 0x5a for byte in data[100:400]) + data[400:]


def nan_weights(trial: Trial) -> Path:
    path = trial.folder / 'nan.safetensors'
    with safe_open(trial.files.weights, framework='pt') as file:
        tensors = {key: file.get_tensor(key) * math.nan for key in file.keys()
                   if file.get_tensor(key).is_floating_point()}
        tensors |= {key: file.get_tensor(key) for key in file.keys() if key not in tensors}
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    return path


def other_map(trial: Trial) -> Path:
    folder = trial.folder / 'other'
    folder.mkdir(exist_ok=True)
    return flat_world.make_files(folder, seed=1).map


def gpu_absent(trial: Trial):
    trial.forget()
    trial.reconfigure(device='cuda')
    try:
        status = wait_for(trial, 'map', WARN, 'no GPU is available')
    except FaultError:
        import torch
        if not torch.cuda.is_available():
            raise
        status = '(a GPU is present)'
    poses = poses_from_now(trial)
    trial.reconfigure(device='cpu')
    trial.get_well()
    return status, poses


# Where there is no GPU to fill, the node is made to believe in one whose network fails.
OUT_OF_MEMORY = """
import sys, torch
from crossview_localizer import node
from crossview_localizer.networks import checkpoint
from crossview_localizer.localizer import load_localizer

class Full:
    def __init__(self, matcher): self.matcher, self.left = matcher, 12
    def embed(self, *args):
        self.left -= 1
        if self.left < 0:
            raise torch.OutOfMemoryError('CUDA out of memory (injected)')
        return self.matcher.embed(*args)
    def __getattr__(self, name): return getattr(self.matcher, name)

def load(path, weights, config, device, **rest):
    localizer = load_localizer(path, weights, config, 'cpu', **rest)
    if device == 'cuda':
        localizer.matcher = Full(localizer.matcher)
    return localizer

def prepare(device, threads):
    torch.set_num_threads(threads)
    return 'cuda', ''

checkpoint.prepare_torch = prepare
node.load_localizer = load
sys.exit(node.main())
"""


def gpu_out_of_memory(trial: Trial):
    end_process(trial)
    trial.start_node(program=('-c', OUT_OF_MEMORY))
    trial.forget()
    trial.drive(until=lambda: trial.heard('matcher', OK, 'matching'), deadline_s=START_DEADLINE_S)
    heard = wait_for(trial, 'map', WARN, 'running on the CPU since')
    trial.forget()
    trial.drive(until=lambda: trial.heard('matcher', OK, 'matching'))
    poses = poses_from_now(trial)
    return heard, poses


def slow_subscriber(trial: Trial):
    """A reliable subscriber that never reads, in a context that nobody spins."""
    trial.get_well()
    context = rclpy.Context()
    rclpy.init(context=context)
    sleeper = rclpy.create_node('sleeper', context=context)
    qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
    for kind, topic in ((GeoPoseWithCovarianceStamped, 'geopose'), (Odometry, 'odometry'),
                        (PoseWithCovarianceStamped, 'pose')):
        sleeper.create_subscription(kind, f'/crossview_localizer/{topic}', lambda msg: None, qos)
    trial.drive(3.0)
    poses = poses_from_now(trial, 8)
    trial.get_well()
    text = trial.texts()['matcher']
    sleeper.destroy_node()
    rclpy.try_shutdown(context=context)
    return f'matcher {text}', poses


def map_overwritten(trial: Trial):
    """A new map is put where the running node's one was, as build_map and rsync do it."""
    trial.get_well()
    good = trial.files.map.read_bytes()
    for content in (other_map(trial).read_bytes(), good[:1000]):
        writing = trial.files.map.with_name('new.map')
        writing.write_bytes(content)
        writing.replace(trial.files.map)
        trial.forget()
        trial.drive(2.0, until=lambda: trial.heard('matcher', OK, 'matching'))
    poses = poses_from_now(trial)
    text = trial.texts()['map']
    trial.files.map.write_bytes(good)
    return f'map {text}', poses


def last_pose_not_kept(trial: Trial):
    """The folder of the kept pose cannot be written to, then can."""
    trial.get_well()
    folder = trial.folder / 'ros_home/crossview_localizer'
    folder.rename(folder.with_name('away'))
    folder.write_text('')
    trial.drive(until=lambda: 'not kept' in value(trial, 'node', 'last_pose'))
    text = value(trial, 'node', 'last_pose')
    poses = poses_from_now(trial)
    folder.unlink()
    folder.with_name('away').rename(folder)
    trial.forget()
    trial.drive(until=lambda: 'node' in trial.diagnostics
                and not value(trial, 'node', 'last_pose'))
    trial.get_well()
    return f'node OK: last_pose {text}', poses


def clock_restarted(trial: Trial):
    trial.with_clock = True
    trial.set_parameters(use_sim_time=True)
    trial.get_well()
    trial.forget()
    trial.time_s = max(0.0, trial.time_s - 20.0)
    heard = wait_for(trial, 'node', WARN, 'the clock jumped back')
    trial.get_well()
    poses = poses_from_now(trial)
    trial.set_parameters(use_sim_time=False)
    trial.with_clock = False
    return heard, poses


def killed(trial: Trial):
    """SIGKILL in mid-drive; the new node must have its pose with the next fix."""
    trial.get_well()
    trial.drive(1.5)
    end_process(trial)
    # On a busy machine it takes longer than 30 s to start.
    trial.start_node('-p', 'last_pose_max_age_s:=200.0')
    trial.forget()
    trial.poses.clear()
    trial.drive(until=lambda: 'gnss' in trial.diagnostics and count(trial, 'gnss', 'received') > 0,
                deadline_s=START_DEADLINE_S)
    trial.drive(until=lambda: trial.poses)
    used = count(trial, 'gnss', 'received')
    trial.get_well()
    if not trial.poses[0].honest:
        raise FaultError(f'the first pose is not honest: {described(trial.poses[:1])}')
    if 'goes on from its last pose' not in value(trial, 'node', 'last_restart'):
        raise FaultError('the node did not go on from its last pose')
    return (f'node OK: {value(trial, "node", "last_restart")}',
            f'back within {used} fixes: {described(trial.poses)}')


def value(trial: Trial, part: str, key: str) -> str:
    status = trial.diagnostics.get(part)
    return next((item.value for item in status.values if item.key == key), '') if status else ''


def count(trial: Trial, part: str, key: str) -> int:
    return int(value(trial, part, key) or 0)


def two_nodes(trial: Trial):
    """A second node in a namespace of its own, remapped to the same sensors."""
    trial.get_well()
    second = []
    subscription = trial.driver.create_subscription(
        GeoPoseWithCovarianceStamped, '/second/crossview_localizer/geopose', second.append, 10)
    first = trial.process
    process = trial.start_node(
        '-r', '__ns:=/second', '-p', 'qos_overrides./gnss.subscription.depth:=50',
        *(part for name in ('image', 'camera_info', 'gnss', 'odometry')
          for part in ('-r', f'{name}:=/{name}')))
    try:
        trial.drive(until=lambda: len(second) > 4, deadline_s=START_DEADLINE_S)
        if first.poll() is not None:
            raise FaultError('the first node ended')
    finally:
        process.kill()
        process.wait()
        trial.processes.remove(process)
        trial.driver.destroy_subscription(subscription)
    trial.get_well()
    return 'both OK', f'{poses_from_now(trial)}; of the second node {len(second)}'


def interrupted_twice(trial: Trial):
    trial.get_well()
    trial.process.send_signal(signal.SIGINT)
    trial.process.send_signal(signal.SIGINT)
    try:
        code = trial.process.wait(20.0)
    except subprocess.TimeoutExpired as error:
        raise FaultError('the node did not end') from error
    if code != 0 or 'Traceback' in trial.log_text():
        raise FaultError(f'exit code {code}: {trial.log_text()[-300:]}')
    trial.start_node()
    trial.forget()
    trial.drive(until=trial.is_well, deadline_s=START_DEADLINE_S)
    return 'exit code 0, no traceback', f'after a new start: {poses_from_now(trial)}'


def end_process(trial: Trial) -> None:
    trial.process.kill()
    trial.process.wait()


STEPS = [try_steps(*row) for row in (
    ('map missing', bad_file('map', 'does not exist', map_path=lambda t: t.folder / 'no.map')),
    ('map truncated', bad_file('map', 'is damaged', map_path=lambda t: copy_of(
        t.files.map, 'cut.map', lambda data: data[:len(data) // 2]))),
    ('map is not one', bad_file('map', 'prior alone', map_path=lambda t: t.files.orthophoto)),
    ('map of other weights', bad_file('map', 'was made with the weights', map_path=other_map)),
    ('weights missing', bad_file('map', 'no weights', weights_path=lambda t: t.folder / 'no.w')),
    ('weights truncated', bad_file('map', 'prior alone', weights_path=lambda t: copy_of(
        t.files.weights, 'cut.w', lambda data: data[:len(data) // 2]))),
    ('weights corrupt', bad_file('map', 'prior alone', weights_path=lambda t: copy_of(
        t.files.weights, 'flipped.w', flipped))),
    ('weights of NaN', bad_file('map', 'prior alone', weights_path=nan_weights)),
    ('GPU absent', gpu_absent),
    ('/clock restarted', clock_restarted),
    ('map file exchanged mid-run', map_overwritten),
    ('last pose cannot be kept', last_pose_not_kept),
    ('slow subscriber', slow_subscriber),
    ('two nodes side by side', two_nodes),
    ('node killed and started again', killed),
    ('second SIGINT', interrupted_twice),
    ('GPU out of memory mid-run (injected)', gpu_out_of_memory),
)]


ALL = [*RAW_FAULTS, *JPEG_FAULTS, *STEPS]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.robustness.faults',
        description='Tries every fault on a node process and writes what it said and published.',
        epilog='example: python -m benchmarks.robustness.faults --only GNSS --out faults.json')
    parser.add_argument(
        '--out', type=Path, default=REPOSITORY / 'docs/results/faults.json', metavar='FILE')
    parser.add_argument(
        '--only', default='', metavar='REGEX',
        help='rows whose name this matches; no file is written')
    parser.add_argument('--log', type=Path, metavar='FILE', help="keep the node's log")
    arguments = parser.parse_args(argv)
    keep_to_this_machine()
    rows = []

    def note(row: Row) -> None:
        row.diagnostic = row.diagnostic.replace(folder, 'FOLDER')
        rows.append(row)
        print(f'{"ok  " if row.ok else "FAIL"} {row.fault}: {row.diagnostic} | poses: {row.pose}',
              flush=True)

    chosen = [fault for fault in ALL if re.search(arguments.only, fault.name)]
    with flat_world.temporary_folder() as folder:
        trial = Trial(Path(folder), flat_world.make_files(Path(folder)))
        try:
            trial.start_node()
            trial.drive(until=trial.is_well, deadline_s=START_DEADLINE_S)
            for fault in chosen:
                note(trial.attempt(fault.name))
        finally:
            if arguments.log:
                arguments.log.write_text(trial.log_text())
            trial.close()
    passed = all(row.ok for row in rows)
    if not arguments.only:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(
            {'passed': passed, 'rows': [asdict(row) for row in rows],
             'not_honest': [fault.name for fault in (*RAW_FAULTS, *JPEG_FAULTS)
                            if not fault.honest]}, indent=1) + '\n')
    print(f'{sum(row.ok for row in rows)} of {len(rows)} rows passed')
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
