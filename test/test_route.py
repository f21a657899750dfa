"""Routes: fixes from files of each kind, and the lattice points near them."""

import numpy as np
import pytest

from crossview_localizer.maps.route import corridor, lattice, read_route

EVERYWHERE = (-1e4, -1e4, 1e4, 1e4)


def test_corridor_holds_exactly_the_points_within_its_distance():
    route_m = np.array([[0.3, 0.1], [40.0, 3.0], [40.0, 3.0], [45.0, 60.0], [20.0, 61.0]])
    grid, wanted = corridor(route_m, 11.0, 2.5, EVERYWHERE)
    # All lattice points around, against densely sampled segments (every 2 cm).
    x_m, y_m = np.meshgrid(np.arange(-20, 65, 2.5), np.arange(-20, 80, 2.5))
    share = np.linspace(0.0, 1.0, 3000)[:, None]
    nearest_m = np.full(x_m.shape, np.inf)
    for start, end in zip(route_m[:-1], route_m[1:]):
        line = start + share * (end - start)
        for point in np.ndindex(x_m.shape):
            distance_m = np.hypot(line[:, 0] - x_m[point], line[:, 1] - y_m[point]).min()
            nearest_m[point] = min(nearest_m[point], distance_m)
    assert np.abs(nearest_m - 11.0).min() > 1e-3        # no point is on the edge
    expected = {(float(x), float(y)) for x, y in zip(
        x_m[nearest_m < 11.0], y_m[nearest_m < 11.0])}
    found = np.stack(grid.xy_from_row_col(*np.nonzero(wanted)), axis=1)
    assert {(float(x), float(y)) for x, y in found} == expected
    assert wanted[0].any() and wanted[-1].any() and wanted[:, 0].any() and wanted[:, -1].any()


def test_corridor_of_one_fix_is_a_disc_and_fixes_far_apart_are_not_joined():
    lines = []
    grid, wanted = corridor(
        np.array([[0.0, 0.0], [600.0, 0.0]]), 5.0, 2.5, EVERYWHERE, lines.append)
    assert wanted.sum() == 2 * 13
    assert grid.cols == 245
    assert lines == ['1 gaps of more than 500 m are not joined']


def test_corridor_keeps_to_the_imagery_and_reports_what_is_outside():
    lines = []
    route_m = np.array([[-50.0, 0.0], [50.0, 0.0], [np.inf, 0.0]])
    grid, wanted = corridor(route_m, 10.0, 2.0, (-100.0, -4.0, 7.0, 100.0), lines.append)
    x_m, y_m = grid.cell_centres()
    assert x_m[-1] == 6.0 and y_m[-1] == -4.0 and wanted[-1].any()
    assert lines == ['2 of 3 fixes are outside the imagery']
    with pytest.raises(ValueError, match='none of the 3 fixes'):
        corridor(route_m, 10.0, 2.0, (200.0, 200.0, 300.0, 300.0))


def test_lattice_points_are_multiples_of_the_spacing_in_any_box():
    grid = lattice((-7.4, 2.6, 9.9, 7.6), 2.5)
    x_m, y_m = grid.cell_centres()
    assert x_m.tolist() == [-5.0, -2.5, 0.0, 2.5, 5.0, 7.5]
    assert y_m.tolist() == [7.5, 5.0]
    with pytest.raises(ValueError, match='widen --spacing-m'):
        lattice((0.0, 0.0, 1e5, 1e5), 2.5)


def test_the_route_of_a_bag_is_that_of_its_fixes(tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import get_typestore, Stores
    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    fixes = [(51.7, -1.2, 0), (51.8, -1.3, -1), (51.9, -1.4, 2), (float('nan'), 0.0, 0)]
    path = tmp_path / 'drive'
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        topics = [
            writer.add_connection(name, 'sensor_msgs/msg/NavSatFix', typestore=store)
            for name in ('/gnss/fix', '/other/fix')
        ]
        for number, (latitude, longitude, status) in enumerate(fixes):
            stamp = types['builtin_interfaces/msg/Time'](number, 0)
            message = types['sensor_msgs/msg/NavSatFix'](
                types['std_msgs/msg/Header'](stamp, 'antenna'),
                types['sensor_msgs/msg/NavSatStatus'](status, 1),
                latitude, longitude, 60.0, np.zeros(9), 0)
            data = store.serialize_cdr(message, message.__msgtype__)
            writer.write(topics[0], number * 10**9, data)
        writer.write(topics[1], 10**10, data)
    assert read_route(path, '/gnss/fix').tolist() == [[51.7, -1.2], [51.9, -1.4]]
    with pytest.raises(ValueError, match=r'2 NavSatFix topics \(/gnss/fix, /other/fix\).*--topic'):
        read_route(path)
    with pytest.raises(ValueError, match='0 NavSatFix topics'):
        read_route(path, '/none')
    with pytest.raises(ValueError, match='no valid fix'):
        read_route(path, '/other/fix')


@pytest.mark.parametrize('name, text', [
    ('gps.csv', 'timestamp,num_satellites,latitude,longitude\n1,9,51.75,-1.26\n2,9,51.76,-1.25\n'),
    ('other.csv', '\ufeff"Lat";"Lon"\r\n51.75;-1.26\r\n51.76;-1.25\r\n'),
    ('track.gpx', '<gpx xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>'
     '<trkpt lat="51.75" lon="-1.26"><ele>60</ele></trkpt><trkpt lat="51.76" lon="-1.25"/>'
     '</trkseg></trk></gpx>')])
def test_routes_of_others_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding='utf-8')
    assert read_route(tmp_path / name).tolist() == [[51.75, -1.26], [51.76, -1.25]]


def test_a_gpx_file_that_is_none_is_refused(tmp_path):
    for text in ('<gpx><trkpt lat="51"/></gpx>', '<gpx', '<gpx></gpx>'):
        (tmp_path / 'track.gpx').write_text(text)
        with pytest.raises(ValueError, match='track.gpx'):
            read_route(tmp_path / 'track.gpx')
