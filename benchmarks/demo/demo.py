"""The end-to-end demo: a simulated drive through real ROS 2, judged against its ground truth.

Renders a drive through a town that training never saw, converts it to a bag, builds the map of its
corridor, replays the bag in real time through the node, and measures what the node published.
With --controls the node runs again with every image exchanged for one from elsewhere, which shows
what the images contributed, and other matchers localize the same bag offline.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import shutil
import signal
import sys
import time

import numpy as np

from benchmarks import DENSE_WEIGHTS, TILE_WEIGHTS
from benchmarks.demo import ros_run, stages
from benchmarks.demo.exchanged_images import exchange_images, far_images
from benchmarks.demo.ros_run import finish_ros_run, RosRun, RosRunError, start_ros_run
from benchmarks.demo.stages import build_corridor_map, convert, simulate
from benchmarks.demo.summary import (
    count_missing,
    explanations,
    NO_OUTPUT,
    print_pool,
    print_summary,
    write_json,
)
from crossview_localizer.command import run_command
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.parameter_file import read_parameters
from crossview_localizer.trajectory import TRUTH_MAX_GAP_S

MARKER = 'demo.json'
STAGE_OUTPUTS = (
    'world', 'bag', 'world_elsewhere', 'bag_elsewhere', 'bag_blind', 'maps', 'run', 'run_blind',
    'logs', 'report', 'frames.csv', 'summary.json', MARKER,
)

# Worlds of the demo; training and validation use lower seeds.
WORLD_SEEDS_FROM = 9000
DRIVE_S, QUICK_DRIVE_S = 130.0, 30.0
# Where the drive has no picture that is far enough away: pictures of another town.
ELSEWHERE_SEEDS_FROM = 10000
ELSEWHERE_S = 40.0
ELSEWHERE_RATE_HZ = 1.0
ELSEWHERE_ORTHO_PX_M = 2.0  # its orthophoto is not used


class StageTimer:
    """Measures the time of each stage and prints which one is running.

    The CPU time is that of all processes.  On a busy machine it says what the stage needs.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f'\n[{time.perf_counter() - self._started:5.0f} s] {name}', flush=True)
        begun, cpu_begun = time.perf_counter(), sum(os.times()[:4])
        yield
        self.seconds[name] = time.perf_counter() - begun
        self.cpu_seconds[name] = sum(os.times()[:4]) - cpu_begun

    def seconds_by_stage(self) -> dict[str, float]:
        total_s = time.perf_counter() - self._started
        return rounded({**self.seconds, 'total': total_s})

    def cpu_seconds_by_stage(self) -> dict[str, float]:
        return rounded({**self.cpu_seconds, 'total': sum(os.times()[:4])})


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in seconds.items()}


def localize_controls(
    out: Path, route: Path, weights: Path, node_config, config, timer: StageTimer,
) -> dict[str, list]:
    """Localize the bag with other matchers; returns the localizations by the name of the row."""
    from crossview_localizer.bags.replay import localize
    from crossview_localizer.localizer import load_localizer
    from crossview_localizer.networks.checkpoint import load_network

    rows = {}   # a control takes the tile size and the temperature of the weights ``like``
    for name, kind, like in (('raw_correlation', 'raw_correlation', TILE_WEIGHTS),
                             ('random_init', 'random_init:1', weights)):
        map_path = out / f'maps/{name}.map'
        with timer.stage(f'map of {name}'):
            network = load_network(kind, 'cpu', like)
            build_corridor_map(out / 'world', route, network, map_path)
        with timer.stage(f'offline {name}'):
            localizer = load_localizer(map_path, kind, config, 'cpu', like)
            rows[name] = list(localize(out / 'bag', localizer, node_config))
    return rows


def compare(drive, runs: dict, offline: dict[str, list]) -> Comparison:
    """Every row at every image; the truth is used here and nowhere before.

    ``runs`` are recordings of the node and ``offline`` localizations of the offline Localizer, by
    the name of their row.
    """
    from crossview_localizer.bags.replay import posteriors

    stamps_ns = drive.image_stamps_ns
    truth = drive.truth.at(stamps_ns, TRUTH_MAX_GAP_S)
    rows = {
        'gnss_only': pose_metrics.gnss_only(drive.fixes, stamps_ns),
        'odometry_only': pose_metrics.odometry_only(drive.odometry, truth),
        **{name: pose_metrics.propagate(poses, drive.odometry, stamps_ns) for name, poses in (
            *((name, posteriors(results)) for name, results in offline.items()),
            *((name, run.poses) for name, run in runs.items()))},
    }
    outcomes = {
        **dict.fromkeys(rows, [''] * len(stamps_ns)),
        **{name: recorded_outcomes(run, stamps_ns) for name, run in runs.items()},
        **{name: [result.outcome.name.lower() for result in results]
           for name, results in offline.items() if name != 'prior'},
    }
    return Comparison(truth, pose_metrics.settled(truth), rows, outcomes)


