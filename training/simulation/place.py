"""A place: a small neighbourhood of some region of the world, laid out from a seed.

It is a square about the origin (x east, y north, z up, metres): streets, lots, buildings, trees
and furniture.  The ground is a raster of classes and of units (a lot, a patch, a slab), without
colours; objects carry a kind and a group in place of a colour.  ``look.py`` draws the colours for
each view anew, so that no two views of a place agree on what is lighter than what.
Rasters are south-up: row 0 is the southernmost, so row grows with y and column with x.
"""

from dataclasses import dataclass, field
from enum import IntEnum

import cv2
import numpy as np

from .city import CarSlot, Line, Raster, terrain_waves, WALL_FIELDS
from .mesh import box_mesh, Material, Mesh, MeshBuilder, turned

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
    grade: str                 # local, main, arterial, rural, alley, highway
    lanes: int = 2             # of both directions
    median_m: float = 0.0      # half the width of what parts the directions
    parking_m: float = 0.0     # of a parking lane at each side
    junctions: list = field(default_factory=list)  # (s, half width of the other road)

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


@dataclass
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


REGIONS = {
    'us_suburb': 0.24, 'au_suburb': 0.18, 'uk_town': 0.10, 'city': 0.12, 'arterial': 0.14,
    'rural': 0.14, 'industrial': 0.08,
}


def make_place(seed: int, region: str | None = None) -> Place:
    """Lay out the place of a seed, in ``region`` or one drawn with the shares of REGIONS."""
    rng = np.random.default_rng([seed, 31])
    drawn = str(rng.choice(list(REGIONS), p=list(REGIONS.values())))
    return _Planner(seed, region or drawn, rng).run()


def _between(rng, low, high) -> float:
    return float(rng.uniform(low, high))


def _likely(rng, probability) -> bool:
    return bool(rng.random() < probability)


