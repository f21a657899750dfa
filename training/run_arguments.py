"""What the training commands share: arguments, and how they run."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from crossview_localizer.command import run_command
from training.distributed import joined_ranks, Ranks
from training.initial import TRUNK_PACKAGE
from training.loop import TrainConfig


def add_run_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add what every training command takes; returns the group of training settings."""
    parser.add_argument('--out', type=Path, required=True, help='weights file to write')
    begin = parser.add_mutually_exclusive_group()
    begin.add_argument('--init', type=Path, metavar='WEIGHTS',
                       help='begin with these weights (see also training.import_weights)')
    begin.add_argument('--random-trunk', action='store_true',
                       help=f'begin with random weights in place of {TRUNK_PACKAGE} (a control)')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--mixed-precision', action='store_true',
                        help='compute in bfloat16 where that is safe')
    parser.add_argument('--threads', type=int, default=1, metavar='N',
                        help='CPU threads of torch (more than there are free cores is far slower)')
    parser.add_argument('--data-note', default='', metavar='TEXT',
                        help='where the data come from; written into the weights file')
    settings = parser.add_argument_group("training (default: the configuration's)")
    settings.add_argument('--steps', type=int, metavar='N', help='optimizer steps')
    settings.add_argument('--learning-rate', type=float, metavar='RATE',
                          help='rate of the heads; that of the trunks changes in proportion')
    settings.add_argument('--patience', type=int, metavar='N',
                          help='stop after this many validations without a gain')
    settings.add_argument('--seed', type=int, metavar='N', help='seed of all random draws')
    return settings


def changed_settings(args: argparse.Namespace, config: TrainConfig) -> TrainConfig:
    """The ``TrainConfig`` with what the command line says otherwise."""
    changes = {name: value for name in ('steps', 'seed', 'patience', 'learning_rate')
               if (value := getattr(args, name)) is not None}
    if args.learning_rate is not None:
        changes['trunk_learning_rate'] = (
            args.learning_rate * config.trunk_learning_rate / config.learning_rate)
    return replace(config, **changes)


def run_training(parser: argparse.ArgumentParser, argv: list[str] | None,
                 work: Callable[[argparse.Namespace, Ranks], None]) -> int:
    """Call ``work`` with the parsed arguments and this process's rank; return the exit code."""
    def with_ranks(args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        with joined_ranks(args.device, args.mixed_precision) as ranks:
            work(args, ranks)

    return run_command(
        parser, argv, with_ranks,
        'interrupted; the same command goes on from the last validation')
