"""Single frames on real street pictures and the real overhead pictures of the same places.

Each view is matched under three priors, off by up to the half width that its overhead picture
allows on each axis and by up to 10 degrees. The matcher is told where the picture ends.
docs/real_pairs.md describes the folders, and the format for your own pairs.
"""

import argparse
from collections.abc import Callable, Iterable
import csv
from dataclasses import dataclass, replace
from functools import lru_cache
import gzip
import json
import math
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import zlib

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import cpu_name, DENSE_WEIGHTS, REPOSITORY
from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.command import run_command
from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.heatmap_pose import distance2_within, peak_pose
from crossview_localizer.networks.checkpoint import load_network, read_model_config
from crossview_localizer.networks.dense import DENSE, GAUSSIAN_DOF
from training.data.real_pairs import read_views, View
from training.evaluation.gradient_correlation import GradientCorrelation
from training.evaluation.overhead_raster import describe, RasterMatcher
from training.evaluation.pose_benchmark import signed_errors
from training.recipes.dense_groups import prior_about, uniform_window

PRIORS = 3                 # for each view
SURE_AND_WRONG_M = 5.0     # an error above this and the label's accuracy
NEAR_M = 2.0               # of the label, or within its accuracy where that is worse
FLAT_SHARE = 0.05          # of answers that say nothing, as in evidence.frame_evidence_nats
OLD_COMMIT = '45d2a5b'     # whose weights are a row: the last before any work on real pictures
# The columns of a row if a view's distance along its heading is unknown.
RANGE_FREE = ('lateral_median_m', 'heading_median_deg', 'ambiguous', 'n')
HEADS = {'median_m': 'median', 'lateral_median_m': 'lateral', 'longitudinal_median_m': 'longit.',
         'heading_median_deg': 'heading', 'within_2_m': '< 2 m', 'within_5_m': '< 5 m',
         'evidence_nats': 'nats', 'ambiguous': 'ambig.', 'sure_and_wrong': 'wrong',
         'coverage_95': 'cov. 95', 'n': 'n', 'prior_m': 'prior'}


@dataclass(frozen=True)
class Answer:
    """The answer of one row for one view under one prior."""

    view: View
    prior: PoseEstimate
    estimate: PoseEstimate
    ambiguous: bool
    dof: float              # of the Student t distribution claimed for the error
    evidence_nats: float


@dataclass(frozen=True)
class Row:
    """A network, or None for the prior's centre, and whether it is shown other places' views."""

    network: object
    blind: bool = False


def priors_of(view: View) -> list[PoseEstimate]:
    """The priors of a view, seeded by the names of set and view alone."""
    seed = zlib.crc32(f'{view.set}/{view.name}'.encode())
    return [prior_about(view.truth, np.random.default_rng([seed, k]), view.prior_m)
            for k in range(PRIORS)]


# e = log((1 - o) b + o),    b = probability near the label / share of the window near the label
def evidence_nats(heatmap: Heatmap, view: View) -> float:
    """How much the answer speaks for the labelled place; 0 if it says nothing.

    The share o of flat answers, FLAT_SHARE, bounds what one wrong answer can cost to log o.
    """
    x_m, y_m = heatmap.grid.cell_centres()
    distance_m = np.hypot(x_m - view.truth.x_m, (y_m - view.truth.y_m)[:, None])
    near = distance_m <= max(NEAR_M, view.accuracy_m)
    ratio = float(np.exp(heatmap.log_probability)[near].sum() / near.mean())
    return math.log((1.0 - FLAT_SHARE) * ratio + FLAT_SHARE)


def judge(views: list[View], row: Row) -> Iterable[list[Answer]]:
    """The answers of a row to the views of one set, view by view."""
    if row.network is None:
        for view in views:
            yield [Answer(view, prior, prior, True, GAUSSIAN_DOF, 0.0)
                   for prior in priors_of(view)]
        return
    model = row.network.config
    for view, heatmaps in match_views(views, row):
        answers = []
        for prior, heatmap in heatmaps:
            estimate, ambiguous = peak_pose(
                heatmap, prior, model.sharpening, model.min_mass, model.peak_inflation)
            answers.append(Answer(
                view, prior, estimate, ambiguous, GAUSSIAN_DOF if ambiguous else model.peak_dof,
                evidence_nats(heatmap, view)))
        yield answers


