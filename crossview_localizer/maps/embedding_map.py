"""The embedding map: one satellite descriptor per tile, on a lattice in ``map``.

``maps/store.py`` describes its format. A map of at most ``PRELOAD_BYTES`` is loaded to the device
as a whole. Of a larger map the device holds the chunks used last, and a thread reads those ahead
of the vehicle before they are needed.
"""

from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
import math
from pathlib import Path
import shutil
from threading import Lock

import numpy as np
import torch

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.old_format import is_old_map, read_old_map
from crossview_localizer.maps.store import (
    DENSE_SIZE,
    INT8_SCALE,
    Layout,
    MapStore,
    pack,
    REBUILD,
    UNKNOWN_DATE,
)

# A map with more descriptors or lattice points than this is read while driving.
PRELOAD_BYTES, PRELOAD_POINTS = 64 * 2**20, 2**24
CACHE_BYTES = 256 * 2**20       # descriptors of such a map that stay in memory
READ_BYTES = 2**20              # read at a time, so that a window never waits long for a prefetch
PREFETCH_S = (0.5, 1.0, 2.0, 3.0)   # how far ahead of the vehicle, at its speed
SQUARE = 16                     # lattice points per side that ``save`` writes at once
SCALES = {torch.int8: INT8_SCALE, torch.float16: 1.0}


@dataclass(frozen=True)
class MapWindow:
    """The tiles of the map around a prior.

    ``index`` (rows, cols) int64, on the CPU, gives the row of ``rows`` (n, D), on the map's
    device, for each cell of ``grid``, -1 where there is no tile.  A number in ``rows``, float or
    int8 as the map stores it, stands for ``scale`` times itself.  ``coverage`` is the share of
    cells with a tile.
    """

    grid: MapGrid
    index: torch.Tensor
    rows: torch.Tensor
    coverage: float
    scale: float = 1.0

    @cached_property
    def descriptors(self) -> torch.Tensor:
        """The descriptors (n, D) as float32."""
        return self.rows.float() * self.scale


class TilesInMemory:
    """The rows (T, D), float16 or int8, of the lattice points that ``index`` (R, Q) names."""

    def __init__(self, index: np.ndarray, rows: torch.Tensor, grid: MapGrid):
        if rows.ndim != 2 or rows.dtype not in SCALES or len(rows) == 0:
            raise ValueError(
                f'map descriptors are {rows.dtype} {tuple(rows.shape)}; '
                'expected float16 (tiles, size) with at least one tile'
            )
        if index.shape != (grid.rows, grid.cols):
            raise ValueError(
                f'map index is {index.shape}; expected {(grid.rows, grid.cols)} as the grid')
        used = np.sort(index[index >= 0])
        if index.min(initial=0) < -1 or not np.array_equal(used, np.arange(len(rows))):
            raise ValueError(f'map index does not name each of the {len(rows)} tiles once')
        self.index, self.rows, self.scale = index, rows, SCALES[rows.dtype]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def descriptors(self) -> torch.Tensor:
        """All descriptors (T, D) as float16."""
        return (self.rows.float() * self.scale).half()

    def take(self, top: int, left: int, side: int) -> tuple[np.ndarray, torch.Tensor]:
        """A square of the lattice: which tiles are there (S, S), and their rows (n, D)."""
        found = np.full((side, side), -1, np.int64)
        inner, outer = _overlap(top, left, side, self.index.shape)
        found[inner] = self.index[outer]
        return found >= 0, _selected(self.rows, found)


