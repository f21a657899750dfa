"""The speed of training, of its samplers, of the renderer and of the converter."""

from concurrent.futures import ThreadPoolExecutor
import itertools
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import torch

from benchmarks import REPOSITORY
from benchmarks.speed.world import (
    BenchWorld,
    CITY_M,
    ORTHO_PX_M,
    RATE_HZ,
    RENDERED_PX,
    run_watched,
    SEED,
)
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig
from training.data.datasets import load_world
from training.distributed import Ranks
from training.loop import backward, Objective, set_training
from training.recipes.pose_likelihood import PoseLikelihoodConfig, PoseLikelihoodRecipe
from training.samplers import LocalBatchSampler

RANK_STEPS = 16
SAMPLER_PLACES = (1000, 10_000, 100_000, 1_000_000)
PLACES_PER_KM2 = 10_000     # a tile every 5 m of 50 km of street


def measure_training(world: BenchWorld, device: str, smoke: bool) -> dict:
    """Frames per second of the dense recipe: of drawing, of computing, of both; and two ranks."""
    torch.set_num_threads(1)
    data = load_world(world.prepared)
    ranks = Ranks(device=device)
    network = random_network(DenseConfig(), 0).to(device, memory_format=torch.channels_last)
    set_training(network, 2)
    recipe = PoseLikelihoodRecipe(PoseLikelihoodConfig(), network.config, 0, [data], [data])
    objective = Objective(network, recipe, ranks)
    steps = range(1 if smoke else 3)

    kept = [recipe.draw(step, ranks) for step in steps]
    frames = sum(len(group.images) for parts in kept for group in parts)
    backward(objective, kept[0], ranks)
    begin_s = time.perf_counter()
    for step in steps:
        recipe.draw(step, ranks)
    loader = frames / (time.perf_counter() - begin_s)
    begin_s = time.perf_counter()
    for parts in kept:
        backward(objective, parts, ranks)
    bound = frames / (time.perf_counter() - begin_s)
    # As training does it: the next step is drawn while this one is computed.
    begin_s = time.perf_counter()
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(recipe.draw, 0, ranks)
        for step in steps:
            parts = waiting.result()
            waiting = ahead.submit(recipe.draw, step + 1, ranks)
            backward(objective, parts, ranks)
    both = frames / (time.perf_counter() - begin_s)
    result = {
        'device': device, 'frames_per_s': round(both, 2),
        'device_bound_frames_per_s': round(bound, 2), 'loader_frames_per_s': round(loader, 2),
        'share_of_bound': round(both / bound, 3),
        'sampler': measure_sampler(SAMPLER_PLACES[:2] if smoke else SAMPLER_PLACES)}
    if not smoke:
        result['ranks'] = {
            recipe: {str(ranks): measure_ranks(world, recipe, ranks, RANK_STEPS)
                     for ranks in (1, 2)}
            for recipe in ('dense', 'tiles')}
    return result


def measure_ranks(world: BenchWorld, recipe: str, ranks: int, steps: int) -> dict:
    """Steps per second of training the dense or the tile network with ``torchrun``.

    Start and validation do not count; two ranks together take the same images per step as one.
    """
    with tempfile.TemporaryDirectory(dir=world.folder) as folder:
        out = Path(folder) / 'seconds.json'
        subprocess.run(
            [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node',
             str(ranks), '-m', 'benchmarks.speed.training_rank',
             recipe, str(world.prepared), str(steps),
             str(out)],
            check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, 'OMP_NUM_THREADS': '1'})
        return {'steps_per_s': round(1.0 / json.loads(out.read_text()), 4), 'steps': steps}


def measure_sampler(counts: tuple[int, ...]) -> list[dict]:
    """The time to make the papers' sampler, for places of one density, and of a batch of 64."""
    found = []
    for count in counts:
        generator = np.random.default_rng(0)
        side_m = 1000.0 * (count / PLACES_PER_KM2) ** 0.5
        places_m = generator.uniform(0.0, side_m, (count, 2))
        before_mb = psutil.Process().memory_info().rss / 1e6
        begin_s = time.perf_counter()
        sampler = LocalBatchSampler(places_m, np.ones(count, bool), radius_m=50.0)
        made_s = time.perf_counter() - begin_s
        batches = sampler.epoch(0)
        next(batches)
        begin_s = time.perf_counter()
        drawn = len(list(itertools.islice(batches, 100)))
        found.append({
            'places': count, 'made_s': round(made_s, 3),
            'batch_ms': round(1e3 * (time.perf_counter() - begin_s) / max(drawn, 1), 3),
            'memory_mb': round(psutil.Process().memory_info().rss / 1e6 - before_mb, 1)})
    return found


# --- renderer and converter


def render_and_convert(out: Path, duration_s: float, rate_hz: float) -> dict[str, dict]:
    """Render a drive and make its bag: frames per second, start included, and memory."""
    folder = out / f'render_{duration_s:g}'
    shutil.rmtree(folder, ignore_errors=True)
    # The orthophoto does not count: it is rendered first, the drive in a second run.
    command = ['training.simulation', str(folder), '--seed', str(SEED), '--duration-s',
               str(duration_s), '--rate-hz', str(rate_hz), '--image-size',
               'x'.join(map(str, RENDERED_PX)), '--ortho-px-m', str(4 * ORTHO_PX_M),
               '--city-size-m', str(CITY_M), '--jobs', '1']
    run_watched([*command, '--traversals', '0'])
    found = {}
    for name in ('render', 'convert'):
        seconds_s, quarters_mb = run_watched(command)
        [traversal] = [path.parent for path in folder.glob('*/stereo')]
        frames = len(list(traversal.glob('stereo/centre/*.png')))
        found[name] = {
            'duration_s': duration_s, 'frames': frames,
            'frames_per_s': round(frames / seconds_s, 2), 'peak_mb': round(max(quarters_mb)),
            'peak_mb_by_quarter': [round(value) for value in quarters_mb]}
        command = [
            'crossview_localizer.robotcar_to_bag', str(traversal), '--models',
            str(folder / 'models'), '--extrinsics', str(folder / 'extrinsics'), '--rtk',
            str(folder / 'rtk' / traversal.name / 'rtk.csv'), '--out', str(folder / 'bag')]
    found['rows'] = {
        name: len((traversal / name).read_text().splitlines()) - 1
        for name in ('vo/vo.csv', 'gps/gps.csv', 'gps/ins.csv')}
    shutil.rmtree(folder)
    return found


def measure_renderer(out: Path, smoke: bool) -> dict:
    """Frames per second and memory for a short drive and for one three times as long."""
    found = {'image_px': list(RENDERED_PX), 'render': [], 'convert': []}
    for duration_s in (6.0,) if smoke else (8.0, 24.0):
        drive = render_and_convert(out, duration_s, RATE_HZ)
        found['render'].append(drive['render'])
        found['convert'].append(drive['convert'])
    found['frames_per_s'] = found['render'][-1]['frames_per_s']
    return found


def measure_hour(out: Path, smoke: bool) -> dict:
    """The same for drives of ten minutes and of an hour, with one image per second."""
    durations_s = (6.0, 12.0) if smoke else (600.0, 3600.0)
    return {'image_px': list(RENDERED_PX), 'rate_hz': 1.0,
            'drives': [render_and_convert(out, duration_s, 1.0) for duration_s in durations_s]}
