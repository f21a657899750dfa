"""Command line of the simulated world."""

import argparse
import os
import sys

from crossview_localizer.command import run_command

for _name in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ.setdefault(_name, '1')  # parallel over frames, not inside them


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(v) for v in text.lower().split('x'))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r}; expected WIDTHxHEIGHT, for example 640x480') from None
    return width, height


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.simulation',
        description='Render a SIMULATED city and drives through it, in RobotCar raw formats.',
        epilog='examples: python -m training.simulation worlds/7 --seed 7 --duration-s 130; '
               'python -m training.simulation worlds/k9 --seed 1 --layout FOLDER')
    parser.add_argument('out', metavar='OUT', help='folder to write; a killed run is resumed')
    parser.add_argument('--seed', type=int, required=True,
                        help='seed of the city, its days and its drives')
    parser.add_argument('--day', type=int, default=0, help='day of the first traversal')
    parser.add_argument('--ortho-day', type=int, default=1000, help='day of the orthophoto')
    parser.add_argument('--duration-s', type=float, default=130.0,
                        help='length of each drive (default 130)')
    parser.add_argument('--rate-hz', type=float, default=4.0, help='images per second (default 4)')
    parser.add_argument('--image-size', type=_size, default=(640, 480), metavar='WxH',
                        help='size of the images (default 640x480)')
    parser.add_argument('--jobs', type=int, default=2, help='processes')
    parser.add_argument('--ortho-px-m', type=float, default=0.2,
                        help='size of a pixel of the orthophoto (default 0.2)')
    parser.add_argument('--warp-rms-m', type=float, default=0.0,
                        help='smooth distortion of the orthophoto, RMS (default 0)')
    parser.add_argument('--traversals', type=int, default=1, help='drives on successive days')
    parser.add_argument('--city-size-m', type=float, default=500.0,
                        help='side of the city (default 500)')
    parser.add_argument('--layout', metavar='FOLDER',
                        help='land-cover raster and trajectory to lay the city out after: '
                             'class1.png (road), class3 (building), class4 (tree), '
                             'pose_pixels_col_row.txt, registration.json')
    parser.add_argument('--layout-start-m', type=float, default=0.0,
                        help="where on the layout's trajectory the drive begins")
    parser.add_argument('--route-m', type=float, default=0.0,
                        help='length of one route that all traversals drive (default: each its '
                        'own); give a duration that suffices')
    return run_command(
        parser, argv, _simulate, 'interrupted; the same command goes on from here')


def _simulate(arguments: argparse.Namespace) -> None:
    import cv2

    from . import make_world

    cv2.setNumThreads(1)
    options = vars(arguments)
    names = make_world(options.pop('out'), options.pop('seed'), **options)
    print('simulated traversals: ' + ' '.join(names))


if __name__ == '__main__':
    sys.exit(main())
