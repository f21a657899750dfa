"""Images of the Oxford RobotCar data set: camera models, files, and images for a bag."""

from dataclasses import dataclass
from pathlib import Path
import re

import cv2
import numpy as np

from crossview_localizer.bags.robotcar import FLU_FROM_FRD, read_numbers
from crossview_localizer.trajectory import TRUTH_MAX_GAP_S

STEREO_CENTRE_MODEL = 'stereo_narrow_left'
# The crop of the paper, (u, v, width, height) of a 1280x960 image: without bonnet and side edges.
PAPER_IMAGE_SIZE = (1280, 960)
PAPER_CROP = (40, 0, 1200, 800)


# --- camera


@dataclass(frozen=True)
class Intrinsics:
    """A RobotCar camera model.

    ``camera_from_image`` (4, 4) takes the optical frame (x right, y down, z forward) to the
    FRD frame of the camera.  ``lut`` (H*W, 2) holds, row by row of the undistorted image, the
    (u, v) of the source pixel in the distorted one; None if the model has no table.
    """

    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    camera_from_image: np.ndarray
    lut: np.ndarray | None

    def lut_image(self, width_px: int, height_px: int) -> np.ndarray:
        """The table as (H, W, 2) source pixels; ValueError if it is for another image size."""
        if self.lut is None:
            raise ValueError('the camera model has no distortion table')
        if len(self.lut) != width_px * height_px:
            raise ValueError(
                f'the distortion table is for {len(self.lut):,} pixels but the images are '
                f'{width_px}x{height_px} = {width_px * height_px:,}: a model of other images'
            )
        return self.lut.reshape(height_px, width_px, 2)


def read_intrinsics(models: Path, name: str = STEREO_CENTRE_MODEL) -> Intrinsics:
    """Read ``<name>.txt`` and, if it exists, ``<name>_distortion_lut.bin``."""
    path = Path(models) / f'{name}.txt'
    values = read_numbers(path, 'a camera model: fx fy cx cy and a 4x4 matrix')
    if len(values) < 20:
        raise ValueError(f'{path} holds {len(values)} numbers; expected 4 and a 4x4 matrix')
    lut_path = Path(models) / f'{name}_distortion_lut.bin'
    lut = None
    if lut_path.is_file():
        flat = np.fromfile(lut_path, dtype='<f8')
        if flat.size == 0 or flat.size % 2 or lut_path.stat().st_size % 16:
            raise ValueError(
                f'{lut_path} has {lut_path.stat().st_size:,} bytes; expected 16 a pixel'
            )
        lut = flat.reshape(2, -1).T
    return Intrinsics(*values[:4], np.array(values[4:20]).reshape(4, 4), lut)


