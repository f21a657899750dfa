"""How much each part of the ground view contributes to the peak of a heat map.

The lead of the peak is its score over the mean of the window, in nats,

    J = log-likelihood_peak - 1/n sum_t log-likelihood_t.

(A mean weighted by the heat map itself would compare a sharp peak with its own neighbours only.)
Let each cell of the ground view have a weight m = 1: the gradient dJ/dm is the share of the cell
in J.  The shares are exact where the score is linear in the cells (the detail part, the dense
matcher); for SAFA they are the first-order shares of the cells of its feature map.  (Gradient
times input: Shrikumar et al., "Not Just a Black Box", 2016.)

Shape legend: R, C rows and columns of the window; H, W of the ground view; n tiles.
"""

from dataclasses import dataclass
import math

import cv2
import numpy as np
import torch

from crossview_localizer.camera import views
from crossview_localizer.datatypes import CameraImage, CameraModel, Heatmap, PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.maps.embedding_map import MapWindow
from crossview_localizer.matching.dense_matcher import DenseMatcher, GroundView
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.matching.tile_matcher import shifted_scores, TileMatcher
from crossview_localizer.networks.safa import grey_ground, SafaNetwork, views_to_tensor

DETAIL_CELL_PX = 2  # of the grey cells of the detail part


@dataclass(frozen=True)
class PeakShares:
    """The share of each cell of a ground view in the lead of the peak.

    ``nats`` (h, w) are positive for the peak and negative against it.  ``view`` (H, W, 3) uint8 is
    the input of the network for the same square.  If both lie on the road, ``cell_m`` is the side
    of a cell and ``raster_from_base`` takes base_link to the axes of the square: origin in its
    middle, x along its columns, y up its rows.  Else ``raster_from_base`` is None.
    """

    nats: np.ndarray
    view: np.ndarray
    cell_m: float = 0.0
    raster_from_base: Pose2D | None = None


def peak_shares(
    matcher: TileMatcher | DenseMatcher, image: CameraImage, window: MapWindow,
    prior: PoseEstimate, search: SearchWindow, pitch_rad: float = 0.0,
) -> tuple[PeakShares, Heatmap]:
    """Match an image inside a prior; return the shares of its cells and the heat map."""
    ground = matcher.embed(image, prior.pose.yaw_rad, pitch_rad)
    heatmap = matcher.match(ground, window, prior, search)
    if isinstance(matcher, DenseMatcher):
        found = _dense_shares(matcher, image, ground, window, prior, search, heatmap, pitch_rad)
    else:
        found = _tile_shares(matcher, image, window, prior, heatmap, pitch_rad)
    return found, heatmap


def _tile_shares(
    matcher: TileMatcher, image: CameraImage, window: MapWindow, prior: PoseEstimate,
    heatmap: Heatmap, pitch_rad: float,
) -> PeakShares:
    network, model = matcher.network, matcher.network.config
    yaw_rad = prior.pose.yaw_rad
    view = views.ground_view(model.ground_view, image.rgb, image.camera, yaw_rad, model.view_px,
                             model.px_m, pitch_rad)                            # (H, W, 3 or 4)
    tensor = views_to_tensor(view, matcher.device)
    contrast = peak_contrast(heatmap, matcher.refine)                          # (R, C)
    offset_m = Pose2D(0.0, 0.0, yaw_rad).transform(
        np.array([model.offset_forward_m, model.offset_left_m]))
    # The matcher moves the scores of the SAFA part back by its mean offset; here the weights move.
    moved_contrast = shifted_scores(contrast, -offset_m / window.grid.cell_m)

    nats = np.zeros((1, 1))
    safa_length = 0                                   # of the SAFA part of a descriptor
    if isinstance(network, SafaNetwork):
        safa_length = model.heads * model.channels
        features = network.ground_features(tensor).detach()                    # (1, C, rows, cols)
        weight = torch.ones_like(features[:, :1]).requires_grad_()
        descriptor = network.ground.describe(features * weight)[0]
        target = _weighted_sum(window, moved_contrast)[:safa_length].to(descriptor)
        share = (1.0 - model.detail_weight) ** 0.5 if model.detail_weight else 1.0
        score = 2.0 / model.temperature * share * (descriptor @ target)
        nats = torch.autograd.grad(score, weight)[0][0, 0].cpu().numpy().astype(float)
    detail_weight = model.detail_weight if safa_length else 1.0
    if detail_weight:
        grey = grey_ground(tensor)[0] * detail_weight ** 0.5
        target = _weighted_sum(window, contrast)[safa_length:].to(grey)
        detail_nats = 2.0 / model.temperature * grey * target
        side = view.shape[0] // DETAIL_CELL_PX
        detail_nats = detail_nats.cpu().numpy().astype(float).reshape(side, side)
        nats = detail_nats + _subdivided(nats, side)
    if model.ground_view != 'birds_eye':
        return PeakShares(nats, view[..., :3])
    cell_m = model.view_px * model.px_m / nats.shape[0]
    return PeakShares(nats, view[..., :3], cell_m, Pose2D(0.0, 0.0, yaw_rad))


