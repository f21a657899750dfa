"""The geographically local triplet loss (Xia et al., RA-L 2021).

Shape legend: S satellite tiles, G ground images, K descriptor length.
"""

import torch
import torch.nn.functional as F


def local_triplet_loss(
    satellite: torch.Tensor, ground: torch.Tensor, positive: torch.Tensor,
    distance_m: torch.Tensor, gamma: float, sigma_m: float, hole_m: float, radius_m: float,
) -> torch.Tensor:
    """Symmetric soft-margin triplet loss over local pairs, weighted by geographic distance.

    ``satellite`` (S, K) and ``ground`` (G, K) are unit descriptors, ``positive`` (G,) the tile of
    each ground image, ``distance_m`` (S, G) metres between tile centres and ground images.  With
    D = 2 - 2 cos, p_j = D[positive_j, j], w = 1 - exp(-d^2 / (2 sigma^2)) and the mask M of pairs
    with hole <= d <= radius:

        g2s = sum_ij w M softplus(gamma (p_j - D_ij)) / (sum_ij M + 0.001)
        s2g = the same over the ground images i that a positive tile competes with
        loss = (g2s + s2g) / 2

    Tiles without a ground image (S > G) are negatives in g2s only, as in the paper.
    """
    descriptor = 2.0 - 2.0 * satellite @ ground.T                    # (S, G)
    columns = torch.arange(ground.shape[0], device=ground.device)
    matched = descriptor[positive, columns]                          # (G,)
    weight = 1.0 - torch.exp(-distance_m ** 2 / (2.0 * sigma_m ** 2))
    mask = ((distance_m >= hole_m) & (distance_m <= radius_m)).to(weight.dtype)

    g2s = F.softplus(gamma * (matched[None, :] - descriptor)) * weight * mask
    # Row j: the tile of ground image j against every ground image.
    s2g = F.softplus(gamma * (matched[:, None] - descriptor[positive]))
    s2g = s2g * weight[positive] * mask[positive]
    return 0.5 * (g2s.sum() / (mask.sum() + 0.001)
                  + s2g.sum() / (mask[positive].sum() + 0.001))
