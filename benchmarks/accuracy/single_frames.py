"""Single frames of the dense matcher in unseen simulated cities, beside the paper's and controls.

Protocol: another day than the orthophoto's, prior off by up to 18.5 m on each axis and 10 degrees,
images of 231 x 154, frames 5 m or more apart.  The paper's matcher has tiles 1.5 m apart and the
temperature fitted on validation drives.  shuffled_images is the dense matcher given the image of
a frame at least 200 m away (the farthest in a short drive); blind_trained, where its weights are
given, a network trained with grey images only; image_blind is the better of the two.
"""

import argparse
from concurrent.futures import as_completed, ProcessPoolExecutor
import csv
from dataclasses import dataclass, replace
import gzip
import hashlib
import json
import math
import multiprocessing
from pathlib import Path
import platform
import sys

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import REPOSITORY
from benchmarks.fusion.towns import elsewhere
from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.config import FilterConfig, MatchConfig
from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.evaluation.pose_metrics import pose_errors
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle
from crossview_localizer.maps.embedding_map import MapWindow
from crossview_localizer.matching.dense_matcher import DenseMatcher, distance2_within, peak_pose
from crossview_localizer.matching.tile_matcher import TileMatcher
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.controls import RAW_CORRELATION
from crossview_localizer.networks.dense import GAUSSIAN_DOF
from crossview_localizer.trajectory import Track
from training.data.datasets import load_world, World
from training.recipes.dense_groups import dense_map, prior_about, PRIOR_M, UNIFORM
from training.simulation.robotcar_writer import smooth_warp

WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'
PAPER_WEIGHTS = REPOSITORY / 'config/weights/crossview_safa_synthetic.safetensors'
RESULT = REPOSITORY / 'docs/results/dense.json'

WIDE_PRIOR_M = 50.0
IMAGE_PX = (231, 154)
SPACING_M = 5.0
TILE_STEP_PX = 4              # of 0.375 m
FULL_CIRCLE_EVERY = 10        # slow rows have every tenth frame,
WIDE_EVERY = 4                # every fourth,
TILES_EVERY = 3               # and every third
CHUNK = 25                    # frames that one process does in one go
LAYOUT_S = 240.0              # of a real layout's trajectory, or less where that is
LAYOUT_SIDE_M = 1000.0        # too large for ten minutes
WARPED_FRAMES = 60            # a world
WARP_RMS_M = 0.5
SHARES = {'coverage_68': 0.68, 'coverage_95': 0.95}


@dataclass(frozen=True)
class Frame:
    """One answer of one method."""

    world: str
    index: int
    method: str
    truth: Pose2D
    estimate: PoseEstimate
    ambiguous: bool
    dof: float = GAUSSIAN_DOF  # of the Student t that the estimate is said to err by


class Scene:
    """A world as the matchers see it: 231 x 154 images, the dense map, tiles on demand."""

    def __init__(self, world: World, dense, paper=None, warp_seed: int | None = None, raw=None):
        self.world = small_images(world)
        if warp_seed is not None:
            self.world = replace(self.world, imagery=warped(self.world, warp_seed))
        self.matchers = {'dense': DenseMatcher(dense)}
        self.maps = {'dense': dense_map(dense, self.world)}
        self.paper, self.raw = paper, raw
        self.coarse = coarser(self.world, paper.config.px_m) if paper else None

    def add_dense(self, name: str, network) -> None:
        self.matchers[name] = DenseMatcher(network)
        self.maps[name] = dense_map(network, self.world)

    def image(self, index: int) -> CameraImage:
        return CameraImage(0, self.world.images[index], self.world.camera)

    def truth(self, index: int) -> Pose2D:
        return true_pose(self.world, index)

    def dense_answer(self, name: str, image: CameraImage, prior: PoseEstimate,
                     config: MatchConfig, half_width_m: float):
        matcher = self.matchers[name]
        window = self.maps[name].window(prior, half_width_m, matcher.margin_m)
        ground = matcher.embed(image, prior.pose.yaw_rad)
        return matcher.match(ground, window, prior, config)

    def single_frame(self, name: str, heatmap: Heatmap, prior: PoseEstimate):
        """Estimate, whether it is ambiguous, and the degrees of freedom that it errs by."""
        model = self.matchers[name].network.config
        estimate, ambiguous = peak_pose(
            heatmap, prior, model.sharpening, model.min_mass, model.peak_inflation)
        return estimate, ambiguous, GAUSSIAN_DOF if ambiguous else model.peak_dof

    def tile_answer(self, network, image: CameraImage, prior: PoseEstimate, config: MatchConfig):
        """The paper's matcher on tiles TILE_STEP_PX apart, its trunk run once a shift."""
        matcher = TileMatcher(network)
        window = tile_window(network, self.coarse, prior.pose, PRIOR_M)
        ground = matcher.embed(image, prior.pose.yaw_rad)
        return matcher.match(ground, window, prior, config)


