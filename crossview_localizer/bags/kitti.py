"""Readers of KITTI's raw recordings: calibration, time stamps, oxts poses.

``DATE/calib_*.txt`` belong to all drives of a day; a drive ``DATE/DATE_drive_NNNN_sync`` has
``image_02/data/0000000000.png`` and ``oxts/data/0000000000.txt``, each with a ``timestamps.txt``.

Frames: the oxts unit (GNSS and IMU) has x ahead, y left, z up; its yaw is counter-clockwise from
true east.  Cameras are optical frames, rectified.  Transforms are (4, 4) arrays ``a_from_b``.
"""

from pathlib import Path

import numpy as np

from crossview_localizer.bags.robotcar import read_numbers

# The first 24 of the 30 numbers of a line (KITTI raw data development kit): degrees, m, rad, m/s.
OXTS_COLUMNS = (
    'latitude', 'longitude', 'altitude', 'roll', 'pitch', 'yaw', 'north_mps', 'east_mps',
    'forward_mps', 'left_mps', 'up_mps', 'ax', 'ay', 'az', 'forward_mps2', 'left_mps2', 'up_mps2',
    'wx', 'wy', 'wz', 'forward_radps', 'left_radps', 'up_radps', 'position_sigma')
SATELLITES_COLUMN = 26
OXTS_DTYPE = [(name, 'f8') for name in (*OXTS_COLUMNS, 'satellites')]


def read_oxts(path: Path) -> np.void:
    """One oxts file as a record of OXTS_DTYPE; FileNotFoundError, or ValueError for any other."""
    found = read_numbers(path, 'an oxts file of KITTI')
    if len(found) <= SATELLITES_COLUMN:
        raise ValueError(f'{path} holds {len(found)} numbers; expected the 30 of an oxts file')
    values = (*found[:len(OXTS_COLUMNS)], found[SATELLITES_COLUMN])
    return np.array(tuple(values), OXTS_DTYPE)[()]


def read_stamps(path: Path) -> np.ndarray:
    """The lines of a timestamps.txt, ``2011-09-26 13:02:25.964389445``, as if UTC; (n,) ns."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; expected the stamps of a KITTI drive')
    try:
        return np.array(path.read_text().splitlines(), 'datetime64[ns]').astype(np.int64)
    except ValueError as error:
        raise ValueError(
            f'{path}: {error}; expected lines such as 2011-09-26 13:02:25.964389445') from error


def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """A calibration file's lines ``name: numbers``; those of text, such as dates, are left out."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; expected a calibration file of KITTI')
    found = {}
    for line in path.read_text().splitlines():
        name, _, values = line.partition(':')
        try:
            found[name.strip()] = np.array([float(value) for value in values.split()])
        except ValueError:
            continue
    return found


def rectified_intrinsics(day: Path, camera: str = '02') -> tuple[np.ndarray, np.ndarray]:
    """Of a day's rectified camera: ``k`` (3, 3), and where ``rect_00`` lies in its frame (3,) m.

    The centre of the first pixel is (0, 0).
    """
    (projection,) = _entries(day / 'calib_cam_to_cam.txt', {f'P_rect_{camera}': (3, 4)})
    k = projection[:, :3]
    return k, np.linalg.solve(k, projection[:, 3])


def unit_from_camera(day: Path, camera: str = '02') -> np.ndarray:
    """The pose (4, 4) of a day's rectified camera in the frame of the oxts unit."""
    camera_from_rect = np.eye(4)
    camera_from_rect[:3, 3] = rectified_intrinsics(day, camera)[1]
    rect_from_raw = np.eye(4)
    (rect_from_raw[:3, :3],) = _entries(day / 'calib_cam_to_cam.txt', {'R_rect_00': (3, 3)})
    raw_from_lidar = _rigid(day / 'calib_velo_to_cam.txt')
    lidar_from_unit = _rigid(day / 'calib_imu_to_velo.txt')
    return np.linalg.inv(camera_from_rect @ rect_from_raw @ raw_from_lidar @ lidar_from_unit)


def _rigid(path: Path) -> np.ndarray:
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = _entries(path, {'R': (3, 3), 'T': (3,)})
    return found


def _entries(path: Path, shapes: dict[str, tuple[int, ...]]) -> list[np.ndarray]:
    calibration = read_calibration(path)
    for name, shape in shapes.items():
        size = calibration[name].size if name in calibration else 0
        if size != np.prod(shape):
            raise ValueError(f'{path} has {size} numbers of {name}; expected {np.prod(shape)}')
    return [calibration[name].reshape(shape) for name, shape in shapes.items()]
