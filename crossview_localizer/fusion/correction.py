"""How fixes, courses and matches correct a belief, and when they are refused.

Errors that are correlated in time are treated in two ways.  The slow GNSS error is a state
(Gauss-Markov).  A match soon after another one sees the same scene: its covariance is divided by
the share of the correlation length that has passed since.  The same holds for courses, with
COURSE_CORRELATION_S.
Matches have heavy tails: the farther one lies from the prediction, the less it counts (Student
t), up to the gate.
"""

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
from crossview_localizer.fusion.belief import Belief, HeldFix, Memory, PoseEkf
from crossview_localizer.fusion.doubt import beyond, doubt_of, turned_rad
from crossview_localizer.fusion.event_buffer import Event
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.gnss_integrity import (
    FixHistory,
    FixSeen,
    FixVerdict,
    GATE_PATIENCE_S,
    GATE_PROBABILITY,
    IntegrityMonitor,
    LIE_SHARE,
    LIE_SIGMAS,
    ODOMETRY_LIES,
    ResidualWay,
)
from crossview_localizer.fusion.heading_initializer import START_YAW_SIGMA_RAD
from crossview_localizer.fusion.lean import Lean
from crossview_localizer.fusion.motion_model import (
    BIAS,
    gnss_jacobian,
    gnss_prediction,
    mahalanobis2,
    MATCH_BIASES,
    match_jacobian,
    match_prediction,
    POSE,
    POSITION,
    rotation,
    SCALE,
    slow_sigmas,
    SPEED,
    STATES,
    tail_weight,
    TURN_BIAS,
    YAW,
)
from crossview_localizer.fusion.prediction import is_disbelieved
from crossview_localizer.fusion.published import MATCH_SUPPORT_S
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
MATCH_DISTANCE_S = 3.0
# Matches that have been refused for so long are right if they are within so many sigmas of the
# GNSS bias.
MATCH_PATIENCE_S = 2.0
MATCH_PATIENCE_SIGMAS = 3.0
# An error of the heading counts as that of a point so far ahead.
LOOK_AHEAD_M = 10.0
# A share of the distance is that of at least this distance.
LEAST_M = 5.0
# A receiver holds its position where its fixes stay within HELD_RADIUS_M, and the vehicle has
# driven farther than HELD_M and HELD_SIGMAS of the noise of two fixes, and got away by HELD_M: a
# noisy odometry also drives where it stands.  It then has no news.
HELD_RADIUS_M, HELD_M, HELD_SIGMAS = 0.5, 2.0, 3.0
# A memory outside this share of its distribution puts the pose in doubt, before the alarm.
MEMORY_DOUBT_PROBABILITY = 0.75
# Refused fixes widen the variance of the pose by their squared residual and that of the GNSS bias
# by this share of it, up to LARGEST_BIAS_M.
STEPPED_BIAS_SHARE, GROWN_BIAS_SHARE = 4.0, 0.25
LARGEST_BIAS_M = 30.0
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
# That of fixes is averaged over this time.
FIX_DISTANCE_S = 20.0
# A single fix or match adds at most this squared distance to the mean.
MAX_DISTANCE2 = 25.0


