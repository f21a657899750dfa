"""The smoother of whole drives on linear cases in closed form and on simulated drives."""

from dataclasses import replace
import math

from filterpy.kalman import KalmanFilter
import numpy as np
import pytest
from test_pose_filter import at, CONFIG, error_of, estimate, gnss, match, odometry, simulated_drive

from crossview_localizer.datatypes import MatchErrors
from crossview_localizer.fusion import match_correction
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.fusion.smoother import smooth_drive
from crossview_localizer.geometry import Pose2D

# Along x at 10 m/s the position is a random walk that grows by Q_M2 in each second.
STRAIGHT = replace(
    CONFIG, odometry_position_noise=0.3, idle_position_noise_m=0.0, odometry_yaw_noise_rad=0.0,
    odometry_turn_noise_rad=0.0, idle_yaw_noise_rad=0.0, odometry_scale_sigma=0.0,
    odometry_turn_bias_sigma_radps=0.0)
Q_M2 = 0.3**2 * 10.0
WHITE = MatchErrors(correlation_m=0.0, correlation_s=0.0, sigma_floor_m=0.0)
START = estimate(0.0, 0.0, 0.0, 0.0, sigma_m=1.0, yaw_sigma_rad=1e-9)
OBSERVED = np.diag([0.04, 0.04, np.inf])


def straight_odometry(until_s: int, hz=10) -> list:
    return [odometry(step / hz, 10.0 * step / hz) for step in range(until_s * hz + 1)]


def test_between_two_known_places_the_variance_is_that_of_a_bridge():
    """One match at the end: x_s = K(t) z and P_s = P(t) - P(t)^2 / S, with P(t) = P0 + q t."""
    drive = [*straight_odometry(8), match(8.0, 81.0, 0.0, OBSERVED)]
    stamps_ns = [at(time_s) for time_s in (0.0, 2.0, 5.03, 8.0)]
    found = smooth_drive(drive, STRAIGHT, WHITE, stamps_ns, START)
    spread_m2 = 1.0 + 8.0 * Q_M2 + 0.04
    for row, time_s in enumerate((0.0, 2.0, 5.03, 8.0)):
        before_m2 = 1.0 + Q_M2 * time_s
        assert found.poses[row, 0] == pytest.approx(10.0 * time_s + before_m2 / spread_m2 * 1.0)
        expected_m2 = before_m2 - before_m2**2 / spread_m2
        assert np.allclose(np.diag(found.covariances[row])[:2], expected_m2)


def test_for_linear_motion_it_equals_the_smoother_of_filterpy(monkeypatch):
    monkeypatch.setattr(match_correction, 'MATCH_TAIL_DOF', 1e12)  # these matches are Gaussian
    rng = np.random.default_rng(4)
    walk_m = np.cumsum(math.sqrt(Q_M2) * rng.standard_normal(9)) + rng.standard_normal()
    z_m = walk_m + 0.2 * rng.standard_normal(9)
    matches = [match(k, 10.0 * k + z_m[k], 0.0, OBSERVED) for k in range(9)]
    found = smooth_drive([*straight_odometry(8), *matches], STRAIGHT, WHITE,
                         [at(k) for k in range(9)], START)
    reference = KalmanFilter(dim_x=1, dim_z=1)
    reference.x, reference.P, reference.F = np.zeros((1, 1)), np.eye(1), np.eye(1)
    reference.H, reference.Q, reference.R = np.eye(1), Q_M2 * np.eye(1), 0.04 * np.eye(1)
    means, variances = [], []
    for k in range(9):
        if k:
            reference.predict()
        reference.update(z_m[k])
        means.append(reference.x.copy())
        variances.append(reference.P.copy())
    smoothed_m, smoothed_m2, _, _ = reference.rts_smoother(np.array(means), np.array(variances))
    assert np.allclose(found.poses[:, 0] - 10.0 * np.arange(9), smoothed_m[:, 0, 0], atol=1e-9)
    assert np.allclose(found.covariances[:, 0, 0], smoothed_m2[:, 0, 0], atol=1e-9)


def test_the_last_pose_is_that_of_the_filter():
    drive = simulated_drive(3, duration_s=30.0, odometry_hz=10)
    first_ns = drive.odometry[0].stamp_ns
    start = estimate(0.0, *drive.truth[first_ns].as_array(), sigma_m=2.0)
    pose_filter = PoseFilter(CONFIG)
    pose_filter.set_pose(start)
    for measurement in drive.in_order():
        pose_filter.add(measurement)
    last_ns = drive.odometry[-1].stamp_ns
    expected = pose_filter.estimate_at(last_ns)
    found = smooth_drive(drive.in_order(), CONFIG, start=start)
    assert np.allclose(found.poses[-1], expected.pose.as_array(), atol=1e-9)
    assert np.allclose(found.covariances[-1], expected.covariance, atol=1e-9)


def test_over_simulated_drives_the_smoothed_poses_are_better_and_as_good_as_they_say():
    filtered_m2, smoothed_m2, nees = [], [], []
    for seed in range(12):
        drive = simulated_drive(700 + seed, odometry_hz=4, gnss_hz=1, match_hz=0)
        measurements = drive.in_order()
        rng = np.random.default_rng(seed)
        track = smooth_drive([measurements[k] for k in rng.permutation(len(measurements))], CONFIG)
        pose_filter = PoseFilter(CONFIG)
        for measurement in measurements:
            pose_filter.add(measurement)
            estimated = pose_filter.estimate_at(measurement.stamp_ns)
            if estimated is not None:
                filtered_m2.append(
                    (error_of(estimated, drive.truth[measurement.stamp_ns])[:2]**2).sum())
        assert np.isfinite(track.poses).all()  # from the first sample on, before the start too
        for row in range(0, len(track), 40):
            stamp_ns = int(track.stamps_ns[row])
            error = error_of(replace(
                START, pose=Pose2D(*track.poses[row])), drive.truth[stamp_ns])
            smoothed_m2.append((error[:2]**2).sum())
            nees.append(error @ np.linalg.solve(track.covariances[row], error))
    assert np.mean(smoothed_m2) < 0.8 * np.mean(filtered_m2)
    assert 2.0 < np.mean(nees) < 4.0


def test_without_a_start_there_are_no_poses():
    found = smooth_drive(straight_odometry(5), CONFIG)
    assert len(found) == 51 and np.isnan(found.poses).all()


def test_after_odometry_was_lost_for_long_the_drive_goes_on_in_a_new_part():
    drive = [measurement for measurement in [
        *straight_odometry(100),
        *(gnss(time_s / 2, 5.0 * time_s, 0.0) for time_s in range(200))]
        if not at(30.0) < measurement.stamp_ns < at(55.0)]
    found = smooth_drive(drive, CONFIG)
    errors_m = found.poses[:, 0] - 10.0 * (found.stamps_ns - at(0.0)) * 1e-9
    known = np.isfinite(errors_m)
    assert known.mean() > 0.9 and np.abs(errors_m[known]).max() < 1.0
