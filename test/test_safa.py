"""The tile network computes what the paper writes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossview_localizer.networks.controls import random_network, RawCorrelation
from crossview_localizer.networks.safa import ModelConfig, SpatialAwareAggregation, views_to_tensor

SMALL = ModelConfig(channels=4, heads=4, hidden=3, view_px=64, margin_px=32, temperature=0.07,
                    random_temperature=0.2)


@pytest.fixture(scope='module')
def network():  # channels_last, as training leaves it
    return random_network(SMALL, seed=3).eval().to(memory_format=torch.channels_last)


def images(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)


def test_aggregation_equals_the_formula_cell_by_cell():
    torch.manual_seed(0)
    cells, hidden, heads, channels = 6, 3, 2, 5
    module = SpatialAwareAggregation(cells, hidden, heads).double()
    features = torch.randn(1, cells, channels, dtype=torch.float64)
    w1, b1, w2, b2 = (p.detach().numpy() for p in (
        module.weights1, module.biases1, module.weights2, module.biases2))
    f = features[0].numpy()
    expected = []
    for d in range(heads):
        v = f.mean(1)
        h = [sum(v[i] * w1[i, j, d] for i in range(cells)) + b1[0, j, d] for j in range(hidden)]
        a = [sum(h[j] * w2[j, i, d] for j in range(hidden)) + b2[0, i, d] for i in range(cells)]
        expected.append(sum(a[i] * f[i] for i in range(cells)))
    np.testing.assert_allclose(
        module(features)[0].detach().numpy(), np.concatenate(expected), rtol=1e-12)


def test_descriptors_have_unit_length_and_do_not_depend_on_the_batch(network):
    views = views_to_tensor(images((3, 64, 64, 4)), 'cpu')
    together = network.embed_ground(views)
    assert together.shape == (3, SMALL.heads * SMALL.channels)
    np.testing.assert_allclose(together.norm(dim=1), 1.0, rtol=1e-5)
    alone = torch.cat([network.embed_ground(views[k:k + 1]) for k in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_what_the_camera_does_not_see_has_no_part_in_the_descriptor(network):
    view = images((1, 64, 64, 4))
    view[..., 3] = 0
    view[:, :, 40:, 3] = 255
    changed = view.copy()
    changed[0, 20:44, 2:6, :3] = 255 - changed[0, 20:44, 2:6, :3]
    before = network.ground.features(torch.zeros(1, 3, 64, 64))
    assert before.shape == (1, SMALL.channels, 8, 8)
    seen = torch.zeros(1, 1, 8, 8)
    seen[..., 5:] = 1.0
    blank = network.ground.describe(before * seen)
    features = before.clone()
    features[..., :5] += 3.0
    torch.testing.assert_close(network.ground.describe(features * seen), blank)


def test_a_lattice_of_one_tile_is_that_tile(network):
    tile = images((SMALL.tile_px, SMALL.tile_px, 3))
    with torch.no_grad():
        lattice = network.satellite_lattice(torch.from_numpy(tile))
    assert lattice.shape[:2] == (1, 1)
    torch.testing.assert_close(
        lattice[0, 0], network.embed_satellite(views_to_tensor(tile, 'cpu'))[0])


def test_the_lattice_is_row_major_and_one_stride_apart(network):
    area = torch.from_numpy(images((SMALL.tile_px + 64, SMALL.tile_px + 64, 3)))
    with torch.no_grad():
        lattice = network.satellite_lattice(area)
        # Moving the scene by whole trunk strides moves interior descriptors by as many tiles.
        moved = network.satellite_lattice(torch.roll(area, 32, dims=0))
    assert lattice.shape[:2] == (9, 9)
    same = (lattice[2, 4] - moved[6, 4]).norm()
    other = (lattice[2, 4] - moved[4, 6]).norm()
    assert same < 0.5 * other


def test_with_detail_a_distance_is_the_weighted_mean_of_both_parts(network):
    weight = 0.3
    mixed = random_network(replace(SMALL, detail_weight=weight), seed=3).eval()
    control = RawCorrelation(SMALL).eval()
    view = views_to_tensor(images((64, 64, 4)), 'cpu')
    area = torch.from_numpy(images((SMALL.tile_px + 8, SMALL.tile_px + 8, 3), seed=1))
    tile = area[8:, :SMALL.tile_px][None]

    def distance(net):
        return 2.0 - 2.0 * net.embed_satellite(tile)[0] @ net.embed_ground(view)[0]

    expected = (1.0 - weight) * distance(network) + weight * distance(control)
    torch.testing.assert_close(distance(mixed), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(mixed.embed_ground(view).norm(dim=1), 1.0, rtol=1e-5)
    lattice = mixed.embed_lattice(area)
    detail = SMALL.heads * SMALL.channels
    torch.testing.assert_close(lattice[1, 0, detail:], mixed.embed_satellite(tile)[0, detail:])


@pytest.mark.parametrize('trunk, channels', [('efficientnet_lite0', 4), ('vgg16', 512)])
@pytest.mark.parametrize('view', ['birds_eye', 'camera', 'polar'])
def test_trunk_heads_and_ground_view_are_choices(trunk, channels, view):
    config = replace(SMALL, trunk=trunk, channels=channels, heads=3, hidden=0, ground_view=view,
                     margin_px=0)
    with torch.device('meta'):
        model = random_network(config, 0).eval()
        rows, cols = config.ground_px
        ground = model.embed_ground(
            torch.zeros(1, rows, cols, 4 if view == 'birds_eye' else 3, dtype=torch.uint8))
        satellite = model.satellite_descriptors(
            torch.zeros(1, *config.satellite_px, 3, dtype=torch.uint8))
    assert ground.shape == satellite.shape == (1, 3 * channels)


@pytest.mark.parametrize('change, message', [
    ({'trunk': 'resnet'}, 'expected efficientnet_lite0 or vgg16'),
    ({'trunk': 'vgg16'}, 'has 512 channels, the model 4'),
    ({'margin_px': 12}, 'margin of 12 px with a trunk of stride 8'),
    ({'ground_view': 'rear'}, 'expected one of birds_eye, camera, polar'),
    ({'ground_view': 'camera', 'detail_weight': 0.5}, 'detail_weight')])
def test_sizes_that_do_not_fit_each_other_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        random_network(replace(SMALL, **change), 0)
