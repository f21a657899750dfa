"""Training tile networks: the papers' settings, what a step sees, and the command."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_runs import AREAS, make_network, make_recipe, PAIRS, TILE_MODEL, tile_world, TRAINING

from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.controls import random_network
from training.data.datasets import load_world, save_world
from training.distributed import ALONE, Ranks
from training.initial import initial_network
from training.loop import make_optimizer, train
from training.losses import CrossViewLoss
from training.recipes.areas import lattice_positions
from training.recipes.pairs import DropBlock, GROUND, SATELLITE
from training.samplers import LocalGroupSampler
from training.train_tiles import CONFIGS, main

pytestmark = pytest.mark.usefixtures('one_thread')


@pytest.fixture(scope='module')
def world():
    return tile_world()


def test_the_weights_carry_recipe_temperatures_and_validation(world, tmp_path):
    out = tmp_path / 'weights.safetensors'
    recipe = make_recipe(AREAS)
    train(make_network(AREAS), recipe, replace(TRAINING, steps=2), out, {'data': 'noise'})
    recipe.finish(out)
    config, provenance = read_model_config(out)
    assert provenance['data'] == 'noise'
    assert provenance['train_config']['recipe']['group_size'] == 2
    assert {'validation', 'validation of random_init:1', 'validation of raw_correlation'} <= set(
        provenance)
    temperatures = {config.temperature, config.random_temperature, config.raw_temperature}
    assert all(0.0 < temperature <= 1.0 for temperature in temperatures)
    assert load_network('raw_correlation', like=out).config.temperature == config.raw_temperature


def test_drop_block_keeps_the_mean_and_drops_whole_blocks_only_in_training():
    torch.manual_seed(0)
    images = torch.ones(8, 3, 154, 231)
    drop = DropBlock(15, 0.8)
    dropped = drop(images)
    assert dropped.mean() == pytest.approx(1.0, abs=1e-5)
    share = (dropped == 0).float().mean()
    assert 0.15 < share < 0.22  # less than 0.2 where blocks overlap
    assert not torch.equal(dropped[0, 0] == 0, dropped[0, 1] == 0)  # each colour for itself
    # Every dropped pixel lies in a dropped square of 15.
    gone = (dropped == 0).float()
    eroded = -torch.nn.functional.max_pool2d(-gone, 15, 1)
    opened = torch.nn.functional.max_pool2d(
        torch.nn.functional.pad(eroded, [14] * 4), 15, 1)
    assert torch.equal(opened, gone)
    assert torch.equal(drop.eval()(images), images)


def test_turned_tiles_are_those_of_the_places_on_whichever_rank_they_are_read():
    recipe = make_recipe(replace(PAIRS, turns='tile', colours=False))
    [whole] = recipe.draw(0, ALONE)
    for rank in (0, 1):
        [share] = recipe.draw(0, Ranks(rank, 2))
        for side in (GROUND, SATELLITE):
            assert torch.equal(share.images[side], whole.images[side][rank::2])
    for tile, place in zip(whole.images[SATELLITE].numpy(), whole.batch.satellite):
        upright = recipe.places.read_satellite(place)
        assert any(np.array_equal(tile, np.rot90(upright, k)) for k in range(4))


def test_a_validation_of_perfect_descriptors_misses_nothing():
    recipe = make_recipe(replace(PAIRS, radius_m=9.0))
    described = {}

    class Perfect:
        """Knows each image's place; descriptors turn with it."""

        def ground_descriptors(self, views):
            return torch.stack([described[view.numpy().tobytes()] for view in views])

        satellite_descriptors = ground_descriptors

    for place, (x_m, _) in enumerate(recipe.places.positions_m):
        angle = torch.tensor(x_m / 30.0)
        for read in (recipe.places.read_ground, recipe.places.read_satellite):
            described[read(place).tobytes()] = torch.stack((angle.cos(), angle.sin())).float()
    metrics, fitted = recipe.validate(Perfect(), ALONE)
    assert metrics['misses_local_percent'] == 0.0 and metrics['recall_at_1_global'] == 100.0
    assert metrics['median_m'] == 0.0 and metrics['images'] == 2
    assert fitted == {'temperature': pytest.approx(0.003)}


def test_every_config_makes_its_network_and_its_loss():
    for name, (model, recipe, config) in CONFIGS.items():
        with torch.device('meta'):
            network = random_network(model, 0)
        CrossViewLoss(recipe.loss)  # an unknown setting raises
        optimizer = make_optimizer(network, config)
        assert sum(p.numel() for group in optimizer.param_groups for p in group['params']) > 1e5
        assert config.steps or config.epochs, name
        assert config.validate_steps or config.validate_epochs, name


