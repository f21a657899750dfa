"""Parameter files as ROS reads them: keys, wildcards, scalars, lists; and what it refuses."""

import math

import pytest

from crossview_localizer.parameter_file import read_parameters, read_sections, Section


def write(tmp_path, text: str):
    path = tmp_path / 'my.yaml'
    path.write_text(text)
    return path


@pytest.mark.parametrize(('key', 'node', 'applies'), [
    ('/**', '/crossview_localizer', True),
    ('/**', '/fleet/car/crossview_localizer', True),
    ('/*', '/crossview_localizer', True),
    ('/*', '/car/crossview_localizer', False),
    ('/*/crossview_localizer', '/car/crossview_localizer', True),
    ('/**/crossview_localizer', '/fleet/car/crossview_localizer', True),
    ('/crossview_localizer', '/crossview_localizer', True),
    ('/crossview_localizer', '/car/crossview_localizer', False),
    ('/car/crossview_localizer', '/car/crossview_localizer', True),
    ('/car/crossview_scene', '/car/crossview_localizer', False)])
def test_a_key_applies_to_a_node_as_in_ros(key, node, applies):
    assert Section(key, {}).applies_to(node) == applies


@pytest.mark.parametrize('key', [
    '/**', '/*', 'crossview_localizer', '/crossview_localizer', '/car/crossview_localizer'])
def test_the_offline_tools_take_the_parameters_of_the_localizer_in_any_namespace(tmp_path, key):
    path = write(tmp_path, f'{key}:\n  ros__parameters: {{odometry_wait_s: 0.25}}\n')
    assert read_parameters(path)[0].odometry_wait_s == 0.25


def test_the_key_of_a_node_wins_over_a_wildcard_wherever_it_stands(tmp_path):
    path = write(tmp_path, """
car:
  crossview_localizer:
    ros__parameters: {odometry_wait_s: 0.3}
/**:
  ros__parameters: {odometry_wait_s: 0.1, filter: {buffer_s: 3}}
crossview_scene:
  ros__parameters: {picture_hz: 1.0}
""")
    node_config, config = read_parameters(path, '/car/crossview_localizer')
    assert node_config.odometry_wait_s == 0.3 and config.filter.buffer_s == 3.0
    assert read_parameters(path, '/van/crossview_localizer')[0].odometry_wait_s == 0.1
    assert [section.key for section in read_sections(path)] == [
        '/car/crossview_localizer', '/**', '/crossview_scene']


def test_what_every_node_of_ros_takes_is_not_judged(tmp_path):
    path = write(tmp_path, '/**:\n  ros__parameters: {use_sim_time: true, odometry_wait_s: 0.2, '
                 'qos_overrides: {/gnss: {subscription: {depth: 5}}}}\n')
    assert read_parameters(path)[0].odometry_wait_s == 0.2


def test_parameters_of_other_nodes_alone_are_refused_by_name(tmp_path):
    path = write(tmp_path, 'localizer:\n  ros__parameters: {odometry_wait_s: 0.25}\n')
    with pytest.raises(ValueError, match='parameters of /localizer and none of crossview_local'):
        read_parameters(path)


@pytest.mark.parametrize(('text', 'value'), [
    ('1e-3', 0.001), ('2.', 2.0), ('.5', 0.5), ('7', 7), ('0x10', 16), ('010', 8),
    ('08', 8.0), ('-3', -3),
    ('yes', True), ('y', True), ('Off', False), ("'yes'", 'yes'), ('2024-01-01', '2024-01-01'),
    ('[1.0, 2.5]', [1.0, 2.5]), ('.inf', math.inf)])
def test_scalars_are_those_of_ros(tmp_path, text, value):
    (section,) = read_sections(write(tmp_path, f'/**:\n  ros__parameters:\n    a: {text}\n'))
    found = section.values['a']
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(('text', 'said'), [
    ('/**: {ros__parameters: {a: [1.2, 0, 1.4]}}', r'a mixes double and integer \(\[1.2, 0, 1.4'),
    ('/**: {ros__parameters: {a: [true, x]}}', 'a mixes bool and string'),
    ('/**: {ros__parameters: {a: [[1.0], [2.0]]}}', 'expected a value or a list'),
    ('/**: {ros__parameters: {a: }}', 'expected a value'),
    ('/**: {ros__parameters: {a: []}}', 'a is an empty list, which ROS refuses'),
    ('ros__parameters: {a: 1}', 'below no node; expected /\\*\\*:'),
    ('/**: {ros__parameters: {a: &x 1, b: *x}}', 'aliases'),
    ('/**: {ros__parameters: [1, 2]}', 'expected names and values'),
    ('/**: 3', 'ros__parameters'), ('[1, 2]', 'names of nodes'), ('a: {}', 'no ros__parameters'),
    ('a: b: c', 'not a parameter file')])
def test_what_ros_refuses_is_refused_with_the_reason(tmp_path, text, said):
    with pytest.raises(ValueError, match=said):
        read_sections(write(tmp_path, text))


def test_simulated_time_in_quotes_which_ros_takes_for_false_is_refused(tmp_path):
    path = tmp_path / 'my.yaml'
    path.write_text('/**:\n  ros__parameters:\n    use_sim_time: "true"\n')
    with pytest.raises(ValueError, match="use_sim_time is 'true'; expected true or false"):
        read_parameters(path)
