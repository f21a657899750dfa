"""The same steps by other libraries, in the same run; the networks on the chosen device."""

import time

from filterpy.kalman import ExtendedKalmanFilter, KalmanFilter
import numpy as np
from scipy.signal import fftconvolve
import torch

from benchmarks import DENSE_WEIGHTS, TILE_WEIGHTS
from benchmarks.speed.world import BenchWorld, percentiles_ms, repeated_s
from crossview_localizer.bags.drive import Drive, read_drive
from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import GnssFix, Heatmap, OdometrySample, PoseEstimate
from crossview_localizer.fusion.motion_model import STATES
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import EmbeddingMap, MapWindow
from crossview_localizer.matching.dense_matcher import DenseMatcher, yaw_offsets
from crossview_localizer.matching.matcher import MIN_HALF_YAW_RAD
from crossview_localizer.matching.tile_matcher import TileMatcher
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import correlate, turned_views
from crossview_localizer.networks.safa import OXFORD
from crossview_localizer.trajectory import TRUTH_MAX_GAP_S

START_COVARIANCE = np.diag([1.0, 1.0, 0.01])


def prior() -> PoseEstimate:
    return PoseEstimate(0, Pose2D(0.0, 0.0, 0.4), np.diag([4.0, 4.0, 4e-4]))


def measure(world: BenchWorld, device: str, smoke: bool) -> dict:
    """Milliseconds of each of our steps and of its peer."""
    torch.set_num_threads(1)
    runs = 3 if smoke else 40
    with torch.inference_mode():
        found = {'networks': networks(device, runs), 'tile_match': tile_match(runs),
                 'dense_match': dense_match(runs), 'filter': kalman_filter(runs)}
    frame = EmbeddingMap.open(world.map, 'cpu', load_network(DENSE_WEIGHTS).fingerprint).frame
    return found | {'drive': filter_drive(read_drive(world.bag, frame))}


def networks(device: str, runs: int) -> dict:
    """The ground branch of each network on one frame."""
    generator = torch.Generator().manual_seed(0)

    def timed(call):
        def whole():
            call()
            if device == 'cuda':
                torch.cuda.synchronize()
        return percentiles_ms(repeated_s(whole, runs, 2))

    found = {}
    dense = load_network(DENSE_WEIGHTS, device)
    inputs = [x.to(device) for x in (
        torch.rand(1, 3, 128, 224, generator=generator), torch.rand(1, 4, 128, 128),
        torch.rand(1, len(dense.config.heights_m), 64, 64, 2) * 2.4 - 1.2)]
    found['dense (shipped)'] = timed(lambda: dense.ground(*inputs))
    for name, network in (
            ('tiles (shipped)', load_network(TILE_WEIGHTS, device)),
            ("the paper's VGG16", random_network(OXFORD, 0).to(device).eval())):
        channels = 4 if network.config.ground_view == 'birds_eye' else 3
        view = torch.randint(
            0, 256, (1, *network.config.ground_px, channels), dtype=torch.uint8).to(device)
        found[name] = timed(lambda n=network, v=view: n.embed_ground(v))
    return found


