"""One rank of a training run that is timed without its validation; ``training_speed`` starts it.

``torchrun -m benchmarks.speed.training_rank RECIPE WORLD STEPS OUT``: rank 0 writes the seconds
per step to OUT.
"""

import json
from pathlib import Path
import sys
import tempfile
import time

import torch

from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig
from crossview_localizer.networks.safa import ModelConfig
from training.data.datasets import load_world, World
from training.distributed import joined_ranks, Ranks
from training.loop import train, TrainConfig
from training.recipes.areas import AreaConfig, AreaRecipe
from training.recipes.pose_likelihood import PoseLikelihoodConfig, PoseLikelihoodRecipe

WARM_STEPS = 2


def time_steps(recipe_name: str, world: World, steps: int, out: Path, ranks: Ranks) -> float:
    """Seconds that so many steps take, with the start of the run but without validation."""
    network = random_network(DenseConfig() if recipe_name == 'dense' else ModelConfig(), 0)
    recipe = (
        PoseLikelihoodRecipe(PoseLikelihoodConfig(), network.config, 0, [world], [world])
        if recipe_name == 'dense' else AreaRecipe(AreaConfig(), network, 0, [world], [world]))
    recipe.validate = lambda network, ranks: ({recipe.score_name: 0.0}, {})
    begin_s = time.perf_counter()
    train(network, recipe, TrainConfig(steps=steps, validate_steps=steps, frozen_stages=2), out,
          {}, ranks)
    return time.perf_counter() - begin_s


def main() -> int:
    recipe_name, world_path, steps, out = sys.argv[1:]
    torch.set_num_threads(1)
    world = load_world(Path(world_path))
    with (joined_ranks('cpu') as ranks,
          tempfile.TemporaryDirectory(dir=Path(out).parent) as folder):
        time_steps(recipe_name, world, WARM_STEPS, Path(folder) / 'warm.safetensors', ranks)
        seconds_s = time_steps(
            recipe_name, world, int(steps), Path(folder) / 'timed.safetensors', ranks)
        if ranks.rank == 0:
            Path(out).write_text(json.dumps(seconds_s / int(steps)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
