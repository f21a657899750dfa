"""Real street pictures, each with an overhead picture of its place, as records of one kind.

A ``View`` is one pinhole image with its camera, the overhead picture it belongs to, and the true
pose in that picture's own axes: x to the right, y up, metres, from the picture's centre.
``read_views`` reads the folders that docs/real_pairs.md describes, and ``views.csv`` files of the
neutral format, which has one line for each view.

Panoramas are equirectangular.  Views 80 degrees wide are cut from them, one every 45 degrees, with
the horizon so high that the road is seen from about 4 m ahead.
"""

from collections.abc import Callable, Iterator
import csv
from dataclasses import dataclass
import json
import math
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from crossview_localizer.datatypes import CameraImage, CameraModel
from crossview_localizer.geometry import Pose2D, wrap_angle

VIEW_PX = (480, 300)          # width, height of a view that is cut from a panorama
VIEW_WIDTH_DEG = 80.0
VIEW_STEP_DEG = 45.0
HORIZON_ROW = 120.0           # of the 300: the lowest row looks 32 degrees down
# base_from_camera of a level camera that looks ahead.
LEVEL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
SUFFIXES = ('.png', '.jpg', '.jpeg')

# Height of a Street View car's camera above the road: 2.7 to 2.9 m in CVACT and Dayton, whose
# scales are known, by laying the flat-ground view over the overhead picture.
STREET_VIEW_HEIGHT_M = 2.8
CVACT_TILE_M = 1200 * 0.0609      # side of an original tile
CVACT_ALIGNED_SHARE = 206 / 256   # tiles of 256 pixels are aligned crops (Shi et al., 2022)
CVACT_ACCURACY_M = 2.0
CVUSA_PX_M = 0.23                 # 0.2986 cos(latitude) with the latitude unknown: +-12 percent
CVUSA_DEG_PER_PX = 360.0 / 1232
CVUSA_HORIZON_ROW = 132.0
CVUSA_ACCURACY_M = 4.0
DAYTON_PX_M = 0.2295
DAYTON_ACCURACY_M = 1.5           # of the panoramas' published places
DAYTON_TYPICAL_ROW = 180.0        # of a camera whose distance from the tile's centre is unknown
LONDON_PX_M, LONDON_ACCURACY_M = 0.5, 3.0
NUSCENES_PX_M, NUSCENES_ACCURACY_M = 0.2985, 1.5
# Half widths of the prior, m.  A view reaches 32 m: a tile of 50 to 73 m has room for 8 m only.
SMALL_TILE_PRIOR_M, LONDON_PRIOR_M, NUSCENES_PRIOR_M, CVUSA_PRIOR_M = 8.0, 12.0, 12.0, 18.5

# Places measured by hand: the camera's metres east and north of where its folder has it, and how
# well that is known.  Dayton's names are of panoramas, all views of which share their error.
MEASURED = {
    '2-6Pro9zN1qOxbFSTigfAg': (1.4, -1.75, 0.3), '__-DFIFxvZBCn1873qkqXA': (0.75, 2.1, 0.5),
    'oricnn_sample': (1.5, 6.3, 0.5),
    'VAMM6sIEbYAY5E6ZD_RMKg': (0.0, -0.25, 0.5), 'pPfo7qQ1fP_24rXrJ2Uxog': (0.25, 0.4, 0.5),
    '0000025': (-3.0, -0.3, 0.7), '0000027': (0.5, 3.0, 0.7), '0000035': (-5.3, 5.3, 1.0),
    '0000037': (0.2, 2.1, 0.5), '0000039': (-1.5, -4.9, 0.7), '0000044': (-0.25, 0.5, 0.5),
    '-0n6gItL08Q522U_x0UKaA': (-1.75, -0.75, 0.5), '4AyrBfjG-6ZbAa_uD57LcQ': (-0.75, -0.75, 0.5),
    '3Jzl3r0yqwdVqN48Za6-Tw': (-3.5, -2.75, 0.7),
}
# Compass heading of the middle of panoramas that do not look north, measured in the same way: the
# kerbs, the island and the lines of this junction lie over those of its tile if it looks east.
HEADINGS_DEG = {'oricnn_sample': 90.0}

DAYTON_COLUMNS = ('name', 'pano_id', 'heading_deg_cw', 'pitch_down_deg', 'cam_px_col',
                  'cam_px_row', 'ground_deg_per_px', 'pose_quality')
