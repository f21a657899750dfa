"""The node on real ROS 2: what goes in over DDS, what comes out, what it says of each fault."""

from array import array
from collections import defaultdict
from dataclasses import replace
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
from diagnostic_msgs.msg import DiagnosticArray
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
from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.localizer import Localizer
from crossview_localizer.node import LocalizerNode
from crossview_localizer.ros import conversions
from crossview_localizer.ros.image_worker import ImageWorker
from crossview_localizer.ros.saved_pose import LastPose

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
    """A fix that is 1 m off to the east, as a wandering receiver would be."""
    antenna = true_pose(time_s) @ Pose2D(*LEVER_ARM, 0.0)
    msg = NavSatFix(position_covariance_type=2)
    msg.status.status = 0
    msg.header.frame_id = 'gnss_antenna'
    msg.header.stamp = stamp_at(time_s)
    msg.latitude, msg.longitude = FRAME.latlon_from_xy(antenna.x_m + 1.0, antenna.y_m)
    msg.position_covariance = (np.eye(3) * sigma_m**2).ravel()
    return msg


def velocity_msg(time_s: float, turned_rad=0.0) -> TwistWithCovarianceStamped:
    """The antenna's velocity, known to 0.1 m/s; it also swings about base_link."""
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
    """The antenna hangs below a roof frame, so that the chain must be followed."""
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
    """Covers the first 40 s or so of the drive: 100 m about the origin."""

    frame = FRAME
    descriptors = np.zeros((10, 4))

    def window(self, prior, half_width_m, margin_m):
        if math.hypot(prior.pose.x_m, prior.pose.y_m) > 100.0:
            return None
        return SimpleNamespace(
            grid=MapGrid.around(prior.pose.x_m, prior.pose.y_m, half_width_m, 2.0), coverage=1.0)


