"""Readers of the Oxford RobotCar raw formats, with the data set's known quirks put right.

Frames: RobotCar's vehicle frame is its stereo camera's frame, x forward, y right, z down (FRD);
``base_link`` is that very frame with its axes turned to forward, left, up (FLU, REP-103), so its
origin is the camera.  World orientations are true north, east, down (NED).  Transforms are
(..., 4, 4) arrays named ``a_from_b``.  Positions are UTM metres, because the files give them with
more digits than latitude and longitude (6 decimals: 0.1 m).

What is put right, each in one place:

- RTK yaw is the true heading + 90 degrees and RTK roll has the wrong sign (``RTK_YAW_OFFSET_RAD``,
  ``RTK_ROLL_SIGN``);
- RTK and INS rows are poses of the INS, 1.7 m behind and 1.2 m below the camera
  (``base_link_track``);
- headings are from true north but positions on the UTM grid, turned by 1.4 degrees at Oxford
  (``grid_convergence_rad``);
- poses between rows are interpolated (the data set's own tools divide with ``//`` and return the
  row before); requests outside the rows give NaN (``interpolate_track``).
"""

from dataclasses import dataclass
import math
from pathlib import Path
import re

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

RTK_YAW_OFFSET_RAD = math.pi / 2
RTK_ROLL_SIGN = -1.0
# Diagonal of the turn between FRD and FLU axes; its own inverse.
FLU_FROM_FRD = np.diag([1.0, -1.0, -1.0, 1.0])
ENU_FROM_NED = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])

STEREO_CENTRE_MODEL = 'stereo_narrow_left'
NS_PER_US = 1000
MAX_STAMP_US = 2**63 // NS_PER_US
# Longest step between two RTK rows that is still interpolated, and between two odometry rows that
# is bridged at constant speed.
MAX_INTERPOLATION_GAP_S = 1.0
MAX_BRIDGED_GAP_S = 1.0


# --- tables -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Table:
    """A csv file's usable rows, sorted by stamp, each stamp once; notes on what was left out."""

    rows: np.ndarray
    notes: tuple[str, ...]


# Column: (position in the released files, dtype).  A header that has the name elsewhere wins.
_GPS_COLUMNS = {
    'timestamp': (0, 'i8'), 'num_satellites': (1, 'f8'), 'latitude': (2, 'f8'),
    'longitude': (3, 'f8'), 'altitude': (4, 'f8'), 'latitude_sigma': (5, 'f8'),
    'longitude_sigma': (6, 'f8'), 'altitude_sigma': (7, 'f8'),
}
_RTK_COLUMNS = {
    'timestamp': (0, 'i8'), 'latitude': (1, 'f8'), 'longitude': (2, 'f8'), 'altitude': (3, 'f8'),
    'northing': (4, 'f8'), 'easting': (5, 'f8'), 'down': (6, 'f8'), 'utm_zone': (7, 'U4'),
    'velocity_north': (8, 'f8'), 'velocity_east': (9, 'f8'), 'velocity_down': (10, 'f8'),
    'roll': (11, 'f8'), 'pitch': (12, 'f8'), 'yaw': (13, 'f8'),
}
_INS_COLUMNS = {
    'timestamp': (0, 'i8'), 'ins_status': (1, 'U40'),
    **{name: (place + 1, kind) for name, (place, kind) in list(_RTK_COLUMNS.items())[1:]},
}
_VO_COLUMNS = {
    'source_timestamp': (0, 'i8'), 'destination_timestamp': (1, 'i8'), 'x': (2, 'f8'),
    'y': (3, 'f8'), 'z': (4, 'f8'), 'roll': (5, 'f8'), 'pitch': (6, 'f8'), 'yaw': (7, 'f8'),
}
RTK_DTYPE = [(name, kind) for name, (_, kind) in _RTK_COLUMNS.items()]
_POSE_COLUMNS = ('timestamp', 'altitude', 'northing', 'easting', 'roll', 'pitch', 'yaw')


