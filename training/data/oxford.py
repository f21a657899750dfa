"""Oxford RobotCar as the papers use it: their split files, or raw traversals, and imagery.

The places come from one of

- split files, one line per place in any order: ``DATE/ground/E_N.png DATE/satellite/E_N.png E N``
  (UTM zone 30U, metres), optionally with files in the same order of lines: lookup files
  ``DATE/stereo/centre/STAMP.png DATE/ground/E_N.png`` for the times (microseconds) and ``.npy``
  files of RTK yaw for the headings (both published with CrossViewMetricLocalization);
- raw traversals with ``rtk.csv``, from which frames 5 m apart are taken.

The ground images are crops of 1200x800 below the root of the split files, or the raw Bayer
frames. The satellite tiles are files of 600x600 below that root, or are cut from georeferenced
imagery.

Positions in the split files are those of the INS at the nearest RTK row: 1.7 m behind the camera.
``read_raw`` interpolates the RTK poses and moves them to the camera, unless told to do as the
papers did.
"""

import argparse
from dataclasses import dataclass, replace
from functools import partial
import math
from pathlib import Path
import re
import sys
import warnings

import cv2
import numpy as np

from crossview_localizer.bags import robotcar, robotcar_images, robotcar_tracks
from crossview_localizer.camera.views import camera_view, CAMERA_VIEW_PX
from crossview_localizer.command import run_command
from crossview_localizer.geometry import MapGrid, wrap_angle
from training.data.datasets import Places, read_rgb, read_some, tile_around

SPLITS = ('train', 'val', 'test')
UTM_ZONE = '30U'
PX_M = 0.09240351462361521             # a pixel of Google's zoom 20 at Oxford
TILE_M = 600 * PX_M                    # a published tile
TILE_PX = 256                          # the side at which the network takes it
SPACING_M = 5.0
# A larger share of missing ground images means that the folder is the wrong one.
MAX_MISSING = 0.02
MAX_RASTER_PX = 400e6
# What PROJ states for the British National Grid with the grid file OSTN15 (2 m without it).
MAX_CRS_ERROR_M = 1.0

# Control points of the stitched map that CrossViewMetricLocalization published
# (satellite_map_new.png, 17000 x 20000): easting, northing (m) and column, row.
STITCHED_MAP_PX = (17000, 20000)
STITCHED_MAP_POINTS = np.array([
    (619400, 5736195, 900, 900), (619400, 5734600, 492, 18168), (620795, 5736195, 15966, 1260),
    (620795, 5734600, 15553, 18528), (620100, 5735400, 8255, 9688)], float)


@dataclass(frozen=True)
class Entries:
    """Lines of split files, or frames of raw traversals.

    ``ground`` and ``satellite`` (n,) are paths below a root, ``positions_m`` (n, 2) UTM metres,
    ``yaw_rad`` (n,) headings counter-clockwise from the UTM grid's east (NaN where unknown),
    ``stamp_us`` (n,) -1 where unknown.
    """

    split: np.ndarray
    drive: np.ndarray
    ground: np.ndarray
    satellite: np.ndarray
    positions_m: np.ndarray
    yaw_rad: np.ndarray
    stamp_us: np.ndarray

    def __len__(self) -> int:
        return len(self.ground)


def read_split(path: str | Path, split: str, lookup: str | Path | None = None,
               yaw: str | Path | None = None) -> Entries:
    """One split file, with its lookup and yaw files if given.

    Raises ValueError with file and line for anything that does not have the format, or if the
    lookup or yaw file belongs to another split.
    """
    if split not in SPLITS:
        raise ValueError(f'split {split!r}; expected one of {", ".join(SPLITS)}')
    lines = _lines(path, 4, 'DATE/ground/E_N.png DATE/satellite/E_N.png E N')
    positions_m = np.empty((len(lines), 2))
    for number, line in enumerate(lines, 1):
        try:
            positions_m[number - 1] = float(line[2]), float(line[3])
        except ValueError as error:
            raise ValueError(f'{path}, line {number}: {error}; expected UTM metres') from error
        drive = line[0].split('/')[0]
        if not re.fullmatch(r'[^/]+/ground/[^/]+\.\w+', line[0]) \
                or not re.fullmatch(r'[^/]+/satellite/[^/]+\.\w+', line[1]) \
                or line[1].split('/')[0] != drive:
            raise ValueError(
                f'{path}, line {number}: {line[0]} {line[1]}; expected DATE/ground/E_N.png and '
                'DATE/satellite/E_N.png of one date')
    _require_utm(path, positions_m)
    ground = np.array([line[0] for line in lines])
    stamp_us = np.full(len(lines), -1, np.int64)
    if lookup is not None:
        stamp_us = _read_lookup(lookup, path, ground)
    yaw_rad = np.full(len(lines), np.nan)
    if yaw is not None:
        yaw_rad = _read_yaw(yaw, positions_m)
    return Entries(
        np.full(len(lines), split), np.array([name.split('/')[0] for name in ground]), ground,
        np.array([line[1] for line in lines]), positions_m, yaw_rad, stamp_us)


