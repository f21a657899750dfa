"""Convert a raw KITTI drive to a rosbag2 (mcap)."""

import argparse
from pathlib import Path
import sys

from crossview_localizer.bags.arguments import add_conversion_arguments, run_conversion
from crossview_localizer.bags.kitti_bag import convert, Options


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog='kitti_to_bag', description='Convert a raw KITTI drive to a rosbag2 (mcap).',
        epilog='example: kitti_to_bag raw_data/2011_09_26/2011_09_26_drive_0009_sync --out drive',
    )
    parser.add_argument('drive', type=Path, help='folder with image_02/ and oxts/')
    parser.add_argument(
        '--calibration', type=Path,
        help='folder of calib_cam_to_cam.txt, calib_velo_to_cam.txt and calib_imu_to_velo.txt '
        '(default: the folder that holds the drive)',
    )
    parser.add_argument(
        '--camera', choices=('02', '03'), default='02', help='left (default) or right in colour'
    )
    add_conversion_arguments(parser)
    return run_conversion(parser, argv, lambda **options: convert(Options(**options)))


if __name__ == '__main__':
    sys.exit(main())
