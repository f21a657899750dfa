"""What a ROS 2 workspace gets: commands, manifest, installed files."""

import importlib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
import re
import runpy
import subprocess
import sys
from unittest import mock
import xml.etree.ElementTree as ElementTree

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def setup_arguments() -> dict:
    """What setup.py hands to setuptools."""
    with mock.patch('setuptools.setup') as setup, mock.patch.object(sys, 'path', sys.path):
        runpy.run_path(str(REPOSITORY / 'setup.py'))
    return setup.call_args.kwargs


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)


def commands() -> dict[str, str]:
    entries = setup_arguments()['entry_points']['console_scripts']
    return dict(entry.split(' = ') for entry in entries)


COMMANDS = (
    'localizer_node', 'robotcar_to_bag', 'kitti_to_bag', 'build_map', 'map', 'play_bag',
    'record_bag', 'report', 'overlay', 'viewer_bag', 'scene', 'doctor', 'calibrate_camera',
    'export', 'wheel_odometry', 'adapt',
)


def test_every_tool_has_its_command():
    assert sorted(commands()) == sorted(COMMANDS)


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_has_a_main_and_a_help_with_an_example(ros, command, monkeypatch, capsys):
    module, _, function = commands()[command].partition(':')
    monkeypatch.setattr(sys, 'argv', [command, '--help'])
    with pytest.raises(SystemExit) as ended:
        getattr(importlib.import_module(module), function)()
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert command in printed and 'example' in printed


def test_the_manifest_is_format_3_and_agrees_with_setup_py():
    package = ElementTree.parse(REPOSITORY / 'package.xml').getroot()
    setup = setup_arguments()
    assert package.get('format') == '3'
    assert package.find('export/build_type').text == 'ament_python'
    assert package.find('name').text == setup['name'] == 'crossview_localizer'
    assert package.find('version').text == setup['version']
    assert ' '.join(package.find('description').text.split()) == setup['description']
    assert package.find('license').text == setup['license'] == 'Apache-2.0'
    assert package.find('maintainer').get('email') == setup['maintainer_email']
    depends = [(child.tag, child.text) for child in package if child.tag.endswith('depend')]
    assert len(depends) == len(set(depends))


def test_the_manifest_passes_the_parser_that_colcon_uses():
    catkin_pkg = pytest.importorskip('catkin_pkg.package')
    warnings = []
    package = catkin_pkg.parse_package(str(REPOSITORY), warnings=warnings)
    package.validate(warnings=warnings)
    assert not warnings


def test_launch_configuration_and_marker_are_installed():
    files = dict(setup_arguments()['data_files'])
    share = 'share/crossview_localizer'
    assert files['share/ament_index/resource_index/packages'] == ['resource/crossview_localizer']
    assert files[share] == ['package.xml']
    assert files[f'{share}/launch'] == ['launch/robotcar.launch.py']
    installed = {name for names in files.values() for name in names}
    for path in (REPOSITORY / 'config').rglob('*'):
        if path.is_file():
            assert str(path.relative_to(REPOSITORY)) in installed
    assert 'config/fastdds_large_images.xml' in installed
    assert all(Path(name).is_file() for name in installed)


def test_the_shipped_weights_are_installed_and_small(shipped_weights):
    installed = dict(setup_arguments()['data_files'])['share/crossview_localizer/config/weights']
    for path in shipped_weights:
        assert str(path.relative_to(REPOSITORY)) in installed
    assert max(path.stat().st_size for path in shipped_weights) <= 20e6


def test_there_is_no_project_table_that_breaks_colcon():
    text = (REPOSITORY / 'pyproject.toml').read_text()
    assert '[build-system]' in text
    assert not any(line.startswith('[project') for line in text.splitlines())


def test_the_optional_packages_of_setup_py_are_those_that_the_tests_install():
    wanted = {name for names in setup_arguments()['extras_require'].values() for name in names}
    assert wanted <= set((REPOSITORY / 'requirements-dev.txt').read_text().split())


def distribution_of(requirement: str) -> str:
    """The name in a requirement such as ``torch>=2; python_version < '3.12'``."""
    return re.split('[^A-Za-z0-9_.-]', requirement)[0]


def test_a_vehicle_installs_no_ray_caster_and_no_test_tools():
    def names(path: str) -> set[str]:
        lines = (REPOSITORY / path).read_text().splitlines()
        return {distribution_of(line) for line in lines if line and line[0] not in '#-'}

    wanted, installed = list(names('requirements.txt')), set()
    while wanted:
        name = wanted.pop()
        try:
            needs = requires(name) or []
        except PackageNotFoundError:  # for another version of Python or another system
            continue
        if name not in installed:
            installed.add(name)
            wanted += [distribution_of(need) for need in needs if 'extra ==' not in need]
    assert {'torch', 'filterpy', 'rosbags'} <= installed
    assert not installed & names('requirements-dev.txt')


def test_every_module_of_the_package_is_installed():
    folders = {path.parent for path in (REPOSITORY / 'crossview_localizer').rglob('*.py')}
    names = {'.'.join(folder.relative_to(REPOSITORY).parts) for folder in folders}
    assert set(setup_arguments()['packages']) == names


def test_colcon_builds_it_and_installs_executables_launch_and_configuration(ros, tmp_path):
    pytest.importorskip('colcon_core')
    built = subprocess.run(
        [sys.executable, '-m', 'colcon', '--log-base', tmp_path / 'log', 'build', '--base-paths',
         REPOSITORY, '--build-base', tmp_path / 'build', '--install-base', tmp_path / 'install'],
        capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    prefix = tmp_path / 'install/crossview_localizer'
    executables = {path.name for path in (prefix / 'lib/crossview_localizer').iterdir()}
    assert executables == set(COMMANDS)
    [template] = prefix.rglob('report.html.jinja')
    assert template.parent.name == 'evaluation'
    for names in dict(setup_arguments()['data_files']).values():
        for name in names:
            if not name.startswith('resource/'):
                assert (prefix / 'share/crossview_localizer' / name).read_bytes() \
                    == Path(name).read_bytes()
