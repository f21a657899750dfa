"""The pipeline: sensor records in, localization out.  Node and evaluation both use it."""

from dataclasses import replace
from pathlib import Path
from threading import RLock
from time import perf_counter

import numpy as np

from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import (
    CameraImage,
    FilterUpdate,
    GnssCourse,
    GnssFix,
    Heatmap,
    Localization,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.matching.match_trust import MatchTrust
from crossview_localizer.matching.pose_search import PoseSearch

# A search without a winner after so far begins again about the pose of then.
SEARCH_GIVES_UP_M = 300.0


class Localizer:
    """A Kalman prior, the preloaded satellite embeddings around it, and the match between them.

    ``frame`` is where ``map`` lies on Earth.  Without ``embedding_map`` and ``matcher`` the prior
    alone is published.  Calls may come from several threads; the network runs outside the lock.
    """

    def __init__(self, config: LocalizerConfig, frame: LocalFrame,
                 embedding_map=None, matcher=None):
        self.config = config
        self.frame = frame
        self.embedding_map = embedding_map
        self.matcher = matcher
        self._lock = RLock()
        self.reset()

    @property
    def filter(self) -> PoseFilter:
        """The one whose pose is published: with matches as long as they are trusted."""
        return self._matched if self._trust.trusted else self._unmatched

    def add_gnss(self, fix: GnssFix) -> FilterUpdate:
        return self._tell('add_gnss', fix)

    def add_course(self, course: GnssCourse) -> FilterUpdate:
        return self._tell('add_course', course)

    def add_odometry(self, sample: OdometrySample) -> FilterUpdate:
        update = self._tell('add_odometry', sample)
        if update.outcome is not Outcome.INVALID:
            self._odom_from_base = sample.odom_from_base
        return update

    def set_pose(self, estimate: PoseEstimate) -> FilterUpdate:
        """Start at a pose; one whose heading is not known starts a search about its position."""
        update = self._tell('set_pose', estimate)
        yaw_rad2 = estimate.covariance[2][2]
        if (update.outcome is Outcome.INVALID and self._can_search
                and yaw_rad2 > self.config.filter.lost_yaw_sigma_rad**2
                and np.isfinite((estimate.pose.x_m, estimate.pose.y_m)).all()):
            self._begin_search(estimate)
            return FilterUpdate(Outcome.NOT_STARTED, 'no heading: the pose is searched for')
        return update

    def estimate_at(self, stamp_ns: int) -> PoseEstimate | None:
        with self._lock:
            return self.filter.estimate_at(stamp_ns)

    def reset(self) -> None:
        with self._lock:
            self._matched = PoseFilter(self.config.filter)
            # Without matches there is only one filter.
            self._unmatched = self._matched if self.matcher is None else self._matched.copy()
            self._copied_ns: int | None = None
            self._doubted_ns: int | None = None  # since when matches are distrusted
            self._search: PoseSearch | None = None
            self._odom_from_base: Pose2D | None = None
            self._trust = MatchTrust(self.config.trust)

    def _tell(self, method: str, measurement) -> FilterUpdate:
        """Give a measurement to both filters; what became of it in the published one."""
        with self._lock:
            update = getattr(self.filter, method)(measurement)
            if self._matched is not self._unmatched:
                other = self._unmatched if self.filter is self._matched else self._matched
                getattr(other, method)(measurement)
            return update

    def process_image(self, image: CameraImage) -> Localization:
        """Match one frame inside the prior and fuse the match at the frame's stamp."""
        clock = _Stopwatch()
        result = replace(self._prior_only(image.stamp_ns), seconds=clock.seconds)
        prior = result.prior
        if prior is None:
            self._look(image)
            return result
        if self.matcher is None or self.embedding_map is None:
            return replace(result, outcome=Outcome.NO_MATCHER, reason=Outcome.NO_MATCHER.value)
        # While matches are not trusted they are tried on a pose of their own.
        assumed = self._assumed(prior)
        half_width_m = self.config.match.half_width_m(assumed.covariance)
        if half_width_m > self.config.match.window_max_m:
            self._begin_search(assumed)
            self._look(image)
            return replace(
                result, outcome=Outcome.PRIOR_TOO_WIDE,
                reason=f'the prior asks for a window of {half_width_m:.0f} m each way; at most '
                f'{self.config.match.window_max_m:.0f} m are searched')
        window = self.embedding_map.window(assumed, half_width_m, self.matcher.margin_m)
        if window is None or window.coverage < self.config.match.min_coverage:
            covered = 0.0 if window is None else window.coverage
            return replace(
                result, outcome=Outcome.OUTSIDE_MAP,
                reason=f'{100 * covered:.0f} % of the search window lies on the map; expected at '
                f'least {100 * self.config.match.min_coverage:.0f} %')
        clock.lap('window')
        ground = self.matcher.embed(image, assumed.pose.yaw_rad, self.config.camera.pitch_rad)
        clock.lap('embed')
        heatmap = self.matcher.match(ground, window, assumed, self.config.match)
        match, reason = self.matcher.estimate(heatmap, assumed, self.config.match)
        clock.lap('match')
        with self._lock:
            update = FilterUpdate(Outcome.AMBIGUOUS, reason)
            if match is not None:
                update = self._matched.add_match(match)
            self._weigh(heatmap, assumed)
            posterior = self.filter.estimate_at(image.stamp_ns)
            if not self._trust.trusted:
                update = FilterUpdate(
                    Outcome.DISTRUSTED, f'mean evidence {self._trust.mean_nats:.1f} nats, matches '
                    f'are used again above {self.config.trust.trust_nats:.1f}')
        clock.lap('filter')
        if self._search is not None:
            self._look(image, ground)
            clock.lap('search')
        return replace(result, outcome=update.outcome, reason=update.reason, heatmap=heatmap,
                       match=match, posterior=posterior)

    def _assumed(self, prior: PoseEstimate) -> PoseEstimate:
        """Where a frame is looked for: the published pose, or that which matches are tried on."""
        with self._lock:
            if self._trust.trusted:
                return prior
            tried = self._matched.estimate_at(prior.stamp_ns)
            if tried is None:
                self._matched = self._unmatched.copy()
            return tried or prior

    def _weigh(self, heatmap: Heatmap, assumed: PoseEstimate) -> None:
        """Follow whether the images belong here; keep and take up the pose without them."""
        trusted_before = self._trust.trusted
        trusted = self._trust.add(heatmap, assumed)
        due = (self._copied_ns is None
               or heatmap.stamp_ns - self._copied_ns >= self.config.trust.retry_s * 1e9)
        if trusted:
            self._doubted_ns = self._search = None
        elif self._doubted_ns is None:
            self._doubted_ns = heatmap.stamp_ns
        elif heatmap.stamp_ns - self._doubted_ns >= self.config.search.after_s * 1e9:
            self._begin_search(self._unmatched.estimate_at(heatmap.stamp_ns) or assumed)
        if trusted_before and not trusted or not trusted and due:
            self._matched = self._unmatched.copy()
        elif due and self._trust.beyond_doubt:
            self._unmatched = self._matched.copy()
        else:
            return
        self._copied_ns = heatmap.stamp_ns

    @property
    def _can_search(self) -> bool:
        return hasattr(self.matcher, 'search_heatmaps') and self.embedding_map is not None

    def _begin_search(self, about: PoseEstimate) -> None:
        """Search within three sigmas of a pose, in place of a search that has led nowhere."""
        if not self._can_search or (
                self._search is not None and self._search.driven_m < SEARCH_GIVES_UP_M):
            return
        radius_m = self.config.search.radius_m
        if self._search is None and self._doubted_ns is None:
            radius_m = 3.0 * max(about.covariance[0][0], about.covariance[1][1]) ** 0.5
        self._search = PoseSearch(about.pose.x_m, about.pose.y_m, radius_m, self.config.search)

    def _look(self, image: CameraImage, ground=None) -> None:
        """One frame of a search that is under way; its winner has yet to prove itself."""
        search, odom_from_base = self._search, self._odom_from_base
        if search is None or odom_from_base is None:
            return
        if ground is None:
            ground = self.matcher.embed(image, 0.0, self.config.camera.pitch_rad)
        winner = search.look(
            image.stamp_ns, odom_from_base, ground, self.matcher, self.embedding_map)
        if winner is None:
            return
        with self._lock:
            if self._search is not search:
                return
            if not self._unmatched.started:
                self._unmatched.set_pose(winner)
            self._matched.set_pose(winner)
            self._trust.doubt()
            self._search, self._doubted_ns = None, image.stamp_ns
            self._copied_ns = image.stamp_ns

    def pass_image(self, stamp_ns: int, reason: str) -> Localization:
        """What a frame gives that cannot be matched: the prior, and why."""
        result = self._prior_only(stamp_ns)
        if result.prior is None:
            return result
        return replace(result, outcome=Outcome.UNUSABLE, reason=reason)

    def _prior_only(self, stamp_ns: int) -> Localization:
        with self._lock:
            prior = self.filter.estimate_at(stamp_ns)
            without_prior = Outcome.TOO_OLD if self.filter.started else Outcome.NOT_STARTED
        return Localization(
            stamp_ns, without_prior, without_prior.value, prior=prior, posterior=prior)


class _Stopwatch:
    """Wall-clock seconds between laps."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self.seconds[name] = now - self._last
        self._last = now


def load_localizer(map_path: str | Path, weights: str | Path, config: LocalizerConfig,
                   device: str = 'cpu', like: str | Path | None = None,
                   onnx_path: str | Path = '', threads: int = 1,
                   precision: str = 'float32') -> Localizer:
    """Open the map and the network that made it.

    ``weights`` is a checkpoint or a control's name (see ``networks.load_network``).  With
    ``onnx_path`` ONNX Runtime runs the ground branch, on the CPU with so many ``threads``;
    ``precision`` half is for the dense matcher's by torch.
    Raises ValueError or OSError where one is missing, broken, or made with the other's stranger.
    """
    # torch comes with these two; a prior-only Localizer does not need it.
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    from crossview_localizer.matching.dense_matcher import DenseMatcher, HalfGround
    from crossview_localizer.matching.tile_matcher import TileMatcher
    from crossview_localizer.networks.checkpoint import load_network
    from crossview_localizer.networks.dense import DENSE
    from crossview_localizer.networks.onnx import OnnxBranch

    network = load_network(weights, device, like)
    embedding_map = EmbeddingMap.open(map_path, device, network.fingerprint)
    kind = DenseMatcher if network.config.kind == DENSE else TileMatcher
    ground = None
    if onnx_path:
        ground = OnnxBranch(onnx_path, network.fingerprint, device, threads)
    elif precision == 'half' and kind is DenseMatcher:
        ground = HalfGround(network)
    return Localizer(
        config, embedding_map.frame, embedding_map, kind(network, device, ground))
