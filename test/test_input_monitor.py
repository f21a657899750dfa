"""What the lines of /diagnostics about the inputs say, without ROS."""

import pytest

from crossview_localizer.datatypes import FilterUpdate, Outcome
from crossview_localizer.ros.input_monitor import InputMonitor
from crossview_localizer.ros.status import Level


@pytest.fixture
def monitor():
    monitor = InputMonitor('gnss', 'look at the antenna')
    monitor.start(0.0)
    return monitor


def test_a_problem_between_two_reports_is_shown_once_and_then_gone(monitor):
    monitor.add_message(1.0)
    monitor.add_refused('no fix')
    monitor.add_message(1.1)
    monitor.add_used()
    status = monitor.status(1.2, 2.0, 'silent')
    assert (status.level, status.text) == (Level.WARN, 'no fix')
    assert status.remedy == 'look at the antenna'
    assert monitor.status(1.3, 2.0, 'silent').level is Level.OK


def test_a_problem_stays_until_a_message_is_used(monitor):
    monitor.add_message(1.0)
    monitor.add_refused('no fix', Level.ERROR)
    for now_s in (1.1, 1.2):
        assert monitor.status(now_s, 2.0, 'silent').level is Level.ERROR


def test_silence_is_an_error_that_repeats_the_last_problem(monitor):
    monitor.add_message(1.0)
    monitor.add_refused('no fix')
    status = monitor.status(4.0, 2.0, 'nobody publishes')
    assert status.level is Level.ERROR
    assert status.text == 'nothing received for 3.0 s; nobody publishes; before that: no fix'


def test_the_silence_of_an_input_that_can_be_missed_is_a_warning():
    optional = InputMonitor('gnss_velocity', silence_level=Level.WARN)
    optional.add_message(10.0)
    assert optional.status(13.0, 2.0, 'look').level is Level.WARN


def test_numbers_that_a_publisher_left_out_are_counted_as_lost(monitor):
    for number in (7, 8, 11):
        monitor.add_message(0.1 * number, b'one', number)
    monitor.add_message(1.2, b'another', 1)
    monitor.add_message(1.3, b'one', 12)
    monitor.add_message(1.4)
    status = monitor.status(1.4, 2.0, '')
    assert status.values['lost'] == 2
    assert (status.level, status.text) == (
        Level.WARN, '2 of the last 7 messages were lost on the way')
    for number in range(13, 20):
        monitor.add_message(0.1 * number, b'one', number)
    assert monitor.status(2.0, 2.0, '').level is Level.OK


def test_one_gated_fix_is_counted_and_many_are_a_problem(monitor):
    for number in range(20):
        monitor.add_message(0.1 * number)
        monitor.add_update(FilterUpdate(Outcome.USED, mahalanobis2=1.5))
    gated = FilterUpdate(Outcome.GATED, 'too far', mahalanobis2=30.0)
    monitor.add_update(gated)
    assert monitor.status(2.0, 2.0, '').level is Level.OK
    for _ in range(6):
        monitor.add_update(gated)
    status = monitor.status(2.0, 2.0, '')
    assert (status.level, status.text) == (Level.WARN, 'refused by the gate: too far')
    assert status.values['refused'] == status.values['gated'] == 7
    assert float(status.values['gate_refused_share']) == pytest.approx(7 / 27, abs=0.01)
    assert float(status.values['gate_mean_distance2']) == pytest.approx(
        (20 * 1.5 + 7 * 30.0) / 27, abs=0.01)


def test_a_remark_on_a_used_message_is_a_warning_until_one_is_used_without(monitor):
    monitor.add_message(1.0)
    monitor.add_update(FilterUpdate(Outcome.USED), 'covariance is unknown', 'look at the driver')
    status = monitor.status(1.1, 2.0, '')
    assert (status.level, status.text, status.remedy) == (
        Level.WARN, 'covariance is unknown', 'look at the driver')
    assert status.values['used'] == 1
    monitor.add_update(FilterUpdate(Outcome.USED))
    assert monitor.status(1.2, 2.0, '').level is Level.WARN  # shown at least once
    assert monitor.status(1.3, 2.0, '').level is Level.OK


def test_the_rate_is_of_the_last_messages_and_falls_in_silence(monitor):
    for number in range(101):
        monitor.add_message(0.05 * number)
    assert float(monitor.status(5.0, 2.0, '').values['rate_hz']) == pytest.approx(20.0, rel=0.05)
    assert float(monitor.status(6.9, 2.0, '').values['rate_hz']) < 15.0


def test_a_repeated_fix_is_counted_and_a_problem_only_with_a_reason(monitor):
    monitor.add_message(1.0)
    monitor.add_update(FilterUpdate(Outcome.REPEATED))
    assert monitor.status(1.1, 2.0, 'silent').level is Level.OK
    monitor.add_update(FilterUpdate(Outcome.REPEATED, 'for 30 s and 300 m of driving'))
    status = monitor.status(1.1, 2.0, 'silent')
    assert status.level is Level.WARN and 'for 30 s and 300 m of driving' in status.text
    assert monitor.counts['repeated'] == 2
