"""The faults of files, processes and clocks; each has its own steps."""

from collections.abc import Callable
import math
from pathlib import Path
import shutil
import signal
import subprocess
import sys

from geographic_msgs.msg import GeoPoseWithCovarianceStamped
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from safetensors import safe_open
from safetensors.torch import save_file
from sensor_msgs.msg import CameraInfo, NavSatFix

from benchmarks import REPOSITORY
from benchmarks.robustness import flat_world
from benchmarks.robustness.message_faults import once, with_fields
from benchmarks.robustness.node_trial import (
    describe_poses,
    diagnostic_count,
    diagnostic_value,
    end_process,
    ERROR,
    FaultError,
    LEVELS,
    NodeTrial,
    OK,
    START_DEADLINE_S,
    WARN,
)
from benchmarks.robustness.sensor_faults import FaultResult
from crossview_localizer.bags.drive import read_drive
from crossview_localizer.ros.qos import latched_profile


def try_steps(name: str, steps: Callable) -> Callable:
    """A fault whose ``steps(trial)`` return the report and the poses in words."""
    def attempt(trial: NodeTrial) -> FaultResult:
        trial.hooks.clear()
        try:
            diagnostic, pose = steps(trial)
        except FaultError as error:
            return FaultResult(name, f'({error})', '', False)
        return FaultResult(name, diagnostic, pose, True)
    attempt.name = name
    return attempt


def wait_for(trial: NodeTrial, part: str, level: int, text: str) -> str:
    trial.drive(until=lambda: trial.find_report(part, level, text))
    return f'{part} {LEVELS[level]}: {trial.find_report(part, level, text)}'


def poses_from_now(trial: NodeTrial, count: int = 4) -> str:
    """Wait for ``count`` new poses and describe them; they must be honest."""
    began_s = trial.time_s + 0.1
    trial.poses.clear()
    trial.drive(until=lambda: sum(pose.time_s > began_s for pose in trial.poses) >= count)
    poses = [pose for pose in trial.poses if pose.time_s > began_s]
    if not all(pose.honest for pose in poses):
        raise FaultError(f'a pose is not honest: {describe_poses(poses)}')
    return describe_poses(poses)


def bad_file(part: str, text: str, **parameters: Callable) -> Callable:
    """Configure the node with a broken file, then with a good one again."""
    def steps(trial):
        good = {'map_path': trial.files.map, 'weights_path': trial.files.weights}
        trial.clear_reports()
        trial.reconfigure(**{name: make(trial) for name, make in parameters.items()})
        report = wait_for(trial, part, ERROR, text)
        poses = poses_from_now(trial)
        trial.reconfigure(**good)
        trial.drive_until_well()
        return report, poses
    return steps


def copy_of(path: Path, name: str, change: Callable) -> Path:
    """A copy of a file with its bytes changed."""
    copy = path.with_name(name)
    copy.write_bytes(change(path.read_bytes()))
    return copy


def flipped(data: bytes) -> bytes:
    return data[:100] + bytes(byte ^ 0x5a for byte in data[100:400]) + data[400:]


def nan_weights(trial: NodeTrial) -> Path:
    path = trial.folder / 'nan.safetensors'
    with safe_open(trial.files.weights, framework='pt') as file:
        tensors = {key: file.get_tensor(key) * math.nan for key in file.keys()
                   if file.get_tensor(key).is_floating_point()}
        tensors |= {key: file.get_tensor(key) for key in file.keys() if key not in tensors}
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    return path


def other_map(trial: NodeTrial) -> Path:
    folder = trial.folder / 'other'
    folder.mkdir(exist_ok=True)
    return flat_world.make_files(folder, seed=1).map


def gpu_absent(trial: NodeTrial):
    trial.clear_reports()
    trial.reconfigure(device='cuda')
    try:
        status = wait_for(trial, 'map', WARN, 'no GPU is available')
    except FaultError:
        import torch
        if not torch.cuda.is_available():
            raise
        status = '(a GPU is present)'
    poses = poses_from_now(trial)
    trial.reconfigure(device='cpu')
    trial.drive_until_well()
    return status, poses


