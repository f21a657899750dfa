"""From imagery and a route to the embedding map, with a small stand-in for the network."""

import math
import os
from pathlib import Path
import re
import shutil
import signal
from types import SimpleNamespace
import zipfile

from map_tiles import tile_xy_m
import numpy as np
from pyproj import Transformer
import pytest
import rasterio
from rasterio.transform import Affine
from safetensors.torch import save_file
import torch

from crossview_localizer import build_map as command_module
from crossview_localizer.bags.route_file import read_route
from crossview_localizer.build_map import main
from crossview_localizer.camera.views import UNSEEN
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps import tiles as tiles_module
from crossview_localizer.maps.builder import build_map, Inputs, Settings
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.maps.store import MapStore
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig
from crossview_localizer.networks.safa import ModelConfig

FRAME = LocalFrame(51.76, -1.26)


class MeanColours:
    """Stands for the network: colours pooled over 4 x 4 cells, as unit vectors."""

    def __init__(self, tile_m=20.0, tile_px=32, interrupt_after=None):
        self.config = SimpleNamespace(kind='safa', tile_m=tile_m, tile_px=tile_px)
        self.fingerprint = 'c0105' * 12 + 'abcd'
        self.batches = []
        self.interrupt_after = interrupt_after

    def embed_satellite(self, tiles):
        if self.interrupt_after == len(self.batches):
            raise KeyboardInterrupt
        self.batches.append(len(tiles))
        pooled = torch.nn.functional.adaptive_avg_pool2d(tiles.permute(0, 3, 1, 2).float(), 4)
        return torch.nn.functional.normalize(pooled.flatten(1) - 100.0, dim=1)


class SharedTrunk(MeanColours):
    """The same descriptors, made of whole areas like those of the network with a trunk."""

    def __init__(self, kind='safa'):
        super().__init__(tile_m=24.0, tile_px=32)
        self.config.kind = kind
        self.lattice_spacing_m = 3.0

    def embed_lattice(self, area):
        tiles = area.unfold(0, 32, 4).unfold(1, 32, 4)             # (R, R, 3, S, S)
        rows, cols = tiles.shape[:2]
        return self.embed_satellite(tiles.flatten(0, 1).permute(0, 2, 3, 1)).view(rows, cols, -1)


