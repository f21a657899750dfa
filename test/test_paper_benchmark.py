"""The comparison of the papers' losses: its statistics, and a run that is merged and resumed."""

from dataclasses import replace
import json

import numpy as np
import pytest

from benchmarks.accuracy import paper, paper_plans
from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid
from training.data.datasets import World
from training.evaluate_retrieval import Queries
from training.evaluation.recall import Retrieval

BASE_FROM_CAMERA = np.array(
    [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)


def queries_of(count=40):
    """Two days along 800 m of one street."""
    along_m = np.tile(np.linspace(0.0, 799.0, count // 2), 2)
    truth_m = np.column_stack((along_m, np.zeros(count)))
    drive = np.repeat(['a', 'b'], count // 2)
    return Queries(np.arange(count), np.arange(count), drive, paper.stretches(truth_m, drive),
                   truth_m, np.zeros(count), truth_m)


def retrieval(local_rank, error_m):
    count = len(local_rank)
    east_m = np.column_stack((error_m, np.zeros(count)))
    return Retrieval(np.asarray(local_rank) + 1, np.asarray(local_rank), np.zeros(count, int),
                     east_m, np.full(count, 20), np.full(count, 2), np.ones((count, 2, 2)))


def test_a_stretch_of_the_route_is_the_same_on_every_day():
    block = queries_of().block
    assert block[:20].tolist() == block[20:].tolist()
    assert np.unique(block).tolist() == [0, 1, 2, 3]


def test_each_town_has_stretches_of_its_own():
    one = queries_of()
    drive = np.array([f'{town} {day}' for town in 'AB' for day in one.drive])
    block = paper.stretches(np.tile(one.truth_m, (2, 1)), drive).reshape(2, 2, 20)
    assert (block[:, 0] == block[:, 1]).all()
    assert len(np.unique(block)) == 8


def test_minutes_count_each_part_of_a_run_that_was_resumed():
    seconds = [60.0, 120.0, 30.0, 90.0]  # killed after two minutes, then went on
    assert paper.minutes_of([{'seconds': value} for value in seconds]) == pytest.approx(3.5)


def test_the_difference_of_two_losses_is_that_of_their_hits_and_medians():
    queries = queries_of()
    hits = np.zeros(40, int)
    half = np.arange(40) % 2
    rows = {f'local {seed}': retrieval(hits, np.full(40, 2.0)) for seed in (0, 1, 2)}
    rows |= {f'global {seed}': retrieval(half, np.full(40, 9.0)) for seed in (0, 1)}
    rows['local 0 image_blind'] = retrieval(np.ones(40, int), np.full(40, 30.0))
    found = paper.compare(queries, rows)
    assert [run['seed'] for run in found['local']] == [0, 1, 2]
    assert found['global'][1] == {
        'seed': 1, 'recall_at_1_local': 50.0, 'recall_at_1_global': 0.0, 'median_m': 9.0,
        'mean_m': 9.0, 'p95_m': 9.0}
    difference = found['differences']['local']
    low, points, high = difference['recall_at_1_local_points']
    assert low <= points == 50.0 <= high
    assert difference['median_m'] == [-7.0, -7.0, -7.0]
    assert found['goal']['reached'] and found['chance_recall_at_1_local'] == 10.0
    assert found['controls']['local 0 image_blind']['median_m'] == 30.0
    # A loss against itself wins nothing.
    same = paper.compare(queries, {'local 0': rows['local 0'], 'global 0': rows['local 0']})
    assert same['differences']['local']['recall_at_1_local_points'] == [0.0, 0.0, 0.0]
    assert not same['goal']['reached']


def test_both_losses_differ_in_loss_sampler_and_rate_alone():
    plan = paper_plans.PLANS['cpu']
    (local, training), (other, other_training) = (
        paper_plans.settings_of_run(plan, kind, 1e-3, 4, 10) for kind in ('local', 'global'))
    assert local.sampler == 'local' and other.sampler == 'random'
    assert replace(other, sampler='local', loss=local.loss) == local
    assert training == other_training
    # The papers' local loss, and all pairs.
    assert (local.loss.kind, local.loss.sigma_m, local.loss.hole_m, local.loss.radius_m) == (
        'local', 10.0, 5.0, 50.0) and other.loss.kind == 'global'


def test_the_workshop_papers_loss_has_its_weights_mask_and_batches():
    pairs, _ = paper_plans.settings_of_run(paper_plans.PLANS['towns'], 'eccvw', 1e-3, 0, 10)
    loss = pairs.loss
    assert (loss.kind, loss.sigma_m, loss.distance_power, loss.hole_m, loss.radius_m) == (
        'local', 25.0, 2, 0.0, 100.0)
    assert (pairs.sampler, pairs.radius_m, pairs.positive_m, pairs.batch) == (
        'local', 100.0, 0.0, paper_plans.PLANS['towns'].pairs.batch)


def test_towns_lie_side_by_side_and_each_place_keeps_its_pictures(town):
    plan = replace(paper_plans.PLANS['smoke'], towns=2)
    other = replace(town, name='other', images=255 - town.images, imagery=255 - town.imagery)
    alone, both = paper_plans.places_of(plan, [town]), paper_plans.places_of(plan, [town, other])
    assert len(both) == 2 * len(alone) == 48
    for place in (0, 23):
        for side in ('read_ground', 'read_satellite'):
            first, second = getattr(both, side)(place), getattr(both, side)(24 + place)
            np.testing.assert_array_equal(first, getattr(alone, side)(place))
            assert np.abs(first.astype(int) + second - 255).mean() < 1.0
    np.testing.assert_array_equal(both.positions_m[24:] - both.positions_m[:24],
                                  np.tile([10_000.0, 0.0], (24, 1)))
    # Eight training images 12 m apart, in each town: 4 to 8 of them within 50 m of each.
    within = sum(abs(i - j) * 12.0 <= 50.0 for i in range(8) for j in range(8) if i != j) / 8
    assert paper_plans.neighbours_in_random_batch(both, 4) == pytest.approx(within * 3 / 15)


@pytest.fixture
def town(monkeypatch):
    """Three days of noise in place of the rendered town of the smallest plan."""
    rng = np.random.default_rng(0)
    plan = replace(paper_plans.PLANS['smoke'], rates=(1e-3,))
    monkeypatch.setitem(paper_plans.PLANS, 'smoke', plan)
    along_m = np.tile(np.arange(8) * 12.0, 3)
    world = World(
        'town', rng.integers(0, 255, (200, 500, 3), dtype=np.uint8),
        MapGrid(200, 500, plan.model.px_m, -50.0, 43.0),
        rng.integers(0, 255, (24, 100, 150, 3), dtype=np.uint8),
        CameraModel(150, 100, 120.0, 120.0, 74.5, 49.5, BASE_FROM_CAMERA, 1.5),
        np.column_stack((along_m, np.zeros(24), np.zeros(24))), np.repeat([0, 1, 2], 8))
    monkeypatch.setattr(paper, 'worlds_of', lambda plan, folder: [world])
    return world


def test_seeds_are_merged_over_runs_and_another_world_is_refused(
        town, tmp_path, capsys, monkeypatch):
    call = ['--smoke', '--out', str(tmp_path), '--seeds']
    assert paper.main([*call, '0']) == 0
    first = json.loads((tmp_path / 'paper.json').read_text())
    assert paper.main([*call, '1']) == 0
    both = json.loads((tmp_path / 'paper.json').read_text())
    assert [run['seed'] for run in both['local']] == [0, 1]
    assert both['local'][0] == first['local'][0] and both['global'][0] == first['global'][0]
    assert both['world_hash'] == first['world_hash'] and both['device'] and both['minutes'] > 0.0
    assert set(both['controls']) == {
        'random_init', 'local 0 image_blind', 'global 0 image_blind'}
    assert set(both['differences']) == {'local', 'local within 100 m'}
    assert (tmp_path / 'paper.jpg').is_file()
    assert 'local, minus global' in capsys.readouterr().out

    darker = replace(town, images=town.images // 2)
    monkeypatch.setattr(paper, 'worlds_of', lambda plan, folder: [darker])
    assert paper.main([*call, '2']) == 2
    assert 'move it away' in capsys.readouterr().err
