"""The lattice points of a map along a route."""

import numpy as np
import pytest

from crossview_localizer.maps.route import corridor, lattice

EVERYWHERE = (-1e4, -1e4, 1e4, 1e4)


def test_corridor_holds_exactly_the_points_within_its_distance():
    route_m = np.array([[0.3, 0.1], [40.0, 3.0], [40.0, 3.0], [45.0, 60.0], [20.0, 61.0]])
    grid, wanted = corridor(route_m, 11.0, 2.5, EVERYWHERE)
    # All lattice points around, against densely sampled segments (every 2 cm).
    x_m, y_m = np.meshgrid(np.arange(-20, 65, 2.5), np.arange(-20, 80, 2.5))
    share = np.linspace(0.0, 1.0, 3000)[:, None]
    nearest_m = np.full(x_m.shape, np.inf)
    for start, end in zip(route_m[:-1], route_m[1:]):
        line = start + share * (end - start)
        for point in np.ndindex(x_m.shape):
            distance_m = np.hypot(line[:, 0] - x_m[point], line[:, 1] - y_m[point]).min()
            nearest_m[point] = min(nearest_m[point], distance_m)
    assert np.abs(nearest_m - 11.0).min() > 1e-3        # no point is on the edge
    expected = {(float(x), float(y)) for x, y in zip(
        x_m[nearest_m < 11.0], y_m[nearest_m < 11.0])}
    found = np.stack(grid.xy_from_row_col(*np.nonzero(wanted)), axis=1)
    assert {(float(x), float(y)) for x, y in found} == expected
    assert wanted[0].any() and wanted[-1].any() and wanted[:, 0].any() and wanted[:, -1].any()


def test_corridor_of_one_fix_is_a_disc_and_fixes_far_apart_are_not_joined():
    lines = []
    grid, wanted = corridor(
        np.array([[0.0, 0.0], [600.0, 0.0]]), 5.0, 2.5, EVERYWHERE, lines.append)
    assert wanted.sum() == 2 * 13
    assert grid.cols == 245
    assert lines == ['1 gaps of more than 500 m are not joined']


def test_corridor_keeps_to_the_imagery_and_reports_what_is_outside():
    lines = []
    route_m = np.array([[-50.0, 0.0], [50.0, 0.0], [np.inf, 0.0]])
    grid, wanted = corridor(route_m, 10.0, 2.0, (-100.0, -4.0, 7.0, 100.0), lines.append)
    x_m, y_m = grid.cell_centres()
    assert x_m[-1] == 6.0 and y_m[-1] == -4.0 and wanted[-1].any()
    assert lines == ['2 of 3 fixes are outside the imagery']
    with pytest.raises(ValueError, match='none of the 3 fixes .* nearest is 0.2 km away'):
        corridor(route_m, 10.0, 2.0, (200.0, 200.0, 300.0, 300.0))
    with pytest.raises(ValueError, match='on another continent.*not exchanged'):
        corridor(route_m[2:], 10.0, 2.0, EVERYWHERE)


def test_lattice_points_are_multiples_of_the_spacing_in_any_box():
    grid = lattice((-7.4, 2.6, 9.9, 7.6), 2.5)
    x_m, y_m = grid.cell_centres()
    assert x_m.tolist() == [-5.0, -2.5, 0.0, 2.5, 5.0, 7.5]
    assert y_m.tolist() == [7.5, 5.0]
    with pytest.raises(ValueError, match='widen --spacing-m'):
        lattice((0.0, 0.0, 1e5, 1e5), 2.5)