@pytest.fixture(scope='module')
def orthophoto(tmp_path_factory):
    """120 m of random smooth colour at 0.25 m in UTM, the eastern 20 m of it without data."""
    utm_from_map = Transformer.from_crs(FRAME.proj4, 'EPSG:32630', always_xy=True)
    easting_m, northing_m = utm_from_map.transform(0.0, 0.0)
    noise = np.random.default_rng(1).integers(1, 255, (30, 30, 3)).astype(np.uint8)
    pixels = noise.repeat(16, 0).repeat(16, 1)
    pixels[:, 400:] = 0
    path = tmp_path_factory.mktemp('imagery') / 'ortho.tif'
    with rasterio.open(
        path, 'w', driver='GTiff', height=480, width=480, count=3, dtype='uint8',
        crs='EPSG:32630', nodata=0,
        transform=Affine(0.25, 0, easting_m - 60.0, 0, -0.25, northing_m + 60.0),
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    return path


@pytest.fixture(scope='module')
def route_csv(tmp_path_factory):
    """A RobotCar gps.csv of a bent drive of 60 m, with an empty, a cut off and a NaN row."""
    path = tmp_path_factory.mktemp('route') / 'gps.csv'
    lines = ['timestamp,num_satellites,latitude,longitude,altitude']
    for number, (x_m, y_m) in enumerate([(-35, -20), (-10, -20), (0, -10), (0, 15)]):
        latitude_deg, longitude_deg = FRAME.latlon_from_xy(x_m, y_m)
        lines.append(f'{number},9,{latitude_deg!r},{longitude_deg!r},60')
    path.write_text('\n'.join([*lines, '', '7,9,nan,nan,60', '8,9,51.7']))
    return path


@pytest.mark.parametrize('network, spacing_m, largest_batch', [
    (MeanColours(), 2.7, 7),          # every tile cropped for itself
    (MeanColours(), 2.5, 7),          # tiles cut from areas, 4 pixels apart
    (SharedTrunk(), 3.0, 81),         # all of an area at once, rounded up to 9 x 9
])
def test_a_window_gives_the_descriptors_of_crops_at_its_tiles_positions(
        orthophoto, route_csv, monkeypatch, network, spacing_m, largest_batch):
    monkeypatch.setattr(tiles_module, 'AREA_TILES', 5)
    imagery = Imagery.open(orthophoto, FRAME)
    built = build_map(
        imagery, network, Settings(spacing_m, 12.0, 7, is_int8=False), read_route(route_csv))
    assert max(network.batches) == largest_batch
    window = built.window(PoseEstimate(0, Pose2D(-3.2, -9.1, 0.4), np.eye(3)), 16.0)
    assert window.coverage > 0.5
    for row, col in np.ndindex(window.grid.rows, window.grid.cols):
        number = int(window.index[row, col])
        if number >= 0:
            rgb, valid = imagery.crop(
                *window.grid.xy_from_row_col(row, col), network.config.tile_m, 32)
            rgb[~valid] = UNSEEN
            expected = network.embed_satellite(torch.from_numpy(rgb)[None])[0]
            assert torch.allclose(window.descriptors[number], expected, atol=2e-3)


@pytest.mark.parametrize('kind, turn', [('safa', 1), *(('dense', k) for k in range(4))])
def test_tiles_keep_their_descriptors_where_imagery_is_missing_on_any_side(
        orthophoto, tmp_path, kind, turn):
    path = tmp_path / 'turned.tif'
    with rasterio.open(orthophoto) as source, rasterio.open(path, 'w', **source.profile) as file:
        file.write(np.rot90(source.read(), turn, (1, 2)))
    imagery = Imagery.open(path, FRAME)
    built = build_map(imagery, SharedTrunk(kind), Settings(3.0, is_int8=False))
    index = built.tiles.index
    for row, col in np.argwhere(index >= 0)[::40]:
        rgb, valid = imagery.crop(*built.grid.xy_from_row_col(row, col), 24.0, 32)
        rgb[~valid] = UNSEEN
        expected = SharedTrunk().embed_satellite(torch.from_numpy(rgb)[None])[0]
        found = built.tiles.descriptors[index[row, col]].float()
        assert torch.allclose(found, expected, atol=2e-3)


def test_the_area_that_a_tile_is_cut_from_changes_neither_tiles_nor_count(
        orthophoto, monkeypatch):
    imagery = Imagery.open(orthophoto, FRAME)
    lines = []
    for side in (3, 7):
        monkeypatch.setattr(tiles_module, 'AREA_TILES', side)
        lines.append([])
        built = build_map(imagery, SharedTrunk(), Settings(3.0), report=lines[-1].append)
        centres_m = {(float(x_m), float(y_m)) for x_m, y_m in tile_xy_m(built)}
        # Tile by tile, 0.1 of a tile may be without imagery.
        for x_m, y_m in tile_xy_m(built)[::10]:
            assert imagery.crop(x_m, y_m, 24.0, 32)[1].mean() > 0.89
        lines[-1].append(centres_m)
    left_out = [[line for line in each[:-1] if 'left out' in line] for each in lines]
    assert left_out[0] == left_out[1] != []
    assert lines[0][-1] == lines[1][-1]


def test_a_full_square_is_described_in_one_and_a_corridor_in_as_few_pixels_as_it_can_be(
        orthophoto):
    imagery, config = Imagery.open(orthophoto, FRAME), DenseConfig(block_px=64)
    network = random_network(config, seed=0)
    points = network.lattice_points
    grid = MapGrid(points, points, network.lattice_spacing_m, -64.0, 64.0)

    def ratio(wanted):
        areas = tiles_module.TileAreas(imagery, network, grid, wanted, 1)
        assert sorted(np.concatenate(areas.jobs)) == list(range(np.count_nonzero(wanted)))
        described = sum(math.prod(areas.crop(job)[1].shape[:2]) for job in areas.jobs)
        return described / (np.count_nonzero(wanted) * config.block_px ** 2), len(areas.jobs)

    wanted = np.zeros((grid.rows, grid.cols), bool)
    wanted[:] = True
    # The margins of both sides are one block together.
    assert ratio(wanted) == (((points + 1) / points) ** 2, 1)
    wanted[:] = False
    wanted[2:5] = True                   # a road to the east, three blocks wide
    assert ratio(wanted) == (4 * (points + 1) / (3 * points), 1)
    # A road with a bend: two arms of 2 x 8 and 2 x 6 blocks, in place of a square of 8 x 8.
    wanted[:] = False
    wanted[:2], wanted[:, :2] = True, True
    assert ratio(wanted) == ((3 * 9 + 7 * 3) / 28, 2)
    # One from corner to corner: fewer pixels than its square's 81 blocks for 22.
    wanted[:] = np.abs(np.subtract.outer(np.arange(grid.rows), np.arange(grid.cols))) < 2
    assert ratio(wanted)[0] < 0.8 * 81 / 22


def test_the_networks_area_descriptors_belong_to_the_tiles_where_they_lie(orthophoto):
    network = random_network(ModelConfig(view_px=64, margin_px=32), seed=0).eval()
    network.fingerprint = 'f' * 64
    imagery = Imagery.open(orthophoto, FRAME)
    route = np.array([FRAME.latlon_from_xy(-8.0, 3.0)])
    built = build_map(imagery, network, Settings(3.0, 4.5), route)
    tiles = torch.stack([
        torch.from_numpy(imagery.crop(x_m, y_m, 48.0, 128)[0]) for x_m, y_m in tile_xy_m(built)])
    single = network.embed_satellite(tiles)
    likeness = single @ built.tiles.descriptors.float().T                # (T, T)
    assert len(tiles) >= 6
    assert (likeness.argmax(1) == torch.arange(len(tiles))).all()


def test_the_map_says_where_it_lies_and_what_made_it(orthophoto, route_csv, tmp_path):
    build_map(Imagery.open(orthophoto, FRAME), MeanColours(), Settings(5.0),
              read_route(route_csv), out=tmp_path / 'a.map')
    found = EmbeddingMap.open(tmp_path / 'a.map', fingerprint=MeanColours().fingerprint)
    assert found.frame.proj4 == FRAME.proj4
    assert (found.tile_m, found.tile_px, found.grid.cell_m) == (20.0, 32, 5.0)
    assert found.attribution == ('ortho.tif',)
    rgb, grid = found.orthophoto()
    x_m, y_m = -22.0, -13.0
    row, col = (round(float(value)) for value in grid.row_col_from_xy(x_m, y_m))
    expected, _ = Imagery.open(orthophoto, FRAME).crop(x_m, y_m, 0.5, 1)
    assert np.abs(rgb[row, col].astype(int) - expected[0, 0].astype(int)).max() < 40


def test_tiles_without_enough_imagery_are_left_out_and_counted(orthophoto):
    lines = []
    built = build_map(
        Imagery.open(orthophoto, FRAME), MeanColours(), Settings(5.0, batch=50),
        report=lines.append)
    x_m, y_m = tile_xy_m(built).T
    # Data end at x = 40 m at the middle of the file, whose grid is turned by 1.37 degrees:
    # a tile of 20 m may lie over that edge by 2 m.
    assert x_m.max() == 30.0 and x_m.min() == -50.0
    assert y_m.max() == 50.0 and y_m.min() == -50.0
    missing = int([line for line in lines if 'left out' in line][0].split()[0])
    offered = int(lines[0].split()[0])
    assert missing + len(built.tiles) == offered
    assert missing >= 21


def test_the_share_of_imagery_that_is_lost_is_said_by_cause(orthophoto):
    lines = []
    build_map(
        Imagery.open(orthophoto, FRAME), MeanColours(), Settings(5.0), report=lines.append)
    [line] = [line for line in lines if line.startswith('no imagery in')]
    # The lattice reaches from -50 to 50 m east, in cells of 5 m; the data end at 40 m.
    found = re.fullmatch(r'no imagery in (.*)% of the map: (.*)% nodata value', line)
    assert [float(share) for share in found.groups()] == pytest.approx([11.9] * 2, abs=1.0)


def test_the_map_is_not_put_on_the_device_that_embeds_it(orthophoto, route_csv):
    class OnAnotherDevice(MeanColours):
        def embed_satellite(self, tiles):
            assert tiles.device.type == 'meta'                  # a device without memory
            return torch.ones(len(tiles), 8)

    built = build_map(
        Imagery.open(orthophoto, FRAME), OnAnotherDevice(), Settings(5.0), read_route(route_csv),
        device='meta')
    assert built.tiles.descriptors.device.type == 'cpu'


def test_too_many_tiles_or_none_at_all_are_refused_with_what_to_do(orthophoto, route_csv):
    imagery, network = Imagery.open(orthophoto, FRAME), MeanColours()
    with pytest.raises(ValueError, match=r'tiles are wanted; expected at most 9: .*--spacing-m'):
        build_map(imagery, network, Settings(2.5, max_tiles=9), read_route(route_csv))
    with pytest.raises(ValueError, match='no tile'):
        build_map(imagery, MeanColours(tile_m=400.0))
    with pytest.raises(ValueError, match='expected positive'):
        build_map(imagery, network, Settings(float('nan')))
    assert network.batches == []


def test_imprecise_georeferencing_is_refused_before_any_work(orthophoto, tmp_path):
    path = tmp_path / 'dutch.tif'
    with rasterio.open(
        path, 'w', driver='GTiff', height=64, width=64, count=1, dtype='uint8',
        crs='EPSG:28992', transform=Affine(0.25, 0, 155000.0, 0, -0.25, 463000.0),
    ) as file:
        file.write(np.full((1, 64, 64), 9, np.uint8))
    network = MeanColours(tile_m=8.0)
    with pytest.raises(ValueError, match='accuracy 1 m'):
        build_map(Imagery.open(path), network)
    assert network.batches == []
    assert len(build_map(Imagery.open(path), network, Settings(max_crs_error_m=1.0)).tiles) > 0


@pytest.fixture
def fake_network(monkeypatch, tmp_path):
    """Let the command load this network whatever weights it is told to load."""
    networks = []

    def load(path, device):
        return networks.pop(0) if networks else MeanColours()
    monkeypatch.setattr(command_module, 'load_network', load)
    return networks


def command(orthophoto, route_csv, out, *more):
    return main([
        str(orthophoto), '--weights', 'w', '--route', str(route_csv), '--out', str(out),
        '--origin', '51.76', '-1.26', '--batch', '20', '--corridor-m', '12', *more])


def bytes_of(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('spacing_m', ['3', '2.5'])
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
        orthophoto, route_csv, tmp_path, fake_network, monkeypatch, capsys, spacing_m):
    monkeypatch.setattr(tiles_module, 'AREA_TILES', 4)                # of 2.5 m: 4 pixels
    spacing = ('--spacing-m', spacing_m)
    assert command(orthophoto, route_csv, tmp_path / 'whole.map', *spacing) == 0
    tiles = len(EmbeddingMap.open(tmp_path / 'whole.map').tiles)

    fake_network.append(MeanColours(interrupt_after=1 + 8))     # a sample, eight jobs
    assert command(orthophoto, route_csv, tmp_path / 'cut.map', *spacing) == 130
    assert not (tmp_path / 'cut.map').exists()
    # A writer that was killed leaves what it had begun.
    (tmp_path / 'cut.map.partial/descriptors/c/0/0/9.0123.partial').write_bytes(b'half')
    capsys.readouterr()
    second = MeanColours()
    fake_network.append(second)
    assert command(orthophoto, route_csv, tmp_path / 'cut.map', *spacing) == 0
    [line] = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith('going on')]
    done = int(line.split()[3])
    assert done > 20 and sum(second.batches[1:]) == tiles - done
    assert bytes_of(tmp_path / 'cut.map') == bytes_of(tmp_path / 'whole.map')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['cut.map', 'whole.map']


