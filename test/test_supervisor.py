"""Every transition between trust, distrust and search, by heat maps whose evidence is known."""

import math

import numpy as np
import pytest
from test_evidence import heatmap

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    Heatmap,
    MatchErrors,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.matching.pose_search import RADIUS_M
from crossview_localizer.matching.supervisor import (
    MatchSupervisor,
    RETRY_S,
    SEARCH_AFTER_S,
    SEARCH_LIMIT_M,
    State,
)

START_NS = 10**18
RIGHT_M, WRONG_M = 0.0, 15.0    # where the heat maps have their peaks, off the pose


def at(time_s: float) -> int:
    return START_NS + round(time_s * 1e9)


def estimate(time_s, x_m=0.0, y_m=0.0, yaw_rad=0.0, sigma_m=1.0, yaw_sigma_rad=0.05):
    return PoseEstimate(at(time_s), Pose2D(x_m, y_m, yaw_rad),
                        np.diag([sigma_m**2, sigma_m**2, yaw_sigma_rad**2]))


def without_heading(time_s, x_m=0.0, y_m=0.0, sigma_m=10.0):
    return estimate(time_s, x_m, y_m, 2.0, sigma_m, 4.0)


class Vehicle:
    """Drives east at ``speed_mps`` with odometry at 10 Hz; images at 4 Hz say where it is."""

    def __init__(self, started=True, can_search=True, speed_mps=0.0):
        self.supervisor = MatchSupervisor(FilterConfig(), MatchErrors(), can_search)
        self.speed_mps, self.tick = speed_mps, 0
        self.supervisor.add_odometry(OdometrySample(at(0.0), Pose2D(0.0, 0.0, 0.0)))
        if started:
            self.supervisor.set_pose(estimate(0.0))

    @property
    def time_s(self) -> float:
        return self.tick / 20

    @property
    def state(self) -> State:
        return self.supervisor.state

    def drive(self, duration_s: float, off_m: float | None = None) -> list[State]:
        """The states after each image; without an offset no image is matched."""
        states = []
        for _ in range(round(duration_s * 20)):
            self.tick += 1
            if self.tick % 2 == 0:
                pose = Pose2D(self.speed_mps * self.time_s, 0.0, 0.0)
                self.supervisor.add_odometry(OdometrySample(at(self.time_s), pose))
            if off_m is not None and self.tick % 5 == 0:
                self.match(off_m)
                states.append(self.state)
        return states

    def match(self, off_m: float):
        """An image whose heat map has its peak north of the pose that it was matched at."""
        tried = self.supervisor.pose_for_matching(at(self.time_s))
        x_m, y_m = tried.pose.x_m, tried.pose.y_m
        found = heatmap(x_m, y_m + off_m, 0.7, at(self.time_s), (x_m, y_m))
        self.supervisor.weigh(found, tried)
        match = PoseEstimate(at(self.time_s), Pose2D(x_m, y_m + off_m, 0.0),
                             np.diag([0.5, 0.5, np.inf]))
        return self.supervisor.add_match(match, '')

    def search_step(self, peak_m=None):
        """Heat maps of the search: flat, or with a peak at a place under headings to the east."""
        hypotheses = self.supervisor.next_search_step(at(self.time_s))
        if hypotheses is None:
            return None
        x_m, y_m, half_width_m = hypotheses.area()
        grid = MapGrid.around(x_m, y_m, half_width_m, 2.0)
        xs_m, ys_m = grid.cell_centres()
        flat = np.full((grid.rows, grid.cols), -math.log(grid.rows * grid.cols))
        heatmaps = [Heatmap(at(self.time_s), grid, flat)] * len(hypotheses.yaws_rad)
        if peak_m is not None:
            log_p = -0.5 * ((xs_m - peak_m[0])**2 + (ys_m[:, None] - peak_m[1])**2) / 3.0**2
            peak = Heatmap(at(self.time_s), grid, log_p - np.log(np.exp(log_p).sum()))
            heatmaps = [peak if abs(yaw_rad) < 0.2 else part
                        for yaw_rad, part in zip(hypotheses.yaws_rad, heatmaps)]
        self.supervisor.finish_search_step(hypotheses, heatmaps, at(self.time_s))
        return half_width_m

    def search(self, distance_m: float, peak_y_m: float | None = None) -> list[float]:
        """Search steps every 5 m; the half widths of what was searched."""
        half_widths_m = []
        for _ in range(round(distance_m / 5.0)):
            self.drive(5.0 / self.speed_mps)
            place = None if peak_y_m is None else (self.speed_mps * self.time_s, peak_y_m)
            half_widths_m.append(self.search_step(place))
        return [width for width in half_widths_m if width is not None]


