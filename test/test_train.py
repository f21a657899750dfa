"""Training runs, keeps its best, and goes on after it was killed; on several ranks as on one."""

from dataclasses import replace
import json
import os
import socket
import sys

import numpy as np
import pytest
import torch

from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import ModelConfig
from training import train_tiles as module
from training.data.datasets import load_world, places_of_world, save_world, World
from training.distributed import ALONE, join_ranks, leave_ranks, Ranks
from training.losses import CrossViewLoss, LossConfig
from training.recipes.areas import AreaConfig, AreaRecipe, lattice_positions
from training.recipes.pairs import DropBlock, PairConfig, PairRecipe
from training.samplers import LocalGroupSampler
from training.train_tiles import CONFIGS, main, start, train, TrainConfig

MODEL = ModelConfig(channels=4, heads=4, hidden=2, view_px=64, margin_px=32)
AREAS = TrainConfig(
    AreaConfig(groups=2, group_size=2, area_px=160, group_half_width_m=5.0, jitter_m=3.0,
               validation_images=2),
    LossConfig(sigma_m=4.0, hole_m=2.2), steps=4, warmup_steps=1, cosine=True, validate_steps=2,
    frozen_stages=2)
PAIRS = TrainConfig(
    PairConfig(batch=4, turns='scene', colours=True, radius_m=15.0, positive_m=2.0, correct_m=2.0),
    LossConfig('info_nce', hole_m=2.0), steps=4, validate_steps=2)


