"""The node on real ROS 2: what it publishes, and what it reports of each fault."""

from array import array
from collections import defaultdict
import gc
import math
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy')

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geographic_msgs.msg import GeoPoseWithCovarianceStamped
from geometry_msgs.msg import (
    PoseWithCovarianceStamped,
    TransformStamped,
    TwistStamped,
    TwistWithCovarianceStamped,
)
from lifecycle_msgs.srv import ChangeState, GetState
from nav_msgs.msg import OccupancyGrid, Odometry
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from std_msgs.msg import Float64
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from crossview_localizer import node as node_module
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import (
    Heatmap,
    Localization,
    MatchErrors,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.localizer import Localizer
from crossview_localizer.node import LocalizerNode
from crossview_localizer.ros import conversions, diagnostics, localizer_holder, outputs
from crossview_localizer.ros.input_monitor import InputMonitor
from crossview_localizer.ros.saved_pose import load_saved_pose

FRAME = LocalFrame(51.76, -1.26)
START_NS = 1_400_000_000_000_000_000
ODOMETRY_HZ = 20
LEVER_ARM = (-1.7, 0.1)
CONFIG = LocalizerConfig()


# --- a drive and what its sensors say


def true_pose(time_s: float) -> Pose2D:
    """A circle of radius 100 m at 8 m/s, from the map's origin."""
    angle_rad = 0.08 * time_s
    return Pose2D(100.0 * math.sin(angle_rad), 100.0 * (1.0 - math.cos(angle_rad)), angle_rad)


def stamp_ns_at(time_s: float) -> int:
    return START_NS + round(time_s * 1e9)


def time_s_of(stamp_ns: int) -> float:
    return (stamp_ns - START_NS) * 1e-9


def stamp_at(time_s: float) -> Time:
    return conversions.stamp_msg_from_ns(stamp_ns_at(time_s))


def odometry_msg(time_s: float) -> Odometry:
    odom_from_map = Pose2D(5.0, -3.0, 0.5)
    pose = odom_from_map @ true_pose(time_s)
    msg = Odometry(child_frame_id='base_link')
    msg.header.frame_id = 'odom'
    msg.header.stamp = stamp_at(time_s)
    msg.pose.pose.position.x, msg.pose.pose.position.y = pose.x_m, pose.y_m
    msg.pose.pose.orientation = conversions.quaternion_msg_from_yaw(pose.yaw_rad)
    msg.twist.twist.linear.x = 8.0
    return msg


def gnss_msg(time_s: float, sigma_m=1.0) -> NavSatFix:
    """A fix that is 1 m too far east, as those of a real receiver are off."""
    antenna = true_pose(time_s) @ Pose2D(*LEVER_ARM, 0.0)
    msg = NavSatFix(position_covariance_type=2)
    msg.status.status = 0
    msg.header.frame_id = 'gnss_antenna'
    msg.header.stamp = stamp_at(time_s)
    msg.latitude, msg.longitude = FRAME.latlon_from_xy(antenna.x_m + 1.0, antenna.y_m)
    msg.position_covariance = (np.eye(3) * sigma_m**2).ravel()
    return msg


def velocity_msg(time_s: float, turned_rad=0.0) -> TwistWithCovarianceStamped:
    """The antenna's velocity, sigma 0.1 m/s; the antenna also turns about base_link."""
    course_rad = true_pose(time_s).yaw_rad + turned_rad + math.atan2(
        0.08 * LEVER_ARM[0], 8.0 - 0.08 * LEVER_ARM[1])
    msg = TwistWithCovarianceStamped()
    msg.header.frame_id = 'gnss_antenna'
    msg.header.stamp = stamp_at(time_s)
    msg.twist.twist.linear.x = 8.0 * math.cos(course_rad)
    msg.twist.twist.linear.y = 8.0 * math.sin(course_rad)
    msg.twist.covariance = (np.eye(6) * 0.1**2).ravel()
    return msg


def image_msg(time_s: float, encoding='rgb8') -> Image:
    pixels = np.random.default_rng(stamp_ns_at(time_s)).integers(0, 256, 144, np.uint8)
    msg = Image(height=6, width=8, step=24, encoding=encoding, data=array('B', pixels.tobytes()))
    msg.header.frame_id = 'camera_optical'
    msg.header.stamp = stamp_at(time_s)
    return msg


def camera_info_msg() -> CameraInfo:
    return CameraInfo(
        width=8, height=6, k=[8.0, 0.0, 3.5, 0.0, 8.0, 2.5, 0.0, 0.0, 1.0],
        distortion_model='plumb_bob', d=[0.0] * 5)


def static_transforms() -> TFMessage:
    """The antenna is given in a roof frame: two transforms must be chained."""
    def transform(parent, child, x_m, y_m, rotation=(0.0, 0.0, 0.0, 1.0)):
        msg = TransformStamped(child_frame_id=child)
        msg.header.frame_id = parent
        msg.transform.translation.x, msg.transform.translation.y = x_m, y_m
        q = msg.transform.rotation
        q.x, q.y, q.z, q.w = rotation
        return msg

    return TFMessage(transforms=[
        transform('base_link', 'roof', -1.0, 0.0, (0.0, 0.0, 1.0, 0.0)),
        transform('roof', 'gnss_antenna', 0.7, -0.1),
        transform('base_link', 'camera_optical', 0.0, 0.0, (-0.5, 0.5, -0.5, 0.5)),
    ])


class FakeMap:
    """Covers about the first 40 s of the drive: 100 m around the origin."""

    frame = FRAME
    grid = MapGrid.around(0.0, 0.0, 100.0, 2.0)
    tiles = np.zeros((10, 4))

    def window(self, prior, half_width_m, margin_m):
        if math.hypot(prior.pose.x_m, prior.pose.y_m) > 100.0:
            return None
        return SimpleNamespace(
            grid=MapGrid.around(prior.pose.x_m, prior.pose.y_m, half_width_m, 2.0), coverage=1.0)


class FakeMatcher:
    """Finds the true position to 0.5 m, or nothing while it is ``ambiguous``.

    ``entered`` is set once it is given an image, which it holds until ``gate`` is set.
    """

    margin_m = 0.0
    needs_heading = False
    errors = MatchErrors()
    search_heatmaps = None

    def __init__(self):
        self.ambiguous = False
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def embed(self, image, yaw_rad, pitch_rad):
        self.entered.set()
        assert self.gate.wait(60.0)
        return image.rgb.mean()

    def match(self, ground, window, prior, config):
        x_m, y_m = window.grid.cell_centres()
        truth = true_pose(time_s_of(prior.stamp_ns))
        distance2 = (x_m[None, :] - truth.x_m) ** 2 + (y_m[:, None] - truth.y_m) ** 2
        log_p = -0.5 * distance2 / 4.0
        return Heatmap(prior.stamp_ns, window.grid, log_p - np.log(np.exp(log_p).sum()))

    def estimate(self, heatmap, prior):
        if self.ambiguous:
            return None, 'two streets look alike'
        truth = true_pose(time_s_of(heatmap.stamp_ns))
        pose = Pose2D(truth.x_m, truth.y_m, prior.pose.yaw_rad)
        return PoseEstimate(heatmap.stamp_ns, pose, np.diag([0.25, 0.25, np.inf])), ''


# --- the bench: the node and a driver in one executor


class Bench:
    outputs = {
        'pose': PoseWithCovarianceStamped, 'prior': PoseWithCovarianceStamped,
        'match': PoseWithCovarianceStamped, 'odometry': Odometry, 'heatmap': OccupancyGrid,
        'geopose': GeoPoseWithCovarianceStamped, 'latency': Float64, 'status': DiagnosticStatus,
    }

    def __init__(self, monkeypatch):
        self.matcher = FakeMatcher()
        monkeypatch.setattr(
            localizer_holder, 'load_localizer',
            lambda path, weights, config, device, **rest: Localizer(
                config, FRAME, FakeMap(), self.matcher))
        monkeypatch.setattr(localizer_holder, 'shipped_weights', lambda: 'weights')
        # Often, so that no test waits a second for each text.
        monkeypatch.setattr(node_module, 'DIAGNOSTICS_PERIOD_S', 0.1)
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.driver = rclpy.create_node('driver', context=self.context)
        self.executor.add_node(self.driver)
        self.node = None
        self.received = defaultdict(list)
        self.diagnostics = {}

    def start(self, autostart=True, transforms=True, **parameters):
        # Reliable: no message is lost.  A long timeout: a busy machine is not called silent.
        values = {
            'map_path': 'map', 'device': 'cpu', 'autostart': autostart, 'last_pose_path': '',
            'sensor_reliability': 'reliable', 'image_reliability': 'reliable',
            'input_timeout_s': 60.0, **parameters}
        overrides = [
            Parameter(name if '/' in name else name.replace('__', '.'), value=value)
            for name, value in values.items()]
        self.node = LocalizerNode(context=self.context, parameter_overrides=overrides)
        self.executor.add_node(self.node)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        compressed = values.get('image_transport') == 'compressed'
        kinds = {
            '/tf_static': (TFMessage, latched), 'camera_info': (CameraInfo, 10),
            'gnss': (NavSatFix, 100), 'odometry': (Odometry, 100), 'clock': (Clock, 10),
            'initialpose': (PoseWithCovarianceStamped, 10),
            'image': (CompressedImage if compressed else Image, 10),
        }
        self.publishers = {
            name: self.driver.create_publisher(
                kind, f'{name}/compressed' if compressed and name == 'image' else name, qos)
            for name, (kind, qos) in kinds.items()
        }
        for name, kind in self.outputs.items():
            self.driver.create_subscription(
                kind, f'/crossview_localizer/{name}', self.received[name].append, 100)
        self.driver.create_subscription(TFMessage, '/tf', self.received['tf'].append, 100)
        self.driver.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, 10)
        self.node.autostart()
        if autostart:
            self.wait(lambda: all(
                publisher.get_subscription_count() > 0
                for name, publisher in self.publishers.items()
                if name != 'clock') and self.driver.count_publishers('/tf') > 0)
        if transforms:
            self.publish('/tf_static', static_transforms())
        if autostart:
            self.calibrate(transforms)
        return self

    def _on_diagnostics(self, msg):
        self.diagnostics = {status.name.split(': ')[1]: status for status in msg.status}

    def publish(self, topic, msg):
        self.publishers[topic].publish(msg)

    def wait(self, condition, deadline_s=30.0):
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, (
                f'not true within {deadline_s} s; diagnostics: {self.describe_diagnostics()}')
            self.executor.spin_once(timeout_sec=0.02)

    def describe_diagnostics(self) -> str:
        """The newest diagnostics, with all their values."""
        return '; '.join(
            f'{name}: {status.message} { {value.key: value.value for value in status.values} }'
            for name, status in self.diagnostics.items())

    def value(self, part: str, key: str) -> str:
        """A value of the newest diagnostics, or ''."""
        status = self.diagnostics.get(part)
        values = {value.key: value.value for value in status.values} if status else {}
        return values.get(key, '')

    def count(self, part: str, key: str) -> int:
        return int(self.value(part, key) or 0)

    def expect(self, part: str, level: int, text: str):
        """Wait until /diagnostics says this of a part."""
        def said():
            status = self.diagnostics.get(part)
            return status is not None and status.level == bytes([level]) and (
                text in status.message)
        self.wait(said)

    def calibrate(self, transforms=True):
        """Give the node the intrinsics once it has subscribed to all its sensors."""
        self.wait(lambda: all(
            self.publishers[name].get_subscription_count() > 0
            for name in ('camera_info', 'gnss', 'odometry', 'image')))
        self.publish('camera_info', camera_info_msg())
        self.wait(lambda: self.node.rig.camera_info is not None)
        if transforms:
            self.wait_for_transforms()

    def wait_for_transforms(self):
        """Latched transforms may arrive later than messages sent after them, which need them."""
        transforms = self.node.rig.static_transforms
        self.wait(lambda: transforms.lookup('base_link', 'gnss_antenna') is not None)

    def publish_until(self, topic, msg, arrived):
        """Publish until it has arrived: a new best-effort subscription misses the first ones."""
        for _ in range(6):
            self.publish(topic, msg)
            end_s = time.monotonic() + 5.0
            while time.monotonic() < end_s:
                if arrived():
                    return
                self.executor.spin_once(timeout_sec=0.02)
        raise AssertionError(f'{topic} did not arrive within 30 s')

    def deliver(self, topic, msg, monitor):
        """Publish, and wait until the node has received it."""
        received = monitor.counts['received']
        self.publish(topic, msg)
        self.wait(lambda: monitor.counts['received'] > received)

    def send_odometry(self, time_s):
        """Publish one odometry message and wait until the node has taken it in."""
        self.deliver('odometry', odometry_msg(time_s), self.node.diagnostics.odometry)

    def send_gnss(self, time_s, **kwargs):
        self.deliver('gnss', gnss_msg(time_s, **kwargs), self.node.diagnostics.gnss)

    def add_velocity_publisher(self, kind=TwistWithCovarianceStamped):
        self.publishers['gnss_velocity'] = self.driver.create_publisher(
            kind, 'gnss_velocity', 100)
        return self

    def send_velocity(self, time_s, message=None, **kwargs):
        self.deliver('gnss_velocity', message or velocity_msg(time_s, **kwargs),
                       self.node.diagnostics.velocity)

    def wait_for_image_status(self, time_s) -> dict[str, str]:
        """Wait for what ~/status says of an image; returns its values."""
        seconds, nanoseconds = divmod(stamp_ns_at(time_s), 10**9)

        def of_this_image():
            values = [{value.key: value.value for value in status.values}
                      for status in self.received['status']]
            return [entry for entry in values
                    if entry['stamp'] == f'{seconds}.{nanoseconds:09}']
        self.wait(of_this_image)
        return of_this_image()[-1]

    def process_image(self, time_s, message=None):
        """Publish an image and wait for its pose."""
        poses = len(self.received['pose'])
        self.deliver('image', message or image_msg(time_s), self.node.diagnostics.camera)
        self.wait(lambda: len(self.received['pose']) > poses)

    def drive(self, start_s=0.0, end_s=4.0):
        """GNSS at 5 Hz and odometry, without images; the filter starts within the first 3 s."""
        for tick in range(round(start_s * ODOMETRY_HZ), round(end_s * ODOMETRY_HZ) + 1):
            time_s = tick / ODOMETRY_HZ
            if tick % 4 == 0:
                self.send_gnss(time_s)
            self.send_odometry(time_s)
        return self

    def close(self):
        self.matcher.gate.set()
        if self.node is not None:
            self.node.destroy_node()
        self.driver.destroy_node()
        self.executor.shutdown()
        rclpy.try_shutdown(context=self.context)
        # A node stays in the graph until it is collected, with services that do not answer.
        self.node = self.driver = self.executor = None
        gc.collect()