class _Planner:
    """Draws a place step by step: roads, ground, lots, objects."""

    def __init__(self, seed: int, region: str, rng):
        self.seed, self.region, self.rng = seed, region, rng
        self.count = round(2 * HALF_M / PX_M)
        shape = (self.count, self.count)
        self.kind = np.zeros(shape, np.uint8)
        self.unit = np.zeros(shape, np.uint16)
        self.stain = np.full(shape, 128, np.uint8)
        self.direction = np.zeros((self.count // 8, self.count // 8), np.float32)
        self.units = 1
        self.builder = MeshBuilder()
        self.groups = 0
        self.walls, self.trees, self.car_slots = [], [], []
        self.left_hand = region in ('au_suburb', 'uk_town') or (
            region in ('city', 'arterial', 'rural', 'industrial') and _likely(rng, 0.4))
        self.yellow_centre = not self.left_hand
        waves = terrain_waves(rng, 130.0)
        waves[:, 3] *= rng.choice([0.15, 0.6, 1.0, 1.6], p=[0.3, 0.3, 0.25, 0.15])
        self.waves = waves
        self.roads: list[Road] = []
        self.building_mask = np.zeros((round(2 * HALF_M),) * 2, np.uint8)

    def run(self) -> Place:
        self.lay_roads()
        self.paint_ground()
        self.raise_ground()
        self.place_lots()
        self.paint_streets()
        self.place_furniture()
        self.surround()
        half = HALF_M
        return Place(
            self.seed, self.region, half, self.kind, self.unit, self.stain, self.direction,
            self.height, self.waves, self.builder.build(), self.groups,
            np.array(self.walls, np.float32).reshape(-1, len(WALL_FIELDS)), self.trees,
            self.car_slots, self.lane_spots(), self.camera_spots(),
            Raster(self.building_mask, half, 1.0))

    # --- helpers -------------------------------------------------------------------------------

    def pixels(self, polygon) -> np.ndarray:
        """Metres to sixteenths of a pixel, as OpenCV takes them."""
        return np.round(((np.asarray(polygon) + HALF_M) / PX_M - 0.5) * 16).astype(np.int32)

    def fill(self, polygon, kind: int, unit: int | None = None) -> None:
        points = [self.pixels(polygon)]
        cv2.fillPoly(self.kind, points, int(kind), cv2.LINE_8, 4)
        cv2.fillPoly(self.unit, points, self.new_unit() if unit is None else unit, cv2.LINE_8, 4)

    def new_unit(self) -> int:
        self.units = self.units % 65000 + 1
        return self.units

    def new_group(self) -> int:
        self.groups += 1
        return self.groups - 1

    def code(self, part: Part, group: int, shade: float = 1.0) -> tuple:
        """What stands in place of a colour until a look is drawn."""
        return (float(part), float(group), shade)

    def box(self, centre, yaw, size, part: Part, group=None, shade=1.0, taper=1.0,
            material=Material.PLAIN) -> None:
        group = self.new_group() if group is None else group
        self.builder.add(*box_mesh(centre, yaw, size, taper), material,
                         self.code(part, group, shade))

    def ribbon(self, line: Line, s0, s1, left0, left1) -> np.ndarray:
        """Polygon between two offsets to the left of a line, from station s0 to s1."""
        s = np.linspace(s0, s1, max(2, int(abs(s1 - s0) / 2.5) + 1))
        s = np.clip(s, 0.0, line.length)
        one = line.offset(s, np.full(s.size, left0))
        other = line.offset(s, np.full(s.size, left1))
        return np.concatenate((one, other[::-1]))

    def z(self, x, y) -> float:
        return float(self.height.sample(np.array([x]), np.array([y]))[0])

    def distance_at(self, x, y) -> float:
        """Metres beyond the edge of the carriageway; negative on it."""
        col = int(np.clip((x + HALF_M) / PX_M, 0, self.count - 1))
        row = int(np.clip((y + HALF_M) / PX_M, 0, self.count - 1))
        return float(self.outside[row, col] - self.inside[row, col])

    def rectangle(self, centre, yaw, along, across) -> np.ndarray:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (along / 2, across / 2)
        cos, sin = np.cos(yaw), np.sin(yaw)
        return corners @ np.array([[cos, sin], [-sin, cos]]) + np.asarray(centre)[:2]

    def free(self, polygon) -> bool:
        """Whether nothing stands on an area, and no street runs through it."""
        if np.abs(polygon).max() > HALF_M - 1.0:
            return False
        view, mask = self._cover(polygon)
        return not (self.taken[view] & mask).any()

    def take(self, polygon) -> None:
        view, mask = self._cover(polygon)
        self.taken[view] |= mask

    def _cover(self, polygon):
        pixels = (np.asarray(polygon) + HALF_M) / 0.5 - 0.5
        side = self.taken.shape[0]
        low = np.clip(np.floor(pixels.min(0)).astype(int) - 1, 0, side - 2)
        high = np.clip(np.ceil(pixels.max(0)).astype(int) + 2, low + 1, side)
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [np.round((pixels - low) * 16).astype(np.int32)], 1, shift=4)
        return (slice(low[1], high[1]), slice(low[0], high[0])), mask

    # --- roads ---------------------------------------------------------------------------------

    def bent_line(self, start, heading, length, radius_m) -> Line:
        """A line of random curvature, at sharpest about ``radius_m``."""
        rng, step = self.rng, 2.0
        n = int(length / step) + 1
        knots = rng.normal(0.0, 1.0, max(3, n // 12 + 3))
        curvature = np.interp(np.linspace(0, len(knots) - 1, n), np.arange(len(knots)), knots)
        headings = heading + np.cumsum(curvature * step / radius_m / 1.6)
        steps = step * np.stack((np.cos(headings), np.sin(headings)), 1)
        return Line(np.concatenate(([np.asarray(start, float)], start + np.cumsum(steps, 0))))

    def lay_roads(self) -> None:
        rng, region = self.rng, self.region
        grade = {'us_suburb': 'local', 'au_suburb': 'local', 'uk_town': 'local', 'city': 'main',
                 'arterial': 'arterial', 'rural': 'rural', 'industrial': 'main'}[region]
        if region in ('us_suburb', 'au_suburb', 'uk_town') and _likely(rng, 0.3):
            grade = 'main'
        if region == 'rural' and _likely(rng, 0.15):
            grade = 'highway'
        radius_m = {'local': rng.choice([60.0, 120.0, 500.0]), 'main': 250.0, 'arterial': 500.0,
                    'rural': rng.choice([120.0, 400.0]), 'highway': 600.0}[grade]
        heading = rng.uniform(-np.pi, np.pi)
        across = np.array([-np.sin(heading), np.cos(heading)])
        middle = across * rng.normal(0.0, 3.0)
        forward = self.bent_line(middle, heading, STREET_REACH_M, radius_m)
        backward = self.bent_line(middle, heading + np.pi, STREET_REACH_M, radius_m)
        line = Line(np.concatenate((backward.points[:0:-1], forward.points)))
        self.roads.append(self.new_road(line, grade))
        main, centre_s = self.roads[0], backward.length

        sides = {'us_suburb': 1.6, 'au_suburb': 1.5, 'uk_town': 1.8, 'city': 1.6,
                 'arterial': 1.2, 'rural': 0.5, 'industrial': 1.2}[region]
        if grade == 'highway':
            sides = 0.0
        for _ in range(min(int(rng.poisson(sides)), 4)):
            s = centre_s + rng.uniform(-75.0, 75.0)
            side_grade = 'rural' if region == 'rural' else str(rng.choice(
                ['local', 'main'], p=[0.75, 0.25] if region != 'city' else [0.4, 0.6]))
            if not main.clear(s, 18.0):
                continue
            point, tangent = main.line.at(s), main.line.tangent(s)
            angle = np.radians(rng.normal(90.0, 10.0) if rng.random() < 0.85
                               else rng.choice([-1, 1]) * rng.uniform(20, 40) + 90.0)
            toward = np.arctan2(tangent[1], tangent[0]) + angle
            ways = [0.0, np.pi] if _likely(rng, 0.42) else [float(rng.choice([0.0, np.pi]))]
            half = None
            for way in ways:
                ends = region in ('us_suburb', 'au_suburb') and _likely(rng, 0.15)
                length = rng.uniform(35.0, 60.0) if ends else STREET_REACH_M
                road = self.new_road(
                    self.bent_line(point, toward + way, length, rng.choice([60.0, 150.0, 600.0])),
                    side_grade, half)
                half = road.half_m
                road.junctions.append((0.0, main.half_m))
                if ends:
                    road.junctions.append((road.line.length, 10.0))
                self.roads.append(road)
            main.junctions.append((s, half))
        if region in ('us_suburb', 'au_suburb', 'uk_town', 'city') and _likely(rng, 0.5):
            shift = rng.choice([-1, 1]) * rng.uniform(55.0, 90.0)
            s = np.arange(0.0, main.line.length, 4.0)
            self.roads.append(self.new_road(
                Line(main.line.offset(s, np.full(s.size, shift))), 'local'))
        self.roundabout = None
        if main.junctions and grade in ('local', 'main') and _likely(rng, 0.12):
            s, half = main.junctions[0]
            self.roundabout = (main.line.at(s), rng.uniform(4.0, 9.0), rng.uniform(4.5, 6.5))
            main.junctions[0] = (s, self.roundabout[1] + self.roundabout[2])

    def new_road(self, line: Line, grade: str, half_m: float | None = None) -> Road:
        rng = self.rng
        city = self.region == 'city'
        if grade == 'arterial':
            lane, lanes = rng.uniform(3.0, 3.6), int(rng.choice([4, 4, 5, 6]))
            median = rng.choice([0.0, rng.uniform(0.6, 4.0)], p=[0.5, 0.5])
            return Road(line, lane * lanes / 2 + median, grade, lanes, float(median))
        if grade == 'highway':
            median = rng.choice([rng.uniform(3.0, 8.0), 0.4])
            return Road(line, 2 * 3.6 + rng.uniform(1.0, 3.0) + median, grade, 4, float(median))
        if grade == 'rural':
            return Road(line, half_m or rng.uniform(2.3, 3.9), grade)
        if grade == 'main':
            parking = rng.choice([0.0, 2.2], p=[0.5, 0.5])
            lanes = int(rng.choice([2, 4], p=[0.75, 0.25])) if city else 2
            half = half_m or rng.uniform(3.0, 3.7) * lanes / 2 + parking + rng.choice([0.0, 1.5])
            return Road(line, half, grade, lanes, 0.0, float(parking))
        low, high = {'us_suburb': (3.3, 5.8), 'au_suburb': (3.0, 5.0), 'uk_town': (2.6, 4.4),
                     'city': (2.8, 5.5), 'industrial': (3.5, 6.0)}.get(self.region, (3.0, 4.5))
        half = half_m or rng.uniform(low, high)
        return Road(line, half, grade, 2, 0.0, 2.0 if half > 4.6 else 0.0)

    # --- ground --------------------------------------------------------------------------------

    def paint_ground(self) -> None:
        """Land cover, then the carriageway and the strips beside it, by distance from its edge."""
        rng, region = self.rng, self.region
        self.paint_land()
        mask = np.zeros_like(self.kind)
        for road in self.roads:
            polygon = self.ribbon(road.line, 0.0, road.line.length, road.half_m, -road.half_m)
            cv2.fillPoly(mask, [self.pixels(polygon)], 1, cv2.LINE_8, 4)
            if road.line.length < STREET_REACH_M - 10.0:  # the bulb of a dead end
                cv2.circle(mask, self.pixels(road.line.at(road.line.length)).tolist(),
                           int(rng.uniform(7.5, 10.5) / PX_M * 16), 1, -1, cv2.LINE_8, 4)
        if self.roundabout:
            centre, island, ring = self.roundabout
            cv2.circle(mask, self.pixels(centre).tolist(), int((island + ring) / PX_M * 16), 1,
                       -1, cv2.LINE_8, 4)
        corner = {'city': 5.0, 'uk_town': 5.0, 'arterial': 9.0, 'rural': 9.0,
                  'industrial': 9.0}.get(region, 6.5) * rng.uniform(0.7, 1.3)
        near = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) * PX_M
        wide = (near <= corner).astype(np.uint8)
        mask = (cv2.distanceTransform(wide, cv2.DIST_L2, 5) * PX_M > corner).astype(np.uint8)
        if self.roundabout:
            cv2.circle(mask, self.pixels(centre).tolist(), int(island / PX_M * 16), 0, -1,
                       cv2.LINE_8, 4)
        self.cut_medians(mask)
        self.outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) * np.float32(PX_M)
        self.inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5) * np.float32(PX_M)

        # Strips: kerb, verge, pavement; some sides have no pavement.
        self.kerb_m, self.verge_m, self.walk_m = self.strip_widths()
        bare = np.zeros_like(mask)
        for road in self.roads:
            for side in (1, -1):
                lonely = {'us_suburb': 0.3, 'au_suburb': 0.5, 'arterial': 0.3,
                          'industrial': 0.4}.get(region, 0.05)
                if _likely(rng, lonely):
                    polygon = self.ribbon(
                        road.line, 0, road.line.length, side * road.half_m,
                        side * (road.half_m + self.verge_m + self.walk_m + 3.0))
                    cv2.fillPoly(bare, [self.pixels(polygon)], 1, cv2.LINE_8, 4)
        d = self.outside
        self.walk_mask = ((d > self.kerb_m + self.verge_m)
                          & (d <= self.kerb_m + self.verge_m + self.walk_m) & (bare == 0))
        self.verge_kind = int(rng.choice(
            [Ground.LAWN, Ground.ROUGH, Ground.SOIL, Ground.GRAVEL],
            p={'rural': [0.15, 0.5, 0.15, 0.2], 'au_suburb': [0.55, 0.35, 0.1, 0.0],
               }.get(region, [0.7, 0.2, 0.05, 0.05])))
        self.mask = mask
        self.taken = cv2.resize(
            ((d < self.kerb_m + self.verge_m + self.walk_m + 0.4)).astype(np.uint8),
            (self.count // 5,) * 2, interpolation=cv2.INTER_AREA)

    def cut_medians(self, mask) -> None:
        """Raised medians of wide roads, open at the junctions."""
        for road in self.roads:
            if road.median_m < 0.5 or road.median_m == 0.4:
                continue
            for s0, s1 in self.stretches(road, 7.0):
                polygon = self.ribbon(road.line, s0, s1, road.median_m, -road.median_m)
                cv2.fillPoly(mask, [self.pixels(polygon)], 0, cv2.LINE_8, 4)

    def stretches(self, road: Road, margin_m: float) -> list[tuple[float, float]]:
        """Stations between the junctions, ``margin_m`` away from them."""
        cuts = sorted(road.junctions)
        found, start = [], 0.0
        for s, half in cuts:
            found.append((start, s - half - margin_m))
            start = max(start, s + half + margin_m)
        found.append((start, road.line.length))
        return [(a, b) for a, b in found if b - a > 4.0]

    def strip_widths(self) -> tuple[float, float, float]:
        rng, region = self.rng, self.region
        kerb = {'rural': 0.0, 'us_suburb': rng.choice([0.0, 0.18, 0.3], p=[0.2, 0.5, 0.3]),
                'au_suburb': rng.choice([0.15, 0.35]), 'uk_town': 0.15, 'city': 0.18,
                'arterial': 0.18, 'industrial': rng.choice([0.0, 0.18])}[region]
        verge = {'rural': 3.0, 'us_suburb': rng.choice([0.0, rng.uniform(0.8, 4.0)], p=[.2, .8]),
                 'au_suburb': rng.uniform(1.5, 5.5), 'uk_town': rng.choice([0.0, 1.5], p=[.8, .2]),
                 'city': rng.choice([0.0, 1.2], p=[0.8, 0.2]),
                 'arterial': rng.choice([0.0, rng.uniform(1.0, 3.5)]),
                 'industrial': rng.choice([0.0, rng.uniform(1.0, 4.0)])}[region]
        walk = {'rural': 0.0, 'us_suburb': rng.uniform(1.1, 1.8), 'au_suburb': 1.3,
                'uk_town': rng.uniform(1.4, 2.8), 'city': rng.uniform(2.5, 5.0),
                'arterial': rng.uniform(1.4, 2.4), 'industrial': rng.uniform(1.2, 1.8)}[region]
        return float(kerb), float(verge), float(walk)

    def paint_land(self) -> None:
        """What lies between the streets before anyone builds there."""
        rng, region = self.rng, self.region
        base = {'rural': Ground.ROUGH, 'industrial': Ground.DRIVE, 'city': Ground.PAVING,
                'arterial': Ground.ROUGH}.get(region, Ground.LAWN)
        self.kind[:] = int(base)
        self.unit[:] = 0
        corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * HALF_M
        patches = {'rural': 9, 'industrial': 10, 'city': 8}.get(region, 6)
        kinds = {'rural': [Ground.CROP, Ground.CROP, Ground.ROUGH, Ground.SOIL, Ground.LAWN],
                 'industrial': [Ground.CONCRETE, Ground.DRIVE, Ground.GRAVEL, Ground.ROUGH],
                 'city': [Ground.DRIVE, Ground.LAWN, Ground.CONCRETE, Ground.GRAVEL]}.get(
            region, [Ground.ROUGH, Ground.LAWN, Ground.SOIL, Ground.BED])
        for _ in range(patches):
            # Half planes cut one after the other leave polygons, as fields lie.
            polygon = corner
            for _ in range(int(rng.integers(2, 5))):
                angle, offset = rng.uniform(-np.pi, np.pi), rng.uniform(-70, 60)
                polygon = _cut_polygon(polygon, np.array([np.cos(angle), np.sin(angle)]), offset)
                if len(polygon) < 3:
                    break
            if len(polygon) >= 3:
                self.fill(polygon, kinds[rng.integers(len(kinds))])
                cv2.fillPoly(self.direction, [np.round(
                    (polygon + HALF_M) / (8 * PX_M)).astype(np.int32)],
                    float(rng.uniform(0, np.pi)))

    def raise_ground(self) -> None:
        """Heights: terrain, camber, kerbs, ditches; and the mesh of the ground."""
        rng = self.rng
        n = round(2 * HALF_M / HEIGHT_PX_M)
        g = (np.arange(n) + 0.5) * HEIGHT_PX_M - HALF_M
        x, y = np.meshgrid(g, g)
        kx, ky, phase, amplitude = self.waves.T
        z = np.zeros_like(x)
        for a, b, c, d in zip(kx, ky, phase, amplitude):
            z += d * np.sin(a * x + b * y + c)
        outside = cv2.resize(self.outside, (n, n), interpolation=cv2.INTER_AREA)
        inside = cv2.resize(self.inside, (n, n), interpolation=cv2.INTER_AREA)
        z += rng.uniform(0.0, 0.03) * np.minimum(inside, 4.0)
        if self.kerb_m:
            z += rng.uniform(0.06, 0.16) * np.clip(outside / 0.6, 0.0, 1.0)
        elif _likely(rng, 0.6):  # a ditch beside the road
            far = rng.uniform(2.5, 5.0)
            z -= rng.uniform(0.1, 0.7) * np.exp(-((outside - far) / 1.2) ** 2)
        bank = rng.choice([0.0, 0.0, rng.uniform(-0.12, 0.2)])
        z += bank * np.clip(outside - 4.0, 0.0, 14.0)
        self.height = Raster(z.astype(np.float32), HALF_M, HEIGHT_PX_M)
        index = np.arange(n * n).reshape(n, n)
        a, b, c, d = (index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, 1:].ravel(),
                      index[1:, :-1].ravel())
        faces = np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1)))
        self.builder.add(np.stack((x.ravel(), y.ravel(), z.ravel()), 1), faces, Material.LAND,
                         (0.0, 0.0, 1.0))
        # Beyond it, out to where haze hides it.
        g = np.linspace(-6 * HALF_M, 6 * HALF_M, 49)
        x, y = np.meshgrid(g, g)
        z = np.zeros_like(x)
        for a, b, c, d in zip(kx, ky, phase, amplitude):
            z += d * np.sin(a * x + b * y + c)
        far = np.stack((x, y, z - 0.4), -1)
        quads = np.stack((far[:-1, :-1], far[:-1, 1:], far[1:, 1:], far[1:, :-1]), 2)
        beyond = np.abs(quads[..., :2].mean(2)).max(-1) > HALF_M
        self.builder.quads(quads[beyond], Material.PLAIN,
                           self.code(Part.HEDGE, self.new_group(), 1.0))

    # --- lots ----------------------------------------------------------------------------------

    def place_lots(self) -> None:
        """Yards, buildings and what belongs to them, along each road."""
        region = self.region
        self.lot_drives, self.lot_walks = [], []
        self.manner = self.lot_manner()
        for road in self.roads:
            for side in (1, -1):
                if region == 'rural':
                    self.farm_side(road, side)
                elif region in ('arterial', 'industrial') and road.grade != 'local':
                    self.commercial_side(road, side)
                elif region == 'city':
                    self.city_side(road, side)
                else:
                    self.house_side(road, side)
        self.fill_gaps()

    def lot_manner(self) -> dict:
        """What the houses of one place have in common."""
        rng, region = self.rng, self.region
        uk = region == 'uk_town'
        return {
            'width': rng.uniform(6, 14) if uk else rng.uniform(12, 26),
            'setback': rng.uniform(1.0, 7.0) if uk else rng.uniform(4.0, 13.0),
            'fenced': _likely(rng, 0.7 if uk else 0.15), 'roofs': rng.integers(1, 4),
            'drive': int(rng.choice([Ground.CONCRETE, Ground.DRIVE, Ground.PAVING, Ground.GRAVEL],
                                    p=[0.5, 0.25, 0.15, 0.1])),
            'trees': rng.uniform(0.3, 2.5), 'storeys': rng.choice([1, 1, 2]) if not uk else 2,
            'beds': rng.uniform(0.1, 0.9), 'skew': rng.normal(0.0, 0.06),
        }

    def side_walk_edge(self, road: Road) -> float:
        """From the middle of a road to where lots begin."""
        return road.half_m + self.kerb_m + self.verge_m + self.walk_m

    def frame(self, road: Road, side: int, s: float):
        """Point, outward normal and yaw of a lot's own axes (+y away from the street)."""
        tangent = road.line.tangent(s)
        normal = side * np.array([-tangent[1], tangent[0]])
        yaw = np.arctan2(normal[1], normal[0]) - np.pi / 2
        return road.line.at(s), normal, float(yaw)

    def house_side(self, road: Road, side: int) -> None:
        rng, manner = self.rng, self.manner
        edge = self.side_walk_edge(road)
        for start, stop in self.stretches(road, 6.0):
            s = start + rng.uniform(0.0, 4.0)
            while s < stop - 6.0:
                width = manner['width'] * rng.uniform(0.75, 1.3)
                if s + width > stop + 2.0:
                    break
                if _likely(rng, 0.9):
                    self.house_lot(road, side, s, width, edge)
                elif _likely(rng, 0.6):
                    self.trees_in(self.frame(road, side, s + width / 2), width, edge, 25.0, 4)
                s += width

    def house_lot(self, road, side, s, width, edge) -> None:
        """One lot: yard, house, drive, path, beds, hedges, trees."""
        rng, manner = self.rng, self.manner
        mid = s + width / 2
        point, normal, yaw = self.frame(road, side, mid)
        along = np.array([np.cos(yaw), np.sin(yaw)])
        depth = rng.uniform(20.0, 34.0)
        yard = self.ribbon(road.line, s, s + width, side * (road.half_m + self.kerb_m),
                           side * (edge + depth))
        unit = self.new_unit()
        ground = rng.choice([Ground.LAWN, Ground.ROUGH, Ground.SOIL, Ground.GRAVEL, Ground.PAVING],
                            p=[0.72, 0.12, 0.05, 0.05, 0.06])
        self.fill(yard, ground, unit)
        setback = max(0.8, manner['setback'] + rng.normal(0.0, 0.8))
        uk = self.region == 'uk_town'
        wide = width - (rng.choice([0.0, 0.0, 2.5]) if uk else rng.uniform(2.0, 7.0))
        wide, deep = max(wide, 5.0), rng.uniform(7.0, 12.0)
        centre = point + normal * (edge + setback + deep / 2) + along * rng.normal(0.0, 0.5)
        turn = yaw + manner['skew'] + rng.normal(0.0, 0.01)
        footprint = self.rectangle(centre, turn, wide, deep)
        house = self.free(footprint)
        flip = rng.choice([-1, 1])
        if house:
            self.take(footprint)
            style = self.house_style()
            self.house(centre, turn, wide, deep, style, flip)
        # Drive to a garage, a car port or the yard beside the house.
        if _likely(rng, 0.35 if uk else 0.85):
            drive_w = rng.uniform(2.6, 3.4) if uk or _likely(rng, 0.6) else rng.uniform(4.5, 6.5)
            at = flip * (width / 2 - drive_w / 2 - rng.uniform(0.2, 1.2))
            reach = setback + (rng.uniform(3.0, 9.0) if not house or _likely(rng, 0.4) else 0.0)
            middle = point + along * at
            flare = rng.uniform(0.0, 1.2)
            near, far = road.half_m - 0.3, edge + reach
            polygon = np.array([
                middle + along * (drive_w / 2 + flare) + normal * near,
                middle + along * drive_w / 2 + normal * (road.half_m + 1.5),
                middle + along * drive_w / 2 + normal * far,
                middle - along * drive_w / 2 + normal * far,
                middle - along * drive_w / 2 + normal * (road.half_m + 1.5),
                middle - along * (drive_w / 2 + flare) + normal * near])
            kind = manner['drive'] if _likely(rng, 0.75) else int(rng.choice(
                [Ground.CONCRETE, Ground.DRIVE, Ground.PAVING, Ground.GRAVEL]))
            self.lot_drives.append((polygon, kind))
            self.take(self.rectangle(middle + normal * (edge + reach / 2), yaw, drive_w, reach))
            if reach > 5.0:
                spot = middle + normal * (edge + reach - rng.uniform(2.6, 4.5))
                self.car_slots.append(CarSlot(
                    *map(float, spot), float(yaw + np.pi / 2 + np.pi * rng.integers(2)),
                    rng.uniform(0.1, 0.7)))
        if house and _likely(rng, 0.6):  # a path to the door
            at = point + along * (-flip * rng.uniform(0.0, wide / 3))
            path = self.rectangle(at + normal * (edge + setback / 2), yaw, rng.uniform(0.8, 1.4),
                                  setback + 0.3)
            self.lot_walks.append((path, int(rng.choice([Ground.CONCRETE, Ground.PAVING]))))
        for _ in range(rng.poisson(2 * manner['beds'])):
            spot = centre + along * rng.uniform(-0.6, 0.6) * width - normal * (
                deep / 2 + rng.uniform(0.6, max(setback, 1.0)))
            bed = self.rectangle(spot, yaw + rng.normal(0, 0.2), rng.uniform(1, 5),
                                 rng.uniform(0.6, 1.8))
            self.fill(bed, Ground.BED)
            self.bush(spot)
        for _ in range(rng.poisson(0.8)):  # patios, sheds, pools behind the house
            spot = centre + along * rng.uniform(-0.45, 0.45) * width + normal * (
                deep / 2 + rng.uniform(2.0, 10.0))
            area = self.rectangle(spot, yaw, *rng.uniform(2.0, 6.0, 2))
            kind = rng.choice([Ground.PAVING, Ground.CONCRETE, Ground.WATER, Ground.SOIL],
                              p=[0.4, 0.3, 0.12, 0.18])
            self.fill(area, kind)
            if kind == Ground.SOIL and self.free(area):
                self.take(area)
                self.hut(spot, yaw)
        self.lot_borders(point, normal, along, yaw, width, edge, setback, deep)
        self.trees_in((point, normal, yaw), width, edge, depth, rng.poisson(manner['trees']))

    def lot_borders(self, point, normal, along, yaw, width, edge, setback, deep) -> None:
        rng = self.rng
        corner = point + along * width / 2
        if _likely(rng, 0.6):  # between neighbours, behind the house front
            self.barrier(corner + normal * (edge + setback + rng.uniform(0, deep)),
                         corner + normal * (edge + setback + deep + rng.uniform(3, 14)), False)
        if self.manner['fenced'] and setback > 1.5:
            gate = rng.uniform(-0.3, 0.3) * width
            for low, high in ((-width / 2, gate - 1.5), (gate + 1.5, width / 2)):
                if high - low > 1.0:
                    self.barrier(point + along * low + normal * (edge + 0.3),
                                 point + along * high + normal * (edge + 0.3), True)

    def barrier(self, start, stop, low: bool) -> None:
        """A fence, wall or hedge, as far as its ground is free."""
        rng = self.rng
        run = stop - start
        length = float(np.linalg.norm(run))
        if length < 1.0:
            return
        yaw, group = float(np.arctan2(run[1], run[0])), self.new_group()
        part = Part(rng.choice([Part.HEDGE, Part.FENCE, Part.MASONRY], p=[0.4, 0.4, 0.2]))
        height = rng.uniform(0.5, 1.3) if low else rng.uniform(1.2, 2.0)
        thick = rng.uniform(0.4, 1.1) if part == Part.HEDGE else 0.15
        pieces = max(1, round(length / 2.5))
        for k in range(pieces):
            x, y = start + run * (k + 0.5) / pieces
            if self.free(self.rectangle((x, y), yaw, length / pieces, 0.3)):
                self.box((x, y, self.z(x, y) - 0.1), yaw, (length / pieces + 0.05, thick, height),
                         part, group, rng.uniform(0.9, 1.1), 1.0,
                         Material.LEAF if part == Part.HEDGE else Material.PLAIN)

    def city_side(self, road: Road, side: int) -> None:
        """Buildings at the pavement's edge, courts and car parks between them."""
        rng = self.rng
        edge = self.side_walk_edge(road)
        storeys = int(rng.integers(2, 9))
        for start, stop in self.stretches(road, 4.0):
            s = start
            while s < stop - 6.0:
                width = min(rng.uniform(9.0, 34.0), stop - s)
                point, normal, yaw = self.frame(road, side, s + width / 2)
                setback = rng.choice([0.8, 0.8, rng.uniform(1.0, 8.0)])
                deep = rng.uniform(11.0, 22.0)
                for back in (0.0, 0.8, 1.6, 2.4, 4.0):  # behind the bow of a bend
                    centre = point + normal * (edge + setback + back + deep / 2)
                    footprint = self.rectangle(centre, yaw, width - 0.1, deep)
                    if self.free(footprint):
                        break
                if _likely(rng, 0.12):
                    self.car_park(point + normal * (edge + 9.0), yaw, width, 17.0)
                elif self.free(footprint):
                    self.take(footprint)
                    self.house(centre, yaw, width - 0.1, deep, {
                        **self.house_style(), 'flat': _likely(rng, 0.8), 'shop': _likely(rng, 0.5),
                        'storeys': max(1, storeys + int(rng.integers(-2, 3)))}, 1)
                    if setback > 2.0:
                        front = self.rectangle(point + normal * (edge + setback / 2), yaw, width,
                                               setback)
                        self.fill(front, rng.choice([Ground.LAWN, Ground.PAVING, Ground.BED]))
                s += width + rng.choice([0.0, 0.0, rng.uniform(1.0, 8.0)])

    def commercial_side(self, road: Road, side: int) -> None:
        """Car parks in front of large flat buildings, drives, lawns."""
        rng = self.rng
        edge = self.side_walk_edge(road)
        for start, stop in self.stretches(road, 5.0):
            s = start + rng.uniform(0, 6)
            while s < stop - 18.0:
                width = min(rng.uniform(25.0, 60.0), stop - s)
                point, normal, yaw = self.frame(road, side, s + width / 2)
                along = np.array([np.cos(yaw), np.sin(yaw)])
                lawn, park = rng.uniform(1.0, 6.0), rng.choice([0.0, 17.0, 34.0], p=[.3, .5, .2])
                strip = self.ribbon(road.line, s, s + width, side * (road.half_m + self.kerb_m),
                                    side * (edge + lawn))
                self.fill(strip, rng.choice([Ground.LAWN, Ground.ROUGH, Ground.BED]))
                if park:
                    self.car_park(point + normal * (edge + lawn + park / 2), yaw, width - 2.0,
                                  park)
                    mouth = point + along * rng.uniform(-0.3, 0.3) * width
                    drive = self.rectangle(
                        mouth + normal * (road.half_m + edge + lawn) / 2, yaw,
                        rng.uniform(6.0, 9.0), edge + lawn - road.half_m + 1.5)
                    self.lot_drives.append((drive, int(rng.choice(
                        [Ground.DRIVE, Ground.CONCRETE, Ground.ASPHALT]))))
                wide, deep = width * rng.uniform(0.5, 0.95), rng.uniform(14.0, 30.0)
                centre = point + normal * (edge + lawn + park + 1.5 + deep / 2)
                footprint = self.rectangle(centre, yaw, wide, deep)
                if self.free(footprint) and _likely(rng, 0.85):
                    self.take(footprint)
                    self.house(centre, yaw, wide, deep, {
                        **self.house_style(), 'flat': _likely(rng, 0.85),
                        'shop': _likely(rng, 0.5), 'storeys': int(rng.choice([1, 1, 2, 3]))}, 1)
                else:
                    self.trees_in((point, normal, yaw), width, edge, 30.0, rng.poisson(3))
                if _likely(rng, 0.5):
                    for at in np.arange(-width / 2 + 2, width / 2 - 2, rng.uniform(7, 14)):
                        self.tree(point + along * at + normal * (edge + lawn / 2), 3.0, 9.0)
                s += width + rng.uniform(0.0, 6.0)

    def farm_side(self, road: Road, side: int) -> None:
        """Open country: fences, rows of trees, a farm now and then, tracks into the fields."""
        rng = self.rng
        edge = self.side_walk_edge(road)
        if _likely(rng, 0.4):
            offset = edge + rng.uniform(0.5, 6.0)
            group, gap = self.new_group(), rng.uniform(2.5, 6.0)
            for s in np.arange(2.0, road.line.length - 2.0, gap):
                x, y = road.line.offset(s, side * offset)
                if max(abs(x), abs(y)) < HALF_M - 2:
                    yaw = self.frame(road, side, s)[2]
                    self.box((x, y, self.z(x, y) - 0.1), yaw, (0.1, 0.1, 1.2), Part.FENCE, group)
                    for bar in (0.5, 0.95):
                        self.box((x, y, self.z(x, y) + bar), yaw, (gap, 0.04, 0.08), Part.FENCE,
                                 group)
        if _likely(rng, 0.5):
            offset, step = edge + rng.uniform(1.0, 14.0), rng.uniform(4.0, 18.0)
            tall = rng.uniform(3.0, 14.0)
            for s in np.arange(0.0, road.line.length, step):
                if _likely(rng, 0.7):
                    self.tree(road.line.offset(s, side * (offset + rng.normal(0, 1.0))),
                              0.6 * tall, tall)
        for _ in range(rng.poisson(1.0)):
            s = rng.uniform(50.0, road.line.length - 50.0) if road.line.length > 110 else 20.0
            point, normal, yaw = self.frame(road, side, s)
            length = rng.uniform(12.0, 60.0)
            track = self.rectangle(point + normal * (road.half_m + length / 2), yaw,
                                   rng.uniform(2.4, 5.0), length + 1.0)
            self.lot_drives.append((track, int(rng.choice(
                [Ground.GRAVEL, Ground.SOIL, Ground.CONCRETE, Ground.DRIVE]))))
            if _likely(rng, 0.6):
                for _ in range(rng.integers(1, 4)):
                    centre = point + normal * rng.uniform(18, 45) + rng.uniform(-22, 22, 2)
                    wide, deep = rng.uniform(8.0, 22.0), rng.uniform(7.0, 13.0)
                    footprint = self.rectangle(centre, yaw, wide, deep)
                    if self.free(footprint):
                        self.fill(self.rectangle(centre, yaw, wide + 12, deep + 10),
                                  rng.choice([Ground.GRAVEL, Ground.LAWN, Ground.SOIL]))
                        self.take(footprint)
                        self.house(centre, yaw + rng.normal(0, 0.2), wide, deep,
                                   self.house_style(), 1)

    def fill_gaps(self) -> None:
        """Trees, lawns and sheds where there is still room."""
        rng, region = self.rng, self.region
        for _ in range({'rural': 0, 'city': 60, 'industrial': 20, 'arterial': 20}.get(
                region, int(rng.choice([0, 25, 60])))):
            spot = rng.uniform(-1, 1, 2) * (HALF_M - 12)
            road = min(self.roads, key=lambda road: float(
                np.linalg.norm(road.line.points - spot, axis=1).min()))
            k = int(np.linalg.norm(road.line.points - spot, axis=1).argmin())
            yaw = self.frame(road, 1, road.line.s[k])[2]
            size = rng.uniform(10, 26, 2) if region in ('city', 'industrial') else (
                rng.uniform(8, 16), rng.uniform(7, 11))
            if self.free(self.rectangle(spot, yaw, size[0] + 2.0, size[1] + 2.0)):
                self.fill(self.rectangle(spot, yaw, size[0] + 10.0, size[1] + 14.0),
                          rng.choice([Ground.LAWN, Ground.PAVING, Ground.DRIVE, Ground.ROUGH]))
                self.take(self.rectangle(spot, yaw, *size))
                self.house(spot, yaw, *size, self.house_style(), 1)
        count = {'rural': rng.choice([15, 60, 200]), 'city': 40, 'industrial': 40,
                 'arterial': 70}.get(region, int(60 + 60 * self.manner['trees']))
        cluster = rng.uniform(-0.8, 0.8, (3, 2)) * HALF_M
        for _ in range(int(count)):
            spot = rng.uniform(-1, 1, 2) * (HALF_M - 3) if region != 'rural' or _likely(
                rng, 0.3) else cluster[rng.integers(3)] + rng.normal(0, 14.0, 2)
            if np.abs(spot).max() < HALF_M - 3 and self.free(
                    self.rectangle(spot, 0.0, 1.0, 1.0)):
                self.tree(spot, *((1.0, 3.0) if _likely(rng, 0.35) else (3.0, 15.0)))

    def car_park(self, centre, yaw, along, across) -> None:
        """Rows of stalls on asphalt or concrete."""
        rng = self.rng
        area = self.rectangle(centre, yaw, along, across)
        if not self.free(area):
            return
        self.take(area)
        self.fill(area, rng.choice([Ground.DRIVE, Ground.CONCRETE, Ground.ASPHALT],
                                   p=[0.6, 0.2, 0.2]))
        turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
        use, stall = rng.uniform(0.1, 0.9), rng.uniform(2.4, 2.8)
        paint = Ground.YELLOW if _likely(rng, 0.15) else Ground.WHITE
        rows = [-across / 2 + 2.6, across / 2 - 2.6] if across < 20 else [
            -across / 2 + 2.6, -2.6, 2.6, across / 2 - 2.6]
        unit = self.new_unit()
        for row in rows:
            for k in range(int((along - 1.0) // stall) + 1):
                x = -along / 2 + 0.5 + stall * k
                bar = np.array([[x - 0.06, row - 2.4], [x + 0.06, row - 2.4],
                                [x + 0.06, row + 2.4], [x - 0.06, row + 2.4]])
                self.fill(bar @ turn + centre, paint, unit)
                if x + stall < along / 2:
                    spot = np.array([x + stall / 2, row]) @ turn + centre
                    self.car_slots.append(CarSlot(
                        *map(float, spot), float(yaw + np.pi / 2 + np.pi * rng.integers(2)),
                        use))

    # --- buildings -----------------------------------------------------------------------------

    def house_style(self) -> dict:
        rng = self.rng
        return {
            'wall': self.new_group(), 'roof': self.new_group(), 'trim': self.new_group(),
            'flat': _likely(rng, 0.08), 'hip': _likely(rng, 0.45), 'shop': False,
            'storeys': int(self.manner['storeys']), 'slope': rng.uniform(0.35, 0.95),
            'over': rng.uniform(0.2, 0.9), 'brick': float(rng.random() < 0.5),
            'pitch': rng.uniform(1.8, 4.0), 'win_w': rng.uniform(0.8, 2.0),
            'win_h': rng.uniform(0.9, 1.7),
        }

    def house(self, centre, yaw, wide, deep, style, flip) -> None:
        """Walls, roof, perhaps a wing, a garage, a porch, chimneys; +y faces away."""
        rng = self.rng
        self.block(centre, yaw, wide, deep, style)
        along, normal = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        if self.region in ('city', 'arterial', 'industrial') or wide < 8.0:
            return
        if _likely(rng, 0.45):  # a wing or garage to the street
            w, d = rng.uniform(4.0, 7.0), rng.uniform(2.0, 5.0)
            spot = centre + along * flip * (wide - w) / 2 - normal * (deep / 2 + d / 2 - 0.5)
            footprint = self.rectangle(spot, yaw, w, d + 1.0)
            self.take(footprint)
            self.block(spot, yaw + np.pi / 2, d + 1.0, w, {**style, 'storeys': 1})
        if _likely(rng, 0.35):  # a porch
            w = rng.uniform(2.0, wide * 0.6)
            spot = centre - along * flip * (wide - w) / 4 - normal * (deep / 2 + 0.8)
            z = self.z(*spot)
            self.box((*spot, z + rng.uniform(2.3, 2.7)), yaw, (w, 1.8, 0.2), Part.TRIM,
                     style['trim'])
            for at in (-w / 2 + 0.1, w / 2 - 0.1):
                post = spot + along * at - normal * 0.7
                self.box((*post, z), yaw, (0.15, 0.15, 2.5), Part.TRIM, style['trim'])

    def block(self, centre, yaw, wide, deep, style) -> None:
        rng, storey = self.rng, self.rng.uniform(2.5, 3.3)
        eaves = storey * style['storeys'] + 0.3
        corners = self.rectangle(centre, yaw, wide, deep)
        inside = np.clip(corners, -HALF_M + 1, HALF_M - 1)
        heights = self.height.sample(inside[:, 0], inside[:, 1])
        base, bottom = float(heights.max()), float(heights.min()) - 0.6
        top = base + eaves
        mask = [np.round((corners + HALF_M) * 16 - 8).astype(np.int32)]
        cv2.fillPoly(self.building_mask, mask, 255, cv2.LINE_8, 4)

        def world(points):
            return turned(np.asarray(points, np.float64), yaw) + [centre[0], centre[1], 0.0]

        wall = self.code(Part.WALL, style['wall'])
        x, y = wide / 2, deep / 2
        foot = [(-x, -y), (x, -y), (x, y), (-x, y)]
        sides = []
        for k in range(4):
            p, q = foot[k], foot[(k + 1) % 4]
            ends = world([(*p, 0.0), (*q, 0.0)])[:, :2]
            sides.append(self.wall(*ends, base, storey, eaves, style, k))
            self.builder.quads(world([(*p, bottom), (*q, bottom), (*q, top), (*p, top)])[None],
                               Material.FACADE, wall, sides[-1])
        roof = self.code(Part.ROOF, style['roof'])
        if style['flat']:
            rim = rng.uniform(0.1, 0.8)
            for k in range(4):
                p, q = foot[k], foot[(k + 1) % 4]
                self.builder.quads(world([[(*p, top), (*q, top), (*q, top + rim),
                                           (*p, top + rim)]]), Material.PLAIN, wall)
            self.builder.quads(world([(*f, top + 0.05) for f in foot])[None], Material.ROOF, roof)
            for _ in range(rng.integers(0, 5)):
                spot = rng.uniform(-0.38, 0.38, 2) * (wide, deep)
                self.box(world([*spot, top]), yaw, rng.uniform(0.8, 3.0, 3) * (1, 1, 0.6),
                         Part.POLE)
            return
        over, rise = style['over'], style['slope'] * y
        ox, oy, low = x + over, y + over, top - over * style['slope']
        ridge = max(x - y, 0.0) if style['hip'] else ox
        a, b, c, d = (-ox, -oy, low), (ox, -oy, low), (ox, oy, low), (-ox, oy, low)
        e, f = (-ridge, 0, top + rise), (ridge, 0, top + rise)
        self.builder.quads(world([[a, b, f, e], [c, d, e, f]]), Material.ROOF, roof)
        if style['hip']:
            self.builder.add(world([b, c, f, d, a, e]), [[0, 1, 2], [3, 4, 5]], Material.ROOF,
                             roof)
        else:
            gable = world([(x, -y, top), (x, y, top), (x, 0, top + rise),
                           (-x, y, top), (-x, -y, top), (-x, 0, top + rise)])
            self.builder.add(gable, [[0, 1, 2], [3, 4, 5]], Material.FACADE, wall,
                             np.array([sides[1], sides[3]]))
        for _ in range(rng.integers(0, 3)):
            spot = (rng.uniform(-0.8, 0.8) * x, rng.uniform(-0.4, 0.4) * y)
            self.box(world([*spot, top + 0.3 * rise]), yaw, (0.8, 0.6, 0.7 * rise + 1.0),
                     Part.MASONRY, style['wall'])

    def wall(self, p, q, base, storey, eaves, style, side: int) -> int:
        """Register a wall's coordinates and style; returns its number."""
        rng = self.rng
        width = float(np.linalg.norm(q - p))
        columns = max(1, round(width / style['pitch']))
        blank = side in (1, 3) and rng.random() < 0.4
        self.walls.append([
            *p, *(q - p) / width, base, width, storey, eaves,
            1e3 if blank else width / columns, 0.0 if blank else style['win_w'], style['win_h'],
            rng.uniform(0.7, 1.1), float(style['shop'] and side == 0), 0.5, 0.5, 0.5,
            *rng.uniform(0.02, 0.6, 3), rng.integers(1 << 20), float(side == 0), style['brick']])
        return len(self.walls) - 1

    def hut(self, spot, yaw) -> None:
        rng = self.rng
        w, d, h = rng.uniform(1.8, 3.5), rng.uniform(1.8, 3.0), rng.uniform(1.9, 2.6)
        z = self.z(*spot)
        self.box((*spot, z), yaw, (w, d, h), Part.FENCE)
        self.box((*spot, z + h), yaw, (w + 0.3, d + 0.3, 0.4), Part.ROOF, taper=0.6)

    # --- plants --------------------------------------------------------------------------------

    def tree(self, spot, low: float, high: float) -> None:
        rng = self.rng
        height = rng.uniform(low, high)
        shape = str(rng.choice(['round', 'cone', 'column', 'palm'], p=[0.75, 0.13, 0.08, 0.04]))
        crown = height * {'round': rng.uniform(0.25, 0.55), 'cone': rng.uniform(0.15, 0.3),
                          'column': rng.uniform(0.08, 0.16), 'palm': 0.25}[shape]
        self.trees.append(Tree(
            float(spot[0]), float(spot[1]), float(height), float(crown),
            tuple(rng.uniform(0.7, 1.3, 3) * rng.uniform(0.6, 1.5)),
            shape in ('cone', 'palm') or _likely(rng, 0.25), int(rng.integers(1 << 30)), shape))

    def bush(self, spot) -> None:
        if np.abs(spot).max() < HALF_M - 2 and _likely(self.rng, 0.6):
            self.tree(spot, 0.5, 2.0)

    def trees_in(self, frame, width, edge, depth, count) -> None:
        point, normal, yaw = frame
        along = np.array([np.cos(yaw), np.sin(yaw)])
        for _ in range(int(count)):
            spot = point + along * self.rng.uniform(-0.5, 0.5) * width + normal * (
                edge + self.rng.uniform(0.8, depth))
            if np.abs(spot).max() < HALF_M - 3 and self.free(
                    self.rectangle(spot, 0.0, 1.0, 1.0)):
                self.tree(spot, 2.5, 13.0)

    # --- the street itself ---------------------------------------------------------------------

    def paint_streets(self) -> None:
        """Strips beside the carriageway, drives over them, the carriageway and its markings."""
        rng = self.rng
        d, walk = self.outside, self.walk_mask
        strip = (d > 0) & (d <= self.kerb_m + self.verge_m) & (self.mask == 0)
        if self.region == 'rural':
            strip &= d <= rng.uniform(0.3, 2.2)
        if self.region != 'city' or self.verge_m:
            self.kind[strip] = self.verge_kind
            self.unit[strip] = self.new_unit()
        walk_kind = int(rng.choice([Ground.CONCRETE, Ground.PAVING, Ground.DRIVE],
                                   p=[0.6, 0.25, 0.15]))
        over = _likely(rng, 0.5)  # drives run over the pavement
        if over:
            self.paint_walk(walk, walk_kind)
        for polygon, kind in self.lot_drives:
            self.fill(polygon, kind)
        for polygon, kind in self.lot_walks:
            self.fill(polygon, kind)
        if not over:
            self.paint_walk(walk, walk_kind)
        if self.kerb_m:
            kerb = (d > 0) & (d <= self.kerb_m) & (self.mask == 0)
            self.kind[kerb] = int(Ground.KERB)
            self.unit[kerb] = self.new_unit()
        islands = (self.mask == 0) & (d > 0.3) & self.island_mask()
        self.kind[islands] = int(rng.choice([Ground.LAWN, Ground.CONCRETE, Ground.PAVING,
                                             Ground.BED], p=[0.5, 0.25, 0.15, 0.1]))
        street = self.mask > 0
        surface = Ground.ASPHALT
        if self.region == 'rural' and self.roads[0].grade == 'rural' and _likely(rng, 0.15):
            surface = rng.choice([Ground.GRAVEL, Ground.SOIL])
        elif _likely(rng, 0.07):
            surface = Ground.CONCRETE
        self.paved = surface in (Ground.ASPHALT, Ground.CONCRETE)
        self.kind[street] = int(surface)
        self.unit[street] = self.new_unit()
        if self.kerb_m and self.region in ('us_suburb', 'arterial', 'city', 'au_suburb') \
                and _likely(rng, 0.55):
            gutter = street & (self.inside <= rng.uniform(0.3, 0.6))
            self.kind[gutter] = int(Ground.GUTTER)
        self.wear_streets(street)
        if self.paved:
            for road in self.roads:
                self.mark_road(road)

    def paint_walk(self, walk, kind: int) -> None:
        self.kind[walk] = kind
        self.unit[walk] = self.new_unit()
        rng = self.rng
        step = rng.choice([0.0, 1.5, 2.5, 5.0])
        if kind == Ground.CONCRETE and step:  # joints between slabs
            joints = np.zeros_like(self.stain)
            for road in self.roads:
                for side in (1, -1):
                    s = np.arange(0.0, road.line.length, step)
                    inner = road.line.offset(s, np.full(s.size, side * (road.half_m + 0.1)))
                    outer = road.line.offset(s, np.full(s.size, side * self.side_walk_edge(road)))
                    lines = [np.stack((self.pixels(a), self.pixels(b)))
                             for a, b in zip(inner, outer)]
                    cv2.polylines(joints, lines, False, 1, 1, cv2.LINE_8, 4)
            self.stain[(joints > 0) & walk] = 90

    def island_mask(self) -> np.ndarray:
        mask = np.zeros_like(self.mask)
        for road in self.roads:
            if road.median_m >= 0.5:
                cv2.fillPoly(mask, [self.pixels(self.ribbon(
                    road.line, 0, road.line.length, road.median_m, -road.median_m))], 1,
                    cv2.LINE_8, 4)
        if self.roundabout:
            cv2.circle(mask, self.pixels(self.roundabout[0]).tolist(),
                       int(self.roundabout[1] / PX_M * 16), 1, -1, cv2.LINE_8, 4)
        return mask > 0

    def wear_streets(self, street) -> None:
        """Patches, cracks, joints, covers: what stays on a carriageway for years."""
        rng = self.rng
        for road in self.roads:
            length = road.line.length
            for _ in range(rng.poisson(rng.choice([1.0, 4.0, 10.0]) * length / 150)):
                s, long = rng.uniform(0, length), rng.uniform(0.8, 6.0)
                wide = rng.uniform(0.5, 3.0)
                if _likely(rng, 0.2):
                    long, wide = rng.uniform(8, 40), rng.uniform(0.6, road.half_m)
                left = rng.uniform(-1, 1) * road.half_m
                layer = np.zeros_like(self.mask)
                polygon = self.ribbon(road.line, s, min(s + long, length), left - wide / 2,
                                      left + wide / 2)
                pixels = self.pixels(polygon)
                low = np.clip((pixels.min(0) >> 4) - 1, 0, self.count - 1)
                high = np.clip((pixels.max(0) >> 4) + 2, low + 1, self.count)
                layer = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
                cv2.fillPoly(layer, [pixels - (low << 4).astype(np.int32)], 1, cv2.LINE_8, 4)
                view = (slice(low[1], high[1]), slice(low[0], high[0]))
                self.unit[view][(layer > 0) & street[view]] = self.new_unit()
            cracks = []
            for _ in range(rng.poisson(rng.choice([2.0, 15.0, 50.0]) * length / 150)):
                s, left = rng.uniform(0, length), rng.uniform(-1, 1) * road.half_m
                start = road.line.offset(s, left)
                if np.abs(start).max() > HALF_M:
                    continue
                angle = rng.uniform(-np.pi, np.pi)
                steps = rng.normal(0, 0.35, (int(rng.integers(4, 16)), 2)) + 0.5 * np.array(
                    [np.cos(angle), np.sin(angle)])
                cracks.append(self.pixels(start + np.cumsum(steps, 0)))
            layer = np.zeros_like(self.stain)
            cv2.polylines(layer, cracks, False, 1, 1, cv2.LINE_8, 4)
            self.stain[(layer > 0) & street] = int(rng.choice([60, 85, 100]))
            for _ in range(rng.poisson(length / 25)):
                s = rng.uniform(0, length)
                spot = road.line.offset(s, rng.uniform(-0.95, 0.95) * road.half_m)
                pixels = self.pixels(spot)
                if np.abs(spot).max() < HALF_M - 1:
                    radius = int(rng.uniform(0.25, 0.4) / PX_M * 16)
                    cv2.circle(self.kind, pixels.tolist(), radius, int(Ground.COVER), -1,
                               cv2.LINE_8, 4)
            tracks = np.zeros_like(self.stain)
            lane = (road.half_m - road.median_m - road.parking_m) / max(road.lanes // 2, 1)
            for k in range(-(road.lanes // 2), road.lanes // 2):
                middle = np.sign(k + 0.5) * road.median_m + (k + 0.5) * lane
                polygon = self.ribbon(road.line, 0, length, middle - 0.5, middle + 0.5)
                cv2.fillPoly(tracks, [self.pixels(polygon)], 1, cv2.LINE_8, 4)
            dark = (tracks > 0) & street & (self.stain == 128)
            self.stain[dark] = int(128 - rng.uniform(0, 26))

    def mark_road(self, road: Road) -> None:
        """Lines of one road, by its grade and the country's habits."""
        rng = self.rng
        marked = {'local': 0.35, 'main': 0.92, 'arterial': 1.0, 'rural': 0.7, 'highway': 1.0}.get(
            road.grade, 0.3)
        if not _likely(rng, marked):
            return
        centre = Ground.YELLOW if self.yellow_centre and _likely(rng, 0.9) else Ground.WHITE
        unit, width = self.new_unit(), rng.uniform(0.1, 0.16)
        dash, gap = ((3.0, 9.0) if road.grade in ('highway', 'arterial') else
                     (rng.uniform(1.5, 4.0), rng.uniform(2.0, 6.0)))
        drive = road.half_m - road.parking_m
        lane = (drive - road.median_m) / max(road.lanes // 2, 1)
        edge_line = _likely(rng, {'local': 0.15, 'main': 0.4, 'rural': 0.7, 'highway': 1.0,
                                  'arterial': 0.5}.get(road.grade, 0.2))
        style = str(rng.choice(['double', 'single', 'dashed'], p={
            'arterial': [0.7, 0.1, 0.2], 'main': [0.35, 0.15, 0.5]}.get(
                road.grade, [0.2, 0.15, 0.65])))
        for s0, s1 in self.stretches(road, rng.uniform(2.0, 6.0)):
            if road.median_m < 0.3:
                if style == 'double':
                    for left in (-0.14, 0.14):
                        self.line(road, s0, s1, left, width, centre, unit)
                elif style == 'single':
                    self.line(road, s0, s1, 0.0, width, centre, unit)
                else:
                    self.dashes(road, s0, s1, 0.0, width, centre, unit, dash, gap)
            for k in range(1, road.lanes // 2):
                for side in (1, -1):
                    self.dashes(road, s0, s1, side * (road.median_m + k * lane), width,
                                Ground.WHITE, unit, dash, gap)
            if edge_line:
                for side in (1, -1):
                    self.line(road, s0, s1, side * (drive - rng.uniform(0.2, 0.5)), width,
                              Ground.WHITE, unit)
                    if road.median_m >= 0.3:
                        self.line(road, s0, s1, side * (road.median_m + 0.25), width,
                                  centre, unit)
            if road.parking_m and _likely(rng, 0.5):
                for side in (1, -1):
                    self.line(road, s0, s1, side * drive, width, Ground.WHITE, unit)
                    for s in np.arange(s0 + 2, s1 - 6, 6.0):
                        self.fill(self.ribbon(road.line, s, s + 0.12, side * drive,
                                              side * road.half_m), Ground.WHITE, unit)
        for s, half in road.junctions:
            if s > road.line.length - 1.0:
                continue
            if road.grade not in ('rural', 'highway') or _likely(rng, 0.4):
                self.mark_junction(road, s, half, drive, lane, unit)

    def mark_junction(self, road, s, half, drive, lane, unit) -> None:
        """Stop lines, crossings and arrows on both sides of a junction."""
        rng = self.rng
        crossing = str(rng.choice(['none', 'bars', 'lines'], p={
            'city': [0.2, 0.5, 0.3], 'arterial': [0.3, 0.4, 0.3]}.get(
                self.region, [0.7, 0.15, 0.15])))
        minor = s < 1.0  # a side road meets its main road here
        for way in ((1,) if minor else (-1, 1)):
            near = s + way * (half + rng.uniform(1.5, 3.5))
            if crossing == 'bars':
                wide = rng.uniform(0.4, 0.7)
                for left in np.arange(-road.half_m + 0.5, road.half_m - 0.4, wide * 2):
                    self.fill(self.ribbon(road.line, near, near + way * 3.0, left, left + wide),
                              Ground.WHITE, unit)
            elif crossing == 'lines':
                for at in (near, near + way * rng.uniform(2.2, 3.2)):
                    self.fill(self.ribbon(road.line, at, at + way * 0.3, -road.half_m + 0.2,
                                          road.half_m - 0.2), Ground.WHITE, unit)
            if _likely(rng, 0.75 if minor or road.grade == 'arterial' else 0.3):
                stop = near + way * (4.5 if crossing != 'none' else 0.3)
                # Traffic towards the junction keeps to its own side.
                side = way * (1 if self.left_hand else -1)
                thick = rng.uniform(0.2, 0.6)
                left0, left1 = sorted((side * (road.median_m + 0.15), side * (drive - 0.1)))
                if self.left_hand and _likely(rng, 0.5):
                    for left in np.arange(left0, left1, 0.9):
                        self.fill(self.ribbon(road.line, stop, stop + way * thick, left,
                                              left + 0.55), Ground.WHITE, unit)
                else:
                    self.fill(self.ribbon(road.line, stop, stop + way * thick, left0, left1),
                              Ground.WHITE, unit)
                if road.grade in ('arterial', 'main') and _likely(rng, 0.6):
                    for k in range(max(road.lanes // 2, 1)):
                        middle = side * (road.median_m + (k + 0.5) * lane)
                        self.arrow(road, stop + way * rng.uniform(4, 9), middle, -way, unit)

    def line(self, road, s0, s1, left, width, kind, unit) -> None:
        self.fill(self.ribbon(road.line, s0, s1, left - width / 2, left + width / 2), kind, unit)

    def dashes(self, road, s0, s1, left, width, kind, unit, dash, gap) -> None:
        for s in np.arange(s0 + 1.0, s1 - dash, dash + gap):
            self.line(road, s, s + dash, left, width, kind, unit)

    def arrow(self, road, s, left, direction, unit) -> None:
        if not 1.0 < s < road.line.length - 1.0:
            return
        rng = self.rng
        shape = np.array([(0, 0.09), (2.0, 0.09), (2.0, 0.35), (3.4, 0.0), (2.0, -0.35),
                          (2.0, -0.09), (0, -0.09)])
        if _likely(rng, 0.5):  # a turn
            turn = rng.choice([-1, 1])
            shape = np.array([(0, 0.09), (1.6, 0.09), (1.6, 0.7), (1.3, 0.7), (1.8, 1.3),
                              (2.3, 0.7), (1.9, 0.7), (1.9, -0.09), (0, -0.09)]) * (1, turn)
        tangent = road.line.tangent(s) * direction
        normal = np.array([-tangent[1], tangent[0]])
        self.fill(road.line.offset(s, left) + shape[:, :1] * tangent + shape[:, 1:] * normal,
                  Ground.WHITE, unit)

    # --- furniture -----------------------------------------------------------------------------

    def place_furniture(self) -> None:
        rng, region = self.rng, self.region
        for road in self.roads:
            if _likely(rng, {'rural': 0.5, 'us_suburb': 0.6, 'au_suburb': 0.5}.get(region, 0.2)):
                self.pole_line(road)
            if region not in ('rural',) and _likely(rng, 0.8):
                self.lamps(road)
            trees = _likely(rng, {'rural': 0.0, 'city': 0.4, 'uk_town': 0.35}.get(region, 0.5))
            step, tall = rng.uniform(7.0, 22.0), rng.uniform(5.0, 14.0)
            offset = self.kerb_m + (self.verge_m / 2 if self.verge_m > 0.7 else 0.8)
            for side in (1, -1):
                for s in np.arange(3.0, road.line.length - 3.0, step):
                    s = s + rng.normal(0, 1.0)
                    if trees and road.clear(s, 7.0) and _likely(rng, 0.75):
                        self.tree(road.line.offset(s, side * (road.half_m + offset)),
                                  0.5 * tall, tall)
                    if _likely(rng, 0.15):
                        self.sign(road, s, side)
                use = rng.uniform(0.0, 0.8) if road.grade in ('local', 'main') else 0.0
                inset = 1.05 if road.parking_m or road.half_m > 3.2 else -0.6
                for s in np.arange(2.0, road.line.length - 4.0, 6.2):
                    if not road.clear(s, 7.0):
                        continue
                    x, y = road.line.offset(s, side * (road.half_m - inset))
                    tangent = road.line.tangent(s)
                    yaw = np.arctan2(tangent[1], tangent[0]) + np.pi * rng.integers(2)
                    self.car_slots.append(CarSlot(float(x), float(y), float(yaw), use * 0.7))
        for road in self.roads[:1]:
            for s, half in road.junctions:
                if region in ('city', 'arterial') and _likely(rng, 0.7):
                    self.signal(road, s, half)

    def inside_place(self, x, y) -> bool:
        return max(abs(x), abs(y)) < HALF_M - 2.0

    def pole_line(self, road: Road) -> None:
        rng, side, group = self.rng, self.rng.choice([-1, 1]), self.new_group()
        offset = road.half_m + self.kerb_m + rng.uniform(0.6, 3.5)
        height, step = rng.uniform(7.0, 11.0), rng.uniform(28.0, 45.0)
        wires, previous = int(rng.integers(1, 5)), None
        for s in np.arange(rng.uniform(0, 20), road.line.length, step):
            x, y = road.line.offset(s, side * offset)
            if not self.inside_place(x, y):
                previous = None
                continue
            z = self.z(x, y)
            yaw = self.frame(road, side, s)[2]
            self.box((x, y, z), yaw, (0.28, 0.28, height), Part.BARK, group, 1.2, 0.7)
            self.box((x, y, z + height - 0.8), yaw, (0.1, 2.0, 0.12), Part.BARK, group, 1.2)
            here = np.array([x, y, z + height - 0.5])
            if previous is not None:
                run = here - previous
                for k in range(wires):
                    shift = np.array([-run[1], run[0], 0.0]) / np.linalg.norm(run) * (k - 1) * 0.6
                    a, b = previous + shift, here + shift
                    up = np.array([0, 0, 0.03])
                    self.builder.quads(np.stack((a, b, b + up, a + up))[None], Material.PLAIN,
                                       self.code(Part.DARK, group))
            previous = here

    def lamps(self, road: Road) -> None:
        rng, side, group = self.rng, self.rng.choice([-1, 1]), self.new_group()
        height, arm = rng.uniform(4.5, 10.0), rng.uniform(0.3, 2.5)
        for s in np.arange(rng.uniform(0, 15), road.line.length, rng.uniform(24, 45)):
            side = -side if _likely(rng, 0.7) else side
            x, y = road.line.offset(s, side * (road.half_m + self.kerb_m + 0.5))
            if not self.inside_place(x, y) or self.distance_at(x, y) < 0.2:
                continue
            z, yaw = self.z(x, y), self.frame(road, side, s)[2]
            self.box((x, y, z), yaw, (0.16, 0.16, height), Part.POLE, group, 1.0, 0.6)
            normal = self.frame(road, side, s)[1]
            self.box((x - normal[0] * arm / 2, y - normal[1] * arm / 2, z + height), yaw,
                     (0.14, arm + 0.3, 0.12), Part.POLE, group)

    def sign(self, road: Road, s, side) -> None:
        rng = self.rng
        x, y = road.line.offset(s, side * (road.half_m + self.kerb_m + rng.uniform(0.4, 1.5)))
        if not self.inside_place(x, y) or self.distance_at(x, y) < 0.2:
            return
        z, yaw, group = self.z(x, y), self.frame(road, side, s)[2], self.new_group()
        kind = rng.integers(3)
        if kind == 0:
            height = rng.uniform(1.8, 2.8)
            self.box((x, y, z), yaw, (0.07, 0.07, height), Part.POLE, group)
            self.box((x, y, z + height - 0.5), yaw, (0.6, 0.04, 0.6), Part.SIGN, group)
        elif kind == 1:  # a box of the post, a bin, a cabinet
            self.box((x, y, z), yaw, rng.uniform(0.35, 1.0, 3) + [0, 0, 0.4], Part.SIGN, group)
        else:
            self.box((x, y, z), yaw, (0.12, 0.12, rng.uniform(0.7, 1.1)), Part.POLE, group)

    def signal(self, road: Road, s, half) -> None:
        group = self.new_group()
        for way in (-1, 1):
            at, side = s + way * (half + 3.0), way * (1 if self.left_hand else -1)
            x, y = road.line.offset(at, side * (road.half_m + 0.8))
            if not self.inside_place(x, y):
                continue
            z = self.z(x, y)
            _, normal, yaw = self.frame(road, side, at)
            reach = self.rng.uniform(1.0, road.half_m)
            self.box((x, y, z), yaw, (0.2, 0.2, 6.0), Part.POLE, group)
            x, y = x - normal[0] * reach / 2, y - normal[1] * reach / 2
            self.box((x, y, z + 5.7), yaw, (0.12, reach, 0.12), Part.POLE, group)
            self.box((x - normal[0] * reach / 2, y - normal[1] * reach / 2, z + 5.2), yaw,
                     (0.35, 0.35, 1.0), Part.DARK, group)

    def surround(self) -> None:
        """Houses and trees beyond the place, so that no view ends at an empty edge."""
        rng = self.rng
        for _ in range({'rural': 25, 'city': 90}.get(self.region, 70)):
            spot = rng.uniform(-1, 1, 2)
            spot *= rng.uniform(HALF_M + 6, HALF_M + 90) / np.abs(spot).max()
            kx, ky, phase, amplitude = self.waves.T
            z = float(np.sin(kx * spot[0] + ky * spot[1] + phase) @ amplitude)
            if self.region != 'rural' and _likely(rng, 0.6):
                storeys = rng.integers(2, 8) if self.region == 'city' else rng.integers(1, 3)
                size = rng.uniform(8, 24), rng.uniform(8, 14), 3.0 * storeys
                yaw = rng.uniform(0, 2 * np.pi)
                self.box((*spot, z - 0.5), yaw, size, Part.WALL)
                self.box((*spot, z + size[2] - 0.5), yaw, (size[0] + .6, size[1] + .6, 2.5),
                         Part.ROOF, taper=0.3)
            for _ in range(2):
                self.tree(spot + rng.uniform(6, 16, 2) * rng.choice([-1, 1], 2), 4.0, 14.0)

    # --- where cameras and traffic may be ------------------------------------------------------

    def lane_spots(self) -> list[Spot]:
        found = []
        for road in self.roads:
            lane = (road.half_m - road.median_m - road.parking_m) / max(road.lanes // 2, 1)
            for s in np.arange(1.0, road.line.length - 1.0, 7.0):
                tangent = road.line.tangent(s)
                for side in (1, -1):
                    k = self.rng.integers(max(road.lanes // 2, 1))
                    left = side * (road.median_m + (k + 0.5) * lane)
                    x, y = road.line.offset(s, left)
                    if self.inside_place(x, y):
                        ahead = (side > 0) == self.left_hand
                        found.append(Spot(float(x), float(y), float(np.arctan2(
                            tangent[1], tangent[0]) + (0.0 if ahead else np.pi))))
        return found

    def camera_spots(self) -> list[Spot]:
        """Places on carriageways within 16 m of the middle, a metre from their edges."""
        rng, found = self.rng, []
        for road in self.roads:
            for s in np.arange(1.0, road.line.length - 1.0, 0.7):
                left = rng.uniform(-1.0, 1.0) * max(road.half_m - 1.0, 0.5)
                x, y = road.line.offset(s, left)
                if np.hypot(x, y) > 16.0 or self.distance_at(x, y) > -0.7:
                    continue
                tangent = road.line.tangent(s)
                back = (left > 0) != self.left_hand
                found.append(Spot(float(x), float(y), float(np.arctan2(
                    tangent[1], tangent[0]) + (np.pi if back else 0.0))))
        return found


def _cut_polygon(polygon, normal, offset) -> np.ndarray:
    """The part of a convex polygon in the half plane normal . p <= offset."""
    kept = []
    for k, p in enumerate(polygon):
        q = polygon[(k + 1) % len(polygon)]
        a, b = p @ normal - offset, q @ normal - offset
        if a <= 0:
            kept.append(p)
        if a * b < 0:
            kept.append(p + (q - p) * a / (a - b))
    return np.array(kept).reshape(-1, 2)
