"""Imagery: where a pixel lies, what is averaged into it, and what is refused."""

from http.server import BaseHTTPRequestHandler, HTTPServer
import multiprocessing
import socket

import cv2
import numpy as np
from pyproj import Transformer
import pytest
import rasterio
from rasterio.enums import ColorInterp
import rasterio.shutil
from rasterio.transform import Affine

from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps import imagery as imagery_module
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.samples import Lost

OXFORD = LocalFrame(51.7606, -1.2610)
UTRECHT = LocalFrame(52.0900, 5.1200)
# Frame, CRS, and whether its easting is longitude: each with a pixel of about 0.25 m.
PLACES = {
    'EPSG:32630': (OXFORD, (0.25, 0.25)),
    'EPSG:28992': (UTRECHT, (0.25, 0.25)),
    'EPSG:4326': (OXFORD, (3.6e-6, 2.25e-6)),
}


def write_tiff(path, pixels, transform, crs, **profile):
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    with rasterio.open(
        path, 'w', driver='GTiff', height=pixels.shape[0], width=pixels.shape[1],
        count=pixels.shape[2], dtype=pixels.dtype, crs=crs, transform=transform, **profile,
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    return path


def corner_in_crs(frame, crs, x_m, y_m):
    return Transformer.from_crs(frame.proj4, crs, always_xy=True).transform(x_m, y_m)


def centroid(grid, weight):
    """Fractional (row, col) to x_m, y_m of the centre of mass."""
    row, col = ((weight * axis).sum() / weight.sum() for axis in np.indices(weight.shape))
    return grid.xy_from_row_col(row, col)


@pytest.mark.parametrize('crs', PLACES)
@pytest.mark.parametrize('cell_m', [0.1, 0.25, 0.375, 1.0])
def test_a_crop_shows_each_place_at_its_own_coordinates(tmp_path, crs, cell_m):
    # Round blobs at known pixels, 400 m apart at most, each found by its centre of mass.
    frame, (width, height) = PLACES[crs]
    west, north = corner_in_crs(frame, crs, -200.0, 200.0)
    rows, cols = np.indices((1600, 1600)) + 0.5
    blobs_px = [(u_px, v_px) for u_px in (100.5, 800.8, 1480.2) for v_px in (130.0, 810.3, 1500.9)]
    pixels = np.full((1600, 1600), 50.0)                # not black, which may be a collar
    for u_px, v_px in blobs_px:
        pixels += 200.0 * np.exp(-((cols - u_px) ** 2 + (rows - v_px) ** 2) / (2.0 * 4.0**2))
    path = write_tiff(
        tmp_path / 'blobs.tif', np.rint(pixels).astype(np.uint8),
        Affine(width, 0.0, west, 0.0, -height, north), crs)
    imagery = Imagery.open(path, frame)
    map_from_crs = Transformer.from_crs(crs, frame.proj4, always_xy=True)
    for u_px, v_px in blobs_px:
        true_xy_m = map_from_crs.transform(west + width * u_px, north - height * v_px)
        x_m, y_m = true_xy_m[0] + 0.37, true_xy_m[1] - 0.61
        size_px = round(16.0 / cell_m)
        rgb, valid = imagery.crop(x_m, y_m, size_px * cell_m, size_px)
        reach_m = (size_px - 1) * cell_m / 2.0
        grid = MapGrid(size_px, size_px, cell_m, x_m - reach_m, y_m + reach_m)
        assert valid.all()
        found_xy_m = centroid(grid, rgb[..., 0] - 50.0)
        assert np.abs(np.subtract(found_xy_m, true_xy_m)).max() < 0.05 * min(cell_m, 0.25)


def ramp_tiff(path, crs, side_px=800):
    """Red tells x and green y in map, 6 levels a metre within +-21 m of the frame's origin."""
    frame, (width, height) = PLACES[crs]
    west, north = corner_in_crs(frame, crs, -100.0, 100.0)
    transform = Affine(width, 0.0, west, 0.0, -height, north)
    u_px, v_px = np.meshgrid(np.arange(side_px) + 0.5, np.arange(side_px) + 0.5)
    map_from_crs = Transformer.from_crs(crs, frame.proj4, always_xy=True)
    x_m, y_m = map_from_crs.transform(west + width * u_px, north - height * v_px)
    levels = np.stack((128.0 + 6.0 * x_m, 128.0 + 6.0 * y_m, 0 * x_m + 77.0), axis=2)
    return write_tiff(path, np.rint(levels).clip(0, 255).astype(np.uint8), transform, crs), frame


def test_downsampling_averages_the_area_of_a_cell(tmp_path):
    frame = LocalFrame(51.76, -3.0)       # on the central meridian: no rotation
    west, north = corner_in_crs(frame, 'EPSG:32630', -20.0, 20.0)
    board = 255 * (np.indices((400, 400)).sum(0) % 2).astype(np.uint8)      # aliases if it can
    transform = Affine(0.1, 0.0, west, 0.0, -0.1, north)
    path = write_tiff(tmp_path / 'board.tif', board, transform, 'EPSG:32630')
    rgb, valid = Imagery.open(path, frame).crop(0.0, 0.0, 30.0, 30)
    assert valid.all()
    assert np.abs(rgb.astype(float) - 127.5).max() < 8.0


def test_a_raster_in_several_blocks_equals_its_crops(tmp_path, monkeypatch):
    path, frame = ramp_tiff(tmp_path / 'ramp.tif', 'EPSG:32630')
    imagery = Imagery.open(path, frame)
    grid = MapGrid(90, 70, 0.5, -10.0, 20.0)
    whole, _ = imagery.raster(grid)
    monkeypatch.setattr('crossview_localizer.maps.imagery.BLOCK_PX', 64)
    parts, _ = imagery.raster(grid)
    assert np.abs(whole.astype(int) - parts.astype(int)).max() <= 1
    square, _ = imagery.crop(*grid.xy_from_row_col(24.5, 24.5), 25.0, 50)
    assert np.abs(square.astype(int) - whole[:50, :50].astype(int)).max() <= 1


@pytest.mark.parametrize('how', ['nodata', 'alpha', 'edge'])
def test_what_holds_no_data_is_not_valid_and_does_not_bleed(tmp_path, how):
    frame = LocalFrame(51.76, -3.0)
    west, north = corner_in_crs(frame, 'EPSG:32630', -20.0, 20.0)
    pixels = np.full((160, 160, 3), 200, np.uint8)
    profile = {}
    if how == 'nodata':
        pixels[:, :80], profile = 0, {'nodata': 0}
    elif how == 'alpha':
        alpha = np.full((160, 160, 1), 255, np.uint8)
        pixels[:, :80], alpha[:, :80] = 0, 0
        pixels = np.concatenate((pixels, alpha), 2)
        profile = {'photometric': 'RGB', 'alpha': 'YES'}
    else:
        pixels, west = pixels[:, 80:], west + 20.0
    path = write_tiff(
        tmp_path / 'half.tif', pixels, Affine(0.25, 0, west, 0, -0.25, north), 'EPSG:32630',
        **profile)
    rgb, valid = Imagery.open(path, frame).crop(0.0, 0.0, 20.0, 40)
    assert valid[:, 21:].all() and not valid[:, :19].any()
    assert (rgb[valid] == 200).all()
    assert (rgb[~valid] == 0).all()


def test_files_of_two_reference_systems_make_one_seamless_mosaic(tmp_path):
    frame, _ = PLACES['EPSG:32630']
    whole, _ = ramp_tiff(tmp_path / 'utm.tif', 'EPSG:32630')
    degrees, _ = ramp_tiff(tmp_path / 'degrees.tif', 'EPSG:4326')
    with rasterio.open(whole) as file:
        pixels, transform = np.moveaxis(file.read(), 0, 2), file.transform
    left = write_tiff(tmp_path / 'left.tif', pixels[:, :420], transform, 'EPSG:32630')
    expected, _ = Imagery.open(whole, frame).crop(5.0, 0.0, 30.0, 60)
    imagery = Imagery.open([left, degrees], frame)
    assert [accuracy.files for accuracy in imagery.crs_accuracy] == [
        ('left.tif',), ('degrees.tif',)]
    found, valid = imagery.crop(5.0, 0.0, 30.0, 60)
    assert valid.all()
    assert np.abs(expected.astype(int) - found.astype(int)).max() <= 2


def test_grey_and_palette_images_become_rgb(tmp_path):
    frame = LocalFrame(51.76, -3.0)
    west, north = corner_in_crs(frame, 'EPSG:32630', -20.0, 20.0)
    transform = Affine(0.25, 0, west, 0, -0.25, north)
    values = np.full((160, 160), 7, np.uint8)
    grey = write_tiff(tmp_path / 'grey.tif', values, transform, 'EPSG:32630')
    assert (Imagery.open(grey, frame).crop(0, 0, 10, 10)[0] == 7).all()
    palette = write_tiff(
        tmp_path / 'palette.tif', values, transform, 'EPSG:32630', photometric='PALETTE')
    with rasterio.open(palette, 'r+') as file:
        file.write_colormap(1, {7: (10, 20, 30, 255)})
    assert (Imagery.open(palette, frame).crop(0, 0, 10, 10)[0] == (10, 20, 30)).all()


def test_the_frame_is_the_centre_of_the_imagery_unless_it_is_given(tmp_path):
    path, frame = ramp_tiff(tmp_path / 'ramp.tif', 'EPSG:32630')
    bounds_m = np.array(Imagery.open(path).bounds_m)
    assert np.abs(bounds_m[:2] + bounds_m[2:]).max() < 0.2
    assert Imagery.open(path, frame).bounds_m[0] == pytest.approx(-100.0, abs=5.0)


def test_accuracy_is_exact_within_wgs84_and_refused_across_datums_unless_accepted(tmp_path):
    exact = Imagery.open(ramp_tiff(tmp_path / 'utm.tif', 'EPSG:32630')[0])
    assert exact.crs_accuracy[0].accuracy_m == 0.0
    exact.require_accuracy(0.5)
    dutch = Imagery.open(ramp_tiff(tmp_path / 'dutch.tif', 'EPSG:28992')[0])
    assert dutch.crs_accuracy[0].accuracy_m == 1.0
    with pytest.raises(ValueError, match=r'accuracy 1 m .* expected 0.5 m'):
        dutch.require_accuracy(0.5)
    dutch.require_accuracy(1.0)


def test_an_unknown_accuracy_is_refused_unless_any_is_accepted(tmp_path):
    crs = '+proj=utm +zone=30 +ellps=intl +units=m +no_defs'
    path = write_tiff(
        tmp_path / 'unknown.tif', np.zeros((64, 64, 3), np.uint8),
        Affine(0.25, 0, 6e5, 0, -0.25, 5.7e6), crs)
    imagery = Imagery.open(path)
    assert imagery.crs_accuracy[0].accuracy_m is None
    with pytest.raises(ValueError, match='accuracy unknown.*--max-crs-error inf'):
        imagery.require_accuracy(100.0)
    imagery.require_accuracy(float('inf'))


UTM = Affine(0.25, 0, 6e5, 0, -0.25, 5.7e6)
REFUSED = {
    'no coordinate reference system': {'crs': None},
    'no geotransform': {'transform': Affine.identity()},
    'and no geotransform': {'crs': None, 'transform': Affine.scale(1.0, -1.0)},
    'lies at latitude 11.*outside its': {'transform': Affine(
        0.8, 0, 6e5 / 0.3048, 0, -0.8, 5.7e6 / 0.3048)},
    'has the geotransform': {'transform': Affine(0.25, 0, float('nan'), 0, -0.25, 5.7e6)},
    'pixels of 500 m': {'transform': Affine(500.0, 0, 6e5, 0, -500.0, 5.7e6)},
    'pixels of 2.7e-06 m': {'transform': Affine(2.7e-6, 0, 6e5, 0, -2.7e-6, 5.7e6)},
    'complex64 samples': {'dtype': np.complex64},
    'outside its coordinate': {
        'crs': 'EPSG:4326', 'transform': Affine(0.25, 0, 6e5, 0, -0.25, 5.7e6)},
}


@pytest.mark.parametrize('reason', REFUSED)
@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_a_file_that_cannot_be_right_is_refused_by_name_and_reason(tmp_path, reason):
    change = {'crs': 'EPSG:32630', 'transform': UTM, 'dtype': np.uint8} | REFUSED[reason]
    path = write_tiff(
        tmp_path / 'bad.tif', np.zeros((64, 64, 3), change['dtype']), change['transform'],
        change['crs'])
    with pytest.raises(ValueError, match=f'bad.tif.*{reason}'):
        Imagery.open(path)


def test_files_that_are_missing_foreign_or_cut_off_are_an_os_error(tmp_path):
    with pytest.raises(OSError, match='does not exist'):
        Imagery.open(tmp_path / 'none.tif')
    (tmp_path / 'text.tif').write_text('not an image')
    with pytest.raises(OSError, match='cannot be read as an image'):
        Imagery.open(tmp_path / 'text.tif')
    for name, content, said in (
            ('login.tif', b'<!DOCTYPE html>', 'download it again'), ('empty.tif', b'', 'is empty'),
            ('lfs.tif', b'version https://git-lfs.github.com/spec/v1', 'git lfs pull'),
            ('sheets.zip', b'PK\3\4', 'unpack it'), ('survey.ecw', b'\x65\2', 'gdal_translate')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(OSError, match=f'{name} cannot be read as an image .*{said}'):
            Imagery.open(tmp_path / name)
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8)
    path = write_tiff(tmp_path / 'cut.tif', noise, UTM, 'EPSG:32630')
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(OSError, match='cut.tif is damaged'):
        Imagery.open(path)
    with pytest.raises(ValueError, match='no imagery given'):
        Imagery.open([])


def test_a_file_of_several_rasters_asks_for_one_of_them(tmp_path):
    path = tmp_path / 'survey.gpkg'
    for name, level in (('summer', 100), ('winter', 200)):
        with rasterio.open(
                path, 'w', driver='GPKG', height=64, width=64, count=3, dtype='uint8',
                crs='EPSG:32630', transform=UTM, RASTER_TABLE=name,
                APPEND_SUBDATASET='YES' if path.exists() else 'NO') as file:
            file.write(np.full((3, 64, 64), level, np.uint8))
    with pytest.raises(ValueError, match=f'holds 2 rasters; .*gdal_translate GPKG:{path}:summer '):
        Imagery.open(path)


def test_a_mask_alone_is_refused(tmp_path):
    path = write_tiff(tmp_path / 'mask.tif', np.full((64, 64), 255, np.uint8), UTM, 'EPSG:32630')
    with rasterio.open(path, 'r+') as file:
        file.colorinterp = [ColorInterp.alpha]
    with pytest.raises(ValueError, match='mask.tif holds transparency alone'):
        Imagery.open(path)


def test_bands_whose_descriptions_name_the_colours_are_those_colours(tmp_path):
    path = write_tiff(
        tmp_path / 'satellite.tif', np.tile(np.array([30, 90, 200, 50], np.uint8), (64, 64, 1)),
        UTM, 'EPSG:32630', photometric='MINISBLACK')
    with rasterio.open(path, 'r+') as file:
        file.descriptions = 'Blue', 'Green', 'Red', 'Nir'
    imagery = Imagery.open(path)
    assert imagery.crop(0.0, 0.0, 4.0, 8)[0][0, 0].tolist() == [200, 90, 30]
    assert not imagery.notes


REAL = {              # real files of unusual form: what is said of them, and their sides in metres
    'spacenet_atlanta_pan_uint16_050m_utm16_nodata0.tif': ('uint16 values', 450.0),
    'spacenet_vegas_pan_uint16_epsg4326_030m.tif': ('uint16 values', 316.0),
    'spacenet_rotterdam_ms4_float64_1m_utm31.tif': ('bands 1, 2 and 3 are taken', 300.0),
    'zug_050m_epsg2056_uncompressed.tif': ('', 437.5)}


@pytest.mark.parametrize('name', REAL)
def test_real_imagery_of_unusual_form_is_seen_in_contrast(data_dir, name):
    said, width_m = REAL[name]
    imagery = Imagery.open(data_dir / 'geotiff' / name)
    assert any(said in note for note in imagery.notes) == bool(said)
    assert imagery.bounds_m[2] - imagery.bounds_m[0] == pytest.approx(width_m, rel=0.04)
    rgb, valid = imagery.crop(0.0, 0.0, 150.0, 300)
    assert valid.all() and 40.0 < rgb.mean() < 180.0 and rgb.std() > 25.0


@pytest.mark.parametrize('name, side_m, accuracy_m', [
    ('vegas_spacenet_1300px_0.24m.tif', (315.5, 389.5), 0.0),
    ('netherlands_pdok_1000px_0.25m.tif', (250.0, 250.0), 1.0),
])
def test_real_orthophotos_have_their_size_on_the_ground(data_dir, name, side_m, accuracy_m):
    imagery = Imagery.open(data_dir / 'orthophotos' / name)
    west, south, east, north = imagery.bounds_m
    # Their grids are turned against ours, which widens the box by less than 2 percent.
    assert 0.999 * side_m[0] < east - west < 1.02 * side_m[0]
    assert 0.999 * side_m[1] < north - south < 1.02 * side_m[1]
    assert 0.23 < imagery.pixel_m < 0.26
    assert imagery.crs_accuracy[0].accuracy_m == accuracy_m
    rgb, valid = imagery.crop(0.0, 0.0, 100.0, 256)
    assert valid.all() and rgb.std() > 10.0


FIJI = LocalFrame(-16.8, 180.0)
ACROSS = {              # reference system: origin and size of pixels of about 0.25 m
    'EPSG:4326': (180.0, -16.8, 2.35e-6, 2.26e-6),
    'EPSG:3857': (np.pi * 6378137.0, -1897480.0, 0.26, 0.26),
    'EPSG:3832': (np.pi * 6378137.0 / 6, -1885000.0, 0.26, 0.26),
    'EPSG:32760': (820000.0, 8140000.0, 0.25, 0.25),
    'EPSG:3460': (2071000.0, 4021000.0, 0.25, 0.25)}


def across_180(crs):
    """The transform of 800 x 800 pixels in the middle of which 180 degrees lies."""
    _, _, width, height = ACROSS[crs]
    east, north = Transformer.from_crs('EPSG:4326', crs, always_xy=True).transform(180.0, -16.8)
    if crs in ('EPSG:4326', 'EPSG:3857'):
        east = abs(east)
    return Affine(width, 0.0, east - 400 * width, 0.0, -height, north + 400 * height)


@pytest.mark.parametrize('crs', ACROSS)
def test_imagery_across_180_degrees_is_seen_whole_and_its_frame_lies_there(tmp_path, crs):
    pixels = np.full((800, 800, 3), 60, np.uint8)
    pixels[:, 400:] = 200
    path = write_tiff(tmp_path / 'fiji.tif', pixels, across_180(crs), crs)
    for frame in (None, FIJI, LocalFrame(-16.8, -180.0), LocalFrame(-16.8, 179.9995)):
        imagery = Imagery.open(path, frame)
        assert imagery.frame.latitude_deg == pytest.approx(-16.8, abs=1e-3)
        assert abs(imagery.frame.longitude_deg) == pytest.approx(180.0, abs=1e-3)
        x_m, y_m = imagery.frame.xy_from_latlon(-16.8, 180.0)
        rgb, valid = imagery.crop(x_m, y_m, 150.0, 60)
        assert valid.all()
        assert (rgb[20:40, :28] == 60).all() and (rgb[20:40, 32:] == 200).all()


@pytest.mark.parametrize('crs', ['EPSG:4326', 'EPSG:3857'])
def test_sheets_on_both_sides_of_180_degrees_lie_side_by_side(tmp_path, crs):
    transform, period = across_180(crs), {'EPSG:4326': 360.0}.get(crs, 2 * np.pi * 6378137.0)
    sheets = [
        write_tiff(tmp_path / 'west.tif', np.full((800, 400), 60, np.uint8), transform, crs),
        write_tiff(tmp_path / 'east.tif', np.full((800, 400), 200, np.uint8),
                   Affine.translation(400 * transform.a - period, 0.0) @ transform, crs)]
    imagery = Imagery.open(sheets)
    x_m, y_m = imagery.frame.xy_from_latlon(-16.8, 180.0)
    rgb, valid = imagery.crop(x_m, y_m, 150.0, 60)
    assert valid.all()
    assert (rgb[:, :28] == 60).all() and (rgb[:, 32:] == 200).all()


LOCAL = ('LOCAL_CS["Local Coordinates (m)",UNIT["metre",1]]',
         'ENGCRS["site",EDATUM["peg"],CS[Cartesian,2],AXIS["(E)",east],AXIS["(N)",north],'
         'LENGTHUNIT["metre",1]]')


@pytest.mark.parametrize('crs, expected', [
    *((crs, 'that is local') for crs in LOCAL),
    ('IAU_2015:49900', 'another celestial body'),
    ('EPSG:4978', 'that is no map')])
def test_a_reference_system_that_is_no_map_of_the_earth_is_refused(tmp_path, crs, expected):
    path = write_tiff(tmp_path / 'odd.tif', np.full((64, 64, 3), 9, np.uint8), UTM,
                      rasterio.crs.CRS.from_user_input(crs))
    with pytest.raises(ValueError, match=f'odd.tif.*({expected}).*gdal_edit.py -a_srs'):
        Imagery.open(path)


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_control_points_alone_are_refused_with_the_command_that_uses_them(tmp_path):
    path = write_tiff(tmp_path / 'gcps.tif', np.full((64, 64, 3), 9, np.uint8), None, None)
    with rasterio.open(path, 'r+') as file:
        file.gcps = ([rasterio.control.GroundControlPoint(row, col, 6e5 + col, 5.7e6 - row)
                      for row in (0, 64) for col in (0, 64)], 'EPSG:32630')
    with pytest.raises(ValueError, match='4 control points .*gdalwarp -t_srs EPSG:32630'):
        Imagery.open(path)


def town(path, pixels, **profile):
    """Write pixels of 0.25 m around the origin of the returned frame."""
    frame = LocalFrame(51.76, -3.0)
    west, north = corner_in_crs(frame, 'EPSG:32630', -40.0, 40.0)
    return write_tiff(
        path, pixels, Affine(0.25, 0, west, 0, -0.25, north), 'EPSG:32630', **profile), frame


def noise(low, high, shape=(320, 320, 3), dtype=np.uint8):
    return np.random.default_rng(0).integers(low, high, shape).astype(dtype)


def test_an_infrared_band_that_is_called_alpha_hides_nothing(tmp_path):
    pixels = np.dstack((noise(40, 220), noise(5, 250, (320, 320, 1))))
    path, frame = town(tmp_path / 'rgbn.tif', pixels, photometric='RGB', alpha='YES')
    imagery = Imagery.open(path, frame)
    assert imagery.crop(0.0, 0.0, 60.0, 240)[1].all()
    assert 'taken for infrared' in imagery.notes[0]


@pytest.mark.parametrize('value', [0, 255])
@pytest.mark.parametrize('ending', ['.tif', '.jpg'])
def test_the_collar_of_a_turned_sheet_lets_the_other_sheet_show(tmp_path, value, ending):
    whole = cv2.resize(noise(40, 220, (20, 20, 3)), (320, 320))
    row, col = np.indices((320, 320))
    sheets, compress = [], {'compress': 'JPEG', 'photometric': 'YCBCR'} if ending == '.jpg' else {}
    for name, seen in (('a', col + 0.3 * row < 180), ('b', col + 0.3 * row >= 160)):
        sheet = np.where(seen[..., None], whole, np.uint8(value))
        path, frame = town(tmp_path / f'{name}.tif', sheet, **compress)
        sheets.append(path)
    imagery = Imagery.open(sheets, frame)
    rgb, valid = imagery.crop(0.0, 0.0, 60.0, 240)
    note, = imagery.notes
    assert 'a.tif' in note and 'b.tif' in note and f'the value {value}, which is not' in note
    whole = Imagery.open(town(tmp_path / 'whole.tif', whole)[0], frame)
    expected, _ = whole.crop(0.0, 0.0, 60.0, 240)
    assert not whole.notes
    assert valid.mean() > 0.995
    assert (np.abs(rgb.astype(int) - expected).max(2) < 40).mean() > 0.99
    _, lost = Imagery.open(sheets[0], frame).raster_with_causes(
        MapGrid(60, 60, 1.0, -30.0, 30.0))
    assert set(np.unique(lost)) == {0, int(Lost.COLLAR)}


@pytest.mark.parametrize('value, dtype', [
    (-9999, np.float32), (-32768, np.int16), (65535, np.uint16)])
def test_a_collar_of_a_value_that_no_tag_declares_leaves_the_contrast_as_it_is(
        tmp_path, value, dtype):
    pixels = noise(100, 1000, dtype=dtype)
    expected, _ = Imagery.open(*town(tmp_path / 'whole.tif', pixels)).crop(20.0, 0.0, 20.0, 80)
    collared = pixels.copy()
    collared[:, :120] = value
    rgb, lost = Imagery.open(*town(tmp_path / 'collar.tif', collared)).raster_with_causes(
        MapGrid(60, 60, 1.0, -30.0, 30.0))
    assert (lost[:, :18] == Lost.COLLAR).all() and (lost[:, 22:] == 0).all()
    rgb, _ = Imagery.open(*town(tmp_path / 'collar.tif', collared)).crop(20.0, 0.0, 20.0, 80)
    assert np.abs(rgb.astype(int) - expected).max() <= 3


@pytest.mark.parametrize('low, high, dtype', [(0, 7, np.uint8), (-100, 100, np.int8)])
def test_classes_and_signed_bytes_are_stretched(tmp_path, low, high, dtype):
    ramp = np.linspace(low, high, 320).round().astype(dtype)
    imagery = Imagery.open(*town(tmp_path / 'ramp.tif', np.tile(ramp, (320, 1))))
    rgb, _ = imagery.crop(0.0, 0.0, 70.0, 280)
    assert rgb[140, :20].max() < 40 and rgb[140, -20:].min() > 215
    assert any('become 0 to 255' in note for note in imagery.notes)


def test_dark_roofs_within_a_sheet_are_imagery(tmp_path):
    pixels = noise(40, 220)
    pixels[100:150, 100:150] = 0
    path, frame = town(tmp_path / 'roof.tif', pixels)
    assert Imagery.open(path, frame).crop(0.0, 0.0, 60.0, 240)[1].all()


@pytest.mark.parametrize('dtype, low, high', [
    (np.uint16, 200, 1900), (np.uint16, 3000, 60000), (np.int16, 10, 900),
    (np.float32, 1000, 9000), (np.float64, 50, 500)])
def test_values_that_are_not_8_bit_are_stretched_by_percentiles_and_it_is_said(
        tmp_path, dtype, low, high):
    ramp = np.linspace(low, high, 320).astype(dtype)
    path, frame = town(tmp_path / 'deep.tif', np.tile(ramp, (320, 1)))
    imagery = Imagery.open(path, frame)
    rgb, valid = imagery.crop(0.0, 0.0, 70.0, 280)
    assert valid.all() and (rgb[..., 0] == rgb[..., 2]).all()
    expected = 255.0 * (np.linspace(20.5, 299.5, 280) / 320 - 0.01) / 0.98
    assert np.abs(rgb[140, :, 0] - expected).max() < 4.0
    assert any('one band, shown as grey' in note for note in imagery.notes)
    assert any('become 0 to 255' in note for note in imagery.notes)


def test_files_of_one_type_are_stretched_alike(tmp_path):
    dark, frame = town(tmp_path / 'dark.tif', noise(100, 1000, dtype=np.uint16))
    bright, _ = town(tmp_path / 'bright.tif', noise(1000, 2000, dtype=np.uint16))
    alone = Imagery.open(dark, frame).crop(0.0, 0.0, 40.0, 160)[0]
    both = Imagery.open([dark, bright], frame).crop(0.0, 0.0, 40.0, 160)[0]
    assert alone.mean() > 120 > 80 > both.mean()


def test_what_is_lost_is_told_by_its_cause(tmp_path):
    pixels = np.dstack((noise(40, 220), np.full((320, 320), 255, np.uint8)))
    pixels[:80, :, 3] = 0
    path, frame = town(tmp_path / 'part.tif', pixels, photometric='RGB', alpha='YES')
    _, lost = Imagery.open(path, frame).raster_with_causes(MapGrid(100, 100, 1.0, -49.5, 49.5))
    assert (lost == Lost.TRANSPARENT).mean() == pytest.approx(0.16, abs=0.002)
    assert (lost == Lost.OUTSIDE).mean() == pytest.approx(0.36, abs=0.002)


def mosaic(path, *sheets):
    """A virtual mosaic of sheets that lie on one another."""
    with rasterio.open(sheets[0]) as file:
        terms, crs = file.transform.to_gdal(), file.crs.to_wkt().replace('"', '&quot;')
        size = f'rasterXSize="{file.width}" rasterYSize="{file.height}"'
    parts = ''.join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{sheet.name}</SourceFilename>'
        '<SourceBand>1</SourceBand></SimpleSource>' for sheet in sheets)
    path.write_text(
        f'<VRTDataset {size}><SRS>{crs}</SRS><GeoTransform>{", ".join(map(str, terms))}'
        f'</GeoTransform><VRTRasterBand dataType="Byte" band="1">{parts}</VRTRasterBand>'
        '</VRTDataset>')
    return path