def small_images(world: World) -> World:
    """The same world with images of IMAGE_PX and the camera to fit."""
    height_px, width_px = world.images.shape[1:3]
    if (width_px, height_px) == IMAGE_PX:
        return world
    images = np.stack([cv2.resize(x, IMAGE_PX, interpolation=cv2.INTER_AREA)
                       for x in world.images])
    return replace(world, images=images, camera=world.camera.resized(*IMAGE_PX))


def warped(world: World, seed: int) -> np.ndarray:
    """The imagery with a smooth misregistration of WARP_RMS_M, as the renderer's option has it."""
    x_m, y_m = np.meshgrid(*world.grid.cell_centres())
    dx_m, dy_m = smooth_warp(np.random.default_rng([seed, 23]), x_m, y_m, WARP_RMS_M)
    row, col = world.grid.row_col_from_xy(x_m + dx_m, y_m + dy_m)
    return cv2.remap(world.imagery, col.astype(np.float32), row.astype(np.float32),
                     cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def coarser(world: World, px_m: float) -> World:
    """The same world with imagery of ``px_m`` a pixel."""
    scale = world.grid.cell_m / px_m
    rows, cols = int(world.grid.rows * scale), int(world.grid.cols * scale)
    first_m = (px_m - world.grid.cell_m) / 2
    grid = MapGrid(rows, cols, px_m, world.grid.x0_m + first_m, world.grid.y0_m - first_m)
    used = world.imagery[:round(rows / scale), :round(cols / scale)]
    return replace(world, grid=grid, imagery=cv2.resize(
        used, (cols, rows), interpolation=cv2.INTER_AREA))


@torch.no_grad()
def tile_window(network, world: World, pose: Pose2D, half_width_m: float) -> MapWindow:
    """Tiles TILE_STEP_PX apart about a pose."""
    model = network.config
    stride = 8
    reach = math.ceil((half_width_m + 1.0) / (stride * model.px_m))
    side_px = model.tile_px + 2 * reach * stride
    side_px += -side_px % 32
    area, grid = world.area(pose.x_m, pose.y_m, side_px + stride)
    shifts = range(0, stride, TILE_STEP_PX)
    per_shift = (side_px - model.tile_px) // stride + 1
    tiles = None
    for i, down in enumerate(shifts):
        for j, right in enumerate(shifts):
            part = torch.from_numpy(area[down:down + side_px, right:right + side_px].copy())
            if hasattr(network, 'embed_lattice'):
                found = network.embed_lattice(part)
            else:
                cut = part.unfold(0, model.tile_px, stride).unfold(1, model.tile_px, stride)
                found = network.embed_satellite(cut.flatten(0, 1).permute(0, 2, 3, 1)).view(
                    per_shift, per_shift, -1)
            if tiles is None:
                tiles = found.new_zeros(
                    per_shift * len(shifts), per_shift * len(shifts), found.shape[2])
            tiles[i::len(shifts), j::len(shifts)] = found
    first_px = model.margin_px + (model.view_px - 1) / 2
    x0_m, y0_m = grid.xy_from_row_col(first_px, first_px)
    side = tiles.shape[0]
    return MapWindow(
        MapGrid(side, side, TILE_STEP_PX * model.px_m, float(x0_m), float(y0_m)),
        torch.arange(side * side).view(side, side), tiles.flatten(0, 1), 1.0)


def full_circle(scene: Scene, image: CameraImage, prior: PoseEstimate):
    """``single_frame`` of the best of all headings: 18 matches of +-10 degrees."""
    best, found = -math.inf, None
    for k in range(18):
        heading = wrap_angle(prior.pose.yaw_rad + math.radians(20.0 * k))
        turned = replace(prior, pose=replace(prior.pose, yaw_rad=heading))
        matcher = scene.matchers['dense']
        window = scene.maps['dense'].window(turned, PRIOR_M, matcher.margin_m)
        # Scores of different headings are compared as they are: the peak above the mean.
        heatmap = matcher.match(matcher.embed(image, heading), window, turned, UNIFORM)
        peak = float(heatmap.volume.max() - np.median(heatmap.volume))
        if peak > best:
            best, found = peak, scene.single_frame('dense', heatmap, turned)
    return found


@dataclass(frozen=True)
class Trial:
    """What a frame is judged with; ``number`` counts the frames of its world."""

    number: int
    index: int
    prior: PoseEstimate
    blind: int
    far_prior: PoseEstimate | None


def trials(world: World, seed: int, wide: bool, count: int | None) -> list[Trial]:
    """The first ``count`` frames of a world that are SPACING_M apart, with their priors."""
    rng = np.random.default_rng([seed, 7])
    found, last_m, last_drive = [], None, None
    for index, (pose, drive) in enumerate(zip(world.poses, world.drive)):
        if last_m is not None and drive == last_drive and (
                np.hypot(*(pose[:2] - last_m)) < SPACING_M):
            continue
        last_m, last_drive = pose[:2], drive
        truth = true_pose(world, index)
        prior = prior_about(truth, rng, PRIOR_M)
        blind = elsewhere(world.poses[:, :2], index, rng)
        far = wide and len(found) % WIDE_EVERY == 0
        found.append(Trial(len(found), index, prior, blind,
                           prior_about(truth, rng, WIDE_PRIOR_M) if far else None))
        if len(found) == count:
            break
    return found


def true_pose(world: World, index: int) -> Pose2D:
    return Pose2D(*map(float, world.poses[index]))


def judge(scene: Scene, trial: Trial) -> list[Frame]:
    """All methods on one frame."""
    frames, prior, image = [], trial.prior, scene.image(trial.index)

    def add(method, *answer):
        frames.append(Frame(
            scene.world.name, trial.index, method, scene.truth(trial.index), *answer))

    def add_dense(method, name, image, prior=prior, half_width_m=PRIOR_M):
        heatmap = scene.dense_answer(name, image, prior, UNIFORM, half_width_m)
        add(method, *scene.single_frame(name, heatmap, prior))

    add('prior_centre', prior, False)
    add_dense('dense', 'dense', image)
    add_dense('shuffled_images', 'dense', scene.image(trial.blind))
    if trial.number % TILES_EVERY == 0:
        add('paper', *peak_pose(scene.tile_answer(scene.paper, image, prior, UNIFORM), prior))
        add('raw_correlation', *peak_pose(
            scene.tile_answer(scene.raw, image, prior, UNIFORM), prior))
        if 'random_init' in scene.matchers:
            add_dense('random_init', 'random_init', image)
    if 'blind_trained' in scene.matchers:
        grey = replace(image, rgb=np.full_like(image.rgb, UNSEEN))
        add_dense('blind_trained', 'blind_trained', grey)
    if trial.number % FULL_CIRCLE_EVERY == 0:
        add('yaw_full_circle', *full_circle(scene, image, prior))
    if trial.far_prior is not None:
        pose = trial.far_prior.pose
        if scene.maps['dense'].grid.contains(pose.x_m, pose.y_m):
            add_dense('dense_wide_prior', 'dense', image, trial.far_prior, WIDE_PRIOR_M)
        else:
            add('dense_wide_prior', trial.far_prior, True)  # off the map: no match, honestly
    return frames


@dataclass(frozen=True)
class Networks:
    """Files of the weights that are compared."""

    dense: Path
    paper: Path
    blind: Path | None

    def fingerprints(self) -> list[str]:
        return [load_network(path).fingerprint[:12]
                for path in (self.dense, self.paper, self.blind) if path]


@dataclass(frozen=True)
class WorldPart:
    """A world as one part of the result judges it; ``done`` names the files of its frames."""

    part: str
    path: Path
    warp_seed: int | None
    trials: tuple[Trial, ...]
    done: Path

    def chunks(self) -> list[tuple[Path, tuple[Trial, ...]]]:
        return [(self.done.with_name(f'{self.done.name}_{first}.csv.gz'),
                 self.trials[first:first + CHUNK])
                for first in range(0, len(self.trials), CHUNK)]


def world_part(part: str, path: Path, number: int, warp_seed: int | None, count: int | None,
               fingerprints: list[str], out: Path) -> WorldPart:
    """Which frames of a world are judged.

    The files of another world, other weights or other code have other names.
    """
    world = load_world(path)
    found = trials(world, number, part == 'synthetic', count)
    if not found:
        raise ValueError(f'{path} holds no images; expected a prepared world')
    digest = hashlib.sha256(repr((part, number, warp_seed, found, fingerprints)).encode())
    for array in (world.imagery, world.images, world.poses):
        digest.update(np.ascontiguousarray(array))
    for source in (Path(__file__), *sorted((REPOSITORY / 'crossview_localizer').glob('*.py'))):
        digest.update(source.read_bytes())
    done = out / f'{part}_{world.name}_{digest.hexdigest()[:10]}'
    return WorldPart(part, path, warp_seed, tuple(found), done)


_networks, _scene, _scene_of = None, None, None  # of a process: the last world is kept


def _load_networks(files: Networks, threads: int) -> None:
    global _networks
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    _networks = {
        'dense': load_network(files.dense), 'paper': load_network(files.paper),
        'raw': load_network(RAW_CORRELATION, like=PAPER_WEIGHTS),
        'random_init': load_network('random_init:1', like=files.dense),
        'blind_trained': load_network(files.blind) if files.blind else None}


def _judge_chunk(world: WorldPart, file: Path, chunk: tuple[Trial, ...]) -> int:
    """Write the frames of a chunk; returns how many trials that were."""
    global _scene, _scene_of
    if _scene_of != world.done:
        _scene, _scene_of = None, None
        _scene = Scene(load_world(world.path), _networks['dense'], _networks['paper'],
                       world.warp_seed, _networks['raw'])
        others = ('blind_trained',) if world.part == 'warped' else ('random_init', 'blind_trained')
        for name in others:
            if _networks[name] is not None:
                _scene.add_dense(name, _networks[name])
        _scene_of = world.done
    write_frames([frame for trial in chunk for frame in judge(_scene, trial)], file)
    return len(chunk)


def judge_worlds(worlds: list[WorldPart], files: Networks, jobs: int, threads: int) -> None:
    """Judge what is not done yet: a killed run goes on where it was."""
    waiting = [(world, *chunk) for world in worlds for chunk in world.chunks()
               if not chunk[0].exists()]
    with tqdm(total=sum(len(chunk) for *_, chunk in waiting), desc='matching',
              unit=' frames', disable=not waiting) as bar:
        if min(jobs, len(waiting)) <= 1:
            _load_networks(files, threads)
            for task in waiting:
                bar.update(_judge_chunk(*task))
            return
        with ProcessPoolExecutor(min(jobs, len(waiting)), multiprocessing.get_context('spawn'),
                                 _load_networks, (files, threads)) as pool:
            for future in as_completed([pool.submit(_judge_chunk, *task) for task in waiting]):
                bar.update(future.result())


def with_image_blind(frames: list[Frame]) -> list[Frame]:
    """The frames and, as ``image_blind``, those of the better method that sees no right image."""
    rows = summarize([f for f in frames if f.method in ('shuffled_images', 'blind_trained')])
    if not rows:
        return frames
    better = min(rows, key=lambda method: rows[method]['median_m'])
    return frames + [replace(f, method='image_blind') for f in frames if f.method == better]


def filtered_frames(demo: Path, paper_weights: Path) -> list[Frame]:
    """The poses of one finished demo at every image: node, controls, and the paper's matcher.

    The node's own runs come from ``frames.csv``; the paper's matcher is run here, by the offline
    Localizer on the same bag with its own map.
    """
    from benchmarks.demo.demo import build_corridor_map, PARAMETERS
    from crossview_localizer.bags import replay
    from crossview_localizer.evaluation import pose_metrics
    from crossview_localizer.localizer import load_localizer

    judged = pose_metrics.read_frames(demo / 'frames.csv')
    node_config, config = replay.read_parameters(PARAMETERS)
    # What the file says of matches is the dense matcher's; a tile matcher's differ.
    usual = FilterConfig()
    config = replace(config, filter=replace(
        config.filter, match_correlation_m=usual.match_correlation_m,
        match_inflation=usual.match_inflation,
        match_sigma_floor_m=usual.match_sigma_floor_m))
    network = load_network(paper_weights)
    map_path = demo / 'maps/paper.map'
    if not map_path.exists():
        route = next((demo / 'world').glob('*/gps/ins.csv'))
        build_corridor_map(demo / 'world', route, network, map_path)
    localizer = load_localizer(map_path, paper_weights, config)
    drive = replay.read_drive(demo / 'bag', localizer.frame, node_config)
    found = list(replay.localize(demo / 'bag', localizer, node_config))
    rows = {
        'dense': judged.rows['refined'], 'image_blind': judged.rows['image_blind'],
        'prior_centre': judged.rows['prior'], 'random_init': judged.rows['random_init'],
        'raw_correlation': judged.rows['raw_correlation'],
        'paper': pose_metrics.propagate(
            replay.posteriors(found), drive.odometry, judged.truth.stamps_ns)}
    frames = []
    for method, track in rows.items():
        for line in np.flatnonzero(judged.evaluated & np.isfinite(track.poses).all(1)):
            estimate = PoseEstimate(
                int(track.stamps_ns[line]), track.pose(line), track.covariances[line])
            frames.append(Frame(
                demo.name, int(line), method, judged.truth.pose(line), estimate, False))
    return frames


def summarize(frames: list[Frame]) -> dict[str, dict]:
    """Metrics of each method, as ``docs/results/dense.json`` has them."""
    found = {}
    for method in dict.fromkeys(frame.method for frame in frames):
        own = [frame for frame in frames if frame.method == method]
        errors = pose_errors(
            Track.from_poses(range(len(own)), [frame.estimate.pose for frame in own],
                             [frame.estimate.covariance for frame in own]),
            Track.from_poses(range(len(own)), [frame.truth for frame in own]))
        error = errors['position_m']
        semi_major = [math.sqrt(np.linalg.eigvalsh(frame.estimate.covariance[:2, :2])[-1])
                      for frame in own]
        found[method] = {
            'median_m': float(np.median(error)), 'mean_m': float(error.mean()),
            'p95_m': float(np.percentile(error, 95)),
            'heading_median_deg': float(np.degrees(np.median(np.abs(errors['heading_rad'])))),
            'lateral_median_m': float(np.median(np.abs(errors['lateral_m']))),
            'longitudinal_median_m': float(np.median(np.abs(errors['longitudinal_m']))),
            **{key: float(np.mean(
                errors['nees'] <= [distance2_within(share, frame.dof) for frame in own]))
               for key, share in SHARES.items()},
            'ambiguous': float(np.mean([frame.ambiguous for frame in own])),
            'semi_major_m': float(np.median(semi_major)), 'n': len(own)}
    return found


def table(summary: dict[str, dict]) -> str:
    lines = [f'{"":18}{"median":>8}{"mean":>8}{"p95":>8}{"lat.":>7}{"long.":>7}{"head.":>7}'
             f'{"c68":>6}{"c95":>6}{"ambig.":>7}{"major":>7}{"n":>6}']
    for method, row in summary.items():
        lines.append(
            f'{method:18}{row["median_m"]:8.2f}{row["mean_m"]:8.2f}{row["p95_m"]:8.2f}'
            f'{row["lateral_median_m"]:7.2f}{row["longitudinal_median_m"]:7.2f}'
            f'{row["heading_median_deg"]:7.2f}{row["coverage_68"]:6.2f}{row["coverage_95"]:6.2f}'
            f'{row["ambiguous"]:7.2f}{row["semi_major_m"]:7.2f}{row["n"]:6d}')
    return '\n'.join(lines)


def write_frames(frames: list[Frame], path: Path) -> None:
    """A line a frame and method: truth, estimate, covariance, outcome, degrees of freedom."""
    partial = path.with_name(path.name + '.partial')
    with gzip.open(partial, 'wt', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['world', 'frame', 'method', 'outcome', 'truth_x_m', 'truth_y_m',
                         'truth_yaw_rad', 'x_m', 'y_m', 'yaw_rad', 'xx_m2', 'xy_m2', 'yy_m2',
                         'xyaw_mrad', 'yyaw_mrad', 'yawyaw_rad2', 'dof'])
        for frame in frames:
            c = frame.estimate.covariance
            writer.writerow([
                frame.world, frame.index, frame.method, 'ambiguous' if frame.ambiguous else 'ok',
                *(f'{value:.4f}' for value in (*frame.truth.as_array(),
                                               *frame.estimate.pose.as_array())),
                *(f'{value:.6g}' for value in (
                    c[0, 0], c[0, 1], c[1, 1], c[0, 2], c[1, 2], c[2, 2], frame.dof))])
    partial.replace(path)


def read_frames(path: Path) -> list[Frame]:
    """What ``write_frames`` wrote, as far as its digits go."""
    frames = []
    with gzip.open(path, 'rt', newline='') as file:
        for line in csv.DictReader(file):
            def number(name, line=line):
                return float(line[name])
            xy, xyaw, yyaw = map(number, ('xy_m2', 'xyaw_mrad', 'yyaw_mrad'))
            covariance = np.array([
                [number('xx_m2'), xy, xyaw], [xy, number('yy_m2'), yyaw],
                [xyaw, yyaw, number('yawyaw_rad2')]])
            estimate = PoseEstimate(
                0, Pose2D(number('x_m'), number('y_m'), number('yaw_rad')), covariance)
            truth = Pose2D(*map(number, ('truth_x_m', 'truth_y_m', 'truth_yaw_rad')))
            frames.append(Frame(line['world'], int(line['frame']), line['method'], truth,
                                estimate, line['outcome'] == 'ambiguous', number('dof')))
    return frames


def merge(run: Path, kept: Path) -> None:
    """Take over the parts that a run measured; a kept file of other weights is replaced."""
    new = json.loads(run.read_text())
    old = json.loads(kept.read_text()) if kept.is_file() else {}
    if old.get('weights') == new['weights']:
        new = {**old, **new, 'world_hash': {**old['world_hash'], **new['world_hash']}}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(new, indent=1) + '\n')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.single_frames', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.single_frames '
        '--worlds runs/test/world_40*.npz')
    parser.add_argument('--worlds', nargs='*', type=Path, default=[],
                        help='prepared test worlds (training.simulate --px-m 0.25 --rate-hz 1)')
    parser.add_argument('--layouts', nargs='*', type=Path, default=[],
                        help='real layouts: folders (see training.simulation --layout), rendered '
                        'into OUT first, or prepared worlds of such')
    parser.add_argument('--demos', nargs='*', type=Path, default=[],
                        help='folders of finished demos: the row "filtered"')
    parser.add_argument('--seeds', nargs='*', type=int, default=[],
                        help='render these worlds first, into OUT')
    parser.add_argument('--layout-seed', type=int, default=1,
                        help='of what a layout does not say: heights, looks, days (default 1)')
    parser.add_argument('--weights', type=Path, default=WEIGHTS)
    parser.add_argument('--paper-weights', type=Path, default=PAPER_WEIGHTS)
    parser.add_argument('--blind-weights', type=Path,
                        help='of training.train_dense --image-blind')
    parser.add_argument('--frames', type=int, help='at most so many frames a world')
    parser.add_argument('--jobs', type=int, default=2, help='processes (default 2)')
    parser.add_argument('--threads', type=int, default=1, help='of torch, a process')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'build/dense',
                        help='folder of frames.csv.gz and dense.json')
    parser.add_argument('--keep', action='store_true',
                        help='take the parts of this run over into docs/results too')
    args = parser.parse_args(arguments)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f'benchmarks.accuracy.single_frames: {error}', file=sys.stderr)
        return 2


