"""Writes a drive in Oxford RobotCar's own raw formats, unchanged.

Image size and rate are smaller than the real 1280x960 at 16 Hz.  The odometry keeps 16 Hz.
"""

from datetime import timedelta
import json
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import LocalFrame

from .drive import (
    DriveMotion,
    gnss_error,
    INS_EXTRINSIC,
    ornstein_uhlenbeck,
    Poses,
    roll_pitch_yaw,
    rotation,
    stamps,
    visual_odometry,
)
from .renderer import RobotcarCamera

ORIGIN_LATLON_DEG = (51.7606, -1.2610)
ALTITUDE_M = 110.0  # of the city's z = 0
UTM_EPSG, UTM_ZONE = 32630, '30U'
_CHUNK_S = 300.0

_POSE = 'latitude,longitude,altitude,northing,easting,down,utm_zone,' \
        'velocity_north,velocity_east,velocity_down,roll,pitch,yaw'
RTK_HEADER = 'timestamp,' + _POSE
INS_HEADER = 'timestamp,ins_status,' + _POSE
GPS_HEADER = ('timestamp,num_satellites,latitude,longitude,altitude,latitude_sigma,'
              'longitude_sigma,altitude_sigma,northing,easting,down,utm_zone')
VO_HEADER = 'source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw'


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with write_atomically(path) as writing:
        writing.write_bytes(data)


def _write_lines(path: Path, lines) -> None:
    write_file(path, ('\n'.join(lines) + '\n').encode())


class Georeference:
    """The city's plane to latitude, longitude and UTM zone 30, exactly by pyproj."""

    def __init__(self):
        from pyproj import Proj

        self.frame = LocalFrame(*ORIGIN_LATLON_DEG)
        self._utm = Proj(UTM_EPSG)

    def utm_from_xy(self, x_m, y_m):
        latitude, longitude = self.frame.latlon_from_xy(x_m, y_m)
        return self._utm(longitude, latitude)

    def xy_from_utm(self, easting_m, northing_m):
        longitude, latitude = self._utm(easting_m, northing_m, inverse=True)
        return self.frame.xy_from_latlon(latitude, longitude)


def write_models(out: Path, model: RobotcarCamera) -> None:
    """Pinhole file and distortion LUT of the image size that is written."""
    camera_from_image = '0 0 1 0\n1 0 0 0\n0 1 0 0\n0 0 0 1'
    _write_lines(out / 'models/stereo_narrow_left.txt', [
        f'{model.f_px:.6f} {model.f_px:.6f} {model.cx_px:.6f} {model.cy_px:.6f}',
        camera_from_image])
    write_file(out / 'models/stereo_narrow_left_distortion_lut.bin',
               np.ascontiguousarray(model.lut().T, np.float64).tobytes())


def write_extrinsics(out: Path) -> None:
    _write_lines(out / 'extrinsics/stereo.txt', ['0 0 0 0 0 0'])
    _write_lines(out / 'extrinsics/ins.txt', [' '.join(f'{v:.4f}' for v in INS_EXTRINSIC)])


def frame_times(seed: int, day_number: int, duration_s: float, rate_hz: float):
    """Times of odometry frames, and which of them have an image stored (every n-th)."""
    rng = np.random.default_rng([seed, 21, day_number])
    every = max(1, round(16.0 / rate_hz))
    time_s = stamps(rng, 0.2, duration_s, rate_hz * every, 0.002)
    time_s = np.round(time_s, 6)
    return time_s, np.arange(0, len(time_s), every)


