"""Readers of the tables and extrinsics of the Oxford RobotCar data set.

Frames: the vehicle frame of RobotCar is the frame of its stereo camera, x forward, y right, z down
(FRD).  ``base_link`` is the same frame with its axes turned to forward, left, up (FLU, REP-103),
so its origin is the camera.  Transforms are (..., 4, 4) arrays named ``a_from_b``.
"""

from dataclasses import dataclass
import math
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

# Diagonal of the turn between FRD and FLU axes; its own inverse.
FLU_FROM_FRD = np.diag([1.0, -1.0, -1.0, 1.0])
NS_PER_US = 1000
MAX_STAMP_US = 2**63 // NS_PER_US


# --- tables


@dataclass(frozen=True)
class CsvTable:
    """The usable rows of a csv file, sorted by stamp, each stamp once.

    ``notes`` say what was left out.
    """

    rows: np.ndarray
    notes: tuple[str, ...]


# Column: (position in the released files, dtype). A header with other positions takes precedence.
_GPS_COLUMNS = {
    'timestamp': (0, 'i8'), 'num_satellites': (1, 'f8'), 'latitude': (2, 'f8'),
    'longitude': (3, 'f8'), 'altitude': (4, 'f8'), 'latitude_sigma': (5, 'f8'),
    'longitude_sigma': (6, 'f8'), 'altitude_sigma': (7, 'f8'),
}
_RTK_COLUMNS = {
    'timestamp': (0, 'i8'), 'latitude': (1, 'f8'), 'longitude': (2, 'f8'), 'altitude': (3, 'f8'),
    'northing': (4, 'f8'), 'easting': (5, 'f8'), 'utm_zone': (7, 'U4'),
    'roll': (11, 'f8'), 'pitch': (12, 'f8'), 'yaw': (13, 'f8'),
}
_VO_COLUMNS = {
    'source_timestamp': (0, 'i8'), 'destination_timestamp': (1, 'i8'), 'x': (2, 'f8'),
    'y': (3, 'f8'), 'z': (4, 'f8'), 'roll': (5, 'f8'), 'pitch': (6, 'f8'), 'yaw': (7, 'f8'),
}
_RTK_REQUIRED = ('timestamp', 'altitude', 'northing', 'easting', 'roll', 'pitch', 'yaw')


def read_gps(path: Path) -> CsvTable:
    """gps.csv: satellites, latitude, longitude (deg), altitude and sigmas (m; NaN if absent)."""
    return _read_table(path, _GPS_COLUMNS, ('timestamp', 'latitude', 'longitude'))


def read_rtk(path: Path) -> CsvTable:
    """rtk.csv as published: its angles are not yet corrected."""
    return _read_table(path, _RTK_COLUMNS, _RTK_REQUIRED)


def read_vo(path: Path) -> CsvTable:
    """vo.csv: the pose (FRD, m, rad) of the later frame in the earlier one, and both stamps.

    The published files have the later frame first, as ``source_timestamp``.  The two stamps are
    accepted in either order; rows are sorted by the later one.
    """
    return _read_table(path, _VO_COLUMNS, tuple(_VO_COLUMNS))


