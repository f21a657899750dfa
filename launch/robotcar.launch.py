"""The localizer on a RobotCar bag (bag:=PATH) or on live topics of the same names."""

import math
import os
from pathlib import Path
import re

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    OpaqueFunction,
    Shutdown,
    TimerAction,
)
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

# share/crossview_localizer, or the repository itself.
CONFIG = Path(__file__).resolve().parent.parent / 'config'
ARGUMENTS = {
    'bag': ('', 'bag to replay; empty: live topics'),
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
    'publish_odom_tf': (
        '', 'scene: publish odom -> base_link from the odometry, where nobody else does; empty: '
        'true if a bag is given'),
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
        'heatmap_picture', 'get_interactive_markers', 'update', 'feedback')),
    '/initialpose',
)
RECORDED = ('^(/tf|/tf_static|/diagnostics|/ground_truth/.*'
            f'|.*/({INPUTS["gnss"]}|{INPUTS["odometry"]}|crossview_localizer/.*))$')
# The last image of a bag is matched, and its pose recorded, within this time.
AFTER_BAG_S = 2.0


def start(context):
    """Return what to start for the arguments as given."""
    given = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    for name in ('bag', 'map', 'weights', 'params_file', 'record'):
        given[name] = os.path.expanduser(given[name])
    given['namespace'] = absolute_namespace(
        context.launch_configurations.get('ros_namespace', ''), given['namespace'])
    for name in ('use_sim_time', 'publish_odom_tf'):
        given[name] = given[name] or str(bool(given['bag']))
    check(given)
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


def absolute_namespace(pushed, given):
    """Return the namespace of all nodes, '' or '/NAME', under what PushRosNamespace has pushed.

    Launch files that push a namespace often pass the same one on as an argument: it counts once.
    """
    pushed, given = pushed.strip('/'), given.strip('/')
    if not f'/{pushed}'.endswith(f'/{given}'):
        pushed = f'{pushed}/{given}'.strip('/')
    return pushed and f'/{pushed}'


def check(given):
    """Raise ValueError for an argument with which a part could not start."""
    for name in ('bag', 'map', 'weights', 'params_file'):
        if given[name] and not Path(given[name]).exists():
            raise ValueError(f'{name}:={given[name]} does not exist')
    if given['params_file'] and not Path(given['params_file']).is_file():
        raise ValueError(f'params_file:={given["params_file"]} is a folder; expected a file')
    if not re.fullmatch(r'(/[A-Za-z_][A-Za-z0-9_]*)*', given['namespace']):
        raise ValueError(f'namespace:={given["namespace"]}; expected letters, digits and _, no '
                         'digit first, and / between names')
    if given['record'] and Path(given['record']).exists():
        raise ValueError(f'record:={given["record"]} exists already; expected a new folder')
    for name, expected in (('rate', 'above 0'), ('start_offset', 'of 0 or more'),
                           ('delay', 'of 0 or more')):
        try:
            value = float(given[name])
        except ValueError:
            value = math.nan
        if not (0.0 < value < math.inf or value == 0.0 and name != 'rate'):
            raise ValueError(f'{name}:={given[name]}; expected a number {expected}')
    for name in ('rviz', 'scene', 'loop', 'heatmap_picture', 'publish_odom_tf', 'use_sim_time',
                 'autostart'):
        if given[name].lower() not in ('', 'true', 'false', '1', '0'):
            raise ValueError(f'{name}:={given[name]}; expected true or false')


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
        parameters=[*parameter_files(given), parameters], remappings=list(INPUTS.items()),
        ros_arguments=['--log-level', given['log_level']],
        on_exit=when_ended('the localizer', [Shutdown(reason='the localizer has ended')]))


def scene(given):
    """Return the node that publishes what RViz shows."""
    parameters = {
        'publish_odom_tf': is_true(given['publish_odom_tf']),
        'use_sim_time': is_true(given['use_sim_time']),
        'heatmap_picture': is_true(given['heatmap_picture'])}
    if given['map']:
        parameters['map_path'] = given['map']
    return Node(
        package='crossview_localizer', executable='scene', name='crossview_scene',
        namespace=given['namespace'], output='screen',
        parameters=[*parameter_files(given), parameters],
        remappings=[*INPUTS.items(), ('ground_truth', '/ground_truth/geopose')],
        ros_arguments=['--log-level', given['log_level']],
        additional_env=room_for_large_messages(), on_exit=when_ended('the scene'))


def recorder(given):
    """Return the process that records the results."""
    arguments = ['--output', given['record'], '--regex', RECORDED]
    if is_true(given['use_sim_time']):
        arguments.append('--use-sim-time')
    return Node(
        package='crossview_localizer', executable='record_bag', output='screen',
        namespace=given['namespace'], arguments=arguments, on_exit=when_ended('the recorder'))


def player(given):
    """Return the process that replays the bag.

    Unlike ``ros2 bag play`` it publishes the latched /tf_static from before ``start_offset``.
    """
    arguments = [given['bag'], '--clock', '100', '--rate', given['rate'],
                 '--start-offset', given['start_offset'], '--delay', given['delay']]
    if is_true(given['loop']):
        arguments.append('--loop')
    end = TimerAction(period=AFTER_BAG_S, actions=[Shutdown(reason='the bag has ended')])
    return Node(
        package='crossview_localizer', executable='play_bag', output='screen',
        namespace=given['namespace'], arguments=arguments,
        remappings=[(f'/{topic}', f'{given["namespace"]}/{topic}')
                    for topic in INPUTS.values() if given['namespace']],
        additional_env=room_for_large_messages(),
        on_exit=when_ended('the bag player', [end]))


def rviz(given):
    """Return RViz; the topics in robotcar.rviz are those without a namespace."""
    namespace = given['namespace']
    return Node(
        package='rviz2', executable='rviz2', arguments=['-d', str(CONFIG / 'robotcar.rviz')],
        parameters=[{'use_sim_time': is_true(given['use_sim_time'])}],
        remappings=[(topic, f'{namespace}{topic}') for topic in RVIZ_TOPICS if namespace],
        on_exit=when_ended('RViz'))


def parameter_files(given):
    """Return the parameter file in a list, or none."""
    return [given['params_file']] if given['params_file'] else []


def when_ended(part, actions=()):
    """Return what to do when a part has ended: ``actions``, or end the launch if it failed."""
    def react(event, context):
        if context.is_shutdown:
            return None
        if event.returncode:
            # This makes launch stop all other parts, and exit with 1.
            raise RuntimeError(f'{part} failed with exit code {event.returncode}')
        return list(actions)
    return react


def is_true(text):
    """Return the truth value of an argument that was checked."""
    return text.lower() in ('true', '1')


def room_for_large_messages():
    """Return environment variables with which the large messages of a process arrive.

    With the defaults of Fast DDS an image of 3.7 MB does not.  Only senders need the room: it
    takes 64 MB of memory.  A profile that the user has set is kept.
    """
    profile = os.environ.get(
        'FASTDDS_DEFAULT_PROFILES_FILE', str(CONFIG / 'fastdds_large_images.xml'))
    names = ['FASTDDS_DEFAULT_PROFILES_FILE']
    # Distributions up to Jazzy read the second name.
    if os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy'):
        names.append('FASTRTPS_DEFAULT_PROFILES_FILE')
    return dict.fromkeys(names, profile)


def generate_launch_description():
    return LaunchDescription([
        *(DeclareLaunchArgument(name, default_value=default, description=description)
          for name, (default, description) in ARGUMENTS.items()),
        OpaqueFunction(function=start),
    ])
