"""The preloaded local satellite embeddings: one descriptor a tile on a lattice in ``map``.

The file is a safetensors file (memory-mappable, no code in it) with the tensors

    descriptors   (T, D) float16        unit vectors
    index         (rows, cols) int32    row of ``descriptors`` for each lattice point, -1 = no tile
    orthophoto    (bytes,) uint8        optional JPEG of the area, for display only

and one metadata entry, JSON: format version, origin of the frame, grid of tile centres, tile size,
fingerprint of the weights, attribution of the imagery, grid of the orthophoto.
"""

from dataclasses import asdict, dataclass
import json
import math
import os
from pathlib import Path

import cv2
import numpy as np
from safetensors import safe_open, SafetensorError
from safetensors.torch import save
import torch

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid

METADATA_KEY = 'crossview_localizer_map'
FORMAT_VERSION = 1
REBUILD = (
    'rebuild with: ros2 run crossview_localizer build_map IMAGERY --weights WEIGHTS --out MAP ...')


@dataclass(frozen=True)
class MapWindow:
    """The tiles around a prior.

    ``index`` (rows, cols) int64 gives the row of ``descriptors`` (n, D) float32 for each cell of
    ``grid``, -1 where there is no tile; both are on the map's device.  ``coverage`` is the share
    of cells with a tile.
    """

    grid: MapGrid
    index: torch.Tensor
    descriptors: torch.Tensor
    coverage: float


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """All tiles of a map; shapes as in the file, ``index`` int64, tensors on one device."""

    frame: LocalFrame
    grid: MapGrid
    index: torch.Tensor
    descriptors: torch.Tensor
    fingerprint: str
    tile_m: float
    tile_px: int
    attribution: tuple[str, ...] = ()
    orthophoto_jpeg: bytes = b''
    orthophoto_grid: MapGrid | None = None

    def __post_init__(self):
        tiles = len(self.descriptors)
        if self.descriptors.ndim != 2 or self.descriptors.dtype != torch.float16 or tiles == 0:
            raise ValueError(
                f'map descriptors are {self.descriptors.dtype} {tuple(self.descriptors.shape)}; '
                'expected float16 (tiles, size) with at least one tile'
            )
        if tuple(self.index.shape) != (self.grid.rows, self.grid.cols):
            raise ValueError(
                f'map index is {tuple(self.index.shape)}; expected '
                f'{(self.grid.rows, self.grid.cols)} as the grid'
            )
        used = self.index[self.index >= 0]
        in_order = torch.arange(tiles, device=used.device)
        if (self.index < -1).any() or not torch.equal(used.sort().values, in_order):
            raise ValueError(f'map index does not name each of the {tiles} tiles once')

    @property
    def tile_xy_m(self) -> np.ndarray:
        """The centre of each tile in ``map``, (T, 2), in the order of the descriptors."""
        index = self.index.cpu().numpy()
        row, col = np.nonzero(index >= 0)
        centres = np.empty((len(row), 2))
        centres[index[row, col]] = np.stack(self.grid.xy_from_row_col(row, col), axis=1)
        return centres

    def window(self, prior: PoseEstimate, half_width_m: float,
               margin_m: float = 0.0) -> MapWindow | None:
        """The square of tiles that reaches at least half_width_m each way from the prior's mean.

        With ``margin_m`` it reaches that much farther, and the coverage is still that of the cells
        which overlap the inner square.  None where the mean is outside the grid or the square
        holds no tile.  A crop on the device; cells beyond the grid's edge have no tile.
        """
        x_m, y_m = prior.pose.x_m, prior.pose.y_m
        if not self.grid.contains(x_m, y_m):
            return None
        row, col = (round(float(value)) for value in self.grid.row_col_from_xy(x_m, y_m))
        # Half a cell more, as the mean may be that far from the nearest tile's centre.
        reach = math.ceil((half_width_m + margin_m) / self.grid.cell_m + 0.5)
        top, left, side = row - reach, col - reach, 2 * reach + 1
        inner_top, inner_left = max(top, 0), max(left, 0)
        cells = self.index[inner_top:top + side, inner_left:left + side]
        tiles = cells[cells >= 0]                                  # (n,)
        if len(tiles) == 0:
            return None
        numbered = torch.full_like(cells, -1)
        numbered[cells >= 0] = torch.arange(len(tiles), device=cells.device)
        index = torch.full((side, side), -1, dtype=torch.int64, device=cells.device)
        index[
            inner_top - top:inner_top - top + cells.shape[0],
            inner_left - left:inner_left - left + cells.shape[1],
        ] = numbered
        inner = reach - math.ceil(half_width_m / self.grid.cell_m + 0.5)
        within = index[inner:side - inner, inner:side - inner]
        return MapWindow(
            self.grid.crop(top, left, side, side), index, self.descriptors[tiles].float(),
            int((within >= 0).sum()) / within.numel())

    def orthophoto(self) -> tuple[np.ndarray, MapGrid] | None:
        """The picture of the area, rgb (rows, cols, 3) uint8 with its grid, if the map has one."""
        if self.orthophoto_grid is None:
            return None
        return _decoded(self.orthophoto_jpeg, self.orthophoto_grid)

    def require_fingerprint(self, fingerprint: str, path: str | Path = 'map') -> None:
        """Raise ValueError where the descriptors were made by other weights than these."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f'{path} was made with the weights {self.fingerprint[:12]}, loaded are '
                f'{fingerprint[:12]}; {REBUILD}'
            )

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all; the same map gives the same bytes."""
        path = Path(path)
        metadata = {
            'format_version': FORMAT_VERSION,
            'origin_latitude_deg': self.frame.latitude_deg,
            'origin_longitude_deg': self.frame.longitude_deg,
            'grid': asdict(self.grid),
            'tile_m': self.tile_m,
            'tile_px': self.tile_px,
            'fingerprint': self.fingerprint,
            'attribution': list(self.attribution),
            'orthophoto_grid': asdict(self.orthophoto_grid) if self.orthophoto_grid else None,
        }
        tensors = {
            'descriptors': self.descriptors.cpu().contiguous(),
            'index': self.index.to('cpu', torch.int32).contiguous(),
            'orthophoto': torch.frombuffer(bytearray(self.orthophoto_jpeg), dtype=torch.uint8)
            if self.orthophoto_jpeg else torch.empty(0, dtype=torch.uint8),
        }
        writing = path.with_name(path.name + '.writing')
        try:
            # save_file would leave a file that only its owner can read.
            with open(writing, 'wb') as file:
                file.write(save(tensors, {METADATA_KEY: json.dumps(metadata, sort_keys=True)}))
                file.flush()
                os.fsync(file.fileno())
            os.replace(writing, path)
        finally:
            writing.unlink(missing_ok=True)

    @classmethod
    def open(
        cls, path: str | Path, device: str | torch.device = 'cpu', fingerprint: str | None = None
    ) -> 'EmbeddingMap':
        """Read a map and put all of it on the device.

        Raises OSError where the file cannot be read, ValueError where it is no map, damaged, of
        another version, or (if a fingerprint is given) made with other weights.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'map {path} does not exist; expected a file from build_map')
        try:
            with safe_open(path, framework='pt') as file:
                metadata = _metadata(path, file.metadata())
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except SafetensorError as error:
            raise ValueError(
                f'{path} is no embedding map, or is damaged ({error}); {REBUILD}') from error
        try:
            grid = metadata['orthophoto_grid']
            found = cls(
                frame=LocalFrame(
                    metadata['origin_latitude_deg'], metadata['origin_longitude_deg']),
                grid=MapGrid(**metadata['grid']),
                index=tensors['index'].to(device, torch.int64),
                descriptors=tensors['descriptors'].to(device),
                fingerprint=metadata['fingerprint'],
                tile_m=metadata['tile_m'],
                tile_px=metadata['tile_px'],
                attribution=tuple(metadata['attribution']),
                orthophoto_jpeg=tensors['orthophoto'].numpy().tobytes(),
                orthophoto_grid=MapGrid(**grid) if grid else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} is damaged ({error}); {REBUILD}') from error
        if fingerprint is not None:
            found.require_fingerprint(fingerprint, path)
        return found


def read_orthophoto(path: str | Path) -> tuple[np.ndarray, MapGrid] | None:
    """The orthophoto of a map file as :meth:`EmbeddingMap.orthophoto`, without its descriptors.

    Raises OSError where the file cannot be read and ValueError where it is no map or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'map {path} does not exist; expected a file from build_map')
    try:
        with safe_open(path, framework='pt') as file:
            grid = _metadata(path, file.metadata())['orthophoto_grid']
            if not grid:
                return None
            return _decoded(file.get_tensor('orthophoto').numpy().tobytes(), MapGrid(**grid))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is no embedding map, or is damaged ({error}); {REBUILD}') from error


def _decoded(jpeg: bytes, grid: MapGrid) -> tuple[np.ndarray, MapGrid]:
    try:
        bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    except cv2.error:  # more pixels than OpenCV takes
        bgr = None
    if bgr is None or bgr.shape[:2] != (grid.rows, grid.cols):
        raise ValueError(f'the orthophoto in the map is damaged; {REBUILD}')
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), grid


def _metadata(path: Path, entries: dict[str, str] | None) -> dict:
    text = (entries or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(f'{path} is a safetensors file but no embedding map; {REBUILD}')
    try:
        metadata = json.loads(text)
        version = metadata['format_version']
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{path} is damaged: its header is not understood; {REBUILD}') from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f'{path} has the map format version {version}; expected {FORMAT_VERSION}; {REBUILD}')
    return metadata
