"""Fit the camera's height and pitch, and the imagery's offset, from a drive with known poses.

The dense matcher scores every frame over place and heading.  Over the frames of a drive the sum
of its log-likelihoods at the known poses, all moved by one common offset, is highest where the
camera's height, its pitch and that offset are right.  The sum is read about the best heading
within the window, so that a small error of the known heading does not matter.

The matcher was trained with wrong heights and pitches, so its likelihood hardly depends on them:
the offset is found to centimetres, height and pitch often not better than they were configured.
What the drive does not tell is said, and only what it does tell is proposed.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
import math
from pathlib import Path
import sys

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter
from scipy.optimize import minimize
from tqdm import tqdm

from crossview_localizer import replay
from crossview_localizer.config import LocalizerConfig, MatchConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, PoseEstimate
from crossview_localizer.dense_matching import DenseMatcher
from crossview_localizer.geometry import Pose2D
from crossview_localizer.localizer import load_localizer

WINDOW_M = 6.0               # of places about each known pose that are scored
MAX_OFFSET_M = 4.0           # of the imagery: the rest of the window is for the view's own reach
HEIGHT_STEP_M = 0.08         # of the design about the configured camera
PITCH_STEP_RAD = math.radians(0.5)
MIN_FRAMES = 10
BOOTSTRAPS = 100
MOST_AT_EDGE = 0.05          # of the fits to resampled frames, for a parameter that is known
EDGE_STEPS = 1.4             # of the design: what is fitted beyond it lies at the edge
SURE_SIGMAS = 2.0            # a change that is smaller is none
SETTLED_SIGMA_M = 1.5        # filtered poses that are less certain are not used


@dataclass(frozen=True)
class Frame:
    """An image and the pose that it is known to have been taken from."""

    image: CameraImage
    pose: Pose2D


@dataclass(frozen=True)
class Calibration:
    """``values`` and ``sigmas`` (4,): height_m, pitch_rad, and the imagery's offset x_m, y_m.

    ``gain_nats`` is what the fit adds to the mean log-likelihood of a frame over the camera as it
    was configured; ``at_edge`` names what lies at the edge of what was tried; ``undetermined``
    what fits to resampled frames put there too often for its standard deviation to mean anything.
    """

    values: np.ndarray
    sigmas: np.ndarray
    frames: int
    gain_nats: float
    at_edge: tuple[str, ...]
    undetermined: tuple[str, ...] = ()


NAMES = ('height', 'pitch', 'offset x', 'offset y')


def calibrate(
    frames: list[Frame], volume: Callable[[Frame, float, float], tuple[np.ndarray, float]],
    height_m: float, pitch_rad: float, seed: int = 0,
    progress: Callable[[list], list] = lambda items: items,
) -> Calibration:
    """Maximise the frames' summed log-likelihood over height, pitch and a common offset.

    ``volume(frame, height_m, pitch_rad)`` gives log-likelihoods (R, R) of offsets from the known
    pose, row 0 north, normalised over the window, and the cell in metres.  Each frame is scored at
    the nine points of a 3 x 3 design about (height_m, pitch_rad), twice: the second design lies
    about the first one's best.  Between the points the sum is a quadratic in height and pitch for
    each offset.  The standard deviations are those of fits to resampled frames, which need no
    belief in the likelihood's own width.

    :raises ValueError: for fewer than ``MIN_FRAMES`` frames.
    """
    if len(frames) < MIN_FRAMES:
        raise ValueError(f'{len(frames)} frames with a known pose; expected at least {MIN_FRAMES}')
    rng = np.random.default_rng(seed)
    centre = np.array([height_m, pitch_rad])
    step = np.array([HEIGHT_STEP_M, PITCH_STEP_RAD])
    first = None
    design = np.array([(a, b) for a in (-1.0, 0.0, 1.0) for b in (-1.0, 0.0, 1.0)])
    for _ in range(2):
        points = centre + design * step                                     # (9, 2)
        scored = [[volume(frame, *point) for point in points] for frame in progress(frames)]
        cell_m = scored[0][0][1]
        volumes = np.array([[v for v, _ in row] for row in scored])          # (n, 9, R, R)
        if first is None:
            first = volumes[:, 4].mean(0)
        best, value = _fit(volumes.mean(0), design, cell_m)
        found = np.concatenate((centre + best[:2] * step, best[2:]))
        centre = found[:2]
    resampled, at_edge = [], np.zeros(2)
    # Neighbouring frames share their errors: blocks of them are drawn together.
    block = max(1, len(frames) // 20)
    starts = np.arange(0, len(frames), block)
    for _ in range(BOOTSTRAPS):
        chosen = np.concatenate([
            np.arange(s, min(s + block, len(frames))) for s in rng.choice(starts, len(starts))])
        fit, _ = _fit(volumes[chosen].mean(0), design, cell_m)
        resampled.append(np.concatenate((fit[:2] * step, fit[2:])))
        at_edge += np.abs(fit[:2]) > EDGE_STEPS
    middle = (first.shape[0] - 1) / 2
    edges = np.concatenate((
        np.abs(best[:2]) > EDGE_STEPS, np.abs(best[2:]) > MAX_OFFSET_M - cell_m))
    before = _at(spline_filter(first), middle, middle)
    return Calibration(
        found, np.std(resampled, axis=0), len(frames), value - before,
        tuple(name for name, edge in zip(NAMES, edges, strict=True) if edge),
        tuple(name for name, count in zip(NAMES[:2], at_edge, strict=True)
              if count > MOST_AT_EDGE * BOOTSTRAPS))


def _fit(volumes: np.ndarray, design: np.ndarray, cell_m: float) -> tuple[np.ndarray, float]:
    """Best (height, pitch in steps of the design, x_m, y_m) and the log-likelihood there."""
    a, b = design.T
    # Least squares of the quadratic in height and pitch, one for each offset's cell.
    terms = np.stack((np.ones_like(a), a, b, a * a, a * b, b * b), 1)        # (9, 6)
    solve = np.linalg.pinv(terms)
    surfaces = np.tensordot(solve, volumes, axes=1)                          # (6, R, R)
    splines = [spline_filter(surface) for surface in surfaces]
    middle = (volumes.shape[1] - 1) / 2
    reach = int(MAX_OFFSET_M / cell_m)

    def likelihood(parameters):
        height, pitch, x_m, y_m = parameters
        row, col = middle - y_m / cell_m, middle + x_m / cell_m
        weights = (1.0, height, pitch, height ** 2, height * pitch, pitch ** 2)
        return sum(w * _at(s, row, col) for w, s in zip(weights, splines, strict=True))

    # Start at the best cell of the best design point, and stay where the design still speaks.
    inner = slice(int(middle) - reach, int(middle) + reach + 1)
    window = volumes[:, inner, inner]
    point, row, col = np.unravel_index(window.argmax(), window.shape)
    start = (*design[point], (col - reach) * cell_m, (reach - row) * cell_m)
    limits = [(-1.5, 1.5)] * 2 + [(-MAX_OFFSET_M, MAX_OFFSET_M)] * 2
    fitted = minimize(lambda p: -likelihood(p), start, method='L-BFGS-B', bounds=limits)
    return fitted.x, float(-fitted.fun)


def _at(spline: np.ndarray, row: float, col: float) -> float:
    return float(map_coordinates(spline, [[row], [col]], order=3, prefilter=False)[0])


class DenseVolumes:
    """Log-likelihoods over offsets about a frame's known pose, by the dense matcher."""

    def __init__(self, matcher: DenseMatcher, embedding_map, config: MatchConfig):
        self.matcher, self.map = matcher, embedding_map
        self.config = replace(config, window_min_m=WINDOW_M)

    def covers(self, pose: Pose2D) -> bool:
        """Whether the map holds all places that are tried for a frame from there."""
        window = self.map.window(_known(0, pose), WINDOW_M, self.matcher.margin_m)
        return window is not None and window.coverage == 1.0

    def __call__(self, frame: Frame, height_m: float, pitch_rad: float):
        prior = _known(frame.image.stamp_ns, frame.pose)
        camera = replace(frame.image.camera, height_m=height_m)
        image = replace(frame.image, camera=camera)
        ground = self.matcher.embed(image, frame.pose.yaw_rad, pitch_rad)
        window = self.map.window(prior, WINDOW_M, self.matcher.margin_m)
        heatmap = self.matcher.match(ground, window, prior, self.config)
        # The raster's cells lie where the map has them: bring the known pose to the middle.
        grid, log_p = heatmap.grid, heatmap.log_probability
        row, col = grid.row_col_from_xy(frame.pose.x_m, frame.pose.y_m)
        reach = int((WINDOW_M - 1.0) / grid.cell_m)
        steps = np.arange(-reach, reach + 1)
        rows, cols = np.meshgrid(float(row) + steps, float(col) + steps, indexing='ij')
        # Frames that fit nowhere must not decide: a floor is their share of outliers.
        floor = np.log(0.05 / log_p.size)
        return np.logaddexp(map_coordinates(log_p, [rows, cols], order=1), floor), grid.cell_m


