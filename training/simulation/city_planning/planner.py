"""Lay out a city, step by step."""

import numpy as np

from training.simulation.city import BLOCK_M, City, MARGIN_M, WALL_FIELDS
from training.simulation.city_planning.blocks import build_outskirts, fill_blocks
from training.simulation.city_planning.frontages import build_frontage, put_garden_fences
from training.simulation.city_planning.furniture import place_furniture, plant_garden_trees
from training.simulation.city_planning.ground import (
    add_far_ground,
    add_ground,
    draw_terrain_waves,
    make_empty_rasters,
)
from training.simulation.city_planning.markings import paint_markings
from training.simulation.city_planning.plan import CityPlan
from training.simulation.city_planning.streets import draw_kerb_rasters, draw_street_network
from training.simulation.mesh import MeshBuilder


def build_city(seed: int, size_m: float = 500.0,
               block_m: tuple[float, float] = BLOCK_M) -> City:
    """Lay out the city of a seed.

    :raises ValueError: where size_m is too small for a street network.
    """
    if not 200.0 <= size_m <= 3000.0:
        raise ValueError(f'city size is {size_m:g} m; expected 200 to 3000')
    rng = np.random.default_rng([seed, 1])
    half_m = size_m / 2 + MARGIN_M
    waves = draw_terrain_waves(rng, half_m)
    style_weights = rng.dirichlet([1.4, 1.4, 1.0, 0.9, 0.8])
    streets = []
    while len(streets) < 4:  # a small city may miss the grid's crossings: lay it out again
        nodes, streets = draw_street_network(rng, size_m, style_weights, block_m)
    kerb_distance, pavement_width = draw_kerb_rasters(streets, half_m)
    city = City(
        seed, size_m, half_m, nodes, streets, waves, kerb_distance, pavement_width,
        *make_empty_rasters(half_m, rng), [], np.zeros((0, len(WALL_FIELDS))), None, [], [],
    )
    builder = MeshBuilder()
    add_ground(city, builder)
    add_far_ground(city, builder)
    plan = CityPlan(city, builder, rng)
    for street in city.streets:
        for side in (1, -1):
            build_frontage(plan, street, side)
    put_garden_fences(plan)
    fill_blocks(plan)
    build_outskirts(plan)
    for street in city.streets:
        paint_markings(plan, street)
        place_furniture(plan, street)
    plant_garden_trees(plan)
    city.walls = np.array(plan.walls, np.float32).reshape(-1, len(WALL_FIELDS))
    city.mesh = builder.build()
    return city