@pytest.fixture
def bench(monkeypatch, own_domain):
    bench = Bench(monkeypatch)
    yield bench
    bench.close()


# --- what comes out


def position_error_m(msg, time_s: float) -> float:
    truth = true_pose(time_s)
    position = msg.pose.pose.position
    return math.hypot(position.x - truth.x_m, position.y - truth.y_m)


def test_every_image_gives_a_pose_at_its_stamp_and_all_other_outputs(bench):
    bench.start().drive()
    bench.process_image(4.0)
    bench.wait(lambda: all(bench.received[name] for name in bench.outputs))
    pose, = bench.received['pose']
    for name in ('pose', 'prior', 'match', 'geopose', 'heatmap'):
        message, = bench.received[name]
        assert conversions.stamp_ns_from_msg(message.header.stamp) == stamp_ns_at(4.0), name
    assert pose.header.frame_id == 'map'
    assert position_error_m(pose, 4.0) < 1.0
    assert position_error_m(pose, 4.0) < position_error_m(bench.received['prior'][0], 4.0)
    assert position_error_m(bench.received['match'][0], 4.0) < 1e-6
    position = bench.received['geopose'][0].pose.pose.position
    np.testing.assert_allclose(
        FRAME.xy_from_latlon(position.latitude, position.longitude),
        (pose.pose.pose.position.x, pose.pose.pose.position.y), atol=1e-6)
    assert max(bench.received['heatmap'][0].data) == 100
    assert 0.0 < bench.received['latency'][0].data < 5000.0
    bench.expect('matcher', 0, 'matching')
    bench.expect('camera', 0, 'receiving')
    bench.expect('gnss', 0, 'receiving')
    bench.expect('filter', 0, '95 % ellipse')
    bench.expect('map', 0, 'loaded')


