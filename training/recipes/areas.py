"""Recipe for tiles in simulation: images near each other, and the area of imagery around them.

The satellite trunk runs once per area; tiles one stride apart all compete for each image.
Validation turns such areas into heat maps inside a noisy prior, as the node does.
Shape legend: G ground images of a group, R tiles along each side of an area, K descriptor length.
"""

from dataclasses import dataclass, replace
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.matching.heatmap_pose import pose_from_heatmap
from crossview_localizer.matching.tile_matcher import heatmap_from_scores, REFINE
from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.safa import ModelConfig, SafaNetwork, views_to_tensor
from training.data.datasets import World
from training.distributed import Ranks
from training.losses import CrossViewLoss, LossConfig
from training.samplers import LocalGroup, LocalGroupSampler

VALIDATION_AREA_PX = 320  # holds the search window of +-24 m


@dataclass(frozen=True)
class AreaConfig:
    """What a step sees; lengths in metres."""

    groups: int = 2                # local groups per step
    group_size: int = 12           # ground images per group
    group_half_width_m: float = 20.0
    area_px: int = 320             # satellite area of a group: 17 x 17 tiles
    jitter_m: float = 10.0         # how far the centre of the area is from its first image
    yaw_noise_deg: float = 2.0
    pitch_noise_deg: float = 0.4
    validation_images: int = 240
    loss: LossConfig = LossConfig(sigma_m=4.0, hole_m=2.2)


