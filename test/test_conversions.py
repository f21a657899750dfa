"""ROS messages to and from the datatypes: every convention, every refusal."""

from array import array
from dataclasses import replace
import math
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

from geometry_msgs.msg import (
    PoseWithCovarianceStamped,
    Quaternion,
    Transform,
    Twist,
    TwistStamped,
    TwistWithCovariance,
    TwistWithCovarianceStamped,
    Vector3,
)
from nav_msgs.msg import Odometry
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix

from crossview_localizer.camera.rectification import ImageRectifier
from crossview_localizer.datatypes import CameraModel, Heatmap, PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D, wrap_angle
from crossview_localizer.ros import conversions
from crossview_localizer.ros.status import Level, Status

OXFORD = LocalFrame(51.76, -1.26)
FORWARD_CAMERA = conversions.base_from_camera_body((0.0, 0.0, 0.0, 0.0, 0.0, 0.0))


def camera_info(width=8, height=6, d=(), model='plumb_bob') -> CameraInfo:
    k = [100.0, 0.0, (width - 1) / 2, 0.0, 100.0, (height - 1) / 2, 0.0, 0.0, 1.0]
    p = [90.0, 0.0, 3.0, 0.0, 0.0, 90.0, 2.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    return CameraInfo(
        width=width, height=height, k=k, p=p, d=list(d), distortion_model=model)


def rectifier(width=8, height=6) -> ImageRectifier:
    return conversions.rectifier_from_msg(camera_info(width, height), FORWARD_CAMERA, 1.5)


def image_msg(pixels: np.ndarray, encoding: str, padding=0, big_endian=False) -> Image:
    """An Image of (H, W) or (H, W, C) values with ``padding`` bytes of 0xAA after each row."""
    if big_endian:
        pixels = pixels.astype(pixels.dtype.newbyteorder('>'))
    rows = np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xAA)
    msg = Image(
        height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1],
        is_bigendian=int(big_endian))
    msg.data = array('B', rows.tobytes())
    msg.header.stamp.sec = 12
    msg.header.stamp.nanosec = 34
    return msg


