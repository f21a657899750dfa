"""The end-to-end demo: a simulated drive through real ROS 2, judged against its ground truth.

Renders a drive through a town that training never saw, converts it to a bag, builds the map of its
corridor, replays the bag in real time through the node, and measures what the node published.  The
same again with every image exchanged for one from elsewhere tells what the images contributed;
offline runs over the same bag give the other rows.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from benchmarks import REPOSITORY
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.pose_metrics import Frames
from crossview_localizer.trajectory import Track
from benchmarks import ros_domain
PARAMETERS = REPOSITORY / 'config/robotcar.yaml'
WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'
# Whose tile size and fitted temperature raw correlation takes.
TILE_WEIGHTS = REPOSITORY / 'config/weights/crossview_safa_synthetic.safetensors'
MARKER = 'demo.json'
STAGE_OUTPUTS = (
    'world', 'bag', 'world_elsewhere', 'bag_elsewhere', 'bag_blind', 'maps', 'run', 'run_blind',
    'logs', 'report', 'frames.csv', 'summary.json', MARKER,
)

# Worlds of the demo; training and validation use seeds below.
WORLD_SEEDS_FROM = 9000
RATE_HZ = 4.0
JOBS = 2
IMAGE_SIZE_PX = (640, 480)
ORTHO_PX_M = 0.2

MAX_TILES = 5000
# Spacing and half width of the map's corridor, best first.  3 m is the network's stride on the
# ground, at which whole areas are embedded at once.
CORRIDORS_M = (
    *((3.0, half_width_m) for half_width_m in (40.0, 35.0, 30.0, 27.5, 25.0, 22.5, 20.0, 17.5)),
    (4.5, 20.0), (6.0, 20.0), (9.0, 20.0),
)

BLIND_MIN_M = 200.0
# Where the drive has no picture that far away: pictures of another town, its orthophoto unused.
ELSEWHERE_SEEDS_FROM = 10000
ELSEWHERE_S = 40.0
ELSEWHERE_RATE_HZ = 1.0
ELSEWHERE_ORTHO_PX_M = 2.0

NODE = '/crossview_localizer'
# The node subscribes below the name of `image`, as image_transport does.
REMAPS = {
    'image': '/camera/image', 'camera_info': '/camera/camera_info', 'gnss': '/gnss/fix',
    'odometry': '/odometry',
}
IMAGE_TOPIC = '/camera/image/compressed'
PLAYED_TOPICS = (IMAGE_TOPIC, *list(REMAPS.values())[1:])
TRUTH_TOPIC = '/ground_truth/geopose'
NODE_TOPICS = (
    *(f'{NODE}/{name}' for name in (
        'pose', 'odometry', 'match', 'heatmap', 'prior', 'geopose', 'latency')),
    '/diagnostics', '/tf',
)
# Speed of the replay: in real time.
PLAY_RATE = 1.0
# Every tick wakes node and recorder; only diagnostics and bag times follow the clock.
CLOCK_HZ = '25'
STARTUP_S = 60.0
PLAY_MARGIN_S = 60.0
SHUTDOWN_S = 15.0
# After the last message the node finishes its image before it is told to stop.
FLUSH_S = 2.0
MAX_DROPPED = 0.02
NO_OUTPUT = 'no output'


class DemoError(RuntimeError):
    """A stage failed; the message says which and shows what it said last."""


class Stages:
    """Times the stages by name and says which one is on."""

    def __init__(self):
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        print(f'\n[{time.perf_counter() - self._started:5.0f} s] {name}', flush=True)
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun

    def total(self) -> dict[str, float]:
        total_s = time.perf_counter() - self._started
        return {**{name: round(s, 1) for name, s in self.seconds.items()},
                'total': round(total_s, 1)}


# --- ROS processes


@dataclass
class RosRun:
    """Node, recorder and player in a ROS domain of their own; a context that ends them all."""

    name: str
    logs: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)

    def __post_init__(self):
        domain, self._domain_mark = ros_domain.lone_domain()
        self.environment = {
            **os.environ,
            **ros_domain.environment(domain),
            'OMP_NUM_THREADS': '1',
            'PYTHONUNBUFFERED': '1',
            'RCUTILS_LOGGING_BUFFERED_STREAM': '0',
            'PYTHONPATH': os.pathsep.join(
                filter(None, [str(REPOSITORY), os.environ.get('PYTHONPATH')])),
            'ROS_LOG_DIR': str(self.logs / 'ros'),
        }

    def __enter__(self) -> 'RosRun':
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        self._domain_mark.close()

    def log(self, role: str) -> Path:
        return self.logs / f'{self.name}_{role}.log'

    def start(self, role: str, *command: str) -> None:
        with open(self.log(role), 'w', encoding='utf-8') as log:
            self.processes[role] = subprocess.Popen(
                [sys.executable, '-m', *command], stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=self.environment, cwd=REPOSITORY)

    def failure(self, role: str, what: str) -> DemoError:
        lines = self.log(role).read_text(encoding='utf-8', errors='replace').splitlines()
        shown = '\n'.join(f'    {line}' for line in lines[-12:]) or '    (nothing)'
        return DemoError(f'{self.name}: {role} {what}; it said last:\n{shown}')

    def require_alive(self, *roles: str) -> None:
        for role in roles:
            if self.processes[role].poll() is not None:
                raise self.failure(role, f'ended with {self.processes[role].returncode}')

    def require_no_error(self, role: str) -> None:
        """The node goes on without a map or weights that it cannot use; the demo must not."""
        if '[ERROR]' in self.log(role).read_text(encoding='utf-8', errors='replace'):
            raise self.failure(role, 'reports an error')

    def wait_for_log(self, role: str, texts: list[str], deadline_s: float) -> None:
        """Until the log of ``role`` holds all these texts."""
        end_s = time.monotonic() + deadline_s
        while True:
            said = self.log(role).read_text(encoding='utf-8', errors='replace')
            missing = [text for text in texts if text not in said]
            if not missing:
                return
            self.require_alive(*self.processes)
            if time.monotonic() > end_s:
                others = [self.failure(other, 'runs') for other in self.processes]
                raise DemoError('\n'.join(
                    [f'{self.name}: "{missing[0]}" not seen within {deadline_s:.0f} s',
                     *map(str, others)]))
            time.sleep(0.1)

    def interrupt(self, role: str) -> None:
        """SIGINT and wait for a clean end."""
        process = self.processes[role]
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        try:
            code = process.wait(SHUTDOWN_S)
        except subprocess.TimeoutExpired:
            raise self.failure(role, f'did not end within {SHUTDOWN_S:.0f} s') from None
        if code:
            raise self.failure(role, f'ended with {code}')


def start_ros_run(
    run: RosRun, bag: Path, recording: Path, map_path: Path, weights: Path,
) -> None:
    """Start node and recorder, wait until they are ready, and start the player."""
    parameters = {'map_path': map_path, 'weights_path': weights, 'use_sim_time': 'true',
                  'device': 'cpu'}
    run.start(
        'node', 'crossview_localizer.node', '--ros-args', '--params-file', str(PARAMETERS),
        *(word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')),
        *(word for name, topic in REMAPS.items() for word in ('-r', f'{name}:={topic}')))
    run.start(
        'recorder', 'crossview_localizer.record_bag', '--output', str(recording),
        '--use-sim-time', '--topics', *NODE_TOPICS, TRUTH_TOPIC)
    waited = [topic for topic in NODE_TOPICS if topic.startswith(NODE)]
    run.wait_for_log('recorder', [f'recording {topic} ' for topic in waited], STARTUP_S)
    run.require_no_error('node')
    run.start(
        'player', 'crossview_localizer.play_bag', str(bag), '--clock', CLOCK_HZ,
        '--rate', str(PLAY_RATE),
        '--wait-subscribers', *PLAYED_TOPICS, TRUTH_TOPIC, '--wait-timeout', str(STARTUP_S))


def finish_ros_run(run: RosRun, duration_s: float) -> None:
    """Wait for the player's end, then end the node and close the recording."""
    end_s = time.monotonic() + duration_s + STARTUP_S + PLAY_MARGIN_S
    while run.processes['player'].poll() is None:
        run.require_alive('node', 'recorder')
        if time.monotonic() > end_s:
            raise run.failure('player', f'still plays a bag of {duration_s:.0f} s')
        time.sleep(0.2)
    if run.processes['player'].returncode:
        raise run.failure('player', f'ended with {run.processes["player"].returncode}')
    time.sleep(FLUSH_S)
    run.require_alive('node', 'recorder')
    run.require_no_error('node')
    run.interrupt('recorder')
    run.interrupt('node')


