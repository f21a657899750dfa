"""Where cameras and traffic may be."""

import numpy as np

from training.simulation.place import Spot
from training.simulation.planning.plan import Plan


def find_lane_spots(plan: Plan) -> list[Spot]:
    found = []
    for road in plan.roads:
        lane = road.lane_m
        for s in np.arange(1.0, road.line.length - 1.0, 7.0):
            tangent = road.line.tangent(s)
            for side in (1, -1):
                k = plan.rng.integers(max(road.lanes // 2, 1))
                left = side * (road.median_m + (k + 0.5) * lane)
                x, y = road.line.offset(s, left)
                if plan.is_inside(x, y):
                    ahead = (side > 0) == plan.left_hand
                    found.append(Spot(float(x), float(y), float(np.arctan2(
                        tangent[1], tangent[0]) + (0.0 if ahead else np.pi))))
    return found


def find_camera_spots(plan: Plan) -> list[Spot]:
    """Places on carriageways within 16 m of the middle, a metre from their edges."""
    rng, found = plan.rng, []
    for road in plan.roads:
        for s in np.arange(1.0, road.line.length - 1.0, 0.7):
            left = rng.uniform(-1.0, 1.0) * max(road.half_m - 1.0, 0.5)
            x, y = road.line.offset(s, left)
            if np.hypot(x, y) > 16.0 or plan.distance_at(x, y) > -0.7:
                continue
            tangent = road.line.tangent(s)
            back = (left > 0) != plan.left_hand
            found.append(Spot(float(x), float(y), float(np.arctan2(
                tangent[1], tangent[0]) + (np.pi if back else 0.0))))
    return found
