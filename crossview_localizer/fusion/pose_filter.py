"""The Kalman prior: odometry drives the prediction, GNSS and matches correct it, in any order.

The model (state, motion, GNSS) is in ``filter_model``, the first heading in ``filter_start``,
whether GNSS can be trusted in ``gnss_trust``.

Events (odometry samples, fixes, courses, matches) of the last ``buffer_s`` are kept sorted by
stamp with the belief after each.  One that comes late goes where its stamp belongs and all after
it are replayed: the result depends on what was measured, not on when it arrived.  A fix or match
between two odometry samples sees the increment interpolated at its stamp; one newer than all
odometry is applied to a constant-velocity prediction and, once odometry has passed it, again and
for good.

Errors that are correlated in time: the slow GNSS error is a state (Gauss-Markov).  Matches that
follow within ``match_correlation_m`` and ``match_correlation_s`` of one already used see the same
scene; their covariance is divided by the share of those lengths that has passed, and so are
courses by ``course_correlation_s``.  Matches have heavy tails: the farther one lies from what was
predicted, the less it counts (Student t), up to the gate.
"""

from bisect import bisect_left, bisect_right
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import partial
import math

from filterpy.kalman import ExtendedKalmanFilter
import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    FilterUpdate,
    GnssCourse,
    GnssFix,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.gnss_integrity import GnssTrust, GnssTrustRules, Verdict
from crossview_localizer.fusion.heading_initializer import HeadingStart
from crossview_localizer.fusion.motion_model import (
    BIAS,
    body_velocity,
    bridge_sigma_m,
    coast,
    coast_jacobian,
    coasting_noise,
    decays,
    gnss_jacobian,
    gnss_prediction,
    idle_noise,
    interpolated_pose,
    is_jump,
    mahalanobis2,
    motion_noise,
    POSE,
    POSITION,
    propagate,
    propagate_jacobian,
    raised_to_floor,
    SCALE,
    SPEED,
    STATES,
    tail_weight,
    YAW,
)
from crossview_localizer.geometry import Pose2D, wrap_angle

# A sigma of 1000 km says nothing, and larger numbers would only lose digits in S = H P H' + R.
UNOBSERVED_VARIANCE = 1e12
# A heading less certain than this is none.
LOST_YAW_SIGMA_RAD = 0.7
# One match that is far off, in squared sigmas a coordinate, says no more than this.
MOST_SURPRISE = 25.0


class _PoseEkf(ExtendedKalmanFilter):
    """filterpy's algebra with the exact motion ``u`` in place of ``F x``."""

    def predict_x(self, u):
        self.x = u(self.x)


@dataclass(frozen=True)
class _Memory:
    """What the filter knew at a stamp, moved on since by odometry and matches but by no fix."""

    taken_ns: int
    mean: np.ndarray
    covariance: np.ndarray


@dataclass(frozen=True)
class _Belief:
    """All that the filter knows after an event; never changed, so that it can be gone back to."""

    stamp_ns: int
    mean: np.ndarray
    covariance: np.ndarray
    velocity: tuple[float, float, float]  # body-frame x, y (m/s) and turn (rad/s) by odometry
    moved_ns: int  # up to here odometry has told the motion
    fixed_ns: int  # last used fix or match: without odometry the pose coasts on from here
    memories: tuple[_Memory, ...] = ()  # at most two, the older first
    trust: GnssTrust = GnssTrust()
    driven_m: float = 0.0
    match_ns: int | None = None  # last used match, and the distance driven by then
    match_driven_m: float = 0.0
    match_refused_ns: int | None = None  # first of an unbroken run of refused matches
    match_seen_ns: int | None = None  # last match, used or refused
    match_surprise: float = 1.0  # mean squared distance of recent matches a coordinate
    course_ns: int | None = None  # last used course


@dataclass(frozen=True)
class _Event:
    order: tuple  # stamp, kind, values: a total order that arrival has no part in
    measurement: OdometrySample | GnssFix | PoseEstimate | GnssCourse
    noise: np.ndarray | None = None
    observed: np.ndarray | None = None

    @property
    def stamp_ns(self) -> int:
        return self.order[0]


