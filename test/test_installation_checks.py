"""The doctor's checks of an installation, one by one."""

from pathlib import Path

import pytest

from crossview_localizer.ros import installation_checks
from crossview_localizer.ros.findings import Severity
from crossview_localizer.ros.installation_checks import check_dds_profile, PROFILE_VARIABLES

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
