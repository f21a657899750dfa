"""The lines of /diagnostics about the node, one for each part, without ROS types."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
import math
import time

import numpy as np

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import FilterUpdate, GnssFix, Localization, Outcome
from crossview_localizer.fusion.gnss_integrity import ODOMETRY_LIES
from crossview_localizer.ros import remedies
from crossview_localizer.ros.input_monitor import InputMonitor
from crossview_localizer.ros.status import Level, Status

# The shares of matched and gated images are those of this many last images.
OUTCOME_WINDOW = 50
LATENCY_WINDOW = 1000
# The pose is in doubt if the gate refuses GNSS for this long and no match is used either.
CONTRADICTED_S = 3.0
# Fixes are warned of if they are farther than this from the map, come later than this, or claim a
# larger horizontal sigma.
MAP_DISTANCE_WARN_M, GNSS_LATE_WARN_S, GNSS_SIGMA_WARN_M = 1000.0, 0.5, 30.0
# Squared Mahalanobis radius of the ellipse that holds 95 % of a normal distribution in the plane.
CHI2_95_PLANE = 5.991


class MatcherMonitor:
    """Outcomes and latencies of the processed images; times are seconds of one clock."""

    def __init__(self):
        self.matched_s: float | None = None  # time of the last used match
        self._counts: Counter[Outcome] = Counter()
        self._latest: deque[Outcome] = deque(maxlen=OUTCOME_WINDOW)
        self._latencies_ms: deque[float] = deque(maxlen=LATENCY_WINDOW)
        self._localization: Localization | None = None
        self._localized_s = 0.0

    def add_image(
        self, localization: Localization, latency_ms: float | None, now_s: float,
    ) -> None:
        """Enter the result of an image, and the latency of its pose (None without a pose)."""
        self._localization, self._localized_s = localization, now_s
        if latency_ms is not None:
            self._latencies_ms.append(latency_ms)
        if localization.outcome is Outcome.USED:
            self.matched_s = now_s
        self._counts[localization.outcome] += 1
        self._latest.append(localization.outcome)

    def status(self, now_s: float, timeout_s: float) -> Status:
        """The matcher's line; no image within ``timeout_s`` is a warning."""
        localization = self._localization
        if localization is None:
            return Status(
                'matcher', Level.WARN, 'no image has been processed', self._totals(),
                remedies.SEE_CAMERA)
        age_s = now_s - self._localized_s
        latest = list(self._latest)
        values = self._totals() | {
            'age_s': f'{age_s:.2f}',
            'since_match_s':
                'never' if self.matched_s is None else f'{now_s - self.matched_s:.2f}',
            'used_share': f'{latest.count(Outcome.USED) / len(latest):.2f}',
            'gated_share': f'{latest.count(Outcome.GATED) / len(latest):.2f}',
            **{f'{stage}_ms': f'{1e3 * seconds:.1f}'
               for stage, seconds in localization.seconds.items()}}
        if age_s > timeout_s:
            return Status(
                'matcher', Level.WARN, f'no image processed for {age_s:.1f} s', values,
                remedies.SEE_CAMERA)
        if localization.outcome is Outcome.USED:
            return Status('matcher', Level.OK, 'matching', values)
        text = localization.outcome.value
        if localization.reason and localization.reason != text:
            text += f': {localization.reason}'
        return Status(
            'matcher', Level.WARN, text, values, remedies.MATCHER[localization.outcome])

    def _totals(self) -> dict[str, object]:
        values = {outcome.name.lower(): self._counts[outcome]
                  for outcome in (Outcome.USED, *remedies.MATCHER)}
        if self._latencies_ms:
            percentiles = (50, 95, 99)
            for percent, latency_ms in zip(
                    percentiles, np.percentile(list(self._latencies_ms), percentiles)):
                values[f'latency_p{percent}_ms'] = f'{latency_ms:.1f}'
        return values