def write_traversal(out: Path, name: str, start_us: int, motion: DriveMotion, seed: int,
                    day_number: int, rate_hz: float) -> dict:
    """Write all of a traversal except its images; return the entry on sensors for world.json."""
    folder, duration_s = out / name, motion.duration_s
    rng = np.random.default_rng([seed, 22, day_number])
    geo = Georeference()

    def micro(time_s):
        return start_us + np.round(np.asarray(time_s) * 1e6).astype(np.int64)

    # Images and visual odometry; as in the published files the later frame is the source.
    time_s, stored = frame_times(seed, day_number, duration_s, rate_hz)
    stamp = micro(time_s)
    _write_lines(folder / 'stereo.timestamps',
                 (f'{stamp[k]} {1 + int(time_s[k] // _CHUNK_S)}' for k in stored))
    relative, drift = visual_odometry(rng, motion.at(time_s))
    _write_lines(folder / 'vo/vo.csv', [VO_HEADER] + [
        f'{later},{earlier},' + ','.join(f'{v:.9f}' for v in row)
        for earlier, later, row in zip(stamp[:-1], stamp[1:], relative, strict=True)])

    # Truth: the INS, heading turned by 90 deg and roll's sign flipped, as published.
    truth_s = stamps(rng, -0.5, duration_s + 0.5, 20.0, 0.001)
    truth = _navigation_rows(geo, motion, truth_s)
    roll, pitch, yaw = truth['attitude'].T
    published = np.stack((-roll, pitch, _wrapped(yaw + np.pi / 2)), axis=1)
    _write_lines(out / 'rtk' / name / 'rtk.csv', [RTK_HEADER] + [
        f'{s},{_pose_text(truth, k, published[k])}' for k, s in enumerate(micro(truth_s))])

    # INS: aided by GNSS, so it wanders by about a metre.
    wander = 0.7 * ornstein_uhlenbeck(rng, truth_s, 40.0, 3) * (1, 1, 1.3)
    ins = _navigation_rows(geo, motion, truth_s, wander)
    tilt = np.radians(0.15) * ornstein_uhlenbeck(rng, truth_s, 30.0, 3) * (0.5, 0.5, 2.0)
    attitude = ins['attitude'] + tilt
    attitude[:, 2] = _wrapped(attitude[:, 2])
    good = np.abs(ornstein_uhlenbeck(rng, truth_s, 5.0, 1)[:, 0]) < 2.3
    _write_lines(folder / 'gps/ins.csv', [INS_HEADER] + [
        f'{s},{"INS_SOLUTION_GOOD" if good[k] else "INS_BAD_GPS_AGREEMENT"},'
        f'{_pose_text(ins, k, attitude[k])}' for k, s in enumerate(micro(truth_s))])

    # GNSS at the INS position, which RobotCar's own data take for the antenna.
    gnss = gnss_error(rng, duration_s)
    rows = _navigation_rows(geo, motion, gnss.time_s, gnss.error)
    share = 1 + 0.15 * ornstein_uhlenbeck(rng, gnss.time_s, 20.0, 1)[:, 0]
    sigma = np.clip(0.5 * 4.0 / np.sqrt(2) * share, 0.5, None)
    satellites = np.clip(np.round(9 - 2 * (share - 1) / 0.15), 5, 14).astype(int)
    _write_lines(folder / 'gps/gps.csv', [GPS_HEADER] + [
        f'{s},{satellites[k]},{rows["latitude"][k]:.9f},{rows["longitude"][k]:.9f},'
        f'{rows["altitude"][k]:.4f},{sigma[k]:.4f},{sigma[k]:.4f},{2 * sigma[k]:.4f},'
        f'{rows["northing"][k]:.4f},{rows["easting"][k]:.4f},{-rows["altitude"][k]:.4f},{UTM_ZONE}'
        for k, s in enumerate(micro(gnss.time_s))])

    def interval(begin_s, end_s):
        return [int(v) for v in micro([begin_s, end_s])]

    path = motion.at(np.arange(0.0, duration_s, 0.1)).position
    return {
        'name': name, 'images': len(stored),
        'length_m': round(float(np.linalg.norm(np.diff(path[:, :2], axis=0), axis=1).sum()), 1),
        'gnss': {
            'horizontal_rms_m': 4.0, 'wander_tau_s': 60.0, 'white_m': 0.5,
            'antenna': 'INS position',
            'outage_us': interval(*gnss.outage_s) if gnss.outage_s else None,
            'jumps': [{'interval_us': interval(a, b), 'm': round(m, 2)} for a, b, m in
                      gnss.jumps_s],
        },
        'odometry': drift,
        'evaluation_only': {
            'camera_height_m': round(motion.camera_height_m, 4),
            'camera_pitch_error_deg': round(float(np.degrees(motion.camera_pitch_rad)), 4),
        },
    }


def _wrapped(angle):
    return (angle + np.pi) % (2 * np.pi) - np.pi


