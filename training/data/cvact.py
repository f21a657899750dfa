"""CVACT (ACT): Street View panoramas of Canberra and satellite images, as the papers use them.

``ACT_data.mat`` holds ``panoIds`` (22 characters each), ``utm`` (east and north, zone 55S, metres)
and the original splits as 1-based indices ``trainSet.trainInd``, ``valSet.valInd`` and
``valSetAll.valInd``. The images are in ``ANU_data_small`` and ``ANU_data_test``, each with
``streetview/ID_grdView.jpg`` and ``satview_polish/ID_satView_polish.jpg``; prepared images are
616x112 PNGs in the folders ``streetview`` and ``polarmap`` of one root.
"""

import argparse
from functools import partial
import os
from pathlib import Path
import sys

import numpy as np
import scipy.io
import torch

from crossview_localizer.camera.views import panorama_view, POLAR_VIEW_PX
from crossview_localizer.command import run_command
from crossview_localizer.networks.safa import polar_tiles
from training.data.datasets import Places, read_rgb, read_some

# The papers' split by place: east (m) of validation and test, north of both; the rest trains.
VAL_EAST_M = (685_000.0, 690_000.0)
TEST_EAST_M = (690_000.0, 695_000.0)
HELD_OUT_NORTH_M = (6_095_000.0, 6_099_460.0)
SPLIT_RULES = ('papers', 'original')

# Below one root or several: folder and ending of ground and satellite files.
RAW_NAMES = (('streetview', '_grdView.jpg'), ('satview_polish', '_satView_polish.jpg'))
PREPARED_NAMES = (('streetview', ('_grdView.png', '.png')),
                  ('polarmap', ('_satView_polish.png', '.png')))


def read_act_data(path: str | Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Panorama ids (N,), UTM positions (N, 2) float64, and 0-based indices of the original splits.

    The splits are 'train', 'val' (a subset of test) and 'test'. Raises ValueError with what is
    missing or misshapen, OSError if the file cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist; expected ACT_data.mat')
    try:
        data = scipy.io.loadmat(path)
    except NotImplementedError as error:
        raise ValueError(
            f'{path} is a MATLAB 7.3 file; expected an older one (save it with -v7)') from error
    except Exception as error:  # scipy may raise anything on a damaged file
        raise ValueError(f'{path} is not a readable MATLAB file ({error})') from error
    for name in ('panoIds', 'utm'):
        if name not in data:
            found = ', '.join(key for key in data if not key.startswith('__'))
            raise ValueError(f'{path} holds {found or "nothing"}; expected {name} too')
    ids = np.array([_text(item) for item in np.ravel(data['panoIds'])])
    utm_m = np.asarray(data['utm'])
    if utm_m.ndim != 2 or utm_m.shape[1] < 2 or len(utm_m) != len(ids) \
            or utm_m.dtype.kind not in 'fiu':
        raise ValueError(
            f'{path}: utm is {utm_m.dtype} {utm_m.shape} for {len(ids)} panoIds; '
            f'expected ({len(ids)}, 2) metres')
    utm_m = utm_m[:, :2].astype(np.float64)
    if not np.isfinite(utm_m).all():
        raise ValueError(f'{path}: utm of {ids[~np.isfinite(utm_m).all(1)][0]} is not finite')
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f'{path}: panoIds holds an id twice')
    splits = {}
    for split, (struct, field) in {
            'train': ('trainSet', 'trainInd'), 'val': ('valSet', 'valInd'),
            'test': ('valSetAll', 'valInd')}.items():
        if struct in data:
            splits[split] = _indices(path, data[struct], struct, field, len(ids))
    return ids, utm_m, splits


def _text(item) -> str:
    """One id of a char matrix or cell array."""
    while isinstance(item, np.ndarray):
        if item.size != 1:
            return ''.join(map(str, item.ravel()))
        item = item.ravel()[0]
    return str(item).strip()


def _indices(path: Path, struct, name: str, field: str, count: int) -> np.ndarray:
    try:
        values = np.asarray(struct[field][0][0]).ravel()
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path}: {name} has no field {field}') from error
    if values.dtype.kind not in 'iuf' or (values != np.round(values)).any() \
            or len(values) == 0 or values.min() < 1 or values.max() > count:
        raise ValueError(
            f'{path}: {name}.{field} is not indices from 1 to {count}, the number of panoIds')
    return values.astype(np.int64) - 1


def split_by_place(utm_m: np.ndarray) -> np.ndarray:
    """The papers' split (N,): two boxes are held out, all the rest trains."""
    east_m, north_m = utm_m.T
    rows = (north_m >= HELD_OUT_NORTH_M[0]) & (north_m < HELD_OUT_NORTH_M[1])
    val = rows & (east_m >= VAL_EAST_M[0]) & (east_m < VAL_EAST_M[1])
    test = rows & (east_m >= TEST_EAST_M[0]) & (east_m < TEST_EAST_M[1])
    return np.where(val, 'val', np.where(test, 'test', 'train'))


