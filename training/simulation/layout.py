"""A city after a land-cover raster and a trajectory, built of the procedural city's parts.

A layout is a folder: ``class1.png`` (road), ``class3.png`` (building), ``class4.png`` (tree),
each 0 where present and 255 elsewhere (grey between, where it was resampled), row 0 southernmost;
``pose_pixels_col_row.txt``, a camera position a line in pixels of the rasters;
``registration.json`` with ``px_per_m``, or KITTI's ``poses.txt`` from which that is inferred.
What no class covers is grass.  Heights, looks and all
that a land-cover raster does not say follow from the seed.

Coordinates are ``city``'s: metres, the middle of the part that is driven at the origin.
"""

from dataclasses import dataclass
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from .city import (
    City,
    DISTANCE_CAP_M,
    DISTANCE_PX_M,
    encode_albedo,
    LAND_PX_M,
    Line,
    MARGIN_M,
    Raster,
    Street,
    Tree,
    WALL_FIELDS,
)
from .city_planning.blocks import build_outskirts
from .city_planning.buildings import add_building, draw_look
from .city_planning.frontages import lay_gardens, put_garden_fences
from .city_planning.furniture import place_furniture
from .city_planning.ground import (
    add_far_ground,
    add_ground,
    draw_terrain_waves,
    make_empty_rasters,
)
from .city_planning.markings import paint_markings
from .city_planning.plan import CityPlan
from .mesh import MeshBuilder

FASTEST_MPS = 12.5     # no drive is faster; limits how much of the trajectory a duration can need
SURROUNDINGS_M = 60.0  # of the driven part, inside the nominal city
LARGEST_M = 1500.0     # of the city: its rasters must fit into memory
CAR_M = 2.4            # beside the trajectory that is road, whatever the raster says
MIN_BUILDING_M2 = 12.0
BUILDING_PX_M = 0.5


@dataclass(frozen=True)
class Layout:
    """Masks (H, W) uint8, 1 where present, row 0 southernmost; trajectory (n, 2) column, row."""

    name: str
    px_per_m: float
    road: np.ndarray
    building: np.ndarray
    tree: np.ndarray
    trajectory_px: np.ndarray
    sha256: str


