"""The evidence of a heat map in closed form, and its mean over time."""

import math

import numpy as np
import pytest

from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.matching.evidence import (
    ALIKE_SHARE,
    BEST_FADES_S,
    FIRST_BEST_NATS,
    frame_evidence_nats,
    MeanEvidence,
    PROOF_S,
)

START_NS = 10**18


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


def test_four_frames_over_a_second_are_enough_for_a_judgement():
    def is_enough(stamps_s):
        evidence = MeanEvidence()
        for stamp_s in stamps_s:
            evidence.add(heatmap(0.0, 0.0, 1.0, START_NS + round(stamp_s * 1e9)), prior(1.0))
        return evidence.is_enough

    assert is_enough([0.0, 0.4, 0.8, 1.2])
    assert not is_enough([0.0, 0.5, 1.0])
    assert not is_enough(np.arange(10) / 16)
    # A pause is not observed.
    assert not is_enough([0.0, 0.1, 0.2, 0.3])


def test_a_faster_camera_is_no_better_witness():
    changes = []
    for hz in (4.0, 16.0):
        evidence = MeanEvidence()
        for k in range(int(23 * hz)):
            stamp_ns = START_NS + round(k / hz * 1e9)
            if k == 20 * hz:
                before = evidence.mean_nats
            off_m = 15.0 if k >= 20 * hz else 0.0
            evidence.add(heatmap(off_m, 0.0, 1.0, stamp_ns), prior(1.0))
        changes.append(evidence.mean_nats - before)
    assert changes[0] == pytest.approx(changes[1], abs=0.1)


def add_frames(evidence: MeanEvidence, sigma_m: float, begin_s: float, count: int) -> float:
    """Add right heat maps of this width, one a second; return the evidence of each."""
    for k in range(count):
        stamp_ns = START_NS + round((begin_s + k) * 1e9)
        evidence.add(heatmap(0.0, 0.0, sigma_m, stamp_ns), prior(1.0))
    return evidence.frame_nats


def test_a_pose_is_proven_by_the_sum_of_evidence_beyond_what_a_street_alike_gives():
    evidence = MeanEvidence()
    add_frames(evidence, 1.0, 0.0, 1)
    assert evidence.lacking_s == 0.0
    evidence.require_proof()
    assert evidence.lacking_s == PROOF_S
    frame_nats = add_frames(evidence, 4.0, 1.0, 5)
    best_nats = FIRST_BEST_NATS * np.exp(-np.arange(5) / BEST_FADES_S)
    proof_s = (frame_nats / best_nats - ALIKE_SHARE) / (1.0 - ALIKE_SHARE)
    assert evidence.lacking_s == pytest.approx(PROOF_S - proof_s.sum())
    add_frames(evidence, math.inf, 6.0, 20)     # says nothing: the proof begins again
    assert evidence.lacking_s == PROOF_S
    add_frames(evidence, 1.0, 26.0, math.ceil(PROOF_S))
    assert evidence.lacking_s == 0.0


def test_a_drive_with_weak_evidence_proves_a_pose_as_soon_as_one_with_strong_evidence():
    begin_s, needed = round(4 * BEST_FADES_S), []
    for sigma_m in (1.0, 8.0):
        evidence = MeanEvidence()
        add_frames(evidence, sigma_m, 0.0, begin_s)
        evidence.require_proof()
        seconds = 0
        while evidence.lacking_s > 0.0:
            add_frames(evidence, sigma_m, begin_s + seconds, 1)
            seconds += 1
        needed.append(seconds)
    assert needed == pytest.approx([PROOF_S] * 2, abs=1.0)
