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
# It is told above so many of these limits.
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
        """The lean with the residual (2,) of a fix, which has the covariance (2, 2)."""
        axes, keep = rotation(yaw_rad), math.exp(-passed_s / LEAN_S)
        ahead, left = residual_m @ axes / np.sqrt(np.diag(axes.T @ spread_m2 @ axes))
        return Lean(keep * self.ahead + float(ahead), keep * self.left + float(left),
                    keep**2 * self.count + 1.0, float(yaw_rad))

    @property
    def shares(self) -> np.ndarray:
        """How many limits the residuals lean ahead and left (2,); below one is noise."""
        return np.array([self.ahead, self.left]) / (
            LEAN_SIGMAS * math.sqrt(max(self.count, 1.0)))

    @property
    def text(self) -> str:
        """What is told of it; '' where there is none."""
        return 'GNSS and odometry drift apart' if np.abs(self.shares).max() > TOLD_SHARE else ''

    def doubt(self, wander_m: float) -> np.ndarray | None:
        """What it says against the pose, as in ``doubt``; None where there is none.

        ``wander_m`` is the sigma of the receiver's slow error.
        """
        shares = self.shares
        if np.abs(shares).max() <= 1.0:
            return None
        offset_m = LEAN_WANDERS * wander_m * rotation(self.yaw_rad) @ shares
        return doubt_of(offset_m, LEAN_YAW_RAD_PER_M * wander_m * abs(float(shares[1])))
