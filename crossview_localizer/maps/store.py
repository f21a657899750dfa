"""The file format of a map: a Zarr v3 group that QGIS, xarray and others can open.

    descriptors   (band, y, x)         int8 or float16; one chunk for each block of the map
    tile_date     (block_y, block_x)   int32; date of the imagery, YYYYMMDD; 1 where it is not
                                       known, 0 where there is no tile
    tile_hash     (block_y, block_x)   uint64; what the tile was made from, 0 where it is not made
    x, y          coordinates of the cells in ``map``, m
    spatial_ref   the ``map`` plane, by the CF conventions
    picture/      the same for a picture of the area: rgb (band, y, x) uint8

The attributes of the group hold the plane and its transform by the GeoZarr conventions ``proj:``
and ``spatial:``, and all that a reader of descriptors needs under ``crossview_localizer``. An int8
value stands for a number by the CF attribute ``scale_factor``. A block is one lattice point of the
map for a dense network, whose descriptor is a square of cells, and a square of lattice points for
a tile network, whose descriptor is one cell. A map is a folder, a zip file of one, or an address
that fsspec opens (http://, s3://, memory://).

Shape legend: R x Q lattice points, D numbers of a descriptor, C bands, p lattice points along a
side of a chunk, s cells along a side of a descriptor; D = C * s * s.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
import warnings
import zipfile

import numpy as np

from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import LocalFrame, MapGrid

FORMAT_VERSION = 3
ATTRIBUTE = 'crossview_localizer'
INT8_SCALE = 1.0 / 127.0        # the components of unit vectors lie within +-1
MISSING = -128                  # in int8; NaN in float16
DENSE_SIZE = 4096               # descriptors of this many numbers have a chunk each
MAX_LATTICE = 100_000_000       # points of the grid, whether they have a tile or not
PICTURE_CHUNK_PX = 512
UNKNOWN_DATE = 1
# Conventions of the attributes, see github.com/zarr-conventions.
CONVENTIONS = [
    {'uuid': 'f17cb550-5864-4468-aeb7-f3180cfb622f', 'name': 'proj:',
     'spec_url': 'https://github.com/zarr-conventions/geo-proj'},
    {'uuid': '689b58e2-cf7b-45e0-9fff-9cfc0883d6b4', 'name': 'spatial:',
     'spec_url': 'https://github.com/zarr-conventions/spatial'}]
REBUILD = (
    'rebuild with: ros2 run crossview_localizer build_map IMAGERY --weights WEIGHTS --out MAP ...')


@dataclass(frozen=True)
class Layout:
    """What a map says of itself.

    ``grid`` is the lattice of its tiles, ``size`` the numbers of a descriptor,
    ``descriptor_cells`` the cells along a side of one, ``square`` the lattice points along a side
    of the part that is written at once. The plane is nowhere on Earth where ``frame`` is None.
    """

    frame: LocalFrame | None
    grid: MapGrid
    size: int
    descriptor_cells: int
    square: int
    fingerprint: str
    tile_m: float
    tile_px: int
    attribution: tuple[str, ...] = ()
    is_int8: bool = True

    def __post_init__(self):
        if not (0 < self.grid.rows * self.grid.cols <= MAX_LATTICE and self.square > 0
                and self.size > 0 and self.size % self.descriptor_cells ** 2 == 0):
            raise ValueError(
                f'a map of {self.grid.rows} x {self.grid.cols} points with descriptors of '
                f'{self.size} numbers and {self.descriptor_cells} x {self.descriptor_cells} cells')

    @property
    def bands(self) -> int:
        return self.size // self.descriptor_cells ** 2

    @property
    def chunk_points(self) -> int:
        """Lattice points along a side of a chunk."""
        return 1 if self.size >= DENSE_SIZE else self.square

    @property
    def cells(self) -> MapGrid:
        """The grid of the descriptors' cells."""
        n, cell_m = self.descriptor_cells, self.grid.cell_m / self.descriptor_cells
        shift_m = (self.grid.cell_m - cell_m) / 2.0
        return MapGrid(self.grid.rows * n, self.grid.cols * n, cell_m,
                       self.grid.x0_m - shift_m, self.grid.y0_m + shift_m)

    def attributes(self) -> dict:
        frame = self.frame
        return {
            'format_version': FORMAT_VERSION,
            'origin_latitude_deg': frame and frame.latitude_deg,
            'origin_longitude_deg': frame and frame.longitude_deg,
            'grid': asdict(self.grid), 'size': self.size,
            'descriptor_cells': self.descriptor_cells, 'square': self.square,
            'fingerprint': self.fingerprint, 'tile_m': self.tile_m, 'tile_px': self.tile_px,
            'attribution': list(self.attribution), 'is_int8': self.is_int8}

    @classmethod
    def from_attributes(cls, found: dict) -> 'Layout':
        version = found['format_version']
        if version != FORMAT_VERSION:
            raise ValueError(f'has the map format version {version}; expected {FORMAT_VERSION}')
        place = found.get('origin_latitude_deg'), found.get('origin_longitude_deg')
        return cls(
            None if None in place else LocalFrame(*place), MapGrid(**found['grid']),
            found['size'], found['descriptor_cells'], found['square'], found['fingerprint'],
            found['tile_m'], found['tile_px'], tuple(found['attribution']), found['is_int8'])


