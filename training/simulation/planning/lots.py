"""Lots along the roads: houses with drives and gardens, shops, blocks, farms, car parks."""

import numpy as np

from training.simulation.city import CarSlot
from training.simulation.mesh import Material
from training.simulation.place import Ground, HALF_M, Part, Road
from training.simulation.planning.buildings import build_house, build_hut, draw_house_style
from training.simulation.planning.country import lay_country_side
from training.simulation.planning.land import (
    find_sidewalk_edge,
    find_stretches,
    lot_frame,
    outline_drive,
)
from training.simulation.planning.plan import likely, Plan
from training.simulation.planning.plants import plant_bush, plant_tree, plant_trees


def place_lots(plan: Plan) -> None:
    """Yards, buildings and what belongs to them, along each road."""
    frontage = plan.traits.frontage
    plan.lot_drives, plan.lot_walks = [], []
    plan.manner = draw_lot_manner(plan)
    for road in plan.roads:
        for side in (1, -1):
            if frontage == 'farms':
                lay_farm_side(plan, road, side)
            elif frontage == 'country':
                lay_country_side(plan, road, side)
            elif frontage == 'shops' and road.grade != 'local':
                lay_commercial_side(plan, road, side)
            elif frontage == 'blocks':
                lay_city_side(plan, road, side)
            else:
                lay_house_side(plan, road, side)
    fill_gaps(plan)


def draw_lot_manner(plan: Plan) -> dict:
    """What the houses of one place have in common."""
    rng, traits = plan.rng, plan.traits
    return {
        'width': rng.uniform(*traits.lot_m), 'setback': rng.uniform(*traits.setback_m),
        'fenced': likely(rng, traits.fenced),
        'drive': int(rng.choice([Ground.CONCRETE, Ground.DRIVE, Ground.PAVING, Ground.GRAVEL],
                                p=[0.5, 0.25, 0.15, 0.1])),
        'trees': rng.uniform(*traits.lot_trees), 'storeys': rng.choice(traits.house_storeys),
        'beds': rng.uniform(0.1, 0.9), 'skew': rng.normal(0.0, 0.06),
    }


def lay_house_side(plan: Plan, road: Road, side: int) -> None:
    rng, manner = plan.rng, plan.manner
    edge = find_sidewalk_edge(plan, road)
    for start, stop in find_stretches(road, 6.0):
        s = start + rng.uniform(0.0, 4.0)
        while s < stop - 6.0:
            width = manner['width'] * rng.uniform(0.75, 1.3)
            if s + width > stop + 2.0:
                break
            if likely(rng, 0.9):
                lay_house_lot(plan, road, side, s, width, edge)
            elif likely(rng, 0.6):
                plant_trees(plan, lot_frame(road, side, s + width / 2), width, edge, 25.0, 4)
            s += width