def _known(stamp_ns: int, pose: Pose2D) -> PoseEstimate:
    return PoseEstimate(stamp_ns, pose, np.diag([0.3, 0.3, math.radians(0.7)]) ** 2)


class _Poses:
    """Takes the Localizer's place in a replay, and keeps images that are some way apart."""

    def __init__(self, localizer, truth, spacing_m: float, limit: int, covers):
        self.config, self.frame = localizer.config, localizer.frame
        self._localizer, self._truth = localizer, truth
        self._spacing_m, self._limit, self._covers = spacing_m, limit, covers
        self.frames: list[Frame] = []
        self.without_map = 0

    def add_gnss(self, fix):
        if self._truth is None:
            self._localizer.add_gnss(fix)

    def add_odometry(self, sample):
        if self._truth is None:
            self._localizer.add_odometry(sample)

    def pass_image(self, stamp_ns, reason):
        pass

    def process_image(self, image: CameraImage):
        pose = self._pose(image)
        if pose is None or len(self.frames) >= self._limit:
            return
        if self.frames:
            last = self.frames[-1].pose
            if math.hypot(pose.x_m - last.x_m, pose.y_m - last.y_m) < self._spacing_m:
                return
        if self._covers(pose):
            self.frames.append(Frame(image, pose))
        else:
            self.without_map += 1

    def _pose(self, image):
        if self._truth is None:
            estimate = self._localizer.process_image(image).posterior
            if estimate is None or estimate.covariance[0, 0] + estimate.covariance[1, 1] > (
                    SETTLED_SIGMA_M ** 2):
                return None
            return estimate.pose
        pose = self._truth.pose_at(image.stamp_ns)
        return pose if np.isfinite([pose.x_m, pose.y_m, pose.yaw_rad]).all() else None