def test_a_zip_file_holds_the_same_map(orthophoto, route_csv, tmp_path, fake_network, capsys):
    (tmp_path / 'a.map').write_text('no map')
    assert command(orthophoto, route_csv, tmp_path / 'a.map') == 2
    assert 'a.map cannot be written' in capsys.readouterr().err
    save_file({'descriptors': torch.zeros(3)}, tmp_path / 'a.map')       # of the old format
    assert command(orthophoto, route_csv, tmp_path / 'a.map') == 0
    assert command(orthophoto, route_csv, tmp_path / 'a.zip') == 0
    with zipfile.ZipFile(tmp_path / 'a.zip') as packed:
        packed.extractall(tmp_path / 'unpacked')
    assert bytes_of(tmp_path / 'unpacked') == bytes_of(tmp_path / 'a.map')


@pytest.mark.timeout(900)
def test_a_cluster_that_loses_a_worker_gives_the_same_bytes(shipped_weights, tmp_path):
    from distributed import Client, LocalCluster

    path, weights = tmp_path / 'town.tif', shipped_weights[0]
    noise = np.random.default_rng(1).integers(1, 255, (60, 60, 3)).astype(np.uint8)
    with rasterio.open(
            path, 'w', driver='GTiff', height=960, width=960, count=3, dtype='uint8',
            crs=FRAME.proj4, transform=Affine(0.25, 0, -120.0, 0, -0.25, 120.0)) as file:
        file.write(np.moveaxis(noise.repeat(16, 0).repeat(16, 1), 2, 0))
    network = load_network(weights)
    network.lattice_points = 1                                  # a task for each block
    imagery = Imagery.open(path, FRAME)
    build_map(imagery, network, out=tmp_path / 'alone.map')
    inputs = Inputs(
        (str(path),), (FRAME.latitude_deg, FRAME.longitude_deg), str(weights),
        str(tmp_path / 'shared.map.partial'), 'cpu', torch.get_num_threads(), 16)
    killed = []
    with LocalCluster(n_workers=3, threads_per_worker=1, memory_limit=0,
                      dashboard_address=None) as cluster, Client(cluster) as client:
        def kill_a_worker(line):
            # This line comes when the first of the squares is finished.
            if line.startswith('about'):
                killed.append(cluster.workers[0].pid)
                os.kill(killed[0], signal.SIGKILL)
        shared = build_map(imagery, network, out=tmp_path / 'shared.map', report=kill_a_worker,
                           cluster=client, inputs=inputs)
    assert len(killed) == 1 and len(shared.tiles) > 20
    assert bytes_of(tmp_path / 'shared.map') == bytes_of(tmp_path / 'alone.map')