def lay_house_lot(plan: Plan, road, side, s, width, edge) -> None:
    """One lot: yard, house, drive, path, beds, hedges, trees."""
    rng, manner = plan.rng, plan.manner
    mid = s + width / 2
    point, normal, yaw = lot_frame(road, side, mid)
    along = np.array([np.cos(yaw), np.sin(yaw)])
    depth = rng.uniform(20.0, 34.0)
    yard = plan.ribbon(road.line, s, s + width, side * (road.half_m + plan.kerb_m),
                       side * (edge + depth))
    unit = plan.new_unit()
    ground = rng.choice([Ground.LAWN, Ground.ROUGH, Ground.SOIL, Ground.GRAVEL, Ground.PAVING],
                        p=[0.72, 0.12, 0.05, 0.05, 0.06])
    plan.fill(yard, ground, unit)
    setback = max(0.8, manner['setback'] + rng.normal(0.0, 0.8))
    traits = plan.traits
    wide = width - (rng.choice([0.0, 0.0, 2.5]) if traits.terraced else rng.uniform(2.0, 7.0))
    wide, deep = max(wide, 5.0), rng.uniform(*traits.house_depth_m)
    centre = point + normal * (edge + setback + deep / 2) + along * rng.normal(0.0, 0.5)
    turn = yaw + manner['skew'] + rng.normal(0.0, 0.01)
    footprint = plan.rectangle(centre, turn, wide, deep)
    house = plan.free(footprint)
    flip = rng.choice([-1, 1])
    if house:
        plan.take(footprint)
        style = draw_house_style(plan)
        build_house(plan, centre, turn, wide, deep, style, flip)
    # Drive to a garage, a car port or the yard beside the house.
    if likely(rng, traits.drives):
        narrow = traits.terraced or likely(rng, 0.6)
        drive_w = rng.uniform(2.6, 3.4) if narrow else rng.uniform(4.5, 6.5)
        at = flip * (width / 2 - drive_w / 2 - rng.uniform(0.2, 1.2))
        reach = setback + (rng.uniform(3.0, 9.0) if not house or likely(rng, 0.4) else 0.0)
        middle = point + along * at
        polygon = outline_drive(road, middle, along, normal, drive_w, rng.uniform(0.0, 1.2),
                                road.half_m + 1.5, edge + reach)
        kind = manner['drive'] if likely(rng, 0.75) else int(rng.choice(
            [Ground.CONCRETE, Ground.DRIVE, Ground.PAVING, Ground.GRAVEL]))
        plan.lot_drives.append((polygon, kind))
        plan.take(plan.rectangle(middle + normal * (edge + reach / 2), yaw, drive_w, reach))
        if reach > 5.0:
            spot = middle + normal * (edge + reach - rng.uniform(2.6, 4.5))
            plan.car_slots.append(CarSlot(
                *map(float, spot), float(yaw + np.pi / 2 + np.pi * rng.integers(2)),
                rng.uniform(0.1, 0.7)))
    if house and likely(rng, 0.6):  # a path to the door
        at = point + along * (-flip * rng.uniform(0.0, wide / 3))
        path = plan.rectangle(at + normal * (edge + setback / 2), yaw, rng.uniform(0.8, 1.4),
                              setback + 0.3)
        plan.lot_walks.append((path, int(rng.choice([Ground.CONCRETE, Ground.PAVING]))))
    for _ in range(rng.poisson(2 * manner['beds'])):
        spot = centre + along * rng.uniform(-0.6, 0.6) * width - normal * (
            deep / 2 + rng.uniform(0.6, max(setback, 1.0)))
        bed = plan.rectangle(spot, yaw + rng.normal(0, 0.2), rng.uniform(1, 5),
                             rng.uniform(0.6, 1.8))
        plan.fill(bed, Ground.BED)
        plant_bush(plan, spot)
    for _ in range(rng.poisson(0.8)):  # patios, sheds, pools behind the house
        spot = centre + along * rng.uniform(-0.45, 0.45) * width + normal * (
            deep / 2 + rng.uniform(2.0, 10.0))
        area = plan.rectangle(spot, yaw, *rng.uniform(2.0, 6.0, 2))
        kind = rng.choice([Ground.PAVING, Ground.CONCRETE, Ground.WATER, Ground.SOIL],
                          p=[0.4, 0.3, 0.12, 0.18])
        plan.fill(area, kind)
        if kind == Ground.SOIL and plan.free(area):
            plan.take(area)
            build_hut(plan, spot, yaw)
    put_lot_borders(plan, point, normal, along, width, edge, setback, deep)
    plant_trees(plan, (point, normal, yaw), width, edge, depth, rng.poisson(manner['trees']))


def put_lot_borders(plan: Plan, point, normal, along, width, edge, setback, deep) -> None:
    rng = plan.rng
    corner = point + along * width / 2
    if likely(rng, 0.6):  # between neighbours, behind the house front
        put_barrier(plan, corner + normal * (edge + setback + rng.uniform(0, deep)),
                    corner + normal * (edge + setback + deep + rng.uniform(3, 14)), False)
    if plan.manner['fenced'] and setback > 1.5:
        gate = rng.uniform(-0.3, 0.3) * width
        for low, high in ((-width / 2, gate - 1.5), (gate + 1.5, width / 2)):
            if high - low > 1.0:
                put_barrier(plan, point + along * low + normal * (edge + 0.3),
                            point + along * high + normal * (edge + 0.3), True)


