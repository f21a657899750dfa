"""How fixes, courses and matches correct a belief, and when they are refused.

Errors that are correlated in time are treated in two ways.  The slow GNSS error is a state
(Gauss-Markov).  A match soon after another one sees the same scene: its covariance is divided by
the share of the correlation length that has passed since.  The same holds for courses, with
COURSE_CORRELATION_S.
Matches have heavy tails: the farther one lies from the prediction, the less it counts (Student
t), up to the gate.
"""

from dataclasses import replace
import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    FilterUpdate,
    GnssCourse,
    GnssFix,
    MatchErrors,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.belief import Belief, Memory, PoseEkf
from crossview_localizer.fusion.event_buffer import Event
from crossview_localizer.fusion.gnss_integrity import (
    FixVerdict,
    GATE_PATIENCE_S,
    GATE_PROBABILITY,
    IntegrityMonitor,
)
from crossview_localizer.fusion.heading_initializer import START_YAW_SIGMA_RAD
from crossview_localizer.fusion.motion_model import (
    BIAS,
    gnss_jacobian,
    gnss_prediction,
    mahalanobis2,
    POSE,
    POSITION,
    SPEED,
    STATES,
    tail_weight,
    YAW,
)
from crossview_localizer.geometry import wrap_angle

# Courses are late by about this time; the turn in that time is added to their sigma.
COURSE_DELAY_S = 0.3
# Courses closer in time than this share their errors: their information is scaled.
COURSE_CORRELATION_S = 1.0
# A memory (see ``gnss_integrity``) is between once and twice this old.
MEMORY_S = 30.0
# A memory is taken only if the heading is as certain as this.
MEMORY_YAW_SIGMA_RAD = 0.03
# Matches outside this share of the predicted distribution are refused.
MATCH_GATE_PROBABILITY = 0.99
# Degrees of freedom of the Student t distribution of the errors of matches.
MATCH_TAIL_DOF = 4.0
# The squared distance of matches is averaged over this time.  A mean above one for each coordinate
# multiplies their covariance.
MATCH_DISTANCE_S = 5.0
# A single match adds at most this squared distance to the mean.
MAX_DISTANCE2 = 25.0