class MapStore:
    """A map on a disk, on the web, or in memory."""

    def __init__(self, group, layout: Layout):
        self.group, self.layout = group, layout
        self._descriptors = group['descriptors']
        self._dates, self._hashes = group['tile_date'], group['tile_hash']
        cells = layout.cells
        expected = {
            'descriptors': (layout.bands, cells.rows, cells.cols),
            'tile_date': (layout.grid.rows, layout.grid.cols),
            'tile_hash': (layout.grid.rows, layout.grid.cols)}
        for name, shape in expected.items():
            if group[name].shape != shape:
                raise ValueError(f'{name} is {group[name].shape}; expected {shape}')

    @classmethod
    def create(cls, path: str | Path | None, layout: Layout, notes: dict | None = None,
               ) -> 'MapStore':
        """Make an empty map, in memory where there is no path; ``notes`` go into its attributes.

        It is not one to be opened for use before ``finish``.
        """
        import zarr
        from zarr.storage import LocalStore, MemoryStore

        store = MemoryStore() if path is None else LocalStore(path)
        cells, dtype = layout.cells, 'int8' if layout.is_int8 else 'float16'
        group = zarr.create_group(store, overwrite=True, attributes={
            'Conventions': 'CF-1.11', 'title': 'Descriptors of satellite imagery',
            **_place_attributes(layout.frame, cells),
            ATTRIBUTE: layout.attributes() | (notes or {})})
        side = layout.chunk_points * layout.descriptor_cells
        attributes = {'long_name': 'unit vectors', 'grid_mapping': 'spatial_ref'}
        if layout.is_int8:
            attributes |= {'scale_factor': INT8_SCALE, '_FillValue': MISSING}
        group.create_array(
            'descriptors', shape=(layout.bands, cells.rows, cells.cols), dtype=dtype,
            chunks=(layout.bands, side, side), compressors=None, attributes=attributes,
            fill_value=MISSING if layout.is_int8 else np.nan, dimension_names=('band', 'y', 'x'))
        for name, kind, text in (
                ('tile_date', 'int32', 'date of the imagery, YYYYMMDD; 1 unknown, 0 no tile'),
                ('tile_hash', 'uint64', 'hash of what the tile was made from; 0 not made')):
            group.create_array(
                name, shape=(layout.grid.rows, layout.grid.cols), dtype=kind, fill_value=0,
                chunks=(layout.square, layout.square), attributes={'long_name': text},
                dimension_names=('block_y', 'block_x'))
        _add_coordinates(group, layout.frame, cells)
        return cls(group, layout)

    @classmethod
    def open(cls, path: str | Path, mode: str = 'r') -> 'MapStore':
        """Open a finished map, or with 'r+' any; OSError or ValueError for anything else."""
        import zarr

        try:
            group = zarr.open_group(_store_of(path, mode), mode=mode, zarr_format=3)
            found = group.attrs[ATTRIBUTE]
            if mode == 'r' and 'tiles' not in found:
                raise ValueError('is not finished; the same build_map command goes on with it')
            return cls(group, Layout.from_attributes(found))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f'map {path} does not exist or is not a map; expected one of build_map') from error
        except OSError:
            raise
        # What a damaged file raises depends on where the damage is.
        except Exception as error:
            reason = ' '.join(str(error).split()) or type(error).__name__
            raise ValueError(
                f'{path} is not an embedding map, or is damaged ({reason}); {REBUILD}') from error

    @property
    def notes(self) -> dict:
        """All that stands in the attributes of the map."""
        return self.group.attrs[ATTRIBUTE]

    @property
    def tiles(self) -> int:
        return self.notes['tiles']

    def read(self, row: int, col: int, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
        """The descriptors of a part of the lattice (rows, cols, D), and which are there, bool."""
        s = self.layout.descriptor_cells
        with _damage_named():
            found = self._descriptors[:, row * s:(row + rows) * s, col * s:(col + cols) * s]
        blocks = found.reshape(self.layout.bands, rows, s, cols, s).transpose(1, 3, 0, 2, 4)
        blocks = blocks.reshape(rows, cols, self.layout.size)
        first = blocks[..., 0]
        return blocks, first != MISSING if self.layout.is_int8 else ~np.isnan(first)

    def write(self, row: int, col: int, descriptors: np.ndarray, there: np.ndarray,
              dates: np.ndarray, hashes: np.ndarray) -> None:
        """Write a square of the lattice that begins at a lattice point.

        ``descriptors`` (n, D) are those of the tiles that are ``there`` (rows, cols), with the
        date of the imagery of each, and what each was made from, 0 where it is not wanted.
        """
        layout, s = self.layout, self.layout.descriptor_cells
        rows, cols = there.shape
        whole = np.full((rows, cols, layout.size), MISSING if layout.is_int8 else np.nan,
                        self._descriptors.dtype)
        whole[there] = quantised(descriptors) if layout.is_int8 else descriptors
        blocks = whole.reshape(rows, cols, layout.bands, s, s).transpose(2, 0, 3, 1, 4)
        self._descriptors[:, row * s:(row + rows) * s, col * s:(col + cols) * s] = (
            blocks.reshape(layout.bands, rows * s, cols * s))
        part = np.s_[row:row + rows, col:col + cols]
        self._dates[part] = np.where(there, dates, 0)
        self._hashes[part] = hashes                     # last: it says that the square is made

    def read_decoded(self, *part: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``read``, in float16 whatever they are stored as."""
        found, there = self.read(*part)
        if self.layout.is_int8:
            found = (found * np.float32(INT8_SCALE)).astype(np.float16)
        return found, there

    def dates(self) -> np.ndarray:
        """``tile_date`` as a whole."""
        with _damage_named():
            return self._dates[:]

    def hashes(self) -> np.ndarray:
        """``tile_hash`` as a whole."""
        with _damage_named():
            return self._hashes[:]

    def picture(self) -> tuple[np.ndarray, MapGrid] | None:
        """The picture of the area, rgb (rows, cols, 3) uint8, and its grid; None without one."""
        grid = self.notes.get('picture_grid')
        if grid is None:
            return None
        with _damage_named():
            rgb = self.group['picture/rgb'][:]
        if rgb.shape != (3, grid['rows'], grid['cols']):
            raise ValueError(f'the picture in the map is {rgb.shape}; {REBUILD}')
        return np.moveaxis(rgb, 0, 2), MapGrid(**grid)

    def write_picture(self, rgb: np.ndarray, grid: MapGrid) -> None:
        group = self.group.create_group('picture', overwrite=True, attributes={
            'Conventions': 'CF-1.11', **_place_attributes(self.layout.frame, grid)})
        side = min(PICTURE_CHUNK_PX, grid.rows), min(PICTURE_CHUNK_PX, grid.cols)
        array = group.create_array(
            'rgb', shape=(3, grid.rows, grid.cols), dtype='uint8', chunks=(3, *side),
            attributes={'grid_mapping': 'spatial_ref'}, dimension_names=('band', 'y', 'x'))
        array[:] = np.moveaxis(rgb, 2, 0)
        _add_coordinates(group, self.layout.frame, grid)
        self.note(picture_grid=asdict(grid))

    def finish(self, tiles: int) -> None:
        """Note how many tiles there are, which makes this a map to be used."""
        import zarr

        self.note(plan=None, tiles=int(tiles))
        with warnings.catch_warnings():
            # Zarr v3 has no word on consolidated metadata yet; readers over HTTP need them.
            warnings.simplefilter('ignore', UserWarning)
            zarr.consolidate_metadata(self.group.store)

    def note(self, **changes) -> None:
        """Change what stands in the attributes; None takes it out."""
        notes = self.notes | changes
        self.group.attrs[ATTRIBUTE] = {
            name: value for name, value in notes.items() if value is not None}


@contextmanager
def _damage_named() -> Iterator[None]:
    """Whatever a damaged chunk raises is an OSError that says what to do."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = ' '.join(str(error).split()) or type(error).__name__
        raise OSError(f'the map is damaged ({reason}); {REBUILD}') from error


def quantised(descriptors: np.ndarray) -> np.ndarray:
    """Unit vectors as int8, in steps of INT8_SCALE."""
    return np.rint(descriptors.astype(np.float32) / INT8_SCALE).clip(-127, 127).astype(np.int8)


def _store_of(path: str | Path, mode: str):
    from zarr.abc.store import Store
    from zarr.storage import FsspecStore, LocalStore, StorePath, ZipStore

    if isinstance(path, (Store, StorePath)):
        return path
    if '://' in str(path):
        return FsspecStore.from_url(str(path), read_only=mode == 'r')
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(path)
    if path.is_file():
        if not zipfile.is_zipfile(path):
            raise ValueError('it is neither a folder nor a zip file')
        return ZipStore(path, read_only=True, mode='r')
    return LocalStore(path, read_only=mode == 'r')


def pack(folder: Path, path: Path) -> None:
    """Write a map that is a folder into a zip file; the same map gives the same bytes."""
    with write_atomically(path) as writing, zipfile.ZipFile(writing, 'w') as packed:
        for file in sorted(folder.rglob('*')):
            if file.is_file():
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                packed.writestr(entry, file.read_bytes())


def _crs(frame: LocalFrame | None):
    from pyproj import CRS

    return None if frame is None else CRS(frame.proj4)


def _transform(grid: MapGrid) -> list[float]:
    """Of the corner of a cell: x step, 0, west, 0, y step, north."""
    half_m = grid.cell_m / 2.0
    return [grid.cell_m, 0.0, grid.x0_m - half_m, 0.0, -grid.cell_m, grid.y0_m + half_m]


def _place_attributes(frame: LocalFrame | None, grid: MapGrid) -> dict:
    step, _, west, _, _, north = _transform(grid)
    place = {} if frame is None else {'proj:wkt2': _crs(frame).to_wkt('WKT2_2019')}
    return {
        'zarr_conventions': CONVENTIONS, **place, 'spatial:dimensions': ['y', 'x'],
        'spatial:transform': _transform(grid), 'spatial:shape': [grid.rows, grid.cols],
        'spatial:bbox': [west, north - grid.rows * step, west + grid.cols * step, north]}


def _add_coordinates(group, frame: LocalFrame | None, grid: MapGrid) -> None:
    for name, values in zip(('x', 'y'), grid.cell_centres()):
        array = group.create_array(
            name, shape=values.shape, dtype='float64', chunks=values.shape,
            dimension_names=(name,),
            attributes={'units': 'm', 'axis': name.upper(),
                        'standard_name': f'projection_{name}_coordinate'})
        array[:] = values
    crs = _crs(frame)
    reference = group.create_array('spatial_ref', shape=(), dtype='int32', attributes={
        **({} if crs is None else crs.to_cf()),
        'GeoTransform': ' '.join(str(_transform(grid)[k]) for k in (2, 0, 1, 5, 3, 4))})
    reference[...] = 0
