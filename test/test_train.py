"""Training runs, keeps its best, and goes on after it was killed."""

from dataclasses import replace
import json

import numpy as np
import pytest
import torch

from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks import load_network, ModelConfig, read_model_config
from training.datasets import load_world, save_world, World
from training.samplers import LocalGroupSampler
from training.train import finish, lattice_positions, train, TrainConfig

MODEL = ModelConfig(channels=4, heads=4, hidden=2, view_px=64, margin_px=32)
CONFIG = TrainConfig(
    steps=4, groups=1, group_size=2, area_px=160, warmup_steps=1, validate_every=2,
    validation_images=2)


@pytest.fixture(scope='module')
def world():
    rng = np.random.default_rng(0)
    base_from_camera = np.array(
        [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)
    return World(
        'noise', rng.integers(0, 255, (300, 300, 3)).astype(np.uint8),
        MapGrid(300, 300, MODEL.px_m, -56.0, 56.0),
        rng.integers(0, 255, (6, 200, 300, 3)).astype(np.uint8),
        CameraModel(300, 200, 241.0, 241.0, 149.5, 99.5, base_from_camera, 1.5),
        np.column_stack((np.arange(6) * 3.0, np.zeros(6), np.zeros(6))), np.zeros(6, int))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(world, out, steps):
    return train(MODEL, replace(CONFIG, steps=steps), [world], [world], out, True, {'seed': 0})


def test_a_run_stopped_and_resumed_ends_with_the_weights_of_one_that_was_not(world, tmp_path):
    # The same schedule: what is left out is only the second half of the steps.
    whole = run(world, tmp_path / 'whole.safetensors', 4)
    halves = tmp_path / 'halves.safetensors'

    class Killed(Exception):
        pass

    def kill_after(step):
        def check(line):
            if json.loads(line)['step'] == step:
                raise Killed
        return check

    log = halves.with_suffix('.jsonl')
    with pytest.raises(Killed):
        train(MODEL, CONFIG, [world], [world], halves, True, {'seed': 0},
              report=kill_after(2))
    assert log.exists() and halves.with_suffix('.state').exists()
    resumed = run(world, halves, 4)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        torch.testing.assert_close(a, b, msg=name)


def test_the_weights_carry_recipe_temperatures_and_validation(world, tmp_path):
    out = tmp_path / 'weights.safetensors'
    run(world, out, 2)
    finish(out, [world], CONFIG, 8)
    config, provenance = read_model_config(out)
    assert provenance['seed'] == 0 and provenance['train_config']['group_size'] == 2
    assert {'validation', 'validation of random_init:1', 'validation of raw_correlation'} <= set(
        provenance)
    temperatures = {config.temperature, config.random_temperature, config.raw_temperature}
    assert all(0.0 < temperature <= 1.0 for temperature in temperatures)
    assert load_network('raw_correlation', like=out).config.temperature == config.raw_temperature


def test_a_world_survives_saving(world, tmp_path):
    save_world(world, tmp_path / 'w.npz')
    loaded = load_world(tmp_path / 'w.npz')
    np.testing.assert_array_equal(loaded.images, world.images)
    assert loaded.grid == world.grid and loaded.camera.fx_px == world.camera.fx_px
    (tmp_path / 'bad.npz').write_bytes(b'nothing')
    with pytest.raises(ValueError, match=r'training\.prepare'):
        load_world(tmp_path / 'bad.npz')


def test_an_area_beyond_the_imagery_is_grey(world):
    area, grid = world.area(-56.0, 56.0, 40)
    assert (area[:19, :19] == 127).all() and (area[21:, 21:] != 127).any()
    row, col = grid.row_col_from_xy(-56.0, 56.0)
    assert abs(row - 19.5) <= 0.5 and abs(col - 19.5) <= 0.5


def test_lattice_positions_are_the_centres_of_the_tiles():
    grid = MapGrid(160, 160, 0.375, 0.0, 0.0)
    positions = lattice_positions(grid, MODEL, 8)
    side = MODEL.tile_px * MODEL.px_m
    assert positions.shape == (5, 5, 2)
    # The first tile reaches from the west edge of the first pixel to the east edge of its last.
    np.testing.assert_allclose(positions[0, 0], (side / 2 - 0.1875, -side / 2 + 0.1875))
    np.testing.assert_allclose(positions[0, 1] - positions[0, 0], (3.0, 0.0))


def test_local_groups_hold_neighbours_and_repeat_with_the_seed():
    rng = np.random.default_rng(1)
    positions = [rng.uniform(0, 200, (120, 2)), rng.uniform(0, 80, (40, 2))]
    sampler = LocalGroupSampler(positions, 6, 20.0, 5.0)
    groups, again = list(sampler.epoch(3)), list(sampler.epoch(3))
    assert [g.members.tolist() for g in groups] == [g.members.tolist() for g in again]
    assert [g.members.tolist() for g in groups] != [
        g.members.tolist() for g in sampler.epoch(4)]
    for group in groups:
        offset = np.abs(positions[group.world][group.members] - group.centre_m)
        assert offset.max() <= 20.0 and 2 <= len(group.members) <= 6
        assert len(set(group.members.tolist())) == len(group.members)
