"""Single frames on real street pictures and the real overhead pictures of the same places.

Protocol: each view gets three priors, uniform on both axes within the half width that its
overhead picture bears and within 10 degrees of heading.  The matcher knows where the picture
ends: what would lie beyond counts as the rest does.
"""

import argparse
from collections.abc import Callable
import csv
from dataclasses import dataclass, replace
from functools import lru_cache
import gzip
import json
import math
import os
from pathlib import Path
import platform
import sys
import zlib

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks import REPOSITORY
from crossview_localizer.camera import views
from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import body_axes_error, MapGrid, wrap_angle
from crossview_localizer.matching.dense_matcher import (
    DenseMatcher,
    distance2_within,
    ground_tensors,
    peak_pose,
    yaw_bins,
)
from crossview_localizer.networks.dense import DenseConfig, DenseNetwork, GAUSSIAN_DOF
from crossview_localizer.networks.safa import load_network
from crossview_localizer.networks.trunks import normalised
from training.data.real_pairs import Overhead, read_views, View
from training.recipes.dense_groups import prior_about, UNIFORM

WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'
PRIORS = 3                # a view
SURE_AND_WRONG_M = 5.0    # beyond the label's accuracy
OUTLIER_SHARE = 0.05      # bounds the evidence of one answer from below, as in match_trust
REACH_M = 110.0           # of an overhead picture about the camera that is described at most
CONTEXT_PX = 64           # mirrored imagery beyond a picture's edge, for the branch's context


@dataclass(frozen=True)
class Answer:
    """One answer about one view under one prior."""

    view: View
    prior: PoseEstimate
    estimate: PoseEstimate
    ambiguous: bool
    dof: float
    evidence_nats: float


@dataclass(frozen=True)
class Raster:
    """Descriptors (C, R, Q) of an overhead picture and where it shows nothing (R, Q)."""

    cells: torch.Tensor
    missing: torch.Tensor
    grid: MapGrid

    def cut(self, x_m: float, y_m: float, side: int):
        """The square of ``side`` cells nearest to a point: descriptors, missing, grid."""
        row, col = self.grid.row_col_from_xy(x_m, y_m)
        top, left = round(float(row) - (side - 1) / 2), round(float(col) - (side - 1) / 2)
        rows, cols = self.missing.shape
        pad = (max(-left, 0), max(left + side - cols, 0), max(-top, 0), max(top + side - rows, 0))
        inner = np.s_[max(top, 0):max(top + side, 0), max(left, 0):max(left + side, 0)]
        cells = F.pad(self.cells[:, inner[0], inner[1]], pad)
        missing = F.pad(self.missing[inner], pad, value=1.0)
        return cells, missing if missing.any() else None, self.grid.crop(top, left, side, side)


@torch.inference_mode()
def describe(overhead: Overhead, network) -> Raster:
    """The raster of a picture, brought to the network's metres a pixel.

    The picture is mirrored at its edges as context for the cells within; what is mirrored, and
    what the picture does not show, is missing.
    """
    config = network.config
    rgb, known, grid = resampled(overhead, config.px_m, config.cell_px)
    height, width = rgb.shape[:2]
    bottom = CONTEXT_PX + -(height + 2 * CONTEXT_PX) % 32
    right = CONTEXT_PX + -(width + 2 * CONTEXT_PX) % 32
    padded = cv2.copyMakeBorder(rgb, CONTEXT_PX, bottom, CONTEXT_PX, right,
                                cv2.BORDER_REFLECT_101)
    margin = CONTEXT_PX // config.cell_px
    rows, cols = height // config.cell_px, width // config.cell_px
    found = network.satellite(normalised(torch.from_numpy(padded[None])))[0]
    found = found[:, margin:margin + rows, margin:margin + cols]
    missing = 1.0 - F.avg_pool2d(torch.from_numpy(known).float()[None], config.cell_px)[0]
    missing = (missing > 0.5).float()
    return Raster(found * (1.0 - missing), missing, grid)


