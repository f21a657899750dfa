"""How much wider the pose is published while a measurement contradicts it.

As long as the filter refuses a measurement, either may be wrong.  The pose stays where it is, and
the way d to where the measurement would have it is one more sigma:

    P_published = P + D,  D = diag(d d', theta^2)

D is no part of the state: the gates stay as narrow as they are.
"""

import math

import numpy as np

# The yaw may be off by the angle under which the residual has grown, over at least this distance.
LEAST_DISTANCE_M = 5.0


# d = r min(1, 2 (1 - sqrt(limit / d2)))     nothing at the limit, all of r from 4 limits on
def beyond(residual_m: np.ndarray, distance2: float, limit: float) -> np.ndarray:
    """The part of a residual (n,) that speaks against its sigmas."""
    if distance2 <= limit:
        return np.zeros(len(residual_m))
    return residual_m * min(1.0, 2.0 * (1.0 - math.sqrt(limit / distance2)))


def shortened(offset_m: np.ndarray, most_m: float) -> np.ndarray:
    """An offset (2,) that is no longer than a length."""
    length_m = math.hypot(*offset_m)
    return offset_m if length_m <= most_m else offset_m * (most_m / length_m)


# theta = 2 asin(growth / (2 distance))     the chord of a circle about the start
def turned_rad(growth_m: float, noise_m: float, distance_m: float) -> float:
    """The error of the heading that explains how far a residual has grown over a distance."""
    share = max(growth_m - noise_m, 0.0) / max(distance_m, LEAST_DISTANCE_M)
    return 2.0 * math.asin(min(1.0, share / 2.0))


def doubt_of(offset_m: np.ndarray, yaw_rad: float = 0.0) -> np.ndarray | None:
    """D (3, 3) of an offset (2,) and an error of the heading; None if both are zero."""
    if not (offset_m.any() or yaw_rad):
        return None
    doubt = np.zeros((3, 3))
    doubt[:2, :2] = np.outer(offset_m, offset_m)
    doubt[2, 2] = yaw_rad**2
    return doubt


# D' = D s^2 / (s^2 + |d|^2)     s: sigma of the measurement along d
def narrowed(doubt: np.ndarray, spread_m2: np.ndarray) -> np.ndarray:
    """D (3, 3) after a measurement of spread (2, 2) that agrees with the pose."""
    offset2 = doubt[0, 0] + doubt[1, 1]
    if not offset2:
        return doubt
    variance_m2 = (doubt[:2, :2] * spread_m2).sum() / offset2
    narrow = doubt.copy()
    narrow[:2, :2] *= variance_m2 / (variance_m2 + offset2)
    return narrow
