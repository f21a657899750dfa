"""The way of odometry to the Localizer, without DDS."""

import math

import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

from nav_msgs.msg import Odometry

from crossview_localizer.config import configs_from_parameters, LocalizerConfig, NodeConfig
from crossview_localizer.ros import conversions
from crossview_localizer.ros.input_monitor import InputMonitor
from crossview_localizer.ros.localizer_holder import LocalizerHolder
from crossview_localizer.ros.odometry_input import OdometryInput
from crossview_localizer.ros.odometry_timeline import OdometryTimeline
from crossview_localizer.ros.status import Level

START_NS = 1_400_000_000_000_000_000


class Bench:
    def __init__(self, config=None):
        config = config or NodeConfig()
        self.holder = LocalizerHolder(config, LocalizerConfig())
        self.timeline = OdometryTimeline(LocalizerConfig().filter)
        self.monitor = InputMonitor('odometry')
        self.restarts = []
        self.odometry = OdometryInput(
            config, self.holder, self.timeline, self.monitor, self.restart)

    def restart(self, reason: str):
        self.restarts.append(reason)
        self.timeline.reset()
        self.odometry.reset()
        self.holder.localizer.reset()

    def line(self):
        self.monitor.add_message(0.0)
        return self.monitor.status(0.0, 2.0, '')


@pytest.fixture
def bench():
    """The map frame is placed."""
    bench = Bench()
    bench.holder.make_without_map((51.76, -1.26))
    return bench


def msg_at(time_s: float, x_m: float = 0.0, child_frame_id='base_link') -> Odometry:
    msg = Odometry(child_frame_id=child_frame_id)
    msg.header.stamp = conversions.stamp_msg_from_ns(START_NS + round(time_s * 1e9))
    msg.pose.pose.position.x = x_m
    msg.pose.pose.orientation.w = 1.0
    return msg


def test_each_newest_sample_is_returned_and_others_are_not(bench):
    assert bench.odometry.add(msg_at(1.0, 10.0)).odom_from_base.x_m == 10.0
    assert bench.odometry.add(msg_at(0.5, 5.0)) is None
    assert bench.odometry.add(msg_at(1.0, 10.0)) is None
    assert bench.timeline.newest.stamp_ns == START_NS + 10**9


def test_odometry_of_another_frame_or_with_nan_is_refused_with_the_reason(bench):
    assert bench.odometry.add(msg_at(1.0, child_frame_id='rear_axle')) is None
    status = bench.line()
    assert status.level is Level.ERROR and "'rear_axle'; expected 'base_link'" in status.text
    assert bench.odometry.add(msg_at(1.0, math.nan)) is None
    assert 'is not valid' in bench.line().text


def test_before_the_map_frame_is_placed_odometry_is_refused():
    bench = Bench()
    assert bench.odometry.add(msg_at(1.0)) is None
    assert 'waiting for GNSS fixes that agree' in bench.line().text


def test_stamps_that_stay_in_another_time_restart_and_are_then_used(bench):
    bench.odometry.add(msg_at(100.0))
    found = [bench.odometry.add(msg_at(time_s)) for time_s in (0.0, 0.1, 0.2, 0.3)]
    assert found == [None] * 4 and bench.restarts == []
    assert bench.monitor.counts['too_old'] == 4
    assert 'stamp jumped back by 99.7 s' in bench.line().text
    assert bench.odometry.add(msg_at(0.4)) is not None
    assert bench.restarts == ['stamps of the odometry jumped back by 99.6 s']
    assert bench.odometry.add(msg_at(0.5)) is not None


@pytest.mark.parametrize('sent, named, remedy', [
    ('/map', 'map', 'GNSS would count twice'), ('base_link', 'base_link', 'odom_frame')])
def test_odometry_in_a_frame_that_cannot_be_its_own_is_an_error_that_says_why(
        bench, sent, named, remedy):
    msg = msg_at(1.0)
    msg.header.frame_id = sent
    assert bench.odometry.add(msg) is None
    line = bench.line()
    assert line.level is Level.ERROR and f"frame_id is '{named}'" in line.text
    assert remedy in line.remedy


def test_a_pose_that_stands_still_while_its_twist_moves_is_remarked_on(bench):
    for tick in range(20):
        msg = msg_at(0.1 * tick)
        msg.twist.twist.linear.x = 10.0
        assert bench.odometry.add(msg) is not None
        assert (bench.line().level is Level.OK) == (tick < 5), tick
    assert 'stands still while its twist has gone 19 m' in bench.line().text
    assert 'odometry_from_twist' in bench.line().remedy
    bench.odometry.add(msg_at(2.0, 3.0))
    bench.line()
    assert bench.line().level is Level.OK


@pytest.mark.parametrize('scale', [0.5, 1.0, 3.6])
def test_a_pose_that_moves_is_not_remarked_on_whatever_the_unit_of_its_twist(bench, scale):
    for tick in range(100):
        msg = msg_at(0.1 * tick, 1.0 * tick)
        msg.twist.twist.linear.x = 10.0 * scale
        bench.odometry.add(msg)
        assert bench.line().level is Level.OK


def test_the_twist_is_integrated_where_the_parameter_asks_for_it():
    """A quarter of a circle of 20 m to the left, at 5 m/s; then the stamps begin anew."""
    bench = Bench(NodeConfig(odometry_from_twist=True))
    bench.holder.make_without_map((51.76, -1.26))
    seconds = math.pi * 20.0 / 2 / 5.0
    for start_s in (100.0, 0.0):
        for tick in range(201):
            msg = msg_at(start_s + seconds * tick / 200)
            msg.twist.twist.linear.x, msg.twist.twist.angular.z = 5.0, 5.0 / 20.0
            sample = bench.odometry.add(msg)
        # The first four samples of another time are stragglers.
        missing_rad = 0.0 if start_s else 4 / 200 * math.pi / 2
        pose = sample.odom_from_base
        assert pose.yaw_rad == pytest.approx(math.pi / 2 - missing_rad, abs=1e-6)
        assert pose.x_m == pytest.approx(20.0 * math.cos(missing_rad), abs=0.01)
    assert len(bench.restarts) == 1


def test_a_map_frame_that_is_also_that_of_the_odometry_is_refused():
    with pytest.raises(ValueError, match='three different frames'):
        configs_from_parameters({'odom_frame': 'map'})