def read_layout(folder: Path | str) -> Layout:
    """Read a layout; only the road's raster and the poses must be there.

    :raises ValueError: where files are missing, do not fit together or are not of this form.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f'{folder} is no folder; expected a layout: class1.png (road), '
                         'class3.png (building), class4.png (tree), pose_pixels_col_row.txt and '
                         'registration.json')
    digest = hashlib.sha256()
    masks = {k: _mask(folder / f'class{k}.png', digest) for k in (1, 3, 4)}
    road = masks[1]
    if road is None or not road.any():
        raise ValueError(f'{folder / "class1.png"} is missing or shows no road; expected a raster '
                         'that is 0 on roads and 255 elsewhere')
    for k, mask in masks.items():
        if mask is not None and mask.shape != road.shape:
            raise ValueError(f'{folder}: class{k}.png is {mask.shape[1]}x{mask.shape[0]} px, '
                             f'class1.png {road.shape[1]}x{road.shape[0]}; expected one size')
    poses = _table(folder / 'pose_pixels_col_row.txt', 2)
    if poses is None or len(poses) < 20:
        raise ValueError(f'{folder / "pose_pixels_col_row.txt"} is missing or has fewer than 20 '
                         'lines; expected a camera position "col row" a line')
    digest.update(poses.tobytes())
    px_per_m = _px_per_m(folder, poses)
    poses = _inside(folder, poses, road.shape)
    col, row = np.round(poses).astype(int).T
    near = cv2.dilate(road, np.ones((2 * round(2 * px_per_m) + 1,) * 2, np.uint8))
    share = near[row, col].mean()
    if share < 0.4:
        raise ValueError(f'{folder}: {share:.0%} of the poses lie within 2 m of a road; expected '
                         'most of them (rows grow to the north, columns to the east)')
    empty = np.zeros_like(road)
    return Layout(folder.resolve().name, px_per_m, road, *(
        empty if masks[k] is None else masks[k] for k in (3, 4)), poses, digest.hexdigest()[:16])


def _mask(path, digest):
    if not path.exists():
        return None
    data = path.read_bytes()
    digest.update(data)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise ValueError(f'{path} is no image; expected a PNG that is 0 where present, else 255')
    count = np.bincount(image.ravel(), minlength=256)
    # Resampling leaves grey along the edges; labels have no white, photographs are mostly grey.
    if 0 < image.max() < 224 or count[32:224].sum() > 0.3 * image.size:
        raise ValueError(f'{path} has values {np.flatnonzero(count)[:5].tolist()}...; expected 0 '
                         '(present) and 255 (absent), and grey at most along the edges')
    return (image < 128).astype(np.uint8)


def _inside(folder, poses, shape):
    """The longest run of poses inside the rasters: a drive may leave what was mapped."""
    rows, cols = shape
    inside = ((np.round(poses) >= 0) & (np.round(poses) < (cols, rows))).all(1)
    if 2 * np.count_nonzero(inside) < len(poses):
        raise ValueError(f'{folder}: {np.count_nonzero(~inside)} of {len(poses)} poses lie '
                         f'outside the rasters ({cols}x{rows} px); expected most of them inside')
    borders = np.flatnonzero(np.diff(np.concatenate(([False], inside, [False]))))
    first, end = max(borders.reshape(-1, 2), key=lambda run: run[1] - run[0])
    return poses[first:end]


def _table(path, columns):
    if not path.exists():
        return None
    try:
        table = np.loadtxt(path, ndmin=2)
    except ValueError as error:
        raise ValueError(f'{path}: {error}; expected {columns} numbers a line') from None
    if table.shape[1] != columns or not np.isfinite(table).all():
        raise ValueError(f'{path} has {table.shape[1]} columns; expected {columns} finite numbers '
                         'a line')
    return table


def _px_per_m(folder, poses_px):
    path = folder / 'registration.json'
    if path.exists():
        try:
            found = float(json.loads(path.read_text())['px_per_m'])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}: {error!r}; expected JSON with px_per_m, a number') from None
    else:
        # KITTI poses: 3x4, the camera's x right, y down, z ahead; heights count as well.
        poses = _table(folder / 'poses.txt', 12)
        if poses is None:
            raise ValueError(f'{folder} has neither registration.json nor poses.txt; expected one '
                             'of them, for the pixels a metre')
        if len(poses) != len(poses_px):
            raise ValueError(f'{folder}: poses.txt has {len(poses)} lines, '
                             f'pose_pixels_col_row.txt {len(poses_px)}; expected as many')
        metres = np.linalg.norm(np.diff(poses[:, [3, 11]], axis=0), axis=1).sum()
        found = float(np.linalg.norm(np.diff(poses_px, axis=0), axis=1).sum() / max(metres, 1e-6))
    if not 0.5 <= found <= 20.0:
        raise ValueError(f'{folder} has {found:g} px a metre; expected 0.5 to 20')
    return found


def build_layout(layout: Layout, seed: int, start_m: float = 0.0,
                 duration_s: float = 3600.0) -> tuple[City, dict]:
    """The city about the part of the trajectory that a drive of this duration can need.

    Returns the city and what world.json says of its source.

    :raises ValueError: where there is too little trajectory, or that part is too large.
    """
    rng = np.random.default_rng([seed, 31])
    track, origin = _driven_part(layout, start_m, duration_s)
    size_m = _size_m(track)
    if size_m > LARGEST_M:
        raise ValueError(f'the driven part of the layout needs a city of {size_m:.0f} m; expected '
                         f'at most {LARGEST_M:.0f}: give a shorter duration')
    half_m = size_m / 2 + MARGIN_M
    road, building, tree = (
        _resampled(mask, layout.px_per_m, origin, half_m)
        for mask in (layout.road, layout.building, layout.tree))
    kerb_distance, paved = _carriageway(road, track, half_m)
    clear = cv2.resize(kerb_distance.data, road.shape[::-1])
    building &= (clear > 1.2).astype(np.uint8)
    built_up = cv2.GaussianBlur(building.astype(np.float32), (0, 0), 12.0 / LAND_PX_M)
    pavement = np.clip(built_up / 0.12, 0.0, 1.0) * rng.uniform(1.4, 2.4)
    count = kerb_distance.data.shape[0]
    pavement_width = Raster(
        cv2.resize(np.maximum(pavement, 0.25), (count, count)), half_m, DISTANCE_PX_M)
    nodes, streets = _streets(kerb_distance, rng)
    city = City(
        seed, size_m, half_m, nodes, streets, draw_terrain_waves(rng, half_m), kerb_distance,
        pavement_width, *make_empty_rasters(half_m, rng), [], np.zeros((0, len(WALL_FIELDS))),
        None, [], [], trajectory=track)
    builder = MeshBuilder()
    add_ground(city, builder)
    add_far_ground(city, builder)
    plan = CityPlan(city, builder, rng)
    plan.tree_density = 0.0  # trees stand where the raster has them
    plan.driving_side = _driving_side(streets, track)
    _paint_land(plan, tree, paved)
    for component in _components(building):
        _place_building(plan, component)
    put_garden_fences(plan)
    build_outskirts(plan)
    for street in streets:
        paint_markings(plan, street)
        place_furniture(plan, street)
    city.trees += _trees(city, tree, rng)
    city.car_slots = _free_slots(city, track)
    city.walls = np.array(plan.walls, np.float32).reshape(-1, len(WALL_FIELDS))
    city.mesh = builder.build()
    return city, {'folder': layout.name, 'sha256': layout.sha256, 'start_m': start_m,
                  'px_per_m': round(layout.px_per_m, 5)}


def needed_size_m(layout: Layout, start_m: float, duration_s: float) -> float:
    """Side of the city about the part of the trajectory that a drive can need."""
    return _size_m(_driven_part(layout, start_m, duration_s)[0])


def _size_m(track):
    return max(200.0, float(np.ceil(2 * np.abs(track).max() + 2 * SURROUNDINGS_M)))


def _driven_part(layout, start_m, duration_s):
    """Trajectory (n, 2) in the city's metres, a point every metre, and the origin in pixels."""
    points = layout.trajectory_px / layout.px_per_m
    moved = np.concatenate(([True], np.linalg.norm(np.diff(points, axis=0), axis=1) > 0.05))
    line = Line(points[moved])
    end_m = min(line.length, start_m + (duration_s + 2.0) * FASTEST_MPS)
    if start_m < 0 or end_m - start_m < 100.0:
        raise ValueError(f'the trajectory of {layout.name} is {line.length:.0f} m long and the '
                         f'drive begins at {start_m:g} m; expected at least 100 m from there on')
    track = line.at(np.arange(start_m, end_m, 1.0))
    track = gaussian_filter1d(track, 1.5, axis=0, mode='nearest')
    origin = (track.min(0) + track.max(0)) / 2
    return track - origin, origin * layout.px_per_m