class PoseFilter:
    """Pose of base_link in ``map`` from odometry, GNSS and matches.

    Measurements give a :class:`FilterUpdate` and are never an error: what cannot be used is
    INVALID, GATED, TOO_OLD, TOO_SLOW or NOT_STARTED, with a reason, and leaves the estimate as it
    was.
    """

    def __init__(self, config: FilterConfig):
        self._config = config
        self._ekf = _PoseEkf(dim_x=STATES, dim_z=2)
        self._trust_rules = GnssTrustRules(config)
        self._course_gate = chdtri(1, 1.0 - config.gnss_gate_probability)
        self._match_gates = [
            chdtri(dof, 1.0 - config.match_gate_probability) for dof in (1, 2, 3)]
        self.reset()

    def reset(self) -> None:
        """Forget everything and wait for a start."""
        self._base: _Belief | None = None
        self._events: list[_Event] = []
        self._beliefs: list[_Belief] = []
        self._odometry: list[OdometrySample] = []
        self._start = HeadingStart(self._config)

    def copy(self) -> 'PoseFilter':
        """Another filter that knows the same; what either is given later the other is not."""
        twin = copy(self)
        # Beliefs, events and samples never change: the lists alone are copied.
        twin._events, twin._beliefs = list(self._events), list(self._beliefs)
        twin._odometry = list(self._odometry)
        twin._start = deepcopy(self._start)
        return twin

    @property
    def started(self) -> bool:
        return self._base is not None

    @property
    def latest_stamp_ns(self) -> int | None:
        """Stamp of the newest odometry, or of the start where that is newer; None before both."""
        stamps = [self._odometry[-1].stamp_ns] if self._odometry else []
        if self._base is not None:
            stamps.append(self._base.stamp_ns)
        return max(stamps, default=None)

    def add_odometry(self, sample: OdometrySample) -> FilterUpdate:
        values = tuple(sample.odom_from_base.as_array())
        problem = _problem(sample.stamp_ns, values)
        index = bisect_left(self._odometry, sample.stamp_ns, key=_stamp)
        if index < len(self._odometry) and self._odometry[index].stamp_ns == sample.stamp_ns:
            problem = problem or 'a second odometry sample of the same stamp'
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if self._odometry and sample.stamp_ns < self._buffer_begin_ns():
            return self._too_old(sample.stamp_ns)

        previous = self._odometry[index - 1] if index else None
        jump = previous is not None and is_jump(self._config, previous, sample)
        gap = previous is not None and self._is_gap(previous, sample)
        self._odometry.insert(index, sample)
        if self._base is None:
            if jump or gap:
                self._odometry = [sample]
                self._start = HeadingStart(self._config)
            update = self._try_start()
        else:
            if sample.stamp_ns > self._base.stamp_ns:
                # The interval that the sample ends or splits begins at the odometry before it.
                event = _Event((sample.stamp_ns, 0, *values), sample)
                self._insert(event, redo_from_ns=previous.stamp_ns if previous else None)
            else:
                self._replay(0)
            update = self._check_heading(sample, previous if gap else None)
            if self.started:
                self._trim()
        if jump:
            return FilterUpdate(
                Outcome.INVALID, f'odometry jumped by {_step_text(previous, sample)}; the '
                'increment is not used and the position sigma is widened instead')
        return update

    def add_gnss(self, fix: GnssFix) -> FilterUpdate:
        values = (fix.x_m, fix.y_m)
        problem = _problem(fix.stamp_ns, (*values, *fix.base_from_antenna_m), fix.covariance, 2)
        problem = problem or self._ahead(fix.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if too_old := self._too_old(fix.stamp_ns):
            return too_old
        if self._base is None:
            self._start.add_fix(fix)
            return self._try_start()
        noise = raised_to_floor(np.asarray(fix.covariance), self._config.gnss_sigma_floor_m)
        return self._insert(_Event((fix.stamp_ns, 1, *values), fix, noise))

    def add_course(self, course: GnssCourse) -> FilterUpdate:
        """Fuse a direction of motion; below ``course_min_speed_mps`` it is refused as TOO_SLOW."""
        problem = _problem(
            course.stamp_ns, (course.course_rad, *course.base_from_antenna_m),
            [[course.sigma_rad**2]], 1)
        problem = problem or self._ahead(course.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if too_old := self._too_old(course.stamp_ns):
            return too_old
        if self._base is None:
            return FilterUpdate(Outcome.NOT_STARTED, self._start.find(self._odometry)[2])
        sigma_rad = max(course.sigma_rad, self._config.course_sigma_floor_rad)
        return self._insert(_Event(
            (course.stamp_ns, 3, course.course_rad), course, np.array([[sigma_rad**2]])))

    def add_match(self, match: PoseEstimate) -> FilterUpdate:
        """Fuse a match at its own stamp; a variance of inf (or above 1e12) is not observed."""
        values = match.pose.as_array()
        covariance = np.asarray(match.covariance, dtype=float)
        if covariance.shape != (3, 3):
            return FilterUpdate(
                Outcome.INVALID, f'covariance has shape {covariance.shape}; expected (3, 3)')
        observed = np.flatnonzero(~(np.diag(covariance) >= UNOBSERVED_VARIANCE))
        if not len(observed):
            return FilterUpdate(Outcome.INVALID, 'the match observes no coordinate')
        noise = covariance[np.ix_(observed, observed)]
        problem = _problem(match.stamp_ns, values[observed], noise, len(observed))
        problem = problem or self._ahead(match.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if self._base is None:
            return FilterUpdate(Outcome.NOT_STARTED, self._start.find(self._odometry)[2])
        if too_old := self._too_old(match.stamp_ns):
            return too_old
        noise = self._config.match_inflation * noise
        planar = np.ix_(observed < YAW, observed < YAW)
        if noise[planar].size:
            noise[planar] = raised_to_floor(noise[planar], self._config.match_sigma_floor_m)
        if observed[-1] == YAW:
            noise[-1, -1] = max(noise[-1, -1], self._config.match_yaw_sigma_floor_rad**2)
        return self._insert(_Event((match.stamp_ns, 2, *values), match, noise, observed))

    def set_pose(self, estimate: PoseEstimate) -> FilterUpdate:
        """Start, or start again, at a pose given from outside; later events are applied to it."""
        problem = _problem(
            estimate.stamp_ns, estimate.pose.as_array(), estimate.covariance, 3)
        if not problem and estimate.covariance[2][2] > LOST_YAW_SIGMA_RAD**2:
            problem = (
                f'yaw sigma is {math.sqrt(estimate.covariance[2][2]):.2f} rad; expected at most '
                f'{LOST_YAW_SIGMA_RAD:.2f}')
        problem = problem or self._ahead(estimate.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if self._odometry and estimate.stamp_ns < self._buffer_begin_ns():
            return self._too_old(estimate.stamp_ns)
        covariance = np.diag([
            0.0, 0.0, 0.0, 0.0, self._config.odometry_scale_sigma,
            self._config.odometry_turn_bias_sigma_radps,
            self._config.gnss_bias_sigma_m, self._config.gnss_bias_sigma_m]) ** 2
        covariance[POSE, POSE] = estimate.covariance
        mean = np.zeros(STATES)
        mean[POSE] = estimate.pose.as_array()
        self._begin(estimate.stamp_ns, mean, covariance)
        return FilterUpdate(Outcome.USED)

    def estimate_at(self, stamp_ns: int) -> PoseEstimate | None:
        """Pose at a stamp from all events up to it; None before the start or before the buffer.

        Past the last odometry, fix or match the pose moves on at constant velocity for
        ``odometry_max_gap_s`` and is then held, its covariance growing all the while.
        """
        if self._base is None or stamp_ns < self._base.stamp_ns:
            return None
        index = bisect_right(self._events, stamp_ns, key=_stamp)
        belief = self._advance(self._beliefs[index - 1] if index else self._base, stamp_ns)
        covariance = belief.covariance[POSE, POSE].copy()
        covariance[POSITION, POSITION] += self._bridge_m2(belief)
        return PoseEstimate(stamp_ns, Pose2D(*map(float, belief.mean[POSE])), covariance)

    def _try_start(self) -> FilterUpdate:
        stamp_ns, start, reason = self._start.find(self._odometry)
        if start is not None:
            self._begin(stamp_ns, start.mean, start.covariance)
            return FilterUpdate(Outcome.USED, reason)
        if self._odometry:
            buffer_ns = self._buffer_begin_ns()
            oldest_ns = min(buffer_ns, self._start.needed_from_ns() or buffer_ns)
            keep = bisect_right(self._odometry, oldest_ns, key=_stamp) - 1
            del self._odometry[:max(keep, 0)]
        return FilterUpdate(Outcome.NOT_STARTED, reason)

    # --- the time line ---------------------------------------------------------------------------

    def _insert(self, event: _Event, redo_from_ns: int | None = None) -> FilterUpdate:
        """Put an event where its stamp belongs; replay from there, or from ``redo_from_ns`` on."""
        index = bisect_left(self._events, event.order, key=lambda other: other.order)
        if index < len(self._events) and self._events[index].order == event.order:
            return FilterUpdate(Outcome.INVALID, 'the same measurement has been given before')
        self._events.insert(index, event)
        if redo_from_ns is not None:
            index = min(index, bisect_right(self._events, redo_from_ns, key=_stamp))
        return self._replay(index, event)

    def _replay(self, index: int, wanted: _Event | None = None) -> FilterUpdate | None:
        """Recompute the beliefs from ``index`` on; returns what became of the wanted event."""
        del self._beliefs[index:]
        belief = self._beliefs[-1] if self._beliefs else self._base
        result = None
        for event in self._events[index:]:
            belief, update = self._apply(self._advance(belief, event.stamp_ns), event)
            self._beliefs.append(belief)
            if event is wanted:
                result = update
        return result

    def _apply(self, belief: _Belief, event: _Event) -> tuple[_Belief, FilterUpdate]:
        if event.order[1] == 0:
            return replace(belief, moved_ns=event.stamp_ns), FilterUpdate(Outcome.USED)
        if event.order[1] == 1:
            return self._apply_gnss(belief, event)
        if event.order[1] == 2:
            return self._apply_match(belief, event)
        return self._apply_course(belief, event)

    def _begin(self, stamp_ns: int, mean: np.ndarray, covariance: np.ndarray) -> None:
        velocity = self._velocity_at(stamp_ns)
        mean[SPEED] = math.exp(mean[SCALE]) * velocity[0]
        covariance[SPEED, SPEED] = (
            self._config.odometry_speed_noise_mps if self._odometry
            else self._config.coast_hold_speed_mps) ** 2
        self._base = _Belief(stamp_ns, mean, covariance, velocity, stamp_ns, stamp_ns)
        later = [event for event in self._events if event.order[1] and event.stamp_ns > stamp_ns]
        later += [
            _Event((sample.stamp_ns, 0, *sample.odom_from_base.as_array()), sample)
            for sample in self._odometry if sample.stamp_ns > stamp_ns]
        self._events = sorted(later, key=lambda event: event.order)
        self._start = HeadingStart(self._config)
        self._replay(0)

    def _trim(self) -> None:
        """Let go of what no late measurement can touch; the base stays on an odometry sample."""
        drop = bisect_right(self._events, self._buffer_begin_ns(), key=_stamp)
        while drop and self._events[drop - 1].order[1]:
            drop -= 1
        if drop:
            self._base = self._beliefs[drop - 1]
            del self._events[:drop], self._beliefs[:drop]
            del self._odometry[:bisect_left(self._odometry, self._base.stamp_ns, key=_stamp)]

    def _buffer_begin_ns(self) -> int:
        return self._odometry[-1].stamp_ns - round(self._config.buffer_s * 1e9)

    def _too_old(self, stamp_ns: int) -> FilterUpdate | None:
        if self._odometry and stamp_ns < self._buffer_begin_ns():
            late_s = (self._odometry[-1].stamp_ns - stamp_ns) * 1e-9
            return FilterUpdate(
                Outcome.TOO_OLD, f'{late_s:.2f} s before the newest odometry, of which the delay '
                f'buffer holds {self._config.buffer_s:.2f} s; reset if the clock jumped back')
        if self._base is not None and stamp_ns < self._base.stamp_ns:
            return FilterUpdate(Outcome.TOO_OLD, 'from before the pose that was started from')
        return None

    def _ahead(self, stamp_ns: int) -> str:
        latest_ns = self.latest_stamp_ns
        if latest_ns is None or stamp_ns - latest_ns <= self._config.odometry_lost_s * 1e9:
            return ''
        return (f'{(stamp_ns - latest_ns) * 1e-9:.1f} s ahead of the last odometry; expected at '
                f'most {self._config.odometry_lost_s:.1f} s')

    # --- motion ----------------------------------------------------------------------------------

    def _advance(self, belief: _Belief, stamp_ns: int) -> _Belief:
        """Predict to a stamp; no odometry sample may lie between."""
        if stamp_ns == belief.stamp_ns:
            return belief
        before, after = self._odometry_around(belief.stamp_ns)
        time_s = (stamp_ns - belief.stamp_ns) * 1e-9
        decay = decays(self._config, time_s)
        noise = idle_noise(self._config, time_s, decay)
        if before and after and self._is_told(belief, before, after):
            start = interpolated_pose(before, after, belief.stamp_ns)
            increment = start.inverse() @ interpolated_pose(before, after, stamp_ns)
            motion, jacobian = (
                partial(function, increment=increment, time_s=time_s, decay=decay)
                for function in (propagate, propagate_jacobian))
            noise += motion_noise(self._config, belief.mean[YAW], increment)
            distance_m = math.hypot(increment.x_m, increment.y_m)
            belief = replace(belief, velocity=body_velocity(before, after), moved_ns=stamp_ns)
        else:
            gap_s = self._config.odometry_max_gap_s
            begin_s, end_s = (
                (instant_ns - max(belief.moved_ns, belief.fixed_ns)) * 1e-9
                for instant_ns in (belief.stamp_ns, stamp_ns))
            moving_s = min(end_s, gap_s) - min(begin_s, gap_s)
            turning_s = (
                min(stamp_ns, belief.moved_ns + round(gap_s * 1e9)) - belief.stamp_ns) * 1e-9
            turn_rad = belief.velocity[2] * max(turning_s, 0.0)
            motion, jacobian = (
                partial(function, moving_s=moving_s, turn_rad=turn_rad, decay=decay)
                for function in (coast, coast_jacobian))
            jump = bool(before and after) and is_jump(self._config, before, after)
            noise += coasting_noise(
                self._config, belief.mean, moving_s, turn_rad, begin_s, end_s, jump)
            distance_m = abs(belief.mean[SPEED]) * moving_s

        memories = tuple(
            replace(memory, **self._predict(memory, motion, jacobian, noise))
            for memory in belief.memories)
        return replace(
            belief, **self._predict(belief, motion, jacobian, noise), stamp_ns=stamp_ns,
            memories=memories, driven_m=belief.driven_m + distance_m)

    def _predict(self, known: _Belief | _Memory, motion, jacobian, noise) -> dict:
        self._ekf.x, self._ekf.P = known.mean, known.covariance
        self._ekf.F, self._ekf.Q = jacobian(known.mean), noise
        self._ekf.predict(motion)
        return {'mean': self._ekf.x, 'covariance': self._ekf.P}

    def _odometry_around(self, stamp_ns: int):
        """The samples at or before and after a stamp; None where there is none."""
        index = bisect_right(self._odometry, stamp_ns, key=_stamp)
        return (self._odometry[index - 1] if index else None,
                self._odometry[index] if index < len(self._odometry) else None)

    def _is_told(self, belief: _Belief, before: OdometrySample, after: OdometrySample) -> bool:
        """Whether the increment between two samples is believed."""
        if is_jump(self._config, before, after):
            return False
        gap_s = (after.stamp_ns - before.stamp_ns) * 1e-9
        if gap_s <= self._config.odometry_max_gap_s:
            return True
        mean_mps, known_mps = (
            math.hypot(*velocity[:2]) for velocity in (
                body_velocity(before, after), belief.velocity))
        return (gap_s <= self._config.odometry_bridge_s
                and abs(mean_mps - known_mps) <= self._config.odometry_max_accel_mps2 * gap_s / 2)

    def _bridge_m2(self, belief: _Belief) -> np.ndarray:
        """Covariance (2, 2) of a position interpolated inside a gap of the odometry."""
        before, after = self._odometry_around(belief.stamp_ns)
        if not (before and after and self._is_gap(before, after)
                and self._is_told(belief, before, after)):
            return np.zeros((2, 2))
        sigma_m = bridge_sigma_m(
            self._config, (belief.stamp_ns - before.stamp_ns) * 1e-9,
            (after.stamp_ns - belief.stamp_ns) * 1e-9)
        return sigma_m**2 * np.eye(2)

    def _is_gap(self, before: OdometrySample, after: OdometrySample) -> bool:
        return after.stamp_ns - before.stamp_ns > self._config.odometry_max_gap_s * 1e9

    def _velocity_at(self, stamp_ns: int) -> tuple[float, float, float]:
        index = bisect_right(self._odometry, stamp_ns, key=_stamp)
        index = min(index, len(self._odometry) - 1)
        standing = (0.0, 0.0, 0.0)
        if index < 1:
            return standing
        before, after = self._odometry[index - 1], self._odometry[index]
        if self._is_gap(before, after) or is_jump(self._config, before, after):
            return standing
        old = stamp_ns - after.stamp_ns > self._config.odometry_max_gap_s * 1e9
        return standing if old else body_velocity(before, after)

    def _check_heading(self, sample, gap_start: OdometrySample | None) -> FilterUpdate:
        """Start anew where motion without odometry has left the heading too uncertain."""
        reason = ''
        index = bisect_right(self._events, sample.stamp_ns, key=_stamp)
        if gap_start is not None:
            before_gap = bisect_right(self._events, gap_start.stamp_ns, key=_stamp)
            known = self._beliefs[before_gap - 1] if before_gap else self._base
            if not self._is_told(known, gap_start, sample):
                gap_s = (sample.stamp_ns - gap_start.stamp_ns) * 1e-9
                reason = f'{gap_s:.1f} s without odometry: the increment over the gap is not used'
        belief = self._beliefs[index - 1] if index else self._base
        yaw_sigma_rad = math.sqrt(belief.covariance[YAW, YAW])
        if yaw_sigma_rad <= LOST_YAW_SIGMA_RAD:
            return FilterUpdate(Outcome.USED, reason)
        later = self._odometry[bisect_left(self._odometry, sample.stamp_ns, key=_stamp):]
        self.reset()
        self._odometry = later
        return FilterUpdate(
            Outcome.NOT_STARTED,
            f'heading sigma has grown to {yaw_sigma_rad:.1f} rad without odometry; starting anew')

    # --- corrections -----------------------------------------------------------------------------

    def _update(self, known: _Belief | _Memory, residual, jacobian, noise) -> dict:
        """Correct by a residual (n,) = measured - predicted with ``jacobian`` (n, 8)."""
        self._ekf.x, self._ekf.P = known.mean, known.covariance
        self._ekf.update(
            residual, lambda _: jacobian, lambda _: np.zeros(len(residual)), R=noise)
        self._ekf.x[YAW] = wrap_angle(self._ekf.x[YAW])
        return {'mean': self._ekf.x, 'covariance': self._ekf.P}

    def _apply_gnss(self, belief: _Belief, event: _Event) -> tuple[_Belief, FilterUpdate]:
        fix = event.measurement
        jacobian = gnss_jacobian(belief.mean, fix.base_from_antenna_m)
        noise = event.noise + self._bridge_m2(belief)

        def residual_of(known):
            predicted_m = gnss_prediction(known.mean, fix.base_from_antenna_m)
            return np.array([fix.x_m, fix.y_m]) - predicted_m

        residual = residual_of(belief)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        memory_distance2 = max((
            mahalanobis2(residual_of(memory), jacobian, memory.covariance, noise)
            for memory in belief.memories[:1]), default=0.0)
        verdict, trust, reason = self._trust_rules.judge(
            belief.trust, fix.stamp_ns, residual, noise, belief.driven_m, distance2,
            memory_distance2)
        belief = replace(belief, trust=trust)
        if verdict is Verdict.REFUSE:
            return belief, FilterUpdate(Outcome.GATED, reason, distance2)
        if verdict is Verdict.GO_BACK:
            older = belief.memories[0]
            belief = replace(
                belief, mean=older.mean, covariance=older.covariance, memories=(older,))
            return belief, FilterUpdate(Outcome.GATED, reason, distance2)
        if verdict is Verdict.OPEN:
            belief, opened = self._opened(belief, float(residual @ residual))
            reason = f'{opened} opened after {reason}'
        belief = replace(
            belief, **self._update(belief, residual, jacobian, noise), fixed_ns=fix.stamp_ns)
        if verdict is Verdict.OPEN:
            return replace(belief, memories=()), FilterUpdate(Outcome.USED, reason, distance2)
        return self._remembering(belief), FilterUpdate(Outcome.USED, reason, distance2)

    def _remembering(self, belief: _Belief) -> _Belief:
        """Every ``gnss_memory_s`` of a settled heading the older memory makes room for a new."""
        settled = belief.covariance[YAW, YAW] < self._config.gnss_memory_yaw_sigma_rad**2
        due_ns = self._config.gnss_memory_s * 1e9
        if not settled or (
                belief.memories and belief.stamp_ns - belief.memories[-1].taken_ns < due_ns):
            return belief
        now = _Memory(belief.stamp_ns, belief.mean, belief.covariance)
        return replace(belief, memories=(*belief.memories[-1:], now))

    def _opened(self, belief: _Belief, residual_m2: float) -> tuple[_Belief, str]:
        """Widen what may explain the refused fixes: GNSS bias where matches hold the pose."""
        matched_s = (
            math.inf if belief.match_ns is None else (belief.stamp_ns - belief.match_ns) * 1e-9)
        added = np.zeros(STATES)
        if matched_s < self._config.gnss_gate_patience_s:
            name = 'GNSS bias'
            added[BIAS] = residual_m2
        else:
            name = 'pose'
            added[POSITION] = residual_m2
            added[YAW] = self._config.start_yaw_sigma_rad**2
        return replace(belief, covariance=belief.covariance + np.diag(added)), name

    def _apply_course(self, belief: _Belief, event: _Event) -> tuple[_Belief, FilterUpdate]:
        course = event.measurement
        lever_x_m, lever_y_m = course.base_from_antenna_m
        _, side_mps, turn_radps = belief.velocity
        ahead_mps = belief.mean[SPEED] - turn_radps * lever_y_m
        if ahead_mps < self._config.course_min_speed_mps:
            return belief, FilterUpdate(
                Outcome.TOO_SLOW, f'{ahead_mps:.1f} m/s; expected at least '
                f'{self._config.course_min_speed_mps:.1f} m/s')
        slip_rad = math.atan2(side_mps + turn_radps * lever_x_m, ahead_mps)
        residual = np.array([wrap_angle(course.course_rad - belief.mean[YAW] - slip_rad)])
        jacobian = np.eye(STATES)[[YAW]]
        noise = event.noise + (turn_radps * self._config.course_delay_s) ** 2
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        if distance2 > self._course_gate or belief.trust.distrusted_ns is not None:
            return belief, FilterUpdate(Outcome.GATED, 'course refused', distance2)
        share = 1.0
        if belief.course_ns is not None and self._config.course_correlation_s > 0.0:
            passed_s = (course.stamp_ns - belief.course_ns) * 1e-9
            share = min(1.0, passed_s / self._config.course_correlation_s)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second course of the same instant', distance2)
        updated = self._update(belief, residual, jacobian, noise / share)
        return (replace(belief, **updated, course_ns=course.stamp_ns),
                FilterUpdate(Outcome.USED, '', distance2))

    def _apply_match(self, belief: _Belief, event: _Event) -> tuple[_Belief, FilterUpdate]:
        jacobian = np.eye(STATES)[event.observed]
        noise = event.noise.copy()
        if event.observed[:2].tolist() == [0, 1]:
            noise[POSITION, POSITION] += self._bridge_m2(belief)

        def residual_of(known):
            residual = (event.measurement.pose.as_array() - known.mean[POSE])[event.observed]
            if event.observed[-1] == YAW:
                residual[-1] = wrap_angle(residual[-1])
            return residual

        residual = residual_of(belief)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        belief = self._surprised(belief, event.stamp_ns, distance2 / len(residual))
        if distance2 > self._match_gates[len(residual) - 1]:
            since_ns = belief.match_refused_ns or event.stamp_ns
            reason = f'refused for {(event.stamp_ns - since_ns) * 1e-9:.1f} s'
            if belief.trust.refused_ns is not None:
                reason += '; GNSS is refused too'
            return (
                replace(belief, match_refused_ns=since_ns),
                FilterUpdate(Outcome.GATED, reason, distance2))
        share = self._new_information(belief)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second match of the same instant', distance2)
        share *= tail_weight(distance2, len(residual), self._config.match_tail_dof)
        share /= max(1.0, belief.match_surprise)
        belief = replace(
            belief, **self._update(belief, residual, jacobian, noise / share),
            memories=tuple(
                replace(memory, **self._update(
                    memory, residual_of(memory), jacobian, noise / share))
                for memory in belief.memories),
            match_ns=event.stamp_ns, match_driven_m=belief.driven_m, match_refused_ns=None)
        if event.observed[:2].tolist() == [0, 1]:
            belief = replace(belief, fixed_ns=event.stamp_ns)
        return belief, FilterUpdate(Outcome.USED, '', distance2)

    def _surprised(self, belief: _Belief, stamp_ns: int, distance2: float) -> _Belief:
        """Follow how far matches, used or refused, lie from the prediction; 1 is as claimed."""
        since_s = (stamp_ns - (belief.match_seen_ns or stamp_ns)) * 1e-9
        keep = math.exp(-since_s / self._config.match_surprise_s)
        surprise = keep * belief.match_surprise + (1.0 - keep) * min(distance2, MOST_SURPRISE)
        return replace(belief, match_surprise=surprise, match_seen_ns=stamp_ns)

    def _new_information(self, belief: _Belief) -> float:
        """Share (0 to 1) of a match's information that the last used match did not hold."""
        if belief.match_ns is None:
            return 1.0
        driven_m = belief.driven_m - belief.match_driven_m
        passed_s = (belief.stamp_ns - belief.match_ns) * 1e-9
        shares = [
            passed / length if length > 0.0 else 1.0
            for passed, length in ((driven_m, self._config.match_correlation_m),
                                   (passed_s, self._config.match_correlation_s))]
        return min(1.0, max(shares))


def _stamp(item) -> int:
    return item.stamp_ns


def _step_text(before: OdometrySample, after: OdometrySample) -> str:
    step = before.odom_from_base.inverse() @ after.odom_from_base
    time_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    return (f'{math.hypot(step.x_m, step.y_m):.1f} m and {step.yaw_rad:.2f} rad '
            f'in {time_s:.3f} s')


def _problem(stamp_ns: int, values, covariance=None, size: int = 0) -> str:
    """What is wrong with a measurement, or ''."""
    if stamp_ns <= 0:
        return f'stamp is {stamp_ns} ns; expected a positive time'
    if not np.isfinite(values).all():
        return f'not finite: {", ".join(f"{value:g}" for value in values)}'
    if covariance is None:
        return ''
    covariance = np.asarray(covariance, dtype=float)
    if covariance.shape != (size, size):
        return f'covariance has shape {covariance.shape}; expected {(size, size)}'
    if not np.isfinite(covariance).all():
        return 'covariance is not finite'
    lopsided = np.abs(covariance - covariance.T).max() > 1e-6 * np.abs(covariance).max()
    if lopsided or np.linalg.eigvalsh(covariance)[0] <= 0.0:
        return 'covariance is not positive definite'
    return ''
