"""The papers' figures: heat maps of 100 m and 1 km, and what a network uses of a ground image.

``heatmaps`` shows how similar every place around the truth is to one image, for two networks side
by side. ``overlays`` draws two maps over the ground image: how strongly each cell of the ground
branch enters the descriptor, and what it adds to the similarity with the right tile.
Both read prepared worlds (``training.prepare``). Shape legend: R, C rows and columns of tiles.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
import sys

import matplotlib

matplotlib.use('Agg')
import cv2  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import TwoSlopeNorm  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from crossview_localizer.camera import views  # noqa: E402
from crossview_localizer.command import run_command
from crossview_localizer.datatypes import CameraModel  # noqa: E402
from crossview_localizer.geometry import MapGrid  # noqa: E402
from crossview_localizer.networks.checkpoint import load_network, prepare_torch  # noqa: E402
from crossview_localizer.networks.safa import views_to_tensor  # noqa: E402
from training.data.datasets import load_world, World  # noqa: E402

BLOCK_TILES = 16           # tiles per side that are embedded at once
DPI = 130
MIN_GROUND_M = 1.0         # road nearer than this to the camera is under the bonnet


@dataclass(frozen=True)
class TileDistances:
    """Squared descriptor distances (R, C), 0 to 4, of the tiles centred on the cells of a grid."""

    distance: np.ndarray
    grid: MapGrid

    def best_m(self) -> tuple[float, float]:
        """The centre of the most similar tile."""
        row, col = np.unravel_index(self.distance.argmin(), self.distance.shape)
        x_m, y_m = self.grid.xy_from_row_col(row, col)
        return float(x_m), float(y_m)

    def extent_m(self) -> tuple[float, float, float, float]:
        """The west, east, south and north edges."""
        half_m = self.grid.cell_m / 2
        east_m, south_m = self.grid.xy_from_row_col(self.grid.rows - 1, self.grid.cols - 1)
        return (self.grid.x0_m - half_m, east_m + half_m, south_m - half_m,
                self.grid.y0_m + half_m)


def ground_view_of(network, world: World, image: int) -> np.ndarray:
    """What the network is shown of an image, for its true heading."""
    config = network.config
    return views.ground_view(config.ground_view, world.images[image], world.camera,
                             world.poses[image, 2], config.view_px, config.px_m)


def require_resolution(network, world: World) -> None:
    """Raise ValueError if the world was prepared at another resolution than the network's."""
    if abs(world.grid.cell_m / network.config.px_m - 1.0) > 0.01:
        raise ValueError(
            f'{world.name} has {world.grid.cell_m:.4f} m per pixel, the network '
            f'{network.config.px_m:.4f}; prepare it with --px-m {network.config.px_m:.6g}')


