"""A raw KITTI drive becomes a bag with the numbers of the drive."""

import math

import cv2
import kitti_drive as made
import numpy as np
import pytest
from rosbags.highlevel import AnyReader
from scipy.spatial.transform import Rotation

from crossview_localizer.bags import kitti
from crossview_localizer.bags.topics import (
    CAMERA_INFO_TOPIC,
    COMPRESSED_IMAGE_TOPIC,
    GNSS_TOPIC,
    IMAGE_TOPIC,
    ODOMETRY_TOPIC,
    TF_STATIC_TOPIC,
    TRUTH_TOPIC,
)
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs
from crossview_localizer.kitti_to_bag import main

START_NS = np.datetime64('2011-09-26T13:02:25', 'ns').astype(int)


def read_bag(path):
    topics = {}
    with AnyReader([path], default_typestore=typestore_with_geographic_msgs()) as reader:
        for connection, _, data in reader.messages():
            topics.setdefault(connection.topic, []).append(
                reader.deserialize(data, connection.msgtype))
    return topics


def seconds(message) -> float:
    stamp = message.header.stamp
    return (stamp.sec * 10**9 + stamp.nanosec - START_NS) * 1e-9


def place(message) -> tuple[float, float]:
    """Metres about the start of the drive."""
    return made.LATLON_FROM_XY.transform(
        message.longitude, message.latitude, direction='INVERSE')


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    return made.write_kitti(tmp_path_factory.mktemp('kitti')).drive


@pytest.fixture
def spoiled(tmp_path):
    return made.write_kitti(tmp_path / 'kitti').drive


@pytest.fixture(scope='module')
def topics(drive, tmp_path_factory):
    out = tmp_path_factory.mktemp('bag') / 'drive'
    assert main([str(drive), '--out', str(out)]) == 0
    return read_bag(out)


def test_the_camera_of_kittis_calibration_is_where_the_benchmark_says(drive):
    unit_from_camera = kitti.unit_from_camera(drive.parent)
    np.testing.assert_allclose(unit_from_camera[:3, 3], made.CAMERA_M, atol=1e-9)
    np.testing.assert_allclose(
        unit_from_camera[:3, :3], [[0, 0, 1], [-1, 0, 0], [0, -1, 0]], atol=1e-9)


def test_the_truth_is_the_pose_of_the_unit_at_each_row_and_image(topics):
    assert [seconds(m) for m in topics[TRUTH_TOPIC]] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for message in topics[TRUTH_TOPIC]:
        x_m, y_m, yaw_rad = made.unit_pose(seconds(message))
        assert place(message.pose.position) == pytest.approx((x_m, y_m), abs=1e-3)
        q = message.pose.orientation
        yaw, pitch, roll = Rotation.from_quat((q.x, q.y, q.z, q.w)).as_euler('ZYX')
        assert math.remainder(yaw - yaw_rad, 2 * math.pi) == pytest.approx(0.0, abs=1e-6)
        assert (pitch, roll) == pytest.approx((0.0, 0.0), abs=1e-6)
        assert message.pose.position.altitude == made.ALTITUDE_M


def test_roll_and_pitch_keep_their_signs(spoiled, tmp_path):
    for frame in range(made.FRAMES):
        (spoiled / f'oxts/data/{frame:010d}.txt').write_text(
            made.oxts_line(frame * made.PERIOD_S, roll=0.05, pitch=-0.02))
    assert main([str(spoiled), '--out', str(tmp_path / 'bag')]) == 0
    q = read_bag(tmp_path / 'bag')[TRUTH_TOPIC][0].pose.orientation
    up = Rotation.from_quat((q.x, q.y, q.z, q.w)).as_matrix()[2]
    # Left side up and nose up: the body's left and forward axes rise.
    assert up[1] == pytest.approx(math.sin(0.05) * math.cos(0.02))
    assert up[0] == pytest.approx(math.sin(0.02))


def test_images_between_rows_get_the_truth_between_them(spoiled, tmp_path):
    (spoiled / 'image_02/timestamps.txt').write_text(
        '\n'.join(made.stamp(k * made.PERIOD_S + 0.04) for k in range(made.FRAMES)) + '\n')
    assert main([str(spoiled), '--out', str(tmp_path / 'bag')]) == 0
    truth = {round(seconds(m), 3): m for m in read_bag(tmp_path / 'bag')[TRUTH_TOPIC]}
    x_m, y_m, _ = made.unit_pose(0.14)
    assert place(truth[0.14].pose.position) == pytest.approx((x_m, y_m), abs=0.01)
    assert 0.34 not in truth      # beyond the last row


def test_fixes_are_the_rows_with_their_accuracy(topics, spoiled, tmp_path):
    for message in topics[GNSS_TOPIC]:
        assert place(message) == pytest.approx(made.unit_pose(seconds(message))[:2], abs=1e-3)
        assert np.diag(message.position_covariance.reshape(3, 3)) == pytest.approx([0.05**2] * 3)
        assert message.status.status == message.status.STATUS_FIX
    assert len(topics[GNSS_TOPIC]) == made.FRAMES
    (spoiled / 'oxts/data/0000000002.txt').write_text(made.oxts_line(0.2, satellites=3))
    assert main([str(spoiled), '--out', str(tmp_path / 'bag')]) == 0
    third = read_bag(tmp_path / 'bag')[GNSS_TOPIC][2]
    assert third.status.status == third.status.STATUS_NO_FIX


