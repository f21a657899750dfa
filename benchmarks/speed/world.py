"""Makes the data of the benchmarks: a short simulated drive, its bag of raw images, its map.

The images show a simulated town. They are rendered small, which takes a sixteenth of the time, and
enlarged to the size of the Oxford RobotCar camera.
"""

from dataclasses import dataclass
from pathlib import Path
import shutil
import subprocess
import sys
import time

import cv2
import numpy as np
import psutil

from benchmarks import DENSE_WEIGHTS, REPOSITORY

SEED = 8100
RATE_HZ = 10.0
RENDERED_PX = (320, 240)
CITY_M = 300.0
ORTHO_PX_M = 0.25
IMAGE_PX = (1280, 960)
IMAGE_TOPIC = '/camera/image'
CAMERA_INFO_TOPIC = '/camera/camera_info'


@dataclass(frozen=True)
class BenchWorld:
    """Files of one drive; ``seconds`` of each step that made them, ``images`` in the drive."""

    folder: Path
    traversal: Path
    bag: Path
    map: Path
    ground_onnx: Path
    images: int
    seconds: dict[str, float]

    @property
    def prepared(self) -> Path:
        """The drive as training reads it."""
        return self.folder / 'bench.npz'

    @property
    def orthophoto(self) -> Path:
        return self.folder / 'world/orthophoto.tif'


def make_bench_world(folder: Path, duration_s: float, jobs: int) -> BenchWorld:
    """Render, convert, enlarge, embed, export; what exists already is kept and not timed."""
    from crossview_localizer import build_map, export
    from crossview_localizer.bags.robotcar_bag import convert, Options
    from crossview_localizer.networks.checkpoint import load_network
    from training.data.datasets import save_world
    from training.prepare import prepare
    from training.simulation import make_world

    seconds = {}
    world = folder / 'world'
    finished = (folder / 'bag').exists()
    begin_s = time.perf_counter()
    [name] = make_world(
        world, SEED, duration_s=duration_s, rate_hz=RATE_HZ, image_size=RENDERED_PX,
        ortho_px_m=ORTHO_PX_M, city_size_m=CITY_M, jobs=jobs)
    traversal = world / name
    if not finished:
        seconds['render'] = time.perf_counter() - begin_s
        small = folder / 'bag_small'
        begin_s = time.perf_counter()
        convert(Options(
            traversal, world / 'models', world / 'extrinsics', small,
            world / 'rtk' / name / 'rtk.csv', crop=(), overwrite=True), progress=False)
        seconds['convert'] = time.perf_counter() - begin_s
        shutil.rmtree(folder / 'bag_partial', ignore_errors=True)
        enlarge(small, folder / 'bag_partial')
        save_world(prepare([small], [world / 'orthophoto.tif'], 'bench', ORTHO_PX_M, 1.0),
                   folder / 'bench.npz')
        shutil.rmtree(small)
        (folder / 'bag_partial').rename(folder / 'bag')
    made = folder / load_network(DENSE_WEIGHTS).fingerprint[:12]
    made.mkdir(exist_ok=True)
    found = BenchWorld(
        folder, traversal, folder / 'bag', made / 'drive.map',
        made / f'{DENSE_WEIGHTS.stem}.ground.onnx',
        len(list(traversal.glob('stereo/centre/*.png'))), seconds)
    if not found.map.exists() and build_map.main([str(value) for value in (
            found.orthophoto, '--weights', DENSE_WEIGHTS, '--area', '--out', found.map,
            '--threads', 1)]):
        raise ValueError('the map of the benchmark could not be built')
    if not found.ground_onnx.exists() and export.main(
            [str(DENSE_WEIGHTS), '--out', str(made), '--branch', 'ground']):
        raise ValueError('the network could not be exported')
    return found


