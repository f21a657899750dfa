"""Cameras as cars carry them, drawn at random, and their frames of a place.

Axes of base_link: x ahead, y left, z up; its origin lies on the road below the camera.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraModel

from .place import Place, Spot
from .renderer import Renderer

FRAME_WIDTH_PX = 320
ABOVE_DEG, BELOW_DEG = 24.0, 48.0    # of the horizon that frames hold


@dataclass(frozen=True)
class Pose:
    """A camera's place and attitude: position (3,), map_from_optical rotation (3, 3), yaw."""

    x_m: float
    y_m: float
    yaw_rad: float
    position: np.ndarray
    rotation: np.ndarray


def draw_camera(rng) -> CameraModel:
    """Height 1.2 to 3.1 m, field of view 50 to 105 degrees, pitch and roll of its mounting."""
    width = FRAME_WIDTH_PX
    view_rad = np.radians(rng.uniform(50.0, 105.0))
    f_px = width / 2 / np.tan(view_rad / 2)
    pitch = np.radians(rng.normal(1.0, 2.5) if rng.random() < 0.8 else rng.uniform(4.0, 14.0))
    roll = np.radians(rng.normal(0.0, 0.8))
    height_m = rng.uniform(1.2, 2.2) if rng.random() < 0.5 else rng.uniform(2.2, 3.1)
    # Rows that hold what is of use, at most as many as a 4:3 image has of that view.
    top = np.tan(np.radians(ABOVE_DEG) + pitch)
    bottom = np.tan(np.radians(BELOW_DEG) - pitch)
    limit = 0.42 * width / f_px * rng.uniform(0.85, 1.3)
    top, bottom = min(top, limit), min(bottom, limit)
    rows = int(round((top + bottom) * f_px))
    cos, sin = np.cos(pitch), np.sin(pitch)
    level = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # base from optical
    nod = np.array([[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])
    tilt = np.array([[np.cos(roll), -np.sin(roll), 0.0], [np.sin(roll), np.cos(roll), 0.0],
                     [0.0, 0.0, 1.0]])
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = level @ nod @ tilt
    base_from_camera[:3, 3] = (0.0, 0.0, height_m)
    return CameraModel(
        width, rows, float(f_px), float(f_px), (width - 1) / 2,
        float(top * f_px - 0.5), base_from_camera, float(height_m))


def draw_poses(place: Place, camera: CameraModel, count: int, rng) -> list[Pose]:
    """Poses on the roads of a place; half look along the road, half anywhere."""
    found = []
    spots = rng.permutation(len(place.spots))
    for index in spots[:count]:
        spot: Spot = place.spots[index]
        yaw = spot.yaw + rng.normal(0.0, 0.08)
        if rng.random() < 0.5:
            yaw = rng.uniform(-np.pi, np.pi)
        found.append(pose_on_road(place, camera, spot.x, spot.y, float(yaw), rng))
    return found


def pose_on_road(place: Place, camera: CameraModel, x, y, yaw, rng) -> Pose:
    """The car stands on the plane of the road; an unknown nod and lean of 0.35 degrees add up."""
    ahead = np.array([np.cos(yaw), np.sin(yaw)])
    left = np.array([-ahead[1], ahead[0]])
    at = np.array([(x, y), (x + 1.4 * ahead[0], y + 1.4 * ahead[1]),
                   (x - 1.4 * ahead[0], y - 1.4 * ahead[1]),
                   (x + 0.8 * left[0], y + 0.8 * left[1]),
                   (x - 0.8 * left[0], y - 0.8 * left[1])])
    z = place.ground(at[:, 0], at[:, 1])
    nose = (z[1] - z[2]) / 2.8 + np.radians(rng.normal(0.0, 0.35))
    lean = (z[3] - z[4]) / 1.6 + np.radians(rng.normal(0.0, 0.35))
    x_axis = np.array([*ahead, nose])
    x_axis /= np.linalg.norm(x_axis)
    y_axis = np.array([*left, lean])
    z_axis = np.cross(x_axis, y_axis)
    z_axis /= np.linalg.norm(z_axis)
    y_axis = np.cross(z_axis, x_axis)
    map_from_base = np.stack((x_axis, y_axis, z_axis), 1)
    offset = camera.base_from_camera[:3, 3]
    position = np.array([x, y, z[0]]) + map_from_base @ offset
    return Pose(float(x), float(y), float((yaw + np.pi) % (2 * np.pi) - np.pi), position,
                map_from_base @ camera.base_from_camera[:3, :3])


def photograph(renderer: Renderer, camera: CameraModel, pose: Pose, rng) -> np.ndarray:
    """One frame (H, W, 3) uint8: exposure, glare, vignetting, blur, a soft shoulder."""
    day = renderer.day
    u, v = np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px))
    rays = np.stack(((u - camera.cx_px) / camera.fx_px, (v - camera.cy_px) / camera.fy_px,
                     np.ones_like(u, float)), -1).reshape(-1, 3)
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    rays += rng.uniform(-0.3, 0.3, rays.shape) / camera.fx_px   # dither against aliasing
    directions = np.ascontiguousarray((rays @ pose.rotation.T).astype(np.float32))
    origins = np.ascontiguousarray(np.broadcast_to(
        pose.position.astype(np.float32), directions.shape))
    image = renderer.radiance(origins, directions, 0.0, 1.0 / camera.fx_px,
                              float(rng.uniform(0, 100)))
    if day.sun_rgb.max() > 0:  # glare about the sun
        towards = np.clip(directions @ day.sun, 0.0, 1.0)
        image += (rng.uniform(0.0, 0.8) * towards ** rng.uniform(4, 60))[:, None] * day.sun_rgb
    image = image.reshape(camera.height_px, camera.width_px, 3) * day.gains
    radius2 = ((u - camera.cx_px) ** 2 + (v - camera.cy_px) ** 2) / (camera.width_px / 2) ** 2
    image *= (1.0 - rng.uniform(0.0, 0.35) * radius2 / 1.5).astype(np.float32)[..., None]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.8))
    below = image[camera.height_px // 2:, ::4, 1]
    level = float(np.percentile(below, 55))
    image *= rng.uniform(0.7, 1.4) * day.brightness ** 2.2 / max(level, 0.01)
    image = np.clip(image, 0, None)
    image = image * (1 + image / 6) / (1 + image) * 1.35
    image = np.clip(image, 0, None) ** (1 / 2.2)
    image += rng.normal(0.0, rng.uniform(0.0, 0.02), image.shape)
    return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
