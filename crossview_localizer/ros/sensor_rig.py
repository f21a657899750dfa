"""Turns sensor messages into records, with the sensors' mounting and the camera's intrinsics.

The node and the offline tools give it the same messages, from rclpy or from ``rosbags``, and get
the same records.
"""

import numpy as np

from crossview_localizer.camera.blind_images import BlindImageCheck
from crossview_localizer.camera.decoding import BitDepth
from crossview_localizer.camera.rectification import ImageRectifier
from crossview_localizer.config import CameraConfig, MAX_LEVER_M, NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssCourse, GnssFix
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.ros import conversions

# Assumed on each axis of GNSS velocities whose covariance is unknown, zero or NaN.
GNSS_VELOCITY_UNKNOWN_SIGMA_MPS = 0.3


class UnknownCalibration(ValueError):
    """The mounting of a sensor or the camera's intrinsics are not known (yet)."""


class NoCameraInfo(UnknownCalibration):
    """No camera_info has been received (yet)."""


class StaticTransforms:
    """The tree of /tf_static.

    tf2_ros is not used: PyPI has no wheel of it, and frames that never move need no history.
    """

    def __init__(self):
        self._parents: dict[str, tuple[str, np.ndarray]] = {}

    def add(self, msg) -> None:
        """Add each valid transform; then raise one ValueError for those that are not valid."""
        problems, parents = [], dict(self._parents)
        for transform in msg.transforms:
            child = transform.child_frame_id.lstrip('/')
            try:
                parent_from_child = conversions.matrix_from_transform(transform.transform)
            except ValueError as error:
                problems.append(f'{child}: {error}')
                continue
            parents[child] = (transform.header.frame_id.lstrip('/'), parent_from_child)
        # Replaced as a whole: another thread may look up a transform meanwhile.
        self._parents = parents
        if problems:
            raise ValueError('; '.join(problems))

    def lookup(self, a: str, b: str) -> np.ndarray | None:
        """``a_from_b`` (4, 4), or None if the tree does not join the two frames."""
        above_a, above_b = self._ancestors(a), self._ancestors(b)
        for ancestor, ancestor_from_b in above_b.items():
            if ancestor in above_a:
                return np.linalg.inv(above_a[ancestor]) @ ancestor_from_b
        return None

    def _ancestors(self, frame: str) -> dict[str, np.ndarray]:
        """Each ancestor of a frame, itself first, with ``ancestor_from_frame``."""
        found, parents = {frame: np.eye(4)}, self._parents
        while frame in parents:
            parent, parent_from_child = parents[frame]
            if parent in found:
                break
            found[parent] = parent_from_child @ found[frame]
            frame = parent
        return found


