"""The equations of the Kalman prior, each beside the function that transcribes it.

State (6,): x_m, y_m, yaw_rad of base_link in ``map``; log of the odometry scale; GNSS bias x, y in
metres.
"""

import math

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import OdometrySample
from crossview_localizer.geometry import interpolate_pose, Pose2D, wrap_angle

YAW, SCALE = 2, 3
POSE, POSITION, BIAS = slice(0, 3), slice(0, 2), slice(4, 6)


def rotation(yaw_rad: float) -> np.ndarray:
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return np.array([[cos, -sin], [sin, cos]])


def rotation_derivative(yaw_rad: float) -> np.ndarray:
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return np.array([[-sin, -cos], [cos, -sin]])


# p' = p + exp(s) R(yaw) d      d, turn: odometry increment in the old body frame
# yaw' = yaw + turn
# s' = a_s s,  b' = a_b b       a = exp(-dt / tau), first-order Gauss-Markov
def propagate(state, increment: Pose2D, scale_decay: float, bias_decay: float) -> np.ndarray:
    """Move the state (6,) by an odometry increment."""
    moved = state.copy()
    step_m = math.exp(state[SCALE]) * np.array([increment.x_m, increment.y_m])
    moved[POSITION] += rotation(state[YAW]) @ step_m
    moved[YAW] = wrap_angle(state[YAW] + increment.yaw_rad)
    moved[SCALE] *= scale_decay
    moved[BIAS] *= bias_decay
    return moved


# dp'/dyaw = exp(s) R'(yaw) d,  dp'/ds = exp(s) R(yaw) d
def propagate_jacobian(state, increment, scale_decay, bias_decay) -> np.ndarray:
    """Derivative (6, 6) of :func:`propagate` by the state."""
    step_m = math.exp(state[SCALE]) * np.array([increment.x_m, increment.y_m])
    jacobian = np.diag([1.0, 1.0, 1.0, scale_decay, bias_decay, bias_decay])
    jacobian[POSITION, YAW] = rotation_derivative(state[YAW]) @ step_m
    jacobian[POSITION, SCALE] = rotation(state[YAW]) @ step_m
    return jacobian


# z = p + R(yaw) l + b          l: antenna in base_link
def gnss_prediction(state, base_from_antenna_m) -> np.ndarray:
    """Position (2,) that a fix should report."""
    return state[POSITION] + rotation(state[YAW]) @ np.asarray(base_from_antenna_m) + state[BIAS]


# dz/dp = I,  dz/dyaw = R'(yaw) l,  dz/db = I
def gnss_jacobian(state, base_from_antenna_m) -> np.ndarray:
    """Derivative (2, 6) of :func:`gnss_prediction` by the state."""
    jacobian = np.zeros((2, 6))
    jacobian[:, POSITION] = jacobian[:, BIAS] = np.eye(2)
    jacobian[:, YAW] = rotation_derivative(state[YAW]) @ np.asarray(base_from_antenna_m)
    return jacobian


# a = exp(-dt / tau)
def decays(config: FilterConfig, time_s: float) -> tuple[float, float]:
    """What a time leaves of the odometry scale and of the GNSS bias."""
    scale_tau_s, bias_tau_s = config.odometry_scale_tau_s, config.gnss_bias_tau_s
    return math.exp(-time_s / scale_tau_s), math.exp(-time_s / bias_tau_s)


