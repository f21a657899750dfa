"""A day in the city: light, season, weather, wear, and everything that moves between days.

A day follows from (city seed, day number).  What an aerial image would not resolve is not here:
grain below about 0.3 m is drawn by the renderer from the view's own seed.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta, UTC

import cv2
import numpy as np

from .city import City, encode_albedo, LAND_PX_M, MARKING_PX_M, Raster
from .mesh import box_mesh, Material, Mesh, MeshBuilder, turned

MIP_LEVELS = 6


@dataclass(frozen=True)
class Day:
    """What the sky, the season and the cameras are like; colours are linear RGB."""

    number: int
    start: datetime
    sun: np.ndarray          # unit vector towards the sun
    sun_rgb: np.ndarray      # what a white surface facing the sun reflects of it; 0 when overcast
    sky_rgb: np.ndarray      # ambient light on a surface facing up
    zenith_rgb: np.ndarray
    horizon_rgb: np.ndarray
    cloud: float             # fraction of sky covered
    haze_m: float            # distance at which 63 % is haze
    wet: float               # 0 dry to 1 wet
    leaf: float              # foliage of deciduous trees, 0 bare to 1 full
    leaf_tint: np.ndarray
    grass_tint: np.ndarray
    wear: float              # 0 fresh markings to 1 nearly gone
    gains: np.ndarray        # white balance of this day's camera
    brightness: float        # auto-exposure target

    def summary(self) -> dict:
        return {
            'number': self.number, 'start': self.start.isoformat(),
            'sun_elevation_deg': round(float(np.degrees(np.arcsin(self.sun[2]))), 2),
            'sunny': bool(self.sun_rgb.max() > 0), 'cloud': round(self.cloud, 2),
            'wet': round(self.wet, 2), 'foliage': round(self.leaf, 2),
            'marking_wear': round(self.wear, 2),
        }


def draw_day(seed: int, number: int, aerial: bool = False) -> Day:
    """The day of this number; aerial imagery is flown near noon between March and October."""
    rng = np.random.default_rng([seed, 2, number])
    month = int(rng.integers(3, 11)) if aerial else int(rng.integers(1, 13))
    hour = rng.uniform(10.0, 14.0) if aerial else rng.uniform(9.0, 15.5)
    start = datetime(2014, month, int(rng.integers(1, 28)), tzinfo=UTC)
    start += timedelta(days=365 * int(rng.integers(0, 2)), seconds=int(hour * 3600))
    sun = sun_direction(start)
    if sun[2] < 0.17:  # too low for a drive by daylight: move to noon
        start = start.replace(hour=12)
        sun = sun_direction(start)
    sunny = rng.random() < (0.6 if aerial else 0.5)
    cloud = rng.uniform(0.05, 0.6) if sunny else 1.0
    warm = np.clip(1.15 - sun[2], 0.0, 1.0)
    sun_rgb = np.array([1.0, 0.97 - 0.10 * warm, 0.90 - 0.25 * warm]) * rng.uniform(0.85, 1.1)
    sky = np.array([0.20, 0.235, 0.29]) * rng.uniform(0.8, 1.2) + 0.05 * cloud
    zenith, horizon = np.array([0.22, 0.38, 0.70]), np.array([0.68, 0.75, 0.82])
    if not sunny:
        grey = rng.uniform(0.5, 0.8)
        sun_rgb, sky = np.zeros(3), np.array([0.97, 0.99, 1.03]) * grey
        zenith, horizon = np.array([0.80, 0.83, 0.87]), np.array([0.88, 0.89, 0.90])
    summer = np.cos((month - 7.0) / 12 * 2 * np.pi)  # +1 in July
    leaf = float(np.clip(0.55 + 0.75 * summer + rng.normal(0, 0.1), 0.0, 1.0))
    autumn = float(np.clip(1.3 - abs(month - 10.5) / 1.3, 0, 1)) * rng.uniform(0.4, 1.0)
    leaf_tint = (np.array([1.0, 1.0, 1.0]) * (1 - autumn) + np.array([2.6, 1.25, 0.7]) * autumn)
    dry = rng.uniform(0, 1) * max(summer, 0)
    grass_tint = np.array([1 + 0.7 * dry, 1 + 0.2 * dry, 1 + 0.1 * dry]) * rng.uniform(0.8, 1.2)
    wet = 0.0
    if not aerial and rng.random() < (0.1 if sunny else 0.4):
        wet = rng.uniform(0.3, 1.0)
    return Day(
        number, start, sun.astype(np.float32), sun_rgb.astype(np.float32), sky.astype(np.float32),
        zenith.astype(np.float32), horizon.astype(np.float32), float(cloud),
        float(rng.uniform(500, 3000)), float(wet), leaf, leaf_tint.astype(np.float32),
        grass_tint.astype(np.float32), float(rng.uniform(0.1, 0.75)),
        (1 + rng.normal(0, 0.03, 3)).astype(np.float32), float(rng.uniform(0.34, 0.48)),
    )


def sun_direction(when: datetime, latitude_deg=51.7606, longitude_deg=-1.261) -> np.ndarray:
    """Unit vector (east, north, up) to the sun; cosine formula for the declination, to 1 deg."""
    day = when.timetuple().tm_yday
    declination = np.radians(-23.44) * np.cos(2 * np.pi / 365 * (day + 10))
    hour_angle = np.radians(15.0 * (when.hour + when.minute / 60 - 12.0) + longitude_deg)
    latitude = np.radians(latitude_deg)
    return np.array([
        -np.cos(declination) * np.sin(hour_angle),
        np.cos(latitude) * np.sin(declination)
        - np.sin(latitude) * np.cos(declination) * np.cos(hour_angle),
        np.sin(latitude) * np.sin(declination)
        + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle),
    ])


# --- surfaces ----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Surfaces:
    """Mip pyramids (level 0 first) and rasters the renderer reads."""

    road: list[np.ndarray]      # square root of albedo, uint8 RGB, LAND_PX_M
    land: list[np.ndarray]
    paint: list[np.ndarray]     # coverage by white and yellow paint, uint8 (H, W, 2), MARKING_PX_M
    open_sky: Raster            # fraction of ambient light that reaches the ground, uint8
    half_m: float


def smooth_noise(rng, count, cells, octaves=1):
    """(count, count) float32 of unit variance, ``cells`` features across, and finer octaves."""
    total = np.zeros((count, count), np.float32)
    for k in range(octaves):
        coarse = rng.standard_normal((min(count, int(cells * 2 ** k) + 2),) * 2).astype(np.float32)
        total += cv2.resize(coarse, (count, count), interpolation=cv2.INTER_CUBIC) / 2 ** k
    return total / max(float(total.std()), 1e-6)


def surfaces(city: City, day: Day) -> Surfaces:
    shared = np.random.default_rng([city.seed, 3])
    rng = np.random.default_rng([city.seed, 4, day.number])
    count = city.land_rgb.data.shape[0]
    across = 2 * city.half_m
    distance = cv2.resize(city.kerb_distance.data, (count, count))

    # Carriageway: one asphalt with patches, tracks and stains; about half of them last over days.
    base = shared.uniform(0.075, 0.16)
    tint = np.array([1.0, 1.0, 1.0]) + shared.normal(0, 0.035, 3)
    shade = 1 + 0.10 * smooth_noise(shared, count, across / 40)
    shade += 0.05 * smooth_noise(rng, count, across / 12) + 0.05 * smooth_noise(
        rng, count, across / 1.5)
    for generator, patches in ((shared, 5), (rng, 3)):
        _patches(generator, city, shade, patches)
    _lane_tracks(city, shade)
    gutter = np.exp(-np.clip(-distance, 0, None) / 0.35)
    shade *= 1 - rng.uniform(0.05, 0.3) * gutter
    shade *= 1 - 0.4 * day.wet * np.clip(0.8 + 0.3 * smooth_noise(rng, count, across / 6), 0, 1)
    road = encode_surface(shade[..., None] * (base * tint).astype(np.float32))
    road = _covers(shared, city, road)

    # Land: gardens of the city under the day's season, pavements over them.
    land = (city.land_rgb.data.astype(np.float32) / 255) ** 2
    grass = city.land_grass.data.astype(np.float32)[..., None] / 255
    land *= 1 + grass * (day.grass_tint - 1)
    mottle = 0.10 * smooth_noise(shared, count, across / 15) + 0.07 * smooth_noise(
        rng, count, across / 5) + 0.08 * smooth_noise(rng, count, across / 1.0)
    land *= (1 + mottle)[..., None]
    pave = cv2.resize(city.pavement_width.data, (count, count))
    slab = (np.array([0.30, 0.285, 0.26]) * shared.uniform(0.65, 1.15)).astype(np.float32)
    slab = slab * (1 + 0.09 * smooth_noise(shared, count, across / 30)
                   + 0.05 * smooth_noise(rng, count, across / 2.5))[..., None]
    if day.wet:
        slab *= 1 - 0.35 * day.wet
    on = np.clip((pave - distance) / LAND_PX_M + 0.5, 0, 1)[..., None]
    land = land * (1 - on) + slab * on
    kerb = np.clip((0.15 - distance) / LAND_PX_M + 0.5, 0, 1)[..., None]
    land = land * (1 - kerb) + np.float32(0.34) * kerb
    land = encode_surface(land)

    return Surfaces(make_pyramid(road), make_pyramid(land), make_pyramid(_paint(city, rng)),
                    _open_sky(city), city.half_m)


def encode_surface(albedo):
    albedo = np.clip(albedo, 0, 1).astype(np.float32)
    return cv2.convertScaleAbs(cv2.sqrt(albedo), alpha=255.0)


def make_pyramid(image):
    levels = [np.ascontiguousarray(image)]
    for _ in range(MIP_LEVELS - 1):
        height, width = levels[-1].shape[:2]
        levels.append(cv2.resize(levels[-1], (width // 2, height // 2),
                                 interpolation=cv2.INTER_AREA))
    return levels


def _patches(rng, city, shade, per_street):
    """Trenches and resurfaced stretches: rectangles along the streets, darker or lighter."""
    for street in city.streets:
        for _ in range(rng.poisson(per_street)):
            s = rng.uniform(0, street.line.length)
            length, width = (rng.uniform(1, 5), rng.uniform(0.6, 2.5))
            if rng.random() < 0.15:
                length = rng.uniform(10, 40)
            left = rng.uniform(-1, 1) * street.half_width_m
            if rng.random() < 0.06:
                left, width = 0.0, 2 * street.half_width_m + 1
            ends = np.clip([s, s + length], 0, street.line.length)
            run = np.linspace(*ends, max(2, int(length / 3)))
            polygon = np.concatenate((
                street.line.offset(run, np.full(run.size, left + width / 2)),
                street.line.offset(run, np.full(run.size, left - width / 2))[::-1]))
            pixels = np.round(city.land_rgb.pixel(polygon) * 16).astype(np.int32)
            low = np.clip((pixels.min(0) >> 4) - 1, 0, shade.shape[0] - 1)
            high = np.clip((pixels.max(0) >> 4) + 2, 1, shade.shape[0])
            mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
            if mask.size == 0:
                continue
            cv2.fillPoly(mask, [pixels - (low << 4).astype(np.int32)], 255, cv2.LINE_AA, 4)
            shade[low[1]:high[1], low[0]:high[0]] *= 1 + (
                rng.choice([-1, 1], p=[0.65, 0.35]) * rng.uniform(0.08, 0.4)) * (
                    mask / np.float32(255))


def _lane_tracks(city, shade):
    """The middle of each lane is a little darker (oil), the wheel tracks a little polished."""
    layer = np.zeros(shade.shape, np.uint8)
    for street in city.streets:
        s = np.arange(0, street.line.length, 2.0)
        for side in (-1, 1):
            line = street.line.offset(s, np.full(s.size, side * street.lane_m / 2))
            pixels = np.round(city.land_rgb.pixel(line) * 16).astype(np.int32)
            cv2.polylines(layer, [pixels], False, 255, 3, cv2.LINE_AA, 4)
    shade *= 1 - 0.10 * cv2.GaussianBlur(layer, (0, 0), 1.5).astype(np.float32) / 255


def _covers(rng, city, road):
    """Manhole covers and drain grates: seen from the air as well."""
    for street in city.streets:
        for _ in range(rng.poisson(street.line.length / 18)):
            s = rng.uniform(0, street.line.length)
            spot = street.line.offset(s, rng.uniform(-0.9, 0.9) * street.half_width_m)
            col, row = np.round(city.land_rgb.pixel(spot) * 16).astype(int)
            shade = [int(v) for v in encode_albedo(np.ones(3) * rng.uniform(0.03, 0.07))]
            cv2.circle(road, (col, row), int(rng.uniform(0.28, 0.42) / LAND_PX_M * 16), shade, -1,
                       cv2.LINE_AA, 4)
    return road


def _paint(city, rng):
    """Coverage by white and yellow paint, drawn at four times the resolution; a few are gone."""
    count, fine = int(round(2 * city.half_m / MARKING_PX_M)), 4
    paint = np.zeros((count, count, 2), np.uint8)
    gone = rng.random(len(city.markings)) < rng.uniform(0.0, 0.12)
    for marking, lost in zip(city.markings, gone, strict=True):
        if lost:
            continue
        pixels = (marking.polygon + city.half_m) * (fine / MARKING_PX_M) - 0.5
        low = np.clip(np.floor(pixels.min(0) / fine).astype(int) - 1, 0, count - 1)
        high = np.clip(np.ceil(pixels.max(0) / fine).astype(int) + 2, low + 1, count)
        width, height = fine * (high - low)
        tile = np.zeros((height, width), np.uint8)
        cv2.fillPoly(tile, [np.round((pixels - fine * low) * 16).astype(np.int32)], 255,
                     cv2.LINE_8, 4)
        tile = cv2.resize(tile, None, fx=1 / fine, fy=1 / fine, interpolation=cv2.INTER_AREA)
        view = paint[low[1]:high[1], low[0]:high[0], int(marking.yellow)]
        np.maximum(view, tile, out=view)
    return paint


def wear_field(city: City, day: Day) -> Raster:
    """Fraction of paint left, uint8: patchy at a metre and over whole stretches."""
    rng = np.random.default_rng([city.seed, 5, day.number])
    count = int(round(2 * city.half_m / 0.5))
    field = 0.5 * smooth_noise(rng, count, city.half_m / 30) + 0.6 * smooth_noise(
        rng, count, city.half_m)
    left = np.clip(1.0 - day.wear * (0.55 + 0.45 * field), 0.05, 1.0)
    return Raster((left * 255).astype(np.uint8), city.half_m, 0.5)


def _open_sky(city):
    """Ambient light is lost near walls: a blurred building mask."""
    mask = city.building_mask.data.astype(np.float32) / 255
    near, wide = cv2.GaussianBlur(mask, (0, 0), 2.0), cv2.GaussianBlur(mask, (0, 0), 7.0)
    return Raster((255 * np.clip(1 - 0.35 * near - 0.45 * wide, 0.3, 1)).astype(np.uint8),
                  city.half_m, 1.0)


# --- what moves between days -------------------------------------------------------------------

def day_mesh(city: City, day: Day) -> tuple[Mesh, list[tuple[float, float, float]]]:
    """Parked cars, foliage and roadworks; and the cars' (x, y, yaw) for their contact shadows."""
    rng = np.random.default_rng([city.seed, 6, day.number])
    builder = MeshBuilder()
    cars = _parked_cars(city, rng, builder)
    _trees(city, day, rng, builder)
    _roadworks(city, rng, builder)
    return builder.build(), cars


