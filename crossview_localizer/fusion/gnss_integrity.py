"""Whether a GNSS fix is used, and whether GNSS as a whole can be trusted.

There are three tests.  Each compares a squared Mahalanobis distance with a limit:

- Gate: the fix against the prediction of the filter.
- Step: the residual of the fix against the residual of the fix before it.  A wrong pose makes
  residuals large, but not suddenly.  A receiver that jumps, or is spoofed, makes a sudden step.
- Memory: the fix against what the filter knew half a minute to a minute ago, moved on by odometry
  and matches alone.  It shows a drift that the filter follows step by step.

A fix outside the gate is refused.  If only the gate has refused fixes for GATE_PATIENCE_S, the
filter is taken to be wrong and its covariance is widened.  If the step or the memory raises the
alarm, GNSS is taken to be wrong: it is distrusted, and refused, until it jumps back into the gate
or has been inside the gate for GATE_PATIENCE_S, but for at most DISTRUST_S.
"""

from dataclasses import dataclass, replace
from enum import Enum
import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig

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


class FixVerdict(Enum):
    USE = 'use the fix'
    REFUSE = 'refuse the fix'
    GO_BACK = 'refuse the fix and return to the memory'
    WIDEN = 'widen the covariance, then use the fix'


@dataclass(frozen=True)
class FixHistory:
    """What the tests remember of earlier fixes.

    ``stamp_ns``, ``residual_m`` (2,) and ``noise_m2`` (2, 2) belong to the last fix, used or
    refused; ``driven_m`` is the distance driven until then.
    """

    stamp_ns: int = 0
    residual_m: np.ndarray | None = None
    noise_m2: np.ndarray | None = None
    driven_m: float = 0.0
    refused_ns: int | None = None     # since when fixes have been refused without a break
    distrusted_ns: int | None = None  # since when GNSS has been distrusted
    agreeing_ns: int | None = None    # since when distrusted fixes have passed the gate
    cause: str = ''                   # why GNSS is distrusted


class IntegrityMonitor:
    """The three tests.  It keeps no state: ``judge`` is a function of its arguments."""

    def __init__(self, config: FilterConfig):
        self._config = config
        self._gate = chdtri(2, 1.0 - GATE_PROBABILITY)
        self._alarm = chdtri(2, 1.0 - ALARM_PROBABILITY)

    def judge(
        self, history: FixHistory, stamp_ns: int, residual_m: np.ndarray, noise_m2: np.ndarray,
        driven_m: float, distance2: float, memory_distance2: float,
    ) -> tuple[FixVerdict, FixHistory, str]:
        """Say what to do with a fix, what to remember of it, and the reason.

        ``residual_m`` (2,) is the fix minus its prediction and ``noise_m2`` (2, 2) its white
        covariance.  ``driven_m`` is the distance driven so far.  ``distance2`` is the squared
        Mahalanobis distance from the filter, ``memory_distance2`` that from the memory.
        """
        patience_ns = GATE_PATIENCE_S * 1e9
        stepped_m = self._step_m(history, stamp_ns, residual_m, noise_m2, driven_m)
        # Fixes that were refused before an outage say nothing about those after it.
        silent = stamp_ns - history.stamp_ns > patience_ns
        seen = replace(
            history, stamp_ns=stamp_ns, residual_m=residual_m, noise_m2=noise_m2,
            driven_m=driven_m, refused_ns=None if silent else history.refused_ns,
            agreeing_ns=None if silent else history.agreeing_ns)
        inside = distance2 <= self._gate

        if history.distrusted_ns is not None:
            return self._judge_distrusted(seen, stamp_ns, inside, stepped_m > 0.0, patience_ns)
        if stepped_m and not inside and history.refused_ns is None:
            cause = f'GNSS jumped by {stepped_m:.0f} m against the odometry'
            return FixVerdict.REFUSE, _distrusted(seen, stamp_ns, cause), cause
        if memory_distance2 > self._alarm and inside:
            cause = 'GNSS drifts away from odometry and matches'
            return FixVerdict.GO_BACK, _distrusted(seen, stamp_ns, cause), cause
        if inside:
            return FixVerdict.USE, replace(seen, refused_ns=None), ''
        since_ns = stamp_ns if seen.refused_ns is None else seen.refused_ns
        reason = f'{(stamp_ns - since_ns) * 1e-9:.1f} s of refused fixes'
        if stamp_ns - since_ns >= patience_ns:
            return FixVerdict.WIDEN, FixHistory(stamp_ns), reason
        return (FixVerdict.REFUSE, replace(seen, refused_ns=since_ns),
                f'refused for {(stamp_ns - since_ns) * 1e-9:.1f} s')

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
        return (FixVerdict.REFUSE, replace(seen, agreeing_ns=agreeing_ns),
                f'{seen.cause}; refused for {distrusted_s:.1f} s')

    # step = r - r_before,  S = W + W_before + (2 s_b^2 (1 - a) + (0.1 driven)^2) I
    def _step_m(self, history, stamp_ns, residual_m, noise_m2, driven_m) -> float:
        """Length of the step of the residual since the last fix; 0 if it is no jump."""
        time_s = (stamp_ns - history.stamp_ns) * 1e-9
        if history.residual_m is None or time_s > GATE_PATIENCE_S:
            return 0.0
        wander_m2 = 2 * self._config.gnss_bias_sigma_m**2 * (
            1.0 - math.exp(-time_s / self._config.gnss_bias_tau_s))
        drift_m2 = (STEP_DRIFT * (driven_m - history.driven_m)) ** 2
        spread_m2 = noise_m2 + history.noise_m2 + (wander_m2 + drift_m2) * np.eye(2)
        step_m = residual_m - history.residual_m
        length_m = float(np.linalg.norm(step_m))
        unlikely = step_m @ np.linalg.solve(spread_m2, step_m) > self._alarm
        return length_m if unlikely and length_m > JUMP_M else 0.0


def _distrusted(seen: FixHistory, stamp_ns: int, cause: str) -> FixHistory:
    return replace(
        seen, refused_ns=stamp_ns, distrusted_ns=stamp_ns, agreeing_ns=None, cause=cause)
