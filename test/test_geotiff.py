"""A GeoTIFF is whole or absent."""

import resource

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from crossview_localizer.maps.geotiff import new_geotiff

NOISE = np.random.default_rng(0).integers(0, 256, (3, 1024, 1024), np.uint8)


def write(path) -> None:
    with new_geotiff(
            path, {'TIFFTAG_COPYRIGHT': '(c) Survey'}, width=1024, height=1024, count=3,
            dtype='uint8', crs='EPSG:32630', transform=rasterio.Affine(1, 0, 6e5, 0, -1, 5.7e6),
            tiled=True, sparse_ok=True) as write_part:
        for left in (0, 512):
            write_part(NOISE[:, :, left:left + 512], Window(left, 0, 512, 1024))


def test_what_is_written_is_read_again_with_its_tags(tmp_path):
    write(tmp_path / 'a.tif')
    with rasterio.open(tmp_path / 'a.tif') as file:
        np.testing.assert_array_equal(file.read(), NOISE)
        assert file.tags()['TIFFTAG_COPYRIGHT'] == '(c) Survey'


@pytest.mark.parametrize('room_bytes', [300_000, 2_000_000])
def test_on_a_full_disk_it_is_an_error_and_what_was_there_stays(tmp_path, room_bytes):
    (tmp_path / 'a.tif').write_text('before')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, limits[1]))
    try:
        with pytest.raises(OSError, match='a.tif could not be written whole; .*the disk'):
            write(tmp_path / 'a.tif')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / 'a.tif').read_text() == 'before'
    assert [path.name for path in tmp_path.iterdir()] == ['a.tif']
