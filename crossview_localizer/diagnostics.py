"""What /diagnostics says about each part of the node, kept and worded without ROS."""

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np


class Level(IntEnum):
    """The levels of diagnostic_msgs/DiagnosticStatus."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Status:
    """One line of /diagnostics."""

    name: str
    level: Level
    text: str
    values: dict[str, object] = field(default_factory=dict)


class InputMonitor:
    """Counts, age and the last trouble of one input; times are seconds of one steady clock.

    A trouble stays until the next message that is used without one.
    """

    def __init__(self, name: str):
        self.name = name
        self.counts = Counter()
        self._last_received_s: float | None = None
        self._started_s: float | None = None
        self._trouble: tuple[Level, str] | None = None

    def start(self, now_s: float) -> None:
        """From now on silence is reported."""
        self._started_s = now_s

    def received(self, now_s: float) -> None:
        self.counts['received'] += 1
        self._last_received_s = now_s

    def used(self, remark: str = '') -> None:
        """The last message was used; a ``remark`` about it is shown as a warning."""
        self.counts['used'] += 1
        self._trouble = (Level.WARN, remark) if remark else None

    def refused(self, reason: str, level: Level = Level.WARN) -> None:
        self.counts['refused'] += 1
        self._trouble = (level, reason)

    def age_s(self, now_s: float) -> float | None:
        return None if self._last_received_s is None else now_s - self._last_received_s

    def status(self, now_s: float, timeout_s: float, silence_hint: str) -> Status:
        """The input's line; ``silence_hint`` follows the news that nothing comes in."""
        age_s = self.age_s(now_s)
        values = {key: self.counts[key] for key in ('received', 'used', 'refused')}
        values.update({key: n for key, n in self.counts.items() if key not in values})
        values['age_s'] = 'never' if age_s is None else f'{age_s:.2f}'
        silent_s = age_s
        if age_s is None:
            silent_s = 0.0 if self._started_s is None else now_s - self._started_s
        if silent_s > timeout_s:
            text = f'nothing received for {silent_s:.1f} s; {silence_hint}'
            if self._trouble is not None:
                text += f'; before that: {self._trouble[1]}'
            return Status(self.name, Level.ERROR, text, values)
        if age_s is None:
            return Status(self.name, Level.WARN, 'waiting for the first message', values)
        if self._trouble is not None:
            return Status(self.name, *self._trouble, values)
        return Status(self.name, Level.OK, 'receiving', values)


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
