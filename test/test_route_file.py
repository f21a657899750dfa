"""Routes are read from files of each kind."""

import numpy as np
import pytest

from crossview_localizer.bags.route_file import read_route


def test_the_route_of_a_bag_is_that_of_its_fixes(tmp_path):
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import get_typestore, Stores
    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    fixes = [(51.7, -1.2, 0), (51.8, -1.3, -1), (51.9, -1.4, -2), (float('nan'), 0.0, 0)]
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
    assert len(read_route(path, 'gnss/fix')) == 2
    with pytest.raises(ValueError, match=r'/gnss/fix, /other/fix\); expected one, and not /no'):
        read_route(path, '/none')
    with pytest.raises(ValueError, match='no valid fix'):
        read_route(path, '/other/fix')


@pytest.mark.parametrize('name, text', [
    ('gps.csv', 'timestamp,num_satellites,latitude,longitude\n1,9,51.75,-1.26\n2,9,51.76,-1.25\n'),
    ('other.csv', '\ufeff"Lat";"Lon"\r\n51.75;-1.26\r\n51.76;-1.25\r\n'),
    ('track.gpx', '<gpx xmlns="http://www.topografix.com/GPX/1/1"><trk><trkseg>'
     '<trkpt lat="51.75" lon="-1.26"><ele>60</ele></trkpt><trkpt lat="51.76" lon="-1.25"/>'
     '</trkseg></trk></gpx>'),
    ('comma.csv', 'sep=;\nlatitude;longitude\n51,75;-1,26\n51,76;-1,25\n'),
    ('quoted.csv', 'lat,lon\n"51,75","-1,26"\n"51,76","-1,25"\n'),
    ('letters.csv', 'latitude,longitude\n51.75N,1.26W\nN 51.76,W 1.25\n'),
    ('minutes.csv', 'Latitude (deg)\tLongitude (deg)\n51°45\'0.0"N\t1°15\'36"W\n'
     '51 45.6\t-1 15\n'),
    ('rostopic.csv', '%time,field.latitude,field.longitude\n0,51.75,-1.26\n1,51.76,-1.25\n'),
    ('turned.csv', 'lat,lon\n51.75,358.74\n51.76,358.75\n'),
    ('track.kml', '<kml xmlns="http://www.opengis.net/kml/2.2"><Placemark><LineString><coordinates>'
     '\n-1.26,51.75,60 -1.25,51.76,60\n</coordinates></LineString></Placemark></kml>'),
    ('track2.kml', '<kml xmlns:gx="http://www.google.com/kml/ext/2.2"><gx:Track>'
     '<gx:coord>-1.26 51.75 60</gx:coord><gx:coord>-1.25 51.76 60</gx:coord></gx:Track></kml>'),
    ('track.geojson', '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": '
     '{"type": "LineString", "coordinates": [[-1.26, 51.75, 60], [-1.25, 51.76]]}}]}'),
    ('deviations.csv', 'lat_std,lon_std,lat,lon\n1,1,51.75,-1.26\n1,1,51.76,-1.25\n'),
    ('gaps.csv', 'lat,lon\n51.75,-1.26\nn/a,\n51.76,-1.25\n')])
def test_tracks_of_other_programs_are_read(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding='utf-8')
    np.testing.assert_allclose(
        read_route(tmp_path / name), [[51.75, -1.26], [51.76, -1.25]], rtol=0, atol=1e-12)


@pytest.mark.parametrize('encoding', ['cp1252', 'utf-16', 'utf-8-sig'])
def test_the_encodings_of_spreadsheets_are_read(tmp_path, encoding):
    path = tmp_path / 'sheet.csv'
    path.write_text('Ort;lat;lon\nMünchen;48°9\'0"N;11,5\n', encoding=encoding)
    np.testing.assert_allclose(read_route(path), [[48.15, 11.5]])


def test_a_file_that_is_no_text_is_refused_with_what_is_read(tmp_path):
    path = tmp_path / 'track.kmz'
    path.write_bytes(b'PK\3\4\0\0\0')
    with pytest.raises(ValueError, match='is no text; expected a CSV .*KML'):
        read_route(path)


@pytest.mark.parametrize('row', ['51,75,-1,26', 'north,-1.26', '-51.75S,1.26W', '51 75,1.26'])
def test_a_row_that_cannot_be_read_is_quoted(tmp_path, row):
    (tmp_path / 'route.csv').write_text(f'latitude,longitude\n51.75,-1.26\n{row}\n')
    with pytest.raises(ValueError, match=f"route.csv, row 3, cannot be read .*'{row}'"):
        read_route(tmp_path / 'route.csv')


def test_a_file_without_a_valid_fix_shows_the_first_that_was_read(tmp_path):
    (tmp_path / 'route.csv').write_text('latitude,longitude\n517500000,-12600000\n')
    with pytest.raises(ValueError, match=r'first is \[517500000.0, -12600000.0\]'):
        read_route(tmp_path / 'route.csv')


def test_fixes_that_are_left_out_are_counted_in_the_log(tmp_path, caplog):
    (tmp_path / 'route.csv').write_text('lat,lon\n51.75,-1.26\n5145.6,-115.6\n,\n')
    assert read_route(tmp_path / 'route.csv').tolist() == [[51.75, -1.26]]
    assert '2 of 3 fixes' in caplog.text and 'the first is [5145.6, -115.6]' in caplog.text


def test_both_sides_of_180_degrees_are_kept_however_they_are_counted(tmp_path):
    for east in ('180.0001', '-179.9999'):
        (tmp_path / 'route.csv').write_text(f'lat,lon\n-16.8,179.9999\n-16.8,{east}\n')
        np.testing.assert_allclose(
            read_route(tmp_path / 'route.csv'), [[-16.8, 179.9999], [-16.8, -179.9999]])


@pytest.mark.parametrize('name, text', [
    ('a.gpx', '<gpx><trkpt lat="51"/></gpx>'), ('a.gpx', '<gpx'), ('a.gpx', '<gpx></gpx>'),
    ('a.kml', '<kml><coordinates>51.7</coordinates></kml>'), ('a.geojson', '{"type": '),
    ('a.geojson', '{"coordinates": [[1.0]]}'), ('a.geojson', '{"type": "FeatureCollection"}')])
def test_a_damaged_track_is_refused_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        read_route(tmp_path / name)
