"""Training data: drives with their true poses, and the imagery beneath, as plain arrays.

``prepare`` turns one bag and its imagery into one ``.npz`` through the code that the node runs
(conversion, undistortion, map plane); training itself needs neither ROS nor a projection library.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossview_localizer import views
from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid


@dataclass(frozen=True)
class World:
    """One place: ``imagery`` (R, C, 3) uint8 on ``grid``, and the images taken there.

    ``images`` (N, h, w, 3) uint8 RGB all belong to ``camera``; ``poses`` (N, 3) are the true
    x_m, y_m, yaw_rad of base_link in map; ``drive`` (N,) numbers the traversal of each.
    """

    name: str
    imagery: np.ndarray
    grid: MapGrid
    images: np.ndarray
    camera: CameraModel
    poses: np.ndarray
    drive: np.ndarray

    def area(self, x_m: float, y_m: float, size_px: int) -> tuple[np.ndarray, MapGrid]:
        """The square of imagery centred nearest to a point, and its grid; grey beyond the edge."""
        row, col = self.grid.row_col_from_xy(x_m, y_m)
        top, left = round(float(row)) - size_px // 2, round(float(col)) - size_px // 2
        area = np.full((size_px, size_px, 3), views.UNSEEN, np.uint8)
        r0, r1 = max(top, 0), min(top + size_px, self.grid.rows)
        c0, c1 = max(left, 0), min(left + size_px, self.grid.cols)
        if r0 < r1 and c0 < c1:
            area[r0 - top:r1 - top, c0 - left:c1 - left] = self.imagery[r0:r1, c0:c1]
        return area, self.grid.crop(top, left, size_px, size_px)

    def view(self, index: int, yaw_rad: float, size_px: int, px_m: float,
             pitch_rad: float = 0.0) -> np.ndarray:
        """The bird's-eye view (S, S, 4) of one image under an assumed heading."""
        return views.birds_eye_view(
            self.images[index], self.camera, yaw_rad, size_px, px_m, pitch_rad)


def save_world(world: World, path: str | Path) -> None:
    camera = world.camera
    np.savez(
        path, name=world.name, imagery=world.imagery,
        grid=np.array([world.grid.rows, world.grid.cols, world.grid.cell_m, world.grid.x0_m,
                       world.grid.y0_m]),
        images=world.images,
        camera=np.array([camera.width_px, camera.height_px, camera.fx_px, camera.fy_px,
                         camera.cx_px, camera.cy_px, camera.height_m]),
        base_from_camera=camera.base_from_camera, poses=world.poses, drive=world.drive)


def load_world(path: str | Path) -> World:
    """Read what ``save_world`` wrote; ValueError where the file is something else."""
    try:
        with np.load(path, allow_pickle=False) as data:
            rows, cols, cell_m, x0_m, y0_m = data['grid'].tolist()
            width, height, fx, fy, cx, cy, height_m = data['camera'].tolist()
            camera = CameraModel(
                int(width), int(height), fx, fy, cx, cy, data['base_from_camera'], height_m)
            return World(
                str(data['name']), data['imagery'],
                MapGrid(int(rows), int(cols), cell_m, x0_m, y0_m),
                data['images'], camera, data['poses'], data['drive'])
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(
            f'{path} is not a prepared training file ({error}); make it with '
            'python -m training.prepare') from error
