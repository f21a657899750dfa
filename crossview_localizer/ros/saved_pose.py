"""The last pose on disk, with which a node that was killed and started again continues.

Odometry goes on without the node. The saved transform from ``map`` to ``odom`` and the present
odometry give the present pose, up to the drift of the odometry since then.
"""

from dataclasses import dataclass
import json
import math
import os
from pathlib import Path
import time

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import GnssFix, OdometrySample, PoseEstimate
from crossview_localizer.files import write_atomically
from crossview_localizer.fusion.motion_model import ODOMETRY_MAX_SPEED_MPS
from crossview_localizer.geometry import LocalFrame, Pose2D

FORMAT_VERSION = 1
MAX_FILE_BYTES = 10_000
# Without a map, `map` keeps the origin of a saved pose that is this near, in degrees.
NEAR_ORIGIN_DEG = 0.5
# A saved pose is not used if the first fix is farther from it than this.
MAX_FIX_SIGMAS = 4.0
# No car turns in a smaller circle. None is expected to reverse farther within the age of a pose.
MIN_TURN_RADIUS_M = 3.0
MAX_REVERSED_M = 2.0
# The heading may always differ by this much: noise and drift of the odometry.
TURN_TOLERANCE_RAD = 0.1


@dataclass(frozen=True)
class SavedPose:
    """Pose and odometry of one instant; ``covariance`` (3, 3) is the pose's.

    ``written_s`` is the system's time, ``origin_deg`` latitude and longitude of ``map``'s origin.
    """

    written_s: float
    stamp_ns: int
    origin_deg: tuple[float, float]
    map_from_base: Pose2D
    odom_from_base: Pose2D
    covariance: np.ndarray

    def save(self, path: Path) -> None:
        """Write the file whole or not at all; raises OSError."""
        with write_atomically(path) as writing:
            writing.write_text(json.dumps({
                'format_version': FORMAT_VERSION,
                'written_s': self.written_s,
                'stamp_ns': self.stamp_ns,
                'origin_deg': self.origin_deg,
                'map_from_base': self.map_from_base.as_array().tolist(),
                'odom_from_base': self.odom_from_base.as_array().tolist(),
                'covariance': np.asarray(self.covariance).tolist(),
            }))

    def estimate_at(
        self, sample: OdometrySample, config: FilterConfig, max_age_s: float,
    ) -> PoseEstimate | None:
        """The pose at an odometry sample; None if the saved one is too old for it.

        None too if no vehicle can drive from the saved odometry pose to that of the sample: then
        the odometry was restarted, and its frame is another one.

        The covariance grows as the filter's would: with s metres driven since,

            P_xy += (n_p^2 s + P_yaw s^2 + i_p^2 dt) I,   P_yaw += n_yaw^2 s + n_turn^2 |turn|
        """
        age_s = (sample.stamp_ns - self.stamp_ns) * 1e-9
        moved = self.odom_from_base.inverse() @ sample.odom_from_base
        if not (0.0 <= age_s <= max_age_s and _can_be_driven(moved, age_s)):
            return None
        driven_m = math.hypot(moved.x_m, moved.y_m)
        growth_m2 = (
            config.odometry_position_noise**2 * driven_m + self.covariance[2, 2] * driven_m**2
            + config.idle_position_noise_m**2 * age_s)
        growth_rad2 = (
            config.odometry_yaw_noise_rad**2 * driven_m
            + config.odometry_turn_noise_rad**2 * abs(moved.yaw_rad))
        return PoseEstimate(
            sample.stamp_ns, self.map_from_base @ moved,
            self.covariance + np.diag([growth_m2, growth_m2, growth_rad2]))


def _can_be_driven(moved: Pose2D, age_s: float) -> bool:
    """Whether a vehicle can have made this step in this time: its distance, turn and direction."""
    driven_m = math.hypot(moved.x_m, moved.y_m)
    fast = driven_m > ODOMETRY_MAX_SPEED_MPS * age_s + 1.0
    tight = abs(moved.yaw_rad) > driven_m / MIN_TURN_RADIUS_M + TURN_TOLERANCE_RAD
    # A vehicle that drove on is ahead of its old place, and its old place is behind it.
    reversed_m = max(-moved.x_m, moved.inverse().x_m)
    return not (fast or tight or reversed_m > MAX_REVERSED_M)


