"""Real street pictures with the overhead picture of the same place, as records of one kind.

A ``View`` is one pinhole image with its camera, the overhead picture it belongs to and the true
pose in that picture's own axes: x to the right, y up, metres, origin at the picture's centre.
``read_views`` reads the folders described in ``docs/real_pairs.md`` and, in any folder, a
``views.csv`` of the neutral format with one line for each view.

Panoramas are equirectangular.  Pinhole views 80 degrees wide are cut from them, one every 45
degrees, with the horizon above the middle so that the road is seen from about 4 m ahead.
"""

from collections.abc import Callable, Iterator
import csv
from dataclasses import dataclass
import json
import math
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.datatypes import CameraImage, CameraModel
from crossview_localizer.geometry import Pose2D, wrap_angle

STREET_VIEW_HEIGHT_M = 2.45   # of a Street View car's camera above the road
VIEW_PX = (480, 300)          # width, height of a view cut from a panorama
VIEW_WIDTH_DEG = 80.0
VIEW_STEP_DEG = 45.0
HORIZON_ROW_PX = 120.0        # of the 300: the lowest row then looks 32 degrees down
CAMERA_AXES = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # base_from_camera
SUFFIXES = ('.png', '.jpg', '.jpeg')

CVACT_TILE_M = 1200 * 0.0609  # both sizes of CVACT's tiles show the same 73 m
# Measured by hand: metres east and north of the tile's centre, and how well that is known.
CVACT_MEASURED = {'2-6Pro9zN1qOxbFSTigfAg': (0.9, -3.0, 0.5)}
CVACT_ACCURACY_M = 2.0
CVUSA_PX_M = 0.23             # +-12 percent: 0.2986 cos(latitude), latitude unknown
CVUSA_DEG_PER_PX = 360.0 / 1232
CVUSA_HORIZON_ROW = 132.0
CVUSA_ACCURACY_M = 3.0
DAYTON_PX_M = 0.2295
DAYTON_ACCURACY_M = {'exact': 0.02, 'approx': 0.4, 'unknown_range': 0.4}
DAYTON_TYPICAL_ROW = 180.0    # where a camera of unknown range is taken to stand
LONDON_PX_M, LONDON_ACCURACY_M = 0.5, 3.0
NUSCENES_PX_M, NUSCENES_ACCURACY_M = 0.2985, 1.5


@dataclass(frozen=True, eq=False)
class Overhead:
    """An overhead picture (H, W, 3) RGB; ``known`` (H, W) is False where it shows nothing."""

    name: str
    rgb: np.ndarray
    px_m: float
    known: np.ndarray | None = None

    def xy_from_col_row(self, col_px: float, row_px: float) -> tuple[float, float]:
        """A pixel's place in the picture's axes, metres right of and above its centre."""
        height, width = self.rgb.shape[:2]
        return (col_px - (width - 1) / 2) * self.px_m, ((height - 1) / 2 - row_px) * self.px_m


@dataclass(frozen=True, eq=False)
class View:
    """One image with its true pose; see the module's docstring for the axes.

    ``truth`` is the pose of base_link: the point of the road beneath the camera, x along the
    optical axis.  ``accuracy_m`` is how well its position is known, ``prior_m`` the half width
    of the prior that the overhead picture bears.  Where ``range_known`` is False the position
    along the heading is a guess: only the lateral error and the heading count.
    """

    set: str
    name: str
    image: CameraImage
    overhead: Overhead
    truth: Pose2D
    accuracy_m: float
    prior_m: float
    range_known: bool = True


