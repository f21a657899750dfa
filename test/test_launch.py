"""robotcar.launch.py, by the real `ros2 launch` where it is installed, else by a stand-in."""

from array import array
import contextlib
import importlib.util
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys

import pytest

rclpy = pytest.importorskip('rclpy')

import cv2
from geometry_msgs.msg import PoseWithCovarianceStamped, TransformStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMsg
import numpy as np
from rcl_interfaces.srv import GetParameters
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import CameraInfo, CompressedImage, NavSatFix, NavSatStatus
from tf2_msgs.msg import TFMessage

from crossview_localizer.bags.installed_types import register_installed_type

REPOSITORY = Path(__file__).resolve().parent.parent
LAUNCH_FILE = REPOSITORY / 'launch/robotcar.launch.py'
START_NS = 1_400_000_000_000_000_000
ARGUMENTS = (
    'bag', 'map', 'weights', 'params_file', 'rviz', 'scene', 'rate', 'start_offset', 'delay',
    'loop', 'record', 'publish_odom_tf', 'use_sim_time', 'device', 'namespace', 'autostart',
    'log_level',
)


def install(prefix: Path) -> dict[str, str]:
    """Install the package into an ament prefix; the environment in which it is found there."""
    source = prefix / 'source'
    shutil.copytree(REPOSITORY, source, ignore=lambda folder, names: {
        name for name in names if Path(folder) == REPOSITORY and name not in (
            'crossview_localizer', 'launch', 'config', 'resource', 'setup.py', 'setup.cfg',
            'pyproject.toml', 'package.xml', 'README.md', 'LICENSE')})
    subprocess.run(
        [sys.executable, 'setup.py', '-q', 'install', '--prefix', str(prefix),
         '--single-version-externally-managed', '--record', str(prefix / 'installed.txt')],
        cwd=source, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (packages,) = prefix.glob('l*/python*/*-packages')
    return {'AMENT_PREFIX_PATH': str(prefix), 'PYTHONPATH': str(packages)}


@pytest.fixture(scope='module')
def ros2_launch(tmp_path_factory):
    """The command that takes a launch file and its arguments, and its environment."""
    environment = dict(os.environ)
    found = {}
    if importlib.util.find_spec('launch_ros'):
        from ament_index_python.packages import get_package_prefix, PackageNotFoundError
        command = ['ros2', 'launch']
        try:
            get_package_prefix('crossview_localizer')
        except PackageNotFoundError:
            found = install(tmp_path_factory.mktemp('prefix'))
    else:
        command = [sys.executable, '-m', 'launch']
        found = {'PYTHONPATH': str(REPOSITORY / 'test/launch_stand_in')}
    for name, value in found.items():
        environment[name] = os.pathsep.join(filter(None, [value, environment.get(name)]))
    return command, environment


@pytest.fixture
def launch(ros2_launch):
    """launch(*arguments) starts a launch file; its processes end with the test."""
    command, environment = ros2_launch
    processes = []

    def start(*arguments, file=LAUNCH_FILE) -> subprocess.Popen:
        processes.append(subprocess.Popen(
            # A test may have a domain of its own.
            [*command, str(file), *arguments],
            env={**environment, 'ROS_DOMAIN_ID': os.environ['ROS_DOMAIN_ID']},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True))
        return processes[-1]

    yield start
    for process in processes:
        # The launched processes are in its session and outlive it when a test fails.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        print(process.communicate()[0])


@pytest.fixture
def node(ros, own_domain):
    rclpy.init()
    yield rclpy.create_node('observer')
    rclpy.shutdown()


def drive_bag(path, seconds: float):
    """A straight drive at 10 m/s to the east, with all inputs of the node."""
    _, jpeg = cv2.imencode('.jpg', np.full((48, 64, 3), 90, np.uint8))
    typestore = get_typestore(Stores.EMPTY)
    connections = {}
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:

        def write(topic, msgtype, message, frame, time_s):
            stamp_ns = START_NS + round(time_s * 1e9)
            if hasattr(message, 'header'):
                message.header.frame_id = frame
                message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
            if topic not in connections:
                register_installed_type(typestore, msgtype)
                connections[topic] = writer.add_connection(topic, msgtype, typestore=typestore)
            writer.write(connections[topic], stamp_ns, serialize_message(message))

        transforms = TFMessage()
        for child, z in (('camera_optical', 0.0), ('gnss_antenna', 1.0)):
            transform = TransformStamped(child_frame_id=child)
            transform.header.frame_id = 'base_link'
            transform.transform.translation.z = z
            transforms.transforms.append(transform)
        write('/tf_static', 'tf2_msgs/msg/TFMessage', transforms, '', 0.0)
        for tick in range(round(seconds * 20)):
            time_s = tick / 20
            odometry = Odometry(child_frame_id='base_link')
            odometry.pose.pose.position.x = 10 * time_s
            write('/odometry', 'nav_msgs/msg/Odometry', odometry, 'odom', time_s)
            if tick % 4 == 0:
                fix = NavSatFix(latitude=51.75, longitude=-1.25 + 10 * time_s / 69000)
                fix.status.status = NavSatStatus.STATUS_FIX
                fix.position_covariance = [4.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 9.0]
                fix.position_covariance_type = NavSatFix.COVARIANCE_TYPE_DIAGONAL_KNOWN
                write('/gnss/fix', 'sensor_msgs/msg/NavSatFix', fix, 'gnss_antenna', time_s)
                info = CameraInfo(width=64, height=48, k=[40., 0., 32., 0., 40., 24., 0., 0., 1.])
                write('/camera/camera_info', 'sensor_msgs/msg/CameraInfo', info, 'camera_optical',
                      time_s)
                image = CompressedImage(format='bgr8; jpeg compressed bgr8')
                image.data = array('B', jpeg.tobytes())
                write('/camera/image/compressed', 'sensor_msgs/msg/CompressedImage', image,
                      'camera_optical', time_s)
    return path


def parameter_values(node, name: str, keys: list[str]):
    client = node.create_client(GetParameters, f'{name}/get_parameters')
    assert client.wait_for_service(timeout_sec=60)
    for _ in range(10):  # an answer that is sent before the client is discovered is lost
        future = client.call_async(GetParameters.Request(names=keys))
        rclpy.spin_until_future_complete(node, future, timeout_sec=10)
        if future.done():
            return future.result().values
    raise AssertionError(f'{name} does not answer')


def recorded_counts(path) -> dict[str, int]:
    with Reader(path) as reader:
        return {connection.topic: connection.msgcount for connection in reader.connections}


def test_every_argument_is_offered_with_a_description(launch):
    output, _ = launch('--show-args').communicate(timeout=120)
    for name in ARGUMENTS:
        assert f"'{name}':" in output


SHOW_PROFILES = """
import runpy
file = runpy.run_path({file!r})
given = {{name: default for name, (default, _) in file['ARGUMENTS'].items()}}
for part in ('localizer', 'scene', 'player'):
    print(file[part](given).additional_env.get('FASTDDS_DEFAULT_PROFILES_FILE', 'none'))
"""


def test_only_processes_that_send_large_messages_get_memory_for_them():
    def profiles(**environment: str) -> list[str]:
        return subprocess.run(
            [sys.executable, '-c', SHOW_PROFILES.format(file=str(LAUNCH_FILE))],
            env={'PYTHONPATH': str(REPOSITORY / 'test/launch_stand_in'), **environment},
            check=True, capture_output=True, text=True).stdout.split()

    large = str(REPOSITORY / 'config/fastdds_large_images.xml')
    assert profiles() == ['none', large, large]
    assert profiles(FASTDDS_DEFAULT_PROFILES_FILE='/own.xml') == ['none', '/own.xml', '/own.xml']


@pytest.mark.parametrize('namespace', ['', 'car'])
def test_a_bag_is_replayed_through_the_node_and_its_poses_recorded(
        node, wait_until, launch, tmp_path, namespace):
    prefix = f'/{namespace}' if namespace else ''
    bag = drive_bag(tmp_path / 'bag', 12.0)
    arguments = [f'namespace:={namespace}'] if namespace else []
    process = launch(
        f'bag:={bag}', f'record:={tmp_path / "results"}', 'rate:=2.0', 'start_offset:=1.0',
        'delay:=0', 'loop:=true', 'device:=cpu', 'scene:=true', *arguments)
    values = parameter_values(
        node, f'{prefix}/crossview_localizer', ['use_sim_time', 'device', 'image_transport'])
    assert values[0].bool_value
    # device from the argument, image_transport from params_file.
    assert [value.string_value for value in values[1:]] == ['cpu', 'compressed']

    poses, paths = [], []
    node.create_subscription(
        PoseWithCovarianceStamped, f'{prefix}/crossview_localizer/pose', poses.append, 10)
    node.create_subscription(
        PathMsg, f'{prefix}/crossview_scene/path/gnss', paths.append,
        QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))

    def enough_poses():
        rclpy.spin_once(node, timeout_sec=0.1)
        if node.count_subscribers(f'{prefix}/crossview_localizer/pose') < 3:
            poses.clear()  # count from when scene and recorder have subscribed
        shown = paths and len(paths[-1].poses) > 1
        return len(poses) >= 30 and shown or process.poll() is not None
    wait_until(enough_poses, 150)
    assert process.poll() is None
    assert poses[0].header.frame_id == 'map'
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert 'Traceback' not in output, output
    counts = recorded_counts(tmp_path / 'results')
    assert counts['/tf_static'] >= 1
    assert counts[f'{prefix}/crossview_localizer/pose'] >= 10
    assert counts[f'{prefix}/crossview_localizer/odometry'] > 10
    assert counts[f'{prefix}/odometry'] > 10 and counts[f'{prefix}/gnss/fix'] > 10
    assert not any('image' in topic for topic in counts)


