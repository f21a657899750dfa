"""The time that odometry has reached, and which stamps are too far from it for this drive.

A bag that is looped without /clock jumps back; a clock that is corrected jumps either way. The
stamps alone tell such a jump from a single late message.
"""

from collections.abc import Callable
from dataclasses import dataclass
import time

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import FilterUpdate, OdometrySample, Outcome
from crossview_localizer.fusion.pose_filter import ODOMETRY_LOST_S

# So many odometry samples in a row from another time are a restart; fewer are late messages.
SAMPLES_TO_RESTART = 5
# Odometry that had arrived longer before does not say what time it was.
JUST_NOW_S = 0.2
# A bag is not played faster than this.
MAX_RATE = 4.0


@dataclass(frozen=True)
class TimeJump:
    """An odometry stamp from another time; after several in a row ``is_restart`` is true."""

    text: str
    kind: str  # too_old or too_new
    is_restart: bool


class OdometryTimeline:
    """The newest odometry sample, and how far other stamps are from it.

    Times of arrival are those at which this machine received a message, on any clock: a node that
    is busy takes it later.
    """

    def __init__(self, config: FilterConfig, clock_s: Callable[[], float] = time.monotonic):
        self.newest: OdometrySample | None = None
        self._config = config
        self._clock_s = clock_s
        self._taken_s = 0.0
        self.arrived_s = 0.0    # when the newest sample arrived
        self._samples_of_another_time = 0

    def reset(self) -> None:
        """Forget the odometry; the next sample may have any stamp."""
        self.newest = None
        self._samples_of_another_time = 0

    def find_jump(self, stamp_ns: int) -> TimeJump | None:
        """Judge the stamp of the next odometry sample; None if it fits."""
        if self.newest is None or stamp_ns <= 0:
            return None
        ahead_s = self._ahead_s(stamp_ns)
        if -self._config.buffer_s <= ahead_s <= ODOMETRY_LOST_S:
            self._samples_of_another_time = 0
            return None
        self._samples_of_another_time += 1
        direction, kind = ('ahead', 'too_new') if ahead_s > 0.0 else ('back', 'too_old')
        return TimeJump(
            f'jumped {direction} by {abs(ahead_s):.1f} s', kind,
            self._samples_of_another_time >= SAMPLES_TO_RESTART)

    def advance(self, sample: OdometrySample, arrived_s: float | None = None) -> bool:
        """Make a sample the newest; return False if it is not newer than the present one.

        Without ``arrived_s`` it has arrived now.
        """
        if self.newest is not None and sample.stamp_ns <= self.newest.stamp_ns:
            return False
        self.newest, self._taken_s = sample, self._clock_s()
        self.arrived_s = self._taken_s if arrived_s is None else arrived_s
        return True

    def find_image_problem(self, stamp_ns: int) -> FilterUpdate | None:
        """Why there can be no pose at the stamp of an image; None if there can be one."""
        if stamp_ns <= 0:
            return FilterUpdate(
                Outcome.INVALID, f'stamp is {stamp_ns} ns; expected a positive time')
        ahead_s = 0.0 if self.newest is None else self._ahead_s(stamp_ns)
        if ahead_s > ODOMETRY_LOST_S:
            return FilterUpdate(
                Outcome.INVALID, f'stamp is {ahead_s:.1f} s ahead of the last odometry')
        if ahead_s < -self._config.buffer_s:
            return FilterUpdate(
                Outcome.TOO_OLD, f'stamp is {-ahead_s:.1f} s before the last odometry; the delay '
                f'buffer holds {self._config.buffer_s:.1f} s')
        return None

    def is_worth_waiting_for(self, stamp_ns: int, patience_s: float) -> bool:
        """Whether odometry runs and will soon reach a stamp; it is silent after ``patience_s``."""
        if self.newest is None or self._clock_s() - self._taken_s > patience_s:
            return False
        return 0.0 < self._ahead_s(stamp_ns) <= ODOMETRY_LOST_S

    def early_s(self, stamp_ns: int, arrived_s: float) -> float:
        """How far a message is stamped ahead of the newest odometry.

        It is 0 where the time between their arrivals explains that, and for a stamp of another
        time.
        """
        if self.newest is None:
            return 0.0
        ahead_s, explained_s = self._ahead_s(stamp_ns), MAX_RATE * (arrived_s - self.arrived_s)
        return ahead_s if max(explained_s, 0.0) < ahead_s <= ODOMETRY_LOST_S else 0.0

    def late_s(self, stamp_ns: int, arrived_s: float) -> float:
        """How long after odometry of its stamp a message arrived; 0 where that is not known."""
        if self.newest is None or self.is_behind(arrived_s):
            return 0.0
        return max(0.0, -self._ahead_s(stamp_ns))

    def is_behind(self, arrived_s: float) -> bool:
        """Whether the odometry that arrived with a message has not been taken yet, or is late."""
        return arrived_s - self.arrived_s > JUST_NOW_S

    def _ahead_s(self, stamp_ns: int) -> float:
        return (stamp_ns - self.newest.stamp_ns) * 1e-9
