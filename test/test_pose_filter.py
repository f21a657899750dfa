"""The Kalman filter on closed forms and on drives simulated with its own model."""

from dataclasses import dataclass, replace
import math
import re
import time

import numpy as np
import pytest

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    GnssCourse,
    GnssFix,
    MatchErrors,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion import gnss_integrity, match_correction, motion_model
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.gnss_integrity import (
    FixHistory,
    FixSeen,
    FixVerdict,
    GATE_PATIENCE_S,
    IntegrityMonitor,
)
from crossview_localizer.fusion.heading_initializer import aligned_start
from crossview_localizer.fusion.match_correction import MATCH_TAIL_DOF
from crossview_localizer.fusion.motion_model import (
    coast,
    COAST_HOLD_SPEED_MPS,
    COAST_SPEED_NOISE_MPS,
    gnss_jacobian,
    gnss_prediction,
    match_jacobian,
    match_prediction,
    ODOMETRY_MAX_ACCEL_MPS2,
    ODOMETRY_SPEED_NOISE_MPS,
    propagate,
)
from crossview_localizer.fusion.pose_filter import (
    MATCH_YAW_SIGMA_FLOOR_RAD,
    ODOMETRY_LOST_S,
    PoseFilter,
)
from crossview_localizer.fusion.published import excess
from crossview_localizer.geometry import Pose2D, wrap_angle

SECOND_NS = 1_000_000_000
START_NS = 1_700_000_000 * SECOND_NS
CONFIG = FilterConfig()
WHITE = MatchErrors(correlation_m=0.0, correlation_s=0.0, sigma_floor_m=0.0)  # matches


def at(time_s: float) -> int:
    return START_NS + round(time_s * 1e9)


def odometry(time_s, x_m, y_m=0.0, yaw_rad=0.0) -> OdometrySample:
    return OdometrySample(at(time_s), Pose2D(x_m, y_m, yaw_rad))


def gnss(time_s, x_m, y_m, sigma_m=0.5) -> GnssFix:
    return GnssFix(at(time_s), x_m, y_m, sigma_m**2 * np.eye(2))


def estimate(time_s, x_m, y_m, yaw_rad, sigma_m=1.0, yaw_sigma_rad=0.1) -> PoseEstimate:
    return PoseEstimate(
        at(time_s), Pose2D(x_m, y_m, yaw_rad), np.diag([sigma_m, sigma_m, yaw_sigma_rad]) ** 2)


def give(pose_filter, measurement):
    if isinstance(measurement, OdometrySample):
        return pose_filter.add_odometry(measurement)
    if isinstance(measurement, GnssFix):
        return pose_filter.add_gnss(measurement)
    if isinstance(measurement, GnssCourse):
        return pose_filter.add_course(measurement)
    return pose_filter.add_match(measurement)


def straight(
    config=CONFIG, until_s=4.0, speed_mps=10.0, sigma_m=1.0, errors=None,
) -> PoseFilter:
    """A filter set to the origin, driven along x with odometry at 20 Hz up to ``until_s``."""
    pose_filter = PoseFilter(config, errors)
    pose_filter.set_pose(estimate(0.0, 0.0, 0.0, 0.0, sigma_m, 0.01))
    for step in range(round(until_s * 20) + 1):
        pose_filter.add_odometry(odometry(step / 20, speed_mps * step / 20))
    return pose_filter


@dataclass
class Drive:
    truth: dict[int, Pose2D]
    odometry: list[OdometrySample]
    fixes: list[GnssFix]
    matches: list[PoseEstimate]

    def in_order(self):
        return sorted([*self.odometry, *self.fixes, *self.matches], key=lambda m: m.stamp_ns)


def simulated_drive(
    seed, duration_s=120.0, odometry_hz=20, gnss_hz=5, match_hz=2, config=CONFIG,
    white_sigma_m=0.5, match_sigma_m=1.5, lever_m=(-0.6, 0.3),
) -> Drive:
    """A simulated drive whose errors are those that ``config`` describes."""
    rng = np.random.default_rng(seed)
    step_s = 1.0 / odometry_hz
    scale = config.odometry_scale_sigma * rng.standard_normal()
    decay = math.exp(-step_s / config.gnss_bias_tau_s)
    bias_m = config.gnss_bias_sigma_m * rng.standard_normal(2)
    turn_bias_radps = config.odometry_turn_bias_sigma_radps * rng.standard_normal()
    phase = rng.uniform(0, 2 * math.pi, 2)
    pose = Pose2D(*rng.uniform(-50, 50, 2), rng.uniform(-math.pi, math.pi))
    odom = Pose2D(*rng.uniform(-5, 5, 2), rng.uniform(-math.pi, math.pi))
    drive = Drive({}, [], [], [])
    for step in range(round(duration_s * odometry_hz) + 1):
        stamp_ns = at(step * step_s)
        drive.truth[stamp_ns] = pose
        drive.odometry.append(OdometrySample(stamp_ns, odom))
        if step % (odometry_hz // gnss_hz) == 0:
            antenna_m = pose.transform(np.array(lever_m))
            z_m = antenna_m + bias_m + white_sigma_m * rng.standard_normal(2)
            drive.fixes.append(
                GnssFix(stamp_ns, *z_m, white_sigma_m**2 * np.eye(2), lever_m))
        if match_hz and step % (odometry_hz // match_hz) == 0:
            z_m = np.array([pose.x_m, pose.y_m]) + match_sigma_m * rng.standard_normal(2)
            drive.matches.append(PoseEstimate(
                stamp_ns, Pose2D(*z_m, 0.0), np.diag([match_sigma_m**2] * 2 + [math.inf])))

        speed_mps = 8.0 + 4.0 * math.sin(0.1 * step * step_s + phase[0])
        turn_radps = 0.2 * math.sin(0.15 * step * step_s + phase[1])
        distance_m, turn_rad = speed_mps * step_s, turn_radps * step_s
        measured = Pose2D(distance_m, 0.0, turn_rad + turn_bias_radps * step_s)
        # pose' = pose (+) exp(scale) measured (+) noise, as the filter has it
        noise_m = math.sqrt(
            config.odometry_position_noise**2 * distance_m
            + config.idle_position_noise_m**2 * step_s)
        noise_rad = math.sqrt(
            config.odometry_yaw_noise_rad**2 * distance_m
            + config.odometry_turn_noise_rad**2 * abs(turn_rad)
            + config.idle_yaw_noise_rad**2 * step_s)
        moved = pose @ Pose2D(math.exp(scale) * distance_m, 0.0, turn_rad)
        pose = Pose2D(
            moved.x_m + noise_m * rng.standard_normal(),
            moved.y_m + noise_m * rng.standard_normal(),
            wrap_angle(moved.yaw_rad + noise_rad * rng.standard_normal()))
        odom = odom @ measured
        bias_m = decay * bias_m + config.gnss_bias_sigma_m * math.sqrt(
            1 - decay**2) * rng.standard_normal(2)
    return drive


def error_of(found: PoseEstimate, truth: Pose2D) -> np.ndarray:
    error = found.pose.as_array() - truth.as_array()
    error[2] = wrap_angle(error[2])
    return error


def derivative(function, state, step=1e-6) -> np.ndarray:
    columns = [
        (function(state + step * axis) - function(state - step * axis)) / (2 * step)
        for axis in np.eye(len(state))]
    return np.stack(columns, axis=1)


STATE = np.array(
    [12.0, -7.0, 2.1, 9.0, 0.03, 0.004, 1.5, -2.5, 0.4, -0.2, 0.01, -0.3, 0.6,
     0.2, -0.1, 0.15, 0.08])
DECAY = np.array([1.0, 1.0, 1.0, 1.0, 0.98, 0.97, 0.9, 0.9] + 9 * [0.95])
STANDS = (0.0, 0.0, 0.0)


def test_the_motion_jacobian_is_the_finite_difference_of_the_motion():
    motion = (Pose2D(1.7, -0.4, 0.3), 0.2, DECAY, (8.0, -1.0, 1.2), (7.0, -3.0, 1.9))
    expected = derivative(lambda state: propagate(state, *motion)[0], STATE)
    assert np.allclose(propagate(STATE, *motion)[1], expected, atol=1e-8)


def test_the_coasting_jacobian_is_the_finite_difference_of_the_coasting():
    motion = (0.7, 0.2, DECAY)
    expected = derivative(lambda state: coast(state, *motion)[0], STATE)
    assert np.allclose(coast(STATE, *motion)[1], expected, atol=1e-8)


def test_the_gnss_jacobian_is_the_finite_difference_of_the_prediction():
    expected = derivative(lambda state: gnss_prediction(state, (1.2, -0.8)), STATE)
    assert np.allclose(gnss_jacobian(STATE, (1.2, -0.8)), expected, atol=1e-8)


def test_the_match_jacobian_is_the_finite_difference_of_the_prediction():
    expected = derivative(match_prediction, STATE)
    assert np.allclose(match_jacobian(STATE), expected, atol=1e-8)


def test_the_motion_composes_like_poses_with_the_scale_on_the_distance():
    moved, _ = propagate(
        STATE, Pose2D(2.0, 0.5, 1.5), 0.25, np.ones(len(STATE)), STANDS, STANDS)
    factor = math.exp(STATE[4])
    half = Pose2D(0.0, 0.0, -0.25 * STATE[5] / 2)
    expected = Pose2D(*STATE[:3]) @ half @ Pose2D(2.0 * factor, 0.5 * factor, 1.5) @ half
    assert np.allclose(moved[:3], expected.as_array())
    assert moved[3] == pytest.approx(8.0 * factor)


def state_with(**values) -> np.ndarray:
    state = np.zeros(motion_model.STATES)
    for name, value in values.items():
        state[getattr(motion_model, name)] = value
    return state


def test_stamps_that_are_early_show_where_the_velocity_changes():
    on_time, early = state_with(YAW=0.3), state_with(YAW=0.3, EARLY=0.1)
    decay = np.ones(len(early))
    # On a steady circle they show in second order only.
    circle = (Pose2D(0.8, 0.0, 0.05), 0.1, decay, (8.0, 0.0, 0.5), (8.0, 0.0, 0.5))
    assert np.allclose(propagate(early, *circle)[0][:3], propagate(on_time, *circle)[0][:3],
                       atol=0.1**2 * 0.5)
    # What brakes from 10 to 6 m/s and stops turning is farther by 0.1 s of the difference.
    brakes = (Pose2D(0.8, 0.0, 0.0), 0.1, decay, (10.0, 0.0, 0.0), (6.0, 0.0, -0.2))
    way = propagate(early, *brakes)[0] - propagate(on_time, *brakes)[0]
    assert way[:2] @ (math.cos(0.3), math.sin(0.3)) == pytest.approx(0.1 * 4.0, abs=1e-3)
    assert way[2] == pytest.approx(0.1 * 0.2)


def test_a_straight_drive_has_the_covariance_of_the_closed_form(monkeypatch):
    monkeypatch.setattr(motion_model, 'ODOMETRY_SCALE_TAU_S', 1e9)
    config = replace(
        CONFIG, odometry_yaw_noise_rad=0.0, idle_yaw_noise_rad=0.0,
        odometry_turn_bias_sigma_radps=0.0)
    found = straight(config, until_s=4.0, speed_mps=10.0, sigma_m=1.0).estimate_at(at(4.0))
    assert np.allclose(found.pose.as_array(), [40.0, 0.0, 0.0])
    noise_m2 = config.odometry_position_noise**2 * 40.0 + config.idle_position_noise_m**2 * 4.0
    along_m2 = 1.0 + noise_m2 + (config.odometry_scale_sigma * 40.0) ** 2
    across_m2 = 1.0 + noise_m2 + (0.01 * 40.0) ** 2
    expected = [[along_m2, 0, 0], [0, across_m2, 0.01**2 * 40.0], [0, 0.01**2 * 40.0, 0.01**2]]
    expected = np.array(expected)
    assert np.allclose(found.covariance, expected, rtol=1e-5, atol=1e-9)


def test_only_increments_of_the_odometry_frame_matter():
    anywhere = Pose2D(1e4, -3e3, 2.5)
    turned = PoseFilter(CONFIG)
    turned.set_pose(estimate(0.0, 0.0, 0.0, 0.0, 1.0, 0.01))
    for step in range(81):
        pose = anywhere @ Pose2D(step / 2, 0.0, 0.0)
        turned.add_odometry(OdometrySample(at(step / 20), pose))
    expected = straight().estimate_at(at(4.0))
    found = turned.estimate_at(at(4.0))
    assert np.allclose(found.pose.as_array(), expected.pose.as_array(), atol=1e-8)
    assert np.allclose(found.covariance, expected.covariance, atol=1e-8)


def test_a_fix_is_weighed_against_pose_and_bias_as_the_closed_form_says():
    pose_filter = straight(until_s=0.0, sigma_m=2.0)
    update = pose_filter.add_gnss(gnss(0.0, 3.0, 0.0, sigma_m=1.0))
    spread_m2 = (
        2.0**2 + CONFIG.gnss_bias_sigma_m**2 + motion_model.UNTOLD_ANTENNA_SIGMA_M**2 + 1.0**2)
    found = pose_filter.estimate_at(at(0.0))
    assert update.outcome is Outcome.USED
    assert update.mahalanobis2 == pytest.approx(3.0**2 / spread_m2)
    assert found.pose.x_m == pytest.approx(3.0 * 4.0 / spread_m2)
    assert found.covariance[0, 0] == pytest.approx(4.0 - 16.0 / spread_m2)


def test_a_fix_that_claims_too_much_is_believed_to_the_floor_only():
    proud, honest = straight(), straight()
    proud.add_gnss(gnss(4.0, 41.0, 0.0, sigma_m=0.01))
    honest.add_gnss(gnss(4.0, 41.0, 0.0, sigma_m=CONFIG.gnss_sigma_floor_m))
    assert proud.estimate_at(at(4.0)).pose == honest.estimate_at(at(4.0)).pose


def test_the_lever_arm_is_turned_with_the_heading():
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(0.0, 5.0, 5.0, math.pi / 2, 1.0, 0.01))
    fix = replace(gnss(0.0, 5.0, 7.0), base_from_antenna_m=(2.0, 0.0))
    update = pose_filter.add_gnss(fix)
    assert update.mahalanobis2 == pytest.approx(0.0, abs=1e-12)
    assert pose_filter.estimate_at(at(0.0)).pose.y_m == pytest.approx(5.0)


@pytest.mark.parametrize('lever_m, sigma_m', [
    ((0.0, 0.0), 0.3), ((0.005, 0.0), 0.3), ((-0.5, 0.1), 0.1), ((0.0, 1.2), 0.1)])
def test_a_lever_arm_that_is_told_is_believed_to_a_decimetre_and_one_of_zero_is_none(
    lever_m, sigma_m,
):
    pose_filter = straight(until_s=0.0, sigma_m=2.0)
    fix = replace(gnss(0.0, lever_m[0] + 3.0, lever_m[1], 1.0), base_from_antenna_m=lever_m)
    spread_m2 = 2.0**2 + CONFIG.gnss_bias_sigma_m**2 + sigma_m**2 + 1.0**2
    assert pose_filter.add_gnss(fix).mahalanobis2 == pytest.approx(3.0**2 / spread_m2, 1e-4)
    assert pose_filter.estimate_at(at(0.0)).pose.x_m == pytest.approx(3.0 * 4.0 / spread_m2, 1e-4)


@pytest.mark.parametrize('lever_m, sigma_m', [((0.0, 0.0), 0.3), ((-0.5, 0.0), 0.1)])
def test_a_start_is_as_sure_as_its_lever_arm(lever_m, sigma_m):
    fixes = [replace(gnss(time_s, 4.0 * time_s + lever_m[0], 0.0), base_from_antenna_m=lever_m)
             for time_s in range(8)]
    antennas_m = np.array([(fix.x_m, fix.y_m) for fix in fixes])
    start = aligned_start(fixes, antennas_m, Pose2D(28.0, 0.0, 0.0), CONFIG)
    assert np.allclose(start.mean[:3], [28.0, 0.0, 0.0])
    assert np.allclose(start.covariance[:2, motion_model.ANTENNA], -sigma_m * np.eye(2))


def driven_with_antenna(truth_m, told_m) -> tuple[PoseFilter, np.ndarray]:
    """Five minutes of turns with a receiver of 2 cm; the filter, and its error at the end."""
    path = winding_path(302)
    rng, pose_filter = np.random.default_rng(3), PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(1.0, *path[100].as_array(), 0.3, 0.01))
    for tick in range(100, 30100, 10):
        pose_filter.add_odometry(OdometrySample(at(tick / 100), path[tick]))
        if tick % 100 == 0:
            noisy_m = path[tick].transform(np.array(truth_m)) + 0.02 * rng.standard_normal(2)
            pose_filter.add_gnss(replace(
                gnss(tick / 100, *noisy_m, sigma_m=0.02), base_from_antenna_m=told_m))
    return pose_filter, error_of(pose_filter.estimate_at(at(tick / 100)), path[tick])