def read_splits(paths: list[Path], split: str, lookup: str | Path | None = None,
                yaw: str | Path | None = None) -> Entries:
    """The files of one split, one after the other, each read by ``read_split``.

    ``lookup`` and ``yaw`` each cover all of these files in the same order, as those published for
    the three test files do.
    """
    entries = join([read_split(path, split) for path in paths])
    if lookup is not None:
        names = ' + '.join(map(str, paths))
        entries = replace(entries, stamp_us=_read_lookup(lookup, names, entries.ground))
    if yaw is not None:
        entries = replace(entries, yaw_rad=_read_yaw(yaw, entries.positions_m))
    return entries


def _lines(path: str | Path, fields: int, expected: str) -> list[list[str]]:
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is not a text file; expected lines {expected}') from error
    lines = [line.split() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f'{path} is empty; expected lines {expected}')
    for number, line in enumerate(lines, 1):
        if len(line) != fields:
            raise ValueError(
                f'{path}, line {number}: {len(line)} fields ({" ".join(line)[:80]}); '
                f'expected {fields}: {expected}')
    return lines


def _require_utm(path, positions_m: np.ndarray) -> None:
    good = (positions_m >= [100e3, 0.0]).all(1) & (positions_m <= [900e3, 10e6]).all(1)
    if not good.all():
        number = int(np.argmin(good))
        raise ValueError(
            f'{path}, line {number + 1}: position {positions_m[number].tolist()}; expected UTM '
            'easting (100 000 to 900 000) and northing in metres')


def _read_lookup(path, split_path, ground: np.ndarray) -> np.ndarray:
    lines = _lines(path, 2, 'DATE/stereo/centre/STAMP.png DATE/ground/E_N.png')
    if len(lines) != len(ground):
        raise ValueError(
            f'{path} has {len(lines)} lines, {split_path} {len(ground)}; expected the lookup file '
            'of this split')
    stamps = np.empty(len(lines), np.int64)
    for number, ((frame, name), expected) in enumerate(zip(lines, ground), 1):
        found = re.fullmatch(r'([^/]+)/stereo/centre/(\d{1,16})\.png', frame)
        if not found or name != expected or found[1] != expected.split('/')[0]:
            raise ValueError(
                f'{path}, line {number}: {frame} {name}; expected DATE/stereo/centre/STAMP.png '
                f'{expected}, as in the same line of {split_path}')
        stamps[number - 1] = int(found[2])
    return stamps


def _read_yaw(path, positions_m: np.ndarray) -> np.ndarray:
    try:
        published = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f'{path} is not a .npy file of numbers ({error})') from error
    if published.shape != (len(positions_m),) or published.dtype.kind != 'f':
        raise ValueError(
            f'{path} holds {published.dtype} {published.shape}; expected ({len(positions_m)},) '
            'radians, one per line of the split')
    return yaw_from_published(published, positions_m)


def yaw_from_published(published_rad: np.ndarray, positions_m: np.ndarray) -> np.ndarray:
    """Published RTK yaw to ``yaw_rad``, counter-clockwise from the east of the UTM grid.

    The true heading, clockwise from true north, is the published value - 90 deg; the bearing on
    the UTM grid is less by the grid's convergence, 1.4 deg at Oxford.
    """
    from pyproj import Proj

    utm = Proj(proj='utm', zone=int(UTM_ZONE[:2]), ellps='WGS84')
    longitude_deg, latitude_deg = utm(*np.asarray(positions_m).T, inverse=True)
    convergence_rad = np.radians(
        np.atleast_1d(utm.get_factors(longitude_deg, latitude_deg).meridian_convergence))
    bearing_rad = published_rad - robotcar_tracks.RTK_YAW_OFFSET_RAD - convergence_rad
    return wrap_angle(np.pi / 2 - bearing_rad)


