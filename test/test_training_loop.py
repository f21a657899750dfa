"""The training loop: it keeps its best, goes on after it was killed, and runs on several ranks."""

from dataclasses import replace
import json
import os
import socket
import sys

import pytest
import torch
from training_runs import AREAS, LIKELIHOOD, make_network, make_recipe, PAIRS, TRAINING

from crossview_localizer.networks.checkpoint import load_network, read_model_config
from training.distributed import ALONE, joined_ranks, rank_device, Ranks
from training.loop import (
    backward,
    learning_rate_factor,
    make_optimizer,
    Objective,
    set_training,
    train,
    TrainConfig,
)

pytestmark = pytest.mark.usefixtures('one_thread')
RECIPES = {'areas': AREAS, 'pairs': PAIRS, 'likelihood': LIKELIHOOD}


def run(recipe_config, out, config=TRAINING, **options):
    network = make_network(recipe_config)
    train(network, make_recipe(recipe_config), config, out, {'note': 'test'}, **options)
    return network


def log_of(out):
    lines = [json.loads(line) for line in out.with_suffix('.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != 'seconds'} for line in lines]


class Killed(Exception):
    pass


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
def test_a_run_killed_and_resumed_has_the_losses_and_weights_of_one_that_was_not(
        recipe, tmp_path, capsys):
    config = replace(TRAINING, average_steps=2)
    whole = run(recipe, tmp_path / 'whole.safetensors', config)
    halves = tmp_path / 'halves.safetensors'

    def kill(line):
        raise Killed

    with pytest.raises(Killed):
        run(recipe, halves, config, on_validation=kill)
    # Killed a moment later, it would have logged more than its state knows of.
    log = halves.with_suffix('.jsonl')
    log.write_text(log.read_text() + '{"step": 3, "loss": 0.1}\n{"step": 4, "lo')
    resumed = run(recipe, halves, config)
    assert 'after step 2' in capsys.readouterr().out
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name
    assert log_of(halves) == log_of(tmp_path / 'whole.safetensors')
    assert [line['step'] for line in log_of(halves)] == [2, 4]
    assert read_model_config(halves) == read_model_config(tmp_path / 'whole.safetensors')


def test_a_state_of_other_settings_or_a_broken_one_is_refused(tmp_path):
    out = tmp_path / 'weights.safetensors'
    run(AREAS, out, replace(TRAINING, steps=2))
    for other in (replace(TRAINING, learning_rate=0.5), replace(TRAINING, seed=1)):
        with pytest.raises(ValueError, match='other settings; give another --out'):
            run(AREAS, out, other)
    with pytest.raises(ValueError, match='other settings; give another --out'):
        run(replace(AREAS, jitter_m=4.0), out)
    out.with_suffix('.state').write_bytes(b'nothing')
    with pytest.raises(ValueError, match='not a readable torch state'):
        run(AREAS, out)


class Scored(torch.nn.Module):
    """A recipe whose loss is 0.5 whatever the network, with given validation scores."""

    config, epoch_length, score_name = AREAS, 5, 'nll'

    def __init__(self, scores):
        super().__init__()
        self.scores = iter(scores)

    def draw(self, step, ranks):
        return [step]

    def forward(self, network, part, ranks):
        return {'loss': 0.5 + 0.0 * sum(p.sum() for p in network.parameters())}

    def validate(self, network, ranks):
        return {'nll': next(self.scores)}, {'temperature': 0.25}


def test_training_stops_early_when_validation_no_longer_gains(tmp_path):
    out = tmp_path / 'weights.safetensors'
    train(make_network(AREAS), Scored([3.0, 2.0, 2.5, 2.5, 1.0]),
          TrainConfig(steps=100, validate_steps=1, patience=2), out, {})
    assert [line['nll'] for line in log_of(out)] == [3.0, 2.0, 2.5, 2.5]
    config, provenance = read_model_config(out)
    assert provenance['step'] == 2 and provenance['validation'] == {'nll': 2.0}
    assert config.temperature == 0.25


def test_a_run_that_validates_first_keeps_what_it_began_with_until_something_is_better(tmp_path):
    out = tmp_path / 'weights.safetensors'
    train(make_network(AREAS), Scored([2.0, 3.0, 2.5]), TrainConfig(steps=2, validate_steps=1),
          out, {}, validate_first=True)
    assert [line['step'] for line in log_of(out)] == [0, 1, 2]
    assert read_model_config(out)[1]['step'] == 0


def test_the_weights_that_are_kept_are_the_average_of_the_last_steps(tmp_path):
    class Rising(Scored):
        """The scale rises by 1 in each step, whatever the optimizer does."""

        def forward(self, network, part, ranks):
            network.log_scale.data = torch.tensor(float(part))
            return super().forward(network, part, ranks)

    network, out = make_network(LIKELIHOOD), tmp_path / 'weights.safetensors'
    train(network, Rising([1.0]),
          TrainConfig(steps=30, validate_steps=30, learning_rate=0.0, average_steps=2), out, {})
    assert network.log_scale.item() == pytest.approx(29.0, abs=1e-3)
    # A mean whose weights halve with each step lags one step behind a ramp, once it is settled.
    assert load_network(out).log_scale.item() == pytest.approx(28.0, abs=0.02)


def test_epochs_are_steps_of_the_recipe_and_the_last_step_is_validated(tmp_path):
    out = tmp_path / 'weights.safetensors'
    train(make_network(AREAS), Scored([3.0, 2.0]), TrainConfig(epochs=1, validate_steps=3),
          out, {})
    assert [line['step'] for line in log_of(out)] == [3, 5]
    assert [line['train_loss'] for line in log_of(out)] == [0.5, 0.5]


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    recipe = Scored([])
    monkeypatch.setattr(
        recipe, 'forward', lambda *case: {'loss': torch.tensor(torch.nan, requires_grad=True)})
    with pytest.raises(ValueError, match='nan at step 0; a lower --learning-rate'):
        train(make_network(AREAS), recipe, TRAINING, tmp_path / 'weights.safetensors', {})


def test_the_learning_rate_rises_stays_or_falls_to_zero():
    config = TrainConfig(steps=20, warmup_steps=4)
    assert [learning_rate_factor(step, config) for step in (0, 3, 4, 19)] == [0.25, 1.0, 1.0, 1.0]
    falling = [learning_rate_factor(step, replace(config, cosine=True)) for step in (1, 4, 12, 20)]
    assert falling == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_frozen_stages_and_batch_norm_keep_their_values_and_the_rest_has_its_rate():
    network = make_network(PAIRS)
    set_training(network, 2)
    trunk = network.ground.trunk
    assert not any(p.requires_grad for p in (*trunk.stem.parameters(),
                                             *trunk.blocks[:2].parameters()))
    assert all(p.requires_grad for p in trunk.blocks[2:].parameters())
    assert network.training and not trunk.blocks[3][0].project.norm.training
    config = TrainConfig(learning_rate=1e-2, trunk_learning_rate=1e-3, weight_decay=0.1)
    of_trunk, of_heads = make_optimizer(network, config).param_groups
    assert (of_trunk['lr'], of_heads['lr']) == (1e-3, 1e-2)
    of_branches = [p for branch in (network.ground, network.satellite)
                   for p in branch.trunk.parameters() if p.requires_grad]
    assert set(of_trunk['params']) == set(of_branches)
    assert set(of_heads['params']) == {
        p for p in network.parameters() if p.requires_grad} - set(of_branches)


def gradients(recipe_config, ranks=ALONE):
    """The gradients of step 1 as one vector, and this rank's share of its loss."""
    network, recipe = make_network(recipe_config), make_recipe(recipe_config)
    set_training(network, 2)
    objective = ranks.wrap(Objective(network, recipe, ranks))
    terms = backward(objective, recipe.draw(1, ranks), ranks)
    return torch.cat([
        p.grad.flatten() for p in objective.parameters() if p.requires_grad]), terms['loss'].item()


@pytest.fixture(scope='module')
def of_pairs():
    return gradients(PAIRS)


def assert_same_gradients(found, expected):
    assert expected.norm() > 1e-3
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_batch_in_chunks_has_the_gradients_of_the_batch_at_once(of_pairs):
    chunked, loss = gradients(replace(PAIRS, chunk=3))
    assert_same_gradients(chunked, of_pairs[0])
    assert loss == pytest.approx(of_pairs[1], rel=1e-5)


def _one_rank(rank, port, folder):
    torch.set_num_threads(1)
    os.environ |= {'RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
                   'MASTER_PORT': str(port)}
    with joined_ranks('cpu') as ranks:
        found = {name: gradients(config, ranks)
                 for name, config in (*RECIPES.items(), ('chunks', replace(PAIRS, chunk=1)))}
        torch.save(found, f'{folder}/{rank}.pt')
        run(LIKELIHOOD, folder / 'weights.safetensors', ranks=ranks)


def test_two_ranks_have_the_gradients_of_one_process_and_share_its_loss(of_pairs, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_rank, (port, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    alone = {'areas': gradients(AREAS), 'likelihood': gradients(LIKELIHOOD),
             'pairs': of_pairs, 'chunks': of_pairs}
    for name, (expected, loss) in alone.items():
        assert_same_gradients(first[name][0], expected)
        assert torch.equal(first[name][0], second[name][0])
        assert first[name][1] + second[name][1] == pytest.approx(loss, rel=1e-5)
    run(LIKELIHOOD, tmp_path / 'alone.safetensors')
    for of_ranks, of_one in zip(log_of(tmp_path / 'weights.safetensors'),
                                log_of(tmp_path / 'alone.safetensors')):
        assert of_ranks['train_loss'] == pytest.approx(of_one['train_loss'], rel=1e-3)


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
def test_more_ranks_than_parts_of_a_step_are_refused(recipe):
    with pytest.raises(ValueError, match='start at most'):
        make_recipe(recipe).draw(0, Ranks(0, 5))


def test_each_rank_of_a_machine_computes_on_the_gpu_of_its_number(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert [rank_device('cuda', rank) for rank in (0, 1)] == ['cuda:0', 'cuda:1']
    assert rank_device('auto', 1) == 'cuda:1' and rank_device('cpu', 1) == 'cpu'
    with pytest.raises(ValueError, match='start 2 processes per machine'):
        rank_device('cuda', 2)
    monkeypatch.setenv('LOCAL_RANK', '1')
    with joined_ranks('auto') as ranks:
        assert ranks.device == 'cuda:1'


def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert rank_device('auto', 0) == 'cpu'
    with pytest.raises(ValueError, match='use --device cpu'):
        rank_device('cuda', 0)


def test_mixed_precision_changes_a_gradient_little(of_pairs):
    mixed, _ = gradients(PAIRS, Ranks(mixed_precision=True))
    assert not torch.equal(of_pairs[0], mixed)
    assert torch.cosine_similarity(of_pairs[0], mixed, dim=0) > 0.98


def test_without_tensorboard_a_line_says_so_and_with_it_the_validations_are_there(
        tmp_path, capsys, monkeypatch):
    config = TrainConfig(steps=2, validate_steps=1)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, 'torch.utils.tensorboard', None)
        train(make_network(AREAS), Scored([1.0, 2.0]), config, tmp_path / 'a.safetensors', {})
        assert 'pip install tensorboard' in capsys.readouterr().out
    from tensorboard.backend.event_processing import event_accumulator as events
    train(make_network(AREAS), Scored([1.0, 2.0]), config, tmp_path / 'b.safetensors', {})
    found = events.EventAccumulator(str(tmp_path / 'b.tensorboard')).Reload()
    assert [(event.step, event.value) for event in found.Scalars('nll')] == [(1, 1.0), (2, 2.0)]
