"""True poses and odometry of RobotCar, with the known errors of the data set corrected."""

import math

import numpy as np
import pytest
import robotcar_drive as made
from robotcar_drive import write_lines

from crossview_localizer.bags import robotcar
from crossview_localizer.bags import robotcar_tracks as tracks


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    return made.write_drive(tmp_path_factory.mktemp('drive'))


def test_swapped_northing_and_easting_are_refused(drive, tmp_path):
    header, *lines = drive.rtk.read_text().splitlines()
    swapped = []
    for line in lines:
        fields = line.split(',')
        fields[4], fields[5] = fields[5], fields[4]
        swapped.append(','.join(fields))
    write_lines(tmp_path / 'rtk.csv', [header, *swapped])
    with pytest.raises(ValueError, match='columns swapped'):
        tracks.ins_track_from_rtk(robotcar.read_rtk(tmp_path / 'rtk.csv').rows)


# --- interpolation


def straight_track(stamps_s, headings_deg):
    stamps_s = np.array(stamps_s, dtype=float)
    zero = np.zeros(len(stamps_s))
    return tracks.PoseTrack(
        np.round(stamps_s * 1e9).astype(np.int64), 620_000 + 10 * stamps_s, 5_735_000 + zero,
        zero, robotcar.rotation_from_rpy(zero, zero, np.radians(headings_deg)), '30U',
    )


def test_a_pose_between_two_rows_is_divided_truly_and_turns_the_short_way():
    track = straight_track([0.0, 1.0], [350.0, 10.0])
    between = tracks.interpolate_track(track, [250_000_000, 750_000_000])
    assert between.easting_m == pytest.approx([620_002.5, 620_007.5])
    assert np.degrees(between.heading_rad()) == pytest.approx([-5.0, 5.0])


def test_a_request_at_a_row_gives_the_row():
    track = straight_track([0.0, 1.0, 2.0], [0.0, 20.0, 40.0])
    at_rows = tracks.interpolate_track(track, track.stamp_ns)
    assert at_rows.easting_m == pytest.approx(track.easting_m, abs=0)
    assert at_rows.heading_rad() == pytest.approx(track.heading_rad())


def test_requests_outside_the_rows_and_in_gaps_are_nan():
    track = straight_track([0.0, 1.0, 4.0], [0.0, 0.0, 0.0])
    wanted = tracks.interpolate_track(
        track, [-1, 500_000_000, 2_000_000_000, 4_000_000_000, 4_000_000_001]
    )
    assert list(np.isnan(wanted.easting_m)) == [True, False, True, False, True]
    assert list(np.isnan(wanted.heading_rad())) == [True, False, True, False, True]


# --- real traversals


RTK_DTYPE = [('timestamp', 'i8'), ('utm_zone', 'U4'), *((name, 'f8') for name in (
    'latitude', 'longitude', 'altitude', 'northing', 'easting', 'roll', 'pitch', 'yaw'))]


def test_real_headings_corrected_are_the_real_directions_of_motion(data_dir):
    files = sorted((data_dir / 'oxford').glob('*.csv'))
    assert len(files) == 12
    for file in files:
        stamp_us, easting_m, northing_m, yaw_rad = np.loadtxt(file, delimiter=',', skiprows=1).T
        longitude_deg, latitude_deg = made.UTM_FROM_LL.transform(
            easting_m, northing_m, direction='INVERSE'
        )
        rows = np.zeros(len(stamp_us), dtype=RTK_DTYPE)
        rows['timestamp'], rows['utm_zone'], rows['yaw'] = stamp_us, '30U', yaw_rad
        rows['easting'], rows['northing'] = easting_m, northing_m
        rows['latitude'], rows['longitude'] = latitude_deg, longitude_deg
        off_deg = tracks.heading_minus_course_deg(tracks.ins_track_from_rtk(rows))
        assert abs(np.median(off_deg)) < 0.5, file.name
        assert np.mean(np.abs(off_deg) < 5.0) > 0.9, file.name


# --- visual odometry


