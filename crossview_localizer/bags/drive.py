"""What a recorded drive holds beside its images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from crossview_localizer.bags.bag import Bag, read_stamps_ns
from crossview_localizer.bags.events import (
    MESSAGE_TYPES,
    read_events,
    TruePose,
    Unusable,
)
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssFix, OdometrySample
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.trajectory import Track, TRUTH_MAX_GAP_S


@dataclass(frozen=True)
class Drive:
    """What a bag holds beside its images, in ``map``; ``truth`` is for evaluation only.

    ``unusable`` counts the messages of each topic that could not be used.
    """

    image_stamps_ns: np.ndarray
    odometry: Track
    fixes: list[GnssFix]
    truth: Track
    unusable: Counter[str]


def read_drive(
    bag: str | Path, frame: LocalFrame, node_config: NodeConfig | None = None,
    topics: Topics | None = None,
) -> Drive:
    """Odometry, fixes, truth and the stamps of the images of a bag.

    A topic whose name is empty is not read.  Raises BagError or OSError where the bag cannot be
    read.
    """
    topics = topics or Topics()
    fixes, odometry, truth, unusable = [], [], [], Counter()
    without_images = replace(topics, image='', camera_info='', gnss_velocity='')
    for event in read_events(bag, frame, node_config, topics=without_images):
        if isinstance(event, GnssFix):
            fixes.append(event)
        elif isinstance(event, OdometrySample):
            odometry.append(event)
        elif isinstance(event, TruePose):
            truth.append(event)
        elif isinstance(event, Unusable):
            unusable[event.topic] += 1
    return Drive(
        _image_stamps_ns(bag, topics.image) if topics.image else np.array([], np.int64),
        Track.from_poses([s.stamp_ns for s in odometry], [s.odom_from_base for s in odometry]),
        fixes, Track.from_poses([true.stamp_ns for true in truth], [true.pose for true in truth]),
        unusable)


def missing_input(
    bag: str | Path, drive: Drive, topics: Topics, needed: Sequence[str] = ('odometry', 'image'),
) -> str:
    """Why a drive lacks one of the inputs ``needed`` (fields of Topics), or ''.

    Images whose stamps lie apart from those of the odometry count as missing.
    """
    found = {'image': drive.image_stamps_ns, 'gnss': drive.fixes, 'odometry': drive.odometry}
    for field in needed:
        if len(found[field]):
            continue
        topic = getattr(topics, field)
        what = {'image': 'images', 'gnss': 'fixes'}.get(field, field)
        with Bag(bag) as opened:
            others = opened.topics_of(*MESSAGE_TYPES[field])
        text = f'{bag} holds no {what} on {topic}'
        if topic in others:
            return f'{text} that can be used; the log says why'
        if others:
            return f'{text}, but on {", ".join(others)}: name it with --{field}-topic'
        return f'{text}; expected {" or ".join(MESSAGE_TYPES[field])}'
    if 'image' in needed and len(drive.odometry):
        images_s, odometry_s = drive.image_stamps_ns * 1e-9, drive.odometry.stamps_ns * 1e-9
        if images_s[-1] < odometry_s[0] or images_s[0] > odometry_s[-1]:
            return (f'{bag}: images are stamped {images_s[0]:.1f} to {images_s[-1]:.1f} s, '
                    f'odometry {odometry_s[0]:.1f} to {odometry_s[-1]:.1f} s; expected stamps of '
                    'one clock')
    return ''


def read_posed_images(
    bag: str | Path, frame: LocalFrame, truth: Track, node_config: NodeConfig | None = None,
    config: LocalizerConfig | None = None, topics: Topics | None = None,
) -> Iterator[tuple[CameraImage, Pose2D | None]]:
    """The usable images of a bag with their true poses; None where the truth is not known.

    Raises BagError or OSError where the bag cannot be read.
    """
    topics = replace(topics or Topics(), gnss='', gnss_velocity='', truth='')
    for event in read_events(bag, frame, node_config, config, topics):
        if isinstance(event, CameraImage):
            yield event, truth.pose_at(event.stamp_ns, TRUTH_MAX_GAP_S)


def _image_stamps_ns(bag: str | Path, topic: str) -> np.ndarray:
    """The stamps of the images, sorted, each once."""
    with Bag(bag) as opened:
        return np.unique(np.fromiter(read_stamps_ns(opened, topic), np.int64))
