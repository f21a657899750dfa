"""Whether a GNSS fix is used, refused for a while, or GNSS is distrusted as a whole.

Three tests, each a squared Mahalanobis distance:

- the gate: the fix against the filter;
- the step: its residual against that of the fix before, seconds ago.  A pose that is wrong makes
  residuals large but not sudden; a receiver that jumps, or is made to, does;
- the memory: the fix against what the filter knew half a minute to a minute ago, moved on by
  odometry and matches alone.  Drift that the filter follows step by step shows here.

A fix outside the gate is refused.  When only the gate has refused for GATE_PATIENCE_S the filter
is taken to be wrong and opened.  When step or memory raise the alarm GNSS is taken to be wrong: it
is refused until it jumps back into the gate or has been inside it for as long, but at most for
DISTRUST_S.
"""

from dataclasses import dataclass, replace
from enum import Enum
import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig

# Fixes outside this share of the predicted distribution are refused.
GATE_PROBABILITY = 0.99
# After this long of refused fixes the filter is taken to be wrong and is opened.
GATE_PATIENCE_S = 10.0
# Fixes outside this share of what odometry and matches alone predict, or of a plausible step from
# the fix before, raise the alarm.
ALARM_PROBABILITY = 0.9999
# A step shorter than this, as reflections make, is refused but raises no alarm.
JUMP_M = 15.0
# Distrusted fixes are refused until they agree again for GATE_PATIENCE_S, at most this long.
DISTRUST_S = 300.0
# Odometry error a metre driven that a step between two fixes may be put down to.
STEP_DRIFT = 0.1


class FixVerdict(Enum):
    USE = 'use'
    REFUSE = 'refuse'
    GO_BACK = 'refuse and go back to the memory'
    OPEN = 'widen the belief and use'


@dataclass(frozen=True)
class GnssTrust:
    """What is remembered of earlier fixes; never changed."""

    stamp_ns: int = 0  # last fix, used or refused
    residual_m: np.ndarray | None = None  # its residual (2,) and noise (2, 2), with the distance
    noise_m2: np.ndarray | None = None  # driven by then
    driven_m: float = 0.0
    refused_ns: int | None = None  # first of an unbroken run of refused fixes
    distrusted_ns: int | None = None
    agreeing_ns: int | None = None  # first of a run, while distrusted, that passes the gate
    cause: str = ''


class GnssTrustRules:
    """The tests; :meth:`judge` is a function of its arguments alone."""

    def __init__(self, config: FilterConfig):
        self._config = config
        self._gate = chdtri(2, 1.0 - GATE_PROBABILITY)
        self._alarm = chdtri(2, 1.0 - ALARM_PROBABILITY)

    def judge(
        self, trust: GnssTrust, stamp_ns: int, residual_m: np.ndarray, noise_m2: np.ndarray,
        driven_m: float, distance2: float, memory_distance2: float,
    ) -> tuple[FixVerdict, GnssTrust, str]:
        """What to do with a fix, what to remember of it, and why.

        ``residual_m`` (2,) and ``noise_m2`` (2, 2): fix minus prediction and its white covariance;
        ``driven_m``: distance driven so far; the distances: from the filter, from the memory.
        """
        patience_ns = GATE_PATIENCE_S * 1e9
        stepped_m = self._step_m(trust, stamp_ns, residual_m, noise_m2, driven_m)
        # Fixes refused before an outage say nothing of those after it.
        silent = stamp_ns - trust.stamp_ns > patience_ns
        seen = replace(
            trust, stamp_ns=stamp_ns, residual_m=residual_m, noise_m2=noise_m2,
            driven_m=driven_m, refused_ns=None if silent else trust.refused_ns,
            agreeing_ns=None if silent else trust.agreeing_ns)
        inside = distance2 <= self._gate

        if trust.distrusted_ns is not None:
            return self._judge_distrusted(seen, stamp_ns, inside, stepped_m > 0.0, patience_ns)
        if stepped_m and not inside and trust.refused_ns is None:
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
            return FixVerdict.OPEN, GnssTrust(stamp_ns), reason
        return (FixVerdict.REFUSE, replace(seen, refused_ns=since_ns),
                f'refused for {(stamp_ns - since_ns) * 1e-9:.1f} s')

    def _judge_distrusted(
        self, seen: GnssTrust, stamp_ns: int, inside: bool, stepped: bool, patience_ns: float,
    ):
        distrusted_s = (stamp_ns - seen.distrusted_ns) * 1e-9
        agreeing_ns = (seen.agreeing_ns or stamp_ns) if inside else None
        if inside and stepped:
            return (FixVerdict.USE, GnssTrust(stamp_ns),
                    f'GNSS jumped back after {distrusted_s:.0f} s of distrust')
        if agreeing_ns is not None and stamp_ns - agreeing_ns >= patience_ns:
            return (FixVerdict.USE, GnssTrust(stamp_ns),
                    f'GNSS agrees again after {distrusted_s:.0f} s of distrust')
        if distrusted_s >= DISTRUST_S:
            return FixVerdict.OPEN, GnssTrust(stamp_ns), f'{distrusted_s:.0f} s of distrust'
        return (FixVerdict.REFUSE, replace(seen, agreeing_ns=agreeing_ns),
                f'{seen.cause}; refused for {distrusted_s:.1f} s')

    # step = r - r_before,  S = W + W_before + (2 s_b^2 (1 - a) + (0.1 driven)^2) I
    def _step_m(self, trust, stamp_ns, residual_m, noise_m2, driven_m) -> float:
        """Length of the residual's step since the last fix, 0 where that is no jump."""
        time_s = (stamp_ns - trust.stamp_ns) * 1e-9
        if trust.residual_m is None or time_s > GATE_PATIENCE_S:
            return 0.0
        wander_m2 = 2 * self._config.gnss_bias_sigma_m**2 * (
            1.0 - math.exp(-time_s / self._config.gnss_bias_tau_s))
        drift_m2 = (STEP_DRIFT * (driven_m - trust.driven_m)) ** 2
        spread_m2 = noise_m2 + trust.noise_m2 + (wander_m2 + drift_m2) * np.eye(2)
        step_m = residual_m - trust.residual_m
        length_m = float(np.linalg.norm(step_m))
        unlikely = step_m @ np.linalg.solve(spread_m2, step_m) > self._alarm
        return length_m if unlikely and length_m > JUMP_M else 0.0


def _distrusted(seen: GnssTrust, stamp_ns: int, cause: str) -> GnssTrust:
    return replace(
        seen, refused_ns=stamp_ns, distrusted_ns=stamp_ns, agreeing_ns=None, cause=cause)