def test_the_offline_localizer_gives_the_poses_of_the_node(bench):
    bench.start(odometry_wait_s=1.0)
    offline = Localizer(CONFIG, FRAME, FakeMap(), FakeMatcher())
    rectify = conversions.rectifier_from_msg(
        camera_info_msg(), conversions.base_from_camera_body((0.0,) * 6), CONFIG.camera.height_m)
    expected = []
    for tick in range(8 * ODOMETRY_HZ):
        time_s = tick / ODOMETRY_HZ
        if tick % 4 == 1:
            bench.send_gnss(time_s)
            offline.add_gnss(conversions.gnss_fix_from_msg(
                gnss_msg(time_s), FRAME, LEVER_ARM, 5.0))
        if tick % 5 == 0:
            # The image comes first and waits for the odometry of its stamp.
            bench.publish('image', image_msg(time_s))
            processed = len(expected)
        bench.send_odometry(time_s)
        offline.add_odometry(conversions.odometry_sample_from_msg(odometry_msg(time_s)))
        if tick % 5 == 0:
            image = conversions.camera_image_from_msg(image_msg(time_s), rectify)
            localization = offline.process_image(image)
            if localization.posterior is not None:
                expected.append(localization.posterior)
                bench.wait(lambda n=processed: len(bench.received['pose']) > n)
    assert len(expected) > 15
    assert len(bench.received['pose']) == len(expected)
    for msg, estimate in zip(bench.received['pose'], expected):
        wanted = conversions.pose_msg_from_estimate(estimate, 'map')
        assert msg.header.stamp == wanted.header.stamp
        np.testing.assert_allclose(
            [msg.pose.pose.position.x, msg.pose.pose.position.y],
            [wanted.pose.pose.position.x, wanted.pose.pose.position.y], atol=1e-6)
        np.testing.assert_allclose(
            conversions.yaw_from_quaternion(msg.pose.pose.orientation), estimate.pose.yaw_rad,
            atol=1e-6)
        np.testing.assert_allclose(msg.pose.covariance, wanted.pose.covariance, atol=1e-6)


