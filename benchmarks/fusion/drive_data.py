"""Real logs and routes, and simulated sensors along them, as measurements for the filter.

Everything random comes from a seeded generator. The names of simulated data say so.
"""

import csv
from dataclasses import dataclass, field
import math
from pathlib import Path

import numpy as np
from scipy.interpolate import PchipInterpolator

from crossview_localizer.datatypes import GnssCourse, GnssFix, OdometrySample, PoseEstimate
from crossview_localizer.geometry import LocalFrame, Pose2D, wrap_angle

START_NS = 1_700_000_000 * 10**9
REPRESENTATIVE = ('0117', '0009', '0104', '0106', '0018')
STRESS = '0014'
MATCHER_HZ = 10
TILE_M_PER_PX = 0.1958  # of the replayed matcher's tiles, an assumption of its source
# A vehicle whose heading moves by less than this from image to image, on average, stands.
STANDS_S, STANDS_TURN_RAD = 2.0, math.radians(0.01)
KNOT_MPS = 0.514444


@dataclass(frozen=True)
class Path2D:
    """A driven path: ``time_s`` (n,) from 0, rising; ``poses`` (n, 3) x_m, y_m, yaw_rad."""

    time_s: np.ndarray
    poses: np.ndarray

    def at(self, time_s) -> np.ndarray:
        """Poses (m, 3), linear between samples, yaw along the shorter way."""
        yaw_rad = np.unwrap(self.poses[:, 2])
        columns = (self.poses[:, 0], self.poses[:, 1], yaw_rad)
        found = np.stack([np.interp(time_s, self.time_s, column) for column in columns], axis=-1)
        found[..., 2] = wrap_angle(found[..., 2])
        return found

    def part(self, begin_s: float, end_s: float) -> 'Path2D':
        """Resampled at 50 Hz between two times, begin becoming 0."""
        time_s = np.arange(0.0, end_s - begin_s + 1e-9, 0.02)
        return Path2D(time_s, self.at(begin_s + time_s))

    def slowed(self, shares: np.ndarray) -> 'Path2D':
        """The path at a share (n,) of its speed in each of n steps of 20 ms."""
        return Path2D(0.02 * np.arange(len(shares)), self.at(np.cumsum(shares) * 0.02))

    @property
    def duration_s(self) -> float:
        return float(self.time_s[-1])

    @property
    def driven_m(self) -> np.ndarray:
        steps_m = np.linalg.norm(np.diff(self.poses[:, :2], axis=0), axis=1)
        return np.concatenate(([0.0], np.cumsum(steps_m)))


@dataclass(frozen=True)
class SensorLog:
    """A drive as measurements, with its true path; stamps count from ``START_NS``."""

    truth: Path2D
    odometry: list[OdometrySample]
    fixes: list[GnssFix] = field(default_factory=list)
    courses: list[GnssCourse] = field(default_factory=list)
    matches: list[PoseEstimate] = field(default_factory=list)


def stamp_ns(time_s: float) -> int:
    return START_NS + round(float(time_s) * 1e9)


# --- routes and simulated sensors ----------------------------------------------------------------


def oxford_route(path: Path) -> Path2D:
    """A RobotCar traversal in metres from its first point, with the heading of its RTK yaw.

    Frames are at least 5 m apart; between them position is a monotone cubic of time.
    Raises OSError if the file is missing and ValueError if it is no such file.
    """
    rows = _csv(path, ('timestamp_us', 'easting_m', 'northing_m', 'rtk_yaw_rad'))
    raw_s = (rows[:, 0] - rows[0, 0]) * 1e-6
    xy_m = rows[:, 1:3] - rows[0, 1:3]
    # Heading clockwise from true north is yaw - 90 deg, from grid north 1.37 deg less.
    yaw_rad = np.unwrap(math.pi - rows[:, 3] + math.radians(1.37))
    time_s = np.arange(0.0, raw_s[-1], 0.02)
    smooth = PchipInterpolator(raw_s, np.column_stack((xy_m, yaw_rad)))(time_s)
    smooth[:, 2] = wrap_angle(smooth[:, 2])
    return Path2D(time_s, smooth)


