"""A recorded drive as events: their order, the waiting that the node has, what is unusable."""

from array import array
from types import SimpleNamespace

import cv2
from geometry_msgs.msg import TransformStamped, TwistStamped, TwistWithCovarianceStamped
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

from nav_msgs.msg import Odometry
import recorded_drive as made
from sensor_msgs.msg import CameraInfo, CompressedImage, NavSatFix

from crossview_localizer.bags.events import (
    read_events,
    true_pose_from_msg,
    TruePose,
    Unusable,
)
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssCourse, GnssFix, OdometrySample
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.ros.conversions import stamp_msg_from_ns

ODOMETRY, IMAGE, FIX = '/odometry', '/camera/image/compressed', '/gnss/fix'
ANTENNA_X_M = -1.5
NAMES = {
    GnssFix: 'fix', GnssCourse: 'course', OdometrySample: 'odometry', CameraImage: 'image',
    TruePose: 'truth', Unusable: 'unusable',
}


def stamped(msg, time_s: float, frame_id: str):
    msg.header.stamp = stamp_msg_from_ns(made.START_NS + round(time_s * 1e9))
    msg.header.frame_id = frame_id
    return msg


def odometry(time_s: float, child_frame_id='base_link') -> Odometry:
    msg = stamped(Odometry(child_frame_id=child_frame_id), time_s, 'odom')
    msg.pose.pose.position.x = 10.0 * time_s
    msg.pose.pose.orientation.w = 1.0
    return msg


def fix(time_s: float, frame_id='gnss') -> NavSatFix:
    msg = stamped(NavSatFix(latitude=51.7606, longitude=-1.261), time_s, frame_id)
    msg.status.status = 0
    return msg


def image(time_s: float, level=200) -> CompressedImage:
    msg = stamped(CompressedImage(format='jpeg'), time_s, 'camera')
    picture = np.full((made.HEIGHT_PX, made.WIDTH_PX, 3), 60, np.uint8)
    picture[::2] = level
    msg.data = array('B', cv2.imencode('.jpg', picture)[1].tobytes())
    return msg


def calibration():
    info = stamped(CameraInfo(
        width=made.WIDTH_PX, height=made.HEIGHT_PX, distortion_model='plumb_bob'), 0.0, 'camera')
    info.k = [120.0, 0.0, made.WIDTH_PX / 2, 0.0, 120.0, made.HEIGHT_PX / 2, 0.0, 0.0, 1.0]
    info.d = [0.0] * 5
    return [('/tf_static', -1.0, made.static_transforms(ANTENNA_X_M)),
            ('/camera/camera_info', -1.0, info)]


@pytest.fixture
def events_of(ros, tmp_path):
    """The events of a bag of (topic, bag time in s, message); see ``summary`` too."""
    def read(messages, node_config=None, calibrated=True, **options):
        bag = made.write_bag(
            tmp_path / 'bag', [*(calibration() if calibrated else ()), *messages])
        return list(read_events(bag, made.FRAME, node_config, **options))
    return read


def summary(events) -> list[tuple[str, float]]:
    """(kind, stamp in s) of each event."""
    return [(NAMES[type(event)], round((event.stamp_ns - made.START_NS) * 1e-9, 3))
            for event in events]


# --- order and waiting


def test_an_image_waits_until_odometry_has_reached_its_stamp(events_of):
    found = events_of([
        (ODOMETRY, 0.0, odometry(0.0)), (IMAGE, 0.03, image(0.03)),
        (ODOMETRY, 0.05, odometry(0.05)), (ODOMETRY, 0.1, odometry(0.1))])
    assert summary(found) == [
        ('odometry', 0.0), ('odometry', 0.05), ('image', 0.03), ('odometry', 0.1)]


def test_an_image_that_odometry_has_reached_before_it_came_does_not_wait_for_another_sample(
        events_of):
    found = events_of([
        (ODOMETRY, 0.0, odometry(0.0)), (IMAGE, 0.06, image(0.0)), (ODOMETRY, 0.1, odometry(0.1))])
    assert summary(found) == [('odometry', 0.0), ('image', 0.0), ('odometry', 0.1)]


