"""A seeded city: street network, terrain, buildings, gardens and street furniture, in metres.

Coordinates are the local plane (x east, y north, z up), the city's centre at the origin.  All
depends on the seed and the size only; what changes from day to day is in ``appearance.py``.
Rasters are south-up: row 0 is the southernmost, so row grows with y and column with x.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np

from .mesh import Material, Mesh, MeshBuilder, turned

MARGIN_M = 40.0        # ground beyond the nominal size that is still built on
KERB_M = 0.12
DISTANCE_CAP_M = 14.0  # distances to the kerb are not followed farther than this
DISTANCE_PX_M = 0.5
LAND_PX_M = 0.25
MARKING_PX_M = 0.1
GROUND_STEP_M = 1.5
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

_STYLES = ('terrace', 'semi', 'detached', 'shops', 'flats')


def build_city(seed: int, size_m: float = 500.0,
               block_m: tuple[float, float] = BLOCK_M) -> City:
    """Lay out the city of a seed.

    :raises ValueError: where size_m is too small for a street network.
    """
    if not 200.0 <= size_m <= 3000.0:
        raise ValueError(f'city size is {size_m:g} m; expected 200 to 3000')
    rng = np.random.default_rng([seed, 1])
    half_m = size_m / 2 + MARGIN_M
    waves = terrain_waves(rng, half_m)
    style_weights = rng.dirichlet([1.4, 1.4, 1.0, 0.9, 0.8])
    streets = []
    while len(streets) < 4:  # a small city may miss the grid's crossings: lay it out again
        nodes, streets = _street_network(rng, size_m, style_weights, block_m)
    kerb_distance, pavement_width = _kerb_rasters(streets, half_m)
    city = City(
        seed, size_m, half_m, nodes, streets, waves, kerb_distance, pavement_width,
        *empty_rasters(half_m, rng), [], np.zeros((0, len(WALL_FIELDS))), None, [], [],
    )
    builder = MeshBuilder()
    ground_mesh(city, builder)
    far_ground(city, builder)
    Planner(city, builder, rng).run()
    city.mesh = builder.build()
    return city


def terrain_waves(rng, half_m):
    """Plane waves scaled so that the steepest slope is 2.5 to 5 %."""
    count = 6
    length = rng.uniform(220.0, 700.0, count)
    direction = rng.uniform(0, 2 * np.pi, count)
    k = 2 * np.pi / length
    waves = np.stack(
        (k * np.cos(direction), k * np.sin(direction), rng.uniform(0, 2 * np.pi, count),
         rng.uniform(0.3, 1.0, count) * length), axis=1)
    g = np.linspace(-half_m, half_m, 40)
    x, y = np.meshgrid(g, g)
    cos = np.cos(np.multiply.outer(x, waves[:, 0]) + np.multiply.outer(y, waves[:, 1])
                 + waves[:, 2]) * waves[:, 3]
    slope = np.hypot(cos @ waves[:, 0], cos @ waves[:, 1]).max()
    waves[:, 3] *= rng.uniform(0.025, 0.05) / slope
    return waves


def above_terrain(distance):
    """Camber of 2.5 % on the carriageway (at most 4 m from the kerb), kerb height beyond it."""
    return np.where(distance < 0, 0.025 * np.minimum(-distance, 4.0), KERB_M)


# --- streets -----------------------------------------------------------------------------------

def _street_network(rng, size_m, style_weights, block_m):
    """A jittered, warped, turned grid with some streets left out; no dead ends, connected."""
    reach = size_m / 2 - 12.0
    turn = rng.uniform(-np.pi / 4, np.pi / 4)
    axes, mains = [], []
    for _ in range(2):
        lines = [-0.75 * size_m]
        while lines[-1] < 0.75 * size_m:
            lines.append(lines[-1] + rng.uniform(*block_m))
        axes.append(np.array(lines) + rng.uniform(-30, 30))
        mains.append(rng.random(len(lines)) < 0.3)
    warp = [(rng.uniform(0.5, 1.0) * 2 * np.pi / 300, rng.uniform(0, 2 * np.pi),
             rng.uniform(0, 2 * np.pi), rng.uniform(6.0, 18.0)) for _ in range(3)]

    def place(points):
        x, y = points[..., 0], points[..., 1]
        dx = sum(a * np.sin(k * (np.cos(w) * x + np.sin(w) * y) + p) for k, p, w, a in warp)
        dy = sum(a * np.cos(k * (np.cos(w) * y - np.sin(w) * x) + p) for k, p, w, a in warp)
        return turned(np.stack((x + dx, y + dy, 0 * x), -1), turn)[..., :2]

    flat = np.stack(np.meshgrid(*axes, indexing='ij'), -1)
    flat += rng.uniform(-9.0, 9.0, flat.shape)
    kept = np.abs(place(flat)).max(-1) < reach
    number = np.full(kept.shape, -1)
    number[kept] = np.arange(kept.sum())
    edges = []
    for axis in (0, 1):
        for i, j in np.argwhere(kept):
            other = (i + 1, j) if axis == 0 else (i, j + 1)
            if other[axis] < kept.shape[axis] and kept[other]:
                edges.append((number[i, j], number[other], bool(mains[1 - axis][other[1 - axis]])))
    flat = flat[kept]
    drop = 0.24 * len(edges)
    for k in rng.permutation(len(edges)):
        rest = [e for e in edges if e is not None and e is not edges[k]]
        if drop > 0 and not (edges[k][2] and rng.random() < 0.7) and _connected(rest, len(flat)):
            edges[k] = None
            drop -= 1
    edges = _without_dead_ends([e for e in edges if e is not None])

    # Each street keeps its grid line under the warp and may bulge to a side.
    streets = []
    for a, b, main in edges:
        length = np.linalg.norm(flat[b] - flat[a])
        s = np.linspace(0.0, 1.0, max(8, int(length / 2.5)))[:, None]
        run = flat[b] - flat[a]
        normal = np.array([-run[1], run[0]]) / length
        bulge = rng.normal(0.0, 4.5) * np.sin(np.pi * s) ** 2
        points = place(flat[a] + s * run + bulge * normal)
        style = 'shops' if main and rng.random() < 0.4 else rng.choice(_STYLES, p=style_weights)
        streets.append(Street(
            Line(points), int(a), int(b), main,
            lane_m=rng.uniform(3.2, 3.6) if main else rng.uniform(2.7, 3.1),
            parking=bool(rng.random() < (0.35 if main else 0.65)),
            pavement_m=rng.uniform(2.2, 3.6) if main else rng.uniform(1.5, 2.4),
            style=str(style),
        ))
    nodes = place(flat)
    for street in streets:
        for end, node in (('trim_a_m', street.a), ('trim_b_m', street.b)):
            others = [o for o in streets if o is not street and node in (o.a, o.b)]
            setattr(street, end, max(o.half_width_m for o in others) + CORNER_RADIUS_M * 0.8)
    return nodes, streets


def _connected(edges, count):
    """Whether the nodes that the edges touch are connected."""
    neighbours = [[] for _ in range(count)]
    for a, b, _ in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    if any(len(n) == 1 for n in neighbours):
        return False
    used = [k for k, n in enumerate(neighbours) if n]
    if not used:
        return False
    seen, queue = {used[0]}, [used[0]]
    while queue:
        for k in neighbours[queue.pop()]:
            if k not in seen:
                seen.add(k)
                queue.append(k)
    return len(seen) == len(used)


def _without_dead_ends(edges):
    """Peel off ends, then keep the largest connected part."""
    while True:
        degree = {}
        for a, b, _ in edges:
            degree[a], degree[b] = degree.get(a, 0) + 1, degree.get(b, 0) + 1
        kept = [e for e in edges if degree[e[0]] > 1 and degree[e[1]] > 1]
        if len(kept) == len(edges):
            break
        edges = kept
    best = []
    rest = list(edges)
    while rest:
        part, queue = {rest[0][0]}, [rest[0][0]]
        while queue:
            node = queue.pop()
            for a, b, _ in rest:
                for k, other in ((a, b), (b, a)):
                    if k == node and other not in part:
                        part.add(other)
                        queue.append(other)
        inside = [e for e in rest if e[0] in part]
        best = max(best, inside, key=len)
        rest = [e for e in rest if e[0] not in part]
    return best


def _kerb_rasters(streets, half_m):
    """Signed distance to the kerb with rounded corners, and the nearest street's pavement."""
    px = DISTANCE_PX_M
    count = int(round(2 * half_m / px))
    distance = np.full((count, count), DISTANCE_CAP_M, np.float32)
    pavement = np.full((count, count), 2.0, np.float32)
    for street in streets:
        points = street.line.points[::2]
        if (len(street.line.points) - 1) % 2:
            points = np.concatenate((points, street.line.points[-1:]))
        reach = street.half_width_m + DISTANCE_CAP_M
        low = np.clip(((points.min(0) - reach + half_m) / px).astype(int), 0, count)
        high = np.clip(((points.max(0) + reach + half_m) / px).astype(int) + 1, 0, count)
        x = (np.arange(low[0], high[0]) + 0.5) * px - half_m
        y = (np.arange(low[1], high[1]) + 0.5) * px - half_m
        x, y = x[None, :].astype(np.float32), y[:, None].astype(np.float32)
        nearest = np.full((y.size, x.size), 1e9, np.float32)
        for p, q in zip(points[:-1], points[1:], strict=True):
            run = (q - p).astype(np.float32)
            along = ((x - p[0]) * run[0] + (y - p[1]) * run[1]) / (run @ run)
            np.clip(along, 0, 1, out=along)
            np.minimum(nearest, (x - p[0] - along * run[0]) ** 2
                       + (y - p[1] - along * run[1]) ** 2, out=nearest)
        nearest = np.sqrt(nearest) - np.float32(street.half_width_m)
        view = (slice(low[1], high[1]), slice(low[0], high[0]))
        closer = nearest < distance[view]
        distance[view] = np.where(closer, nearest, distance[view])
        pavement[view] = np.where(closer, np.float32(street.pavement_m), pavement[view])

    # Morphological closing rounds the corners of blocks; straight kerbs keep the exact distance.
    fine = cv2.resize(distance, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    far = (fine >= CORNER_RADIUS_M).astype(np.uint8)
    inside = cv2.distanceTransform(1 - far, cv2.DIST_L2, 5) * (px / 2)
    closed = CORNER_RADIUS_M - inside
    closed = cv2.GaussianBlur(closed, (0, 0), 2.0)
    closed = cv2.resize(closed, (count, count), interpolation=cv2.INTER_AREA)
    near = distance < CORNER_RADIUS_M
    distance = np.where(near, np.minimum(distance, closed + 0.2), distance)
    return (Raster(distance.astype(np.float32), half_m, px),
            Raster(cv2.GaussianBlur(pavement, (0, 0), 3.0), half_m, px))


# --- ground ------------------------------------------------------------------------------------

def ground_mesh(city, builder):
    """Carriageway and land sheets, cut apart along the kerb line, and the kerb's face between."""
    n = int(np.ceil(2 * city.half_m / GROUND_STEP_M)) + 1
    g = np.linspace(-city.half_m, city.half_m, n)
    x, y = (v.ravel() for v in np.meshgrid(g, g))
    distance = city.kerb_distance.sample(x, y).astype(np.float64)
    distance[np.abs(distance) < 0.01] = 0.01
    z = city.terrain(x, y)
    i = np.arange(n * n).reshape(n, n)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, 1:].ravel(), i[1:, :-1].ravel()
    triangles = np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1)))
    on_road = distance[triangles] < 0
    roads = on_road.sum(1)
    xyz = np.stack((x, y, z + above_terrain(distance)), 1)
    grey = (0.3, 0.3, 0.3)
    for whole, material in ((3, Material.ROAD), (0, Material.LAND)):
        builder.add(*_compact(xyz, triangles[roads == whole]), material, grey)

    # A mixed triangle: turn it so that its lone vertex comes first.
    mixed, road = triangles[(roads == 1) | (roads == 2)], on_road[(roads == 1) | (roads == 2)]
    lone_is_road = road.sum(1) == 1
    lone = np.argmax(road == lone_is_road[:, None], axis=1)
    order = (lone[:, None] + np.arange(3)) % 3
    mixed = np.take_along_axis(mixed, order, 1)
    flat = np.stack((x, y, z), 1)
    A, B, C = (flat[mixed[:, k]] for k in range(3))
    dA, dB, dC = (distance[mixed[:, k]][:, None] for k in range(3))
    P, Q = A + (B - A) * dA / (dA - dB), A + (C - A) * dA / (dA - dC)
    up = np.array([0, 0, KERB_M])
    heights = np.stack((above_terrain(dA), above_terrain(dB), above_terrain(dC)))
    A, B, C = (v + h * [0, 0, 1] for v, h in zip((A, B, C), heights, strict=True))
    for lone_road in (True, False):
        m = lone_is_road == lone_road
        lone_up, pair_up = (0 * up, up) if lone_road else (up, 0 * up)
        corner = np.stack((A, P + lone_up, Q + lone_up), 1)[m]
        builder.add(corner.reshape(-1, 3), np.arange(3 * len(corner)).reshape(-1, 3),
                    Material.ROAD if lone_road else Material.LAND, grey)
        builder.quads(np.stack((P + pair_up, B, C, Q + pair_up), 1)[m],
                      Material.LAND if lone_road else Material.ROAD, grey)
    builder.quads(np.stack((P, Q, Q + up, P + up), 1), Material.PLAIN, (0.36, 0.35, 0.33))