class Corrector:
    """Corrects beliefs by measurements at their stamp."""

    def __init__(self, config: FilterConfig, errors: MatchErrors):
        self._config, self._errors = config, errors
        self._slow = slow_sigmas(config, errors)
        self._ekf = PoseEkf()
        self._monitor = IntegrityMonitor(config)
        self._course_gate = chdtri(1, 1.0 - GATE_PROBABILITY)
        self._fix_gate = chdtri(2, 1.0 - GATE_PROBABILITY)
        self._memory_limit = chdtri(2, 1.0 - MEMORY_DOUBT_PROBABILITY)
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
        if is_disbelieved(belief) or belief.moved_ns == event.stamp_ns:
            return belief, FilterUpdate(Outcome.USED)
        return changed(belief, moved_ns=event.stamp_ns), FilterUpdate(Outcome.USED)

    # --- GNSS

    def _apply_gnss(self, belief: Belief, event: Event, bridge_m2) -> tuple[Belief, FilterUpdate]:
        fix = event.measurement
        jacobian = gnss_jacobian(belief.mean, fix.base_from_antenna_m)
        noise = event.noise + bridge_m2

        def residual_of(known):
            predicted_m = gnss_prediction(known.mean, fix.base_from_antenna_m)
            return np.array([fix.x_m, fix.y_m]) - predicted_m

        history, matched = belief.fixes, _is_matched(belief)
        position_m = np.array([fix.x_m, fix.y_m])
        belief, repeated = _held(belief, fix, event.noise)
        if repeated is not None:
            return belief, repeated
        residual = residual_of(belief)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        memory_distance2 = max((
            mahalanobis2(residual_of(memory), jacobian, memory.covariance, noise)
            for memory in belief.memories[:1]), default=0.0)
        verdict, seen, reason = self._monitor.judge(
            history, FixSeen(fix.stamp_ns, position_m, residual, noise, belief.driven_m,
                             distance2, memory_distance2), matched)
        mean = belief.fix_distance2
        if history.stamp_ns:
            passed_s = (fix.stamp_ns - history.stamp_ns) * 1e-9
            mean = _followed(mean, distance2 / 2.0, passed_s, FIX_DISTANCE_S)
        doubt_before, belief = belief.doubt, changed(
            belief, fixes=seen, doubt=None, fix_distance2=mean)
        if verdict is FixVerdict.DISBELIEVE_ODOMETRY:
            return (_restarted(belief, fix, noise, history, self._slow),
                    FilterUpdate(Outcome.USED, reason, distance2))
        if verdict is FixVerdict.REFUSE:
            # A single fix is an outlier rather than a contradiction.
            if not matched and seen.refused_ns != fix.stamp_ns:
                belief = changed(belief, doubt=self._doubt_of_refused(
                    seen, residual, distance2, doubt_before))
            return belief, FilterUpdate(Outcome.GATED, reason, distance2)
        if verdict is FixVerdict.GO_BACK:
            older = belief.memories[0]
            offset_m = beyond(residual_of(older), memory_distance2, self._fix_gate)
            belief = changed(
                belief, mean=older.mean, covariance=older.covariance, memories=(older,),
                doubt=None if matched else _memory_doubt(older, offset_m, belief.driven_m))
            return belief, FilterUpdate(Outcome.GATED, reason, distance2)
        if verdict is FixVerdict.USE and not matched and _fails_again(belief, mean):
            belief = _disbelieving_and_wider(belief, residual)
        if verdict is FixVerdict.USE and history.refused_ns is not None and (
                doubt_before is not None):
            # The fixes that were refused may have been right: this one decides.
            covariance = belief.covariance.copy()
            covariance[POSE, POSE] += doubt_before
            belief = changed(belief, covariance=covariance)
        if verdict is FixVerdict.WIDEN:
            belief, widened = _widened(
                belief, float(residual @ residual), history.stepped, doubt_before)
            reason = f'{widened} widened after {reason}'
        elif not matched and belief.memories:
            offset_m = (belief.memories[0].mean - belief.mean)[POSITION]
            belief = changed(belief, doubt=_memory_doubt(
                belief.memories[0], beyond(offset_m, memory_distance2, self._memory_limit),
                belief.driven_m))
        if verdict is FixVerdict.USE and history.stamp_ns:
            belief = changed(belief, lean=Lean() if matched else belief.lean.followed(
                residual, jacobian @ belief.covariance @ jacobian.T + noise, passed_s,
                belief.mean[YAW]))
            reason = reason or belief.lean.text
        noise = noise * max(1.0, mean)
        belief = changed(
            belief, **self._ekf.corrected(belief, residual, jacobian, noise),
            fixed_ns=fix.stamp_ns)
        if verdict is FixVerdict.WIDEN and (history.stepped or history.distrusted_ns is not None):
            belief = changed(belief, memories=())
        elif verdict is FixVerdict.USE:
            belief = _remember(belief)
        return belief, FilterUpdate(Outcome.USED, reason, distance2)

    def _doubt_of_refused(self, seen: FixHistory, residual, distance2: float,
                          doubt_before: np.ndarray | None) -> np.ndarray | None:
        """What a refused fix says against the pose.

        After a jump of GNSS it is only what the residual has grown by since.  The heading stays
        in doubt until a fix is used.
        """
        first = seen.first_refused
        growth_m = residual - first.residual_m
        noise_m = 2.0 * math.sqrt(np.trace(seen.noise_m2 + first.noise_m2) / 2.0)
        distance_m = max(seen.driven_m - first.driven_m,
                         float(np.linalg.norm(seen.position_m - first.position_m)))
        offset_m = beyond(residual, distance2, self._fix_gate)
        if seen.distrusted_ns is not None and seen.stepped:
            length_m = float(np.linalg.norm(growth_m))
            offset_m = growth_m * max(0.0, 1.0 - noise_m / max(length_m, 1e-9))
        before_rad = 0.0 if doubt_before is None else math.sqrt(doubt_before[2, 2])
        return doubt_of(offset_m, max(before_rad, turned_rad(
            float(np.linalg.norm(growth_m)), noise_m, distance_m)))

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
        return (changed(belief, **corrected, course_ns=course.stamp_ns),
                FilterUpdate(Outcome.USED, '', distance2))

    # --- matches

    def _apply_match(self, belief: Belief, event: Event, bridge_m2) -> tuple[Belief, FilterUpdate]:
        noise = event.noise.copy()
        measured = event.measurement.pose.as_array()
        observes_position = event.observed[:2].tolist() == [0, 1]
        if observes_position:
            noise[POSITION, POSITION] += bridge_m2

        def jacobian_of(known):
            return match_jacobian(known.mean)[event.observed]

        def residual_of(known):
            residual = (measured - match_prediction(known.mean))[event.observed]
            if event.observed[-1] == YAW:
                residual[-1] = wrap_angle(residual[-1])
            return residual

        residual, jacobian = residual_of(belief), jacobian_of(belief)
        size = len(residual)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        belief = _follow_distance(belief, event.stamp_ns, distance2 / size)
        if observes_position and _fails_again(belief, belief.match_distance2):
            belief = _disbelieving_and_wider(belief, residual[:2])
            distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        gate = self._match_gates[size - 1]
        since_ns = belief.match_refused_ns or event.stamp_ns
        if distance2 > gate and observes_position:
            ahead_m = LOOK_AHEAD_M * residual[2] if size == 3 else 0.0
            way = (belief.match_way or ResidualWay(np.zeros(3), np.zeros(3))).extended(
                np.array([*residual[:2], ahead_m]))
            belief = changed(belief, match_way=way)
            patient = event.stamp_ns - since_ns >= MATCH_PATIENCE_S * 1e9 and way.agrees
            doubtful = self._doubted(belief, residual, event, patient)
            doubtful_distance2 = mahalanobis2(residual, jacobian, doubtful.covariance, noise)
            agrees_with_fixes = belief.fixes.refused_ns is not None and doubtful_distance2 <= gate
            is_lie = patient and way.is_straight and way.is_even
            if (is_lie or agrees_with_fixes) and _is_share_of_distance(
                    belief, residual, noise):
                return (_restarted_at_match(belief, event, residual, noise, self._slow),
                        FilterUpdate(Outcome.USED, ODOMETRY_LIES, distance2))
            if doubtful_distance2 <= gate:
                belief, distance2 = changed(doubtful, memories=()), doubtful_distance2
        if distance2 > gate:
            reason = f'refused for {(event.stamp_ns - since_ns) * 1e-9:.1f} s'
            if belief.fixes.refused_ns is not None:
                reason += '; GNSS is refused too'
            return (
                changed(belief, match_refused_ns=since_ns),
                FilterUpdate(Outcome.GATED, reason, distance2))
        share = self._new_information(belief)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second match of the same instant', distance2)
        share *= tail_weight(distance2, size, MATCH_TAIL_DOF)
        share /= max(1.0, belief.match_distance2)
        belief = changed(
            belief, **self._ekf.corrected(belief, residual, jacobian, noise / share),
            memories=tuple(
                changed(memory, **self._ekf.corrected(
                    memory, residual_of(memory), jacobian_of(memory), noise / share))
                for memory in belief.memories),
            match_ns=event.stamp_ns, match_driven_m=belief.driven_m, match_refused_ns=None,
            match_way=None)
        if observes_position:
            belief = changed(belief, fixed_ns=event.stamp_ns, doubt=None)
        return belief, FilterUpdate(Outcome.USED, '', distance2)

    def _doubted(self, belief: Belief, residual, event: Event, patient: bool) -> Belief:
        """The belief as wide as the fixes that contradict it, or these matches, would have it.

        Matches that agree, that have been refused for MATCH_PATIENCE_S, and that GNSS allows, are
        right; then the scale and the yaw-rate bias of the odometry are in doubt too.
        """
        covariance = belief.covariance.copy()
        if belief.doubt is not None:
            covariance[POSE, POSE] += belief.doubt
        off_m = float(np.linalg.norm(residual[:2]))
        if patient and off_m <= MATCH_PATIENCE_SIGMAS * self._config.gnss_bias_sigma_m:
            added = np.zeros(STATES)
            added[event.observed] = residual**2
            added[SCALE] = (off_m / max(belief.driven_m - belief.match_driven_m, LEAST_M)) ** 2
            if event.observed[-1] == YAW and belief.match_ns is not None:
                passed_s = (event.stamp_ns - belief.match_ns) * 1e-9
                added[TURN_BIAS] = (residual[-1] / max(passed_s, 1.0)) ** 2
            covariance += np.diag(added)
        return changed(belief, covariance=covariance)

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


