"""Convert weights from elsewhere to a weights file of this package.

Three kinds of source are read: an ``.npz`` of arrays named as the authors' TensorFlow 1
variables, a TensorFlow checkpoint (if TensorFlow is installed), and the state dict of
torchvision's or timm's VGG16 (``.pth``, ``.pt``, ``.safetensors``; only the trunks). The authors'
variables, with X = grd or sat:

    VGG_X/conv{b}_{k}/weights, biases       (kH, kW, in, out) and (out,), of BGR images
    spatial_X/weights1, biases1             (N, N / 2, D) and (1, N / 2, D)
    spatial_X/weights2, biases2             (N / 2, N, D) and (1, N, D)

Everything else in such a file (the slots of an optimizer) is ignored.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
import hashlib
from pathlib import Path
import pickle
import sys
import zipfile

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
import torch

from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import CVACT, OXFORD, SafaNetwork

MODELS = {'oxford': OXFORD, 'cvact': CVACT}
SCOPES = {'ground': 'grd', 'satellite': 'sat'}


def variable_names(network: SafaNetwork, trunk_only: bool = False) -> dict[str, str]:
    """The name of each variable in the authors' files, keyed by its name in our state dict."""
    names = {}
    for branch, scope in SCOPES.items():
        for conv in getattr(network, branch).trunk.convolutions:
            names[f'{branch}.trunk.convolutions.{conv}.weight'] = f'VGG_{scope}/{conv}/weights'
            names[f'{branch}.trunk.convolutions.{conv}.bias'] = f'VGG_{scope}/{conv}/biases'
        if not trunk_only:
            for leaf in ('weights1', 'biases1', 'weights2', 'biases2'):
                names[f'{branch}.aggregation.{leaf}'] = f'spatial_{scope}/{leaf}'
    return names


def load_variables(network: SafaNetwork, variables: Mapping[str, np.ndarray],
                   trunk_only: bool = False) -> list[str]:
    """Put the authors' variables into the network; returns the names that were ignored.

    Raises ValueError with the first variable that is missing, misshapen or not finite.
    """
    found = {name.removesuffix(':0'): name for name in variables}
    names = variable_names(network, trunk_only)
    state = network.state_dict()
    for ours, theirs in names.items():
        if theirs not in found:
            raise ValueError(f'variable {theirs} is missing; the file holds '
                             f'{", ".join(sorted(found)[:3]) or "nothing"} ...')
        value = np.asarray(variables[found[theirs]], dtype=np.float32)
        expected = tuple(state[ours].shape)
        if ours.endswith('.weight'):  # (kH, kW, in, out) to (out, in, kH, kW)
            expected = expected[2:] + expected[1::-1]
        if value.shape != expected:
            raise ValueError(f'variable {theirs} is {value.shape}; expected {expected}')
        if not np.isfinite(value).all():
            raise ValueError(f'variable {theirs} is not finite')
        if ours.endswith('.weight'):
            value = value.transpose(3, 2, 0, 1)
        state[ours] = torch.from_numpy(np.ascontiguousarray(value))
    network.load_state_dict(state)
    return sorted(set(found) - set(names.values()))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f'{path} is not a readable .npz of arrays ({error})') from error


def read_tensorflow(prefix: Path) -> dict[str, np.ndarray]:
    """All numeric variables of a TensorFlow checkpoint; ``prefix`` is ``model.ckpt``, say."""
    try:
        import tensorflow
    except ImportError as error:
        raise ValueError(
            f'{prefix} is read as a TensorFlow checkpoint, but TensorFlow cannot be imported '
            f'({error}); pip install tensorflow-cpu, or convert it to .npz where it is '
            'installed') from error
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
    except (ValueError, tensorflow.errors.OpError) as error:
        raise ValueError(f'{prefix} is no TensorFlow checkpoint: {error}') from error
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'{path} is not a readable torch state dict ({reason})') from error
    if not isinstance(state, dict):
        raise ValueError(f'{path} holds {type(state).__name__}; expected a state dict')
    return state