def test_an_image_without_odometry_waits_as_long_as_the_node_would(events_of):
    messages = [(ODOMETRY, 0.0, odometry(0.0)), (IMAGE, 0.1, image(0.1)),
                (FIX, 0.35, fix(0.35)), (FIX, 0.45, fix(0.45))]
    assert summary(events_of(messages, NodeConfig(odometry_wait_s=0.3))) == [
        ('odometry', 0.0), ('fix', 0.35), ('image', 0.1), ('fix', 0.45)]


def test_gnss_of_the_same_instant_comes_before_the_image(events_of):
    messages = [
        (ODOMETRY, 0.0, odometry(0.0)), (IMAGE, 0.1, image(0.1)), (ODOMETRY, 0.1, odometry(0.1)),
        (FIX, 0.104, fix(0.1)), (FIX, 0.12, fix(0.1))]
    assert summary(events_of(messages, NodeConfig())) == [
        ('odometry', 0.0), ('odometry', 0.1), ('fix', 0.1), ('image', 0.1), ('fix', 0.1)]


def test_a_fix_waits_for_odometry_of_its_time_unless_odometry_is_silent(events_of):
    found = events_of([
        (FIX, 0.0, fix(0.0)), (ODOMETRY, 0.05, odometry(0.05)), (FIX, 0.08, fix(0.08)),
        (ODOMETRY, 0.1, odometry(0.1)), (FIX, 1.0, fix(1.0))])
    assert summary(found) == [
        ('fix', 0.0), ('odometry', 0.05), ('odometry', 0.1), ('fix', 0.08), ('fix', 1.0)]


def test_images_keep_their_order_though_the_first_one_waits(events_of):
    found = events_of([
        (ODOMETRY, 0.0, odometry(0.0)), (IMAGE, 0.01, image(0.08)), (IMAGE, 0.02, image(0.0)),
        (ODOMETRY, 0.1, odometry(0.1))])
    assert summary(found) == [
        ('odometry', 0.0), ('odometry', 0.1), ('image', 0.08), ('image', 0.0)]


# --- what is read


def test_only_the_wanted_images_are_returned(events_of):
    messages = [(IMAGE, 0.1 * k, image(0.1 * k, 100 + k)) for k in range(5)]
    wanted_ns = {made.START_NS + 200_000_000, made.START_NS + 400_000_000}
    found = events_of(messages, images_ns=wanted_ns)
    assert {event.stamp_ns for event in found} == wanted_ns
    assert all(event.rgb.shape == (made.HEIGHT_PX, made.WIDTH_PX, 3) for event in found)


def test_a_topic_without_a_name_is_not_read(events_of):
    messages = [(FIX, 0.0, fix(0.0)), (ODOMETRY, 0.1, odometry(0.1))]
    assert summary(events_of(messages, topics=Topics(gnss=''))) == [('odometry', 0.1)]


def test_a_fix_carries_the_lever_arm_of_the_antenna(events_of):
    [found] = events_of([(FIX, 0.0, fix(0.0))])
    assert found.base_from_antenna_m == (ANTENNA_X_M, 0.0)
    assert (found.x_m, found.y_m) == pytest.approx((0.0, 0.0), abs=1e-6)


@pytest.mark.parametrize('kind', [TwistStamped, TwistWithCovarianceStamped])
def test_the_velocity_of_a_receiver_becomes_a_course(events_of, kind):
    msg = stamped(kind(), 0.0, 'gnss')
    linear = (msg.twist if kind is TwistStamped else msg.twist.twist).linear
    linear.x, linear.y = 3.0, 4.0
    [found] = events_of([('/gnss/velocity', 0.0, msg)])
    assert found.course_rad == pytest.approx(np.arctan2(4.0, 3.0), abs=1e-4)
    assert found.base_from_antenna_m == (ANTENNA_X_M, 0.0)


def test_the_truth_is_an_event_of_its_own(events_of):
    stamp_ns = made.START_NS + 5_000_000_000
    pose = made.true_pose(5.0)
    [found] = events_of([('/ground_truth/geopose', 5.0, made.geopose_msg(pose, stamp_ns))])
    assert isinstance(found, TruePose) and found.stamp_ns == stamp_ns
    assert found.pose.as_array() == pytest.approx(pose.as_array(), abs=1e-6)


