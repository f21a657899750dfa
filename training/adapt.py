"""Adapt the dense matcher to drives of one's own, without precise truth.

The drives are smoothed from GNSS and odometry (``data/own_drives``).  Training maximises the
likelihood of the images over all places where the vehicle may have been, and meanwhile finds a
slow offset for each drive (``recipes/smoothed_drives``).  The best weights on held-out stretches
are written if they are better there than the first ones (``evaluation/held_out``).
"""

import argparse
from dataclasses import dataclass, replace
import json
import math
from pathlib import Path
import shutil
import time

import torch

from crossview_localizer.networks.checkpoint import (
    fingerprint_of,
    load_network,
    read_model_config,
)
from crossview_localizer.networks.dense import DENSE, DenseNetwork
from training.data.own_drives import prepare_drives
from training.distributed import ALONE, Ranks
from training.evaluation.held_out import judge_frames, reason_to_refuse, summary, table
from training.loop import backward, Objective, set_training, train, TrainConfig
from training.recipes.pose_likelihood import PoseLikelihoodConfig
from training.recipes.smoothed_drives import (
    CorrectedWorlds,
    estimate_offsets,
    OffsetConfig,
    SmoothedDriveRecipe,
)
from training.run_arguments import run_training

CONFIG = TrainConfig(
    learning_rate=5e-4, trunk_learning_rate=1.25e-4, weight_decay=1e-4, warmup_steps=50,
    cosine=True, clip_norm=5.0, frozen_stages=2, average_steps=100)
LIKELIHOOD = PoseLikelihoodConfig(world_share=0.7)
ALL_STAGES = 99            # more stages than a trunk has: only the heads are trained
VALIDATIONS = 10
FEWEST_STEPS, MOST_STEPS = 100, 6000
HELD_OUT_FRAMES = 200      # for the table and the decision
# Scoring a frame takes this share of the time of a frame in a training step.
SCORING_SHARE = 0.6


class NoGain(ValueError):
    """The adapted weights are not better; the message says why."""


@dataclass(frozen=True)
class Adaptation:
    """What is adapted, to what, and how long."""

    init: Path
    train_files: list[Path]
    held_out_files: list[Path]
    work: Path                       # folder of what a stopped run needs
    places: tuple[Path, ...] = ()
    steps: int = 0                   # 0: as many as ``hours`` allow
    hours: float = 4.0
    freeze: bool = False
    seed: int = 0
    held_out_frames: int = HELD_OUT_FRAMES
    validations: int = VALIDATIONS
    offsets: OffsetConfig = OffsetConfig()
    likelihood: PoseLikelihoodConfig = LIKELIHOOD

    @property
    def weights(self) -> Path:
        """The best weights so far, which are those to begin with at first."""
        return self.work / 'adapted.safetensors'


