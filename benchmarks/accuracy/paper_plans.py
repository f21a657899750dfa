"""The plans of the comparison of the papers' losses, and the towns and places of a plan."""

from dataclasses import dataclass, fields, is_dataclass, replace
import hashlib
import json
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
import torch

from crossview_localizer.networks.safa import ModelConfig, OXFORD
from training.data.datasets import load_world, Places, places_of_world, World
from training.loop import TrainConfig
from training.losses import LossConfig
from training.recipes.pairs import PairConfig, PairRecipe
from training.simulate import simulate
from training.train_tiles import CVACT_LOSS, LITE

RADIUS_M, WIDE_M, TOLERANCE_M = 50.0, 100.0, 5.0
TOWNS_APART_M = 10_000.0

# What sets the losses apart: the RA-L paper's, the workshop paper's (ECCVw, its CVACT models), and
# the global baseline.
LOSSES = {
    'local': {'sampler': 'local', 'loss': LossConfig('local')},
    'eccvw': {'sampler': 'local', 'radius_m': WIDE_M, 'positive_m': 0.0,
              'loss': replace(CVACT_LOSS, radius_m=WIDE_M)},
    'global': {'sampler': 'random', 'loss': LossConfig('global')},
}


@dataclass(frozen=True)
class Plan:
    """World and budget of a comparison."""

    world_seed: int                    # of the first town, the next ones have the next seeds
    train_days: int
    val_days: int
    test_days: int
    city_size_m: float
    route_m: float                     # in each town
    model: ModelConfig
    pairs: PairConfig                  # of all; each run sets its loss and sampler,
    train: TrainConfig                 # and its rate, seed and steps
    rates: tuple[float, ...]
    rate_steps: int                    # of the short runs that choose the rate
    seeds: tuple[int, ...] = (0, 1, 2)
    image_px: tuple[int, int] = (320, 240)
    rate_hz: float = 1.0
    longest_s: float = 600.0           # a drive ends here if it has not reached the route's end
    ortho_px_m: float = 0.4
    towns: int = 1
    losses: tuple[str, ...] = ('local', 'global')


PAIRS = PairConfig(batch=64, turns='none', held_out_tiles=False)
# The trunk keeps its ImageNet weights, fusion and heads learn: minutes on one core.
CPU = Plan(
    world_seed=701, train_days=10, val_days=1, test_days=2, city_size_m=600.0, route_m=1600.0,
    model=replace(LITE, px_m=2 * OXFORD.px_m, view_px=128),
    pairs=PAIRS,
    train=TrainConfig(steps=1000, warmup_steps=50, cosine=True, weight_decay=1e-4,
                      frozen_stages=7, validate_steps=200),
    rates=(3e-4, 1e-3, 3e-3), rate_steps=300)
PLANS = {
    'cpu': CPU,
    # On this short route a random batch of 64 has 4.7 places 5 to 50 m from each of its own; on
    # the papers' 12 Oxford drives it is 1.0. A batch of 16 has 1.1 here. This plan was fixed
    # after the validation day of the plan above was seen, but before any test day.
    'cpu_16': replace(CPU, rate_steps=500, pairs=replace(PAIRS, batch=16), train=replace(
        CPU.train, steps=2000, validate_steps=500)),
    # Routes of 8.4 km: a random batch of 64 has 1.0 places 5 to 50 m from each of its own, as on
    # the papers' drives. Tiles of the other days are negatives, as in the papers, so that local
    # batches are full. Sizes, steps and rates were fixed after runs of 300 steps on the validation
    # day, where the global baseline found 35 % (the papers' log: 82 %), before any test day.
    'towns': Plan(
        world_seed=720, towns=4, train_days=3, val_days=1, test_days=1, city_size_m=600.0,
        route_m=2100.0, image_px=(192, 144),
        model=replace(CPU.model, channels=32, hidden=16),
        pairs=replace(PAIRS, held_out_tiles=True),
        train=replace(CPU.train, steps=800, validate_steps=400),
        rates=(3e-3, 1e-2), rate_steps=300, seeds=(0, 1, 2, 3, 4),
        losses=('local', 'eccvw', 'global')),
    'smoke': Plan(
        world_seed=703, train_days=1, val_days=1, test_days=1, city_size_m=250.0, route_m=150.0,
        model=replace(LITE, px_m=2 * OXFORD.px_m, view_px=128, channels=8, heads=2, hidden=4),
        pairs=replace(PAIRS, batch=4),
        train=TrainConfig(steps=6, frozen_stages=7, validate_steps=3),
        rates=(1e-3, 3e-3), rate_steps=3, seeds=(0, 1)),
}


