"""The roads of a place: their lines, widths and lanes."""

import numpy as np

from training.simulation.city import Line
from training.simulation.place import Road, STREET_REACH_M
from training.simulation.planning.plan import likely, Plan


def draw_bent_line(plan: Plan, start, heading, length, radius_m) -> Line:
    """A line of random curvature, at sharpest about ``radius_m``."""
    rng, step = plan.rng, 2.0
    n = int(length / step) + 1
    knots = rng.normal(0.0, 1.0, max(3, n // 12 + 3))
    curvature = np.interp(np.linspace(0, len(knots) - 1, n), np.arange(len(knots)), knots)
    headings = heading + np.cumsum(curvature * step / radius_m / 1.6)
    steps = step * np.stack((np.cos(headings), np.sin(headings)), 1)
    return Line(np.concatenate(([np.asarray(start, float)], start + np.cumsum(steps, 0))))


def lay_roads(plan: Plan) -> None:
    rng, traits = plan.rng, plan.traits
    grade = traits.other_grade if likely(rng, traits.other_grades) else traits.grade
    radius_m = {'local': rng.choice([60.0, 120.0, 500.0]), 'main': 250.0, 'arterial': 500.0,
                'rural': rng.choice([120.0, 400.0]), 'country': rng.choice([150.0, 600.0]),
                'highway': 600.0}[grade]
    heading = rng.uniform(-np.pi, np.pi)
    across = np.array([-np.sin(heading), np.cos(heading)])
    middle = across * rng.normal(0.0, 3.0)
    forward = draw_bent_line(plan, middle, heading, STREET_REACH_M, radius_m)
    backward = draw_bent_line(plan, middle, heading + np.pi, STREET_REACH_M, radius_m)
    line = Line(np.concatenate((backward.points[:0:-1], forward.points)))
    plan.roads.append(draw_road(plan, line, grade))
    main, centre_s = plan.roads[0], backward.length

    for _ in range(0 if grade == 'highway' else min(int(rng.poisson(traits.side_roads)), 4)):
        s = centre_s + rng.uniform(-75.0, 75.0)
        side_grade = str(rng.choice(traits.side_grades))
        if not main.clear(s, 18.0):
            continue
        point, tangent = main.line.at(s), main.line.tangent(s)
        angle = np.radians(rng.normal(90.0, 10.0) if rng.random() < 0.85
                           else rng.choice([-1, 1]) * rng.uniform(20, 40) + 90.0)
        toward = np.arctan2(tangent[1], tangent[0]) + angle
        ways = [0.0, np.pi] if likely(rng, 0.42) else [float(rng.choice([0.0, np.pi]))]
        half = None
        for way in ways:
            ends = likely(rng, traits.dead_ends)
            length = rng.uniform(35.0, 60.0) if ends else STREET_REACH_M
            line = draw_bent_line(
                plan, point, toward + way, length, rng.choice([60.0, 150.0, 600.0]))
            road = draw_road(plan, line, side_grade, half)
            half = road.half_m
            road.junctions.append((0.0, main.half_m))
            if ends:
                road.junctions.append((road.line.length, 10.0))
            plan.roads.append(road)
        main.junctions.append((s, half))
    if likely(rng, traits.parallel_road):
        shift = rng.choice([-1, 1]) * rng.uniform(55.0, 90.0)
        s = np.arange(0.0, main.line.length, 4.0)
        line = Line(main.line.offset(s, np.full(s.size, shift)))
        plan.roads.append(draw_road(plan, line, 'local'))
    plan.roundabout = None
    if main.junctions and grade in ('local', 'main') and likely(rng, 0.12):
        s, half = main.junctions[0]
        plan.roundabout = (main.line.at(s), rng.uniform(4.0, 9.0), rng.uniform(4.5, 6.5))
        main.junctions[0] = (s, plan.roundabout[1] + plan.roundabout[2])


def draw_road(plan: Plan, line: Line, grade: str, half_m: float | None = None) -> Road:
    rng = plan.rng
    if grade == 'arterial':
        lane, lanes = rng.uniform(3.0, 3.6), int(rng.choice([4, 4, 5, 6]))
        median = rng.choice([0.0, rng.uniform(0.6, 4.0)], p=[0.5, 0.5])
        return Road(line, lane * lanes / 2 + median, grade, lanes, float(median))
    if grade == 'highway':
        median, shoulder = rng.choice([rng.uniform(3.0, 8.0), 0.4]), rng.uniform(1.0, 3.0)
        return Road(line, 2 * 3.6 + shoulder + median, grade, 4, float(median),
                    shoulder_m=float(shoulder))
    if grade == 'country':
        shoulder = rng.choice([rng.uniform(0.2, 0.6), rng.uniform(0.6, 3.0)])
        lanes = int(rng.choice([2, 4], p=[0.85, 0.15]))
        return Road(line, rng.uniform(3.2, 3.7) * lanes / 2 + shoulder, grade, lanes,
                    shoulder_m=float(shoulder))
    if grade == 'rural':
        return Road(line, half_m or rng.uniform(2.3, 3.9), grade)
    if grade == 'main':
        parking = rng.choice([0.0, 2.2], p=[0.5, 0.5])
        lanes = 4 if likely(rng, plan.traits.wide_streets) else 2
        half = half_m or rng.uniform(3.0, 3.7) * lanes / 2 + parking + rng.choice([0.0, 1.5])
        return Road(line, half, grade, lanes, 0.0, float(parking))
    half = half_m or rng.uniform(*plan.traits.local_half_m)
    return Road(line, half, grade, 2, 0.0, 2.0 if half > 4.6 else 0.0)
