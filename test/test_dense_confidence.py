"""What a single frame's scores claim: as much as their errors on validation frames allow."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import multivariate_t
from test_heatmap_pose import gaussian_volume
from test_heatmap_pose import SHARP_PRIOR as PRIOR

from benchmarks.accuracy.fit_confidence import coverages_95, widening
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.heatmap_pose import distance2_within, peak_of, peak_pose
from crossview_localizer.networks.dense import GAUSSIAN_DOF
from training.evaluation.dense_confidence import (
    fit_peaks,
    fit_tails,
    fit_temperature,
    least_mass,
    ScoredFrame,
)


@pytest.mark.parametrize('wrong', [0, 6])
def test_temperature_and_sharpening_are_those_of_the_errors(wrong):
    """Volumes four times too wide in variance; some peaks in the wrong place altogether."""
    rng = np.random.default_rng(0)
    covariance = np.diag([0.6, 0.9, 0.0008])
    frames = []
    for k in range(80):
        mean = np.array([100.0, 50.0, 0.5])
        truth = rng.multivariate_normal(mean, covariance)
        if k < wrong:
            truth[:2] += (9.0, -8.0)
        heatmap = gaussian_volume(mean, 4.0 * covariance, PRIOR)
        frames.append(ScoredFrame(heatmap, PRIOR, Pose2D(*truth)))
    factor, _ = fit_temperature(frames)
    sharpening, min_mass = fit_peaks(frames, factor)
    assert 0.5 < min_mass <= 1.0
    if wrong:  # one factor makes room for what is wrong; the peaks are as narrow as before
        assert factor < 1.0 and sharpening > 2.5
    else:
        assert factor == pytest.approx(4.0, rel=0.2) and sharpening == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize('dof, wrong', [(1e6, 0), (4.0, 0), (1e6, 24)])
def test_both_ellipsoids_hold_their_share_of_all_frames(dof, wrong):
    """Errors twice as large as the peaks are wide, with tails or without, or some elsewhere."""
    covariance, mean = np.diag([0.6, 0.9, 0.0008]), np.array([100.0, 50.0, 0.5])
    heatmap = gaussian_volume(mean, covariance, PRIOR)
    errors = multivariate_t(shape=4.0 * covariance, df=dof, seed=1).rvs(400)
    errors[:wrong, :2] += (9.0, -8.0)
    frames = [ScoredFrame(heatmap, PRIOR, Pose2D(*(mean + error))) for error in errors]
    inflation, fitted = fit_tails(frames, 1.0, 0.5)
    if dof > 100.0 and not wrong:
        assert fitted > 20.0 and inflation == pytest.approx(4.0, rel=0.2)
    else:
        assert 2.1 <= fitted < 8.0
    estimate, _ = peak_pose(heatmap, PRIOR, 1.0, 0.5, inflation)
    off = estimate.pose.as_array() - mean - errors
    distances2 = (off * np.linalg.solve(estimate.covariance, off.T).T).sum(1)
    for share in (0.68, 0.95):
        held = np.mean(distances2 <= distance2_within(share, fitted))
        assert held == pytest.approx(share, abs=0.02)


def test_claims_are_widened_for_a_set_whose_errors_are_larger_but_not_for_one_that_is_lost():
    """Errors of 1 and 2.2 times the claimed variance, and a set that is 12 m off."""
    covariance, mean = np.diag([0.6, 0.9, 0.0008]), np.array([100.0, 50.0, 0.5])
    heatmap = gaussian_volume(mean, covariance, PRIOR)
    rng = np.random.default_rng(3)

    def frames(factor: float, off_m: float) -> list[ScoredFrame]:
        truths = rng.multivariate_normal(mean + [off_m, 0.0, 0.0], factor * covariance, 200)
        return [ScoredFrame(heatmap, PRIOR, Pose2D(*truth)) for truth in truths]

    sets = {'fair': frames(1.0, 0.0), 'worse': frames(2.2, 0.0), 'lost': frames(1.0, 12.0)}
    claim = (1.0, 0.5, 1.0, GAUSSIAN_DOF)
    fair, worse, lost = (
        coverages_95(found, 1.0, 0.5, [1.0, 2.0], GAUSSIAN_DOF) for found in sets.values())
    # On two axes: 1 - exp(-5.99 / (2 * ratio of the variances)).
    assert fair == pytest.approx([0.95, 0.9975], abs=0.03)
    assert worse == pytest.approx([0.744, 0.934], abs=0.06)
    assert (lost == 0.0).all()
    assert widening(sets, *claim) == 2.0
    assert widening({'fair': sets['fair']}, *claim) == 1.0


def test_the_least_mass_lets_only_the_allowed_share_of_wrong_frames_be_sure():
    """Of 40 frames 10 are 8 m off, with peaks of falling certainty."""
    frames = []
    for k in range(40):
        sigma_m = 0.5 + 0.1 * k
        heatmap = gaussian_volume(
            np.array([100.0, 50.0, 0.5]), np.diag([sigma_m**2, sigma_m**2, 0.0008]), PRIOR)
        frames.append(ScoredFrame(
            heatmap, PRIOR, Pose2D(100.0, 58.0 if k % 4 == 0 else 50.0, 0.5)))
    masses = [peak_of(frame.heatmap).mass for frame in frames]
    assert masses == sorted(masses, reverse=True)
    # Two of 40 may be wrong: the third wrong frame, number 8, must not be sure.
    mass = least_mass(frames, 1.0, 5.0, 0.05)
    assert masses[8] < mass <= masses[7]
    assert least_mass(frames, 1.0, 9.0, 0.0) == 0.0
    better_known = [replace(frame, accuracy_m=4.0) for frame in frames]
    assert least_mass(better_known, 1.0, 5.0, 0.0) == 0.0


def test_a_place_known_to_a_metre_may_lie_anywhere_in_its_disc():
    heatmap = gaussian_volume(
        np.array([100.0, 50.0, 0.5]), np.diag([0.05, 0.05, 0.0008]), PRIOR)
    frame = ScoredFrame(heatmap, PRIOR, Pose2D(101.0, 50.0, 0.5))
    _, exact = fit_temperature([frame])
    _, within = fit_temperature([replace(frame, accuracy_m=1.0)])
    assert within < exact - 1.0