def test_odometry_is_the_driven_arc_from_the_first_row(topics):
    radius_m = made.SPEED_MPS / made.TURN_RADPS
    for message in topics[ODOMETRY_TOPIC]:
        turn = made.TURN_RADPS * seconds(message)
        p, q = message.pose.pose.position, message.pose.pose.orientation
        assert (p.x, p.y, p.z) == pytest.approx(
            (radius_m * math.sin(turn), radius_m * (1 - math.cos(turn)), 0.0), abs=1e-3)
        assert 2 * math.atan2(q.z, q.w) == pytest.approx(turn, abs=1e-9)
        assert message.twist.twist.linear.x == made.SPEED_MPS
        assert message.twist.twist.angular.z == made.TURN_RADPS


def test_a_point_is_in_the_picture_where_camera_info_and_tf_put_it(spoiled, tmp_path):
    fx, fy, cx, cy = made.K
    ahead_m, left_m, up_m = 12.0, 3.0, -0.5      # in base_link
    right, down, depth = (-(left_m - made.CAMERA_M[1]), -(up_m - made.CAMERA_M[2]),
                          ahead_m - made.CAMERA_M[0])
    u, v = cx + fx * right / depth, cy + fy * down / depth
    for path in (spoiled / 'image_02/data').iterdir():
        cv2.imwrite(str(path), made.spot(made.SIZE_PX, u, v))
    assert main([str(spoiled), '--out', str(tmp_path / 'bag')]) == 0
    topics = read_bag(tmp_path / 'bag')
    (frames,), info = topics[TF_STATIC_TOPIC], topics[CAMERA_INFO_TOPIC][1]
    mounted = {tf.child_frame_id: tf.transform for tf in frames.transforms}['camera_optical']
    t, q = mounted.translation, mounted.rotation
    in_camera = Rotation.from_quat((q.x, q.y, q.z, q.w)).inv().apply(
        np.array([ahead_m, left_m, up_m]) - (t.x, t.y, t.z))
    projected = info.k.reshape(3, 3) @ in_camera
    image = cv2.imdecode(np.asarray(topics[COMPRESSED_IMAGE_TOPIC][1].data), cv2.IMREAD_COLOR)
    assert made.spot_place(image) == pytest.approx(projected[:2] / projected[2], abs=0.5)
    assert (info.width, info.height) == made.SIZE_PX and not info.d.any()


def test_a_part_of_the_drive_in_raw_images(drive, tmp_path):
    assert main([str(drive), '--out', str(tmp_path / 'bag'), '--start', '0.1', '--duration',
                 '0.2', '--every', '2', '--compress', 'none']) == 0
    topics = read_bag(tmp_path / 'bag')
    assert [seconds(m) for m in topics[IMAGE_TOPIC]] == pytest.approx([0.1, 0.3])
    assert COMPRESSED_IMAGE_TOPIC not in topics


def test_a_missing_image_leaves_a_gap_and_a_damaged_one_is_counted(spoiled, tmp_path, capsys):
    (spoiled / 'image_02/data/0000000001.png').unlink()
    (spoiled / 'image_02/data/0000000002.png').write_bytes(b'rubbish')
    assert main([str(spoiled), '--out', str(tmp_path / 'bag')]) == 0
    images = read_bag(tmp_path / 'bag')[COMPRESSED_IMAGE_TOPIC]
    assert [seconds(m) for m in images] == pytest.approx([0.0, 0.3])
    assert '1 of 3 images are not readable' in capsys.readouterr().out


@pytest.mark.parametrize('spoil, words', [
    (lambda d: (d.parent / 'calib_imu_to_velo.txt').unlink(), 'calib_imu_to_velo.txt does not'),
    (lambda d: (d.parent / 'calib_velo_to_cam.txt').write_text('R: 1 2\n'), '2 numbers of R; exp'),
    (lambda d: (d / 'oxts/data/0000000001.txt').write_text('49.0 8.4'), '2 numbers; expected the'),
    (lambda d: (d / 'oxts/timestamps.txt').write_text('2011-09-26 13:02:25\n'), 'has no line in'),
    (lambda d: (d / 'image_02/timestamps.txt').write_text('noon\n'), 'expected lines such as'),
    (lambda d: [p.unlink() for p in (d / 'image_02/data').iterdir()], 'no file 0000000000.png'),
])
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_written(
        spoiled, tmp_path, capsys, spoil, words):
    spoil(spoiled)
    assert main([str(spoiled), '--out', str(tmp_path / 'bag')]) == 2
    printed = capsys.readouterr().err
    assert words in printed and printed.count('\n') == 1
    assert not (tmp_path / 'bag').exists()
