"""One rank of a training that is timed: its steps alone, without validation; ``bench`` starts it.

``torchrun -m benchmarks.speed.training_rank RECIPE WORLD STEPS OUT``: rank 0 writes
seconds a step.
"""

from dataclasses import replace
import json
from pathlib import Path
import sys
import tempfile
import time

import torch

from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig
from training import train_dense
from training.data.datasets import load_world
from training.distributed import join_ranks, leave_ranks, Ranks
from training.recipes.areas import AreaRecipe
from training.train_tiles import CONFIGS, train

WARM_STEPS = 2
NEVER = 10**9


class StepsAlone(AreaRecipe):
    """The synthetic recipe without its validation."""

    def validate(self, network, ranks: Ranks) -> tuple[dict[str, float], float]:
        return {self.score_name: 0.0}, 1.0


def run(recipe: str, world, steps: int, out: Path, ranks: Ranks) -> None:
    if recipe == 'dense':
        config = train_dense.DenseTrainConfig(steps=NEVER, validate_every=NEVER)
        train_dense.train(random_network(DenseConfig(), 0), config, [world], [world],
                          out / 'dense.safetensors', {}, ranks, stop_after=steps)
        return
    model, config = CONFIGS['synthetic']
    areas = StepsAlone(config.data, model, 0, [world], [world])
    train(model, replace(config, steps=steps, validate_steps=NEVER), areas,
          out / f'tiles{steps}.safetensors', random_network(model, 0), {}, ranks)


def main() -> int:
    recipe, world_path, steps, out = sys.argv[1:]
    torch.set_num_threads(1)
    ranks = join_ranks('cpu', False)
    try:
        world = load_world(Path(world_path))
        with tempfile.TemporaryDirectory(dir=Path(out).parent) as folder:
            run(recipe, world, WARM_STEPS, Path(folder), ranks)
            begin_s = time.perf_counter()
            run(recipe, world, int(steps), Path(folder), ranks)
            ranks.tell(True)  # the last rank's end is the training's
            if ranks.rank == 0:
                Path(out).write_text(json.dumps((time.perf_counter() - begin_s) / int(steps)))
    finally:
        leave_ranks()
    return 0


if __name__ == '__main__':
    sys.exit(main())
