"""Frames and grids: what every other module relies on."""

import math

import numpy as np
from pyproj import Proj
import pytest

from crossview_localizer.geometry import (
    body_axes_error,
    interpolate_pose,
    LocalFrame,
    MapGrid,
    Pose2D,
    wrap_angle,
)

OXFORD = (51.7548, -1.2544)


def test_angles_wrap_into_minus_pi_to_pi():
    assert wrap_angle(math.pi) == -math.pi
    assert wrap_angle(-math.pi) == -math.pi
    assert wrap_angle(7.0) == pytest.approx(7.0 - 2 * math.pi)
    assert np.allclose(wrap_angle(np.array([0.1, -7.0])), [0.1, 2 * math.pi - 7.0])


def test_neighbours_cancel_when_poses_are_composed():
    map_from_odom, odom_from_base = Pose2D(3.0, -2.0, 0.7), Pose2D(-5.0, 1.0, 2.9)
    map_from_base = map_from_odom @ odom_from_base
    found = map_from_base @ odom_from_base.inverse()
    assert np.allclose(found.as_array(), map_from_odom.as_array())
    identity = map_from_odom.inverse() @ map_from_odom
    assert np.allclose(identity.as_array(), 0.0)


def test_a_left_turn_puts_forward_to_the_left():
    quarter = Pose2D(10.0, 20.0, math.pi / 2)
    moved = quarter @ Pose2D(3.0, 1.0, 0.0)
    assert np.allclose(moved.as_array(), [9.0, 23.0, math.pi / 2])
    assert np.allclose(quarter.transform(np.array([[3.0, 1.0]])), [[9.0, 23.0]])


def test_transforming_points_by_a_product_is_transforming_twice():
    a_from_b, b_from_c = Pose2D(1.0, 2.0, 0.4), Pose2D(-3.0, 5.0, -2.0)
    points_m = np.random.default_rng(0).normal(size=(4, 3, 2))
    expected = a_from_b.transform(b_from_c.transform(points_m))
    assert np.allclose((a_from_b @ b_from_c).transform(points_m), expected)


def test_interpolation_takes_the_shorter_way_round():
    start, end = Pose2D(0.0, 0.0, math.pi - 0.1), Pose2D(4.0, -8.0, -math.pi + 0.3)
    found = interpolate_pose(start, end, 0.25)
    assert np.allclose(found.as_array(), [1.0, -2.0, -math.pi])
    assert np.allclose(interpolate_pose(start, end, 0.0).as_array(), start.as_array())
    assert np.allclose(interpolate_pose(start, end, 1.0).as_array(), end.as_array())


@pytest.mark.parametrize('yaw_rad, error_xy_m, longitudinal_m, lateral_m', [
    (0.0, (2.0, 1.0), 2.0, 1.0),
    (math.pi / 2, (2.0, 1.0), 1.0, -2.0),
    (math.pi, (2.0, 1.0), -2.0, -1.0),
    (-math.pi / 2, (2.0, 1.0), -1.0, 2.0),
    (math.pi / 4, (1.0, 1.0), math.sqrt(2.0), 0.0),
])
def test_body_axes_errors_are_signed_ahead_and_left(
    yaw_rad, error_xy_m, longitudinal_m, lateral_m
):
    found = body_axes_error(np.array(error_xy_m), yaw_rad)
    assert np.allclose(found, (longitudinal_m, lateral_m))


def test_body_axes_errors_of_many_frames_are_those_of_each():
    rng = np.random.default_rng(1)
    errors_m, yaws_rad = rng.normal(size=(20, 2)), rng.uniform(-3, 3, 20)
    longitudinal_m, lateral_m = body_axes_error(errors_m, yaws_rad)
    for index in range(20):
        expected = body_axes_error(errors_m[index], yaws_rad[index])
        assert np.allclose((longitudinal_m[index], lateral_m[index]), expected)
    assert np.allclose(np.hypot(longitudinal_m, lateral_m), np.linalg.norm(errors_m, axis=1))


# --- the map plane ------------------------------------------------------------------------------


