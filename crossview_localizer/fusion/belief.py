"""What the filter knows after an event, and the Kalman algebra that moves and corrects it."""

from dataclasses import dataclass
import math

from filterpy.kalman import KalmanFilter
import numpy as np

from crossview_localizer.fusion.gnss_integrity import FixHistory, ResidualWay
from crossview_localizer.fusion.lean import Lean
from crossview_localizer.fusion.motion_model import STATES, Velocity, YAW
from crossview_localizer.fusion.receiver import Receiver
from crossview_localizer.geometry import Pose2D, wrap_angle


@dataclass(frozen=True)
class Memory:
    """What the filter knew at ``taken_ns``, moved on since by odometry and matches but no fix.

    ``mean`` (17,) and ``covariance`` (17, 17) are those of the state in ``motion_model``.
    """

    taken_ns: int
    mean: np.ndarray
    covariance: np.ndarray
    driven_m: float = 0.0  # until it was taken


@dataclass(frozen=True)
class HeldFix:
    """A fix near which all later ones lie, the distance driven until it, and the pose then."""

    stamp_ns: int
    position_m: tuple[float, float]
    driven_m: float
    pose_m: tuple[float, float]


@dataclass(frozen=True)
class Belief:
    """All that the filter knows after an event.  Immutable: the filter may return to it."""

    stamp_ns: int
    mean: np.ndarray
    covariance: np.ndarray
    velocity: Velocity                    # from odometry
    moved_ns: int                         # odometry gives the motion up to here
    fixed_ns: int                         # last used fix or match
    receiver: Receiver
    memories: tuple[Memory, ...] = ()     # at most two, the older first
    behind: Pose2D = Pose2D(0.0, 0.0, 0.0)  # odometry that the memories have not been moved by yet
    behind_s: float = 0.0                 # and its time
    behind_velocity: Velocity | None = None  # and the velocity before it
    increment_velocity: Velocity | None = None  # of the last increment, if none is missing since
    fixes: FixHistory = FixHistory()
    driven_m: float = 0.0
    scene_ns: int | None = None          # last used match
    scene_driven_m: float = 0.0          # distance driven by then
    match_ns: int | None = None          # last used match that tells the place
    match_driven_m: float = 0.0          # distance driven by then
    match_every_s: float = math.inf      # mean time between such matches
    denied_ns: int = 0                   # last match that contradicted the refused fixes
    match_refused_ns: int | None = None  # since when matches have been refused without a break
    match_way: ResidualWay | None = None  # of the matches refused since
    match_doubt: np.ndarray | None = None  # as ``doubt``, by the last match
    match_seen_ns: int | None = None     # last match, used or refused
    match_distance2: float = 1.0         # mean squared distance of matches for each coordinate
    course_ns: int | None = None         # last used course
    held: HeldFix | None = None          # the first of the last fixes of one place
    fix_distance2: float = 1.0           # mean squared distance of fixes for each coordinate
    lean: Lean = Lean()                  # of the residuals of fixes, where no matches are
    doubt: np.ndarray | None = None      # (3, 3), widens the published pose, see ``doubt``
    disbelieved_until_ns: int = 0        # odometry is not believed before
    disbelieved_times: int = 0           # in a row


class PoseEkf(KalmanFilter):
    """The algebra of filterpy about the last state; returned are ``mean`` and ``covariance``."""

    def __init__(self):
        super().__init__(dim_x=STATES, dim_z=2)

    def predicted(self, known: Belief | Memory, moved, noise) -> dict:
        """Predict with ``moved``, the state after the motion and its derivative by that before.

        The derivative (17, 17) is kept as ``F``.
        """
        mean, self.F = moved
        return {'mean': mean, 'covariance': self.F @ known.covariance @ self.F.T + noise}

    def corrected(self, known: Belief | Memory, residual, jacobian, noise) -> dict:
        """Correct by a residual (n,) = measured - predicted with ``jacobian`` (n, 17)."""
        self.x, self.P = np.zeros(STATES), known.covariance
        self.update(residual, noise, jacobian)
        mean = known.mean + self.x
        mean[YAW] = wrap_angle(mean[YAW])
        return {'mean': mean, 'covariance': self.P}
