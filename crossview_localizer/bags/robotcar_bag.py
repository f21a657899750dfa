"""Conversion of an Oxford RobotCar traversal, real or simulated, to a rosbag2 (mcap).

Topics (bag time = header stamp, messages in time order):

- ``/camera/image/compressed`` CompressedImage (JPEG), or ``/camera/image`` Image (bgr8):
  demosaiced, by default undistorted, cropped; never resized;
- ``/camera/camera_info`` CameraInfo of the image as written, with the stamp of the image;
- ``/gnss/fix`` NavSatFix of gps.csv, with the covariance that the receiver reported;
- ``/odometry`` Odometry, vo.csv chained from the identity;
- ``/tf_static`` base_link to the camera, the INS and the GNSS antenna;
- ``/ground_truth/geopose`` GeoPoseStamped of base_link from rtk.csv: at each row, and
  interpolated at each image.  It is for evaluation; the localizer never reads it.

RobotCar does not publish where its GNSS antenna sits: it is taken to be at the INS, as the users
of the data set do.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import heapq
from itertools import chain
import math
from pathlib import Path
import shutil

import cv2
import numpy as np
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from tqdm import tqdm

from crossview_localizer.bags import robotcar, robotcar_tracks
from crossview_localizer.bags.message_builder import (
    ANTENNA_FRAME,
    CAMERA_FRAME,
    INS_FRAME,
    MessageBuilder,
)
from crossview_localizer.bags.robotcar_images import (
    base_from_optical,
    ImagePipeline,
    Intrinsics,
    list_stereo_images,
    read_bayer_image,
    read_intrinsics,
    STEREO_CENTRE_MODEL,
)
from crossview_localizer.bags.topics import (
    CAMERA_INFO_TOPIC,
    COMPRESSED_IMAGE_TOPIC,
    GNSS_TOPIC,
    IMAGE_TOPIC,
    ODOMETRY_TOPIC,
    TF_STATIC_TOPIC,
    TRUTH_TOPIC,
)
from crossview_localizer.files import write_atomically

JPEG_QUALITY = 95

# Standard deviations of the integrated odometry, by distance driven, and of the velocities.
ODOMETRY_POSITION_SIGMA_PER_M = 0.02
ODOMETRY_ANGLE_SIGMA_RAD_PER_M = 1e-4
TWIST_LINEAR_SIGMA_MPS = 0.2
TWIST_ANGULAR_SIGMA_RADPS = 0.02

MIN_SATELLITES = 4

SMALL_MESSAGE_BYTES = 800
SAMPLED_IMAGES = 5


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


@dataclass(frozen=True)
class Message:
    """One message of the bag; ``order`` is for equal stamps: transforms, images, then the rest."""

    stamp_ns: int
    order: int
    topic: str
    data: bytes

    def __lt__(self, other: 'Message') -> bool:
        return (self.stamp_ns, self.order) < (other.stamp_ns, other.order)


TOPIC_TYPES = {
    TF_STATIC_TOPIC: 'tf2_msgs/msg/TFMessage',
    CAMERA_INFO_TOPIC: 'sensor_msgs/msg/CameraInfo',
    IMAGE_TOPIC: 'sensor_msgs/msg/Image',
    COMPRESSED_IMAGE_TOPIC: 'sensor_msgs/msg/CompressedImage',
    GNSS_TOPIC: 'sensor_msgs/msg/NavSatFix',
    ODOMETRY_TOPIC: 'nav_msgs/msg/Odometry',
    TRUTH_TOPIC: 'geographic_msgs/msg/GeoPoseStamped',
}
TOPIC_ORDER = {topic: order for order, topic in enumerate(TOPIC_TYPES)}


class Conversion:
    """A traversal opened for conversion: all but the images is in memory."""

    def __init__(self, options: Options):
        self.options = options
        self.messages = MessageBuilder()
        self.notes: list[str] = []
        self.skipped_images = 0

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
        self.begin_ns, self.end_ns = (int(us) * robotcar.NS_PER_US for us in (begin_us, end_us))

        intrinsics = read_intrinsics(options.models)
        if options.undistort and intrinsics.lut is None:
            raise FileNotFoundError(
                f'{options.models} has no {STEREO_CENTRE_MODEL}_distortion_lut.bin; add '
                'it, or keep the images distorted with --no-undistort'
            )
        self.pipeline = self._open_images(intrinsics)
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

    def _within(self, stamp_ns: np.ndarray) -> np.ndarray:
        return (stamp_ns >= self.begin_ns) & (stamp_ns <= self.end_ns)

    def _read_gnss(self) -> np.ndarray | None:
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
            self.notes.append(f'gps.csv: {no_fix:,} of {len(rows):,} rows are no fix')
        if not len(rows):
            self.notes.append('gps.csv: no row in the time of the images')
        return rows

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
        image_ns = self.images.stamps_us[self.image_indices] * robotcar.NS_PER_US
        row_ns = ins_track.stamp_ns[self._within(ins_track.stamp_ns)]
        ins_track = robotcar_tracks.interpolate_track(ins_track, np.union1d(row_ns, image_ns))
        ins_track = ins_track.select(np.isfinite(ins_track.easting_m))
        unknown_images = len(np.setdiff1d(image_ns, ins_track.stamp_ns))
        if unknown_images:
            self.notes.append(
                f'{self.options.rtk.name}: {unknown_images:,} of {len(image_ns):,} images have no '
                'ground truth (outside its rows, or in a gap)'
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

    # --- what the bag holds

    @property
    def image_topic(self) -> str:
        return COMPRESSED_IMAGE_TOPIC if self.options.compress == 'jpeg' else IMAGE_TOPIC

    def topics(self) -> list[str]:
        wanted = {
            TF_STATIC_TOPIC: True, CAMERA_INFO_TOPIC: True, self.image_topic: True,
            GNSS_TOPIC: self.gnss is not None, ODOMETRY_TOPIC: self.odometry is not None,
            TRUTH_TOPIC: self.truth is not None,
        }
        return [topic for topic, present in wanted.items() if present]

    def predicted_bytes(self) -> int:
        """The size of the bag, from a few of its images and the number of the other messages."""
        places = np.linspace(0, len(self.image_indices) - 1, SAMPLED_IMAGES).round().astype(int)
        sizes = []
        for index in self.image_indices[np.unique(places)]:
            try:
                sizes.append(len(self._image_data(index)))
            except (ValueError, OSError):
                continue
        raw_bytes = 3 * self.pipeline.width_px * self.pipeline.height_px
        small = len(self.image_indices) + sum(
            len(stamps) for stamps in (
                self.gnss if self.gnss is not None else (),
                self.odometry.stamp_ns if self.odometry is not None else (),
                self.truth.stamp_ns if self.truth is not None else (),
            )
        )
        image_bytes = np.mean(sizes) if sizes else raw_bytes
        return int(len(self.image_indices) * image_bytes + small * SMALL_MESSAGE_BYTES)

    def _image_data(self, index: int) -> bytes:
        bgr = self.pipeline.read(self.images.path(index))
        stamp_ns = int(self.images.stamps_us[index]) * robotcar.NS_PER_US
        if self.options.compress != 'jpeg':
            return self.messages.raw_image(stamp_ns, bgr)
        _, jpeg = cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
        return self.messages.compressed_image(stamp_ns, jpeg)

    def in_time_order(self, progress: bool) -> Iterator[Message]:
        """All messages, merged by stamp; images are read as they are asked for."""
        streams = [self._image_messages(progress)]
        if self.gnss is not None:
            streams.append(self._gnss_message(row) for row in self.gnss)
        if self.odometry is not None:
            streams.append(map(self._odometry_message, range(len(self.odometry.stamp_ns))))
        if self.truth is not None:
            streams.append(self._truth_messages())
        merged = heapq.merge(*streams)
        first = next(merged)
        frames = self.messages.static_transforms(first.stamp_ns, self.frames)
        yield self._message(first.stamp_ns, TF_STATIC_TOPIC, frames)
        yield from chain([first], merged)

    def _message(self, stamp_ns: int, topic: str, data: bytes) -> Message:
        return Message(int(stamp_ns), TOPIC_ORDER[topic], topic, data)

    def _gnss_message(self, row: np.void) -> Message:
        stamp_ns = int(row['timestamp']) * robotcar.NS_PER_US
        return self._message(stamp_ns, GNSS_TOPIC, self.messages.nav_sat_fix(
            stamp_ns, has_fix(row), (row['latitude'], row['longitude'], row['altitude']),
            np.array([row['longitude_sigma'], row['latitude_sigma'], row['altitude_sigma']])))

    def _odometry_message(self, k: int) -> Message:
        """The pose has a covariance that grows with the distance driven."""
        track = self.odometry
        pose_sigmas = (
            math.hypot(ODOMETRY_POSITION_SIGMA_PER_M * track.travelled_m[k] + 0.01,
                       track.unseen_m[k]),
            1e-3 + ODOMETRY_ANGLE_SIGMA_RAD_PER_M * track.travelled_m[k])
        return self._message(track.stamp_ns[k], ODOMETRY_TOPIC, self.messages.odometry(
            track.stamp_ns[k], track.odom_from_base[k], track.linear_mps[k],
            track.angular_radps[k], pose_sigmas,
            (TWIST_LINEAR_SIGMA_MPS, TWIST_ANGULAR_SIGMA_RADPS)))

    def _image_messages(self, progress: bool) -> Iterator[Message]:
        for index in tqdm(self.image_indices, unit='image', disable=not progress):
            stamp_ns = int(self.images.stamps_us[index]) * robotcar.NS_PER_US
            try:
                data = self._image_data(index)
            except (ValueError, OSError):
                self.skipped_images += 1
                continue
            info = self.messages.camera_info(
                stamp_ns, self.pipeline.width_px, self.pipeline.height_px, self.pipeline.k,
                self.pipeline.distortion)
            yield self._message(stamp_ns, CAMERA_INFO_TOPIC, info)
            yield self._message(stamp_ns, self.image_topic, data)

    def _truth_messages(self) -> Iterator[Message]:
        latitude_deg, longitude_deg, xyzw = robotcar_tracks.geodetic_from_track(self.truth)
        for k, stamp_ns in enumerate(self.truth.stamp_ns):
            data = self.messages.geo_pose(
                stamp_ns, latitude_deg[k], longitude_deg[k], self.truth.altitude_m[k], xyzw[k]
            )
            yield self._message(stamp_ns, TRUTH_TOPIC, data)


def topic_qos(topic: str) -> Qos:
    """Reliable and deep, so that nothing is lost when it is played; /tf_static is latched."""
    latched = topic == TF_STATIC_TOPIC
    large = topic in (IMAGE_TOPIC, COMPRESSED_IMAGE_TOPIC)
    unspecified = QosTime(0, 0)
    return Qos(
        QosHistory.KEEP_LAST, 1 if latched else 10 if large else 200, QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        unspecified, unspecified, QosLiveliness.AUTOMATIC, unspecified, False,
    )


def convert(options: Options, progress: bool = True) -> dict[str, int]:
    """Write the bag and print what was done; returns topic to number of messages.

    The bag appears when it is whole.  Raises FileNotFoundError, FileExistsError or ValueError,
    with what to do about it.
    """
    refuse_existing(options.out, options.overwrite)
    conversion = Conversion(options)
    pipeline = conversion.pipeline
    predicted = conversion.predicted_bytes()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(options.out.parent).free
    print(
        f'{len(conversion.image_indices):,} images {pipeline.width_px}x{pipeline.height_px}, '
        f'{"undistorted" if options.undistort else "distorted"}, predicted size '
        f'{predicted / 1e6:,.1f} MB ({free / 1e6:,.0f} MB free)',
        flush=True,
    )
    if predicted > free:
        raise ValueError(
            f'the bag needs about {predicted / 1e6:,.0f} MB but {options.out.parent} has '
            f'{free / 1e6:,.0f} MB free; use --duration or --every'
        )

    with write_atomically(options.out) as partial:
        counts = _write(conversion, partial, progress)

    if conversion.skipped_images:
        conversion.notes.append(
            f'{conversion.skipped_images:,} of {len(conversion.image_indices):,} images are not '
            'readable or of another size, left out'
        )
    for note in conversion.notes:
        print(f'note: {note}')
    for topic, count in counts.items():
        print(f'{count:8,}  {topic}  {TOPIC_TYPES[topic]}')
    size = sum(file.stat().st_size for file in options.out.iterdir())
    print(f'wrote {options.out} ({size / 1e6:,.1f} MB)')
    return counts


def _write(conversion: Conversion, path: Path, progress: bool) -> dict[str, int]:
    typestore = conversion.messages.typestore
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            topic: writer.add_connection(
                topic, TOPIC_TYPES[topic], typestore=typestore,
                offered_qos_profiles=[topic_qos(topic)],
            )
            for topic in conversion.topics()
        }
        counts = dict.fromkeys(connections, 0)
        for message in conversion.in_time_order(progress):
            writer.write(connections[message.topic], message.stamp_ns, message.data)
            counts[message.topic] += 1
    return counts


def refuse_existing(out: Path, overwrite: bool) -> None:
    """FileExistsError unless ``out`` is free, or is a bag that may be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f'{out} exists; choose another --out, or replace it: --overwrite')
    if not (out / 'metadata.yaml').is_file():
        raise FileExistsError(f'{out} exists and is not a bag: --overwrite does not touch it')
