"""The papers' claim, in simulation: the geographically local losses against the global baseline.

Routes through simulated towns are driven on many days: some for training, one to choose learning
rates and weights, others for the test. All losses see the same number of pairs of the same images
in the same number of steps, with the same trunk and start. A local loss has its paper's weights,
mask and batches; the global one random batches and all pairs with weight 1. Each loss gets the
learning rate with the best local recall on the validation day.

World and budget are a ``Plan`` (``paper_plans.py``), fixed before the comparison; ``world_hash``
is the hash of the plan and of the rendered world. Setting and metrics are those of
``training.evaluation.recall`` (the prior is a disc around the truth, of 50 m in the RA-L paper and
100 m in the workshop paper; a tile within 5 m is right), but the 95 % intervals draw training
seeds and stretches of 200 m of the routes, each stretch with all test days.

A stopped comparison goes on where it stopped. Runs with further seeds are merged with those in
the frames file (one line per query and network), from which the result is made.
"""

import argparse
from dataclasses import replace
import json
from pathlib import Path
import re
import sys
import time

import numpy as np
import torch

from benchmarks import cpu_name, REPOSITORY, TILE_WEIGHTS
from benchmarks.accuracy.paper_plans import (
    images_in_local_batch,
    LOSSES,
    neighbours_in_random_batch,
    places_of,
    Plan,
    PLANS,
    RADIUS_M,
    settings_of_run,
    TOLERANCE_M,
    WIDE_M,
    world_hash,
    worlds_of,
)
from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import load_network, prepare_torch
from training.data.datasets import load_world, Places, places_of_world, World
from training.distributed import Ranks
from training.evaluate_retrieval import (
    describe,
    evaluate,
    images_elsewhere,
    Queries,
    queries_of,
    read_queries,
    write_queries,
)
from training.evaluation.recall import (
    blocks_along,
    bootstrap,
    chance_recall,
    recall,
    Retrieval,
    retrieve,
)
from training.initial import initial_network
from training.loop import train
from training.recipes.frozen_trunk import FrozenNetwork, stored_places
from training.recipes.pairs import PairRecipe
from training.simulate import simulate

RESULTS = REPOSITORY / 'docs/results'

RATE_SEED = 1000           # seed of the short runs that choose a learning rate
WIDE = ' within 100 m'     # ends the names of the rows with the prior of WIDE_M
GOAL_POINTS = 9.0


