"""Look into an embedding map, export it as a GeoTIFF, or convert one in the old format."""

import argparse
from pathlib import Path
import sys

import numpy as np

from crossview_localizer.command import run_command
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.maps.export import write_components, write_picture
from crossview_localizer.maps.old_format import is_old_map
from crossview_localizer.maps.store import DENSE_SIZE, MapStore, UNKNOWN_DATE


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='map', description=__doc__, epilog='example: map export oxford.map --out oxford.tif')
    commands = parser.add_subparsers(dest='command', required=True)
    for name, work, text in (
            ('info', _info, 'print what a map holds'),
            ('export', _export,
             'write three principal components of the descriptors as a GeoTIFF'),
            ('convert', _convert, 'write a map in the old format as one in the new')):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument('map', help='a folder, a zip file, or an address')
        if name != 'info':
            command.add_argument('--out', type=Path, required=True, help='what to write')
        if name == 'export':
            command.add_argument('--picture', action='store_true',
                                 help='the picture of the area instead of the descriptors')
        command.set_defaults(work=work)
    return run_command(parser, argv, lambda arguments: arguments.work(arguments))


def _info(arguments: argparse.Namespace) -> None:
    store = _opened(arguments.map)
    layout, dates = store.layout, store.dates()
    known = np.unique(dates[dates > UNKNOWN_DATE])
    west, south, east, north = store.group.attrs['spatial:bbox']
    km2 = store.tiles * layout.grid.cell_m ** 2 / 1e6
    origin = layout.frame and f'{layout.frame.latitude_deg:.7f}, {layout.frame.longitude_deg:.7f}'
    span = f'{known[0]} to {known[-1]}' if len(known) else 'not known'
    megabytes = store.tiles * layout.size * (1 if layout.is_int8 else 2) / 1e6
    for name, text in (
            ('tiles', f'{store.tiles}, every {layout.grid.cell_m:g} m, {km2:.3f} km2'),
            ('descriptors', f'{layout.bands} bands, {layout.descriptor_cells} x '
             f'{layout.descriptor_cells} cells a tile, {"int8" if layout.is_int8 else "float16"}, '
             f'{megabytes:.1f} MB'),
            ('origin', origin or 'none'),
            ('box in map', f'x {west:.1f} to {east:.1f} m, y {south:.1f} to {north:.1f} m'),
            ('weights', layout.fingerprint),
            ('imagery', ', '.join(layout.attribution) or 'not stated'),
            ('imagery of', span)):
        print(f'{name:12s} {text}')


def _export(arguments: argparse.Namespace) -> None:
    write = write_picture if arguments.picture else write_components
    write(_opened(arguments.map), arguments.out)


def _convert(arguments: argparse.Namespace) -> None:
    if not is_old_map(Path(arguments.map)):
        raise ValueError(
            f'{arguments.map} is not a map in the old format; only such maps are converted')
    found = EmbeddingMap.open(arguments.map)
    size = found.tiles.descriptors.shape[1]
    # The dense networks of the old format had 16 bands.
    cells = round((size / 16) ** 0.5) if size >= DENSE_SIZE else 1
    found.save(arguments.out, descriptor_cells=cells if 16 * cells ** 2 == size else 1)


def _opened(path: str) -> MapStore:
    if is_old_map(Path(path)):
        raise ValueError(f'{path} is in the old format; convert it first: map convert {path} '
                         '--out NEW.map')
    return MapStore.open(path)


if __name__ == '__main__':
    sys.exit(main())