class Corrector:
    """Corrects beliefs by measurements at their stamp."""

    def __init__(self, config: FilterConfig, errors: MatchErrors):
        self._config, self._errors = config, errors
        self._ekf = PoseEkf()
        self._monitor = IntegrityMonitor(config)
        self._course_gate = chdtri(1, 1.0 - GATE_PROBABILITY)
        self._match_gates = [
            chdtri(dof, 1.0 - MATCH_GATE_PROBABILITY) for dof in (1, 2, 3)]

    def apply(self, belief: Belief, event: Event,
              bridge_m2: np.ndarray) -> tuple[Belief, FilterUpdate]:
        """Correct a belief of the event's stamp.

        ``bridge_m2`` (2, 2) is the variance of a position inside a gap of the odometry.
        """
        match event.measurement:
            case GnssFix():
                return self._apply_gnss(belief, event, bridge_m2)
            case PoseEstimate():
                return self._apply_match(belief, event, bridge_m2)
            case GnssCourse():
                return self._apply_course(belief, event)
        return replace(belief, moved_ns=event.stamp_ns), FilterUpdate(Outcome.USED)

    # --- GNSS

    def _apply_gnss(self, belief: Belief, event: Event, bridge_m2) -> tuple[Belief, FilterUpdate]:
        fix = event.measurement
        jacobian = gnss_jacobian(belief.mean, fix.base_from_antenna_m)
        noise = event.noise + bridge_m2

        def residual_of(known):
            predicted_m = gnss_prediction(known.mean, fix.base_from_antenna_m)
            return np.array([fix.x_m, fix.y_m]) - predicted_m

        residual = residual_of(belief)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        memory_distance2 = max((
            mahalanobis2(residual_of(memory), jacobian, memory.covariance, noise)
            for memory in belief.memories[:1]), default=0.0)
        verdict, history, reason = self._monitor.judge(
            belief.fixes, fix.stamp_ns, residual, noise, belief.driven_m, distance2,
            memory_distance2)
        belief = replace(belief, fixes=history)
        if verdict is FixVerdict.REFUSE:
            return belief, FilterUpdate(Outcome.GATED, reason, distance2)
        if verdict is FixVerdict.GO_BACK:
            older = belief.memories[0]
            belief = replace(
                belief, mean=older.mean, covariance=older.covariance, memories=(older,))
            return belief, FilterUpdate(Outcome.GATED, reason, distance2)
        if verdict is FixVerdict.WIDEN:
            belief, widened = _widened(belief, float(residual @ residual))
            reason = f'{widened} widened after {reason}'
        belief = replace(
            belief, **self._ekf.corrected(belief, residual, jacobian, noise),
            fixed_ns=fix.stamp_ns)
        belief = replace(belief, memories=()) if verdict is FixVerdict.WIDEN else _remember(belief)
        return belief, FilterUpdate(Outcome.USED, reason, distance2)

    def _apply_course(self, belief: Belief, event: Event) -> tuple[Belief, FilterUpdate]:
        course = event.measurement
        lever_x_m, lever_y_m = course.base_from_antenna_m
        _, side_mps, turn_radps = belief.velocity
        ahead_mps = belief.mean[SPEED] - turn_radps * lever_y_m
        if ahead_mps < self._config.course_min_speed_mps:
            return belief, FilterUpdate(
                Outcome.TOO_SLOW, f'{ahead_mps:.1f} m/s; expected at least '
                f'{self._config.course_min_speed_mps:.1f} m/s')
        slip_rad = math.atan2(side_mps + turn_radps * lever_x_m, ahead_mps)
        residual = np.array([wrap_angle(course.course_rad - belief.mean[YAW] - slip_rad)])
        jacobian = np.eye(STATES)[[YAW]]
        noise = event.noise + (turn_radps * COURSE_DELAY_S) ** 2
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        if distance2 > self._course_gate or belief.fixes.distrusted_ns is not None:
            return belief, FilterUpdate(Outcome.GATED, 'course refused', distance2)
        share = 1.0
        if belief.course_ns is not None:
            passed_s = (course.stamp_ns - belief.course_ns) * 1e-9
            share = min(1.0, passed_s / COURSE_CORRELATION_S)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second course of the same instant', distance2)
        corrected = self._ekf.corrected(belief, residual, jacobian, noise / share)
        return (replace(belief, **corrected, course_ns=course.stamp_ns),
                FilterUpdate(Outcome.USED, '', distance2))

    # --- matches

    def _apply_match(self, belief: Belief, event: Event, bridge_m2) -> tuple[Belief, FilterUpdate]:
        jacobian = np.eye(STATES)[event.observed]
        noise = event.noise.copy()
        observes_position = event.observed[:2].tolist() == [0, 1]
        if observes_position:
            noise[POSITION, POSITION] += bridge_m2

        def residual_of(known):
            residual = (event.measurement.pose.as_array() - known.mean[POSE])[event.observed]
            if event.observed[-1] == YAW:
                residual[-1] = wrap_angle(residual[-1])
            return residual

        residual = residual_of(belief)
        size = len(residual)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        belief = _follow_distance(belief, event.stamp_ns, distance2 / size)
        if distance2 > self._match_gates[size - 1]:
            since_ns = belief.match_refused_ns or event.stamp_ns
            reason = f'refused for {(event.stamp_ns - since_ns) * 1e-9:.1f} s'
            if belief.fixes.refused_ns is not None:
                reason += '; GNSS is refused too'
            return (
                replace(belief, match_refused_ns=since_ns),
                FilterUpdate(Outcome.GATED, reason, distance2))
        share = self._new_information(belief)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second match of the same instant', distance2)
        share *= tail_weight(distance2, size, MATCH_TAIL_DOF)
        share /= max(1.0, belief.match_distance2)
        belief = replace(
            belief, **self._ekf.corrected(belief, residual, jacobian, noise / share),
            memories=tuple(
                replace(memory, **self._ekf.corrected(
                    memory, residual_of(memory), jacobian, noise / share))
                for memory in belief.memories),
            match_ns=event.stamp_ns, match_driven_m=belief.driven_m, match_refused_ns=None)
        if observes_position:
            belief = replace(belief, fixed_ns=event.stamp_ns)
        return belief, FilterUpdate(Outcome.USED, '', distance2)

    def _new_information(self, belief: Belief) -> float:
        """Share (0 to 1) of the information of a match that is not in the last used match."""
        if belief.match_ns is None:
            return 1.0
        driven_m = belief.driven_m - belief.match_driven_m
        passed_s = (belief.stamp_ns - belief.match_ns) * 1e-9
        shares = [
            passed / length if length > 0.0 else 1.0
            for passed, length in ((driven_m, self._errors.correlation_m),
                                   (passed_s, self._errors.correlation_s))]
        return min(1.0, max(shares))


def _widened(belief: Belief, residual_m2: float) -> tuple[Belief, str]:
    """Widen what may explain the refused fixes, and name it.

    It is the GNSS bias if matches were used lately, else the pose.
    """
    matched_s = (
        math.inf if belief.match_ns is None else (belief.stamp_ns - belief.match_ns) * 1e-9)
    added = np.zeros(STATES)
    if matched_s < GATE_PATIENCE_S:
        name = 'GNSS bias'
        added[BIAS] = residual_m2
    else:
        name = 'pose'
        added[POSITION] = residual_m2
        added[YAW] = START_YAW_SIGMA_RAD**2
    return replace(belief, covariance=belief.covariance + np.diag(added)), name


def _remember(belief: Belief) -> Belief:
    """Replace the older memory by what is known now, if MEMORY_S have passed since the newer.

    The heading must be certain.
    """
    settled = belief.covariance[YAW, YAW] < MEMORY_YAW_SIGMA_RAD**2
    if not settled or (
            belief.memories and belief.stamp_ns - belief.memories[-1].taken_ns < MEMORY_S * 1e9):
        return belief
    now = Memory(belief.stamp_ns, belief.mean, belief.covariance)
    return replace(belief, memories=(*belief.memories[-1:], now))


def _follow_distance(belief: Belief, stamp_ns: int, distance2: float) -> Belief:
    """Update the mean squared distance of matches, used or refused; 1 is as their errors say."""
    since_s = (stamp_ns - (belief.match_seen_ns or stamp_ns)) * 1e-9
    keep = math.exp(-since_s / MATCH_DISTANCE_S)
    mean = keep * belief.match_distance2 + (1.0 - keep) * min(distance2, MAX_DISTANCE2)
    return replace(belief, match_distance2=mean, match_seen_ns=stamp_ns)
