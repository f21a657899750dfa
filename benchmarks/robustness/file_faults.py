"""The faults of what ``build_map`` is given: imagery, mosaics of it, and routes."""

from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
import re
import shutil

import numpy as np
from pyproj import Transformer
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.transform import Affine

from benchmarks.robustness import flat_world
from benchmarks.robustness.node_trial import NodeTrial
from benchmarks.robustness.sensor_faults import FaultResult
from crossview_localizer import build_map

SIDE_PX, PX_M = 480, 0.25
UTM_60S, UTM_30N = 'EPSG:32760', 'EPSG:32630'
LOCAL = 'LOCAL_CS["Local Coordinates (m)",UNIT["metre",1]]'
OXFORD_DEG, FIJI_DEG = (51.7514, -1.2612), (-16.8, 180.0)
OXFORD_ROUTE = 'latitude,longitude\n51.7514,-1.2612\n51.7515,-1.2613\n'


def sheet(path: Path, crs: str | None = UTM_30N, utm: str = UTM_30N,
          place_deg: tuple[float, float] = OXFORD_DEG, pixels: np.ndarray | None = None,
          **profile) -> Path:
    """Write a sheet of texture about a place, rgb unless ``pixels``; its numbers are of UTM."""
    pixels = flat_world.texture()[:SIDE_PX, :SIDE_PX].clip(40) if pixels is None else pixels
    half_m = SIDE_PX * PX_M / 2
    east_m, north_m = Transformer.from_crs('EPSG:4326', utm).transform(*place_deg)
    transform = Affine(PX_M, 0, east_m - half_m, 0, -PX_M, north_m + half_m)
    with rasterio.open(
        path, 'w', driver='GTiff', height=SIDE_PX, width=SIDE_PX, count=pixels.shape[2],
        dtype=pixels.dtype, crs=crs and CRS.from_user_input(crs), transform=transform, **profile,
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    return path


def control_points_only(path: Path) -> Path:
    with rasterio.open(path, 'w', driver='GTiff', height=SIDE_PX, width=SIDE_PX, count=3,
                       dtype='uint8') as file:
        file.write(np.full((3, SIDE_PX, SIDE_PX), 99, np.uint8))
        file.gcps = ([GroundControlPoint(row, col, 6.2e5 + col, 5.735e6 - row)
                      for row in (0, SIDE_PX) for col in (0, SIDE_PX)], CRS.from_epsg(32630))
    return path


def moved_member(path: Path) -> Path:
    """A mosaic whose sheet was moved."""
    mosaic = path.with_suffix('.vrt')
    mosaic.write_text(
        f'<VRTDataset rasterXSize="{SIDE_PX}" rasterYSize="{SIDE_PX}"><SRS>{UTM_30N}</SRS>'
        '<GeoTransform>620000, 0.25, 0, 5735000, 0, -0.25</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="1">moved.tif</SourceFilename><SourceBand>1</SourceBand>'
        '</SimpleSource></VRTRasterBand></VRTDataset>')
    return mosaic


def infrared_as_alpha(path: Path) -> Path:
    infrared = np.random.default_rng(0).integers(5, 250, (SIDE_PX, SIDE_PX, 1)).astype(np.uint8)
    pixels = np.dstack((flat_world.texture()[:SIDE_PX, :SIDE_PX].clip(40), infrared))
    return sheet(path, pixels=pixels, photometric='RGB', alpha='YES')


def sixteen_bit_with_collar(path: Path) -> Path:
    """Values of 11 bits, and a collar of 65535 that no tag declares."""
    pixels = flat_world.texture()[:SIDE_PX, :SIDE_PX].astype(np.uint16) * 8
    pixels[:, :100] = 65535
    return sheet(path, pixels=pixels)


def try_build(name: str, make: Callable[[Path], Path], text: str, code: int = 2,
              route: str = OXFORD_ROUTE) -> Callable:
    """A fault in which build_map must end with this code, and say this."""
    def attempt(trial: NodeTrial) -> FaultResult:
        folder = trial.folder / 'build'
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / 'route.csv').write_text(route)
        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            ended = build_map.main([str(value) for value in (
                make(folder / 'sheet.tif'), '--route', folder / 'route.csv', '--weights',
                trial.files.weights, '--out', folder / 'a.map', '--corridor-m', 8,
                '--spacing-m', 8, '--max-crs-error', 'inf', '--threads', 1)])
        found = [line for line in said.getvalue().splitlines() if re.search(text, line)]
        line = (found or said.getvalue().splitlines() or ['nothing said'])[-1]
        return FaultResult(name, line, 'none', bool(found) and ended == code)
    attempt.name = name
    return attempt


FILE_FAULTS = [try_build(*row) for row in (
    ('imagery in local coordinates', lambda path: sheet(path, LOCAL), 'that is local.*-a_srs'),
    ('imagery of the moon', lambda path: sheet(path, 'IAU_2015:30100'), 'celestial body'),
    ('imagery without a reference system', lambda path: sheet(path, None), 'gdal_edit.py -a_srs'),
    ('imagery with control points only', control_points_only, 'gdalwarp'),
    ('imagery and route across 180 degrees',
     lambda path: sheet(path, UTM_60S, UTM_60S, FIJI_DEG), r'8 tiles, .*origin -16.8.*180',
     0, 'latitude,longitude\n-16.8,179.9999\n-16.8,-179.9999\n'),
    ('infrared band called alpha', infrared_as_alpha, 'taken for infrared', 0),
    ('16-bit imagery with a collar', sixteen_bit_with_collar, 'become 0 to 255', 0),
    ('mosaic with a moved sheet', moved_member, 'files that do not exist: .*moved.tif'),
    ('route with decimal commas', sheet, r'\d+ tiles', 0,
     'latitude;longitude\n51,7514;-1,2612\n51,7515;-1,2613\n'),
    ('route with a row that is no number', sheet, "row 3, cannot be read .*'51.7,here'", 2,
     'latitude,longitude\n51.7514,-1.2612\n51.7,here\n'),
    ('route of another place', sheet, 'none of the 1 fixes .* km away', 2,
     'latitude,longitude\n52.5,-1.26\n'),
)]
