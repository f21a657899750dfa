"""When odometry is not believed, and the pose from which the filter then starts again.

Odometry that contradicts fixes or matches by a share of the distance is not used for a while:
fixes and matches alone move the pose (see ``prediction``).
"""

import math

import numpy as np

from crossview_localizer.datatypes import GnssFix
from crossview_localizer.fusion.belief import Belief
from crossview_localizer.fusion.event_buffer import Event
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.gnss_integrity import (
    FixHistory,
    LIE_SHARE,
    LIE_SIGMAS,
    ODOMETRY_LIES,
)
from crossview_localizer.fusion.lean import Lean
from crossview_localizer.fusion.motion_model import (
    ANTENNA,
    BIAS,
    EARLY,
    MATCH_BIASES,
    match_jacobian,
    POSITION,
    rotation,
    SCALE,
    SPEED,
    STATES,
    TURN_BIAS,
    YAW,
)
from crossview_localizer.geometry import wrap_angle

# The odometry is not believed for DISBELIEF_S, and twice as long each time that follows within
# DISBELIEF_MEMORY_S.
DISBELIEF_S, LONGEST_DISBELIEF_S, DISBELIEF_MEMORY_S = 120.0, 480.0, 120.0
# In that time a mean squared distance of fixes or matches above this speaks against it again.
AGAIN_DISTANCE2 = 1.7
# Sigmas of a start from two fixes: that of the heading where they are near or far, and the speed.
LARGEST_RESTART_YAW_SIGMA_RAD, RESTART_YAW_SIGMA_RAD = 0.6, 0.3
RESTART_SPEED_SIGMA_MPS = 2.0
# An odometry that is faster than this backwards says that the vehicle reverses.
REVERSING_MPS = 0.3
# A share of the distance is that of at least this distance.
LEAST_M = 5.0


# p = z - R(yaw) l - b,  var(p) = W + var(b),  cov(p, b) = -var(b)
def restarted(
    belief: Belief, fix: GnssFix, noise_m2: np.ndarray, history: FixHistory, slow: np.ndarray,
) -> Belief:
    """The belief that the last fixes alone give; the odometry is not believed for a while."""
    first = history.first_refused
    way_m = np.array([fix.x_m, fix.y_m]) - history.position_m
    time_s = (fix.stamp_ns - history.stamp_ns) * 1e-9
    noise_m = math.sqrt(np.trace(noise_m2))
    if np.linalg.norm(way_m) < 3.0 * noise_m:
        way_m = np.array([fix.x_m, fix.y_m]) - first.position_m
        time_s = (fix.stamp_ns - first.stamp_ns) * 1e-9
    length_m = float(np.linalg.norm(way_m))
    mean, covariance = _with_unknown_odometry(belief, slow)
    reverses = belief.velocity[0] < -REVERSING_MPS
    if length_m > 3.0 * noise_m:
        mean[YAW] = wrap_angle(math.atan2(way_m[1], way_m[0]) + (math.pi if reverses else 0.0))
        covariance[YAW, YAW] = max(RESTART_YAW_SIGMA_RAD, noise_m / length_m) ** 2
    else:
        covariance[YAW, YAW] = LARGEST_RESTART_YAW_SIGMA_RAD**2
    mean[SPEED] = (-1.0 if reverses else 1.0) * length_m / time_s
    covariance[SPEED, SPEED] = RESTART_SPEED_SIGMA_MPS**2
    lever_m = rotation(mean[YAW]) @ np.asarray(fix.base_from_antenna_m)
    mean[POSITION] = np.array([fix.x_m, fix.y_m]) - lever_m
    covariance[POSITION, POSITION] = noise_m2 + covariance[BIAS, BIAS]
    covariance[POSITION, BIAS] = covariance[BIAS, POSITION] = -covariance[BIAS, BIAS]
    belief = changed(belief, mean=mean, covariance=covariance)
    return _disbelieving(belief, fix.stamp_ns)