def _navigation_rows(geo, motion, time_s, error=0.0):
    """Position, velocity and attitude of the INS at times; error (n, 3) east, north, up."""
    ins: Poses = motion.at(time_s).ins()
    step = 0.02
    velocity = (motion.at(time_s + step).ins().position
                - motion.at(time_s - step).ins().position) / (2 * step)
    position = ins.position + error
    x, y = position[:, 0], position[:, 1]
    latitude, longitude = geo.frame.latlon_from_xy(x, y)
    easting, northing = geo.utm_from_xy(x, y)
    # Headings of the files are from true north.
    turn = geo.frame.convergence_rad(float(x.mean()), float(y.mean()))
    zero = np.float64(0.0)
    true_ned = rotation(zero, zero, np.float64(turn)) @ ins.ned_from_vehicle
    return {
        'latitude': latitude, 'longitude': longitude, 'altitude': position[:, 2] + ALTITUDE_M,
        'northing': northing, 'easting': easting, 'velocity': velocity,
        'attitude': np.stack(roll_pitch_yaw(true_ned), axis=1),
    }


def _pose_text(rows, k, attitude):
    east, north, up = rows['velocity'][k]
    return (f'{rows["latitude"][k]:.11f},{rows["longitude"][k]:.11f},{rows["altitude"][k]:.6f},'
            f'{rows["northing"][k]:.6f},{rows["easting"][k]:.6f},{-rows["altitude"][k]:.6f},'
            f'{UTM_ZONE},{north:.6f},{east:.6f},{-up:.6f},'
            + ','.join(f'{v:.9f}' for v in attitude))


def traversal_name(start, taken) -> tuple[str, int]:
    """Folder name and start in microseconds; a second later while the name is taken."""
    while start.strftime('%Y-%m-%d-%H-%M-%S') in taken:
        start += timedelta(seconds=1)
    return start.strftime('%Y-%m-%d-%H-%M-%S'), int(start.timestamp()) * 1_000_000


def write_png(path: Path, image: np.ndarray) -> None:
    done, data = cv2.imencode('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise OSError(f'could not encode {path} as PNG')
    write_file(path, data.tobytes())


class OrthophotoWriter:
    """The orthophoto's pixel grid (north-up in UTM) and its GeoTIFF."""

    def __init__(self, size_m: float, px_m: float, seed: int, warp_rms_m: float):
        self.px_m, self.count = px_m, int(round(size_m / px_m))
        geo = Georeference()
        east, north = geo.utm_from_xy(0.0, 0.0)
        self.west = round((east - size_m / 2) / px_m) * px_m
        self.north = round((north + size_m / 2) / px_m) * px_m
        # Exact on a coarse grid, bilinear between: the two planes differ by a turn and a scale.
        self._knots = np.linspace(0.0, self.count, 33)
        columns, rows = np.meshgrid(self._knots, self._knots)
        self._x, self._y = geo.xy_from_utm(self.west + columns * px_m, self.north - rows * px_m)
        if warp_rms_m > 0:
            dx, dy = smooth_warp(np.random.default_rng([seed, 23]), self._x, self._y, warp_rms_m)
            self._x, self._y = self._x + dx, self._y + dy

    def xy(self, row0: int, row1: int):
        """Local coordinates of pixel centres of rows [row0, row1): two (rows, cols) arrays."""
        from scipy.interpolate import RegularGridInterpolator

        rows, columns = np.meshgrid(np.arange(row0, row1) + 0.5, np.arange(self.count) + 0.5,
                                    indexing='ij')
        points = np.stack((rows.ravel(), columns.ravel()), axis=1)
        return tuple(RegularGridInterpolator((self._knots, self._knots), table)(points).reshape(
            rows.shape) for table in (self._x, self._y))

    def write(self, path: Path, image: np.ndarray) -> None:
        from rasterio.transform import from_origin
        from rasterio.windows import Window

        from crossview_localizer.maps.geotiff import new_geotiff

        with new_geotiff(
            path, width=self.count, height=self.count, count=3, dtype='uint8',
            crs=f'EPSG:{UTM_EPSG}',
            transform=from_origin(self.west, self.north, self.px_m, self.px_m),
            tiled=True, blockxsize=256, blockysize=256, compress='deflate', photometric='RGB',
        ) as write:
            write(np.moveaxis(image, 2, 0), Window(0, 0, self.count, self.count))


def smooth_warp(rng, x, y, rms_m):
    """A displacement field with features of some 150 m and the given RMS length."""
    field = np.zeros((2, *x.shape))
    for axis in (0, 1):
        for _ in range(6):
            k, turn, phase = 2 * np.pi / rng.uniform(110, 260), *rng.uniform(0, 2 * np.pi, 2)
            field[axis] += np.sin(k * (np.cos(turn) * x + np.sin(turn) * y) + phase)
    return field * rms_m / np.sqrt((field ** 2).sum(0).mean())


def world_text(world: dict) -> bytes:
    return (json.dumps(world, indent=2) + '\n').encode()
