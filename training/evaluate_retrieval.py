"""Recalls and errors of one tile network on the papers' data, with controls.

The network describes every satellite tile and every query of a split once, and
``evaluation.recall`` compares them. The rows:

- ``match``: the network;
- ``image_blind``: the same network, but each query is described by an image taken at least 200 m
  away: what the map and the prior give without the right image;
- ``prior_centre``: no network; the centre of the prior is the estimate;
- ``chance``: a tile drawn at random from within the prior.

Run other networks as further controls (``random_init:SEED``, ``raw_correlation``, a global
baseline). With ``--prior-sigma-m 0`` the centre of the prior is the truth, as in the papers, and
``prior_centre`` has no error.
"""

import argparse
import csv
from dataclasses import dataclass
import gzip
import json
from pathlib import Path
import sys

import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import load_network, prepare_torch
from training.data.datasets import Places
from training.data.places_arguments import add_places_arguments, read_places
from training.evaluation.recall import (
    blocks_along,
    blocks_on_grid,
    chance_recall,
    noisy_centres,
    Retrieval,
    retrieve,
    summarize,
)

BLIND_MIN_M = 200.0
FIELDS = (
    'method', 'place', 'stamp_us', 'drive', 'block', 'truth_x_m', 'truth_y_m', 'truth_yaw_rad',
    'centre_x_m', 'centre_y_m', 'estimate_x_m', 'estimate_y_m', 'xx_m2', 'xy_m2', 'yy_m2',
    'picked', 'global_rank', 'local_rank', 'candidates', 'right', 'outcome')


@dataclass(frozen=True)
class Queries:
    """Where and when the queries were taken, (Q,), and the centres of their priors (Q, 2)."""

    place: np.ndarray
    stamp_us: np.ndarray
    drive: np.ndarray
    block: np.ndarray
    truth_m: np.ndarray
    yaw_rad: np.ndarray
    centre_m: np.ndarray


def describe_images(embed, read, numbers: np.ndarray, name: str, device: str,
                    batch: int = 16) -> np.ndarray:
    """Descriptors (n, K) float32 of the images of these places."""
    found = []
    for first in tqdm(range(0, len(numbers), batch), desc=name, unit_scale=batch, unit=' images',
                      mininterval=2.0):
        images = np.stack([read(place) for place in numbers[first:first + batch].tolist()])
        found.append(embed(torch.from_numpy(images).to(device)).float().cpu().numpy())
    return np.concatenate(found)


