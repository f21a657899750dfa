"""Mix weights that began with the same ones: the mean of their variables, by the shares given.

Weights that were trained further on other data lose some of what they could do before.  A mean
of both keeps most of either (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022).
"""

import argparse
from dataclasses import replace
from pathlib import Path
import sys

import torch

from crossview_localizer.command import run_command
from crossview_localizer.networks.checkpoint import load_network, read_model_config, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseNetwork
from crossview_localizer.networks.pixel_channels import PROPERTIES
from training.initial import with_pixel_channels


def mix(paths: list[Path], shares: list[float], out: Path,
        pixel_weights: list[float] | None = None) -> None:
    """Write the mean of the weights at ``paths``; settings and match errors are the first's.

    Networks with fewer pixel channels than the first get its own.  ``pixel_weights`` (N,), above
    0, take the place of the mixed weights of these channels; what the first lacks of N is added.

    Raises ValueError where the networks differ in another setting that decides about their
    variables.
    """
    if len(paths) != len(shares) or min(shares) <= 0.0:
        raise ValueError(
            f'{len(shares)} shares for {len(paths)} files; expected one for each, above 0')
    networks = [load_network(path) for path in paths]
    network = networks[0]
    states = [with_pixel_channels(other.state_dict(), network) for other in networks]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    for path, found in zip(paths, shapes):
        if found != shapes[0]:
            raise ValueError(
                f'{path} has other variables than {paths[0]}; expected the same model')
    total = sum(shares)
    network.load_state_dict({
        name: sum(share / total * state[name].float() for share, state in zip(shares, states))
        if value.dtype.is_floating_point else value for name, value in states[0].items()})
    if pixel_weights:
        network = with_pixel_weights(network, pixel_weights)
    # What the scores claim has to be fitted anew: see benchmarks.accuracy.fit_confidence.
    network.config = replace(network.config, temperature=1.0)
    provenance = {'mixture of': [
        {'file': path.name, 'share': share / total, **read_model_config(path)[1]}
        for path, share in zip(paths, shares)]}
    if pixel_weights:
        provenance['pixel_weights'] = pixel_weights
    save_network(network.eval(), out, provenance)


def with_pixel_weights(network: DenseNetwork, weights: list[float]) -> DenseNetwork:
    """The network with these weights (N,) of its pixel channels, and N of them.

    Raises ValueError where it has more, or cannot have so many.
    """
    count = getattr(network.config, 'pixel_channels', None)
    if count is None or not count <= len(weights) <= len(PROPERTIES) or min(weights) <= 0.0:
        raise ValueError(
            f'pixel weights are {weights}; expected dense weights, and a number above 0 for each '
            f'of their {count or 0} pixel channels, in all at most {len(PROPERTIES)}')
    added = len(weights) - count
    grown = random_network(replace(
        network.config, channels=network.config.channels + added, pixel_channels=len(weights)), 0)
    grown.load_state_dict(with_pixel_channels(network.state_dict(), grown))
    grown.ground.log_pixel_weights.data = torch.tensor(weights).log().view(1, -1, 1, 1)
    return grown


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog='python -m training.mix_weights', description=__doc__.splitlines()[0],
        epilog='example: python -m training.mix_weights runs/a.safetensors runs/b.safetensors '
        '--shares 0.8 0.2 --out runs/mixed.safetensors')
    parser.add_argument('weights', nargs='+', type=Path, help='weights files of the same model')
    parser.add_argument('--shares', nargs='+', type=float, required=True, help='one for each file')
    parser.add_argument('--pixel-weights', nargs='+', type=float, metavar='WEIGHT',
                        help=f'weights of the pixel channels, {", ".join(PROPERTIES)} (default: '
                        'the mean of the files); channels that the files lack are added')
    parser.add_argument('--out', type=Path, required=True, help='weights file to write')
    return run_command(
        parser, arguments,
        lambda args: mix(args.weights, args.shares, args.out, args.pixel_weights))


if __name__ == '__main__':
    sys.exit(main())