def test_a_mosaic_names_the_sheets_that_are_missing_also_in_the_mosaics_within_it(tmp_path):
    sheets = [town(tmp_path / f'sheet_{k}.tif', noise(40, 220))[0] for k in range(3)]
    inner = mosaic(tmp_path / 'inner.vrt', *sheets[:2])
    outer = mosaic(tmp_path / 'outer.vrt', inner, sheets[2])
    assert Imagery.open(outer).crop(0.0, 0.0, 40.0, 40)[1].all()
    sheets[1].rename(tmp_path / 'moved.tif')
    with pytest.raises(OSError, match=r'outer.vrt is made of files .*sheet_1.tif.*move them'):
        Imagery.open(outer)


def test_a_folder_of_sheets_and_a_coarse_view_of_it_are_read(tmp_path):
    path, frame = town(tmp_path / 'a.tif', noise(40, 220))
    with rasterio.open(path) as file:
        east = file.transform @ Affine.translation(320, 0)
    write_tiff(tmp_path / 'b.tif', noise(40, 220), east, 'EPSG:32630')
    (tmp_path / 'readme.txt').write_text('not an image')
    imagery = Imagery.open(tmp_path, frame)
    assert imagery.attribution == ('a.tif', 'b.tif')
    rgb, valid = imagery.raster(MapGrid(14, 30, 5.0, -32.5, 32.5))
    assert valid.all()
    assert np.abs(rgb.astype(float) - 129.5).max() < 12.0     # 400 pixels in each cell
    with pytest.raises(ValueError, match='holds no image'):
        (tmp_path / 'empty').mkdir()
        Imagery.open(tmp_path / 'empty')