class PoseMonitor:
    """How well the filter knows the pose, and whether GNSS contradicts it."""

    def __init__(self, ellipse_warn_m: float, ellipse_error_m: float):
        self._limits = (
            (Level.ERROR, 'ellipse_error_m', ellipse_error_m),
            (Level.WARN, 'ellipse_warn_m', ellipse_warn_m))
        self._gnss_gated_since_s: float | None = None
        self.start_reason = ''  # why the filter has not started with the last fix

    def reset(self) -> None:
        """Forget whether GNSS contradicted the pose before a restart."""
        self._gnss_gated_since_s = None

    def add_fix(self, outcome: Outcome, now_s: float) -> None:
        """Enter what the filter did with a fix."""
        if outcome is not Outcome.GATED:
            self._gnss_gated_since_s = None
        elif self._gnss_gated_since_s is None:
            self._gnss_gated_since_s = now_s

    def status(
        self, covariance: np.ndarray | None, now_s: float, matched_s: float | None,
    ) -> Status:
        """The filter's line from the pose's covariance (3, 3), None before the start.

        ``matched_s`` is the time of the last used match.
        """
        if covariance is None:
            text = ': '.join(filter(None, (Outcome.NOT_STARTED.value, self.start_reason)))
            return Status('filter', Level.WARN, text, remedy=remedies.START)
        status = self._ellipse_status(covariance)
        if self._gnss_gated_since_s is None:
            return status
        contradicted_s = now_s - max(self._gnss_gated_since_s, matched_s or -math.inf)
        if contradicted_s <= CONTRADICTED_S:
            return status
        return replace(
            status, level=Level.ERROR, remedy=remedies.CONTRADICTION,
            text=f'fixes have contradicted the odometry for {contradicted_s:.0f} s and no match '
            f'decides between them: do not trust the pose; {status.text}')

    def _ellipse_status(self, covariance: np.ndarray) -> Status:
        """Half axes of the 95 % ellipse: sqrt(5.991 lambda), lambda the position's eigenvalues."""
        shorter_m, longer_m = np.sqrt(
            CHI2_95_PLANE * np.maximum(np.linalg.eigvalsh(covariance[:2, :2]), 0.0))
        yaw_deg = math.degrees(math.sqrt(covariance[2, 2]))
        values = {
            'ellipse_95_long_m': f'{longer_m:.2f}', 'ellipse_95_short_m': f'{shorter_m:.2f}',
            'sigma_yaw_deg': f'{yaw_deg:.2f}',
        }
        text = f'95 % ellipse of {longer_m:.1f} by {shorter_m:.1f} m (half axes)'
        for level, name, limit_m in self._limits:
            if longer_m > limit_m:
                return Status(
                    'filter', level, f'{text}; {name} is {limit_m:g} m', values,
                    remedies.WIDE_POSE)
        return Status('filter', Level.OK, text, values)


