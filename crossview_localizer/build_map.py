"""Georeferenced imagery to the preloaded embedding map, over a whole area or along a route."""

import argparse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
import glob
import hashlib
import json
import math
import os
from pathlib import Path
import subprocess
import sys
import time
import zlib

import cv2
import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.allocator import keep_freed_memory
from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.route import corridor, lattice, read_route
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.dense import DENSE

MAX_INVALID = 0.1              # share of a tile without imagery, above which it is left out
AREA_TILES = 24                # lattice points a side that are embedded at once, at most
TRUNK_PX = 32                  # the sides of what a trunk is given are multiples of this
SPACING_M = 3.0                # of tiles, where the network has no spacing of its own
CORRIDOR_M = 25.0              # and the corridor about a route
ORTHOPHOTO_CELL_M = 0.5        # of the picture kept for display, coarser where it would be
ORTHOPHOTO_MAX_PX = 4096       # larger than this
SILENT_S = 600.0               # without a part from the other processes they are given up


def build_map(
    imagery: Imagery,
    network,
    spacing_m: float | None = None,
    route_latlon_deg: np.ndarray | None = None,
    corridor_m: float | None = None,
    batch: int = 16,
    device: str = 'cpu',
    max_tiles: int = 200_000,
    max_crs_error_m: float = 0.5,
    partial_path: Path | None = None,
    report: Callable[[str], None] = lambda line: None,
    share: tuple[int, int] = (0, 1),
    require_others: Callable[[], None] = lambda: None,
) -> EmbeddingMap | None:
    """Embed every tile whose centre is a lattice point near the route, or in the whole imagery.

    The lattice holds the multiples of ``spacing_m`` in the imagery's frame.  The corridor of
    ``route_latlon_deg`` (N, 2) holds all points within ``corridor_m`` of the straight lines
    between its fixes.  Tiles with more than 10 percent of their area without imagery are left out.
    Where the spacing is the network's own ``lattice_spacing_m`` (the default) its trunk runs once
    for many tiles, as in training: about 50 times faster than tile by tile.  A dense network's
    tiles are the blocks of its raster, which must lie side by side.  The corridor's default is
    what the network's matcher needs about the route.
    ``network`` is on ``device`` already.  With ``partial_path`` a killed run goes on where it
    stopped, if its arguments are the same; the caller deletes what ``partial_files`` finds once
    the map is saved.  With ``share`` (k, n) every n-th part is embedded, from the k-th on: share 0
    waits for the others' files beside its own and returns the map, which is the same to the byte
    however many there are; the others return None.  ``require_others`` raises where one has ended.

    Raises ValueError for inaccurate georeferencing, too many tiles, or no tile at all.
    """
    if spacing_m is None:
        spacing_m = getattr(network, 'lattice_spacing_m', None) or SPACING_M
    if corridor_m is None:
        corridor_m = getattr(network, 'corridor_m', CORRIDOR_M)
    if network.config.kind == DENSE and spacing_m != network.lattice_spacing_m:
        raise ValueError(
            f'spacing {spacing_m} m; expected {network.lattice_spacing_m:g} m, the size of a '
            'block of the dense raster: leave --spacing-m out')
    if not (0.0 < spacing_m < math.inf and corridor_m > 0.0 and batch > 0):
        raise ValueError(
            f'spacing {spacing_m} m, corridor {corridor_m} m, batch {batch}; '
            'expected positive numbers')
    imagery.require_accuracy(max_crs_error_m)

    if route_latlon_deg is None:
        # Nearer than this to the edge, a tile has too little imagery.
        inset_m = (0.5 - MAX_INVALID) * network.config.tile_m
        bounds_m = np.array(imagery.bounds_m) + inset_m * np.array([1.0, 1.0, -1.0, -1.0])
        grid = lattice(bounds_m, spacing_m)
        wanted = np.ones((grid.rows, grid.cols), bool)
    else:
        route_m = np.stack(imagery.frame.xy_from_latlon(*np.asarray(route_latlon_deg).T), axis=1)
        grid, wanted = corridor(route_m, corridor_m, spacing_m, imagery.bounds_m, report)
    row, col = np.nonzero(wanted)
    if len(row) == 0:
        raise ValueError('no tile to embed; expected a route or an area inside the imagery')
    if len(row) > max_tiles:
        raise ValueError(
            f'{len(row)} tiles are wanted; expected at most {max_tiles}: widen --spacing-m, '
            'narrow --corridor-m, or raise --max-tiles'
        )

    kind = _AreaByArea if _AreaByArea.fits(network, spacing_m) else _TileByTile
    tiles = kind(imagery, network, grid, wanted, batch)
    way = f'{batch} at a time'
    if _AreaByArea.shares_trunk(network, spacing_m):
        way = 'the trunk shared by neighbours'
    report(f'{len(row)} tiles of {network.config.tile_m:g} m, every {spacing_m:g} m, {way}')
    blank = np.zeros((1, network.config.tile_px, network.config.tile_px, 3), np.uint8)
    size = network.embed_satellite(torch.from_numpy(blank).to(device)).shape[1]
    plan = _plan(imagery, network, grid, tiles.jobs, wanted, batch, device)
    kept, descriptors = _describe_tiles(
        tiles, len(row), size, device, partial_path, plan, report, share, require_others)
    if share[0] > 0:
        return None
    if not kept.any():
        raise ValueError('no tile lies in the imagery; expected a route or an area inside it')
    if not kept.all():
        report(
            f'{np.count_nonzero(~kept)} tiles left out: more than {MAX_INVALID:.0%} of each is '
            'without imagery'
        )
    index = np.full((grid.rows, grid.cols), -1, np.int64)
    index[row[kept], col[kept]] = np.arange(len(descriptors))
    picture, picture_grid = _orthophoto(imagery, grid, network.config.tile_m)
    return EmbeddingMap(
        imagery.frame, grid, torch.from_numpy(index).to(device),
        torch.from_numpy(descriptors).to(device), network.fingerprint, network.config.tile_m,
        network.config.tile_px, imagery.attribution, picture, picture_grid)


