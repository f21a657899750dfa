"""Lay out a place, step by step."""

import numpy as np

from training.simulation.city import Raster, WALL_FIELDS
from training.simulation.place import HALF_M, Place
from training.simulation.planning.furniture import place_furniture, surround_place
from training.simulation.planning.land import paint_ground, raise_ground
from training.simulation.planning.lots import place_lots
from training.simulation.planning.plan import Plan
from training.simulation.planning.roads import lay_roads
from training.simulation.planning.spots import find_camera_spots, find_lane_spots
from training.simulation.planning.streets import paint_streets

REGIONS = {
    'us_suburb': 0.24, 'au_suburb': 0.18, 'uk_town': 0.10, 'city': 0.12, 'arterial': 0.14,
    'rural': 0.14, 'industrial': 0.08,
}


def make_place(seed: int, region: str | None = None) -> Place:
    """Lay out the place of a seed, in ``region`` or one drawn with the shares of REGIONS."""
    rng = np.random.default_rng([seed, 31])
    drawn = str(rng.choice(list(REGIONS), p=list(REGIONS.values())))
    plan = Plan(seed, region or drawn, rng)
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
