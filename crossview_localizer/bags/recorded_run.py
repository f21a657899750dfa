"""What a recording of the node holds, read in one pass; heat maps and pictures are not kept.

The recording may hold the inputs too, or they come from the bag that was played.  An hour of
driving is some ten thousand poses: small arrays.  Heat maps and pictures are large: of a heat map
only its peak is kept, and ``bag.read_messages_stamped`` fetches single ones later.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
import math
from pathlib import Path
import re

import numpy as np
from tqdm import tqdm

from crossview_localizer.bags.bag import Bag, BagError, read_messages, read_stamps_ns
from crossview_localizer.bags.drive import Drive, read_drive
from crossview_localizer.bags.recorded_diagnostics import RecordedDiagnostics
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import GnssFix, PoseEstimate
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.ros import conversions
from crossview_localizer.trajectory import Track

NODE = '/crossview_localizer'
ESTIMATES = ('pose', 'prior', 'match')
DIAGNOSTICS_TOPIC = '/diagnostics'
# The outcome of an image where the recording does not say it.
UNKNOWN = 'unknown'


@dataclass(frozen=True)
class ImageStatus:
    """What the node said of one image: ``outcome`` is the name of an Outcome in lower case.

    ``state`` is that of the match supervisor: trusted, distrusted or searching.
    """

    stamp_ns: int
    outcome: str
    reason: str
    state: str


@dataclass(frozen=True)
class RecordedRun:
    """A recording in ``map``; tracks are empty and counts 0 where it does not have the topic.

    ``heatmap_ns`` (h,) and ``peaks_m`` (h, 2): where each heat map was highest, NaN if cleared.
    What has no stamp of its own (``latency_ns``, diagnostics) has its bag time, moved by
    ``delay_ns`` so that the bag times of the poses agree with their stamps: a bag that is played
    without /clock is recorded years later.  ``image_count`` and ``first_image_ns`` are of the
    images that were played.  ``notes`` says what was left out, and why.
    """

    poses: Track
    priors: Track
    matches: Track
    statuses: list[ImageStatus]
    heatmap_ns: np.ndarray
    peaks_m: np.ndarray
    latency_ns: np.ndarray
    latency_ms: np.ndarray
    fixes: list[GnssFix]
    truth: Track
    odometry: Track
    diagnostics: RecordedDiagnostics
    frame: LocalFrame | None
    delay_ns: int = 0
    image_count: int = 0
    first_image_ns: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def start_ns(self) -> int:
        """The first image where it is known, else the first pose."""
        first_pose_ns = int(self.poses.stamps_ns[0])
        return first_pose_ns if self.first_image_ns is None else self.first_image_ns

    def outcomes(self, stamps_ns: np.ndarray | None = None, missing: str = UNKNOWN) -> np.ndarray:
        """What became of the images with these stamps (default: of the poses), (n,) texts.

        ``missing`` stands for an image of which the recording does not say it.
        """
        found = {status.stamp_ns: status.outcome for status in self.statuses}
        stamps_ns = self.poses.stamps_ns if stamps_ns is None else stamps_ns
        return np.array([found.get(stamp_ns, missing) for stamp_ns in stamps_ns.tolist()])


def read_run(
    bag: str | Path, input_bag: str | Path | None = None, frame: LocalFrame | None = None,
    topics: Topics | None = None, node: str = NODE, node_config: NodeConfig | None = None,
    progress: bool = False,
) -> RecordedRun:
    """Read a recording and, where given, the bag that was played to the node.

    ``frame`` is that of the map; without it it is found from the node's own poses, which it
    publishes in ``map`` and in WGS84.  Raises BagError or OSError.
    """
    topics, notes = topics or Topics(), []
    frame = frame or find_frame(bag, node)
    if frame is None:
        notes.append(
            f'where the map lies is not known: the recording has no {node}/geopose and no map '
            'was given, so GNSS fixes and ground truth are left out')
    outputs = _read_outputs(Path(bag), node, progress)
    if not outputs.statuses:
        notes.append(f'what became of each image is not known: the recording has no {node}/status')
    inputs = _read_inputs(
        [Path(path) for path in (bag, input_bag) if path], frame, topics,
        node_config or NodeConfig(), notes)
    notes += [f'{count} messages on {topic} could not be used'
              for topic, count in (outputs.unusable + inputs.unusable).items()]
    delay_ns = int(np.median(outputs.pose_delays_ns))
    times_ns = np.array([ns for ns, _ in outputs.diagnostics], np.int64) - delay_ns
    return RecordedRun(
        *(Track.from_estimates(outputs.estimates[name]) for name in ESTIMATES), outputs.statuses,
        np.array([ns for ns, *_ in outputs.peaks], np.int64),
        np.array([xy_m for _, *xy_m in outputs.peaks]).reshape(-1, 2),
        np.array([ns for ns, _ in outputs.latency], np.int64) - delay_ns,
        np.array([ms for _, ms in outputs.latency], float), inputs.fixes, inputs.truth,
        inputs.odometry, RecordedDiagnostics.from_messages(
            times_ns, [msg for _, msg in outputs.diagnostics], node.rsplit('/', 1)[-1]),
        frame, delay_ns, inputs.image_count, inputs.first_image_ns, tuple(notes))


def find_node(bag: str | Path) -> str:
    """The full name of the node whose poses a recording holds, /crossview_localizer if of none.

    Raises BagError where it holds those of several, or OSError.
    """
    with Bag(bag) as opened:
        found = sorted(topic.removesuffix('/pose') for topic in opened.topics
                       if topic.endswith(f'{NODE}/pose'))
    if len(found) > 1 and NODE not in found:
        raise BagError(f'{bag} holds the poses of {", ".join(found)}; name one with --node')
    return found[0] if found and NODE not in found else NODE


# --- what the node published


@dataclass
class _Outputs:
    """What the node published, in the order of the recording."""

    estimates: dict[str, list[PoseEstimate]] = field(
        default_factory=lambda: {name: [] for name in ESTIMATES})
    statuses: list[ImageStatus] = field(default_factory=list)
    peaks: list[tuple[int, float, float]] = field(default_factory=list)
    latency: list[tuple[int, float]] = field(default_factory=list)
    diagnostics: list[tuple[int, object]] = field(default_factory=list)
    pose_delays_ns: list[int] = field(default_factory=list)
    unusable: Counter[str] = field(default_factory=Counter)

    def take(self, name: str, bag_ns: int, msg) -> None:
        """Take one message of the node's topic of this name; raises ValueError for a bad one."""
        if name in ESTIMATES:
            estimate = conversions.pose_estimate_from_msg(msg)
            self.estimates[name].append(estimate)
            if name == 'pose':
                self.pose_delays_ns.append(bag_ns - estimate.stamp_ns)
        elif name == 'status':
            self.statuses.append(image_status_from_msg(msg))
        elif name == 'heatmap':
            self.peaks.append((conversions.stamp_ns_from_msg(msg.header.stamp), *_peak_m(msg)))
        elif name == 'latency':
            self.latency.append((bag_ns, msg.data))
        else:
            self.diagnostics.append((bag_ns, msg))