def test_map_from_odom_times_the_odometry_is_the_published_pose_and_nothing_else_is_on_tf(bench):
    bench.start().drive()
    bench.wait(lambda: bench.received['tf'] and bench.received['odometry'][-1].header.stamp
               == stamp_at(4.0))
    # Stamped later by transform_tolerance_s.
    bench.wait(lambda: bench.received['tf'][-1].transforms[0].header.stamp == stamp_at(4.1))
    tf, = bench.received['tf'][-1].transforms
    assert (tf.header.frame_id, tf.child_frame_id) == ('map', 'odom')
    map_from_odom = Pose2D(
        tf.transform.translation.x, tf.transform.translation.y,
        conversions.yaw_from_quaternion(tf.transform.rotation))
    sample = conversions.odometry_sample_from_msg(odometry_msg(4.0))
    odometry = bench.received['odometry'][-1]
    np.testing.assert_allclose(
        (map_from_odom @ sample.odom_from_base).as_array(),
        conversions.odometry_sample_from_msg(odometry).odom_from_base.as_array(), atol=1e-9)
    assert odometry.child_frame_id == 'base_link'
    assert odometry.twist.twist.linear.x == 8.0
    assert {(t.header.frame_id, t.child_frame_id)
            for message in bench.received['tf'] for t in message.transforms} == {('map', 'odom')}


def test_compressed_images_below_the_name_of_the_image_topic_are_matched(bench):
    import cv2
    bench.start(image_transport='compressed').drive()
    jpeg = cv2.imencode('.jpg', np.arange(144, dtype=np.uint8).reshape(6, 8, 3))[1]
    msg = CompressedImage(format='jpeg', data=array('B', jpeg.tobytes()))
    msg.header = image_msg(4.0).header
    bench.process_image(4.0, msg)
    assert position_error_m(bench.received['pose'][0], 4.0) < 1.0


def test_an_initial_pose_starts_the_node_without_gnss(bench):
    bench.start(input_timeout_s=1.0)
    bench.send_odometry(0.0)
    msg = conversions.pose_msg_from_estimate(
        PoseEstimate(stamp_ns_at(0.0), true_pose(0.0), np.diag([1.0, 1.0, 0.01])), 'map')
    bench.publish('initialpose', msg)
    bench.wait(lambda: bench.node.localizer.estimate_at(stamp_ns_at(0.0)) is not None)
    for tick in range(1, 21):
        bench.send_odometry(tick / ODOMETRY_HZ)
    bench.process_image(1.0)
    assert position_error_m(bench.received['pose'][0], 1.0) < 1.0
    bench.expect('gnss', 2, 'nothing received')


def test_an_initial_pose_without_heading_is_taken_and_begins_a_search(bench):
    bench.matcher.search_heatmaps = lambda *args: []
    bench.start()
    bench.send_odometry(0.0)
    unknown = PoseEstimate(stamp_ns_at(0.0), true_pose(0.0), np.diag([1.0, 1.0, 10.0]))
    bench.publish('initialpose', conversions.pose_msg_from_estimate(unknown, 'elsewhere'))
    bench.expect('node', 1, "initialpose: frame_id is 'elsewhere'; expected 'map'")
    bench.publish('initialpose', conversions.pose_msg_from_estimate(unknown, 'map'))
    bench.wait(lambda: bench.node.localizer.match_state == 'searching')
    bench.expect('node', 0, 'active')


def yaw_sigma_rad(bench, time_s: float) -> float:
    return math.sqrt(bench.node.localizer.estimate_at(stamp_ns_at(time_s)).covariance[2, 2])


def test_a_velocity_of_the_receiver_is_used_as_the_course_is_offline(bench):
    bench.start().drive()
    bench.wait(lambda: 'filter' in bench.diagnostics)
    assert 'gnss_velocity' not in bench.diagnostics
    offline = Localizer(CONFIG, FRAME)
    for tick in range(4 * ODOMETRY_HZ + 1):
        time_s = tick / ODOMETRY_HZ
        if tick % 4 == 0:
            offline.add_gnss(conversions.gnss_fix_from_msg(
                gnss_msg(time_s), FRAME, LEVER_ARM, 5.0))
        offline.add_odometry(conversions.odometry_sample_from_msg(odometry_msg(time_s)))
    before_rad = yaw_sigma_rad(bench, 4.0)
    bench.add_velocity_publisher().send_velocity(4.0)
    assert yaw_sigma_rad(bench, 4.0) < 0.7 * before_rad
    bench.expect('gnss_velocity', 0, 'receiving')
    last_fix = conversions.gnss_fix_from_msg(gnss_msg(4.0), FRAME, LEVER_ARM, 5.0)
    offline.add_course(conversions.gnss_course_from_msg(
        velocity_msg(4.0), FRAME, (last_fix.x_m, last_fix.y_m), LEVER_ARM, 0.3))
    expected, found = (
        localizer.estimate_at(stamp_ns_at(4.0)) for localizer in (offline, bench.node.localizer))
    np.testing.assert_allclose(found.pose.as_array(), expected.pose.as_array(), atol=1e-6)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-9)


