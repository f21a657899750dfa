"""The buildings of a city: how they look, their walls and roofs."""

import numpy as np

from training.simulation.city import KERB_M
from training.simulation.city_planning.plan import CityPlan, cover
from training.simulation.mesh import Material, turned


def draw_look(plan: CityPlan, style):
    rng = plan.rng
    wall = [(0.30, 0.135, 0.085), (0.52, 0.44, 0.32), (0.66, 0.63, 0.57), (0.36, 0.30, 0.26)][
        rng.choice(4, p=plan.brick)]
    tile = [(0.095, 0.10, 0.115), (0.27, 0.12, 0.075), (0.17, 0.14, 0.12)][
        rng.choice(3, p=plan.tiles)]
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


def add_building(plan: CityPlan, centre, yaw, width, deep, style, look):
    """Walls with texture coordinates, a roof, chimneys; +y of its frame faces away."""
    rng, city = plan.rng, plan.city
    storey = rng.uniform(2.7, 3.1) if style != 'shops' else rng.uniform(3.0, 3.6)
    eaves = storey * look['storeys'] + 0.4
    corners = plan.rectangle(centre, yaw, width, deep)
    heights = city.terrain(corners[:, 0], corners[:, 1]) + KERB_M
    base = float(heights.max())

    def world(points):
        points = np.asarray(points, np.float64)
        return turned(points, yaw) + [centre[0], centre[1], 0.0]

    view, mask = cover(city.building_mask, corners)
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
        sides.append(add_wall(plan, *ends, base, storey, eaves, look,
                              style if k == 0 else 'rear', blank))
        quad = world([(*p, bottom), (*q, bottom), (*q, top), (*p, top)])
        plan.builder.quads(quad[None], Material.FACADE, look['wall'], sides[-1])
    if look['flat']:
        parapet = rng.uniform(0.2, 0.7)
        rim = world([(*f, top + parapet) for f in foot])
        wall = world([(*f, top) for f in foot])
        for k in range(4):
            j = (k + 1) % 4
            plan.builder.quads([(wall[k], wall[j], rim[j], rim[k])], Material.PLAIN,
                               look['wall'])
        plan.builder.quads(world([(*f, top + 0.05) for f in foot])[None], Material.ROOF,
                           look['roof'])
        for _ in range(rng.integers(0, 4)):
            spot = rng.uniform(-0.35, 0.35, 2) * (width, deep)
            plan.builder.box(world([*spot, top]), yaw, rng.uniform(1.0, 3.5, 3) * (1, 1, 0.6),
                             Material.PLAIN, rng.uniform(0.25, 0.5) * np.ones(3))
        return
    rise = look['slope'] * y
    over = 0.35
    ox, oy, low = x + over * look['hip'], y + over, top - over * look['slope']
    ridge_x = max(x - y, 0.0) if look['hip'] else x
    a, b, c, d = (-ox, -oy, low), (ox, -oy, low), (ox, oy, low), (-ox, oy, low)
    e, f = (-ridge_x, 0, top + rise), (ridge_x, 0, top + rise)
    roof = look['roof']
    plan.builder.quads(world([[a, b, f, e], [c, d, e, f]]), Material.ROOF, roof)
    if look['hip']:
        hips = world([b, c, f, d, a, e])
        plan.builder.add(hips, [[0, 1, 2], [3, 4, 5]], Material.ROOF, roof)
    else:
        gable = world([(x, -y, top), (x, y, top), (x, 0, top + rise),
                       (-x, y, top), (-x, -y, top), (-x, 0, top + rise)])
        plan.builder.add(gable, [[0, 1, 2], [3, 4, 5]], Material.FACADE, look['wall'],
                         np.array([sides[1], sides[3]]))
    stacks = int(width // 6) if style == 'terrace' else int(rng.random() < 0.6)
    for k in range(stacks):
        spot = (-x + (k + 0.5) * width / stacks, rng.uniform(-0.3, 0.3))
        plan.builder.box(world([*spot, top + rise - 1.0]), yaw, (1.2, 0.7, 2.2),
                         Material.PLAIN, look['wall'] * 0.8)
    if style in ('semi', 'detached', 'terrace') and rng.random() < 0.55:  # bays or a porch
        count = max(1, int(width // 6.5))
        for k in range(count):
            spot = (-x + (k + 0.3 + 0.4 * rng.random()) * width / count, -y - 0.35)
            tall = storey * (2 if look['storeys'] > 1 and style != 'terrace' else 1) * 0.9
            plan.builder.box(world([*spot, base - 0.4]), yaw, (2.0, 0.8, tall + 0.4),
                             Material.PLAIN, look['wall'] * 1.05, 0.98)
            plan.builder.quads(world([[(spot[0] - 0.8, -y - 0.78, base + 0.8),
                                       (spot[0] + 0.8, -y - 0.78, base + 0.8),
                                       (spot[0] + 0.8, -y - 0.78, base + 2.0),
                                       (spot[0] - 0.8, -y - 0.78, base + 2.0)]]),
                               Material.GLASS, (0.05, 0.06, 0.07))


def add_wall(plan: CityPlan, p, q, base, storey, eaves, look, style, blank):
    """Register a wall's coordinates and style; returns its number."""
    rng = plan.rng
    width = float(np.linalg.norm(q - p))
    run = (q - p) / width
    columns = 0 if blank else max(1, round(width / look['pitch']))
    plan.walls.append([
        *p, *run, base, width, storey, eaves, width / columns if columns else 1e3,
        look['win_w'] if columns else 0.0, look['win_h'], 0.9,
        float(style == 'shops'), *look['wall'], *look['door'], rng.integers(1 << 20),
        float(style in ('terrace', 'semi', 'detached', 'flats')), look['brick'],
    ])
    return len(plan.walls) - 1
