"""Measure how fast each step is and how that grows; print a table, write JSON and a page.

Everything is measured in one run on one machine, each step beside its bound or a peer. Scratch
files stay in ``--out`` for the next run; with ``--resume`` the measured parts are kept too. With
``--repeats`` most parts are measured in several rounds: the JSON holds the median of each number,
and under ``low`` and ``high`` the least and the largest.
"""

import argparse
from collections.abc import Callable
import functools
import importlib.metadata
import json
import os
from pathlib import Path
import platform
import statistics
import time

import torch

from benchmarks import cpu_name, REPOSITORY
from benchmarks.results import DOCS
from benchmarks.ros_domain import keep_to_this_machine
from benchmarks.speed import live_path, map_speed, node_cost, page, peers, training_speed
from benchmarks.speed.world import BenchWorld, IMAGE_TOPIC, make_bench_world
from crossview_localizer.command import run_command

RESULT = DOCS / 'results/bench.json'
PACKAGES = ('torch', 'numpy', 'opencv-python-headless', 'onnxruntime', 'faiss-cpu', 'filterpy')
DRIVE_S, SMOKE_DRIVE_S = 24.0, 8.0
LONG = {'hour'}     # parts that are measured only if they are named
ONCE = {'map_size', 'training', 'renderer', 'hour'}     # of which one run says enough


def parts(arguments: argparse.Namespace, out: Path) -> dict[str, Callable[[], object]]:
    """The functions that measure, by their name in the JSON; scratch files go to ``out``."""
    device, smoke = arguments.device, arguments.smoke
    drive_s = SMOKE_DRIVE_S if smoke else DRIVE_S
    live = 'gpu' if device == 'cuda' else 'cpu'

    @functools.cache
    def world() -> BenchWorld:
        return make_bench_world(out, drive_s, jobs=2)

    return {
        live: lambda: live_path.measure(world(), device, smoke, drive_s, arguments.compile),
        'cost': lambda: node_cost.measure(world().map, world().bag, IMAGE_TOPIC, drive_s),
        'map_build': lambda: map_speed.measure_build(world(), device, smoke),
        'map_size': lambda: map_speed.measure_sizes(
            out, 0.0 if smoke else arguments.map_gb, 0 if smoke else arguments.tiles_km2),
        'window': lambda: map_speed.measure_window(out, 3.0 if smoke else 30.0),
        'training': lambda: training_speed.measure_training(world(), device, smoke),
        'renderer': lambda: training_speed.measure_renderer(out, smoke),
        'peers': lambda: peers.measure(world(), device, smoke),
        'hour': lambda: training_speed.measure_hour(out, smoke),
    }


def machine(device: str) -> dict:
    """The machine and the versions that the numbers hold for."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        'device': torch.cuda.get_device_name() if device == 'cuda' else cpu_name(),
        'cores': os.cpu_count(), 'python': platform.python_version(), 'versions': versions,
        'load_before': round(os.getloadavg()[0], 2),
        'date': time.strftime('%Y-%m-%d', time.gmtime())}


def rows(value, name: str = '') -> list[tuple[str, str]]:
    """Every number of a result with its name, for the table."""
    if isinstance(value, dict):
        if set(value) == {'p50_ms', 'p95_ms', 'p99_ms'}:
            return [(name, ' / '.join(f'{value[key]:.2f}' for key in value) + ' ms')]
        return [row for key, item in value.items()
                for row in rows(item, f'{name}.{key}' if name else key)]
    if isinstance(value, list):
        return [row for k, item in enumerate(value) for row in rows(item, f'{name}[{k}]')]
    return [(name, str(value))]


def merged(runs: list, choose: Callable = statistics.median):
    """Results of the same form as one: of each number ``choose`` takes one, the rest is the first.

    Names that a run lacks are left out.
    """
    first = runs[0]
    if isinstance(first, dict):
        return {name: merged([run[name] for run in runs], choose) for name in first
                if all(name in run for run in runs)}
    if isinstance(first, list):
        return [merged(items, choose) for items in zip(*runs)]
    is_number = isinstance(first, (int, float)) and not isinstance(first, bool)
    return choose(runs) if is_number else first


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.speed', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python -m benchmarks.speed --device cpu --only peers window')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'build/bench', metavar='FOLDER',
                        help='scratch files, 2 GB and --map-gb (default build/bench)')
    parser.add_argument('--json', type=Path, default=RESULT, metavar='FILE',
                        help='results, which are read and completed')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--smoke', action='store_true', help='seconds; the numbers mean nothing')
    parser.add_argument('--resume', action='store_true',
                        help='keep what an interrupted run has measured')
    parser.add_argument('--only', nargs='+', metavar='PART', help='measure only these parts of '
                        'cpu (or gpu) cost map_build map_size window training renderer peers, and '
                        'hour (ten minutes, left out without --only)')
    parser.add_argument('--repeats', type=int, default=1, metavar='N',
                        help='rounds, of which the medians are taken (default 1)')
    parser.add_argument('--compile', action='store_true',
                        help='torch.compile the bare network too (minutes on a CPU)')
    parser.add_argument('--map-gb', type=float, default=1.0, metavar='GB',
                        help='maps up to this size are written in full (default 1)')
    parser.add_argument('--tiles-km2', type=float, default=100.0, metavar='KM2',
                        help='largest map of the tile network (default 100)')
    return run_command(parser, argv, _run, 'interrupted; --resume goes on from here',
                       more_errors=(RuntimeError,))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('no CUDA device was found; use --device cpu')
    if arguments.repeats < 1:
        raise ValueError(f'--repeats is {arguments.repeats}; expected 1 or more')
    # A smoke run has another drive.
    out = arguments.out / ('smoke' if arguments.smoke else 'full')
    wanted = parts(arguments, out)
    for name in arguments.only or ():
        if name not in wanted:
            raise ValueError(f'--only {name}; expected some of: {", ".join(wanted)}')
    keep_to_this_machine()
    out.mkdir(parents=True, exist_ok=True)
    begin_s = time.perf_counter()
    about = machine(arguments.device)
    result = json.loads(arguments.json.read_text()) if arguments.json.is_file() else {}
    chosen = [name for name in wanted if name in (arguments.only or set(wanted) - LONG)]
    measured = {name: [] for name in chosen}
    for round_ in range(arguments.repeats):
        for name in chosen:
            if round_ and name in ONCE:
                continue
            kept = out / f'part_{name}_{round_}.json'
            if not (arguments.resume and kept.is_file()):
                print(f'{name}, round {round_ + 1} of {arguments.repeats}: ', end='', flush=True)
                part_s = time.perf_counter()
                found = wanted[name]()
                kept.write_text(json.dumps(about | found if isinstance(found, dict) else found))
                print(f'{time.perf_counter() - part_s:.0f} s', flush=True)
            measured[name].append(json.loads(kept.read_text()))
    for name, runs in measured.items():
        found = merged(runs)
        if name == 'map_size':
            found = map_speed.with_earlier_sizes(found, result.get(name, []))
        result[name] = found
        for key, choose in (('low', min), ('high', max)):
            result.setdefault(key, {}).pop(name, None)
            if len(runs) > 1:
                result[key][name] = merged(runs, choose)
        result.setdefault('rounds', {})[name] = len(runs)
    for place, value in rows({name: result[name] for name in wanted if name in result}):
        print(f'{place:60} {value}')
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + '\n')
    for path in out.glob('part_*.json'):
        path.unlink()
    if arguments.json == RESULT:
        page.write(DOCS)
    print(f'{arguments.json}: {time.perf_counter() - begin_s:.0f} s')