class TilesInStore:
    """The rows of a store; the chunks used last stay on the device as they are stored."""

    def __init__(self, store: MapStore, device: str | torch.device,
                 cache_bytes: int = CACHE_BYTES):
        self.store = store
        layout = store.layout
        self._points, self._shape = layout.chunk_points, (layout.grid.rows, layout.grid.cols)
        dtype = torch.int8 if layout.is_int8 else torch.float16
        self.scale = SCALES[dtype]
        chunk_bytes = self._points ** 2 * layout.size * dtype.itemsize
        self._at_once = max(1, READ_BYTES // chunk_bytes)
        in_all = math.prod(-(-points // self._points) for points in self._shape)
        self._cache = torch.empty(
            (min(in_all, max(16, cache_bytes // chunk_bytes)), self._points ** 2, layout.size),
            dtype=dtype, device=device)
        # The place in the cache of each chunk that is in it, and which of its tiles are there.
        self._kept: OrderedDict[tuple[int, int], tuple[int, np.ndarray]] = OrderedDict()
        self._lock = Lock()
        self.chunks_read = 0

    def __len__(self) -> int:
        return self.store.tiles

    def take(self, top: int, left: int, side: int) -> tuple[np.ndarray, torch.Tensor]:
        """As ``TilesInMemory.take``; what is not in memory is read."""
        chunks = self._chunks(top, left, side)
        if len(chunks) > len(self._cache):
            raise ValueError(
                f'{len(chunks)} chunks of the map are wanted at once; expected at most '
                f'{len(self._cache)}')
        p = self._points
        with self._lock:
            missing = [chunk for chunk in chunks if chunk not in self._kept]
            for chunk in chunks:
                if chunk in self._kept:
                    self._kept.move_to_end(chunk)
            for part in self._parts(missing):
                self._keep(self._read(part))
            slots, there = zip(*(self._kept[chunk] for chunk in chunks))
            # The row of each lattice point in the cache, chunk by chunk: (n, p, p).
            places = np.array(slots)[:, None, None] * p * p + np.arange(p * p).reshape(p, p)
            places = np.where(there, places, -1)
            rows = chunks[-1][0] - chunks[0][0] + 1
            places = places.reshape(rows, -1, p, p).swapaxes(1, 2).reshape(rows * p, -1)
            found = np.full((side, side), -1, np.int64)
            inner, outer = _overlap(top - chunks[0][0] * p, left - chunks[0][1] * p, side,
                                    places.shape)
            found[inner] = places[outer]
            return found >= 0, _selected(self._cache.flatten(0, 1), found)

    def prefetch(self, top: int, left: int, side: int) -> None:
        """Read a square unless it is in memory; another thread may ask for tiles meanwhile."""
        missing = [chunk for chunk in self._chunks(top, left, side) if chunk not in self._kept]
        # More would drive out what was read before, while that may still be wanted.
        room = max(len(self._cache) - len(self._kept), len(self._cache) // 2)
        for part in self._parts(missing[:room]):
            found = self._read(part)
            with self._lock:
                self._keep(found)

    def _chunks(self, top: int, left: int, side: int) -> list[tuple[int, int]]:
        """The chunks that a square touches, within the lattice, row by row."""
        rows, cols = (
            range(max(0, first) // self._points,
                  -(-min(first + side, size) // self._points))
            for first, size in zip((top, left), self._shape))
        return [(row, col) for row in rows for col in cols]

    def _parts(self, chunks: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Cut chunks into parts of which each lies in a small rectangle, to be read at once."""
        if not chunks:
            return
        begin, end = np.min(chunks, 0), np.max(chunks, 0) + 1
        if math.prod(end - begin) <= self._at_once:
            yield chunks
            return
        axis = int(np.argmax(end - begin))
        middle = (begin[axis] + end[axis]) // 2
        yield from self._parts([chunk for chunk in chunks if chunk[axis] < middle])
        yield from self._parts([chunk for chunk in chunks if chunk[axis] >= middle])

    def _read(self, chunks: list[tuple[int, int]]) -> list[tuple]:
        """Each chunk with its rows (p * p, D) and which of its tiles are there (p, p)."""
        p = self._points
        (top, left), (bottom, right) = np.min(chunks, 0) * p, (np.max(chunks, 0) + 1) * p
        rows, cols = min(bottom, self._shape[0]) - top, min(right, self._shape[1]) - left
        found, known = self.store.read(top, left, rows, cols)
        whole = np.zeros((bottom - top, right - left, found.shape[2]), found.dtype)
        there = np.zeros(whole.shape[:2], bool)
        whole[:rows, :cols], there[:rows, :cols] = found, known
        self.chunks_read += len(chunks)
        parts = [(chunk, np.s_[chunk[0] * p - top:, chunk[1] * p - left:]) for chunk in chunks]
        return [(chunk, whole[part][:p, :p].reshape(p * p, -1), there[part][:p, :p])
                for chunk, part in parts]

    def _keep(self, found: list[tuple]) -> None:
        """Put chunks into the cache in place of those that were not used for longest."""
        for chunk, rows, there in found:
            if chunk not in self._kept:
                slot = len(self._kept)
                if slot == len(self._cache):
                    slot, _ = self._kept.popitem(last=False)[1]
                self._kept[chunk] = slot, there
                self._cache[slot] = torch.from_numpy(rows)


def _selected(rows: torch.Tensor, places: np.ndarray) -> torch.Tensor:
    """A copy of the rows at the places that are not -1; indexing would take ten times as long."""
    return rows.index_select(0, torch.from_numpy(places[places >= 0]).to(rows.device))


def _overlap(top: int, left: int, side: int, shape: tuple[int, int]):
    """Where a square and an array overlap: the part of the square, and that of the array."""
    inner, outer = [], []
    for first, size in zip((top, left), shape):
        begin, end = max(first, 0), max(min(first + side, size), max(first, 0))
        inner.append(slice(begin - first, end - first))
        outer.append(slice(begin, end))
    return tuple(inner), tuple(outer)


class EmbeddingMap:
    """A map: all its tiles, in memory or in a store."""

    def __init__(self, frame: LocalFrame | None, grid: MapGrid, index: torch.Tensor,
                 descriptors: torch.Tensor, fingerprint: str, tile_m: float, tile_px: int,
                 attribution: tuple[str, ...] = (), orthophoto: np.ndarray | None = None,
                 orthophoto_grid: MapGrid | None = None):
        """A map in memory, from ``index`` (R, Q) int64, -1 without a tile, and (T, D) float16.

        ``orthophoto`` (rows, cols, 3) uint8 shows the area. Raises ValueError where they do not
        fit the grid or each other.
        """
        self._set_up(frame, grid, fingerprint, tile_m, tile_px, attribution,
                     TilesInMemory(index.cpu().numpy(), descriptors, grid))
        self._orthophoto = None if orthophoto is None else (orthophoto, orthophoto_grid)

    def _set_up(self, frame, grid, fingerprint, tile_m, tile_px, attribution, tiles) -> None:
        self.frame, self.grid, self.fingerprint = frame, grid, fingerprint
        self.tile_m, self.tile_px, self.attribution = tile_m, tile_px, attribution
        self.tiles: TilesInMemory | TilesInStore = tiles
        self._store: MapStore | None = None
        self._ahead = ThreadPoolExecutor(1, 'map') if isinstance(tiles, TilesInStore) else None
        self._last: PoseEstimate | None = None
        self._reading = None

    def window(self, prior: PoseEstimate, half_width_m: float,
               margin_m: float = 0.0) -> MapWindow | None:
        """The tiles of a square that reaches ``half_width_m`` each way from the prior's mean.

        With ``margin_m`` it reaches that much farther, while the coverage is that of the cells
        which overlap the inner square. None if the mean is outside the grid or the square
        holds no tile. Cells beyond the edge of the grid have no tile. If the map stays in its
        store, the tiles ahead are read in the background; the motion of the priors says where
        that is.
        """
        x_m, y_m = prior.pose.x_m, prior.pose.y_m
        if not self.grid.contains(x_m, y_m):
            return None
        # Half a cell is added: the mean may be that far from the centre of the nearest tile.
        reach = math.ceil((half_width_m + margin_m) / self.grid.cell_m + 0.5)
        top, left, side = self._square(x_m, y_m, reach)
        known, rows = self.tiles.take(top, left, side)             # (S, S), (n, D)
        if self._ahead is not None:
            self._read_ahead(prior, reach)
        if len(rows) == 0:
            return None
        index = np.full((side, side), -1, np.int64)
        index[known] = np.arange(len(rows))
        inner = reach - math.ceil(half_width_m / self.grid.cell_m + 0.5)
        within = known[inner:side - inner, inner:side - inner]
        return MapWindow(
            self.grid.crop(top, left, side, side), torch.from_numpy(index), rows,
            np.count_nonzero(within) / within.size, self.tiles.scale)

    def _square(self, x_m: float, y_m: float, reach: int) -> tuple[int, int, int]:
        """Top row, left column and side of the square of ``reach`` cells each way."""
        row, col = (round(float(value)) for value in self.grid.row_col_from_xy(x_m, y_m))
        return row - reach, col - reach, 2 * reach + 1

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
                    self.tiles.prefetch(*self._square(x_m, y_m, reach))
        self._reading = self._ahead.submit(read)

    def read_ahead_finished(self) -> None:
        """Wait until the background reading is done; raises its error if it failed."""
        if self._reading is not None:
            self._reading.result()

    def preload(self, x_m: float, y_m: float, half_width_m: float) -> None:
        """Read the surroundings of a point of a map that is in its store."""
        if isinstance(self.tiles, TilesInStore):
            self.tiles.prefetch(*self._square(
                x_m, y_m, math.ceil(half_width_m / self.grid.cell_m)))

    def orthophoto(self) -> tuple[np.ndarray, MapGrid] | None:
        """The picture of the area, rgb (rows, cols, 3) uint8, and its grid; None without one."""
        return self._orthophoto if self._store is None else self._store.picture()

    def require_fingerprint(self, fingerprint: str, path: str | Path = 'map') -> None:
        """Raise ValueError if the descriptors were made by other weights than these."""
        if fingerprint != self.fingerprint:
            raise ValueError(
                f'{path} was made with the weights {self.fingerprint[:12]}, loaded are '
                f'{fingerprint[:12]}; {REBUILD}'
            )

    def save(self, path: str | Path, is_int8: bool = True, descriptor_cells: int = 1) -> None:
        """Write a map that is in memory, whole or not at all; the same map gives the same bytes.

        It is a folder, or a zip file where the name ends so.
        """
        path = Path(path)
        tiles, descriptors = self.tiles, self.tiles.descriptors
        size = tiles.rows.shape[1]
        square = 1 if size >= DENSE_SIZE else SQUARE
        layout = Layout(self.frame, self.grid, size, descriptor_cells, square, self.fingerprint,
                        self.tile_m, self.tile_px, tuple(self.attribution), is_int8)
        with write_atomically(path) as writing:
            folder = writing.with_name('folder')
            store = MapStore.create(folder, layout)
            for row in range(0, self.grid.rows, square):
                for col in range(0, self.grid.cols, square):
                    index = tiles.index[row:row + square, col:col + square]
                    there = index >= 0
                    if there.any():
                        store.write(row, col, descriptors[index[there]].cpu().numpy(), there,
                                    np.full(there.shape, UNKNOWN_DATE), there.astype(np.uint64))
            picture = self.orthophoto()
            if picture is not None:
                store.write_picture(*picture)
            store.finish(len(tiles))
            if path.suffix == '.zip':
                pack(folder, writing)
                shutil.rmtree(folder)
            else:
                folder.rename(writing)

    @classmethod
    def open(
        cls, path: str | Path, device: str | torch.device = 'cpu', fingerprint: str | None = None,
        preload_bytes: int = PRELOAD_BYTES,
    ) -> 'EmbeddingMap':
        """Open a map; one with at most ``preload_bytes`` of descriptors is read as a whole.

        ``path`` is a folder, a zip file, an address that fsspec opens, or a file of the old
        format. Raises OSError if it cannot be read, ValueError if it is not a map, damaged, of
        another version, or (if a fingerprint is given) made with other weights.
        """
        if '://' not in str(path) and is_old_map(Path(path)):
            found = cls(**read_old_map(Path(path)))
            found.tiles.rows = found.tiles.rows.to(device)
        else:
            found = cls.of_store(MapStore.open(path), device, preload_bytes)
        if fingerprint is not None:
            found.require_fingerprint(fingerprint, path)
        return found

    @classmethod
    def of_store(cls, store: MapStore, device: str | torch.device = 'cpu',
                 preload_bytes: int = PRELOAD_BYTES) -> 'EmbeddingMap':
        layout = store.layout
        bytes_in_all = store.tiles * layout.size * (1 if layout.is_int8 else 2)
        points = layout.grid.rows * layout.grid.cols
        is_small = bytes_in_all <= preload_bytes and points <= PRELOAD_POINTS
        tiles = _all_tiles(store, device) if is_small else TilesInStore(store, device)
        found = cls.__new__(cls)
        found._set_up(layout.frame, layout.grid, layout.fingerprint, layout.tile_m,
                      layout.tile_px, layout.attribution, tiles)
        found._store = store
        return found


def _all_tiles(store: MapStore, device: str | torch.device) -> TilesInMemory:
    """Read all tiles of a store, square by square."""
    grid, side = store.layout.grid, store.layout.square
    there = store.dates() > 0
    index = np.full(there.shape, -1, np.int64)
    parts, count = [], 0
    for row in range(0, grid.rows, side):
        for col in range(0, grid.cols, side):
            part = np.s_[row:row + side, col:col + side]
            if not there[part].any():
                continue
            rows, known = store.read(row, col, *there[part].shape)
            parts.append(torch.from_numpy(rows[known]))
            index[part][known] = count + np.arange(len(parts[-1]))
            count += len(parts[-1])
    if not parts:
        raise ValueError(f'the map holds no tile; {REBUILD}')
    return TilesInMemory(index, torch.cat(parts).to(device), grid)


def read_orthophoto(path: str | Path) -> tuple[np.ndarray, MapGrid] | None:
    """The picture of a map, as from ``EmbeddingMap.orthophoto``; descriptors stay unread.

    Raises OSError if the map cannot be read and ValueError if it is not a map or damaged.
    """
    if '://' not in str(path) and is_old_map(Path(path)):
        found = read_old_map(Path(path))
        picture = found['orthophoto']
        return None if picture is None else (picture, found['orthophoto_grid'])
    return MapStore.open(path).picture()
