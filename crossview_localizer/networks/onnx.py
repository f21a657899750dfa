"""Exports the branches of a network as ONNX files, and runs them in ONNX Runtime.

The command ``export`` writes the files ``NAME.ground.onnx`` and ``NAME.satellite.onnx``.  Their
inputs and outputs are those of the branches of the torch network, in float32:

    dense ground      images (1, 3, H, W), road (1, 4, 2F, 2L), points (1, Z, F, L, 2)
                      -> weighted (1, C, F, L), weights (1, 1, F, L)
    dense satellite   images (B, 3, H, W) -> descriptors (B, C, H / 2, W / 2)
    tile ground       views (1, H, W, K) uint8 -> descriptors (1, D)
    tile satellite    tiles (B, S, S, 3) uint8 -> descriptors (B, D)

H and W of the dense branches are multiples of 32.  The metadata hold the fingerprint of the
weights.
"""

from collections.abc import Callable
import hashlib
import importlib.util
import os
from pathlib import Path
import subprocess
import sys
import warnings

import numpy as np
import torch
from torch import nn

from crossview_localizer.files import write_atomically
from crossview_localizer.networks.dense import DENSE

AUTO = 'auto'               # in place of a file: see ``ground_file``
FINGERPRINT_KEY = 'crossview_localizer_weights'
OPSET = 17
EXAMPLE_PX = (128, 224)     # height and width of the example image for the dense ground branch
INSTALL = 'pip install onnx onnxruntime'


class _Tiles(nn.Module):
    """A module whose forward is the method ``embed`` of a tile network."""

    def __init__(self, network, embed: str):
        super().__init__()
        self.network = network
        self.forward = getattr(network, embed)


def branches(network) -> dict[str, tuple[nn.Module, tuple, list[str], list[str], dict]]:
    """For each branch: module, example inputs, names of inputs and outputs, dynamic axes."""
    config = network.config
    generator = torch.Generator().manual_seed(0)

    def example(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) * 2.0 - 1.0

    if config.kind == DENSE:
        rows, cols, cell_px = config.ahead_cells, config.across_cells, config.cell_px
        inputs = (example(1, 3, *EXAMPLE_PX), example(1, 4, rows * cell_px, cols * cell_px),
                  1.2 * example(1, len(config.heights_m), rows, cols, 2))
        sides = {2: 'height', 3: 'width'}
        return {
            'ground': (network.ground, inputs, ['images', 'road', 'points'],
                       ['weighted', 'weights'], {'images': sides}),
            'satellite': (network.satellite, (example(1, 3, 128, 128),), ['images'],
                          ['descriptors'], {'images': {0: 'batch', **sides}}),
        }

    def pixels(*shape: int) -> torch.Tensor:
        return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    view = pixels(1, *config.ground_px, 4 if config.ground_view == 'birds_eye' else 3)
    tiles = pixels(2, config.tile_px, config.tile_px, 3)
    return {
        'ground': (_Tiles(network, 'embed_ground'), (view,), ['views'], ['descriptors'], {}),
        'satellite': (_Tiles(network, 'embed_satellite'), (tiles,), ['tiles'], ['descriptors'],
                      {'tiles': {0: 'batch'}}),
    }


def export_branch(network, name: str, path: Path) -> None:
    """Write one branch, ``ground`` or ``satellite``, atomically."""
    onnx = _imported('onnx')
    module, inputs, input_names, output_names, dynamic_axes = branches(network)[name]
    with write_atomically(path) as writing:
        with warnings.catch_warnings(), torch.no_grad():
            # The tracing exporter: the newer one needs onnxscript and takes ten times as long.
            warnings.simplefilter('ignore')
            torch.onnx.export(
                module, inputs, str(writing), input_names=input_names, dynamo=False,
                output_names=output_names, dynamic_axes=dynamic_axes, opset_version=OPSET)
        model = onnx.load(str(writing))
        model.metadata_props.add(key=FINGERPRINT_KEY, value=network.fingerprint)
        onnx.save(model, str(writing))


def ground_file(weights: Path, fingerprint: str, report: Callable[[str], None]) -> Path | None:
    """The exported ground branch of a weights file; it is exported on first use.

    It is kept in the user's cache, under a name that changes with the weights and with the code
    that computes them.  Another process exports it, whose memory is free afterwards.  Returns
    None if ONNX Runtime is not installed or if the export fails, which ``report`` is told.
    """
    if not all(importlib.util.find_spec(name) for name in ('onnx', 'onnxruntime')):
        return None
    made_of = hashlib.sha256(f'{fingerprint} {torch.__version__} {OPSET}'.encode())
    for source in sorted(Path(__file__).parent.glob('*.py')):
        made_of.update(source.read_bytes())
    folder = cache_folder() / made_of.hexdigest()[:16]
    path = folder / f'{weights.stem}.ground.onnx'
    if path.is_file():
        return path
    report(f'exporting {weights.name} for ONNX Runtime to {path}, once')
    done = subprocess.run(
        [sys.executable, '-m', 'crossview_localizer.export', str(weights), '--out', str(folder),
         '--branch', 'ground'], capture_output=True, text=True)
    if done.returncode or not path.is_file():
        report(f'the export failed, torch runs the network: {done.stderr.strip()[-300:]}')
        return None
    return path


def cache_folder() -> Path:
    """The folder of files that are made again where they are missing."""
    home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(home) / 'crossview_localizer'


class OnnxBranch:
    """A branch that runs in ONNX Runtime; its inputs and outputs are torch tensors.

    Raises FileNotFoundError or ValueError if the file is missing, damaged or of other weights.
    """

    def __init__(self, path: str | Path, fingerprint: str, device: str = 'cpu',
                 threads: int = 1):
        runtime = _imported('onnxruntime')
        if not Path(path).is_file():
            raise FileNotFoundError(f'{path} does not exist; expected a file from export')
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False  # as fast without it, and 30 MB smaller
        # Threads that wait in a loop would take the cores from odometry and camera driver.
        options.add_session_config_entry('session.intra_op.allow_spinning', '0')
        provider = {'cpu': 'CPUExecutionProvider', 'cuda': 'CUDAExecutionProvider'}[
            torch.device(device).type]
        if provider not in runtime.get_available_providers():
            raise ValueError(f'this onnxruntime has no {provider}; expected onnxruntime-gpu, or '
                             'device: cpu')
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=[provider])
        except Exception as error:  # the runtime has many error classes without a common base
            raise ValueError(
                f'{path} is not a network for ONNX Runtime ({str(error).splitlines()[0]}); '
                'expected a file from export') from error
        found = self._session.get_modelmeta().custom_metadata_map.get(FINGERPRINT_KEY)
        if found != fingerprint:
            raise ValueError(
                f'{path} was exported from the weights {str(found)[:12]}, but the loaded weights '
                f'are {fingerprint[:12]}; export it again')
        self._names = [item.name for item in self._session.get_inputs()]
        self._device = device

    def __call__(self, *inputs: torch.Tensor):
        feeds = {name: np.ascontiguousarray(value.cpu().numpy())
                 for name, value in zip(self._names, inputs, strict=True)}
        outputs = [torch.from_numpy(value).to(self._device)
                   for value in self._session.run(None, feeds)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _imported(module: str):
    try:
        return __import__(module)
    except ImportError as error:
        raise ValueError(f'{module} is not installed; {INSTALL}') from error
