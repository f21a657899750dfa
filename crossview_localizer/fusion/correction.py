"""Corrects beliefs by measurements, each kind in a file of its own.

Errors that are correlated in time are treated in two ways.  The slow GNSS error and what all
matches are off are states (Gauss-Markov).  A match or course soon after another one shares its
errors: it counts only by the share of the correlation length that has passed since.
"""

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    FilterUpdate,
    GnssCourse,
    GnssFix,
    MatchErrors,
    PoseEstimate,
)
from crossview_localizer.fusion.belief import Belief
from crossview_localizer.fusion.course_correction import CourseCorrector
from crossview_localizer.fusion.event_buffer import Event
from crossview_localizer.fusion.gnss_correction import GnssCorrector
from crossview_localizer.fusion.match_correction import MatchCorrector


class Corrector:
    """Corrects beliefs by measurements at their stamp."""

    def __init__(self, config: FilterConfig, errors: MatchErrors):
        self._gnss = GnssCorrector(config, errors)
        self._course = CourseCorrector(config)
        self._match = MatchCorrector(config, errors)

    def apply(self, belief: Belief, event: Event,
              bridge_m2: np.ndarray) -> tuple[Belief, FilterUpdate]:
        """Correct a belief of the event's stamp.

        ``bridge_m2`` (2, 2) is the variance of a position inside a gap of the odometry.
        """
        match event.measurement:
            case GnssFix():
                return self._gnss.apply(belief, event, bridge_m2)
            case PoseEstimate():
                return self._match.apply(belief, event, bridge_m2)
            case GnssCourse():
                return self._course.apply(belief, event)
        raise TypeError(f'{event.measurement!r} corrects nothing; expected a fix, match or course')