def test_an_antenna_beside_where_it_is_said_to_be_is_found_in_turns_and_not_before():
    off_m = np.array([-0.3, 0.2])
    pose_filter, error = driven_with_antenna(off_m, (0.0, 0.0))
    found, sigmas = slow_state(pose_filter, motion_model.ANTENNA)
    sigma_m = motion_model.UNTOLD_ANTENNA_SIGMA_M
    assert np.allclose(sigma_m * found, off_m, atol=0.1) and sigma_m * sigmas.max() < 0.1
    assert np.linalg.norm(error[:2]) < 0.1
    ahead = straight(until_s=4.0)
    ahead.add_gnss(gnss(4.0, 40.0, 0.0, 0.02))
    assert slow_state(ahead, motion_model.ANTENNA)[1].min() > 0.95


@pytest.mark.parametrize('told_m, least_m, most_m', [
    ((-0.5, 0.1), 0.0, 0.05), ((-0.2, 0.1), 0.05, 0.3), ((0.5, -0.1), 0.3, 1.02)])
def test_a_lever_arm_that_is_told_wrongly_leaves_the_pose_honest(told_m, least_m, most_m):
    """It is told rightly, shorter by 0.3 m, and with the wrong sign."""
    pose_filter, error = driven_with_antenna((-0.5, 0.1), told_m)
    found = pose_filter.estimate_at(pose_filter.latest_stamp_ns)
    assert least_m <= np.linalg.norm(error[:2]) < most_m
    assert error @ np.linalg.solve(found.covariance, error) < 7.815


# --- matches ------------------------------------------------------------------------------------


def match(time_s, x_m, y_m, covariance, yaw_rad=0.0) -> PoseEstimate:
    return PoseEstimate(at(time_s), Pose2D(x_m, y_m, yaw_rad), np.asarray(covariance, float))


def test_a_match_without_heading_is_weighed_as_the_closed_form_says():
    pose_filter = straight(until_s=0.0, sigma_m=2.0)
    update = pose_filter.add_match(match(0.0, 1.0, -1.0, np.diag([1.0, 4.0, np.inf])))
    found = pose_filter.estimate_at(at(0.0))
    assert update.mahalanobis2 == pytest.approx(1 / 5 + 1 / 8)
    assert np.allclose(found.pose.as_array(), [4 / 5, -4 / 8, 0.0])
    assert np.allclose(found.covariance, np.diag([4 / 5, 16 / 8, 0.01**2]))


def test_a_match_of_one_coordinate_leaves_the_other_alone():
    pose_filter = straight(until_s=0.0, sigma_m=2.0)
    pose_filter.add_match(match(0.0, 500.0, 1.0, np.diag([np.inf, 4.0, np.inf])))
    found = pose_filter.estimate_at(at(0.0))
    assert np.allclose(found.pose.as_array(), [0.0, 0.5, 0.0])
    assert np.allclose(np.diag(found.covariance), [4.0, 2.0, 0.01**2])


@pytest.mark.parametrize('variance', [1e6, 1e9, 1e15, 1e300])
def test_an_elongated_match_informs_only_its_short_axis(variance):
    pose_filter = straight(until_s=0.0, sigma_m=2.0)
    pose_filter.add_match(match(0.0, 500.0, 1.0, np.diag([variance, 4.0, 1e12])))
    found = pose_filter.estimate_at(at(0.0))
    assert np.allclose(found.pose.as_array(), [0.0, 0.5, 0.0], atol=3e-3)
    assert np.allclose(np.diag(found.covariance), [4.0, 2.0, 0.01**2], rtol=1e-5)


def test_a_match_elongated_across_the_axes_informs_only_its_short_axis():
    pose_filter = straight(until_s=0.0, sigma_m=2.0)
    along, across = np.array([1.0, 1.0]) / math.sqrt(2), np.array([1.0, -1.0]) / math.sqrt(2)
    covariance = np.diag([0.0, 0.0, np.inf])
    covariance[:2, :2] = 1e9 * np.outer(along, along) + 4.0 * np.outer(across, across)
    pose_filter.add_match(match(0.0, *(300.0 * along + 1.0 * across), covariance))
    found = pose_filter.estimate_at(at(0.0))
    position_m, planar_m2 = found.pose.as_array()[:2], found.covariance[:2, :2]
    assert position_m @ along == pytest.approx(0.0, abs=1e-5)
    assert position_m @ across == pytest.approx(0.5, abs=1e-5)
    assert along @ planar_m2 @ along == pytest.approx(4.0, abs=1e-5)
    assert across @ planar_m2 @ across == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize('covariance', [
    np.diag([np.inf] * 3), 1e300 * np.eye(3), np.diag([1e11, 1e11, 1e11])])
def test_a_flat_match_leaves_pose_and_covariance_as_they_were(covariance):
    pose_filter = straight(sigma_m=3.0)
    before = pose_filter.estimate_at(at(4.0))
    pose_filter.add_match(match(4.0, 50.0, 10.0, covariance))
    after = pose_filter.estimate_at(at(4.0))
    assert np.allclose(after.pose.as_array(), before.pose.as_array(), atol=1e-8)
    assert np.allclose(after.covariance, before.covariance, rtol=1e-9, atol=1e-9)


def test_a_heading_match_across_the_half_turn_takes_the_short_way():
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(0.0, 0.0, 0.0, math.pi - 0.05, 1.0, 0.1))
    covariance = np.diag([np.inf, np.inf, 0.01])
    pose_filter.add_match(match(0.0, 0.0, 0.0, covariance, yaw_rad=-math.pi + 0.05))
    assert abs(pose_filter.estimate_at(at(0.0)).pose.yaw_rad) == pytest.approx(math.pi)


def test_inflation_multiplies_the_covariance_of_a_match():
    inflated = straight(until_s=0.0, sigma_m=2.0, errors=MatchErrors(inflation=4.0))
    inflated.add_match(match(0.0, 1.0, 0.0, np.diag([1.0, 1.0, np.inf])))
    assert inflated.estimate_at(at(0.0)).pose.x_m == pytest.approx(4 / 8)


