"""Scores of the field's benchmarks: the same columns for every data set, beside what is published.

One function scores: ``pose_scores``.  Errors are signed vectors, turned to the true heading before
their parts are taken; a recall is the share of frames with an error strictly below its threshold,
in percent, as in the published evaluation code.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
import math

import numpy as np
from scipy.special import logsumexp
import torch

from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.geometry import body_axes_error, Pose2D, wrap_angle
from crossview_localizer.matching.heatmap_pose import peak_pose
from crossview_localizer.matching.matcher import MAX_HALF_YAW_RAD, SearchWindow
from training.data.benchmark_frames import Frames, uniform_prior
from training.data.real_pairs import View
from training.evaluation.gradient_correlation import GradientCorrelation
from training.evaluation.overhead_raster import describe, OverheadRaster, RasterMatcher

LIMITS = (1, 3, 5)                  # of recalls, in metres and in degrees
COLUMNS = ('mean_m', 'median_m', *(
    f'{part}_{limit}' for part in ('lateral', 'longitudinal', 'heading') for limit in LIMITS),
    'heading_mean_deg', 'heading_median_deg')
HEADS = ('mean m', 'median m', *(
    f'{part} {limit} {unit}' for part, unit in (('lat', 'm'), ('lon', 'm'), ('head', 'deg'))
    for limit in LIMITS), 'head mean', 'head med')
ROWS = ('dense', 'prior_centre', 'image_blind', 'gradient_correlation')


@dataclass(frozen=True)
class Row:
    """A network, or None for the prior's centre, and whether it is shown other places' images."""

    network: object
    blind: bool = False


def rows_of(network, names: list[str]) -> dict[str, Row]:
    """The rows of ``names``, of ROWS, for one dense network."""
    known = {
        'dense': Row(network), 'prior_centre': Row(None), 'image_blind': Row(network, blind=True),
        'gradient_correlation': Row(GradientCorrelation(network.config))}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'no row {unknown[0]}; expected some of {", ".join(known)}')
    return {name: known[name] for name in names}


def signed_errors(estimate: Pose2D, truth: Pose2D) -> tuple[float, float, float]:
    """Longitudinal and lateral error (m; ahead and left of the truth) and heading error (deg)."""
    offset = (estimate.as_array() - truth.as_array())[:2]
    along, left = body_axes_error(offset, truth.yaw_rad)
    return (float(along), float(left),
            math.degrees(wrap_angle(estimate.yaw_rad - truth.yaw_rad)))


def pose_scores(errors: np.ndarray) -> dict[str, float]:
    """COLUMNS and ``n`` of ``signed_errors`` (N, 3)."""
    errors = np.asarray(errors, float).reshape(-1, 3)
    if not len(errors):
        raise ValueError('no frame was scored')
    position_m = np.hypot(errors[:, 0], errors[:, 1])
    along_m, left_m, turn_deg = np.abs(errors).T
    found = {'mean_m': float(position_m.mean()), 'median_m': float(np.median(position_m))}
    for part, values in (('lateral', left_m), ('longitudinal', along_m), ('heading', turn_deg)):
        found |= {f'{part}_{limit}': float(100.0 * np.mean(values < limit)) for limit in LIMITS}
    return found | {'heading_mean_deg': float(turn_deg.mean()),
                    'heading_median_deg': float(np.median(turn_deg)), 'n': len(errors)}


def estimates(frames: Frames, rows: dict[str, Row],
              device: str = 'cpu') -> Iterator[tuple[str, View, Pose2D]]:
    """Of each frame, and of each row: the row's name, the view, and the pose that the row says."""
    matchers = {name: RasterMatcher(row.network, device)
                for name, row in rows.items() if row.network is not None}
    for number, frame in enumerate(frames):
        rasters = {}     # of rows with the same network
        for name, row in rows.items():
            if row.network is None:
                yield name, frame.view, frame.prior.pose
                continue
            if row.network not in rasters:
                rasters[row.network] = describe(frame.view.overhead, row.network, device)
            image = image_elsewhere(frames, number) if row.blind else frame.view.image
            yield name, frame.view, best_pose(
                matchers[name], image, rasters[row.network], frame.prior, frame.search)


