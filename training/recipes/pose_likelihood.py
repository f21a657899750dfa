"""Recipe of the dense matcher: the likelihood of the true pose in its own score volume.

A part of a step is a group of frames that share one satellite window, in which their true poses
lie anywhere within the prior. The score volume is the one that the node computes.
Shape legend: B frames of a group, K yaw bins, R x C places.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from crossview_localizer.networks.dense import DenseConfig, DenseNetwork
from training.data.datasets import World
from training.distributed import Ranks
from training.evaluation.dense_confidence import fit_confidence
from training.recipes.dense_groups import dense_group, DenseGroup


@dataclass(frozen=True)
class PoseLikelihoodConfig:
    groups: int = 2                # satellite windows per step
    group_size: int = 6            # frames per window, at most
    validation_groups: int = 60


class PoseLikelihoodRecipe(nn.Module):
    """Trains on groups of ``train_worlds`` and validates on ``val_worlds``."""

    score_name = 'nll'

    def __init__(self, config: PoseLikelihoodConfig, model: DenseConfig, seed: int,
                 train_worlds: list[World], val_worlds: list[World]):
        super().__init__()
        self.config, self.model, self.seed = config, model, seed
        self.train_worlds, self.val_worlds = train_worlds, val_worlds
        self._frames = [(w, k) for w, world in enumerate(train_worlds)
                        for k in range(len(world.poses))]
        self.epoch_length = max(1, len(self._frames) // config.groups)

    def draw(self, step: int, ranks: Ranks) -> list[DenseGroup]:
        return [self._group(step * self.config.groups + k)
                for k in ranks.share(self.config.groups)]

    def _group(self, number: int) -> DenseGroup:
        """The group of that number in the whole run; in an epoch each frame is first in one."""
        epoch, place = divmod(number, len(self._frames))
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self._frames))
        world, first = self._frames[order[place]]
        return dense_group(self.train_worlds[world], first, self.config.group_size, self.model,
                           (self.seed, 2, number))

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
        rng = np.random.default_rng(1)
        for k in range(self.config.validation_groups):
            world = self.val_worlds[k % len(self.val_worlds)]
            first = int(rng.integers(len(world.poses)))
            group = dense_group(world, first, 2, self.model, (1, k)).to(ranks.device)
            group_nll, error_m = group_loss(network, group)
            nll += group_nll.tolist()
            errors_m += error_m.tolist()
        return {'nll': float(np.mean(nll)), 'median_m': float(np.median(errors_m)),
                'mean_m': float(np.mean(errors_m)),
                'within_1_m': float((np.array(errors_m) < 1.0).mean()), 'images': len(errors_m),
                'scale': network.log_scale.exp().item()}, {}

    def finish(self, path: Path) -> None:
        fit_confidence(path, self.val_worlds)


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
