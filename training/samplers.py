"""Which images are seen together in a training step.

``LocalBatchSampler`` is the papers' sampler over places with a satellite tile each,
``RandomBatchSampler`` that of their global baseline; ``LocalGroupSampler`` draws groups that share
one satellite area.  Shape legend: N places, B pairs of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class PairBatch:
    """Ground images, and for each a satellite tile near it that need not be its own.

    ``ground`` and ``satellite`` (B,) number places.  ``has_ground`` (B,) is False where the ground
    image is held out: its place takes part with its tile alone, as a negative.  ``distance_m``
    (B, B) float64 leads from tile i to ground image j.
    """

    ground: np.ndarray
    satellite: np.ndarray
    has_ground: np.ndarray
    distance_m: np.ndarray


class _Neighbours:
    """Places within a reach of each place, without itself, by distance classes."""

    def __init__(self, tree: cKDTree, above_m: float, up_to_m: float):
        pairs = tree.query_pairs(up_to_m, output_type='ndarray')               # (P, 2), i < j
        apart_m = np.linalg.norm(tree.data[pairs[:, 0]] - tree.data[pairs[:, 1]], axis=1)
        pairs = pairs[apart_m > above_m].astype(np.int32)
        rows = np.concatenate((pairs[:, 0], pairs[:, 1]))
        order = np.argsort(rows, kind='stable')
        self._others = np.concatenate((pairs[:, 1], pairs[:, 0]))[order]
        self._first = np.searchsorted(rows[order], np.arange(tree.n + 1))

    def of(self, place: int) -> np.ndarray:
        return self._others[self._first[place]:self._first[place + 1]]


class _Pairing:
    """Gives each place of a batch a tile within ``positive_m`` of it, drawn evenly."""

    def __init__(self, positions_m: np.ndarray, has_ground: np.ndarray, positive_m: float):
        self.positions_m = np.asarray(positions_m, np.float64)
        self.has_ground = np.asarray(has_ground, bool)
        if self.positions_m.ndim != 2 or self.positions_m.shape[1] != 2 \
                or self.has_ground.shape != (len(self.positions_m),):
            raise ValueError(
                f'positions {self.positions_m.shape} and has_ground {self.has_ground.shape}; '
                'expected (N, 2) and (N,)')
        if not np.isfinite(self.positions_m).all():
            raise ValueError('a position is not finite; expected metres')
        # Exact to 1e-12 of the extent whatever the false northing.
        self.tree = cKDTree(self.positions_m - self.positions_m.mean(0))
        self._positives = _Neighbours(self.tree, -1.0, positive_m)

    def batch(self, ground: np.ndarray, rng: np.random.Generator) -> PairBatch:
        satellite = np.empty_like(ground)
        for k, place in enumerate(ground):
            near = self._positives.of(place)
            draw = rng.integers(len(near) + 1)
            satellite[k] = place if draw == len(near) else near[draw]
        offset_m = self.positions_m[satellite][:, None] - self.positions_m[ground][None]
        return PairBatch(
            ground, satellite, self.has_ground[ground], np.linalg.norm(offset_m, axis=2))


class LocalBatchSampler:
    """The papers' geographically local batches: a random place, and others near it.

    Walks the places in random order.  Each that is still free becomes a centre and takes the next
    ``size`` - 1 free ones of the order that are farther than ``positive_m`` and at most
    ``radius_m`` from it; those are used up, the centre is not asked for again.  A centre that
    finds too few gives no batch.  Places without a ground image (``has_ground`` (N,) False) take
    part like the others: their satellite tiles are negatives, so the tiles of the test drives are
    known in training, as in the papers (the transductive setting).  A batch of such places
    alone would teach nothing and is left out.

    With ``original_epoch_end`` a centre that finds too few uses up what it found, as the authors'
    code does towards the end of its list (its test for the end compares with the full count and
    never stops before); here those places stay free for later centres.  On the 12 Oxford drives
    with published times, 18 765 places, this makes 240 to 246 batches of 64 instead of 228 to 233.
    The neighbourhoods are found once: that takes a second there, an epoch a tenth of one.
    Raises ValueError where shapes do not fit or a position is not finite.
    """

    def __init__(self, positions_m: np.ndarray, has_ground: np.ndarray, size: int = 64,
                 radius_m: float = 50.0, positive_m: float = 5.0,
                 original_epoch_end: bool = False):
        if size < 2:
            raise ValueError(f'batch size is {size}; expected at least 2')
        self._pairing = _Pairing(positions_m, has_ground, positive_m)
        self._near = _Neighbours(self._pairing.tree, positive_m, radius_m)
        self.size = size
        self.original_epoch_end = original_epoch_end

    def epoch(self, seed: int) -> Iterator[PairBatch]:
        """Yield the batches of one epoch; the same seed gives the same batches."""
        rng = np.random.default_rng(seed)
        count = len(self._pairing.positions_m)
        order = rng.permutation(count)
        rank = np.empty(count, np.int64)
        rank[order] = np.arange(count)
        free = np.ones(count, bool)
        for centre in order:
            if not free[centre]:
                continue
            near = self._near.of(centre)
            if len(near) < self.size - 1:
                continue
            near = near[free[near] & (rank[near] > rank[centre])]
            if len(near) < self.size - 1:
                if self.original_epoch_end:
                    free[near] = False
                continue
            chosen = near[np.argsort(rank[near])[:self.size - 1]]
            free[chosen] = False
            batch = np.concatenate(([centre], chosen))
            if self.original_epoch_end or self._pairing.has_ground[batch].any():
                yield self._pairing.batch(batch, rng)


class RandomBatchSampler:
    """The baseline's batches: ground images in random order, wherever they are.

    Only places with a ground image take part; what does not fill a batch is left out.
    """

    def __init__(self, positions_m: np.ndarray, has_ground: np.ndarray, size: int,
                 positive_m: float = 5.0):
        self._pairing = _Pairing(positions_m, has_ground, positive_m)
        self.size = size

    def epoch(self, seed: int) -> Iterator[PairBatch]:
        """Yield the batches of one epoch; the same seed gives the same batches."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(np.flatnonzero(self._pairing.has_ground))
        for first in range(0, len(order) - self.size + 1, self.size):
            yield self._pairing.batch(order[first:first + self.size], rng)


