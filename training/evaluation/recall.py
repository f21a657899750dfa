"""The papers' retrieval metrics: recall, global and within the prior, and errors in metres.

The setting is transductive, as in the papers: the database holds the satellite tiles of all
places, including those of the test drives, and training may have seen these tiles (but never the
test's ground images). Oxford's test drives take the same streets as its training drives on other
days: these metrics do not tell how a network does in a town that it has not seen.

A tile is right if it lies within ``tolerance_m`` of the query's true position (5 m for Oxford; 0
for CVACT: only the tile of the same place). A query is a hit at k if fewer than k wrong tiles are
as near in descriptor space as the nearest right one. A tie is not a hit, so a network with the
same descriptor for every place hits nothing. In local recall only the tiles within ``radius_m``
of the prior's centre compete.

Shape legend: N tiles, Q queries, K descriptor length, S seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from crossview_localizer.geometry import body_axes_error

KS = tuple(range(1, 11))
BLOCK_M = 200.0
NEVER = np.iinfo(np.int64).max      # rank of a query without a right tile
CHUNK = 256                         # queries whose distances are in memory at once
TIE = 2e-6                          # distances (0 to 4) that single precision does not distinguish


@dataclass(frozen=True)
class Retrieval:
    """The result of each query, (Q,).

    ``global_rank`` and ``local_rank`` count the wrong tiles that are at least as near as the
    nearest right one (NEVER if there is no right tile). ``picked`` is the nearest tile within
    the prior (among tied ones the one farthest from the truth; -1 if the prior holds none) and
    ``error_m`` (Q, 2) leads from the truth to it, NaN where there is none. ``candidates`` and
    ``right`` count the tiles within the prior, and the right ones among them.
    ``second_moment_m2`` (Q, 2, 2) is the second moment of the prior's tiles about the picked one,
    weighted by exp(-distance / temperature): the covariance that the scores claim.
    """

    global_rank: np.ndarray
    local_rank: np.ndarray
    picked: np.ndarray
    error_m: np.ndarray
    candidates: np.ndarray
    right: np.ndarray
    second_moment_m2: np.ndarray


def retrieve(
    satellite: np.ndarray, ground: np.ndarray, tiles_m: np.ndarray, queries_m: np.ndarray,
    radius_m: float = 50.0, tolerance_m: float = 5.0, centres_m: np.ndarray | None = None,
    temperature: float = 0.1,
) -> Retrieval:
    """Rank unit descriptors ``satellite`` (N, K) by distance to each of ``ground`` (Q, K).

    ``tiles_m`` (N, 2) and ``queries_m`` (Q, 2) are positions in float64. ``centres_m`` (Q, 2) is
    the centre of the prior (see ``noisy_centres``), by default the true position, as in the
    papers. Raises ValueError if shapes do not fit or a descriptor is not finite.
    """
    _require_shapes(satellite, ground, tiles_m, queries_m)
    tiles_m, queries_m = np.asarray(tiles_m, np.float64), np.asarray(queries_m, np.float64)
    centres_m = queries_m if centres_m is None else np.asarray(centres_m, np.float64)
    count = len(queries_m)
    global_rank, local_rank = np.full(count, NEVER), np.full(count, NEVER)
    picked, error_m = np.full(count, -1), np.full((count, 2), np.nan)
    candidates, right = np.zeros(count, np.int64), np.zeros(count, np.int64)
    moment_m2 = np.full((count, 2, 2), np.nan)
    # A little more than asked, so that tolerance 0 takes equal positions.
    middle = tiles_m.mean(0)
    tree = cKDTree(tiles_m - middle)
    near = tree.query_ball_point(queries_m - middle, tolerance_m + 1e-6)
    inside = tree.query_ball_point(centres_m - middle, radius_m + 1e-6)
    for first in range(0, count, CHUNK):
        distances = 2.0 - 2.0 * (ground[first:first + CHUNK] @ satellite.T)     # (chunk, N)
        for query, distance in enumerate(distances, first):
            correct = np.zeros(len(tiles_m), bool)
            correct[near[query]] = True
            if correct.any():
                best = distance[correct].min()
                global_rank[query] = np.count_nonzero(distance[~correct] <= best + TIE)
            local = np.sort(np.array(inside[query], np.int64))
            candidates[query], right[query] = len(local), np.count_nonzero(correct[local])
            if not len(local):
                continue
            mine, others = local[correct[local]], local[~correct[local]]
            if len(mine):
                local_rank[query] = np.count_nonzero(
                    distance[others] <= distance[mine].min() + TIE)
            tied = local[distance[local] <= distance[local].min() + TIE]
            offsets_m = tiles_m[tied] - queries_m[query]
            worst = int(np.argmax(np.hypot(*offsets_m.T)))
            picked[query], error_m[query] = tied[worst], offsets_m[worst]
            weight = np.exp(-(distance[local] - distance[local].min()) / temperature)
            around_m = tiles_m[local] - tiles_m[tied[worst]]
            moment_m2[query] = np.einsum('n,ni,nj->ij', weight / weight.sum(), around_m, around_m)
    return Retrieval(
        global_rank, local_rank, picked, error_m, candidates, right, moment_m2)


def _require_shapes(satellite, ground, tiles_m, queries_m) -> None:
    if satellite.ndim != 2 or ground.ndim != 2 or satellite.shape[1] != ground.shape[1] \
            or np.shape(tiles_m) != (len(satellite), 2) \
            or np.shape(queries_m) != (len(ground), 2):
        raise ValueError(
            f'descriptors {satellite.shape} of tiles at {np.shape(tiles_m)} and {ground.shape} of '
            f'queries at {np.shape(queries_m)}; expected (N, K), (N, 2), (Q, K), (Q, 2)')
    for name, values in (('satellite', satellite), ('ground', ground)):
        if not np.isfinite(values).all():
            raise ValueError(f'a {name} descriptor is not finite')


def noisy_centres(queries_m: np.ndarray, sigma_m: float, seed: int) -> np.ndarray:
    """Centres (Q, 2) of priors whose errors are Gaussian with ``sigma_m`` on each axis."""
    rng = np.random.default_rng(seed)
    return np.asarray(queries_m, np.float64) + rng.normal(0.0, sigma_m, np.shape(queries_m))


def recall(rank: np.ndarray, k: int) -> float:
    """Percent of queries (any shape) with fewer than ``k`` wrong tiles before a right one."""
    return float(100.0 * np.mean(rank < k))


def chance_recall(found: Retrieval) -> float:
    """Percent of hits at 1 if the tile were drawn at random from within the prior."""
    share = found.right / np.maximum(found.candidates, 1)
    return float(100.0 * share.mean())


def blocks_along(positions_m: np.ndarray, drive: np.ndarray,
                 length_m: float = BLOCK_M) -> np.ndarray:
    """The number (Q,) of each query's stretch of ``length_m``, for drives in time order.

    Neighbouring queries see the same street, so the bootstrap draws whole stretches.
    """
    block = np.empty(len(positions_m), np.int64)
    last = 0
    for name in dict.fromkeys(np.asarray(drive).tolist()):
        mine = np.flatnonzero(drive == name)
        steps_m = np.linalg.norm(np.diff(positions_m[mine], axis=0), axis=1)
        travelled_m = np.concatenate(([0.0], np.cumsum(steps_m)))
        block[mine] = last + (travelled_m // length_m).astype(np.int64)
        last = int(block[mine].max()) + 1
    return block


def blocks_on_grid(positions_m: np.ndarray, length_m: float = BLOCK_M) -> np.ndarray:
    """The number (Q,) of each query's square of ``length_m``; for data without drives (CVACT)."""
    cells = np.floor(np.asarray(positions_m) / length_m).astype(np.int64)
    return np.unique(cells, axis=0, return_inverse=True)[1].ravel()