def distrusting(**kwargs) -> Vehicle:
    vehicle = Vehicle(**kwargs)
    vehicle.drive(3.0, WRONG_M)
    assert vehicle.state is State.DISTRUSTED
    return vehicle


def searching(**kwargs) -> Vehicle:
    vehicle = distrusting(**kwargs)
    vehicle.supervisor.search_around(estimate(vehicle.time_s, sigma_m=30.0))
    assert vehicle.state is State.SEARCHING
    return vehicle


def lost(**kwargs) -> Vehicle:
    vehicle = Vehicle(started=False, **kwargs)
    vehicle.supervisor.set_pose(without_heading(0.0))
    assert vehicle.state is State.LOST
    return vehicle


# --- trust


def test_right_images_stay_trusted_through_a_lorry_of_two_seconds():
    vehicle = Vehicle()
    states = [state for duration_s, off_m in ((8.0, RIGHT_M), (2.0, WRONG_M), (5.0, RIGHT_M))
              for state in vehicle.drive(duration_s, off_m)]
    assert set(states) == {State.TRUSTED}


def test_images_of_another_place_are_distrusted_from_the_first_second_on():
    states = Vehicle().drive(10.0, WRONG_M)
    assert states[:3] == [State.TRUSTED] * 3 and set(states[5:]) == {State.DISTRUSTED}


def test_right_images_that_turn_wrong_are_distrusted_and_trusted_again_when_right():
    vehicle = Vehicle()
    vehicle.drive(10.0, RIGHT_M)
    assert vehicle.drive(8.0, WRONG_M)[-1] is State.DISTRUSTED
    assert vehicle.drive(8.0, RIGHT_M)[-1] is State.TRUSTED


def test_images_that_say_nothing_take_no_trust_away():
    vehicle = Vehicle()
    vehicle.drive(5.0, RIGHT_M)
    flat = heatmap(0.0, 0.0, math.inf)
    for second in range(6, 400):
        vehicle.supervisor.weigh(
            Heatmap(at(second), flat.grid, flat.log_probability), estimate(second))
    assert vehicle.state is State.TRUSTED


def test_a_first_judgement_needs_more_evidence_than_a_later_one():
    """Evidence between both limits: not enough to be trusted, too much to be distrusted."""
    weak = heatmap(0.0, 0.0, 16.0)

    def weigh_weak(vehicle, begin_s):
        for k in range(8):
            vehicle.supervisor.weigh(Heatmap(
                at(begin_s + k / 4), weak.grid, weak.log_probability), estimate(begin_s + k / 4))
        return vehicle.state

    assert weigh_weak(Vehicle(), 0.25) is State.DISTRUSTED
    proven = Vehicle()
    proven.drive(5.0, RIGHT_M)
    assert weigh_weak(proven, 5.25) is State.TRUSTED


def test_a_street_that_looks_alike_for_ten_seconds_gives_a_wrong_pose_no_trust():
    """Its mean evidence is 2.7 nats, enough for a pose that nothing has spoken against."""
    alike = heatmap(0.0, 0.0, 4.0)

    def weigh_alike(vehicle, duration_s):
        for _ in range(round(4 * duration_s)):
            vehicle.tick += 5
            stamp_ns = at(vehicle.time_s)
            vehicle.supervisor.weigh(
                Heatmap(stamp_ns, alike.grid, alike.log_probability), estimate(vehicle.time_s))
        return vehicle.state

    assert weigh_alike(Vehicle(), 3.0) is State.TRUSTED
    vehicle = distrusting()
    assert weigh_alike(vehicle, 10.0) is State.DISTRUSTED
    assert 'best evidence' in vehicle.supervisor.add_match(None, '').reason
    assert weigh_alike(vehicle, 20.0) is State.TRUSTED


def test_a_pose_that_is_set_is_not_judged_by_the_images_of_the_pose_before():
    vehicle = distrusting()
    vehicle.supervisor.set_pose(estimate(vehicle.time_s))
    assert vehicle.drive(2.0, RIGHT_M)[-1] is State.TRUSTED


