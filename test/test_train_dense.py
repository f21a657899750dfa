"""Training the dense matcher: samples whose truth lies where they say, their loss, the command."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.stats import multivariate_normal
import torch
import torch.nn.functional as F
from training_runs import DENSE_MODEL as MODEL
from training_runs import dense_world, LIKELIHOOD

from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.dense import correlate, turned_views
from crossview_localizer.networks.trunks import normalised
from training import mix_weights, train_dense
from training.data.datasets import save_world, World
from training.data.rendered_places import encode_jpeg, RenderedPlace, save_place, Shot
from training.initial import initial_network
from training.recipes import dense_groups
from training.recipes.dense_groups import draw_group, place_group, PRIOR_M, world_group
from training.recipes.pose_likelihood import blinded, group_loss, marginal_log_likelihood


@pytest.fixture(scope='module')
def world() -> World:
    return dense_world()


@pytest.fixture(scope='module')
def place(world) -> RenderedPlace:
    """The frames of the world, a little north of its middle, as a rendered place."""
    frames = [encode_jpeg(image) for image in world.images]
    return RenderedPlace('smooth', 'none', world.grid, [encode_jpeg(world.imagery)],
                         [Shot(world.camera, frames, world.poses)])


@pytest.fixture(params=('world', 'place'))
def draw(request, world, place):
    """A group of that size and seed without augmentation, of a world or a place."""
    if request.param == 'world':
        return lambda size, seed: world_group(world, 4, size, MODEL, seed, augment=False)
    return lambda size, seed: place_group(place, size, MODEL, seed, augment=False)


@pytest.mark.parametrize('seed', range(4))
def test_the_imagery_beneath_the_true_pose_is_found_at_the_target(draw, seed):
    group = draw(3, seed)
    imagery = F.avg_pool2d(group.imagery, 2)[0]
    side, middle = group.side, MODEL.middle_m / MODEL.cell_m
    places = side - MODEL.patch_cells + 1
    for k, (row, col, share) in enumerate(group.target.numpy()):
        top, left_edge = group.corners[k]
        window = imagery[:, top:top + side, left_edge:left_edge + side]
        window = window - window.mean((1, 2), keepdim=True)
        yaw_rad = group.yaws_rad[k, 0] * (1.0 - share) + group.yaws_rad[k, 1] * share
        heading_rad = group.headings_rad[k]
        ahead = (MODEL.ahead_cells - 0.5 - torch.arange(MODEL.ahead_cells))[:, None]
        left = ((MODEL.across_cells - 1) / 2 - torch.arange(MODEL.across_cells))[None, :]
        half = (MODEL.patch_cells - 1) / 2
        base_row = row + half + middle * np.sin(heading_rad)
        base_col = col + half - middle * np.cos(heading_rad)
        east = torch.cos(yaw_rad) * ahead - torch.sin(yaw_rad) * left
        north = torch.sin(yaw_rad) * ahead + torch.cos(yaw_rad) * left
        points = torch.stack((base_col + east, base_row - north), -1) / (side - 1) * 2.0 - 1.0
        view = F.grid_sample(window[None], points[None].float(), align_corners=True)
        turned = turned_views(view, yaw_rad[None, None], heading_rad, MODEL)
        energy = correlate((turned != 0).float(), window ** 2)[0, 0]
        best = int((energy - 2.0 * correlate(turned, window)[0, 0]).argmin())
        assert abs(best // places - row) <= 0.75 and abs(best % places - col) <= 0.75


@pytest.mark.parametrize('rough', (False, True))
@pytest.mark.parametrize('seed', range(3))
def test_the_target_shows_the_ground_beneath_the_frame_at_any_scale(
        world, monkeypatch, seed, rough):
    monkeypatch.setattr(dense_groups, 'PLACE_SCALE_ERRORS', (0.2,))
    frames, poses = world.images[3:6], world.poses[3:6]
    group = draw_group(world.imagery, world.grid, world.camera, frames, poses, MODEL,
                       np.random.default_rng(seed), False, rough=rough)
    imagery = F.avg_pool2d(group.imagery, 2)[0].numpy()
    source = normalised(torch.from_numpy(world.imagery[None]))[0].numpy()
    places = []
    for pose, target, corner, heading_rad in zip(
            poses, group.target.numpy(), group.corners, group.headings_rad):
        middle = MODEL.middle_m / MODEL.cell_m * np.array(
            [np.sin(heading_rad), -np.cos(heading_rad)])
        place = target[:2] + corner + (MODEL.patch_cells - 1) / 2 + middle
        row_col = world.grid.row_col_from_xy(*pose[:2])
        for ours, theirs in zip(imagery, source):
            assert map_coordinates(ours, place[:, None], order=1) == pytest.approx(
                map_coordinates(theirs, np.reshape(row_col, (2, 1)), order=1), abs=0.06)
        places.append(place)
    apart_m = MODEL.cell_m * np.linalg.norm(places[2] - places[0])
    scale = apart_m / np.linalg.norm(poses[2, :2] - poses[0, :2])
    assert (abs(scale - 1.0) > 0.01) == rough


def test_a_group_is_the_same_for_the_same_seed_and_its_truths_lie_within_the_prior(world, place):
    for draw in (partial(world_group, world, 2), partial(place_group, place)):
        first, again = draw(4, MODEL, 7), draw(4, MODEL, 7)
        for ours, theirs in zip(vars(first).values(), vars(again).values()):
            if torch.is_tensor(ours):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert len(first.target) == 4
        places = first.side - MODEL.patch_cells + 1
        from_prior_m = (first.target[:, :2] - (places - 1) / 2) * MODEL.cell_m
        assert from_prior_m.abs().max() <= PRIOR_M + MODEL.cell_m
        assert not torch.equal(first.imagery, draw(4, MODEL, 8).imagery)


def test_imagery_that_ends_is_marked_as_missing(world):
    # The grid reaches 75 m from its middle; the window of a frame at its edge goes beyond it.
    at_edge = replace(world, poses=world.poses + np.array([40.0, 0.0, 0.0]))
    group = world_group(at_edge, 8, 1, MODEL, 2, augment=False)
    grey = (group.imagery[0].abs() < 0.05).all(0).float()
    torch.testing.assert_close(F.avg_pool2d(grey[None], 2)[0], group.missing, atol=0.6, rtol=0)
    assert 0.05 < group.missing.mean() < 0.9


def test_the_loss_is_the_interpolated_likelihood_at_the_truth(world):
    group = world_group(world, 4, 2, MODEL, 1)
    places = group.side - MODEL.patch_cells + 1

    class Even:
        """Scores that are the same everywhere."""

        config = MODEL

        def ground(self, images, road, points):
            return torch.zeros(len(images), 4, 32, 32), torch.zeros(len(images), 1, 32, 32)

        def satellite(self, imagery):
            return torch.zeros(1, 4, *group.missing.shape)

        def scores(self, view, *_):
            return torch.zeros(len(view), 4, places, places)

    nll, _ = group_loss(Even(), group)
    assert nll.numpy() == pytest.approx(np.log(4 * places ** 2), abs=1e-4)


def interpolated(p: np.ndarray, target) -> float:
    """The probability between the eight cells about a target, of a volume (K, R, C)."""
    row, col, turn = target
    return float(map_coordinates(p, [[turn], [row], [col]], order=1)[0])


def test_a_place_that_is_known_exactly_has_the_interpolated_likelihood():
    log_p = F.log_softmax(torch.from_numpy(
        np.random.default_rng(0).normal(0.0, 2.0, (3, 4 * 20 * 20))), 1).view(3, 4, 20, 20)
    target = torch.tensor([[7.3, 11.8, 0.4], [2.0, 18.99, 0.0], [0.2, 0.0, 1.0]])
    found = marginal_log_likelihood(log_p, target, torch.zeros(3, 2, 2))
    for k in range(3):
        assert found[k].item() == pytest.approx(
            np.log(interpolated(log_p[k].exp().numpy(), target[k].numpy())), abs=1e-5)


def test_the_likelihood_of_an_uncertain_place_is_a_gaussian_seen_through_a_gaussian():
    side, claim, known = 81, np.array([[6.0, 2.0], [2.0, 9.0]]), np.array([[12.0, -4.0], [-4, 7]])
    mean, place = np.array([41.0, 38.0]), np.array([38.3, 42.6])
    at = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing='ij'), -1)
    density = multivariate_normal(mean, claim).pdf(at)
    log_p = torch.from_numpy(np.log(np.stack([density / 2, density / 2])[None] + 1e-30))
    found = marginal_log_likelihood(
        log_p, torch.tensor([[*place, 0.3]]), torch.from_numpy(known)[None])
    expected = multivariate_normal(mean, claim + known).logpdf(place) - np.log(2.0)
    assert found.item() == pytest.approx(expected, abs=0.02)


def test_the_likelihood_of_a_flat_volume_does_not_depend_on_how_well_the_place_is_known():
    log_p = torch.full((4, 4, 31, 31), -np.log(4.0 * 31 * 31))
    target = torch.tensor([[15.0, 15.0, 0.5], [-3.0, 2.0, 0.5], [15.0, 34.0, 0.1], [1.0, 1, 0]])
    covariances = torch.eye(2)[None] * torch.tensor([400.0, 25.0, 9.0, 0.0])[:, None, None]
    found = marginal_log_likelihood(log_p, target, covariances)
    assert found.numpy() == pytest.approx(-np.log(4.0 * 31 * 31), abs=1e-4)


@pytest.mark.parametrize('seed', range(3))
def test_the_covariance_of_a_place_turns_with_the_imagery(world, seed):
    """A place known along one line only: two poses on that line stay on it in each group."""
    along = np.array([0.6, 0.8])
    poses = world.poses.copy()
    poses[4, :2] = poses[3, :2] + 2.0 * along
    covariance = np.outer(along, along)
    known = replace(world, poses=poses, pose_covariances=np.repeat(covariance[None], 9, 0))
    group = draw_group(
        known.imagery, known.grid, known.camera, known.images[3:5], poses[3:5], MODEL,
        np.random.default_rng(seed), False, known.pose_covariances[3:5])
    step = group.target[1, :2] - group.target[0, :2] + torch.tensor(
        group.corners[1]) - torch.tensor(group.corners[0])
    # Both windows have their own corner; the headings are the same, so the rest is the motion.
    found = group.covariances[0].numpy() * MODEL.cell_m ** 2
    direction = step.numpy() / np.linalg.norm(step)
    assert found == pytest.approx(np.outer(direction, direction), abs=0.02)


def test_missing_imagery_has_no_part_in_the_loss(world):
    group = world_group(world, 4, 2, MODEL, 1, augment=False)
    missing = torch.zeros_like(group.missing)
    missing[:, :20] = 1.0
    group = replace(group, missing=missing)
    network = initial_network(MODEL, 0, random_trunk=True).eval()

    def loss(grey: float) -> torch.Tensor:
        imagery = group.imagery.clone()
        imagery[..., :8] = grey     # 28 pixels or more from what is seen
        return group_loss(network, replace(group, imagery=imagery))[0]

    with torch.no_grad():
        torch.testing.assert_close(loss(0.0), loss(0.1), atol=0.02, rtol=0)


def test_a_blinded_group_has_grey_images_and_the_same_mask(world):
    group = blinded(world_group(world, 4, 2, MODEL, 1))
    assert group.images.abs().max() == 0.0 and group.road[:, :3].abs().max() == 0.0
    assert group.road[:, 3].max() == 1.0


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
    monkeypatch.setattr(
        train_dense, 'DenseConfig', lambda **settings: replace(MODEL, **settings))
    monkeypatch.setattr(train_dense, 'PoseLikelihoodConfig', lambda **_: LIKELIHOOD)
    save_world(world, tmp_path / 'world.npz')
    out = tmp_path / 'weights.safetensors'
    files = ['--train', str(tmp_path / 'world.npz'), '--val', str(tmp_path / 'world.npz')]
    assert train_dense.main(
        [*files, '--out', str(out), '--random-trunk', '--steps', '1', '--image-blind']) == 0
    model, provenance = read_model_config(out)
    assert model.temperature != 1.0 and provenance['image_blind'] and provenance['step'] == 1
    assert train_dense.main([*files, '--out', str(out), '--seed', '1', '--random-trunk']) == 2
    assert 'other settings' in capsys.readouterr().err
    assert train_dense.main(['--out', str(out)]) == 2
    assert 'give --places FOLDER' in capsys.readouterr().err


def test_the_command_trains_on_places_and_worlds_and_keeps_some_places_for_validation(
        world, place, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        train_dense, 'DenseConfig', lambda **settings: replace(MODEL, **settings))
    monkeypatch.setattr(train_dense, 'PoseLikelihoodConfig', lambda **_: LIKELIHOOD)
    save_world(world, tmp_path / 'world.npz')
    out = tmp_path / 'weights.safetensors'
    save_place(place, tmp_path / 'place_0.npz')
    arguments = ['--places', str(tmp_path), '--train', str(tmp_path / 'world.npz'), '--out',
                 str(out), '--random-trunk', '--steps', '2']
    assert train_dense.main(arguments) == 2
    assert 'one place is too few' in capsys.readouterr().err
    save_place(place, tmp_path / 'place_1.npz')
    assert train_dense.main(arguments) == 0
    assert read_model_config(out)[1]['places'] == ['place_0.npz', 'place_1.npz']


def test_mixed_weights_are_the_mean_by_shares_and_of_one_model_only(tmp_path, capsys):
    paths = [tmp_path / f'{name}.safetensors' for name in ('first', 'second', 'other')]
    networks = [initial_network(model, seed, random_trunk=True) for seed, model in (
        (1, MODEL), (2, MODEL), (3, replace(MODEL, width=12)))]
    for network, path in zip(networks, paths):
        save_network(network, path, {'note': path.stem})
    out = tmp_path / 'mixed.safetensors'
    arguments = [str(path) for path in paths[:2]] + ['--shares', '3', '1', '--out', str(out)]
    assert mix_weights.main(arguments) == 0
    found = load_network(out).state_dict()
    for name, value in networks[0].state_dict().items():
        if value.dtype.is_floating_point:
            expected = 0.75 * value + 0.25 * networks[1].state_dict()[name]
            torch.testing.assert_close(found[name], expected, rtol=2e-3, atol=1e-4)
    assert [part['share'] for part in read_model_config(out)[1]['mixture of']] == [0.75, 0.25]
    arguments[1] = str(paths[2])
    assert mix_weights.main(arguments) == 2
    assert 'expected the same model' in capsys.readouterr().err
