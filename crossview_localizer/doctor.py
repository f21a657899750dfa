"""Check an installation, and a running system if there is one, and say what to do.

Nothing but the standard library is imported before it is checked, so the doctor also works where
everything else is missing.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
import importlib
from importlib import metadata
import os
from pathlib import Path
import shutil
import sys
import time
from xml.etree import ElementTree

ROS_PACKAGES = (
    'rclpy', 'builtin_interfaces.msg', 'diagnostic_msgs.msg', 'geographic_msgs.msg',
    'geometry_msgs.msg', 'lifecycle_msgs.srv', 'nav_msgs.msg', 'rosgraph_msgs.msg',
    'sensor_msgs.msg', 'std_msgs.msg', 'std_srvs.srv', 'tf2_msgs.msg', 'visualization_msgs.msg',
)
LIBRARIES = (
    'numpy', 'cv2', 'scipy', 'yaml', 'pyproj', 'rasterio', 'filterpy', 'safetensors', 'rosbags',
    'tqdm', 'torch',
)
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
# Up to these the second name is read, from then on the first.
DISTRIBUTIONS_WITH_OLD_NAME = ('humble', 'iron', 'jazzy')
LARGE_SEGMENT_BYTES = 16 * 2**20
# The largest image that arrived over the defaults of Fast DDS; at 600 kB most were lost.
SAFE_IMAGE_BYTES = 450_000
STALE_STAMP_S = 2.0
# Fast DDS announces a process every 3 s.
DISCOVERY_S = 5.0
# Of the running localizer.
PARAMETERS = (
    'use_sim_time', 'base_frame', 'camera_frame', 'camera_xyz_rpy', 'antenna_xyz_m',
    'image_reliability', 'sensor_reliability',
)
LOCALIZER = 'crossview_localizer'
# Which of its inputs the localizer subscribes to with a message of this type.
ROLES = {
    'sensor_msgs/msg/Image': 'image', 'sensor_msgs/msg/CompressedImage': 'image',
    'sensor_msgs/msg/CameraInfo': 'camera_info', 'sensor_msgs/msg/NavSatFix': 'gnss',
    'geometry_msgs/msg/TwistWithCovarianceStamped': 'gnss_velocity',
    'geometry_msgs/msg/TwistStamped': 'gnss_velocity', 'nav_msgs/msg/Odometry': 'odometry',
}
OPTIONAL_ROLES = ('gnss_velocity',)


class Verdict(Enum):
    """What a finding says; only PROBLEM makes the exit code 1."""

    OK = 'ok'
    NOTE = 'note'
    PROBLEM = 'PROBLEM'


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` says what to do."""

    verdict: Verdict
    part: str
    text: str
    remedy: str = ''


def ok(part: str, text: str) -> Finding:
    return Finding(Verdict.OK, part, text)


def note(part: str, text: str, remedy: str = '') -> Finding:
    return Finding(Verdict.NOTE, part, text, remedy)


def problem(part: str, text: str, remedy: str) -> Finding:
    return Finding(Verdict.PROBLEM, part, text, remedy)


# --- the installation


def missing_modules(names) -> list[str]:
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # half an installation, or one for another numpy, raises anything
            missing.append(name)
    return missing


def check_libraries() -> Iterator[Finding]:
    if missing := missing_modules(LIBRARIES):
        yield problem(
            'libraries', f'cannot be imported: {", ".join(missing)}',
            'in the repository: make env && source .venv/ros_env.bash; in a workspace: activate '
            'its virtual environment, pip install -r requirements.txt and rosdep install')
        return
    yield ok('libraries', f'{len(LIBRARIES)} found, torch {metadata.version("torch")}')


def check_ros() -> Iterator[Finding]:
    if missing := missing_modules(ROS_PACKAGES):
        yield problem(
            'ROS 2', 'is not there' if 'rclpy' in missing
            else f'cannot be imported: {", ".join(missing)}',
            "source /opt/ros/DISTRIBUTION/setup.bash and the workspace's install/setup.bash, or "
            'in the repository: make env && source .venv/ros_env.bash')
        return
    from rclpy.utilities import get_rmw_implementation_identifier
    rmw = get_rmw_implementation_identifier()
    yield ok('ROS 2', f'{distribution()}, {rmw}, domain {os.environ.get("ROS_DOMAIN_ID", "0")}, '
             f'discovery {os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")}')
    if rmw == 'rmw_fastrtps_cpp':
        yield check_dds_profile()
    else:
        yield note('large images', f'{rmw} is not tried; the hints here are for Fast DDS',
                   'RMW_IMPLEMENTATION=rmw_fastrtps_cpp is what was tested')


