"""Checks an installation: libraries, ROS 2, its settings, weights, map and parameters.

At load this file imports only the standard library: the checks also work if everything else is
missing.
"""

from collections.abc import Iterator
import importlib
from importlib import metadata
import os
from pathlib import Path
import shutil
from xml.etree import ElementTree

from crossview_localizer.ros.findings import Finding, note, ok, problem

ROS_PACKAGES = (
    'rclpy', 'builtin_interfaces.msg', 'diagnostic_msgs.msg', 'geographic_msgs.msg',
    'geometry_msgs.msg', 'lifecycle_msgs.srv', 'nav_msgs.msg', 'rosgraph_msgs.msg',
    'sensor_msgs.msg', 'std_msgs.msg', 'std_srvs.srv', 'tf2_msgs.msg', 'visualization_msgs.msg',
)
LIBRARIES = (
    'numpy', 'cv2', 'scipy', 'yaml', 'pyproj', 'rasterio', 'filterpy', 'safetensors', 'rosbags',
    'tqdm', 'torch',
)
NODES = ('crossview_localizer', 'crossview_scene', 'wheel_odometry')
DISCOVERY_RANGES = ('SUBNET', 'LOCALHOST', 'OFF', 'SYSTEM_DEFAULT')
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
# These distributions read the second name, later ones the first.
DISTRIBUTIONS_WITH_OLD_NAME = ('humble', 'iron', 'jazzy')
LARGE_SEGMENT_BYTES = 16 * 2**20
# The largest image that arrived with the defaults of Fast DDS; at 600 kB most were lost.
SAFE_IMAGE_BYTES = 450_000


def missing_modules(names) -> list[str]:
    """The modules that cannot be imported."""
    missing = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # a damaged installation, or one for another numpy, may raise anything
            missing.append(name)
    return missing


def check_libraries() -> Iterator[Finding]:
    """Check that every Python library besides ROS can be imported."""
    if missing := missing_modules(LIBRARIES):
        yield problem(
            'libraries', f'cannot be imported: {", ".join(missing)}',
            'in the repository: make env && source .venv/ros_env.bash; in a workspace: activate '
            'its virtual environment, pip install -r requirements.txt and rosdep install')
        return
    yield ok('libraries', f'{len(LIBRARIES)} found, torch {metadata.version("torch")}')


def check_ros() -> Iterator[Finding]:
    """Check that ROS 2 and its interface packages can be imported, and large images arrive."""
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
             f'discovery {discovery_range()}')
    if rmw == 'rmw_fastrtps_cpp':
        yield check_dds_profile()
    else:
        yield note('large images', f'{rmw} was never tried; the hints here are for Fast DDS',
                   'set RMW_IMPLEMENTATION=rmw_fastrtps_cpp, which was tested')


def discovery_range() -> str:
    """The range of discovery in force, and the setting that makes it so."""
    if os.environ.get('ROS_LOCALHOST_ONLY') == '1':
        return ('LOCALHOST (by ROS_LOCALHOST_ONLY=1, which wins over '
                'ROS_AUTOMATIC_DISCOVERY_RANGE)')
    named = os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE') or 'SUBNET'
    if named not in DISCOVERY_RANGES:   # as rcl does it
        return (f'LOCALHOST (ROS_AUTOMATIC_DISCOVERY_RANGE={named} is none of '
                f'{", ".join(DISCOVERY_RANGES)})')
    return named


def distribution() -> str:
    """The ROS distribution that is sourced, or that of the installed wheels."""
    if name := os.environ.get('ROS_DISTRO'):
        return name
    for name in ('kilted', 'jazzy'):
        try:
            return f'{name} (wheels, rclpy {metadata.version(f"ros-{name}-rclpy")})'
        except metadata.PackageNotFoundError:
            continue
    return 'unknown distribution'


