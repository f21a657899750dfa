"""The equations of the Kalman filter, each above the function that computes it.

State (17,), with the number of each:

- 0 to 2: x_m, y_m, yaw_rad of base_link in ``map``; 3: forward speed in m/s;
- 4, 5: of the odometry the log of its scale, and its yaw-rate bias in rad/s;
- 6, 7: GNSS bias x, y in metres;
- 8 to 10: what all matches are off because of the camera, ahead and left in metres, yaw in rad;
- 11, 12: what they are off because of the imagery, x, y in metres;
- 13, 14: by how many ``antenna_sigma_m`` the lever arm of the GNSS antenna is longer than told,
  ahead and left;
- 15: by how many seconds the courses of GNSS are late;
- 16: by how many seconds e the stamps of the odometry are early: its pose of t was that of t + e.
"""

import math

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import MatchErrors, OdometrySample
from crossview_localizer.geometry import interpolate_pose, Pose2D, wrap_angle

# Speed ahead and to the left in m/s, and turn rate in rad/s.
Velocity = tuple[float, float, float]

STATES = 17
YAW, SPEED, SCALE, TURN_BIAS = 2, 3, 4, 5
POSE, POSITION, BIAS = slice(0, 3), slice(0, 2), slice(6, 8)
CAMERA_BIAS, IMAGERY_BIAS, MATCH_BIASES = slice(8, 11), slice(11, 13), slice(8, 13)
ANTENNA, COURSE_DELAY, EARLY = slice(13, 15), 15, 16

BEYOND_SIGMAS = 3.0
# Correlation times of the slowly varying states.
ODOMETRY_SCALE_TAU_S = 600.0
ODOMETRY_TURN_BIAS_TAU_S = 300.0
MATCH_BIASES_TAU_S = 300.0
# In 100 s the stamps then drift by 6 ms: two clocks without synchronisation by 5 ms (50 ppm).
ODOMETRY_STAMPS_TAU_S = 14400.0
# Sigma of the time by which the stamps of the odometry are early or late.
ODOMETRY_STAMPS_SIGMA_S = 0.05
# The antenna stays where it is.  A lever arm that is told was measured; one of zero is none: many
# drivers stamp their fixes with the frame of the vehicle.
ANTENNA_TAU_S = 14400.0
TOLD_ANTENNA_SIGMA_M, UNTOLD_ANTENNA_SIGMA_M, LEAST_LEVER_ARM_M = 0.1, 0.3, 0.01
# A receiver smooths its courses.
COURSE_DELAY_SIGMA_S, COURSE_DELAY_TAU_S = 0.3, 14400.0
# Sigma of the speed of an odometry increment.
ODOMETRY_SPEED_NOISE_MPS = 0.2
# A faster step or turn of the odometry is a jump: its increment is not used.
ODOMETRY_MAX_SPEED_MPS = 60.0
ODOMETRY_MAX_TURN_RADPS = 3.0
# Without odometry, fix and match the pose is extrapolated for this long and then held.  A longer
# time between two odometry samples is a gap.
ODOMETRY_MAX_GAP_S = 1.0
# Largest acceleration within a gap of the odometry.
ODOMETRY_MAX_ACCEL_MPS2 = 5.0
# Without odometry: the sigma of the speed that is added per square root of a second, the sigma of
# the yaw that is added per second, and the smallest speed at which the position sigma grows after
# ODOMETRY_MAX_GAP_S.
COAST_SPEED_NOISE_MPS = 1.0
COAST_YAW_NOISE_RADPS = 0.1
COAST_HOLD_SPEED_MPS = 5.0
# The same two noises while the odometry is not believed: GNSS alone shows each turn and braking.
# The yaw noise is that of a vehicle at DISBELIEF_SPEED_MPS or faster.
DISBELIEF_SPEED_NOISE_MPS = 2.0
DISBELIEF_YAW_NOISE_RADPS = 0.3
DISBELIEF_SPEED_MPS = 3.0


def rotation(yaw_rad: float) -> np.ndarray:
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return np.array([[cos, -sin], [sin, cos]])


def turned(x: float, y: float, yaw_rad: float) -> tuple[float, float]:
    """A vector, turned to the left."""
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return cos * x - sin * y, sin * x + cos * y


def rotation_derivative(yaw_rad: float) -> np.ndarray:
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return np.array([[-sin, -cos], [cos, -sin]])


