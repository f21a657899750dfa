"""One training run, whatever is learned: read ``train`` from top to bottom.

A ``Recipe`` says what is learned: it draws batches, computes their loss and validates. The loop
does the rest: learning rates, several ranks, the log, keeping the best weights, and continuing a
stopped run, with the same losses as in a run that was not stopped.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
import json
import math
from pathlib import Path
import time
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from crossview_localizer.files import write_atomically
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.dense import DenseNetwork
from crossview_localizer.networks.safa import SafaNetwork
from crossview_localizer.networks.trunks import EfficientNetLite0
from training.distributed import ALONE, Ranks
from training.import_weights import read_torch

Network = SafaNetwork | DenseNetwork


@dataclass(frozen=True)
class TrainConfig:
    """How long and how fast a network learns."""

    steps: int = 0                 # of the optimizer; 0: as many as ``epochs`` have
    epochs: int = 0
    validate_steps: int = 0        # steps between validations; 0: as ``validate_epochs`` have
    validate_epochs: int = 0
    patience: int = 0              # stop after this many validations without a gain; 0: never
    learning_rate: float = 1e-3
    trunk_learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup_steps: int = 0          # the rate rises linearly over these
    cosine: bool = False           # then falls to zero at the last step; else it stays
    clip_norm: float = 0.0         # longer gradients are shortened to this; 0: never
    frozen_stages: int = 0         # early stages of EfficientNet that keep their weights
    average_steps: int = 0         # validate and keep a moving average over these; 0: none
    seed: int = 0


class Recipe(Protocol):
    """What is learned: a torch module whose own parameters (a temperature) are trained too.

    All random draws depend only on the seed and the step, so that a stopped run can continue.
    """

    config: Any            # a dataclass, stored with the weights
    epoch_length: int      # steps
    score_name: str        # the metric by which the best weights are chosen; less is better

    def draw(self, step: int, ranks: Ranks) -> list[Any]:
        """This rank's parts of a step's batch; the loop calls it in a thread, a step ahead.

        Each part passes the network by itself.
        """

    def forward(self, network: Network, part: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
        """The part's share of the step's ``loss`` and of other scalars to log.

        The shares of all parts on all ranks add up to the step's.
        """

    def validate(self, network: Network, ranks: Ranks) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics, and fields of the network's config that were fitted; rank 0 calls it.

        What it changes in the recipe's buffers, all ranks have from the next step on.
        """

    def finish(self, path: Path) -> None:
        """Fit what is fitted once, on the best weights at ``path``, and store it there."""


class Objective(nn.Module):
    """Network and recipe as one module, as DistributedDataParallel takes them."""

    def __init__(self, network: Network, recipe: Recipe, ranks: Ranks):
        super().__init__()
        self.network, self.recipe, self.ranks = network, recipe, ranks

    def forward(self, part) -> dict[str, torch.Tensor]:
        return self.recipe(self.network, part, self.ranks)


def train(network: Network, recipe: Recipe, config: TrainConfig, out: Path, provenance: dict,
          ranks: Ranks = ALONE, on_validation: Callable[[dict], None] = lambda line: None,
          validate_first: bool = False) -> None:
    """Train the network and keep in ``out`` the weights that validate best.

    With ``validate_first`` these are never worse than those that the run began with.
    ``out`` with the suffix ``.state`` holds what a stopped run needs to go on from its last
    validation, ``.jsonl`` the log. ``on_validation`` gets each line of it, after both are saved.
    Raises ValueError if that state is of a run with other settings, or the loss not finite.
    """
    epoch = recipe.epoch_length
    config = replace(config, steps=config.steps or config.epochs * epoch,
                     validate_steps=config.validate_steps or config.validate_epochs * epoch)
    settings = {'model': asdict(network.config), 'recipe': asdict(recipe.config),
                **asdict(replace(config, steps=0, patience=0))}
    network.to(ranks.device, memory_format=torch.channels_last)
    recipe.to(ranks.device)
    set_training(network, config.frozen_stages)
    optimizer = make_optimizer(network, config)
    modules = {'network': network, 'recipe': recipe, 'optimizer': optimizer}
    best = network         # what is validated and kept
    if config.average_steps:
        average = modules['average'] = AveragedModel(
            network, avg_fn=partial(averaged, steps=config.average_steps))
        best = average.module
    state = RunState(
        out.with_suffix('.state'), json.dumps(settings, sort_keys=True), modules)
    state.load()
    step, first = state.step, ranks.rank == 0
    if first:
        log = Log(out, step)
    progress = tqdm(total=config.steps, initial=step, desc='train', mininterval=5.0,
                    disable=not first)
    objective = ranks.wrap(Objective(network, recipe, ranks))
    sums, steps, started_s, stop = {}, 0, time.monotonic(), False

    def validate_and_keep_best() -> None:
        means = {f'train_{name}': (ranks.sum(total) / steps).item()
                 for name, total in sums.items()}
        if first:
            best.eval()
            metrics, fitted = recipe.validate(best, ranks)
            set_training(network, config.frozen_stages)
            line = {'step': step, **means, **metrics, 'seconds': time.monotonic() - started_s}
            log.write(line)
            if state.judge(step, metrics[recipe.score_name]):
                best.config = replace(best.config, **fitted)
                save_network(best, out, provenance | {
                    'step': step, 'validation': metrics,
                    'train_config': asdict(config) | {'recipe': asdict(recipe.config)}})
            state.save()
            on_validation(line)
        ranks.copy_buffers_from_first(recipe)

    if validate_first and math.isinf(state.best):
        validate_and_keep_best()
    with ThreadPoolExecutor(1) as ahead:
        next_parts = ahead.submit(recipe.draw, step, ranks)
        while step < config.steps and not stop:
            parts = next_parts.result()
            next_parts = ahead.submit(recipe.draw, step + 1, ranks)

            set_learning_rate(optimizer, learning_rate_factor(step, config))
            optimizer.zero_grad(set_to_none=True)
            seed_generator(config.seed, step, ranks.rank)
            terms = backward(objective, parts, ranks)
            loss = terms['loss'].item()
            if not math.isfinite(loss):
                raise ValueError(f'the loss is {loss} at step {step}; a lower --learning-rate '
                                 'helps')
            if config.clip_norm:
                nn.utils.clip_grad_norm_(objective.parameters(), config.clip_norm)
            optimizer.step()
            if config.average_steps:
                average.update_parameters(network)
            step, steps = step + 1, steps + 1
            sums = {name: sums.get(name, 0.0) + term for name, term in terms.items()}
            progress.update(1)
            progress.set_postfix(loss=f'{loss:.4f}', refresh=False)
            if step % config.validate_steps and step != config.steps:
                continue

            validate_and_keep_best()
            sums, steps = {}, 0
            next_parts = ahead.submit(recipe.draw, step, ranks)  # it may depend on the buffers
            stop = ranks.from_first(0 < config.patience <= state.since_best)
    progress.close()
    if stop and first:
        print(f'stopped at step {step}: {state.since_best} validations without a gain')


