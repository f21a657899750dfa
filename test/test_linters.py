"""The linters of ament, as a ROS 2 package runs them, over what is installed of this one."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
INSTALLED = [str(REPOSITORY / name) for name in ('crossview_localizer', 'launch', 'setup.py')]
# The summary begins on the first line (D213), is no sentence in the imperative (D401 to D403).
PEP257_LIBERTIES = ['D213', 'D401', 'D402', 'D403']


def test_ament_flake8_finds_nothing():
    flake8 = pytest.importorskip('ament_flake8.main')
    pytest.importorskip('flake8')
    code, errors = flake8.main_with_errors(
        ['--config', str(REPOSITORY / 'test/ament_flake8.ini'), *INSTALLED])
    assert code == 0, '\n'.join(errors)


def test_ament_pep257_finds_nothing():
    pep257 = pytest.importorskip('ament_pep257.main', exc_type=ImportError)
    assert pep257.main(['--add-ignore', *PEP257_LIBERTIES, '--', *INSTALLED]) == 0
