"""The ground beside and between the roads, its classes and its height."""

import cv2
import numpy as np

from training.simulation.city import Raster
from training.simulation.mesh import Material
from training.simulation.place import Ground, HALF_M, HEIGHT_PX_M, Part, PX_M, Road, STREET_REACH_M
from training.simulation.planning.plan import likely, Plan


def paint_ground(plan: Plan) -> None:
    """Land cover, then the carriageway and the strips beside it, by distance from its edge."""
    rng, traits = plan.rng, plan.traits
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
    corner = traits.corner_m * rng.uniform(0.7, 1.3)
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
            if likely(rng, traits.no_walk):
                polygon = plan.ribbon(
                    road.line, 0, road.line.length, side * road.half_m,
                    side * (road.half_m + plan.verge_m + plan.walk_m + 3.0))
                cv2.fillPoly(bare, [plan.pixels(polygon)], 1, cv2.LINE_8, 4)
    d = plan.outside
    plan.walk_mask = ((d > plan.kerb_m + plan.verge_m)
                      & (d <= plan.kerb_m + plan.verge_m + plan.walk_m) & (bare == 0))
    plan.verge_kind = int(rng.choice(
        [Ground.LAWN, Ground.ROUGH, Ground.SOIL, Ground.GRAVEL], p=traits.verge_kinds))
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
    rng, traits = plan.rng, plan.traits
    verge = 0.0 if likely(rng, traits.no_verge) else rng.uniform(*traits.verge_m)
    return float(rng.choice(traits.kerb_m)), float(verge), float(rng.uniform(*traits.walk_m))


def paint_land(plan: Plan) -> None:
    """What lies between the streets before anyone builds there."""
    rng, traits = plan.rng, plan.traits
    plan.kind[:] = int(traits.base)
    plan.unit[:] = 0
    corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * HALF_M
    for _ in range(traits.patches):
        # Half planes cut one after the other leave polygons, as fields lie.
        polygon = corner
        for _ in range(int(rng.integers(2, 5))):
            angle, offset = rng.uniform(-np.pi, np.pi), rng.uniform(-70, 60)
            polygon = cut_polygon(polygon, np.array([np.cos(angle), np.sin(angle)]), offset)
            if len(polygon) < 3:
                break
        if len(polygon) >= 3:
            plan.fill(polygon, rng.choice(traits.patch_kinds))
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
    bank = rng.choice([0.0, 0.0, rng.uniform(*plan.traits.bank)])  # a cutting or an embankment
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


def outline_drive(road: Road, middle, along, normal, width, flare, throat, far) -> np.ndarray:
    """Polygon of a drive from the edge of a road to ``far`` from its middle.

    At the road it is wider by ``flare`` on each side, down to ``throat`` from the road's middle.
    """
    near = road.half_m - 0.3
    return np.array([
        middle + along * (width / 2 + flare) + normal * near,
        middle + along * width / 2 + normal * throat, middle + along * width / 2 + normal * far,
        middle - along * width / 2 + normal * far, middle - along * width / 2 + normal * throat,
        middle - along * (width / 2 + flare) + normal * near])


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
