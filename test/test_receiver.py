"""What the filter learns of a GNSS receiver: a good one is believed, a boastful one is not."""

from dataclasses import replace
import math

import numpy as np
import pytest
from scipy.stats import chi2
from test_pose_filter import at, CONFIG, estimate, gnss, odometry

from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.fusion.receiver import (
    LARGEST_WANDER,
    LEARNING_S,
    LEAST_WANDER_M,
    LEAST_WHITE_M,
    ReceiverMonitor,
    shown_share,
    WANDER_PROBABILITY,
    WHITE_MARGIN,
    WINDOW_S,
)

TAU_S = CONFIG.gnss_bias_tau_s


def driven(errors_m, claimed_m) -> PoseFilter:
    """Along x with exact odometry and a fix each second, off by ``errors_m`` (n, 2)."""
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(0.0, 0.0, 0.0, 0.0, 3.0, 0.01))
    for time_s, error_m in enumerate(errors_m, 1):
        for tick in (-0.5, 0.0):
            pose_filter.add_odometry(odometry(time_s + tick, 10.0 * (time_s + tick)))
        pose_filter.add_gnss(gnss(time_s, 10.0 * time_s + error_m[0], error_m[1], claimed_m))
    return pose_filter


def sigmas_m(pose_filter: PoseFilter) -> np.ndarray:
    found = pose_filter.estimate_at(pose_filter.latest_stamp_ns)
    return np.sqrt(np.diag(found.covariance)[:2])


def wander_m(seed: int, seconds: int) -> np.ndarray:
    """A first-order Gauss-Markov error (n, 2) with the parameters of the filter."""
    rng, decay = np.random.default_rng(seed), math.exp(-1.0 / TAU_S)
    errors_m = [rng.standard_normal(2)]
    for _ in range(seconds - 1):
        errors_m.append(decay * errors_m[-1] + math.sqrt(1 - decay**2) * rng.standard_normal(2))
    return CONFIG.gnss_bias_sigma_m * np.array(errors_m)


def test_a_receiver_of_a_few_centimetres_is_believed_after_some_minutes():
    errors_m = 0.02 * np.random.default_rng(0).standard_normal((600, 2))
    assert sigmas_m(driven(errors_m[:20], 0.02)).min() > 2.0
    assert sigmas_m(driven(errors_m[:200], 0.02)).max() < 2.0 * LEAST_WANDER_M


def test_a_receiver_is_believed_no_better_than_it_claims():
    exact = np.zeros((400, 2))
    assert sigmas_m(driven(exact, 1.0)) == pytest.approx([1.0, 1.0], rel=0.3)
    assert sigmas_m(driven(exact[:200], 10.0)).min() > 2.5


def test_the_white_part_of_a_claim_is_what_fixes_show_and_what_the_wander_leaves():
    """Of 3 m the wander of the parameter explains all, of 5 m it leaves 4 m."""
    monitor = ReceiverMonitor(CONFIG)
    claimed_m2 = np.diag([3.6**2, math.sqrt(2 * 3.0**2 - 3.6**2) ** 2])
    shown = replace(monitor.unknown(), shown_white_m2=0.5)
    assert monitor.white_part(monitor.unknown(), claimed_m2) is claimed_m2
    np.testing.assert_allclose(
        monitor.white_part(shown, claimed_m2), claimed_m2 * WHITE_MARGIN * 0.5 / 3.0**2)
    np.testing.assert_allclose(monitor.white_part(shown, 25.0 * np.eye(2)), 16.0 * np.eye(2))


@pytest.mark.parametrize('seed', range(3))
def test_a_receiver_that_claims_centimetres_and_wanders_by_metres_is_not_believed(seed):
    assert sigmas_m(driven(wander_m(seed, 400), 0.02)).min() > 0.8 * CONFIG.gnss_bias_sigma_m


def test_a_receiver_that_loses_its_good_fix_and_says_so_hardly_moves_the_pose():
    pose_filter = driven(np.zeros((600, 2)), 0.02)
    before = pose_filter.estimate_at(at(600.0))
    for tick in range(1, 11):
        pose_filter.add_odometry(odometry(600.0 + tick / 10, 6000.0 + tick))
        pose_filter.add_gnss(gnss(600.0 + tick / 10, 6000.0 + tick, 2.0, 3.0))
    assert pose_filter.estimate_at(at(601.0)).pose.y_m - before.pose.y_m < 0.1


def test_nothing_is_learned_of_a_receiver_while_the_vehicle_stands():
    monitor = ReceiverMonitor(CONFIG)
    receiver = monitor.unknown()
    for second in range(100):
        receiver = monitor.followed(receiver, gnss(second, 5.0, 5.0), np.zeros(2), np.zeros(2))
    assert receiver.windows == 0.0
    assert monitor.believed(receiver, gnss(100, 5.0, 5.0, 0.02)) == receiver