def test_an_update_makes_only_the_tiles_whose_imagery_changed(
        orthophoto, route_csv, tmp_path, fake_network, monkeypatch, capsys):
    monkeypatch.setattr(tiles_module, 'AREA_TILES', 4)
    imagery = shutil.copy(orthophoto, tmp_path / 'ortho.tif')
    assert command(imagery, route_csv, tmp_path / 'a.map') == 0
    tiles = len(EmbeddingMap.open(tmp_path / 'a.map').tiles)
    before = bytes_of(tmp_path / 'a.map')
    assert command(imagery, route_csv, tmp_path / 'a.map', '--update') == 0
    assert f'0 of {tiles} tiles made again' in capsys.readouterr().out
    assert bytes_of(tmp_path / 'a.map') == before

    with rasterio.open(imagery, 'r+') as file:
        file.update_tags(TIFFTAG_DATETIME='2024:07:01 12:00:00')
        pixels = file.read()
        pixels[:, 220:240, 100:110] = 7
        file.write(pixels)
    assert command(imagery, route_csv, tmp_path / 'a.map', '--update') == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if 'made again' in line]
    assert 0 < int(line.split()[0]) < 0.8 * tiles
    assert command(imagery, route_csv, tmp_path / 'new.map') == 0
    for name in ('descriptors', 'tile_hash', 'picture'):
        assert bytes_of(tmp_path / 'a.map' / name) == bytes_of(tmp_path / 'new.map' / name)
    updated = MapStore.open(tmp_path / 'a.map').dates()
    assert set(np.unique(updated)) == {0, 1, 20240701}
    assert command(imagery, route_csv, tmp_path / 'a.map', '--update', '--corridor-m', '5') == 2
    assert 'another lattice' in capsys.readouterr().err


