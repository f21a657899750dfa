"""The pictures of the RViz scene, drawn without ROS.

The first is the camera image with marks on the road plane that the localizer assumes: if they do
not lie on the road, the camera's height, pitch or mounting is wrong. The second shows what is
compared: the camera image seen from above, beside the satellite image at the refined pose. The
third, on request, is the heat map over the satellite image.
"""

from collections.abc import Sequence
import math

import cv2
import numpy as np

from crossview_localizer.camera.views import birds_eye_view
from crossview_localizer.datatypes import CameraImage, CameraModel, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D

# Small enough for the DDS defaults of a machine without the profile for large images.
CAMERA_WIDTH_PX = 400
VIEW_PX = 200
VIEW_AHEAD_PX = 150                     # rows of the view ahead of base_link
VIEW_PX_M = 0.24
CAPTION_PX = 18
MARKS_M = (5.0, 10.0, 20.0, 40.0)       # distances ahead of base_link
MARK_HALF_WIDTH_M = 3.0
NEAR_M = 0.5                            # nothing nearer to the camera is drawn
MARK_RGB = (255, 220, 60)
HORIZON_RGB = (80, 220, 255)
VEHICLE_RGB = (46, 194, 126)
DARK_RGB = (30, 30, 34)
PEAK_RGB = (255, 225, 77)
PEAK_VIEW_M = 8.0                       # side of the square about a heat map's peak
ELLIPSE_SIGMAS = math.sqrt(-2.0 * math.log(0.05))   # 95 % of two Gaussian coordinates


def project_ground(
    ahead_left_m: np.ndarray, camera: CameraModel, pitch_rad: float = 0.0
) -> np.ndarray:
    """Project points (N, 2) of the flat road, ahead and left of base_link, to pixels.

    Returns (N, 3): u_px, v_px, depth_m.  ``pitch_rad`` corrects the mounting, positive nose
    down.  Behind the camera (depth_m <= 0) the pixel has no meaning.
    """
    # The more the nose of a camera is down, the higher the road is in its image.
    cos, sin = np.cos(pitch_rad), np.sin(pitch_rad)
    optical_from_base = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ (
        camera.base_from_camera[:3, :3].T)
    relative_m = np.column_stack((
        np.asarray(ahead_left_m, float) - camera.base_from_camera[:2, 3],
        np.full(len(ahead_left_m), -camera.height_m)))
    x_m, y_m, depth_m = optical_from_base @ relative_m.T
    safe_m = np.where(depth_m > 0.0, depth_m, 1.0)
    return np.column_stack((
        camera.fx_px * x_m / safe_m + camera.cx_px, camera.fy_px * y_m / safe_m + camera.cy_px,
        depth_m))


def camera_picture(image: CameraImage, pitch_rad: float = 0.0) -> np.ndarray:
    """The image with the horizon and marks on the road, rgb (H, CAMERA_WIDTH_PX, 3) uint8.

    The marks lie in the direction in which the camera looks, at distances from base_link.
    """
    camera = image.camera.facing_ahead()
    scale = CAMERA_WIDTH_PX / camera.width_px
    size_px = (CAMERA_WIDTH_PX, round(camera.height_px * scale))
    picture = cv2.resize(image.rgb, size_px, interpolation=cv2.INTER_AREA)

    # The horizon is the road at a great distance, left and right of straight ahead.
    far_m = 1e6 * np.array([[1.0, 10.0], [1.0, -10.0]])
    _line(picture, project_ground(far_m, camera, pitch_rad), scale, HORIZON_RGB)
    for ahead_m in MARKS_M:
        ends_m = np.array([[ahead_m, MARK_HALF_WIDTH_M], [ahead_m, -MARK_HALF_WIDTH_M]])
        ends_px = project_ground(ends_m, camera, pitch_rad)
        if _line(picture, ends_px, scale, MARK_RGB):
            u_px, v_px = (round(value * scale) for value in ends_px[1, :2])
            at_px = (min(u_px + 4, CAMERA_WIDTH_PX - 34), v_px - 3)
            cv2.putText(picture, f'{ahead_m:.0f} m', at_px, cv2.FONT_HERSHEY_SIMPLEX, 0.38,
                        MARK_RGB, 1, cv2.LINE_AA)
    return picture


