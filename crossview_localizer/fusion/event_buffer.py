"""Measurements sorted by stamp, each with what is known after it."""

from bisect import bisect_left
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from crossview_localizer.datatypes import (
    FilterUpdate,
    GnssCourse,
    GnssFix,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.belief import Belief

Measurement = OdometrySample | GnssFix | PoseEstimate | GnssCourse
# The order of measurements with the same stamp.
RANKS = {OdometrySample: 0, GnssFix: 1, PoseEstimate: 2, GnssCourse: 3}


@dataclass(frozen=True)
class Event:
    """A measurement, its noise (n, n), and for a match the indices (n,) that it observes."""

    measurement: Measurement
    noise: np.ndarray | None = None
    observed: np.ndarray | None = None

    @property
    def stamp_ns(self) -> int:
        return self.measurement.stamp_ns

    @property
    def is_odometry(self) -> bool:
        return isinstance(self.measurement, OdometrySample)

    @cached_property
    def order(self) -> tuple:
        """Sort key: stamp, rank and values.  It does not depend on the time of arrival."""
        return (self.stamp_ns, RANKS[type(self.measurement)], *_values(self.measurement))


def _values(measurement: Measurement) -> tuple[float, ...]:
    match measurement:
        case OdometrySample():
            pose = measurement.odom_from_base
            return pose.x_m, pose.y_m, pose.yaw_rad
        case GnssFix():
            return measurement.x_m, measurement.y_m
        case PoseEstimate():
            return tuple(measurement.pose.as_array())
        case GnssCourse():
            return (measurement.course_rad,)


# Takes what was known before an event and the event; returns what is known after it.
Step = Callable[[Belief, Event], tuple[Belief, FilterUpdate]]


class EventBuffer:
    """Events after ``base``, sorted by stamp.  After a late event all later ones are replayed."""

    def __init__(self, base: Belief):
        self.base = base
        self.events: list[Event] = []
        self._beliefs: list[Belief] = []

    def copy(self) -> 'EventBuffer':
        # Beliefs and events are immutable: only the lists are copied.
        twin = copy(self)
        twin.events, twin._beliefs = list(self.events), list(self._beliefs)
        return twin

    @property
    def beliefs(self) -> list[Belief]:
        """What is known after each event."""
        return list(self._beliefs)

    def belief_at(self, stamp_ns: int) -> Belief:
        """What is known after the last event that is not newer than a stamp."""
        index = self._index_after(stamp_ns)
        return self._beliefs[index - 1] if index else self.base

    def insert(self, event: Event, step: Step, redo_from_ns: int | None = None) -> FilterUpdate:
        """Insert an event by its stamp and replay from there, or from ``redo_from_ns`` on."""
        index = len(self.events)
        if self.events and self.events[-1].stamp_ns >= event.stamp_ns:
            index = bisect_left(self.events, event.order, key=lambda other: other.order)
            if index < len(self.events) and self.events[index].order == event.order:
                return FilterUpdate(Outcome.INVALID, 'the same measurement has been given before')
        self.events.insert(index, event)
        if redo_from_ns is not None:
            index = min(index, self._index_after(redo_from_ns))
        return self.replay(step, index, event)

    def _index_after(self, stamp_ns: int) -> int:
        """The index of the first event that is newer than a stamp; mostly it is near the end."""
        index = len(self.events)
        while index and self.events[index - 1].stamp_ns > stamp_ns:
            index -= 1
        return index

    def replay(self, step: Step, index: int = 0,
               wanted: Event | None = None) -> FilterUpdate | None:
        """Compute the beliefs from ``index`` on; return the update of the wanted event."""
        del self._beliefs[index:]
        belief = self._beliefs[-1] if self._beliefs else self.base
        result = None
        for event in self.events[index:]:
            belief, update = step(belief, event)
            self._beliefs.append(belief)
            if event is wanted:
                result = update
        return result

    def trim(self, stamp_ns: int) -> bool:
        """Drop events up to a stamp; False if none was dropped.

        The last one that is dropped is an odometry sample.
        """
        drop = 0
        while drop < len(self.events) and self.events[drop].stamp_ns <= stamp_ns:
            drop += 1
        while drop and not self.events[drop - 1].is_odometry:
            drop -= 1
        if drop:
            self.base = self._beliefs[drop - 1]
            del self.events[:drop], self._beliefs[:drop]
        return drop > 0


def stamp_of(item: Event | OdometrySample | Belief) -> int:
    return item.stamp_ns