def vo_rows(*rows):
    names = ('source_timestamp', 'destination_timestamp', 'x', 'y', 'z', 'roll', 'pitch', 'yaw')
    kinds = ['i8', 'i8'] + ['f8'] * 6
    return np.array(list(rows), dtype=list(zip(names, kinds)))


def test_odometry_chains_each_step_in_the_frame_of_the_one_before():
    # 1 m ahead with a right turn of 90 degrees, then 2 m ahead: to the right, y = -2 in FLU.
    track = tracks.integrate_vo(
        vo_rows(
            (1_000_000, 0, 1, 0, 0, 0, 0, math.pi / 2), (2_000_000, 1_000_000, 2, 0, 0, 0, 0, 0)
        )
    )
    assert list(track.stamp_ns) == [0, 1_000_000_000, 2_000_000_000]
    assert track.odom_from_base[:, :3, 3] == pytest.approx(
        np.array([[0, 0, 0], [1, 0, 0], [1, -2, 0]]), abs=1e-12
    )
    assert track.odom_from_base[2, :2, 0] == pytest.approx([0, -1], abs=1e-12)
    assert track.travelled_m == pytest.approx([0, 1, 3])


def test_the_two_stamps_of_a_row_may_come_in_either_order(drive):
    later_first = robotcar.read_vo(drive.traversal / 'vo/vo.csv').rows
    earlier_first = later_first.copy()
    earlier_first['source_timestamp'] = later_first['destination_timestamp']
    earlier_first['destination_timestamp'] = later_first['source_timestamp']
    one, other = tracks.integrate_vo(later_first), tracks.integrate_vo(earlier_first)
    assert (one.stamp_ns == other.stamp_ns).all()
    assert (one.odom_from_base == other.odom_from_base).all()


def test_the_integrated_odometry_is_the_true_motion(drive):
    track = tracks.integrate_vo(robotcar.read_vo(drive.traversal / 'vo/vo.csv').rows)
    flu = np.diag([1, -1, -1, 1])
    start_inverse = np.linalg.inv(made.vehicle_pose(0.0))
    expected = [
        flu @ start_inverse @ made.vehicle_pose(made.seconds(us)) @ flu for us in drive.image_us
    ]
    assert list(track.stamp_ns) == [1000 * us for us in drive.image_us]
    assert track.odom_from_base == pytest.approx(np.array(expected), abs=1e-9)


def test_on_an_arc_the_velocity_points_ahead():
    track = tracks.integrate_vo(
        vo_rows((1_000_000, 0, math.sin(0.5) / 0.1, (1 - math.cos(0.5)) / 0.1, 0, 0, 0, 0.5))
    )
    ahead, left, up = track.linear_mps[-1]
    assert (left, up) == pytest.approx((0, 0), abs=1e-12)
    assert ahead == pytest.approx(2 * math.sin(0.25) / 0.1)
    assert track.angular_radps[-1] == pytest.approx([0, 0, -0.5])


def test_a_short_gap_is_bridged_at_constant_velocity_and_a_long_one_is_told():
    step = (1.0, 0, 0, 0, 0, 0)
    track = tracks.integrate_vo(
        vo_rows(
            (100_000, 0, *step), (300_000, 200_000, *step), (9_000_000, 8_900_000, *step)
        )
    )
    assert track.odom_from_base[:, 0, 3] == pytest.approx([0, 1, 3, 4])
    assert track.unseen_m == pytest.approx([0, 0, 1, 87])
    assert track.notes == (
        'vo.csv: 1 gaps of at most 1 s bridged at constant velocity',
        'vo.csv: 1 gaps longer than 1 s: odometry stands still over them',
    )


def test_a_row_that_overlaps_the_one_before_is_left_out():
    step = (1.0, 0, 0, 0, 0, 0)
    track = tracks.integrate_vo(
        vo_rows((100_000, 0, *step), (150_000, 50_000, *step), (200_000, 100_000, *step))
    )
    assert track.odom_from_base[-1, 0, 3] == pytest.approx(2)
    assert track.notes == ('vo.csv: 1 rows overlap the row before or last no time, left out',)
