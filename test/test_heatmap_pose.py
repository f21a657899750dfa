"""From a heat map to a pose: what the filter gets, when it gets nothing, and single frames."""

import math
import tracemalloc

import numpy as np
import pytest
from scipy.stats import multivariate_t

from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.matching.heatmap_pose import (
    distance2_within,
    finer_yaws,
    moments,
    peak_pose,
    pose_from_heatmap,
)
from crossview_localizer.matching.tile_matcher import heatmap_from_scores
from crossview_localizer.networks.dense import GAUSSIAN_DOF

GRID = MapGrid.around(100.0, 50.0, 30.0, 1.5)
PRIOR = PoseEstimate(
    7, Pose2D(100.0, 50.0, 0.3), np.array([[9.0, 2.0, 0.0], [2.0, 6.0, 0.0], [0, 0, 0.01]]))


def gaussian_scores(x_m, y_m, covariance):
    xs, ys = GRID.cell_centres()
    offset = np.stack(np.meshgrid(xs - x_m, ys - y_m), -1)
    return -0.5 * np.einsum('rci,ij,rcj->rc', offset, np.linalg.inv(covariance), offset)


@pytest.mark.parametrize('holes', [False, True])
def test_a_constant_likelihood_gives_no_update(holes):
    scores = np.zeros((GRID.rows, GRID.cols))
    if holes:
        scores[:, :12] = -np.inf  # half a map: the prior's mean lies at its edge
    heatmap = heatmap_from_scores(scores, GRID, 4, 7)
    match, reason = pose_from_heatmap(heatmap, PRIOR, 4)
    assert match is None and 'uniform' in reason


def test_a_gaussian_likelihood_comes_back_with_mean_and_covariance():
    covariance = np.array([[6.0, -1.5], [-1.5, 3.0]])
    heatmap = heatmap_from_scores(gaussian_scores(103.1, 48.7, covariance), GRID, 4, 7)
    match, _ = pose_from_heatmap(heatmap, PRIOR, 4)
    np.testing.assert_allclose(match.pose.as_array()[:2], [103.1, 48.7], atol=0.05)
    np.testing.assert_allclose(match.covariance[:2, :2], covariance, rtol=0.05, atol=0.1)
    assert np.isinf(match.covariance[2, 2]) and match.stamp_ns == 7


def test_fusing_the_match_with_the_prior_counts_the_prior_once():
    """Prior times match must equal prior times likelihood, computed on the grid."""
    covariance = np.array([[16.0, 4.0], [4.0, 12.0]])
    heatmap = heatmap_from_scores(gaussian_scores(104.0, 52.0, covariance), GRID, 4, 7)
    match, _ = pose_from_heatmap(heatmap, PRIOR, 4)
    prior = PRIOR.covariance[:2, :2]
    fused = np.linalg.inv(np.linalg.inv(prior) + np.linalg.inv(match.covariance[:2, :2]))
    exact = np.linalg.inv(np.linalg.inv(prior) + np.linalg.inv(covariance))
    np.testing.assert_allclose(fused, exact, rtol=0.03, atol=0.03)


def test_a_likelihood_along_a_street_informs_across_it_only():
    along_x = np.array([[1e5, 0.0], [0.0, 1.0]])
    heatmap = heatmap_from_scores(gaussian_scores(100.0, 51.0, along_x), GRID, 4, 7)
    match, _ = pose_from_heatmap(heatmap, PRIOR, 4)
    assert match.covariance[0, 0] > 500.0
    assert match.covariance[1, 1] == pytest.approx(1.0, abs=0.1)
    assert match.pose.y_m == pytest.approx(51.0, abs=0.1)


def test_the_peak_between_two_tiles_is_found():
    heatmap = heatmap_from_scores(gaussian_scores(100.7, 50.4, np.eye(2) * 1.2), GRID, 4, 7)
    match, _ = pose_from_heatmap(heatmap, PRIOR, 4)
    np.testing.assert_allclose(match.pose.as_array()[:2], [100.7, 50.4], atol=0.1)


def test_a_peak_at_the_windows_edge_gives_no_update():
    heatmap = heatmap_from_scores(gaussian_scores(131.0, 50.0, np.eye(2) * 2.0), GRID, 4, 7)
    match, reason = pose_from_heatmap(heatmap, PRIOR, 4)
    assert match is None and 'edge' in reason


def test_a_direction_with_hardly_any_information_does_not_place_the_match_outside_the_window():
    """A mean 60 m east with sigma 45 m is a slope inside the window of 30 m, not a place."""
    scores = gaussian_scores(160.0, 51.0, np.diag([2000.0, 1.0]))
    match, _ = pose_from_heatmap(heatmap_from_scores(scores, GRID, 4, 7), PRIOR, 4)
    assert abs(match.pose.x_m - 100.0) < 30.0 and match.covariance[0, 0] > 1e5
    assert match.pose.y_m == pytest.approx(51.0, abs=0.1)