def cvact_places(mat: str | Path, roots: list[Path], split_rule: str = 'papers',
                 prepared: bool = False) -> Places:
    """The panoramas that have both images below one of ``roots``.

    The ``split_rule`` 'papers' holds out two boxes, 'original' takes the splits of the .mat file
    (where 'val' is a part of 'test', it is 'val'). With ``prepared`` the root holds 616x112 PNGs;
    else panoramas are cropped and satellite images polar-transformed as they are read. Panoramas
    face north; headings are unknown. Raises ValueError or OSError.
    """
    if split_rule not in SPLIT_RULES:
        raise ValueError(f'split rule {split_rule!r}; expected one of {", ".join(SPLIT_RULES)}')
    ids, utm_m, splits = read_act_data(mat)
    if split_rule == 'papers':
        split = split_by_place(utm_m)
    else:
        absent = [name for name in ('train', 'val', 'test') if name not in splits]
        if absent:
            raise ValueError(f'{mat} has no indices of the split {absent[0]!r}')
        split = np.full(len(ids), '', '<U5')
        for name in ('test', 'train', 'val'):
            split[splits[name]] = name

    # One listing per folder: a hundred thousand single queries would take minutes.
    ground, satellite = {}, {}
    for root in map(Path, roots):
        for (folder, endings), found in zip(
                PREPARED_NAMES if prepared else RAW_NAMES, (ground, satellite)):
            endings = (endings,) if isinstance(endings, str) else endings
            if not (root / folder).is_dir():
                raise ValueError(f'{root} has no folder {folder}; expected CVACT images')
            for name in sorted(os.listdir(root / folder)):
                ending = next((end for end in endings if name.endswith(end)), None)
                if ending:
                    found[name.removesuffix(ending)] = root / folder / name
    chosen = np.array([k for k, name in enumerate(ids) if name in ground and name in satellite
                       and split[k]], int)
    if len(chosen) == 0:
        raise ValueError(
            f'none of the {len(ids)} panoramas of {mat} has both images in '
            f'{", ".join(map(str, roots))} ({len(ground)} ground, {len(satellite)} satellite '
            'files there)')
    notes = () if len(chosen) == len(ids) else (
        f'{len(ids) - len(chosen)} of {len(ids)} panoramas lack an image or a split',)
    return Places(
        'cvact', utm_m[chosen], np.full(len(chosen), np.nan), split[chosen],
        np.full(len(chosen), 'cvact'), np.full(len(chosen), -1, np.int64),
        np.ones(len(chosen), bool),
        partial(_read_ground, [ground[name] for name in ids[chosen]], prepared),
        partial(_read_satellite, [satellite[name] for name in ids[chosen]], prepared), notes)


def _read_ground(paths: list[Path], prepared: bool, place: int) -> np.ndarray:
    return _read_prepared(paths[place]) if prepared else ground_panorama(paths[place])


def _read_satellite(paths: list[Path], prepared: bool, place: int) -> np.ndarray:
    return _read_prepared(paths[place]) if prepared else polar_satellite(paths[place])


def _read_prepared(path: Path) -> np.ndarray:
    image = read_rgb(path)
    if image.shape[:2] != POLAR_VIEW_PX[::-1]:
        raise ValueError(
            f'{path} is {image.shape[1]}x{image.shape[0]}; expected '
            f'{POLAR_VIEW_PX[0]}x{POLAR_VIEW_PX[1]}')
    return image


def ground_panorama(path: str | Path) -> np.ndarray:
    """The middle half of a panorama's rows (208 to 624 of 832), resized to (112, 616, 3)."""
    image = read_rgb(path)
    if image.shape[1] <= image.shape[0]:
        raise ValueError(
            f'{path} is {image.shape[1]}x{image.shape[0]}; expected a whole panorama, twice as '
            'wide as high')
    return panorama_view(image, np.pi / 2)


def polar_satellite(path: str | Path) -> np.ndarray:
    """A satellite image as a polar view (112, 616, 3); ValueError if it is not square."""
    image = read_rgb(path)
    if image.shape[0] != image.shape[1]:
        raise ValueError(
            f'{path} is {image.shape[1]}x{image.shape[0]}; expected a square satellite image')
    return polar_tiles(torch.from_numpy(image)[None])[0].round().byte().numpy()


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.data.cvact', description='Check a copy of CVACT.',
        epilog='example: python -m training.data.cvact ACT_data.mat ANU_data_small ANU_data_test')
    parser.add_argument('mat', type=Path, help='ACT_data.mat')
    parser.add_argument('roots', nargs='+', type=Path, help='folders with streetview and more')
    parser.add_argument('--split-rule', choices=SPLIT_RULES, default='papers',
                        help='hold out the boxes of the papers, or take the original splits')
    parser.add_argument('--prepared', action='store_true', help='the root holds 616x112 PNGs')
    return run_command(parser, arguments, check)


def check(args: argparse.Namespace) -> None:
    """Read the splits and some pairs of images, and print what is there."""
    places = cvact_places(args.mat, args.roots, args.split_rule, args.prepared)
    for split in ('train', 'val', 'test'):
        print(f'{split}: {(places.split == split).sum()} places')
    for note in places.notes:
        print(note)
    print(f'{read_some(places, np.arange(len(places)))} pairs of images were read')


if __name__ == '__main__':
    sys.exit(main())
