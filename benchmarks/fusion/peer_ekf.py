"""A plain extended Kalman filter, of the model that robot_localization has, beside ours.

Its state is the pose and the velocity; a fix measures the position, an odometry sample the
velocity.  It has no state for what is wrong with a sensor.  It is not robot_localization itself,
which is ROS and C++.
"""

from dataclasses import dataclass
import math
import time

from filterpy.kalman import ExtendedKalmanFilter
import numpy as np

from benchmarks.fusion.towns import Event, ImageAt
from crossview_localizer.datatypes import GnssFix, OdometrySample, PoseEstimate
from crossview_localizer.fusion.motion_model import rotation, rotation_derivative
from crossview_localizer.geometry import Pose2D, wrap_angle
from crossview_localizer.trajectory import Track

# What the bags of the demo state of the velocities of their odometry: ahead, left and turning.
TWIST_SIGMAS = np.array([0.2, 0.2, 0.02])


@dataclass(frozen=True)
class PeerNoise:
    """The settings of the peer, in the order of its state.

    ``start`` (6,) are the variances at the start, ``process`` (6,) those added per second.  A fix
    ``gate_sigmas`` away or farther is refused.
    """

    start: tuple[float, ...]
    process: tuple[float, ...]
    gate_sigmas: float = math.inf


PEERS = {
    # dual_ekf_navsat_example of robot_localization
    'peer_ekf': PeerNoise((1.0,) * 6, (1.0, 1.0, 0.01, 0.5, 0.5, 0.3)),
    # set once by hand for these drives
    'peer_ekf_tuned': PeerNoise(
        (9.0, 9.0, 0.001, 1.0, 0.1, 0.1), (0.01, 0.01, 1e-5, 1.0, 0.1, 0.3), 5.0),
}


class PeerEkf(ExtendedKalmanFilter):
    """State (6,): x_m, y_m, yaw_rad in ``map``; velocity ahead and left in m/s, turn in rad/s."""

    def __init__(self, noise: PeerNoise, start_yaw_rad: float):
        super().__init__(dim_x=6, dim_z=3)
        self._noise = noise
        self._stamp_ns: int | None = None        # None until the first fix
        self._sample: OdometrySample | None = None
        self.x = np.array([0.0, 0.0, start_yaw_rad, 0.0, 0.0, 0.0])
        self.P = np.diag(noise.start)

    def add(self, measurement: GnssFix | OdometrySample) -> None:
        """Use a measurement; they come in the order of their stamps."""
        if isinstance(measurement, GnssFix):
            self._add_fix(measurement)
        else:
            self._add_odometry(measurement)

    def estimate_at(self, stamp_ns: int) -> PoseEstimate | None:
        """The pose predicted to a stamp; None before the first fix."""
        if self._stamp_ns is None:
            return None
        time_s = max(stamp_ns - self._stamp_ns, 0) * 1e-9
        jacobian, state = _jacobian(self.x, time_s), _moved(self.x, time_s)
        covariance = jacobian @ self.P @ jacobian.T + time_s * np.diag(self._noise.process)
        return PoseEstimate(
            stamp_ns, Pose2D(float(state[0]), float(state[1]), float(wrap_angle(state[2]))),
            covariance[:3, :3])

    def predict_x(self, u=0.0):
        """Move by ``u`` seconds."""
        self.x = _moved(self.x, u)

    def _advance(self, stamp_ns: int) -> None:
        time_s = max(stamp_ns - self._stamp_ns, 0) * 1e-9
        self.F, self.Q = _jacobian(self.x, time_s), time_s * np.diag(self._noise.process)
        self.predict(time_s)
        self._stamp_ns = max(stamp_ns, self._stamp_ns)

    def _add_fix(self, fix: GnssFix) -> None:
        position_m = np.array([fix.x_m, fix.y_m]) - (
            rotation(self.x[2]) @ np.asarray(fix.base_from_antenna_m))
        if self._stamp_ns is None:
            self._stamp_ns = fix.stamp_ns
            self.x[:2] = position_m
        self._advance(fix.stamp_ns)
        residual = position_m - self.x[:2]
        distance2 = residual @ np.linalg.solve(self.P[:2, :2] + fix.covariance, residual)
        if distance2 < self._noise.gate_sigmas**2:
            self.update(position_m, lambda _: np.eye(6)[:2], lambda x: x[:2], R=fix.covariance)

    def _add_odometry(self, sample: OdometrySample) -> None:
        before, self._sample = self._sample, sample
        if self._stamp_ns is None or before is None:
            return
        step = before.odom_from_base.inverse() @ sample.odom_from_base
        twist = step.as_array() / ((sample.stamp_ns - before.stamp_ns) * 1e-9)
        self._advance(sample.stamp_ns)
        self.update(twist, lambda _: np.eye(6)[3:], lambda x: x[3:], R=np.diag(TWIST_SIGMAS**2))


# p' = p + dt R(yaw) v,  yaw' = yaw + dt w
def _moved(state: np.ndarray, time_s: float) -> np.ndarray:
    moved = state.copy()
    moved[:2] += time_s * rotation(state[2]) @ state[3:5]
    moved[2] += time_s * state[5]
    return moved


def _jacobian(state: np.ndarray, time_s: float) -> np.ndarray:
    """Derivative (6, 6) of ``_moved`` by the state."""
    jacobian = np.eye(6)
    jacobian[:2, 2] = time_s * rotation_derivative(state[2]) @ state[3:5]
    jacobian[:2, 3:5] = time_s * rotation(state[2])
    jacobian[2, 5] = time_s
    return jacobian


def run_alternately(filters: dict, events: list[Event]) -> tuple[dict, dict[str, float]]:
    """Give each event to each of the filters, and ask them at each image.

    Returns a Track at the images and the processor seconds of each.  The filters take turns in
    going first.
    """
    names = list(filters)
    found, spent_ns = {name: [] for name in names}, dict.fromkeys(names, 0)
    for event in events:
        names = names[1:] + names[:1]
        for name in names:
            begin_ns = time.thread_time_ns()
            if isinstance(event, ImageAt):
                estimate = filters[name].estimate_at(event.stamp_ns)
                if estimate is not None:
                    found[name].append(estimate)
            else:
                filters[name].add(event)
            spent_ns[name] += time.thread_time_ns() - begin_ns
    return ({name: Track.from_estimates(estimates) for name, estimates in found.items()},
            {name: 1e-9 * ns for name, ns in spent_ns.items()})
