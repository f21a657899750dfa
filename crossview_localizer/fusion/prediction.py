"""How a belief is moved to a later stamp: by odometry, or else at its own speed."""

from bisect import bisect_left, bisect_right
import math

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import MatchErrors, OdometrySample
from crossview_localizer.fusion.belief import Belief, Memory, PoseEkf
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.motion_model import (
    add_coasting_noise,
    add_motion_noise,
    BIAS,
    body_velocity,
    bridge_sigma_m,
    coast,
    decay_rates,
    idle_noise,
    increment_between,
    interpolated_pose,
    is_impossible,
    is_jump,
    ODOMETRY_MAX_ACCEL_MPS2,
    ODOMETRY_MAX_GAP_S,
    propagate,
    slow_sigmas,
    SPEED,
    STATES,
    Velocity,
    YAW,
)
from crossview_localizer.geometry import Pose2D

# Without a fix or match for this long, odometry that is not believed is better than nothing.
DISBELIEF_SILENCE_S = 2.0
# An increment over a gap is used if the gap is at most this long and the speed is plausible.
ODOMETRY_BRIDGE_S = 10.0
# Memories are moved by the odometry of at most this time at once.
LONGEST_BEHIND_S = 1.0


class OdometryHistory:
    """The odometry samples that are kept, by stamp."""

    def __init__(self, samples: list[OdometrySample] = ()):
        self.samples = list(samples)
        self._stamps_ns = [sample.stamp_ns for sample in self.samples]

    def copy(self) -> 'OdometryHistory':
        return OdometryHistory(self.samples)

    def insert(self, sample: OdometrySample) -> None:
        index = bisect_left(self._stamps_ns, sample.stamp_ns)
        self.samples.insert(index, sample)
        self._stamps_ns.insert(index, sample.stamp_ns)

    def has(self, stamp_ns: int) -> bool:
        index = bisect_left(self._stamps_ns, stamp_ns)
        return index < len(self.samples) and self._stamps_ns[index] == stamp_ns

    def around(self, stamp_ns: int) -> tuple[OdometrySample | None, OdometrySample | None]:
        """The sample at or before a stamp and the one after; None if there is none."""
        index = bisect_right(self._stamps_ns, stamp_ns)
        return (self.samples[index - 1] if index else None,
                self.samples[index] if index < len(self.samples) else None)

    def since(self, stamp_ns: int) -> list[OdometrySample]:
        return self.samples[bisect_left(self._stamps_ns, stamp_ns):]

    def forget_before(self, stamp_ns: int) -> None:
        index = bisect_left(self._stamps_ns, stamp_ns)
        del self.samples[:index], self._stamps_ns[:index]

    def velocity_at(self, stamp_ns: int) -> Velocity:
        """See ``body_velocity``; zero while odometry is silent."""
        index = bisect_right(self._stamps_ns, stamp_ns)
        index = min(index, len(self.samples) - 1)
        standing = (0.0, 0.0, 0.0)
        if index < 1:
            return standing
        before, after = self.samples[index - 1], self.samples[index]
        if is_gap(before, after) or is_jump(before, after):
            return standing
        old = stamp_ns - after.stamp_ns > ODOMETRY_MAX_GAP_S * 1e9
        return standing if old else body_velocity(before, after)


def is_gap(before: OdometrySample, after: OdometrySample) -> bool:
    """Whether odometry was silent for longer than ODOMETRY_MAX_GAP_S."""
    return after.stamp_ns - before.stamp_ns > ODOMETRY_MAX_GAP_S * 1e9


def is_believed(belief: Belief, before: OdometrySample, after: OdometrySample) -> bool:
    """Whether the increment between two samples is used: it is no jump, and no gap or a bridge.

    Not while the odometry contradicts fixes or matches, see ``gnss_integrity``.
    """
    velocity = body_velocity(before, after)
    if is_disbelieved(belief) or is_impossible(velocity):
        return False
    if not is_gap(before, after):
        return True
    gap_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    mean_mps, known_mps = math.hypot(*velocity[:2]), math.hypot(*belief.velocity[:2])
    return (gap_s <= ODOMETRY_BRIDGE_S
            and abs(mean_mps - known_mps) <= ODOMETRY_MAX_ACCEL_MPS2 * gap_s / 2)


def is_disbelieved(belief: Belief) -> bool:
    """Whether fixes or matches move the pose in place of an odometry that they contradict."""
    return (belief.stamp_ns < belief.disbelieved_until_ns
            and belief.stamp_ns - belief.fixed_ns < DISBELIEF_SILENCE_S * 1e9)


def moved_to(belief: Belief, stamp_ns: int) -> Belief:
    """The belief after an odometry sample: it is what says that the vehicle moved until then."""
    if belief.moved_ns == stamp_ns or is_disbelieved(belief):
        return belief
    return changed(belief, moved_ns=stamp_ns)


def bridge_m2(belief: Belief, odometry: OdometryHistory) -> np.ndarray:
    """Covariance (2, 2) of a position interpolated inside a gap of the odometry."""
    before, after = odometry.around(belief.stamp_ns)
    if not (before and after and is_gap(before, after) and is_believed(belief, before, after)):
        return np.zeros((2, 2))
    sigma_m = bridge_sigma_m(
        (belief.stamp_ns - before.stamp_ns) * 1e-9, (after.stamp_ns - belief.stamp_ns) * 1e-9)
    return sigma_m**2 * np.eye(2)


