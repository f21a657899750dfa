"""Tables and extrinsics of RobotCar are read as they are."""

import math

import pytest
import robotcar_drive as made
from robotcar_drive import write_lines

from crossview_localizer.bags import robotcar


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    return made.write_drive(tmp_path_factory.mktemp('drive'))


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


def test_an_extrinsics_file_of_five_numbers_is_refused(tmp_path):
    write_lines(tmp_path / 'ins.txt', ['1 2 3 4 5'])
    with pytest.raises(ValueError, match='holds 5 numbers; expected 6'):
        robotcar.read_extrinsic(tmp_path / 'ins.txt')
