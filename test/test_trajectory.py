"""Poses between two poses: interpolated where they are known, and nowhere else."""

import math

import numpy as np
import pytest

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track

SECOND_NS = 1_000_000_000


def test_truth_is_interpolated_across_the_turn_of_angles_but_not_across_gaps():
    truth = Track.from_poses(
        np.array([0.0, 1.0, 4.0]) * SECOND_NS,
        [Pose2D(0.0, 0.0, math.pi - 0.1), Pose2D(4.0, 0.0, -math.pi + 0.1), Pose2D(9, 0, 0)])
    found = truth.at(np.array([-1, 0.25, 1.0, 2.0, 5.0]) * SECOND_NS, max_gap_s=1.0)
    assert np.isnan(found.poses[[0, 3, 4]]).all()
    assert found.poses[1] == pytest.approx([1.0, 0.0, math.pi - 0.05])
    assert found.poses[2, 0] == pytest.approx(4.0)


def test_interpolation_is_exact_at_the_size_of_real_stamps():
    start_ns = 1_418_381_115_000_000_123
    truth = Track.from_poses(
        [start_ns, start_ns + 1000], [Pose2D(0.0, 0.0, 0.0), Pose2D(1000.0, 0.0, 0.0)])
    assert truth.at([start_ns + 1], max_gap_s=1.0).poses[0, 0] == pytest.approx(1.0)


def test_before_the_first_and_after_the_last_pose_none_is_known():
    track = Track.from_poses([SECOND_NS, 2 * SECOND_NS], [Pose2D(0, 0, 0), Pose2D(1, 0, 0)])
    assert track.pose_at(SECOND_NS - 1, math.inf) is None
    assert track.pose_at(2 * SECOND_NS + 1, math.inf) is None
    assert track.pose_at(2 * SECOND_NS, 0.0) == Pose2D(1.0, 0.0, 0.0)
    assert Track.empty([]).pose_at(0, math.inf) is None


def test_a_track_of_estimates_is_sorted_and_keeps_the_first_of_a_stamp():
    estimates = [
        PoseEstimate(stamp_ns, Pose2D(x_m, 0.0, 0.0), x_m * np.eye(3))
        for stamp_ns, x_m in ((5, 1.0), (3, 2.0), (5, 3.0))]
    track = Track.from_estimates(estimates)
    assert track.stamps_ns.tolist() == [3, 5]
    assert track.poses[:, 0].tolist() == [2.0, 1.0]
    assert track.covariances[:, 0, 0].tolist() == [2.0, 1.0]


def test_aligned_rows_have_exactly_the_stamps_asked_for():
    track = Track.from_poses([10, 20, 30], [Pose2D(x, 0.0, 0.0) for x in (1, 2, 3)])
    found = track.aligned([5, 20, 25, 40])
    assert np.isnan(found.poses[[0, 2, 3]]).all()
    assert found.poses[1, 0] == 2.0
