"""The surface of the streets: pavements, wear, patches, lines, arrows and junctions."""

import cv2
import numpy as np

from training.simulation.place import Ground, HALF_M, PX_M, Road
from training.simulation.planning.land import find_sidewalk_edge, find_stretches
from training.simulation.planning.plan import likely, Plan


def paint_streets(plan: Plan) -> None:
    """Strips beside the carriageway, drives over them, the carriageway and its markings."""
    rng = plan.rng
    d, walk = plan.outside, plan.walk_mask
    strip = (d > 0) & (d <= plan.kerb_m + plan.verge_m) & (plan.mask == 0)
    if plan.traits.is_open:
        strip &= d <= rng.uniform(0.3, 2.2)
    if plan.verge_m or not plan.traits.is_dense:
        plan.kind[strip] = plan.verge_kind
        plan.unit[strip] = plan.new_unit()
    walk_kind = int(rng.choice([Ground.CONCRETE, Ground.PAVING, Ground.DRIVE],
                               p=[0.6, 0.25, 0.15]))
    over = likely(rng, 0.5)  # drives run over the pavement
    if over:
        paint_walk(plan, walk, walk_kind)
    for polygon, kind in plan.lot_drives:
        plan.fill(polygon, kind)
    for polygon, kind in plan.lot_walks:
        plan.fill(polygon, kind)
    if not over:
        paint_walk(plan, walk, walk_kind)
    if plan.kerb_m:
        kerb = (d > 0) & (d <= plan.kerb_m) & (plan.mask == 0)
        plan.kind[kerb] = int(Ground.KERB)
        plan.unit[kerb] = plan.new_unit()
    islands = (plan.mask == 0) & (d > 0.3) & make_island_mask(plan)
    plan.kind[islands] = int(rng.choice([Ground.LAWN, Ground.CONCRETE, Ground.PAVING,
                                         Ground.BED], p=[0.5, 0.25, 0.15, 0.1]))
    street = plan.mask > 0
    surface = Ground.ASPHALT
    if plan.roads[0].grade == 'rural' and likely(rng, plan.traits.unpaved):
        surface = rng.choice([Ground.GRAVEL, Ground.SOIL])
    elif likely(rng, 0.07):
        surface = Ground.CONCRETE
    plan.paved = surface in (Ground.ASPHALT, Ground.CONCRETE)
    plan.kind[street] = int(surface)
    plan.unit[street] = plan.new_unit()
    if plan.kerb_m and plan.traits.gutters and likely(rng, 0.55):
        gutter = street & (plan.inside <= rng.uniform(0.3, 0.6))
        plan.kind[gutter] = int(Ground.GUTTER)
    wear_streets(plan, street)
    if plan.paved:
        for road in plan.roads:
            mark_road(plan, road)


def paint_walk(plan: Plan, walk, kind: int) -> None:
    plan.kind[walk] = kind
    plan.unit[walk] = plan.new_unit()
    rng = plan.rng
    step = rng.choice([0.0, 1.5, 2.5, 5.0])
    if kind == Ground.CONCRETE and step:  # joints between slabs
        joints = np.zeros_like(plan.stain)
        for road in plan.roads:
            for side in (1, -1):
                s = np.arange(0.0, road.line.length, step)
                inner = road.line.offset(s, np.full(s.size, side * (road.half_m + 0.1)))
                outer = road.line.offset(s, np.full(s.size, side * find_sidewalk_edge(plan, road)))
                lines = [np.stack((plan.pixels(a), plan.pixels(b)))
                         for a, b in zip(inner, outer)]
                cv2.polylines(joints, lines, False, 1, 1, cv2.LINE_8, 4)
        plan.stain[(joints > 0) & walk] = 90


def make_island_mask(plan: Plan) -> np.ndarray:
    mask = np.zeros_like(plan.mask)
    for road in plan.roads:
        if road.median_m >= 0.5:
            cv2.fillPoly(mask, [plan.pixels(plan.ribbon(
                road.line, 0, road.line.length, road.median_m, -road.median_m))], 1,
                cv2.LINE_8, 4)
    if plan.roundabout:
        cv2.circle(mask, plan.pixels(plan.roundabout[0]).tolist(),
                   int(plan.roundabout[1] / PX_M * 16), 1, -1, cv2.LINE_8, 4)
    return mask > 0