class _TileByTile:
    """Crops every tile for itself and embeds them ``batch`` at a time."""

    def __init__(self, imagery: Imagery, network, grid: MapGrid, wanted: np.ndarray, batch: int):
        self._imagery, self._network, self._config = imagery, network, network.config
        self._tile_xy_m = np.stack(grid.xy_from_row_col(*np.nonzero(wanted)), axis=1)
        numbers = np.arange(len(self._tile_xy_m))
        self.jobs = [numbers[first:first + batch] for first in range(0, len(numbers), batch)]

    def crop(self, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tiles of a job lie in the imagery, (B,) bool, and the pixels of those."""
        tiles, kept = [], []
        for x_m, y_m in self._tile_xy_m[job]:
            rgb, valid = self._imagery.crop(
                x_m, y_m, self._config.tile_m, self._config.tile_px)
            rgb[~valid] = UNSEEN
            tiles.append(rgb)
            kept.append(1.0 - valid.mean() <= MAX_INVALID)
        kept = np.array(kept)
        return kept, np.stack(tiles)[kept]                          # (n, S, S, 3)

    def embed(self, tiles: torch.Tensor, job: np.ndarray, kept: np.ndarray) -> torch.Tensor:
        """The descriptors of a job's kept tiles, of what ``crop`` gave."""
        return self._network.embed_satellite(tiles)                 # (n, D)


class _AreaByArea:
    """Warps rectangles of lattice points, AREA_TILES a side at most, and cuts tiles from them.

    That takes a spacing of whole pixels.  Where it is the stride of the network's trunk as well,
    the trunk runs once a rectangle; else ``batch`` tiles go through the network at a time.
    The lattice is laid out in squares.  Neighbouring ones share the context about their tiles,
    which is computed for each; one that a corridor fills in part is cut up wherever that leaves
    fewer pixels.  A tile network's trunk normalises over all that it is shown, so that it is
    given whole squares.
    """

    def __init__(self, imagery: Imagery, network, grid: MapGrid, wanted: np.ndarray, batch: int):
        self._imagery, self._network, self._config = imagery, network, network.config
        self._grid, self._batch = grid, batch
        self._stride_px = round(grid.cell_m / _px_m(network))
        self._unit_px = TRUNK_PX if self.shares_trunk(network, grid.cell_m) else 1
        self._whole = self._unit_px > 1 and network.config.kind != DENSE
        points = self._points = min(
            AREA_TILES, getattr(network, 'lattice_points', AREA_TILES))
        self._row, self._col = np.nonzero(wanted)
        square = self._row // points * wanted.shape[1] + self._col // points
        order = np.argsort(square, kind='stable')
        squares = np.split(order, np.flatnonzero(np.diff(square[order])) + 1)
        self.jobs = [job for numbers in squares for job in self._cut(numbers)]

    @staticmethod
    def fits(network, spacing_m: float) -> bool:
        pixels = spacing_m / _px_m(network)
        return pixels > 0.5 and math.isclose(pixels, round(pixels), rel_tol=1e-9)

    @staticmethod
    def shares_trunk(network, spacing_m: float) -> bool:
        """Whether the network describes all tiles of this spacing in an area at once."""
        spacing_of_network_m = getattr(network, 'lattice_spacing_m', None)
        return spacing_of_network_m is not None and math.isclose(
            spacing_m, spacing_of_network_m, rel_tol=1e-9)

    def _spans(self, job: np.ndarray) -> list[tuple[int, int]]:
        """First and last row, first and last column of a job's rectangle."""
        spans = [(int(axis[job].min()), int(axis[job].max())) for axis in (self._row, self._col)]
        if self._whole:
            begins = [first // self._points * self._points for first, _ in spans]
            spans = [(first, first + self._points - 1) for first in begins]
        return spans

    def _sides_px(self, job: np.ndarray) -> tuple[int, ...]:
        """Height and width of a job's rectangle."""
        sides = [self._config.tile_px + (last - first) * self._stride_px
                 for first, last in self._spans(job)]
        return tuple(-(-side // self._unit_px) * self._unit_px for side in sides)

    def _cut(self, job: np.ndarray) -> list[np.ndarray]:
        """A job in one, or in two along the best row or column, and so on for each."""
        fewest, best = math.prod(self._sides_px(job)), None
        for axis in (self._row, self._col):
            for place in np.unique(axis[job])[1:]:
                parts = job[axis[job] < place], job[axis[job] >= place]
                pixels = sum(math.prod(self._sides_px(part)) for part in parts)
                if pixels < fewest:
                    fewest, best = pixels, parts
        return [job] if best is None else [cut for part in best for cut in self._cut(part)]

    def _place(self, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each tile in its rectangle."""
        (top, _), (left, _) = self._spans(job)
        return self._row[job] - top, self._col[job] - left

    def crop(self, job: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which tiles of a job lie in the imagery, (B,) bool, and the pixels of its rectangle."""
        (top, _), (left, _) = self._spans(job)
        x_m, y_m = self._grid.xy_from_row_col(top, left)
        cell_m, tile_px = _px_m(self._network), self._config.tile_px
        reach_m = (tile_px - 1) * cell_m / 2.0
        rgb, valid = self._imagery.raster(
            MapGrid(*self._sides_px(job), cell_m, x_m - reach_m, y_m + reach_m))
        rgb[~valid] = UNSEEN
        total = cv2.integral(valid.astype(np.uint8))                # (H + 1, W + 1)
        top, left = (axis * self._stride_px for axis in self._place(job))
        bottom, right = top + tile_px, left + tile_px
        covered = (
            total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left])
        return covered >= (1.0 - MAX_INVALID) * tile_px**2, rgb     # (H, W, 3)

    def embed(self, area: torch.Tensor, job: np.ndarray, kept: np.ndarray) -> torch.Tensor:
        """The descriptors of a job's kept tiles, of what ``crop`` gave."""
        row, col = (axis[kept] for axis in self._place(job))
        if self.shares_trunk(self._network, self._grid.cell_m):
            return self._network.embed_lattice(area)[row, col]  # (n, D)
        tile_px, stride_px = self._config.tile_px, self._stride_px
        windows = area.unfold(0, tile_px, stride_px).unfold(1, tile_px, stride_px)
        tiles = windows[row, col].permute(0, 2, 3, 1)               # (n, S, S, 3)
        return torch.cat([
            self._network.embed_satellite(part) for part in tiles.split(self._batch)])


def _px_m(network) -> float:
    return network.config.tile_m / network.config.tile_px


def _describe_tiles(
    tiles: _TileByTile | _AreaByArea, count: int, size: int, device: str,
    partial_path: Path | None, plan: str, report: Callable[[str], None], share: tuple[int, int],
    require_others: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the wanted tiles lie in the imagery, (count,), and their descriptors (n, size).

    Of all tiles, for share 0; of the share's own and of those done before, for the others.
    """

    @torch.inference_mode()
    def embed(pixels: np.ndarray, job: np.ndarray, kept: np.ndarray) -> np.ndarray:
        descriptors = tiles.embed(torch.from_numpy(pixels).to(device), job, kept)
        if not torch.isfinite(descriptors).all():
            raise ValueError('descriptors are not finite; expected weights that are whole')
        return descriptors.to('cpu', torch.float16).numpy()         # (n, D)

    # Embed job by job while the next one is cropped.
    rank, ranks = share
    record = np.dtype([('kept', 'u1'), ('descriptor', '<f2', (size,))])
    all_kept = np.zeros(count, bool)
    descriptors = np.zeros((count, size), '<f2')
    with _Partial(partial_path, plan, record, [len(job) for job in tiles.jobs], rank) as partial:
        finished = np.zeros(len(tiles.jobs), bool)

        def take(number: int, part: np.ndarray) -> None:
            all_kept[tiles.jobs[number]] = part['kept']
            descriptors[tiles.jobs[number]] = part['descriptor']
            finished[number] = True

        def take_stored() -> None:
            for number, part in partial.new():
                take(number, part)

        take_stored()
        done = sum(len(tiles.jobs[number]) for number in np.flatnonzero(finished))
        if done:
            report(f'going on after {done} tiles of an earlier run')
        mine = [number for number in np.flatnonzero(~finished) if number % ranks == rank]
        total = sum(len(tiles.jobs[number]) for number in mine)
        progress = tqdm(
            total=total, unit='tile', desc='embedding', disable=True if rank else None)
        started = time.perf_counter()
        with ThreadPoolExecutor(1) as ahead, progress:
            waiting = [ahead.submit(tiles.crop, tiles.jobs[number]) for number in mine[:1]]
            for k, number in enumerate(mine):
                job = tiles.jobs[number]
                kept, pixels = waiting.pop().result()
                waiting = [ahead.submit(tiles.crop, tiles.jobs[after])
                           for after in mine[k + 1:k + 2]]
                part = np.zeros(len(job), record)
                part['kept'] = kept
                if kept.any():
                    part['descriptor'][kept] = embed(pixels, job, kept)
                partial.append(number, part)
                take(number, part)
                progress.update(len(job))
                if k == 0:
                    spent_s = time.perf_counter() - started
                    report(f'about {_duration(spent_s * total / len(job))} and '
                           f'{count * size * 2 / 1e6:.1f} MB')
        if mine:
            report(f'{total / (time.perf_counter() - started):.0f} tiles/s')

        # The others' parts come by way of their files.
        heard_s, before = time.monotonic(), finished.sum()
        while rank == 0 and not finished.all():
            require_others()
            take_stored()
            if finished.sum() > before:
                heard_s, before = time.monotonic(), finished.sum()
            if time.monotonic() - heard_s > SILENT_S:
                strange = ', '.join(sorted(path.name for path in partial.strangers))
                raise ValueError(
                    f'{np.count_nonzero(~finished)} of {len(finished)} parts are missing and '
                    f'nothing came for {SILENT_S:.0f} s; expected every rank to write beside '
                    f'{partial_path}' + (
                        f', with the same imagery, weights, arguments and torch (not so: '
                        f'{strange})' if strange else '')
                    + '. The same command goes on from here')
            time.sleep(0.05)
    # Moved up in place: a copy of a map may not fit in memory beside it.
    rows = np.flatnonzero(all_kept)
    for row, found in enumerate(rows):
        if row != found:
            descriptors[row] = descriptors[found]
    return all_kept, descriptors[:len(rows)]


def _plan(imagery: Imagery, network, grid, jobs, wanted, batch: int, device: str) -> str:
    """All that the descriptors depend on, as one hash."""
    # The tiles that are described at once: their common context is what all of them are shown.
    sizes = np.array([len(job) for job in jobs])
    plan = {
        'imagery': imagery.identity,
        'origin': (imagery.frame.latitude_deg, imagery.frame.longitude_deg),
        'weights': (network.fingerprint, network.config.tile_m, network.config.tile_px),
        'grid': asdict(grid),
        'wanted': hashlib.sha256(np.packbits(wanted).tobytes()).hexdigest(),
        'jobs': hashlib.sha256(np.concatenate((sizes, *jobs)).tobytes()).hexdigest(),
        'batch': batch,
        'device': (device, torch.__version__, torch.get_num_threads()),
    }
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def partial_files(path: Path) -> list[Path]:
    """The files of an unfinished build: of the first process, and of the others beside it."""
    return sorted(path.parent.glob(glob.escape(path.name) + '*'))


class _Partial:
    """The jobs that an unfinished build has done, each with its number and a checksum.

    Each process writes a file of its own and reads those of all; without a path there is none.
    """

    def __init__(self, path: Path | None, plan: str, record: np.dtype, sizes: list[int],
                 rank: int):
        self._path = path
        self._own = path and (path.with_name(f'{path.name}.{rank}') if rank else path)
        self._header = f'crossview_localizer build_map 2 {plan}\n'.encode()
        self._record, self._sizes = record, sizes
        self._read_to: dict[Path, int] = {}
        self.strangers: set[Path] = set()       # files of other inputs or settings
        self._file = None

    def __enter__(self) -> '_Partial':
        if self._own is not None:
            self._file = open(self._own, 'r+b' if self._own.exists() else 'w+b')
            if self._file.read(len(self._header)) != self._header:
                self._file.seek(0)
                self._file.truncate()
                self._file.write(self._header)
                self._file.flush()
            # What follows the last whole job is cut off.
            end = max([len(self._header), *(
                end for *_, end in self._jobs(self._file, len(self._header)))])
            self._file.seek(end)
            self._file.truncate()
        return self

    def _jobs(self, file, at: int) -> Iterator[tuple[int, np.ndarray, int]]:
        """Number, content and end of each whole job from a place on."""
        file.seek(at)
        while len(head := file.read(8)) == 8:
            number, check = (int.from_bytes(part, 'little') for part in (head[:4], head[4:]))
            if number >= len(self._sizes):
                return
            data = file.read(self._sizes[number] * self._record.itemsize)
            if zlib.crc32(data, number) != check:
                return
            yield number, np.frombuffer(data, self._record), file.tell()

    def new(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number and content of the jobs in all files that were not there at the last call."""
        for path in partial_files(self._path) if self._path else ():
            with open(path, 'rb') as file:
                if file.read(len(self._header)) != self._header:
                    self.strangers.add(path)
                    continue
                self.strangers.discard(path)
                for number, part, end in self._jobs(
                        file, self._read_to.get(path, len(self._header))):
                    self._read_to[path] = end
                    yield number, part

    def append(self, number: int, part: np.ndarray) -> None:
        if self._file is not None:
            data, number = part.tobytes(), int(number)
            check = zlib.crc32(data, number)
            self._file.write(number.to_bytes(4, 'little') + check.to_bytes(4, 'little') + data)
            self._file.flush()

    def __exit__(self, kind, *_):
        if self._file is not None:
            self._file.close()


def _orthophoto(imagery: Imagery, grid: MapGrid, tile_m: float) -> tuple[bytes, MapGrid]:
    width_m = (grid.cols - 1) * grid.cell_m + tile_m
    height_m = (grid.rows - 1) * grid.cell_m + tile_m
    cell_m = max(ORTHOPHOTO_CELL_M, max(width_m, height_m) / ORTHOPHOTO_MAX_PX)
    picture_grid = MapGrid(
        math.ceil(height_m / cell_m), math.ceil(width_m / cell_m), cell_m,
        grid.x0_m - tile_m / 2.0 + cell_m / 2.0, grid.y0_m + tile_m / 2.0 - cell_m / 2.0)
    rgb, _ = imagery.raster(picture_grid)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes(), picture_grid


def _duration(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 120.0 else f'{seconds / 60.0:.0f} min'


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='build_map',
        description='Embed georeferenced imagery (GeoTIFF, any CRS) for localization in it.',
        epilog='example: build_map orthophoto.tif --weights config/weights/WEIGHTS.safetensors '
        '--route drive/gps/gps.csv --out oxford.map',
    )
    parser.add_argument(
        'imagery', type=Path, nargs='+',
        help='8-bit GeoTIFFs; where they overlap the first is used'
    )
    parser.add_argument('--weights', type=Path, required=True, help='the network (.safetensors)')
    parser.add_argument('--out', type=Path, required=True, help='the map file to write')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        '--route', type=Path, help='only along this drive: a bag with a NavSatFix topic, or a CSV '
        'with latitude and longitude columns (gps.csv, ins.csv and rtk.csv of RobotCar have them)'
    )
    where.add_argument('--area', action='store_true', help='all of the imagery')
    parser.add_argument('--topic', help='NavSatFix topic of the bag, if it has several')
    parser.add_argument(
        '--corridor-m', type=float, metavar='M',
        help='tiles whose centre is this close to the route (default: 25, dense 60)'
    )
    parser.add_argument(
        '--spacing-m', type=float, metavar='M',
        help="distance between tile centres (default: the network's own, 3 for shipped tile "
        'weights)'
    )
    parser.add_argument(
        '--origin', type=float, nargs=2, metavar=('LAT', 'LON'),
        help='origin of the map frame in degrees (default: the centre of the imagery)'
    )
    parser.add_argument(
        '--batch', type=int, default=16, metavar='N', help='tiles a network call (default 16)'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=int, metavar='N', help='of torch on the CPU')
    parser.add_argument(
        '--workers', type=int, default=1, metavar='N', help='processes that share the work '
        '(default 1); over several machines with a common folder: torchrun -m '
        'crossview_localizer.build_map ...'
    )
    parser.add_argument('--share', type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        '--max-tiles', type=int, default=200_000, metavar='N', help='refuse more (default 200000)'
    )
    parser.add_argument(
        '--max-crs-error', type=float, default=0.5, metavar='M',
        help='refuse imagery whose CRS is known less well than this (default 0.5); inf takes all'
    )
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(parser.parse_args(argv), argv)
    except (ValueError, OSError) as error:
        print(f'build_map: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('build_map: interrupted; the same command goes on from here', file=sys.stderr)
        return 130


def _share(arguments: argparse.Namespace) -> tuple[int, int]:
    """Which part of the work is this process's: of --workers, of torchrun's ranks, or all."""
    if arguments.workers < 1:
        raise ValueError(f'--workers is {arguments.workers}; expected 1 or more')
    ranks = int(os.environ.get('WORLD_SIZE', '1'))
    if ranks > 1 and arguments.workers > 1:
        raise ValueError('--workers within torchrun; expected one of the two')
    if arguments.share:
        return arguments.share, arguments.workers
    return (int(os.environ['RANK']), ranks) if ranks > 1 else (0, arguments.workers)


class _Others:
    """The other processes of --workers, each with the same command line and its share."""

    def __init__(self, argv: list[str], count: int):
        self._processes = [
            subprocess.Popen(
                [sys.executable, '-m', 'crossview_localizer.build_map', *argv, '--share', str(k)],
                stdout=subprocess.DEVNULL)
            for k in range(1, count)]

    def __enter__(self) -> '_Others':
        return self

    def require(self) -> None:
        """Raise ValueError where one has failed."""
        for process in self._processes:
            if process.poll():
                raise ValueError(
                    f'one of the --workers ended with {process.returncode}; the same command '
                    'goes on from here')

    def __exit__(self, kind, *_):
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.wait()


def _run(arguments: argparse.Namespace, argv: list[str]) -> int:
    if arguments.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError('no CUDA device was found; use --device cpu')
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f'--threads is {arguments.threads}; expected 1 or more')
        torch.set_num_threads(arguments.threads)
    if arguments.out.is_dir() or not arguments.out.parent.is_dir():
        raise ValueError(
            f'{arguments.out} cannot be written; expected a file in a folder that exists')
    keep_freed_memory()
    frame = LocalFrame(*arguments.origin) if arguments.origin else None
    imagery = Imagery.open(arguments.imagery, frame)
    for accuracy in imagery.crs_accuracy:
        print(accuracy)
    route = read_route(arguments.route, arguments.topic) if arguments.route else None
    share = _share(arguments)
    network = load_network(arguments.weights, arguments.device)
    partial = arguments.out.with_name(arguments.out.name + '.partial')
    with _Others(argv, arguments.workers if share[0] == 0 else 1) as others:
        embedding_map = build_map(
            imagery, network, arguments.spacing_m, route, arguments.corridor_m, arguments.batch,
            arguments.device, arguments.max_tiles, arguments.max_crs_error, partial, print, share,
            others.require)
    if embedding_map is None:
        return 0
    embedding_map.save(arguments.out)
    for path in partial_files(partial):
        path.unlink()
    print(
        f'{arguments.out}: {len(embedding_map.descriptors)} tiles, '
        f'{arguments.out.stat().st_size / 1e6:.1f} MB, origin {imagery.frame.latitude_deg:.7f}, '
        f'{imagery.frame.longitude_deg:.7f}, weights {network.fingerprint[:12]}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