class FakeMatcher:
    """Sees where the vehicle is to 0.5 m; ``ambiguous`` and ``gate`` make it slow or unsure."""

    margin_m = 0.0

    def __init__(self):
        self.ambiguous = False
        self.gate = threading.Event()
        self.gate.set()

    def embed(self, image, yaw_rad, pitch_rad):
        assert self.gate.wait(10.0)
        return image.rgb.mean()

    def match(self, ground, window, prior, config):
        x_m, y_m = window.grid.cell_centres()
        truth = true_pose(time_s_of(prior.stamp_ns))
        distance2 = (x_m[None, :] - truth.x_m) ** 2 + (y_m[:, None] - truth.y_m) ** 2
        log_p = -0.5 * distance2 / 4.0
        return Heatmap(prior.stamp_ns, window.grid, log_p - np.log(np.exp(log_p).sum()))

    def estimate(self, heatmap, prior, config):
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
        'geopose': GeoPoseWithCovarianceStamped, 'latency': Float64,
    }

    def __init__(self, monkeypatch):
        self.matcher = FakeMatcher()
        monkeypatch.setattr(
            node_module, 'load_localizer',
            lambda path, weights, config, device, **rest: Localizer(
                config, FRAME, FakeMap(), self.matcher))
        monkeypatch.setattr(node_module, 'shipped_weights', lambda: 'weights')
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.driver = rclpy.create_node('driver', context=self.context)
        self.executor.add_node(self.driver)
        self.node = None
        self.received = defaultdict(list)
        self.diagnostics = {}

    def start(self, autostart=True, transforms=True, **parameters):
        # Nothing that is sent once is lost, and no text changes while a busy machine reads it.
        values = {
            'map_path': 'map', 'device': 'cpu', 'autostart': autostart, 'last_pose_path': '',
            'sensor_reliability': 'reliable', 'image_reliability': 'reliable',
            'input_timeout_s': 60.0, **parameters}
        overrides = [
            Parameter(name if '/' in name else name.replace('__', '.'), value=value)
            for name, value in values.items()]
        self.node = LocalizerNode(context=self.context, parameter_overrides=overrides)
        self.executor.add_node(self.node)
        # Ten times as often, so that no test waits a second for each text.
        self.node._diagnostics_timer.timer_period_ns = 100_000_000
        self.node._diagnostics_timer.reset()
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
            self.calibrated(transforms)
        return self

    def _on_diagnostics(self, msg):
        self.diagnostics = {status.name.split(': ')[1]: status for status in msg.status}

    def publish(self, topic, msg):
        self.publishers[topic].publish(msg)

    def wait(self, condition, deadline_s=30.0):
        end_s = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < end_s, (
                f'not true within {deadline_s} s; diagnostics: {self.told()}')
            self.executor.spin_once(timeout_sec=0.02)

    def told(self) -> str:
        """The newest diagnostics, with all their values."""
        return '; '.join(
            f'{name}: {status.message} { {value.key: value.value for value in status.values} }'
            for name, status in self.diagnostics.items())

    def count(self, part: str, key: str) -> int:
        """A value of the newest diagnostics."""
        status = self.diagnostics.get(part)
        values = {value.key: value.value for value in status.values} if status else {}
        return int(values.get(key, 0))

    def expect(self, part: str, level: int, text: str):
        """Wait until /diagnostics says this of a part."""
        def said():
            status = self.diagnostics.get(part)
            return status is not None and status.level == bytes([level]) and (
                text in status.message)
        self.wait(said)

    def calibrated(self, transforms=True):
        """Once the node listens to all its sensors, give it the intrinsics."""
        self.wait(lambda: all(
            self.publishers[name].get_subscription_count() > 0
            for name in ('camera_info', 'gnss', 'odometry', 'image')))
        self.publish('camera_info', camera_info_msg())
        self.wait(lambda: self.node._rig.camera_info is not None)
        if transforms:
            self.transforms_taken()

    def transforms_taken(self):
        """Latched transforms may come later than what is sent after them, which needs them."""
        transforms = self.node._rig.static_transforms
        self.wait(lambda: transforms.lookup('base_link', 'gnss_antenna') is not None)

    def repeat(self, topic, msg, arrived):
        """Publish until it has arrived: at best effort a new subscription misses the first."""
        for _ in range(6):
            self.publish(topic, msg)
            end_s = time.monotonic() + 5.0
            while time.monotonic() < end_s:
                if arrived():
                    return
                self.executor.spin_once(timeout_sec=0.02)
        raise AssertionError(f'{topic} did not arrive within 30 s')

    def delivered(self, topic, msg, monitor):
        """Publish, and wait until the node has it."""
        received = monitor.counts['received']
        self.publish(topic, msg)
        self.wait(lambda: monitor.counts['received'] > received)

    def odometry_sent(self, time_s):
        """Publish one odometry message and wait until the node has taken it in."""
        self.delivered('odometry', odometry_msg(time_s), self.node._odometry_monitor)

    def gnss_sent(self, time_s, **kwargs):
        self.delivered('gnss', gnss_msg(time_s, **kwargs), self.node._gnss_monitor)

    def with_velocity(self, kind=TwistWithCovarianceStamped):
        self.publishers['gnss_velocity'] = self.driver.create_publisher(
            kind, 'gnss_velocity', 100)
        return self

    def velocity_sent(self, time_s, message=None, **kwargs):
        self.delivered('gnss_velocity', message or velocity_msg(time_s, **kwargs),
                       self.node._velocity_monitor)

    def image_processed(self, time_s, message=None):
        """Publish an image and wait for its pose."""
        poses = len(self.received['pose'])
        self.delivered('image', message or image_msg(time_s), self.node._camera_monitor)
        self.wait(lambda: len(self.received['pose']) > poses)

    def drive(self, start_s=0.0, end_s=4.0):
        """GNSS at 5 Hz and odometry, without images; the filter starts within the first 3 s."""
        for tick in range(round(start_s * ODOMETRY_HZ), round(end_s * ODOMETRY_HZ) + 1):
            time_s = tick / ODOMETRY_HZ
            if tick % 4 == 0:
                self.gnss_sent(time_s)
            self.odometry_sent(time_s)
        return self

    def close(self):
        self.matcher.gate.set()
        if self.node is not None:
            self.node.destroy_node()
        self.driver.destroy_node()
        self.executor.shutdown()
        rclpy.try_shutdown(context=self.context)
        # Until it is collected a node stays in the graph, with services that answer nobody.
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


def test_every_image_gives_a_pose_with_its_stamp_and_everything_beside_it(bench):
    bench.start().drive()
    bench.image_processed(4.0)
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


