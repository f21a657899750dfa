"""The dense network: a raster of satellite descriptors, and a bird's-eye view to match with it.

The satellite branch is fully convolutional: it computes one unit descriptor for each cell of the
imagery.  The ground branch computes features of the perspective image and looks them up for each
cell of a bird's-eye grid in the axes of the vehicle, at several heights above a flat road.
Facades, trees and posts appear above the road in the image; with several heights they are found in
the cell where they stand.  The pixels of the road, projected to the ground, are a second input.
The result is a unit descriptor g and a weight w in [0, 1] for each cell c.  The score of a pose p
is the weighted sum of cosines with the raster s beneath the turned view,

    S(p) = scale / (F L) * sum_c w_c < g_c, s(p * c) >

so an image with much distinct content gives a sharper likelihood than one with little.  A network
that is ``centred`` has g_c minus its mean over the view, weighted by w, in place of g_c: what the
view shows everywhere says nothing about the pose, only where things lie does.

The last ``pixel_channels`` channels of s and g are not learned: edges, warmth, greenness and light
marks of the pixels, in g times a learned credibility of the cell and weight of the channel.

Shape legend: B images, K headings, C descriptor length, N cells along a side of the satellite
window, P cells along a side of the north-up patch that holds a turned bird's-eye view, F x L cells
of the bird's-eye view (ahead x left), Z heights, H x W pixels.
"""

from dataclasses import dataclass
import math
from typing import ClassVar

import numpy as np
from scipy.fft import next_fast_len
import torch
from torch import nn
import torch.nn.functional as F

from crossview_localizer.datatypes import MatchErrors
from crossview_localizer.networks import pixel_channels
from crossview_localizer.networks.trunks import EfficientNetLite0, normalised

DENSE = 'dense'
LOST_SHARE = 1e-4   # of the energy of scores, in channels that a match leaves out
PIXEL_WEIGHTS = (0.14, 0.03, 0.05, 0.2)  # of the pixel channels, where training begins
GAUSSIAN_DOF = 1e6  # a Student t with this many degrees of freedom is taken for a Gaussian


@dataclass(frozen=True)
class DenseConfig:
    """The settings of a trained dense network.

    The bird's-eye view reaches ``ahead_cells`` ahead of base_link and half of ``across_cells`` to
    each side.  A map stores the descriptors in blocks: a block is a square of ``block_px`` of
    imagery, which is described with ``margin_px`` of context on each side.
    """

    kind: str = DENSE
    channels: int = 16              # length of a descriptor
    pixel_channels: int = 0         # how many of these are properties of the pixels
    width: int = 32                 # channels of the layers between trunk and descriptor
    px_m: float = 0.25              # size of a pixel of the imagery and of the projected road
    cell_px: int = 2                # pixels along a side of a cell
    ahead_cells: int = 64
    across_cells: int = 64
    patch_cells: int = 80           # side of the north-up patch that holds a turned view
    heights_m: tuple[float, ...] = (0.0, 1.0, 2.5, 5.0)
    focal_px: float = 180.0         # images are resized to this focal length for the trunk
    above_deg: float = 18.0         # images are cropped at this angle above the horizon
    below_deg: float = 24.0         # and at this angle below it
    block_px: int = 128
    margin_px: ClassVar[int] = 32   # twice as much changes a descriptor less than 8 bits do
    temperature: float = 1.0        # log-likelihood = score / temperature
    random_temperature: float = 1.0  # the temperature fitted for the random-init control
    centred: bool = False           # whether a view's mean descriptor is subtracted from it
    # For the pose of a single image (``peak_pose`` and ``distance2_within``):
    sharpening: float = 1.0         # factor on log-likelihoods
    min_mass: float = 0.5           # an image with less probability at its peak is ambiguous
    peak_inflation: float = 1.0     # factor on covariances
    peak_dof: float = GAUSSIAN_DOF  # degrees of freedom of the Student t of the errors
    # For the filter:
    match_errors: MatchErrors = MatchErrors()

    @property
    def learned_channels(self) -> int:
        return self.channels - self.pixel_channels

    @property
    def cell_m(self) -> float:
        return self.cell_px * self.px_m

    @property
    def block_cells(self) -> int:
        return self.block_px // self.cell_px

    @property
    def tile_px(self) -> int:
        return self.block_px + 2 * self.margin_px

    @property
    def tile_m(self) -> float:
        return self.tile_px * self.px_m

    @property
    def middle_m(self) -> float:
        """Distance from base_link to the middle of the bird's-eye view."""
        return self.ahead_cells * self.cell_m / 2


