"""The pipeline: sensor records in, localization out.  Node and evaluation both use it."""

from dataclasses import replace
from pathlib import Path
from threading import RLock
from time import perf_counter

from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import (
    CameraImage,
    FilterUpdate,
    GnssFix,
    Localization,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.pose_filter import PoseFilter


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
        self.filter = PoseFilter(config.filter)
        self._lock = RLock()

    def add_gnss(self, fix: GnssFix) -> FilterUpdate:
        with self._lock:
            return self.filter.add_gnss(fix)

    def add_odometry(self, sample: OdometrySample) -> FilterUpdate:
        with self._lock:
            return self.filter.add_odometry(sample)

    def set_pose(self, estimate: PoseEstimate) -> FilterUpdate:
        with self._lock:
            return self.filter.set_pose(estimate)

    def estimate_at(self, stamp_ns: int) -> PoseEstimate | None:
        with self._lock:
            return self.filter.estimate_at(stamp_ns)

    def reset(self) -> None:
        with self._lock:
            self.filter.reset()

    def process_image(self, image: CameraImage) -> Localization:
        """Match one frame inside the prior and fuse the match at the frame's stamp."""
        clock = _Stopwatch()
        result = replace(self._prior_only(image.stamp_ns), seconds=clock.seconds)
        prior = result.prior
        if prior is None:
            return result
        if self.matcher is None or self.embedding_map is None:
            return replace(result, outcome=Outcome.NO_MATCHER, reason=Outcome.NO_MATCHER.value)
        half_width_m = self.config.match.half_width_m(prior.covariance)
        if half_width_m > self.config.match.window_max_m:
            return replace(
                result, outcome=Outcome.PRIOR_TOO_WIDE,
                reason=f'the prior asks for a window of {half_width_m:.0f} m each way; at most '
                f'{self.config.match.window_max_m:.0f} m are searched')
        window = self.embedding_map.window(prior, half_width_m, self.matcher.margin_m)
        if window is None or window.coverage < self.config.match.min_coverage:
            covered = 0.0 if window is None else window.coverage
            return replace(
                result, outcome=Outcome.OUTSIDE_MAP,
                reason=f'{100 * covered:.0f} % of the search window lies on the map; expected at '
                f'least {100 * self.config.match.min_coverage:.0f} %')
        clock.lap('window')
        ground = self.matcher.embed(image, prior.pose.yaw_rad, self.config.camera.pitch_rad)
        clock.lap('embed')
        heatmap = self.matcher.match(ground, window, prior, self.config.match)
        match, reason = self.matcher.estimate(heatmap, prior, self.config.match)
        clock.lap('match')
        if match is None:
            return replace(result, outcome=Outcome.AMBIGUOUS, reason=reason, heatmap=heatmap)
        with self._lock:
            update = self.filter.add_match(match)
            posterior = self.filter.estimate_at(image.stamp_ns)
        clock.lap('filter')
        return replace(result, outcome=update.outcome, reason=update.reason, heatmap=heatmap,
                       match=match, posterior=posterior)

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
                   device: str = 'cpu', like: str | Path | None = None) -> Localizer:
    """Open the map and the network that made it.

    ``weights`` is a checkpoint or a control's name (see ``networks.load_network``).
    Raises ValueError or OSError where one is missing, broken, or made with the other's stranger.
    """
    # torch comes with these two; a prior-only Localizer does not need it.
    from crossview_localizer.dense import DENSE
    from crossview_localizer.dense_matching import DenseMatcher
    from crossview_localizer.embedding_map import EmbeddingMap
    from crossview_localizer.matching import TileMatcher
    from crossview_localizer.networks import load_network

    network = load_network(weights, device, like)
    embedding_map = EmbeddingMap.open(map_path, device, network.fingerprint)
    kind = DenseMatcher if network.config.kind == DENSE else TileMatcher
    return Localizer(config, embedding_map.frame, embedding_map, kind(network, device))
