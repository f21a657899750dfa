"""What is read of a recording of the node and of the bag that was played."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import recorded_drive as drive

from crossview_localizer.bags import recorded_run

SECONDS = 20.0


@pytest.fixture(scope='module')
def bags(ros, tmp_path_factory):
    return drive.write_bags(tmp_path_factory.mktemp('bags'), SECONDS)


@pytest.fixture(scope='module')
def run(bags):
    return recorded_run.read_run(bags['run'], bags['input'])


def test_a_recording_is_read_into_map_without_a_map_file(run):
    assert len(run.poses) == SECONDS * 4
    assert run.image_count == SECONDS * 4 and run.first_image_ns == drive.START_NS
    pose = drive.true_pose(5.0)
    stamp_ns = drive.START_NS + 5_000_000_000
    assert run.truth.pose_at(stamp_ns, 1.0).as_array() == pytest.approx(pose.as_array(), abs=1e-5)
    fix = next(fix for fix in run.fixes if fix.stamp_ns == stamp_ns)
    assert (fix.x_m, fix.y_m) == pytest.approx((pose.x_m + 4.0, pose.y_m), abs=1e-5)


def test_the_peak_of_each_heat_map_is_kept_and_the_rest_is_not(run):
    row = int(np.searchsorted(run.heatmap_ns, drive.START_NS + 5_000_000_000))
    pose = drive.true_pose(5.0)
    expected_m = (pose.x_m + drive.PEAK_EAST_M, pose.y_m)
    assert run.peaks_m[row] == pytest.approx(expected_m, abs=1e-5)


def test_memory_does_not_grow_with_the_heat_maps(ros, tmp_path):
    cells, count = 601, 60
    bag = drive.write_bag(
        tmp_path / 'large', drive.output_messages(count / 4.0, cells=cells))
    tracemalloc.start()
    recorded_run.read_run(bag)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cells**2 * count > 21e6
    assert peak < 8e6


def test_the_outcome_of_each_image_is_the_one_that_the_node_published(run):
    outcomes = run.outcomes()
    assert np.flatnonzero(outcomes == 'gated').tolist() == [10]
    assert np.flatnonzero(outcomes == 'ambiguous').tolist() == [0, 1, 30]
    assert (outcomes == 'used').sum() == len(outcomes) - 6
    # A match was published for them, and it was not used.
    assert np.flatnonzero(outcomes == 'distrusted').tolist() == [20, 21]
    [at_20] = [status for status in run.statuses if status.reason == 'DISTRUSTED at 20']
    assert at_20 == recorded_run.ImageStatus(
        int(run.poses.stamps_ns[20]), 'distrusted', 'DISTRUSTED at 20', 'distrusted')


def test_an_image_of_which_the_node_said_nothing_has_the_word_for_it(run):
    stamps_ns = np.array([run.poses.stamps_ns[0] - 1, run.poses.stamps_ns[10]])
    assert run.outcomes(stamps_ns, 'no output').tolist() == ['no output', 'gated']


def test_a_recording_from_before_the_status_was_published_says_unknown(ros, tmp_path):
    kept = [entry for entry in drive.output_messages(5.0) if not entry[0].endswith('/status')]
    old = recorded_run.read_run(drive.write_bag(tmp_path / 'old', kept))
    assert set(old.outcomes()) == {recorded_run.UNKNOWN} and not old.statuses
    assert any('no /crossview_localizer/status' in note for note in old.notes)


def status(**values):
    return SimpleNamespace(values=[
        SimpleNamespace(key=key, value=value) for key, value in values.items()])


def test_the_stamp_of_a_status_is_exact_to_the_nanosecond():
    found = recorded_run.image_status_from_msg(status(
        stamp='1400000000.000000345', outcome='prior_too_wide', reason='why', state='searching'))
    assert found == recorded_run.ImageStatus(
        1_400_000_000_000_000_345, 'prior_too_wide', 'why', 'searching')


@pytest.mark.parametrize('stamp', ['', '12', '12.5', 'now'])
def test_a_status_without_a_whole_stamp_is_refused(stamp):
    with pytest.raises(ValueError, match='expected stamp'):
        recorded_run.image_status_from_msg(status(stamp=stamp, outcome='used'))


def test_diagnostics_are_series_of_levels_ages_and_counts(run):
    said = run.diagnostics
    silent = (said.times_ns > drive.START_NS + 8.5e9) & (said.times_ns < drive.START_NS + 12.5e9)
    assert (said.levels['gnss'][silent] == 2).all() and (said.levels['gnss'][~silent] == 0).all()
    assert said.ages_s['gnss'][silent] == pytest.approx([1.0, 2.0, 3.0, 4.0])
    assert said.counts['gnss']['refused'][-1] == 3
    [(part, text, remedy, count)] = said.warnings
    assert (part, remedy, count) == ('gnss', 'look at it', 4)
    assert text == 'nothing received for 4.0 s'


def test_a_bag_recorded_years_later_has_its_diagnostics_on_the_clock_of_the_poses(ros, tmp_path):
    bag = drive.write_bag(tmp_path / 'late', drive.output_messages(5.0), bag_delay_s=3e8)
    late = recorded_run.read_run(bag)
    assert late.diagnostics.times_ns[0] == pytest.approx(drive.START_NS, abs=1e6)
    assert late.latency_ns[-1] == pytest.approx(late.poses.stamps_ns[-1], abs=1e6)


def test_fixes_of_an_antenna_whose_place_is_not_known_are_taken_at_base_link(ros, tmp_path):
    inputs = [entry for entry in drive.input_messages(5.0) if entry[0] != '/tf_static']
    run = recorded_run.read_run(
        drive.write_bag(tmp_path / 'run', drive.output_messages(5.0)),
        drive.write_bag(tmp_path / 'input', inputs))
    assert len(run.fixes) == 25 and run.fixes[0].base_from_antenna_m == (0.0, 0.0)
    assert any('25 fixes are taken as positions of base_link' in note for note in run.notes)
