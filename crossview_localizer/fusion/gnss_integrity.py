"""Whether a GNSS fix is used, and whether GNSS as a whole can be trusted.

There are three tests of GNSS.  Each compares a squared Mahalanobis distance with a limit:

- Gate: the fix against the prediction of the filter.
- Step: the residual of the fix against the residual of the fix before it.  A wrong pose makes
  residuals large, but not suddenly.  A receiver that jumps, or is spoofed, makes a sudden step.
- Memory: the fix against what the filter knew half a minute to a minute ago, moved on by odometry
  and matches alone.  It shows a drift that the filter follows step by step.

A fix outside the gate is refused.  If only the gate has refused fixes for GATE_PATIENCE_S, pose
and GNSS bias are both widened.  If the step or the memory raises the alarm, GNSS is taken to be
wrong: it is distrusted, and refused, until it jumps back into the gate or has been inside the gate
for GATE_PATIENCE_S, but for at most DISTRUST_S.

A fourth test says that the odometry is wrong: while fixes are refused their residual goes on
growing, by a share of the distance that no sound odometry is off.  A receiver that jumps, or is
dragged off slowly, does not do that.
"""

from dataclasses import dataclass
from enum import Enum
import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.weighting import squared_distance

# Fixes outside this share of the predicted distribution are refused.
GATE_PROBABILITY = 0.99
# After refusing fixes for this long the filter is taken to be wrong.
GATE_PATIENCE_S = 10.0
# Fixes outside this share of the distribution that odometry and matches alone predict, or that a
# plausible step from the fix before has, raise the alarm.
ALARM_PROBABILITY = 0.9999
# A shorter step raises no alarm: reflections make such steps.
JUMP_M = 15.0
# GNSS is distrusted for at most this long.
DISTRUST_S = 300.0
# Error of the odometry, metres for each metre driven, that may explain a step between two fixes.
STEP_DRIFT = 0.1
# The odometry lies where the residual of refused fixes has grown by this share of the distance
# (the larger one of GNSS and odometry), and LIE_SIGMAS of the noise, over at least LIE_DISTANCE_M
# and LIE_FIXES fixes.
LIE_SHARE = 0.2
LIE_SIGMAS = 3.0
LIE_DISTANCE_M = 20.0
LIE_FIXES = 5
# Reflections between houses make residuals that go to and fro, or by a single step.  Those of an
# odometry that lies go straight on, by at least this share of their way, and evenly: no step is a
# larger share of their growth than this.
STRAIGHT_SHARE = 0.75
LARGEST_STEP_SHARE = 0.45
# Refused matches agree with each other where their mean residual is this share of their rms.
AGREEMENT = 0.9


ODOMETRY_LIES = 'the odometry is off by a share of the distance and is not believed for a while'


class FixVerdict(Enum):
    USE = 'use the fix'
    REFUSE = 'refuse the fix'
    GO_BACK = 'refuse the fix and return to the memory'
    WIDEN = 'widen the covariance, then use the fix'
    DISBELIEVE_ODOMETRY = 'start again at the fix and disbelieve the odometry for a while'


@dataclass(frozen=True)
class ResidualWay:
    """The way of the residuals (n,) of refused fixes or matches, from one to the next."""

    first_m: np.ndarray
    last_m: np.ndarray
    length_m: float = 0.0
    largest_step_m: float = 0.0
    steps: int = 0
    total_m: np.ndarray | float = 0.0  # the sum of all residuals but the first, and of squares
    squares_m2: float = 0.0

    def extended(self, residual_m: np.ndarray) -> 'ResidualWay':
        """The way with one more residual."""
        step_m = float(np.linalg.norm(residual_m - self.last_m))
        return ResidualWay(
            self.first_m, residual_m, self.length_m + step_m, max(self.largest_step_m, step_m),
            self.steps + 1, self.total_m + residual_m, self.squares_m2 + residual_m @ residual_m)

    @property
    def agrees(self) -> bool:
        """Whether the residuals point the same way: |mean| >= AGREEMENT rms."""
        return float(np.linalg.norm(self.total_m)) >= AGREEMENT * math.sqrt(
            self.steps * self.squares_m2)

    @property
    def growth_m(self) -> float:
        return float(np.linalg.norm(self.last_m - self.first_m))

    @property
    def is_straight(self) -> bool:
        return self.growth_m >= STRAIGHT_SHARE * self.length_m

    @property
    def is_even(self) -> bool:
        return self.largest_step_m <= LARGEST_STEP_SHARE * self.growth_m


