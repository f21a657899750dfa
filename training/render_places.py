"""Render places of many regions for training: pictures from above and frames on the ground."""

import argparse
from concurrent.futures import as_completed, ProcessPoolExecutor
import multiprocessing
from pathlib import Path
import sys

import cv2
import numpy as np
from tqdm import tqdm

from crossview_localizer.command import run_command
from crossview_localizer.geometry import MapGrid
from training.data.rendered_places import encode_jpeg, RenderedPlace, save_place, Shot
from training.simulation.planning.regions import REGIONS

AERIAL_PX_M = 0.25
AERIAL_PX = 720


def render_place(
        seed: int, out: Path, aerials: int, shots: int, frames: int, regions: list[str]) -> Path:
    """Make ``out/place_SEED.npz`` unless it is there; returns its path."""
    path = out / f'place_{seed:07d}.npz'
    if path.exists():
        return path
    from training.simulation.look import draw_look, make_scene
    from training.simulation.planning.planner import make_place
    from training.simulation.renderer import draw_aerial_look, render_aerial, Renderer
    from training.simulation.rig import draw_camera, draw_poses, photograph

    place = make_place(seed, regions)
    half = (AERIAL_PX - 1) / 2 * AERIAL_PX_M
    grid = MapGrid(AERIAL_PX, AERIAL_PX, AERIAL_PX_M, -half, half)
    x, y = np.meshgrid(*grid.cell_centres())
    pictures = []
    for k in range(aerials):
        look = draw_look(seed, [seed, 51, k], aerial=True)
        rng = np.random.default_rng([seed, 52, k])
        pictures.append(encode_jpeg(render_aerial(
            Renderer(make_scene(place, look)), place, draw_aerial_look(look.seed, look.day), x, y,
            AERIAL_PX_M, rng, samples=1)))
    taken = []
    for k in range(shots):
        rng = np.random.default_rng([seed, 53, k])
        camera = draw_camera(rng)
        poses = draw_poses(place, camera, frames, rng)
        look = draw_look(seed, [seed, 54, k], aerial=False)
        renderer = Renderer(make_scene(place, look, [(p.x_m, p.y_m) for p in poses]))
        taken.append(Shot(
            camera, [encode_jpeg(photograph(renderer, camera, pose, rng)) for pose in poses],
            np.array([(p.x_m, p.y_m, p.yaw_rad) for p in poses])))
    save_place(RenderedPlace(path.stem, place.region, grid, pictures, taken), path)
    return path


def _initialise() -> None:
    cv2.setNumThreads(1)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.render_places', description=__doc__,
        epilog='example: python -m training.render_places --seeds 0 1000 --out runs/places')
    parser.add_argument('--seeds', nargs=2, type=int, required=True, metavar=('FIRST', 'END'),
                        help='places FIRST to END - 1')
    parser.add_argument('--out', type=Path, required=True, help='folder of the .npz files')
    parser.add_argument('--regions', nargs='+', default=list(REGIONS), choices=REGIONS,
                        metavar='REGION', help=f'of {", ".join(REGIONS)} (default all)')
    parser.add_argument('--aerials', type=int, default=2,
                        help='pictures from above per place (default 2)')
    parser.add_argument('--shots', type=int, default=2,
                        help='cameras and days per place (default 2)')
    parser.add_argument('--frames', type=int, default=6, help='frames per camera (default 6)')
    parser.add_argument('--jobs', type=int, default=2, help='processes (default 2)')
    return run_command(parser, arguments, render_places)


def render_places(args: argparse.Namespace) -> None:
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context('spawn'),
                             _initialise) as pool:
        tasks = [pool.submit(render_place, seed, args.out, args.aerials, args.shots,
                             args.frames, args.regions) for seed in range(*args.seeds)]
        for task in tqdm(as_completed(tasks), total=len(tasks), desc='places'):
            task.result()


if __name__ == '__main__':
    sys.exit(main())