def test_without_a_bag_the_node_waits_for_live_topics_in_wall_time(node, launch):
    process = launch('autostart:=false', 'log_level:=warn')
    sim_time, autostart = parameter_values(
        node, '/crossview_localizer', ['use_sim_time', 'autostart'])
    assert not sim_time.bool_value and not autostart.bool_value
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def test_another_launch_file_can_include_it_with_arguments_of_its_own(node, launch, tmp_path):
    file = tmp_path / 'vehicle.launch.py'
    file.write_text(f"""
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource


def generate_launch_description():
    return LaunchDescription([IncludeLaunchDescription(
        PythonLaunchDescriptionSource({str(LAUNCH_FILE)!r}),
        launch_arguments={{'namespace': 'car', 'autostart': 'false', 'device': 'cpu'}}.items())])
""")
    process = launch(file=file)
    autostart, device = parameter_values(
        node, '/car/crossview_localizer', ['autostart', 'device'])
    assert not autostart.bool_value and device.string_value == 'cpu'
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def ended(process) -> str:
    """What a launch that ends by itself has said."""
    output, _ = process.communicate(timeout=120)
    return output


@pytest.mark.parametrize(('argument', 'said'), [
    ('bag:=/nowhere/drive', 'bag:=/nowhere/drive does not exist'),
    ('map:=/nowhere/my.map', 'map:=/nowhere/my.map does not exist'),
    ('params_file:=/nowhere/my.yaml', 'params_file:=/nowhere/my.yaml does not exist'),
    ('params_file:=/', 'params_file:=/ is a folder'),
    ('namespace:=my-car', 'namespace:=/my-car; expected letters, digits and _'),
    ('record:=/', 'record:=/ exists already'),
    ('rate:=fast', 'rate:=fast; expected a number above 0'),
    ('delay:=-1', 'delay:=-1; expected a number of 0 or more'),
    ('start_offset:=nan', 'start_offset:=nan; expected a number of 0 or more'),
    ('loop:=yes', 'loop:=yes; expected true or false')])