@dataclass(frozen=True)
class Panorama:
    """An equirectangular picture or a part of one.

    Column u looks to the compass heading ``heading_deg + (u - middle_col) * deg_per_px[0]``, row
    v down by ``(v - horizon_row) * deg_per_px[1]``.
    """

    rgb: np.ndarray
    heading_deg: float
    middle_col: float
    horizon_row: float
    deg_per_px: tuple[float, float]

    @classmethod
    def whole(cls, rgb: np.ndarray, heading_deg: float) -> 'Panorama':
        """360 by 180 degrees; the middle column looks to ``heading_deg``."""
        height, width = rgb.shape[:2]
        return cls(rgb, heading_deg, (width - 1) / 2, (height - 1) / 2,
                   (360.0 / width, 180.0 / height))

    def cut(self, heading_deg: float, height_m: float = STREET_VIEW_HEIGHT_M) -> CameraImage:
        """A level pinhole view to a compass heading; lower where the panorama ends higher."""
        height, width = self.rgb.shape[:2]
        focal_px = VIEW_PX[0] / 2 / math.tan(math.radians(VIEW_WIDTH_DEG / 2))
        lowest_deg = (height - 0.5 - self.horizon_row) * self.deg_per_px[1]
        rows = VIEW_PX[1]
        if lowest_deg < 85.0:
            rows = min(rows, int(HORIZON_ROW_PX + focal_px * math.tan(math.radians(lowest_deg))))
        x = (np.arange(VIEW_PX[0]) - (VIEW_PX[0] - 1) / 2)[None, :] / focal_px
        y = (np.arange(rows) - HORIZON_ROW_PX)[:, None] / focal_px
        right_deg = np.degrees(np.arctan(x))
        down_deg = np.degrees(np.arctan2(y, np.hypot(x, 1.0)))
        turn_deg = (heading_deg - self.heading_deg + 180.0) % 360.0 - 180.0
        u = self.middle_col + (turn_deg + right_deg) / self.deg_per_px[0]
        v = self.horizon_row + down_deg / self.deg_per_px[1]
        source = self.rgb
        if width * self.deg_per_px[0] > 359.0:   # closed: columns go on at the other side
            source = np.concatenate((source, source[:, :2]), 1)
            u = u % width
        u, v = np.broadcast_arrays(u, v)
        rgb = cv2.remap(source, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR,
                        borderMode=cv2.BORDER_REPLICATE)
        mounting = np.eye(4)
        mounting[:3, :3] = CAMERA_AXES
        mounting[2, 3] = height_m
        return CameraImage(0, rgb, CameraModel(
            VIEW_PX[0], rows, focal_px, focal_px, (VIEW_PX[0] - 1) / 2, HORIZON_ROW_PX, mounting,
            height_m))

    def all_round(self) -> Iterator[tuple[float, CameraImage]]:
        """Views every VIEW_STEP_DEG from the middle column's heading on, with their headings."""
        for turn_deg in np.arange(0.0, 360.0, VIEW_STEP_DEG):
            heading_deg = (self.heading_deg + float(turn_deg)) % 360.0
            yield heading_deg, self.cut(heading_deg)


def yaw_from_heading(heading_deg: float, up_deg: float = 0.0) -> float:
    """Yaw in an overhead picture whose upper edge lies to the compass direction ``up_deg``."""
    return wrap_angle(math.pi / 2 - math.radians(heading_deg - up_deg))


