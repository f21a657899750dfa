"""Recipe of the dense matcher: the likelihood of the true pose in its own score volume.

A part of a step is a group of frames of one camera near one place, each with a satellite window in
which its true pose lies anywhere within the prior. The score volume is the one that the node
computes.
Shape legend: B frames of a group, K yaw bins, R x C places.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from crossview_localizer.networks.dense import DenseConfig, DenseNetwork
from training.data.datasets import World
from training.data.rendered_places import load_place
from training.distributed import Ranks
from training.evaluation.dense_confidence import fit_confidence
from training.recipes.dense_groups import DenseGroup, place_group, world_group


@dataclass(frozen=True)
class PoseLikelihoodConfig:
    groups: int = 2                # per step
    group_size: int = 6            # frames per group, at most
    world_share: float = 0.25      # share of groups from worlds, if there are also places
    augment: bool = True           # change colours, sharpness and extent of both views
    rough: bool = True             # cameras and imagery of places differ a little from the claims
    image_blind: bool = False      # grey images: a control that sees only the map
    validation_groups: int = 60


class PoseLikelihoodRecipe(nn.Module):
    """Trains on groups of rendered places and of prepared worlds, whichever there are.

    ``places`` are files of ``training.render_places``, read as they are drawn.  Validation uses
    the last of them (a twentieth, at least one), or ``val_worlds`` where there are no places.
    """

    score_name = 'nll'

    def __init__(self, config: PoseLikelihoodConfig, model: DenseConfig, seed: int,
                 train_worlds: list[World], val_worlds: list[World],
                 places: Sequence[Path] = ()):
        super().__init__()
        self.config, self.model, self.seed = config, model, seed
        self.train_worlds, self.val_worlds = train_worlds, val_worlds
        kept_back = math.ceil(len(places) / 20)
        self.places = places[:len(places) - kept_back]
        self.val_places = places[len(places) - kept_back:]
        if places and not self.places:
            raise ValueError('one place is too few: some are for training, some for validation')
        self.frames = [(w, k) for w, world in enumerate(train_worlds)
                       for k in range(len(world.poses))]
        self.epoch_length = max(1, (len(self.frames) + len(self.places)) // config.groups)

    def draw(self, step: int, ranks: Ranks) -> list[DenseGroup]:
        groups = [self._group(step * self.config.groups + k)
                  for k in ranks.share(self.config.groups)]
        return [blinded(group) for group in groups] if self.config.image_blind else groups

    def _group(self, number: int) -> DenseGroup:
        """The group of that number in the whole run."""
        config, seed = self.config, (self.seed, 2, number)
        rng = np.random.default_rng((self.seed, 1, number))
        if self.places and not (self.frames and rng.random() < config.world_share):
            path = self.places[rng.integers(len(self.places))]
            return place_group(load_place(path), config.group_size, self.model, seed,
                               config.augment, config.rough)
        world, first = self.frames[rng.integers(len(self.frames))]
        return world_group(self._world(world), first, config.group_size, self.model, seed,
                           config.augment)

    def _world(self, number: int) -> World:
        return self.train_worlds[number]

    def forward(self, network: DenseNetwork, part: DenseGroup,
                ranks: Ranks) -> dict[str, torch.Tensor]:
        with ranks.autocast():
            nll, error_m = group_loss(network, part.to(ranks.device))
        return {'loss': nll.sum() / (self.config.groups * self.config.group_size),
                'error_m': error_m.median() / self.config.groups}

    @torch.inference_mode()
    def validate(self, network: DenseNetwork, ranks: Ranks) -> tuple[dict, dict]:
        """Errors of single frames, on groups that are the same at every call."""
        nll, errors_m = [], []
        for number in range(self.config.validation_groups):
            group = self._validation_group(number)
            group = blinded(group) if self.config.image_blind else group
            group_nll, error_m = group_loss(network, group.to(ranks.device))
            nll += group_nll.tolist()
            errors_m += error_m.tolist()
        return {'nll': float(np.mean(nll)), 'median_m': float(np.median(errors_m)),
                'mean_m': float(np.mean(errors_m)),
                'within_1_m': float((np.array(errors_m) < 1.0).mean()), 'images': len(errors_m),
                'scale': network.log_scale.exp().item()}, {}

    def _validation_group(self, number: int) -> DenseGroup:
        if self.val_places:
            place = load_place(self.val_places[number % len(self.val_places)])
            return place_group(place, 2, self.model, (1, number), augment=False)
        world = self.val_worlds[number % len(self.val_worlds)]
        first = int(np.random.default_rng((1, number)).integers(len(world.poses)))
        return world_group(world, first, 2, self.model, (1, number), augment=False)

    def finish(self, path: Path) -> None:
        fit_confidence(path, self.val_worlds + [
            load_place(place).world(number) for number, place in enumerate(self.val_places)])


def blinded(group: DenseGroup) -> DenseGroup:
    """The group with grey images; the mask in the last channel of ``road`` stays."""
    road = torch.cat((torch.zeros_like(group.road[:, :3]), group.road[:, 3:]), 1)
    return replace(group, images=torch.zeros_like(group.images), road=road)


def group_loss(network: DenseNetwork, group: DenseGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood, nats, of each frame's true pose, and the error of the best cell, m.

    It is marginalised over the place where that is not known exactly.
    """
    view, weight = network.ground(group.images, group.road, group.points)
    satellite = network.satellite(group.imagery)[0].float() * (1.0 - group.missing)  # (C, A, A)
    volumes = []
    for k, ((row, col), heading_rad) in enumerate(zip(group.corners, group.headings_rad)):
        window = np.s_[..., row:row + group.side, col:col + group.side]
        missing = group.missing[window]
        volumes.append(network.scores(  # in single precision, whatever the branches ran in
            view[k:k + 1].float(), weight[k:k + 1].float(), satellite[window],
            group.yaws_rad[k:k + 1], heading_rad, missing if missing.any() else None))
    scores = torch.cat(volumes)
    log_p = F.log_softmax(scores.flatten(1), 1).view(scores.shape)      # (B, K, R, C)
    nll = -marginal_log_likelihood(log_p, group.target, group.covariances)
    with torch.no_grad():
        best = log_p.amax(1).flatten(1).argmax(1)
        cols = scores.shape[3]
        off = torch.stack((best // cols, best % cols), 1) - group.target[:, :2]
        error_m = off.norm(dim=1) * network.config.cell_m
    return nll, error_m


# P(place) = sum_d g(d) P(target + d),    g(d) ~ exp(-d' C^-1 d / 2) on whole cells d
def marginal_log_likelihood(log_p: torch.Tensor, target: torch.Tensor,
                            covariances: torch.Tensor) -> torch.Tensor:
    """The log-probability (B,), by ``log_p`` (B, K, R, C), of places known up to a Gaussian.

    ``target`` (B, 3) and ``covariances`` (B, 2, 2) are those of a ``DenseGroup``.  Probabilities
    between cells are interpolated; with a covariance of zero that is all, from the eight cells
    around the target.  What of the Gaussian lies outside the volume is left out.
    """
    rows, cols = log_p.shape[2:]
    target = target.to(log_p)
    precision = torch.linalg.inv(
        covariances + 1e-6 * torch.eye(2).to(covariances)).to(log_p)[..., None, None]
    low = torch.stack((target[:, 0].floor().clamp(0, rows - 2),
                       target[:, 1].floor().clamp(0, cols - 2)), 1)
    share = (target[:, :2] - low).clamp(0.0, 1.0)
    weights = torch.zeros_like(log_p[:, 0])                             # (B, R, C)
    for i in (0, 1):
        for j in (0, 1):
            down = (torch.arange(rows).to(log_p) - low[:, :1] - i)[:, :, None]   # (B, R, 1)
            right = (torch.arange(cols).to(log_p) - low[:, 1:] - j)[:, None, :]  # (B, 1, C)
            squared = (precision[:, 0, 0] * down ** 2 + precision[:, 1, 1] * right ** 2
                       + 2.0 * precision[:, 0, 1] * down * right)
            part = (share[:, 0] if i else 1.0 - share[:, 0]) * (
                share[:, 1] if j else 1.0 - share[:, 1])
            weights = weights + part[:, None, None] * torch.exp(-0.5 * squared)
    weights = weights / weights.sum((1, 2), keepdim=True)
    turn = target[:, 2, None, None].clamp(1e-6, 1.0 - 1e-6)
    log_p = torch.logaddexp(log_p[:, 0] + (1.0 - turn).log(), log_p[:, 1] + turn.log())
    return torch.logsumexp((log_p + weights.clamp(min=1e-30).log()).flatten(1), 1)
