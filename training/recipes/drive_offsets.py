"""The slow offset between the smoothed poses of a drive and the imagery, from its images.

Receivers err by metres for minutes, and imagery is shifted by a metre.  A single image hardly
sees that; the images of a minute together do.  The offset b is taken for an Ornstein-Uhlenbeck
process, which forgets itself with the time ``tau_s``.  Its posterior is computed on a grid of
offsets, by the forward-backward recursion of hidden Markov models (Rabiner, 1989):

    p(b_i | all images) ~ forward_i(b) L_i(b) backward_i(b)

Shape legend: N frames, P pieces of the drive, R offsets along a side of the grid.
"""

from collections.abc import Iterable
import math

import numpy as np
from scipy.ndimage import map_coordinates
import torch

from crossview_localizer.datatypes import CameraImage, PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.dense import DenseNetwork
from training.data.datasets import World
from training.recipes.dense_groups import dense_map

MAX_OFFSET_M = 12.0        # largest offset that is tried
REACH_SIGMAS = 3.0
HALF_YAW_RAD = math.radians(5.0)   # smoothed headings are known to this
FLAT_SHARE = 0.05          # of the images that say nothing, as in matching/evidence.py
# A piece of the drive is so long that the offset changes by this share of a cell within it.
PIECE_CELLS = 0.75


def reach_cells(sigma_m: float, cell_m: float) -> int:
    """The grid of offsets reaches so many cells from its middle."""
    return math.ceil(min(REACH_SIGMAS * sigma_m, MAX_OFFSET_M) / cell_m)


@torch.inference_mode()
def offset_log_likelihoods(network: DenseNetwork, frames: Iterable[tuple[World, list[int]]],
                           sigma_m: float) -> np.ndarray:
    """The log-likelihoods (N, R, R) of offsets from the pose of each frame, row 0 north.

    ``frames`` are worlds with the numbers of their frames.
    """
    device = str(next(network.parameters()).device)
    matcher, cell_m = DenseMatcher(network, device), network.config.cell_m
    reach = reach_cells(sigma_m, cell_m)
    half_width_m = (reach + 2) * cell_m
    steps = np.arange(-reach, reach + 1)
    found = []
    for world, numbers in frames:
        blocks = dense_map(network, world)
        for number in numbers:
            pose = Pose2D(*map(float, world.poses[number]))
            prior = PoseEstimate(0, pose, np.eye(3))
            window = blocks.window(prior, half_width_m, matcher.margin_m)
            if window is None:
                found.append(np.zeros((len(steps), len(steps))))
                continue
            ground = matcher.embed(CameraImage(0, world.images[number], world.camera), 0.0)
            heatmap = matcher.match(
                ground, window, prior, SearchWindow(half_width_m, HALF_YAW_RAD))
            row, col = heatmap.grid.row_col_from_xy(pose.x_m, pose.y_m)
            rows, cols = np.meshgrid(float(row) + steps, float(col) + steps, indexing='ij')
            log_p = map_coordinates(heatmap.log_probability, [rows, cols], order=1)
            found.append(np.logaddexp(log_p, math.log(FLAT_SHARE / heatmap.log_probability.size)))
    return np.array(found)


def offset_posterior(log_likelihoods: np.ndarray, times_s: np.ndarray, cell_m: float,
                     sigma_m: float, tau_s: float) -> tuple[np.ndarray, np.ndarray]:
    """The means (N, 2), x and y in m, and covariances (N, 2, 2) of the offset at rising times.

    Before any image the offset has the standard deviation ``sigma_m`` on each axis.
    """
    side = log_likelihoods.shape[1]
    axis_m = (np.arange(side) - (side - 1) / 2) * cell_m                         # (R,)
    piece_of, middles_s = _pieces(times_s, cell_m, sigma_m, tau_s)
    likelihoods = np.zeros((len(middles_s), side, side))
    np.add.at(likelihoods, piece_of, log_likelihoods)
    likelihoods = np.exp(likelihoods - likelihoods.max((1, 2), keepdims=True))   # (P, R, R)
    stationary = np.exp(-0.5 * (axis_m / sigma_m) ** 2)
    moves = [_move(axis_m, float(step_s), sigma_m, tau_s) for step_s in np.diff(middles_s)]

    forward = [_normalized(np.outer(stationary, stationary))]
    for move, likelihood in zip(moves, likelihoods):
        forward.append(_normalized(move @ (forward[-1] * likelihood) @ move.T))
    backward = [np.ones((side, side))]
    for move, likelihood in zip(reversed(moves), likelihoods[:0:-1]):
        backward.append(_normalized(move.T @ (backward[-1] * likelihood) @ move))
    means, covariances = [], []
    for ahead, likelihood, behind in zip(forward, likelihoods, reversed(backward)):
        mean, covariance = _moments(_normalized(ahead * likelihood * behind), axis_m)
        means.append(mean)
        covariances.append(covariance)
    return np.array(means)[piece_of], np.array(covariances)[piece_of]


def _pieces(times_s, cell_m: float, sigma_m: float, tau_s: float):
    """The number (N,) of the piece of each frame, and the middle time (P,) of each piece."""
    share = min((PIECE_CELLS * cell_m / sigma_m) ** 2, 0.9)
    length_s = -0.5 * tau_s * math.log(1.0 - share)
    _, piece_of = np.unique(((times_s - times_s[0]) / length_s).astype(int), return_inverse=True)
    count = np.bincount(piece_of)
    return piece_of, np.bincount(piece_of, times_s) / count


# b' = a b + n,    a = exp(-t / tau),    n ~ N(0, (1 - a^2) sigma^2)
def _move(axis_m: np.ndarray, step_s: float, sigma_m: float, tau_s: float) -> np.ndarray:
    """The probability (R, R) of an offset, on one axis, of each column's a time later."""
    kept = math.exp(-step_s / tau_s)
    spread_m = sigma_m * math.sqrt(1.0 - kept ** 2)
    move = np.exp(-0.5 * ((axis_m[:, None] - kept * axis_m[None]) / spread_m) ** 2)
    return move / move.sum(0)


def _normalized(weights: np.ndarray) -> np.ndarray:
    return weights / weights.sum()


def _moments(probability: np.ndarray, axis_m: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (2,) and covariance (2, 2), x to the right along columns and y up along rows."""
    x, y = axis_m, -axis_m
    mean = np.array([probability.sum(0) @ x, probability.sum(1) @ y])
    dx, dy = x - mean[0], y - mean[1]
    cross = dy @ probability @ dx
    return mean, np.array([[probability.sum(0) @ dx ** 2, cross],
                           [cross, probability.sum(1) @ dy ** 2]])
