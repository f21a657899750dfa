"""Residuals that lean to one side, and residuals that are larger than they are claimed."""

import math

import numpy as np
import pytest
from test_pose_filter import at, CONFIG, estimate, odometry

from crossview_localizer.fusion.lean import Lean, LEAN_SIGMAS, LEAN_WANDERS, LEAN_YAW_RAD_PER_M
from crossview_localizer.fusion.pose_filter import PoseFilter


def lean_of(residuals_m, yaw_rad=0.0) -> Lean:
    lean = Lean()
    for residual_m in residuals_m:
        lean = lean.followed(np.array(residual_m), 4.0 * np.eye(2), 1.0, yaw_rad)
    return lean


def test_residuals_to_and_fro_are_nothing_to_tell():
    lean = lean_of([(2.0, -2.0), (-2.0, 2.0)] * 20)
    assert lean.text == '' and lean.doubt(3.0) is None


def test_residuals_of_one_sigma_to_the_left_are_told_and_widen_the_pose_to_the_left():
    """One sigma each second: the sum 1 / (1 - k) against the root of 1 / (1 - k^2)."""
    lean = lean_of([(-2.0, 0.0)] * 200, yaw_rad=math.pi / 2)  # left is west
    keep = math.exp(-1.0 / 15.0)
    share = math.sqrt(1.0 - keep**2) / (1.0 - keep) / LEAN_SIGMAS
    assert lean.shares == pytest.approx([0.0, share], rel=1e-4)
    assert lean.text == 'GNSS and odometry drift apart'
    expected = 9.0 * share**2 * np.diag([LEAN_WANDERS**2, 0.0, LEAN_YAW_RAD_PER_M**2])
    assert np.allclose(lean.doubt(3.0), expected, rtol=1e-3)


def test_matches_that_are_three_sigmas_off_widen_the_pose_until_they_are_right_again():
    def sigma_m(off_m):
        pose_filter = PoseFilter(CONFIG)
        pose_filter.set_pose(estimate(0.0, 0.0, 0.0, 0.0, 0.1, 0.01))
        sigmas_m = {}
        for step in range(1, 81):
            time_s = step / 4
            pose_filter.add_odometry(odometry(time_s, 10.0 * time_s))
            off = off_m if step < 21 else 0.0
            pose_filter.add_match(estimate(
                time_s, 10.0 * time_s, off * (-1) ** step, 0.0, 0.5, 0.01))
            sigmas_m[time_s] = math.sqrt(pose_filter.estimate_at(at(time_s)).covariance[1, 1])
        return sigmas_m[5.0], sigmas_m[20.0]

    honest, lying = sigma_m(0.0), sigma_m(1.5)
    assert lying[0] > 1.3 * honest[0]
    assert lying[1] < 1.2 * honest[1]
