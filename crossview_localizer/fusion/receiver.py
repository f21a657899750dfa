"""How good the GNSS receiver is, learned from how its fixes move against the odometry.

The parameters describe a cheap receiver.  A better one is believed to be as good as it claims, as
far as its fixes bear that out.  From one fix to the next a fix moves with the vehicle and by the
change of its own error.  All that it moves beyond the pose is taken for its error, so the
estimates are too large rather than too small:

    E |step|^2 = 4 w^2          step: of one fix beyond the pose
    E |r|^2 = 2 c s^2           r = b - a - f (d - a),  f = (q - p) / (o - p)

with w the sigma of the white noise and s that of the wander, on each axis.  a, b and d are the
means of the summed steps in the three thirds of a window, p, q and o those of the way, as complex
numbers: where the odometry scales or turns wrongly, the sums grow in proportion to the way, and r
does not show it.  Of n such squares, the upper bound of s^2 is their sum over the 0.1 % point of a
chi-square of 2 n degrees of freedom.  An error that does not change shows in neither: the
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

# A window counts if the vehicle got THIRD_M from each of its thirds to the next, and twice as far
# in all, as a receiver may hold its position where it stands, and if no gap between two fixes is
# longer than GAP_S.
WINDOW_S, THIRD_M, GAP_S = 30.0, 15.0, 5.0
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
    """The steps of the fixes since the first one at ``since_ns``.

    ``moved_m`` is their sum, ``squares_m2`` that of their squares.  Of each third there is the
    number of fixes, and the sums of ``moved_m`` and of the ways since ``first_m``.  All positions
    are complex numbers.
    """

    since_ns: int
    first_m: complex
    moved_m: complex = 0j
    squares_m2: float = 0.0
    steps: int = 0
    thirds: tuple[tuple[int, complex, complex], ...] = 3 * ((0, 0j, 0j),)

    def followed(self, stamp_ns: int, position_m: complex, step_m: complex) -> 'Window':
        """The window with one more fix."""
        index = min(int(3e-9 * (stamp_ns - self.since_ns) / WINDOW_S), 2)
        moved_m, thirds = self.moved_m + step_m, list(self.thirds)
        count, moved_sum_m, way_sum_m = thirds[index]
        thirds[index] = (count + 1, moved_sum_m + moved_m, way_sum_m + position_m - self.first_m)
        return changed(self, moved_m=moved_m, squares_m2=self.squares_m2 + abs(step_m) ** 2,
                       steps=self.steps + 1, thirds=tuple(thirds))


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
            window = window.followed(
                stamp_ns, position_m, complex(*(before_m - receiver.offset_m)))
        if stamp_ns - window.since_ns >= WINDOW_S * 1e9:
            receiver = self._learned(receiver, window)
            window = Window(stamp_ns, position_m)
        return changed(receiver, stamp_ns=stamp_ns, offset_m=after_m, window=window)

    def _learned(self, receiver: Receiver, window: Window) -> Receiver:
        """The receiver with what a window has shown."""
        (first_m, begin_m), (middle_m, half_m), (last_m, end_m) = (
            (moved_m / count, way_m / count) for count, moved_m, way_m in window.thirds)
        if min(abs(half_m - begin_m), abs(end_m - half_m), abs(end_m - begin_m) / 2) < THIRD_M:
            return receiver
        share = (half_m - begin_m) / (end_m - begin_m)
        rest_m = middle_m - first_m - share * (last_m - first_m)
        squares_m2 = abs(rest_m) ** 2 / shown_share(share, self._tau_s)
        squares_m2 = min(squares_m2, 2.0 * LARGEST_WANDER**2 * self._wander_m2)
        keep = math.exp(-WINDOW_S / LEARNING_S)
        windows, squares_m2 = (
            keep * receiver.windows + 1.0, keep * receiver.squares_m2 + squares_m2)
        white_m2 = window.squares_m2 / (4.0 * window.steps)
        if receiver.windows:
            white_m2 += keep * (receiver.shown_white_m2 - white_m2)
        return changed(
            receiver, windows=windows, squares_m2=squares_m2, shown_white_m2=white_m2,
            shown_wander_m2=squares_m2 / chdtri(2.0 * windows, WANDER_PROBABILITY))


# c = v (1 + |f|^2 + |1 - f|^2) - 2 g^2 + 2 g^2 exp(-x) Re f (1 - f)*
# with x = T / tau of a third T, v = 2 (x - 1 + exp(-x)) / x^2 the variance of its mean, and
# g = (1 - exp(-x)) / x, g^2 being the covariance of two means that follow each other
def shown_share(share: complex, tau_s: float) -> float:
    """The variance c of r on each axis for a wander of variance 1; ``share`` is f."""
    rest, x = 1.0 - share, WINDOW_S / 3.0 / tau_s
    kept = math.exp(-x)
    mean_variance, covariance = 2.0 * (x - 1.0 + kept) / x**2, ((1.0 - kept) / x) ** 2
    return (mean_variance * (1.0 + abs(share) ** 2 + abs(rest) ** 2)
            - 2.0 * covariance * (1.0 - kept * (share * rest.conjugate()).real))
