"""Frames, poses and grids, and the conventions for all of them.

World frame ``map``: a transverse Mercator plane about the origin of the map (metres; x east, y
north and scale 1 at the origin).  Vehicle frame ``base_link``: x forward, y left, z up (REP-103).
Angles: ``yaw_rad`` is counter-clockwise from the x axis of the map, in [-pi, pi).  Compass
bearings (``bearing_deg``, clockwise from true north) are used only in file formats that have them,
and only ``LocalFrame`` converts them.

Transforms: ``a_from_b`` takes coordinates in b to coordinates in a, so neighbours cancel:
``map_from_odom = map_from_base @ odom_from_base.inverse()``.
"""

from dataclasses import dataclass
from functools import cache
import math

import numpy as np


def wrap_angle(angle_rad):
    """Return the angle, or array of angles, in [-pi, pi)."""
    return (angle_rad + math.pi) % (2.0 * math.pi) - math.pi


@dataclass(frozen=True)
class Pose2D:
    """A planar pose, or the planar transform ``a_from_b``, which is the pose of b in a."""

    x_m: float
    y_m: float
    yaw_rad: float

    def __matmul__(self, other: 'Pose2D') -> 'Pose2D':
        """Compose: ``a_from_c = a_from_b @ b_from_c``."""
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return Pose2D(
            self.x_m + cos * other.x_m - sin * other.y_m,
            self.y_m + sin * other.x_m + cos * other.y_m,
            wrap_angle(self.yaw_rad + other.yaw_rad),
        )

    def inverse(self) -> 'Pose2D':
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        return Pose2D(
            -cos * self.x_m - sin * self.y_m,
            sin * self.x_m - cos * self.y_m,
            wrap_angle(-self.yaw_rad),
        )

    def transform(self, points_m: np.ndarray) -> np.ndarray:
        """Take points (..., 2) in b to points (..., 2) in a."""
        cos, sin = math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        x_m, y_m = points_m[..., 0], points_m[..., 1]
        return np.stack(
            (self.x_m + cos * x_m - sin * y_m, self.y_m + sin * x_m + cos * y_m), axis=-1
        )

    def as_array(self) -> np.ndarray:
        return np.array([self.x_m, self.y_m, self.yaw_rad])


def interpolate_pose(start: Pose2D, end: Pose2D, fraction: float) -> Pose2D:
    """Interpolate position and, the shorter way, yaw; 0 gives start, 1 gives end."""
    turn_rad = wrap_angle(end.yaw_rad - start.yaw_rad)
    return Pose2D(
        start.x_m + fraction * (end.x_m - start.x_m),
        start.y_m + fraction * (end.y_m - start.y_m),
        wrap_angle(start.yaw_rad + fraction * turn_rad),
    )


