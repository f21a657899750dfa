"""A trial of the node: its process, and a driver that plays the vehicle in the flat world."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
import os
from pathlib import Path
import subprocess
import sys
import time

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
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from tf2_msgs.msg import TFMessage

from benchmarks import REPOSITORY
from benchmarks.robustness import flat_world
from benchmarks.robustness.flat_world import FRAME, stamp_ns_at, time_s_of, true_pose
from crossview_localizer.ros import conversions

ODOMETRY_HZ, GNSS_HZ, IMAGE_HZ = 20, 5, 4
OK, WARN, ERROR = range(3)
LEVELS = ('OK', 'WARN', 'ERROR')
PARTS_OF_A_DRIVE = ('node', 'camera', 'gnss', 'odometry', 'map', 'matcher', 'filter')
CHI2_999_PLANE = 13.82
SETTLE_S = 0.6           # poses of images taken before the fault have been published by then
FAULT_S = 1.5            # a fault lasts at least this long
DEADLINE_S = 120.0
START_DEADLINE_S = 240.0
# On a busy machine the vehicle waits for a node that is MAX_AHEAD_S behind, unless it has been
# silent for MAX_SILENCE_S.
MAX_AHEAD_S, MAX_SILENCE_S = 0.3, 0.5


class FaultError(AssertionError):
    """The node does not do as expected; the message says what."""


@dataclass(frozen=True)
class PublishedPose:
    """A published pose; it is honest if the truth lies inside its 99.9 % ellipse."""

    time_s: float
    error_m: float
    honest: bool


class NodeTrial:
    """A node process, and a driver in this process that plays the vehicle.

    ``hooks`` change what is published on a topic, or withhold it (None).
    """

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
        # Made at once: a service does not answer a client that it has not yet discovered.
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
        self.poses: list[PublishedPose] = []
        self.diagnostics: dict[str, object] = {}
        self.reports: dict[str, list[tuple[int, str]]] = defaultdict(list)
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
        """Start a node on the flat map; a later ``-p name:=value`` wins."""
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
        """Make these lifecycle transitions in turn; False at the first that fails."""
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
        """Deactivate and clean up, set parameters, then configure and activate again."""
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
        """Drive at least so long and until the condition holds.

        Raises FaultError after ``deadline_s``, or if the node has ended.
        """
        end_s, deadline_s = time.monotonic() + seconds, time.monotonic() + deadline_s
        while time.monotonic() < end_s or not until():
            if time.monotonic() > deadline_s:
                raise FaultError(f'not within the deadline; diagnostics: {self.texts()}')
            if self.processes and self.process.poll() is not None:
                raise FaultError(f'the node has ended: {self.log_text()[-500:]}')
            now_s = time.monotonic()
            if now_s >= self._next_s and not self._is_ahead(now_s):
                self._tick()
                # A driver that was delayed does not catch up.
                self._next_s = max(self._next_s, now_s) + 1.0 / ODOMETRY_HZ
            self.executor.spin_once(timeout_sec=max(0.005, self._next_s - time.monotonic()))

    def _is_ahead(self, now_s: float) -> bool:
        """Whether to wait for a node that is slow (not for one that is silent)."""
        return (now_s - self._echoed_s < MAX_SILENCE_S
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
                self.publish('jpeg', flat_world.compressed_msg(msg, '.jpg'))
            else:
                self.publish('image', msg)
        self.time_s += 1.0 / ODOMETRY_HZ

    # --- what the node publishes

    def _on_pose(self, msg) -> None:
        time_s = time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))
        position = msg.pose.pose.position
        truth = true_pose(time_s)
        away_m = np.array(FRAME.xy_from_latlon(position.latitude, position.longitude)) - [
            truth.x_m, truth.y_m] - np.array(self.hooks.get('moved_m', (0.0, 0.0)))
        covariance = np.array(msg.pose.covariance).reshape(6, 6)[:2, :2]
        finite = np.isfinite(away_m).all() and np.isfinite(covariance).all()
        honest = finite and away_m @ np.linalg.solve(covariance, away_m) < CHI2_999_PLANE
        self.poses.append(PublishedPose(time_s, float(np.hypot(*away_m)), bool(honest)))

    def _on_odometry(self, msg) -> None:
        self._echo_s = time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))
        self._echoed_s = time.monotonic()

    def _on_diagnostics(self, msg) -> None:
        for status in msg.status:
            name = status.name.split(': ')[1]
            self.diagnostics[name] = status
            self.reports[name].append((status.level[0], status.message))

    def texts(self) -> dict[str, str]:
        """The latest level and message of each part."""
        return {
            name: f'{LEVELS[status.level[0]]} {status.message}'
            for name, status in self.diagnostics.items()}

    def find_report(self, part: str, level: int, text: str) -> str | None:
        """The last report of a part with this level and text, since ``clear_reports``."""
        found = [message for reported_level, message in self.reports[part]
                 if reported_level == level and text in message]
        return found[-1] if found else None

    def is_well(self) -> bool:
        """Whether every part is OK (the matcher: lately) and honest poses are published."""
        return bool(self.poses) and self.poses[-1].time_s > self.time_s - 1.5 and all(
            self.diagnostics[part].level[0] == OK or part == 'matcher' and any(
                level == OK for level, _ in self.reports['matcher'][-4:])
            for part in PARTS_OF_A_DRIVE if part in self.diagnostics
        ) and self.poses[-1].honest and set(PARTS_OF_A_DRIVE) <= set(self.diagnostics)

    def clear_reports(self) -> None:
        self.reports.clear()
        self.diagnostics.clear()

    def drive_until_well(self) -> None:
        self.clear_reports()
        self.drive(until=self.is_well)

    def send_compressed(self, compressed: bool) -> None:
        """Send compressed images from now on, or raw ones."""
        if compressed != self.compressed:
            self.hooks.clear()
            self.reconfigure(image_transport='compressed' if compressed else 'raw')
            self.compressed = compressed


def diagnostic_value(trial: NodeTrial, part: str, key: str) -> str:
    """A value of the latest diagnostics of a part; empty if there is none."""
    status = trial.diagnostics.get(part)
    return next((item.value for item in status.values if item.key == key), '') if status else ''


def diagnostic_count(trial: NodeTrial, part: str, key: str) -> int:
    return int(diagnostic_value(trial, part, key) or 0)


def end_process(trial: NodeTrial) -> None:
    trial.process.kill()
    trial.process.wait()


def describe_poses(poses: list[PublishedPose]) -> str:
    if not poses:
        return 'none'
    worst_m = max(pose.error_m for pose in poses)
    honest = sum(pose.honest for pose in poses)
    return f'{len(poses)}, at most {worst_m:.1f} m off, {honest} honest'
