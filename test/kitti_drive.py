"""A tiny KITTI in its own formats, painted from a plane: a raw drive and satellite tiles."""

from dataclasses import dataclass
import math
from pathlib import Path

import cv2
import numpy as np
from pyproj import Transformer
from synthetic_pairs import Plane, save

DAY, DRIVE = '2011_09_26', '2011_09_26_drive_0009_sync'
LATITUDE_DEG, LONGITUDE_DEG, ALTITUDE_M = 49.0, 8.4, 116.0
FRAMES = 4
PERIOD_S, SPEED_MPS, TURN_RADPS, START_YAW_RAD = 0.1, 10.0, 0.4, 2.2
SIZE_PX = (620, 186)
K = (360.0, 360.0, 305.0, 86.0)               # fx, fy, cx, cy
HEIGHT_M = 1.65                               # of the camera above the road
CAMERA_M = (1.08, -0.26, 0.72)                # in the oxts unit: ahead, left, up
LIDAR_M = (0.81, -0.32, 0.80)
TILE_PX = 760
TILE_PX_M = 156543.03392 * math.cos(math.radians(LATITUDE_DEG)) / 2 ** 18 / 2

LATLON_FROM_XY = Transformer.from_crs(
    f'+proj=tmerc +lat_0={LATITUDE_DEG} +lon_0={LONGITUDE_DEG} +k=1 +datum=WGS84', 'EPSG:4326',
    always_xy=True)
# Axes of the lidar (ahead, left, up) in those of a camera (right, down, ahead).
CAMERA_FROM_BODY = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def unit_pose(t_s: float) -> tuple[float, float, float]:
    """x, y (m about LATITUDE_DEG, LONGITUDE_DEG) and yaw of the oxts unit on an arc."""
    yaw, radius_m = START_YAW_RAD + TURN_RADPS * t_s, SPEED_MPS / TURN_RADPS
    return (radius_m * (math.sin(yaw) - math.sin(START_YAW_RAD)),
            -radius_m * (math.cos(yaw) - math.cos(START_YAW_RAD)), yaw)


def camera_place(t_s: float) -> tuple[float, float]:
    x_m, y_m, yaw = unit_pose(t_s)
    ahead_m, left_m, _ = CAMERA_M
    return (x_m + ahead_m * math.cos(yaw) - left_m * math.sin(yaw),
            y_m + ahead_m * math.sin(yaw) + left_m * math.cos(yaw))


def oxts_line(t_s: float, roll=0.0, pitch=0.0, satellites=9) -> str:
    x_m, y_m, yaw = unit_pose(t_s)
    longitude, latitude = LATLON_FROM_XY.transform(x_m, y_m)
    values = [0.0] * 30
    values[:6] = latitude, longitude, ALTITUDE_M, roll, pitch, yaw
    values[8], values[22], values[23], values[26] = SPEED_MPS, TURN_RADPS, 0.05, satellites
    return ' '.join(repr(value) for value in values) + '\n'


def stamp(t_s: float) -> str:
    return f'2011-09-26 13:02:{25 + t_s:012.9f}'


def numbers(array) -> str:
    return ' '.join(f'{value:.12e}' for value in np.ravel(array))


@dataclass(frozen=True)
class Kitti:
    root: Path

    @property
    def drive(self) -> Path:
        return self.root / 'raw_data' / DAY / DRIVE

    def name(self, frame: int) -> str:
        return f'{DAY}/{DRIVE}/{frame:010d}.png'

    def write_split(self, file: str, lines: list[str]) -> Path:
        (self.root / file).write_text('\n'.join(lines) + '\n')
        return self.root / file


def write_calibration(day: Path) -> None:
    """Level cameras and lidar; cam 2 lies 0.06 m left of cam 0, as in KITTI."""
    fx, fy, cx, cy = K
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    projection = np.column_stack((k, k @ (0.06, 0.0, 0.0)))
    cam_0_m = np.array(CAMERA_M) - (0.0, 0.06, 0.0)
    in_lidar_m = cam_0_m - LIDAR_M
    (day / 'calib_cam_to_cam.txt').write_text(
        'calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.950000e-02\n'
        f'R_rect_00: {numbers(np.eye(3))}\nS_rect_02: {SIZE_PX[0]} {SIZE_PX[1]}\n'
        f'P_rect_02: {numbers(projection)}\n')
    (day / 'calib_velo_to_cam.txt').write_text(
        f'calib_time: 15-Mar-2012 11:37:16\nR: {numbers(CAMERA_FROM_BODY)}\n'
        f'T: {numbers(-CAMERA_FROM_BODY @ in_lidar_m)}\ndelta_f: 0 0\n')
    (day / 'calib_imu_to_velo.txt').write_text(
        f'calib_time: 25-May-2012 16:47:16\nR: {numbers(np.eye(3))}\n'
        f'T: {numbers(-np.array(LIDAR_M))}\n')


def write_kitti(root: Path, seed: int = 0) -> Kitti:
    """FRAMES images, oxts rows and tiles of one drive."""
    kitti, plane = Kitti(root), Plane(seed)
    for sensor in ('image_02', 'oxts'):
        (kitti.drive / sensor / 'data').mkdir(parents=True)
        (kitti.drive / sensor / 'timestamps.txt').write_text(
            '\n'.join(stamp(k * PERIOD_S) for k in range(FRAMES)) + '\n')
    write_calibration(kitti.drive.parent)
    for frame in range(FRAMES):
        t_s = frame * PERIOD_S
        (kitti.drive / 'oxts/data' / f'{frame:010d}.txt').write_text(oxts_line(t_s))
        x_m, y_m, yaw = unit_pose(t_s)
        cos, sin = math.cos(yaw), math.sin(yaw)
        body_from_world = np.array([[cos, sin, 0.0], [-sin, cos, 0.0], [0.0, 0.0, 1.0]])
        save(kitti.drive / 'image_02/data' / f'{frame:010d}.png', plane.pinhole(
            CAMERA_FROM_BODY @ body_from_world, (*camera_place(t_s), HEIGHT_M), K, *SIZE_PX))
        save(root / 'satmap' / kitti.name(frame), plane.overhead(TILE_PX, TILE_PX_M, x_m, y_m))
    return kitti


def spot(size_px: tuple[int, int], u: float, v: float) -> np.ndarray:
    rows, cols = np.mgrid[:size_px[1], :size_px[0]]
    value = 255 * np.exp(-((cols - u) ** 2 + (rows - v) ** 2) / (2 * 3.0 ** 2))
    return np.repeat(value.astype(np.uint8)[..., None], 3, 2)


def spot_place(image: np.ndarray) -> tuple[float, float]:
    """Column and row of the bright spot."""
    weight = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(float)
    rows, cols = np.mgrid[:image.shape[0], :image.shape[1]]
    return (cols * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()
