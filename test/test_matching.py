"""What the filter gets from a heat map, and when it gets nothing."""

import numpy as np
import pytest

from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.matching.tile_matcher import (
    heatmap_from_scores,
    moved,
    position_from_heatmap,
)

GRID = MapGrid.around(100.0, 50.0, 30.0, 1.5)
PRIOR = PoseEstimate(
    7, Pose2D(100.0, 50.0, 0.3), np.array([[9.0, 2.0, 0.0], [2.0, 6.0, 0.0], [0, 0, 0.01]]))
CONFIG = MatchConfig()


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
    match, reason = position_from_heatmap(heatmap, PRIOR, CONFIG)
    assert match is None and 'uniform' in reason


def test_a_gaussian_likelihood_comes_back_with_mean_and_covariance():
    covariance = np.array([[6.0, -1.5], [-1.5, 3.0]])
    heatmap = heatmap_from_scores(gaussian_scores(103.1, 48.7, covariance), GRID, 4, 7)
    match, _ = position_from_heatmap(heatmap, PRIOR, CONFIG)
    np.testing.assert_allclose(match.pose.as_array()[:2], [103.1, 48.7], atol=0.05)
    np.testing.assert_allclose(match.covariance[:2, :2], covariance, rtol=0.05, atol=0.1)
    assert np.isinf(match.covariance[2, 2]) and match.stamp_ns == 7


def test_fusing_the_match_with_the_prior_counts_the_prior_once():
    """Prior times match must equal prior times likelihood, computed on the grid."""
    covariance = np.array([[16.0, 4.0], [4.0, 12.0]])
    heatmap = heatmap_from_scores(gaussian_scores(104.0, 52.0, covariance), GRID, 4, 7)
    match, _ = position_from_heatmap(heatmap, PRIOR, CONFIG)
    prior = PRIOR.covariance[:2, :2]
    fused = np.linalg.inv(np.linalg.inv(prior) + np.linalg.inv(match.covariance[:2, :2]))
    exact = np.linalg.inv(np.linalg.inv(prior) + np.linalg.inv(covariance))
    np.testing.assert_allclose(fused, exact, rtol=0.03, atol=0.03)


def test_a_likelihood_along_a_street_informs_across_it_only():
    along_x = np.array([[1e5, 0.0], [0.0, 1.0]])
    heatmap = heatmap_from_scores(gaussian_scores(100.0, 51.0, along_x), GRID, 4, 7)
    match, _ = position_from_heatmap(heatmap, PRIOR, CONFIG)
    assert match.covariance[0, 0] > 500.0
    assert match.covariance[1, 1] == pytest.approx(1.0, abs=0.1)
    assert match.pose.y_m == pytest.approx(51.0, abs=0.1)


def test_the_peak_between_two_tiles_is_found():
    heatmap = heatmap_from_scores(gaussian_scores(100.7, 50.4, np.eye(2) * 1.2), GRID, 4, 7)
    match, _ = position_from_heatmap(heatmap, PRIOR, CONFIG)
    np.testing.assert_allclose(match.pose.as_array()[:2], [100.7, 50.4], atol=0.1)


def test_a_peak_at_the_windows_edge_gives_no_update():
    heatmap = heatmap_from_scores(gaussian_scores(131.0, 50.0, np.eye(2) * 2.0), GRID, 4, 7)
    match, reason = position_from_heatmap(heatmap, PRIOR, CONFIG)
    assert match is None and 'edge' in reason


def test_cells_nearest_to_missing_tiles_have_no_probability():
    scores = np.zeros((GRID.rows, GRID.cols))
    scores[3, 5] = -np.inf
    heatmap = heatmap_from_scores(scores, GRID, 4, 7)
    assert np.isneginf(heatmap.log_probability[12, 20])
    assert np.isfinite(heatmap.log_probability[12, 24])
    assert np.exp(heatmap.log_probability).sum() == pytest.approx(1.0)
    assert heatmap.grid.xy_from_row_col(12, 20) == pytest.approx(GRID.xy_from_row_col(3, 5))


def test_scores_are_moved_west_and_south_by_the_offset():
    """An offset of +1 cell east and +2 north means: the peak is seen too far there."""
    scores = np.zeros((9, 9))
    scores[2, 5] = 1.0
    back = moved(scores, np.array([1.0, 2.0]))
    assert np.unravel_index(back.argmax(), back.shape) == (4, 4)
    np.testing.assert_allclose(back[4, 4], 1.0, atol=1e-6)
    np.testing.assert_array_equal(moved(scores, np.zeros(2)), scores)


def test_a_direction_with_hardly_any_information_does_not_place_the_match_outside_the_window():
    """A mean 60 m east with sigma 45 m is a slope inside the window of 30 m, not a place."""
    scores = gaussian_scores(160.0, 51.0, np.diag([2000.0, 1.0]))
    match, _ = position_from_heatmap(heatmap_from_scores(scores, GRID, 4, 7), PRIOR, CONFIG)
    assert abs(match.pose.x_m - 100.0) < 30.0 and match.covariance[0, 0] > 1e5
    assert match.pose.y_m == pytest.approx(51.0, abs=0.1)
