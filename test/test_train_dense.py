"""Training the dense matcher: samples whose truth lies where they say, their loss, the command."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_runs import DENSE_MODEL as MODEL
from training_runs import dense_world, LIKELIHOOD

from crossview_localizer.networks.checkpoint import read_model_config, save_network
from crossview_localizer.networks.dense import correlate, turned_views
from training import train_dense
from training.data.datasets import save_world, World
from training.initial import initial_network
from training.recipes.dense_groups import dense_group, WINDOW_CELLS
from training.recipes.pose_likelihood import group_loss


@pytest.fixture(scope='module')
def world() -> World:
    return dense_world()


@pytest.mark.parametrize('seed', range(4))
def test_the_imagery_beneath_the_true_pose_is_found_at_the_target(world, seed):
    group = dense_group(world, 4, 3, MODEL, seed)
    window = F.avg_pool2d(group.imagery, 2)[0]
    window = window - window.mean((1, 2), keepdim=True)
    side = window.shape[-1]
    assert side == WINDOW_CELLS - 1 + MODEL.patch_cells
    middle = MODEL.middle_m / MODEL.cell_m
    for k, (row, col, share) in enumerate(group.target.numpy()):
        yaw_rad = group.yaws_rad[k, 0] * (1.0 - share) + group.yaws_rad[k, 1] * share
        ahead = (MODEL.ahead_cells - 0.5 - torch.arange(MODEL.ahead_cells))[:, None]
        left = ((MODEL.across_cells - 1) / 2 - torch.arange(MODEL.across_cells))[None, :]
        half = (MODEL.patch_cells - 1) / 2
        base_row = row + half + middle * np.sin(group.heading_rad)
        base_col = col + half - middle * np.cos(group.heading_rad)
        east = torch.cos(yaw_rad) * ahead - torch.sin(yaw_rad) * left
        north = torch.sin(yaw_rad) * ahead + torch.cos(yaw_rad) * left
        places = torch.stack((base_col + east, base_row - north), -1) / (side - 1) * 2.0 - 1.0
        view = F.grid_sample(window[None], places[None].float(), align_corners=True)
        turned = turned_views(view, yaw_rad[None, None], group.heading_rad, MODEL)
        energy = correlate((turned != 0).float(), window ** 2)[0, 0]
        best = int((energy - 2.0 * correlate(turned, window)[0, 0]).argmin())
        assert abs(best // WINDOW_CELLS - row) <= 0.75 and abs(best % WINDOW_CELLS - col) <= 0.75


def test_a_group_is_the_same_for_the_same_seed_and_its_truths_lie_within_the_prior(world):
    first, again = dense_group(world, 2, 4, MODEL, 7), dense_group(world, 2, 4, MODEL, 7)
    for ours, theirs in zip(vars(first).values(), vars(again).values()):
        if torch.is_tensor(ours):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert len(first.target) == 4
    from_prior_m = (first.target[:, :2] - (WINDOW_CELLS - 1) / 2) * MODEL.cell_m
    assert from_prior_m.abs().max() <= 18.5 + 1e-6
    assert not torch.equal(first.imagery, dense_group(world, 2, 4, MODEL, 8).imagery)


def test_the_loss_is_the_interpolated_likelihood_at_the_truth(world):
    group = dense_group(world, 4, 2, MODEL, 1)

    class Even:
        """Scores that are the same everywhere."""

        config = MODEL

        def ground(self, images, road, points):
            return torch.zeros(len(images), 4, 32, 32), torch.zeros(len(images), 1, 32, 32)

        def satellite(self, imagery):
            return torch.zeros(1, 4, 120, 120)

        def scores(self, view, *_):
            return torch.zeros(len(view), 4, WINDOW_CELLS, WINDOW_CELLS)

    nll, _ = group_loss(Even(), group)
    assert nll.numpy() == pytest.approx(np.log(4 * WINDOW_CELLS ** 2), abs=1e-4)


def test_a_run_begins_with_earlier_weights_of_the_same_model_only(tmp_path):
    path = tmp_path / 'first.safetensors'
    first = initial_network(MODEL, 3, random_trunk=True)
    first.config = replace(MODEL, temperature=2.0)
    save_network(first, path, {})
    again = initial_network(MODEL, 0, path)
    assert again.config == MODEL  # the temperature is fitted anew
    for ours, theirs in zip(again.state_dict().values(), first.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)  # files are half precision
    with pytest.raises(ValueError, match='expected'):
        initial_network(replace(MODEL, width=12), 0, path)


def test_the_command_trains_and_fits_what_the_scores_claim(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_dense, 'DenseConfig', lambda: MODEL)
    monkeypatch.setattr(train_dense, 'PoseLikelihoodConfig', lambda: LIKELIHOOD)
    save_world(world, tmp_path / 'world.npz')
    out = tmp_path / 'weights.safetensors'
    files = ['--train', str(tmp_path / 'world.npz'), '--val', str(tmp_path / 'world.npz')]
    assert train_dense.main(
        [*files, '--out', str(out), '--random-trunk', '--steps', '1', '--image-blind']) == 0
    model, provenance = read_model_config(out)
    assert model.temperature != 1.0 and provenance['image_blind'] and provenance['step'] == 1
    assert train_dense.main([*files, '--out', str(out), '--seed', '1', '--random-trunk']) == 2
    assert 'other settings' in capsys.readouterr().err