def distribution() -> str:
    """The distribution sourced, or that of the wheels installed."""
    if name := os.environ.get('ROS_DISTRO'):
        return name
    for name in ('kilted', 'jazzy'):
        try:
            return f'{name} (wheels, rclpy {metadata.version(f"ros-{name}-rclpy")})'
        except metadata.PackageNotFoundError:
            continue
    return 'unknown distribution'


def check_dds_profile() -> Finding:
    """The Fast DDS profile: there, readable, with shared memory for large images."""
    remedy = ('export FASTDDS_DEFAULT_PROFILES_FILE (Jazzy: FASTRTPS_DEFAULT_PROFILES_FILE) = '
              'config/fastdds_large_images.xml of this package, for every process that sends or '
              'receives raw images; robotcar.launch.py does it')
    variable = PROFILE_VARIABLES[distribution().split()[0] in DISTRIBUTIONS_WITH_OLD_NAME]
    path = os.environ.get(variable)
    if not path:
        others = [name for name in PROFILE_VARIABLES if name != variable and name in os.environ]
        if others:
            return problem('large images', f'{others[0]} is set, but {distribution()} reads '
                           f'{variable}', remedy)
        return note('large images', f'{variable} is not set: raw images above '
                    f'{SAFE_IMAGE_BYTES // 1000} kB get lost; JPEG images arrive', remedy)
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        return problem('large images', f'{variable}={path} cannot be read ({error})', remedy)
    segments = [int(item.text) for item in root.iter()
                if item.tag.rpartition('}')[2] == 'segment_size' and (item.text or '').isdigit()]
    if not segments or max(segments) < LARGE_SEGMENT_BYTES:
        found = f'{max(segments) / 2**20:.0f} MiB' if segments else 'none'
        return problem('large images', f'{path} gives {found} of shared memory; expected '
                       f'{LARGE_SEGMENT_BYTES // 2**20} MiB or more', remedy)
    free = free_bytes(Path('/dev/shm'))
    if free is not None and free < max(segments):
        return problem(
            'large images', f'/dev/shm has {free / 2**20:.0f} MiB free, the profile takes '
            f'{max(segments) / 2**20:.0f} MiB a process',
            'in a container: --ipc=host or --shm-size=1g; else delete what fills /dev/shm')
    return ok('large images', f'{path} gives {max(segments) / 2**20:.0f} MiB of shared memory')


def free_bytes(folder: Path) -> int | None:
    """Room in a folder; None where there is no such folder."""
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def check_device(device: str) -> Iterator[Finding]:
    if missing_modules(['torch']):
        return
    from crossview_localizer.networks.checkpoint import prepare_torch
    try:
        found, warning = prepare_torch(device, 1)
    except (ValueError, RuntimeError) as error:
        yield problem('device', str(error), 'set the parameter device to auto or cpu')
        return
    if warning:
        yield problem('device', warning, "install the GPU's driver and a CUDA build of torch, or "
                      'set the parameter device to cpu')
    elif found == 'cpu':
        yield note('device', 'no GPU is used: the network runs on the CPU, with torch_threads '
                   'threads', 'nothing to do, unless images are counted as dropped')
    else:
        yield ok('device', found)


def check_weights_and_map(weights: str, map_path: str) -> Iterator[Finding]:
    """Both can be read, and the map is of these weights."""
    if missing_modules([*LIBRARIES, *([] if weights else ROS_PACKAGES)]):
        return
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    from crossview_localizer.networks.checkpoint import load_network
    fingerprint = None
    try:
        if not weights:
            from crossview_localizer.node import shipped_weights
            weights = shipped_weights()
        network = load_network(weights, 'cpu')
        fingerprint = network.fingerprint
        yield ok('weights', f'{weights} ({fingerprint[:12]})')
    except (ValueError, OSError, RuntimeError) as error:
        yield problem('weights', str(error), 'give the file with --weights or weights_path; '
                      'copy it anew if it is damaged')
    if not map_path:
        yield note('map', 'none is given: the prior alone is published',
                   'make one with build_map and give it with --map or map_path')
        return
    try:
        found = EmbeddingMap.open(map_path, 'cpu', fingerprint)
    except (ValueError, OSError) as error:
        yield problem('map', str(error), 'build the map with build_map and these weights')
        return
    area_km2 = len(found.descriptors) * found.grid.cell_m**2 / 1e6
    yield ok('map', f'{map_path}: {len(found.descriptors)} tiles, {area_km2:.2f} km2 about '
             f'latitude {found.frame.latitude_deg:.5f}, longitude {found.frame.longitude_deg:.5f}')