class NodeMonitor:
    """The node's own line: faults inside it, restarts, and refused messages without a line."""

    def __init__(self):
        self.saved_pose_problem = ''
        self.restart_reason = ''
        self._restart_is_news = False
        self._failure = ''
        self._failures = 0
        self._works_again = False
        self._refused: dict[str, str] = {}

    def add_failure(self, error: Exception) -> None:
        """Enter an error inside the node; it is shown until the node works again."""
        self._failure = f'{type(error).__name__}: {error}'
        self._failures += 1
        self._works_again = False

    def add_success(self) -> None:
        """Enter that the node works: the last failure is shown once more and then no longer."""
        self._works_again = True

    def forget_failure(self) -> None:
        """Show the last failure no longer."""
        self._failure = ''

    def add_refused(self, topic: str, reason: str) -> None:
        """Enter a refused message of a topic that has no line of its own."""
        self._refused[topic] = f'{topic}: {reason}'

    def add_accepted(self, topic: str) -> None:
        """Enter a good message of such a topic."""
        self._refused.pop(topic, None)

    def add_restart(self, reason: str) -> None:
        """Enter that the node has forgotten its pose; it is a warning until there is a new one."""
        self.forget_failure()
        self.restart_reason = reason
        self._restart_is_news = True

    def inactive_status(self, configured: bool) -> Status:
        """The only line of a node that is not active."""
        if self._failure:
            return Status(
                'node', Level.ERROR, f'not configured: {self._failure}',
                remedy=remedies.NOT_CONFIGURED)
        state = 'inactive' if configured else 'not configured'
        return Status(
            'node', Level.WARN, f'{state}: activate the lifecycle node', remedy=remedies.INACTIVE)

    def status(self, has_pose: bool, waits_for_clock: bool) -> Status:
        """The line of the active node."""
        values = {'last_restart': self.restart_reason or 'none', 'failures': self._failures}
        if self.saved_pose_problem:
            values['last_pose'] = self.saved_pose_problem
        if self._failure:
            text = f'internal error: {self._failure}'
            if self._works_again:
                self.forget_failure()
            return Status('node', Level.ERROR, text, values, remedies.INTERNAL_ERROR)
        if waits_for_clock:
            return Status(
                'node', Level.WARN, 'use_sim_time is set and nothing comes on /clock', values,
                remedies.CLOCK)
        if self._refused:
            return Status(
                'node', Level.WARN, '; '.join(self._refused.values()), values,
                remedies.REFUSED_MESSAGE)
        if self._restart_is_news or self.restart_reason and not has_pose:
            self._restart_is_news = False
            return Status(
                'node', Level.WARN, f'restarted: {self.restart_reason}', values, remedies.START)
        return Status('node', Level.OK, 'active', values)


