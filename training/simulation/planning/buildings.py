"""Houses, blocks of flats and huts."""

import cv2
import numpy as np

from training.simulation.mesh import Material, turned
from training.simulation.place import HALF_M, Part
from training.simulation.planning.plan import likely, Plan


def draw_house_style(plan: Plan) -> dict:
    rng = plan.rng
    return {
        'wall': plan.new_group(), 'roof': plan.new_group(), 'trim': plan.new_group(),
        'flat': likely(rng, 0.08), 'hip': likely(rng, 0.45), 'shop': False,
        'storeys': int(plan.manner['storeys']), 'slope': rng.uniform(0.35, 0.95),
        'gable_to_street': likely(rng, plan.traits.gables_to_street),
        'over': rng.uniform(0.2, 0.9), 'brick': float(rng.random() < 0.5),
        'pitch': rng.uniform(1.8, 4.0), 'win_w': rng.uniform(0.8, 2.0),
        'win_h': rng.uniform(0.9, 1.7),
    }


def build_house(plan: Plan, centre, yaw, wide, deep, style, flip) -> None:
    """Walls, roof, perhaps a wing, a garage, a porch, chimneys; +y faces away."""
    rng = plan.rng
    if style['gable_to_street']:
        build_block(plan, centre, yaw + np.pi / 2, deep, wide, style)
    else:
        build_block(plan, centre, yaw, wide, deep, style)
    along, normal = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
    if plan.traits.frontage in ('blocks', 'shops') or wide < 8.0:
        return
    if likely(rng, 0.45):  # a wing or garage to the street
        w, d = rng.uniform(4.0, 7.0), rng.uniform(2.0, 5.0)
        spot = centre + along * flip * (wide - w) / 2 - normal * (deep / 2 + d / 2 - 0.5)
        footprint = plan.rectangle(spot, yaw, w, d + 1.0)
        plan.take(footprint)
        build_block(plan, spot, yaw + np.pi / 2, d + 1.0, w, {**style, 'storeys': 1})
    if likely(rng, 0.35):  # a porch
        w = rng.uniform(2.0, wide * 0.6)
        spot = centre - along * flip * (wide - w) / 4 - normal * (deep / 2 + 0.8)
        z = plan.z(*spot)
        plan.box((*spot, z + rng.uniform(2.3, 2.7)), yaw, (w, 1.8, 0.2), Part.TRIM,
                 style['trim'])
        for at in (-w / 2 + 0.1, w / 2 - 0.1):
            post = spot + along * at - normal * 0.7
            plan.box((*post, z), yaw, (0.15, 0.15, 2.5), Part.TRIM, style['trim'])


def build_block(plan: Plan, centre, yaw, wide, deep, style) -> None:
    rng, storey = plan.rng, plan.rng.uniform(2.5, 3.3)
    eaves = storey * style['storeys'] + 0.3
    corners = plan.rectangle(centre, yaw, wide, deep)
    inside = np.clip(corners, -HALF_M + 1, HALF_M - 1)
    heights = plan.height.sample(inside[:, 0], inside[:, 1])
    base, bottom = float(heights.max()), float(heights.min()) - 0.6
    top = base + eaves
    mask = [np.round((corners + HALF_M) * 16 - 8).astype(np.int32)]
    cv2.fillPoly(plan.building_mask, mask, 255, cv2.LINE_8, 4)

    def world(points):
        return turned(np.asarray(points, np.float64), yaw) + [centre[0], centre[1], 0.0]

    wall = plan.code(Part.WALL, style['wall'])
    x, y = wide / 2, deep / 2
    foot = [(-x, -y), (x, -y), (x, y), (-x, y)]
    sides = []
    for k in range(4):
        p, q = foot[k], foot[(k + 1) % 4]
        ends = world([(*p, 0.0), (*q, 0.0)])[:, :2]
        sides.append(add_wall(plan, *ends, base, storey, eaves, style, k))
        plan.builder.quads(world([(*p, bottom), (*q, bottom), (*q, top), (*p, top)])[None],
                           Material.FACADE, wall, sides[-1])
    roof = plan.code(Part.ROOF, style['roof'])
    if style['flat']:
        rim = rng.uniform(0.1, 0.8)
        for k in range(4):
            p, q = foot[k], foot[(k + 1) % 4]
            plan.builder.quads(world([[(*p, top), (*q, top), (*q, top + rim),
                                       (*p, top + rim)]]), Material.PLAIN, wall)
        plan.builder.quads(world([(*f, top + 0.05) for f in foot])[None], Material.ROOF, roof)
        for _ in range(rng.integers(0, 5)):
            spot = rng.uniform(-0.38, 0.38, 2) * (wide, deep)
            plan.box(world([*spot, top]), yaw, rng.uniform(0.8, 3.0, 3) * (1, 1, 0.6),
                     Part.POLE)
        return
    over, rise = style['over'], style['slope'] * y
    ox, oy, low = x + over, y + over, top - over * style['slope']
    ridge = max(x - y, 0.0) if style['hip'] else ox
    a, b, c, d = (-ox, -oy, low), (ox, -oy, low), (ox, oy, low), (-ox, oy, low)
    e, f = (-ridge, 0, top + rise), (ridge, 0, top + rise)
    plan.builder.quads(world([[a, b, f, e], [c, d, e, f]]), Material.ROOF, roof)
    if style['hip']:
        plan.builder.add(world([b, c, f, d, a, e]), [[0, 1, 2], [3, 4, 5]], Material.ROOF,
                         roof)
    else:
        gable = world([(x, -y, top), (x, y, top), (x, 0, top + rise),
                       (-x, y, top), (-x, -y, top), (-x, 0, top + rise)])
        plan.builder.add(gable, [[0, 1, 2], [3, 4, 5]], Material.FACADE, wall,
                         np.array([sides[1], sides[3]]))
    for _ in range(rng.integers(0, 3)):
        spot = (rng.uniform(-0.8, 0.8) * x, rng.uniform(-0.4, 0.4) * y)
        plan.box(world([*spot, top + 0.3 * rise]), yaw, (0.8, 0.6, 0.7 * rise + 1.0),
                 Part.MASONRY, style['wall'])


def add_wall(plan: Plan, p, q, base, storey, eaves, style, side: int) -> int:
    """Register a wall's coordinates and style; returns its number."""
    rng = plan.rng
    width = float(np.linalg.norm(q - p))
    columns = max(1, round(width / style['pitch']))
    blank = side in (1, 3) and rng.random() < 0.4
    plan.walls.append([
        *p, *(q - p) / width, base, width, storey, eaves,
        1e3 if blank else width / columns, 0.0 if blank else style['win_w'], style['win_h'],
        rng.uniform(0.7, 1.1), float(style['shop'] and side == 0), 0.5, 0.5, 0.5,
        *rng.uniform(0.02, 0.6, 3), rng.integers(1 << 20), float(side == 0), style['brick']])
    return len(plan.walls) - 1


def build_hut(plan: Plan, spot, yaw) -> None:
    rng = plan.rng
    w, d, h = rng.uniform(1.8, 3.5), rng.uniform(1.8, 3.0), rng.uniform(1.9, 2.6)
    z = plan.z(*spot)
    plan.box((*spot, z), yaw, (w, d, h), Part.FENCE)
    plan.box((*spot, z + h), yaw, (w + 0.3, d + 0.3, 0.4), Part.ROOF, taper=0.6)
