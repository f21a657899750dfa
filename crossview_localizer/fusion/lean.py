"""Whether GNSS and the odometry drift apart.

Residuals of a filter that is right are white.  Where the odometry turns or scales wrongly, or GNSS
is dragged off, they lean to one side for as long as it does.  Nobody knows which of the two it is:
the pose stays as it is, and is published wider.
"""

from dataclasses import dataclass
import math

import numpy as np

from crossview_localizer.fusion.doubt import doubt_of
from crossview_localizer.fusion.motion_model import rotation

# Residuals lean where their sum over about this time is more than so many of its sigmas.
LEAN_S, LEAN_SIGMAS = 15.0, 2.0
# The lean is reported where it is more than so many of these limits.
TOLD_SHARE = 1.5
# At one limit the pose may be off by so many sigmas of the receiver's wander to that side, and in
# heading by this for each metre of it; in proportion above.
LEAN_WANDERS, LEAN_YAW_RAD_PER_M = 1.8, 0.03


@dataclass(frozen=True)
class Lean:
    """The sum of the residuals of fixes in their sigmas, over ``count`` fixes.

    ``ahead`` and ``left`` are in the vehicle's axes, older residuals fade; ``yaw_rad`` is the
    heading at the last fix.
    """

    ahead: float = 0.0
    left: float = 0.0
    count: float = 0.0
    yaw_rad: float = 0.0

    def followed(self, residual_m: np.ndarray, spread_m2: np.ndarray, passed_s: float,
                 yaw_rad: float) -> 'Lean':
        """The lean with the residual (2,) of one more fix, ``passed_s`` after the one before.

        ``spread_m2`` (2, 2) is the covariance of the residual.
        """
        (xx, xy), (_, yy) = spread_m2.tolist()
        x_m, y_m = residual_m.tolist()
        cos, sin, keep = math.cos(yaw_rad), math.sin(yaw_rad), math.exp(-passed_s / LEAN_S)
        along_m2, cross_m2 = cos * cos * xx + sin * sin * yy, 2.0 * cos * sin * xy
        ahead = (cos * x_m + sin * y_m) / math.sqrt(along_m2 + cross_m2)
        left = (cos * y_m - sin * x_m) / math.sqrt(xx + yy - along_m2 - cross_m2)
        return Lean(keep * self.ahead + ahead, keep * self.left + left,
                    keep**2 * self.count + 1.0, float(yaw_rad))

    @property
    def shares(self) -> tuple[float, float]:
        """How many limits the residuals lean ahead and left; below one is noise."""
        limit = LEAN_SIGMAS * math.sqrt(max(self.count, 1.0))
        return self.ahead / limit, self.left / limit

    @property
    def text(self) -> str:
        """What a FilterUpdate says of the lean; '' where it is small."""
        return 'GNSS and odometry drift apart' if self._largest > TOLD_SHARE else ''

    def doubt(self, wander_m: float) -> np.ndarray | None:
        """How much wider the lean makes the pose, as in ``doubt``; None where it is small.

        ``wander_m`` is the sigma of the receiver's slow error.
        """
        if self._largest <= 1.0:
            return None
        offset_m = LEAN_WANDERS * wander_m * rotation(self.yaw_rad) @ self.shares
        return doubt_of(offset_m, LEAN_YAW_RAD_PER_M * wander_m * abs(self.shares[1]))

    @property
    def _largest(self) -> float:
        return max(map(abs, self.shares))
