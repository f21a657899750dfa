"""The Kalman prior: odometry drives the prediction, GNSS and matches correct it, in any order.

The model (state, motion, GNSS) is in ``filter_model``, the first heading in ``filter_start``.

Events (odometry samples, fixes, matches) of the last ``buffer_s`` are kept sorted by stamp with
the belief after each.  One that comes late goes where its stamp belongs and all after it are
replayed: the result depends on what was measured, not on when it arrived.  A fix or match between
two odometry samples sees the increment interpolated at its stamp; one newer than all odometry is
applied to a constant-velocity prediction and, once odometry has passed it, again and for good.

Errors that are correlated in time: the slow GNSS error is a state (Gauss-Markov).  Matches that
follow within ``match_correlation_m`` and ``match_correlation_s`` of one already used see the same
scene; their covariance is divided by the share of those lengths that has passed.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
import math

from filterpy.kalman import ExtendedKalmanFilter
import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    FilterUpdate,
    GnssFix,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.filter_model import (
    body_velocity,
    coasting_noise,
    coasting_step,
    decays,
    gnss_jacobian,
    gnss_prediction,
    interpolated_pose,
    mahalanobis2,
    motion_noise,
    POSE,
    propagate,
    propagate_jacobian,
    raised_to_floor,
    YAW,
)
from crossview_localizer.filter_start import HeadingStart
from crossview_localizer.geometry import Pose2D, wrap_angle

# A sigma of 1000 km says nothing, and larger numbers would only lose digits in S = H P H' + R.
UNOBSERVED_VARIANCE = 1e12


class _PoseEkf(ExtendedKalmanFilter):
    """filterpy's algebra with the exact motion in place of ``F x``."""

    def predict_x(self, u):
        self.x = propagate(self.x, *u)


@dataclass(frozen=True)
class _Belief:
    """All that the filter knows after an event; never changed, so that it can be gone back to."""

    stamp_ns: int
    mean: np.ndarray
    covariance: np.ndarray
    velocity: tuple[float, float, float]  # body-frame x, y (m/s) and turn (rad/s) by odometry
    moved_ns: int  # up to here odometry has told the motion
    fixed_ns: int  # last used fix or match: position sigma of coasting grows from here
    driven_m: float = 0.0
    match_ns: int | None = None  # last used match, and the distance driven by then
    match_driven_m: float = 0.0
    match_refused_ns: int | None = None  # first of an unbroken run of refused matches
    gnss_refused_ns: int | None = None
    gnss_ns: int = 0  # last fix, used or refused


@dataclass(frozen=True)
class _Event:
    order: tuple  # stamp, kind, values: a total order that arrival has no part in
    measurement: OdometrySample | GnssFix | PoseEstimate
    noise: np.ndarray | None = None
    observed: np.ndarray | None = None

    @property
    def stamp_ns(self) -> int:
        return self.order[0]