def _compact(vertices, faces):
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], renumbered.reshape(faces.shape)


def far_ground(city, builder):
    """Fields, out to the distance at which haze hides them."""
    half, cells = city.half_m, 8
    g = np.linspace(-5 * half, 5 * half, 5 * cells + 1)
    x, y = np.meshgrid(g, g)
    xyz = np.stack((x, y, city.terrain(x, y) + KERB_M - 0.02), -1)
    quads = np.stack((xyz[:-1, :-1], xyz[:-1, 1:], xyz[1:, 1:], xyz[1:, :-1]), 2)
    centre = quads[..., :2].mean(2)
    outside = np.abs(centre).max(-1) > half
    builder.quads(quads[outside], Material.PLAIN, (0.10, 0.12, 0.06))


def empty_rasters(half_m, rng):
    count = int(round(2 * half_m / LAND_PX_M))
    rgb = np.empty((count, count, 3), np.uint8)
    rgb[:] = encode_albedo(np.array([0.10, 0.13, 0.055]) * rng.uniform(0.8, 1.25, 3))
    grass = np.full((count, count), 255, np.uint8)
    mask = np.zeros((int(round(2 * half_m)),) * 2, np.uint8)
    return (Raster(rgb, half_m, LAND_PX_M), Raster(grass, half_m, LAND_PX_M),
            Raster(mask, half_m, 1.0))


