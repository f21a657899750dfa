"""How good the GNSS receiver is, learned from how its fixes move against the odometry.

The parameters describe a cheap receiver.  A better one is believed to be as good as it claims, as
far as its fixes bear that out.  From one fix to the next a fix moves with the vehicle and by the
change of its own error.  All that it moves beyond the pose is taken for its error, so the
estimates are too large rather than too small:

    E |step|^2 = 4 w^2                         step: of one fix beyond the pose
    E |m - f e|^2 = 2 c s^2,  f = p / q        m, e: sums of the steps of half a window and of all
    c = |f|^2 + |1 - f|^2 + 1 - 2 Re f a - 2 Re (1 - f) b + 2 Re f (1 - f*) a b

with w the sigma of the white noise and s that of the wander, on each axis, p and q the ways of
half the window and of all, as complex numbers, and b and a exp(-T / tau) of its first part and of
the rest.  What the odometry turns or scales wrongly moves m and e in proportion to the ways and
leaves m - f e alone.  Of n such squares, the upper bound of s^2 is their sum over the 0.1 % point
of a chi-square of 2 n degrees of freedom.  An error that does not change shows in neither: the
wander is believed no smaller than what the receiver claims.  What it claims is its whole error, so
it is not all taken for white noise.
"""

from dataclasses import dataclass
import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import GnssFix
from crossview_localizer.fusion.frozen import changed

# Steps are added up over at least this time.  A window in which the vehicle got less far, or less
# than half as far in one of its halves, does not count, as a receiver may hold its position there;
# nor does one with a gap between two fixes.
WINDOW_S, WINDOW_M, GAP_S = 30.0, 50.0, 5.0
# Windows that are older than this count less and less.
LEARNING_S = 240.0
# The wander is smaller than what is believed with this probability.
WANDER_PROBABILITY = 0.999
# No receiver is believed to be better than this: its antenna and the map are placed no better.
LEAST_WANDER_M, LEAST_WHITE_M = 0.25, 0.1
# White noise may be this many times the variance that a receiver has shown.
WHITE_MARGIN = 2.0
# A window shows at most so many times the wander of the parameter.
LARGEST_WANDER = 2.0


@dataclass(frozen=True)
class Window:
    """The steps of the fixes since the first one at ``since_ns``: their sum and number.

    Positions are complex numbers.  ``half`` is the time since then in seconds, the way and the
    sum at the middle of the window; None before.
    """

    since_ns: int
    first_m: complex
    moved_m: complex = 0j
    half: tuple[float, complex, complex] | None = None
    squares_m2: float = 0.0
    steps: int = 0


@dataclass(frozen=True)
class Receiver:
    """What is believed of the errors of a receiver, and what its fixes have shown.

    ``wander_m2`` is the variance of the slow error in the long run on each axis, ``white_m2`` the
    least one of the white noise.  What the fixes have shown of both is infinite at first.
    """

    wander_m2: float
    white_m2: float
    shown_wander_m2: float = math.inf
    shown_white_m2: float = math.inf
    windows: float = 0.0                 # their number, older ones count less
    squares_m2: float = 0.0              # the sum of what they show of the wander
    stamp_ns: int = 0                    # of the last fix
    offset_m: np.ndarray | None = None   # (2,) of the last fix from the antenna of the pose
    window: Window | None = None


