"""How a fix corrects a belief, and when it is refused.

The slow GNSS error is a state (Gauss-Markov).  What is refused, and what follows from it, is
judged in ``gnss_integrity``.
"""

from dataclasses import dataclass
import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import FilterUpdate, GnssFix, MatchErrors, Outcome
from crossview_localizer.fusion.belief import Belief, HeldFix, Memory, PoseEkf
from crossview_localizer.fusion.disbelief import (
    disbelieving_and_wider,
    fails_again,
    remark_on,
    restarted,
)
from crossview_localizer.fusion.doubt import beyond, doubt_of, narrowed, shortened, turned_rad
from crossview_localizer.fusion.event_buffer import Event
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.gnss_integrity import (
    FixHistory,
    FixSeen,
    FixVerdict,
    GATE_PATIENCE_S,
    GATE_PROBABILITY,
    IntegrityMonitor,
)
from crossview_localizer.fusion.heading_initializer import START_YAW_SIGMA_RAD
from crossview_localizer.fusion.lean import Lean
from crossview_localizer.fusion.motion_model import (
    BIAS,
    gnss_jacobian,
    gnss_prediction,
    POSE,
    POSITION,
    slow_sigmas,
    STATES,
    YAW,
)
from crossview_localizer.fusion.published import MATCH_SUPPORT_S
from crossview_localizer.fusion.receiver import Receiver, ReceiverMonitor
from crossview_localizer.fusion.weighting import (
    followed_distance2,
    mahalanobis2,
    raised_to_floor,
)

# A memory (see ``gnss_integrity``) is between once and twice this old.
MEMORY_S = 30.0
# A memory is taken only if the heading is as certain as this.
MEMORY_YAW_SIGMA_RAD = 0.03
# A memory outside this share of its distribution puts the pose in doubt, before the alarm.
MEMORY_DOUBT_PROBABILITY = 0.75
# A receiver holds its position where its fixes stay within HELD_RADIUS_M, and the vehicle has
# driven farther than HELD_M and HELD_SIGMAS of the noise of two fixes, and got away by HELD_M: a
# noisy odometry also drives where it stands.  It then has no news.
HELD_RADIUS_M, HELD_M, HELD_SIGMAS = 0.5, 2.0, 3.0
# Refused fixes widen the variance of the pose by their squared residual and that of the GNSS bias
# by this share of it, up to LARGEST_BIAS_M.
STEPPED_BIAS_SHARE, GROWN_BIAS_SHARE = 4.0, 0.25
LARGEST_BIAS_M = 30.0
# Matches have stopped where none was used for so many times the time between them.
MATCHES_DUE = 2.5
# An odometry that says nothing of it hides a vehicle of this speed, and a turn at this rate.
UNTOLD_MPS, UNTOLD_RADPS = 15.0, 0.2
# The squared distance of fixes is averaged over this time.
FIX_DISTANCE_S = 20.0


@dataclass(frozen=True)
class JudgedFix:
    """A fix, the verdict on it, and what was known when it came."""

    fix: GnssFix
    seen: FixSeen
    jacobian: np.ndarray         # (2, 17), of the fix by the state
    verdict: FixVerdict
    reason: str
    history: FixHistory
    doubt: np.ndarray | None
    matched: bool                # whether matches support the pose
    mean_distance2: float        # of the fixes, with this one