def fit_plumb_bob(
    intrinsics: Intrinsics, width_px: int, height_px: int
) -> tuple[np.ndarray, float]:
    """Fit ROS's plumb_bob coefficients (k1, k2, p1, p2, k3) to the distortion table.

    The model is linear in its coefficients: with undistorted (x, y), r2 = x2 + y2,
      x' - x = x r2 k1 + x r4 k2 + 2 x y p1 + (r2 + 2 x2) p2 + x r6 k3     and alike in y.

    Returns the coefficients and the RMS error in pixels.
    """
    step = max(1, width_px // 160)
    source = intrinsics.lut_image(width_px, height_px)[::step, ::step]  # (h, w, 2)
    v, u = np.mgrid[0:height_px:step, 0:width_px:step]
    x = ((u - intrinsics.cx_px) / intrinsics.fx_px).ravel()
    y = ((v - intrinsics.cy_px) / intrinsics.fy_px).ravel()
    moved_x = ((source[..., 0] - intrinsics.cx_px) / intrinsics.fx_px).ravel() - x
    moved_y = ((source[..., 1] - intrinsics.cy_px) / intrinsics.fy_px).ravel() - y
    r2 = x**2 + y**2
    rows_x = np.stack((x * r2, x * r2**2, 2 * x * y, r2 + 2 * x**2, x * r2**3), axis=-1)
    rows_y = np.stack((y * r2, y * r2**2, r2 + 2 * y**2, 2 * x * y, y * r2**3), axis=-1)
    rows, moved = np.concatenate((rows_x, rows_y)), np.concatenate((moved_x, moved_y))
    coefficients, *_ = np.linalg.lstsq(rows, moved, rcond=None)
    error_px = (rows @ coefficients - moved) * intrinsics.fx_px
    return coefficients, float(np.sqrt(2 * np.mean(error_px**2)))


def base_from_optical(camera_from_vehicle: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Optical frame (x right, y down, z forward) to base_link, (4, 4)."""
    return FLU_FROM_FRD @ np.linalg.inv(camera_from_vehicle) @ intrinsics.camera_from_image


def read_bayer_image(path: Path) -> np.ndarray:
    """A raw stereo image as (H, W, 3) BGR uint8, demosaiced; ValueError if it is not one."""
    data = np.fromfile(path, dtype=np.uint8)
    raw = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if raw is None:
        raise ValueError(f'{path} is not a readable image')
    if raw.ndim != 2 or raw.dtype != np.uint8:
        raise ValueError(f'{path} is not an 8-bit single-channel Bayer image')
    return demosaic(raw)


def demosaic(raw: np.ndarray) -> np.ndarray:
    """Bayer 'gbrg' (first row G B, second R G) to BGR, bilinear.

    OpenCV names a pattern by the second and third pixel of its second row, here G R: BayerGR.
    """
    return cv2.cvtColor(raw, cv2.COLOR_BayerGR2BGR)


# --- images on disk


@dataclass(frozen=True)
class ImageList:
    """The image files of a traversal in time order; ``notes`` say which are missing."""

    stamps_us: np.ndarray
    folder: Path
    notes: tuple[str, ...]

    def path(self, index: int) -> Path:
        return self.folder / f'{self.stamps_us[index]}.png'


def list_stereo_images(traversal: Path) -> ImageList:
    """The images of ``stereo/centre`` on disk; ``stereo.timestamps`` says what is missing.

    Raises FileNotFoundError if there is no image at all.
    """
    traversal = Path(traversal)
    folder = traversal / 'stereo' / 'centre'
    stamps = sorted(
        int(file.stem) for file in folder.glob('*.png') if re.fullmatch('[0-9]+', file.stem)
    )
    if not stamps:
        raise FileNotFoundError(
            f'no image in {folder}; expected files <microseconds>.png of a RobotCar traversal'
        )
    stamps_us = np.array(stamps, dtype=np.int64)
    notes = []
    listed = traversal / 'stereo.timestamps'
    if not listed.is_file():
        listed = traversal / 'stereo' / 'stereo.timestamps'
    if not listed.is_file():
        notes.append('stereo.timestamps is missing: image times are taken from the file names')
    else:
        expected = _read_timestamps(listed)
        absent = np.setdiff1d(list(expected), stamps_us)
        chunks, counts = np.unique([expected[stamp] for stamp in absent], return_counts=True)
        of = {c: sum(1 for chunk in expected.values() if chunk == c) for c in chunks}
        notes += [
            f'chunk {chunk}: {count:,} of {of[chunk]:,} listed images are not on disk'
            for chunk, count in zip(chunks, counts)
        ]
    gaps_s = np.diff(stamps_us) * 1e-6
    if (gaps_s > TRUTH_MAX_GAP_S).any():
        notes.append(
            f'{int((gaps_s > TRUTH_MAX_GAP_S).sum())} gaps in the images longer than '
            f'{TRUTH_MAX_GAP_S:g} s, the longest {gaps_s.max():.1f} s'
        )
    return ImageList(stamps_us, folder, tuple(notes))


def _read_timestamps(path: Path) -> dict[int, int]:
    """Read lines ``timestamp chunk`` as {stamp_us: chunk}; other lines are skipped."""
    text = path.read_text(encoding='utf-8', errors='replace')
    pairs = [line.split() for line in text.splitlines()]
    return {
        int(pair[0]): int(pair[1])
        for pair in pairs
        if len(pair) == 2 and pair[0].isdigit() and pair[1].isdigit()
    }


# --- images of the bag


class ImagePipeline:
    """Makes an image of the bag from a raw file: demosaic, undistort, crop.

    ``k`` (3, 3) and ``distortion`` (5,) are the intrinsics of the images that it makes.  Raises
    ValueError if the camera model, the crop and the image size do not belong together.
    """

    def __init__(
        self,
        intrinsics: Intrinsics,
        raw_size: tuple[int, int],
        undistort: bool,
        crop: tuple[int, ...] | None,
    ):
        width_px, height_px = self.raw_size = raw_size
        if crop is None:
            crop = scaled_paper_crop(width_px, height_px)
        u, v, self.width_px, self.height_px = crop or (0, 0, width_px, height_px)
        if not (
            u >= 0 and v >= 0 and min(self.width_px, self.height_px) > 0
            and u + self.width_px <= width_px and v + self.height_px <= height_px
        ):
            raise ValueError(
                f'crop {u},{v},{self.width_px},{self.height_px} does not lie in the '
                f'{width_px}x{height_px} image'
            )
        self.window = (slice(v, v + self.height_px), slice(u, u + self.width_px))
        self.distortion, self.fit_error_px = np.zeros(5), 0.0
        self.source_u = self.source_v = None
        if undistort:
            lut = intrinsics.lut_image(width_px, height_px)[self.window].astype(np.float32)
            self.source_u, self.source_v = np.moveaxis(lut, -1, 0).copy()
        elif intrinsics.lut is not None:
            self.distortion, self.fit_error_px = fit_plumb_bob(
                intrinsics, width_px, height_px
            )
        self.k = np.array(
            [
                [intrinsics.fx_px, 0.0, intrinsics.cx_px - u],
                [0.0, intrinsics.fy_px, intrinsics.cy_px - v],
                [0.0, 0.0, 1.0],
            ]
        )

    def read(self, path: Path) -> np.ndarray:
        """(height, width, 3) BGR uint8; ValueError or OSError if the file is not such an image."""
        image = read_bayer_image(path)
        if image.shape[1::-1] != self.raw_size:
            raise ValueError(f'{path} is {image.shape[1]}x{image.shape[0]}; the others are not')
        if self.source_u is None:
            return image[self.window]
        return cv2.remap(image, self.source_u, self.source_v, cv2.INTER_LINEAR)


def scaled_paper_crop(width_px: int, height_px: int) -> tuple[int, int, int, int]:
    """The paper's crop for another image size."""
    scale_u, scale_v = width_px / PAPER_IMAGE_SIZE[0], height_px / PAPER_IMAGE_SIZE[1]
    u, v, width, height = PAPER_CROP
    return (
        round(u * scale_u), round(v * scale_v), round(width * scale_u), round(height * scale_v)
    )
