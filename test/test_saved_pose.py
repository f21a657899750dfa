"""The pose that is saved on disk: what is read back, and when it is not used."""

import math
from pathlib import Path
import time

import numpy as np
import pytest

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import GnssFix, OdometrySample, PoseEstimate
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.ros.saved_pose import (
    load_saved_pose,
    PoseKeeper,
    saved_pose_path,
    SavedPose,
)

CONFIG = FilterConfig()
START_NS = 1_400_000_000_000_000_000


def saved(**changes):
    values = {
        'written_s': time.time(), 'stamp_ns': START_NS, 'origin_deg': (51.76, -1.26),
        'map_from_base': Pose2D(10.0, 20.0, math.pi / 2), 'odom_from_base': Pose2D(1.0, 0.0, 0.0),
        'covariance': np.diag([1.0, 2.0, 0.01]), **changes}
    return SavedPose(**values)


def test_what_was_saved_is_read_back(tmp_path):
    path = tmp_path / 'folder/pose.json'
    saved().save(path)
    found = load_saved_pose(path, 30.0)
    assert (found.stamp_ns, found.origin_deg) == (START_NS, (51.76, -1.26))
    assert found.map_from_base == saved().map_from_base
    np.testing.assert_array_equal(found.covariance, saved().covariance)
    assert [file.name for file in path.parent.iterdir()] == ['pose.json']


def test_the_pose_moves_on_with_the_odometry_and_is_less_certain():
    # 6 m ahead in the vehicle's axes, which is north, and a quarter turn to the left.
    sample = OdometrySample(START_NS + 2 * 10**9, Pose2D(7.0, 0.0, math.pi / 2))
    estimate = saved().estimate_at(sample, CONFIG, 30.0)
    np.testing.assert_allclose(
        estimate.pose.as_array(), [10.0, 26.0, -math.pi], atol=1e-12)
    assert estimate.stamp_ns == sample.stamp_ns
    growth = estimate.covariance - saved().covariance
    assert growth[0, 0] == pytest.approx(0.02**2 * 6.0 + 0.01 * 36.0 + 0.02**2 * 2.0)
    assert growth[2, 2] == pytest.approx(0.0015**2 * 6.0 + 0.01**2 * math.pi / 2)


@pytest.mark.parametrize('sample', [
    OdometrySample(START_NS + 31 * 10**9, Pose2D(1.0, 0.0, 0.0)),
    OdometrySample(START_NS - 1, Pose2D(1.0, 0.0, 0.0)),
    OdometrySample(START_NS + 10**9, Pose2D(200.0, 0.0, 0.0)),
], ids=['too old', 'of another drive', 'too far'])
def test_a_pose_that_does_not_belong_to_the_odometry_is_not_used(sample):
    assert saved().estimate_at(sample, CONFIG, 30.0) is None


@pytest.mark.parametrize('before', [
    Pose2D(0.3, 0.0, 2.0),      # turned on the spot
    Pose2D(5.0, 3.0, 2.5),      # near its start, with another heading
    Pose2D(10.0, 0.0, 0.0),     # straight ahead of its start
], ids=['same place', 'near', 'ahead'])
@pytest.mark.parametrize('driven_m', [0.0, 1.0])
def test_restarted_odometry_is_recognized_by_its_heading_and_direction(before, driven_m):
    """The whole stack was restarted: odometry begins at its origin, whatever the true heading."""
    sample = OdometrySample(START_NS + 20 * 10**9, Pose2D(driven_m, 0.0, 0.0))
    assert saved(odom_from_base=before).estimate_at(sample, CONFIG, 30.0) is None


@pytest.mark.parametrize('moved', [
    Pose2D(0.0, 0.0, 0.0),      # standing
    Pose2D(0.0, 0.0, -0.05),    # standing, with some drift
    Pose2D(-1.0, 0.0, 0.0),     # a little back
    Pose2D(20.0, 20.0, 1.5),    # round a corner
    Pose2D(0.0, 10.0, 3.1),     # a U-turn
    Pose2D(60.0, 3.5, 0.0),     # a change of lane
])
def test_odometry_that_went_on_is_used_wherever_a_car_may_have_driven(moved):
    before = Pose2D(30.0, -20.0, 0.7)
    sample = OdometrySample(START_NS + 10 * 10**9, before @ moved)
    assert saved(odom_from_base=before).estimate_at(sample, CONFIG, 30.0) is not None