def read_rgb(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) RGB uint8."""
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError(f'{path} cannot be read as an image; expected a PNG or JPEG file')
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def image_pairs(folder: Path) -> list[tuple[str, Path, Path]]:
    """Name, ground and aerial picture of all places of which a folder has both."""
    ground, aerial = (
        {path.stem: path for path in sorted((folder / part).glob('*'))
         if path.suffix.lower() in SUFFIXES} for part in ('ground', 'aerial'))
    found = [(name, ground[name], aerial[name]) for name in ground if name in aerial]
    if not found:
        raise ValueError(f'{folder} has no pairs; expected ground/NAME.png and aerial/NAME.png')
    return found


def read_cvact(folder: Path) -> Iterator[View]:
    """CVACT, panoramas that look north over tiles 73 m wide, in either size."""
    for name, ground, aerial in image_pairs(folder):
        rgb = read_rgb(aerial)
        overhead = Overhead(name, rgb, CVACT_TILE_M / rgb.shape[1])
        x_m, y_m, accuracy_m = CVACT_MEASURED.get(name, (0.0, 0.0, CVACT_ACCURACY_M))
        panorama = Panorama.whole(read_rgb(ground), 0.0)
        yield from _views_all_round(
            folder.name, name, panorama, overhead, (x_m, y_m), accuracy_m, 8.0)


def read_cvusa_native(folder: Path) -> Iterator[View]:
    """CVUSA: strips of panoramas that look north, over Bing tiles."""
    for name, ground, aerial in image_pairs(folder):
        rgb = read_rgb(ground)
        panorama = Panorama(rgb, 0.0, (rgb.shape[1] - 1) / 2, CVUSA_HORIZON_ROW,
                            (CVUSA_DEG_PER_PX, CVUSA_DEG_PER_PX))
        overhead = Overhead(name, read_rgb(aerial), CVUSA_PX_M)
        yield from _views_all_round(
            folder.name, name, panorama, overhead, (0.0, 0.0), CVUSA_ACCURACY_M, 18.5)


def read_cvusa_crop(folder: Path) -> Iterator[View]:
    """Of a CVUSA strip columns 0 to 308 and all 224 rows, each resized to 256, heading 225.

    The aerial picture is the middle 222 pixels of the 750.  It is 51 m wide.
    """
    for name, ground, aerial in image_pairs(folder):
        rgb = read_rgb(ground)
        height, width = rgb.shape[:2]
        panorama = Panorama(
            rgb, 225.0, (width - 1) / 2, (CVUSA_HORIZON_ROW + 0.5) * height / 224 - 0.5,
            (CVUSA_DEG_PER_PX * 308 / width, CVUSA_DEG_PER_PX * 224 / height))
        picture = read_rgb(aerial)
        overhead = Overhead(name, picture, CVUSA_PX_M * 222 / picture.shape[1])
        yield View(folder.name, name, panorama.cut(225.0), overhead,
                   Pose2D(0.0, 0.0, yaw_from_heading(225.0)), CVUSA_ACCURACY_M, 8.0)


def read_dayton(folder: Path) -> Iterator[View]:
    """Dayton, in three sets by how well the pose is known; tiles are turned, heading up.

    Corners that the turning left black show nothing.
    """
    for line in read_table(folder / 'poses.csv'):
        name, quality = line['name'], line['pose_quality']
        rgb = read_rgb(_picture(folder / 'ground', name))
        heading_deg, step_deg = float(line['heading_deg_cw']), float(line['ground_deg_per_px']
                                                                      or 0.5)
        middle = (rgb.shape[0] - 1) / 2
        panorama = Panorama(
            rgb, heading_deg, (rgb.shape[1] - 1) / 2,
            middle - float(line['pitch_down_deg']) / step_deg, (step_deg, step_deg))
        picture = read_rgb(_picture(folder / 'aerial', name))
        overhead = Overhead(name, picture, DAYTON_PX_M, _without_black_corners(picture))
        col_px = float(line['cam_px_col'] or middle)
        row_px = float(line['cam_px_row'] or DAYTON_TYPICAL_ROW)
        yield View(
            f'dayton_{quality}', name, panorama.cut(heading_deg), overhead,
            Pose2D(*overhead.xy_from_col_row(col_px, row_px),
                   yaw_from_heading(heading_deg, up_deg=heading_deg)),
            DAYTON_ACCURACY_M[quality], 8.0, quality != 'unknown_range')


def read_london(folder: Path) -> Iterator[View]:
    """Street View panoramas of London over WorldView tiles."""
    for line in read_table(folder / 'poses.csv'):
        name = line['name']
        overhead = Overhead(name, read_rgb(_picture(folder / 'aerial', name)), LONDON_PX_M)
        panorama = Panorama.whole(
            read_rgb(_picture(folder / 'ground', name)),
            float(line['heading_deg_cw_of_pano_centre']))
        yield from _views_all_round(
            folder.name, name, panorama, overhead, (0.0, 0.0), LONDON_ACCURACY_M, 12.0)


def read_nuscenes(folder: Path) -> Iterator[View]:
    """The cameras of one nuScenes sample; the first tile's centre is where the LIDAR was.

    Each camera has its own base_link: beneath it, x along its optical axis.
    """
    tables = {name: {row['token']: row for row in json.loads(
        (folder / 'tables' / f'{name}.json').read_text())}
        for name in ('sample_data', 'ego_pose', 'calibrated_sensor')}
    overhead = Overhead(
        folder.name, read_rgb(folder / 'aerial/sat_map_origin_0.png'), NUSCENES_PX_M)

    def ego_of(row) -> dict:
        return tables['ego_pose'][row['ego_pose_token']]

    rows = list(tables['sample_data'].values())
    origin_m = next(np.array(ego_of(row)['translation']) for row in rows
                    if 'LIDAR_TOP' in row['filename'])
    for path in sorted((folder / 'cameras').glob('*.jpg')):
        row = next(r for r in rows if path.stem.split('__')[-1] in r['filename']
                   and path.stem.split('__')[-2] == Path(r['filename']).parent.name)
        ego, sensor = ego_of(row), tables['calibrated_sensor'][row['calibrated_sensor_token']]
        ego_yaw = yaw_of(rotation(ego['rotation']))
        base_from_camera = rotation(sensor['rotation'])
        place_m = np.array(sensor['translation'])
        turn = yaw_of(base_from_camera @ CAMERA_AXES.T)
        level = rotation((math.cos(turn / 2), 0.0, 0.0, -math.sin(turn / 2)))
        mounting = np.eye(4)
        mounting[:3, :3] = level @ base_from_camera
        mounting[2, 3] = place_m[2]
        k = np.array(sensor['camera_intrinsic'])
        rgb = read_rgb(path)
        camera = CameraModel(rgb.shape[1], rgb.shape[0], k[0, 0], k[1, 1], k[0, 2], k[1, 2],
                             mounting, float(place_m[2]))
        offset_m = np.array(ego['translation'])[:2] - origin_m[:2]
        foot = Pose2D(*offset_m, ego_yaw) @ Pose2D(*place_m[:2], turn)
        yield View(folder.name, path.stem.split('__')[-2], CameraImage(0, rgb, camera), overhead,
                   foot, NUSCENES_ACCURACY_M, 12.0)


def read_neutral(table: Path) -> Iterator[View]:
    """The neutral format: a line for each view, paths relative to the file.

    ``set, name, image, overhead, px_m, fx_px, fy_px, cx_px, cy_px, height_m, pitch_down_deg,
    roll_right_deg, col_px, row_px, heading_deg, up_deg, accuracy_m, prior_m``: the overhead
    picture's metres a pixel and the compass direction of its upper edge; the camera's undistorted
    intrinsics, height above the road, pitch (positive nose down) and roll (positive to the
    right); the pixel of the overhead picture above which it stands, and the compass heading of
    its optical axis.
    """
    overheads: dict[Path, Overhead] = {}
    for line in read_table(table):
        path = (table.parent / line['overhead']).resolve()
        px_m = float(line['px_m'])
        if path not in overheads:
            overheads[path] = Overhead(line['overhead'], read_rgb(path), px_m)
        overhead = overheads[path]
        rgb = read_rgb(table.parent / line['image'])
        pitch, roll = (math.radians(float(line[key] or 0.0))
                       for key in ('pitch_down_deg', 'roll_right_deg'))
        mounting = np.eye(4)
        mounting[:3, :3] = (
            rotation((math.cos(pitch / 2), 0.0, math.sin(pitch / 2), 0.0))
            @ rotation((math.cos(roll / 2), math.sin(roll / 2), 0.0, 0.0)) @ CAMERA_AXES)
        mounting[2, 3] = height_m = float(line['height_m'])
        camera = CameraModel(
            rgb.shape[1], rgb.shape[0],
            *(float(line[key]) for key in ('fx_px', 'fy_px', 'cx_px', 'cy_px')), mounting, height_m)
        x_m, y_m = overhead.xy_from_col_row(float(line['col_px']), float(line['row_px']))
        yaw = yaw_from_heading(float(line['heading_deg']), float(line['up_deg'] or 0.0))
        yield View(line['set'], line['name'], CameraImage(0, rgb, camera), overhead,
                   Pose2D(x_m, y_m, yaw), float(line['accuracy_m']), float(line['prior_m']))


READERS: dict[str, Callable[[Path], Iterator[View]]] = {
    'cvact_*': read_cvact, 'cvusa_native': read_cvusa_native, 'cvusa_crop256': read_cvusa_crop,
    'dayton': read_dayton, 'london': read_london, 'nuscenes_*': read_nuscenes,
}


def read_views(folder: str | Path) -> list[View]:
    """All views of a folder of pairs; folders with other names are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f'{folder} is no folder; expected one with real_pairs')
    found = []
    for part in sorted(path for path in (folder, *folder.iterdir()) if path.is_dir()):
        for pattern, reader in READERS.items():
            if part.match(pattern) and part != folder:
                found += reader(part)
        if (part / 'views.csv').is_file():
            found += read_neutral(part / 'views.csv')
    if not found:
        raise ValueError(f'{folder} holds no pairs; expected one of {", ".join(READERS)} or a '
                         'views.csv')
    return found