def test_the_floor_bounds_what_a_match_may_claim():
    pose_filter = straight(until_s=0.0, sigma_m=2.0, errors=MatchErrors(sigma_floor_m=0.3))
    pose_filter.add_match(match(0.0, 1.0, 0.0, np.diag([1e-8, 1e-8, 1e-12])))
    variances = np.diag(pose_filter.estimate_at(at(0.0)).covariance)
    floor_m2 = 0.3**2
    assert variances[0] == pytest.approx(4.0 * floor_m2 / (4.0 + floor_m2))
    yaw_floor_rad2 = MATCH_YAW_SIGMA_FLOOR_RAD**2
    assert variances[2] == pytest.approx(1e-4 * yaw_floor_rad2 / (1e-4 + yaw_floor_rad2))


def test_a_match_close_to_the_last_counts_by_the_distance_driven_since():
    errors = MatchErrors(correlation_m=20.0, correlation_s=100.0)
    tempered, expected = (straight(sigma_m=2.0, errors=errors) for _ in range(2))
    first = match(3.5, 35.0, 0.0, np.diag([2.0, 2.0, np.inf]))
    for pose_filter in (tempered, expected):
        pose_filter.add_match(first)
    # 5 m on, the match holds 5/20 of its information: as if its covariance were 4 times as large.
    tempered.add_match(match(4.0, 41.0, 0.0, np.diag([2.0, 2.0, np.inf])))
    before = expected.estimate_at(at(4.0))
    gain = before.covariance[0, 0] / (before.covariance[0, 0] + 4 * 2.0)
    assert tempered.estimate_at(at(4.0)).pose.x_m == pytest.approx(
        before.pose.x_m + gain * (41.0 - before.pose.x_m))


def test_a_match_far_off_counts_by_the_tails_of_a_student_t():
    pose_filter = straight(until_s=0.0, sigma_m=2.0)
    update = pose_filter.add_match(match(0.0, 6.0, 0.0, np.diag([1.0, 1.0, np.inf])))
    assert update.mahalanobis2 == pytest.approx(36 / 5)
    weight = (MATCH_TAIL_DOF + 2) / (MATCH_TAIL_DOF + 36 / 5)
    assert pose_filter.estimate_at(at(0.0)).pose.x_m == pytest.approx(
        6.0 * 4.0 / (4.0 + 1.0 / weight))


def test_where_matches_have_been_far_off_the_next_one_counts_less():
    def pull_m(times_s):
        pose_filter = straight(until_s=4.0, sigma_m=2.0)
        for time_s in times_s:
            update = pose_filter.add_match(
                match(time_s, 10 * time_s, 60.0, np.diag([4.0, 4.0, np.inf])))
            assert update.outcome is Outcome.GATED
        pose_filter.add_match(match(4.0, 40.0, 1.0, np.diag([4.0, 4.0, np.inf])))
        return pose_filter.estimate_at(at(4.0)).pose.y_m

    assert pull_m((2.1, 2.6, 3.1, 3.6)) < 0.5 * pull_m(())


def test_a_hundred_matches_at_a_standstill_count_as_the_time_they_took():
    config = replace(CONFIG, idle_position_noise_m=0.0, odometry_position_noise=0.0)
    pose_filter = straight(config, until_s=10.0, speed_mps=0.0, sigma_m=50.0,
                           errors=MatchErrors(correlation_m=5.0, correlation_s=2.0))
    for step in range(100):
        pose_filter.add_match(match(8.0 + step / 50, 1.0, 1.0, np.diag([9.0, 9.0, np.inf])))
    # 1 at first and 99 of 0.02 s / 2 s
    expected_m2 = 1 / (1 / 50.0**2 + (1 + 0.99) / 9.0)
    assert pose_filter.estimate_at(at(10.0)).covariance[0, 0] == pytest.approx(expected_m2)


# --- errors that all matches share --------------------------------------------------------------


def test_however_many_matches_there_are_the_pose_is_no_better_than_the_imagery():
    """n matches of variance r, a shift of variance s: P = 1 / (1 / P0 + 1 / (r / n + s))."""
    config = replace(CONFIG, idle_position_noise_m=0.0, match_sigma_floor_m=0.5)
    pose_filter = straight(config, until_s=1.0, speed_mps=0.0, sigma_m=2.0, errors=WHITE)
    for step in range(20):
        pose_filter.add_match(match(step / 20, 0.0, 0.0, np.diag([0.09, 0.09, np.inf])))
    expected_m2 = 1 / (1 / 2.0**2 + 1 / (0.09 / 20 + 0.5**2))
    assert np.allclose(np.diag(pose_filter.estimate_at(at(1.0)).covariance)[:2], expected_m2,
                       rtol=0.01)


def biased_drive(config, errors, off: Pose2D, shift_m=(0.0, 0.0)) -> tuple[np.ndarray, np.ndarray]:
    """The last error and covariance of a drive with turns whose exact matches are all off.

    They are off by ``off`` in the vehicle's axes and by ``shift_m`` in the map's.
    """
    drive = simulated_drive(31, duration_s=60.0, odometry_hz=5, gnss_hz=1, match_hz=0)
    pose_filter = PoseFilter(config, errors)
    pose_filter.set_pose(PoseEstimate(START_NS, drive.truth[START_NS], np.diag([4.0, 4.0, 0.01])))
    for sample in drive.odometry:
        pose_filter.add_odometry(sample)
        seen = drive.truth[sample.stamp_ns] @ off
        pose_filter.add_match(match(
            (sample.stamp_ns - START_NS) * 1e-9, seen.x_m + shift_m[0], seen.y_m + shift_m[1],
            np.diag([0.1, 0.1, 0.01]) ** 2, seen.yaw_rad))
    last = drive.odometry[-1].stamp_ns
    found = pose_filter.estimate_at(last)
    return error_of(found, drive.truth[last]), found.covariance


def test_what_a_camera_adds_to_all_matches_is_found_in_turns():
    off = Pose2D(0.4, -0.3, 0.01)
    by_camera = replace(WHITE, ahead_bias_m=0.5, left_bias_m=0.5, yaw_bias_rad=0.02)
    error, covariance = biased_drive(CONFIG, by_camera, off)
    assert np.linalg.norm(error[:2]) < 0.15 and abs(error[2]) < 0.005
    assert error @ np.linalg.solve(covariance, error) < 7.8
    unaware_error, unaware_covariance = biased_drive(CONFIG, WHITE, off)
    assert unaware_error @ np.linalg.solve(unaware_covariance, unaware_error) > 50.0


def winding_path(seconds: int) -> list[Pose2D]:
    """The poses of each 10 ms at 4 to 12 m/s, with turns of 0.5 rad/s to both sides."""
    path, pose = [], Pose2D(0.0, 0.0, 0.0)
    for tick in range(100 * seconds):
        path.append(pose)
        pose = pose @ Pose2D(
            0.08 + 0.04 * math.sin(0.003 * tick), 0.0, 0.005 * math.sin(0.005 * tick))
    return path


def slow_state(pose_filter: PoseFilter, state) -> tuple[np.ndarray, np.ndarray]:
    """What is known of a slow state, and its sigma."""
    known = pose_filter.history[0].beliefs[-1]
    return known.mean[state], np.sqrt(np.diag(known.covariance)[state])


@pytest.mark.parametrize('early_s', [-0.1, 0.0, 0.1])
def test_by_how_much_the_stamps_of_the_odometry_are_early_is_found_in_turns(early_s):
    path = winding_path(62)
    rng, nees = np.random.default_rng(2), []
    pose_filter = PoseFilter(CONFIG, WHITE)
    pose_filter.set_pose(estimate(1.0, *path[100].as_array(), 0.3, 0.01))
    for tick in range(100, 6100, 10):
        pose_filter.add_odometry(
            OdometrySample(at(tick / 100), path[tick + round(100 * early_s)]))
        if tick % 100 == 0:
            noisy = path[tick].as_array() + (0.3, 0.3, 0.01) * rng.standard_normal(3)
            pose_filter.add_match(estimate(tick / 100, *noisy, 0.3, 0.01))
            found = pose_filter.estimate_at(at(tick / 100))
            error = error_of(found, path[tick])
            nees.append(error @ np.linalg.solve(found.covariance, error))
    found_s, sigma_s = slow_state(pose_filter, motion_model.EARLY)
    assert found_s == pytest.approx(early_s, abs=0.01) and sigma_s < 0.01
    assert np.mean(np.array(nees) < 7.815) >= 0.9


def test_a_shift_of_the_imagery_stays_in_the_pose_and_inside_its_covariance():
    shifted = replace(CONFIG, match_sigma_floor_m=0.5)
    error, covariance = biased_drive(shifted, WHITE, Pose2D(0.0, 0.0, 0.0), (0.6, -0.5))
    assert np.allclose(error[:2], [0.6, -0.5], atol=0.1)
    assert error @ np.linalg.solve(covariance, error) < 7.8


# --- order --------------------------------------------------------------------------------------


def shuffled(measurements, rng, delay_s) -> list:
    """In the order of arrival, each delayed by less than ``delay_s``."""
    arrival = [m.stamp_ns + rng.uniform(0, delay_s * 1e9) for m in measurements]
    return [measurements[i] for i in np.argsort(arrival)]


def offset_drive(seed) -> tuple[list, PoseEstimate]:
    """A simulated drive with faults; fixes and matches lie between odometry samples."""
    drive = simulated_drive(seed, duration_s=20.0, lever_m=(0.5, -0.2))
    fixes = [replace(fix, stamp_ns=fix.stamp_ns + 13_000_001) for fix in drive.fixes]
    matches = [replace(m, stamp_ns=m.stamp_ns + 27_000_003) for m in drive.matches]
    fixes[30:33] = [replace(fix, x_m=fix.x_m + 40.0) for fix in fixes[30:33]]
    jitter_ns = np.random.default_rng(seed).integers(0, 25_000_000, len(drive.odometry))
    samples = [replace(s, stamp_ns=s.stamp_ns + int(j)) for s, j in zip(drive.odometry, jitter_ns)]
    samples = [s for s in samples if not 9.0 < (s.stamp_ns - START_NS) * 1e-9 < 10.4]
    samples[300] = replace(samples[300], odom_from_base=Pose2D(0.0, 900.0, 0.0))
    first = drive.truth[drive.odometry[0].stamp_ns]
    start = PoseEstimate(START_NS, first, np.diag([2.0, 2.0, 0.1]) ** 2)
    courses = [
        GnssCourse(stamp_ns + 5_000_007, pose.yaw_rad, 0.05)
        for stamp_ns, pose in list(drive.truth.items())[::10]]
    in_order = sorted([*samples, *fixes, *matches, *courses], key=lambda m: m.stamp_ns)
    return in_order, start


@pytest.mark.parametrize('seed', range(4))
def test_late_and_shuffled_measurements_give_the_result_of_those_in_order(seed):
    measurements, start = offset_drive(seed)
    straightforward, muddled = PoseFilter(CONFIG), PoseFilter(CONFIG)
    for pose_filter in (straightforward, muddled):
        pose_filter.set_pose(start)
    for measurement in measurements:
        give(straightforward, measurement)
    arrived = shuffled(measurements, np.random.default_rng(seed), delay_s=1.9)
    assert arrived != measurements
    outcomes = [give(muddled, measurement).outcome for measurement in arrived]
    assert Outcome.GATED in outcomes and Outcome.TOO_OLD not in outcomes
    for time_s in (18.7, 19.5, 20.0, 20.3):
        expected, found = straightforward.estimate_at(at(time_s)), muddled.estimate_at(at(time_s))
        assert np.abs(found.pose.as_array() - expected.pose.as_array()).max() < 1e-9
        assert np.abs(found.covariance - expected.covariance).max() < 1e-9


