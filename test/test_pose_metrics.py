"""Metrics with numbers worked out by hand."""

import csv
import math

import numpy as np
import pytest

from crossview_localizer.datatypes import GnssFix
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track

SECOND_NS = 1_000_000_000


def track(poses, covariance=None, start_s=0.0, step_s=1.0):
    stamps_ns = [round((start_s + step_s * index) * 1e9) for index in range(len(poses))]
    covariances = None if covariance is None else [covariance] * len(poses)
    return Track.from_poses(stamps_ns, [Pose2D(*pose) for pose in poses], covariances)


def all_lines(truth):
    return np.ones(len(truth), bool)


def test_an_error_ahead_of_a_northbound_vehicle_is_longitudinal_and_one_to_its_west_is_left():
    truth = track([(100.0, 200.0, math.pi / 2)])
    errors = pose_metrics.pose_errors(track([(97.0, 204.0, math.pi / 2)]), truth)
    assert errors['longitudinal_m'][0] == pytest.approx(4.0)
    assert errors['lateral_m'][0] == pytest.approx(3.0)
    assert errors['position_m'][0] == pytest.approx(5.0)


def test_medians_are_of_absolute_values_in_the_axes_of_the_truth():
    truth = track([(0.0, 0.0, 0.0)] * 3)
    # Estimated headings are wild on purpose: the split must not use them.
    estimate = track([(-1.0, 2.0, 2.0), (3.0, -4.0, -2.0), (-5.0, 6.0, 3.0)])
    result = pose_metrics.metrics(estimate, truth, all_lines(truth))
    assert result['longitudinal_median_m'] == pytest.approx(3.0)
    assert result['lateral_median_m'] == pytest.approx(4.0)
    assert result['heading_median_deg'] == pytest.approx(math.degrees(2.0))


def test_heading_errors_go_the_short_way_round():
    truth = track([(0.0, 0.0, math.pi - 0.1)])
    result = pose_metrics.metrics(track([(0.0, 0.0, -math.pi + 0.1)]), truth, all_lines(truth))
    assert result['heading_median_deg'] == pytest.approx(math.degrees(0.2))


def test_mean_median_and_p95_of_known_errors():
    truth = track([(0.0, 0.0, 0.0)] * 21)
    estimate = track([(float(error), 0.0, 0.0) for error in range(21)])
    result = pose_metrics.metrics(estimate, truth, all_lines(truth))
    assert result['median_m'] == pytest.approx(10.0)
    assert result['mean_m'] == pytest.approx(10.0)
    assert result['p95_m'] == pytest.approx(19.0)


def test_coverage_and_nees_of_errors_drawn_from_the_claimed_gaussian():
    generator = np.random.default_rng(3)
    spread = np.array([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [0.01, 0.0, 0.02]])
    covariance = spread @ spread.T
    poses = generator.standard_normal((4000, 3)) @ spread.T
    truth = track([(0.0, 0.0, 0.0)] * 4000)
    honest = pose_metrics.metrics(track(poses, covariance), truth, all_lines(truth))
    assert honest['coverage_95'] == pytest.approx(0.95, abs=0.012)
    assert honest['nees_mean'] == pytest.approx(3.0, abs=0.15)
    boastful = pose_metrics.metrics(track(poses, covariance / 4.0), truth, all_lines(truth))
    assert boastful['nees_mean'] == pytest.approx(4.0 * honest['nees_mean'])
    # chi-square, 3 degrees of freedom: P(d2 <= 7.815 / 4) = 0.418
    assert boastful['coverage_95'] == pytest.approx(0.418, abs=0.03)


def test_a_row_without_heading_is_judged_on_position_alone():
    truth = track([(0.0, 0.0, 0.3)] * 2)
    estimate = Track.empty(truth.stamps_ns)
    estimate.poses[:, :2] = [(2.0, 0.0), (0.0, 9.0)]
    estimate.covariances[:, :2, :2] = np.diag([4.0, 9.0])
    result = pose_metrics.metrics(estimate, truth, all_lines(truth))
    assert result['nees_mean'] == pytest.approx((1.0 + 9.0) / 2)
    assert result['coverage_95'] == pytest.approx(0.5)
    assert result['heading_median_deg'] is None
    assert result['median_m'] == pytest.approx(5.5)


