"""Downloads, against a local server that fails, stalls and throttles."""

from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import math
import re
import threading
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
from pyproj import Transformer
import pytest
import rasterio

from crossview_localizer.maps.imagery import Imagery
from training import download_imagery
from training.download_imagery import (
    check_template,
    download,
    DownloadError,
    Fetcher,
    latlon_from_mercator,
    main,
    mercator_from_latlon,
    Source,
    tile_url,
    tiles_of_box,
    tiles_of_route,
    write_geotiff,
)

ZOOM = 19
OXFORD = (51.7595, -1.2625, 51.7606, -1.2606)      # south, west, north, east
MERCATOR_FROM_LL = Transformer.from_crs('EPSG:4326', 'EPSG:3857', always_xy=True)


def picture_of(x_m, y_m):
    """A colour for every point of the Mercator plane, smooth over some metres."""
    return np.stack((
        127 + 100 * np.sin(x_m / 20.0), 127 + 100 * np.sin(y_m / 20.0), 0 * x_m + 90), -1)


def tile_picture(zoom, column, row, side_px=256):
    side_m = 2 * download_imagery.HALF_WORLD_M / 2 ** zoom
    along = (np.arange(side_px) + 0.5) * side_m / side_px
    x_m = column * side_m - download_imagery.HALF_WORLD_M + along
    y_m = download_imagery.HALF_WORLD_M - row * side_m - along
    return picture_of(*np.meshgrid(x_m, y_m))


def encoded(rgb, ending='.png'):
    return cv2.imencode(ending, np.rint(rgb)[..., ::-1].astype(np.uint8))[1].tobytes()


