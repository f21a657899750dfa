"""The route of a drive from a file: a CSV, a GPX, KML or GeoJSON track, or a bag."""

import codecs
from collections.abc import Iterator
import csv
import io
import json
import logging
import math
from pathlib import Path
import re
from xml.etree import ElementTree

import numpy as np

from crossview_localizer.bags.bag import Bag, read_messages
from crossview_localizer.bags.storage import SUFFIXES

NAV_SAT_FIX = 'sensor_msgs/msg/NavSatFix'
STATUS_NO_FIX = -1
LATITUDE_NAMES = ('latitude', 'lat')
NO_VALUE = ('', 'NAN', 'NA', 'N/A', 'NULL', 'NONE', '-', '--')
LONGITUDE_NAMES = ('longitude', 'lon', 'lng', 'long')


def read_route(path: str | Path, topic: str | None = None) -> np.ndarray:
    """The fixes of a drive, (N, 2) latitude and longitude in degrees, in the order of the file.

    ``path`` is a CSV with columns ``latitude`` and ``longitude`` (RobotCar's gps.csv, ins.csv and
    rtk.csv have them) or ``lat`` and ``lon``, a GPX, KML or GeoJSON file with a line, or a rosbag2
    with a NavSatFix topic. A CSV may have decimal commas and letters for the hemispheres.
    Longitudes may go from 0 to 360. Invalid fixes are left out, and the log counts them. Raises
    OSError or ValueError, for a row that cannot be read with its text.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f'route {path} does not exist; expected a CSV, GPX, KML or GeoJSON file, or a bag')
    if path.is_dir() or path.name.lower().endswith(SUFFIXES):
        fixes = list(_bag_fixes(path, topic))
    else:
        fixes = list(READERS.get(path.suffix.lower(), _csv_fixes)(path))
    route = np.array(fixes, float).reshape(-1, 2)
    good = np.isfinite(route).all(1) & (np.abs(route) <= [89.0, 360.0]).all(1) & route.any(1)
    if not good.any():
        first = f', the first is {route[0].tolist()}' if len(route) else ''
        raise ValueError(
            f'{path} holds no valid fix ({len(route)} read{first}); expected latitude and '
            'longitude of a drive in degrees')
    if not good.all():
        logging.getLogger(__name__).warning(
            f'{path}: {np.count_nonzero(~good)} of {len(route)} fixes are not positions in '
            f'degrees and are left out, the first is {route[~good][0].tolist()}')
    route = route[good]
    turned = np.abs(route[:, 1]) > 180.0
    route[turned, 1] -= np.copysign(360.0, route[turned, 1])
    return route


def _csv_fixes(path: Path) -> Iterator[tuple[float, float]]:
    try:
        lines = [line for line in io.StringIO(_decoded(path.read_bytes()), newline='')
                 if not line.lower().startswith('sep=')]
        head = lines[0] if lines else ''
        delimiter = max(';\t,', key=head.count)
        head_row = next(csv.reader([head], delimiter=delimiter), [])
        names = [name.strip().lower() for name in head_row]
        # "lat (deg)", "lat_deg", and "field.latitude" of rostopic echo -p
        words = [re.split('[^a-z]', name.rpartition('.')[2])[0] for name in names]
        # A plain "lat" is meant rather than "lat_std".
        columns = [next((known.index(name) for known in (names, words) for name in wanted
                         if name in known), None) for wanted in (LATITUDE_NAMES, LONGITUDE_NAMES)]
        if None in columns:
            raise ValueError(
                f'{path} has the columns {", ".join(names)[:80] or "(none)"}; expected those '
                'named latitude and longitude, or lat and lon')
        for number, row in enumerate(csv.reader(lines[1:], delimiter=delimiter), 2):
            if len(row) <= max(columns):                # an empty or truncated row
                continue
            try:
                if any(row[len(names):]):
                    raise ValueError(f'{len(row)} fields for {len(names)} columns')
                yield tuple(_degrees(row[column], letters)
                            for column, letters in zip(columns, ('NS', 'EW')))
            except ValueError as error:
                raise ValueError(
                    f'{path}, row {number}, cannot be read as numbers: '
                    f'{delimiter.join(row)[:80]!r} ({error}); expected degrees such as 51.7605, '
                    '"51,7605" or 51.7605N') from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f'{path} is no text; expected a CSV with latitude and longitude, a GPX, KML or '
            'GeoJSON file, or a bag') from error


def _decoded(data: bytes) -> str:
    """The text of a file in UTF-8 or, as spreadsheets write it, UTF-16 or Windows-1252.

    Raises UnicodeDecodeError for one that is no text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode('utf-16')
    if 0 in data:
        raise UnicodeDecodeError('utf-8', data, data.index(0), data.index(0) + 1, 'a zero')
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError:
        return data.decode('cp1252')


