"""From a seed to a bag and its map: the first stages of the demo."""

from pathlib import Path

import numpy as np

RATE_HZ = 4.0
JOBS = 2
# Twice the resolution that the network takes; the orthophoto has the network's own pixel.
IMAGE_SIZE_PX = (480, 360)
ORTHO_PX_M = 0.25
CITY_M, QUICK_CITY_M = 500.0, 300.0  # side of the town

MAX_TILES = 5000
# Spacing and half width of the corridor of the map, best first.  3 m is the stride of the network
# on the ground, at which whole areas are embedded at once.
CORRIDORS_M = (
    *((3.0, half_width_m) for half_width_m in (40.0, 35.0, 30.0, 27.5, 25.0, 22.5, 20.0, 17.5)),
    (4.5, 20.0), (6.0, 20.0), (9.0, 20.0),
)


def simulate(
    out: Path, seed: int, duration_s: float, city_m: float, rate_hz: float, ortho_px_m: float,
) -> Path:
    """Render a world and a drive through it; returns the traversal's folder."""
    from training.simulation import make_world

    width_px, height_px = IMAGE_SIZE_PX
    print(f'SIMULATION: world seed {seed}, {duration_s:g} s, {width_px}x{height_px} px at '
          f'{rate_hz:g} Hz')
    [traversal] = make_world(
        out, seed, duration_s=duration_s, rate_hz=rate_hz, image_size=IMAGE_SIZE_PX,
        ortho_px_m=ortho_px_m, city_size_m=city_m, jobs=JOBS)
    return out / traversal


def convert(traversal: Path, bag: Path) -> None:
    """Convert a traversal of ``simulate`` to a bag with truth."""
    from crossview_localizer.bags import robotcar_bag

    world = traversal.parent
    robotcar_bag.convert(robotcar_bag.Options(
        traversal=traversal, models=world / 'models', extrinsics=world / 'extrinsics', out=bag,
        rtk=world / 'rtk' / traversal.name / 'rtk.csv'))


def build_corridor_map(world: Path, route: Path, network, path: Path) -> None:
    """Write the map of the corridor along a route, the widest that ``MAX_TILES`` allows."""
    from crossview_localizer.bags.route_file import read_route
    from crossview_localizer.maps.builder import build_map, Settings
    from crossview_localizer.maps.imagery import Imagery
    from crossview_localizer.maps.route import corridor
    from crossview_localizer.networks.dense import DENSE

    imagery = Imagery.open([world / 'orthophoto.tif'])
    route_latlon_deg = read_route(route)
    route_m = np.stack(imagery.frame.xy_from_latlon(*route_latlon_deg.T), axis=1)
    corridors_m = CORRIDORS_M
    if network.config.kind == DENSE:  # blocks side by side, as wide as the matcher needs
        corridors_m = [(network.lattice_spacing_m, network.corridor_m)]
    for spacing_m, half_width_m in corridors_m:
        _, wanted = corridor(route_m, half_width_m, spacing_m, imagery.bounds_m)
        if wanted.sum() <= MAX_TILES:
            break
    print(f'corridor of {half_width_m:g} m each way')
    path.parent.mkdir(exist_ok=True)
    build_map(
        imagery, network, Settings(spacing_m, half_width_m, max_tiles=MAX_TILES),
        route_latlon_deg, out=path, report=print)
