"""All parameters of a vehicle: default, meaning, range, and the unit in the name.

The node declares its ROS parameters from these dataclasses, and a test checks ``config/*.yaml``
against them.  What belongs to a trained network (sizes, temperature, errors of its matches) is in
its weights file, see ``networks.checkpoint``.  A value that no user would change is a constant
beside the code that uses it.
"""

from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
import math
import os


def tunable(default, description: str, low=None, high=None, choices=None):
    """A dataclass field with the description and range that ``ros2 param describe`` shows."""
    return field(
        default=default,
        metadata={'description': description, 'low': low, 'high': high, 'choices': choices},
    )


@dataclass(frozen=True)
class FilterConfig:
    """The errors that the Kalman filter expects of the sensors."""

    buffer_s: float = tunable(
        2.0, 'late measurements within this time are replayed in order; older ones are refused',
        0.1, 30.0)
    odometry_position_noise: float = tunable(
        0.02, 'odometry position noise, metres of sigma per square root of a metre driven',
        0.0, 1.0)
    odometry_yaw_noise_rad: float = tunable(
        0.0015, 'odometry yaw noise, radians of sigma per square root of a metre driven', 0.0, 0.1)
    odometry_turn_noise_rad: float = tunable(
        0.01, 'odometry yaw noise, radians of sigma per square root of a radian turned', 0.0, 0.5)
    odometry_scale_sigma: float = tunable(
        0.015, 'sigma of the odometry scale error, a slowly varying state (0.01 is 1 percent)',
        0.0, 0.2)
    odometry_turn_bias_sigma_radps: float = tunable(
        0.0005, 'sigma of the yaw-rate bias of the odometry, a slowly varying state', 0.0, 0.1)
    idle_position_noise_m: float = tunable(
        0.02, 'position sigma added per square root of a second', 0.0, 1.0)
    idle_yaw_noise_rad: float = tunable(
        0.0005, 'yaw sigma added per square root of a second', 0.0, 0.1)
    gnss_bias_sigma_m: float = tunable(
        3.0, 'sigma of the slowly wandering GNSS error on each axis (Gauss-Markov); that a '
        'receiver is better is learned', 0.0, 50.0)
    gnss_bias_tau_s: float = tunable(
        60.0, 'correlation time of the wandering GNSS error', 1.0, 3600.0)
    gnss_sigma_floor_m: float = tunable(
        0.7, 'smallest white sigma believed of a GNSS fix, whatever it reports, until its '
        'receiver is found to be better', 0.01, 50.0)
    course_min_speed_mps: float = tunable(
        3.0, 'a GNSS course is used at this speed and above', 0.5, 50.0)
    match_sigma_floor_m: float = tunable(
        0.0, 'sigma of an error that all matches share on each axis of the map, as where the '
        'imagery is shifted: however many there are, the pose is believed no better', 0.0, 10.0)


@dataclass(frozen=True)
class MatchConfig:
    """How far from the prior an image is compared with the map."""

    window_min_m: float = tunable(15.0, 'smallest half width of the search window', 1.0, 200.0)
    window_max_m: float = tunable(
        60.0, 'a prior that asks for a larger half width gives no match', 5.0, 500.0)


@dataclass(frozen=True)
class CameraConfig:
    """What /tf_static and camera_info do not say about the camera."""

    height_m: float = tunable(
        1.52, 'height of the camera centre above the road (an estimate)', 0.1, 5.0)
    pitch_rad: float = tunable(
        0.0, 'correction to the camera pitch, positive nose down (an estimate)', -0.5, 0.5)


@dataclass(frozen=True)
class LocalizerConfig:
    """The parameters of the Localizer."""

    filter: FilterConfig = field(default_factory=FilterConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)