def check_dds_profile() -> Finding:
    """Check that the Fast DDS profile can be read and gives shared memory for large images."""
    remedy = ('export FASTDDS_DEFAULT_PROFILES_FILE (Jazzy: FASTRTPS_DEFAULT_PROFILES_FILE) = '
              'config/fastdds_large_images.xml of this package, for every process that sends raw '
              'images; robotcar.launch.py does it')
    variable = PROFILE_VARIABLES[distribution().split()[0] in DISTRIBUTIONS_WITH_OLD_NAME]
    path = os.environ.get(variable)
    if not path:
        others = [name for name in PROFILE_VARIABLES if name != variable and name in os.environ]
        if others:
            return problem('large images', f'{others[0]} is set, but {distribution()} reads '
                           f'{variable}', remedy)
        return note('large images', f'{variable} is not set: raw images above '
                    f'{SAFE_IMAGE_BYTES // 1000} kB are lost; JPEG images arrive', remedy)
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
            f'{max(segments) / 2**20:.0f} MiB for each process',
            'in a container: --ipc=host or --shm-size=1g; else delete what fills /dev/shm')
    return ok('large images', f'{path} gives {max(segments) / 2**20:.0f} MiB of shared memory')


def free_bytes(folder: Path) -> int | None:
    """Free space in a folder; None if there is no such folder."""
    return shutil.disk_usage(folder).free if folder.is_dir() else None


def check_device(device: str) -> Iterator[Finding]:
    """Check that the network can run on the wanted device."""
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
    """Check that both can be read, and that the map was built with these weights."""
    if missing_modules([*LIBRARIES, *([] if weights else ROS_PACKAGES)]):
        return
    from crossview_localizer.maps.embedding_map import EmbeddingMap
    from crossview_localizer.networks.checkpoint import load_network
    fingerprint = None
    try:
        if not weights:
            from crossview_localizer.ros.localizer_holder import shipped_weights
            weights = shipped_weights()
        network = load_network(weights, 'cpu')
        fingerprint = network.fingerprint
        yield ok('weights', f'{weights} ({fingerprint[:12]})')
    except (ValueError, OSError, RuntimeError) as error:
        yield problem('weights', str(error), 'give the file with --weights or weights_path; '
                      'copy it again if it is damaged')
    if not map_path:
        yield note('map', 'none is given: the prior alone is published',
                   'make one with build_map and give it with --map or map_path')
        return
    try:
        found = EmbeddingMap.open(map_path, 'cpu', fingerprint)
    except (ValueError, OSError) as error:
        yield problem('map', str(error), 'build the map with build_map and these weights')
        return
    area_km2 = len(found.tiles) * found.grid.cell_m**2 / 1e6
    yield ok('map', f'{map_path}: {len(found.tiles)} tiles, {area_km2:.2f} km2 about '
             f'latitude {found.frame.latitude_deg:.5f}, longitude {found.frame.longitude_deg:.5f}')


def check_parameters(path: str, namespace: str = '') -> Iterator[Finding]:
    """Check that ROS and the localizer accept every name and value of a parameter file.

    The localizer is that of ``namespace``; where that is empty, of any.
    """
    if missing_modules(['yaml', 'rosbags', *ROS_PACKAGES]):
        return
    from crossview_localizer.parameter_file import LOCALIZER, read_parameters, read_sections
    node = f'/{namespace.strip("/")}/{LOCALIZER}' if namespace.strip('/') else None
    try:
        sections = read_sections(path)
        read_parameters(path, node)
    except (ValueError, OSError) as error:
        yield problem('parameters', f'{path}: {error}',
                      'correct the name or the value; config.py lists all of them')
        return
    others = [section.key for section in sections if not any(
        section.may_apply_to(name) if node is None else section.applies_to(
            node.replace(LOCALIZER, name)) for name in NODES)]
    if others:
        yield note('parameters', f'{path}: {", ".join(others)} names no node of this package'
                   f'{node and " in namespace " + namespace or ""}',
                   f'where the localizer is meant: /**, {LOCALIZER} or /NAMESPACE/{LOCALIZER}')
    keys = [section.key for section in sections if section.may_apply_to(LOCALIZER)]
    only = '' if node or not all(key.count('/') > 1 and '*' not in key for key in keys) else (
        f'; they are those of {", ".join(keys)} alone')
    yield ok('parameters', f'{path}: every name and value is valid{only}')
