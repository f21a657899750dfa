"""The route of a drive from a file: a CSV, a GPX track, or a bag."""

from collections.abc import Iterator
import csv
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from crossview_localizer.bags.bag import Bag, read_messages
from crossview_localizer.bags.storage import SUFFIXES

LATITUDE_NAMES = ('latitude', 'lat')
LONGITUDE_NAMES = ('longitude', 'lon', 'lng', 'long')


def read_route(path: str | Path, topic: str | None = None) -> np.ndarray:
    """The fixes of a drive, (N, 2) latitude and longitude in degrees, in the order of the file.

    ``path`` is a CSV with columns ``latitude`` and ``longitude`` (RobotCar's gps.csv, ins.csv and
    rtk.csv have them) or ``lat`` and ``lon``, a GPX track or route, or a rosbag2 with a NavSatFix
    topic. Invalid fixes are left out. Raises OSError or ValueError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'route {path} does not exist; expected a CSV or a bag')
    if path.is_dir() or path.name.lower().endswith(SUFFIXES):
        fixes = list(_bag_fixes(path, topic))
    else:
        fixes = list((_gpx_fixes if path.suffix.lower() == '.gpx' else _csv_fixes)(path))
    route = np.array(fixes, float).reshape(-1, 2)
    good = np.isfinite(route).all(1) & (np.abs(route) <= [89.0, 180.0]).all(1) & route.any(1)
    if not good.any():
        raise ValueError(
            f'{path} holds no valid fix ({len(route)} read); expected a drive with GNSS')
    return route[good]


def _csv_fixes(path: Path) -> Iterator[tuple[float, float]]:
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            first = file.readline()
            delimiter = ';' if ';' in first and ',' not in first else ','
            head = next(csv.reader([first], delimiter=delimiter), [])
            names = [name.strip().lower() for name in head]
            columns = [next((names.index(name) for name in known if name in names), None)
                       for known in (LATITUDE_NAMES, LONGITUDE_NAMES)]
            if None in columns:
                raise ValueError(
                    f'{path} has the columns {", ".join(names)[:80] or "(none)"}; expected '
                    'latitude and longitude')
            for row in csv.reader(file, delimiter=delimiter):
                try:
                    yield tuple(float(row[column]) for column in columns)
                except (IndexError, ValueError):       # an empty or truncated row
                    continue
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f'{path} is not a CSV; expected latitude and longitude columns') from error


def _gpx_fixes(path: Path) -> Iterator[tuple[float, float]]:
    try:
        for element in ElementTree.parse(path).iter():
            if element.tag.rpartition('}')[2] in ('trkpt', 'rtept'):
                yield float(element.get('lat')), float(element.get('lon'))
    except (ElementTree.ParseError, TypeError, ValueError) as error:
        raise ValueError(f'{path} is not a readable GPX file ({error})') from error


def _bag_fixes(path: Path, topic: str | None) -> Iterator[tuple[float, float]]:
    with Bag(path) as bag:
        topics = sorted({
            connection.topic for connection in bag.connections
            if connection.msgtype == 'sensor_msgs/msg/NavSatFix'
            and topic in (None, connection.topic)})
        if len(topics) != 1:
            raise ValueError(
                f'{path} has {len(topics)} NavSatFix topics ({", ".join(topics) or "none"}); '
                'expected one: name it with --topic')
    for _, _, fix in read_messages(path, topics):
        if fix.status.status >= 0:
            yield fix.latitude, fix.longitude