def simulated_gnss(
    truth: Path2D, rng, wander_rms_m=4.0, tau_s=120.0, white_m=1.5, hz=5.0,
) -> list[GnssFix]:
    """Fixes whose error wanders (``wander_rms_m`` in the plane, Gauss-Markov) under white noise.

    ``white_m`` is the sigma of the white noise on each axis and is what the fixes report.
    """
    time_s = np.arange(0.0, truth.duration_s, 1.0 / hz)
    decay = math.exp(-1.0 / (hz * tau_s))
    sigma_m = wander_rms_m / math.sqrt(2.0)
    wander_m = sigma_m * rng.standard_normal(2)
    fixes = []
    for time, pose in zip(time_s, truth.at(time_s)):
        x_m, y_m = pose[:2] + wander_m + white_m * rng.standard_normal(2)
        fixes.append(GnssFix(stamp_ns(time), x_m, y_m, white_m**2 * np.eye(2)))
        wander_m = decay * wander_m + sigma_m * math.sqrt(
            1 - decay**2) * rng.standard_normal(2)
    return fixes


def simulated_odometry(
    truth: Path2D, rng, scale_sigma=0.01, yaw_deg_100m=0.3, hz=10.0,
) -> list[OdometrySample]:
    """Odometry with one scale error per drive and a heading that drifts as a random walk.

    ``yaw_deg_100m`` is the sigma of the heading error after 100 m driven.
    """
    time_s = np.arange(0.0, truth.duration_s, 1.0 / hz)
    scale = 1.0 + scale_sigma * rng.standard_normal()
    poses = [Pose2D(*pose) for pose in truth.at(time_s)]
    odom = Pose2D(0.0, 0.0, 0.0)
    samples = [OdometrySample(stamp_ns(0.0), odom)]
    for time, before, after in zip(time_s[1:], poses, poses[1:]):
        step = before.inverse() @ after
        distance_m = math.hypot(step.x_m, step.y_m)
        sigma_rad = math.radians(yaw_deg_100m) * math.sqrt(distance_m / 100.0)
        noise_rad = sigma_rad * rng.standard_normal()
        odom = odom @ Pose2D(scale * step.x_m, scale * step.y_m, step.yaw_rad + noise_rad)
        samples.append(OdometrySample(stamp_ns(time), odom))
    return samples


# --- a real matcher's errors ---------------------------------------------------------------------


@dataclass(frozen=True)
class ReplayedErrors:
    """The errors of a matcher in time order, ``MATCHER_HZ``.

    ``errors_m`` (n, 2) ahead and left of the vehicle; ``stands`` (n,) where it stands.
    """

    errors_m: np.ndarray
    stands: np.ndarray


# The heading of these files is clockwise from east: along it the errors are 4 to 10 times larger
# than across it, on each drive.
def matcher_errors(folder: Path) -> dict[str, ReplayedErrors]:
    """The errors of each drive."""
    found = {}
    for drive in (*REPRESENTATIVE, STRESS):
        rows = _csv(
            folder / f'2011_09_26_drive_{drive}.csv',
            ('gt_row', 'gt_col', 'pred_row', 'pred_col', 'gt_ori'))
        east_m, north_m = TILE_M_PER_PX * np.array(
            (rows[:, 3] - rows[:, 1], rows[:, 0] - rows[:, 2]))
        yaw_rad = np.unwrap(-np.radians(rows[:, 4]))
        cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
        errors_m = np.column_stack((cos * east_m + sin * north_m, cos * north_m - sin * east_m))
        found[drive] = ReplayedErrors(errors_m, _stands(yaw_rad))
    return found


def _stands(yaw_rad: np.ndarray) -> np.ndarray:
    """Where (n,) the heading does not move: nobody drives so straight for ``STANDS_S``."""
    count = round(STANDS_S * MATCHER_HZ)
    turns_rad = np.abs(np.diff(yaw_rad, prepend=yaw_rad[0]))
    return np.convolve(turns_rad, np.ones(count) / count, 'same') < STANDS_TURN_RAD