def read_gps(path: Path) -> Table:
    """gps.csv: satellites, latitude, longitude (deg), altitude and sigmas (m; NaN if absent)."""
    return _read_table(path, _GPS_COLUMNS, ('timestamp', 'latitude', 'longitude'))


def read_rtk(path: Path) -> Table:
    """rtk.csv as published, its 14 columns (others are ignored): angles are not yet put right."""
    return _read_table(path, _RTK_COLUMNS, _POSE_COLUMNS)


def read_ins(path: Path) -> Table:
    """ins.csv (15 columns): as rtk.csv with ``ins_status``; its angles need no correction."""
    return _read_table(path, _INS_COLUMNS, _POSE_COLUMNS)


def read_vo(path: Path) -> Table:
    """vo.csv: the pose (FRD, m, rad) of the later frame in the earlier one's, and both stamps.

    The published files have the later frame first, as ``source_timestamp``; the two stamps are
    accepted in either order and sorted by the later one.
    """
    return _read_table(path, _VO_COLUMNS, tuple(_VO_COLUMNS))


def _read_table(
    path: Path, columns: dict[str, tuple[int, str]], required: tuple[str, ...]
) -> Table:
    """Read what can be read.

    Left out, counted and told in ``notes``: rows that lack a required number or hold a non-finite
    one, a last line without its line end (its last number may be cut), repeated stamps. Rows are
    sorted.

    Raises FileNotFoundError, or ValueError where no row is usable.
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
    return Table(rows[first], tuple(notes))


def _parse_field(fields: list[str], place: int, kind: str, required: bool):
    """One value; what is optional and absent is NaN or ''."""
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


# --- rigid transforms ---------------------------------------------------------------------------

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


def invert_se3(a_from_b: np.ndarray) -> np.ndarray:
    b_from_a = np.zeros_like(a_from_b)
    transposed = np.swapaxes(a_from_b[..., :3, :3], -1, -2)
    b_from_a[..., :3, :3] = transposed
    b_from_a[..., :3, 3] = -np.einsum('...ij,...j->...i', transposed, a_from_b[..., :3, 3])
    b_from_a[..., 3, 3] = 1.0
    return b_from_a


def flu_from_frd(a_from_b: np.ndarray) -> np.ndarray:
    """The same transform between the frames with their axes turned to forward, left, up."""
    return FLU_FROM_FRD @ a_from_b @ FLU_FROM_FRD


def read_extrinsic(path: Path) -> np.ndarray:
    """An extrinsics file, ``x y z roll pitch yaw``, as (4, 4).

    By the data set's definition this is camera_from_vehicle for ``stereo.txt`` (zero: they are
    the same frame) and vehicle_from_sensor for the others.
    """
    values = _read_numbers(path, 'an extrinsics file: x y z roll pitch yaw')
    if len(values) != 6:
        raise ValueError(f'{path} holds {len(values)} numbers; expected 6: x y z roll pitch yaw')
    return se3_from_xyzrpy(np.array(values))


def _read_numbers(path: Path, what: str) -> list[float]:
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


# --- camera -------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Intrinsics:
    """A RobotCar camera model.

    ``camera_from_image`` (4, 4) takes the optical frame (x right, y down, z forward) to the
    camera's FRD frame. ``lut`` (H*W, 2) holds, row by row of the undistorted image, the (u, v) of
    the source pixel in the distorted one; None where the model has no table.
    """

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    camera_from_image: np.ndarray
    lut: np.ndarray | None

    def lut_image(self, width_px: int, height_px: int) -> np.ndarray:
        """The table as (H, W, 2) source pixels; ValueError where it is for another image size."""
        if self.lut is None:
            raise ValueError('the camera model has no distortion table')
        if len(self.lut) != width_px * height_px:
            raise ValueError(
                f'the distortion table is for {len(self.lut):,} pixels but the images are '
                f'{width_px}x{height_px} = {width_px * height_px:,}: a model of other images'
            )
        return self.lut.reshape(height_px, width_px, 2)


def read_intrinsics(models: Path, name: str = STEREO_CENTRE_MODEL) -> Intrinsics:
    """Read ``<name>.txt`` and, where there is one, ``<name>_distortion_lut.bin``."""
    path = Path(models) / f'{name}.txt'
    values = _read_numbers(path, 'a camera model: fx fy cx cy and a 4x4 matrix')
    if len(values) < 20:
        raise ValueError(f'{path} holds {len(values)} numbers; expected 4 and a 4x4 matrix')
    lut_path = Path(models) / f'{name}_distortion_lut.bin'
    lut = None
    if lut_path.is_file():
        flat = np.fromfile(lut_path, dtype='<f8')
        if flat.size == 0 or flat.size % 2 or lut_path.stat().st_size % 16:
            raise ValueError(
                f'{lut_path} has {lut_path.stat().st_size:,} bytes; expected 16 a pixel'
            )
        lut = flat.reshape(2, -1).T
    return Intrinsics(*values[:4], np.array(values[4:20]).reshape(4, 4), lut)


def fit_plumb_bob(
    intrinsics: Intrinsics, width_px: int, height_px: int
) -> tuple[np.ndarray, float]:
    """Fit ROS's plumb_bob coefficients (k1, k2, p1, p2, k3) to the distortion table.

    The model is linear in its coefficients: with undistorted (x, y), r2 = x2 + y2,
      x' - x = x r2 k1 + x r4 k2 + 2 x y p1 + (r2 + 2 x2) p2 + x r6 k3     and alike in y.

    Returns the coefficients and the RMS error in pixels.
    """
    step = max(1, width_px // 160)
    source = intrinsics.lut_image(width_px, height_px)[::step, ::step]  # (h, w, 2)
    v, u = np.mgrid[0:height_px:step, 0:width_px:step]
    x = ((u - intrinsics.cx_px) / intrinsics.fx_px).ravel()
    y = ((v - intrinsics.cy_px) / intrinsics.fy_px).ravel()
    moved_x = ((source[..., 0] - intrinsics.cx_px) / intrinsics.fx_px).ravel() - x
    moved_y = ((source[..., 1] - intrinsics.cy_px) / intrinsics.fy_px).ravel() - y
    r2 = x**2 + y**2
    rows_x = np.stack((x * r2, x * r2**2, 2 * x * y, r2 + 2 * x**2, x * r2**3), axis=-1)
    rows_y = np.stack((y * r2, y * r2**2, r2 + 2 * y**2, 2 * x * y, y * r2**3), axis=-1)
    rows, moved = np.concatenate((rows_x, rows_y)), np.concatenate((moved_x, moved_y))
    coefficients, *_ = np.linalg.lstsq(rows, moved, rcond=None)
    error_px = (rows @ coefficients - moved) * intrinsics.fx_px
    return coefficients, float(np.sqrt(2 * np.mean(error_px**2)))


def base_from_optical(camera_from_vehicle: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Optical frame (x right, y down, z forward) to base_link, (4, 4)."""
    return FLU_FROM_FRD @ invert_se3(camera_from_vehicle) @ intrinsics.camera_from_image


