"""The papers' recipe: batches of ground images, each with one satellite tile near it.

All pairs of a batch compete.  A batch may pass the network in chunks, and its parts may lie on
several ranks: the loss sees all descriptors of the batch at once, then each part is encoded again
with its share of the gradient (Gao et al. 2021, "GradCache"), so that neither changes a result.
Shape legend: B pairs of a batch, S tiles, G ground images, K descriptor length, N places.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import logsumexp
import torch
from torch import nn
import torch.nn.functional as F

from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.networks.safa import SafaNetwork
from training.data.datasets import Places
from training.distributed import Ranks
from training.evaluation.recall import recall, retrieve
from training.losses import CrossViewLoss
from training.recipes.areas import jitter_colours
from training.samplers import LocalBatchSampler, PairBatch, RandomBatchSampler

READERS = 4          # threads that read images ahead of the network
GROUND, SATELLITE = 0, 1


@dataclass(frozen=True)
class PairConfig:
    """What a step sees; lengths in metres."""

    sampler: str = 'local'       # or random, the global baseline's
    batch: int = 64
    radius_m: float = 50.0       # of the local sampler, and of the prior in validation
    positive_m: float = 5.0      # tiles this near to a ground image are right; 0: its own alone
    correct_m: float = 5.0       # in validation
    chunk: int = 0               # images a forward pass; 0: all of the batch
    turns: str = 'tile'          # quarter turns of each tile, of scene (tile and view), or none
    colours: bool = False        # another day's light on every image
    drop_block: bool = False     # blocks of the input images dropped (RA-L)
    held_out_tiles: bool = True  # of val and test, as the local sampler's negatives (papers)


class DropBlock(nn.Module):
    """Drops blocks of the normalised images, each colour for itself; nothing in evaluation.

    Ghiasi et al. 2018 with the papers' sizes: seeds of probability
    (1 - keep) W H / block^2 / ((W - block + 1) (H - block + 1)), blocks about them set to zero,
    the rest scaled by all over kept.
    """

    def __init__(self, block: int = 15, keep: float = 0.8):
        super().__init__()
        self.block, self.keep = block, keep

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return images
        height, width = images.shape[2:]
        rows, cols = height - self.block + 1, width - self.block + 1
        share = (1.0 - self.keep) * width * height / self.block ** 2 / (rows * cols)
        seeds = torch.rand(*images.shape[:2], rows, cols, device=images.device) < share
        blocks = F.max_pool2d(
            F.pad(seeds.float(), [self.block - 1] * 4), self.block, 1)  # (B, 3, H, W)
        kept = 1.0 - blocks
        return images * kept * (kept.numel() / kept.sum().clamp(min=1.0))


@dataclass(frozen=True)
class _Part:
    """Images of one side that pass the network at once, and their rows in the batch."""

    side: int
    rows: np.ndarray
    seed: int


class PairRecipe:
    """Steps over the training places, validation on the queries of split ``val``."""

    score_name = 'misses_local_percent'

    def __init__(self, config: PairConfig, seed: int, places: Places):
        self.config, self.seed, self.places = config, seed, places
        # Places that the sampler draws from, and their numbers among all.
        self._drawn = np.arange(len(places)) if config.held_out_tiles \
            else np.flatnonzero(places.trainable())
        known = places.positions_m[self._drawn], places.trainable()[self._drawn]
        if config.sampler == 'local':
            self._sampler = LocalBatchSampler(
                *known, config.batch, config.radius_m, config.positive_m)
        elif config.sampler == 'random':
            self._sampler = RandomBatchSampler(*known, config.batch, config.positive_m)
        else:
            raise ValueError(f'sampler is {config.sampler!r}; expected local or random')
        if len(places.queries('val')) == 0:
            raise ValueError('no place with a ground image is of the split val; expected some to '
                             'choose the best weights by')
        self._epoch, self._first, self._batches = 0, 0, self._sample(0)
        self.epoch_length = len(self._batches)
        self._readers = ThreadPoolExecutor(READERS)
        self._ahead: tuple[int, list] = (-1, [])  # a step, and the images being read for it

    def backward(self, network: SafaNetwork, criterion: CrossViewLoss, step: int,
                 ranks: Ranks) -> float:
        """Add one step's gradients to the parameters; returns the loss of the whole batch."""
        batch = self._batch(step)
        parts = self._parts(batch, step, ranks)
        reading = self._ahead[1] if self._ahead[0] == step else self._read(step, ranks)
        self._ahead = (step + 1, self._read(step + 1, ranks))
        images = self._augmented(batch, step, parts, reading)
        known = np.flatnonzero(batch.has_ground)
        encode = (network.ground_descriptors, network.satellite_descriptors)
        once = len(parts) <= 2  # a part a side: its graph can stay

        # Descriptors of the whole batch, every rank's.
        length = network.config.heads * network.config.channels
        whole = [torch.zeros(len(known), length, device=ranks.device),
                 torch.zeros(len(batch.satellite), length, device=ranks.device)]
        graphs = []
        for part, pixels in zip(parts, images):
            torch.manual_seed(part.seed)  # dropout is the same the second time
            with torch.set_grad_enabled(once), ranks.autocast():
                described = encode[part.side](pixels.to(ranks.device)).float()
            whole[part.side][part.rows] = described.detach()
            graphs.append(described if once else None)

        # Their gradients; each rank has the same, and they will be summed over the ranks.
        for descriptors in whole:
            ranks.sum_(descriptors).requires_grad_()
        distance = torch.from_numpy(batch.distance_m[:, known]).float().to(ranks.device)
        loss = criterion(whole[SATELLITE], whole[GROUND],
                         torch.from_numpy(known).to(ranks.device), distance)
        (loss / ranks.count).backward()

        for part, pixels, described in zip(parts, images, graphs):
            if described is None:
                torch.manual_seed(part.seed)
                with ranks.autocast():
                    described = encode[part.side](pixels.to(ranks.device)).float()
            described.backward(whole[part.side].grad[part.rows] * ranks.count)
        return float(loss.detach())

    def validate(self, network: SafaNetwork, ranks: Ranks) -> tuple[dict[str, float], float]:
        """Metrics, among them ``score_name``, of which less is better; and the temperature.

        The prior is a disc of ``radius_m`` about the truth, as in the papers; tiles of all places
        compete (see ``recall``).  ``nll`` is that of the tile nearest to the truth, under a
        softmax over the disc.
        """
        places, config = self.places, self.config
        queries = places.queries('val')
        tiles = self._describe_all(network.satellite_descriptors, places.read_satellite,
                                   np.arange(len(places)), ranks)               # (N, K)
        ground = self._describe_all(
            network.ground_descriptors, places.read_ground, queries, ranks)     # (Q, K)
        found = retrieve(tiles, ground, places.positions_m, places.positions_m[queries],
                         config.radius_m, config.correct_m)
        error_m = np.hypot(*found.error_m.T)

        local = []  # minus the distances in each disc, and which is the nearest tile's
        for row, place in enumerate(queries):
            apart_m = np.linalg.norm(places.positions_m - places.positions_m[place], axis=1)
            inside = np.flatnonzero(apart_m <= config.radius_m)
            scores = 2.0 * (tiles[inside] @ ground[row]).astype(np.float64) - 2.0
            local.append((scores, apart_m[inside].argmin()))

        def nll(temperature: float) -> float:
            return float(np.mean([
                logsumexp(scores / temperature) - scores[nearest] / temperature
                for scores, nearest in local]))

        temperature = float(min(np.geomspace(0.003, 1.0, 20), key=nll))
        recall_local = recall(found.local_rank, 1)
        return {
            'misses_local_percent': 100.0 - recall_local, 'recall_at_1_local': recall_local,
            'recall_at_1_global': recall(found.global_rank, 1),
            'median_m': float(np.median(error_m)), 'mean_m': float(error_m.mean()),
            'nll': nll(temperature), 'temperature': temperature, 'images': len(queries),
        }, temperature

    def finish(self, path) -> None:
        """Nothing more is fitted: the checkpoint has the temperature of its validation."""

    def _sample(self, epoch: int) -> list[PairBatch]:
        drawn = self._drawn
        batches = [
            replace(batch, ground=drawn[batch.ground], satellite=drawn[batch.satellite])
            for batch in self._sampler.epoch(self.seed * 100_003 + epoch)]
        if not batches:
            raise ValueError(
                f'no batch of {self.config.batch} can be drawn from {len(self.places)} places '
                f'({np.count_nonzero(self.places.trainable())} with a training image); expected '
                'more of them, or a smaller batch')
        return batches

    def _batch(self, step: int) -> PairBatch:
        """The batch of a step; epochs differ in length, so they are walked from the first."""
        if step < self._first:
            self._epoch, self._first, self._batches = 0, 0, self._sample(0)
        while step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._epoch += 1
            self._batches = self._sample(self._epoch)
        return self._batches[step - self._first]

    def _parts(self, batch: PairBatch, step: int, ranks: Ranks) -> list[_Part]:
        """This rank's share, chunk by chunk; seeds differ between all parts of all ranks."""
        parts = []
        for side, count in ((GROUND, np.count_nonzero(batch.has_ground)),
                            (SATELLITE, len(batch.satellite))):
            mine = np.arange(ranks.rank, count, ranks.count)
            size = self.config.chunk or max(1, len(mine))
            for first in range(0, len(mine), size):
                seed = np.random.SeedSequence(
                    (self.seed, step, ranks.rank, side, first)).generate_state(1)[0]
                parts.append(_Part(side, mine[first:first + size], int(seed)))
        return parts

    def _read(self, step: int, ranks: Ranks) -> list[list[Future]]:
        """Begin to read the images of each part."""
        batch = self._batch(step)
        numbers = {GROUND: batch.ground[batch.has_ground], SATELLITE: batch.satellite}
        readers = {GROUND: self.places.read_ground, SATELLITE: self.places.read_satellite}
        return [[self._readers.submit(readers[part.side], place)
                 for place in numbers[part.side][part.rows]]
                for part in self._parts(batch, step, ranks)]

    def _augmented(self, batch: PairBatch, step: int, parts: list[_Part],
                   reading: list[list[Future]]) -> list[torch.Tensor]:
        """Images of each part, (n, H, W, 3 or 4); what is drawn does not depend on the parts."""
        config = self.config
        rng = np.random.default_rng((self.seed, step))
        scene = int(rng.integers(4))
        turns = rng.integers(4, size=len(batch.satellite))
        found = []
        for part, futures in zip(parts, reading):
            images = [future.result() for future in futures]
            if config.turns == 'scene':
                images = [np.rot90(image, scene) for image in images]
            elif config.turns == 'tile' and part.side == SATELLITE:
                images = [np.rot90(image, turns[row]) for row, image in zip(part.rows, images)]
            pixels = torch.from_numpy(np.stack(images))
            if config.colours:
                pixels = torch.stack([
                    self._other_light(image, step, part.side, row)
                    for row, image in zip(part.rows, pixels)])
            found.append(pixels)
        return found

    def _other_light(self, image: torch.Tensor, step: int, side: int, row: int) -> torch.Tensor:
        rng = np.random.default_rng((self.seed, step, side, int(row)))
        lit = jitter_colours(image[..., :3], rng)
        if image.shape[-1] == 3:
            return lit
        seen = image[..., 3:].float()
        return torch.cat((torch.where(seen > 0, lit, torch.tensor(float(UNSEEN))), seen), -1)

    @torch.no_grad()
    def _describe_all(self, embed, read, numbers: np.ndarray, ranks: Ranks) -> np.ndarray:
        """Descriptors (n, K) of the images of places."""
        size = self.config.chunk or self.config.batch
        found = []
        for first in range(0, len(numbers), size):
            images = list(self._readers.map(read, numbers[first:first + size]))
            with ranks.autocast():
                found.append(embed(torch.from_numpy(np.stack(images)).to(ranks.device)))
        return torch.cat(found).float().cpu().numpy()
