"""The fusion benchmark: its loaders, its models, and a small run on the real data."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fusion import (
    drive_data,
    estimates,
    fit_match_errors,
    fusion,
    lies,
    real_odometry,
    rendered,
    towns,
)
from benchmarks.fusion.estimates import AXES
from benchmarks.fusion.matcher_replay import tail_sigma_m
from benchmarks.fusion.real_logs import constant_velocity
from crossview_localizer.datatypes import GnssFix, OdometrySample
from crossview_localizer.geometry import Pose2D

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


def test_the_sigma_of_a_student_t_is_found_again():
    rng = np.random.default_rng(0)
    drives = [
        2.0 * rng.standard_normal((4000, 2)) / np.sqrt(rng.chisquare(4.0, (4000, 1)) / 4.0)
        for _ in range(2)]
    assert tail_sigma_m(drives, 4.0) == pytest.approx(2.0, rel=0.05)


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