class GnssCorrector:
    """Corrects beliefs by fixes."""

    def __init__(self, config: FilterConfig, errors: MatchErrors):
        self._slow = slow_sigmas(config, errors)
        self._ekf = PoseEkf()
        self._monitor = IntegrityMonitor(config)
        self._receivers = ReceiverMonitor(config)
        self._gate = chdtri(2, 1.0 - GATE_PROBABILITY)
        self._memory_limit = chdtri(2, 1.0 - MEMORY_DOUBT_PROBABILITY)

    def apply(self, belief: Belief, event: Event, bridge_m2) -> tuple[Belief, FilterUpdate]:
        fix = event.measurement
        receiver = self._receivers.believed(belief.receiver, fix)
        white_m2 = raised_to_floor(
            self._receivers.white_part(receiver, event.noise), math.sqrt(receiver.white_m2))
        belief, repeated = _held(_believing(belief, receiver), fix, white_m2)
        if repeated is not None:
            return belief, repeated
        before_m = _offset_m(belief, fix)
        belief, judged = self._judge(belief, fix, white_m2 + bridge_m2)
        belief, update = self._follow(belief, judged)
        receiver = self._receivers.followed(
            receiver, fix, before_m, _offset_m(belief, fix))
        return changed(belief, receiver=receiver), update

    def _judge(self, belief: Belief, fix: GnssFix, noise) -> tuple[Belief, JudgedFix]:
        """The verdict on a fix of this noise (2, 2), and the belief that remembers the fix."""
        jacobian = gnss_jacobian(belief.mean, fix.base_from_antenna_m)
        residual_m = _residual_m(belief, fix)
        history, matched = belief.fixes, _is_matched(belief, belief.fixes.refused_ns)
        seen = FixSeen(
            fix.stamp_ns, np.array([fix.x_m, fix.y_m]), residual_m, noise, belief.driven_m,
            mahalanobis2(residual_m, jacobian, belief.covariance, noise),
            max((mahalanobis2(_residual_m(memory, fix), jacobian, memory.covariance, noise)
                 for memory in belief.memories[:1]), default=0.0))
        verdict, fixes, reason = self._monitor.judge(history, seen, matched)
        mean = belief.fix_distance2
        if history.stamp_ns:
            mean = followed_distance2(
                mean, seen.distance2 / 2.0, _since_last_s(history, fix), FIX_DISTANCE_S)
        judged = JudgedFix(
            fix, seen, jacobian, verdict, reason, history, belief.doubt, matched, mean)
        return changed(belief, fixes=fixes, doubt=None, fix_distance2=mean), judged

    def _follow(self, belief: Belief, judged: JudgedFix) -> tuple[Belief, FilterUpdate]:
        """Do what the verdict says."""
        reason, distance2 = judged.reason, judged.seen.distance2
        match judged.verdict:
            case FixVerdict.DISBELIEVE_ODOMETRY:
                belief = restarted(
                    belief, judged.fix, judged.seen.noise_m2, judged.history, self._slow)
                return belief, FilterUpdate(Outcome.USED, reason, distance2)
            case FixVerdict.REFUSE:
                return (self._doubting_refused(belief, judged),
                        FilterUpdate(Outcome.GATED, reason, distance2))
            case FixVerdict.GO_BACK:
                return (self._gone_back(belief, judged),
                        FilterUpdate(Outcome.GATED, reason, distance2))
            case FixVerdict.WIDEN:
                belief, widened = _widened(belief, judged)
                belief = self._corrected(belief, judged)
                if judged.history.stepped or judged.history.distrusted_ns is not None:
                    belief = changed(belief, memories=())
                reason = f'{widened} widened after {reason}'
            case FixVerdict.USE:
                belief = self._doubting_used(belief, judged)
                if judged.history.stamp_ns:
                    belief = changed(belief, lean=_leaning(belief, judged))
                    reason = reason or remark_on(belief) or belief.lean.text
                belief = _remember(self._corrected(belief, judged))
        return belief, FilterUpdate(Outcome.USED, reason, distance2)

    def _corrected(self, belief: Belief, judged: JudgedFix) -> Belief:
        if belief.match_doubt is not None:
            belief = changed(
                belief, match_doubt=narrowed(belief.match_doubt, _spread_m2(belief, judged)))
        noise = judged.seen.noise_m2 * max(1.0, judged.mean_distance2)
        return changed(
            belief, **self._ekf.corrected(belief, judged.seen.residual_m, judged.jacobian, noise),
            fixed_ns=judged.fix.stamp_ns)

    def _gone_back(self, belief: Belief, judged: JudgedFix) -> Belief:
        """The belief of the memory, in doubt by how far the fix lies from it."""
        older = belief.memories[0]
        offset_m = beyond(
            _residual_m(older, judged.fix), judged.seen.memory_distance2, self._gate)
        return changed(
            belief, mean=older.mean, covariance=older.covariance, memories=(older,),
            doubt=None if judged.matched else _even_doubt(
                offset_m, belief.driven_m - older.driven_m))

    def _doubting_used(self, belief: Belief, judged: JudgedFix) -> Belief:
        """The belief, before its correction, with the doubts that a fix that is used raises."""
        seen, matched = judged.seen, judged.matched
        if not matched and fails_again(belief, judged.mean_distance2):
            belief = disbelieving_and_wider(belief, seen.residual_m)
        if judged.doubt is not None and judged.history.refused_ns is not None and (
                not judged.history.stepped):
            # The fixes that were refused may have been right: this one decides.  Those of a
            # receiver that jumped there and back were not.
            covariance = belief.covariance.copy()
            covariance[POSE, POSE] += judged.doubt
            belief = changed(belief, covariance=covariance)
        limit = self._memory_limit
        if not matched and belief.memories and seen.memory_distance2 > limit:
            older = belief.memories[0]
            offset_m = beyond((older.mean - belief.mean)[POSITION], seen.memory_distance2, limit)
            return changed(
                belief, doubt=_even_doubt(offset_m, belief.driven_m - older.driven_m))
        if _have_matches_stopped(belief) and seen.distance2 > limit:
            return changed(belief, doubt=_doubt_since_match(
                belief, beyond(seen.residual_m, seen.distance2, limit)))
        return belief

    def _doubting_refused(self, belief: Belief, judged: JudgedFix) -> Belief:
        """The belief with the doubt that a refused fix raises.

        One fix is an outlier rather than a contradiction, unless a match will tell soon.
        """
        refused_ns = belief.fixes.refused_ns
        if _is_matched(belief, refused_ns) or (
                not judged.matched and refused_ns == judged.fix.stamp_ns):
            return belief
        return changed(belief, doubt=self._doubt_of_refused(belief, judged))

    def _doubt_of_refused(self, belief: Belief, judged: JudgedFix) -> np.ndarray | None:
        """What a refused fix says against the pose.

        It is no more than the pose may be off by since the last match.  After a jump of GNSS it is
        what the residual has grown by since, and for a while what of the jump may be one of the
        odometry.  The heading stays in doubt until a fix is used.
        """
        seen, first = belief.fixes, belief.fixes.first_refused
        residual = judged.seen.residual_m
        growth_m = residual - first.residual_m
        noise_m = 2.0 * math.sqrt(np.trace(seen.noise_m2 + first.noise_m2) / 2.0)
        distance_m = max(seen.driven_m - first.driven_m,
                         float(np.linalg.norm(seen.position_m - first.position_m)))
        offset_m = shortened(
            beyond(residual, judged.seen.distance2, self._gate), _off_since_match_m(belief))
        if seen.distrusted_ns is not None and seen.stepped:
            length_m = float(np.linalg.norm(growth_m))
            offset_m = growth_m * max(0.0, 1.0 - noise_m / max(length_m, 1e-9))
            if seen.stamp_ns - seen.distrusted_ns < GATE_PATIENCE_S * 1e9:
                offset_m = offset_m + shortened(first.residual_m, seen.stepped_way_m)
        before_rad = 0.0 if judged.doubt is None else math.sqrt(judged.doubt[2, 2])
        doubt = doubt_of(offset_m, max(before_rad, turned_rad(
            float(np.linalg.norm(growth_m)), noise_m, distance_m)))
        if doubt is not None:
            doubt[POSITION, POSITION] += _spread_m2(belief, judged) * (offset_m @ offset_m) / (
                residual @ residual)
        return doubt


