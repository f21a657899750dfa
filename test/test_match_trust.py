"""Whether images belong to the map: evidence of a heat map, and what the Localizer makes of it."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from crossview_localizer.config import LocalizerConfig, TrustConfig
from crossview_localizer.datatypes import (
    CameraImage,
    GnssFix,
    Heatmap,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.localizer import Localizer
from crossview_localizer.matching.match_trust import frame_evidence_nats, MatchTrust

START_NS = 10**18
SPEED_MPS = 8.0


def heatmap(x_m, y_m, sigma_m, stamp_ns=START_NS, centre_m=(0.0, 0.0)) -> Heatmap:
    """A Gaussian on cells of 0.5 m, 20 m each way about a centre; inf is flat."""
    grid = MapGrid.around(*centre_m, 20.0, 0.5)
    xs_m, ys_m = grid.cell_centres()
    log_p = -0.5 * ((xs_m[None] - x_m)**2 + (ys_m[:, None] - y_m)**2) / sigma_m**2
    log_p -= log_p.max()
    return Heatmap(stamp_ns, grid, log_p - np.log(np.exp(log_p).sum()))


def prior(sigma_m, x_m=0.0, y_m=0.0, stamp_ns=START_NS) -> PoseEstimate:
    return PoseEstimate(
        stamp_ns, Pose2D(x_m, y_m, 0.0), np.diag([sigma_m**2, sigma_m**2, 0.01]))


def test_the_evidence_of_a_gaussian_heat_map_is_the_window_over_both_spreads():
    grid = heatmap(0.0, 0.0, 1.0).grid
    window_m2 = grid.rows * grid.cols * grid.cell_m**2
    for off_m in (0.0, 3.0):
        ratio = window_m2 / (2 * math.pi * 5.0) * math.exp(-0.5 * off_m**2 / 5.0)
        expected = math.log(0.95 * ratio + 0.05)
        found = frame_evidence_nats(heatmap(off_m, 0.0, 1.0), prior(2.0), 0.05)
        assert found == pytest.approx(expected, abs=0.01)


def test_a_flat_heat_map_is_no_evidence_and_one_elsewhere_costs_at_most_the_outlier_share():
    assert frame_evidence_nats(heatmap(0.0, 0.0, math.inf), prior(2.0), 0.05) == pytest.approx(0.0)
    elsewhere = frame_evidence_nats(heatmap(15.0, 0.0, 0.5), prior(0.5), 0.05)
    assert elsewhere == pytest.approx(math.log(0.05), abs=1e-6)


def trusted_after(offsets_m, hz=4.0, trust=None) -> list[bool]:
    trust = trust or MatchTrust(TrustConfig())
    return [trust.add(heatmap(off_m, 0.0, 1.0, START_NS + round(k / hz * 1e9)), prior(1.0))
            for k, off_m in enumerate(offsets_m)]


def test_images_of_another_place_are_distrusted_from_the_first_second_on():
    offsets_m = np.random.default_rng(0).uniform(-20.0, 20.0, 40)
    assert trusted_after(offsets_m)[4:].count(True) == 0


def test_right_images_stay_trusted_through_a_lorry_of_two_seconds():
    offsets_m = np.random.default_rng(0).standard_normal(60)
    offsets_m[30:38] = 15.0
    assert all(trusted_after(offsets_m))


def test_images_that_say_nothing_do_not_take_trust_away():
    trust = MatchTrust(TrustConfig())
    assert all(trusted_after(np.zeros(20), trust=trust))
    flat = heatmap(0.0, 0.0, math.inf)
    for k in range(400):
        assert trust.add(Heatmap(START_NS + (5 + k) * 10**9, flat.grid, flat.log_probability),
                         prior(3.0))


def test_a_faster_camera_is_no_better_witness():
    means = []
    for hz in (4.0, 16.0):
        trust = MatchTrust(TrustConfig())
        trusted_after(np.zeros(int(20 * hz)), hz, trust)
        before = trust.mean_nats
        for k in range(int(3 * hz)):
            stamp_ns = START_NS + round((20 + k / hz) * 1e9)
            trust.add(heatmap(15.0, 0.0, 1.0, stamp_ns), prior(1.0))
        means.append(trust.mean_nats - before)
    assert means[0] == pytest.approx(means[1], abs=0.1)


class FakeMatcher:
    """A heat map about the truth, or about a place that ``off_m`` (x, y) says at each call."""

    margin_m = 0.0

    def __init__(self, off_m):
        self._off_m = off_m
        self.calls = 0

    def embed(self, image, yaw_rad, pitch_rad=0.0):
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


def localizer_with(off_m) -> Localizer:
    matcher = None if off_m is None else FakeMatcher(off_m)
    localizer = Localizer(LocalizerConfig(), LocalFrame(51.0, -1.0), WHOLE_MAP, matcher)
    localizer.set_pose(PoseEstimate(START_NS - 1, Pose2D(0.0, 0.0, 0.0), np.diag([4, 4, 0.01])))
    return localizer


def test_wrong_images_leave_the_pose_as_it_is_without_them():
    wrong_m = np.random.default_rng(1).uniform(-18.0, 18.0, (200, 2))
    wrong = drive(localizer_with(lambda k: wrong_m[k]), 0.0, 30.0, np.random.default_rng(2))
    without = drive(localizer_with(None), 0.0, 30.0, np.random.default_rng(2))
    assert {result.outcome for result in wrong[5:]} == {Outcome.DISTRUSTED}
    assert 'evidence' in wrong[-1].reason
    for one, other in zip(wrong[5:], without[5:]):
        assert one.posterior.pose == other.posterior.pose


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
    matcher = FakeMatcher(lambda k: (0.0, 0.0))
    localizer = Localizer(LocalizerConfig(), LocalFrame(51.0, -1.0), WHOLE_MAP, matcher)
    localizer.add_odometry(OdometrySample(START_NS - 1, Pose2D(0.0, 0.0, 0.0)))
    update = localizer.set_pose(PoseEstimate(
        START_NS, Pose2D(40.0, -30.0, 2.0), np.diag([900.0, 900.0, 10.0])))
    assert update.outcome is Outcome.NOT_STARTED and 'searched' in update.reason
    results = drive(localizer, 0.1, 20.0, np.random.default_rng(2), gnss=False)
    assert results[-1].outcome is Outcome.USED
    pose = results[-1].posterior.pose
    assert abs(pose.x_m - SPEED_MPS * 19.5) < 1.0 and abs(pose.y_m) < 1.0


def test_a_wrong_lock_is_noticed_and_the_right_place_found_again():
    localizer = localizer_with(lambda k: (0.0, 0.0))
    localizer.set_pose(PoseEstimate(
        START_NS, Pose2D(0.0, 50.0, 0.0), np.diag([1.0, 1.0, 0.001])))
    results = drive(localizer, 0.0, 60.0, np.random.default_rng(2), gnss=False)
    assert results[10].outcome is Outcome.DISTRUSTED
    assert results[-1].outcome is Outcome.USED
    assert abs(results[-1].posterior.pose.y_m) < 1.0