def read_raw(traversal: str | Path, rtk: str | Path, split: str, extrinsics: Path | None,
             as_published: bool = False, seed: int = 0) -> Entries:
    """Frames of a raw traversal at least 5 m apart, with their positions.

    The RTK poses are interpolated and moved from the INS to the camera with the files of the
    folder ``extrinsics``. With ``as_published`` they are as in the papers: the nearest RTK row, at
    the position of the INS. The first frame is U(0, 5) m after the start, drawn from ``seed``.
    Raises ValueError or OSError if files are missing or hold no usable row.
    """
    traversal = Path(traversal)
    images = robotcar_images.list_stereo_images(traversal)
    rows = robotcar.read_rtk(Path(rtk)).rows
    track = robotcar_tracks.ins_track_from_rtk(rows)
    stamps_ns = images.stamps_us * robotcar.NS_PER_US
    if as_published:
        inside = (stamps_ns >= track.stamp_ns[0]) & (stamps_ns <= track.stamp_ns[-1])
        after = np.clip(np.searchsorted(track.stamp_ns, stamps_ns), 1, len(track) - 1)
        earlier_is_nearer = (
            stamps_ns - track.stamp_ns[after - 1] < track.stamp_ns[after] - stamps_ns)
        poses = track.select(after - earlier_is_nearer)
    else:
        if extrinsics is None:
            raise ValueError(
                'no extrinsics folder; expected the one with ins.txt, or as_published, which '
                'takes the position of the INS for that of the camera')
        vehicle_from_ins = robotcar.read_extrinsic(Path(extrinsics) / 'ins.txt')
        poses = robotcar_tracks.base_link_track(
            robotcar_tracks.interpolate_track(track, stamps_ns), vehicle_from_ins)
        inside = np.isfinite(poses.easting_m)
    if poses.utm_zone != UTM_ZONE:
        raise ValueError(f'{rtk} is in UTM zone {poses.utm_zone}; expected Oxford, {UTM_ZONE}')
    positions_m = np.stack((poses.easting_m, poses.northing_m), 1)
    chosen = _spaced(positions_m, inside, np.random.default_rng(seed).uniform(0.0, SPACING_M))
    if len(chosen) == 0:
        raise ValueError(f'{traversal} has no image within the times of {rtk}')
    heading_rad = poses.heading_rad()[chosen]     # from true north
    convergence_rad = robotcar_tracks.grid_convergence_rad(poses.select(chosen))
    stamps_us = images.stamps_us[chosen]
    count = len(chosen)
    return Entries(
        np.full(count, split), np.full(count, traversal.name),
        np.array([f'{traversal.name}/stereo/centre/{stamp}.png' for stamp in stamps_us]),
        np.full(count, ''), positions_m[chosen],
        wrap_angle(np.pi / 2 - (heading_rad - convergence_rad)), stamps_us)


def _spaced(positions_m: np.ndarray, inside: np.ndarray, skip_m: float) -> np.ndarray:
    """Frames at least 5 m apart in a straight line, the first one ``skip_m`` from the start."""
    kept, last_m, apart_m = [], None, skip_m
    for k in np.flatnonzero(inside):
        if last_m is None:
            last_m = positions_m[k]
        if math.hypot(*(positions_m[k] - last_m)) >= apart_m:
            kept.append(k)
            last_m, apart_m = positions_m[k], SPACING_M
    return np.array(kept, int)


def join(parts: list[Entries]) -> Entries:
    """The entries of several splits or traversals, one after the other."""
    return Entries(*(
        np.concatenate([getattr(part, name) for part in parts])
        for name in Entries.__dataclass_fields__))


def oxford_places(entries: Entries, root: str | Path, raw: str | Path | None = None,
                  imagery: list[Path] | None = None) -> Places:
    """Places with their images: files below ``root``, or raw frames and imagery if given.

    ``raw`` is the folder of raw traversals; the stamps of the entries must be known then.
    ``imagery`` are GeoTIFFs from which north-up tiles of 55.44 m are cut; their transform to WGS84
    must be known to 1 m.
    A place whose ground image is missing or cut off keeps its satellite tile and is noted. Raises
    ValueError if that is more than 2 % of them, or if a tile is missing.
    """
    root = Path(root)
    ground = entries.ground
    if raw is not None:
        if (entries.stamp_us < 0).any():
            raise ValueError('the times of the frames are unknown; give the lookup files too')
        ground = np.array([
            f'{drive}/stereo/centre/{stamp}.png'
            for drive, stamp in zip(entries.drive, entries.stamp_us)])
    ground_root = root if raw is None else Path(raw)
    missing = [k for k, name in enumerate(ground) if not _is_whole(ground_root / name)]
    if len(missing) > MAX_MISSING * len(entries):
        raise ValueError(
            f'{len(missing)} of {len(entries)} ground images are missing or cut off below '
            f'{ground_root}, the first {ground[missing[0]]}; expected the folder that holds them')
    has_ground = np.ones(len(entries), bool)
    has_ground[missing] = False
    notes = tuple(f'{ground[k]}: missing or cut off; its tile alone is used' for k in missing)

    if imagery is None:
        absent = [name for name in entries.satellite if not name or not (root / name).is_file()]
        if absent:
            raise ValueError(
                f'{len(absent)} of {len(entries)} satellite tiles are missing below {root}, the '
                f'first {absent[0] or "(raw traversals name none)"}; expected the tiles, or '
                'georeferenced imagery')
        read_satellite = partial(_read_tile, root, entries.satellite)
    else:
        read_satellite = _tiles_of_imagery(imagery, entries.positions_m)
    return Places(
        'oxford', entries.positions_m, entries.yaw_rad, entries.split, entries.drive,
        entries.stamp_us, has_ground,
        partial(_read_ground, ground_root, ground, raw is not None), read_satellite, notes)