def _since_last_s(history: FixHistory, fix: GnssFix) -> float:
    return (fix.stamp_ns - history.stamp_ns) * 1e-9


def _spread_m2(belief: Belief, judged: JudgedFix) -> np.ndarray:
    """The covariance (2, 2) of the residual of a fix by a belief."""
    jacobian = judged.jacobian
    return jacobian @ belief.covariance @ jacobian.T + judged.seen.noise_m2


def _leaning(belief: Belief, judged: JudgedFix) -> Lean:
    """How the residuals of fixes lean, with this one; matches end it."""
    if judged.matched:
        return Lean()
    return belief.lean.followed(
        judged.seen.residual_m, _spread_m2(belief, judged),
        _since_last_s(judged.history, judged.fix), belief.mean[YAW])


def _residual_m(known: Belief | Memory, fix: GnssFix) -> np.ndarray:
    return np.array([fix.x_m, fix.y_m]) - gnss_prediction(known.mean, fix.base_from_antenna_m)


def _offset_m(belief: Belief, fix: GnssFix) -> np.ndarray:
    """How far (2,) a fix lies from the antenna of the pose, which is its whole error."""
    return _residual_m(belief, fix) + belief.mean[BIAS]


def _believing(belief: Belief, receiver: Receiver) -> Belief:
    """The belief with a receiver; where it has become worse its bias is as uncertain at once."""
    grown_m2 = receiver.wander_m2 - belief.receiver.wander_m2
    covariance = belief.covariance
    if grown_m2 > 0.0:
        variances = np.diag(covariance)[BIAS]
        added = np.zeros(STATES)
        added[BIAS] = np.clip(receiver.wander_m2 - variances, 0.0, grown_m2)
        covariance = covariance + np.diag(added)
    return changed(belief, receiver=receiver, covariance=covariance)


