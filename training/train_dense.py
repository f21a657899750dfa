"""Train the dense matcher on rendered places and worlds.

``recipes/pose_likelihood`` has the loss and ``loop`` the training loop.
"""

import argparse
from dataclasses import replace
from pathlib import Path
import sys

import numpy as np

from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.networks.checkpoint import read_model_config
from crossview_localizer.networks.dense import DenseConfig
from crossview_localizer.networks.pixel_channels import PROPERTIES
from training.data.datasets import load_world
from training.distributed import Ranks
from training.initial import initial_network
from training.loop import train, TrainConfig
from training.recipes.pose_likelihood import PoseLikelihoodConfig, PoseLikelihoodRecipe
from training.run_arguments import add_run_arguments, changed_settings, run_training

CONFIG = TrainConfig(
    steps=2400, validate_steps=200, learning_rate=2e-3, trunk_learning_rate=5e-4,
    weight_decay=1e-4, warmup_steps=100, cosine=True, clip_norm=5.0, frozen_stages=2,
    average_steps=500)


def train_dense(args: argparse.Namespace, ranks: Ranks) -> None:
    config, model = changed_settings(args, CONFIG), DenseConfig(
        channels=16 + len(PROPERTIES), pixel_channels=len(PROPERTIES), centred=True)
    places = sorted(args.places.glob('place_*.npz')) if args.places else []
    if not (args.train or places):
        raise ValueError('nothing to train on: give --places FOLDER of training.render_places, or '
                         '--train WORLD... of training.prepare')
    if not (args.val or places):
        raise ValueError('nothing to validate on: give --val WORLD... or --places FOLDER')
    provenance = {'train_files': [path.name for path in args.train],
                  'places': [path.name for path in places],
                  'val_files': [path.name for path in args.val], 'data': args.data_note,
                  'random_trunk': args.random_trunk}
    if args.init:
        provenance['init'] = {'file': args.init.name, **read_model_config(args.init)[1]}
    train_worlds, val_worlds = ([load_world(path) for path in paths]
                                for paths in (args.train, args.val))
    if args.exact or args.no_changes:
        provenance['ablation'] = 'no changes' if args.no_changes else 'exact geometry'
    if args.image_blind:  # the confidence is fitted on these
        provenance['image_blind'] = True
        val_worlds = [replace(world, images=np.full_like(world.images, UNSEEN))
                      for world in val_worlds]
    network = initial_network(model, config.seed, args.init, args.random_trunk)
    likelihood = PoseLikelihoodConfig(
        augment=not args.no_changes, rough=not (args.exact or args.no_changes),
        image_blind=args.image_blind)
    recipe = PoseLikelihoodRecipe(
        likelihood, model, config.seed, train_worlds, val_worlds, places)
    train(network, recipe, config, args.out, provenance, ranks)
    if ranks.rank == 0:
        recipe.finish(args.out)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.train_dense', description=__doc__.splitlines()[0],
        epilog='example: python -m training.train_dense --places runs/places '
        '--out runs/dense.safetensors')
    parser.add_argument('--places', type=Path, metavar='FOLDER',
                        help='rendered places (training.render_places); a twentieth is kept for '
                        'validation')
    parser.add_argument('--train', nargs='+', type=Path, default=[], metavar='WORLD',
                        help='prepared worlds (training.prepare), mixed in')
    parser.add_argument('--val', nargs='+', type=Path, default=[], metavar='WORLD',
                        help='other worlds for validation; needed where there are no places')
    parser.add_argument('--image-blind', action='store_true',
                        help='train on grey images: the control that knows the map alone')
    parser.add_argument('--exact', action='store_true',
                        help='trust the heights, pitches and scales of the places (an ablation)')
    parser.add_argument('--no-changes', action='store_true',
                        help='and change no colours, sharpness or extent either (an ablation)')
    add_run_arguments(parser)
    return run_training(parser, arguments, train_dense)


if __name__ == '__main__':
    sys.exit(main())
