"""Simulated towns for the offline Localizer, with the network run once on each image.

A town is rendered, driven, converted to a bag and mapped; then the events of the bag are read and
the network embeds each image.  What exists already is kept, so that a killed run goes on.  All
runs over that drive, with other starts, without GNSS or with wrong images, share the embedded
views: only the matching depends on the prior and is repeated.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
import math
import multiprocessing
from pathlib import Path
import shutil

import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssFix, Localization, OdometrySample
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import Pose2D
from crossview_localizer.localizer import Localizer
from crossview_localizer.matching.dense_matcher import GroundView
from crossview_localizer.trajectory import Track, TRUTH_MAX_GAP_S

IMAGE_SIZE_PX = (320, 240)
RATE_HZ = 1.0
ORTHO_PX_M = 0.25
BLIND_MIN_M = 200.0
ODOMETRY_STEP_S = 0.24


@dataclass(frozen=True)
class ImageAt:
    """The place of an image in the stream of events; ``line`` is its row among the views."""

    stamp_ns: int
    line: int
    camera_yaw_rad: float = 0.0


Event = GnssFix | OdometrySample | ImageAt


class RememberedViews:
    """The dense matcher with the views of a drive looked up instead of computed.

    ``exchanged`` (n,) gives for each image the one whose view is used in its place.
    """

    def __init__(self, matcher, views: np.ndarray, lines: dict[int, int], exchanged=None):
        self._matcher = matcher
        self._views = views
        self._lines = lines
        self._exchanged = exchanged

    def __getattr__(self, name):
        return getattr(self._matcher, name)

    def embed(self, image: ImageAt, yaw_rad: float, pitch_rad: float = 0.0) -> GroundView:
        line = self._lines[image.stamp_ns]
        if self._exchanged is not None:
            line = self._exchanged[line]
        view = torch.from_numpy(self._views[line].astype(np.float32))[None]  # (1, C + 1, F, L)
        return GroundView(view[:, :-1], view[:, -1:], image.camera_yaw_rad)


@dataclass(frozen=True)
class Town:
    """A recorded drive, its events in the order in which the node would take them."""

    name: str
    loaded: Localizer
    events: list[Event]
    views: np.ndarray  # (n, C + 1, F, L) float16
    truth: Track
    odometry: Track

    def thinned(self) -> 'Town':
        """The same drive with less odometry, see the function."""
        return replace(self, events=thinned(self.events))

    @property
    def images(self) -> list[ImageAt]:
        return [event for event in self.events if isinstance(event, ImageAt)]

    def localizer(self, config: LocalizerConfig, exchanged: np.ndarray | None = None,
                  match: bool = True) -> Localizer:
        """A fresh Localizer over this town; ``exchanged`` as ``RememberedViews`` has it."""
        if not match:
            return Localizer(config, self.loaded.frame)
        lines = {image.stamp_ns: image.line for image in self.images}
        return Localizer(
            config, self.loaded.frame, self.loaded.embedding_map,
            RememberedViews(self.loaded.matcher, self.views, lines, exchanged))

    def elsewhere(self, rng) -> np.ndarray:
        """For each image (n,) the number of one taken ``BLIND_MIN_M`` away, or the farthest."""
        stamps_ns = [image.stamp_ns for image in self.images]
        places_m = self.truth.at(np.array(stamps_ns), TRUTH_MAX_GAP_S).poses[:, :2]
        return np.array([elsewhere(places_m, index, rng) for index in range(len(places_m))])


def elsewhere(places_m: np.ndarray, index: int, rng) -> int:
    """The index of a place (n, 2) at least ``BLIND_MIN_M`` from that of ``index``, or farthest."""
    apart_m = np.hypot(*(places_m - places_m[index]).T)
    far = np.flatnonzero(apart_m >= BLIND_MIN_M)
    return int(rng.choice(far) if len(far) else np.nanargmax(apart_m))


def run_in_processes(work: Callable, tasks: list, jobs: int) -> list:
    """The results of ``work`` for each task, in order; with one job in this process."""
    if jobs <= 1:
        return [work(task) for task in tasks]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context('spawn')) as processes:
        return list(processes.map(work, tasks))


def feed(localizer: Localizer, events: list[Event]) -> list[Localization]:
    """Give the events to a Localizer and return the result of each image."""
    found = []
    for event in events:
        if isinstance(event, ImageAt):
            found.append(localizer.process_image(event))  # its view is remembered
        elif isinstance(event, GnssFix):
            localizer.add_gnss(event)
        else:
            localizer.add_odometry(event)
    return found


def town_from_seed(folder: Path, seed: int, duration_s: float, weights: Path, jobs: int,
                   rate_hz: float = RATE_HZ, pitch_rad: float = 0.0) -> Town:
    """The town of a seed with one drive through it; what is missing in ``folder`` is made.

    The network is told a pitch that is off by ``pitch_rad``.  Map and views are named after the
    weights.  Raises ValueError or OSError if ``folder`` holds another town.
    """
    from benchmarks.demo.stages import build_corridor_map, convert
    from crossview_localizer.networks.checkpoint import load_network

    network = load_network(weights)
    made_by = network.fingerprint[:12]
    bag, map_path = folder / 'bag', folder / f'dense_{made_by}.map'
    if not map_path.exists():
        name = render(folder, seed, duration_s, jobs, rate_hz)
        if bag.exists():
            shutil.rmtree(bag)
        convert(folder / 'world' / name, bag)
        with write_atomically(map_path) as partial:
            build_corridor_map(
                folder / 'world', folder / 'world' / name / 'gps/ins.csv', network, partial)
    pitched = f'_pitch_{math.degrees(pitch_rad):.2f}' if pitch_rad else ''
    return town_from_bag(folder.name, bag, map_path, weights, NodeConfig(),
                         folder / f'views_{made_by}{pitched}.npz', pitch_rad)


def render(folder: Path, seed: int, duration_s: float, jobs: int, rate_hz: float = RATE_HZ) -> str:
    """Render what is missing of the town of a seed, and return the name of its drive.

    It depends on no weights.
    """
    from training.simulation import make_world

    [name] = make_world(
        folder / 'world', seed, duration_s=duration_s, rate_hz=rate_hz, image_size=IMAGE_SIZE_PX,
        ortho_px_m=ORTHO_PX_M, jobs=jobs)
    return name


def town_from_bag(name: str, bag: Path, map_path: Path, weights: Path, node_config: NodeConfig,
                  kept: Path, pitch_rad: float = 0.0) -> Town:
    """A bag with truth and its map; its events and views are kept in the file ``kept``."""
    from crossview_localizer.bags.drive import read_drive
    from crossview_localizer.localizer import load_localizer

    loaded = load_localizer(map_path, weights, LocalizerConfig())
    if not kept.exists():
        events, views = _embedded_events(name, bag, loaded, node_config, pitch_rad)
        drive = read_drive(bag, loaded.frame, node_config)
        with write_atomically(kept) as partial:
            np.savez(partial, events=_rows(events), views=np.stack(views),
                     truth_stamps_ns=drive.truth.stamps_ns, truth=drive.truth.poses,
                     odometry_stamps_ns=drive.odometry.stamps_ns, odometry=drive.odometry.poses)
    with np.load(kept) as file:
        tracks = [
            Track.from_poses(file[f'{name}_stamps_ns'], [Pose2D(*p) for p in file[name]])
            for name in ('truth', 'odometry')]
        return Town(name, loaded, _events(file['events']), file['views'], *tracks)


def _embedded_events(name: str, bag: Path, loaded: Localizer, node_config: NodeConfig,
                     pitch_rad: float):
    """The events of a bag, and the view of each image (C + 1, F, L) as float16."""
    from crossview_localizer.bags.events import read_events

    events: list[Event] = []
    views: list[np.ndarray] = []
    found = read_events(bag, loaded.frame, node_config, topics=Topics(gnss_velocity='', truth=''))
    for event in tqdm(found, desc=f'{name}: views', unit=' events', disable=None):
        if isinstance(event, CameraImage):
            ground = loaded.matcher.embed(event, 0.0, pitch_rad)
            events.append(ImageAt(event.stamp_ns, len(views), ground.yaw_rad))
            both = torch.cat((ground.view, ground.weight), 1)                   # (1, C + 1, F, L)
            views.append(both[0].half().numpy())
        elif isinstance(event, (GnssFix, OdometrySample)):
            events.append(event)
    return events, views


def thinned(events: list[Event]) -> list[Event]:
    """The events with odometry at about 4 Hz: at 16 Hz it takes half of the time of a run.

    The sample before each image stays, so that an image comes with the odometry it waited for.
    """
    kept, last_ns = [], 0
    for event, following in zip(events, [*events[1:], None]):
        if isinstance(event, OdometrySample):
            due = event.stamp_ns - last_ns >= ODOMETRY_STEP_S * 1e9
            if not due and not isinstance(following, ImageAt):
                continue
            last_ns = event.stamp_ns
        kept.append(event)
    return kept


_ROW = np.dtype([('kind', 'u1'), ('stamp_ns', 'i8'), ('values', 'f8', 8)])


def _rows(events: list[Event]) -> np.ndarray:
    rows = np.zeros(len(events), _ROW)
    for row, event in zip(rows, events):
        row['stamp_ns'] = event.stamp_ns
        if isinstance(event, OdometrySample):
            row['kind'], row['values'][:3] = 0, event.odom_from_base.as_array()
        elif isinstance(event, GnssFix):
            row['kind'] = 1
            row['values'] = (event.x_m, event.y_m, *np.ravel(event.covariance),
                             *event.base_from_antenna_m)
        else:
            row['kind'], row['values'][:2] = 2, (event.line, event.camera_yaw_rad)
    return rows


def _events(rows: np.ndarray) -> list[Event]:
    found = []
    for kind, stamp_ns, values in rows.tolist():
        if kind == 0:
            found.append(OdometrySample(stamp_ns, Pose2D(*values[:3])))
        elif kind == 1:
            found.append(GnssFix(
                stamp_ns, *values[:2], np.reshape(values[2:6], (2, 2)), tuple(values[6:])))
        else:
            found.append(ImageAt(stamp_ns, int(values[0]), values[1]))
    return found
