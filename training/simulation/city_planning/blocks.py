"""The inside of a city's blocks, and what lies beyond its streets."""

import numpy as np

from training.simulation.city import CarSlot
from training.simulation.city_planning.buildings import add_building, draw_look
from training.simulation.city_planning.furniture import plant_tree
from training.simulation.city_planning.plan import CityPlan


def fill_blocks(plan: CityPlan):
    """Car parks, lawns with trees, yards and large buildings where there is room."""
    rng, city = plan.rng, plan.city
    weights = rng.dirichlet([1.5, 1.0, 1.0, 1.5])
    for _ in range(int(500 * (city.size_m / 500) ** 2)):
        centre = rng.uniform(-1, 1, 2) * (city.size_m / 2 + 10)
        yaw = find_street_yaw(plan, centre)
        kind = rng.choice(['park', 'cars', 'hall', 'shed'], p=weights)
        along, across = {'park': rng.uniform(16, 40, 2), 'cars': (rng.uniform(16, 36), 16.5),
                         'hall': rng.uniform(13, 28, 2), 'shed': rng.uniform(2.5, 6, 2)}[kind]
        area = plan.rectangle(centre, yaw, along, across)
        if not plan.free(area, 0.02 if kind == 'park' else 0.0):
            continue
        plan.take(area)
        if kind == 'park':
            plan.paint(area, plan.lawn * rng.uniform(0.9, 1.4), True)
            for _ in range(rng.integers(1, 7)):
                plant_tree(plan, centre + (plan.rectangle(np.zeros(2), yaw, along, across)
                                           * rng.uniform(-0.9, 0.9, (4, 1))).sum(0) / 2)
        elif kind == 'cars':
            lay_car_park(plan, centre, yaw, along, across, area)
        else:
            look = draw_look(plan, 'flats' if kind == 'hall' else 'semi')
            look['storeys'] = int(rng.integers(1, 4)) if kind == 'hall' else 1
            add_building(plan, centre, yaw, along, across, 'rear', look)


def lay_car_park(plan: CityPlan, centre, yaw, along, across, area):
    rng = plan.rng
    plan.paint(area, np.ones(3) * rng.uniform(0.09, 0.17), False)
    use = rng.uniform(0.2, 0.9)
    cos, sin = np.cos(yaw), np.sin(yaw)
    turn = np.array([[cos, sin], [-sin, cos]])
    for row in (-1, 1):
        for k in range(int(along // 2.6) + 1):
            start = np.array([-along / 2 + 0.2 + 2.6 * k, row * (across / 2 - 5.0)])
            stop = start + [0, row * 4.8]
            side = np.array([0.06, 0.0])
            line = np.array([start - side, start + side, stop + side, stop - side])
            plan.paint(line @ turn + centre, np.ones(3) * 0.5, False)
            if k < along // 2.6 - 0.5:
                spot = np.array([start[0] + 1.3, row * (across / 2 - 2.6)]) @ turn + centre
                plan.city.car_slots.append(CarSlot(
                    *spot, float(yaw + row * np.pi / 2 + np.pi * (rng.random() < 0.3)), use))


def find_street_yaw(plan: CityPlan, point) -> float:
    """The yaw of the street that is nearest to a point."""
    best = min(plan.city.streets, key=lambda street: float(
        np.linalg.norm(street.line.points - point, axis=1).min()))
    k = int(np.linalg.norm(best.line.points - point, axis=1).argmin())
    tangent = best.line.tangent(best.line.s[k])
    return float(np.arctan2(tangent[1], tangent[0]))


def build_outskirts(plan: CityPlan):
    """Houses and trees beyond the streets, so that no view ends at an empty edge."""
    rng, city = plan.rng, plan.city
    for _ in range(int(160 * city.size_m / 500)):
        spot = rng.uniform(-1, 1, 2)
        spot *= rng.uniform(city.half_m + 5, city.half_m + 110) / np.abs(spot).max()
        if rng.random() < 0.5:
            style = str(rng.choice(['semi', 'terrace', 'flats']))
            add_building(plan, spot, rng.uniform(0, 2 * np.pi), rng.uniform(9, 30),
                         rng.uniform(8, 12), style, draw_look(plan, style))
        for _ in range(3):
            plant_tree(plan, spot + rng.uniform(8, 16, 2) * rng.choice([-1, 1], 2), 5.0, 14.0)