def _is_whole(path: Path) -> bool:
    """Whether a PNG is there and has its end; of other formats, whether the file is there."""
    try:
        with open(path, 'rb') as file:
            if path.suffix.lower() != '.png':
                return True
            file.seek(-min(64, path.stat().st_size), 2)
            return b'IEND' in file.read()
    except OSError:
        return False


def _read_ground(root: Path, names: np.ndarray, bayer: bool, place: int) -> np.ndarray:
    path = root / names[place]
    if bayer:
        return camera_view(cv2.cvtColor(robotcar_images.read_bayer_image(path), cv2.COLOR_BGR2RGB))
    image = read_rgb(path)
    height, width = image.shape[:2]
    if abs(2 * width - 3 * height) > 3 or width < CAMERA_VIEW_PX[0]:
        raise ValueError(f'{path} is {width}x{height}; expected 1200x800, or 3:2 at the least')
    return camera_view(image)


def _read_tile(root: Path, names: np.ndarray, place: int) -> np.ndarray:
    path = root / names[place]
    tile = read_rgb(path)
    if tile.shape[0] != tile.shape[1] or tile.shape[0] < TILE_PX:
        raise ValueError(
            f'{path} is {tile.shape[1]}x{tile.shape[0]}; expected a square of 600x600')
    return cv2.resize(tile, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)


def _tiles_of_imagery(paths: list[Path], positions_m: np.ndarray):
    """A reader of the tiles around UTM positions, from one raster of the imagery they need."""
    from pyproj import Proj

    from crossview_localizer.maps.imagery import Imagery

    utm = Proj(proj='utm', zone=int(UTM_ZONE[:2]), ellps='WGS84')
    longitude_deg, latitude_deg = utm(*positions_m.T, inverse=True)
    source = Imagery.open(paths)
    source.require_accuracy(MAX_CRS_ERROR_M)
    xy_m = np.stack(source.frame.xy_from_latlon(latitude_deg, longitude_deg), 1)
    cell_m = TILE_M / TILE_PX
    low_m, high_m = xy_m.min(0) - TILE_M / 2, xy_m.max(0) + TILE_M / 2
    bounds_m = np.array(source.bounds_m)
    if (low_m < bounds_m[:2]).any() or (high_m > bounds_m[2:]).any():
        raise ValueError(
            f'the imagery covers x {bounds_m[0]:.0f} to {bounds_m[2]:.0f} m and y '
            f'{bounds_m[1]:.0f} to {bounds_m[3]:.0f} m around its middle; the tiles need x '
            f'{low_m[0]:.0f} to {high_m[0]:.0f} m and y {low_m[1]:.0f} to {high_m[1]:.0f} m')
    cols, rows = np.ceil((high_m - low_m) / cell_m).astype(int) + 1
    if rows * cols > MAX_RASTER_PX:
        raise ValueError(
            f'the area is {rows} x {cols} pixels; expected at most {MAX_RASTER_PX:.0f} in all: '
            'are all positions in one town?')
    grid = MapGrid(int(rows), int(cols), cell_m, low_m[0], high_m[1])
    raster, _ = source.raster(grid)
    return partial(_cut_tile, raster, grid, xy_m)


def _cut_tile(raster, grid, xy_m, place):
    return tile_around(raster, grid, *xy_m[place], TILE_PX)