# Stamps that are early by e: T^-1 T' = Exp(e u) D Exp(-e u'), T(t + e) = T(t) Exp(e u) in linear
# terms, with D the increment (d, turn) and u = (v, r), u' the velocities at its begin and end:
# p' = p + e R(yaw) v + exp(s) R(yaw + e r - w dt / 2) d - e R(yaw') v'
# yaw' = yaw + turn - w dt + e (r - r')
# speed' = exp(s) d_x / dt
# s' = a_s s,  w' = a_w w,  b' = a_b b,  c' = a_c c,  m' = a_c m,  e' = a_e e
# with a = exp(-dt / tau), first-order Gauss-Markov
def propagate(
    state, increment: Pose2D, time_s: float, decay: np.ndarray, begin: Velocity, end: Velocity,
) -> tuple[np.ndarray, np.ndarray]:
    """Move the state (17,) by an odometry increment; with the derivative (17, 17) by the state.

    ``decay`` (17,) are the factors ``a``, 1 for what does not decay.  ``begin`` and ``end`` are
    the velocities of the odometry before and after the increment.
    """
    x_m, y_m, yaw_rad, _, log_scale, turn_bias_radps, *_, early_s = state.tolist()
    scale = math.exp(log_scale)
    ahead_m, left_m = scale * increment.x_m, scale * increment.y_m
    middle_rad = yaw_rad + early_s * begin[2] - turn_bias_radps * time_s / 2
    turned_rad = yaw_rad + increment.yaw_rad - turn_bias_radps * time_s + early_s * (
        begin[2] - end[2])
    east_m, north_m = turned(ahead_m, left_m, middle_rad)
    begin_x_mps, begin_y_mps = turned(begin[0], begin[1], yaw_rad)
    end_x_mps, end_y_mps = turned(end[0], end[1], turned_rad)
    way_x_m = east_m + early_s * (begin_x_mps - end_x_mps)
    way_y_m = north_m + early_s * (begin_y_mps - end_y_mps)
    moved = decay * state
    moved[0], moved[1] = x_m + way_x_m, y_m + way_y_m
    moved[YAW] = wrap_angle(turned_rad)
    moved[SPEED] = ahead_m / time_s
    jacobian = np.diag(decay)
    jacobian[0, YAW], jacobian[1, YAW] = -way_y_m, way_x_m
    jacobian[0, SCALE], jacobian[1, SCALE] = east_m, north_m
    jacobian[0, TURN_BIAS] = time_s * (north_m / 2 - early_s * end_y_mps)
    jacobian[1, TURN_BIAS] = -time_s * (east_m / 2 - early_s * end_x_mps)
    jacobian[YAW, TURN_BIAS] = -time_s
    jacobian[YAW, EARLY] = turn_radps = begin[2] - end[2]
    jacobian[0, EARLY] = (begin_x_mps - end_x_mps - begin[2] * north_m
                          + early_s * turn_radps * end_y_mps)
    jacobian[1, EARLY] = (begin_y_mps - end_y_mps + begin[2] * east_m
                          - early_s * turn_radps * end_x_mps)
    jacobian[SPEED, SPEED] = 0.0
    jacobian[SPEED, SCALE] = ahead_m / time_s
    return moved, jacobian