def test_latitude_and_longitude_come_back():
    frame = LocalFrame(*OXFORD)
    latitudes_deg, longitudes_deg = np.array([51.6, 51.7548, 52.1]), np.array([-1.6, -1.25, -0.9])
    x_m, y_m = frame.xy_from_latlon(latitudes_deg, longitudes_deg)
    found = frame.latlon_from_xy(x_m, y_m)
    assert np.allclose(found, (latitudes_deg, longitudes_deg), atol=1e-11)
    assert np.allclose(frame.xy_from_latlon(*OXFORD), (0.0, 0.0), atol=1e-9)


@pytest.mark.parametrize('xy_m', [(0.0, 0.0), (-8_000.0, 12_000.0), (3.0, -90_000.0)])
def test_a_frame_is_found_from_one_point_in_both_worlds(xy_m):
    frame = LocalFrame(*OXFORD)
    found = LocalFrame.through_point(frame.latlon_from_xy(*xy_m), xy_m)
    origin_m = frame.xy_from_latlon(found.latitude_deg, found.longitude_deg)
    assert np.hypot(*origin_m) < 1e-5


def test_a_point_that_no_frame_has_is_refused():
    with pytest.raises(ValueError, match='no map origin'):
        LocalFrame.through_point(OXFORD, (3e7, 0.0))


def test_x_is_east_and_y_is_north_in_ground_metres():
    frame = LocalFrame(*OXFORD)
    latitude_rad = math.radians(OXFORD[0])
    # Radii of curvature of the WGS84 ellipsoid: meridian M, prime vertical N.
    a_m, e2 = 6378137.0, 0.00669437999014
    w = math.sqrt(1 - e2 * math.sin(latitude_rad) ** 2)
    meridian_m, vertical_m = a_m * (1 - e2) / w**3, a_m / w
    step_deg = 1e-4
    north = frame.xy_from_latlon(OXFORD[0] + step_deg, OXFORD[1])
    east = frame.xy_from_latlon(OXFORD[0], OXFORD[1] + step_deg)
    step_rad = math.radians(step_deg)
    assert np.allclose(north, (0.0, meridian_m * step_rad), atol=1e-3)
    assert np.allclose(east, (vertical_m * math.cos(latitude_rad) * step_rad, 0.0), atol=1e-3)


@pytest.mark.parametrize('x_m, y_m', [(0.0, 0.0), (5000.0, 2000.0), (-20000.0, -9000.0)])
def test_convergence_is_the_numerical_bearing_of_the_y_axis(x_m, y_m):
    frame = LocalFrame(*OXFORD)
    latitude_deg, longitude_deg = frame.latlon_from_xy(x_m, y_m)
    ahead_latitude_deg, ahead_longitude_deg = frame.latlon_from_xy(x_m, y_m + 100.0)
    # Ground metres north and east of the step, by the local radii.
    latitude_rad = math.radians(latitude_deg)
    a_m, e2 = 6378137.0, 0.00669437999014
    w = math.sqrt(1 - e2 * math.sin(latitude_rad) ** 2)
    north_m = a_m * (1 - e2) / w**3 * math.radians(ahead_latitude_deg - latitude_deg)
    east_m = a_m / w * math.cos(latitude_rad) * math.radians(ahead_longitude_deg - longitude_deg)
    assert frame.convergence_rad(x_m, y_m) == pytest.approx(math.atan2(east_m, north_m), abs=1e-6)


def test_convergence_grows_east_of_the_origin_and_is_zero_on_its_meridian():
    frame = LocalFrame(*OXFORD)
    assert frame.convergence_rad(0.0, 3000.0) == pytest.approx(0.0, abs=1e-12)
    assert frame.convergence_rad(10000.0, 0.0) > 0.0 > frame.convergence_rad(-10000.0, 0.0)


def test_utm_north_at_oxford_differs_from_map_north_by_its_convergence():
    frame, utm = LocalFrame(*OXFORD), Proj('EPSG:32630')
    easting_m, northing_m = utm(OXFORD[1], OXFORD[0])
    ahead = utm(easting_m, northing_m + 100.0, inverse=True)
    x_m, y_m = frame.xy_from_latlon(ahead[1], ahead[0])
    assert math.degrees(math.atan2(x_m, y_m)) == pytest.approx(1.37, abs=0.005)
    factors = utm.get_factors(OXFORD[1], OXFORD[0])
    assert math.degrees(math.atan2(x_m, y_m)) == pytest.approx(
        factors.meridian_convergence, abs=1e-3)


