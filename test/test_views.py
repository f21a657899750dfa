"""The bird's-eye view puts the road where it is."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from crossview_localizer.camera.views import (
    birds_eye_view,
    camera_view,
    lifted_view,
    resized_rows,
    UNSEEN,
)
from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks.dense import DenseConfig

PX_M = 0.375
SIZE_PX = 128
# Optical axes (right, down, ahead) in base_link (ahead, left, up).
BASE_FROM_OPTICAL = np.array(
    [[0, 0, 1, 0.0], [-1, 0, 0, 0.0], [0, -1, 0, 0.0], [0, 0, 0, 1.0]], dtype=float)


QVGA_CAMERA = CameraModel(320, 240, 246.0, 246.0, 159.5, 119.5, BASE_FROM_OPTICAL, 1.5)


def camera_at(x_m=0.0, y_m=0.0, z_m=0.0, pitch_rad=0.0):
    """A 600x400 camera on base_link, nose down by pitch, 1.5 m above the road."""
    pose = BASE_FROM_OPTICAL.copy()
    cos, sin = np.cos(pitch_rad), np.sin(pitch_rad)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    pose[:3, :3] = turn @ pose[:3, :3]
    pose[:3, 3] = x_m, y_m, z_m
    return CameraModel(600, 400, 482.0, 482.0, 299.5, 199.5, pose, 1.5)


def smooth_ground(seed=0):
    """A blurred random orthophoto, 160 m wide at 0.1875 m a pixel, and its grid."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (60, 60, 3)).astype(np.uint8)
    return (cv2.resize(small, (854, 854), interpolation=cv2.INTER_CUBIC),
            MapGrid(854, 854, 0.1875, -80.0, 80.0))


def render(ground, grid, camera, yaw_rad):
    """Ray-cast the flat ground with the camera at base_link = map origin, heading yaw."""
    u, v = np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px))
    rays = np.stack(((u - camera.cx_px) / camera.fx_px, (v - camera.cy_px) / camera.fy_px,
                     np.ones(u.shape)), -1) @ camera.base_from_camera[:3, :3].T
    down = rays[..., 2] < -1e-3
    reach = np.where(down, camera.height_m / np.maximum(-rays[..., 2], 1e-3), 1e4)
    forward = rays[..., 0] * reach + camera.base_from_camera[0, 3]
    left = rays[..., 1] * reach + camera.base_from_camera[1, 3]
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    row, col = grid.row_col_from_xy(cos * forward - sin * left, sin * forward + cos * left)
    return cv2.remap(ground, col.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)


@pytest.mark.parametrize('yaw_deg', [0.0, 37.0, 90.0, -120.0])
@pytest.mark.parametrize('camera', [
    camera_at(), camera_at(x_m=1.6, y_m=-0.3, z_m=1.5), camera_at(pitch_rad=0.05)])
def test_the_birds_eye_view_of_a_flat_world_is_its_orthophoto(yaw_deg, camera):
    ground, grid = smooth_ground()
    yaw_rad = np.radians(yaw_deg)
    view = birds_eye_view(render(ground, grid, camera, yaw_rad), camera, yaw_rad, SIZE_PX, PX_M)
    half = (SIZE_PX - 1) / 2
    steps = (np.arange(SIZE_PX) - half) * PX_M
    row, col = grid.row_col_from_xy(*np.meshgrid(steps, -steps))
    truth = cv2.remap(ground, col.astype(np.float32), row.astype(np.float32), cv2.INTER_LINEAR)
    # Near the horizon a pixel covers metres of road.
    near = np.hypot(*np.meshgrid(steps, steps)) < 15.0
    seen = (view[..., 3] > 0) & near
    difference = np.abs(view[..., :3].astype(int) - truth.astype(int))[seen]
    shifted = np.abs(view[..., :3].astype(int) - np.roll(truth, 5, 1).astype(int))[seen]
    assert seen.sum() > 300
    assert difference.mean() < 4.0 < 3 * difference.mean() + 6.0 < shifted.mean()


def test_a_pitch_correction_equals_a_camera_mounted_with_that_pitch():
    ground, grid = smooth_ground()
    image = render(ground, grid, camera_at(pitch_rad=0.03), 0.5)
    mounted = birds_eye_view(image, camera_at(pitch_rad=0.03), 0.5, SIZE_PX, PX_M)
    corrected = birds_eye_view(image, camera_at(), 0.5, SIZE_PX, PX_M, pitch_rad=0.03)
    np.testing.assert_array_equal(mounted, corrected)