@dataclass(frozen=True)
class FixHistory:
    """What the tests remember of earlier fixes.

    ``stamp_ns``, ``position_m`` (2,), ``residual_m`` (2,) and ``noise_m2`` (2, 2) belong to the
    last fix, used or refused; ``driven_m`` is the distance driven until then.
    """

    stamp_ns: int = 0
    position_m: np.ndarray | None = None
    residual_m: np.ndarray | None = None
    noise_m2: np.ndarray | None = None
    driven_m: float = 0.0
    refused_ns: int | None = None     # since when fixes have been refused without a break
    stepped: bool = False             # whether the residual stepped when that began
    stepped_way_m: float = 0.0        # and how far the vehicle was driven in that step
    first_refused: 'FixHistory | None' = None  # the history of the first of these fixes
    way: ResidualWay | None = None    # that of the residuals since then
    distrusted_ns: int | None = None  # since when GNSS has been distrusted
    agreeing_ns: int | None = None    # since when distrusted fixes have passed the gate
    cause: str = ''                   # why GNSS is distrusted


@dataclass(frozen=True)
class FixSeen:
    """A fix as the filter sees it.

    ``residual_m`` (2,) is the fix minus its prediction, ``noise_m2`` (2, 2) its white covariance,
    ``driven_m`` the distance driven so far.  ``distance2`` is the squared Mahalanobis distance
    from the filter, ``memory_distance2`` that from the memory.
    """

    stamp_ns: int
    position_m: np.ndarray
    residual_m: np.ndarray
    noise_m2: np.ndarray
    driven_m: float
    distance2: float
    memory_distance2: float


