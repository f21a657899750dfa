"""What a recording of the node holds, read in one pass; heat maps and pictures are never kept.

The recording may hold the inputs too, or they come from the bag that was played.  An hour of
driving is some ten thousand poses: small arrays.  What is large (heat maps, pictures) is looked at
as it passes by, and :func:`messages_stamped` fetches single ones later.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
import math
from pathlib import Path
import re
import struct

import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from tqdm import tqdm

from crossview_localizer.bags.replay import true_pose_from_msg
from crossview_localizer.bags.topics import Topics
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs
from crossview_localizer.config import CameraConfig, NodeConfig
from crossview_localizer.datatypes import GnssFix, PoseEstimate
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.ros import conversions
from crossview_localizer.ros.sensor_rig import SensorRig, UnknownCalibration
from crossview_localizer.trajectory import Track

NODE = '/crossview_localizer'
OUTPUTS = ('pose', 'prior', 'match')
DIAGNOSTICS_TOPIC = '/diagnostics'
# Truth comes at up to 50 Hz; it is interpolated, so this is enough.
TRUTH_PERIOD_S = 0.05
FRAME_TOLERANCE_M = 1e-6

USED, GATED, NO_MATCH = 'match used', 'match refused by the gate', 'no match'


class RunError(ValueError):
    """The recording cannot be reported on; the message says what was found and expected."""


@dataclass(frozen=True)
class Diagnostics:
    """What /diagnostics said of each part of the node.

    ``times_ns`` (n,) on the clock of the poses; ``levels`` and ``ages_s`` map a part's name to
    (n,), NaN where it was silent.  ``counts`` holds the numbers that a part counts, (n,) each;
    ``values`` all that it said last; ``warnings`` how often a part was not OK, by what it said
    with its numbers left out: part, last full text, what to do, how many times.
    """

    times_ns: np.ndarray
    levels: dict[str, np.ndarray]
    ages_s: dict[str, np.ndarray]
    counts: dict[str, dict[str, np.ndarray]]
    values: dict[str, dict[str, str]]
    warnings: list[tuple[str, str, str, int]]


@dataclass(frozen=True)
class RecordedRun:
    """A recording in ``map``; tracks are empty and counts 0 where it does not have the topic.

    ``heatmap_ns`` (h,) and ``peaks_m`` (h, 2): where each heat map was highest, NaN if cleared.
    Times of what has no stamp of its own (``latency_ns``, diagnostics) are bag times, moved so
    that the poses' bag times agree with their stamps: a bag played without /clock is recorded
    years later; ``delay_ns`` is how far.  ``image_count`` and ``first_image_ns`` are the input
    bag's.
    ``notes`` says what was left out, and why.
    """

    poses: Track
    priors: Track
    matches: Track
    heatmap_ns: np.ndarray
    peaks_m: np.ndarray
    latency_ns: np.ndarray
    latency_ms: np.ndarray
    fixes: list[GnssFix]
    truth: Track
    diagnostics: Diagnostics
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

    def outcomes(self) -> np.ndarray:
        """What became of the match of each pose (n,): USED, GATED or NO_MATCH.

        A match that was refused leaves the pose where the prior was.
        """
        matched = np.isin(self.poses.stamps_ns, self.matches.stamps_ns)
        if not len(self.priors):
            return np.where(matched, USED, NO_MATCH)
        row = np.searchsorted(self.priors.stamps_ns, self.poses.stamps_ns)
        row = np.minimum(row, len(self.priors) - 1)
        unmoved = (self.priors.stamps_ns[row] == self.poses.stamps_ns) & (
            self.priors.poses[row] == self.poses.poses).all(axis=1)
        return np.where(~matched, NO_MATCH, np.where(unmoved, GATED, USED))


def add_run_arguments(parser: argparse.ArgumentParser, topics: Sequence[str]) -> None:
    """What every command takes that shows a recording; ``topics`` are fields of Topics."""
    parser.add_argument('bag', type=Path, metavar='BAG', help="recording of the node's outputs")
    parser.add_argument(
        '--input-bag', type=Path, metavar='BAG',
        help='bag that was played to the node, for what the recording itself lacks: pictures, '
        'GNSS fixes, ground truth')
    parser.add_argument(
        '--map', type=Path,
        help='embedding map (default: the one that /diagnostics names, if it is there)')
    parser.add_argument(
        '--node', default=NODE, help='full name of the node (default: %(default)s)')
    for name in topics:
        parser.add_argument(
            f'--{name}-topic', default=getattr(Topics(), name), metavar='TOPIC',
            help='default: %(default)s')


def add_imagery_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--imagery', type=Path, nargs='+', default=[], metavar='TIF',
        help="GeoTIFFs to show instead of the map's orthophoto")


def topics_of(arguments: argparse.Namespace) -> Topics:
    """The topics that were given with ``add_run_arguments``; the others as they are."""
    return Topics(**{name.removesuffix('_topic'): value for name, value in vars(arguments).items()
                     if name.endswith('_topic')})


@contextmanager
def open_bag(path: str | Path) -> Iterator[AnyReader]:
    """A reader; what is wrong with the bag is raised as ValueError or OSError in one line."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'bag {path} does not exist; expected a folder of ros2 bag record')
    try:
        reader = AnyReader([path], default_typestore=typestore_with_geographic_msgs())
        reader.open()
    except Exception as error:  # on damaged bytes rosbags raises whatever its decoders do
        raise _unreadable(path, error) from error
    try:
        yield reader
    finally:
        reader.close()


