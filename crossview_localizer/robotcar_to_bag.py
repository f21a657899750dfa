"""Convert an Oxford RobotCar traversal, real or simulated, to a rosbag2 (mcap).

Topics (bag time = header stamp, messages in time order):

- ``/camera/image/compressed`` CompressedImage (JPEG), or ``/camera/image`` Image (bgr8):
  demosaiced, by default undistorted, cropped; never resized;
- ``/camera/camera_info`` CameraInfo of the image as written, with the image's stamp;
- ``/gnss/fix`` NavSatFix of gps.csv, with the covariance that the receiver reported;
- ``/odometry`` Odometry, vo.csv chained from the identity;
- ``/tf_static`` base_link to the camera, the INS and the GNSS antenna;
- ``/ground_truth/geopose`` GeoPoseStamped of base_link from rtk.csv: at each row, and
  interpolated at each image. It is for evaluation; the localizer never reads it.

RobotCar publishes no place of its GNSS antenna: the INS's is used, as the data set's own users do.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
import heapq
from itertools import chain
import math
from pathlib import Path
import shutil
import sys

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
from rosbags.typesys.store import Typestore
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from crossview_localizer.bags import robotcar
from crossview_localizer.bags.topics import (
    CAMERA_INFO_TOPIC,
    COMPRESSED_IMAGE_TOPIC,
    GNSS_TOPIC,
    IMAGE_TOPIC,
    ODOMETRY_TOPIC,
    TF_STATIC_TOPIC,
    TRUTH_TOPIC,
)
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs

BASE_FRAME = 'base_link'
ODOM_FRAME = 'odom'
CAMERA_FRAME = 'camera_optical'
INS_FRAME = 'ins'
ANTENNA_FRAME = 'gnss_antenna'
TRUTH_FRAME = 'wgs84'

# The crop of the paper, (u, v, width, height) of a 1280x960 image: drops the bonnet and the side
# edges.
PAPER_IMAGE_SIZE = (1280, 960)
PAPER_CROP = (40, 0, 1200, 800)
JPEG_QUALITY = 95

# Standard deviations of the integrated odometry, by distance driven, and of one step's velocities.
ODOMETRY_POSITION_SIGMA_PER_M = 0.02
ODOMETRY_ANGLE_SIGMA_RAD_PER_M = 1e-4
TWIST_LINEAR_SIGMA_MPS = 0.2
TWIST_ANGULAR_SIGMA_RADPS = 0.02

NAVSAT_NO_FIX, NAVSAT_FIX, NAVSAT_SERVICE_GPS = -1, 0, 1
NAVSAT_COVARIANCE_UNKNOWN, NAVSAT_COVARIANCE_DIAGONAL = 0, 2
MIN_SATELLITES = 4

SMALL_MESSAGE_BYTES = 800
SAMPLED_IMAGES = 5


@dataclass(frozen=True)
class Options:
    """What to convert and how; ``crop``: (u, v, width, height), () for none, None: the paper's."""

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


# --- images -------------------------------------------------------------------------------------