def gaussian_volume(mean, covariance, prior, cell_m=0.5) -> Heatmap:
    grid = MapGrid.around(prior.pose.x_m, prior.pose.y_m, 15.0, cell_m)
    yaws_rad = prior.pose.yaw_rad + math.radians(1.0) * np.arange(-8, 9)
    x_m, y_m = grid.cell_centres()
    offset = np.stack(np.broadcast_arrays(
        (x_m - mean[0])[None, None, :], (y_m - mean[1])[None, :, None],
        (yaws_rad - mean[2])[:, None, None]), -1)
    volume = -0.5 * np.einsum('krci,ij,krcj->krc', offset, np.linalg.inv(covariance), offset)
    volume -= np.log(np.exp(volume).sum())
    highest = volume.max(0)
    marginal = highest + np.log(np.exp(volume - highest).sum(0))
    return Heatmap(3, grid, marginal, yaws_rad, volume)


SHARP_PRIOR = PoseEstimate(
    3, Pose2D(100.0, 50.0, 0.5), np.diag([4.0, 4.0, math.radians(1.5) ** 2]))


def test_a_gaussian_volume_comes_back_with_mean_and_covariance():
    covariance = np.array([[1.5, -0.4, 0.01], [-0.4, 1.0, 0.0], [0.01, 0.0, 0.0006]])
    mean = np.array([101.2, 49.3, 0.52])
    match, _ = pose_from_heatmap(gaussian_volume(mean, covariance, SHARP_PRIOR), SHARP_PRIOR, 2)
    np.testing.assert_allclose(match.pose.as_array(), mean, atol=0.03)
    np.testing.assert_allclose(match.covariance, covariance, rtol=0.15, atol=0.03)


def test_a_constant_volume_and_one_at_the_edge_give_no_update():
    flat = gaussian_volume((100.0, 50.0, 0.5), np.eye(3) * 1e8, SHARP_PRIOR)
    match, reason = pose_from_heatmap(flat, SHARP_PRIOR, 2)
    assert match is None and 'uniform' in reason
    edge = gaussian_volume((115.0, 50.0, 0.5), np.diag([0.3, 0.3, 0.001]), SHARP_PRIOR)
    match, reason = pose_from_heatmap(edge, SHARP_PRIOR, 2)
    assert match is None and 'edge' in reason


def two_peaks(second: float) -> Heatmap:
    """One peak at SHARP_PRIOR's place, another 10 m north of ``second`` times its mass."""
    covariance = np.diag([0.3, 0.5, 0.0009])
    first = gaussian_volume((100.0, 50.0, 0.52), covariance, SHARP_PRIOR)
    other = gaussian_volume((100.0, 60.0, 0.52), covariance, SHARP_PRIOR)
    volume = np.logaddexp(first.volume, math.log(second) + other.volume) - math.log1p(second)
    return Heatmap(3, first.grid, np.log(np.exp(volume).sum(0)), first.yaws_rad, volume)


@pytest.mark.parametrize('sigma_m, second', [(0.15, 0.5), (0.15, 1e25), (2.0, 1.0)])
def test_cells_that_do_not_count_change_no_pose(monkeypatch, sigma_m, second):
    """A prior may be narrow, and a peak far from it so high that it counts all the same."""
    prior = PoseEstimate(3, SHARP_PRIOR.pose, np.diag([sigma_m ** 2, sigma_m ** 2, 1e-5]))
    found, _ = pose_from_heatmap(two_peaks(second), prior, 2)
    monkeypatch.setattr(
        'crossview_localizer.matching.heatmap_pose.NEGLIGIBLE_NATS', np.inf)
    expected, _ = pose_from_heatmap(two_peaks(second), prior, 2)
    np.testing.assert_allclose(found.pose.as_array(), expected.pose.as_array(), atol=1e-6)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('sharpening', [1.0, 2.5])
def test_a_single_frame_takes_the_shape_of_its_best_peak_alone(sharpening):
    estimate, ambiguous = peak_pose(two_peaks(0.3), SHARP_PRIOR, sharpening)
    assert not ambiguous
    np.testing.assert_allclose(estimate.pose.as_array(), (100.0, 50.0, 0.52), atol=0.02)
    np.testing.assert_allclose(
        np.diag(estimate.covariance)[:2], np.array([0.3, 0.5]) / sharpening + 0.25 / 12, rtol=0.1)
    assert estimate.covariance[2, 2] == pytest.approx(0.0009 / sharpening, rel=0.15)