# --- real logs -----------------------------------------------------------------------------------


def comma2k19(folder: Path, with_gyro: bool = True) -> SensorLog:
    """One minute of a real drive: u-blox fixes and courses, odometry from CAN speed and gyro.

    The truth's heading is the course of the reference velocity.  Without the gyro the odometry
    drives straight ahead.  Fixes are reported with the 1.5 m that u-blox claims of itself at best;
    their lever arm is unknown.
    """
    from pyproj import Transformer

    def log(name):
        base = folder / 'processed_log' / name
        return np.load(base / 't.npy'), np.load(base / 'value.npy')

    reference_s = np.load(folder / 'global_pose/frame_times.npy')
    ecef_m = np.load(folder / 'global_pose/frame_positions.npy')
    ecef_mps = np.load(folder / 'global_pose/frame_velocities.npy')
    to_geodetic = Transformer.from_crs(4978, 4979, always_xy=True)
    longitude_deg, latitude_deg, _ = to_geodetic.transform(*ecef_m.T)
    frame = LocalFrame(latitude_deg[0], longitude_deg[0])
    x_m, y_m = frame.xy_from_latlon(latitude_deg, longitude_deg)
    east, north = _east_north(latitude_deg[0], longitude_deg[0])
    yaw_rad = np.arctan2(ecef_mps @ north, ecef_mps @ east)
    begin_s = reference_s[0]
    truth = Path2D(reference_s - begin_s, np.column_stack((x_m, y_m, yaw_rad)))

    speed_s, speed_mps = log('CAN/speed')
    gyro_s, gyro_radps = log('IMU/gyro')
    turn_radps = -gyro_radps[:, 2] if with_gyro else np.zeros(len(gyro_s))
    odometry = dead_reckoned(speed_s - begin_s, speed_mps[:, 0], gyro_s - begin_s, turn_radps)

    fix_s, values = log('GNSS/live_gnss_ublox')
    fixes, courses = [], []
    for time, (lat_deg, lon_deg, speed, _, _, bearing_deg) in zip(fix_s - begin_s, values):
        x, y = frame.xy_from_latlon(lat_deg, lon_deg)
        fixes.append(GnssFix(stamp_ns(time), float(x), float(y), 1.5**2 * np.eye(2)))
        courses.append(GnssCourse(
            stamp_ns(time), float(frame.yaw_from_bearing(bearing_deg, x, y)),
            0.1 / max(speed, 0.1)))
    return SensorLog(truth, odometry, fixes, courses)


def dead_reckoned(speed_s, speed_mps, turn_s, turn_radps, hz=20.0) -> list[OdometrySample]:
    """Odometry from a wheel speed and a yaw rate, each averaged over the interval between samples.

    Times in seconds from ``START_NS``; samples only where both are known.
    """
    begin_s, end_s = max(speed_s[0], turn_s[0]), min(speed_s[-1], turn_s[-1])
    time_s = np.arange(begin_s, end_s, 1.0 / hz)

    def integral(times_s, values):
        steps = np.diff(times_s) * (values[1:] + values[:-1]) / 2
        return np.interp(time_s, times_s, np.concatenate(([0.0], np.cumsum(steps))))

    distances_m = np.diff(integral(speed_s, speed_mps))
    turns_rad = np.diff(integral(turn_s, turn_radps))
    odom = Pose2D(0.0, 0.0, 0.0)
    samples = [OdometrySample(stamp_ns(time_s[0]), odom)]
    for time, distance_m, turn_rad in zip(time_s[1:], distances_m, turns_rad):
        odom = odom @ Pose2D(
            distance_m * math.cos(turn_rad / 2), distance_m * math.sin(turn_rad / 2), turn_rad)
        samples.append(OdometrySample(stamp_ns(time), odom))
    return samples