def tile_match(runs: int) -> dict:
    """One descriptor against the tiles of a window of 60 m each way, 3 m apart."""
    network = load_network(TILE_WEIGHTS)
    side, size = 41, None
    view = np.zeros((1, *network.config.ground_px, 4), np.uint8)
    ground = network.embed_ground(torch.from_numpy(view))[0]
    size = len(ground)
    rows = np.random.default_rng(0).standard_normal((side * side, size), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    grid = MapGrid(side, side, 3.0, -60.0, 60.0)
    window = MapWindow(grid, torch.arange(side * side).reshape(side, side),
                       torch.from_numpy(rows).half(), 1.0)
    tiles = torch.from_numpy(rows)
    matcher = TileMatcher(network)
    found = {
        'tiles': side * side, 'numbers': size,
        'heat map (ours)': percentiles_ms(repeated_s(
            lambda: matcher.match(ground, window, prior()), runs)),
        'cosines alone (ours)': percentiles_ms(repeated_s(lambda: tiles @ ground, runs))}
    try:
        import faiss
    except ImportError:
        found['FAISS flat'] = 'faiss-cpu is not installed'
        return found
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(size)
    index.add(rows)
    query = ground.numpy()[None]
    found['FAISS flat, best 10'] = percentiles_ms(
        repeated_s(lambda: index.search(query, 10), runs))
    found['FAISS flat, all'] = percentiles_ms(
        repeated_s(lambda: index.search(query, side * side), runs))
    return found


def dense_match(runs: int) -> dict:
    """The correlation of five turned views with a window of 15 m each way."""
    network = load_network(DENSE_WEIGHTS)
    config = network.config
    side = 61 + config.patch_cells - 1
    generator = torch.Generator().manual_seed(0)
    raster = torch.randn(config.channels, side, side, generator=generator)
    view = torch.randn(
        1, config.channels, config.ahead_cells, config.across_cells, generator=generator)
    yaws = torch.from_numpy(prior().pose.yaw_rad + yaw_offsets(MIN_HALF_YAW_RAD))[None]
    turned = turned_views(view, yaws, 0.4, config)
    patches, window = turned[0].numpy(), raster.numpy()

    def by_scipy() -> np.ndarray:
        return np.stack([
            sum(fftconvolve(window[c], patch[c, ::-1, ::-1], 'valid')
                for c in range(config.channels)) for patch in patches])

    ours = correlate(turned, raster)[0].numpy()
    difference = np.abs(by_scipy() - ours).max() / np.abs(ours).max()
    matcher = DenseMatcher(network)
    volume = np.log(np.random.default_rng(0).dirichlet(np.full(5 * 61 * 61, 0.05)) + 1e-12)
    volume = volume.reshape(5, 61, 61)
    heatmap = Heatmap(0, MapGrid(61, 61, 0.5, -15.0, 15.0),
                      np.logaddexp.reduce(volume, 0), yaws[0].numpy(), volume)
    return {
        'correlation (ours)': percentiles_ms(
            repeated_s(lambda: correlate(turned, raster), runs)),
        'scipy fftconvolve': percentiles_ms(repeated_s(by_scipy, max(3, runs // 8), 1)),
        'turning the views (ours)': percentiles_ms(repeated_s(
            lambda: turned_views(view, yaws, 0.4, config), runs)),
        'pose of a volume (ours)': percentiles_ms(repeated_s(
            lambda: matcher.estimate(heatmap, prior()), runs)),
        'relative_difference': float(f'{difference:.2g}')}


def kalman_filter(runs: int) -> dict:
    """One odometry increment, against filterpy's predict with matrices of the same size."""
    ours = PoseFilter(FilterConfig())
    ours.add_odometry(OdometrySample(10**9, Pose2D(0.0, 0.0, 0.0)))
    ours.set_pose(PoseEstimate(10**9, Pose2D(0.0, 0.0, 0.0), np.diag([1.0, 1.0, 0.01])))
    state = {'k': 0}

    def increment() -> None:
        state['k'] += 1
        time_s = 0.02 * state['k']
        ours.add_odometry(OdometrySample(
            10**9 + round(time_s * 1e9), Pose2D(10.0 * time_s, 0.0, 0.0)))

    bare = KalmanFilter(STATES, 2)
    bare.Q = np.eye(STATES) * 1e-4
    return {
        'states': STATES,
        'add_odometry (ours)': percentiles_ms(repeated_s(increment, 20 * runs)),
        'bare filterpy predict': percentiles_ms(repeated_s(bare.predict, 20 * runs)),
        'bare filterpy update': percentiles_ms(repeated_s(
            lambda: bare.update(np.zeros(2)), 20 * runs))}


class PlainEkf:
    """The textbook's filter of x, y and yaw: odometry predicts it, a fix corrects it.

    It has no states for the bias of GNSS or the scale of odometry, and believes every fix.
    """

    def __init__(self, start: Pose2D, config: FilterConfig):
        self._filter = ExtendedKalmanFilter(3, 2)
        self._filter.x, self._filter.P = start.as_array(), START_COVARIANCE.copy()
        self._config, self._last = config, None

    def add(self, event: OdometrySample | GnssFix) -> None:
        ekf = self._filter
        if isinstance(event, GnssFix):
            ekf.update(np.array([event.x_m, event.y_m]), lambda x: np.eye(2, 3), lambda x: x[:2],
                       event.covariance)
            return
        if self._last is not None:
            step = self._last.inverse() @ event.odom_from_base
            before, moved = ekf.x, (Pose2D(*ekf.x) @ step).as_array()
            ekf.F = np.eye(3)
            ekf.F[:2, 2] = before[1] - moved[1], moved[0] - before[0]
            step_m = np.hypot(step.x_m, step.y_m)
            sigmas = np.array([self._config.odometry_position_noise] * 2
                              + [self._config.odometry_yaw_noise_rad])
            ekf.Q = np.diag(sigmas ** 2 * step_m)
            ekf.P = ekf.F @ ekf.P @ ekf.F.T + ekf.Q
            ekf.x = moved
        self._last = event.odom_from_base

    def position_m(self) -> np.ndarray:
        return self._filter.x[:2]


def filter_drive(drive: Drive) -> dict:
    """GNSS and odometry of a drive through our filter and a plain EKF: times and errors."""
    events = sorted([*drive.fixes, *(
        OdometrySample(int(stamp_ns), Pose2D(*pose))
        for stamp_ns, pose in zip(drive.odometry.stamps_ns, drive.odometry.poses))],
        key=lambda event: (event.stamp_ns, isinstance(event, GnssFix)))
    truth = drive.truth.at([event.stamp_ns for event in events], TRUTH_MAX_GAP_S).poses
    first = next(k for k, event in enumerate(events)
                 if isinstance(event, OdometrySample) and np.isfinite(truth[k]).all())
    events, truth, start = events[first:], truth[first:, :2], Pose2D(*truth[first])
    config = FilterConfig()
    ours, plain = PoseFilter(config), PlainEkf(start, config)
    ours.add_odometry(events[0])
    ours.set_pose(PoseEstimate(events[0].stamp_ns, start, START_COVARIANCE))

    def add_to_ours(event: OdometrySample | GnssFix) -> None:
        (ours.add_gnss if isinstance(event, GnssFix) else ours.add_odometry)(event)

    found = {}
    for name, add, position_m in (
            ('the drive through the filter (ours)', add_to_ours,
             lambda event: ours.estimate_at(event.stamp_ns).pose.as_array()[:2]),
            ('the drive through a plain EKF', plain.add, lambda event: plain.position_m())):
        seconds, errors_m = [], []
        for event, true_m in zip(events, truth):
            begin_s = time.thread_time()
            add(event)
            seconds.append(time.thread_time() - begin_s)
            errors_m.append(np.linalg.norm(position_m(event) - true_m))
        found[name] = percentiles_ms(seconds) | {
            'median_m': round(float(np.nanmedian(errors_m)), 3)}
    return found
