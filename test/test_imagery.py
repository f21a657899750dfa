"""Imagery: where a pixel lies, what is averaged into it, and what is refused."""

import numpy as np
from pyproj import Transformer
import pytest
import rasterio
from rasterio.transform import Affine

from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.imagery import Imagery

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
    pixels = np.zeros((1600, 1600))
    for u_px, v_px in blobs_px:
        pixels += 255.0 * np.exp(-((cols - u_px) ** 2 + (rows - v_px) ** 2) / (2.0 * 4.0**2))
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
        found_xy_m = centroid(grid, rgb[..., 0].astype(float))
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
    with pytest.raises(ValueError, match='accuracy unknown'):
        imagery.require_accuracy(100.0)
    imagery.require_accuracy(float('inf'))


UTM = Affine(0.25, 0, 6e5, 0, -0.25, 5.7e6)
REFUSED = {
    'no coordinate reference system': {'crs': None},
    'no geotransform': {'transform': Affine.identity()},
    'has the geotransform': {'transform': Affine(0.25, 0, float('nan'), 0, -0.25, 5.7e6)},
    'pixels of 500 m': {'transform': Affine(500.0, 0, 6e5, 0, -500.0, 5.7e6)},
    'pixels of 2.7e-06 m': {'transform': Affine(2.7e-6, 0, 6e5, 0, -2.7e-6, 5.7e6)},
    'uint16 samples': {'dtype': np.uint16},
    'lies outside': {'crs': 'EPSG:4326', 'transform': Affine(0.25, 0, 6e5, 0, -0.25, 5.7e6)},
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
    noise = np.random.default_rng(0).integers(0, 255, (512, 512, 3)).astype(np.uint8)
    path = write_tiff(tmp_path / 'cut.tif', noise, UTM, 'EPSG:32630')
    path.write_bytes(path.read_bytes()[:200_000])
    imagery = Imagery.open(path)
    with pytest.raises(OSError, match='cut.tif is damaged'):
        imagery.crop(0.0, 0.0, 120.0, 200)
    with pytest.raises(ValueError, match='no imagery given'):
        Imagery.open([])


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
