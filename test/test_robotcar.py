"""RobotCar's raw formats are read as they are, and its quirks are put right."""

import math

import numpy as np
import pytest
import robotcar_drive as made
from robotcar_drive import write_lines

from crossview_localizer.bags import robotcar


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    return made.write_drive(tmp_path_factory.mktemp('drive'))


# --- tables -------------------------------------------------------------------------------------

def gps_rows(*stamps_us):
    return [f'{us},9,51.76,-1.26,110,2,1.5,4,0,0,0,30U' for us in stamps_us]


def read_gps_lines(tmp_path, lines):
    write_lines(tmp_path / 'gps.csv', lines)
    return robotcar.read_gps(tmp_path / 'gps.csv')


def test_unsorted_rows_come_out_sorted_and_are_counted(tmp_path):
    table = read_gps_lines(tmp_path, [made.GPS_HEADER, *gps_rows(10, 30, 20, 40, 5)])
    assert list(table.rows['timestamp']) == [5, 10, 20, 30, 40]
    assert table.notes == ('gps.csv: 2 of 5 rows out of time order, sorted',)


def test_a_repeated_stamp_keeps_its_first_row(tmp_path):
    rows = gps_rows(10, 20)
    table = read_gps_lines(tmp_path, [made.GPS_HEADER, *rows, rows[1].replace('51.76', '51.99')])
    assert list(table.rows['latitude']) == [51.76, 51.76]
    assert table.notes == ('gps.csv: 1 of 3 rows with a repeated stamp, left out',)


def test_empty_lines_and_rows_that_cannot_be_read_are_passed_over(tmp_path):
    lines = [made.GPS_HEADER, *gps_rows(10), '', '20,9', 'rubbish,,,,', '30,9,nan,-1.26', '   ']
    table = read_gps_lines(tmp_path, [*lines, *gps_rows(40)])
    assert list(table.rows['timestamp']) == [10, 40]
    assert table.notes == (
        'gps.csv: 2 of 7 rows not readable, left out',
        'gps.csv: 1 of 7 rows not finite, left out',
    )


def test_a_last_row_without_its_line_end_is_left_out(tmp_path):
    text = '\n'.join([made.GPS_HEADER, *gps_rows(10, 20)])[:-3]
    (tmp_path / 'gps.csv').write_text(text)
    table = robotcar.read_gps(tmp_path / 'gps.csv')
    assert list(table.rows['timestamp']) == [10]
    assert 'cut short' in table.notes[0]


def test_absent_sigmas_are_nan_and_the_row_is_kept(tmp_path):
    table = read_gps_lines(tmp_path, ['10,9,51.76,-1.26'])
    assert table.rows['latitude'][0] == 51.76
    assert math.isnan(table.rows['latitude_sigma'][0])


def test_a_header_that_moves_columns_is_followed(tmp_path):
    table = read_gps_lines(tmp_path, ['timestamp,longitude,latitude', '10,-1.26,51.76'])
    assert (table.rows['latitude'][0], table.rows['longitude'][0]) == (51.76, -1.26)


@pytest.mark.parametrize('lines', [[], [made.GPS_HEADER], [made.GPS_HEADER, 'x,y,z']])
def test_a_table_without_a_usable_row_is_an_error_that_names_the_columns(tmp_path, lines):
    with pytest.raises(ValueError, match=r'no usable row.*expected columns timestamp'):
        read_gps_lines(tmp_path, lines)


def test_rtk_rows_have_14_columns_and_further_ones_are_ignored(drive, tmp_path):
    plain = robotcar.read_rtk(drive.rtk).rows
    header, *lines = drive.rtk.read_text().splitlines()
    wider = [header + ',extra' * 9, *(line + ',1,2,3,4,5,6,7,8,9' for line in lines)]
    write_lines(tmp_path / 'rtk.csv', wider)
    assert (robotcar.read_rtk(tmp_path / 'rtk.csv').rows == plain).all()
    assert len(plain) == len(lines)


def test_ins_rows_give_the_poses_that_corrected_rtk_rows_give(drive):
    rtk = robotcar.ins_track_from_rtk(robotcar.read_rtk(drive.rtk).rows)
    ins_rows = robotcar.read_ins(drive.traversal / 'gps/ins.csv').rows
    ins = robotcar.ins_track_from_ins(ins_rows)
    assert set(ins_rows['ins_status']) == {'INS_SOLUTION_GOOD'}
    assert np.abs(rtk.ned_from_body - ins.ned_from_body).max() < 1e-9
    assert (rtk.easting_m == ins.easting_m).all()


