"""Conversion of an Oxford RobotCar traversal, real or simulated, to the bag of ``drive_writer``.

Images are demosaiced, by default undistorted, and cropped; never resized.  Fixes are those of
gps.csv with the covariance that the receiver reported, odometry is vo.csv chained from the
identity, the truth is rtk.csv: at each row, and interpolated at each image.

RobotCar does not publish where its GNSS antenna sits: it is taken to be at the INS, as the users
of the data set do.
"""

from dataclasses import dataclass
import math
from pathlib import Path

import numpy as np

from crossview_localizer.bags import robotcar, robotcar_tracks
from crossview_localizer.bags.drive_writer import (
    DriveConversion,
    Fix,
    MIN_SATELLITES,
    refuse_existing,
    write_drive,
)
from crossview_localizer.bags.message_builder import ANTENNA_FRAME, CAMERA_FRAME, INS_FRAME
from crossview_localizer.bags.robotcar_images import (
    base_from_optical,
    ImagePipeline,
    Intrinsics,
    list_stereo_images,
    read_bayer_image,
    read_intrinsics,
    STEREO_CENTRE_MODEL,
)


@dataclass(frozen=True)
class Options:
    """What to convert and how.

    ``crop`` is (u, v, width, height); () keeps the whole image, None is the crop of the paper.
    """

    traversal: Path
    models: Path
    extrinsics: Path
    out: Path
    rtk: Path | None = None
    start_s: float = 0.0
    duration_s: float = math.inf
    every: int = 1
    compress: str = 'jpeg'
    undistort: bool = True
    crop: tuple[int, ...] | None = None
    gnss: bool = True
    odometry: bool = True
    overwrite: bool = False


# --- conversion


def has_fix(row: np.void) -> bool:
    """Whether a row of gps.csv is a fix: enough satellites (if known), and not (0, 0)."""
    if row['num_satellites'] < MIN_SATELLITES:
        return False
    return not (row['latitude'] == 0 and row['longitude'] == 0)


def static_frames(
    camera_from_vehicle: np.ndarray, vehicle_from_ins: np.ndarray, intrinsics: Intrinsics
) -> dict[str, np.ndarray]:
    """Child frame to base_from_child (4, 4); the antenna is taken to sit at the INS."""
    base_from_ins = robotcar.flu_from_frd(vehicle_from_ins)
    base_from_antenna = np.eye(4)
    base_from_antenna[:3, 3] = base_from_ins[:3, 3]
    return {
        CAMERA_FRAME: base_from_optical(camera_from_vehicle, intrinsics),
        INS_FRAME: base_from_ins,
        ANTENNA_FRAME: base_from_antenna,
    }