def backward(objective: nn.Module, parts: list, ranks: Ranks) -> dict[str, torch.Tensor]:
    """Leave the step's gradients in the parameters, the same on all ranks.

    Returns the sum over this rank's parts of what the recipe gives.
    """
    sums = {}
    for number, part in enumerate(parts):
        with ranks.exchange(objective, number == len(parts) - 1):
            terms = objective(part)
            # The exchange takes the mean over the ranks; the step's loss is the sum.
            (ranks.count * terms['loss']).backward()
        for name, term in terms.items():
            sums[name] = sums.get(name, 0.0) + term.detach()
    return sums


def set_training(network: Network, frozen_stages: int) -> None:
    """Put the network into training mode, except the parts that keep their pretrained values.

    These are all statistics of batch norm, and the stem and first stages of EfficientNet.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for trunk in (network.ground.trunk, network.satellite.trunk):
        if isinstance(trunk, EfficientNetLite0) and frozen_stages:
            for module in (trunk.stem, *trunk.blocks[:frozen_stages]):
                module.requires_grad_(False)


def make_optimizer(network: Network, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a separate rate for the trunks."""
    trunk = [parameter for branch in (network.ground, network.satellite)
             for parameter in branch.trunk.parameters() if parameter.requires_grad]
    in_trunk = set(trunk)
    rest = [parameter for parameter in network.parameters()
            if parameter.requires_grad and parameter not in in_trunk]
    groups = [
        {'params': trunk, 'lr': config.trunk_learning_rate, 'weight_decay': config.weight_decay},
        {'params': rest, 'lr': config.learning_rate, 'weight_decay': config.weight_decay}]
    for group in groups:
        group['full_rate'] = group['lr']
    return torch.optim.AdamW(groups)


def averaged(mean: torch.Tensor, new: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """An exponential moving average over about ``steps``, or over fewer at the beginning."""
    return torch.lerp(mean, new, max(1.0 / steps, 9.0 / (float(count) + 10.0)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group['lr'] = group['full_rate'] * factor


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """A linear rise, then a constant, or a cosine to zero at ``config.steps``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if not config.cosine:
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def seed_generator(*numbers: int) -> None:
    """Let what a step draws on the device (dropout) depend on these numbers alone."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class RunState:
    """What a stopped run needs to go on; ``modules`` are loaded and saved with it."""

    def __init__(self, path: Path, settings: str, modules: dict[str, Any]):
        self.path, self.settings, self.modules = path, settings, modules
        self.step, self.best, self.since_best = 0, math.inf, 0

    def judge(self, step: int, score: float) -> bool:
        """Note a validation; return whether it is the best so far."""
        self.step, self.since_best = step, self.since_best + 1
        if score < self.best:
            self.best, self.since_best = score, 0
        return self.since_best == 0

    def load(self) -> None:
        """Load the state at ``path``, if there is one."""
        if not self.path.exists():
            return
        found = read_torch(self.path)
        if found.get('settings') != self.settings:
            raise ValueError(f'{self.path} is of a run with other settings; give another --out, '
                             'or delete it to begin anew')
        for name, module in self.modules.items():
            module.load_state_dict(found[name])
        self.step, self.best, self.since_best = (
            found[name] for name in ('step', 'best', 'since_best'))

    def save(self) -> None:
        with write_atomically(self.path) as writing:
            torch.save({
                **{name: module.state_dict() for name, module in self.modules.items()},
                'step': self.step, 'best': self.best, 'since_best': self.since_best,
                'settings': self.settings}, writing)


class Log:
    """A line per validation: on the console, in ``.jsonl``, and for TensorBoard if installed.

    What a killed run logged after its last state, at ``step``, is dropped: it comes again.
    """

    def __init__(self, out: Path, step: int):
        self.path = out.with_suffix('.jsonl')
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        self.path.write_text(''.join(
            line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= step))
        if step:
            print(f'{out}: going on after step {step}')
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.board = None
            print(f'TensorBoard is not installed (pip install tensorboard); {self.path} has the '
                  'validations')
        else:
            self.board = SummaryWriter(out.with_suffix('.tensorboard'), purge_step=step + 1)

    def write(self, line: dict[str, float]) -> None:
        with self.path.open('a') as file:
            file.write(json.dumps(line) + '\n')
        tqdm.write('  '.join(f'{name} {value:.4g}' for name, value in line.items()))
        if self.board:
            for name, value in line.items():
                self.board.add_scalar(name, value, line['step'])
            self.board.flush()
