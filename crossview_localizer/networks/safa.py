"""The tile network: spatial-aware aggregation (SAFA) of satellite tiles and ground views.

Shape legend: B batch, S image side, C channels, N = H * W cells of a feature map, D heads.

``SafaNetwork`` is the paper's two-branch network (Shi et al., NeurIPS 2019, as used by Xia et al.,
RA-L 2021): two trunks that share no weights, D linear aggregation heads for each of them, and
descriptors of unit length.  ``ModelConfig`` chooses the trunk, the number of heads, their hidden
width and the ground view.  ``OXFORD`` and ``CVACT`` are the paper's own choices: VGG16, 8 heads, a
hidden width of half the cells, 4096 numbers in a descriptor.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
import torch.nn.functional as F

from crossview_localizer.camera.views import CAMERA_VIEW_PX, GROUND_VIEWS, POLAR_VIEW_PX
from crossview_localizer.datatypes import MatchErrors
from crossview_localizer.networks.trunks import (
    EfficientNetLite0,
    normalised,
    VGG16,
    vgg_normalised,
)


@dataclass(frozen=True)
class ModelConfig:
    """The settings of a trained tile network.

    A satellite tile is ``tile_px`` wide: ``view_px`` that are described and ``margin_px`` of
    context on each side, so that the descriptor does not depend on where the edge of the tile is.
    """

    kind: str = 'safa'              # safa or raw_correlation (a control without weights)
    trunk: str = 'efficientnet_lite0'
    channels: int = 24              # of the feature map that the heads aggregate
    heads: int = 64
    hidden: int = 16                # width between the two linear layers of a head; 0: N / 2
    ground_view: str = 'birds_eye'  # or camera, or polar (see views.ground_view)
    px_m: float = 0.375             # size of a pixel, of tiles and bird's-eye views
    view_px: int = 128
    margin_px: int = 32
    temperature: float = 0.1        # log-likelihood = -distance / temperature
    # Mean error of SAFA matches on validation drives, in the axes of the vehicle; the matcher
    # corrects the scores for it.
    offset_forward_m: float = 0.0
    offset_left_m: float = 0.0
    detail_weight: float = 0.0        # share of grey pixels in a distance; 0: the paper's SAFA
    random_temperature: float = 0.1   # the temperature fitted for the random-init control
    raw_temperature: float = 0.1      # the temperature fitted for raw correlation
    match_errors: MatchErrors = MatchErrors()  # for the filter

    @property
    def tile_px(self) -> int:
        return self.view_px + 2 * self.margin_px

    @property
    def tile_m(self) -> float:
        return self.tile_px * self.px_m

    @property
    def ground_px(self) -> tuple[int, int]:
        """Height and width of the input of the ground branch."""
        if self.ground_view == 'birds_eye':
            return self.view_px, self.view_px
        width, height = CAMERA_VIEW_PX if self.ground_view == 'camera' else POLAR_VIEW_PX
        return height, width

    @property
    def satellite_px(self) -> tuple[int, int]:
        """Height and width of what the satellite branch describes, without the margin."""
        return self.ground_px if self.ground_view == 'polar' else (self.view_px, self.view_px)


# The networks of the papers.  Oxford: front camera against north-up tiles of 600 pixels of
# 0.0924 m, resized to 256.  CVACT: panorama against the polar transform of tiles of 1200 pixels of
# 0.06 m (that resolution is not verified).
OXFORD = ModelConfig(
    trunk='vgg16', channels=512, heads=8, hidden=0, ground_view='camera',
    px_m=600 * 0.09240351462361521 / 256, view_px=256, margin_px=0)
CVACT = ModelConfig(
    trunk='vgg16', channels=512, heads=8, hidden=0, ground_view='polar', px_m=0.06,
    view_px=1200, margin_px=0)


def grey_ground(views: torch.Tensor) -> torch.Tensor:
    """Turn views (B, S, S, 4) into unit vectors: grey 2 x 2 cells minus the mean of the seen."""
    seen = F.avg_pool2d(views[:, None, :, :, 3].float() / 255.0, 2).flatten(1)
    grey = F.avg_pool2d(views[..., :3].float().mean(3)[:, None], 2).flatten(1)
    mean = (grey * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1.0)
    return F.normalize((grey - mean) * seen, dim=1)


def grey_tiles(cores: torch.Tensor) -> torch.Tensor:
    """Turn the inner squares (B, S, S, 3) of tiles into unit vectors like ``grey_ground``."""
    grey = F.avg_pool2d(cores.float().mean(3)[:, None], 2).flatten(1)
    return F.normalize(grey - grey.mean(1, keepdim=True), dim=1)


def polar_tiles(tiles: torch.Tensor) -> torch.Tensor:
    """Turn north-up square tiles (B, S, S, 3) into polar views (B, 112, 616, 3), float32.

    Columns run clockwise from south, with north in the middle, as in a panorama that faces north.
    Rows run from the rim (top) to the centre.  Interpolation is bilinear; the formula is SAFA's:

        r = S / 2 * (H - 1 - i) / H
        row = S / 2 + r cos(2 pi j / W),  col = S / 2 - r sin(2 pi j / W)
    """
    side = tiles.shape[1]
    width, height = POLAR_VIEW_PX
    radius = side / 2.0 * (height - 1 - torch.arange(height, dtype=torch.float64)) / height
    angle = 2.0 * torch.pi * torch.arange(width, dtype=torch.float64) / width
    row = side / 2.0 + radius[:, None] * torch.cos(angle)
    col = side / 2.0 - radius[:, None] * torch.sin(angle)
    points = torch.stack((col, row), -1) * 2.0 / (side - 1) - 1.0                 # (H, W, 2)
    points = points.to(tiles.device, torch.float32).expand(len(tiles), -1, -1, -1)
    images = tiles.float().permute(0, 3, 1, 2)                                    # (B, 3, S, S)
    return F.grid_sample(images, points, align_corners=True).permute(0, 2, 3, 1)


class SpatialAwareAggregation(nn.Module):
    """D linear heads that aggregate a feature map (SAFA).

    v_i = mean_c F[i, c];  a_d = W2_d (W1_d v + b1_d) + b2_d;  g_d = sum_i a_{i,d} F[i, :]
    """

    def __init__(self, cells: int, hidden: int, heads: int):
        super().__init__()
        self.weights1 = nn.Parameter(torch.empty(cells, hidden, heads))
        self.biases1 = nn.Parameter(torch.full((1, hidden, heads), 0.1))
        self.weights2 = nn.Parameter(torch.empty(hidden, cells, heads))
        self.biases2 = nn.Parameter(torch.full((1, cells, heads), 0.1))
        nn.init.trunc_normal_(self.weights1, std=0.005)
        nn.init.trunc_normal_(self.weights2, std=0.005)

    def start_from_patches(self):
        """Start each head as a Gaussian patch on a square lattice instead of the whole map.

        This breaks the symmetry between many heads: each starts with a place of its own, and its
        part of the descriptor is zero if the camera does not see that place.  If the number of
        heads or of cells is not a square number, nothing is done; that is the start of the papers.
        """
        cells, heads = self.biases2.shape[1:]
        side, lattice = round(cells ** 0.5), round(heads ** 0.5)
        if side * side != cells or lattice * lattice != heads:
            return
        centre = (torch.arange(lattice) + 0.5) * side / lattice - 0.5
        width = side / lattice / 2
        bump = torch.exp(-(torch.arange(side)[:, None] - centre) ** 2 / (2 * width ** 2))
        patches = torch.einsum('id,je->ijde', bump, bump).reshape(cells, heads)
        with torch.no_grad():
            self.biases2.copy_(patches[None] / patches.sum(0).mean())

    def attention(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the weight (B, N, D) of each cell in each head for features (B, N, C)."""
        v = features.mean(2)                                                    # (B, N)
        h = torch.einsum('bn,nhd->bhd', v, self.weights1) + self.biases1       # (B, hidden, D)
        return torch.einsum('bhd,hnd->bnd', h, self.weights2) + self.biases2   # (B, N, D)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Aggregate features (B, N, C) to the concatenated heads (B, D * C), not normalised."""
        return torch.einsum('bnd,bnc->bdc', self.attention(features), features).flatten(1)


