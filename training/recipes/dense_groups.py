"""Training samples of the dense matcher: frames near one place, and the imagery around them.

A group is drawn from a prepared world (``world_group``) or a rendered place (``place_group``).
Shape legend: B frames of a group, K yaw bins, A cells along a side of the imagery, N along a side
of a frame's satellite window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math

import cv2
import numpy as np
import torch

from crossview_localizer.camera import views
from crossview_localizer.datatypes import CameraModel, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.matching.dense_matcher import ground_tensors
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.dense import DenseConfig
from crossview_localizer.networks.trunks import normalised
from training.data.datasets import World
from training.data.rendered_places import decode_jpeg, RenderedPlace
from training.recipes.augment import changed

PRIOR_M, PRIOR_DEG = 18.5, 10.0  # the truth lies within these of the prior, on each axis
# Half of the groups have a prior of NARROW_PRIOR of PRIOR_M, but none whose places have a larger
# sigma than UNSURE_M on each axis.
NARROW_PRIOR, UNSURE_M = 0.45, 2.5
OWN_PRIOR_M = 4.0     # the frames of a group have priors that differ by up to this
EDGE_M = 1.5          # the score volume reaches this far beyond the prior
NEAR_M, NEAR_YAW_RAD = 18.0, 0.2  # companions of a frame are this near to it, in place and heading
IMAGERY_CELLS = 32    # the imagery has a multiple of these cells along a side
IMAGERY_BLUR_PX, IMAGE_BLUR_PX = 1.6, 1.2  # largest sigma of the random blur
ANY_COLOURS = 0.2     # share of the groups whose views do not agree in their colours
# How wrong the camera and the map are made: each group draws one of these sigmas for the height of
# the camera, the size of a pixel of the imagery (both as shares), and the pitch of the camera.
HEIGHT_ERRORS, PITCH_ERRORS_DEG = (0.02, 0.05), (0.4,)
PLACE_HEIGHT_ERRORS, PLACE_PITCH_ERRORS_DEG = (0.02, 0.05, 0.1), (0.4, 0.4, 1.0)
PLACE_SCALE_ERRORS = (0.0, 0.0, 0.02, 0.07)


def uniform_window(half_width_m: float) -> SearchWindow:
    """The window of all poses that a prior of ``prior_about`` allows."""
    return SearchWindow(half_width_m, math.radians(PRIOR_DEG))


@dataclass(frozen=True)
class DenseGroup:
    """Frames of one camera, each with a satellite window cut from the same imagery.

    ``imagery`` (1, 3, 2A, 2A), ``images`` (B, 3, H, W) normalised; ``missing`` (A, A) is 1 where
    there is no imagery; ``road`` (B, 4, 2F, 2L) and ``points`` (B, Z, F, L, 2) as
    ``GroundBranch`` takes them.  ``corners`` (B, 2): row and column of the north-west cell of each
    frame's window, which has ``side`` cells.  ``yaws_rad`` (B, K); ``headings_rad`` (B,) of the
    priors; ``target`` (B, 3): fractional row and column of the true place in the score volume, and
    the fraction of the way from yaw bin 0 to yaw bin 1 at which the true heading lies.
    ``covariances`` (B, 2, 2) of that row and column, in cells; zero where the place is known.
    """

    imagery: torch.Tensor
    missing: torch.Tensor
    images: torch.Tensor
    road: torch.Tensor
    points: torch.Tensor
    corners: list[tuple[int, int]]
    side: int
    yaws_rad: torch.Tensor
    headings_rad: list[float]
    target: torch.Tensor
    covariances: torch.Tensor

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


def world_group(world: World, first: int, size: int, config: DenseConfig, seed,
                augment: bool = True) -> DenseGroup:
    """Draw a group about frame ``first`` of a world."""
    rng = np.random.default_rng(seed)
    members = companions(world, first, size, rng)
    return draw_group(
        world.imagery, world.grid, world.camera, [world.images[k] for k in members],
        world.poses[members], config, rng, augment,
        None if world.pose_covariances is None else world.pose_covariances[members])


def place_group(place: RenderedPlace, size: int, config: DenseConfig, seed,
                augment: bool = True, rough: bool = False) -> DenseGroup:
    """Draw a group of a place: one of its shots, against one of its pictures from above."""
    rng = np.random.default_rng(seed)
    shot = place.shots[rng.integers(len(place.shots))]
    aerial = decode_jpeg(place.aerials[rng.integers(len(place.aerials))])
    members = rng.permutation(len(shot.frames))[:size]
    return draw_group(
        aerial, place.grid, shot.camera, [decode_jpeg(shot.frames[k]) for k in members],
        shot.poses[members], config, rng, augment, rough=rough)


def draw_group(aerial: np.ndarray, grid: MapGrid, camera: CameraModel,
               images: Sequence[np.ndarray], poses: np.ndarray, config: DenseConfig,
               rng: np.random.Generator, augment: bool,
               covariances: np.ndarray | None = None, rough: bool = False) -> DenseGroup:
    """Draw priors, the orientation of the map, errors of the camera, and changes of both views.

    ``aerial`` (H, W, 3) lies on ``grid``; ``poses`` (B, 3): x_m, y_m, yaw_rad of the images;
    ``covariances`` (B, 2, 2) of x and y, where these are not known exactly.  The
    imagery is turned by a random angle, because a map's axes have no meaning for a matcher.  It
    is never mirrored: that would hide on which side of the road one drives.  With ``rough`` the
    camera's height and pitch and the scale of the imagery are less well known, as those of
    pictures from public sources are.
    """
    if rough:
        scale = math.exp(rng.normal(0.0, rng.choice(PLACE_SCALE_ERRORS)))
        grid = replace(grid, cell_m=scale * grid.cell_m, x0_m=scale * grid.x0_m,
                       y0_m=scale * grid.y0_m)
        poses = poses * [scale, scale, 1.0]
    turn_rad = rng.uniform(-np.pi, np.pi)
    origin = Pose2D(*map(float, poses[0, :2]), -turn_rad)  # the new axes, at the first frame
    new_from_map = origin.inverse()
    poses = np.array([(p.x_m, p.y_m, p.yaw_rad) for p in (
        new_from_map @ Pose2D(*map(float, pose)) for pose in poses)])            # (B, 3)
    poses[:, 2] += camera.yaw_rad        # from here on those of the camera, as in DenseMatcher
    camera = camera.facing_ahead()
    headings = poses[:, 2]
    ahead = config.middle_m * np.stack((np.cos(headings), np.sin(headings)), 1)

    if covariances is None:
        covariances = np.zeros((len(poses), 2, 2))
    # Of a place that is not well known the narrow window could miss most.
    unsure = covariances.trace(axis1=1, axis2=2).max() / 2 > UNSURE_M ** 2
    reach_m = PRIOR_M * rng.choice([1.0 if unsure else NARROW_PRIOR, 1.0])
    places = 2 * math.ceil((reach_m + EDGE_M) / config.cell_m) + 1
    side = places - 1 + config.patch_cells
    offset_m = (rng.uniform(-1, 1, 2) * (reach_m - OWN_PRIOR_M)
                + rng.uniform(-OWN_PRIOR_M, OWN_PRIOR_M, (len(poses), 2)))
    centres = poses[:, :2] + offset_m + ahead    # middles of the windows
    low, high = centres.min(0), centres.max(0)
    middle = (low + high) / 2
    needed_m = (side + 2) * config.cell_m + (high - low).max()
    cells = IMAGERY_CELLS * math.ceil(needed_m / config.cell_m / IMAGERY_CELLS)
    any_colours = rng.random() < ANY_COLOURS
    if augment:
        aerial = changed(aerial, rng, IMAGERY_BLUR_PX, any_colours)
        images = [changed(rgb, rng, IMAGE_BLUR_PX, any_colours) for rgb in images]
    imagery, missing = _turned_imagery(aerial, grid, origin, middle, cells, config, rng, augment)

    # The north-west cells, in whole cells of the imagery; the target has the rest.
    imagery_0 = middle + np.array([-1.0, 1.0]) * (cells - 1) / 2 * config.cell_m
    window_0 = centres + np.array([-1.0, 1.0]) * (side - 1) / 2 * config.cell_m
    corners = np.round(np.stack(
        (imagery_0[1] - window_0[:, 1], window_0[:, 0] - imagery_0[0]), 1) / config.cell_m)
    corners = np.clip(corners, 0, cells - side).astype(int)                      # (B, 2)
    window_0 = np.stack((imagery_0[0] + corners[:, 1] * config.cell_m,
                         imagery_0[1] - corners[:, 0] * config.cell_m), 1)
    patch_middle = np.array([1.0, -1.0]) * (config.patch_cells - 1) / 2 * config.cell_m
    base_0 = window_0 + patch_middle - ahead     # base_link of element (0, 0) of the volume

    # Yaw bins: the two that enclose the truth, 2 degrees apart, and a wrong one on each side.
    below = np.radians(rng.uniform(0.0, 2.0, len(poses)))
    right, left = np.radians(rng.uniform(3.0, 12.0, (2, len(poses))))
    yaws = headings[:, None] + np.stack((-below, np.radians(2.0) - below, -right, left), 1)
    target = np.stack((
        (base_0[:, 1] - poses[:, 1]) / config.cell_m, (poses[:, 0] - base_0[:, 0]) / config.cell_m,
        below / np.radians(2.0)), 1)

    # Rows lie southwards and columns eastwards in the turned axes.
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    row_col_from_map = np.array([[-sin, -cos], [cos, -sin]])

    height_error = rng.choice(PLACE_HEIGHT_ERRORS if rough else HEIGHT_ERRORS)
    pitch_error_deg = rng.choice(PLACE_PITCH_ERRORS_DEG if rough else PITCH_ERRORS_DEG)
    lifted = []
    for rgb in images:
        height_m = camera.height_m * rng.normal(1.0, height_error)
        pitch_rad = np.radians(rng.normal(0.0, pitch_error_deg))
        lifted.append(views.lifted_view(
            rgb, replace(camera, height_m=height_m), config, pitch_rad))
    tensors = ground_tensors(lifted)
    return DenseGroup(
        normalised(torch.from_numpy(imagery)[None]), torch.from_numpy(missing), *tensors,
        corners.tolist(), side, torch.from_numpy(yaws), headings.tolist(),
        torch.from_numpy(target), torch.from_numpy(
            row_col_from_map @ covariances @ row_col_from_map.T / config.cell_m ** 2))


def _turned_imagery(aerial, grid: MapGrid, origin: Pose2D, middle, cells: int,
                    config: DenseConfig, rng, augment: bool) -> tuple[np.ndarray, np.ndarray]:
    """Imagery (2A, 2A, 3) about ``middle`` of the axes at ``origin``, and the mask (A, A)."""
    pixels = cells * config.cell_px
    across_m = (np.arange(pixels) - (pixels - 1) / 2) * config.px_m
    east, north = np.broadcast_arrays(
        middle[0] + across_m[None, :], middle[1] - across_m[:, None])
    points = origin.transform(np.stack((east, north), -1).reshape(-1, 2))
    row, col = (part.reshape(pixels, pixels).astype(np.float32)
                for part in grid.row_col_from_xy(points[:, 0], points[:, 1]))
    inside = (row > 0) & (row < grid.rows - 1) & (col > 0) & (col < grid.cols - 1)
    grey = True
    if augment:
        if rng.random() < 0.35:
            inside &= _random_square(east, north, rng)
        if rng.random() < 0.35:
            aerial = _coarsened(aerial, rng.uniform(0.35, 0.9))
        grey = rng.random() < 0.5    # else the picture goes on, but counts as missing
    imagery = cv2.remap(aerial, col, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    if grey:
        imagery[~inside] = views.UNSEEN
    missing = 1.0 - cv2.resize(
        inside.astype(np.float32), (cells, cells), interpolation=cv2.INTER_AREA)
    return imagery, missing


def _random_square(x: np.ndarray, y: np.ndarray, rng) -> np.ndarray:
    """The inside of a tile that ends near the first frame, as real tiles do."""
    half_m, angle = rng.uniform(22.0, 55.0), rng.uniform(-np.pi, np.pi)
    x_0, y_0 = rng.uniform(-6.0, 6.0, 2)
    along = np.cos(angle) * (x - x_0) + np.sin(angle) * (y - y_0)
    across = np.cos(angle) * (y - y_0) - np.sin(angle) * (x - x_0)
    return (np.abs(along) < half_m) & (np.abs(across) < half_m)


def _coarsened(rgb: np.ndarray, factor: float) -> np.ndarray:
    """The picture as a source of fewer pixels would have it, at its own size."""
    small = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR)


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
    config, device = network.config, next(network.parameters()).device
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
            found = network.embed_lattice(torch.from_numpy(area).to(device)).half().cpu().numpy()
            rows, cols = min(reach, count - top), min(reach, count - left)
            blocks[top:top + rows, left:left + cols] = found[:rows, :cols]
    middle_px = (config.tile_px - 1) / 2
    x0_m, y0_m = world.grid.xy_from_row_col(middle_px, middle_px)
    grid = MapGrid(count, count, step * config.px_m, float(x0_m), float(y0_m))
    return EmbeddingMap(
        None, grid, torch.arange(count ** 2).view(count, count),
        torch.from_numpy(blocks).flatten(0, 1).to(device), network.fingerprint, config.tile_m,
        config.tile_px)
