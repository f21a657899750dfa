"""Download aerial or satellite imagery of a region, or along a route, into one GeoTIFF.

The source is any server of Web Mercator tiles (``{z}/{x}/{y}``, or WMTS with a
GoogleMapsCompatible matrix set), or the Google Static API with the user's own key. Nothing is
fetched before the user has accepted the terms of the source. Tiles are kept beside the result
until it is written, so that a run that was stopped or refused goes on where it stopped.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
import hashlib
import http.client
import json
import math
import os
from pathlib import Path
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import cv2
import numpy as np
from tqdm import tqdm

from crossview_localizer.bags.route_file import read_route
from crossview_localizer.command import run_command
from crossview_localizer.files import write_atomically

# Half the circumference of Web Mercator's sphere, m (EPSG:3857).
HALF_WORLD_M = math.pi * 6378137.0
MAX_LATITUDE_DEG = 85.05
TILE_PX = 256
USER_AGENT = 'crossview_localizer download_imagery'
KEY_VARIABLE = 'CROSSVIEW_IMAGERY_KEY'
MAX_TILE_BYTES = 20_000_000
READ_BYTES = 65_536
MAX_TILES = 20_000
MAX_ZOOM = 23
# Worth another try: too many requests, or a server that is overloaded.
TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
# The server says that it has no imagery there.
NO_IMAGERY = {204, 404, 410}
# A photograph does not repeat: a picture of so many tiles is the server's notice.
NOTICE_TILES = 4
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 120.0

GOOGLE_URL = ('https://maps.googleapis.com/maps/api/staticmap?center={lat},{lon}&zoom={z}'
              '&size=640x640&maptype=satellite&format=png&key={key}')
# The middle of each 640 px picture is kept; the margin holds the marks at the lower edge.
GOOGLE_REQUEST_PX = 640
GOOGLE_TILE_PX = 600
GOOGLE_ATTRIBUTION = 'Imagery (c) Google and its suppliers'
GOOGLE_TERMS = (
    'Google Maps Platform Terms of Service and the licence restrictions in them: '
    'https://cloud.google.com/maps-platform/terms\n'
    '  They limit storing, caching and deriving data from the imagery. The papers used such tiles '
    'for research;\n  whether you may is for you to find out. Requests are billed to your key.')


class DownloadError(OSError):
    """A tile could not be fetched; the message says which one and why."""


@dataclass(frozen=True)
class Source:
    """A server of square pictures on the Web Mercator plane.

    ``url`` holds the fields {z} {x} {y} (or {-y}, counted from the south, or the names of WMTS:
    {TileMatrix} {TileCol} {TileRow}), or {lat} {lon} of the picture's centre; {key} is the user's
    key. The server sends ``request_px`` a side, of which the middle ``tile_px`` are kept. A
    numbered tile is 1/2^z of the world a side; a picture around a centre has the resolution of
    tiles of 256 px.
    """

    url: str
    attribution: str
    terms: str
    tile_px: int = TILE_PX
    request_px: int = TILE_PX

    def side_m(self, zoom: int) -> float:
        """Side of a tile on the Mercator plane."""
        if not 0 <= zoom <= MAX_ZOOM:
            raise ValueError(f'zoom {zoom}; expected 0 to {MAX_ZOOM}')
        share = self.tile_px / TILE_PX if '{lat}' in self.url else 1.0
        return share * 2 * HALF_WORLD_M / 2 ** zoom


@dataclass(frozen=True)
class TileRange:
    """Tiles of one zoom level: ``columns`` and ``rows`` (N,), counted from the north-west.

    East of 180 degrees the columns of a region that begins west of it go on.
    """

    zoom: int
    side_m: float
    columns: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)


def mercator_from_latlon(latitude_deg, longitude_deg) -> tuple[np.ndarray, np.ndarray]:
    """Degrees to Web Mercator metres, x east and y north (EPSG:3857)."""
    latitude_rad = np.radians(np.clip(latitude_deg, -MAX_LATITUDE_DEG, MAX_LATITUDE_DEG))
    return (HALF_WORLD_M * np.asarray(longitude_deg) / 180.0,
            HALF_WORLD_M / math.pi * np.arctanh(np.sin(latitude_rad)))


def latlon_from_mercator(x_m: float, y_m: float) -> tuple[float, float]:
    """Web Mercator metres to degrees."""
    latitude_deg = math.degrees(math.asin(math.tanh(y_m * math.pi / HALF_WORLD_M)))
    return latitude_deg, 180.0 * x_m / HALF_WORLD_M


def tiles_of_box(source: Source, zoom: int, south_deg: float, west_deg: float, north_deg: float,
                 east_deg: float) -> TileRange:
    """All tiles that a box in latitude and longitude touches.

    A box with ``west_deg`` above ``east_deg`` crosses 180 degrees. Raises ValueError for a box
    that is not one, and for more than MAX_TILES tiles.
    """
    if not (-MAX_LATITUDE_DEG <= south_deg < north_deg <= MAX_LATITUDE_DEG
            and -180.0 <= west_deg <= 180.0 and -180.0 <= east_deg <= 180.0
            and west_deg != east_deg):
        raise ValueError(
            f'the box is south {south_deg}, west {west_deg}, north {north_deg}, east {east_deg}; '
            f'expected degrees, south below north within +-{MAX_LATITUDE_DEG}, west other than '
            'east within +-180 (a box across 180 degrees has west above east)')
    east_deg += 360.0 * (east_deg < west_deg)
    x_m, y_m = mercator_from_latlon(
        np.array([south_deg, north_deg]), np.array([west_deg, east_deg]))
    boxes = np.array([[x_m[0], y_m[0], x_m[1], y_m[1]]])
    return _tiles_of_boxes(boxes, zoom, source.side_m(zoom))


def tiles_of_route(source: Source, zoom: int, route_deg: np.ndarray,
                   corridor_m: float) -> TileRange:
    """All tiles within ``corridor_m`` of the fixes (N, 2) latitude, longitude and lines between.

    Distances are taken along each axis; lines longer than 500 m are gaps and are left out.
    """
    if not 0.0 < corridor_m < 10e3:
        raise ValueError(f'the corridor is {corridor_m} m; expected 0 to 10 km')
    latitude_deg, longitude_deg = np.asarray(route_deg, float).T
    # Where a route passes 180 degrees its longitudes go on instead of jumping.
    x_m, y_m = mercator_from_latlon(latitude_deg, np.unwrap(longitude_deg, period=360.0))
    stretch = 1.0 / np.cos(np.radians(np.asarray(route_deg)[:, 0]))   # plane metres a metre
    points = [np.column_stack((x_m, y_m, stretch))]
    for k in range(len(x_m) - 1):
        length_m = math.hypot(x_m[k + 1] - x_m[k], y_m[k + 1] - y_m[k]) / stretch[k]
        if length_m <= 500.0:
            share = np.linspace(0.0, 1.0, 2 + int(length_m / (corridor_m / 2)))[:, None]
            points.append(points[0][k] + share * (points[0][k + 1] - points[0][k]))
    points = np.unique(np.concatenate(points), axis=0)
    reach_m = corridor_m * points[:, 2:]
    return _tiles_of_boxes(
        np.hstack((points[:, :2] - reach_m, points[:, :2] + reach_m)), zoom, source.side_m(zoom))


def _tiles_of_boxes(boxes_m: np.ndarray, zoom: int, side_m: float) -> TileRange:
    """The tiles that boxes (N, 4) of x_min, y_min, x_max, y_max touch."""
    count = math.ceil(2 * HALF_WORLD_M / side_m)
    corners = np.column_stack((
        boxes_m[:, 0] + HALF_WORLD_M, boxes_m[:, 2] + HALF_WORLD_M,       # columns
        HALF_WORLD_M - boxes_m[:, 3], HALF_WORLD_M - boxes_m[:, 1]))      # rows
    first, last = np.floor(corners / side_m).astype(int), np.ceil(corners / side_m).astype(int) - 1
    ranges = np.column_stack((first[:, 0], last[:, 1], first[:, 2], last[:, 3]))
    ranges[:, 2:] = ranges[:, 2:].clip(0, count - 1)
    ranges[:, :2] -= ranges[:, 0].min() // count * count     # the westernmost is on the Earth
    found = set()
    for col0, col1, row0, row1 in np.unique(ranges, axis=0).tolist():
        size = (col1 - col0 + 1) * (row1 - row0 + 1)
        if size <= MAX_TILES:
            found.update((row, col) for row in range(row0, row1 + 1)
                         for col in range(col0, col1 + 1))
        if max(size, len(found)) > MAX_TILES:
            raise ValueError(
                f'more than {MAX_TILES} tiles at zoom {zoom}; expected a smaller region or zoom')
    rows, columns = np.array(sorted(found)).T
    return TileRange(zoom, side_m, columns, rows)


def check_template(url: str) -> None:
    """Raise ValueError if the template has unknown fields or lacks those of the place."""
    fields = set(re.findall(r'\{([^{}]*)\}', url))
    known = {'z', 'x', 'y', '-y', 'TileMatrix', 'TileCol', 'TileRow', 'lat', 'lon', 'key'}
    if fields - known:
        raise ValueError(
            f'the URL has the field {{{sorted(fields - known)[0]}}}; expected '
            f'{", ".join(f"{{{name}}}" for name in sorted(known))}')
    column, row = {'x', 'TileCol'}, {'y', '-y', 'TileRow'}
    if not ({'lat', 'lon'} <= fields or (fields & column and fields & row)):
        raise ValueError('the URL lacks the place; expected {x} and {y}, or {lat} and {lon}')
    if urllib.parse.urlsplit(url).scheme not in ('http', 'https'):
        raise ValueError(f'the URL begins with {url[:12]!r}; expected http:// or https://')


def tile_url(source: Source, tiles: TileRange, column: int, row: int, key: str) -> str:
    """The address of one tile."""
    column %= math.ceil(2 * HALF_WORLD_M / tiles.side_m)
    latitude_deg, longitude_deg = latlon_from_mercator(
        (column + 0.5) * tiles.side_m - HALF_WORLD_M, HALF_WORLD_M - (row + 0.5) * tiles.side_m)
    values = {
        'z': tiles.zoom, 'x': column, 'y': row, '-y': 2 ** tiles.zoom - 1 - row,
        'TileMatrix': tiles.zoom, 'TileCol': column, 'TileRow': row,
        'lat': f'{latitude_deg:.9f}', 'lon': f'{longitude_deg:.9f}',
        'key': urllib.parse.quote(key, safe='')}
    return re.sub(r'\{([^{}]*)\}', lambda field: str(values[field[1]]), source.url)


@dataclass
class Fetcher:
    """Fetches pictures one after the other, never faster than ``rate_hz``.

    After a failure that may pass it tries again, ``attempts`` times in all; the waits double from
    FIRST_WAIT_S, or are as long as the server asks for (Retry-After). A request may take
    ``timeout_s`` as a whole.
    """

    rate_hz: float
    attempts: int
    timeout_s: float
    key: str = ''
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _next_s: float = -math.inf

    def fetch(self, url: str, size_px: int) -> np.ndarray | None:
        """A picture (S, S, 4) BGRA; None where the server has no imagery. Raises DownloadError."""
        for attempt in range(1, self.attempts + 1):
            self._wait_for_turn()
            try:
                answer = self._request(url)
                return None if answer is None else self._decode(*answer, size_px)
            except _FinalError as error:
                raise DownloadError(f'{self._without_key(url)}: {error}') from error
            except _TransientError as error:
                asked_s = error.retry_after_s or 0.0
                if attempt == self.attempts or asked_s > MAX_WAIT_S:
                    asked = f', and asks to wait {asked_s:.0f} s' if asked_s else ''
                    raise DownloadError(
                        f'{self._without_key(url)}: {error} at try {attempt}{asked}; run the same '
                        'command again later, it goes on where it stopped') from error
                self.sleep(asked_s or min(MAX_WAIT_S, FIRST_WAIT_S * 2 ** (attempt - 1)))

    def _wait_for_turn(self) -> None:
        now_s = self.clock()
        if now_s < self._next_s:
            self.sleep(self._next_s - now_s)
        self._next_s = max(now_s, self._next_s) + 1.0 / self.rate_hz

    def _request(self, url: str) -> tuple[str, bytes] | None:
        """Content type and body; None where the server has no imagery."""
        request = urllib.request.Request(url, headers={'User-Agent': USER_AGENT})
        end_s = self.clock() + self.timeout_s
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                if response.status in NO_IMAGERY:
                    return None
                body = bytearray()
                while chunk := response.read1(READ_BYTES):
                    body += chunk
                    if self.clock() > end_s:
                        raise _TransientError(f'no whole answer within {self.timeout_s:g} s')
                    if len(body) > MAX_TILE_BYTES:
                        raise _FinalError(f'more than {MAX_TILE_BYTES} bytes; expected a tile')
                length = response.headers.get('Content-Length', '')
                if length.isdigit() and len(body) < int(length):
                    raise _TransientError(f'{len(body)} of {length} bytes came')
                return response.headers.get_content_type(), bytes(body)
        except urllib.error.HTTPError as error:
            if error.code in NO_IMAGERY:
                return None
            if error.code in TRANSIENT:
                raise _TransientError(
                    f'status {error.code}', _retry_after_s(error.headers)) from error
            hint = '; is the key right, and its quota?' if error.code in (401, 403) else ''
            raise _FinalError(f'status {error.code} {error.reason}{hint}') from error
        except TimeoutError as error:
            raise _TransientError(f'no answer within {self.timeout_s:g} s') from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
            raise _TransientError(str(getattr(error, 'reason', None) or error)) from error

    def _decode(self, kind: str, body: bytes, size_px: int) -> np.ndarray:
        picture = _bgra_of(body)
        if picture is None and not kind.startswith('image/'):
            raise _FinalError(f'the server sent {kind}, {len(body)} bytes; expected an image')
        if picture is None:
            raise _TransientError(f'{len(body)} bytes that are no readable image')
        if picture.shape[:2] != (size_px, size_px):
            raise _FinalError(f'the picture is {picture.shape[1]}x{picture.shape[0]}; expected '
                              f'{size_px}x{size_px} (see --tile-px)')
        return picture

    def _without_key(self, url: str) -> str:
        return url.replace(urllib.parse.quote(self.key, safe=''), 'KEY') if self.key else url


def _bgra_of(body: bytes) -> np.ndarray | None:
    """The picture in a file, with alpha; None if it is none."""
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_UNCHANGED) if body else None
    if picture is None:
        return None
    if picture.dtype == np.uint16:
        picture = (picture >> 8).astype(np.uint8)
    if picture.ndim == 2 or picture.shape[2] == 1:
        return cv2.cvtColor(picture, cv2.COLOR_GRAY2BGRA)
    if picture.shape[2] == 3:
        return cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    return picture


class _FinalError(Exception):
    """A failure that another try would not cure."""


class _TransientError(Exception):
    """A failure that may pass; ``retry_after_s`` is the wait that the server asked for, if any."""

    def __init__(self, reason: str, retry_after_s: float | None = None):
        super().__init__(reason)
        self.retry_after_s = retry_after_s


def _retry_after_s(headers) -> float | None:
    text = headers.get('Retry-After', '')
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def download(source: Source, tiles: TileRange, folder: Path, fetcher: Fetcher) -> int:
    """Fetch the tiles that ``folder`` does not hold yet; returns how many have no imagery.

    Raises ValueError if the folder holds tiles of another source, zoom or size, or other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    job = {'url': source.url, 'zoom': tiles.zoom, 'tile_px': source.tile_px}
    job_path = folder / 'job.json'
    if not job_path.exists() and any(folder.iterdir()):
        raise ValueError(f'{folder} was not made by download_imagery, which keeps its tiles '
                         'there; move it away or choose another --out')
    if job_path.exists() and json.loads(job_path.read_text()) != job:
        raise ValueError(
            f'{folder} holds tiles of another source or zoom; expected {job}: delete the folder '
            'or choose another --out')
    job_path.write_text(json.dumps(job))
    margin = (source.request_px - source.tile_px) // 2
    empty = 0
    progress = tqdm(zip(tiles.rows.tolist(), tiles.columns.tolist()), total=len(tiles),
                    desc='tiles', mininterval=1.0)
    for row, column in progress:
        path = folder / f'{row}_{column}.png'
        if not path.exists():
            url = tile_url(source, tiles, column, row, fetcher.key)
            picture = fetcher.fetch(url, source.request_px)
            data = b''
            if picture is not None:
                middle = picture[margin:margin + source.tile_px, margin:margin + source.tile_px]
                if middle[..., 3].any():
                    data = cv2.imencode('.png', middle)[1].tobytes()
            with write_atomically(path) as writing:
                writing.write_bytes(data)
        empty += path.stat().st_size == 0
    return empty


