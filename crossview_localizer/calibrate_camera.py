"""Fit the camera's height and pitch, and with a map the imagery's offset, from a drive.

Height and pitch come from what moves between two images (``camera_motion``): no map and no
weights are needed for them, only odometry in metres.  The offset comes from the dense matcher,
which scores every frame over place and heading: over the frames of a drive the sum of its
log-likelihoods at the known poses, all moved by one common offset, is highest where that offset
is right.  The sum is read about the best heading within the window, so that a small error of the
known heading does not matter.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
import math
from pathlib import Path
import sys

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter
from scipy.optimize import minimize
from tqdm import tqdm

from crossview_localizer.bags import replay
from crossview_localizer.bags.topics import Topics
from crossview_localizer.camera.motion import CameraMotion, MIN_PAIRS, MotionFit
from crossview_localizer.config import CameraConfig, LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, PoseEstimate
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.localizer import load_localizer
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.matcher import MIN_HALF_YAW_RAD, SearchWindow

WINDOW_M = 6.0               # of places about each known pose that are scored
MAX_OFFSET_M = 4.0           # of the imagery: the rest of the window is for the view's own reach
MIN_FRAMES = 10
BOOTSTRAPS = 100
SURE_SIGMAS = 2.0            # a change that is smaller is none
SETTLED_SIGMA_M = 1.5        # filtered poses that are less certain are not used
MOTION_IMAGES = 1200         # at most so many are compared for height and pitch


@dataclass(frozen=True)
class Frame:
    """An image and the pose that it is known to have been taken from."""

    image: CameraImage
    pose: Pose2D


@dataclass(frozen=True)
class Offset:
    """The imagery's offset ``xy_m`` (2,) east and north, and its standard deviations.

    ``gain_nats`` is what it adds to the mean log-likelihood of a frame; ``at_edge`` if it lies at
    the edge of what was tried; ``filtered`` where the poses were the filter's.
    """

    xy_m: np.ndarray
    sigmas_m: np.ndarray
    frames: int
    gain_nats: float
    at_edge: bool
    filtered: bool = False


def fit_offset(frames: list[Frame], volume: Callable[[Frame], tuple[np.ndarray, float]],
               seed: int = 0, progress: Callable[[list], list] = lambda items: items) -> Offset:
    """Maximise the frames' summed log-likelihood over a common offset.

    ``volume(frame)`` gives log-likelihoods (R, R) of offsets from the known pose, row 0 north,
    normalised over the window, and the cell in metres.  The standard deviations are those of fits
    to resampled frames, which need no belief in the likelihood's own width.

    :raises ValueError: for fewer than ``MIN_FRAMES`` frames.
    """
    if len(frames) < MIN_FRAMES:
        raise ValueError(f'{len(frames)} frames with a known pose; expected at least {MIN_FRAMES}')
    scored = [volume(frame) for frame in progress(frames)]
    cell_m = scored[0][1]
    volumes = np.array([v for v, _ in scored])                               # (n, R, R)
    best_m, value = _highest(volumes.mean(0), cell_m)
    # Neighbouring frames share their errors: blocks of them are drawn together.
    rng = np.random.default_rng(seed)
    block = max(1, len(frames) // 20)
    starts = np.arange(0, len(frames), block)
    resampled = []
    for _ in range(BOOTSTRAPS):
        chosen = np.concatenate([
            np.arange(s, min(s + block, len(frames))) for s in rng.choice(starts, len(starts))])
        resampled.append(_highest(volumes[chosen].mean(0), cell_m)[0])
    middle = (volumes.shape[1] - 1) // 2
    return Offset(best_m, np.std(resampled, axis=0), len(frames),
                  value - float(volumes[:, middle, middle].mean()),
                  bool((np.abs(best_m) > MAX_OFFSET_M - cell_m).any()))


def _highest(surface: np.ndarray, cell_m: float) -> tuple[np.ndarray, float]:
    """The offset (2,) of a surface (R, R)'s highest place, between its cells, and its height."""
    spline = spline_filter(surface)
    middle = (surface.shape[0] - 1) // 2
    reach = int(MAX_OFFSET_M / cell_m)
    inner = slice(middle - reach, middle + reach + 1)
    row, col = np.unravel_index(surface[inner, inner].argmax(), (2 * reach + 1,) * 2)
    fitted = minimize(
        lambda xy_m: -float(map_coordinates(
            spline, [[middle - xy_m[1] / cell_m], [middle + xy_m[0] / cell_m]], order=3,
            prefilter=False)[0]),
        ((col - reach) * cell_m, (reach - row) * cell_m), method='L-BFGS-B',
        bounds=[(-MAX_OFFSET_M, MAX_OFFSET_M)] * 2)
    return fitted.x, float(-fitted.fun)


