"""Convert a raw KITTI drive to a rosbag2 (mcap)."""

import argparse
from pathlib import Path
import sys

from crossview_localizer.bags.arguments import add_conversion_arguments
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
    arguments = vars(parser.parse_args(argv))
    options = Options(
        start_s=arguments.pop('start'), duration_s=arguments.pop('duration'), **arguments
    )
    try:
        convert(options)
    except (ValueError, OSError) as error:
        print(f'kitti_to_bag: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('kitti_to_bag: interrupted, nothing written', file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