def test_a_covariance_that_is_not_positive_definite_covers_nothing():
    truth = track([(0.0, 0.0, 0.0)])
    result = pose_metrics.metrics(
        track([(0.0, 0.0, 0.0)], np.zeros((3, 3))), truth, all_lines(truth))
    assert result['coverage_95'] == 0.0
    assert result['nees_mean'] is None


def test_lines_without_an_estimate_are_expected_but_not_counted():
    truth = track([(0.0, 0.0, 0.0)] * 4)
    estimate = track([(1.0, 0.0, 0.0)] * 4)
    estimate.poses[1] = np.nan
    result = pose_metrics.metrics(estimate, truth, np.array([False, True, True, True]))
    assert (result['n'], result['n_expected']) == (2, 3)
    assert result['median_m'] == pytest.approx(1.0)


def test_a_row_that_never_estimates_is_undefined_not_zero():
    truth = track([(0.0, 0.0, 0.0)] * 4)
    result = pose_metrics.metrics(Track.empty(truth.stamps_ns), truth, all_lines(truth))
    assert (result['n'], result['n_expected']) == (0, 4)
    assert [result[key] for key in pose_metrics.METRICS[:8]] == [None] * 8


def test_the_first_five_seconds_and_unknown_truth_are_not_evaluated():
    truth = track([(0.0, 0.0, 0.0)] * 8)
    truth.poses[6] = np.nan
    assert list(pose_metrics.settled(truth)) == [False] * 6 + [False, True]


def test_a_stale_output_is_moved_on_by_the_odometry_since():
    # Odometry: 2 m/s along its own x axis, in a frame that is turned and shifted against map.
    odometry = track([(10.0 + 2.0 * second, 5.0, 0.0) for second in range(6)])
    covariance = np.diag([1.0, 1.0, 0.01])
    outputs = Track.from_poses(
        [1 * SECOND_NS], [Pose2D(50.0, 60.0, math.pi / 2)], [covariance])
    moved = pose_metrics.propagate(
        outputs, odometry, np.array([0, 1, 3]) * SECOND_NS)
    assert np.isnan(moved.poses[0]).all()
    assert moved.poses[1] == pytest.approx([50.0, 60.0, math.pi / 2])
    assert moved.poses[2] == pytest.approx([50.0, 64.0, math.pi / 2])
    # 4 m north with a yaw sigma of 0.1 rad: 0.4 m more sigma east, correlated with yaw.
    assert moved.covariances[2][0, 0] == pytest.approx(1.0 + 16.0 * 0.01)
    assert moved.covariances[2][0, 2] == pytest.approx(-4.0 * 0.01)
    assert moved.covariances[2][1, 1] == pytest.approx(1.0)


def test_an_output_of_the_future_is_never_used():
    odometry = track([(0.0, 0.0, 0.0)] * 6)
    outputs = Track.from_poses(
        [0, 4 * SECOND_NS], [Pose2D(1.0, 0.0, 0.0), Pose2D(2.0, 0.0, 0.0)])
    moved = pose_metrics.propagate(outputs, odometry, np.array([3.9 * SECOND_NS], np.int64))
    assert moved.poses[0, 0] == pytest.approx(1.0)


