"""Small worlds and recipes of each kind, for the tests of training."""

import numpy as np
import torch
import torch.nn.functional as F

from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig
from crossview_localizer.networks.safa import ModelConfig
from training.data.datasets import places_of_world, World
from training.loop import TrainConfig
from training.losses import LossConfig
from training.recipes.areas import AreaConfig, AreaRecipe
from training.recipes.pairs import PairConfig, PairRecipe
from training.recipes.pose_likelihood import PoseLikelihoodConfig, PoseLikelihoodRecipe

LOOKING_AHEAD = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
TILE_MODEL = ModelConfig(channels=4, heads=4, hidden=2, view_px=64, margin_px=32)
DENSE_MODEL = DenseConfig(channels=4, width=8, ahead_cells=32, across_cells=32, patch_cells=40)

AREAS = AreaConfig(
    groups=2, group_size=2, area_px=160, group_half_width_m=5.0, jitter_m=3.0,
    validation_images=2)
PAIRS = PairConfig(
    batch=4, turns='scene', colours=True, radius_m=15.0, positive_m=2.0, correct_m=2.0,
    loss=LossConfig(hole_m=2.0))
LIKELIHOOD = PoseLikelihoodConfig(groups=2, group_size=2, validation_groups=1)
TRAINING = TrainConfig(
    steps=4, warmup_steps=1, cosine=True, validate_steps=2, clip_norm=50.0, frozen_stages=2)


def tile_world() -> World:
    """A drive east over noise, on two days, with images of noise."""
    rng = np.random.default_rng(0)
    return World(
        'noise', rng.integers(0, 255, (300, 300, 3)).astype(np.uint8),
        MapGrid(300, 300, TILE_MODEL.px_m, -56.0, 56.0),
        rng.integers(0, 255, (10, 200, 300, 3)).astype(np.uint8),
        CameraModel(300, 200, 241.0, 241.0, 149.5, 99.5, LOOKING_AHEAD, 1.5),
        np.column_stack((np.arange(10) % 8 * 3.0, np.zeros(10), np.zeros(10))),
        np.array([0] * 8 + [1] * 2))


def dense_world() -> World:
    """A drive east over smooth random imagery, with images of noise."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (75, 75, 3)).astype(np.float32)
    imagery = F.interpolate(
        torch.from_numpy(coarse).permute(2, 0, 1)[None], size=(600, 600), mode='bicubic')
    imagery = imagery[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
    poses = np.stack((np.linspace(-30.0, 30.0, 9), np.full(9, 3.0), np.full(9, 0.1)), 1)
    camera = CameraModel(96, 64, 80.0, 80.0, 47.5, 31.5, LOOKING_AHEAD, 1.5)
    images = rng.integers(0, 255, (9, 64, 96, 3), dtype=np.uint8)
    return World('smooth', imagery, MapGrid(600, 600, 0.25, -75.0, 75.0), images, camera, poses,
                 np.zeros(9, int))


def make_recipe(config, seed: int = 0):
    """The recipe of a config on its world."""
    if isinstance(config, PoseLikelihoodConfig):
        world = dense_world()
        return PoseLikelihoodRecipe(config, DENSE_MODEL, seed, [world], [world])
    world = tile_world()
    if isinstance(config, AreaConfig):
        return AreaRecipe(config, make_network(config), seed, [world], [world])
    return PairRecipe(config, seed, places_of_world(
        world, {0: 'train', 1: 'val'}, TILE_MODEL.tile_px, 'birds_eye', TILE_MODEL.view_px))


def make_network(config):
    """The network that a recipe of the config trains, with random weights."""
    return random_network(
        DENSE_MODEL if isinstance(config, PoseLikelihoodConfig) else TILE_MODEL, 0)
