"""Retrieval over the places of worlds and raw traversals, and the files that it writes."""

import argparse
import gzip
import json

import numpy as np
from pyproj import Transformer
import pytest
import rasterio
import robotcar_drive

from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import ModelConfig, OXFORD
from training import evaluate_retrieval
from training.data.datasets import places_of_world, save_world, World
from training.data.places_arguments import add_places_arguments, read_places
from training.evaluate_retrieval import images_elsewhere, read_queries, results

MODEL = ModelConfig(channels=4, heads=4, hidden=2, view_px=64, margin_px=32)
BASE_FROM_CAMERA = np.array(
    [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)


@pytest.fixture(scope='module')
def world():
    """Two drives of 6 images along the same 50 m."""
    rng = np.random.default_rng(0)
    along_m = np.concatenate((np.arange(6) * 10.0, np.arange(6) * 10.0 + 1.0))
    imagery = rng.integers(0, 255, (200, 400, 3)).astype(np.uint8)
    return World(
        'town', imagery, MapGrid(200, 400, MODEL.px_m, -40.0, 37.0),
        rng.integers(0, 255, (12, 200, 300, 3)).astype(np.uint8),
        CameraModel(300, 200, 240.0, 240.0, 149.5, 99.5, BASE_FROM_CAMERA, 1.5),
        np.column_stack((along_m, np.zeros(12), np.full(12, 0.1))), np.repeat([0, 1], 6))


def test_a_world_gives_places_whose_tiles_lie_about_them(world):
    places = places_of_world(world, {0: 'train', 1: 'test'}, MODEL.tile_px, 'birds_eye', 64)
    assert places.queries('test').tolist() == [6, 7, 8, 9, 10, 11]
    assert places.trainable().sum() == 6
    assert places.read_ground(7).shape == (64, 64, 4)
    tile = places.read_satellite(7)
    # Place 7 is 11 m east, 0 m north: its tile's middle lies between four pixels of the raster.
    row, col = world.grid.row_col_from_xy(11.0, 0.0)
    top, left = (round(float(value) - 63.5) for value in (row, col))
    np.testing.assert_array_equal(tile, world.imagery[top:top + 128, left:left + 128])
    camera = places_of_world(world, {1: 'test'}, 64)
    assert len(camera) == 6 and camera.read_ground(0).shape == (154, 231, 3)


def test_drives_that_are_not_there_and_panoramas_are_refused(world):
    with pytest.raises(ValueError, match=r'drives \[0, 1\]'):
        places_of_world(world, {5: 'test'}, 64)
    with pytest.raises(ValueError, match='panoramas'):
        places_of_world(world, {0: 'test'}, 64, 'polar')


def test_images_from_elsewhere_are_far_away_and_evenly_used():
    positions = np.column_stack((np.arange(0.0, 1000.0, 10.0), np.zeros(100)))
    chosen = images_elsewhere(positions)
    assert np.linalg.norm(positions[chosen] - positions, axis=1).min() >= 200.0
    assert np.bincount(chosen).max() <= 2
    # In a short drive: the farthest.
    assert images_elsewhere(positions[:5]).tolist() == [4, 4, 0, 0, 0]


def test_the_command_writes_a_line_per_query_and_its_numbers_follow_from_them(
        world, tmp_path, capsys):
    save_world(world, tmp_path / 'town.npz')
    save_network(random_network(MODEL, 0), tmp_path / 'weights.safetensors', {})
    out = tmp_path / 'out'
    call = ['--data', 'world', '--train', str(tmp_path / 'town.npz'), '--test-drives', '1',
            '--weights', str(tmp_path / 'weights.safetensors'), '--out', str(out),
            '--radius-m', '30', '--prior-sigma-m', '2']
    assert evaluate_retrieval.main(call) == 0
    shown = capsys.readouterr().out
    assert 'image_blind' in shown and '6 queries, 12 tiles' in shown
    written = json.loads((out / 'results.json').read_text())
    queries, rows = read_queries(out / 'queries.csv.gz')
    again = json.loads(json.dumps(results(queries, rows)))
    assert again == written['results']
    assert 'transductive' in written['setting']
    match = written['results']['all']['match']
    assert match['n_queries'] == 6 and match['blocks'] == 1
    # The right tiles of a query are its own and the other drive's at 1 m.
    assert rows['match'].right.tolist() == [2] * 6
    hits = 100.0 * np.mean(rows['match'].local_rank < 1)
    assert match['recall_at_1_local'][1] == match['recall_local']['1'] == hits
    # Every estimate is a tile's centre; the claimed covariance is positive.
    assert (np.linalg.eigvalsh(rows['match'].second_moment_m2)[:, 1] > 0).all()
    # The prior has the noise that was asked for.
    off_m = queries.centre_m - queries.truth_m
    assert 0.5 < off_m.std() < 4.0
    assert evaluate_retrieval.main([*call[:4], *call[6:], '--val-drives', '1']) == 2
    assert "split 'test'" in capsys.readouterr().err


def test_a_world_of_another_resolution_is_refused(world, tmp_path):
    save_world(world, tmp_path / 'town.npz')
    parser = argparse.ArgumentParser()
    add_places_arguments(parser)
    with pytest.raises(ValueError, match=r'--px-m 0\.216'):
        read_places(parser.parse_args([
            '--data', 'world', '--train', str(tmp_path / 'town.npz'), '--test-drives', '1']),
            OXFORD)


def test_a_file_of_something_else_is_refused(tmp_path):
    for content in (b'method,place\n', b'a,b\n1,2\n'):
        path = tmp_path / 'queries.csv.gz'
        path.write_bytes(gzip.compress(content))
        with pytest.raises(ValueError, match='no queries'):
            read_queries(path)
    path.write_bytes(b'plain')
    with pytest.raises(ValueError, match='no queries'):
        read_queries(path)


def test_raw_traversals_and_one_georeferenced_image_are_data_too(tmp_path):
    drive = robotcar_drive.write_drive(tmp_path / 'raw')
    utm = Transformer.from_crs('EPSG:4326', 'EPSG:32630', always_xy=True)
    east_m, north_m = utm.transform(robotcar_drive.ORIGIN[1], robotcar_drive.ORIGIN[0])
    pixels = np.random.default_rng(0).integers(0, 255, (3, 600, 600)).astype(np.uint8)
    with rasterio.open(
            tmp_path / 'area.tif', 'w', driver='GTiff', width=600, height=600, count=3,
            dtype='uint8', crs='EPSG:32630', transform=rasterio.Affine(
                0.25, 0, east_m - 75, 0, -0.25, north_m + 75)) as file:
        file.write(pixels)
    parser = argparse.ArgumentParser()
    add_places_arguments(parser)
    places = read_places(parser.parse_args([
        '--data', 'oxford_raw', '--test', str(drive.traversal), '--rtk', str(drive.root / 'rtk'),
        '--extrinsics', str(drive.root / 'extrinsics'), '--imagery',
        str(tmp_path / 'area.tif')]), OXFORD)
    assert len(places) >= 3 and (places.split == 'test').all()
    assert (np.diff(places.stamp_us[places.queries('test')]) > 0).all()
    assert places.read_ground(0).shape == (154, 231, 3)
    assert places.read_satellite(0).shape == (256, 256, 3)
    with pytest.raises(ValueError, match='--rtk FOLDER'):
        read_places(parser.parse_args(
            ['--data', 'oxford_raw', '--test', str(drive.traversal)]), OXFORD)