def test_odometry_late_by_nearly_the_whole_buffer_gives_the_result_in_order():
    measurements, start = offset_drive(9)
    samples = [m for m in measurements if isinstance(m, OdometrySample)]
    late_ns = {sample.stamp_ns for sample in samples[65:330:23]}
    straightforward, waiting = PoseFilter(CONFIG), PoseFilter(CONFIG)
    straightforward.set_pose(start)
    waiting.set_pose(start)
    held = []
    for measurement in measurements:
        give(straightforward, measurement)
        while held and measurement.stamp_ns - held[0].stamp_ns > 1.999e9:
            assert give(waiting, held.pop(0)).outcome is Outcome.USED
        if measurement.stamp_ns in late_ns:
            held.append(measurement)
        else:
            give(waiting, measurement)
    assert not held
    expected, found = straightforward.estimate_at(at(20.0)), waiting.estimate_at(at(20.0))
    assert np.abs(found.pose.as_array() - expected.pose.as_array()).max() < 1e-9
    assert np.abs(found.covariance - expected.covariance).max() < 1e-9


def test_the_past_is_estimated_from_what_was_measured_up_to_then():
    measurements, start = offset_drive(7)
    complete, cut = PoseFilter(CONFIG), PoseFilter(CONFIG)
    complete.set_pose(start)
    cut.set_pose(start)
    moment_ns = at(19.333)
    for measurement in measurements:
        give(complete, measurement)
        if isinstance(measurement, OdometrySample) or measurement.stamp_ns <= moment_ns:
            give(cut, measurement)
    expected, found = cut.estimate_at(moment_ns), complete.estimate_at(moment_ns)
    assert np.abs(found.pose.as_array() - expected.pose.as_array()).max() < 1e-9
    assert np.abs(found.covariance - expected.covariance).max() < 1e-9


def test_asking_for_an_estimate_changes_nothing():
    measurements, start = offset_drive(8)
    asked, silent = PoseFilter(CONFIG), PoseFilter(CONFIG)
    for pose_filter in (asked, silent):
        pose_filter.set_pose(start)
    for measurement in measurements:
        give(silent, measurement)
        give(asked, measurement)
        for ahead_s in (-0.5, 0.0, 0.03, 3.0):
            asked.estimate_at(measurement.stamp_ns + round(ahead_s * 1e9))
    expected, found = silent.estimate_at(at(20.0)), asked.estimate_at(at(20.0))
    assert found.pose == expected.pose


def test_a_fix_ahead_of_the_odometry_is_used_at_once_and_again_when_odometry_passes():
    ahead, behind = straight(until_s=4.0, sigma_m=3.0), straight(until_s=4.1, sigma_m=3.0)
    fix = gnss(4.07, 44.0, 1.0)
    assert ahead.add_gnss(fix).outcome is Outcome.USED
    assert ahead.estimate_at(at(4.06)).pose.y_m == pytest.approx(0.0)
    assert ahead.estimate_at(at(4.08)).pose.y_m > 0.1
    for step in (81, 82):
        ahead.add_odometry(odometry(step / 20, step / 2))
    behind.add_gnss(fix)
    expected, found = behind.estimate_at(at(4.1)), ahead.estimate_at(at(4.1))
    assert np.allclose(found.pose.as_array(), expected.pose.as_array(), atol=1e-12)
    assert np.allclose(found.covariance, expected.covariance, atol=1e-12)


def test_a_measurement_older_than_the_buffer_is_too_old():
    pose_filter = straight(until_s=10.0)
    before = pose_filter.estimate_at(at(10.0))
    for late in (gnss(7.9, 79.0, 0.0), match(7.9, 79.0, 0.0, np.eye(3)), odometry(7.9, 79.0)):
        update = give(pose_filter, late)
        assert update.outcome is Outcome.TOO_OLD
        assert '2.10 s' in update.reason
    assert pose_filter.estimate_at(at(10.0)) .pose == before.pose
    assert pose_filter.estimate_at(at(7.5)) is None
    assert give(pose_filter, gnss(8.1, 81.0, 0.0)).outcome is Outcome.USED


def test_a_message_delivered_twice_counts_once():
    pose_filter = straight()
    pose_filter.add_gnss(gnss(4.0, 41.0, 0.0))
    before = pose_filter.estimate_at(at(4.0))
    assert pose_filter.add_gnss(gnss(4.0, 41.0, 0.0)).outcome is Outcome.INVALID
    assert pose_filter.add_odometry(odometry(4.0, 40.0)).outcome is Outcome.INVALID
    assert pose_filter.estimate_at(at(4.0)).pose == before.pose


# --- without odometry ---------------------------------------------------------------------------


def test_after_the_last_odometry_the_pose_moves_on_and_is_then_held_with_growing_sigma():
    pose_filter = straight(until_s=4.0, speed_mps=10.0, sigma_m=1.0)
    at_last = pose_filter.estimate_at(at(4.0))
    assert pose_filter.estimate_at(at(4.5)).pose.x_m == pytest.approx(45.0)
    times_s = [5.0, 6.0, 8.0, 14.0]
    found = [pose_filter.estimate_at(at(time_s)) for time_s in times_s]
    assert [e.pose.x_m for e in found] == pytest.approx([50.0] * 4)
    for time_s, later in zip(times_s, found):
        # The speed was known to its noise, walked for a second, and had the scale error in it.
        moved_m2 = ODOMETRY_SPEED_NOISE_MPS**2 + COAST_SPEED_NOISE_MPS**2 / 3
        scale_m2 = CONFIG.odometry_scale_sigma**2 * (50.0**2 - 40.0**2)
        held_m2 = (10.0 * (time_s - 5.0)) ** 2
        grown_m2 = later.covariance[0, 0] - at_last.covariance[0, 0]
        assert grown_m2 == pytest.approx(moved_m2 + scale_m2 + held_m2, rel=0.02)
    # A car that in truth drove on at 10 m/s is still within two sigmas.
    assert 140.0 - found[-1].pose.x_m < 2.0 * math.sqrt(found[-1].covariance[0, 0])


def test_a_turn_goes_on_past_the_last_odometry():
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(0.0, 0.0, 0.0, 0.0))
    for step in range(41):
        turn_rad = 0.02 * step
        pose_filter.add_odometry(odometry(
            step / 20, 20 * math.sin(turn_rad), 20 * (1 - math.cos(turn_rad)), turn_rad))
    found = pose_filter.estimate_at(at(2.5)).pose
    expected = [20 * math.sin(1.0), 20 * (1 - math.cos(1.0)), 1.0]
    assert np.allclose(found.as_array(), expected, atol=0.05)


def test_without_odometry_fixes_still_move_the_pose():
    pose_filter = straight(until_s=4.0, speed_mps=10.0)
    for step in range(1, 30):
        time_s = 4.0 + step / 2
        update = pose_filter.add_gnss(gnss(time_s, 10.0 * time_s, 0.0))
        assert update.outcome is Outcome.USED
        found = pose_filter.estimate_at(at(time_s))
        assert abs(found.pose.x_m - 10.0 * time_s) < 3.0 * math.sqrt(found.covariance[0, 0])
    # Half a second after a fix it is the fix that counts, not the 14 s without odometry.
    assert pose_filter.estimate_at(at(time_s + 0.5)).covariance[0, 0] < 9.0**2
    update = pose_filter.add_gnss(gnss(4.0 + ODOMETRY_LOST_S + 1.0, 0.0, 0.0))
    assert update.outcome is Outcome.INVALID and 'ahead of the last odometry' in update.reason


def test_an_increment_over_a_gap_is_used_with_the_noise_of_its_length():
    gapped, gapless = straight(until_s=4.0), straight(until_s=8.0)
    assert gapped.add_odometry(odometry(8.0, 80.0)).reason == ''
    expected, found = gapless.estimate_at(at(8.0)), gapped.estimate_at(at(8.0))
    assert np.allclose(found.pose.as_array(), expected.pose.as_array())
    assert np.allclose(found.covariance, expected.covariance, rtol=0.05, atol=1e-3)


def test_inside_a_gap_a_fix_counts_less_the_farther_it_is_from_either_end():
    def pull_m(time_s):
        pose_filter = straight(until_s=4.0, sigma_m=3.0)
        pose_filter.add_gnss(gnss(time_s, 10.0 * time_s, 3.0))
        pose_filter.add_odometry(odometry(8.0, 80.0))
        return pose_filter.estimate_at(at(8.0)).pose.y_m

    assert pull_m(6.0) < 0.8 * pull_m(4.2)
    # The position in the middle may be a (T / 2)^2 / 2 off, a at half of the most that is thought.
    pose_filter = straight(until_s=4.0)
    pose_filter.add_odometry(odometry(8.0, 80.0))
    bridge_m2 = (ODOMETRY_MAX_ACCEL_MPS2 / 2 * 2.0**2 / 2) ** 2
    before_m2, in_m2, after_m2 = (
        pose_filter.estimate_at(at(time_s)).covariance[1, 1] for time_s in (4.0, 6.0, 8.0))
    assert before_m2 + bridge_m2 < in_m2 < after_m2 + bridge_m2


@pytest.mark.parametrize('time_s, pose', [
    (7.0, Pose2D(-500.0, 300.0, 1.0)),  # faster than any car
    (7.0, Pose2D(140.0, 0.0, 0.0)),     # 33 m/s on average after 10 m/s
    (15.0, Pose2D(150.0, 0.0, 0.0)),    # plausible, but too long
])
def test_after_a_gap_that_odometry_does_not_explain_the_pose_is_re_anchored_and_wider(
        time_s, pose, monkeypatch):
    monkeypatch.setattr(motion_model, 'COAST_YAW_NOISE_RADPS', 0.01)
    pose_filter = straight(until_s=4.0, speed_mps=10.0)
    before = pose_filter.estimate_at(at(4.0))
    update = pose_filter.add_odometry(OdometrySample(at(time_s), pose))
    assert update.outcome is Outcome.INVALID or 'without odometry' in update.reason
    found = pose_filter.estimate_at(at(time_s))
    assert found.pose.x_m == pytest.approx(50.0)
    assert found.covariance[0, 0] > before.covariance[0, 0] + 20.0**2
    pose_filter.add_odometry(OdometrySample(at(time_s + 0.1), pose @ Pose2D(1, 0, 0)))
    assert pose_filter.estimate_at(at(time_s + 0.1)).pose.x_m == pytest.approx(51.0)


def test_without_odometry_the_speed_is_learned_from_fixes():
    pose_filter = straight(until_s=4.0, speed_mps=10.0)
    for time_s in range(5, 20):
        # Braking from 10 to 5 m/s after the last odometry.
        x_m = 40.0 + 5.0 * (time_s - 4.0) + 5.0 * (1.0 - math.exp(4.0 - time_s))
        assert pose_filter.add_gnss(gnss(time_s, x_m, 0.0)).outcome is Outcome.USED
    moved_m = (pose_filter.estimate_at(at(19.8)).pose.x_m
               - pose_filter.estimate_at(at(19.0)).pose.x_m)
    assert moved_m == pytest.approx(0.8 * 5.0, abs=0.8)


