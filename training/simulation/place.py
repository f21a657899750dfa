"""A place: a small neighbourhood of some region of the world, laid out from a seed.

It is a square about the origin (x east, y north, z up, metres): streets, lots, buildings, trees
and furniture.  The ground is a raster of classes and of units (a lot, a patch, a slab), without
colours; objects carry a kind and a group in place of a colour.  ``look.py`` draws the colours:
most views share those of the place, the others do not agree on what is lighter than what.
Rasters are south-up: row 0 is the southernmost, so row grows with y and column with x.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from .city import CarSlot, Line, Raster
from .mesh import Mesh

HALF_M = 92.0          # of the ground raster
PX_M = 0.1             # of the ground raster
HEIGHT_PX_M = 0.6      # of the height raster and the ground mesh
STREET_REACH_M = 150.0


class Ground(IntEnum):
    """Classes of ground."""

    ASPHALT = 0
    DRIVE = 1          # driveways and yards of asphalt, older or newer than the street's
    CONCRETE = 2
    PAVING = 3
    GRAVEL = 4
    SOIL = 5
    LAWN = 6
    ROUGH = 7          # grass that nobody mows
    CROP = 8
    KERB = 9
    WHITE = 10
    YELLOW = 11
    COVER = 12         # manholes, drains
    BED = 13           # planted beds, mulch
    GUTTER = 14
    WATER = 15


class Part(IntEnum):
    """Kinds of objects; a mesh's colours hold (kind, group, shade) until a look is drawn."""

    WALL = 0
    ROOF = 1
    TRIM = 2
    BARK = 3
    HEDGE = 4
    FENCE = 5
    POLE = 6
    SIGN = 7
    MASONRY = 8
    DARK = 9


@dataclass
class Road:
    """A street: ``line`` its middle, ``half_m`` from there to the edge of the carriageway."""

    line: Line
    half_m: float
    grade: str                 # local, main, arterial, rural, country, highway
    lanes: int = 2             # of both directions
    median_m: float = 0.0      # half the width of what parts the directions
    parking_m: float = 0.0     # of a parking lane at each side
    shoulder_m: float = 0.0    # paved, beyond the edge line
    junctions: list = field(default_factory=list)  # (s, half width of the other road)

    @property
    def drive_m(self) -> float:
        """From the middle to the outer edge of the lanes."""
        return self.half_m - self.parking_m - self.shoulder_m

    @property
    def lane_m(self) -> float:
        """Width of a lane."""
        return (self.drive_m - self.median_m) / max(self.lanes // 2, 1)

    def clear(self, s: float, margin_m: float) -> bool:
        """Whether a station keeps its distance from all junctions."""
        return all(abs(s - at) > half + margin_m for at, half in self.junctions)


@dataclass(frozen=True)
class Tree:
    """A tree as ``appearance`` grows it, with the shape of its crown."""

    x: float
    y: float
    height_m: float
    crown_m: float
    rgb: tuple
    evergreen: bool
    seed: int
    shape: str = 'round'       # round, cone, column, palm


@dataclass(frozen=True)
class Spot:
    """Where a camera may stand, and the direction of the road there."""

    x: float
    y: float
    yaw: float


@dataclass(eq=False)
class Place:
    """All that views of a place share."""

    seed: int
    region: str
    half_m: float
    kind: np.ndarray           # (N, N) uint8, Ground
    unit: np.ndarray           # (N, N) uint16, number of a patch of one shade
    stain: np.ndarray          # (N, N) uint8, 128 unchanged, darker below: what lasts for years
    direction: np.ndarray      # (N / 8, N / 8) float32, of crop rows
    height: Raster             # of the visible ground
    waves: np.ndarray
    mesh: Mesh                 # rgb holds (kind, group, shade)
    groups: int
    walls: np.ndarray
    trees: list[Tree]
    car_slots: list[CarSlot]   # parked, with the probability of use
    lane_spots: list[Spot]     # where traffic may be
    spots: list[Spot]          # where the camera may be
    building_mask: Raster

    def terrain(self, x, y):
        """Height without kerbs, metres."""
        kx, ky, phase, amplitude = self.waves.T
        angle = np.multiply.outer(x, kx) + np.multiply.outer(y, ky) + phase
        return np.sin(angle) @ amplitude

    def ground(self, x, y):
        """Height of the visible ground, metres; the terrain's beyond the raster."""
        x, y = np.asarray(x, float), np.asarray(y, float)
        inside = np.maximum(np.abs(x), np.abs(y)) < self.half_m - 1.0
        return np.where(inside, self.height.sample(x.ravel(), y.ravel()).reshape(x.shape),
                        self.terrain(x, y))