def match_views(
        views: list[View], row: Row) -> Iterable[tuple[View, list[tuple[PoseEstimate, Heatmap]]]]:
    """Each view with its priors and the heat maps within them."""
    matcher = RasterMatcher(row.network)
    overhead, raster = None, None
    for view, shown in zip(views, exchanged(views) if row.blind else views):
        if view.overhead is not overhead:
            overhead, raster = view.overhead, describe(view.overhead, row.network)
        image = view.image if shown is None else shown.image
        if shown is None:
            image = replace(image, rgb=np.full_like(image.rgb, UNSEEN))
        ground = matcher.embed(image, 0.0)
        yield view, [
            (prior, matcher.match(ground, raster, prior, uniform_window(view.prior_m)))
            for prior in priors_of(view)]


def exchanged(views: list[View]) -> list[View | None]:
    """For each view a view of the next place of the set; None, for grey, if there is one place."""
    places: dict[int, list[View]] = {}
    for view in views:
        places.setdefault(id(view.overhead), []).append(view)
    groups = list(places.values())
    found = {}
    for group, other in zip(groups, groups[1:] + groups[:1]):
        for k, view in enumerate(group):
            found[id(view)] = other[k % len(other)] if len(groups) > 1 else None
    return [found[id(view)] for view in views]


def errors_of(estimate: PoseEstimate, view: View) -> tuple[float, float, float, float]:
    """Position, longitudinal and lateral error (m) in the view's axes, heading error (degrees)."""
    along, across, heading_deg = signed_errors(estimate.pose, view.truth)
    return math.hypot(along, across), along, across, heading_deg


def is_covered(answer: Answer) -> bool:
    """Whether the label lies in the claimed 95 % ellipse, widened by the label's own accuracy."""
    return holds_label(
        answer.estimate, answer.view.truth, answer.view.accuracy_m, answer.dof)


def holds_label(estimate: PoseEstimate, truth: Pose2D, accuracy_m: float, dof: float) -> bool:
    """Whether a label of that accuracy lies in the 95 % ellipse of a Student t distribution."""
    offset = (estimate.pose.as_array() - truth.as_array())[:2]
    covariance = estimate.covariance[:2, :2] + accuracy_m ** 2 * np.eye(2)
    distance2 = offset @ np.linalg.solve(covariance, offset)
    return bool(distance2 <= distance2_within(0.95, dof, 2))


def summarize(answers: list[Answer]) -> dict[str, float | int | None]:
    """The columns of one row of one set."""
    position, along, across, heading = np.abs(
        np.array([errors_of(a.estimate, a.view) for a in answers])).T
    sure = ~np.array([a.ambiguous for a in answers])
    wrong = position > [SURE_AND_WRONG_M + a.view.accuracy_m for a in answers]
    found = {
        'median_m': float(np.median(position)),
        'lateral_median_m': float(np.median(across)),
        'longitudinal_median_m': float(np.median(along)),
        'heading_median_deg': float(np.median(heading)),
        'within_2_m': float(np.mean(position <= 2.0)),
        'within_5_m': float(np.mean(position <= 5.0)),
        'evidence_nats': float(np.mean([a.evidence_nats for a in answers])),
        'ambiguous': float(np.mean(~sure)),
        'sure_and_wrong': float(np.mean(sure & wrong)),
        'coverage_95': float(np.mean([is_covered(a) for a in answers])),
        'n': len(answers),
        'prior_m': float(np.median([errors_of(a.prior, a.view)[0] for a in answers])),
    }
    if all(a.view.range_known for a in answers):
        return found
    return {key: value if key in RANGE_FREE else None for key, value in found.items()}


def default_folder() -> Path:
    return Path(os.environ.get('CROSSVIEW_DATA', REPOSITORY.parent / 'shared/data')) / 'real_pairs'


