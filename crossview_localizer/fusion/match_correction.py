"""How a match corrects a belief, and when it is refused.

A match soon after another one sees the same scene: its covariance is divided by the share of the
correlation length that has passed since.  Matches have heavy tails: the farther one lies from the
prediction, the less it counts (Student t), up to the gate.
"""

import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import FilterUpdate, MatchErrors, Outcome
from crossview_localizer.fusion.belief import Belief, Memory, PoseEkf
from crossview_localizer.fusion.disbelief import (
    disbelieving_and_wider,
    fails_again,
    is_share_of_distance,
    LEAST_M,
    remark_on,
    restarted_at_match,
)
from crossview_localizer.fusion.doubt import beyond, doubt_of
from crossview_localizer.fusion.event_buffer import Event
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.gnss_integrity import ODOMETRY_LIES, ResidualWay
from crossview_localizer.fusion.motion_model import (
    match_jacobian,
    match_prediction,
    POSE,
    POSITION,
    SCALE,
    slow_sigmas,
    STATES,
    TURN_BIAS,
    YAW,
)
from crossview_localizer.fusion.weighting import (
    followed_distance2,
    least_variance,
    mahalanobis2,
    squared_distance,
    tail_weight,
)
from crossview_localizer.geometry import wrap_angle

# Matches outside this share of the predicted distribution are refused.
MATCH_GATE_PROBABILITY = 0.99
# What a match outside this share has not moved is in doubt.
MATCH_DOUBT_PROBABILITY = 0.95
# Degrees of freedom of the Student t distribution of the errors of matches.
MATCH_TAIL_DOF = 4.0
# The squared distance of matches is averaged over this time.  A mean above one for each coordinate
# multiplies their covariance.
MATCH_DISTANCE_S = 3.0
# Matches that have been refused for so long are right if they are within so many sigmas of the
# GNSS bias.
MATCH_PATIENCE_S = 2.0
MATCH_PATIENCE_SIGMAS = 3.0
# A match tells the place if no principal sigma of its position is larger.
PLACE_SIGMA_M = 10.0
# The time between matches is the mean of about so many.
MATCHES = 4
# An error of the heading counts as that of a point so far ahead.
LOOK_AHEAD_M = 10.0


