"""Endurance of the node: an hour of driving at ten times the speed, three minutes at full rates.

Expected of the node process in the flat world: no odometry message is lost; each image that was
sent is localized, or the node counts it as dropped or lost; memory does not grow after the
warm-up; latency does not grow from the first third to the last; poses stay honest.
"""

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import sys
import time

import cv2
import numpy as np
import psutil
from std_msgs.msg import Float64
from tqdm import tqdm

from benchmarks import REPOSITORY
from benchmarks.robustness import flat_world
from benchmarks.robustness.message_faults import nothing
from benchmarks.robustness.node_trial import (
    diagnostic_count,
    diagnostic_value,
    NodeTrial,
    PARTS_OF_A_DRIVE,
    START_DEADLINE_S,
)
from benchmarks.ros_domain import keep_to_this_machine
from crossview_localizer.datatypes import Outcome

MAX_MEMORY_GROWTH = 0.02
# The machine varies: the last third may be slower by this factor, or by so much.
MAX_LATENCY_GROWTH, LATENCY_NOISE_MS = 1.5, 20.0
# A right pose is outside its 99.9 % ellipse once in a thousand times.
MAX_DISHONEST_SHARE = 0.01
WARM_UP_S = 30.0
PROGRESS_S = 20.0


@dataclass(frozen=True)
class DrivePlan:
    """Driving time, how much faster than real time, and what the sensors send."""

    name: str
    duration_s: float
    rate: float
    size_px: tuple[int, int]
    image_hz: int
    odometry_hz: int
    gnss_hz: int = 5


DRIVES = (
    DrivePlan('an hour at 10x', 3600.0, 10.0, (231, 154), 1, 20),
    DrivePlan('three minutes at 1x', 180.0, 1.0, (1280, 960), 16, 100),
)


@dataclass
class Result:
    name: str
    driven_s: float
    wall_s: float
    node_cpu_s: float
    odometry_sent: int
    odometry_received: int
    odometry_counted_lost: int
    images_sent: int
    images_localized: int
    images_dropped: int
    images_counted_lost: int
    memory_warm_mb: float
    memory_end_mb: float
    latency_first_third_ms: float
    latency_last_third_ms: float
    latency_p99_ms: float
    poses: int
    dishonest_poses: int
    problems: list[str]