# theta = 2 |d| / s      a heading that goes wrong evenly over the distance s
def _memory_doubt(memory: Memory, offset_m: np.ndarray, driven_m: float) -> np.ndarray | None:
    """What the offset of the pose from a memory says against its position and heading."""
    return doubt_of(offset_m, 2.0 * turned_rad(
        float(np.linalg.norm(offset_m)), 0.0, driven_m - memory.driven_m))


def _held(belief: Belief, fix: GnssFix, noise) -> tuple[Belief, FilterUpdate | None]:
    """Follow where the receiver holds its position; the update of a fix that is no news."""
    position_m, first = np.array([fix.x_m, fix.y_m]), belief.held
    if first is None or np.linalg.norm(position_m - first.position_m) > HELD_RADIUS_M:
        first = HeldFix(fix.stamp_ns, position_m, belief.driven_m, belief.mean[POSITION])
    driven_m = belief.driven_m - first.driven_m
    is_away = np.linalg.norm(belief.mean[POSITION] - first.pose_m) > HELD_M
    belief, last_m = changed(belief, held=first), belief.fixes.position_m
    moved = is_away and driven_m > HELD_M + HELD_SIGMAS * math.sqrt(np.trace(noise))
    if not moved and (last_m is None or (last_m != position_m).any()):
        return belief, None
    reason = ''
    if is_away and driven_m > HELD_M:
        held_s = (fix.stamp_ns - first.stamp_ns) * 1e-9
        reason = f'the receiver repeats it for {held_s:.0f} s and {driven_m:.0f} m of driving'
    return belief, FilterUpdate(Outcome.REPEATED, reason)