def test_swapped_northing_and_easting_are_refused(drive, tmp_path):
    header, *lines = drive.rtk.read_text().splitlines()
    swapped = []
    for line in lines:
        fields = line.split(',')
        fields[4], fields[5] = fields[5], fields[4]
        swapped.append(','.join(fields))
    write_lines(tmp_path / 'rtk.csv', [header, *swapped])
    with pytest.raises(ValueError, match='columns swapped'):
        robotcar.ins_track_from_rtk(robotcar.read_rtk(tmp_path / 'rtk.csv').rows)


# --- camera -------------------------------------------------------------------------------------

@pytest.mark.parametrize(
    'name, bgr', [('blue', (200, 0, 0)), ('green', (0, 200, 0)), ('red', (0, 0, 200))]
)
def test_a_scene_of_one_colour_keeps_it_through_the_gbrg_filter(name, bgr):
    scene = np.full((16, 20, 3), bgr, np.uint8)
    assert (robotcar.demosaic(made.bayer_gbrg(scene))[2:-2, 2:-2] == bgr).all()


def test_the_distortion_table_is_read_row_by_row_as_u_then_v(drive):
    intrinsics = robotcar.read_intrinsics(drive.root / 'models')
    table = intrinsics.lut_image(made.WIDTH_PX, made.HEIGHT_PX)
    assert table.shape == (made.HEIGHT_PX, made.WIDTH_PX, 2)
    assert tuple(table[7, 50]) == pytest.approx(made.distorted_pixel(50, 7), abs=1e-12)


def test_a_table_of_another_image_size_is_refused(drive):
    intrinsics = robotcar.read_intrinsics(drive.root / 'models')
    with pytest.raises(ValueError, match='3,072 pixels but the images are 640x480'):
        intrinsics.lut_image(640, 480)


def test_the_plumb_bob_fit_finds_the_lens_that_made_the_table(drive):
    intrinsics = robotcar.read_intrinsics(drive.root / 'models')
    coefficients, error_px = robotcar.fit_plumb_bob(intrinsics, made.WIDTH_PX, made.HEIGHT_PX)
    assert coefficients == pytest.approx([made.DISTORTION_K1, 0, 0, 0, 0], abs=1e-9)
    assert error_px < 1e-9


def test_the_camera_looks_ahead_from_base_link(drive):
    intrinsics = robotcar.read_intrinsics(drive.root / 'models')
    stereo = robotcar.read_extrinsic(drive.root / 'extrinsics/stereo.txt')
    base_from_camera = robotcar.base_from_optical(stereo, intrinsics)
    right, down, ahead = base_from_camera[:3, :3].T
    assert (list(right), list(down), list(ahead)) == ([0, -1, 0], [0, 0, -1], [1, 0, 0])


def test_an_extrinsics_file_of_five_numbers_is_refused(tmp_path):
    write_lines(tmp_path / 'ins.txt', ['1 2 3 4 5'])
    with pytest.raises(ValueError, match='holds 5 numbers; expected 6'):
        robotcar.read_extrinsic(tmp_path / 'ins.txt')


# --- images on disk -----------------------------------------------------------------------------

def touch_images(tmp_path, stamps_us):
    (tmp_path / 'stereo/centre').mkdir(parents=True)
    for stamp_us in stamps_us:
        (tmp_path / f'stereo/centre/{stamp_us}.png').touch()


def test_a_missing_chunk_is_told_with_its_size(tmp_path):
    touch_images(tmp_path, [1000, 2000, 5000])
    write_lines(
        tmp_path / 'stereo.timestamps', ['1000 1', '2000 1', '3000 2', '4000 2', '', '5000 3']
    )
    images = robotcar.list_stereo_images(tmp_path)
    assert list(images.stamps_us) == [1000, 2000, 5000]
    assert images.notes == ('chunk 2: 2 of 2 listed images are not on disk',)


def test_images_are_listed_by_number_not_by_name(tmp_path):
    touch_images(tmp_path, [999_000, 1_000_000, 9_000_000])
    images = robotcar.list_stereo_images(tmp_path)
    assert list(images.stamps_us) == [999_000, 1_000_000, 9_000_000]
    assert images.notes == (
        'stereo.timestamps is missing: image times are taken from the file names',
        '1 gaps in the images longer than 1 s, the longest 8.0 s',
    )


# --- interpolation ------------------------------------------------------------------------------

def straight_track(stamps_s, headings_deg):
    stamps_s = np.array(stamps_s, dtype=float)
    zero = np.zeros(len(stamps_s))
    return robotcar.PoseTrack(
        np.round(stamps_s * 1e9).astype(np.int64), 620_000 + 10 * stamps_s, 5_735_000 + zero,
        zero, robotcar.rotation_from_rpy(zero, zero, np.radians(headings_deg)), '30U',
    )