@dataclass(frozen=True)
class NodeConfig:
    """The parameters of the ROS node besides those of the Localizer."""

    map_path: str = tunable(
        '', 'embedding map made by build_map; empty: no matching, the prior alone is published')
    weights_path: str = tunable('', 'network weights; empty: those shipped with the package')
    device: str = tunable(
        'auto', 'device of the network; auto takes the GPU if there is one',
        choices=('auto', 'cpu', 'cuda'))
    torch_threads: int = tunable(
        1, 'threads of the network on the CPU; two on two busy cores can be far slower', 1, 64)
    onnx_path: str = tunable(
        'auto', 'ground branch of the weights, written by export: ONNX Runtime runs it, which is '
        'faster on a CPU; auto: exported on first use where ONNX Runtime is installed and the '
        'network runs on the CPU; empty: torch')
    precision: str = tunable(
        'float32', 'precision of the trunk of the dense ground branch in torch; half is for GPUs',
        choices=('float32', 'half'))
    autostart: bool = tunable(True, 'configure and activate without a lifecycle manager')
    image_transport: str = tunable(
        'raw', 'raw subscribes to image, compressed to image/compressed',
        choices=('raw', 'compressed'))
    image_reliability: str = tunable(
        'best_effort', 'QoS of the image subscription; reliable needs a reliable publisher',
        choices=('best_effort', 'reliable'))
    sensor_reliability: str = tunable(
        'best_effort', 'QoS of the camera_info, gnss, gnss_velocity and odometry subscriptions',
        choices=('best_effort', 'reliable'))
    gnss_velocity_type: str = tunable(
        'TwistWithCovarianceStamped', 'message on gnss_velocity, in geometry_msgs',
        choices=('TwistWithCovarianceStamped', 'TwistStamped'))
    image_is_rectified: bool = tunable(
        False, 'true for image_rect topics: P of camera_info is used and its distortion is not')
    map_frame: str = tunable('map', 'frame of the published poses')
    odom_frame: str = tunable(
        '', 'child frame of the published map->odom; empty: frame_id of the odometry')
    base_frame: str = tunable('base_link', 'vehicle frame: child frame of the odometry')
    camera_frame: str = tunable(
        '', 'optical frame of the camera on /tf_static; empty: frame_id of the image')
    camera_xyz_rpy: tuple[float, ...] = tunable(
        (), 'x, y, z (m) and roll, pitch, yaw (rad) in base_link of the camera body (x ahead, '
        'y left, z up), used where /tf_static has no camera; nan: unknown')
    antenna_xyz_m: tuple[float, ...] = tunable(
        (), 'GNSS antenna in base_link, used where /tf_static does not have it; nan: unknown')
    gnss_unknown_sigma_m: float = tunable(
        5.0, 'horizontal sigma assumed of fixes whose covariance is unknown, zero or NaN',
        0.1, 100.0)
    odometry_from_twist: bool = tunable(
        False, 'integrate the twist of the odometry (linear x and y, angular z, in base_link) '
        'instead of reading its pose, for sources that fill the twist alone')
    odometry_wait_s: float = tunable(
        0.1, 'an image waits this long for odometry that reaches its stamp, then it is '
        'processed with an extrapolated prior', 0.0, 1.0)
    transform_tolerance_s: float = tunable(
        0.1, 'map->odom is stamped this long after the odometry it belongs to', 0.0, 2.0)
    publish_tf: bool = tunable(True, 'publish the transform map->odom')
    input_timeout_s: float = tunable(
        2.0, 'an input silent for longer is reported in /diagnostics', 0.1, 60.0)
    ellipse_warn_m: float = tunable(
        10.0, "a longer half axis of the pose's 95 % ellipse is a warning in /diagnostics",
        0.1, 1000.0)
    ellipse_error_m: float = tunable(40.0, 'and above this an error', 0.1, 10000.0)
    last_pose_path: str = tunable(
        'auto', 'file in which the pose is kept for a node that is killed and started again; '
        "auto: below ROS_HOME (~/.ros), by the node's name; empty: none")
    last_pose_max_age_s: float = tunable(
        30.0, "a kept pose older than this, by the system's time or by stamps, is not used",
        0.0, 600.0)


# How many numbers the parameters that are lists have.
LIST_LENGTHS = {'camera_xyz_rpy': 6, 'antenna_xyz_m': 3}
# No sensor is mounted farther than this from base_link.
MAX_LEVER_M = 100.0
# Any mounting can be given with roll, pitch and yaw within these.
MAX_ANGLES_RAD = (2.0 * math.pi, 1.6, 2.0 * math.pi)


def flatten(config) -> dict[str, object]:
    """Dotted parameter names to values: ``{'filter.buffer_s': 2.0, ...}``."""
    flat = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            flat.update({f'{item.name}.{key}': inner for key, inner in flatten(value).items()})
        else:
            flat[item.name] = value
    return flat


def tunables(config) -> dict[str, tuple[object, dict]]:
    """Dotted parameter names to (value, metadata with description, low, high, choices)."""
    found = {}
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found.update({f'{item.name}.{key}': inner for key, inner in tunables(value).items()})
        else:
            found[item.name] = (value, dict(item.metadata))
    return found


