"""Training samples of the dense matcher: frames near one place, and the imagery around them.

Shape legend: B frames of a group, K yaw bins, N cells along a side of the satellite window.
"""

from dataclasses import dataclass, replace
import math

import cv2
import numpy as np
import torch

from crossview_localizer.camera import views
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.matching.dense_matcher import ground_tensors
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.dense import DenseConfig
from crossview_localizer.networks.trunks import normalised
from training.data.datasets import World

WINDOW_CELLS = 81     # places along a side of the score volume: the prior's +-20 m
PRIOR_M, PRIOR_DEG = 18.5, 10.0  # the truth lies within these of the prior, on each axis
NEAR_M = 18.0         # companions of a group lie within this of its first frame
NEAR_YAW_RAD = 0.2    # and head the same way


def uniform_window(half_width_m: float) -> SearchWindow:
    """The window of all poses that a prior of ``prior_about`` allows."""
    return SearchWindow(half_width_m, math.radians(PRIOR_DEG))


@dataclass(frozen=True)
class DenseGroup:
    """Frames that share one satellite window.

    ``imagery`` (1, 3, 2N, 2N), ``images`` (B, 3, H, W) normalised; ``road`` (B, 4, 2F, 2L) and
    ``points`` (B, Z, F, L, 2) as ``GroundBranch`` takes them; ``yaws_rad`` (B, K);
    ``target`` (B, 3): fractional row and column of the true place in the score volume, and the
    fraction of the way from yaw bin 0 to yaw bin 1 at which the true heading lies.
    """

    imagery: torch.Tensor
    images: torch.Tensor
    road: torch.Tensor
    points: torch.Tensor
    yaws_rad: torch.Tensor
    heading_rad: float
    target: torch.Tensor

    def to(self, device: str) -> 'DenseGroup':
        return DenseGroup(**{
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in vars(self).items()})


