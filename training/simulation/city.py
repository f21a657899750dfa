"""The parts of a city: streets, rasters, markings, trees, walls, in metres.

Coordinates are the local plane (x east, y north, z up), the city's centre at the origin.  All
depends on the seed and the size only; what changes from day to day is in ``appearance.py``.
Rasters are south-up: row 0 is the southernmost, so row grows with y and column with x.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from .mesh import Mesh

MARGIN_M = 40.0        # ground beyond the nominal size that is still built on
KERB_M = 0.12
DISTANCE_CAP_M = 14.0  # distances to the kerb are not followed farther than this
DISTANCE_PX_M = 0.5
LAND_PX_M = 0.25
MARKING_PX_M = 0.1
CORNER_RADIUS_M = 4.5
BLOCK_M = (62.0, 118.0)  # between parallel streets


@dataclass(frozen=True)
class Raster:
    """South-up image over a square about the origin; pixel centres at -half + (k + 1/2) px."""

    data: np.ndarray
    half_m: float
    px_m: float

    def sample(self, x, y) -> np.ndarray:
        """Bilinear values at points (N,): (N,) or (N, channels); the edge is repeated outside."""
        col = (np.asarray(x, np.float32) + np.float32(self.half_m)) / np.float32(self.px_m) - 0.5
        row = (np.asarray(y, np.float32) + np.float32(self.half_m)) / np.float32(self.px_m) - 0.5
        return remap_points(self.data, col, row)

    def pixel(self, points) -> np.ndarray:
        """Points (..., 2) in metres to (column, row), fractional, whole numbers at centres."""
        return (np.asarray(points, np.float64) + self.half_m) / self.px_m - 0.5


def remap_points(image, col, row, border=cv2.BORDER_REPLICATE) -> np.ndarray:
    """Bilinear lookup at points (N,) through cv2.remap, which expects a 2-D map."""
    count = col.size
    width = 4096
    padded = -(-count // width) * width
    grid = np.zeros((2, padded), np.float32)
    grid[0, :count], grid[1, :count] = col.ravel(), row.ravel()
    grid = grid.reshape(2, -1, width)
    out = cv2.remap(image, grid[0], grid[1], cv2.INTER_LINEAR, borderMode=border)
    return out.reshape((padded, -1))[:count].squeeze(-1) if image.ndim == 2 else out.reshape(
        (padded, image.shape[2]))[:count]


class Line:
    """A polyline with arc length."""

    def __init__(self, points):
        self.points = np.asarray(points, np.float64)
        steps = np.linalg.norm(np.diff(self.points, axis=0), axis=1)
        self.s = np.concatenate(([0.0], np.cumsum(steps)))
        self.length = float(self.s[-1])

    def at(self, s):
        return np.stack([np.interp(s, self.s, self.points[:, k]) for k in (0, 1)], axis=-1)

    def tangent(self, s):
        ahead = self.at(np.minimum(np.asarray(s) + 1.0, self.length))
        behind = self.at(np.maximum(np.asarray(s) - 1.0, 0.0))
        step = ahead - behind
        return step / np.linalg.norm(step, axis=-1, keepdims=True)

    def offset(self, s, left_m):
        """Points left of the line (negative: right)."""
        tangent = self.tangent(s)
        normal = np.stack((-tangent[..., 1], tangent[..., 0]), axis=-1)
        return self.at(s) + normal * np.asarray(left_m)[..., None]


@dataclass
class Street:
    line: Line
    a: int
    b: int
    main: bool
    lane_m: float          # width of one of the two lanes
    parking: bool          # bays along both kerbs
    pavement_m: float
    style: str             # what stands along it
    trim_a_m: float = 0.0  # from the node to where the junction ends
    trim_b_m: float = 0.0
    kerbs_m: np.ndarray | None = None  # (n, 3) s, to the left kerb, to the right: of a layout

    @property
    def half_width_m(self) -> float:
        return self.lane_m + (2.1 if self.parking else 0.0)

    def kerb_m(self, s: float, side: int) -> float:
        """From the line to the kerb at s, on the left (side 1) or the right (-1)."""
        if self.kerbs_m is None:
            return self.half_width_m
        return float(np.interp(s, self.kerbs_m[:, 0], self.kerbs_m[:, 1 if side > 0 else 2]))


@dataclass(frozen=True)
class Marking:
    polygon: np.ndarray  # (n, 2) metres
    yellow: bool = False


@dataclass(frozen=True)
class Tree:
    x: float
    y: float
    height_m: float
    crown_m: float       # crown radius
    rgb: tuple
    evergreen: bool
    seed: int


@dataclass(frozen=True)
class CarSlot:
    x: float
    y: float
    yaw: float
    use: float           # probability that it is taken


@dataclass
class City:
    seed: int
    size_m: float
    half_m: float
    nodes: np.ndarray
    streets: list[Street]
    waves: np.ndarray                     # terrain: (n, 4) kx, ky, phase, amplitude
    kerb_distance: Raster                 # metres beyond the kerb, negative on the carriageway
    pavement_width: Raster
    land_rgb: Raster                      # square root of albedo, uint8
    land_grass: Raster                    # 255 where something grows
    building_mask: Raster                 # 1 m, 255 inside buildings
    markings: list[Marking]
    walls: np.ndarray                     # (W, len(WALL_FIELDS))
    mesh: Mesh
    trees: list[Tree]
    car_slots: list[CarSlot]
    landmarks: dict[str, np.ndarray] = field(default_factory=dict)
    trajectory: np.ndarray | None = None  # (n, 2) metres: the drive's own way, of a layout

    def terrain(self, x, y):
        """Height without kerbs and camber, metres."""
        kx, ky, phase, amplitude = self.waves.T
        angle = np.multiply.outer(x, kx) + np.multiply.outer(y, ky) + phase
        return np.sin(angle) @ amplitude

    def ground(self, x, y):
        """Height of the visible ground: cambered carriageway, or kerb-high land."""
        return self.terrain(x, y) + above_terrain(self.kerb_distance.sample(x, y))


WALL_FIELDS = (
    'x', 'y', 'tx', 'ty', 'base', 'width', 'storey', 'top', 'pitch', 'win_w', 'win_h', 'sill',
    'shop', 'r', 'g', 'b', 'dr', 'dg', 'db', 'seed', 'door', 'brick',
)

# What stands along a street.
STYLES = ('terrace', 'semi', 'detached', 'shops', 'flats')


def above_terrain(distance):
    """Camber of 2.5 % on the carriageway (at most 4 m from the kerb), kerb height beyond it."""
    return np.where(distance < 0, 0.025 * np.minimum(-distance, 4.0), KERB_M)


def encode_albedo(albedo):
    """Linear albedo to the uint8 of the rasters (a square root keeps the darks apart)."""
    return np.clip(np.sqrt(np.clip(albedo, 0, 1)) * 255 + 0.5, 0, 255).astype(np.uint8)