def read_bayer_image(path: Path) -> np.ndarray:
    """A raw stereo image as (H, W, 3) BGR uint8, demosaiced; ValueError where it is not one."""
    data = np.fromfile(path, dtype=np.uint8)
    raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if raw is None:
        raise ValueError(f'{path} is not a readable image')
    if raw.ndim != 2 or raw.dtype != np.uint8:
        raise ValueError(f'{path} is not an 8-bit single-channel Bayer image')
    return demosaic(raw)


def demosaic(raw: np.ndarray) -> np.ndarray:
    """Bayer 'gbrg' (first row G B, second R G) to BGR, bilinear.

    OpenCV names a pattern by the second and third pixel of its second row, here G R: BayerGR.
    """
    return cv2.cvtColor(raw, cv2.COLOR_BayerGR2BGR)


# --- images on disk -----------------------------------------------------------------------------

@dataclass(frozen=True)
class ImageList:
    """Image files of a traversal in time order, and notes on what the time list names in vain."""

    stamps_us: np.ndarray
    folder: Path
    notes: tuple[str, ...]

    def path(self, index: int) -> Path:
        return self.folder / f'{self.stamps_us[index]}.png'


def list_stereo_images(traversal: Path) -> ImageList:
    """The images of ``stereo/centre`` on disk; ``stereo.timestamps`` tells what is missing.

    Raises FileNotFoundError where there is no image at all.
    """
    traversal = Path(traversal)
    folder = traversal / 'stereo' / 'centre'
    stamps = sorted(
        int(file.stem) for file in folder.glob('*.png') if re.fullmatch('[0-9]+', file.stem)
    )
    if not stamps:
        raise FileNotFoundError(
            f'no image in {folder}; expected files <microseconds>.png of a RobotCar traversal'
        )
    stamps_us = np.array(stamps, dtype=np.int64)
    notes = []
    listed = traversal / 'stereo.timestamps'
    if not listed.is_file():
        listed = traversal / 'stereo' / 'stereo.timestamps'
    if not listed.is_file():
        notes.append('stereo.timestamps is missing: image times are taken from the file names')
    else:
        expected = _read_timestamps(listed)
        absent = np.setdiff1d(list(expected), stamps_us)
        chunks, counts = np.unique([expected[stamp] for stamp in absent], return_counts=True)
        of = {c: sum(1 for chunk in expected.values() if chunk == c) for c in chunks}
        notes += [
            f'chunk {chunk}: {count:,} of {of[chunk]:,} listed images are not on disk'
            for chunk, count in zip(chunks, counts)
        ]
    gaps_s = np.diff(stamps_us) * 1e-6
    if (gaps_s > MAX_INTERPOLATION_GAP_S).any():
        notes.append(
            f'{int((gaps_s > MAX_INTERPOLATION_GAP_S).sum())} gaps in the images longer than '
            f'{MAX_INTERPOLATION_GAP_S:g} s, the longest {gaps_s.max():.1f} s'
        )
    return ImageList(stamps_us, folder, tuple(notes))


