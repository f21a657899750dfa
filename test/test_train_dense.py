"""Training the dense matcher: samples whose truth lies where they say, a run that resumes."""

from dataclasses import replace
import json

import numpy as np
import pytest
from scipy.stats import multivariate_t
from test_dense import gaussian_volume, PRIOR
import torch
import torch.nn.functional as F

from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.matching.dense_matcher import distance2_within, peak_pose
from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.dense import correlate, DenseConfig, turned_views
from training.data.datasets import World
from training.distributed import Ranks
from training.recipes.dense_groups import dense_group, WINDOW_CELLS
from training.train_dense import (
    Answer,
    beginning,
    DenseTrainConfig,
    fit_peaks,
    fit_tails,
    fit_temperature,
    group_loss,
    train,
)

LOOKING_AHEAD = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
MODEL = DenseConfig(channels=4, width=8, ahead_cells=32, across_cells=32, patch_cells=40)


@pytest.fixture(scope='module')
def world() -> World:
    """A drive east over smooth random imagery, with blank images."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (75, 75, 3)).astype(np.float32)
    imagery = F.interpolate(
        torch.from_numpy(coarse).permute(2, 0, 1)[None], size=(600, 600), mode='bicubic')
    imagery = imagery[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
    poses = np.stack((np.linspace(-30.0, 30.0, 9), np.full(9, 3.0), np.full(9, 0.1)), 1)
    camera = CameraModel(96, 64, 80.0, 80.0, 47.5, 31.5, LOOKING_AHEAD, 1.5)
    images = rng.integers(0, 255, (9, 64, 96, 3), dtype=np.uint8)
    return World('w', imagery, MapGrid(600, 600, 0.25, -75.0, 75.0), images, camera, poses,
                 np.zeros(9, int))


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


def test_a_killed_run_goes_on_with_the_same_loss_curve(world, tmp_path):
    config = DenseTrainConfig(steps=4, groups=1, group_size=2, validate_every=2,
                              validation_groups=1, warmup_steps=1)

    def run(name, *stops):
        out = tmp_path / f'{name}.safetensors'
        for steps in stops:
            # The schedule is that of the whole run: stopping is what differs.
            train(beginning(MODEL, 0, True, None), config, [world], [world], out, {},
                  stop_after=steps)
        return [json.loads(line) for line in out.with_suffix('.jsonl').read_text().splitlines()]

    whole, resumed = run('whole', 4), run('resumed', 2, 4)
    assert [line['step'] for line in resumed] == [2, 4]
    for ours, theirs in zip(whole, resumed):
        assert ours['train_nll'] == pytest.approx(theirs['train_nll'], abs=1e-6)
        assert ours['nll'] == pytest.approx(theirs['nll'], abs=1e-6)
    model, provenance = read_model_config(tmp_path / 'whole.safetensors')
    assert model == replace(MODEL, temperature=model.temperature)
    assert provenance['train']['seed'] == 0 and provenance['step'] in (2, 4)
    assert load_network(tmp_path / 'whole.safetensors').config == model


def test_a_run_begins_with_earlier_weights_of_the_same_model_only(tmp_path):
    path = tmp_path / 'first.safetensors'
    first = beginning(MODEL, 3, True, None)
    first.config = replace(MODEL, temperature=2.0)
    save_network(first, path, {})
    again = beginning(MODEL, 0, True, path)
    assert again.config == MODEL  # the temperature is fitted anew
    for ours, theirs in zip(again.state_dict().values(), first.state_dict().values()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)  # files are half precision
    with pytest.raises(ValueError, match='expected'):
        beginning(replace(MODEL, width=12), 0, True, path)


@pytest.mark.parametrize('wrong', [0, 6])
def test_temperature_and_sharpening_are_those_of_the_errors(wrong):
    """Volumes four times too wide in variance; some peaks in the wrong place altogether."""
    rng = np.random.default_rng(0)
    covariance = np.diag([0.6, 0.9, 0.0008])
    found = []
    for k in range(80):
        mean = np.array([100.0, 50.0, 0.5])
        truth = rng.multivariate_normal(mean, covariance)
        if k < wrong:
            truth[:2] += (9.0, -8.0)
        heatmap = gaussian_volume(mean, 4.0 * covariance, PRIOR)
        found.append(Answer(heatmap, PRIOR, Pose2D(*truth)))
    factor, _ = fit_temperature(found)
    sharpening, min_mass = fit_peaks(found, factor)
    assert 0.5 < min_mass <= 1.0
    if wrong:  # one factor makes room for what is wrong; the peaks are as narrow as before
        assert factor < 1.0 and sharpening > 2.5
    else:
        assert factor == pytest.approx(4.0, rel=0.2) and sharpening == pytest.approx(1.0, abs=0.25)


@pytest.mark.parametrize('dof, wrong', [(1e6, 0), (4.0, 0), (1e6, 24)])
def test_both_ellipsoids_hold_their_share_of_all_frames(dof, wrong):
    """Errors twice as large as the peaks are wide, with tails or without, or some elsewhere."""
    covariance, mean = np.diag([0.6, 0.9, 0.0008]), np.array([100.0, 50.0, 0.5])
    heatmap = gaussian_volume(mean, covariance, PRIOR)
    errors = multivariate_t(shape=4.0 * covariance, df=dof, seed=1).rvs(400)
    errors[:wrong, :2] += (9.0, -8.0)
    found = [Answer(heatmap, PRIOR, Pose2D(*(mean + error))) for error in errors]
    inflation, fitted = fit_tails(found, 1.0, 0.5)
    if dof > 100.0 and not wrong:
        assert fitted > 20.0 and inflation == pytest.approx(4.0, rel=0.2)
    else:
        assert 2.1 <= fitted < 8.0
    estimate, _ = peak_pose(heatmap, PRIOR, 1.0, 0.5, inflation)
    off = estimate.pose.as_array() - mean - errors
    distances2 = (off * np.linalg.solve(estimate.covariance, off.T).T).sum(1)
    for share in (0.68, 0.95):
        held = np.mean(distances2 <= distance2_within(share, fitted))
        assert held == pytest.approx(share, abs=0.02)


def test_two_ranks_share_the_groups_of_a_step(world, tmp_path):
    """What one process sums over its groups is what the ranks sum over theirs."""
    config = DenseTrainConfig(steps=1, groups=2, group_size=2, validate_every=1,
                              validation_groups=1, warmup_steps=1)
    shares = []

    class Half(Ranks):
        """One of two ranks that notes its gradients instead of exchanging them."""

        def sum_(self, tensor):
            return tensor

        def sum_gradients(self, parameters):
            shares.append([p.grad.clone() for p in parameters])

    for rank in range(2):
        out = tmp_path / f'{rank}.safetensors'
        train(beginning(MODEL, 0, True, None), config, [world], [world], out, {}, Half(rank, 2))

    class Whole(Ranks):
        def sum_gradients(self, parameters):
            shares.append([p.grad.clone() for p in parameters])

    train(beginning(MODEL, 0, True, None), config, [world], [world],
          tmp_path / 'whole.safetensors', {}, Whole())
    first, second, whole = shares
    for a, b, both in zip(first, second, whole):
        torch.testing.assert_close(a + b, both, rtol=1e-5, atol=1e-7)


def test_more_ranks_than_groups_are_refused(world, tmp_path):
    config = DenseTrainConfig(steps=1, groups=2)
    with pytest.raises(ValueError, match='at most 2'):
        train(beginning(MODEL, 0, True, None), config, [world], [world],
              tmp_path / 'w.safetensors', {}, Ranks(0, 3))
