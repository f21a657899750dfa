"""Drives with real pictures that were taken elsewhere: how soon are the matches distrusted?

The car drives in circles over a real overhead picture, while its camera shows real street pictures
of other places. Route, GNSS and odometry are simulated. No match can be right: the supervisor must
distrust the matches, and the pose must stay as good as without them.
"""

import argparse
from pathlib import Path
import sys

import cv2
import numpy as np
import torch
from tqdm import tqdm

from benchmarks import DENSE_WEIGHTS, REPOSITORY
from benchmarks.accuracy.real_pairs import (
    add_results,
    default_folder,
    load_dense,
    views_by_set,
)
from benchmarks.fusion.drive_data import Path2D, simulated_gnss, simulated_odometry, stamp_ns
from benchmarks.fusion.estimates import estimates_of
from crossview_localizer.bags.replay import feed
from crossview_localizer.command import run_command
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import CameraImage, Outcome
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.localizer import Localizer
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.trajectory import Track, TRUTH_MAX_GAP_S
from training.data.datasets import World
from training.data.real_pairs import Overhead, View
from training.evaluation.overhead_raster import imagery_of
from training.recipes.dense_groups import dense_map

RADIUS_M, SPEED_MPS, DURATION_S, IMAGE_HZ = 50.0, 8.0, 80.0, 1.0
NOTICE_S = 20.0     # matches must be distrusted by then
MIN_SIDE_M = 240.0  # of an overhead picture: the circle, and what the camera sees beyond it
MIN_VIEWS = 16      # of a set
ORTHOPHOTOS = {'netherlands': ('netherlands_pdok_1000px_0.25m.tif', 0.25),
               'las_vegas': ('vegas_spacenet_1300px_0.24m.tif', 0.24)}


def overheads(data: Path, sets: dict[str, list[View]]) -> dict[str, Overhead]:
    """The real overhead pictures that are large enough for a drive, by name."""
    import rasterio

    found = {}
    for name, (file, px_m) in ORTHOPHOTOS.items():
        path = data / 'orthophotos' / file
        if path.is_file():
            with rasterio.open(path) as source:
                found[name] = Overhead(name, np.moveaxis(source.read((1, 2, 3)), 0, -1), px_m)
    for name, views in sets.items():
        overhead = views[0].overhead
        if min(overhead.rgb.shape[:2]) * overhead.px_m >= MIN_SIDE_M:
            found[name] = overhead
    return found


def circle() -> Path2D:
    time_s = np.arange(0.0, DURATION_S, 0.02)
    angle = SPEED_MPS / RADIUS_M * time_s
    return Path2D(time_s, np.column_stack((
        RADIUS_M * np.cos(angle), RADIUS_M * np.sin(angle),
        np.arctan2(np.cos(angle), -np.sin(angle)))))


def map_of(overhead: Overhead, network):
    """The descriptors of a whole picture, whose middle is the origin of ``map``."""
    rgb, grid = imagery_of(overhead, network.config.px_m, network.config.cell_px)
    return dense_map(network, World(
        overhead.name, rgb, grid, np.zeros((0, 1, 1, 3), np.uint8), None, np.zeros((0, 3)),
        np.zeros(0, int)))


def drive(network, embedding_map, views: list[View], seed: int) -> dict[str, float | None]:
    """One drive with these views, in a random order, as its images."""
    rng = np.random.default_rng(seed)
    path = circle()
    image_s = np.arange(0.0, DURATION_S, 1.0 / IMAGE_HZ)
    order = rng.permutation(np.resize(np.arange(len(views)), len(image_s)))
    images = [CameraImage(stamp_ns(time), views[k].image.rgb, views[k].image.camera)
              for time, k in zip(image_s, order)]
    # At the stamp of an image odometry comes first: it is what the image waits for.
    events = sorted([*simulated_odometry(path, rng), *simulated_gnss(path, rng), *images],
                    key=lambda event: (event.stamp_ns, isinstance(event, CameraImage)))
    truth = Track.from_poses(
        np.array([stamp_ns(time) for time in path.time_s]), [Pose2D(*p) for p in path.poses])
    frame = LocalFrame(0.0, 0.0)
    found = {}
    for name, localizer in (
            ('matched', Localizer(LocalizerConfig(), frame, embedding_map, DenseMatcher(network))),
            ('prior', Localizer(LocalizerConfig(), frame))):
        found[name] = [result for event in events
                       if (result := feed(localizer, event)) is not None]
    outcomes = [(1e-9 * (result.stamp_ns - stamp_ns(0.0)), result.outcome)
                for result in found['matched']]
    noticed_s = next((time for time, outcome in outcomes if outcome is Outcome.DISTRUSTED), None)
    metrics = {
        name: estimates_of([r.posterior for r in results if r.posterior is not None], truth,
                           TRUTH_MAX_GAP_S).metrics() for name, results in found.items()}
    return {
        'noticed_after_s': noticed_s,
        'used_after_20_s': float(np.mean(
            [outcome is Outcome.USED for time, outcome in outcomes if time > NOTICE_S])),
        **{key: metrics['matched'][key] for key in ('median_m', 'p95_m', 'coverage_95', 'n')},
        'prior_median_m': metrics['prior']['median_m']}


def run_drives(network, data: Path, sets: dict[str, list[View]]) -> list[dict]:
    """A drive for each overhead picture and each set of pictures of other places."""
    plan = [(name, overhead, shown) for name, overhead in overheads(data, sets).items()
            for shown, views in sets.items()
            if views[0].overhead is not overhead and len(views) >= MIN_VIEWS]
    found, maps = [], {}
    for seed, (name, overhead, shown) in enumerate(tqdm(plan, unit=' drives')):
        if name not in maps:
            maps = {name: map_of(overhead, network)}
        found.append({'map': name, 'pictures': shown,
                      **drive(network, maps[name], sets[shown], seed)})
    return found


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.foreign_pictures', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.foreign_pictures --out build/real')
    parser.add_argument('--pairs', type=Path, default=default_folder(),
                        help='folder of pairs, beside that of the orthophotos (default '
                        '$CROSSVIEW_DATA/real_pairs)')
    parser.add_argument('--weights', type=Path, default=DENSE_WEIGHTS,
                        help='weights of the dense matcher')
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'build/real',
                        help='folder of real.json, to which the drives are added')
    return run_command(parser, arguments, run)


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    drives = run_drives(load_dense(args.weights), args.pairs.parent, views_by_set(args.pairs))
    if not drives:
        print(f'no drives: no overhead picture has {MIN_SIDE_M:.0f} m a side beside a set of '
              f'{MIN_VIEWS} views of other places')
        return
    for row in drives:
        print(', '.join(f'{key} {value:.2f}' if isinstance(value, float) else f'{key} {value}'
                        for key, value in row.items()))
    add_results(args.out, {'foreign_pictures': drives})


if __name__ == '__main__':
    sys.exit(main())