def _read_timestamps(path: Path) -> dict[int, int]:
    """Lines ``timestamp chunk`` to {stamp_us: chunk}; other lines are passed over."""
    text = path.read_text(encoding='utf-8', errors='replace')
    pairs = [line.split() for line in text.splitlines()]
    return {
        int(pair[0]): int(pair[1])
        for pair in pairs
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit()
    }


# --- poses of the truth -------------------------------------------------------------------------

@dataclass(frozen=True)
class PoseTrack:
    """Poses in time: UTM position, altitude, ``ned_from_body`` (N, 3, 3) from true north."""

    stamp_ns: np.ndarray
    easting_m: np.ndarray
    northing_m: np.ndarray
    altitude_m: np.ndarray
    ned_from_body: np.ndarray
    utm_zone: str

    def __len__(self) -> int:
        return len(self.stamp_ns)

    def select(self, chosen: np.ndarray) -> 'PoseTrack':
        """The poses of a boolean mask or of indices."""
        return PoseTrack(
            self.stamp_ns[chosen], self.easting_m[chosen], self.northing_m[chosen],
            self.altitude_m[chosen], self.ned_from_body[chosen], self.utm_zone,
        )

    def heading_rad(self) -> np.ndarray:
        """Heading of the body's forward axis, clockwise from true north, in (-pi, pi]."""
        return np.arctan2(self.ned_from_body[:, 1, 0], self.ned_from_body[:, 0, 0])


