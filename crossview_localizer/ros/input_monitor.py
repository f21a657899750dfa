"""The lines of /diagnostics about the inputs, without ROS types."""

from collections import Counter, deque
from dataclasses import dataclass
import math

import numpy as np

from crossview_localizer.datatypes import FilterUpdate, Outcome
from crossview_localizer.ros import remedies
from crossview_localizer.ros.status import Level, Status

# Rate, loss and gate statistics are those of this many last messages.
WINDOW = 50
# Best effort loses a message now and then, and a gate refuses some good measurements by design:
# only these shares of lost and of refused messages are problems.
LOST_SHARE_TO_WARN, GATED_SHARE_TO_WARN = 0.2, 0.2


@dataclass(frozen=True)
class Problem:
    """What was wrong with a message, and what to do."""

    level: Level
    text: str
    remedy: str


class InputMonitor:
    """Counts, rate, age and last problem of one input; times are seconds of one clock.

    A problem is shown at least once, and until a message is used without one.  ``silence_level``
    is the level of the status while nothing comes in.
    """

    def __init__(self, name: str, remedy: str = '', silence_level: Level = Level.ERROR):
        self.name = name
        self.counts = Counter()
        self._remedy = remedy
        self._silence_level = silence_level
        self._received_s: deque[float] = deque(maxlen=WINDOW)
        self._lost: deque[int] = deque(maxlen=WINDOW)
        self._last_numbers: dict[bytes | None, int] = {}
        self._gated: deque[bool] = deque(maxlen=WINDOW)
        self._distances2: deque[float] = deque(maxlen=WINDOW)
        self._started_s: float | None = None
        self._problem: Problem | None = None
        self._problem_is_over = False

    def start(self, now_s: float) -> None:
        """Report silence from now on."""
        self._started_s = now_s

    def add_message(
        self, now_s: float, publisher: bytes | None = None, number: int | None = None,
    ) -> None:
        """Count a message.  ``number`` is its place among its publisher's; gaps were lost."""
        self.counts['received'] += 1
        self._received_s.append(now_s)
        if number is None:
            return
        lost = max(number - self._last_numbers.get(publisher, number - 1) - 1, 0)
        self._last_numbers[publisher] = number
        self._lost.append(lost)
        self.counts['lost'] += lost

    def add_update(self, update: FilterUpdate, remark: str = '', remedy: str = '') -> None:
        """Enter what the filter did with a message; a ``remark`` about it is a warning."""
        gated = update.outcome is Outcome.GATED
        if gated or update.mahalanobis2 is not None:
            self._gated.append(gated)
        if update.mahalanobis2 is not None and math.isfinite(update.mahalanobis2):
            self._distances2.append(update.mahalanobis2)
        if update.outcome in (Outcome.USED, Outcome.NOT_STARTED):
            self.add_used(remark, remedy)
            return
        self.counts[update.outcome.name.lower()] += 1
        if update.outcome is Outcome.REPEATED and not update.reason:
            self._problem_is_over = True
            return
        text = '; '.join(filter(None, (f'{update.outcome.value}: {update.reason}', remark)))
        if gated and np.mean(self._gated) < GATED_SHARE_TO_WARN:
            self.counts['refused'] += 1
        else:
            self.add_refused(text)

    def add_used(self, remark: str = '', remedy: str = '') -> None:
        """Count a used message; a ``remark`` about it is a warning."""
        self.counts['used'] += 1
        self._problem_is_over = not remark
        if remark:
            self._problem = Problem(Level.WARN, remark, remedy)

    def add_refused(self, reason: str, level: Level = Level.WARN, remedy: str = '') -> None:
        """Count a refused message and keep the reason as the input's problem."""
        self.counts['refused'] += 1
        self._problem_is_over = False
        self._problem = Problem(level, reason, remedy or self._remedy)

    def age_s(self, now_s: float) -> float | None:
        """Time since the last message; None before the first."""
        return now_s - self._received_s[-1] if self._received_s else None

    def status(
        self, now_s: float, timeout_s: float, silence: str, silence_remedy: str = '',
    ) -> Status:
        """The input's line; ``silence`` and its remedy are shown while nothing comes in."""
        age_s = self.age_s(now_s)
        values = self._values(now_s)
        problem = self._problem
        if self._problem_is_over:
            self._problem = None
        silent_s = age_s
        if age_s is None:
            silent_s = 0.0 if self._started_s is None else now_s - self._started_s
        if silent_s > timeout_s:
            text = f'nothing received for {silent_s:.1f} s; {silence}'
            if problem is not None:
                text += f'; before that: {problem.text}'
            return Status(self.name, self._silence_level, text, values, silence_remedy)
        if problem is not None:
            return Status(self.name, problem.level, problem.text, values, problem.remedy)
        if age_s is None:
            return Status(
                self.name, Level.WARN, 'waiting for the first message', values, silence_remedy)
        lost = sum(self._lost)
        if lost >= LOST_SHARE_TO_WARN * (lost + len(self._lost)) > 0.0:
            return Status(
                self.name, Level.WARN, f'{lost} of the last {lost + len(self._lost)} messages '
                'were lost on the way', values, remedies.LOST_MESSAGES)
        return Status(self.name, Level.OK, 'receiving', values)

    def _values(self, now_s: float) -> dict[str, object]:
        values = {key: self.counts[key] for key in ('received', 'used', 'refused')}
        values.update(self.counts)
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
