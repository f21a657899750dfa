"""Maps: the speed of building, the size of the file, and the time for a window."""

import math
import os
from pathlib import Path
import shutil
import time

import numpy as np
import psutil
import torch
from tqdm import tqdm

from benchmarks import DENSE_WEIGHTS, TILE_WEIGHTS
from benchmarks.speed.world import (
    BenchWorld,
    percentiles_ms,
    run_watched,
)
from crossview_localizer.bags.route_file import read_route
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps.builder import build_map, SPACING_M
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.store import DENSE_SIZE, Layout, MapStore
from crossview_localizer.networks.checkpoint import load_network

SPEED_MPS = 30.0
WINDOW_HZ = 10.0
HALF_WIDTH_M = 15.0
MARGIN_M = 20.5           # the dense matcher's
MAP_KM2 = (1, 10, 100, 1000, 10_000)


# --- building


class TimedNetwork:
    """A network that measures the time of its forward passes over the areas of a map."""

    def __init__(self, network, device: str):
        self._network, self._device = network, device
        self.seconds: list[float] = []
        self.pixels = 0

    def __getattr__(self, name: str):
        return getattr(self._network, name)

    def embed_lattice(self, area: torch.Tensor) -> torch.Tensor:
        begin_s = time.perf_counter()
        found = self._network.embed_lattice(area)
        if self._device == 'cuda':
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - begin_s)
        self.pixels += area.shape[0] * area.shape[1]
        return found


def measure_build(world: BenchWorld, device: str, smoke: bool) -> dict:
    """Build all of the orthophoto and the corridor of the drive, and compare with bare forwards.

    Then build the whole area with one worker and with two.
    """
    torch.set_num_threads(1)
    imagery = Imagery.open([world.orthophoto])
    route = read_route(world.traversal / 'gps/gps.csv')
    parts = []
    for where in (None, route):
        network = TimedNetwork(load_network(DENSE_WEIGHTS, device), device)
        begin_s = time.perf_counter()
        found = build_map(imagery, network, route_latlon_deg=where, device=device)
        wall_s = time.perf_counter() - begin_s
        km2 = len(found.tiles) * network.lattice_spacing_m ** 2 * 1e-6
        # Pixels that pass the network per pixel of a block: the cost of the context of areas.
        share = network.pixels / (len(found.tiles) * network.config.block_px ** 2)
        parts.append({
            'km2': round(km2, 4), 'tiles': len(found.tiles),
            'km2_per_s': round(km2 / wall_s, 5),
            'bare_km2_per_s': round(km2 / sum(network.seconds), 5),
            'ratio_to_bare': round(wall_s / sum(network.seconds), 3),
            'pixels_per_block_pixel': round(share, 2),
            'ratio_to_each_pixel_once': round(share * wall_s / sum(network.seconds), 3)})
    result = parts[0] | {'corridor': parts[1], 'workers': {}}
    if smoke:
        return result
    outputs = []
    for workers in (1, 2):
        out = world.folder / f'workers{workers}.map'
        wall_s, quarters_mb = run_watched(
            ['crossview_localizer.build_map', str(world.orthophoto), '--weights',
             str(DENSE_WEIGHTS), '--area', '--out', str(out), '--device', device, '--threads', '1',
             '--workers', str(workers)])
        result['workers'][str(workers)] = {
            'wall_s': round(wall_s, 2), 'peak_mb': round(max(quarters_mb))}
        outputs.append({file.relative_to(out): file.read_bytes() for file in files_of(out)})
        shutil.rmtree(out)
    result['same_bytes'] = outputs[0] == outputs[1]
    return result


# --- size


def tile_store() -> tuple[float, int]:
    """Spacing, and numbers per tile, of a map of the shipped tile network."""
    network = load_network(TILE_WEIGHTS)
    tile = torch.zeros(1, network.config.tile_px, network.config.tile_px, 3, dtype=torch.uint8)
    return SPACING_M, network.embed_satellite(tile).shape[1]


def dense_store() -> tuple[float, int]:
    """Spacing, and numbers per block, of a map of the shipped dense network."""
    network = load_network(DENSE_WEIGHTS)
    return network.lattice_spacing_m, network.config.channels * network.config.block_cells ** 2


def write_area(path: Path, km2: float, spacing_m: float, size: int, sparse: bool) -> int:
    """Write a map of a square area; returns the number of tiles.

    Its descriptors are random. If ``sparse`` it says that it holds all tiles, and has only those
    around its middle.
    """
    square = 8 if size >= DENSE_SIZE else 24
    side = square * max(1, round(math.sqrt(km2) * 1000.0 / spacing_m / square))
    grid = MapGrid(side, side, spacing_m, -side * spacing_m / 2, side * spacing_m / 2)
    layout = Layout(LocalFrame(51.76, -1.26), grid, size, 1, square, '0' * 64, spacing_m, 1)
    store = MapStore.create(path, layout)
    there = np.ones((square, square), bool)
    part = np.random.default_rng(0).standard_normal((there.size, size), np.float32)
    part /= 3.0 * np.abs(part).max()
    middle = side // 2 // square * square
    begins = range(0, side, square)
    if sparse:
        begins = range(max(0, middle - square), min(side, middle + 2 * square), square)
    for row in tqdm(begins, desc=path.name, disable=None, leave=False):
        for col in begins:
            store.write(row, col, part, there, there, there)
    store.finish(side * side)
    return side * side


def files_of(path: Path) -> list[Path]:
    return [file for file in path.rglob('*') if file.is_file()]


