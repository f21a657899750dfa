"""Georeferenced aerial or satellite imagery, read as north-up rasters in the ``map`` plane.

It takes GeoTIFFs or other rasters that GDAL reads, each in any coordinate reference system: files,
folders of sheets, virtual mosaics, and addresses on the web. Where files overlap, the first one of
the list that holds data is shown. ``georeference`` says where a pixel lies and ``samples`` what it
holds.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
import math
import os
from pathlib import Path
import re
import warnings
from xml.etree import ElementTree

import cv2
import numpy as np
from pyproj.transformer import Transformer
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.georeference import (
    apply_affine,
    bounds_in_map,
    choose_operation,
    CrsAccuracy,
    easting_period,
    frame_about,
    near_longitude,
    outline,
    read_crs,
)
from crossview_localizer.maps.samples import describe_samples, Lost, Samples, stretch

BLOCK_PX = 1024         # working samples per side that are warped at once
NODE_STEP_PX = 32       # every so many working samples are projected exactly, others interpolated
OPEN_FILES = 64
MAX_BLOCK_PX = 2**26    # pixels of a block of a file
PIXEL_RANGE_M = (0.005, 10.0)
COARSE = 8              # cells this many times larger than the pixels are read from overviews
IMAGE_SUFFIXES = ('.tif', '.tiff', '.vrt', '.jp2', '.png', '.jpg', '.jpeg', '.img')
MAX_NAMES = 3           # of files, in one message
# GDAL waits for ever for a server that has stopped, and gives up at the first one that is busy.
# Variables of the environment that are set already are kept.
WEB_SETTINGS = {
    'GDAL_HTTP_LOW_SPEED_LIMIT': '100', 'GDAL_HTTP_LOW_SPEED_TIME': '30',
    'GDAL_HTTP_MAX_RETRY': '3', 'GDAL_HTTP_RETRY_DELAY': '2'}
# How files begin that are taken for images by mistake.
FILE_KINDS = {
    b'<': 'it is a page or a text, not an image: download it again',
    b'version https://git-lfs': 'it is a pointer of Git LFS: git lfs pull',
    b'pk\x03\x04': 'it is a zip archive: unpack it'}


@dataclass(frozen=True)
class _Source:
    path: str
    size_px: tuple[int, int]                          # width, height
    crs_from_pixel: rasterio.Affine
    samples: Samples
    map_from_crs: Transformer
    easting_period: float | None
    pixel_m: float                                    # the finer of both axes
    bounds_m: tuple[float, float, float, float]       # x_min, y_min, x_max, y_max
    attribution: str
    date: int | None                                  # YYYYMMDD, None if the file does not say


class Imagery:
    """A mosaic of files in one ``map`` frame; an instance serves one thread at a time.

    ``notes`` says, line by line, how files are read that are not plain 8-bit colour.
    """

    def __init__(self, frame: LocalFrame, sources: Sequence[_Source],
                 crs_accuracy: Sequence[CrsAccuracy], notes: Sequence[str] = ()):
        self.frame = frame
        self.crs_accuracy = tuple(crs_accuracy)     # one entry per reference system
        self.notes = tuple(notes)
        self._sources = tuple(sources)
        self._dataset = lru_cache(OPEN_FILES)(_open_dataset)

    @classmethod
    def open(
        cls, paths: str | Path | Sequence[str | Path], frame: LocalFrame | None = None
    ) -> 'Imagery':
        """Open files; without a frame the origin of the map is the centre of the imagery.

        A folder stands for the images in it. Values of other types than 8-bit are stretched by
        their percentiles, the same for all files of a type. Raises OSError for a file, or a
        member of a virtual mosaic, that cannot be read, and ValueError for one that is not
        georeferenced on Earth, has an impossible size, or does not hold colours.
        """
        paths = _named_files([paths] if isinstance(paths, (str, Path)) else paths)
        files, outlines = {}, {}                    # paths by reference system, outlines by path
        for path in paths:
            with _open_dataset(path) as dataset:
                _require_members(path)
                _require_bands(path, dataset)
                crs = read_crs(path, dataset)
                outlines[path] = outline(path, dataset, crs)
            files.setdefault(crs, []).append(path)
        frame = frame or frame_about(list(outlines.values()))
        sources, accuracies, sampled, notes = {}, [], {}, {}
        for crs, found in files.items():
            operation, accuracy = choose_operation(
                crs, frame, found, [_name(path) for path in found],
                [outlines[path] for path in found])
            accuracies.append(accuracy)
            period = easting_period(crs)
            for path in found:
                sources[path], values, remarks = _describe(path, frame, crs, operation, period)
                for remark in remarks:
                    notes.setdefault(remark, []).append(path)
                if values is not None:
                    sampled.setdefault((values.dtype, len(values)), {})[path] = values
        for group in sampled.values():
            limits, remark = stretch(list(group.values()))
            notes.setdefault(remark, []).extend(group)
            for path in group:
                samples = replace(sources[path].samples, limits=limits)
                sources[path] = replace(sources[path], samples=samples)
        return cls(frame, [sources[path] for path in paths], accuracies, [
            f'{_named(found)}: {remark}' for remark, found in notes.items()])

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """The box around all files in ``map``: x_min, y_min, x_max, y_max."""
        boxes = np.array([source.bounds_m for source in self._sources])
        return (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())

    @property
    def pixel_m(self) -> float:
        """Ground size of a pixel of the finest file."""
        return min(source.pixel_m for source in self._sources)

    @property
    def identity(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size in bytes and modification time (ns) of each file.

        It changes with an input, and is the same for a copy in another folder that kept its time.
        A file on the web has its address, and zeros.
        """
        return tuple(
            (source.path, 0, 0) if _is_remote(source.path) else
            (_name(source.path), (stat := Path(source.path).stat()).st_size, stat.st_mtime_ns)
            for source in self._sources)

    @property
    def attribution(self) -> tuple[str, ...]:
        """The names of the files with the copyright that their tags state."""
        return tuple(source.attribution for source in self._sources)

    def date_at(self, x_m: float, y_m: float) -> int | None:
        """The date of the first file over a point, YYYYMMDD; None if it does not say."""
        return next((source.date for source in self._sources
                     if source.bounds_m[0] <= x_m <= source.bounds_m[2]
                     and source.bounds_m[1] <= y_m <= source.bounds_m[3]), None)

    def require_accuracy(self, max_error_m: float) -> None:
        """Raise ValueError if a transform to WGS84 is less accurate; unknown ones need inf."""
        for found in self.crs_accuracy:
            accuracy_m = math.inf if found.accuracy_m is None else found.accuracy_m
            if not accuracy_m <= max_error_m:
                raise ValueError(
                    f'{found}: expected {max_error_m:g} m or better; use imagery in WGS84 (for '
                    'example its UTM zone), install the PROJ grid, or accept the error with '
                    f'--max-crs-error {accuracy_m:g}'
                )

    def crop(
        self, x_m: float, y_m: float, size_m: float, size_px: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The north-up square around a point: rgb (S, S, 3) uint8, valid (S, S) bool."""
        cell_m = size_m / size_px
        reach_m = (size_m - cell_m) / 2.0
        return self.raster(MapGrid(size_px, size_px, cell_m, x_m - reach_m, y_m + reach_m))

    def raster(self, grid: MapGrid) -> tuple[np.ndarray, np.ndarray]:
        """The imagery averaged over the cells of a grid: rgb (rows, cols, 3) uint8, valid bool.

        A cell is valid if at least half of its area holds data; else its rgb is 0.
        """
        rgb, lost = self.raster_with_causes(grid)
        return rgb, lost == 0

    def raster_with_causes(self, grid: MapGrid) -> tuple[np.ndarray, np.ndarray]:
        """As ``raster``, with 0 or the ``Lost`` of each cell, int8, in place of valid."""
        rgb = np.zeros((grid.rows, grid.cols, 3), np.uint8)
        lost = np.full((grid.rows, grid.cols), Lost.OUTSIDE, np.int8)
        step = max(1, BLOCK_PX // max(_oversampling(grid, source) for source in self._sources))
        for row in range(0, grid.rows, step):
            for col in range(0, grid.cols, step):
                block = grid.crop(
                    row, col, min(step, grid.rows - row), min(step, grid.cols - col))
                part = np.s_[row:row + block.rows, col:col + block.cols]
                rgb[part], lost[part] = self._raster_block(block)
        return rgb, lost

    def _raster_block(self, grid: MapGrid) -> tuple[np.ndarray, np.ndarray]:
        total = np.zeros((grid.rows, grid.cols, 4), np.float32)   # rgb * weight, weight
        lost = np.full((grid.rows, grid.cols), Lost.OUTSIDE, np.int8)
        for source in self._sources:
            if total[..., 3].min() > 0.999:
                break
            part = _part_over(grid, source.bounds_m)
            inner = grid.crop(part[0].start, part[1].start, *total[part].shape[:2])
            layer = self._warp(inner, source) if inner.rows and inner.cols else None
            if layer is not None:
                total[part] += (1.0 - total[part][..., 3:]) * layer[0]
                # A cause within a file says more than "outside".
                lost[part] = np.minimum(lost[part], layer[1])
        weight = total[..., 3:]
        valid = weight[..., 0] >= 0.5
        rgb = np.where(valid[..., None], total[..., :3] / np.maximum(weight, 1e-6), 0.0)
        lost[valid] = 0
        return np.rint(rgb).clip(0, 255).astype(np.uint8), lost

    def _warp(self, grid: MapGrid, source: _Source) -> tuple[np.ndarray, np.ndarray] | None:
        """One file over a grid; None outside it.

        Gives float32 (rows, cols, 4), rgb * weight and weight, and the ``Lost`` at the cells'
        centres, OUTSIDE where there is imagery.
        """
        factor = _oversampling(grid, source)
        samples = MapGrid(
            grid.rows * factor, grid.cols * factor, grid.cell_m / factor,
            grid.x0_m - grid.cell_m * (factor - 1) / (2 * factor),
            grid.y0_m + grid.cell_m * (factor - 1) / (2 * factor),
        )
        u_px, v_px = _pixels_of(samples, source)
        width, height = source.size_px
        inside = (u_px >= -0.5) & (u_px <= width - 0.5) & (v_px >= -0.5) & (v_px <= height - 0.5)
        if not inside.any():
            return None

        # Read the part that is needed, with a margin for the interpolation.
        reduction = _reduction(grid, source)
        left, right = _span(u_px[inside], width, reduction)
        top, bottom = _span(v_px[inside], height, reduction)
        window = Window(left, top, right - left, bottom - top)
        shape = None
        if reduction > 1:
            shape = -(-window.height // reduction), -(-window.width // reduction)
        pixels, lost = self._read(source, window, shape)
        u_px = (u_px - left + 0.5) * (pixels.shape[1] / window.width) - 0.5
        v_px = (v_px - top + 0.5) * (pixels.shape[0] / window.height) - 0.5

        # Interpolate at the working samples, then average those of each cell.
        places = u_px.astype(np.float32), v_px.astype(np.float32)
        layer = cv2.remap(pixels, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        layer[~inside] = 0.0
        layer = cv2.resize(layer, (grid.cols, grid.rows), interpolation=cv2.INTER_AREA)
        centres = np.s_[factor // 2::factor, factor // 2::factor]
        causes = cv2.remap(
            lost.astype(np.float32), *(np.ascontiguousarray(place[centres]) for place in places),
            cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
        causes[~inside[centres] | (causes == 0.0)] = Lost.OUTSIDE
        return layer, causes.astype(np.int8)

    def _read(self, source: _Source, window: Window, shape) -> tuple[np.ndarray, np.ndarray]:
        try:
            return source.samples.read(self._dataset(source.path), window, shape)
        except RasterioError as error:
            raise _damaged(source.path, error) from error


def _named_files(paths: Iterable[str | Path]) -> list[str]:
    """Each file once; a folder is replaced by the images in it, by name."""
    found = []
    for path in paths:
        if _is_remote(str(path)) or not Path(path).is_dir():
            found.append(str(path))
            continue
        images = sorted(str(file) for file in Path(path).iterdir()
                        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        if not images:
            raise ValueError(
                f'the folder {path} holds no image; expected {", ".join(IMAGE_SUFFIXES)}')
        found += images
    if not found:
        raise ValueError('no imagery given; expected at least one GeoTIFF')
    return list(dict.fromkeys(found))


def _is_remote(path: str) -> bool:
    """Whether GDAL reads a file by another way than the file system."""
    return '://' in path or path.startswith('/vsi')


def _name(path: str) -> str:
    return path.rstrip('/').rpartition('/')[2]


def _named(paths: Sequence[str]) -> str:
    names = [_name(path) for path in paths]
    more = f' and {len(names) - 1} more' if len(names) > MAX_NAMES else ''
    return names[0] + more if more else ', '.join(names)


def _open_dataset(path: str):
    if _is_remote(path):
        for name, value in WEB_SETTINGS.items():
            os.environ.setdefault(name, value)
    elif not Path(path).exists():
        raise FileNotFoundError(f'{path} does not exist; expected a GeoTIFF')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioError as error:
        raise OSError(
            f'{path} cannot be read as an image ({_reason(error)}); expected a GeoTIFF or another '
            f'raster of GDAL{_kind_hint(path)}') from error


def _kind_hint(path: str) -> str:
    """What a file that GDAL cannot open is, and what to do; '' where that is not known."""
    if _is_remote(path) or Path(path).is_dir():
        return ''
    with open(path, 'rb') as file:
        head = file.read(64).lstrip().lower()
    return next((f': {hint}' for begins, hint in FILE_KINDS.items() if head.startswith(begins)),
                ': it is empty' if not head else
                ': where your GDAL reads it (gdalinfo), gdal_translate FILE OUT.tif')


def _require_bands(path: str, dataset) -> None:
    """Raise ValueError for a container of several rasters."""
    if dataset.count == 0:
        names = dataset.subdatasets
        raise ValueError(f'{path} holds {len(names)} rasters; expected one: gdal_translate '
                         f'{names[0] if names else "RASTER"} OUT.tif for the right one of them')


def _damaged(path: str, error: Exception) -> OSError:
    return OSError(f'{path} is damaged ({_reason(error)}); expected a complete image')


def _reason(error: BaseException) -> str:
    """The first cause of an error, which is the one that names a file, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _require_members(path: str) -> None:
    """Raise FileNotFoundError for the sheets of a virtual mosaic that are not there."""
    missing = sorted(set(_missing_members(Path(path))))
    if missing:
        more = f' and {len(missing) - MAX_NAMES} more' if len(missing) > MAX_NAMES else ''
        raise FileNotFoundError(
            f'{path} is made of files that do not exist: {", ".join(missing[:MAX_NAMES])}{more}; '
            'expected them there: move them back, or build the mosaic again (gdalbuildvrt)')


def _missing_members(path: Path, depth: int = 0) -> Iterable[str]:
    """The local files that a VRT and the VRTs in it name, as far as they do not exist."""
    if path.suffix.lower() != '.vrt' or not path.is_file() or depth > 8:
        return
    try:
        elements = list(ElementTree.parse(path).iter())
    except ElementTree.ParseError:                  # not ours to judge: GDAL has read it
        return
    for element in elements:
        if element.tag not in ('SourceFilename', 'SourceDataset') or not element.text:
            continue
        named = element.text.strip()
        member = path.parent / named if element.get('relativeToVRT') == '1' else Path(named)
        # A driver's own name ("NETCDF:...", "<VRTDataset>") is no path.
        if _is_remote(named) or ':' in named[2:] or named.startswith('<'):
            continue
        if not member.exists():
            yield str(member)
        else:
            yield from _missing_members(member, depth + 1)


def _describe(path: str, frame: LocalFrame, crs, map_from_crs: Transformer, period: float | None,
              ) -> tuple[_Source, np.ndarray | None, list[str]]:
    """The source; the sampled colours, where they need a stretch; and what to say of it."""
    with _open_dataset(path) as dataset:
        bounds_m = bounds_in_map(path, dataset, frame, map_from_crs)
        pixel_m = _pixel_size(dataset, map_from_crs)
        if not PIXEL_RANGE_M[0] <= pixel_m <= PIXEL_RANGE_M[1]:
            raise ValueError(
                f'{path} has pixels of {pixel_m:.3g} m; expected {PIXEL_RANGE_M[0]} to '
                f'{PIXEL_RANGE_M[1]} m (is its coordinate reference system {crs.name} right?)'
            )
        block_px = max(rows * cols for rows, cols in dataset.block_shapes)
        if block_px > MAX_BLOCK_PX:
            raise ValueError(
                f'{path} has blocks of {block_px / 1e6:.0f} million pixels, which are read whole; '
                f'expected at most {MAX_BLOCK_PX / 1e6:.0f} (gdal_translate -co TILED=YES)')
        try:
            samples, values, notes = describe_samples(path, dataset)
        except RasterioError as error:
            raise _damaged(path, error) from error
        owner = dataset.tags().get('TIFFTAG_COPYRIGHT', '').strip()
        taken = (dataset.tags(ns='IMAGERY').get('ACQUISITIONDATETIME')
                 or dataset.tags().get('TIFFTAG_DATETIME', ''))
        date = re.match(r'(\d{4})[:-](\d\d)[:-](\d\d)', taken)
        source = _Source(
            path, (dataset.width, dataset.height), dataset.transform, samples, map_from_crs,
            period, pixel_m, bounds_m, f'{_name(path)} ({owner})' if owner else _name(path),
            int(''.join(date.groups())) if date else None)
        return source, values, notes


def _pixel_size(dataset, map_from_crs: Transformer) -> float:
    u_px, v_px = dataset.width / 2.0, dataset.height / 2.0
    steps = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x_m, y_m = map_from_crs.transform(
        *apply_affine(dataset.transform, u_px + steps[:, 0], v_px + steps[:, 1]))
    return float(np.hypot(x_m[1:] - x_m[0], y_m[1:] - y_m[0]).min())


def _reduction(grid: MapGrid, source: _Source) -> int:
    """How many pixels of the file, along each axis, are read as one."""
    pixels = int(grid.cell_m / source.pixel_m)
    return pixels * 2 // COARSE if pixels >= COARSE else 1


def _oversampling(grid: MapGrid, source: _Source) -> int:
    """Working samples per cell and axis, at most 2 % farther apart than what is read."""
    read_m = source.pixel_m * _reduction(grid, source)
    return max(1, math.ceil(0.98 * grid.cell_m / read_m))


def _part_over(grid: MapGrid, bounds_m) -> tuple[slice, slice]:
    """The rows and columns of a grid that a box may touch; empty for one outside it."""
    west, south, east, north = bounds_m
    top, left = grid.row_col_from_xy(west, north)
    bottom, right = grid.row_col_from_xy(east, south)
    return tuple(
        slice(min(max(0, math.floor(first)), size), max(0, min(size, math.ceil(last) + 1)))
        for first, last, size in ((top, bottom, grid.rows), (left, right, grid.cols)))


def _pixels_of(grid: MapGrid, source: _Source) -> tuple[np.ndarray, np.ndarray]:
    """The cell centres in the file: u_px, v_px (rows, cols), whole numbers at pixel centres."""
    rows, row_weights = _hat_weights(grid.rows)
    cols, col_weights = _hat_weights(grid.cols)
    x_m, y_m = grid.xy_from_row_col(rows[:, None], cols[None, :])
    x_m, y_m = np.broadcast_arrays(x_m, y_m)
    east, north = source.map_from_crs.transform(x_m, y_m, direction='INVERSE')
    if source.easting_period is not None:
        middle, _ = apply_affine(source.crs_from_pixel, *(side / 2 for side in source.size_px))
        east = near_longitude(east, middle, source.easting_period)
    u_px, v_px = apply_affine(~source.crs_from_pixel, east, north)
    # What lies outside the projection is inf; NaN would spread through the interpolation as well.
    u_px, v_px = (np.nan_to_num(axis - 0.5, nan=-1e9, posinf=-1e9) for axis in (u_px, v_px))
    return row_weights @ u_px @ col_weights.T, row_weights @ v_px @ col_weights.T


def _hat_weights(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes every NODE_STEP_PX around 0..count-1, and their linear weights (count, nodes)."""
    nodes = NODE_STEP_PX * np.arange(math.ceil((count - 1) / NODE_STEP_PX) + 1)
    distance = np.abs(np.arange(count)[:, None] - nodes[None, :])
    return nodes, np.maximum(0.0, 1.0 - distance / NODE_STEP_PX)


def _span(positions_px: np.ndarray, size_px: int, margin_px: int) -> tuple[int, int]:
    first = max(0, math.floor(positions_px.min()) - margin_px)
    last = min(size_px, math.ceil(positions_px.max()) + 1 + margin_px)
    return first, last