def _is_matched(belief: Belief) -> bool:
    """Whether matches support the pose: one was used lately, and none has been refused since."""
    return (belief.match_ns is not None and belief.match_refused_ns is None
            and belief.stamp_ns - belief.match_ns <= MATCH_SUPPORT_S * 1e9)


def _widened(belief: Belief, residual_m2: float, stepped: bool,
             doubt: np.ndarray | None) -> tuple[Belief, str]:
    """Widen what may explain the refused fixes, and name it.

    It is the GNSS bias if matches were used lately.  Else it is both, the pose more than the bias
    where the residual has grown, and less where it came by a step, which is no error of odometry.
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
        added[YAW] = max(START_YAW_SIGMA_RAD**2, 0.0 if doubt is None else doubt[YAW, YAW])
        share = STEPPED_BIAS_SHARE if stepped else GROWN_BIAS_SHARE
        added[BIAS] = min(share * residual_m2, LARGEST_BIAS_M**2)
    return changed(belief, covariance=belief.covariance + np.diag(added)), name


# p = z - R(yaw) l - b,  var(p) = W + var(b),  cov(p, b) = -var(b)
def _restarted(
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
def _restarted_at_match(
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


def _with_unknown_odometry(belief: Belief, slow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a start that keeps nothing but the pose and what matches are off.

    The pose is without a covariance; ``slow`` (13,) as in ``slow_sigmas``.
    """
    mean, covariance = belief.mean.copy(), np.diag(slow**2)
    mean[SCALE] = mean[TURN_BIAS] = 0.0
    mean[BIAS] = 0.0
    covariance[MATCH_BIASES, MATCH_BIASES] = belief.covariance[MATCH_BIASES, MATCH_BIASES]
    return mean, covariance