def test_while_distrusted_the_published_pose_is_that_without_matches():
    vehicle, without = Vehicle(), PoseFilter(FilterConfig())
    without.add_odometry(OdometrySample(at(0.0), Pose2D(0.0, 0.0, 0.0)))
    without.set_pose(estimate(0.0))
    vehicle.drive(8.0, WRONG_M)
    for tick in range(2, vehicle.tick + 1, 2):
        without.add_odometry(OdometrySample(at(tick / 20), Pose2D(0.0, 0.0, 0.0)))
    published, alone = (pose_filter.estimate_at(at(vehicle.time_s))
                        for pose_filter in (vehicle.supervisor.published, without))
    assert published.pose == alone.pose
    assert vehicle.match(WRONG_M).outcome is Outcome.DISTRUSTED


def test_distrusted_matches_are_tried_again_from_the_pose_without_them():
    vehicle = distrusting()
    # Matches 1 m north of wherever they are tried pull that pose away.
    gaps_m = []
    for _ in range(round(RETRY_S * 4)):
        vehicle.drive(0.25)
        tried = vehicle.supervisor.pose_for_matching(at(vehicle.time_s))
        published = vehicle.supervisor.published.estimate_at(at(vehicle.time_s))
        gaps_m.append(abs(tried.pose.y_m - published.pose.y_m))
        flat = heatmap(tried.pose.x_m, tried.pose.y_m + 15.0, 0.7, at(vehicle.time_s))
        vehicle.supervisor.weigh(flat, tried)
        vehicle.supervisor.add_match(PoseEstimate(
            at(vehicle.time_s), Pose2D(0.0, tried.pose.y_m + 1.0, 0.0),
            np.diag([0.5, 0.5, np.inf])), '')
    again = next(k for k in range(1, len(gaps_m)) if gaps_m[k] < gaps_m[k - 1])
    assert gaps_m[again] == 0.0 and gaps_m[again - 1] > 0.5
    assert again / 4 == pytest.approx(RETRY_S - 2.0, abs=1.0)


def test_a_pose_beyond_doubt_is_what_a_distrusted_localizer_falls_back_on():
    vehicle = Vehicle()
    vehicle.supervisor.set_pose(estimate(0.0, sigma_m=3.0))
    for _ in range(round(12.0 * 4)):  # right matches, 2 m north of where it was set
        vehicle.drive(0.25)
        tried = vehicle.supervisor.pose_for_matching(at(vehicle.time_s))
        vehicle.supervisor.weigh(heatmap(0.0, 2.0, 0.7, at(vehicle.time_s)), tried)
        vehicle.supervisor.add_match(PoseEstimate(
            at(vehicle.time_s), Pose2D(0.0, 2.0, 0.0), np.diag([0.5, 0.5, np.inf])), '')
    vehicle.drive(8.0, WRONG_M)
    assert vehicle.state is State.DISTRUSTED
    fallen_back = vehicle.supervisor.published.estimate_at(at(vehicle.time_s))
    assert fallen_back.pose.y_m == pytest.approx(2.0, abs=0.3)


def test_without_a_matcher_there_is_one_filter():
    supervisor = MatchSupervisor(FilterConfig(), None, False)
    supervisor.set_pose(estimate(0.0))
    assert supervisor.add_odometry(OdometrySample(at(0.1), Pose2D(0.0, 0.0, 0.0))).outcome is (
        Outcome.USED)
    assert supervisor.set_pose(without_heading(0.1)).outcome is Outcome.INVALID


# --- the beginning of a search


def test_after_long_distrust_the_pose_is_searched_for():
    vehicle = distrusting()
    assert vehicle.drive(SEARCH_AFTER_S - 5.0, WRONG_M)[-1] is State.DISTRUSTED
    assert vehicle.drive(6.0, WRONG_M)[-1] is State.SEARCHING


def test_with_a_matcher_that_cannot_search_there_is_no_search():
    vehicle = distrusting(can_search=False)
    assert vehicle.drive(SEARCH_AFTER_S + 5.0, WRONG_M)[-1] is State.DISTRUSTED
    vehicle.supervisor.search_around(estimate(vehicle.time_s, sigma_m=30.0))
    assert vehicle.state is State.DISTRUSTED
    assert vehicle.supervisor.set_pose(without_heading(0.0)).outcome is Outcome.INVALID


def test_a_prior_that_is_too_wide_is_searched_within_its_three_sigmas():
    vehicle = Vehicle()
    vehicle.supervisor.search_around(estimate(0.0, sigma_m=20.0))
    assert vehicle.state is State.LOST
    assert vehicle.search_step() == pytest.approx(60.0, abs=2.1)
    vehicle = distrusting()
    vehicle.supervisor.search_around(estimate(vehicle.time_s, sigma_m=20.0))
    assert vehicle.state is State.SEARCHING
    assert vehicle.search_step() == pytest.approx(RADIUS_M, abs=2.1)


