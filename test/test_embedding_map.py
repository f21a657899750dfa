"""The embedding map: what a window holds, and which files are refused."""

import json
import math
from pathlib import Path
import tempfile

import numpy as np
import pytest
from safetensors.torch import save_file
import torch

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import EmbeddingMap, METADATA_KEY, StoredRows

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


def rewrite(path, change):
    """Save the map's tensors again with other metadata or tensors."""
    from safetensors import safe_open
    with safe_open(path, framework='pt') as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    change(metadata, tensors)
    save_file(tensors, path, {METADATA_KEY: json.dumps(metadata)})


def test_a_window_holds_each_tile_at_its_own_position():
    embedding_map = some_map()
    window = embedding_map.window(prior_at(11.3, 3.1), 6.0)
    tile_xy_m = embedding_map.tile_xy_m
    rows, cols = np.nonzero(window.index.numpy() >= 0)
    assert len(rows) == len(window.descriptors) > 20
    for row, col in zip(rows, cols):
        distance_m = np.hypot(*(tile_xy_m - window.grid.xy_from_row_col(row, col)).T)
        nearest = int(distance_m.argmin())
        assert distance_m[nearest] < 1e-9
        expected = embedding_map.descriptors[nearest].float()
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


def test_a_saved_map_comes_back_exactly_and_its_bytes_are_the_same_each_time(tmp_path):
    picture_grid = MapGrid(2, 2, 30.0, 0.0, 0.0)
    first = some_map(orthophoto_jpeg=b'\xff\xd8 not decoded here', orthophoto_grid=picture_grid)
    first.save(tmp_path / 'a.map')
    again = EmbeddingMap.open(tmp_path / 'a.map', fingerprint='a' * 64)
    assert again.frame.proj4 == first.frame.proj4
    assert again.grid == GRID and again.orthophoto_grid == picture_grid
    assert torch.equal(again.index, first.index)
    assert torch.equal(again.descriptors, first.descriptors)
    assert (again.tile_m, again.tile_px, again.attribution) == (48.3, 128, ('a.tif (someone)',))
    again.save(tmp_path / 'b.map')
    assert (tmp_path / 'a.map').read_bytes() == (tmp_path / 'b.map').read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.map', 'b.map']
    (tmp_path / 'plain').touch()
    assert (tmp_path / 'a.map').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_a_failed_save_leaves_the_old_map(tmp_path, monkeypatch):
    some_map().save(tmp_path / 'a.map')
    before = (tmp_path / 'a.map').read_bytes()

    def fail(*_):
        raise OSError('disk full')
    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(OSError, match='disk full'):
        some_map(fingerprint='b' * 64).save(tmp_path / 'a.map')
    assert (tmp_path / 'a.map').read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ['a.map']


def test_a_map_of_other_weights_is_refused_with_both_names_and_the_remedy(tmp_path):
    some_map(fingerprint='1234567890ab' + 'f' * 52).save(tmp_path / 'a.map')
    with pytest.raises(ValueError, match=r'1234567890ab.*abcdefabcdef.*build_map'):
        EmbeddingMap.open(tmp_path / 'a.map', fingerprint='abcdef' * 10 + 'abcd')


def test_a_damaged_or_foreign_file_is_refused_in_one_line(tmp_path):
    whole = tmp_path / 'whole.map'
    some_map().save(whole)
    data = whole.read_bytes()
    bad = tmp_path / 'bad.map'
    for content in (b'', b'text', b'PK' * 4000, data[:100], data[:-1], data + b'0'):
        bad.write_bytes(content)
        with pytest.raises(ValueError, match='bad.map is no embedding map') as error:
            EmbeddingMap.open(bad)
        assert '\n' not in str(error.value)
    save_file({'weights': torch.zeros(3)}, bad)
    with pytest.raises(ValueError, match='safetensors file but no embedding map'):
        EmbeddingMap.open(bad)
    with pytest.raises(OSError, match='does not exist'):
        EmbeddingMap.open(tmp_path / 'none.map')


CHANGES = {
    'format version 99': lambda metadata, tensors: metadata.update(format_version=99),
    'header is not understood': lambda metadata, tensors: metadata.pop('format_version'),
    'tile_m': lambda metadata, tensors: metadata.pop('tile_m'),
    'map origin': lambda metadata, tensors: metadata.update(origin_latitude_deg=200.0),
    'map index is': lambda metadata, tensors: metadata['grid'].update(rows=33),
    'each of the': lambda metadata, tensors: tensors['cells'].clamp_(max=5),
    'descriptors': lambda metadata, tensors: tensors.pop('descriptors'),
}


