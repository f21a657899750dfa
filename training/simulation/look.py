"""How a view of a place looks: colours, wear, season, light; drawn anew for each view.

In LASTING of the views things have the colours that they have in the place's other views, as real
things do.  The others share where things are and not how bright they are: from above the asphalt
may be lighter than the grass beside it, and darker in the street.  There a matcher learns geometry
and kind, which carry over to pictures that no renderer made.
"""

from dataclasses import dataclass
from datetime import datetime, UTC
from functools import lru_cache

import cv2
import numpy as np

from .appearance import (
    add_bare_twigs,
    add_leaves,
    CAR_RGB,
    Day,
    encode_surface,
    make_car_template,
    make_pyramid,
)
from .city import Raster
from .mesh import Material, Mesh, MeshBuilder, turned
from .place import Ground, Part, Place, PX_M
from .planning.regions import REGIONS
from .renderer import Scene

# Linear albedo of each class of ground: some that occur, of which one is drawn.
_GROUND = {
    Ground.ASPHALT: [(.07, .07, .07), (.11, .11, .11), (.16, .155, .15), (.21, .20, .19),
                     (.14, .115, .105)],
    Ground.DRIVE: [(.06, .06, .06), (.12, .12, .12), (.19, .18, .17)],
    Ground.CONCRETE: [(.34, .33, .30), (.45, .43, .39), (.26, .25, .23), (.40, .36, .30)],
    Ground.PAVING: [(.30, .28, .25), (.26, .15, .11), (.38, .33, .26), (.22, .21, .20)],
    Ground.GRAVEL: [(.32, .29, .25), (.24, .21, .17), (.42, .38, .31), (.30, .20, .13)],
    Ground.SOIL: [(.17, .12, .08), (.26, .17, .10), (.32, .25, .17), (.30, .15, .08)],
    Ground.LAWN: [(.055, .10, .03), (.08, .14, .045), (.11, .16, .06), (.24, .21, .10),
                  (.16, .15, .07)],
    Ground.ROUGH: [(.09, .12, .05), (.20, .18, .09), (.29, .25, .14), (.13, .13, .06)],
    Ground.CROP: [(.06, .11, .03), (.27, .22, .10), (.20, .14, .09), (.12, .15, .05)],
    Ground.KERB: [(.38, .37, .34), (.28, .27, .25), (.46, .44, .41)],
    Ground.WHITE: [(.62, .62, .60), (.75, .75, .73), (.48, .48, .46)],
    Ground.YELLOW: [(.58, .40, .06), (.62, .48, .12), (.45, .30, .05)],
    Ground.COVER: [(.05, .05, .05), (.09, .08, .07), (.16, .13, .11)],
    Ground.BED: [(.10, .07, .05), (.06, .09, .03), (.15, .09, .06), (.09, .12, .06)],
    Ground.GUTTER: [(.32, .31, .29), (.40, .39, .36), (.24, .23, .22)],
    Ground.WATER: [(.02, .12, .16), (.03, .05, .05), (.04, .20, .24)],
}
_GREEN = (Ground.LAWN, Ground.ROUGH, Ground.CROP, Ground.BED)
_GROWN = (*_GREEN, Ground.SOIL, Ground.GRAVEL)     # uneven, with ragged edges
_PARTS = {
    Part.WALL: [(.30, .135, .085), (.52, .44, .32), (.66, .63, .57), (.36, .30, .26),
                (.75, .74, .70), (.20, .16, .13), (.40, .45, .48), (.55, .50, .30)],
    Part.ROOF: [(.095, .10, .115), (.27, .12, .075), (.17, .14, .12), (.36, .35, .33),
                (.22, .22, .22), (.12, .07, .05), (.50, .48, .45), (.35, .17, .10)],
    Part.TRIM: [(.70, .70, .68), (.30, .22, .15), (.10, .12, .10)],
    Part.BARK: [(.12, .09, .06), (.24, .19, .14), (.32, .30, .27), (.06, .05, .04)],
    Part.HEDGE: [(.05, .085, .028), (.09, .13, .05), (.12, .12, .05)],
    Part.FENCE: [(.22, .15, .09), (.35, .30, .24), (.60, .59, .57), (.12, .10, .08)],
    Part.POLE: [(.18, .18, .18), (.40, .40, .40), (.08, .10, .09), (.55, .55, .54)],
    Part.SIGN: [(.02, .10, .40), (.50, .03, .03), (.70, .70, .70), (.60, .45, .05),
                (.05, .25, .10)],
    Part.MASONRY: [(.30, .15, .10), (.45, .43, .40), (.25, .23, .20)],
    Part.DARK: [(.03, .03, .03), (.06, .05, .02)],
}
_NOISE_SIZE = 1024
LASTING = 0.85     # share of the views with the lasting colours of the ground, and of objects
ODD = 0.15         # share of the draws whose ground has colours that no rule limits