def test_odometry_alone_starts_on_the_truth_and_then_drifts():
    truth = track([(10.0, 0.0, 0.0), (10.0, 2.0, math.pi / 2), (10.0, 4.0, math.pi / 2)])
    truth.poses[0] = np.nan
    odometry = track([(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (3.2, 0.0, 0.0)])
    alone = pose_metrics.odometry_only(odometry, truth)
    assert np.isnan(alone.poses[0]).all()
    assert alone.poses[1] == pytest.approx([10.0, 2.0, math.pi / 2])
    assert alone.poses[2] == pytest.approx([10.0, 4.2, math.pi / 2])
    result = pose_metrics.metrics(alone, truth, evaluated=np.array([False, True, True]))
    assert result['coverage_95'] is None
    assert result['longitudinal_median_m'] == pytest.approx(0.1)


def fix(second, x_m, y_m, antenna=(0.0, 0.0)):
    return GnssFix(round(second * 1e9), x_m, y_m, np.diag([4.0, 4.0]), antenna)


def test_gnss_alone_moves_on_with_its_own_velocity_and_holds_in_an_outage():
    # Northbound at 5 m/s, fixes at 2 Hz until 10 s; the antenna is 2 m behind base_link.
    fixes = [fix(0.5 * step, 3.0, 2.5 * step, (-2.0, 0.0)) for step in range(21)]
    stamps_ns = np.array([-1.0, 8.2, 10.4, 15.0, 30.0]) * SECOND_NS
    alone = pose_metrics.gnss_only(fixes[::-1], stamps_ns)
    assert np.isnan(alone.poses[0]).all()
    assert alone.poses[1, :2] == pytest.approx([3.0, 8.2 * 5.0 + 2.0])
    assert alone.poses[2, :2] == pytest.approx([3.0, 10.4 * 5.0 + 2.0])
    assert alone.poses[3, :2] == pytest.approx([3.0, 11.0 * 5.0 + 2.0])
    assert alone.poses[4, :2] == pytest.approx(alone.poses[3, :2])
    assert np.isnan(alone.poses[:, 2]).all()
    assert alone.covariances[4][:2, :2] == pytest.approx(np.diag([4.0, 4.0]))


def test_gnss_before_any_motion_leaves_the_lever_arm_out():
    alone = pose_metrics.gnss_only([fix(0.0, 7.0, 8.0, (-2.0, 0.0))], np.array([SECOND_NS]))
    assert alone.poses[0, :2] == pytest.approx([7.0, 8.0])


def drive(seed, count):
    generator = np.random.default_rng(seed)
    poses = generator.standard_normal((count, 3))
    truth = track(poses, start_s=1000.0 * seed)
    refined = track(poses + 0.5, np.diag([1.0, 2.0, 0.1]) + 0.01, start_s=1000.0 * seed)
    gnss = Track.empty(truth.stamps_ns)
    gnss.poses[:, :2] = poses[:, :2] + 3.0
    gnss.covariances[:, :2, :2] = np.diag([1.0, 2.0])
    return Comparison(
        truth, pose_metrics.settled(truth), {'gnss_only': gnss, 'refined': refined},
        {'gnss_only': [''] * count, 'refined': ['used'] * count})


def test_a_comparison_written_and_read_again_gives_the_same_numbers(tmp_path):
    frames = drive(1, 12)
    pose_metrics.write_comparison(tmp_path / 'frames.csv', frames)
    again = pose_metrics.read_comparison(tmp_path / 'frames.csv')
    assert pose_metrics.metrics_by_row(again) == pose_metrics.metrics_by_row(frames)
    assert again.outcomes == frames.outcomes
    assert np.array_equal(again.rows['refined'].covariances, frames.rows['refined'].covariances)
    with open(tmp_path / 'frames.csv', newline='', encoding='utf-8') as file:
        assert len(list(csv.reader(file))) == 13


def test_a_foreign_file_is_refused_by_name(tmp_path):
    (tmp_path / 'frames.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match='holds no frames'):
        pose_metrics.read_comparison(tmp_path / 'frames.csv')


def test_pooling_weighs_frames_not_drives():
    pooled = pose_metrics.metrics_by_row(pose_metrics.pool([drive(1, 30), drive(2, 10)]))
    assert pooled['refined']['n_expected'] == 24 + 4
    assert pooled['gnss_only']['median_m'] == pytest.approx(math.hypot(3.0, 3.0))


def test_a_table_shows_every_row_and_dashes_for_what_is_undefined():
    results = pose_metrics.metrics_by_row(drive(1, 12))
    lines = pose_metrics.table(results).splitlines()
    assert lines[2].startswith('gnss_only') and ' - ' in lines[2]
    assert lines[3].startswith('refined') and lines[3].endswith('6 / 6')


def test_percentiles_of_known_values():
    assert pose_metrics.percentiles(range(101)) == {'p50': 50.0, 'p95': 95.0, 'p99': 99.0}
    assert pose_metrics.percentiles([]) == {'p50': None, 'p95': None, 'p99': None}
