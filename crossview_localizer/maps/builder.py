"""From georeferenced imagery to the embedding map, over a whole area or along a route.

The lattice is cut into squares. Each is a task that reads its imagery, embeds its tiles and writes
its chunks, in this process or on the workers of a Dask cluster; what a square becomes does not
depend on where, nor on which others are made. A square that is in the store is not made again.

Shape legend: D numbers of a descriptor, n tiles, R x Q points of the lattice, P x P of a square.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
import hashlib
from itertools import groupby
import json
import math
from pathlib import Path
import shutil
import time

import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.route import corridor, lattice
from crossview_localizer.maps.samples import Lost
from crossview_localizer.maps.store import Layout, MapStore, pack, UNKNOWN_DATE
from crossview_localizer.maps.tiles import MAX_INVALID, SingleTiles, square_points, TileAreas
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.dense import DENSE

# Spacing of tiles and half width of the corridor for a network that has none of its own.
SPACING_M, CORRIDOR_M = 3.0, 25.0
# The picture kept for display has this cell, or a larger one that keeps its sides below the limit.
ORTHOPHOTO_CELL_M, ORTHOPHOTO_MAX_PX = 0.5, 4096
NOT_WANTED = 1                 # stands for a hash at points of a square without a tile


@dataclass(frozen=True)
class Settings:
    """What decides which tiles a map has and how they are made.

    None stands for the network's own: the spacing at which its trunk runs once for many tiles, as
    in training, and the corridor that its matcher needs.
    """

    spacing_m: float | None = None
    corridor_m: float | None = None
    batch: int = 16                # tiles per forward pass, where the trunk is not shared
    max_tiles: int = 200_000
    max_crs_error_m: float = 0.5
    is_int8: bool = True


@dataclass(frozen=True)
class Inputs:
    """What a worker needs to take part in a build; the paths are those that it sees."""

    imagery: tuple[str, ...]
    origin_deg: tuple[float, float]
    weights: str
    store: str
    device: str
    threads: int
    batch: int


@dataclass(frozen=True)
class Square:
    """A part of the lattice: where it begins, and which of its points are wanted (P, P) bool."""

    row: int
    col: int
    wanted: np.ndarray
    hashes: np.ndarray             # of the tiles that the store has already, (P, P) uint64


def build_map(
    imagery: Imagery, network, settings: Settings = Settings(),
    route_latlon_deg: np.ndarray | None = None, device: str = 'cpu',
    out: str | Path | None = None, update: bool = False,
    report: Callable[[str], None] = lambda line: None,
    cluster=None, inputs: Inputs | None = None,
) -> EmbeddingMap:
    """Embed every tile whose centre is a lattice point near the route, or in the whole imagery.

    The lattice holds the multiples of the spacing in the imagery's frame. A dense network's tiles
    are the blocks of its raster, which must lie side by side. The corridor holds all points
    within ``corridor_m`` of the straight lines between the fixes ``route_latlon_deg`` (N, 2).
    Tiles of which more than MAX_INVALID is without imagery are left out.

    ``network`` is on ``device`` already; the map is not put there. The map is written to ``out``,
    a folder or a zip file, or kept in memory. A stopped build goes on if its arguments are the
    same. With ``update`` the map ``out`` is changed in place, only where the imagery did. With a
    ``cluster``, a client of ``dask.distributed``, its workers embed, from ``inputs``.

    Raises ValueError for inaccurate georeferencing, too many tiles, or no tile at all.
    """
    grid, wanted = _wanted(imagery, network, settings, route_latlon_deg, report)
    config = network.config
    # A picture of the area tells what imagery is lost before anything is embedded.
    picture, picture_grid = _picture(imagery, grid, config.tile_m)
    losses = _losses(picture[1], picture_grid, grid, wanted)
    if losses:
        report(f'no imagery in {losses}')
    blank = np.zeros((1, config.tile_px, config.tile_px, 3), np.uint8)
    size = network.embed_satellite(torch.from_numpy(blank).to(device)).shape[1]
    layout = Layout(
        imagery.frame, grid, size, getattr(config, 'block_cells', 1),
        square_points(network, grid.cell_m), network.fingerprint, config.tile_m, config.tile_px,
        imagery.attribution, settings.is_int8)
    plan = _plan(imagery, layout, wanted, settings.batch, device)
    folder = working_path(out)
    store = _store(out if update else folder, layout, plan, update)
    squares, done = _squares(store, layout, wanted, update)
    if done:
        report(f'going on after {done} tiles of an earlier run')
    total = sum(np.count_nonzero(square.wanted) for square in squares)
    started = time.perf_counter()
    if cluster is None:
        finished = _embed_squares(imagery, network, store, squares, settings.batch, device)
    else:
        finished = _embed_on_cluster(cluster, inputs, squares)
    made = _follow(finished, total, layout, report)
    if total and not update:
        report(f'{total / (time.perf_counter() - started):.0f} tiles/s')
    if update:
        report(f'{made} of {total} tiles made again')
    kept = np.count_nonzero(store.dates())
    if kept == 0:
        raise ValueError(
            'no tile lies in the imagery; expected a route or an area inside it'
            + (f' (no imagery in {losses})' if losses else ''))
    if kept < np.count_nonzero(wanted):
        report(
            f'{np.count_nonzero(wanted) - kept} tiles left out: more than {MAX_INVALID:.0%} of '
            'each is without imagery')
    store.write_picture(picture[0], picture_grid)
    store.note(attribution=list(layout.attribution))
    store.finish(kept)
    if out is None:
        return EmbeddingMap.of_store(store)
    if not update:
        _put_in_place(folder, Path(out))
    return EmbeddingMap.open(out)


def working_path(out: str | Path | None) -> Path | None:
    """The folder in which a map is built, which stays until it is whole."""
    return None if out is None else Path(out).with_name(Path(out).name + '.partial')


def _wanted(imagery: Imagery, network, settings: Settings, route_latlon_deg, report,
            ) -> tuple[MapGrid, np.ndarray]:
    """The lattice and which of its points are wanted (R, Q)."""
    spacing_m, corridor_m = settings.spacing_m, settings.corridor_m
    if spacing_m is None:
        spacing_m = getattr(network, 'lattice_spacing_m', None) or SPACING_M
    if corridor_m is None:
        corridor_m = getattr(network, 'corridor_m', CORRIDOR_M)
    if network.config.kind == DENSE and spacing_m != network.lattice_spacing_m:
        raise ValueError(
            f'spacing {spacing_m} m; expected {network.lattice_spacing_m:g} m, the size of a '
            'block of the dense raster: leave --spacing-m out')
    if not (0.0 < spacing_m < math.inf and corridor_m > 0.0 and settings.batch > 0):
        raise ValueError(
            f'spacing {spacing_m} m, corridor {corridor_m} m, batch {settings.batch}; '
            'expected positive numbers')
    imagery.require_accuracy(settings.max_crs_error_m)

    if route_latlon_deg is None:
        # Nearer than this to the edge, a tile has too little imagery.
        inset_m = (0.5 - MAX_INVALID) * network.config.tile_m
        bounds_m = np.array(imagery.bounds_m) + inset_m * np.array([1.0, 1.0, -1.0, -1.0])
        grid = lattice(bounds_m, spacing_m)
        wanted = np.ones((grid.rows, grid.cols), bool)
    else:
        route_m = np.stack(imagery.frame.xy_from_latlon(*np.asarray(route_latlon_deg).T), axis=1)
        grid, wanted = corridor(route_m, corridor_m, spacing_m, imagery.bounds_m, report)
    count = np.count_nonzero(wanted)
    if count == 0:
        raise ValueError('no tile to embed; expected a route or an area inside the imagery')
    if count > settings.max_tiles:
        raise ValueError(
            f'{count} tiles are wanted; expected at most {settings.max_tiles}: widen '
            '--spacing-m, narrow --corridor-m, or raise --max-tiles'
        )
    way = f'{settings.batch} at a time'
    if TileAreas.shares_trunk(network, spacing_m):
        way = 'the trunk shared by neighbours'
    report(f'{count} tiles of {network.config.tile_m:g} m, every {spacing_m:g} m, {way}')
    return grid, wanted


def _plan(imagery: Imagery, layout: Layout, wanted: np.ndarray, batch: int, device: str) -> str:
    """All that the descriptors depend on, as one hash."""
    plan = {
        'imagery': imagery.identity, 'layout': layout.attributes(), 'batch': batch,
        'wanted': hashlib.sha256(np.packbits(wanted).tobytes()).hexdigest(),
        'device': (torch.device(device).type, torch.__version__, torch.get_num_threads())}
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def _store(path: Path | None, layout: Layout, plan: str, update: bool) -> MapStore:
    """The store to write to: that of an earlier run if it has the same plan, else a new one."""
    if update:
        store = MapStore.open(path, 'r+')
        known = store.layout.attributes() | {'attribution': list(layout.attribution)}
        if known != layout.attributes():
            raise ValueError(
                f'{path} has another lattice, origin or network; expected the arguments that it '
                'was built with: build it anew without --update')
        return store
    if path is not None and path.exists():
        try:
            store = MapStore.open(path, 'r+')
        except (ValueError, OSError) as error:
            raise ValueError(
                f'{path} was not written by build_map, which needs that name for what is '
                'unfinished; move it away') from error
        if store.notes.get('plan') == plan:
            return store
        shutil.rmtree(path)
    if path is None:
        return MapStore.create(None, layout)
    with write_atomically(path) as writing:            # so that what is there is ours
        MapStore.create(writing, layout, {'plan': plan})
    return MapStore.open(path, 'r+')


def _squares(store: MapStore, layout: Layout, wanted: np.ndarray,
             update: bool) -> tuple[list[Square], int]:
    """The squares that are to be made, and how many wanted tiles are in the store already."""
    hashes, side = store.hashes(), layout.square
    squares, done = [], 0
    for row in range(0, layout.grid.rows, side):
        for col in range(0, layout.grid.cols, side):
            part = np.s_[row:row + side, col:col + side]
            if not wanted[part].any() and not (update and hashes[part].any()):
                continue
            if hashes[part].all() and not update:
                done += np.count_nonzero(wanted[part])
                continue
            squares.append(Square(row, col, wanted[part], hashes[part]))
    return squares, done


def _embed_squares(imagery: Imagery, network, store: MapStore, squares: Sequence[Square],
                   batch: int, device: str) -> Iterator[tuple[int, int]]:
    """Make squares and write them; gives for each how many tiles are finished and were made.

    The imagery of the next job is cropped while one is embedded.
    """
    grid = store.layout.grid
    kind = TileAreas if TileAreas.fits(network, grid.cell_m) else SingleTiles

    def crops():
        for number, square in enumerate(squares):
            part = grid.crop(square.row, square.col, *square.wanted.shape)
            tiles = kind(imagery, network, part, square.wanted, batch)
            for job in tiles.jobs:
                yield number, tiles, job, *tiles.crop(job)
            yield number, tiles, None, None, None      # also of a square of which nothing is left

    for number, jobs in groupby(_one_ahead(crops()), key=lambda item: item[0]):
        yield _make_square(squares[number], jobs, imagery, store, device)


def _one_ahead(items: Iterator) -> Iterator:
    """The same items, each computed in a thread while the one before it is used."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


