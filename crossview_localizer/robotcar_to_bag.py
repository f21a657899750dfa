"""Convert an Oxford RobotCar traversal, real or simulated, to a rosbag2 (mcap)."""

import argparse
from pathlib import Path
import sys

from crossview_localizer.bags.arguments import add_conversion_arguments, run_conversion
from crossview_localizer.bags.robotcar_bag import convert, Options
from crossview_localizer.bags.robotcar_images import PAPER_CROP


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='robotcar_to_bag',
        description='Convert an Oxford RobotCar traversal to a rosbag2 (mcap).',
        epilog='example: robotcar_to_bag 2015-08-17-10-42-18 --models models '
        '--extrinsics extrinsics --rtk rtk/2015-08-17-10-42-18/rtk.csv --out drive '
        '--start 60 --duration 120',
    )
    parser.add_argument('traversal', type=Path, help='folder with stereo/centre, gps/ and vo/')
    parser.add_argument('--models', type=Path, required=True, help='folder of camera models')
    parser.add_argument(
        '--extrinsics', type=Path, required=True, help='folder with stereo.txt and ins.txt'
    )
    parser.add_argument('--rtk', type=Path, help='rtk.csv of this traversal (ground truth)')
    add_conversion_arguments(parser)
    parser.add_argument(
        '--undistort', action=argparse.BooleanOptionalAction, default=True,
        help='undistort with the table of the model (default); if not, camera_info has '
        'coefficients fitted to it',
    )
    parser.add_argument(
        '--crop', type=crop, metavar='U,V,WIDTH,HEIGHT',
        help='"none", or pixels of the raw image (default: the paper\'s '
        f'{",".join(map(str, PAPER_CROP))} of 1280x960, scaled to the images)',
    )
    parser.add_argument('--no-gnss', dest='gnss', action='store_false', help='leave out gps.csv')
    parser.add_argument(
        '--no-odometry', dest='odometry', action='store_false', help='leave out vo.csv'
    )
    return run_conversion(parser, argv, lambda **options: convert(Options(**options)))


def crop(text: str) -> tuple[int, ...]:
    if text == 'none':
        return ()
    try:
        u, v, width, height = (int(part) for part in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text} is not "none" or U,V,WIDTH,HEIGHT') from None
    return u, v, width, height


if __name__ == '__main__':
    sys.exit(main())
