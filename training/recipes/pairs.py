"""The papers' recipe: batches of ground images, each with one satellite tile near it.

All pairs of a batch compete, so the loss sees all descriptors of a batch at once. The images may
lie on several ranks, and pass the network in chunks whose activations are computed twice rather
than kept; neither changes a gradient.
Shape legend: B pairs of a batch, S tiles, G ground images, K descriptor length, N places.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.special import logsumexp
import torch
from torch import nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.networks.safa import SafaNetwork
from training.data.datasets import Places
from training.distributed import Ranks
from training.evaluation.recall import recall, retrieve
from training.losses import CrossViewLoss, LossConfig
from training.recipes.areas import jitter_colours
from training.samplers import LocalBatchSampler, PairBatch, RandomBatchSampler

READERS = 4          # threads that read images ahead of the network
GROUND, SATELLITE = 0, 1


@dataclass(frozen=True)
class PairConfig:
    """What a step sees; lengths in metres."""

    sampler: str = 'local'       # or 'random', as for the global baseline
    batch: int = 64
    radius_m: float = 50.0       # radius of a local batch, and of the prior in validation
    positive_m: float = 5.0      # tiles this near to a ground image are right; 0: only its own
    correct_m: float = 5.0       # the same as positive_m, in validation
    chunk: int = 0               # images per forward pass; 0: all of the batch
    turns: str = 'tile'          # quarter turns of each tile, of the scene (all images), or none
    colours: bool = False        # vary gain, gamma and offset of every image
    drop_block: bool = False     # DropBlock on the input images (RA-L)
    held_out_tiles: bool = True  # tiles of val and test are negatives (papers)
    loss: LossConfig = LossConfig()


class DropBlock(nn.Module):
    """Sets blocks of the normalised images to zero, each colour separately, while training.

    Ghiasi et al. 2018 with the papers' sizes: each pixel starts a block with probability
    (1 - keep) W H / block^2 / ((W - block + 1) (H - block + 1)); what is kept is scaled so that
    the mean stays.
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
class PairShare:
    """One rank's share of a batch: images (n, H, W, 3 or 4) of each side, and their rows in it."""

    batch: PairBatch
    rows: tuple[range, range]
    images: tuple[torch.Tensor, torch.Tensor]