LONDON_COLUMNS = ('name', 'heading_deg_cw_of_pano_centre')
NEUTRAL_COLUMNS = (
    'set', 'name', 'image', 'fx_px', 'fy_px', 'cx_px', 'cy_px', 'height_m', 'pitch_down_deg',
    'roll_right_deg', 'overhead', 'px_m', 'up_deg', 'col_px', 'row_px', 'heading_deg',
    'accuracy_m', 'prior_m')


@dataclass(frozen=True, eq=False)
class Overhead:
    """An overhead picture (H, W, 3) RGB; ``known`` (H, W) is False where it shows nothing."""

    name: str
    rgb: np.ndarray
    px_m: float
    known: np.ndarray | None = None

    def xy_from_col_row(self, col_px: float, row_px: float) -> tuple[float, float]:
        """Metres right of and above the picture's centre, of a pixel."""
        height, width = self.rgb.shape[:2]
        return (col_px - (width - 1) / 2) * self.px_m, ((height - 1) / 2 - row_px) * self.px_m


@dataclass(frozen=True, eq=False)
class View:
    """One image and where it was taken.

    ``truth`` is the pose of base_link, which here is the point of the road beneath the camera with
    x along the optical axis, in the axes of ``overhead``.  ``accuracy_m`` is how well that place
    is known, ``prior_m`` the half width of the prior that the overhead picture has room for.  If
    ``range_known`` is False the place along the heading is a guess.
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
    """An equirectangular picture, or a part of one.

    Column u looks to the compass heading ``heading_deg + (u - middle_col) * deg_per_px[0]``, row v
    down by ``(v - horizon_row) * deg_per_px[1]``.
    """

    rgb: np.ndarray
    heading_deg: float
    middle_col: float
    horizon_row: float
    deg_per_px: tuple[float, float]

    @classmethod
    def whole(cls, rgb: np.ndarray, heading_deg: float) -> 'Panorama':
        """360 by 180 degrees; the middle looks to ``heading_deg``."""
        height, width = rgb.shape[:2]
        return cls(rgb, heading_deg, (width - 1) / 2, (height - 1) / 2,
                   (360.0 / width, 180.0 / height))

    def cut(self, heading_deg: float) -> CameraImage:
        """A level view towards a heading; with fewer rows if the panorama ends above."""
        height, width = self.rgb.shape[:2]
        focal_px = VIEW_PX[0] / 2 / math.tan(math.radians(VIEW_WIDTH_DEG / 2))
        lowest_deg = min(80.0, (height - 0.5 - self.horizon_row) * self.deg_per_px[1])
        rows = min(VIEW_PX[1],
                   int(HORIZON_ROW + focal_px * math.tan(math.radians(lowest_deg))))
        x = (np.arange(VIEW_PX[0]) - (VIEW_PX[0] - 1) / 2)[None, :] / focal_px
        y = (np.arange(rows) - HORIZON_ROW)[:, None] / focal_px
        turn_deg = (heading_deg - self.heading_deg + 180.0) % 360.0 - 180.0
        u = self.middle_col + (turn_deg + np.degrees(np.arctan(x))) / self.deg_per_px[0]
        v = self.horizon_row + np.degrees(np.arctan2(y, np.hypot(x, 1.0))) / self.deg_per_px[1]
        source = self.rgb
        if width * self.deg_per_px[0] > 359.0:   # continues at its other side
            source, u = np.concatenate((source, source[:, :2]), 1), u % width
        u, v = np.broadcast_arrays(u, v)
        rgb = cv2.remap(source, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR,
                        borderMode=cv2.BORDER_REPLICATE)
        camera = CameraModel(
            VIEW_PX[0], rows, focal_px, focal_px, (VIEW_PX[0] - 1) / 2, HORIZON_ROW,
            mounting(LEVEL, STREET_VIEW_HEIGHT_M), STREET_VIEW_HEIGHT_M)
        return CameraImage(0, rgb, camera)


def read_views(folder: str | Path) -> list[View]:
    """All views of a folder of pairs; folders with unknown names are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f'{folder} is no folder; expected one of real pairs (docs/real_pairs.md)')
    found = []
    for part in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        for pattern, reader in READERS.items():
            if part.match(pattern):
                found += reader(part)
        if (part / 'views.csv').is_file():
            found += read_neutral(part / 'views.csv')
    if not found:
        raise ValueError(f'{folder} holds no pairs; expected folders {", ".join(READERS)} or a '
                         'views.csv (docs/real_pairs.md)')
    return found


