"""Training groups of rendered places: frames of one camera, and a picture from above."""

import math

import cv2
import numpy as np
import torch

from crossview_localizer.camera import views
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.dense_matcher import ground_tensors
from crossview_localizer.networks.dense import DenseConfig
from crossview_localizer.networks.trunks import normalised
from training.data.rendered_places import decode_jpeg, RenderedPlace
from training.recipes.augment import changed
from training.recipes.dense_groups import DenseGroup, PRIOR_M, WINDOW_CELLS
from dataclasses import replace


def place_group(place: RenderedPlace, size: int, config: DenseConfig, seed, augment=True):
    """Draw a group: a shot, an aerial picture, a prior, the map's orientation, camera errors.

    Returns a DenseGroup and the mask (N, N) of where there is no imagery.
    """
    rng = np.random.default_rng(seed)
    shot = place.shots[rng.integers(len(place.shots))]
    aerial = decode_jpeg(place.aerials[rng.integers(len(place.aerials))])
    members = rng.permutation(len(shot.frames))[:size]
    poses = shot.poses[members]
    # All frames share a window: those too far from the first, or turned otherwise, have another
    # patch ahead; the patch's middle is taken ahead along each frame's own heading.
    turn_rad = rng.uniform(-np.pi, np.pi)
    origin = Pose2D(float(poses[0, 0]), float(poses[0, 1]), -turn_rad)
    new_from_map = origin.inverse()
    poses = np.array([(p.x_m, p.y_m, p.yaw_rad) for p in (
        new_from_map @ Pose2D(*map(float, pose)) for pose in poses)])
    return rng, shot, aerial, members, poses, origin


def place_sample(place: RenderedPlace, size: int, config: DenseConfig, seed, augment=True):
    """Frames of one shot, each with a window of its own cut from one described area.

    Returns (imagery (1, 3, A, A), images, road, points, yaws (B, K), headings (B,),
    corners (B, 2) of each frame's window in cells, target (B, 3), missing (A/2, A/2)).
    """
    rng, shot, aerial, members, poses, origin = place_group(place, size, config, seed)
    reach = PRIOR_M * rng.choice([0.45, 1.0])                         # of this group's prior
    places = 2 * math.ceil((reach + 1.5) / config.cell_m) + 1         # along a side of the window
    side = places - 1 + config.patch_cells                            # cells of a window
    headings = poses[:, 2]
    shared, own = rng.uniform(-1, 1, 2) * (reach - 4.0), rng.uniform(-4.0, 4.0, (len(poses), 2))
    prior = poses[:, :2] + shared + own
    centre = prior + config.middle_m * np.stack((np.cos(headings), np.sin(headings)), 1)
    # The area that holds all windows, in whole cells of a raster about its own middle.
    low, high = centre.min(0), centre.max(0)
    middle = (low + high) / 2
    need = (side + 2) * config.cell_m / 2 + (high - low).max() / 2
    cells = 32 * math.ceil(2 * need / config.cell_m / 32)
    pixels = cells * config.cell_px
    across = (np.arange(pixels) - (pixels - 1) / 2) * config.px_m
    east, north = np.broadcast_arrays(middle[0] + across[None, :], middle[1] - across[:, None])
    points = origin.transform(np.stack((east, north), -1).reshape(-1, 2))
    row, col = place.grid.row_col_from_xy(points[:, 0], points[:, 1])
    row = row.reshape(pixels, pixels).astype(np.float32)
    col = col.reshape(pixels, pixels).astype(np.float32)
    inside = (row > 0) & (row < place.grid.rows - 1) & (col > 0) & (col < place.grid.cols - 1)
    if augment and rng.random() < 0.35:  # a tile that ends nearby, as real ones do
        half = rng.uniform(22.0, 55.0)
        angle = rng.uniform(-np.pi, np.pi)
        away = rng.uniform(-6.0, 6.0, 2)
        x, y = east - away[0], north - away[1]
        inside &= (np.abs(np.cos(angle) * x + np.sin(angle) * y) < half) & (
            np.abs(-np.sin(angle) * x + np.cos(angle) * y) < half)
    if augment:
        aerial = changed(aerial, rng, 1.6)
        if rng.random() < 0.35:  # a coarser source
            factor = rng.uniform(0.35, 0.9)
            small = cv2.resize(aerial, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            aerial = cv2.resize(small, aerial.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    imagery = cv2.remap(aerial, col, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    if augment and rng.random() < 0.5:
        imagery[~inside] = views.UNSEEN
    missing = 1.0 - cv2.resize(inside.astype(np.float32), (cells, cells),
                               interpolation=cv2.INTER_AREA)

    height_spread = 0.02 if rng.random() < 0.6 else 0.05
    lifted = []
    for k in members:
        camera = replace(shot.camera, height_m=shot.camera.height_m * rng.normal(1.0, height_spread))
        pitch = np.radians(rng.normal(0.0, 0.4))
        rgb = decode_jpeg(shot.frames[k])
        if augment:
            rgb = changed(rgb, rng, 1.2)
        lifted.append(views.lifted_view(rgb, camera, config, pitch))
    below = np.radians(rng.uniform(0.0, 2.0, len(members)))
    right, left = np.radians(rng.uniform(3.0, 12.0, (2, len(members))))
    yaws = poses[:, 2:] + np.stack((-below, np.radians(2.0) - below, -right, left), 1)

    # Each window's north-west cell in the area's raster, rounded; the rest is in the target.
    area_0 = middle + np.array([-1.0, 1.0]) * (cells - 1) / 2 * config.cell_m
    window_0 = centre + np.array([-1.0, 1.0]) * (side - 1) / 2 * config.cell_m
    corner = np.round(np.stack((area_0[1] - window_0[:, 1], window_0[:, 0] - area_0[0]), 1)
                      / config.cell_m).astype(int)                   # row, col
    corner = np.clip(corner, 0, cells - side)
    window_0 = np.stack((area_0[0] + corner[:, 1] * config.cell_m,
                         area_0[1] - corner[:, 0] * config.cell_m), 1)
    half = (config.patch_cells - 1) / 2 * config.cell_m
    base_0 = window_0 + np.array([1.0, -1.0]) * half - config.middle_m * np.stack(
        (np.cos(headings), np.sin(headings)), 1)
    target = np.stack(((base_0[:, 1] - poses[:, 1]) / config.cell_m,
                       (poses[:, 0] - base_0[:, 0]) / config.cell_m,
                       below / np.radians(2.0)), 1)
    images, road, points = ground_tensors(lifted)
    return {
        'imagery': normalised(torch.from_numpy(imagery)[None]), 'images': images, 'road': road,
        'points': points, 'yaws': torch.from_numpy(yaws), 'headings': headings,
        'corners': corner, 'target': torch.from_numpy(target),
        'missing': torch.from_numpy(missing), 'side': side}