def images_elsewhere(positions_m: np.ndarray) -> np.ndarray:
    """For each query (Q,) another one at least BLIND_MIN_M away, else the farthest.

    It is the query half the list away, or the next one that is far enough, so that each image is
    used about equally often.
    """
    count = len(positions_m)
    chosen = np.empty(count, np.int64)
    for query in range(count):
        apart_m = np.linalg.norm(positions_m - positions_m[query], axis=1)
        order = (query + count // 2 + np.arange(count)) % count
        far = order[apart_m[order] >= BLIND_MIN_M]
        chosen[query] = far[0] if len(far) else int(apart_m.argmax())
    return chosen


def queries_of(places: Places, split: str, prior_sigma_m: float = 0.0, seed: int = 0) -> Queries:
    """The queries of a split, and the centres of their priors; ValueError if it has none."""
    numbers = places.queries(split)
    if len(numbers) == 0:
        raise ValueError(f'no place with a ground image is of the split {split!r}')
    truth_m, drive = places.positions_m[numbers], places.drive[numbers]
    in_order = (places.stamp_us[numbers] >= 0).all()
    return Queries(
        numbers, places.stamp_us[numbers], drive,
        blocks_along(truth_m, drive) if in_order else blocks_on_grid(truth_m), truth_m,
        places.yaw_rad[numbers],
        noisy_centres(truth_m, prior_sigma_m, seed) if prior_sigma_m else truth_m)


def describe(network, places: Places, numbers: np.ndarray,
             device: str) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of the tiles of all places (N, K), and of the images of some (Q, K)."""
    # Where the network takes polar views, the tiles of the places are polar views already.
    embed_tile = network.embed_satellite
    if network.config.ground_view == 'polar':
        embed_tile = torch.no_grad()(network.satellite_descriptors)
    return (
        describe_images(
            embed_tile, places.read_satellite, np.arange(len(places)), 'tiles', device),
        describe_images(network.embed_ground, places.read_ground, numbers, 'queries', device))


def evaluate(network, places: Places, split: str, radius_m: float, tolerance_m: float,
             prior_sigma_m: float, seed: int, device: str) -> tuple[Queries, dict[str, Retrieval]]:
    """The queries of a split, and the rows ``match`` and ``image_blind``.

    Raises ValueError if the split has no query, or an image cannot be read.
    """
    queries = queries_of(places, split, prior_sigma_m, seed)
    tiles, ground = describe(network, places, queries.place, device)
    return queries, {
        name: retrieve(tiles, described, places.positions_m, queries.truth_m, radius_m,
                       tolerance_m, queries.centre_m, network.config.temperature)
        for name, described in (
            ('match', ground), ('image_blind', ground[images_elsewhere(queries.truth_m)]))}


def write_queries(path: Path, queries: Queries, rows: dict[str, Retrieval]) -> None:
    """Write a gzipped CSV with one line per query and row; ``rows`` are keyed by name."""
    with gzip.open(path, 'wt', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(FIELDS)
        # The rows of a query one after the other: they differ little, so the file is small.
        for k in range(len(queries.place)):
            for name, found in rows.items():
                moment = found.second_moment_m2[k]
                outcome = 'no tile' if found.picked[k] < 0 else (
                    'hit' if found.local_rank[k] == 0 else 'miss')
                estimate_m = queries.truth_m[k] + found.error_m[k]
                writer.writerow([
                    name, queries.place[k], queries.stamp_us[k], queries.drive[k],
                    queries.block[k],
                    *(f'{value:.4f}' for value in queries.truth_m[k]),
                    f'{queries.yaw_rad[k]:.6f}',
                    *(f'{value:.4f}' for value in (*queries.centre_m[k], *estimate_m)),
                    *(f'{value:.4g}' for value in (moment[0, 0], moment[0, 1], moment[1, 1])),
                    found.picked[k], found.global_rank[k], found.local_rank[k],
                    found.candidates[k], found.right[k], outcome])


def read_queries(path: Path) -> tuple[Queries, dict[str, Retrieval]]:
    """What ``write_queries`` wrote; ValueError for any other file."""
    try:
        with gzip.open(path, 'rt', newline='', encoding='utf-8') as file:
            lines = list(csv.DictReader(file))
        rows = {}
        for name in dict.fromkeys(line['method'] for line in lines):
            mine = [line for line in lines if line['method'] == name]

            def column(key, kind=float, mine=mine):
                return np.array([kind(line[key]) for line in mine])

            truth_m = np.stack((column('truth_x_m'), column('truth_y_m')), 1)
            estimate_m = np.stack((column('estimate_x_m'), column('estimate_y_m')), 1)
            xy = column('xy_m2')
            queries = Queries(
                column('place', int), column('stamp_us', int), column('drive', str),
                column('block', int), truth_m, column('truth_yaw_rad'),
                np.stack((column('centre_x_m'), column('centre_y_m')), 1))
            rows[name] = Retrieval(
                column('global_rank', int), column('local_rank', int), column('picked', int),
                estimate_m - truth_m, column('candidates', int), column('right', int),
                np.stack((column('xx_m2'), xy, xy, column('yy_m2')), 1).reshape(-1, 2, 2))
        return queries, rows
    except (OSError, EOFError, KeyError, ValueError, UnboundLocalError) as error:
        raise ValueError(
            f'{path} holds no queries of evaluate_retrieval ({type(error).__name__}: {error})'
        ) from error


def results(queries: Queries, rows: dict[str, Retrieval]) -> dict[str, object]:
    """The metrics of all rows, over all queries and for each traversal."""
    traversals = list(dict.fromkeys(queries.drive.tolist()))
    lines = {}
    for name in (['all', *traversals] if len(traversals) > 1 else ['all']):
        mine = np.ones(len(queries.drive), bool) if name == 'all' else queries.drive == name
        part = {
            row: summarize(_select(found, mine), queries.yaw_rad[mine], queries.block[mine])
            for row, found in rows.items()}
        centre_m = np.linalg.norm(queries.centre_m - queries.truth_m, axis=1)[mine]
        part['prior_centre'] = {
            'median_m': float(np.median(centre_m)), 'mean_m': float(centre_m.mean()),
            'p95_m': float(np.percentile(centre_m, 95))}
        part['chance'] = {
            'recall_at_1_local': chance_recall(_select(next(iter(rows.values())), mine))}
        lines[name] = part
    return lines


def _select(found: Retrieval, chosen: np.ndarray) -> Retrieval:
    return Retrieval(*(
        getattr(found, name)[chosen] for name in Retrieval.__dataclass_fields__))


def table(lines: dict[str, object]) -> str:
    """The metrics over all queries as text; intervals are 95 %."""
    def interval(values):
        return f'{values[1]:6.2f} [{values[0]:.2f}, {values[2]:.2f}]' if values else '-'

    shown = [f'{"row":12} {"local recall@1 %":24} {"global recall@1 %":24} {"median m":22} '
             f'{"mean m":22} p95 m']
    for row in ('match', 'image_blind'):
        found = lines[row]
        shown.append(
            f'{row:12} {interval(found["recall_at_1_local"]):24} '
            f'{interval(found["recall_at_1_global"]):24} {interval(found["median_m"]):22} '
            f'{interval(found["mean_m"]):22} {interval(found["p95_m"])}')
    centre = lines['prior_centre']
    shown.append(f'{"prior_centre":12} {"":49} {centre["median_m"]:6.2f}{"":16} '
                 f'{centre["mean_m"]:6.2f}{"":16} {centre["p95_m"]:6.2f}')
    shown.append(f'{"chance":12} {lines["chance"]["recall_at_1_local"]:6.2f}')
    return '\n'.join(shown)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.evaluate_retrieval', description=__doc__.splitlines()[0],
        epilog='example: python -m training.evaluate_retrieval --data world --train world_1.npz '
        '--test-drives 3 --weights local.safetensors --out results')
    add_places_arguments(parser)
    parser.add_argument('--weights', required=True,
                        help='checkpoint, raw_correlation or random_init:SEED')
    parser.add_argument('--like', type=Path, help='checkpoint whose sizes a control takes')
    parser.add_argument('--split', choices=('train', 'val', 'test'), default='test',
                        help='the split whose ground images are the queries (default test)')
    parser.add_argument('--radius-m', type=float, default=50.0,
                        help='radius of the prior (default 50; in the papers 100 for CVACT)')
    parser.add_argument('--tolerance-m', type=float, default=5.0,
                        help='a tile this near is right (default 5; for CVACT 0)')
    parser.add_argument('--prior-sigma-m', type=float, default=0.0,
                        help='error of the centre of the prior, sigma on each axis (default 0)')
    parser.add_argument('--seed', type=int, default=0, help='seed of that error')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='torch threads')
    parser.add_argument('--out', type=Path, required=True,
                        help='folder for queries.csv.gz and results.json')
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> None:
    if args.radius_m <= 0.0 or args.tolerance_m < 0.0 or args.prior_sigma_m < 0.0:
        raise ValueError(
            f'radius {args.radius_m} m, tolerance {args.tolerance_m} m, sigma '
            f'{args.prior_sigma_m} m; expected a positive radius, the others not below 0')
    device, warning = prepare_torch(args.device, args.threads)
    if warning:
        print(warning)
    network = load_network(args.weights, device, args.like)
    places = read_places(args, network.config)
    queries, rows = evaluate(network, places, args.split, args.radius_m, args.tolerance_m,
                             args.prior_sigma_m, args.seed, device)
    args.out.mkdir(parents=True, exist_ok=True)
    write_queries(args.out / 'queries.csv.gz', queries, rows)
    lines = results(*read_queries(args.out / 'queries.csv.gz'))
    (args.out / 'results.json').write_text(json.dumps({
        'data': places.name, 'split': args.split, 'weights': str(args.weights),
        'fingerprint': network.fingerprint, 'radius_m': args.radius_m,
        'tolerance_m': args.tolerance_m, 'prior_sigma_m': args.prior_sigma_m,
        'tiles': len(places), 'setting': 'transductive: the tiles of all places are known',
        'results': lines}, indent=1) + '\n')
    print(table(lines['all']))
    print(f'{len(queries.place)} queries, {len(places)} tiles; {args.out}/results.json')


if __name__ == '__main__':
    sys.exit(main())
