"""The doctor on an empty, a broken and a healthy installation, and on a running system."""

from array import array
import gc
import os
from pathlib import Path
import subprocess
import sys
import threading

import pytest

from crossview_localizer import doctor
from crossview_localizer.ros import installation_checks, system_checks
from crossview_localizer.ros.installation_checks import PROFILE_VARIABLES

REPOSITORY = Path(__file__).resolve().parent.parent
PARAMETERS = REPOSITORY / 'config/robotcar.yaml'
PROFILE = REPOSITORY / 'config/fastdds_large_images.xml'
NOT_LISTENING = ('--listen', '0')


def said(capsys, *arguments) -> tuple[int, dict[str, str]]:
    """Exit code, and for each part its severity, text and remedy on one line."""
    code = doctor.main([str(argument) for argument in arguments])
    return code, parts_of(capsys.readouterr().out)


def parts_of(output: str) -> dict[str, str]:
    found, part = {}, ''
    for line in output.splitlines()[:-1]:
        if line.startswith(' '):
            found[part] += ' ' + line.strip()
            continue
        severity, text = line[:8].strip(), line[8:]
        part = text.partition(': ')[0]
        found[part] = f'{severity} {text.partition(": ")[2]}'
    return found


def map_of_weights(path: Path, fingerprint: str) -> Path:
    import torch

    from crossview_localizer.geometry import LocalFrame, MapGrid
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    EmbeddingMap(
        frame=LocalFrame(51.76, -1.26), grid=MapGrid(1, 1, 3.0, 0.0, 0.0),
        index=torch.zeros((1, 1)).long(), descriptors=torch.ones((1, 8)).half(),
        fingerprint=fingerprint, tile_m=48.0, tile_px=128).save(path)
    return path


@pytest.fixture(scope='module')
def fingerprint(shipped_weights) -> str:
    from crossview_localizer.networks.checkpoint import load_network
    return load_network(shipped_weights[0]).fingerprint


# --- the installation


def test_without_any_package_the_doctor_says_what_is_missing_and_how_to_get_it():
    """Without site-packages there is neither ROS 2 nor any library."""
    result = subprocess.run(
        [sys.executable, '-S', '-m', 'crossview_localizer.doctor'], text=True, timeout=240,
        capture_output=True, env={'PATH': os.environ['PATH'], 'PYTHONPATH': str(REPOSITORY)})
    assert result.returncode == 1 and not result.stderr
    parts = parts_of(result.stdout)
    assert set(parts) == {'libraries', 'ROS 2'}
    assert parts['libraries'].startswith('PROBLEM') and 'torch' in parts['libraries']
    assert 'requirements.txt' in parts['libraries']
    assert parts['ROS 2'].startswith('PROBLEM is not there') and 'setup.bash' in parts['ROS 2']
    assert result.stdout.endswith('2 problems found\n')


def test_libraries_that_are_installed_but_cannot_be_loaded_are_named(ros, tmp_path):
    """ROS 2 is whole; torch is missing and pyproj is of another numpy."""
    (tmp_path / 'torch.py').write_text("raise ModuleNotFoundError('torch')")
    (tmp_path / 'pyproj.py').write_text("raise AttributeError('_ARRAY_API not found')")
    result = subprocess.run(
        [sys.executable, '-m', 'crossview_localizer.doctor', '--listen', '0'], text=True,
        timeout=240, capture_output=True,
        env=os.environ | {
            'PYTHONPATH': f'{tmp_path}{os.pathsep}{os.environ["PYTHONPATH"]}'})
    assert result.returncode == 1 and not result.stderr
    parts = parts_of(result.stdout)
    assert parts['libraries'].startswith('PROBLEM cannot be imported: pyproj, torch')
    assert parts['ROS 2'].startswith('ok')


def test_a_healthy_installation_has_no_problem(
        ros, capsys, monkeypatch, tmp_path, fingerprint):
    monkeypatch.setenv('FASTDDS_DEFAULT_PROFILES_FILE', str(PROFILE))
    monkeypatch.setenv('FASTRTPS_DEFAULT_PROFILES_FILE', str(PROFILE))
    monkeypatch.setattr(installation_checks, 'free_bytes', lambda path: 2**30)
    code, parts = said(
        capsys, '--map', map_of_weights(tmp_path / 'a.map', fingerprint), '--params-file',
        PARAMETERS, '--device', 'cpu', *NOT_LISTENING)
    assert code == 0, parts
    assert not any(text.startswith('PROBLEM') for text in parts.values())
    for part in ('libraries', 'ROS 2', 'large images', 'weights', 'map', 'parameters'):
        assert parts[part].startswith('ok'), parts
    assert '64 MiB' in parts['large images'] and '1 tiles' in parts['map']
    assert '51.76000' in parts['map']


