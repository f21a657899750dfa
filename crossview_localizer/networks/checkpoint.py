"""Weights files: the tensors of a network, its model settings, and how it was made.

A weights file is a safetensors file whose metadata are JSON texts: ``model`` (ModelConfig or
DenseConfig), ``match_errors`` (MatchErrors) and ``provenance``.  Its fingerprint is the SHA-256 of
everything but ``match_errors``; a map holds the fingerprint of the weights that it was made with.
"""

from dataclasses import asdict, fields, replace
import hashlib
import json
from pathlib import Path

from safetensors import safe_open, SafetensorError
from safetensors.torch import save
import torch

from crossview_localizer.datatypes import MatchErrors
from crossview_localizer.files import write_atomically
from crossview_localizer.networks.controls import control_network, RANDOM_INIT, RAW_CORRELATION
from crossview_localizer.networks.dense import DENSE, DenseConfig, DenseNetwork
from crossview_localizer.networks.safa import ModelConfig, SafaNetwork

FORMAT = 'crossview_localizer weights 1'


def save_network(network: SafaNetwork | DenseNetwork, path: str | Path,
                 provenance: dict[str, object], precision: torch.dtype = torch.float16):
    """Write weights with their model settings and how they were made, atomically.

    The same weights give the same bytes, and so the same fingerprint.
    """
    tensors = {
        name: (value.to(precision) if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    settings = asdict(network.config)
    metadata = {
        'format': FORMAT,
        'match_errors': json.dumps(settings.pop('match_errors'), sort_keys=True),
        'model': json.dumps(settings, sort_keys=True),
        'provenance': json.dumps(provenance, sort_keys=True),
    }
    with write_atomically(path) as writing:
        # The library writes the metadata in an order that changes from call to call.
        writing.write_bytes(_joined(*_split(save(tensors, metadata))))


def write_match_errors(path: str | Path, errors: MatchErrors) -> None:
    """Put fitted MatchErrors into a weights file; its fingerprint stays the same.

    Raises ValueError for a file whose header is not in the form that ``save_network`` writes.
    """
    data = Path(path).read_bytes()
    header, tensors = _split(data)
    if _joined(header, tensors) != data:
        raise ValueError(
            f'{path} was written by an early version: with match_errors it would have another '
            'fingerprint and no longer open its maps; expected a file of save_network')
    header['__metadata__']['match_errors'] = json.dumps(asdict(errors), sort_keys=True)
    with write_atomically(path) as writing:
        writing.write_bytes(_joined(header, tensors))


def _split(data: bytes) -> tuple[dict, bytes]:
    """Split a safetensors file into its header and its tensors."""
    end = 8 + int.from_bytes(data[:8], 'little')
    return json.loads(data[8:end]), data[end:]


def _joined(header: dict, tensors: bytes) -> bytes:
    """Make a safetensors file: 8 bytes of length, a JSON header with sorted keys, the tensors."""
    text = json.dumps(header, sort_keys=True).encode()
    text += b' ' * (-len(text) % 8)
    return len(text).to_bytes(8, 'little') + text + tensors


def fingerprint_of(path: Path) -> str:
    """SHA-256 of a weights file without its ``match_errors``."""
    data = path.read_bytes()
    header, tensors = _split(data)
    if header.get('__metadata__', {}).pop('match_errors', None) is not None:
        data = _joined(header, tensors)
    return hashlib.sha256(data).hexdigest()


def read_model_config(path: str | Path) -> tuple[ModelConfig | DenseConfig, dict]:
    """Read the model settings and the provenance of a weights file, without its tensors.

    A missing setting has its default.
    Raises FileNotFoundError if there is no file, ValueError if it is not a weights file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weights at {path}; train them or give --weights FILE')
    try:
        with safe_open(path, framework='np') as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f'{path} is not a readable safetensors file ({error})') from error
    if not metadata.get('format', '').startswith(FORMAT.rpartition(' ')[0]):
        raise ValueError(f'{path} has format {metadata.get("format")!r}; expected {FORMAT}')
    try:
        model = dict(json.loads(metadata['model']))
        errors = dict(json.loads(metadata.get('match_errors', '{}')))
        provenance = dict(json.loads(metadata.get('provenance', '{}')))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: its model settings are damaged ({error!r})') from error
    if model.get('kind') == DENSE:
        model.pop('margin_px', None)        # files of before November 2026 have it
        if model.get('pixel_channels') is True:  # files with edges, warmth and greenness only
            model['pixel_channels'] = 3
    config = _checked(DenseConfig if model.get('kind') == DENSE else ModelConfig, model, path)
    return replace(config, match_errors=_checked(MatchErrors, errors, path)), provenance


def _checked(kind: type, settings: dict, path: Path):
    """Make a dataclass of JSON values; raises ValueError for an unknown name or a wrong type."""
    defaults = {item.name: item.default for item in fields(kind)}
    unknown = set(settings) - set(defaults)
    if unknown:
        raise ValueError(f'{path}: unknown model setting {sorted(unknown)[0]!r}; newer weights?')
    # JSON has lists where a config has tuples.
    settings = {key: tuple(value) if isinstance(value, list) else value
                for key, value in settings.items()}
    for key, value in settings.items():
        wanted = (int, float) if isinstance(defaults[key], float) else type(defaults[key])
        if not isinstance(value, wanted):
            raise ValueError(f'{path}: model setting {key} is {value!r}; expected the type of '
                             f'{defaults[key]!r}')
    return kind(**settings)


def load_network(source: str | Path, device: str = 'cpu', like: str | Path | None = None):
    """Load a weights file, or make a control network, ready for inference.

    ``source`` is a file, ``raw_correlation`` or ``random_init:SEED``.  A control takes its sizes
    and temperature from the weights file ``like``, if there is one.
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
        shape = tuple(state[key].shape) if key in state else 'missing'
        if shape != tuple(value.shape):
            raise ValueError(f'{path}: variable {key} is {shape}; expected {tuple(value.shape)}')
        if state[key].is_floating_point() and not state[key].isfinite().all():
            raise ValueError(f'{path}: variable {key} is not finite; the file is damaged')
    network.load_state_dict(state)
    network.fingerprint = fingerprint_of(path)
    return network


def prepare_torch(device: str, threads: int) -> tuple[str, str]:
    """Set the number of CPU threads, and choose an available device for auto, cpu or cuda.

    Returns the device, and a message for the user if ``cuda`` is not available.
    """
    torch.set_num_threads(threads)
    if device == 'cpu':
        return 'cpu', ''
    if torch.cuda.is_available():
        return 'cuda', ''
    return 'cpu', 'no GPU is available: running on the CPU' if device == 'cuda' else ''