CAR_RGB = np.array([
    (0.55, 0.55, 0.56), (0.30, 0.31, 0.33), (0.03, 0.03, 0.035), (0.70, 0.70, 0.70),
    (0.03, 0.06, 0.20), (0.30, 0.02, 0.02), (0.12, 0.13, 0.14), (0.05, 0.12, 0.08),
    (0.45, 0.38, 0.26), (0.10, 0.22, 0.42),
])


def make_car_template(kind):
    """A car along +x on z = 0: vertices, faces, and a triangle's material and colour.

    NaN stands for the colour of the individual car.
    """
    paint = (np.nan,) * 3
    length, width, belt, top, nose, cabin = {
        'hatch': (3.9, 1.72, 0.92, 1.46, 0.98, (0.95, -1.85, 0.25, -1.45)),
        'saloon': (4.5, 1.78, 0.92, 1.42, 1.20, (0.85, -1.55, 0.15, -0.95)),
        'estate': (4.6, 1.80, 1.0, 1.62, 1.15, (1.00, -2.2, 0.30, -1.95)),
        'van': (4.9, 1.90, 1.15, 1.98, 0.80, (1.60, -2.4, 1.00, -2.35)),
    }[kind]
    half, w = length / 2, width / 2
    profile = np.array([(half, 0.22), (half + 0.03, 0.55), (half - 0.12, belt - 0.2),
                        (half - nose, belt), (-half + 0.1, belt + 0.03),
                        (-half - 0.02, belt - 0.3), (-half + 0.02, 0.25)])
    n = len(profile)
    body = np.concatenate([np.column_stack((profile[:, 0], np.full(n, s * w), profile[:, 1]))
                           for s in (1, -1)])
    faces = [[0, k, k + 1] for k in range(1, n - 1)]
    faces += [[n, n + k + 1, n + k] for k in range(1, n - 1)]
    for k in range(n):
        j = (k + 1) % n
        faces += [[k, n + k, n + j], [k, n + j, j]]
    front, rear, roof_front, roof_rear = cabin
    low, high = 0.94 * w, 0.76 * w
    glass = np.array([(front, -low, belt), (front, low, belt), (rear, low, belt + 0.02),
                      (rear, -low, belt + 0.02), (roof_front, -high, top), (roof_front, high, top),
                      (roof_rear, high, top), (roof_rear, -high, top)])
    sides = [[0, 1, 5], [0, 5, 4], [1, 2, 6], [1, 6, 5],
             [2, 3, 7], [2, 7, 6], [3, 0, 4], [3, 4, 7]]
    roof = ([[4, 5, 6], [4, 6, 7]], Material.PAINT, paint)
    if kind == 'van':  # windows in front only
        parts = [(glass, sides[:2], Material.GLASS, (0.03,) * 3),
                 (glass, sides[2:], Material.PAINT, paint), (glass, *roof)]
    else:
        parts = [(glass, sides, Material.GLASS, (0.03,) * 3), (glass, *roof)]
    parts.append((body, faces, Material.PAINT, paint))
    for y in (w - 0.08, -w + 0.08):
        for x in (half - 0.75, -half + 0.8):
            parts.append((*box_mesh((x, y, 0.0), 0.0, (0.64, 0.2, 0.62)), Material.PLAIN,
                          (0.015,) * 3))
    for y in (w - 0.3, -w + 0.3):
        parts.append((*box_mesh((half - 0.03, y, 0.55), 0.0, (0.14, 0.36, 0.16)), Material.PLAIN,
                      (0.75,) * 3))
        parts.append((*box_mesh((-half + 0.02, y, 0.62), 0.0, (0.1, 0.28, 0.2)), Material.PLAIN,
                      (0.45, 0.02, 0.02)))
    first = np.cumsum([0] + [len(part[0]) for part in parts])
    count = [len(part[1]) for part in parts]
    return (np.concatenate([part[0] for part in parts]),
            np.concatenate([np.asarray(p[1]) + k for p, k in zip(parts, first, strict=False)]),
            np.repeat([int(part[2]) for part in parts], count),
            np.repeat([part[3] for part in parts], count, axis=0))