def drop_notices(tiles: TileRange, folder: Path) -> int:
    """Empty the tiles that are one and the same picture; returns how many they are.

    Some servers send a picture, with a text such as "Map data not yet available", where they have
    no imagery.
    """
    paths = {}
    for row, column in zip(tiles.rows.tolist(), tiles.columns.tolist()):
        path = folder / f'{row}_{column}.png'
        if data := path.read_bytes():
            paths.setdefault(hashlib.sha256(data).digest(), []).append(path)
    notices = [path for same in paths.values() if len(same) >= NOTICE_TILES for path in same]
    for path in notices:
        path.write_bytes(b'')
    return len(notices)


def write_geotiff(source: Source, tiles: TileRange, folder: Path, out: Path) -> None:
    """Join the tiles to a GeoTIFF in EPSG:3857, transparent where there is no imagery."""
    import rasterio
    from rasterio.windows import Window

    from crossview_localizer.maps.geotiff import new_geotiff

    side_px = source.tile_px
    pixel_m = tiles.side_m / side_px
    row0, col0 = int(tiles.rows.min()), int(tiles.columns.min())
    height = (int(tiles.rows.max()) - row0 + 1) * side_px
    width = (int(tiles.columns.max()) - col0 + 1) * side_px
    transform = rasterio.Affine(
        pixel_m, 0.0, col0 * tiles.side_m - HALF_WORLD_M,
        0.0, -pixel_m, HALF_WORLD_M - row0 * tiles.side_m)
    profile = {
        'width': width, 'height': height, 'count': 4, 'dtype': 'uint8', 'crs': 'EPSG:3857',
        'transform': transform, 'tiled': True, 'compress': 'deflate', 'predictor': 2,
        'photometric': 'RGB', 'alpha': 'YES', 'sparse_ok': True, 'bigtiff': 'IF_SAFER'}
    tags = {'TIFFTAG_COPYRIGHT': source.attribution,
            'TIFFTAG_IMAGEDESCRIPTION': f'Web Mercator zoom {tiles.zoom}'}
    with new_geotiff(out, tags, **profile) as write:
        for row, column in zip(tiles.rows.tolist(), tiles.columns.tolist()):
            path = folder / f'{row}_{column}.png'
            if not path.stat().st_size:
                continue
            rgba = cv2.cvtColor(_bgra_of(path.read_bytes()), cv2.COLOR_BGRA2RGBA)
            write(np.moveaxis(rgba, 2, 0), Window(
                (column - col0) * side_px, (row - row0) * side_px, side_px, side_px))


