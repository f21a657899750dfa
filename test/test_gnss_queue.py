"""GNSS messages wait for the odometry of their time, and not for odometry that is silent."""

import pytest

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros.gnss_queue import clock_problem, GnssQueue, MAX_WAIT_S
from crossview_localizer.ros.odometry_timeline import OdometryTimeline

SECOND_NS = 10**9


@pytest.fixture
def timeline(clock):
    return OdometryTimeline(FilterConfig(), clock)


@pytest.fixture
def queue(timeline, clock):
    return GnssQueue(timeline, odometry_wait_s=0.1, clock_s=clock)


def advance(timeline, stamp_ns):
    timeline.advance(OdometrySample(stamp_ns, Pose2D(0.0, 0.0, 0.0)))


def test_a_message_is_due_once_odometry_has_reached_its_stamp(queue, timeline, clock):
    advance(timeline, 10 * SECOND_NS)
    queue.add(10 * SECOND_NS + 5, 'fix')
    assert list(queue.take_due()) == []
    clock.now_s += 0.05
    advance(timeline, 10 * SECOND_NS + 5)
    (msg, waited_s), = queue.take_due()
    assert msg == 'fix' and waited_s == pytest.approx(0.05)
    assert list(queue.take_due()) == []


def test_messages_keep_their_order_behind_one_that_waits(queue, timeline):
    advance(timeline, 10 * SECOND_NS)
    queue.add(11 * SECOND_NS, 'ahead')
    queue.add(9 * SECOND_NS, 'late')
    assert list(queue.take_due()) == []
    advance(timeline, 11 * SECOND_NS)
    assert [msg for msg, _ in queue.take_due()] == ['ahead', 'late']


def test_without_odometry_or_when_it_is_silent_a_message_is_due_at_once(queue, timeline, clock):
    queue.add(5 * SECOND_NS, 'before any odometry')
    assert [msg for msg, _ in queue.take_due()] == ['before any odometry']
    advance(timeline, 10 * SECOND_NS)
    queue.add(11 * SECOND_NS, 'after the last')
    assert list(queue.take_due()) == []
    clock.now_s += 0.2
    assert [msg for msg, _ in queue.take_due()] == ['after the last']


def test_a_message_of_another_time_is_not_waited_for(queue, timeline):
    advance(timeline, 10 * SECOND_NS)
    queue.add(1000 * SECOND_NS, 'far ahead')
    assert [msg for msg, _ in queue.take_due()] == ['far ahead']


def test_a_cleared_queue_is_empty(queue, timeline):
    advance(timeline, 10 * SECOND_NS)
    queue.add(11 * SECOND_NS, 'fix')
    queue.clear()
    advance(timeline, 11 * SECOND_NS)
    assert list(queue.take_due()) == []


def test_a_message_that_waits_longer_than_odometry_is_ever_late_has_another_clock():
    assert clock_problem('fixes', MAX_WAIT_S) == ''
    assert 'fixes wait 18.0 s for odometry of their time' in clock_problem('fixes', 18.0)


def test_a_message_that_comes_18_seconds_ahead_of_the_odometry_is_not_waited_for(
        queue, timeline, clock):
    advance(timeline, 10 * SECOND_NS)
    clock.now_s += 0.05
    queue.add(28 * SECOND_NS, 'in GPS time')
    (msg, early_s), = queue.take_due()
    assert msg == 'in GPS time' and early_s == pytest.approx(18.0)


def test_a_node_that_is_three_seconds_behind_uses_the_message_once_it_has_its_odometry(
        queue, timeline, clock):
    def take(time_s):
        timeline.advance(OdometrySample(
            round(time_s * SECOND_NS), Pose2D(0.0, 0.0, 0.0)), arrived_s=1000.0 + time_s)

    take(10.0)
    queue.add(13 * SECOND_NS, 'fix', arrived_s=1013.02)
    for tick in range(1, 31):
        assert list(queue.take_due()) == []
        clock.now_s += 0.09
        take(10.0 + tick / 10)
    assert [(msg, clock_problem('fixes', waited_s)) for msg, waited_s in queue.take_due()] == [
        ('fix', '')]


def test_a_message_of_a_clock_that_is_ahead_is_found_in_a_node_that_is_behind(queue, timeline):
    timeline.advance(OdometrySample(10 * SECOND_NS, Pose2D(0.0, 0.0, 0.0)), arrived_s=1010.0)
    queue.add(31 * SECOND_NS, 'in GPS time', arrived_s=1013.0)
    (_, waited_s), = queue.take_due()
    assert 'their clock is ahead' in clock_problem('fixes', waited_s)


def test_a_clock_that_is_ahead_is_found_though_odometry_pauses(queue, timeline, clock):
    advance(timeline, 10 * SECOND_NS)
    clock.now_s += 0.5
    queue.add(round(15.5 * SECOND_NS), 'five seconds ahead')
    (_, early_s), = queue.take_due()
    assert early_s == pytest.approx(5.5)


def test_after_a_busy_while_a_message_that_is_ahead_waits_for_the_odometry_behind_it(
        queue, timeline, clock):
    advance(timeline, 10 * SECOND_NS)
    clock.now_s += 5.0
    queue.add(15 * SECOND_NS, 'fix')
    advance(timeline, 10 * SECOND_NS + 1)
    assert list(queue.take_due()) == []
    advance(timeline, 15 * SECOND_NS)
    (_, waited_s), = queue.take_due()
    assert waited_s == 0.0
