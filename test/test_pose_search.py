"""The search among many hypotheses, on heat maps whose answer is known."""

import math

import numpy as np
import pytest

from crossview_localizer.datatypes import Heatmap
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle
from crossview_localizer.matching.pose_search import (
    PoseHypotheses,
    PoseSearch,
    STEP_M,
    STEP_S,
    WIN_DISTANCE_M,
)

HEADINGS = 24
GRID = MapGrid.around(0.0, 0.0, 250.0, 2.0)


def heatmap(*peaks_m, sigma_m=4.0) -> Heatmap:
    """Equal Gaussian peaks at positions in ``map``; flat without any."""
    xs_m, ys_m = GRID.cell_centres()
    density = np.full((GRID.rows, GRID.cols), 1e-6)
    for x_m, y_m in peaks_m:
        density += np.exp(
            -((xs_m[None, :] - x_m) ** 2 + (ys_m[:, None] - y_m) ** 2) / (2 * sigma_m**2))
    return Heatmap(1, GRID, np.log(density / density.sum()))


def drive(hypotheses, truth, steps, increment, seen_rad=0.5, aliases=()):
    """Frames after each increment, with a peak on the truth where the heading is nearly right."""
    for _ in range(steps):
        truth = truth @ increment
        hypotheses.move(increment)
        peaks_m = [(truth.x_m, truth.y_m)]
        peaks_m += [(truth.x_m + x_m, truth.y_m + y_m) for x_m, y_m in aliases]
        seen, unseen = heatmap(*peaks_m), heatmap()
        hypotheses.update([
            seen if abs(wrap_angle(yaw_rad - truth.yaw_rad)) < seen_rad else unseen
            for yaw_rad in hypotheses.yaws_rad])
    return truth


def test_the_true_pose_wins_from_a_start_without_heading():
    hypotheses = PoseHypotheses(10.0, -20.0, 100.0, HEADINGS)
    truth = drive(hypotheses, Pose2D(-40.0, 30.0, 2.2), 8, Pose2D(6.0, 0.0, 0.08), 0.3)
    found = hypotheses.winner(7)
    error = found.pose.as_array() - truth.as_array()
    assert found.stamp_ns == 7
    assert np.linalg.norm(error[:2]) < 3.0
    assert abs(wrap_angle(error[2])) < math.radians(10.0)
    assert error @ np.linalg.solve(found.covariance, error) < 7.8


def test_places_that_look_alike_all_along_do_not_win():
    hypotheses = PoseHypotheses(0.0, 0.0, 100.0, HEADINGS)
    drive(hypotheses, Pose2D(-40.0, 0.0, 0.0), 12, Pose2D(6.0, 0.0, 0.0), aliases=[(0.0, 40.0)])
    assert hypotheses.winner(1) is None


def test_places_that_look_alike_for_a_while_are_told_apart_afterwards():
    hypotheses = PoseHypotheses(0.0, 0.0, 100.0, HEADINGS)
    truth = drive(
        hypotheses, Pose2D(-40.0, 0.0, 0.0), 8, Pose2D(6.0, 0.0, 0.0), aliases=[(0.0, 40.0)])
    assert hypotheses.winner(1) is None
    truth = drive(hypotheses, truth, 8, Pose2D(6.0, 0.0, 0.0))
    assert abs(hypotheses.winner(1).pose.y_m) < 3.0


def test_a_pose_that_has_just_come_to_lead_has_not_won_yet():
    hypotheses = PoseHypotheses(0.0, 0.0, 60.0, HEADINGS)
    truth = drive(hypotheses, Pose2D(-40.0, 0.0, 0.0), 1, Pose2D(0.0, 0.0, 0.0), 0.2)
    truth = drive(hypotheses, truth, 1, Pose2D(WIN_DISTANCE_M - 1.0, 0.0, 0.0), 0.2)
    truth = drive(hypotheses, truth, 1, Pose2D(WIN_DISTANCE_M - 1.0, 0.0, 0.0), 0.2)
    assert hypotheses.winner(1) is None
    drive(hypotheses, truth, 1, Pose2D(WIN_DISTANCE_M - 1.0, 0.0, 0.0), 0.2)
    assert hypotheses.winner(1) is not None


def test_flat_heat_maps_and_none_leave_everything_open():
    hypotheses = PoseHypotheses(0.0, 0.0, 60.0, HEADINGS)
    for step in range(10):
        hypotheses.move(Pose2D(6.0, 0.0, 0.0))
        hypotheses.update([heatmap() if step % 2 else None] * HEADINGS)
    assert hypotheses.winner(1) is None


def test_a_hundred_frames_at_a_standstill_count_as_one():
    standing, once = (PoseHypotheses(0.0, 0.0, 60.0, HEADINGS) for _ in range(2))
    for hypotheses, frames in ((standing, 100), (once, 1)):
        for _ in range(frames):
            hypotheses.update([heatmap((10.0, 0.0))] * HEADINGS)
    later = [heatmap((16.0, 0.0))] * HEADINGS
    for hypotheses in (standing, once):
        hypotheses.move(Pose2D(15.0, 0.0, 0.0))
        hypotheses.update(later)
        assert hypotheses.winner(1) is None
    assert standing.area() == once.area()


def test_the_square_that_holds_all_hypotheses_moves_and_grows_with_the_drive():
    hypotheses = PoseHypotheses(5.0, 5.0, 50.0, HEADINGS)
    x_m, y_m, half_m = hypotheses.area()
    assert (x_m, y_m) == pytest.approx((5.0, 5.0)) and half_m >= 50.0
    hypotheses.move(Pose2D(20.0, 0.0, 0.0))
    assert hypotheses.area()[2] == pytest.approx(half_m + 20.0, abs=0.5)


def test_heat_maps_of_another_number_of_headings_are_refused():
    hypotheses = PoseHypotheses(0.0, 0.0, 50.0, HEADINGS)
    with pytest.raises(ValueError, match='3 heat maps; expected 24'):
        hypotheses.update([None] * 3)


def test_a_radius_below_one_cell_is_refused():
    with pytest.raises(ValueError, match='radius'):
        PoseHypotheses(0.0, 0.0, 0.5, HEADINGS)


def test_a_frame_too_near_the_last_in_place_or_time_is_left_out_and_its_way_counted_later():
    search = PoseSearch(0.0, 0.0, 50.0)
    second_ns = round(STEP_S * 1e9)
    assert search.advance(0, Pose2D(0.0, 0.0, 0.0))
    assert not search.advance(2 * second_ns, Pose2D(STEP_M - 1.0, 0.0, 0.0))
    assert not search.advance(second_ns // 2, Pose2D(STEP_M + 1.0, 0.0, 0.0))
    assert search.advance(3 * second_ns, Pose2D(STEP_M + 1.0, 0.0, 0.0))
    assert search.driven_m == pytest.approx(STEP_M + 1.0)
