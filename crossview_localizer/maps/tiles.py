"""How the tiles of a map are cut from the imagery, job by job, and given to the network.

Shape legend: B tiles of a job, n of them with imagery, S tile side, H x W pixels of a rectangle,
D numbers of a descriptor.
"""

import math

import cv2
import numpy as np
import torch

from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.geometry import MapGrid
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.networks.dense import DENSE

MAX_INVALID = 0.1              # a tile with a larger share without imagery is left out
AREA_TILES = 24                # lattice points per side that are embedded at once, at most
TRUNK_PX = 32                  # the sides of the input of a trunk are multiples of this


class SingleTiles:
    """Crops each tile by itself; ``batch`` of them make a job.

    ``row`` and ``col`` are those of the wanted tiles, whose numbers are in the ``jobs``.
    """

    def __init__(self, imagery: Imagery, network, grid: MapGrid, wanted: np.ndarray, batch: int):
        self._imagery, self._network, self._config = imagery, network, network.config
        self.row, self.col = np.nonzero(wanted)
        self._tile_xy_m = np.stack(grid.xy_from_row_col(self.row, self.col), axis=1)
        numbers = np.arange(len(self._tile_xy_m))
        self.jobs = [numbers[first:first + batch] for first in range(0, len(numbers), batch)]

    def crop(self, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tiles of a job have enough imagery, (B,) bool, and those (n, S, S, 3)."""
        tiles, kept = [], []
        for x_m, y_m in self._tile_xy_m[job]:
            rgb, valid = self._imagery.crop(
                x_m, y_m, self._config.tile_m, self._config.tile_px)
            rgb[~valid] = UNSEEN
            tiles.append(rgb)
            kept.append(1.0 - valid.mean() <= MAX_INVALID)
        kept = np.array(kept)
        return kept, np.stack(tiles)[kept]

    def embed(self, tiles: torch.Tensor, job: np.ndarray, kept: np.ndarray) -> torch.Tensor:
        """Descriptors (n, D) of a job's kept tiles, from what ``crop`` gave."""
        return self._network.embed_satellite(tiles)


class TileAreas:
    """Crops rectangles of imagery and cuts the tiles of many lattice points from each.

    The spacing must be a whole number of pixels. If it equals the stride of the network's trunk,
    the trunk runs once per rectangle; otherwise ``batch`` tiles pass the network at a time. The
    lattice is a square of ``square_points`` a side, or what the map's edge leaves of one; where a
    corridor fills it only in part it is cut up if that leaves fewer pixels to describe. The trunk
    of a tile network normalises over its whole input, so its input is always a whole square.
    """

    def __init__(self, imagery: Imagery, network, grid: MapGrid, wanted: np.ndarray, batch: int):
        self._imagery, self._network, self._config = imagery, network, network.config
        self._grid, self._batch = grid, batch
        self._stride_px = round(grid.cell_m / pixel_m(network))
        self._unit_px = TRUNK_PX if self.shares_trunk(network, grid.cell_m) else 1
        self._whole = self._unit_px > 1 and network.config.kind != DENSE
        self._points = square_points(network, grid.cell_m)
        self.row, self.col = np.nonzero(wanted)
        self.jobs = self._cut(np.arange(len(self.row))) if len(self.row) else []

    @staticmethod
    def fits(network, spacing_m: float) -> bool:
        pixels = spacing_m / pixel_m(network)
        return pixels > 0.5 and math.isclose(pixels, round(pixels), rel_tol=1e-9)

    @staticmethod
    def shares_trunk(network, spacing_m: float) -> bool:
        """Whether the network describes all tiles of an area at once at this spacing."""
        spacing_of_network_m = getattr(network, 'lattice_spacing_m', None)
        return spacing_of_network_m is not None and math.isclose(
            spacing_m, spacing_of_network_m, rel_tol=1e-9)

    def _spans(self, job: np.ndarray) -> list[tuple[int, int]]:
        """First and last row, first and last column of a job's rectangle."""
        if self._whole:
            return [(0, self._points - 1)] * 2
        return [(int(axis[job].min()), int(axis[job].max())) for axis in (self.row, self.col)]

    def _sides_px(self, job: np.ndarray) -> tuple[int, ...]:
        """Height and width of a job's rectangle."""
        sides = [self._config.tile_px + (last - first) * self._stride_px
                 for first, last in self._spans(job)]
        return tuple(-(-side // self._unit_px) * self._unit_px for side in sides)

    def _cut(self, job: np.ndarray) -> list[np.ndarray]:
        """Cut a job along its best row or column while that saves pixels; return the parts."""
        fewest, best = math.prod(self._sides_px(job)), None
        for axis in (self.row, self.col):
            for place in np.unique(axis[job])[1:]:
                parts = job[axis[job] < place], job[axis[job] >= place]
                pixels = sum(math.prod(self._sides_px(part)) for part in parts)
                if pixels < fewest:
                    fewest, best = pixels, parts
        return [job] if best is None else [cut for part in best for cut in self._cut(part)]

    def _place(self, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each tile in its rectangle."""
        (top, _), (left, _) = self._spans(job)
        return self.row[job] - top, self.col[job] - left

    def crop(self, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tiles of a job have enough imagery, (B,) bool, and its rectangle (H, W, 3)."""
        (top, _), (left, _) = self._spans(job)
        x_m, y_m = self._grid.xy_from_row_col(top, left)
        cell_m, tile_px = pixel_m(self._network), self._config.tile_px
        reach_m = (tile_px - 1) * cell_m / 2.0
        rgb, valid = self._imagery.raster(
            MapGrid(*self._sides_px(job), cell_m, x_m - reach_m, y_m + reach_m))
        rgb[~valid] = UNSEEN
        total = cv2.integral(valid.astype(np.uint8))                # (H + 1, W + 1)
        top, left = (axis * self._stride_px for axis in self._place(job))
        bottom, right = top + tile_px, left + tile_px
        covered = (
            total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left])
        return covered >= (1.0 - MAX_INVALID) * tile_px**2, rgb

    def embed(self, area: torch.Tensor, job: np.ndarray, kept: np.ndarray) -> torch.Tensor:
        """Descriptors (n, D) of a job's kept tiles, from what ``crop`` gave."""
        row, col = (axis[kept] for axis in self._place(job))
        if self.shares_trunk(self._network, self._grid.cell_m):
            return self._network.embed_lattice(area)[row, col]
        tile_px, stride_px = self._config.tile_px, self._stride_px
        windows = area.unfold(0, tile_px, stride_px).unfold(1, tile_px, stride_px)
        tiles = windows[row, col].permute(0, 2, 3, 1)               # (n, S, S, 3)
        return torch.cat([
            self._network.embed_satellite(part) for part in tiles.split(self._batch)])


def square_points(network, spacing_m: float) -> int:
    """Points along a side of the squares in which a lattice is described."""
    shared = TileAreas.shares_trunk(network, spacing_m)
    return min(AREA_TILES, getattr(network, 'lattice_points', AREA_TILES)) if shared else (
        AREA_TILES)


def pixel_m(network) -> float:
    """Ground size of a pixel of the tiles that the network takes."""
    return network.config.tile_m / network.config.tile_px