@dataclass(frozen=True)
class Look:
    """The appearance of one view; ``albedo`` (kinds of ground, 3) linear."""

    day: Day
    albedo: np.ndarray
    unit_spread: float
    broad: np.ndarray      # (kinds,) strength of mottling over metres
    fine: np.ndarray       # (kinds,) over decimetres
    row_m: float           # spacing of crop rows
    seed: int


def draw_look(place_seed: int, seed, aerial: bool) -> Look:
    """An appearance from the seed of the place and one of the view (anything that numpy takes)."""
    rng = np.random.default_rng(seed)
    lasting = rng.random() < LASTING
    albedo = _draw_albedo(np.random.default_rng([place_seed, 43]) if lasting else rng)
    if rng.random() < 0.05:  # snow
        for kind in (*_GREEN, Ground.SOIL, Ground.GRAVEL):
            albedo[kind] = rng.uniform(0.55, 0.85) * np.array([0.97, 1.0, 1.04])
    albedo *= rng.uniform(0.9, 1.1, (len(Ground), 1)).astype(np.float32)
    return Look(
        _draw_light(rng, aerial), albedo, float(rng.uniform(0.03, 0.22)),
        _draw_mottling(rng), _draw_mottling(rng),
        float(rng.uniform(0.5, 3.0)), int(rng.integers(1 << 31)))


def _draw_albedo(rng) -> np.ndarray:
    """Linear albedo of each kind of ground (kinds, 3)."""
    odd = rng.random() < ODD
    albedo = np.empty((len(Ground), 3), np.float32)
    green = rng.dirichlet([1.0, 1.0, 1.0, 1.2, 0.8])
    for kind in Ground:
        choices = _GROUND[kind]
        pick = rng.choice(len(choices), p=green if len(choices) == 5 and kind in _GREEN else None)
        colour = np.array(choices[pick]) * rng.uniform(0.75, 1.3) * rng.uniform(0.93, 1.07, 3)
        if odd and kind not in (Ground.WHITE, Ground.YELLOW):
            colour = np.exp(rng.uniform(np.log(0.04), np.log(0.5))) * np.exp(
                rng.normal(0.0, 0.25, 3))
        albedo[kind] = colour
    if odd:  # paint stays brighter than what it lies on
        floor = 1.5 * albedo[[Ground.ASPHALT, Ground.CONCRETE, Ground.DRIVE]].max()
        albedo[Ground.WHITE] = max(floor, 0.5) * rng.uniform(0.95, 1.05, 3)
    return albedo


def _draw_mottling(rng) -> np.ndarray:
    """Strength (kinds,): weak on what is paved, strong where something grows."""
    strength = rng.uniform(0.01, 0.10, len(Ground))
    strength[list(_GROWN)] = rng.uniform(0.05, 0.30, len(_GROWN))
    return strength.astype(np.float32)


def _draw_light(rng, aerial: bool) -> Day:
    """Sun anywhere at which one drives by daylight, or none; any white balance; any season."""
    elevation = np.radians(rng.uniform(30.0, 75.0) if aerial else rng.uniform(12.0, 75.0))
    azimuth = rng.uniform(-np.pi, np.pi)
    sun = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth),
                    np.sin(elevation)], np.float32)
    sunny = rng.random() < (0.75 if aerial else 0.6)
    warm = np.clip(1.1 - sun[2], 0.0, 1.0)
    sun_rgb = np.array([1.0, 0.97 - 0.1 * warm, 0.9 - 0.25 * warm]) * rng.uniform(0.8, 1.2)
    sky = np.array([0.20, 0.235, 0.29]) * rng.uniform(0.7, 1.7)
    zenith = np.array([0.22, 0.38, 0.70]) * rng.uniform(0.7, 1.2)
    horizon = np.array([0.68, 0.75, 0.82]) * rng.uniform(0.85, 1.1)
    cloud = rng.uniform(0.0, 0.6)
    if not sunny:
        sun_rgb, cloud = np.zeros(3), 1.0
        sky = np.array([0.97, 0.99, 1.03]) * rng.uniform(0.5, 0.9)
        zenith, horizon = np.array([.80, .83, .87]), np.array([.88, .89, .90])
    leaf = 1.0 if rng.random() < 0.7 else rng.uniform(0.0, 1.0)
    autumn = rng.random() < 0.15
    tint = np.array([2.6, 1.25, 0.7]) if autumn else rng.uniform(0.7, 1.3, 3)
    return Day(
        0, datetime(2020, 7, 1, tzinfo=UTC), sun, sun_rgb.astype(np.float32),
        sky.astype(np.float32), zenith.astype(np.float32), horizon.astype(np.float32),
        float(cloud), float(rng.uniform(300, 4000)), 0.0, float(leaf), tint.astype(np.float32),
        np.ones(3, np.float32), 0.0, (1 + rng.normal(0, 0.05, 3)).astype(np.float32),
        float(rng.uniform(0.3, 0.55)))


