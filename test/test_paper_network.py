"""The paper's network, imported from the authors' variables, against NumPy alone."""

from dataclasses import replace
from importlib.util import find_spec
import sys

import numpy as np
from pyproj import Transformer
import pytest
import rasterio
from rasterio.transform import Affine
from safetensors.torch import save_file
import torch

from crossview_localizer.camera.views import camera_view, panorama_view
from crossview_localizer.config import LocalizerConfig, MatchConfig
from crossview_localizer.datatypes import CameraImage, CameraModel, Outcome, PoseEstimate
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.localizer import load_localizer
from crossview_localizer.maps.builder import build_map, Settings
from crossview_localizer.maps.imagery import Imagery
from crossview_localizer.networks.checkpoint import load_network, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import CVACT, OXFORD, polar_tiles
from training.import_weights import (
    import_weights,
    load_variables,
    main,
    read_vgg16,
    variable_names,
)

BLOCKS = (2, 2, 3, 3, 3)  # convolutions a block of VGG16


@pytest.fixture(scope='module')
def variables():
    """Random variables under the authors' names, in the sizes of their Oxford model."""
    rng = np.random.default_rng(0)
    found = {}
    for scope, cells in (('grd', 40), ('sat', 64)):
        inputs = 3
        for block, count in enumerate(BLOCKS, 1):
            width = min(64 * 2 ** (block - 1), 512)
            for k in range(1, count + 1):
                name = f'VGG_{scope}/conv{block}_{k}'
                deviation = (2.0 / (9 * inputs)) ** 0.5
                found[f'{name}/weights'] = rng.normal(0, deviation, (3, 3, inputs, width))
                found[f'{name}/biases'] = rng.normal(0, 0.1, width)
                inputs = width
        spatial = f'spatial_{scope}'
        found[f'{spatial}/weights1'] = rng.normal(0, 0.05, (cells, cells // 2, 8))
        found[f'{spatial}/biases1'] = rng.normal(0, 0.1, (1, cells // 2, 8))
        found[f'{spatial}/weights2'] = rng.normal(0, 0.05, (cells // 2, cells, 8))
        found[f'{spatial}/biases2'] = rng.normal(0, 0.1, (1, cells, 8))
    found['VGG_grd/conv1_1/weights/Adam'] = np.zeros((3, 3, 3, 64))
    found['beta1_power'] = np.array(0.9)
    return {name: value.astype(np.float32) for name, value in found.items()}


def descriptor(rgb, variables, scope):
    """The paper's formulas in NumPy: (H, W, 3) uint8 RGB to the unit descriptor."""
    x = rgb[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.6], np.float32)
    for block, count in enumerate(BLOCKS, 1):
        for k in range(1, count + 1):
            weights = variables[f'VGG_{scope}/conv{block}_{k}/weights']
            padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
            rows, cols = x.shape[:2]
            x = variables[f'VGG_{scope}/conv{block}_{k}/biases'] + sum(
                padded[i:i + rows, j:j + cols] @ weights[i, j] for i in range(3) for j in range(3))
            x = np.maximum(x, 0.0)
        rows, cols = x.shape[:2]
        padded = np.pad(x, ((0, rows % 2), (0, cols % 2), (0, 0)))  # ReLU: no value is below 0
        x = np.maximum(np.maximum(padded[::2, ::2], padded[1::2, ::2]),
                       np.maximum(padded[::2, 1::2], padded[1::2, 1::2]))
    cells = x.reshape(-1, 512).astype(np.float64)                    # row-major
    v = cells.mean(1)
    described = []
    for d in range(8):
        hidden = v @ variables[f'spatial_{scope}/weights1'][:, :, d]
        hidden = hidden + variables[f'spatial_{scope}/biases1'][0, :, d]
        attention = hidden @ variables[f'spatial_{scope}/weights2'][:, :, d]
        attention = attention + variables[f'spatial_{scope}/biases2'][0, :, d]
        described.append(attention @ cells)
    whole = np.concatenate(described)
    return whole / np.linalg.norm(whole)


@pytest.fixture(scope='module')
def imported(variables, tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    np.savez(folder / 'authors.npz', **variables)
    out = folder / 'oxford.safetensors'
    assert main([str(folder / 'authors.npz'), '--model', 'oxford', '--out', str(out)]) == 0
    return load_network(out)


@pytest.mark.parametrize('scope', ['grd', 'sat'])
def test_imported_weights_give_the_descriptors_of_the_formulas(variables, imported, scope):
    size = OXFORD.ground_px if scope == 'grd' else OXFORD.satellite_px
    image = np.random.default_rng(1).integers(0, 255, (*size, 3)).astype(np.uint8)
    embed = imported.embed_ground if scope == 'grd' else imported.embed_satellite
    found = embed(torch.from_numpy(image)[None])[0].numpy()
    assert found.shape == (4096,)
    np.testing.assert_allclose(found, descriptor(image, variables, scope), atol=1e-5)


@pytest.mark.parametrize('config, ground_cells, satellite_cells, head_parameters', [
    (OXFORD, (5, 8), (8, 8), (13_280, 33_536)), (CVACT, (4, 20), (4, 20), (52_160, 52_160))])
def test_the_papers_networks_have_the_papers_sizes(
        config, ground_cells, satellite_cells, head_parameters):
    with torch.device('meta'):
        network = random_network(config, 0)
        images = torch.zeros(1, 3, *config.ground_px)
        assert network.ground.features(images).shape == (1, 512, *ground_cells)
    assert (network.ground.cells, network.satellite.cells) == (ground_cells, satellite_cells)
    for branch, count in zip((network.ground, network.satellite), head_parameters):
        assert sum(p.numel() for p in branch.trunk.parameters()) == 14_714_688
        assert sum(p.numel() for p in branch.aggregation.parameters()) == count


def test_the_tiles_of_oxford_are_600_pixels_of_google_zoom_20():
    assert OXFORD.tile_px == 256 and OXFORD.tile_m == pytest.approx(55.44, abs=0.01)


def test_dropout_acts_only_in_training():
    trunk = random_network(OXFORD, 0).ground.trunk
    images = torch.randn(1, 3, 64, 64) * 50.0
    with torch.no_grad():
        assert not torch.equal(trunk.train()(images), trunk(images))
        assert torch.equal(trunk.eval()(images), trunk(images))


@pytest.mark.parametrize('name, change, message', [
    ('spatial_sat/biases2', lambda value: None, 'is missing'),
    ('VGG_sat/conv5_3/weights', lambda value: value[:, :, :100],
     r'is \(3, 3, 100, 512\); expected \(3, 3, 512, 512\)'),
    ('VGG_grd/conv1_1/biases', lambda value: value * np.nan, 'is not finite')])
def test_a_missing_or_misshapen_variable_is_named(variables, name, change, message):
    broken = dict(variables)
    value = change(broken.pop(name))
    if value is not None:
        broken[name] = value
    with torch.device('meta'):
        network = random_network(OXFORD, 0)
    with pytest.raises(ValueError, match=f'variable {name} {message}'):
        load_variables(network, broken)


def test_the_trunks_of_the_other_dataset_can_be_taken_and_its_heads_not(variables):
    network = random_network(CVACT, 0)
    with pytest.raises(ValueError, match=r'spatial_grd/weights1 is \(40, 20, 8\); expected'):
        load_variables(network, variables)
    aside = load_variables(network, variables, trunk_only=True)
    assert 'beta1_power' in aside and 'spatial_sat/weights2' in aside
    assert not any(name.endswith('/weights') for name in aside)
    np.testing.assert_array_equal(
        network.satellite.trunk.convolutions['conv4_2'].weight[3, 5].detach().numpy(),
        variables['VGG_sat/conv4_2/weights'][:, :, 5, 3])


def torchvision_state(seed=0):
    """Random weights under the names of torchvision's VGG16."""
    generator = torch.Generator().manual_seed(seed)
    trunk = random_network(OXFORD, seed).ground.trunk
    state, layer = {}, 0
    convolutions = iter(trunk.convolutions.values())
    for width in trunk.widths:
        if width != 'pool':
            conv = next(convolutions)
            state[f'features.{layer}.weight'] = conv.weight.detach().clone()
            state[f'features.{layer}.bias'] = torch.randn(width, generator=generator) * 0.1
        layer += 1 if width == 'pool' else 2
    return state | {'classifier.6.bias': torch.zeros(1000)}


def test_a_torch_vgg16_sees_the_same_image_through_the_papers_normalisation(tmp_path):
    state = torchvision_state()
    assert 'features.28.weight' in state and 'features.30.weight' not in state
    torch.save(state, tmp_path / 'vgg16.pth')
    network, _ = import_weights(tmp_path / 'vgg16.pth', 'oxford')
    rgb = torch.randint(0, 255, (1, 20, 20, 3), dtype=torch.uint8)
    scaled = rgb.double() / 255.0
    scaled = (scaled - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    expected = torch.conv2d(scaled.permute(0, 3, 1, 2), state['features.0.weight'].double(),
                            state['features.0.bias'].double())
    for branch in (network.ground, network.satellite):
        found = branch.trunk.convolutions['conv1_1'](branch.normalised(rgb))
        torch.testing.assert_close(
            found[:, :, 1:-1, 1:-1].double(), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            branch.trunk.convolutions['conv5_3'].bias, state['features.28.bias'])


def test_a_vgg16_within_a_checkpoint_or_as_safetensors_is_the_same(tmp_path):
    state = torchvision_state()
    torch.save({'epoch': 3, 'state_dict': {f'module.{name}': value
                                           for name, value in state.items()}},
               tmp_path / 'checkpoint.pth')
    save_file(state, tmp_path / 'vgg16.safetensors')
    for name in ('checkpoint.pth', 'vgg16.safetensors'):
        found = read_vgg16(tmp_path / name)
        assert set(found) == set(state)
        assert torch.equal(found['features.28.weight'], state['features.28.weight'])


def test_files_that_are_no_weights_are_refused_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorflow', None)  # as where it is not installed
    (tmp_path / 'text.npz').write_bytes(b'nothing')
    (tmp_path / 'text.pth').write_bytes(b'nothing')
    (tmp_path / 'model.ckpt.index').write_bytes(b'nothing')
    state = torchvision_state()
    del state['features.10.bias']
    torch.save(state, tmp_path / 'less.pth')
    for name, message in (('text.npz', 'not a readable .npz'), ('text.pth', 'torch state dict'),
                          ('absent.npz', 'no weights at'), ('model.ckpt', 'TensorFlow'),
                          ('less.pth', 'features.10.bias is missing')):
        assert main([str(tmp_path / name), '--model', 'oxford',
                     '--out', str(tmp_path / 'out')]) == 2
        error = capsys.readouterr().err
        assert message in error and len(error.splitlines()) == 1


if find_spec('tensorflow'):  # an optional package of several hundred MB

    def test_a_tensorflow_checkpoint_is_read(variables, tmp_path):
        import tensorflow
        names = variable_names(random_network(OXFORD, 0)).values()
        tensorflow.raw_ops.SaveV2(
            prefix=str(tmp_path / 'model.ckpt'), tensor_names=list(names),
            shape_and_slices=[''] * len(names), tensors=[variables[name] for name in names])
        network, _ = import_weights(tmp_path / 'model.ckpt', 'oxford')
        np.testing.assert_array_equal(
            network.ground.aggregation.weights2.detach().numpy(),
            variables['spatial_grd/weights2'])


def test_the_polar_view_has_north_in_the_middle_and_the_rim_on_top():
    tile = np.zeros((1, 200, 200, 3), np.uint8)
    tile[0, :60, 90:110, 0] = 255    # a street to the north, red
    tile[0, 90:110, 140:, 1] = 255   # to the east, green
    polar = polar_tiles(torch.from_numpy(tile))[0].numpy()
    assert polar.shape == (112, 616, 3)
    red, green = (np.average(np.arange(616), weights=polar[:, :, k].sum(0)) for k in (0, 1))
    assert red == pytest.approx(308, abs=3) and green == pytest.approx(462, abs=3)
    assert polar[20, 308, 0] == 255 and polar[100, 308, 0] == 0
    # A point of the formula: bottom row, any column, is the centre.
    tile[0, 100, 100] = (9, 8, 7)
    np.testing.assert_allclose(
        polar_tiles(torch.from_numpy(tile))[0, -1].numpy(), [[9, 8, 7]] * 616, atol=0.1)


def test_the_polar_view_samples_where_the_formula_says():
    ramp = np.arange(64.0)[:, None, None] * [2.0, 0.0, 0.0] + np.arange(64.0)[:, None] * [0, 3, 0]
    polar = polar_tiles(torch.from_numpy(ramp[None]).float())[0].numpy()
    radius_px = 32 * (111 - np.arange(112))[:, None] / 112
    angle_rad = 2 * np.pi * np.arange(616) / 616
    row, col = 32 + radius_px * np.cos(angle_rad), 32 - radius_px * np.sin(angle_rad)
    inside = (np.minimum(row, col) >= 0) & (np.maximum(row, col) <= 63)
    np.testing.assert_allclose(polar[inside][:, 0], 2 * row[inside], atol=1e-3)
    np.testing.assert_allclose(polar[inside][:, 1], 3 * col[inside], atol=1e-3)


def test_the_camera_view_of_a_robotcar_frame_is_the_papers_crop():
    frame = np.zeros((960, 1280, 3), np.uint8)
    frame[:800, 40:1240] = 200
    frame[800:], frame[:, :40], frame[:, 1240:] = 10, 20, 30
    assert (camera_view(frame) == 200).all()
    cut = np.random.default_rng(0).integers(0, 255, (800, 1200, 3)).astype(np.uint8)
    frame[:800, 40:1240] = cut
    np.testing.assert_array_equal(camera_view(frame), camera_view(cut))
    assert camera_view(np.zeros((1080, 1920, 3), np.uint8)).shape == (154, 231, 3)


@pytest.mark.parametrize('yaw_deg, pole_px', [(90, 616), (0, 308), (180, 924)])
def test_a_panorama_is_turned_to_have_north_in_the_middle(yaw_deg, pole_px):
    """A pole to the north is ahead, to the left or right when heading north, east or west."""
    panorama = np.zeros((400, 1232, 3), np.uint8)
    panorama[:, pole_px - 2:pole_px + 2] = 255
    view = panorama_view(panorama, np.radians(yaw_deg))
    assert view.shape == (112, 616, 3)
    assert abs(int(view[50, :, 0].argmax()) - 308) <= 1


def test_the_localizer_runs_the_papers_network_on_a_map_of_its_tiles(tmp_path):
    config = replace(OXFORD, view_px=64, px_m=OXFORD.tile_m / 64)  # smaller tiles: a quick test
    save_network(random_network(config, 0), tmp_path / 'weights.safetensors', {})
    network = load_network(tmp_path / 'weights.safetensors')

    frame = LocalFrame(51.76, -1.26)
    east_m, north_m = Transformer.from_crs(
        frame.proj4, 'EPSG:32630', always_xy=True).transform(0.0, 0.0)
    pixels = np.random.default_rng(1).integers(1, 255, (3, 120, 120)).astype(np.uint8)
    with rasterio.open(
            tmp_path / 'ortho.tif', 'w', driver='GTiff', height=120, width=120, count=3,
            dtype='uint8', crs='EPSG:32630',
            transform=Affine(1.0, 0, east_m - 60.0, 0, -1.0, north_m + 60.0)) as file:
        file.write(pixels)
    built = build_map(
        Imagery.open([tmp_path / 'ortho.tif'], frame), network, Settings(5.0, 12.0),
        np.array([[51.76, -1.26]]), out=tmp_path / 'oxford.map')
    assert built.tile_m == pytest.approx(55.44, abs=0.01)
    assert built.tiles.descriptors.shape[1] == 4096

    localizer = load_localizer(
        tmp_path / 'oxford.map', tmp_path / 'weights.safetensors',
        LocalizerConfig(match=MatchConfig(window_min_m=5.0)))
    camera = CameraModel(1280, 960, 965.0, 965.0, 643.0, 484.0, np.eye(4), 1.5)
    image = CameraImage(10, pixels.transpose(1, 2, 0).repeat(8, 0).repeat(11, 1)[:960, :1280],
                        camera)
    matcher = localizer.matcher
    expected = network.embed_ground(torch.from_numpy(camera_view(image.rgb))[None])[0]
    for yaw_rad in (0.0, 1.0):  # the front camera's frame is not turned by the heading
        torch.testing.assert_close(matcher.embed(image, yaw_rad), expected)
    localizer.set_pose(PoseEstimate(10, Pose2D(0.0, 0.0, 0.3), np.diag([4.0, 4.0, 0.01])))
    result = localizer.process_image(image)
    assert result.outcome in (Outcome.USED, Outcome.AMBIGUOUS, Outcome.GATED)
    assert np.exp(result.heatmap.log_probability).sum() == pytest.approx(1.0)
