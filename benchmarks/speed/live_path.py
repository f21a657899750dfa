"""The live path: node and player in separate processes, with raw images of 1280x960."""

import json

import numpy as np
import torch

from benchmarks import DENSE_WEIGHTS
from benchmarks.demo.ros_run import PARAMETERS, REMAPS, RosRun, STARTUP_S
from benchmarks.speed.node_cost import resident_mb
from benchmarks.speed.world import BenchWorld, IMAGE_TOPIC, percentiles_ms, repeated_s
from crossview_localizer.matching.dense_matcher import ground_tensors, HalfGround
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.onnx import OnnxBranch

STAGES = ('wait', 'decode', 'window', 'resize', 'upload', 'forward', 'match', 'filter', 'publish')
START_S = 4.0      # until the filter has its heading and every library is warm


def play(world: BenchWorld, name: str, rate: float, device: str, seconds_s: float,
         onnx: bool, precision: str = 'float32') -> dict:
    """Play the bag to the node at ``rate`` times real time; returns the times of its stages."""
    logs = world.folder / 'logs'
    spans_path = logs / f'{name}.json'
    parameters = {
        'map_path': world.map, 'weights_path': DENSE_WEIGHTS, 'device': device,
        'image_transport': 'raw', 'onnx_path': world.ground_onnx if onnx else "''",
        'precision': precision, 'last_pose_path': "''"}
    with RosRun(name, logs) as run:
        run.start(
            'node', 'benchmarks.speed.timed_node', str(spans_path), '--ros-args',
            '--params-file', str(PARAMETERS),
            *(word for key, value in parameters.items() for word in ('-p', f'{key}:={value}')),
            *(word for key, topic in REMAPS.items() for word in ('-r', f'{key}:={topic}')))
        run.start(
            'player', 'crossview_localizer.play_bag', str(world.bag), '--rate', str(rate),
            '--playback-duration', str(seconds_s), '--image-reliability', 'reliable',
            '--wait-subscribers', IMAGE_TOPIC, '--wait-timeout', str(STARTUP_S))
        run.processes['player'].wait(seconds_s / rate + 2 * STARTUP_S)
        if run.processes['player'].returncode:
            raise run.failure('player', 'failed')
        run.require_alive('node')
        run.require_no_error('node')
        memory_mb = resident_mb(run.processes['node'].pid)
        run.interrupt('node')
    images = json.loads(spans_path.read_text())
    if not images:
        raise run.failure('node', 'localized no image')
    first_ns = images[0]['stamp_ns']
    # Only the steady part of the drive counts.
    steady = [image for image in images
              if image['stamp_ns'] - first_ns > START_S * 1e9 and 'match' in image]
    if len(steady) < 2:
        raise ValueError(f'{name}: {len(steady)} of {len(images)} images were matched; see {logs}')
    wall_s = (steady[-1]['stamp_ns'] - steady[0]['stamp_ns']) * 1e-9 / rate
    offered_hz = 10.0 * rate
    return {
        'offered_hz': offered_hz,
        'frames_per_s': round((len(steady) - 1) / wall_s, 2),
        'images': len(steady), 'memory_mb': memory_mb,
        'used_share': round(float(np.mean([i['outcome'] == 'USED' for i in steady])), 3),
        'stages': {stage: percentiles_ms([image.get(stage, 0.0) for image in steady])
                   for stage in STAGES},
        'all_but_forward': percentiles_ms(
            [sum(image.get(stage, 0.0) for stage in STAGES if stage not in ('forward', 'wait'))
             for image in steady]),
        'end_to_end': percentiles_ms([image['end_to_end'] for image in steady]),
    }


def time_forward(world: BenchWorld, device: str, runs: int, with_compile: bool) -> dict:
    """Milliseconds of the ground branch while nothing else runs, for each way to run it."""
    from crossview_localizer.camera import views
    from crossview_localizer.datatypes import CameraModel

    network = load_network(DENSE_WEIGHTS, device)
    mounted = np.array([[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0],
                        [0.0, 0.0, 0.0, 1.0]])
    # The focal length of the RobotCar's narrow left camera.
    camera = CameraModel(1280, 960, 983.0, 983.0, 643.6, 493.4, mounted, 1.52)
    rgb = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), np.uint8)
    inputs = ground_tensors([views.lifted_view(rgb, camera, network.config)], device)
    ways = {'eager': network.ground,
            'onnx': OnnxBranch(world.ground_onnx, network.fingerprint, 'cpu')}
    if device == 'cuda':
        del ways['onnx']
        ways['half'] = HalfGround(network)
    if with_compile:
        ways['compiled'] = torch.compile(network.ground)
    found = {}
    for name, way in ways.items():
        with torch.inference_mode():
            def call(way=way):
                way(*inputs)
                if device == 'cuda':
                    torch.cuda.synchronize()
            found[name] = percentiles_ms(repeated_s(call, runs))
    return found


def measure(world: BenchWorld, device: str, smoke: bool, seconds_s: float,
            with_compile: bool = False) -> dict:
    """The section ``cpu`` or ``gpu`` of bench.json."""
    torch.set_num_threads(1)
    bare = time_forward(world, device, 5 if smoke else 60, with_compile)
    ways = ('torch',) if smoke else ('torch', 'onnx' if device == 'cpu' else 'half')
    played = {}
    for way in ways:
        for rate in (1.0,) if smoke else (1.0, 1.6):
            offered_hz = round(10 * rate)
            played[f'{way}, {offered_hz} Hz'] = play(
                world, f'{way}_{offered_hz}', rate, device, seconds_s, way == 'onnx',
                'half' if way == 'half' else 'float32')
    # The quoted run has 10 images per second and the faster way to run the network.
    quoted = min((name for name in played if '10 Hz' in name),
                 key=lambda name: played[name]['end_to_end']['p50_ms'])
    return {
        'quoted': quoted,
        'stages': played[quoted]['stages'],
        'end_to_end': played[quoted]['end_to_end'],
        'all_but_forward': played[quoted]['all_but_forward'],
        'frames_per_s': max(run['frames_per_s'] for run in played.values()),
        'bare_forward_p50_ms': min(way['p50_ms'] for way in bare.values()),
        'bare_forward': bare,
        'runs': played,
    }