def wear_streets(plan: Plan, street) -> None:
    """Patches, cracks, joints, covers: what stays on a carriageway for years."""
    rng = plan.rng
    for road in plan.roads:
        length = road.line.length
        for _ in range(rng.poisson(rng.choice([1.0, 4.0, 10.0]) * length / 150)):
            s, long = rng.uniform(0, length), rng.uniform(0.8, 6.0)
            wide = rng.uniform(0.5, 3.0)
            if likely(rng, 0.2):
                long, wide = rng.uniform(8, 40), rng.uniform(0.6, road.half_m)
            left = rng.uniform(-1, 1) * road.half_m
            layer = np.zeros_like(plan.mask)
            polygon = plan.ribbon(road.line, s, min(s + long, length), left - wide / 2,
                                  left + wide / 2)
            pixels = plan.pixels(polygon)
            low = np.clip((pixels.min(0) >> 4) - 1, 0, plan.count - 1)
            high = np.clip((pixels.max(0) >> 4) + 2, low + 1, plan.count)
            layer = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
            cv2.fillPoly(layer, [pixels - (low << 4).astype(np.int32)], 1, cv2.LINE_8, 4)
            view = (slice(low[1], high[1]), slice(low[0], high[0]))
            plan.unit[view][(layer > 0) & street[view]] = plan.new_unit()
        cracks = []
        for _ in range(rng.poisson(rng.choice([2.0, 15.0, 50.0]) * length / 150)):
            s, left = rng.uniform(0, length), rng.uniform(-1, 1) * road.half_m
            start = road.line.offset(s, left)
            if np.abs(start).max() > HALF_M:
                continue
            angle = rng.uniform(-np.pi, np.pi)
            steps = rng.normal(0, 0.35, (int(rng.integers(4, 16)), 2)) + 0.5 * np.array(
                [np.cos(angle), np.sin(angle)])
            cracks.append(plan.pixels(start + np.cumsum(steps, 0)))
        layer = np.zeros_like(plan.stain)
        cv2.polylines(layer, cracks, False, 1, 1, cv2.LINE_8, 4)
        plan.stain[(layer > 0) & street] = int(rng.choice([60, 85, 100]))
        for _ in range(rng.poisson(length / 25)):
            s = rng.uniform(0, length)
            spot = road.line.offset(s, rng.uniform(-0.95, 0.95) * road.half_m)
            pixels = plan.pixels(spot)
            if np.abs(spot).max() < HALF_M - 1:
                radius = int(rng.uniform(0.25, 0.4) / PX_M * 16)
                cv2.circle(plan.kind, pixels.tolist(), radius, int(Ground.COVER), -1,
                           cv2.LINE_8, 4)
        tracks = np.zeros_like(plan.stain)
        lane = road.lane_m
        for k in range(-(road.lanes // 2), road.lanes // 2):
            middle = np.sign(k + 0.5) * road.median_m + (k + 0.5) * lane
            polygon = plan.ribbon(road.line, 0, length, middle - 0.5, middle + 0.5)
            cv2.fillPoly(tracks, [plan.pixels(polygon)], 1, cv2.LINE_8, 4)
        dark = (tracks > 0) & street & (plan.stain == 128)
        plan.stain[dark] = int(128 - rng.uniform(0, 26))


def mark_road(plan: Plan, road: Road) -> None:
    """Lines of one road, by its grade and the country's habits."""
    rng = plan.rng
    marked = {'local': 0.35, 'main': 0.92, 'arterial': 1.0, 'rural': 0.7, 'country': 0.95,
              'highway': 1.0}.get(road.grade, 0.3)
    if not likely(rng, marked):
        return
    centre = Ground.YELLOW if plan.yellow_centre and likely(rng, 0.9) else Ground.WHITE
    unit, width = plan.new_unit(), rng.uniform(0.1, 0.16)
    dash, gap = ((3.0, 9.0) if road.grade in ('highway', 'arterial') else
                 (rng.uniform(1.5, 4.0), rng.uniform(2.0, 6.0)))
    edge_line = likely(rng, {'local': 0.15, 'main': 0.4, 'rural': 0.7, 'country': 0.9,
                             'highway': 1.0, 'arterial': 0.5}.get(road.grade, 0.2))
    style = str(rng.choice(['double', 'single', 'dashed'], p={
        'arterial': [0.7, 0.1, 0.2], 'main': [0.35, 0.15, 0.5],
        'country': [0.6, 0.05, 0.35]}.get(
            road.grade, [0.2, 0.15, 0.65])))
    for s0, s1 in find_stretches(road, rng.uniform(2.0, 6.0)):
        if road.median_m < 0.3:
            if style == 'double':
                for left in (-0.14, 0.14):
                    paint_line(plan, road, s0, s1, left, width, centre, unit)
            elif style == 'single':
                paint_line(plan, road, s0, s1, 0.0, width, centre, unit)
            else:
                paint_dashes(plan, road, s0, s1, 0.0, width, centre, unit, dash, gap)
        for k in range(1, road.lanes // 2):
            for side in (1, -1):
                paint_dashes(plan, road, s0, s1, side * (road.median_m + k * road.lane_m), width,
                             Ground.WHITE, unit, dash, gap)
        if edge_line:
            for side in (1, -1):
                inset = 0.0 if road.shoulder_m else rng.uniform(0.2, 0.5)
                paint_line(plan, road, s0, s1, side * (road.drive_m - inset), width,
                           Ground.WHITE, unit)
                if road.median_m >= 0.3:
                    paint_line(plan, road, s0, s1, side * (road.median_m + 0.25), width,
                               centre, unit)
        if road.parking_m and likely(rng, 0.5):
            for side in (1, -1):
                paint_line(plan, road, s0, s1, side * road.drive_m, width, Ground.WHITE, unit)
                for s in np.arange(s0 + 2, s1 - 6, 6.0):
                    plan.fill(plan.ribbon(road.line, s, s + 0.12, side * road.drive_m,
                                          side * road.half_m), Ground.WHITE, unit)
    for s, half in road.junctions:
        if s > road.line.length - 1.0:
            continue
        if road.grade not in ('rural', 'country', 'highway') or likely(rng, 0.4):
            mark_junction(plan, road, s, half, unit)


def mark_junction(plan: Plan, road, s, half, unit) -> None:
    """Stop lines, crossings and arrows on both sides of a junction."""
    rng = plan.rng
    crossing = str(rng.choice(['none', 'bars', 'lines'], p=plan.traits.crossings))
    minor = s < 1.0  # a side road meets its main road here
    for way in ((1,) if minor else (-1, 1)):
        near = s + way * (half + rng.uniform(1.5, 3.5))
        if crossing == 'bars':
            wide = rng.uniform(0.4, 0.7)
            for left in np.arange(-road.half_m + 0.5, road.half_m - 0.4, wide * 2):
                plan.fill(plan.ribbon(road.line, near, near + way * 3.0, left, left + wide),
                          Ground.WHITE, unit)
        elif crossing == 'lines':
            for at in (near, near + way * rng.uniform(2.2, 3.2)):
                plan.fill(plan.ribbon(road.line, at, at + way * 0.3, -road.half_m + 0.2,
                                      road.half_m - 0.2), Ground.WHITE, unit)
        if likely(rng, 0.75 if minor or road.grade == 'arterial' else 0.3):
            stop = near + way * (4.5 if crossing != 'none' else 0.3)
            # Traffic towards the junction keeps to its own side.
            side = way * (1 if plan.left_hand else -1)
            thick = rng.uniform(0.2, 0.6)
            left0, left1 = sorted((
                side * (road.median_m + 0.15), side * (road.drive_m - 0.1)))
            if plan.left_hand and likely(rng, 0.5):
                for left in np.arange(left0, left1, 0.9):
                    plan.fill(plan.ribbon(road.line, stop, stop + way * thick, left,
                                          left + 0.55), Ground.WHITE, unit)
            else:
                plan.fill(plan.ribbon(road.line, stop, stop + way * thick, left0, left1),
                          Ground.WHITE, unit)
            if road.grade in ('arterial', 'main') and likely(rng, 0.6):
                for k in range(max(road.lanes // 2, 1)):
                    middle = side * (road.median_m + (k + 0.5) * road.lane_m)
                    paint_arrow(plan, road, stop + way * rng.uniform(4, 9), middle, -way, unit)


def paint_line(plan: Plan, road, s0, s1, left, width, kind, unit) -> None:
    plan.fill(plan.ribbon(road.line, s0, s1, left - width / 2, left + width / 2), kind, unit)


def paint_dashes(plan: Plan, road, s0, s1, left, width, kind, unit, dash, gap) -> None:
    for s in np.arange(s0 + 1.0, s1 - dash, dash + gap):
        paint_line(plan, road, s, s + dash, left, width, kind, unit)


def paint_arrow(plan: Plan, road, s, left, direction, unit) -> None:
    if not 1.0 < s < road.line.length - 1.0:
        return
    rng = plan.rng
    shape = np.array([(0, 0.09), (2.0, 0.09), (2.0, 0.35), (3.4, 0.0), (2.0, -0.35),
                      (2.0, -0.09), (0, -0.09)])
    if likely(rng, 0.5):  # a turn
        turn = rng.choice([-1, 1])
        shape = np.array([(0, 0.09), (1.6, 0.09), (1.6, 0.7), (1.3, 0.7), (1.8, 1.3),
                          (2.3, 0.7), (1.9, 0.7), (1.9, -0.09), (0, -0.09)]) * (1, turn)
    tangent = road.line.tangent(s) * direction
    normal = np.array([-tangent[1], tangent[0]])
    plan.fill(road.line.offset(s, left) + shape[:, :1] * tangent + shape[:, 1:] * normal,
              Ground.WHITE, unit)
