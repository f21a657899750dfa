"""From georeferenced imagery to the embedding map, over a whole area or along a route.

Shape legend: D numbers of a descriptor, n tiles, R x C points of the lattice.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
import hashlib
import json
import math
from pathlib import Path
import time

import cv2
import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.geometry import MapGrid
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.partial_build import PartialBuild
from crossview_localizer.maps.route import corridor, lattice
from crossview_localizer.maps.samples import Lost
from crossview_localizer.maps.tiles import MAX_INVALID, SingleTiles, TileAreas
from crossview_localizer.networks.dense import DENSE

SPACING_M = 3.0                # of tiles, where the network has no spacing of its own
CORRIDOR_M = 25.0              # and the corridor about a route
ORTHOPHOTO_CELL_M = 0.5        # of the picture kept for display, coarser where it would be
ORTHOPHOTO_MAX_PX = 4096       # larger than this
SILENT_S = 600.0               # the other processes are given up after this long without a job


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

    The lattice holds the multiples of ``spacing_m`` in the imagery's frame; by default it is the
    network's own ``lattice_spacing_m``, at which its trunk runs once for many tiles, as in
    training (about 50 times faster than tile by tile). A dense network's tiles are the blocks of
    its raster, which must lie side by side. The corridor holds all points within ``corridor_m``
    of the straight lines between the fixes ``route_latlon_deg`` (N, 2); its default is what the
    network's matcher needs. Tiles of which more than MAX_INVALID is without imagery are left out.

    ``network`` is on ``device`` already; the map is not put there. With ``partial_path`` a
    stopped build goes on if its arguments are the same; the caller deletes ``partial_files`` once
    the map is saved. With ``share`` (k, n) this process embeds every n-th job from the k-th on:
    process 0 waits for the files of the others and returns the map, which has the same bytes
    whatever n is; the others return None. ``require_others`` raises if one of them has ended.

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

    kind = TileAreas if TileAreas.fits(network, spacing_m) else SingleTiles
    tiles = kind(imagery, network, grid, wanted, batch)
    way = f'{batch} at a time'
    if TileAreas.shares_trunk(network, spacing_m):
        way = 'the trunk shared by neighbours'
    report(f'{len(row)} tiles of {network.config.tile_m:g} m, every {spacing_m:g} m, {way}')
    picture, picture_grid, losses = _orthophoto(imagery, grid, wanted, network.config.tile_m)
    if losses:
        report(f'no imagery in {losses}')
    blank = np.zeros((1, network.config.tile_px, network.config.tile_px, 3), np.uint8)
    size = network.embed_satellite(torch.from_numpy(blank).to(device)).shape[1]
    plan = _plan(imagery, network, grid, tiles.jobs, wanted, batch, device)
    kept, descriptors = _describe_tiles(
        tiles, len(row), size, device, partial_path, plan, report, share, require_others)
    if share[0] > 0:
        return None
    if not kept.any():
        raise ValueError(
            'no tile lies in the imagery; expected a route or an area inside it'
            + (f' (no imagery in {losses})' if losses else ''))
    if not kept.all():
        report(
            f'{np.count_nonzero(~kept)} tiles left out: more than {MAX_INVALID:.0%} of each is '
            'without imagery'
        )
    index = np.full((grid.rows, grid.cols), -1, np.int64)
    index[row[kept], col[kept]] = np.arange(len(descriptors))
    return EmbeddingMap(
        imagery.frame, grid, torch.from_numpy(index), torch.from_numpy(descriptors),
        network.fingerprint, network.config.tile_m,
        network.config.tile_px, imagery.attribution, picture, picture_grid)


def _describe_tiles(
    tiles: SingleTiles | TileAreas, count: int, size: int, device: str,
    partial_path: Path | None, plan: str, report: Callable[[str], None], share: tuple[int, int],
    require_others: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the wanted tiles have imagery, (count,) bool, and their descriptors (n, size).

    Process 0 returns all tiles; the others return their own and those of an earlier run.
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
    sizes = [len(job) for job in tiles.jobs]
    with PartialBuild(partial_path, plan, record, sizes, rank) as partial:
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

            # The others' jobs come by way of their files.
        heard_s, before = time.monotonic(), finished.sum()
        while rank == 0 and not finished.all():
            require_others()
            take_stored()
            if finished.sum() > before:
                heard_s, before = time.monotonic(), finished.sum()
            if time.monotonic() - heard_s > SILENT_S:
                others = ', '.join(sorted(path.name for path in partial.of_other_plans))
                raise ValueError(
                    f'{np.count_nonzero(~finished)} of {len(finished)} parts are missing and '
                    f'nothing came for {SILENT_S:.0f} s; expected every process to write beside '
                    f'{partial_path}' + (
                        f', with the same imagery, weights, arguments and torch (not so: '
                        f'{others})' if others else '')
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
        'device': (torch.device(device).type, torch.__version__, torch.get_num_threads()),
    }
    return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def _orthophoto(imagery: Imagery, grid: MapGrid, wanted: np.ndarray,
                tile_m: float) -> tuple[bytes, MapGrid, str]:
    """A JPEG of the area, its grid, and what share of the wanted cells is lost to which cause."""
    width_m = (grid.cols - 1) * grid.cell_m + tile_m
    height_m = (grid.rows - 1) * grid.cell_m + tile_m
    cell_m = max(ORTHOPHOTO_CELL_M, max(width_m, height_m) / ORTHOPHOTO_MAX_PX)
    picture_grid = MapGrid(
        math.ceil(height_m / cell_m), math.ceil(width_m / cell_m), cell_m,
        grid.x0_m - tile_m / 2.0 + cell_m / 2.0, grid.y0_m + tile_m / 2.0 - cell_m / 2.0)
    rgb, lost = imagery.raster_with_causes(picture_grid)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    return jpeg, picture_grid, _losses(lost, picture_grid, grid, wanted)


def _losses(lost: np.ndarray, lost_grid: MapGrid, grid: MapGrid, wanted: np.ndarray) -> str:
    """Such as '12.0% of the map: 9.0% nodata value, 3.0% outside all files'; '' for nothing."""
    x_m, y_m = lost_grid.cell_centres()
    rows, cols = (np.rint(axis).astype(int) for axis in grid.row_col_from_xy(x_m, y_m))
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
