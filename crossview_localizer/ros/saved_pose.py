"""The last pose on disk, so that a node that was killed goes on where it was.

Odometry outlives the node: with the transform from ``map`` to ``odom`` and the odometry of now the
pose of now is known, but for what the odometry has drifted since.
"""

from dataclasses import dataclass
import json
import math
import os
from pathlib import Path
import time

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import OdometrySample, PoseEstimate
from crossview_localizer.fusion.motion_model import ODOMETRY_MAX_SPEED_MPS
from crossview_localizer.geometry import Pose2D

FORMAT_VERSION = 1
MAX_FILE_BYTES = 10_000


@dataclass(frozen=True)
class LastPose:
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
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_name(f'{path.name}.{os.getpid()}')
        try:
            writing.write_text(json.dumps({
                'format_version': FORMAT_VERSION,
                'written_s': self.written_s,
                'stamp_ns': self.stamp_ns,
                'origin_deg': self.origin_deg,
                'map_from_base': self.map_from_base.as_array().tolist(),
                'odom_from_base': self.odom_from_base.as_array().tolist(),
                'covariance': np.asarray(self.covariance).tolist(),
            }))
            os.replace(writing, path)
        finally:
            writing.unlink(missing_ok=True)

    def estimate_at(
        self, sample: OdometrySample, config: FilterConfig, max_age_s: float,
    ) -> PoseEstimate | None:
        """The pose at an odometry sample; None where the saved one is too old or odometry is new.

        The covariance grows as the filter's would: with s metres driven since,

            P_xy += (n_p^2 s + P_yaw s^2 + i_p^2 dt) I,   P_yaw += n_yaw^2 s + n_turn^2 |turn|
        """
        age_s = (sample.stamp_ns - self.stamp_ns) * 1e-9
        if not 0.0 <= age_s <= max_age_s:
            return None
        moved = self.odom_from_base.inverse() @ sample.odom_from_base
        driven_m = math.hypot(moved.x_m, moved.y_m)
        if driven_m > ODOMETRY_MAX_SPEED_MPS * age_s + 1.0:
            return None
        growth_m2 = (
            config.odometry_position_noise**2 * driven_m + self.covariance[2, 2] * driven_m**2
            + config.idle_position_noise_m**2 * age_s)
        growth_rad2 = (
            config.odometry_yaw_noise_rad**2 * driven_m
            + config.odometry_turn_noise_rad**2 * abs(moved.yaw_rad))
        return PoseEstimate(
            sample.stamp_ns, self.map_from_base @ moved,
            self.covariance + np.diag([growth_m2, growth_m2, growth_rad2]))


def load_last_pose(path: Path, max_age_s: float) -> LastPose | None:
    """What the file holds if it was written within ``max_age_s``; None where there is none.

    Raises OSError where it cannot be read and ValueError where it is damaged.
    """
    if not path.is_file():
        return None
    with open(path, 'rb') as file:
        text = file.read(MAX_FILE_BYTES)
    try:
        entry = json.loads(text)
        if entry['format_version'] != FORMAT_VERSION:
            raise ValueError(f'format version {entry["format_version"]}')
        found = LastPose(
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
            raise ValueError('numbers that are not finite, or no covariance')
        if abs(latitude_deg) > 89.0 or abs(longitude_deg) > 180.0:
            raise ValueError(f'no latitude and longitude in {found.origin_deg}')
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(
            f'{path} is damaged ({error}); expected a pose kept by the node') from error
    return found if abs(time.time() - found.written_s) <= max_age_s else None
