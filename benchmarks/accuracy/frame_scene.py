"""A prepared world as the matchers see it: small images, the dense map, and tiles on demand."""

from dataclasses import replace
import math

import cv2
import numpy as np
import torch

from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import MapWindow
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.heatmap_pose import peak_pose
from crossview_localizer.matching.tile_matcher import TileMatcher
from crossview_localizer.networks.dense import GAUSSIAN_DOF
from training.data.datasets import World
from training.recipes.dense_groups import dense_map, PRIOR_M, uniform_window
from training.simulation.robotcar_writer import smooth_warp

IMAGE_PX = (231, 154)
TILE_STEP_PX = 4              # of 0.375 m
WARP_RMS_M = 0.5


class FrameScene:
    """The images, maps and matchers of one world; ``warp_seed`` distorts its imagery."""

    def __init__(self, world: World, dense, paper=None, warp_seed: int | None = None, raw=None):
        self.world = small_images(world)
        if warp_seed is not None:
            self.world = replace(self.world, imagery=warped(self.world, warp_seed))
        self.matchers = {'dense': DenseMatcher(dense)}
        self.maps = {'dense': dense_map(dense, self.world)}
        self.paper, self.raw = paper, raw
        self.coarse = coarser(self.world, paper.config.px_m) if paper else None

    def add_dense(self, name: str, network) -> None:
        self.matchers[name] = DenseMatcher(network)
        self.maps[name] = dense_map(network, self.world)

    def image(self, index: int) -> CameraImage:
        return CameraImage(0, self.world.images[index], self.world.camera)

    def truth(self, index: int) -> Pose2D:
        return true_pose(self.world, index)

    def match_dense(self, name: str, image: CameraImage, prior: PoseEstimate,
                    half_width_m: float) -> Heatmap:
        matcher = self.matchers[name]
        window = self.maps[name].window(prior, half_width_m, matcher.margin_m)
        ground = matcher.embed(image, prior.pose.yaw_rad)
        return matcher.match(ground, window, prior, uniform_window(half_width_m))

    def estimate(self, name: str, heatmap: Heatmap, prior: PoseEstimate):
        """The estimate of a heat map, whether it is ambiguous, and its degrees of freedom."""
        model = self.matchers[name].network.config
        estimate, ambiguous = peak_pose(
            heatmap, prior, model.sharpening, model.min_mass, model.peak_inflation)
        return estimate, ambiguous, GAUSSIAN_DOF if ambiguous else model.peak_dof

    def match_tiles(self, network, image: CameraImage, prior: PoseEstimate) -> Heatmap:
        """The heat map of the paper's matcher, with tiles TILE_STEP_PX apart."""
        matcher = TileMatcher(network)
        window = tile_window(network, self.coarse, prior.pose, PRIOR_M)
        ground = matcher.embed(image, prior.pose.yaw_rad)
        return matcher.match(ground, window, prior)


def small_images(world: World) -> World:
    """The world with images of IMAGE_PX and their camera."""
    height_px, width_px = world.images.shape[1:3]
    if (width_px, height_px) == IMAGE_PX:
        return world
    images = np.stack([cv2.resize(x, IMAGE_PX, interpolation=cv2.INTER_AREA)
                       for x in world.images])
    return replace(world, images=images, camera=world.camera.resized(*IMAGE_PX))


def warped(world: World, seed: int) -> np.ndarray:
    """The imagery with a smooth distortion of WARP_RMS_M, as the renderer offers it."""
    x_m, y_m = np.meshgrid(*world.grid.cell_centres())
    dx_m, dy_m = smooth_warp(np.random.default_rng([seed, 23]), x_m, y_m, WARP_RMS_M)
    row, col = world.grid.row_col_from_xy(x_m + dx_m, y_m + dy_m)
    return cv2.remap(world.imagery, col.astype(np.float32), row.astype(np.float32),
                     cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def coarser(world: World, px_m: float) -> World:
    """The world with imagery of ``px_m`` per pixel."""
    scale = world.grid.cell_m / px_m
    rows, cols = int(world.grid.rows * scale), int(world.grid.cols * scale)
    first_m = (px_m - world.grid.cell_m) / 2
    grid = MapGrid(rows, cols, px_m, world.grid.x0_m + first_m, world.grid.y0_m - first_m)
    used = world.imagery[:round(rows / scale), :round(cols / scale)]
    return replace(world, grid=grid, imagery=cv2.resize(
        used, (cols, rows), interpolation=cv2.INTER_AREA))


@torch.no_grad()
def tile_window(network, world: World, pose: Pose2D, half_width_m: float) -> MapWindow:
    """Tiles TILE_STEP_PX apart around a pose; the trunk runs once per shift of its lattice."""
    model = network.config
    stride = 8
    reach = math.ceil((half_width_m + 1.0) / (stride * model.px_m))
    side_px = model.tile_px + 2 * reach * stride
    side_px += -side_px % 32
    area, grid = world.area(pose.x_m, pose.y_m, side_px + stride)
    shifts = range(0, stride, TILE_STEP_PX)
    per_shift = (side_px - model.tile_px) // stride + 1
    tiles = None
    for i, down in enumerate(shifts):
        for j, right in enumerate(shifts):
            part = torch.from_numpy(area[down:down + side_px, right:right + side_px].copy())
            if hasattr(network, 'embed_lattice'):
                found = network.embed_lattice(part)
            else:
                cut = part.unfold(0, model.tile_px, stride).unfold(1, model.tile_px, stride)
                found = network.embed_satellite(cut.flatten(0, 1).permute(0, 2, 3, 1)).view(
                    per_shift, per_shift, -1)
            if tiles is None:
                tiles = found.new_zeros(
                    per_shift * len(shifts), per_shift * len(shifts), found.shape[2])
            tiles[i::len(shifts), j::len(shifts)] = found
    first_px = model.margin_px + (model.view_px - 1) / 2
    x0_m, y0_m = grid.xy_from_row_col(first_px, first_px)
    side = tiles.shape[0]
    return MapWindow(
        MapGrid(side, side, TILE_STEP_PX * model.px_m, float(x0_m), float(y0_m)),
        torch.arange(side * side).view(side, side), tiles.flatten(0, 1), 1.0)


def true_pose(world: World, index: int) -> Pose2D:
    return Pose2D(*map(float, world.poses[index]))
