"""A RobotCar traversal becomes a bag with the numbers of the drive."""

import importlib
import math
from pathlib import Path
import shutil

import cv2
import numpy as np
import pytest
import robotcar_drive as made
from robotcar_drive import write_lines
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability
from scipy.spatial.transform import Rotation

from crossview_localizer.bags import (
    drive_writer,
    robotcar_bag,
    robotcar_images,
    robotcar_tracks,
)
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
from crossview_localizer.robotcar_to_bag import main

NED_FROM_ENU = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
FRD_FROM_FLU = np.diag([1, -1, -1])


def read_bag(path):
    """{topic: [(bag time, message)]}, and all bag times in file order."""
    topics, times = {}, []
    with AnyReader([path], default_typestore=typestore_with_geographic_msgs()) as reader:
        for connection, time_ns, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            topics.setdefault(connection.topic, []).append((time_ns, message))
            times.append((connection.topic, time_ns))
    return topics, times


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    return made.write_drive(tmp_path_factory.mktemp('drive'))


@pytest.fixture(scope='module')
def bag(drive, tmp_path_factory):
    out = tmp_path_factory.mktemp('bag') / 'drive'
    assert main(drive.arguments(out)) == 0
    return read_bag(out)[0], out


@pytest.fixture
def spoiled(tmp_path):
    """A drive of one's own, to take things away from."""
    return made.write_drive(tmp_path)


# --- ground truth


def truth_errors(topics):
    """Largest position (m) and orientation (rad) error of the ground truth, at the images too."""
    position_m, angle_rad = [], []
    for _, message in topics[TRUTH_TOPIC]:
        expected = made.vehicle_pose(made.seconds(stamp_ns(message) / 1000))
        place = message.pose.position
        ned = made.ned_from_latlon(place.latitude, place.longitude, place.altitude)
        position_m.append(np.linalg.norm(ned - expected[:3, 3]))
        q = message.pose.orientation
        ned_from_frd = (
            NED_FROM_ENU @ Rotation.from_quat((q.x, q.y, q.z, q.w)).as_matrix() @ FRD_FROM_FLU
        )
        difference = Rotation.from_matrix(ned_from_frd @ expected[:3, :3].T)
        angle_rad.append(difference.magnitude())
    return max(position_m), max(angle_rad)


def test_the_truth_is_the_pose_of_base_link_at_every_row_and_image(drive, bag):
    topics, _ = bag
    position_m, angle_rad = truth_errors(topics)
    assert position_m < 2e-3
    assert angle_rad < 2e-4
    stamps = {stamp_ns(message) for _, message in topics[TRUTH_TOPIC]}
    assert stamps >= {1000 * us for us in drive.image_us}
    assert len(stamps) > 100


def without_yaw_offset(monkeypatch):
    monkeypatch.setattr(robotcar_tracks, 'RTK_YAW_OFFSET_RAD', 0.0)


def without_roll_sign(monkeypatch):
    monkeypatch.setattr(robotcar_tracks, 'RTK_ROLL_SIGN', 1.0)


def without_lever_arm(monkeypatch):
    monkeypatch.setattr(robotcar_tracks, 'base_link_track', lambda track, vehicle_from_ins: track)


def without_grid_convergence(monkeypatch):
    monkeypatch.setattr(
        robotcar_tracks, 'grid_convergence_rad', lambda track: np.zeros(len(track)))


def without_interpolation(monkeypatch):
    monkeypatch.setattr(
        robotcar_tracks, 'interpolation_fraction',
        lambda stamp_ns, lower_ns, upper_ns: (stamp_ns - lower_ns) // (upper_ns - lower_ns + 1),
    )


@pytest.mark.parametrize(
    'drop',
    [
        without_yaw_offset, without_roll_sign, without_lever_arm, without_grid_convergence,
        without_interpolation,
    ],
)
def test_the_truth_is_wrong_when_one_correction_is_dropped(drive, tmp_path, monkeypatch, drop):
    drop(monkeypatch)
    assert main(drive.arguments(tmp_path / 'bag')) == 0
    position_m, _ = truth_errors(read_bag(tmp_path / 'bag')[0])
    assert position_m > 0.03


def test_rtk_of_another_yaw_convention_is_warned_of(spoiled, tmp_path, capsys):
    header, *lines = spoiled.rtk.read_text().splitlines()
    turned = []
    for line in lines:
        fields = line.split(',')
        fields[13] = str(float(fields[13]) - math.pi / 2)
        turned.append(','.join(fields))
    write_lines(spoiled.rtk, [header, *turned])
    assert main(spoiled.arguments(tmp_path / 'bag')) == 0
    # Not quite -90: the lever arm points the wrong way too.
    assert 'WARNING: the heading is -8' in capsys.readouterr().out


