"""What the filter knows after an event, and the Kalman algebra that moves and corrects it."""

from dataclasses import dataclass

from filterpy.kalman import ExtendedKalmanFilter
import numpy as np

from crossview_localizer.fusion.gnss_integrity import GnssTrust
from crossview_localizer.fusion.motion_model import STATES, YAW
from crossview_localizer.geometry import wrap_angle


@dataclass(frozen=True)
class Memory:
    """What the filter knew at a stamp, moved on since by odometry and matches but by no fix.

    ``mean`` (8,) and ``covariance`` (8, 8) of the state of ``motion_model``.
    """

    taken_ns: int
    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class Belief:
    """All that the filter knows after an event; never changed, so that it can be gone back to."""

    stamp_ns: int
    mean: np.ndarray
    covariance: np.ndarray
    velocity: tuple[float, float, float]  # body-frame x, y (m/s) and turn (rad/s) by odometry
    moved_ns: int  # up to here odometry tells the motion
    fixed_ns: int  # last used fix or match: without odometry the pose coasts on from here
    memories: tuple[Memory, ...] = ()  # at most two, the older first
    trust: GnssTrust = GnssTrust()
    driven_m: float = 0.0
    match_ns: int | None = None  # last used match, and the distance driven by then
    match_driven_m: float = 0.0
    match_refused_ns: int | None = None  # first of an unbroken run of refused matches
    match_seen_ns: int | None = None  # last match, used or refused
    match_distance2: float = 1.0  # mean squared distance of recent matches, for one coordinate
    course_ns: int | None = None  # last used course


class PoseEkf(ExtendedKalmanFilter):
    """filterpy's algebra; what it gives are the new ``mean`` and ``covariance``."""

    def __init__(self):
        super().__init__(dim_x=STATES, dim_z=2)

    def predict_x(self, u):
        """The exact motion ``u`` in place of ``F x``."""
        self.x = u(self.x)

    def predicted(self, known: Belief | Memory, motion, jacobian, noise) -> dict:
        """Move by ``motion``, a function of the state, with its ``jacobian`` likewise."""
        self.x, self.P = known.mean, known.covariance
        self.F, self.Q = jacobian(known.mean), noise
        self.predict(motion)
        return {'mean': self.x, 'covariance': self.P}

    def corrected(self, known: Belief | Memory, residual, jacobian, noise) -> dict:
        """Correct by a residual (n,) = measured - predicted with ``jacobian`` (n, 8)."""
        self.x, self.P = known.mean, known.covariance
        self.update(residual, lambda _: jacobian, lambda _: np.zeros(len(residual)), R=noise)
        self.x[YAW] = wrap_angle(self.x[YAW])
        return {'mean': self.x, 'covariance': self.P}
