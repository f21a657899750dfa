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
    """Builds serialized messages (CDR) without ROS; each method returns their bytes."""

    def __init__(self):
        self.typestore = typestore_with_geographic_msgs()

    def make(self, name: str, **fields):
        """A message of a type such as ``std_msgs/msg/Header``."""
        return self.typestore.types[name](**fields)

    def cdr(self, message) -> bytes:
        return bytes(self.typestore.serialize_cdr(message, message.__msgtype__))

    # --- parts of messages

    def header(self, stamp_ns: int, frame_id: str):
        sec, nanosec = divmod(int(stamp_ns), 10**9)
        stamp = self.make('builtin_interfaces/msg/Time', sec=sec, nanosec=nanosec)
        return self.make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)

    def vector(self, xyz):
        x, y, z = map(float, xyz)
        return self.make('geometry_msgs/msg/Vector3', x=x, y=y, z=z)

    def quaternion(self, xyzw):
        x, y, z, w = map(float, xyzw)
        return self.make('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w)

    def quaternion_of(self, transform: np.ndarray):
        """The rotation of a transform (4, 4)."""
        return self.quaternion(Rotation.from_matrix(transform[:3, :3]).as_quat())

    # --- whole messages

    def compressed_image(self, stamp_ns: int, jpeg: np.ndarray) -> bytes:
        return self.cdr(
            self.make(
                'sensor_msgs/msg/CompressedImage',
                header=self.header(stamp_ns, CAMERA_FRAME),
                format='bgr8; jpeg compressed bgr8',
                data=jpeg.ravel(),
            )
        )

    def raw_image(self, stamp_ns: int, bgr: np.ndarray) -> bytes:
        height_px, width_px = bgr.shape[:2]
        return self.cdr(
            self.make(
                'sensor_msgs/msg/Image',
                header=self.header(stamp_ns, CAMERA_FRAME),
                height=height_px,
                width=width_px,
                encoding='bgr8',
                is_bigendian=0,
                step=3 * width_px,
                data=np.ascontiguousarray(bgr).ravel(),
            )
        )

    def camera_info(
        self, stamp_ns: int, width_px: int, height_px: int, k: np.ndarray, distortion: np.ndarray,
    ) -> bytes:
        """CameraInfo with the intrinsics ``k`` (3, 3) and plumb_bob ``distortion`` (5,)."""
        return self.cdr(
            self.make(
                'sensor_msgs/msg/CameraInfo',
                header=self.header(stamp_ns, CAMERA_FRAME),
                height=height_px,
                width=width_px,
                distortion_model='plumb_bob',
                d=distortion,
                k=k.ravel(),
                r=np.eye(3).ravel(),
                p=np.hstack((k, np.zeros((3, 1)))).ravel(),
                binning_x=0,
                binning_y=0,
                roi=self.make(
                    'sensor_msgs/msg/RegionOfInterest',
                    x_offset=0, y_offset=0, height=0, width=0, do_rectify=False,
                ),
            )
        )

    def nav_sat_fix(
        self, stamp_ns: int, has_fix: bool, latlonalt: tuple[float, float, float],
        enu_sigmas_m: np.ndarray,
    ) -> bytes:
        """NavSatFix; its covariance is unknown where a sigma is not positive and finite."""
        latitude_deg, longitude_deg, altitude_m = map(float, latlonalt)
        known = np.isfinite(enu_sigmas_m).all() and (enu_sigmas_m > 0).all()
        return self.cdr(
            self.make(
                'sensor_msgs/msg/NavSatFix',
                header=self.header(stamp_ns, ANTENNA_FRAME),
                status=self.make(
                    'sensor_msgs/msg/NavSatStatus',
                    status=NAVSAT_FIX if has_fix else NAVSAT_NO_FIX,
                    service=NAVSAT_SERVICE_GPS,
                ),
                latitude=latitude_deg,
                longitude=longitude_deg,
                altitude=altitude_m,
                position_covariance=np.diag(enu_sigmas_m**2 if known else np.zeros(3)).ravel(),
                position_covariance_type=(
                    NAVSAT_COVARIANCE_DIAGONAL if known else NAVSAT_COVARIANCE_UNKNOWN
                ),
            )
        )

    def odometry(
        self, stamp_ns: int, odom_from_base: np.ndarray, linear_mps: np.ndarray,
        angular_radps: np.ndarray, pose_sigmas: tuple[float, float],
        twist_sigmas: tuple[float, float],
    ) -> bytes:
        """Odometry; the sigmas are (linear, angular) of each axis."""
        return self.cdr(
            self.make(
                'nav_msgs/msg/Odometry',
                header=self.header(stamp_ns, ODOM_FRAME),
                child_frame_id=BASE_FRAME,
                pose=self.make(
                    'geometry_msgs/msg/PoseWithCovariance',
                    pose=self.make(
                        'geometry_msgs/msg/Pose',
                        position=self.make(
                            'geometry_msgs/msg/Point',
                            **dict(zip('xyz', map(float, odom_from_base[:3, 3]))),
                        ),
                        orientation=self.quaternion_of(odom_from_base),
                    ),
                    covariance=_diagonal_covariance(*pose_sigmas),
                ),
                twist=self.make(
                    'geometry_msgs/msg/TwistWithCovariance',
                    twist=self.make(
                        'geometry_msgs/msg/Twist',
                        linear=self.vector(linear_mps),
                        angular=self.vector(angular_radps),
                    ),
                    covariance=_diagonal_covariance(*twist_sigmas),
                ),
            )
        )

    def geo_pose(self, stamp_ns, latitude_deg, longitude_deg, altitude_m, xyzw) -> bytes:
        """GeoPoseStamped of base_link; ``xyzw`` (4,) takes FLU axes to east, north, up."""
        return self.cdr(
            self.make(
                'geographic_msgs/msg/GeoPoseStamped',
                header=self.header(stamp_ns, TRUTH_FRAME),
                pose=self.make(
                    'geographic_msgs/msg/GeoPose',
                    position=self.make(
                        'geographic_msgs/msg/GeoPoint',
                        latitude=float(latitude_deg),
                        longitude=float(longitude_deg),
                        altitude=float(altitude_m),
                    ),
                    orientation=self.quaternion(xyzw),
                ),
            )
        )

    def static_transforms(self, stamp_ns: int, base_from: dict[str, np.ndarray]) -> bytes:
        """TFMessage of the frames below base_link: child frame to base_from_child (4, 4)."""
        transforms = [
            self.make(
                'geometry_msgs/msg/TransformStamped',
                header=self.header(stamp_ns, BASE_FRAME),
                child_frame_id=child,
                transform=self.make(
                    'geometry_msgs/msg/Transform',
                    translation=self.vector(transform[:3, 3]),
                    rotation=self.quaternion_of(transform),
                ),
            )
            for child, transform in base_from.items()
        ]
        return self.cdr(self.make('tf2_msgs/msg/TFMessage', transforms=transforms))


def _diagonal_covariance(linear_sigma: float, angular_sigma: float) -> np.ndarray:
    return np.diag([linear_sigma**2] * 3 + [angular_sigma**2] * 3).ravel()
