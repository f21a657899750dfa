"""Some rows of the fault matrix (``make faults``) on one node process."""

import pytest

pytest.importorskip('rclpy')

from benchmarks.robustness import faults, flat_world
from benchmarks.robustness.node_trial import NodeTrial, START_DEADLINE_S

QUICK = (
    'camera freezes', 'jpeg cut short', 'GNSS jumps by 300 m', 'odometry is reset',
    'image stamps in the future', 'map of other weights',
)


@pytest.fixture(scope='module')
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trial')
    trial = NodeTrial(folder, flat_world.make_files(folder))
    try:
        trial.start_node()
        trial.drive(until=trial.is_well, deadline_s=START_DEADLINE_S)
        yield trial
    finally:
        trial.close()


@pytest.mark.parametrize('name', QUICK)
def test_a_fault_is_reported_poses_stay_honest_and_all_is_well_again(trial, name):
    row = faults.try_by_name(trial, name)
    assert row.ok, row


def test_every_fault_has_a_name_of_its_own():
    names = [fault.name for fault in faults.ALL]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)