def test_a_yaw_rate_bias_of_the_odometry_is_estimated_and_removed():
    def error_after_an_outage(sigma_radps):
        config = replace(CONFIG, odometry_turn_bias_sigma_radps=sigma_radps)
        pose_filter = straight(config, until_s=0.0)
        odom = Pose2D(0.0, 0.0, 0.0)
        for step in range(1, 1500):
            odom = odom @ Pose2D(1.0, 0.0, 0.004 * 0.1)
            pose_filter.add_odometry(OdometrySample(at(step / 10), odom))
            if step % 10 == 0 and step < 1200:
                pose_filter.add_gnss(gnss(step / 10, step, 0.0))
        return abs(last_pose(pose_filter).pose.y_m)

    assert error_after_an_outage(0.004) < 0.25 * error_after_an_outage(0.0)


def test_after_a_long_gap_the_heading_is_initialized_again():
    pose_filter = straight(until_s=4.0)
    update = pose_filter.add_odometry(odometry(24.0, 240.0))
    assert update.outcome is Outcome.NOT_STARTED and 'heading' in update.reason
    assert not pose_filter.started and pose_filter.estimate_at(at(24.0)) is None
    for step in range(1, 60):
        pose_filter.add_odometry(odometry(24.0 + step / 20, 240.0 + step / 2))
        pose_filter.add_gnss(gnss(24.0 + step / 20, 700.0, step / 2))
    found = pose_filter.estimate_at(at(26.9)).pose
    assert np.allclose(found.as_array(), [700.0, 29.0, math.pi / 2], atol=0.3)


@pytest.mark.parametrize('pose', [
    Pose2D(80.5, 0.0, 0.0), Pose2D(40.5, -30.0, 0.0), Pose2D(40.5, 0.0, 2.0)])
def test_a_jump_of_the_odometry_is_refused_and_what_follows_is_used(pose):
    pose_filter = straight(until_s=4.0, speed_mps=10.0)
    before = pose_filter.estimate_at(at(4.0))
    update = pose_filter.add_odometry(OdometrySample(at(4.05), pose))
    assert update.outcome is Outcome.INVALID and 'jumped' in update.reason
    found = pose_filter.estimate_at(at(4.05))
    assert found.pose.x_m == pytest.approx(40.5)
    assert found.covariance[0, 0] > before.covariance[0, 0] + (10.0 * 0.05) ** 2
    pose_filter.add_odometry(OdometrySample(at(4.1), pose @ Pose2D(0.5, 0.0, 0.0)))
    assert pose_filter.estimate_at(at(4.1)).pose.x_m == pytest.approx(41.0)


# --- gates --------------------------------------------------------------------------------------


def test_a_fix_far_away_is_refused_with_its_distance_and_changes_nothing():
    pose_filter = straight(sigma_m=1.0)
    before = pose_filter.estimate_at(at(4.0))
    update = pose_filter.add_gnss(gnss(4.0, 100.0, 0.0))
    assert update.outcome is Outcome.GATED
    spread_m2 = (before.covariance[0, 0] + CONFIG.gnss_bias_sigma_m**2
                 + motion_model.UNTOLD_ANTENNA_SIGMA_M**2 + 0.7**2)
    assert update.mahalanobis2 == pytest.approx(60.0**2 / spread_m2)
    after = pose_filter.estimate_at(at(4.0))
    assert after.pose == before.pose and np.array_equal(after.covariance, before.covariance)


def test_fixes_refused_before_an_outage_do_not_count_after_it():
    pose_filter = straight(until_s=20.0)
    assert pose_filter.add_gnss(gnss(19.0, 190.0, 60.0)).outcome is Outcome.GATED
    for step in range(401, 1000):
        pose_filter.add_odometry(odometry(step / 20, step / 2))
    update = pose_filter.add_gnss(gnss(49.0, 490.0, 60.0))
    assert update.outcome is Outcome.GATED and update.reason == 'refused for 0.0 s'


def test_a_step_before_an_outage_is_forgotten_after_it():
    _, updates = driven_with_gnss(
        lambda t: 0.0 if t < 20 or t > 40 else 12.0 if t < 21 else None, 45.0)
    assert updates[99][1].outcome is Outcome.GATED
    assert all(u.outcome is Outcome.USED and not u.reason for t, u in updates if t > 40)


def test_a_match_far_away_is_refused_for_as_long_as_it_disagrees():
    pose_filter = straight(until_s=5.0, sigma_m=1.0)
    before = pose_filter.estimate_at(at(5.0))
    for time_s in (4.0, 4.5, 5.0):
        update = pose_filter.add_match(
            match(time_s, 10 * time_s, 25.0, np.diag([1.0, 1.0, np.inf])))
        assert update.outcome is Outcome.GATED and update.mahalanobis2 > 9.2
    assert update.reason == 'refused for 1.0 s'
    assert pose_filter.estimate_at(at(5.0)).pose == before.pose


def test_a_refused_match_widens_the_pose_but_not_the_prior_of_the_next_match():
    pose_filter = straight(until_s=5.0, sigma_m=1.0)
    before = pose_filter.estimate_at(at(5.0)).covariance
    pose_filter.add_match(match(5.0, 50.0, 25.0, np.diag([1.0, 1.0, np.inf])))
    after = pose_filter.estimate_at(at(5.0)).covariance
    # All of the residual is doubted from four times the limit on.
    assert math.sqrt(after[1, 1]) == pytest.approx(25.0, rel=0.1)
    excess = after[0, 0] / before[0, 0]
    assert np.allclose(pose_filter.prior_at(at(5.0)).covariance, excess * before, rtol=1e-6)


def test_residuals_as_large_as_chance_hardly_widen_the_pose_and_much_larger_ones_do():
    """As b (b - 1) / (b + 3) of their mean square b, in units of what is claimed."""
    known = straight(until_s=5.0).history[0].belief_at(at(5.0))
    added = [excess(changed(known, match_distance2=mean, match_seen_ns=known.stamp_ns)) - 1.0
             for mean in (0.5, 1.0, 1.5, 20.0)]
    assert added == pytest.approx([0.0, 0.0, 0.5 * 1.5 / 4.5, 19.0 * 20.0 / 23.0])


def driven_with_gnss(gnss_y_m, until_s=40.0, matches_hz=0, config=CONFIG):
    """Along x at 10 m/s with fixes at 5 Hz that lie ``gnss_y_m(time_s)`` to the left.

    Returns the filter and [(time_s, update)] of the fixes.
    """
    pose_filter, updates = straight(config, until_s=0.0), []
    for step in range(1, round(until_s * 10)):
        time_s = step / 10
        pose_filter.add_odometry(odometry(time_s, 10 * time_s))
        y_m = gnss_y_m(time_s)
        if step % 2 == 0 and y_m is not None:
            updates.append((time_s, pose_filter.add_gnss(gnss(time_s, 10 * time_s, y_m))))
        if matches_hz and step % round(10 / matches_hz) == 0:
            pose_filter.add_match(
                match(time_s, 10 * time_s, 0.0, np.diag([1.0, 1.0, np.inf])))
    return pose_filter, updates


def first_with(word, updates) -> float:
    return next(time_s for time_s, update in updates if word in update.reason)


def last_pose(pose_filter):
    return pose_filter.estimate_at(pose_filter.latest_stamp_ns)


def test_fixes_that_never_agree_widen_the_bias_and_leave_a_matched_pose_alone():
    pose_filter, updates = driven_with_gnss(lambda time_s: 40.0, matches_hz=2)
    opened_s = first_with('GNSS bias widened', updates)
    assert opened_s == pytest.approx(0.2 + GATE_PATIENCE_S, abs=0.3)
    assert abs(last_pose(pose_filter).pose.y_m) < 1.0


def test_fixes_that_never_agree_widen_an_unmatched_pose():
    pose_filter, updates = driven_with_gnss(lambda time_s: 40.0)
    opened_s = first_with('pose widened', updates)
    assert opened_s == pytest.approx(0.2 + GATE_PATIENCE_S, abs=0.3)
    found = last_pose(pose_filter)
    assert abs(found.pose.y_m - 40.0) < 2.0 * math.sqrt(found.covariance[1, 1])


# --- GNSS that cannot be trusted ----------------------------------------------------------------


@pytest.mark.parametrize('matches_hz', [0, 2])
def test_a_jump_of_gnss_is_detected_and_costs_no_more_than_an_outage(matches_hz):
    jumped, updates = driven_with_gnss(lambda t: 50.0 if t > 20 else 0.0, 60.0, matches_hz)
    lost, _ = driven_with_gnss(lambda t: None if t > 20 else 0.0, 60.0, matches_hz)
    assert first_with('GNSS jumped by 50 m', updates) == pytest.approx(20.2)
    assert all(u.outcome is Outcome.GATED for time_s, u in updates if time_s > 20.1)
    assert last_pose(jumped).pose == last_pose(lost).pose


def test_a_jump_is_told_although_the_fix_before_it_widened_the_pose():
    """The fix before lies where one that was refused lay, and the gate has grown to there."""
    monitor = IntegrityMonitor(CONFIG)

    def judged(history, time_s, residual_y_m, distance2):
        return monitor.judge(history, FixSeen(
            round(time_s * 1e9), np.array([10.0 * time_s, residual_y_m]),
            np.array([0.0, residual_y_m]), np.eye(2), 10.0 * time_s, distance2, 0.0),
            matched=False)

    _, history, _ = judged(FixHistory(), 20.0, 0.0, 0.1)
    verdict, history, _ = judged(history, 21.0, 12.0, 20.0)
    assert verdict is FixVerdict.REFUSE
    verdict, history, _ = judged(history, 22.0, 12.0, 5.0)
    assert verdict is FixVerdict.WIDEN
    verdict, _, reason = judged(history, 23.0, 62.0, 60.0)
    assert verdict is FixVerdict.REFUSE and reason == 'GNSS jumped by 50 m against the odometry'


def test_fixes_from_before_an_outage_do_not_speak_against_the_odometry_after_it():
    """GNSS jumped by 50 m; a tenth of the distance more is less than odometry is blamed for."""
    monitor, history = IntegrityMonitor(CONFIG), FixHistory()
    for time_s in (*range(20, 50), *range(65, 80)):
        driven_m = 10.0 * time_s
        off_m = 0.0 if time_s == 20 else 50.0 + 0.1 * (driven_m - 200.0)
        verdict, history, _ = monitor.judge(history, FixSeen(
            round(time_s * 1e9), np.array([driven_m, off_m]), np.array([0.0, off_m]), np.eye(2),
            driven_m, 0.1 if time_s == 20 else 60.0, 0.0), matched=False)
        assert verdict is (FixVerdict.USE if time_s == 20 else FixVerdict.REFUSE)


def test_gnss_that_jumps_back_is_trusted_at_once():
    _, updates = driven_with_gnss(lambda t: 50.0 if 20 < t < 30 else 0.0, 50.0)
    again_s = first_with('jumped back', updates)
    assert again_s == pytest.approx(30.0, abs=0.3)
    assert all(u.outcome is Outcome.USED for time_s, u in updates if time_s > again_s)


