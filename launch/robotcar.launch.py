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
    'autostart': ('true', 'configure and activate the node at once'),
    'log_level': ('info', 'debug, info, warn, error or fatal'),
}
# Input of the node -> topic, the same in robotcar_to_bag.
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
    namespace = given['namespace'].strip('/')
    sim_time = given['use_sim_time'] or str(bool(given['bag']))
    parameters = {
        'use_sim_time': is_true(sim_time),
        'autostart': is_true(given['autostart']),
    }
    for argument, parameter in (
            ('map', 'map_path'), ('weights', 'weights_path'), ('device', 'device')):
        if given[argument]:
            parameters[parameter] = given[argument]

    actions = [Node(
        package='crossview_localizer', executable='localizer_node', name='crossview_localizer',
        namespace=namespace, output='screen', parameters=[given['params_file'], parameters],
        remappings=list(INPUTS.items()), ros_arguments=['--log-level', given['log_level']])]
    if is_true(given['scene'] or given['rviz']):
        # Bags hold the odometry's messages and not its transform.
        of_scene = {
            'publish_odom_tf': bool(given['bag']), 'use_sim_time': is_true(sim_time),
            'heatmap_picture': is_true(given['heatmap_picture'])}
        if given['map']:
            of_scene['map_path'] = given['map']
        actions.append(Node(
            package='crossview_localizer', executable='scene', name='crossview_scene',
            namespace=namespace, output='screen', parameters=[given['params_file'], of_scene],
            remappings=[*INPUTS.items(), ('ground_truth', '/ground_truth/geopose')],
            ros_arguments=['--log-level', given['log_level']]))
    if given['record']:
        command = ['ros2', 'bag', 'record', '--storage', 'mcap', '--output', given['record'],
                   '--regex', RECORDED]
        command += ['--use-sim-time'] if is_true(sim_time) else []
        actions.append(ExecuteProcess(cmd=command, output='screen'))
    if given['bag']:
        command = ['ros2', 'bag', 'play', given['bag'], '--clock', '100', '--rate', given['rate'],
                   '--start-offset', given['start_offset'], '--delay', given['delay']]
        command += ['--loop'] if is_true(given['loop']) else []
        if namespace:
            command += ['--remap', *(f'/{t}:=/{namespace}/{t}' for t in INPUTS.values())]
        actions.append(ExecuteProcess(cmd=command, output='screen'))
    if is_true(given['rviz']):
        # The topics in robotcar.rviz are those without a namespace.
        moved = [(topic, f'/{namespace}{topic}') for topic in RVIZ_TOPICS] if namespace else []
        actions.append(Node(
            package='rviz2', executable='rviz2', arguments=['-d', str(CONFIG / 'robotcar.rviz')],
            parameters=[{'use_sim_time': is_true(sim_time)}], remappings=moved))
    return actions


def is_true(text: str) -> bool:
    if text.lower() not in ('true', 'false', '1', '0'):
        raise ValueError(f'expected true or false, found {text!r}')
    return text.lower() in ('true', '1')


def generate_launch_description():
    # With the defaults of Fast DDS an image of 3.7 MB does not arrive. A profile already chosen
    # stays. The second name is the one that distributions up to Jazzy read.
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