@lru_cache(maxsize=2)
def views_by_set(folder: Path) -> dict[str, list[View]]:
    """All views of a folder; they stay in memory (150 MB)."""
    found: dict[str, list[View]] = {}
    for view in read_views(folder):
        found.setdefault(view.set, []).append(view)
    return found


def chosen_sets(folder: Path, names: list[str] | None, every: int = 1) -> dict[str, list[View]]:
    sets = views_by_set(folder)
    missing = [name for name in names or () if name not in sets]
    if missing:
        raise ValueError(f'{folder} has no set {missing[0]}; it has {", ".join(sets)}')
    return {name: views[::every] for name, views in sets.items() if not names or name in names}


def score(weights, sets: list[str] | None = None, folder: str | Path | None = None,
          every: int = 1) -> dict[str, dict]:
    """The row of one network for each set, for a training to validate on.

    ``weights`` is a file or a ``DenseNetwork`` on the CPU, which is put back into the mode that
    it was in; with ``every`` = n only each n-th view is scored.  The pictures are read once.
    """
    network = weights if isinstance(weights, torch.nn.Module) else load_network(weights)
    mode = network.training
    network.eval()
    try:
        return {name: summarize([a for found in judge(views, Row(network)) for a in found])
                for name, views in chosen_sets(
                    Path(folder or default_folder()), sets, every).items()}
    finally:
        network.train(mode)


def load_dense(path: Path):
    network = load_network(path)
    if network.config.kind != DENSE:
        raise ValueError(f'{path} holds a tile network; expected weights of the dense matcher')
    return network


