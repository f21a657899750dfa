"""Odometry from wheel speed and the yaw rate of a gyro, for vehicles that publish none."""

from collections import deque
import math

import numpy as np

from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.geometry import Pose2D

STANDS_MPS = 0.01               # a slower car stands and does not turn, whatever its gyro reports
MAX_SPEED_MPS = 150.0
MAX_YAW_RATE_RADPS = 10.0
KEPT_GYRO_NS = 10 * 10**9


class DeadReckoner:
    """Integrates speeds and yaw rates.

    Yaw rates come with the speeds or on their own.  Both are linear between samples.  Half of the
    turn of an interval is made before its distance, half after.
    """

    def __init__(self, max_gyro_gap_s: float = 0.2):
        self._max_gap_ns = round(max_gyro_gap_s * 1e9)
        self._gyro: deque[tuple[int, float, float]] = deque()   # stamp, yaw rate, integral
        self._last: tuple[int, np.ndarray, float | None, float | None] | None = None
        self._odom_from_base = Pose2D(0.0, 0.0, 0.0)

    def add_yaw_rate(self, stamp_ns: int, yaw_rate_radps: float) -> None:
        """Add the rate about the vertical axis of the vehicle, positive to the left.

        Raises ValueError if it is not finite or not newer than the last one.
        """
        _require(yaw_rate_radps, MAX_YAW_RATE_RADPS, 'yaw rate', 'rad/s')
        turned_rad = 0.0
        if self._gyro:
            last_ns, last_radps, turned_rad = self._gyro[-1]
            if stamp_ns <= last_ns:
                raise ValueError('yaw rate is not newer than the last one; expected rising stamps')
            turned_rad += (last_radps + yaw_rate_radps) / 2 * (stamp_ns - last_ns) * 1e-9
        self._gyro.append((stamp_ns, yaw_rate_radps, turned_rad))
        while stamp_ns - self._gyro[0][0] > KEPT_GYRO_NS:
            self._gyro.popleft()

    def add_speed(self, stamp_ns: int, forward_mps: float, left_mps: float = 0.0,
                  yaw_rate_radps: float | None = None) -> OdometrySample:
        """Add the velocity of base_link; return the odometry at its stamp.

        Give a yaw rate with all speeds, or with none: then that of the gyro is used.
        Raises ValueError if the velocity is not finite, not newer than the last one, or if the
        gyro gave no yaw rate at that time.  The next speed then covers the time since the last
        one that was used.
        """
        for value in (forward_mps, left_mps):
            _require(value, MAX_SPEED_MPS, 'speed', 'm/s')
        if yaw_rate_radps is not None:
            _require(yaw_rate_radps, MAX_YAW_RATE_RADPS, 'yaw rate', 'rad/s')
        if self._last is not None and stamp_ns <= self._last[0]:
            raise ValueError('speed is not newer than the last one; expected rising stamps')
        velocity_mps = np.array([forward_mps, left_mps])
        turned_rad = self._turned_rad(stamp_ns) if yaw_rate_radps is None else None
        if self._last is not None:
            last_ns, last_mps, last_radps, last_turned_rad = self._last
            seconds = (stamp_ns - last_ns) * 1e-9
            step_m = (last_mps + velocity_mps) / 2 * seconds
            if max(np.abs(last_mps).max(), np.abs(velocity_mps).max()) < STANDS_MPS:
                turn_rad = 0.0
            elif turned_rad is None:
                turn_rad = (last_radps + yaw_rate_radps) / 2 * seconds
            else:
                turn_rad = turned_rad - last_turned_rad
            cos, sin = math.cos(turn_rad / 2), math.sin(turn_rad / 2)
            self._odom_from_base = self._odom_from_base @ Pose2D(
                float(cos * step_m[0] - sin * step_m[1]),
                float(sin * step_m[0] + cos * step_m[1]), turn_rad)
        self._last = stamp_ns, velocity_mps, yaw_rate_radps, turned_rad
        return OdometrySample(stamp_ns, self._odom_from_base)

    def _turned_rad(self, stamp_ns: int) -> float:
        """The integral of the yaw rate up to a stamp, at most a gyro gap after the last sample."""
        after = None
        for before in reversed(self._gyro):
            if before[0] <= stamp_ns:
                break
            after = before
        else:
            raise ValueError(
                'no yaw rate is as old as the speed; expected the gyro to begin before it')
        before_ns, before_radps, turned_rad = before
        after_ns, after_radps, _ = after or (stamp_ns, before_radps, 0.0)
        if after_ns - before_ns > self._max_gap_ns:
            raise ValueError(
                f'no yaw rate for {(after_ns - before_ns) * 1e-9:.1f} s about the speed')
        share = (stamp_ns - before_ns) / max(after_ns - before_ns, 1)
        radps = before_radps + share * (after_radps - before_radps)
        return turned_rad + (before_radps + radps) / 2 * (stamp_ns - before_ns) * 1e-9


def _require(value: float, most: float, name: str, unit: str) -> None:
    if not abs(value) <= most:  # NaN fails too
        raise ValueError(f'{name} {value:g} is not finite, or above {most:g} {unit}')
