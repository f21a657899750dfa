"""The pipeline on made-up sensors: what becomes of images, and of a reset while one is matched."""

import math
from threading import Event, Thread
from types import SimpleNamespace

import numpy as np
import pytest
from test_evidence import heatmap, START_NS

from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import (
    CameraImage,
    GnssFix,
    Heatmap,
    MatchErrors,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.localizer import Localizer

SPEED_MPS = 8.0


class FakeMatcher:
    """A heat map about the truth, or off it by what ``off_m`` (x, y) says at each call.

    ``entered`` is set while an image is embedded, which ends once ``gate`` is set.
    """

    margin_m = 0.0
    needs_heading = False
    errors = MatchErrors()

    def __init__(self, off_m=lambda call: (0.0, 0.0)):
        self._off_m = off_m
        self.calls = 0
        self.entered, self.gate = Event(), Event()
        self.gate.set()

    def embed(self, image, yaw_rad, pitch_rad=0.0):
        self.entered.set()
        assert self.gate.wait(10.0)
        return image.stamp_ns

    def match(self, ground, window, assumed, config):
        true_x_m = SPEED_MPS * (ground - START_NS) * 1e-9
        dx_m, dy_m = self._off_m(self.calls)
        self.calls += 1
        return heatmap(true_x_m + dx_m, dy_m, 0.7, ground,
                       (assumed.pose.x_m, assumed.pose.y_m))

    def estimate(self, found, assumed):
        row, col = np.unravel_index(found.log_probability.argmax(), found.log_probability.shape)
        x_m, y_m = found.grid.xy_from_row_col(row, col)
        covariance = np.diag([0.5, 0.5, np.inf])
        return PoseEstimate(
            found.stamp_ns, Pose2D(float(x_m), float(y_m), 0.0), covariance), ''

    def search_heatmaps(self, ground, embedding_map, yaws_rad, x_m, y_m, half_width_m):
        """The truth under headings near east, nothing under the others."""
        true_x_m = SPEED_MPS * (ground - START_NS) * 1e-9
        grid = MapGrid.around(x_m, y_m, half_width_m, 2.0)
        xs_m, ys_m = grid.cell_centres()
        log_p = -0.5 * ((xs_m[None] - true_x_m)**2 + ys_m[:, None]**2) / 3.0**2
        flat = np.full_like(log_p, -20.0)
        joint = np.stack([log_p if abs(yaw_rad) < 0.2 else flat for yaw_rad in yaws_rad])
        joint += math.log(len(joint)) - np.log(np.exp(joint).sum())
        return [Heatmap(ground, grid, part) for part in joint]


WHOLE_MAP = SimpleNamespace(window=lambda *_: SimpleNamespace(coverage=1.0))


def drive(localizer: Localizer, begin_s: float, end_s: float, rng, gnss=True) -> list:
    """Eastward at SPEED_MPS: odometry at 10 Hz, fixes and images at 2 Hz."""
    results = []
    for k in range(round(begin_s * 10), round(end_s * 10)):
        stamp_ns, x_m = START_NS + k * 10**8, SPEED_MPS * k / 10
        localizer.add_odometry(OdometrySample(stamp_ns, Pose2D(x_m, 0.0, 0.0)))
        if k % 5 == 0:
            dx_m, dy_m = rng.standard_normal(2)
            if gnss:
                localizer.add_gnss(GnssFix(stamp_ns, x_m + dx_m, dy_m, np.eye(2)))
            results.append(localizer.process_image(CameraImage(stamp_ns, None, None)))
    return results


def localizer_with(off_m=lambda call: (0.0, 0.0)) -> Localizer:
    matcher = None if off_m is None else FakeMatcher(off_m)
    localizer = Localizer(LocalizerConfig(), LocalFrame(51.0, -1.0), WHOLE_MAP, matcher)
    localizer.set_pose(PoseEstimate(START_NS - 1, Pose2D(0.0, 0.0, 0.0), np.diag([4, 4, 0.01])))
    return localizer


def test_with_wrong_images_the_pose_is_as_without_images():
    wrong_m = np.random.default_rng(1).uniform(-18.0, 18.0, (200, 2))
    wrong = drive(localizer_with(lambda k: wrong_m[k]), 0.0, 30.0, np.random.default_rng(2))
    without = drive(localizer_with(None), 0.0, 30.0, np.random.default_rng(2))
    assert {result.outcome for result in wrong[5:]} == {Outcome.DISTRUSTED}
    assert 'evidence' in wrong[-1].reason
    for one, other in zip(wrong[5:], without[5:]):
        assert one.posterior.pose == other.posterior.pose


def test_the_network_runs_before_the_measurements_of_its_image_come_and_the_poses_stay():
    expected, localizer = localizer_with(), localizer_with()
    drive(expected, 0.0, 2.0, np.random.default_rng(2))
    drive(localizer, 0.0, 2.0, np.random.default_rng(2))
    stamp_ns = START_NS + 2 * 10**9
    sample = OdometrySample(stamp_ns, Pose2D(2 * SPEED_MPS, 0.0, 0.0))

    def measurements_come() -> bool:
        assert localizer.matcher.entered.is_set()
        localizer.add_odometry(sample)
        return True

    localizer.matcher.entered.clear()
    found = localizer.process_image(CameraImage(stamp_ns, None, None), measurements_come)
    expected.add_odometry(sample)
    wanted = expected.process_image(CameraImage(stamp_ns, None, None))
    assert found.outcome is Outcome.USED and found.posterior.pose == wanted.posterior.pose


def test_an_image_that_is_no_longer_wanted_changes_nothing():
    localizer = localizer_with()
    drive(localizer, 0.0, 2.0, np.random.default_rng(2))
    before = localizer.estimate_at(START_NS + 2 * 10**9)
    found = localizer.process_image(
        CameraImage(START_NS + 2 * 10**9, None, None), lambda: False)
    assert found.outcome is Outcome.SUPERSEDED
    assert localizer.estimate_at(START_NS + 2 * 10**9).pose == before.pose


def test_right_images_that_turn_wrong_and_right_again_are_distrusted_in_between():
    wrong_m = np.random.default_rng(1).uniform(-18.0, 18.0, (200, 2))
    localizer = localizer_with(lambda k: wrong_m[k] if 40 <= k < 120 else (0.0, 0.0))
    results = drive(localizer, 0.0, 90.0, np.random.default_rng(2))
    outcomes = [result.outcome for result in results]
    assert Outcome.DISTRUSTED not in outcomes[:40]
    assert outcomes[70:120].count(Outcome.DISTRUSTED) == 50
    assert Outcome.DISTRUSTED not in outcomes[150:]
    # It falls back on what right images had told, and odometry since.
    errors_m = [abs(result.posterior.pose.y_m) for result in results]
    assert max(errors_m[70:120]) < 1.5 and max(errors_m[150:]) < 0.5


def test_a_pose_without_a_heading_is_searched_for_and_found():
    localizer = Localizer(LocalizerConfig(), LocalFrame(51.0, -1.0), WHOLE_MAP, FakeMatcher())
    localizer.add_odometry(OdometrySample(START_NS - 1, Pose2D(0.0, 0.0, 0.0)))
    update = localizer.set_pose(PoseEstimate(
        START_NS, Pose2D(40.0, -30.0, 2.0), np.diag([900.0, 900.0, 10.0])))
    assert update.outcome is Outcome.SEARCHING
    results = drive(localizer, 0.1, 20.0, np.random.default_rng(2), gnss=False)
    assert results[-1].outcome is Outcome.USED
    pose = results[-1].posterior.pose
    assert abs(pose.x_m - SPEED_MPS * 19.5) < 1.0 and abs(pose.y_m) < 1.0


def test_a_wrong_lock_is_noticed_and_the_right_place_found_again():
    localizer = localizer_with()
    localizer.set_pose(PoseEstimate(
        START_NS, Pose2D(0.0, 50.0, 0.0), np.diag([1.0, 1.0, 0.001])))
    results = drive(localizer, 0.0, 60.0, np.random.default_rng(2), gnss=False)
    assert results[10].outcome is Outcome.DISTRUSTED
    assert results[-1].outcome is Outcome.USED
    assert abs(results[-1].posterior.pose.y_m) < 1.0


def image_at(time_s: float) -> CameraImage:
    return CameraImage(START_NS + round(time_s * 1e9), None, None)


def processed_while(localizer: Localizer, image: CameraImage, meanwhile):
    """What an image gives that is in the matcher while something else is done."""
    matcher, found = localizer.matcher, []
    matcher.entered.clear()
    matcher.gate.clear()
    thread = Thread(target=lambda: found.append(localizer.process_image(image)))
    thread.start()
    assert matcher.entered.wait(10.0)
    meanwhile()
    matcher.gate.set()
    thread.join(10.0)
    return found[0]


def test_an_image_in_the_matcher_during_a_reset_changes_nothing_of_the_new_state():
    localizer = localizer_with()
    drive(localizer, 0.0, 5.0, np.random.default_rng(2))
    result = processed_while(localizer, image_at(4.95), localizer.reset)
    assert result.outcome is Outcome.SUPERSEDED
    assert result.posterior is result.prior is result.match is None
    assert not localizer.filter.started
    assert localizer.process_image(image_at(5.0)).outcome is Outcome.NOT_STARTED


def test_an_image_in_the_matcher_during_a_reset_does_not_go_on_with_the_old_search():
    localizer = Localizer(LocalizerConfig(), LocalFrame(51.0, -1.0), WHOLE_MAP, FakeMatcher())
    localizer.add_odometry(OdometrySample(START_NS, Pose2D(0.0, 0.0, 0.0)))
    localizer.set_pose(PoseEstimate(START_NS, Pose2D(0.0, 0.0, 0.0), np.diag([99.0, 99.0, 10.0])))
    result = processed_while(localizer, image_at(0.05), localizer.reset)
    assert 'searched' in result.reason
    assert localizer.process_image(image_at(0.1)).reason == Outcome.NOT_STARTED.value


def test_an_image_in_the_matcher_while_a_pose_is_set_does_not_move_it():
    localizer = localizer_with()
    drive(localizer, 0.0, 5.0, np.random.default_rng(2))
    there = PoseEstimate(START_NS + 4_900_000_000, Pose2D(500.0, 500.0, 1.0), np.eye(3) * 0.01)
    result = processed_while(localizer, image_at(4.9), lambda: localizer.set_pose(there))
    assert result.outcome is Outcome.SUPERSEDED and result.posterior is None
    assert localizer.estimate_at(there.stamp_ns).pose == there.pose


def test_a_heading_that_is_too_uncertain_is_searched_for_and_not_matched():
    localizer = localizer_with()
    localizer.set_pose(PoseEstimate(START_NS, Pose2D(0.0, 0.0, 0.0), np.diag([1.0, 1.0, 0.1])))
    localizer.add_odometry(OdometrySample(START_NS, Pose2D(0.0, 0.0, 0.0)))
    result = localizer.process_image(image_at(0.0))
    assert result.outcome is Outcome.PRIOR_TOO_WIDE and 'headings' in result.reason
    assert result.heatmap is None


@pytest.mark.parametrize('yaw_sigma_rad', [0.05, 0.2])
def test_the_search_window_holds_three_sigmas_of_the_heading(yaw_sigma_rad):
    windows = []
    matcher = FakeMatcher()
    matcher.match = lambda ground, window, prior, search: (
        windows.append((search, prior)), FakeMatcher.match(
            matcher, ground, window, prior, search))[1]
    localizer = Localizer(LocalizerConfig(), LocalFrame(51.0, -1.0), WHOLE_MAP, matcher)
    localizer.set_pose(PoseEstimate(
        START_NS, Pose2D(0.0, 0.0, 0.0), np.diag([1.0, 1.0, yaw_sigma_rad**2])))
    localizer.process_image(image_at(0.0))
    (search, prior), = windows
    assert search.half_yaw_rad >= 3.0 * math.sqrt(prior.covariance[2, 2]) - 1e-12


def test_a_search_ends_when_the_matcher_is_lost_and_the_prior_goes_on():
    localizer = Localizer(LocalizerConfig(), LocalFrame(51.0, -1.0), WHOLE_MAP, FakeMatcher())
    localizer.add_odometry(OdometrySample(START_NS, Pose2D(0.0, 0.0, 0.0)))
    without_heading = PoseEstimate(START_NS, Pose2D(0.0, 0.0, 0.0), np.diag([99.0, 99.0, 10.0]))
    assert localizer.set_pose(without_heading).outcome is Outcome.SEARCHING
    localizer.use_matcher(None, None)
    assert localizer.process_image(image_at(0.05)).outcome is Outcome.NOT_STARTED
    assert localizer.set_pose(without_heading).outcome is Outcome.INVALID
    localizer.set_pose(PoseEstimate(START_NS, Pose2D(0.0, 0.0, 0.0), np.eye(3) * 0.01))
    assert localizer.process_image(image_at(0.05)).outcome is Outcome.NO_MATCHER


def test_an_image_that_cannot_be_matched_gives_the_prior_and_the_reason():
    localizer = localizer_with()
    assert localizer.pass_image(START_NS - 10, 'black').outcome is Outcome.TOO_OLD
    result = localizer.pass_image(START_NS, 'black')
    assert (result.outcome, result.reason) == (Outcome.UNUSABLE, 'black')
    assert result.prior.pose == result.posterior.pose