def raw_messages(reader: AnyReader, connections) -> Iterator[tuple[Connection, int, bytes]]:
    """(connection, bag time in ns, bytes) of these connections; RunError where it is damaged."""
    messages = reader.messages(connections) if connections else iter(())
    while True:
        try:
            entry = next(messages, None)
        except Exception as error:  # see open_bag
            raise _unreadable(reader.paths[0], error) from error
        if entry is None:
            return
        yield entry


def decoded(reader: AnyReader, connection: Connection, data: bytes):
    """The message; ValueError where its bytes are damaged."""
    try:
        return reader.deserialize(data, connection.msgtype)
    except Exception as error:  # see open_bag
        raise RunError(f'a message on {connection.topic} is damaged') from error


def _unreadable(path: Path, error: Exception) -> RunError:
    problem = ' '.join(str(error).split()) or type(error).__name__
    return RunError(
        f'{path} cannot be read as a bag ({problem}); expected a whole rosbag2 recording')


def read_run(
    bag: str | Path, input_bag: str | Path | None = None, frame: LocalFrame | None = None,
    topics: Topics | None = None, node: str = NODE, node_config: NodeConfig | None = None,
    progress: bool = False,
) -> RecordedRun:
    """Read a recording and, where given, the bag that was played to the node.

    ``frame`` is that of the map; without it it is found from the node's own poses, which it
    publishes in ``map`` and in WGS84.  Raises RunError or OSError.
    """
    topics = topics or Topics()
    notes = []
    if frame is None:
        frame = frame_of(bag, node)
        if frame is None:
            notes.append(
                f'where the map lies is not known: the recording has no {node}/geopose and no map '
                'was given, so GNSS fixes and ground truth are left out')
    reading = _Reading(topics, node, node_config or NodeConfig(), frame)
    for path in dict.fromkeys(filter(None, (bag, input_bag))):
        reading.read(Path(path), progress)
    if not reading.estimates['pose']:
        raise RunError(
            f'{bag} holds no poses on {node}/pose; it has {", ".join(reading.seen) or "nothing"}. '
            "Expected a recording of the node's outputs, or --node NAME")
    return reading.run(tuple(notes))