def body_axes_error(error_xy_m: np.ndarray, yaw_rad: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split error vectors (..., 2) in map into (longitudinal, lateral) parts.

    Longitudinal is positive ahead of a vehicle with heading ``yaw_rad``, lateral to its left.
    """
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    x_m, y_m = error_xy_m[..., 0], error_xy_m[..., 1]
    return cos * x_m + sin * y_m, -sin * x_m + cos * y_m


def distance_on_earth_m(start_deg: tuple[float, float], end_deg: tuple[float, float]) -> float:
    """The shortest distance on the WGS84 ellipsoid between two (latitude, longitude)."""
    return _geod().inv(*start_deg[::-1], *end_deg[::-1])[2]


@cache
def _geod():
    from pyproj import Geod

    return Geod(ellps='WGS84')


class LocalFrame:
    """The plane ``map``: WGS84 latitude and longitude to and from metres.

    A transverse Mercator projection (pyproj ``tmerc``, k = 1) about the origin.  Altitude plays no
    part.  The scale is within 0.13 mm/m of 1 up to 100 km from the origin.
    """

    def __init__(self, latitude_deg: float, longitude_deg: float):
        from pyproj import Proj

        if not (abs(latitude_deg) <= 89.0 and abs(longitude_deg) <= 180.0):
            raise ValueError(
                f'map origin is latitude {latitude_deg}, longitude {longitude_deg}; expected '
                'degrees within +-89 and +-180'
            )
        self.latitude_deg = float(latitude_deg)
        self.longitude_deg = float(longitude_deg)
        self.proj4 = (
            f'+proj=tmerc +lat_0={self.latitude_deg!r} +lon_0={self.longitude_deg!r} +k=1 '
            '+x_0=0 +y_0=0 +datum=WGS84 +units=m +no_defs'
        )
        self._proj = Proj(self.proj4)

    @classmethod
    def through_point(
        cls, latlon_deg: tuple[float, float], xy_m: tuple[float, float],
    ) -> 'LocalFrame':
        """The frame in which a point on Earth has these coordinates.

        The origin is moved by the remaining error until that is below a micrometre.  Raises
        ValueError if this does not converge (a few hundred kilometres from the origin).
        """
        frame = cls(*latlon_deg)
        for _ in range(30):
            error_m = np.subtract(frame.xy_from_latlon(*latlon_deg), xy_m)
            if np.hypot(*error_m) < 1e-6:
                return frame
            origin_deg = frame.latlon_from_xy(*error_m)
            if not np.isfinite(origin_deg).all():
                break
            frame = cls(*origin_deg)
        raise ValueError(
            f'no map origin gives the point {latlon_deg} deg the coordinates {xy_m} m; expected '
            'a point within a few hundred kilometres of the origin')

    def xy_from_latlon(self, latitude_deg, longitude_deg):
        """Degrees (scalars or arrays) to metres (x, y); inf where the projection ends."""
        return self._proj(longitude_deg, latitude_deg)

    def latlon_from_xy(self, x_m, y_m):
        """Metres to (latitude_deg, longitude_deg)."""
        longitude_deg, latitude_deg = self._proj(x_m, y_m, inverse=True)
        return latitude_deg, longitude_deg

    def convergence_rad(self, x_m: float, y_m: float) -> float:
        """Bearing of the y axis of the map at a point, clockwise from true north.

        true_bearing = grid_bearing + convergence and yaw_map = pi/2 - grid_bearing.
        """
        latitude_deg, longitude_deg = self.latlon_from_xy(x_m, y_m)
        factors = self._proj.get_factors(longitude_deg, latitude_deg)
        return math.radians(factors.meridian_convergence)

    def yaw_from_bearing(self, true_bearing_deg: float, x_m: float, y_m: float) -> float:
        """Compass bearing at a point to ``yaw_rad`` in map."""
        return wrap_angle(
            math.pi / 2 - math.radians(true_bearing_deg) + self.convergence_rad(x_m, y_m)
        )


@dataclass(frozen=True)
class MapGrid:
    """A north-up raster in ``map``: row 0 is north, column 0 west.

    Whole row and column numbers are cell centres; (x0_m, y0_m) is the centre of cell (0, 0).
    """

    rows: int
    cols: int
    cell_m: float
    x0_m: float
    y0_m: float

    @classmethod
    def around(cls, x_m: float, y_m: float, half_width_m: float, cell_m: float) -> 'MapGrid':
        """The smallest square grid with a cell at a point that reaches half_width_m from it."""
        half = math.ceil(half_width_m / cell_m)
        return cls(
            2 * half + 1, 2 * half + 1, cell_m, x_m - half * cell_m, y_m + half * cell_m
        )

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """x_min, y_min, x_max, y_max of the cell centres."""
        east_m, south_m = self.xy_from_row_col(self.rows - 1, self.cols - 1)
        return self.x0_m, float(south_m), float(east_m), self.y0_m

    def xy_from_row_col(self, row, col):
        return self.x0_m + np.multiply(col, self.cell_m), self.y0_m - np.multiply(row, self.cell_m)

    def row_col_from_xy(self, x_m, y_m):
        """Fractional (row, col); rounded they are the cell of the point."""
        return (self.y0_m - np.asarray(y_m)) / self.cell_m, (
            np.asarray(x_m) - self.x0_m) / self.cell_m

    def cell_centres(self) -> tuple[np.ndarray, np.ndarray]:
        """x_m of all columns (cols,) and y_m of all rows (rows,)."""
        return (
            self.x0_m + self.cell_m * np.arange(self.cols),
            self.y0_m - self.cell_m * np.arange(self.rows),
        )

    def crop(self, row: int, col: int, rows: int, cols: int) -> 'MapGrid':
        """The part of the grid that begins at a row and a column."""
        x0_m, y0_m = self.xy_from_row_col(row, col)
        return MapGrid(rows, cols, self.cell_m, float(x0_m), float(y0_m))

    def refine(self, factor: int) -> 'MapGrid':
        """A grid between the same outer cell centres with cells ``factor`` times smaller."""
        return MapGrid(
            (self.rows - 1) * factor + 1, (self.cols - 1) * factor + 1, self.cell_m / factor,
            self.x0_m, self.y0_m,
        )

    def contains(self, x_m: float, y_m: float) -> bool:
        row, col = self.row_col_from_xy(x_m, y_m)
        return bool(-0.5 <= row < self.rows - 0.5 and -0.5 <= col < self.cols - 0.5)
