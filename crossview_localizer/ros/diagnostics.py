"""What /diagnostics says about each part of the node, kept and worded without ROS."""

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import IntEnum
import math

import numpy as np

# So many of the last messages give rate, loss and gate statistics.
WINDOW = 50
# Best effort may lose one now and then: a trouble is from this share of them on.
LOST_SHARE_TO_WARN = 0.2
# A gate refuses some good measurements by design: a trouble is from this share of them on.
GATED_SHARE_TO_WARN = 0.2
# Squared Mahalanobis radius of the ellipse that holds 95 % of a normal distribution in the plane.
CHI2_95_PLANE = 5.991
LOST_REMEDY = (
    'free the processor or slow the publisher; publish reliably; large images: see '
    'config/fastdds_large_images.xml')


class Level(IntEnum):
    """The levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Status:
    """One line of /diagnostics; ``remedy`` says what to do where the level is not OK."""

    name: str
    level: Level
    text: str
    values: dict[str, object] = field(default_factory=dict)
    remedy: str = ''


@dataclass(frozen=True)
class Trouble:
    """What was wrong with a message, and what to do."""

    level: Level
    text: str
    remedy: str


class InputMonitor:
    """Counts, rate, age, gate and the last trouble of one input; times are seconds of one clock.

    A trouble is shown at least once, and until a message is used without one.  Silence is of level
    ``silence``.
    """

    def __init__(self, name: str, remedy: str = '', silence: Level = Level.ERROR):
        self.name = name
        self._silence = silence
        self.counts = Counter()
        self._remedy = remedy
        self._received_s: deque[float] = deque(maxlen=WINDOW)
        self._lost: deque[int] = deque(maxlen=WINDOW)
        self._last_numbers: dict[bytes | None, int] = {}
        self._gated: deque[bool] = deque(maxlen=WINDOW)
        self._distances2: deque[float] = deque(maxlen=WINDOW)
        self._started_s: float | None = None
        self._trouble: Trouble | None = None
        self._over = False

    def start(self, now_s: float) -> None:
        """From now on silence is reported."""
        self._started_s = now_s

    def received(
        self, now_s: float, publisher: bytes | None = None, number: int | None = None,
    ) -> None:
        """Enter a message and its number among its publisher's; numbers left out were lost."""
        self.counts['received'] += 1
        self._received_s.append(now_s)
        if number is None:
            return
        lost = max(number - self._last_numbers.get(publisher, number - 1) - 1, 0)
        self._last_numbers[publisher] = number
        self._lost.append(lost)
        self.counts['lost'] += lost

    def used(self, remark: str = '', remedy: str = '') -> None:
        """The last message was used; a ``remark`` about it is shown as a warning."""
        self.counts['used'] += 1
        self._over = not remark
        if remark:
            self._trouble = Trouble(Level.WARN, remark, remedy)

    def refused(self, reason: str, level: Level = Level.WARN, remedy: str = '') -> None:
        self.counts['refused'] += 1
        self._over = False
        self._trouble = Trouble(level, reason, remedy or self._remedy)

    def gate(self, passed: bool, mahalanobis2: float | None) -> None:
        """Enter what the gate said of a message; its squared distance where there is one."""
        self._gated.append(not passed)
        if mahalanobis2 is not None and math.isfinite(mahalanobis2):
            self._distances2.append(mahalanobis2)

    def gated(self, reason: str) -> None:
        """The gate refused the last message: a trouble only where it refuses many."""
        if np.mean(self._gated) >= GATED_SHARE_TO_WARN:
            self.refused(reason)
        else:
            self.counts['refused'] += 1

    def age_s(self, now_s: float) -> float | None:
        return now_s - self._received_s[-1] if self._received_s else None

    def status(self, now_s: float, timeout_s: float, silence_remedy: str) -> Status:
        """The input's line; ``silence_remedy`` is what to do where nothing comes in."""
        age_s = self.age_s(now_s)
        values = self._values(now_s)
        trouble = self._trouble
        if self._over:
            self._trouble = None
        silent_s = age_s
        if age_s is None:
            silent_s = 0.0 if self._started_s is None else now_s - self._started_s
        if silent_s > timeout_s:
            text = f'nothing received for {silent_s:.1f} s; {silence_remedy}'
            if trouble is not None:
                text += f'; before that: {trouble.text}'
            return Status(self.name, self._silence, text, values, silence_remedy)
        if trouble is not None:
            return Status(self.name, trouble.level, trouble.text, values, trouble.remedy)
        if age_s is None:
            return Status(
                self.name, Level.WARN, 'waiting for the first message', values, silence_remedy)
        lost = sum(self._lost)
        if lost >= LOST_SHARE_TO_WARN * (lost + len(self._lost)) > 0.0:
            return Status(
                self.name, Level.WARN, f'{lost} of the last {lost + len(self._lost)} messages '
                'were lost on the way', values, LOST_REMEDY)
        return Status(self.name, Level.OK, 'receiving', values)

    def _values(self, now_s: float) -> dict[str, object]:
        values = {key: self.counts[key] for key in ('received', 'used', 'refused')}
        values.update({key: n for key, n in self.counts.items() if key not in values})
        age_s = self.age_s(now_s)
        values['age_s'] = 'never' if age_s is None else f'{age_s:.2f}'
        values['rate_hz'] = f'{self._rate_hz(now_s):.1f}'
        if self._gated:
            values['gate_refused_share'] = f'{np.mean(self._gated):.2f}'
        if self._distances2:
            values['gate_mean_distance2'] = f'{np.mean(self._distances2):.2f}'
        return values

    def _rate_hz(self, now_s: float) -> float:
        """Messages a second from the oldest of the window until now, so that silence lowers it."""
        if len(self._received_s) < 2:
            return 0.0
        return len(self._received_s) / max(now_s - self._received_s[0], 1e-3)


