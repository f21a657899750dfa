"""How well a network matches the held-out stretches of drives whose truth is not known.

Each frame is matched under a prior that is off, as in ``dense_confidence``.  It is judged by the
pose of its world, with the covariance of that pose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.datatypes import CameraImage, PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.matching.evidence import frame_evidence_nats
from crossview_localizer.matching.heatmap_pose import distance2_within, peak_pose
from crossview_localizer.networks.dense import DenseNetwork, GAUSSIAN_DOF
from training.data.datasets import World
from training.recipes.dense_groups import dense_map, prior_about, PRIOR_M, uniform_window

CONSECUTIVE_M = 20.0    # matches at most so far apart are compared with the motion between them
BLOCK_FRAMES = 5        # frames in a row err alike: gains are averaged over so many
SURE_SIGMAS = 2.0       # a gain must be so many times its standard error


@dataclass(frozen=True)
class JudgedFrame:
    """What a network says of one frame.

    ``offset_m`` (2,) leads from the smoothed pose ``pose_m`` (2,) to the match, and
    ``truth_offset_m`` from the true one (NaN where it is not known).
    ``stretch`` tells the held-out stretches of all drives apart.
    """

    stretch: int
    pose_m: np.ndarray
    evidence_nats: float
    offset_m: np.ndarray
    truth_offset_m: np.ndarray
    covered: bool
    ambiguous: bool


def chosen_frames(worlds: Sequence[World], count: int) -> list[tuple[int, int]]:
    """World and index of at most ``count`` frames, evenly over all, in the order of driving."""
    found = [(number, index) for number in range(len(worlds))
             for index in range(len(worlds[number].poses))]
    return found[::max(1, math.ceil(len(found) / count))]


@torch.inference_mode()
def judge_frames(network: DenseNetwork, worlds: Sequence[World], count: int,
                 exchanged: bool = False) -> list[JudgedFrame]:
    """Match ``count`` held-out frames; ``exchanged`` gives each the image of another, far away."""
    network = network.eval()
    config, matcher = network.config, DenseMatcher(network)
    frames = chosen_frames(worlds, count)
    judged, blocks, shown = [], None, None
    for number, (world_number, index) in enumerate(
            tqdm(frames, desc='held-out frames', leave=False)):
        world = worlds[world_number]
        if world_number != shown:
            blocks, shown = dense_map(network, world), world_number
        pose = Pose2D(*map(float, world.poses[index]))
        prior = prior_about(pose, np.random.default_rng((number, 5)), PRIOR_M)
        window = blocks.window(prior, PRIOR_M, matcher.margin_m)
        if window is None:     # off the imagery, whatever the network
            continue
        source, image = world, index
        if exchanged:
            other, image = frames[(number + len(frames) // 2) % len(frames)]
            source = worlds[other]
        ground = matcher.embed(CameraImage(0, source.images[image], source.camera), 0.0)
        heatmap = matcher.match(ground, window, prior, uniform_window(PRIOR_M))
        estimate, ambiguous = peak_pose(heatmap, prior, config.sharpening, config.min_mass,
                                        config.peak_inflation)
        at_m, position_m = estimate.pose.as_array()[:2], world.poses[index, :2]
        covariance = world.pose_covariances[index]
        known = np.zeros((3, 3))
        known[:2, :2] = covariance
        off_m = at_m - position_m
        distance2 = off_m @ np.linalg.solve(estimate.covariance[:2, :2] + covariance, off_m)
        truth_m = (np.full(2, np.nan) if world.true_poses is None
                   else world.true_poses[index, :2])
        judged.append(JudgedFrame(
            world_number, position_m, frame_evidence_nats(heatmap, PoseEstimate(0, pose, known)),
            off_m, at_m - truth_m, bool(distance2 <= distance2_within(
                0.95, GAUSSIAN_DOF if ambiguous else config.peak_dof, 2)), ambiguous))
    return judged


def summary(frames: list[JudgedFrame]) -> dict[str, float | int | None]:
    """The row of a table: evidence, agreement with odometry, coverage, and metres where known.

    ``odometry_m`` is the median difference between the motion of two consecutive matches and that
    of the vehicle: the smoothed poses have that from odometry.
    """
    steps_m = [np.hypot(*(b.offset_m - a.offset_m)) for a, b in zip(frames, frames[1:])
               if a.stretch == b.stretch and np.hypot(*(b.pose_m - a.pose_m)) < CONSECUTIVE_M]
    errors_m = np.hypot(*np.array([frame.truth_offset_m for frame in frames]).T)
    errors_m = errors_m[np.isfinite(errors_m)]
    return {
        'evidence_nats': float(np.mean([frame.evidence_nats for frame in frames])),
        'odometry_m': float(np.median(steps_m)) if steps_m else None,
        'coverage_95': float(np.mean([frame.covered for frame in frames])),
        'ambiguous': float(np.mean([frame.ambiguous for frame in frames])),
        'median_m': float(np.median(errors_m)) if len(errors_m) else None,
        'n': len(frames)}


def gain(before: list[JudgedFrame], after: list[JudgedFrame]) -> tuple[float, float]:
    """The mean gain in evidence, nats, of the same frames, and its standard error."""
    gains = np.array([b.evidence_nats - a.evidence_nats for a, b in zip(before, after)])
    blocks = [part.mean() for part in np.array_split(gains, max(2, len(gains) // BLOCK_FRAMES))]
    return float(gains.mean()), float(np.std(blocks, ddof=1) / math.sqrt(len(blocks)))


def reason_to_refuse(before: list[JudgedFrame], after: list[JudgedFrame],
                     exchanged: list[JudgedFrame]) -> str:
    """Why the new weights are no gain; empty if they are one.

    The evidence must rise, and it must come from the images: with ``exchanged`` images, those of
    other places, the new weights must say less.
    """
    for what, first, second in (
            ('the evidence on the held-out stretches did not rise', before, after),
            ("the held-out stretches are not told by their images: with another place's images "
             'the evidence is the same', exchanged, after)):
        mean, error = gain(first, second)
        if not mean > SURE_SIGMAS * error:
            return f'{what} ({mean:+.3f} +- {error:.3f} nats)'
    return ''


HEADS = {'evidence_nats': 'evidence nats', 'odometry_m': 'vs odometry m',
         'coverage_95': 'coverage 95 %', 'ambiguous': 'ambiguous', 'median_m': 'median m',
         'n': 'frames'}


def table(rows: dict[str, dict]) -> str:
    """The rows side by side; a column that no row has is left out."""
    heads = {key: head for key, head in HEADS.items()
             if any(row[key] is not None for row in rows.values())}
    lines = [' ' * 28 + ''.join(f'{head:>15}' for head in heads.values())]
    for name, row in rows.items():
        cells = ('-' if (v := row[key]) is None else str(v) if isinstance(v, int) else f'{v:.2f}'
                 for key in heads)
        lines.append(f'{name:28}' + ''.join(f'{cell:>15}' for cell in cells))
    return '\n'.join(lines)
