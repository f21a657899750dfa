"""How wide the pose is published: wider than its state where measurements contradict it."""

import math

import numpy as np

from crossview_localizer.fusion.belief import Belief
from crossview_localizer.fusion.motion_model import POSE

# A match supports the pose against GNSS for so long.
MATCH_SUPPORT_S = 3.0
# A doubt that has grown since a match is taken to have done so for at least this time.
LEAST_GROWTH_S = 0.1


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


# P_published = max(1, mean d2 / n) P       the ratio of Birge (1932)
def excess(belief: Belief) -> float:
    """How many times larger the covariance is than the state's, by what was measured lately.

    It is 1 where residuals are as large as they are claimed.  Matches count if there are any.
    """
    seen_ns = belief.match_seen_ns
    matches = belief.match_refused_ns is not None or (
        seen_ns is not None and belief.stamp_ns - seen_ns <= MATCH_SUPPORT_S * 1e9)
    return max(1.0, belief.match_distance2 if matches else belief.fix_distance2)