def _weighted_sum(window, contrast: np.ndarray) -> torch.Tensor:
    """Sum (K,) of the descriptors of a window, weighted by ``contrast`` (R, C)."""
    index = window.index.cpu().numpy()
    weights = np.zeros(len(window.descriptors), np.float32)
    weights[index[index >= 0]] = contrast[index >= 0]
    return torch.from_numpy(weights).to(window.descriptors) @ window.descriptors


def _subdivided(nats: np.ndarray, side: int) -> np.ndarray:
    """Divide cells into finer ones, ``side`` along each side of the square, with the same sum."""
    parts = side // nats.shape[0]
    return np.kron(nats, np.full((parts, parts), 1.0 / parts**2))


def peak_contrast(heatmap: Heatmap, refine: int) -> np.ndarray:
    """Weights (R, C) of the tiles: one at the peak of a heat map, minus 1/n at all n tiles.

    The cells of the heat map are ``refine`` times finer than the tiles: the four tiles around the
    peak share its weight.  Missing tiles have no weight.
    """
    known = np.isfinite(heatmap.log_probability[::refine, ::refine])
    row, col = np.unravel_index(
        np.argmax(heatmap.log_probability), heatmap.log_probability.shape)
    row, col = row / refine, col / refine
    rows = np.maximum(0.0, 1.0 - np.abs(np.arange(known.shape[0]) - row))
    cols = np.maximum(0.0, 1.0 - np.abs(np.arange(known.shape[1]) - col))
    at_peak = np.outer(rows, cols) * known
    return at_peak / at_peak.sum() - known / known.sum()


def _dense_shares(
    matcher: DenseMatcher, image: CameraImage, ground: GroundView, window: MapWindow,
    prior: PoseEstimate, search: SearchWindow, heatmap: Heatmap, pitch_rad: float,
) -> PeakShares:
    """The shares are exact: the score is linear in the descriptors of the bird's-eye cells."""
    model = matcher.network.config
    view, weight = ground.view.clone(), ground.weight.clone()  # gradients need no inference tensor
    cells = torch.ones_like(view[:, :1]).requires_grad_()                      # (1, 1, F, L)
    scores, *_ = matcher.scores(                                            # (K, R, C)
        GroundView(view * cells, weight, ground.yaw_rad), window, prior, search)
    contrast = np.full(heatmap.volume.shape, -1.0 / heatmap.volume.size)
    contrast.flat[np.argmax(heatmap.volume)] += 1.0
    total = (scores * torch.from_numpy(contrast).to(scores)).sum()
    nats = torch.autograd.grad(total, cells)[0][0, 0].cpu().numpy().astype(float)
    road = views.lifted_view(image.rgb, image.camera.facing_ahead(), model, pitch_rad).road
    return PeakShares(
        nats, road[..., :3], model.cell_m,
        Pose2D(0.0, -model.middle_m, math.pi / 2 - ground.yaw_rad))


def on_image(found: PeakShares, camera: CameraModel, pitch_rad: float = 0.0) -> np.ndarray:
    """Project ``nats`` to the flat road in the undistorted image (H, W); NaN outside the square.

    The values are a density on the image: they can be compared but not summed.
    Raises ValueError if the view does not lie on the road.
    """
    if found.raster_from_base is None:
        raise ValueError('this view does not lie on the road; show it on the view itself')
    forward_m, left_m = road_points(camera, pitch_rad)
    x_m, y_m = np.moveaxis(
        found.raster_from_base.transform(np.stack((forward_m, left_m), -1)), -1, 0)
    rows, cols = found.nats.shape
    col = (cols - 1) / 2 + x_m / found.cell_m
    row = (rows - 1) / 2 - y_m / found.cell_m
    inside = (col >= -0.5) & (col <= cols - 0.5) & (row >= -0.5) & (row <= rows - 0.5)
    painted = cv2.remap(
        found.nats.astype(np.float32), np.where(inside, col, -9.0).astype(np.float32),
        np.where(inside, row, -9.0).astype(np.float32), cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE)
    return np.where(inside, painted, np.nan)


def road_points(camera: CameraModel, pitch_rad: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The point of the flat road at each pixel, in metres ahead and left of base_link (H, W).

    NaN at and above the horizon.  This is the inverse of ``views.image_points`` for height 0.
    """
    u_px, v_px = np.meshgrid(np.arange(camera.width_px), np.arange(camera.height_px))
    rays = np.stack((
        (u_px - camera.cx_px) / camera.fx_px, (v_px - camera.cy_px) / camera.fy_px,
        np.ones(u_px.shape)), -1)                                              # (H, W, 3)
    cos, sin = math.cos(pitch_rad), math.sin(pitch_rad)
    pitched_from_optical = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    base_from_pitched = camera.base_from_camera[:3, :3] @ pitched_from_optical.T
    ahead, left, up = np.moveaxis(rays @ base_from_pitched.T, -1, 0)
    depth_m = np.full(up.shape, np.nan)
    np.divide(-camera.height_m, up, out=depth_m, where=up < -1e-6)
    depth_m[depth_m <= views.MIN_DEPTH_M] = np.nan
    origin_m = camera.base_from_camera[:2, 3]
    return origin_m[0] + depth_m * ahead, origin_m[1] + depth_m * left