def _resampled(mask, px_per_m, origin_px, half_m):
    """A mask on the city's land raster, its edges smoothed; nothing outside the layout."""
    count = int(round(2 * half_m / LAND_PX_M))
    step = LAND_PX_M * px_per_m
    first = origin_px - half_m * px_per_m + step / 2
    soft = cv2.GaussianBlur(mask * np.float32(255), (0, 0), max(0.35 * px_per_m, 0.6))
    matrix = np.array([[step, 0.0, first[0]], [0.0, step, first[1]]])
    soft = cv2.warpAffine(soft, matrix, (count, count),
                          flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderValue=0)
    return (soft > 127).astype(np.uint8)


def _carriageway(road, track, half_m):
    """Signed distance to the kerb, and what is paved but no carriageway: (H, W) uint8.

    Specks and narrow bits of the road's mask are yards and paths.  Where the trajectory leaves the
    mask (trees hide the road from above), road is added about it.
    """
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(1.6 / LAND_PX_M) + 1,) * 2)
    wide = cv2.morphologyEx(road, cv2.MORPH_OPEN, disc)
    pixels = np.round((track + half_m) / LAND_PX_M - 0.5).astype(np.int32)
    cv2.polylines(wide, [pixels], False, 1, 2 * round(CAR_M / LAND_PX_M) + 1)
    wide = cv2.morphologyEx(wide, cv2.MORPH_CLOSE, disc)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(wide)
    large = stats[:, cv2.CC_STAT_AREA] * LAND_PX_M ** 2 > 250.0
    large[0] = False
    wide = large[labels].astype(np.uint8)
    distance = (cv2.distanceTransform(1 - wide, cv2.DIST_L2, 5)
                - cv2.distanceTransform(wide, cv2.DIST_L2, 5)) * LAND_PX_M
    distance = cv2.GaussianBlur(distance, (0, 0), 1.0 / LAND_PX_M)
    count = int(round(2 * half_m / DISTANCE_PX_M))
    distance = cv2.resize(distance, (count, count), interpolation=cv2.INTER_AREA)
    # Smoothing must not narrow the road to less than the car.
    g = (np.arange(count) + 0.5) * DISTANCE_PX_M - half_m
    x, y = (v.ravel() for v in np.meshgrid(g, g))
    near, _ = cKDTree(track).query(
        np.stack((x, y), 1), distance_upper_bound=CAR_M + DISTANCE_CAP_M, workers=1)
    corridor = np.minimum(near, CAR_M + DISTANCE_CAP_M).reshape(count, count) - CAR_M
    distance = np.minimum(np.minimum(distance, corridor), DISTANCE_CAP_M).astype(np.float32)
    return Raster(distance, half_m, DISTANCE_PX_M), road & (1 - wide)


