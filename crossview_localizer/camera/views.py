"""The views of an image that the ground branches of the networks take as input.

Tile networks take one of GROUND_VIEWS: ``camera`` is the papers' crop of a front camera's image;
``polar`` is a panorama, which is compared with the polar transform of a satellite tile (CVACT);
``birds_eye`` is an image projected to the flat road and turned north-up by the heading of the
prior.  The dense network takes a ``LiftedView``.
"""

from dataclasses import dataclass
from functools import lru_cache
import math

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraModel

GROUND_VIEWS = ('birds_eye', 'camera', 'polar')
CAMERA_VIEW_PX = (231, 154)  # width, height of the papers' front-camera input
POLAR_VIEW_PX = (616, 112)   # width, height of their panoramas and polar satellite views
SAMPLING_WIDTH_PX = 300      # images are resized to this width before projection (antialiasing)
MIN_DEPTH_M = 1.0            # points nearer to the camera are not projected
UNSEEN = 127                 # grey level of unseen pixels; zero after normalisation
FAR_PX = -1e4                # a place outside of every image


def ground_view(kind: str, rgb: np.ndarray, camera: CameraModel, yaw_rad: float, size_px: int,
                px_m: float, pitch_rad: float = 0.0) -> np.ndarray:
    """Make the view ``kind`` (one of GROUND_VIEWS) of an image (H, W, 3).

    Only the bird's-eye view uses all of the arguments.
    """
    if kind == 'camera':
        return camera_view(rgb)
    if kind == 'polar':
        return panorama_view(rgb, yaw_rad)
    return birds_eye_view(rgb, camera, yaw_rad, size_px, px_m, pitch_rad)


def camera_view(rgb: np.ndarray) -> np.ndarray:
    """Crop and resize an image to the papers' front-camera input (154, 231, 3).

    Of the RobotCar images of 1280x960 the papers took columns 40 to 1240 and rows 0 to 800, which
    has the aspect 3:2 and leaves out the bonnet.  An image of aspect 3:2 is not cropped.  Any
    other image is cropped to the same share of its width, or to less if it is not high enough.
    """
    height, width = rgb.shape[:2]
    if abs(2 * width - 3 * height) > 3:
        cut_width = min(round(width * 1200 / 1280), round(height * 3 / 2))
        left = (width - cut_width) // 2
        rgb = rgb[:min(round(cut_width * 2 / 3), height), left:left + cut_width]
    return cv2.resize(rgb, CAMERA_VIEW_PX, interpolation=cv2.INTER_AREA)


def panorama_view(rgb: np.ndarray, yaw_rad: float) -> np.ndarray:
    """Make the input for CVACT (112, 616, 3): the middle rows of a panorama, north in the middle.

    ``rgb`` is a whole panorama, 360 by 180 degrees; ``yaw_rad`` is the direction of its middle
    column (pi / 2 in CVACT).
    """
    height, width = rgb.shape[:2]
    middle = rgb[height // 4:height - height // 4]
    # With a heading west of north, north lies to the right of the middle.
    turned = np.roll(middle, round((np.pi / 2 - yaw_rad) / (2 * np.pi) * width), axis=1)
    return cv2.resize(turned, POLAR_VIEW_PX, interpolation=cv2.INTER_AREA)


def sampling_image(rgb: np.ndarray, camera: CameraModel) -> tuple[np.ndarray, CameraModel]:
    """Resize an image to SAMPLING_WIDTH_PX, so that all bird's-eye views are equally sharp."""
    resized = sampling_camera(camera)
    size_px = resized.width_px, resized.height_px
    return cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA), resized


def sampling_camera(camera: CameraModel) -> CameraModel:
    """The camera of an image after ``sampling_image``."""
    return camera.resized(
        SAMPLING_WIDTH_PX, round(camera.height_px * SAMPLING_WIDTH_PX / camera.width_px))


