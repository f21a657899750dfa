"""An untrained matcher: edges of the road against edges of the overhead picture."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from crossview_localizer.networks.dense import correlate, DenseConfig, GAUSSIAN_DOF, turned_views
from crossview_localizer.networks.pixel_channels import edge_strength

SHARPNESS = 30.0   # log-likelihood = correlation coefficient times this


class GradientCorrelation:
    """Takes the place of a ``DenseNetwork`` in ``DenseMatcher``, without weights.

    The descriptor of a cell is its edge strength, on the ground side that of the frame projected
    to the flat road.  The score of a pose is the correlation coefficient of both over the cells
    that the camera sees and the overhead picture shows.
    """

    def __init__(self, config: DenseConfig):
        """``config`` gives the sizes of cells and views; nothing of it that was fitted is used."""
        self.config = replace(
            config, channels=1, pixel_channels=0, temperature=1.0, sharpening=1.0,
            min_mass=0.5, peak_inflation=1.0, peak_dof=GAUSSIAN_DOF)
        self.fingerprint = 'gradient_correlation'

    def satellite(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(edge_strength(images), self.config.cell_px)

    def ground(self, images, road, points):
        """Edge strengths (B, 1, F, L), of unit length and mean 0 where seen, and a mask."""
        mask = (F.avg_pool2d(road[:, 3:], 3, 1, 1) > 0.999).float()
        weight = F.avg_pool2d(mask, self.config.cell_px)                # (B, 1, F, L)
        edges = F.avg_pool2d(edge_strength(road[:, :3]) * mask, self.config.cell_px)
        area = weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
        view = edges - edges.sum((2, 3), keepdim=True) / area * weight
        return view / view.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-6), weight

    def without_unused_channels(self, view, window):
        """Both as they are: the scale of the only channel matters."""
        return view, window

    def scores(self, view, weight, satellite, yaws_rad, heading_rad, missing=None, side=None):
        """As ``DenseNetwork.scores``."""
        view, weight = (turned_views(x, yaws_rad, heading_rad, self.config, side)
                        for x in (view, weight))                        # (B, K, 1, P, P)
        known = torch.ones_like(satellite) if missing is None else (1.0 - missing)[None]
        edges = satellite * known                                       # (1, N, N)
        area = correlate(weight, known).clamp(min=1e-6)                 # (B, K, M, M)
        mean = correlate(weight, edges) / area
        variance = correlate(weight, edges.square()) / area - mean.square()
        covariance = correlate(view, edges) - mean * correlate(view, known)
        return SHARPNESS * covariance / (variance.clamp(min=1e-9) * area).sqrt()