def test_a_pose_between_two_rows_is_divided_truly_and_turns_the_short_way():
    track = straight_track([0.0, 1.0], [350.0, 10.0])
    between = robotcar.interpolate_track(track, [250_000_000, 750_000_000])
    assert between.easting_m == pytest.approx([620_002.5, 620_007.5])
    assert np.degrees(between.heading_rad()) == pytest.approx([-5.0, 5.0])


def test_a_request_at_a_row_gives_the_row():
    track = straight_track([0.0, 1.0, 2.0], [0.0, 20.0, 40.0])
    at_rows = robotcar.interpolate_track(track, track.stamp_ns)
    assert at_rows.easting_m == pytest.approx(track.easting_m, abs=0)
    assert at_rows.heading_rad() == pytest.approx(track.heading_rad())


def test_requests_outside_the_rows_and_in_gaps_are_nan():
    track = straight_track([0.0, 1.0, 4.0], [0.0, 0.0, 0.0])
    wanted = robotcar.interpolate_track(
        track, [-1, 500_000_000, 2_000_000_000, 4_000_000_000, 4_000_000_001]
    )
    assert list(np.isnan(wanted.easting_m)) == [True, False, True, False, True]
    assert list(np.isnan(wanted.heading_rad())) == [True, False, True, False, True]


# --- real traversals ----------------------------------------------------------------------------

def test_real_headings_corrected_are_the_real_directions_of_motion(data_dir):
    files = sorted((data_dir / 'oxford').glob('*.csv'))
    assert len(files) == 12
    for file in files:
        stamp_us, easting_m, northing_m, yaw_rad = np.loadtxt(file, delimiter=',', skiprows=1).T
        longitude_deg, latitude_deg = made.UTM_FROM_LL.transform(
            easting_m, northing_m, direction='INVERSE'
        )
        rows = np.zeros(len(stamp_us), dtype=robotcar.RTK_DTYPE)
        rows['timestamp'], rows['utm_zone'], rows['yaw'] = stamp_us, '30U', yaw_rad
        rows['easting'], rows['northing'] = easting_m, northing_m
        rows['latitude'], rows['longitude'] = latitude_deg, longitude_deg
        off_deg = robotcar.heading_minus_course_deg(robotcar.ins_track_from_rtk(rows))
        assert abs(np.median(off_deg)) < 0.5, file.name
        assert np.mean(np.abs(off_deg) < 5.0) > 0.9, file.name


# --- visual odometry ----------------------------------------------------------------------------

def vo_rows(*rows):
    names = ('source_timestamp', 'destination_timestamp', 'x', 'y', 'z', 'roll', 'pitch', 'yaw')
    kinds = ['i8', 'i8'] + ['f8'] * 6
    return np.array(list(rows), dtype=list(zip(names, kinds)))


def test_odometry_chains_each_step_in_the_frame_of_the_one_before():
    # 1 m ahead with a right turn of 90 degrees, then 2 m ahead: to the right, y = -2 in FLU.
    track = robotcar.integrate_vo(
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
    one, other = robotcar.integrate_vo(later_first), robotcar.integrate_vo(earlier_first)
    assert (one.stamp_ns == other.stamp_ns).all()
    assert (one.odom_from_base == other.odom_from_base).all()


def test_the_integrated_odometry_is_the_true_motion(drive):
    track = robotcar.integrate_vo(robotcar.read_vo(drive.traversal / 'vo/vo.csv').rows)
    flu = np.diag([1, -1, -1, 1])
    start_inverse = np.linalg.inv(made.vehicle_pose(0.0))
    expected = [
        flu @ start_inverse @ made.vehicle_pose(made.seconds(us)) @ flu for us in drive.image_us
    ]
    assert list(track.stamp_ns) == [1000 * us for us in drive.image_us]
    assert track.odom_from_base == pytest.approx(np.array(expected), abs=1e-9)


def test_on_an_arc_the_velocity_points_ahead():
    track = robotcar.integrate_vo(
        vo_rows((1_000_000, 0, math.sin(0.5) / 0.1, (1 - math.cos(0.5)) / 0.1, 0, 0, 0, 0.5))
    )
    ahead, left, up = track.linear_mps[-1]
    assert (left, up) == pytest.approx((0, 0), abs=1e-12)
    assert ahead == pytest.approx(2 * math.sin(0.25) / 0.1)
    assert track.angular_radps[-1] == pytest.approx([0, 0, -0.5])


def test_a_short_gap_is_bridged_at_constant_velocity_and_a_long_one_is_told():
    step = (1.0, 0, 0, 0, 0, 0)
    track = robotcar.integrate_vo(
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
    track = robotcar.integrate_vo(
        vo_rows((100_000, 0, *step), (150_000, 50_000, *step), (200_000, 100_000, *step))
    )
    assert track.odom_from_base[-1, 0, 3] == pytest.approx(2)
    assert track.notes == ('vo.csv: 1 rows overlap the row before or last no time, left out',)