def put_barrier(plan: Plan, start, stop, low: bool) -> None:
    """A fence, wall or hedge, as far as its ground is free."""
    rng = plan.rng
    run = stop - start
    length = float(np.linalg.norm(run))
    if length < 1.0:
        return
    yaw, group = float(np.arctan2(run[1], run[0])), plan.new_group()
    part = Part(rng.choice([Part.HEDGE, Part.FENCE, Part.MASONRY], p=[0.4, 0.4, 0.2]))
    height = rng.uniform(0.5, 1.3) if low else rng.uniform(1.2, 2.0)
    thick = rng.uniform(0.4, 1.1) if part == Part.HEDGE else 0.15
    pieces = max(1, round(length / 2.5))
    for k in range(pieces):
        x, y = start + run * (k + 0.5) / pieces
        if plan.free(plan.rectangle((x, y), yaw, length / pieces, 0.3)):
            plan.box((x, y, plan.z(x, y) - 0.1), yaw, (length / pieces + 0.05, thick, height),
                     part, group, rng.uniform(0.9, 1.1), 1.0,
                     Material.LEAF if part == Part.HEDGE else Material.PLAIN)


def lay_city_side(plan: Plan, road: Road, side: int) -> None:
    """Buildings at the pavement's edge, courts and car parks between them."""
    rng = plan.rng
    edge = find_sidewalk_edge(plan, road)
    storeys = int(rng.integers(*plan.traits.block_storeys))
    for start, stop in find_stretches(road, 4.0):
        s = start
        while s < stop - 6.0:
            width = min(rng.uniform(9.0, 34.0), stop - s)
            point, normal, yaw = lot_frame(road, side, s + width / 2)
            setback = rng.choice([0.8, 0.8, rng.uniform(1.0, 8.0)])
            deep = rng.uniform(11.0, 22.0)
            for back in (0.0, 0.8, 1.6, 2.4, 4.0):  # behind the bow of a bend
                centre = point + normal * (edge + setback + back + deep / 2)
                footprint = plan.rectangle(centre, yaw, width - 0.1, deep)
                if plan.free(footprint):
                    break
            if likely(rng, 0.12):
                lay_car_park(plan, point + normal * (edge + 9.0), yaw, width, 17.0)
            elif plan.free(footprint):
                plan.take(footprint)
                build_house(plan, centre, yaw, width - 0.1, deep, {
                    **draw_house_style(plan), 'flat': likely(rng, 0.8), 'shop': likely(rng, 0.5),
                    'storeys': max(1, storeys + int(rng.integers(-2, 3)))}, 1)
                if setback > 2.0:
                    front = plan.rectangle(point + normal * (edge + setback / 2), yaw, width,
                                           setback)
                    plan.fill(front, rng.choice([Ground.LAWN, Ground.PAVING, Ground.BED]))
            s += width + rng.choice([0.0, 0.0, rng.uniform(1.0, 8.0)])