def google_nmea(folder: Path, rng) -> SensorLog:
    """8.6 km in Mountain View: u-blox F9K fixes and courses, SPAN truth, simulated odometry.

    Truth and fixes are at 1 Hz.  The odometry is made from SPAN by :func:`simulated_odometry`.
    The truth's heading is that of the chord between its positions, kept while standing.
    """
    truth_rows = _gga(next(folder.glob('*.gga')))
    frame = LocalFrame(*truth_rows[0, 1:3])
    x_m, y_m = frame.xy_from_latlon(truth_rows[:, 1], truth_rows[:, 2])
    begin_s = truth_rows[0, 0]
    time_s, xy_m = truth_rows[:, 0] - begin_s, np.column_stack((x_m, y_m))
    fine_s = np.arange(0.0, time_s[-1], 0.05)
    spline = PchipInterpolator(time_s, xy_m)
    fine_m, velocity_mps = spline(fine_s), spline.derivative()(fine_s)
    moving = np.linalg.norm(velocity_mps, axis=1) > 0.5
    course_rad = np.unwrap(np.arctan2(velocity_mps[moving, 1], velocity_mps[moving, 0]))
    yaw_rad = wrap_angle(np.interp(fine_s, fine_s[moving], course_rad))
    truth = Path2D(fine_s, np.column_stack((fine_m, yaw_rad)))

    fixes, courses = [], []
    source = next(folder.glob('*.nmea'))
    for second, lat_deg, lon_deg, quality in _gga(source):
        x, y = frame.xy_from_latlon(lat_deg, lon_deg)
        sigma_m = {4: 0.1, 5: 0.5}.get(int(quality), 3.0)
        fixes.append(GnssFix(
            stamp_ns(second - begin_s), float(x), float(y), sigma_m**2 * np.eye(2)))
    for second, speed_mps, bearing_deg in _rmc(source):
        if speed_mps > 1.0:
            courses.append(GnssCourse(
                stamp_ns(second - begin_s), float(frame.yaw_from_bearing(bearing_deg, 0.0, 0.0)),
                0.1 / speed_mps))
    inside = [fix for fix in fixes if fix.stamp_ns <= stamp_ns(truth.duration_s)]
    return SensorLog(truth, simulated_odometry(truth, rng), inside, courses)


def _east_north(latitude_deg: float, longitude_deg: float) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of east and north in ECEF."""
    lat, lon = math.radians(latitude_deg), math.radians(longitude_deg)
    east = np.array([-math.sin(lon), math.cos(lon), 0.0])
    north = np.array([
        -math.sin(lat) * math.cos(lon), -math.sin(lat) * math.sin(lon), math.cos(lat)])
    return east, north


def _csv(path: Path, columns) -> np.ndarray:
    """Columns (n, k) of a CSV file with a header."""
    with open(path, newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f'{path} has no column {missing[0]!r}; expected {", ".join(columns)}')
        return np.array([[float(row[name]) for name in columns] for row in reader])


def _sentences(path: Path, kind: str):
    for line in path.read_text(encoding='ascii', errors='replace').splitlines():
        cells = line.split('*')[0].split(',')
        if cells[0].startswith('$') and cells[0].endswith(kind) and len(cells) > 9:
            yield cells


def _gga(path: Path) -> np.ndarray:
    """Rows (n, 4): second of the day, latitude, longitude (degrees), fix quality."""
    rows = [
        (_second(cells[1]), _degrees(cells[2], cells[3]), _degrees(cells[4], cells[5]),
         float(cells[6]))
        for cells in _sentences(path, 'GGA') if cells[2] and cells[6] not in ('', '0')]
    if not rows:
        raise ValueError(f'{path} holds no GGA sentence with a position')
    return np.array(rows)


def _rmc(path: Path) -> list[tuple[float, float, float]]:
    """Second of the day, speed in m/s and bearing in degrees."""
    return [
        (_second(cells[1]), float(cells[7]) * KNOT_MPS, float(cells[8]))
        for cells in _sentences(path, 'RMC') if cells[2] == 'A' and cells[7] and cells[8]]


def _second(text: str) -> float:
    return 3600.0 * int(text[:2]) + 60.0 * int(text[2:4]) + float(text[4:])


def _degrees(text: str, hemisphere: str) -> float:
    whole, minutes = divmod(float(text), 100.0)
    return (whole + minutes / 60.0) * (-1.0 if hemisphere in 'SW' else 1.0)