# --- streets -----------------------------------------------------------------------------------

def _streets(kerb_distance, rng):
    """Nodes (n, 2) and streets along the carriageway's middle, from its thinned mask."""
    half_m, px = kerb_distance.half_m, kerb_distance.px_m
    road = kerb_distance.data < 0
    road[[0, -1]] = road[:, [0, -1]] = False
    skeleton = _pruned(thinned(road), kerb_distance.data, px)
    crossing = skeleton & (_turns(_around(skeleton)) > 2)
    count, clusters = cv2.connectedComponents(crossing.astype(np.uint8), connectivity=8)
    nodes = [np.argwhere(clusters == k).mean(0)[::-1] for k in range(1, count)]
    streets = []
    for path in _paths(skeleton & ~crossing):
        ends = []
        for row, col in (path[0], path[-1]):
            around = clusters[max(row - 1, 0):row + 2, max(col - 1, 0):col + 2]
            if around.any():
                ends.append(int(around.max()) - 1)
            else:
                ends.append(len(nodes))
                nodes.append(np.array([col, row], float))
        points = np.concatenate(
            ([nodes[ends[0]]], np.asarray(path)[:, ::-1], [nodes[ends[1]]])).astype(float)
        points = (points + 0.5) * px - half_m
        points = gaussian_filter1d(points, 3.0 / px, axis=0, mode='nearest')
        line = Line(points)
        if line.length < 15.0:
            continue
        line = Line(line.at(np.linspace(0.0, line.length, max(4, int(line.length / 2.5)))))
        streets.append(_street(line, *ends, kerb_distance, rng))
    nodes = (np.array(nodes) + 0.5) * px - half_m if nodes else np.zeros((0, 2))
    return nodes, streets


def _street(line, a, b, kerb_distance, rng):
    s = np.linspace(0.0, line.length, max(4, int(line.length / 2.0)))
    out = np.arange(0.0, DISTANCE_CAP_M, 0.25)
    kerbs = [s]
    for side in (1, -1):
        spots = np.stack([line.offset(s, np.full(s.size, side * d)) for d in out], 1)  # (n, d, 2)
        outside = kerb_distance.sample(*spots.reshape(-1, 2).T).reshape(s.size, -1) > 0
        kerbs.append(np.where(outside.any(1), out[outside.argmax(1)], out[-1]))
    half = float(np.percentile((kerbs[1] + kerbs[2]) / 2, 35))
    parking = half > 5.2 and rng.random() < 0.7
    ends = [float(np.interp(e, s, (kerbs[1] + kerbs[2]) / 2)) + 3.0 for e in (0.0, line.length)]
    return Street(
        line, a, b, main=half > 4.0 and line.length > 120.0,
        lane_m=max(half - 2.1, 2.6) if parking else max(half, 1.8), parking=bool(parking),
        pavement_m=1.6, style='semi', trim_a_m=min(ends[0], 12.0), trim_b_m=min(ends[1], 12.0),
        kerbs_m=np.stack(kerbs, 1))