def read_cvact(folder: Path) -> Iterator[View]:
    """Panoramas that look north or as HEADINGS_DEG has it.

    Tiles of 256 pixels show 59 m, larger ones 73 m.
    """
    for name, ground, aerial in image_pairs(folder):
        rgb = read_rgb(aerial)
        tile_m = CVACT_TILE_M * (CVACT_ALIGNED_SHARE if rgb.shape[1] == 256 else 1.0)
        yield from views_all_round(
            folder.name, name, Panorama.whole(read_rgb(ground), HEADINGS_DEG.get(name, 0.0)),
            Overhead(name, rgb, tile_m / rgb.shape[1]), CVACT_ACCURACY_M, SMALL_TILE_PRIOR_M)


def read_cvusa_native(folder: Path) -> Iterator[View]:
    """Strips of panoramas that look north, over tiles of Bing."""
    for name, ground, aerial in image_pairs(folder):
        rgb = read_rgb(ground)
        strip = Panorama(rgb, 0.0, (rgb.shape[1] - 1) / 2, CVUSA_HORIZON_ROW,
                         (CVUSA_DEG_PER_PX, CVUSA_DEG_PER_PX))
        yield from views_all_round(
            folder.name, name, strip, Overhead(name, read_rgb(aerial), CVUSA_PX_M),
            CVUSA_ACCURACY_M, CVUSA_PRIOR_M)


def read_cvusa_crop(folder: Path) -> Iterator[View]:
    """Columns 0 to 308 of such strips and all their 224 rows, each resized to 256; heading 225.

    The aerial picture is the middle 222 pixels of the tile's 750: 51 m.
    """
    for name, ground, aerial in image_pairs(folder):
        rgb = read_rgb(ground)
        height, width = rgb.shape[:2]
        crop = Panorama(
            rgb, 225.0, (width - 1) / 2, (CVUSA_HORIZON_ROW + 0.5) * height / 224 - 0.5,
            (CVUSA_DEG_PER_PX * 308 / width, CVUSA_DEG_PER_PX * 224 / height))
        picture = read_rgb(aerial)
        overhead = Overhead(name, picture, CVUSA_PX_M * 222 / picture.shape[1])
        x_m, y_m, accuracy_m = MEASURED.get(name, (0.0, 0.0, CVUSA_ACCURACY_M))
        yield View(folder.name, name, crop.cut(225.0), overhead,
                   Pose2D(x_m, y_m, yaw_from_heading(225.0)), accuracy_m, SMALL_TILE_PRIOR_M)


def read_dayton(folder: Path) -> Iterator[View]:
    """Crops of panoramas over tiles that are turned: the heading points up.

    A set for each ``pose_quality``.  Corners that the turning left black show nothing.
    """
    for line in read_table(folder / 'poses.csv', DAYTON_COLUMNS):
        name, quality = line['name'], line['pose_quality']
        heading_deg = number(line, 'heading_deg_cw')
        rgb, picture = (read_rgb(picture_of(folder / part, name)) for part in ('ground', 'aerial'))
        step_deg = number(line, 'ground_deg_per_px', 0.5)
        crop = Panorama(
            rgb, heading_deg, (rgb.shape[1] - 1) / 2,
            (rgb.shape[0] - 1) / 2 - number(line, 'pitch_down_deg') / step_deg,
            (step_deg, step_deg))
        overhead = Overhead(name, picture, DAYTON_PX_M, without_black_corners(picture))
        x_m, y_m = overhead.xy_from_col_row(
            number(line, 'cam_px_col'), number(line, 'cam_px_row', DAYTON_TYPICAL_ROW))
        east_m, north_m, accuracy_m = MEASURED.get(
            line['pano_id'], (0.0, 0.0, DAYTON_ACCURACY_M))
        # From compass axes to the picture's, whose upper edge lies to the heading.
        stated = Pose2D(x_m, y_m, math.radians(heading_deg))
        x_m, y_m = map(float, stated.transform(np.array([east_m, north_m])))
        yield View(
            f'dayton_{quality}', name, crop.cut(heading_deg), overhead,
            Pose2D(x_m, y_m, yaw_from_heading(heading_deg, heading_deg)), accuracy_m,
            SMALL_TILE_PRIOR_M, quality != 'unknown_range')


