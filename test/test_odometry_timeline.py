"""The time line of odometry: stragglers, restarts, and how far other stamps are from it."""

import pytest

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import OdometrySample, Outcome
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros.odometry_timeline import OdometryTimeline, SAMPLES_TO_RESTART

START_NS = 1_400_000_000_000_000_000
CONFIG = FilterConfig(buffer_s=2.0)


def stamp_ns(time_s: float) -> int:
    return START_NS + round(time_s * 1e9)


def sample(time_s: float) -> OdometrySample:
    return OdometrySample(stamp_ns(time_s), Pose2D(0.0, 0.0, 0.0))


@pytest.fixture
def timeline(clock):
    """Odometry has come up to second 0."""
    timeline = OdometryTimeline(CONFIG, clock)
    assert timeline.advance(sample(0.0))
    return timeline


def test_the_newest_sample_is_kept_and_an_older_one_does_not_replace_it(timeline):
    assert timeline.advance(sample(0.1))
    assert not timeline.advance(sample(0.1)) and not timeline.advance(sample(0.05))
    assert timeline.newest == sample(0.1)


@pytest.mark.parametrize('time_s', [-2.0, 0.0, 59.9])
def test_a_stamp_within_the_buffer_or_soon_after_fits(timeline, time_s):
    assert timeline.find_jump(stamp_ns(time_s)) is None


@pytest.mark.parametrize(('time_s', 'text', 'kind'), [
    (-10.0, 'jumped back by 10.0 s', 'too_old'), (3600.0, 'jumped ahead by 3600.0 s', 'too_new')])
def test_stamps_of_another_time_are_a_restart_once_they_keep_coming(
        timeline, time_s, text, kind):
    jumps = [timeline.find_jump(stamp_ns(time_s)) for _ in range(SAMPLES_TO_RESTART)]
    assert {(jump.text, jump.kind) for jump in jumps} == {(text, kind)}
    assert [jump.is_restart for jump in jumps] == [False] * (SAMPLES_TO_RESTART - 1) + [True]


def test_stragglers_between_good_samples_are_no_restart(timeline):
    for _ in range(2 * SAMPLES_TO_RESTART):
        assert not timeline.find_jump(stamp_ns(-10.0)).is_restart
        assert timeline.find_jump(stamp_ns(0.1)) is None


def test_after_a_reset_any_stamp_fits(timeline):
    timeline.reset()
    assert timeline.newest is None
    assert timeline.find_jump(stamp_ns(-1000.0)) is None
    assert timeline.find_image_problem(stamp_ns(-1000.0)) is None


@pytest.mark.parametrize(('time_s', 'outcome', 'text'), [
    (61.0, Outcome.INVALID, '61.0 s ahead of the last odometry'),
    (-2.5, Outcome.TOO_OLD, '2.5 s before the last odometry; the delay buffer holds 2.0 s')])
def test_an_image_far_from_the_odometry_is_a_problem(timeline, time_s, outcome, text):
    problem = timeline.find_image_problem(stamp_ns(time_s))
    assert problem.outcome is outcome and text in problem.reason
    assert timeline.find_image_problem(stamp_ns(0.05)) is None


def test_an_image_without_a_stamp_is_a_problem_before_any_odometry():
    problem = OdometryTimeline(CONFIG).find_image_problem(0)
    assert problem.outcome is Outcome.INVALID and 'stamp is 0 ns' in problem.reason


def test_a_stamp_is_worth_waiting_for_while_odometry_runs_and_has_not_reached_it(
        timeline, clock):
    assert timeline.is_worth_waiting_for(stamp_ns(0.1), patience_s=0.5)
    assert not timeline.is_worth_waiting_for(stamp_ns(0.0), patience_s=0.5)
    assert not timeline.is_worth_waiting_for(stamp_ns(61.0), patience_s=0.5)
    clock.now_s += 0.6
    assert not timeline.is_worth_waiting_for(stamp_ns(0.1), patience_s=0.5)