def _read_outputs(bag: Path, node: str, progress: bool) -> _Outputs:
    found = _Outputs()
    names = {f'{node}/{name}': name for name in (*ESTIMATES, 'status', 'heatmap', 'latency')}
    names[DIAGNOSTICS_TOPIC] = 'diagnostics'
    with Bag(bag) as opened:
        total = sum(c.msgcount for c in opened.connections if c.topic in names)
        for connection, bag_ns, data in tqdm(
                opened.read_raw(names), total=total, desc=f'read {bag.name}', unit='msg',
                disable=None if progress else True):
            try:
                found.take(names[connection.topic], bag_ns, opened.decode(connection, data))
            except ValueError:
                found.unusable[connection.topic] += 1
        topics = ', '.join(sorted(opened.topics)) or 'nothing'
    if not found.estimates['pose']:
        raise BagError(' '.join([
            f'{bag} holds no poses on {node}/pose; it has {topics}. Expected a recording of what '
            'the node publishes, or --node NAME.', *opened.notes]))
    return found


def image_status_from_msg(msg) -> ImageStatus:
    """From the DiagnosticStatus of one image; raises ValueError if it is something else."""
    values = {pair.key: pair.value for pair in msg.values}
    stamp = re.fullmatch(r'(\d+)\.(\d{9})', values.get('stamp', ''))
    if stamp is None or 'outcome' not in values:
        raise ValueError(f'the status of an image has the values {values}; expected stamp (such '
                         'as 12.000000345), outcome, reason and state')
    return ImageStatus(
        int(stamp[1]) * 10**9 + int(stamp[2]), values['outcome'], values.get('reason', ''),
        values.get('state', ''))


