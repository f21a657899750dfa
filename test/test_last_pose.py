"""The pose that is kept on disk: what is read back, and when it is not used."""

import math
import time

import numpy as np
import pytest

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros.saved_pose import LastPose, load_last_pose

CONFIG = FilterConfig()
START_NS = 1_400_000_000_000_000_000


def kept(**changes):
    values = {
        'written_s': time.time(), 'stamp_ns': START_NS, 'origin_deg': (51.76, -1.26),
        'map_from_base': Pose2D(10.0, 20.0, math.pi / 2), 'odom_from_base': Pose2D(1.0, 0.0, 0.0),
        'covariance': np.diag([1.0, 2.0, 0.01]), **changes}
    return LastPose(**values)


def test_what_was_saved_is_read_back(tmp_path):
    path = tmp_path / 'folder/pose.json'
    kept().save(path)
    found = load_last_pose(path, 30.0)
    assert (found.stamp_ns, found.origin_deg) == (START_NS, (51.76, -1.26))
    assert found.map_from_base == kept().map_from_base
    np.testing.assert_array_equal(found.covariance, kept().covariance)
    assert [file.name for file in path.parent.iterdir()] == ['pose.json']


def test_the_pose_moves_on_with_the_odometry_and_is_less_certain():
    # 6 m ahead in the vehicle's axes, which is north, and a quarter turn to the left.
    sample = OdometrySample(START_NS + 2 * 10**9, Pose2D(7.0, 0.0, math.pi / 2))
    estimate = kept().estimate_at(sample, CONFIG, 30.0)
    np.testing.assert_allclose(
        estimate.pose.as_array(), [10.0, 26.0, -math.pi], atol=1e-12)
    assert estimate.stamp_ns == sample.stamp_ns
    growth = estimate.covariance - kept().covariance
    assert growth[0, 0] == pytest.approx(0.02**2 * 6.0 + 0.01 * 36.0 + 0.02**2 * 2.0)
    assert growth[2, 2] == pytest.approx(0.0015**2 * 6.0 + 0.01**2 * math.pi / 2)


@pytest.mark.parametrize('sample', [
    OdometrySample(START_NS + 31 * 10**9, Pose2D(1.0, 0.0, 0.0)),
    OdometrySample(START_NS - 1, Pose2D(1.0, 0.0, 0.0)),
    OdometrySample(START_NS + 10**9, Pose2D(200.0, 0.0, 0.0)),
], ids=['too old', 'of another drive', 'odometry begun anew'])
def test_a_pose_that_does_not_belong_to_the_odometry_is_not_used(sample):
    assert kept().estimate_at(sample, CONFIG, 30.0) is None


def test_a_pose_written_long_ago_or_never_is_not_used(tmp_path):
    assert load_last_pose(tmp_path / 'none.json', 30.0) is None
    kept(written_s=time.time() - 31.0).save(tmp_path / 'pose.json')
    assert load_last_pose(tmp_path / 'pose.json', 30.0) is None


@pytest.mark.parametrize('covariance', [np.zeros((3, 3)), np.full((3, 3), np.nan)])
def test_a_pose_without_a_covariance_is_damaged(tmp_path, covariance):
    kept(covariance=covariance).save(tmp_path / 'pose.json')
    with pytest.raises(ValueError, match='is damaged'):
        load_last_pose(tmp_path / 'pose.json', 30.0)