def calibrate_bag(bag: Path, map_path: Path, weights: Path, node_config: NodeConfig,
                  config: LocalizerConfig, filtered: bool, spacing_m: float, limit: int,
                  device: str = 'cpu') -> tuple[Calibration, bool]:
    """Calibrate from a bag; with its ground truth, or with the filter's poses if it has none.

    Returns the calibration and whether the poses were the filter's.
    Raises ValueError or OSError where bag, map or weights do not serve.
    """
    localizer = load_localizer(map_path, weights, config, device)
    if not isinstance(localizer.matcher, DenseMatcher):
        raise ValueError(f'{weights} are of a tile matcher; expected weights of the dense matcher')
    truth = replay.read_drive(bag, localizer.frame, node_config).truth
    filtered = filtered or not len(truth)
    volumes = DenseVolumes(localizer.matcher, localizer.embedding_map, config.match)
    poses = _Poses(localizer, None if filtered else truth, spacing_m, limit, volumes.covers)
    for _ in tqdm(replay.localize(bag, poses, node_config), desc='reading', unit=' images'):
        if len(poses.frames) >= limit:
            break
    if len(poses.frames) < MIN_FRAMES:
        raise ValueError(
            f'{len(poses.frames)} frames of {bag} have a known pose on the map '
            f'({poses.without_map} lie off it); expected at least {MIN_FRAMES}: drive farther, '
            'or build a wider map')
    return calibrate(
        poses.frames, volumes, config.camera.height_m, config.camera.pitch_rad,
        progress=lambda items: tqdm(items, desc='matching', unit=' frames')), filtered


