"""What all steps of laying out a place share."""

import cv2
import numpy as np

from training.simulation.city import Line, Raster
from training.simulation.city_planning.ground import draw_terrain_waves
from training.simulation.mesh import box_mesh, Material, MeshBuilder
from training.simulation.place import HALF_M, Part, PX_M, Road
from training.simulation.planning.regions import REGIONS


def between(rng, low, high) -> float:
    return float(rng.uniform(low, high))


def likely(rng, probability) -> bool:
    return bool(rng.random() < probability)


class Plan:
    """A place while it is laid out: rasters, objects, and what the steps leave for each other."""

    def __init__(self, seed: int, region: str, rng):
        self.seed, self.region, self.rng = seed, region, rng
        self.traits = REGIONS[region]
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
        self.left_hand = likely(rng, self.traits.left_hand)
        self.yellow_centre = not self.left_hand
        waves = draw_terrain_waves(rng, 130.0)
        waves[:, 3] *= rng.choice([0.15, 0.6, 1.0, 1.6], p=[0.3, 0.3, 0.25, 0.15])
        self.waves = waves
        self.roads: list[Road] = []
        self.building_mask = np.zeros((round(2 * HALF_M),) * 2, np.uint8)

        # What one step leaves for the next ones.
        self.roundabout: tuple | None = None          # centre, radius of the island, of the ring
        self.mask = self.inside = self.outside = self.walk_mask = np.zeros(0)  # of carriageways
        self.kerb_m = self.verge_m = self.walk_m = 0.0                         # widths
        self.verge_kind = 0
        self.taken = np.zeros((0, 0), bool)           # where something stands, in cells of 0.5 m
        self.height: Raster | None = None
        self.lot_drives, self.lot_walks, self.manner = [], [], {}
        self.paved = True

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

    def is_beside_roads(self, x, y, margin_m: float) -> bool:
        """Whether a point of the place is farther than ``margin_m`` from all carriageways."""
        return self.is_inside(x, y) and self.distance_at(x, y) > margin_m

    def is_inside(self, x, y) -> bool:
        return max(abs(x), abs(y)) < HALF_M - 2.0