def test_a_velocity_without_covariance_is_used_if_the_parameter_says_so(bench):
    bench.start(gnss_velocity_type='TwistStamped').drive()
    before_rad = yaw_sigma_rad(bench, 4.0)
    msg = velocity_msg(4.0)
    bench.add_velocity_publisher(TwistStamped).send_velocity(
        4.0, TwistStamped(header=msg.header, twist=msg.twist.twist))
    assert yaw_sigma_rad(bench, 4.0) < before_rad


def test_the_outcome_of_an_image_is_published_with_its_reason(bench):
    bench.start().drive()
    bench.process_image(3.5)
    bench.wait_for_image_status(3.5)
    used, = bench.received['status']
    assert (used.level, used.name, used.message) == (b'\x00', 'crossview_localizer: image', 'used')
    assert {value.key: value.value for value in used.values} == {
        'stamp': '1400000003.500000000', 'outcome': 'used', 'reason': 'used', 'state': 'trusted'}
    bench.matcher.ambiguous = True
    bench.process_image(3.75)
    assert bench.wait_for_image_status(3.75) | {'stamp': ''} == {
        'stamp': '', 'outcome': 'ambiguous', 'reason': 'two streets look alike',
        'state': 'trusted'}
    assert bench.received['status'][-1].level == b'\x01'
    assert bench.received['status'][-1].message == 'two streets look alike'


def test_images_that_are_not_matched_have_an_outcome_too(bench):
    bench.start().drive()
    bench.publish('image', image_msg(4.0, '32FC1'))
    status = bench.wait_for_image_status(4.0)
    assert status['outcome'] == 'unusable' and '32FC1' in status['reason']
    for time_s, outcome in ((900.0, 'invalid'), (-60.0, 'too_old')):
        bench.publish('image', image_msg(time_s))
        assert bench.wait_for_image_status(time_s)['outcome'] == outcome
    bench.matcher.gate.clear()
    for time_s in (3.25, 3.5, 3.75):
        bench.deliver('image', image_msg(time_s), bench.node.diagnostics.camera)
        bench.wait(bench.matcher.entered.is_set)
    status = bench.wait_for_image_status(3.5)
    assert status['outcome'] == 'dropped' and 'a newer image came' in status['reason']
    bench.matcher.gate.set()
    for time_s in (3.25, 3.75):
        assert bench.wait_for_image_status(time_s)['outcome'] == 'used'


# --- faults


def test_without_images_and_gnss_the_node_says_who_does_not_publish(bench):
    bench.start(input_timeout_s=0.5)
    bench.driver.destroy_publisher(bench.publishers['image'])
    bench.expect('camera', 2, 'nobody publishes /image')
    bench.expect('gnss', 2, '/gnss has 1 publisher')
    bench.expect('odometry', 2, 'nothing received')
    bench.expect('filter', 1, 'waiting for a first position')