def thinned(mask: np.ndarray) -> np.ndarray:
    """Lines one pixel wide along the middle of a mask (Zhang and Suen, CACM 1984).

    The mask's outermost pixels must be 0.
    """
    image = mask.astype(bool)
    while True:
        before = int(image.sum())
        for first in (True, False):
            p = _around(image)
            total = sum(q.astype(np.int8) for q in p)
            if first:
                open_sides = ~(p[0] & p[2] & p[4]) & ~(p[2] & p[4] & p[6])
            else:
                open_sides = ~(p[0] & p[2] & p[6]) & ~(p[0] & p[4] & p[6])
            image = image & ~((total >= 2) & (total <= 6) & (_turns(p) == 1) & open_sides)
        if int(image.sum()) == before:
            return image


def _around(image):
    """The eight neighbours of each pixel, in order round it; the image's edge must be empty."""
    return [np.roll(image, shift, (0, 1)) for shift in (
        (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))]


def _turns(around):
    """How many separate branches leave each pixel."""
    return sum((~around[k] & around[(k + 1) % 8]).astype(np.int8) for k in range(8))


def _paths(pixels):
    """Ordered (row, col) lists of the connected parts, from an end where there is one."""
    left = {tuple(p) for p in np.argwhere(pixels)}

    def beside(p):
        steps = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, 1), (1, -1), (-1, -1), (-1, 1))
        return [q for q in ((p[0] + r, p[1] + c) for r, c in steps) if q in left]

    paths = []
    for start in [p for p in sorted(left) if len(beside(p)) <= 1] + sorted(left):
        if start not in left:
            continue
        path = [start]
        left.discard(start)
        while following := beside(path[-1]):
            path.append(following[0])
            left.discard(following[0])
        if len(path) > 2:
            paths.append(path)
    return paths