def test_images_beyond_the_truth_are_counted_and_get_none(spoiled, tmp_path, capsys):
    header, *lines = spoiled.rtk.read_text().splitlines()
    kept = [line for line in lines if int(line.split(',')[0]) < spoiled.image_us[6]]
    write_lines(spoiled.rtk, [header, *kept])
    assert main(spoiled.arguments(tmp_path / 'bag')) == 0
    assert '4 of 10 images have no ground truth' in capsys.readouterr().out
    truth = read_bag(tmp_path / 'bag')[0][TRUTH_TOPIC]
    assert stamp_ns(truth[-1][1]) < 1000 * spoiled.image_us[6]


# --- the other topics


def test_odometry_is_the_true_motion_of_base_link(drive, bag):
    topics, _ = bag
    messages = [message for _, message in topics[ODOMETRY_TOPIC]]
    start_inverse = np.linalg.inv(made.vehicle_pose(0.0))
    flu = np.diag([1, -1, -1, 1])
    assert [stamp_ns(message) for message in messages] == [1000 * us for us in drive.image_us]
    for message in messages:
        expected = flu @ start_inverse @ made.vehicle_pose(
            made.seconds(stamp_ns(message) / 1000)
        ) @ flu
        p, q = message.pose.pose.position, message.pose.pose.orientation
        assert (p.x, p.y, p.z) == pytest.approx(tuple(expected[:3, 3]), abs=1e-6)
        assert Rotation.from_quat((q.x, q.y, q.z, q.w)).as_matrix() == pytest.approx(
            expected[:3, :3], abs=1e-6
        )
        twist = message.twist.twist
        # The arc is level but for the slope; turning right is negative about up.
        assert twist.linear.x == pytest.approx(made.SPEED_MPS, abs=0.1)
        assert twist.angular.z == pytest.approx(-made.TURN_RADPS, abs=0.02)
    frames = (messages[0].header.frame_id, messages[0].child_frame_id)
    assert frames == ('odom', 'base_link')
    variances = [message.pose.covariance[0] for message in messages]
    assert all(later > earlier for earlier, later in zip(variances, variances[1:]))


def test_the_antenna_of_tf_static_at_the_true_pose_is_where_the_fixes_are(bag):
    topics, _ = bag
    ((_, frames),) = topics[TF_STATIC_TOPIC]
    lever = {tf.child_frame_id: tf.transform for tf in frames.transforms}['gnss_antenna']
    arm_frd = FRD_FROM_FLU @ (
        lever.translation.x, lever.translation.y, lever.translation.z
    )
    for _, message in topics[GNSS_TOPIC]:
        vehicle = made.vehicle_pose(made.seconds(stamp_ns(message) / 1000))
        ned = made.ned_from_latlon(message.latitude, message.longitude, message.altitude)
        assert ned == pytest.approx(vehicle[:3, :3] @ arm_frd + vehicle[:3, 3], abs=1e-4)
        assert message.header.frame_id == 'gnss_antenna'


def test_static_frames_are_rep_103_children_of_base_link(bag):
    topics, _ = bag
    ((_, frames),) = topics[TF_STATIC_TOPIC]
    transforms = {tf.child_frame_id: tf for tf in frames.transforms}
    assert set(transforms) == {'camera_optical', 'ins', 'gnss_antenna'}
    assert {tf.header.frame_id for tf in frames.transforms} == {'base_link'}
    ins = transforms['ins'].transform.translation
    assert (ins.x, ins.y, ins.z) == pytest.approx((-1.7132, -0.1181, -1.1948))
    q = transforms['camera_optical'].transform.rotation
    optical = Rotation.from_quat((q.x, q.y, q.z, q.w)).as_matrix()
    assert optical == pytest.approx(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]), abs=1e-12)


def test_reported_sigmas_become_the_covariance_in_east_north_up_order(bag):
    message = bag[0][GNSS_TOPIC][0][1]
    assert np.diag(message.position_covariance.reshape(3, 3)) == pytest.approx([1.5**2, 4, 16])
    assert message.position_covariance_type == message.COVARIANCE_TYPE_DIAGONAL_KNOWN
    assert message.status.status == message.status.STATUS_FIX


