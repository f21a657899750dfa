"""Maps of the formats 1 and 2, which were safetensors files; they are read for one release more.

- ``descriptors`` (T, D) float16
- ``chunks`` (R / 16, Q / 16) int32: row of ``cells`` for each square of 16 x 16 lattice points,
  -1 where no tile is in it
- ``cells`` (n, 16, 16) int32: row of ``descriptors`` for each point, -1 where no tile is
- ``index`` (R, Q): in format 1, in place of ``chunks`` and ``cells``
- ``orthophoto`` (bytes,) uint8: a JPEG, if there is one
"""

import json
from pathlib import Path

import cv2
import numpy as np
from safetensors import safe_open, SafetensorError
import torch

from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.store import MAX_LATTICE, REBUILD

METADATA_KEY = 'crossview_localizer_map'
SQUARE = 16


def is_old_map(path: Path) -> bool:
    """Whether a file begins as a safetensors file does."""
    if not path.is_file():
        return False
    with open(path, 'rb') as file:
        return file.read(9)[8:] == b'{'


def read_old_map(path: Path) -> dict:
    """The arguments of ``EmbeddingMap``. Raises ValueError for a damaged file."""
    try:
        with safe_open(path, framework='pt') as file:
            metadata = json.loads((file.metadata() or {})[METADATA_KEY])
            grid = MapGrid(**metadata['grid'])
            if metadata['format_version'] not in (1, 2) or grid.rows * grid.cols > MAX_LATTICE:
                raise ValueError(f'format version {metadata["format_version"]}, {grid}')
            descriptors = file.get_tensor('descriptors')
            index = (file.get_tensor('index').numpy() if metadata['format_version'] == 1 else
                     _index(*(file.get_tensor(name).numpy() for name in ('chunks', 'cells')),
                            grid))
            picture, picture_grid = None, None
            if metadata['orthophoto_grid']:
                picture_grid = MapGrid(**metadata['orthophoto_grid'])
                picture = _picture(file.get_tensor('orthophoto').numpy(), picture_grid)
            return {
                'frame': LocalFrame(
                    metadata['origin_latitude_deg'], metadata['origin_longitude_deg']),
                'grid': grid, 'index': torch.from_numpy(index.astype(np.int64)),
                'descriptors': descriptors, 'fingerprint': metadata['fingerprint'],
                'tile_m': metadata['tile_m'], 'tile_px': metadata['tile_px'],
                'attribution': tuple(metadata['attribution']), 'orthophoto': picture,
                'orthophoto_grid': picture_grid}
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, cv2.error) as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise ValueError(
            f'{path} is not an embedding map, or is damaged ({reason}); {REBUILD}') from error


def _index(chunks: np.ndarray, cells: np.ndarray, grid: MapGrid) -> np.ndarray:
    """The row of the descriptors for each lattice point (R, Q), -1 without a tile."""
    rows, cols = -(-grid.rows // SQUARE), -(-grid.cols // SQUARE)
    if chunks.shape != (rows, cols) or cells.shape[1:] != (SQUARE, SQUARE):
        raise ValueError(f'its index is {chunks.shape} and {cells.shape}')
    squares = np.full((rows, cols, SQUARE, SQUARE), -1, np.int32)
    squares[chunks >= 0] = cells[chunks[chunks >= 0]]
    whole = squares.swapaxes(1, 2).reshape(rows * SQUARE, cols * SQUARE)
    return whole[:grid.rows, :grid.cols]


def _picture(jpeg: np.ndarray, grid: MapGrid) -> np.ndarray:
    bgr = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    if bgr is None or bgr.shape[:2] != (grid.rows, grid.cols):
        raise ValueError('its orthophoto')
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
