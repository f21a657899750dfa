"""The embedding map: what a window holds, how it is stored, and which files are refused."""

from dataclasses import asdict
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import json
import math
import threading

from map_tiles import tile_xy_m
import numpy as np
import pytest
from safetensors.torch import save_file
import torch

from crossview_localizer import map as map_command
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import EmbeddingMap, TilesInStore
from crossview_localizer.maps.old_format import METADATA_KEY
from crossview_localizer.maps.store import Layout, MapStore, quantised

GRID = MapGrid(12, 20, 2.5, -10.0, 17.5)


def some_map(fingerprint='a' * 64, **changes):
    """A 12 x 20 lattice with the tiles of a diagonal band; descriptors are random."""
    generator = torch.Generator().manual_seed(0)
    row, col = np.indices((GRID.rows, GRID.cols))
    wanted = np.abs(row - col) < 6
    index = torch.full((GRID.rows, GRID.cols), -1, dtype=torch.int64)
    index[torch.from_numpy(wanted)] = torch.randperm(int(wanted.sum()), generator=generator)
    descriptors = torch.randn((int(wanted.sum()), 8), generator=generator)
    descriptors = torch.nn.functional.normalize(descriptors, dim=1).half()
    settings = {
        'frame': LocalFrame(51.76061234567891, -1.2609876543219), 'grid': GRID, 'index': index,
        'descriptors': descriptors, 'fingerprint': fingerprint, 'tile_m': 48.3, 'tile_px': 128,
        'attribution': ('a.tif (someone)',),
    }
    return EmbeddingMap(**(settings | changes))


def prior_at(x_m, y_m):
    return PoseEstimate(0, Pose2D(x_m, y_m, 0.0), np.eye(3))