def test_fixes_without_satellites_or_sigmas_say_so(spoiled, tmp_path, capsys):
    path = spoiled.traversal / 'gps/gps.csv'
    header, first, second, third, *rest = path.read_text().splitlines()
    second = second.replace(',9,', ',2,', 1)
    third = ','.join([*third.split(',')[:5], '0', '0', '0'])
    write_lines(path, [header, first, second, third, *rest])
    assert main(spoiled.arguments(tmp_path / 'bag')) == 0
    _, poor, unknown, *_ = (message for _, message in read_bag(tmp_path / 'bag')[0][GNSS_TOPIC])
    assert poor.status.status == poor.status.STATUS_NO_FIX
    assert unknown.position_covariance_type == unknown.COVARIANCE_TYPE_UNKNOWN
    assert '1 of 12 rows are not a fix' in capsys.readouterr().out


# --- images


def spot_image(u, v):
    """A picture of the lens with a bright spot at the pinhole image's (u, v)."""
    at_u, at_v = made.distorted_pixel(u, v)
    rows, cols = np.mgrid[0 : made.HEIGHT_PX, 0 : made.WIDTH_PX]
    spot = 200 * np.exp(-((cols - at_u) ** 2 + (rows - at_v) ** 2) / (2 * 1.5**2))
    return np.repeat((spot + 20).astype(np.uint8)[..., None], 3, axis=-1)