class Trainer:
    """Trains and tests the networks of a plan on its places, in the folder ``out``.

    The maps of the frozen trunk are stored in ``maps``, a folder of these towns and looks.
    """

    def __init__(self, plan: Plan, places: Places, out: Path, device: str, maps: Path):
        self.plan, self.out, self.ranks = plan, out, Ranks(device=device)
        self.places = stored_places(places, self.network(0), maps, device)

    def network(self, seed: int, weights: Path | None = None) -> FrozenNetwork:
        """The network with which all losses begin, or one with trained ``weights``."""
        network = initial_network(self.plan.model, seed, weights)
        frozen = FrozenNetwork(network.config)
        frozen.load_state_dict(network.state_dict())
        return frozen

    def weights(self, kind: str, seed: int) -> Path:
        return self.out / f'{kind}_{seed}.safetensors'

    def train(self, kind: str, rate: float, seed: int, steps: int, path: Path) -> list[dict]:
        """Train, or go on; returns the log, one line per validation."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs, config = settings_of_run(self.plan, kind, rate, seed, steps)
        train(self.network(seed), PairRecipe(pairs, seed, self.places), config, path,
              {'command': 'benchmarks.accuracy.paper', 'seed': seed, 'data': self.places.name},
              self.ranks)
        return [json.loads(line) for line in path.with_suffix('.jsonl').read_text().splitlines()]

    def choose_rate(self, kind: str) -> tuple[float, dict[str, float]]:
        """The rate with the best local recall on the validation day, and the recall of each."""
        found = {}
        for rate in self.plan.rates:
            print(f'{kind} loss, learning rate {rate:g}', flush=True)
            lines = self.train(kind, rate, RATE_SEED, self.plan.rate_steps,
                               self.out / f'rates/{kind}_{rate:g}.safetensors')
            found[rate] = max(line['recall_at_1_local'] for line in lines)
        best = max(found, key=found.get)
        return best, {f'{rate:g}': recall_1 for rate, recall_1 in found.items()}

    def judge(self, network: FrozenNetwork) -> tuple[Queries, dict[str, Retrieval]]:
        """The test queries, with their stretches of the routes, and how the network finds them.

        The rows: the prior of 50 m, that of 100 m, and the control ``image_blind`` (50 m).
        """
        network = network.to(self.ranks.device).eval()
        queries = queries_of(self.places, 'test')
        queries = replace(queries, block=stretches(queries.truth_m, queries.drive))
        tiles, ground = describe(network, self.places, queries.place, self.ranks.device)
        rows = {
            name: retrieve(tiles, described, self.places.positions_m, queries.truth_m, radius_m,
                           TOLERANCE_M)
            for name, described, radius_m in (
                ('', ground, RADIUS_M), (WIDE, ground, WIDE_M),
                (' image_blind', ground[images_elsewhere(queries.truth_m)], RADIUS_M))}
        # Of no use here, and a third of the file.
        unknown = np.full((len(ground), 2, 2), np.nan)
        return queries, {
            name: replace(row, second_moment_m2=unknown) for name, row in rows.items()}


def minutes_of(lines: list[dict]) -> float:
    """Training time by a log of validations, whose seconds start at 0 whenever a run goes on."""
    seconds = [line['seconds'] for line in lines]
    ends = [now for now, then in zip(seconds, seconds[1:] + [0.0]) if then < now]
    return sum(ends) / 60.0


def stretches(positions_m: np.ndarray, drive: np.ndarray) -> np.ndarray:
    """The number (Q,) of each query's stretch of 200 m of its route, the same on every day.

    ``drive`` (Q,) names town and day, with a space between them.
    """
    blocks = blocks_along(positions_m, drive)
    for name in np.unique(drive):
        blocks[drive == name] -= blocks[drive == name].min()
    town = np.unique([name.rpartition(' ')[0] for name in drive], return_inverse=True)[1]
    return blocks + town * (blocks.max() + 1)


def one_run(seed: int, found: Retrieval, wide: Retrieval | None = None) -> dict[str, float]:
    """The metrics of a run within 50 m, and for ``wide`` within 100 m."""
    error_m = np.hypot(*found.error_m.T)
    metrics = {
        'seed': seed, 'recall_at_1_local': recall(found.local_rank, 1),
        'recall_at_1_global': recall(found.global_rank, 1),
        'median_m': float(np.median(error_m)), 'mean_m': float(error_m.mean()),
        'p95_m': float(np.percentile(error_m, 95))}
    if wide is not None:
        metrics |= {'recall_at_1_wide': recall(wide.local_rank, 1),
                    'median_wide_m': float(np.median(np.hypot(*wide.error_m.T)))}
    return metrics


def compare(queries: Queries, rows: dict[str, Retrieval]) -> dict[str, object]:
    """The metrics of the result, from what the frames file holds."""
    seeds = {kind: sorted(int(name.split()[1]) for name in rows
                          if re.fullmatch(rf'{kind} \d+', name)) for kind in LOSSES}
    result = {kind: [one_run(seed, rows[f'{kind} {seed}'], rows.get(f'{kind} {seed}{WIDE}'))
                     for seed in seeds[kind]] for kind in LOSSES if seeds[kind]}

    def against_global(kind: str, prior: str = '') -> dict[str, list[float]] | None:
        """Differences to the global baseline with 95 % intervals; None without a common seed."""
        both = [seed for seed in seeds[kind] if seed in seeds['global']
                and f'{kind} {seed}{prior}' in rows]
        if not both:
            return None
        ranks, errors_m = (
            [np.stack([read(rows[f'{one} {seed}{prior}']) for seed in both])
             for one in (kind, 'global')]
            for read in (lambda row: row.local_rank, lambda row: np.hypot(*row.error_m.T)))
        return {
            'recall_at_1_local_points': list(bootstrap(
                lambda local, other: recall(local, 1) - recall(other, 1), queries.block, *ranks)),
            'median_m': list(bootstrap(
                lambda local, other: median_of_runs(local) - median_of_runs(other), queries.block,
                *errors_m))}

    result['differences'] = {
        f'{kind}{prior}': found for prior in ('', WIDE) for kind in ('local', 'eccvw')
        if (found := against_global(kind, prior))}
    if 'local' in result['differences']:
        claim = result['differences']['local']
        low_points, points, _ = claim['recall_at_1_local_points']
        result['goal'] = {'points': GOAL_POINTS, 'reached': bool(
            points >= GOAL_POINTS and low_points > 0.0 and claim['median_m'][2] < 0.0)}
    result['controls'] = {
        name: one_run(0, row) for name, row in rows.items()
        if name.split()[0] not in LOSSES or 'image_blind' in name}
    for row in result['controls'].values():
        del row['seed']
    result['chance_recall_at_1_local'] = chance_recall(next(iter(rows.values())))
    result['queries'] = len(queries.place)
    result['stretches'] = len(np.unique(queries.block))
    return result


def median_of_runs(error_m: np.ndarray) -> float:
    """The mean over training runs (S, Q) of each one's median."""
    return float(np.median(error_m, axis=1).mean())


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == 'cuda' else (
        f'{cpu_name()}, {torch.get_num_threads()} thread(s)')


