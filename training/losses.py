"""What makes descriptors of the same place alike and those of others unlike.

All take ``satellite`` (S, K) and ``ground`` (G, K), unit descriptors; ``positive`` (G,), the tile
of each ground image; ``distance_m`` (S, G), metres from tiles to ground images.  Tiles without a
ground image of their own (S > G) compete for ground images, never the other way round: the
papers' "empty ground".  D = 2 - 2 cos is the descriptors' distance, p_j = D[positive_j, j].  A
loss has two halves: g2s, where tiles compete for a ground image, and s2g, where ground images
compete for a tile.

``local_triplet_loss``, ``global_triplet_loss`` and ``safa_triplet_loss`` are the papers';
``info_nce_loss`` and ``soft_target_loss`` are options beyond.
Shape legend: S satellite tiles, G ground images, K descriptor length.
"""

from dataclasses import dataclass
import math

import torch
from torch import nn
import torch.nn.functional as F


def local_triplet_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, gamma: float, sigma_m: float, hole_m: float, radius_m: float,
    distance_power: int = 1,
) -> torch.Tensor:
    """Symmetric soft-margin triplet loss over local pairs, weighted by geographic distance.

    The mask M holds the pairs with hole <= d <= radius, the positives left out, and
    w = 1 - exp(-x^2 / (2 sigma^2)) with x = d, or x = d^2 for ``distance_power`` 2 (the workshop
    paper's CVACT models, where it is intended):

        g2s = sum_ij w M softplus(gamma (p_j - D_ij)) / (sum_ij M + 0.001)
        s2g = the same over the ground images i that a positive tile competes with
        loss = (g2s + s2g) / 2

    The sum of M counts pairs, not weights (Xia et al., RA-L 2021).
    """
    weight = 1.0 - torch.exp(-distance_m ** (2 * distance_power) / (2.0 * sigma_m ** 2))
    mask = (distance_m >= hole_m) & (distance_m <= radius_m)
    return _triplets(satellite, ground, positive, mask, weight, gamma)


def global_triplet_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, gamma: float,
) -> torch.Tensor:
    """The papers' baseline: all pairs of the batch but the positives, each of weight 1."""
    return _triplets(satellite, ground, positive, torch.ones_like(distance_m, dtype=torch.bool),
                     torch.ones_like(distance_m), gamma)


def _triplets(satellite, ground, positive, mask, weight, gamma):
    descriptor, columns = _distances(satellite, ground)              # (S, G), (G,)
    matched = descriptor[positive, columns]                          # (G,)
    mask = mask.clone()
    mask[positive, columns] = False
    mask = mask.to(weight.dtype)

    g2s = F.softplus(gamma * (matched[None, :] - descriptor)) * weight * mask
    # Row j: the tile of ground image j against every ground image.
    s2g = F.softplus(gamma * (matched[:, None] - descriptor[positive]))
    s2g = s2g * weight[positive] * mask[positive]
    return 0.5 * (g2s.sum() / (mask.sum() + 0.001)
                  + s2g.sum() / (mask[positive].sum() + 0.001))


def safa_triplet_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, gamma: float, near_m: float = 25.0,
) -> torch.Tensor:
    """SAFA's loss on CVACT (Shi et al., NeurIPS 2019): nearer than 25 m nothing is pushed apart.

    Such a pair's margin is set to 0, so that it adds log 2 and no gradient; the mean runs over all
    pairs but the positives.
    """
    descriptor, columns = _distances(satellite, ground)
    matched = descriptor[positive, columns]
    far = (distance_m >= near_m).to(descriptor.dtype)
    others = torch.ones_like(descriptor)
    others[positive, columns] = 0.0
    g2s = F.softplus(gamma * (matched[None, :] - descriptor) * far) * others
    s2g = F.softplus(gamma * (matched[:, None] - descriptor[positive]) * far[positive])
    s2g = s2g * others[positive]
    return 0.5 * (g2s.sum() / others.sum().clamp(min=1.0)
                  + s2g.sum() / others[positive].sum().clamp(min=1.0))