def check_parameters(path: str) -> Iterator[Finding]:
    if missing_modules(['yaml', 'rosbags', *ROS_PACKAGES]):
        return
    from crossview_localizer.bags.replay import read_parameters
    try:
        read_parameters(path)
    except (ValueError, OSError) as error:
        yield problem('parameters', f'{path}: {error}',
                      'correct the name or the value; config.py lists all of them')
        return
    yield ok('parameters', f'{path}: every name and value is valid')


# --- the running system


class Listener:
    """A node that looks at the graph and takes one turn at listening to what is there."""

    def __init__(self, namespace: str):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        self.namespace = f'/{namespace.strip("/")}'.rstrip('/')
        self.context = rclpy.Context()
        rclpy.init(args=None, context=self.context)
        self.node = rclpy.create_node('crossview_doctor', context=self.context)
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)

    def __enter__(self) -> 'Listener':
        return self

    def __exit__(self, *_) -> None:
        import rclpy
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self.context)

    def spin(self, seconds: float, done=lambda: False) -> bool:
        """Serve callbacks for so long or until it is done; return whether it is."""
        end_s = time.monotonic() + seconds
        while not done() and time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.05)
        return done()

    def localizer_runs(self) -> bool:
        return (LOCALIZER, self.namespace or '/') in self.node.get_node_names_and_namespaces()

    def localizer_inputs(self) -> dict[str, tuple[str, str]]:
        """The localizer's own sensor topics: role -> (topic, type)."""
        from rclpy.node import NodeNameNonExistentError
        try:
            subscribed = self.node.get_subscriber_names_and_types_by_node(
                LOCALIZER, self.namespace or '/')
        except NodeNameNonExistentError:    # it has just ended
            return {}
        return {ROLES[types[0]]: (topic, types[0]) for topic, types in subscribed
                if types[0] in ROLES}

    def parameters(self, seconds: float) -> dict[str, object]:
        """The localizer's parameters that matter here; empty if it does not answer."""
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python
        client = self.node.create_client(
            GetParameters, f'{self.namespace}/{LOCALIZER}/get_parameters')
        if not self.spin(seconds, client.service_is_ready):
            return {}
        # One by one: a single parameter without a value leaves the whole answer empty.
        futures = {name: client.call_async(GetParameters.Request(names=[name]))
                   for name in PARAMETERS}
        self.spin(seconds, lambda: all(future.done() for future in futures.values()))
        return {name: parameter_value_to_python(future.result().values[0])
                for name, future in futures.items()
                if future.done() and future.result().values}


@dataclass
class Heard:
    """What came in on one topic while the doctor listened."""

    count: int = 0
    last: object = None
    first_received_s: float = 0.0
    last_received_s: float = 0.0

    def add(self, msg) -> None:
        self.last_received_s = time.time()
        if not self.count:
            self.first_received_s = self.last_received_s
        self.count += 1
        self.last = msg

    def rate(self) -> str:
        seconds = self.last_received_s - self.first_received_s
        return f'{(self.count - 1) / seconds:.1f} Hz' if seconds > 0.0 else 'one message'


def check_running_system(namespace: str, listen_s: float) -> Iterator[Finding]:
    """Topics, QoS, transforms, clocks and what the node itself says."""
    if missing_modules(ROS_PACKAGES):
        return
    with Listener(namespace) as listener:
        if not listener.spin(DISCOVERY_S, listener.localizer_runs):
            yield note(
                'node', f'{listener.namespace}/{LOCALIZER} is not running in domain '
                f'{os.environ.get("ROS_DOMAIN_ID", "0")}: topics, transforms and clocks are not '
                'checked', 'start it and the sensors, then run doctor again in the same domain')
            return
        parameters = listener.parameters(DISCOVERY_S)
        # They are discovered one by one.
        needed = set(ROLES.values()) - set(OPTIONAL_ROLES)
        listener.spin(DISCOVERY_S, lambda: needed <= set(listener.localizer_inputs()))
        inputs = listener.localizer_inputs()
        if not inputs:
            yield problem(
                'node', 'runs, but listens to nothing: it is not configured',
                'wait if it still loads its map; else ros2 lifecycle set /crossview_localizer '
                'configure and activate, or autostart: true; its log says why if that failed')
        else:
            yield ok('node', f'{listener.namespace}/{LOCALIZER} runs')
        yield from _check_topics(listener, inputs, parameters, listen_s)