def _degrees(text: str, letters: str) -> float:
    """Degrees from a number with a point or comma, or degrees, minutes and seconds.

    ``letters`` are those of the positive and the negative hemisphere, which may stand before or
    after. A text that stands for a missing value (NO_VALUE) is NaN.
    """
    plain = text.strip().upper().replace(',', '.').replace('\N{MINUS SIGN}', '-')
    if plain in NO_VALUE:
        return math.nan
    found = re.fullmatch(f'([{letters}]?)(.*?)([{letters}]?)', plain)
    before, number, after = found.groups()
    parts = re.split(r'[\s°º\'′’"″”:]+', number.strip(' °º\'′’"″”'))
    values = [float(part) for part in parts]
    if len(values) > 3 or (before and after) or not all(0 <= value < 60 for value in values[1:]):
        raise ValueError(f'{text.strip()!r} is not an angle')
    if (before or after) and parts[0].startswith('-'):
        raise ValueError(f'{text.strip()!r} has a sign and a letter')
    size = sum(abs(value) / 60 ** k for k, value in enumerate(values))
    return -size if parts[0].startswith('-') or letters[1] in before + after else size


def _xml_fixes(path: Path) -> Iterator[tuple[float, float]]:
    """The points of the tracks and routes of a GPX file, or of the lines of a KML file."""
    try:
        for element in ElementTree.parse(path).iter():
            kind = element.tag.rpartition('}')[2]
            if kind in ('trkpt', 'rtept'):
                yield float(element.get('lat')), float(element.get('lon'))
            elif kind in ('coordinates', 'coord'):      # the latter of gx:Track, with spaces
                text = (element.text or '').strip()
                for point in [text] if kind == 'coord' else text.split():
                    longitude, latitude, *_ = re.split('[, ]+', point)
                    yield float(latitude), float(longitude)
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is not a readable GPX or KML file ({error})') from error


def _geojson_fixes(path: Path) -> Iterator[tuple[float, float]]:
    """The points of all geometries of a GeoJSON file: longitude, latitude and more."""
    def points(item) -> Iterator[tuple[float, float]]:
        if isinstance(item, dict):
            for key in ('features', 'geometry', 'geometries', 'coordinates'):
                yield from points(item.get(key))
        elif isinstance(item, list) and item and isinstance(item[0], (int, float)):
            longitude, latitude, *_ = item
            yield float(latitude), float(longitude)
        elif isinstance(item, list):
            for inner in item:
                yield from points(inner)

    try:
        yield from points(json.loads(path.read_text(encoding='utf-8-sig')))
    except (ValueError, TypeError) as error:
        raise ValueError(f'{path} is not a readable GeoJSON file ({error})') from error


READERS = {'.gpx': _xml_fixes, '.kml': _xml_fixes, '.geojson': _geojson_fixes,
           '.json': _geojson_fixes}


def _bag_fixes(path: Path, topic: str | None) -> Iterator[tuple[float, float]]:
    with Bag(path) as bag:
        found = bag.topics_of(NAV_SAT_FIX)
        others = sorted(bag.topics)
    wanted = [f'/{topic.lstrip("/")}'] if topic else found
    if not found:
        raise ValueError(f'{path} has no NavSatFix topic, but {", ".join(others) or "none"}; '
                         f'expected one of the type {NAV_SAT_FIX}')
    if len(wanted) != 1 or wanted[0] not in found:
        raise ValueError(
            f'{path} has {len(found)} NavSatFix topics ({", ".join(found)}); expected one'
            f'{f", and not {topic}" if topic else ""}: name it with --topic')
    for _, _, fix in read_messages(path, wanted):
        if fix.status.status != STATUS_NO_FIX:      # one that the driver never sets is -2
            yield fix.latitude, fix.longitude