def info_nce_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, log_scale: torch.Tensor, hole_m: float = 0.0,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Symmetric cross-entropy of exp(log_scale) cos over the batch (InfoNCE; van den Oord 2018).

    Pairs nearer than ``hole_m`` other than the positive count on neither side.  Smoothing spreads
    that share of the target evenly over the candidates, the positive among them.
    """
    own = torch.zeros_like(distance_m, dtype=torch.bool)
    own[positive, torch.arange(len(positive), device=positive.device)] = True
    targets = torch.zeros_like(distance_m).masked_fill(~own, -torch.inf)
    candidate = own | (distance_m >= hole_m)
    return _cross_entropy(satellite, ground, positive, targets, candidate, log_scale,
                          label_smoothing)


def soft_target_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, log_scale: torch.Tensor, sigma_m: float,
) -> torch.Tensor:
    """Symmetric cross-entropy with targets in proportion to exp(-d^2 / (2 sigma^2)).

    Tiles near the truth share the target by their distance, so that the softmax becomes a position
    likelihood as wide as ``sigma_m``.
    """
    targets = -distance_m ** 2 / (2.0 * sigma_m ** 2)
    return _cross_entropy(satellite, ground, positive, targets,
                          torch.ones_like(targets, dtype=torch.bool), log_scale, 0.0)


def _cross_entropy(satellite, ground, positive, log_targets, candidate, log_scale, smoothing):
    """Mean of both sides; ``log_targets`` (S, G) need not be normalised."""
    halves = []
    for dim, rows in ((0, slice(None)), (1, positive)):
        allowed = candidate[rows]
        targets = (1.0 - smoothing) * log_targets[rows].softmax(dim)
        even = allowed.to(targets.dtype) / allowed.sum(dim, keepdim=True)
        targets = targets + smoothing * even
        scores = torch.exp(log_scale) * satellite[rows] @ ground.T
        log_p = scores.masked_fill(~allowed, -torch.inf).log_softmax(dim)
        halves.append(-(targets * log_p.masked_fill(~allowed, 0.0)).sum(dim).mean())
    return 0.5 * (halves[0] + halves[1])


def _distances(satellite, ground):
    return 2.0 - 2.0 * satellite @ ground.T, torch.arange(len(ground), device=ground.device)


@dataclass(frozen=True)
class LossConfig:
    """Which loss, and its tunables; lengths in metres."""

    kind: str = 'local'         # or global, safa, info_nce, soft_targets
    gamma: float = 10.0
    sigma_m: float = 10.0       # m^2 where distance_power is 2
    distance_power: int = 1
    hole_m: float = 5.0
    radius_m: float = 50.0
    near_m: float = 25.0        # safa
    temperature: float = 0.07   # info_nce and soft_targets: where the learned one starts
    label_smoothing: float = 0.1


class CrossViewLoss(nn.Module):
    """The loss of a ``LossConfig``; its learned temperature, where it has one, is a parameter.

    Raises ValueError for an unknown kind.
    """

    KINDS = ('local', 'global', 'safa', 'info_nce', 'soft_targets')
    MAX_LOG_SCALE = math.log(100.0)

    def __init__(self, config: LossConfig):
        super().__init__()
        if config.kind not in self.KINDS:
            raise ValueError(f'loss is {config.kind!r}; expected one of {", ".join(self.KINDS)}')
        self.config = config
        if config.kind in ('info_nce', 'soft_targets'):
            self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def forward(self, satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
                distance_m: torch.Tensor) -> torch.Tensor:
        config, case = self.config, (satellite, ground, positive, distance_m)
        if config.kind == 'local':
            return local_triplet_loss(*case, config.gamma, config.sigma_m, config.hole_m,
                                      config.radius_m, config.distance_power)
        if config.kind == 'global':
            return global_triplet_loss(*case, config.gamma)
        if config.kind == 'safa':
            return safa_triplet_loss(*case, config.gamma, config.near_m)
        log_scale = self.log_scale.clamp(max=self.MAX_LOG_SCALE)
        if config.kind == 'info_nce':
            return info_nce_loss(*case, log_scale, config.hole_m, config.label_smoothing)
        return soft_target_loss(*case, log_scale, config.sigma_m)
