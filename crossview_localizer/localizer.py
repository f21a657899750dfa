"""The pipeline from sensor records to a localization; the node and the offline tools use it."""

from collections.abc import Callable
from pathlib import Path
from threading import RLock
from time import perf_counter

from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import (
    CameraImage,
    FilterUpdate,
    GnssCourse,
    GnssFix,
    Localization,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.matching.matcher import Matcher, SearchWindow
from crossview_localizer.matching.supervisor import MatchSupervisor, State

# Share of the search window that must lie on the map.
MIN_COVERAGE = 0.5


class Localizer:
    """Matches images with the satellite embeddings around a Kalman prior and fuses the matches.

    ``frame`` places ``map`` on Earth.  Without ``embedding_map`` and ``matcher`` there is only the
    prior.  Any thread may add measurements; only one thread at a time may process an image.  The
    network runs outside the lock.
    """

    def __init__(self, config: LocalizerConfig, frame: LocalFrame,
                 embedding_map=None, matcher: Matcher | None = None):
        self.config = config
        self.frame = frame
        self.embedding_map = embedding_map
        self.matcher = matcher
        self._lock = RLock()
        self._generation = 0  # counts resets and set poses, which supersede an image in process
        self._embedded_last = False  # whether the network ran on the last image
        self.reset()

    @property
    def filter(self) -> PoseFilter:
        """The filter whose pose is published."""
        return self._supervisor.published

    @property
    def match_state(self) -> str:
        """What the supervisor does with matches: trusted, distrusted or searching."""
        with self._lock:
            state = self._supervisor.state
        return 'searching' if state is State.LOST else state.name.lower()

    def reset(self) -> None:
        """Forget all measurements and wait for a start."""
        with self._lock:
            self._generation += 1
            self._supervisor = MatchSupervisor(
                self.config.filter, self.matcher and self.matcher.errors, self._can_search)

    def use_matcher(self, matcher: Matcher | None, embedding_map) -> None:
        """Use another matcher and its map from now on, or none."""
        with self._lock:
            self.matcher, self.embedding_map = matcher, embedding_map
            self._embedded_last = False
            self._supervisor.allow_search(self._can_search)

    def add_gnss(self, fix: GnssFix) -> FilterUpdate:
        with self._lock:
            return self._supervisor.add(PoseFilter.add_gnss, fix)

    def add_course(self, course: GnssCourse) -> FilterUpdate:
        with self._lock:
            return self._supervisor.add(PoseFilter.add_course, course)

    def add_odometry(self, sample: OdometrySample) -> FilterUpdate:
        with self._lock:
            return self._supervisor.add_odometry(sample)

    def set_pose(self, estimate: PoseEstimate) -> FilterUpdate:
        """Start at a pose; without a heading begin a search about its position."""
        with self._lock:
            update = self._supervisor.set_pose(estimate)
            if update.outcome in (Outcome.USED, Outcome.SEARCHING):
                self._generation += 1
            return update

    def estimate_at(self, stamp_ns: int) -> PoseEstimate | None:
        with self._lock:
            return self.filter.estimate_at(stamp_ns)

    def process_image(
        self, image: CameraImage, wait_until_due: Callable[[], bool] = lambda: True,
    ) -> Localization:
        """Match an image inside the prior and fuse the match at the image's stamp.

        ``wait_until_due`` returns once the measurements before the image have come, or False once
        the image is no longer wanted.  A network that needs no heading runs before that.
        """
        clock, ground, heatmap, match = _Stopwatch(), None, None, None
        generation = self._generation
        if self._embedded_last and not self.matcher.needs_heading:
            ground = self._embed(image, 0.0)
            clock.lap('embed')
        if not wait_until_due() or generation != self._generation:
            return Localization(image.stamp_ns, Outcome.SUPERSEDED, Outcome.SUPERSEDED.value)
        clock.lap('wait')
        with self._lock:
            supervisor = self._supervisor
            prior = self.estimate_at(image.stamp_ns)
            tried = supervisor.pose_for_matching(image.stamp_ns)
        search, window, update = self._windows(tried)
        if window is not None:
            clock.lap('window')
            if ground is None:
                ground = self._embed(image, tried.pose.yaw_rad)
                clock.lap('embed')
            heatmap = self.matcher.match(ground, window, tried, search)
            match, reason = self.matcher.estimate(heatmap, tried)
            clock.lap('match')
        with self._lock:
            if generation != self._generation:
                return Localization(
                    image.stamp_ns, Outcome.SUPERSEDED, Outcome.SUPERSEDED.value)
            if heatmap is not None:
                supervisor.weigh(heatmap, tried)
                update = supervisor.add_match(match, reason)
            elif update.outcome is Outcome.PRIOR_TOO_WIDE:
                supervisor.search_around(tried)
            posterior = self.estimate_at(image.stamp_ns)
        clock.lap('filter')
        searched = self._take_search_step(image, ground, generation)
        if searched:
            clock.lap('search')
        self._embedded_last = window is not None or searched
        return Localization(image.stamp_ns, update.outcome, update.reason, prior, heatmap, match,
                            posterior, clock.seconds)

    def _embed(self, image: CameraImage, yaw_rad: float):
        return self.matcher.embed(image, yaw_rad, self.config.camera.pitch_rad)

    def pass_image(self, stamp_ns: int, reason: str) -> Localization:
        """The result of an image that cannot be matched: the prior and the reason."""
        with self._lock:
            prior = self.estimate_at(stamp_ns)
            update = self._without_prior() if prior is None else FilterUpdate(
                Outcome.UNUSABLE, reason)
        return Localization(
            stamp_ns, update.outcome, update.reason, prior=prior, posterior=prior)

    def _without_prior(self) -> FilterUpdate:
        outcome = Outcome.TOO_OLD if self.filter.started else Outcome.NOT_STARTED
        return FilterUpdate(outcome, self._supervisor.search_text or outcome.value)

    def _windows(self, tried: PoseEstimate | None):
        """The search window about a pose and the map there, or the reason why there is none."""
        if tried is None:
            with self._lock:
                return None, None, self._without_prior()
        if self.matcher is None or self.embedding_map is None:
            return None, None, FilterUpdate(Outcome.NO_MATCHER, Outcome.NO_MATCHER.value)
        search = SearchWindow.around(tried, self.config.match)
        if reason := search.too_wide(self.config.match):
            return None, None, FilterUpdate(Outcome.PRIOR_TOO_WIDE, reason)
        window = self.embedding_map.window(tried, search.half_width_m, self.matcher.margin_m)
        coverage = 0.0 if window is None else window.coverage
        if coverage < MIN_COVERAGE:
            return None, None, FilterUpdate(
                Outcome.OUTSIDE_MAP, f'{100 * coverage:.0f} % of the search window lies on the '
                f'map; expected at least {100 * MIN_COVERAGE:.0f} %')
        return search, window, None

    @property
    def _can_search(self) -> bool:
        return (self.matcher is not None and self.embedding_map is not None
                and self.matcher.search_heatmaps is not None)

    def _take_search_step(self, image: CameraImage, ground, generation: int) -> bool:
        """Weigh the hypotheses of a search by an image; False if there is no search for it."""
        with self._lock:
            if generation != self._generation or not self._can_search:
                return False
            hypotheses = self._supervisor.next_search_step(image.stamp_ns)
        if hypotheses is None:
            return False
        if ground is None:
            ground = self._embed(image, 0.0)
        heatmaps = self.matcher.search_heatmaps(
            ground, self.embedding_map, hypotheses.yaws_rad, *hypotheses.area())
        with self._lock:
            if generation == self._generation:
                self._supervisor.finish_search_step(hypotheses, heatmaps, image.stamp_ns)
        return True


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
                   precision: str = 'float32',
                   report: Callable[[str], None] = print) -> Localizer:
    """Make a Localizer of a map and the network that the map was made with.

    ``weights`` is a weights file or the name of a control (see ``checkpoint.load_network``).  With
    ``onnx_path`` the ground branch runs in ONNX Runtime, on the CPU with ``threads`` threads;
    ``auto`` finds or makes that file if it can, and calls ``report`` (see ``ground_file``).
    With ``precision`` half the trunk of the dense ground branch runs in half precision, for a GPU.
    Raises ValueError or OSError if map or weights are missing or broken, or if the map was made
    with other weights.
    """
    # These imports load torch, which a Localizer without a matcher does not need.
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    from crossview_localizer.matching.dense_matcher import DenseMatcher, HalfGround
    from crossview_localizer.matching.tile_matcher import TileMatcher
    from crossview_localizer.networks.checkpoint import load_network
    from crossview_localizer.networks.dense import DENSE
    from crossview_localizer.networks.onnx import AUTO, ground_file, OnnxBranch

    network = load_network(weights, device, like)
    embedding_map = EmbeddingMap.open(map_path, device, network.fingerprint)
    kind = DenseMatcher if network.config.kind == DENSE else TileMatcher
    ground = None
    if onnx_path == AUTO:
        onnx_path = device == 'cpu' and ground_file(Path(weights), network.fingerprint, report)
    if onnx_path:
        ground = OnnxBranch(onnx_path, network.fingerprint, device, threads)
        network.ground = None           # and the memory of its weights
    elif precision == 'half' and kind is DenseMatcher:
        ground = HalfGround(network)
    network.satellite = None            # the map holds what it describes
    return Localizer(
        config, embedding_map.frame, embedding_map, kind(network, device, ground))