def read_london(folder: Path) -> Iterator[View]:
    """Street View panoramas over tiles of WorldView."""
    for line in read_table(folder / 'poses.csv', LONDON_COLUMNS):
        ground, aerial = (
            read_rgb(picture_of(folder / part, line['name'])) for part in ('ground', 'aerial'))
        yield from views_all_round(
            folder.name, line['name'],
            Panorama.whole(ground, number(line, 'heading_deg_cw_of_pano_centre')),
            Overhead(line['name'], aerial, LONDON_PX_M), LONDON_ACCURACY_M, LONDON_PRIOR_M)


def read_nuscenes(folder: Path) -> Iterator[View]:
    """The cameras of one sample; the first tile's centre is the vehicle when the LIDAR turned.

    The vehicle's frame lies on the road beneath its rear axle.  Each camera gets a base_link of
    its own, beneath it.
    """
    overhead = Overhead(
        folder.name, read_rgb(folder / 'aerial/sat_map_origin_0.png'), NUSCENES_PX_M)
    try:
        tables = {name: {row['token']: row for row in json.loads(
            (folder / 'tables' / f'{name}.json').read_text())}
            for name in ('sample_data', 'ego_pose', 'calibrated_sensor')}
        taken = {Path(row['filename']).name: (
            tables['ego_pose'][row['ego_pose_token']],
            tables['calibrated_sensor'][row['calibrated_sensor_token']])
            for row in tables['sample_data'].values()}
        origin_m = next(np.array(ego['translation'][:2]) for name, (ego, _) in taken.items()
                        if 'LIDAR_TOP' in name)
        for path in sorted((folder / 'cameras').glob('*.jpg')):
            ego, sensor = taken[path.name]
            vehicle = Pose2D(*(np.array(ego['translation'][:2]) - origin_m),
                             yaw_of(rotation(ego['rotation'])))
            vehicle_from_camera = rotation(sensor['rotation'])
            x_m, y_m, height_m = sensor['translation']
            turn_rad = yaw_of(vehicle_from_camera @ LEVEL.T)
            (fx_px, _, cx_px), (_, fy_px, cy_px), _ = sensor['camera_intrinsic']
            rgb = read_rgb(path)
            camera = CameraModel(
                rgb.shape[1], rgb.shape[0], fx_px, fy_px, cx_px, cy_px,
                mounting(Rotation.from_euler('z', -turn_rad).as_matrix() @ vehicle_from_camera,
                         height_m), height_m)
            yield View(
                folder.name, path.name.split('__')[1], CameraImage(0, rgb, camera), overhead,
                vehicle @ Pose2D(x_m, y_m, turn_rad), NUSCENES_ACCURACY_M, NUSCENES_PRIOR_M)
    except (KeyError, StopIteration) as error:
        raise ValueError(f'{folder}/tables say nothing of {error or "LIDAR_TOP"}; expected the '
                         'nuScenes tables of all pictures in cameras/') from error


def read_neutral(table: Path) -> Iterator[View]:
    """One line for each view, NEUTRAL_COLUMNS, with paths relative to the file.

    The camera's intrinsics are of the undistorted image; ``pitch_down_deg`` is positive nose down,
    ``roll_right_deg`` positive with the right side down, ``up_deg`` the compass direction of the
    overhead picture's upper edge (each 0 where empty).  ``col_px`` and ``row_px`` are the pixel of
    the overhead picture beneath the camera, ``heading_deg`` the compass heading of its axis.
    """
    overheads: dict[tuple[str, float], Overhead] = {}
    for line in read_table(table, NEUTRAL_COLUMNS):
        key = line['overhead'], number(line, 'px_m')
        if key not in overheads:
            overheads[key] = Overhead(key[0], read_rgb(table.parent / key[0]), key[1])
        overhead = overheads[key]
        rgb = read_rgb(table.parent / line['image'])
        tilt = Rotation.from_euler('YX', [
            number(line, column, 0.0) for column in ('pitch_down_deg', 'roll_right_deg')],
            degrees=True)
        height_m = number(line, 'height_m')
        camera = CameraModel(
            rgb.shape[1], rgb.shape[0],
            *(number(line, column) for column in ('fx_px', 'fy_px', 'cx_px', 'cy_px')),
            mounting(tilt.as_matrix() @ LEVEL, height_m), height_m)
        x_m, y_m = overhead.xy_from_col_row(number(line, 'col_px'), number(line, 'row_px'))
        yaw_rad = yaw_from_heading(number(line, 'heading_deg'), number(line, 'up_deg', 0.0))
        yield View(line['set'], line['name'], CameraImage(0, rgb, camera), overhead,
                   Pose2D(x_m, y_m, yaw_rad), number(line, 'accuracy_m'), number(line, 'prior_m'))


