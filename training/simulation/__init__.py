"""A simulated world in Oxford RobotCar's raw formats: one seeded city, seen on different days.

``make_world(out, seed, ...)`` is the whole interface; ``python -m training.simulation`` calls it.
Everything is a function of the seed: the city of the seed alone, a view of the seed and its day.
"""

from concurrent.futures import as_completed, ProcessPoolExecutor
from dataclasses import asdict, dataclass
import json
import multiprocessing
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .appearance import draw_day
from .city_planning.planner import build_city
from .drive import drive, same_route
from .layout import build_layout, read_layout
from .region import Region
from .renderer import (
    CameraRenderer,
    draw_aerial_look,
    make_scene,
    render_aerial,
    Renderer,
)
from .robotcar_writer import (
    frame_times,
    OrthophotoWriter,
    traversal_name,
    world_text,
    write_extrinsics,
    write_file,
    write_models,
    write_png,
    write_traversal,
)

_STRIP_ROWS = 64

# Imagery beyond the nominal city, so that tiles beside its outermost streets are whole.
ORTHO_MARGIN_M = 40.0


def make_world(
    out: Path | str, seed: int, *, day: int = 0, ortho_day: int = 1000, duration_s: float = 130.0,
    rate_hz: float = 4.0, image_size: tuple[int, int] = (640, 480), jobs: int = 2,
    ortho_px_m: float = 0.2, warp_rms_m: float = 0.0, traversals: int = 1,
    city_size_m: float = 500.0, layout: Path | str | None = None, layout_start_m: float = 0.0,
    route_m: float = 0.0, region: Region | None = None, progress: bool = True,
) -> list[str]:
    """Render a city and ``traversals`` drives (days day, day + 1, ...) into ``out``.

    With ``layout``, a folder as ``layout.read_layout`` takes it, the city is laid out as its
    land cover says and driven along its trajectory, from ``layout_start_m`` on and at most to its
    end; ``city_size_m`` is then what that takes.  With ``route_m`` all traversals drive the same
    route of that length, at most to its end; else each has one of its own.  ``region`` is one
    that differs from an ordinary town.

    Resumes what a killed run left and then ends with the same bytes.  ``jobs`` > 1 starts
    processes by spawn, so a calling script needs the usual ``if __name__ == '__main__'``.

    :returns: the traversals' names (folders of ``out``).
    :raises ValueError: for arguments that make no world, or where ``out`` holds another one.
    """
    out = Path(out)
    width, height = image_size
    _check(seed, duration_s, rate_hz, width, height, jobs, ortho_px_m, warp_rms_m, traversals, day,
           ortho_day, route_m)
    if route_m and layout is not None:
        raise ValueError('a layout has a route of its own; expected no route length with it')
    town = region or Region()
    if layout is None:
        city, source = build_city(seed, city_size_m, town.block_m), None
        if route_m:
            city.trajectory = same_route(city, seed, route_m)
    else:
        city, source = build_layout(read_layout(layout), seed, layout_start_m, duration_s)
        city_size_m = city.size_m
    model = town.camera(width, height)
    aerial = draw_day(seed, ortho_day, aerial=True)
    days = [town.season(draw_day(seed, day + k)) for k in range(traversals)]
    drives = [drive(city, seed, d.number, duration_s, town.camera_height_m) for d in days]

    # Everything but pixels first: it is small, and says whether the folder is this world's.
    statement = 'procedural city' if source is None else 'city after a land-cover raster'
    names, starts = [], []
    for d in days:
        name, start_us = traversal_name(d.start, names)
        names.append(name)
        starts.append(start_us)
    world = {
        'statement': f'SIMULATION: rendered {statement} and simulated sensors in the raw '
                     'formats of the Oxford RobotCar dataset; not real data.',
        'seed': seed, 'city_size_m': city_size_m, 'image_size': [width, height],
        'rate_hz': rate_hz, 'duration_s': duration_s, 'ortho_px_m': ortho_px_m,
        'warp_rms_m': warp_rms_m, 'nominal_camera_height_m': town.camera_height_m,
        'orthophoto_day': aerial.summary(), 'traversals': [],
    }
    if source is not None:
        world['layout'] = source
    if route_m:
        world['route_m'] = route_m
    if region is not None:
        world['region'] = json.loads(json.dumps(asdict(region)))
    _refuse_other_world(out, world)
    write_models(out, model)
    write_extrinsics(out)
    for name, start_us, d, motion in zip(names, starts, days, drives, strict=True):
        facts = write_traversal(out, name, start_us, motion, seed, d.number, rate_hz)
        world['traversals'].append(facts | {'day': d.summary()})
    write_file(out / 'world.json', world_text(world))

    path = out / 'orthophoto.tif'
    if not path.exists():
        writer = OrthophotoWriter(
            city_size_m + 2 * ORTHO_MARGIN_M, ortho_px_m, seed, warp_rms_m)
        image = np.empty((writer.count, writer.count, 3), np.uint8)
        tasks = [_Strip(row, min(row + _STRIP_ROWS, writer.count))
                 for row in range(0, writer.count, _STRIP_ROWS)]
        scene = town.dress(make_scene(city, aerial, seed * 1000 + 999), False)
        look = draw_aerial_look(seed, aerial)
        setup = (_setup_aerial, scene, (city, look, writer, seed))
        for strip, pixels in _run(tasks, setup, jobs, progress, 'orthophoto'):
            image[strip.row0:strip.row1] = pixels
        writer.write(path, cv2.GaussianBlur(image, (0, 0), look.blur_px))
    for name, start_us, d, motion in zip(names, starts, days, drives, strict=True):
        time_s, stored = frame_times(seed, d.number, motion.duration_s, rate_hz)
        poses = motion.at(time_s[stored])
        axes = poses.camera_axes(motion.camera_pitch_rad)
        folder = out / name / 'stereo/centre'
        tasks = [
            _Frame(folder / f'{start_us + round(t * 1e6)}.png', poses.position[k], axes[k],
                   float(t), (seed, 24, d.number, k))
            for k, t in enumerate(poses.time_s)]
        tasks = [task for task in tasks if not task.path.exists()]
        if tasks:
            scene = town.dress(make_scene(city, d, seed * 1000 + d.number % 999), True)
            for _ in _run(tasks, (_setup_camera, scene, (model,)), jobs, progress, name):
                pass
    return names


