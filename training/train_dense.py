"""Train the dense matcher: the likelihood of the true pose in its own score volume.

One step: a few groups; each shares one satellite window in which the frames' true poses lie
anywhere within the prior.  The score volume is the one that the node computes.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
import json
import math
from pathlib import Path
import sys
import time

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
import torch
from torch import nn
import torch.nn.functional as F
from tqdm import tqdm

from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.evaluation.pose_metrics import pose_errors
from crossview_localizer.geometry import Pose2D, wrap_angle
from crossview_localizer.matching.dense_matcher import (
    DenseMatcher,
    distance2_within,
    peak_of,
    peak_pose,
)
from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig, DenseNetwork, GAUSSIAN_DOF
from crossview_localizer.trajectory import Track
from training.data.datasets import load_world, World
from training.distributed import ALONE, join_ranks, leave_ranks, Ranks
from training.recipes.dense_groups import (
    dense_group,
    dense_map,
    DenseGroup,
    prior_about,
    PRIOR_M,
    UNIFORM,
)
from training.train_tiles import learning_rate_factor, pretrained_trunk

SHARPENINGS = np.arange(1.0, 4.1, 0.25)
WRONG_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
AMBIGUOUS = 0.09  # of the validation frames; other towns shall have no more than a tenth
# A Student t has a covariance above 2 only, and is as good as Gaussian from 100 on.
LEAST_DOF, MOST_DOF = 2.1, 100.0
# What `finish` fits, and a further training fits anew.
FITTED = ('temperature', 'random_temperature', 'sharpening', 'min_mass', 'peak_inflation',
          'peak_dof')


@dataclass(frozen=True)
class DenseTrainConfig:
    steps: int = 2400
    groups: int = 2                # satellite windows a step
    group_size: int = 6            # frames a window, at most
    learning_rate: float = 2e-3
    trunk_learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 100
    frozen_stages: int = 2         # early trunk stages that keep their ImageNet weights
    validate_every: int = 200
    validation_groups: int = 60
    seed: int = 0


def group_loss(network: DenseNetwork, group: DenseGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood, nats, of each frame's true pose, and the error of the best cell, m.

    The likelihood at the truth is interpolated between the eight cells around it.
    """
    view, weight = network.ground(group.images, group.road, group.points)
    satellite = network.satellite(group.imagery)[0]
    scores = network.scores(  # in single precision, whatever the branches ran in
        view.float(), weight.float(), satellite.float(), group.yaws_rad, group.heading_rad)
    count, _, rows, cols = scores.shape
    log_p = F.log_softmax(scores.flatten(1), 1).view(scores.shape)      # (B, K, R, C)
    low = group.target.floor()
    fraction = group.target - low
    low = low.long()
    row, col = low[:, 0].clamp(0, rows - 2), low[:, 1].clamp(0, cols - 2)
    frame = torch.arange(count, device=scores.device)
    corners = []
    for k in (0, 1):
        for i in (0, 1):
            for j in (0, 1):
                share = torch.ones_like(fraction[:, 0])
                for axis, step in ((2, k), (0, i), (1, j)):
                    share = share * (fraction[:, axis] if step else 1.0 - fraction[:, axis])
                corners.append(
                    log_p[frame, k, row + i, col + j] + share.clamp(min=1e-6).log())
    nll = -torch.logsumexp(torch.stack(corners), 0)
    with torch.no_grad():
        best = log_p.amax(1).flatten(1).argmax(1)
        off = torch.stack((best // cols, best % cols), 1) - group.target[:, :2]
        error_m = off.norm(dim=1) * network.config.cell_m
    return nll, error_m


def freeze(network: DenseNetwork, stages: int) -> None:
    """Keep batch norm statistics, and the first stages' weights, as they came."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for branch in (network.ground, network.satellite):
        for module in (branch.trunk.stem, *branch.trunk.blocks[:stages]):
            module.requires_grad_(stages == 0)


def validate(network: DenseNetwork, worlds: list[World], config: DenseTrainConfig,
             device: str = 'cpu') -> dict:
    """Single-frame errors on groups that are the same at every call."""
    nll, errors = [], []
    rng = np.random.default_rng(1)
    with torch.inference_mode():
        for k in range(config.validation_groups):
            world = worlds[k % len(worlds)]
            first = int(rng.integers(len(world.poses)))
            group = dense_group(world, first, 2, network.config, (1, k)).to(device)
            part, error_m = group_loss(network, group)
            nll += part.tolist()
            errors += error_m.tolist()
    return {'nll': float(np.mean(nll)), 'median_m': float(np.median(errors)),
            'mean_m': float(np.mean(errors)),
            'within_1_m': float((np.array(errors) < 1.0).mean()), 'images': len(errors)}


@dataclass(frozen=True)
class Answer:
    """One frame's score volume under a uniform prior, and where it truly was."""

    heatmap: Heatmap
    prior: PoseEstimate
    truth: Pose2D


@torch.inference_mode()
def answers(network: DenseNetwork, worlds: list[World], count: int) -> list[Answer]:
    """Of ``count`` frames, through the matcher that the node runs."""
    network = network.eval()
    matcher = DenseMatcher(network)
    found = []
    for number, world in enumerate(worlds):
        rng = np.random.default_rng([number, 3])
        blocks = dense_map(network, world)
        for index in rng.permutation(len(world.poses))[:-(-count // len(worlds))]:
            truth = Pose2D(*map(float, world.poses[index]))
            prior = prior_about(truth, rng, PRIOR_M)
            window = blocks.window(prior, PRIOR_M, matcher.margin_m)
            ground = matcher.embed(CameraImage(0, world.images[index], world.camera), 0.0)
            heatmap = matcher.match(ground, window, prior, UNIFORM)
            heatmap = replace(heatmap, volume=heatmap.volume.astype(np.float32))
            found.append(Answer(heatmap, prior, truth))
    return found


def fit_temperature(found: list[Answer]) -> tuple[float, float]:
    """The factor on log-likelihoods of least NLL at the true poses, and that NLL."""
    volumes = []
    for answer in found:
        heatmap, truth = answer.heatmap, answer.truth
        row, col = heatmap.grid.row_col_from_xy(truth.x_m, truth.y_m)
        turn_rad = wrap_angle(truth.yaw_rad - heatmap.yaws_rad[0])
        yaw = turn_rad / (heatmap.yaws_rad[1] - heatmap.yaws_rad[0])
        at_truth = map_coordinates(
            heatmap.volume, [[yaw], [float(row)], [float(col)]], order=1, mode='nearest')
        volumes.append((heatmap.volume, float(at_truth[0])))

    def nll(factor: float) -> float:
        return float(np.mean([
            logsumexp(volume * factor) - factor * at_truth for volume, at_truth in volumes]))

    best = minimize_scalar(lambda log: nll(math.exp(log)), bounds=(-2.5, 1.5), method='bounded')
    return math.exp(best.x), float(best.fun)


def fit_peaks(found: list[Answer], factor: float) -> tuple[float, float]:
    """``peak_pose``'s sharpening, on top of a ``factor`` on log-likelihoods, and its min_mass.

    The most likely of SHARPENINGS, if poses err as their covariances say or, in a share of the
    frames, lie anywhere in the window: (1 - w) N(error; 0, covariance) + w / window.  The share
    w is the most likely one too.  With each the mass is such that a share AMBIGUOUS has less.
    """
    def min_mass(sharpening: float) -> float:
        masses = [peak_of(answer.heatmap, factor * sharpening).mass for answer in found]
        return float(np.quantile(masses, AMBIGUOUS))

    def likelihood(sharpening: float) -> float:
        mass = min_mass(sharpening)
        said, anywhere = np.array([
            _log_densities(answer, factor * sharpening, mass) for answer in found]).T
        return max(np.logaddexp(math.log(1.0 - wrong) + said, math.log(wrong) + anywhere).sum()
                   for wrong in WRONG_SHARES)

    best = float(max(tqdm(SHARPENINGS, desc='sharpening'), key=likelihood))
    return best, min_mass(best)


def _log_densities(answer: Answer, sharpening: float, min_mass: float) -> tuple[float, float]:
    """Of the true pose: by what ``peak_pose`` says, and anywhere in the window."""
    estimate, _ = peak_pose(answer.heatmap, answer.prior, sharpening, min_mass)
    pose, truth, grid = estimate.pose, answer.truth, answer.heatmap.grid
    error = np.array([pose.x_m - truth.x_m, pose.y_m - truth.y_m,
                      wrap_angle(pose.yaw_rad - truth.yaw_rad)])
    yaw_step_rad = answer.heatmap.yaws_rad[1] - answer.heatmap.yaws_rad[0]
    window = answer.heatmap.volume.size * grid.cell_m**2 * yaw_step_rad
    return (multivariate_normal.logpdf(error, cov=estimate.covariance), -math.log(window))


def fit_tails(found: list[Answer], sharpening: float, min_mass: float) -> tuple[float, float]:
    """``peak_inflation`` and ``peak_dof``: 68 % and 95 % of all frames lie in their ellipsoids.

    Most peaks are right and some are elsewhere altogether: no Gaussian holds both shares.  The
    unambiguous frames err by a Student t; the ambiguous ones claim their window, as a Gaussian.
    """
    estimates, ambiguous = zip(*(
        peak_pose(answer.heatmap, answer.prior, sharpening, min_mass) for answer in found))
    distances2 = pose_errors(
        Track.from_poses(range(len(found)), [estimate.pose for estimate in estimates],
                         [estimate.covariance for estimate in estimates]),
        Track.from_poses(range(len(found)), [answer.truth for answer in found]))['nees']
    ambiguous = np.array(ambiguous)

    def needed(share: float) -> float:
        """Distance2 to which the unambiguous frames make up what the others leave of a share."""
        others = (distances2[ambiguous] <= distance2_within(share, GAUSSIAN_DOF)).sum()
        own = (share * len(found) - others) / (~ambiguous).sum()
        return float(np.quantile(distances2[~ambiguous], min(max(own, 0.0), 1.0)))

    ratio = needed(0.95) / needed(0.68)

    def excess(dof: float) -> float:
        return distance2_within(0.95, dof) / distance2_within(0.68, dof) - ratio

    dof = GAUSSIAN_DOF
    if excess(MOST_DOF) < 0.0:
        dof = LEAST_DOF if excess(LEAST_DOF) < 0.0 else float(brentq(excess, LEAST_DOF, MOST_DOF))
    return needed(0.68) / distance2_within(0.68, dof), dof


def finish(path: Path, worlds: list[World], count: int = 300) -> None:
    """Fit what turns scores into probabilities, of the trained and of a random network.

    It is stored in ``path``.
    """
    model, provenance = read_model_config(path)
    network = load_network(path)
    found = answers(network, worlds, count)
    factor, nll = fit_temperature(found)
    sharpening, min_mass = fit_peaks(found, factor)
    inflation, dof = fit_tails(found, factor * sharpening, min_mass)
    random_factor, random_nll = fit_temperature(
        answers(load_network('random_init:2', like=path), worlds, count))
    model = replace(
        model, temperature=model.temperature / factor,
        random_temperature=model.random_temperature / random_factor, sharpening=sharpening,
        min_mass=min_mass, peak_inflation=inflation, peak_dof=dof)
    print(f'nll {nll:.3f}, of random weights {random_nll:.3f}; '
          + ', '.join(f'{name} {getattr(model, name):.3f}' for name in FITTED))
    network.config = model
    save_network(network, path, {**provenance, 'fitted nll': nll, 'random nll': random_nll})


def beginning(model: DenseConfig, seed: int, random_trunk: bool,
              init: Path | None) -> DenseNetwork:
    """The network at step 0: of ``init``, or random with ImageNet's trunks unless told not to."""
    if init is not None:
        network = load_network(init)
        if network.config != replace(
                model, **{name: getattr(network.config, name) for name in FITTED}):
            raise ValueError(f'{init}: found weights of {network.config}, expected {model}')
        network.config = model
        return network
    network = random_network(model, seed)
    if not random_trunk:
        state = pretrained_trunk()
        network.ground.trunk.load_pretrained(state)
        network.satellite.trunk.load_pretrained(state)
    return network


def train(network: DenseNetwork, config: DenseTrainConfig, train_worlds: list[World],
          val_worlds: list[World], out: Path, provenance: dict, ranks: Ranks = ALONE,
          stop_after: int | None = None) -> None:
    """Train, resuming from ``out``'s state where there is one, and keep the best on validation.

    Each rank takes its share of a step's groups; their gradients are summed.  ``stop_after`` that
    step the run ends early, as if killed.
    """
    if ranks.count > config.groups:
        raise ValueError(f'{ranks.count} ranks; expected at most {config.groups}, the groups of '
                         'a step')
    model = network.config
    network = network.to(ranks.device)
    freeze(network, config.frozen_stages)
    trunk = [p for b in (network.ground, network.satellite) for p in b.trunk.parameters()
             if p.requires_grad]
    trunk_ids = {id(p) for p in trunk}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in trunk_ids]
    optimizer = torch.optim.AdamW(
        [{'params': trunk, 'lr': config.trunk_learning_rate},
         {'params': rest, 'lr': config.learning_rate}], weight_decay=config.weight_decay)
    base_rates = [group['lr'] for group in optimizer.param_groups]
    starts = [(w, k) for w, world in enumerate(train_worlds) for k in range(len(world.poses))]

    state_path, log_path = out.with_suffix('.state'), out.with_suffix('.jsonl')
    step, best = 0, float('inf')
    if state_path.exists():
        state = torch.load(state_path, weights_only=True, map_location=ranks.device)
        network.load_state_dict(state['network'])
        optimizer.load_state_dict(state['optimizer'])
        step, best = state['step'], state['best']
        if ranks.rank == 0:
            print(f'resuming {state_path} at step {step}')

    def draw(number: int) -> DenseGroup:
        """The number-th group of the run: the same whenever it is asked for."""
        epoch, place = divmod(number, len(starts))
        order = np.random.default_rng((config.seed, epoch)).permutation(len(starts))
        world, first = starts[order[place]]
        return dense_group(
            train_worlds[world], first, config.group_size, model, (config.seed, 2, number))

    running = torch.zeros(3, device=ranks.device)  # sums of NLL and error, groups
    started = time.monotonic()
    first, last = step, stop_after or config.steps
    own = range(ranks.rank, config.groups, ranks.count)  # of a step's groups
    numbers = (s * config.groups + k for s in range(first, last + 1) for k in own)
    trained = trunk + rest
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(draw, next(numbers))
        for step in tqdm(range(first, last), initial=first, total=config.steps, desc='train',
                         mininterval=5.0, disable=ranks.rank > 0):
            factor = learning_rate_factor(step, config)
            for group, rate in zip(optimizer.param_groups, base_rates):
                group['lr'] = rate * factor
            optimizer.zero_grad(set_to_none=True)
            for _ in own:
                group = waiting.result().to(ranks.device)
                waiting = ahead.submit(draw, next(numbers))
                with ranks.autocast():
                    nll, error_m = group_loss(network, group)
                (nll.sum() / (config.groups * config.group_size)).backward()
                running += torch.stack((
                    nll.detach().mean(), error_m.median(), torch.ones_like(nll[0])))
            ranks.sum_gradients(trained)
            nn.utils.clip_grad_norm_(trained, 5.0)
            optimizer.step()
            if (step + 1) % config.validate_every and step + 1 < config.steps:
                continue
            nll, error_m = (running[:2] / ranks.sum_(running)[2]).tolist()
            running = torch.zeros_like(running)
            if ranks.rank > 0:
                continue
            metrics = validate(network, val_worlds, config, ranks.device)
            line = {'step': step + 1, 'train_nll': nll, 'train_error_m': error_m, **metrics,
                    'scale': network.log_scale.exp().item(),
                    'seconds': time.monotonic() - started}
            with open(log_path, 'a') as log:
                log.write(json.dumps(line) + '\n')
            tqdm.write(json.dumps(line))
            if metrics['nll'] < best:
                best = metrics['nll']
                save_network(network, out, {**provenance, 'train': asdict(config),
                                            'step': step + 1, 'validation': metrics})
            partial = state_path.with_suffix('.partial')
            torch.save({'network': network.state_dict(), 'optimizer': optimizer.state_dict(),
                        'step': step + 1, 'best': best}, partial)
            partial.replace(state_path)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.train_dense', description=__doc__.splitlines()[0],
        epilog='example: python -m training.train_dense --train runs/train/*.npz '
        '--val runs/val/*.npz --out runs/dense.safetensors')
    parser.add_argument('--train', nargs='+', type=Path, required=True, help='prepared worlds')
    parser.add_argument('--val', nargs='+', type=Path, required=True, help='others, to choose by')
    parser.add_argument('--out', type=Path, required=True, help='weights to write')
    parser.add_argument('--init', type=Path,
                        help='weights of an earlier run to begin with (else ImageNet trunks)')
    parser.add_argument('--steps', type=int, default=DenseTrainConfig.steps)
    parser.add_argument('--learning-rate', type=float, default=DenseTrainConfig.learning_rate,
                        help='of all but the trunks, whose rate is a quarter of it')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto')
    parser.add_argument('--mixed-precision', action='store_true', help='bfloat16 where it is safe')
    parser.add_argument('--threads', type=int, default=1, help='of torch on the CPU')
    parser.add_argument('--image-blind', action='store_true',
                        help='every image is grey: the control that knows the map alone')
    parser.add_argument('--random-trunk', action='store_true', help='no ImageNet weights')
    parser.add_argument('--data-note', default='', help='kept in the weights: how data were made')
    args = parser.parse_args(arguments)
    try:
        torch.set_num_threads(args.threads)
        ranks = join_ranks(args.device, args.mixed_precision)
        config = DenseTrainConfig(
            steps=args.steps, seed=args.seed, learning_rate=args.learning_rate,
            trunk_learning_rate=args.learning_rate / 4)
        provenance = {'train_files': [path.name for path in args.train],
                      'val_files': [path.name for path in args.val], 'data': args.data_note,
                      'random_trunk': args.random_trunk}
        if args.init:
            provenance['init'] = {'file': args.init.name, **read_model_config(args.init)[1]}
        train_worlds = [load_world(path) for path in args.train]
        val_worlds = [load_world(path) for path in args.val]
        if args.image_blind:
            provenance['image_blind'] = True
            train_worlds, val_worlds = (
                [replace(world, images=np.full_like(world.images, UNSEEN)) for world in worlds]
                for worlds in (train_worlds, val_worlds))
        network = beginning(DenseConfig(), args.seed, args.random_trunk, args.init)
        train(network, config, train_worlds, val_worlds, args.out, provenance, ranks)
        if ranks.rank == 0:
            finish(args.out, val_worlds)
    except (ValueError, OSError) as error:
        print(f'train_dense: {error}', file=sys.stderr)
        return 2
    finally:
        leave_ranks()
    return 0


if __name__ == '__main__':
    sys.exit(main())