def _parked_cars(city, rng, builder):
    """About half of the taken places keep their car from day to day, the rest is drawn anew."""
    lasting = np.random.default_rng([city.seed, 7])
    kinds, chance = ('hatch', 'saloon', 'estate', 'van'), (0.42, 0.25, 0.25, 0.08)
    templates = {kind: make_car_template(kind) for kind in kinds}
    parked = []
    for slot in city.car_slots:
        draws = [(g.random(), g.choice(4, p=chance), g.integers(len(CAR_RGB)),
                  g.normal(0, 1, 3), g.uniform(0.7, 1.3)) for g in (lasting, rng)]
        use, kind, colour, shift, shade = draws[int(rng.random() < 0.5)]
        if use > slot.use:
            continue
        x, y = slot.x + 0.25 * shift[0] * np.cos(slot.yaw), slot.y + 0.25 * shift[0] * np.sin(
            slot.yaw)
        yaw = slot.yaw + 0.02 * shift[1]
        parked.append((x, y, yaw))
        around = np.array([(x, y), (x + 1, y), (x, y + 1)])
        ground = city.terrain(around[:, 0], around[:, 1])
        z = float(city.ground(np.array([x]), np.array([y]))[0])
        slope = ground[1:] - ground[0]
        vertices, faces, material, rgb = templates[kinds[kind]]
        placed = turned(vertices, yaw)
        placed[:, 2] += placed[:, :2] @ slope + z
        placed[:, :2] += (x, y)
        builder.add(placed, faces, material,
                    np.where(np.isnan(rgb), CAR_RGB[colour] * shade, rgb))
    return parked