def describe_download(source: Source, tiles: TileRange, rate_hz: float) -> str:
    """What would be fetched, from whom, and under which terms."""
    middle_m = HALF_WORLD_M - (tiles.rows.mean() + 0.5) * tiles.side_m
    latitude_deg, _ = latlon_from_mercator(0.0, middle_m)
    # The plane is stretched by 1 / cos(latitude).
    ground_m = tiles.side_m / source.tile_px * math.cos(math.radians(latitude_deg))
    return (
        f'source       {source.url}\n'
        f'attribution  {source.attribution}\n'
        f'terms        {source.terms}\n'
        f'to fetch     {len(tiles)} tiles of {source.tile_px} px at zoom {tiles.zoom}: '
        f'{ground_m:.3f} m per pixel on the ground\n'
        f'             at {rate_hz:g} per second: {len(tiles) / rate_hz / 60:.1f} minutes')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.download_imagery', description=__doc__.splitlines()[0],
        epilog='example: python -m training.download_imagery --url '
        '"https://tiles.example.org/{z}/{x}/{y}.jpg" --attribution "(c) Survey, CC BY 4.0" '
        '--terms-url https://example.org/terms --zoom 19 --route gps.csv --out area.tif')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--box', nargs=4, type=float, metavar=('SOUTH', 'WEST', 'NORTH', 'EAST'),
                       help='region in degrees')
    where.add_argument('--route', type=Path, metavar='FILE',
                       help='CSV with latitude and longitude, GPX file, or bag')
    parser.add_argument('--corridor-m', type=float, default=80.0,
                        help='half width of the corridor around the route (default 80)')
    parser.add_argument('--topic', help='NavSatFix topic of the bag, if it has several')
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument('--url', help='template with {z} {x} {y} or {TileMatrix} {TileCol} '
                        '{TileRow}, and {key} if a key is needed')
    origin.add_argument('--google', action='store_true', help='the Google Static API')
    parser.add_argument('--attribution',
                        help='the credit that the licence requires (with --url)')
    parser.add_argument('--terms-url', help='where the terms of use are (with --url)')
    parser.add_argument('--tile-px', type=int, default=TILE_PX,
                        help='size of the pictures that the server of --url sends (256 or 512)')
    parser.add_argument('--zoom', type=int, default=20,
                        help='level of 256 px tiles (default 20: 0.09 m per pixel at 52 degrees)')
    parser.add_argument('--key-file', type=Path,
                        help=f'file with the key (default: the variable {KEY_VARIABLE})')
    parser.add_argument('--rate-hz', type=float, default=2.0,
                        help='requests per second (default 2)')
    parser.add_argument('--attempts', type=int, default=6, help='tries per tile (default 6)')
    parser.add_argument('--timeout-s', type=float, default=30.0,
                        help='longest wait for an answer of the server (default 30)')
    parser.add_argument('--out', type=Path, required=True, help='GeoTIFF to write')
    parser.add_argument('--accept-terms', action='store_true',
                        help='say that you have read the terms that are shown and keep to them')
    parser.add_argument('--keep-tiles', action='store_true', help='do not delete OUT.tiles')
    return run_command(
        parser, arguments, _run, 'interrupted; the same command goes on where it stopped')


