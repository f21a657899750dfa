"""The first position and heading: the path of the odometry aligned with the GNSS fixes."""

from bisect import bisect_right
from dataclasses import dataclass
import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import GnssFix, MatchErrors, OdometrySample
from crossview_localizer.fusion.motion_model import (
    ANTENNA,
    antenna_sigma_m,
    BIAS,
    interpolated_pose,
    POSE,
    POSITION,
    rotation,
    rotation_derivative,
    SCALE,
    slow_sigmas,
    STATES,
    YAW,
)
from crossview_localizer.geometry import Pose2D, wrap_angle

# Odometry and GNSS are aligned over at least this distance.
START_DISTANCE_M = 8.0
# The filter starts once the sigma of the heading is below this.
START_YAW_SIGMA_RAD = 0.2
# Of the fixes within one such cell of the odometry frame only the newest counts: a vehicle that
# stands does not show its heading.
CELL_M = 0.25
# Fixes that have moved by more than this, and so many times as far as the odometry, show that it
# does not tell of the motion.
FIXES_MOVED_M, FIXES_MOVED_TIMES = 100.0, 10.0
# A misfit outside this share of its distribution means that odometry and GNSS disagree.
MISFIT_PROBABILITY = 0.9999


@dataclass(frozen=True)
class AlignedStart:
    """State (17,) without speed and match biases, and covariance, at the last fix.

    ``misfit`` is the chi-square of the misfit.
    """

    mean: np.ndarray
    covariance: np.ndarray
    misfit: float


# Least squares over map = R(yaw) odom + t, with q_i, z_i odometry and GNSS about their means:
#   yaw = atan2(sum q_i x z_i, sum q_i . z_i)
#   var(yaw) = sum_ij (q_i . q_j) V_ij / (sum |q_i|^2)^2
# with V_ij = sigma_b^2 exp(-|t_i - t_j| / tau) + w_i delta_ij the covariance of the fixes' errors
# on one axis.  Errors of pose and bias at the last fix, o its odometry position about the mean:
#   e_p = R'(yaw) o e_yaw + R(yaw) o e_s - e_b - R(yaw_last) e_antenna - eps
#   var(eps) = var(mean of errors - b_last)
def aligned_start(
    fixes: list[GnssFix], antennas_m: np.ndarray, odom_from_base: Pose2D, config: FilterConfig
) -> AlignedStart:
    """Align n fixes with the positions (n, 2) of the antenna in ``odom``; pose at the last fix.

    ``odom_from_base`` is the odometry at the last fix.
    """
    stamps_s = np.array([(fix.stamp_ns - fixes[-1].stamp_ns) * 1e-9 for fix in fixes])
    measured_m = np.array([(fix.x_m, fix.y_m) for fix in fixes])
    count = len(fixes)
    drift = config.odometry_scale_sigma * np.linalg.norm(antennas_m - antennas_m[-1], axis=1)
    white = np.array([
        max(np.trace(fix.covariance) / 2, config.gnss_sigma_floor_m**2) for fix in fixes])
    ages_s = np.abs(stamps_s[:, None] - stamps_s[None, :])
    wander = config.gnss_bias_sigma_m**2 * np.exp(-ages_s / config.gnss_bias_tau_s)
    errors = wander + np.diag(white + drift**2)

    q_m = antennas_m - antennas_m.mean(axis=0)
    z_m = measured_m - measured_m.mean(axis=0)
    spread_m2 = (q_m**2).sum()
    yaw_rad = math.atan2(
        (q_m[:, 0] * z_m[:, 1] - q_m[:, 1] * z_m[:, 0]).sum(), (q_m * z_m).sum())
    yaw_variance = ((q_m @ q_m.T) * errors).sum() / spread_m2**2
    driven_m = np.linalg.norm(np.diff(antennas_m, axis=0), axis=1).sum()
    yaw_variance += config.odometry_yaw_noise_rad**2 * driven_m
    yaw_variance += (config.odometry_turn_bias_sigma_radps * stamps_s[0]) ** 2
    misfit_m = z_m - q_m @ rotation(yaw_rad).T
    misfit = (misfit_m * np.linalg.solve(errors, misfit_m)).sum()

    offset_m = np.array([odom_from_base.x_m, odom_from_base.y_m]) - antennas_m.mean(axis=0)
    position_m = measured_m.mean(axis=0) + rotation(yaw_rad) @ offset_m
    mean_variance = (
        errors.sum() / count**2 + config.gnss_bias_sigma_m**2 - 2 * wander[:, -1].mean())
    variances = slow_sigmas(config, MatchErrors())**2
    variances[YAW], variances[POSITION] = yaw_variance, mean_variance
    by_errors = np.eye(STATES)
    by_errors[POSITION, YAW] = rotation_derivative(yaw_rad) @ offset_m
    by_errors[POSITION, SCALE] = rotation(yaw_rad) @ offset_m
    by_errors[POSITION, ANTENNA] = -antenna_sigma_m(fixes[-1].base_from_antenna_m) * rotation(
        yaw_rad + odom_from_base.yaw_rad)
    by_errors[POSITION, BIAS] = -np.eye(2)
    mean = np.zeros(STATES)
    mean[POSE] = *position_m, wrap_angle(yaw_rad + odom_from_base.yaw_rad)
    return AlignedStart(mean, (by_errors * variances) @ by_errors.T, float(misfit))


