"""The way of fixes and velocities to the Localizer, without DDS."""

import math
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped, TwistWithCovarianceStamped
from sensor_msgs.msg import NavSatFix
from tf2_msgs.msg import TFMessage

from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.ros import conversions
from crossview_localizer.ros.diagnostics import Diagnostics, NodeMonitor
from crossview_localizer.ros.gnss_input import GnssInput
from crossview_localizer.ros.localizer_holder import LocalizerHolder
from crossview_localizer.ros.odometry_timeline import OdometryTimeline
from crossview_localizer.ros.saved_pose import PoseKeeper, SavedPose
from crossview_localizer.ros.sensor_rig import SensorRig
from crossview_localizer.ros.status import Level

FRAME = LocalFrame(51.76, -1.26)
START_NS = 1_400_000_000_000_000_000
CONFIG = LocalizerConfig()


class Log:
    def __init__(self):
        self.lines = []
        self.info = self.warning = self.lines.append


class Bench:
    """The input with all its parts; there is no map, and odometry stands still until it moves."""

    def __init__(self, path=None, **parameters):
        # Patient: no odometry is called silent while a busy machine runs the test.
        config = NodeConfig(odometry_wait_s=1000.0, **parameters)
        self.holder = LocalizerHolder(config, CONFIG)
        self.rig = SensorRig(config, CONFIG.camera)
        self.timeline = OdometryTimeline(CONFIG.filter)
        self.keeper = PoseKeeper(path, CONFIG.filter, 30.0)
        self.keeper.load()
        self.diagnostics = Diagnostics(config, NodeMonitor(), '/image', lambda topic: (topic, 1))
        self.log = Log()
        self.gnss = GnssInput(
            config, self.holder, self.rig, self.timeline, self.keeper, self.diagnostics, self.log)

    def place_antenna(self, x_m: float = 0.0):
        transform = TransformStamped(child_frame_id='antenna')
        transform.header.frame_id = 'base_link'
        transform.transform.translation.x = x_m
        self.rig.static_transforms.add(TFMessage(transforms=[transform]))
        return self

    def move(self, time_s: float, x_m: float = 0.0):
        sample = OdometrySample(START_NS + round(time_s * 1e9), Pose2D(x_m, 0.0, 0.0))
        if self.holder.localizer is not None:
            self.holder.localizer.add_odometry(sample)
        self.timeline.advance(sample)

    def drive(self):
        """Start the filter: 20 m to the east in 2 s, with fixes."""
        for tick in range(21):
            self.gnss.add_fix(fix_msg(tick * 0.1, tick * 1.0))
            self.move(tick * 0.1, tick * 1.0)
            self.gnss.use_due()
        return self

    def line(self, name: str):
        found = {status.name: status for status in self.diagnostics.statuses(
            time.monotonic(), None, False)}
        return found[name]


def fix_msg(time_s: float, x_m: float, y_m: float = 0.0) -> NavSatFix:
    msg = NavSatFix(position_covariance_type=2)
    msg.status.status = 0
    msg.header.frame_id = 'antenna'
    msg.header.stamp = conversions.stamp_msg_from_ns(START_NS + round(time_s * 1e9))
    msg.latitude, msg.longitude = FRAME.latlon_from_xy(x_m, y_m)
    msg.position_covariance = np.eye(3).ravel()
    return msg


def velocity_msg(time_s: float, east_mps: float) -> TwistWithCovarianceStamped:
    msg = TwistWithCovarianceStamped()
    msg.header.frame_id = 'antenna'
    msg.header.stamp = conversions.stamp_msg_from_ns(START_NS + round(time_s * 1e9))
    msg.twist.twist.linear.x = east_mps
    msg.twist.covariance = (np.eye(6) * 0.01).ravel()
    return msg


def test_without_a_map_the_first_of_three_fixes_that_agree_places_the_map_frame():
    bench = Bench().place_antenna()
    bench.gnss.add_velocity(velocity_msg(0.0, 10.0))
    assert 'waiting for GNSS fixes that agree' in bench.line('gnss_velocity').text
    far = fix_msg(0.0, 0.0)
    far.latitude = 48.0  # where the receiver was switched off
    bench.gnss.add_fix(far)
    for second in range(3):
        assert bench.holder.localizer is None
        bench.gnss.add_fix(fix_msg(1.0 + second, 10.0 * second))
    frame = bench.holder.localizer.frame
    assert (frame.latitude_deg, frame.longitude_deg) == pytest.approx(
        (FRAME.latitude_deg, FRAME.longitude_deg), abs=1e-9)
    assert 'the origin of the map frame is the first of 3 fixes' in bench.log.lines[0]