def test_bearings_are_clockwise_from_true_north():
    frame = LocalFrame(*OXFORD)
    assert frame.yaw_from_bearing(0.0, 0.0, 0.0) == pytest.approx(math.pi / 2)
    assert frame.yaw_from_bearing(90.0, 0.0, 0.0) == pytest.approx(0.0)
    assert frame.yaw_from_bearing(200.0, 0.0, 0.0) == pytest.approx(math.radians(-110.0))


def test_a_bearing_away_from_the_origin_is_the_direction_one_moves_in():
    frame = LocalFrame(*OXFORD)
    x_m, y_m = 20000.0, 5000.0
    latitude_deg, longitude_deg = frame.latlon_from_xy(x_m, y_m)
    north_x_m, north_y_m = frame.xy_from_latlon(latitude_deg + 1e-3, longitude_deg)
    true_north_yaw_rad = math.atan2(north_y_m - y_m, north_x_m - x_m)
    assert frame.yaw_from_bearing(0.0, x_m, y_m) == pytest.approx(true_north_yaw_rad, abs=1e-6)
    assert abs(true_north_yaw_rad - math.pi / 2) > 1e-3
    for bearing_deg in (123.0, 359.0):
        assert wrap_angle(frame.yaw_from_bearing(bearing_deg, x_m, y_m) - (
            true_north_yaw_rad - math.radians(bearing_deg))) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize('origin', [(91.0, 0.0), (0.0, 181.0), (math.nan, 0.0)])
def test_an_origin_off_the_globe_is_an_error(origin):
    with pytest.raises(ValueError, match='map origin'):
        LocalFrame(*origin)


# --- grids --------------------------------------------------------------------------------------


def test_row_zero_is_north_and_column_zero_west():
    grid = MapGrid(rows=5, cols=7, cell_m=2.0, x0_m=100.0, y0_m=50.0)
    assert grid.xy_from_row_col(0, 0) == (100.0, 50.0)
    assert grid.xy_from_row_col(1, 3) == (106.0, 48.0)
    x_m, y_m = grid.cell_centres()
    assert np.allclose(x_m, 100.0 + 2.0 * np.arange(7))
    assert np.allclose(y_m, 50.0 - 2.0 * np.arange(5))


def test_cells_and_metres_are_inverse_to_each_other():
    grid = MapGrid(30, 20, 0.75, -12.5, 300.25)
    rows, cols = np.meshgrid(np.linspace(-2, 31, 12), np.linspace(-3, 22, 9))
    found = grid.row_col_from_xy(*grid.xy_from_row_col(rows, cols))
    assert np.allclose(found, (rows, cols))


def test_a_grid_around_a_point_has_it_in_its_middle_and_reaches_far_enough():
    grid = MapGrid.around(10.0, -4.0, half_width_m=15.0, cell_m=2.0)
    assert (grid.rows, grid.cols) == (17, 17)
    assert grid.xy_from_row_col(8, 8) == (10.0, -4.0)
    assert grid.xy_from_row_col(0, 0) == (-6.0, 12.0)


def test_a_crop_keeps_every_cell_where_it_was():
    grid = MapGrid(30, 20, 0.5, 7.0, 9.0)
    part = grid.crop(4, 6, 10, 8)
    assert (part.rows, part.cols) == (10, 8)
    assert part.xy_from_row_col(2, 3) == pytest.approx(grid.xy_from_row_col(6, 9))


def test_a_refined_grid_has_the_old_centres_among_its_own():
    grid = MapGrid(5, 4, 2.0, 7.0, 9.0)
    fine = grid.refine(4)
    assert (fine.rows, fine.cols, fine.cell_m) == (17, 13, 0.5)
    assert fine.xy_from_row_col(8, 12) == pytest.approx(grid.xy_from_row_col(2, 3))


def test_a_grid_contains_its_cells_to_their_edges():
    grid = MapGrid(3, 4, 2.0, 0.0, 0.0)
    assert grid.contains(-0.99, 0.99) and grid.contains(6.99, -4.99)
    assert not grid.contains(-1.01, 0.0) and not grid.contains(0.0, 1.01)
    assert not grid.contains(7.01, 0.0) and not grid.contains(0.0, -5.01)