class Diagnostics:
    """The monitors of all parts of an active node, and their lines.

    ``find_publishers`` gives the full name of a topic and how many publish it.
    """

    def __init__(
        self, config: NodeConfig, node: NodeMonitor, image_topic: str,
        find_publishers: Callable[[str], tuple[str, int]],
    ):
        self.node = node
        self.camera = InputMonitor('camera', remedies.CAMERA)
        self.gnss = InputMonitor('gnss', remedies.GNSS)
        self.velocity = InputMonitor('gnss_velocity', remedies.GNSS_VELOCITY, Level.WARN)
        self.odometry = InputMonitor('odometry', remedies.ODOMETRY)
        self.map_status = Status('map', Level.WARN, 'not loaded')
        self.matcher = MatcherMonitor()
        self.pose = PoseMonitor(config.ellipse_warn_m, config.ellipse_error_m)
        self._qos_problems: dict[str, str] = {}  # by the full name of the topic
        self._config = config
        self._image_topic = image_topic
        self._find_publishers = find_publishers

    def start(self, now_s: float) -> None:
        """Report silent inputs from now on."""
        for monitor in (self.camera, self.gnss, self.velocity, self.odometry):
            monitor.start(now_s)

    def add_qos_problem(self, topic: str, policy: str) -> str:
        """Enter that a publisher of a topic (full name) offers too little; returns the text."""
        self._qos_problems[topic] = (
            f'a publisher of {topic} offers a QoS that this node does not accept: {policy}')
        return self._qos_problems[topic]

    def add_fix(
        self, update: FilterUpdate, fix: GnssFix, is_covariance_known: bool,
        map_distance_m: float = 0.0, position_fault: str = '', late_s: float = 0.0,
    ) -> None:
        """Enter what the filter did with a fix, and warn of what is wrong with it.

        ``map_distance_m`` is the distance of the fix from the map, 0 inside; ``position_fault``
        is what may be wrong with one that is far away.  ``late_s`` is how long after the odometry
        of their time fixes come.
        """
        self.pose.add_fix(update.outcome, time.monotonic())
        self.warn_of_odometry(update.reason)
        self.pose.start_reason = update.reason if update.outcome is Outcome.NOT_STARTED else ''
        sigma_m = math.sqrt(np.linalg.eigvalsh(fix.covariance)[1])
        remark = ''
        if map_distance_m > MAP_DISTANCE_WARN_M:
            remark = (f'fixes are {map_distance_m / 1e3:.0f} km from the map: '
                      f'{position_fault or "it is a map of another place"}')
        elif not is_covariance_known:
            remark = ('covariance is unknown, zero or NaN: '
                      f'{self._config.gnss_unknown_sigma_m} m are assumed')
        elif late_s > GNSS_LATE_WARN_S:
            remark = (f'fixes come {late_s:.1f} s after the odometry of their time: the receiver '
                      'is slow, or its clock is behind, which puts the pose ahead')
        elif sigma_m > GNSS_SIGMA_WARN_M:
            remark = (f'fixes claim a sigma of {sigma_m:.3g} m; expected at most '
                      f'{GNSS_SIGMA_WARN_M:g} m')
        self.gnss.add_update(update, remark, remedies.GNSS)

    def warn_of_odometry(self, reason: str) -> None:
        """Warn if the reason of an update says that the odometry is not believed."""
        if reason == ODOMETRY_LIES:
            self.odometry.add_refused(reason, remedy=remedies.CONTRADICTION)

    def statuses(
        self, now_s: float, covariance: np.ndarray | None, waits_for_clock: bool,
    ) -> list[Status]:
        """All lines, from the present covariance (3, 3) of the pose, None before the start."""
        odometry = self._warned_of_two_publishers(
            'odometry', self._input_status(self.odometry, 'odometry', now_s))
        if self._find_publishers('/tf')[1] <= self._config.publish_tf:
            odometry.values['tf'] = remedies.NO_ODOM_TF  # of no concern to the localizer
        statuses = [
            self.node.status(covariance is not None, waits_for_clock),
            self._warned_of_two_publishers(self._image_topic, self.camera.status(
                now_s, self._config.input_timeout_s, *self._image_silence())),
            self._input_status(self.gnss, 'gnss', now_s),
            odometry, self.map_status,
            self.matcher.status(now_s, self._config.input_timeout_s),
            self.pose.status(covariance, now_s, self.matcher.matched_s)]
        # The velocity is optional: no line where nobody publishes it.
        if self.velocity.counts['received'] or self._find_publishers('gnss_velocity')[1]:
            statuses.append(self._input_status(self.velocity, 'gnss_velocity', now_s))
        return statuses

    def _input_status(self, monitor: InputMonitor, topic: str, now_s: float) -> Status:
        name, publishers = self._find_publishers(topic)
        if not publishers:
            silence = f'nobody publishes {name}', f'{remedies.NO_PUBLISHER} -r {topic}:=TOPIC'
        elif name in self._qos_problems:
            silence = self._qos_problems[name], remedies.SENSOR_QOS
        else:
            count = '1 publisher' if publishers == 1 else f'{publishers} publishers'
            silence = f'{name} has {count}', remedies.SILENT_PUBLISHER
        return monitor.status(now_s, self._config.input_timeout_s, *silence)

    def _warned_of_two_publishers(self, topic: str, status: Status) -> Status:
        """The status of an input, at least a warning where two publishers are mixed."""
        name, publishers = self._find_publishers(topic)
        if publishers < 2:
            return status
        return replace(
            status, level=max(status.level, Level.WARN), remedy=remedies.TWO_PUBLISHERS,
            text=f'{name} has {publishers} publishers, of which one was expected; {status.text}')

    def _image_silence(self) -> tuple[str, str]:
        """What to say while no image comes, and what to do."""
        name, publishers = self._find_publishers(self._image_topic)
        if not publishers:
            return f'nobody publishes {name}', remedies.NO_IMAGE_PUBLISHER
        if name in self._qos_problems:
            return self._qos_problems[name], remedies.IMAGE_QOS
        return f'{name} has a publisher', remedies.LARGE_IMAGES