def bootstrap(
    statistic: Callable[..., float], blocks: np.ndarray, *samples: np.ndarray,
    count: int = 1000, seed: int = 0,
) -> tuple[float, float, float]:
    """(low, value, high): the statistic of all samples, and the 95 % interval of its percentiles.

    Each of ``samples`` is (S, Q), one row per training seed, of the same seeds and queries. Seeds
    and blocks of queries are drawn with replacement, the same for every sample, so that the
    statistic may be a paired difference of two samples. With one seed only blocks are drawn.
    Raises ValueError if shapes do not fit.
    """
    blocks = np.asarray(blocks)
    if not samples or any(sample.ndim != 2 or sample.shape != samples[0].shape
                          or sample.shape[1] != len(blocks) for sample in samples):
        raise ValueError(
            f'samples {[sample.shape for sample in samples]} and blocks {blocks.shape}; '
            'expected (S, Q) each and (Q,)')
    members = [np.flatnonzero(blocks == block) for block in np.unique(blocks)]
    seeds = samples[0].shape[0]
    rng = np.random.default_rng(seed)
    values = np.empty(count)
    for draw in range(count):
        rows = rng.integers(seeds, size=seeds)
        chosen = rng.integers(len(members), size=len(members))
        columns = np.concatenate([members[k] for k in chosen])
        values[draw] = statistic(*(sample[np.ix_(rows, columns)] for sample in samples))
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(statistic(*samples)), float(high)


def summarize(found: Retrieval, yaw_rad: np.ndarray, blocks: np.ndarray,
              seed: int = 0) -> dict[str, object]:
    """All metrics of one set of queries; [low, value, high] for those with an interval.

    Recalls are in percent. Errors are those of the tile picked within the prior, over the queries
    that have one (``n`` of ``n_queries``); longitudinal is positive ahead of the vehicle, lateral
    to its left. A metric without any query is None.
    """
    length_m = np.hypot(*found.error_m.T)
    known = np.isfinite(length_m)
    error_m = length_m[known][None]
    metrics = {
        'n_queries': len(known), 'n': int(known.sum()),
        'blocks': len(np.unique(blocks)), 'chance_recall_at_1_local': chance_recall(found)}
    for name, rank in (('global', found.global_rank), ('local', found.local_rank)):
        metrics[f'recall_{name}'] = {k: recall(rank, k) for k in KS}
        metrics[f'recall_at_1_{name}'] = list(bootstrap(
            lambda drawn: recall(drawn, 1), blocks, rank[None], seed=seed))
    statistics = {
        'median_m': np.median, 'mean_m': np.mean, 'p95_m': lambda drawn: np.percentile(drawn, 95)}
    for name, statistic in statistics.items():
        metrics[name] = list(bootstrap(statistic, blocks[known], error_m, seed=seed)) \
            if known.any() else None
    turned = known & np.isfinite(yaw_rad)
    ahead_m, left_m = body_axes_error(found.error_m[turned], yaw_rad[turned])
    for name, signed_m in (('longitudinal', ahead_m), ('lateral', left_m)):
        metrics[f'{name}_mean_m'] = float(signed_m.mean()) if len(signed_m) else None
        metrics[f'{name}_median_abs_m'] = float(np.median(np.abs(signed_m))) \
            if len(signed_m) else None
    return metrics
