"""The dense matcher compares a bird's-eye view with a descriptor raster, over place and heading.

Shape legend: K headings, R, C rows and columns of places, C descriptor length, F x L cells of the
bird's-eye view (ahead x left).
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from crossview_localizer.camera import views
from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import MapWindow
from crossview_localizer.matching.heatmap_pose import pose_from_heatmap
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.dense import correlate, DenseNetwork, patch_side, turned_views
from crossview_localizer.networks.trunks import normalised

YAW_STEP_RAD = 0.035  # between the headings that are compared
EDGE_M = 1.0          # width of the edge of the search window
SEARCH_POOL = 4       # the search for a pose averages squares of this many cells on a side


class GroundView(NamedTuple):
    """What the ground branch computes of an image, in axes at base_link where the camera faces x.

    ``view`` (1, C, F, L) are weighted descriptors, ``weight`` (1, 1, F, L) their weights, and
    ``yaw_rad`` is the direction of the camera in base_link.
    """

    view: torch.Tensor
    weight: torch.Tensor
    yaw_rad: float = 0.0


class DenseMatcher:
    """Matches positions and headings."""

    needs_heading = False

    def __init__(self, network: DenseNetwork, device: str = 'cpu', ground=None):
        """``ground`` runs in place of the network's ground branch (OnnxBranch, HalfGround)."""
        self.network = network
        self.device = device
        self._ground = ground or network.ground
        config = network.config
        self.errors = config.match_errors
        # The patch lies ahead of the pose, so the map must reach farther than the search window.
        # The blocks are chosen by their centres: each reaches half its side farther.  One more
        # cell, because the raster is cut at whole cells.
        self.margin_m = (config.middle_m + (config.patch_cells / 2 + 1) * config.cell_m
                         - config.block_px * config.px_m / 2)

    @torch.inference_mode()
    def embed(self, image: CameraImage, yaw_rad: float, pitch_rad: float = 0.0) -> GroundView:
        """Compute the ground view of an image.

        It lies in axes that turn with the vehicle: the heading ``yaw_rad`` is not needed.
        """
        camera = image.camera
        lifted = views.lifted_view(
            image.rgb, camera.facing_ahead(), self.network.config, pitch_rad)
        return GroundView(*self._ground(*ground_tensors([lifted], self.device)), camera.yaw_rad)

    @torch.inference_mode()
    def match(self, ground: GroundView, window: MapWindow, prior: PoseEstimate,
              search: SearchWindow) -> Heatmap:
        """Compute the log-probability of places and headings, and of places (its sum over yaw)."""
        scores, yaws_rad, grid = self.scores(ground, window, prior, search)
        volume = torch.log_softmax(scores.double().flatten(), 0).view(scores.shape)
        return Heatmap(prior.stamp_ns, grid, torch.logsumexp(volume, 0).cpu().numpy(), yaws_rad,
                       volume.cpu().numpy())

    def scores(self, ground: GroundView, window: MapWindow, prior: PoseEstimate,
               search: SearchWindow):
        """Log-likelihoods (K, R, C) up to a constant, their yaws (K,), the grid of the places."""
        model = self.network.config
        heading = prior.pose.yaw_rad + ground.yaw_rad            # of the camera
        yaws_rad = heading + yaw_offsets(search.half_yaw_rad)                    # (K,)
        places = 2 * math.ceil(search.half_width_m / model.cell_m) + 1
        patch_cells = patch_side(model, yaws_rad[-1] - heading)
        ahead_m = model.middle_m * np.array([math.cos(heading), math.sin(heading)])
        raster, missing, grid = self.cut(
            window, prior.pose.x_m + ahead_m[0], prior.pose.y_m + ahead_m[1],
            places + patch_cells - 1)
        view, raster = self.network.without_unused_channels(ground.view, raster)
        scores = self.network.scores(
            view, ground.weight, raster,
            torch.from_numpy(yaws_rad)[None].to(self.device), heading, missing,
            patch_cells)[0] / model.temperature                                 # (K, R, C)
        middle = (patch_cells - 1) / 2 * model.cell_m
        places_grid = MapGrid(places, places, model.cell_m, grid.x0_m + middle - ahead_m[0],
                              grid.y0_m - middle - ahead_m[1])
        return scores, yaws_rad - ground.yaw_rad, places_grid

    def cut(self, window: MapWindow, x_m: float, y_m: float, side: int):
        """See ``window_raster``."""
        model = self.network.config
        return window_raster(window, model.block_cells, model.cell_m, x_m, y_m, side)

    @torch.inference_mode()
    def search_heatmaps(self, ground: GroundView, embedding_map, yaws_rad: np.ndarray, x_m: float,
                        y_m: float, half_width_m: float) -> list[Heatmap] | None:
        """Compute a heat map for each heading (K,), for a search; None outside the map.

        Descriptors are averaged over SEARCH_POOL x SEARCH_POOL cells.  The heat maps are
        normalised together: exp sums to K over all of them.
        """
        model = self.network.config
        middle = PoseEstimate(0, Pose2D(x_m, y_m, 0.0), np.eye(3))
        window = embedding_map.window(middle, half_width_m + 2 * self.margin_m)
        if window is None:
            return None
        cell_m = SEARCH_POOL * model.cell_m
        side = 2 * math.ceil((half_width_m + self.margin_m) / cell_m) * SEARCH_POOL
        raster, _, grid = self.cut(window, x_m, y_m, side)
        view, raster = self.network.without_unused_channels(            # (R, N, N)
            ground.view, F.avg_pool2d(raster, SEARCH_POOL))
        camera_yaws_rad = np.asarray(yaws_rad) + ground.yaw_rad
        patches = torch.cat([
            turned_views(view, torch.tensor([[yaw_rad]]).to(view), yaw_rad, model)[0]
            for yaw_rad in camera_yaws_rad])                            # (K, C, P, P)
        patches = F.avg_pool2d(patches, SEARCH_POOL)[None]
        scale = self.network.log_scale.exp() * SEARCH_POOL ** 2 / (
            model.ahead_cells * model.across_cells * model.temperature)
        scores = (correlate(patches, raster)[0] * scale).double()       # (K, R, C)
        volume = torch.log_softmax(scores.flatten(), 0).view(scores.shape).cpu().numpy()
        volume += math.log(len(yaws_rad))
        places = volume.shape[1]
        # Element (0, 0) is the pose whose patch lies in the north-west corner of the raster.
        first_m = (model.patch_cells - 1) / 2 * model.cell_m
        return [
            Heatmap(0, MapGrid(
                places, places, cell_m, grid.x0_m + first_m - model.middle_m * math.cos(yaw_rad),
                grid.y0_m - first_m - model.middle_m * math.sin(yaw_rad)), log_p)
            for yaw_rad, log_p in zip(camera_yaws_rad, volume)]

    def estimate(self, heatmap: Heatmap,
                 prior: PoseEstimate) -> tuple[PoseEstimate | None, str]:
        """See ``pose_from_heatmap``."""
        return pose_from_heatmap(heatmap, prior, max(1, round(EDGE_M / heatmap.grid.cell_m)))


