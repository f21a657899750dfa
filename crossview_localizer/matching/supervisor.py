"""Decides whether matches may correct the published pose, and searches for a lost pose."""

from collections.abc import Callable
from enum import Enum
import math

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import (
    FilterUpdate,
    Heatmap,
    MatchErrors,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.odometry_path import OdometryPath
from crossview_localizer.fusion.pose_filter import LOST_YAW_SIGMA_RAD, PoseFilter
from crossview_localizer.matching.evidence import MeanEvidence
from crossview_localizer.matching.pose_search import PoseHypotheses, PoseSearch, RADIUS_M

# Matches are distrusted when the mean evidence falls below this: the images show another place.
DISTRUST_NATS = -0.1
# Matches are trusted, at first or again, when the mean evidence is above this and the pose is
# proven, see ``evidence``.
TRUST_NATS = 1.2
# How often one filter takes over the state of the other, see MatchSupervisor.
RETRY_S = 10.0
# A search begins when matches have been distrusted for this long.
SEARCH_AFTER_S = 20.0
# A search without a winner after this distance begins again, or ends if there is no pose.
SEARCH_LIMIT_M = 300.0


class State(Enum):
    TRUSTED = 'matches correct the published pose'
    LOST = 'as TRUSTED, but the pose is too uncertain or unknown and is searched for'
    DISTRUSTED = 'the published pose goes on without matches'
    SEARCHING = 'as DISTRUSTED, and the pose is searched for'


class MatchSupervisor:
    """Two filters, the evidence of the heat maps and the search, as one state machine.

    One filter uses the matches, the other does not; both get all other measurements.  In TRUSTED
    and LOST the filter with matches is published.  In DISTRUSTED and SEARCHING the filter without
    matches is published, and the other one serves to try the matches.

    ================ ======================================================== ============
    state            event                                                    next state
    ================ ======================================================== ============
    TRUSTED          the images do not fit                                    DISTRUSTED
    TRUSTED          the prior is too wide for a match                        LOST
    LOST             an image is matched, and the images fit so far           TRUSTED
    LOST             an image is matched, and the images do not fit           SEARCHING
    DISTRUSTED       the images fit                                           TRUSTED
    DISTRUSTED       the prior is too wide, or SEARCH_AFTER_S have passed     SEARCHING
    SEARCHING        the images fit                                           TRUSTED
    LOST, SEARCHING  a hypothesis wins (it is then tried)                     DISTRUSTED
    LOST             the search ends without a winner (see below)             TRUSTED
    SEARCHING        the search ends without a winner                         DISTRUSTED
    TRUSTED, LOST    a pose without heading is set before the filters start   LOST
    any              a pose without heading is set otherwise                  SEARCHING
    ================ ======================================================== ============

    Whether the images fit is judged by ``weigh``.  A search ends without a winner if a pose with
    heading is set, if the matcher is lost, or after SEARCH_LIMIT_M without any pose.  After
    SEARCH_LIMIT_M with a pose it begins again about that pose.  A pose without heading always
    begins a new search.  A winner becomes the pose of both filters if none has started, else of
    the filter with matches only.

    Every RETRY_S, while trusted, the filter without matches takes over the state of the other one
    if the evidence is beyond doubt.  At the loss of trust and every RETRY_S, while distrusted, the
    filter with matches takes over the state of the other one.

    A matcher that cannot search leaves only TRUSTED and DISTRUSTED.  Without a matcher there is
    one filter and the state is TRUSTED.  Calls must not overlap.
    """

    def __init__(self, config: FilterConfig, errors: MatchErrors | None, can_search: bool):
        """``errors`` are the matcher's; None if there is none."""
        self.state = State.TRUSTED
        self._can_search = can_search
        self._with_matches = PoseFilter(config, errors)
        self._without_matches = (
            self._with_matches if errors is None else self._with_matches.copy())
        self._evidence = MeanEvidence()
        self._odometry = OdometryPath(config)
        self._search: PoseSearch | None = None
        self._distrusted_ns: int | None = None   # when distrust began or a pose was set last
        self._copied_ns: int | None = None       # when a filter last took over the other's state
        self._copy_is_due = False

    @property
    def published(self) -> PoseFilter:
        """The filter whose pose is published."""
        return self._with_matches if self._trusts_matches else self._without_matches

    @property
    def _trusts_matches(self) -> bool:
        return self.state in (State.TRUSTED, State.LOST)

    # --- measurements

    def add(self, method: Callable[..., FilterUpdate], measurement) -> FilterUpdate:
        """Call a method of PoseFilter on both filters; return the update of the published one."""
        update = method(self.published, measurement)
        if self._with_matches is not self._without_matches:
            method(self._without_matches if self._trusts_matches else self._with_matches,
                   measurement)
        return update

    def add_odometry(self, sample: OdometrySample) -> FilterUpdate:
        self._odometry.add(sample)
        return self.add(PoseFilter.add_odometry, sample)

    def set_pose(self, estimate: PoseEstimate) -> FilterUpdate:
        """Set the pose of both filters; without a heading begin a search (Outcome.SEARCHING)."""
        if self._can_search and _lacks_only_the_heading(estimate):
            if self.published.started:
                self._distrust(estimate.stamp_ns)
                self._evidence.forget()
            radius_m = self._begin_search(estimate, _radius_m(estimate))
            return FilterUpdate(
                Outcome.SEARCHING, f'no heading: the pose is searched for within {radius_m:.0f} m')
        update = self.add(PoseFilter.set_pose, estimate)
        if update.outcome is Outcome.USED:
            self._end_search()
            if not self._trusts_matches:
                self._evidence.forget()
            self._distrusted_ns = estimate.stamp_ns
        return update

    # --- matches

    def pose_for_matching(self, stamp_ns: int) -> PoseEstimate | None:
        """The prior for the match of an image; while distrusted it is not the published pose."""
        published = self.published.prior_at(stamp_ns)
        if published is None or self._trusts_matches:
            return published
        tried = self._with_matches.prior_at(stamp_ns)
        if tried is None:
            self._with_matches = self._without_matches.copy()
        return tried or published

    def weigh(self, heatmap: Heatmap, prior: PoseEstimate) -> None:
        """Judge by the mean evidence, with this heat map and its prior, whether the images fit.

        Too few frames change nothing.  The limit is DISTRUST_NATS while trusted, and TRUST_NATS
        for the first judgement and while distrusted.  A pose that is not trusted and has a mean
        below 0 must also be proven from then on.  ``add_match`` must follow.
        """
        stamp_ns, trusted_before = heatmap.stamp_ns, self._trusts_matches
        proven = trusted_before and self._evidence.is_enough
        self._evidence.add(heatmap, prior)
        trusted = trusted_before
        if self._evidence.is_enough:
            mean_nats = self._evidence.mean_nats
            trusted = mean_nats >= DISTRUST_NATS if proven else (
                mean_nats >= TRUST_NATS and self._evidence.lacking_s == 0.0)
            if not trusted and mean_nats < 0.0:
                self._evidence.require_proof()
        due = self._copied_ns is None or stamp_ns - self._copied_ns >= RETRY_S * 1e9
        if trusted:
            self.state, self._search = State.TRUSTED, None
            beyond_doubt = self._evidence.is_enough and min(
                self._evidence.frame_nats, self._evidence.mean_nats) >= TRUST_NATS
            self._copy_is_due = due and beyond_doubt
        elif trusted_before:
            self._distrust(stamp_ns)
            self._copy_is_due = True
        else:
            self._copy_is_due = due
            if (self._can_search and self.state is State.DISTRUSTED
                    and stamp_ns - self._distrusted_ns >= SEARCH_AFTER_S * 1e9):
                self._begin_search(self._without_matches.estimate_at(stamp_ns) or prior)
        if self._copy_is_due:
            self._copied_ns = stamp_ns

    def add_match(self, match: PoseEstimate | None, reason: str) -> FilterUpdate:
        """Use the match of the heat map that was weighed last, or the reason why it has none."""
        update = FilterUpdate(Outcome.AMBIGUOUS, reason)
        if match is not None:
            update = self._with_matches.add_match(match)
        if self._copy_is_due and self._trusts_matches:
            self._without_matches = self._with_matches.copy()
        elif self._copy_is_due:
            self._with_matches = self._without_matches.copy()
        self._copy_is_due = False
        if self._trusts_matches:
            return update
        reason = (f'mean evidence {self._evidence.mean_nats:.1f} nats, matches are used again '
                  f'above {TRUST_NATS:.1f}')
        if lacking_s := self._evidence.lacking_s:
            reason += f' and after {lacking_s:.0f} s of the best evidence of this drive'
        return FilterUpdate(Outcome.DISTRUSTED, reason)

    def _distrust(self, stamp_ns: int) -> None:
        self.state = State.DISTRUSTED if self._search is None else State.SEARCHING
        self._distrusted_ns = stamp_ns

    # --- the search

    def allow_search(self, allowed: bool) -> None:
        """Say whether a search can run from now on."""
        self._can_search = allowed
        if not allowed:
            self._end_search()

    def search_around(self, prior: PoseEstimate) -> None:
        """Begin a search about a prior that is too wide for a match, unless there is one."""
        if self._can_search and self._search is None:
            radius_m = _radius_m(prior) if self._trusts_matches else RADIUS_M
            self._begin_search(prior, radius_m)

    def next_search_step(self, stamp_ns: int) -> PoseHypotheses | None:
        """The hypotheses that need heat maps of the image of this stamp; None if none do."""
        odom_from_base = self._odometry.pose_at(stamp_ns)
        if self._search is None or odom_from_base is None:
            return None
        due = self._search.advance(stamp_ns, odom_from_base)
        if self._search.driven_m >= SEARCH_LIMIT_M:
            about = self.published.estimate_at(stamp_ns)
            if about is None:
                self._end_search()
                return None
            self._begin_search(about)
            due = self._search.advance(stamp_ns, odom_from_base)
        return self._search.hypotheses if due else None

    def finish_search_step(self, hypotheses: PoseHypotheses, heatmaps: list[Heatmap] | None,
                           stamp_ns: int) -> None:
        """Weigh the hypotheses of ``next_search_step`` by heat maps; None if outside the map."""
        if self._search is None or self._search.hypotheses is not hypotheses:
            return
        if heatmaps is not None:
            hypotheses.update(heatmaps)
        winner = hypotheses.winner(stamp_ns)
        if winner is None:
            return
        if not self._without_matches.started:
            self._without_matches.set_pose(winner)
        self._with_matches.set_pose(winner)
        self._search = None
        self._evidence.forget()
        self._distrust(stamp_ns)
        self._copied_ns = stamp_ns

    @property
    def search_text(self) -> str:
        """How far the search has come; '' without one."""
        if self._search is None:
            return ''
        return (f'the pose is searched for: {self._search.driven_m:.0f} m driven of at most '
                f'{SEARCH_LIMIT_M:.0f} m')

    def _begin_search(self, about: PoseEstimate, radius_m: float = RADIUS_M) -> float:
        """Begin a new search; return its radius in metres."""
        self._search = PoseSearch(about.pose.x_m, about.pose.y_m, radius_m)
        self.state = State.LOST if self._trusts_matches else State.SEARCHING
        return self._search.radius_m

    def _end_search(self) -> None:
        self._search = None
        self.state = State.TRUSTED if self._trusts_matches else State.DISTRUSTED


def _lacks_only_the_heading(estimate: PoseEstimate) -> bool:
    position = estimate.pose.x_m, estimate.pose.y_m
    return (estimate.stamp_ns > 0 and bool(np.isfinite(position).all())
            and estimate.covariance[2][2] > LOST_YAW_SIGMA_RAD**2)


def _radius_m(estimate: PoseEstimate) -> float:
    """Three sigmas; the largest radius if the sigma is unknown."""
    variance_m2 = max(estimate.covariance[0][0], estimate.covariance[1][1])
    return 3.0 * math.sqrt(variance_m2) if 0.0 < variance_m2 < math.inf else RADIUS_M