def _peak_m(msg) -> tuple[float, float]:
    """Where a heat map (OccupancyGrid) is highest; NaN where it is cleared."""
    info, cell = msg.info, int(np.argmax(msg.data))
    if msg.data[cell] < 0:
        return math.nan, math.nan
    row, col = divmod(cell, info.width)
    return (info.origin.position.x + (col + 0.5) * info.resolution,
            info.origin.position.y + (row + 0.5) * info.resolution)


# --- what was played to the node


@dataclass
class _Inputs:
    """What was played to the node, as far as a report needs it."""

    fixes: list[GnssFix] = field(default_factory=list)
    truth: Track = field(default_factory=lambda: Track.empty([]))
    odometry: Track = field(default_factory=lambda: Track.empty([]))
    image_count: int = 0
    first_image_ns: int | None = None
    unusable: Counter[str] = field(default_factory=Counter)


def _read_inputs(bags: list[Path], frame: LocalFrame | None, topics: Topics,
                 node_config: NodeConfig, notes: list[str]) -> _Inputs:
    """Each topic is read from the first bag that has it."""
    found, read = _Inputs(), set()
    for bag in dict.fromkeys(bags):
        with Bag(bag) as opened:
            new = opened.topics - read
            read |= opened.topics
            if topics.image in new:
                found.image_count = sum(
                    c.msgcount for c in opened.connections if c.topic == topics.image)
                found.first_image_ns = next(read_stamps_ns(opened, topics.image), None)
        wanted = {name: getattr(topics, name) for name in ('gnss', 'truth', 'odometry')
                  if getattr(topics, name) in new}
        if frame is None or not wanted:
            continue
        chosen = replace(topics, **{'image': '', 'odometry': '', 'gnss': '', 'truth': ''} | wanted)
        drive = _read_drive_anywhere(bag, frame, node_config, chosen, notes)
        found.fixes = found.fixes or drive.fixes
        found.truth = drive.truth if len(drive.truth) else found.truth
        found.odometry = drive.odometry if len(drive.odometry) else found.odometry
        found.unusable += drive.unusable
    return found


def _read_drive_anywhere(bag: Path, frame: LocalFrame, node_config: NodeConfig, topics: Topics,
                         notes: list[str]) -> Drive:
    """The drive; where the place of the antenna is not known it is taken to be base_link."""
    drive = read_drive(bag, frame, node_config, topics)
    if drive.fixes or not drive.unusable[topics.gnss]:
        return drive
    at_base_link = read_drive(
        bag, frame, replace(node_config, antenna_xyz_m=(0.0, 0.0, 0.0)), topics)
    if at_base_link.fixes:
        notes.append(
            f'where the antenna sits is not known (no /tf_static): {len(at_base_link.fixes)} '
            'fixes are taken as positions of base_link')
    return at_base_link


# --- where `map` lies


def find_frame(bag: str | Path, node: str = NODE) -> LocalFrame | None:
    """The frame of ``map``, from the first pose that the node published in both worlds.

    None where the recording does not have both.  Raises BagError or OSError.
    """
    xy_m, latlon_deg = {}, {}
    for topic, _, msg in read_messages(bag, {f'{node}/pose', f'{node}/geopose'}):
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        position = msg.pose.pose.position
        if topic.endswith('/geopose'):
            latlon_deg[stamp_ns] = position.latitude, position.longitude
        else:
            xy_m[stamp_ns] = position.x, position.y
        if stamp_ns in xy_m and stamp_ns in latlon_deg:
            return LocalFrame.through_point(latlon_deg[stamp_ns], xy_m[stamp_ns])
    return None