@dataclass(frozen=True)
class _Surfaces:
    """What the renderer reads of the ground."""

    land: list[np.ndarray]
    open_sky: Raster
    half_m: float
    road: list[np.ndarray] = ()
    paint: list[np.ndarray] = ()


def make_scene(place: Place, look: Look, keep_clear=()) -> Scene:
    """All that a renderer needs of a place under a look.

    ``keep_clear`` are points (x, y) where cameras stand: no car is put there.
    """
    rng = np.random.default_rng([look.seed, 1])
    builder = MeshBuilder()
    cars = _cars(place, rng, builder, keep_clear)
    _people(place, rng, builder)
    _grow_trees(place, look.day, rng, builder)
    mesh = coloured_mesh(place.mesh, place.groups, place.seed, rng)
    moving = builder.build()
    ground = _ground_colours(place, look, rng)
    shade = _contact_shadows(place.half_m, cars)
    return Scene(
        look.day, mesh + moving, place.walls,
        _Surfaces(make_pyramid(ground), _open_sky(place), place.half_m), None, shade, look.seed)


def coloured_mesh(mesh: Mesh, groups: int, place_seed: int, rng) -> Mesh:
    """Colours for the kinds and groups that stand in a place's mesh.

    A group keeps its colour in LASTING of the views; the others draw their own.
    """
    lasting = np.random.default_rng([place_seed, 41])
    chooser = lasting if rng.random() < LASTING else rng
    part = np.round(mesh.rgb[:, 0]).astype(int)
    group = np.round(mesh.rgb[:, 1]).astype(int)
    rgb = np.empty_like(mesh.rgb)
    few = lasting.integers(2, 9)   # so many colours of a kind in one place
    for kind in Part:
        index = np.flatnonzero(part == kind)
        if not index.size:
            continue
        choices = np.array(_PARTS[kind])
        if chooser is rng and rng.random() < 0.3:
            choices = np.exp(rng.uniform(np.log(0.04), np.log(0.6), (6, 1))) * np.exp(
                rng.normal(0, 0.25, (6, 3)))
        some = choices[chooser.integers(len(choices), size=few)]
        colours = some[chooser.integers(len(some), size=groups)]
        colours = colours * chooser.uniform(0.8, 1.2, (groups, 1)) * rng.uniform(
            0.9, 1.1, (groups, 1)) * rng.uniform(0.85, 1.15)
        rgb[index] = colours[group[index]] * mesh.rgb[index, 2:3]
    ground = mesh.material == Material.LAND
    rgb[ground] = 0.2
    return Mesh(mesh.vertices, mesh.faces, mesh.material, np.clip(rgb, 0.0, 0.9).astype(
        np.float32), mesh.normal, mesh.owner)


