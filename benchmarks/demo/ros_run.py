"""Runs the node on a bag in real time and records it: three processes of real ROS 2."""

from dataclasses import dataclass, field
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from benchmarks import REPOSITORY, ros_domain
from crossview_localizer.ros.installation_checks import PROFILE_VARIABLES

PARAMETERS = REPOSITORY / 'config/robotcar.yaml'
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
        'pose', 'odometry', 'match', 'heatmap', 'prior', 'geopose', 'latency', 'status')),
    '/diagnostics', '/tf',
)
PLAY_RATE = 1.0  # in real time
# Every tick wakes node and recorder; only diagnostics and bag times follow the clock.
CLOCK_HZ = '25'
STARTUP_S = 60.0
PLAY_MARGIN_S = 60.0
SHUTDOWN_S = 15.0
# After the last message the node finishes its image before it is told to stop.
FLUSH_S = 2.0


class RosRunError(RuntimeError):
    """A process failed; the message says which and shows the end of its log."""


@dataclass
class RosRun:
    """Node, recorder and player in their own ROS domain.

    At the end of the context all of them are ended.
    """

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
        """Start a Python module; only the player has the profile for large messages, as launched.
        """
        environment = self.environment if role == 'player' else {
            name: value for name, value in self.environment.items()
            if name not in PROFILE_VARIABLES}
        with open(self.log(role), 'w', encoding='utf-8') as log:
            self.processes[role] = subprocess.Popen(
                [sys.executable, '-m', *command], stdout=log, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=environment, cwd=REPOSITORY)

    def failure(self, role: str, what: str) -> RosRunError:
        """The error that names a process and shows the end of its log."""
        lines = self.log(role).read_text(encoding='utf-8', errors='replace').splitlines()
        shown = '\n'.join(f'    {line}' for line in lines[-12:]) or '    (nothing)'
        return RosRunError(f'{self.name}: {role} {what}; the end of its log:\n{shown}')

    def require_alive(self, *roles: str) -> None:
        for role in roles:
            if self.processes[role].poll() is not None:
                raise self.failure(role, f'ended with {self.processes[role].returncode}')

    def require_no_error(self, role: str) -> None:
        """Raise if a log has an error: the node goes on without its map, the demo must not."""
        if '[ERROR]' in self.log(role).read_text(encoding='utf-8', errors='replace'):
            raise self.failure(role, 'reports an error')

    def wait_for_log(self, role: str, texts: list[str], deadline_s: float) -> None:
        """Wait until the log of ``role`` holds all these texts."""
        end_s = time.monotonic() + deadline_s
        while True:
            said = self.log(role).read_text(encoding='utf-8', errors='replace')
            missing = [text for text in texts if text not in said]
            if not missing:
                return
            self.require_alive(*self.processes)
            if time.monotonic() > end_s:
                others = [self.failure(other, 'runs') for other in self.processes]
                raise RosRunError('\n'.join(
                    [f'{self.name}: "{missing[0]}" not seen within {deadline_s:.0f} s',
                     *map(str, others)]))
            time.sleep(0.1)

    def interrupt(self, role: str) -> None:
        """Send SIGINT and wait for a clean end."""
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
    """Wait for the end of the player, then end the node and close the recording."""
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
