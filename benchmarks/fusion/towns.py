"""Simulated towns as the offline Localizer sees them, each image described once.

A town is rendered, driven, converted to a bag and mapped; then the bag is played to a stand-in for
the Localizer which notes what it is given and lets the network describe each image.  Whatever is
there already is kept, so that a killed run goes on.  All later runs of that drive, with other
starts, without GNSS or with the wrong images, share those descriptions: matching itself depends on
the prior and is done anew each time.
"""

from dataclasses import dataclass
from pathlib import Path
import shutil

import numpy as np
import torch
from tqdm import tqdm

from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, GnssFix, Localization, OdometrySample
from crossview_localizer.geometry import Pose2D
from crossview_localizer.localizer import Localizer
from crossview_localizer.trajectory import Track

IMAGE_SIZE_PX = (320, 240)
RATE_HZ = 1.0
ORTHO_PX_M = 0.25
BLIND_MIN_M = 200.0
ODOMETRY_STEP_S = 0.24


@dataclass(frozen=True)
class ImageAt:
    """Where an image came in the stream; ``line`` is its row among the views."""

    stamp_ns: int
    line: int


Event = GnssFix | OdometrySample | ImageAt


class _Recorder:
    """Takes the Localizer's place in a replay: notes the calls and describes the images."""

    def __init__(self, frame, matcher):
        self.frame = frame
        self.config = LocalizerConfig()
        self.events: list[Event] = []
        self.views: list[np.ndarray] = []
        self._matcher = matcher

    def add_gnss(self, fix: GnssFix) -> None:
        self.events.append(fix)

    def add_odometry(self, sample: OdometrySample) -> None:
        self.events.append(sample)

    def process_image(self, image: CameraImage) -> None:
        view, weight = self._matcher.embed(image, 0.0)
        self.events.append(ImageAt(image.stamp_ns, len(self.views)))
        self.views.append(torch.cat((view, weight), 1)[0].half().numpy())    # (C + 1, F, L)

    def pass_image(self, stamp_ns: int, reason: str) -> None:
        """An image that cannot be used is left out."""


class RememberedViews:
    """The dense matcher with the network's views of a drive looked up instead of computed.

    ``exchanged`` (n,) gives for each image the one whose view is taken in its place.
    """

    def __init__(self, matcher, views: np.ndarray, lines: dict[int, int], exchanged=None):
        self._matcher = matcher
        self._views = views
        self._lines = lines
        self._exchanged = exchanged

    def __getattr__(self, name):
        return getattr(self._matcher, name)

    def embed(self, image: CameraImage, yaw_rad: float, pitch_rad: float = 0.0):
        line = self._lines[image.stamp_ns]
        if self._exchanged is not None:
            line = self._exchanged[line]
        view = torch.from_numpy(self._views[line].astype(np.float32))[None]  # (1, C + 1, F, L)
        return view[:, :-1], view[:, -1:]


@dataclass(frozen=True)
class Town:
    """A recorded drive, in the order in which the node's rule gives it to the Localizer."""

    name: str
    loaded: Localizer
    events: list[Event]
    views: np.ndarray  # (n, C + 1, F, L) float16
    truth: Track
    odometry: Track

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
        """For each image (n,) one taken at least ``BLIND_MIN_M`` away, or the farthest."""
        stamps_ns = [image.stamp_ns for image in self.images]
        places_m = self.truth.at(np.array(stamps_ns), 1.0).poses[:, :2]
        return np.array([elsewhere(places_m, index, rng) for index in range(len(places_m))])


def elsewhere(places_m: np.ndarray, index: int, rng) -> int:
    """One of the places (n, 2) at least ``BLIND_MIN_M`` from that of an index, or the farthest."""
    apart_m = np.hypot(*(places_m - places_m[index]).T)
    far = np.flatnonzero(apart_m >= BLIND_MIN_M)
    return int(rng.choice(far) if len(far) else np.nanargmax(apart_m))


def feed(localizer: Localizer, events: list[Event]) -> list[Localization]:
    """Give the events to a Localizer; what each image gave."""
    found = []
    for event in events:
        if isinstance(event, ImageAt):
            found.append(localizer.process_image(CameraImage(event.stamp_ns, None, None)))
        elif isinstance(event, GnssFix):
            localizer.add_gnss(event)
        else:
            localizer.add_odometry(event)
    return found


def town_from_seed(folder: Path, seed: int, duration_s: float, weights: Path, jobs: int) -> Town:
    """The town of a seed with one drive through it, made where it is not there yet.

    Its map and views carry the name of the weights.  Raises ValueError or OSError where ``folder``
    holds another town.
    """
    from benchmarks.demo.demo import build_corridor_map, convert
    from crossview_localizer.networks.checkpoint import load_network
    from training.simulation import make_world

    network = load_network(weights)
    made_by = network.fingerprint[:12]
    bag, map_path = folder / 'bag', folder / f'dense_{made_by}.map'
    if not map_path.exists():
        [name] = make_world(
            folder / 'world', seed, duration_s=duration_s, rate_hz=RATE_HZ,
            image_size=IMAGE_SIZE_PX, ortho_px_m=ORTHO_PX_M, jobs=jobs)
        if bag.exists():
            shutil.rmtree(bag)
        convert(folder / 'world' / name, bag)
        partial = folder / 'partial.map'
        build_corridor_map(
            folder / 'world', folder / 'world' / name / 'gps/ins.csv', network, partial)
        partial.replace(map_path)
    return town_from_bag(
        folder.name, bag, map_path, weights, NodeConfig(), folder / f'views_{made_by}.npz')


def town_from_bag(name: str, bag: Path, map_path: Path, weights: Path, node_config: NodeConfig,
                  kept: Path) -> Town:
    """A bag with truth and its map; the views are kept in the file ``kept``."""
    from crossview_localizer.bags import replay
    from crossview_localizer.localizer import load_localizer

    loaded = load_localizer(map_path, weights, LocalizerConfig())
    if not kept.exists():
        recorder = _Recorder(loaded.frame, loaded.matcher)
        for _ in tqdm(replay.localize(bag, recorder, node_config), desc=f'{name}: views',
                      unit=' images', disable=None):
            pass
        drive = replay.read_drive(bag, loaded.frame, node_config)
        partial = kept.with_name(f'partial_{kept.name}')
        np.savez(partial, events=_rows(recorder.events), views=np.stack(recorder.views),
                 truth_stamps_ns=drive.truth.stamps_ns, truth=drive.truth.poses,
                 odometry_stamps_ns=drive.odometry.stamps_ns, odometry=drive.odometry.poses)
        partial.replace(kept)
    with np.load(kept) as file:
        tracks = [
            Track.from_poses(file[f'{name}_stamps_ns'], [Pose2D(*p) for p in file[name]])
            for name in ('truth', 'odometry')]
        return Town(name, loaded, thinned(_events(file['events'])), file['views'], *tracks)


def thinned(events: list[Event]) -> list[Event]:
    """The events with odometry at some 4 Hz, which at 16 Hz is half of the time of a run.

    The sample before each image stays, so that images come with the odometry they waited for.
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
            row['kind'], row['values'][0] = 2, event.line
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
            found.append(ImageAt(stamp_ns, int(values[0])))
    return found
