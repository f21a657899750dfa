"""Fit the camera's height and pitch, and with a map the imagery's offset, from a drive.

Height and pitch come from the motion between two images and from odometry: they need neither map
nor weights.  The offset comes from the dense matcher at known poses.
"""

import argparse
from dataclasses import replace
from pathlib import Path
import sys

from crossview_localizer.bags.arguments import add_topic_arguments, topics_from_arguments
from crossview_localizer.bags.camera_calibration import (
    fit_motion,
    fit_offset_of_bag,
    fitted_camera,
    summary,
)
from crossview_localizer.command import run_command
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.matching.imagery_offset import MIN_FRAMES
from crossview_localizer.parameter_file import read_parameters


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='calibrate_camera', description=__doc__.splitlines()[0],
        epilog='example: ros2 run crossview_localizer calibrate_camera drive --params my.yaml '
        '--map my.map --weights dense.safetensors')
    parser.add_argument('bag', type=Path,
                        help='a drive with images and odometry; the offset also needs ground '
                        'truth or GNSS')
    parser.add_argument('--params', type=Path,
                        help='parameter file of the node, with the camera to start from')
    parser.add_argument('--map', type=Path, help="map of build_map; fits the imagery's offset too")
    parser.add_argument('--weights', type=Path, help='weights of the dense matcher, for --map')
    parser.add_argument('--filtered', action='store_true',
                        help="use the filter's poses for the offset, even if the bag has true "
                        'ones')
    parser.add_argument('--frames', type=int, default=80,
                        help='largest number of images for the offset (default 80)')
    parser.add_argument('--spacing-m', type=float, default=5.0,
                        help='smallest distance between two of these images (default 5)')
    add_topic_arguments(
        parser, ('image', 'camera_info', 'gnss', 'odometry', 'tf_static', 'truth'))
    parser.add_argument('--device', default='cpu', help='cpu or cuda')
    return run_command(parser, arguments, _calibrate)


def _calibrate(args: argparse.Namespace) -> None:
    if args.frames < MIN_FRAMES:
        raise ValueError(f'--frames {args.frames}; expected at least {MIN_FRAMES}')
    if (args.map is None) != (args.weights is None):
        raise ValueError('only one of --map and --weights is given; the offset needs both')
    node_config, config = (read_parameters(args.params) if args.params
                           else (NodeConfig(), LocalizerConfig()))
    topics = topics_from_arguments(args)
    motion, offset = fit_motion(args.bag, node_config, config, topics), None
    if args.map:
        fitted = replace(config, camera=fitted_camera(motion, config.camera))
        offset = fit_offset_of_bag(args.bag, args.map, args.weights, node_config, fitted,
                                   args.filtered, args.spacing_m, args.frames, args.device, topics)
    print(summary(motion, offset, config.camera))


if __name__ == '__main__':
    sys.exit(main())