def resampled(overhead: Overhead, px_m: float, cell_px: int):
    """RGB and mask at ``px_m``, whole cells about the middle, and the grid of the cells."""
    height, width = overhead.rgb.shape[:2]
    rows, cols = (cell_px * int(size * overhead.px_m / (cell_px * px_m)) for size in
                  (height, width))
    scale = px_m / overhead.px_m
    matrix = np.array([[scale, 0.0, (width - 1) / 2 - scale * (cols - 1) / 2],
                       [0.0, scale, (height - 1) / 2 - scale * (rows - 1) / 2]])
    source = overhead.rgb
    if scale > 1.0:   # antialiasing
        source = cv2.GaussianBlur(source, (0, 0), 0.5 * math.sqrt(scale ** 2 - 1.0))
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    rgb = cv2.warpAffine(source, matrix, (cols, rows), flags=flags,
                         borderMode=cv2.BORDER_REPLICATE)
    known = np.ones((rows, cols), np.uint8)
    if overhead.known is not None:
        known = cv2.warpAffine(overhead.known.astype(np.uint8), matrix, (cols, rows),
                               flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    cell_m = cell_px * px_m
    grid = MapGrid(rows // cell_px, cols // cell_px, cell_m,
                   -(cols / cell_px - 1) / 2 * cell_m, (rows / cell_px - 1) / 2 * cell_m)
    return rgb, known, grid


class RasterMatcher(DenseMatcher):
    """The dense matcher on a raster that need not be whole blocks of a map."""

    def scores(self, ground, window: Raster, prior: PoseEstimate, config):
        model = self.network.config
        yaws_rad = yaw_bins(prior, config)                                      # (K,)
        places = 2 * math.ceil(config.half_width_m(prior.covariance) / model.cell_m) + 1
        heading = prior.pose.yaw_rad
        ahead_m = model.middle_m * np.array([math.cos(heading), math.sin(heading)])
        cells, missing, grid = window.cut(
            prior.pose.x_m + ahead_m[0], prior.pose.y_m + ahead_m[1],
            places + model.patch_cells - 1)
        scores = self.network.scores(
            *ground, cells, torch.from_numpy(yaws_rad)[None], heading,
            missing)[0] / model.temperature                                     # (K, R, C)
        middle = (model.patch_cells - 1) / 2 * model.cell_m
        places_grid = MapGrid(places, places, model.cell_m, grid.x0_m + middle - ahead_m[0],
                              grid.y0_m - middle - ahead_m[1])
        return scores, yaws_rad, places_grid


class GradientCorrelation:
    """No learning: image gradients of the road's pixels against those of the overhead picture.

    It takes the place of a ``DenseNetwork``.  Each side's descriptor of a cell is its edge
    strength above the mean of the cells around; the score is their correlation over the cells
    that the camera sees, times ``SHARPNESS``.
    """

    SHARPNESS = 60.0

    def __init__(self, config: DenseConfig):
        self.config = replace(config, channels=1, temperature=1.0, sharpening=1.0, min_mass=0.5,
                              peak_inflation=1.0, peak_dof=GAUSSIAN_DOF)
        self.fingerprint = 'gradient_correlation'

    def _edges(self, rgb: torch.Tensor) -> torch.Tensor:
        """Normalised RGB (B, 3, H, W) to edge strengths (B, 1, H, W) of pixels."""
        grey = F.pad(rgb.mean(1, keepdim=True), (1, 1, 1, 1), 'replicate')
        across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
        down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
        return torch.hypot(across, down)

    def satellite(self, images: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(self._edges(images), self.config.cell_px)

    def ground(self, images, road, points):
        cell_px = self.config.cell_px
        mask = road[:, 3:]
        inner = (F.avg_pool2d(mask, 3, 1, 1) > 0.999).float()
        weight = F.avg_pool2d(inner, cell_px)
        edges = F.avg_pool2d(self._edges(road[:, :3]) * inner, cell_px)
        total = weight.sum((2, 3), keepdim=True).clamp(min=1e-6)
        mean = edges.sum((2, 3), keepdim=True) / total
        view = edges - mean * weight                         # sums to zero over what is seen
        return view / view.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-6), weight

    def scores(self, view, weight, satellite, yaws_rad, heading_rad, missing=None):
        from crossview_localizer.networks.dense import correlate, turned_views
        known = 1.0 if missing is None else 1.0 - missing
        view, weight = (turned_views(x, yaws_rad, heading_rad, self.config)
                        for x in (view, weight))
        known = torch.as_tensor(known).expand(satellite.shape)
        share = correlate(weight, known).clamp(min=1e-6)
        mean = correlate(weight, satellite * known) / share
        square = correlate(weight, satellite.square() * known) / share
        found = correlate(view, satellite * known) - mean * correlate(view, known)
        spread = ((square - mean.square()).clamp(min=1e-9) * share).sqrt()
        return found / spread * self.SHARPNESS


def priors_of(view: View) -> list[PoseEstimate]:
    """The same for each run: seeded by the names of set and view."""
    seed = zlib.crc32(f'{view.set}/{view.name}'.encode())
    return [prior_about(view.truth, np.random.default_rng([seed, k]), view.prior_m)
            for k in range(PRIORS)]


def evidence_nats(heatmap: Heatmap, view: View) -> float:
    """Log of the probability near the label over that neighbourhood's share of the window.

    Near is within the label's accuracy, one cell at least.  A share of OUTLIER_SHARE of flat
    answers is mixed in, so that one wrong answer costs no more than its logarithm.
    """
    x_m, y_m = heatmap.grid.cell_centres()
    distance_m = np.hypot(x_m - view.truth.x_m, (y_m - view.truth.y_m)[:, None])
    near = distance_m <= max(view.accuracy_m, heatmap.grid.cell_m, float(distance_m.min()))
    p = np.exp(heatmap.log_probability)
    ratio = p[near].sum() / near.mean()
    return math.log((1.0 - OUTLIER_SHARE) * ratio + OUTLIER_SHARE)


class Judge:
    """Answers of one network; rasters and lifted views are kept for the views to come."""

    def __init__(self, network):
        self.network = network
        self.matcher = RasterMatcher(network, ground=network.ground)
        self._overhead, self._raster = None, None

    def answers(self, view: View, shown: View | None) -> list[Answer]:
        """One for each prior; ``shown`` is the view whose image is matched, None a grey one."""
        if view.overhead is not self._overhead:
            self._overhead, self._raster = view.overhead, describe(view.overhead, self.network)
        image = view.image if shown is None else shown.image
        if shown is None:
            image = replace(image, rgb=np.full_like(image.rgb, views.UNSEEN))
        ground = self.matcher.embed(image, 0.0)
        found = []
        for prior in priors_of(view):
            heatmap = self.matcher.match(ground, self._raster, prior, UNIFORM)
            model = self.network.config
            estimate, ambiguous = peak_pose(
                heatmap, prior, model.sharpening, model.min_mass, model.peak_inflation)
            found.append(Answer(
                view, prior, estimate, ambiguous, GAUSSIAN_DOF if ambiguous else model.peak_dof,
                evidence_nats(heatmap, view)))
        return found


def prior_answers(view: View) -> list[Answer]:
    """The prior's centre as an answer, which claims the whole window."""
    return [Answer(view, prior, prior, True, GAUSSIAN_DOF, 0.0) for prior in priors_of(view)]


def summarize(answers: list[Answer]) -> dict[str, float | int | None]:
    """The columns of one row; positions are None where the range is unknown."""
    errors = [error_of(answer.estimate, answer.view) for answer in answers]
    position, along, across, heading = np.abs(np.array(errors)).T
    allowed = np.array([SURE_AND_WRONG_M + a.view.accuracy_m for a in answers])
    ambiguous = np.array([a.ambiguous for a in answers])
    inside = []
    for answer in answers:
        offset = (answer.estimate.pose.as_array() - answer.view.truth.as_array())[:2]
        spread = answer.estimate.covariance[:2, :2] + answer.view.accuracy_m ** 2 * np.eye(2)
        inside.append(offset @ np.linalg.solve(spread, offset)
                      <= distance2_within(0.95, answer.dof, 2))
    prior_m = [error_of(answer.prior, answer.view)[0] for answer in answers]
    row = {
        'median_m': float(np.median(position)),
        'lateral_median_m': float(np.median(across)),
        'longitudinal_median_m': float(np.median(along)),
        'heading_median_deg': float(np.median(heading)),
        'within_2_m': float(np.mean(position <= 2.0)),
        'within_5_m': float(np.mean(position <= 5.0)),
        'evidence_nats': float(np.mean([a.evidence_nats for a in answers])),
        'ambiguous': float(ambiguous.mean()),
        'sure_and_wrong': float(np.mean(~ambiguous & (position > allowed))),
        'coverage_95': float(np.mean(inside)),
        'n': len(answers),
        'prior_m': float(np.median(prior_m))}
    if not all(answer.view.range_known for answer in answers):
        for key in row:
            if key not in ('lateral_median_m', 'heading_median_deg', 'ambiguous', 'n'):
                row[key] = None
    return row


def error_of(estimate: PoseEstimate, view: View) -> tuple[float, float, float, float]:
    """Position, longitudinal, lateral (m) and heading error (degrees)."""
    offset = (estimate.pose.as_array() - view.truth.as_array())[:2]
    along, across = body_axes_error(offset, view.truth.yaw_rad)
    return (math.hypot(*offset), float(along), float(across),
            math.degrees(wrap_angle(estimate.pose.yaw_rad - view.truth.yaw_rad)))


def exchanged(group: list[View]) -> list[View | None]:
    """For each view of a set one of another place that looks the same way on, None without."""
    places = list(dict.fromkeys(id(view.overhead) for view in group))
    by_place = {place: [v for v in group if id(v.overhead) == place] for place in places}
    found = []
    for view in group:
        k = places.index(id(view.overhead))
        others = by_place[places[(k + 1) % len(places)]]
        own = by_place[id(view.overhead)]
        found.append(None if len(places) == 1 else others[own.index(view) % len(others)])
    return found


def judge_set(group: list[View], network, blind: bool = False, bar=None) -> list[Answer]:
    judge, found = Judge(network), []
    for view, shown in zip(group, exchanged(group) if blind else group):
        found += judge.answers(view, shown)
        if bar is not None:
            bar.update(1)
    return found


def default_folder() -> Path:
    return Path(os.environ.get('CROSSVIEW_DATA', REPOSITORY.parent / 'shared/data')) / 'real_pairs'


@lru_cache(maxsize=2)
def views_by_set(folder: Path) -> dict[str, list[View]]:
    found: dict[str, list[View]] = {}
    for view in read_views(folder):
        found.setdefault(view.set, []).append(view)
    return found


def score(weights, sets: list[str] | None = None, folder: Path | None = None) -> dict[str, dict]:
    """The row of one network for each set; ``weights`` is a file or a ``DenseNetwork``.

    The pictures are read once a process.  Runs in evaluation mode, without gradients.
    """
    network = weights if isinstance(weights, DenseNetwork) else load_network(weights)
    training = network.training
    network.eval()
    found = {name: summarize(judge_set(group, network))
             for name, group in views_by_set(folder or default_folder()).items()
             if sets is None or name in sets}
    network.train(training)
    return found


def networks_of(args) -> dict[str, tuple[object, bool]]:
    """Row -> its network (None: the prior's centre) and whether its views are exchanged."""
    shipped = args.weights[0]
    made: dict[str, Callable] = {
        'prior_centre': lambda: (None, False),
        'gradient_correlation': lambda: (
            GradientCorrelation(load_network(shipped).config), False),
        'image_blind': lambda: (load_network(shipped), True),
        'random_init': lambda: (load_network('random_init:1', like=shipped), False),
    }
    rows = {'weights': (load_network(shipped), False)}
    for path in args.weights[1:]:
        rows[path.stem] = (load_network(path), False)
    for name, make in made.items():
        rows[name] = make()
    if args.old_weights:
        rows['weights_45d2a5b'] = (load_network(args.old_weights), False)
    if args.rows:
        rows = {name: found for name, found in rows.items() if name in args.rows}
    return rows


def table(sets: dict[str, dict]) -> str:
    keys = ('median_m', 'lateral_median_m', 'longitudinal_median_m', 'heading_median_deg',
            'within_2_m', 'within_5_m', 'evidence_nats', 'ambiguous', 'sure_and_wrong',
            'coverage_95', 'n', 'prior_m')
    heads = ('median', 'later.', 'longit.', 'head.', '<2m', '<5m', 'nats', 'ambig.', 'wrong',
             'cov95', 'n', 'prior')
    lines = [f'{"":22}{"":24}' + ''.join(f'{head:>8}' for head in heads)]
    for name, rows in sets.items():
        for row, found in rows.items():
            lines.append(f'{name:22}{row:24}' + ''.join(
                f'{"-":>8}' if found[key] is None else f'{found[key]:8d}'
                if isinstance(found[key], int) else f'{found[key]:8.2f}' for key in keys))
    return '\n'.join(lines)


def run(args) -> int:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    groups = views_by_set(args.pairs)
    if args.sets:
        groups = {name: group for name, group in groups.items() if name in args.sets}
    rows = networks_of(args)
    sets: dict[str, dict] = {}
    answers: list[tuple[str, Answer]] = []
    total = sum(map(len, groups.values())) * sum(net is not None for net, _ in rows.values())
    with tqdm(total=total, desc='matching', unit=' views') as bar:
        for set_name, group in groups.items():
            sets[set_name] = {}
            for row, (network, blind) in rows.items():
                found = ([a for view in group for a in prior_answers(view)] if network is None
                         else judge_set(group, network, blind, bar))
                sets[set_name][row] = summarize(found)
                answers += [(row, answer) for answer in found]
    print(table(sets))
    args.out.mkdir(parents=True, exist_ok=True)
    write_answers(answers, args.out / 'views.csv.gz')
    result = {'sets': sets, 'weights': load_network(args.weights[0]).fingerprint[:12],
              'device': platform.processor() or platform.machine()}
    (args.out / 'real.json').write_text(json.dumps(result, indent=1) + '\n')
    return 0


def write_answers(answers: list[tuple[str, Answer]], path: Path) -> None:
    """A line an answer: truth, prior, estimate, what it claims and how far it is off."""
    with gzip.open(path, 'wt', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([
            'set', 'view', 'row', 'outcome', 'error_m', 'longitudinal_m', 'lateral_m',
            'heading_deg', 'evidence_nats', 'prior_m', 'accuracy_m', 'truth_x_m', 'truth_y_m',
            'truth_yaw_rad', 'x_m', 'y_m', 'yaw_rad', 'xx_m2', 'xy_m2', 'yy_m2', 'dof'])
        for row, a in answers:
            c = a.estimate.covariance
            writer.writerow([
                a.view.set, a.view.name, row, 'ambiguous' if a.ambiguous else 'ok',
                *(f'{value:.4g}' for value in (
                    *error_of(a.estimate, a.view), a.evidence_nats, error_of(a.prior, a.view)[0],
                    a.view.accuracy_m)),
                *(f'{value:.4f}' for value in (*a.view.truth.as_array(),
                                               *a.estimate.pose.as_array())),
                *(f'{value:.6g}' for value in (c[0, 0], c[0, 1], c[1, 1], a.dof))])


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.real_pairs', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.real_pairs --sets dayton_exact '
        '--rows weights prior_centre')
    parser.add_argument('--pairs', type=Path, default=default_folder(),
                        help='folder of pairs (default $CROSSVIEW_DATA/real_pairs)')
    parser.add_argument('--weights', nargs='+', type=Path, default=[WEIGHTS],
                        help='weights to score; the first are those of the controls')
    parser.add_argument('--old-weights', type=Path, help='those of commit 45d2a5b')
    parser.add_argument('--sets', nargs='*', help='only these sets')
    parser.add_argument('--rows', nargs='*', help='only these rows')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'build/real')
    args = parser.parse_args(arguments)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        print(f'benchmarks.accuracy.real_pairs: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