class SensorRig:
    """Extrinsics from /tf_static, else from parameters; intrinsics from camera_info."""

    def __init__(self, node_config: NodeConfig, camera_config: CameraConfig):
        self.static_transforms = StaticTransforms()
        self._camera_infos: dict[str, object] = {}  # by frame, the newest last
        self._blind_image_check = BlindImageCheck()
        self._bit_depth = BitDepth()
        self._config = node_config
        self._camera_height_m = camera_config.height_m
        self._antenna_m = (0.0, 0.0)  # in map, by the last fix
        self._last_fix = (0, '')      # its stamp and frame
        self._rectifier: tuple[tuple, ImageRectifier] | None = None

    @property
    def camera_info(self):
        """The newest camera_info; None before the first."""
        return next(reversed(self._camera_infos.values()), None)

    @camera_info.setter
    def camera_info(self, msg) -> None:
        if msg is None:
            self._camera_infos = {}
            return
        new = msg.header.frame_id.lstrip('/')
        # Replaced as a whole: another thread may look one up meanwhile.
        self._camera_infos = {
            frame: info for frame, info in self._camera_infos.items() if frame != new
        } | {new: msg}

    def camera_info_remark(self, image_frame_id: str) -> str:
        """What to say where the images and the camera_info are of different frames, else ''."""
        frames = [frame for frame in self._camera_infos if frame]
        if self._config.camera_frame or not image_frame_id or not frames or (
                image_frame_id.lstrip('/') in frames):
            return ''
        return (f'images are of the frame {image_frame_id!r}, camera_info is of '
                f'{", ".join(map(repr, frames))}: expected that of the same camera')

    def gnss_fix(self, msg, frame: LocalFrame) -> GnssFix:
        """Convert a NavSatFix, with the lever arm of its antenna.

        Raises UnknownCalibration, or ValueError if the message is not valid, or gives its antenna
        another position for the stamp of the message before.
        """
        fix = conversions.gnss_fix_from_msg(
            msg, frame, self.base_from_antenna_m(msg.header.frame_id),
            self._config.gnss_unknown_sigma_m)
        stamp_and_frame = (fix.stamp_ns, msg.header.frame_id)
        if fix.stamp_ns > 0 and stamp_and_frame == self._last_fix and (
                (fix.x_m, fix.y_m) != self._antenna_m):
            raise ValueError(
                'a second position of the same stamp: the first is used; does the driver round '
                'its stamps to seconds, or do two receivers publish here?')
        self._last_fix = stamp_and_frame
        self._antenna_m = (fix.x_m, fix.y_m)
        return fix

    def gnss_course(self, msg, frame: LocalFrame) -> GnssCourse:
        """The course of a receiver's velocity, with its lever arm; north is that at the last fix.

        Raises UnknownCalibration, or ValueError if the message is not valid or in the vehicle's
        axes.
        """
        if msg.header.frame_id.lstrip('/') == self._config.base_frame:
            raise ValueError(
                f'frame_id is {msg.header.frame_id!r}: a velocity in the axes of the vehicle; '
                "expected one to the east and north, with the antenna's frame_id")
        return conversions.gnss_course_from_msg(
            msg, frame, self._antenna_m, self.base_from_antenna_m(msg.header.frame_id),
            GNSS_VELOCITY_UNKNOWN_SIGMA_MPS)

    def camera_image(self, msg, odom_from_base: Pose2D | None = None) -> CameraImage:
        """Convert an Image or CompressedImage; the newest odometry helps to find a frozen camera.

        Raises UnknownCalibration, BlindImage, or ValueError if not valid.
        """
        image = conversions.camera_image_from_msg(
            msg, self._rectifier_for(msg.header.frame_id), self._bit_depth)
        self._blind_image_check.examine(image.rgb, odom_from_base)
        return image

    def base_from_antenna_m(self, frame_id: str) -> tuple[float, float]:
        """Lever arm of the antenna; raises UnknownCalibration."""
        base_from_antenna = self._base_from(frame_id)
        if base_from_antenna is not None:
            return float(base_from_antenna[0, 3]), float(base_from_antenna[1, 3])
        if self._config.antenna_xyz_m:
            return self._config.antenna_xyz_m[:2]
        raise UnknownCalibration(
            f'/tf_static has no transform from {self._config.base_frame!r} to {frame_id!r} and '
            'antenna_xyz_m is not set: messages of the receiver are not used')

    def _base_from(self, frame_id: str) -> np.ndarray | None:
        found = self.static_transforms.lookup(self._config.base_frame, frame_id.lstrip('/'))
        if found is not None and (distance_m := np.linalg.norm(found[:3, 3])) > MAX_LEVER_M:
            raise UnknownCalibration(
                f'/tf_static puts {frame_id!r} {distance_m:.0f} m from '
                f'{self._config.base_frame!r}; expected at most {MAX_LEVER_M:g} m: are its units '
                'metres, and is the sensor on this vehicle?')
        return found

    def _rectifier_for(self, image_frame_id: str) -> ImageRectifier:
        """The rectifier for the camera with its present calibration."""
        frame_id = self._config.camera_frame or image_frame_id
        base_from_camera = self._base_from(frame_id)
        if base_from_camera is None and self._config.camera_xyz_rpy:
            base_from_camera = conversions.base_from_camera_body(self._config.camera_xyz_rpy)
        if base_from_camera is None:
            raise UnknownCalibration(
                f'/tf_static has no transform from {self._config.base_frame!r} to {frame_id!r} '
                'and camera_xyz_rpy is not set: images are not used')
        # Where two cameras share a topic, each has its own.
        info = self._camera_infos.get(image_frame_id.lstrip('/'), self.camera_info)
        if info is None:
            raise NoCameraInfo('no camera_info has been received: images are not used')
        key = (
            info.width, info.height, info.distortion_model, tuple(info.d), tuple(info.k),
            tuple(info.p), info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height,
            info.binning_x, info.binning_y, base_from_camera.tobytes())
        if self._rectifier is None or self._rectifier[0] != key:
            self._rectifier = (key, conversions.rectifier_from_msg(
                info, base_from_camera, self._camera_height_m, self._config.image_is_rectified))
        return self._rectifier[1]