def test_a_search_for_a_prior_that_is_too_wide_goes_on_while_it_stays_so():
    vehicle = Vehicle(speed_mps=10.0)
    vehicle.supervisor.search_around(estimate(0.0, sigma_m=20.0))
    vehicle.search(20.0)
    before = vehicle.supervisor.search_text
    vehicle.supervisor.search_around(estimate(vehicle.time_s, sigma_m=20.0))
    assert vehicle.supervisor.search_text == before


def test_a_pose_without_heading_is_reported_as_searched_for():
    vehicle = Vehicle(started=False)
    update = vehicle.supervisor.set_pose(without_heading(0.0, sigma_m=10.0))
    assert update.outcome is Outcome.SEARCHING and 'within 30 m' in update.reason
    assert vehicle.state is State.LOST and 'searched for' in vehicle.supervisor.search_text


def test_a_second_pose_without_heading_begins_the_search_again_about_itself():
    vehicle = lost(speed_mps=10.0)
    vehicle.search(20.0)
    assert vehicle.supervisor.set_pose(
        without_heading(vehicle.time_s, 500.0, 300.0)).outcome is Outcome.SEARCHING
    hypotheses = vehicle.supervisor.next_search_step(at(vehicle.time_s))
    assert hypotheses.area()[:2] == pytest.approx((500.0, 300.0))


def test_a_pose_without_heading_makes_a_running_localizer_prove_its_own_again():
    vehicle = Vehicle()
    vehicle.drive(5.0, RIGHT_M)
    vehicle.supervisor.set_pose(without_heading(vehicle.time_s, 50.0, 50.0))
    assert vehicle.state is State.SEARCHING
    states = vehicle.drive(3.0, RIGHT_M)
    assert states[0] is State.SEARCHING and states[-1] is State.TRUSTED


@pytest.mark.parametrize('variance_m2', [math.nan, math.inf, 0.0])
def test_a_pose_without_a_valid_covariance_is_searched_within_the_largest_radius(variance_m2):
    vehicle = Vehicle(started=False)
    update = vehicle.supervisor.set_pose(PoseEstimate(
        at(0.0), Pose2D(0.0, 0.0, 0.0), np.diag([variance_m2, variance_m2, math.inf])))
    assert update.outcome is Outcome.SEARCHING and f'{RADIUS_M:.0f} m' in update.reason


# --- the end of a search


@pytest.mark.parametrize('begun, ended', [(lost, State.TRUSTED), (searching, State.DISTRUSTED)])
def test_a_pose_with_heading_ends_the_search(begun, ended):
    vehicle = begun()
    assert vehicle.supervisor.set_pose(estimate(vehicle.time_s)).outcome is Outcome.USED
    assert vehicle.state is ended and vehicle.supervisor.search_text == ''


def test_after_a_pose_was_set_the_next_search_has_to_wait_again():
    vehicle = distrusting()
    vehicle.drive(SEARCH_AFTER_S + 1.0, WRONG_M)
    assert vehicle.state is State.SEARCHING
    vehicle.supervisor.set_pose(estimate(vehicle.time_s))
    assert vehicle.drive(5.0, WRONG_M)[-1] is State.DISTRUSTED


@pytest.mark.parametrize('begun, ended', [(lost, State.TRUSTED), (searching, State.DISTRUSTED)])
def test_a_matcher_that_fails_ends_the_search(begun, ended):
    vehicle = begun()
    vehicle.supervisor.allow_search(False)
    assert vehicle.state is ended and vehicle.supervisor.search_text == ''


def test_trust_ends_the_search():
    vehicle = searching()
    assert vehicle.drive(8.0, RIGHT_M)[-1] is State.TRUSTED
    assert vehicle.supervisor.search_text == ''


@pytest.mark.parametrize('off_m, expected', [
    (RIGHT_M, State.TRUSTED), (WRONG_M, State.SEARCHING)])