class EnduranceTrial(NodeTrial):
    """A trial with the rates of a drive, ``rate`` times as fast as real time."""

    def __init__(self, folder: Path, files: flat_world.Files, drive: DrivePlan):
        super().__init__(folder, files)
        self.drive_of = drive
        self.camera = flat_world.FlatCamera(*drive.size_px)
        # Rendered small and enlarged, so that the driver takes little of the machine.
        shrink = 4 if drive.size_px[0] > 640 else 1
        self._small = flat_world.FlatCamera(*(side // shrink for side in drive.size_px))
        self.latency_ms: list[float] = []
        self.sent = dict.fromkeys(('odometry', 'gnss', 'image'), 0)
        self.driver.create_subscription(
            Float64, '/crossview_localizer/latency',
            lambda msg: self.latency_ms.append(msg.data), 100)

    def _is_ahead(self, now_s: float) -> bool:
        return False

    def _tick(self) -> None:
        drive = self.drive_of
        number = round(self.time_s * drive.odometry_hz)
        time_s = number / drive.odometry_hz
        if number % (drive.odometry_hz // drive.gnss_hz) == 0:
            self._send('gnss', flat_world.gnss_msg(time_s))
        self._send('odometry', flat_world.odometry_msg(time_s))
        # An image with the first odometry after its instant: 16 Hz does not divide 100 Hz.
        if number * drive.image_hz % drive.odometry_hz < drive.image_hz:
            self.publish('camera_info', self.camera.info_msg())
            small = self._small.picture(flat_world.true_pose(time_s))
            pixels = cv2.resize(small, drive.size_px, interpolation=cv2.INTER_LINEAR)
            self._send('image', flat_world.image_msg(pixels, time_s))
        self.time_s = time_s + 1.0 / drive.odometry_hz

    def _send(self, topic: str, msg) -> None:
        if topic not in self.hooks:
            self.sent[topic] += 1
            self.publish(topic, msg)

    def drive_on(self, until_s: float, each_second) -> None:
        """Drive until this driving time, and call ``each_second`` once per second."""
        period_s = 1.0 / self.drive_of.odometry_hz / self.drive_of.rate
        due_s = second_s = time.monotonic()
        while self.time_s < until_s:
            now_s = time.monotonic()
            if now_s >= due_s:
                self._tick()
                due_s = max(due_s + period_s, now_s - 1.0)
            if now_s >= second_s:
                each_second()
                second_s = now_s + 1.0
            self.executor.spin_once(timeout_sec=max(0.0, due_s - time.monotonic()))


def endure(drive: DrivePlan, folder: Path, files: flat_world.Files) -> Result:
    trial = EnduranceTrial(folder, files, drive)
    try:
        return _endure(trial, drive)
    finally:
        trial.close()


def _endure(trial: EnduranceTrial, drive: DrivePlan) -> Result:
    trial.start_node(
        '-p', 'image_reliability:=reliable', '-p', "last_pose_path:=''")
    # Messages count once publishers and subscribers have discovered each other.
    trial.drive(until=lambda: all(
        diagnostic_count(trial, name, 'received') > 0 for name in ('camera', 'gnss', 'odometry')),
        deadline_s=START_DEADLINE_S)
    before = settled_counts(trial)
    trial.sent = dict.fromkeys(trial.sent, 0)
    trial.latency_ms.clear()
    trial.poses.clear()
    begin_time_s = trial.time_s

    process = psutil.Process(trial.process.pid)
    memory_mb = []
    begin_s, begin_cpu_s = time.monotonic(), sum(process.cpu_times()[:2])
    with tqdm(
        total=round(drive.duration_s), unit='s', desc=drive.name,
        mininterval=0.5 if sys.stderr.isatty() else PROGRESS_S,
    ) as progress:
        def each_second():
            memory_mb.append(process.memory_info().rss / 1e6)
            progress.update(round(trial.time_s - begin_time_s) - progress.n)
        trial.drive_on(begin_time_s + drive.duration_s, each_second)
    wall_s, cpu_s = time.monotonic() - begin_s, sum(process.cpu_times()[:2]) - begin_cpu_s

    counts = settled_counts(trial)
    counts.subtract(before)
    sent, latency_ms = trial.sent, np.array(trial.latency_ms)
    third = len(latency_ms) // 3
    warm = memory_mb[min(round(WARM_UP_S), len(memory_mb) // 2):]
    few = max(5, len(warm) // 20)
    result = Result(
        name=drive.name, driven_s=drive.duration_s, wall_s=wall_s, node_cpu_s=cpu_s,
        odometry_sent=sent['odometry'], images_sent=sent['image'], **counts,
        memory_warm_mb=float(np.median(warm[:few])), memory_end_mb=float(np.median(warm[-few:])),
        latency_first_third_ms=float(np.median(latency_ms[:third])),
        latency_last_third_ms=float(np.median(latency_ms[-third:])),
        latency_p99_ms=float(np.percentile(latency_ms, 99.0)), poses=len(trial.poses),
        dishonest_poses=sum(not pose.honest for pose in trial.poses), problems=[])
    result.problems = problems_of(result)
    if trial.process.poll() is not None or diagnostic_value(trial, 'node', 'failures') != '0':
        result.problems.append('the node failed')
    return result


def settled_counts(trial: EnduranceTrial) -> Counter[str]:
    """The counts of the node after sending has stopped and they no longer change."""
    time_s = trial.time_s
    trial.hooks = {'image': nothing, 'gnss': nothing, 'odometry': nothing}

    def counted() -> Counter[str]:
        trial.clear_reports()
        trial.drive(until=lambda: set(PARTS_OF_A_DRIVE) <= set(trial.diagnostics))
        return Counter({
            'odometry_received': diagnostic_count(trial, 'odometry', 'received'),
            'odometry_counted_lost': diagnostic_count(trial, 'odometry', 'lost'),
            'images_localized': sum(
                diagnostic_count(trial, 'matcher', outcome.name.lower()) for outcome in Outcome),
            'images_dropped': diagnostic_count(trial, 'camera', 'dropped'),
            'images_counted_lost': diagnostic_count(trial, 'camera', 'lost'),
        })

    counts = None
    while counts != (counts := counted()):
        pass
    trial.hooks, trial.time_s = {}, time_s
    return counts


def problems_of(result: Result) -> list[str]:
    growth = result.memory_end_mb / result.memory_warm_mb - 1.0
    checks = (
        (result.odometry_received == result.odometry_sent,
         f'{result.odometry_sent - result.odometry_received} odometry messages lost, '
         f'{result.odometry_counted_lost} counted as lost'),
        (result.images_sent == result.images_localized + result.images_dropped
         + result.images_counted_lost,
         f'{result.images_sent} images sent, {result.images_localized} localized, '
         f'{result.images_dropped} counted as dropped and {result.images_counted_lost} as lost'),
        (growth <= MAX_MEMORY_GROWTH, f'memory grew by {100 * growth:.1f} %'),
        (result.latency_last_third_ms <= max(
            MAX_LATENCY_GROWTH * result.latency_first_third_ms,
            result.latency_first_third_ms + LATENCY_NOISE_MS),
         f'latency grew from {result.latency_first_third_ms:.0f} to '
         f'{result.latency_last_third_ms:.0f} ms'),
        (result.dishonest_poses <= MAX_DISHONEST_SHARE * result.poses,
         f'{result.dishonest_poses} of {result.poses} poses not honest'),
    )
    return [text for good, text in checks if not good]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.robustness.endurance',
        description='Drive the node for long and at full rates: 10 minutes on two free cores.',
        epilog='example: python -m benchmarks.robustness.endurance '
        '--share 0.05 --out endurance.json')
    parser.add_argument(
        '--out', type=Path, metavar='FILE',
        help='default: docs/results/endurance.json, for whole drives alone')
    parser.add_argument(
        '--only', default='', metavar='TEXT',
        help='drives whose name holds this; a file is written only with --out')
    parser.add_argument(
        '--share', type=float, default=1.0, metavar='S',
        help='share of each duration to drive (default: 1)')
    arguments = parser.parse_args(argv)
    if not 0.01 <= arguments.share <= 1.0:
        parser.error(f'--share is {arguments.share}; expected 0.01 to 1')
    keep_to_this_machine()
    results = []
    for drive in (drive for drive in DRIVES if arguments.only in drive.name):
        drive = DrivePlan(**{**asdict(drive), 'duration_s': drive.duration_s * arguments.share})
        with flat_world.temporary_folder() as folder:
            result = endure(drive, Path(folder), flat_world.make_files(Path(folder)))
        results.append(result)
        print(f'{drive.name}: {"; ".join(result.problems) or "passed"}\n  ' + ', '.join(
            f'{name} {item:.1f}' if isinstance(item, float) else f'{name} {item}'
            for name, item in list(asdict(result).items())[1:-1]), flush=True)
    passed = not any(result.problems for result in results)
    out = arguments.out
    if out is None and not arguments.only and arguments.share == 1.0:
        out = REPOSITORY / 'docs/results/endurance.json'
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(
            {'passed': passed, 'share': arguments.share,
             'drives': [asdict(result) for result in results]}, indent=1) + '\n')
    return 0 if passed else 1


if __name__ == '__main__':
    sys.exit(main())
