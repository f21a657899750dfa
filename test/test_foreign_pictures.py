"""Drives with pictures of elsewhere: which overhead pictures serve, the route, a whole run."""

import json
import math

import numpy as np
import pytest
from synthetic_pairs import Plane, write_cvact, write_nuscenes

from benchmarks.accuracy import foreign_pictures
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig
from training.data.real_pairs import Overhead

SMALL = DenseConfig(channels=4, width=8, ahead_cells=32, across_cells=32, patch_cells=40)


def test_the_car_drives_a_left_hand_circle_at_its_speed():
    path = foreign_pictures.circle()
    radii_m = np.hypot(*path.poses[:, :2].T)
    assert radii_m == pytest.approx(np.full(len(radii_m), foreign_pictures.RADIUS_M))
    step_m = np.diff(path.poses[:2, :2], axis=0)[0]
    assert np.hypot(*step_m) / 0.02 == pytest.approx(foreign_pictures.SPEED_MPS, rel=1e-4)
    assert math.atan2(step_m[1], step_m[0]) == pytest.approx(path.poses[0, 2], abs=0.01)


def test_a_map_of_a_picture_has_its_middle_at_the_origin():
    rgb = np.random.default_rng(0).integers(0, 255, (1040, 1200, 3)).astype(np.uint8)
    found = foreign_pictures.map_of(Overhead('a', rgb, 0.25), random_network(SMALL, 0))
    blocks = found.grid
    east_m = blocks.x0_m + (blocks.cols - 1) * blocks.cell_m
    south_m = blocks.y0_m - (blocks.rows - 1) * blocks.cell_m
    assert blocks.x0_m == pytest.approx(-(1200 - 1) / 2 * 0.25 + (SMALL.tile_px - 1) / 2 * 0.25)
    assert blocks.y0_m == pytest.approx((1040 - 1) / 2 * 0.25 - (SMALL.tile_px - 1) / 2 * 0.25)
    assert east_m < 150.0 and south_m > -130.0


def test_pictures_of_elsewhere_do_not_move_the_pose(tmp_path, monkeypatch):
    monkeypatch.setattr(foreign_pictures, 'DURATION_S', 23.0)
    plane, pairs = Plane(0), tmp_path / 'real_pairs'
    write_cvact(pairs, plane)
    write_nuscenes(pairs, plane)
    monkeypatch.setattr(foreign_pictures, 'MIN_VIEWS', 8)
    monkeypatch.setattr(foreign_pictures, 'MIN_SIDE_M', 80.0)
    (tmp_path / 'real.json').write_text('{"sets": {}}')
    save_network(random_network(SMALL, 0), tmp_path / 'random.safetensors', {})
    assert foreign_pictures.main([
        '--pairs', str(pairs), '--weights', str(tmp_path / 'random.safetensors'),
        '--out', str(tmp_path)]) == 0
    result = json.loads((tmp_path / 'real.json').read_text())
    assert result['sets'] == {}
    drives = result['foreign_pictures']
    assert [(row['map'], row['pictures']) for row in drives] == [
        ('nuscenes_scene1', 'cvact_256'), ('nuscenes_scene1', 'cvact_native')]
    for row in drives:
        assert row['n'] >= 20 and row['used_after_20_s'] == 0.0
        assert row['median_m'] == pytest.approx(row['prior_median_m'], abs=0.5)


def test_pairs_without_a_large_overhead_picture_have_no_drives(tmp_path, capsys):
    write_cvact(tmp_path / 'real_pairs', Plane(0))
    save_network(random_network(SMALL, 0), tmp_path / 'random.safetensors', {})
    assert foreign_pictures.main([
        '--pairs', str(tmp_path / 'real_pairs'), '--out', str(tmp_path),
        '--weights', str(tmp_path / 'random.safetensors')]) == 0
    assert 'no drives' in capsys.readouterr().out and not (tmp_path / 'real.json').exists()