class ReceiverMonitor:
    """Learns from fixes.  It keeps no state: its methods are functions of their arguments."""

    def __init__(self, config: FilterConfig):
        self._wander_m2 = config.gnss_bias_sigma_m**2
        self._white_m2 = config.gnss_sigma_floor_m**2
        self._tau_s = config.gnss_bias_tau_s

    def unknown(self) -> Receiver:
        """A receiver that has shown nothing yet."""
        return Receiver(self._wander_m2, self._white_m2)

    def believed(self, receiver: Receiver, fix: GnssFix) -> Receiver:
        """The receiver, believed by what it has shown and by what it claims of a fix."""
        claimed_m2 = (fix.covariance[0][0] + fix.covariance[1][1]) / 2.0
        wander_m2 = max(LEAST_WANDER_M**2, receiver.shown_wander_m2, claimed_m2)
        white_m2 = max(LEAST_WHITE_M**2, receiver.shown_white_m2)
        return changed(receiver, wander_m2=min(self._wander_m2, float(wander_m2)),
                       white_m2=min(self._white_m2, white_m2))

    # W = C min(1, max(m w^2, c^2 - s^2) / c^2)       c^2 = tr(C) / 2, m = WHITE_MARGIN
    def white_part(self, receiver: Receiver, claimed_m2: np.ndarray) -> np.ndarray:
        """The white noise (2, 2) in the covariance that a fix claims.

        A receiver claims its whole error.  Its wander is part of that and a state of the filter.
        """
        variance_m2 = (claimed_m2[0, 0] + claimed_m2[1, 1]) / 2.0
        white_m2 = max(WHITE_MARGIN * receiver.shown_white_m2, variance_m2 - receiver.wander_m2)
        return claimed_m2 if white_m2 >= variance_m2 else claimed_m2 * (white_m2 / variance_m2)

    def followed(self, receiver: Receiver, fix: GnssFix, before_m: np.ndarray,
                 after_m: np.ndarray) -> Receiver:
        """The receiver with what a fix shows.

        The fix lies ``before_m`` (2,) from the antenna of the pose, and ``after_m`` (2,) once it
        has corrected the pose.
        """
        stamp_ns, position_m = fix.stamp_ns, complex(fix.x_m, fix.y_m)
        window = receiver.window
        if window is None or stamp_ns - receiver.stamp_ns > GAP_S * 1e9:
            window = Window(stamp_ns, position_m)
        else:
            step_m = complex(*(before_m - receiver.offset_m))
            window = changed(
                window, moved_m=window.moved_m + step_m, steps=window.steps + 1,
                squares_m2=window.squares_m2 + abs(step_m) ** 2)
        time_s, way_m = (stamp_ns - window.since_ns) * 1e-9, position_m - window.first_m
        if window.half is None and time_s >= WINDOW_S / 2:
            window = changed(window, half=(time_s, way_m, window.moved_m))
        if time_s >= WINDOW_S:
            half_m = window.half[1]
            if abs(way_m) >= WINDOW_M and min(abs(half_m), abs(way_m - half_m)) >= WINDOW_M / 2:
                receiver = self._learned(receiver, window, way_m, time_s)
            window = Window(stamp_ns, position_m)
        return changed(receiver, stamp_ns=stamp_ns, offset_m=after_m, window=window)

    def _learned(self, receiver: Receiver, window: Window, way_m: complex,
                 time_s: float) -> Receiver:
        """The receiver with what a window has shown, over a way."""
        half_s, half_way_m, half_moved_m = window.half
        share = half_way_m / way_m
        unlike = wander_variance(share, math.exp(-half_s / self._tau_s),
                                 math.exp((half_s - time_s) / self._tau_s))
        squares_m2 = abs(half_moved_m - share * window.moved_m) ** 2 / unlike
        squares_m2 = min(squares_m2, 2.0 * LARGEST_WANDER**2 * self._wander_m2)
        keep = math.exp(-time_s / LEARNING_S)
        windows, squares_m2 = (
            keep * receiver.windows + 1.0, keep * receiver.squares_m2 + squares_m2)
        white_m2 = window.squares_m2 / (4.0 * window.steps)
        if receiver.windows:
            white_m2 += keep * (receiver.shown_white_m2 - white_m2)
        return changed(
            receiver, windows=windows, squares_m2=squares_m2, shown_white_m2=white_m2,
            shown_wander_m2=squares_m2 / chdtri(2.0 * windows, WANDER_PROBABILITY))


# c of the module's text: of m - f e = b_half - (1 - f) b_first - f b_last
def wander_variance(share: complex, first: float, last: float) -> float:
    """The variance of m - f e on each axis for a wander of sigma 1.

    ``share`` is f; ``first`` and ``last`` are the correlations of the wander from the first fix to
    the middle, and from there to the last.
    """
    rest = 1.0 - share
    return (1.0 + abs(share) ** 2 + abs(rest) ** 2 - 2.0 * share.real * last
            - 2.0 * rest.real * first
            + 2.0 * (share * rest.conjugate()).real * first * last)