def rendered_layout(folder: Path, seed: int, jobs: int, out: Path) -> Path:
    """Render a drive through a real layout unless it is there; returns the prepared world."""
    from training.simulate import simulate
    from training.simulation.layout import needed_size_m, read_layout

    layout = read_layout(folder)
    duration_s = LAYOUT_S
    while duration_s > 60.0 and needed_size_m(layout, 0.0, duration_s) > LAYOUT_SIDE_M:
        duration_s /= 2
    own = out / f'layout_{layout.name}_{layout.sha256[:8]}_{layout.px_per_m:.3f}'
    own.mkdir(exist_ok=True)
    return simulate(seed, own, (320, 240), 1.0, duration_s, 1, jobs, 0.25, folder)


def run(args: argparse.Namespace) -> int:
    from training.simulate import simulate

    if not (args.worlds or args.layouts or args.seeds or args.demos):
        raise ValueError('no world is given; expected --worlds, --seeds, --layouts or --demos')
    for name in ('jobs', 'threads', 'frames'):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f'--{name} {getattr(args, name)}; expected at least 1')
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    files = Networks(args.weights, args.paper_weights, args.blind_weights)
    fingerprints = files.fingerprints()
    layouts = [rendered_layout(path, args.layout_seed, args.jobs, args.out) if path.is_dir()
               else path for path in args.layouts]
    worlds = args.worlds + [
        simulate(seed, args.out, (320, 240), 1.0, 130.0, 2, args.jobs, 0.25)
        for seed in args.seeds]
    result = {'device': platform.processor() or platform.machine(),
              'weights': fingerprints[:2], 'torch': torch.__version__, 'threads': args.threads}
    if args.blind_weights:
        result['blind_weights'] = fingerprints[2]
    warped_count = min(args.frames or WARPED_FRAMES, WARPED_FRAMES)
    parts = {
        part: [world_part(part, path, number, warp_seed, count, fingerprints, args.out)
               for number, path in enumerate(paths)]
        for part, paths, warp_seed, count in (
            ('synthetic', worlds, None, args.frames), ('warped', worlds, 5, warped_count),
            ('real_layout', layouts, None, args.frames))}
    judge_worlds([world for part in parts.values() for world in part], files, args.jobs,
                 args.threads)
    every, hashes = [], {}
    for part, found in parts.items():
        frames = with_image_blind([
            frame for world in found for file, _ in world.chunks() for frame in read_frames(file)])
        if frames:
            digest = hashlib.sha256()
            for world in found:
                digest.update(load_world(world.path).imagery.tobytes())
            hashes[part] = digest.hexdigest()[:16]
            result[part] = summarize(frames)
            print(f'\n{part} (SIMULATION)\n{table(result[part])}', flush=True)
        every += frames
    if args.demos:
        frames = [f for demo in args.demos for f in filtered_frames(demo, args.paper_weights)]
        result['filtered'] = summarize(frames)
        print(f'\nfiltered (SIMULATION)\n{table(result["filtered"])}', flush=True)
        every += frames
    result['world_hash'] = hashes
    write_frames(every, args.out / 'frames.csv.gz')
    text = json.dumps(result, indent=1) + '\n'
    (args.out / 'dense.json').write_text(text)
    if args.keep:
        merge(args.out / 'dense.json', RESULT)
    print(f'\n{args.out / "dense.json"}, {args.out / "frames.csv.gz"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
