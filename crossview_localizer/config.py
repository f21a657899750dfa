"""Every tunable, once: default, meaning, unit (in the name) and range.

The node declares its ROS parameters from these dataclasses and ``config/*.yaml`` is checked
against them by a test, so a parameter that no code reads cannot exist.  What belongs to a trained
network (input sizes, tile size, temperature) travels in its checkpoint: ``networks.ModelConfig``.
"""

from dataclasses import dataclass, field, fields, is_dataclass


def tunable(default, description: str, low=None, high=None, choices=None):
    return field(
        default=default,
        metadata={'description': description, 'low': low, 'high': high, 'choices': choices},
    )


@dataclass(frozen=True)
class FilterConfig:
    """The Kalman prior."""

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
    odometry_scale_tau_s: float = tunable(
        600.0, 'correlation time of the odometry scale error', 1.0, 100000.0)
    odometry_turn_bias_sigma_radps: float = tunable(
        0.0005, 'sigma of the yaw-rate bias of the odometry, a slowly varying state', 0.0, 0.1)
    odometry_turn_bias_tau_s: float = tunable(
        300.0, 'correlation time of the yaw-rate bias', 1.0, 100000.0)
    odometry_speed_noise_mps: float = tunable(
        0.2, 'sigma of the speed that an odometry increment tells', 0.01, 10.0)
    odometry_max_speed_mps: float = tunable(
        60.0, 'a faster step of the odometry is a jump: its increment is not used', 1.0, 200.0)
    odometry_max_turn_radps: float = tunable(
        3.0, 'a faster turn of the odometry is a jump: its increment is not used', 0.1, 20.0)
    odometry_max_gap_s: float = tunable(
        1.0, 'with neither odometry nor a fix or match for this long the pose is no longer '
        'extrapolated but held; an increment over more is a gap', 0.1, 10.0)
    odometry_bridge_s: float = tunable(
        10.0, 'an increment over a gap up to this long is used where its speed is plausible, over '
        'a longer one not', 0.1, 60.0)
    odometry_max_accel_mps2: float = tunable(
        5.0, 'over a gap the mean speed may differ from the speed before by this times half the '
        'gap', 0.1, 20.0)
    odometry_lost_s: float = tunable(
        60.0, 'fixes and matches this much newer than the last odometry are refused', 1.0, 3600.0)
    coast_speed_noise_mps: float = tunable(
        1.0, 'speed sigma added per square root of a second without odometry', 0.0, 20.0)
    coast_hold_speed_mps: float = tunable(
        5.0, 'past odometry_max_gap_s the position sigma grows by the last speed, or this where '
        'it is more', 0.0, 60.0)
    coast_yaw_noise_radps: float = tunable(
        0.1, 'yaw sigma a second without odometry', 0.0, 2.0)
    idle_position_noise_m: float = tunable(
        0.02, 'sigma added per square root of a second, moving or not', 0.0, 1.0)
    idle_yaw_noise_rad: float = tunable(
        0.0005, 'yaw sigma added per square root of a second', 0.0, 0.1)
    gnss_bias_sigma_m: float = tunable(
        3.0, 'sigma of the slowly wandering GNSS error on each axis (Gauss-Markov)', 0.0, 50.0)
    gnss_bias_tau_s: float = tunable(
        60.0, 'correlation time of the wandering GNSS error', 1.0, 3600.0)
    gnss_sigma_floor_m: float = tunable(
        0.7, 'smallest white sigma believed of a GNSS fix, whatever it reports', 0.01, 50.0)
    gnss_gate_probability: float = tunable(
        0.99, 'GNSS fixes outside this share of the predicted distribution are refused', 0.5, 1.0)
    gnss_gate_patience_s: float = tunable(
        10.0, 'after this long of refused fixes the GNSS bias is opened again or, with no match '
        'used for as long, the pose', 0.5, 600.0)
    gnss_alarm_probability: float = tunable(
        0.9999, 'fixes outside this share of what odometry and matches alone predict, or of a '
        'plausible step from the fix before, make GNSS distrusted', 0.9, 1.0)
    gnss_memory_s: float = tunable(
        30.0, 'that prediction has used no fix for between once and twice this long', 1.0, 600.0)
    gnss_memory_yaw_sigma_rad: float = tunable(
        0.03, 'and starts only from a heading as certain as this', 0.001, 0.5)
    gnss_jump_m: float = tunable(
        15.0, 'a step shorter than this, as reflections make, is refused but alarms nobody',
        0.0, 1000.0)
    gnss_distrust_s: float = tunable(
        300.0, 'distrusted fixes are refused until they agree again for gnss_gate_patience_s, at '
        'most this long', 1.0, 3600.0)
    course_min_speed_mps: float = tunable(
        3.0, 'a GNSS course is used at this speed and above', 0.5, 50.0)
    course_sigma_floor_rad: float = tunable(
        0.02, 'smallest sigma believed of a GNSS course', 0.001, 0.5)
    course_delay_s: float = tunable(
        0.3, 'courses lag behind by some such time: the turn meanwhile is added to their sigma',
        0.0, 5.0)
    course_correlation_s: float = tunable(
        1.0, 'courses closer in time than this share their errors: their information is scaled '
        'by time over this length', 0.0, 60.0)
    match_gate_probability: float = tunable(
        0.99, 'matches outside this share of the predicted distribution are refused', 0.5, 1.0)
    match_sigma_floor_m: float = tunable(
        0.3, 'smallest position sigma believed of a match', 0.01, 10.0)
    match_yaw_sigma_floor_rad: float = tunable(
        0.01, 'smallest yaw sigma believed of a match', 0.0001, 1.0)
    match_inflation: float = tunable(
        1.0, 'factor on every match covariance (fitted on validation drives)', 0.1, 100.0)
    match_tail_dof: float = tunable(
        4.0, 'matches have the tails of a Student t with so many degrees of freedom; large: '
        'Gaussian', 1.0, 1e6)
    match_surprise_s: float = tunable(
        5.0, 'over this time the mean squared Mahalanobis distance of matches is followed; where '
        'it is above one a coordinate it multiplies their covariance', 0.1, 600.0)
    match_correlation_m: float = tunable(
        15.0, 'matches closer together than this along the road share their errors: their '
        'information is scaled by distance driven over this length', 0.0, 100.0)
    match_correlation_s: float = tunable(
        5.0, 'the same when standing still: information is scaled by time over this length',
        0.0, 60.0)
    start_distance_m: float = tunable(
        8.0, 'the heading is found by aligning odometry and GNSS over at least this distance',
        1.0, 100.0)
    start_yaw_sigma_rad: float = tunable(
        0.2, 'and over more, until its sigma is below this', 0.01, 0.5)
    lost_yaw_sigma_rad: float = tunable(
        0.7, 'a heading less certain than this after a gap of odometry is found anew', 0.3, 1.5)