class Server:
    """Tiles below /z/x/y.png, and what the test wants to go wrong with them.

    ``faults`` maps the number of a request, or a (column, row), to a function of the handler that
    answers in its own way.
    """

    def __init__(self):
        self.faults = {}
        self.requests = []
        self.agents = set()
        self.release = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                number = len(outer.requests)
                outer.requests.append(self.path)
                outer.agents.add(self.headers['User-Agent'])
                address = urlsplit(self.path)
                if address.path == '/static':
                    key = None
                else:
                    _, zoom, column, row = address.path.split('.')[0].split('/')
                    key = (int(column), int(row))
                fault = outer.faults.get(number) or outer.faults.get(key)
                if fault:
                    fault(self)
                elif key is None:
                    self.answer(outer.static(parse_qs(address.query)))
                else:
                    self.answer(encoded(tile_picture(int(zoom), *key)))

            def answer(self, body, status=200, kind='image/png', **headers):
                self.send_response(status)
                self.send_header('Content-Type', kind)
                self.send_header('Content-Length', str(len(body)))
                for name, value in headers.items():
                    self.send_header(name.replace('_', '-'), value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.http.daemon_threads = True
        self.base = f'http://127.0.0.1:{self.http.server_address[1]}'
        self.url = self.base + '/{z}/{x}/{y}.png'

    def static(self, query):
        """640 px about a point, as Google's API sends them, with a mark at the lower edge."""
        latitude, longitude = map(float, query['center'][0].split(','))
        zoom = int(query['zoom'][0])
        pixel_m = 2 * download_imagery.HALF_WORLD_M / (256 * 2 ** zoom)
        x_m, y_m = MERCATOR_FROM_LL.transform(longitude, latitude)
        along = (np.arange(640) - 319.5) * pixel_m
        picture = picture_of(*np.meshgrid(x_m + along, y_m - along))
        picture[-18:] = 255
        return encoded(picture)


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.http.shutdown()
    server.http.server_close()
    thread.join()


class Time:
    """A clock that only sleeping moves on, and the sleeps that were asked for."""

    def __init__(self):
        self.now_s = 0.0
        self.sleeps_s = []

    def sleep(self, seconds):
        self.sleeps_s.append(seconds)
        self.now_s += seconds

    def clock(self):
        return self.now_s


def fetcher(time=None, attempts=3, rate_hz=1e6, timeout_s=10.0, key=''):
    time = time or Time()
    return Fetcher(rate_hz, attempts, timeout_s, key, time.sleep, time.clock)


def source(server):
    return Source(server.url, '(c) Test Survey', 'https://example.org/terms')


def arguments(server, out, *more):
    south, west, north, east = map(str, OXFORD)
    return ['--url', server.url, '--attribution', '(c) Test Survey', '--terms-url',
            'https://example.org/terms', '--box', south, west, north, east, '--zoom', str(ZOOM),
            '--rate-hz', '50', '--out', str(out), *more]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(download_imagery, 'FIRST_WAIT_S', 0.01)


def test_a_region_becomes_a_geotiff_that_imagery_opens_at_the_right_place(server, tmp_path):
    out = tmp_path / 'area.tif'
    assert main(arguments(server, out, '--accept-terms')) == 0
    imagery = Imagery.open(out)
    imagery.require_accuracy(0.01)
    assert imagery.attribution == ('area.tif ((c) Test Survey)',)
    for x_m, y_m in ((0.0, 0.0), (40.0, -30.0), (-50.0, 35.0)):
        rgb, valid = imagery.crop(x_m, y_m, 4.0, 16)
        latitude, longitude = imagery.frame.latlon_from_xy(x_m, y_m)
        expected = picture_of(*map(np.array, MERCATOR_FROM_LL.transform(longitude, latitude)))
        assert valid.all()
        np.testing.assert_allclose(rgb[7:9, 7:9].mean((0, 1)), expected, atol=1.5)
    assert not (tmp_path / 'area.tif.tiles').exists()
    assert server.agents == {download_imagery.USER_AGENT}


def test_nothing_is_fetched_before_the_terms_are_accepted(server, tmp_path, capsys):
    assert main(arguments(server, tmp_path / 'area.tif')) == 2
    captured = capsys.readouterr()
    assert 'https://example.org/terms' in captured.out and '(c) Test Survey' in captured.out
    assert '--accept-terms' in captured.err and server.requests == []


def test_failures_that_may_pass_are_tried_again_with_growing_waits(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_imagery, 'FIRST_WAIT_S', 1.0)
    time = Time()
    server.faults = {
        0: lambda handler: handler.answer(b'', 500),
        1: lambda handler: handler.answer(b'', 503),
        2: lambda handler: handler.answer(b'\x89PNG cut off'),
        3: lambda handler: handler.connection.close(),
    }
    url = tile_url(source(server), tiles_of_box(source(server), ZOOM, *OXFORD), 5, 6, '')
    picture = fetcher(time, attempts=5).fetch(url, 256)
    np.testing.assert_allclose(picture[..., 2::-1], np.rint(tile_picture(ZOOM, 5, 6)), atol=1)
    np.testing.assert_allclose(time.sleeps_s, [1.0, 2.0, 4.0, 8.0])


def test_a_server_that_throttles_is_given_the_time_it_asks_for(server):
    time = Time()
    server.faults = {0: lambda handler: handler.answer(b'', 429, Retry_After='7')}
    assert fetcher(time).fetch(f'{server.base}/3/1/2.png', 256) is not None
    assert time.sleeps_s == [7.0]
    server.faults = {2: lambda handler: handler.answer(b'', 429, Retry_After='3600')}
    with pytest.raises(DownloadError, match='asks to wait 3600 s'):
        fetcher(time).fetch(f'{server.base}/3/1/2.png', 256)
    assert len(server.requests) == 3


def test_requests_are_no_faster_than_the_rate(server):
    time = Time()
    slow = fetcher(time, rate_hz=4.0)
    for column in range(5):
        slow.fetch(f'{server.base}/3/{column}/2.png', 256)
    assert time.now_s == pytest.approx(1.0)


@pytest.mark.parametrize('drips', [False, True])
def test_a_server_that_stalls_is_not_waited_for_longer_than_the_timeout(server, drips):
    def stall(handler):
        handler.send_response(200)
        handler.send_header('Content-Type', 'image/png')
        handler.send_header('Content-Length', '100000')
        handler.end_headers()
        try:
            while not server.release.wait(0.02):
                if drips:                            # never silent, never done
                    handler.wfile.write(b'.')
                    handler.wfile.flush()
        except OSError:                              # the client has gone
            pass

    server.faults = {0: stall}
    patient = Fetcher(1e6, 2, 2.0)
    assert patient.fetch(f'{server.base}/3/1/2.png', 256) is not None
    server.faults = {2: stall, 3: stall}
    with pytest.raises(DownloadError, match='answer within 2 s at try 2'):
        patient.fetch(f'{server.base}/3/1/2.png', 256)


def test_a_run_that_was_stopped_goes_on_without_asking_twice(server, tmp_path, capsys):
    out = tmp_path / 'area.tif'
    wanted = len(tiles_of_box(source(server), ZOOM, *OXFORD))
    server.faults = {k: lambda handler: handler.answer(b'', 502) for k in range(4, 6)}
    assert main(arguments(server, out, '--accept-terms', '--attempts', '2')) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'status 502 at try 2' in error and 'goes on where it stopped' in error
    assert not out.exists()
    server.faults = {}
    assert main(arguments(server, out, '--accept-terms')) == 0
    assert len(server.requests) == wanted + 2 and wanted >= 6
    asked = Counter(server.requests)
    assert sorted(asked.values()) == [1] * (wanted - 1) + [3]


def test_tiles_of_another_zoom_are_not_mixed_in(server, tmp_path):
    folder = tmp_path / 'tiles'
    download(source(server), tiles_of_box(source(server), 17, *OXFORD), folder, fetcher())
    with pytest.raises(ValueError, match='another source or zoom'):
        download(source(server), tiles_of_box(source(server), 18, *OXFORD), folder, fetcher())


def test_a_folder_of_the_user_is_neither_used_nor_deleted(server, tmp_path, capsys):
    folder = tmp_path / 'area.tif.tiles'
    folder.mkdir()
    (folder / 'mine.txt').write_text('mine')
    assert main(arguments(server, tmp_path / 'area.tif', '--accept-terms')) == 2
    assert 'was not made by download_imagery' in capsys.readouterr().err
    assert (folder / 'mine.txt').read_text() == 'mine' and not server.requests


def test_where_the_source_has_no_imagery_the_result_is_transparent(server, tmp_path):
    tiles = tiles_of_box(source(server), ZOOM, *OXFORD)
    first = (int(tiles.columns[0]), int(tiles.rows[0]))
    server.faults = {first: lambda handler: handler.answer(b'', 404)}
    out = tmp_path / 'area.tif'
    assert main(arguments(server, out, '--accept-terms')) == 0
    with rasterio.open(out) as file:
        alpha = file.read(4)
    assert (alpha[:256, :256] == 0).all() and (alpha[:256, 256:] == 255).all()
    for column, row in zip(tiles.columns.tolist(), tiles.rows.tolist()):
        server.faults[column, row] = lambda handler: handler.answer(b'', 404)
    assert main(arguments(server, tmp_path / 'none.tif', '--accept-terms')) == 2


def test_a_notice_in_place_of_imagery_is_transparent_and_said(server, tmp_path, capsys):
    tiles = tiles_of_box(source(server), ZOOM, *OXFORD)
    notice = np.full((256, 256, 3), 200)
    notice[100:120, 40:200] = 90                                    # "not yet available"
    places = list(zip(tiles.columns.tolist(), tiles.rows.tolist()))
    for place in places[1:5]:
        server.faults[place] = lambda handler: handler.answer(encoded(notice))
    assert main(arguments(server, tmp_path / 'area.tif', '--accept-terms')) == 0
    assert '4 are one and the same picture' in capsys.readouterr().out
    with rasterio.open(tmp_path / 'area.tif') as file:
        assert (file.read(4) == 0).mean() == 4 / len(tiles)
    server.faults.pop(places[1])                    # three alike may be three tiles of one field
    assert main(arguments(server, tmp_path / 'field.tif', '--accept-terms')) == 0
    with rasterio.open(tmp_path / 'field.tif') as file:
        assert file.read(4).all()


REFUSALS = {
    'a wrong key': (lambda h: h.answer(b'denied', 403, 'text/plain'), 'status 403 .*key'),
    'a page instead of a tile': (
        lambda h: h.answer(b'<html>', 200, 'text/html'), 'sent text/html, 6 bytes'),
    'a picture of another size': (
        lambda h: h.answer(encoded(np.zeros((512, 512, 3)))), '512x512; expected 256x256'),
}


@pytest.mark.parametrize('refusal', REFUSALS)
def test_what_will_not_pass_is_not_tried_again_and_does_not_show_the_key(server, refusal):
    answer, expected = REFUSALS[refusal]
    server.faults = {0: answer}
    with pytest.raises(DownloadError, match=expected) as caught:
        fetcher(key='se/cret').fetch(f'{server.base}/3/1/2.png?key=se%2Fcret', 256)
    assert len(server.requests) == 1 and 'cret' not in str(caught.value)


def test_an_unreachable_server_is_named(tmp_path, capsys):
    server = Server()
    server.http.server_close()
    assert main(arguments(server, tmp_path / 'a.tif', '--accept-terms', '--attempts', '2')) == 2
    assert 'refused' in capsys.readouterr().err.splitlines()[-1]


def test_google_pictures_are_joined_without_the_marks_at_their_edge(
        server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        download_imagery, 'GOOGLE_URL', server.base
        + '/static?center={lat},{lon}&zoom={z}&size=640x640&maptype=satellite&key={key}')
    out = tmp_path / 'google.tif'
    call = ['--google', '--box', *map(str, OXFORD), '--zoom', '19', '--rate-hz', '50',
            '--out', str(out), '--accept-terms']
    monkeypatch.delenv(download_imagery.KEY_VARIABLE, raising=False)
    assert main(call) == 2
    assert download_imagery.KEY_VARIABLE in capsys.readouterr().err
    monkeypatch.setenv(download_imagery.KEY_VARIABLE, 'a&b')
    assert main(call) == 0
    assert 'a&b' not in capsys.readouterr().out
    assert all(request.endswith('key=a%26b') for request in server.requests)
    with rasterio.open(out) as file:
        pixels = np.moveaxis(file.read((1, 2, 3)), 0, 2)
        x_m, y_m = file.transform @ np.stack(
            np.meshgrid(np.arange(file.width) + 0.5, np.arange(file.height) + 0.5))
        assert file.crs == 'EPSG:3857' and 'Google' in file.tags()['TIFFTAG_COPYRIGHT']
    assert np.abs(pixels - picture_of(x_m, y_m)).max() <= 1.5


def test_tile_numbers_are_those_of_the_usual_scheme():
    # The worked example of the OpenStreetMap wiki's slippy map page: 139.7006793 E, 35.6590699 N.
    place = (35.6590, 139.7006, 35.65907, 139.70068)
    tiles = tiles_of_box(Source('http://x/{z}/{x}/{y}', '', ''), 18, *place)
    assert (tiles.columns.tolist(), tiles.rows.tolist()) == ([232798], [103246])
    url = tile_url(Source('http://x/{z}/{x}/{-y}?c={TileCol}&r={TileRow}&m={TileMatrix}', '', ''),
                   tiles, 232798, 103246, '')
    assert url == f'http://x/18/232798/{2 ** 18 - 1 - 103246}?c=232798&r=103246&m=18'


def test_the_whole_world_is_its_four_tiles_at_zoom_1():
    whole = tiles_of_box(Source('http://x/{z}/{x}/{y}', '', ''), 1, -85.0, -180.0, 85.0, 180.0)
    assert sorted(zip(whole.columns.tolist(), whole.rows.tolist())) == [
        (0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_region_across_180_degrees_is_one_piece_and_asks_for_tiles_on_both_sides():
    fiji = Source('http://x/{z}/{x}/{y}', '', '')
    tiles = tiles_of_box(fiji, 10, -17.0, 179.9, -16.9, -179.9)
    assert sorted(set(tiles.columns.tolist())) == [1023, 1024]
    assert tile_url(fiji, tiles, 1024, 560, '') == 'http://x/10/0/560'
    route = np.array([(-16.8, 179.999), (-16.8, -179.999)])
    along = tiles_of_route(fiji, 19, route, 30.0)
    assert sorted(set(along.columns.tolist())) == list(range(2 ** 19 - 2, 2 ** 19 + 2))
    backwards = tiles_of_route(fiji, 19, route[::-1], 30.0)
    assert np.array_equal(backwards.columns, along.columns)


def test_what_is_transparent_at_the_server_is_transparent_in_the_file(server, tmp_path):
    half = np.dstack((np.full((256, 256, 3), 90, np.uint8), np.full((256, 256), 255, np.uint8)))
    half[:, 128:] = 0
    server.faults = dict.fromkeys(
        range(100), lambda handler: handler.answer(cv2.imencode('.png', half)[1].tobytes()))
    server.faults[1] = lambda handler: handler.answer(
        cv2.imencode('.png', np.zeros_like(half))[1].tobytes())
    tiles = tiles_of_box(source(server), ZOOM, *OXFORD)
    assert download(source(server), tiles, tmp_path / 'tiles', fetcher()) == 1
    write_geotiff(source(server), tiles, tmp_path / 'tiles', tmp_path / 'area.tif')
    with rasterio.open(tmp_path / 'area.tif') as file:
        pixels = file.read()
    assert np.array_equal(pixels[3, :256, :256], half[..., 3])
    assert not pixels[3, :256, 256:512].any()
    assert (pixels[:3, pixels[3] == 255] == 90).all()


def test_mercator_is_that_of_epsg_3857_and_comes_back():
    for latitude, longitude in ((51.76, -1.26), (-35.3, 149.1), (0.0, 0.0)):
        expected = MERCATOR_FROM_LL.transform(longitude, latitude)
        np.testing.assert_allclose(
            mercator_from_latlon(latitude, longitude), expected, atol=1e-6)
        assert latlon_from_mercator(*expected) == pytest.approx((latitude, longitude), abs=1e-12)


def test_a_corridor_holds_all_tiles_near_the_route_and_few_others():
    any_source = Source('http://x/{z}/{x}/{y}', '', '')
    route = np.array([(51.7600, -1.2600), (51.7618, -1.2600), (51.7618, -1.2560)])
    tiles = tiles_of_route(any_source, 19, route, 30.0)
    found = set(zip(tiles.columns.tolist(), tiles.rows.tolist()))
    metres_deg = 1 / 111_300.0
    stretch = 1 / math.cos(math.radians(51.76))
    for share in np.linspace(0, 1, 50):
        for start, end in zip(route[:-1], route[1:]):
            point = start + share * (end - start)
            for north, east in ((29, 0), (-29, 0), (0, 29), (0, -29)):
                place = point + np.array([north, east * stretch]) * metres_deg
                box = (*place, *(place + 1e-9))
                one = tiles_of_box(any_source, 19, *box)
                assert (int(one.columns[0]), int(one.rows[0])) in found
    whole = tiles_of_box(any_source, 19, 51.7597, -1.2605, 51.7621, -1.2555)
    assert len(tiles) < len(whole)
    # A gap of a kilometre is not bridged.
    apart = tiles_of_route(any_source, 19, np.array([(51.76, -1.26), (51.77, -1.26)]), 30.0)
    assert len(apart) <= 12     # it would take 25 rows


def test_tiles_of_512_pixels_are_twice_as_fine(server, tmp_path):
    def double(handler):
        _, zoom, column, row = handler.path.split('.')[0].split('/')
        handler.answer(encoded(tile_picture(int(zoom), int(column), int(row), 512)))

    fine = Source(server.url, '', '', 512, 512)
    tiles = tiles_of_box(fine, ZOOM, *OXFORD)
    server.faults = dict.fromkeys(range(100), double)
    download(fine, tiles, tmp_path / 'tiles', fetcher())
    write_geotiff(fine, tiles, tmp_path / 'tiles', tmp_path / 'fine.tif')
    imagery = Imagery.open(tmp_path / 'fine.tif')
    assert imagery.pixel_m == pytest.approx(
        2 * download_imagery.HALF_WORLD_M / (512 * 2 ** ZOOM) * math.cos(math.radians(51.76)),
        rel=0.01)


BAD = {
    'no place': (['--url', 'http://x/{z}.png'], 'lacks the place'),
    'an unknown field': (['--url', 'http://x/{z}/{x}/{y}/{s}'], r'field \{s\}'),
    'no web address': (['--url', 'file:///{z}/{x}/{y}'], 'http://'),
    'a box upside down': (['--box', '52', '-1', '51', '0'], 'south below north'),
    'far too large': (['--box', '51', '-1', '52', '0'], 'more than 20000 tiles'),
    'an impossible zoom': (['--zoom', '40'], 'expected 0 to 23'),
    'an impossible rate': (['--rate-hz', '0'], 'rate 0.0 Hz'),
    'odd tiles': (['--tile-px', '300'], 'expected 256 or 512'),
}


@pytest.mark.parametrize('fault', BAD)
def test_bad_arguments_are_one_clear_line(tmp_path, capsys, fault):
    changed, expected = BAD[fault]
    call = {'--url': ['http://127.0.0.1:9/{z}/{x}/{y}'], '--attribution': ['a'],
            '--terms-url': ['b'], '--box': list(map(str, OXFORD)), '--out': [str(tmp_path / 'o')]}
    call[changed[0]] = changed[1:]
    assert main([word for name, values in call.items() for word in (name, *values)]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert re.search(expected, error)


def test_a_template_with_coordinates_of_the_centre_is_one_too():
    check_template('https://x/?c={lat},{lon}&z={z}&k={key}')
