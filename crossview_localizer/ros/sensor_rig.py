"""Where the sensors sit and how the camera sees: what must be known before a message is of use.

The node and the offline replay feed it the same messages, from rclpy or from ``rosbags``, and ask
it for the same records.
"""

import math

import numpy as np

from crossview_localizer.config import CameraConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssCourse, GnssFix
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.ros import conversions

# Of an image every n-th pixel is looked at, so that about so many rows are.
SAMPLE_ROWS = 120
# Grey levels that count as clipped.
BLACK, WHITE = 5, 250
# The same picture twice is a frozen camera once the vehicle has moved this far.
FROZEN_MOVED_M = 1.0


class UnknownCalibration(ValueError):
    """A sensor's place or the camera's intrinsics are not known (yet)."""


class BlindImage(ValueError):
    """An image that does not show where the vehicle is: black, saturated, or frozen."""


class StaticTransforms:
    """The tree of /tf_static, looked up along its branches.

    tf2_ros has no wheel, and frames that never move need none of its history.
    """

    def __init__(self):
        self._parents: dict[str, tuple[str, np.ndarray]] = {}

    def add(self, msg) -> None:
        """Take in each transform; raises ValueError once for those that are none."""
        problems, parents = [], dict(self._parents)
        for transform in msg.transforms:
            child = transform.child_frame_id.lstrip('/')
            try:
                parent_from_child = conversions.matrix_from_transform(transform.transform)
            except ValueError as error:
                problems.append(f'{child}: {error}')
                continue
            parents[child] = (transform.header.frame_id.lstrip('/'), parent_from_child)
        # Replaced whole: another thread may look up meanwhile.
        self._parents = parents
        if problems:
            raise ValueError('; '.join(problems))

    def lookup(self, a: str, b: str) -> np.ndarray | None:
        """``a_from_b`` (4, 4), or None where the tree does not join the two."""
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


class BlindnessCheck:
    """Refuses images that are black, saturated or frozen."""

    def __init__(self, config: NodeConfig):
        self._min_contrast = config.image_min_contrast
        self._max_clipped = config.image_max_clipped
        self._last_sample: np.ndarray | None = None
        self._last_from: Pose2D | None = None  # odometry when this very picture first came

    def __call__(self, rgb: np.ndarray, odom_from_base: Pose2D | None) -> None:
        """Look at the next image (H, W, 3), with the newest odometry; raises BlindImage."""
        step = max(1, rgb.shape[0] // SAMPLE_ROWS)
        sample = rgb[::step, ::step]
        grey = sample.mean(axis=2)                                           # (h, w)
        clipped = np.mean((grey < BLACK) | (grey > WHITE))
        if grey.std() < self._min_contrast or clipped > self._max_clipped:
            kind = 'black' if grey.mean() < 64 else 'saturated' if grey.mean() > 192 else 'flat'
            raise BlindImage(
                f'image is {kind}: mean {grey.mean():.0f}, standard deviation {grey.std():.1f}, '
                f'{100 * clipped:.0f} % of the pixels clipped')
        if self._last_sample is None or not np.array_equal(sample, self._last_sample):
            self._last_sample, self._last_from = sample.copy(), odom_from_base
            return
        if self._last_from is None or odom_from_base is None:
            return
        moved = self._last_from.inverse() @ odom_from_base
        moved_m = math.hypot(moved.x_m, moved.y_m)
        if moved_m > FROZEN_MOVED_M:
            raise BlindImage(
                f'image is frozen: the same picture again after {moved_m:.1f} m by odometry')


class SensorRig:
    """Extrinsics from /tf_static, else from parameters; intrinsics from camera_info."""

    def __init__(self, node_config: NodeConfig, camera_config: CameraConfig):
        self.static_transforms = StaticTransforms()
        self.camera_info = None
        self._refuse_blind = BlindnessCheck(node_config)
        self._config = node_config
        self._camera_height_m = camera_config.height_m
        self._antenna_m = (0.0, 0.0)  # in map, by the last fix
        self._rectifier: tuple[tuple, conversions.ImageRectifier] | None = None

    def gnss_fix(self, msg, frame: LocalFrame) -> GnssFix:
        """NavSatFix with its lever arm; raises UnknownCalibration, or ValueError if not valid."""
        fix = conversions.gnss_fix_from_msg(
            msg, frame, self.base_from_antenna_m(msg.header.frame_id),
            self._config.gnss_unknown_sigma_m)
        self._antenna_m = (fix.x_m, fix.y_m)
        return fix

    def gnss_course(self, msg, frame: LocalFrame) -> GnssCourse:
        """A receiver's velocity with its lever arm; true north is that of the last fix.

        Raises UnknownCalibration, or ValueError if not valid: a velocity in the vehicle's axes is
        not.
        """
        if msg.header.frame_id.lstrip('/') == self._config.base_frame:
            raise ValueError(
                f'frame_id is {msg.header.frame_id!r}: a velocity in the axes of the vehicle; '
                "expected one to the east and north, with the antenna's frame_id")
        return conversions.gnss_course_from_msg(
            msg, frame, self._antenna_m, self.base_from_antenna_m(msg.header.frame_id),
            self._config.gnss_velocity_unknown_sigma_mps)

    def camera_image(self, msg, odom_from_base: Pose2D | None = None) -> CameraImage:
        """Image or CompressedImage, with the newest odometry, which tells a frozen one.

        Raises UnknownCalibration, BlindImage, or ValueError if not valid.
        """
        image = conversions.camera_image_from_msg(msg, self._rectifier_for(msg.header.frame_id))
        self._refuse_blind(image.rgb, odom_from_base)
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
            'antenna_xyz_m is not set: what the receiver says is not used')

    def _base_from(self, frame_id: str) -> np.ndarray | None:
        return self.static_transforms.lookup(self._config.base_frame, frame_id.lstrip('/'))

    def _rectifier_for(self, image_frame_id: str) -> conversions.ImageRectifier:
        """The camera as it is known now; made anew only when something about it changes."""
        frame_id = self._config.camera_frame or image_frame_id
        base_from_camera = self._base_from(frame_id)
        if base_from_camera is None and self._config.camera_xyz_rpy:
            base_from_camera = conversions.base_from_camera_body(self._config.camera_xyz_rpy)
        if base_from_camera is None:
            raise UnknownCalibration(
                f'/tf_static has no transform from {self._config.base_frame!r} to {frame_id!r} '
                'and camera_xyz_rpy is not set: images are not used')
        info = self.camera_info
        if info is None:
            raise UnknownCalibration('no camera_info has come: images are not used')
        key = (
            info.width, info.height, info.distortion_model, tuple(info.d), tuple(info.k),
            tuple(info.p), info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height,
            info.binning_x, info.binning_y, base_from_camera.tobytes())
        if self._rectifier is None or self._rectifier[0] != key:
            self._rectifier = (key, conversions.rectifier_from_msg(
                info, base_from_camera, self._camera_height_m, self._config.image_is_rectified))
        return self._rectifier[1]
