"""Tunables: defaults, ranges and dotted names."""

from dataclasses import replace
import math
from pathlib import Path
import re

import pytest

from crossview_localizer.config import (
    config_from_flat,
    configs_from_parameters,
    FilterConfig,
    flatten,
    LocalizerConfig,
    MatchConfig,
    NodeConfig,
    tunables,
)
from crossview_localizer.parameter_file import read_parameters

PACKAGE = Path(__file__).resolve().parents[1] / 'crossview_localizer'


@pytest.mark.parametrize('cls', [LocalizerConfig, NodeConfig])
def test_flattening_and_building_again_gives_the_same_config(cls):
    assert config_from_flat(cls, flatten(cls())) == cls()


def test_a_changed_value_survives_the_round_trip():
    config = LocalizerConfig(filter=replace(FilterConfig(), buffer_s=5.5, gnss_bias_tau_s=12.0))
    flat = flatten(config)
    assert flat['filter.buffer_s'] == 5.5
    assert config_from_flat(LocalizerConfig, flat) == config


def test_a_parameter_that_is_not_given_keeps_its_default():
    config = config_from_flat(LocalizerConfig, {'match.window_max_m': 80.0})
    assert config == LocalizerConfig(match=replace(MatchConfig(), window_max_m=80.0))
    assert config_from_flat(LocalizerConfig, {}) == LocalizerConfig()


def test_a_whole_number_for_a_float_becomes_a_float():
    config = config_from_flat(FilterConfig, {'buffer_s': 3})
    assert config.buffer_s == 3.0 and isinstance(config.buffer_s, float)


def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown parameter 'filter\.bufer_s'") as raised:
        config_from_flat(LocalizerConfig, {'filter.bufer_s': 2.0})
    assert 'filter.buffer_s' in str(raised.value)


@pytest.mark.parametrize('name, meant', [
    ('map_pth', 'map_path'), ('camera_height_m', 'camera.height_m'),
    ('filter.bufer_s', 'filter.buffer_s')])
def test_the_name_that_was_meant_is_proposed_from_all_parameters_of_the_node(name, meant):
    with pytest.raises(ValueError, match=f"unknown parameter '{name}'; is it {meant}?"):
        configs_from_parameters({name: 1.0})


@pytest.mark.parametrize('name, value, expected', [
    ('camera_xyz_rpy', [1200.0, 0.0, 1400.0, 0.0, 0.0, 0.0], 'metres, up to 100, and radians'),
    ('camera_xyz_rpy', [1.2, 0.0, 1.4, 0.0, 3.0, 0.0], 'the pitch within a quarter turn'),
    ('camera_xyz_rpy', [1.2, 0.0, 1.4, 0.0, 0.0, -90.0], 'radians'),
    ('antenna_xyz_m', [0.0, 0.0, 1500.0], 'metres, up to 100'),
    ('map_frame', '/map', 'without a slash'), ('base_frame', '/base_link', 'without a slash'),
    ('camera_frame', '/camera', 'without a slash'), ('base_frame', '', 'the name of a frame')])
def test_a_mounting_in_other_units_and_a_frame_of_ros_1_are_refused(name, value, expected):
    with pytest.raises(ValueError, match=f'{name} is .*expected .*{expected}'):
        configs_from_parameters({name: value})


def test_a_camera_upside_down_that_looks_back_is_a_mounting_like_another():
    mounting = (1.2, 0.0, 1.4, math.pi, 0.05, -math.pi)
    assert configs_from_parameters({'camera_xyz_rpy': mounting})[0].camera_xyz_rpy == mounting


def test_the_home_folder_may_be_written_as_in_a_shell(monkeypatch):
    monkeypatch.setenv('HOME', '/home/car')
    config = configs_from_parameters({'map_path': '~/oxford.map', 'last_pose_path': 'auto'})[0]
    assert (config.map_path, config.last_pose_path) == ('/home/car/oxford.map', 'auto')


@pytest.mark.parametrize('name', ['filter', 'buffer_s', 'match.buffer_s'])
def test_a_name_must_be_the_full_dotted_one(name):
    with pytest.raises(ValueError, match='unknown parameter'):
        config_from_flat(LocalizerConfig, {name: 2.0})


@pytest.mark.parametrize('name, value, expected', [
    ('filter.buffer_s', 0.01, '0.1 to 30.0'),
    ('filter.buffer_s', 31.0, '0.1 to 30.0'),
    ('match.window_max_m', 501.0, '5.0 to 500.0'),
    ('filter.buffer_s', math.nan, '0.1 to 30.0'),
    ('filter.buffer_s', '2', 'a number'),
    ('filter.buffer_s', True, 'a number'),
    ('torch_threads', 2.5, 'a whole number'),
    ('torch_threads', 0, '1 to 64'),
])
def test_a_value_out_of_range_or_of_another_kind_is_an_error_that_says_what_fits(
    name, value, expected
):
    with pytest.raises(ValueError, match=re.escape(f'{name} is {value!r}; expected {expected}')):
        config_from_flat(LocalizerConfig if '.' in name else NodeConfig, {name: value})


@pytest.mark.parametrize('name, bound', [
    ('filter.buffer_s', 0.1), ('filter.buffer_s', 30.0), ('torch_threads', 1),
    ('torch_threads', 64)])
def test_the_bounds_themselves_are_allowed(name, bound):
    cls = LocalizerConfig if '.' in name else NodeConfig
    assert flatten(config_from_flat(cls, {name: bound}))[name] == bound


@pytest.mark.parametrize('name, value', [('device', 'tpu'), ('image_transport', 'theora')])
def test_a_choice_that_does_not_exist_is_an_error(name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}'; expected one of"):
        config_from_flat(NodeConfig, {name: value})


@pytest.mark.parametrize('cls', [LocalizerConfig, NodeConfig])
def test_every_tunable_is_described_and_its_default_fits_its_range(cls):
    for name, (default, meta) in tunables(cls()).items():
        assert meta['description'], name
        if isinstance(default, float):
            assert meta['low'] <= default <= meta['high'], name
        if meta['choices']:
            assert default in meta['choices'], name


def test_every_tunable_of_the_filter_is_read_by_it():
    source = ''.join(path.read_text() for path in (PACKAGE / 'fusion').glob('*.py'))
    unread = [name for name in flatten(FilterConfig()) if f'onfig.{name}' not in source]
    assert not unread


def test_the_parameter_file_of_the_node_gives_both_configs(tmp_path):
    path = tmp_path / 'parameters.yaml'
    path.write_text(
        '/**:\n  ros__parameters:\n    odometry_wait_s: 0.25\n    filter:\n      buffer_s: 3.0\n')
    node_config, config = read_parameters(path)
    assert node_config == NodeConfig(odometry_wait_s=0.25)
    assert config.filter.buffer_s == 3.0
    path.write_text('/**:\n  ros__parameters:\n    filter:\n      bufer_s: 3.0\n')
    with pytest.raises(ValueError, match=r'filter\.bufer_s'):
        read_parameters(path)
    path.write_text('localizer: {}\n')
    with pytest.raises(ValueError, match='not a parameter file'):
        read_parameters(path)