def encode_albedo(albedo):
    """Linear albedo to the uint8 of the rasters (a square root keeps the darks apart)."""
    return np.clip(np.sqrt(np.clip(albedo, 0, 1)) * 255 + 0.5, 0, 255).astype(np.uint8)


# --- what stands on it -------------------------------------------------------------------------

class Planner:
    """Places buildings, plots, trees, furniture and markings where the ground is free."""

    def __init__(self, city, builder, rng):
        self.city, self.builder, self.rng = city, builder, rng
        distance = city.kerb_distance
        self.taken = Raster(
            (distance.data < city.pavement_width.data + 0.3).astype(np.uint8), city.half_m,
            distance.px_m)
        self.walls = []
        self.brick = rng.dirichlet([1.5, 1.5, 1.2, 0.8])
        self.tiles = rng.dirichlet([1.5, 1.3, 1.2])
        self.lawn = np.array([0.085, 0.135, 0.045]) * rng.uniform(0.8, 1.3, 3)
        self.tree_density = rng.uniform(0.6, 1.8)
        self.driving_side = 1  # of the line where one drives: 1 left, -1 right
        self.fences = []  # (start, stop) of wanted lines between rear gardens

    def run(self):
        for street in self.city.streets:
            for side in (1, -1):
                self._frontage(street, side)
        self.garden_fences()
        self._fill_blocks()
        self.outskirts()
        for street in self.city.streets:
            self.street_markings(street)
            self.street_furniture(street)
        self._trees_in_gardens()
        self.city.walls = np.array(self.walls, np.float32).reshape(-1, len(WALL_FIELDS))

    # Ground bookkeeping.

    def rectangle(self, centre, yaw, along, across):
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (along / 2, across / 2)
        cos, sin = np.cos(yaw), np.sin(yaw)
        return corners @ np.array([[cos, sin], [-sin, cos]]) + centre

    def free(self, polygon, limit=0.0):
        if np.abs(polygon).max() > self.city.size_m / 2 + 25.0:
            return False
        view, mask = self._cover(self.taken, polygon)
        return (self.taken.data[view] * mask).sum() <= limit * mask.sum()

    def take(self, polygon):
        view, mask = self._cover(self.taken, polygon)
        self.taken.data[view] |= mask

    @staticmethod
    def _cover(raster, polygon):
        pixels = raster.pixel(polygon)
        low = np.clip(np.floor(pixels.min(0)).astype(int) - 1, 0, raster.data.shape[0] - 2)
        high = np.clip(np.ceil(pixels.max(0)).astype(int) + 2, low + 1, raster.data.shape[0])
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [np.round((pixels - low) * 16).astype(np.int32)], 1, shift=4)
        return (slice(low[1], high[1]), slice(low[0], high[0])), mask

    def paint(self, polygon, albedo, grass):
        shape = [np.round(self.city.land_rgb.pixel(polygon) * 16).astype(np.int32)]
        cv2.fillPoly(self.city.land_rgb.data, shape,
                     [int(v) for v in encode_albedo(albedo)], cv2.LINE_AA, 4)
        cv2.fillPoly(self.city.land_grass.data, shape, 255 if grass else 0, cv2.LINE_AA, 4)

    # Buildings along a street.

    def _frontage(self, street, side):
        rng, line = self.rng, street.line
        style = street.style if rng.random() < 0.8 else str(rng.choice(_STYLES))
        s = street.trim_a_m + 1.0
        end = line.length - street.trim_b_m - 1.0
        edge = street.half_width_m + street.pavement_m + 0.35
        setback = {'terrace': rng.uniform(0.3, 3.5), 'semi': rng.uniform(4, 7.5),
                   'detached': rng.uniform(5, 10), 'shops': 0.1, 'flats': rng.uniform(1, 6)}[style]
        look = self.look(style)
        boundary = rng.choice(['hedge', 'wall', 'none'], p=[0.42, 0.38, 0.20])
        while s < end - 5.0:
            if style in ('semi', 'detached') or rng.random() < 0.2:
                look = self.look(style)
            width = {'terrace': 4.8 + 1.2 * rng.random(), 'semi': rng.uniform(11, 14),
                     'detached': rng.uniform(9, 15), 'shops': rng.uniform(6, 13),
                     'flats': rng.uniform(14, 28)}[style]
            if style == 'terrace':
                width *= rng.integers(2, 5)
            gap = {'terrace': rng.choice([0.0, 1.2, 3.0], p=[0.6, 0.25, 0.15]),
                   'semi': rng.uniform(2.4, 5), 'detached': rng.uniform(3, 9),
                   'shops': rng.choice([0.0, 3.0], p=[0.85, 0.15]),
                   'flats': rng.uniform(4, 14)}[style]
            if rng.random() < 0.05:
                s += rng.uniform(8, 22)
                continue
            width = min(width, end - s)
            if width < 4.5:
                break
            deep = {'terrace': rng.uniform(8, 10), 'semi': rng.uniform(8, 10),
                    'detached': rng.uniform(8, 12), 'shops': rng.uniform(10, 17),
                    'flats': rng.uniform(11, 16)}[style]
            back = setback + rng.uniform(-0.6, 0.6) * (style in ('semi', 'detached'))
            mid = s + width / 2
            tangent = line.tangent(mid)
            # The chord across a bend lies off the line: move out by its sagitta.
            chord = line.offset(np.array([s, s + width]), np.zeros(2)).mean(0) - line.at(mid)
            normal = side * np.array([-tangent[1], tangent[0]])
            bow = abs(float(chord @ normal))
            front = edge + back + bow
            centre = line.at(mid) + normal * (front + deep / 2)
            yaw = np.arctan2(tangent[1], tangent[0]) + (np.pi if side > 0 else 0.0)
            # yaw turned so that +y of the building's frame points away from the street
            yaw += np.pi
            plot = self.rectangle(centre, yaw, width, deep)
            if not self.free(plot):
                s += 4.0
                continue
            self.gardens(line.at(mid), normal, yaw, width + gap, edge, front, deep, style)
            self._boundary(street, side, s - gap / 2, s + width + gap / 2, edge, back, boundary)
            self.take(plot)
            self.building(centre, yaw, width, deep, style, look)
            s += width + gap

    def look(self, style):
        rng = self.rng
        wall = [(0.30, 0.135, 0.085), (0.52, 0.44, 0.32), (0.66, 0.63, 0.57), (0.36, 0.30, 0.26)][
            rng.choice(4, p=self.brick)]
        tile = [(0.095, 0.10, 0.115), (0.27, 0.12, 0.075), (0.17, 0.14, 0.12)][
            rng.choice(3, p=self.tiles)]
        flat = style == 'flats' and rng.random() < 0.75 or style == 'shops' and rng.random() < 0.35
        return {
            'wall': np.array(wall) * rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3),
            'brick': float(wall[0] < 0.45),
            'roof': np.array([(0.10, 0.10, 0.10), (0.36, 0.35, 0.33), (0.22, 0.22, 0.22)][
                rng.integers(3)] if flat else tile) * rng.uniform(0.8, 1.25),
            'flat': flat, 'hip': not flat and rng.random() < 0.35,
            'door': np.array([(0.3, 0.04, 0.04), (0.04, 0.08, 0.2), (0.05, 0.15, 0.08),
                              (0.5, 0.5, 0.48), (0.08, 0.06, 0.05)][rng.integers(5)]),
            'storeys': {'terrace': rng.choice([2, 2, 3]), 'semi': 2,
                        'detached': rng.choice([1, 2, 2]), 'shops': rng.choice([2, 3, 3, 4]),
                        'flats': rng.integers(3, 7)}[style],
            'pitch': rng.uniform(2.0, 3.4), 'win_w': rng.uniform(0.9, 1.7),
            'win_h': rng.uniform(1.1, 1.7), 'slope': rng.uniform(0.6, 0.95),
        }

    def gardens(self, point, normal, yaw, width, edge, front, deep, style):
        """Front and rear plots: lawn, paving or gravel, each in its own shade."""
        rng = self.rng
        paving = np.array([0.30, 0.28, 0.25])
        if style == 'shops':
            rear = paving * rng.uniform(0.5, 0.9)
        else:
            rear = self.lawn * rng.uniform(0.75, 1.4) * rng.uniform(0.9, 1.1, 3)
        length = rng.uniform(9, 20)
        self.paint(self.rectangle(point + normal * (front + deep + length / 2), yaw, width,
                                    length), rear, style != 'shops')
        if style != 'shops' and rng.random() < 0.7:  # a patio, a shed's base or a bed
            spot = point + normal * (front + deep + rng.uniform(1.5, length))
            patio = self.rectangle(spot, yaw + rng.normal(0, 0.1), rng.uniform(2, width * 0.7),
                                    rng.uniform(1.5, 4))
            self.paint(patio, paving * rng.uniform(0.4, 1.2), False)
        if style != 'shops':
            shift = np.array([normal[1], -normal[0]]) * width / 2
            near, far = (point + normal * (front + deep + t) for t in (0.3, length))
            self.fences += [(near + shift, far + shift)]
            if rng.random() < 0.6:
                self.fences += [(far - shift, far + shift)]
        if front - edge < 0.8:
            self.paint(self.rectangle(point + normal * (edge + front) / 2, yaw, width,
                                        front - edge + 0.6), paving * rng.uniform(0.7, 1.1), False)
            return
        choice = rng.random()
        middle = point + normal * (edge + front) / 2
        strip = self.rectangle(middle, yaw, width - 0.3, front - edge)
        if choice < 0.5:
            self.paint(strip, self.lawn * rng.uniform(0.8, 1.5), True)
        else:
            shade = [(0.34, 0.31, 0.26), (0.22, 0.15, 0.12), (0.16, 0.16, 0.16)][rng.integers(3)]
            self.paint(strip, np.array(shade) * rng.uniform(0.8, 1.2), False)
        tangent = np.array([normal[1], -normal[0]])
        if style in ('semi', 'detached'):
            shift = tangent * rng.choice([-1, 1]) * (width / 2 - 1.9)
            drive = np.array([(0.14, 0.14, 0.14), (0.3, 0.22, 0.18), (0.4, 0.37, 0.32)][
                rng.integers(3)])
            self.paint(self.rectangle(point + normal * (edge + front) / 2 + shift, yaw, 3.0,
                                        front - edge + 0.3), drive, False)
            if front - edge > 5.0:
                spot = point + normal * (edge + front) / 2 + shift
                across = np.arctan2(normal[1], normal[0])
                self.city.car_slots.append(CarSlot(*spot, float(across), rng.uniform(0.2, 0.8)))

    def garden_fences(self):
        """Fences and hedges between rear gardens, if nothing else stands there."""
        rng = self.rng
        for start, stop in self.fences:
            run = stop - start
            length = float(np.linalg.norm(run))
            yaw = float(np.arctan2(run[1], run[0]))
            hedge = rng.random() < 0.4
            thick, height = (rng.uniform(0.5, 1.1), rng.uniform(1.3, 2.2)) if hedge else (0.1, 1.8)
            rgb = (np.array([0.05, 0.085, 0.028]) if hedge else np.array([0.22, 0.15, 0.09])
                   ) * rng.uniform(0.7, 1.5)
            pieces = max(1, round(length / 3.0))
            for k in range(pieces):
                x, y = start + run * (k + 0.5) / pieces
                footprint = self.rectangle(np.array([x, y]), yaw, length / pieces, 0.6)
                if self.free(footprint):
                    self.builder.box(
                        (x, y, self.city.terrain(x, y) - 0.1), yaw,
                        (length / pieces, thick, height + 0.2 + KERB_M),
                        Material.LEAF if hedge else Material.PLAIN, rgb)

    def _boundary(self, street, side, s0, s1, edge, setback, kind):
        """A wall or hedge behind the pavement, with a gap for the gate."""
        rng = self.rng
        if kind == 'none' or setback < 1.2:
            return
        gate = rng.uniform(s0 + 1, s1 - 1)
        hedge = kind == 'hedge'
        height = rng.uniform(0.9, 1.9) if hedge else rng.uniform(0.5, 1.1)
        thick = rng.uniform(0.5, 1.0) if hedge else 0.25
        rgb = (np.array([0.05, 0.085, 0.028]) * rng.uniform(0.8, 1.5) if hedge else
               np.array([0.30, 0.15, 0.10]) * rng.uniform(0.8, 1.5))
        for low, high in ((s0, gate - 1.5), (gate + 1.5, s1)):
            if high - low < 0.8:
                continue
            for start in np.arange(low, high, 4.0):
                stop = min(start + 4.0, high)
                mid = (start + stop) / 2
                x, y = street.line.offset(mid, side * (edge + thick / 2 + 0.05))
                tangent = street.line.tangent(mid)
                self.builder.box(
                    (x, y, self.city.terrain(x, y) - 0.2), np.arctan2(tangent[1], tangent[0]),
                    (stop - start + 0.15, thick, height + 0.3),
                    Material.LEAF if hedge else Material.PLAIN, rgb, 0.97 if hedge else 1.0)

    def building(self, centre, yaw, width, deep, style, look):
        """Walls with texture coordinates, a roof, chimneys; +y of its frame faces away."""
        rng, city = self.rng, self.city
        storey = rng.uniform(2.7, 3.1) if style != 'shops' else rng.uniform(3.0, 3.6)
        eaves = storey * look['storeys'] + 0.4
        corners = self.rectangle(centre, yaw, width, deep)
        heights = city.terrain(corners[:, 0], corners[:, 1]) + KERB_M
        base = float(heights.max())

        def world(points):
            points = np.asarray(points, np.float64)
            return turned(points, yaw) + [centre[0], centre[1], 0.0]

        view, mask = self._cover(city.building_mask, corners)
        city.building_mask.data[view] |= mask * 255
        x, y = width / 2, deep / 2
        foot = [(-x, -y), (x, -y), (x, y), (-x, y)]
        bottom = float(heights.min()) - 0.5
        top = base + eaves
        sides = []
        for k in range(4):
            p, q = np.array(foot[k]), np.array(foot[(k + 1) % 4])
            blank = style in ('terrace', 'shops') and k in (1, 3)
            ends = (world([*p, 0.0])[:2], world([*q, 0.0])[:2])
            sides.append(self._wall(*ends, base, storey, eaves, look,
                                    style if k == 0 else 'rear', blank))
            quad = world([(*p, bottom), (*q, bottom), (*q, top), (*p, top)])
            self.builder.quads(quad[None], Material.FACADE, look['wall'], sides[-1])
        if look['flat']:
            parapet = rng.uniform(0.2, 0.7)
            rim = world([(*f, top + parapet) for f in foot])
            wall = world([(*f, top) for f in foot])
            for k in range(4):
                j = (k + 1) % 4
                self.builder.quads([(wall[k], wall[j], rim[j], rim[k])], Material.PLAIN,
                                   look['wall'])
            self.builder.quads(world([(*f, top + 0.05) for f in foot])[None], Material.ROOF,
                               look['roof'])
            for _ in range(rng.integers(0, 4)):
                spot = rng.uniform(-0.35, 0.35, 2) * (width, deep)
                self.builder.box(world([*spot, top]), yaw, rng.uniform(1.0, 3.5, 3) * (1, 1, 0.6),
                                 Material.PLAIN, rng.uniform(0.25, 0.5) * np.ones(3))
            return
        rise = look['slope'] * y
        over = 0.35
        ox, oy, low = x + over * look['hip'], y + over, top - over * look['slope']
        ridge_x = max(x - y, 0.0) if look['hip'] else x
        a, b, c, d = (-ox, -oy, low), (ox, -oy, low), (ox, oy, low), (-ox, oy, low)
        e, f = (-ridge_x, 0, top + rise), (ridge_x, 0, top + rise)
        roof = look['roof']
        self.builder.quads(world([[a, b, f, e], [c, d, e, f]]), Material.ROOF, roof)
        if look['hip']:
            hips = world([b, c, f, d, a, e])
            self.builder.add(hips, [[0, 1, 2], [3, 4, 5]], Material.ROOF, roof)
        else:
            gable = world([(x, -y, top), (x, y, top), (x, 0, top + rise),
                           (-x, y, top), (-x, -y, top), (-x, 0, top + rise)])
            self.builder.add(gable, [[0, 1, 2], [3, 4, 5]], Material.FACADE, look['wall'],
                             np.array([sides[1], sides[3]]))
        stacks = int(width // 6) if style == 'terrace' else int(rng.random() < 0.6)
        for k in range(stacks):
            spot = (-x + (k + 0.5) * width / stacks, rng.uniform(-0.3, 0.3))
            self.builder.box(world([*spot, top + rise - 1.0]), yaw, (1.2, 0.7, 2.2),
                             Material.PLAIN, look['wall'] * 0.8)
        if style in ('semi', 'detached', 'terrace') and rng.random() < 0.55:  # bays or a porch
            count = max(1, int(width // 6.5))
            for k in range(count):
                spot = (-x + (k + 0.3 + 0.4 * rng.random()) * width / count, -y - 0.35)
                tall = storey * (2 if look['storeys'] > 1 and style != 'terrace' else 1) * 0.9
                self.builder.box(world([*spot, base - 0.4]), yaw, (2.0, 0.8, tall + 0.4),
                                 Material.PLAIN, look['wall'] * 1.05, 0.98)
                self.builder.quads(world([[(spot[0] - 0.8, -y - 0.78, base + 0.8),
                                           (spot[0] + 0.8, -y - 0.78, base + 0.8),
                                           (spot[0] + 0.8, -y - 0.78, base + 2.0),
                                           (spot[0] - 0.8, -y - 0.78, base + 2.0)]]),
                                   Material.GLASS, (0.05, 0.06, 0.07))

    def _wall(self, p, q, base, storey, eaves, look, style, blank):
        """Register a wall's coordinates and style; returns its number."""
        rng = self.rng
        width = float(np.linalg.norm(q - p))
        run = (q - p) / width
        columns = 0 if blank else max(1, round(width / look['pitch']))
        self.walls.append([
            *p, *run, base, width, storey, eaves, width / columns if columns else 1e3,
            look['win_w'] if columns else 0.0, look['win_h'], 0.9,
            float(style == 'shops'), *look['wall'], *look['door'], rng.integers(1 << 20),
            float(style in ('terrace', 'semi', 'detached', 'flats')), look['brick'],
        ])
        return len(self.walls) - 1

    # The inside of blocks.

    def _fill_blocks(self):
        """Car parks, lawns with trees, yards and large buildings where there is room."""
        rng, city = self.rng, self.city
        weights = rng.dirichlet([1.5, 1.0, 1.0, 1.5])
        for _ in range(int(500 * (city.size_m / 500) ** 2)):
            centre = rng.uniform(-1, 1, 2) * (city.size_m / 2 + 10)
            yaw = self._nearest_yaw(centre)
            kind = rng.choice(['park', 'cars', 'hall', 'shed'], p=weights)
            along, across = {'park': rng.uniform(16, 40, 2), 'cars': (rng.uniform(16, 36), 16.5),
                             'hall': rng.uniform(13, 28, 2), 'shed': rng.uniform(2.5, 6, 2)}[kind]
            area = self.rectangle(centre, yaw, along, across)
            if not self.free(area, 0.02 if kind == 'park' else 0.0):
                continue
            self.take(area)
            if kind == 'park':
                self.paint(area, self.lawn * rng.uniform(0.9, 1.4), True)
                for _ in range(rng.integers(1, 7)):
                    self.tree(centre + (self.rectangle(np.zeros(2), yaw, along, across)
                                         * rng.uniform(-0.9, 0.9, (4, 1))).sum(0) / 2)
            elif kind == 'cars':
                self._car_park(centre, yaw, along, across, area)
            else:
                look = self.look('flats' if kind == 'hall' else 'semi')
                look['storeys'] = int(rng.integers(1, 4)) if kind == 'hall' else 1
                self.building(centre, yaw, along, across, 'rear', look)

    def _car_park(self, centre, yaw, along, across, area):
        rng = self.rng
        self.paint(area, np.ones(3) * rng.uniform(0.09, 0.17), False)
        use = rng.uniform(0.2, 0.9)
        cos, sin = np.cos(yaw), np.sin(yaw)
        turn = np.array([[cos, sin], [-sin, cos]])
        for row in (-1, 1):
            for k in range(int(along // 2.6) + 1):
                start = np.array([-along / 2 + 0.2 + 2.6 * k, row * (across / 2 - 5.0)])
                stop = start + [0, row * 4.8]
                side = np.array([0.06, 0.0])
                line = np.array([start - side, start + side, stop + side, stop - side])
                self.paint(line @ turn + centre, np.ones(3) * 0.5, False)
                if k < along // 2.6 - 0.5:
                    spot = np.array([start[0] + 1.3, row * (across / 2 - 2.6)]) @ turn + centre
                    self.city.car_slots.append(CarSlot(
                        *spot, float(yaw + row * np.pi / 2 + np.pi * (rng.random() < 0.3)), use))

    def _nearest_yaw(self, point):
        best = min(self.city.streets, key=lambda street: float(
            np.linalg.norm(street.line.points - point, axis=1).min()))
        k = int(np.linalg.norm(best.line.points - point, axis=1).argmin())
        tangent = best.line.tangent(best.line.s[k])
        return float(np.arctan2(tangent[1], tangent[0]))

    # Trees, posts and signs.

    def tree(self, spot, low=4.0, high=12.0):
        rng = self.rng
        height = rng.uniform(low, high)
        rgb = np.array([0.055, 0.095, 0.03]) * rng.uniform(0.7, 1.5) * rng.uniform(0.85, 1.2, 3)
        self.city.trees.append(Tree(
            float(spot[0]), float(spot[1]), height, height * rng.uniform(0.24, 0.4), tuple(rgb),
            bool(rng.random() < 0.15), int(rng.integers(1 << 30))))

    def _trees_in_gardens(self):
        rng, city = self.rng, self.city
        for _ in range(int(2000 * self.tree_density * (city.size_m / 500) ** 2)):
            spot = rng.uniform(-1, 1, 2) * (city.half_m - 5)
            if self.taken.sample(spot[:1], spot[1:])[0] == 0:
                self.tree(spot, *((1.5, 4.0) if rng.random() < 0.5 else (4.0, 13.0)))

    def outskirts(self):
        """Houses and trees beyond the streets, so that no view ends at an empty edge."""
        rng, city = self.rng, self.city
        for _ in range(int(160 * city.size_m / 500)):
            spot = rng.uniform(-1, 1, 2)
            spot *= rng.uniform(city.half_m + 5, city.half_m + 110) / np.abs(spot).max()
            if rng.random() < 0.5:
                style = str(rng.choice(['semi', 'terrace', 'flats']))
                self.building(spot, rng.uniform(0, 2 * np.pi), rng.uniform(9, 30),
                               rng.uniform(8, 12), style, self.look(style))
            for _ in range(3):
                self.tree(spot + rng.uniform(8, 16, 2) * rng.choice([-1, 1], 2), 5.0, 14.0)

    def street_furniture(self, street):
        rng, city, line = self.rng, self.city, street.line
        spacing, side = rng.uniform(24, 34), rng.choice([-1, 1])
        height, arm = rng.uniform(5.5, 9.0), rng.uniform(0.8, 1.8)
        for s in np.arange(street.trim_a_m + 3, line.length - street.trim_b_m, spacing):
            side = -side
            x, y = line.offset(s, side * (street.kerb_m(s, side) + 0.45))
            if not self._on_verge(x, y):
                continue
            z = city.terrain(x, y) + KERB_M
            tangent = line.tangent(s)
            yaw = np.arctan2(tangent[1], tangent[0])
            grey = np.ones(3) * 0.18
            self.builder.box((x, y, z), yaw, (0.16, 0.16, height), Material.PLAIN, grey, 0.6)
            inward = -side * np.array([-tangent[1], tangent[0]])
            self.builder.box((x + inward[0] * arm / 2, y + inward[1] * arm / 2, z + height), yaw,
                             (0.12, arm + 0.3, 0.12), Material.PLAIN, grey)
            city.landmarks[f'lamp_{len(city.landmarks)}'] = np.array([x, y, z])
        trees = rng.random() < 0.45 * self.tree_density and street.pavement_m > 1.7
        step = rng.uniform(9, 20)
        for side in (-1, 1):
            for s in np.arange(street.trim_a_m + 6, line.length - street.trim_b_m - 4, step):
                if trees and rng.random() < 0.75:
                    self.tree(line.offset(s, side * (street.kerb_m(s, side) + 0.9)), 5.5, 10.0)
                elif rng.random() < 0.18:
                    self._sign(street, s, side)
                elif rng.random() < 0.15:
                    x, y = line.offset(s, side * (street.kerb_m(s, side) + 0.6))
                    if not self._on_verge(x, y):
                        continue
                    self.builder.box((x, y, city.terrain(x, y)), rng.uniform(0, 3),
                                     rng.uniform(0.35, 0.9, 3) + [0, 0, 0.5], Material.PLAIN,
                                     rng.uniform(0.02, 0.25, 3))

    def _on_verge(self, x, y):
        return self.city.kerb_distance.sample(np.array([x]), np.array([y]))[0] > 0.15

    def _sign(self, street, s, side):
        rng = self.rng
        x, y = street.line.offset(s, side * (street.kerb_m(s, side) + 0.5))
        if not self._on_verge(x, y):
            return
        z = self.city.terrain(x, y) + KERB_M
        tangent = street.line.tangent(s)
        yaw = np.arctan2(tangent[1], tangent[0])
        height = rng.uniform(2.0, 2.8)
        self.builder.box((x, y, z), yaw, (0.07, 0.07, height), Material.PLAIN, (0.3, 0.3, 0.3))
        colours = [(0.02, 0.1, 0.4), (0.5, 0.03, 0.03), (0.7, 0.7, 0.7), (0.6, 0.45, 0.05)]
        colour = np.array(colours[rng.integers(4)])
        self.builder.box((x, y, z + height - 0.35), yaw, (0.05, 0.6, 0.6), Material.GLOW, colour)

    # Paint on the carriageway.

    def _ribbon(self, street, s0, s1, left_m, width_m, yellow=False):
        s = np.linspace(s0, s1, max(2, int((s1 - s0) / 2.0) + 1))
        outer = street.line.offset(s, np.full(s.size, left_m + width_m / 2))
        inner = street.line.offset(s, np.full(s.size, left_m - width_m / 2))
        self.city.markings.append(Marking(np.concatenate((outer, inner[::-1])), yellow))

    def street_markings(self, street):
        rng, city, line = self.rng, self.city, street.line
        s0, s1 = street.trim_a_m, line.length - street.trim_b_m
        if s1 - s0 < 8.0:
            return
        half, lane = street.half_width_m, street.lane_m
        degree = [sum(node in (o.a, o.b) for o in city.streets) for node in (street.a, street.b)]

        # Zebra crossings: bars along the street, no bays and no centre line on them.
        zebras = [s for s in ((s0 + 3.0), (s1 - 6.0)) if rng.random() < 0.22 and s1 - s0 > 30]
        if rng.random() < 0.15 and s1 - s0 > 60:
            zebras.append((s0 + s1) / 2)
        for z0 in zebras:
            for offset in np.arange(-half + 0.4, half - 0.3, 1.2):
                self._ribbon(street, z0, z0 + 3.0, offset + 0.3, 0.6)
            for across in (z0 - 1.6, z0 + 4.4):
                self._ribbon(street, across, across + 0.2, 0.0, 2 * half - 1.0)
            x, y = line.offset(z0, -half + 0.4)
            city.landmarks[f'zebra_{len(city.landmarks)}'] = np.array([
                x, y, float(city.ground(x[None], y[None])[0])])

        def clear(a, b):
            return all(b < z - 2.5 or a > z + 5.5 for z in zebras)

        # Centre line and edge lines.
        dash, gap, width = (4.0, 2.0, 0.15) if street.main else (2.0, 4.0, 0.12)
        if street.main or rng.random() < 0.6:
            for s in np.arange(s0 + 2.0, s1 - dash - 2.0, dash + gap):
                if clear(s, s + dash):
                    self._ribbon(street, s, s + dash, 0.0, width)
        if street.main and not street.parking and rng.random() < 0.5:
            for side in (-1, 1):
                self._ribbon(street, s0 + 2, s1 - 2, side * (half - 0.35), 0.15)
        elif not street.parking and rng.random() < 0.6:
            for side in (-1, 1):
                for inset in (0.25, 0.52):
                    self._ribbon(street, s0 + 1, s1 - 1, side * (half - inset), 0.11, True)

        # Parking bays and the cars' places in them.
        if street.parking:
            use = rng.uniform(0.25, 0.85)
            marked = rng.random() < 0.6
            for side in (-1, 1):
                for s in np.arange(s0 + 5.0, s1 - 10.0, 5.7):
                    if rng.random() < 0.12 or not clear(s - 4, s + 9):
                        continue
                    if marked:
                        self._ribbon(street, s, s + 5.7, side * lane, 0.12)
                        for across in (s, s + 5.6):
                            self._ribbon(street, across, across + 0.12, side * (lane + 1.0), 2.0)
                    x, y = line.offset(s + 2.85, side * (lane + 1.05))
                    tangent = line.tangent(s + 2.85)
                    yaw = np.arctan2(tangent[1], tangent[0]) + (np.pi if side < 0 else 0.0)
                    yaw += np.pi * (rng.random() < 0.2)
                    city.car_slots.append(CarSlot(float(x), float(y), float(yaw), use))

        # Give-way or stop lines on the lane that approaches each junction; arrows on main roads.
        for at_b, many in ((False, degree[0] > 2), (True, degree[1] > 2)):
            if not many or rng.random() < (0.45 if street.main else 0.2):
                continue
            s, side, back = (s1 - 0.6, 1, -1) if at_b else (s0 + 0.4, -1, 1)
            if not clear(s, s + 1):
                continue
            middle = self.driving_side * side * lane / 2
            if rng.random() < 0.4:
                self._ribbon(street, s, s + 0.3, middle, lane - 0.3)
            else:
                for row in (0.0, 0.45):
                    for offset in np.arange(-lane / 2 + 0.4, lane / 2 - 0.2, 0.9):
                        self._ribbon(street, s + row, s + row + 0.2, middle + offset, 0.6)
            if street.main and rng.random() < 0.6:
                self._arrow(street, s + back * rng.uniform(8, 14), middle, -back)

    def _arrow(self, street, s, left_m, direction):
        shape = np.array([(0, 0.08), (2.2, 0.08), (2.2, 0.3), (3.4, 0.0), (2.2, -0.3),
                          (2.2, -0.08), (0, -0.08)])
        if not 0 < s < street.line.length:
            return
        origin, tangent = street.line.offset(s, left_m), street.line.tangent(s) * direction
        normal = np.array([-tangent[1], tangent[0]])
        self.city.markings.append(Marking(
            origin + shape[:, :1] * tangent + shape[:, 1:] * normal))
