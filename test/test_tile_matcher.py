"""From tile scores to a heat map."""

import numpy as np
import pytest

from crossview_localizer.geometry import MapGrid
from crossview_localizer.matching.tile_matcher import heatmap_from_scores, shifted_scores

GRID = MapGrid.around(100.0, 50.0, 30.0, 1.5)


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
    back = shifted_scores(scores, np.array([1.0, 2.0]))
    assert np.unravel_index(back.argmax(), back.shape) == (4, 4)
    np.testing.assert_allclose(back[4, 4], 1.0, atol=1e-6)
    np.testing.assert_array_equal(shifted_scores(scores, np.zeros(2)), scores)
