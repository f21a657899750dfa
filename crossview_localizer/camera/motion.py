"""The pitch of a camera and its height above the road, from pairs of images of a drive.

Points that are tracked from one image to the next give the direction in which the camera moved
(epipolar geometry).  On average a vehicle moves parallel to the road, so the mean angle between
that direction and the camera's mounting is the pitch error.  Odometry gives the distance.  The
height is found by warping the road of one image to the other with the homography of a plane at
that depth (Hartley and Zisserman, Multiple View Geometry, 13.1): the right height makes the two
roads look most alike.
"""

from dataclasses import dataclass
import math

import cv2
import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from crossview_localizer.datatypes import CameraImage, CameraModel
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track

STEP_M = (0.7, 3.0)             # smallest and largest distance between the images of a pair
MAX_TURN_RAD = 0.05             # largest turn between the images of a pair
MAX_ODOMETRY_GAP_S = 1.0        # in a longer gap the motion is not known
WIDTH_PX = 640                  # larger images are resized to this width
MIN_TRACKS = 60                 # smallest number of tracked points in a pair
MIN_AGREEING = 0.6              # smallest share of points that agree with the fitted motion
AGREES_PX = 0.8                 # largest residual of a point that agrees
TRACKED_PX = 9                  # side of the tracker's window
ROADSIDE_M = 4.0                # points nearer than this to the path are not tracked
ROAD_AHEAD_M = (4.0, 14.0)      # the part of the road that is compared
ROAD_HALF_WIDTH_M = 1.8
HEIGHTS = np.linspace(0.6, 1.6, 51)     # heights to try, as shares of the configured height
SMOOTH_PX = 8.0                 # brightness that changes more slowly than this is removed
MIN_PAIRS = 30                  # smallest number of pairs for a fit
BLOCK = 10                      # neighbouring pairs whose errors are correlated (bumps, braking)
BOOTSTRAPS = 200
# Mean errors on simulated drives, from crowned roads and tracks of blurred texture.
BIAS_HEIGHT = 0.04
BIAS_PITCH_RAD = math.radians(0.15)


@dataclass(frozen=True)
class MotionFit:
    """Fitted height_m and pitch_rad as ``values`` (2,), with their ``sigmas`` (2,).

    The height is NaN if the road did not show it.  The pitch is positive nose down and relative to
    the mounting of the camera.
    """

    values: np.ndarray
    sigmas: np.ndarray
    pairs: int