@pytest.mark.parametrize('share', [0.5, 0.3, 0.4 + 0.5j])
def test_the_share_of_the_wander_that_shows_is_that_of_a_gauss_markov_process(share):
    """The variance of weights . b is the double sum of weights and correlations."""
    times_s = (np.arange(300) + 0.5) * WINDOW_S / 300
    weights = np.repeat([share - 1.0, 1.0, -share], 100) / 100
    correlation = np.exp(-np.abs(times_s[:, None] - times_s) / TAU_S)
    expected = (weights @ correlation @ weights.conj()).real
    assert shown_share(share, TAU_S) == pytest.approx(expected, rel=1e-3)


def test_the_wander_is_the_upper_bound_of_what_the_windows_show():
    """A step x in the middle third is x / 2 of its mean and x of the last third's."""
    monitor, steps_m = ReceiverMonitor(CONFIG), ((0.5, 0.1), (-0.2, 0.0), (0.0, 0.3))
    receiver, offset_m = monitor.unknown(), np.zeros(2)
    for second in range(1 + round(WINDOW_S) * len(steps_m)):
        if second % WINDOW_S == 15.0:
            offset_m = offset_m + steps_m[int(second // WINDOW_S)]
        receiver = monitor.followed(
            receiver, gnss(second, 0.0, 10.0 * second, 0.02), offset_m, offset_m)
    # Ways and counts of thirds: seconds 1 to 9, 10 to 19, 20 to 30; steps at 15.
    share = (14.5 - 5.0) / (25.0 - 5.0)
    squares_m2 = (0.5 - share) ** 2 * (np.square(steps_m).sum(axis=1)) / shown_share(share, TAU_S)
    keep = math.exp(-WINDOW_S / LEARNING_S)
    weights = keep ** np.arange(len(steps_m))[::-1]
    expected_m2 = weights @ squares_m2 / chi2.ppf(1.0 - WANDER_PROBABILITY, 2.0 * weights.sum())
    assert receiver.shown_wander_m2 == pytest.approx(expected_m2)
    assert monitor.believed(receiver, gnss(91, 0, 0, 0.02)).wander_m2 == pytest.approx(
        np.clip(expected_m2, LEAST_WANDER_M**2, CONFIG.gnss_bias_sigma_m**2))
    white_m2 = np.square(steps_m).sum(axis=1) / (4.0 * WINDOW_S)
    shown_m2 = white_m2[0]
    for value in white_m2[1:]:
        shown_m2 = keep * shown_m2 + (1.0 - keep) * value
    assert receiver.shown_white_m2 == pytest.approx(shown_m2)


def test_what_the_odometry_scales_and_turns_wrongly_is_not_taken_for_wander():
    """Along a curve at a changing speed, by 3 % and 2 degrees."""
    monitor = ReceiverMonitor(CONFIG)
    receiver = monitor.unknown()
    for second in range(1 + 4 * round(WINDOW_S)):
        way_m = (8.0 * second + 20.0 * math.sin(0.1 * second)) * np.exp(0.004j * second)
        off_m = (0.03 + math.radians(2.0) * 1j) * way_m
        off_m = np.array([off_m.real, off_m.imag])
        receiver = monitor.followed(
            receiver, gnss(second, way_m.real, way_m.imag, 0.02), off_m, off_m)
    assert receiver.windows > 3.0
    assert receiver.shown_wander_m2 == pytest.approx(0.0, abs=1e-12)


def test_one_window_with_a_jump_shows_no_more_than_twice_the_wander_of_the_parameter():
    monitor = ReceiverMonitor(CONFIG)
    receiver = monitor.unknown()
    for second in range(1 + round(WINDOW_S)):
        off_m = np.array([50.0 * (second > 15), 0.0])
        receiver = monitor.followed(receiver, gnss(second, 10.0 * second, 0.0), off_m, off_m)
    assert receiver.squares_m2 == pytest.approx(
        2.0 * (LARGEST_WANDER * CONFIG.gnss_bias_sigma_m) ** 2)
    assert LEAST_WHITE_M**2 <= monitor.believed(receiver, gnss(31, 0, 0)).white_m2


def test_what_is_known_of_the_receiver_stays_when_a_pose_is_given():
    pose_filter = driven(np.zeros((400, 2)), 0.02)
    before = pose_filter.history[0].beliefs[-1].receiver
    pose_filter.set_pose(estimate(400.0, 4000.0, 0.0, 0.0, 1.0, 0.01))
    assert pose_filter.history[0].base.receiver.wander_m2 == before.wander_m2 < 1.0