def _check_topics(listener: Listener, inputs, parameters, listen_s: float) -> Iterator[Finding]:
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from rosgraph_msgs.msg import Clock
    from tf2_msgs.msg import TFMessage

    from crossview_localizer.play_bag import message_class
    from crossview_localizer.ros.sensor_rig import StaticTransforms

    best_effort = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
    latched = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    heard = {role: Heard() for role in (*inputs, 'clock', 'diagnostics', 'tf')}
    transforms = StaticTransforms()
    moving = set()          # child frames on /tf

    def on_tf(msg):
        heard['tf'].add(msg)
        moving.update(t.child_frame_id.lstrip('/') for t in msg.transforms)

    create = listener.node.create_subscription
    for role, (topic, kind) in inputs.items():
        create(message_class(kind), topic, heard[role].add, best_effort)
    create(Clock, '/clock', heard['clock'].add, best_effort)
    create(DiagnosticArray, '/diagnostics', heard['diagnostics'].add, 10)
    create(TFMessage, '/tf_static', transforms.add, latched)
    create(TFMessage, '/tf', on_tf, best_effort)
    needed = [role for role in inputs if role not in OPTIONAL_ROLES]
    listener.spin(DISCOVERY_S, lambda: all(heard[role].count for role in needed))
    listener.spin(listen_s)

    for role, (topic, kind) in sorted(inputs.items()):
        yield _check_input(listener, role, topic, kind, heard[role], parameters, listen_s)
    use_sim_time = bool(parameters.get('use_sim_time', False))
    yield _check_clock(use_sim_time, heard, inputs)
    yield from _check_transforms(transforms, moving, heard, inputs, parameters)
    yield from _node_says(heard['diagnostics'].last, listener)


def _check_input(listener, role, topic, kind, heard, parameters, listen_s) -> Finding:
    publishers = listener.node.get_publishers_info_by_topic(topic)
    if not publishers:
        near = [name for name, types in listener.node.get_topic_names_and_types()
                if kind in types and listener.node.count_publishers(name)]
        hint = f'; {kind} is published on {", ".join(near)}' if near else ''
        if role in OPTIONAL_ROLES:
            return note(role, f'nobody publishes {topic}, which is optional{hint}',
                        f'where the receiver gives its velocity: -r {role}:=TOPIC')
        return problem(role, f'nobody publishes {topic}{hint}',
                       f'start the sensor or the bag, or remap: -r {role}:=TOPIC; compare '
                       'ROS_DOMAIN_ID on both sides')
    types = {info.topic_type for info in publishers}
    if kind not in types:
        return problem(role, f'{topic} carries {", ".join(sorted(types))}; expected {kind}',
                       'set image_transport, or remap to the right topic')
    wants_reliable = parameters.get(
        'image_reliability' if role == 'image' else 'sensor_reliability') == 'reliable'
    if wants_reliable and any(_is_best_effort(info) for info in publishers):
        return problem(
            role, f'{topic} is published best effort, the node asks for reliable: nothing comes',
            f'set {"image" if role == "image" else "sensor"}_reliability to best_effort')
    if not heard.count:
        return problem(role, f'{topic} has a publisher, but nothing came within '
                       f'{DISCOVERY_S + listen_s:g} s',
                       'is it paused? raw images: see large images above')
    text = f'{topic}: {heard.rate()}'
    size = len(getattr(heard.last, 'data', b''))
    if size > SAFE_IMAGE_BYTES and check_dds_profile().verdict is not Verdict.OK:
        return note(role, f'{text}, {size / 1e6:.1f} MB each without a profile for large images',
                    'see large images above, or image_transport: compressed')
    return ok(role, text)


