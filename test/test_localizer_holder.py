"""How the node comes by its Localizer, and what it does where the GPU fails."""

import pytest

pytest.importorskip('rclpy', reason='no ROS 2')
torch = pytest.importorskip('torch')

from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.datatypes import MatchErrors
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.localizer import Localizer
from crossview_localizer.ros import localizer_holder
from crossview_localizer.ros.localizer_holder import is_gpu_failure, LocalizerHolder
from crossview_localizer.ros.status import Level


class FakeMap:
    tiles = [0.0] * 10


class FakeMatcher:
    errors = MatchErrors()
    search_heatmaps = None


class Loads:
    """Stands for ``load_localizer``: notes what it is asked for, and fails where it is told to."""

    def __init__(self):
        self.asked = []
        self.error = None

    def __call__(self, map_path, weights, config, device, **options):
        self.asked.append({'device': device, **options})
        if self.error is not None:
            raise self.error
        return Localizer(config, LocalFrame(51.76, -1.26), FakeMap(), FakeMatcher())


@pytest.fixture
def loads(monkeypatch):
    loads = Loads()
    monkeypatch.setattr(localizer_holder, 'load_localizer', loads)
    monkeypatch.setattr(
        'crossview_localizer.networks.checkpoint.prepare_torch',
        lambda device, threads: ('cuda', ''))
    return loads


@pytest.fixture
def holder(loads):
    """On the GPU, with the ground branch in ONNX."""
    holder = LocalizerHolder(
        NodeConfig(map_path='a.map', weights_path='w', onnx_path='w.ground.onnx', torch_threads=3),
        LocalizerConfig())
    status = holder.load_map()
    assert (status.level, status.values['device'], status.values['tiles']) == (
        Level.OK, 'cuda', 10)
    return holder


def test_out_of_memory_loads_the_same_network_on_the_cpu(holder, loads):
    localizer, matcher = holder.localizer, holder.localizer.matcher
    status = holder.replace_failed_gpu(torch.OutOfMemoryError('CUDA out of memory'))
    assert (status.level, status.values['device']) == (Level.WARN, 'cpu')
    assert 'OutOfMemoryError on the GPU: running on the CPU' in status.text
    before, after = loads.asked
    assert (before.pop('device'), after.pop('device')) == ('cuda', 'cpu')
    # ONNX Runtime runs the ground branch there too.
    assert after == before and after['onnx_path'] == 'w.ground.onnx' and after['threads'] == 3
    # The filter goes on.
    assert holder.localizer is localizer and localizer.matcher is not matcher


def test_another_error_changes_nothing(holder, loads):
    for error in (RuntimeError('The size of tensor a (3) must match'), ValueError('no'),
                  RuntimeError("Could not run 'aten::add' from the 'CUDA' backend")):
        assert holder.replace_failed_gpu(error) is None
    assert len(loads.asked) == 1


def test_a_gpu_is_left_once(holder, loads):
    failure = RuntimeError('CUDA error: an illegal memory access was encountered')
    assert holder.replace_failed_gpu(failure) is not None
    assert holder.replace_failed_gpu(failure) is None
    assert len(loads.asked) == 2


def test_if_the_cpu_fails_too_only_the_prior_goes_on(holder, loads):
    loads.error = MemoryError('no room')
    status = holder.replace_failed_gpu(RuntimeError('CUDA error: unspecified launch failure'))
    assert status.level is Level.ERROR
    assert 'and on the CPU: no room; the prior alone' in status.text
    assert holder.localizer.matcher is None


class OnnxError(Exception):
    """ONNX Runtime's errors are no RuntimeErrors."""


@pytest.mark.parametrize(('error', 'expected'), [
    (torch.OutOfMemoryError('whatever it says'), True),
    (RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB'), True),
    (RuntimeError('CUDA error: device-side assert triggered'), True),
    (RuntimeError('cuDNN error: CUDNN_STATUS_EXECUTION_FAILED'), True),
    (OnnxError('Non-zero status code: CUDA failure 2: out of memory ; GPU=0'), True),
    (RuntimeError('Expected all tensors to be on the same device, cuda:0 and cpu!'), False),
    (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), False),
    (MemoryError(), False),
])
def test_only_out_of_memory_and_errors_of_cuda_are_failures_of_the_gpu(error, expected):
    assert is_gpu_failure(error) is expected


def test_a_map_that_cannot_be_opened_leaves_no_localizer_until_a_fix_places_one(loads):
    loads.error = FileNotFoundError('no map at a.map')
    holder = LocalizerHolder(
        NodeConfig(map_path='a.map', weights_path='w'), LocalizerConfig())
    status = holder.load_map()
    assert status.level is Level.ERROR
    assert status.text == 'no map at a.map; the prior alone is published'
    assert holder.localizer is None
    holder.make_without_map((48.0, 11.0))
    frame = holder.localizer.frame
    assert (frame.latitude_deg, frame.longitude_deg) == (48.0, 11.0)
    assert holder.localizer.matcher is None
