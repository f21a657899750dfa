"""Checks a running system: topics, their QoS, clocks, transforms, and what the node reports.

This file imports ROS only inside functions: doctor checks first whether ROS is installed.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
import math
import os
import time

from crossview_localizer.ros.findings import Finding, note, ok, problem, Severity
from crossview_localizer.ros.installation_checks import check_dds_profile, SAFE_IMAGE_BYTES

STALE_STAMP_S = 2.0
# Fast DDS announces a process every 3 s.
DISCOVERY_S = 5.0
# Until each sensor has sent a message; then the listening begins.
FIRST_MESSAGES_S = 5.0
# The parameters of the running localizer that the checks need.
PARAMETERS = (
    'use_sim_time', 'base_frame', 'camera_frame', 'camera_xyz_rpy', 'antenna_xyz_m',
    'image_reliability', 'sensor_reliability',
)
LOCALIZER = 'crossview_localizer'
# Message type -> the input of the localizer that has this type.
ROLES = {
    'sensor_msgs/msg/Image': 'image', 'sensor_msgs/msg/CompressedImage': 'image',
    'sensor_msgs/msg/CameraInfo': 'camera_info', 'sensor_msgs/msg/NavSatFix': 'gnss',
    'geometry_msgs/msg/TwistWithCovarianceStamped': 'gnss_velocity',
    'geometry_msgs/msg/TwistStamped': 'gnss_velocity', 'nav_msgs/msg/Odometry': 'odometry',
}
OPTIONAL_ROLES = ('gnss_velocity',)


class Listener:
    """A node that inspects the ROS graph and listens to topics."""

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
        """Serve callbacks for so long or until ``done()`` is true; return whether it is."""
        end_s = time.monotonic() + seconds
        while not done() and time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.05)
        return done()

    def localizer_runs(self) -> bool:
        """Whether the localizer is in the ROS graph."""
        return (LOCALIZER, self.namespace or '/') in self.node.get_node_names_and_namespaces()

    def localizer_inputs(self) -> dict[str, tuple[str, str]]:
        """The localizer's own sensor topics: role -> (topic, type)."""
        from rclpy.node import NodeNameNonExistentError
        try:
            subscribed = self.node.get_subscriber_names_and_types_by_node(
                LOCALIZER, self.namespace or '/')
        except NodeNameNonExistentError:    # the localizer has just ended
            return {}
        return {ROLES[types[0]]: (topic, types[0]) for topic, types in subscribed
                if types[0] in ROLES}

    def parameters(self, seconds: float) -> dict[str, object]:
        """The localizer's PARAMETERS; empty if it does not answer."""
        from rcl_interfaces.srv import GetParameters
        from rclpy.parameter import parameter_value_to_python
        client = self.node.create_client(
            GetParameters, f'{self.namespace}/{LOCALIZER}/get_parameters')
        if not self.spin(seconds, client.service_is_ready):
            return {}
        # One request for each: one parameter without a value leaves the whole answer empty.
        futures = {name: client.call_async(GetParameters.Request(names=[name]))
                   for name in PARAMETERS}
        self.spin(seconds, lambda: all(future.done() for future in futures.values()))
        return {name: parameter_value_to_python(future.result().values[0])
                for name, future in futures.items()
                if future.done() and future.result().values}


@dataclass
class Heard:
    """What was received on one topic."""

    count: int = 0
    last: object = None
    first_received_s: float = 0.0
    last_received_s: float = 0.0

    def add(self, msg) -> None:
        """Count a message."""
        self.last_received_s = time.time()
        if not self.count:
            self.first_received_s = self.last_received_s
        self.count += 1
        self.last = msg

    def rate(self) -> str:
        """The rate as text."""
        seconds = self.last_received_s - self.first_received_s
        return f'{(self.count - 1) / seconds:.1f} Hz' if seconds > 0.0 else 'one message'


@dataclass
class Observation:
    """Everything that was received from a running system; inputs are role -> (topic, type)."""

    inputs: dict[str, tuple[str, str]]
    parameters: dict[str, object]
    heard: dict[str, Heard]
    static_transforms: object               # StaticTransforms
    transform_problems: set[str] = field(default_factory=set)
    moving_frames: set[str] = field(default_factory=set)    # child frames on /tf
    node_statuses: list | None = None       # DiagnosticStatus, the node's last