def score_around(network, world: World, image: int, size_m: float, spacing_m: float,
                 device: str = 'cpu') -> TileDistances:
    """Compare one image with all tiles in a square around its true position.

    The tiles are about ``spacing_m`` apart. Only tiles whose described part is wholly inside the
    imagery are compared, so the square may be cut. Raises ValueError if no tile is left, or if
    world and network differ in resolution.
    """
    config = network.config
    require_resolution(network, world)
    stride = getattr(getattr(network, 'satellite', None), 'stride', 8)
    at_once = hasattr(network, 'embed_lattice') and config.margin_px > 0
    step = stride if at_once else max(1, round(spacing_m / config.px_m))
    row, col = (float(value) for value in world.grid.row_col_from_xy(*world.poses[image, :2]))
    reach = size_m / 2 / config.px_m
    # First pixels of the described parts; in the padded imagery those of the whole tiles.
    middle = (config.view_px - 1) / 2
    tops = _first_pixels(row - middle, reach, step, world.grid.rows - config.view_px)
    lefts = _first_pixels(col - middle, reach, step, world.grid.cols - config.view_px)
    if not len(tops) or not len(lefts):
        raise ValueError(
            f'no tile about image {image} of {world.name} lies wholly inside its imagery')

    view = views_to_tensor(ground_view_of(network, world, image), device)
    ground = network.embed_ground(view)[0]
    imagery = np.pad(
        world.imagery, [[config.margin_px] * 2] * 2 + [[0, 0]], constant_values=views.UNSEEN)
    cosine = np.empty((len(tops), len(lefts)))
    blocks = [(r, c) for r in range(0, len(tops), BLOCK_TILES)
              for c in range(0, len(lefts), BLOCK_TILES)]
    for r, c in tqdm(blocks, desc=f'image {image}, {size_m:g} m', leave=False, mininterval=1.0):
        rows, cols = tops[r:r + BLOCK_TILES], lefts[c:c + BLOCK_TILES]
        area = torch.from_numpy(np.ascontiguousarray(imagery[
            rows[0]:rows[-1] + config.tile_px, cols[0]:cols[-1] + config.tile_px])).to(device)
        if at_once:
            described = network.embed_lattice(area)                         # (R, C, K)
        else:
            described = torch.stack([
                network.embed_satellite(torch.stack([
                    area[top - rows[0]:, left - cols[0]:][:config.tile_px, :config.tile_px]
                    for left in cols.tolist()]))
                for top in rows.tolist()])
        cosine[r:r + len(rows), c:c + len(cols)] = (described @ ground).double().cpu().numpy()
    x0_m, y0_m = world.grid.xy_from_row_col(tops[0] + middle, lefts[0] + middle)
    return TileDistances(2.0 - 2.0 * cosine, MapGrid(
        len(tops), len(lefts), step * config.px_m, float(x0_m), float(y0_m)))


