"""The descriptors of one overhead picture, as the dense matcher takes them, without a map file.

A map stores whole blocks of 32 m.  A picture of 60 m has an edge that matters: here each cell
knows whether the picture shows it.
"""

from dataclasses import dataclass
import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from crossview_localizer.geometry import MapGrid
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.networks.trunks import normalised
from training.data.real_pairs import Overhead

CONTEXT_PX = 64   # mirrored beyond the edges, for the network to look at


@dataclass(frozen=True)
class OverheadRaster:
    """Descriptors ``cells`` (C, R, Q) on ``grid``; ``missing`` (R, Q) is 1 where nothing is known.

    The grid has its origin in the middle of the picture, x to the right and y up.
    """

    cells: torch.Tensor
    missing: torch.Tensor
    grid: MapGrid

    def square(self, x_m: float, y_m: float, side: int):
        """The square of ``side`` cells nearest to a point, as ``window_raster`` returns it."""
        row, col = self.grid.row_col_from_xy(x_m, y_m)
        top, left = round(float(row) - (side - 1) / 2), round(float(col) - (side - 1) / 2)
        rows, cols = self.missing.shape
        beyond = (max(-left, 0), max(left + side - cols, 0),
                  max(-top, 0), max(top + side - rows, 0))
        inner = np.s_[max(top, 0):max(top + side, 0), max(left, 0):max(left + side, 0)]
        cells = F.pad(self.cells[:, inner[0], inner[1]], beyond)        # (C, side, side)
        missing = F.pad(self.missing[inner], beyond, value=1.0)         # (side, side)
        return cells, missing if missing.any() else None, self.grid.crop(top, left, side, side)


class RasterMatcher(DenseMatcher):
    """The dense matcher on an ``OverheadRaster`` in place of a map window."""

    def cut(self, window: OverheadRaster, x_m: float, y_m: float, side: int):
        return window.square(x_m, y_m, side)


@torch.inference_mode()
def describe(overhead: Overhead, network, device: str = 'cpu') -> OverheadRaster:
    """The descriptors of a picture, brought to the network's metres a pixel first.

    The picture is mirrored at its edges, so that the cells within have the context that they
    need; what is mirrored, and what the picture does not show, is missing.
    """
    config = network.config
    rgb, known, grid = resample(overhead, config.px_m, config.cell_px)
    height, width = rgb.shape[:2]
    # The trunk wants sides that are multiples of 32.
    bottom = CONTEXT_PX + -(height + 2 * CONTEXT_PX) % 32
    right = CONTEXT_PX + -(width + 2 * CONTEXT_PX) % 32
    mirrored = cv2.copyMakeBorder(
        rgb, CONTEXT_PX, bottom, CONTEXT_PX, right, cv2.BORDER_REFLECT_101)
    pixels = torch.from_numpy(mirrored[None]).to(device)
    found = network.satellite(normalised(pixels))[0]                             # (C, R', Q')
    margin = CONTEXT_PX // config.cell_px
    cells = found[:, margin:margin + grid.rows, margin:margin + grid.cols]       # (C, R, Q)
    shown = F.avg_pool2d(torch.from_numpy(known).to(device)[None].float(), config.cell_px)[0]
    missing = (shown < 0.5).float()                                              # (R, Q)
    return OverheadRaster(cells * (1.0 - missing), missing, grid)


def resample(overhead: Overhead, px_m: float, cell_px: int):
    """RGB and mask of a picture at ``px_m`` metres a pixel, and the grid of its cells.

    As many whole cells of ``cell_px`` pixels as the picture holds, about its middle.
    """
    height, width = overhead.rgb.shape[:2]
    rows, cols = (int(size * overhead.px_m / (cell_px * px_m)) for size in (height, width))
    if not (rows and cols):
        raise ValueError(f'{overhead.name} is {width} x {height} pixels of {overhead.px_m} m; '
                         f'expected at least {cell_px * px_m} m a side')
    size_px = cols * cell_px, rows * cell_px
    scale = px_m / overhead.px_m
    source_from_pixel = np.array([
        [scale, 0.0, (width - 1) / 2 - scale * (size_px[0] - 1) / 2],
        [0.0, scale, (height - 1) / 2 - scale * (size_px[1] - 1) / 2]])
    source = overhead.rgb
    if scale > 1.0:   # blurred first, or fine texture would alias
        source = cv2.GaussianBlur(source, (0, 0), 0.5 * math.sqrt(scale ** 2 - 1.0))
    rgb = cv2.warpAffine(
        source, source_from_pixel, size_px, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE)
    known = np.ones(rgb.shape[:2], np.uint8)
    if overhead.known is not None:
        known = cv2.warpAffine(
            overhead.known.astype(np.uint8), source_from_pixel, size_px,
            flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP)
    cell_m = cell_px * px_m
    grid = MapGrid(rows, cols, cell_m, -(cols - 1) / 2 * cell_m, (rows - 1) / 2 * cell_m)
    return rgb, known, grid


def imagery_of(overhead: Overhead, px_m: float, cell_px: int) -> tuple[np.ndarray, MapGrid]:
    """RGB of a picture as ``resample`` gives it, and the grid of its pixels."""
    rgb, _, cells = resample(overhead, px_m, cell_px)
    half_m = (cells.cell_m - px_m) / 2   # from the centre of a cell to that of its first pixel
    return rgb, MapGrid(*rgb.shape[:2], px_m, cells.x0_m - half_m, cells.y0_m + half_m)