class IntegrityMonitor:
    """The four tests.  It keeps no state: ``judge`` is a function of its arguments."""

    def __init__(self, config: FilterConfig):
        self._config = config
        self._gate = chdtri(2, 1.0 - GATE_PROBABILITY)
        self._alarm = chdtri(2, 1.0 - ALARM_PROBABILITY)

    def judge(
        self, history: FixHistory, fix: FixSeen, matched: bool,
    ) -> tuple[FixVerdict, FixHistory, str]:
        """Say what to do with a fix, what to remember of it, and the reason.

        ``matched`` says whether matches support the pose: then the odometry cannot be wrong.
        """
        patience_ns = GATE_PATIENCE_S * 1e9
        stamp_ns = fix.stamp_ns
        stepped_m = self._step_m(history, fix)
        # Fixes that were refused before an outage say nothing about those after it.
        silent = stamp_ns - history.stamp_ns > patience_ns
        seen = changed(
            history, stamp_ns=stamp_ns, position_m=fix.position_m, residual_m=fix.residual_m,
            noise_m2=fix.noise_m2, driven_m=fix.driven_m)
        if silent:
            seen = changed(
                seen, refused_ns=None, stepped=False, agreeing_ns=None, first_refused=None,
                way=None)
        elif seen.first_refused is not None:
            seen = changed(seen, way=history.way.extended(fix.residual_m))
        inside = fix.distance2 <= self._gate
        if not inside and not matched and self._odometry_lies(seen):
            return FixVerdict.DISBELIEVE_ODOMETRY, FixHistory(stamp_ns), ODOMETRY_LIES

        if seen.distrusted_ns is not None:
            return self._judge_distrusted(seen, stamp_ns, inside, stepped_m > JUMP_M, patience_ns)
        if stepped_m > JUMP_M and not inside and seen.refused_ns is None:
            cause = f'GNSS jumped by {stepped_m:.0f} m against the odometry'
            seen = changed(seen, stepped_way_m=fix.driven_m - history.driven_m)
            return FixVerdict.REFUSE, _distrusted(seen, cause, seen), cause
        if fix.memory_distance2 > self._alarm and inside:
            cause = 'GNSS drifts away from odometry and matches'
            return FixVerdict.GO_BACK, _distrusted(seen, cause, None), cause
        if inside:
            settled = changed(seen, refused_ns=None, first_refused=None, stepped=False)
            if seen.stepped and not stepped_m:
                # The gate has grown to where the step went; that says nothing for it.
                return (FixVerdict.WIDEN, settled,
                        f'{(stamp_ns - seen.refused_ns) * 1e-9:.1f} s of refused fixes')
            return FixVerdict.USE, settled, ''
        if seen.refused_ns is None:
            seen = changed(
                seen, refused_ns=stamp_ns, first_refused=_bare(seen), stepped=stepped_m > 0.0,
                way=ResidualWay(fix.residual_m, fix.residual_m))
        refused_s = (stamp_ns - seen.refused_ns) * 1e-9
        if refused_s >= GATE_PATIENCE_S:
            return (FixVerdict.WIDEN, FixHistory(stamp_ns),
                    f'{refused_s:.1f} s of refused fixes')
        return FixVerdict.REFUSE, seen, f'refused for {refused_s:.1f} s'

    def _judge_distrusted(
        self, seen: FixHistory, stamp_ns: int, inside: bool, stepped: bool, patience_ns: float,
    ) -> tuple[FixVerdict, FixHistory, str]:
        distrusted_s = (stamp_ns - seen.distrusted_ns) * 1e-9
        agreeing_ns = (seen.agreeing_ns or stamp_ns) if inside else None
        if inside and stepped:
            return (FixVerdict.USE, FixHistory(stamp_ns),
                    f'GNSS jumped back after {distrusted_s:.0f} s of distrust')
        if agreeing_ns is not None and stamp_ns - agreeing_ns >= patience_ns:
            return (FixVerdict.USE, FixHistory(stamp_ns),
                    f'GNSS agrees again after {distrusted_s:.0f} s of distrust')
        if distrusted_s >= DISTRUST_S:
            return FixVerdict.WIDEN, FixHistory(stamp_ns), f'{distrusted_s:.0f} s of distrust'
        first = seen.first_refused or _bare(seen)
        way = seen.way or ResidualWay(seen.residual_m, seen.residual_m)
        return (FixVerdict.REFUSE,
                changed(seen, agreeing_ns=agreeing_ns, first_refused=first, way=way),
                f'{seen.cause}; refused for {distrusted_s:.1f} s')

    # growth = |r - r_first| > share * distance + sigmas * sqrt(tr(W + W_first) / 2)
    def _odometry_lies(self, seen: FixHistory) -> bool:
        """Whether the residual has grown with the distance since the first refused fix."""
        first = seen.first_refused
        if first is None:
            return False
        distance_m = max(seen.driven_m - first.driven_m,
                         float(np.linalg.norm(seen.position_m - first.position_m)))
        noise_m = math.sqrt(np.trace(seen.noise_m2 + first.noise_m2) / 2.0)
        return (seen.way.steps >= LIE_FIXES and distance_m >= LIE_DISTANCE_M
                and seen.way.is_straight and seen.way.is_even
                and seen.way.growth_m > LIE_SHARE * distance_m + LIE_SIGMAS * noise_m)

    # step = r - r_before,  S = W + W_before + (2 s_b^2 (1 - a) + (0.1 driven)^2) I
    def _step_m(self, history: FixHistory, fix: FixSeen) -> float:
        """Length of the step of the residual since the last fix; 0 for one that may be noise."""
        time_s = (fix.stamp_ns - history.stamp_ns) * 1e-9
        if history.residual_m is None or time_s > GATE_PATIENCE_S:
            return 0.0
        wander_m2 = 2 * self._config.gnss_bias_sigma_m**2 * (
            1.0 - math.exp(-time_s / self._config.gnss_bias_tau_s))
        drift_m2 = (STEP_DRIFT * (fix.driven_m - history.driven_m)) ** 2
        spread_m2 = fix.noise_m2 + history.noise_m2
        spread_m2[0, 0] += wander_m2 + drift_m2
        spread_m2[1, 1] += wander_m2 + drift_m2
        step_m = fix.residual_m - history.residual_m
        unlikely = squared_distance(step_m, spread_m2) > self._alarm
        return math.hypot(*step_m) if unlikely else 0.0


def _distrusted(seen: FixHistory, cause: str, first: FixHistory | None) -> FixHistory:
    return changed(
        seen, refused_ns=seen.stamp_ns, distrusted_ns=seen.stamp_ns, agreeing_ns=None, cause=cause,
        first_refused=first and _bare(first), stepped=first is not None,
        way=first and ResidualWay(first.residual_m, first.residual_m))


def _bare(seen: FixHistory) -> FixHistory:
    """Of a history only what belongs to its last fix."""
    return FixHistory(
        seen.stamp_ns, seen.position_m, seen.residual_m, seen.noise_m2, seen.driven_m)
