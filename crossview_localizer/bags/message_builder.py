"""Serialized messages of a converted drive, built without ROS."""

import numpy as np
from scipy.spatial.transform import Rotation

from crossview_localizer.bags.typestore import typestore_with_geographic_msgs

BASE_FRAME = 'base_link'
ODOM_FRAME = 'odom'
CAMERA_FRAME = 'camera_optical'
INS_FRAME = 'ins'
ANTENNA_FRAME = 'gnss_antenna'
TRUTH_FRAME = 'wgs84'

NAVSAT_NO_FIX, NAVSAT_FIX, NAVSAT_SERVICE_GPS = -1, 0, 1
NAVSAT_COVARIANCE_UNKNOWN, NAVSAT_COVARIANCE_DIAGONAL = 0, 2


class MessageBuilder:
    """Builds messages; each method returns the serialized message (CDR)."""

    def __init__(self):
        self.typestore = typestore_with_geographic_msgs()

    def compressed_image(self, stamp_ns: int, jpeg: np.ndarray) -> bytes:
        return self._cdr(
            'sensor_msgs/msg/CompressedImage', header=_header(stamp_ns, CAMERA_FRAME),
            format='bgr8; jpeg compressed bgr8', data=jpeg.ravel())

    def raw_image(self, stamp_ns: int, bgr: np.ndarray) -> bytes:
        height_px, width_px = bgr.shape[:2]
        return self._cdr(
            'sensor_msgs/msg/Image', header=_header(stamp_ns, CAMERA_FRAME), height=height_px,
            width=width_px, encoding='bgr8', is_bigendian=0, step=3 * width_px,
            data=np.ascontiguousarray(bgr).ravel())

    def camera_info(
        self, stamp_ns: int, width_px: int, height_px: int, k: np.ndarray, distortion: np.ndarray,
    ) -> bytes:
        """CameraInfo with the intrinsics ``k`` (3, 3) and plumb_bob ``distortion`` (5,)."""
        return self._cdr(
            'sensor_msgs/msg/CameraInfo', header=_header(stamp_ns, CAMERA_FRAME),
            height=height_px, width=width_px, distortion_model='plumb_bob', d=distortion,
            k=k.ravel(), r=np.eye(3).ravel(), p=np.hstack((k, np.zeros((3, 1)))).ravel(),
            binning_x=0, binning_y=0,
            roi={'x_offset': 0, 'y_offset': 0, 'height': 0, 'width': 0, 'do_rectify': False})

    def nav_sat_fix(
        self, stamp_ns: int, has_fix: bool, latlonalt: tuple[float, float, float],
        enu_sigmas_m: np.ndarray,
    ) -> bytes:
        """NavSatFix; its covariance is unknown if a sigma is not positive and finite."""
        latitude_deg, longitude_deg, altitude_m = map(float, latlonalt)
        known = np.isfinite(enu_sigmas_m).all() and (enu_sigmas_m > 0).all()
        return self._cdr(
            'sensor_msgs/msg/NavSatFix', header=_header(stamp_ns, ANTENNA_FRAME),
            status={'status': NAVSAT_FIX if has_fix else NAVSAT_NO_FIX,
                    'service': NAVSAT_SERVICE_GPS},
            latitude=latitude_deg, longitude=longitude_deg, altitude=altitude_m,
            position_covariance=np.diag(enu_sigmas_m**2 if known else np.zeros(3)).ravel(),
            position_covariance_type=(
                NAVSAT_COVARIANCE_DIAGONAL if known else NAVSAT_COVARIANCE_UNKNOWN))

    def odometry(
        self, stamp_ns: int, odom_from_base: np.ndarray, linear_mps: np.ndarray,
        angular_radps: np.ndarray, pose_sigmas: tuple[float, float],
        twist_sigmas: tuple[float, float],
    ) -> bytes:
        """Odometry; the sigmas are (linear, angular) of each axis."""
        return self._cdr(
            'nav_msgs/msg/Odometry', header=_header(stamp_ns, ODOM_FRAME),
            child_frame_id=BASE_FRAME,
            pose={'pose': {'position': _xyz(odom_from_base[:3, 3]),
                           'orientation': _rotation(odom_from_base)},
                  'covariance': _diagonal_covariance(*pose_sigmas)},
            twist={'twist': {'linear': _xyz(linear_mps), 'angular': _xyz(angular_radps)},
                   'covariance': _diagonal_covariance(*twist_sigmas)})

    def geo_pose(self, stamp_ns, latitude_deg, longitude_deg, altitude_m, xyzw) -> bytes:
        """GeoPoseStamped of base_link; ``xyzw`` (4,) takes FLU axes to east, north, up."""
        return self._cdr(
            'geographic_msgs/msg/GeoPoseStamped', header=_header(stamp_ns, TRUTH_FRAME),
            pose={'position': {'latitude': float(latitude_deg), 'longitude': float(longitude_deg),
                               'altitude': float(altitude_m)},
                  'orientation': dict(zip('xyzw', map(float, xyzw)))})

    def static_transforms(self, stamp_ns: int, base_from: dict[str, np.ndarray]) -> bytes:
        """TFMessage of the frames below base_link: child frame to base_from_child (4, 4)."""
        return self._cdr('tf2_msgs/msg/TFMessage', transforms=[
            self._make(
                'geometry_msgs/msg/TransformStamped', header=_header(stamp_ns, BASE_FRAME),
                child_frame_id=child,
                transform={'translation': _xyz(base_from_child[:3, 3]),
                           'rotation': _rotation(base_from_child)})
            for child, base_from_child in base_from.items()])

    def _make(self, msgtype: str, **values):
        """A message; parts that are messages themselves are given as dicts."""
        descriptors = dict(self.typestore.fielddefs[msgtype][1])
        return self.typestore.types[msgtype](**{
            name: self._make(descriptors[name][1], **value) if isinstance(value, dict) else value
            for name, value in values.items()})

    def _cdr(self, msgtype: str, **values) -> bytes:
        return bytes(self.typestore.serialize_cdr(self._make(msgtype, **values), msgtype))


def _header(stamp_ns: int, frame_id: str) -> dict:
    sec, nanosec = divmod(int(stamp_ns), 10**9)
    return {'stamp': {'sec': sec, 'nanosec': nanosec}, 'frame_id': frame_id}


def _xyz(vector) -> dict[str, float]:
    return dict(zip('xyz', map(float, vector)))


def _rotation(transform: np.ndarray) -> dict[str, float]:
    """The quaternion of a transform (4, 4)."""
    return dict(zip('xyzw', map(float, Rotation.from_matrix(transform[:3, :3]).as_quat())))


def _diagonal_covariance(linear_sigma: float, angular_sigma: float) -> np.ndarray:
    return np.diag([linear_sigma**2] * 3 + [angular_sigma**2] * 3).ravel()