def _is_best_effort(info) -> bool:
    from rclpy.qos import ReliabilityPolicy
    return info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def _check_clock(use_sim_time: bool, heard: dict[str, Heard], inputs) -> Finding:
    """Stamps belong to the clock that the node reads."""
    clock = heard['clock']
    if use_sim_time and not clock.count:
        return problem('clock', 'use_sim_time is true and nothing comes on /clock',
                       'play the bag with --clock 100, or set use_sim_time to false')
    newest = max((heard[role] for role in inputs if heard[role].last is not None),
                 key=lambda item: item.last_received_s, default=None)
    if newest is None:
        return note('clock', 'no stamp to compare: no sensor was heard')
    stamp = newest.last.header.stamp
    now_s = newest.last_received_s
    if use_sim_time:
        now_s = clock.last.clock.sec + clock.last.clock.nanosec * 1e-9
    age_s = now_s - (stamp.sec + stamp.nanosec * 1e-9)
    which = '/clock' if use_sim_time else "this machine's clock"
    if abs(age_s) <= STALE_STAMP_S:
        return ok('clock', f'stamps are {age_s:.2f} s behind {which}')
    if clock.count and not use_sim_time:
        return problem('clock', f'stamps are {age_s:.0f} s behind {which}, and /clock runs',
                       'set use_sim_time to true for the node and for RViz')
    return problem('clock', f'stamps are {age_s:.1f} s behind {which}',
                   'synchronize the clocks (chrony, ptp), or play the bag with --clock 100 and '
                   'use_sim_time')


def _check_transforms(transforms, moving, heard, inputs, parameters) -> Iterator[Finding]:
    base = parameters.get('base_frame') or 'base_link'
    for role, what, parameter in (
            ('image', 'camera', 'camera_xyz_rpy'), ('gnss', 'antenna', 'antenna_xyz_m')):
        message = heard[role].last if role in heard else None
        if message is None:
            continue
        frame = (role == 'image' and parameters.get('camera_frame')) or message.header.frame_id
        if transforms.lookup(base, frame.lstrip('/')) is not None:
            yield ok(f'{what} extrinsics', f'/tf_static joins {base} and {frame}')
        elif parameters.get(parameter):
            yield ok(f'{what} extrinsics', f'from the parameter {parameter}')
        else:
            yield problem(
                f'{what} extrinsics', f'/tf_static does not join {base} and {frame!r}, and '
                f'{parameter} is not set',
                'publish it: ros2 run tf2_ros static_transform_publisher '
                f'--frame-id {base} --child-frame-id {frame or "FRAME"} --x X --y Y --z Z '
                f'--roll R --pitch P --yaw Y; or set {parameter}')
    if base not in moving:
        yield note('odometry TF', f'nobody publishes the transform of {base} on /tf: the '
                   'localizer does not need it, RViz and Nav2 do',
                   'let the odometry publish it, or set publish_odom_tf of the scene')


def _node_says(message, listener: Listener) -> Iterator[Finding]:
    """The node's own diagnostics, where they are not good."""
    if message is None:
        yield problem('diagnostics', 'none came: the node hangs, or is in another domain',
                      'look at the log of the node')
        return
    for status in message.status:
        if status.name.startswith(f'{LOCALIZER}: ') and status.level != b'\x00':
            make = problem if status.level == b'\x02' else note
            remedy = next((value.value for value in status.values if value.key == 'remedy'), '')
            yield make(f'node says of {status.name.split(": ", 1)[1]}', status.message,
                       remedy or 'see docs/troubleshooting.md')


# --- the command


def examine(args: argparse.Namespace) -> Iterator[Finding]:
    yield from check_libraries()
    yield from check_ros()
    yield from check_device(args.device)
    yield from check_weights_and_map(args.weights, args.map)
    if args.params_file:
        yield from check_parameters(args.params_file)
    if args.listen > 0:
        yield from check_running_system(args.namespace, args.listen)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='doctor',
        description='Check the installation, and the running localizer if there is one, and say '
        'what to do. Exit code 0: no problem, 1: problems, 2: wrong usage.',
        epilog='example: ros2 run crossview_localizer doctor --map oxford.map')
    parser.add_argument('--map', default='', metavar='MAP', help='embedding map to check')
    parser.add_argument('--weights', default='', help='network weights (default: those shipped)')
    parser.add_argument('--params-file', default='', metavar='YAML', help='parameters to check')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='where the network shall run (default: auto)')
    parser.add_argument('--namespace', default='', help='namespace of the running localizer')
    parser.add_argument('--listen', type=float, default=3.0, metavar='S',
                        help='listen to the running system for S seconds, 0: not at all '
                        '(default: %(default)g)')
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    problems = 0
    for finding in examine(args):
        print(f'{finding.verdict.value:8}{finding.part}: {finding.text}', flush=True)
        if finding.remedy:
            print(f'{"":8}-> {finding.remedy}', flush=True)
        problems += finding.verdict is Verdict.PROBLEM
    print(f'{problems} problem{"" if problems == 1 else "s"} found')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
