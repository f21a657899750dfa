"""Training, its samplers, the renderer and the converter: how fast, and how that grows."""

from concurrent.futures import ThreadPoolExecutor
import itertools
import os
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
import torch

from benchmarks.bench_world import (
    BenchWorld,
    CITY_M,
    ORTHO_PX_M,
    RATE_HZ,
    RENDERED_PX,
    REPOSITORY,
    SEED,
)
from crossview_localizer.dense import DenseConfig
from crossview_localizer.networks import random_network
from training.datasets import load_world
from training.dense_samples import dense_group
from training.samplers import LocalBatchSampler
from training.train_dense import freeze, group_loss

GROUP = 6
RANK_STEPS = (2, 14)
SAMPLER_PLACES = (1000, 10_000, 100_000, 1_000_000)
PLACES_PER_KM2 = 10_000     # a tile every 5 m of 50 km of street


def measure_training(world: BenchWorld, device: str, smoke: bool) -> dict:
    """Frames a second of the dense recipe: its loader, its steps, both at once; and two ranks."""
    torch.set_num_threads(1)
    data = load_world(world.prepared)
    network = random_network(DenseConfig(), 0)
    freeze(network, 2)
    groups = 2 if smoke else 6

    def draw(number: int):
        return dense_group(data, number % len(data.poses), GROUP, network.config, (0, number))

    def step(group) -> int:
        network.zero_grad(set_to_none=True)
        nll, _ = group_loss(network, group)
        nll.mean().backward()
        return len(nll)

    kept = [draw(k) for k in range(groups)]
    step(kept[0])
    begin_s = time.perf_counter()
    frames = sum(len(draw(k).images) for k in range(groups))
    loader = frames / (time.perf_counter() - begin_s)
    begin_s = time.perf_counter()
    bound = sum(step(group) for group in kept) / (time.perf_counter() - begin_s)
    # As training does it: the next group is drawn while this one is computed.
    begin_s = time.perf_counter()
    frames = 0
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(draw, 0)
        for k in range(groups):
            group = waiting.result()
            waiting = ahead.submit(draw, k + 1)
            frames += step(group)
    both = frames / (time.perf_counter() - begin_s)
    result = {
        'device': 'cpu', 'frames_per_s': round(both, 2), 'device_bound_frames_per_s':
        round(bound, 2), 'loader_frames_per_s': round(loader, 2),
        'share_of_bound': round(both / bound, 3),
        'sampler': measure_sampler(SAMPLER_PLACES[:2] if smoke else SAMPLER_PLACES)}
    if not smoke:
        result['ranks'] = {str(ranks): measure_ranks(world, ranks) for ranks in (1, 2)}
    return result


def measure_ranks(world: BenchWorld, ranks: int) -> dict:
    """Steps a second of training.train by ``torchrun``: of a long run less a short one."""
    seconds = []
    for steps in RANK_STEPS:
        with tempfile.TemporaryDirectory(dir=world.folder) as folder:
            begin_s = time.perf_counter()
            subprocess.run(
                [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', str(ranks),
                 '--master-port', str(29500 + os.getpid() % 1000), '-m', 'training.train',
                 '--config', 'synthetic', '--train', str(world.prepared), '--val',
                 str(world.prepared), '--out', f'{folder}/weights.safetensors', '--steps',
                 str(steps), '--random-trunk', '--device', 'cpu'],
                check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, 'OMP_NUM_THREADS': '1'})
            seconds.append(time.perf_counter() - begin_s)
    spent_s = seconds[1] - seconds[0]
    # On a machine that is busy with something else the longer run may even end first.
    return {'seconds': [round(value, 2) for value in seconds],
            'steps_per_s': round((RANK_STEPS[1] - RANK_STEPS[0]) / spent_s, 4)
            if spent_s > 0.0 else None}


def measure_sampler(counts: tuple[int, ...]) -> list[dict]:
    """The papers' sampler on places of one density: to be made, and a batch of 64."""
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


def _peak(command: list[str]) -> tuple[float, float]:
    """Seconds of a command and the most memory that it and its children held, MB."""
    begin_s, peak_mb = time.perf_counter(), 0.0
    process = psutil.Popen(
        [sys.executable, '-m', *command], cwd=REPOSITORY, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            peak_mb = max(peak_mb, sum(p.memory_info().rss for p in family) / 1e6)
        except psutil.Error:  # it has just ended
            pass
        try:
            process.wait(0.1)
        except psutil.TimeoutExpired:
            pass
    if process.returncode:
        raise ValueError(f'{command[0]} ended with {process.returncode}; try {" ".join(command)}')
    return time.perf_counter() - begin_s, peak_mb


def measure_renderer(world: BenchWorld, smoke: bool) -> dict:
    """Frames a second and memory, of a short drive and of one three times as long."""
    import shutil

    found = {'image_px': list(RENDERED_PX), 'render': [], 'convert': []}
    for duration_s in (6.0,) if smoke else (8.0, 24.0):
        folder = world.folder / f'render_{duration_s:g}'
        shutil.rmtree(folder, ignore_errors=True)
        size = 'x'.join(map(str, RENDERED_PX))
        # The orthophoto is a world's; it is rendered first, then the drive in a second run.
        command = ['training.synthetic', str(folder), '--seed', str(SEED), '--duration-s',
                   str(duration_s), '--rate-hz', str(RATE_HZ), '--image-size', size,
                   '--ortho-px-m', str(4 * ORTHO_PX_M), '--city-size-m', str(CITY_M),
                   '--jobs', '1']
        _peak([*command, '--traversals', '0'])
        seconds, peak_mb = _peak(command)
        [traversal] = [path.parent for path in folder.glob('*/stereo')]
        frames = len(list(traversal.glob('stereo/centre/*.png')))
        found['render'].append({'frames': frames, 'frames_per_s': round(frames / seconds, 2),
                                'peak_mb': round(peak_mb)})
        seconds, peak_mb = _peak([
            'crossview_localizer.robotcar_to_bag', str(traversal), '--models',
            str(folder / 'models'), '--extrinsics', str(folder / 'extrinsics'), '--out',
            str(folder / 'bag')])
        found['convert'].append({'frames': frames, 'frames_per_s': round(frames / seconds, 2),
                                 'peak_mb': round(peak_mb)})
        shutil.rmtree(folder)
    found['frames_per_s'] = found['render'][-1]['frames_per_s']
    return found