class PairRecipe(nn.Module):
    """Trains on the training places and validates on the queries of split ``val``.

    The whole share of a rank is one part.
    """

    score_name = 'misses_local_percent'

    def __init__(self, config: PairConfig, seed: int, places: Places):
        super().__init__()
        self.config, self.seed, self.places = config, seed, places
        self.criterion = CrossViewLoss(config.loss)
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
        self._epoch, self._first, self._batches = 0, 0, self.batches_of_epoch(0)
        self.epoch_length = len(self._batches)
        self._readers = ThreadPoolExecutor(READERS)

    def draw(self, step: int, ranks: Ranks) -> list[PairShare]:
        batch = self._batch_of_step(step)
        ground = batch.ground[batch.has_ground]
        rows = (range(ranks.rank, len(ground), ranks.count), ranks.share(len(batch.satellite)))
        images = (self._read_augmented(GROUND, ground, rows[GROUND], step),
                  self._read_augmented(SATELLITE, batch.satellite, rows[SATELLITE], step))
        return [PairShare(batch, rows, images)]

    def forward(self, network: SafaNetwork, part: PairShare,
                ranks: Ranks) -> dict[str, torch.Tensor]:
        known = np.flatnonzero(part.batch.has_ground)
        length = network.config.heads * network.config.channels
        ground = torch.zeros(len(known), length, device=ranks.device)                    # (G, K)
        satellite = torch.zeros(len(part.batch.satellite), length, device=ranks.device)  # (S, K)
        ground[list(part.rows[GROUND])] = self._encode(
            network.ground_descriptors, part.images[GROUND], ranks)
        satellite[list(part.rows[SATELLITE])] = self._encode(
            network.satellite_descriptors, part.images[SATELLITE], ranks)
        # Every rank computes the loss of the whole batch.
        ground, satellite = ranks.sum(torch.cat((ground, satellite))).split(
            (len(ground), len(satellite)))
        loss = self.criterion(
            satellite, ground, torch.from_numpy(known).to(ranks.device),
            torch.from_numpy(part.batch.distance_m[:, known]).float().to(ranks.device))
        return {'loss': loss / ranks.count}

    def validate(self, network: SafaNetwork, ranks: Ranks) -> tuple[dict, dict]:
        """Recalls, errors in metres, and ``nll`` with the temperature at which it is least.

        The prior is a disc of ``radius_m`` around the truth, as in the papers; the tiles of all
        places compete (see ``recall``). ``nll`` is that of the tile nearest to the truth, by a
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

        local = []  # for each disc: minus the distances, and which of them is the nearest tile's
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
        }, {'temperature': temperature}

    def finish(self, path: Path) -> None:
        """Nothing is left to fit: the weights have the temperature of their validation."""

    def batches_of_epoch(self, epoch: int) -> list[PairBatch]:
        """All batches of an epoch, in numbers of ``places``; ValueError if there are none."""
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

    def _batch_of_step(self, step: int) -> PairBatch:
        """Epochs differ in length, so they are walked from the first."""
        if step < self._first:
            self._epoch, self._first, self._batches = 0, 0, self.batches_of_epoch(0)
        while step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._epoch += 1
            self._batches = self.batches_of_epoch(self._epoch)
        return self._batches[step - self._first]

    def _read_augmented(self, side: int, numbers: np.ndarray, rows: Sequence[int],
                        step: int) -> torch.Tensor:
        """The images of some rows of a batch, which shows the places ``numbers`` on one side.

        What is drawn does not depend on which rows are asked for.
        """
        config = self.config
        rng = np.random.default_rng((self.seed, step))
        scene = int(rng.integers(4))
        turns = rng.integers(4, size=config.batch)
        read = self.places.read_ground if side == GROUND else self.places.read_satellite
        images = list(self._readers.map(read, numbers[list(rows) or [0]]))
        if config.turns == 'scene':
            images = [np.rot90(image, scene) for image in images]
        elif config.turns == 'tile' and side == SATELLITE:
            images = [np.rot90(image, turns[row]) for row, image in zip(rows, images)]
        pixels = torch.from_numpy(np.stack(images))[:len(rows)]
        if config.colours and rows:
            pixels = torch.stack([
                self._other_light(image, step, side, row) for row, image in zip(rows, pixels)])
        return pixels

    def _other_light(self, image: torch.Tensor, step: int, side: int, row: int) -> torch.Tensor:
        rng = np.random.default_rng((self.seed, step, side, int(row)))
        lit = jitter_colours(image[..., :3], rng)
        if image.shape[-1] == 3:
            return lit
        seen = image[..., 3:].float()
        return torch.cat((torch.where(seen > 0, lit, torch.tensor(float(UNSEEN))), seen), -1)

    def _encode(self, encode: Callable, images: torch.Tensor, ranks: Ranks) -> torch.Tensor:
        """Descriptors (n, K) with gradients, in chunks."""
        chunk = self.config.chunk or max(1, len(images))
        found = []
        for pixels in images.to(ranks.device).split(chunk):
            with ranks.autocast():
                found.append(encode(pixels) if len(pixels) == len(images) else checkpoint(
                    encode, pixels, use_reentrant=False))
        return torch.cat(found).float()

    @torch.no_grad()
    def _describe_all(self, embed: Callable, read: Callable, numbers: np.ndarray,
                      ranks: Ranks) -> np.ndarray:
        """Descriptors (n, K) of the images of places, for validation."""
        size = self.config.chunk or self.config.batch
        found = []
        for first in range(0, len(numbers), size):
            images = list(self._readers.map(read, numbers[first:first + size]))
            with ranks.autocast():
                found.append(embed(torch.from_numpy(np.stack(images)).to(ranks.device)))
        return torch.cat(found).float().cpu().numpy()
