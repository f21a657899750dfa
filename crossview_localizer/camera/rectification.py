"""Undistorts images and turns them upright: the results are those of a pinhole camera."""

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraModel

# How many coefficients each of the distortion models of ROS may have.
OPENCV_LENGTHS = (4, 5, 8, 12, 14)
DISTORTION_MODELS = {
    'plumb_bob': OPENCV_LENGTHS, 'rational_polynomial': OPENCV_LENGTHS,
    'equidistant': range(4, 15),
}


class ImageRectifier:
    """Undistorts the images of one camera; ``camera`` is the pinhole camera of the results.

    Focal lengths and principal point stay the same.  A camera that is mounted upside down or on
    its side gives images that are turned by the nearest quarters: the network knows upright ones
    alone.  Raises ValueError for an unknown distortion model or a wrong number of coefficients.
    """

    def __init__(self, camera: CameraModel, distortion_model: str = '', coefficients=()):
        self._quarter_turns = camera.quarter_turns_to_upright
        self.camera = camera.turned(self._quarter_turns)
        self._size_px = camera.width_px, camera.height_px
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        distortion = np.asarray(coefficients, dtype=float)
        if not np.isfinite(distortion).all():
            raise ValueError(f'distortion {distortion.tolist()} of camera_info is not finite')
        if not distortion.any():
            return
        expected = DISTORTION_MODELS.get(distortion_model)
        if expected is None:
            raise ValueError(
                f'distortion model {distortion_model!r} of camera_info is not known; expected '
                f'{", ".join(DISTORTION_MODELS)}')
        if len(distortion) not in expected:
            raise ValueError(
                f'{distortion_model} of camera_info has {len(distortion)} coefficients; expected '
                f'one of {", ".join(map(str, expected))}')
        k = np.array([[camera.fx_px, 0.0, camera.cx_px], [0.0, camera.fy_px, camera.cy_px],
                      [0.0, 0.0, 1.0]])
        size_px = camera.width_px, camera.height_px
        if distortion_model == 'equidistant':
            self._maps = cv2.fisheye.initUndistortRectifyMap(
                k, distortion[:4], np.eye(3), k, size_px, cv2.CV_16SC2)
        else:
            self._maps = cv2.initUndistortRectifyMap(
                k, distortion, None, k, size_px, cv2.CV_16SC2)

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Undistort an image (H, W, 3) and turn it upright.

        Raises ValueError if its size is not that of the camera.
        """
        height_px, width_px = rgb.shape[:2]
        if (width_px, height_px) != self._size_px:
            raise ValueError(
                f'image is {width_px}x{height_px} px; camera_info describes '
                f'{self._size_px[0]}x{self._size_px[1]} px (region of interest and binning '
                'included): publish that of the images as they are')
        if self._maps is not None:
            rgb = cv2.remap(rgb, *self._maps, cv2.INTER_LINEAR)
        if self._quarter_turns:
            rgb = np.ascontiguousarray(np.rot90(rgb, self._quarter_turns))
        return rgb