def check_running_system(namespace: str, listen_s: float) -> Iterator[Finding]:
    """Check a running localizer and its inputs."""
    with Listener(namespace) as listener:
        if not listener.spin(DISCOVERY_S, listener.localizer_runs):
            yield note(
                'node', f'{listener.namespace}/{LOCALIZER} is not running in domain '
                f'{os.environ.get("ROS_DOMAIN_ID", "0")}: topics, transforms and clocks are not '
                'checked', 'start it and the sensors, then run doctor again in the same domain')
            return
        parameters = listener.parameters(DISCOVERY_S)
        # Subscriptions are discovered one by one.
        needed = set(ROLES.values()) - set(OPTIONAL_ROLES)
        listener.spin(DISCOVERY_S, lambda: needed <= set(listener.localizer_inputs()))
        inputs = listener.localizer_inputs()
        if not inputs:
            yield problem(
                'node', 'it runs, but has no subscriptions: it is not configured',
                'wait if it still loads its map; else ros2 lifecycle set /crossview_localizer '
                'configure and activate, or autostart: true; its log says why if that failed')
        else:
            yield ok('node', f'{listener.namespace}/{LOCALIZER} runs')
        observation = observe(listener, inputs, parameters, listen_s)
        for role in sorted(inputs):
            yield check_input(listener, role, observation, listen_s)
        yield check_clock(observation)
        yield from check_transforms(observation)
        yield from check_node_statuses(observation)


def observe(
    listener: Listener, inputs: dict[str, tuple[str, str]], parameters: dict[str, object],
    listen_s: float,
) -> Observation:
    """Listen to all inputs, to /clock, the transforms and the node's own diagnostics."""
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rosgraph_msgs.msg import Clock
    from tf2_msgs.msg import TFMessage

    from crossview_localizer.bags.installed_types import message_class
    from crossview_localizer.ros.qos import latched_profile
    from crossview_localizer.ros.sensor_rig import StaticTransforms

    found = Observation(
        inputs, parameters, {role: Heard() for role in (*inputs, 'clock')}, StaticTransforms())

    def add_static_transforms(msg):
        try:
            found.static_transforms.add(msg)
        except ValueError as error:
            found.transform_problems.add(str(error))

    def add_moving_frames(msg):
        found.moving_frames.update(t.child_frame_id.lstrip('/') for t in msg.transforms)

    def add_diagnostics(msg):
        statuses = [s for s in msg.status if s.name.startswith(f'{LOCALIZER}: ')]
        found.node_statuses = statuses or found.node_statuses

    subscribe = listener.node.create_subscription
    best_effort = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)
    for role, (topic, kind) in inputs.items():
        subscribe(message_class(kind), topic, found.heard[role].add, best_effort)
    subscribe(Clock, '/clock', found.heard['clock'].add, best_effort)
    subscribe(DiagnosticArray, '/diagnostics', add_diagnostics, 10)
    subscribe(TFMessage, '/tf_static', add_static_transforms, latched_profile(100))
    subscribe(TFMessage, '/tf', add_moving_frames, best_effort)
    needed = [role for role in inputs if role not in OPTIONAL_ROLES]
    listener.spin(FIRST_MESSAGES_S, lambda: all(found.heard[role].count for role in needed))
    listener.spin(listen_s)
    return found


def check_input(
    listener: Listener, role: str, observation: Observation, listen_s: float,
) -> Finding:
    """Check that an input is published with the right type and QoS, and arrives."""
    (topic, kind), heard = observation.inputs[role], observation.heard[role]
    publishers = listener.node.get_publishers_info_by_topic(topic)
    if not publishers:
        others = [name for name, types in listener.node.get_topic_names_and_types()
                  if kind in types and listener.node.count_publishers(name)]
        hint = f'; {kind} is published on {", ".join(others)}' if others else ''
        if role in OPTIONAL_ROLES:
            return note(role, f'nobody publishes {topic}, which is optional{hint}',
                        f'if the receiver publishes its velocity: -r {role}:=TOPIC')
        return problem(role, f'nobody publishes {topic}{hint}',
                       f'start the sensor or the bag, or remap: -r {role}:=TOPIC; compare '
                       'ROS_DOMAIN_ID on both sides')
    types = {info.topic_type for info in publishers}
    if kind not in types:
        return problem(role, f'{topic} carries {", ".join(sorted(types))}; expected {kind}',
                       'set image_transport, or remap to the right topic')
    parameter = 'image_reliability' if role == 'image' else 'sensor_reliability'
    if observation.parameters.get(parameter) == 'reliable' and any(
            _is_best_effort(info) for info in publishers):
        return problem(
            role, f'{topic} is published best effort, the node asks for reliable: no message '
            'arrives',
            f'set {parameter} to best_effort')
    if not heard.count:
        return problem(role, f'{topic} has a publisher, but no message came within '
                       f'{FIRST_MESSAGES_S + listen_s:g} s',
                       'is it paused? for raw images see large images above')
    text = f'{topic}: {heard.rate()}'
    size = len(getattr(heard.last, 'data', b''))
    if size > SAFE_IMAGE_BYTES and check_dds_profile().severity is not Severity.OK:
        return note(role, f'{text}, {size / 1e6:.1f} MB each without a profile for large images',
                    'see large images above, or image_transport: compressed')
    return ok(role, text)