def adapt(adaptation: Adaptation, ranks: Ranks = ALONE) -> dict[str, dict]:
    """Train, fit the confidence, and judge: the rows before and after, as ``summary`` gives them.

    Raises NoGain if ``adaptation.weights`` are not better on the held-out stretches.
    """
    network = network_to_begin_with(adaptation.init)
    recipe = SmoothedDriveRecipe(
        adaptation.likelihood, network.config, adaptation.seed, adaptation.train_files,
        adaptation.held_out_files, adaptation.places, adaptation.offsets)
    config = replace(CONFIG, seed=adaptation.seed,
                     frozen_stages=ALL_STAGES if adaptation.freeze else CONFIG.frozen_stages)
    steps = planned_steps(adaptation, network, recipe, config, ranks)
    config = replace(
        config, steps=steps, validate_steps=math.ceil(steps / adaptation.validations),
        warmup_steps=min(config.warmup_steps, steps // 10),
        average_steps=min(config.average_steps, math.ceil(steps / 5)))
    provenance = {
        'init': {'file': adaptation.init.name, **read_model_config(adaptation.init)[1]},
        'train_files': [path.name for path in adaptation.train_files],
        'places': len(adaptation.places)}
    train(network, recipe, config, adaptation.weights, provenance, ranks, validate_first=True)
    if ranks.rank:
        return {}
    recipe.finish(adaptation.weights)
    first, count = load_network(adaptation.init), adaptation.held_out_frames
    # The pose of a held-out frame comes from GNSS, odometry, and the matches of the first weights
    # on the other stretches: neither its own image nor the weights to be judged decide it.
    _, offsets = estimate_offsets(
        first, recipe.files, adaptation.offsets, first.config.match_errors, seen=1)
    held_out = CorrectedWorlds(recipe.files[1], *offsets)
    before = judge_frames(first, held_out, count)
    adapted = load_network(adaptation.weights)
    after = judge_frames(adapted, held_out, count)
    exchanged = judge_frames(adapted, held_out, count, exchanged=True)
    rows = {'before': summary(before), 'adapted': summary(after),
            'adapted, exchanged images': summary(exchanged)}
    print('held-out stretches, judged by GNSS, odometry and the images of the others:\n'
          + table(rows))
    if reason := reason_to_refuse(before, after, exchanged):
        raise NoGain(reason)
    return rows


def network_to_begin_with(init: Path) -> DenseNetwork:
    """The network of a file whose scores are log-likelihoods: the temperature is in its scale."""
    network = load_network(init)
    if network.config.kind != DENSE:
        raise ValueError(f'{init} holds a tile network; expected weights of the dense matcher')
    with torch.no_grad():
        network.log_scale -= math.log(network.config.temperature)
    network.config = replace(network.config, temperature=1.0)
    return network


def planned_steps(adaptation: Adaptation, network: DenseNetwork, recipe: SmoothedDriveRecipe,
                  config: TrainConfig, ranks: Ranks) -> int:
    """Plan the number of steps and print the time, or take over the plan of a stopped run."""
    plan = adaptation.work / 'plan.json'
    if ranks.rank == 0 and not plan.is_file():
        step_s = seconds_per_step(network, recipe, config, ranks)
        likelihood, offsets = adaptation.likelihood, adaptation.offsets
        frame_s = SCORING_SHARE * step_s / (likelihood.groups * likelihood.group_size)
        drives = len({int(recipe.files[0].frames(n)['drive'][0])
                      for n in range(len(adaptation.train_files))})
        validation_s = frame_s * (2 * likelihood.validation_groups + offsets.frames * drives)
        end_s = frame_s * (3 * adaptation.held_out_frames + 2 * offsets.confidence_frames
                           + offsets.frames * drives)
        other_s = (adaptation.validations + 1) * validation_s + end_s
        steps = adaptation.steps or min(MOST_STEPS, max(
            FEWEST_STEPS, int((3600.0 * adaptation.hours - other_s) / step_s)))
        total_h = (steps * step_s + other_s) / 3600.0
        print(f'{len(recipe.frames)} frames of {drives} drives in '
              f'{len(adaptation.train_files)} stretches for training, '
              f'{len(adaptation.held_out_files)} stretches held out; a step takes {step_s:.2f} s: '
              f'{steps} steps, about {total_h:.1f} h in all', flush=True)
        plan.write_text(json.dumps({'steps': steps, 'asked': asked(adaptation)}))
    ranks.from_first(True)    # the other ranks wait for the plan
    planned = json.loads(plan.read_text())
    other = [name for name, value in asked(adaptation).items()
             if planned['asked'][name] != value]
    if other:
        raise ValueError(f'{adaptation.work} is of a run with other {", ".join(other)}; expected '
                         'the same, or delete the folder to start again')
    return int(planned['steps'])


def asked(adaptation: Adaptation) -> dict:
    """The options that a run must share with the stopped run that it continues."""
    return {'--steps': adaptation.steps, '--hours': adaptation.hours,
            '--init': fingerprint_of(adaptation.init),
            '--mix': [path.name for path in adaptation.places]}


def seconds_per_step(network, recipe, config: TrainConfig, ranks: Ranks) -> float:
    """The time of the second of two steps that change nothing."""
    network.to(ranks.device, memory_format=torch.channels_last)
    recipe.to(ranks.device)
    set_training(network, config.frozen_stages)
    alone = replace(ranks, rank=0, count=1)
    for number in range(2):
        parts = recipe.draw(number, alone)
        started_s = time.monotonic()
        backward(Objective(network, recipe, alone), parts, alone)
    network.zero_grad(set_to_none=True)
    return time.monotonic() - started_s


def adapt_bags(args: argparse.Namespace, ranks: Ranks) -> None:
    """The command: prepare the bags, adapt, and write ``args.out`` where that is a gain."""
    from crossview_localizer.bags.arguments import topics_from_arguments
    from crossview_localizer.config import LocalizerConfig, NodeConfig
    from crossview_localizer.parameter_file import read_parameters
    from crossview_localizer.ros.localizer_holder import shipped_weights

    if not args.hours > 0.0:
        raise ValueError(f'--hours {args.hours}; expected more than 0')
    init = Path(shipped_weights()) if args.init is None else args.init
    places = tuple(sorted(args.mix.glob('place_*.npz'))) if args.mix else ()
    if args.mix and not places:
        raise ValueError(f'{args.mix} holds no place_*.npz; expected a folder of '
                         'training.render_places')
    model = read_model_config(init)[0]
    node_config, config = (read_parameters(args.params) if args.params
                           else (NodeConfig(), LocalizerConfig()))
    topics = topics_from_arguments(args)
    work = args.out.with_suffix('.adapt')
    work.mkdir(parents=True, exist_ok=True)
    if ranks.rank == 0:
        if args.fit_camera:
            config = with_fitted_camera(args.bags[0], node_config, config, topics)
        prepare_drives(args.bags, args.imagery, work / 'prepared', model.px_m, node_config, config,
                       topics, args.seed)
    ranks.from_first(True)    # the other ranks wait for the files
    train_files, held_out_files = (
        sorted((work / 'prepared' / part).glob('*.npz')) for part in ('train', 'held_out'))
    try:
        adapt(Adaptation(
            init, train_files, held_out_files, work, places, args.steps, args.hours, args.freeze,
            args.seed), ranks)
    except NoGain as reason:
        raise ValueError(f'{reason}: keep {init}; no {args.out} is written') from None
    if ranks.rank:
        return
    shutil.copyfile(work / 'adapted.safetensors', args.out)
    sheets = ' '.join(map(str, args.imagery))
    built = args.out.with_suffix('.map')
    print(f'\n{args.out} is better on the held-out stretches. Next:\n'
          f'  ros2 run crossview_localizer build_map {sheets} --weights {args.out} '
          f'--route {args.bags[0]} --out {built}\n'
          f'  ros2 launch crossview_localizer robotcar.launch.py map:={built} weights:={args.out}')


def with_fitted_camera(bag: Path, node_config, config, topics):
    """The parameters with the camera's height and pitch from the motion in a bag."""
    from crossview_localizer.bags.camera_calibration import fit_motion, fitted_camera, summary

    motion = fit_motion(bag, node_config, config, topics)
    print(summary(motion, None, config.camera))
    return replace(config, camera=fitted_camera(motion, config.camera))


def main(arguments=None) -> int:
    from crossview_localizer.bags.arguments import add_topic_arguments

    parser = argparse.ArgumentParser(
        prog='adapt', description=__doc__.splitlines()[0],
        epilog='example: ros2 run crossview_localizer adapt drive1 drive2 '
        '--imagery orthophoto.tif --out mine.safetensors')
    parser.add_argument('bags', nargs='+', type=Path, metavar='BAG',
                        help='drives with images, camera_info, fixes and odometry; ground truth, '
                        'where there is any, is only reported')
    parser.add_argument('--imagery', nargs='+', type=Path, required=True, metavar='ORTHO',
                        help='GeoTIFFs of the area')
    parser.add_argument('--out', type=Path, required=True,
                        help='weights file to write; what a stopped run needs is kept beside it')
    parser.add_argument('--init', type=Path, metavar='WEIGHTS',
                        help='weights to begin with (default: those shipped)')
    parser.add_argument('--hours', type=float, default=4.0,
                        help='time that training may take (default 4)')
    parser.add_argument('--steps', type=int, default=0,
                        help='number of training steps (default: as many as --hours allow)')
    parser.add_argument('--mix', type=Path, metavar='PLACES',
                        help='rendered places (training.render_places), against forgetting')
    parser.add_argument('--freeze', action='store_true',
                        help='train the heads only: for a few hundred frames')
    parser.add_argument('--fit-camera', action='store_true',
                        help="fit the camera's height and pitch to the first drive, as "
                        'calibrate_camera does')
    parser.add_argument('--params', type=Path,
                        help='parameter file of the node: camera, frames, noise of the sensors')
    add_topic_arguments(
        parser, ('image', 'camera_info', 'gnss', 'odometry', 'tf_static', 'truth'))
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--mixed-precision', action='store_true',
                        help='compute in bfloat16 where that is safe')
    parser.add_argument('--threads', type=int, default=1, metavar='N',
                        help='CPU threads of torch (more than there are free cores is far slower)')
    parser.add_argument('--seed', type=int, default=0, help='seed of all random draws')
    return run_training(parser, arguments, adapt_bags)
