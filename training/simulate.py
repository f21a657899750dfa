"""Render simulated worlds and prepare them for training, by way of the RobotCar formats.

A world is rendered, its traversals are converted to bags and prepared as one ``.npz``; then the
raw files are deleted. Existing worlds are skipped, so that a stopped run goes on.
"""

import argparse
from pathlib import Path
import shutil
import sys

from crossview_localizer.command import run_command
from training.data.datasets import save_world


def simulate(seed: int, out: Path, image_size: tuple[int, int], rate_hz: float, duration_s: float,
             traversals: int, jobs: int, px_m: float, layout: Path | None = None,
             **city) -> Path:
    """Make ``out/world_SEED.npz`` unless it exists; returns its path.

    ``city`` are the settings of the town and its route for ``make_world``.
    """
    from crossview_localizer.bags.robotcar_bag import convert, Options
    from training.prepare import prepare
    from training.simulation import make_world

    path = out / f'world_{seed}.npz'
    if path.exists():
        return path
    raw = out / f'raw_{seed}'
    names = make_world(raw, seed, image_size=image_size, rate_hz=rate_hz, duration_s=duration_s,
                       traversals=traversals, jobs=jobs, layout=layout, **city)
    bags = []
    for name in names:
        bags.append(raw / 'bags' / name)
        bags[-1].parent.mkdir(exist_ok=True)
        convert(Options(raw / name, raw / 'models', raw / 'extrinsics', bags[-1],
                        raw / 'rtk' / name / 'rtk.csv', overwrite=True), progress=False)
    world = prepare(bags, [raw / 'orthophoto.tif'], path.stem, px_m, 2.0)
    save_world(world, path)
    shutil.rmtree(raw)
    print(f'{path}: {len(world.images)} images (SIMULATION)', flush=True)
    return path


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.simulate', description=__doc__.splitlines()[0],
        epilog='example: python -m training.simulate --seeds 100 112 --out runs/train')
    parser.add_argument('--seeds', nargs=2, type=int, required=True, metavar=('FIRST', 'END'),
                        help='worlds FIRST to END - 1')
    parser.add_argument('--out', type=Path, required=True, help='folder of the .npz files')
    parser.add_argument('--image-size', default='320x240', help='size of the raw images, 4:3')
    parser.add_argument('--rate-hz', type=float, default=2.0, help='images per second')
    parser.add_argument('--duration-s', type=float, default=130.0, help='length of each drive')
    parser.add_argument('--traversals', type=int, default=2,
                        help='drives per world, on different days')
    parser.add_argument('--jobs', type=int, default=2, help='rendering processes')
    parser.add_argument('--px-m', type=float, default=0.375,
                        help='metres per pixel of the imagery for the network (default 0.375)')
    parser.add_argument('--layout', type=Path,
                        help='folder of a land-cover raster and a trajectory, as for '
                             'training.simulation; towns differ in all that it leaves open')
    return run_command(parser, arguments, simulate_worlds)


def simulate_worlds(args: argparse.Namespace) -> None:
    width, _, height = args.image_size.partition('x')
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(*args.seeds):
        simulate(seed, args.out, (int(width), int(height)), args.rate_hz, args.duration_s,
                 args.traversals, args.jobs, args.px_m, args.layout)


if __name__ == '__main__':
    sys.exit(main())
