"""The localizer on a RobotCar bag (bag:=PATH) or on live topics of the same names."""

import os
from pathlib import Path

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    OpaqueFunction,
    SetEnvironmentVariable,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

# share/crossview_localizer, or the repository itself.
CONFIG = Path(__file__).resolve().parent.parent / 'config'
ARGUMENTS = {
    'bag': ('', 'rosbag2 bag to replay; empty: live topics'),
    'map': ('', 'embedding map made by build_map; empty: as in params_file'),
    'weights': ('', 'network weights; empty: as in params_file, else those shipped'),
    'params_file': (str(CONFIG / 'robotcar.yaml'), 'parameters of the node'),
    'rviz': ('false', 'also start RViz, and the scene'),
    'scene': ('', 'publish what RViz shows, also for an RViz elsewhere; empty: as rviz'),
    'rate': ('1.0', 'speed of the replay'),
    'start_offset': ('0.0', 'start the replay this many seconds into the bag'),
    'delay': ('5.0', 'seconds that the replay waits for the node to load its map'),
    'loop': ('false', 'replay again and again'),
    'record': ('', 'folder of a new bag for the results; empty: none'),
    'heatmap_picture': ('false', 'scene: the heat map over the satellite image as a picture'),
    'use_sim_time': ('', 'time from /clock; empty: true if a bag is given'),
    'device': ('', 'auto, cpu or cuda; empty: as in params_file'),
    'namespace': ('', 'namespace of the node and of its input topics'),
    'autostart': ('true', 'configure and activate the node at its start'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
}
# Inputs of the node and the topics that robotcar_to_bag writes.
INPUTS = {
    'image': 'camera/image',
    'image/compressed': 'camera/image/compressed',
    'camera_info': 'camera/camera_info',
    'gnss': 'gnss/fix',
    'gnss_velocity': 'gnss/velocity',
    'odometry': 'odometry',
}
RVIZ_TOPICS = (
    *(f'/crossview_localizer/{name}' for name in ('pose', 'odometry')),
    *(f'/crossview_scene/{name}' for name in (
        'ground', 'heatmap', 'heatmap_updates', 'ellipses', 'alternatives', 'path/gnss',
        'path/prior', 'path/refined', 'path/ground_truth', 'camera', 'views',
        'heatmap_picture')),
    '/initialpose',
)
RECORDED = ('^(/tf|/tf_static|/diagnostics|/ground_truth/.*'
            f'|.*/({INPUTS["gnss"]}|{INPUTS["odometry"]}|crossview_localizer/.*))$')


def start(context):
    """Return what to start for the arguments as given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    given['namespace'] = given['namespace'].strip('/')
    given['use_sim_time'] = given['use_sim_time'] or str(bool(given['bag']))
    actions = [localizer(given)]
    if is_true(given['scene'] or given['rviz']):
        actions.append(scene(given))
    if given['record']:
        actions.append(recorder(given))
    if given['bag']:
        actions.append(player(given))
    if is_true(given['rviz']):
        actions.append(rviz(given))
    return actions


def localizer(given):
    """Return the node with its parameters."""
    parameters = {
        'use_sim_time': is_true(given['use_sim_time']), 'autostart': is_true(given['autostart'])}
    for argument, parameter in (
            ('map', 'map_path'), ('weights', 'weights_path'), ('device', 'device')):
        if given[argument]:
            parameters[parameter] = given[argument]
    return Node(
        package='crossview_localizer', executable='localizer_node', name='crossview_localizer',
        namespace=given['namespace'], output='screen',
        parameters=[given['params_file'], parameters], remappings=list(INPUTS.items()),
        ros_arguments=['--log-level', given['log_level']])


def scene(given):
    """Return the node that publishes what RViz shows."""
    parameters = {
        # Bags hold the messages of the odometry and not its transform.
        'publish_odom_tf': bool(given['bag']),
        'use_sim_time': is_true(given['use_sim_time']),
        'heatmap_picture': is_true(given['heatmap_picture'])}
    if given['map']:
        parameters['map_path'] = given['map']
    return Node(
        package='crossview_localizer', executable='scene', name='crossview_scene',
        namespace=given['namespace'], output='screen',
        parameters=[given['params_file'], parameters],
        remappings=[*INPUTS.items(), ('ground_truth', '/ground_truth/geopose')],
        ros_arguments=['--log-level', given['log_level']])


def recorder(given):
    """Return the process that records the results."""
    command = ['ros2', 'bag', 'record', '--storage', 'mcap', '--output', given['record'],
               '--regex', RECORDED]
    if is_true(given['use_sim_time']):
        command.append('--use-sim-time')
    return ExecuteProcess(cmd=command, output='screen')


def player(given):
    """Return the process that replays the bag."""
    command = ['ros2', 'bag', 'play', given['bag'], '--clock', '100', '--rate', given['rate'],
               '--start-offset', given['start_offset'], '--delay', given['delay']]
    if is_true(given['loop']):
        command.append('--loop')
    if namespace := given['namespace']:
        command += ['--remap', *(f'/{t}:=/{namespace}/{t}' for t in INPUTS.values())]
    return ExecuteProcess(cmd=command, output='screen')


def rviz(given):
    """Return RViz; the topics in robotcar.rviz are those without a namespace."""
    namespace = given['namespace']
    return Node(
        package='rviz2', executable='rviz2', arguments=['-d', str(CONFIG / 'robotcar.rviz')],
        parameters=[{'use_sim_time': is_true(given['use_sim_time'])}],
        remappings=[(topic, f'/{namespace}{topic}') for topic in RVIZ_TOPICS if namespace])


def is_true(text: str) -> bool:
    """Read a truth value as launch files write it; raises ValueError for anything else."""
    if text.lower() not in ('true', 'false', '1', '0'):
        raise ValueError(f'expected true or false, found {text!r}')
    return text.lower() in ('true', '1')


def generate_launch_description():
    # With the defaults of Fast DDS an image of 3.7 MB does not arrive. A profile that the user has
    # set is kept. Distributions up to Jazzy read the second name.
    profile = os.environ.get(
        'FASTDDS_DEFAULT_PROFILES_FILE', str(CONFIG / 'fastdds_large_images.xml'))
    names = ['FASTDDS_DEFAULT_PROFILES_FILE']
    if os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy'):
        names.append('FASTRTPS_DEFAULT_PROFILES_FILE')
    return LaunchDescription([
        *(SetEnvironmentVariable(name, profile) for name in names),
        *(DeclareLaunchArgument(name, default_value=default, description=description)
          for name, (default, description) in ARGUMENTS.items()),
        OpaqueFunction(function=start),
    ])