class CellNorm(nn.LayerNorm):
    """Normalises the channels of each cell by themselves: far cells do not change a descriptor."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        CellNorm(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """A depthwise 5 x 5 convolution between two pointwise ones, added to the input."""

    def __init__(self, width: int):
        super().__init__()
        inner = 2 * width
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.GroupNorm(4, inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 5, 1, 2, groups=inner, bias=False),
            nn.GroupNorm(4, inner), nn.ReLU(inplace=True),
            nn.Conv2d(inner, width, 1))

    def forward(self, x):
        return x + self.layers(x)


class Pyramid(nn.Module):
    """Adds up the feature maps of a trunk, coarse to fine, at the size of the finest."""

    def __init__(self, channels: list[int], width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in channels)
        self.smooth = nn.ModuleList(
            convolution(width, width) for _ in channels[:-1])

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        x = self.lateral[-1](maps[-1])
        for lateral, smooth, finer in zip(
                reversed(self.lateral[:-1]), reversed(self.smooth), reversed(maps[:-1])):
            x = F.interpolate(x, size=finer.shape[2:], mode='bilinear', align_corners=False)
            x = smooth(x + lateral(finer))
        return x


class SatelliteBranch(nn.Module):
    """Computes unit descriptors (B, C, H / 2, W / 2) of normalised imagery (B, 3, H, W)."""

    def __init__(self, config: DenseConfig):
        super().__init__()
        self.config = config
        self.trunk = EfficientNetLite0((2, 4, 8, 16, 32))
        self.pyramid = Pyramid(self.trunk.channels, config.width)
        self.head = nn.Conv2d(config.width, config.learned_channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        learned = F.normalize(self.head(self.pyramid(self.trunk(images))), dim=1)
        if not self.config.pixel_channels:
            return learned
        pixels = pixel_channels.satellite_channels(
            images, self.config.cell_px, self.config.pixel_channels)
        return torch.cat((learned, pixels), 1)


class GroundBranch(nn.Module):
    """Computes bird's-eye descriptors of an image, and their weights."""

    def __init__(self, config: DenseConfig):
        super().__init__()
        width = config.width
        self.config = config
        self.trunk = EfficientNetLite0((4, 8, 16, 32))
        self.pyramid = Pyramid(self.trunk.channels, width)
        inputs = len(config.heights_m) * (width + 1) + 4 * config.cell_px ** 2 + 2
        fine, coarse = width * 3 // 2, width * 3
        self.entry = convolution(inputs, fine, 1)
        self.coarse = nn.Sequential(
            convolution(fine, coarse, 3, 2), Residual(coarse), Residual(coarse),
            Residual(coarse), nn.Conv2d(coarse, fine, 1))
        outputs = config.learned_channels + 1 + bool(config.pixel_channels)
        self.exit = nn.Sequential(Residual(fine), nn.Conv2d(fine, outputs, 1))
        if config.pixel_channels:  # at first nearly all cells are credible
            nn.init.zeros_(self.exit[1].weight[-1:])
            nn.init.constant_(self.exit[1].bias[-1:], 3.0)
            self.log_pixel_weights = nn.Parameter(
                torch.tensor(PIXEL_WEIGHTS[:config.pixel_channels]).log().view(1, -1, 1, 1))
        rows = torch.linspace(-1.0, 1.0, config.ahead_cells)[:, None]
        cols = torch.linspace(-1.0, 1.0, config.across_cells)[None, :]
        self.register_buffer(
            'place', torch.stack(torch.broadcast_tensors(rows, cols))[None], persistent=False)

    def forward(self, images, road, points):
        """Compute weighted descriptors (B, C, F, L) and weights (B, 1, F, L) in [0, 1].

        ``images`` (B, 3, H, W) are normalised.  ``road`` (B, 4, 2F, 2L) has pixels in -1..1 and a
        mask.  ``points`` (B, Z, F, L, 2) has the place of each cell at each height in the image,
        in -1..1, or 2 if it is not seen.
        """
        return self.lift(self.features(images), road, points)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the features (B, width, H / 4, W / 4) of normalised images (B, 3, H, W)."""
        return self.pyramid(self.trunk(images))

    def lift(self, features, road, points):
        """Look up the features for each cell and compute what ``forward`` returns."""
        count, heights, ahead, across = points.shape[:4]
        lifted = F.grid_sample(
            features, points.reshape(count, heights * ahead, across, 2), align_corners=False)
        lifted = lifted.view(count, -1, heights, ahead, across).flatten(1, 2)
        seen = (points.abs() <= 1.0).all(-1).to(features.dtype)         # (B, Z, F, L)
        x = torch.cat((
            lifted, seen, F.pixel_unshuffle(road, self.config.cell_px),
            self.place.expand(count, -1, -1, -1)), 1)
        x = self.entry(x)
        x = x + F.interpolate(
            self.coarse(x), size=x.shape[2:], mode='bilinear', align_corners=False)
        # Descriptors, their weight and, with pixel channels, the credibility of these.
        learned, weight, *credible = self.exit(x).split(
            [self.config.learned_channels] + [1] * (1 + bool(self.config.pixel_channels)), 1)
        weight = torch.sigmoid(weight) * seen.amax(1, keepdim=True)     # (B, 1, F, L)
        view = F.normalize(learned, dim=1) * weight                     # (B, C, F, L)
        if self.config.centred:
            area = weight.sum((2, 3), keepdim=True).clamp(min=1e-6)     # (B, 1, 1, 1)
            view = view - view.sum((2, 3), keepdim=True) / area * weight
        if credible:
            pixels = pixel_channels.ground_channels(
                road, torch.sigmoid(credible[0]), self.config.cell_px, self.config.pixel_channels)
            view = torch.cat((view, self.log_pixel_weights.exp() * pixels), 1)
        return view, weight


class DenseNetwork(nn.Module):
    """Both branches; ``log_scale`` turns the mean cosine of all cells into a score."""

    def __init__(self, config: DenseConfig):
        super().__init__()
        self.config = config
        self.ground = GroundBranch(config)
        self.satellite = SatelliteBranch(config)
        self.log_scale = nn.Parameter(torch.tensor(5.0))
        self.fingerprint = ''

    # For build_map: blocks along a side of the areas that are described at once, and the distance
    # from a route to the edge of its map.
    lattice_points = 8
    corridor_m = 60.0

    @property
    def lattice_spacing_m(self) -> float:
        """Distance between the blocks of a map, which lie side by side."""
        return self.config.block_px * self.config.px_m

    @torch.no_grad()
    def embed_satellite(self, tiles: torch.Tensor) -> torch.Tensor:
        """Describe tiles (B, tile_px, tile_px, 3) uint8 as blocks (B, C * block_cells ** 2)."""
        raster = self.satellite(normalised(tiles))
        margin = self.config.margin_px // self.config.cell_px
        return raster[:, :, margin:-margin, margin:-margin].flatten(1)

    @torch.no_grad()
    def embed_lattice(self, area: torch.Tensor) -> torch.Tensor:
        """Describe one area (H, W, 3) uint8 as adjacent blocks (R, Q, C * block_cells ** 2).

        R = (H - tile_px) // block_px + 1, and Q follows from W.  H and W are multiples of 32.
        """
        margin, side = self.config.margin_px // self.config.cell_px, self.config.block_cells
        raster = self.satellite(normalised(area[None]))[0, :, margin:-margin, margin:-margin]
        blocks = raster.unfold(1, side, side).unfold(2, side, side)  # (C, R, Q, side, side)
        return blocks.permute(1, 2, 0, 3, 4).flatten(2)

    def without_unused_channels(self, view, window):
        """A view and a window that give nearly the same scores sooner, see ``fewer_channels``."""
        return fewer_channels(view, window)

    def scores(self, view, weight, satellite, yaws_rad, heading_rad, missing=None, side=None):
        """Compute the scores (B, K, N - P + 1, N - P + 1) of the poses in a satellite window.

        ``view`` (B, C, F, L) and ``weight`` (B, 1, F, L) come from ``GroundBranch``, the headings
        ``yaws_rad`` are (B, K).  ``satellite`` (C, N, N) is north-up and the same for all images.
        The middle of the patch lies ``middle_m`` ahead of base_link along ``heading_rad``:
        element (r, c) of the result is the score of the pose whose patch has its north-west cell
        at (r, c) of the window.  ``missing`` (N, N) is 1 where there is no imagery: cells there
        count as the mean of the others.  ``side`` is the side of the patch, see ``patch_side``.
        """
        config = self.config
        turned = turned_views(view, yaws_rad, heading_rad, config, side)  # (B, K, C, P, P)
        sums = correlate(turned, satellite)                             # (B, K, M, M)
        if missing is not None:
            weights = turned_views(weight, yaws_rad, heading_rad, config, side)
            absent = correlate(weights, missing[None].to(view.dtype))
            share = 1.0 - absent / weights.sum((2, 3, 4))[:, :, None, None].clamp(min=1e-6)
            sums = sums / share.clamp(min=0.25)
        return sums * (self.log_scale.exp() / (config.ahead_cells * config.across_cells))


def patch_side(config: DenseConfig, half_yaw_rad: float) -> int:
    """Side, in cells, of a patch that holds views turned by up to ``half_yaw_rad``.

    A turn about base_link moves the middle of the view.  ``patch_cells`` are enough for 0.25 rad.
    """
    moved_m = 2 * config.middle_m * math.sin(min(half_yaw_rad, math.pi) / 2)
    margin_m = (config.patch_cells - config.across_cells) / 2 * config.cell_m
    return config.patch_cells + 2 * max(0, math.ceil((moved_m - margin_m) / config.cell_m))


def turned_views(view: torch.Tensor, yaws_rad: torch.Tensor, heading_rad: float,
                 config: DenseConfig, side: int | None = None) -> torch.Tensor:
    """Turn bird's-eye views (B, C, F, L), row 0 farthest ahead, to patches (B, K, C, P, P).

    The patches are north-up.  base_link stays at the same place for all yaws; the middle of the
    patch is ``middle_m`` from it along ``heading_rad``.  P is ``side`` or ``patch_cells``.
    """
    count, channels = view.shape[:2]
    bins, side = yaws_rad.shape[1], side or config.patch_cells
    offset = (torch.arange(side, dtype=view.dtype, device=view.device) - (side - 1) / 2)
    offset = offset * config.cell_m
    east_m = config.middle_m * float(np.cos(heading_rad)) + offset[None, :]       # (1, P)
    north_m = config.middle_m * float(np.sin(heading_rad)) - offset[:, None]      # (P, 1)
    cos = torch.cos(yaws_rad).to(view.dtype)[..., None, None]                     # (B, K, 1, 1)
    sin = torch.sin(yaws_rad).to(view.dtype)[..., None, None]
    ahead_m = cos * east_m + sin * north_m                                        # (B, K, P, P)
    left_m = -sin * east_m + cos * north_m
    # grid_sample: x along the columns (left to right), y along the rows, edges at -1 and 1.
    points = torch.stack((
        -left_m / (config.across_cells * config.cell_m / 2),
        1.0 - ahead_m / config.middle_m), -1)                                     # (B, K, P, P, 2)
    turned = F.grid_sample(
        view, points.reshape(count, bins * side, side, 2), align_corners=False)
    return turned.view(count, channels, bins, side, side).transpose(1, 2)


def fewer_channels(
    view: torch.Tensor, window: torch.Tensor, lost_share: float = LOST_SHARE,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace the channels of a view (1, C, F, L) and of a window (C, N, N) by fewer, R <= C.

    The scores stay nearly the same, and take R / C of the time: a view uses few directions of the
    space of descriptors.  In axes in which the descriptors of the window are white, these are the
    principal axes of the view; those with ``lost_share`` of its energy are left out.
    """
    view_energy, window_energy = (                                              # (C, C)
        (x @ x.T).cpu().numpy()
        for x in (view.detach()[0].flatten(1).double(), window.flatten(1).double()))
    # Not singular where the window lacks a direction, or holds nothing.
    least = 1e-6 * np.trace(window_energy) + 1e-30
    root = np.linalg.cholesky(window_energy + least * np.eye(len(window)))
    energies, axes = np.linalg.eigh(root.T @ view_energy @ root)                # ascending
    axes = axes[:, np.cumsum(energies) >= lost_share * energies.sum()]          # (C, R)
    of_view, of_window = (
        torch.from_numpy(matrix.T.copy()).to(view)
        for matrix in (root @ axes, np.linalg.solve(root.T, axes)))             # (R, C)
    return torch.einsum('rc,bcfl->brfl', of_view, view), torch.tensordot(of_window, window, 1)


