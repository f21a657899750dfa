"""What the ground branch sees of a frame: the paper's crop, a panorama, or a bird's-eye view.

The polar transform brings a panorama and a satellite tile into one geometry (CVACT); a front
camera has no panorama, so its counterpart here is the bird's-eye view: the frame projected to the
flat road plane with the camera's own intrinsics, turned north-up by the prior's heading.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraModel

GROUND_VIEWS = ('birds_eye', 'camera', 'polar')
CAMERA_VIEW_PX = (231, 154)  # width, height of the papers' front-camera input
POLAR_VIEW_PX = (616, 112)   # and of their panoramas and polar satellite views
SAMPLING_WIDTH_PX = 300      # frames are brought to this width before projection (antialiasing)
MIN_DEPTH_M = 1.0
UNSEEN = 127                 # grey of what the camera does not see: zero after normalisation


def ground_view(kind: str, rgb: np.ndarray, camera: CameraModel, yaw_rad: float, size_px: int,
                px_m: float, pitch_rad: float = 0.0) -> np.ndarray:
    """What a network whose ``ground_view`` is ``kind`` is given of a frame (H, W, 3).

    Only the bird's-eye view needs all of the arguments; the front camera's needs the frame alone.
    """
    if kind == 'camera':
        return camera_view(rgb)
    if kind == 'polar':
        return panorama_view(rgb, yaw_rad)
    return birds_eye_view(rgb, camera, yaw_rad, size_px, px_m, pitch_rad)


def camera_view(rgb: np.ndarray) -> np.ndarray:
    """The papers' front-camera input (154, 231, 3) of a frame, resized by area.

    Of RobotCar's frames, 1280x960, they took columns 40 to 1240 and rows 0 to 800, without the
    bonnet: 3:2.  A frame that is 3:2 is taken as cut already; of any other the same share of its
    width is taken, and less where the frame is too low.
    """
    height, width = rgb.shape[:2]
    if abs(2 * width - 3 * height) > 3:
        cut_width = min(round(width * 1200 / 1280), round(height * 3 / 2))
        left = (width - cut_width) // 2
        rgb = rgb[:min(round(cut_width * 2 / 3), height), left:left + cut_width]
    return cv2.resize(rgb, CAMERA_VIEW_PX, interpolation=cv2.INTER_AREA)


def panorama_view(rgb: np.ndarray, yaw_rad: float) -> np.ndarray:
    """CVACT's input (112, 616, 3): the panorama's middle rows, turned to have north in the middle.

    ``rgb`` is a whole panorama, 360 by 180 degrees, whose middle column looks to ``yaw_rad``
    (CVACT's look north already: pi / 2).
    """
    height, width = rgb.shape[:2]
    middle = rgb[height // 4:height - height // 4]
    # A heading west of north has north to the right of the middle.
    turned = np.roll(middle, round((np.pi / 2 - yaw_rad) / (2 * np.pi) * width), axis=1)
    return cv2.resize(turned, POLAR_VIEW_PX, interpolation=cv2.INTER_AREA)


def sampling_image(rgb: np.ndarray, camera: CameraModel) -> tuple[np.ndarray, CameraModel]:
    """Bring a frame to SAMPLING_WIDTH_PX, so that every camera's bird's-eye view is as sharp."""
    small = sampling_camera(camera)
    size_px = small.width_px, small.height_px
    return cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA), small


def sampling_camera(camera: CameraModel) -> CameraModel:
    """The camera of a frame that ``sampling_image`` has resized."""
    return camera.resized(
        SAMPLING_WIDTH_PX, round(camera.height_px * SAMPLING_WIDTH_PX / camera.width_px))


def halved(rgb: np.ndarray, width_px: int) -> np.ndarray:
    """The frame at half its size (by area, exactly) while that is at least twice ``width_px``.

    A large frame is resized to less than that in a quarter of the time, to within a grey level.
    """
    while rgb.shape[1] >= 4 * width_px and not (rgb.shape[0] % 2 or rgb.shape[1] % 2):
        rgb = cv2.resize(
            rgb, (rgb.shape[1] // 2, rgb.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return rgb


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

    u_px, v_px = image_points(camera, forward_m, left_m, 0.0, pitch_rad)
    return sampled(image, *pixels(u_px, v_px, image.shape[1], image.shape[0]))


def pixels(u_px: np.ndarray, v_px: np.ndarray, width_px: int, height_px: int):
    """Points as ``cv2.remap`` takes them, and which of them lie inside the image."""
    seen = (u_px >= 0) & (u_px <= width_px - 1) & (v_px >= 0) & (v_px <= height_px - 1)
    return u_px.astype(np.float32), v_px.astype(np.float32), seen


def sampled(image: np.ndarray, u_px, v_px, seen) -> np.ndarray:
    """The image at ``pixels``: RGB, and 255 inside the image or 0 and grey outside."""
    view = np.empty((*seen.shape, 4), np.uint8)
    view[..., :3] = cv2.remap(image, u_px, v_px, cv2.INTER_LINEAR)
    view[..., :3][~seen] = UNSEEN
    view[..., 3] = np.where(seen, 255, 0)
    return view


@dataclass(frozen=True)
class LiftedView:
    """What the dense matcher's ground branch sees of one frame.

    ``trunk_image`` (H, W, 3) uint8, sides multiples of 32; ``road`` (2F, 2L, 4) uint8, the flat
    road's pixels in the vehicle's axes (row 0 farthest ahead, column 0 leftmost) and a mask;
    ``points`` (Z, F, L, 2) float32: where each cell at each height lies in the trunk image, x and
    y in -1..1 from edge to edge, 2 where the camera does not see it.
    """

    trunk_image: np.ndarray
    road: np.ndarray
    points: np.ndarray


def lifted_view(rgb: np.ndarray, camera: CameraModel, config, pitch_rad: float = 0.0):
    """A frame as ``DenseNetwork`` of ``config`` (dense.DenseConfig) takes it."""
    lift = _lift(
        camera.width_px, camera.height_px, camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px,
        np.asarray(camera.base_from_camera, float).tobytes(), camera.height_m, config, pitch_rad)
    rgb = halved(rgb, max(SAMPLING_WIDTH_PX, lift.size_px[0]))
    near = cv2.resize(
        rgb, (SAMPLING_WIDTH_PX, lift.sampling_height_px), interpolation=cv2.INTER_AREA)
    road = sampled(near, *lift.road)

    resized = cv2.resize(rgb, lift.size_px, interpolation=cv2.INTER_AREA)
    (height_px, width_px), top_px, left_px = lift.trunk_px, lift.top_px, lift.left_px
    trunk_image = np.full((height_px, width_px, 3), UNSEEN, np.uint8)
    first, last = max(0, top_px), min(lift.size_px[1], top_px + height_px)
    if first < last:
        trunk_image[first - top_px:last - top_px] = resized[
            first:last, left_px:left_px + width_px][:, :width_px]
    return LiftedView(trunk_image, road, lift.points)


@dataclass(frozen=True)
class _Lift:
    """What of ``lifted_view`` depends on the camera alone.

    ``size_px`` (width, height) is the trunk's frame before it is cut to ``trunk_px`` (height,
    width) at its row ``top_px`` and column ``left_px``; ``road`` are the road's ``pixels``
    (2F, 2L) in the frame resized for sampling.
    """

    size_px: tuple[int, int]
    trunk_px: tuple[int, int]
    top_px: int
    left_px: int
    sampling_height_px: int
    road: tuple[np.ndarray, np.ndarray, np.ndarray]
    points: np.ndarray


@lru_cache(maxsize=8)
def _lift(width_px, height_px, fx_px, fy_px, cx_px, cy_px, base_from_camera: bytes, height_m,
          config, pitch_rad: float) -> _Lift:
    """Of a camera whose mounting (4, 4) comes as bytes, so that it can be looked up."""
    camera = CameraModel(
        width_px, height_px, fx_px, fy_px, cx_px, cy_px,
        np.frombuffer(base_from_camera).reshape(4, 4), height_m)

    def places(px_m, rows, cols):
        ahead_m = (rows - 0.5 - np.arange(rows)) * px_m
        left_m = ((cols - 1) / 2 - np.arange(cols)) * px_m
        return np.broadcast_arrays(ahead_m[:, None], left_m[None, :])

    near = sampling_camera(camera)
    rows, cols = config.ahead_cells, config.across_cells
    ground = places(config.px_m, rows * config.cell_px, cols * config.cell_px)
    road = pixels(*image_points(near, *ground, 0.0, pitch_rad), near.width_px, near.height_px)

    # The trunk's frame: one focal length for every camera, rows about the horizon.
    scale = config.focal_px / camera.fx_px
    size_px = (round(camera.width_px * scale), round(camera.height_px * scale))
    fx_px, fy_px = size_px[0] / camera.width_px, size_px[1] / camera.height_px
    ahead = camera.base_from_camera[:3, :3].T @ np.array([1.0, 0.0, 0.0])
    horizon_px = (camera.cy_px + 0.5 + camera.fy_px * ahead[1] / ahead[2]) * fy_px
    top_px = round(horizon_px - config.focal_px * np.tan(np.radians(config.above_deg)))
    height_px = config.focal_px * (
        np.tan(np.radians(config.above_deg)) + np.tan(np.radians(config.below_deg)))
    height_px, width_px = 32 * int(height_px // 32), 32 * max(1, size_px[0] // 32)
    left_px = (size_px[0] - width_px) // 2

    cells = places(config.cell_m, rows, cols)
    points = np.full((len(config.heights_m), rows, cols, 2), 2.0, np.float32)
    for k, height_m in enumerate(config.heights_m):
        u_px, v_px = image_points(camera, *cells, height_m, pitch_rad)
        x = ((u_px + 0.5) * fx_px - left_px) / width_px * 2.0 - 1.0
        y = ((v_px + 0.5) * fy_px - top_px) / height_px * 2.0 - 1.0
        inside = (u_px >= 0) & (np.abs(x) <= 1.0) & (np.abs(y) <= 1.0)
        points[k, inside, 0], points[k, inside, 1] = x[inside], y[inside]
    return _Lift(size_px, (height_px, width_px), top_px, left_px, near.height_px, road, points)


def image_points(
    camera: CameraModel, forward_m: np.ndarray, left_m: np.ndarray, height_m: float,
    pitch_rad: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Where points of base_link's axes, ``height_m`` above the flat road, lie in the image.

    ``pitch_rad`` as in ``birds_eye_view``.  Returns u_px, v_px, -1 for points not ahead.
    """
    # base_link to optical frame; a nose-down correction turns the ground up in the image.
    rotation = camera.base_from_camera[:3, :3].T
    origin = camera.base_from_camera[:3, 3]
    cos, sin = np.cos(pitch_rad), np.sin(pitch_rad)
    rotation = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ rotation
    below_m = np.full(np.shape(left_m), height_m - camera.height_m)
    relative = np.stack((forward_m - origin[0], left_m - origin[1], below_m), 0)
    x_m, y_m, depth_m = np.tensordot(rotation, relative, axes=1)
    ahead = depth_m > MIN_DEPTH_M
    safe_m = np.where(ahead, depth_m, 1.0)
    u_px = np.where(ahead, camera.fx_px * x_m / safe_m + camera.cx_px, -1.0)
    v_px = np.where(ahead, camera.fy_px * y_m / safe_m + camera.cy_px, -1.0)
    return u_px, v_px
