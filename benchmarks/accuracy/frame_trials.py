"""Trials of single frames: which frames, with which priors, and all methods on each of them."""

from concurrent.futures import as_completed, ProcessPoolExecutor
from dataclasses import dataclass, replace
import hashlib
import math
import multiprocessing
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import REPOSITORY, TILE_WEIGHTS
from benchmarks.accuracy.frame_estimates import FrameEstimate, write_estimates
from benchmarks.accuracy.frame_scene import FrameScene, true_pose
from benchmarks.fusion.towns import elsewhere
from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.datatypes import CameraImage, PoseEstimate
from crossview_localizer.geometry import wrap_angle
from crossview_localizer.matching.heatmap_pose import peak_pose
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.controls import RAW_CORRELATION
from training.data.datasets import load_world, World
from training.recipes.dense_groups import prior_about, PRIOR_M, uniform_window

WIDE_PRIOR_M = 50.0
SPACING_M = 5.0
# Slow methods are given only every so many frames.
FULL_CIRCLE_EVERY, WIDE_EVERY, TILES_EVERY = 10, 4, 3
CHUNK = 25                    # trials that one process runs at a time


@dataclass(frozen=True)
class Trial:
    """A frame with its priors, and another frame (``blind``) whose image the blind method gets.

    ``number`` counts the trials of a world; ``far_prior`` is the prior of the wide search, if any.
    """

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


def match_all_headings(scene: FrameScene, image: CameraImage, prior: PoseEstimate):
    """The estimate of the best heading in a full circle: 18 matches of +-10 degrees each."""
    best, found = -math.inf, None
    for k in range(18):
        heading = wrap_angle(prior.pose.yaw_rad + math.radians(20.0 * k))
        turned = replace(prior, pose=replace(prior.pose, yaw_rad=heading))
        matcher = scene.matchers['dense']
        window = scene.maps['dense'].window(turned, PRIOR_M, matcher.margin_m)
        # Log-likelihoods of different headings have no common zero: compare peak above median.
        heatmap = matcher.match(
            matcher.embed(image, heading), window, turned, uniform_window(PRIOR_M))
        peak = float(heatmap.volume.max() - np.median(heatmap.volume))
        if peak > best:
            best, found = peak, scene.estimate('dense', heatmap, turned)
    return found


def run_trial(scene: FrameScene, trial: Trial) -> list[FrameEstimate]:
    """The estimates of all methods for one frame."""
    estimates, prior, image = [], trial.prior, scene.image(trial.index)

    def add(method, *answer):
        estimates.append(FrameEstimate(
            scene.world.name, trial.index, method, scene.truth(trial.index), *answer))

    def add_dense(method, name, image, prior=prior, half_width_m=PRIOR_M):
        heatmap = scene.match_dense(name, image, prior, half_width_m)
        add(method, *scene.estimate(name, heatmap, prior))

    add('prior_centre', prior, False)
    add_dense('dense', 'dense', image)
    add_dense('shuffled_images', 'dense', scene.image(trial.blind))
    if trial.number % TILES_EVERY == 0:
        add('paper', *peak_pose(scene.match_tiles(scene.paper, image, prior), prior))
        add('raw_correlation', *peak_pose(
            scene.match_tiles(scene.raw, image, prior), prior))
        if 'random_init' in scene.matchers:
            add_dense('random_init', 'random_init', image)
    if 'blind_trained' in scene.matchers:
        grey = replace(image, rgb=np.full_like(image.rgb, UNSEEN))
        add_dense('blind_trained', 'blind_trained', grey)
    if trial.number % FULL_CIRCLE_EVERY == 0:
        add('yaw_full_circle', *match_all_headings(scene, image, prior))
    if trial.far_prior is not None:
        pose = trial.far_prior.pose
        if scene.maps['dense'].grid.contains(pose.x_m, pose.y_m):
            add_dense('dense_wide_prior', 'dense', image, trial.far_prior, WIDE_PRIOR_M)
        else:
            add('dense_wide_prior', trial.far_prior, True)  # off the map there is no match
    return estimates


@dataclass(frozen=True)
class WeightsFiles:
    """The weights that are compared."""

    dense: Path
    paper: Path
    blind: Path | None

    def fingerprints(self) -> list[str]:
        return [load_network(path).fingerprint[:12]
                for path in (self.dense, self.paper, self.blind) if path]


@dataclass(frozen=True)
class WorldPart:
    """A world in one part of the result; the files of its estimates begin with ``done``."""

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
    """The trials of a world; the names of their files depend on world, weights and code."""
    world = load_world(path)
    found = trials(world, number, part == 'synthetic', count)
    if not found:
        raise ValueError(f'{path} holds no images; expected a prepared world')
    digest = hashlib.sha256(repr((part, number, warp_seed, found, fingerprints)).encode())
    for array in (world.imagery, world.images, world.poses):
        digest.update(np.ascontiguousarray(array))
    for source in sorted((*Path(__file__).parent.glob('*.py'),
                          *(REPOSITORY / 'crossview_localizer').rglob('*.py'))):
        digest.update(source.read_bytes())
    done = out / f'{part}_{world.name}_{digest.hexdigest()[:10]}'
    return WorldPart(part, path, warp_seed, tuple(found), done)


# What this process holds: the networks, and the scene of the world of its last task.
_networks, _scene, _scene_of = None, None, None


def _load_networks(files: WeightsFiles, threads: int) -> None:
    global _networks
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    _networks = {
        'dense': load_network(files.dense), 'paper': load_network(files.paper),
        'raw': load_network(RAW_CORRELATION, like=TILE_WEIGHTS),
        'random_init': load_network('random_init:1', like=files.dense),
        'blind_trained': load_network(files.blind) if files.blind else None}


def _run_chunk(world: WorldPart, file: Path, chunk: tuple[Trial, ...]) -> int:
    """Write the estimates of a chunk of trials; returns their number."""
    global _scene, _scene_of
    if _scene_of != world.done:
        _scene, _scene_of = None, None
        _scene = FrameScene(load_world(world.path), _networks['dense'], _networks['paper'],
                            world.warp_seed, _networks['raw'])
        others = ('blind_trained',) if world.part == 'warped' else ('random_init', 'blind_trained')
        for name in others:
            if _networks[name] is not None:
                _scene.add_dense(name, _networks[name])
        _scene_of = world.done
    write_estimates([found for trial in chunk for found in run_trial(_scene, trial)], file)
    return len(chunk)


def run_trials(worlds: list[WorldPart], files: WeightsFiles, jobs: int, threads: int) -> None:
    """Run the trials whose files are not there yet, in ``jobs`` processes."""
    waiting = [(world, *chunk) for world in worlds for chunk in world.chunks()
               if not chunk[0].exists()]
    with tqdm(total=sum(len(chunk) for *_, chunk in waiting), desc='matching',
              unit=' frames', disable=not waiting) as bar:
        if min(jobs, len(waiting)) <= 1:
            _load_networks(files, threads)
            for task in waiting:
                bar.update(_run_chunk(*task))
            return
        with ProcessPoolExecutor(min(jobs, len(waiting)), multiprocessing.get_context('spawn'),
                                 _load_networks, (files, threads)) as pool:
            for future in as_completed([pool.submit(_run_chunk, *task) for task in waiting]):
                bar.update(future.result())
