"""The ground beside and between the roads, its classes and its height."""

import cv2
import numpy as np

from training.simulation.city import Raster
from training.simulation.mesh import Material
from training.simulation.place import Ground, HALF_M, HEIGHT_PX_M, Part, PX_M, Road, STREET_REACH_M
from training.simulation.planning.plan import likely, Plan


def paint_ground(plan: Plan) -> None:
    """Land cover, then the carriageway and the strips beside it, by distance from its edge."""
    rng, region = plan.rng, plan.region
    paint_land(plan)
    mask = np.zeros_like(plan.kind)
    for road in plan.roads:
        polygon = plan.ribbon(road.line, 0.0, road.line.length, road.half_m, -road.half_m)
        cv2.fillPoly(mask, [plan.pixels(polygon)], 1, cv2.LINE_8, 4)
        if road.line.length < STREET_REACH_M - 10.0:  # the bulb of a dead end
            cv2.circle(mask, plan.pixels(road.line.at(road.line.length)).tolist(),
                       int(rng.uniform(7.5, 10.5) / PX_M * 16), 1, -1, cv2.LINE_8, 4)
    if plan.roundabout:
        centre, island, ring = plan.roundabout
        cv2.circle(mask, plan.pixels(centre).tolist(), int((island + ring) / PX_M * 16), 1,
                   -1, cv2.LINE_8, 4)
    corner = {'city': 5.0, 'uk_town': 5.0, 'old_suburb': 5.0, 'arterial': 9.0, 'rural': 9.0,
              'industrial': 9.0, 'country': 11.0}.get(region, 6.5)
    corner *= rng.uniform(0.7, 1.3)
    near = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) * PX_M
    wide = (near <= corner).astype(np.uint8)
    mask = (cv2.distanceTransform(wide, cv2.DIST_L2, 5) * PX_M > corner).astype(np.uint8)
    if plan.roundabout:
        cv2.circle(mask, plan.pixels(centre).tolist(), int(island / PX_M * 16), 0, -1,
                   cv2.LINE_8, 4)
    cut_medians(plan, mask)
    plan.outside = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 5) * np.float32(PX_M)
    plan.inside = cv2.distanceTransform(mask, cv2.DIST_L2, 5) * np.float32(PX_M)

    # Strips: kerb, verge, pavement; some sides have no pavement.
    plan.kerb_m, plan.verge_m, plan.walk_m = draw_strip_widths(plan)
    bare = np.zeros_like(mask)
    for road in plan.roads:
        for side in (1, -1):
            lonely = {'us_suburb': 0.3, 'au_suburb': 0.5, 'arterial': 0.3,
                      'industrial': 0.4}.get(region, 0.05)
            if likely(rng, lonely):
                polygon = plan.ribbon(
                    road.line, 0, road.line.length, side * road.half_m,
                    side * (road.half_m + plan.verge_m + plan.walk_m + 3.0))
                cv2.fillPoly(bare, [plan.pixels(polygon)], 1, cv2.LINE_8, 4)
    d = plan.outside
    plan.walk_mask = ((d > plan.kerb_m + plan.verge_m)
                      & (d <= plan.kerb_m + plan.verge_m + plan.walk_m) & (bare == 0))
    plan.verge_kind = int(rng.choice(
        [Ground.LAWN, Ground.ROUGH, Ground.SOIL, Ground.GRAVEL],
        p={'rural': [0.15, 0.5, 0.15, 0.2], 'au_suburb': [0.55, 0.35, 0.1, 0.0],
           'country': [0.25, 0.4, 0.05, 0.3],
           }.get(region, [0.7, 0.2, 0.05, 0.05])))
    plan.mask = mask
    plan.taken = cv2.resize(
        ((d < plan.kerb_m + plan.verge_m + plan.walk_m + 0.4)).astype(np.uint8),
        (plan.count // 5,) * 2, interpolation=cv2.INTER_AREA)


def cut_medians(plan: Plan, mask) -> None:
    """Raised medians of wide roads, open at the junctions."""
    for road in plan.roads:
        if road.median_m < 0.5 or road.median_m == 0.4:
            continue
        for s0, s1 in find_stretches(road, 7.0):
            polygon = plan.ribbon(road.line, s0, s1, road.median_m, -road.median_m)
            cv2.fillPoly(mask, [plan.pixels(polygon)], 0, cv2.LINE_8, 4)


def find_stretches(road: Road, margin_m: float) -> list[tuple[float, float]]:
    """Stations between the junctions, ``margin_m`` away from them."""
    cuts = sorted(road.junctions)
    found, start = [], 0.0
    for s, half in cuts:
        found.append((start, s - half - margin_m))
        start = max(start, s + half + margin_m)
    found.append((start, road.line.length))
    return [(a, b) for a, b in found if b - a > 4.0]


def draw_strip_widths(plan: Plan) -> tuple[float, float, float]:
    rng, region = plan.rng, plan.region
    kerb = {'rural': 0.0, 'us_suburb': rng.choice([0.0, 0.18, 0.3], p=[0.2, 0.5, 0.3]),
            'au_suburb': rng.choice([0.15, 0.35]), 'uk_town': 0.15, 'city': 0.18,
            'arterial': 0.18, 'industrial': rng.choice([0.0, 0.18]), 'country': 0.0,
            'old_suburb': rng.choice([0.15, 0.3]), 'downtown': 0.18}[region]
    verge = {'rural': 3.0, 'us_suburb': rng.choice([0.0, rng.uniform(0.8, 4.0)], p=[.2, .8]),
             'au_suburb': rng.uniform(1.5, 5.5), 'uk_town': rng.choice([0.0, 1.5], p=[.8, .2]),
             'city': rng.choice([0.0, 1.2], p=[0.8, 0.2]),
             'arterial': rng.choice([0.0, rng.uniform(1.0, 3.5)]),
             'industrial': rng.choice([0.0, rng.uniform(1.0, 4.0)]), 'country': 3.0,
             'old_suburb': rng.uniform(1.0, 3.0),
             'downtown': rng.choice([0.0, 1.5], p=[0.6, 0.4])}[region]
    walk = {'rural': 0.0, 'us_suburb': rng.uniform(1.1, 1.8), 'au_suburb': 1.3,
            'uk_town': rng.uniform(1.4, 2.8), 'city': rng.uniform(2.5, 5.0),
            'arterial': rng.uniform(1.4, 2.4), 'industrial': rng.uniform(1.2, 1.8),
            'country': 0.0, 'old_suburb': rng.uniform(1.2, 1.7),
            'downtown': rng.uniform(2.0, 6.0)}[region]
    return float(kerb), float(verge), float(walk)


def paint_land(plan: Plan) -> None:
    """What lies between the streets before anyone builds there."""
    rng, region = plan.rng, plan.region
    base = {'rural': Ground.ROUGH, 'industrial': Ground.DRIVE, 'city': Ground.PAVING,
            'arterial': Ground.ROUGH, 'country': Ground.ROUGH,
            'downtown': Ground.PAVING}.get(region, Ground.LAWN)
    plan.kind[:] = int(base)
    plan.unit[:] = 0
    corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * HALF_M
    patches = {'rural': 9, 'industrial': 10, 'city': 8, 'downtown': 8}.get(region, 6)
    kinds = {'rural': [Ground.CROP, Ground.CROP, Ground.ROUGH, Ground.SOIL, Ground.LAWN],
             'industrial': [Ground.CONCRETE, Ground.DRIVE, Ground.GRAVEL, Ground.ROUGH],
             'city': [Ground.DRIVE, Ground.LAWN, Ground.CONCRETE, Ground.GRAVEL],
             'downtown': [Ground.DRIVE, Ground.CONCRETE, Ground.LAWN]}.get(
        region, [Ground.ROUGH, Ground.LAWN, Ground.SOIL, Ground.BED])
    for _ in range(patches):
        # Half planes cut one after the other leave polygons, as fields lie.
        polygon = corner
        for _ in range(int(rng.integers(2, 5))):
            angle, offset = rng.uniform(-np.pi, np.pi), rng.uniform(-70, 60)
            polygon = cut_polygon(polygon, np.array([np.cos(angle), np.sin(angle)]), offset)
            if len(polygon) < 3:
                break
        if len(polygon) >= 3:
            plan.fill(polygon, kinds[rng.integers(len(kinds))])
            cv2.fillPoly(plan.direction, [np.round(
                (polygon + HALF_M) / (8 * PX_M)).astype(np.int32)],
                float(rng.uniform(0, np.pi)))


def raise_ground(plan: Plan) -> None:
    """Heights: terrain, camber, kerbs, ditches; and the mesh of the ground."""
    rng = plan.rng
    n = round(2 * HALF_M / HEIGHT_PX_M)
    g = (np.arange(n) + 0.5) * HEIGHT_PX_M - HALF_M
    x, y = np.meshgrid(g, g)
    kx, ky, phase, amplitude = plan.waves.T
    z = np.zeros_like(x)
    for a, b, c, d in zip(kx, ky, phase, amplitude):
        z += d * np.sin(a * x + b * y + c)
    outside = cv2.resize(plan.outside, (n, n), interpolation=cv2.INTER_AREA)
    inside = cv2.resize(plan.inside, (n, n), interpolation=cv2.INTER_AREA)
    z += rng.uniform(0.0, 0.03) * np.minimum(inside, 4.0)
    if plan.kerb_m:
        z += rng.uniform(0.06, 0.16) * np.clip(outside / 0.6, 0.0, 1.0)
    elif likely(rng, 0.6):  # a ditch beside the road
        far = rng.uniform(2.5, 5.0)
        z -= rng.uniform(0.1, 0.7) * np.exp(-((outside - far) / 1.2) ** 2)
    bank = rng.choice([0.0, 0.0, rng.uniform(-0.12, 0.2)])
    if plan.region == 'country':  # a cutting or an embankment
        bank = rng.choice([0.0, 0.0, rng.uniform(-0.4, 0.6)])
    z += bank * np.clip(outside - 4.0, 0.0, 14.0)
    plan.height = Raster(z.astype(np.float32), HALF_M, HEIGHT_PX_M)
    index = np.arange(n * n).reshape(n, n)
    a, b, c, d = (index[:-1, :-1].ravel(), index[:-1, 1:].ravel(), index[1:, 1:].ravel(),
                  index[1:, :-1].ravel())
    faces = np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1)))
    plan.builder.add(np.stack((x.ravel(), y.ravel(), z.ravel()), 1), faces, Material.LAND,
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
    plan.builder.quads(quads[beyond], Material.PLAIN,
                       plan.code(Part.HEDGE, plan.new_group(), 1.0))


def find_sidewalk_edge(plan: Plan, road: Road) -> float:
    """From the middle of a road to where lots begin."""
    return road.half_m + plan.kerb_m + plan.verge_m + plan.walk_m


def lot_frame(road: Road, side: int, s: float):
    """Point, outward normal and yaw of a lot's own axes (+y away from the street)."""
    tangent = road.line.tangent(s)
    normal = side * np.array([-tangent[1], tangent[0]])
    yaw = np.arctan2(normal[1], normal[0]) - np.pi / 2
    return road.line.at(s), normal, float(yaw)


def cut_polygon(polygon, normal, offset) -> np.ndarray:
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
