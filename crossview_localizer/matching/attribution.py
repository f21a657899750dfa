"""What in a frame made its match: how much each part of the ground view adds to the score.

What singles out the heat map's peak is the score there over the window's mean, in nats,

    J = log-likelihood_peak - 1/n sum_t log-likelihood_t.

(Over the mean that the heat map itself expects a sharp peak would only be held against its own
neighbours.)  Weigh each cell of the ground view by ``m``, all 1: the gradient dJ/dm is the cell's
share of J.  It is exact where the score is linear in the cells (the
detail part, the dense matcher); for SAFA it is the first-order share of its feature map's cells.
(Gradient times input: Shrikumar et al., "Not Just a Black Box", 2016.)

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
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.matching.tile_matcher import shifted_scores, TileMatcher
from crossview_localizer.networks.safa import grey_ground, SafaNetwork, views_to_tensor

DETAIL_CELL_PX = 2


@dataclass(frozen=True)
class Evidence:
    """Shares of the peak's score over a ground view.

    ``nats`` (h, w): positive for the peak, negative against it; ``view`` (H, W, 3) uint8 is the
    same square as the network was shown it.  Where both lie on the road, ``cell_m`` is the side of
    a cell and ``raster_from_base`` takes base_link to the square's axes: origin in its middle, x
    along its columns, y up its rows.  Else ``raster_from_base`` is None.
    """

    nats: np.ndarray
    view: np.ndarray
    cell_m: float = 0.0
    raster_from_base: Pose2D | None = None


def evidence(
    matcher: TileMatcher | DenseMatcher, image: CameraImage, window: MapWindow,
    prior: PoseEstimate, search: SearchWindow, pitch_rad: float = 0.0,
) -> tuple[Evidence, Heatmap]:
    """The evidence of one frame under the prior that it was matched with, and its heat map."""
    ground = matcher.embed(image, prior.pose.yaw_rad, pitch_rad)
    heatmap = matcher.match(ground, window, prior, search)
    if isinstance(matcher, DenseMatcher):
        found = _of_dense(matcher, image, ground, window, prior, search, heatmap, pitch_rad)
    else:
        found = _of_tiles(matcher, image, window, prior, heatmap, pitch_rad)
    return found, heatmap


def _of_tiles(
    matcher: TileMatcher, image: CameraImage, window: MapWindow, prior: PoseEstimate,
    heatmap: Heatmap, pitch_rad: float,
) -> Evidence:
    network, model = matcher.network, matcher.network.config
    yaw_rad = prior.pose.yaw_rad
    view = views.ground_view(model.ground_view, image.rgb, image.camera, yaw_rad, model.view_px,
                             model.px_m, pitch_rad)                            # (H, W, 3 or 4)
    tensor = views_to_tensor(view, matcher.device)
    contrast = peak_contrast(heatmap, matcher.refine)                          # (R, C)
    offset_m = Pose2D(0.0, 0.0, yaw_rad).transform(
        np.array([model.offset_forward_m, model.offset_left_m]))
    # The matcher moves the scores of the SAFA part back by its mean offset; here their weights.
    moved_contrast = shifted_scores(contrast, -offset_m / window.grid.cell_m)

    nats = np.zeros((1, 1))
    safa = 0
    if isinstance(network, SafaNetwork):
        safa = model.heads * model.channels
        features = network.ground_features(tensor).detach()                    # (1, C, rows, cols)
        weight = torch.ones_like(features[:, :1]).requires_grad_()
        described = network.ground.describe(features * weight)[0]
        target = _combined(window, moved_contrast)[:safa].to(described)
        share = (1.0 - model.detail_weight) ** 0.5 if model.detail_weight else 1.0
        score = 2.0 / model.temperature * share * (described @ target)
        nats = torch.autograd.grad(score, weight)[0][0, 0].cpu().numpy().astype(float)
    detail = model.detail_weight if safa else 1.0
    if detail:
        grey = grey_ground(tensor)[0] * detail ** 0.5
        of_cells = 2.0 / model.temperature * grey * _combined(window, contrast)[safa:].to(grey)
        side = view.shape[0] // DETAIL_CELL_PX
        of_cells = of_cells.cpu().numpy().astype(float).reshape(side, side)
        nats = of_cells + _spread(nats, side)
    if model.ground_view != 'birds_eye':
        return Evidence(nats, view[..., :3])
    cell_m = model.view_px * model.px_m / nats.shape[0]
    return Evidence(nats, view[..., :3], cell_m, Pose2D(0.0, 0.0, yaw_rad))


def _combined(window, contrast: np.ndarray) -> torch.Tensor:
    """The window's descriptors, each times its weight (R, C), as one (K,)."""
    index = window.index.cpu().numpy()
    weights = np.zeros(len(window.descriptors), np.float32)
    weights[index[index >= 0]] = contrast[index >= 0]
    return torch.from_numpy(weights).to(window.descriptors) @ window.descriptors


def _spread(nats: np.ndarray, side: int) -> np.ndarray:
    """Cells cut into finer ones with the same sum."""
    times = side // nats.shape[0]
    return np.kron(nats, np.full((times, times), 1.0 / times**2))


def peak_contrast(heatmap: Heatmap, refine: int) -> np.ndarray:
    """One at the heat map's peak minus 1/n everywhere, on the ``refine`` times coarser lattice.

    The peak lies between tiles: its weight is shared between the four about it.  Tiles that are
    missing have no weight.
    """
    known = np.isfinite(heatmap.log_probability[::refine, ::refine])
    row, col = np.unravel_index(
        np.argmax(heatmap.log_probability), heatmap.log_probability.shape)
    row, col = row / refine, col / refine
    rows = np.maximum(0.0, 1.0 - np.abs(np.arange(known.shape[0]) - row))
    cols = np.maximum(0.0, 1.0 - np.abs(np.arange(known.shape[1]) - col))
    at_peak = np.outer(rows, cols) * known
    return at_peak / at_peak.sum() - known / known.sum()


def _of_dense(
    matcher: DenseMatcher, image: CameraImage, ground, window: MapWindow, prior: PoseEstimate,
    search: SearchWindow, heatmap: Heatmap, pitch_rad: float,
) -> Evidence:
    """Exact: the score is linear in the weighted descriptors of the bird's-eye cells."""
    model = matcher.network.config
    view, weight = (part.clone() for part in ground)       # out of inference mode
    cells = torch.ones_like(view[:, :1]).requires_grad_()                      # (1, 1, F, L)
    scores, *_ = matcher.scores((view * cells, weight), window, prior, search)  # (K, R, C)
    contrast = np.full(heatmap.volume.shape, -1.0 / heatmap.volume.size)
    contrast.flat[np.argmax(heatmap.volume)] += 1.0
    total = (scores * torch.from_numpy(contrast).to(scores)).sum()
    nats = torch.autograd.grad(total, cells)[0][0, 0].cpu().numpy().astype(float)
    road = views.lifted_view(image.rgb, image.camera, model, pitch_rad).road
    return Evidence(
        nats, road[..., :3], model.cell_m, Pose2D(0.0, -model.middle_m, math.pi / 2))


def on_image(found: Evidence, camera: CameraModel, pitch_rad: float = 0.0) -> np.ndarray:
    """``nats`` where the flat road lies in the undistorted image (H, W); NaN off the square.

    Scaled to the image's own pixels it is a density: comparable within a picture, not a sum.
    Raises ValueError where the evidence does not lie on the road.
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
    """Where each pixel sees the flat road, metres ahead and left of base_link (H, W).

    NaN at and above the horizon; the inverse of ``views.image_points`` for height 0.
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
