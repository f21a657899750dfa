"""Turn bags and the imagery beneath them into one training file: ``python -m training.prepare``.

Images are decoded and undistorted as in the node, poses are the ground truth of the bag, and the
imagery lies in the map plane that ``build_map`` uses.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
import sys

import numpy as np
from tqdm import tqdm

from crossview_localizer.camera.views import sampling_image
from crossview_localizer.command import run_command
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks.safa import ModelConfig
from training.data.datasets import save_world, World


def prepare(bags: list[Path], imagery_paths: list[Path], name: str, px_m: float,
            spacing_m: float, report: Callable[[str], None] = print) -> World:
    """Read the images of the bags that are ``spacing_m`` apart, with their true poses.

    Images whose true pose is not known (before the first, after the last, or in a gap of the
    ground truth) are left out, and reported.  Raises ValueError if a bag holds no truth or its
    cameras differ.
    """
    # Bags and projections are needed here only, not where this module is merely loaded.
    from crossview_localizer.bags.drive import read_drive, read_posed_images
    from crossview_localizer.maps.imagery import Imagery

    imagery = Imagery.open(imagery_paths)
    west_m, south_m, east_m, north_m = imagery.bounds_m
    rows, cols = int((north_m - south_m) / px_m), int((east_m - west_m) / px_m)
    grid = MapGrid(rows, cols, px_m, west_m + px_m / 2, north_m - px_m / 2)
    raster, _ = imagery.raster(grid)
    images, poses, drive, camera = [], [], [], None
    for number, bag in enumerate(bags):
        truth = read_drive(bag, imagery.frame).truth
        if not len(truth):
            raise ValueError(f'{bag} holds no ground truth; convert it with --rtk')
        last_m, without_pose = None, 0
        posed = read_posed_images(bag, imagery.frame, truth)
        for image, pose in tqdm(posed, desc=Path(bag).parent.name, unit=' images'):
            if pose is None:
                without_pose += 1
                continue
            position_m = np.array([pose.x_m, pose.y_m])
            if last_m is not None and np.hypot(*(position_m - last_m)) < spacing_m:
                continue
            small, small_camera = sampling_image(image.rgb, image.camera)
            if camera is not None and small.shape != images[0].shape:
                raise ValueError(
                    f'{bag} has another camera than {bags[0]}; prepare one file for each')
            camera, last_m = small_camera, position_m
            images.append(small)
            poses.append((pose.x_m, pose.y_m, pose.yaw_rad))
            drive.append(number)
        if without_pose:
            report(f'{bag}: {without_pose} images without a known true pose are left out')
    if not images:
        raise ValueError(f'no image with a true pose in {", ".join(map(str, bags))}')
    return World(name, raster, grid, np.stack(images), camera, np.array(poses), np.array(drive))


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.prepare', description=__doc__.splitlines()[0],
        epilog='example: python -m training.prepare bag1 bag2 --imagery orthophoto.tif '
        '--out train/city1.npz')
    parser.add_argument('bags', nargs='+', type=Path, help='bags of robotcar_to_bag with truth')
    parser.add_argument('--imagery', nargs='+', type=Path, required=True, help='GeoTIFFs')
    parser.add_argument('--out', type=Path, required=True, help='.npz to write')
    parser.add_argument('--px-m', type=float, default=ModelConfig().px_m,
                        help='metres per pixel of the imagery (default: that of the network)')
    parser.add_argument('--spacing-m', type=float, default=2.0,
                        help='smallest distance between two images of a drive')
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> None:
    world = prepare(args.bags, args.imagery, args.out.stem, args.px_m, args.spacing_m)
    with write_atomically(args.out) as partial:
        save_world(world, partial)
    print(f'{args.out}: {len(world.images)} images, imagery {world.grid.rows} x {world.grid.cols}')


if __name__ == '__main__':
    sys.exit(main())