def _read_table(
    path: Path, columns: dict[str, tuple[int, str]], required: tuple[str, ...]
) -> CsvTable:
    """Read the usable rows, and sort them.

    Left out and counted in ``notes``: rows without a required number or with one that is not
    finite, a last line without its line end (its last number may be cut), repeated stamps.

    Raises FileNotFoundError, or ValueError if no row is usable.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; expected a RobotCar {path.name}')
    text = path.read_text(encoding='utf-8', errors='replace')
    lines = text.splitlines()
    cut_short = bool(lines) and not text.endswith('\n')
    if cut_short:
        lines.pop()
    place = {name: position for name, (position, _) in columns.items()}
    if lines and not lines[0].split(',')[0].strip().isdigit():
        header = [name.strip() for name in lines.pop(0).split(',')]
        place |= {name: header.index(name) for name in columns if name in header}

    parsed, unreadable, not_finite = [], 0, 0
    for line in lines:
        if not line.strip():
            continue
        fields = line.split(',')
        try:
            row = [
                _parse_field(fields, place[name], kind, name in required)
                for name, (_, kind) in columns.items()
            ]
        except (ValueError, IndexError):
            unreadable += 1
            continue
        if all(math.isfinite(row[k]) for k, name in enumerate(columns) if name in required):
            parsed.append(tuple(row))
        else:
            not_finite += 1
    dtype = [(name, kind) for name, (_, kind) in columns.items()]
    rows = np.array(parsed, dtype=dtype)
    if not len(rows):
        raise ValueError(
            f'{path} has no usable row ({len(lines)} lines); expected columns {", ".join(columns)}'
        )

    stamps_us = _row_stamps_us(rows)
    out_of_order = int((stamps_us < np.maximum.accumulate(stamps_us)).sum())
    stamps_us, first = np.unique(stamps_us, return_index=True)
    repeated = len(rows) - len(first)
    notes = [
        f'{path.name}: {count:,} of {len(lines) + cut_short:,} rows {what}'
        for count, what in (
            (int(cut_short), 'cut short at the end of the file, left out'),
            (unreadable, 'not readable, left out'),
            (not_finite, 'not finite, left out'),
            (repeated, 'with a repeated stamp, left out'),
            (out_of_order, 'out of time order, sorted'),
        )
        if count
    ]
    return CsvTable(rows[first], tuple(notes))


def _parse_field(fields: list[str], place: int, kind: str, required: bool):
    """One value; an optional one that is absent is NaN or ''."""
    if kind == 'i8':
        stamp_us = int(fields[place])
        if not 0 < stamp_us < MAX_STAMP_US:
            raise ValueError(f'{stamp_us} is not a time in microseconds')
        return stamp_us
    if kind.startswith('U'):
        return fields[place].strip() if place < len(fields) else ''
    try:
        return float(fields[place])
    except (ValueError, IndexError):
        if required:
            raise
        return math.nan


def _row_stamps_us(rows: np.ndarray) -> np.ndarray:
    if 'timestamp' in rows.dtype.names:
        return rows['timestamp']
    return np.maximum(rows['source_timestamp'], rows['destination_timestamp'])


# --- rigid transforms


def se3_from_xyzrpy(xyzrpy: np.ndarray) -> np.ndarray:
    """(..., 6) x, y, z (m), roll, pitch, yaw (rad) to (..., 4, 4): Rz(yaw) Ry(pitch) Rx(roll)."""
    xyzrpy = np.asarray(xyzrpy, dtype=float)
    se3 = np.zeros((*xyzrpy.shape[:-1], 4, 4))
    se3[..., :3, :3] = rotation_from_rpy(xyzrpy[..., 3], xyzrpy[..., 4], xyzrpy[..., 5])
    se3[..., :3, 3] = xyzrpy[..., :3]
    se3[..., 3, 3] = 1.0
    return se3


def rotation_from_rpy(roll_rad, pitch_rad, yaw_rad) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll) as (..., 3, 3)."""
    angles = np.stack(np.broadcast_arrays(yaw_rad, pitch_rad, roll_rad), axis=-1)
    matrices = Rotation.from_euler('ZYX', angles.reshape(-1, 3)).as_matrix()
    return matrices.reshape(*angles.shape[:-1], 3, 3)


def flu_from_frd(a_from_b: np.ndarray) -> np.ndarray:
    """The same transform between the frames with their axes turned to forward, left, up."""
    return FLU_FROM_FRD @ a_from_b @ FLU_FROM_FRD


def read_extrinsic(path: Path) -> np.ndarray:
    """An extrinsics file, ``x y z roll pitch yaw``, as (4, 4).

    The data set defines it as camera_from_vehicle for ``stereo.txt`` (zero: they are the same
    frame) and as vehicle_from_sensor for the others.
    """
    values = read_numbers(path, 'an extrinsics file: x y z roll pitch yaw')
    if len(values) != 6:
        raise ValueError(f'{path} holds {len(values)} numbers; expected 6: x y z roll pitch yaw')
    return se3_from_xyzrpy(np.array(values))


def read_numbers(path: Path, what: str) -> list[float]:
    """All numbers of a text file; raises FileNotFoundError or ValueError that name ``what``."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; expected {what}')
    try:
        values = [float(word) for word in path.read_text(encoding='utf-8').split()]
    except ValueError as error:
        raise ValueError(f'{path} is not {what}: {error}') from None
    if not np.isfinite(values).all():
        raise ValueError(f'{path} holds numbers that are not finite')
    return values