def test_a_build_leaves_the_files_of_others_alone(
        orthophoto, route_csv, tmp_path, fake_network, capsys):
    mine = [tmp_path / name for name in ('a.map.partial_old', 'a.map.writing')]
    for path in mine:
        path.write_text('mine')
    assert command(orthophoto, route_csv, tmp_path / 'a.map') == 0
    assert [path.read_text() for path in mine] == ['mine'] * 2
    (tmp_path / 'b.map.partial').write_text('mine')
    capsys.readouterr()
    assert command(orthophoto, route_csv, tmp_path / 'b.map') == 2
    assert 'b.map.partial was not written by build_map' in capsys.readouterr().err
    assert (tmp_path / 'b.map.partial').read_text() == 'mine'


def test_an_unfinished_build_with_other_arguments_is_not_continued(
        orthophoto, route_csv, tmp_path, fake_network, capsys):
    assert command(orthophoto, route_csv, tmp_path / 'whole.map', '--spacing-m', '4') == 0
    fake_network.append(MeanColours(interrupt_after=3))
    assert command(orthophoto, route_csv, tmp_path / 'cut.map') == 130
    assert command(orthophoto, route_csv, tmp_path / 'cut.map', '--spacing-m', '4') == 0
    assert 'going on' not in capsys.readouterr().out
    assert bytes_of(tmp_path / 'cut.map') == bytes_of(tmp_path / 'whole.map')