class DenseVolumes:
    """Log-likelihoods over offsets about a frame's known pose, by the dense matcher."""

    def __init__(self, matcher: DenseMatcher, embedding_map, config: LocalizerConfig):
        self.matcher, self.map = matcher, embedding_map
        self.search = SearchWindow(WINDOW_M, MIN_HALF_YAW_RAD)
        self.pitch_rad = config.camera.pitch_rad

    def covers(self, pose: Pose2D) -> bool:
        """Whether the map holds all places that are tried for a frame from there."""
        window = self.map.window(_known(0, pose), WINDOW_M, self.matcher.margin_m)
        return window is not None and window.coverage == 1.0

    def __call__(self, frame: Frame) -> tuple[np.ndarray, float]:
        prior = _known(frame.image.stamp_ns, frame.pose)
        ground = self.matcher.embed(frame.image, frame.pose.yaw_rad, self.pitch_rad)
        window = self.map.window(prior, WINDOW_M, self.matcher.margin_m)
        heatmap = self.matcher.match(ground, window, prior, self.search)
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


class _StandIn:
    """Takes the Localizer's place in a replay; the sensors go nowhere."""

    def __init__(self, config: LocalizerConfig, frame: LocalFrame):
        self.config, self.frame = config, frame

    def add_gnss(self, fix):
        pass

    def add_course(self, course):
        pass

    def add_odometry(self, sample):
        pass

    def pass_image(self, stamp_ns, reason):
        pass


class _Motion(_StandIn):
    def __init__(self, config: LocalizerConfig, frame: LocalFrame, motion: CameraMotion):
        super().__init__(config, frame)
        self._motion = motion

    def process_image(self, image: CameraImage):
        self._motion.add(image)


class _KnownPoses(_StandIn):
    """Keeps images that are some way apart and on the map, with their poses."""

    def __init__(self, localizer, truth, spacing_m: float, limit: int, covers):
        super().__init__(localizer.config, localizer.frame)
        self._truth = truth
        self._spacing_m, self._limit, self._covers = spacing_m, limit, covers
        self.frames: list[Frame] = []
        self.without_map = 0

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
        pose = self._truth.pose_at(image.stamp_ns)
        return pose if np.isfinite([pose.x_m, pose.y_m, pose.yaw_rad]).all() else None


class _FilteredPoses(_KnownPoses):
    """The same with the filter's poses, once they are certain enough."""

    def __init__(self, localizer, spacing_m: float, limit: int, covers):
        super().__init__(localizer, None, spacing_m, limit, covers)
        self._localizer = localizer
        self.add_gnss, self.add_course = localizer.add_gnss, localizer.add_course
        self.add_odometry = localizer.add_odometry

    def _pose(self, image):
        estimate = self._localizer.process_image(image).posterior
        if estimate is None or estimate.covariance[0, 0] + estimate.covariance[1, 1] > (
                SETTLED_SIGMA_M ** 2):
            return None
        return estimate.pose


def fit_motion(bag: Path, node_config: NodeConfig, config: LocalizerConfig) -> MotionFit | None:
    """Height and pitch from a bag's images and odometry alone; None where too little moves.

    Raises ValueError or OSError where the bag does not serve.
    """
    # Positions on Earth do not matter here.
    frame = LocalFrame(0.0, 0.0)
    topics = replace(Topics(), gnss='', gnss_velocity='', truth='')
    drive = replay.read_drive(bag, frame, node_config, topics)
    if not len(drive.odometry):
        raise ValueError(f'{bag} holds no odometry on {topics.odometry}; height and pitch need it')
    motion = CameraMotion(drive.odometry)
    read = replay.localize(bag, _Motion(config, frame, motion), node_config, topics)
    total = min(MOTION_IMAGES, len(drive.image_stamps_ns))
    for _ in tqdm(islice(read, total), desc='height and pitch', total=total, unit=' images'):
        pass
    return motion.fit(config.camera.height_m)


def fit_offset_of_bag(bag: Path, map_path: Path, weights: Path, node_config: NodeConfig,
                      config: LocalizerConfig, filtered: bool, spacing_m: float, limit: int,
                      device: str = 'cpu') -> Offset:
    """The imagery's offset with the bag's ground truth, or the filter's poses if it has none.

    Raises ValueError or OSError where bag, map or weights do not serve.
    """
    localizer = load_localizer(map_path, weights, config, device)
    if not isinstance(localizer.matcher, DenseMatcher):
        raise ValueError(f'{weights} are of a tile matcher; expected weights of the dense matcher')
    truth = replay.read_drive(bag, localizer.frame, node_config).truth
    filtered = filtered or not len(truth)
    volumes = DenseVolumes(localizer.matcher, localizer.embedding_map, config)
    poses = (_FilteredPoses(localizer, spacing_m, limit, volumes.covers) if filtered
             else _KnownPoses(localizer, truth, spacing_m, limit, volumes.covers))
    for _ in tqdm(replay.localize(bag, poses, node_config), desc='reading', unit=' images'):
        if len(poses.frames) >= limit:
            break
    if len(poses.frames) < MIN_FRAMES:
        raise ValueError(
            f'{len(poses.frames)} frames of {bag} have a known pose on the map '
            f'({poses.without_map} lie off it); expected at least {MIN_FRAMES}: drive farther, '
            'or build a wider map')
    found = fit_offset(poses.frames, volumes,
                       progress=lambda items: tqdm(items, desc='matching', unit=' frames'))
    return replace(found, filtered=filtered)