# --- the stages


def simulate(out: Path, seed: int, duration_s: float, rate_hz: float, ortho_px_m: float) -> Path:
    """Render a world and a drive through it; returns the traversal's folder."""
    from training.simulation import make_world

    width_px, height_px = IMAGE_SIZE_PX
    print(f'SIMULATION: world seed {seed}, {duration_s:g} s, {width_px}x{height_px} px at '
          f'{rate_hz:g} Hz')
    [traversal] = make_world(
        out, seed, duration_s=duration_s, rate_hz=rate_hz, image_size=IMAGE_SIZE_PX,
        ortho_px_m=ortho_px_m, jobs=JOBS)
    return out / traversal


def convert(traversal: Path, bag: Path) -> None:
    from crossview_localizer import robotcar_to_bag

    world = traversal.parent
    robotcar_to_bag.convert(robotcar_to_bag.Options(
        traversal=traversal, models=world / 'models', extrinsics=world / 'extrinsics', out=bag,
        rtk=world / 'rtk' / traversal.name / 'rtk.csv'))


def build_corridor_map(world: Path, route: Path, network, path: Path) -> None:
    """Embed the corridor along the INS track, the widest that ``MAX_TILES`` allows."""
    from crossview_localizer.build_map import build_map
    from crossview_localizer.networks.dense import DENSE
    from crossview_localizer.maps.imagery import Imagery
    from crossview_localizer.maps.route import corridor, read_route

    imagery = Imagery.open([world / 'orthophoto.tif'])
    route_latlon_deg = read_route(route)
    route_m = np.stack(imagery.frame.xy_from_latlon(*route_latlon_deg.T), axis=1)
    corridors_m = CORRIDORS_M
    if network.config.kind == DENSE:  # blocks side by side, as wide as the matcher needs
        corridors_m = [(network.lattice_spacing_m, network.corridor_m)]
    for spacing_m, half_width_m in corridors_m:
        _, wanted = corridor(route_m, half_width_m, spacing_m, imagery.bounds_m)
        if wanted.sum() <= MAX_TILES:
            break
    print(f'corridor of {half_width_m:g} m each way')
    path.parent.mkdir(exist_ok=True)
    build_map(
        imagery, network, spacing_m, route_latlon_deg, half_width_m, max_tiles=MAX_TILES,
        report=print).save(path)