def companions(world: World, first: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of up to ``size`` frames near one and heading the same way, itself first."""
    offset = world.poses - world.poses[first]
    turn = np.abs((offset[:, 2] + np.pi) % (2 * np.pi) - np.pi)
    near = np.flatnonzero(
        (np.hypot(offset[:, 0], offset[:, 1]) < NEAR_M) & (turn < NEAR_YAW_RAD))
    others = rng.permutation(near[near != first])[:size - 1]
    return np.concatenate(([first], others))


def dense_group(world: World, first: int, size: int, config: DenseConfig, seed) -> DenseGroup:
    """Draw a group about frame ``first``: prior, map orientation, light, camera errors.

    The imagery is turned by a random angle, as a result must not depend on the map's axes. It is
    never mirrored: that would hide on which side of the road one drives.
    """
    rng = np.random.default_rng(seed)
    members = companions(world, first, size, rng)
    turn_rad = rng.uniform(-np.pi, np.pi)
    # The satellite window: its middle is the prior, moved to the middle of the patch ahead.
    origin = Pose2D(*world.poses[first, :2], -turn_rad)   # new axes at the first frame
    new_from_map = origin.inverse()
    poses = np.array([
        (p.x_m, p.y_m, p.yaw_rad) for p in (
            new_from_map @ Pose2D(*world.poses[k]) for k in members)])      # (B, 3)
    span = poses[:, :2].max(0) - poses[:, :2].min(0)
    free = PRIOR_M - span / 2  # companions are near enough: never negative
    middle = (poses[:, :2].max(0) + poses[:, :2].min(0)) / 2
    prior_xy = middle + rng.uniform(-1.0, 1.0, 2) * free
    heading = float(poses[0, 2])
    side = WINDOW_CELLS - 1 + config.patch_cells
    centre = prior_xy + config.middle_m * np.array([np.cos(heading), np.sin(heading)])
    cell_0 = centre + np.array([-1.0, 1.0]) * (side - 1) / 2 * config.cell_m

    # Pixels of the turned window in the world's raster.
    pixels = side * config.cell_px
    across = (np.arange(pixels) - (pixels - 1) / 2) * config.px_m
    east, north = np.broadcast_arrays(centre[0] + across[None, :], centre[1] - across[:, None])
    points = origin.transform(np.stack((east, north), -1).reshape(-1, 2))
    row, col = world.grid.row_col_from_xy(points[:, 0], points[:, 1])
    imagery = cv2.remap(
        world.imagery, col.reshape(pixels, pixels).astype(np.float32),
        row.reshape(pixels, pixels).astype(np.float32), cv2.INTER_LINEAR,
        borderValue=(views.UNSEEN,) * 3)

    lifted = []
    for k in members:
        camera = replace(world.camera, height_m=world.camera.height_m * rng.normal(1.0, 0.02))
        pitch = np.radians(rng.normal(0.0, 0.4))
        rgb = coloured(world.images[k], rng)
        if rng.uniform() < 0.3:
            rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, 1.2))
        lifted.append(views.lifted_view(rgb, camera, config, pitch))

    # Yaw bins: the two that enclose the truth, 2 degrees apart, and a wrong one on each side.
    below = np.radians(rng.uniform(0.0, 2.0, len(members)))
    right, left = np.radians(rng.uniform(3.0, 12.0, (2, len(members))))
    yaws = poses[:, 2:] + np.stack((-below, np.radians(2.0) - below, -right, left), 1)
    base_0 = cell_0 + np.array([1.0, -1.0]) * (config.patch_cells - 1) / 2 * config.cell_m
    base_0 = base_0 - config.middle_m * np.array([np.cos(heading), np.sin(heading)])
    target = np.stack((
        (base_0[1] - poses[:, 1]) / config.cell_m, (poses[:, 0] - base_0[0]) / config.cell_m,
        below / np.radians(2.0)), 1)
    images, road, points = ground_tensors(lifted)
    return DenseGroup(
        normalised(torch.from_numpy(coloured(imagery, rng))[None]), images, road, points,
        torch.from_numpy(yaws), heading, torch.from_numpy(target))


def coloured(rgb: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Vary gain (per channel), gamma, offset and grain, as on another day or camera."""
    gain = rng.normal(1.0, 0.06, 3) * rng.normal(1.0, 0.15)
    values = (np.arange(256) / 255.0) ** np.exp(rng.normal(0.0, 0.2))
    table = np.clip(values[:, None] * gain * 255.0 + rng.normal(0.0, 8.0), 0.0, 255.0)  # (256, 3)
    out = np.stack([table[:, k].astype(np.float32)[rgb[..., k]] for k in range(3)], -1)
    if rng.uniform() < 0.5:
        out += rng.normal(0.0, rng.uniform(1.0, 5.0), out.shape).astype(np.float32)
    return np.clip(np.round(out), 0, 255).astype(np.uint8)


def prior_about(truth: Pose2D, rng, half_width_m: float) -> PoseEstimate:
    """A prior off by up to its half width and PRIOR_DEG, both uniform."""
    offset = rng.uniform(-half_width_m, half_width_m, 2)
    turn = math.radians(rng.uniform(-PRIOR_DEG, PRIOR_DEG))
    covariance = np.diag(
        [half_width_m ** 2 / 3.0] * 2 + [math.radians(PRIOR_DEG) ** 2 / 3.0])
    return PoseEstimate(0, Pose2D(
        truth.x_m + offset[0], truth.y_m + offset[1], wrap_angle(truth.yaw_rad + turn)),
        covariance)


@torch.no_grad()
def dense_map(network, world: World) -> EmbeddingMap:
    """The blocks of a whole world, several at once as ``build_map`` does; in no frame on Earth."""
    config = network.config
    step, reach = config.block_px, network.lattice_points
    side_px = config.tile_px + (reach - 1) * step
    count = (min(world.imagery.shape[:2]) - config.tile_px) // step + 1
    blocks = np.zeros((count, count, config.channels * config.block_cells ** 2), np.float16)
    for top in range(0, count, reach):
        for left in range(0, count, reach):
            area = np.full((side_px, side_px, 3), views.UNSEEN, np.uint8)
            part = world.imagery[top * step:top * step + side_px,
                                 left * step:left * step + side_px]
            area[:part.shape[0], :part.shape[1]] = part
            found = network.embed_lattice(torch.from_numpy(area)).half().numpy()
            rows, cols = min(reach, count - top), min(reach, count - left)
            blocks[top:top + rows, left:left + cols] = found[:rows, :cols]
    middle_px = (config.tile_px - 1) / 2
    x0_m, y0_m = world.grid.xy_from_row_col(middle_px, middle_px)
    grid = MapGrid(count, count, step * config.px_m, float(x0_m), float(y0_m))
    return EmbeddingMap(
        None, grid, torch.arange(count ** 2).view(count, count),
        torch.from_numpy(blocks).flatten(0, 1), network.fingerprint, config.tile_m, config.tile_px)