def fitted_camera(motion: MotionFit | None, camera: CameraConfig) -> CameraConfig:
    """The camera with what differs from the configured by more than it is uncertain."""
    if motion is None:
        return camera
    height_m, pitch_rad = map(float, motion.values)
    if abs(height_m - camera.height_m) > SURE_SIGMAS * motion.sigmas[0]:  # False for NaN
        camera = replace(camera, height_m=height_m)
    if abs(pitch_rad - camera.pitch_rad) > SURE_SIGMAS * motion.sigmas[1]:
        camera = replace(camera, pitch_rad=pitch_rad)
    return camera


def summary(motion: MotionFit | None, offset: Offset | None, camera: CameraConfig) -> str:
    """What the command prints; ``camera`` is the one that was configured."""
    lines = []
    if motion is None:
        lines.append(f'height and pitch: not determined, fewer than {MIN_PAIRS} pairs of images '
                     'a metre or two apart on straight roads show enough that stands still')
    else:
        height_m, pitch_rad = motion.values
        lines += [
            f'{motion.pairs} pairs of images',
            f'camera height   {height_m:.2f} m +- {motion.sigmas[0]:.2f}   '
            f'(was {camera.height_m:.2f})' if math.isfinite(height_m) else
            'camera height   not determined: no height makes the road of two images alike',
            f'camera pitch    {math.degrees(pitch_rad):.2f} deg nose down +- '
            f'{math.degrees(motion.sigmas[1]):.2f}   (was {math.degrees(camera.pitch_rad):.2f})']
    if offset is not None:
        source = ('poses of the filter, which hold the offset already' if offset.filtered
                  else 'true poses')
        (x_m, y_m), (sigma_x, sigma_y) = offset.xy_m, offset.sigmas_m
        lines += [
            f'{offset.frames} frames at the {source}',
            f'matches lie     {x_m:.2f} m east +- {sigma_x:.2f} and {y_m:.2f} m north +- '
            f'{sigma_y:.2f} of the poses: the offset of the imagery '
            f'({offset.gain_nats:.3f} nats a frame)']
        if offset.at_edge:
            lines.append('offset: at the edge of what was tried; check the imagery or the poses')
    fitted = fitted_camera(motion, camera)
    changed = [f'    {name}: {getattr(fitted, name):.{digits}f}'
               for name, digits in (('height_m', 3), ('pitch_rad', 5))
               if getattr(fitted, name) != getattr(camera, name)]
    if changed:
        lines += ['set in the parameter file:', '  camera:', *changed]
    elif motion is not None:
        lines.append('height and pitch agree with what is configured: keep it')
    return '\n'.join(lines)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='calibrate_camera', description=__doc__.splitlines()[0],
        epilog='example: ros2 run crossview_localizer calibrate_camera drive --params my.yaml '
        '--map my.map --weights dense.safetensors')
    parser.add_argument('bag', type=Path,
                        help='a drive: images, odometry; for the offset, ground truth or GNSS')
    parser.add_argument('--params', type=Path, help='parameter file: the camera to start from')
    parser.add_argument('--map', type=Path, help="map of build_map: also the imagery's offset")
    parser.add_argument('--weights', type=Path, help="the dense matcher's, with --map")
    parser.add_argument('--filtered', action='store_true',
                        help="the filter's poses, even if the bag holds true ones")
    parser.add_argument('--frames', type=int, default=80,
                        help='for the offset, at most so many (default 80)')
    parser.add_argument('--spacing-m', type=float, default=5.0,
                        help='between two of them (default 5)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    args = parser.parse_args(arguments)
    try:
        if args.frames < MIN_FRAMES:
            raise ValueError(f'--frames {args.frames}; expected at least {MIN_FRAMES}')
        if (args.map is None) != (args.weights is None):
            raise ValueError('only one of --map and --weights is given; the offset needs both')
        node_config, config = (replay.read_parameters(args.params) if args.params
                               else (NodeConfig(), LocalizerConfig()))
        motion, offset = fit_motion(args.bag, node_config, config), None
        if args.map:
            fitted = replace(config, camera=fitted_camera(motion, config.camera))
            offset = fit_offset_of_bag(args.bag, args.map, args.weights, node_config, fitted,
                                       args.filtered, args.spacing_m, args.frames, args.device)
    except (ValueError, OSError) as error:
        print(f'calibrate_camera: {error}', file=sys.stderr)
        return 2
    print(summary(motion, offset, config.camera))
    return 0


if __name__ == '__main__':
    sys.exit(main())
