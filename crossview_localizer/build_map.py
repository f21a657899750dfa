"""Build an embedding map from georeferenced imagery, over a whole area or along a route."""

import argparse
import os
from pathlib import Path
import subprocess
import sys

import torch

from crossview_localizer.bags.route_file import read_route
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.maps.builder import build_map
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.partial_build import partial_files
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
    parser.add_argument('--out', type=Path, required=True, help='the map file to write')
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument('--route', type=Path, metavar='FILE',
                       help='along this drive: a bag with a NavSatFix topic, a GPX file, or a CSV '
                       'with latitude and longitude (as gps.csv, ins.csv and rtk.csv of RobotCar)')
    where.add_argument('--area', action='store_true', help='all of the imagery')
    parser.add_argument('--topic', help='NavSatFix topic of the bag, if it has several')
    parser.add_argument('--corridor-m', type=float, metavar='M', help='tiles whose centre is this '
                        'close to the route (default: 25, dense 60)')
    parser.add_argument('--spacing-m', type=float, metavar='M', help='distance between tile '
                        "centres (default: the network's own, 3 for shipped tile weights)")
    parser.add_argument('--origin', type=float, nargs=2, metavar=('LAT', 'LON'), help='origin of '
                        'the map frame in degrees (default: the centre of the imagery)')
    parser.add_argument('--batch', type=int, default=16, metavar='N',
                        help='tiles per forward pass (default 16)')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=int, metavar='N', help='CPU threads of torch')
    parser.add_argument('--workers', type=int, default=1, metavar='N', help='processes that share '
                        'the work (default 1); for several machines with a common folder: '
                        'torchrun -m crossview_localizer.build_map ...')
    parser.add_argument('--share', type=int, help=argparse.SUPPRESS)
    parser.add_argument('--max-tiles', type=int, default=200_000, metavar='N',
                        help='refuse more (default 200000)')
    parser.add_argument('--max-crs-error', type=float, default=0.5, metavar='M', help='refuse '
                        'imagery whose CRS is known less well (default 0.5); inf takes all')
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _run(parser.parse_args(argv), argv)
    except (ValueError, OSError) as error:
        print(f'build_map: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('build_map: interrupted; the same command goes on from here', file=sys.stderr)
        return 130


def _share(arguments: argparse.Namespace) -> tuple[int, int]:
    """Which part of the work is this process's: of --workers, of torchrun's ranks, or all."""
    if arguments.workers < 1:
        raise ValueError(f'--workers is {arguments.workers}; expected 1 or more')
    ranks = int(os.environ.get('WORLD_SIZE', '1'))
    if ranks > 1 and arguments.workers > 1:
        raise ValueError('--workers within torchrun; expected one of the two')
    if arguments.share:
        return arguments.share, arguments.workers
    return (int(os.environ['RANK']), ranks) if ranks > 1 else (0, arguments.workers)


def _device(name: str, share: int) -> str:
    """The torch device of a share: each process of a machine takes the next of its GPUs."""
    if name == 'cpu':
        return name
    if not torch.cuda.is_available():
        raise ValueError('no CUDA device was found; use --device cpu')
    return f'cuda:{int(os.environ.get("LOCAL_RANK", share)) % torch.cuda.device_count()}'


class Workers:
    """The other processes of --workers: each has this command line and does its share."""

    def __init__(self, argv: list[str], count: int):
        self._processes = [
            subprocess.Popen(
                [sys.executable, '-m', 'crossview_localizer.build_map', *argv, '--share', str(k)],
                stdout=subprocess.DEVNULL)
            for k in range(1, count)]

    def __enter__(self) -> 'Workers':
        return self

    def require_all(self) -> None:
        """Raise ValueError if one has failed."""
        for process in self._processes:
            if process.poll():
                raise ValueError(
                    f'one of the --workers ended with {process.returncode}; the same command '
                    'goes on from here')

    def __exit__(self, kind, *_):
        for process in self._processes:
            if kind is not None:
                process.terminate()
            process.wait()


def _run(arguments: argparse.Namespace, argv: list[str]) -> int:
    share = _share(arguments)
    device = _device(arguments.device, share[0])
    if arguments.threads is not None:
        if arguments.threads < 1:
            raise ValueError(f'--threads is {arguments.threads}; expected 1 or more')
        torch.set_num_threads(arguments.threads)
    if arguments.out.is_dir() or not arguments.out.parent.is_dir():
        raise ValueError(
            f'{arguments.out} cannot be written; expected a file in a folder that exists')
    frame = LocalFrame(*arguments.origin) if arguments.origin else None
    imagery = Imagery.open(arguments.imagery, frame)
    for line in (*imagery.crs_accuracy, *imagery.notes):
        print(line)
    route = read_route(arguments.route, arguments.topic) if arguments.route else None
    weights = arguments.weights
    if weights is None:     # this import needs ROS; a machine without it must be given the weights
        from crossview_localizer.ros.localizer_holder import shipped_weights
        weights = shipped_weights()
    network = load_network(weights, device)
    partial = arguments.out.with_name(arguments.out.name + '.partial')
    with Workers(argv, arguments.workers if share[0] == 0 else 1) as workers:
        embedding_map = build_map(
            imagery, network, arguments.spacing_m, route, arguments.corridor_m, arguments.batch,
            device, arguments.max_tiles, arguments.max_crs_error, partial, print, share,
            workers.require_all)
    if embedding_map is None:
        return 0
    embedding_map.save(arguments.out)
    for path in partial_files(partial):
        path.unlink()
    print(
        f'{arguments.out}: {len(embedding_map.descriptors)} tiles, '
        f'{arguments.out.stat().st_size / 1e6:.1f} MB, origin {imagery.frame.latitude_deg:.7f}, '
        f'{imagery.frame.longitude_deg:.7f}, weights {network.fingerprint[:12]}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