def correlate(patches: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Correlate patches (B, K, C, P, P) with a window (C, N, N), summed over channels.

    Returns (B, K, N - P + 1, N - P + 1).  The Fourier transform has S rows and T columns.
    """
    places = window.shape[-1] - patches.shape[-1] + 1
    # Rows and columns in which all patches are zero add nothing.
    used = patches.detach().abs().sum((0, 1, 2)) > 0                         # (P, P)
    top, rows = _extent(used.any(1))
    left, cols = _extent(used.any(0))
    patches = patches[..., top:top + rows, left:left + cols]
    window = window[..., top:top + rows + places - 1, left:left + cols + places - 1]
    # Other lengths take up to twice as long.
    size = [4 * next_fast_len(-(-side // 4)) for side in window.shape[-2:]]
    # A correlation needs the conjugate spectra of all patches.  Conjugating the window and the sum
    # instead gives the same and is cheaper: conj(sum_c p_c conj(w_c)) = sum_c conj(p_c) w_c.
    window_spectrum = torch.fft.rfft2(window, s=size).conj().resolve_conj()  # (C, S, T/2 + 1)
    # One channel at a time: its spectra stay in the cache, which halves the time.
    # unbind, because indexing would make a whole tensor of zeros for the gradient of each index.
    (patch, channel), *others = zip(patches.unbind(2), window_spectrum.unbind(0))
    total = torch.fft.rfft2(patch, s=size) * channel                         # (B, K, S, T/2 + 1)
    for patch, channel in others:
        total.addcmul_(torch.fft.rfft2(patch, s=size), channel)
    return torch.fft.irfft2(total.conj(), s=size)[..., :places, :places]


def _extent(used: torch.Tensor) -> tuple[int, int]:
    """Where the true elements (n,) begin, and how many there are from the first to the last."""
    places = used.nonzero()[[0, -1], 0].tolist() if used.any() else [0, 0]
    return places[0], places[1] - places[0] + 1
