"""What every test shares: ROS 2 kept to this machine, and what may be missing.

With REQUIRE_ROS=1 (as in .ci/run) a missing rclpy, interface or weight file is an error.  Only no
GPU, no `launch` and no data folder may skip then; a skip for any other reason fails.
"""

from collections import deque
import importlib
import os
from pathlib import Path
import signal
import sys
import tempfile
import time

import pytest

from benchmarks.ros_domain import keep_to_this_machine, lone_domain

REPOSITORY = Path(__file__).resolve().parent.parent
REQUIRE_ROS = os.environ.get('REQUIRE_ROS') == '1'
ROS_MODULES = (
    'rclpy', 'builtin_interfaces.msg', 'diagnostic_msgs.msg', 'geographic_msgs.msg',
    'geometry_msgs.msg', 'lifecycle_msgs.srv', 'nav_msgs.msg', 'rosgraph_msgs.msg',
    'sensor_msgs.msg', 'std_msgs.msg', 'std_srvs.srv', 'tf2_msgs.msg', 'visualization_msgs.msg',
)
ALLOWED_SKIPS = ('no GPU', 'no launch', 'no data')

# Never the domain of a vehicle nearby, nor that of another test run on this machine.
keep_to_this_machine()
os.environ['OMP_NUM_THREADS'] = '1'
# No node goes on from the pose that another one kept.
os.environ['ROS_HOME'] = tempfile.mkdtemp(prefix='ros_home_')
# The ROS 2 wheels do not set it.
if (Path(sys.prefix) / 'share/ament_index').is_dir():
    os.environ.setdefault('AMENT_PREFIX_PATH', sys.prefix)
# `python -m crossview_localizer.x` in a process started by a test, from any folder.
os.environ['PYTHONPATH'] = os.pathsep.join(
    filter(None, [str(REPOSITORY), os.environ.get('PYTHONPATH')]))


def missing_ros_modules() -> list[str]:
    missing = []
    for name in ROS_MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f'{name} ({error})')
    return missing


def pytest_configure():
    if REQUIRE_ROS and (missing := missing_ros_modules()):
        pytest.exit(f'REQUIRE_ROS=1 and missing: {", ".join(missing)}; run make test', 3)


def fail_if_skip_is_not_allowed(report):
    if not (REQUIRE_ROS and report.skipped) or hasattr(report, 'wasxfail'):
        return
    reason = report.longrepr[2].removeprefix('Skipped: ')
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = 'failed'
        report.longrepr = (
            f'REQUIRE_ROS=1: skipped for "{reason}"; only {", ".join(ALLOWED_SKIPS)} may skip')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    outcome = yield
    fail_if_skip_is_not_allowed(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():
    outcome = yield
    fail_if_skip_is_not_allowed(outcome.get_result())


@pytest.fixture(scope='session')
def ros():
    """Real ROS 2 with every interface; a test that asks for it is skipped where it is missing."""
    if missing := missing_ros_modules():
        pytest.skip(f'no ROS 2: {", ".join(missing)}')


@pytest.fixture(scope='session')
def recent_domains():
    """The marks of the last domains: what a test left to the graph ends some tests later."""
    marks = deque()
    yield marks
    for mark in marks:
        mark.close()


@pytest.fixture
def own_domain(monkeypatch, recent_domains):
    """A ROS domain in which nothing is that an earlier test left to the graph."""
    domain, mark = lone_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
    yield
    recent_domains.append(mark)
    if len(recent_domains) > 40:  # two processes of tests share the 101 domains
        recent_domains.popleft().close()


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """The folder of real data, CROSSVIEW_DATA or ../shared/data."""
    path = Path(os.environ.get('CROSSVIEW_DATA', REPOSITORY.parent / 'shared/data'))
    if not path.is_dir():
        pytest.skip(f'no data folder at {path} (set CROSSVIEW_DATA)')
    return path


@pytest.fixture(scope='session')
def shipped_weights() -> list[Path]:
    """The shipped network weights, at least one file."""
    paths = sorted((REPOSITORY / 'config/weights').glob('*.safetensors'))
    if not paths:
        pytest.skip('no weights in config/weights')
    return paths


class StoppedClock:
    """Shows ``now_s``, which a test moves."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def one_thread():
    """One thread of torch: its sums are then the same in every run."""
    import torch
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def wait_until():
    """wait_until(condition, deadline_s=60): poll until the condition is true, else fail."""
    def wait(condition, deadline_s: float = 60.0):
        end_s = time.monotonic() + deadline_s
        while not (result := condition()):
            assert time.monotonic() < end_s, f'not true within {deadline_s} s: {condition}'
            time.sleep(0.01)
        return result
    return wait


@pytest.fixture
def signal_handlers():
    """Commands run in this process must not keep its interrupts."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