class PoseFilter:
    """Pose of base_link in ``map`` from odometry, GNSS and matches.

    Measurements give a :class:`FilterUpdate` and are never an error: what cannot be used is
    INVALID, GATED, TOO_OLD or NOT_STARTED, with a reason, and leaves the estimate as it was.
    """

    def __init__(self, config: FilterConfig):
        self._config = config
        self._ekf = _PoseEkf(dim_x=6, dim_z=2)
        self._gnss_gate = chdtri(2, 1.0 - config.gnss_gate_probability)
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
        jump = previous is not None and self._is_jump(previous, sample)
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
        if not problem and estimate.covariance[2][2] > self._config.lost_yaw_sigma_rad**2:
            problem = (
                f'yaw sigma is {math.sqrt(estimate.covariance[2][2]):.2f} rad; expected at most '
                f'{self._config.lost_yaw_sigma_rad:.2f}')
        problem = problem or self._ahead(estimate.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if self._odometry and estimate.stamp_ns < self._buffer_begin_ns():
            return self._too_old(estimate.stamp_ns)
        covariance = np.diag([
            0.0, 0.0, 0.0, self._config.odometry_scale_sigma**2,
            *[self._config.gnss_bias_sigma_m**2] * 2])
        covariance[POSE, POSE] = estimate.covariance
        mean = np.concatenate((estimate.pose.as_array(), np.zeros(3)))
        self._begin(estimate.stamp_ns, mean, covariance)
        return FilterUpdate(Outcome.USED)

    def estimate_at(self, stamp_ns: int) -> PoseEstimate | None:
        """Pose at a stamp from all events up to it; None before the start or before the buffer.

        Past the last odometry the pose moves on at constant velocity for ``odometry_max_gap_s``
        and is then held, its covariance growing all the while.
        """
        if self._base is None or stamp_ns < self._base.stamp_ns:
            return None
        index = bisect_right(self._events, stamp_ns, key=_stamp)
        belief = self._advance(self._beliefs[index - 1] if index else self._base, stamp_ns)
        return PoseEstimate(
            stamp_ns, Pose2D(*map(float, belief.mean[POSE])), belief.covariance[POSE, POSE].copy())

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
        return self._apply_match(belief, event)

    def _begin(self, stamp_ns: int, mean: np.ndarray, covariance: np.ndarray) -> None:
        self._base = _Belief(
            stamp_ns, mean, covariance, self._velocity_at(stamp_ns), stamp_ns, stamp_ns)
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
        index = bisect_right(self._odometry, belief.stamp_ns, key=_stamp)
        before = self._odometry[index - 1] if index else None
        after = self._odometry[index] if index < len(self._odometry) else None
        jump = bool(before and after) and self._is_jump(before, after)
        time_s = (stamp_ns - belief.stamp_ns) * 1e-9
        if before and after and not jump and not self._is_gap(before, after):
            start = interpolated_pose(before, after, belief.stamp_ns)
            increment = start.inverse() @ interpolated_pose(before, after, stamp_ns)
            belief = replace(belief, velocity=body_velocity(before, after), moved_ns=stamp_ns)
            noise = motion_noise(self._config, increment, time_s)
        else:
            begin_s, end_s, fixed_s = (
                (instant_ns - belief.moved_ns) * 1e-9
                for instant_ns in (belief.stamp_ns, stamp_ns, belief.fixed_ns))
            increment = coasting_step(self._config, belief.velocity, begin_s, end_s)
            noise = motion_noise(self._config, increment, time_s) + coasting_noise(
                self._config, belief.velocity, begin_s, end_s, fixed_s, jump)

        motion = (increment, *decays(self._config, time_s))
        self._ekf.x, self._ekf.P = belief.mean, belief.covariance
        self._ekf.F = propagate_jacobian(belief.mean, *motion)
        self._ekf.Q = np.diag(noise)
        self._ekf.predict(motion)
        return replace(
            belief, stamp_ns=stamp_ns, mean=self._ekf.x, covariance=self._ekf.P,
            driven_m=belief.driven_m + math.hypot(increment.x_m, increment.y_m))

    def _is_gap(self, before: OdometrySample, after: OdometrySample) -> bool:
        return after.stamp_ns - before.stamp_ns > self._config.odometry_max_gap_s * 1e9

    def _is_jump(self, before: OdometrySample, after: OdometrySample) -> bool:
        speed_x_mps, speed_y_mps, turn_radps = body_velocity(before, after)
        return (math.hypot(speed_x_mps, speed_y_mps) > self._config.odometry_max_speed_mps
                or abs(turn_radps) > self._config.odometry_max_turn_radps)

    def _velocity_at(self, stamp_ns: int) -> tuple[float, float, float]:
        index = bisect_right(self._odometry, stamp_ns, key=_stamp)
        index = min(index, len(self._odometry) - 1)
        standing = (0.0, 0.0, 0.0)
        if index < 1:
            return standing
        before, after = self._odometry[index - 1], self._odometry[index]
        if self._is_gap(before, after) or self._is_jump(before, after):
            return standing
        old = stamp_ns - after.stamp_ns > self._config.odometry_max_gap_s * 1e9
        return standing if old else body_velocity(before, after)

    def _check_heading(self, sample, gap_start: OdometrySample | None) -> FilterUpdate:
        """Start anew where motion without odometry has left the heading too uncertain."""
        reason = ''
        if gap_start is not None:
            gap_s = (sample.stamp_ns - gap_start.stamp_ns) * 1e-9
            reason = f'{gap_s:.1f} s without odometry: the increment over the gap is not used'
        index = bisect_right(self._events, sample.stamp_ns, key=_stamp)
        belief = self._beliefs[index - 1] if index else self._base
        yaw_sigma_rad = math.sqrt(belief.covariance[YAW, YAW])
        if yaw_sigma_rad <= self._config.lost_yaw_sigma_rad:
            return FilterUpdate(Outcome.USED, reason)
        later = self._odometry[bisect_left(self._odometry, sample.stamp_ns, key=_stamp):]
        self.reset()
        self._odometry = later
        return FilterUpdate(
            Outcome.NOT_STARTED,
            f'heading sigma has grown to {yaw_sigma_rad:.1f} rad without odometry; starting anew')

    # --- corrections -----------------------------------------------------------------------------

    def _update(self, belief, residual, jacobian, noise) -> _Belief:
        """Correct by a residual (n,) = measured - predicted with ``jacobian`` (n, 6)."""
        self._ekf.x, self._ekf.P = belief.mean, belief.covariance
        self._ekf.update(
            residual, lambda _: jacobian, lambda _: np.zeros(len(residual)), R=noise)
        self._ekf.x[YAW] = wrap_angle(self._ekf.x[YAW])
        return replace(belief, mean=self._ekf.x, covariance=self._ekf.P)

    def _apply_gnss(self, belief: _Belief, event: _Event) -> tuple[_Belief, FilterUpdate]:
        fix = event.measurement
        lever_m = fix.base_from_antenna_m
        residual = np.array([fix.x_m, fix.y_m]) - gnss_prediction(belief.mean, lever_m)
        jacobian = gnss_jacobian(belief.mean, lever_m)
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, event.noise)
        reason = ''
        if distance2 > self._gnss_gate:
            patience_s = self._config.gnss_gate_patience_s
            # Fixes refused before an outage say nothing of those after it.
            silent = fix.stamp_ns - belief.gnss_ns > patience_s * 1e9
            since_ns = fix.stamp_ns if silent else belief.gnss_refused_ns or fix.stamp_ns
            refused_s = (fix.stamp_ns - since_ns) * 1e-9
            if refused_s < patience_s:
                return (
                    replace(belief, gnss_refused_ns=since_ns, gnss_ns=fix.stamp_ns),
                    FilterUpdate(Outcome.GATED, f'refused for {refused_s:.1f} s', distance2))
            belief, reason = self._opened(belief, float(residual @ residual), refused_s)
        belief = self._update(belief, residual, jacobian, event.noise)
        belief = replace(
            belief, fixed_ns=fix.stamp_ns, gnss_ns=fix.stamp_ns, gnss_refused_ns=None)
        return belief, FilterUpdate(Outcome.USED, reason, distance2)

    def _opened(self, belief, residual_m2, refused_s) -> tuple[_Belief, str]:
        """Widen what may explain the refused fixes: GNSS bias where matches hold the pose."""
        matched_s = (
            math.inf if belief.match_ns is None else (belief.stamp_ns - belief.match_ns) * 1e-9)
        if matched_s < self._config.gnss_gate_patience_s:
            name, added = 'GNSS bias', [0.0, 0.0, 0.0, 0.0, residual_m2, residual_m2]
        else:
            yaw_variance = self._config.start_yaw_sigma_rad**2
            name, added = 'pose', [residual_m2, residual_m2, yaw_variance, 0.0, 0.0, 0.0]
        reason = f'{name} opened after {refused_s:.1f} s of refused fixes'
        return replace(belief, covariance=belief.covariance + np.diag(added)), reason

    def _apply_match(self, belief: _Belief, event: _Event) -> tuple[_Belief, FilterUpdate]:
        pose = event.measurement.pose.as_array()
        residual = (pose - belief.mean[POSE])[event.observed]
        if event.observed[-1] == YAW:
            residual[-1] = wrap_angle(residual[-1])
        jacobian = np.eye(6)[event.observed]
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, event.noise)
        if distance2 > self._match_gates[len(residual) - 1]:
            since_ns = belief.match_refused_ns or event.stamp_ns
            reason = f'refused for {(event.stamp_ns - since_ns) * 1e-9:.1f} s'
            if belief.gnss_refused_ns is not None:
                reason += '; GNSS is refused too'
            return (
                replace(belief, match_refused_ns=since_ns),
                FilterUpdate(Outcome.GATED, reason, distance2))
        share = self._new_information(belief)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second match of the same instant', distance2)
        belief = self._update(belief, residual, jacobian, event.noise / share)
        belief = replace(
            belief, match_ns=event.stamp_ns, match_driven_m=belief.driven_m,
            match_refused_ns=None)
        if event.observed[:2].tolist() == [0, 1]:
            belief = replace(belief, fixed_ns=event.stamp_ns)
        return belief, FilterUpdate(Outcome.USED, '', distance2)

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