def halved(rgb: np.ndarray, width_px: int) -> np.ndarray:
    """Halve an image, by area, while it stays at least twice ``width_px`` wide.

    Resizing it afterwards takes a quarter of the time and changes the result by at most one grey
    level.
    """
    while rgb.shape[1] >= 4 * width_px and not (rgb.shape[0] % 2 or rgb.shape[1] % 2):
        rgb = cv2.resize(
            rgb, (rgb.shape[1] // 2, rgb.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return rgb


def resized_rows(rgb: np.ndarray, size_px: tuple[int, int], first: int, last: int) -> np.ndarray:
    """Resize an image to ``size_px`` (width, height), by area; only the rows first to last - 1.

    The rows are those of the whole resized image.  So it is cut where rows of both begin, and not
    at all where it is enlarged, because rows there depend on their neighbours.
    """
    width_px, height_px = size_px
    is_smaller = height_px <= rgb.shape[0] and width_px <= rgb.shape[1]
    step = height_px // math.gcd(height_px, rgb.shape[0]) if is_smaller else height_px
    top, bottom = first // step * step, -(-last // step) * step
    part = rgb[top * rgb.shape[0] // height_px:bottom * rgb.shape[0] // height_px]
    resized = cv2.resize(part, (width_px, bottom - top), interpolation=cv2.INTER_AREA)
    return resized[first - top:last - top]


def birds_eye_view(
    rgb: np.ndarray, camera: CameraModel, yaw_rad: float, size_px: int, px_m: float,
    pitch_rad: float = 0.0,
) -> np.ndarray:
    """Project an image to the flat ground around base_link, north-up.

    ``yaw_rad`` is the heading of the vehicle in map, ``px_m`` the size of a pixel, ``pitch_rad`` a
    correction to the pitch of the camera, positive nose down.  Returns (S, S, 4) uint8: RGB, and
    255 where the camera sees the ground, else 0 with grey RGB.  Row 0 is north.
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
    """Turn image points into the tables of ``cv2.remap`` and a mask of those inside the image.

    In the tables all others lie far outside.
    """
    seen = (u_px >= 0) & (u_px <= width_px - 1) & (v_px >= 0) & (v_px <= height_px - 1)
    return *(np.where(seen, at_px, FAR_PX).astype(np.float32) for at_px in (u_px, v_px)), seen


def sampled(image: np.ndarray, u_px, v_px, seen) -> np.ndarray:
    """Sample an image at ``pixels``: RGB and 255 inside the image, grey and 0 outside."""
    view = np.empty((*seen.shape, 4), np.uint8)
    view[..., :3] = cv2.remap(
        image, u_px, v_px, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT,
        borderValue=(UNSEEN,) * 3)
    view[..., 3] = seen * np.uint8(255)
    return view


@dataclass(frozen=True)
class LiftedView:
    """The input of the dense ground branch for one image.

    ``trunk_image`` (H, W, 3) uint8 has sides that are multiples of 32.  ``road`` (2F, 2L, 4) uint8
    has the pixels of the flat road in the axes of the vehicle (row 0 farthest ahead, column 0
    leftmost) and a mask.  ``points`` (Z, F, L, 2) float32 has the place of each cell at each
    height in the trunk image: x and y in -1..1 from edge to edge, 2 if the camera does not see it.
    """

    trunk_image: np.ndarray
    road: np.ndarray
    points: np.ndarray


def lifted_view(rgb: np.ndarray, camera: CameraModel, config, pitch_rad: float = 0.0):
    """Make the view of an image for a network of ``config`` (dense.DenseConfig)."""
    lift = _lift_tables(
        camera.width_px, camera.height_px, camera.fx_px, camera.fy_px, camera.cx_px, camera.cy_px,
        np.asarray(camera.base_from_camera, float).tobytes(), camera.height_m, config, pitch_rad)
    rgb = halved(rgb, max(SAMPLING_WIDTH_PX, lift.size_px[0]))
    road = sampled(
        resized_rows(rgb, lift.sampling_size_px, *lift.road_rows), *lift.road)

    (height_px, width_px), top_px, left_px = lift.trunk_px, lift.top_px, lift.left_px
    trunk_image = np.full((height_px, width_px, 3), UNSEEN, np.uint8)
    first, last = max(0, top_px), min(lift.size_px[1], top_px + height_px)
    if first < last:
        trunk_image[first - top_px:last - top_px] = resized_rows(
            rgb, lift.size_px, first, last)[:, left_px:left_px + width_px]
    return LiftedView(trunk_image, road, lift.points)


@dataclass(frozen=True)
class _LiftTables:
    """What ``lifted_view`` needs and depends on the camera alone.

    An image resized to ``size_px`` (width, height) is cropped to ``trunk_px`` (height, width) at
    row ``top_px`` and column ``left_px``.  ``road`` has the ``pixels`` (2F, 2L) of the road in the
    rows ``road_rows`` (first, last + 1) of an image resized to ``sampling_size_px``.
    """

    size_px: tuple[int, int]
    trunk_px: tuple[int, int]
    top_px: int
    left_px: int
    sampling_size_px: tuple[int, int]
    road_rows: tuple[int, int]
    road: tuple[np.ndarray, np.ndarray, np.ndarray]
    points: np.ndarray


@lru_cache(maxsize=8)
def _lift_tables(width_px, height_px, fx_px, fy_px, cx_px, cy_px, base_from_camera: bytes,
                 height_m, config, pitch_rad: float) -> _LiftTables:
    """Compute the tables of a camera; its mounting (4, 4) is given as bytes, for the cache."""
    camera = CameraModel(
        width_px, height_px, fx_px, fy_px, cx_px, cy_px,
        np.frombuffer(base_from_camera).reshape(4, 4), height_m)

    def cell_centres_m(px_m, rows, cols):
        ahead_m = (rows - 0.5 - np.arange(rows)) * px_m
        left_m = ((cols - 1) / 2 - np.arange(cols)) * px_m
        return np.broadcast_arrays(ahead_m[:, None], left_m[None, :])

    sampling = sampling_camera(camera)
    rows, cols = config.ahead_cells, config.across_cells
    ground_m = cell_centres_m(config.px_m, rows * config.cell_px, cols * config.cell_px)
    u_px, v_px, seen = pixels(*image_points(sampling, *ground_m, 0.0, pitch_rad),
                              sampling.width_px, sampling.height_px)
    rows_px = v_px[seen] if seen.any() else np.zeros(1)
    road_rows = int(rows_px.min()), min(sampling.height_px, int(rows_px.max()) + 2)
    road = u_px, v_px - road_rows[0], seen

    # The trunk image has the same focal length for all cameras, and rows around the horizon.
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

    cells_m = cell_centres_m(config.cell_m, rows, cols)
    points = np.full((len(config.heights_m), rows, cols, 2), 2.0, np.float32)
    for k, height_m in enumerate(config.heights_m):
        u_px, v_px = image_points(camera, *cells_m, height_m, pitch_rad)
        x = ((u_px + 0.5) * fx_px - left_px) / width_px * 2.0 - 1.0
        y = ((v_px + 0.5) * fy_px - top_px) / height_px * 2.0 - 1.0
        inside = (u_px >= 0) & (np.abs(x) <= 1.0) & (np.abs(y) <= 1.0)
        points[k, inside, 0], points[k, inside, 1] = x[inside], y[inside]
    return _LiftTables(
        size_px, (height_px, width_px), top_px, left_px,
        (sampling.width_px, sampling.height_px), road_rows, road, points)


def image_points(
    camera: CameraModel, forward_m: np.ndarray, left_m: np.ndarray, height_m: float,
    pitch_rad: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Project points in base_link, ``height_m`` above the flat road, to image points.

    ``pitch_rad`` is that of ``birds_eye_view``.  Returns u_px and v_px, -1 for points not ahead.
    """
    # base_link to optical frame.  A nose-down correction moves the ground up in the image.
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
