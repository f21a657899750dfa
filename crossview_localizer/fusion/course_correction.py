"""How a GNSS course corrects the heading of a belief, and when it is refused."""

import math

import numpy as np
from scipy.special import chdtri

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import FilterUpdate, Outcome
from crossview_localizer.fusion.belief import Belief, PoseEkf
from crossview_localizer.fusion.event_buffer import Event
from crossview_localizer.fusion.frozen import changed
from crossview_localizer.fusion.gnss_integrity import GATE_PROBABILITY
from crossview_localizer.fusion.motion_model import COURSE_DELAY, SPEED, STATES, YAW
from crossview_localizer.fusion.weighting import mahalanobis2
from crossview_localizer.geometry import wrap_angle

# The delay of courses changes by about this time; the turn in that time is added to their sigma.
COURSE_JITTER_S = 0.1
# Courses closer in time than this share their errors: their information is scaled.
COURSE_CORRELATION_S = 1.0


class CourseCorrector:
    """Corrects beliefs by courses."""

    def __init__(self, config: FilterConfig):
        self._config = config
        self._ekf = PoseEkf()
        self._gate = chdtri(1, 1.0 - GATE_PROBABILITY)

    def apply(self, belief: Belief, event: Event) -> tuple[Belief, FilterUpdate]:
        course = event.measurement
        lever_x_m, lever_y_m = course.base_from_antenna_m
        _, side_mps, turn_radps = belief.velocity
        ahead_mps = belief.mean[SPEED] - turn_radps * lever_y_m
        if ahead_mps < self._config.course_min_speed_mps:
            return belief, FilterUpdate(
                Outcome.TOO_SLOW, f'{ahead_mps:.1f} m/s; expected at least '
                f'{self._config.course_min_speed_mps:.1f} m/s')
        slip_rad = math.atan2(side_mps + turn_radps * lever_x_m, ahead_mps)
        late_rad = turn_radps * belief.mean[COURSE_DELAY]
        residual = np.array([wrap_angle(
            course.course_rad - belief.mean[YAW] - slip_rad + late_rad)])
        jacobian = np.zeros((1, STATES))
        jacobian[0, YAW], jacobian[0, COURSE_DELAY] = 1.0, -turn_radps
        noise = event.noise + (turn_radps * COURSE_JITTER_S) ** 2
        distance2 = mahalanobis2(residual, jacobian, belief.covariance, noise)
        if distance2 > self._gate or belief.fixes.distrusted_ns is not None:
            return belief, FilterUpdate(Outcome.GATED, 'course refused', distance2)
        share = 1.0
        if belief.course_ns is not None:
            passed_s = (course.stamp_ns - belief.course_ns) * 1e-9
            share = min(1.0, passed_s / COURSE_CORRELATION_S)
        if share == 0.0:
            return belief, FilterUpdate(
                Outcome.INVALID, 'a second course of the same instant', distance2)
        corrected = self._ekf.corrected(belief, residual, jacobian, noise / share)
        return (changed(belief, **corrected, course_ns=course.stamp_ns),
                FilterUpdate(Outcome.USED, '', distance2))
