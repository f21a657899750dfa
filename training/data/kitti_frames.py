"""KITTI with satellite tiles: the benchmark of Shi and Li (CVPR 2022), of CCVPE, HC-Net and FG2.

Below one root, as github.com/YujiaoShi/HighlyAccurate has it:

- ``raw_data/DATE/DATE_drive_NNNN_sync/{image_02,oxts}/data`` and ``raw_data/DATE/calib_*.txt``,
  KITTI's raw data;
- ``satmap/DATE/DATE_drive_NNNN_sync/0000000000.png``, the tile of each image: Google's zoom 18 at
  scale 2, north up, about the oxts unit.

A split file has a line for each image: ``DATE/DRIVE/NUMBER.png``, in test files followed by the
shift along and across the heading and the turn, as shares of 20 m, 20 m and 10 degrees.  From the
pose of the camera in the axes of the overhead crop, which is turned to the prior's heading:

    prior = truth @ (-20 m shift_along, -20 m shift_left, -10 degrees turn)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
import math
from pathlib import Path
import re
import zlib

import numpy as np

from crossview_localizer.bags import kitti
from crossview_localizer.datatypes import CameraImage, CameraModel
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.matcher import SearchWindow
from training.data.benchmark_frames import BenchmarkFrame, Frames, overhead_about, uniform_prior
from training.data.real_pairs import LEVEL, mounting, Overhead, read_rgb, View

# Images of the published files, which the figures of the papers are about.
SPLIT_FILES = {'test1': 'test1_files.txt', 'test2': 'test2_files.txt', 'train': 'train_files.txt'}
PUBLISHED_COUNTS = {'test1': 3773, 'test2': 7542, 'train': 19655}
SHIFT_M, TURN_DEG = 20.0, 10.0
CROP_PX = 512
ZOOM, SCALE = 18, 2
EQUATOR_M = 2 * math.pi * 6378137.0
WORLD_PX = 256                      # of a web map's zoom 0
CAMERA_IN_UNIT = Pose2D(1.08, -0.26, 0.0)
CAMERA_HEIGHT_M = 1.65
ACCURACY_M = 0.5                    # of oxts positions and of the imagery, for reports only
NAME = re.compile(r'(\d{4}_\d\d_\d\d)/(\1_drive_\d{4}_sync)/(\d{10})\.png')


@dataclass(frozen=True)
class KittiLine:
    """One line of a split file; shifts and turn are shares in [-1, 1]."""

    name: str
    shift_along: float
    shift_left: float
    turn: float


def tile_px_m(latitude_deg: float) -> float:
    """Metres a pixel of a tile, 0.196 at Karlsruhe.

    The papers take that of 49.015 degrees everywhere, which is off by 0.1 % at most.
    """
    return EQUATOR_M * math.cos(math.radians(latitude_deg)) / (WORLD_PX * 2 ** ZOOM * SCALE)


def read_split(path: str | Path) -> list[KittiLine]:
    """The lines of a split file; where it has no shifts, they are drawn by the image's name."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f'{path} does not exist; expected a split file of YujiaoShi/HighlyAccurate '
            f'(dataLoader/{SPLIT_FILES["test1"]})')
    found = list(_lines(path))
    if not found:
        raise ValueError(f'{path} is empty; expected lines DATE/DRIVE/NUMBER.png')
    return found


def _lines(path: Path) -> Iterator[KittiLine]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        name, *shares = line.split() or ['']
        if not name:
            continue
        try:
            values = [float(share) for share in shares] or np.random.default_rng(
                zlib.crc32(name.encode())).uniform(-1.0, 1.0, 3).tolist()
        except ValueError:
            values = []
        if not NAME.fullmatch(name) or len(values) != 3 or max(map(abs, values)) > 1.0:
            raise ValueError(
                f'{path}, line {number}: {line[:90]}; expected '
                '2011_09_26/2011_09_26_drive_0005_sync/0000000048.png and, in test files, three '
                'shares in [-1, 1]')
        yield KittiLine(name, *values)


def kitti_frames(root: str | Path, split_file: str | Path) -> Frames:
    """The frames of a split below ``root``; ValueError or OSError where files are missing."""
    root, lines = Path(root), read_split(split_file)
    for folder in ('raw_data', 'satmap'):
        if not (root / folder).is_dir():
            raise FileNotFoundError(
                f'{root} has no folder {folder}; expected raw_data/DATE/DRIVE and '
                'satmap/DATE/DRIVE (docs/field_benchmarks.md)')
    missing = [path for line in lines for path in _paths(root, line) if not path.is_file()]
    if missing:
        raise FileNotFoundError(f'{len(missing)} files of {split_file} are missing, the first '
                                f'{missing[0]}; expected oxts, image_02 and satmap of each line')
    return Frames('kitti', len(lines), partial(_read_frame, root, lines))


def _paths(root: Path, line: KittiLine) -> tuple[Path, Path, Path]:
    """Of the oxts file, the image and the tile."""
    day, drive, frame = NAME.fullmatch(line.name).groups()
    folder = root / 'raw_data' / day / drive
    return (folder / 'oxts/data' / f'{frame}.txt', folder / 'image_02/data' / f'{frame}.png',
            root / 'satmap' / line.name)


def _read_frame(root: Path, lines: list[KittiLine], number: int) -> BenchmarkFrame:
    line = lines[number]
    oxts_path, image_path, tile_path = _paths(root, line)
    oxts, rgb = kitti.read_oxts(oxts_path), read_rgb(image_path)
    k, _ = kitti.rectified_intrinsics(oxts_path.parents[3])
    camera = CameraModel(
        rgb.shape[1], rgb.shape[0], k[0, 0], k[1, 1], k[0, 2], k[1, 2],
        mounting(LEVEL, CAMERA_HEIGHT_M), CAMERA_HEIGHT_M)
    tile = Overhead(line.name, read_rgb(tile_path), tile_px_m(float(oxts['latitude'])))
    prior_in_truth = Pose2D(-SHIFT_M * line.shift_along, -SHIFT_M * line.shift_left,
                            -math.radians(TURN_DEG * line.turn))
    truth_in_tile = Pose2D(0.0, 0.0, float(oxts['yaw'])) @ CAMERA_IN_UNIT
    overhead = overhead_about(tile, truth_in_tile @ prior_in_truth, CROP_PX)
    turn_rad = math.radians(TURN_DEG)
    # The square of shifts lies in the true heading's axes, up to ``turn_rad`` from the crop's.
    search = SearchWindow(SHIFT_M * (math.cos(turn_rad) + math.sin(turn_rad)), turn_rad)
    view = View('kitti', line.name, CameraImage(0, rgb, camera), overhead,
                prior_in_truth.inverse(), ACCURACY_M, SHIFT_M)
    return BenchmarkFrame(view, uniform_prior(Pose2D(0.0, 0.0, 0.0), search), search)
