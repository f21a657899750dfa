"""What lies beside the roads of open country: woods, meadows, and houses on wide lots."""

import numpy as np

from training.simulation.place import Ground, Part, Road
from training.simulation.planning.buildings import build_house, draw_house_style
from training.simulation.planning.land import find_stretches, lot_frame, outline_drive
from training.simulation.planning.plan import likely, Plan
from training.simulation.planning.plants import plant_tree, plant_trees

WOOD_DEPTH_M = 32.0


def lay_country_side(plan: Plan, road: Road, side: int) -> None:
    rng = plan.rng
    clear_m = rng.uniform(1.5, 14.0)     # from the carriageway to the first tree
    cover = str(rng.choice(['wood', 'meadow', 'houses'], p=[0.45, 0.3, 0.25]))
    if cover == 'wood':
        plant_wood(plan, road, side, clear_m)
    elif cover == 'houses':
        lay_houses(plan, road, side)
    else:
        plant_scattered(plan, road, side, clear_m)
    if likely(rng, 0.2):
        put_guard_rail(plan, road, side)


def plant_wood(plan: Plan, road: Road, side: int, clear_m: float) -> None:
    """Dense trees from ``clear_m`` on, bushes at their edge, perhaps a gap."""
    rng = plan.rng
    tall, spacing_m = rng.uniform(7.0, 20.0), rng.uniform(4.0, 7.5)
    gap = rng.uniform(0.0, road.line.length), rng.uniform(0.0, 25.0)
    for s in np.arange(0.0, road.line.length, spacing_m):
        if abs(s - gap[0]) < gap[1] or not road.clear(s, 8.0):
            continue
        for out in np.arange(clear_m, clear_m + WOOD_DEPTH_M, spacing_m):
            along = np.clip(s + rng.normal(0.0, 1.0), 0.0, road.line.length)
            spot = road.line.offset(along, side * (
                road.half_m + out + rng.uniform(0.0, 0.8) * spacing_m))
            if plan.is_beside_roads(*spot, 1.0):
                plant_tree(plan, spot, 0.6 * tall, tall)
        edge = road.line.offset(s, side * (road.half_m + max(1.0, clear_m - 1.0)))
        if likely(rng, 0.5) and plan.is_beside_roads(*edge, 0.8):
            plant_tree(plan, edge, 0.5, 2.5)


def plant_scattered(plan: Plan, road: Road, side: int, clear_m: float) -> None:
    rng = plan.rng
    for _ in range(rng.poisson(rng.choice([2.0, 8.0, 25.0]))):
        spot = road.line.offset(rng.uniform(0.0, road.line.length), side * (
            road.half_m + clear_m + rng.exponential(15.0)))
        if plan.is_beside_roads(*spot, 1.0):
            plant_tree(plan, spot, *((0.5, 2.5) if likely(rng, 0.4) else (3.0, 15.0)))


def lay_houses(plan: Plan, road: Road, side: int) -> None:
    """Houses far from the road on large lawns, with long drives and boxes for the post."""
    rng = plan.rng
    for start, stop in find_stretches(road, 8.0):
        s = start + rng.uniform(0.0, 20.0)
        while s < stop - 20.0:
            width_m = rng.uniform(24.0, 60.0)
            lay_house(plan, road, side, min(s + width_m / 2, stop), width_m)
            s += width_m


def lay_house(plan: Plan, road: Road, side: int, s: float, width_m: float) -> None:
    rng = plan.rng
    point, normal, yaw = lot_frame(road, side, s)
    along = np.array([np.cos(yaw), np.sin(yaw)])
    setback_m, wide_m, deep_m = rng.uniform(9.0, 30.0), rng.uniform(9.0, 20.0), rng.uniform(7, 12)
    lawn = plan.ribbon(road.line, s - width_m / 2, s + width_m / 2, side * road.half_m,
                       side * (road.half_m + setback_m + deep_m + 15.0))
    if likely(rng, 0.8):
        plan.fill(lawn, Ground.LAWN)
    centre = point + normal * (road.half_m + setback_m + deep_m / 2) + along * rng.normal(0.0, 3.0)
    turn = yaw + rng.normal(0.0, 0.15)
    footprint = plan.rectangle(centre, turn, wide_m, deep_m)
    if plan.free(footprint):
        plan.take(footprint)
        build_house(plan, centre, turn, wide_m, deep_m, draw_house_style(plan), 1)
    reach_m = setback_m + rng.uniform(-2.0, 12.0)
    mouth = point + along * rng.choice([-1, 1]) * (wide_m / 2 + rng.uniform(2.0, 5.0))
    drive_m, flare_m = rng.uniform(2.8, 5.0), rng.uniform(0.5, 3.0)
    drive = outline_drive(road, mouth, along, normal, drive_m, flare_m, road.half_m + 2.7,
                          road.half_m + reach_m)
    plan.lot_drives.append((drive, int(rng.choice(
        [Ground.GRAVEL, Ground.DRIVE, Ground.CONCRETE], p=[0.4, 0.4, 0.2]))))
    if likely(rng, 0.7):
        x, y = mouth + along * (drive_m / 2 + 1.0) + normal * (road.half_m + 0.9)
        if plan.is_inside(x, y):
            group = plan.new_group()
            plan.box((x, y, plan.z(x, y)), yaw, (0.1, 0.1, 1.0), Part.FENCE, group)
            plan.box((x, y, plan.z(x, y) + 1.0), yaw, (0.2, 0.5, 0.25), Part.SIGN, group)
    plant_trees(plan, (point, normal, yaw), width_m, road.half_m + 2.2, setback_m + 22.8,
                rng.poisson(3.0), 2.0, 16.0)


def put_guard_rail(plan: Plan, road: Road, side: int) -> None:
    """A rail on posts along a part of the road."""
    rng, group = plan.rng, plan.new_group()
    start, offset_m = rng.uniform(0.0, road.line.length), road.half_m + rng.uniform(0.4, 1.5)
    for s in np.arange(start, min(start + rng.uniform(40.0, 150.0), road.line.length), 2.0):
        x, y = road.line.offset(s, side * offset_m)
        if not (plan.is_beside_roads(x, y, 0.2) and road.clear(s, 10.0)):
            continue
        yaw, z = lot_frame(road, side, s)[2], plan.z(x, y)
        plan.box((x, y, z), yaw, (0.12, 0.15, 0.75), Part.FENCE, group)
        plan.box((x, y, z + 0.5), yaw, (2.05, 0.06, 0.3), Part.POLE, group)
