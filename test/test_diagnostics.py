"""What the lines of /diagnostics about the node's own parts say, without ROS."""

import math

import numpy as np
import pytest

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import FilterUpdate, GnssFix, Localization, Outcome
from crossview_localizer.fusion.gnss_integrity import ODOMETRY_LIES
from crossview_localizer.ros.diagnostics import (
    CONTRADICTED_S,
    Diagnostics,
    MatcherMonitor,
    NodeMonitor,
    PoseMonitor,
)
from crossview_localizer.ros.status import image_status, Level

NARROW = np.diag([1.0, 1.0, 0.01])


# --- the filter


def test_the_filters_line_has_the_half_axes_of_the_ellipse_of_95_percent():
    # 95 % of a plane normal distribution lies within sqrt(-2 ln 0.05) sigmas.
    radius = math.sqrt(-2.0 * math.log(0.05))
    turn = np.array([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    covariance = np.diag([0.0, 0.0, math.radians(2.0) ** 2])
    covariance[:2, :2] = turn @ np.diag([9.0, 1.0]) @ turn.T
    status = PoseMonitor(10.0, 40.0).status(covariance, 0.0, None)
    assert status.level is Level.OK
    assert float(status.values['ellipse_95_long_m']) == pytest.approx(3.0 * radius, abs=0.01)
    assert float(status.values['ellipse_95_short_m']) == pytest.approx(radius, abs=0.01)
    assert float(status.values['sigma_yaw_deg']) == pytest.approx(2.0)


@pytest.mark.parametrize(('sigma_m', 'level'), [
    (4.0, Level.OK), (4.2, Level.WARN), (16.2, Level.WARN), (16.5, Level.ERROR)])
def test_an_ellipse_beyond_its_limits_is_a_warning_and_then_an_error(sigma_m, level):
    covariance = np.diag([sigma_m**2, 0.1, 0.01])
    status = PoseMonitor(10.0, 40.0).status(covariance, 0.0, None)
    assert status.level is level
    assert bool(status.remedy) is (level is not Level.OK)


def test_before_the_start_the_filter_waits():
    status = PoseMonitor(10.0, 40.0).status(None, 0.0, None)
    assert status.level is Level.WARN and 'waiting for a first position' in status.text


def test_fixes_that_contradict_the_odometry_for_long_put_the_pose_in_doubt():
    monitor = PoseMonitor(10.0, 40.0)
    monitor.add_fix(Outcome.GATED, 100.0)
    monitor.add_fix(Outcome.GATED, 102.0)
    after_s = 100.0 + CONTRADICTED_S
    assert monitor.status(NARROW, after_s, None).level is Level.OK
    status = monitor.status(NARROW, after_s + 1.0, None)
    assert status.level is Level.ERROR and 'do not trust the pose' in status.text
    # A match that is used decides for the pose; so does a fix.
    assert monitor.status(NARROW, after_s + 1.0, matched_s=after_s).level is Level.OK
    monitor.add_fix(Outcome.USED, after_s + 1.0)
    assert monitor.status(NARROW, after_s + 2.0, None).level is Level.OK


# --- the matcher


def localization(outcome: Outcome, reason='') -> Localization:
    return Localization(1, outcome, reason, seconds={'match': 0.0125})


def test_the_matchers_line_counts_outcomes_and_tells_the_last_one():
    monitor = MatcherMonitor()
    assert monitor.status(0.0, 2.0).text == 'no image has been processed'
    for _ in range(3):
        monitor.add_image(localization(Outcome.USED), 50.0, 10.0)
    assert monitor.status(10.1, 2.0).level is Level.OK
    monitor.add_image(localization(Outcome.AMBIGUOUS, 'two streets'), 90.0, 11.0)
    status = monitor.status(11.5, 2.0)
    assert (status.level, status.text) == (Level.WARN, 'match ambiguous: two streets')
    assert status.remedy
    values = status.values
    assert (values['used'], values['ambiguous'], values['gated']) == (3, 1, 0)
    assert (values['used_share'], values['gated_share']) == ('0.75', '0.00')
    assert (values['age_s'], values['since_match_s']) == ('0.50', '1.50')
    assert (values['match_ms'], values['latency_p50_ms']) == ('12.5', '50.0')
    assert 'no image processed for 3.0 s' in monitor.status(14.0, 2.0).text


def test_every_outcome_of_a_processed_image_has_a_remedy():
    for outcome in Outcome:
        if outcome in (Outcome.USED, Outcome.REPEATED, Outcome.TOO_SLOW, Outcome.SEARCHING,
                       Outcome.DROPPED, Outcome.SUPERSEDED):
            continue
        monitor = MatcherMonitor()
        monitor.add_image(localization(outcome), None, 0.0)
        assert monitor.status(0.0, 2.0).remedy


# --- the node


def test_a_failure_is_shown_until_the_node_works_again_and_then_once_more():
    monitor = NodeMonitor()
    monitor.add_failure(TypeError('broken'))
    for _ in range(2):
        status = monitor.status(True, False)
        assert (status.level, status.text) == (Level.ERROR, 'internal error: TypeError: broken')
    monitor.add_success()
    assert monitor.status(True, False).level is Level.ERROR
    assert monitor.status(True, False).level is Level.OK
    assert monitor.status(True, False).values['failures'] == 1


def test_a_refused_message_is_shown_until_a_good_one_of_its_topic_comes():
    monitor = NodeMonitor()
    monitor.add_refused('initialpose', 'no covariance')
    monitor.add_refused('/tf_static', 'not a rotation')
    assert monitor.status(True, False).text == (
        'initialpose: no covariance; /tf_static: not a rotation')
    monitor.add_accepted('/tf_static')
    assert monitor.status(True, False).text == 'initialpose: no covariance'
    monitor.add_accepted('initialpose')
    assert monitor.status(True, False).level is Level.OK


def test_a_restart_is_a_warning_until_there_is_a_pose_again():
    monitor = NodeMonitor()
    monitor.add_restart('the clock jumped back')
    for has_pose in (False, False):
        assert monitor.status(has_pose, False).text == 'restarted: the clock jumped back'
    status = monitor.status(True, False)
    assert status.level is Level.OK
    assert status.values['last_restart'] == 'the clock jumped back'
    monitor.add_restart('again')
    assert monitor.status(True, False).level is Level.WARN  # shown at least once
    assert monitor.status(True, False).level is Level.OK


def test_an_inactive_node_says_why():
    monitor = NodeMonitor()
    assert 'not configured' in monitor.inactive_status(False).text
    assert monitor.inactive_status(True).text.startswith('inactive')
    monitor.add_failure(ValueError('no such map'))
    status = monitor.inactive_status(False)
    assert status.level is Level.ERROR and 'no such map' in status.text


# --- all lines


def diagnostics(publishers: dict[str, int], **config) -> Diagnostics:
    return Diagnostics(
        NodeConfig(**config), NodeMonitor(), '/image',
        lambda topic: (f'/{topic.strip("/")}', publishers.get(topic, 0)))


def lines(parts: Diagnostics, now_s: float) -> dict:
    return {status.name: status for status in parts.statuses(now_s, NARROW, False)}


def test_silent_inputs_are_errors_that_tell_who_publishes():
    parts = diagnostics({'gnss': 1})
    parts.start(0.0)
    found = lines(parts, 3.0)
    assert found['gnss'].level is found['odometry'].level is Level.ERROR
    assert '/gnss has 1 publisher' in found['gnss'].text
    assert 'ros2 topic hz' in found['gnss'].remedy
    assert 'nobody publishes /odometry' in found['odometry'].text
    assert 'odometry:=TOPIC' in found['odometry'].remedy
    assert 'nobody publishes /image' in found['camera'].text
    assert 'gnss_velocity' not in found


def test_silent_images_of_a_publisher_are_too_large_or_of_another_qos():
    parts = diagnostics({'/image': 1, 'odometry': 1, 'gnss_velocity': 1})
    parts.start(0.0)
    assert 'fastdds_large_images.xml' in lines(parts, 3.0)['camera'].remedy
    for topic in ('/image', '/odometry'):
        parts.add_qos_problem(topic, 'RELIABILITY')
    found = lines(parts, 3.0)
    for name, parameter in (('camera', 'image'), ('odometry', 'sensor')):
        assert 'does not accept: RELIABILITY' in found[name].text
        assert f'{parameter}_reliability: best_effort' in found[name].remedy
    assert found['gnss_velocity'].level is Level.WARN


def test_before_the_start_the_filter_says_what_it_waits_for():
    parts = diagnostics({'gnss': 1})
    fix = GnssFix(1, 0.0, 0.0, np.eye(2))
    parts.add_fix(FilterUpdate(Outcome.NOT_STARTED, 'driven 0.0 m of the 8.0 m'), fix, True, 0.0)
    (status,) = (s for s in parts.statuses(0.1, None, False) if s.name == 'filter')
    assert 'driven 0.0 m of the 8.0 m' in status.text


@pytest.mark.parametrize(('others', 'said'), [(0, True), (1, False)])
def test_it_is_said_where_nobody_else_publishes_transforms(others, said):
    values = lines(diagnostics({'/tf': 1 + others}), 1.0)['odometry'].values
    assert ('publish_odom_tf' in values.get('tf', '')) == said


def test_two_publishers_of_one_input_are_at_least_a_warning():
    parts = diagnostics({'odometry': 2})
    parts.odometry.add_message(0.0)
    status = lines(parts, 0.1)['odometry']
    assert status.level is Level.WARN
    assert '/odometry has 2 publishers, of which one was expected; receiving' in status.text


@pytest.mark.parametrize(('sigma_m', 'is_known', 'distance_m', 'text'), [
    (2.0, True, 900.0, ''),
    (5.0, False, 0.0, 'covariance is unknown, zero or NaN: 5.0 m are assumed'),
    (50.0, True, 0.0, 'fixes claim a sigma of 50 m; expected at most 30 m'),
    (2.0, True, 23e3, 'fixes are 23 km from the map: it is a map of another place'),
])
def test_a_used_fix_is_remarked_on(sigma_m, is_known, distance_m, text):
    parts = diagnostics({'gnss': 1})
    parts.gnss.add_message(0.0)
    fix = GnssFix(1, 0.0, 0.0, np.diag([1.0, sigma_m**2]))
    parts.add_fix(FilterUpdate(Outcome.USED), fix, is_known, distance_m)
    status = lines(parts, 0.1)['gnss']
    assert status.level is (Level.WARN if text else Level.OK)
    assert text in status.text


# --- one image


def test_odometry_that_is_not_believed_any_more_is_a_warning_of_its_own_line():
    diagnostics = Diagnostics(NodeConfig(), NodeMonitor(), '/image', lambda topic: (topic, 1))
    diagnostics.odometry.add_message(0.0)
    for reason, text in (('', 'receiving'), (ODOMETRY_LIES, ODOMETRY_LIES)):
        diagnostics.odometry.add_used()
        diagnostics.add_fix(
            FilterUpdate(Outcome.USED, reason, 1.0), GnssFix(1, 0.0, 0.0, np.eye(2)), True)
        assert diagnostics.odometry.status(0.0, 2.0, '').text == text


@pytest.mark.parametrize(('outcome', 'reason', 'level', 'said'), [
    (Outcome.USED, '', Level.OK, 'used'),
    (Outcome.AMBIGUOUS, 'two streets look alike', Level.WARN, 'two streets look alike'),
    (Outcome.DROPPED, '', Level.WARN, 'dropped before it was processed'),
])
def test_the_status_of_an_image_has_its_stamp_outcome_reason_and_state(
        outcome, reason, level, said):
    status = image_status(12_000_000_345, outcome, reason, 'searching')
    assert (status.name, status.level, status.text) == ('image', level, said)
    assert status.values == {
        'stamp': '12.000000345', 'outcome': outcome.name.lower(), 'reason': said,
        'state': 'searching'}