def summary(found: Calibration, config: LocalizerConfig, filtered: bool) -> str:
    """What the command prints."""
    height_m, pitch_rad, x_m, y_m = found.values
    sigma = found.sigmas
    source = 'poses of the filter, which hold the offset already' if filtered else 'true poses'
    lines = [
        f'{found.frames} frames at the {source}; the fit adds {found.gain_nats:.3f} nats a frame',
        f'camera height   {height_m:.3f} m +- {sigma[0]:.3f}   (was {config.camera.height_m:.3f})',
        f'camera pitch    {math.degrees(pitch_rad):.2f} deg nose down +- '
        f'{math.degrees(sigma[1]):.2f}   (was {math.degrees(config.camera.pitch_rad):.2f})',
        f'matches lie     {x_m:.2f} m east +- {sigma[2]:.2f} and {y_m:.2f} m north +- '
        f'{sigma[3]:.2f} of the poses: the offset of the imagery',
    ]
    for name in found.at_edge:
        if name.startswith('offset'):
            lines.append(f'{name}: at the edge of what was tried; check the imagery or the poses')
    proposed = []
    for name, key, value, one_sigma, was in (
            ('height', f'    height_m: {height_m:.3f}', height_m, sigma[0],
             config.camera.height_m),
            ('pitch', f'    pitch_rad: {pitch_rad:.5f}', pitch_rad, sigma[1],
             config.camera.pitch_rad)):
        if name in found.at_edge or name in found.undetermined:
            lines.append(f'{name}: not determined, the fit went to the edge of what was tried; '
                         'keep what is configured, or measure it')
        elif abs(value - was) < SURE_SIGMAS * one_sigma:
            lines.append(f'{name}: not told apart from the configured one; keep it')
        else:
            proposed.append(key)
    if proposed:
        lines += ['set in the parameter file:', '  camera:', *proposed]
    return '\n'.join(lines)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='calibrate_camera', description=__doc__.splitlines()[0],
        epilog='example: ros2 run crossview_localizer calibrate_camera drive '
        '--map my.map --weights dense.safetensors --params my.yaml')
    parser.add_argument('bag', type=Path, help='a drive, with ground truth where there is one')
    parser.add_argument('--map', type=Path, required=True, help='map of build_map')
    parser.add_argument('--weights', type=Path, required=True, help="the dense matcher's")
    parser.add_argument('--params', type=Path, help='parameter file: the camera to start from')
    parser.add_argument('--filtered', action='store_true',
                        help="the filter's poses, even if the bag holds true ones")
    parser.add_argument('--frames', type=int, default=80, help='at most so many (default 80)')
    parser.add_argument('--spacing-m', type=float, default=5.0,
                        help='between two frames (default 5)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    args = parser.parse_args(arguments)
    try:
        if args.frames < MIN_FRAMES:
            raise ValueError(f'--frames {args.frames}; expected at least {MIN_FRAMES}')
        node_config, config = (replay.read_parameters(args.params) if args.params
                               else (NodeConfig(), LocalizerConfig()))
        found, filtered = calibrate_bag(args.bag, args.map, args.weights, node_config, config,
                                        args.filtered, args.spacing_m, args.frames, args.device)
    except (ValueError, OSError) as error:
        print(f'calibrate_camera: {error}', file=sys.stderr)
        return 2
    print(summary(found, config, filtered))
    return 0


if __name__ == '__main__':
    sys.exit(main())
