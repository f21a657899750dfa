"""A camera's pitch and height from two images: of a street whose camera is known."""

from functools import cache
import math

import cv2
import numpy as np
import pytest

from crossview_localizer.camera.motion import CameraMotion, MIN_PAIRS, reduced
from crossview_localizer.datatypes import CameraImage, CameraModel
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track

TOLD = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
CAMERA = CameraModel(320, 240, 250.0, 250.0, 159.5, 109.5, TOLD, 1.5)


@cache
def textures() -> list[np.ndarray]:
    """Of road and walls, 30 pixels a metre."""
    rng = np.random.default_rng(4)
    return [cv2.GaussianBlur(rng.uniform(0, 255, (600, 2400)).astype(np.float32), (0, 0), 4.0)
            for _ in range(3)]


def street(x_m: float, yaw_rad: float, height_m: float, pitch_rad: float) -> np.ndarray:
    """The image (H, W, 3) of a camera between two walls 6 m to each side; nose down by pitch."""
    v, u = np.mgrid[:CAMERA.height_px, :CAMERA.width_px]
    rays = np.stack(((u - CAMERA.cx_px) / CAMERA.fx_px, (v - CAMERA.cy_px) / CAMERA.fy_px,
                     np.ones_like(u)), -1) @ TOLD[:3, :3].T
    cos, sin = math.cos(pitch_rad), math.sin(pitch_rad)
    rays = rays @ np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]]).T
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    rays = rays @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]]).T
    with np.errstate(divide='ignore'):
        reach = np.stack((-height_m / np.minimum(rays[..., 2], -1e-9),
                          6.0 / np.maximum(rays[..., 1], 1e-9),
                          -6.0 / np.minimum(rays[..., 1], -1e-9)))
    surface, distance = reach.argmin(0), reach.min(0)
    points = rays * distance[..., None]
    along = 30.0 * (points[..., 0] + x_m + 2.0)
    across = np.where(surface == 0, points[..., 1], points[..., 2]) * 30.0 + 300.0
    image = np.full(surface.shape, 127.0, np.float32)
    for k, texture in enumerate(textures()):
        seen = cv2.remap(texture, along.astype(np.float32), across.astype(np.float32),
                         cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
        # What is far is grey, as its texture is finer than a pixel.
        fine = np.clip(distance / 40.0, 0.0, 1.0)
        image = np.where(surface == k, 127.0 + (seen - 127.0) * 10.0 * (1.0 - fine), image)
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, 2)


def drive(count: int, height_m: float, pitch_rad: float, camera=CAMERA) -> CameraMotion:
    """A metre forward and a slight turn from image to image."""
    stamps_ns = np.arange(count) * 10**8
    poses = [Pose2D(1.0 * k, 0.0, 0.004 * (k % 2)) for k in range(count)]
    motion = CameraMotion(Track.from_poses(stamps_ns, poses))
    for stamp_ns, pose in zip(stamps_ns, poses):
        image = street(pose.x_m, pose.yaw_rad, height_m, pitch_rad)
        motion.add(CameraImage(int(stamp_ns), image, camera))
    return motion


@pytest.mark.parametrize(('height_m', 'pitch_deg'), [(1.5, 0.0), (1.3, 1.5), (1.75, -2.0)])
def test_height_and_pitch_are_those_that_the_images_were_made_with(height_m, pitch_deg):
    found = drive(MIN_PAIRS + 3, height_m, math.radians(pitch_deg)).fit(CAMERA.height_m)
    assert found.pairs >= MIN_PAIRS
    assert found.values[0] == pytest.approx(height_m, rel=0.025)
    assert math.degrees(found.values[1]) == pytest.approx(pitch_deg, abs=0.2)
    assert (found.sigmas < (0.07, math.radians(0.2))).all()


def test_a_height_outside_the_range_that_is_tried_is_unknown():
    found = drive(MIN_PAIRS + 3, 0.75, 0.0).fit(CAMERA.height_m)
    assert math.isnan(found.values[0]) and abs(found.values[1]) < math.radians(0.3)


def test_few_pairs_and_images_without_texture_give_no_result():
    assert drive(5, 1.5, 0.0).fit(CAMERA.height_m) is None
    motion = CameraMotion(Track.from_poses([0, 10**9], [Pose2D(0, 0, 0), Pose2D(60.0, 0, 0)]))
    for k in range(40):
        motion.add(CameraImage(k * 25_000_000, np.full((240, 320, 3), 90, np.uint8), CAMERA))
    assert motion.fit(CAMERA.height_m) is None


def test_a_reduced_image_keeps_the_directions_of_its_pixels():
    camera = CameraModel(1280, 960, 983.0, 983.0, 643.0, 493.0, TOLD, 1.5)
    gray = np.zeros((960, 1280), np.uint8)
    cv2.circle(gray, (900, 700), 9, 255, -1)
    small, fitting = reduced(gray, camera)
    assert small.shape == (480, 640)
    rows, cols = np.nonzero(small > 127)
    assert (cols.mean() - fitting.cx_px) / fitting.fx_px == pytest.approx(
        (900 - 643.0) / 983.0, abs=4e-4)
    assert (rows.mean() - fitting.cy_px) / fitting.fy_px == pytest.approx(
        (700 - 493.0) / 983.0, abs=4e-4)


def test_images_in_a_gap_of_the_odometry_make_no_pair():
    stamps_ns = np.array([0, 1, 4, 5]) * 10**9
    poses = [Pose2D(1.5 * stamp_ns * 1e-9, 0.0, 0.0) for stamp_ns in stamps_ns]
    motion = CameraMotion(Track.from_poses(stamps_ns, poses))
    for second in range(6):
        motion.add(CameraImage(second * 10**9, street(1.5 * second, 0.0, 1.5, 0.0), CAMERA))
    assert len(motion.pitches_rad) == 2  # of the seconds 0 and 1, 4 and 5