def _check(seed, duration_s, rate_hz, width, height, jobs, ortho_px_m, warp_rms_m, traversals, day,
           ortho_day, route_m):
    for ok, found, expected in (
        (seed >= 0 and day >= 0 and ortho_day >= 0, f'seed {seed}, day {day}, orthophoto day '
         f'{ortho_day}', 'none below 0'),
        (5.0 <= duration_s <= 3600.0, f'duration {duration_s:g} s', '5 to 3600'),
        (0.1 <= rate_hz <= 16.0, f'rate {rate_hz:g} Hz', '0.1 to 16'),
        (width >= 32 and width * 3 == height * 4, f'image size {width}x{height}',
         '4:3 as the real camera, for example 640x480'),
        (jobs >= 1, f'{jobs} jobs', 'at least 1'),
        (0.05 <= ortho_px_m <= 2.0, f'orthophoto pixel {ortho_px_m:g} m', '0.05 to 2'),
        (0.0 <= warp_rms_m <= 5.0, f'warp {warp_rms_m:g} m', '0 to 5'),
        (traversals >= 0, f'{traversals} traversals', 'at least 0'),
        (route_m == 0.0 or 100.0 <= route_m <= 20_000.0, f'route of {route_m:g} m',
         '100 to 20000, or 0: one of its own a traversal'),
        (not day <= ortho_day < day + traversals, f'orthophoto day {ortho_day}',
         'a day on which no traversal is driven'),
    ):
        if not ok:
            raise ValueError(f'{found}; expected {expected}')


def _refuse_other_world(out, world):
    path = out / 'world.json'
    if not path.exists():
        return
    found = json.loads(path.read_text())
    for key, value in world.items():
        if key != 'traversals' and found.get(key) != value:
            raise ValueError(
                f'{path} is of another world ({key} is {found.get(key)}, asked for {value}); '
                'give another folder or delete this one')


# --- work for the processes --------------------------------------------------------------------

@dataclass(frozen=True)
class _Frame:
    path: Path
    position: np.ndarray
    axes: np.ndarray
    time_s: float
    seed: tuple


@dataclass(frozen=True)
class _Strip:
    row0: int
    row1: int


_work = None


def _setup_camera(renderer, model):
    camera = CameraRenderer(renderer, model)

    def work(frame):
        rng = np.random.default_rng(frame.seed)
        exposure = float(np.exp(rng.normal(0.0, 0.06)))
        image = camera.bayer(frame.position, frame.axes, rng, frame.time_s, exposure)
        write_png(frame.path, image)

    return work


def _setup_aerial(renderer, city, look, writer, seed):
    def work(strip):
        rng = np.random.default_rng([seed, 25, renderer.day.number, strip.row0])
        x, y = writer.xy(strip.row0, strip.row1)
        return render_aerial(renderer, city, look, x, y, writer.px_m, rng)

    return work


def _initialise(setup, scene, arguments):
    global _work
    cv2.setNumThreads(1)
    _work = setup(Renderer(scene), *arguments)


def _call(task):
    return task, _work(task)


def _run(tasks, setup, jobs, progress, label):
    """Yield (task, result) as they finish, in this process or in ``jobs`` spawned ones."""
    make, scene, arguments = setup
    with tqdm(total=len(tasks), desc=label, disable=not progress) as bar:
        if jobs == 1:
            work = make(Renderer(scene), *arguments)
            for task in tasks:
                yield task, work(task)
                bar.update()
            return
        with ProcessPoolExecutor(
            jobs, multiprocessing.get_context('spawn'), _initialise, setup
        ) as pool:
            for future in as_completed([pool.submit(_call, task) for task in tasks]):
                yield future.result()
                bar.update()