@dataclass
class _Reading:
    """Collects what passes by."""

    topics: Topics
    node: str
    node_config: NodeConfig
    frame: LocalFrame | None
    estimates: dict[str, list[PoseEstimate]] = field(
        default_factory=lambda: {name: [] for name in OUTPUTS})
    peaks: list[tuple[int, float, float]] = field(default_factory=list)
    latency: list[tuple[int, float]] = field(default_factory=list)
    fixes: list[GnssFix] = field(default_factory=list)
    truth: list[tuple[int, Pose2D]] = field(default_factory=list)
    statuses: list[tuple[int, list]] = field(default_factory=list)
    pose_delays_ns: list[int] = field(default_factory=list)
    image_count: int = 0
    first_image_ns: int | None = None
    seen: list[str] = field(default_factory=list)
    unusable: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.rig = SensorRig(self.node_config, CameraConfig())
        self.handlers = {
            **{f'{self.node}/{name}': self._on_estimate(name) for name in OUTPUTS},
            f'{self.node}/heatmap': self._on_heatmap,
            f'{self.node}/latency': lambda bag_ns, msg: self.latency.append((bag_ns, msg.data)),
            DIAGNOSTICS_TOPIC: lambda bag_ns, msg: self.statuses.append(
                (bag_ns, self._of_the_node(msg.status))),
            self.topics.tf_static: lambda bag_ns, msg: self.rig.static_transforms.add(msg),
        }
        if self.frame is not None:
            self.handlers[self.topics.gnss] = self._on_fix
            self.handlers[self.topics.truth] = self._on_truth

    def read(self, bag: Path, progress: bool) -> None:
        with open_bag(bag) as reader:
            # What the recording has is not taken a second time from the input bag.
            chosen = [
                c for c in reader.connections
                if c.topic in self.handlers and c.topic not in self.seen]
            images = [c for c in reader.connections if c.topic == self.topics.image]
            self.seen += sorted({c.topic for c in reader.connections} - set(self.seen))
            if images and not self.image_count:
                self.image_count = sum(c.msgcount for c in images)
                for _, _, data in raw_messages(reader, images):
                    self.first_image_ns = raw_stamp_ns(data)
                    break
            for connection, bag_ns, data in tqdm(
                    raw_messages(reader, chosen), total=sum(c.msgcount for c in chosen),
                    desc=f'read {bag.name}', unit='msg', disable=None if progress else True):
                try:
                    self.handlers[connection.topic](bag_ns, decoded(reader, connection, data))
                except ValueError:
                    self.unusable[connection.topic] += 1

    def _on_estimate(self, name: str):
        def take(bag_ns: int, msg) -> None:
            estimate = conversions.pose_estimate_from_msg(msg)
            self.estimates[name].append(estimate)
            if name == 'pose':
                self.pose_delays_ns.append(bag_ns - estimate.stamp_ns)
        return take

    def _on_heatmap(self, bag_ns: int, msg) -> None:
        info = msg.info
        cell = int(np.argmax(msg.data))
        row, col = divmod(cell, info.width)
        x_m = info.origin.position.x + (col + 0.5) * info.resolution
        y_m = info.origin.position.y + (row + 0.5) * info.resolution
        if msg.data[cell] < 0:
            x_m = y_m = math.nan
        self.peaks.append((conversions.stamp_ns_from_msg(msg.header.stamp), x_m, y_m))

    def _on_fix(self, bag_ns: int, msg) -> None:
        try:
            fix = self.rig.gnss_fix(msg, self.frame)
        except UnknownCalibration:
            self.unusable['antenna'] += 1
            fix = conversions.gnss_fix_from_msg(
                msg, self.frame, (0.0, 0.0), self.node_config.gnss_unknown_sigma_m)
        self.fixes.append(fix)

    def _on_truth(self, bag_ns: int, msg) -> None:
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        if self.truth and 0 <= stamp_ns - self.truth[-1][0] < TRUTH_PERIOD_S * 1e9:
            return
        self.truth.append((stamp_ns, true_pose_from_msg(msg, self.frame)))

    def _of_the_node(self, statuses) -> list[tuple[str, int, str, dict[str, str]]]:
        prefix = self.node.rsplit('/', 1)[-1] + ': '
        return [
            (status.name.removeprefix(prefix), _level(status.level), status.message,
             {pair.key: pair.value for pair in status.values})
            for status in statuses if status.name.startswith(prefix)]

    def run(self, notes: tuple[str, ...]) -> RecordedRun:
        if antenna := self.unusable.pop('antenna', 0):
            notes += (f'where the antenna sits is not known (no /tf_static): {antenna} fixes are '
                      'taken as positions of base_link',)
        notes += tuple(
            f'{count} messages on {topic} could not be used'
            for topic, count in self.unusable.items())
        peaks = np.array([position_m for _, *position_m in self.peaks]).reshape(-1, 2)
        latency_ms = np.array([ms for _, ms in self.latency], float)
        delay_ns = int(np.median(self.pose_delays_ns))
        return RecordedRun(
            *(_track(self.estimates[name]) for name in OUTPUTS),
            np.array([ns for ns, *_ in self.peaks], np.int64), peaks,
            np.array([ns for ns, _ in self.latency], np.int64) - delay_ns, latency_ms, self.fixes,
            Track.from_poses([ns for ns, _ in self.truth], [pose for _, pose in self.truth]),
            _diagnostics(self.statuses, delay_ns), self.frame, delay_ns, self.image_count,
            self.first_image_ns, notes)


def _track(estimates: list[PoseEstimate]) -> Track:
    return Track.from_poses(
        [estimate.stamp_ns for estimate in estimates],
        [estimate.pose for estimate in estimates],
        [estimate.covariance for estimate in estimates])