def test_what_the_camera_does_not_see_is_grey_and_marked():
    ground, grid = smooth_ground()
    view = birds_eye_view(render(ground, grid, camera_at(), 0.0), camera_at(), 0.0, SIZE_PX, PX_M)
    assert (view[:, :SIZE_PX // 2, 3] == 0).all()  # heading east: nothing west of the car
    assert (view[..., :3][view[..., 3] == 0] == UNSEEN).all()
    assert (view[SIZE_PX // 2, 100:110, 3] == 255).all()


def test_the_camera_view_has_the_papers_size():
    assert camera_view(np.zeros((800, 1200, 3), np.uint8)).shape == (154, 231, 3)


def test_a_large_frame_gives_the_lifted_view_of_the_same_frame_at_half_its_size():
    large = cv2.resize(smooth_ground()[0], (1200, 800), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(large, (600, 400), interpolation=cv2.INTER_AREA)
    camera = camera_at()
    # Centres of pixels are whole numbers, so the image's edge is at -0.5.
    twice = replace(camera, width_px=1200, height_px=800, fx_px=964.0, fy_px=964.0,
                    cx_px=2 * camera.cx_px + 0.5, cy_px=2 * camera.cy_px + 0.5)
    one, other = (lifted_view(rgb, seen_by, DenseConfig())
                  for rgb, seen_by in ((large, twice), (small, camera)))
    assert np.abs(one.trunk_image.astype(int) - other.trunk_image).max() <= 2
    assert np.array_equal(one.road[..., 3], other.road[..., 3])
    assert np.abs(one.road.astype(int) - other.road).max() <= 2
    # Whether the outermost half pixel counts as seen depends on the size.
    seen = (one.points < 2.0) & (other.points < 2.0)
    assert np.abs(one.points - other.points)[seen].max() < 1e-5
    assert np.mean((one.points < 2.0) == (other.points < 2.0)) > 0.99


def test_a_camera_that_was_moved_gives_another_lifted_view():
    rgb = cv2.resize(smooth_ground()[0], (600, 400), interpolation=cv2.INTER_CUBIC)
    first, moved, again = (
        lifted_view(rgb, camera, DenseConfig(), pitch_rad)
        for camera, pitch_rad in (
            (camera_at(), 0.0), (camera_at(x_m=1.0), 0.02), (camera_at(), 0.0)))
    assert not np.array_equal(first.points, moved.points)
    assert np.array_equal(first.points, again.points)
    assert np.array_equal(first.road, again.road)


def test_a_point_of_the_road_lies_at_its_row_and_one_above_it_higher():
    config = DenseConfig(heights_m=(0.0, 1.5))
    lifted = lifted_view(np.zeros((240, 320, 3), np.uint8), QVGA_CAMERA, config)
    assert lifted.points.shape == (2, 64, 64, 2)
    height_px, width_px = lifted.trunk_image.shape[:2]
    assert height_px % 32 == 0 and width_px % 32 == 0
    # The cell 15.25 m ahead and 0.25 m to the left.
    row, col = 64 - 31, 31
    u_px = (lifted.points[0, row, col, 0] + 1.0) / 2.0 * width_px - 0.5
    assert u_px == pytest.approx((width_px - 1) / 2 - 180.0 * 0.25 / 15.25, abs=0.3)
    down_px = (lifted.points[0, row, col, 1] - lifted.points[1, row, col, 1]) / 2.0 * height_px
    assert down_px == pytest.approx(180.0 * 1.5 / 15.25, abs=0.3)
    # 1.5 m above the road is the camera's own height: the horizon, for every cell.
    seen = np.abs(lifted.points[1]).max(-1) <= 1.0
    assert np.ptp(lifted.points[1, seen, 1]) < 1e-5
    assert (lifted.points[:, -1] == 2.0).all(), 'what is below the image is not seen'


def test_pitching_the_camera_down_moves_the_road_up_in_the_image():
    image = np.zeros((240, 320, 3), np.uint8)
    level = lifted_view(image, QVGA_CAMERA, DenseConfig())
    down = lifted_view(image, QVGA_CAMERA, DenseConfig(), pitch_rad=0.02)
    seen = (np.abs(level.points[0]).max(-1) <= 1.0) & (np.abs(down.points[0]).max(-1) <= 1.0)
    assert (down.points[0, seen, 1] < level.points[0, seen, 1]).all()


@pytest.mark.parametrize('source_px, size_px', [
    ((640, 480), (234, 176)), ((640, 480), (300, 225)), ((600, 400), (226, 151)),
    ((200, 150), (300, 225)), ((480, 360), (240, 180))])
def test_some_rows_of_a_resized_image_are_those_of_the_whole(source_px, size_px):
    rgb = np.random.default_rng(0).integers(
        0, 256, (source_px[1], source_px[0], 3), np.uint8)
    whole = cv2.resize(rgb, size_px, interpolation=cv2.INTER_AREA)
    for first, last in ((0, size_px[1]), (13, 29), (100, size_px[1]), (0, 1)):
        assert (resized_rows(rgb, size_px, first, last) == whole[first:last]).all()
