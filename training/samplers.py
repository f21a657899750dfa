"""Samplers: which images a training step sees together.

``LocalBatchSampler`` is the papers' sampler over places that have a satellite tile each,
``RandomBatchSampler`` that of their global baseline; ``LocalGroupSampler`` draws groups of images
that share one satellite area. Shape legend: N places, B pairs of a batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree


@dataclass(frozen=True)
class PairBatch:
    """Ground images, each with a satellite tile near it (of the same place or of a neighbour).

    ``ground`` and ``satellite`` (B,) are numbers of places. ``has_ground`` (B,) is False if
    the ground image is missing or held out: only the tile of that place takes part, as a negative.
    ``distance_m`` (B, B) float64 is the distance from tile i to ground image j.
    """

    ground: np.ndarray
    satellite: np.ndarray
    has_ground: np.ndarray
    distance_m: np.ndarray


class _Neighbours:
    """For each place the others that are farther than ``above_m`` and at most ``up_to_m`` away."""

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


class _PairMaker:
    """Gives each place of a batch a tile within ``positive_m`` of it, drawn uniformly."""

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
        # Centred, so that a large false northing costs no precision.
        self.tree = cKDTree(self.positions_m - self.positions_m.mean(0))
        self._positives = _Neighbours(self.tree, -1.0, positive_m)

    def make_batch(self, ground: np.ndarray, rng: np.random.Generator) -> PairBatch:
        satellite = np.empty_like(ground)
        for k, place in enumerate(ground):
            near = self._positives.of(place)
            draw = rng.integers(len(near) + 1)
            satellite[k] = place if draw == len(near) else near[draw]
        offset_m = self.positions_m[satellite][:, None] - self.positions_m[ground][None]
        return PairBatch(
            ground, satellite, self.has_ground[ground], np.linalg.norm(offset_m, axis=2))


class LocalBatchSampler:
    """The papers' geographically local batches: a random place and others near it.

    The sampler walks the places in random order. Each place that is still free becomes a centre;
    its batch is the centre and the next ``size`` - 1 free places of the order that are farther
    than ``positive_m`` and at most ``radius_m`` from it, which are then no longer free. A centre
    with too few such places gives no batch. Places without a ground image (``has_ground`` (N,)
    False) take part too, with their satellite tiles as negatives: training knows the tiles of the
    test drives, as in the papers (the transductive setting). A batch without any ground image is
    left out.

    With ``original_epoch_end``, the places that a centre with too few of them found are no longer
    free either, as in the authors' code. On the 12 Oxford drives with published times (18 765
    places) that gives 228 to 233 batches of 64 per epoch, without it 240 to 246.
    Raises ValueError if shapes do not fit or a position is not finite.
    """

    def __init__(self, positions_m: np.ndarray, has_ground: np.ndarray, size: int = 64,
                 radius_m: float = 50.0, positive_m: float = 5.0,
                 original_epoch_end: bool = False):
        if size < 2:
            raise ValueError(f'batch size is {size}; expected at least 2')
        self._pair_maker = _PairMaker(positions_m, has_ground, positive_m)
        self._near = _Neighbours(self._pair_maker.tree, positive_m, radius_m)
        self.size = size
        self.original_epoch_end = original_epoch_end

    def epoch(self, seed: int) -> Iterator[PairBatch]:
        """Yield the batches of one epoch, the same for the same seed."""
        rng = np.random.default_rng(seed)
        count = len(self._pair_maker.positions_m)
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
            if self.original_epoch_end or self._pair_maker.has_ground[batch].any():
                yield self._pair_maker.make_batch(batch, rng)


class RandomBatchSampler:
    """The global baseline's batches: ground images in random order, wherever they are.

    Only places with a ground image take part; the last images, if too few for a batch, do not.
    """

    def __init__(self, positions_m: np.ndarray, has_ground: np.ndarray, size: int,
                 positive_m: float = 5.0):
        self._pair_maker = _PairMaker(positions_m, has_ground, positive_m)
        self.size = size

    def epoch(self, seed: int) -> Iterator[PairBatch]:
        """Yield the batches of one epoch, the same for the same seed."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(np.flatnonzero(self._pair_maker.has_ground))
        for first in range(0, len(order) - self.size + 1, self.size):
            yield self._pair_maker.make_batch(order[first:first + self.size], rng)


@dataclass(frozen=True)
class LocalGroup:
    """Images of one world near one place; ``centre_m`` (2,) is the satellite area's middle."""

    world: int
    centre_m: np.ndarray
    members: np.ndarray


class LocalGroupSampler:
    """Groups of images that are near each other; in an epoch each image is once a group's first.

    ``positions`` holds the image positions (N, 2), metres, of each world. The area of a group is
    centred at most ``jitter_m`` off its first image on each axis; the others are drawn from the
    images within ``half_width_m`` of that centre on both axes. A group has 2 to ``size`` images.
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
        """Yield the groups of one epoch, the same for the same seed."""
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