# Without a GPU to fill, the node is given one that does not exist and a network that fails on it.
OUT_OF_MEMORY = """
import sys, torch
from crossview_localizer import node
from crossview_localizer.networks import checkpoint
from crossview_localizer.localizer import load_localizer
from crossview_localizer.ros import localizer_holder

class Full:
    def __init__(self, matcher): self.matcher, self.left = matcher, 12
    def embed(self, *args):
        self.left -= 1
        if self.left < 0:
            raise torch.OutOfMemoryError('CUDA out of memory (injected)')
        return self.matcher.embed(*args)
    def __getattr__(self, name): return getattr(self.matcher, name)

def load(path, weights, config, device, **rest):
    localizer = load_localizer(path, weights, config, 'cpu', **rest)
    if device == 'cuda':
        localizer.matcher = Full(localizer.matcher)
    return localizer

def prepare(device, threads):
    torch.set_num_threads(threads)
    return 'cuda', ''

checkpoint.prepare_torch = prepare
localizer_holder.load_localizer = load
sys.exit(node.main())
"""


def gpu_out_of_memory(trial: NodeTrial):
    end_process(trial)
    trial.start_node(program=('-c', OUT_OF_MEMORY))
    trial.clear_reports()
    trial.drive(until=lambda: trial.find_report('matcher', OK, 'matching'),
                deadline_s=START_DEADLINE_S)
    report = wait_for(trial, 'map', WARN, 'running on the CPU since')
    trial.clear_reports()
    trial.drive(until=lambda: trial.find_report('matcher', OK, 'matching'))
    poses = poses_from_now(trial)
    return report, poses


def slow_subscriber(trial: NodeTrial):
    """A reliable subscriber that never reads: its context is not spun."""
    trial.drive_until_well()
    context = rclpy.Context()
    rclpy.init(context=context)
    sleeper = rclpy.create_node('sleeper', context=context)
    qos = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
    for kind, topic in ((GeoPoseWithCovarianceStamped, 'geopose'), (Odometry, 'odometry'),
                        (PoseWithCovarianceStamped, 'pose')):
        sleeper.create_subscription(kind, f'/crossview_localizer/{topic}', lambda msg: None, qos)
    trial.drive(3.0)
    poses = poses_from_now(trial, 8)
    trial.drive_until_well()
    text = trial.texts()['matcher']
    sleeper.destroy_node()
    rclpy.try_shutdown(context=context)
    return f'matcher {text}', poses


def map_overwritten(trial: NodeTrial):
    """Replace the map file of the running node, as build_map and rsync do."""
    trial.drive_until_well()
    good = trial.files.map.read_bytes()
    for content in (other_map(trial).read_bytes(), good[:1000]):
        writing = trial.files.map.with_name('new.map')
        writing.write_bytes(content)
        writing.replace(trial.files.map)
        trial.clear_reports()
        trial.drive(2.0, until=lambda: trial.find_report('matcher', OK, 'matching'))
    poses = poses_from_now(trial)
    text = trial.texts()['map']
    trial.files.map.write_bytes(good)
    return f'map {text}', poses


def last_pose_not_kept(trial: NodeTrial):
    """Make the folder of the saved pose impossible to write to, for a while."""
    trial.drive_until_well()
    folder = trial.folder / 'ros_home/crossview_localizer'
    folder.rename(folder.with_name('away'))
    folder.write_text('')
    trial.drive(until=lambda: 'not kept' in diagnostic_value(trial, 'node', 'last_pose'))
    text = diagnostic_value(trial, 'node', 'last_pose')
    poses = poses_from_now(trial)
    folder.unlink()
    folder.with_name('away').rename(folder)
    trial.clear_reports()
    trial.drive(until=lambda: 'node' in trial.diagnostics
                and not diagnostic_value(trial, 'node', 'last_pose'))
    trial.drive_until_well()
    return f'node OK: last_pose {text}', poses


def clock_restarted(trial: NodeTrial):
    trial.with_clock = True
    trial.set_parameters(use_sim_time=True)
    trial.drive_until_well()
    trial.clear_reports()
    trial.time_s = max(0.0, trial.time_s - 20.0)
    report = wait_for(trial, 'node', WARN, 'the clock jumped back')
    trial.drive_until_well()
    poses = poses_from_now(trial)
    trial.set_parameters(use_sim_time=False)
    trial.with_clock = False
    return report, poses