# pose = z - h(0, c, m),  var(pose) = W + H C H',  cov(pose, c m) = -H C
def restarted_at_match(
    belief: Belief, event: Event, residual, noise: np.ndarray, slow: np.ndarray,
) -> Belief:
    """The belief that a match alone gives; the odometry is not believed for a while."""
    mean, covariance = _with_unknown_odometry(belief, slow)
    observed = event.observed
    mean[observed] += residual
    passed_s = max((event.stamp_ns - belief.match_ns) * 1e-9, 1.0)
    ahead_mps, left_mps = residual[:2] @ rotation(mean[YAW]) / passed_s
    mean[SPEED] += ahead_mps
    covariance[SPEED, SPEED] = max(abs(left_mps), RESTART_SPEED_SIGMA_MPS) ** 2
    covariance[YAW, YAW] = LARGEST_RESTART_YAW_SIGMA_RAD**2
    by_biases = match_jacobian(mean)[observed, MATCH_BIASES]
    shared = by_biases @ covariance[MATCH_BIASES, MATCH_BIASES]
    covariance[np.ix_(observed, observed)] = noise + shared @ by_biases.T
    covariance[observed, MATCH_BIASES] = -shared
    covariance[MATCH_BIASES, observed] = -shared.T
    belief = changed(
        belief, mean=mean, covariance=covariance, match_ns=event.stamp_ns,
        match_driven_m=belief.driven_m)
    return _disbelieving(belief, event.stamp_ns)


def disbelieving_and_wider(belief: Belief, residual_m: np.ndarray) -> Belief:
    """The belief that does not believe the odometry again, as wide as a residual (2,)."""
    added = np.zeros(STATES)
    added[POSITION] = residual_m**2
    added[YAW], added[SPEED] = RESTART_YAW_SIGMA_RAD**2, RESTART_SPEED_SIGMA_MPS**2
    return _disbelieving(
        changed(belief, covariance=belief.covariance + np.diag(added)), belief.stamp_ns)


def remark_on(belief: Belief) -> str:
    """What each used fix and match reports while the odometry is not believed, else ''."""
    return ODOMETRY_LIES if belief.stamp_ns < belief.disbelieved_until_ns else ''


def fails_again(belief: Belief, distance2: float) -> bool:
    """Whether odometry that was not believed until lately is contradicted again.

    ``distance2`` is the mean squared distance of fixes or matches, 1 where all is well.
    """
    since_s = (belief.stamp_ns - belief.disbelieved_until_ns) * 1e-9
    return 0.0 <= since_s < DISBELIEF_MEMORY_S and distance2 > AGAIN_DISTANCE2


# |r| > share * s + sigmas * sqrt(tr(W) / 2)      s: driven since the match before
def is_share_of_distance(belief: Belief, residual, noise) -> bool:
    """Whether a match is farther off than sound odometry can be since the last one."""
    if belief.match_ns is None:
        return False
    driven_m = max(belief.driven_m - belief.match_driven_m, LEAST_M)
    noise_m = math.sqrt(np.trace(noise[POSITION, POSITION]) / 2.0)
    return np.linalg.norm(residual[:2]) > LIE_SHARE * driven_m + LIE_SIGMAS * noise_m


def _with_unknown_odometry(belief: Belief, slow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a start that keeps nothing but the pose and what matches are off.

    The pose is without a covariance; ``slow`` (17,) as in ``slow_sigmas``.
    """
    mean, covariance = belief.mean.copy(), np.diag(slow**2)
    mean[SCALE] = mean[TURN_BIAS] = mean[EARLY] = 0.0
    mean[ANTENNA] = mean[BIAS] = 0.0
    covariance[MATCH_BIASES, MATCH_BIASES] = belief.covariance[MATCH_BIASES, MATCH_BIASES]
    return mean, covariance


def _disbelieving(belief: Belief, stamp_ns: int) -> Belief:
    """The belief as at a start, which does not believe the odometry for a while."""
    again = stamp_ns - belief.disbelieved_until_ns < DISBELIEF_MEMORY_S * 1e9
    times = belief.disbelieved_times + 1 if again else 1
    disbelief_s = min(DISBELIEF_S * 2 ** (times - 1), LONGEST_DISBELIEF_S)
    return changed(
        belief, memories=(), fixed_ns=stamp_ns, velocity=(float(belief.mean[SPEED]), 0.0, 0.0),
        increment_velocity=None,
        fixes=FixHistory(stamp_ns), fix_distance2=1.0, lean=Lean(), match_refused_ns=None,
        match_way=None, match_doubt=None, match_distance2=1.0, doubt=None, disbelieved_times=times,
        disbelieved_until_ns=stamp_ns + round(disbelief_s * 1e9))
