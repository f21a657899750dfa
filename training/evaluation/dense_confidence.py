"""What turns the dense matcher's scores into probabilities, fitted on validation drives.

The temperature makes the score volume a likelihood; sharpening, least mass, inflation and degrees
of freedom say what the peak of a single frame's volume claims (see ``peak_pose``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
import torch
from tqdm import tqdm

from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.evaluation.pose_metrics import pose_errors
from crossview_localizer.geometry import Pose2D, wrap_angle
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.heatmap_pose import distance2_within, peak_of, peak_pose
from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.dense import DenseNetwork, GAUSSIAN_DOF
from crossview_localizer.trajectory import Track
from training.data.datasets import World
from training.recipes.dense_groups import dense_map, prior_about, PRIOR_M, uniform_window

SHARPENINGS = np.arange(1.0, 4.1, 0.25)
WRONG_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)
AMBIGUOUS = 0.09  # share of the validation frames, so that other towns have at most a tenth
# A Student t has no covariance up to 2, and is practically a Gaussian from 100 on.
LEAST_DOF, MOST_DOF = 2.1, 100.0


@dataclass(frozen=True)
class ScoredFrame:
    """The score volume of one frame under a uniform prior, and its true pose.

    ``accuracy_m`` says how well the true place is known; 0 in simulation.
    """

    heatmap: Heatmap
    prior: PoseEstimate
    truth: Pose2D
    accuracy_m: float = 0.0


@dataclass(frozen=True)
class Confidence:
    """What was fitted; ``factor`` is the one on log-likelihoods of ``fit_temperature``."""

    factor: float
    sharpening: float
    min_mass: float
    inflation: float
    dof: float


@torch.inference_mode()
def score_frames(network: DenseNetwork, worlds: Sequence[World], count: int) -> list[ScoredFrame]:
    """Score ``count`` frames with the matcher that the node runs."""
    network = network.eval()
    matcher = DenseMatcher(network)
    found = []
    for number, world in enumerate(worlds):
        rng = np.random.default_rng([number, 3])
        blocks = dense_map(network, world)
        for index in rng.permutation(len(world.poses))[:math.ceil(count / len(worlds))]:
            truth = Pose2D(*map(float, world.poses[index]))
            prior = prior_about(truth, rng, PRIOR_M)
            window = blocks.window(prior, PRIOR_M, matcher.margin_m)
            ground = matcher.embed(CameraImage(0, world.images[index], world.camera), 0.0)
            heatmap = matcher.match(ground, window, prior, uniform_window(PRIOR_M))
            heatmap = replace(heatmap, volume=heatmap.volume.astype(np.float32))
            accuracy_m = 0.0 if world.pose_covariances is None else math.sqrt(
                world.pose_covariances[index].trace() / 2)
            found.append(ScoredFrame(heatmap, prior, truth, accuracy_m))
    return found


def fit_temperature(frames: list[ScoredFrame]) -> tuple[float, float]:
    """The factor on log-likelihoods with the least NLL of the true poses, and that NLL."""
    volumes = [(frame.heatmap.volume, _near_truth(frame)) for frame in frames]

    def nll(factor: float) -> float:
        return float(np.mean([
            logsumexp(volume * factor) - logsumexp(factor * near) + math.log(len(near))
            for volume, near in volumes]))

    best = minimize_scalar(lambda log: nll(math.exp(log)), bounds=(-2.5, 1.5), method='bounded')
    return math.exp(best.x), float(best.fun)


def _near_truth(frame: ScoredFrame) -> np.ndarray:
    """Log-likelihoods (n,) at the true pose, or all over the disc in which it lies."""
    heatmap, truth = frame.heatmap, frame.truth
    steps_m = np.arange(-frame.accuracy_m, frame.accuracy_m + 1e-9, heatmap.grid.cell_m)
    east_m, north_m = (part.ravel() for part in np.meshgrid(steps_m, steps_m))
    inside = np.hypot(east_m, north_m) <= frame.accuracy_m + 1e-9
    inside[len(inside) // 2] = True
    row, col = heatmap.grid.row_col_from_xy(
        truth.x_m + east_m[inside], truth.y_m + north_m[inside])
    turn_rad = wrap_angle(truth.yaw_rad - heatmap.yaws_rad[0])
    yaw = np.full(len(row), turn_rad / (heatmap.yaws_rad[1] - heatmap.yaws_rad[0]))
    return map_coordinates(heatmap.volume, [yaw, row, col], order=1, mode='nearest')


def fit_peaks(frames: list[ScoredFrame], factor: float) -> tuple[float, float]:
    """The sharpening and min_mass of ``peak_pose``, after a ``factor`` on log-likelihoods.

    The sharpening is the most likely of SHARPENINGS, if errors are as the covariances claim or,
    in a share w of the frames, uniform in the window: (1 - w) N(error; 0, covariance) + w / window
    with the most likely w of WRONG_SHARES. The min_mass is such that a share AMBIGUOUS of the
    frames has less.
    """
    def min_mass(sharpening: float) -> float:
        masses = [peak_of(frame.heatmap, factor * sharpening).mass for frame in frames]
        return float(np.quantile(masses, AMBIGUOUS))

    def likelihood(sharpening: float) -> float:
        mass = min_mass(sharpening)
        claimed, uniform = np.array([
            _log_densities(frame, factor * sharpening, mass) for frame in frames]).T
        return max(np.logaddexp(math.log(1.0 - wrong) + claimed, math.log(wrong) + uniform).sum()
                   for wrong in WRONG_SHARES)

    best = float(max(tqdm(SHARPENINGS, desc='sharpening'), key=likelihood))
    return best, min_mass(best)


def _log_densities(frame: ScoredFrame, sharpening: float, min_mass: float) -> tuple[float, float]:
    """Log density of the true pose by the claim of ``peak_pose``, and if uniform in the window."""
    estimate, _ = peak_pose(frame.heatmap, frame.prior, sharpening, min_mass)
    pose, truth, grid = estimate.pose, frame.truth, frame.heatmap.grid
    error = np.array([pose.x_m - truth.x_m, pose.y_m - truth.y_m,
                      wrap_angle(pose.yaw_rad - truth.yaw_rad)])
    yaw_step_rad = frame.heatmap.yaws_rad[1] - frame.heatmap.yaws_rad[0]
    window = frame.heatmap.volume.size * grid.cell_m**2 * yaw_step_rad
    covariance = estimate.covariance + np.diag([frame.accuracy_m**2, frame.accuracy_m**2, 0.0])
    return (multivariate_normal.logpdf(error, cov=covariance), -math.log(window))


def least_mass(frames: list[ScoredFrame], sharpening: float, wrong_m: float,
               share: float) -> float:
    """The smallest min_mass with which at most this share of frames is sure and wrong.

    Wrong is an error of the peak above ``wrong_m`` and the accuracy of the truth.
    """
    masses = []
    for frame in frames:
        peak = peak_of(frame.heatmap, sharpening)
        x_m, y_m = frame.heatmap.grid.cell_centres()
        error_m = math.hypot(x_m[peak.col] - frame.truth.x_m, y_m[peak.row] - frame.truth.y_m)
        if error_m > wrong_m + frame.accuracy_m:
            masses.append(peak.mass)
    allowed = math.floor(share * len(frames))
    if len(masses) <= allowed:
        return 0.0
    return float(np.nextafter(sorted(masses, reverse=True)[allowed], 2.0))


def fit_tails(frames: list[ScoredFrame], sharpening: float,
              min_mass: float) -> tuple[float, float]:
    """The ``peak_inflation`` and ``peak_dof`` with which 68 % and 95 % of all frames are covered.

    Most peaks are right and some are far off, so that no Gaussian has both shares: errors of
    unambiguous frames follow a Student t. Ambiguous frames claim their window, as a Gaussian.
    """
    estimates, ambiguous = zip(*(
        peak_pose(frame.heatmap, frame.prior, sharpening, min_mass) for frame in frames))
    label_variances = [np.diag([frame.accuracy_m**2, frame.accuracy_m**2, 0.0])
                       for frame in frames]
    distances2 = pose_errors(
        Track.from_poses(range(len(frames)), [estimate.pose for estimate in estimates],
                         [estimate.covariance + label_variance for estimate, label_variance
                          in zip(estimates, label_variances)]),
        Track.from_poses(range(len(frames)), [frame.truth for frame in frames]))['nees']
    ambiguous = np.array(ambiguous)

    def needed(share: float) -> float:
        """The squared distance within which unambiguous frames complete this share of all."""
        covered = (distances2[ambiguous] <= distance2_within(share, GAUSSIAN_DOF)).sum()
        rest = (share * len(frames) - covered) / (~ambiguous).sum()
        return float(np.quantile(distances2[~ambiguous], min(max(rest, 0.0), 1.0)))

    ratio = needed(0.95) / needed(0.68)

    def excess(dof: float) -> float:
        return distance2_within(0.95, dof) / distance2_within(0.68, dof) - ratio

    dof = GAUSSIAN_DOF
    if excess(MOST_DOF) < 0.0:
        dof = LEAST_DOF if excess(LEAST_DOF) < 0.0 else float(brentq(excess, LEAST_DOF, MOST_DOF))
    return needed(0.68) / distance2_within(0.68, dof), dof


def fit_confidence(path: Path, worlds: Sequence[World], count: int = 300) -> None:
    """Fit the confidence of the weights at ``path`` on ``count`` frames and store it there."""
    frames = score_frames(load_network(path), worlds, count)
    factor, nll = fit_temperature(frames)
    sharpening, min_mass = fit_peaks(frames, factor)
    inflation, dof = fit_tails(frames, factor * sharpening, min_mass)
    store_confidence(path, path, Confidence(factor, sharpening, min_mass, inflation, dof), nll,
                     worlds, count)


def store_confidence(weights: Path, out: Path, found: Confidence, nll: float,
                     worlds: Sequence[World], count: int, **notes) -> None:
    """Write the weights with their confidence to ``out``, and ``notes`` into the provenance.

    The temperature of a network with random weights, a control, is fitted here too.
    """
    model, provenance = read_model_config(weights)
    network = load_network(weights)
    random_factor, random_nll = fit_temperature(
        score_frames(load_network('random_init:2', like=weights), worlds, count))
    fitted = {'temperature': model.temperature / found.factor,
              'random_temperature': model.random_temperature / random_factor,
              'sharpening': found.sharpening, 'min_mass': found.min_mass,
              'peak_inflation': found.inflation, 'peak_dof': found.dof}
    print(f'nll {nll:.3f}, of random weights {random_nll:.3f}; '
          + ', '.join(f'{name} {value:.3f}' for name, value in fitted.items()))
    network.config = replace(model, **fitted)
    save_network(network, out, {
        **provenance, 'fitted nll': nll, 'random nll': random_nll, **notes})
