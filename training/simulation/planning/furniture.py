"""Poles, wires, lamps, signs and signals, and what surrounds a place."""

import numpy as np

from training.simulation.city import CarSlot
from training.simulation.mesh import Material
from training.simulation.place import HALF_M, Part, Road
from training.simulation.planning.land import lot_frame
from training.simulation.planning.plan import likely, Plan
from training.simulation.planning.plants import plant_tree


def place_furniture(plan: Plan) -> None:
    rng, traits = plan.rng, plan.traits
    for road in plan.roads:
        if likely(rng, traits.poles):
            put_poles(plan, road)
        if not traits.is_open and likely(rng, 0.8):
            put_lamps(plan, road)
        trees = likely(rng, traits.street_trees)
        step, tall = rng.uniform(7.0, 22.0), rng.uniform(*traits.street_tree_m)
        offset = plan.kerb_m + (plan.verge_m / 2 if plan.verge_m > 0.7 else 0.8)
        for side in (1, -1):
            for s in np.arange(3.0, road.line.length - 3.0, step):
                s = s + rng.normal(0, 1.0)
                if trees and road.clear(s, 7.0) and likely(rng, 0.75):
                    plant_tree(plan, road.line.offset(s, side * (road.half_m + offset)),
                               0.5 * tall, tall)
                if likely(rng, 0.15):
                    put_sign(plan, road, s, side)
            use = rng.uniform(0.0, 0.8) if road.grade in ('local', 'main') else 0.0
            inset = 1.05 if road.parking_m or road.half_m > 3.2 else -0.6
            for s in np.arange(2.0, road.line.length - 4.0, 6.2):
                if not road.clear(s, 7.0):
                    continue
                x, y = road.line.offset(s, side * (road.half_m - inset))
                tangent = road.line.tangent(s)
                yaw = np.arctan2(tangent[1], tangent[0]) + np.pi * rng.integers(2)
                plan.car_slots.append(CarSlot(float(x), float(y), float(yaw), use * 0.7))
    for road in plan.roads[:1]:
        for s, half in road.junctions:
            if likely(rng, traits.signals):
                put_signals(plan, road, s, half)


def put_poles(plan: Plan, road: Road) -> None:
    rng, side, group = plan.rng, plan.rng.choice([-1, 1]), plan.new_group()
    offset = road.half_m + plan.kerb_m + rng.uniform(0.6, 3.5)
    height, step = rng.uniform(7.0, 11.0), rng.uniform(28.0, 45.0)
    wires, previous = int(rng.integers(1, 5)), None
    for s in np.arange(rng.uniform(0, 20), road.line.length, step):
        x, y = road.line.offset(s, side * offset)
        if not plan.is_inside(x, y):
            previous = None
            continue
        z = plan.z(x, y)
        yaw = lot_frame(road, side, s)[2]
        plan.box((x, y, z), yaw, (0.28, 0.28, height), Part.BARK, group, 1.2, 0.7)
        plan.box((x, y, z + height - 0.8), yaw, (0.1, 2.0, 0.12), Part.BARK, group, 1.2)
        here = np.array([x, y, z + height - 0.5])
        if previous is not None:
            run = here - previous
            for k in range(wires):
                shift = np.array([-run[1], run[0], 0.0]) / np.linalg.norm(run) * (k - 1) * 0.6
                a, b = previous + shift, here + shift
                up = np.array([0, 0, 0.03])
                plan.builder.quads(np.stack((a, b, b + up, a + up))[None], Material.PLAIN,
                                   plan.code(Part.DARK, group))
        previous = here