def killed(trial: NodeTrial):
    """Kill the node while driving; a new one must have its pose with the next fix."""
    trial.drive_until_well()
    trial.drive(1.5)
    end_process(trial)
    # On a busy machine it takes longer than 30 s to start.
    trial.start_node('-p', 'last_pose_max_age_s:=200.0')
    trial.clear_reports()
    trial.poses.clear()
    trial.drive(until=lambda: diagnostic_count(trial, 'gnss', 'received') > 0,
                deadline_s=START_DEADLINE_S)
    trial.drive(until=lambda: trial.poses)
    used = diagnostic_count(trial, 'gnss', 'received')
    trial.drive_until_well()
    if not trial.poses[0].honest:
        raise FaultError(f'the first pose is not honest: {describe_poses(trial.poses[:1])}')
    if 'goes on from its last pose' not in diagnostic_value(trial, 'node', 'last_restart'):
        raise FaultError('the node did not go on from its last pose')
    return (f'node OK: {diagnostic_value(trial, "node", "last_restart")}',
            f'back within {used} fixes: {describe_poses(trial.poses)}')


def two_nodes(trial: NodeTrial):
    """Start a second node in another namespace with the same sensors."""
    trial.drive_until_well()
    second = []
    subscription = trial.driver.create_subscription(
        GeoPoseWithCovarianceStamped, '/second/crossview_localizer/geopose', second.append, 10)
    first = trial.process
    process = trial.start_node(
        '-r', '__ns:=/second', '-p', 'qos_overrides./gnss.subscription.depth:=50',
        *(part for name in ('image', 'camera_info', 'gnss', 'odometry')
          for part in ('-r', f'{name}:=/{name}')))
    try:
        trial.drive(until=lambda: len(second) > 4, deadline_s=START_DEADLINE_S)
        if first.poll() is not None:
            raise FaultError('the first node ended')
    finally:
        process.kill()
        process.wait()
        trial.processes.remove(process)
        trial.driver.destroy_subscription(subscription)
    trial.drive_until_well()
    return 'both OK', f'{poses_from_now(trial)}; of the second node {len(second)}'


def interrupted_twice(trial: NodeTrial):
    trial.drive_until_well()
    trial.process.send_signal(signal.SIGINT)
    trial.process.send_signal(signal.SIGINT)
    try:
        code = trial.process.wait(20.0)
    except subprocess.TimeoutExpired as error:
        raise FaultError('the node did not end') from error
    if code != 0 or 'Traceback' in trial.log_text():
        raise FaultError(f'exit code {code}: {trial.log_text()[-300:]}')
    trial.start_node()
    trial.clear_reports()
    trial.drive(until=trial.is_well, deadline_s=START_DEADLINE_S)
    return 'exit code 0, no traceback', f'after a new start: {poses_from_now(trial)}'


def best_effort_gnss(trial: NodeTrial):
    """A receiver that publishes best effort, to a node that asks for reliable."""
    trial.drive_until_well()
    trial.clear_reports()
    replace_publisher(trial, 'gnss', NavSatFix, QoSProfile(
        depth=10, reliability=ReliabilityPolicy.BEST_EFFORT))
    report = wait_for(trial, 'gnss', ERROR, 'does not accept: RELIABILITY')
    poses = poses_from_now(trial)
    replace_publisher(trial, 'gnss', NavSatFix, QoSProfile(depth=1000))
    trial.drive_until_well()
    return report, poses


def replace_publisher(trial: NodeTrial, name: str, kind: type, qos: QoSProfile) -> None:
    trial.driver.destroy_publisher(trial.publishers[name])
    trial.publishers[name] = trial.driver.create_publisher(kind, name, qos)