def spot_place(image):
    """Centre (u, v) of the bright spot."""
    weight = np.clip(image.mean(axis=-1) - 30, 0, None)
    rows, cols = np.mgrid[0 : image.shape[0], 0 : image.shape[1]]
    return (cols * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()


def decode(message):
    return cv2.imdecode(np.asarray(message.data), cv2.IMREAD_COLOR)


# (ahead, left, up) of a point in base_link that is off centre in the picture.
POINT = (10.0, 4.0, 1.5)


@pytest.mark.parametrize('options', [(), ('--crop', 'none'), ('--crop', '6,4,40,40')])
def test_a_point_is_in_the_picture_where_camera_info_puts_it(tmp_path, options):
    u = made.FX_PX * -POINT[1] / POINT[0] + made.CX_PX
    v = made.FX_PX * -POINT[2] / POINT[0] + made.CY_PX
    drive = made.write_drive(tmp_path, spot_image(u, v))
    assert main(drive.arguments(tmp_path / 'bag', *options)) == 0
    topics, _ = read_bag(tmp_path / 'bag')
    (_, info), (_, message) = topics[CAMERA_INFO_TOPIC][3], topics[COMPRESSED_IMAGE_TOPIC][3]
    image = decode(message)
    k = info.k.reshape(3, 3)
    projected = k @ (-POINT[1], -POINT[2], POINT[0])
    assert spot_place(image) == pytest.approx(projected[:2] / projected[2], abs=0.3)
    assert image.shape[:2] == (info.height, info.width)
    assert stamp_ns(info) == stamp_ns(message) == 1000 * drive.image_us[3]
    assert not info.d.any()


def test_camera_info_has_the_lens_of_a_picture_left_distorted(tmp_path):
    u = made.FX_PX * -POINT[1] / POINT[0] + made.CX_PX
    v = made.FX_PX * -POINT[2] / POINT[0] + made.CY_PX
    drive = made.write_drive(tmp_path, spot_image(u, v))
    assert main(drive.arguments(tmp_path / 'bag', '--no-undistort')) == 0
    topics, _ = read_bag(tmp_path / 'bag')
    info = topics[CAMERA_INFO_TOPIC][0][1]
    projected, _ = cv2.projectPoints(
        np.array([[-POINT[1], -POINT[2], POINT[0]]]), np.zeros(3), np.zeros(3),
        info.k.reshape(3, 3), info.d,
    )
    place = spot_place(decode(topics[COMPRESSED_IMAGE_TOPIC][0][1]))
    assert place == pytest.approx(projected.ravel(), abs=0.3)
    assert info.distortion_model == 'plumb_bob'


def test_the_default_crop_is_that_of_the_paper_scaled_to_the_image():
    assert robotcar_images.scaled_paper_crop(1280, 960) == (40, 0, 1200, 800)
    assert robotcar_images.scaled_paper_crop(640, 480) == (20, 0, 600, 400)


def test_uncompressed_images_are_bgr8(drive, tmp_path):
    assert main(drive.arguments(tmp_path / 'bag', '--compress', 'none', '--every', '4')) == 0
    topics, _ = read_bag(tmp_path / 'bag')
    assert COMPRESSED_IMAGE_TOPIC not in topics
    images = [message for _, message in topics[IMAGE_TOPIC]]
    assert [stamp_ns(image) for image in images] == [1000 * us for us in drive.image_us[::4]]
    assert (images[0].encoding, images[0].step) == ('bgr8', 3 * images[0].width)
    assert len(images[0].data) == images[0].step * images[0].height


def test_corrupt_images_are_left_out_and_counted(spoiled, tmp_path, capsys):
    centre = spoiled.traversal / 'stereo/centre'
    (centre / f'{spoiled.image_us[0]}.png').write_bytes(b'')
    whole = (centre / f'{spoiled.image_us[4]}.png').read_bytes()
    (centre / f'{spoiled.image_us[4]}.png').write_bytes(b'\x89PNG rubbish')
    cv2.imwrite(str(centre / f'{spoiled.image_us[7]}.png'), np.zeros((24, 32), np.uint8))
    assert main(spoiled.arguments(tmp_path / 'bag')) == 0
    assert len(whole) > 100
    assert '3 of 10 images are not readable or of another size' in capsys.readouterr().out
    images = read_bag(tmp_path / 'bag')[0][COMPRESSED_IMAGE_TOPIC]
    assert [stamp_ns(message) for _, message in images] == [
        1000 * us for k, us in enumerate(spoiled.image_us) if k not in (0, 4, 7)
    ]


# --- the bag as a whole


def test_messages_are_in_time_order_with_the_frames_first(bag):
    _, out = bag
    _, times = read_bag(out)
    assert times[0][0] == TF_STATIC_TOPIC
    assert [time for _, time in times] == sorted(time for _, time in times)
    for topic, messages in read_bag(out)[0].items():
        if topic != TF_STATIC_TOPIC:
            assert all(time == stamp_ns(message) for time, message in messages), topic


def test_start_and_duration_cut_every_topic(drive, tmp_path):
    arguments = drive.arguments(tmp_path / 'bag', '--start', '0.5', '--duration', '1')
    assert main(arguments) == 0
    topics, times = read_bag(tmp_path / 'bag')
    begin_ns, end_ns = 1000 * drive.image_us[2], 1000 * drive.image_us[6]
    assert len(topics[COMPRESSED_IMAGE_TOPIC]) == 5
    assert len(topics[ODOMETRY_TOPIC]) == 5
    assert all(begin_ns <= time <= end_ns for _, time in times)
    first = topics[ODOMETRY_TOPIC][0][1].pose.pose
    assert (first.position.x, first.orientation.w) == (0.0, 1.0)


def test_every_topic_has_its_quality_of_service_and_only_frames_are_latched(bag):
    with AnyReader([bag[1]], default_typestore=typestore_with_geographic_msgs()) as reader:
        profiles = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
        latched = {
            topic for topic, (qos,) in profiles.items()
            if qos.durability is QosDurability.TRANSIENT_LOCAL
        }
        assert {qos.reliability for (qos,) in profiles.values()} == {QosReliability.RELIABLE}
    assert latched == {TF_STATIC_TOPIC}


def test_real_ros_reads_every_message(ros, bag):
    from rclpy.serialization import deserialize_message

    with AnyReader([bag[1]], default_typestore=typestore_with_geographic_msgs()) as reader:
        for connection, _, data in reader.messages():
            package, _, name = connection.msgtype.split('/')
            message_type = getattr(importlib.import_module(f'{package}.msg'), name)
            ours = reader.deserialize(data, connection.msgtype)
            theirs = deserialize_message(data, message_type)
            if connection.topic == TRUTH_TOPIC:
                assert theirs.pose.position.latitude == ours.pose.position.latitude
                assert theirs.pose.orientation.w == ours.pose.orientation.w
            elif connection.topic == TF_STATIC_TOPIC:
                assert len(theirs.transforms) == 3
            else:
                assert theirs.header.stamp.nanosec == ours.header.stamp.nanosec


@pytest.mark.parametrize(
    'name, digest',
    [
        ('GeoPoint', '602c647cf87bbe95a0231b459b5ac30051875d07c0c740b31ad7a8c4662b971e'),
        ('GeoPose', '8052786d7663e225e38926f7d05716046c931572c25e557d4f70dca55b972626'),
        ('GeoPoseStamped', 'a8e603c050fa992a74283bb462a96fe9d2b151b7a67b14d77250ed7cb4ed96b7'),
    ],
)
def test_the_geographic_messages_are_those_of_ros(name, digest):
    typestore = typestore_with_geographic_msgs()
    assert typestore.hash_rihs01(f'geographic_msgs/msg/{name}') == f'RIHS01_{digest}'


def test_the_predicted_size_is_printed_first_and_is_near_that_of_the_bag(drive, tmp_path, capsys):
    assert main(drive.arguments(tmp_path / 'bag', '--compress', 'none')) == 0
    assert capsys.readouterr().out.startswith('10 images 60x40, undistorted, predicted size')
    conversion = robotcar_bag.Conversion(
        robotcar_bag.Options(
            drive.traversal, drive.root / 'models', drive.root / 'extrinsics',
            tmp_path / 'other', drive.rtk, compress='none',
        )
    )
    size = sum(file.stat().st_size for file in (tmp_path / 'bag').iterdir())
    assert 0.5 * size < conversion.predicted_bytes() < 3 * size


# --- what goes wrong


def test_an_interrupted_run_leaves_nothing(drive, tmp_path, monkeypatch, capsys):
    real, calls = cv2.imencode, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) > drive_writer.SAMPLED_IMAGES + 3:
            assert not (tmp_path / 'bag').exists()
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(cv2, 'imencode', interrupted)
    assert main(drive.arguments(tmp_path / 'bag')) == 130
    assert list(tmp_path.iterdir()) == []
    assert 'nothing written' in capsys.readouterr().err


