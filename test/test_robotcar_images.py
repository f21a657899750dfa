"""Camera models and images of RobotCar."""

import numpy as np
import pytest
import robotcar_drive as made
from robotcar_drive import write_lines

from crossview_localizer.bags import robotcar
from crossview_localizer.bags import robotcar_images as images


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    return made.write_drive(tmp_path_factory.mktemp('drive'))


@pytest.mark.parametrize(
    'name, bgr', [('blue', (200, 0, 0)), ('green', (0, 200, 0)), ('red', (0, 0, 200))]
)
def test_a_scene_of_one_colour_keeps_it_through_the_gbrg_filter(name, bgr):
    scene = np.full((16, 20, 3), bgr, np.uint8)
    assert (images.demosaic(made.bayer_gbrg(scene))[2:-2, 2:-2] == bgr).all()


def test_the_distortion_table_is_read_row_by_row_as_u_then_v(drive):
    intrinsics = images.read_intrinsics(drive.root / 'models')
    table = intrinsics.lut_image(made.WIDTH_PX, made.HEIGHT_PX)
    assert table.shape == (made.HEIGHT_PX, made.WIDTH_PX, 2)
    assert tuple(table[7, 50]) == pytest.approx(made.distorted_pixel(50, 7), abs=1e-12)


def test_a_table_of_another_image_size_is_refused(drive):
    intrinsics = images.read_intrinsics(drive.root / 'models')
    with pytest.raises(ValueError, match='3,072 pixels but the images are 640x480'):
        intrinsics.lut_image(640, 480)


def test_the_plumb_bob_fit_finds_the_lens_that_made_the_table(drive):
    intrinsics = images.read_intrinsics(drive.root / 'models')
    coefficients, error_px = images.fit_plumb_bob(intrinsics, made.WIDTH_PX, made.HEIGHT_PX)
    assert coefficients == pytest.approx([made.DISTORTION_K1, 0, 0, 0, 0], abs=1e-9)
    assert error_px < 1e-9


def test_the_camera_looks_ahead_from_base_link(drive):
    intrinsics = images.read_intrinsics(drive.root / 'models')
    stereo = robotcar.read_extrinsic(drive.root / 'extrinsics/stereo.txt')
    base_from_camera = images.base_from_optical(stereo, intrinsics)
    right, down, ahead = base_from_camera[:3, :3].T
    assert (list(right), list(down), list(ahead)) == ([0, -1, 0], [0, 0, -1], [1, 0, 0])


# --- images on disk


def touch_images(tmp_path, stamps_us):
    (tmp_path / 'stereo/centre').mkdir(parents=True)
    for stamp_us in stamps_us:
        (tmp_path / f'stereo/centre/{stamp_us}.png').touch()


def test_a_missing_chunk_is_reported_with_its_size(tmp_path):
    touch_images(tmp_path, [1000, 2000, 5000])
    write_lines(
        tmp_path / 'stereo.timestamps', ['1000 1', '2000 1', '3000 2', '4000 2', '', '5000 3']
    )
    found = images.list_stereo_images(tmp_path)
    assert list(found.stamps_us) == [1000, 2000, 5000]
    assert found.notes == ('chunk 2: 2 of 2 listed images are not on disk',)


def test_images_are_listed_by_number_not_by_name(tmp_path):
    touch_images(tmp_path, [999_000, 1_000_000, 9_000_000])
    found = images.list_stereo_images(tmp_path)
    assert list(found.stamps_us) == [999_000, 1_000_000, 9_000_000]
    assert found.notes == (
        'stereo.timestamps is missing: image times are taken from the file names',
        '1 gaps in the images longer than 1 s, the longest 8.0 s',
    )
