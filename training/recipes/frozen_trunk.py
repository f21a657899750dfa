"""Training on top of a frozen trunk: its feature maps are computed once and stored.

A frozen trunk gives the same maps of an image in every step. ``stored_places`` stores those of
all images of a data set; a ``FrozenNetwork`` is a SafaNetwork that takes them in place of images
and gives the same descriptors in a fraction of the time. Images cannot be augmented then.
Shape legend: B batch, L numbers of all maps of one image, N places.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.files import write_atomically
from crossview_localizer.networks.safa import ModelConfig, SafaNetwork
from training.data.datasets import Places


class FrozenNetwork(SafaNetwork):
    """A SafaNetwork, with the same state dict, that takes the stored maps (B, L) of its trunks.

    Raises ValueError if the ground branch needs more of a view than its features.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        if config.trunk == 'vgg16' or config.ground_view != 'camera':
            raise ValueError(f'trunk {config.trunk}, ground view {config.ground_view}; expected '
                             'efficientnet_lite0 and camera')
        self.eval()  # the zeros below must not change the statistics of batch norm
        self._shapes = {}
        for branch, (height, width), margin in (
                (self.ground, config.ground_px, 0),
                (self.satellite, config.satellite_px, config.margin_px)):
            with torch.no_grad():
                maps = branch.trunk(torch.zeros(1, 3, height + 2 * margin, width + 2 * margin))
            self._shapes[branch] = [tuple(one.shape[1:]) for one in maps]

    def ground_descriptors(self, views: torch.Tensor) -> torch.Tensor:
        return self.ground.describe(self._fused(self.ground, views))

    def satellite_descriptors(self, tiles: torch.Tensor) -> torch.Tensor:
        margin, (rows, cols) = self.satellite.margin, self.satellite.cells
        features = self._fused(self.satellite, tiles)
        return self.satellite.describe(
            features[:, :, margin:margin + rows, margin:margin + cols])

    def _fused(self, branch, stored: torch.Tensor) -> torch.Tensor:
        shapes = self._shapes[branch]
        parts = stored.float().split([int(np.prod(shape)) for shape in shapes], dim=1)
        return branch.fused([part.unflatten(1, shape) for part, shape in zip(parts, shapes)])


@torch.no_grad()
def trunk_maps(branch, images: torch.Tensor) -> torch.Tensor:
    """The maps that a trunk makes of images (B, H, W, 3) uint8, concatenated, (B, L) float16."""
    maps = branch.trunk(branch.normalised(images))
    return torch.cat([one.flatten(1) for one in maps], 1).half()


def stored_places(places: Places, network: SafaNetwork, folder: Path, device: str = 'cpu',
                  batch: int = 32) -> Places:
    """The places, with maps (L,) float16 of the network's trunks in place of their images.

    They are stored in ``folder``, which must belong to these places and trunks: maps that are
    already there are taken.
    """
    network = network.to(device).eval()
    maps = {}
    for side, branch, read, numbers in (
            ('ground', network.ground, places.read_ground, np.flatnonzero(places.has_ground)),
            ('satellite', network.satellite, places.read_satellite, np.arange(len(places)))):
        path = folder / f'{side}.npy'
        if not path.is_file():
            rows = None
            with write_atomically(path) as writing:
                for first in tqdm(range(0, len(numbers), batch), desc=f'{side} maps',
                                  unit_scale=batch, unit=' images', mininterval=2.0):
                    some = numbers[first:first + batch]
                    images = torch.from_numpy(np.stack([read(place) for place in some.tolist()]))
                    found = trunk_maps(branch, images.to(device)).cpu().numpy()
                    if rows is None:
                        rows = np.lib.format.open_memmap(
                            writing, 'w+', np.float16, (len(places), found.shape[1]))
                    rows[some] = found
                rows.flush()
        maps[side] = np.load(path, mmap_mode='r')
    return replace(places, read_ground=partial(_row, maps['ground']),
                   read_satellite=partial(_row, maps['satellite']))


def _row(maps: np.ndarray, place: int) -> np.ndarray:
    return maps[place]
