"""The offline Localizer over a bag: order, the rule for images, and what a drive's bag holds."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import robotcar_drive  # noqa: E402

from crossview_localizer import robotcar_to_bag  # noqa: E402
from crossview_localizer.bags import replay  # noqa: E402
from crossview_localizer.bags.topics import Topics
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs
from crossview_localizer.config import LocalizerConfig, NodeConfig  # noqa: E402
from crossview_localizer.datatypes import Localization, Outcome  # noqa: E402
from crossview_localizer.geometry import LocalFrame, wrap_angle  # noqa: E402
from crossview_localizer.localizer import Localizer  # noqa: E402

FRAME = LocalFrame(*robotcar_drive.ORIGIN[:2])
SECOND_NS = 1_000_000_000


class ListeningLocalizer:
    """Writes down what it is given, in order."""

    frame = FRAME
    config = LocalizerConfig()

    def __init__(self):
        self.heard = []

    def add_gnss(self, fix):
        self.heard.append(('gnss', fix.stamp_ns))

    def add_course(self, course):
        self.heard.append(('course', course.stamp_ns))
        self.course = course

    def add_odometry(self, sample):
        self.heard.append(('odometry', sample.stamp_ns))

    def process_image(self, image):
        self.heard.append(('image', image.stamp_ns))
        self.image = image
        return Localization(image.stamp_ns, Outcome.NO_MATCHER, '')

    def pass_image(self, stamp_ns, reason):
        self.heard.append(('image', stamp_ns))
        return Localization(stamp_ns, Outcome.UNUSABLE, reason)


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


def true_pose(stamp_us):
    """x, y, yaw about ORIGIN, where north-east-down and `map` share the point and the axes."""
    ned_from_vehicle = robotcar_drive.vehicle_pose(robotcar_drive.seconds(stamp_us))
    north, east = ned_from_vehicle[:2, 3]
    heading_rad = np.arctan2(ned_from_vehicle[1, 0], ned_from_vehicle[0, 0])
    return np.array([east, north, wrap_angle(np.pi / 2 - heading_rad)])


def test_every_image_is_processed_once_and_never_before_odometry_has_reached_it(bag, drive):
    localizer = ListeningLocalizer()
    results = list(replay.localize(bag, localizer))
    assert [result.stamp_ns for result in results] == [us * 1000 for us in drive.image_us]
    odometry_ns = 0
    for kind, stamp_ns in localizer.heard:
        if kind == 'odometry':
            odometry_ns = stamp_ns
        elif kind == 'image':
            assert odometry_ns >= stamp_ns


def test_fixes_older_than_an_image_come_before_it(bag):
    localizer = ListeningLocalizer()
    list(replay.localize(bag, localizer))
    image_at = {ns: at for at, (kind, ns) in enumerate(localizer.heard) if kind == 'image'}
    fixes = [(ns, at) for at, (kind, ns) in enumerate(localizer.heard) if kind == 'gnss']
    assert len(fixes) > 5
    for fix_ns, at in fixes:
        assert all(at < image_index for ns, image_index in image_at.items() if ns >= fix_ns)


def test_the_camera_of_the_bag_reaches_the_localizer(bag):
    localizer = ListeningLocalizer()
    list(replay.localize(bag, localizer))
    camera = localizer.image.camera
    size_px = (camera.width_px, camera.height_px)
    assert size_px == (robotcar_drive.WIDTH_PX, robotcar_drive.HEIGHT_PX)
    assert camera.fx_px == pytest.approx(robotcar_drive.FX_PX)
    # The stereo camera is base_link's origin: optical z ahead, x right, y down.
    assert camera.base_from_camera == pytest.approx(
        np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]]), abs=1e-9)


def test_images_without_odometry_are_processed_after_the_wait_not_at_the_end(drive):
    bag = drive.root / 'no_odometry'
    robotcar_to_bag.main(drive.arguments(bag, '--crop', 'none', '--no-odometry'))
    localizer = ListeningLocalizer()
    results = list(replay.localize(bag, localizer, NodeConfig(odometry_wait_s=0.3)))
    assert len(results) == len(drive.image_us)
    last_fix = max(at for at, (kind, _) in enumerate(localizer.heard) if kind == 'gnss')
    first_image = min(at for at, (kind, _) in enumerate(localizer.heard) if kind == 'image')
    assert first_image < last_fix


def test_a_drive_s_truth_is_that_of_base_link_in_map(bag, drive):
    found = replay.read_drive(bag, FRAME)
    stamps_ns = np.array(drive.image_us) * 1000
    assert np.array_equal(found.image_stamps_ns, stamps_ns)
    truth = found.truth.at(stamps_ns, max_gap_s=1.0)
    expected = np.array([true_pose(us) for us in drive.image_us])
    # The files give latitude and longitude to 1e-6 deg, 0.11 m.
    assert truth.poses[:, :2] == pytest.approx(expected[:, :2], abs=0.12)
    assert wrap_angle(truth.poses[:, 2] - expected[:, 2]) == pytest.approx(0.0, abs=2e-3)


def test_a_drive_s_fixes_carry_the_lever_arm_of_the_antenna(bag):
    fix = replay.read_drive(bag, FRAME).fixes[0]
    forward_m, left_m = robotcar_drive.INS_XYZRPY[0], -robotcar_drive.INS_XYZRPY[1]
    assert fix.base_from_antenna_m == pytest.approx((forward_m, left_m))
    x_m, y_m, yaw_rad = true_pose(fix.stamp_ns // 1000)
    antenna_m = (x_m + np.cos(yaw_rad) * forward_m - np.sin(yaw_rad) * left_m,
                 y_m + np.sin(yaw_rad) * forward_m + np.cos(yaw_rad) * left_m)
    # Roll of a few degrees moves the antenna, 1.2 m below, sideways.
    assert (fix.x_m, fix.y_m) == pytest.approx(antenna_m, abs=0.15)


def test_velocities_of_a_receiver_become_courses_by_the_node_s_rule(bag, monkeypatch):
    types = typestore_with_geographic_msgs().types
    messages = replay.messages

    def velocity(header, east_mps):
        linear, angular = (
            types['geometry_msgs/msg/Vector3'](*xyz) for xyz in ((east_mps, 4.0, 0.0), (0.0,) * 3))
        return types['geometry_msgs/msg/TwistWithCovarianceStamped'](
            header, types['geometry_msgs/msg/TwistWithCovariance'](
                types['geometry_msgs/msg/Twist'](linear, angular), 0.01 * np.eye(6).ravel()))

    def with_velocities(path, topics):
        for topic, bag_ns, msg in messages(path, topics):
            yield topic, bag_ns, msg
            if topic == Topics().gnss:
                # A message of another type, a broken one and a good one.
                for on_topic in (msg, velocity(msg.header, np.nan), velocity(msg.header, 3.0)):
                    yield Topics().gnss_velocity, bag_ns, on_topic

    monkeypatch.setattr(replay, 'messages', with_velocities)
    localizer = ListeningLocalizer()
    list(replay.localize(bag, localizer))
    fixes, courses = (
        [ns for kind, ns in localizer.heard if kind == wanted] for wanted in ('gnss', 'course'))
    assert fixes == courses
    assert localizer.course.course_rad == pytest.approx(np.arctan2(4.0, 3.0), abs=1e-4)
    assert localizer.course.sigma_rad == pytest.approx(0.1 / 5.0)
    assert localizer.course.base_from_antenna_m == pytest.approx(
        (robotcar_drive.INS_XYZRPY[0], -robotcar_drive.INS_XYZRPY[1]))


def test_the_true_yaw_is_turned_by_the_grid_s_convergence():
    frame = LocalFrame(51.76, -2.26)
    orientation = SimpleNamespace(x=0.0, y=0.0, z=0.0, w=1.0)
    position = SimpleNamespace(latitude=51.76, longitude=-1.26)
    message = SimpleNamespace(pose=SimpleNamespace(position=position, orientation=orientation))
    pose = replay.true_pose_from_msg(message, frame)
    # A degree east of the origin, true east points sin(latitude) degrees to the map's north.
    assert np.degrees(pose.yaw_rad) == pytest.approx(np.sin(np.radians(51.76)), abs=1e-3)
    assert pose.x_m == pytest.approx(69_000, rel=0.01)


def test_the_prior_alone_follows_the_drive(bag, drive):
    results = list(replay.localize(bag, Localizer(LocalizerConfig(), FRAME)))
    poses = replay.posteriors(results)
    assert len(poses) > 15
    truth = np.array([true_pose(int(ns) // 1000) for ns in poses.stamps_ns])
    assert np.hypot(*(poses.poses - truth)[:, :2].T).max() < 2.0


def test_parameters_of_the_node_s_file_configure_the_offline_localizer(tmp_path):
    path = tmp_path / 'parameters.yaml'
    path.write_text(
        '/**:\n  ros__parameters:\n    odometry_wait_s: 0.25\n    filter:\n      buffer_s: 3.0\n')
    node_config, config = replay.read_parameters(path)
    assert node_config == NodeConfig(odometry_wait_s=0.25)
    assert config.filter.buffer_s == 3.0
    path.write_text('/**:\n  ros__parameters:\n    filter:\n      bufer_s: 3.0\n')
    with pytest.raises(ValueError, match=r'filter\.bufer_s'):
        replay.read_parameters(path)
    path.write_text('localizer: {}\n')
    with pytest.raises(ValueError, match='no parameter file'):
        replay.read_parameters(path)


def test_what_is_no_bag_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing_here'):
        list(replay.messages(tmp_path / 'nothing_here'))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(OSError, match='empty'):
        list(replay.messages(tmp_path / 'empty'))
    (tmp_path / 'empty/metadata.yaml').write_text('none of ours')
    with pytest.raises(ValueError, match='cannot be read as a bag'):
        list(replay.messages(tmp_path / 'empty'))