def old_network(path: Path | None):
    """The network of OLD_COMMIT, from a file or from git; None if neither has it."""
    if path is not None:
        return load_dense(path)
    name = DENSE_WEIGHTS.relative_to(REPOSITORY).as_posix()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / DENSE_WEIGHTS.name
        with open(copy, 'wb') as file:
            done = subprocess.run(['git', '-C', str(REPOSITORY), 'show', f'{OLD_COMMIT}:{name}'],
                                  stdout=file, stderr=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            return load_dense(copy)
    print(f'row weights_{OLD_COMMIT} is left out: this is not a git clone with that commit')
    return None


def pixels_only(network):
    """The network with learned descriptors of zeros: a control that has pixel channels alone."""
    with torch.no_grad():
        network.satellite.head.weight.zero_()
        network.satellite.head.bias.zero_()
    return network


def rows_of(weights: list[Path], old_weights: Path | None,
            names: list[str] | None) -> dict[str, Row]:
    """The rows to score, of ``names`` only; the first weights are 'dense' and the controls'."""
    first = weights[0]
    makers: dict[str, Callable[[], Row | None]] = {'dense': lambda: Row(load_dense(first))}
    for path in weights[1:]:
        unique = sum(other.stem == path.stem for other in weights) == 1
        makers[path.stem if unique else str(path)] = lambda path=path: Row(load_dense(path))
    makers |= {
        'prior_centre': lambda: Row(None),
        'gradient_correlation': lambda: Row(GradientCorrelation(load_dense(first).config)),
        'pixel_channels': lambda: Row(pixels_only(load_dense(first))),
        'image_blind': lambda: Row(load_dense(first), blind=True),
        'random_init': lambda: Row(load_network('random_init:1', like=first)),
        f'weights_{OLD_COMMIT}': lambda: (
            Row(network) if (network := old_network(old_weights)) else None),
    }
    if not getattr(read_model_config(first)[0], 'pixel_channels', 0):
        del makers['pixel_channels']
    unknown = [name for name in names or () if name not in makers]
    if unknown:
        raise ValueError(f'no row {unknown[0]}; expected some of {", ".join(makers)}')
    found = {name: make() for name, make in makers.items() if not names or name in names}
    return {name: row for name, row in found.items() if row is not None}


def table(sets: dict[str, dict]) -> str:
    lines = [' ' * 45 + ''.join(f'{head:>8}' for head in HEADS.values())]
    for name, rows in sets.items():
        for row, found in rows.items():
            values = (found[key] for key in HEADS)
            lines.append(f'{name:21} {row:23}' + ''.join(
                f'{"-" if v is None else v if isinstance(v, int) else f"{v:.2f}":>8}'
                for v in values))
    return '\n'.join(lines)


def write_answers(answers: list[tuple[str, Answer]], path: Path) -> None:
    """Write one line per answer; poses are in the axes of the overhead picture."""
    with gzip.open(path, 'wt', newline='') as file:
        writer = csv.writer(file)
        writer.writerow([
            'set', 'view', 'row', 'outcome', 'error_m', 'longitudinal_m', 'lateral_m',
            'heading_deg', 'evidence_nats', 'covered_95', 'prior_error_m', 'accuracy_m',
            'truth_x_m', 'truth_y_m', 'truth_yaw_rad', 'prior_x_m', 'prior_y_m', 'prior_yaw_rad',
            'x_m', 'y_m', 'yaw_rad', 'xx_m2', 'xy_m2', 'yy_m2', 'dof'])
        for row, a in answers:
            c = a.estimate.covariance
            writer.writerow([
                a.view.set, a.view.name, row, 'ambiguous' if a.ambiguous else 'ok',
                *(f'{v:.3f}' for v in (*errors_of(a.estimate, a.view), a.evidence_nats)),
                int(is_covered(a)), f'{errors_of(a.prior, a.view)[0]:.3f}', a.view.accuracy_m,
                *(f'{v:.4f}' for pose in (a.view.truth, a.prior.pose, a.estimate.pose)
                  for v in pose.as_array()),
                *(f'{v:.5g}' for v in (c[0, 0], c[0, 1], c[1, 1], a.dof))])


def add_results(folder: Path, found: dict) -> Path:
    """Write what was found to the folder's ``real.json``; other keys in it stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / 'real.json'
    earlier = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
    path.write_text(json.dumps({**earlier, **found}, indent=1) + '\n', encoding='utf-8')
    return path


def run(args: argparse.Namespace) -> None:
    if args.every < 1:
        raise ValueError(f'--every {args.every}; expected at least 1')
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    views = chosen_sets(args.pairs, args.sets, args.every)
    rows = rows_of(args.weights, args.old_weights, args.rows)
    sets: dict[str, dict] = {name: {} for name in views}
    answers: list[tuple[str, Answer]] = []
    with tqdm(total=sum(map(len, views.values())) * len(rows), unit=' views') as bar:
        for name, group in views.items():
            bar.set_description(name)
            for row_name, row in rows.items():
                found = []
                for some in judge(group, row):
                    found += some
                    bar.update()
                sets[name][row_name] = summarize(found)
                answers += [(row_name, answer) for answer in found]
    print(table(sets))
    args.out.mkdir(parents=True, exist_ok=True)
    write_answers(answers, args.out / 'views.csv.gz')
    result = {'sets': sets, 'weights': load_dense(args.weights[0]).fingerprint[:12],
              'device': cpu_name()}
    path = add_results(args.out, result)
    print(f'{path}, {args.out / "views.csv.gz"}')


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.real_pairs', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.real_pairs --sets dayton_exact '
        '--rows dense prior_centre')
    parser.add_argument('--pairs', type=Path, default=default_folder(),
                        help='folder of pairs (default $CROSSVIEW_DATA/real_pairs)')
    parser.add_argument('--weights', nargs='+', type=Path, default=[DENSE_WEIGHTS],
                        help='weights of the dense matcher: the first file makes the row dense '
                        'and the controls, each further file a row of its own')
    parser.add_argument('--old-weights', type=Path,
                        help=f'weights of the row weights_{OLD_COMMIT} (default: those in git)')
    parser.add_argument('--sets', nargs='+', help='score only these sets')
    parser.add_argument('--rows', nargs='+', help='score only these rows')
    parser.add_argument('--every', type=int, default=1, help='score only every N-th view')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'build/real',
                        help='folder of real.json and views.csv.gz')
    return run_command(parser, arguments, run)


if __name__ == '__main__':
    sys.exit(main())