class Predictor:
    """The prediction step of the Kalman filter."""

    def __init__(self, config: FilterConfig, errors: MatchErrors):
        self._config = config
        self._slow_variances, self._rates = slow_sigmas(config, errors) ** 2, decay_rates(config)
        self._ekf = PoseEkf()

    def advance(self, belief: Belief, stamp_ns: int, odometry: OdometryHistory) -> Belief:
        """Predict to a stamp; no odometry sample may lie between."""
        if stamp_ns == belief.stamp_ns:
            return belief
        return self.advance_with_jacobian(belief, stamp_ns, odometry)[0]

    def advance_with_jacobian(
        self, belief: Belief, stamp_ns: int, odometry: OdometryHistory,
    ) -> tuple[Belief, np.ndarray]:
        """The same, and the derivative (17, 17) of the new state by the old one."""
        if stamp_ns == belief.stamp_ns:
            return belief, np.eye(STATES)
        before, after = odometry.around(belief.stamp_ns)
        time_s = (stamp_ns - belief.stamp_ns) * 1e-9
        if not (before and after and is_believed(belief, before, after)):
            jump = bool(before and after) and is_jump(before, after)
            return self._coasted(self.catch_up(belief), stamp_ns, time_s, jump), self._ekf.F
        start = interpolated_pose(before, after, belief.stamp_ns)
        increment = increment_between(start, interpolated_pose(before, after, stamp_ns))
        end = body_velocity(before, after)
        begin = belief.increment_velocity or end
        behind, behind_s, behind_velocity = (
            belief.behind, belief.behind_s, belief.behind_velocity)
        if belief.memories:
            behind_velocity = begin if behind_s == 0.0 else behind_velocity
            behind, behind_s = behind @ increment, behind_s + time_s
        moved = self._moved(belief, increment, time_s, (begin, end), belief.receiver.wander_m2)
        jacobian = self._ekf.F
        belief = changed(
            belief, **moved, stamp_ns=stamp_ns, velocity=end, increment_velocity=end,
            moved_ns=stamp_ns, behind=behind, behind_s=behind_s, behind_velocity=behind_velocity,
            driven_m=belief.driven_m + math.hypot(increment.x_m, increment.y_m))
        return (self.catch_up(belief) if behind_s >= LONGEST_BEHIND_S else belief), jacobian

    def catch_up(self, belief: Belief) -> Belief:
        """Move the memories by the odometry that they are behind, as they must be corrected."""
        if not belief.memories or belief.behind_s == 0.0:
            return belief
        return changed(belief, behind=Pose2D(0.0, 0.0, 0.0), behind_s=0.0, memories=tuple(
            changed(memory, **self._moved(
                memory, belief.behind, belief.behind_s, (belief.behind_velocity, belief.velocity),
                belief.receiver.wander_m2))
            for memory in belief.memories))

    def _moved(self, known: Belief | Memory, increment: Pose2D, time_s: float,
               velocities: tuple[Velocity, Velocity], wander_m2: float) -> dict:
        """Mean and covariance after an increment of the odometry."""
        decay = np.exp(-time_s * self._rates)
        noise = self._idle_noise(known.mean, time_s, decay, wander_m2)
        add_motion_noise(noise, self._config, known.mean[YAW], increment)
        return self._ekf.predicted(
            known, propagate(known.mean, increment, time_s, decay, *velocities), noise)

    def _coasted(self, belief: Belief, stamp_ns: int, time_s: float, jump: bool) -> Belief:
        """The belief after ``time_s`` at its own speed; ``jump``: the odometry jumps there."""
        decay = np.exp(-time_s * self._rates)
        noise = self._idle_noise(belief.mean, time_s, decay, belief.receiver.wander_m2)
        begin_s, end_s = (
            (instant_ns - max(belief.moved_ns, belief.fixed_ns)) * 1e-9
            for instant_ns in (belief.stamp_ns, stamp_ns))
        moving_s = min(end_s, ODOMETRY_MAX_GAP_S) - min(begin_s, ODOMETRY_MAX_GAP_S)
        turning_s = (
            min(stamp_ns, belief.moved_ns + round(ODOMETRY_MAX_GAP_S * 1e9))
            - belief.stamp_ns) * 1e-9
        turn_rad = belief.velocity[2] * max(turning_s, 0.0)
        add_coasting_noise(noise, belief.mean, moving_s, turn_rad, begin_s, end_s, jump,
                           is_disbelieved(belief))
        memories = tuple(
            changed(memory, **self._ekf.predicted(
                memory, coast(memory.mean, moving_s, turn_rad, decay), noise))
            for memory in belief.memories)
        return changed(
            belief, **self._ekf.predicted(
                belief, coast(belief.mean, moving_s, turn_rad, decay), noise),
            stamp_ns=stamp_ns, memories=memories, increment_velocity=None,
            driven_m=belief.driven_m + abs(belief.mean[SPEED]) * moving_s)

    def _idle_noise(self, state, time_s: float, decay: np.ndarray, wander_m2: float) -> np.ndarray:
        slow_variances = self._slow_variances.copy()
        slow_variances[BIAS] = wander_m2
        return idle_noise(self._config, slow_variances, time_s, decay, state)