def recorded_outcomes(run, stamps_ns: np.ndarray) -> list[str]:
    """What the node said of each image; NO_OUTPUT where it said nothing of this one."""
    from crossview_localizer.bags.recorded_run import UNKNOWN

    return run.outcomes(stamps_ns, NO_OUTPUT if run.statuses else UNKNOWN).tolist()


def run_demo(
    out: Path, seed: int, duration_s: float, city_m: float, weights: Path, keep: bool,
    with_controls: bool,
) -> dict:
    """Run every stage below ``out`` and return the summary.

    Raises RosRunError, ValueError or OSError with what went wrong.
    """
    import torch

    from crossview_localizer.bags import replay
    from crossview_localizer.bags.drive import read_drive
    from crossview_localizer.bags.recorded_run import read_run
    from crossview_localizer.evaluation.run_report import Demo, write_report
    from crossview_localizer.localizer import Localizer
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    from crossview_localizer.networks.checkpoint import load_network

    # Two threads on two busy cores can be far slower than one.
    torch.set_num_threads(1)
    world_seed = WORLD_SEEDS_FROM + seed
    prepare(out, {'world_seed': world_seed, 'duration_s': duration_s, 'city_m': city_m}, keep)
    node_config, config = read_parameters(ros_run.PARAMETERS)
    network = load_network(weights)
    timer = StageTimer()
    bag = out / 'bag'

    # A drive, its bag, and the map of its corridor (along the track of the INS, not the truth).
    with timer.stage('render the simulated drive'):
        traversal = simulate(
            out / 'world', world_seed, duration_s, city_m, stages.RATE_HZ, stages.ORTHO_PX_M)
    with timer.stage('convert to a bag'):
        if not bag.exists():
            convert(traversal, bag)
    route = traversal / 'gps/ins.csv'
    map_path = out / 'maps/trained.map'
    with timer.stage('build the map'):
        build_corridor_map(out / 'world', route, network, map_path)
    frame = EmbeddingMap.open(map_path, 'cpu', network.fingerprint).frame
    drive = read_drive(bag, frame, node_config)
    if not len(drive.truth) or not len(drive.image_stamps_ns):
        raise ValueError(f'{bag} has no ground truth or no images: there is nothing to judge by')

    with timer.stage('replay through the node'), RosRun('node_run', out / 'logs') as run:
        start_ros_run(run, bag, out / 'run', map_path, weights)
        offline = {'prior': list(replay.localize(bag, Localizer(config, frame), node_config))}
        finish_ros_run(run, duration_s)
    runs = {'refined': read_run(out / 'run', frame=frame)}
    notes = []
    if with_controls:
        with RosRun('blind_run', out / 'logs') as run:
            notes.append(start_blind_run(run, out, drive, map_path, weights, world_seed, timer))
            offline |= localize_controls(out, route, weights, node_config, config, timer)
            with timer.stage('rest of the image_blind run'):
                finish_ros_run(run, duration_s)
        runs['image_blind'] = read_run(out / 'run_blind', frame=frame)

    # Judge and show.
    with timer.stage('evaluate'):
        comparison = compare(drive, runs, offline)
        results = pose_metrics.metrics_by_row(comparison)
        pose_metrics.write_comparison(out / 'frames.csv', comparison)
    summary = {
        **{name: results[name] for name in pose_metrics.ROWS if name in results},
        'latency_ms': pose_metrics.percentiles(runs['refined'].latency_ms),
        'seconds': timer.seconds_by_stage(),
        'cpu_seconds': timer.cpu_seconds_by_stage(),
        'world_seed': world_seed,
        'weights': weights.name,
        'matcher': network.config.kind,
        'notes': [
            'Simulation: town, imagery, camera and sensors are rendered and drawn from a seed.',
            *notes,
            *explanations(with_controls),
            *(count_missing(name, drive.image_stamps_ns, run.poses)
              for name, run in runs.items()),
        ],
    }
    with timer.stage('report'):
        page = write_report(
            out / 'report', out / 'run', input_bag=bag, map_path=map_path,
            imagery=[out / 'world/orthophoto.tif'], demo=Demo(summary, comparison),
            config=config.filter)
    summary |= {'seconds': timer.seconds_by_stage(), 'cpu_seconds': timer.cpu_seconds_by_stage()}
    write_json(out / 'summary.json', summary)
    print_summary(summary)
    print(f'\nreport: {page}')
    return summary


