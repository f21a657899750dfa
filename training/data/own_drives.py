"""Recorded drives without precise truth, as prepared files: smoothed poses, images, imagery.

Fixes and odometry give the smoothed poses of a drive, with covariances.  Its frames are sorted
into squares of the map.  A file holds the frames of one drive in one square, and the imagery
around it; training reads the files as it needs them.  Whole squares are held out, for all drives,
and training frames near them are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
import json
import math
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial import cKDTree
from tqdm import tqdm

from crossview_localizer.camera.views import sampling_image, UNSEEN
from crossview_localizer.datatypes import CameraModel
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import MapGrid
from crossview_localizer.trajectory import Track
from training.data.datasets import save_world, World

SPACING_M = 1.5            # smallest distance between two frames of a drive
SQUARE_M = 100.0           # side of the squares
MARGIN_M = 90.0            # width of the imagery around a square
AHEAD_M = 16.0             # distance to the middle of the ground in view, and half of its width
GUARD_M = 25.0             # training frames are at least this far from held-out ones
HELD_OUT_SHARE = 0.2       # smallest share of all frames that is held out
SPLITS = 30                # draws of the held-out squares, of which the best is taken
MAX_SIGMA_M = 8.0          # poses that are less certain are not used
IMAGERY_SIGMA_M = 1.0      # sigma of the shift of the imagery
LEAST_GREY = 35.0          # images with a darker mean are left out
MIN_LENGTH_M = 200.0       # a shorter drive is left out
MIN_SHARE = 0.5            # smallest share of the frames of a drive with imagery, and with light
MIN_TRAIN_FRAMES, MIN_HELD_OUT_FRAMES = 60, 20
MIN_FILE_FRAMES = 3


class Refused(ValueError):
    """A drive that cannot be learned from."""


@dataclass(frozen=True)
class SmoothedDrive:
    """The frames of a bag that are wanted: their poses, and the true ones where there is truth."""

    bag: Path
    track: Track
    truth: Track


def smooth_bag(bag: Path, imagery, node_config, config, topics) -> SmoothedDrive:
    """Compute the smoothed poses of a drive and choose frames; raises Refused if it is no use."""
    from crossview_localizer.bags.drive import missing_input, read_drive
    from crossview_localizer.datatypes import OdometrySample
    from crossview_localizer.fusion.smoother import smooth_drive

    drive = read_drive(bag, imagery.frame, node_config, topics)
    if problem := missing_input(bag, drive, topics, ('image', 'gnss', 'odometry')):
        raise Refused(problem)
    measurements = [OdometrySample(int(stamp_ns), drive.odometry.pose(row))
                    for row, stamp_ns in enumerate(drive.odometry.stamps_ns)] + drive.fixes
    track = smooth_drive(measurements, config.filter, stamps_ns=drive.image_stamps_ns)
    variance = track.covariances[:, [0, 1], [0, 1]].max(1)
    rows = np.flatnonzero(variance < MAX_SIGMA_M ** 2)   # False for NaN
    if not len(rows):
        raise Refused(f'{bag}: fixes and odometry give no pose that is certain to '
                      f'{MAX_SIGMA_M:g} m; expected some minutes of driving with GNSS')
    chosen = [rows[0]]
    for row in rows[1:]:
        if np.hypot(*(track.poses[row, :2] - track.poses[chosen[-1], :2])) >= SPACING_M:
            chosen.append(row)
    length_m = np.hypot(*np.diff(track.poses[chosen, :2], axis=0).T).sum()
    if length_m < MIN_LENGTH_M:
        raise Refused(f'{bag} moves {length_m:.0f} m with known poses; expected at least '
                      f'{MIN_LENGTH_M:g} m')
    covered = [_covered_share(imagery, track.poses[row]) >= MIN_SHARE for row in tqdm(
        chosen, desc=f'imagery of {bag.name}', leave=False)]
    if np.mean(covered) < MIN_SHARE:
        raise Refused(f'{bag}: the imagery shows the ground ahead of {np.mean(covered):.0%} of '
                      f'its frames; expected at least {MIN_SHARE:.0%}')
    keep = np.array(chosen)[covered]
    return SmoothedDrive(
        bag, Track(track.stamps_ns[keep], track.poses[keep], track.covariances[keep]),
        drive.truth)


def _covered_share(imagery, pose: np.ndarray) -> float:
    """The share of the ground ahead of a pose that the imagery shows."""
    ahead_m = AHEAD_M * np.array([math.cos(pose[2]), math.sin(pose[2])])
    _, valid = imagery.crop(*(pose[:2] + ahead_m), 2 * AHEAD_M, 8)
    return float(valid.mean())


def split_by_place(drives: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """For each drive's positions (N, 2) 1 for training, 2 for held out, 0 for neither.

    Squares are drawn until they hold HELD_OUT_SHARE of all frames.  This is done SPLITS times; the
    draw that leaves the most frames for training is taken.  Raises Refused if these are too few.
    """
    positions_m = np.concatenate(drives)
    _, square = np.unique(square_of(positions_m), axis=0, return_inverse=True)
    square = square.ravel()
    near = cKDTree(positions_m).query_ball_point(positions_m, GUARD_M)
    part, rng = np.zeros(len(positions_m), int), np.random.default_rng(seed)
    for _ in range(SPLITS):
        order = rng.permutation(square.max() + 1)
        before = np.cumsum(np.bincount(square)[order]) - np.bincount(square)[order]
        held_out = np.isin(square, order[before < HELD_OUT_SHARE * len(positions_m)])
        split = np.where(held_out, 2, 1)
        split[[k for k in np.flatnonzero(~held_out) if held_out[near[k]].any()]] = 0
        if (split == 1).sum() > (part == 1).sum():
            part = split
    for value, least, what in ((1, MIN_TRAIN_FRAMES, 'training'),
                               (2, MIN_HELD_OUT_FRAMES, 'held-out stretches')):
        if (part == value).sum() < least:
            raise Refused(
                f'{(part == value).sum()} of {len(part)} frames are left for {what}; expected at '
                f'least {least}: drive through more streets')
    return np.split(part, np.cumsum([len(drive) for drive in drives])[:-1])


def square_of(positions_m: np.ndarray) -> np.ndarray:
    """The square (N, 2) of the map in which positions (N, 2) lie."""
    return np.floor(positions_m / SQUARE_M).astype(int)


def write_files(drive: SmoothedDrive, number: int, part: np.ndarray, imagery, px_m: float,
                folder: Path, node_config, config, topics) -> int:
    """Write the prepared files of a drive below ``train`` and ``held_out``; returns its frames.

    Raises Refused where most images are blind or dark.
    """
    from crossview_localizer.bags.events import read_events
    from crossview_localizer.datatypes import CameraImage

    track = drive.track
    row_of = {int(stamp_ns): row for row, stamp_ns in enumerate(track.stamps_ns) if part[row]}
    images: dict[int, np.ndarray] = {}
    camera = None
    without = replace(topics, gnss='', gnss_velocity='', truth='')
    events = read_events(drive.bag, imagery.frame, node_config, config, without, set(row_of))
    for event in tqdm(events, desc=f'images of {drive.bag.name}', unit=' messages', leave=False,
                      disable=None):
        if not isinstance(event, CameraImage) or event.rgb.mean() < LEAST_GREY:
            continue
        small, small_camera = sampling_image(event.rgb, event.camera)
        if camera is not None and small_camera.width_px != camera.width_px:
            raise Refused(f'{drive.bag}: the size of its images changes')
        camera = small_camera
        images[row_of[event.stamp_ns]] = small
    if len(images) < MIN_SHARE * len(row_of):
        raise Refused(f'{drive.bag}: {len(images)} of {len(row_of)} frames are neither dark, nor '
                      f'blind, nor unreadable; expected at least {MIN_SHARE:.0%}')
    camera = pitched(camera, config.camera.pitch_rad)
    truth = drive.truth.at(track.stamps_ns, 1.0) if len(drive.truth) else None
    squares = square_of(track.poses[:, :2])
    rows = np.array(sorted(images))
    for square in np.unique(squares[rows], axis=0):
        mine = rows[(squares[rows] == square).all(1)]
        if len(mine) < MIN_FILE_FRAMES:
            continue
        side = math.ceil((SQUARE_M + 2 * MARGIN_M) / px_m)
        west_m, north_m = square * SQUARE_M + np.array([-MARGIN_M, SQUARE_M + MARGIN_M])
        grid = MapGrid(side, side, px_m, float(west_m) + px_m / 2, float(north_m) - px_m / 2)
        rgb, valid = imagery.raster(grid)
        rgb[~valid] = UNSEEN
        name = f'drive{number}_x{square[0]}_y{square[1]}'
        path = folder / ('train', 'held_out')[part[mine[0]] - 1] / f'{name}.npz'
        path.parent.mkdir(parents=True, exist_ok=True)
        save_world(World(
            name, rgb, grid, np.stack([images[row] for row in mine]), camera, track.poses[mine],
            np.full(len(mine), number),
            track.covariances[mine, :2, :2] + IMAGERY_SIGMA_M ** 2 * np.eye(2),
            track.stamps_ns[mine], None if truth is None else truth.poses[mine]), path)
    return len(images)


def pitched(camera: CameraModel, pitch_rad: float) -> CameraModel:
    """The camera with a pitch correction, positive nose down, in its mounting."""
    cos, sin = math.cos(pitch_rad), math.sin(pitch_rad)
    base_from_camera = camera.base_from_camera.copy()
    base_from_camera[:3, :3] = base_from_camera[:3, :3] @ np.array(
        [[1.0, 0.0, 0.0], [0.0, cos, sin], [0.0, -sin, cos]])
    return replace(camera, base_from_camera=base_from_camera)


def prepare_drives(bags: Sequence[Path], imagery_paths: Sequence[Path], folder: Path, px_m: float,
                   node_config, config, topics, seed: int = 0) -> tuple[list[Path], list[Path]]:
    """Files for training and of held-out stretches, from bags and imagery.

    Drives that cannot be used are left out, each with one line.  Files of an earlier call with the
    same inputs are used again.  Raises ValueError if too little is left, or if ``folder`` was made
    from other inputs.
    """
    from crossview_localizer.maps.imagery import Imagery

    cv2.setNumThreads(1)
    inputs = {'bags': [str(bag.resolve()) for bag in bags], 'px_m': px_m, 'seed': seed,
              'imagery': [str(path.resolve()) for path in imagery_paths],
              'parameters': [str(node_config), str(config)], 'topics': str(topics)}
    manifest = folder / 'inputs.json'
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if other := [name for name, value in inputs.items() if found.get(name) != value]:
            raise ValueError(f'{folder} was prepared with other {", ".join(other)}; expected the '
                             f'same, or delete {folder.parent} to start again')
    else:
        imagery = Imagery.open(list(imagery_paths))
        smoothed = []
        for bag in tqdm(bags, desc='smoothing', unit=' drives', disable=None):
            try:
                smoothed.append(smooth_bag(bag, imagery, node_config, config, topics))
            except Refused as refused:
                tqdm.write(f'left out: {refused}')
        if not smoothed:
            raise ValueError('no drive is left to learn from')
        parts = split_by_place([drive.track.poses[:, :2] for drive in smoothed], seed)
        with write_atomically(folder) as writing:
            for number, (drive, part) in enumerate(zip(smoothed, parts)):
                try:
                    write_files(drive, number, part, imagery, px_m, writing, node_config, config,
                                topics)
                except Refused as refused:
                    tqdm.write(f'left out: {refused}')
            writing.mkdir(exist_ok=True)
            (writing / 'inputs.json').write_text(json.dumps(inputs))
    train, held_out = (sorted((folder / part).glob('*.npz')) for part in ('train', 'held_out'))
    if not (train and held_out):
        raise ValueError(f'{len(train)} stretches are left for training and {len(held_out)} are '
                         'held out; expected some of each')
    return train, held_out