# Names of folders and what reads them.
READERS: dict[str, Callable[[Path], Iterator[View]]] = {
    'cvact_*': read_cvact, 'cvusa_native': read_cvusa_native, 'cvusa_crop256': read_cvusa_crop,
    'dayton': read_dayton, 'london': read_london, 'nuscenes_*': read_nuscenes,
}


def views_all_round(set_name: str, name: str, panorama: Panorama, overhead: Overhead,
                    accuracy_m: float, prior_m: float) -> Iterator[View]:
    """Views every VIEW_STEP_DEG, with the camera above the tile's centre or where it was measured.
    """
    x_m, y_m, accuracy_m = MEASURED.get(name, (0.0, 0.0, accuracy_m))
    for turn_deg in np.arange(0.0, 360.0, VIEW_STEP_DEG):
        heading_deg = (panorama.heading_deg + float(turn_deg)) % 360.0
        yield View(set_name, f'{name}_{heading_deg:.0f}', panorama.cut(heading_deg), overhead,
                   Pose2D(x_m, y_m, yaw_from_heading(heading_deg)), accuracy_m, prior_m)


def image_pairs(folder: Path) -> list[tuple[str, Path, Path]]:
    """Name, ground picture and aerial picture of each place of which a folder has both."""
    ground, aerial = (
        {path.stem: path for path in sorted((folder / part).glob('*'))
         if path.suffix.lower() in SUFFIXES} for part in ('ground', 'aerial'))
    found = [(name, ground[name], aerial[name]) for name in ground if name in aerial]
    if not found:
        raise ValueError(f'{folder} has no pairs; expected ground/NAME.png and aerial/NAME.png')
    return found


def picture_of(folder: Path, name: str) -> Path:
    for suffix in SUFFIXES:
        if (folder / f'{name}{suffix}').is_file():
            return folder / f'{name}{suffix}'
    raise FileNotFoundError(f'{folder}/{name}.png does not exist; its poses.csv names it')


def read_rgb(path: Path) -> np.ndarray:
    """An image file as (H, W, 3) uint8."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; expected an image')
    found = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if found is None:
        raise ValueError(f'{path} cannot be read; expected a PNG or JPEG image')
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def read_table(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """The lines of a CSV file that has at least these columns."""
    with open(path, newline='') as file:
        reader = csv.DictReader(file)
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f'{path} has no column {", ".join(missing)}; expected '
                             f'{", ".join(columns)}')
        return list(reader)


def number(line: dict[str, str], column: str, default: float | None = None) -> float:
    """The number in a cell of a line; ``default``, if given, for an empty cell."""
    text = line[column]
    if not text and default is not None:
        return default
    try:
        return float(text)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f'{column} of {line["name"]} is {text!r}; expected a number') from error


def without_black_corners(rgb: np.ndarray) -> np.ndarray | None:
    """False in the black areas that touch the corners; None if there are none."""
    dark = (rgb.max(2) < 12).astype(np.uint8)
    _, labels = cv2.connectedComponents(dark)
    corners = {int(labels[row, col]) for row in (0, -1) for col in (0, -1)} - {0}
    if not corners:
        return None
    known = ~np.isin(labels, list(corners))
    return cv2.erode(known.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def yaw_from_heading(heading_deg: float, up_deg: float = 0.0) -> float:
    """Yaw in an overhead picture whose upper edge lies to the compass direction ``up_deg``."""
    return wrap_angle(math.pi / 2 - math.radians(heading_deg - up_deg))


def mounting(base_from_camera: np.ndarray, height_m: float) -> np.ndarray:
    """The (4, 4) transform of a camera straight above base_link."""
    found = np.eye(4)
    found[:3, :3] = base_from_camera
    found[2, 3] = height_m
    return found


def rotation(quaternion) -> np.ndarray:
    """The matrix of a unit quaternion w, x, y, z."""
    w, *xyz = quaternion
    return Rotation.from_quat([*xyz, w]).as_matrix()


def yaw_of(matrix: np.ndarray) -> float:
    """The heading of a frame's x axis."""
    return math.atan2(matrix[1, 0], matrix[0, 0])
