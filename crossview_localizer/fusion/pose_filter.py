"""The Kalman filter: odometry predicts the pose, GNSS and matches correct it, in any order.

The events (odometry samples, fixes, courses, matches) of the last ``buffer_s`` are kept, sorted by
stamp, with the belief after each of them.  A late event is inserted by its stamp and all later
ones are replayed: the result depends on the measurements, not on the order in which they arrive.
A fix or match between two odometry samples is applied to the pose interpolated at its stamp.  A
fix or match that is newer than all odometry is applied to a prediction with constant velocity,
and once more when odometry has passed its stamp.

The state and its equations are in ``motion_model``, the prediction and the correction in files
of those names, the first heading in ``heading_initializer``, the trust in GNSS in
``gnss_integrity``.
"""

from copy import copy, deepcopy
import math

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    FilterUpdate,
    GnssCourse,
    GnssFix,
    MatchErrors,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.belief import Belief
from crossview_localizer.fusion.correction import Corrector
from crossview_localizer.fusion.event_buffer import Event, EventBuffer, Measurement
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.heading_initializer import HeadingInitializer
from crossview_localizer.fusion.motion_model import (
    COAST_HOLD_SPEED_MPS,
    is_jump,
    MATCH_BIASES,
    ODOMETRY_SPEED_NOISE_MPS,
    POSE,
    POSITION,
    SCALE,
    slow_sigmas,
    SPEED,
    STATES,
    YAW,
)
from crossview_localizer.fusion.prediction import (
    bridge_m2,
    is_believed,
    is_disbelieved,
    is_gap,
    moved_to,
    OdometryHistory,
    Predictor,
)
from crossview_localizer.fusion.published import published_covariance
from crossview_localizer.fusion.receiver import ReceiverMonitor
from crossview_localizer.fusion.weighting import least_variance, raised_to_floor
from crossview_localizer.geometry import Pose2D

# Fixes and matches that are newer than the last odometry by more than this are refused.
ODOMETRY_LOST_S = 60.0
# A coordinate with a sigma of 1000 km is not observed.  Larger numbers would only lose digits in
# S = H P H' + R.
UNOBSERVED_VARIANCE = 1e12
USED = FilterUpdate(Outcome.USED)
# A heading with a larger sigma counts as unknown.
LOST_YAW_SIGMA_RAD = 0.7
# Smallest sigmas that are believed of a course and of the heading of a match.
COURSE_SIGMA_FLOOR_RAD = 0.02
MATCH_YAW_SIGMA_FLOOR_RAD = 0.01


