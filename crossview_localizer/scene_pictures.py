"""The two pictures of the RViz scene, drawn from a camera frame; ROS is not needed here.

One is the frame with the road plane drawn into it as the localizer believes it: where the marks do
not lie on the road, the camera's height, pitch or mounting is wrong.  The other is what is being
matched: the frame seen from above, beside the satellite image at the refined pose.
"""

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraImage, CameraModel
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.views import birds_eye_view

# Small enough for the DDS defaults of a machine that knows no profile for large images.
FRAME_WIDTH_PX = 400
VIEW_PX = 200
VIEW_AHEAD_PX = 150                     # of them ahead of base_link
VIEW_PX_M = 0.24
CAPTION_PX = 18
MARKS_M = (5.0, 10.0, 20.0, 40.0)       # ahead of base_link
MARK_HALF_WIDTH_M = 3.0
NEAR_M = 0.5                            # nothing nearer to the camera is drawn
MARK_RGB = (255, 220, 60)
HORIZON_RGB = (80, 220, 255)
VEHICLE_RGB = (46, 194, 126)
DARK_RGB = (30, 30, 34)


def project_ground(
    ahead_left_m: np.ndarray, camera: CameraModel, pitch_rad: float = 0.0
) -> np.ndarray:
    """Points (N, 2) of the flat road, ahead and left of base_link, to their pixels.

    Returns (N, 3): u_px, v_px, depth_m.  ``pitch_rad`` corrects the mounting, positive nose
    down.  Behind the camera (depth_m <= 0) the pixel has no meaning.
    """
    # What lies in front of a nose-down camera is higher in its image.
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


def frame_picture(image: CameraImage, pitch_rad: float = 0.0) -> np.ndarray:
    """The frame with the horizon and marks on the road, rgb (H, FRAME_WIDTH_PX, 3) uint8."""
    camera = image.camera
    scale = FRAME_WIDTH_PX / camera.width_px
    size_px = (FRAME_WIDTH_PX, round(camera.height_px * scale))
    picture = cv2.resize(image.rgb, size_px, interpolation=cv2.INTER_AREA)

    # The road at a great distance, on either side of straight ahead, is the horizon.
    far_m = 1e6 * np.array([[1.0, 10.0], [1.0, -10.0]])
    _line(picture, project_ground(far_m, camera, pitch_rad), scale, HORIZON_RGB)
    for ahead_m in MARKS_M:
        ends_m = np.array([[ahead_m, MARK_HALF_WIDTH_M], [ahead_m, -MARK_HALF_WIDTH_M]])
        ends_px = project_ground(ends_m, camera, pitch_rad)
        if _line(picture, ends_px, scale, MARK_RGB):
            u_px, v_px = (round(value * scale) for value in ends_px[1, :2])
            at_px = (min(u_px + 4, FRAME_WIDTH_PX - 34), v_px - 3)
            cv2.putText(picture, f'{ahead_m:.0f} m', at_px, cv2.FONT_HERSHEY_SIMPLEX, 0.38,
                        MARK_RGB, 1, cv2.LINE_AA)
    return picture


def views_picture(
    image: CameraImage, map_from_base: Pose2D, pitch_rad: float,
    orthophoto: tuple[np.ndarray, MapGrid] | None,
) -> np.ndarray:
    """From above, ahead is up: what the camera sees, and the satellite image at the pose.

    Returns rgb (VIEW_PX + CAPTION_PX, 2 VIEW_PX, 3) uint8.  ``orthophoto`` is rgb (rows, cols, 3)
    with its grid; without one the right half is grey.
    """
    seen = birds_eye_view(
        image.rgb, image.camera, np.pi / 2, 2 * VIEW_AHEAD_PX, VIEW_PX_M, pitch_rad)
    left_px = VIEW_AHEAD_PX - VIEW_PX // 2
    seen = np.ascontiguousarray(seen[:VIEW_PX, left_px:left_px + VIEW_PX, :3])
    satellite = np.full_like(seen, 127)
    if orthophoto is not None:
        satellite = satellite_view(*orthophoto, map_from_base)
    for view in (seen, satellite):
        triangle = np.array([[0, -7], [5, 6], [-5, 6]]) + (VIEW_PX // 2, VIEW_AHEAD_PX)
        cv2.polylines(view, [triangle], True, VEHICLE_RGB, 2, cv2.LINE_AA)
    captions = np.full((CAPTION_PX, 2 * VIEW_PX, 3), DARK_RGB, np.uint8)
    for left_px, text in ((0, 'camera, from above'), (VIEW_PX, 'satellite, refined pose')):
        cv2.putText(captions, text, (left_px + 6, CAPTION_PX - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.38,
                    (230, 230, 230), 1, cv2.LINE_AA)
    return np.vstack((captions, np.hstack((seen, satellite))))


def satellite_view(rgb: np.ndarray, grid: MapGrid, map_from_base: Pose2D) -> np.ndarray:
    """The square of VIEW_PX pixels about a pose, its heading up; grey where there is no image."""
    pixels = np.arange(VIEW_PX)
    ahead_m, left_m = np.meshgrid(
        (VIEW_AHEAD_PX - 0.5 - pixels) * VIEW_PX_M, ((VIEW_PX - 1) / 2 - pixels) * VIEW_PX_M,
        indexing='ij')
    points_m = map_from_base.transform(np.stack((ahead_m, left_m), axis=-1))
    row, col = grid.row_col_from_xy(points_m[..., 0], points_m[..., 1])
    return cv2.remap(
        rgb, col.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT, borderValue=(127, 127, 127))


def _line(picture: np.ndarray, ends_px: np.ndarray, scale: float, rgb) -> bool:
    """Draw between two projected points; False where one of them is behind the camera."""
    if (ends_px[:, 2] < NEAR_M).any():
        return False
    # Whole pixel coordinates far outside the picture would overflow in cv2.
    start, end = (np.clip(ends_px[:, :2] * scale, -1e4, 1e4)).round().astype(int).tolist()
    cv2.line(picture, start, end, rgb, 1, cv2.LINE_AA)
    return True
