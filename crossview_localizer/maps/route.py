"""The lattice points of a map along a route."""

from collections.abc import Callable
import math

import numpy as np

from crossview_localizer.geometry import MapGrid
from crossview_localizer.maps.store import MAX_LATTICE

MAX_GAP_M = 500.0              # fixes farther apart than this are not joined by a straight line


def lattice(bounds_m, spacing_m: float) -> MapGrid:
    """The multiples of ``spacing_m`` in a box (x_min, y_min, x_max, y_max); may be empty."""
    west, south = (math.ceil(value / spacing_m) for value in bounds_m[:2])
    east, north = (math.floor(value / spacing_m) for value in bounds_m[2:])
    rows, cols = max(0, north - south + 1), max(0, east - west + 1)
    if rows * cols > MAX_LATTICE:
        raise ValueError(
            f'the grid of the map would have {rows} x {cols} points; expected at most '
            f'{MAX_LATTICE}: widen --spacing-m or build the route in parts'
        )
    return MapGrid(rows, cols, spacing_m, west * spacing_m, north * spacing_m)


def corridor(
    route_m: np.ndarray, corridor_m: float, spacing_m: float, bounds_m,
    report: Callable[[str], None] = lambda line: None,
) -> tuple[MapGrid, np.ndarray]:
    """Lattice points within ``corridor_m`` of a polyline (N, 2), inside a box.

    Returns the smallest grid that holds them, and their mask (rows, cols) in it.
    """
    bounds_m = np.asarray(bounds_m, float)
    inside = np.isfinite(route_m).all(1)
    inside &= (route_m >= bounds_m[:2]).all(1) & (route_m <= bounds_m[2:]).all(1)
    if not inside.any():
        outside_m = np.maximum(np.maximum(bounds_m[:2] - route_m, route_m - bounds_m[2:]), 0.0)
        nearest_km = np.fmin.reduce(np.hypot(*outside_m.T)) / 1e3
        where = f'{nearest_km:.1f} km away' if nearest_km < 1000.0 else 'on another continent'
        raise ValueError(
            f'none of the {len(route_m)} fixes of the route lies in the imagery, the nearest is '
            f'{where}; expected imagery of the same place, and latitude and longitude that are '
            'not exchanged in either')
    if not inside.all():
        report(f'{np.count_nonzero(~inside)} of {len(route_m)} fixes are outside the imagery')
    route_m = route_m[np.isfinite(route_m).all(1)]
    reach_m = np.concatenate((route_m.min(0) - corridor_m, route_m.max(0) + corridor_m))
    grid = lattice(
        np.concatenate((np.maximum(reach_m[:2], bounds_m[:2]),
                        np.minimum(reach_m[2:], bounds_m[2:]))), spacing_m)
    wanted = np.zeros((grid.rows, grid.cols), bool)

    starts = route_m
    ends = np.concatenate((route_m[1:], route_m[-1:]))
    gaps = np.linalg.norm(ends - starts, axis=1) > MAX_GAP_M
    if gaps.any():
        report(f'{np.count_nonzero(gaps)} gaps of more than {MAX_GAP_M:g} m are not joined')
    ends = np.where(gaps[:, None], starts, ends)
    for start, end in zip(starts, ends):
        # Only the points of the segment's own box can be near it.
        top, left = grid.row_col_from_xy(
            min(start[0], end[0]) - corridor_m, max(start[1], end[1]) + corridor_m)
        bottom, right = grid.row_col_from_xy(
            max(start[0], end[0]) + corridor_m, min(start[1], end[1]) - corridor_m)
        rows = np.arange(max(0, math.ceil(top)), min(grid.rows, math.floor(bottom) + 1))
        cols = np.arange(max(0, math.ceil(left)), min(grid.cols, math.floor(right) + 1))
        if len(rows) == 0 or len(cols) == 0:
            continue
        x_m, y_m = grid.xy_from_row_col(rows[:, None], cols[None, :])
        distance_m = _segment_distance(x_m, y_m, start, end)
        wanted[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1] |= distance_m <= corridor_m
    return _trimmed(grid, wanted)


def _segment_distance(x_m, y_m, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    along = end - start
    length2 = float(along @ along)
    share = 0.0
    if length2 > 0.0:
        share = ((x_m - start[0]) * along[0] + (y_m - start[1]) * along[1]) / length2
        share = np.clip(share, 0.0, 1.0)
    return np.hypot(x_m - start[0] - share * along[0], y_m - start[1] - share * along[1])


def _trimmed(grid: MapGrid, wanted: np.ndarray) -> tuple[MapGrid, np.ndarray]:
    rows, cols = (np.flatnonzero(wanted.any(axis)) for axis in (1, 0))
    if len(rows) == 0:
        return grid, wanted
    part = np.s_[rows[0]:rows[-1] + 1, cols[0]:cols[-1] + 1]
    return grid.crop(int(rows[0]), int(cols[0]), *wanted[part].shape), wanted[part]