def make_world():
    rng = np.random.default_rng(0)
    base_from_camera = np.array(
        [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)
    return World(
        'noise', rng.integers(0, 255, (300, 300, 3)).astype(np.uint8),
        MapGrid(300, 300, MODEL.px_m, -56.0, 56.0),
        rng.integers(0, 255, (10, 200, 300, 3)).astype(np.uint8),
        CameraModel(300, 200, 241.0, 241.0, 149.5, 99.5, base_from_camera, 1.5),
        np.column_stack((np.arange(10) % 8 * 3.0, np.zeros(10), np.zeros(10))),
        np.array([0] * 8 + [1] * 2))


@pytest.fixture(scope='module')
def world():
    return make_world()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe_of(config, world):
    if isinstance(config.data, AreaConfig):
        return AreaRecipe(config.data, MODEL, config.seed, [world], [world])
    places = places_of_world(
        world, {0: 'train', 1: 'val'}, MODEL.tile_px, 'birds_eye', MODEL.view_px)
    return PairRecipe(config.data, config.seed, places)


def run(config, world, out, **options):
    return train(MODEL, config, recipe_of(config, world), out, random_network(MODEL, 0),
                 {'seed': 0}, **options)


def log_of(out):
    lines = [json.loads(line) for line in out.with_suffix('.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != 'seconds'} for line in lines]


class Killed(Exception):
    pass


@pytest.mark.parametrize('config', [AREAS, PAIRS], ids=['areas', 'pairs'])
def test_a_run_killed_and_resumed_has_the_losses_and_weights_of_one_that_was_not(
        config, world, tmp_path, capsys):
    whole = run(config, world, tmp_path / 'whole.safetensors')
    halves = tmp_path / 'halves.safetensors'

    def kill(line):
        raise Killed

    with pytest.raises(Killed):
        run(config, world, halves, report=kill)
    # Killed a moment later, it would have logged more than its state knows of.
    log = halves.with_suffix('.jsonl')
    log.write_text(log.read_text() + '{"step": 3, "loss": 0.1}\n{"step": 4, "lo')
    resumed = run(config, world, halves)
    assert 'at step 2' in capsys.readouterr().out
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name
    assert log_of(halves) == log_of(tmp_path / 'whole.safetensors')
    assert [line['step'] for line in log_of(halves)] == [2, 4]
    assert read_model_config(halves) == read_model_config(tmp_path / 'whole.safetensors')


def test_a_state_of_other_settings_or_a_broken_one_is_refused(world, tmp_path):
    out = tmp_path / 'weights.safetensors'
    run(replace(AREAS, steps=2), world, out)
    with pytest.raises(ValueError, match='other settings; give another --out'):
        run(replace(AREAS, learning_rate=0.5), world, out)
    out.with_suffix('.state').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='not a readable torch state'):
        run(AREAS, world, out)


def test_the_weights_carry_recipe_temperatures_and_validation(world, tmp_path):
    out = tmp_path / 'weights.safetensors'
    run(replace(AREAS, steps=2), world, out)
    recipe_of(AREAS, world).finish(out)
    config, provenance = read_model_config(out)
    assert provenance['seed'] == 0 and provenance['train_config']['data']['group_size'] == 2
    assert {'validation', 'validation of random_init:1', 'validation of raw_correlation'} <= set(
        provenance)
    temperatures = {config.temperature, config.random_temperature, config.raw_temperature}
    assert all(0.0 < temperature <= 1.0 for temperature in temperatures)
    assert load_network('raw_correlation', like=out).config.temperature == config.raw_temperature


def test_training_stops_early_when_validation_no_longer_gains(world, tmp_path, monkeypatch):
    scores = iter([3.0, 2.0, 2.5, 2.5, 1.0])
    recipe = recipe_of(AREAS, world)
    monkeypatch.setattr(recipe, 'backward', lambda *case: 0.0)
    monkeypatch.setattr(recipe, 'validate', lambda *case: ({'nll': next(scores)}, 0.1))
    out = tmp_path / 'weights.safetensors'
    train(MODEL, replace(AREAS, steps=100, validate_steps=1, patience=2), recipe, out,
          random_network(MODEL, 0), {})
    assert [line['nll'] for line in log_of(out)] == [3.0, 2.0, 2.5, 2.5]
    assert read_model_config(out)[1]['step'] == 2


def gradients(config, world, ranks=ALONE):
    """The gradients that two steps leave, summed, as one vector; and the second step's loss."""
    network, criterion = random_network(MODEL, 0), CrossViewLoss(config.loss)
    module.freeze(network, config.frozen_stages)
    recipe = recipe_of(config, world)
    parameters = [p for p in (*network.parameters(), *criterion.parameters()) if p.requires_grad]
    for step in range(2):
        loss = recipe.backward(network, criterion, step, ranks)
    ranks.sum_gradients(parameters)
    return torch.cat([p.grad.flatten() for p in parameters]), loss


@pytest.fixture(scope='module')
def of_pairs(world):
    return gradients(PAIRS, world)


def assert_same_gradients(found, expected):
    assert found[1] == pytest.approx(expected[1], rel=1e-5)
    assert expected[0].norm() > 1e-3
    assert (found[0] - expected[0]).norm() < 1e-5 * expected[0].norm()


def test_a_batch_in_chunks_has_the_gradients_of_the_batch_at_once(world, of_pairs):
    chunked = replace(PAIRS, data=replace(PAIRS.data, chunk=3))
    assert_same_gradients(gradients(chunked, world), of_pairs)


def _one_rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {'RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
                   'MASTER_PORT': str(port)}
    ranks = join_ranks('cpu', False)
    found = {name: gradients(config, make_world(), ranks)
             for name, config in (('areas', AREAS), ('pairs', PAIRS))}
    torch.save(found, f'{folder}/{rank}.pt')
    leave_ranks()


def test_two_ranks_have_the_gradients_of_one_process(world, of_pairs, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_rank, (port, str(tmp_path)), nprocs=2)
    for name, alone in (('areas', gradients(AREAS, world)), ('pairs', of_pairs)):
        for rank in (0, 1):
            assert_same_gradients(torch.load(tmp_path / f'{rank}.pt')[name], alone)


def test_mixed_precision_changes_a_gradient_little(world, of_pairs):
    mixed, _ = gradients(PAIRS, world, Ranks(mixed_precision=True))
    assert not torch.equal(of_pairs[0], mixed)
    assert torch.cosine_similarity(of_pairs[0], mixed, dim=0) > 0.98


def test_without_tensorboard_a_line_says_so_and_with_it_the_losses_are_there(
        world, tmp_path, capsys, monkeypatch):
    recipe = recipe_of(AREAS, world)
    monkeypatch.setattr(recipe, 'backward', lambda *case: 0.5)
    monkeypatch.setattr(recipe, 'validate', lambda *case: ({'nll': 1.0}, 0.1))
    config = replace(AREAS, steps=2, validate_steps=1)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, 'torch.utils.tensorboard', None)
        train(MODEL, config, recipe, tmp_path / 'a.safetensors', random_network(MODEL, 0), {})
        assert 'pip install tensorboard' in capsys.readouterr().out
    from tensorboard.backend.event_processing import event_accumulator as events
    train(MODEL, config, recipe, tmp_path / 'b.safetensors', random_network(MODEL, 0), {})
    found = events.EventAccumulator(str(tmp_path / 'b.tensorboard')).Reload()
    assert [(e.step, e.value) for e in found.Scalars('loss')] == [(1, 0.5), (2, 0.5)]
    assert len(found.Scalars('validation/nll')) == 2


def test_drop_block_keeps_the_mean_and_drops_whole_blocks_in_training_alone():
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


def test_turned_tiles_are_those_of_the_places_and_readings_do_not_depend_on_chunks(world):
    config = replace(PAIRS.data, turns='tile', colours=False)
    seen = []
    for chunk in (0, 3):
        recipe = recipe_of(replace(PAIRS, data=replace(config, chunk=chunk)), world)
        batch = recipe._batch(0)
        parts = recipe._parts(batch, 0, ALONE)
        images = recipe._augmented(batch, 0, parts, recipe._read(0, ALONE))
        seen.append(torch.cat([part for part, _ in zip(images, parts) if part.shape[-1] == 3]))
    assert torch.equal(*seen)
    for tile, place in zip(seen[0].numpy(), batch.satellite):
        upright = recipe.places.read_satellite(place)
        assert any(np.array_equal(tile, np.rot90(upright, k)) for k in range(4))


def test_a_validation_of_perfect_descriptors_misses_nothing(world):
    recipe = recipe_of(replace(PAIRS, data=replace(PAIRS.data, radius_m=9.0)), world)
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
    metrics, temperature = recipe.validate(Perfect(), ALONE)
    assert metrics['misses_local_percent'] == 0.0 and metrics['recall_at_1_global'] == 100.0
    assert metrics['median_m'] == 0.0 and metrics['images'] == 2
    assert temperature == pytest.approx(0.003)


def test_every_config_makes_its_network_and_its_loss():
    for name, (model, config) in CONFIGS.items():
        with torch.device('meta'):
            network = random_network(model, 0)
        criterion = CrossViewLoss(config.loss)
        optimizer = module.make_optimizer(network, criterion, config)
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
    model, config = CONFIGS[name]
    assert (model.trunk, model.heads, model.channels, model.hidden) == ('vgg16', 8, 512, 0)
    data, criterion = config.data, config.loss
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
    assert provenance['train_config']['loss']['kind'] == 'global'
    # Another seed from these weights.
    again = [*arguments[:-1], str(tmp_path / 'again.safetensors'), '--seed', '1', '--initial',
             str(out)]
    again.remove('--random-trunk')
    assert main(again) == 0
    capsys.readouterr()


def test_bad_arguments_are_one_line(world_file, tmp_path, capsys):
    out = str(tmp_path / 'out.safetensors')
    save_network(random_network(MODEL, 0), tmp_path / 'small.safetensors', {})
    other = ['--initial', str(tmp_path / 'small.safetensors')]
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
    model, _ = CONFIGS['oxford']
    with pytest.raises(ValueError, match=r'training\.import_weights'):
        start(model, 0, None, False)


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