def bytes_of(path: Path) -> int:
    return sum(file.stat().st_size for file in files_of(path))


def drop_cached_pages(path: Path) -> None:
    """Let the system drop what it has cached of a map."""
    for name in files_of(path):
        with open(name, 'rb') as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def open_cold(path: Path) -> tuple[EmbeddingMap, float, float, dict]:
    """Open a map; returns it, the seconds and MB that this took, and those of its first window."""
    drop_cached_pages(path)
    before = psutil.Process().memory_info().rss
    begin_s = time.perf_counter()
    found = EmbeddingMap.open(path)
    open_s = time.perf_counter() - begin_s
    grown = psutil.Process().memory_info().rss - before
    begin_s = time.perf_counter()
    found.window(prior_at(0, 0.0), HALF_WIDTH_M, MARGIN_M)
    return found, open_s, grown / 1e6, {'cold_ms': round(1e3 * (time.perf_counter() - begin_s), 2)}


def prior_at(stamp_ns: int, x_m: float) -> PoseEstimate:
    return PoseEstimate(stamp_ns, Pose2D(x_m, 3.0, 0.0), np.diag([4.0, 4.0, 1e-3]))


def measure_sizes(folder: Path, up_to_gb: float, tiles_up_to_km2: float) -> list[dict]:
    """Files of both kinds of map, written in full up to ``up_to_gb`` and sparse beyond.

    Their areas are 1 to 10,000 square kilometres, and the largest that is written in full.
    """
    found = []
    for store, (spacing_m, size) in (('dense', dense_store()), ('tiles', tile_store())):
        gb_per_km2 = 1e-3 * size / spacing_m ** 2
        for km2 in sorted({*MAP_KM2, up_to_gb / gb_per_km2} - {0.0}):
            if store == 'tiles' and km2 > tiles_up_to_km2:
                continue
            path = folder / 'size.map'
            sparse = km2 * gb_per_km2 > up_to_gb * (1.0 + 1e-9)
            tiles = write_area(path, km2, spacing_m, size, sparse)
            area_km2 = tiles * spacing_m ** 2 * 1e-6
            _, open_s, memory_mb, cold = open_cold(path)
            found.append({
                'store': store, 'km2': round(area_km2, 3), 'tiles': tiles,
                'gb': round(tiles * size / 1e9, 3), 'written_in_full': not sparse,
                'bytes_per_km2': round((tiles * size if sparse else bytes_of(path)) / area_km2),
                'open_s': round(open_s, 3),
                'memory_mb': round(memory_mb, 1), 'first_window_ms': cold['cold_ms']})
            shutil.rmtree(path)
    return found


def with_earlier_sizes(found: list[dict], earlier: list[dict]) -> list[dict]:
    """Add the rows of an earlier run that this one did not measure or did not write in full.

    They are added only if a square kilometre takes as many bytes now as then.
    """
    rows = {(row['store'], row['tiles']): row for row in found}
    now = {row['store']: row['bytes_per_km2'] for row in found}
    for row in earlier:
        place = row['store'], row['tiles']
        if math.isclose(row['bytes_per_km2'], now.get(row['store'], 0.0), rel_tol=0.01) and (
                place not in rows or row['written_in_full'] > rows[place]['written_in_full']):
            rows[place] = row
    return [rows[place] for place in sorted(rows)]


def measure_window(folder: Path, seconds_s: float) -> dict:
    """Windows of a dense map at 30 m/s, in real time, on a map that is not in memory."""
    spacing_m, size = dense_store()
    path = folder / 'drive_through.map'
    length_km = 1.5 if seconds_s < 10.0 else 3.0  # more than is read at once
    write_area(path, length_km ** 2, spacing_m, size, sparse=False)
    found, open_s, _, cold = open_cold(path)
    found = EmbeddingMap.open(path)
    begin_s = time.perf_counter()
    found.preload(0.0, 0.0, 500.0)
    preload_s = time.perf_counter() - begin_s
    found = EmbeddingMap.open(path)
    begin_m = -SPEED_MPS * seconds_s / 2
    process = psutil.Process()
    seconds, memory_mb = [], []
    start_s = time.perf_counter()
    for k in range(round(seconds_s * WINDOW_HZ)):
        due_s = start_s + k / WINDOW_HZ
        time.sleep(max(0.0, due_s - time.perf_counter()))
        prior = prior_at(round(k / WINDOW_HZ * 1e9), begin_m + SPEED_MPS * k / WINDOW_HZ)
        begin_s = time.perf_counter()
        window = found.window(prior, HALF_WIDTH_M, MARGIN_M)
        seconds.append(time.perf_counter() - begin_s)
        memory_mb.append(process.memory_info().rss / 1e6)
        if window is None or window.coverage < 1.0:
            raise ValueError('a window of the map holds no tiles; expected the whole area')
    found.read_ahead_finished()
    shutil.rmtree(path)
    # The first windows come from the disk: nothing is read ahead before the motion is known.
    warm = seconds[round(WINDOW_HZ):]
    return {
        'speed_mps': SPEED_MPS, 'hz': WINDOW_HZ, 'map_gb': round(
            length_km ** 2 * 1e6 / spacing_m ** 2 * size / 1e9, 2),
        'open_s': round(open_s, 3), 'preload_1_km2_s': round(preload_s, 3),
        'cold_ms': cold['cold_ms'], 'warm': percentiles_ms(warm),
        'windows': len(warm), 'memory_first_mb': round(memory_mb[len(memory_mb) // 10], 1),
        'memory_last_mb': round(memory_mb[-1], 1)}
