"""The doctor's checks of an installation, one by one."""

from pathlib import Path

import pytest

from crossview_localizer.ros import installation_checks
from crossview_localizer.ros.findings import Severity
from crossview_localizer.ros.installation_checks import (
    check_dds_profile,
    check_parameters,
    discovery_range,
    PROFILE_VARIABLES,
)

PROFILE = Path(__file__).resolve().parent.parent / 'config/fastdds_large_images.xml'


@pytest.mark.parametrize('content, text', [
    ('<dds', 'cannot be read'),
    ('<dds><segment_size>524288</segment_size></dds>', 'gives 0 MiB'),
    ('<dds/>', 'gives none'),
])
def test_a_profile_without_room_for_large_images_is_a_problem(
        monkeypatch, tmp_path, content, text):
    profile = tmp_path / 'profile.xml'
    profile.write_text(content)
    for variable in PROFILE_VARIABLES:
        monkeypatch.setenv(variable, str(profile))
    finding = check_dds_profile()
    assert finding.severity is Severity.PROBLEM and text in finding.text


def test_little_shared_memory_and_the_other_distributions_variable_are_problems(monkeypatch):
    for variable in PROFILE_VARIABLES:
        monkeypatch.setenv(variable, str(PROFILE))
    monkeypatch.setattr(installation_checks, 'free_bytes', lambda path: 2**20)
    finding = check_dds_profile()
    assert finding.severity is Severity.PROBLEM and '/dev/shm has 1 MiB' in finding.text
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    monkeypatch.delenv('FASTRTPS_DEFAULT_PROFILES_FILE')
    finding = check_dds_profile()
    assert finding.severity is Severity.PROBLEM
    assert 'jazzy reads FASTRTPS' in finding.text


@pytest.mark.parametrize(('key', 'namespace', 'severities', 'text'), [
    ('/**', '', [Severity.OK], 'every name and value is valid'),
    ('crossview_localizer', '', [Severity.OK], 'valid'),
    ('/car/crossview_localizer', '', [Severity.OK], 'those of /car/crossview_localizer alone'),
    ('/car/crossview_localizer', 'car', [Severity.OK], 'valid'),
    ('/car/crossview_localizer', 'van', [Severity.PROBLEM], 'none of /van/crossview_localizer'),
    ('localiser', '', [Severity.PROBLEM], 'parameters of /localiser'),
    ('/**: {ros__parameters: {device: cpu}}\ncamera', '', [Severity.NOTE, Severity.OK],
     '/camera names no node of this package')])
def test_the_keys_of_a_parameter_file_are_judged_as_ros_does(
        ros, tmp_path, key, namespace, severities, text):
    path = tmp_path / 'my.yaml'
    path.write_text(f'{key}:\n  ros__parameters: {{device: cpu}}\n')
    findings = list(check_parameters(str(path), namespace))
    assert [finding.severity for finding in findings] == severities
    assert text in findings[0].text


def test_the_discovery_range_in_force_is_named(monkeypatch):
    monkeypatch.delenv('ROS_LOCALHOST_ONLY', raising=False)
    monkeypatch.delenv('ROS_AUTOMATIC_DISCOVERY_RANGE', raising=False)
    assert discovery_range() == 'SUBNET'
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'OFF')
    assert discovery_range() == 'OFF'
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'WORLD')    # rcl then takes LOCALHOST
    assert discovery_range().startswith('LOCALHOST') and 'WORLD is none of' in discovery_range()
    monkeypatch.setenv('ROS_LOCALHOST_ONLY', '1')
    assert discovery_range().startswith('LOCALHOST')
