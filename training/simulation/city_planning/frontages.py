"""What stands along a street of a city: buildings, gardens, fences and walls."""

import numpy as np

from training.simulation.city import CarSlot, KERB_M, STYLES
from training.simulation.city_planning.buildings import add_building, draw_look
from training.simulation.city_planning.plan import CityPlan
from training.simulation.mesh import Material


def build_frontage(plan: CityPlan, street, side):
    rng, line = plan.rng, street.line
    style = street.style if rng.random() < 0.8 else str(rng.choice(STYLES))
    s = street.trim_a_m + 1.0
    end = line.length - street.trim_b_m - 1.0
    edge = street.half_width_m + street.pavement_m + 0.35
    setback = {'terrace': rng.uniform(0.3, 3.5), 'semi': rng.uniform(4, 7.5),
               'detached': rng.uniform(5, 10), 'shops': 0.1, 'flats': rng.uniform(1, 6)}[style]
    look = draw_look(plan, style)
    boundary = rng.choice(['hedge', 'wall', 'none'], p=[0.42, 0.38, 0.20])
    while s < end - 5.0:
        if style in ('semi', 'detached') or rng.random() < 0.2:
            look = draw_look(plan, style)
        width = {'terrace': 4.8 + 1.2 * rng.random(), 'semi': rng.uniform(11, 14),
                 'detached': rng.uniform(9, 15), 'shops': rng.uniform(6, 13),
                 'flats': rng.uniform(14, 28)}[style]
        if style == 'terrace':
            width *= rng.integers(2, 5)
        gap = {'terrace': rng.choice([0.0, 1.2, 3.0], p=[0.6, 0.25, 0.15]),
               'semi': rng.uniform(2.4, 5), 'detached': rng.uniform(3, 9),
               'shops': rng.choice([0.0, 3.0], p=[0.85, 0.15]),
               'flats': rng.uniform(4, 14)}[style]
        if rng.random() < 0.05:
            s += rng.uniform(8, 22)
            continue
        width = min(width, end - s)
        if width < 4.5:
            break
        deep = {'terrace': rng.uniform(8, 10), 'semi': rng.uniform(8, 10),
                'detached': rng.uniform(8, 12), 'shops': rng.uniform(10, 17),
                'flats': rng.uniform(11, 16)}[style]
        back = setback + rng.uniform(-0.6, 0.6) * (style in ('semi', 'detached'))
        mid = s + width / 2
        tangent = line.tangent(mid)
        # The chord across a bend lies off the line: move out by its sagitta.
        chord = line.offset(np.array([s, s + width]), np.zeros(2)).mean(0) - line.at(mid)
        normal = side * np.array([-tangent[1], tangent[0]])
        bow = abs(float(chord @ normal))
        front = edge + back + bow
        centre = line.at(mid) + normal * (front + deep / 2)
        yaw = np.arctan2(tangent[1], tangent[0]) + (np.pi if side > 0 else 0.0)
        # yaw turned so that +y of the building's frame points away from the street
        yaw += np.pi
        plot = plan.rectangle(centre, yaw, width, deep)
        if not plan.free(plot):
            s += 4.0
            continue
        lay_gardens(plan, line.at(mid), normal, yaw, width + gap, edge, front, deep, style)
        put_boundary(plan, street, side, s - gap / 2, s + width + gap / 2, edge, back, boundary)
        plan.take(plot)
        add_building(plan, centre, yaw, width, deep, style, look)
        s += width + gap