def test_every_fault_of_a_broken_installation_is_named_with_its_remedy(
        ros, capsys, monkeypatch, tmp_path, shipped_weights):
    """Truncated weights, a map of other weights, a mistyped parameter, a profile that is gone."""
    for variable in PROFILE_VARIABLES:
        monkeypatch.setenv(variable, str(tmp_path / 'gone.xml'))
    weights = tmp_path / 'half.safetensors'
    weights.write_bytes(shipped_weights[0].read_bytes()[:100_000])
    parameters = tmp_path / 'my.yaml'
    parameters.write_text('/**: {ros__parameters: {image_transprt: compressed}}')
    code, parts = said(
        capsys, '--weights', weights, '--map', tmp_path / 'gone.map', '--params-file', parameters,
        *NOT_LISTENING)
    assert code == 1
    assert parts['large images'].startswith('PROBLEM') and 'gone.xml' in parts['large images']
    assert parts['weights'].startswith('PROBLEM') and 'half.safetensors' in parts['weights']
    assert parts['map'].startswith('PROBLEM') and 'does not exist' in parts['map']
    assert parts['parameters'].startswith('PROBLEM') and 'image_transprt' in parts['parameters']
    assert all(' -> ' in text for text in parts.values() if text.startswith('PROBLEM'))


def test_a_map_of_other_weights_is_a_problem(ros, capsys, tmp_path):
    code, parts = said(
        capsys, '--map', map_of_weights(tmp_path / 'a.map', 'b' * 64), *NOT_LISTENING)
    assert code == 1 and 'bbbbbbbbbbbb' in parts['map']


def test_wrong_usage_is_exit_code_2(capsys):
    with pytest.raises(SystemExit) as ended:
        doctor.main(['--no-such-option'])
    assert ended.value.code == 2


# --- the running system