def load_saved_pose(path: Path, max_age_s: float) -> SavedPose | None:
    """The pose in the file if it was written within ``max_age_s``; None if there is none.

    Raises OSError if it cannot be read and ValueError if it is damaged.
    """
    if not path.is_file():
        return None
    with open(path, 'rb') as file:
        text = file.read(MAX_FILE_BYTES)
    try:
        entry = json.loads(text)
        if entry['format_version'] != FORMAT_VERSION:
            raise ValueError(f'format version {entry["format_version"]}')
        found = SavedPose(
            float(entry['written_s']), int(entry['stamp_ns']),
            tuple(float(value) for value in entry['origin_deg']),
            Pose2D(*(float(value) for value in entry['map_from_base'])),
            Pose2D(*(float(value) for value in entry['odom_from_base'])),
            np.array(entry['covariance'], dtype=float).reshape(3, 3))
        latitude_deg, longitude_deg = found.origin_deg
        numbers = np.concatenate((
            [latitude_deg, longitude_deg], found.map_from_base.as_array(),
            found.odom_from_base.as_array(), found.covariance.ravel()))
        if not np.isfinite(numbers).all() or np.linalg.eigvalsh(found.covariance)[0] <= 0.0:
            raise ValueError('a number is not finite, or the covariance is not positive definite')
        if abs(latitude_deg) > 89.0 or abs(longitude_deg) > 180.0:
            raise ValueError(f'{found.origin_deg} is not a latitude and longitude')
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f'{path} is damaged ({error}); expected a pose saved by the node') from error
    return found if abs(time.time() - found.written_s) <= max_age_s else None


class PoseKeeper:
    """Saves the pose of a running node, and returns that of a node that was killed.

    Without a ``path`` it does nothing.  ``problem`` says why the last pose could not be saved.
    """

    def __init__(self, path: Path | None, config: FilterConfig, max_age_s: float):
        self.problem = ''
        self._path = path
        self._config = config
        self._max_age_s = max_age_s
        self._found: SavedPose | None = None

    def load(self) -> None:
        """Read the pose of the previous node; raises OSError or ValueError if that fails."""
        if self._path is not None:
            self._found = load_saved_pose(self._path, self._max_age_s)

    def forget(self) -> None:
        """No longer offer the pose of the previous node."""
        self._found = None

    def choose_origin(self, origin_deg: tuple[float, float]) -> tuple[float, float]:
        """The saved origin of ``map`` if it is near the given one, else the given one."""
        if self._found is not None and (
                np.abs(np.subtract(self._found.origin_deg, origin_deg)).max() < NEAR_ORIGIN_DEG):
            return self._found.origin_deg
        return origin_deg

    def take_estimate(
        self, fix: GnssFix, sample: OdometrySample | None, frame: LocalFrame,
    ) -> PoseEstimate | None:
        """The present pose from the saved one, which is then forgotten; None without odometry.

        Raises ValueError with the reason if the saved pose does not belong to this drive.
        """
        if self._found is None or sample is None:
            return None
        found, self._found = self._found, None
        estimate = None
        if found.origin_deg == (frame.latitude_deg, frame.longitude_deg):
            estimate = found.estimate_at(sample, self._config, self._max_age_s)
        if estimate is None:
            raise ValueError('it is of another time, map or start of the odometry')
        antenna = estimate.pose @ Pose2D(*fix.base_from_antenna_m, 0.0)
        variance_m2 = (np.trace(estimate.covariance[:2, :2]) + np.trace(fix.covariance)
                       + 2.0 * self._config.gnss_bias_sigma_m**2)
        distance_m = math.hypot(antenna.x_m - fix.x_m, antenna.y_m - fix.y_m)
        if distance_m > MAX_FIX_SIGMAS * variance_m2**0.5:
            raise ValueError(f'it is {distance_m:.0f} m from the first fix')
        return estimate

    def save(self, estimate: PoseEstimate, sample: OdometrySample, frame: LocalFrame) -> bool:
        """Save the pose at an odometry sample; return whether there is a new ``problem``."""
        before, self.problem = self.problem, ''
        if self._path is not None:
            try:
                SavedPose(
                    time.time(), estimate.stamp_ns, (frame.latitude_deg, frame.longitude_deg),
                    estimate.pose, sample.odom_from_base, estimate.covariance).save(self._path)
            except OSError as error:
                self.problem = f'not kept ({error}); set last_pose_path, or empty for none'
        return self.problem not in ('', before)


def saved_pose_path(parameter: str, node_name: str) -> Path | None:
    """The file that the parameter ``last_pose_path`` names, for a node of this full name."""
    if not parameter:
        return None
    if parameter != 'auto':
        return Path(parameter)
    home = Path(os.environ.get('ROS_HOME') or Path.home() / '.ros')
    name = node_name.strip('/').replace('/', '.')
    return home / 'crossview_localizer' / f'{name}.json'
