"""The messages of a converted drive, in time order, and the rosbag2 (mcap) that holds them.

Topics (bag time = header stamp):

- ``/camera/image/compressed`` CompressedImage (JPEG), or ``/camera/image`` Image (bgr8);
- ``/camera/camera_info`` CameraInfo of the image as written, with the stamp of the image;
- ``/gnss/fix`` NavSatFix; ``/odometry`` Odometry; ``/tf_static`` the frames below base_link;
- ``/ground_truth/geopose`` GeoPoseStamped of base_link, for evaluation: the localizer never reads
  it.
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

from crossview_localizer.bags.message_builder import MessageBuilder
from crossview_localizer.bags.robotcar_tracks import (
    geodetic_from_track,
    OdometryTrack,
    PoseTrack,
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
MIN_SATELLITES = 4

# Standard deviations of the integrated odometry, by distance driven, and of the velocities.
ODOMETRY_POSITION_SIGMA_PER_M = 0.02
ODOMETRY_ANGLE_SIGMA_RAD_PER_M = 1e-4
TWIST_LINEAR_SIGMA_MPS = 0.2
TWIST_ANGULAR_SIGMA_RADPS = 0.02

SMALL_MESSAGE_BYTES = 800
SAMPLED_IMAGES = 5

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


@dataclass(frozen=True)
class Message:
    """One message of the bag; ``order`` is for equal stamps: transforms, images, then the rest."""

    stamp_ns: int
    order: int
    topic: str
    data: bytes

    def __lt__(self, other: 'Message') -> bool:
        return (self.stamp_ns, self.order) < (other.stamp_ns, other.order)


@dataclass(frozen=True)
class Fix:
    """A GNSS fix: latitude, longitude (deg), altitude (m); sigmas east, north, up (m, or NaN)."""

    stamp_ns: int
    has_fix: bool
    latlonalt: tuple[float, float, float]
    enu_sigmas_m: tuple[float, float, float]


class DriveConversion:
    """A recording opened for conversion; its readers fill in what the bag holds.

    ``image_ns`` (n,) are the stamps of the images that ``read_image(number)`` returns as BGR of
    ``size_px`` (width, height), or raises ValueError or OSError for; ``k`` (3, 3) and
    ``distortion`` (5,) are their intrinsics.  ``frames`` are the static transforms, child frame to
    base_from_child (4, 4).  ``gnss``, ``odometry`` and ``truth`` are None if absent.
    """

    image_ns: np.ndarray
    size_px: tuple[int, int]
    k: np.ndarray
    distortion: np.ndarray
    frames: dict[str, np.ndarray]
    gnss: list[Fix] | None = None
    odometry: OdometryTrack | None = None
    truth: PoseTrack | None = None

    def __init__(self, compress: str):
        """``compress`` is 'jpeg', or 'none' for raw images."""
        self.compress = compress
        self.messages = MessageBuilder()
        self.notes: list[str] = []
        self.skipped_images = 0

    def read_image(self, number: int) -> np.ndarray:
        raise NotImplementedError

    def summary(self) -> str:
        """What was done to the images, in a word."""
        raise NotImplementedError

    @property
    def image_topic(self) -> str:
        return COMPRESSED_IMAGE_TOPIC if self.compress == 'jpeg' else IMAGE_TOPIC

    def topics(self) -> list[str]:
        wanted = {
            TF_STATIC_TOPIC: True, CAMERA_INFO_TOPIC: True, self.image_topic: True,
            GNSS_TOPIC: self.gnss is not None, ODOMETRY_TOPIC: self.odometry is not None,
            TRUTH_TOPIC: self.truth is not None,
        }
        return [topic for topic, present in wanted.items() if present]

    def predicted_bytes(self) -> int:
        """The size of the bag, from a few of its images and the number of the other messages."""
        places = np.linspace(0, len(self.image_ns) - 1, SAMPLED_IMAGES).round().astype(int)
        sizes = []
        for number in np.unique(places):
            try:
                sizes.append(len(self._image_data(number)))
            except (ValueError, OSError):
                continue
        raw_bytes = 3 * math.prod(self.size_px)
        small = len(self.image_ns) + sum(
            len(stamps) for stamps in (
                self.gnss if self.gnss is not None else (),
                self.odometry.stamp_ns if self.odometry is not None else (),
                self.truth.stamp_ns if self.truth is not None else (),
            )
        )
        image_bytes = np.mean(sizes) if sizes else raw_bytes
        return int(len(self.image_ns) * image_bytes + small * SMALL_MESSAGE_BYTES)

    def _image_data(self, number: int) -> bytes:
        bgr = self.read_image(number)
        stamp_ns = int(self.image_ns[number])
        if self.compress != 'jpeg':
            return self.messages.raw_image(stamp_ns, bgr)
        _, jpeg = cv2.imencode('.jpg', bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
        return self.messages.compressed_image(stamp_ns, jpeg)

    def in_time_order(self, progress: bool) -> Iterator[Message]:
        """All messages, merged by stamp; images are read as they are asked for."""
        streams = [self._image_messages(progress)]
        if self.gnss is not None:
            streams.append(map(self._gnss_message, self.gnss))
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

    def _gnss_message(self, fix: Fix) -> Message:
        return self._message(fix.stamp_ns, GNSS_TOPIC, self.messages.nav_sat_fix(
            fix.stamp_ns, fix.has_fix, fix.latlonalt, np.array(fix.enu_sigmas_m)))

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
        numbers = range(len(self.image_ns))
        for number in tqdm(numbers, unit='image', disable=not progress):
            stamp_ns = int(self.image_ns[number])
            try:
                data = self._image_data(number)
            except (ValueError, OSError):
                self.skipped_images += 1
                continue
            info = self.messages.camera_info(stamp_ns, *self.size_px, self.k, self.distortion)
            yield self._message(stamp_ns, CAMERA_INFO_TOPIC, info)
            yield self._message(stamp_ns, self.image_topic, data)

    def _truth_messages(self) -> Iterator[Message]:
        latitude_deg, longitude_deg, xyzw = geodetic_from_track(self.truth)
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


def write_drive(drive: DriveConversion, out: Path, progress: bool = True) -> dict[str, int]:
    """Write the bag and print what was done; returns topic to number of messages.

    The bag appears when it is complete.  Raises ValueError if the disk has no room for it.
    """
    width_px, height_px = drive.size_px
    predicted = drive.predicted_bytes()
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    print(
        f'{len(drive.image_ns):,} images {width_px}x{height_px}, {drive.summary()}, '
        f'predicted size {predicted / 1e6:,.1f} MB ({free / 1e6:,.0f} MB free)',
        flush=True,
    )
    if predicted > free:
        raise ValueError(
            f'the bag needs about {predicted / 1e6:,.0f} MB but {out.parent} has '
            f'{free / 1e6:,.0f} MB free; use --duration or --every'
        )

    with write_atomically(out) as partial:
        counts = _write(drive, partial, progress)

    if drive.skipped_images:
        drive.notes.append(
            f'{drive.skipped_images:,} of {len(drive.image_ns):,} images are not '
            'readable or of another size, left out'
        )
    for note in drive.notes:
        print(f'note: {note}')
    for topic, count in counts.items():
        print(f'{count:8,}  {topic}  {TOPIC_TYPES[topic]}')
    size = sum(file.stat().st_size for file in out.iterdir())
    print(f'wrote {out} ({size / 1e6:,.1f} MB)')
    return counts


def _write(drive: DriveConversion, path: Path, progress: bool) -> dict[str, int]:
    typestore = drive.messages.typestore
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {
            topic: writer.add_connection(
                topic, TOPIC_TYPES[topic], typestore=typestore,
                offered_qos_profiles=[topic_qos(topic)],
            )
            for topic in drive.topics()
        }
        counts = dict.fromkeys(connections, 0)
        for message in drive.in_time_order(progress):
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