class Latency:
    """Rolling percentiles over the last images, in milliseconds."""

    def __init__(self, images: int = 1000):
        self._latest_ms: deque[float] = deque(maxlen=images)

    def add(self, latency_ms: float) -> None:
        self._latest_ms.append(latency_ms)

    def values(self) -> dict[str, str]:
        if not self._latest_ms:
            return {}
        p50, p95, p99 = np.percentile(list(self._latest_ms), [50, 95, 99])
        return {
            'latency_p50_ms': f'{p50:.1f}', 'latency_p95_ms': f'{p95:.1f}',
            'latency_p99_ms': f'{p99:.1f}',
        }


def pose_status(covariance: np.ndarray, warn_m: float, error_m: float) -> Status:
    """The filter's line: half axes of the 95 % ellipse of a pose covariance (3, 3).

    Half axes are sqrt(5.991 lambda), lambda the eigenvalues of the position's part.
    """
    shorter_m, longer_m = np.sqrt(
        CHI2_95_PLANE * np.maximum(np.linalg.eigvalsh(covariance[:2, :2]), 0.0))
    yaw_deg = math.degrees(math.sqrt(covariance[2, 2]))
    values = {
        'ellipse_95_long_m': f'{longer_m:.2f}', 'ellipse_95_short_m': f'{shorter_m:.2f}',
        'sigma_yaw_deg': f'{yaw_deg:.2f}',
    }
    text = f'95 % ellipse of {longer_m:.1f} by {shorter_m:.1f} m (half axes)'
    for level, name, limit_m in (
            (Level.ERROR, 'ellipse_error_m', error_m), (Level.WARN, 'ellipse_warn_m', warn_m)):
        if longer_m > limit_m:
            return Status(
                'filter', level, f'{text}; {name} is {limit_m:g} m', values,
                'see which of gnss, odometry and matcher is not OK; publish initialpose where '
                'the position is known')
    return Status('filter', Level.OK, text, values)
