"""Images that show nothing: black, saturated, flat, frozen."""

import numpy as np
import pytest

from crossview_localizer.camera.blind_images import BlindImage, BlindImageCheck
from crossview_localizer.geometry import Pose2D

PICTURE = np.random.default_rng(1).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def check() -> BlindImageCheck:
    return BlindImageCheck()


def at(x_m: float) -> Pose2D:
    return Pose2D(x_m, 0.0, 0.0)


@pytest.mark.parametrize(('rgb', 'text'), [
    (PICTURE // 100, 'image is black'),
    (np.maximum(PICTURE, 252), 'image is saturated'),
    (np.full_like(PICTURE, 128), 'image is flat: mean 128, standard deviation 0.0'),
])
def test_an_image_that_shows_nothing_is_refused(rgb, text):
    with pytest.raises(BlindImage, match=text):
        check().examine(rgb, None)


def test_the_same_picture_is_frozen_once_the_vehicle_has_moved():
    examined = check()
    examined.examine(PICTURE, at(0.0))
    examined.examine(PICTURE, at(0.9))
    with pytest.raises(BlindImage, match=r'frozen: the same picture again after 1\.1 m'):
        examined.examine(PICTURE, at(1.1))
    examined.examine(255 - PICTURE, at(1.2))
    examined.examine(255 - PICTURE, at(2.0))


def test_without_odometry_no_picture_is_called_frozen():
    examined = check()
    for _ in range(3):
        examined.examine(PICTURE, None)
