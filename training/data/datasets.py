"""Training data: images with their true poses, and the imagery beneath.

A ``World`` is one area as plain arrays. ``training.prepare`` makes it from bags and imagery with
the code that the node runs (conversion, undistortion, map plane) and stores it as ``.npz``, so
that training needs neither ROS nor a projection library. ``Places`` are data as the papers use
them: separate places, each with a ground image and a satellite tile. ``oxford`` and ``cvact``
read such data, and ``places_of_world`` makes them of a World.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.camera import views
from crossview_localizer.datatypes import CameraModel
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import MapGrid

KEPT_WORLDS = 8   # of the files that are read as they are used


@dataclass(frozen=True)
class World:
    """One area: ``imagery`` (R, C, 3) uint8 on ``grid``, and the images taken there.

    ``images`` (N, h, w, 3) uint8 RGB are all of one ``camera``; ``poses`` (N, 3) are the true
    x_m, y_m, yaw_rad of base_link in map; ``drive`` (N,) is the number of each image's traversal.

    In a recording without precise truth ``poses`` are smoothed: ``pose_covariances`` (N, 2, 2),
    m2, say how well x and y are known (None: exactly), ``stamps_ns`` (N,) when the images were
    taken, and ``true_poses`` (N, 3), NaN where not known, serve for reports alone.
    """

    name: str
    imagery: np.ndarray
    grid: MapGrid
    images: np.ndarray
    camera: CameraModel
    poses: np.ndarray
    drive: np.ndarray
    pose_covariances: np.ndarray | None = None
    stamps_ns: np.ndarray | None = None
    true_poses: np.ndarray | None = None

    def area(self, x_m: float, y_m: float, size_px: int) -> tuple[np.ndarray, MapGrid]:
        """The square of imagery whose centre is nearest to a point, and its grid.

        Where it reaches beyond the imagery it is grey.
        """
        row, col = self.grid.row_col_from_xy(x_m, y_m)
        top, left = round(float(row)) - size_px // 2, round(float(col)) - size_px // 2
        area = _cut(self.imagery, top, left, size_px)
        return area, self.grid.crop(top, left, size_px, size_px)

    def view(self, index: int, yaw_rad: float, size_px: int, px_m: float,
             pitch_rad: float = 0.0) -> np.ndarray:
        """The bird's-eye view (S, S, 4) of one image for an assumed heading."""
        return views.birds_eye_view(
            self.images[index], self.camera, yaw_rad, size_px, px_m, pitch_rad)


OPTIONAL_FIELDS = ('pose_covariances', 'stamps_ns', 'true_poses')


def save_world(world: World, path: str | Path) -> None:
    """Write ``world`` as one ``.npz``, whole or not at all."""
    grid, camera = world.grid, world.camera
    with write_atomically(path) as writing, open(writing, 'wb') as file:
        np.savez(
            file, name=world.name, imagery=world.imagery,
            grid=np.array([grid.rows, grid.cols, grid.cell_m, grid.x0_m, grid.y0_m]),
            images=world.images,
            camera=np.array([camera.width_px, camera.height_px, camera.fx_px, camera.fy_px,
                             camera.cx_px, camera.cy_px, camera.height_m]),
            base_from_camera=camera.base_from_camera, poses=world.poses, drive=world.drive,
            **{name: getattr(world, name) for name in OPTIONAL_FIELDS
               if getattr(world, name) is not None})


def load_world(path: str | Path) -> World:
    """Read what ``save_world`` wrote; ValueError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as data:
            rows, cols, cell_m, x0_m, y0_m = data['grid'].tolist()
            width, height, fx, fy, cx, cy, height_m = data['camera'].tolist()
            camera = CameraModel(
                int(width), int(height), fx, fy, cx, cy, data['base_from_camera'], height_m)
            return World(
                str(data['name']), data['imagery'],
                MapGrid(int(rows), int(cols), cell_m, x0_m, y0_m),
                data['images'], camera, data['poses'], data['drive'],
                **{field: data[field] for field in OPTIONAL_FIELDS if field in data})
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f'{path} is not a prepared training file ({error}); make it with '
            'python -m training.prepare') from error


class WorldFiles(Sequence):
    """Prepared files as worlds that are read when they are used; the last few stay in memory."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        self._load = lru_cache(KEPT_WORLDS)(load_world)
        self.frames = lru_cache(None)(self._read_frames)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> World:
        return self._load(self.paths[number])

    def _read_frames(self, number: int) -> dict[str, np.ndarray]:
        """Poses, drives and the optional fields of one file, without its pictures."""
        with np.load(self.paths[number], allow_pickle=False) as data:
            return {name: data[name] for name in ('poses', 'drive', *OPTIONAL_FIELDS)
                    if name in data}


