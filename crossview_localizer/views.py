"""What the ground branch sees of a camera frame: the paper's crop, or a bird's-eye view.

The polar transform brings a panorama and a satellite tile into one geometry (CVACT); a front
camera has no panorama, so its counterpart here is the bird's-eye view: the frame projected to the
flat road plane with the camera's own intrinsics, turned north-up by the prior's heading.
"""

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraModel

CAMERA_VIEW_PX = (231, 154)  # width, height of the papers' front-camera input
SAMPLING_WIDTH_PX = 300      # frames are brought to this width before projection (antialiasing)
MIN_DEPTH_M = 1.0
UNSEEN = 127                 # grey of what the camera does not see: zero after normalisation


def camera_view(rgb: np.ndarray) -> np.ndarray:
    """The papers' input: the frame (H, W, 3) resized by area to (154, 231, 3)."""
    return cv2.resize(rgb, CAMERA_VIEW_PX, interpolation=cv2.INTER_AREA)


def sampling_image(rgb: np.ndarray, camera: CameraModel) -> tuple[np.ndarray, CameraModel]:
    """Bring a frame to SAMPLING_WIDTH_PX, so that every camera's bird's-eye view is as sharp."""
    scale = SAMPLING_WIDTH_PX / camera.width_px
    height_px = round(camera.height_px * scale)
    scaled = CameraModel(
        SAMPLING_WIDTH_PX, height_px, camera.fx_px * scale, camera.fy_px * scale,
        # The pixel centre of column u is u, its left edge u - 0.5.
        (camera.cx_px + 0.5) * scale - 0.5, (camera.cy_px + 0.5) * scale - 0.5,
        camera.base_from_camera, camera.height_m,
    )
    size_px = (SAMPLING_WIDTH_PX, height_px)
    return cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA), scaled


def birds_eye_view(
    rgb: np.ndarray, camera: CameraModel, yaw_rad: float, size_px: int, px_m: float,
    pitch_rad: float = 0.0,
) -> np.ndarray:
    """Project a frame to the flat ground around base_link, north-up.

    ``yaw_rad`` is the vehicle's heading in map, ``px_m`` the metres a pixel, ``pitch_rad`` a
    correction to the camera's pitch, positive nose down.  Returns (S, S, 4) uint8: RGB, and 255
    where the camera sees the ground plane, 0 elsewhere (there RGB is grey).  Row 0 is north.
    """
    image, camera = sampling_image(rgb, camera)
    half = (size_px - 1) / 2
    east_m = (np.arange(size_px) - half) * px_m
    north_m = (half - np.arange(size_px)) * px_m
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    forward_m = cos * east_m[None, :] + sin * north_m[:, None]   # (S, S)
    left_m = -sin * east_m[None, :] + cos * north_m[:, None]     # (S, S)

    # base_link to optical frame; a nose-down correction turns the ground up in the image.
    rotation = camera.base_from_camera[:3, :3].T
    origin = camera.base_from_camera[:3, 3]
    cos, sin = np.cos(pitch_rad), np.sin(pitch_rad)
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ rotation
    relative = np.stack(
        (forward_m - origin[0], left_m - origin[1], np.full_like(left_m, -camera.height_m)), 0)
    x_m, y_m, depth_m = np.tensordot(rotation, relative, axes=1)  # each (S, S)

    ahead = depth_m > MIN_DEPTH_M
    safe_m = np.where(ahead, depth_m, 1.0)
    u_px = np.where(ahead, camera.fx_px * x_m / safe_m + camera.cx_px, -1.0)
    v_px = np.where(ahead, camera.fy_px * y_m / safe_m + camera.cy_px, -1.0)
    seen = (u_px >= 0) & (u_px <= camera.width_px - 1) & (v_px >= 0)
    seen &= v_px <= camera.height_px - 1
    view = np.empty((size_px, size_px, 4), np.uint8)
    view[..., :3] = cv2.remap(
        image, u_px.astype(np.float32), v_px.astype(np.float32), cv2.INTER_LINEAR)
    view[..., :3][~seen] = UNSEEN
    view[..., 3] = np.where(seen, 255, 0)
    return view
