"""Weights files: the tensors of a network, its model settings, and how it was made."""

from dataclasses import asdict, fields
import hashlib
import json
from pathlib import Path

from safetensors import safe_open, SafetensorError
from safetensors.torch import save
import torch

from crossview_localizer.networks.controls import control_network, RANDOM_INIT, RAW_CORRELATION
from crossview_localizer.networks.dense import DENSE, DenseConfig, DenseNetwork
from crossview_localizer.networks.safa import ModelConfig, SafaNetwork


def save_network(network: SafaNetwork | DenseNetwork, path: str | Path,
                 provenance: dict[str, object], precision: torch.dtype = torch.float16):
    """Write weights with their model settings and how they were made, whole or not at all.

    The same weights give the same bytes, and so the same fingerprint.
    """
    path = Path(path)
    tensors = {
        name: (value.to(precision) if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    metadata = {
        'format': 'crossview_localizer weights 1',
        'model': json.dumps(asdict(network.config), sort_keys=True),
        'provenance': json.dumps(provenance, sort_keys=True),
    }
    partial = path.with_name(path.name + '.partial')
    partial.write_bytes(with_sorted_header(save(tensors, metadata)))
    partial.replace(path)


def with_sorted_header(data: bytes) -> bytes:
    """A safetensors file (8 bytes of length, a JSON header, tensors) with its header in order.

    The library writes the metadata in an order that changes from call to call.
    """
    end = 8 + int.from_bytes(data[:8], 'little')
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b' ' * (-len(header) % 8)
    return len(header).to_bytes(8, 'little') + header + data[end:]


def read_model_config(path: str | Path) -> tuple[ModelConfig | DenseConfig, dict]:
    """Model settings and provenance of a weights file, without its tensors.

    Raises ValueError where the file is no weights file, FileNotFoundError where it is absent.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weights at {path}; train them or give --weights FILE')
    try:
        with safe_open(path, framework='np') as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a readable safetensors file ({error})') from error
    if not metadata.get('format', '').startswith('crossview_localizer weights'):
        raise ValueError(
            f'{path} has format {metadata.get("format")!r}; '
            'expected crossview_localizer weights 1')
    try:
        model = dict(json.loads(metadata['model']))
        provenance = dict(json.loads(metadata.get('provenance', '{}')))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: its model settings are damaged ({error!r})') from error
    return _config_from_settings(model, path), provenance


def _config_from_settings(model: dict, path: Path) -> ModelConfig | DenseConfig:
    """A setting that is missing keeps its default."""
    kind = DenseConfig if model.get('kind') == DENSE else ModelConfig
    unknown = set(model) - {item.name for item in fields(kind)}
    if unknown:
        raise ValueError(f'{path}: unknown model setting {sorted(unknown)[0]!r}; newer weights?')
    # JSON has lists where the config has tuples.
    model = {key: tuple(value) if isinstance(value, list) else value
             for key, value in model.items()}
    for key, value in model.items():
        default = getattr(kind(), key)
        wanted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, wanted):
            raise ValueError(f'{path}: model setting {key} is {value!r}; expected the kind of '
                             f'{default!r}')
    return kind(**model)


def load_network(source: str | Path, device: str = 'cpu', like: str | Path | None = None):
    """Load a weights file, or make a control network, ready for inference.

    ``source`` is a file, ``raw_correlation`` or ``random_init:SEED``; a control takes its sizes
    and temperature from the weights file ``like``, where given.
    Raises ValueError or FileNotFoundError with what was found and expected.
    """
    name, _, seed = str(source).partition(':')
    if name in (RAW_CORRELATION, RANDOM_INIT):
        config = read_model_config(like)[0] if like else ModelConfig()
        network = control_network(name, config, seed)
    else:
        network = _network_from_file(Path(source))
    return network.to(device).eval()


def _network_from_file(path: Path) -> SafaNetwork | DenseNetwork:
    config, _ = read_model_config(path)
    network = DenseNetwork(config) if config.kind == DENSE else SafaNetwork(config)
    with safe_open(path, framework='pt') as file:
        state = {key: file.get_tensor(key) for key in file.keys()}
    for key, value in network.state_dict().items():
        found = tuple(state[key].shape) if key in state else 'nothing'
        if found != tuple(value.shape):
            raise ValueError(f'{path}: variable {key} is {found}; expected {tuple(value.shape)}')
        if state[key].is_floating_point() and not state[key].isfinite().all():
            raise ValueError(f'{path}: variable {key} is not finite; the file is damaged')
    network.load_state_dict(state)
    network.fingerprint = hashlib.sha256(path.read_bytes()).hexdigest()
    return network


def prepare_torch(device: str, threads: int) -> tuple[str, str]:
    """Set the CPU threads and settle ``auto``, ``cpu`` or ``cuda`` to a device that is there.

    Returns the device and, where ``cuda`` was asked for in vain, what to tell the user.
    """
    torch.set_num_threads(threads)
    if device == 'cpu':
        return 'cpu', ''
    if torch.cuda.is_available():
        return 'cuda', ''
    return 'cpu', 'no GPU is available: running on the CPU' if device == 'cuda' else ''
