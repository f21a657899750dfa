"""The embedding map: one satellite descriptor per tile, on a lattice in ``map``.

The file is a safetensors file (no code in it) with the tensors

    descriptors   (T, D) float16                  unit vectors
    chunks        (R / 16, C / 16) int32          row of ``cells`` for each square of 16 x 16
                                                  lattice points, -1 = no tile in it
    cells         (n, 16, 16) int32               row of ``descriptors`` for each of its points,
                                                  -1 = no tile
    orthophoto    (bytes,) uint8                  optional JPEG of the area, for display only

and one metadata entry, JSON: format version, origin of the frame, grid of tile centres, tile size,
fingerprint of the weights, attribution of the imagery, grid of the orthophoto. The size of the
file is that of its tiles, not of the box around them. Format 1, which is still read, has one
tensor ``index`` (R, C) in place of ``chunks`` and ``cells``.

A map of at most ``PRELOAD_BYTES`` is loaded to the device as a whole. Of a larger map the device
holds the rows used last, and a thread reads those ahead of the vehicle before they are needed.
"""

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
import json
import math
import os
from pathlib import Path
from threading import Lock

import cv2
import numpy as np
import torch

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import LocalFrame, MapGrid

METADATA_KEY = 'crossview_localizer_map'
FORMAT_VERSION = 2
CHUNK = 16                      # lattice points per side
PRELOAD_BYTES = 64 * 2**20      # of descriptors; a larger map is read while driving
CACHE_BYTES = 256 * 2**20       # of such a map's descriptors that stay in memory
READ_BYTES = 2**20              # at a time, so that a window never waits long for the prefetch
PREFETCH_S = (0.5, 1.0, 2.0, 3.0)   # how far ahead of the vehicle, at its speed
DTYPES = {'F16': np.dtype('<f2'), 'I32': np.dtype('<i4'), 'U8': np.dtype('u1')}
# The types of the safetensors format.
ITEM_BYTES = {'F64': 8, 'I64': 8, 'U64': 8, 'F32': 4, 'I32': 4, 'U32': 4, 'F16': 2, 'BF16': 2,
              'I16': 2, 'U16': 2, 'I8': 1, 'U8': 1, 'BOOL': 1}
MAX_HEADER_BYTES = 100_000_000
REBUILD = (
    'rebuild with: ros2 run crossview_localizer build_map IMAGERY --weights WEIGHTS --out MAP ...')


@dataclass(frozen=True)
class MapWindow:
    """The tiles of the map around a prior.

    ``index`` (rows, cols) int64, on the CPU, gives the row of ``rows`` (n, D) float16, on the
    map's device, for each cell of ``grid``, -1 where there is no tile.  ``coverage`` is the share
    of cells with a tile.
    """

    grid: MapGrid
    index: torch.Tensor
    rows: torch.Tensor
    coverage: float

    @cached_property
    def descriptors(self) -> torch.Tensor:
        """``rows`` as float32."""
        return self.rows.float()


