"""How wide the pose is published: wider than its state where measurements contradict it."""

import math

import numpy as np

from crossview_localizer.fusion.belief import Belief
from crossview_localizer.fusion.motion_model import POSE

# A match supports the pose against GNSS for so long.
MATCH_SUPPORT_S = 3.0


def published_covariance(belief: Belief) -> np.ndarray:
    """The covariance (3, 3) of the pose with all doubts; see ``doubt`` and ``lean``."""
    covariance = excess(belief) * belief.covariance[POSE, POSE]
    for doubt in (belief.doubt, belief.match_doubt, belief.lean.doubt(math.sqrt(belief.receiver.wander_m2))):
        if doubt is not None:
            covariance += doubt
    return covariance


# P_published = max(1, mean d2 / n) P       the ratio of Birge (1932)
def excess(belief: Belief) -> float:
    """How many times larger the covariance is than the state's, by what was measured lately.

    It is 1 where residuals are as large as they are claimed.  Matches count if there are any.
    """
    seen_ns = belief.match_seen_ns
    matches = belief.match_refused_ns is not None or (
        seen_ns is not None and belief.stamp_ns - seen_ns <= MATCH_SUPPORT_S * 1e9)
    return max(1.0, belief.match_distance2 if matches else belief.fix_distance2)