def test_a_search_for_a_wide_prior_ends_with_the_next_match_unless_it_costs_the_trust(
    off_m, expected,
):
    def trusted_for_5_s():
        vehicle = Vehicle()
        vehicle.drive(5.0, RIGHT_M)
        return vehicle

    last_trusted = trusted_for_5_s().drive(10.0, WRONG_M).index(State.DISTRUSTED)
    vehicle = trusted_for_5_s()
    vehicle.drive(last_trusted / 4, WRONG_M)
    vehicle.supervisor.search_around(estimate(vehicle.time_s, sigma_m=20.0))
    assert vehicle.state is State.LOST
    assert vehicle.drive(0.25, off_m) == [expected]


def test_the_winner_before_a_start_is_published_and_has_to_prove_itself():
    vehicle = lost(speed_mps=10.0)
    vehicle.search(80.0, peak_y_m=5.0)
    assert vehicle.state is State.DISTRUSTED and vehicle.supervisor.search_text == ''
    pose = vehicle.supervisor.published.estimate_at(at(vehicle.time_s)).pose
    assert pose.y_m == pytest.approx(5.0, abs=2.0)
    assert vehicle.drive(3.0, RIGHT_M)[-1] is State.TRUSTED


def test_the_winner_of_a_distrusted_localizer_is_only_tried():
    vehicle = searching(speed_mps=10.0)
    vehicle.search(80.0, peak_y_m=50.0)
    assert vehicle.state is State.DISTRUSTED
    published = vehicle.supervisor.published.estimate_at(at(vehicle.time_s))
    tried = vehicle.supervisor.pose_for_matching(at(vehicle.time_s))
    assert abs(published.pose.y_m) < 5.0 and tried.pose.y_m == pytest.approx(50.0, abs=5.0)
    assert vehicle.drive(3.0, RIGHT_M)[-1] is State.TRUSTED
    assert vehicle.supervisor.published.estimate_at(at(vehicle.time_s)).pose.y_m == pytest.approx(
        50.0, abs=5.0)


def test_heat_maps_for_a_search_that_was_begun_again_meanwhile_are_ignored():
    vehicle = lost()
    before = vehicle.supervisor.next_search_step(at(vehicle.time_s))
    vehicle.supervisor.set_pose(without_heading(vehicle.time_s, 500.0))
    vehicle.supervisor.finish_search_step(before, [None] * len(before.yaws_rad), at(0.0))
    after = vehicle.supervisor.next_search_step(at(vehicle.time_s))
    assert after is not before and after.area()[0] == pytest.approx(500.0)


# --- the limits of a search


def test_a_search_without_a_pose_ends_after_its_limit():
    vehicle = lost(speed_mps=20.0)
    half_widths_m = vehicle.search(1000.0)
    assert max(half_widths_m) < RADIUS_M + SEARCH_LIMIT_M
    assert vehicle.state is State.TRUSTED
    assert vehicle.supervisor.search_text == ''


def test_a_search_with_a_pose_begins_again_about_it_after_its_limit():
    vehicle = searching(speed_mps=20.0)
    half_widths_m = vehicle.search(SEARCH_LIMIT_M + 20.0)
    assert max(half_widths_m) < RADIUS_M + SEARCH_LIMIT_M
    assert half_widths_m[-1] < RADIUS_M + 30.0 and vehicle.state is State.SEARCHING


def test_a_jump_of_the_odometry_is_no_way_driven():
    vehicle = lost(speed_mps=10.0)
    vehicle.search(20.0)
    supervisor = vehicle.supervisor
    for k in range(1, 12):   # 5 km at once, then on as before
        supervisor.add_odometry(OdometrySample(
            at(vehicle.time_s + k / 10), Pose2D(5000.0 + 10.0 * k / 10, 0.0, 0.0)))
    vehicle.tick += 22
    assert vehicle.search_step() < 30.0 + 20.0 + 20.0
    assert vehicle.state is State.LOST


def test_a_long_way_between_two_images_is_no_window_of_that_size():
    vehicle = lost(speed_mps=20.0)
    vehicle.search(20.0)
    vehicle.drive(100.0)
    assert vehicle.search_step() is None
    assert vehicle.state is State.TRUSTED


def test_a_search_uses_the_odometry_of_the_image_and_not_the_newest():
    """At 15 m/s an image that is 0.1 s late would be searched 1.5 m too far on."""
    vehicle = lost(speed_mps=15.0)
    vehicle.search(10.0)
    areas = []
    for late_s in (0.0, 0.1):
        other = lost(speed_mps=15.0)
        other.drive(1.0)
        other.search_step()
        other.drive(1.0 + late_s)
        stamp_ns = at(2.0)
        areas.append(other.supervisor.next_search_step(stamp_ns).area())
    assert areas[0] == pytest.approx(areas[1])
