"""Trees, lamps, posts and signs of a city."""

import numpy as np

from training.simulation.city import KERB_M, Tree
from training.simulation.city_planning.plan import CityPlan
from training.simulation.mesh import Material


def plant_tree(plan: CityPlan, spot, low=4.0, high=12.0):
    rng = plan.rng
    height = rng.uniform(low, high)
    rgb = np.array([0.055, 0.095, 0.03]) * rng.uniform(0.7, 1.5) * rng.uniform(0.85, 1.2, 3)
    plan.city.trees.append(Tree(
        float(spot[0]), float(spot[1]), height, height * rng.uniform(0.24, 0.4), tuple(rgb),
        bool(rng.random() < 0.15), int(rng.integers(1 << 30))))


def plant_garden_trees(plan: CityPlan):
    rng, city = plan.rng, plan.city
    for _ in range(int(2000 * plan.tree_density * (city.size_m / 500) ** 2)):
        spot = rng.uniform(-1, 1, 2) * (city.half_m - 5)
        if plan.taken.sample(spot[:1], spot[1:])[0] == 0:
            plant_tree(plan, spot, *((1.5, 4.0) if rng.random() < 0.5 else (4.0, 13.0)))


def place_furniture(plan: CityPlan, street):
    rng, city, line = plan.rng, plan.city, street.line
    spacing, side = rng.uniform(24, 34), rng.choice([-1, 1])
    height, arm = rng.uniform(5.5, 9.0), rng.uniform(0.8, 1.8)
    for s in np.arange(street.trim_a_m + 3, line.length - street.trim_b_m, spacing):
        side = -side
        x, y = line.offset(s, side * (street.kerb_m(s, side) + 0.45))
        if not is_on_verge(plan, x, y):
            continue
        z = city.terrain(x, y) + KERB_M
        tangent = line.tangent(s)
        yaw = np.arctan2(tangent[1], tangent[0])
        grey = np.ones(3) * 0.18
        plan.builder.box((x, y, z), yaw, (0.16, 0.16, height), Material.PLAIN, grey, 0.6)
        inward = -side * np.array([-tangent[1], tangent[0]])
        plan.builder.box((x + inward[0] * arm / 2, y + inward[1] * arm / 2, z + height), yaw,
                         (0.12, arm + 0.3, 0.12), Material.PLAIN, grey)
        city.landmarks[f'lamp_{len(city.landmarks)}'] = np.array([x, y, z])
    trees = rng.random() < 0.45 * plan.tree_density and street.pavement_m > 1.7
    step = rng.uniform(9, 20)
    for side in (-1, 1):
        for s in np.arange(street.trim_a_m + 6, line.length - street.trim_b_m - 4, step):
            if trees and rng.random() < 0.75:
                plant_tree(plan, line.offset(s, side * (street.kerb_m(s, side) + 0.9)), 5.5, 10.0)
            elif rng.random() < 0.18:
                put_sign(plan, street, s, side)
            elif rng.random() < 0.15:
                x, y = line.offset(s, side * (street.kerb_m(s, side) + 0.6))
                if not is_on_verge(plan, x, y):
                    continue
                plan.builder.box((x, y, city.terrain(x, y)), rng.uniform(0, 3),
                                 rng.uniform(0.35, 0.9, 3) + [0, 0, 0.5], Material.PLAIN,
                                 rng.uniform(0.02, 0.25, 3))


def is_on_verge(plan: CityPlan, x, y):
    return plan.city.kerb_distance.sample(np.array([x]), np.array([y]))[0] > 0.15


def put_sign(plan: CityPlan, street, s, side):
    rng = plan.rng
    x, y = street.line.offset(s, side * (street.kerb_m(s, side) + 0.5))
    if not is_on_verge(plan, x, y):
        return
    z = plan.city.terrain(x, y) + KERB_M
    tangent = street.line.tangent(s)
    yaw = np.arctan2(tangent[1], tangent[0])
    height = rng.uniform(2.0, 2.8)
    plan.builder.box((x, y, z), yaw, (0.07, 0.07, height), Material.PLAIN, (0.3, 0.3, 0.3))
    colours = [(0.02, 0.1, 0.4), (0.5, 0.03, 0.03), (0.7, 0.7, 0.7), (0.6, 0.45, 0.05)]
    colour = np.array(colours[rng.integers(4)])
    plan.builder.box((x, y, z + height - 0.35), yaw, (0.05, 0.6, 0.6), Material.GLOW, colour)