def latched_camera_info(trial: NodeTrial):
    """camera_info comes once, latched, before the node subscribes."""
    publisher = trial.driver.create_publisher(CameraInfo, 'camera_info', latched_profile(1))
    publisher.publish(trial.camera.info_msg())
    trial.hooks['camera_info'] = lambda msg: None
    trial.reconfigure()
    trial.clear_reports()
    report = wait_for(trial, 'camera', OK, 'receiving')
    trial.drive(until=lambda: trial.find_report('matcher', OK, 'matching'))
    poses = poses_from_now(trial)
    trial.hooks.clear()
    trial.driver.destroy_publisher(publisher)
    trial.drive_until_well()
    return report, poses


def refused_parameter_file(trial: NodeTrial):
    """A list with whole numbers among others, for which ROS refuses the whole file."""
    path = trial.folder / 'mixed.yaml'
    path.write_text('/**:\n  ros__parameters:\n    camera_xyz_rpy: [1.2, 0, 1.4, 0, 0.0, 0]\n')
    result = subprocess.run(
        [sys.executable, '-m', 'crossview_localizer.node', '--ros-args', '--params-file',
         str(path)], capture_output=True, text=True, timeout=120, cwd=REPOSITORY)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith('localizer_node')]
    if result.returncode != 2 or 'Traceback' in result.stderr:
        raise FaultError(f'exit code {result.returncode}: {result.stderr[-300:]}')
    return f'exit code 2: {line.replace(str(path), path.name)}', 'none'


def recorder_killed(trial: NodeTrial):
    """Kill a recorder of odometry of which some is bad, and read what it has left."""
    trial.drive_until_well()
    out = trial.folder / 'recording'
    shutil.rmtree(out, ignore_errors=True)
    recorder = subprocess.Popen(
        [sys.executable, '-m', 'crossview_localizer.record_bag', '-o', str(out), '--topics',
         '/odometry'], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        trial.drive(until=lambda: trial.publishers['odometry'].get_subscription_count() > 1)
        trial.hooks['odometry'] = once(with_fields(pose__pose__position__x=math.nan))
        trial.drive(4.0)
    finally:
        recorder.kill()
        recorder.wait()
    poses = poses_from_now(trial)
    trial.hooks.clear()
    trial.drive_until_well()
    drive = read_drive(out, flat_world.FRAME)
    if len(drive.odometry) < 20 or not drive.unusable['/odometry']:
        raise FaultError(f'{len(drive.odometry)} samples, {drive.unusable} left out')
    return 'the recording is read up to its last second, bad messages are counted', poses


SYSTEM_FAULTS = [try_steps(*row) for row in (
    ('map missing', bad_file('map', 'does not exist', map_path=lambda t: t.folder / 'no.map')),
    ('map truncated', bad_file('map', 'is damaged', map_path=lambda t: copy_of(
        t.files.map, 'cut.map', lambda data: data[:len(data) // 2]))),
    ('map is not one', bad_file('map', 'prior alone', map_path=lambda t: t.files.orthophoto)),
    ('map of other weights', bad_file('map', 'was made with the weights', map_path=other_map)),
    ('weights missing', bad_file('map', 'no weights', weights_path=lambda t: t.folder / 'no.w')),
    ('weights truncated', bad_file('map', 'prior alone', weights_path=lambda t: copy_of(
        t.files.weights, 'cut.w', lambda data: data[:len(data) // 2]))),
    ('weights corrupt', bad_file('map', 'prior alone', weights_path=lambda t: copy_of(
        t.files.weights, 'flipped.w', flipped))),
    ('weights of NaN', bad_file('map', 'prior alone', weights_path=nan_weights)),
    ('GPU absent', gpu_absent),
    ('GNSS of best effort', best_effort_gnss),
    ('camera_info latched once', latched_camera_info),
    ('parameter file that ROS refuses', refused_parameter_file),
    ('recorder killed, some of its messages bad', recorder_killed),
    ('/clock restarted', clock_restarted),
    ('map file exchanged mid-run', map_overwritten),
    ('last pose cannot be kept', last_pose_not_kept),
    ('slow subscriber', slow_subscriber),
    ('two nodes side by side', two_nodes),
    ('node killed and started again', killed),
    ('second SIGINT', interrupted_twice),
    ('GPU out of memory mid-run (injected)', gpu_out_of_memory),
)]