def test_a_publisher_with_an_incompatible_qos_is_named(bench):
    bench.start(input_timeout_s=0.5)
    bench.driver.destroy_publisher(bench.publishers['image'])
    bench.driver.create_publisher(
        Image, 'image', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    bench.expect('camera', 2, 'does not accept: RELIABILITY')


@pytest.mark.parametrize('part', ['gnss', 'odometry'])
def test_a_sensor_of_best_effort_is_named_with_the_parameter(bench, part):
    bench.start(input_timeout_s=0.5)
    kind = {'gnss': NavSatFix, 'odometry': Odometry}[part]
    bench.driver.destroy_publisher(bench.publishers[part])
    bench.driver.create_publisher(
        kind, part, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    bench.expect(part, 2, 'does not accept: RELIABILITY')
    assert 'sensor_reliability: best_effort' in bench.value(part, 'remedy')


def test_transforms_that_are_not_latched_are_named(bench):
    bench.start()
    bench.driver.create_publisher(TFMessage, '/tf_static', 10)
    bench.expect('node', 1, '/tf_static offers a QoS that this node does not accept: DURABILITY')


def test_camera_info_that_was_latched_before_the_start_is_taken(bench):
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    bench.driver.create_publisher(CameraInfo, 'camera_info', latched).publish(camera_info_msg())
    bench.start(autostart=False)
    bench.node.trigger_configure()
    bench.wait(lambda: bench.node.rig.camera_info is not None)


def test_without_camera_info_the_remedy_is_not_that_of_missing_transforms(bench):
    bench.start()
    bench.node.rig.camera_info = None
    bench.publish('odometry', odometry_msg(0.0))
    bench.publish('image', image_msg(0.0))
    bench.expect('camera', 2, 'no camera_info has been received')
    assert 'camera_info' in bench.value('camera', 'remedy')
    assert 'tf_static' not in bench.value('camera', 'remedy')


def test_an_unknown_encoding_is_reported_and_a_good_image_after_it_is_used(bench):
    bench.start().drive()
    bench.publish('image', image_msg(4.0, '32FC1'))
    bench.expect('camera', 2, '32FC1')
    bench.process_image(4.0)
    bench.expect('camera', 0, 'receiving')


def test_two_publishers_of_odometry_are_named(bench):
    bench.start().drive()
    second = bench.driver.create_publisher(Odometry, 'odometry', 10)
    bench.expect('odometry', 1, '/odometry has 2 publishers, of which one was expected')
    bench.driver.destroy_publisher(second)
    bench.wait(lambda: 'publishers' not in bench.diagnostics['odometry'].message)


def test_without_extrinsics_images_and_fixes_are_not_used_and_both_are_named(bench):
    bench.start(transforms=False)
    bench.publish('image', image_msg(0.0))
    bench.publish('gnss', gnss_msg(0.0))
    bench.expect('camera', 2, 'camera_xyz_rpy is not set')
    bench.expect('gnss', 2, 'antenna_xyz_m is not set')
    bench.publish('/tf_static', static_transforms())
    bench.wait_for_transforms()
    bench.drive()
    bench.process_image(4.0)
    bench.expect('camera', 0, 'receiving')
    bench.expect('gnss', 0, 'receiving')


def test_parameters_stand_in_for_missing_extrinsics(bench):
    bench.start(
        transforms=False, camera_xyz_rpy=[0.0] * 6, antenna_xyz_m=[*LEVER_ARM, 1.0]).drive()
    bench.process_image(4.0)
    assert position_error_m(bench.received['pose'][0], 4.0) < 1.0


def test_an_ambiguous_match_clears_the_heat_map_and_the_prior_is_published_as_the_pose(bench):
    bench.start().drive()
    bench.matcher.ambiguous = True
    bench.process_image(4.0)
    bench.wait(lambda: bench.received['heatmap'])
    assert set(bench.received['heatmap'][0].data) == {-1}
    assert bench.received['heatmap'][0].header.stamp == stamp_at(4.0)
    assert not bench.received['match']
    assert bench.received['pose'][0].pose.pose == bench.received['prior'][0].pose.pose
    bench.expect('matcher', 1, 'match ambiguous: two streets look alike')
    assert bench.count('matcher', 'ambiguous') == 1


def test_outside_the_map_the_prior_is_published_as_the_pose_and_that_is_reported(bench):
    bench.start()
    far = PoseEstimate(stamp_ns_at(0.0), Pose2D(500.0, 500.0, 0.0), np.diag([1.0, 1.0, 0.01]))
    bench.send_odometry(0.0)
    bench.publish('initialpose', conversions.pose_msg_from_estimate(far, 'map'))
    bench.wait(lambda: bench.node.localizer.estimate_at(stamp_ns_at(0.0)) is not None)
    bench.process_image(0.0)
    assert bench.received['pose'][0].pose.pose.position.x == pytest.approx(500.0, abs=0.1)
    bench.expect('matcher', 1, 'outside the map')


@pytest.mark.parametrize('error', [
    ValueError('map was made with the weights abc, loaded are def; rebuild with: build_map'),
    FileNotFoundError('no map at map'),
])
def test_a_map_that_cannot_be_used_leaves_the_prior_running_and_is_an_error(
        bench, monkeypatch, error):
    def fail(*args, **rest):
        raise type(error)(*error.args)  # the parameter itself would keep the node in its traceback

    monkeypatch.setattr(localizer_holder, 'load_localizer', fail)
    bench.start().drive()
    bench.process_image(4.0)
    bench.expect('map', 2, f'{error}; the prior alone is published')
    bench.expect('matcher', 1, 'no matcher is loaded')
    # The first fix, 1 m east of the antenna, is the origin of this map.
    pose = bench.received['pose'][0].pose.pose.position
    moved_m = true_pose(4.0).x_m - true_pose(0.0).x_m
    assert pose.x - LEVER_ARM[0] == pytest.approx(moved_m - LEVER_ARM[0] * 2, abs=3.0)


def test_missing_weights_leave_the_prior_running_and_are_an_error(bench, monkeypatch):
    def fail():
        raise ValueError('no weights in config/weights')

    monkeypatch.setattr(localizer_holder, 'shipped_weights', fail)
    bench.start()
    bench.expect('map', 2, 'no weights in config/weights; the prior alone is published')


def test_a_fault_while_configuring_is_reported_and_configuring_can_be_tried_again(
        bench, monkeypatch):
    bench.start(autostart=False)
    with monkeypatch.context() as broken:
        broken.setattr(node_module, 'LocalizerInputs', lambda *args: 1 / 0)
        assert not change_state(bench, 'configure')
        bench.expect('node', 2, 'not configured: ZeroDivisionError')
    assert change_state(bench, 'configure')
    bench.expect('node', 1, 'inactive')


def test_no_map_path_is_a_warning(bench):
    bench.start(map_path='')
    bench.expect('map', 1, 'no map_path is set')


def test_a_missing_gpu_is_a_warning_and_the_cpu_is_used(bench):
    torch = pytest.importorskip('torch')
    if torch.cuda.is_available():
        bench.start(device='cuda')
        bench.wait(lambda: bench.value('map', 'device') == 'cuda')
    else:
        bench.start(device='cuda')
        bench.expect('map', 1, 'no GPU is available: running on the CPU')


def test_images_that_come_while_one_is_processed_are_dropped_but_for_the_newest(bench):
    bench.start().drive()
    bench.matcher.gate.clear()
    for time_s in (3.0, 3.25, 3.5, 3.75, 4.0):
        bench.publish('image', image_msg(time_s))
        seen = bench.node.diagnostics.camera.counts['received']
        bench.wait(lambda seen=seen: bench.node.diagnostics.camera.counts['received'] > seen
                   or seen == 5)
        if time_s == 3.0:
            bench.wait(bench.matcher.entered.is_set)
    bench.matcher.gate.set()
    bench.wait(lambda: len(bench.received['pose']) == 2)
    stamps = [conversions.stamp_ns_from_msg(msg.header.stamp) for msg in bench.received['pose']]
    assert stamps == [stamp_ns_at(3.0), stamp_ns_at(4.0)]
    bench.wait(lambda: bench.count('camera', 'dropped') == 3)


def test_only_the_thread_of_the_executor_publishes_and_counts(bench, monkeypatch):
    """The image thread hands its results over: it never changes what the diagnostics iterate."""
    threads = set()

    def noted(owner, name):
        call = getattr(owner, name)

        def noting(*args, **rest):
            threads.add(threading.current_thread())
            return call(*args, **rest)
        monkeypatch.setattr(owner, name, noting)

    for owner, name in (
            (InputMonitor, 'add_used'), (InputMonitor, 'add_refused'),
            (diagnostics.MatcherMonitor, 'add_image'), (diagnostics.NodeMonitor, 'add_failure'),
            (outputs.LocalizerOutputs, 'publish_localization'),
            (outputs.LocalizerOutputs, 'publish_status')):
        noted(owner, name)
    bench.start().drive()
    bench.process_image(3.5)
    bench.process_image(3.75, image_msg(3.75, '32FC1'))
    bench.matcher.estimate = None
    bench.process_image(4.0)
    bench.expect('node', 2, 'TypeError')
    assert threads == {threading.current_thread()}


def test_a_fault_inside_is_reported_and_the_next_image_is_processed(bench, monkeypatch):
    bench.start().drive()
    bench.matcher.estimate = None
    bench.publish('image', image_msg(3.75))
    bench.expect('node', 2, 'internal error: TypeError')
    del bench.matcher.estimate
    bench.process_image(4.0)


def test_a_fault_inside_leaves_the_prior_as_the_pose(bench):
    bench.start().drive()
    bench.matcher.estimate = None
    bench.process_image(4.0)
    bench.wait(lambda: bench.received['prior'])
    assert bench.received['pose'][0].pose.pose == bench.received['prior'][0].pose.pose
    bench.expect('matcher', 1, 'image not usable: the matcher failed (TypeError)')


@pytest.fixture
def gpu(monkeypatch):
    """The node believes that it runs on a GPU; returns the device of each load."""
    devices = []
    load = localizer_holder.load_localizer

    def load_and_note(path, weights, config, device, **rest):
        devices.append(device)
        return load(path, weights, config, device, **rest)

    monkeypatch.setattr(
        'crossview_localizer.networks.checkpoint.prepare_torch',
        lambda device, threads: ('cuda', ''))
    monkeypatch.setattr(localizer_holder, 'load_localizer', load_and_note)
    return devices


def test_after_out_of_memory_on_the_gpu_the_cpu_is_used_and_the_filter_goes_on(bench, gpu):
    torch = pytest.importorskip('torch')
    bench.start().drive()
    failing = bench.matcher

    def fail(*args):
        bench.matcher = FakeMatcher()  # the next to be loaded
        raise torch.OutOfMemoryError('CUDA out of memory')

    failing.match = fail
    bench.process_image(3.75)
    bench.expect('map', 1, 'OutOfMemoryError on the GPU: running on the CPU since')
    assert gpu == ['cuda', 'cpu']
    bench.process_image(4.0)
    bench.expect('matcher', 0, 'matching')
    assert position_error_m(bench.received['pose'][-1], 4.0) < 1.0


def test_after_another_error_of_the_matcher_the_gpu_is_still_used(bench, gpu):
    bench.start().drive()

    def fail(*args):
        raise RuntimeError('shapes (3,) and (4,) do not fit')

    bench.matcher.match = fail
    bench.process_image(3.75)
    bench.expect('node', 2, 'internal error: RuntimeError: shapes (3,) and (4,) do not fit')
    del bench.matcher.match
    bench.process_image(4.0)
    bench.expect('matcher', 0, 'matching')
    bench.expect('map', 0, 'loaded')
    assert gpu == ['cuda']


def test_a_node_started_again_goes_on_with_the_next_fix(bench, tmp_path):
    path = str(tmp_path / 'pose.json')

    def saved_ns() -> int:
        return Path(path).is_file() and load_saved_pose(Path(path), 300.0).stamp_ns

    bench.start(last_pose_path=path, last_pose_max_age_s=300.0).drive()
    bench.wait(lambda: saved_ns() == stamp_ns_at(4.0))
    bench.executor.remove_node(bench.node)
    bench.node.destroy_node()
    bench.received.clear()
    bench.start(last_pose_path=path, last_pose_max_age_s=300.0)
    bench.send_odometry(6.0)
    bench.send_gnss(6.2)
    bench.send_odometry(6.25)
    bench.wait(lambda: 'goes on from its last pose' in bench.value('node', 'last_restart'))
    assert bench.node.localizer.estimate_at(stamp_ns_at(6.25)) is not None
    bench.process_image(6.25)
    assert position_error_m(bench.received['pose'][-1], 6.25) < 2.0


def test_the_quality_of_service_can_be_set_by_parameters(bench):
    bench.start(sensor_reliability='best_effort', **{
        'qos_overrides./odometry.subscription.reliability': 'reliable',
        'qos_overrides./odometry.subscription.depth': 7})
    profile, = [info.qos_profile for info in bench.node.get_subscriptions_info_by_topic(
        '/odometry')]
    assert profile.reliability is ReliabilityPolicy.RELIABLE
    assert bench.node.get_parameter('qos_overrides./odometry.subscription.depth').value == 7


def test_an_image_that_shows_nothing_is_not_matched_and_the_prior_is_published(bench):
    bench.start().drive()
    msg = image_msg(4.0)
    msg.data = array('B', bytes(len(msg.data)))
    bench.process_image(4.0, msg)
    bench.expect('camera', 2, 'image is black')
    bench.expect('matcher', 1, 'image not usable: image is black')
    assert not bench.received['match']


def test_a_repeated_picture_counts_as_frozen_only_if_the_vehicle_moved(bench):
    bench.start().drive()
    bench.process_image(4.0)
    msg = image_msg(4.0)
    bench.drive(4.05, 4.05)
    msg.header.stamp = stamp_at(4.05)
    bench.process_image(4.05, msg)
    bench.wait(lambda: len(bench.received['match']) == 2)
    bench.drive(4.1, 4.5)
    msg.header.stamp = stamp_at(4.5)
    bench.process_image(4.5, msg)
    bench.expect('camera', 2, 'image is frozen')
    assert len(bench.received['match']) == 2


def test_an_image_in_process_during_a_reset_gives_no_pose(bench):
    bench.start().drive()
    bench.matcher.gate.clear()
    bench.publish('image', image_msg(4.0))
    bench.wait(bench.matcher.entered.is_set)
    assert call(bench, Trigger, 'reset', Trigger.Request()).success
    bench.matcher.gate.set()
    status = bench.wait_for_image_status(4.0)
    assert status['outcome'] == 'superseded'
    assert 'reset' in status['reason']
    for name in ('pose', 'prior', 'match', 'heatmap', 'geopose', 'latency'):
        assert not bench.received[name], name
    assert bench.node.localizer.estimate_at(stamp_ns_at(4.0)) is None
    bench.drive(5.0, 9.0)
    bench.process_image(9.0)
    assert bench.wait_for_image_status(9.0)['outcome'] == 'used'


def test_a_localization_that_the_localizer_calls_superseded_is_not_published(bench):
    bench.start().drive()
    bench.node.localizer.process_image = lambda image, wait: Localization(
        image.stamp_ns, Outcome.SUPERSEDED, 'a reset came', posterior=None)
    bench.publish('image', image_msg(4.0))
    assert bench.wait_for_image_status(4.0)['outcome'] == 'superseded'
    bench.wait(lambda: bench.count('camera', 'dropped') == 1)
    assert not bench.received['pose'] and not bench.received['prior']


def test_the_reset_service_restarts_the_filter(bench):
    bench.start().drive()
    bench.wait(lambda: bench.received['odometry'])
    assert call(bench, Trigger, 'reset', Trigger.Request()).success
    assert bench.node.localizer.estimate_at(stamp_ns_at(4.0)) is None
    bench.expect('node', 1, 'restarted: asked for by the service reset')
    bench.drive(5.0, 9.0)
    bench.process_image(9.0)
    assert position_error_m(bench.received['pose'][-1], 9.0) < 1.5


def test_a_clock_that_jumps_back_restarts_the_filter(bench):
    bench.start(use_sim_time=True)
    bench.expect('node', 1, 'nothing comes on /clock')
    clock = bench.node.get_clock()
    bench.publish_until('clock', Clock(clock=stamp_at(4.0)),
                 lambda: clock.now().nanoseconds == stamp_ns_at(4.0))
    bench.drive()
    assert bench.node.localizer.estimate_at(stamp_ns_at(4.0)) is not None
    bench.publish_until('clock', Clock(clock=stamp_at(0.0)),
                 lambda: clock.now().nanoseconds == stamp_ns_at(0.0))
    bench.expect('node', 1, 'the clock jumped back by 4.0 s')
    assert bench.node.localizer.estimate_at(stamp_ns_at(4.0)) is None
    bench.drive()
    bench.process_image(4.0)
    bench.expect('node', 0, 'active')


def test_odometry_that_jumps_back_without_a_clock_restarts_the_filter(bench):
    bench.start().drive(0.0, 8.0)
    poses = len(bench.received['odometry'])
    bench.drive(0.0, 4.0)
    bench.wait(lambda: len(bench.received['odometry']) > poses)
    bench.process_image(4.0)
    assert position_error_m(bench.received['pose'][-1], 4.0) < 1.5
    bench.wait(lambda: 'jumped back' in bench.value('node', 'last_restart'))


# --- lifecycle and parameters


def call(bench, kind, service, request):
    client = bench.driver.create_client(kind, f'/crossview_localizer/{service}')
    bench.wait(client.service_is_ready)
    future = client.call_async(request)
    bench.wait(future.done)
    return future.result()


def change_state(bench, label: str) -> bool:
    request = ChangeState.Request()
    request.transition.label = label
    return call(bench, ChangeState, 'change_state', request).success


def test_without_autostart_the_lifecycle_services_start_and_stop_the_node(bench):
    bench.start(autostart=False)
    bench.expect('node', 1, 'not configured')
    assert change_state(bench, 'configure')
    bench.expect('node', 1, 'inactive')
    assert change_state(bench, 'activate')
    bench.calibrate()
    bench.drive()
    bench.process_image(4.0)
    assert change_state(bench, 'deactivate')
    received = len(bench.received['odometry'])
    bench.publish('odometry', odometry_msg(5.0))
    bench.expect('node', 1, 'inactive')
    assert len(bench.received['odometry']) == received
    assert change_state(bench, 'cleanup')
    bench.wait(lambda: bench.driver.count_subscribers('/gnss') == 0)
    assert change_state(bench, 'configure')
    assert change_state(bench, 'activate')
    bench.calibrate()
    bench.drive(10.0, 14.0)
    bench.process_image(14.0)
    assert change_state(bench, 'deactivate')
    assert change_state(bench, 'shutdown')
    state = call(bench, GetState, 'get_state', GetState.Request())
    assert state.current_state.label == 'finalized'


# --- the process


def start_process(*arguments):
    return subprocess.Popen(
        [sys.executable, '-m', 'crossview_localizer.node', *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_two_interrupts_end_the_process_with_exit_code_0(bench):
    process = start_process('--ros-args', '-p', 'input_timeout_s:=0.5')
    try:
        bench.wait(lambda: bench.driver.count_publishers('/diagnostics') > 0, 120.0)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, output
    assert 'Traceback' not in output


def test_a_parameter_file_that_ros_refuses_ends_the_process_with_one_line(tmp_path):
    path = tmp_path / 'mixed.yaml'
    path.write_text('/**:\n  ros__parameters:\n    camera_xyz_rpy: [1.2, 0, 1.4, 0, 0.0, 0]\n')
    process = start_process('--ros-args', '--params-file', str(path))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2 and 'Traceback' not in output
    assert 'Sequence should be of same type' in output.splitlines()[-1]
    assert 'parse.c' not in output


def test_the_console_says_that_the_node_is_active_and_each_cause_once(bench):
    process = start_process('--ros-args', '-p', 'input_timeout_s:=0.5')
    try:
        lines = iter(process.stdout.readline, '')
        active = next(line for line in lines if 'active' in line)
        silent = next(line for line in lines if 'gnss' in line)
    finally:
        process.kill()
    assert 'no map, the prior alone is published; listening to /image, /gnss, /odometry' in active
    assert 'WARN' in silent and 'nobody publishes /gnss' in silent and '->' in silent


def test_a_wrong_parameter_ends_the_process_with_one_line_and_exit_code_2():
    process = start_process('--ros-args', '-p', 'filter.buffer_s:=99')
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output.count('\n') == 1
    assert 'filter.buffer_s is 99; expected 0.1 to 30.0' in output