class HeadingInitializer:
    """Collects fixes until their path and that of the odometry give the heading."""

    def __init__(self, config: FilterConfig):
        self._config = config
        self._fixes: list[GnssFix] = []
        self._recent: list[GnssFix] = []  # also those that do not count
        self._tried: list[GnssFix] = []
        self._reason = 'the heading is unknown until the vehicle has driven some metres'

    def add_fix(self, fix: GnssFix) -> None:
        """Add a fix; forget those that are older than the correlation time of the GNSS error.

        A position that is repeated is no news.
        """
        if any((fix.x_m, fix.y_m) == (other.x_m, other.y_m) for other in self._fixes[-1:]):
            return
        self._fixes = sorted((*self._fixes, fix), key=lambda other: other.stamp_ns)
        oldest_ns = self._fixes[-1].stamp_ns - round(self._config.gnss_bias_tau_s * 1e9)
        self._fixes, self._recent = (
            [kept for kept in some if kept.stamp_ns >= oldest_ns]
            for some in (self._fixes, [*self._recent, fix]))

    def needed_from_ns(self) -> int | None:
        """The stamp of the oldest fix, since which odometry is needed; None without a fix."""
        return self._fixes[0].stamp_ns if self._fixes else None

    def find(
        self, odometry: list[OdometrySample]
    ) -> tuple[int | None, AlignedStart | None, str]:
        """Stamp and state to start from, or None twice, and the reason."""
        if not odometry:
            return None, None, 'no odometry yet: heading and motion are unknown'
        if not self._fixes:
            return None, None, 'no position fix yet'
        first_ns, last_ns = odometry[0].stamp_ns, odometry[-1].stamp_ns
        reached = [fix for fix in self._fixes if first_ns <= fix.stamp_ns <= last_ns]
        if len(reached) == len(self._tried) and reached[-1:] == self._tried[-1:]:
            return None, None, self._reason
        stamp_ns, start, self._reason = self._align(odometry, reached)
        if start is None:
            self._reason = self._contradiction(odometry) or self._reason
        return stamp_ns, start, self._reason

    def _contradiction(self, odometry: list[OdometrySample]) -> str:
        """What to say where the fixes move and the odometry does not, else ''."""
        first, last = self._recent[0], self._recent[-1]
        gone_m = math.hypot(last.x_m - first.x_m, last.y_m - first.y_m)
        since = [s.odom_from_base for s in odometry if s.stamp_ns >= first.stamp_ns]
        driven_m = max((math.hypot(pose.x_m - since[0].x_m, pose.y_m - since[0].y_m)
                        for pose in since), default=math.inf)
        if gone_m <= max(FIXES_MOVED_M, FIXES_MOVED_TIMES * driven_m):
            return ''
        return (f'fixes have moved {gone_m:.0f} m, the odometry {driven_m:.1f} m; expected '
                'odometry of this vehicle, in metres and with x ahead')

    def _align(self, odometry, reached):
        fixes, poses, antennas_m = self._distinct(odometry, reached)
        if len(fixes) < 3:
            return None, None, 'the heading is unknown until the vehicle has driven some metres'
        baselines_m = np.linalg.norm(antennas_m - antennas_m[-1], axis=1)
        least_m = START_DISTANCE_M
        reason = f'driven {baselines_m.max():.1f} m; the heading needs {least_m:.1f} m'
        # Take the shortest stretch that is good enough: the GNSS error changes least over it.
        for distance_m in least_m * np.array([1.0, 2.0, 4.0, 8.0]):
            far = np.flatnonzero(baselines_m >= distance_m)
            if not far.size:
                break
            first = min(far[-1], len(fixes) - 3)
            start = aligned_start(fixes[first:], antennas_m[first:], poses[-1], self._config)
            sigma_rad = math.sqrt(start.covariance[YAW, YAW])
            if start.misfit > chdtri(2 * (len(fixes) - first) - 3, 1.0 - MISFIT_PROBABILITY):
                reason = f'odometry and GNSS disagree over the last {distance_m:.0f} m'
            elif sigma_rad > START_YAW_SIGMA_RAD:
                reason = (f'heading sigma over {distance_m:.0f} m is {sigma_rad:.2f} rad; needed: '
                          f'{START_YAW_SIGMA_RAD:.2f}')
            else:
                return fixes[-1].stamp_ns, start, f'started over {distance_m:.0f} m'
        return None, None, reason

    def _distinct(self, odometry, reached):
        """The newest fix of each cell, the odometry there, and the antenna (n, 2) in ``odom``.

        All other fixes are forgotten.
        """
        stamps_ns = [sample.stamp_ns for sample in odometry]
        newest = {}
        for fix in reached:
            pose = _odometry_pose(odometry, stamps_ns, fix.stamp_ns)
            antenna_m = pose.transform(np.asarray(fix.base_from_antenna_m))
            cell = tuple(np.round(antenna_m / CELL_M))
            newest.pop(cell, None)
            newest[cell] = (fix, pose, antenna_m)
        pending = [fix for fix in self._fixes if fix.stamp_ns > stamps_ns[-1]]
        self._tried = [fix for fix, _, _ in newest.values()]
        self._fixes = self._tried + pending
        fixes, poses, antennas_m = zip(*newest.values()) if newest else ((), (), ())
        return fixes, poses, np.array(antennas_m).reshape(-1, 2)


def _odometry_pose(odometry, stamps_ns, stamp_ns: int) -> Pose2D:
    index = bisect_right(stamps_ns, stamp_ns) - 1
    if stamps_ns[index] == stamp_ns:
        return odometry[index].odom_from_base
    return interpolated_pose(odometry[index], odometry[index + 1], stamp_ns)
