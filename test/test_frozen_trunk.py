"""Stored feature maps of a frozen trunk: the same descriptors, without the trunk's time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import OXFORD
from training.data.datasets import Places
from training.loop import train, TrainConfig
from training.recipes.frozen_trunk import FrozenNetwork, stored_places
from training.recipes.pairs import PairConfig, PairRecipe
from training.train_tiles import LITE

MODEL = replace(LITE, px_m=2 * OXFORD.px_m, view_px=64, channels=8, heads=2, hidden=4)


@pytest.fixture(scope='module')
def places():
    """Eight places 6 m apart of two days; the last is for validation."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 255, (8, 154, 231, 3), dtype=np.uint8)
    tiles = rng.integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    return Places(
        'noise', np.stack((6.0 * np.arange(8.0), np.zeros(8)), 1), np.zeros(8),
        np.array(['train'] * 7 + ['val']), np.array(['a'] * 8), np.arange(8), np.ones(8, bool),
        ground.__getitem__, tiles.__getitem__)


@pytest.fixture(scope='module')
def network():
    return random_network(MODEL, 3).eval()


@pytest.fixture(scope='module')
def stored(places, network, tmp_path_factory):
    folder = tmp_path_factory.mktemp('maps')
    return stored_places(places, network, folder), folder


def frozen_from(network):
    frozen = FrozenNetwork(network.config)
    frozen.load_state_dict(network.state_dict())
    return frozen.eval()


def test_stored_maps_give_the_descriptors_of_the_images(places, network, stored):
    frozen, (maps, _) = frozen_from(network), stored

    def batch(read):
        return torch.from_numpy(np.stack([read(place) for place in range(4)]))

    for embed in ('embed_ground', 'embed_satellite'):
        read = 'read_ground' if embed == 'embed_ground' else 'read_satellite'
        of_maps = getattr(frozen, embed)(batch(getattr(maps, read)))
        of_images = getattr(network, embed)(batch(getattr(places, read)))
        assert torch.allclose(of_maps, of_images, atol=2e-3)
        # Different places differ by far more than what half precision costs.
        assert (of_images[0] - of_images[1]).norm() > 10 * (of_maps - of_images).norm(dim=1).max()


def test_a_second_run_reads_the_maps_that_the_first_kept(places, network, stored):
    maps, folder = stored

    def refuse(place):
        raise AssertionError('read an image again')

    again = stored_places(
        replace(places, read_ground=refuse, read_satellite=refuse), network, folder)
    assert np.array_equal(again.read_satellite(5), maps.read_satellite(5))


def test_training_on_maps_moves_the_heads_and_leaves_the_trunk(network, stored, tmp_path):
    config = TrainConfig(steps=3, frozen_stages=7, validate_steps=3)
    recipe = PairRecipe(PairConfig(batch=4, turns='none', held_out_tiles=False), 0, stored[0])
    out = tmp_path / 'weights.safetensors'
    train(frozen_from(network), recipe, config, out, {})
    trained, before = load_network(out).state_dict(), network.state_dict()
    moved = {name for name, value in before.items()
             if not torch.equal(trained[name].float(), value.half().float())}
    assert moved and not [name for name in moved if '.trunk.' in name]
    assert {'ground.aggregation.weights1', 'satellite.fusion.0.weight'} <= moved


def test_without_held_out_tiles_no_batch_has_a_place_of_another_split(places):
    recipe = PairRecipe(PairConfig(batch=4, turns='none', held_out_tiles=False), 0, places)
    seen = np.concatenate([np.concatenate((batch.ground, batch.satellite))
                           for epoch in range(5) for batch in recipe.batches_of_epoch(epoch)])
    assert set(places.split[seen]) == {'train'}


def test_a_network_that_needs_more_than_features_is_refused():
    with pytest.raises(ValueError, match='camera'):
        FrozenNetwork(replace(MODEL, ground_view='birds_eye'))