def test_a_jump_and_back_that_the_claim_of_the_receiver_would_hide_does_not_move_the_pose():
    rng = np.random.default_rng(4)
    pose_filter, outcomes = straight(until_s=0.0), []
    for tick in range(1, 900):
        time_s = tick / 10
        pose_filter.add_odometry(odometry(time_s, tick))
        if tick % 2 == 0:
            jumped = 75.0 < time_s < 83.0
            off_m = 0.3 * rng.standard_normal(2) + (0.0, 6.0 if jumped else 0.0)
            update = pose_filter.add_gnss(gnss(time_s, tick + off_m[0], off_m[1], 1.8))
            outcomes.append((jumped, update.outcome))
        if tick == 750:
            before = last_pose(pose_filter)
    assert all(outcome is (Outcome.GATED if jumped else Outcome.USED)
               for jumped, outcome in outcomes)
    assert abs(last_pose(pose_filter).pose.y_m - before.pose.y_m) < 0.5


def test_gnss_that_comes_back_slowly_is_trusted_after_it_has_agreed_for_a_while():
    _, updates = driven_with_gnss(
        lambda t: 0.0 if t < 20 else max(25.0 - (t - 20.0), 0.0), 70.0)
    inside_s = next(
        time_s for time_s, u in updates
        if time_s > 20.3 and u.mahalanobis2 < 9.2 and u.outcome is Outcome.GATED)
    again_s = first_with('agrees again', updates)
    assert again_s == pytest.approx(inside_s + GATE_PATIENCE_S, abs=0.3)


def test_distrust_ends_and_the_pose_is_widened(monkeypatch):
    monkeypatch.setattr(gnss_integrity, 'DISTRUST_S', 15.0)
    pose_filter, updates = driven_with_gnss(
        lambda t: 50.0 if t > 20 else 0.0, 50.0)
    assert first_with('pose widened', updates) == pytest.approx(35.2, abs=0.3)
    found = last_pose(pose_filter)
    assert abs(found.pose.y_m - 50.0) < 2.0 * math.sqrt(found.covariance[1, 1])


def test_a_memory_is_what_the_filter_would_know_without_the_fixes_since():
    with_fixes, without, odom = straight(until_s=0.0), None, Pose2D(0.0, 0.0, 0.0)
    for tick in range(1, 250):
        odom = odom @ Pose2D(1.0, 0.0, 0.02)
        sample = OdometrySample(at(tick / 10), odom)
        for pose_filter in (with_fixes, without):
            if pose_filter is not None:
                pose_filter.add_odometry(sample)
        if tick % 7 == 0:
            with_fixes.add_gnss(gnss(tick / 10, odom.x_m + 2.0, odom.y_m))
        if without is None and with_fixes.history[0].beliefs[-1].memories:
            without = with_fixes.copy()
    remembering, known = (f.history[0].belief_at(at(24.5)) for f in (with_fixes, without))
    [memory] = remembering.memories
    assert memory.taken_ns == at(0.7) and remembering.fixed_ns == remembering.stamp_ns
    assert not np.allclose(remembering.mean, known.mean, rtol=0.01)
    # A memory is moved by up to a second at once: its speed is the mean of that time.
    states = [0, 1, 2, 4, 5, 6, 7]
    covariance, expected = (
        each.covariance[np.ix_(states, states)] for each in (memory, known))
    sigmas = np.sqrt(np.diag(expected))
    assert np.abs((memory.mean - known.mean)[states] / sigmas).max() < 0.001
    assert np.abs((covariance - expected) / np.outer(sigmas, sigmas)).max() < 0.01


# --- contradictions -----------------------------------------------------------------------------


def test_the_second_fix_that_is_refused_widens_the_pose_by_how_far_it_is_off():
    pose_filter = straight(sigma_m=1.0)
    before = pose_filter.estimate_at(at(4.0))
    pose_filter.add_gnss(gnss(3.9, 39.0, 12.0))
    update = pose_filter.add_gnss(gnss(4.0, 40.0, 12.0))
    after = pose_filter.estimate_at(at(4.0))
    assert update.outcome is Outcome.GATED and after.pose == before.pose
    # 9.21 is the gate: 99 % of a chi-square of two degrees of freedom.
    beyond_m = 12.0 * min(1.0, 2.0 * (1.0 - math.sqrt(9.2103 / update.mahalanobis2)))
    # The truth may be where the fix is, as uncertain as its distance says.
    spread_m2 = 12.0**2 / update.mahalanobis2
    share = beyond_m**2 / 12.0**2
    np.testing.assert_allclose(
        after.covariance - before.covariance,
        np.diag([share * spread_m2, beyond_m**2 + share * spread_m2, 0.0]), rtol=0.05, atol=0.05)
    pose_filter.add_odometry(odometry(4.5, 45.0))
    pose_filter.add_gnss(gnss(4.5, 45.0, 0.0))
    assert pose_filter.estimate_at(at(4.5)).covariance[1, 1] < after.covariance[1, 1]


def test_a_match_decides_between_a_pose_and_the_fixes_that_contradict_it():
    pose_filter = straight(sigma_m=0.5)
    for time_s in (3.8, 3.9):
        pose_filter.add_gnss(gnss(time_s, 10.0 * time_s, 30.0))
    update = pose_filter.add_match(match(4.0, 40.0, 28.0, np.diag([0.1, 0.1, np.inf])))
    found = pose_filter.estimate_at(at(4.0))
    assert update.outcome is Outcome.USED
    assert found.pose.y_m == pytest.approx(28.0, abs=0.5) and found.covariance[1, 1] < 1.0


def test_an_ambiguous_match_does_not_decide_for_the_fixes_that_contradict_a_pose():
    pose_filter = straight(sigma_m=0.5)
    for time_s in (3.8, 3.9):
        pose_filter.add_gnss(gnss(time_s, 10.0 * time_s, 30.0))
    update = pose_filter.add_match(match(4.0, 40.0, 28.0, np.diag([100.0**2, 0.1, np.inf])))
    found = pose_filter.estimate_at(at(4.0))
    assert update.outcome is Outcome.GATED and found.pose.y_m == pytest.approx(0.0, abs=0.1)
    assert found.covariance[1, 1] > 20.0**2


def test_the_opening_after_a_jump_of_gnss_widens_the_pose_and_leaves_most_of_it_to_the_bias():
    def pose_until(time_s):
        return last_pose(driven_with_gnss(lambda t: 8.0 if t > 20 else 0.0, time_s)[0])

    _, updates = driven_with_gnss(lambda t: 8.0 if t > 20 else 0.0, 31.0)
    opened_s = first_with('pose widened', updates)
    assert all(update.outcome is Outcome.GATED for time_s, update in updates
               if 20.1 < time_s < opened_s)
    before, after = pose_until(opened_s), pose_until(opened_s + 0.1)
    # The variances of the pose and of the bias grow by r^2 and 4 r^2: the pose takes a fifth.
    assert after.pose.y_m - before.pose.y_m == pytest.approx(8.0 / 5.0, rel=0.1)
    assert after.covariance[1, 1] > 2.0 * 8.0**2
    for later in (after, pose_until(opened_s + 30.0)):
        sigma_m = math.sqrt(later.covariance[1, 1])
        assert abs(later.pose.y_m) < sigma_m and abs(8.0 - later.pose.y_m) < sigma_m


def driven_with_lying_odometry(
    change, seconds=40.0, matches_hz=0, curve_radps=0.1, matches_until_s=math.inf,
    long_matches=False,
):
    """In a circle at 10 m/s; from second 20 on ``change`` makes another step of each of odometry.

    After ``matches_until_s`` there are none, or such as are a kilometre long and lie at the pose.

    Returns [(time_s, true pose, estimate)] for each second from 21 on, and the filter.
    """
    rng = np.random.default_rng(3)
    pose_filter, truth, odom = straight(until_s=0.0), Pose2D(0.0, 0.0, 0.0), Pose2D(0, 0, 0)
    step, found = Pose2D(1.0, 0.0, 0.1 * curve_radps), []
    for tick in range(1, round(seconds * 10)):
        time_s = tick / 10
        truth, odom = truth @ step, odom @ (change(step) if time_s > 20.0 else step)
        pose_filter.add_odometry(OdometrySample(at(time_s), odom))
        if tick % 5 == 0:
            noise_m = 0.5 * rng.standard_normal(2)
            pose_filter.add_gnss(gnss(time_s, truth.x_m + noise_m[0], truth.y_m + noise_m[1]))
        if matches_hz and tick % round(10 / matches_hz) == 0 and time_s <= matches_until_s:
            noisy = truth.as_array() + (0.3, 0.3, 0.01) * rng.standard_normal(3)
            pose_filter.add_match(estimate(time_s, *noisy, 0.3, 0.01))
        elif long_matches and time_s > matches_until_s and tick % 2 == 0:
            prior = pose_filter.prior_at(at(time_s)).pose
            turn = motion_model.rotation(prior.yaw_rad)
            covariance = np.diag([0.0, 0.0, math.inf])
            covariance[:2, :2] = turn @ np.diag([1e6, 1.0]) @ turn.T
            pose_filter.add_match(PoseEstimate(at(time_s), prior, covariance))
        if time_s > 20.5 and tick % 10 == 0:
            found.append((time_s, truth, pose_filter.estimate_at(at(time_s))))
    return found, pose_filter


def nees_of(found) -> np.ndarray:
    """The squared distance of the truth from each estimate, of [(time_s, truth, estimate)]."""
    errors = [error_of(given, truth) for _, truth, given in found]
    return np.array([error @ np.linalg.solve(given.covariance, error)
                     for error, (_, _, given) in zip(errors, found)])


LIES = {
    'turns the wrong way': lambda step: Pose2D(step.x_m, -step.y_m, -step.yaw_rad),
    'is three times too fast': lambda step: Pose2D(3 * step.x_m, 3 * step.y_m, step.yaw_rad),
    'counts feet': lambda step: Pose2D(0.3048 * step.x_m, 0.0, step.yaw_rad),
    'stands still': lambda step: Pose2D(0.0, 0.0, 0.0),
}


@pytest.mark.parametrize('matches_hz', [0, 2])
@pytest.mark.parametrize('lie', LIES)
def test_odometry_that_lies_leaves_the_truth_inside_the_covariance(lie, matches_hz):
    found, _ = driven_with_lying_odometry(LIES[lie], 80.0, matches_hz)
    errors = np.array([error_of(given, truth) for _, truth, given in found])
    assert np.mean(nees_of(found) < 7.815) >= 0.9
    assert np.hypot(*errors[-20:, :2].T).max() < 10.0


@pytest.mark.parametrize('long_matches', [False, True])
@pytest.mark.parametrize('lie', LIES)
def test_odometry_that_lies_as_matches_stop_widens_the_pose_from_the_first_fixes_on(
        lie, long_matches):
    found, _ = driven_with_lying_odometry(
        LIES[lie], 31.0, 2, matches_until_s=20.0, long_matches=long_matches)
    # 99.9 % of a chi-square of three degrees of freedom.  What turns wrongly is near at first.
    inside = nees_of(found) < 16.27
    assert inside[2 if lie == 'turns the wrong way' else 0:].all()


def test_a_fix_that_is_off_as_matches_miss_for_a_moment_hardly_doubts_the_heading():
    pose_filter = straight(until_s=5.0, sigma_m=0.5, config=replace(CONFIG, gnss_bias_sigma_m=1.0))
    for tick in range(37):
        pose_filter.add_match(
            match(tick / 10, tick, 0.0, np.diag([0.1, 0.1, np.inf])))
    before = pose_filter.estimate_at(at(4.0)).covariance
    update = pose_filter.add_gnss(gnss(4.0, 40.0, 3.0))
    after = pose_filter.estimate_at(at(4.0)).covariance
    assert update.outcome is Outcome.USED and after[1, 1] > 2.0 * before[1, 1]
    assert before[2, 2] < after[2, 2] < before[2, 2] + (0.2 * 0.4) ** 2


