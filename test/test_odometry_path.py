"""The way that odometry tells, at any stamp."""

import math

import pytest

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.fusion.odometry_path import OdometryPath
from crossview_localizer.geometry import Pose2D

START_NS = 10**18


def path_of(samples) -> OdometryPath:
    path = OdometryPath(FilterConfig())
    for time_s, pose in samples:
        path.add(OdometrySample(START_NS + round(time_s * 1e9), pose))
    return path


def between(path: OdometryPath, begin_s: float, end_s: float) -> Pose2D:
    begin, end = (path.pose_at(START_NS + round(time_s * 1e9)) for time_s in (begin_s, end_s))
    return begin.inverse() @ end


def test_poses_lie_between_samples_and_for_a_while_beyond_the_last():
    """Wherever the odometry frame is."""
    origin = Pose2D(300.0, -20.0, 2.0)
    path = path_of((k / 10, origin @ Pose2D(k * 1.5, 0.0, 0.0)) for k in range(11))
    assert between(path, 0.0, 0.55).x_m == pytest.approx(8.25)
    assert between(path, 0.5, 1.1).x_m == pytest.approx(9.0)
    assert between(path, 1.0, 60.0).x_m == pytest.approx(15.0)


def test_a_jump_is_no_motion():
    path = path_of([(0.0, Pose2D(0.0, 0.0, 0.0)), (0.1, Pose2D(1.0, 0.0, 0.0)),
                    (0.2, Pose2D(5000.0, 0.0, 0.0)), (0.3, Pose2D(5001.0, 0.0, 0.0))])
    assert between(path, 0.0, 0.3).x_m == pytest.approx(2.0)


def test_samples_that_are_old_or_not_finite_are_ignored():
    path = path_of([(0.0, Pose2D(0.0, 0.0, 0.0)), (0.2, Pose2D(2.0, 0.0, 0.0)),
                    (0.1, Pose2D(9.0, 0.0, 0.0)), (0.3, Pose2D(math.nan, 0.0, 0.0))])
    assert between(path, 0.0, 0.2).x_m == pytest.approx(2.0)


def test_before_the_oldest_sample_that_is_kept_there_is_no_pose():
    path = path_of((k / 10, Pose2D(k, 0.0, 0.0)) for k in range(100))
    assert path.pose_at(START_NS - 1) is None
    assert path.pose_at(START_NS + 10**9) is None
    assert path.pose_at(START_NS + 8 * 10**9) is not None
    assert OdometryPath(FilterConfig()).pose_at(START_NS) is None
