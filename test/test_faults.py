"""Some rows of the fault matrix (``make faults``) on one node process."""

import pytest

pytest.importorskip('rclpy')

from benchmarks.robustness import faults, flat_world

QUICK = (
    'camera freezes', 'jpeg cut short', 'GNSS jumps by 300 m', 'odometry is reset',
    'image stamps in the future', 'map of other weights',
)


@pytest.fixture(scope='module')
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp('trial')
    trial = faults.Trial(folder, flat_world.make_files(folder))
    try:
        trial.start_node()
        trial.drive(until=trial.is_well, deadline_s=faults.START_DEADLINE_S)
        yield trial
    finally:
        trial.close()


@pytest.mark.parametrize('name', QUICK)
def test_a_fault_is_told_the_pose_stays_honest_and_all_is_well_again(trial, name):
    row = trial.attempt(name)
    assert row.ok, row


def test_every_fault_has_a_name_of_its_own():
    names = [fault.name for fault in faults.ALL]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)
