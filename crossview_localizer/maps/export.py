"""A map as a GeoTIFF, to be looked at in QGIS."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.geotiff import new_geotiff
from crossview_localizer.maps.store import MapStore

SAMPLES = 20_000                # cells from which the principal components are taken
CUT_PERCENT = 2.0               # share of values at each end in the darkest or brightest colour


def write_picture(store: MapStore, path: Path) -> None:
    """Write the picture of the area. Raises ValueError for a map without one."""
    found = store.picture()
    if found is None:
        raise ValueError('the map holds no picture; expected one from build_map')
    rgb, grid = found
    with _geotiff(path, store.layout.frame, grid, 3) as write:
        write(np.moveaxis(rgb, 2, 0), Window(0, 0, grid.cols, grid.rows))


def write_components(store: MapStore, path: Path) -> None:
    """Write three principal components of the descriptors as red, green and blue, with alpha."""
    layout = store.layout
    n, side, bands = layout.descriptor_cells, layout.square, layout.bands
    there = store.dates() > 0
    squares = [(row, col) for row in range(0, layout.grid.rows, side)
               for col in range(0, layout.grid.cols, side)
               if there[row:row + side, col:col + side].any()]
    if not squares:
        raise ValueError('the map holds no tile; expected one from build_map')

    def cells_of(row: int, col: int) -> tuple[np.ndarray, np.ndarray]:
        """The cells (C, H, W) of a square, and which are there (H, W)."""
        part = there[row:row + side, col:col + side]
        found, known = store.read_decoded(row, col, *part.shape)
        rows, cols = part.shape
        cells = found.reshape(rows, cols, bands, n, n).transpose(2, 0, 3, 1, 4)
        return (cells.reshape(bands, rows * n, cols * n).astype(np.float32),
                known.repeat(n, 0).repeat(n, 1))

    generator = np.random.default_rng(0)
    chosen = [squares[k] for k in generator.permutation(len(squares))[:50]]
    sampled = []
    for row, col in chosen:
        cells, known = cells_of(row, col)
        vectors = cells[:, known].T
        sampled.append(vectors[generator.permutation(len(vectors))[:SAMPLES // len(chosen) + 1]])
    sampled = np.concatenate(sampled)
    middle = sampled.mean(0)
    _, _, axes = np.linalg.svd(sampled - middle, full_matrices=False)
    axes = axes[:3]
    # The sign of an axis is arbitrary: its largest component is made positive.
    axes = axes * np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]
    low, high = np.percentile(
        (sampled - middle) @ axes.T, [CUT_PERCENT, 100.0 - CUT_PERCENT], axis=0)
    with _geotiff(path, layout.frame, layout.cells, 4) as write:
        for row, col in squares:
            cells, known = cells_of(row, col)
            values = np.einsum('kc,chw->khw', axes, cells - middle[:, None, None])
            values = (values - low[:, None, None]) / np.maximum(high - low, 1e-6)[:, None, None]
            rgba = np.zeros((4, *known.shape), np.uint8)
            rgba[:len(values)] = np.rint(255.0 * values.clip(0.0, 1.0)) * known
            rgba[3] = 255 * known
            write(rgba, Window(col * n, row * n, *known.shape[::-1]))


def _geotiff(path: Path, frame: LocalFrame | None, grid: MapGrid, bands: int):
    """Open a GeoTIFF of a grid for writing; see ``new_geotiff``."""
    half_m = grid.cell_m / 2.0
    alpha = {'alpha': 'YES'} if bands == 4 else {}
    return new_geotiff(
        path, width=grid.cols, height=grid.rows, count=bands, dtype='uint8',
        crs=frame and frame.proj4, tiled=True, compress='deflate', photometric='RGB',
        sparse_ok=True, bigtiff='IF_SAFER', **alpha, transform=rasterio.Affine(
            grid.cell_m, 0.0, grid.x0_m - half_m, 0.0, -grid.cell_m, grid.y0_m + half_m))