def far_images(truth: Track) -> list[np.ndarray]:
    """For each image those taken at least ``BLIND_MIN_M`` away; none if its truth is unknown."""
    positions_m = truth.poses[:, :2]
    return [
        np.flatnonzero(np.linalg.norm(positions_m - position_m, axis=1) >= BLIND_MIN_M)
        for position_m in positions_m]


def exchange_images(
    bag: Path, blind_bag: Path, truth: Track, elsewhere_bag: Path | None, seed: int,
) -> str:
    """Copy a bag, each image's picture exchanged for one taken at least ``BLIND_MIN_M`` away.

    Headers stay, so that stamps and order are the same.  The choice is drawn from ``seed`` among
    the drive's images (``truth`` has a line for each) that are far enough, and where there is
    none among those of ``elsewhere_bag``, of another town.  Returns a note on what was done.
    """
    from rosbags.highlevel import AnyReader
    from rosbags.rosbag2 import StoragePlugin, Writer

    from crossview_localizer.bags.replay import messages
    from crossview_localizer.bags.typestore import typestore_with_geographic_msgs

    pictures, elsewhere = (
        [msg for _, _, msg in messages(path, [IMAGE_TOPIC])] if path else []
        for path in (bag, elsewhere_bag))
    candidates = far_images(truth)
    generator = np.random.default_rng(seed)
    typestore = typestore_with_geographic_msgs()
    index = strange = 0
    with AnyReader([bag], default_typestore=typestore) as reader, Writer(
        blind_bag, version=9, storage_plugin=StoragePlugin.MCAP,
    ) as writer:
        copies = {
            connection.id: writer.add_connection(
                connection.topic, connection.msgtype, typestore=typestore,
                offered_qos_profiles=connection.ext.offered_qos_profiles)
            for connection in reader.connections}
        for connection, bag_ns, data in reader.messages():
            if connection.topic == IMAGE_TOPIC:
                if len(candidates[index]):
                    chosen = pictures[generator.choice(candidates[index])]
                else:
                    chosen = elsewhere[generator.integers(len(elsewhere))]
                    strange += 1
                message = pictures[index]
                blind = type(message)(
                    header=message.header, format=chosen.format, data=chosen.data)
                data = typestore.serialize_cdr(blind, connection.msgtype)
                index += 1
            writer.write(copies[connection.id], bag_ns, data)
    note = (f'image_blind: each of {index} images was replaced by one taken at least '
            f'{BLIND_MIN_M:.0f} m away')
    return note + f'; for {strange} the drive has none, they are of another town' * bool(strange)