def bytes_of(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def change_attributes(path, change) -> None:
    header = json.loads((path / 'zarr.json').read_text())
    change(header['attributes']['crossview_localizer'])
    (path / 'zarr.json').write_text(json.dumps(header))


def test_a_window_holds_each_tile_at_its_own_position():
    embedding_map = some_map()
    window = embedding_map.window(prior_at(11.3, 3.1), 6.0)
    centres_m = tile_xy_m(embedding_map)
    rows, cols = np.nonzero(window.index.numpy() >= 0)
    assert len(rows) == len(window.descriptors) > 20
    for row, col in zip(rows, cols):
        distance_m = np.hypot(*(centres_m - window.grid.xy_from_row_col(row, col)).T)
        nearest = int(distance_m.argmin())
        assert distance_m[nearest] < 1e-9
        expected = embedding_map.tiles.descriptors[nearest].float()
        assert torch.equal(window.descriptors[window.index[row, col]], expected)
    assert window.coverage == len(rows) / window.index.numel()


@pytest.mark.parametrize('half_width_m', [0.0, 3.0, 5.0, 15.0, 60.0])
@pytest.mark.parametrize('x_m, y_m', [(11.3, 3.1), (11.25, 3.75), (-10.9, 17.9)])
def test_a_window_is_square_and_reaches_the_half_width_each_way(x_m, y_m, half_width_m):
    window = some_map().window(prior_at(x_m, y_m), half_width_m)
    assert window.grid.rows == window.grid.cols == len(window.index)
    xs_m, ys_m = window.grid.cell_centres()
    for low_m, high_m, centre_m in ((xs_m[0], xs_m[-1], x_m), (ys_m[-1], ys_m[0], y_m)):
        assert low_m <= centre_m - half_width_m + 1e-9
        assert high_m >= centre_m + half_width_m - 1e-9
        assert high_m - low_m <= 2 * half_width_m + 3 * GRID.cell_m


def test_beyond_the_grid_a_window_has_no_tiles():
    window = some_map().window(prior_at(-10.0, 17.5), 10.0)     # the grid's own corner
    assert (window.index[:5] == -1).all() and (window.index[:, :5] == -1).all()
    assert window.index[5, 5] >= 0
    assert window.coverage < 0.3


@pytest.mark.parametrize('x_m, y_m', [
    (-20.0, 0.0), (0.0, 40.0), (math.nan, 0.0), (36.0, 16.0)])
def test_there_is_no_window_outside_the_grid_or_where_no_tile_lies(x_m, y_m):
    assert some_map().window(prior_at(x_m, y_m), 6.0) is None


def test_a_saved_map_comes_back_and_its_bytes_are_the_same_each_time(tmp_path):
    picture = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    picture_grid = MapGrid(2, 3, 30.0, 0.0, 0.0)
    first = some_map(orthophoto=picture, orthophoto_grid=picture_grid)
    first.save(tmp_path / 'a.map', is_int8=False)
    again = EmbeddingMap.open(tmp_path / 'a.map', fingerprint='a' * 64)
    assert again.frame.proj4 == first.frame.proj4
    assert again.grid == GRID and again.orthophoto()[1] == picture_grid
    assert np.array_equal(again.orthophoto()[0], picture)
    assert (again.tile_m, again.tile_px, again.attribution) == (48.3, 128, ('a.tif (someone)',))
    windows = [one.window(prior_at(11.3, 3.1), 100.0) for one in (first, again)]
    index = [window.index for window in windows]
    assert torch.equal(index[0] >= 0, index[1] >= 0)
    assert torch.equal(*(window.rows[i[i >= 0]] for window, i in zip(windows, index)))
    again.save(tmp_path / 'b.map', is_int8=False)
    assert bytes_of(tmp_path / 'a.map') == bytes_of(tmp_path / 'b.map')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.map', 'b.map']


def test_in_8_bits_a_unit_vector_keeps_its_direction_within_a_degree(tmp_path):
    whole = some_map()
    whole.save(tmp_path / 'a.map')
    first, again = (one.window(prior_at(11.3, 3.1), 100.0)
                    for one in (whole, EmbeddingMap.open(tmp_path / 'a.map')))
    rows = [window.descriptors[window.index[window.index >= 0]] for window in (first, again)]
    cosine = torch.nn.functional.cosine_similarity(*rows, dim=1)
    assert cosine.min() > math.cos(math.radians(1.0))
    assert (rows[0] - rows[1]).abs().max() <= 0.5 / 127 + 1e-3
    kept = quantised(rows[1].numpy())
    assert np.array_equal(quantised(kept.astype(np.float16) * np.float16(1 / 127)), kept)


def test_a_failed_save_leaves_the_old_map(tmp_path, monkeypatch):
    some_map().save(tmp_path / 'a.map')
    before = bytes_of(tmp_path / 'a.map')

    def fail(*_):
        raise OSError('disk full')
    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        some_map(fingerprint='b' * 64).save(tmp_path / 'a.map')
    assert bytes_of(tmp_path / 'a.map') == before
    assert [path.name for path in tmp_path.iterdir()] == ['a.map']


def test_a_map_of_other_weights_is_refused_with_both_names_and_the_remedy(tmp_path):
    some_map(fingerprint='1234567890ab' + 'f' * 52).save(tmp_path / 'a.map')
    with pytest.raises(ValueError, match=r'1234567890ab.*abcdefabcdef.*build_map'):
        EmbeddingMap.open(tmp_path / 'a.map', fingerprint='abcdef' * 10 + 'abcd')


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path):
    some_map().save(tmp_path / 'whole.zip')
    data = (tmp_path / 'whole.zip').read_bytes()
    bad = tmp_path / 'bad.map'
    for content in (b'', b'text', b'PK' * 4000, data[:100], data[:-30]):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match='bad.map is not an embedding map') as error:
            EmbeddingMap.open(bad)
        assert '\n' not in str(error.value)
    save_file({'weights': torch.zeros(3)}, bad)
    with pytest.raises(ValueError, match='bad.map is not an embedding map'):
        EmbeddingMap.open(bad)
    for absent in (tmp_path / 'none.map', tmp_path):
        with pytest.raises(OSError, match='does not exist'):
            EmbeddingMap.open(absent)


def test_a_map_with_a_chunk_that_was_cut_off_is_an_error_that_says_so(tmp_path):
    some_map().save(tmp_path / 'a.map')
    for chunk in (tmp_path / 'a.map/descriptors/c').rglob('*'):
        if chunk.is_file():
            chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(OSError, match='the map is damaged .*rebuild with'):
        EmbeddingMap.open(tmp_path / 'a.map')


CHANGES = {
    'format version 99': lambda header: header.update(format_version=99),
    'format_version': lambda header: header.pop('format_version'),
    'tile_m': lambda header: header.pop('tile_m'),
    'map origin': lambda header: header.update(origin_latitude_deg=200.0),
    'descriptors is': lambda header: header['grid'].update(rows=33),
    'is not finished': lambda header: header.pop('tiles'),
}


def old_map(path, version: int):
    """``some_map`` in an old format; returns it."""
    expected = some_map()
    index = expected.tiles.index.astype(np.int32)
    tensors = {'descriptors': expected.tiles.descriptors,
               'orthophoto': torch.zeros(0, dtype=torch.uint8)}
    if version == 1:
        tensors['index'] = torch.from_numpy(index)
    else:
        whole = np.full((16, 32), -1, np.int32)
        whole[:12, :20] = index
        cells = whole.reshape(16, 2, 16).swapaxes(0, 1)[::-1].copy()
        tensors |= {'cells': torch.from_numpy(cells), 'chunks': torch.tensor([[1, 0]]).int()}
    metadata = {
        'format_version': version, 'origin_latitude_deg': expected.frame.latitude_deg,
        'origin_longitude_deg': expected.frame.longitude_deg, 'grid': asdict(GRID),
        'tile_m': 48.3, 'tile_px': 128, 'fingerprint': 'a' * 64,
        'attribution': ['a.tif (someone)'], 'orthophoto_grid': None}
    save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})
    return expected