def test_a_position_that_is_repeated_places_no_map_frame():
    bench = Bench().place_antenna()
    for second in range(20):
        bench.gnss.add_fix(fix_msg(float(second), 0.0))
    assert bench.holder.localizer is None


def test_before_the_start_the_map_frame_moves_to_where_fixes_agree():
    bench = Bench().place_antenna()
    for second in range(3):
        bench.gnss.add_fix(fix_msg(float(second), 30e3 + second))
    for second in range(3, 6):
        bench.gnss.add_fix(fix_msg(float(second), 10.0 * second))
    frame = bench.holder.localizer.frame
    assert (frame.latitude_deg, frame.longitude_deg) == pytest.approx(
        FRAME.latlon_from_xy(30.0, 0.0), abs=1e-9)


def test_fixes_that_wait_18_seconds_for_odometry_have_another_clock_and_are_not_used():
    bench = Bench().place_antenna().drive()
    used = bench.diagnostics.gnss.counts['used']
    bench.gnss.add_fix(fix_msg(20.0, 200.0), bench.timeline.arrived_s + 0.05)
    bench.move(20.0, 200.0)
    bench.gnss.use_due()
    bench.diagnostics.gnss.add_message(time.monotonic())
    assert bench.diagnostics.gnss.counts['used'] == used
    status = bench.line('gnss')
    assert status.level is Level.WARN and 'fixes wait 18.0 s for odometry' in status.text
    assert 'GPS time is 18 s ahead of UTC' in status.text


@pytest.mark.parametrize('late_s, level', [(0.22, Level.OK), (1.02, Level.WARN)])
def test_fixes_that_always_come_after_the_odometry_of_their_time_are_remarked_on(late_s, level):
    bench = Bench().place_antenna().drive()
    bench.line('gnss')      # what was wrong at the start is shown once
    for tick in range(21, 41):
        bench.move(tick * 0.1, tick * 1.0)
        time_s = tick * 0.1 - late_s
        bench.gnss.add_fix(fix_msg(time_s, 10.0 * time_s), bench.timeline.arrived_s)
    bench.diagnostics.gnss.add_message(time.monotonic())
    line = bench.line('gnss')
    assert line.level is level
    assert ('fixes come 1.0 s after the odometry' in line.text) == (level is Level.WARN)


def test_fixes_and_velocities_are_used_once_odometry_has_reached_them():
    bench = Bench().place_antenna().drive()
    used = bench.diagnostics.gnss.counts['used']
    bench.gnss.add_fix(fix_msg(2.2, 22.0))
    bench.gnss.add_velocity(velocity_msg(2.15, 10.0))
    assert bench.diagnostics.gnss.counts['used'] == used
    assert bench.diagnostics.velocity.counts['used'] == 0
    bench.move(2.2, 22.0)
    bench.gnss.use_due()
    assert bench.diagnostics.gnss.counts['used'] == used + 1
    assert bench.diagnostics.velocity.counts['used'] == 1


def test_a_reset_forgets_the_messages_that_wait():
    bench = Bench().place_antenna().drive()
    bench.gnss.add_fix(fix_msg(2.2, 22.0))
    bench.gnss.reset()
    used = bench.diagnostics.gnss.counts['used']
    bench.move(2.2, 22.0)
    bench.gnss.use_due()
    assert bench.diagnostics.gnss.counts['used'] == used


def test_a_velocity_too_slow_for_a_course_is_counted_and_no_problem():
    bench = Bench().place_antenna().drive()
    for time_s in (2.1, 2.2):
        bench.move(time_s, 20.0)
    bench.gnss.add_velocity(velocity_msg(2.2, 0.1))
    assert bench.diagnostics.velocity.counts['too_slow'] == 1
    assert bench.diagnostics.velocity.counts['refused'] == 0


def test_without_the_place_of_the_antenna_fixes_are_an_error_and_velocities_a_warning():
    bench = Bench()
    for second in range(3):
        bench.gnss.add_fix(fix_msg(float(second), 10.0 * second))
    bench.diagnostics.gnss.add_message(time.monotonic())
    status = bench.line('gnss')
    assert status.level is Level.ERROR and 'antenna_xyz_m is not set' in status.text
    assert 'antenna_xyz_m' in status.remedy
    bench.gnss.add_velocity(velocity_msg(0.0, 10.0))
    bench.diagnostics.velocity.add_message(time.monotonic())
    assert bench.line('gnss_velocity').level is Level.WARN


