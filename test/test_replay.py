"""A recorded drive: what its bag holds, and the offline Localizer over it."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import recorded_drive as made
import robotcar_drive

from crossview_localizer import robotcar_to_bag
from crossview_localizer.bags.drive import read_drive, read_posed_images
from crossview_localizer.bags.replay import localize, posteriors
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import Outcome
from crossview_localizer.geometry import LocalFrame, wrap_angle
from crossview_localizer.localizer import Localizer

FRAME = LocalFrame(*robotcar_drive.ORIGIN[:2])


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robotcar_drive, 'N_IMAGES', 30)
        return robotcar_drive.write_drive(tmp_path_factory.mktemp('drive'))


@pytest.fixture(scope='module')
def bag(drive):
    out = drive.root / 'bag'
    assert robotcar_to_bag.main(drive.arguments(out, '--crop', 'none')) == 0
    return out


@pytest.fixture(scope='module')
def bag_with_gap(ros, tmp_path_factory):
    """16 s of images at 4 Hz; the truth is not known from 4 to 9 s and after 12 s."""
    truth = [entry for entry in made.truth_messages(16.0) if not 4.0 < entry[1] < 9.0]
    return made.write_bag(
        tmp_path_factory.mktemp('gap') / 'bag',
        [*made.input_messages(16.0), *(entry for entry in truth if entry[1] <= 12.0)])


def true_pose(stamp_us):
    """x, y, yaw about ORIGIN, where north-east-down and `map` share the point and the axes."""
    ned_from_vehicle = robotcar_drive.vehicle_pose(robotcar_drive.seconds(stamp_us))
    north, east = ned_from_vehicle[:2, 3]
    heading_rad = np.arctan2(ned_from_vehicle[1, 0], ned_from_vehicle[0, 0])
    return np.array([east, north, wrap_angle(np.pi / 2 - heading_rad)])


# --- what a bag holds


def test_the_truth_of_a_drive_is_that_of_base_link_in_map(bag, drive):
    found = read_drive(bag, FRAME)
    stamps_ns = np.array(drive.image_us) * 1000
    assert np.array_equal(found.image_stamps_ns, stamps_ns)
    truth = found.truth.at(stamps_ns, max_gap_s=1.0)
    expected = np.array([true_pose(us) for us in drive.image_us])
    # The files give latitude and longitude to 1e-6 deg, 0.11 m.
    assert truth.poses[:, :2] == pytest.approx(expected[:, :2], abs=0.12)
    assert wrap_angle(truth.poses[:, 2] - expected[:, 2]) == pytest.approx(0.0, abs=2e-3)


def test_the_fixes_of_a_drive_carry_the_lever_arm_of_the_antenna(bag):
    fix = read_drive(bag, FRAME).fixes[0]
    forward_m, left_m = robotcar_drive.INS_XYZRPY[0], -robotcar_drive.INS_XYZRPY[1]
    assert fix.base_from_antenna_m == pytest.approx((forward_m, left_m))
    x_m, y_m, yaw_rad = true_pose(fix.stamp_ns // 1000)
    antenna_m = (x_m + np.cos(yaw_rad) * forward_m - np.sin(yaw_rad) * left_m,
                 y_m + np.sin(yaw_rad) * forward_m + np.cos(yaw_rad) * left_m)
    # Roll of a few degrees moves the antenna, 1.2 m below, sideways.
    assert (fix.x_m, fix.y_m) == pytest.approx(antenna_m, abs=0.15)


def test_messages_that_cannot_be_used_are_counted(ros, tmp_path):
    # Without /tf_static the place of the antenna is not known.
    bag = made.write_bag(tmp_path / 'bag', [
        entry for entry in made.input_messages(2.0) if entry[0] != '/tf_static'])
    found = read_drive(bag, made.FRAME)
    assert not found.fixes and found.unusable == {'/gnss/fix': 10}
    at_base_link = read_drive(bag, made.FRAME, NodeConfig(antenna_xyz_m=(0.0, 0.0, 0.0)))
    assert len(at_base_link.fixes) == 10 and not at_base_link.unusable


def test_the_pose_of_an_image_in_a_gap_of_the_truth_is_not_known(bag_with_gap):
    truth = read_drive(bag_with_gap, made.FRAME).truth
    found = {round((image.stamp_ns - made.START_NS) * 1e-9, 2): pose
             for image, pose in read_posed_images(bag_with_gap, made.FRAME, truth)}
    assert len(found) == 64
    known = [time_s for time_s, pose in found.items() if pose is not None]
    assert known == [time_s for time_s in found if time_s <= 4.0 or 9.0 <= time_s <= 12.0]
    for time_s in known:
        # Between two true poses 0.1 s apart a chord is 0.75 mm from the circle.
        assert found[time_s].as_array() == pytest.approx(
            made.true_pose(time_s).as_array(), abs=1e-3)


# --- the offline Localizer


def test_the_camera_of_the_bag_reaches_the_localizer(bag):
    camera = next(iter(read_posed_images(bag, FRAME, read_drive(bag, FRAME).truth)))[0].camera
    size_px = (camera.width_px, camera.height_px)
    assert size_px == (robotcar_drive.WIDTH_PX, robotcar_drive.HEIGHT_PX)
    assert camera.fx_px == pytest.approx(robotcar_drive.FX_PX)
    # The stereo camera is base_link's origin: optical z ahead, x right, y down.
    assert camera.base_from_camera == pytest.approx(
        np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]), abs=1e-9)


def test_the_prior_alone_follows_the_drive(bag, drive):
    results = list(localize(bag, Localizer(LocalizerConfig(), FRAME)))
    assert [result.stamp_ns for result in results] == [us * 1000 for us in drive.image_us]
    poses = posteriors(results)
    assert len(poses) > 15
    truth = np.array([true_pose(int(ns) // 1000) for ns in poses.stamps_ns])
    assert np.hypot(*(poses.poses - truth)[:, :2].T).max() < 2.0


def test_an_image_that_cannot_be_used_gives_the_prior_and_the_reason(ros, tmp_path):
    bag = made.write_bag(tmp_path / 'bag', [
        entry for entry in made.input_messages(2.0) if entry[0] != '/camera/camera_info'])
    localizer = Localizer(LocalizerConfig(), made.FRAME)
    localizer.set_pose(made.estimate(made.true_pose(0.0), made.START_NS))
    results = list(localize(bag, localizer, NodeConfig(odometry_wait_s=0.0)))
    assert [result.outcome for result in results[:2]] == [Outcome.UNUSABLE] * 2
    assert results[0].prior is not None and 'no camera_info' in results[0].reason