def _ground_colours(place: Place, look: Look, rng) -> np.ndarray:
    """Square root of albedo, uint8 RGB, of the ground raster."""
    lasting = np.random.default_rng([place.seed, 42])
    kind, unit = ragged_edges(place)
    count = kind.shape[0]
    units = int(unit.max()) + 1
    shades = np.exp(lasting.normal(0.0, look.unit_spread, units)
                    + rng.normal(0.0, 0.5 * look.unit_spread, units)).astype(np.float32)
    shade = shades[unit]
    tints = rng.normal(0.0, 0.04, (units, 3)).astype(np.float32)
    broad = 0.8 * _noise_of_all_sizes(lasting, count) + 0.6 * _noise_of_all_sizes(rng, count)
    shade *= 1.0 + broad * look.broad[kind]
    fine = (0.5 * _noise_field(lasting, count, 4) + 0.6 * _noise_field(rng, count, 3)
            + 0.6 * _noise_field(rng, count, 1))
    shade *= 1.0 + fine * look.fine[kind]
    keep = rng.uniform(0.3, 1.0)
    shade *= 1.0 + (place.stain.astype(np.float32) / 128.0 - 1.0) * np.float32(keep)
    _add_rows(place, look, shade)
    _add_stains(rng, shade)
    rgb = look.albedo[kind]
    paint = (kind == Ground.WHITE) | (kind == Ground.YELLOW)
    if paint.any():  # worn paint lets the road through
        wear = rng.uniform(0.0, 0.9)
        left = np.clip(1.0 - wear * (0.6 + 0.6 * fine + 0.4 * broad), 0.05, 1.0)[paint][:, None]
        road = look.albedo[Ground.ASPHALT]
        rgb[paint] = rgb[paint] * left + road * (1.0 - left)
        shade[paint] = 0.5 + 0.5 * shade[paint]
    rgb *= np.clip(shade, 0.25, 3.0)[..., None]
    rgb *= (1.0 + tints)[unit]
    image = encode_surface(rgb)
    # Edges as drawn are a pixel sharp; a little blur keeps them from aliasing.
    return cv2.GaussianBlur(image, (0, 0), 0.6)


@lru_cache(maxsize=1)  # all views of a place ask for the same
def ragged_edges(place: Place) -> tuple[np.ndarray, np.ndarray]:
    """Kind and unit of the ground, with ragged edges where something grows or lies loose."""
    lasting = np.random.default_rng([place.seed, 44])
    count = place.kind.shape[0]
    spread_m = lasting.uniform(0.02, 0.25)
    shift = [np.float32(spread_m / PX_M) * (
        0.6 * _noise_field(lasting, count, 2) + 0.8 * _noise_field(lasting, count, 12))
        for _ in range(2)]
    rows, cols = np.indices((count, count), np.float32)
    col, row = cols + shift[0], rows + shift[1]

    def shifted(raster):
        return cv2.remap(raster, col, row, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)

    loose = (*_GROWN, Ground.ASPHALT)
    kind = shifted(place.kind)
    moves = np.isin(place.kind, loose) & np.isin(kind, loose)
    return np.where(moves, kind, place.kind), np.where(moves, shifted(place.unit), place.unit)


def _noise_of_all_sizes(rng, count: int) -> np.ndarray:
    """Noise of unit variance with features of 0.6 to 10 m, as grass and soil have them."""
    sizes = (6, 12, 25, 50, 100)
    return sum(_noise_field(rng, count, cells) for cells in sizes) / np.float32(len(sizes) ** 0.5)


def _noise_field(rng, count: int, cells: float) -> np.ndarray:
    """(count, count) float32 of unit variance; features of about ``cells`` pixels."""
    small = min(int(count / cells) + 3, _NOISE_SIZE)
    noise = rng.standard_normal((small, small), np.float32)
    field = cv2.resize(noise, (count, count), interpolation=cv2.INTER_CUBIC if cells > 2
                       else cv2.INTER_LINEAR)
    return field / max(float(field[::7, ::7].std()), 1e-6)


def _add_rows(place: Place, look: Look, shade) -> None:
    """Rows of a crop, or the lines of a mower."""
    crop = place.kind == Ground.CROP
    if not crop.any():
        return
    count = place.kind.shape[0]
    direction = cv2.resize(place.direction, (count, count), interpolation=cv2.INTER_NEAREST)
    y, x = np.nonzero(crop)
    angle = direction[crop]
    across = (x * np.cos(angle) + y * np.sin(angle)) * 0.1
    shade[crop] *= 1.0 + 0.3 * np.sin(across * (2 * np.pi / look.row_m)).astype(np.float32)


