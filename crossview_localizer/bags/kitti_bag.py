"""Conversion of a raw KITTI drive to the bag of ``drive_writer``.

``base_link`` is the oxts unit (GNSS and IMU), 0.93 m above the road; the antenna is taken to be
there too, as oxts positions are those of the unit.  Images are rectified already and written as
they are.  The oxts rows are the fixes and the truth, and at each image the truth between them.
Odometry is dead reckoning with the speed and the rate of turn of the oxts rows, in the plane.

All of it comes from one RTK-aided INS: fixes and odometry are far better than what an ordinary
vehicle has, and are not independent of the truth.
"""

from dataclasses import dataclass
import math
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.bags import kitti
from crossview_localizer.bags.drive_writer import (
    DriveConversion,
    Fix,
    MIN_SATELLITES,
    refuse_existing,
    write_drive,
)
from crossview_localizer.bags.message_builder import ANTENNA_FRAME, CAMERA_FRAME, INS_FRAME
from crossview_localizer.bags.robotcar import rotation_from_rpy
from crossview_localizer.bags.robotcar_tracks import (
    constant_twist_motion,
    interpolate_track,
    OdometryTrack,
    PoseTrack,
    track_from_geodetic,
)


@dataclass(frozen=True)
class Options:
    """What to convert and how; ``calibration`` is the folder of the day's calib_*.txt."""

    drive: Path
    out: Path
    calibration: Path | None = None
    camera: str = '02'
    start_s: float = 0.0
    duration_s: float = math.inf
    every: int = 1
    compress: str = 'jpeg'
    overwrite: bool = False


class Conversion(DriveConversion):
    """A raw drive opened for conversion: all but the images is in memory."""

    def __init__(self, options: Options):
        super().__init__(options.compress)
        day = options.calibration or options.drive.resolve().parent
        self.k = kitti.rectified_intrinsics(day, options.camera)[0]
        self.distortion = np.zeros(5)
        self.frames = {
            CAMERA_FRAME: kitti.unit_from_camera(day, options.camera),
            INS_FRAME: np.eye(4), ANTENNA_FRAME: np.eye(4)}
        paths, stamps_ns = recorded_files(options.drive / f'image_{options.camera}', 'png')
        end_s = options.start_s + options.duration_s
        after_s = (stamps_ns - stamps_ns[0]) * 1e-9
        chosen = np.flatnonzero((after_s >= options.start_s) & (after_s <= end_s))[::options.every]
        if not len(chosen):
            raise ValueError(
                f'no image in the {options.duration_s:g} s after --start {options.start_s:g}; '
                f'{options.drive} has {after_s[-1]:.1f} s of images')
        self.image_ns, self.paths = stamps_ns[chosen], [paths[k] for k in chosen]
        first = cv2.imread(str(self.paths[0]), cv2.IMREAD_COLOR)
        if first is None:
            raise ValueError(f'{self.paths[0]} cannot be read; expected a PNG image')
        self.size_px = first.shape[1::-1]
        self._read_oxts(options.drive / 'oxts')

    def _read_oxts(self, folder: Path) -> None:
        """The rows within the time of the images, and one on each side of it."""
        paths, stamps_ns = recorded_files(folder, 'txt')
        first, last = np.searchsorted(stamps_ns, self.image_ns[[0, -1]], 'right') - 1
        used = slice(max(first, 0), last + 2)
        stamps_ns = stamps_ns[used]
        rows = np.array([kitti.read_oxts(path) for path in paths[used]], kitti.OXTS_DTYPE)
        if len(rows) < 2:
            raise ValueError(
                f'{folder} has {len(rows)} rows in the time of the images; expected at least 2')
        self.gnss = [Fix(
            int(stamp_ns), bool(row['satellites'] >= MIN_SATELLITES),
            (row['latitude'], row['longitude'], row['altitude']), (row['position_sigma'],) * 3)
            for stamp_ns, row in zip(stamps_ns, rows)]
        self.odometry = dead_reckoning(stamps_ns, rows)
        track = interpolate_track(
            oxts_track(stamps_ns, rows), np.union1d(stamps_ns, self.image_ns))
        self.truth = track.select(np.isfinite(track.easting_m))
        unknown = len(np.setdiff1d(self.image_ns, self.truth.stamp_ns))
        if unknown:
            self.notes.append(f'{unknown:,} of {len(self.image_ns):,} images have no ground truth '
                              '(outside the oxts rows, or in a gap)')

    def read_image(self, number: int) -> np.ndarray:
        path = self.paths[number]
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is None or image.shape[1::-1] != self.size_px:
            raise ValueError(f'{path} is not an image of {self.size_px[0]}x{self.size_px[1]}')
        return image

    def summary(self) -> str:
        return 'rectified'


def recorded_files(folder: Path, suffix: str) -> tuple[list[Path], np.ndarray]:
    """The files of a sensor's ``data`` folder and their stamps (n,) ns, in time order.

    File 0000000007 has the eighth stamp.  A file that is missing leaves a gap; of files with the
    same stamp the first is kept.
    """
    stamps_ns = kitti.read_stamps(folder / 'timestamps.txt')
    paths = sorted((folder / 'data').glob(f'*.{suffix}'))
    if not paths:
        raise FileNotFoundError(f'{folder}/data has no file 0000000000.{suffix}; expected those '
                                'of a KITTI drive')
    numbers = np.array([int(path.stem) if path.stem.isdigit() else -1 for path in paths])
    if numbers.min() < 0 or numbers.max() >= len(stamps_ns):
        wrong = paths[int(np.argmax((numbers < 0) | (numbers >= len(stamps_ns))))]
        raise ValueError(f'{wrong} has no line in timestamps.txt, which has {len(stamps_ns)}')
    found_ns, order = np.unique(stamps_ns[numbers], return_index=True)
    return [paths[k] for k in order], found_ns


def oxts_track(stamps_ns: np.ndarray, rows: np.ndarray) -> PoseTrack:
    """The poses of the oxts unit."""
    return track_from_geodetic(
        stamps_ns, rows['latitude'], rows['longitude'], rows['altitude'],
        rotation_from_rpy(rows['roll'], rows['pitch'], rows['yaw']))


def dead_reckoning(stamps_ns: np.ndarray, rows: np.ndarray) -> OdometryTrack:
    """Speed and rate of turn of oxts rows, each the mean of two rows, chained in the plane."""
    still = np.zeros(len(rows))
    velocity_mps = np.stack((rows['forward_mps'], rows['left_mps'], still), 1)
    rate_radps = np.stack((still, still, rows['up_radps']), 1)
    poses, travelled_m = [np.eye(4)], [0.0]
    for k, duration_s in enumerate(np.diff(stamps_ns) * 1e-9):
        mean_mps = velocity_mps[k:k + 2].mean(0)
        step = constant_twist_motion(mean_mps, rate_radps[k:k + 2].mean(0), duration_s)
        poses.append(poses[-1] @ step)
        travelled_m.append(travelled_m[-1] + math.hypot(*mean_mps) * duration_s)
    return OdometryTrack(
        stamps_ns, np.array(poses), velocity_mps, rate_radps, np.array(travelled_m), still, ())


def convert(options: Options, progress: bool = True) -> dict[str, int]:
    """Write the bag and print what was done; returns topic to number of messages.

    The bag appears when it is whole.  Raises FileNotFoundError, FileExistsError or ValueError,
    with what to do about it.
    """
    refuse_existing(options.out, options.overwrite)
    return write_drive(Conversion(options), options.out, progress)