# Q = diag(q_p, q_p, q_yaw, q_s, q_b, q_b), with distance d and turn of the increment
#   q_p = n_p^2 |d| + i_p^2 dt,  q_yaw = n_yaw^2 |d| + n_turn^2 |turn| + i_yaw^2 dt
#   q_s, q_b = sigma^2 (1 - a^2)
def motion_noise(config: FilterConfig, increment: Pose2D, time_s: float) -> np.ndarray:
    """Diagonal (6,) of the process noise of an odometry increment."""
    distance_m = math.hypot(increment.x_m, increment.y_m)
    scale_decay, bias_decay = decays(config, time_s)
    position_m2 = (
        config.odometry_position_noise**2 * distance_m + config.idle_position_noise_m**2 * time_s)
    yaw_rad2 = (
        config.odometry_yaw_noise_rad**2 * distance_m
        + config.odometry_turn_noise_rad**2 * abs(increment.yaw_rad)
        + config.idle_yaw_noise_rad**2 * time_s)
    scale2 = config.odometry_scale_sigma**2 * (1.0 - scale_decay**2)
    bias_m2 = config.gnss_bias_sigma_m**2 * (1.0 - bias_decay**2)
    return np.array([position_m2, position_m2, yaw_rad2, scale2, bias_m2, bias_m2])


def coasting_step(config: FilterConfig, velocity, begin_s: float, end_s: float) -> Pose2D:
    """Increment between two times since the last odometry: constant velocity, then held."""
    speed_x_mps, speed_y_mps, turn_radps = velocity
    moving_s = min(end_s, config.odometry_max_gap_s) - min(begin_s, config.odometry_max_gap_s)
    step_m = moving_s * np.array([speed_x_mps, speed_y_mps])
    return Pose2D(*(rotation(turn_radps * moving_s / 2) @ step_m), turn_radps * moving_s)


# Position sigma t seconds after the last odometry, counted from the last used fix at t_f:
#   S(t) - S(t_f),  S(t) = c t + v (t - gap)+
# with v the last speed, or coast_hold_speed_mps where that is more, and gap = 0 across a jump;
# yaw sigma c_yaw t.  It is one error all along: over a piece the difference of squares is added.
def coasting_noise(
    config: FilterConfig, velocity, begin_s: float, end_s: float, fixed_s: float, jump: bool
) -> np.ndarray:
    """Diagonal (6,) of the process noise that not being told the motion adds."""
    speed_mps = max(math.hypot(*velocity[:2]), config.coast_hold_speed_mps)
    gap_s = 0.0 if jump else config.odometry_max_gap_s

    def sigma_m(time_s):
        return config.coast_speed_noise_mps * time_s + speed_mps * max(time_s - gap_s, 0.0)

    at_fix_m = sigma_m(max(fixed_s, 0.0))
    position_m2 = (sigma_m(end_s) - at_fix_m) ** 2 - (sigma_m(begin_s) - at_fix_m) ** 2
    yaw_rad2 = config.coast_yaw_noise_radps**2 * (end_s**2 - begin_s**2)
    return np.array([position_m2, position_m2, yaw_rad2, 0.0, 0.0, 0.0])


def raised_to_floor(covariance: np.ndarray, sigma_floor: float) -> np.ndarray:
    """The covariance (n, n) with every principal sigma at least ``sigma_floor``."""
    variances, axes = np.linalg.eigh(covariance)
    lacking = np.maximum(sigma_floor**2 - variances, 0.0)
    return covariance + (axes * lacking) @ axes.T


# d2 = r' S^-1 r,  S = H P H' + R
def mahalanobis2(residual, jacobian, covariance, noise) -> float:
    """Squared distance of a residual (n,) from what was predicted."""
    spread = jacobian @ covariance @ jacobian.T + noise
    return float(residual @ np.linalg.solve(spread, residual))


def interpolated_pose(before: OdometrySample, after: OdometrySample, stamp_ns: int) -> Pose2D:
    """Pose in ``odom`` at a stamp between two samples."""
    fraction = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
    return interpolate_pose(before.odom_from_base, after.odom_from_base, fraction)


def body_velocity(before: OdometrySample, after: OdometrySample) -> tuple[float, float, float]:
    """Body-frame speed (m/s) and turn rate (rad/s) between two samples."""
    time_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    step = before.odom_from_base.inverse() @ after.odom_from_base
    return step.x_m / time_s, step.y_m / time_s, step.yaw_rad / time_s