class ImagePipeline:
    """Raw file to the image of the bag: demosaic, undistort, crop; and the intrinsics that fit it.

    Raises ValueError where the camera model, the crop and the image size do not belong together.
    """

    def __init__(
        self,
        intrinsics: robotcar.Intrinsics,
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
            self.distortion, self.fit_error_px = robotcar.fit_plumb_bob(
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
        """(height, width, 3) BGR uint8; ValueError or OSError where the file is no such image."""
        image = robotcar.read_bayer_image(path)
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


# --- messages -----------------------------------------------------------------------------------

class Messages:
    """Builds serialized messages (CDR)."""

    def __init__(self, typestore: Typestore):
        self.typestore = typestore

    def make(self, name: str, **fields):
        return self.typestore.types[name](**fields)

    def cdr(self, message) -> bytes:
        return bytes(self.typestore.serialize_cdr(message, message.__msgtype__))

    def header(self, stamp_ns: int, frame_id: str):
        sec, nanosec = divmod(int(stamp_ns), 10**9)
        stamp = self.make('builtin_interfaces/msg/Time', sec=sec, nanosec=nanosec)
        return self.make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)

    def vector(self, xyz):
        x, y, z = map(float, xyz)
        return self.make('geometry_msgs/msg/Vector3', x=x, y=y, z=z)

    def quaternion(self, xyzw):
        x, y, z, w = map(float, xyzw)
        return self.make('geometry_msgs/msg/Quaternion', x=x, y=y, z=z, w=w)

    def compressed_image(self, stamp_ns: int, jpeg: np.ndarray) -> bytes:
        return self.cdr(
            self.make(
                'sensor_msgs/msg/CompressedImage',
                header=self.header(stamp_ns, CAMERA_FRAME),
                format='bgr8; jpeg compressed bgr8',
                data=jpeg.ravel(),
            )
        )

    def raw_image(self, stamp_ns: int, bgr: np.ndarray) -> bytes:
        height_px, width_px = bgr.shape[:2]
        return self.cdr(
            self.make(
                'sensor_msgs/msg/Image',
                header=self.header(stamp_ns, CAMERA_FRAME),
                height=height_px,
                width=width_px,
                encoding='bgr8',
                is_bigendian=0,
                step=3 * width_px,
                data=np.ascontiguousarray(bgr).ravel(),
            )
        )

    def camera_info(self, stamp_ns: int, pipeline: ImagePipeline) -> bytes:
        return self.cdr(
            self.make(
                'sensor_msgs/msg/CameraInfo',
                header=self.header(stamp_ns, CAMERA_FRAME),
                height=pipeline.height_px,
                width=pipeline.width_px,
                distortion_model='plumb_bob',
                d=pipeline.distortion,
                k=pipeline.k.ravel(),
                r=np.eye(3).ravel(),
                p=np.hstack((pipeline.k, np.zeros((3, 1)))).ravel(),
                binning_x=0,
                binning_y=0,
                roi=self.make(
                    'sensor_msgs/msg/RegionOfInterest',
                    x_offset=0, y_offset=0, height=0, width=0, do_rectify=False,
                ),
            )
        )

    def nav_sat_fix(self, row: np.void) -> bytes:
        sigmas_m = np.array(
            [row['longitude_sigma'], row['latitude_sigma'], row['altitude_sigma']]
        )
        known = np.isfinite(sigmas_m).all() and (sigmas_m > 0).all()
        return self.cdr(
            self.make(
                'sensor_msgs/msg/NavSatFix',
                header=self.header(row['timestamp'] * robotcar.NS_PER_US, ANTENNA_FRAME),
                status=self.make(
                    'sensor_msgs/msg/NavSatStatus',
                    status=NAVSAT_FIX if has_fix(row) else NAVSAT_NO_FIX,
                    service=NAVSAT_SERVICE_GPS,
                ),
                latitude=float(row['latitude']),
                longitude=float(row['longitude']),
                altitude=float(row['altitude']),
                # East, north, up.
                position_covariance=np.diag(sigmas_m**2 if known else np.zeros(3)).ravel(),
                position_covariance_type=(
                    NAVSAT_COVARIANCE_DIAGONAL if known else NAVSAT_COVARIANCE_UNKNOWN
                ),
            )
        )

    def odometry(self, track: robotcar.OdometryTrack, k: int) -> bytes:
        """Pose with a covariance that grows with the distance driven; twist of the last step."""
        pose = track.odom_from_base[k]
        position_sigma_m = math.hypot(
            ODOMETRY_POSITION_SIGMA_PER_M * track.travelled_m[k] + 0.01, track.unseen_m[k]
        )
        angle_sigma_rad = 1e-3 + ODOMETRY_ANGLE_SIGMA_RAD_PER_M * track.travelled_m[k]
        return self.cdr(
            self.make(
                'nav_msgs/msg/Odometry',
                header=self.header(track.stamp_ns[k], ODOM_FRAME),
                child_frame_id=BASE_FRAME,
                pose=self.make(
                    'geometry_msgs/msg/PoseWithCovariance',
                    pose=self.make(
                        'geometry_msgs/msg/Pose',
                        position=self.make(
                            'geometry_msgs/msg/Point',
                            **dict(zip('xyz', map(float, pose[:3, 3]))),
                        ),
                        orientation=self.quaternion(
                            Rotation.from_matrix(pose[:3, :3]).as_quat()
                        ),
                    ),
                    covariance=_diagonal_covariance(position_sigma_m, angle_sigma_rad),
                ),
                twist=self.make(
                    'geometry_msgs/msg/TwistWithCovariance',
                    twist=self.make(
                        'geometry_msgs/msg/Twist',
                        linear=self.vector(track.linear_mps[k]),
                        angular=self.vector(track.angular_radps[k]),
                    ),
                    covariance=_diagonal_covariance(
                        TWIST_LINEAR_SIGMA_MPS, TWIST_ANGULAR_SIGMA_RADPS
                    ),
                ),
            )
        )

    def geo_pose(self, stamp_ns, latitude_deg, longitude_deg, altitude_m, xyzw) -> bytes:
        return self.cdr(
            self.make(
                'geographic_msgs/msg/GeoPoseStamped',
                header=self.header(stamp_ns, TRUTH_FRAME),
                pose=self.make(
                    'geographic_msgs/msg/GeoPose',
                    position=self.make(
                        'geographic_msgs/msg/GeoPoint',
                        latitude=float(latitude_deg),
                        longitude=float(longitude_deg),
                        altitude=float(altitude_m),
                    ),
                    orientation=self.quaternion(xyzw),
                ),
            )
        )

    def static_transforms(self, stamp_ns: int, base_from: dict[str, np.ndarray]) -> bytes:
        transforms = [
            self.make(
                'geometry_msgs/msg/TransformStamped',
                header=self.header(stamp_ns, BASE_FRAME),
                child_frame_id=child,
                transform=self.make(
                    'geometry_msgs/msg/Transform',
                    translation=self.vector(transform[:3, 3]),
                    rotation=self.quaternion(Rotation.from_matrix(transform[:3, :3]).as_quat()),
                ),
            )
            for child, transform in base_from.items()
        ]
        return self.cdr(self.make('tf2_msgs/msg/TFMessage', transforms=transforms))


def _diagonal_covariance(linear_sigma: float, angular_sigma: float) -> np.ndarray:
    return np.diag([linear_sigma**2] * 3 + [angular_sigma**2] * 3).ravel()


def has_fix(row: np.void) -> bool:
    """Whether a row of gps.csv is a fix: enough satellites (if told), not the null position."""
    if row['num_satellites'] < MIN_SATELLITES:
        return False
    return not (row['latitude'] == 0 and row['longitude'] == 0)


def static_frames(
    camera_from_vehicle: np.ndarray, vehicle_from_ins: np.ndarray, intrinsics: robotcar.Intrinsics
) -> dict[str, np.ndarray]:
    """{child frame: base_from_child (4, 4)}; the antenna is taken to sit at the INS."""
    base_from_ins = robotcar.flu_from_frd(vehicle_from_ins)
    base_from_antenna = np.eye(4)
    base_from_antenna[:3, 3] = base_from_ins[:3, 3]
    return {
        CAMERA_FRAME: robotcar.base_from_optical(camera_from_vehicle, intrinsics),
        INS_FRAME: base_from_ins,
        ANTENNA_FRAME: base_from_antenna,
    }


# --- conversion ---------------------------------------------------------------------------------

@dataclass(frozen=True)
class Message:
    """One message of the bag; ``order`` settles ties: transforms before images before the rest."""

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
    """A traversal opened for conversion: everything small in memory, images read one by one."""

    def __init__(self, options: Options):
        self.options = options
        self.messages = Messages(typestore_with_geographic_msgs())
        self.notes: list[str] = []
        self.skipped_images = 0

        images = robotcar.list_stereo_images(options.traversal)
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

        intrinsics = robotcar.read_intrinsics(options.models)
        if options.undistort and intrinsics.lut is None:
            raise FileNotFoundError(
                f'{options.models} has no {robotcar.STEREO_CENTRE_MODEL}_distortion_lut.bin; add '
                'it, or keep the images distorted with --no-undistort'
            )
        self.pipeline = self._open_images(intrinsics)
        camera_from_vehicle = robotcar.read_extrinsic(options.extrinsics / 'stereo.txt')
        vehicle_from_ins = robotcar.read_extrinsic(options.extrinsics / 'ins.txt')
        self.frames = static_frames(camera_from_vehicle, vehicle_from_ins, intrinsics)
        self.gnss = self._read_gnss()
        self.odometry = self._read_odometry()
        self.truth = self._read_truth(vehicle_from_ins)

    def _open_images(self, intrinsics: robotcar.Intrinsics) -> ImagePipeline:
        """The pipeline for the size of the first readable image."""
        for index in self.image_indices:
            try:
                image = robotcar.read_bayer_image(self.images.path(index))
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

    def _read_odometry(self) -> robotcar.OdometryTrack | None:
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
        track = robotcar.integrate_vo(rows)
        self.notes += table.notes + track.notes
        return track

    def _read_truth(self, vehicle_from_ins: np.ndarray) -> robotcar.PoseTrack | None:
        """Truth of base_link in the window: at the rows, and between them at the images."""
        if self.options.rtk is None:
            self.notes.append('no --rtk: the bag has no ground truth')
            return None
        table = robotcar.read_rtk(self.options.rtk)
        self.notes += table.notes
        ins_track = robotcar.ins_track_from_rtk(table.rows)
        image_ns = self.images.stamps_us[self.image_indices] * robotcar.NS_PER_US
        row_ns = ins_track.stamp_ns[self._within(ins_track.stamp_ns)]
        ins_track = robotcar.interpolate_track(ins_track, np.union1d(row_ns, image_ns))
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
        track = robotcar.base_link_track(ins_track, vehicle_from_ins)
        off_deg = robotcar.heading_minus_course_deg(track)
        if len(off_deg) >= 10 and abs(np.median(off_deg)) > 10.0:
            self.notes.append(
                f'WARNING: the heading is {np.median(off_deg):+.0f} deg from the direction of '
                'motion (median): its conventions are not those of the published rtk.csv'
            )
        return track

    # What the bag holds ------------------------------------------------------------------------

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
        """Size of the bag, from a few of its images and the number of the other messages."""
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
            streams.append(
                self._message(
                    int(row['timestamp']) * robotcar.NS_PER_US, GNSS_TOPIC,
                    self.messages.nav_sat_fix(row),
                )
                for row in self.gnss
            )
        if self.odometry is not None:
            streams.append(
                self._message(stamp_ns, ODOMETRY_TOPIC, self.messages.odometry(self.odometry, k))
                for k, stamp_ns in enumerate(self.odometry.stamp_ns)
            )
        if self.truth is not None:
            streams.append(self._truth_messages())
        merged = heapq.merge(*streams)
        first = next(merged)
        frames = self.messages.static_transforms(first.stamp_ns, self.frames)
        yield self._message(first.stamp_ns, TF_STATIC_TOPIC, frames)
        yield from chain([first], merged)

    def _message(self, stamp_ns: int, topic: str, data: bytes) -> Message:
        return Message(int(stamp_ns), TOPIC_ORDER[topic], topic, data)

    def _image_messages(self, progress: bool) -> Iterator[Message]:
        for index in tqdm(self.image_indices, unit='image', disable=not progress):
            stamp_ns = int(self.images.stamps_us[index]) * robotcar.NS_PER_US
            try:
                data = self._image_data(index)
            except (ValueError, OSError):
                self.skipped_images += 1
                continue
            info = self.messages.camera_info(stamp_ns, self.pipeline)
            yield self._message(stamp_ns, CAMERA_INFO_TOPIC, info)
            yield self._message(stamp_ns, self.image_topic, data)

    def _truth_messages(self) -> Iterator[Message]:
        latitude_deg, longitude_deg, xyzw = robotcar.geodetic_from_track(self.truth)
        for k, stamp_ns in enumerate(self.truth.stamp_ns):
            data = self.messages.geo_pose(
                stamp_ns, latitude_deg[k], longitude_deg[k], self.truth.altitude_m[k], xyzw[k]
            )
            yield self._message(stamp_ns, TRUTH_TOPIC, data)


def topic_qos(topic: str) -> Qos:
    """Reliable and deep, so that a player loses nothing; /tf_static is latched."""
    latched = topic == TF_STATIC_TOPIC
    large = topic in (IMAGE_TOPIC, COMPRESSED_IMAGE_TOPIC)
    unspecified = QosTime(0, 0)
    return Qos(
        QosHistory.KEEP_LAST, 1 if latched else 10 if large else 200, QosReliability.RELIABLE,
        QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
        unspecified, unspecified, QosLiveliness.AUTOMATIC, unspecified, False,
    )


def convert(options: Options, progress: bool = True) -> dict[str, int]:
    """Write the bag and print what was done; returns {topic: messages}.

    The bag is written beside its place and moved there when it is whole.

    Raises FileNotFoundError, FileExistsError or ValueError, with what to do about it.
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

    # Written under the final name inside a hidden folder: the bag's files are named after it.
    staging = options.out.parent / f'.{options.out.name}.partial'
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        counts = _write(conversion, staging / options.out.name, progress)
        if options.out.exists():
            options.out.rename(staging / 'replaced')
        (staging / options.out.name).rename(options.out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)

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


# --- command ------------------------------------------------------------------------------------

def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='robotcar_to_bag',
        description='Convert an Oxford RobotCar traversal to a rosbag2 (mcap).',
        epilog='example: robotcar_to_bag 2015-08-17-10-42-18 --models models '
        '--extrinsics extrinsics --rtk rtk/2015-08-17-10-42-18/rtk.csv --out drive '
        '--start 60 --duration 120',
    )
    parser.add_argument('traversal', type=Path, help='folder with stereo/centre, gps/ and vo/')
    parser.add_argument('--models', type=Path, required=True, help='folder of camera models')
    parser.add_argument(
        '--extrinsics', type=Path, required=True, help='folder with stereo.txt and ins.txt'
    )
    parser.add_argument('--rtk', type=Path, help='rtk.csv of this traversal (ground truth)')
    parser.add_argument('--out', type=Path, required=True, help='the bag (a folder) to write')
    parser.add_argument(
        '--start', type=seconds, default=0.0, metavar='S', help='seconds after the first image'
    )
    parser.add_argument(
        '--duration', type=seconds, default=math.inf, metavar='S', help='seconds (default: all)'
    )
    parser.add_argument(
        '--every', type=positive_int, default=1, metavar='N', help='keep each N-th image'
    )
    parser.add_argument(
        '--compress', choices=('jpeg', 'none'), default='jpeg',
        help=f'jpeg (quality {JPEG_QUALITY}, default) or none: raw bgr8, about ten times larger',
    )
    parser.add_argument(
        '--undistort', action=argparse.BooleanOptionalAction, default=True,
        help='undistort with the table of the model (default); else camera_info has coefficients '
        'fitted to it',
    )
    parser.add_argument(
        '--crop', type=crop, metavar='U,V,WIDTH,HEIGHT',
        help='"none", or pixels of the raw image (default: the paper\'s '
        f'{",".join(map(str, PAPER_CROP))} of 1280x960, scaled to the images)',
    )
    parser.add_argument('--no-gnss', dest='gnss', action='store_false', help='leave out gps.csv')
    parser.add_argument(
        '--no-odometry', dest='odometry', action='store_false', help='leave out vo.csv'
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an existing bag')
    arguments = vars(parser.parse_args(argv))
    options = Options(
        start_s=arguments.pop('start'), duration_s=arguments.pop('duration'), **arguments
    )
    try:
        convert(options)
    except (ValueError, OSError) as error:
        print(f'robotcar_to_bag: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('robotcar_to_bag: interrupted, nothing written', file=sys.stderr)
        return 130
    return 0


def seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f'{text} is not a number of seconds from 0')
    return value


def positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not a whole number from 1')
    return value


def crop(text: str) -> tuple[int, ...]:
    if text == 'none':
        return ()
    try:
        u, v, width, height = (int(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text} is not "none" or U,V,WIDTH,HEIGHT') from None
    return u, v, width, height


if __name__ == '__main__':
    sys.exit(main())
