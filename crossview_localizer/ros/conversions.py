"""ROS messages to and from the datatypes.

Functions that read a message use its fields by name only: messages read from a bag by ``rosbags``
will do as well as those of rclpy.  The node and the offline tools share every conversion.

A message that cannot be used raises ValueError with what was found and what was expected; the
text is what /diagnostics shows.
"""

from array import array
import math

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from geographic_msgs.msg import GeoPoseWithCovarianceStamped
from geometry_msgs.msg import PoseWithCovarianceStamped, Quaternion, TransformStamped
from nav_msgs.msg import OccupancyGrid, Odometry
import numpy as np
from scipy.spatial.transform import Rotation

from crossview_localizer.camera.decoding import (
    BitDepth,
    ENCODINGS,
    rgb_from_compressed,
    rgb_from_raw,
)
from crossview_localizer.camera.rectification import ImageRectifier
from crossview_localizer.datatypes import (
    CameraImage,
    CameraModel,
    GnssCourse,
    GnssFix,
    Heatmap,
    OdometrySample,
    PoseEstimate,
)
from crossview_localizer.geometry import distance_on_earth_m, LocalFrame, Pose2D, wrap_angle
from crossview_localizer.ros.status import Status

try:
    from cv_bridge import CvBridge
except ImportError:
    CvBridge = None

# Variance (m2, rad2) of what is not estimated: RViz and robot_localization want it finite.
UNOBSERVED_VARIANCE = 1e6
MAX_IMAGE_PX = 2**26
MAX_COORDINATE_M = 1e8
MAX_SPEED_MPS = 1e3
# NavSatStatus.STATUS_UNKNOWN of Jazzy and later: what a driver sends that never sets the status.
GNSS_STATUS_UNKNOWN = -2
# A fix farther from the origin of the map belongs to another place.
MAX_ORIGIN_DISTANCE_M = 500e3
# The sine of the largest elevation of a camera's axis: above it no road is seen.
MAX_UPWARD = 0.7
# A focal length below this share of the width is that of no lens; a principal point beyond this
# share of both sides is that of other images.
MIN_FOCAL_SHARE, FAR_SHARE = 0.05, 0.7
PLANAR = (0, 1, 5)  # rows of x, y, yaw in a pose's 6x6 covariance

# Camera body (x ahead, y left, z up) from optical frame (x right, y down, z ahead), REP-103.
BODY_FROM_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


# --- time and rotation


