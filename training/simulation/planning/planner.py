"""Lay out a place, step by step."""

from collections.abc import Sequence

import numpy as np

from training.simulation.city import Raster, WALL_FIELDS
from training.simulation.place import HALF_M, Place
from training.simulation.planning.furniture import place_furniture, surround_place
from training.simulation.planning.land import paint_ground, raise_ground
from training.simulation.planning.lots import place_lots
from training.simulation.planning.plan import Plan
from training.simulation.planning.regions import REGIONS
from training.simulation.planning.roads import lay_roads
from training.simulation.planning.spots import find_camera_spots, find_lane_spots
from training.simulation.planning.streets import paint_streets


def make_place(seed: int, regions: Sequence[str] = tuple(REGIONS)) -> Place:
    """Lay out the place of a seed, in one of ``regions``, drawn by their shares."""
    rng = np.random.default_rng([seed, 31])
    shares = np.array([REGIONS[region].share for region in regions])
    plan = Plan(seed, str(rng.choice(regions, p=shares / shares.sum())), rng)
    lay_roads(plan)
    paint_ground(plan)
    raise_ground(plan)
    place_lots(plan)
    paint_streets(plan)
    place_furniture(plan)
    surround_place(plan)
    half = HALF_M
    return Place(
        plan.seed, plan.region, half, plan.kind, plan.unit, plan.stain, plan.direction,
        plan.height, plan.waves, plan.builder.build(), plan.groups,
        np.array(plan.walls, np.float32).reshape(-1, len(WALL_FIELDS)), plan.trees,
        plan.car_slots, find_lane_spots(plan), find_camera_spots(plan),
        Raster(plan.building_mask, half, 1.0))
