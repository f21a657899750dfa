"""The exported networks give what the torch networks give, and the matcher runs them."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from crossview_localizer import export
from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import CameraImage, CameraModel, PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.localizer import load_localizer
from crossview_localizer.maps.embedding_map import EmbeddingMap, MapWindow
from crossview_localizer.matching.dense_matcher import DenseMatcher, HalfGround
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.onnx import branches, ground_file, OnnxBranch

WEIGHTS = sorted((Path(__file__).resolve().parent.parent / 'config/weights').glob('*.safetensors'))


@pytest.fixture(scope='module', params=WEIGHTS, ids=lambda path: path.stem)
def exported(request, tmp_path_factory):
    """A shipped network and the folder of its two branches."""
    folder = tmp_path_factory.mktemp('onnx')
    assert export.main([str(request.param), '--out', str(folder)]) == 0
    return load_network(request.param), folder, request.param.stem


def inputs_like(network, name, height_px, width_px):
    """Other inputs than the exporter's, of another size where the size is free."""
    generator = torch.Generator().manual_seed(7)
    _, examples, input_names, _, free = branches(network)[name]
    found = []
    for example, input_name in zip(examples, input_names):
        shape = list(example.shape)
        for axis, meaning in free.get(input_name, {}).items():
            shape[axis] = {'batch': 3, 'height': height_px, 'width': width_px}[meaning]
        if example.dtype == torch.uint8:
            found.append(torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8))
        else:
            found.append(torch.rand(shape, generator=generator) * 2.0 - 1.0)
    return found


@pytest.mark.parametrize('name', ['ground', 'satellite'])
def test_onnx_runtime_gives_what_torch_gives(exported, name):
    network, folder, stem = exported
    branch = OnnxBranch(folder / f'{stem}.{name}.onnx', network.fingerprint)
    inputs = inputs_like(network, name, 96, 160)
    with torch.inference_mode():
        expected = branches(network)[name][0](*inputs)
    found = branch(*inputs)
    for one, other in zip(*((x,) if torch.is_tensor(x) else x for x in (expected, found))):
        # Descriptors have unit length, weights are at most one.
        assert one.shape == other.shape and (one - other).abs().max() < 1e-4


def test_a_file_of_other_weights_or_none_is_refused_in_one_line(exported, tmp_path):
    network, folder, stem = exported
    with pytest.raises(ValueError, match='was exported from the weights.*export it again'):
        OnnxBranch(folder / f'{stem}.ground.onnx', '0' * 64)
    with pytest.raises(FileNotFoundError, match='expected a file from export'):
        OnnxBranch(tmp_path / 'none.onnx', network.fingerprint)
    (tmp_path / 'bad.onnx').write_bytes(b'no network')
    with pytest.raises(ValueError, match='not a network for ONNX Runtime') as error:
        OnnxBranch(tmp_path / 'bad.onnx', network.fingerprint)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('exported', WEIGHTS[:1], indirect=True, ids=['dense'])
def test_the_dense_matcher_gives_the_same_heat_map_whatever_runs_its_network(exported):
    network, folder, stem = exported
    path = folder / f'{stem}.ground.onnx'
    rng = np.random.default_rng(0)
    mounted = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    camera = CameraModel(320, 240, 245.0, 245.0, 160.0, 120.0, mounted, 1.52)
    pixels = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (320, 240))
    image = CameraImage(0, pixels, camera)
    size = network.config.channels * network.config.block_cells ** 2
    rows = torch.from_numpy(rng.normal(0, 0.2, (9, size)).astype(np.float16))
    window = MapWindow(
        MapGrid(3, 3, 32.0, -32.0, 32.0), torch.arange(9).reshape(3, 3), rows, 1.0)
    prior = PoseEstimate(0, Pose2D(0.0, 0.0, 0.3), np.diag([4.0, 4.0, 1e-3]))

    def volume(ground):
        matcher = DenseMatcher(network, ground=ground)
        return matcher.match(
            matcher.embed(image, 0.3), window, prior, SearchWindow(15.0, 0.1)).volume

    expected = volume(None)
    assert np.abs(volume(OnnxBranch(path, network.fingerprint)) - expected).max() < 1e-3
    with torch.inference_mode():
        assert np.abs(volume(HalfGround(network)) - expected).max() < 0.3


@pytest.mark.parametrize('exported', WEIGHTS[:1], indirect=True, ids=['dense'])
def test_a_localizer_holds_no_weights_that_it_does_not_run(exported, tmp_path, monkeypatch):
    network, folder, stem = exported
    size = network.config.channels * network.config.block_cells ** 2
    EmbeddingMap(
        LocalFrame(51.76, -1.26), MapGrid(3, 3, 32.0, -32.0, 32.0),
        torch.arange(9).reshape(3, 3), torch.full((9, size), 0.25, dtype=torch.float16),
        network.fingerprint, 48.0, 192).save(tmp_path / 'a.map')

    def weights_held(onnx_path):
        localizer = load_localizer(
            tmp_path / 'a.map', WEIGHTS[0], LocalizerConfig(), onnx_path=onnx_path)
        return sum(value.numel() for value in localizer.matcher.network.parameters())

    # One is the scale of the scores.
    assert weights_held('') == 1 + sum(value.numel() for value in network.ground.parameters())
    path = folder / f'{stem}.ground.onnx'
    assert weights_held(path) == 1
    # On a CPU that is the node's default, where ONNX Runtime is there.
    monkeypatch.setattr('crossview_localizer.networks.onnx.ground_file', lambda *_: path)
    assert weights_held(NodeConfig().onnx_path) == 1
    monkeypatch.setattr('crossview_localizer.networks.onnx.ground_file', lambda *_: None)
    assert weights_held(NodeConfig().onnx_path) > 1


def test_unreadable_weights_end_the_command_with_one_line(tmp_path, capsys):
    assert export.main([str(tmp_path / 'none.safetensors'), '--out', str(tmp_path)]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_the_ground_branch_is_exported_on_first_use_and_found_again(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    network, told = load_network(WEIGHTS[0]), []
    path = ground_file(WEIGHTS[0], network.fingerprint, told.append)
    assert [text for text in told if str(path) in text] == told and len(told) == 1
    OnnxBranch(path, network.fingerprint)
    assert ground_file(WEIGHTS[0], network.fingerprint, told.append) == path and len(told) == 1


def test_torch_runs_the_network_where_onnx_runtime_is_missing_or_the_export_fails(
        monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    told = []
    assert ground_file(tmp_path / 'none.safetensors', '0' * 64, told.append) is None
    assert 'none.safetensors' in told[1] and 'torch runs the network' in told[1]
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    assert ground_file(WEIGHTS[0], '0' * 64, told.append) is None and len(told) == 2