def test_the_offline_localizer_gives_the_nodes_poses(bench):
    bench.start(odometry_wait_s=1.0)
    offline = Localizer(CONFIG, FRAME, FakeMap(), FakeMatcher())
    rectify = conversions.rectifier_from_msg(
        camera_info_msg(), np.eye(4), CONFIG.camera.height_m)
    expected = []
    for tick in range(8 * ODOMETRY_HZ):
        time_s = tick / ODOMETRY_HZ
        if tick % 4 == 1:
            bench.gnss_sent(time_s)
            offline.add_gnss(conversions.gnss_fix_from_msg(
                gnss_msg(time_s), FRAME, LEVER_ARM, 5.0))
        if tick % 5 == 0:
            # The image comes first; it waits for the odometry of its own stamp.
            bench.publish('image', image_msg(time_s))
            processed = len(expected)
        bench.odometry_sent(time_s)
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
    bench.image_processed(4.0, msg)
    assert position_error_m(bench.received['pose'][0], 4.0) < 1.0


def test_an_initial_pose_starts_the_node_without_gnss(bench):
    bench.start(input_timeout_s=1.0)
    bench.odometry_sent(0.0)
    msg = conversions.pose_msg_from_estimate(
        PoseEstimate(stamp_ns_at(0.0), true_pose(0.0), np.diag([1.0, 1.0, 0.01])), 'map')
    bench.publish('initialpose', msg)
    bench.wait(lambda: bench.node._localizer.estimate_at(stamp_ns_at(0.0)) is not None)
    for tick in range(1, 21):
        bench.odometry_sent(tick / ODOMETRY_HZ)
    bench.image_processed(1.0)
    assert position_error_m(bench.received['pose'][0], 1.0) < 1.0
    bench.expect('gnss', 2, 'nothing received')


def yaw_sigma_rad(bench, time_s: float) -> float:
    return math.sqrt(bench.node._localizer.estimate_at(stamp_ns_at(time_s)).covariance[2, 2])


def test_a_velocity_of_the_receiver_tells_the_heading_as_the_course_given_offline(bench):
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
    bench.with_velocity().velocity_sent(4.0)
    assert yaw_sigma_rad(bench, 4.0) < 0.7 * before_rad
    bench.expect('gnss_velocity', 0, 'receiving')
    last_fix = conversions.gnss_fix_from_msg(gnss_msg(4.0), FRAME, LEVER_ARM, 5.0)
    offline.add_course(conversions.gnss_course_from_msg(
        velocity_msg(4.0), FRAME, (last_fix.x_m, last_fix.y_m), LEVER_ARM, 0.3))
    expected, found = (
        localizer.estimate_at(stamp_ns_at(4.0)) for localizer in (offline, bench.node._localizer))
    np.testing.assert_allclose(found.pose.as_array(), expected.pose.as_array(), atol=1e-6)
    np.testing.assert_allclose(found.covariance, expected.covariance, atol=1e-9)


def test_a_velocity_without_covariance_is_taken_where_the_parameter_says_so(bench):
    bench.start(gnss_velocity_type='TwistStamped').drive()
    before_rad = yaw_sigma_rad(bench, 4.0)
    msg = velocity_msg(4.0)
    bench.with_velocity(TwistStamped).velocity_sent(
        4.0, TwistStamped(header=msg.header, twist=msg.twist.twist))
    assert yaw_sigma_rad(bench, 4.0) < before_rad


def test_a_velocity_waits_for_the_odometry_of_its_time(bench):
    bench.start().drive()
    bench.node._node_config = replace(bench.node._node_config, odometry_wait_s=60.0)
    bench.with_velocity().velocity_sent(4.1)
    assert bench.node._velocity_monitor.counts['used'] == 0
    bench.odometry_sent(4.05)
    assert bench.node._velocity_monitor.counts['used'] == 0
    bench.odometry_sent(4.1)
    assert bench.node._velocity_monitor.counts['used'] == 1


# --- faults


def velocity_of(**header):
    msg = velocity_msg(4.0)
    for name, value in header.items():
        setattr(msg.header, name, value)
    return msg


def velocity_of_nan():
    msg = velocity_msg(4.0)
    msg.twist.twist.linear.x = math.nan
    return msg