def test_the_command_prints_accuracy_prediction_speed_and_size(
        orthophoto, route_csv, tmp_path, fake_network, capsys):
    assert command(orthophoto, route_csv, tmp_path / 'a.map') == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('ortho.tif: WGS 84 / UTM zone 30N, accuracy 0 m')
    assert lines[1].endswith('tiles of 20 m, every 3 m, 20 at a time')
    assert lines[2].startswith('about ')
    assert any(line.endswith('tiles/s') for line in lines)
    assert 'a.map' in lines[-1] and 'MB' in lines[-1]


def test_bad_input_is_one_line_and_exit_code_2(
        orthophoto, route_csv, tmp_path, fake_network, capsys):
    route = tmp_path / 'other.csv'
    route.write_text('time,x,y\n1,2,3\n')
    out = tmp_path / 'a.map'
    for arguments, reason in (
        ((tmp_path / 'none.tif', route_csv, out), 'none.tif does not exist'),
        ((orthophoto, tmp_path / 'none.csv', out), 'none.csv does not exist'),
        ((orthophoto, route, out), 'columns time, x, y; expected those named'),
        ((orthophoto, orthophoto, out), 'is no text'),
        ((orthophoto, tmp_path, out), 'cannot be read as a bag'),
        ((orthophoto, route_csv, tmp_path / 'none' / 'a.map'), 'in a folder that exists'),
        ((orthophoto, route_csv, out, '--spacing-m', '0'), 'expected positive numbers'),
        ((orthophoto, route_csv, out, '--spacing-m', 'inf'), 'expected positive numbers'),
        ((orthophoto, route_csv, out, '--threads', '0'), '--threads is 0'),
    ):
        assert command(*arguments) == 2
        error = capsys.readouterr().err
        assert reason in error and error.count('\n') == 1
    assert list(tmp_path.glob('a.map*')) == []


def test_missing_weights_are_refused(orthophoto, route_csv, tmp_path, capsys):
    assert command(orthophoto, route_csv, tmp_path / 'a.map') == 2
    assert capsys.readouterr().err.startswith('build_map: error: no weights at w')


def test_without_weights_the_shipped_dense_ones_are_used(
        ros, orthophoto, route_csv, tmp_path, monkeypatch):
    asked = []

    def load(path, device):
        asked.append(Path(path).name)
        return MeanColours()
    monkeypatch.setattr(command_module, 'load_network', load)
    assert main([str(orthophoto), '--route', str(route_csv), '--out', str(tmp_path / 'a.map'),
                 '--corridor-m', '12']) == 0
    assert asked == ['crossview_dense_synthetic.safetensors']
