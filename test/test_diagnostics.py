"""What the lines of /diagnostics say, without ROS."""

import math

import numpy as np
import pytest

from crossview_localizer.ros.diagnostics import InputMonitor, Level, pose_status


@pytest.fixture
def monitor():
    monitor = InputMonitor('gnss', 'look at the antenna')
    monitor.start(0.0)
    return monitor


def test_a_trouble_between_two_reports_is_shown_once_and_then_gone(monitor):
    monitor.received(1.0)
    monitor.refused('no fix')
    monitor.received(1.1)
    monitor.used()
    status = monitor.status(1.2, 2.0, 'silent')
    assert (status.level, status.text) == (Level.WARN, 'no fix')
    assert status.remedy == 'look at the antenna'
    assert monitor.status(1.3, 2.0, 'silent').level is Level.OK


def test_a_trouble_stays_until_a_message_is_used(monitor):
    monitor.received(1.0)
    monitor.refused('no fix', Level.ERROR)
    for now_s in (1.1, 1.2):
        assert monitor.status(now_s, 2.0, 'silent').level is Level.ERROR


def test_silence_is_an_error_with_what_was_wrong_before(monitor):
    monitor.received(1.0)
    monitor.refused('no fix')
    status = monitor.status(4.0, 2.0, 'nobody publishes')
    assert status.level is Level.ERROR
    assert status.text == 'nothing received for 3.0 s; nobody publishes; before that: no fix'


def test_the_silence_of_an_input_that_can_be_missed_is_a_warning():
    optional = InputMonitor('gnss_velocity', silence=Level.WARN)
    optional.received(10.0)
    assert optional.status(13.0, 2.0, 'look').level is Level.WARN


def test_numbers_that_a_publisher_left_out_are_counted_as_lost(monitor):
    for number in (7, 8, 11):
        monitor.received(0.1 * number, b'one', number)
    monitor.received(1.2, b'another', 1)
    monitor.received(1.3, b'one', 12)
    monitor.received(1.4)
    status = monitor.status(1.4, 2.0, '')
    assert status.values['lost'] == 2
    assert (status.level, status.text) == (
        Level.WARN, '2 of the last 7 messages were lost on the way')
    for number in range(13, 20):
        monitor.received(0.1 * number, b'one', number)
    assert monitor.status(2.0, 2.0, '').level is Level.OK


def test_one_gated_fix_is_counted_and_many_are_a_trouble(monitor):
    for number in range(20):
        monitor.received(0.1 * number)
        monitor.gate(True, 1.5)
        monitor.used()
    monitor.gate(False, 30.0)
    monitor.gated('refused by the gate')
    assert monitor.status(2.0, 2.0, '').level is Level.OK
    for _ in range(6):
        monitor.gate(False, 30.0)
        monitor.gated('refused by the gate')
    status = monitor.status(2.0, 2.0, '')
    assert (status.level, status.text) == (Level.WARN, 'refused by the gate')
    assert status.values['refused'] == 7
    assert float(status.values['gate_refused_share']) == pytest.approx(7 / 27, abs=0.01)
    assert float(status.values['gate_mean_distance2']) == pytest.approx(
        (20 * 1.5 + 7 * 30.0) / 27, abs=0.01)


def test_the_rate_is_that_of_the_last_messages_and_sinks_in_silence(monitor):
    for number in range(101):
        monitor.received(0.05 * number)
    assert float(monitor.status(5.0, 2.0, '').values['rate_hz']) == pytest.approx(20.0, rel=0.05)
    assert float(monitor.status(6.9, 2.0, '').values['rate_hz']) < 15.0


def test_the_filters_line_has_the_half_axes_of_the_ellipse_of_95_percent():
    # 95 % of a plane normal distribution lies within sqrt(-2 ln 0.05) sigmas.
    radius = math.sqrt(-2.0 * math.log(0.05))
    turn = np.array([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    covariance = np.diag([0.0, 0.0, math.radians(2.0) ** 2])
    covariance[:2, :2] = turn @ np.diag([9.0, 1.0]) @ turn.T
    status = pose_status(covariance, 10.0, 40.0)
    assert status.level is Level.OK
    assert float(status.values['ellipse_95_long_m']) == pytest.approx(3.0 * radius, abs=0.01)
    assert float(status.values['ellipse_95_short_m']) == pytest.approx(radius, abs=0.01)
    assert float(status.values['sigma_yaw_deg']) == pytest.approx(2.0)


@pytest.mark.parametrize(('sigma_m', 'level'), [
    (4.0, Level.OK), (4.2, Level.WARN), (16.2, Level.WARN), (16.5, Level.ERROR)])
def test_an_ellipse_beyond_its_limits_is_a_warning_and_then_an_error(sigma_m, level):
    covariance = np.diag([sigma_m**2, 0.1, 0.01])
    status = pose_status(covariance, 10.0, 40.0)
    assert status.level is level
    assert bool(status.remedy) is (level is not Level.OK)