def lay_commercial_side(plan: Plan, road: Road, side: int) -> None:
    """Car parks in front of large flat buildings, drives, lawns."""
    rng = plan.rng
    edge = find_sidewalk_edge(plan, road)
    for start, stop in find_stretches(road, 5.0):
        s = start + rng.uniform(0, 6)
        while s < stop - 18.0:
            width = min(rng.uniform(25.0, 60.0), stop - s)
            point, normal, yaw = lot_frame(road, side, s + width / 2)
            along = np.array([np.cos(yaw), np.sin(yaw)])
            lawn, park = rng.uniform(1.0, 6.0), rng.choice([0.0, 17.0, 34.0], p=[.3, .5, .2])
            strip = plan.ribbon(road.line, s, s + width, side * (road.half_m + plan.kerb_m),
                                side * (edge + lawn))
            plan.fill(strip, rng.choice([Ground.LAWN, Ground.ROUGH, Ground.BED]))
            if park:
                lay_car_park(plan, point + normal * (edge + lawn + park / 2), yaw, width - 2.0,
                             park)
                mouth = point + along * rng.uniform(-0.3, 0.3) * width
                drive = plan.rectangle(
                    mouth + normal * (road.half_m + edge + lawn) / 2, yaw,
                    rng.uniform(6.0, 9.0), edge + lawn - road.half_m + 1.5)
                plan.lot_drives.append((drive, int(rng.choice(
                    [Ground.DRIVE, Ground.CONCRETE, Ground.ASPHALT]))))
            wide, deep = width * rng.uniform(0.5, 0.95), rng.uniform(14.0, 30.0)
            centre = point + normal * (edge + lawn + park + 1.5 + deep / 2)
            footprint = plan.rectangle(centre, yaw, wide, deep)
            if plan.free(footprint) and likely(rng, 0.85):
                plan.take(footprint)
                build_house(plan, centre, yaw, wide, deep, {
                    **draw_house_style(plan), 'flat': likely(rng, 0.85),
                    'shop': likely(rng, 0.5), 'storeys': int(rng.choice([1, 1, 2, 3]))}, 1)
            else:
                plant_trees(plan, (point, normal, yaw), width, edge, 30.0, rng.poisson(3))
            if likely(rng, 0.5):
                for at in np.arange(-width / 2 + 2, width / 2 - 2, rng.uniform(7, 14)):
                    plant_tree(plan, point + along * at + normal * (edge + lawn / 2), 3.0, 9.0)
            s += width + rng.uniform(0.0, 6.0)


def lay_farm_side(plan: Plan, road: Road, side: int) -> None:
    """Open country: fences, rows of trees, a farm now and then, tracks into the fields."""
    rng = plan.rng
    edge = find_sidewalk_edge(plan, road)
    if likely(rng, 0.4):
        offset = edge + rng.uniform(0.5, 6.0)
        group, gap = plan.new_group(), rng.uniform(2.5, 6.0)
        for s in np.arange(2.0, road.line.length - 2.0, gap):
            x, y = road.line.offset(s, side * offset)
            if max(abs(x), abs(y)) < HALF_M - 2:
                yaw = lot_frame(road, side, s)[2]
                plan.box((x, y, plan.z(x, y) - 0.1), yaw, (0.1, 0.1, 1.2), Part.FENCE, group)
                for bar in (0.5, 0.95):
                    plan.box((x, y, plan.z(x, y) + bar), yaw, (gap, 0.04, 0.08), Part.FENCE,
                             group)
    if likely(rng, 0.5):
        offset, step = edge + rng.uniform(1.0, 14.0), rng.uniform(4.0, 18.0)
        tall = rng.uniform(3.0, 14.0)
        for s in np.arange(0.0, road.line.length, step):
            if likely(rng, 0.7):
                plant_tree(plan, road.line.offset(s, side * (offset + rng.normal(0, 1.0))),
                           0.6 * tall, tall)
    for _ in range(rng.poisson(1.0)):
        s = rng.uniform(50.0, road.line.length - 50.0) if road.line.length > 110 else 20.0
        point, normal, yaw = lot_frame(road, side, s)
        length = rng.uniform(12.0, 60.0)
        track = plan.rectangle(point + normal * (road.half_m + length / 2), yaw,
                               rng.uniform(2.4, 5.0), length + 1.0)
        plan.lot_drives.append((track, int(rng.choice(
            [Ground.GRAVEL, Ground.SOIL, Ground.CONCRETE, Ground.DRIVE]))))
        if likely(rng, 0.6):
            for _ in range(rng.integers(1, 4)):
                centre = point + normal * rng.uniform(18, 45) + rng.uniform(-22, 22, 2)
                wide, deep = rng.uniform(8.0, 22.0), rng.uniform(7.0, 13.0)
                footprint = plan.rectangle(centre, yaw, wide, deep)
                if plan.free(footprint):
                    plan.fill(plan.rectangle(centre, yaw, wide + 12, deep + 10),
                              rng.choice([Ground.GRAVEL, Ground.LAWN, Ground.SOIL]))
                    plan.take(footprint)
                    build_house(plan, centre, yaw + rng.normal(0, 0.2), wide, deep,
                                draw_house_style(plan), 1)