def offline_rows(
    out: Path, route: Path, weights: Path, node_config, config, stages: Stages,
) -> dict[str, list]:
    """Row name to the localizations of the offline Localizer with that control's own map."""
    from crossview_localizer.localizer import load_localizer
    from crossview_localizer.networks.checkpoint import load_network
    from crossview_localizer.bags.replay import localize

    rows = {}
    for name, kind, like in (('raw_correlation', 'raw_correlation', TILE_WEIGHTS),
                             ('random_init', 'random_init:1', weights)):
        map_path = out / f'maps/{name}.map'
        with stages.stage(f'map of {name}'):
            network = load_network(kind, 'cpu', like)
            build_corridor_map(out / 'world', route, network, map_path)
        with stages.stage(f'offline {name}'):
            localizer = load_localizer(map_path, kind, config, 'cpu', like)
            rows[name] = list(localize(out / 'bag', localizer, node_config))
    return rows


def judge(drive, outputs, blind_outputs, prior_run, controls) -> Frames:
    """Every row at every image stamp; the truth enters here and nowhere before."""
    from crossview_localizer.bags.replay import posteriors

    stamps_ns = drive.image_stamps_ns
    truth = drive.truth.at(stamps_ns, pose_metrics.TRUTH_MAX_GAP_S)
    rows = {
        'gnss_only': pose_metrics.gnss_only(drive.fixes, stamps_ns),
        'odometry_only': pose_metrics.odometry_only(drive.odometry, truth),
        'prior': posteriors(prior_run),
        'image_blind': blind_outputs.poses,
        'refined': outputs.poses,
        **{name: posteriors(results) for name, results in controls.items()},
    }
    for name in rows:
        if name not in ('gnss_only', 'odometry_only'):
            rows[name] = pose_metrics.propagate(rows[name], drive.odometry, stamps_ns)
    silent = [''] * len(stamps_ns)
    outcomes = {
        'gnss_only': silent, 'odometry_only': silent, 'prior': silent,
        'image_blind': recorded_outcomes(blind_outputs, stamps_ns),
        'refined': recorded_outcomes(outputs, stamps_ns),
        **{name: [result.outcome.name.lower() for result in results]
           for name, results in controls.items()},
    }
    return Frames(truth, pose_metrics.settled(truth), rows, outcomes)