class HalfGround:
    """The ground branch of a dense network with its trunk in half precision.

    Inputs, outputs and the layers after the trunk are float32: they normalise cells that may be
    zero.
    """

    def __init__(self, network: DenseNetwork):
        self._branch = network.ground

    def __call__(self, images: torch.Tensor, road: torch.Tensor, points: torch.Tensor):
        with torch.autocast(images.device.type, torch.float16):
            features = self._branch.features(images)
        return self._branch.lift(features.float(), road, points)


def ground_tensors(lifted: list[views.LiftedView], device: str = 'cpu'):
    """Make the three inputs of the ground branch of a batch of lifted views."""
    def on_device(values: list[np.ndarray]) -> torch.Tensor:
        batch = torch.from_numpy(values[0][None] if len(values) == 1 else np.stack(values))
        if str(device).startswith('cuda'):
            return batch.pin_memory().to(device, non_blocking=True)
        return batch.to(device)

    images = normalised(on_device([v.trunk_image for v in lifted]))
    road = on_device([v.road for v in lifted])
    mask = road[..., 3:].permute(0, 3, 1, 2).float() / 255.0
    points = on_device([v.points for v in lifted])
    return images, torch.cat((normalised(road[..., :3]) * mask, mask), 1), points


def yaw_offsets(half_yaw_rad: float) -> np.ndarray:
    """Headings relative to the prior, YAW_STEP_RAD apart, that cover +-half_yaw_rad."""
    steps = math.ceil(half_yaw_rad / YAW_STEP_RAD)
    return YAW_STEP_RAD * np.arange(-steps, steps + 1)


def window_raster(window: MapWindow, block_cells: int, cell_m: float, x_m: float, y_m: float,
                  side: int) -> tuple[torch.Tensor, torch.Tensor | None, MapGrid]:
    """Cut the square of ``side`` cells around a point out of the blocks of a map window.

    Returns the descriptors (C, side, side), zero where missing; a mask (side, side) that is 1
    where they are missing, or None if none is; and the grid of the cells.
    """
    blocks = window.grid
    # Cell (0, 0) of the window's north-west block.
    x0_m = blocks.x0_m - (block_cells - 1) / 2 * cell_m
    y0_m = blocks.y0_m + (block_cells - 1) / 2 * cell_m
    left = round((x_m - x0_m) / cell_m - (side - 1) / 2)
    top = round((y0_m - y_m) / cell_m - (side - 1) / 2)
    grid = MapGrid(side, side, cell_m, x0_m + left * cell_m, y0_m - top * cell_m)
    channels = window.rows.shape[1] // block_cells ** 2
    raster = torch.zeros(
        channels, side, side, dtype=window.rows.dtype, device=window.rows.device)
    missing = torch.ones(side, side, device=window.rows.device)
    index = window.index.numpy()
    for row, col in zip(*np.nonzero(index >= 0)):
        # Where the block lies in the square, cut off at its edges.
        r, c = row * block_cells - top, col * block_cells - left
        r0, r1 = max(r, 0), min(r + block_cells, side)
        c0, c1 = max(c, 0), min(c + block_cells, side)
        if r0 < r1 and c0 < c1:
            block = window.rows[index[row, col]].view(channels, block_cells, block_cells)
            raster[:, r0:r1, c0:c1] = block[:, r0 - r:r1 - r, c0 - c:c1 - c]
            missing[r0:r1, c0:c1] = 0.0
    return raster.float().mul_(window.scale), missing if missing.any() else None, grid
