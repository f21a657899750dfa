"""Paint on the carriageway of a city, and the bays where cars park."""

import numpy as np

from training.simulation.city import CarSlot, Marking
from training.simulation.city_planning.plan import CityPlan


def paint_ribbon(plan: CityPlan, street, s0, s1, left_m, width_m, yellow=False):
    s = np.linspace(s0, s1, max(2, int((s1 - s0) / 2.0) + 1))
    outer = street.line.offset(s, np.full(s.size, left_m + width_m / 2))
    inner = street.line.offset(s, np.full(s.size, left_m - width_m / 2))
    plan.city.markings.append(Marking(np.concatenate((outer, inner[::-1])), yellow))


def paint_markings(plan: CityPlan, street):
    rng, city, line = plan.rng, plan.city, street.line
    s0, s1 = street.trim_a_m, line.length - street.trim_b_m
    if s1 - s0 < 8.0:
        return
    half, lane = street.half_width_m, street.lane_m
    degree = [sum(node in (o.a, o.b) for o in city.streets) for node in (street.a, street.b)]

    # Zebra crossings: bars along the street, no bays and no centre line on them.
    zebras = [s for s in ((s0 + 3.0), (s1 - 6.0)) if rng.random() < 0.22 and s1 - s0 > 30]
    if rng.random() < 0.15 and s1 - s0 > 60:
        zebras.append((s0 + s1) / 2)
    for z0 in zebras:
        for offset in np.arange(-half + 0.4, half - 0.3, 1.2):
            paint_ribbon(plan, street, z0, z0 + 3.0, offset + 0.3, 0.6)
        for across in (z0 - 1.6, z0 + 4.4):
            paint_ribbon(plan, street, across, across + 0.2, 0.0, 2 * half - 1.0)
        x, y = line.offset(z0, -half + 0.4)
        city.landmarks[f'zebra_{len(city.landmarks)}'] = np.array([
            x, y, float(city.ground(x[None], y[None])[0])])

    def clear(a, b):
        return all(b < z - 2.5 or a > z + 5.5 for z in zebras)

    # Centre line and edge lines.
    dash, gap, width = (4.0, 2.0, 0.15) if street.main else (2.0, 4.0, 0.12)
    if street.main or rng.random() < 0.6:
        for s in np.arange(s0 + 2.0, s1 - dash - 2.0, dash + gap):
            if clear(s, s + dash):
                paint_ribbon(plan, street, s, s + dash, 0.0, width)
    if street.main and not street.parking and rng.random() < 0.5:
        for side in (-1, 1):
            paint_ribbon(plan, street, s0 + 2, s1 - 2, side * (half - 0.35), 0.15)
    elif not street.parking and rng.random() < 0.6:
        for side in (-1, 1):
            for inset in (0.25, 0.52):
                paint_ribbon(plan, street, s0 + 1, s1 - 1, side * (half - inset), 0.11, True)

    # Parking bays and the cars' places in them.
    if street.parking:
        use = rng.uniform(0.25, 0.85)
        marked = rng.random() < 0.6
        for side in (-1, 1):
            for s in np.arange(s0 + 5.0, s1 - 10.0, 5.7):
                if rng.random() < 0.12 or not clear(s - 4, s + 9):
                    continue
                if marked:
                    paint_ribbon(plan, street, s, s + 5.7, side * lane, 0.12)
                    for across in (s, s + 5.6):
                        paint_ribbon(plan, street, across, across + 0.12, side * (lane + 1.0), 2.0)
                x, y = line.offset(s + 2.85, side * (lane + 1.05))
                tangent = line.tangent(s + 2.85)
                yaw = np.arctan2(tangent[1], tangent[0]) + (np.pi if side < 0 else 0.0)
                yaw += np.pi * (rng.random() < 0.2)
                city.car_slots.append(CarSlot(float(x), float(y), float(yaw), use))

    # Give-way or stop lines on the lane that approaches each junction; arrows on main roads.
    for at_b, many in ((False, degree[0] > 2), (True, degree[1] > 2)):
        if not many or rng.random() < (0.45 if street.main else 0.2):
            continue
        s, side, back = (s1 - 0.6, 1, -1) if at_b else (s0 + 0.4, -1, 1)
        if not clear(s, s + 1):
            continue
        middle = plan.driving_side * side * lane / 2
        if rng.random() < 0.4:
            paint_ribbon(plan, street, s, s + 0.3, middle, lane - 0.3)
        else:
            for row in (0.0, 0.45):
                for offset in np.arange(-lane / 2 + 0.4, lane / 2 - 0.2, 0.9):
                    paint_ribbon(plan, street, s + row, s + row + 0.2, middle + offset, 0.6)
        if street.main and rng.random() < 0.6:
            paint_arrow(plan, street, s + back * rng.uniform(8, 14), middle, -back)


def paint_arrow(plan: CityPlan, street, s, left_m, direction):
    shape = np.array([(0, 0.08), (2.2, 0.08), (2.2, 0.3), (3.4, 0.0), (2.2, -0.3),
                      (2.2, -0.08), (0, -0.08)])
    if not 0 < s < street.line.length:
        return
    origin, tangent = street.line.offset(s, left_m), street.line.tangent(s) * direction
    normal = np.array([-tangent[1], tangent[0]])
    plan.city.markings.append(Marking(
        origin + shape[:, :1] * tangent + shape[:, 1:] * normal))