def recorded_outcomes(outputs, stamps_ns) -> list[str]:
    """What became of each image, from what the node published with its stamp."""
    poses = {int(ns): row for ns, row in zip(outputs.poses.stamps_ns, outputs.poses.poses)}
    priors = {int(ns): row for ns, row in zip(outputs.priors.stamps_ns, outputs.priors.poses)}
    matched = set(outputs.matches.stamps_ns.tolist())
    outcomes = []
    for stamp_ns in stamps_ns.tolist():
        if stamp_ns not in poses:
            outcomes.append(NO_OUTPUT)
        elif stamp_ns not in matched:
            outcomes.append('no match')
        else:
            used = not np.array_equal(poses[stamp_ns], priors[stamp_ns])
            outcomes.append('used' if used else 'gated')
    return outcomes


# --- the whole


def run_demo(out: Path, seed: int, duration_s: float, weights: Path, keep: bool) -> dict:
    """Run every stage below ``out`` and return the summary.

    Raises DemoError, ValueError or OSError with what went wrong.
    """
    import torch

    from crossview_localizer import report
    from crossview_localizer.bags import replay
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    from crossview_localizer.localizer import Localizer
    from crossview_localizer.networks.checkpoint import load_network

    # Two threads on two busy cores can be far slower than one.
    torch.set_num_threads(1)
    world_seed = WORLD_SEEDS_FROM + seed
    prepare(out, {'world_seed': world_seed, 'duration_s': duration_s}, keep)
    node_config, config = replay.read_parameters(PARAMETERS)
    network = load_network(weights)
    stages = Stages()
    bag, blind_bag = out / 'bag', out / 'bag_blind'

    # 1 to 3: a drive, its bag, and the map of its corridor (along the INS track, not the truth).
    with stages.stage('render the simulated drive'):
        traversal = simulate(out / 'world', world_seed, duration_s, RATE_HZ, ORTHO_PX_M)
    with stages.stage('convert to a bag'):
        if not bag.exists():
            convert(traversal, bag)
    route = traversal / 'gps/ins.csv'
    map_path = out / 'maps/trained.map'
    with stages.stage('build the map'):
        build_corridor_map(out / 'world', route, network, map_path)
    frame = EmbeddingMap.open(map_path, 'cpu', network.fingerprint).frame
    drive = replay.read_drive(bag, frame, node_config)
    if not len(drive.truth) or not len(drive.image_stamps_ns):
        raise DemoError(f'{bag} has no ground truth or no images: there is nothing to judge by')

    # 4 and 5: the node in real time; then with the wrong images, the offline rows beside it.
    with stages.stage('replay through the node'), RosRun('node_run', out / 'logs') as run:
        start_ros_run(run, bag, out / 'run', map_path, weights)
        finish_ros_run(run, duration_s)
    outputs = replay.read_outputs(out / 'run')
    truth = drive.truth.at(drive.image_stamps_ns, pose_metrics.TRUTH_MAX_GAP_S)
    elsewhere_bag = None
    if not all(map(len, far_images(truth))):
        elsewhere_bag = out / 'bag_elsewhere'
        with stages.stage('render pictures of another town for image_blind'):
            convert(simulate(
                out / 'world_elsewhere', world_seed + ELSEWHERE_SEEDS_FROM, ELSEWHERE_S,
                ELSEWHERE_RATE_HZ, ELSEWHERE_ORTHO_PX_M), elsewhere_bag)
    with RosRun('blind_run', out / 'logs') as run:
        with stages.stage('exchange the images, start the image_blind run'):
            blind_note = exchange_images(bag, blind_bag, truth, elsewhere_bag, world_seed)
            start_ros_run(run, blind_bag, out / 'run_blind', map_path, weights)
        with stages.stage('offline prior'):
            prior_run = list(replay.localize(bag, Localizer(config, frame), node_config))
        controls = offline_rows(out, route, weights, node_config, config, stages)
        with stages.stage('rest of the image_blind run'):
            finish_ros_run(run, duration_s)
    blind_outputs = replay.read_outputs(out / 'run_blind')

    # 6 and 7: judge and show.
    with stages.stage('evaluate'):
        frames = judge(drive, outputs, blind_outputs, prior_run, controls)
        results = pose_metrics.evaluate(frames)
        pose_metrics.write_frames(out / 'frames.csv', frames)
    summary = {
        **{name: results[name] for name in pose_metrics.ROWS},
        'latency_ms': pose_metrics.percentiles(outputs.latency_ms),
        'seconds': stages.total(),
        'world_seed': world_seed,
        'weights': weights.name,
        'matcher': network.config.kind,
        'notes': [
            'Simulation: town, imagery, camera and sensors are rendered and drawn from a seed.',
            blind_note + '.',
            *explanations(),
            silence('refined', drive.image_stamps_ns, outputs),
            silence('image_blind', drive.image_stamps_ns, blind_outputs),
        ],
    }
    with stages.stage('report'):
        page = report.write_report(
            out / 'report', out / 'run', input_bag=bag, map_path=map_path,
            imagery=[out / 'world/orthophoto.tif'], demo=report.Demo(summary, frames))
    summary['seconds'] = stages.total()
    write_atomically(out / 'summary.json', json.dumps(summary, indent=2) + '\n')
    print_summary(summary)
    print(f'\nreport: {page}')
    return summary


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


