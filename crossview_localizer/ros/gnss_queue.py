"""GNSS messages that wait for the odometry of their time.

A node that was busy finds a queue of messages on each topic.  If it used the fixes first, each
odometry sample from before them would make the filter replay them, and it would never catch up.
"""

from collections import deque
from collections.abc import Callable, Iterator
import time

from crossview_localizer.ros.odometry_timeline import OdometryTimeline

# A receiver's messages arrive with the odometry of their time, or after it.  If one waits longer
# than this for odometry, it was stamped by another clock.
MAX_WAIT_S = 2.0


class GnssQueue:
    """Messages of one topic, in the order in which they came.

    A message is due once odometry has reached its stamp, or at once where odometry has been silent
    for ``odometry_wait_s``.
    """

    def __init__(
        self, timeline: OdometryTimeline, odometry_wait_s: float,
        clock_s: Callable[[], float] = time.monotonic,
    ):
        self._timeline = timeline
        self._odometry_wait_s = odometry_wait_s
        self._clock_s = clock_s
        self._waiting: deque[tuple[int, object, float, float]] = deque()

    def add(self, stamp_ns: int, msg: object, arrived_s: float | None = None) -> None:
        """Append a message; without ``arrived_s`` it has arrived now."""
        arrived_s = self._clock_s() if arrived_s is None else arrived_s
        self._waiting.append(
            (stamp_ns, msg, arrived_s, self._timeline.early_s(stamp_ns, arrived_s)))

    def clear(self) -> None:
        """Forget all messages."""
        self._waiting.clear()

    def take_due(self) -> Iterator[tuple[object, float]]:
        """Remove and yield each message that is due, with how long before its odometry it arrived.

        One for which ``clock_problem`` finds that time (in s) too long is due at once.
        """
        while self._waiting:
            stamp_ns, msg, arrived_s, early_s = self._waiting[0]
            if early_s <= MAX_WAIT_S and self._timeline.is_worth_waiting_for(
                    stamp_ns, self._odometry_wait_s):
                break
            self._waiting.popleft()
            yield msg, max(early_s, self._timeline.arrived_s - arrived_s)


def clock_problem(what: str, waited_s: float) -> str:
    """Why messages that arrive so long before their odometry are not used, or ''."""
    if waited_s <= MAX_WAIT_S:
        return ''
    return (f'{what} wait {waited_s:.1f} s for odometry of their time: their clock is ahead (GPS '
            'time is 18 s ahead of UTC) or that of the odometry behind; they are not used')
