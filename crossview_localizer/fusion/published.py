"""How wide the pose is published: wider than its state where measurements contradict it."""

import math

import numpy as np

from crossview_localizer.fusion.belief import Belief
from crossview_localizer.fusion.motion_model import POSE

# A match supports the pose against GNSS for so long.
MATCH_SUPPORT_S = 3.0
# A doubt that has grown since a match is taken to have done so for at least this time.
LEAST_GROWTH_S = 0.1
# A Birge ratio of this size counts by half of what it is above one.
HALF_CHANCE = 3.0


def published_covariance(belief: Belief) -> np.ndarray:
    """The covariance (3, 3) of the pose with all doubts; see ``doubt`` and ``lean``."""
    covariance = excess(belief) * belief.covariance[POSE, POSE]
    lean = belief.lean.doubt(math.sqrt(belief.receiver.wander_m2))
    for doubt in (_grown(belief), belief.match_doubt, lean):
        if doubt is not None:
            covariance += doubt
    return covariance


# D (T / t)^2     T, t: time since the last match until now, and until the last fix
def _grown(belief: Belief) -> np.ndarray | None:
    """The doubt by fixes.  In the time that a match supports it has grown evenly since it."""
    if belief.doubt is None or belief.match_ns is None:
        return belief.doubt
    until_fix_s, until_now_s = (
        (stamp_ns - belief.match_ns) * 1e-9 for stamp_ns in (
            belief.fixes.stamp_ns, belief.stamp_ns))
    growth = min(until_now_s, MATCH_SUPPORT_S) / max(until_fix_s, LEAST_GROWTH_S)
    return belief.doubt * max(1.0, growth) ** 2


# P_published = (1 + (b - 1) b / (b + h)) P      b: Birge ratio, h = HALF_CHANCE
def excess(belief: Belief) -> float:
    """How many times larger the covariance is than the state's, by what was measured lately.

    A ratio of a few residuals is above 1 by chance half of the time, but hardly ever far above it.
    """
    ratio = birge_ratio(belief)
    return 1.0 + (ratio - 1.0) * ratio / (ratio + HALF_CHANCE)


# b = max(1, mean d2 / n)       Birge (1932)
def birge_ratio(belief: Belief) -> float:
    """How many times larger the squared residuals were lately than claimed; at least 1.

    Matches count if there are any, else fixes.
    """
    seen_ns = belief.match_seen_ns
    matches = belief.match_refused_ns is not None or (
        seen_ns is not None and belief.stamp_ns - seen_ns <= MATCH_SUPPORT_S * 1e9)
    return max(1.0, belief.match_distance2 if matches else belief.fix_distance2)