def write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + '.partial')
    partial.write_text(text, encoding='utf-8')
    partial.replace(path)


def explanations() -> list[str]:
    """How the numbers are to be read."""
    return [
        'Every row: position of base_link at every image stamp after the first '
        f'{pose_metrics.SETTLING_S:g} s, the GNSS outage included; lateral and longitudinal are '
        'medians of absolute errors in the axes of the true vehicle. Where a row has no fresh '
        'output its last one is moved on by odometry.',
        'cover and nees: share inside the claimed 95 % ellipsoid and mean squared Mahalanobis '
        'error, over (x, y, yaw), so 3 is ideal for nees; gnss_only over (x, y), so 2.',
        'gnss_only: the last fix, moved on for at most '
        f'{pose_metrics.GNSS_EXTRAPOLATION_S:g} s by the velocity of the fixes, with the '
        "receiver's own covariance. odometry_only starts from the true pose. prior: the same "
        'filter without matches.',
        'raw_correlation and random_init: the offline Localizer on the same bag with that '
        'matcher and its own map.',
    ]


def silence(name: str, stamps_ns: np.ndarray, outputs) -> str:
    """How many images of a run of the node gave no pose of their own."""
    posed = np.isin(stamps_ns, outputs.poses.stamps_ns)
    if not posed.any():
        return f'{name}: the node published no pose.'
    before = int(np.argmax(posed))
    dropped = int((~posed).sum()) - before
    note = (f'{name}: of {len(posed)} images {before} came before the filter had started and '
            f'{dropped} were dropped.')
    if dropped > MAX_DROPPED * len(posed):
        note += ' WARNING: this machine was too busy for a replay in real time; run it alone.'
    return note


def goals(results: dict[str, dict]) -> list[str]:
    """The goals as measured ratios; meant for the pooled table."""
    refined = results['refined']

    def ratio(key: str, other: str) -> float:
        if refined[key] is None or not results[other][key]:
            return np.nan
        return refined[key] / results[other][key]

    lines = [
        (f'refined {key} / {other} {key}', ratio(key, other), '<=', 0.5)
        for key in ('median_m', 'longitudinal_median_m') for other in ('prior', 'image_blind')]
    prior_m, gnss_m = results['prior']['median_m'], results['gnss_only']['median_m']
    beyond = [refined['p95_m'], prior_m, gnss_m, refined['coverage_95']]
    p95_m, prior_m, gnss_m, coverage = (np.nan if value is None else value for value in beyond)
    lines += [
        ('refined p95_m / prior median_m', p95_m / prior_m, '<', 1.0),
        ('refined coverage_95', coverage, '>=', 0.85),
        ('prior median_m / gnss_only median_m', prior_m / gnss_m, '<=', 1.05),
    ]
    compare = {'<=': np.less_equal, '<': np.less, '>=': np.greater_equal}
    return [
        f'{"reached" if compare[sign](value, goal) else "missed ":7}  {text:52} {value:6.2f}  '
        f'(goal {sign} {goal:g})'
        for text, value, sign, goal in lines]