class Vehicle:
    """Sensors at 20 Hz and the localizer, spun in a thread of their own."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        self.rclpy = rclpy
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.sensors = rclpy.create_node('sensors', context=self.context)
        self.executor.add_node(self.sensors)
        self.nodes = [self.sensors]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def _serve(self):
        while not self._stop.is_set():
            self.executor.spin_once(timeout_sec=0.05)

    def start(self, **parameters):
        from rclpy.parameter import Parameter

        from crossview_localizer.node import LocalizerNode
        node = LocalizerNode(context=self.context, parameter_overrides=[
            Parameter(name, value=value) for name, value in parameters.items()])
        node.autostart()
        self.nodes.append(node)
        self.executor.add_node(node)
        self._thread.start()

    def send(self, kind, topic, frame_id, qos=10, age_s=0.0, **fields):
        """Publish such a message 20 times a second, stamped ``age_s`` ago."""
        publisher = self.sensors.create_publisher(kind, topic, qos)

        def publish():
            msg = kind(**fields)
            msg.header.frame_id = frame_id
            stamp_ns = self.sensors.get_clock().now().nanoseconds - round(age_s * 1e9)
            msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp_ns, 10**9)
            publisher.publish(msg)
        self.sensors.create_timer(0.05, publish)

    def latch_transforms(self, *children, w=1.0):
        """Latch transforms from base_link; ``w`` 0 makes their rotations invalid."""
        from geometry_msgs.msg import TransformStamped
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from tf2_msgs.msg import TFMessage
        message = TFMessage()
        for child in children:
            transform = TransformStamped(child_frame_id=child)
            transform.header.frame_id = 'base_link'
            rotation = transform.transform.rotation
            rotation.w = w
            if child == 'camera':   # an optical frame looks ahead along its z
                rotation.x, rotation.y, rotation.z, rotation.w = -0.5, 0.5, -0.5, 0.5
            message.transforms.append(transform)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.sensors.create_publisher(TFMessage, '/tf_static', latched).publish(message)

    def close(self):
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for node in self.nodes:
            node.destroy_node()
        self.executor.shutdown()
        self.rclpy.try_shutdown(context=self.context)
        self.nodes.clear()
        # A context that is still referred to keeps its nodes in the ROS graph.
        self.sensors = self.executor = self.context = self._thread = None
        gc.collect()


@pytest.fixture
def vehicle(ros, own_domain, monkeypatch):
    # These are tested above and would only take time here.
    monkeypatch.setattr(doctor, 'check_weights_and_map', lambda weights, map_path: iter(()))
    monkeypatch.setattr(doctor, 'check_device', lambda device: iter(()))
    # Long, for a busy machine.
    monkeypatch.setattr(system_checks, 'DISCOVERY_S', 10.0)
    monkeypatch.setattr(system_checks, 'FIRST_MESSAGES_S', 3.0)
    monkeypatch.setattr(system_checks, 'STALE_STAMP_S', 30.0)
    vehicle = Vehicle()
    yield vehicle
    vehicle.close()


def test_a_healthy_running_system_has_no_problem(vehicle, capsys):
    from nav_msgs.msg import Odometry
    from sensor_msgs.msg import CameraInfo, Image, NavSatFix, NavSatStatus
    vehicle.latch_transforms('camera', 'antenna')
    vehicle.send(NavSatFix, 'gnss', 'antenna', latitude=51.76, longitude=-1.26,
                 status=NavSatStatus(status=0))
    vehicle.send(Odometry, 'odometry', 'odom', child_frame_id='base_link')
    vehicle.send(CameraInfo, 'camera_info', 'camera', width=8, height=6,
                 k=[8.0, 0.0, 3.5, 0.0, 8.0, 2.5, 0.0, 0.0, 1.0])
    vehicle.send(Image, 'image', 'camera', width=8, height=6, step=24, encoding='rgb8',
                 data=array('B', range(10, 154)))
    vehicle.start()
    code, parts = said(capsys, '--listen', '4.0')  # diagnostics come once a second
    assert code == 0, parts
    for part in ('node', 'image', 'camera_info', 'gnss', 'odometry', 'clock',
                 'camera extrinsics', 'antenna extrinsics'):
        assert parts[part].startswith('ok'), parts
    assert ' Hz' in parts['image']
    assert parts['gnss_velocity'].startswith('note nobody publishes /gnss_velocity')
    assert parts['odometry TF'].startswith('note')
    assert 'no map_path' in parts['node says of map']


def test_every_fault_of_a_running_system_is_named_with_its_remedy(vehicle, capsys):
    """Best effort where reliable is asked for, a topic elsewhere, old stamps, no extrinsics."""
    from geometry_msgs.msg import TwistWithCovarianceStamped
    from nav_msgs.msg import Odometry
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CameraInfo, Image, NavSatFix
    vehicle.send(NavSatFix, '/receiver/fix', 'antenna')
    vehicle.send(TwistWithCovarianceStamped, '/receiver/velocity', 'antenna')
    vehicle.send(Odometry, 'odometry', 'odom', child_frame_id='base_link', age_s=3000.0)
    vehicle.send(CameraInfo, 'camera_info', 'camera', age_s=3000.0)
    vehicle.send(Image, 'image', 'camera', qos=qos_profile_sensor_data, age_s=3000.0)
    vehicle.start(image_reliability='reliable')
    code, parts = said(capsys, '--listen', '1.0')
    assert code == 1
    for part, *texts in (
            ('gnss', 'nobody publishes /gnss', 'is published on /receiver/fix', '-r gnss:=TOPIC'),
            ('image', 'published best effort', 'image_reliability to best_effort'),
            ('clock', '3000', 'synchronize the clocks'),
            ('camera extrinsics', "does not join base_link and 'camera'", 'camera_xyz_rpy')):
        assert parts[part].startswith('PROBLEM'), parts
        for text in texts:
            assert text in parts[part], parts
    assert parts['gnss_velocity'].startswith('note')
    assert 'is published on /receiver/velocity' in parts['gnss_velocity']


def test_a_transform_that_is_not_valid_is_a_problem_and_the_doctor_goes_on(vehicle, capsys):
    from sensor_msgs.msg import NavSatFix
    vehicle.latch_transforms('antenna', w=0.0)
    vehicle.send(NavSatFix, 'gnss', 'antenna', latitude=51.76, longitude=-1.26)
    vehicle.start()
    code, parts = said(capsys, '--listen', '1.0')
    assert code == 1
    assert parts['/tf_static'].startswith('PROBLEM a transform is not valid: antenna')
    assert 'is not valid' in parts['/tf_static'] and 'quaternion' in parts['/tf_static']
    assert parts['antenna extrinsics'].startswith('PROBLEM')
    assert parts['node says of node'].startswith('note /tf_static: antenna')


def test_what_other_nodes_say_in_diagnostics_is_no_finding(vehicle, capsys):
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
    publisher = vehicle.sensors.create_publisher(DiagnosticArray, '/diagnostics', 10)
    other = DiagnosticArray(status=[DiagnosticStatus(name='motor: 1', level=b'\x02')])
    vehicle.sensors.create_timer(0.02, lambda: publisher.publish(other))
    vehicle.start()
    _, parts = said(capsys, '--listen', '2.0')
    assert 'node says of gnss' in parts
    assert not any('motor' in part for part in parts)


def test_a_node_that_waits_for_a_clock_or_to_be_configured_is_a_problem(vehicle, capsys):
    vehicle.start(autostart=False, use_sim_time=True)
    code, parts = said(capsys, '--listen', '1.0')
    assert code == 1
    assert 'not configured' in parts['node'] and 'lifecycle' in parts['node']
    assert 'nothing comes on /clock' in parts['clock'] and '--clock' in parts['clock']


def test_without_a_running_node_that_is_only_a_note(ros, own_domain, capsys, monkeypatch):
    monkeypatch.setattr(installation_checks, 'free_bytes', lambda path: 2**30)
    monkeypatch.setattr(system_checks, 'DISCOVERY_S', 0.2)
    code, parts = said(capsys, '--listen', '0.3')
    assert code == 0, parts
    assert parts['node'].startswith('note /crossview_localizer is not running')