def test_a_pose_written_long_ago_or_never_is_not_used(tmp_path):
    assert load_saved_pose(tmp_path / 'none.json', 30.0) is None
    saved(written_s=time.time() - 31.0).save(tmp_path / 'pose.json')
    assert load_saved_pose(tmp_path / 'pose.json', 30.0) is None


@pytest.mark.parametrize('covariance', [np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_a_pose_without_a_covariance_is_damaged(tmp_path, covariance):
    saved(covariance=covariance).save(tmp_path / 'pose.json')
    with pytest.raises(ValueError, match='is damaged'):
        load_saved_pose(tmp_path / 'pose.json', 30.0)


# --- the pose of the node before


FRAME = LocalFrame(51.76, -1.26)
NOW = OdometrySample(START_NS + 10**9, Pose2D(9.0, 0.0, 0.0))   # 8 m further north


def fix_at(x_m: float, y_m: float) -> GnssFix:
    return GnssFix(NOW.stamp_ns, x_m, y_m, np.eye(2), (0.0, 0.0))


@pytest.fixture
def keeper(tmp_path):
    saved().save(tmp_path / 'pose.json')
    keeper = PoseKeeper(tmp_path / 'pose.json', CONFIG, 30.0)
    keeper.load()
    return keeper


def test_the_pose_of_the_node_before_is_given_once(keeper):
    assert keeper.take_estimate(fix_at(10.0, 28.0), None, FRAME) is None    # no odometry so far
    estimate = keeper.take_estimate(fix_at(10.0, 28.0), NOW, FRAME)
    np.testing.assert_allclose(estimate.pose.as_array(), [10.0, 28.0, math.pi / 2])
    assert keeper.take_estimate(fix_at(10.0, 28.0), NOW, FRAME) is None


@pytest.mark.parametrize(('fix', 'frame', 'sample', 'said'), [
    (fix_at(90.0, 28.0), FRAME, NOW, '80 m from the first fix'),
    (fix_at(10.0, 28.0), LocalFrame(51.76, -1.0), NOW, 'another time, map or start'),
    (fix_at(10.0, 28.0), FRAME, OdometrySample(NOW.stamp_ns, Pose2D(1.0, 0.0, 2.0)),
     'another time, map or start'),
], ids=['fix elsewhere', 'another map', 'another odometry'])
def test_a_saved_pose_of_another_drive_is_refused_with_the_reason(
        keeper, fix, frame, sample, said):
    with pytest.raises(ValueError, match=said):
        keeper.take_estimate(fix, sample, frame)
    assert keeper.take_estimate(fix_at(10.0, 28.0), NOW, FRAME) is None


def test_without_a_map_the_saved_origin_is_used_if_it_is_near(keeper):
    assert keeper.choose_origin((51.8, -1.3)) == (51.76, -1.26)
    assert keeper.choose_origin((48.0, 11.0)) == (48.0, 11.0)
    keeper.forget()
    assert keeper.choose_origin((51.8, -1.3)) == (51.8, -1.3)


def test_a_pose_that_cannot_be_saved_is_reported_once(tmp_path):
    estimate = PoseEstimate(NOW.stamp_ns, Pose2D(1.0, 2.0, 0.5), np.eye(3))
    (tmp_path / 'file').write_text('')
    keeper = PoseKeeper(tmp_path / 'file/pose.json', CONFIG, 30.0)
    assert keeper.save(estimate, NOW, FRAME)
    assert 'not kept' in keeper.problem and 'last_pose_path' in keeper.problem
    assert not keeper.save(estimate, NOW, FRAME)
    (tmp_path / 'file').unlink()
    assert not keeper.save(estimate, NOW, FRAME)
    assert keeper.problem == ''
    found = load_saved_pose(tmp_path / 'file/pose.json', 30.0)
    assert (found.stamp_ns, found.map_from_base) == (NOW.stamp_ns, estimate.pose)
    assert found.odom_from_base == NOW.odom_from_base


def test_the_file_is_named_by_the_parameter_or_by_the_node(monkeypatch, tmp_path):
    monkeypatch.setenv('ROS_HOME', str(tmp_path))
    assert saved_pose_path('', '/car/localizer') is None
    assert saved_pose_path('/data/pose.json', '/car/localizer') == Path('/data/pose.json')
    assert saved_pose_path('auto', '/car/localizer') == (
        tmp_path / 'crossview_localizer/car.localizer.json')
    without = PoseKeeper(None, CONFIG, 30.0)
    without.load()
    assert not without.save(
        PoseEstimate(NOW.stamp_ns, Pose2D(1.0, 2.0, 0.5), np.eye(3)), NOW, FRAME)