def test_odometry_that_is_off_by_a_share_of_the_distance_is_not_believed_for_a_while():
    _, honest = driven_with_lying_odometry(lambda step: step, 30.0)
    _, lying = driven_with_lying_odometry(LIES['stands still'], 30.0)
    for pose_filter, moved_m in ((honest, 0.0), (lying, 2.0)):
        before = last_pose(pose_filter)
        last = pose_filter.history[1].samples[-1]
        later_ns = last.stamp_ns + 10**9 // 2
        pose_filter.add_odometry(OdometrySample(later_ns, last.odom_from_base))
        after = pose_filter.estimate_at(later_ns)
        way_m = math.hypot(after.pose.x_m - before.pose.x_m, after.pose.y_m - before.pose.y_m)
        assert way_m >= moved_m and (moved_m > 0.0 or way_m < 0.01)
        update = pose_filter.add_gnss(
            GnssFix(later_ns, after.pose.x_m, after.pose.y_m, np.eye(2)))
        assert ('not believed' in update.reason) == (moved_m > 0.0)  # told with each used fix


def test_odometry_that_contradicts_fixes_again_is_not_believed_again_whatever_was_remembered():
    """It was three times too fast, and honest for a minute; then fixes lie ahead and behind."""
    pose_filter = PoseFilter(replace(CONFIG, gnss_bias_sigma_m=0.3))
    driven_m, reasons = 0.0, {}
    for time_s in range(241):
        driven_m += 6.0 if 30 <= time_s < 60 else 2.0
        pose_filter.add_odometry(odometry(time_s, driven_m))
        off_m = 2.2 * (-1) ** time_s if time_s >= 230 else 0.0
        update = pose_filter.add_gnss(gnss(time_s, 2.0 * time_s + off_m, 0.0, 0.7))
        reasons[time_s] = update.reason
    told = ['not believed' in reasons[time_s] for time_s in (29, 60, 225, 240)]
    assert told == [False, True, False, True]


def test_reflections_between_houses_do_not_speak_against_the_odometry():
    rng = np.random.default_rng(5)
    offsets_m = 15.0 * rng.standard_normal(100)
    _, updates = driven_with_gnss(lambda t: offsets_m[int(t)] if t > 20 else 0.0, 60.0)
    assert any(update.outcome is Outcome.GATED for _, update in updates)
    assert not any('not believed' in update.reason for _, update in updates)


# --- a receiver that repeats itself -------------------------------------------------------------


@pytest.mark.parametrize('jitter_m, used_at_first, pull_m', [(0.0, 0, 1.0), (0.02, 7, 3.0)])
def test_a_position_that_is_repeated_is_no_news_and_told_once_the_vehicle_has_moved(
        jitter_m, used_at_first, pull_m):
    pose_filter, updates = driven_with_gnss(lambda t: 0.1 * math.sin(t), 20.0)
    before = last_pose(pose_filter)
    held = gnss(20.0, 200.0, 0.2)
    pose_filter.add_odometry(odometry(20.0, 200.0))
    assert pose_filter.add_gnss(held).outcome is Outcome.USED
    for tick in range(1, 301):
        time_s = 20.0 + tick / 10
        pose_filter.add_odometry(odometry(time_s, 10.0 * time_s))
        update = pose_filter.add_gnss(replace(
            held, stamp_ns=at(time_s), x_m=held.x_m + jitter_m * math.sin(tick)))
        assert update.outcome is Outcome.REPEATED or tick <= used_at_first
    assert update.reason == 'the receiver repeats it for 30 s and 300 m of driving'
    found = last_pose(pose_filter)
    assert found.pose.x_m == pytest.approx(500.0, abs=pull_m)
    assert found.covariance[0, 0] > before.covariance[0, 0]
    pose_filter.add_odometry(odometry(50.1, 501.0))
    assert pose_filter.add_gnss(gnss(50.1, 501.0, 0.0)).outcome is Outcome.USED


def test_each_fix_of_a_vehicle_that_creeps_is_used():
    pose_filter = straight(until_s=4.0)
    for tick in range(1, 100):
        x_m = 40.0 + 0.05 * tick
        pose_filter.add_odometry(odometry(4.0 + tick / 10, x_m))
        assert pose_filter.add_gnss(
            gnss(4.0 + tick / 10, x_m, 0.0, 0.02)).outcome is Outcome.USED


def test_each_fix_is_used_while_a_noisy_odometry_drives_on_the_spot():
    pose_filter = straight(until_s=4.0)
    for tick in range(1, 200):
        pose_filter.add_odometry(odometry(4.0 + tick / 10, 40.0 + 0.1 * (tick % 2)))
        update = pose_filter.add_gnss(
            gnss(4.0 + tick / 10, 40.0 + 0.01 * math.sin(tick), 0.0, 0.02))
        assert update.outcome is Outcome.USED


def test_a_receiver_that_holds_its_position_while_the_vehicle_stands_is_nothing_to_tell():
    pose_filter = straight(until_s=4.0)
    for tick in range(1, 50):
        pose_filter.add_odometry(odometry(4.0 + tick / 10, 40.0))
        update = pose_filter.add_gnss(gnss(4.0 + tick / 10, 40.0, 0.0))
    assert update.outcome is Outcome.REPEATED and not update.reason


@pytest.mark.parametrize('scale', [0.0, 1e-3])
def test_odometry_that_does_not_move_with_the_fixes_is_told_before_the_start(scale):
    pose_filter = PoseFilter(CONFIG)
    for second in range(21):
        pose_filter.add_odometry(odometry(second, scale * 10.0 * second))
        update = pose_filter.add_gnss(gnss(second, 10.0 * second, 0.0))
    assert update.outcome is Outcome.NOT_STARTED
    assert re.match(r'fixes have moved 200 m, the odometry 0\.[0-2] m', update.reason)


def test_a_first_fix_of_another_place_does_not_delay_the_start():
    pose_filter = PoseFilter(CONFIG)
    pose_filter.add_gnss(gnss(0.0, 5000.0, 0.0))
    for second in range(1, 8):
        pose_filter.add_odometry(odometry(second, 5.0 * second))
        pose_filter.add_gnss(gnss(second, 5.0 * second, 0.0))
    assert pose_filter.started


def test_a_repeated_position_does_not_start_the_filter():
    pose_filter = PoseFilter(CONFIG)
    for tick in range(600):
        pose_filter.add_odometry(odometry(tick / 10, tick / 10))
        pose_filter.add_gnss(gnss(tick / 10, 5.0, 5.0, 10.0))
    assert not pose_filter.started


@pytest.mark.parametrize('matches_hz, most_m', [(0, 6.0), (2, 0.5)])
def test_gnss_that_drifts_sideways_is_detected_and_the_pose_returns(matches_hz, most_m):
    config = replace(
        CONFIG, odometry_yaw_noise_rad=0.0005, odometry_turn_bias_sigma_radps=1e-4,
        gnss_bias_sigma_m=2.0, gnss_bias_tau_s=120.0)
    pose_filter, updates = driven_with_gnss(
        lambda t: 0.5 * max(t - 120.0, 0.0), 180.0, matches_hz, config)
    assert 120.0 < first_with('GNSS drifts away', updates) < 175.0
    assert updates[-1][1].outcome is Outcome.GATED
    assert abs(last_pose(pose_filter).pose.y_m) < most_m


# --- GNSS course --------------------------------------------------------------------------------


def course(time_s, course_rad, sigma_rad=0.05) -> GnssCourse:
    return GnssCourse(at(time_s), course_rad, sigma_rad)


def test_a_course_is_weighed_against_the_heading_as_the_closed_form_says():
    pose_filter = straight(until_s=4.0)
    before_rad2 = pose_filter.estimate_at(at(4.0)).covariance[2, 2]
    assert pose_filter.add_course(course(4.0, 0.02)).outcome is Outcome.USED
    found = pose_filter.estimate_at(at(4.0))
    gain = before_rad2 / (before_rad2 + 0.05**2)
    assert found.pose.yaw_rad == pytest.approx(gain * 0.02)
    assert found.covariance[2, 2] == pytest.approx((1 - gain) * before_rad2)


def test_a_course_of_a_slow_vehicle_or_far_off_the_heading_is_refused():
    assert straight(speed_mps=1.0).add_course(course(4.0, 0.0)).outcome is Outcome.TOO_SLOW
    assert straight().add_course(course(4.0, 2.0)).outcome is Outcome.GATED
    assert straight().add_course(course(4.0, math.nan)).outcome is Outcome.INVALID


def test_courses_that_are_late_are_found_so_and_do_not_make_the_odometry_early():
    path, late_s = winding_path(122), 0.2
    rng, pose_filter = np.random.default_rng(4), PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(1.0, *path[100].as_array(), 0.3, 0.01))
    for tick in range(100, 12100, 10):
        pose_filter.add_odometry(OdometrySample(at(tick / 100), path[tick]))
        if tick % 100 == 0:
            then = path[tick - round(100 * late_s)]
            pose_filter.add_gnss(gnss(tick / 100, path[tick].x_m, path[tick].y_m))
            pose_filter.add_course(course(
                tick / 100, then.yaw_rad + 0.02 * rng.standard_normal(), 0.02))
    found_s, sigma_s = slow_state(pose_filter, motion_model.COURSE_DELAY)
    assert found_s == pytest.approx(late_s, abs=0.05) and sigma_s < 0.1
    early_s, sigma_s = slow_state(pose_filter, motion_model.EARLY)
    assert abs(early_s) < 0.03


def test_the_course_of_an_antenna_ahead_points_into_the_turn():
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(0.0, 0.0, 0.0, 0.0))
    turn_radps, radius_m = 0.2, 50.0
    for step in range(41):
        turn_rad = turn_radps * step / 20
        pose_filter.add_odometry(odometry(
            step / 20, radius_m * math.sin(turn_rad), radius_m * (1 - math.cos(turn_rad)),
            turn_rad))
    slip_rad = math.atan2(2.0 * turn_radps, radius_m * turn_radps)
    ahead = replace(course(2.0, 0.4 + slip_rad), base_from_antenna_m=(2.0, 0.0))
    assert pose_filter.add_course(ahead).mahalanobis2 == pytest.approx(0.0, abs=5e-3)
    late = replace(ahead, stamp_ns=ahead.stamp_ns - 1, base_from_antenna_m=(0.0, 0.0))
    assert pose_filter.add_course(late).mahalanobis2 > 0.05


