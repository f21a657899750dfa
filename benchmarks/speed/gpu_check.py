"""Compare a GPU with the CPU in ten minutes: the same heat maps, how fast, how much memory.

It needs nothing but this repository and torch: no ROS, no rendered drive. The image and the map
are random, so that poses mean nothing, but every step of the live path runs.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch

from benchmarks import DENSE_WEIGHTS
from crossview_localizer.command import run_command
from crossview_localizer.datatypes import CameraImage, CameraModel, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import MapWindow
from crossview_localizer.matching.dense_matcher import DenseMatcher, HalfGround
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.checkpoint import load_network

PRIOR = PoseEstimate(0, Pose2D(0.0, 0.0, 0.3), np.diag([4.0, 4.0, 4e-4]))
SEARCH = SearchWindow(15.0, 0.07)
# Largest difference of log-probabilities from the CPU's.
TOLERANCES = {'float32': 1e-2, 'half': 0.5}


def random_image() -> CameraImage:
    """1280 x 960 pixels of the RobotCar's narrow left camera."""
    mounted = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    camera = CameraModel(1280, 960, 983.0, 983.0, 643.6, 493.4, mounted, 1.52)
    return CameraImage(0, np.random.default_rng(0).integers(0, 256, (960, 1280, 3), np.uint8),
                       camera)


def random_window(config, device: str) -> MapWindow:
    """A map of 7 x 7 blocks about the prior."""
    side_m = config.block_px * config.px_m
    size = config.channels * config.block_cells ** 2
    rows = torch.randn(49, size, generator=torch.Generator().manual_seed(0)) * 0.25
    return MapWindow(MapGrid(7, 7, side_m, -3 * side_m, 3 * side_m),
                     torch.arange(49).reshape(7, 7), rows.half().to(device), 1.0)


def measure(device: str, runs: int) -> dict[str, dict]:
    """For each precision the difference from the CPU's heat map, and the time of each step."""
    torch.set_num_threads(1)
    image, found, expected = random_image(), {}, None
    for name, place in (('cpu', 'cpu'), ('float32', device), ('half', device)):
        network = load_network(DENSE_WEIGHTS, place)
        matcher = DenseMatcher(network, place, HalfGround(network) if name == 'half' else None)
        window, times_ms = random_window(network.config, place), []
        for _ in range(runs + 3):
            marks = [time.perf_counter()]
            ground = matcher.embed(image, 0.3)
            if place == 'cuda':
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            heatmap = matcher.match(ground, window, PRIOR, SEARCH)
            marks.append(time.perf_counter())
            matcher.estimate(heatmap, PRIOR)
            marks.append(time.perf_counter())
            times_ms.append(1e3 * np.diff([*marks]))
        steps_ms = np.array(times_ms[3:])
        expected = heatmap.volume if expected is None else expected
        found[name] = {
            'difference': float(np.abs(heatmap.volume - expected).max()),
            **{f'{step}_p50_ms': round(float(np.median(column)), 3)
               for step, column in zip(('embed', 'match', 'estimate'), steps_ms.T)},
            'all_p99_ms': round(float(np.percentile(steps_ms.sum(1), 99)), 3)}
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.speed.gpu_check', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python -m benchmarks.speed.gpu_check')
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--runs', type=int, default=300, help='timed runs (default 300)')
    return run_command(parser, argv, _run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            'no CUDA device was found; expected one, or --device cpu to try the script itself')
    found = measure(arguments.device, arguments.runs)
    if arguments.device == 'cuda':
        found['gpu'] = {'name': torch.cuda.get_device_name(),
                        'peak_mb': round(torch.cuda.max_memory_allocated() / 1e6, 1)}
    print(json.dumps(found, indent=1))
    wrong = [name for name, limit in TOLERANCES.items() if not found[name]['difference'] < limit]
    if wrong:
        print(f'gpu_check: {", ".join(wrong)}: the heat maps differ from those of the CPU by more '
              f'than {TOLERANCES}', file=sys.stderr)
    return 1 if wrong else 0


if __name__ == '__main__':
    sys.exit(main())