class Conversion(DriveConversion):
    """A traversal opened for conversion: all but the images is in memory."""

    def __init__(self, options: Options):
        super().__init__(options.compress)
        self.options = options
        images = list_stereo_images(options.traversal)
        self.notes += images.notes
        self.images = images
        begin_us = images.stamps_us[0] + round(options.start_s * 1e6)
        end_us = (
            images.stamps_us[-1]
            if math.isinf(options.duration_s)
            else begin_us + round(options.duration_s * 1e6)
        )
        chosen = (images.stamps_us >= begin_us) & (images.stamps_us <= end_us)
        self.image_indices = np.flatnonzero(chosen)[:: options.every]
        if not len(self.image_indices):
            length_s = (images.stamps_us[-1] - images.stamps_us[0]) * 1e-6
            raise ValueError(
                f'no image in the {options.duration_s:g} s after --start {options.start_s:g}; the '
                f'traversal has {length_s:.1f} s of images'
            )
        self.image_ns = images.stamps_us[self.image_indices] * robotcar.NS_PER_US
        self.begin_ns, self.end_ns = (int(us) * robotcar.NS_PER_US for us in (begin_us, end_us))

        intrinsics = read_intrinsics(options.models)
        if options.undistort and intrinsics.lut is None:
            raise FileNotFoundError(
                f'{options.models} has no {STEREO_CENTRE_MODEL}_distortion_lut.bin; add '
                'it, or keep the images distorted with --no-undistort'
            )
        self.pipeline = self._open_images(intrinsics)
        self.size_px = self.pipeline.width_px, self.pipeline.height_px
        self.k, self.distortion = self.pipeline.k, self.pipeline.distortion
        camera_from_vehicle = robotcar.read_extrinsic(options.extrinsics / 'stereo.txt')
        vehicle_from_ins = robotcar.read_extrinsic(options.extrinsics / 'ins.txt')
        self.frames = static_frames(camera_from_vehicle, vehicle_from_ins, intrinsics)
        self.gnss = self._read_gnss()
        self.odometry = self._read_odometry()
        self.truth = self._read_truth(vehicle_from_ins)

    def _open_images(self, intrinsics: Intrinsics) -> ImagePipeline:
        """The pipeline for the size of the first readable image."""
        for index in self.image_indices:
            try:
                image = read_bayer_image(self.images.path(index))
            except (ValueError, OSError):
                continue
            pipeline = ImagePipeline(
                intrinsics, image.shape[1::-1], self.options.undistort, self.options.crop
            )
            if not self.options.undistort and intrinsics.lut is None:
                self.notes.append(
                    'no distortion table: camera_info says no distortion, which is not true'
                )
            elif not self.options.undistort:
                self.notes.append(
                    f'plumb_bob fitted to the distortion table, RMS {pipeline.fit_error_px:.3f} px'
                )
            return pipeline
        raise ValueError(
            f'none of the {len(self.image_indices):,} chosen images in {self.images.folder} is a '
            'readable 8-bit single-channel Bayer PNG'
        )

    def read_image(self, number: int) -> np.ndarray:
        return self.pipeline.read(self.images.path(self.image_indices[number]))

    def summary(self) -> str:
        return 'undistorted' if self.options.undistort else 'distorted'

    def _within(self, stamp_ns: np.ndarray) -> np.ndarray:
        return (stamp_ns >= self.begin_ns) & (stamp_ns <= self.end_ns)

    def _read_gnss(self) -> list[Fix] | None:
        if not self.options.gnss:
            return None
        path = self.options.traversal / 'gps' / 'gps.csv'
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist; convert without GNSS with --no-gnss')
        table = robotcar.read_gps(path)
        self.notes += table.notes
        rows = table.rows[self._within(table.rows['timestamp'] * robotcar.NS_PER_US)]
        no_fix = sum(not has_fix(row) for row in rows)
        if no_fix:
            self.notes.append(f'gps.csv: {no_fix:,} of {len(rows):,} rows are not a fix')
        if not len(rows):
            self.notes.append('gps.csv: no row in the time of the images')
        return [Fix(
            int(row['timestamp']) * robotcar.NS_PER_US, has_fix(row),
            (row['latitude'], row['longitude'], row['altitude']),
            (row['longitude_sigma'], row['latitude_sigma'], row['altitude_sigma']))
            for row in rows]

    def _read_odometry(self) -> robotcar_tracks.OdometryTrack | None:
        if not self.options.odometry:
            return None
        path = self.options.traversal / 'vo' / 'vo.csv'
        if not path.is_file():
            raise FileNotFoundError(
                f'{path} does not exist; convert without odometry with --no-odometry'
            )
        table = robotcar.read_vo(path)
        rows = table.rows
        earlier = np.minimum(rows['source_timestamp'], rows['destination_timestamp'])
        later = np.maximum(rows['source_timestamp'], rows['destination_timestamp'])
        rows = rows[
            self._within(earlier * robotcar.NS_PER_US) & self._within(later * robotcar.NS_PER_US)
        ]
        if not len(rows):
            raise ValueError(
                f'{path} has no row in the time of the images; convert without odometry with '
                '--no-odometry'
            )
        track = robotcar_tracks.integrate_vo(rows)
        self.notes += table.notes + track.notes
        return track

    def _read_truth(self, vehicle_from_ins: np.ndarray) -> robotcar_tracks.PoseTrack | None:
        """The true poses of base_link at the rows, and between them at the images."""
        if self.options.rtk is None:
            self.notes.append('no --rtk: the bag has no ground truth')
            return None
        table = robotcar.read_rtk(self.options.rtk)
        self.notes += table.notes
        ins_track = robotcar_tracks.ins_track_from_rtk(table.rows)
        row_ns = ins_track.stamp_ns[self._within(ins_track.stamp_ns)]
        ins_track = robotcar_tracks.interpolate_track(ins_track, np.union1d(row_ns, self.image_ns))
        ins_track = ins_track.select(np.isfinite(ins_track.easting_m))
        unknown_images = len(np.setdiff1d(self.image_ns, ins_track.stamp_ns))
        if unknown_images:
            self.notes.append(
                f'{self.options.rtk.name}: {unknown_images:,} of {len(self.image_ns):,} images '
                'have no ground truth (outside its rows, or in a gap)'
            )
        if not len(ins_track):
            raise ValueError(
                f'{self.options.rtk} has no pose in the time of the images: another traversal?'
            )
        track = robotcar_tracks.base_link_track(ins_track, vehicle_from_ins)
        off_deg = robotcar_tracks.heading_minus_course_deg(track)
        if len(off_deg) >= 10 and abs(np.median(off_deg)) > 10.0:
            self.notes.append(
                f'WARNING: the heading is {np.median(off_deg):+.0f} deg from the direction of '
                'motion (median): its conventions are not those of the published rtk.csv'
            )
        return track


def convert(options: Options, progress: bool = True) -> dict[str, int]:
    """Write the bag and print what was done; returns topic to number of messages.

    The bag appears when it is whole.  Raises FileNotFoundError, FileExistsError or ValueError,
    with what to do about it.
    """
    refuse_existing(options.out, options.overwrite)
    return write_drive(Conversion(options), options.out, progress)