@torch.inference_mode()
def _make_square(square: Square, jobs: Iterator, imagery: Imagery, store: MapStore,
                 device: str) -> tuple[int, int]:
    """Embed what the store does not hold yet, from the same pixels, and write the square."""
    shape, layout = square.wanted.shape, store.layout
    hashes = np.full(shape, NOT_WANTED, np.uint64)
    there, descriptors = store.read_decoded(square.row, square.col, *shape)[::-1] if (
        square.hashes.any()) else (np.zeros(shape, bool), np.zeros((*shape, layout.size), '<f2'))
    there = there & square.wanted
    made = 0
    for _, tiles, job, kept, pixels in jobs:
        if job is None:
            continue
        row, col = tiles.row[job], tiles.col[job]
        hashes[row, col] = _hash_of(row, col, kept, pixels)
        if (square.hashes[row, col] == hashes[row, col]).all():
            continue
        made += len(job)
        there[row, col] = kept
        if kept.any():
            found = tiles.embed(torch.from_numpy(pixels).to(device), job, kept)   # (n, D)
            if not torch.isfinite(found).all():
                raise ValueError('descriptors are not finite; expected weights that are whole')
            descriptors[row[kept], col[kept]] = found.to('cpu', torch.float16).numpy()
    if (hashes != square.hashes).any():
        dates = np.zeros(shape, np.int32)
        for row, col in np.argwhere(there):
            dates[row, col] = imagery.date_at(*layout.grid.xy_from_row_col(
                square.row + row, square.col + col)) or UNKNOWN_DATE
        store.write(square.row, square.col, descriptors[there], there, dates, hashes)
    return np.count_nonzero(square.wanted), made