def fill_gaps(plan: Plan) -> None:
    """Trees, lawns and sheds where there is still room."""
    rng, traits = plan.rng, plan.traits
    for _ in range(rng.choice(traits.other_buildings)):
        spot = rng.uniform(-1, 1, 2) * (HALF_M - 12)
        road = min(plan.roads, key=lambda road: float(
            np.linalg.norm(road.line.points - spot, axis=1).min()))
        k = int(np.linalg.norm(road.line.points - spot, axis=1).argmin())
        yaw = lot_frame(road, 1, road.line.s[k])[2]
        size = rng.uniform(10, 26, 2) if traits.frontage in ('blocks', 'shops') else (
            rng.uniform(8, 16), rng.uniform(7, 11))
        if plan.free(plan.rectangle(spot, yaw, size[0] + 2.0, size[1] + 2.0)):
            plan.fill(plan.rectangle(spot, yaw, size[0] + 10.0, size[1] + 14.0),
                      rng.choice([Ground.LAWN, Ground.PAVING, Ground.DRIVE, Ground.ROUGH]))
            plan.take(plan.rectangle(spot, yaw, *size))
            build_house(plan, spot, yaw, *size, draw_house_style(plan), 1)
    count = (60 + 60 * plan.manner['trees'] if traits.other_trees is None
             else rng.choice(traits.other_trees))
    cluster = rng.uniform(-0.8, 0.8, (3, 2)) * HALF_M
    for _ in range(int(count)):
        spot = rng.uniform(-1, 1, 2) * (HALF_M - 3) if not traits.is_open or likely(
            rng, 0.3) else cluster[rng.integers(3)] + rng.normal(0, 14.0, 2)
        if np.abs(spot).max() < HALF_M - 3 and plan.free(
                plan.rectangle(spot, 0.0, 1.0, 1.0)):
            plant_tree(plan, spot, *((1.0, 3.0) if likely(rng, 0.35) else (3.0, 15.0)))


def lay_car_park(plan: Plan, centre, yaw, along, across) -> None:
    """Rows of stalls on asphalt or concrete."""
    rng = plan.rng
    area = plan.rectangle(centre, yaw, along, across)
    if not plan.free(area):
        return
    plan.take(area)
    plan.fill(area, rng.choice([Ground.DRIVE, Ground.CONCRETE, Ground.ASPHALT],
                               p=[0.6, 0.2, 0.2]))
    turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
    use, stall = rng.uniform(0.1, 0.9), rng.uniform(2.4, 2.8)
    paint = Ground.YELLOW if likely(rng, 0.15) else Ground.WHITE
    rows = [-across / 2 + 2.6, across / 2 - 2.6] if across < 20 else [
        -across / 2 + 2.6, -2.6, 2.6, across / 2 - 2.6]
    unit = plan.new_unit()
    for row in rows:
        for k in range(int((along - 1.0) // stall) + 1):
            x = -along / 2 + 0.5 + stall * k
            bar = np.array([[x - 0.06, row - 2.4], [x + 0.06, row - 2.4],
                            [x + 0.06, row + 2.4], [x - 0.06, row + 2.4]])
            plan.fill(bar @ turn + centre, paint, unit)
            if x + stall < along / 2:
                spot = np.array([x + stall / 2, row]) @ turn + centre
                plan.car_slots.append(CarSlot(
                    *map(float, spot), float(yaw + np.pi / 2 + np.pi * rng.integers(2)),
                    use))
