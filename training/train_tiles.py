"""Train the tile network: in simulation, or as the papers do; see ``recipes`` and ``loop``."""

import argparse
from dataclasses import replace
import math
import sys

import torch

from crossview_localizer.networks.safa import CVACT, ModelConfig, OXFORD
from training.data.datasets import load_world
from training.data.places_arguments import add_places_arguments, read_places
from training.distributed import Ranks
from training.initial import initial_network
from training.loop import train, TrainConfig
from training.losses import CrossViewLoss, LossConfig
from training.recipes.areas import AreaConfig, AreaRecipe
from training.recipes.pairs import DropBlock, PairConfig, PairRecipe
from training.run_arguments import add_run_arguments, changed_settings, run_training

LITE = ModelConfig(channels=64, heads=8, hidden=0, ground_view='camera', margin_px=0,
                   px_m=OXFORD.px_m, view_px=OXFORD.view_px)
LITE_SYNTHETIC = replace(LITE, px_m=0.375, view_px=128, margin_px=32)
PAPER = TrainConfig(learning_rate=5e-5, trunk_learning_rate=5e-5, epochs=1000, validate_epochs=10)
ECCVW = TrainConfig(learning_rate=1e-5, trunk_learning_rate=1e-5, epochs=100, validate_epochs=1)
SYNTHETIC = TrainConfig(steps=1500, warmup_steps=50, cosine=True, validate_steps=250,
                        weight_decay=1e-4, frozen_stages=2)
CVACT_PAIRS = PairConfig(radius_m=100.0, positive_m=0.0, correct_m=0.0, turns='none')
CVACT_LOSS = LossConfig(sigma_m=25.0, distance_power=2, hole_m=0.0)

CONFIGS = {
    'synthetic': (ModelConfig(), AreaConfig(), replace(SYNTHETIC, steps=3000)),

    # RA-L, Oxford: the local model; and the baseline, whose exact settings were not published.
    'oxford': (OXFORD, PairConfig(drop_block=True), PAPER),
    'oxford_global': (
        OXFORD, PairConfig('random', drop_block=True, loss=LossConfig('global')), PAPER),
    # The workshop paper on Oxford: without DropBlock; its other settings are taken from RA-L.
    'oxford_eccvw': (OXFORD, PairConfig(), PAPER),
    # The same task on a small trunk.
    'oxford_lite': (LITE, PairConfig(colours=True), replace(
        PAPER, learning_rate=1e-3, trunk_learning_rate=2e-4, epochs=100)),

    # The workshop paper's CVACT models (its weights take the squared distance), and SAFA itself.
    'cvact': (CVACT, replace(
        CVACT_PAIRS, batch=4, loss=replace(CVACT_LOSS, radius_m=100.0)), ECCVW),
    'cvact_global': (CVACT, replace(
        CVACT_PAIRS, sampler='random', batch=16, loss=replace(CVACT_LOSS, radius_m=math.inf)),
        ECCVW),
    'cvact_safa': (CVACT, replace(
        CVACT_PAIRS, sampler='random', batch=32, loss=LossConfig('safa')), ECCVW),

    # The papers' two losses on simulated drives of one route, on other days for validation.
    'synthetic_local': (LITE_SYNTHETIC, PairConfig(batch=16, colours=True), SYNTHETIC),
    'synthetic_global': (LITE_SYNTHETIC, PairConfig(
        'random', 16, colours=True, loss=LossConfig('global')), SYNTHETIC),
}


def train_tiles(args: argparse.Namespace, ranks: Ranks, command: str) -> None:
    model, data, config = CONFIGS[args.config]
    config = changed_settings(args, config)
    if args.heads is not None:
        model = replace(model, heads=args.heads)
    if args.loss is not None:
        data = replace(data, loss=replace(data.loss, kind=args.loss))
    sizes = {name: value for name in ('batch', 'chunk')
             if (value := getattr(args, name)) is not None}
    if sizes and not isinstance(data, PairConfig):
        raise ValueError(f"--{next(iter(sizes))} belongs to the papers' recipes; {args.config} "
                         'is none of them')
    data = replace(data, **sizes)

    if isinstance(data, AreaConfig):
        if not args.train or not args.val:
            raise ValueError(f'{args.config} takes --train and --val of prepared worlds')
        train_worlds, val_worlds = ([load_world(path) for path in paths]
                                    for paths in (args.train, args.val))
        network = initial_network(model, config.seed, args.init, args.random_trunk)
        recipe = AreaRecipe(data, network, config.seed, train_worlds, val_worlds)
        data_names = ', '.join(world.name for world in train_worlds)
    else:
        family = args.config.split('_')[0]
        args.data = args.data or {'synthetic': 'world'}.get(family, family)
        places = read_places(args, model)
        recipe = PairRecipe(data, config.seed, places)
        network = initial_network(model, config.seed, args.init, args.random_trunk)
        if data.drop_block:
            network.ground.corrupt = network.satellite.corrupt = DropBlock()
        data_names = places.name
    train(network, recipe, config, args.out, {
        'command': command, 'seed': config.seed, 'torch': torch.__version__, 'data': data_names,
        'data_note': args.data_note}, ranks)
    if ranks.rank == 0:
        recipe.finish(args.out)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.train_tiles', description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="""examples:
  python -m training.train_tiles --config synthetic --train runs/train/*.npz \\
    --val runs/val/*.npz --out runs/safa.safetensors
  torchrun --nproc-per-node 2 -m training.train_tiles --config oxford --train training.txt \\
    --val validation.txt --test test*.txt --root Oxford_5m_sampling --init vgg16.safetensors \\
    --mixed-precision --out runs/oxford.safetensors""")
    parser.add_argument('--config', choices=list(CONFIGS), default='synthetic',
                        help='network, data and settings (default synthetic)')
    add_places_arguments(parser, "the config's; synthetic takes prepared worlds as --train, --val")
    settings = add_run_arguments(parser)
    settings.add_argument('--loss', choices=CrossViewLoss.KINDS, help='kind of the loss')
    settings.add_argument('--heads', type=int, metavar='N', help='heads of the aggregation')
    settings.add_argument('--batch', type=int, metavar='N', help='pairs per step')
    settings.add_argument('--chunk', type=int, metavar='N', help='images per forward pass: the '
                          'same gradients in less memory and more time')
    command = 'python -m training.train_tiles ' + ' '.join(
        sys.argv[1:] if arguments is None else arguments)
    return run_training(
        parser, arguments, lambda args, ranks: train_tiles(args, ranks, command))


if __name__ == '__main__':
    sys.exit(main())