def _hash_of(*parts: np.ndarray) -> int:
    """A number of 64 bits, larger than NOT_WANTED."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return int.from_bytes(digest.digest(), 'little') | 1 << 63


@lru_cache(1)
def _opened(inputs: Inputs) -> tuple[Imagery, object, MapStore]:
    """Once in each worker."""
    torch.set_num_threads(inputs.threads)
    imagery = Imagery.open(inputs.imagery, LocalFrame(*inputs.origin_deg))
    network = load_network(Path(inputs.weights), inputs.device)
    return imagery, network, MapStore.open(inputs.store, 'r+')


def embed_square(inputs: Inputs, square: Square) -> tuple[int, int]:
    """The task of a worker. The workers of one machine take its GPUs in turn."""
    from distributed import get_worker

    name = get_worker().name
    if inputs.device == 'cuda' and isinstance(name, int):
        inputs = replace(inputs, device=f'cuda:{name % torch.cuda.device_count()}')
    imagery, network, store = _opened(inputs)
    [result] = _embed_squares(imagery, network, store, [square], inputs.batch, inputs.device)
    return result


def _embed_on_cluster(client, inputs: Inputs, squares: Sequence[Square],
                      ) -> Iterator[tuple[int, int]]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    # A square may be made twice, where a worker is lost: it is written with the same bytes.
    tasks = client.map(embed_square, [inputs] * len(squares), squares, pure=False, batch_size=1000)
    try:
        for task in as_completed(tasks):
            yield task.result()
    except KilledWorker as error:
        raise ValueError(f'a square was given up after its workers ended ({error}); the same '
                         'command goes on from here') from error


def _follow(finished: Iterator[tuple[int, int]], total: int, layout: Layout,
            report: Callable[[str], None]) -> int:
    """Show the progress; gives how many tiles were made."""
    started, made, bytes_each = time.perf_counter(), 0, layout.size * (2 - layout.is_int8)
    with tqdm(total=total, unit='tile', desc='embedding', disable=None) as progress:
        for number, (count, count_made) in enumerate(finished):
            made += count_made
            progress.update(count)
            if number == 0 and count:
                spent_s = time.perf_counter() - started
                report(f'about {_duration(spent_s * total / count)} and '
                       f'{total * bytes_each / 1e6:.1f} MB')
    return made


def _put_in_place(folder: Path, out: Path) -> None:
    # A writer that was killed leaves the chunk that it had begun under another name.
    for left in folder.rglob('*.partial'):
        left.unlink()
    if out.suffix == '.zip':
        pack(folder, out)
        shutil.rmtree(folder)
        return
    if out.is_file():                                  # a map in the old format
        out.unlink()
    with write_atomically(out) as writing:
        folder.rename(writing)


def _picture(imagery: Imagery, grid: MapGrid, tile_m: float):
    """The picture of the area and the ``Lost`` of its cells, and their grid."""
    width_m = (grid.cols - 1) * grid.cell_m + tile_m
    height_m = (grid.rows - 1) * grid.cell_m + tile_m
    cell_m = max(ORTHOPHOTO_CELL_M, max(width_m, height_m) / ORTHOPHOTO_MAX_PX)
    picture_grid = MapGrid(
        math.ceil(height_m / cell_m), math.ceil(width_m / cell_m), cell_m,
        grid.x0_m - tile_m / 2.0 + cell_m / 2.0, grid.y0_m + tile_m / 2.0 - cell_m / 2.0)
    return imagery.raster_with_causes(picture_grid), picture_grid


def _losses(lost: np.ndarray, lost_grid: MapGrid, grid: MapGrid, wanted: np.ndarray) -> str:
    """Such as '12.0% of the map: 9.0% nodata value, 3.0% outside all files'; '' for nothing."""
    x_m, y_m = lost_grid.cell_centres()
    rows = np.rint(grid.row_col_from_xy(0.0, y_m)[0]).astype(int)
    cols = np.rint(grid.row_col_from_xy(x_m, 0.0)[1]).astype(int)
    inside = np.ix_((rows >= 0) & (rows < grid.rows), (cols >= 0) & (cols < grid.cols))
    near = wanted[np.ix_(rows.clip(0, grid.rows - 1), cols.clip(0, grid.cols - 1))][inside]
    found = lost[inside][near]
    shares = {cause: np.mean(found == cause) for cause in Lost}
    total = sum(shares.values())
    if total < 0.0005:
        return ''
    parts = [f'{share:.1%} {cause}' for cause, share in shares.items() if share >= 0.0005]
    return f'{total:.1%} of the map: {", ".join(parts)}'


def _duration(seconds: float) -> str:
    return f'{seconds:.0f} s' if seconds < 120.0 else f'{seconds / 60.0:.0f} min'
