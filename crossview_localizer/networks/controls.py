"""Untrained networks, as controls: a trained network must be better than these."""

from dataclasses import asdict, replace
import hashlib
import json

import torch
from torch import nn

from crossview_localizer.networks.dense import DENSE, DenseConfig, DenseNetwork
from crossview_localizer.networks.safa import grey_ground, grey_tiles, ModelConfig, SafaNetwork

RAW_CORRELATION = 'raw_correlation'
RANDOM_INIT = 'random_init'


class RawCorrelation(nn.Module):
    """Grey pixels of ground view and tile, centred, as unit descriptors."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = replace(config, kind=RAW_CORRELATION)
        self.fingerprint = _digest(self.config)

    def embed_ground(self, views: torch.Tensor) -> torch.Tensor:
        return grey_ground(views)

    def embed_satellite(self, tiles: torch.Tensor) -> torch.Tensor:
        margin, side = self.config.margin_px, self.config.view_px
        return grey_tiles(tiles[:, margin:margin + side, margin:margin + side])


def random_network(config: ModelConfig | DenseConfig, seed: int) -> SafaNetwork | DenseNetwork:
    """Make a network with reproducible random weights, without changing torch's generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.kind == DENSE:
            return DenseNetwork(config)
        network = SafaNetwork(config)
        if config.ground_view == 'birds_eye':  # its cells correspond to those of the tiles
            for branch in (network.ground, network.satellite):
                branch.aggregation.start_from_patches()
    return network


def control_network(
    name: str, config: ModelConfig | DenseConfig, seed: str,
) -> RawCorrelation | SafaNetwork | DenseNetwork:
    """Make the control ``name`` with the sizes of ``config`` and the temperature fitted for it.

    Raises ValueError if there is no such control for this kind of network.
    """
    if isinstance(config, ModelConfig):
        config = replace(config, offset_forward_m=0.0, offset_left_m=0.0, detail_weight=0.0)
    if name == RANDOM_INIT:
        config = replace(config, temperature=config.random_temperature)
        if config.kind == DENSE:    # a control that nothing of the pixels helps
            config = replace(config, pixel_channels=0)
        network = random_network(config, int(seed or 0))
        network.fingerprint = _digest(network.config, seed or 0)
        return network
    if config.kind == DENSE:
        raise ValueError(f'{name} compares tiles; expected weights of a tile network')
    if config.ground_view != 'birds_eye':
        raise ValueError(f"{name} compares bird's-eye views with tiles; expected weights with "
                         f'ground_view birds_eye, found {config.ground_view}')
    return RawCorrelation(replace(config, temperature=config.raw_temperature))


def _digest(config: ModelConfig | DenseConfig, *extra) -> str:
    settings = asdict(config)
    del settings['match_errors']  # a map stays valid when they are fitted again
    text = json.dumps(settings, sort_keys=True) + ' '.join(map(str, extra))
    return hashlib.sha256(text.encode()).hexdigest()