def read_vgg16(path: Path) -> dict[str, torch.Tensor]:
    """A state dict of VGG16 with the names of torchvision and timm, alone or in a checkpoint."""
    state = load_safetensors(path) if path.suffix == '.safetensors' else read_torch(path)
    for key in ('state_dict', 'model'):
        if isinstance(state.get(key), dict):
            state = state[key]
    return {name.removeprefix('module.'): value for name, value in state.items()}


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f'{path} is not a readable safetensors file ({error})') from error


def import_weights(source: Path, model: str, heads: int | None = None, trunk_only: bool = False,
                   seed: int = 0) -> tuple[SafaNetwork, dict]:
    """The network of ``source`` and its provenance; what the file lacks is drawn from ``seed``.

    Without ``heads``, the network has as many as the file, or 8 if the file has none.
    Raises ValueError or OSError with what was found and what was expected.
    """
    config = MODELS[model]
    files = [source] if source.is_file() else sorted(source.parent.glob(source.name + '.*'))
    if not files:
        raise FileNotFoundError(f'no weights at {source}; expected .npz, .pth, .pt, .safetensors '
                                'or the prefix of a TensorFlow checkpoint')
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    provenance = {'imported from': source.name, 'sha256': digest.hexdigest(), 'seed': seed}

    if source.suffix in ('.pth', '.pt', '.safetensors'):
        state = read_vgg16(source)
        network = random_network(replace(config, heads=heads or config.heads), seed)
        network.ground.trunk.load_pretrained(state)
        network.satellite.trunk.load_pretrained(state)
        return network, provenance | {'variables': 'VGG16 trunks; the heads are random'}

    variables = read_npz(source) if source.suffix == '.npz' else read_tensorflow(source)
    first = variables.get('spatial_grd/weights1', variables.get('spatial_grd/weights1:0'))
    if heads is None and not trunk_only and first is not None and first.ndim == 3:
        heads = first.shape[2]
    network = random_network(replace(config, heads=heads or config.heads), seed)
    ignored = load_variables(network, variables, trunk_only)
    taken = 'VGG trunks; the heads are random' if trunk_only else 'all'
    return network, provenance | {'variables': taken, 'ignored': len(ignored)}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.import_weights', description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog='example: python -m training.import_weights model.npz --model oxford '
        '--out runs/oxford.safetensors')
    parser.add_argument('source', type=Path, help='.npz, .pth, .pt, .safetensors, or the prefix '
                        'of a TensorFlow checkpoint (model.ckpt of model.ckpt.index)')
    parser.add_argument('--model', choices=sorted(MODELS), required=True,
                        help='network that the weights are of')
    parser.add_argument('--out', type=Path, required=True, help='.safetensors file to write')
    parser.add_argument('--heads', type=int, metavar='N',
                        help='heads of the aggregation (default: as many as in the file, else 8)')
    parser.add_argument('--trunk-only', action='store_true', help='take only the VGG trunks, with '
                        'which the papers begin on Oxford; the heads are random')
    parser.add_argument('--seed', type=int, default=0, help='seed of what is random (default 0)')
    parser.add_argument('--temperature', type=float, default=0.1, help='divides distances to give '
                        'log-likelihoods in the node; fit it on validation drives (default 0.1)')
    return run_command(parser, arguments, _run)


def _run(args: argparse.Namespace) -> None:
    if args.heads is not None and args.heads < 1:
        raise ValueError(f'--heads is {args.heads}; expected 1 or more')
    if not args.temperature > 0.0:
        raise ValueError(f'--temperature is {args.temperature}; expected more than 0')
    network, provenance = import_weights(
        args.source, args.model, args.heads, args.trunk_only, args.seed)
    network.config = replace(network.config, temperature=args.temperature)
    # Full precision: float16 would move descriptors by about 1e-4.
    save_network(network, args.out, provenance, torch.float32)
    for key, value in provenance.items():
        print(f'{key}: {value}')
    print(f'{args.out}: {sum(p.numel() for p in network.parameters())} parameters')


if __name__ == '__main__':
    sys.exit(main())