def test_a_velocity_that_cannot_be_used_is_a_warning_and_changes_nothing(bench):
    bench.start().drive()
    before = bench.node._localizer.estimate_at(stamp_ns_at(4.0))
    bench.with_velocity()
    for msg, said in (
            (velocity_of_nan(), 'velocity (nan'),
            (velocity_of(stamp=Time()), 'stamp is 0 ns'),
            (velocity_of(stamp=stamp_at(-60.0)), 'older than the delay buffer'),
            (velocity_of(stamp=stamp_at(900.0)), 'ahead of the last odometry'),
            (velocity_of(frame_id='base_link'), 'in the axes of the vehicle'),
            (velocity_of(frame_id='mast'), "to 'mast'"),
            (velocity_msg(4.0, turned_rad=2.0), 'refused by the gate')):
        bench.velocity_sent(4.0, msg)
        bench.expect('gnss_velocity', 1, said)
        after = bench.node._localizer.estimate_at(stamp_ns_at(4.0))
        np.testing.assert_array_equal(after.covariance, before.covariance, said)
    bench.velocity_sent(4.0)
    bench.expect('gnss_velocity', 0, 'receiving')
    assert bench.node._velocity_monitor.counts['used'] == 1


def test_a_velocity_too_slow_for_a_course_is_counted_and_no_fault(bench):
    bench.start(filter__course_min_speed_mps=20.0).drive()
    before_rad = yaw_sigma_rad(bench, 4.0)
    bench.with_velocity().velocity_sent(4.0)
    bench.expect('gnss_velocity', 0, 'receiving')
    assert bench.count('gnss_velocity', 'too_slow') == 1
    assert yaw_sigma_rad(bench, 4.0) == before_rad


def test_without_images_and_gnss_the_node_says_who_does_not_publish(bench):
    bench.start(input_timeout_s=0.5)
    bench.driver.destroy_publisher(bench.publishers['image'])
    bench.expect('camera', 2, 'nobody publishes /image')
    bench.expect('gnss', 2, '/gnss has 1 publisher')
    bench.expect('odometry', 2, 'nothing received')
    bench.expect('filter', 1, 'waiting for a first position')


def test_a_silent_publisher_of_images_brings_the_hint_on_large_images(bench):
    bench.start(input_timeout_s=0.5)
    bench.expect('camera', 2, 'fastdds_large_images.xml')