class SafaBranch(nn.Module):
    """Trunk and aggregation; ``size_px`` is (height, width) of the part that is described.

    The feature maps of EfficientNet are fused at stride 8 in between.  ``corrupt`` acts on the
    normalised images; it does nothing unless training sets an augmentation.
    """

    def __init__(self, config: ModelConfig, size_px: tuple[int, int], margin_px: int = 0):
        super().__init__()
        self.corrupt = nn.Identity()
        if config.trunk == 'vgg16':
            self.stride, self.normalised = 32, vgg_normalised
            self.trunk = VGG16()
            if config.channels != self.trunk.channels:
                raise ValueError(f'trunk vgg16 has {self.trunk.channels} channels, the model '
                                 f'{config.channels}; expected the same')
            self.cells = tuple(-(-side // self.stride) for side in size_px)
        elif config.trunk == 'efficientnet_lite0':
            self.stride, self.normalised = 8, normalised
            self.trunk = EfficientNetLite0()
            self.fusion = nn.ModuleList(
                nn.Conv2d(channels, config.channels, 1, bias=False)
                for channels in self.trunk.channels)
            self.norm = nn.GroupNorm(1, config.channels)
            self.cells = tuple(side // self.stride for side in size_px)
        else:
            raise ValueError(
                f'trunk is {config.trunk!r}; expected efficientnet_lite0 or vgg16')
        if margin_px % self.stride:
            raise ValueError(f'a margin of {margin_px} px with a trunk of stride {self.stride}; '
                             'expected a multiple')
        self.margin = margin_px // self.stride
        count = self.cells[0] * self.cells[1]
        self.aggregation = SpatialAwareAggregation(
            count, config.hidden or count // 2, config.heads)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute features (B, C, H / stride, W / stride) of normalised images (B, 3, H, W)."""
        return self.fused(self.trunk(self.corrupt(images)))

    def fused(self, maps) -> torch.Tensor:
        """Fuse the feature maps of the trunk to one map (B, C, H / stride, W / stride)."""
        if isinstance(self.trunk, VGG16):
            return maps
        fused = 0
        for conv, x in zip(self.fusion, maps):
            fused = fused + F.interpolate(
                conv(x), size=maps[0].shape[2:], mode='bilinear', align_corners=False)
        return self.norm(fused)

    def describe(self, features: torch.Tensor) -> torch.Tensor:
        """Aggregate features of whole views (B, C, rows, cols) to unit descriptors (B, D * C)."""
        return F.normalize(self.aggregation(features.flatten(2).transpose(1, 2)), dim=1)


class SafaNetwork(nn.Module):
    """Two branches that share no weights; the distance of descriptors is 2 - 2 cos, in [0, 4].

    Raises ValueError if the sizes of ``config`` do not fit each other.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        if config.ground_view not in GROUND_VIEWS:
            raise ValueError(f'ground_view is {config.ground_view!r}; expected one of '
                             f'{", ".join(GROUND_VIEWS)}')
        if config.detail_weight and config.ground_view != 'birds_eye':
            raise ValueError("detail_weight compares bird's-eye pixels; expected 0 with "
                             f'ground_view {config.ground_view}')
        self.config = config
        self.ground = SafaBranch(config, config.ground_px)
        self.satellite = SafaBranch(config, config.satellite_px, config.margin_px)
        self.fingerprint = ''

    @property
    def lattice_spacing_m(self) -> float | None:
        """Spacing in metres at which tiles share the cells of one feature map.

        None without a margin: then the descriptor depends on where the edge of the tile is.
        """
        return self.satellite.stride * self.config.px_m if self.config.margin_px else None

    def ground_descriptors(self, views: torch.Tensor) -> torch.Tensor:
        """Compute the descriptors of ground views (B, H, W, 3 or 4) uint8.

        The fourth channel of bird's-eye views is a mask: unseen cells do not count.
        """
        return self.ground.describe(self.ground_features(views))

    def ground_features(self, views: torch.Tensor) -> torch.Tensor:
        """The features (B, C, rows, cols) that ``ground_descriptors`` aggregates."""
        features = self.ground.features(self.ground.normalised(views[..., :3]))
        if self.config.ground_view != 'birds_eye':
            return features
        seen = views[:, None, :, :, 3].float() / 255.0
        return features * F.avg_pool2d(seen, self.ground.stride)

    def satellite_descriptors(self, tiles: torch.Tensor) -> torch.Tensor:
        """Describe the central ``view_px`` of tiles (B, tile_px, tile_px, 3) uint8.

        With ``ground_view`` polar the tiles must be polar views (see ``polar_tiles``).
        """
        margin, (rows, cols) = self.satellite.margin, self.satellite.cells
        features = self.satellite.features(self.satellite.normalised(tiles))
        return self.satellite.describe(
            features[:, :, margin:margin + rows, margin:margin + cols])

    def satellite_lattice(self, area: torch.Tensor) -> torch.Tensor:
        """Compute the descriptors (R, Q, D * C) of all tiles of one area (H, W, 3) uint8.

        Neighbouring tiles are one stride apart; the trunk runs once for the whole area.
        R = (H - tile_px) // stride + 1, and Q follows from W.  Not for polar views.
        """
        margin, (side, _) = self.satellite.margin, self.satellite.cells
        features = self.satellite.features(self.satellite.normalised(area[None]))
        features = features[:, :, margin:features.shape[2] - margin,
                            margin:features.shape[3] - margin]
        windows = features[0].unfold(1, side, 1).unfold(2, side, 1)  # (C, R, Q, side, side)
        rows, cols = windows.shape[1:3]
        flat = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)          # (R * Q, C, side, side)
        return self.satellite.describe(flat).view(rows, cols, -1)

    @torch.no_grad()
    def embed_ground(self, views: torch.Tensor) -> torch.Tensor:
        """Describe views (B, S, S, 4) uint8: the SAFA part, then the detail part, if any."""
        described = self.ground_descriptors(views)
        if not self.config.detail_weight:
            return described
        return self._with_detail(described, grey_ground(views))

    @torch.no_grad()
    def embed_satellite(self, tiles: torch.Tensor) -> torch.Tensor:
        """Describe tiles (B, tile_px, tile_px, 3) uint8 like ``embed_ground``."""
        if self.config.ground_view == 'polar':
            tiles = polar_tiles(tiles)
        described = self.satellite_descriptors(tiles)
        if not self.config.detail_weight:
            return described
        margin, side = self.config.margin_px, self.config.view_px
        cores = tiles[:, margin:margin + side, margin:margin + side]
        return self._with_detail(described, grey_tiles(cores))

    @torch.no_grad()
    def embed_lattice(self, area: torch.Tensor) -> torch.Tensor:
        """Like ``satellite_lattice``, with the detail part."""
        described = self.satellite_lattice(area)
        if not self.config.detail_weight:
            return described
        margin, side = self.config.margin_px, self.config.view_px
        inner = area[margin:area.shape[0] - margin, margin:area.shape[1] - margin]
        stride = self.satellite.stride
        cores = inner.unfold(0, side, stride).unfold(1, side, stride)  # (R, Q, 3, side, side)
        detail = torch.stack([grey_tiles(row.permute(0, 2, 3, 1)) for row in cores])
        return self._with_detail(described, detail)

    def _with_detail(self, described: torch.Tensor, detail: torch.Tensor) -> torch.Tensor:
        """Join two parts to one unit vector; distances are the weighted mean of both parts'."""
        weight = self.config.detail_weight
        return torch.cat((described * (1.0 - weight) ** 0.5, detail * weight ** 0.5), -1)


def views_to_tensor(views: np.ndarray, device: str) -> torch.Tensor:
    """Copy a uint8 view (S, S, K) or a batch of them to a tensor (B, S, S, K) on a device."""
    tensor = torch.from_numpy(np.ascontiguousarray(views))
    return (tensor if tensor.ndim == 4 else tensor[None]).to(device)
