"""Build an embedding map from georeferenced imagery, over a whole area or along a route."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import sys

import torch

from crossview_localizer.bags.route_file import read_route
from crossview_localizer.command import run_command
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.maps.builder import build_map, Inputs, Settings, working_path
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.old_format import is_old_map
from crossview_localizer.networks.checkpoint import load_network


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='build_map',
        description='Build an embedding map from georeferenced imagery (GeoTIFF, any CRS).',
        epilog='example: build_map orthophoto.tif --route drive/gps/gps.csv --out oxford.map')
    parser.add_argument('imagery', nargs='+', help='GeoTIFFs, folders of them, a VRT, or '
                        'addresses on the web; where they overlap the first is used')
    parser.add_argument('--weights', type=Path,
                        help='the network (.safetensors; default: the shipped dense matcher)')
    parser.add_argument('--out', type=Path, required=True,
                        help='the map to write: a folder, or a file where the name ends in .zip')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--route', type=Path, metavar='FILE',
                       help='along this drive: a bag with a NavSatFix topic, a GPX, KML or '
                       'GeoJSON file, or a CSV '
                       'with latitude and longitude (as gps.csv, ins.csv and rtk.csv of RobotCar)')
    where.add_argument('--area', action='store_true', help='over all of the imagery')
    parser.add_argument('--topic', help='NavSatFix topic of the bag, if it has several')
    parser.add_argument('--corridor-m', type=float, metavar='M', help='tiles whose centre is this '
                        'close to the route (default: 25, dense 60)')
    parser.add_argument('--spacing-m', type=float, metavar='M', help='distance between tile '
                        "centres (default: the network's own, 3 for shipped tile weights)")
    parser.add_argument('--origin', type=float, nargs=2, metavar=('LAT', 'LON'), help='origin of '
                        'the map frame in degrees (default: the centre of the imagery)')
    parser.add_argument('--update', action='store_true', help='change the map OUT only where the '
                        'imagery has changed; the other arguments are those it was built with')
    parser.add_argument('--float16', action='store_true',
                        help='store descriptors in 16 bits, not 8: the map is twice as large')
    parser.add_argument('--batch', type=int, default=16, metavar='N',
                        help='tiles per forward pass (default 16)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu',
                        help='device of the network (default %(default)s)')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads of torch')
    parser.add_argument('--workers', type=int, default=1, metavar='N',
                        help='processes of this machine that share the work (default 1)')
    parser.add_argument('--dask', metavar='ADDRESS', help='share the work of a Dask cluster: '
                        'tcp://HOST:PORT of its scheduler, or a scheduler file; its workers see '
                        'the same paths')
    parser.add_argument('--max-tiles', type=int, default=200_000, metavar='N',
                        help='refuse a map of more tiles (default 200000)')
    parser.add_argument('--max-crs-error', type=float, default=0.5, metavar='M', help='refuse '
                        'imagery whose CRS is known less well (default 0.5); inf takes all')
    return run_command(parser, argv, _run, 'interrupted; the same command goes on from here')


@contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator:
    """A client of the processes that share the work; None where this one works alone."""
    if arguments.workers < 1:
        raise ValueError(f'--workers is {arguments.workers}; expected 1 or more')
    if arguments.dask and arguments.workers > 1:
        raise ValueError('--workers and --dask; expected one of the two')
    if arguments.workers == 1 and not arguments.dask:
        yield None
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ValueError('several processes need the package distributed; install it with '
                         'pip install distributed, or leave out --workers and --dask') from error

    if arguments.workers > 1:
        with LocalCluster(arguments.workers, threads_per_worker=1, memory_limit=0,
                          dashboard_address=None) as cluster, Client(cluster) as client:
            yield client
    else:
        is_file = Path(arguments.dask).is_file()
        with Client(**{'scheduler_file' if is_file else 'address': arguments.dask}) as client:
            yield client


def _run(arguments: argparse.Namespace) -> None:
    out = arguments.out
    if arguments.device == 'cuda' and not torch.cuda.is_available() and not arguments.dask:
        raise ValueError('no CUDA device was found; use --device cpu')
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f'--threads is {arguments.threads}; expected 1 or more')
        torch.set_num_threads(arguments.threads)
    is_zip, is_map = out.suffix == '.zip', out.is_dir() or is_old_map(out)
    if out.exists() and is_zip != out.is_file() and (is_zip or not is_map) or (
            not out.parent.is_dir()):
        raise ValueError(f'{out} cannot be written; expected a map, or a new name, in a folder '
                         'that exists')
    if arguments.update and not out.is_dir():
        raise ValueError(f'--update changes a map that is a folder; {out} is not one')
    frame = LocalFrame(*arguments.origin) if arguments.origin else None
    imagery = Imagery.open(arguments.imagery, frame)
    for line in (*imagery.crs_accuracy, *imagery.notes):
        print(line)
    route = read_route(arguments.route, arguments.topic) if arguments.route else None
    weights = arguments.weights
    if weights is None:     # this import needs ROS; a machine without it must be given the weights
        from crossview_localizer.ros.localizer_holder import shipped_weights
        weights = shipped_weights()
    network = load_network(weights, arguments.device)
    settings = Settings(
        arguments.spacing_m, arguments.corridor_m, arguments.batch, arguments.max_tiles,
        arguments.max_crs_error, not arguments.float16)
    inputs = Inputs(
        tuple(_absolute(path) for path in arguments.imagery),
        (imagery.frame.latitude_deg, imagery.frame.longitude_deg),
        _absolute(weights),
        str((out if arguments.update else working_path(out)).resolve()), arguments.device,
        torch.get_num_threads(), arguments.batch)
    with _cluster(arguments) as cluster:
        embedding_map = build_map(
            imagery, network, settings, route, arguments.device, out, arguments.update, print,
            cluster, inputs)
    files = [out] if out.is_file() else [path for path in out.rglob('*') if path.is_file()]
    print(
        f'{out}: {len(embedding_map.tiles)} tiles, '
        f'{sum(path.stat().st_size for path in files) / 1e6:.1f} MB, origin '
        f'{imagery.frame.latitude_deg:.7f}, {imagery.frame.longitude_deg:.7f}, weights '
        f'{network.fingerprint[:12]}')


def _absolute(path: str | Path) -> str:
    """A path that also holds for workers in other folders; an address stays as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else str(path)


if __name__ == '__main__':
    sys.exit(main())