class MatchCorrector:
    """Corrects beliefs by matches."""

    def __init__(self, config: FilterConfig, errors: MatchErrors):
        self._config, self._errors = config, errors
        self._slow = slow_sigmas(config, errors)
        self._ekf = PoseEkf()
        self._gates = [chdtri(dof, 1.0 - MATCH_GATE_PROBABILITY) for dof in (1, 2, 3)]
        self._limits = [chdtri(dof, 1.0 - MATCH_DOUBT_PROBABILITY) for dof in (1, 2, 3)]

    def apply(self, belief: Belief, event: Event, bridge_m2) -> tuple[Belief, FilterUpdate]:
        noise = event.noise.copy()
        observes_position = event.observed[:2].tolist() == [0, 1]
        if observes_position:
            noise[POSITION, POSITION] += bridge_m2
        residual, jacobian = _residual(belief, event), _jacobian(belief, event)
        size = len(residual)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        belief = _follow_distance(belief, event.stamp_ns, distance2 / size)
        if observes_position and fails_again(belief, belief.match_distance2):
            belief = disbelieving_and_wider(belief, residual[:2])
            distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        gate = self._gates[size - 1]
        is_place = observes_position and _tells_the_place(noise)
        if distance2 > gate and is_place:
            belief = changed(belief, match_way=_extended_way(belief, residual))
            have_agreed = _have_agreed(belief, event.stamp_ns)
            doubtful = self._doubted(belief, residual, event, have_agreed)
            doubtful_distance2 = mahalanobis2(residual, jacobian, doubtful.covariance, noise)
            fits_doubt = doubtful_distance2 <= gate
            if _may_odometry_lie(belief, have_agreed, fits_doubt) and is_share_of_distance(
                    belief, residual, noise):
                return (restarted_at_match(belief, event, residual, noise, self._slow),
                        FilterUpdate(Outcome.USED, ODOMETRY_LIES, distance2))
            if fits_doubt:
                belief, distance2 = changed(doubtful, memories=()), doubtful_distance2
        if distance2 > gate:
            return self._refused(belief, event, residual, distance2)
        share = self._new_information(belief)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second match of the same instant', distance2)
        share *= tail_weight(distance2, size, MATCH_TAIL_DOF)
        share /= max(1.0, belief.match_distance2)
        belief = self._corrected(belief, event, noise / share)
        if observes_position:
            belief = changed(belief, fixed_ns=event.stamp_ns)
        if is_place:
            belief = self._placed(belief, event, residual, noise, distance2)
        return belief, FilterUpdate(Outcome.USED, remark_on(belief), distance2)

    def _refused(self, belief: Belief, event: Event, residual,
                 distance2: float) -> tuple[Belief, FilterUpdate]:
        since_ns = belief.match_refused_ns or event.stamp_ns
        reason = f'refused for {(event.stamp_ns - since_ns) * 1e-9:.1f} s'
        if belief.fixes.refused_ns is not None:
            reason += '; GNSS is refused too'
        return (changed(belief, match_refused_ns=since_ns,
                        match_doubt=self._doubt(event.observed, residual, distance2)),
                FilterUpdate(Outcome.GATED, reason, distance2))

    def _corrected(self, belief: Belief, event: Event, noise) -> Belief:
        """The belief and its memories, corrected by a match of this noise (n, n)."""
        def correction(known: Belief | Memory) -> dict:
            return self._ekf.corrected(
                known, _residual(known, event), _jacobian(known, event), noise)

        return changed(
            belief, **correction(belief),
            memories=tuple(changed(memory, **correction(memory)) for memory in belief.memories),
            scene_ns=event.stamp_ns, scene_driven_m=belief.driven_m)

    def _placed(self, belief: Belief, event: Event, residual, noise,
                distance2: float) -> Belief:
        """What a match that tells the place changes besides the state, which it has corrected.

        ``residual`` (n,) is that before the correction.
        """
        if self._denies_fixes(belief, residual[:2], noise[POSITION, POSITION]):
            belief = changed(belief, denied_ns=event.stamp_ns)
        return changed(
            belief, match_ns=event.stamp_ns, match_driven_m=belief.driven_m,
            match_every_s=_every_s(belief), match_refused_ns=None, match_way=None, doubt=None,
            match_doubt=self._doubt(event.observed, _residual(belief, event), distance2))

    def _doubted(self, belief: Belief, residual, event: Event, have_agreed: bool) -> Belief:
        """The belief as wide as the fixes that contradict it, or these matches, would have it.

        Matches that agree, that have been refused for MATCH_PATIENCE_S, and that GNSS allows, are
        right; then the scale and the yaw-rate bias of the odometry are in doubt too.
        """
        covariance = belief.covariance.copy()
        if belief.doubt is not None:
            covariance[POSE, POSE] += belief.doubt
        off_m = float(np.linalg.norm(residual[:2]))
        if have_agreed and off_m <= MATCH_PATIENCE_SIGMAS * self._config.gnss_bias_sigma_m:
            added = np.zeros(STATES)
            added[event.observed] = residual**2
            added[SCALE] = (off_m / max(belief.driven_m - belief.match_driven_m, LEAST_M)) ** 2
            if event.observed[-1] == YAW and belief.match_ns is not None:
                passed_s = (event.stamp_ns - belief.match_ns) * 1e-9
                added[TURN_BIAS] = (residual[-1] / max(passed_s, 1.0)) ** 2
            covariance += np.diag(added)
        return changed(belief, covariance=covariance)

    def _denies_fixes(self, belief: Belief, residual_m, noise_m2) -> bool:
        """Whether a match of a residual (2,) contradicts the last fix, which is refused."""
        fixes = belief.fixes
        return fixes.refused_ns is not None and squared_distance(
            fixes.residual_m - residual_m, fixes.noise_m2 + noise_m2) > self._limits[1]

    def _doubt(self, observed, residual, distance2: float) -> np.ndarray | None:
        """What the residual (n,) that a match leaves says against the pose."""
        off = np.zeros(3)
        off[observed] = beyond(residual, distance2, self._limits[len(observed) - 1])
        return doubt_of(off[POSITION], off[YAW])

    def _new_information(self, belief: Belief) -> float:
        """Share (0 to 1) of the information of a match that is not in the last used match."""
        if belief.scene_ns is None:
            return 1.0
        driven_m = belief.driven_m - belief.scene_driven_m
        passed_s = (belief.stamp_ns - belief.scene_ns) * 1e-9
        shares = [
            passed / length if length > 0.0 else 1.0
            for passed, length in ((driven_m, self._errors.correlation_m),
                                   (passed_s, self._errors.correlation_s))]
        return min(1.0, max(shares))


