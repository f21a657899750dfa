"""What an image costs the node: CPU time by step, and memory by part.

CPU time does not depend on what else the machine does, as the latency of the live path does.
``python -m benchmarks.speed.node_cost MAP BAG`` prints one JSON object.
"""

import argparse
import json
import os
from pathlib import Path
import subprocess
import sys
import time

from benchmarks import DENSE_WEIGHTS, REPOSITORY
from crossview_localizer.command import run_command

STEPS = ('window', 'resize', 'upload', 'forward', 'match', 'pose', 'whole')


def measure(map_path: Path, bag: Path, image_topic: str, seconds_s: float) -> dict:
    """The section ``cost`` of bench.json: CPU milliseconds and memory, with torch and ONNX."""
    def run(way: str) -> dict:
        done = subprocess.run(
            [sys.executable, '-m', 'benchmarks.speed.node_cost', str(map_path), str(bag),
             '--image-topic', image_topic, '--network', way, '--seconds', str(seconds_s)],
            cwd=REPOSITORY, check=True, capture_output=True, text=True)
        return json.loads(done.stdout.splitlines()[-1])

    return {way: run(way) for way in ('torch', 'onnx')}


def resident_mb(process: int | str = 'self') -> dict[str, float]:
    """Memory of a process: all that is resident, its own, that of files, and shared memory."""
    fields = {'all': 'VmRSS', 'own': 'RssAnon', 'files': 'RssFile', 'shared': 'RssShmem'}
    lines = Path(f'/proc/{process}/status').read_text().splitlines()
    kilobytes = {line.partition(':')[0]: line.split()[1] for line in lines if ' kB' in line}
    return {name: round(int(kilobytes[field]) * 1.024e-3, 1) for name, field in fields.items()}


def cost(map_path: Path, bag: Path, image_topic: str, way: str, seconds_s: float) -> dict:
    """CPU milliseconds of each step, and memory after each part, in a process of its own."""
    memory_mb = {'Python': resident_mb()['all']}

    def note(part: str) -> None:
        memory_mb[part] = round(resident_mb()['all'] - sum(memory_mb.values()), 1)

    import cv2
    import numpy as np
    import scipy.fft
    import scipy.special  # noqa: F401
    note('NumPy, SciPy, OpenCV')
    import rclpy

    import crossview_localizer.node  # noqa: F401
    from crossview_localizer.ros.installation_checks import PROFILE_VARIABLES
    for variable in PROFILE_VARIABLES:  # as the node is launched
        os.environ.pop(variable, None)
    rclpy.init()
    ros_node = rclpy.create_node('cost')
    note('ROS 2: rclpy, messages, DDS')
    import torch
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    note('torch')
    from benchmarks.speed.timed_node import StageTimes
    from crossview_localizer.bags.replay import localize
    from crossview_localizer.bags.topics import Topics
    from crossview_localizer.camera import views
    from crossview_localizer.config import LocalizerConfig
    from crossview_localizer.localizer import load_localizer
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    from crossview_localizer.matching import dense_matcher
    from crossview_localizer.networks.onnx import AUTO
    from crossview_localizer.ros.localizer_holder import return_free_memory

    localizer = load_localizer(
        map_path, DENSE_WEIGHTS, LocalizerConfig(), onnx_path=AUTO if way == 'onnx' else '',
        report=lambda text: None)
    return_free_memory()
    note('network and map')
    times = StageTimes(time.thread_time)
    for owner, name, step in (
            (EmbeddingMap, 'window', 'window'), (views, 'lifted_view', 'resize'),
            (dense_matcher, 'ground_tensors', 'upload'),
            (localizer.matcher, '_ground', 'forward'), (localizer.matcher, 'match', 'match'),
            (localizer.matcher, 'estimate', 'pose'), (localizer, 'process_image', 'whole')):
        times.time_calls(owner, name, step)
    images, first_ns = [], None
    for result in localize(bag, localizer, topics=Topics(image=image_topic)):
        spent, times.current = times.current, {}
        first_ns = first_ns or result.stamp_ns
        if result.stamp_ns - first_ns > seconds_s * 1e9:
            break
        if result.heatmap is not None and 'search' not in result.seconds:
            images.append(spent)
    note('work on images, and the reader of the bag')
    memory_mb['all'] = resident_mb()['all']
    ros_node.destroy_node()
    rclpy.shutdown()
    return {
        'images': len(images),
        'cpu_ms': {step: round(1e3 * float(np.median([i[step] for i in images])), 2)
                   for step in STEPS},
        'memory_mb': memory_mb}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.speed.node_cost', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python -m benchmarks.speed.node_cost demo/maps/trained.map demo/bag')
    parser.add_argument('map', type=Path, help='embedding map')
    parser.add_argument('bag', type=Path, help='bag of a drive in this map')
    parser.add_argument('--image-topic', default='/camera/image/compressed', metavar='TOPIC',
                        help='topic of the images')
    parser.add_argument('--network', choices=('torch', 'onnx', 'both'), default='both',
                        help='what runs the network (default both)')
    parser.add_argument('--seconds', type=float, default=60.0, metavar='S',
                        help='read so much of the bag (default 60)')
    return run_command(parser, argv, _run)


def _run(arguments: argparse.Namespace) -> None:
    inputs = arguments.map, arguments.bag, arguments.image_topic
    try:
        if arguments.network == 'both':
            found = measure(*inputs, arguments.seconds)
        else:
            found = cost(*inputs, arguments.network, arguments.seconds)
    except subprocess.CalledProcessError as error:
        raise ValueError(error.stderr or str(error)) from error
    print(json.dumps(found))


if __name__ == '__main__':
    sys.exit(main())