def test_a_single_frame_of_two_like_peaks_is_ambiguous_and_claims_the_window():
    estimate, ambiguous = peak_pose(two_peaks(0.95), SHARP_PRIOR, 1.0, 0.6)
    assert ambiguous
    np.testing.assert_allclose(estimate.pose.as_array()[:2], (100.0, 50.0), atol=0.01)
    # About the better place, not their mean: half of 10 m squared.
    assert estimate.covariance[1, 1] == pytest.approx(49.0, rel=0.05)
    # A factor on log-likelihoods makes more of the difference.
    assert peak_pose(two_peaks(0.7), SHARP_PRIOR, 1.0, 0.6)[1]
    assert not peak_pose(two_peaks(0.7), SHARP_PRIOR, 3.0, 0.6)[1]


def test_sharpening_does_not_make_the_claim_of_an_ambiguous_frame_narrower():
    plain, sharpened = (
        peak_pose(two_peaks(0.7), SHARP_PRIOR, sharpening, 0.9)[0] for sharpening in (1.0, 3.0))
    np.testing.assert_allclose(sharpened.covariance, plain.covariance)


def test_an_ambiguous_frame_lies_amid_likely_places_and_in_the_middle_where_all_are_alike():
    grid = MapGrid(41, 41, 0.5, 90.0, 60.0)
    alone, amid, flat = np.full((41, 41), 1e-6), np.full((41, 41), 1e-6), np.full((41, 41), 1.0)
    alone[5, 5] = amid[5, 5] = 0.12             # one cell
    amid[29:32, 34:37] = 0.1                    # and nine that are a little less likely each
    for places, expected_m in (
            (alone, (92.5, 57.5)), (amid, (107.5, 45.0)), (flat, (100.0, 50.0))):
        heatmap = Heatmap(3, grid, np.log(places / places.sum()))
        estimate, ambiguous = peak_pose(heatmap, SHARP_PRIOR, min_mass=1.01)
        assert ambiguous
        np.testing.assert_allclose(estimate.pose.as_array()[:2], expected_m, atol=1e-3)


@pytest.mark.parametrize('dof', [2.5, 5.0, GAUSSIAN_DOF])
def test_ellipsoids_hold_their_share_of_errors_with_such_tails(dof):
    spread = 1.0 if dof == GAUSSIAN_DOF else dof / (dof - 2.0)  # covariance over shape
    covariance = np.array([[0.6, 0.2, 0.0], [0.2, 0.9, 0.01], [0.0, 0.01, 0.001]])
    errors = multivariate_t(shape=covariance / spread, df=dof, seed=0).rvs(40000)
    distances2 = (errors * np.linalg.solve(covariance, errors.T).T).sum(1)
    for share in (0.3, 0.68, 0.95):
        assert np.mean(distances2 <= distance2_within(share, dof)) == pytest.approx(
            share, abs=0.01)


def test_interpolated_yaws_keep_the_values_at_the_bins():
    yaws = np.array([0.0, 0.1, 0.2])
    volume = np.array([1.0, 3.0, 2.0])[:, None, None] * np.ones((1, 2, 2))
    fine_yaws, fine = finer_yaws(yaws, volume, 4)
    np.testing.assert_allclose(fine_yaws[::4], yaws)
    np.testing.assert_allclose(fine[::4], volume)
    np.testing.assert_allclose(fine[2], 2.0)


def test_probability_at_the_edge_of_the_headings_gives_no_update():
    beside = gaussian_volume((100.0, 50.0, 0.5 + 0.18), np.diag([0.3, 0.3, 0.001]), SHARP_PRIOR)
    match, reason = pose_from_heatmap(beside, SHARP_PRIOR, 2)
    assert match is None and 'headings' in reason and 'edge' in reason
    inside = gaussian_volume((100.0, 50.0, 0.5 + 0.05), np.diag([0.3, 0.3, 0.001]), SHARP_PRIOR)
    assert pose_from_heatmap(inside, SHARP_PRIOR, 2)[0] is not None


def test_moments_are_those_of_the_cells_written_out():
    rng = np.random.default_rng(0)
    weight = rng.random((5, 7, 6))
    x_m, y_m, yaw_rad = rng.normal(size=6) + 1e3, rng.normal(size=7), rng.normal(size=5)
    cells = np.stack(np.broadcast_arrays(
        x_m, y_m[:, None], yaw_rad[:, None, None]), -1).reshape(-1, 3)
    mean, covariance = moments(weight, [x_m, y_m, yaw_rad])
    np.testing.assert_allclose(mean, np.average(cells, 0, weight.ravel()), rtol=1e-12)
    np.testing.assert_allclose(
        covariance, np.cov(cells.T, aweights=weight.ravel(), ddof=0), rtol=1e-9, atol=1e-12)


def test_a_wide_window_needs_no_more_memory_than_a_few_of_its_volumes():
    wide = gaussian_volume((100.0, 50.0, 0.5), np.diag([0.3, 0.3, 0.001]), SHARP_PRIOR, 0.1)
    fine = finer_yaws(wide.yaws_rad, wide.volume, 4)[1]
    tracemalloc.start()
    pose_from_heatmap(wide, SHARP_PRIOR, 2)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 6 * fine.nbytes