def worlds_of(plan: Plan, folder: Path) -> list[World]:
    """The rendered towns, made in ``folder`` unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    days = plan.train_days + plan.val_days + plan.test_days
    seeds = range(plan.world_seed, plan.world_seed + plan.towns)
    return [load_world(simulate(
        seed, folder, plan.image_px, plan.rate_hz, plan.longest_s, days, torch.get_num_threads(),
        plan.model.px_m, city_size_m=plan.city_size_m, route_m=plan.route_m,
        ortho_px_m=plan.ortho_px_m)) for seed in seeds]


def places_of(plan: Plan, worlds: list[World]) -> Places:
    """The days of all towns as places; the towns lie far apart."""
    ends = np.cumsum((plan.train_days, plan.val_days, plan.test_days))
    names = ('train', 'val', 'test')
    split_of_day = {
        day: names[int(np.searchsorted(ends, day, 'right'))] for day in range(ends[-1])}
    towns = [places_of_world(world, split_of_day, plan.model.tile_px, plan.model.ground_view,
                             plan.model.view_px) for world in worlds]
    first = np.cumsum([0] + [len(town) for town in towns])

    def reader(name):
        def read(place: int) -> np.ndarray:
            number = int(np.searchsorted(first, place, 'right')) - 1
            return getattr(towns[number], name)(place - int(first[number]))
        return read

    return Places(
        ', '.join(town.name for town in towns),
        np.concatenate([town.positions_m + (k * TOWNS_APART_M, 0.0)
                        for k, town in enumerate(towns)]),
        *(np.concatenate([getattr(town, column) for town in towns])
          for column in ('yaw_rad', 'split', 'drive', 'stamp_us', 'has_ground')),
        reader('read_ground'), reader('read_satellite'))


def neighbours_in_random_batch(places: Places, size: int) -> float:
    """How many others of a random batch lie 5 to 50 m from an image, in the mean."""
    tree = cKDTree(places.positions_m[places.trainable()])
    far, near = (tree.count_neighbors(tree, radius_m) for radius_m in (RADIUS_M, TOLERANCE_M))
    return float((far - near) / tree.n * (size - 1) / (tree.n - 1))


def images_in_local_batch(plan: Plan, places: Places) -> float:
    """How many pairs of a local batch have an image of a training day, in the mean."""
    pairs, _ = settings_of_run(plan, 'local', 0.0, 0, 0)
    return float(np.mean([batch.has_ground.sum() for batch in PairRecipe(
        pairs, 0, places).batches_of_epoch(0)]))


def chosen(settings) -> dict[str, object]:
    """The fields of a dataclass that differ from their defaults.

    A new setting with a default thus leaves the hash of a plan as it was.
    """
    return {field.name: chosen(value) if is_dataclass(value) else value
            for field in fields(settings)
            if (value := getattr(settings, field.name)) != field.default}


def world_hash(plan: Plan | None, worlds: list[World]) -> str:
    """The hash of the plan (without its seeds: more may be added) and of all pixels and poses."""
    digest = hashlib.sha256()
    if plan is not None:
        digest.update(json.dumps(chosen(replace(plan, seeds=())), sort_keys=True).encode())
    for world in worlds:
        for array in (world.imagery, world.images, world.poses, world.drive):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def settings_of_run(plan: Plan, kind: str, rate: float, seed: int,
                    steps: int) -> tuple[PairConfig, TrainConfig]:
    """The plan's settings with one of the losses and its sampler."""
    pairs = replace(plan.pairs, **LOSSES[kind])
    share = plan.train.trunk_learning_rate / plan.train.learning_rate
    return pairs, replace(plan.train, learning_rate=rate, trunk_learning_rate=rate * share,
                          seed=seed, steps=steps)