def _jacobian(known: Belief | Memory, event: Event) -> np.ndarray:
    return match_jacobian(known.mean)[event.observed]


def _residual(known: Belief | Memory, event: Event) -> np.ndarray:
    """A match minus its prediction, of what it observes (n,)."""
    measured = event.measurement.pose.as_array()
    residual = (measured - match_prediction(known.mean))[event.observed]
    if event.observed[-1] == YAW:
        residual[-1] = wrap_angle(residual[-1])
    return residual


def _extended_way(belief: Belief, residual) -> ResidualWay:
    """The way of the residuals of refused matches, with one more."""
    ahead_m = LOOK_AHEAD_M * residual[2] if len(residual) == 3 else 0.0
    way = belief.match_way or ResidualWay(np.zeros(3), np.zeros(3))
    return way.extended(np.array([*residual[:2], ahead_m]))


def _have_agreed(belief: Belief, stamp_ns: int) -> bool:
    """Whether refused matches have agreed with each other for MATCH_PATIENCE_S.

    While the vehicle stands, matches repeat each other: that they agree says nothing.
    """
    way, since_ns = belief.match_way, belief.match_refused_ns or stamp_ns
    moved_m = max(belief.driven_m - belief.match_driven_m, way.growth_m)
    return (stamp_ns - since_ns >= MATCH_PATIENCE_S * 1e9 and way.agrees and moved_m >= LEAST_M)


def _may_odometry_lie(belief: Belief, have_agreed: bool, fits_doubt: bool) -> bool:
    """Whether refused matches move away straight and evenly, or fit fixes that are refused too.

    ``fits_doubt``: the match lies inside of what those fixes would allow.
    """
    way = belief.match_way
    return (have_agreed and way.is_straight and way.is_even
            or belief.fixes.refused_ns is not None and fits_doubt)


def _tells_the_place(noise: np.ndarray) -> bool:
    """Whether a match speaks for the pose: one that is long says nothing along its axis."""
    planar_m2 = noise[POSITION, POSITION]
    return np.trace(planar_m2) - least_variance(planar_m2) <= PLACE_SIGMA_M**2


def _every_s(belief: Belief) -> float:
    """The mean time between matches, with the one at the belief's stamp."""
    if belief.match_ns is None:
        return math.inf
    passed_s = (belief.stamp_ns - belief.match_ns) * 1e-9
    if belief.match_every_s == math.inf:
        return passed_s
    return belief.match_every_s + (passed_s - belief.match_every_s) / MATCHES


def _follow_distance(belief: Belief, stamp_ns: int, distance2: float) -> Belief:
    """Update the mean squared distance of matches, used or refused; 1 is as their errors say."""
    since_s = (stamp_ns - (belief.match_seen_ns or stamp_ns)) * 1e-9
    mean = followed_distance2(belief.match_distance2, distance2, since_s, MATCH_DISTANCE_S)
    return changed(belief, match_distance2=mean, match_seen_ns=stamp_ns)