def test_the_true_yaw_is_turned_by_the_convergence_of_the_grid():
    frame = LocalFrame(51.76, -2.26)
    orientation = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    position = SimpleNamespace(latitude=51.76, longitude=-1.26)
    message = SimpleNamespace(pose=SimpleNamespace(position=position, orientation=orientation))
    pose = true_pose_from_msg(message, frame)
    # A degree east of the origin, true east points sin(latitude) degrees to the map's north.
    assert np.degrees(pose.yaw_rad) == pytest.approx(np.sin(np.radians(51.76)), abs=1e-3)
    assert pose.x_m == pytest.approx(69_000, rel=0.01)
    position.latitude = float('nan')
    with pytest.raises(ValueError, match='not a position'):
        true_pose_from_msg(message, frame)


# --- what cannot be used


def unusable(events) -> list[Unusable]:
    return [event for event in events if isinstance(event, Unusable)]


def test_a_bad_transform_is_reported_and_the_drive_goes_on(events_of):
    broken = TransformStamped(child_frame_id='lidar')  # its rotation is no rotation
    broken.transform.rotation.w = 0.0
    broken.header.frame_id = 'base_link'
    mixed = made.static_transforms(ANTENNA_X_M)
    mixed.transforms = [*mixed.transforms, broken]
    found = events_of([
        ('/tf_static', 0.0, mixed), (FIX, 0.1, fix(0.1)),
        (ODOMETRY, 0.2, odometry(0.2))])
    assert [event.topic for event in unusable(found)] == ['/tf_static']
    assert 'lidar' in unusable(found)[0].reason
    assert summary(found)[1:] == [('fix', 0.1), ('odometry', 0.2)]


def test_an_image_that_cannot_be_used_has_its_stamp_and_the_reason(events_of):
    black = stamped(CompressedImage(format='jpeg'), 0.2, 'camera')
    black.data = array('B', cv2.imencode('.jpg', np.zeros((120, 160, 3), np.uint8))[1].tobytes())
    cut = image(0.3)
    cut.data = cut.data[:200]
    found = events_of([(IMAGE, 0.2, black), (IMAGE, 0.3, cut), (IMAGE, 0.5, image(0.5))])
    assert summary(found) == [('unusable', 0.2), ('unusable', 0.3), ('image', 0.5)]
    assert 'black' in found[0].reason and 'does not decode' in found[1].reason
    assert found[0].topic == IMAGE


def test_the_same_picture_again_after_a_metre_of_driving_is_frozen(events_of):
    found = events_of([
        (ODOMETRY, 0.0, odometry(0.0)), (IMAGE, 0.0, image(0.0)), (ODOMETRY, 0.2, odometry(0.2)),
        (IMAGE, 0.2, image(0.2))])
    assert 'frozen' in unusable(found)[0].reason


def test_records_of_sensors_whose_place_is_not_known_are_unusable(events_of):
    found = events_of([(FIX, 0.0, fix(0.0)), (IMAGE, 0.1, image(0.1))], calibrated=False)
    assert summary(found) == [('unusable', 0.0), ('unusable', 0.1)]
    assert all('/tf_static has no transform' in event.reason for event in found)


def test_odometry_of_another_frame_and_messages_of_another_type_are_unusable(events_of):
    found = events_of([
        (ODOMETRY, 0.0, odometry(0.0, 'trailer')), (FIX, 0.1, odometry(0.1)),
        ('/gnss/velocity', 0.2, fix(0.2))])
    reasons = [event.reason for event in unusable(found)]
    assert len(reasons) == len(found) == 3
    assert "child_frame_id is 'trailer'; expected 'base_link'" in reasons[0]
    assert 'nav_msgs/msg/Odometry; expected sensor_msgs/msg/NavSatFix' in reasons[1]
    assert 'expected geometry_msgs/msg/TwistWithCovarianceStamped or' in reasons[2]


def test_no_fix_is_unusable(events_of):
    lost = replace_status(fix(0.0), -1)
    assert 'no fix' in unusable(events_of([(FIX, 0.0, lost)]))[0].reason


def replace_status(msg: NavSatFix, status: int) -> NavSatFix:
    msg.status.status = status
    return msg