def _trees(city, day, rng, builder):
    """Trunk, boughs to a few clumps, and leaves: loose triangles on the clumps' surfaces."""
    points, normals, sizes, colours = [], [], [], []
    for tree in city.trees:
        own = np.random.default_rng([tree.seed, 8])
        if rng.random() < 0.04:  # felled or not yet planted
            continue
        z = float(city.ground(np.array([tree.x]), np.array([tree.y]))[0]) - 0.1
        h, r = tree.height_m, tree.crown_m
        clear = min(0.42 * h, 3.2) if h > 5 else 0.25 * h
        bark = np.array([0.11, 0.085, 0.06]) * own.uniform(0.6, 1.3)
        thick = 0.035 * h + 0.05
        builder.box((tree.x, tree.y, z), own.uniform(0, 1.5), (thick, thick, 0.65 * h),
                    Material.PLAIN, bark, 0.45)
        clumps = own.integers(5, 10)
        direction = own.normal(size=(clumps, 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        middle = np.array([tree.x, tree.y, z + clear + (h - clear) / 2])
        tall = (h - clear) / 2
        centres = middle + direction * np.array([0.62 * r, 0.62 * r, 0.6 * tall])
        radius = own.uniform(0.42, 0.62, clumps) * min(r, tall)
        foot = np.array([tree.x, tree.y, z + 0.8 * clear])
        run = centres - foot
        thin = 0.022 * h * np.array([1.0, 0.0, 0.0])
        for turn in (thin, thin[[1, 0, 2]]):
            builder.quads(np.stack((foot - turn + 0 * run, foot + turn + 0 * run,
                                    centres + turn / 4, centres - turn / 4), 1),
                          Material.PLAIN, bark)
        density = 1.0 if tree.evergreen else day.leaf
        twigs = density < 0.3
        if twigs:
            add_bare_twigs(builder, rng, foot, centres, radius, bark)
            continue
        count = (80 * density * np.clip(radius / 1.2, 0.5, 2.0) ** 1.5).astype(int)
        of = np.repeat(np.arange(clumps), count)
        out = rng.normal(size=(of.size, 3))
        out /= np.linalg.norm(out, axis=1, keepdims=True)
        points.append(centres[of] + out * radius[of, None] * rng.uniform(0.6, 1.1, (of.size, 1)))
        outward = points[-1] - middle
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        normals.append(outward + 0.5 * out + 0.35 * rng.normal(size=out.shape))
        sizes.append(np.full(of.size, np.clip(r / 2.4, 0.5, 1.2)))
        tint = np.ones(3) if tree.evergreen else day.leaf_tint
        colours.append(np.array(tree.rgb) * tint * rng.uniform(0.65, 1.35, (of.size, 1)))
    if not points:
        return
    add_leaves(builder, rng, points, normals, colours, np.concatenate(sizes), (0.34, 0.62))


def add_leaves(builder, rng, points, normals, colours, sizes, size_m) -> None:
    """Add one triangle per clump of leaves, in the plane of a random direction of its own.

    ``points``, ``normals`` and ``colours`` are lists of (n, 3), one per tree.  ``sizes`` (m,) of
    all clumps are factors on a size drawn between the two of ``size_m``.
    """
    points, normals = np.concatenate(points), np.concatenate(normals)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    a = rng.normal(size=points.shape)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    b = np.cross(a, normals + 0.6 * rng.normal(size=points.shape))
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    size = (sizes * rng.uniform(*size_m, len(points)))[:, None]
    corners = np.stack((points - size * a, points + size * (0.5 * a + 0.8 * b),
                        points + size * (0.5 * a - 0.8 * b)), 1)
    builder.add(corners.reshape(-1, 3), np.arange(3 * len(points)).reshape(-1, 3), Material.LEAF,
                np.concatenate(colours), normal=normals)


def add_bare_twigs(builder, rng, foot, centres, radius, bark):
    """Thin slivers from each bough's end, outwards and upwards."""
    of = np.repeat(np.arange(len(centres)), 12)
    run = centres[of] - foot
    run /= np.linalg.norm(run, axis=1, keepdims=True)
    way = run + 0.9 * rng.normal(size=run.shape) + [0, 0, 0.3]
    way *= (1.5 * radius[of] * rng.uniform(0.6, 1.2, of.size))[:, None] / np.linalg.norm(
        way, axis=1, keepdims=True)
    start = centres[of] - run * (radius[of] * rng.uniform(0, 0.9, of.size))[:, None]
    side = np.cross(way, rng.normal(size=way.shape))
    side *= 0.035 / np.linalg.norm(side, axis=1, keepdims=True)
    corners = np.stack((start - side, start + side, start + way), 1)
    builder.add(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3),
                Material.PLAIN, bark * 0.8)


def _roadworks(city, rng, builder):
    """None to two stretches of a parking lane or verge fenced off by cones and barriers."""
    for _ in range(rng.integers(0, 3)):
        street = city.streets[rng.integers(len(city.streets))]
        s0 = rng.uniform(0.3, 0.6) * street.line.length
        side = rng.choice([-1, 1])
        for s in np.arange(s0, min(s0 + rng.uniform(8, 20), street.line.length - 5), 1.6):
            x, y = street.line.offset(s, side * (street.half_width_m - 0.5))
            z = float(city.ground(np.array([x]), np.array([y]))[0])
            tangent = street.line.tangent(s)
            yaw = np.arctan2(tangent[1], tangent[0])
            if rng.random() < 0.5:
                builder.box((x, y, z), yaw, (0.36, 0.36, 0.75), Material.GLOW, (0.8, 0.16, 0.02),
                            0.15)
            else:
                builder.box((x, y, z + 0.45), yaw, (1.5, 0.06, 0.5), Material.GLOW,
                            (0.7, 0.1, 0.06))