@dataclass(frozen=True)
class LocalGroup:
    """Images of one world near one place; ``centre_m`` (2,) is the satellite area's middle."""

    world: int
    centre_m: np.ndarray
    members: np.ndarray


class LocalGroupSampler:
    """An epoch of local groups: every image is once the centre, its companions are near.

    ``positions`` holds, a world, the images' (N, 2) metres.  A group's companions are drawn from
    the images within ``half_width_m`` of the jittered centre on both axes; a place with fewer than
    ``size`` images gives a smaller group, never fewer than two.
    """

    def __init__(self, positions: list[np.ndarray], size: int, half_width_m: float,
                 jitter_m: float):
        self.positions = positions
        self.size = size
        self.half_width_m = half_width_m
        self.jitter_m = jitter_m
        self._starts = [(w, k) for w, xy in enumerate(positions) for k in range(len(xy))]

    def __len__(self) -> int:
        return len(self._starts)

    def epoch(self, seed: int):
        """Yield the groups of one epoch; the same seed gives the same groups."""
        rng = np.random.default_rng(seed)
        for start in rng.permutation(len(self._starts)):
            world, image = self._starts[start]
            xy = self.positions[world]
            centre_m = xy[image] + rng.uniform(-self.jitter_m, self.jitter_m, 2)
            near = np.flatnonzero((np.abs(xy - centre_m) <= self.half_width_m).all(1))
            others = near[near != image]
            if len(others) == 0:
                continue
            chosen = rng.permutation(others)[:self.size - 1]
            yield LocalGroup(world, centre_m, np.concatenate(([image], chosen)))