def _disbelieving(belief: Belief, stamp_ns: int) -> Belief:
    """The same belief at its start again, which does not believe the odometry for a while."""
    again = stamp_ns - belief.disbelieved_until_ns < DISBELIEF_MEMORY_S * 1e9
    times = belief.disbelieved_times + 1 if again else 1
    disbelief_s = min(DISBELIEF_S * 2 ** (times - 1), LONGEST_DISBELIEF_S)
    return changed(
        belief, memories=(), fixed_ns=stamp_ns, velocity=(float(belief.mean[SPEED]), 0.0, 0.0),
        fixes=FixHistory(stamp_ns), fix_distance2=1.0, lean=Lean(), match_refused_ns=None,
        match_way=None,
        match_distance2=1.0, doubt=None, disbelieved_times=times,
        disbelieved_until_ns=stamp_ns + round(disbelief_s * 1e9))


def _fails_again(belief: Belief, distance2: float) -> bool:
    """Whether odometry that was not believed until lately is contradicted again.

    ``distance2`` is the mean squared distance of fixes or matches, 1 where all is well.
    """
    since_s = (belief.stamp_ns - belief.disbelieved_until_ns) * 1e-9
    return 0.0 <= since_s < DISBELIEF_MEMORY_S and distance2 > AGAIN_DISTANCE2


def _disbelieving_and_wider(belief: Belief, residual_m: np.ndarray) -> Belief:
    added = np.zeros(STATES)
    added[POSITION] = residual_m**2
    added[YAW], added[SPEED] = RESTART_YAW_SIGMA_RAD**2, RESTART_SPEED_SIGMA_MPS**2
    return _disbelieving(
        changed(belief, covariance=belief.covariance + np.diag(added)), belief.stamp_ns)


# |r| > share * s + sigmas * sqrt(tr(W) / 2)      s: driven since the last used match
def _is_share_of_distance(belief: Belief, residual, noise) -> bool:
    """Whether a match is farther off than sound odometry can be since the last one."""
    if belief.match_ns is None:
        return False
    driven_m = max(belief.driven_m - belief.match_driven_m, LEAST_M)
    noise_m = math.sqrt(np.trace(noise[POSITION, POSITION]) / 2.0)
    return np.linalg.norm(residual[:2]) > LIE_SHARE * driven_m + LIE_SIGMAS * noise_m


def _remember(belief: Belief) -> Belief:
    """Replace the older memory by what is known now, if MEMORY_S have passed since the newer.

    The heading must be certain.
    """
    settled = belief.covariance[YAW, YAW] < MEMORY_YAW_SIGMA_RAD**2
    if not settled or (
            belief.memories and belief.stamp_ns - belief.memories[-1].taken_ns < MEMORY_S * 1e9):
        return belief
    now = Memory(belief.stamp_ns, belief.mean, belief.covariance, belief.driven_m)
    return changed(belief, memories=(*belief.memories[-1:], now))


def _follow_distance(belief: Belief, stamp_ns: int, distance2: float) -> Belief:
    """Update the mean squared distance of matches, used or refused; 1 is as their errors say."""
    since_s = (stamp_ns - (belief.match_seen_ns or stamp_ns)) * 1e-9
    mean = _followed(belief.match_distance2, distance2, since_s, MATCH_DISTANCE_S)
    return changed(belief, match_distance2=mean, match_seen_ns=stamp_ns)


def _followed(mean: float, distance2: float, passed_s: float, memory_s: float) -> float:
    """The mean squared distance of the last ``memory_s``, with a new one."""
    keep = math.exp(-passed_s / memory_s)
    return keep * mean + (1.0 - keep) * min(distance2, MAX_DISTANCE2)
