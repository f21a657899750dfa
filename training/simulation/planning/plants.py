"""Trees and bushes."""

import numpy as np

from training.simulation.place import HALF_M, Tree
from training.simulation.planning.plan import likely, Plan


def plant_tree(plan: Plan, spot, low: float, high: float) -> None:
    rng = plan.rng
    height = rng.uniform(low, high)
    shape = str(rng.choice(['round', 'cone', 'column', 'palm'], p=[0.75, 0.13, 0.08, 0.04]))
    crown = height * {'round': rng.uniform(0.25, 0.55), 'cone': rng.uniform(0.15, 0.3),
                      'column': rng.uniform(0.08, 0.16), 'palm': 0.25}[shape]
    plan.trees.append(Tree(
        float(spot[0]), float(spot[1]), float(height), float(crown),
        tuple(rng.uniform(0.7, 1.3, 3) * rng.uniform(0.6, 1.5)),
        shape in ('cone', 'palm') or likely(rng, 0.25), int(rng.integers(1 << 30)), shape))


def plant_bush(plan: Plan, spot) -> None:
    if np.abs(spot).max() < HALF_M - 2 and likely(plan.rng, 0.6):
        plant_tree(plan, spot, 0.5, 2.0)


def plant_trees(plan: Plan, frame, width, edge, depth, count, low=2.5, high=13.0) -> None:
    """Trees on a lot, where nothing stands yet."""
    point, normal, yaw = frame
    along = np.array([np.cos(yaw), np.sin(yaw)])
    for _ in range(int(count)):
        spot = point + along * plan.rng.uniform(-0.5, 0.5) * width + normal * (
            edge + plan.rng.uniform(0.8, depth))
        if np.abs(spot).max() < HALF_M - 3 and plan.free(
                plan.rectangle(spot, 0.0, 1.0, 1.0)):
            plant_tree(plan, spot, low, high)
