"""The fusion benchmark: its loaders, its models, and a small run on the real data."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fusion import (
    demo_drives,
    drive_data,
    estimates,
    fit_match_errors,
    fusion,
    lies,
    peer_ekf,
    real_odometry,
    rendered,
    tables,
    towns,
)
from benchmarks.fusion.estimates import AXES
from benchmarks.fusion.matcher_replay import matches_along, tail_sigmas_m
from benchmarks.fusion.real_logs import constant_velocity
from crossview_localizer.datatypes import GnssFix, OdometrySample
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get('CROSSVIEW_DATA', REPOSITORY.parent / 'shared/data'))
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f'no data at {DATA}')


def circle(duration_s=60.0, speed_mps=10.0, radius_m=80.0) -> drive_data.Path2D:
    time_s = np.arange(0.0, duration_s + 0.01, 0.05)
    angle_rad = speed_mps * time_s / radius_m
    yaw_rad = (angle_rad + math.pi / 2 + math.pi) % (2 * math.pi) - math.pi
    return drive_data.Path2D(time_s, np.column_stack(
        (radius_m * np.cos(angle_rad), radius_m * np.sin(angle_rad), yaw_rad)))


def test_a_route_file_gives_metres_and_a_heading_along_them(tmp_path):
    lines = ['timestamp_us,easting_m,northing_m,rtk_yaw_rad']
    # North-west: bearing -45 deg, so the RTK yaw is that plus 90 deg and 1.37 deg of grid.
    yaw_rad = math.radians(-45.0 + 90.0 + 1.37)
    for index in range(5):
        lines.append(f'{1_000_000 * index},{620000 - 5 * index},{5735000 + 5 * index},{yaw_rad}')
    (tmp_path / 'route.csv').write_text('\n'.join(lines))
    route = drive_data.oxford_route(tmp_path / 'route.csv')
    assert np.allclose(route.at(np.array([2.0]))[0], [-10.0, 10.0, math.radians(135.0)], atol=1e-6)


def test_a_csv_without_its_column_is_named(tmp_path):
    (tmp_path / 'route.csv').write_text('timestamp_us,easting_m\n1,2\n')
    with pytest.raises(ValueError, match="no column 'northing_m'"):
        drive_data.oxford_route(tmp_path / 'route.csv')


def test_nmea_positions_are_degrees_and_a_file_without_any_is_refused(tmp_path):
    path = tmp_path / 'a.nmea'
    path.write_text('$GNGGA,021417.50,3725.5,N,12205.5,W,4,12,0.76,4.4,M,-30.0,M,0.0,2000*52\n')
    second, latitude_deg, longitude_deg, quality = drive_data._gga(path)[0]
    assert second == 2 * 3600 + 14 * 60 + 17.5 and quality == 4
    assert latitude_deg == pytest.approx(37 + 25.5 / 60)
    assert longitude_deg == pytest.approx(-(122 + 5.5 / 60))
    path.write_text('$GNRMC,021417.00,A\n')
    with pytest.raises(ValueError, match='no GGA'):
        drive_data._gga(path)


def test_simulated_sensors_have_the_errors_that_they_state():
    truth = circle(1200.0)
    fixes = drive_data.simulated_gnss(truth, np.random.default_rng(3), tau_s=10.0, white_m=1.0)
    times_s = np.array([(fix.stamp_ns - drive_data.START_NS) * 1e-9 for fix in fixes])
    errors_m = np.array([(fix.x_m, fix.y_m) for fix in fixes]) - truth.at(times_s)[:, :2]
    assert np.sqrt((errors_m**2).sum(axis=1).mean()) == pytest.approx(
        math.sqrt(4.0**2 + 2 * 1.0**2), rel=0.15)
    turns_rad = []
    for seed in range(60):
        samples = drive_data.simulated_odometry(circle(10.0), np.random.default_rng(seed), hz=2.0)
        last = samples[-1].odom_from_base
        turns_rad.append(last.yaw_rad - 9.5 * 10.0 / 80.0)
    assert np.std(turns_rad) == pytest.approx(math.radians(0.3) * math.sqrt(0.95), rel=0.25)


def test_dead_reckoning_drives_the_circle_that_speed_and_yaw_rate_describe():
    speed_s, turn_s = np.arange(0.0, 20.0, 0.011), np.arange(0.003, 20.0, 0.0096)
    samples = drive_data.dead_reckoned(
        speed_s, np.full(len(speed_s), 8.0), turn_s, np.full(len(turn_s), 0.2))
    turned_rad = samples[-1].odom_from_base.yaw_rad
    driven_s = (samples[-1].stamp_ns - samples[0].stamp_ns) * 1e-9
    assert math.cos(turned_rad - 0.2 * driven_s) == pytest.approx(1.0, abs=1e-6)
    expected = Pose2D(
        40.0 * math.sin(turned_rad), 40.0 * (1 - math.cos(turned_rad)), turned_rad)
    assert np.allclose(samples[-1].odom_from_base.as_array(), expected.as_array(), atol=0.01)


def test_the_sigmas_of_a_student_t_are_found_again():
    rng = np.random.default_rng(0)
    drives = [np.array([3.0, 0.5]) * rng.standard_normal((4000, 2)) / np.sqrt(
        rng.chisquare(4.0, (4000, 1)) / 4.0) for _ in range(2)]
    assert tail_sigmas_m(drives, 4.0) == pytest.approx([3.0, 0.5], rel=0.05)


def test_an_error_to_the_north_is_ahead_of_a_vehicle_that_heads_north(tmp_path):
    lines = ['gt_row,gt_col,pred_row,pred_col,gt_ori']
    # 100 images heading north, 10 px too far north and 5 px west; then it turns.
    lines += ['255,255,245,250,-90.0'] * 100 + [f'255,255,245,250,{-90 + k}' for k in range(90)]
    for drive in (*drive_data.REPRESENTATIVE, drive_data.STRESS):
        (tmp_path / f'2011_09_26_drive_{drive}.csv').write_text('\n'.join(lines))
    found = drive_data.matcher_errors(tmp_path)['0018']
    ahead_m, left_m = 10 * drive_data.TILE_M_PER_PX, 5 * drive_data.TILE_M_PER_PX
    assert found.errors_m[0] == pytest.approx([ahead_m, left_m])
    # At the end it heads east but for one degree: north is left of it, west behind.
    assert found.errors_m[-1] == pytest.approx([-left_m, ahead_m], abs=0.05)
    assert found.stands[10:85].all() and not found.stands[100:].any()


def test_matches_along_a_path_keep_their_errors_and_sigmas_in_its_axes():
    north = drive_data.Path2D(np.arange(3.0), np.array([[0.0, k, math.pi / 2] for k in range(3)]))
    match, = matches_along(north, [1.0], np.array([[2.0, 0.5]]), np.array([4.0, 1.0]))
    assert match.pose.as_array()[:2] == pytest.approx([-0.5, 3.0])
    assert match.covariance[:2, :2] == pytest.approx(np.diag([1.0, 16.0]))


def test_a_path_that_is_slowed_stands_where_the_share_of_its_speed_is_zero():
    path = drive_data.Path2D(np.arange(11.0), np.column_stack((
        np.arange(11.0), np.zeros(11), np.zeros(11))))
    slowed = path.slowed(np.repeat([1.0, 0.0, 0.5], 100))
    assert slowed.at([2.0, 3.9, 5.9])[:, 0] == pytest.approx([2.0, 2.0, 2.96], abs=0.05)


def test_constant_velocity_goes_on_along_the_last_fixes():
    fixes = [GnssFix(drive_data.stamp_ns(t), 3.0 * t, 5.0, np.eye(2)) for t in range(6)]
    assert np.allclose(constant_velocity(fixes, 15.0), [45.0, 5.0])


def test_errors_as_large_as_claimed_are_inside_the_band_on_every_axis():
    rng = np.random.default_rng(1)
    count, covariance = 400, np.diag([4.0, 1.0, 0.01])
    truth = np.column_stack((np.zeros((count, 2)), rng.uniform(-3.0, 3.0, count)))
    found = estimates.Estimates(
        np.arange(count), truth + rng.multivariate_normal(np.zeros(3), covariance, count),
        np.repeat(covariance[None], count, axis=0), truth)
    result = estimates.calibration(found)
    low, high = result['nees_band']
    assert low < result['nees_mean'] < high and 2.7 < low < 3.0 < high < 3.3
    assert all(0.9 < axis['coverage_95'] < 0.99 for axis in result['axes'].values())


def test_one_estimate_is_taken_from_each_segment_and_curves_say_what_was_inside():
    count = 500
    stamps_ns = drive_data.START_NS + np.arange(count) * 10**9
    found = estimates.Estimates(
        stamps_ns, np.zeros((count, 3)), np.repeat(np.diag([4.0, 1.0, 0.01])[None], count, axis=0),
        np.tile([2.0, 0.0, 0.0], (count, 1)))
    cut = rendered.segments(found)
    assert np.array_equal(cut.stamps_ns, stamps_ns[::10])
    curve = estimates.calibration_curve(cut)
    # One sigma off along the road: inside of what claims 68 % and more, and always elsewhere.
    inside = [float(claimed > 0.683) for claimed in curve['claimed']]
    assert curve['axes']['longitudinal'] == inside
    assert set(curve['axes']['lateral']) == {1.0}


def test_kept_events_are_what_was_recorded_and_odometry_is_thinned_but_before_images():
    events = [OdometrySample(10**9 + k * 10**8, Pose2D(0.1 * k, 1.0, 0.5)) for k in range(10)]
    events.insert(5, GnssFix(10**9 + 1, 1.0, 2.0, np.array([[4.0, 1.0], [1.0, 9.0]]), (0.5, -0.1)))
    events.insert(9, towns.ImageAt(10**9 + 2, 7))
    found = towns._events(towns._rows(events))
    assert len(found) == len(events) and found[5].base_from_antenna_m == (0.5, -0.1)
    assert np.array_equal(found[5].covariance, events[5].covariance)
    assert [found[index] == events[index] for index in (0, 4, 9, 11)] == [True] * 4
    kept = towns.thinned(found)
    steps = [round(event.odom_from_base.x_m * 10) for event in kept
             if isinstance(event, OdometrySample)]
    assert steps == [0, 3, 6, 7] and towns.ImageAt(10**9 + 2, 7) in kept


@needs_data
def test_a_small_run_writes_figures_and_the_lines_they_come_from(tmp_path, capsys):
    arguments = ['--data', str(DATA), '--smoke', '--sections', 'matcher_replay', '--out',
                 str(tmp_path)]
    assert fusion.main(arguments) == 0
    result = json.loads((tmp_path / 'fusion.json').read_text())['matcher_replay']
    assert set(result) == {'0117', '0014', 'representative'}
    assert result['0014']['fused_median_m'] < 0.5 * result['0014']['matcher_median_m']
    assert (tmp_path / 'frames.csv.gz').stat().st_size > 1000
    assert 'matcher_replay' in json.loads(capsys.readouterr().out)


def test_a_folder_without_data_is_one_line_and_exit_code_two(tmp_path, capsys):
    assert fusion.main(['--data', str(tmp_path / 'none'), '--out', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert 'none does not exist' in error and len(error.splitlines()) == 1


def test_odometry_lies_from_the_begin_of_the_lie_on():
    honest = [OdometrySample(drive_data.stamp_ns(time_s), Pose2D(time_s, 0.0, 0.0))
              for time_s in (0.0, lies.HONEST_S, lies.HONEST_S + 1.0, lies.HONEST_S + 2.0)]
    lying = lies.lying_odometry(honest, lies.ODOMETRY_LIES['odometry_three_times_too_fast'])
    driven_m = np.diff([sample.odom_from_base.x_m for sample in lying])
    np.testing.assert_allclose(driven_m, [lies.HONEST_S, 3.0, 3.0])


def test_a_receiver_that_repeats_its_fix_does_so_for_a_minute():
    time_s = np.arange(300.0)
    truth = drive_data.Path2D(time_s, np.column_stack((time_s, 0.0 * time_s, 0.0 * time_s)))
    fixes = drive_data.simulated_gnss(truth, np.random.default_rng(1), hz=1.0)
    repeated = lies.GNSS_LIES['gnss_repeats_its_fix'](fixes, None, None)
    same = [fix.x_m == before.x_m for before, fix in zip(repeated, repeated[1:])]
    assert sum(same) == 59


def test_a_camera_of_kitti_that_goes_ahead_and_turns_left_does_so_in_the_plane(tmp_path):
    # The optical frame: x right, y down, z ahead; a turn to the left is about -y.
    left = [[0.0, 0.0, -1.0, -2.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 5.0]]
    np.savetxt(tmp_path / 'poses.txt', [np.ravel(left)])
    assert real_odometry.kitti_poses(tmp_path / 'poses.txt')[0] == pytest.approx(
        [5.0, 2.0, math.pi / 2])


def test_errors_that_are_claimed_rightly_cost_nothing():
    row = {'coverage_95': 0.95, 'least_coverage_95': 0.9, **dict.fromkeys(AXES, 1.0)}
    assert fit_match_errors.cost({'dense': row, 'sparse': row}) == 0.0
    wide = row | {'coverage_95': 1.0, 'heading': math.exp(-0.5)}
    assert fit_match_errors.cost({'dense': wide}) == pytest.approx(0.25 + 0.04)
    one_is_off = row | {'least_coverage_95': 0.75}
    assert fit_match_errors.cost({'dense': one_is_off}) == pytest.approx(1.0)


def straight_drive(speed_mps=5.0, count=50):
    """Odometry along x at 10 Hz and exact fixes at 1 Hz, in the order of their stamps."""
    for k in range(count + 1):
        x_m = 0.1 * k * speed_mps
        yield OdometrySample(drive_data.stamp_ns(0.1 * k), Pose2D(x_m, 0.0, 0.0))
        if k % 10 == 0:
            yield GnssFix(drive_data.stamp_ns(0.1 * k), 7.0 + x_m, 3.0, np.eye(2))


def test_the_peer_follows_exact_inputs_exactly_and_its_covariance_grows_as_the_model_says():
    peer = peer_ekf.PeerEkf(peer_ekf.PEERS['peer_ekf'], 0.0)
    assert peer.estimate_at(drive_data.stamp_ns(0.0)) is None
    peer.add(GnssFix(drive_data.stamp_ns(0.0), 7.0, 3.0, np.eye(2)))
    # 1 and 1 m2 give 0.5; in 2 s the speed adds 4 s2 times 1 m2/s2, the process 2 s times 1 m2/s.
    assert peer.estimate_at(drive_data.stamp_ns(2.0)).covariance[0, 0] == pytest.approx(6.5)
    for measurement in straight_drive():
        peer.add(measurement)
    estimate = peer.estimate_at(drive_data.stamp_ns(5.2))
    assert estimate.pose.as_array() == pytest.approx([7.0 + 26.0, 3.0, 0.0], abs=0.05)


@pytest.mark.parametrize('name, moved', [('peer_ekf', True), ('peer_ekf_tuned', False)])
def test_only_the_peer_with_a_gate_refuses_a_fix_far_away(name, moved):
    peer = peer_ekf.PeerEkf(peer_ekf.PEERS[name], 0.0)
    for measurement in straight_drive():
        peer.add(measurement)
    before_m = peer.estimate_at(drive_data.stamp_ns(5.1)).pose.y_m
    peer.add(GnssFix(drive_data.stamp_ns(5.1), 32.5, 53.0, np.eye(2)))
    after_m = peer.estimate_at(drive_data.stamp_ns(5.1)).pose.y_m
    assert (abs(after_m - before_m) > 1.0) == moved


def test_a_pose_follows_a_jump_by_the_share_that_it_moves_with_it():
    time_s = np.arange(0.0, 30.0, 0.25)
    stamps_ns = np.array([drive_data.stamp_ns(time) for time in time_s])
    truth = Track.from_poses(stamps_ns, [Pose2D(time, 0.0, 0.0) for time in time_s])
    jumped = (time_s > 10.0) & (time_s <= 16.0)
    fixes = [GnssFix(int(stamp), time, 8.0 * jump, np.eye(2))
             for stamp, time, jump in zip(stamps_ns, time_s, jumped)]
    track = Track.from_poses(stamps_ns, [
        Pose2D(time, 1.0 + 6.0 * jump, 0.0) for time, jump in zip(time_s, jumped)])
    jump_us = [stamps_ns[40] // 1000, stamps_ns[64] // 1000]
    assert demo_drives.followed_shares(track, truth, fixes, [jump_us]) == pytest.approx([0.75])
    without = [fix for fix, jump in zip(fixes, jumped) if not jump]
    assert demo_drives.followed_shares(track, truth, without, [jump_us]) == []


def test_a_section_that_is_measured_apart_says_nothing_of_how_others_were(
        tmp_path, monkeypatch, capsys):
    for name, seeds in (('lies', range(10, 13)), ('spoof', range(60, 80))):
        monkeypatch.setitem(fusion.SECTIONS, name, fusion.Section(
            lambda run, name=name: {name: run.seeds.start}, seeds))
    arguments = ['--data', str(tmp_path), '--out', str(tmp_path), '--sections']
    assert fusion.main([*arguments, 'lies']) == 0
    assert fusion.main([*arguments, 'spoof', '--seed', '1', '--seeds', '2']) == 0
    result = json.loads((tmp_path / 'fusion.json').read_text())
    assert (result['lies'], result['spoof']) == (10, 160)
    measured = result['measured']
    assert measured['lies']['seeds'] == [10, 11, 12] and measured['spoof']['seeds'] == [160, 161]
    assert measured['lies']['commit'] == fusion.commit()


def test_the_tables_of_the_document_are_those_of_its_results():
    page = (REPOSITORY / 'docs/fusion.md').read_text(encoding='utf-8')
    found = json.loads((REPOSITORY / 'docs/results/fusion.json').read_text(encoding='utf-8'))
    assert tables.filled(page, found) == page
    assert all(f'<!-- table {name} -->' in page for name in tables.TABLES)


def test_a_coverage_that_misses_its_goal_is_bold_and_a_table_that_is_not_known_is_named():
    row = {'median_m': 1.0, 'p95_m': 2.0, 'coverage_95': 0.894, 'nees_mean': 3.0}
    page = 'text\n<!-- table logs -->\nold\n<!-- end -->\nmore'
    found = tables.filled(page, {'logs': {'kitti': {'gnss_speed': row}}})
    assert '| kitti | gnss speed | 1.00 | 2.00 | **0.89** | 3.00 |\n<!-- end -->\nmore' in found
    assert found.startswith('text\n<!-- table logs -->\n| log') and 'old' not in found
    with pytest.raises(ValueError, match="'sofa' is none of summary"):
        tables.filled(page.replace('logs', 'sofa'), {})


def test_worlds_can_be_rendered_without_a_measurement(tmp_path, monkeypatch, capsys):
    seeds = []
    monkeypatch.setattr(fusion, 'SECTIONS', {'rendered': fusion.Section(
        lambda run: pytest.fail('measured'), range(500, 503), 10, True,
        lambda run: seeds.extend(run.seeds))})
    arguments = ['--data', str(tmp_path), '--out', str(tmp_path), '--sections', 'rendered']
    assert fusion.main([*arguments, '--render', '--seed', '1']) == 0
    assert seeds == [510, 511, 512] and not (tmp_path / 'fusion.json').exists()