def check_clock(observation: Observation) -> Finding:
    """Check that the stamps of the sensors come from the clock that the node reads."""
    use_sim_time = bool(observation.parameters.get('use_sim_time', False))
    clock = observation.heard['clock']
    if use_sim_time and not clock.count:
        return problem('clock', 'use_sim_time is true and nothing comes on /clock',
                       'play the bag with --clock 100, or set use_sim_time to false')
    newest = max((observation.heard[role] for role in observation.inputs
                  if observation.heard[role].count),
                 key=lambda heard: heard.last_received_s, default=None)
    if newest is None:
        return note('clock', 'no stamp to compare: no sensor published anything')
    stamp = newest.last.header.stamp
    now_s = newest.last_received_s
    if use_sim_time:
        now_s = clock.last.clock.sec + clock.last.clock.nanosec * 1e-9
    age_s = now_s - (stamp.sec + stamp.nanosec * 1e-9)
    clock_name = '/clock' if use_sim_time else "this machine's clock"
    text = (f'stamps are {abs(age_s):.2f} s {"behind" if age_s >= 0.0 else "ahead of"} '
            f'{clock_name}')
    if abs(age_s) <= STALE_STAMP_S:
        return ok('clock', text)
    if clock.count and not use_sim_time:
        return problem('clock', f'{text}, and /clock runs',
                       'set use_sim_time to true for the node and for RViz')
    return problem('clock', text,
                   'synchronize the clocks (chrony, ptp), or play the bag with --clock 100 and '
                   'use_sim_time')


def check_transforms(observation: Observation) -> Iterator[Finding]:
    """Check that the mountings of camera and antenna are known, and base_link is on /tf."""
    for text in sorted(observation.transform_problems):
        yield problem('/tf_static', f'a transform is not valid: {text}',
                      'correct its publisher: a rotation is a quaternion that is not zero, and '
                      'every number is finite')
    base = observation.parameters.get('base_frame') or 'base_link'
    for role, what, parameter in (
            ('image', 'camera', 'camera_xyz_rpy'), ('gnss', 'antenna', 'antenna_xyz_m')):
        if role not in observation.inputs or not observation.heard[role].count:
            continue
        frame = observation.heard[role].last.header.frame_id
        if role == 'image':
            frame = observation.parameters.get('camera_frame') or frame
        if observation.static_transforms.lookup(base, frame.lstrip('/')) is not None:
            yield ok(f'{what} extrinsics', f'/tf_static joins {base} and {frame}')
        elif all(map(math.isfinite, observation.parameters.get(parameter) or [math.nan])):
            yield ok(f'{what} extrinsics', f'from the parameter {parameter}')
        else:
            yield problem(
                f'{what} extrinsics', f'/tf_static does not join {base} and {frame!r}, and '
                f'{parameter} is not set',
                'publish it: ros2 run tf2_ros static_transform_publisher '
                f'--frame-id {base} --child-frame-id {frame or "FRAME"} --x X --y Y --z Z '
                f'--roll R --pitch P --yaw Y; or set {parameter}')
    if base not in observation.moving_frames:
        yield note('odometry TF', f'nobody publishes the transform of {base} on /tf: the '
                   'localizer does not need it, RViz and Nav2 do',
                   'let the odometry publish it, or set publish_odom_tf of the scene '
                   '(publish_odom_tf:=true of the launch file)')


def check_node_statuses(observation: Observation) -> Iterator[Finding]:
    """Report each line of the node's own diagnostics that is not OK."""
    if observation.node_statuses is None:
        yield problem('diagnostics', 'none came: the node hangs, or is in another ROS domain',
                      'look at the log of the node')
        return
    for status in observation.node_statuses:
        if status.level == b'\x00':
            continue
        make = problem if status.level == b'\x02' else note
        remedy = next((value.value for value in status.values if value.key == 'remedy'), '')
        yield make(f'node says of {status.name.partition(": ")[2]}', status.message,
                   remedy or 'see docs/troubleshooting.md')


def _is_best_effort(info) -> bool:
    from rclpy.qos import ReliabilityPolicy
    return info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