def start_blind_run(
    run: RosRun, out: Path, drive, map_path: Path, weights: Path, seed: int, timer: StageTimer,
) -> str:
    """Start the node on the bag with every image exchanged; returns a note on what was done."""
    truth = drive.truth.at(drive.image_stamps_ns, TRUTH_MAX_GAP_S)
    elsewhere_bag = None
    if not all(map(len, far_images(truth))):
        elsewhere_bag = out / 'bag_elsewhere'
        with timer.stage('render pictures of another town for image_blind'):
            convert(simulate(
                out / 'world_elsewhere', seed + ELSEWHERE_SEEDS_FROM, ELSEWHERE_S,
                stages.CITY_M, ELSEWHERE_RATE_HZ, ELSEWHERE_ORTHO_PX_M), elsewhere_bag)
    with timer.stage('exchange the images, start the image_blind run'):
        note = exchange_images(out / 'bag', out / 'bag_blind', truth, elsewhere_bag, seed)
        start_ros_run(run, out / 'bag_blind', out / 'run_blind', map_path, weights)
    return note + '.'


def prepare(out: Path, arguments: dict, keep: bool) -> None:
    """Clear what an earlier demo left; with ``keep`` its simulated drive and bag stay."""
    marker = out / MARKER
    if out.exists() and any(out.iterdir()) and not marker.is_file():
        raise ValueError(f'{out} is not empty and not of an earlier demo; choose another --out')
    same = keep and marker.is_file() and json.loads(marker.read_text()) == arguments
    for name in STAGE_OUTPUTS:
        if same and name in ('world', 'bag'):
            continue
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(arguments))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.demo', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='examples:\n  python -m benchmarks.demo --seed 7 --out demo\n'
        '  python -m benchmarks.demo --quick\n'
        '  python -m benchmarks.demo --pool demo7 demo8 demo9')
    parser.add_argument(
        '--seed', type=int, default=7,
        help='which held-out town and drive (default: 7)')
    parser.add_argument('--out', type=Path, default=Path('demo'), help='folder (default: demo)')
    parser.add_argument(
        '--duration-s', type=float, metavar='S',
        help=f'length of the drive (default: {DRIVE_S:g}, with --quick {QUICK_DRIVE_S:g})')
    parser.add_argument(
        '--quick', action='store_true', help='a short drive through a small town: two minutes')
    parser.add_argument(
        '--controls', action='store_true', help='add the rows image_blind, raw_correlation and '
        'random_init, which take longer than all the rest')
    parser.add_argument(
        '--weights', type=Path, default=DENSE_WEIGHTS,
        help='network weights (default: those shipped)')
    parser.add_argument(
        '--keep', action='store_true',
        help='use the simulated drive and bag of an earlier run with the same arguments again')
    parser.add_argument(
        '--pool', type=Path, nargs='+', metavar='OUT',
        help='only print the table over the frames of these demo outputs')
    parser.add_argument(
        '--json', type=Path, metavar='FILE', help='with --pool: write the table there too')
    return parser


def main(argv: list[str] | None = None) -> int:
    # SIGTERM must leave by way of the contexts that stop the ROS processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run_command(build_parser(), argv, _run, more_errors=(RosRunError, KeyError))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.duration_s is None:
        arguments.duration_s = QUICK_DRIVE_S if arguments.quick else DRIVE_S
    if not (0 <= arguments.seed < 10**9 and 10.0 <= arguments.duration_s <= 3600.0):
        raise ValueError(
            f'--seed {arguments.seed} --duration-s {arguments.duration_s}; expected a seed of 0 '
            'to 999,999,999 and 10 to 3600 s')
    if arguments.pool:
        print_pool(arguments.pool, arguments.json)
        return
    run_demo(
        arguments.out.resolve(), arguments.seed, arguments.duration_s,
        stages.QUICK_CITY_M if arguments.quick else stages.CITY_M,
        arguments.weights.resolve(), arguments.keep, arguments.controls)