def _pruned(skeleton, distance, px):
    """Remove the spurs that thinning leaves at bulges, which are short for their road."""
    for _ in range(2):
        crossing = skeleton & (_turns(_around(skeleton)) > 2)
        near = cv2.dilate(crossing.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        for path in _paths(skeleton & ~crossing):
            touching = [bool(near[p]) for p in (path[0], path[-1])]
            widest = -float(min(distance[p] for p in path))
            if touching.count(True) == 1 and len(path) * px < 2.0 * widest + 6.0:
                skeleton[tuple(np.array(path).T)] = False
        skeleton = thinned(skeleton)
    return skeleton


def _driving_side(streets, track):
    """1 if the trajectory keeps left of the streets' middle, -1 if right."""
    offsets = []
    ahead = np.gradient(track, axis=0)
    for street in streets:
        tree = cKDTree(street.line.points)
        apart, index = tree.query(track)
        for k in np.flatnonzero(apart < 4.0):
            step = street.line.points[index[k]] - track[k]
            offsets.append(ahead[k, 0] * step[1] - ahead[k, 1] * step[0])  # > 0: middle is left
    return -1 if offsets and np.mean(offsets) > 0 else 1


# --- land, buildings, trees --------------------------------------------------------------------

def _paint_land(plan, tree, paved):
    """Grass in patches of their own tone, ground under trees, yards and paths."""
    city, rng = plan.city, plan.rng
    count = tree.shape[0]
    cells = max(4, int(2 * city.half_m / 14.0))
    tones = rng.uniform(0.75, 1.35, (cells, cells, 1)) * rng.uniform(0.93, 1.07, (cells, cells, 3))
    bend = rng.normal(0.0, 0.35, (2, cells, cells)).astype(np.float32)
    # Plots about jittered grid points: a lookup bent by smooth noise, nearest neighbour.
    g = (np.arange(count, dtype=np.float32) + 0.5) * cells / count - 0.5
    bend = [cv2.resize(b, (count, count), interpolation=cv2.INTER_CUBIC) for b in bend]
    lawn = cv2.remap((plan.lawn * tones).astype(np.float32), g[None, :] + bend[0],
                     g[:, None] + bend[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    floor = np.array([0.075, 0.085, 0.04], np.float32) * rng.uniform(0.8, 1.2)
    inside = cv2.GaussianBlur(tree.astype(np.float32), (0, 0), 1.0 / LAND_PX_M)[..., None]
    land = lawn * (1 - inside) + floor * inside
    grey = np.array([0.26, 0.25, 0.22], np.float32) * rng.uniform(0.6, 1.0)
    land = np.where(paved[..., None] > 0, grey, land)
    city.land_rgb.data[:] = encode_albedo(land)
    city.land_grass.data[:] = np.where(paved > 0, 0, 255)


def _components(building):
    """Buildings one by one: masks cut out on a coarser raster, with their first row and column."""
    step = round(BUILDING_PX_M / LAND_PX_M)
    coarse = cv2.resize(building * np.uint8(255), None, fx=1 / step, fy=1 / step,
                        interpolation=cv2.INTER_AREA)
    coarse = (coarse > 127).astype(np.uint8)
    number, labels, stats, _ = cv2.connectedComponentsWithStats(coarse, connectivity=4)
    for k in range(1, number):
        left, top, width, height, area = stats[k]
        if area * BUILDING_PX_M ** 2 >= MIN_BUILDING_M2:
            cut = (labels[top:top + height, left:left + width] == k).astype(np.uint8)
            yield cut, top, left


def _place_building(plan, component):
    """A footprint as rectangles along its main direction, each a building part with its roof."""
    mask, top, left = component
    city, rng = plan.city, plan.rng
    rectangles = footprint_rectangles(mask)
    rectangles = [(centre * BUILDING_PX_M + np.array([left, top]) * BUILDING_PX_M - city.half_m,
                   yaw, along * BUILDING_PX_M, across * BUILDING_PX_M)
                  for centre, yaw, along, across in rectangles]
    area = sum(along * across for _, _, along, across in rectangles)
    style = ('rear' if area < 30.0 else 'flats' if area > 600.0
             else str(rng.choice(['detached', 'semi'])))
    look = draw_look(plan, 'semi' if style == 'rear' else style)
    if area < 30.0:
        look['storeys'] = 1
    elif area > 600.0:
        look['storeys'] = int(rng.integers(2, 5))
    for k, (centre, yaw, along, across) in enumerate(rectangles):
        part = dict(look)
        if k and rng.random() < 0.5:
            part['storeys'] = max(1, look['storeys'] - 1)
        # The ridge follows the longer side, and wide roofs are flat.
        if across > along:
            yaw, along, across = yaw + np.pi / 2, across, along
        part['flat'] = part['flat'] or across > 17.0
        part['slope'] = min(part['slope'], 7.0 / across)
        out = np.array([np.sin(yaw), -np.cos(yaw)])  # the front's outward normal
        gaps = [city.kerb_distance.sample(*(centre + sign * (across / 2 + 3.0) * out)[:, None])[0]
                for sign in (1, -1)]
        if gaps[1] < gaps[0]:
            yaw, out = yaw + np.pi, -out
        plot = plan.rectangle(centre, yaw, along, across)
        if np.abs(plot).max() > city.half_m - 3.0:
            continue
        if k == 0 and style != 'rear':
            _plot(plan, centre, out, yaw, along, across, style)
        plan.take(plot)
        add_building(plan, centre, yaw, along, across, style if k == 0 else 'rear', part)


def _plot(plan, centre, out, yaw, along, across, style):
    """Gardens before and behind a house near a road, as the procedural city lays them."""
    city, rng = plan.city, plan.rng
    middle = centre + out * across / 2
    to_kerb = float(city.kerb_distance.sample(*middle[:, None])[0])
    if not 1.0 < to_kerb < DISTANCE_CAP_M - 1.0:
        return
    pavement = float(city.pavement_width.sample(*middle[:, None])[0])
    lay_gardens(plan, middle + out * to_kerb, -out, yaw, along + rng.uniform(2.0, 5.0),
                min(pavement, to_kerb - 0.5), to_kerb, across, style)
    if to_kerb > pavement + 2.5 and rng.random() < 0.7:
        edge = middle + out * (to_kerb - pavement - 0.7)
        aside = np.array([-out[1], out[0]]) * (along / 2 + 1.0)
        gate = rng.uniform(-0.8, 0.4)
        plan.fences += [(edge - aside, edge + gate * aside),
                        (edge + min(gate + 0.35, 0.9) * aside, edge + aside)]


def footprint_rectangles(mask: np.ndarray) -> list[tuple[np.ndarray, float, float, float]]:
    """Cover a footprint (H, W) by up to six rectangles along its main direction, largest first.

    Each is (centre (2,) as column and row counted from the mask's edge, yaw_rad, along, across),
    in pixels.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contour = max(contours, key=cv2.contourArea)
    outline = cv2.approxPolyDP(contour, 1.6, True)[:, 0].astype(np.float64)
    sides = np.roll(outline, -1, axis=0) - outline
    if len(outline) < 3:
        sides = np.array([[1.0, 0.0]])
    # Sides count by their length, whichever of the four directions they have.
    heading = np.arctan2(sides[:, 1], sides[:, 0])
    weight = np.linalg.norm(sides, axis=1)
    yaw = float(np.angle((weight * np.exp(4j * heading)).sum()) / 4)

    # Turn the mask, then take the largest rectangle again and again.
    reach = int(np.ceil(np.hypot(*mask.shape))) + 2
    cos, sin = np.cos(yaw), np.sin(yaw)
    middle = np.array([mask.shape[1], mask.shape[0]]) / 2 - 0.5
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = np.column_stack((turn, middle - turn @ np.full(2, (reach - 1) / 2)))
    left = cv2.warpAffine(mask * np.uint8(255), matrix, (reach, reach),
                          flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP) > 127
    found, total = [], left.sum()
    for _ in range(6):
        area, r0, r1, c0, c1 = _largest_rectangle(left)
        if area < 20 or area < 0.06 * total or min(r1 - r0, c1 - c0) < 4:
            break
        left[r0:r1, c0:c1] = False
        centre = np.array([(c0 + c1) / 2, (r0 + r1) / 2]) - 0.5
        found.append((matrix[:, :2] @ centre + matrix[:, 2] + 0.5, yaw, float(c1 - c0),
                      float(r1 - r0)))
    return found


def _largest_rectangle(mask):
    """Area, first row, row after the last, and columns likewise, of the largest true rectangle."""
    best = (0, 0, 0, 0, 0)
    heights = [0] * (mask.shape[1] + 1)
    for row, line in enumerate(mask.tolist()):
        heights = [h + 1 if on else 0 for h, on in zip(heights, line)] + [0]
        stack = []  # (first column, height), heights rising
        for col, height in enumerate(heights):
            first = col
            while stack and stack[-1][1] >= height:
                first, tall = stack.pop()
                if tall * (col - first) > best[0]:
                    best = (tall * (col - first), row + 1 - tall, row + 1, first, col)
            stack.append((first, height))
    return best


def _trees(city, tree, rng):
    """Trees in their areas, none nearer than its crown: large ones first (Poisson discs)."""
    room = Raster(cv2.distanceTransform(tree, cv2.DIST_L2, 5) * LAND_PX_M, city.half_m, LAND_PX_M)
    spots = np.argwhere(tree[::4, ::4])  # every metre
    spots = (spots[:, ::-1] * 4 + rng.uniform(0, 4, spots.shape)) * LAND_PX_M - city.half_m
    within = room.sample(*spots.T)
    radius = np.clip(within + 0.4, 0.9, 4.6) * rng.uniform(0.75, 1.0, len(spots))
    on_land = ((city.kerb_distance.sample(*spots.T) > 0.7)
               & (city.building_mask.sample(*spots.T) < 40))
    spots, radius = spots[on_land], radius[on_land]
    order = np.argsort(-radius + rng.normal(0.0, 0.4, len(radius)))
    index = cKDTree(spots)
    free = np.ones(len(spots), bool)
    trees = []
    for k in order:
        if not free[k]:
            continue
        free[index.query_ball_point(spots[k], 1.45 * radius[k])] = False
        rgb = np.array([0.055, 0.095, 0.03]) * rng.uniform(0.7, 1.5) * rng.uniform(0.85, 1.2, 3)
        height = float(np.clip(radius[k] * rng.uniform(2.6, 4.2), 1.5, 16.0))
        trees.append(Tree(*(float(v) for v in spots[k]), height, float(radius[k]), tuple(rgb),
                          bool(rng.random() < 0.15), int(rng.integers(1 << 30))))
    return trees


def _free_slots(city, track):
    """Parking places clear of the driven way and of buildings."""
    near = cKDTree(track)
    return [slot for slot in city.car_slots
            if near.query((slot.x, slot.y))[0] > CAR_M + 0.5 and city.building_mask.sample(
                np.array([slot.x]), np.array([slot.y]))[0] < 100]