# p' = p + v dt u,  yaw' = yaw + turn      u = (cos, sin)(yaw + turn / 2)
# dp'/dyaw = v dt du/dyaw,  dp'/dv = dt u
def coast(
    state, moving_s: float, turn_rad: float, decay: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Move the state (17,) at its own speed for ``moving_s``; with the derivative (17, 17)."""
    x_m, y_m, yaw_rad, speed_mps, *_ = state.tolist()
    middle_rad = yaw_rad + turn_rad / 2
    cos, sin = moving_s * math.cos(middle_rad), moving_s * math.sin(middle_rad)
    moved = decay * state
    moved[0], moved[1] = x_m + speed_mps * cos, y_m + speed_mps * sin
    moved[YAW] = wrap_angle(yaw_rad + turn_rad)
    jacobian = np.diag(decay)
    jacobian[0, YAW], jacobian[1, YAW] = -speed_mps * sin, speed_mps * cos
    jacobian[0, SPEED], jacobian[1, SPEED] = cos, sin
    return moved, jacobian


def antenna_sigma_m(base_from_antenna_m) -> float:
    """Sigma on each axis of what a lever arm is off."""
    told = math.hypot(*base_from_antenna_m) > LEAST_LEVER_ARM_M
    return TOLD_ANTENNA_SIGMA_M if told else UNTOLD_ANTENNA_SIGMA_M


# z = p + R(yaw) (l + k a) + b    l: antenna in base_link as told, k: antenna_sigma_m of it
def gnss_prediction(state, base_from_antenna_m) -> np.ndarray:
    """Predicted position (2,) of a fix."""
    x_m, y_m, yaw_rad, _, _, _, bias_x_m, bias_y_m, *_ = state.tolist()
    east_m, north_m = turned(*_lever_arm_m(state, base_from_antenna_m), yaw_rad)
    return np.array([x_m + east_m + bias_x_m, y_m + north_m + bias_y_m])


# dz/dp = I,  dz/dyaw = R'(yaw) (l + k a),  dz/db = I,  dz/da = k R(yaw)
def gnss_jacobian(state, base_from_antenna_m) -> np.ndarray:
    """Derivative (2, 17) of ``gnss_prediction`` by the state."""
    east_m, north_m = turned(*_lever_arm_m(state, base_from_antenna_m), state[YAW])
    jacobian = np.zeros((2, STATES))
    jacobian[0, 0] = jacobian[1, 1] = jacobian[0, 6] = jacobian[1, 7] = 1.0  # 6, 7: BIAS
    jacobian[:, ANTENNA] = antenna_sigma_m(base_from_antenna_m) * rotation(state[YAW])
    jacobian[0, YAW], jacobian[1, YAW] = -north_m, east_m
    return jacobian


def _lever_arm_m(state, base_from_antenna_m) -> tuple[float, float]:
    """The lever arm, ahead and left, with what it is off."""
    sigma_m, (ahead, left) = antenna_sigma_m(base_from_antenna_m), state[ANTENNA].tolist()
    return base_from_antenna_m[0] + sigma_m * ahead, base_from_antenna_m[1] + sigma_m * left


# z = (p + R(yaw) c_p + m, yaw + c_yaw)       c: bias by the camera, m: by the imagery
def match_prediction(state) -> np.ndarray:
    """Predicted pose (3,) of a match."""
    x_m, y_m, yaw_rad = state[POSE].tolist()
    ahead_m, left_m, off_rad, shift_x_m, shift_y_m = state[MATCH_BIASES].tolist()
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    return np.array([x_m + cos * ahead_m - sin * left_m + shift_x_m,
                     y_m + sin * ahead_m + cos * left_m + shift_y_m, yaw_rad + off_rad])


# dz/dpose = I,  dz_p/dyaw = R'(yaw) c_p,  dz_p/dc_p = R(yaw),  dz_yaw/dc_yaw = 1,  dz_p/dm = I
def match_jacobian(state) -> np.ndarray:
    """Derivative (3, 17) of ``match_prediction`` by the state."""
    ahead_m, left_m, *_ = state[CAMERA_BIAS].tolist()
    cos, sin = math.cos(state[YAW]), math.sin(state[YAW])
    jacobian = np.eye(3, STATES)
    jacobian[0, YAW] = -sin * ahead_m - cos * left_m
    jacobian[1, YAW] = cos * ahead_m - sin * left_m
    # Columns 8 to 12 are CAMERA_BIAS and IMAGERY_BIAS.
    jacobian[0, 8], jacobian[0, 9] = cos, -sin
    jacobian[1, 8], jacobian[1, 9] = sin, cos
    jacobian[YAW, 10] = jacobian[0, 11] = jacobian[1, 12] = 1.0
    return jacobian


def slow_sigmas(config: FilterConfig, errors: MatchErrors) -> np.ndarray:
    """The sigma (17,) that each slowly varying state keeps in the long run; else 0."""
    sigmas = np.zeros(STATES)
    sigmas[SCALE] = config.odometry_scale_sigma
    sigmas[TURN_BIAS] = config.odometry_turn_bias_sigma_radps
    sigmas[BIAS] = config.gnss_bias_sigma_m
    sigmas[CAMERA_BIAS] = errors.ahead_bias_m, errors.left_bias_m, errors.yaw_bias_rad
    sigmas[IMAGERY_BIAS] = config.match_sigma_floor_m
    sigmas[ANTENNA] = 1.0
    sigmas[COURSE_DELAY] = COURSE_DELAY_SIGMA_S
    sigmas[EARLY] = ODOMETRY_STAMPS_SIGMA_S
    return sigmas


# a = exp(-dt / tau)
def decay_rates(config: FilterConfig) -> np.ndarray:
    """1 / tau (17,) of each state in 1/s; 0 for states that do not decay."""
    rates = np.zeros(STATES)
    rates[SCALE] = 1.0 / ODOMETRY_SCALE_TAU_S
    rates[TURN_BIAS] = 1.0 / ODOMETRY_TURN_BIAS_TAU_S
    rates[BIAS] = 1.0 / config.gnss_bias_tau_s
    rates[MATCH_BIASES] = 1.0 / MATCH_BIASES_TAU_S
    rates[ANTENNA] = 1.0 / ANTENNA_TAU_S
    rates[COURSE_DELAY] = 1.0 / COURSE_DELAY_TAU_S
    rates[EARLY] = 1.0 / ODOMETRY_STAMPS_TAU_S
    return rates


# q = sigma^2 (1 - a^2) for a slow state;  i_p^2 dt and i_yaw^2 dt, moving or not
# Where scale, yaw-rate bias or stamps of the odometry lie beyond BEYOND_SIGMAS, the odometry is
# worse than its sigma says: sigma is then the value / BEYOND_SIGMAS.
def idle_noise(
    config: FilterConfig, slow_variances: np.ndarray, time_s: float, decay: np.ndarray, state,
) -> np.ndarray:
    """Process noise (17, 17) that grows with time alone.

    ``slow_variances`` (17,) are those that each slowly varying state keeps in the long run.
    """
    variances = slow_variances * (1.0 - decay * decay)
    for slow in (SCALE, TURN_BIAS, EARLY):
        beyond = float(state[slow]) ** 2 / BEYOND_SIGMAS**2
        if beyond > slow_variances[slow]:
            variances[slow] = beyond * (1.0 - decay[slow] ** 2)
    variances[0] = variances[1] = config.idle_position_noise_m**2 * time_s
    variances[YAW] = config.idle_yaw_noise_rad**2 * time_s
    return np.diag(variances)


# q_p = n_p^2 |d|,  q_yaw = n_yaw^2 |d| + n_turn^2 |turn|,  q_v = n_v^2
# The yaw noise arises evenly along d and turns the rest of d, with l = R'(yaw) d:
#   q_pp = q_yaw / 3 l l',  q_pyaw = q_yaw / 2 l
def add_motion_noise(
    noise: np.ndarray, config: FilterConfig, yaw_rad: float, increment: Pose2D,
) -> None:
    """Add the noise of an odometry increment that begins at this heading to ``noise`` (17, 17)."""
    distance_m = math.hypot(increment.x_m, increment.y_m)
    position_m2 = config.odometry_position_noise**2 * distance_m
    yaw_rad2 = (
        config.odometry_yaw_noise_rad**2 * distance_m
        + config.odometry_turn_noise_rad**2 * abs(increment.yaw_rad))
    cos, sin = math.cos(yaw_rad), math.sin(yaw_rad)
    x_m = -sin * increment.x_m - cos * increment.y_m
    y_m = cos * increment.x_m - sin * increment.y_m
    noise[0, 0] += position_m2 + yaw_rad2 / 3 * x_m * x_m
    noise[1, 1] += position_m2 + yaw_rad2 / 3 * y_m * y_m
    noise[YAW, YAW] += yaw_rad2
    noise[SPEED, SPEED] += ODOMETRY_SPEED_NOISE_MPS**2
    noise[0, 1] = noise[1, 0] = yaw_rad2 / 3 * x_m * y_m
    noise[0, YAW] = noise[YAW, 0] = yaw_rad2 / 2 * x_m
    noise[1, YAW] = noise[YAW, 1] = yaw_rad2 / 2 * y_m


# The speed is a random walk while the pose moves along the heading u for m seconds:
#   q_pp = a^2 m^3 / 3 u u',  q_pv = a^2 m^2 / 2 u,  q_vv = a^2 dt
# A pose held for t seconds since the last odometry, fix or match has the position sigma S(t) on
# each axis:
#   S(t) = v (t - gap)+      v: the last speed, at least COAST_HOLD_SPEED_MPS
# with gap = 0 across a jump of the odometry; the yaw sigma is c_yaw t.  The error of all pieces of
# this time is one: a piece adds the difference of the squares.
def add_coasting_noise(
    noise: np.ndarray, state, moving_s: float, turn_rad: float, begin_s: float, end_s: float,
    jump: bool, disbelieved: bool = False,
) -> None:
    """Add the noise of motion without odometry, from begin to end, to ``noise`` (17, 17).

    Both times are since the last odometry, fix or match.  ``jump``: the odometry jumps there;
    ``disbelieved``: there is odometry, but it is not believed.
    """
    speed_mps, middle_rad = abs(float(state[SPEED])), float(state[YAW]) + turn_rad / 2
    walk, yaw_noise_radps = COAST_SPEED_NOISE_MPS**2, COAST_YAW_NOISE_RADPS
    if disbelieved:
        walk = DISBELIEF_SPEED_NOISE_MPS**2
        yaw_noise_radps = DISBELIEF_YAW_NOISE_RADPS * min(1.0, speed_mps / DISBELIEF_SPEED_MPS)
    cos, sin = math.cos(middle_rad), math.sin(middle_rad)
    gap_s = 0.0 if jump else ODOMETRY_MAX_GAP_S
    held_m2 = max(speed_mps, COAST_HOLD_SPEED_MPS)**2 * (
        max(end_s - gap_s, 0.0)**2 - max(begin_s - gap_s, 0.0)**2)
    along_m2, with_speed = walk * moving_s**3 / 3, walk * moving_s**2 / 2
    noise[0, 0] += along_m2 * cos * cos + held_m2
    noise[1, 1] += along_m2 * sin * sin + held_m2
    noise[0, 1] = noise[1, 0] = along_m2 * cos * sin
    noise[0, SPEED] = noise[SPEED, 0] = with_speed * cos
    noise[1, SPEED] = noise[SPEED, 1] = with_speed * sin
    noise[SPEED, SPEED] += walk * (end_s - begin_s)
    noise[YAW, YAW] += yaw_noise_radps**2 * (end_s**2 - begin_s**2)


# A constant, unknown acceleration a between two known poses: a t (T - t) / 2 off the straight line
def bridge_sigma_m(since_s: float, until_s: float) -> float:
    """Sigma of a position interpolated inside a gap of the odometry; zero at both ends."""
    return ODOMETRY_MAX_ACCEL_MPS2 / 2 * since_s * until_s / 2


def interpolated_pose(before: OdometrySample, after: OdometrySample, stamp_ns: int) -> Pose2D:
    """Pose in ``odom`` at a stamp between two samples."""
    if stamp_ns == before.stamp_ns:
        return before.odom_from_base
    if stamp_ns == after.stamp_ns:
        return after.odom_from_base
    fraction = (stamp_ns - before.stamp_ns) / (after.stamp_ns - before.stamp_ns)
    return interpolate_pose(before.odom_from_base, after.odom_from_base, fraction)


def is_jump(before: OdometrySample, after: OdometrySample) -> bool:
    """Whether odometry moves or turns faster than a vehicle does."""
    return is_impossible(body_velocity(before, after))


def is_impossible(velocity: Velocity) -> bool:
    """Whether a vehicle cannot have a velocity, see ``body_velocity``."""
    speed_x_mps, speed_y_mps, turn_radps = velocity
    return (math.hypot(speed_x_mps, speed_y_mps) > ODOMETRY_MAX_SPEED_MPS
            or abs(turn_radps) > ODOMETRY_MAX_TURN_RADPS)


def body_velocity(before: OdometrySample, after: OdometrySample) -> Velocity:
    """Body-frame speed (m/s) and turn rate (rad/s) between two samples."""
    time_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    step = increment_between(before.odom_from_base, after.odom_from_base)
    return step.x_m / time_s, step.y_m / time_s, step.yaw_rad / time_s


def increment_between(start: Pose2D, end: Pose2D) -> Pose2D:
    """``start.inverse() @ end``, in a third of the time."""
    x_m, y_m = end.x_m - start.x_m, end.y_m - start.y_m
    cos, sin = math.cos(start.yaw_rad), math.sin(start.yaw_rad)
    return Pose2D(cos * x_m + sin * y_m, cos * y_m - sin * x_m,
                  wrap_angle(end.yaw_rad - start.yaw_rad))