def views_picture(
    image: CameraImage, map_from_base: Pose2D, pitch_rad: float,
    orthophoto: tuple[np.ndarray, MapGrid] | None,
) -> np.ndarray:
    """Camera image and satellite image at the pose, both from above.

    The direction in which the camera looks is up in both; a triangle shows the vehicle's.
    Returns rgb (VIEW_PX + CAPTION_PX, 2 VIEW_PX, 3) uint8.  ``orthophoto`` is rgb (rows, cols, 3)
    with its grid; without one the right half is grey.
    """
    seen = birds_eye_view(
        image.rgb, image.camera.facing_ahead(), np.pi / 2, 2 * VIEW_AHEAD_PX, VIEW_PX_M, pitch_rad)
    left_px = VIEW_AHEAD_PX - VIEW_PX // 2
    seen = np.ascontiguousarray(seen[:VIEW_PX, left_px:left_px + VIEW_PX, :3])
    satellite = np.full_like(seen, 127)
    if orthophoto is not None:
        satellite = satellite_view(
            *orthophoto, map_from_base @ Pose2D(0.0, 0.0, image.camera.yaw_rad))
    # A triangle points to where the vehicle heads; rows grow downwards.
    cos, sin = math.cos(image.camera.yaw_rad), math.sin(image.camera.yaw_rad)
    triangle = np.array([[0, -7], [5, 6], [-5, 6]]) @ np.array([[cos, sin], [-sin, cos]])
    triangle = np.rint(triangle).astype(int) + (VIEW_PX // 2, VIEW_AHEAD_PX)
    for view in (seen, satellite):
        cv2.polylines(view, [triangle], True, VEHICLE_RGB, 2, cv2.LINE_AA)
    return _side_by_side(
        (seen, 'camera, from above'), (satellite, 'satellite, refined pose'))


def heatmap_picture(
    percent: np.ndarray, grid: MapGrid, orthophoto: tuple[np.ndarray, MapGrid] | None,
    estimates: Sequence[tuple[PoseEstimate, tuple[int, int, int]]] = (),
) -> np.ndarray:
    """The heat map over the satellite image, north up: the whole window, and around its peak.

    ``percent`` (rows, cols) of the peak on ``grid``, negative where unknown; ``estimates`` are
    drawn as 95 % ellipses in their colours.  Returns rgb (VIEW_PX + CAPTION_PX, 2 VIEW_PX, 3)
    uint8.  Without a peak both halves show the window.
    """
    middle_m = np.array(grid.xy_from_row_col((grid.rows - 1) / 2, (grid.cols - 1) / 2))
    whole_m = grid.cell_m * max(grid.rows, grid.cols)
    peak_m, side_m, text = None, whole_m, 'no match'
    if percent.max() > 0:
        peak_m = np.array(grid.xy_from_row_col(
            *np.unravel_index(np.argmax(percent), percent.shape)))
        side_m, text = PEAK_VIEW_M, f'around its peak, {PEAK_VIEW_M:g} m'
    return _side_by_side(
        (_heatmap_view(percent, grid, orthophoto, estimates, peak_m, middle_m, whole_m),
         f'search window, {whole_m:.0f} m'),
        (_heatmap_view(percent, grid, orthophoto, estimates, peak_m,
                       middle_m if peak_m is None else peak_m, side_m), text))


def _heatmap_view(percent, grid, orthophoto, estimates, peak_m, centre_m, side_m) -> np.ndarray:
    """A square of ``side_m`` around ``centre_m`` (2,), rgb (VIEW_PX, VIEW_PX, 3)."""
    steps_m = ((np.arange(VIEW_PX) + 0.5) / VIEW_PX - 0.5) * side_m
    x_m, y_m = np.meshgrid(centre_m[0] + steps_m, centre_m[1] - steps_m)
    view = np.full((VIEW_PX, VIEW_PX, 3), 127, np.uint8)
    if orthophoto is not None:
        view = _sampled(*orthophoto, x_m, y_m, cv2.INTER_LINEAR, 127)
    heat = _sampled(np.maximum(percent, 0).astype(np.float32), grid, x_m, y_m, cv2.INTER_NEAREST,
                    0)
    colours = cv2.applyColorMap((heat * 2.55).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    alpha = 0.75 * heat[..., None] / 100.0
    view = ((1.0 - alpha) * view + alpha * colours).astype(np.uint8)

    def pixels(points_m):
        offset = (points_m - centre_m) / side_m * (1.0, -1.0)
        # The ellipse of a match on a straight road may reach far beyond the picture.
        return ((offset + 0.5) * VIEW_PX).clip(-1e4, 1e4).round().astype(int)

    angle_rad = np.linspace(0.0, 2.0 * math.pi, 41)
    circle = ELLIPSE_SIGMAS * np.stack((np.cos(angle_rad), np.sin(angle_rad)), axis=-1)
    for estimate, rgb in estimates:
        root = np.linalg.cholesky(estimate.covariance[:2, :2])
        outline_m = (estimate.pose.x_m, estimate.pose.y_m) + circle @ root.T
        cv2.polylines(view, [pixels(outline_m)], True, rgb, 1, cv2.LINE_AA)
    if peak_m is not None:
        cv2.drawMarker(view, pixels(peak_m).tolist(), PEAK_RGB, cv2.MARKER_TILTED_CROSS, 9, 1,
                       cv2.LINE_AA)
    return view


def _side_by_side(*halves: tuple[np.ndarray, str]) -> np.ndarray:
    """Join squares of VIEW_PX, their captions above them."""
    captions = np.full((CAPTION_PX, len(halves) * VIEW_PX, 3), DARK_RGB, np.uint8)
    for number, (_, text) in enumerate(halves):
        cv2.putText(captions, text, (number * VIEW_PX + 6, CAPTION_PX - 6),
                    cv2.FONT_HERSHEY_SIMPLEX, 0.38, (230, 230, 230), 1, cv2.LINE_AA)
    return np.vstack((captions, np.hstack([half for half, _ in halves])))


def satellite_view(rgb: np.ndarray, grid: MapGrid, map_from_base: Pose2D) -> np.ndarray:
    """The square of VIEW_PX around a pose, its heading up; grey beyond the image."""
    pixels = np.arange(VIEW_PX)
    ahead_m, left_m = np.meshgrid(
        (VIEW_AHEAD_PX - 0.5 - pixels) * VIEW_PX_M, ((VIEW_PX - 1) / 2 - pixels) * VIEW_PX_M,
        indexing='ij')
    points_m = map_from_base.transform(np.stack((ahead_m, left_m), axis=-1))
    return _sampled(rgb, grid, points_m[..., 0], points_m[..., 1], cv2.INTER_LINEAR, 127)


def _sampled(values, grid: MapGrid, x_m, y_m, interpolation: int, outside: int) -> np.ndarray:
    """Values on a grid at points (H, W); ``outside`` beyond the grid."""
    row, col = grid.row_col_from_xy(x_m, y_m)
    return cv2.remap(
        values, col.astype(np.float32), row.astype(np.float32), interpolation,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(outside,) * 3)


def _line(picture: np.ndarray, ends_px: np.ndarray, scale: float, rgb) -> bool:
    """Draw between two projected points; False if one of them is behind the camera."""
    if (ends_px[:, 2] < NEAR_M).any():
        return False
    # Whole pixel coordinates far outside the picture would overflow in cv2.
    start, end = (np.clip(ends_px[:, :2] * scale, -1e4, 1e4)).round().astype(int).tolist()
    cv2.line(picture, start, end, rgb, 1, cv2.LINE_AA)
    return True