class CameraMotion:
    """Compares pairs of images of a drive, given in order, that are a metre or two apart."""

    def __init__(self, odometry: Track):
        self._odometry = odometry
        self._last: tuple[int, np.ndarray] | None = None
        self.pitches_rad: list[float] = []
        self.likeness: list[np.ndarray] = []        # (heights,) for each pair

    def add(self, image: CameraImage) -> None:
        gray, camera = reduced(cv2.cvtColor(image.rgb, cv2.COLOR_RGB2GRAY), image.camera)
        if self._last is not None and self._last[1].shape == gray.shape:
            stamp_ns, before = self._last
            odom_from_before, odom_from_now = (
                self._odometry.pose_at(at_ns, MAX_ODOMETRY_GAP_S)
                for at_ns in (stamp_ns, image.stamp_ns))
            if odom_from_before is not None and odom_from_now is not None:
                motion = odom_from_before.inverse() @ odom_from_now
                step_m = math.hypot(motion.x_m, motion.y_m)
                if step_m < STEP_M[0]:
                    return  # wait for an image that is far enough
                if step_m <= STEP_M[1] and abs(motion.yaw_rad) <= MAX_TURN_RAD:
                    self._compare(before, gray, camera, motion)
        self._last = image.stamp_ns, gray

    def _compare(self, before: np.ndarray, after: np.ndarray, camera: CameraModel,
                 motion: Pose2D) -> None:
        fitted = camera_motion(before, after, camera, motion.yaw_rad)
        if fitted is None:
            return
        rotation, direction = fitted
        direction_after = rotation @ direction
        pitch_rad = (math.atan2(direction[2], direction[0])
                     + math.atan2(direction_after[2], direction_after[0])) / 2
        step_m = math.hypot(motion.x_m, motion.y_m)
        likeness = road_likeness(
            before, after, camera, rotation, direction * step_m, HEIGHTS * camera.height_m)
        self.pitches_rad.append(pitch_rad)
        self.likeness.append(likeness)

    def fit(self, height_m: float, seed: int = 0) -> MotionFit | None:
        """Fit height and pitch; None with fewer than MIN_PAIRS pairs.

        ``height_m`` is the configured height.  The standard deviations combine those of fits to
        resampled blocks of pairs with BIAS_HEIGHT and BIAS_PITCH_RAD, which more pairs do not
        reduce.
        """
        count = len(self.pitches_rad)
        if count < MIN_PAIRS:
            return None
        pitches_rad, likeness = np.array(self.pitches_rad), np.array(self.likeness)
        rng = np.random.default_rng(seed)
        blocks = np.array_split(np.arange(count), max(2, count // BLOCK))
        resampled = []
        for _ in range(BOOTSTRAPS):
            drawn = rng.integers(len(blocks), size=len(blocks))
            chosen = np.concatenate([blocks[k] for k in drawn])
            resampled.append(_height_and_pitch(pitches_rad[chosen], likeness[chosen], height_m))
        sigmas = np.hypot(np.std(resampled, 0), (BIAS_HEIGHT * height_m, BIAS_PITCH_RAD))
        return MotionFit(_height_and_pitch(pitches_rad, likeness, height_m), sigmas, count)


def _height_and_pitch(pitches_rad: np.ndarray, likeness: np.ndarray,
                      height_m: float) -> np.ndarray:
    """The height of the highest mean likeness, and the mean pitch without outliers."""
    deviation = np.abs(pitches_rad - np.median(pitches_rad))
    pitch_rad = pitches_rad[deviation <= 4.0 * np.median(deviation)].mean()
    seen = np.isfinite(likeness).all(1)
    if not seen.any():
        return np.array([math.nan, pitch_rad])
    mean = likeness[seen].mean(0)
    best = int(mean.argmax())
    if best in (0, len(HEIGHTS) - 1):
        return np.array([math.nan, pitch_rad])
    low, middle, high = mean[best - 1:best + 2]
    peak = best + 0.5 * (low - high) / (low - 2.0 * middle + high)
    return np.array([height_m * np.interp(peak, np.arange(len(HEIGHTS)), HEIGHTS), pitch_rad])


def reduced(gray: np.ndarray, camera: CameraModel) -> tuple[np.ndarray, CameraModel]:
    """Resize an image to at most WIDTH_PX of width; returns it and its camera."""
    if camera.width_px <= WIDTH_PX:
        return gray, camera
    size = WIDTH_PX, round(camera.height_px * WIDTH_PX / camera.width_px)
    return cv2.resize(gray, size, interpolation=cv2.INTER_AREA), camera.resized(*size)


def camera_motion(before: np.ndarray, after: np.ndarray, camera: CameraModel,
                  yaw_rad: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Rotation (3, 3) and direction of travel (3,) of the camera, in the axes of the vehicle.

    A point at X in the first image lies at rotation @ (X - distance * direction) in the second.
    ``yaw_rad`` is the turn of the vehicle, from which the fit starts.  None if too few points were
    tracked or they do not agree.
    """
    first, second = tracked(before, after, beside_the_road(camera))
    if len(first) < MIN_TRACKS:
        return None
    u, v = rays(first, camera), rays(second, camera)

    def rotation_and_direction(p):
        return Rotation.from_rotvec(p[:3]).as_matrix(), np.array(
            [math.cos(p[3]) * math.cos(p[4]), math.sin(p[4]), math.sin(p[3])])

    def residuals_px(p):
        """Residuals of the epipolar constraint, to first order (Sampson)."""
        rotation, direction = rotation_and_direction(p)
        essential = rotation @ np.cross(np.eye(3), -direction)
        # The epipolar lines of u in the second image, and of v in the first.
        lines_after, lines_before = u @ essential.T, v @ essential
        length = np.sqrt((lines_after[:, 1:] ** 2).sum(1) + (lines_before[:, 1:] ** 2).sum(1))
        return camera.fx_px * (v * lines_after).sum(1) / np.maximum(length, 1e-9)

    fitted = least_squares(
        residuals_px, (0.0, 0.0, -yaw_rad, 0.0, yaw_rad / 2), loss='cauchy', f_scale=0.3)
    if (np.abs(residuals_px(fitted.x)) < AGREES_PX).mean() < MIN_AGREEING:
        return None
    return rotation_and_direction(fitted.x)


def beside_the_road(camera: CameraModel) -> np.ndarray:
    """A mask (H, W) that is 255 where points are tracked: everywhere but on the road.

    The road is seen at a grazing angle, so each of its rows moves by another amount.  A tracker
    moves its window as a whole; on the road its error looks like a pitch.  Beside the road small
    windows (TRACKED_PX) keep that error small.
    """
    rows, cols = np.mgrid[:camera.height_px, :camera.width_px]
    directions = rays(np.stack((cols.ravel(), rows.ravel()), 1), camera)
    with np.errstate(divide='ignore', invalid='ignore'):
        left_m = directions[:, 1] * camera.height_m / -directions[:, 2]
    road = (directions[:, 2] < 0.0) & (np.abs(left_m) < ROADSIDE_M)
    return np.where(road, 0, 255).astype(np.uint8).reshape(rows.shape)


def tracked(before: np.ndarray, after: np.ndarray,
            where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Track points (n, 2) to the second image; keep those that track back to their start."""
    points = cv2.goodFeaturesToTrack(before, 600, 0.005, 7, mask=where)
    if points is None:
        return np.zeros((0, 2)), np.zeros((0, 2))
    options = {'winSize': (TRACKED_PX, TRACKED_PX), 'maxLevel': 4}
    moved, ok, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, **options)
    returned, ok_back, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, None, **options)
    good = (ok[:, 0] > 0) & (ok_back[:, 0] > 0) & (np.abs(returned - points).max((1, 2)) < 0.3)
    return points[good, 0].astype(float), moved[good, 0].astype(float)


def rays(pixels: np.ndarray, camera: CameraModel) -> np.ndarray:
    """Directions (n, 3) of pixels in the axes of base_link."""
    optical = np.stack(((pixels[:, 0] - camera.cx_px) / camera.fx_px,
                        (pixels[:, 1] - camera.cy_px) / camera.fy_px, np.ones(len(pixels))), 1)
    return optical @ camera.base_from_camera[:3, :3].T


def road_likeness(before: np.ndarray, after: np.ndarray, camera: CameraModel, rotation: np.ndarray,
                  step_m: np.ndarray, heights_m: np.ndarray) -> np.ndarray:
    """Correlation (heights,) of the road in both images, for each height above the road.

    The road is taken to be a plane parallel to ``step_m`` (3,), the motion of the camera.  All are
    NaN if the road is not in view.
    """
    direction = step_m / np.linalg.norm(step_m)
    pitch_rad = math.atan2(direction[2], direction[0])
    up = np.array([-math.sin(pitch_rad), 0.0, math.cos(pitch_rad)])
    ahead = np.array([math.cos(pitch_rad), 0.0, math.sin(pitch_rad)])
    base_from_optical = camera.base_from_camera[:3, :3]
    matrix = np.array([[camera.fx_px, 0.0, camera.cx_px], [0.0, camera.fy_px, camera.cy_px],
                       [0.0, 0.0, 1.0]])
    corners = [matrix @ base_from_optical.T @ (
        a * ahead + side * ROAD_HALF_WIDTH_M * np.array([0.0, 1.0, 0.0]) - camera.height_m * up)
        for a, side in ((ROAD_AHEAD_M[0], 1), (ROAD_AHEAD_M[0], -1),
                        (ROAD_AHEAD_M[1], -1), (ROAD_AHEAD_M[1], 1))]
    road = np.zeros_like(before)
    cv2.fillConvexPoly(
        road, np.round([c[:2] / c[2] for c in corners]).astype(np.int32), 1)
    left, top, width, height = cv2.boundingRect(road)
    if width < 8 or height < 8:
        return np.full(len(heights_m), math.nan)
    inside = np.array([[1.0, 0.0, left], [0.0, 1.0, top], [0.0, 0.0, 1.0]])
    road = road[top:top + height, left:left + width] > 0
    first = texture(before)[top:top + height, left:left + width]
    second = texture(after)
    correlations = []
    for height_m in heights_m:
        plane = rotation @ (np.eye(3) + np.outer(step_m, up) / height_m)
        homography = (matrix @ base_from_optical.T @ plane @ base_from_optical
                      @ np.linalg.inv(matrix) @ inside)
        # NaN outside the second image.
        moved = cv2.warpPerspective(
            second, homography, (width, height), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderValue=math.nan)
        both = road & np.isfinite(moved)
        if both.sum() < road.sum() / 4:
            return np.full(len(heights_m), math.nan)
        a, b = first[both] - first[both].mean(), moved[both] - moved[both].mean()
        correlations.append((a @ b) / max(math.sqrt((a @ a) * (b @ b)), 1e-9))
    return np.array(correlations)


def texture(gray: np.ndarray) -> np.ndarray:
    """Remove slow changes of brightness, such as those of lighting."""
    gray = gray.astype(np.float32)
    return gray - cv2.GaussianBlur(gray, (0, 0), SMOOTH_PX)