def image_elsewhere(frames: Frames, number: int) -> CameraImage:
    """The image half the list away; a grey one where there is only one."""
    image = frames[(number + len(frames) // 2) % len(frames)].view.image
    return image if len(frames) > 1 else replace(image, rgb=np.full_like(image.rgb, UNSEEN))


def best_pose(matcher: RasterMatcher, image: CameraImage, raster: OverheadRaster,
              prior: PoseEstimate, search: SearchWindow) -> Pose2D:
    """The pose at the peak of an image's heat map.

    Headings are searched in sectors no wider than MAX_HALF_YAW_RAD to each side, whose scores are
    comparable; the sector of the highest peak wins.
    """
    model = matcher.network.config
    ground = matcher.embed(image, 0.0)
    best, best_score = None, -math.inf
    for middle, part in sectors(prior, search):
        with torch.inference_mode():
            scores, yaws_rad, grid = matcher.scores(ground, raster, middle, part)
        volume = scores.double().cpu().numpy()
        peak_score = float(volume.max())
        if peak_score > best_score:
            volume -= logsumexp(volume)
            heatmap = Heatmap(0, grid, logsumexp(volume, 0), yaws_rad, volume)
            best, best_score = (heatmap, middle), peak_score
    return peak_pose(*best, model.sharpening, model.min_mass, model.peak_inflation)[0].pose


def sectors(prior: PoseEstimate,
            search: SearchWindow) -> Iterator[tuple[PoseEstimate, SearchWindow]]:
    """The prior and its window, cut in heading to sectors that the matcher can search."""
    count = math.ceil(search.half_yaw_rad / MAX_HALF_YAW_RAD)
    half_rad = search.half_yaw_rad / count
    part = SearchWindow(search.half_width_m, half_rad)
    for k in range(count):
        yaw_rad = wrap_angle(prior.pose.yaw_rad + (2 * k + 1 - count) * half_rad)
        yield uniform_prior(replace(prior.pose, yaw_rad=yaw_rad), part), part


# --- what is published
# Only what could be read: '-' in the tables is a figure that the papers have and this list lacks.


@dataclass(frozen=True)
class Published:
    """A row of a paper: values of COLUMNS, and where they were read."""

    method: str
    values: dict[str, float]
    source: str


SECOND_HAND = 'second hand, not checked against the paper'
PUBLISHED = {
    'kitti test1': (
        Published('CCVPE', {'mean_m': 1.22, 'median_m': 0.62}, f'T-PAMI 2023, {SECOND_HAND}'),
        Published('HC-Net', {'mean_m': 0.80, 'median_m': 0.50}, f'NeurIPS 2023, {SECOND_HAND}'),
        Published('FG2', {'mean_m': 0.75, 'median_m': 0.51}, f'CVPR 2025, {SECOND_HAND}')),
    'kitti test2': (
        Published('CCVPE', {'mean_m': 9.16, 'median_m': 3.33}, f'T-PAMI 2023, {SECOND_HAND}'),
        Published('HC-Net', {'mean_m': 8.47, 'median_m': 4.57}, f'NeurIPS 2023, {SECOND_HAND}'),
        Published('FG2', {'mean_m': 7.31, 'median_m': 4.15}, f'CVPR 2025, {SECOND_HAND}')),
}


def table(name: str, rows: dict[str, dict[str, float]]) -> str:
    """Our rows and the published ones of a benchmark, '-' where nothing is published."""
    published = PUBLISHED.get(name, ())
    lines = [f'{name:28}' + ''.join(f'{head:>11}' for head in HEADS) + f'{"n":>7}']
    lines += [f'{row:28}' + _cells(found) + f'{found["n"]:7d}' for row, found in rows.items()]
    lines += [f'{paper.method + " (published)":28}' + _cells(paper.values) for paper in published]
    lines += [f'{paper.method}: {paper.source}' for paper in published]
    return '\n'.join(lines)


def _cells(values: dict[str, float]) -> str:
    return ''.join(
        f'{values[name]:11.2f}' if name in values else f'{"-":>11}' for name in COLUMNS)