def ins_track_from_rtk(rtk: np.ndarray) -> PoseTrack:
    """Rows of rtk.csv to true poses of the INS (yaw offset and roll sign put right)."""
    return _track(
        rtk, RTK_ROLL_SIGN * rtk['roll'], rtk['pitch'], rtk['yaw'] - RTK_YAW_OFFSET_RAD
    )


def ins_track_from_ins(ins: np.ndarray) -> PoseTrack:
    """Rows of ins.csv to poses of the INS."""
    return _track(ins, ins['roll'], ins['pitch'], ins['yaw'])


def _track(rows: np.ndarray, roll_rad, pitch_rad, yaw_rad) -> PoseTrack:
    zones = np.unique(rows['utm_zone'])
    if len(zones) != 1 or not re.fullmatch('[0-9]{1,2}[C-X]', zones[0]):
        raise ValueError(
            f'column utm_zone holds {", ".join(map(repr, zones[:3]))}; expected one such as 30U'
        )
    track = PoseTrack(
        rows['timestamp'] * NS_PER_US, rows['easting'], rows['northing'], rows['altitude'],
        rotation_from_rpy(roll_rad, pitch_rad, yaw_rad), str(zones[0]),
    )
    easting_m, northing_m = _utm(track.utm_zone)(rows['longitude'], rows['latitude'])
    apart_m = np.hypot(easting_m - track.easting_m, northing_m - track.northing_m)
    if np.nanmedian(apart_m) > 5.0:
        raise ValueError(
            f'northing and easting are {np.nanmedian(apart_m):,.0f} m away from latitude and '
            'longitude: columns swapped, or not WGS84 UTM'
        )
    return track


def _utm(zone: str):
    from pyproj import Proj

    south = {'south': True} if zone[-1] < 'N' else {}
    return Proj(proj='utm', zone=int(zone[:-1]), ellps='WGS84', **south)


def grid_convergence_rad(track: PoseTrack) -> np.ndarray:
    """Bearing of the UTM grid's north, clockwise from true north, at each pose (N,)."""
    utm = _utm(track.utm_zone)
    longitude_deg, latitude_deg = utm(track.easting_m, track.northing_m, inverse=True)
    return np.radians(utm.get_factors(longitude_deg, latitude_deg).meridian_convergence)


def interpolation_fraction(stamp_ns, lower_ns, upper_ns) -> np.ndarray:
    """How far a stamp lies from the row before (0) to the row after (1)."""
    return (stamp_ns - lower_ns) / np.maximum(upper_ns - lower_ns, 1)


def interpolate_track(
    track: PoseTrack, stamp_ns: np.ndarray, max_gap_s: float = MAX_INTERPOLATION_GAP_S
) -> PoseTrack:
    """The poses at other times: positions linear, orientations along the shorter arc.

    Requests before the first row, after the last one or between two rows more than ``max_gap_s``
    apart give NaN.
    """
    stamp_ns = np.asarray(stamp_ns, dtype=np.int64)
    upper = np.clip(np.searchsorted(track.stamp_ns, stamp_ns, side='left'), 0, len(track) - 1)
    lower = np.where(track.stamp_ns[upper] == stamp_ns, upper, np.maximum(upper - 1, 0))
    lower_ns, upper_ns = track.stamp_ns[lower], track.stamp_ns[upper]
    fraction = interpolation_fraction(stamp_ns, lower_ns, upper_ns)
    known = (lower_ns <= stamp_ns) & (stamp_ns <= upper_ns)
    known &= upper_ns - lower_ns <= round(max_gap_s * 1e9)

    def between(values):
        mixed = values[lower] + fraction * (values[upper] - values[lower])
        return np.where(known, mixed, np.nan)

    start = Rotation.from_matrix(track.ned_from_body[lower])
    turn = start.inv() * Rotation.from_matrix(track.ned_from_body[upper])
    part = Rotation.from_rotvec(fraction[:, None] * turn.as_rotvec())
    ned_from_body = np.where(known[:, None, None], (start * part).as_matrix(), np.nan)
    return PoseTrack(
        stamp_ns, between(track.easting_m), between(track.northing_m), between(track.altitude_m),
        ned_from_body, track.utm_zone,
    )