def enlarge(source: Path, target: Path) -> None:
    """Copy a bag of JPEG images, each decoded and enlarged to IMAGE_PX, with its camera_info."""
    from rosbags.rosbag2 import StoragePlugin, Writer

    from crossview_localizer.bags.bag import Bag
    from crossview_localizer.bags.topics import COMPRESSED_IMAGE_TOPIC
    from crossview_localizer.bags.typestore import typestore_with_geographic_msgs

    typestore = typestore_with_geographic_msgs()
    raw = typestore.types['sensor_msgs/msg/Image']
    scale = IMAGE_PX[0] / RENDERED_PX[0]
    with Bag(source) as opened, Writer(
        target, version=9, storage_plugin=StoragePlugin.MCAP,
    ) as writer:
        copies = {
            c.id: writer.add_connection(
                IMAGE_TOPIC if c.topic == COMPRESSED_IMAGE_TOPIC else c.topic,
                raw.__msgtype__ if c.topic == COMPRESSED_IMAGE_TOPIC else c.msgtype,
                typestore=typestore, offered_qos_profiles=c.ext.offered_qos_profiles)
            for c in opened.connections}
        for connection, bag_ns, data in opened.read_raw():
            if connection.topic == COMPRESSED_IMAGE_TOPIC:
                msg = typestore.deserialize_cdr(data, connection.msgtype)
                pixels = cv2.resize(cv2.imdecode(msg.data, cv2.IMREAD_COLOR), IMAGE_PX)
                data = typestore.serialize_cdr(raw(
                    header=msg.header, height=IMAGE_PX[1], width=IMAGE_PX[0], encoding='bgr8',
                    is_bigendian=0, step=3 * IMAGE_PX[0], data=pixels.ravel()), raw.__msgtype__)
            elif connection.topic == CAMERA_INFO_TOPIC:
                msg = typestore.deserialize_cdr(data, connection.msgtype)
                msg.k, msg.p = msg.k.copy(), msg.p.copy()
                for matrix in (msg.k.reshape(3, 3), msg.p.reshape(3, 4)):
                    # The centre of the first pixel is 0, the edge of the image is -0.5.
                    matrix[:2, 2] += 0.5
                    matrix[:2] *= scale
                    matrix[:2, 2] -= 0.5
                msg.width, msg.height = IMAGE_PX
                data = typestore.serialize_cdr(msg, connection.msgtype)
            writer.write(copies[connection.id], bag_ns, data)


def percentiles_ms(seconds: list[float] | np.ndarray) -> dict[str, float]:
    """p50_ms, p95_ms and p99_ms of times in seconds."""
    return {f'p{share}_ms': round(1e3 * float(np.percentile(seconds, share)), 3)
            for share in (50, 95, 99)}


def repeated_s(call, runs: int, warm: int = 3) -> np.ndarray:
    """Seconds of each of ``runs`` calls, after ``warm`` calls that do not count."""
    for _ in range(warm):
        call()
    found = np.empty(runs)
    for k in range(runs):
        begin_s = time.perf_counter()
        call()
        found[k] = time.perf_counter() - begin_s
    return found


def run_watched(command: list[str]) -> tuple[float, list[float]]:
    """Run a Python module; returns seconds, and the peak memory, MB, in each quarter of the run.

    The memory includes that of its child processes.
    """
    begin_s = time.perf_counter()
    process = psutil.Popen(
        [sys.executable, '-m', *command], cwd=REPOSITORY, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)
    memory_mb = []
    while process.poll() is None:
        try:
            family = [process, *process.children(recursive=True)]
            memory_mb.append(sum(p.memory_info().rss for p in family) / 1e6)
        except psutil.Error:  # it has just ended
            pass
        try:
            process.wait(0.1)
        except psutil.TimeoutExpired:
            pass
    seconds_s = time.perf_counter() - begin_s
    if process.returncode:
        raise ValueError(f'{command[0]} ended with {process.returncode}; try {" ".join(command)}')
    return seconds_s, [float(part.max()) for part in np.array_split(memory_mb, 4) if part.size]