def test_a_publisher_with_an_incompatible_qos_is_named(bench):
    bench.start(input_timeout_s=0.5)
    bench.driver.destroy_publisher(bench.publishers['image'])
    bench.driver.create_publisher(
        Image, 'image', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    bench.expect('camera', 2, 'set best_effort')


def test_an_unknown_encoding_is_reported_and_a_good_image_after_it_is_used(bench):
    bench.start().drive()
    bench.publish('image', image_msg(4.0, '32FC1'))
    bench.expect('camera', 2, '32FC1')
    bench.image_processed(4.0)
    bench.expect('camera', 0, 'receiving')


def test_an_image_of_another_size_than_camera_info_is_reported(bench):
    bench.start()
    info = camera_info_msg()
    info.width = 16
    bench.publish('camera_info', info)
    bench.wait(lambda: bench.node._rig.camera_info.width == 16)
    bench.publish('image', image_msg(0.0))
    bench.expect('camera', 2, 'image is 8x6 px; camera_info describes 16x6 px')


@pytest.mark.parametrize('variance', [0.0, math.nan])
def test_a_fix_with_a_zero_or_nan_covariance_is_used_with_an_assumed_one_and_reported(
        bench, variance):
    bench.start(gnss_unknown_sigma_m=3.0)
    bench.drive(0.0, 3.9)
    bench.gnss_sent(4.0, sigma_m=variance)
    bench.expect('gnss', 1, '3.0 m are assumed')


def test_a_fix_without_a_position_is_refused_with_the_reason(bench):
    bench.start()
    msg = gnss_msg(0.0)
    msg.status.status = -1
    bench.publish('gnss', msg)
    bench.expect('gnss', 1, 'no fix (status -1)')
    msg = gnss_msg(0.1)
    msg.latitude = math.nan
    bench.publish('gnss', msg)
    bench.expect('gnss', 1, 'not a latitude')
    assert bench.count('gnss', 'refused') == 2


def test_a_fix_ahead_of_the_odometry_waits_for_it_and_without_odometry_it_does_not(bench):
    bench.start().drive()
    config = bench.node._node_config
    bench.node._node_config = replace(config, odometry_wait_s=60.0)
    used = bench.node._gnss_monitor.counts['used']
    bench.gnss_sent(4.2)
    assert bench.node._gnss_monitor.counts['used'] == used
    for time_s in (4.05, 4.1, 4.15, 4.2):
        bench.odometry_sent(time_s)
    assert bench.node._gnss_monitor.counts['used'] == used + 1
    bench.node._node_config = config
    bench.gnss_sent(4.4)
    bench.wait(lambda: bench.node._gnss_monitor.counts['used'] == used + 2)


def test_two_publishers_of_odometry_are_named(bench):
    bench.start().drive()
    second = bench.driver.create_publisher(Odometry, 'odometry', 10)
    bench.expect('odometry', 1, '/odometry has 2 publishers, of which one was expected')
    bench.driver.destroy_publisher(second)
    bench.wait(lambda: 'publishers' not in bench.diagnostics['odometry'].message)


def test_fixes_that_contradict_the_odometry_for_long_put_the_pose_in_doubt(bench, monkeypatch):
    monkeypatch.setattr(node_module, 'CONTRADICTED_S', 0.2)
    bench.start().drive()
    for tick in range(81, 100):
        bench.odometry_sent(tick / ODOMETRY_HZ)
        msg = gnss_msg(tick / ODOMETRY_HZ)
        msg.latitude += 0.01
        bench.publish('gnss', msg)
    bench.expect('filter', 2, 'do not trust the pose')
    bench.publish('gnss', gnss_msg(99 / ODOMETRY_HZ))
    bench.wait(lambda: 'trust' not in bench.diagnostics['filter'].message)


def test_odometry_of_another_frame_or_with_nan_is_refused_with_the_reason(bench):
    bench.start()
    msg = odometry_msg(0.0)
    msg.child_frame_id = 'rear_axle'
    bench.publish('odometry', msg)
    bench.expect('odometry', 2, "'rear_axle'; expected 'base_link'")
    msg = odometry_msg(0.1)
    msg.pose.pose.position.x = math.nan
    bench.publish('odometry', msg)
    bench.expect('odometry', 1, 'not finite')


def test_without_extrinsics_images_and_fixes_are_not_used_and_both_are_named(bench):
    bench.start(transforms=False)
    bench.publish('image', image_msg(0.0))
    bench.publish('gnss', gnss_msg(0.0))
    bench.expect('camera', 2, 'camera_xyz_rpy is not set')
    bench.expect('gnss', 2, 'antenna_xyz_m is not set')
    bench.publish('/tf_static', static_transforms())
    bench.transforms_taken()
    bench.drive()
    bench.image_processed(4.0)
    bench.expect('camera', 0, 'receiving')
    bench.expect('gnss', 0, 'receiving')


def test_parameters_stand_in_for_missing_extrinsics(bench):
    bench.start(
        transforms=False, camera_xyz_rpy=[0.0] * 6, antenna_xyz_m=[*LEVER_ARM, 1.0]).drive()
    bench.image_processed(4.0)
    assert position_error_m(bench.received['pose'][0], 4.0) < 1.0


def test_an_ambiguous_match_clears_the_heat_map_and_the_prior_goes_out_as_the_pose(bench):
    bench.start().drive()
    bench.matcher.ambiguous = True
    bench.image_processed(4.0)
    bench.wait(lambda: bench.received['heatmap'])
    assert set(bench.received['heatmap'][0].data) == {-1}
    assert bench.received['heatmap'][0].header.stamp == stamp_at(4.0)
    assert not bench.received['match']
    assert bench.received['pose'][0].pose.pose == bench.received['prior'][0].pose.pose
    bench.expect('matcher', 1, 'match ambiguous: two streets look alike')
    assert bench.count('matcher', 'ambiguous') == 1


def test_outside_the_map_the_prior_goes_out_as_the_pose_and_the_node_says_so(bench):
    bench.start()
    far = PoseEstimate(stamp_ns_at(0.0), Pose2D(500.0, 500.0, 0.0), np.diag([1.0, 1.0, 0.01]))
    bench.odometry_sent(0.0)
    bench.publish('initialpose', conversions.pose_msg_from_estimate(far, 'map'))
    bench.wait(lambda: bench.node._localizer.estimate_at(stamp_ns_at(0.0)) is not None)
    bench.image_processed(0.0)
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

    monkeypatch.setattr(node_module, 'load_localizer', fail)
    bench.start().drive()
    bench.image_processed(4.0)
    bench.expect('map', 2, f'{error}; the prior alone is published')
    bench.expect('matcher', 1, 'no matcher is loaded')
    # The first fix, 1 m east of the antenna, is the origin of this map.
    pose = bench.received['pose'][0].pose.pose.position
    moved_m = true_pose(4.0).x_m - true_pose(0.0).x_m
    assert pose.x - LEVER_ARM[0] == pytest.approx(moved_m - LEVER_ARM[0] * 2, abs=3.0)


def test_missing_weights_leave_the_prior_running_and_are_an_error(bench, monkeypatch):
    def fail():
        raise ValueError('no weights in config/weights')

    monkeypatch.setattr(node_module, 'shipped_weights', fail)
    bench.start()
    bench.expect('map', 2, 'no weights in config/weights; the prior alone is published')


def test_a_fault_while_configuring_is_reported_and_configuring_can_be_tried_again(
        bench, monkeypatch):
    bench.start(autostart=False)
    with monkeypatch.context() as broken:
        broken.setattr(LocalizerNode, '_create_inputs', lambda node: 1 / 0)
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
        assert bench.node._device == 'cuda'
    else:
        bench.start(device='cuda')
        bench.expect('map', 1, 'no GPU is available: running on the CPU')


def test_images_that_come_while_one_is_processed_are_dropped_but_for_the_newest(bench):
    bench.start().drive()
    bench.matcher.gate.clear()
    for time_s in (3.0, 3.25, 3.5, 3.75, 4.0):
        bench.publish('image', image_msg(time_s))
        seen = bench.node._camera_monitor.counts['received']
        bench.wait(lambda seen=seen: bench.node._camera_monitor.counts['received'] > seen
                   or seen == 5)
        if time_s == 3.0:
            bench.wait(lambda: bench.node._worker._waiting is None)
    bench.matcher.gate.set()
    bench.wait(lambda: len(bench.received['pose']) == 2)
    stamps = [conversions.stamp_ns_from_msg(msg.header.stamp) for msg in bench.received['pose']]
    assert stamps == [stamp_ns_at(3.0), stamp_ns_at(4.0)]
    bench.wait(lambda: bench.count('camera', 'dropped') == 3)


def test_a_fault_inside_is_reported_and_the_next_image_is_processed(bench, monkeypatch):
    bench.start().drive()
    bench.matcher.estimate = None
    bench.publish('image', image_msg(3.75))
    bench.expect('node', 2, 'internal error: TypeError')
    del bench.matcher.estimate
    bench.image_processed(4.0)


def test_a_fault_inside_leaves_the_prior_as_the_pose(bench):
    bench.start().drive()
    bench.matcher.estimate = None
    bench.image_processed(4.0)
    bench.wait(lambda: bench.received['prior'])
    assert bench.received['pose'][0].pose.pose == bench.received['prior'][0].pose.pose
    bench.expect('matcher', 1, 'image not usable: the matcher failed (TypeError)')


def test_a_gpu_out_of_memory_is_left_for_the_cpu_and_the_filter_goes_on(bench, monkeypatch):
    torch = pytest.importorskip('torch')
    bench.start().drive()
    bench.node._device = 'cuda'

    def full(*args):
        raise torch.OutOfMemoryError('CUDA out of memory')

    bench.matcher.match = full
    load = node_module.load_localizer
    devices = []

    def load_again(path, weights, config, device):
        devices.append(device)
        bench.matcher = FakeMatcher()
        return load(path, weights, config, device)

    monkeypatch.setattr(node_module, 'load_localizer', load_again)
    bench.image_processed(3.75)
    bench.expect('map', 1, 'OutOfMemoryError on the GPU: running on the CPU since')
    assert devices == ['cpu']
    bench.image_processed(4.0)
    bench.expect('matcher', 0, 'matching')
    assert position_error_m(bench.received['pose'][-1], 4.0) < 1.0


def test_a_node_started_again_goes_on_with_the_next_fix(bench, tmp_path):
    path = str(tmp_path / 'pose.json')
    bench.start(last_pose_path=path, last_pose_max_age_s=300.0).drive()
    bench.wait(lambda: Path(path).is_file() and bench.node._last_sample is not None)
    bench.node._keep_last_pose()
    bench.executor.remove_node(bench.node)
    bench.node.destroy_node()
    bench.received.clear()
    bench.start(last_pose_path=path, last_pose_max_age_s=300.0)
    bench.odometry_sent(6.0)
    bench.gnss_sent(6.2)
    bench.odometry_sent(6.25)
    assert 'goes on from its last pose' in bench.node._restart_reason
    assert bench.node._localizer.estimate_at(stamp_ns_at(6.25)) is not None
    bench.image_processed(6.25)
    assert position_error_m(bench.received['pose'][-1], 6.25) < 2.0


def test_a_kept_pose_that_the_first_fix_contradicts_is_not_used(bench, tmp_path):
    path = tmp_path / 'pose.json'
    LastPose(
        time.time(), stamp_ns_at(3.0), (FRAME.latitude_deg, FRAME.longitude_deg),
        Pose2D(300.0, 0.0, 0.0), conversions.odometry_sample_from_msg(odometry_msg(3.0))
        .odom_from_base, np.diag([1.0, 1.0, 0.01])).save(path)
    bench.start(last_pose_path=str(path))
    bench.odometry_sent(4.0)
    bench.gnss_sent(4.0)
    assert not bench.node._localizer.filter.started


def test_the_quality_of_service_can_be_set_by_parameters(bench):
    bench.start(sensor_reliability='best_effort', **{
        'qos_overrides./odometry.subscription.reliability': 'reliable',
        'qos_overrides./odometry.subscription.depth': 7})
    profile, = [info.qos_profile for info in bench.node.get_subscriptions_info_by_topic(
        '/odometry')]
    assert profile.reliability is ReliabilityPolicy.RELIABLE
    assert bench.node.get_parameter('qos_overrides./odometry.subscription.depth').value == 7


@pytest.mark.parametrize(('change', 'said'), [
    (lambda pixels: pixels // 100, 'image is black'),
    (lambda pixels: np.maximum(pixels, 252), 'image is saturated'),
    (lambda pixels: np.full_like(pixels, 128), 'image is flat'),
])
def test_an_image_that_shows_nothing_is_not_matched_and_the_prior_goes_out(bench, change, said):
    bench.start().drive()
    msg = image_msg(4.0)
    msg.data = array('B', change(np.array(msg.data, np.uint8)).tobytes())
    bench.image_processed(4.0, msg)
    bench.expect('camera', 2, said)
    bench.expect('matcher', 1, f'image not usable: {said}')
    assert not bench.received['match']


def test_the_same_picture_is_frozen_only_where_the_vehicle_has_moved(bench):
    bench.start().drive()
    bench.image_processed(4.0)
    msg = image_msg(4.0)
    bench.drive(4.05, 4.05)
    msg.header.stamp = stamp_at(4.05)
    bench.image_processed(4.05, msg)
    bench.wait(lambda: len(bench.received['match']) == 2)
    bench.drive(4.1, 4.5)
    msg.header.stamp = stamp_at(4.5)
    bench.image_processed(4.5, msg)
    bench.expect('camera', 2, 'image is frozen')
    assert len(bench.received['match']) == 2


def test_one_odometry_stamp_from_the_future_is_refused_and_five_are_a_new_time(bench):
    bench.start().drive()
    bench.odometry_sent(1000.0)
    bench.expect('odometry', 1, 'stamp jumped ahead by 996.0 s')
    bench.odometry_sent(4.05)
    assert bench.node._localizer.estimate_at(stamp_ns_at(4.05)) is not None
    bench.drive(1000.0, 1006.0)
    bench.wait(lambda: bench.node._localizer.filter.started)
    assert 'jumped ahead' in bench.node._restart_reason


def test_the_reset_service_starts_the_filter_anew(bench):
    bench.start().drive()
    bench.wait(lambda: bench.received['odometry'])
    assert call(bench, Trigger, 'reset', Trigger.Request()).success
    assert bench.node._localizer.estimate_at(stamp_ns_at(4.0)) is None
    bench.expect('node', 1, 'restarted: asked for by the service reset')
    bench.drive(5.0, 9.0)
    bench.image_processed(9.0)
    assert position_error_m(bench.received['pose'][-1], 9.0) < 1.5


def test_a_clock_that_jumps_back_starts_the_filter_anew(bench):
    bench.start(use_sim_time=True)
    bench.expect('node', 1, 'nothing comes on /clock')
    clock = bench.node.get_clock()
    bench.repeat('clock', Clock(clock=stamp_at(4.0)),
                 lambda: clock.now().nanoseconds == stamp_ns_at(4.0))
    bench.drive()
    assert bench.node._localizer.estimate_at(stamp_ns_at(4.0)) is not None
    bench.repeat('clock', Clock(clock=stamp_at(0.0)),
                 lambda: clock.now().nanoseconds == stamp_ns_at(0.0))
    bench.expect('node', 1, 'the clock jumped back by 4.0 s')
    assert bench.node._localizer.estimate_at(stamp_ns_at(4.0)) is None
    bench.drive()
    bench.image_processed(4.0)
    bench.expect('node', 0, 'active')


def test_odometry_that_jumps_back_without_a_clock_starts_the_filter_anew(bench):
    bench.start().drive(0.0, 8.0)
    poses = len(bench.received['odometry'])
    bench.drive(0.0, 4.0)
    bench.wait(lambda: len(bench.received['odometry']) > poses)
    bench.image_processed(4.0)
    assert position_error_m(bench.received['pose'][-1], 4.0) < 1.5
    assert 'jumped back' in bench.node._restart_reason


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


def test_without_autostart_the_lifecycle_services_drive_the_node_there_and_back(bench):
    bench.start(autostart=False)
    bench.expect('node', 1, 'not configured')
    assert change_state(bench, 'configure')
    bench.expect('node', 1, 'inactive')
    assert change_state(bench, 'activate')
    bench.calibrated()
    bench.drive()
    bench.image_processed(4.0)
    assert change_state(bench, 'deactivate')
    received = len(bench.received['odometry'])
    bench.publish('odometry', odometry_msg(5.0))
    bench.expect('node', 1, 'inactive')
    assert len(bench.received['odometry']) == received
    assert change_state(bench, 'cleanup')
    bench.wait(lambda: bench.driver.count_subscribers('/gnss') == 0)
    assert change_state(bench, 'configure')
    assert change_state(bench, 'activate')
    bench.calibrated()
    bench.drive(10.0, 14.0)
    bench.image_processed(14.0)
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


def test_a_wrong_parameter_ends_the_process_with_one_line_and_exit_code_2():
    process = start_process('--ros-args', '-p', 'filter.buffer_s:=99')
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output.count('\n') == 1
    assert 'filter.buffer_s is 99; expected 0.1 to 30.0' in output


# --- the image thread alone


@pytest.fixture
def worker():
    processed = []
    worker = ImageWorker(processed.append, odometry_wait_s=0.05, settle_s=0.0)
    worker.processed = processed
    yield worker
    worker.stop()


def test_an_image_waits_for_odometry_that_reaches_its_stamp(wait_until):
    processed = []
    worker = ImageWorker(processed.append, odometry_wait_s=60.0, settle_s=0.0)
    worker.offer(100, 'image')
    worker.odometry_reached(99)
    wait_until(lambda: worker._waiting is None)
    assert processed == []
    worker.odometry_reached(100)
    wait_until(lambda: processed == ['image'])
    worker.stop()


def test_without_odometry_an_image_is_processed_after_the_wait(worker, wait_until):
    worker.offer(100, 'image')
    wait_until(lambda: worker.processed == ['image'])


def test_a_cleared_image_is_never_processed(wait_until):
    processed = []
    worker = ImageWorker(processed.append, odometry_wait_s=60.0, settle_s=0.0)
    worker.offer(100, 'before the jump')
    worker.clear()
    worker.offer(5, 'after the jump')
    worker.odometry_reached(5)
    wait_until(lambda: processed == ['after the jump'])
    worker.stop()


def test_every_image_is_processed_or_counted_as_dropped(wait_until):
    processed = []
    worker = ImageWorker(processed.append, odometry_wait_s=60.0, settle_s=0.0)
    worker.offer(100, 'waited for, then cleared')
    wait_until(lambda: worker._waiting is None)
    worker.offer(101, 'overwritten')
    worker.offer(102, 'cleared')
    worker.clear()
    wait_until(lambda: worker.dropped == 3)
    worker.offer(5, 'processed')
    worker.odometry_reached(5)
    wait_until(lambda: processed == ['processed'])
    worker.offer(9, 'stopped while it is waited for')
    wait_until(lambda: worker._waiting is None)
    worker.offer(10, 'stopped while it waits')
    worker.stop()
    assert worker.dropped == 5


def test_stopping_does_not_wait_for_odometry(wait_until):
    worker = ImageWorker(lambda image: None, odometry_wait_s=60.0, settle_s=0.0)
    worker.offer(100, 'image')
    wait_until(lambda: worker._waiting is None)
    started_s = time.monotonic()
    worker.stop()
    assert time.monotonic() - started_s < 10.0