@pytest.mark.parametrize('version', [1, 2])
def test_a_map_of_the_old_formats_is_read_and_converted(tmp_path, version, capsys):
    expected = old_map(tmp_path / 'old.map', version)
    found = EmbeddingMap.open(tmp_path / 'old.map')
    assert np.array_equal(found.tiles.index, expected.tiles.index)
    assert torch.equal(found.tiles.descriptors, expected.tiles.descriptors)
    assert map_command.main(['info', str(tmp_path / 'old.map')]) == 2
    assert 'map convert' in capsys.readouterr().err
    arguments = ['convert', str(tmp_path / 'old.map'), '--out', str(tmp_path / 'new.map')]
    assert map_command.main(arguments) == 0
    expected.save(tmp_path / 'expected.map')
    assert bytes_of(tmp_path / 'new.map') == bytes_of(tmp_path / 'expected.map')


def test_a_corridor_takes_the_room_of_its_tiles_and_not_of_its_box(tmp_path):
    side = 800
    index = torch.full((side, side), -1, dtype=torch.int64)
    index[torch.arange(side), torch.arange(side)] = torch.arange(side)
    descriptors = torch.ones(side, 64, dtype=torch.float16)
    grid = MapGrid(side, side, 2.5, 0.0, 0.0)
    some_map(grid=grid, index=index, descriptors=descriptors).save(tmp_path / 'a.map')
    stored = sum(map(len, bytes_of(tmp_path / 'a.map').values()))
    assert stored < 0.1 * 64 * side ** 2
    window = EmbeddingMap.open(tmp_path / 'a.map').window(prior_at(1500.0, -1500.0), 5.0)
    assert np.array_equal(np.nonzero(window.index.numpy() >= 0), [np.arange(7)] * 2)


@pytest.fixture
def http_address(tmp_path):
    """The address of a server of ``tmp_path``."""
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f'http://127.0.0.1:{server.server_address[1]}'
        server.shutdown()
        thread.join()


def test_a_map_on_the_web_gives_the_windows_of_the_same_on_the_disk(tmp_path, http_address):
    some_map().save(tmp_path / 'a.map')
    here = EmbeddingMap.open(tmp_path / 'a.map').window(prior_at(3.3, 5.0), 6.0)
    for preload_bytes in (0, 2**20):
        there = EmbeddingMap.open(f'{http_address}/a.map', preload_bytes=preload_bytes)
        found = there.window(prior_at(3.3, 5.0), 6.0)
        assert torch.equal(found.index, here.index)
        assert torch.allclose(found.descriptors, here.descriptors, rtol=0.0, atol=5e-4)
    with pytest.raises(OSError, match='does not exist'):
        EmbeddingMap.open(f'{http_address}/none.map')


def test_xarray_sees_each_value_at_its_own_coordinates(tmp_path):
    import xarray
    whole = some_map()
    whole.save(tmp_path / 'a.map', descriptor_cells=2)           # 2 bands of 2 x 2 cells
    opened = xarray.open_zarr(tmp_path / 'a.map', decode_coords='all')
    assert opened.descriptors.dims == ('band', 'y', 'x')
    for x_m, y_m in tile_xy_m(whole)[:10]:
        window = whole.window(prior_at(x_m, y_m), 0.0)
        middle = window.index.shape[0] // 2
        tile = window.descriptors[window.index[middle, middle]].view(2, 2, 2)
        # The cells of a tile of 2.5 m lie 0.625 m from its centre; row 0 is the north.
        for row, col in np.ndindex(2, 2):
            seen = opened.descriptors.sel(
                x=x_m + 1.25 * col - 0.625, y=y_m - 1.25 * row + 0.625)
            np.testing.assert_allclose(seen, tile[:, row, col], atol=0.005)
    assert opened.spatial_ref.attrs['grid_mapping_name'] == 'transverse_mercator'
    assert opened.attrs['spatial:bbox'] == [-11.25, -11.25, 38.75, 18.75]