@dataclass(frozen=True)
class MatchConfig:
    """The search window and what is made of the heat map."""

    window_sigmas: float = tunable(
        3.0, 'half width of the search window in sigmas of the prior', 3.0, 10.0)
    window_min_m: float = tunable(15.0, 'smallest half width of the search window', 1.0, 200.0)
    window_max_m: float = tunable(
        60.0, 'a prior that asks for a larger half width gives no match', 5.0, 500.0)
    min_coverage: float = tunable(
        0.5, 'share of the window that must hold map tiles', 0.0, 1.0)
    refine: int = tunable(
        4, 'steps per tile spacing to which the scores are interpolated', 1, 16)
    max_edge_mass: float = tunable(
        0.5, 'more probability than this at the window edge makes the match ambiguous', 0.0, 1.0)
    reference_inflation: float = tunable(
        3.0, 'the heat map is read under a Gaussian this many times wider than the prior, which '
        'is divided out again', 1.0, 10.0)
    reference_floor_m: float = tunable(
        1.0, 'sigma added to that Gaussian on each axis', 0.0, 50.0)
    reference_floor_rad: float = tunable(
        0.02, 'sigma added to its heading (dense matcher)', 0.0, 1.0)
    edge_m: float = tunable(
        1.0, 'width of the edge of the search window (dense matcher)', 0.1, 10.0)
    yaw_step_rad: float = tunable(
        0.035, 'step of the headings that the dense matcher tries', 0.005, 0.2)
    yaw_min_rad: float = tunable(
        0.07, 'it tries at least this far each way from the heading of the prior', 0.01, 0.5)
    yaw_max_rad: float = tunable(
        0.28, 'and at most this far', 0.01, 1.6)
    min_information_nats: float = tunable(
        0.05, 'a heat map that narrows that Gaussian by less than this gives no update', 0.0, 10.0)

    def half_width_m(self, covariance) -> float:
        """How far the search window of a prior with this (3, 3) covariance reaches each way."""
        sigma_m = float(max(covariance[0][0], covariance[1][1])) ** 0.5
        return max(self.window_min_m, self.window_sigmas * sigma_m)