def slope(rows, cols):
    """Colours that change slowly, so that a seam in the wrong place would show."""
    row, col = np.indices((rows, cols))
    return np.stack([30 + row // 5, 40 + col // 5, 200 - (row + col) // 10], 2).astype(np.uint8)


def test_hundreds_of_sheets_show_what_one_file_does(tmp_path):
    pixels = slope(640, 640)
    west, north = corner_in_crs(OXFORD, 'EPSG:32630', -80.0, 80.0)
    whole = Affine(0.25, 0.0, west, 0.0, -0.25, north)
    one = write_tiff(tmp_path / 'whole.tif', pixels, whole, 'EPSG:32630')
    (tmp_path / 'sheets').mkdir()
    for row, col in np.ndindex(16, 16):
        write_tiff(
            tmp_path / f'sheets/{row:02d}_{col:02d}.tif',
            pixels[40 * row:40 * row + 40, 40 * col:40 * col + 40],
            whole @ Affine.translation(40 * col, 40 * row), 'EPSG:32630')
    grid = MapGrid(150, 150, 1.0, -74.5, 74.5)
    expected, valid = Imagery.open(one, OXFORD).raster(grid)
    assert valid.all()
    found, valid = Imagery.open(tmp_path / 'sheets', OXFORD).raster(grid)
    assert valid.all()
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.fixture
def web_folder(tmp_path, monkeypatch):
    """The address of a server of ``tmp_path`` that gives ranges, and how many bytes it has sent.

    It is a process: GDAL waits for it while it holds the interpreter's lock.
    """
    processes = multiprocessing.get_context('fork')
    sent = processes.Value('q', 0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = tmp_path / self.path.lstrip('/')
            if not path.is_file():
                self.send_error(404)
                return
            data, first, last = path.read_bytes(), 0, path.stat().st_size - 1
            if 'Range' in self.headers:
                first, last = map(int, self.headers['Range'].removeprefix('bytes=').split('-'))
            part = data[first:last + 1]
            self.send_response(206 if 'Range' in self.headers else 200)
            self.send_header('Accept-Ranges', 'bytes')
            self.send_header('Content-Length', str(len(part)))
            self.send_header('Content-Range', f'bytes {first}-{first + len(part) - 1}/{len(data)}')
            self.end_headers()
            if self.command == 'GET':
                sent.value += len(part)
                self.wfile.write(part)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    monkeypatch.setenv('no_proxy', '127.0.0.1')
    with HTTPServer(('127.0.0.1', 0), Handler) as server:
        process = processes.Process(target=server.serve_forever)
        process.start()
        yield f'http://127.0.0.1:{server.server_address[1]}', sent
        process.kill()
        process.join()


def test_of_a_cog_on_the_web_only_the_parts_that_are_needed_are_read(tmp_path, web_folder):
    address, sent = web_folder
    west, north = corner_in_crs(OXFORD, 'EPSG:32630', -256.0, 256.0)
    pixels = np.random.default_rng(0).integers(1, 255, (2048, 2048, 3)).astype(np.uint8)
    plain = write_tiff(tmp_path / 'plain.tif', pixels, Affine(0.25, 0.0, west, 0.0, -0.25, north),
                       'EPSG:32630')
    rasterio.shutil.copy(plain, tmp_path / 'cog.tif', driver='COG', blocksize=256)
    size = (tmp_path / 'cog.tif').stat().st_size
    imagery = Imagery.open(f'{address}/cog.tif', OXFORD)
    rgb, valid = imagery.crop(3.0, -7.0, 48.0, 192)
    assert valid.all()
    assert np.array_equal(rgb, Imagery.open(plain, OXFORD).crop(3.0, -7.0, 48.0, 192)[0])
    assert 0 < sent.value < 0.25 * size
    with pytest.raises(OSError, match='none.tif cannot be read'):
        Imagery.open(f'{address}/none.tif', OXFORD)


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch):
    for name in imagery_module.WEB_SETTINGS:
        monkeypatch.setenv(name, '')
        monkeypatch.delenv(name)
    monkeypatch.setitem(imagery_module.WEB_SETTINGS, 'GDAL_HTTP_LOW_SPEED_TIME', '1')
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = f'http://127.0.0.1:{server.getsockname()[1]}/sheet.tif'
        with pytest.raises(OSError, match='sheet.tif cannot be read .*too slow'):
            Imagery.open(address)