class AreaRecipe(nn.Module):
    """Trains on areas of ``train_worlds`` and validates on ``val_worlds``.

    A part is one group as ``group_tensors`` gives it.
    """

    score_name = 'nll'

    def __init__(self, config: AreaConfig, network: SafaNetwork, seed: int,
                 train_worlds: list[World], val_worlds: list[World]):
        super().__init__()
        self.config, self.model, self.seed = config, network.config, seed
        self.stride = network.satellite.stride
        self.train_worlds, self.val_worlds = train_worlds, val_worlds
        self.criterion = CrossViewLoss(config.loss)
        self._sampler = LocalGroupSampler(
            [world.poses[:, :2] for world in train_worlds], config.group_size,
            config.group_half_width_m, config.jitter_m)
        self.epoch_length = max(1, len(self._sampler) // config.groups)
        self._groups, self._epoch = [], -1

    def draw(self, step: int, ranks: Ranks) -> list[tuple[torch.Tensor, ...]]:
        epoch, step_of_epoch = divmod(step, self.epoch_length)
        if epoch != self._epoch:
            self._groups = list(self._sampler.epoch(self.seed * 100_003 + epoch))
            self._epoch = epoch
        parts = []
        for k in ranks.share(self.config.groups):
            number = (step_of_epoch * self.config.groups + k) % len(self._groups)
            group = self._groups[number]
            parts.append(group_tensors(
                self.train_worlds[group.world], group, self.model, self.config, self.stride,
                np.random.default_rng((self.seed, step, k))))
        return parts

    def forward(self, network: SafaNetwork, part: tuple[torch.Tensor, ...],
                ranks: Ranks) -> dict[str, torch.Tensor]:
        area, views, distance_m = (tensor.to(ranks.device) for tensor in part)
        with ranks.autocast():
            satellite = network.satellite_lattice(area).flatten(0, 1)           # (R * R, K)
            ground = network.ground_descriptors(views)                          # (G, K)
        loss = self.criterion(
            satellite.float(), ground.float(), distance_m.argmin(0), distance_m)
        return {'loss': loss / self.config.groups}

    def validate(self, network: SafaNetwork, ranks: Ranks) -> tuple[dict, dict]:
        metrics, temperature = validate(
            network, self.val_worlds, self.config.validation_images, self.stride, 1, ranks.device)
        return metrics, {'temperature': temperature}

    def finish(self, path: Path) -> None:
        finish(path, self.val_worlds, self.config.validation_images)


def lattice_positions(grid: MapGrid, model: ModelConfig, stride: int) -> np.ndarray:
    """Centres (R, R, 2), metres, of the tiles that ``satellite_lattice`` gives of an area."""
    first = model.margin_px + (model.view_px - 1) / 2
    steps = first + stride * np.arange((grid.rows - model.tile_px) // stride + 1)
    x_m, y_m = grid.xy_from_row_col(steps[:, None], steps[None, :])
    return np.stack(np.broadcast_arrays(x_m, y_m), -1)


def jitter_colours(rgb: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Vary gain (per channel), gamma and offset, as on another day; uint8 to float32."""
    gain = torch.tensor(rng.normal(1.0, 0.08, 3) * rng.normal(1.0, 0.15), dtype=torch.float32)
    scaled = (rgb.float() / 255.0) ** float(np.exp(rng.normal(0.0, 0.2)))
    return (scaled * gain * 255.0 + float(rng.normal(0.0, 8.0))).clamp(0.0, 255.0)


def group_tensors(world: World, group: LocalGroup, model: ModelConfig, config: AreaConfig,
                  stride: int, rng: np.random.Generator):
    """The area (S, S, 3), views (G, S, S, 4) and distances (R * R, G), m, of one group."""
    area, grid = world.area(*group.centre_m, config.area_px)
    positions = lattice_positions(grid, model, stride)
    yaws = world.poses[group.members, 2]
    yaws = yaws + np.radians(rng.normal(0.0, config.yaw_noise_deg, len(yaws)))
    pitches = np.radians(rng.normal(0.0, config.pitch_noise_deg, len(yaws)))
    views = np.stack([
        world.view(k, yaw, model.view_px, model.px_m, pitch)
        for k, yaw, pitch in zip(group.members, yaws, pitches)])

    # The whole scene, turned by quarters and mirrored, is another scene.
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
    distance = torch.from_numpy(np.linalg.norm(offset, axis=-1)).float()
    return area, views, distance


@torch.no_grad()
def area_descriptors(network, area: np.ndarray, stride: int, device: str = 'cpu'):
    """Descriptors (R, R, K) of every tile of an area, ``stride`` pixels apart."""
    tensor = torch.from_numpy(area).to(device)
    if hasattr(network, 'embed_lattice'):
        return network.embed_lattice(tensor)
    side = network.config.tile_px
    tiles = tensor.unfold(0, side, stride).unfold(1, side, stride)  # (R, R, 3, side, side)
    flat = tiles.flatten(0, 1).permute(0, 2, 3, 1)
    return network.embed_satellite(flat).view(*tiles.shape[:2], -1)


def scored_area(network, world: World, image: int, centre_m, yaw_rad: float, stride: int,
                device: str = 'cpu'):
    """Minus the distances (R, R) from one image to every tile around a point, and their grid."""
    model = network.config
    area, grid = world.area(*centre_m, VALIDATION_AREA_PX)
    view = world.view(image, yaw_rad, model.view_px, model.px_m)
    lattice = area_descriptors(network, area, stride, device)
    ground = network.embed_ground(views_to_tensor(view, device))[0]
    first_m = lattice_positions(grid, model, stride)[0, 0]
    scores = -(2.0 - 2.0 * (lattice @ ground).double().cpu().numpy())
    return scores, MapGrid(*scores.shape, stride * model.px_m, *first_m)


def validate(network, worlds: list[World], count: int, stride: int, seed: int,
             device: str = 'cpu') -> tuple[dict[str, float], float]:
    """Errors of single frames inside a noisy prior, and the temperature with the least NLL.

    The prior errs by sigma 4 m on each axis and 2 deg; the search covers +-24 m around it.
    """
    rng = np.random.default_rng(seed)
    per_world = math.ceil(count / len(worlds))
    scores, truths, grids, prior_errors = [], [], [], []
    for world in worlds:
        chosen = rng.permutation(len(world.poses))[:per_world]
        for k in chosen:
            x_m, y_m, yaw = world.poses[k]
            offset = rng.normal(0.0, 4.0, 2)
            score, grid = scored_area(
                network, world, k, (x_m + offset[0], y_m + offset[1]),
                yaw + np.radians(rng.normal(0.0, 2.0)), stride, device)
            scores.append(score)
            grids.append(grid)
            truths.append((x_m, y_m))
            prior_errors.append(np.hypot(*offset))

    def at(temperature):
        errors, nll = [], []
        for score, grid, (x_m, y_m) in zip(scores, grids, truths):
            heatmap = heatmap_from_scores(score / temperature, grid, REFINE, 0)
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
    fine = grid.refine(REFINE)
    return fine.rows * fine.cols


def mean_offset(network, worlds: list[World], count: int, stride: int, seed: int) -> np.ndarray:
    """Mean (forward, left) error of matches in metres, weighted by their information.

    A likelihood as wide as the road leans from the driving side to the middle of the road. It is 0
    if no match was found.
    """
    rng = np.random.default_rng(seed)
    information, weighted = np.zeros((2, 2)), np.zeros(2)
    for world in worlds:
        for k in rng.permutation(len(world.poses))[:math.ceil(count / len(worlds))]:
            x_m, y_m, yaw = world.poses[k]
            centre = rng.normal((x_m, y_m), 2.0)
            scores, grid = scored_area(network, world, k, centre, yaw, stride)
            heatmap = heatmap_from_scores(scores / network.config.temperature, grid, REFINE, 0)
            prior = PoseEstimate(0, Pose2D(*centre, yaw), np.diag([4.0, 4.0, 0.001]))
            match, _ = pose_from_heatmap(heatmap, prior, REFINE)
            if match is None:
                continue
            body_from_map = Pose2D(0.0, 0.0, yaw).inverse()
            error = body_from_map.transform(np.array([match.pose.x_m - x_m, match.pose.y_m - y_m]))
            turn = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
            precision = turn @ np.linalg.inv(match.covariance[:2, :2]) @ turn.T
            information += precision
            weighted += precision @ error
    if np.linalg.matrix_rank(information) < 2:
        return np.zeros(2)
    return np.linalg.solve(information, weighted)


def finish(path: Path, worlds: list[World], count: int) -> None:
    """Fit the mean offset and the temperatures of the controls, and store them in ``path``."""
    model, provenance = read_model_config(path)
    network = load_network(path)
    stride = network.satellite.stride
    forward_m, left_m = mean_offset(network, worlds, count, stride, 2)
    fitted = {'offset_forward_m': float(forward_m), 'offset_left_m': float(left_m)}
    print(f'mean offset of matches: {forward_m:.2f} m forward, {left_m:.2f} m left')
    for name, kind in (('random_temperature', 'random_init:1'),
                       ('raw_temperature', 'raw_correlation')):
        control = load_network(kind, like=path)
        metrics, fitted[name] = validate(control, worlds, count, stride, 1)
        provenance[f'validation of {kind}'] = metrics
        print(f'{kind}: median {metrics["median_m"]:.2f} m, nll {metrics["nll"]:.3f}')
    network.config = replace(model, **fitted)
    save_network(network, path, provenance)