def test_nothing_is_started_where_an_argument_cannot_be_right(launch, argument, said):
    process = launch(argument)
    output = ended(process)
    assert said in output and process.returncode == 1
    assert 'localizer_node' not in output and 'Traceback' not in output


def test_the_launch_ends_with_its_bag_and_the_recording_is_whole(launch, tmp_path):
    bag = drive_bag(tmp_path / 'bag', 6.0)
    process = launch(
        f'bag:={bag}', f'record:={tmp_path / "results"}', 'delay:=4.0', 'device:=cpu')
    output = ended(process)
    assert process.returncode == 0, output
    counts = recorded_counts(tmp_path / 'results')
    assert counts['/odometry'] > 100 and counts['/tf_static'] == 1


def test_the_launch_ends_with_an_error_when_a_part_has_failed(launch, tmp_path):
    (tmp_path / 'bag').mkdir()
    process = launch(f'bag:={tmp_path / "bag"}', 'device:=cpu')
    output = ended(process)
    assert process.returncode == 1
    assert 'the bag player failed with exit code 2' in output


@pytest.mark.parametrize('argument', [{}, {'namespace': 'car'}])
def test_under_a_pushed_namespace_the_bag_comes_on_the_topics_of_the_node(
        node, wait_until, launch, tmp_path, argument):
    bag = drive_bag(tmp_path / 'bag', 3.0)
    file = tmp_path / 'fleet.launch.py'
    file.write_text(f"""
from launch import LaunchDescription
from launch.actions import GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import PushRosNamespace


def generate_launch_description():
    return LaunchDescription([GroupAction([
        PushRosNamespace('car'),
        IncludeLaunchDescription(
            PythonLaunchDescriptionSource({str(LAUNCH_FILE)!r}),
            launch_arguments={{**{argument!r}, 'bag': {str(bag)!r}, 'loop': 'true',
                              'device': 'cpu'}}.items())])])
""")
    process = launch(file=file)

    def is_connected():
        rclpy.spin_once(node, timeout_sec=0.1)
        return process.poll() is not None or (
            node.count_publishers('/car/odometry') == 1
            and node.count_subscribers('/car/odometry') == 1)
    wait_until(is_connected, 60)
    assert process.poll() is None
    assert not node.count_publishers('/odometry')
    assert not node.count_publishers('/car/car/odometry')
    process.send_signal(signal.SIGINT)
    ended(process)