def run(plan_name: str, seeds: list[int], out: Path, kept: tuple[Path, Path], device: str) -> dict:
    """Run the comparison; ``kept`` are the result and frames file into which it is merged."""
    plan = PLANS[plan_name]
    result_path, frames_path = kept
    worlds = worlds_of(plan, out / 'worlds')
    places = places_of(plan, worlds)
    digest = world_hash(plan, worlds)
    print(f'{len(places)} places, {int(places.trainable().sum())} of them train; world and budget '
          f'{digest}', flush=True)
    result = {
        'plan': plan_name, 'world_hash': digest, 'device': device_name(device),
        'torch': torch.__version__, 'steps': plan.train.steps, 'batch': plan.pairs.batch,
        'places': len(places), 'days': [plan.train_days, plan.val_days, plan.test_days],
        'towns': plan.towns, 'route_km': plan.towns * plan.route_m / 1000.0,
        'neighbours_in_random_batch': neighbours_in_random_batch(places, plan.pairs.batch),
        'images_in_local_batch': images_in_local_batch(plan, places),
        'setting': 'simulation; transductive: the tiles of all days are in the database',
        'frames': frames_path.name, 'rates': {}, 'rate': {}, 'rate_steps': plan.rate_steps,
        'minutes_of_runs': {}, 'validation_of_runs': {}}
    queries, rows = None, {}
    if result_path.is_file() and frames_path.is_file():
        before = json.loads(result_path.read_text())
        if before['world_hash'] != digest:
            raise ValueError(
                f'{result_path} is of world and budget {before["world_hash"]}, this is {digest}; '
                'move it away to start again')
        result |= before
        queries, rows = read_queries(frames_path)
    # The names keep the files of other worlds and budgets apart.
    trainer = Trainer(plan, places, out / digest, device,
                      out / f'maps_{world_hash(None, worlds)}_{plan.model.tile_px}')

    if 'random_init' not in rows:
        queries, found = trainer.judge(trainer.network(0))
        rows['random_init'] = found['']
    # The claim first, so that a comparison that is stopped early says most about it.
    claim = [(seed, kind) for seed in seeds for kind in plan.losses if kind != 'eccvw']
    for seed, kind in claim + [(seed, 'eccvw') for seed in seeds if 'eccvw' in plan.losses]:
        name = f'{kind} {seed}'
        if name in rows:
            continue
        if kind not in result['rate']:
            result['rate'][kind], result['rates'][kind] = trainer.choose_rate(kind)
        print(f'{kind} loss, seed {seed}', flush=True)
        path = trainer.weights(kind, seed)
        lines = trainer.train(kind, result['rate'][kind], seed, plan.train.steps, path)
        result['minutes_of_runs'][name] = minutes_of(lines)
        result['validation_of_runs'][name] = {
            line['step']: line['recall_at_1_local'] for line in lines}
        queries, found = trainer.judge(trainer.network(seed, path))
        rows |= {f'{name}{row}': one for row, one in found.items()
                 if seed == plan.seeds[0] or 'image_blind' not in row}
        write_queries(frames_path, queries, rows)
        write_result(result, frames_path, result_path)
    write_result(result, frames_path, result_path)
    draw_figure(trainer, worlds, seeds[0], result_path.with_suffix('.jpg'))
    return result