def stitched_map_transform() -> tuple[np.ndarray, float]:
    """Least-squares affine (2, 3) from (easting, northing, 1) to (column, row), and the largest
    residual, px, at the published control points."""
    places = np.column_stack((STITCHED_MAP_POINTS[:, :2], np.ones(len(STITCHED_MAP_POINTS))))
    middle = STITCHED_MAP_POINTS[:, :2].mean(0)
    # Around the middle the equations are well conditioned.
    centred = np.column_stack((STITCHED_MAP_POINTS[:, :2] - middle, places[:, 2]))
    solved, *_ = np.linalg.lstsq(centred, STITCHED_MAP_POINTS[:, 2:], rcond=None)
    affine = np.column_stack((solved[:2].T, solved[2] - middle @ solved[:2]))
    residual_px = np.abs(places @ affine.T - STITCHED_MAP_POINTS[:, 2:])
    return affine, float(residual_px.max())


def georeference_stitched_map(png: str | Path, out: str | Path) -> float:
    """Write the published stitched map as a GeoTIFF in UTM 30N; returns the largest residual, px.

    Raises ValueError if the picture does not have the size that the control points belong to.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError
    from rasterio.windows import Window

    from crossview_localizer.maps.geotiff import new_geotiff

    affine, residual_px = stitched_map_transform()
    # The control points are pixel numbers; a pixel's centre lies half a pixel from its corner.
    pixel_from_utm = rasterio.Affine(*affine[0, :2], affine[0, 2] + 0.5,
                                     *affine[1, :2], affine[1, 2] + 0.5)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            source = rasterio.open(png)
        with source:
            if (source.width, source.height) != STITCHED_MAP_PX or source.count < 3:
                raise ValueError(
                    f'{png} is {source.width}x{source.height} with {source.count} channels; '
                    f'expected {STITCHED_MAP_PX[0]}x{STITCHED_MAP_PX[1]} in colour')
            profile = {
                'width': source.width, 'height': source.height, 'count': 3, 'dtype': 'uint8',
                'crs': 'EPSG:32630', 'transform': ~pixel_from_utm, 'tiled': True,
                'compress': 'deflate', 'photometric': 'RGB'}
            with new_geotiff(out, **profile) as write:
                for top in range(0, source.height, 512):
                    strip = Window(0, top, source.width, min(512, source.height - top))
                    write(source.read((1, 2, 3), window=strip), strip)
    except RasterioError as error:
        raise OSError(f'{png} cannot be converted ({error})') from error
    return residual_px


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.data.oxford',
        description='Check a copy of the Oxford data, or georeference the stitched map.',
        epilog='example: python -m training.data.oxford check --root Oxford_5m_sampling '
        '--train training.txt --val validation.txt --test test1.txt test2.txt test3.txt')
    commands = parser.add_subparsers(dest='command', required=True)
    check = commands.add_parser('check', help='read the splits, count, and try some images')
    check.add_argument('--root', type=Path, required=True,
                       help='folder of DATE/ground and DATE/satellite')
    for split in SPLITS:
        check.add_argument(f'--{split}', nargs='+', type=Path, default=[], metavar='FILE',
                           help=f'split files of {split}')
    check.add_argument('--imagery', nargs='+', type=Path, help='GeoTIFFs instead of tiles')
    georeference = commands.add_parser(
        'georeference', help='satellite_map_new.png to a GeoTIFF in UTM 30N')
    georeference.add_argument('png', type=Path, help='satellite_map_new.png')
    georeference.add_argument('out', type=Path, help='GeoTIFF to write')
    check.set_defaults(work=check_splits)
    georeference.set_defaults(work=georeference_map)
    return run_command(parser, arguments, lambda args: args.work(args))


def georeference_map(args: argparse.Namespace) -> None:
    residual_px = georeference_stitched_map(args.png, args.out)
    print(f'{args.out}: the control points fit within {residual_px:.2f} px')


def check_splits(args: argparse.Namespace) -> None:
    """Read the split files and some pairs of images, and print what is there."""
    parts = [read_split(path, split) for split in SPLITS for path in getattr(args, split)]
    if not parts:
        raise ValueError('no split file given; expected --train, --val or --test')
    places = oxford_places(join(parts), args.root, imagery=args.imagery)
    for split in SPLITS:
        mine = places.split == split
        print(f'{split}: {mine.sum()} places of {len(np.unique(places.drive[mine]))} drives, '
              f'{places.has_ground[mine].sum()} with a ground image')
    for note in places.notes:
        print(note)
    print(f'{read_some(places, np.flatnonzero(places.has_ground))} pairs of images were read')


if __name__ == '__main__':
    sys.exit(main())
