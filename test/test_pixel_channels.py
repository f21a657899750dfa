"""Channels that are not learned: what they measure, and that they find a view's place."""

from dataclasses import replace
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training_runs import DENSE_MODEL

from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.controls import control_network, random_network
from crossview_localizer.networks.dense import turned_views
from crossview_localizer.networks.pixel_channels import (
    ground_channels,
    LARGEST,
    pixel_properties,
    PROPERTIES,
    satellite_channels,
)
from crossview_localizer.networks.safa import ModelConfig
from training import mix_weights
from training.initial import initial_network

COUNT = len(PROPERTIES)
MODEL = replace(DENSE_MODEL, channels=4 + COUNT, pixel_channels=COUNT, centred=True)


def picture(side: int, seed: int) -> torch.Tensor:
    """Smooth colours (1, 3, side, side) within -1..1."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, side // 6, side // 6, generator=generator) * 0.3
    return F.interpolate(coarse, size=(side, side), mode='bicubic').clamp(-1.0, 1.0)


def test_edges_warmth_and_greenness_of_known_pixels():
    images = torch.full((1, 3, 8, 8), -0.5)                     # grey of brightness 0.25
    images[0, :, :, 4:] = torch.tensor([0.5, 0.0, -1.0])[:, None, None]   # (0.75, 0.5, 0)
    edges, warmth, green, _ = pixel_properties(images)[0]
    assert warmth[4, 0] == green[4, 0] == 0.0
    assert float(warmth[4, 6]) == pytest.approx(0.75 / (0.75 + 1.4))
    assert float(green[4, 6]) == pytest.approx((2 * 0.5 - 0.75) / (0.75 + 1.4))
    # The mean of the channels rises from -0.5 to -1/6: 3/4 of that within the two pixels at the
    # step, 1/4 in the next ones.
    assert float(edges[4, 4]) == pytest.approx(math.sqrt(0.75 / 3), abs=1e-3)
    assert float(edges[4, 5]) == pytest.approx(math.sqrt(0.25 / 3), abs=1e-3)
    assert float(edges[4, 1]) == pytest.approx(0.0, abs=2e-3)


def test_a_light_line_is_a_mark_and_a_dark_one_is_not():
    images = torch.zeros(1, 3, 32, 48)
    images[..., 16] = 0.9                                       # one pixel wide
    images[..., 32] = -0.9
    marks = pixel_properties(images)[0, PROPERTIES.index('marks'), 16]
    # A third of the line in each mean of 3 x 3; within 9 x 9 pixels there are 3 such columns.
    assert float(marks[16]) == pytest.approx(math.sqrt(0.3 - 0.3 * 3 / 9))
    assert float(marks[32]) == float(marks[4]) == 0.0
    assert float(marks[24]) == 0.0


def test_imagery_is_compared_with_its_surroundings_and_kept_within_one():
    images = picture(120, 0)
    found = satellite_channels(images, 2, COUNT)
    assert found.shape == (1, COUNT, 60, 60) and found.abs().max() <= 1.0
    middle = found[..., 16:44, 16:44] * LARGEST
    assert (middle.mean((2, 3)).abs() < 0.3).all()
    assert (middle.std((2, 3)) - 1.0).abs().max() < 0.3
    # Half the contrast and a veil of light change hardly anything; a grey picture says nothing.
    veiled = satellite_channels(0.5 * images + 0.2, 2, COUNT)
    assert ((veiled - found) * LARGEST).abs().median() < 0.1
    assert satellite_channels(torch.zeros(1, 3, 64, 64), 2, COUNT).abs().max() < 1e-4


def test_ground_channels_have_mean_0_and_deviation_1_where_they_are_credible():
    road = torch.cat((picture(48, 1), torch.ones(1, 1, 48, 48)), 1)
    road[:, :, :, :12] = 0.0                                    # not seen
    credible = torch.full((1, 1, 24, 24), 0.5)
    credible[..., 20:, :] = 0.0
    found = ground_channels(road, credible, 2, COUNT)
    assert found[..., :6].abs().max() == 0.0 and found[..., 20:, :].abs().max() == 0.0
    cells = found[..., 1:20, 7:23] / 0.5
    assert (cells.mean((2, 3)).abs() < 0.15).all()
    assert (cells.square().mean((2, 3)).sqrt() - 1.0).abs().max() < 0.15
    # What is not credible has no part in the mean.
    road[:, :3, 46:] = 0.9
    torch.testing.assert_close(ground_channels(road, credible, 2, COUNT), found, atol=0.05, rtol=0)


@pytest.mark.parametrize('yaw_rad', [0.4, 2.2])
def test_a_view_of_the_road_is_found_by_its_pixel_channels_alone(yaw_rad):
    network = random_network(MODEL, 0).eval()
    cells, px = 96, MODEL.cell_px
    imagery = picture(cells * px, 2)
    with torch.inference_mode():
        raster = network.satellite(imagery)[0]
        raster[:-COUNT] = 0.0
        # The road as seen from the middle of the picture.
        size = MODEL.ahead_cells * px
        ahead = (size - 0.5 - torch.arange(size))[:, None]
        left = ((size - 1) / 2 - torch.arange(size))[None, :]
        east = math.cos(yaw_rad) * ahead - math.sin(yaw_rad) * left
        north = math.sin(yaw_rad) * ahead + math.cos(yaw_rad) * left
        half = cells * px / 2
        road = F.grid_sample(
            imagery, torch.stack((east, -north), -1)[None] / half, align_corners=False)
        road = torch.cat((road, torch.ones_like(road[:, :1])), 1)
        points = torch.zeros(1, len(MODEL.heights_m), MODEL.ahead_cells, MODEL.across_cells, 2)
        view, weight = network.ground(torch.zeros(1, 3, 64, 96), road, points)
        yaws_rad = torch.tensor([[yaw_rad - 0.2, yaw_rad, yaw_rad + 0.2]])
        scores = network.scores(view, weight, raster, yaws_rad, yaw_rad)[0]     # (3, M, M)
    places = scores.shape[-1]
    middle = MODEL.middle_m / MODEL.cell_m
    expected_row = (cells - 1) / 2 - middle * math.sin(yaw_rad) - (MODEL.patch_cells - 1) / 2
    expected_col = (cells - 1) / 2 + middle * math.cos(yaw_rad) - (MODEL.patch_cells - 1) / 2
    best = int(scores.argmax())
    assert best // places ** 2 == 1
    assert abs(best // places % places - expected_row) <= 1.01
    assert abs(best % places - expected_col) <= 1.01
    assert turned_views(view, yaws_rad, yaw_rad, MODEL).shape[2] == MODEL.channels


def test_training_goes_on_from_weights_without_pixel_channels_with_the_same_descriptors(tmp_path):
    plain = replace(MODEL, channels=4, pixel_channels=0)
    path = tmp_path / 'plain.safetensors'
    save_network(random_network(plain, 3), path, {})
    network, before = initial_network(MODEL, 0, path).eval(), load_network(path)
    rng = torch.Generator().manual_seed(0)
    cells = (MODEL.ahead_cells, MODEL.across_cells)
    inputs = (torch.randn(1, 3, 64, 96, generator=rng),
              torch.cat((picture(2 * cells[0], 4), torch.ones(1, 1, 64, 64)), 1),
              torch.rand(1, len(MODEL.heights_m), *cells, 2, generator=rng) * 2.0 - 1.0)
    with torch.inference_mode():
        (view, weight), (expected, expected_weight) = network.ground(*inputs), before.ground(
            *inputs)
        torch.testing.assert_close(view[:, :4], expected)
        torch.testing.assert_close(weight, expected_weight)
        pixels = ground_channels(inputs[1], torch.sigmoid(torch.full_like(weight, 3.0)), 2, COUNT)
        weights = network.ground.log_pixel_weights.exp()
        torch.testing.assert_close(view[:, 4:], weights * pixels)
        imagery = picture(64, 5)
        torch.testing.assert_close(
            network.satellite(imagery)[:, :4], before.satellite(imagery))
    with pytest.raises(ValueError, match='expected'):   # the other way round
        save_network(network, path, {})
        initial_network(plain, 0, path)


def test_weights_without_pixel_channels_are_mixed_with_those_of_the_first(tmp_path, capsys):
    paths = [tmp_path / f'{name}.safetensors' for name in ('first', 'plain')]
    first = random_network(MODEL, 1)
    first.ground.log_pixel_weights.data += 0.5
    save_network(first, paths[0], {})
    save_network(random_network(replace(MODEL, channels=4, pixel_channels=0), 2), paths[1], {})
    out = tmp_path / 'mixed.safetensors'
    assert mix_weights.main(
        [*map(str, paths), '--shares', '0.5', '0.5', '--out', str(out)]) == 0
    found = load_network(out)
    torch.testing.assert_close(
        found.ground.log_pixel_weights, first.ground.log_pixel_weights, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(
        found.ground.exit[1].bias[-1], first.ground.exit[1].bias[-1], rtol=1e-3, atol=1e-3)
    arguments = ['--shares', '0.5', '0.5', '--out', str(out), '--pixel-weights']
    assert mix_weights.main([*map(str, paths), *arguments, '0.2', '0.1', '0.3', '0.4']) == 0
    torch.testing.assert_close(
        load_network(out).ground.log_pixel_weights.exp().flatten(),
        torch.tensor([0.2, 0.1, 0.3, 0.4]), rtol=2e-3, atol=1e-3)
    assert read_model_config(out)[1]['pixel_weights'] == [0.2, 0.1, 0.3, 0.4]
    tiles = tmp_path / 'tiles.safetensors'
    save_network(random_network(ModelConfig(), 0), tiles, {})
    assert mix_weights.main([str(paths[0]), str(tiles), *arguments[:-1]]) == 2
    assert 'has other variables than' in capsys.readouterr().err
    for wrong in (['0.2', '-0.1', '0.3', '0.4'], ['0.2', '0.1', '0.3'], ['0.2'] * 5):
        assert mix_weights.main([*map(str, paths), *arguments, *wrong]) == 2
        assert 'each of their 4 pixel channels, in all at most 4' in capsys.readouterr().err


def test_a_network_with_fewer_pixel_channels_goes_on_with_all(tmp_path):
    path = tmp_path / 'three.safetensors'
    three = random_network(replace(MODEL, channels=7, pixel_channels=3), 4)
    three.ground.log_pixel_weights.data = torch.tensor([0.3, 0.2, 0.1]).log().view(1, 3, 1, 1)
    save_network(three, path, {})
    grown = initial_network(MODEL, 0, path)
    torch.testing.assert_close(
        grown.ground.log_pixel_weights.exp().flatten(), torch.tensor([0.3, 0.2, 0.1, 0.2]),
        rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(
        grown.ground.exit[1].bias, three.ground.exit[1].bias, rtol=2e-3, atol=1e-3)
    old = tmp_path / 'old.safetensors'      # as they were written when there were only three
    old.write_bytes(path.read_bytes().replace(
        b'pixel_channels\\": 3', b'pixel_channels\\": true'))
    header = int.from_bytes(old.read_bytes()[:8], 'little') + 3
    old.write_bytes(header.to_bytes(8, 'little') + old.read_bytes()[8:])
    assert read_model_config(old)[0] == three.config


def test_pixel_channels_are_added_to_weights_that_have_fewer(tmp_path):
    path, out = tmp_path / 'two.safetensors', tmp_path / 'grown.safetensors'
    two = random_network(replace(MODEL, channels=6, pixel_channels=2), 5).eval()
    save_network(two, path, {})
    assert mix_weights.main(
        [str(path), '--shares', '1', '--out', str(out), '--pixel-weights', *'1234']) == 0
    grown, two = load_network(out), load_network(path)
    assert (grown.config.channels, grown.config.pixel_channels) == (8, 4)
    torch.testing.assert_close(
        grown.ground.log_pixel_weights.exp().flatten(), torch.tensor([1.0, 2.0, 3.0, 4.0]),
        rtol=2e-3, atol=1e-3)
    with torch.inference_mode():
        imagery = picture(64, 7)
        torch.testing.assert_close(grown.satellite(imagery)[:, :6], two.satellite(imagery))


def test_an_untrained_control_has_no_pixel_channels():
    control = control_network('random_init', MODEL, '1')
    assert control.config.channels == MODEL.channels and not control.config.pixel_channels
    assert np.isfinite(control.satellite(picture(64, 6)).detach().numpy()).all()
