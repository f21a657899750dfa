"""Oxford RobotCar in the protocol of CCVPE (T-PAMI 2023): patches of one stitched map.

Needed are the split files, headings and ground images that ``oxford`` reads, and
``satellite_map_new.png`` of CrossViewMetricLocalization.  The map is cut at every 400 pixels into
patches of 800 (73.9 m), north up.  Each image gets the patch whose middle is nearest: its true
place lies within 200 pixels (18.5 m) of the middle on each axis.  The heading is not given.

The published positions are those of the INS, 1.71 m behind the camera.  Networks that are trained
on them learn that; here the truth is moved to the camera, and errors are the same.
"""

from functools import partial
import math
from pathlib import Path
import zlib

import cv2
import numpy as np

from crossview_localizer.bags.robotcar_images import (
    Intrinsics,
    PAPER_CROP,
    PAPER_IMAGE_SIZE,
    read_intrinsics,
)
from crossview_localizer.datatypes import CameraImage, CameraModel
from crossview_localizer.geometry import Pose2D, wrap_angle
from crossview_localizer.matching.matcher import SearchWindow
from training.data.benchmark_frames import BenchmarkFrame, Frames, uniform_prior
from training.data.oxford import Entries, PX_M, stitched_map_transform
from training.data.real_pairs import LEVEL, mounting, Overhead, read_rgb, View

PATCH_PX, STEP_PX = 800, 400
CAMERA_IN_INS = Pose2D(1.7132, 0.1181, 0.0)   # from the data set's extrinsics/ins.txt
CAMERA_HEIGHT_M = 1.52
ACCURACY_M = 0.5
# The narrow lens of the centre camera, undistorted (stereo_narrow_left.txt of the SDK).
FOCAL_PX, CENTRE_PX = 964.828979, (643.788025, 484.407990)


def patch_corner(along_px: float) -> int:
    """The first column (row) of the patch for a place at a column (row) of the map."""
    number = math.floor(along_px / STEP_PX)
    if round(along_px - STEP_PX * number) < STEP_PX // 2:
        number -= 1
    return STEP_PX * number


def oxford_patches(entries: Entries, root: str | Path, stitched_map: str | Path,
                   models: str | Path | None = None, half_yaw_deg: float = 180.0) -> Frames:
    """The frames of ``entries``, whose headings must be known.

    ``models`` is the folder of camera models of the SDK: with it images are undistorted.  A
    ``half_yaw_deg`` below 180 gives the matcher a heading that is off by up to that, uniform.
    """
    if not np.isfinite(entries.yaw_rad).all():
        raise ValueError('headings of images are unknown; expected a yaw file (test_yaw.npy)')
    affine, _ = stitched_map_transform()
    picture = read_rgb(Path(stitched_map))
    places_px = entries.positions_m @ affine[:, :2].T + affine[:, 2]        # (n, 2) column, row
    corners = np.array([[patch_corner(along) for along in place] for place in places_px])
    height, width = picture.shape[:2]
    outside = (corners < 0).any(1) | (corners + PATCH_PX > [width, height]).any(1)
    if outside.any():
        number = int(outside.argmax())
        raise ValueError(
            f'the patch of {entries.ground[number]} begins at column {corners[number, 0]}, row '
            f'{corners[number, 1]}, beyond {stitched_map} of {width}x{height}; expected '
            'satellite_map_new.png, 17000x20000')
    # The map is north up: its axes are turned from the UTM grid's by the grid's convergence.  The
    # angle is that of the rotation nearest to the affine.
    (xx, xy), (yx, yy) = affine[:, :2] * [[1.0], [-1.0]]
    yaws_rad = wrap_angle(entries.yaw_rad + math.atan2(yx - xy, xx + yy))
    lens = read_intrinsics(Path(models)) if models else None
    if lens is not None and lens.lut is None:
        raise FileNotFoundError(f'{models} has no distortion table; expected '
                                'stereo_narrow_left_distortion_lut.bin')
    read = partial(_read_frame, Path(root), entries.ground, picture, places_px, corners, yaws_rad,
                   lens, math.radians(half_yaw_deg))
    return Frames('oxford', len(entries), read)


def _read_frame(root, names, picture, places_px, corners, yaws_rad, lens, half_yaw_rad,
                number: int) -> BenchmarkFrame:
    col, row = corners[number]
    overhead = Overhead(f'{col}_{row}', picture[row:row + PATCH_PX, col:col + PATCH_PX], PX_M)
    x_m, y_m = overhead.xy_from_col_row(*(places_px[number] - corners[number]))
    unit = Pose2D(float(x_m), float(y_m), float(yaws_rad[number]))
    name = str(names[number])
    image = camera_image(read_rgb(root / name), lens)
    # Half a patch's step, and what the camera is ahead of the INS.
    reach_m = STEP_PX / 2 * PX_M + math.hypot(CAMERA_IN_INS.x_m, CAMERA_IN_INS.y_m)
    search = SearchWindow(reach_m, half_yaw_rad)
    yaw_rad = 0.0
    if half_yaw_rad < math.pi:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        yaw_rad = wrap_angle(unit.yaw_rad + rng.uniform(-half_yaw_rad, half_yaw_rad))
    view = View('oxford', name, image, overhead, unit @ CAMERA_IN_INS, ACCURACY_M,
                STEP_PX / 2 * PX_M)
    return BenchmarkFrame(view, uniform_prior(Pose2D(0.0, 0.0, yaw_rad), search), search)


def camera_image(rgb: np.ndarray, lens: Intrinsics | None) -> CameraImage:
    """A published crop of 1200x800, or one of its shape; undistorted where ``lens`` is given."""
    u, v, width, height = PAPER_CROP
    if rgb.shape[0] * width != rgb.shape[1] * height:
        raise ValueError(f'a ground image is {rgb.shape[1]}x{rgb.shape[0]}; expected {width}x'
                         f'{height}, or its shape')
    camera = CameraModel(
        width, height, FOCAL_PX, FOCAL_PX, CENTRE_PX[0] - u, CENTRE_PX[1] - v,
        mounting(LEVEL, CAMERA_HEIGHT_M), CAMERA_HEIGHT_M)
    if lens is not None:
        if rgb.shape[:2] != (height, width):
            raise ValueError(f'a ground image is {rgb.shape[1]}x{rgb.shape[0]}; expected {width}x'
                             f'{height}, to be undistorted')
        table = lens.lut_image(*PAPER_IMAGE_SIZE)[v:v + height, u:u + width].astype(np.float32)
        source_u, source_v = np.moveaxis(table - np.float32([u, v]), -1, 0).copy()
        rgb = cv2.remap(rgb, source_u, source_v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        camera = CameraModel(
            width, height, lens.fx_px, lens.fy_px, lens.cx_px - u, lens.cy_px - v,
            camera.base_from_camera, CAMERA_HEIGHT_M)
    return CameraImage(0, rgb, camera.resized(rgb.shape[1], rgb.shape[0]))