def _level(value: int | bytes) -> int:
    return value[0] if isinstance(value, bytes) else int(value)


def _diagnostics(statuses: list, delay_ns: int) -> Diagnostics:
    times_ns = np.array([ns for ns, _ in statuses], np.int64) - delay_ns
    parts = list(dict.fromkeys(name for _, lines in statuses for name, *_ in lines))
    levels = {name: np.full(len(statuses), np.nan) for name in parts}
    ages_s = {name: np.full(len(statuses), np.nan) for name in parts}
    counts: dict[str, dict[str, np.ndarray]] = {name: {} for name in parts}
    last_values, said, last_said = {}, Counter(), {}
    for row, (_, lines) in enumerate(statuses):
        for name, level, text, values in lines:
            levels[name][row] = level
            last_values[name] = values
            for key, value in values.items():
                if key == 'age_s' and value != 'never':
                    ages_s[name][row] = float(value)
                elif value.isdigit():
                    series = counts[name].setdefault(key, np.zeros(len(statuses), np.int64))
                    series[row] = int(value)
            if level:
                kind = (name, re.sub(r'\d+(\.\d+)?', '#', text))
                said[kind] += 1
                last_said[kind] = text, values.get('remedy', '')
    warnings = [(kind[0], *last_said[kind], count) for kind, count in said.most_common()]
    return Diagnostics(times_ns, levels, ages_s, counts, last_values, warnings)


# --- where `map` lies


def frame_of(bag: str | Path, node: str = NODE) -> LocalFrame | None:
    """The frame of ``map``, from the first pose that the node published in both worlds."""
    xy_m, latlon_deg = {}, {}
    with open_bag(bag) as reader:
        chosen = [c for c in reader.connections
                  if c.topic in (f'{node}/pose', f'{node}/geopose')]
        if len({c.topic for c in chosen}) < 2:
            return None
        for connection, _, data in raw_messages(reader, chosen):
            msg = decoded(reader, connection, data)
            stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
            position = msg.pose.pose.position
            if connection.topic.endswith('/geopose'):
                latlon_deg[stamp_ns] = position.latitude, position.longitude
            else:
                xy_m[stamp_ns] = position.x, position.y
            if stamp_ns in xy_m and stamp_ns in latlon_deg:
                return frame_through(xy_m[stamp_ns], latlon_deg[stamp_ns])
    return None


def frame_through(
    xy_m: tuple[float, float], latlon_deg: tuple[float, float]
) -> LocalFrame:
    """The frame in which a point of WGS84 has these coordinates.

    The origin is moved by what is left of the difference, at first by nearly all of it; raises
    RunError where it does not settle (more than a few hundred kilometres away).
    """
    latitude_deg, longitude_deg = latlon_deg
    for _ in range(30):
        frame = LocalFrame(latitude_deg, longitude_deg)
        found_m = frame.xy_from_latlon(*latlon_deg)
        error_m = np.subtract(found_m, xy_m)
        if not np.isfinite(error_m).all():
            break
        if np.hypot(*error_m) < FRAME_TOLERANCE_M:
            return frame
        latitude_deg, longitude_deg = frame.latlon_from_xy(*error_m)
    raise RunError(
        f"the node's pose {xy_m} m and its geopose {latlon_deg} deg fit no map origin; expected "
        'a recording of one node with one map')


# --- single large messages


def raw_stamp_ns(data: bytes) -> int:
    """The stamp of a serialized message that begins with a header: CDR, 4 bytes, sec, nanosec."""
    if len(data) < 12:
        raise RunError(f'a message of {len(data)} bytes is damaged; expected a stamped header')
    order = '<' if data[1] & 1 else '>'
    sec, nanosec = struct.unpack_from(f'{order}iI', data, 4)
    return sec * 1_000_000_000 + nanosec


def messages_stamped(bag: str | Path, topic: str, stamps_ns: Iterable[int]) -> dict[int, object]:
    """The messages of a topic with these stamps, those that are there; only they are decoded."""
    wanted, found = set(stamps_ns), {}
    with open_bag(bag) as reader:
        chosen = [c for c in reader.connections if c.topic == topic]
        for connection, _, data in raw_messages(reader, chosen):
            stamp_ns = raw_stamp_ns(data)
            if stamp_ns in wanted and stamp_ns not in found:
                found[stamp_ns] = decoded(reader, connection, data)
                if len(found) == len(wanted):
                    break
    return found
