"""Georeferenced aerial or satellite imagery, read as north-up rasters in the ``map`` plane.

It takes one or more GeoTIFFs with 8-bit samples, each in any coordinate reference system. For
each system one PROJ operation is chosen explicitly, so that its accuracy is known and can be
refused. Where files overlap, the first one of the list that holds data is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
import math
from pathlib import Path
import warnings

import cv2
import numpy as np
from pyproj import CRS
from pyproj.aoi import AreaOfInterest
from pyproj.exceptions import ProjError
from pyproj.transformer import Transformer, TransformerGroup
import rasterio
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window

from crossview_localizer.geometry import LocalFrame, MapGrid

BLOCK_PX = 1024         # working samples per side that are warped at once
NODE_STEP_PX = 32       # every so many working samples are projected exactly, others interpolated
OPEN_FILES = 64
MAX_BLOCK_PX = 2**26    # pixels of a block of a file
PIXEL_RANGE_M = (0.005, 10.0)
MAX_EXTENT_M = 200e3    # farther from its origin the transverse Mercator plane is not metric


@dataclass(frozen=True)
class CrsAccuracy:
    """What PROJ says of the transform from the reference system of some files to WGS84.

    ``accuracy_m`` is None if PROJ does not know it; ``missing_grid`` is the file that a more
    accurate operation needs and that is not installed.
    """

    files: tuple[str, ...]
    crs: str
    operation: str
    accuracy_m: float | None
    missing_grid: str | None

    def __str__(self) -> str:
        known = 'unknown' if self.accuracy_m is None else f'{self.accuracy_m:g} m'
        grid = f'; better with the PROJ grid {self.missing_grid}' if self.missing_grid else ''
        more = f' and {len(self.files) - 1} more' if len(self.files) > 1 else ''
        return f'{self.files[0]}{more}: {self.crs}, accuracy {known} ({self.operation}{grid})'


@dataclass(frozen=True)
class _Source:
    path: Path
    size_px: tuple[int, int]                          # width, height
    crs_from_pixel: rasterio.Affine
    bands: tuple[int, ...]                            # three, or one that is repeated
    palette: np.ndarray | None                        # (256, 3) uint8
    map_from_crs: Transformer
    pixel_m: float                                    # the finer of both axes
    bounds_m: tuple[float, float, float, float]       # x_min, y_min, x_max, y_max
    attribution: str


class Imagery:
    """A mosaic of GeoTIFFs in one ``map`` frame; an instance serves one thread at a time."""

    def __init__(
        self, frame: LocalFrame, sources: Sequence[_Source], crs_accuracy: Sequence[CrsAccuracy]
    ):
        self.frame = frame
        self.crs_accuracy = tuple(crs_accuracy)     # one entry per reference system
        self._sources = tuple(sources)
        self._dataset = lru_cache(OPEN_FILES)(_open_dataset)

    @classmethod
    def open(
        cls, paths: str | Path | Sequence[str | Path], frame: LocalFrame | None = None
    ) -> 'Imagery':
        """Open GeoTIFFs; without a frame the origin of the map is the centre of the imagery.

        Raises OSError for a file that cannot be read and ValueError for one that is not
        georeferenced, has an impossible size, or does not hold 8-bit grey, RGB or palette samples
        with optional alpha.
        """
        paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        if not paths:
            raise ValueError('no imagery given; expected at least one GeoTIFF')
        files = {}                                  # paths and boxes by reference system
        for path in map(Path, paths):
            crs, box = _crs_and_box(path)
            files.setdefault(crs, []).append((path, box))
        if frame is None:
            boxes = [box for found in files.values() for _, box in found]
            frame = LocalFrame(*_middle(_union(boxes)))
        sources, accuracies = {}, []
        for crs, found in files.items():
            operation, accuracy = _choose_operation(crs, frame, found)
            accuracies.append(accuracy)
            sources.update({path: _describe(path, frame, crs, operation) for path, _ in found})
        return cls(frame, [sources[Path(path)] for path in paths], accuracies)

    @property
    def bounds_m(self) -> tuple[float, float, float, float]:
        """The box around all files in ``map``: x_min, y_min, x_max, y_max."""
        return _union(source.bounds_m for source in self._sources)

    @property
    def pixel_m(self) -> float:
        """Ground size of a pixel of the finest file."""
        return min(source.pixel_m for source in self._sources)

    @property
    def identity(self) -> tuple[tuple[str, int, int], ...]:
        """Name, size in bytes and modification time (ns) of each file.

        It changes with an input, and is the same for a copy in another folder that kept its time.
        """
        stats = [(source.path.name, source.path.stat()) for source in self._sources]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

    @property
    def attribution(self) -> tuple[str, ...]:
        """The names of the files with the copyright that their tags state."""
        return tuple(source.attribution for source in self._sources)

    def require_accuracy(self, max_error_m: float) -> None:
        """Raise ValueError if a transform to WGS84 is less accurate; unknown ones need inf."""
        for found in self.crs_accuracy:
            accuracy_m = math.inf if found.accuracy_m is None else found.accuracy_m
            if not accuracy_m <= max_error_m:
                raise ValueError(
                    f'{found}: expected {max_error_m:g} m or better; use imagery in WGS84 (for '
                    'example its UTM zone), install the PROJ grid, or accept the error with '
                    '--max-crs-error'
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
        rgb = np.zeros((grid.rows, grid.cols, 3), np.uint8)
        valid = np.zeros((grid.rows, grid.cols), bool)
        step = max(1, BLOCK_PX // max(_oversampling(grid, source) for source in self._sources))
        for row in range(0, grid.rows, step):
            for col in range(0, grid.cols, step):
                block = grid.crop(
                    row, col, min(step, grid.rows - row), min(step, grid.cols - col))
                part = np.s_[row:row + block.rows, col:col + block.cols]
                rgb[part], valid[part] = self._raster_block(block)
        return rgb, valid

    def _raster_block(self, grid: MapGrid) -> tuple[np.ndarray, np.ndarray]:
        total = np.zeros((grid.rows, grid.cols, 4), np.float32)   # rgb * weight, weight
        for source in self._sources:
            if total[..., 3].min() > 0.999:
                break
            layer = self._warp(grid, source)
            if layer is not None:
                total += (1.0 - total[..., 3:]) * layer
        weight = total[..., 3:]
        valid = weight[..., 0] >= 0.5
        rgb = np.where(valid[..., None], total[..., :3] / np.maximum(weight, 1e-6), 0.0)
        return np.rint(rgb).clip(0, 255).astype(np.uint8), valid

    def _warp(self, grid: MapGrid, source: _Source) -> np.ndarray | None:
        """One file over a grid, float32 (rows, cols, 4): rgb * weight, weight; None outside it."""
        if not _overlap(grid, source.bounds_m):
            return None
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
        left, right = _span(u_px[inside], width)
        top, bottom = _span(v_px[inside], height)
        pixels = self._read(source, Window(left, top, right - left, bottom - top))

        # Interpolate at the working samples, then average those of each cell.
        layer = cv2.remap(
            pixels, (u_px - left).astype(np.float32), (v_px - top).astype(np.float32),
            cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        layer[~inside] = 0.0
        return cv2.resize(layer, (grid.cols, grid.rows), interpolation=cv2.INTER_AREA)

    def _read(self, source: _Source, window: Window) -> np.ndarray:
        """float32 (H, W, 4): rgb * weight, and weight: 1 where the file has data, else 0."""
        try:
            dataset = self._dataset(source.path)
            bands = dataset.read(source.bands, window=window)        # (1 or 3, H, W)
            weight = dataset.dataset_mask(window=window) > 127       # (H, W)
        except RasterioIOError as error:
            raise OSError(
                f'{source.path} is damaged ({_one_line(error)}); expected a complete GeoTIFF'
            ) from error
        pixels = np.empty((*weight.shape, 4), np.float32)
        if source.palette is not None:
            pixels[..., :3] = source.palette[bands[0]]
        else:
            pixels[..., :3] = np.moveaxis(bands, 0, 2)
        pixels[..., 3] = 1.0
        pixels[~weight] = 0.0
        return pixels


def _open_dataset(path: Path):
    if not path.exists():
        raise FileNotFoundError(f'{path} does not exist; expected a GeoTIFF')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            return rasterio.open(path)
    except RasterioError as error:
        raise OSError(f'{path} cannot be read as an image ({_one_line(error)})') from error


def _georeference(path: Path, dataset) -> CRS:
    if dataset.crs is None:
        raise ValueError(
            f'{path} has no coordinate reference system; expected a GeoTIFF with one '
            '(gdal_edit.py -a_srs EPSG:... adds it)'
        )
    terms = np.array(dataset.transform[:6])
    if not np.isfinite(terms).all() or dataset.transform.is_degenerate:
        raise ValueError(
            f'{path} has the geotransform {terms.tolist()}; expected finite, independent axes')
    if dataset.transform.is_identity:
        raise ValueError(f'{path} has no geotransform; expected an orthorectified GeoTIFF')
    try:
        return CRS.from_user_input(dataset.crs).to_2d()
    except ProjError as error:
        raise ValueError(f'{path}: its coordinate reference system is not understood') from error


def _apply(affine: rasterio.Affine, first, second):
    return (
        affine.a * first + affine.b * second + affine.c,
        affine.d * first + affine.e * second + affine.f,
    )


def _edge_points(dataset, steps: int = 21) -> tuple[np.ndarray, np.ndarray]:
    """Points along the outline of a file, in its own coordinates."""
    along = np.linspace(0.0, 1.0, steps)
    u_px = dataset.width * np.concatenate((along, along, 0 * along, 0 * along + 1))
    v_px = dataset.height * np.concatenate((0 * along, 0 * along + 1, along, along))
    return _apply(dataset.transform, u_px, v_px)


def _crs_and_box(path: Path) -> tuple[CRS, tuple[float, float, float, float]]:
    """The reference system, and the box: least latitude and longitude, then the greatest."""
    with _open_dataset(path) as dataset:
        crs = _georeference(path, dataset)
        wgs84_from_crs = Transformer.from_crs(crs, 'EPSG:4326', always_xy=True)
        longitude_deg, latitude_deg = wgs84_from_crs.transform(*_edge_points(dataset))
    box = (latitude_deg.min(), longitude_deg.min(), latitude_deg.max(), longitude_deg.max())
    if not np.isfinite(box).all() or abs(box[0]) > 89.0 or abs(box[2]) > 89.0:
        raise ValueError(f'{path} lies outside its coordinate reference system {crs.name}')
    return crs, box


def _union(boxes) -> tuple[float, float, float, float]:
    boxes = np.array(list(boxes))
    return (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())


def _middle(box) -> tuple[float, float]:
    """The middle, rounded to 7 decimals (a centimetre) so that it can be typed."""
    return round((box[0] + box[2]) / 2.0, 7), round((box[1] + box[3]) / 2.0, 7)


def _describe(path: Path, frame: LocalFrame, crs: CRS, map_from_crs: Transformer) -> _Source:
    with _open_dataset(path) as dataset:
        x_m, y_m = map_from_crs.transform(*_edge_points(dataset))
        bounds_m = tuple(float(value) for value in (x_m.min(), y_m.min(), x_m.max(), y_m.max()))
        if not np.isfinite(bounds_m).all() or max(map(abs, bounds_m)) > MAX_EXTENT_M:
            raise ValueError(
                f'{path} reaches {max(map(abs, bounds_m)) / 1e3:.0f} km from the map origin '
                f'({frame.latitude_deg:.5f}, {frame.longitude_deg:.5f}); expected at most '
                f'{MAX_EXTENT_M / 1e3:.0f} km'
            )
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
        bands, palette = _colour_bands(path, dataset)
        owner = dataset.tags().get('TIFFTAG_COPYRIGHT', '').strip()
        return _Source(
            path, (dataset.width, dataset.height), dataset.transform, bands, palette, map_from_crs,
            pixel_m, bounds_m, f'{path.name} ({owner})' if owner else path.name)


def _choose_operation(crs: CRS, frame: LocalFrame, found) -> tuple[Transformer, CrsAccuracy]:
    """The best installed operation for the area of these files, and its accuracy by PROJ."""
    south, west, north, east = _union(box for _, box in found)
    area = AreaOfInterest(west, south, east, north)
    names = tuple(path.name for path, _ in found)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)      # CrsAccuracy reports missing grids
        group = TransformerGroup(crs, CRS(frame.proj4), always_xy=True, area_of_interest=area)
    if not group.transformers:
        raise ValueError(f'{names[0]}: PROJ knows no transform from {crs.name} to WGS84')
    chosen = group.transformers[0]
    missing = None
    if not group.best_available:
        grids = [grid.short_name for grid in group.unavailable_operations[0].grids]
        missing = ', '.join(grids) or None
    accuracy_m = chosen.accuracy if chosen.accuracy >= 0.0 else None
    return chosen, CrsAccuracy(names, crs.name, _shift_name(chosen), accuracy_m, missing)


def _shift_name(operation: Transformer) -> str:
    """The datum shift of an operation; the projections before and after it are exact."""
    steps = (step.name for step in operation.operations or ())
    shifts = [name for name in steps if ' to ' in name or 'Ballpark' in name]
    return '; '.join(shifts) or 'no datum shift'


def _pixel_size(dataset, map_from_crs: Transformer) -> float:
    u_px, v_px = dataset.width / 2.0, dataset.height / 2.0
    steps = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    x_m, y_m = map_from_crs.transform(
        *_apply(dataset.transform, u_px + steps[:, 0], v_px + steps[:, 1]))
    return float(np.hypot(x_m[1:] - x_m[0], y_m[1:] - y_m[0]).min())


def _colour_bands(path: Path, dataset) -> tuple[tuple[int, ...], np.ndarray | None]:
    if any(kind != 'uint8' for kind in dataset.dtypes):
        raise ValueError(
            f'{path} has {", ".join(sorted(set(dataset.dtypes)))} samples; expected 8-bit ones '
            '(gdal_translate -ot Byte -scale converts)'
        )
    meaning = dataset.colorinterp
    if meaning[0] == ColorInterp.palette:
        entries = dataset.colormap(1)
        palette = np.array([entries.get(value, (0, 0, 0))[:3] for value in range(256)], np.uint8)
        return (1,), palette
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in meaning for colour in rgb):
        return tuple(meaning.index(colour) + 1 for colour in rgb), None
    plain = [band for band, use in enumerate(meaning, 1) if use != ColorInterp.alpha]
    return (tuple(plain[:3]) if len(plain) >= 3 else (plain[0],)), None


def _oversampling(grid: MapGrid, source: _Source) -> int:
    """Working samples per cell and axis, at most 2 % farther apart than the pixels of the file."""
    return max(1, math.ceil(0.98 * grid.cell_m / source.pixel_m))


def _overlap(grid: MapGrid, bounds_m) -> bool:
    half_m = grid.cell_m / 2.0
    right_m, bottom_m = grid.xy_from_row_col(grid.rows - 1, grid.cols - 1)
    return (
        grid.x0_m - half_m < bounds_m[2] and right_m + half_m > bounds_m[0]
        and bottom_m - half_m < bounds_m[3] and grid.y0_m + half_m > bounds_m[1]
    )


def _pixels_of(grid: MapGrid, source: _Source) -> tuple[np.ndarray, np.ndarray]:
    """The cell centres in the file: u_px, v_px (rows, cols), whole numbers at pixel centres."""
    rows, row_weights = _hat_weights(grid.rows)
    cols, col_weights = _hat_weights(grid.cols)
    x_m, y_m = grid.xy_from_row_col(rows[:, None], cols[None, :])
    x_m, y_m = np.broadcast_arrays(x_m, y_m)
    east, north = source.map_from_crs.transform(x_m, y_m, direction='INVERSE')
    u_px, v_px = _apply(~source.crs_from_pixel, east, north)
    # What lies outside the projection is inf; NaN would spread through the interpolation as well.
    u_px, v_px = (np.nan_to_num(axis - 0.5, nan=-1e9, posinf=-1e9) for axis in (u_px, v_px))
    return row_weights @ u_px @ col_weights.T, row_weights @ v_px @ col_weights.T


def _hat_weights(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes every NODE_STEP_PX around 0..count-1, and their linear weights (count, nodes)."""
    nodes = NODE_STEP_PX * np.arange(math.ceil((count - 1) / NODE_STEP_PX) + 1)
    distance = np.abs(np.arange(count)[:, None] - nodes[None, :])
    return nodes, np.maximum(0.0, 1.0 - distance / NODE_STEP_PX)


def _span(positions_px: np.ndarray, size_px: int) -> tuple[int, int]:
    first = max(0, math.floor(positions_px.min()) - 1)
    last = min(size_px, math.ceil(positions_px.max()) + 2)
    return first, last


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