def _first_pixels(centre: float, reach: float, step: int, last: int) -> np.ndarray:
    """First pixels of tiles, ``step`` apart, within ``reach`` of ``centre`` and in 0..last."""
    count = int(reach // step)
    firsts = round(centre) + step * np.arange(-count, count + 1)
    return firsts[(firsts >= 0) & (firsts <= last)]


def heatmaps(networks: dict[str, object], shown: list[tuple[World, int]], sizes_m: list[float],
             spacing_m: float, label: str, device: str = 'cpu', features: bool = False) -> Figure:
    """One row per image: the image, then for each size the networks side by side.

    ``shown`` are worlds with the number of an image; ``label`` says in the title what the data
    are. With ``features`` the last columns show how strongly each part of the image enters the
    networks' descriptors.
    """
    columns = 1 + (len(sizes_m) + features) * len(networks)
    figure, axes = plt.subplots(
        len(shown), columns, figsize=(3.6 * columns + 0.9, 3.9 * len(shown) + 0.4),
        squeeze=False, layout='constrained')
    for line, (world, image) in zip(axes, shown):
        panels = iter(line)
        panel = next(panels)
        panel.imshow(world.images[image])
        panel.set_title(f'{world.name}, image {image}', fontsize=9)
        panel.set_axis_off()
        truth_m = world.poses[image, :2]
        for size_m in sizes_m:
            for name, network in networks.items():
                scored = score_around(network, world, image, size_m, spacing_m, device)
                panel = next(panels)
                heat = _show_heat(panel, scored, world, image, size_m)
                error_m = float(np.hypot(*(np.array(scored.best_m()) - truth_m)))
                cut = min(scored.grid.rows, scored.grid.cols) * scored.grid.cell_m < 0.9 * size_m
                panel.set_title(f'{name}, {size_m:g} m{" (imagery ends)" if cut else ""}: '
                                f'{error_m:.1f} m off', fontsize=9)
        for (name, network), panel in zip(networks.items(), panels):
            strength = cells_of(network, world, image).strength
            panel.imshow(world.images[image])
            panel.imshow(
                project_to_camera(strength, network, world.camera, world.poses[image, 2]),
                cmap='inferno', alpha=0.55, vmin=0.0, vmax=strength.max())
            panel.set_title(f'{name}: strength of the features', fontsize=9)
            panel.set_axis_off()
    axes[0, 1].legend(loc='upper left', fontsize=7, framealpha=0.85)
    bar = figure.colorbar(heat, ax=axes, shrink=0.6, pad=0.01, ticks=[0.0, 1.0])
    bar.ax.set_yticklabels(['least', 'most'])
    bar.set_label('similarity exp(-d), each panel on its own scale')
    figure.suptitle(f'{label}: similarity of places to one image; '
                    'metres east and north of where it was taken', fontsize=11)
    return figure


def _show_heat(panel: Axes, scored: TileDistances, world: World, image: int, size_m: float):
    """Draw a heat map; returns what a colour bar needs."""
    similarity = np.exp(-scored.distance)
    low, high = similarity.min(), similarity.max()
    scaled = (similarity - low) / max(high - low, 1e-12)
    extent_m = scored.extent_m()
    _show_imagery(panel, world, extent_m)
    shown = panel.imshow(scaled, extent=extent_m, cmap='inferno', vmin=0.0, vmax=1.0,
                         alpha=0.25 + 0.5 * scaled, interpolation='bilinear')
    truth_m = world.poses[image, :2]
    panel.plot(*truth_m, 'o', mfc='none', mec='white', ms=11, mew=3.2)
    panel.plot(*truth_m, 'o', mfc='none', mec='black', ms=11, mew=1.2, ls='none', label='truth')
    panel.plot(*scored.best_m(), 'X', color='#00e5ff', mec='black', ms=8, ls='none',
               label='most similar')
    # Metres east and north of the truth.
    west_m, east_m, south_m, north_m = extent_m
    ticks = np.linspace(-size_m / 2, size_m / 2, 5)
    panel.set_xticks(truth_m[0] + ticks, [f'{tick:g}' for tick in ticks], fontsize=7)
    panel.set_yticks(truth_m[1] + ticks, [f'{tick:g}' for tick in ticks], fontsize=7)
    panel.set(xlim=(west_m, east_m), ylim=(south_m, north_m), aspect='equal')
    return shown


def _show_imagery(panel: Axes, world: World, extent_m) -> None:
    grid = world.grid
    top, left = grid.row_col_from_xy(extent_m[0], extent_m[3])
    bottom, right = grid.row_col_from_xy(extent_m[1], extent_m[2])
    r0, c0 = max(0, round(float(top))), max(0, round(float(left)))
    cut = world.imagery[r0:round(float(bottom)) + 1, c0:round(float(right)) + 1]
    grey = cv2.cvtColor(np.ascontiguousarray(cut), cv2.COLOR_RGB2GRAY)
    panel.imshow(grey, extent=extent_m, cmap='gray', vmin=0, vmax=255)


@dataclass(frozen=True)
class CellShares:
    """What each cell (rows, cols) of the ground branch contributes for one image.

    ``strength`` is its part in the descriptor: the sum over the heads of the length of its
    weighted features. ``similarity`` is its part in the cosine with the right tile; the cells add
    up to that cosine. Both are of SAFA's descriptor without the grey detail.
    """

    strength: np.ndarray
    similarity: np.ndarray


@torch.no_grad()
def cell_shares(network, view: np.ndarray, tile: np.ndarray) -> CellShares:
    """``view`` is what ``ground_view_of`` gives, ``tile`` (tile_px, tile_px, 3) the right one."""
    if not hasattr(network, 'ground_features'):
        raise ValueError('this network aggregates no features; expected weights of a SAFA network')
    features = network.ground_features(views_to_tensor(view, 'cpu'))         # (1, C, rows, cols)
    rows, cols = features.shape[2:]
    flat = features.flatten(2).transpose(1, 2)                               # (1, N, C)
    attention = network.ground.aggregation.attention(flat)[0]                # (N, D)
    descriptor = network.ground.aggregation(flat)[0]                         # (D * C,)
    target = network.satellite_descriptors(views_to_tensor(tile, 'cpu'))[0]
    towards = flat[0] @ target.view(attention.shape[1], -1).T                # (N, D)
    similarity = (attention * towards).sum(1) / descriptor.norm()
    strength = attention.abs().sum(1) * flat[0].norm(dim=1)
    return CellShares(*(
        values.view(rows, cols).double().numpy() for values in (strength, similarity)))


def cells_of(network, world: World, image: int) -> CellShares:
    """The shares of one image with the tile where it was taken."""
    tile, _ = world.area(*world.poses[image, :2], network.config.tile_px)
    return cell_shares(network, ground_view_of(network, world, image), tile)


def project_to_camera(values: np.ndarray, network, camera: CameraModel,
                      yaw_rad: float) -> np.ndarray:
    """Values of cells (rows, cols) at the camera's pixels (H, W); NaN where no cell is seen.

    The cells of a bird's-eye view lie on the flat road, turned by the heading; those of a front
    camera cover what ``views.camera_view`` takes of the frame.
    """
    rows, cols = values.shape
    v_px, u_px = np.mgrid[0:camera.height_px, 0:camera.width_px].astype(np.float64)
    if network.config.ground_view == 'birds_eye':
        ray = np.stack(((u_px - camera.cx_px) / camera.fx_px,
                        (v_px - camera.cy_px) / camera.fy_px, np.ones_like(u_px)))
        ahead, left, up = np.tensordot(camera.base_from_camera[:3, :3], ray, axes=1)
        below = up < -1e-6
        scale = camera.height_m / np.where(below, -up, 1.0)
        ahead_m = camera.base_from_camera[0, 3] + ahead * scale
        left_m = camera.base_from_camera[1, 3] + left * scale
        cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
        east_m, north_m = cos * ahead_m - sin * left_m, sin * ahead_m + cos * left_m
        cell_m = network.config.view_px * network.config.px_m / rows
        row = (rows - 1) / 2 - north_m / cell_m
        col = (cols - 1) / 2 + east_m / cell_m
        known = below & (ahead_m > MIN_GROUND_M)
    else:
        # Where the corners of the network's view lie in the frame.
        places = views.camera_view(np.dstack((u_px, v_px)).astype(np.float32))
        (left_px, top_px), (right_px, bottom_px) = places[0, 0], places[-1, -1]
        height, width = places.shape[:2]
        view_row = (v_px - top_px) / (bottom_px - top_px) * (height - 1)
        view_col = (u_px - left_px) / (right_px - left_px) * (width - 1)
        row = (view_row + 0.5) * rows / height - 0.5
        col = (view_col + 0.5) * cols / width - 0.5
        known = np.ones(row.shape, bool)
    known &= (row > -0.5) & (row < rows - 0.5) & (col > -0.5) & (col < cols - 0.5)
    sampled = cv2.remap(values.astype(np.float32), col.astype(np.float32), row.astype(np.float32),
                        cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.where(known, sampled, np.nan)


def overlays(network, world: World, images: list[int], label: str) -> Figure:
    """One row per image: strength and similarity over it, similarity over the view, the tile.

    ``label`` says in the title what the data are.
    """
    config = network.config
    require_resolution(network, world)
    figure, axes = plt.subplots(
        len(images), 4, figsize=(15.5, 3.3 * len(images) + 0.5), squeeze=False,
        layout='constrained', width_ratios=(1.45, 1.45, 1.0, 1.0))
    for line, image in zip(axes, images):
        view = ground_view_of(network, world, image)
        tile, _ = world.area(*world.poses[image, :2], config.tile_px)
        cells = cells_of(network, world, image)
        total = cells.similarity.sum()
        reach = np.abs(cells.similarity).max()
        norm = TwoSlopeNorm(0.0, -reach, reach)
        yaw_rad = world.poses[image, 2]
        frame = world.images[image]
        strength = project_to_camera(cells.strength, network, world.camera, yaw_rad)
        similarity = project_to_camera(cells.similarity, network, world.camera, yaw_rad)
        line[0].imshow(frame)
        first = line[0].imshow(strength, cmap='inferno', alpha=0.55, vmin=0.0,
                               vmax=cells.strength.max())
        line[1].imshow(frame)
        second = line[1].imshow(similarity, cmap='RdBu_r', norm=norm, alpha=0.55)
        line[2].imshow(view[..., :3])
        line[2].imshow(cells.similarity, cmap='RdBu_r', norm=norm, alpha=0.5,
                       extent=(-0.5, view.shape[1] - 0.5, view.shape[0] - 0.5, -0.5),
                       interpolation='bilinear')
        margin = config.margin_px
        line[3].imshow(tile[margin:margin + config.view_px, margin:margin + config.view_px])
        for panel, title in zip(line, (
                f'image {image}: strength', f'part in the similarity of {total:.2f}',
                "the same over the network's view", 'the right tile')):
            panel.set_title(title, fontsize=9)
            panel.set_axis_off()
        figure.colorbar(first, ax=line[0], shrink=0.8, pad=0.01)
        figure.colorbar(second, ax=line[1], shrink=0.8, pad=0.01)
    figure.suptitle(f'{label} ({world.name}): what the network uses of the image', fontsize=11)
    return figure


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.paper_figures', description=__doc__.splitlines()[0],
        epilog='example: python -m training.paper_figures heatmaps --world runs/val/world_201.npz '
        '--weights local.safetensors --baseline global.safetensors --sizes-m 100 1000 '
        '--out heatmaps.png')
    commands = parser.add_subparsers(dest='command', required=True)
    heat = commands.add_parser('heatmaps', help='how similar the places around the truth are')
    over = commands.add_parser('overlays', help='what the network uses of the ground image')
    for command in (heat, over):
        command.add_argument('--world', type=Path, required=True,
                             help='prepared world (python -m training.prepare)')
        command.add_argument('--weights', required=True,
                             help='checkpoint, raw_correlation or random_init:SEED')
        command.add_argument('--like', type=Path, help='checkpoint whose sizes a control takes')
        command.add_argument('--images', nargs='+', type=int, metavar='NUMBER',
                             help='images of the world (default: three at even intervals)')
        command.add_argument('--label', default='Simulation',
                             help='what the data are, for the title (default: Simulation)')
        command.add_argument('--out', type=Path, required=True, help='picture to write (.png)')
    heat.add_argument('--device', choices=('auto', 'cpu', 'cuda'), default='auto',
                      help='device of the network (default %(default)s)')
    heat.add_argument('--baseline', help='a second network, such as the global baseline')
    heat.add_argument('--names', nargs=2, default=('ours', 'baseline'), metavar='NAME',
                      help='names of the two in the panels (default: ours baseline)')
    heat.add_argument('--sizes-m', nargs='+', type=float, default=[100.0, 1000.0],
                      help='sides of the squares (default: 100 1000)')
    heat.add_argument('--spacing-m', type=float, default=5.0, help='distance between tiles, for '
                      'networks that describe tile by tile (default 5)')
    return run_command(parser, arguments, draw_figure)


def draw_figure(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    world = load_world(args.world)
    images = args.images or np.linspace(0, len(world.poses), 5).astype(int)[1:4].tolist()
    if min(images) < 0 or max(images) >= len(world.poses):
        raise ValueError(
            f'images {images}; expected numbers from 0 to {len(world.poses) - 1}')
    if args.command == 'overlays':
        figure = overlays(
            load_network(args.weights, like=args.like), world, images, args.label)
    else:
        if min(args.sizes_m) < 10.0 or args.spacing_m <= 0.0:
            raise ValueError(
                f'sizes {args.sizes_m} m, spacing {args.spacing_m} m; expected at least 10 m '
                'and more than 0')
        device, warning = prepare_torch(args.device, 1)
        if warning:
            print(warning)
        networks = {args.names[0]: load_network(args.weights, device, args.like)}
        if args.baseline:
            like = args.like or (args.weights if Path(args.weights).exists() else None)
            networks[args.names[1]] = load_network(args.baseline, device, like)
        figure = heatmaps(networks, [(world, image) for image in images], args.sizes_m,
                          args.spacing_m, args.label, device)
    figure.savefig(args.out, dpi=DPI)
    plt.close(figure)
    print(args.out)


if __name__ == '__main__':
    sys.exit(main())