def draw_figure(trainer: Trainer, worlds: list[World], seed: int, path: Path) -> None:
    """Heat maps of 100 m and feature maps of both losses, of one seed.

    The images are the middle ones of the last test day, of at most three towns.
    """
    from training.paper_figures import heatmaps

    networks = {f'{kind} loss': initial_network(
        trainer.plan.model, seed, trainer.weights(kind, seed)).eval()
        for kind in ('local', 'global')}
    shown = []
    for world in worlds[:3]:
        last = np.flatnonzero(world.drive == world.drive.max())
        shown.append((world, int(last[len(last) // 2])))
    figure = heatmaps(networks, shown, [100.0], 5.0, 'Simulation', features=True)
    figure.savefig(path, dpi=70, pil_kwargs={'quality': 80})


def write_result(result: dict, frames_path: Path, path: Path) -> None:
    """Complete the result from the frames file and write it."""
    result |= compare(*read_queries(frames_path))
    result['minutes'] = sum(result['minutes_of_runs'].values())
    path.write_text(json.dumps(result, indent=1) + '\n')


def evaluate_shipped(seed: int, weights: Path, out: Path, device: str) -> dict:
    """The shipped weights on a town they never saw: queries of one day, tiles of two days.

    Their ground view is turned by the true heading, which the result says.
    """
    started_s = time.monotonic()
    network = load_network(weights, device)
    model = network.config
    folder = out / 'worlds'
    folder.mkdir(parents=True, exist_ok=True)
    world = load_world(simulate(
        seed, folder, (320, 240), 1.0, 130.0, 2, 2, model.px_m, ortho_px_m=0.25))
    places = places_of_world(
        world, {0: 'train', 1: 'test'}, model.tile_px, model.ground_view, model.view_px)

    def judged(network):
        queries, rows = evaluate(
            network, places, 'test', RADIUS_M, TOLERANCE_M, 0.0, 0, device)
        return queries, rows

    queries, found = judged(network)
    rows = {'local 0': found['match'], 'local 0 image_blind': found['image_blind']}
    for control in ('random_init:1', 'raw_correlation'):
        rows[control.split(':')[0]] = judged(load_network(control, device, weights))[1]['match']
    write_queries(out / 'frames.csv.gz', queries, rows)
    return compare(*read_queries(out / 'frames.csv.gz')) | {
        'device': device_name(device), 'torch': torch.__version__,
        'minutes': (time.monotonic() - started_s) / 60.0,
        'world_hash': world_hash(None, [world]), 'weights': weights.name,
        'fingerprint': network.fingerprint, 'places': len(places),
        'setting': 'simulation; shipped weights, a town unknown to them, heading known; '
                   'the tiles of both days are in the database'}


def table(result: dict) -> str:
    lines = [f'{"network":22} local recall@1 %  global recall@1 %  median m  mean m   p95 m']

    def line(name, row):
        lines.append(
            f'{name:22} {row["recall_at_1_local"]:16.1f} {row["recall_at_1_global"]:18.1f} '
            f'{row["median_m"]:9.2f} {row["mean_m"]:7.2f} {row["p95_m"]:7.2f}')

    for kind in LOSSES:
        for row in result.get(kind, ()):
            line(f'{kind} {row["seed"]}', row)
    for name, row in result['controls'].items():
        line(name, row)
    lines.append(f'{"chance":22} {result["chance_recall_at_1_local"]:16.1f}')
    for name, found in result['differences'].items():
        points, median_m = found['recall_at_1_local_points'], found['median_m']
        lines.append(
            f'{name}, minus global: {points[1]:+.1f} points [{points[0]:+.1f}, {points[2]:+.1f}], '
            f'median {median_m[1]:+.2f} m [{median_m[0]:+.2f}, {median_m[2]:+.2f}]')
    if 'goal' in result:
        lines.append(f'goal of {GOAL_POINTS:g} points '
                     f'{"reached" if result["goal"]["reached"] else "MISSED"}')
    return '\n'.join(lines)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy.paper', description=__doc__.splitlines()[0],
        epilog='example: python -m benchmarks.accuracy.paper --out build/paper --seeds 0 1 2')
    parser.add_argument('--plan', choices=[name for name in PLANS if name != 'smoke'],
                        default='cpu', help='world and budget (default cpu)')
    parser.add_argument('--seeds', nargs='+', type=int, metavar='N',
                        help="training seeds (default: the plan's); others are merged")
    parser.add_argument('--out', type=Path, default=REPOSITORY / 'build/paper',
                        help='folder of world, runs and their states (default build/paper)')
    only = parser.add_mutually_exclusive_group()
    only.add_argument('--smoke', action='store_true',
                      help='a tiny world and a few steps; the result is written to --out only')
    only.add_argument('--eval-only', action='store_true',
                      help='test the shipped weights on a new town; written to --out only')
    parser.add_argument('--world-seed', type=int, default=710,
                        help='seed of that town (default 710)')
    parser.add_argument('--weights', type=Path, default=TILE_WEIGHTS,
                        help='weights for --eval-only')
    parser.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='torch threads')
    return run_command(
        parser, arguments, _run, 'interrupted; the same command goes on from here')


def _run(args: argparse.Namespace) -> None:
    device, warning = prepare_torch(args.device, args.threads)
    if warning:
        print(warning)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.eval_only:
        result = evaluate_shipped(args.world_seed, args.weights, args.out, device)
        (args.out / 'paper.json').write_text(json.dumps(result, indent=1) + '\n')
        shown = args.out / 'paper.json'
    else:
        name = 'smoke' if args.smoke else args.plan
        title = 'paper' if name in ('cpu', 'smoke') else f'paper_{name}'
        folder = args.out if args.smoke else RESULTS
        kept = folder / f'{title}.json', folder / f'{title}_frames.csv.gz'
        result = run(name, args.seeds or list(PLANS[name].seeds), args.out, kept, device)
        shown = kept[0]
    print(table(result))
    print(shown)


if __name__ == '__main__':
    sys.exit(main())