@dataclass(frozen=True)
class Places:
    """N places, each with a satellite tile and a ground image that was taken there.

    ``positions_m`` (N, 2) float64 east and north; ``yaw_rad`` (N,) headings in the same axes, NaN
    where unknown; ``split`` (N,) 'train', 'val' or 'test'; ``drive`` (N,) names of traversals;
    ``stamp_us`` (N,) int64, -1 where unknown (the number of the image where there is no clock).
    ``has_ground`` (N,) is False where the ground image is missing. ``read_ground`` and
    ``read_satellite`` take the number of a place and return RGB uint8 (h, w, 3) of the network's
    size, or raise ValueError with the name of the file; threads may call them at the same time.
    ``notes`` say what was left out.
    """

    name: str
    positions_m: np.ndarray
    yaw_rad: np.ndarray
    split: np.ndarray
    drive: np.ndarray
    stamp_us: np.ndarray
    has_ground: np.ndarray
    read_ground: Callable[[int], np.ndarray]
    read_satellite: Callable[[int], np.ndarray]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.positions_m)

    def trainable(self) -> np.ndarray:
        """(N,) bool: the places whose ground images training may use."""
        return self.has_ground & (self.split == 'train')

    def of_split(self, split: str) -> 'Places':
        """The places of one split alone, as if there were no others."""
        chosen = np.flatnonzero(self.split == split)
        if not len(chosen):
            raise ValueError(f'no place of {self.name} is of the split {split!r}')
        columns = ('positions_m', 'yaw_rad', 'split', 'drive', 'stamp_us', 'has_ground')
        return replace(
            self, **{name: getattr(self, name)[chosen] for name in columns},
            read_ground=lambda place: self.read_ground(int(chosen[place])),
            read_satellite=lambda place: self.read_satellite(int(chosen[place])))

    def queries(self, split: str) -> np.ndarray:
        """Numbers of a split's places with a ground image, by drive and then by time."""
        chosen = np.flatnonzero(self.has_ground & (self.split == split))
        return chosen[np.lexsort((self.stamp_us[chosen], self.drive[chosen]))]


def read_rgb(path: str | Path) -> np.ndarray:
    """An image file as (H, W, 3) RGB uint8; ValueError if it is missing or damaged."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f'{path} does not exist; expected an image')
    data = np.fromfile(path, np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f'{path} is not a readable image ({data.size} bytes)')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _cut(imagery: np.ndarray, top: int, left: int, size_px: int) -> np.ndarray:
    """A square of a raster (R, C, 3), grey beyond its edges."""
    tile = np.full((size_px, size_px, 3), views.UNSEEN, np.uint8)
    r0, r1 = max(top, 0), min(top + size_px, imagery.shape[0])
    c0, c1 = max(left, 0), min(left + size_px, imagery.shape[1])
    if r0 < r1 and c0 < c1:
        tile[r0 - top:r1 - top, c0 - left:c1 - left] = imagery[r0:r1, c0:c1]
    return tile


def tile_around(imagery: np.ndarray, grid: MapGrid, x_m: float, y_m: float,
                size_px: int) -> np.ndarray:
    """The square of a raster on ``grid`` whose middle is nearest to a point, grey beyond it."""
    row, col = grid.row_col_from_xy(x_m, y_m)
    # The middle of an even square lies between two pixels.
    top, left = (round(float(middle) - (size_px - 1) / 2) for middle in (row, col))
    return _cut(imagery, top, left, size_px)


def places_of_world(world: World, split_of_drive: dict[int, str], tile_px: int,
                    ground_view: str = 'camera', view_px: int = 128) -> Places:
    """The images of a World as places, each with a north-up tile of ``tile_px`` around it.

    ``split_of_drive`` gives the split of each traversal; the other traversals are left out.
    ``ground_view`` is the network's (see ``views.ground_view``); a bird's-eye view is turned by
    the true heading, is ``view_px`` wide and has its mask as a fourth channel. Raises ValueError
    if the world has none of these drives, and for polar views, which need panoramas.
    """
    if ground_view == 'polar':
        raise ValueError(f'{world.name} has images of a front camera; expected panoramas')
    chosen = np.flatnonzero(np.isin(world.drive, list(split_of_drive)))
    if len(chosen) == 0:
        raise ValueError(
            f'{world.name} has the drives {np.unique(world.drive).tolist()}; expected one of '
            f'{sorted(split_of_drive)}')
    drive = world.drive[chosen]
    return Places(
        world.name, world.poses[chosen, :2].astype(np.float64), world.poses[chosen, 2],
        np.array([split_of_drive[k] for k in drive.tolist()]),
        np.array([f'{world.name} {k}' for k in drive.tolist()]),
        chosen.astype(np.int64), np.ones(len(chosen), bool),
        partial(_world_ground, world, chosen, ground_view, view_px),
        partial(_world_satellite, world, chosen, tile_px))


def _world_ground(world, chosen, ground_view, view_px, place):
    index = chosen[place]
    return views.ground_view(
        ground_view, world.images[index], world.camera, world.poses[index, 2], view_px,
        world.grid.cell_m)


def _world_satellite(world, chosen, tile_px, place):
    x_m, y_m, _ = world.poses[chosen[place]]
    return tile_around(world.imagery, world.grid, x_m, y_m, tile_px)


def read_some(places: Places, numbers: np.ndarray, count: int = 20) -> int:
    """Read both images of up to ``count`` of these places as a check; returns how many."""
    tried = np.random.default_rng(0).permutation(numbers)[:count]
    for place in tried:
        places.read_ground(place)
        places.read_satellite(place)
    return len(tried)