def put_lamps(plan: Plan, road: Road) -> None:
    rng, side, group = plan.rng, plan.rng.choice([-1, 1]), plan.new_group()
    height, arm = rng.uniform(4.5, 10.0), rng.uniform(0.3, 2.5)
    for s in np.arange(rng.uniform(0, 15), road.line.length, rng.uniform(24, 45)):
        side = -side if likely(rng, 0.7) else side
        x, y = road.line.offset(s, side * (road.half_m + plan.kerb_m + 0.5))
        if not plan.is_beside_roads(x, y, 0.2):
            continue
        z, yaw = plan.z(x, y), lot_frame(road, side, s)[2]
        plan.box((x, y, z), yaw, (0.16, 0.16, height), Part.POLE, group, 1.0, 0.6)
        normal = lot_frame(road, side, s)[1]
        plan.box((x - normal[0] * arm / 2, y - normal[1] * arm / 2, z + height), yaw,
                 (0.14, arm + 0.3, 0.12), Part.POLE, group)


def put_sign(plan: Plan, road: Road, s, side) -> None:
    rng = plan.rng
    x, y = road.line.offset(s, side * (road.half_m + plan.kerb_m + rng.uniform(0.4, 1.5)))
    if not plan.is_beside_roads(x, y, 0.2):
        return
    z, yaw, group = plan.z(x, y), lot_frame(road, side, s)[2], plan.new_group()
    kind = rng.integers(3)
    if kind == 0:
        height = rng.uniform(1.8, 2.8)
        plan.box((x, y, z), yaw, (0.07, 0.07, height), Part.POLE, group)
        plan.box((x, y, z + height - 0.5), yaw, (0.6, 0.04, 0.6), Part.SIGN, group)
    elif kind == 1:  # a box of the post, a bin, a cabinet
        plan.box((x, y, z), yaw, rng.uniform(0.35, 1.0, 3) + [0, 0, 0.4], Part.SIGN, group)
    else:
        plan.box((x, y, z), yaw, (0.12, 0.12, rng.uniform(0.7, 1.1)), Part.POLE, group)


def put_signals(plan: Plan, road: Road, s, half) -> None:
    group = plan.new_group()
    for way in (-1, 1):
        at, side = s + way * (half + 3.0), way * (1 if plan.left_hand else -1)
        x, y = road.line.offset(at, side * (road.half_m + 0.8))
        if not plan.is_inside(x, y):
            continue
        z = plan.z(x, y)
        _, normal, yaw = lot_frame(road, side, at)
        reach = plan.rng.uniform(1.0, road.half_m)
        plan.box((x, y, z), yaw, (0.2, 0.2, 6.0), Part.POLE, group)
        x, y = x - normal[0] * reach / 2, y - normal[1] * reach / 2
        plan.box((x, y, z + 5.7), yaw, (0.12, reach, 0.12), Part.POLE, group)
        plan.box((x - normal[0] * reach / 2, y - normal[1] * reach / 2, z + 5.2), yaw,
                 (0.35, 0.35, 1.0), Part.DARK, group)


def surround_place(plan: Plan) -> None:
    """Houses and trees beyond the place, so that no view ends at an empty edge."""
    rng, traits = plan.rng, plan.traits
    for _ in range(traits.surroundings):
        spot = rng.uniform(-1, 1, 2)
        spot *= rng.uniform(HALF_M + 6, HALF_M + 90) / np.abs(spot).max()
        kx, ky, phase, amplitude = plan.waves.T
        z = float(np.sin(kx * spot[0] + ky * spot[1] + phase) @ amplitude)
        if not traits.is_open and likely(rng, 0.6):
            storeys = rng.integers(*traits.far_storeys)
            size = rng.uniform(8, 24), rng.uniform(8, 14), 3.0 * storeys
            yaw = rng.uniform(0, 2 * np.pi)
            plan.box((*spot, z - 0.5), yaw, size, Part.WALL)
            plan.box((*spot, z + size[2] - 0.5), yaw, (size[0] + .6, size[1] + .6, 2.5),
                     Part.ROOF, taper=0.3)
        for _ in range(2):
            plant_tree(plan, spot + rng.uniform(6, 16, 2) * rng.choice([-1, 1], 2), 4.0, 14.0)