def lay_gardens(plan: CityPlan, point, normal, yaw, width, edge, front, deep, style):
    """Front and rear plots: lawn, paving or gravel, each in its own shade."""
    rng = plan.rng
    paving = np.array([0.30, 0.28, 0.25])
    if style == 'shops':
        rear = paving * rng.uniform(0.5, 0.9)
    else:
        rear = plan.lawn * rng.uniform(0.75, 1.4) * rng.uniform(0.9, 1.1, 3)
    length = rng.uniform(9, 20)
    plan.paint(plan.rectangle(point + normal * (front + deep + length / 2), yaw, width,
                              length), rear, style != 'shops')
    if style != 'shops' and rng.random() < 0.7:  # a patio, a shed's base or a bed
        spot = point + normal * (front + deep + rng.uniform(1.5, length))
        patio = plan.rectangle(spot, yaw + rng.normal(0, 0.1), rng.uniform(2, width * 0.7),
                               rng.uniform(1.5, 4))
        plan.paint(patio, paving * rng.uniform(0.4, 1.2), False)
    if style != 'shops':
        shift = np.array([normal[1], -normal[0]]) * width / 2
        near, far = (point + normal * (front + deep + t) for t in (0.3, length))
        plan.fences += [(near + shift, far + shift)]
        if rng.random() < 0.6:
            plan.fences += [(far - shift, far + shift)]
    if front - edge < 0.8:
        plan.paint(plan.rectangle(point + normal * (edge + front) / 2, yaw, width,
                                  front - edge + 0.6), paving * rng.uniform(0.7, 1.1), False)
        return
    choice = rng.random()
    middle = point + normal * (edge + front) / 2
    strip = plan.rectangle(middle, yaw, width - 0.3, front - edge)
    if choice < 0.5:
        plan.paint(strip, plan.lawn * rng.uniform(0.8, 1.5), True)
    else:
        shade = [(0.34, 0.31, 0.26), (0.22, 0.15, 0.12), (0.16, 0.16, 0.16)][rng.integers(3)]
        plan.paint(strip, np.array(shade) * rng.uniform(0.8, 1.2), False)
    tangent = np.array([normal[1], -normal[0]])
    if style in ('semi', 'detached'):
        shift = tangent * rng.choice([-1, 1]) * (width / 2 - 1.9)
        drive = np.array([(0.14, 0.14, 0.14), (0.3, 0.22, 0.18), (0.4, 0.37, 0.32)][
            rng.integers(3)])
        plan.paint(plan.rectangle(point + normal * (edge + front) / 2 + shift, yaw, 3.0,
                                  front - edge + 0.3), drive, False)
        if front - edge > 5.0:
            spot = point + normal * (edge + front) / 2 + shift
            across = np.arctan2(normal[1], normal[0])
            plan.city.car_slots.append(CarSlot(*spot, float(across), rng.uniform(0.2, 0.8)))


def put_garden_fences(plan: CityPlan):
    """Fences and hedges between rear gardens, if nothing else stands there."""
    rng = plan.rng
    for start, stop in plan.fences:
        run = stop - start
        length = float(np.linalg.norm(run))
        yaw = float(np.arctan2(run[1], run[0]))
        hedge = rng.random() < 0.4
        thick, height = (rng.uniform(0.5, 1.1), rng.uniform(1.3, 2.2)) if hedge else (0.1, 1.8)
        rgb = (np.array([0.05, 0.085, 0.028]) if hedge else np.array([0.22, 0.15, 0.09])
               ) * rng.uniform(0.7, 1.5)
        pieces = max(1, round(length / 3.0))
        for k in range(pieces):
            x, y = start + run * (k + 0.5) / pieces
            footprint = plan.rectangle(np.array([x, y]), yaw, length / pieces, 0.6)
            if plan.free(footprint):
                plan.builder.box(
                    (x, y, plan.city.terrain(x, y) - 0.1), yaw,
                    (length / pieces, thick, height + 0.2 + KERB_M),
                    Material.LEAF if hedge else Material.PLAIN, rgb)


def put_boundary(plan: CityPlan, street, side, s0, s1, edge, setback, kind):
    """A wall or hedge behind the pavement, with a gap for the gate."""
    rng = plan.rng
    if kind == 'none' or setback < 1.2:
        return
    gate = rng.uniform(s0 + 1, s1 - 1)
    hedge = kind == 'hedge'
    height = rng.uniform(0.9, 1.9) if hedge else rng.uniform(0.5, 1.1)
    thick = rng.uniform(0.5, 1.0) if hedge else 0.25
    rgb = (np.array([0.05, 0.085, 0.028]) * rng.uniform(0.8, 1.5) if hedge else
           np.array([0.30, 0.15, 0.10]) * rng.uniform(0.8, 1.5))
    for low, high in ((s0, gate - 1.5), (gate + 1.5, s1)):
        if high - low < 0.8:
            continue
        for start in np.arange(low, high, 4.0):
            stop = min(start + 4.0, high)
            mid = (start + stop) / 2
            x, y = street.line.offset(mid, side * (edge + thick / 2 + 0.05))
            tangent = street.line.tangent(mid)
            plan.builder.box(
                (x, y, plan.city.terrain(x, y) - 0.2), np.arctan2(tangent[1], tangent[0]),
                (stop - start + 0.15, thick, height + 0.3),
                Material.LEAF if hedge else Material.PLAIN, rgb, 0.97 if hedge else 1.0)
