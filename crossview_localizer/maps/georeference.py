"""Where the pixels of a file lie on Earth.

All dealings with PROJ are here: which reference systems are taken, the one operation to WGS84 that
is chosen for each of them with its accuracy, and longitudes, which are circular.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
import math
import warnings

import numpy as np
from pyproj import CRS
from pyproj.aoi import AreaOfInterest
from pyproj.exceptions import ProjError
from pyproj.transformer import Transformer, TransformerGroup
import rasterio
from rasterio.errors import CRSError

from crossview_localizer.geometry import LocalFrame

MAX_EXTENT_M = 200e3    # farther from its origin the transverse Mercator plane is not metric
EARTH_RADIUS_M = (6.35e6, 6.4e6)
# So far outside the longitudes of its reference system a file does not lie by intention.
MAX_OUTSIDE_DEG = 10.0


@dataclass(frozen=True)
class CrsAccuracy:
    """What PROJ says of the transform from the reference system of some files to WGS84.

    ``accuracy_m`` is None if PROJ does not know it; ``missing_grid`` is the file that a more
    accurate operation needs and that is not installed.
    """

    files: tuple[str, ...]
    crs: str
    operation: str
    accuracy_m: float | None
    missing_grid: str | None

    def __str__(self) -> str:
        known = 'unknown' if self.accuracy_m is None else f'{self.accuracy_m:g} m'
        grid = f'; better with the PROJ grid {self.missing_grid}' if self.missing_grid else ''
        more = f' and {len(self.files) - 1} more' if len(self.files) > 1 else ''
        return f'{self.files[0]}{more}: {self.crs}, accuracy {known} ({self.operation}{grid})'


@dataclass(frozen=True)
class Outline:
    """Points along the outline of a file, degrees; longitudes may pass 180."""

    latitude_deg: np.ndarray
    longitude_deg: np.ndarray


def read_crs(path: str, dataset) -> CRS:
    """The horizontal reference system of a file, on Earth.

    Raises ValueError where it, or the geotransform, is missing or no place on Earth, with the
    GDAL command that helps.
    """
    with _proj_errors_named(path):
        crs = None if dataset.crs is None else CRS.from_user_input(dataset.crs).to_2d()
    terms = np.array(dataset.transform[:6])
    # Programs write this where they know nothing: pixels of size 1 from (0, 0) on.
    placed = not (np.array_equal(np.abs(terms), [1, 0, 0, 0, 1, 0]) or np.array_equal(
        terms, [1, 0, 0, 0, -1, dataset.height]))
    if crs is None or not placed:
        raise ValueError(_missing(path, dataset, crs is not None, placed))
    if not np.isfinite(terms).all() or dataset.transform.is_degenerate:
        raise ValueError(
            f'{path} has the geotransform {terms.tolist()}; expected finite, independent axes')
    radius_m = crs.ellipsoid.semi_major_metre if crs.ellipsoid else None
    on_earth = radius_m is None or EARTH_RADIUS_M[0] < radius_m < EARTH_RADIUS_M[1]
    if radius_m is None or not on_earth or not (crs.is_projected or crs.is_geographic):
        kind = ('that is local' if radius_m is None else 'that is no map' if on_earth
                else 'of another celestial body')
        raise ValueError(
            f'{path} has a reference system {kind}: "{crs.name}" ({crs.type_name}); expected the '
            'system on Earth that its coordinates are in: gdal_edit.py -a_srs EPSG:... sets it')
    return crs


def _missing(path: str, dataset, has_crs: bool, placed: bool) -> str:
    """What a file lacks, and the command that gives it to this kind of file."""
    points, points_crs = dataset.gcps
    if not placed and (points or dataset.rpcs):
        system = f'-t_srs {points_crs.to_string()}' if points_crs else (
            '-t_srs EPSG:4326' if dataset.rpcs else '-s_srs EPSG:... -t_srs EPSG:...')
        found = f'{len(points)} control points' if points else 'a camera model (RPC)'
        return (f'{path} has {found} and no geotransform; expected an orthorectified GeoTIFF: '
                f'gdalwarp {"" if points else "-rpc "}{system} {path} OUT.tif')
    lacks = [] if has_crs else ['coordinate reference system']
    lacks += [] if placed else ['geotransform']
    options = ('' if has_crs else ' -a_srs EPSG:...') + (
        '' if placed else ' -a_ullr WEST NORTH EAST SOUTH')
    # Only a TIFF or a VRT takes them in place.
    command = f'gdal_edit.py{options} {path}' if dataset.driver in ('GTiff', 'VRT') else (
        f'gdal_translate{options} {path} OUT.tif')
    return f'{path} has no {" and no ".join(lacks)}; expected a GeoTIFF with one: {command}'


def outline(path: str, dataset, crs: CRS) -> Outline:
    """The outline of a file on Earth; its longitudes do not jump at 180 degrees."""
    with _proj_errors_named(path, crs):
        wgs84_from_crs = Transformer.from_crs(crs, 'EPSG:4326', always_xy=True)
        longitude_deg, latitude_deg = wgs84_from_crs.transform(*edge_points(dataset))
    inside = np.isfinite(longitude_deg).all() and (np.abs(latitude_deg) <= 89.0).all()
    found = inside and Outline(latitude_deg, near_longitude(longitude_deg, longitude_deg[0]))
    if not found or _is_far_outside(found, dataset.crs.to_epsg()):
        raise ValueError(
            f'{path} lies at latitude {latitude_deg[0]:.2f}, longitude {longitude_deg[0]:.2f}, '
            f'at a pole or outside its coordinate reference system {crs.name}; expected '
            'coordinates in that system and its unit: gdal_edit.py -a_srs EPSG:... or -a_ullr '
            'corrects the file')
    return found


def _is_far_outside(found: Outline, epsg: int | None) -> bool:
    """Whether a file lies far east or west of the area that its reference system is made for."""
    area = CRS.from_epsg(epsg).area_of_use if epsg else None
    if area is None or area.east - area.west >= 360.0:
        return False
    half_deg = (area.east - area.west) % 360.0 / 2.0
    off_deg = near_longitude(found.longitude_deg, area.west + half_deg) - area.west - half_deg
    return bool((np.abs(off_deg) > half_deg + MAX_OUTSIDE_DEG).any())


def box_around(outlines: Sequence[Outline]) -> tuple[float, float, float, float]:
    """The least box: south, west, north, east in degrees; east may pass 180."""
    middle_deg = outlines[0].longitude_deg.mean()
    longitude_deg = near_longitude(
        np.concatenate([one.longitude_deg for one in outlines]), middle_deg)
    latitude_deg = np.concatenate([one.latitude_deg for one in outlines])
    return tuple(float(value) for value in (
        latitude_deg.min(), longitude_deg.min(), latitude_deg.max(), longitude_deg.max()))


def frame_about(outlines: Sequence[Outline]) -> LocalFrame:
    """A frame at the middle, rounded to 7 decimals (a centimetre) so that it can be typed."""
    south, west, north, east = box_around(outlines)
    return LocalFrame(
        round((south + north) / 2.0, 7), round(float(near_longitude((west + east) / 2.0, 0.0)), 7))


def near_longitude(longitude, middle: float, period: float = 360.0):
    """The same longitudes, or eastings that repeat, within half a period of ``middle``."""
    half = period / 2.0
    return middle + (np.asarray(longitude) - middle + half) % period - half


def edge_points(dataset, steps: int = 21) -> tuple[np.ndarray, np.ndarray]:
    """Points along the outline of a file, in its own coordinates."""
    along = np.linspace(0.0, 1.0, steps)
    u_px = dataset.width * np.concatenate((along, along, 0 * along, 0 * along + 1))
    v_px = dataset.height * np.concatenate((0 * along, 0 * along + 1, along, along))
    return apply_affine(dataset.transform, u_px, v_px)


def apply_affine(affine: rasterio.Affine, first, second):
    return (
        affine.a * first + affine.b * second + affine.c,
        affine.d * first + affine.e * second + affine.f,
    )


def choose_operation(
    crs: CRS, frame: LocalFrame, paths: Sequence[str], names: Sequence[str],
    outlines: Sequence[Outline],
) -> tuple[Transformer, CrsAccuracy]:
    """The best installed operation to ``map`` for the area of some files, and its accuracy."""
    south, west, north, east = box_around(outlines)
    west, east = (float(near_longitude(value, 0.0)) for value in (west, east))
    with warnings.catch_warnings(), _proj_errors_named(paths[0], crs):
        warnings.simplefilter('ignore', UserWarning)      # CrsAccuracy reports missing grids
        group = TransformerGroup(crs, CRS(frame.proj4), always_xy=True,
                                 area_of_interest=AreaOfInterest(west, south, east, north))
    if not group.transformers:
        raise ValueError(f'{paths[0]}: PROJ knows no transform from {crs.name} to WGS84')
    chosen = group.transformers[0]
    missing = None
    if not group.best_available:
        grids = [grid.short_name for grid in group.unavailable_operations[0].grids]
        missing = ', '.join(grids) or None
    accuracy_m = chosen.accuracy if chosen.accuracy >= 0.0 else None
    return chosen, CrsAccuracy(tuple(names), crs.name, _shift_name(chosen), accuracy_m, missing)


def _shift_name(operation: Transformer) -> str:
    """The datum shift of an operation; the projections before and after it are exact."""
    steps = (step.name for step in operation.operations or ())
    shifts = [name for name in steps if ' to ' in name or 'Ballpark' in name]
    return '; '.join(shifts) or 'no datum shift'


def bounds_in_map(path: str, dataset, frame: LocalFrame,
                  map_from_crs: Transformer) -> tuple[float, float, float, float]:
    """The box around a file in ``map``; ValueError if it is too far from the origin."""
    x_m, y_m = map_from_crs.transform(*edge_points(dataset))
    bounds_m = tuple(float(value) for value in (x_m.min(), y_m.min(), x_m.max(), y_m.max()))
    if not np.isfinite(bounds_m).all() or max(map(abs, bounds_m)) > MAX_EXTENT_M:
        raise ValueError(
            f'{path} reaches {max(map(abs, bounds_m)) / 1e3:.0f} km from the map origin '
            f'({frame.latitude_deg:.5f}, {frame.longitude_deg:.5f}); expected at most '
            f'{MAX_EXTENT_M / 1e3:.0f} km: build a map for each place, or give --origin')
    return bounds_m


def easting_period(crs: CRS) -> float | None:
    """By how much the first coordinate grows around the Earth, where that is the same everywhere.

    It is 360 in degrees, and the circumference in a cylindrical projection such as EPSG:3857. In
    others (UTM, Lambert) a place has one first coordinate only: None.
    """
    with _proj_errors_named(crs.name):
        crs_from_longitude = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
        turn = 2.0 * math.pi / crs.geodetic_crs.axis_info[0].unit_conversion_factor
        # Four short steps along parallels, of which at most one passes the edge of the plane.
        east, north = crs_from_longitude.transform(
            *np.array([[(quarter + side) * turn / 4, (quarter % 2) * turn / 9]
                       for quarter in range(4) for side in (-0.01, 0.01)]).T)
    if not np.isfinite(east).all() or not np.isfinite(north).all():
        return None
    periods = np.diff(east)[::2] / 0.02 * 4
    period = float(np.median(periods))
    regular = np.isclose(periods, period, rtol=1e-9).sum() >= 3
    level = np.isclose(np.diff(north)[::2], 0.0, atol=1e-9 * abs(period)).all()
    return period if regular and level else None


@contextmanager
def _proj_errors_named(path: str, crs: CRS | None = None) -> Iterator[None]:
    """Whatever PROJ does not understand is a ValueError that names the file."""
    try:
        yield
    except (ProjError, CRSError) as error:
        name = f' {crs.name}' if crs is not None else ''
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'{path}: its coordinate reference system{name} is not understood ({reason}); '
            'expected one of the EPSG list: gdal_edit.py -a_srs EPSG:... sets it') from error