@dataclass(frozen=True)
class HypothesesConfig:
    """The search for a pose among many, where the Kalman prior has none to start from."""

    cell_m: float = tunable(2.0, 'spacing of the positions that are held', 0.25, 20.0)
    headings: int = tunable(48, 'headings that are held, evenly round the circle', 8, 360)
    outlier_share: float = tunable(
        0.2, 'share of the heat maps that say nothing of the true pose', 0.001, 0.9)
    correlation_m: float = tunable(
        15.0, 'heat maps closer together than this along the road share their errors, as in '
        'filter.match_correlation_m', 0.0, 100.0)
    drift_share: float = tunable(
        0.05, 'blur of every hypothesis, metres of sigma a metre driven: the spacing of the '
        'headings and the odometry', 0.0, 1.0)
    mode_radius_m: float = tunable(
        10.0, 'hypotheses this near to the best, with a heading at most two steps off, are one',
        1.0, 100.0)
    win_probability: float = tunable(
        0.95, 'the best one wins once it holds this much of the probability', 0.5, 1.0)
    win_distance_m: float = tunable(
        20.0, 'and has held it for this long on the road', 0.0, 1000.0)
    radius_m: float = tunable(
        100.0, 'farthest that a pose is searched from where it was taken to be', 10.0, 500.0)
    after_s: float = tunable(
        20.0, 'the search begins once matches have been distrusted for this long', 0.0, 3600.0)
    step_m: float = tunable(4.0, 'distance driven between two frames of the search', 0.0, 100.0)
    step_s: float = tunable(
        0.9, 'time between two frames of the search: each costs 0.3 s of a core', 0.0, 100.0)


@dataclass(frozen=True)
class TrustConfig:
    """Whether the images belong to the map beneath the pose (see ``match_trust``)."""

    mean_s: float = tunable(
        5.0, 'the evidence of the frames is averaged over this time', 0.1, 600.0)
    outlier_share: float = tunable(
        0.05, 'share of right frames that say nothing, or something wrong', 0.001, 0.9)
    distrust_nats: float = tunable(
        -0.1, 'a mean evidence below this: the images are taken to be of another place and their '
        'matches are not used', -10.0, 10.0)
    trust_nats: float = tunable(
        1.2, 'matches are used again once the mean evidence is above this', -10.0, 10.0)
    retry_s: float = tunable(
        10.0, 'how often distrusted matches are tried anew from the pose without them, and how '
        'often a pose that images leave no doubt of is kept to fall back on', 1.0, 600.0)


@dataclass(frozen=True)
class CameraConfig:
    """Where the camera is, where /tf_static and camera_info do not say."""

    height_m: float = tunable(
        1.52, 'height of the camera centre above the road (an estimate)', 0.1, 5.0)
    pitch_rad: float = tunable(
        0.0, 'correction to the camera pitch, positive nose down (an estimate)', -0.5, 0.5)


