"""Whether matches may correct the published pose; where not, the search for another pose."""

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

# Below this mean evidence the images are taken to be of another place,
DISTRUST_NATS = -0.1
# and above this one they are trusted again.
TRUST_NATS = 1.2
# How often distrusted matches are tried anew from the pose without them, and how often a pose
# that the images leave no doubt of is kept to fall back on.
RETRY_S = 10.0
# A search begins once matches have been distrusted for this long.
SEARCH_AFTER_S = 20.0
# After so many metres without a winner a search begins again, or ends where no pose is known.
SEARCH_LIMIT_M = 300.0


class State(Enum):
    TRUSTED = 'matches correct the published pose'
    LOST = 'there is no pose, or none certain enough, to match at: it is searched for'
    DISTRUSTED = 'the published pose goes on without matches'
    SEARCHING = 'as distrusted, and the pose is searched for'


class MatchSupervisor:
    """Two filters, the evidence of the heat maps, and the search, as one state machine.

    One filter uses the matches, the other goes on without them; both get everything else.  While
    matches are distrusted the second one is published, and the first is where they are tried.

    =================== ======================================= ==================================
    state               event                                   next state, and what is done
    =================== ======================================= ==================================
    TRUSTED, LOST       evidence is enough and below the limit  DISTRUSTED from TRUSTED,
                        (see ``weigh``)                         SEARCHING from LOST; matches are
                                                                tried from the pose without them
    TRUSTED, LOST       any other evidence                      TRUSTED; the search ends; a pose
                                                                beyond doubt is kept (RETRY_S)
    DISTRUSTED,         evidence above TRUST_NATS               TRUSTED; the search ends
    SEARCHING
    DISTRUSTED,         RETRY_S since the last time             the same; matches are tried anew
    SEARCHING                                                   from the pose without them
    DISTRUSTED          distrusted for SEARCH_AFTER_S           SEARCHING about the pose
                                                                without matches
    TRUSTED             prior too wide                          LOST
    DISTRUSTED          prior too wide                          SEARCHING
    any                 a pose without heading is set           SEARCHING about it, in place of
                                                                any other search; LOST if matches
                                                                were trusted and no filter had
                                                                started
    LOST                a pose with heading is set              TRUSTED
    SEARCHING           a pose with heading is set              DISTRUSTED
    LOST, SEARCHING     SEARCH_LIMIT_M without a winner         the same, about the pose of now;
                                                                without one as for a pose that
                                                                is set
    LOST, SEARCHING     searches are no longer allowed          TRUSTED from LOST, else DISTRUSTED
    LOST, SEARCHING     the search has a winner                 DISTRUSTED; matches are tried at
                                                                the winner, which is published
                                                                if nothing else is known
    =================== ======================================= ==================================

    Without ``can_search`` LOST and SEARCHING are never entered; without a matcher there is one
    filter and the state stays TRUSTED.  Calls must not overlap.
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
        self._distrusted_ns: int | None = None   # since when
        self._copied_ns: int | None = None       # when one filter last took over from the other
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
        """Call a method of PoseFilter for both filters; what became of it in the published one."""
        update = method(self.published, measurement)
        if self._with_matches is not self._without_matches:
            method(self._without_matches if self._trusts_matches else self._with_matches,
                   measurement)
        return update

    def add_odometry(self, sample: OdometrySample) -> FilterUpdate:
        self._odometry.add(sample)
        return self.add(PoseFilter.add_odometry, sample)

    def set_pose(self, estimate: PoseEstimate) -> FilterUpdate:
        """Set both filters; a pose whose heading is unknown begins a search (SEARCHING)."""
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
        return update

    # --- matches

    def pose_for_matching(self, stamp_ns: int) -> PoseEstimate | None:
        """Where an image is compared with the map: while distrusted not at the published pose."""
        published = self.published.estimate_at(stamp_ns)
        if published is None or self._trusts_matches:
            return published
        tried = self._with_matches.estimate_at(stamp_ns)
        if tried is None:
            self._with_matches = self._without_matches.copy()
        return tried or published

    def weigh(self, heatmap: Heatmap, prior: PoseEstimate) -> None:
        """Judge by a heat map, and the pose that it was made at, whether the images belong there.

        While trusted the limit is DISTRUST_NATS, but TRUST_NATS for the first judgement of all.
        The filters follow in ``add_match``.
        """
        stamp_ns, trusted_before = heatmap.stamp_ns, self._trusts_matches
        proven = trusted_before and self._evidence.is_enough
        self._evidence.add(heatmap, prior)
        trusted = trusted_before
        if self._evidence.is_enough:
            trusted = self._evidence.mean_nats >= (DISTRUST_NATS if proven else TRUST_NATS)
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
        """Use the match of the heat map that was weighed last; None and why if it gave none."""
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
        return FilterUpdate(
            Outcome.DISTRUSTED, f'mean evidence {self._evidence.mean_nats:.1f} nats, matches are '
            f'used again above {TRUST_NATS:.1f}')

    def _distrust(self, stamp_ns: int) -> None:
        self.state = State.DISTRUSTED if self._search is None else State.SEARCHING
        self._distrusted_ns = stamp_ns

    # --- the search

    def allow_search(self, allowed: bool) -> None:
        """Whether a search can run from now on; one that is under way ends if not."""
        self._can_search = allowed
        if not allowed:
            self._end_search()

    def search_around(self, prior: PoseEstimate) -> None:
        """Begin a search where a prior is too wide for a match, unless one is under way."""
        if self._can_search and self._search is None:
            radius_m = _radius_m(prior) if self._trusts_matches else RADIUS_M
            self._begin_search(prior, radius_m)

    def next_search_step(self, stamp_ns: int) -> PoseHypotheses | None:
        """The hypotheses that want heat maps of the image of this stamp, if there are any."""
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
        """Weigh the hypotheses of ``next_search_step`` by their heat maps; None off the map."""
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
        """How far a search has come, or ''."""
        if self._search is None:
            return ''
        return (f'the pose is searched for: {self._search.driven_m:.0f} m driven of at most '
                f'{SEARCH_LIMIT_M:.0f} m')

    def _begin_search(self, about: PoseEstimate, radius_m: float = RADIUS_M) -> float:
        """Begin, in place of any search so far; returns the radius in metres."""
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
    """Three sigmas; the largest radius where the sigma means nothing."""
    variance_m2 = max(estimate.covariance[0][0], estimate.covariance[1][1])
    return 3.0 * math.sqrt(variance_m2) if 0.0 < variance_m2 < math.inf else RADIUS_M