@pytest.mark.parametrize('bad', [
    gnss(4.0, math.nan, 0.0),
    gnss(4.0, math.inf, 0.0),
    gnss(4.0, 40.0, 0.0, sigma_m=0.0),
    gnss(4.0, 40.0, 0.0, sigma_m=math.nan),
    replace(gnss(4.0, 40.0, 0.0), covariance=np.diag([1.0, -1.0])),
    replace(gnss(4.0, 40.0, 0.0), covariance=np.eye(3)),
    replace(gnss(4.0, 40.0, 0.0), base_from_antenna_m=(math.nan, 0.0)),
    replace(gnss(4.0, 40.0, 0.0), stamp_ns=0),
    replace(gnss(4.0, 40.0, 0.0), stamp_ns=-5),
    match(4.0, math.nan, 0.0, np.eye(3)),
    match(4.0, 40.0, 0.0, np.zeros((3, 3))),
    match(4.0, 40.0, 0.0, np.diag([1.0, math.nan, math.inf])),
    match(4.0, 40.0, 0.0, [[1.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]]),
    match(4.0, 40.0, 0.0, np.eye(2)),
    replace(match(4.0, 40.0, 0.0, np.eye(3)), stamp_ns=0),
    odometry(4.05, math.nan),
    odometry(4.05, 40.5, 0.0, math.inf),
    OdometrySample(0, Pose2D(0.0, 0.0, 0.0)),
])
def test_what_is_not_a_measurement_is_refused_with_a_reason_and_changes_nothing(bad):
    pose_filter, untouched = straight(), straight()
    update = give(pose_filter, bad)
    assert update.outcome is Outcome.INVALID and update.reason
    found, expected = pose_filter.estimate_at(at(4.1)), untouched.estimate_at(at(4.1))
    assert found.pose == expected.pose and np.array_equal(found.covariance, expected.covariance)


def test_a_given_pose_that_is_not_valid_is_refused():
    pose_filter = PoseFilter(CONFIG)
    for bad in (estimate(0.0, math.nan, 0.0, 0.0), estimate(0.0, 0.0, 0.0, 0.0, sigma_m=0.0),
                estimate(0.0, 0.0, 0.0, 0.0, yaw_sigma_rad=math.inf),
                estimate(0.0, 0.0, 0.0, 0.0, yaw_sigma_rad=3.0)):
        assert pose_filter.set_pose(bad).outcome is Outcome.INVALID
        assert not pose_filter.started


def test_a_pose_given_while_running_replaces_the_estimate_and_is_moved_on_by_odometry():
    pose_filter = straight(until_s=4.0, speed_mps=10.0)
    pose_filter.set_pose(estimate(3.0, 100.0, 50.0, math.pi / 2))
    found = pose_filter.estimate_at(at(4.0)).pose
    assert np.allclose(found.as_array(), [100.0, 60.0, math.pi / 2])


def test_a_pose_given_ahead_of_the_odometry_keeps_the_odometry_that_is_still_to_come():
    pose_filter, expected = straight(until_s=4.0), straight(until_s=4.5)
    given = estimate(4.12, 100.0, 50.0, math.pi / 2)
    assert pose_filter.set_pose(given).outcome is Outcome.USED
    assert pose_filter.add_gnss(gnss(4.1, 100.0, 50.0)).outcome is Outcome.TOO_OLD
    for step in range(81, 91):
        pose_filter.add_odometry(odometry(step / 20, step / 2))
    expected.set_pose(given)
    found = pose_filter.estimate_at(at(4.5))
    assert np.allclose(found.pose.as_array(), [100.0, 53.8, math.pi / 2])
    assert np.allclose(found.covariance, expected.estimate_at(at(4.5)).covariance)


def test_a_pose_given_without_any_odometry_is_held_ever_wider_and_never_runs_backwards():
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(estimate(10.0, 5.0, 5.0, 0.0))
    assert pose_filter.add_gnss(gnss(9.0, 5.0, 5.0)).outcome is Outcome.TOO_OLD
    sigmas_m = [
        math.sqrt(pose_filter.estimate_at(at(time_s)).covariance[0, 0])
        for time_s in (10.0, 11.0, 12.0, 20.0)]
    assert sigmas_m == sorted(sigmas_m) and sigmas_m[-1] > 9.0 * COAST_HOLD_SPEED_MPS
    assert pose_filter.estimate_at(at(9.0)) is None
    assert pose_filter.estimate_at(at(20.0)).pose == Pose2D(5.0, 5.0, 0.0)


def test_a_pose_stamped_by_another_clock_is_refused():
    pose_filter = straight(until_s=4.0)
    update = pose_filter.set_pose(estimate(1e6, 0.0, 0.0, 0.0))
    assert update.outcome is Outcome.INVALID and 'ahead' in update.reason


# --- the start ----------------------------------------------------------------------------------


def test_a_noise_free_start_finds_the_pose_with_the_lever_arm():
    map_from_odom = Pose2D(400.0, -200.0, 2.4)
    lever_m = (-0.8, 0.4)
    pose_filter = PoseFilter(CONFIG)
    for step in range(60):
        turn_rad = 0.01 * step
        odom = Pose2D(30 * math.sin(turn_rad), 30 * (1 - math.cos(turn_rad)), turn_rad)
        truth = map_from_odom @ odom
        pose_filter.add_odometry(OdometrySample(at(step / 20), odom))
        if step % 4 == 0:
            x_m, y_m = truth.transform(np.array(lever_m))
            update = pose_filter.add_gnss(GnssFix(at(step / 20), x_m, y_m, np.eye(2), lever_m))
        if pose_filter.started:
            break
    assert update.outcome is Outcome.USED and 'started' in update.reason
    found = pose_filter.estimate_at(at(step / 20))
    assert np.allclose(found.pose.as_array(), truth.as_array(), atol=1e-8)
    assert pose_filter.latest_stamp_ns == at(step / 20)


def test_before_the_start_there_is_no_estimate_but_a_reason():
    pose_filter = PoseFilter(CONFIG)
    assert not pose_filter.started and pose_filter.latest_stamp_ns is None
    update = pose_filter.add_match(match(0.0, 0.0, 0.0, np.eye(3)))
    assert update.outcome is Outcome.NOT_STARTED and 'no odometry' in update.reason
    for step in range(200):
        update = pose_filter.add_gnss(gnss(step / 5, 2.0 * step, 0.0))
    assert update.outcome is Outcome.NOT_STARTED and 'no odometry' in update.reason
    assert pose_filter.estimate_at(at(40.0)) is None
    pose_filter.reset()
    update = pose_filter.add_odometry(odometry(0.0, 0.0))
    assert update.outcome is Outcome.NOT_STARTED and 'no position fix' in update.reason


def test_standing_still_waits_and_driving_off_starts_within_seconds():
    rng = np.random.default_rng(3)
    pose_filter = PoseFilter(CONFIG)
    for step in range(20 * 200):
        time_s = step / 20
        driven_m = 6.0 * max(time_s - 180.0, 0.0)
        pose_filter.add_odometry(odometry(time_s, driven_m))
        if step % 4 == 0:
            noise_m = 0.5 * rng.standard_normal(2)
            pose_filter.add_gnss(gnss(time_s, noise_m[0], driven_m + noise_m[1]))
        assert not (pose_filter.started and time_s < 180.0)
        if pose_filter.started:
            break
    assert time_s < 180.0 + 6.0
    found = pose_filter.estimate_at(at(time_s))
    assert abs(found.pose.yaw_rad - math.pi / 2) < 3.0 * math.sqrt(found.covariance[2, 2])


def test_paths_that_disagree_do_not_start():
    pose_filter = PoseFilter(CONFIG)
    for step in range(200):
        pose_filter.add_odometry(odometry(step / 20, step / 2))
        update = pose_filter.add_gnss(gnss(step / 20, 0.0, 30.0 * (step % 2)))
    assert not pose_filter.started
    assert update.outcome is Outcome.NOT_STARTED and 'disagree' in update.reason


def test_the_error_of_the_start_is_as_large_as_its_covariance():
    rng = np.random.default_rng(5)
    count, white_m, trials = 12, 0.7, 400
    times_s = np.arange(count) / 5
    ages_s = np.abs(times_s[:, None] - times_s[None, :])
    wander = np.linalg.cholesky(
        CONFIG.gnss_bias_sigma_m**2 * np.exp(-ages_s / CONFIG.gnss_bias_tau_s)
        + 1e-12 * np.eye(count))
    truth = Pose2D(30.0, -40.0, 0.9)
    nees = []
    for _ in range(trials):
        scale = math.exp(CONFIG.odometry_scale_sigma * rng.standard_normal())
        antennas_m = np.stack((1.6 * np.arange(count), np.zeros(count)), axis=1)
        antennas_m -= antennas_m[-1]
        errors_m = wander @ rng.standard_normal((count, 2))
        errors_m += white_m * rng.standard_normal((count, 2))
        measured_m = truth.transform(scale * antennas_m) + errors_m
        fixes = [gnss(t, *z_m, sigma_m=white_m) for t, z_m in zip(times_s, measured_m)]
        start = aligned_start(fixes, antennas_m, Pose2D(0.0, 0.0, 0.0), CONFIG)
        error = start.mean[:3] - truth.as_array()
        nees.append(error @ np.linalg.solve(start.covariance[:3, :3], error))
    # chi-square with 3 degrees of freedom: mean 3, sigma of the mean sqrt(6 / 400) = 0.12
    assert 2.5 < np.mean(nees) < 3.5


# --- consistency over simulated drives ----------------------------------------------------------


@pytest.mark.parametrize('match_hz, nees_band', [(2, (2.6, 3.4)), (0, (2.0, 4.0))])
def test_over_simulated_drives_the_error_is_as_large_as_the_filter_says(
    match_hz, nees_band, monkeypatch,
):
    # These matches are white and Gaussian.
    monkeypatch.setattr(match_correction, 'MATCH_TAIL_DOF', 1e6)
    errors = MatchErrors(correlation_m=0.0, correlation_s=0.0)
    nees, error_m2, gnss_m2, alarms = [], [], [], 0
    for seed in range(25):
        drive = simulated_drive(
            100 + seed + 1000 * match_hz, odometry_hz=4, gnss_hz=1, match_hz=match_hz)
        pose_filter = PoseFilter(CONFIG, errors)
        fix = None
        for index, measurement in enumerate(drive.in_order()):
            update = give(pose_filter, measurement)
            alarms += isinstance(measurement, GnssFix) and 'of distrust' in update.reason
            fix = measurement if isinstance(measurement, GnssFix) else fix
            if not pose_filter.started or index % 8:
                continue
            truth = drive.truth[measurement.stamp_ns]
            found = pose_filter.estimate_at(measurement.stamp_ns)
            error = error_of(found, truth)
            nees.append(error @ np.linalg.solve(found.covariance, error))
            error_m2.append(error[0]**2 + error[1]**2)
            at_fix = drive.truth[fix.stamp_ns].transform(np.array(fix.base_from_antenna_m))
            gnss_m2.append((fix.x_m - at_fix[0])**2 + (fix.y_m - at_fix[1])**2)
    coverage = np.mean(np.array(nees) < 7.815)
    assert nees_band[0] < np.mean(nees) < nees_band[1]
    assert alarms <= 2  # in 50 minutes
    assert 0.88 < coverage < 0.99
    assert np.mean(error_m2) < np.mean(gnss_m2)
    if match_hz:
        assert math.sqrt(np.mean(error_m2)) < 1.5


# --- speed --------------------------------------------------------------------------------------


def test_an_odometry_update_and_a_replay_of_two_seconds_are_quick():
    measurements, start = offset_drive(11)
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(start)
    update_s = []
    for measurement in measurements:
        begun_s = time.thread_time()
        give(pose_filter, measurement)
        if isinstance(measurement, OdometrySample):
            update_s.append(time.thread_time() - begun_s)
    replay_s = []
    for trial in range(5):
        late = replace(measurements[-1], stamp_ns=at(18.05) + trial)
        begun_s = time.thread_time()
        assert give(pose_filter, late).outcome in (Outcome.USED, Outcome.GATED)
        replay_s.append(time.thread_time() - begun_s)
    # Processor time; several times the usual, as a busy machine's caches make even that longer.
    assert np.median(update_s) < 2e-3
    assert min(replay_s) < 100e-3