def random_rgb(height=6, width=8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- images

RGB = random_rgb()


def test_an_image_message_becomes_a_camera_image_of_its_stamp():
    image = conversions.camera_image_from_msg(image_msg(RGB, 'rgb8', padding=5), rectifier())
    np.testing.assert_array_equal(image.rgb, RGB)
    assert (image.stamp_ns, image.camera.width_px) == (12_000_000_034, 8)
    png = CompressedImage(format='rgb8; png compressed bgr8')
    png.data = array('B', cv2.imencode('.png', RGB[..., ::-1])[1].tobytes())
    np.testing.assert_array_equal(conversions.camera_image_from_msg(png, rectifier()).rgb, RGB)


def test_an_image_of_another_size_than_camera_info_is_refused():
    with pytest.raises(ValueError, match='8x5 px; camera_info describes 8x6 px'):
        conversions.camera_image_from_msg(image_msg(random_rgb(5, 8), 'rgb8'), rectifier())


def test_an_encoding_outside_the_tables_goes_to_cv_bridge_where_there_is_one(monkeypatch):
    class Bridge:
        def imgmsg_to_cv2(self, msg, encoding):
            assert (msg.encoding, encoding) == ('nv21', 'rgb8')
            return RGB

    monkeypatch.setattr(conversions, 'CvBridge', Bridge)
    msg = image_msg(RGB[..., :2].copy(), 'nv21')
    np.testing.assert_array_equal(conversions.camera_image_from_msg(msg, rectifier()).rgb, RGB)
    monkeypatch.setattr(conversions, 'CvBridge', None)
    with pytest.raises(ValueError, match='nv21.*cv_bridge'):
        conversions.camera_image_from_msg(msg, rectifier())


def test_an_image_as_rosbags_reads_it_gives_the_same_camera_image():
    msg = image_msg(RGB, 'rgb8', padding=3)
    read = SimpleNamespace(
        header=SimpleNamespace(stamp=SimpleNamespace(sec=12, nanosec=34)), height=6, width=8,
        encoding='rgb8', step=27, is_bigendian=0, data=np.frombuffer(msg.data, np.uint8))
    first = conversions.camera_image_from_msg(msg, rectifier())
    second = conversions.camera_image_from_msg(read, rectifier())
    np.testing.assert_array_equal(first.rgb, second.rgb)
    assert first.stamp_ns == second.stamp_ns


# --- camera


def project(points: np.ndarray, camera: CameraModel) -> np.ndarray:
    return np.stack((
        camera.fx_px * points[:, 0] / points[:, 2] + camera.cx_px,
        camera.fy_px * points[:, 1] / points[:, 2] + camera.cy_px), -1)


@pytest.mark.parametrize(('model', 'd'), [
    ('plumb_bob', [-0.3, 0.1, 0.001, -0.002, 0.0]),
    ('rational_polynomial', [-0.3, 0.1, 0.001, -0.002, 0.01, 0.05, 0.02, 0.01]),
    ('equidistant', [0.05, -0.01, 0.002, 0.0]),
])
def test_a_point_lands_where_the_pinhole_says_after_undistortion(model, d):
    info = camera_info(400, 300, d, model)
    info.k[0] = info.k[4] = 250.0
    k = np.array(info.k).reshape(3, 3)
    points = np.array([[-0.5, -0.35, 1.0], [0.4, 0.3, 1.0], [0.35, -0.4, 1.0]])
    if model == 'equidistant':
        distorted = cv2.fisheye.distortPoints(
            points[None, :, :2], k, np.array(d)).reshape(-1, 2)
    else:
        distorted = cv2.projectPoints(
            points, np.zeros(3), np.zeros(3), k, np.array(d))[0].reshape(-1, 2)
    u_px, v_px = np.meshgrid(np.arange(400), np.arange(300))
    brightness = sum(
        np.exp(-((u_px - u) ** 2 + (v_px - v) ** 2) / (2 * 3.0**2)) for u, v in distorted)
    rgb = np.repeat((255 * brightness).astype(np.uint8)[..., None], 3, -1)

    rectify = conversions.rectifier_from_msg(info, FORWARD_CAMERA, 1.5)
    straight = rectify(rgb)[..., 0].astype(float)
    for (u, v), (u_raw, v_raw) in zip(project(points, rectify.camera), distorted):
        assert math.hypot(u - u_raw, v - v_raw) > 2.0
        near = ((u_px - u) ** 2 + (v_px - v) ** 2 < 15**2) * straight
        assert (near * u_px).sum() / near.sum() == pytest.approx(u, abs=0.5)
        assert (near * v_px).sum() / near.sum() == pytest.approx(v, abs=0.5)


@pytest.mark.parametrize('distortion', [(), (-0.3, 0.1, 0.001, -0.002, 0.0)])
@pytest.mark.parametrize(('quarters', 'tilt_rad'), [(1, 0.1), (2, -0.3), (3, 0.2), (0, 0.3)])
def test_a_camera_that_is_mounted_turned_gives_upright_images(quarters, tilt_rad, distortion):
    """A point of the world has the same colour and place as with the camera turned by hand."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler('z', quarters * math.pi / 2 + tilt_rad).as_matrix()
    info = camera_info(40, 30, distortion)
    mounting = FORWARD_CAMERA @ turn
    rgb = random_rgb(30, 40)
    rectify = conversions.rectifier_from_msg(info, mounting, 1.5)
    upright, camera = rectify(rgb), rectify.camera
    assert upright.shape[:2] == (camera.height_px, camera.width_px)
    assert (camera.height_px > camera.width_px) == bool(quarters % 2)
    up = np.linalg.inv(camera.base_from_camera)[:3, 2]
    assert math.atan2(up[0], -up[1]) == pytest.approx(-tilt_rad, abs=1e-9)
    flat = conversions.rectifier_from_msg(info, FORWARD_CAMERA, 1.5)
    for u, v in ((3, 4), (30, 20), (17, 9)):
        ray = np.array([(u - flat.camera.cx_px) / 100.0, (v - flat.camera.cy_px) / 100.0, 1.0])
        in_upright = (np.linalg.inv(camera.base_from_camera) @ mounting)[:3, :3] @ ray
        (pixel,) = project(in_upright[None], camera)
        column, row = np.rint(pixel).astype(int)
        np.testing.assert_allclose(pixel, (column, row), atol=1e-9)
        np.testing.assert_array_equal(upright[row, column], flat(rgb)[v, u])


def test_a_camera_that_looks_straight_down_is_left_as_it_is():
    down = conversions.base_from_camera_body((0.0, 0.0, 0.0, 0.0, math.pi / 2, 0.4))
    rectify = conversions.rectifier_from_msg(camera_info(), down, 1.5)
    np.testing.assert_array_equal(rectify(RGB), RGB)


def test_without_distortion_the_image_is_unchanged():
    rgb = random_rgb()
    for d in ((), (0.0, 0.0, 0.0, 0.0, 0.0)):
        rectify = conversions.rectifier_from_msg(camera_info(d=d), FORWARD_CAMERA, 1.5)
        assert rectify(rgb) is rgb


def test_a_rectified_image_obeys_the_projection_matrix_and_is_not_undistorted_again():
    info = camera_info(d=(-0.3, 0.1, 0.0, 0.0, 0.0))
    rectify = conversions.rectifier_from_msg(info, FORWARD_CAMERA, 1.5, image_is_rectified=True)
    rgb = random_rgb()
    assert rectify(rgb) is rgb
    camera = rectify.camera
    assert (camera.fx_px, camera.cx_px, camera.cy_px) == (90.0, 3.0, 2.0)


def test_a_region_of_interest_and_binning_move_and_scale_the_principal_point():
    info = camera_info(1280, 960)
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 40, 20, 1200, 800
    info.binning_x = info.binning_y = 2
    camera = conversions.rectifier_from_msg(info, FORWARD_CAMERA, 1.5).camera
    assert (camera.width_px, camera.height_px) == (600, 400)
    assert camera.fx_px == 50.0
    assert camera.cx_px == (639.5 - 40) / 2
    assert camera.cy_px == (479.5 - 20) / 2


def test_an_uncalibrated_or_unknown_camera_is_refused():
    with pytest.raises(ValueError, match='not calibrated'):
        conversions.rectifier_from_msg(CameraInfo(width=8, height=6), FORWARD_CAMERA, 1.5)
    with pytest.raises(ValueError, match='kannala'):
        conversions.rectifier_from_msg(
            camera_info(d=(0.1,) * 4, model='kannala'), FORWARD_CAMERA, 1.5)


def test_a_camera_info_that_is_not_valid_is_refused():
    for change, said in (
            ({'d': (math.nan,) * 5}, 'not finite'), ({'d': (0.1,) * 3}, '3 coefficients'),
            ({'d': (0.1,) * 3, 'model': 'equidistant'}, '3 coefficients'),
            ({'width': 40_000, 'height': 40_000}, 'million pixels')):
        with pytest.raises(ValueError, match=said):
            conversions.rectifier_from_msg(camera_info(**change), FORWARD_CAMERA, 1.5)
    without_centre = camera_info()
    without_centre.k[2] = without_centre.k[5] = 0.0
    with pytest.raises(ValueError, match='principal point at 0, 0'):
        conversions.rectifier_from_msg(without_centre, FORWARD_CAMERA, 1.5)


def test_the_calibration_of_other_images_or_in_another_unit_is_refused():
    halved = camera_info(width=640, height=480)
    halved.width, halved.height = 320, 240
    with pytest.raises(ValueError, match=r'principal point at 319\.5, 239\.5 px of 320x240 px'):
        conversions.rectifier_from_msg(halved, FORWARD_CAMERA, 1.5)
    halved.height = 480  # the left half of the images
    assert conversions.rectifier_from_msg(halved, FORWARD_CAMERA, 1.5).camera.cx_px == 319.5
    normalized = camera_info()
    normalized.k[0] = normalized.k[4] = 0.2
    with pytest.raises(ValueError, match=r'focal length of 0\.2 px for a width of 8 px.*unit'):
        conversions.rectifier_from_msg(normalized, FORWARD_CAMERA, 1.5)


def test_the_frame_of_a_camera_body_in_place_of_the_optical_one_is_refused():
    with pytest.raises(ValueError, match='looks up.*optical frame'):
        conversions.rectifier_from_msg(camera_info(), np.eye(4), 1.5)


def test_odometry_beyond_any_drive_is_refused():
    msg = Odometry()
    msg.pose.pose.orientation.w = 1.0
    for x_m in (1e9, math.inf, math.nan):
        msg.pose.pose.position.x = x_m
        with pytest.raises(ValueError, match='is not valid'):
            conversions.odometry_sample_from_msg(msg)


def test_a_camera_body_pitched_nose_down_looks_down_ahead():
    base_from_camera = conversions.base_from_camera_body((1.0, 0.2, 1.5, 0.0, 0.1, 0.0))
    axis = base_from_camera[:3, :3] @ [0.0, 0.0, 1.0]
    np.testing.assert_allclose(axis, [math.cos(0.1), 0.0, -math.sin(0.1)], atol=1e-12)
    right = base_from_camera[:3, :3] @ [1.0, 0.0, 0.0]
    np.testing.assert_allclose(right, [0.0, -1.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(base_from_camera[:3, 3], [1.0, 0.2, 1.5])


# --- rotation and transforms


@pytest.mark.parametrize('yaw_rad', [-3.1, -1.0, 0.0, 0.5, 3.1])
def test_yaw_comes_back_from_its_quaternion_of_any_length(yaw_rad):
    q = conversions.quaternion_msg_from_yaw(yaw_rad)
    assert conversions.yaw_from_quaternion(q) == pytest.approx(yaw_rad)
    double = Quaternion(x=2 * q.x, y=2 * q.y, z=2 * q.z, w=2 * q.w)
    assert conversions.yaw_from_quaternion(double) == pytest.approx(yaw_rad)
    a_from_b = conversions.matrix_from_transform(Transform(rotation=double))
    np.testing.assert_allclose(
        a_from_b[:2, 0], [math.cos(yaw_rad), math.sin(yaw_rad)], atol=1e-12)


@pytest.mark.parametrize('q', [Quaternion(w=0.0), Quaternion(z=math.nan)])
def test_a_quaternion_without_a_rotation_is_refused(q):
    with pytest.raises(ValueError, match='is not valid'):
        conversions.yaw_from_quaternion(q)


def test_a_transform_with_a_roll_turns_about_x():
    transform = Transform()
    transform.translation.y = 2.0
    transform.rotation = Quaternion(x=math.sin(0.15), w=math.cos(0.15))
    a_from_b = conversions.matrix_from_transform(transform)
    np.testing.assert_allclose(
        a_from_b @ [0.0, 1.0, 0.0, 1.0], [0.0, 2.0 + math.cos(0.3), math.sin(0.3), 1.0])


# --- GNSS


def fix_msg(latitude=51.7606, longitude=-1.2610, status=0, covariance=(4.0, 0, 0, 0, 4.0, 0, 0,
                                                                      0, 9.0), kind=2):
    msg = NavSatFix(latitude=latitude, longitude=longitude, altitude=60.0)
    msg.header.stamp.sec = 5
    msg.status.status = status
    msg.position_covariance = [float(value) for value in covariance]
    msg.position_covariance_type = kind
    return msg


def gnss_fix(msg, frame=OXFORD):
    return conversions.gnss_fix_from_msg(msg, frame, (-1.7, 0.1), unknown_sigma_m=5.0)


def test_a_fix_is_placed_in_the_map_with_its_lever_arm():
    fix = gnss_fix(fix_msg())
    assert (fix.x_m, fix.y_m) == pytest.approx(OXFORD.xy_from_latlon(51.7606, -1.2610))
    assert fix.stamp_ns == 5_000_000_000
    assert fix.base_from_antenna_m == (-1.7, 0.1)
    np.testing.assert_allclose(fix.covariance, np.eye(2) * 4.0, atol=1e-12)
    turned = gnss_fix(fix_msg(longitude=360.0 - 1.2610))
    assert (turned.x_m, turned.y_m) == pytest.approx((fix.x_m, fix.y_m), abs=1e-6)


def test_the_covariance_of_a_fix_is_turned_from_true_east_to_the_map():
    frame = LocalFrame(51.76, -3.0)  # UTM-like distance: the convergence is 1.4 degrees
    msg = fix_msg(covariance=(9.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    fix = gnss_fix(msg, frame)
    angle_rad = 0.5 * math.atan2(
        2 * fix.covariance[0, 1], fix.covariance[0, 0] - fix.covariance[1, 1])
    # The direction of true east in the map plane, by a step along the parallel.
    x_m, y_m = frame.xy_from_latlon(np.array([51.7606] * 2), np.array([-1.2610, -1.2609]))
    assert angle_rad == pytest.approx(math.atan2(y_m[1] - y_m[0], x_m[1] - x_m[0]), abs=1e-5)
    assert abs(angle_rad) > math.radians(1.0)


@pytest.mark.parametrize('msg', [
    fix_msg(kind=0),
    fix_msg(covariance=(0,) * 9),
    fix_msg(covariance=(math.nan,) * 9),
    fix_msg(covariance=(-1.0, 0, 0, 0, 4.0, 0, 0, 0, 9.0)),
    fix_msg(covariance=(1.0, 5.0, 0, 5.0, 1.0, 0, 0, 0, 9.0)),
])
def test_a_zero_nan_or_impossible_covariance_counts_as_unknown(msg):
    assert conversions.gnss_covariance_from_msg(msg) is None
    np.testing.assert_allclose(gnss_fix(msg).covariance, np.eye(2) * 25.0)


@pytest.mark.parametrize(('msg', 'complaint'), [
    (fix_msg(status=-1), 'no fix'),
    (fix_msg(latitude=math.nan), 'not a latitude'),
    (fix_msg(latitude=95.0), 'not a latitude.*or the altitude'),
    (fix_msg(latitude=517606000.0, longitude=-12610000.0), 'units of 1e-7 degrees'),
    (fix_msg(latitude=5145.6, longitude=-115.6), 'degrees and minutes'),
    (fix_msg(latitude=math.radians(51.7606), longitude=math.radians(-1.261)), 'sends radians'),
    (fix_msg(latitude=-51.7606), 'loses the sign of the latitude'),
    (fix_msg(longitude=math.inf), 'not a latitude'),
    (fix_msg(latitude=-1.2610, longitude=51.7606),
     '7686 km from the origin of the map .*: the driver exchanges latitude and longitude'),
    (fix_msg(latitude=45.0), '752 km from .*; expected at most 500 km: is it the right map'),
])
def test_a_message_without_a_position_is_refused_with_the_reason(msg, complaint):
    with pytest.raises(ValueError, match=complaint):
        gnss_fix(msg)


def test_an_infinite_variance_of_the_height_alone_does_not_matter():
    fix = gnss_fix(fix_msg(covariance=(4.0, 0, 0, 0, 4.0, 0, 0, 0, math.inf)))
    np.testing.assert_allclose(fix.covariance, 4.0 * np.eye(2), atol=1e-9)


def test_a_fix_whose_driver_never_sets_the_status_is_used():
    assert gnss_fix(fix_msg(status=-2)).stamp_ns == 5_000_000_000


# --- odometry and poses


def velocity_msg(east_mps, north_mps, covariance=((0.04, 0.01), (0.01, 0.09))):
    msg = TwistWithCovarianceStamped()
    msg.header.stamp.sec = 7
    msg.twist.twist.linear = Vector3(x=east_mps, y=north_mps)
    full = np.zeros((6, 6))
    full[:2, :2] = covariance
    full[3, 3] = -1.0  # as drivers mark a rotation that they do not measure
    msg.twist.covariance = full.ravel()
    return msg


def gnss_course(msg, frame=OXFORD, antenna_m=(0.0, 0.0)):
    return conversions.gnss_course_from_msg(msg, frame, antenna_m, (-1.7, 0.1), 0.5)


def test_a_velocity_becomes_a_course_whose_sigma_is_that_across_it_over_the_speed():
    antenna_m = OXFORD.xy_from_latlon(51.76, -0.26)
    course = gnss_course(velocity_msg(3.0, 4.0), antenna_m=antenna_m)
    assert course.stamp_ns == 7_000_000_000
    assert course.base_from_antenna_m == (-1.7, 0.1)
    # A degree of longitude east of the origin the map's north is sin(latitude) degrees off.
    turned_rad = math.radians(math.sin(math.radians(51.76)))
    assert course.course_rad == pytest.approx(math.atan2(4.0, 3.0) + turned_rad, abs=1e-6)
    # (-4, 3) / 5 is across: (16 0.04 - 2 12 0.01 + 9 0.09) / 25.
    assert course.sigma_rad == pytest.approx(math.sqrt((0.64 - 0.24 + 0.81) / 25.0) / 5.0)


@pytest.mark.parametrize('msg', [
    velocity_msg(3.0, 4.0, np.zeros((2, 2))), velocity_msg(3.0, 4.0, np.full((2, 2), math.nan)),
    velocity_msg(3.0, 4.0, -np.eye(2)),
    TwistStamped(twist=Twist(linear=Vector3(x=3.0, y=4.0))),
], ids=['zero', 'nan', 'negative', 'none'])
def test_a_velocity_whose_covariance_is_unknown_has_the_assumed_sigma(msg):
    assert gnss_course(msg).sigma_rad == pytest.approx(0.5 / 5.0)
    assert gnss_course(msg).course_rad == pytest.approx(math.atan2(4.0, 3.0))


def test_at_a_standstill_the_course_is_unknown():
    assert gnss_course(velocity_msg(0.0, 0.0)).sigma_rad == math.pi
    assert gnss_course(velocity_msg(1e-300, 0.0)).sigma_rad == math.pi


@pytest.mark.parametrize(('msg', 'complaint'), [
    (velocity_msg(math.nan, 0.0), 'not finite'), (velocity_msg(0.0, -math.inf), 'not finite'),
    (velocity_msg(1e9, 0.0), 'above 1000 m/s'),
    (velocity_msg(3.0, 4.0, np.diag([1.0, math.inf])), 'covariance is infinite'),
])
def test_a_velocity_that_is_not_valid_is_refused_with_the_reason(msg, complaint):
    with pytest.raises(ValueError, match=complaint):
        gnss_course(msg)


def test_odometry_becomes_a_planar_sample():
    msg = Odometry()
    msg.header.stamp.sec = 3
    msg.pose.pose.position.x, msg.pose.pose.position.y = 1.0, -2.0
    msg.pose.pose.orientation = conversions.quaternion_msg_from_yaw(0.7)
    sample = conversions.odometry_sample_from_msg(msg)
    assert sample.stamp_ns == 3_000_000_000
    np.testing.assert_allclose(sample.odom_from_base.as_array(), [1.0, -2.0, 0.7])


def test_odometry_with_nan_is_refused():
    msg = Odometry()
    msg.pose.pose.orientation.w = 1.0
    msg.pose.pose.position.x = math.nan
    with pytest.raises(ValueError, match='is not valid'):
        conversions.odometry_sample_from_msg(msg)


ESTIMATE = PoseEstimate(
    1_500_000_000, Pose2D(100.0, 50.0, 0.4),
    np.array([[4.0, 1.0, 0.01], [1.0, 2.0, 0.02], [0.01, 0.02, 0.003]]))


def test_a_pose_is_the_same_after_the_way_to_a_message_and_back():
    msg = conversions.pose_msg_from_estimate(ESTIMATE, 'map')
    assert msg.header.frame_id == 'map'
    back = conversions.pose_estimate_from_msg(msg)
    assert back.stamp_ns == ESTIMATE.stamp_ns
    np.testing.assert_allclose(back.pose.as_array(), ESTIMATE.pose.as_array())
    np.testing.assert_allclose(back.covariance, ESTIMATE.covariance)


def test_a_coordinate_that_is_not_estimated_has_a_large_finite_variance():
    unobserved = replace(ESTIMATE, covariance=np.diag([4.0, 2.0, math.inf]))
    covariance = np.array(
        conversions.pose_msg_from_estimate(unobserved, 'map').pose.covariance).reshape(6, 6)
    assert np.isfinite(covariance).all()
    np.testing.assert_allclose(np.diag(covariance), [4.0, 2.0, 1e6, 1e6, 1e6, 1e6])


@pytest.mark.parametrize('diagonal', [0.0, math.nan, -1.0])
def test_an_initial_pose_without_a_usable_covariance_is_refused(diagonal):
    msg = PoseWithCovarianceStamped()
    msg.pose.pose.orientation.w = 1.0
    msg.pose.covariance[0] = diagonal
    with pytest.raises(ValueError, match='positive definite'):
        conversions.pose_estimate_from_msg(msg)


def test_published_odometry_carries_the_estimate_and_the_twist_it_was_given():
    twist = TwistWithCovariance()
    twist.twist.linear.x = 8.0
    msg = conversions.odometry_msg_from_estimate(ESTIMATE, 'map', 'base_link', twist)
    assert (msg.header.frame_id, msg.child_frame_id) == ('map', 'base_link')
    assert msg.pose.pose.position.x == 100.0
    assert msg.twist.twist.linear.x == 8.0
    twist.twist.angular.z = math.nan
    msg = conversions.odometry_msg_from_estimate(ESTIMATE, 'map', 'base_link', twist)
    assert msg.twist.twist == Twist()
    assert msg.twist.covariance[0] == conversions.UNOBSERVED_VARIANCE


def test_the_orientation_of_a_geopose_is_measured_from_true_east():
    frame = LocalFrame(51.76, -3.0)
    # Drive 1 m along the heading and see on the ellipsoid where that leads.
    start = Pose2D(120_000.0, 500.0, 0.6)
    estimate = replace(ESTIMATE, pose=start)
    msg = conversions.geopose_msg_from_estimate(estimate, frame)
    latitude_deg, longitude_deg = frame.latlon_from_xy(
        start.x_m + math.cos(0.6), start.y_m + math.sin(0.6))
    position = msg.pose.pose.position
    from pyproj import Geod
    bearing_deg, _, _ = Geod(ellps='WGS84').inv(
        position.longitude, position.latitude, longitude_deg, latitude_deg)
    yaw_rad = conversions.yaw_from_quaternion(msg.pose.pose.orientation)
    assert wrap_angle(yaw_rad - (math.pi / 2 - math.radians(bearing_deg))) == pytest.approx(
        0.0, abs=1e-6)
    assert abs(yaw_rad - 0.6) > math.radians(1.0)
    assert math.isnan(position.altitude)


def test_the_transform_of_a_pose_names_both_frames():
    msg = conversions.transform_msg_from_pose(Pose2D(1.0, 2.0, 0.3), 7, 'map', 'odom')
    assert (msg.header.frame_id, msg.child_frame_id) == ('map', 'odom')
    assert (msg.transform.translation.x, msg.transform.translation.y) == (1.0, 2.0)
    assert conversions.yaw_from_quaternion(msg.transform.rotation) == pytest.approx(0.3)
    assert msg.header.stamp.nanosec == 7


# --- heat map and diagnostics


def test_row_0_of_the_heat_map_message_is_the_south_and_its_origin_the_outer_corner():
    grid = MapGrid(rows=3, cols=2, cell_m=2.0, x0_m=10.0, y0_m=20.0)
    p = np.array([[0.0, 0.4], [0.1, 0.3], [0.2, 0.0]])  # row 0 is the north
    with np.errstate(divide='ignore'):
        msg = conversions.heatmap_msg_from_heatmap(Heatmap(9, grid, np.log(p)), 'map')
    np.testing.assert_array_equal(
        np.array(msg.data).reshape(3, 2), [[50, -1], [25, 75], [-1, 100]])
    assert (msg.info.width, msg.info.height, msg.info.resolution) == (2, 3, 2.0)
    assert (msg.info.origin.position.x, msg.info.origin.position.y) == (9.0, 15.0)
    assert msg.header.stamp.nanosec == 9
    # The cell with the greatest probability, found as RViz places it.
    row, col = np.unravel_index(np.argmax(msg.data), (3, 2))
    assert msg.info.origin.position.x + (col + 0.5) * 2.0 == grid.xy_from_row_col(0, 1)[0]
    assert msg.info.origin.position.y + (row + 0.5) * 2.0 == grid.xy_from_row_col(0, 1)[1]


def test_a_heat_map_that_is_unknown_everywhere_is_a_cleared_one():
    grid = MapGrid(2, 2, 1.0, 0.0, 0.0)
    msg = conversions.heatmap_msg_from_heatmap(
        Heatmap(1, grid, np.full((2, 2), -np.inf)), 'map')
    assert list(msg.data) == [-1] * 4


def test_diagnostics_carry_level_text_and_values():
    msg = conversions.diagnostics_msg_from_statuses(
        [Status('camera', Level.WARN, 'silent', {'age_s': 3})], 2_000_000_000, 'localizer')
    status = msg.status[0]
    assert status.level == b'\x01'
    assert (status.name, status.message) == ('localizer: camera', 'silent')
    assert (status.values[0].key, status.values[0].value) == ('age_s', '3')
    assert msg.header.stamp.sec == 2