class PoseFilter:
    """Pose of base_link in ``map`` from odometry, GNSS and matches.

    No measurement raises an error.  What cannot be used gives a FilterUpdate that is INVALID,
    GATED, TOO_OLD, TOO_SLOW or NOT_STARTED, with the reason, and leaves the estimate unchanged.
    """

    def __init__(self, config: FilterConfig, errors: MatchErrors | None = None):
        """``errors`` are those of the matcher that the matches come from."""
        self._config, self._errors = config, errors or MatchErrors()
        self._predictor = Predictor(config, self._errors)
        self._corrector = Corrector(config, self._errors)
        self.reset()

    def reset(self) -> None:
        """Forget everything and wait for a start."""
        self._buffer: EventBuffer | None = None
        self._odometry = OdometryHistory()
        self._start = HeadingInitializer(self._config)

    def copy(self) -> 'PoseFilter':
        """An independent filter with the same knowledge."""
        twin = copy(self)
        twin._buffer = self._buffer and self._buffer.copy()
        twin._odometry = self._odometry.copy()
        twin._start = deepcopy(self._start)
        return twin

    @property
    def started(self) -> bool:
        return self._buffer is not None

    @property
    def history(self) -> tuple[EventBuffer | None, OdometryHistory]:
        """The events that are kept, with the belief after each, and the odometry between them."""
        return self._buffer, self._odometry

    def add(self, measurement: Measurement) -> FilterUpdate:
        """Fuse a measurement by the method of its kind."""
        match measurement:
            case OdometrySample():
                return self.add_odometry(measurement)
            case GnssFix():
                return self.add_gnss(measurement)
            case GnssCourse():
                return self.add_course(measurement)
        return self.add_match(measurement)

    @property
    def latest_stamp_ns(self) -> int | None:
        """Stamp of the newest odometry or of the start, whichever is newer; None before both."""
        stamps = [sample.stamp_ns for sample in self._odometry.samples[-1:]]
        if self._buffer is not None:
            stamps.append(self._buffer.base.stamp_ns)
        return max(stamps, default=None)

    def add_odometry(self, sample: OdometrySample) -> FilterUpdate:
        problem = _problem(sample.stamp_ns, sample.odom_from_base.as_array())
        if self._odometry.has(sample.stamp_ns):
            problem = problem or 'a second odometry sample of the same stamp'
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if self._is_before_the_buffer(sample.stamp_ns):
            return self._too_old(sample.stamp_ns)

        previous, _ = self._odometry.around(sample.stamp_ns)
        jump = previous is not None and is_jump(previous, sample)
        gap = previous is not None and is_gap(previous, sample)
        self._odometry.insert(sample)
        if self._buffer is None:
            if jump or gap:
                self._odometry = OdometryHistory([sample])
                self._start = HeadingInitializer(self._config)
            update = self._try_start()
        else:
            if sample.stamp_ns > self._buffer.base.stamp_ns:
                # The sample changes the interval since the odometry before it: replay from there.
                self._buffer.insert(
                    Event(sample), self._step, previous.stamp_ns if previous else None)
            else:
                self._buffer.replay(self._step)
            update = self._check_heading(sample, previous if gap else None)
            if self._buffer is not None:
                self._trim()
        if jump:
            return FilterUpdate(
                Outcome.INVALID, f'odometry jumped by {_step_text(previous, sample)}; the '
                'increment is not used and the position sigma is widened instead')
        return update

    def add_gnss(self, fix: GnssFix) -> FilterUpdate:
        problem = _problem(
            fix.stamp_ns, (fix.x_m, fix.y_m, *fix.base_from_antenna_m), fix.covariance, 2)
        problem = problem or self._ahead(fix.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if too_old := self._too_old(fix.stamp_ns):
            return too_old
        if self._buffer is None:
            self._start.add_fix(fix)
            return self._try_start()
        return self._buffer.insert(Event(fix, np.asarray(fix.covariance)), self._step)

    def add_course(self, course: GnssCourse) -> FilterUpdate:
        """Fuse a direction of motion; below ``course_min_speed_mps`` it is TOO_SLOW."""
        problem = _problem(
            course.stamp_ns, (course.course_rad, *course.base_from_antenna_m),
            [[course.sigma_rad**2]], 1)
        problem = problem or self._ahead(course.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if too_old := self._too_old(course.stamp_ns):
            return too_old
        if self._buffer is None:
            return FilterUpdate(Outcome.NOT_STARTED, self._start.find(self._odometry.samples)[2])
        sigma_rad = max(course.sigma_rad, COURSE_SIGMA_FLOOR_RAD)
        return self._buffer.insert(Event(course, np.array([[sigma_rad**2]])), self._step)

    def add_match(self, match: PoseEstimate) -> FilterUpdate:
        """Fuse a match at its own stamp.

        A coordinate with a variance of inf, or above UNOBSERVED_VARIANCE, is not observed.
        """
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
        if self._buffer is None:
            return FilterUpdate(Outcome.NOT_STARTED, self._start.find(self._odometry.samples)[2])
        if too_old := self._too_old(match.stamp_ns):
            return too_old
        noise = self._errors.inflation * noise
        planar = np.ix_(observed < YAW, observed < YAW)
        if noise[planar].size:
            noise[planar] = raised_to_floor(noise[planar], self._errors.sigma_floor_m)
        if observed[-1] == YAW:
            noise[-1, -1] = max(noise[-1, -1], MATCH_YAW_SIGMA_FLOOR_RAD**2)
        return self._buffer.insert(Event(match, noise, observed), self._step)

    def set_pose(self, estimate: PoseEstimate) -> FilterUpdate:
        """Start, or start again, at a pose from outside; then apply the events after it."""
        problem = _problem(
            estimate.stamp_ns, estimate.pose.as_array(), estimate.covariance, 3)
        if not problem and estimate.covariance[2][2] > LOST_YAW_SIGMA_RAD**2:
            problem = (
                f'yaw sigma is {math.sqrt(estimate.covariance[2][2]):.2f} rad; expected at most '
                f'{LOST_YAW_SIGMA_RAD:.2f}')
        problem = problem or self._ahead(estimate.stamp_ns)
        if problem:
            return FilterUpdate(Outcome.INVALID, problem)
        if self._is_before_the_buffer(estimate.stamp_ns):
            return self._too_old(estimate.stamp_ns)
        covariance = np.diag(slow_sigmas(self._config, self._errors)**2)
        covariance[POSE, POSE] = estimate.covariance
        mean = np.zeros(STATES)
        mean[POSE] = estimate.pose.as_array()
        self._begin(estimate.stamp_ns, mean, covariance)
        return FilterUpdate(Outcome.USED)

    def estimate_at(self, stamp_ns: int) -> PoseEstimate | None:
        """Pose at a stamp from all events up to it; None before the start or the buffer.

        After the last odometry, fix or match the pose moves at constant velocity for
        ODOMETRY_MAX_GAP_S and then stays.  Its covariance grows all the time.  While fixes or
        matches contradict it, it is as wide as they are away.
        """
        return self._estimate_at(stamp_ns)

    def prior_at(self, stamp_ns: int) -> PoseEstimate | None:
        """The prior of a match: the same estimate without what the last match says against it."""
        return self._estimate_at(stamp_ns, match_doubt=None)

    def _estimate_at(self, stamp_ns: int, **changes) -> PoseEstimate | None:
        if self._buffer is None or stamp_ns < self._buffer.base.stamp_ns:
            return None
        known = changed(self._buffer.belief_at(stamp_ns), memories=(), **changes)
        belief = self._predictor.advance(known, stamp_ns, self._odometry)
        covariance = published_covariance(belief)
        covariance[POSITION, POSITION] += bridge_m2(belief, self._odometry)
        return PoseEstimate(stamp_ns, Pose2D(*map(float, belief.mean[POSE])), covariance)

    def _step(self, belief: Belief, event: Event) -> tuple[Belief, FilterUpdate]:
        belief = self._predictor.advance(belief, event.stamp_ns, self._odometry)
        if event.is_odometry:
            return moved_to(belief, event.stamp_ns), USED
        belief = self._predictor.catch_up(belief)
        return self._corrector.apply(belief, event, bridge_m2(belief, self._odometry))

    # --- start and forgetting

    def _try_start(self) -> FilterUpdate:
        samples = self._odometry.samples
        stamp_ns, start, reason = self._start.find(samples)
        if start is not None:
            self._begin(stamp_ns, start.mean, start.covariance)
            return FilterUpdate(Outcome.USED, reason)
        if samples:
            buffer_ns = self._buffer_begin_ns()
            oldest_ns = min(buffer_ns, self._start.needed_from_ns() or buffer_ns)
            before, _ = self._odometry.around(oldest_ns)
            if before is not None:
                self._odometry.forget_before(before.stamp_ns)
        return FilterUpdate(Outcome.NOT_STARTED, reason)

    def _begin(self, stamp_ns: int, mean: np.ndarray, covariance: np.ndarray) -> None:
        """Start from a state at a stamp, with the speed of the odometry; apply later events."""
        velocity = self._odometry.velocity_at(stamp_ns)
        mean[SPEED] = math.exp(mean[SCALE]) * velocity[0]
        covariance[SPEED, SPEED] = (
            ODOMETRY_SPEED_NOISE_MPS if self._odometry.samples else COAST_HOLD_SPEED_MPS) ** 2
        sigmas = slow_sigmas(self._config, self._errors)
        covariance[MATCH_BIASES, MATCH_BIASES] = np.diag(sigmas[MATCH_BIASES]**2)
        later = [] if self._buffer is None else [
            event for event in self._buffer.events
            if not event.is_odometry and event.stamp_ns > stamp_ns]
        later += [Event(sample) for sample in self._odometry.since(stamp_ns + 1)]
        receiver = ReceiverMonitor(self._config).unknown()
        if self._buffer is not None:
            receiver = changed(self._buffer.belief_at(stamp_ns).receiver, window=None)
        self._buffer = EventBuffer(
            Belief(stamp_ns, mean, covariance, velocity, stamp_ns, stamp_ns, receiver))
        self._buffer.events = sorted(later, key=lambda event: event.order)
        self._start = HeadingInitializer(self._config)
        self._buffer.replay(self._step)

    def _trim(self) -> None:
        """Drop what no late measurement can change any more."""
        if self._buffer.trim(self._buffer_begin_ns()):
            self._odometry.forget_before(self._buffer.base.stamp_ns)

    def _buffer_begin_ns(self) -> int:
        return self._odometry.samples[-1].stamp_ns - round(self._config.buffer_s * 1e9)

    def _is_before_the_buffer(self, stamp_ns: int) -> bool:
        return bool(self._odometry.samples) and stamp_ns < self._buffer_begin_ns()

    def _too_old(self, stamp_ns: int) -> FilterUpdate | None:
        """The refusal of a measurement that is too old; None for one that is not."""
        if self._is_before_the_buffer(stamp_ns):
            late_s = (self._odometry.samples[-1].stamp_ns - stamp_ns) * 1e-9
            return FilterUpdate(
                Outcome.TOO_OLD, f'{late_s:.2f} s before the newest odometry; the delay buffer '
                f'holds {self._config.buffer_s:.2f} s: its clock is behind (UTC is 18 s behind '
                'GPS time), or reset if it jumped back')
        if self._buffer is not None and stamp_ns < self._buffer.base.stamp_ns:
            return FilterUpdate(Outcome.TOO_OLD, 'older than the pose at the start')
        return None

    def _ahead(self, stamp_ns: int) -> str:
        """What is wrong with a stamp that is too far ahead of the odometry, or ''."""
        latest_ns = self.latest_stamp_ns
        if latest_ns is None or stamp_ns - latest_ns <= ODOMETRY_LOST_S * 1e9:
            return ''
        return (f'{(stamp_ns - latest_ns) * 1e-9:.1f} s ahead of the last odometry; expected at '
                f'most {ODOMETRY_LOST_S:.1f} s')

    def _check_heading(self, sample, gap_start: OdometrySample | None) -> FilterUpdate:
        """Wait for a new start if the heading has become too uncertain without odometry."""
        reason = ''
        if gap_start is not None and not is_believed(
                self._buffer.belief_at(gap_start.stamp_ns), gap_start, sample):
            gap_s = (sample.stamp_ns - gap_start.stamp_ns) * 1e-9
            reason = f'{gap_s:.1f} s without odometry: the increment over the gap is not used'
        belief = self._buffer.belief_at(sample.stamp_ns)
        yaw_sigma_rad = math.sqrt(belief.covariance[YAW, YAW])
        if yaw_sigma_rad <= LOST_YAW_SIGMA_RAD or is_disbelieved(belief):
            return FilterUpdate(Outcome.USED, reason) if reason else USED
        later = self._odometry.since(sample.stamp_ns)
        self.reset()
        self._odometry = OdometryHistory(later)
        return FilterUpdate(
            Outcome.NOT_STARTED, f'heading sigma has grown to {yaw_sigma_rad:.1f} rad without '
            'odometry; a new start is needed')


def _step_text(before: OdometrySample, after: OdometrySample) -> str:
    step = before.odom_from_base.inverse() @ after.odom_from_base
    time_s = (after.stamp_ns - before.stamp_ns) * 1e-9
    return (f'{math.hypot(step.x_m, step.y_m):.1f} m and {step.yaw_rad:.2f} rad '
            f'in {time_s:.3f} s')


def _problem(stamp_ns: int, values, covariance=None, size: int = 0) -> str:
    """What is wrong with a measurement, or ''."""
    if stamp_ns <= 0:
        return f'stamp is {stamp_ns} ns; expected a positive time'
    if not all(map(math.isfinite, values)):
        return f'not finite: {", ".join(f"{value:g}" for value in values)}'
    if covariance is None:
        return ''
    covariance = np.asarray(covariance, dtype=float)
    if covariance.shape != (size, size):
        return f'covariance has shape {covariance.shape}; expected {(size, size)}'
    if not np.isfinite(covariance).all():
        return 'covariance is not finite'
    lopsided = np.abs(covariance - covariance.T).max() > 1e-6 * np.abs(covariance).max()
    if lopsided or least_variance(covariance) <= 0.0:
        return 'covariance is not positive definite'
    return ''