@pytest.mark.parametrize('picture', [False, True])
def test_an_exported_geotiff_lies_where_the_map_does(tmp_path, capsys, picture):
    import rasterio
    rgb = np.random.default_rng(0).integers(0, 255, (30, 50, 3)).astype(np.uint8)
    whole = some_map(orthophoto=rgb, orthophoto_grid=MapGrid(30, 50, 1.0, -10.75, 18.25))
    whole.save(tmp_path / 'a.map')
    arguments = ['export', str(tmp_path / 'a.map'), '--out', str(tmp_path / 'a.tif')]
    assert map_command.main(arguments + ['--picture'] * picture) == 0
    with rasterio.open(tmp_path / 'a.tif') as file:
        pixels, bounds = file.read(), file.bounds
        assert LocalFrame(*file.lnglat()[::-1]).xy_from_latlon(
            whole.frame.latitude_deg, whole.frame.longitude_deg) == pytest.approx(
                (-13.75, -3.75), abs=0.01)
    assert bounds == (-11.25, -11.25, 38.75, 18.75)
    if picture:
        assert np.array_equal(pixels, np.moveaxis(rgb, 2, 0))
    else:
        there = whole.tiles.index >= 0
        assert np.array_equal(pixels[3] > 0, there)
        assert pixels[0][there].std() > 30
    assert map_command.main(['info', str(tmp_path / 'a.map')]) == 0
    said = capsys.readouterr().out
    assert f'{len(whole.tiles)}, every 2.5 m' in said and 'a.tif (someone)' in said


@pytest.mark.parametrize('x_m', [-10.0, 3.3, 30.0])
def test_a_map_left_in_its_file_gives_the_windows_of_one_in_memory(tmp_path, x_m):
    some_map().save(tmp_path / 'a.map')
    whole = EmbeddingMap.open(tmp_path / 'a.map')
    stored = EmbeddingMap.open(tmp_path / 'a.map', preload_bytes=0)
    for half_width_m in (6.0, 30.0):
        expected, found = (m.window(prior_at(x_m, 5.0), half_width_m) for m in (whole, stored))
        assert found.grid == expected.grid and found.coverage == expected.coverage
        assert torch.equal(found.index, expected.index)
        assert torch.allclose(found.descriptors, expected.descriptors, rtol=0.0, atol=5e-4)


@pytest.mark.parametrize('size', [8, 4096])
def test_a_cache_smaller_than_the_drive_gives_every_tile_right(tmp_path, size):
    layout = Layout(None, MapGrid(40, 400, 2.5, 0.0, 50.0), size, 1, 8, 'a', 2.5, 8)
    store = MapStore.create(tmp_path / 'a.map', layout)
    for col in range(0, 400, 8):
        there = np.ones((8, 8), bool)
        there[0, 0] = False
        rows = np.full((63, size), (col % 100) / 127, np.float16)
        store.write(8, col, rows, there, np.ones((8, 8)), np.ones((8, 8)))
    store.finish(50 * 63)
    stored = TilesInStore(MapStore.open(tmp_path / 'a.map'), 'cpu', cache_bytes=0)
    for left in range(0, 396, 3):
        there, rows = stored.take(10, left, 4)
        expected = [col // 8 * 8 % 100 for col in range(left, left + 4)] * 4
        assert there.all() and np.array_equal(rows[:, -1], expected)
    assert not stored.take(20, 100, 4)[0].any()                # beside what is written
    read = stored.chunks_read
    stored.prefetch(10, 200, 2)
    assert stored.chunks_read > read
    read = stored.chunks_read
    assert stored.take(10, 200, 2)[0].all() and stored.chunks_read == read


def test_what_lies_ahead_is_read_before_it_is_asked_for(tmp_path):
    index = torch.arange(40 * 400).reshape(40, 400)
    descriptors = torch.ones(index.numel(), 4, dtype=torch.float16)
    grid = MapGrid(40, 400, 2.5, 0.0, 50.0)
    some_map(grid=grid, index=index, descriptors=descriptors).save(tmp_path / 'a.map')
    stored = EmbeddingMap.open(tmp_path / 'a.map', preload_bytes=0)
    for k in range(2):
        prior = PoseEstimate(k * 10**8, Pose2D(100.0 + 3.0 * k, 0.0, 0.0), np.eye(3))
        stored.window(prior, 20.0)
    stored.read_ahead_finished()
    read = stored.tiles.chunks_read
    for ahead_s in (0.5, 1.0, 2.0, 3.0):
        prior = PoseEstimate(0, Pose2D(103.0 + 30.0 * ahead_s, 0.0, 0.0), np.eye(3))
        assert stored.window(prior, 20.0).coverage == 1.0
    assert stored.tiles.chunks_read == read
    stored.preload(700.0, 0.0, 30.0)
    assert stored.tiles.chunks_read > read
    read = stored.tiles.chunks_read
    stored.window(prior_at(700.0, 0.0), 20.0)
    assert stored.tiles.chunks_read == read


@pytest.mark.parametrize('reason', CHANGES)
def test_a_map_whose_parts_do_not_agree_is_refused_with_the_remedy(tmp_path, reason):
    path = tmp_path / 'bad.map'
    some_map().save(path)
    change_attributes(path, CHANGES[reason])
    with pytest.raises(ValueError, match=f'bad.map .*{reason}.*rebuild with'):
        EmbeddingMap.open(path)
