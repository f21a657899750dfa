"""Rendered places on disk: pictures from above, and frames of cameras on the ground.

A file is an ``.npz`` of plain arrays; pictures are JPEG, one after the other in ``bytes``.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraModel
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import MapGrid
from training.data.datasets import World

JPEG_QUALITY = 94


@dataclass(frozen=True)
class Shot:
    """Frames of one camera on one day: JPEG each, and poses (N, 3) x_m, y_m, yaw_rad."""

    camera: CameraModel
    frames: list[np.ndarray]
    poses: np.ndarray


@dataclass(frozen=True)
class RenderedPlace:
    """Pictures from above (JPEG each) on ``grid``, north up, and shots."""

    name: str
    region: str
    grid: MapGrid
    aerials: list[np.ndarray]
    shots: list[Shot]

    def world(self, number: int) -> World:
        """One shot against one picture from above, those of that number (modulo their count)."""
        shot = self.shots[number % len(self.shots)]
        return World(
            self.name, decode_jpeg(self.aerials[number % len(self.aerials)]), self.grid,
            np.stack([decode_jpeg(frame) for frame in shot.frames]), shot.camera, shot.poses,
            np.zeros(len(shot.frames), int))


def encode_jpeg(rgb: np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) uint8 to the bytes (n,) of a JPEG."""
    ok, data = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR),
                            [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not ok:
        raise ValueError(f'an image of shape {rgb.shape} cannot be written as JPEG')
    return data.ravel()


def decode_jpeg(data: np.ndarray) -> np.ndarray:
    """Bytes (n,) of a JPEG to RGB (H, W, 3) uint8."""
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def save_place(place: RenderedPlace, path: Path) -> None:
    """Write a place whole or not at all."""
    pictures = [*place.aerials, *(frame for shot in place.shots for frame in shot.frames)]
    grid = place.grid
    with write_atomically(path) as writing:
        np.savez(
            writing, name=place.name, region=place.region,
            grid=np.array([grid.rows, grid.cols, grid.cell_m, grid.x0_m, grid.y0_m]),
            aerials=len(place.aerials), lengths=np.array([len(p) for p in pictures]),
            bytes=np.concatenate(pictures),
            cameras=np.array([
                [c.width_px, c.height_px, c.fx_px, c.fy_px, c.cx_px, c.cy_px, c.height_m]
                for c in (shot.camera for shot in place.shots)]),
            mountings=np.stack([shot.camera.base_from_camera for shot in place.shots]),
            counts=np.array([len(shot.frames) for shot in place.shots]),
            poses=np.concatenate([shot.poses for shot in place.shots]))


def load_place(path: Path) -> RenderedPlace:
    """Read what ``save_place`` wrote; ValueError where the file is something else."""
    try:
        with np.load(path, allow_pickle=False) as data:
            rows, cols, cell_m, x0_m, y0_m = data['grid'].tolist()
            ends = np.cumsum(data['lengths'])
            pictures = np.split(data['bytes'], ends[:-1])
            aerials = int(data['aerials'])
            frames, poses = pictures[aerials:], data['poses']
            shots, first = [], 0
            for values, mounting, count in zip(
                    data['cameras'], data['mountings'], data['counts'].tolist()):
                width, height, *intrinsics, height_m = values.tolist()
                camera = CameraModel(int(width), int(height), *intrinsics, mounting, height_m)
                shots.append(Shot(camera, frames[first:first + count],
                                  poses[first:first + count]))
                first += count
            return RenderedPlace(
                str(data['name']), str(data['region']),
                MapGrid(int(rows), int(cols), cell_m, x0_m, y0_m), pictures[:aerials], shots)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f'{path} is not a rendered place ({error}); make it with '
                         'python -m training.render_places') from error
