"""Losses that make the descriptors of one place alike and those of different places unlike.

All take unit descriptors ``satellite`` (S, K) and ``ground`` (G, K); ``positive`` (G,), the row of
the right tile for each ground image; ``distance_m`` (S, G) from tiles to ground images. Tiles may
have no ground image (S > G; "empty ground" in the papers): they compete for ground images, but no
ground image competes for them. D = 2 - 2 cos is the distance of two descriptors and
p_j = D[positive_j, j]. Each loss has two halves: in g2s tiles compete for a ground image, in s2g
ground images compete for a tile.

All are the papers' losses.
Shape legend: S satellite tiles, G ground images, K descriptor length.
"""

from dataclasses import dataclass

import torch
from torch import nn
import torch.nn.functional as F


def local_triplet_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, gamma: float, sigma_m: float, hole_m: float, radius_m: float,
    distance_power: int = 1,
) -> torch.Tensor:
    """Symmetric soft-margin triplet loss over local pairs, weighted by geographic distance.

    The mask M holds the pairs with hole <= d <= radius except the positives, and
    w = 1 - exp(-x^2 / (2 sigma^2)) with x = d, or x = d^2 for ``distance_power`` 2 (as the
    workshop paper intends it for its CVACT models):

        g2s = sum_ij w M softplus(gamma (p_j - D_ij)) / (sum_ij M + 0.001)
        s2g = the same over the ground images i that a positive tile competes with
        loss = (g2s + s2g) / 2

    The sum of M counts pairs, not their weights (Xia et al., RA-L 2021).
    """
    weight = 1.0 - torch.exp(-distance_m ** (2 * distance_power) / (2.0 * sigma_m ** 2))
    mask = (distance_m >= hole_m) & (distance_m <= radius_m)
    return _triplets(satellite, ground, positive, mask, weight, gamma)


def global_triplet_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, gamma: float,
) -> torch.Tensor:
    """The papers' baseline: all pairs of the batch except the positives, with weight 1."""
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
    """SAFA's loss on CVACT (Shi et al., NeurIPS 2019): it pushes no pair nearer than 25 m apart.

    The margin of such a pair is 0: it adds log 2 and no gradient. The mean is over all pairs
    except the positives.
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


def _distances(satellite, ground):
    return 2.0 - 2.0 * satellite @ ground.T, torch.arange(len(ground), device=ground.device)


@dataclass(frozen=True)
class LossConfig:
    """Which loss, and its settings; lengths in metres."""

    kind: str = 'local'     # or global, safa
    gamma: float = 10.0
    sigma_m: float = 10.0   # m^2 where distance_power is 2
    distance_power: int = 1
    hole_m: float = 5.0
    radius_m: float = 50.0
    near_m: float = 25.0    # safa


class CrossViewLoss(nn.Module):
    """The loss of a ``LossConfig``; raises ValueError for an unknown kind."""

    KINDS = ('local', 'global', 'safa')

    def __init__(self, config: LossConfig):
        super().__init__()
        if config.kind not in self.KINDS:
            raise ValueError(f'loss is {config.kind!r}; expected one of {", ".join(self.KINDS)}')
        self.config = config

    def forward(self, satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
                distance_m: torch.Tensor) -> torch.Tensor:
        config, case = self.config, (satellite, ground, positive, distance_m)
        if config.kind == 'local':
            return local_triplet_loss(*case, config.gamma, config.sigma_m, config.hole_m,
                                      config.radius_m, config.distance_power)
        if config.kind == 'global':
            return global_triplet_loss(*case, config.gamma)
        return safa_triplet_loss(*case, config.gamma, config.near_m)