def stamp_ns_from_msg(stamp) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def stamp_msg_from_ns(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // 1_000_000_000, nanosec=stamp_ns % 1_000_000_000)


def yaw_from_quaternion(q) -> float:
    """Yaw of a quaternion of any length; zero and NaN raise ValueError."""
    norm2 = q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z
    if not (math.isfinite(norm2) and norm2 > 1e-6):
        raise ValueError(
            f'orientation ({q.x}, {q.y}, {q.z}, {q.w}) is not valid; expected a quaternion of '
            'length 1')
    return wrap_angle(
        math.atan2(2.0 * (q.w * q.z + q.x * q.y), q.w**2 + q.x**2 - q.y**2 - q.z**2))


def quaternion_msg_from_yaw(yaw_rad: float) -> Quaternion:
    return Quaternion(z=math.sin(yaw_rad / 2.0), w=math.cos(yaw_rad / 2.0))


def matrix_from_transform(transform) -> np.ndarray:
    """geometry_msgs/Transform of frame_id=a, child_frame_id=b as ``a_from_b`` (4, 4)."""
    q, t = transform.rotation, transform.translation
    yaw_from_quaternion(q)  # raises ValueError where it is not a rotation
    a_from_b = np.eye(4)
    a_from_b[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    a_from_b[:3, 3] = t.x, t.y, t.z
    if not np.isfinite(a_from_b).all():
        raise ValueError(f'translation ({t.x}, {t.y}, {t.z}) is not finite')
    return a_from_b


def base_from_camera_body(xyz_rpy) -> np.ndarray:
    """Mounting (x, y, z, roll, pitch, yaw) of the camera body to base_from_optical (4, 4).

    The angles turn about fixed axes in the order of URDF: roll about x, pitch about y (positive
    nose down), yaw about z.
    """
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = (
        Rotation.from_euler('xyz', xyz_rpy[3:]).as_matrix() @ BODY_FROM_OPTICAL)
    base_from_camera[:3, 3] = xyz_rpy[:3]
    return base_from_camera


def _turn_about_z(angle_rad: float) -> np.ndarray:
    """Rotation (3, 3), counter-clockwise seen from above."""
    return Rotation.from_euler('z', angle_rad).as_matrix()


# --- GNSS


def gnss_latlon_from_msg(msg) -> tuple[float, float]:
    """Latitude and longitude in degrees of a NavSatFix; raises ValueError if it is not valid.

    A status that the driver has not set (STATUS_UNKNOWN) says nothing against a position.
    """
    if msg.status.status < 0 and msg.status.status != GNSS_STATUS_UNKNOWN:
        raise ValueError(f'the receiver has no fix (status {msg.status.status})')
    latlon = msg.latitude, msg.longitude
    if not (abs(latlon[0]) <= 90.0 and abs(latlon[1]) <= 360.0):  # NaN fails too
        raise ValueError(f'position ({latlon[0]}, {latlon[1]}) is not a latitude and longitude; '
                         f'expected degrees{_unit_hint(latlon)}')
    if latlon == (0.0, 0.0):
        raise ValueError('position (0, 0) is what receivers send before they know any')
    # A receiver that knows no height may give that an infinite variance.
    if np.isinf(np.reshape(msg.position_covariance, (3, 3))[:2, :2]).any():
        raise ValueError('covariance is infinite: the position is not known')
    if abs(latlon[1]) > 180.0:
        return latlon[0], latlon[1] - math.copysign(360.0, latlon[1])
    return latlon


def gnss_covariance_from_msg(msg) -> np.ndarray | None:
    """East-north covariance (2, 2) in m2, or None where the message does not know it.

    It is unknown where the type says so, or where it is NaN, zero, negative or not symmetric.
    """
    if msg.position_covariance_type == 0:
        return None
    return _known_covariance(
        np.asarray(msg.position_covariance, dtype=float).reshape(3, 3)[:2, :2])


def _known_covariance(covariance: np.ndarray) -> np.ndarray | None:
    """The covariance (2, 2), or None where it is NaN, zero, negative or not symmetric."""
    if not np.isfinite(covariance).all():
        return None
    symmetric = np.isclose(covariance[0, 1], covariance[1, 0], rtol=1e-6)
    if not symmetric or np.linalg.eigvalsh(covariance)[0] <= 0.0:
        return None
    return covariance


def gnss_fix_from_msg(
    msg, frame: LocalFrame, base_from_antenna_m: tuple[float, float], unknown_sigma_m: float
) -> GnssFix:
    """NavSatFix to the antenna's position in ``map``; its covariance is turned from true east.

    ``unknown_sigma_m`` stands in on each axis for a covariance that is unknown.
    """
    latitude_deg, longitude_deg = gnss_latlon_from_msg(msg)
    x_m, y_m = frame.xy_from_latlon(latitude_deg, longitude_deg)
    if far := far_from_origin_text((latitude_deg, longitude_deg), frame):
        raise ValueError(far)
    covariance = gnss_covariance_from_msg(msg)
    if covariance is None:
        covariance = np.eye(2) * unknown_sigma_m**2
    else:
        map_from_enu = _turn_about_z(frame.convergence_rad(x_m, y_m))[:2, :2]
        covariance = map_from_enu @ covariance @ map_from_enu.T
    return GnssFix(
        stamp_ns_from_msg(msg.header.stamp), float(x_m), float(y_m), covariance,
        base_from_antenna_m)


def far_from_origin_text(latlon_deg: tuple[float, float], frame: LocalFrame,
                         limit_m: float = MAX_ORIGIN_DISTANCE_M) -> str:
    """What to say of a position too far from the origin of the map to belong to it, else ''."""
    origin_deg = frame.latitude_deg, frame.longitude_deg
    distance_m = distance_on_earth_m(origin_deg, latlon_deg)
    if distance_m <= limit_m:
        return ''
    latitude_deg, longitude_deg = latlon_deg
    text = (f'position ({latitude_deg:.5f}, {longitude_deg:.5f}) is {distance_m / 1e3:.0f} km '
            f'from the origin of the map ({origin_deg[0]:.5f}, {origin_deg[1]:.5f})')
    if fault := position_fault(latlon_deg, frame, limit_m):
        return f'{text}: {fault}'
    return f'{text}; expected at most {limit_m / 1e3:.0f} km: is it the right map?'


def position_fault(latlon_deg: tuple[float, float], frame: LocalFrame, limit_m: float) -> str:
    """What a driver does wrong whose position would else be near the origin of the map, or ''."""
    latitude_deg, longitude_deg = latlon_deg
    for fault, candidate_deg in (
            ('exchanges latitude and longitude', (longitude_deg, latitude_deg)),
            ('loses the sign of the longitude', (latitude_deg, -longitude_deg)),
            ('loses the sign of the latitude', (-latitude_deg, longitude_deg)),
            ('sends radians', (math.degrees(latitude_deg), math.degrees(longitude_deg)))):
        if abs(candidate_deg[0]) <= 90.0 and abs(candidate_deg[1]) <= 180.0 and (
                distance_on_earth_m(
                    (frame.latitude_deg, frame.longitude_deg), candidate_deg) <= limit_m):
            return f'the driver {fault}'
    return ''


def _unit_hint(latlon) -> str:
    """What a position outside the range of degrees may be, or ''."""
    if max(map(abs, latlon)) > 1e6:
        return ': does the driver send units of 1e-7 degrees?'
    if 90.0 < abs(latlon[0]) < 9000.0 and math.isfinite(latlon[1]):
        return ': does the driver send degrees and minutes as NMEA does, or the altitude?'
    return ''


def gnss_velocity_covariance_from_msg(msg) -> np.ndarray | None:
    """East-north covariance (2, 2) in m2/s2, or None where the message does not know it.

    A TwistStamped has none; one that is NaN, zero, negative or not symmetric is unknown as well.
    An infinite one raises ValueError.
    """
    if not hasattr(msg.twist, 'covariance'):
        return None
    covariance = np.asarray(msg.twist.covariance, dtype=float).reshape(6, 6)[:2, :2]
    if np.isinf(covariance).any():
        raise ValueError('covariance is infinite: the velocity is not known')
    return _known_covariance(covariance)


def gnss_course_from_msg(
    msg, frame: LocalFrame, antenna_m: tuple[float, float],
    base_from_antenna_m: tuple[float, float], unknown_sigma_mps: float,
) -> GnssCourse:
    """A receiver's velocity (TwistWithCovarianceStamped or TwistStamped) to its direction.

    ``linear`` is east, north, up, as receivers publish it.  True north is that at ``antenna_m`` in
    ``map``; ``unknown_sigma_mps`` stands in on each axis for an unknown covariance.  With the
    velocity v of covariance C and the unit vector n across it

        course = atan2(v_north, v_east),  sigma_course = sqrt(n' C n) / |v|,

    linear in the error of v, and at most pi: at a standstill nothing is known of it.
    Raises ValueError for a velocity that is not finite, or a covariance that is infinite.
    """
    linear = getattr(msg.twist, 'twist', msg.twist).linear
    speed_mps = math.hypot(linear.x, linear.y)
    if not speed_mps <= MAX_SPEED_MPS:  # NaN fails too
        raise ValueError(
            f'velocity ({linear.x:g}, {linear.y:g}) is not finite, or above {MAX_SPEED_MPS:g} m/s')
    covariance = gnss_velocity_covariance_from_msg(msg)
    if covariance is None:
        covariance = np.eye(2) * unknown_sigma_mps**2
    course_rad = math.atan2(linear.y, linear.x)
    across = np.array([-math.sin(course_rad), math.cos(course_rad)])
    sigma_mps = math.sqrt(across @ covariance @ across)
    return GnssCourse(
        stamp_ns_from_msg(msg.header.stamp),
        wrap_angle(course_rad + frame.convergence_rad(*antenna_m)),
        sigma_mps / speed_mps if sigma_mps < math.pi * speed_mps else math.pi,
        base_from_antenna_m)


# --- odometry and poses


def odometry_sample_from_msg(msg) -> OdometrySample:
    pose = msg.pose.pose
    _require_finite_position(pose.position)
    return OdometrySample(
        stamp_ns_from_msg(msg.header.stamp),
        Pose2D(pose.position.x, pose.position.y, yaw_from_quaternion(pose.orientation)))


def pose_estimate_from_msg(msg) -> PoseEstimate:
    """PoseWithCovarianceStamped (already in ``map``) to a PoseEstimate."""
    position = msg.pose.pose.position
    yaw_rad = yaw_from_quaternion(msg.pose.pose.orientation)
    covariance = np.asarray(msg.pose.covariance, dtype=float).reshape(6, 6)
    covariance = covariance[np.ix_(PLANAR, PLANAR)]
    _require_finite_position(position)
    if not np.isfinite(covariance).all() or np.linalg.eigvalsh(covariance)[0] <= 0.0:
        raise ValueError('covariance of x, y and yaw is zero, NaN or not positive definite')
    return PoseEstimate(
        stamp_ns_from_msg(msg.header.stamp), Pose2D(position.x, position.y, yaw_rad), covariance)


def _require_finite_position(position) -> None:
    if not max(abs(position.x), abs(position.y)) <= MAX_COORDINATE_M:  # NaN fails too
        raise ValueError(
            f'position ({position.x:g}, {position.y:g}) is not valid; expected numbers up to '
            f'{MAX_COORDINATE_M:g} m')


def pose_msg_from_estimate(estimate: PoseEstimate, frame_id: str) -> PoseWithCovarianceStamped:
    msg = PoseWithCovarianceStamped()
    msg.header.frame_id = frame_id
    msg.header.stamp = stamp_msg_from_ns(estimate.stamp_ns)
    _fill_pose(msg.pose, estimate)
    return msg


def odometry_msg_from_estimate(
    estimate: PoseEstimate, frame_id: str, child_frame_id: str, twist
) -> Odometry:
    """The estimate with the ``twist`` (TwistWithCovariance, in base_link) of the odometry.

    A twist that is not finite is left out: zero, of a variance that says so.
    """
    msg = Odometry()
    msg.header.frame_id = frame_id
    msg.child_frame_id = child_frame_id
    msg.header.stamp = stamp_msg_from_ns(estimate.stamp_ns)
    _fill_pose(msg.pose, estimate)
    linear, angular = twist.twist.linear, twist.twist.angular
    values = (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)
    if all(map(math.isfinite, values)) and np.isfinite(twist.covariance).all():
        msg.twist = twist
    else:
        msg.twist.covariance = _covariance_6x6(np.eye(3) * UNOBSERVED_VARIANCE)
    return msg


def geopose_msg_from_estimate(
    estimate: PoseEstimate, frame: LocalFrame
) -> GeoPoseWithCovarianceStamped:
    """Latitude, longitude and yaw from true east; altitude is NaN, the message's "unspecified"."""
    pose = estimate.pose
    convergence_rad = frame.convergence_rad(pose.x_m, pose.y_m)
    enu_from_map = _turn_about_z(-convergence_rad)
    msg = GeoPoseWithCovarianceStamped()
    msg.header.frame_id = 'wgs84'
    msg.header.stamp = stamp_msg_from_ns(estimate.stamp_ns)
    position = msg.pose.pose.position
    position.latitude, position.longitude = frame.latlon_from_xy(pose.x_m, pose.y_m)
    position.altitude = math.nan
    msg.pose.pose.orientation = quaternion_msg_from_yaw(pose.yaw_rad - convergence_rad)
    msg.pose.covariance = _covariance_6x6(
        enu_from_map @ _finite_covariance(estimate.covariance) @ enu_from_map.T)
    return msg


def transform_msg_from_pose(
    a_from_b: Pose2D, stamp_ns: int, frame_id: str, child_frame_id: str
) -> TransformStamped:
    msg = TransformStamped()
    msg.header.frame_id = frame_id
    msg.child_frame_id = child_frame_id
    msg.header.stamp = stamp_msg_from_ns(stamp_ns)
    msg.transform.translation.x = a_from_b.x_m
    msg.transform.translation.y = a_from_b.y_m
    msg.transform.rotation = quaternion_msg_from_yaw(a_from_b.yaw_rad)
    return msg


def _fill_pose(pose_with_covariance, estimate: PoseEstimate) -> None:
    pose_with_covariance.pose.position.x = estimate.pose.x_m
    pose_with_covariance.pose.position.y = estimate.pose.y_m
    pose_with_covariance.pose.orientation = quaternion_msg_from_yaw(estimate.pose.yaw_rad)
    pose_with_covariance.covariance = _covariance_6x6(_finite_covariance(estimate.covariance))


def _finite_covariance(covariance: np.ndarray) -> np.ndarray:
    """The (3, 3) covariance with unobserved (inf) coordinates made large and uncorrelated."""
    finite = np.array(covariance, dtype=float)
    unobserved = ~np.isfinite(np.diag(finite))
    finite[unobserved, :] = 0.0
    finite[:, unobserved] = 0.0
    finite[unobserved, unobserved] = UNOBSERVED_VARIANCE
    return finite


def _covariance_6x6(planar: np.ndarray) -> np.ndarray:
    """Place (x, y, yaw) in the flat (x, y, z, roll, pitch, yaw) covariance of a message."""
    covariance = np.eye(6) * UNOBSERVED_VARIANCE
    covariance[np.ix_(PLANAR, PLANAR)] = planar
    return covariance.ravel()


# --- camera


def rectifier_from_msg(
    info, base_from_camera: np.ndarray, height_m: float, image_is_rectified: bool = False
) -> ImageRectifier:
    """CameraInfo and mounting to an ImageRectifier.

    ``base_from_camera`` (4, 4) belongs to the optical frame.  ``image_is_rectified`` takes the
    projection matrix P and leaves the distortion alone.
    """
    k = np.array(info.p if image_is_rectified else info.k, dtype=float).reshape(3, -1)[:, :3]
    if not (np.isfinite(k).all() and k[0, 0] > 0.0 and k[1, 1] > 0.0):
        raise ValueError('camera_info is not calibrated (focal length 0)')
    if not k[:2, 2].any():
        raise ValueError('camera_info is not calibrated (principal point at 0, 0)')
    if base_from_camera[2, 2] > MAX_UPWARD:
        raise ValueError(
            'the camera looks up by its extrinsics; expected those of its optical frame (x right, '
            "y down, z ahead): is the images' frame_id that of the camera's body?")
    # A region of interest, then binning, of the full sensor that K describes.
    binning = np.array([max(info.binning_x, 1), max(info.binning_y, 1)])
    size = np.array([info.roi.width or info.width, info.roi.height or info.height]) // binning
    k[:2, 2] -= info.roi.x_offset, info.roi.y_offset
    k[:2] /= binning[:, None]
    width_px, height_px = (int(value) for value in size)
    if width_px < 1 or height_px < 1 or width_px * height_px > MAX_IMAGE_PX:
        raise ValueError(
            f'camera_info has size {info.width}x{info.height} px; expected 1 to '
            f'{MAX_IMAGE_PX / 1e6:.0f} million pixels')
    if k[0, 0] < MIN_FOCAL_SHARE * width_px:
        raise ValueError(
            f'camera_info has a focal length of {k[0, 0]:g} px for a width of {width_px} px; '
            'expected pixels: is the calibration in another unit?')
    # One that was cropped has it off the middle on one axis, seldom on both.
    if not info.roi.width and (k[:2, 2] > FAR_SHARE * size).all():
        raise ValueError(
            f'camera_info has its principal point at {k[0, 2]:g}, {k[1, 2]:g} px of '
            f'{width_px}x{height_px} px; expected it near the middle: is the calibration that of '
            'larger images?')
    camera = CameraModel(
        width_px, height_px, k[0, 0], k[1, 1], k[0, 2], k[1, 2], base_from_camera, height_m)
    if image_is_rectified:
        return ImageRectifier(camera)
    return ImageRectifier(camera, info.distortion_model, info.d)


def camera_image_from_msg(
    msg, rectifier: ImageRectifier, bit_depth: BitDepth | None = None,
) -> CameraImage:
    """Image or CompressedImage to an undistorted CameraImage."""
    rgb = rgb_from_msg(msg, bit_depth)
    return CameraImage(stamp_ns_from_msg(msg.header.stamp), rectifier(rgb), rectifier.camera)


def rgb_from_msg(msg, bit_depth: BitDepth | None = None) -> np.ndarray:
    """Image or CompressedImage to rgb (H, W, 3) uint8, as the camera took it.

    ``bit_depth`` is what earlier images of 16 bits have told of the camera.

    Encodings that ``decoding`` does not have are left to cv_bridge where it is installed.
    """
    if hasattr(msg, 'format'):
        return rgb_from_compressed(msg.data, msg.format, bit_depth)
    if msg.encoding not in ENCODINGS:
        return _rgb_by_cv_bridge(msg)
    return rgb_from_raw(
        msg.data, msg.width, msg.height, msg.step, msg.encoding, bool(msg.is_bigendian),
        bit_depth)


def _rgb_by_cv_bridge(msg) -> np.ndarray:
    known = ', '.join(ENCODINGS)
    if CvBridge is None:
        raise ValueError(
            f'image encoding {msg.encoding!r} is not supported without cv_bridge; expected one '
            f'of {known}')
    try:
        return np.ascontiguousarray(CvBridge().imgmsg_to_cv2(msg, 'rgb8'))
    except Exception as error:  # CvBridgeError, and what its C++ part raises
        raise ValueError(
            f'cv_bridge cannot turn image encoding {msg.encoding!r} into rgb8 ({error}); '
            f'expected one of {known}') from error


# --- heat map and diagnostics


def heatmap_msg_from_heatmap(heatmap: Heatmap, frame_id: str) -> OccupancyGrid:
    """round(100 p / p_max), -1 where unknown; the message's row 0 is the south.

    A heat map that is unknown everywhere gives -1 everywhere: a cleared one.
    """
    grid = heatmap.grid
    known = np.isfinite(heatmap.log_probability)
    percent = np.full((grid.rows, grid.cols), -1, dtype=np.int8)
    if known.any():
        log_ratio = heatmap.log_probability[known] - heatmap.log_probability[known].max()
        percent[known] = np.rint(100.0 * np.exp(log_ratio))
    south_m = grid.y0_m - (grid.rows - 1) * grid.cell_m

    msg = OccupancyGrid()
    msg.header.frame_id = frame_id
    msg.header.stamp = stamp_msg_from_ns(heatmap.stamp_ns)
    msg.info.map_load_time = msg.header.stamp
    msg.info.resolution = float(grid.cell_m)
    msg.info.width = grid.cols
    msg.info.height = grid.rows
    # The origin is the outer corner of the south-west cell, not its centre.
    msg.info.origin.position.x = grid.x0_m - grid.cell_m / 2.0
    msg.info.origin.position.y = south_m - grid.cell_m / 2.0
    msg.info.origin.orientation.w = 1.0
    msg.data = array('b', percent[::-1].tobytes())
    return msg


def status_msg_from_status(status: Status, node_name: str) -> DiagnosticStatus:
    """One line of diagnostics; its name is that of the node and of the part."""
    return DiagnosticStatus(
        level=bytes([status.level]), name=f'{node_name}: {status.name}', message=status.text,
        hardware_id=node_name,
        values=[KeyValue(key=key, value=str(value)) for key, value in status.values.items()])


def diagnostics_msg_from_statuses(
    statuses: list[Status], stamp_ns: int, node_name: str
) -> DiagnosticArray:
    """All lines of a node; each has its remedy, or '', as its last value."""
    msg = DiagnosticArray()
    msg.header.stamp = stamp_msg_from_ns(stamp_ns)
    for status in statuses:
        line = status_msg_from_status(status, node_name)
        msg.status.append(line)
        line.values.append(KeyValue(key='remedy', value=status.remedy))
    return msg