def test_an_antenna_in_other_units_than_metres_is_an_error():
    bench = Bench().place_antenna(-1700.0)
    for second in range(3):
        bench.gnss.add_fix(fix_msg(float(second), 10.0 * second))
    bench.diagnostics.gnss.add_message(time.monotonic())
    status = bench.line('gnss')
    assert status.level is Level.ERROR
    assert "'antenna' 1700 m from 'base_link'; expected at most 100 m" in status.text


def test_a_fix_that_is_not_valid_is_refused_and_places_no_map():
    bench = Bench().place_antenna()
    msg = fix_msg(0.0, 0.0)
    msg.latitude = math.nan
    bench.gnss.add_fix(msg)
    assert bench.holder.localizer is None
    assert bench.diagnostics.gnss.counts['refused'] == 1


@pytest.mark.parametrize('variance', [0.0, math.nan])
def test_a_fix_without_a_covariance_is_used_with_an_assumed_one_and_remarked_on(variance):
    bench = Bench(gnss_unknown_sigma_m=3.0).place_antenna().drive()
    msg = fix_msg(2.0, 20.0)
    msg.header.stamp = conversions.stamp_msg_from_ns(START_NS + 1_950_000_000)
    msg.position_covariance = (np.eye(3) * variance).ravel()
    bench.gnss.add_fix(msg)
    bench.diagnostics.gnss.add_message(time.monotonic())
    status = bench.line('gnss')
    assert status.level is Level.WARN and '3.0 m are assumed' in status.text


def changed(msg, **header):
    for name, value in header.items():
        setattr(msg.header, name, value)
    return msg


@pytest.mark.parametrize(('msg', 'said'), [
    (velocity_msg(2.0, math.nan), 'velocity (nan'),
    (changed(velocity_msg(2.0, 10.0), stamp=Time()), 'stamp is 0 ns'),
    (velocity_msg(-60.0, 10.0), 'older than the delay buffer'),
    (velocity_msg(900.0, 10.0), 'ahead of the last odometry'),
    (changed(velocity_msg(2.0, 10.0), frame_id='base_link'), 'in the axes of the vehicle'),
    (changed(velocity_msg(2.0, 10.0), frame_id='mast'), "to 'mast'"),
    (velocity_msg(2.0, -10.0), 'refused by the gate'),
])
def test_a_velocity_that_cannot_be_used_is_a_warning_and_changes_nothing(msg, said):
    bench = Bench().place_antenna().drive()
    stamp_ns = START_NS + 2 * 10**9
    before = bench.holder.localizer.estimate_at(stamp_ns)
    bench.gnss.add_velocity(msg)
    bench.diagnostics.velocity.add_message(time.monotonic())
    status = bench.line('gnss_velocity')
    assert status.level is Level.WARN and said in status.text
    after = bench.holder.localizer.estimate_at(stamp_ns)
    np.testing.assert_array_equal(after.covariance, before.covariance)


def save_pose(path, x_m: float):
    """The pose of a node that was killed at second 1, x_m east of the origin, heading east."""
    SavedPose(
        time.time(), START_NS + 10**9, (FRAME.latitude_deg, FRAME.longitude_deg),
        Pose2D(x_m, 0.0, 0.0), Pose2D(5.0, 0.0, 0.0), np.diag([1.0, 1.0, 0.01])).save(path)


def test_the_first_fix_starts_the_filter_at_the_saved_pose(tmp_path):
    save_pose(tmp_path / 'pose.json', 100.0)
    bench = Bench(tmp_path / 'pose.json').place_antenna()
    bench.move(2.0, 15.0)
    bench.gnss.add_fix(fix_msg(2.0, 110.0))
    estimate = bench.holder.localizer.estimate_at(START_NS + 2 * 10**9)
    assert estimate.pose.x_m == pytest.approx(110.0, abs=0.1)
    assert 'goes on from its last pose' in bench.diagnostics.node.restart_reason


def test_a_saved_pose_that_the_first_fix_contradicts_is_not_used(tmp_path):
    save_pose(tmp_path / 'pose.json', 300.0)
    bench = Bench(tmp_path / 'pose.json').place_antenna()
    bench.move(2.0, 15.0)
    bench.gnss.add_fix(fix_msg(2.0, 110.0))
    assert bench.holder.localizer.estimate_at(START_NS + 2 * 10**9) is None
    assert 'the saved pose is not used: it is 200 m from the first fix' in bench.log.lines[-1]