@dataclass(frozen=True)
class LocalizerConfig:
    """All that the Localizer reads."""

    filter: FilterConfig = field(default_factory=FilterConfig)
    match: MatchConfig = field(default_factory=MatchConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    search: HypothesesConfig = field(default_factory=HypothesesConfig)
    camera: CameraConfig = field(default_factory=CameraConfig)


@dataclass(frozen=True)
class NodeConfig:
    """What only the ROS node reads; the localizer's own tunables are parameters beside these."""

    map_path: str = tunable(
        '', 'embedding map made by build_map; empty: no matching, the prior alone is published')
    weights_path: str = tunable('', 'network weights; empty: those shipped with the package')
    device: str = tunable(
        'auto', 'where the network runs; auto takes the GPU where there is one',
        choices=('auto', 'cpu', 'cuda'))
    torch_threads: int = tunable(
        1, 'threads of the network on the CPU; two on two busy cores can be far slower', 1, 64)
    onnx_path: str = tunable(
        '', 'ground branch of the same weights that export wrote: ONNX Runtime runs it, on a CPU '
        'in less time; empty: torch')
    precision: str = tunable(
        'float32', "of the dense matcher's trunk by torch; half is for GPUs, where the ground "
        'branch is recorded as a CUDA graph', choices=('float32', 'half'))
    autostart: bool = tunable(True, 'configure and activate without a lifecycle manager')
    image_transport: str = tunable(
        'raw', 'raw subscribes to image, compressed to image/compressed',
        choices=('raw', 'compressed'))
    image_reliability: str = tunable(
        'best_effort', 'QoS of the image subscription; reliable needs a reliable publisher',
        choices=('best_effort', 'reliable'))
    sensor_reliability: str = tunable(
        'best_effort', 'QoS of the gnss, gnss_velocity and odometry subscriptions',
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
        'y left, z up), used where /tf_static has no camera; empty: unknown')
    antenna_xyz_m: tuple[float, ...] = tunable(
        (), 'GNSS antenna in base_link, used where /tf_static does not have it; empty: unknown')
    gnss_unknown_sigma_m: float = tunable(
        5.0, 'horizontal sigma assumed of fixes whose covariance is unknown, zero or NaN',
        0.1, 100.0)
    gnss_velocity_unknown_sigma_mps: float = tunable(
        0.3, 'sigma on each axis assumed of GNSS velocities whose covariance is unknown, zero or '
        'NaN', 0.01, 10.0)
    odometry_wait_s: float = tunable(
        0.1, 'an image waits this long for odometry that reaches its stamp, then it is '
        'processed with an extrapolated prior', 0.0, 1.0)
    settle_s: float = tunable(
        0.005, 'and this long more for GNSS of the same instant', 0.0, 0.5)
    transform_tolerance_s: float = tunable(
        0.1, 'map->odom is stamped this long after the odometry it belongs to', 0.0, 2.0)
    publish_tf: bool = tunable(True, 'publish the transform map->odom')
    input_timeout_s: float = tunable(
        2.0, 'an input silent for longer is reported in /diagnostics', 0.1, 60.0)
    ellipse_warn_m: float = tunable(
        10.0, "a longer half axis of the pose's 95 % ellipse is a warning in /diagnostics",
        0.1, 1000.0)
    ellipse_error_m: float = tunable(40.0, 'and above this an error', 0.1, 10000.0)
    gnss_sigma_warn_m: float = tunable(
        30.0, 'fixes that claim a larger horizontal sigma are a warning in /diagnostics',
        0.1, 10000.0)
    image_min_contrast: float = tunable(
        3.0, 'an image whose grey levels have a smaller standard deviation shows nothing (lens '
        'covered, black) and is not matched', 0.0, 50.0)
    image_max_clipped: float = tunable(
        0.97, 'an image with a larger share of black or white pixels is not matched', 0.1, 1.0)
    last_pose_path: str = tunable(
        'auto', 'file in which the pose is kept for a node that is killed and started again; '
        "auto: below ROS_HOME (~/.ros), by the node's name; empty: none")
    last_pose_max_age_s: float = tunable(
        30.0, "a kept pose older than this, by the system's time or by stamps, is not used",
        0.0, 600.0)


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
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(
            f'unknown parameter {unknown[0]!r}; expected one of: {", ".join(sorted(known))}')
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


def configs_from_parameters(values: dict[str, object]) -> tuple[NodeConfig, LocalizerConfig]:
    """Split dotted parameter names between the two configs.

    Raises ValueError for a name that neither has, or a value of the wrong type, range or length.
    """
    node_names = tunables(NodeConfig())
    node_config = config_from_flat(
        NodeConfig, {name: value for name, value in values.items() if name in node_names})
    for name, length in (('camera_xyz_rpy', 6), ('antenna_xyz_m', 3)):
        found = len(getattr(node_config, name))
        if found not in (0, length):
            raise ValueError(f'{name} has {found} numbers; expected {length}')
    return node_config, config_from_flat(
        LocalizerConfig,
        {name: value for name, value in values.items() if name not in node_names})


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
