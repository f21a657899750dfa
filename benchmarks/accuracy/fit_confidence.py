"""Fit what a dense network's scores claim, on simulated frames and on real pairs.

Temperature, sharpening, least mass, inflation and tails are numbers of the weights file; the
network's variables stay as they are.  Simulated and real frames count the same.  At most
SURE_AND_WRONG_SHARE of the frames of each real set may be unambiguous and wrong, and the claimed
95 % hold at least LEAST_COVERAGE of each set, where a wider claim can reach that.
"""

import argparse
from dataclasses import replace
from pathlib import Path
import sys

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks.accuracy.real_pairs import (
    chosen_sets,
    default_folder,
    holds_label,
    load_dense,
    match_views,
    Row,
    score,
    SURE_AND_WRONG_M,
)
from crossview_localizer.command import run_command
from crossview_localizer.matching.heatmap_pose import peak_of, peak_pose
from crossview_localizer.networks.dense import GAUSSIAN_DOF
from training.data.datasets import load_world, World
from training.data.rendered_places import load_place
from training.evaluation.dense_confidence import (
    Confidence,
    fit_tails,
    fit_temperature,
    least_mass,
    score_frames,
    ScoredFrame,
    SHARPENINGS,
    store_confidence,
)

SURE_AND_WRONG_SHARE = 0.05
LEAST_COVERAGE = 0.9
WIDENINGS = (1.0, 1.5, 2.0, 3.0, 4.0)   # of the inflation that the pooled frames need


def score_views(network, folder: Path, every: int) -> dict[str, list[ScoredFrame]]:
    """For each set the score volumes of its views whose place is known along and across."""
    sets: dict[str, list[ScoredFrame]] = {}
    for name, group in tqdm(chosen_sets(folder, None, every).items(), desc='real pairs'):
        views = [view for view in group if view.range_known]
        for view, heatmaps in match_views(views, Row(network)):
            for prior, heatmap in heatmaps:
                heatmap = replace(heatmap, volume=heatmap.volume.astype(np.float32))
                sets.setdefault(name, []).append(
                    ScoredFrame(heatmap, prior, view.truth, view.accuracy_m))
    return sets


def fit_sharpening(frames: list[ScoredFrame], sets: dict[str, list[ScoredFrame]],
                   factor: float) -> tuple[float, float, list[ScoredFrame]]:
    """The sharpening and min_mass that leave most frames unambiguous, and these frames.

    The min_mass is the smallest with which few enough frames of each set are sure and wrong.
    """
    found = []
    for sharpening in tqdm(SHARPENINGS, desc='sharpening'):
        least = max(
            least_mass(group, factor * sharpening, SURE_AND_WRONG_M, SURE_AND_WRONG_SHARE)
            for group in sets.values())
        sure = [frame for frame in frames
                if peak_of(frame.heatmap, factor * sharpening).mass >= least]
        found.append((float(sharpening), least, sure))
    return max(found, key=lambda candidate: len(candidate[2]))


def widening(sets: dict[str, list[ScoredFrame]], sharpening: float, min_mass: float,
             inflation: float, dof: float) -> float:
    """The smallest of WIDENINGS with which most sets have LEAST_COVERAGE."""
    inflations = [factor * inflation for factor in WIDENINGS]
    enough = sum(coverages_95(frames, sharpening, min_mass, inflations, dof) >= LEAST_COVERAGE
                 for frames in sets.values())
    return WIDENINGS[int(np.argmax(enough))]    # the first of equals


def coverages_95(frames: list[ScoredFrame], sharpening: float, min_mass: float,
                 inflations: list[float], dof: float) -> np.ndarray:
    """For each inflation (n,) how often the truth lies in the claimed 95 % ellipse.

    The ellipse is widened by the label's accuracy.  An ambiguous frame claims its window, whatever
    the inflation.
    """
    inside = []
    for frame in frames:
        estimate, ambiguous = peak_pose(frame.heatmap, frame.prior, sharpening, min_mass)
        inside.append([
            holds_label(
                replace(estimate, covariance=(1.0 if ambiguous else factor) * estimate.covariance),
                frame.truth, frame.accuracy_m, GAUSSIAN_DOF if ambiguous else dof)
            for factor in inflations])
    return np.mean(inside, axis=0)


def fit(weights: Path, out: Path, worlds: list[World], pairs: Path, count: int,
        every: int) -> None:
    """Fit the weights' confidence and write them to ``out``."""
    network = load_dense(weights)
    simulated, sets = score_frames(network, worlds, count), score_views(network, pairs, every)
    real = [frame for group in sets.values() for frame in group]
    rng = np.random.default_rng(0)
    frames = [group[k] for group in (simulated, real)
              for k in rng.permutation(len(group))[:min(len(simulated), len(real))]]
    factor, nll = fit_temperature(frames)
    sharpening, min_mass, sure = fit_sharpening(frames, sets, factor)
    inflation, dof = fit_tails(sure, factor * sharpening, min_mass)
    inflation *= widening(sets, factor * sharpening, min_mass, inflation, dof)
    store_confidence(
        weights, out, Confidence(factor, sharpening, min_mass, inflation, dof), nll, worlds, count,
        confidence={'simulated': [world.name for world in worlds], 'real frames': len(real)})


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.fit_confidence', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.fit_confidence runs/dense.safetensors '
        '--places runs/val_places --out runs/fitted.safetensors')
    parser.add_argument('weights', type=Path, help='weights of the dense matcher')
    parser.add_argument('--worlds', nargs='+', type=Path, default=[], metavar='WORLD',
                        help='prepared worlds that the training did not see')
    parser.add_argument('--places', type=Path, metavar='FOLDER',
                        help='rendered places that the training did not see')
    parser.add_argument('--pairs', type=Path, default=default_folder(),
                        help='folder of real pairs (default $CROSSVIEW_DATA/real_pairs)')
    parser.add_argument('--count', type=int, default=300, help='simulated frames')
    parser.add_argument('--every', type=int, default=2, help='score only every N-th real view')
    parser.add_argument('--out', type=Path, required=True, help='weights file to write')
    return run_command(parser, arguments, run)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    places = sorted(args.places.glob('place_*.npz')) if args.places else []
    worlds = [load_world(path) for path in args.worlds] + [
        load_place(path).world(number) for number, path in enumerate(places)]
    if not worlds:
        raise ValueError('no simulated frames: give --worlds or --places')
    fit(args.weights, args.out, worlds, args.pairs, args.count, args.every)
    for name, found in score(args.out, folder=args.pairs).items():
        print(f'{name:22}' + '  '.join(
            f'{key} {found[key]:.2f}' for key in
            ('median_m', 'evidence_nats', 'ambiguous', 'sure_and_wrong', 'coverage_95')
            if found[key] is not None))


if __name__ == '__main__':
    sys.exit(main())
