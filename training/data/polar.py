"""The polar transform that brings an aerial image into the geometry of a panorama (SAFA, CVACT).

Of an S x S image, north up, row i and column j of the H x W result show

    r = S/2 (H - 1 - i) / H
    row = S/2 + r cos(2 pi j / W),  col = S/2 - r sin(2 pi j / W)

The bottom row is the centre; the columns go south, west, north, east: clockwise as seen from
above, with north in the middle column.
"""

from functools import lru_cache

import numpy as np
from scipy.ndimage import map_coordinates

from crossview_localizer.camera.views import POLAR_VIEW_PX


@lru_cache(maxsize=4)
def polar_points(size_px: int, height: int, width: int) -> np.ndarray:
    """Fractional (row, col) of the aerial image for each cell of the result, (2, H, W)."""
    radius = size_px / 2 * (height - 1 - np.arange(height)) / height          # (H,)
    angle = 2 * np.pi * np.arange(width) / width                              # (W,)
    return np.stack((
        size_px / 2 + radius[:, None] * np.cos(angle),
        size_px / 2 - radius[:, None] * np.sin(angle)))


def polar_transform(aerial: np.ndarray, size_px: tuple[int, int] = POLAR_VIEW_PX) -> np.ndarray:
    """An aerial image (S, S, 3) uint8 as a panorama (H, W, 3); ``size_px`` is (W, H).

    Bilinear, 0 outside the image.  Raises ValueError where the image is not square.
    """
    if aerial.ndim != 3 or aerial.shape[0] != aerial.shape[1]:
        raise ValueError(f'the aerial image has shape {aerial.shape}; expected (S, S, 3)')
    width, height = size_px
    points = polar_points(aerial.shape[0], height, width)
    channels = [
        map_coordinates(aerial[..., c].astype(np.float64), points, order=1, cval=0.0)
        for c in range(aerial.shape[2])]
    return np.rint(np.stack(channels, 2)).astype(np.uint8)