@pytest.mark.parametrize(
    'name, loss, sampler, batch, radius_m, rate, epochs, drop_block, sigma_m, power, mask_m', [
        ('oxford', 'local', 'local', 64, 50.0, 5e-5, 1000, True, 10.0, 1, (5.0, 50.0)),
        ('cvact', 'local', 'local', 4, 100.0, 1e-5, 100, False, 25.0, 2, (0.0, 100.0)),
        ('cvact_global', 'local', 'random', 16, 100.0, 1e-5, 100, False, 25.0, 2, (0.0, np.inf)),
        ('cvact_safa', 'safa', 'random', 32, 100.0, 1e-5, 100, False, None, None, None),
        ('oxford_global', 'global', 'random', 64, 50.0, 5e-5, 1000, True, None, None, None)])
def test_the_named_configs_have_the_papers_settings(
        name, loss, sampler, batch, radius_m, rate, epochs, drop_block, sigma_m, power, mask_m):
    model, data, config = CONFIGS[name]
    assert (model.trunk, model.heads, model.channels, model.hidden) == ('vgg16', 8, 512, 0)
    criterion = data.loss
    assert (criterion.kind, criterion.gamma, criterion.near_m) == (loss, 10.0, 25.0)
    assert (data.sampler, data.batch, data.radius_m, data.drop_block) == (
        sampler, batch, radius_m, drop_block)
    assert not data.colours and data.turns == ('tile' if model.ground_view == 'camera' else 'none')
    assert config.learning_rate == config.trunk_learning_rate == rate
    assert (config.epochs, config.weight_decay, config.cosine) == (epochs, 0.0, False)
    if sigma_m is not None:
        assert (criterion.sigma_m, criterion.distance_power) == (sigma_m, power)
        assert (criterion.hole_m, criterion.radius_m) == mask_m


@pytest.fixture
def world_file(world, tmp_path):
    save_world(world, tmp_path / 'world.npz')
    return str(tmp_path / 'world.npz')


def test_the_command_trains_the_papers_loss_on_a_world(world_file, tmp_path, capsys):
    out = tmp_path / 'out.safetensors'
    arguments = ['--config', 'synthetic_global', '--train', world_file, '--val-drives', '1',
                 '--random-trunk', '--batch', '2', '--steps', '1', '--heads', '2', '--device',
                 'cpu', '--out', str(out)]
    assert main(arguments) == 0
    config, provenance = read_model_config(out)
    assert config.heads == 2 and config.ground_view == 'camera'
    assert provenance['train_config']['recipe']['loss']['kind'] == 'global'
    # Another seed from these weights.
    again = [*arguments[:-1], str(tmp_path / 'again.safetensors'), '--seed', '1', '--init',
             str(out)]
    again.remove('--random-trunk')
    assert main(again) == 0
    capsys.readouterr()


def test_bad_arguments_are_one_line(world_file, tmp_path, capsys):
    out = str(tmp_path / 'out.safetensors')
    save_network(make_network(AREAS), tmp_path / 'small.safetensors', {})
    other = ['--init', str(tmp_path / 'small.safetensors')]
    for arguments, message in (
            (['--train', str(tmp_path / 'absent.npz'), '--val', world_file], 'absent.npz'),
            (['--train', world_file], 'takes --train and --val'),
            (['--train', world_file, '--val', world_file, '--batch', '3'], '--batch'),
            (['--config', 'synthetic_local', '--train', world_file], '--val-drives'),
            (['--config', 'synthetic_local', '--train', world_file, '--val-drives', '1'],
             'no batch of 16'),
            (['--config', 'synthetic_local', '--train', world_file, '--val-drives', '1',
              '--batch', '2', *other], 'ground.'),
            (['--config', 'oxford', '--train', world_file], '--root'),
            (['--config', 'cvact', '--train', world_file], '--root')):
        assert main([*arguments, '--out', out]) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1, error


def test_vgg_without_weights_says_where_to_get_them():
    with pytest.raises(ValueError, match=r'training\.import_weights'):
        initial_network(CONFIGS['oxford'][0], 0)


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
    positions = lattice_positions(grid, TILE_MODEL, 8)
    side = TILE_MODEL.tile_px * TILE_MODEL.px_m
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