class ChunkedIndex:
    """The row of ``descriptors`` for each lattice point, in squares; empty squares are left out.

    ``chunks`` and ``cells`` are as in the file; ``cells`` may be memory-mapped.
    """

    def __init__(self, chunks: np.ndarray, cells: np.ndarray, grid: MapGrid):
        expected = -(-grid.rows // CHUNK), -(-grid.cols // CHUNK)
        if chunks.shape != expected or cells.shape[1:] != (CHUNK, CHUNK):
            raise ValueError(
                f'map index is {chunks.shape} and {cells.shape}; expected {expected} and '
                f'(n, {CHUNK}, {CHUNK}) as the grid')
        used = chunks[chunks >= 0]
        if used.size != len(cells) or (chunks < -1).any() or (
                used.size and (used.max() >= used.size or np.bincount(used).max() > 1)):
            raise ValueError(f'map index does not name each of {len(cells)} squares once')
        self.chunks, self.cells, self.grid = chunks, cells, grid

    @classmethod
    def of(cls, index: np.ndarray, grid: MapGrid) -> 'ChunkedIndex':
        """Make it from the whole index (R, C)."""
        if index.shape != (grid.rows, grid.cols):
            raise ValueError(
                f'map index is {index.shape}; expected {(grid.rows, grid.cols)} as the grid')
        if index.size and not -1 <= index.min() <= index.max() <= np.iinfo(np.int32).max:
            raise ValueError('map index has numbers below -1 or beyond 2**31')
        rows, cols = -(-grid.rows // CHUNK), -(-grid.cols // CHUNK)
        whole = np.full((rows * CHUNK, cols * CHUNK), -1, np.int32)
        whole[:grid.rows, :grid.cols] = index
        squares = whole.reshape(rows, CHUNK, cols, CHUNK).swapaxes(1, 2)  # (r, c, 16, 16)
        filled = (squares >= 0).any((2, 3))
        chunks = np.full((rows, cols), -1, np.int32)
        chunks[filled] = np.arange(np.count_nonzero(filled))
        return cls(chunks, squares[filled], grid)

    def crop(self, top: int, left: int, rows: int, cols: int) -> np.ndarray:
        """Part of the index, (rows, cols) int64, from a point on; -1 also beyond the grid."""
        found = np.full((rows, cols), -1, np.int64)
        for r in range(max(top, 0) // CHUNK, -(-min(top + rows, self.grid.rows) // CHUNK)):
            for c in range(max(left, 0) // CHUNK, -(-min(left + cols, self.grid.cols) // CHUNK)):
                number = self.chunks[r, c]
                if number < 0:
                    continue
                # Where the square lies in the part, cut off at the edges of the part.
                r0, c0 = r * CHUNK - top, c * CHUNK - left
                inner = np.s_[max(-r0, 0):rows - r0, max(-c0, 0):cols - c0]
                cells = self.cells[number][inner]
                found[max(r0, 0):max(r0, 0) + cells.shape[0],
                      max(c0, 0):max(c0, 0) + cells.shape[1]] = cells
        return found

    def whole(self) -> np.ndarray:
        return self.crop(0, 0, self.grid.rows, self.grid.cols)

    def require_each_once(self, tiles: int) -> None:
        """Raise ValueError unless the index names each of ``tiles`` tiles once."""
        used = self.cells[self.cells >= 0]
        if (self.cells < -1).any() or used.size != tiles or (
                used.max() >= tiles or np.bincount(used).max() > 1):
            raise ValueError(f'map index does not name each of the {tiles} tiles once')


class StoredRows:
    """Rows of a (T, D) float16 tensor in a file; the most recently used ones stay on the device.

    They are read by ``pread``, which does not stop other threads as a page fault does.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, int], device: str,
                 cache_bytes: int = CACHE_BYTES):
        self.shape, self.dtype, self.ndim = shape, torch.float16, 2
        self._file = open(path, 'rb', buffering=0)
        self._offset, self._row_bytes = offset, 2 * shape[1]
        slots = min(shape[0], max(256, cache_bytes // self._row_bytes))
        self._cache = torch.empty((slots, shape[1]), dtype=torch.float16, device=device)
        self._slot_of: OrderedDict[int, int] = OrderedDict()
        self._lock = Lock()
        self.rows_read = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, numbers: np.ndarray) -> torch.Tensor:
        """These rows (n, D), read from the file if they are not in memory."""
        if len(numbers) > len(self._cache):
            return self._read(numbers).to(self._cache.device)
        with self._lock:
            missing = [n for n in numbers.tolist() if n not in self._slot_of]
            if missing:
                self._keep(missing, self._read(np.array(missing)), numbers)
            slots = [self._slot_of[n] for n in numbers.tolist()]
            for n in numbers.tolist():
                self._slot_of.move_to_end(n)
            return self._cache[slots]

    def prefetch(self, numbers: np.ndarray) -> None:
        """Read rows that are not in memory; another thread may ask for rows meanwhile."""
        missing = [n for n in numbers.tolist() if n not in self._slot_of][:len(self._cache) // 2]
        step = max(1, READ_BYTES // self._row_bytes)
        for first in range(0, len(missing), step):
            part = missing[first:first + step]
            rows = self._read(np.array(part))
            with self._lock:
                fresh = [k for k, n in enumerate(part) if n not in self._slot_of]
                self._keep([part[k] for k in fresh], rows[fresh], ())

    def _keep(self, numbers: list[int], rows: torch.Tensor, wanted) -> None:
        """Put rows in the place of the least recently used ones, but never of ``wanted``."""
        for n in wanted:
            if n in self._slot_of:
                self._slot_of.move_to_end(int(n))
        slots = []
        for n in numbers:
            full = len(self._slot_of) == len(self._cache)
            slots.append(self._slot_of.popitem(last=False)[1] if full else len(self._slot_of))
            self._slot_of[n] = slots[-1]
        self._cache[slots] = rows.to(self._cache.device)

    def _read(self, numbers: np.ndarray) -> torch.Tensor:
        """Rows (n, D) from the file; consecutive rows in one read."""
        found = np.empty((len(numbers), self.shape[1]), np.float16)
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for first, end in zip((0, *breaks), (*breaks, len(numbers))):
            data = memoryview(found[first:end]).cast('B')
            got = os.preadv(
                self._file.fileno(), [data], self._offset + int(numbers[first]) * self._row_bytes)
            if got != len(data):
                raise OSError(f'{self._file.name} ends within its descriptors; {REBUILD}')
        self.rows_read += len(numbers)
        return torch.from_numpy(found)


class EmbeddingMap:
    """A map: all its tiles, in memory or in a file."""

    def __init__(self, frame: LocalFrame, grid: MapGrid, index: torch.Tensor | ChunkedIndex,
                 descriptors: torch.Tensor | StoredRows, fingerprint: str, tile_m: float,
                 tile_px: int, attribution: tuple[str, ...] = (), orthophoto_jpeg: bytes = b'',
                 orthophoto_grid: MapGrid | None = None):
        """``index`` (rows, cols) int64 and ``descriptors`` (T, D) float16 as in the file.

        Raises ValueError if they do not fit the grid or each other.
        """
        self.frame, self.grid, self.descriptors = frame, grid, descriptors
        self.fingerprint, self.tile_m, self.tile_px = fingerprint, tile_m, tile_px
        self.attribution, self.orthophoto_jpeg = attribution, orthophoto_jpeg
        self.orthophoto_grid = orthophoto_grid
        if descriptors.ndim != 2 or descriptors.dtype != torch.float16 or len(descriptors) == 0:
            raise ValueError(
                f'map descriptors are {descriptors.dtype} {tuple(descriptors.shape)}; '
                'expected float16 (tiles, size) with at least one tile'
            )
        self.chunked = index
        if not isinstance(index, ChunkedIndex):
            self.chunked = ChunkedIndex.of(index.cpu().numpy(), grid)
        if not isinstance(descriptors, StoredRows):
            self.chunked.require_each_once(len(descriptors))
        self._ahead = ThreadPoolExecutor(1, 'map') if isinstance(descriptors, StoredRows) else None
        self._last: PoseEstimate | None = None
        self._reading = None

    @property
    def index(self) -> torch.Tensor:
        """Row of ``descriptors`` for each lattice point (rows, cols) int64, -1 = no tile."""
        return torch.from_numpy(self.chunked.whole())

    @property
    def tile_xy_m(self) -> np.ndarray:
        """The centre of each tile in ``map``, (T, 2), in the order of the descriptors."""
        index = self.chunked.whole()
        row, col = np.nonzero(index >= 0)
        centres = np.empty((len(row), 2))
        centres[index[row, col]] = np.stack(self.grid.xy_from_row_col(row, col), axis=1)
        return centres

    def window(self, prior: PoseEstimate, half_width_m: float,
               margin_m: float = 0.0) -> MapWindow | None:
        """The tiles of a square that reaches ``half_width_m`` each way from the prior's mean.

        With ``margin_m`` it reaches that much farther, while the coverage is that of the cells
        which overlap the inner square. None if the mean is outside the grid or the square
        holds no tile. Cells beyond the edge of the grid have no tile. If the map stays in its
        file, the tiles ahead are read in the background; the motion of the priors says where that
        is.
        """
        x_m, y_m = prior.pose.x_m, prior.pose.y_m
        if not self.grid.contains(x_m, y_m):
            return None
        # Half a cell is added: the mean may be that far from the centre of the nearest tile.
        reach = math.ceil((half_width_m + margin_m) / self.grid.cell_m + 0.5)
        top, left, index = self._square(x_m, y_m, reach)
        known = index >= 0
        tiles = index[known]                                       # (n,)
        if self._ahead is not None:
            self._read_ahead(prior, reach)
        if len(tiles) == 0:
            return None
        index[known] = np.arange(len(tiles))
        inner = reach - math.ceil(half_width_m / self.grid.cell_m + 0.5)
        side = len(index)
        within = known[inner:side - inner, inner:side - inner]
        return MapWindow(
            self.grid.crop(top, left, side, side), torch.from_numpy(index),
            self.descriptors[tiles], np.count_nonzero(within) / within.size)

    def _square(self, x_m: float, y_m: float, reach: int) -> tuple[int, int, np.ndarray]:
        """Top row, left column and index (S, S) of the square of ``reach`` cells each way."""
        row, col = (round(float(value)) for value in self.grid.row_col_from_xy(x_m, y_m))
        side = 2 * reach + 1
        index = self.chunked.crop(row - reach, col - reach, side, side)
        if index.max() >= len(self.descriptors) or index.min() < -1:
            raise ValueError(f'the index of the map is damaged; {REBUILD}')
        return row - reach, col - reach, index

    def _read_ahead(self, prior: PoseEstimate, reach: int) -> None:
        """Let the thread read the next windows along the way, unless it is still reading."""
        last, self._last = self._last, prior
        if last is None or not 0 < prior.stamp_ns - last.stamp_ns < 2e9 or (
                self._reading is not None and not self._reading.done()):
            return
        seconds = (prior.stamp_ns - last.stamp_ns) * 1e-9
        speed_mps = np.array([prior.pose.x_m - last.pose.x_m, prior.pose.y_m - last.pose.y_m])
        speed_mps /= seconds

        def read() -> None:
            for ahead_s in PREFETCH_S:
                x_m, y_m = np.array([prior.pose.x_m, prior.pose.y_m]) + ahead_s * speed_mps
                if self.grid.contains(x_m, y_m):
                    _, _, index = self._square(x_m, y_m, reach)
                    self.descriptors.prefetch(index[index >= 0])
        self._reading = self._ahead.submit(read)

    def read_ahead_finished(self) -> None:
        """Wait until the background reading is done; raises its error if it failed."""
        if self._reading is not None:
            self._reading.result()

    def orthophoto(self) -> tuple[np.ndarray, MapGrid] | None:
        """The picture of the area, rgb (rows, cols, 3) uint8, and its grid; None without one."""
        if self.orthophoto_grid is None:
            return None
        return _decoded(self.orthophoto_jpeg, self.orthophoto_grid)

    def require_fingerprint(self, fingerprint: str, path: str | Path = 'map') -> None:
        """Raise ValueError if the descriptors were made by other weights than these."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f'{path} was made with the weights {self.fingerprint[:12]}, loaded are '
                f'{fingerprint[:12]}; {REBUILD}'
            )

    def metadata(self) -> dict:
        """The metadata of the file."""
        return {
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

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all; the same map gives the same bytes."""
        path = Path(path)
        picture = np.frombuffer(self.orthophoto_jpeg, np.uint8)
        tensors = {
            'cells': (self.chunked.cells.shape, 'I32', [self.chunked.cells]),
            'chunks': (self.chunked.chunks.shape, 'I32', [self.chunked.chunks]),
            'descriptors': (tuple(self.descriptors.shape), 'F16', self._parts()),
            'orthophoto': (picture.shape, 'U8', [picture]),
        }
        write_tensors(path, tensors, self.metadata())

    def _parts(self) -> Iterable[np.ndarray]:
        """The descriptors in order, a few megabytes at a time."""
        step = max(1, 2**23 // (2 * self.descriptors.shape[1]))
        for first in range(0, len(self.descriptors), step):
            numbers = np.arange(first, min(first + step, len(self.descriptors)))
            yield self.descriptors[numbers].cpu().numpy()

    @classmethod
    def open(
        cls, path: str | Path, device: str | torch.device = 'cpu', fingerprint: str | None = None,
        preload_bytes: int = PRELOAD_BYTES,
    ) -> 'EmbeddingMap':
        """Open a map; one with at most ``preload_bytes`` of descriptors is read as a whole.

        Raises OSError if the file cannot be read, ValueError if it is no map, damaged, of another
        version, or (if a fingerprint is given) made with other weights.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'map {path} does not exist; expected a file from build_map')
        file = _TensorFile(path)
        metadata = _metadata(path, file.metadata)
        try:
            grid = MapGrid(**metadata['grid'])
            index = (
                torch.from_numpy(file.read('index', 'I32')) if metadata['format_version'] == 1
                else ChunkedIndex(file.read('chunks', 'I32'), file.mapped('cells'), grid))
            shape = file.shape('descriptors', 'F16')
            if len(shape) == 2 and 2 * math.prod(shape) > preload_bytes:
                descriptors = StoredRows(path, file.offset('descriptors'), shape, device)
            else:
                descriptors = torch.from_numpy(file.read('descriptors', 'F16')).to(device)
            picture = file.read('orthophoto', 'U8').tobytes()
            picture_grid = metadata['orthophoto_grid']
            found = cls(
                frame=LocalFrame(
                    metadata['origin_latitude_deg'], metadata['origin_longitude_deg']),
                grid=grid,
                index=index,
                descriptors=descriptors,
                fingerprint=metadata['fingerprint'],
                tile_m=metadata['tile_m'],
                tile_px=metadata['tile_px'],
                attribution=tuple(metadata['attribution']),
                orthophoto_jpeg=picture,
                orthophoto_grid=MapGrid(**picture_grid) if picture_grid else None,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{path} is damaged ({error}); {REBUILD}') from error
        if fingerprint is not None:
            found.require_fingerprint(fingerprint, path)
        return found


def write_tensors(
    path: Path, tensors: dict[str, tuple[tuple[int, ...], str, Iterable[np.ndarray]]],
    metadata: dict,
) -> None:
    """Write a safetensors file of any size, whole or not at all; each tensor comes in parts.

    The format is a length, a JSON header and the bytes (github.com/huggingface/safetensors); its
    own library needs the whole file in memory.
    """
    text = json.dumps(metadata, sort_keys=True)
    header, end = {'__metadata__': {METADATA_KEY: text}}, 0
    for name, (shape, dtype, _) in tensors.items():
        begin, end = end, end + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}
    text = json.dumps(header).encode()
    text += b' ' * (-len(text) % 8)
    with write_atomically(path) as writing, open(writing, 'wb') as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for _, dtype, parts in tensors.values():
            for part in parts:
                file.write(np.ascontiguousarray(part, DTYPES[dtype]).data)
        file.flush()
        os.fsync(file.fileno())


class _TensorFile:
    """The header of a safetensors file, and its tensors one by one.

    The library of the format maps the whole file, which fails for a file larger than the memory.
    Raises ValueError if the file is not whole, KeyError for a tensor that is not in it.
    """

    def __init__(self, path: Path):
        self._path = path
        total = path.stat().st_size
        try:
            with open(path, 'rb') as file:
                length = int.from_bytes(file.read(8), 'little')
                if not 2 <= length <= min(total - 8, MAX_HEADER_BYTES):
                    raise ValueError(f'a header of {length} bytes in a file of {total}')
                self._entries = json.loads(file.read(length))
            self.metadata = self._entries.pop('__metadata__', {})
            self._begin, end = 8 + length, 0
            for entry in sorted(self._entries.values(), key=lambda e: e['data_offsets']):
                begin, following = entry['data_offsets']
                size = math.prod(entry['shape']) * ITEM_BYTES.get(entry['dtype'], 0)
                if begin != end or following != begin + size or min(entry['shape'], default=1) < 0:
                    raise ValueError('tensors that do not lie side by side')
                end = following
            if self._begin + end != total:
                raise ValueError(f'{total} bytes; expected {self._begin + end}')
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            problem = ' '.join(str(error).split()) or type(error).__name__
            raise ValueError(
                f'{path} is no embedding map, or is damaged ({problem}); {REBUILD}') from error

    def shape(self, name: str, dtype: str) -> tuple[int, ...]:
        found = self._entries[name]['dtype']
        if found != dtype:
            raise ValueError(f'{name} is {found}; expected {dtype}')
        return tuple(self._entries[name]['shape'])

    def offset(self, name: str) -> int:
        """Where the tensor begins in the file."""
        return self._begin + self._entries[name]['data_offsets'][0]

    def read(self, name: str, dtype: str) -> np.ndarray:
        shape, kind = self.shape(name, dtype), DTYPES[dtype]
        found = np.fromfile(self._path, kind, math.prod(shape), offset=self.offset(name))
        return found.reshape(shape)

    def mapped(self, name: str) -> np.ndarray:
        """An int32 tensor, mapped."""
        shape = self.shape(name, 'I32')
        if 0 in shape:
            return np.empty(shape, np.int32)
        return np.memmap(self._path, DTYPES['I32'], 'r', self.offset(name), shape)


def read_orthophoto(path: str | Path) -> tuple[np.ndarray, MapGrid] | None:
    """The orthophoto of a map file, as from ``EmbeddingMap.orthophoto``; descriptors stay unread.

    Raises OSError if the file cannot be read and ValueError if it is no map or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'map {path} does not exist; expected a file from build_map')
    file = _TensorFile(path)
    try:
        grid = _metadata(path, file.metadata)['orthophoto_grid']
        if not grid:
            return None
        return _decoded(file.read('orthophoto', 'U8').tobytes(), MapGrid(**grid))
    except (KeyError, TypeError) as error:
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
    if version not in (1, FORMAT_VERSION):
        raise ValueError(
            f'{path} has the map format version {version}; expected {FORMAT_VERSION}; {REBUILD}')
    return metadata