def config_from_flat(cls, values: dict[str, object]):
    """Build a config from dotted names; a name may be left out, an unknown one is an error.

    Raises ValueError naming the key, what was found and what was expected.
    """
    known = tunables(cls())
    _require_known(values, known)
    for name, value in values.items():
        default, meta = known[name]
        if not _fits(value, default):
            raise ValueError(f'{name} is {value!r}; expected {_kind_name(default)}')
        too_low = meta['low'] is not None and not value >= meta['low']
        too_high = meta['high'] is not None and not value <= meta['high']
        if too_low or too_high:
            raise ValueError(f'{name} is {value!r}; expected {meta["low"]} to {meta["high"]}')
        if meta['choices'] and value not in meta['choices']:
            raise ValueError(f'{name} is {value!r}; expected one of {meta["choices"]}')
    return _build(cls, values)


def _require_known(values, known) -> None:
    if unknown := sorted(set(values) - set(known)):
        alike = get_close_matches(unknown[0], known, 1)
        raise ValueError(
            f'unknown parameter {unknown[0]!r}; {f"is it {alike[0]}? " if alike else ""}'
            f'expected one of: {", ".join(sorted(known))}')


def require_sim_time(value) -> None:
    """Raise ValueError where use_sim_time is no truth value: ROS takes it for false then."""
    if not isinstance(value, bool):
        raise ValueError(f'use_sim_time is {value!r}; expected true or false, without quotes')


def configs_from_parameters(values: dict[str, object]) -> tuple[NodeConfig, LocalizerConfig]:
    """Split dotted parameter names between the two configs.

    Raises ValueError for a name that neither has, or a value of the wrong type, range or length.
    """
    node_names = tunables(NodeConfig())
    _require_known(values, node_names | tunables(LocalizerConfig()))
    # ROS has no empty lists: numbers that are all NaN stand for one.
    values = {name: () if name in LIST_LENGTHS and _is_unknown(value) else value
              for name, value in values.items()}
    # No shell replaces the ~ in a parameter file.
    values |= {name: os.path.expanduser(value) for name, value in values.items()
               if name.endswith('_path') and isinstance(value, str)}
    node_config = config_from_flat(
        NodeConfig, {name: value for name, value in values.items() if name in node_names})
    for name in ('map_frame', 'odom_frame', 'base_frame', 'camera_frame'):
        frame = getattr(node_config, name)
        if frame.startswith('/') or not frame and name in ('map_frame', 'base_frame'):
            raise ValueError(
                f'{name} is {frame!r}; expected the name of a frame, in ROS 2 without a slash in '
                'front')
    if node_config.map_frame in (node_config.odom_frame, node_config.base_frame):
        raise ValueError(
            f'map_frame is {node_config.map_frame!r}, and so is odom_frame or base_frame; '
            'expected three different frames')
    for name, length in LIST_LENGTHS.items():
        found = getattr(node_config, name)
        if len(found) not in (0, length):
            raise ValueError(f'{name} has {len(found)} numbers; expected {length}')
        if not all(map(math.isfinite, found)):
            raise ValueError(f'{name} is {list(found)}; expected finite numbers, or nan for all')
        if any(abs(value) > most for value, most in zip(found, 3 * (MAX_LEVER_M,)
                                                        + MAX_ANGLES_RAD)):
            raise ValueError(
                f'{name} is {list(found)}; expected metres, up to {MAX_LEVER_M:g}'
                + (', and radians, the pitch within a quarter turn' if length > 3 else ''))
    return node_config, config_from_flat(
        LocalizerConfig,
        {name: value for name, value in values.items() if name not in node_names})


def _is_unknown(value) -> bool:
    return _fits(value, ()) and all(math.isnan(item) for item in value)


def _fits(value, default) -> bool:
    if isinstance(default, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(item, 0.0) for item in value)
    if isinstance(default, (bool, str)):
        return isinstance(value, type(default))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return isinstance(default, float) or float(value).is_integer()


def _kind_name(default) -> str:
    names = {bool: 'true or false', str: 'a text', int: 'a whole number', float: 'a number',
             tuple: 'a list of numbers'}
    return names[type(default)]


def _build(cls, values):
    arguments = {}
    for item in fields(cls):
        inner = {
            key.removeprefix(item.name + '.'): value
            for key, value in values.items() if key.startswith(item.name + '.')
        }
        if inner:
            arguments[item.name] = _build(item.default_factory, inner)
        elif item.name in values:
            kind = type(item.default)
            arguments[item.name] = kind(values[item.name])
    return cls(**arguments)