def _add_stains(rng, shade) -> None:
    """Dark or light spots and leaves of one day: not the same in any two views."""
    count = shade.shape[0]
    layer = np.full((count // 2, count // 2), 128, np.uint8)
    for _ in range(rng.poisson(rng.choice([5.0, 60.0, 250.0]))):
        centre = rng.integers(0, count // 2, 2)
        axes = np.maximum(1, np.exp(rng.normal(1.6, 0.8, 2))).astype(int)
        value = int(128 + rng.choice([-1, 1], p=[0.7, 0.3]) * rng.uniform(8, 50))
        cv2.ellipse(layer, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360,
                    value, -1)
    layer = cv2.GaussianBlur(layer, (0, 0), 1.5)
    shade *= cv2.resize(layer, (count, count)).astype(np.float32) / 128.0


def _open_sky(place: Place) -> Raster:
    """Ambient light is lost near walls: a blurred building mask."""
    mask = place.building_mask.data.astype(np.float32) / 255
    near, wide = cv2.GaussianBlur(mask, (0, 0), 2.0), cv2.GaussianBlur(mask, (0, 0), 7.0)
    return Raster((255 * np.clip(1 - 0.35 * near - 0.45 * wide, 0.3, 1)).astype(np.uint8),
                  place.half_m, 1.0)


def _contact_shadows(half_m: float, cars) -> Raster:
    count = int(round(2 * half_m / 0.5))
    mask = np.zeros((count, count), np.uint8)
    raster = Raster(mask, half_m, 0.5)
    corners = np.array([(2.1, 0.85), (-2.1, 0.85), (-2.1, -0.85), (2.1, -0.85)])
    for x, y, yaw in cars:
        cos, sin = np.cos(yaw), np.sin(yaw)
        polygon = corners @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
        cv2.fillPoly(mask, [np.round(raster.pixel(polygon) * 16).astype(np.int32)], 255,
                     cv2.LINE_AA, 4)
    return Raster(255 - cv2.GaussianBlur(mask, (0, 0), 0.8) // 5 * 4, half_m, 0.5)


# --- what moves between views ------------------------------------------------------------------

def _cars(place: Place, rng, builder: MeshBuilder, keep_clear) -> list:
    """Parked and driving cars, vans, and trucks; none within 4 m of a camera."""
    clear = np.asarray(keep_clear, float).reshape(-1, 2)
    spots = [(slot.x, slot.y, slot.yaw) for slot in place.car_slots if rng.random() < slot.use]
    traffic = rng.choice([0.0, 0.02, 0.08])
    spots += [(s.x, s.y, s.yaw) for s in place.lane_spots if rng.random() < traffic]
    kinds = ('hatch', 'saloon', 'estate', 'van')
    templates = [make_car_template(kind) for kind in kinds]
    placed = []
    for x, y, yaw in spots:
        x, y = x + rng.normal(0, 0.25), y + rng.normal(0, 0.25)
        if len(clear) and np.hypot(*(clear - (x, y)).T).min() < 4.0:
            continue
        if max(abs(x), abs(y)) > place.half_m - 3.0:
            continue
        if placed and min(abs(x - a) + abs(y - b) for a, b, _ in placed) < 3.0:
            continue
        yaw = yaw + rng.normal(0, 0.03)
        around = place.ground(np.array([x, x + 1, x]), np.array([y, y, y + 1]))
        slope = np.clip(around[1:] - around[0], -0.15, 0.15)
        vertices, faces, material, rgb = templates[rng.choice(4, p=[0.35, 0.3, 0.25, 0.1])]
        vertices = vertices * (rng.uniform(0.95, 1.2), rng.uniform(0.98, 1.1),
                               rng.uniform(0.95, 1.3) if rng.random() < 0.8 else 1.5)
        if rng.random() < REGIONS[place.region].trucks:  # or buses
            vertices = vertices * (1.9, 1.25, 1.7)
        body = turned(vertices, yaw)
        body[:, 2] += body[:, :2] @ slope + around[0]
        body[:, :2] += (x, y)
        colour = CAR_RGB[rng.integers(len(CAR_RGB))] if rng.random() < 0.8 else rng.uniform(
            0.02, 0.6, 3)
        builder.add(body, faces, material,
                    np.where(np.isnan(rgb), colour * rng.uniform(0.7, 1.3), rgb))
        placed.append((x, y, yaw))
    return placed


def _people(place: Place, rng, builder: MeshBuilder) -> None:
    """Boxes as large as people, on foot or on bicycles."""
    for _ in range(rng.poisson(REGIONS[place.region].people)):
        if not place.lane_spots:
            return
        spot = place.lane_spots[rng.integers(len(place.lane_spots))]
        x, y = spot.x + rng.normal(0, 4.0), spot.y + rng.normal(0, 4.0)
        z = float(place.ground(np.array([x]), np.array([y]))[0])
        yaw, height = rng.uniform(0, 2 * np.pi), rng.uniform(1.5, 1.9)
        builder.box((x, y, z), yaw, (0.3, 0.45, 0.5 * height), Material.PLAIN,
                    rng.uniform(0.02, 0.3, 3))
        builder.box((x, y, z + 0.5 * height), yaw, (0.3, 0.5, 0.36 * height), Material.PLAIN,
                    rng.uniform(0.02, 0.6, 3), 0.8)
        builder.box((x, y, z + 0.86 * height), yaw, (0.2, 0.2, 0.14 * height), Material.PLAIN,
                    (0.35, 0.22, 0.15))


def _grow_trees(place: Place, day: Day, rng, builder: MeshBuilder) -> None:
    """Trunk, boughs and leaves (loose triangles on clumps), by the shape of the crown."""
    base = np.array([(0.05, 0.09, 0.03), (0.07, 0.11, 0.05), (0.10, 0.12, 0.06),
                     (0.04, 0.06, 0.03)][rng.integers(4)])
    points, normals, sizes, colours = [], [], [], []
    for tree in place.trees:
        own = np.random.default_rng([tree.seed, 8])
        if rng.random() < 0.06:  # felled or not yet planted
            continue
        z = float(place.ground(np.array([tree.x]), np.array([tree.y]))[0]) - 0.1
        grown = rng.uniform(0.85, 1.1)
        h, r = tree.height_m * grown, tree.crown_m * grown
        clear = 0.08 * h if h < 2.5 else {
            'cone': 0.1 * h, 'column': 0.12 * h, 'palm': 0.85 * h,
        }.get(tree.shape, min(own.uniform(0.15, 0.42) * h, 4.0))
        bark = np.array([0.11, 0.085, 0.06]) * own.uniform(0.6, 2.2)
        thick = 0.03 * h + 0.05
        builder.box((tree.x, tree.y, z), own.uniform(0, 1.5),
                    (thick, thick, 0.7 * h + 0.3 * clear), Material.PLAIN, bark, 0.5)
        clumps = own.integers(6, 12)
        tall = (h - clear) / 2
        if tree.shape in ('cone', 'column'):
            level = np.linspace(0.05, 0.95, clumps)
            width = (1.0 - level) * 0.75 + 0.1 if tree.shape == 'cone' else np.full(clumps, 0.5)
            angle = own.uniform(0, 2 * np.pi, clumps)
            centres = np.stack((
                tree.x + 0.4 * r * width * np.cos(angle), tree.y + 0.4 * r * width * np.sin(angle),
                z + clear + level * 2 * tall), 1)
            radius = np.maximum(r * width, 0.2)
        else:
            direction = own.normal(size=(clumps, 3))
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            middle = np.array([tree.x, tree.y, z + clear + tall])
            centres = middle + direction * np.array([0.62 * r, 0.62 * r, 0.6 * tall])
            radius = own.uniform(0.42, 0.62, clumps) * np.clip(min(r, tall), 0.25, None)
        middle = np.array([tree.x, tree.y, z + clear + tall])
        foot = np.array([tree.x, tree.y, z + 0.8 * clear])
        density = 1.0 if tree.evergreen else day.leaf
        if density < 0.3:
            add_bare_twigs(builder, rng, foot, centres, radius, bark)
            continue
        count = (90 * density * np.clip(radius / 1.2, 0.4, 2.0) ** 1.5).astype(int) + 4
        of = np.repeat(np.arange(clumps), count)
        out = rng.normal(size=(of.size, 3))
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        points.append(centres[of] + out * radius[of, None] * rng.uniform(0.6, 1.1, (of.size, 1)))
        outward = points[-1] - middle
        outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-6
        normals.append(outward + 0.5 * out + 0.35 * rng.normal(size=out.shape))
        sizes.append(np.full(of.size, np.clip(radius.mean() / 0.9, 0.25, 1.6)))
        tint = np.ones(3) if tree.evergreen else day.leaf_tint
        colours.append(base * np.array(tree.rgb) * tint * rng.uniform(0.6, 1.4, (of.size, 1)))
    if not points:
        return
    colours = [np.clip(rgb, 0.01, 0.6) for rgb in colours]
    add_leaves(builder, rng, points, normals, colours, np.concatenate(sizes), (0.22, 0.45))