def read_table(path: Path) -> list[dict[str, str]]:
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def rotation(quaternion) -> np.ndarray:
    """The matrix of a unit quaternion w, x, y, z."""
    w, x, y, z = quaternion
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]])


def yaw_of(matrix: np.ndarray) -> float:
    """The heading of a frame's x axis."""
    return math.atan2(matrix[1, 0], matrix[0, 0])


def _picture(folder: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        if (folder / f'{name}{suffix}').is_file():
            return folder / f'{name}{suffix}'
    raise FileNotFoundError(f'{folder}/{name}.png does not exist; expected it after poses.csv')


def _views_all_round(set_name: str, name: str, panorama: Panorama, overhead: Overhead,
                     place_m: tuple[float, float], accuracy_m: float, prior_m: float):
    for heading_deg, image in panorama.all_round():
        yield View(set_name, f'{name}_{heading_deg:.0f}', image, overhead,
                   Pose2D(*place_m, yaw_from_heading(heading_deg)), accuracy_m, prior_m)


def _without_black_corners(rgb: np.ndarray) -> np.ndarray | None:
    """Mask of the picture without black areas at its corners; None where there are none."""
    dark = (rgb.max(2) < 12).astype(np.uint8)
    count, labels = cv2.connectedComponents(dark)
    corners = {int(labels[r, c]) for r in (0, -1) for c in (0, -1)} - {0}
    if not corners:
        return None
    known = ~np.isin(labels, list(corners)) | (dark == 0)
    return cv2.erode(known.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