# theta = 2 |d| / s      a heading that goes wrong evenly over the distance s
def _even_doubt(offset_m: np.ndarray, distance_m: float) -> np.ndarray | None:
    """What an offset that has grown over a distance says against position and heading."""
    return doubt_of(offset_m, 2.0 * turned_rad(math.hypot(*offset_m), 0.0, distance_m))


def _held(belief: Belief, fix: GnssFix, noise) -> tuple[Belief, FilterUpdate | None]:
    """Follow where the receiver holds its position; the update of a fix that is no news."""
    position_m, pose_m = (fix.x_m, fix.y_m), tuple(belief.mean[POSITION].tolist())
    first, last_m = belief.held, belief.fixes.position_m
    if first is None or math.dist(position_m, first.position_m) > HELD_RADIUS_M:
        first = HeldFix(fix.stamp_ns, position_m, belief.driven_m, pose_m)
        belief = changed(belief, held=first)
    driven_m = belief.driven_m - first.driven_m
    is_away = math.dist(pose_m, first.pose_m) > HELD_M
    moved = is_away and driven_m > HELD_M + HELD_SIGMAS * math.sqrt(noise[0, 0] + noise[1, 1])
    if not moved and (last_m is None or tuple(last_m.tolist()) != position_m):
        return belief, None
    reason = ''
    if is_away and driven_m > HELD_M:
        held_s = (fix.stamp_ns - first.stamp_ns) * 1e-9
        reason = f'the receiver repeats it for {held_s:.0f} s and {driven_m:.0f} m of driving'
    return belief, FilterUpdate(Outcome.REPEATED, reason)


def _is_matched(belief: Belief, refused_ns: int | None) -> bool:
    """Whether matches support the pose against fixes that have been refused since a stamp.

    One was used lately, none has been refused after it, and since then one contradicted a fix.
    """
    return (_was_matched(belief) and belief.match_refused_ns is None
            and (refused_ns is None or belief.denied_ns >= refused_ns))


def _was_matched(belief: Belief) -> bool:
    """Whether a match was used lately."""
    return (belief.match_ns is not None
            and belief.stamp_ns - belief.match_ns <= MATCH_SUPPORT_S * 1e9)


def _have_matches_stopped(belief: Belief) -> bool:
    """Whether matches were used lately, and have been due for a while."""
    return _was_matched(belief) and (
        belief.stamp_ns - belief.match_ns > MATCHES_DUE * belief.match_every_s * 1e9)


def _off_since_match_m(belief: Belief) -> float:
    """How far the pose may be off by the motion since the last match; inf without one."""
    if not _was_matched(belief):
        return math.inf
    passed_s = (belief.stamp_ns - belief.match_ns) * 1e-9
    return max(belief.driven_m - belief.match_driven_m, UNTOLD_MPS * passed_s)


def _doubt_since_match(belief: Belief, residual_m: np.ndarray) -> np.ndarray | None:
    """What a residual (2,) says against the pose if it has grown since the last match."""
    offset_m = shortened(residual_m, _off_since_match_m(belief))
    doubt = _even_doubt(offset_m, belief.driven_m - belief.match_driven_m)
    if doubt is not None:
        most_rad = UNTOLD_RADPS * (belief.stamp_ns - belief.match_ns) * 1e-9
        doubt[YAW, YAW] = min(doubt[YAW, YAW], most_rad**2)
    return doubt


def _widened(belief: Belief, judged: JudgedFix) -> tuple[Belief, str]:
    """Widen what may explain the refused fixes, and name it.

    It is the GNSS bias if matches were used lately.  Else it is both, the pose more than the bias
    where the residual has grown, and less where it came by a step, which is no error of odometry.
    """
    residual_m2 = float(judged.seen.residual_m @ judged.seen.residual_m)
    matched_s = (
        math.inf if belief.match_ns is None else (belief.stamp_ns - belief.match_ns) * 1e-9)
    added = np.zeros(STATES)
    if matched_s < GATE_PATIENCE_S:
        name = 'GNSS bias'
        added[BIAS] = residual_m2
    else:
        name = 'pose'
        added[POSITION] = residual_m2
        added[YAW] = max(
            START_YAW_SIGMA_RAD**2, 0.0 if judged.doubt is None else judged.doubt[YAW, YAW])
        share = STEPPED_BIAS_SHARE if judged.history.stepped else GROWN_BIAS_SHARE
        added[BIAS] = min(share * residual_m2, LARGEST_BIAS_M**2)
    return changed(belief, covariance=belief.covariance + np.diag(added)), name


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
