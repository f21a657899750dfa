"""robotcar.launch.py, by the real `ros2 launch` where it is installed, else by a stand-in."""

from array import array
import contextlib
import importlib.util
import os
from pathlib import Path
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
    'bag', 'map', 'weights', 'params_file', 'rviz', 'scene', 'rate', 'start_offset', 'loop',
    'record', 'use_sim_time', 'device', 'namespace', 'autostart', 'log_level',
)


@pytest.fixture
def launch():
    """launch(*arguments) starts a launch file; its processes end with the test."""
    environment = dict(os.environ)
    if importlib.util.find_spec('launch_ros'):
        command = ['ros2', 'launch']
    else:
        stand_in = str(REPOSITORY / 'test/launch_stand_in')
        environment['PYTHONPATH'] = f'{stand_in}{os.pathsep}{environment["PYTHONPATH"]}'
        command = [sys.executable, '-m', 'launch']
    processes = []

    def start(*arguments, file=LAUNCH_FILE) -> subprocess.Popen:
        processes.append(subprocess.Popen(
            [*command, str(file), *arguments], env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True))
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


@pytest.mark.parametrize('namespace', ['', 'car'])
def test_a_bag_is_replayed_through_the_node_and_its_poses_recorded(
        node, wait_until, launch, tmp_path, namespace):
    prefix = f'/{namespace}' if namespace else ''
    bag = drive_bag(tmp_path / 'bag', 12.0)
    process = launch(
        f'bag:={bag}', f'record:={tmp_path / "results"}', f'namespace:={namespace}', 'rate:=2.0',
        'start_offset:=1.0', 'delay:=1.0', 'loop:=true', 'device:=cpu',
        'scene:=true')
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