def print_summary(summary: dict) -> None:
    results = {name: summary[name] for name in pose_metrics.ROWS}
    print(f'\nSIMULATION, world seed {summary["world_seed"]}, matcher {summary["matcher"]}, '
          f'weights {summary["weights"]}\n')
    print(pose_metrics.table(results))
    print('\nlatency ' + ', '.join(
        f'{name} {value:.0f} ms' for name, value in summary['latency_ms'].items()
        if value is not None))
    print('\nseconds')
    for name, seconds in summary['seconds'].items():
        print(f'{seconds:8.1f}  {name}')
    print()
    for note in summary['notes']:
        print(f'- {note}')
    print('\ngoals (they are meant for the pool of three drives: --pool)')
    print('\n'.join(goals(results)))


def print_pool(folders: list[Path], json_path: Path | None = None) -> None:
    """The table over the frames of several demo outputs, and the same as JSON."""
    drives, runs = [], []
    for folder in folders:
        summary = json.loads((folder / 'summary.json').read_text(encoding='utf-8'))
        drives.append(pose_metrics.read_frames(folder / 'frames.csv'))
        latency = summary['latency_ms']
        judged = pose_metrics.evaluate(drives[-1])
        runs.append({key: summary[key] for key in ('world_seed', 'weights', 'latency_ms')}
                    | {'seconds': summary['seconds']['total']}
                    | {key: judged[key] for key in ('refined', 'image_blind')})
        print(f'{folder}: SIMULATION, world seed {summary["world_seed"]}, weights '
              f'{summary["weights"]}, latency p50 {latency["p50"]:.0f} ms, p99 '
              f'{latency["p99"]:.0f} ms, {summary["seconds"]["total"]:.0f} s')
        for name in ('refined', 'image_blind'):
            missing = drives[-1].outcomes[name].count(NO_OUTPUT)
            print(f'  {name}: {missing} of {len(drives[-1].truth)} images without a pose of their '
                  'own (dropped, or before the start)')
    results = pose_metrics.evaluate(pose_metrics.pool(drives))
    print(f'\npooled over the frames of {len(folders)} drives\n')
    print(pose_metrics.table(results))
    print()
    print('\n'.join(goals(results)))
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(json_path, json.dumps({'pooled': results, 'runs': runs}, indent=1) + '\n')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.demo', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='examples:\n  python -m benchmarks.demo --seed 7 --out demo\n'
        '  python -m benchmarks.demo --pool demo7 demo8 demo9')
    parser.add_argument(
        '--seed', type=int, default=7,
        help='which held-out town and drive (default: 7)')
    parser.add_argument('--out', type=Path, default=Path('demo'), help='folder (default: demo)')
    parser.add_argument(
        '--duration-s', type=float, default=130.0, metavar='S',
        help='length of the drive (default: 130)')
    parser.add_argument(
        '--weights', type=Path, default=WEIGHTS, help='network weights (default: those shipped)')
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
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if not (0 <= arguments.seed < 10**9 and 10.0 <= arguments.duration_s <= 3600.0):
        parser.error(f'--seed {arguments.seed} --duration-s {arguments.duration_s}; expected a '
                     'seed of 0 to 999,999,999 and 10 to 3600 s')
    # Asked to end, end through the contexts that stop the ROS processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.pool:
            print_pool(arguments.pool, arguments.json)
        else:
            run_demo(
                arguments.out.resolve(), arguments.seed, arguments.duration_s,
                arguments.weights.resolve(), arguments.keep)
    except (DemoError, ValueError, OSError, KeyError) as error:
        print(f'demo: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('demo: interrupted', file=sys.stderr)
        return 130
    return 0
