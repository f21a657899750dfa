"""The node's parameters: declared with description and range, checked, read when configured."""

from array import array
from pathlib import Path

import pytest

rclpy = pytest.importorskip('rclpy')

from rclpy.parameter import Parameter
import yaml

from crossview_localizer.config import (
    configs_from_parameters,
    LocalizerConfig,
    NodeConfig,
    tunables,
)
from crossview_localizer.parameter_file import read_parameters, ROS_PARAMETERS
from crossview_localizer.ros.parameters import NodeParameters, parameter_values

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture
def make_node(ros, own_domain):
    """make_node(**values) gives a node that was started with these parameters."""
    context = rclpy.Context()
    rclpy.init(context=context)
    nodes = []

    def make(**values):
        nodes.append(rclpy.create_node(
            'localizer', context=context, automatically_declare_parameters_from_overrides=True,
            parameter_overrides=[
                Parameter(name.replace('__', '.'), value=value)
                for name, value in values.items()]))
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()
    rclpy.try_shutdown(context=context)


def test_every_tunable_is_a_parameter_with_description_and_range(make_node):
    node = make_node()
    NodeParameters(node)
    expected = {**tunables(NodeConfig()), **tunables(LocalizerConfig())}
    for name, (_, meta) in expected.items():
        descriptor = node.describe_parameter(name)
        assert descriptor.description == meta['description']
        if meta['low'] is not None:
            limits, = [*descriptor.floating_point_range, *descriptor.integer_range]
            assert (limits.from_value, limits.to_value) == (meta['low'], meta['high'])
    assert {name.split('.')[0] for name in
            set(node.get_parameters_by_prefix('')) - set(expected)} <= set(ROS_PARAMETERS)


def test_given_values_are_read_and_the_others_keep_their_defaults(make_node):
    # A whole number will do for a parameter in metres.
    parameters = NodeParameters(make_node(
        device='cpu', match__window_min_m=20, antenna_xyz_m=[1, 0, 2]))
    node_config, config = parameters.configs()
    assert node_config == NodeConfig(device='cpu', antenna_xyz_m=(1.0, 0.0, 2.0))
    assert config.match.window_min_m == 20.0
    assert config.filter == LocalizerConfig().filter


def test_every_parameter_has_a_value_and_a_dump_of_them_is_read_again(make_node, tmp_path):
    node = make_node()
    NodeParameters(node)
    declared = node.get_parameters_by_prefix('').items()
    values = {name: parameter.value for name, parameter in declared
              if name.split('.')[0] not in ROS_PARAMETERS}
    assert None not in values.values()
    path = tmp_path / 'dump.yaml'
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': {
        name: list(value) if isinstance(value, array) else value
        for name, value in values.items()}}}))
    assert read_parameters(path) == (NodeConfig(), LocalizerConfig())


def test_parameters_can_be_changed_until_they_are_locked(make_node):
    node = make_node()
    parameters = NodeParameters(node)
    result, = node.set_parameters([Parameter('filter.buffer_s', value=3.0)])
    assert result.successful and parameters.configs()[1].filter.buffer_s == 3.0
    parameters.locked = True
    result, = node.set_parameters([Parameter('filter.buffer_s', value=2.5)])
    assert not result.successful
    assert 'filter.buffer_s is read when the node is configured' in result.reason
    assert parameters.configs()[1].filter.buffer_s == 3.0


@pytest.mark.parametrize(('name', 'value', 'complaint'), [
    ('filter__bufer_s', 2.0, 'unknown parameter'),
    ('filter__buffer_s', 1e9, 'expected 0.1 to 30.0'),
    ('device', 'tpu', 'expected one of'),
    ('camera_xyz_rpy', [1.0, 2.0], 'has 2 numbers; expected 6'),
    ('use_sim_time', 'true', "use_sim_time is 'true'; expected true or false"),
])
def test_a_wrong_parameter_is_refused_with_what_was_expected(make_node, name, value, complaint):
    with pytest.raises(ValueError, match=complaint):
        NodeParameters(make_node(**{name: value}))


def test_parameters_of_rclpy_are_left_out(make_node):
    assert parameter_values(make_node(use_sim_time=False, device='cpu')) == {'device': 'cpu'}


def flattened(values: dict, prefix='') -> dict:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flattened(value, f'{prefix}{key}.'))
        else:
            flat[prefix + key] = value
    return flat


def test_the_parameter_file_of_robotcar_has_only_keys_that_the_node_reads():
    values = yaml.safe_load((REPOSITORY / 'config/robotcar.yaml').read_text())
    node_config, config = configs_from_parameters(flattened(values['/**']['ros__parameters']))
    assert node_config.image_transport == 'compressed'
    assert config.camera.height_m == 1.52