def base_link_track(ins_track: PoseTrack, vehicle_from_ins: np.ndarray) -> PoseTrack:
    """Poses of the INS to poses of the vehicle frame (FRD axes): the lever arm in 3D.

    world_from_vehicle = world_from_ins @ vehicle_from_ins^-1; the shift is found north, east,
    down and turned to the UTM grid.
    """
    ins_from_vehicle = invert_se3(vehicle_from_ins)
    ned_from_vehicle = ins_track.ned_from_body @ ins_from_vehicle[:3, :3]
    north_m, east_m, down_m = (ins_track.ned_from_body @ ins_from_vehicle[:3, 3]).T
    convergence_rad = grid_convergence_rad(ins_track)
    cos, sin = np.cos(convergence_rad), np.sin(convergence_rad)
    return PoseTrack(
        ins_track.stamp_ns,
        ins_track.easting_m + cos * east_m - sin * north_m,
        ins_track.northing_m + sin * east_m + cos * north_m,
        ins_track.altitude_m - down_m,
        ned_from_vehicle,
        ins_track.utm_zone,
    )


def geodetic_from_track(track: PoseTrack) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitude, longitude (deg, (N,)) and the orientation (N, 4) of the FLU body as quaternions.

    The quaternion (x, y, z, w) takes FLU axes to true east, north, up: REP-103, yaw
    counter-clockwise from true east.
    """
    longitude_deg, latitude_deg = _utm(track.utm_zone)(
        track.easting_m, track.northing_m, inverse=True
    )
    enu_from_flu = ENU_FROM_NED @ track.ned_from_body @ FLU_FROM_FRD[:3, :3]
    return latitude_deg, longitude_deg, Rotation.from_matrix(enu_from_flu).as_quat()


def heading_minus_course_deg(track: PoseTrack, min_step_m: float = 1.0) -> np.ndarray:
    """True heading less true direction of motion, over steps of ``min_step_m`` or more, (M,).

    Near zero for a car that does not slide; 90 where the yaw convention is another one.
    """
    kept = [0]
    for k in range(1, len(track)):
        east_m = track.easting_m[k] - track.easting_m[kept[-1]]
        north_m = track.northing_m[k] - track.northing_m[kept[-1]]
        if math.hypot(east_m, north_m) >= min_step_m:
            kept.append(k)
    kept = np.array(kept)
    grid_course_rad = np.arctan2(np.diff(track.easting_m[kept]), np.diff(track.northing_m[kept]))
    course_rad = grid_course_rad + grid_convergence_rad(track)[kept[:-1]]
    heading_rad = track.heading_rad()
    # Heading in the middle of the step, where the chord has the direction of motion.
    turn_rad = _wrap(heading_rad[kept[1:]] - heading_rad[kept[:-1]])
    return np.degrees(_wrap(heading_rad[kept[:-1]] + turn_rad / 2 - course_rad))


def _wrap(angle_rad):
    return (angle_rad + math.pi) % (2 * math.pi) - math.pi


# --- visual odometry ----------------------------------------------------------------------------

@dataclass(frozen=True)
class OdometryTrack:
    """Integrated odometry in FLU axes.

    ``odom_from_base`` (N, 4, 4) starts at the identity; ``linear_mps`` and ``angular_radps``
    (N, 3) are the body's over the last step; ``travelled_m`` (N,) grows with distance and
    ``unseen_m`` (N,) with the distance that was driven in gaps without odometry.
    """

    stamp_ns: np.ndarray
    odom_from_base: np.ndarray
    linear_mps: np.ndarray
    angular_radps: np.ndarray
    travelled_m: np.ndarray
    unseen_m: np.ndarray
    notes: tuple[str, ...]


def integrate_vo(vo: np.ndarray) -> OdometryTrack:
    """Chain the rows of vo.csv: odom_from_later = odom_from_earlier @ earlier_from_later.

    A gap between rows of up to ``MAX_BRIDGED_GAP_S`` is bridged with the next row's velocity;
    over a longer one the pose stands still. Both count in ``unseen_m``. A row that starts before
    the one before it has ended is left out.
    """
    start_us = np.minimum(vo['source_timestamp'], vo['destination_timestamp'])
    end_us = np.maximum(vo['source_timestamp'], vo['destination_timestamp'])
    xyzrpy = np.stack([vo[name] for name in ('x', 'y', 'z', 'roll', 'pitch', 'yaw')], axis=-1)
    steps = flu_from_frd(se3_from_xyzrpy(xyzrpy))  # (N, 4, 4)

    pose, travelled_m, unseen_m = np.eye(4), 0.0, 0.0
    stamps, poses, linear, angular, travelled, unseen = [], [], [], [], [], []
    bridged = held = overlapping = 0
    for k in range(len(vo)):
        duration_s = (end_us[k] - start_us[k]) * 1e-6
        if duration_s <= 0 or (stamps and start_us[k] < stamps[-1]):
            overlapping += 1
            continue
        turn_rad = Rotation.from_matrix(steps[k, :3, :3]).as_rotvec()
        # On an arc the chord points along the heading of its middle.
        midway = Rotation.from_rotvec(-turn_rad / 2)
        velocity_mps = midway.apply(steps[k, :3, 3]) / duration_s
        if not stamps:
            stamps.append(start_us[k])
            poses.append(pose)
            linear.append(velocity_mps)
            angular.append(turn_rad / duration_s)
            travelled.append(0.0)
            unseen.append(0.0)
        gap_s = (start_us[k] - stamps[-1]) * 1e-6
        if gap_s > 0:
            speed_mps = math.hypot(*velocity_mps)
            unseen_m += speed_mps * gap_s
            if gap_s <= MAX_BRIDGED_GAP_S:
                pose = pose @ _constant_twist(velocity_mps, turn_rad / duration_s, gap_s)
                travelled_m += speed_mps * gap_s
                bridged += 1
            else:
                held += 1
        pose = pose @ steps[k]
        travelled_m += math.hypot(*steps[k, :3, 3])
        stamps.append(end_us[k])
        poses.append(pose)
        linear.append(velocity_mps)
        angular.append(turn_rad / duration_s)
        travelled.append(travelled_m)
        unseen.append(unseen_m)
    if not stamps:
        raise ValueError('no row of vo.csv lies in the time asked for')
    notes = [
        f'vo.csv: {count:,} {what}'
        for count, what in (
            (overlapping, 'rows overlap the row before or last no time, left out'),
            (bridged, f'gaps of at most {MAX_BRIDGED_GAP_S:g} s bridged at constant velocity'),
            (held, f'gaps longer than {MAX_BRIDGED_GAP_S:g} s: odometry stands still over them'),
        )
        if count
    ]
    return OdometryTrack(
        np.array(stamps) * NS_PER_US, np.array(poses), np.array(linear), np.array(angular),
        np.array(travelled), np.array(unseen), tuple(notes),
    )


def _constant_twist(
    velocity_mps: np.ndarray, rate_radps: np.ndarray, duration_s: float
) -> np.ndarray:
    step = np.eye(4)
    step[:3, :3] = Rotation.from_rotvec(rate_radps * duration_s).as_matrix()
    step[:3, 3] = Rotation.from_rotvec(rate_radps * duration_s / 2).apply(
        velocity_mps * duration_s
    )
    return step