def test_a_map_of_format_1_is_still_read(tmp_path):
    expected = some_map()
    expected.save(tmp_path / 'a.map')

    def to_format_1(metadata, tensors):
        metadata.update(format_version=1)
        tensors['index'] = expected.index.int()
        del tensors['chunks'], tensors['cells']
    rewrite(tmp_path / 'a.map', to_format_1)
    found = EmbeddingMap.open(tmp_path / 'a.map')
    assert torch.equal(found.index, expected.index)
    assert torch.equal(found.descriptors, expected.descriptors)


def test_a_corridor_takes_the_room_of_its_tiles_and_not_of_its_box(tmp_path):
    side = 3000
    index = torch.full((side, side), -1, dtype=torch.int64)
    index[torch.arange(side), torch.arange(side)] = torch.arange(side)
    descriptors = torch.ones(side, 2, dtype=torch.float16)
    grid = MapGrid(side, side, 2.5, 0.0, 0.0)
    some_map(grid=grid, index=index, descriptors=descriptors).save(tmp_path / 'a.map')
    assert (tmp_path / 'a.map').stat().st_size < 0.05 * 4 * side ** 2
    window = EmbeddingMap.open(tmp_path / 'a.map').window(prior_at(2500.0, -2500.0), 5.0)
    assert np.array_equal(np.nonzero(window.index.numpy() >= 0), [np.arange(7)] * 2)


@pytest.mark.parametrize('x_m', [-10.0, 3.3, 30.0])
def test_a_map_left_in_its_file_gives_the_windows_of_one_in_memory(tmp_path, x_m):
    whole = some_map()
    whole.save(tmp_path / 'a.map')
    stored = EmbeddingMap.open(tmp_path / 'a.map', preload_bytes=0)
    for half_width_m in (6.0, 30.0):
        expected, found = (m.window(prior_at(x_m, 5.0), half_width_m) for m in (whole, stored))
        assert found.grid == expected.grid and found.coverage == expected.coverage
        assert torch.equal(found.index, expected.index)
        assert torch.equal(found.descriptors, expected.descriptors)


def test_a_cache_smaller_than_the_drive_gives_every_row_right():
    rows = torch.arange(4000, dtype=torch.float16)[:, None].expand(-1, 4)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b'8 bytes.' + rows.contiguous().numpy().tobytes())
        file.flush()
        stored = StoredRows(Path(file.name), 8, (4000, 4), 'cpu', cache_bytes=0)
        for first in range(0, 3700, 37):
            numbers = np.arange(first, first + 200)
            assert torch.equal(stored[numbers], rows[first:first + 200])
        assert stored.rows_read == 200 + 37 * 99
        stored.prefetch(np.arange(100))
        read = stored.rows_read
        assert torch.equal(stored[np.arange(100)], rows[:100]) and stored.rows_read == read
        file.truncate(800)
        with pytest.raises(OSError, match='ends within its descriptors'):
            stored[np.arange(2000, 2010)]


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
    read = stored.descriptors.rows_read
    for ahead_s in (0.5, 1.0, 2.0, 3.0):
        prior = PoseEstimate(0, Pose2D(103.0 + 30.0 * ahead_s, 0.0, 0.0), np.eye(3))
        assert stored.window(prior, 20.0).coverage == 1.0
    assert stored.descriptors.rows_read == read


@pytest.mark.parametrize('reason', CHANGES)
def test_a_map_whose_parts_do_not_agree_is_refused_with_the_remedy(tmp_path, reason):
    path = tmp_path / 'bad.map'
    some_map().save(path)
    rewrite(path, CHANGES[reason])
    with pytest.raises(ValueError, match=f'bad.map .*{reason}.*rebuild with'):
        EmbeddingMap.open(path)


def test_the_orthophoto_is_decoded_on_its_grid():
    import cv2
    rgb = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    jpeg = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    grid = MapGrid(40, 60, 1.0, 0.0, 0.0)
    found, found_grid = some_map(orthophoto_jpeg=jpeg, orthophoto_grid=grid).orthophoto()
    assert found_grid == grid
    assert np.abs(found.astype(int) - rgb).max() <= 4
    assert some_map().orthophoto() is None
    with pytest.raises(ValueError, match='orthophoto in the map is damaged'):
        some_map(orthophoto_jpeg=b'x', orthophoto_grid=grid).orthophoto()