def _run(args: argparse.Namespace) -> None:
    if not (0.0 < args.rate_hz <= 50.0 and args.attempts >= 1 and args.timeout_s > 0.0):
        raise ValueError(
            f'rate {args.rate_hz} Hz, {args.attempts} attempts, timeout {args.timeout_s} s; '
            'expected a rate up to 50 Hz and positive numbers')
    if args.google:
        source = Source(
            GOOGLE_URL, GOOGLE_ATTRIBUTION, GOOGLE_TERMS, GOOGLE_TILE_PX, GOOGLE_REQUEST_PX)
    else:
        check_template(args.url)
        if not args.attribution or not args.terms_url:
            raise ValueError('--url needs --attribution and --terms-url: whose imagery is it, and '
                             'where are its terms?')
        if args.tile_px not in (256, 512):
            raise ValueError(f'--tile-px {args.tile_px}; expected 256 or 512')
        source = Source(args.url, args.attribution, args.terms_url, args.tile_px, args.tile_px)
    if args.box:
        tiles = tiles_of_box(source, args.zoom, *args.box)
    else:
        route_deg = read_route(args.route, args.topic)
        tiles = tiles_of_route(source, args.zoom, route_deg, args.corridor_m)

    print(describe_download(source, tiles, args.rate_hz), flush=True)
    key = os.environ.get(KEY_VARIABLE, '')
    if args.key_file:
        key = args.key_file.read_text(encoding='utf-8').strip()
    if '{key}' in source.url and not key:
        raise ValueError(f'the source needs a key; set {KEY_VARIABLE} or give --key-file')
    if not args.accept_terms:
        raise ValueError('nothing was fetched; read the terms, then add --accept-terms')
    folder = args.out.with_name(args.out.name + '.tiles')
    fetcher = Fetcher(args.rate_hz, args.attempts, args.timeout_s, key)
    empty = download(source, tiles, folder, fetcher)
    notices = drop_notices(tiles, folder)
    empty += notices
    if empty == len(tiles):
        shutil.rmtree(folder)
        raise ValueError(f'the source has no imagery in any of the {empty} tiles; is the zoom '
                         'level, or the order of {x} and {y}, another one?')
    write_geotiff(source, tiles, folder, args.out)
    if not args.keep_tiles:
        shutil.rmtree(folder)
    missing = f'; {empty} of {len(tiles)} tiles have no imagery' if empty else ''
    if notices:
        missing += (f' ({notices} are one and the same picture, as of a server that has none '
                    'there: try a smaller --zoom)')
    print(f'{args.out}: {source.attribution}{missing}')


if __name__ == '__main__':
    sys.exit(main())
