"""The rules of the architecture, read off the imports: who may import what, and when."""

import ast
from functools import cache
from pathlib import Path
import re
import sys

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = 'crossview_localizer'

# Folders and top-level files: each line may import itself and the lines above it.
ORDER = [
    # vocabulary
    ['command', 'config', 'datatypes', 'files', 'geometry', 'parameter_file', 'trajectory'],
    ['fusion', 'camera', 'networks', 'maps'],
    ['matching'],
    ['localizer'],
    ['bags', 'ros', 'evaluation'],
    ['COMMANDS'],                                           # every other top-level file
]
ROS_PLACES = {'ros', 'bags', 'COMMANDS'}
TORCH_PLACES = {'networks', 'maps', 'matching', 'build_map', 'export'}
ROS_PACKAGE = re.compile(
    r'(rclpy|ament_\w+|rosidl\w*|tf2\w*|cv_bridge|launch\w*|builtin_interfaces|rcl_interfaces|\w+_msgs'
    r'|\w+_srvs|message_filters|diagnostic_updater|rosbag2_py)$')
NOT_ON_A_GPU_MACHINE = {'rasterio', 'pyproj', 'filterpy', 'zarr'}


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


def place_of(module: str) -> str:
    """The folder, vocabulary file or command of a module, as ORDER names them."""
    name = module.removeprefix(f'{PACKAGE}.').partition('.')[0]
    return name if any(name in line for line in ORDER) else 'COMMANDS'


def line_of(module: str) -> int:
    return next(i for i, line in enumerate(ORDER) if place_of(module) in line)


PACKAGE_MODULES = [m for m in FILES if m.startswith(f'{PACKAGE}.')]


@pytest.mark.parametrize('module', PACKAGE_MODULES)
def test_dependencies_point_one_way(module):
    for name, _ in imports(module):
        assert top(name) not in ('training', 'benchmarks', 'test'), f'{module} imports {name}'
        if name.startswith(f'{PACKAGE}.'):
            assert line_of(name) <= line_of(module), f'{module} imports {name}, which is above it'


@pytest.mark.parametrize('module', PACKAGE_MODULES)
def test_no_module_imports_itself_by_way_of_others(module):
    assert module not in loaded_by(module)


@pytest.mark.parametrize('module', PACKAGE_MODULES)
def test_ros_and_torch_are_imported_only_where_they_belong(module):
    used = {top(imported) for imported, _ in imports(module)}
    if place_of(module) not in ROS_PLACES:
        assert not {package for package in used if ROS_PACKAGE.match(package)}
    if not {place_of(module), module.removeprefix(f'{PACKAGE}.')} & TORCH_PLACES:
        assert 'torch' not in used


@pytest.mark.parametrize(
    'module', [m for m in FILES if m.startswith(('training', f'{PACKAGE}.networks'))])
def test_training_loads_on_a_bare_gpu_machine(module):
    loaded = {top(name): by for name, by in loaded_by(module).items()}
    refused = {
        name: by for name, by in loaded.items()
        if name in NOT_ON_A_GPU_MACHINE or ROS_PACKAGE.match(name)
    }
    assert not refused, f'loaded, and by which module: {refused}'


# Import name -> rosdep key or PyPI name, where they differ.
KEY_OF = {'backports': 'backports.zstd', 'cv2': 'python3-opencv', 'yaml': 'python3-yaml'}
# In the standard library of a Python newer than this one.
STANDARD = {*sys.stdlib_module_names, 'compression'}
# Modules that work without these, or say how to install them.
OPTIONAL = {'distributed', 'faiss', 'onnxruntime', 'tensorflow'}


def required(name: str) -> set[str]:
    """PyPI names in a requirements file."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return {re.split(r'[<>=~!; ]', line)[0] for line in lines if line and line[0] != '#'}


def manifest_keys(tag: str) -> set[str]:
    return set(re.findall(rf'<{tag}>([^<]+)</', (REPOSITORY / 'package.xml').read_text()))


def packages_of(module: str) -> set[str]:
    """Top names of what a module imports, without the standard library and ours."""
    names = {top(name) for name, _ in imports(module)}
    return names - STANDARD - {PACKAGE, 'training', 'benchmarks'} - OPTIONAL


@pytest.mark.parametrize('module', FILES)
def test_every_import_is_declared_as_a_dependency(module):
    declared = manifest_keys('exec_depend') | required('requirements.txt')
    if not module.startswith(PACKAGE):
        declared |= manifest_keys('test_depend') | required('requirements-dev.txt')
    for package in packages_of(module):
        assert {KEY_OF.get(package, package), f'python3-{package}'} & declared, (
            f'{package} is in neither package.xml nor a requirements file')


def test_what_only_training_and_tests_need_is_no_runtime_requirement():
    used = set().union(*map(packages_of, PACKAGE_MODULES))
    assert required('requirements.txt') - {'setuptools'} <= {KEY_OF.get(p, p) for p in used}
    python_keys = {key for key in manifest_keys('exec_depend') if key.startswith('python3-')}
    assert python_keys <= {KEY_OF.get(package, f'python3-{package}') for package in used}