def test_what_a_killed_run_left_is_cleared_by_the_next(drive, tmp_path):
    (tmp_path / '.bag.partial').mkdir()
    (tmp_path / '.bag.partial/half').touch()
    assert main(drive.arguments(tmp_path / 'bag')) == 0
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


def test_an_existing_bag_is_replaced_only_on_request(drive, tmp_path, capsys):
    assert main(drive.arguments(tmp_path / 'bag')) == 0
    assert main(drive.arguments(tmp_path / 'bag', '--every', '2')) == 2
    assert '--overwrite' in capsys.readouterr().err
    assert len(read_bag(tmp_path / 'bag')[0][COMPRESSED_IMAGE_TOPIC]) == 10
    assert main(drive.arguments(tmp_path / 'bag', '--every', '2', '--overwrite')) == 0
    assert len(read_bag(tmp_path / 'bag')[0][COMPRESSED_IMAGE_TOPIC]) == 5
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


def test_a_folder_that_is_no_bag_is_never_replaced(drive, tmp_path, capsys):
    (tmp_path / 'photos').mkdir()
    assert main(drive.arguments(tmp_path / 'photos', '--overwrite')) == 2
    assert 'is not a bag' in capsys.readouterr().err
    assert (tmp_path / 'photos').is_dir()


@pytest.mark.parametrize(
    'absent, hint',
    [
        ('gps/gps.csv', '--no-gnss'),
        ('vo/vo.csv', '--no-odometry'),
        ('stereo/centre', 'no image in'),
        ('../models/stereo_narrow_left.txt', 'expected a camera model'),
        ('../models/stereo_narrow_left_distortion_lut.bin', '--no-undistort'),
        ('../extrinsics/ins.txt', 'expected an extrinsics file'),
        ('../rtk/2015-08-17-10-42-18/rtk.csv', 'expected a RobotCar rtk.csv'),
    ],
)
def test_a_missing_file_ends_with_one_clear_line(spoiled, tmp_path, capsys, absent, hint):
    path = Path(spoiled.traversal / absent)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(spoiled.arguments(tmp_path / 'bag')) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert hint in error
    assert not (tmp_path / 'bag').exists()


def test_gnss_odometry_and_truth_can_be_left_out(spoiled, tmp_path):
    shutil.rmtree(spoiled.traversal / 'gps')
    shutil.rmtree(spoiled.traversal / 'vo')
    arguments = spoiled.arguments(tmp_path / 'bag', '--no-gnss', '--no-odometry')
    at = arguments.index('--rtk')
    assert main(arguments[:at] + arguments[at + 2 :]) == 0
    assert set(read_bag(tmp_path / 'bag')[0]) == {
        TF_STATIC_TOPIC, CAMERA_INFO_TOPIC, COMPRESSED_IMAGE_TOPIC,
    }


@pytest.mark.parametrize('crop', ['0,0,65,10', '-1,0,10,10', '0,0,0,10'])
def test_a_crop_outside_the_image_is_refused(drive, tmp_path, capsys, crop):
    assert main(drive.arguments(tmp_path / 'bag', f'--crop={crop}')) == 2
    assert 'does not lie in the 64x48 image' in capsys.readouterr().err


def test_a_window_without_images_is_refused(drive, tmp_path, capsys):
    assert main(drive.arguments(tmp_path / 'bag', '--start', '60')) == 2
    assert 'has 2.2 s of images' in capsys.readouterr().err
