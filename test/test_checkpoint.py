"""Weights files are read safely, know their settings, and keep their fingerprint."""

from dataclasses import replace
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file
from test_safa import images, SMALL
import torch

from crossview_localizer.datatypes import MatchErrors
from crossview_localizer.matching.dense_matcher import DenseMatcher
from crossview_localizer.networks.checkpoint import (
    load_network,
    read_model_config,
    save_network,
    write_match_errors,
)
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import views_to_tensor

SHIPPED = Path(__file__).resolve().parent.parent / 'config/weights'
ERRORS = MatchErrors(correlation_m=7.0, correlation_s=3.0, inflation=0.5, sigma_floor_m=0.2)
FINGERPRINT = 'fac07133603673e7806ef665b81d63d4d3771dc72dea5507753abeef18087b85'


@pytest.fixture(scope='module')
def network():  # channels_last, as training leaves it
    return random_network(SMALL, seed=3).eval().to(memory_format=torch.channels_last)


@pytest.fixture
def checkpoint(network, tmp_path):
    path = tmp_path / 'weights.safetensors'
    save_network(network, path, {'command': 'a test', 'seed': 3})
    return path


def test_the_same_weights_give_the_same_file(network, checkpoint, tmp_path):
    for _ in range(5):  # an order by chance shows within a few
        save_network(network, tmp_path / 'again.safetensors', {'command': 'a test', 'seed': 3})
        assert (tmp_path / 'again.safetensors').read_bytes() == checkpoint.read_bytes()


def test_a_checkpoint_carries_its_model_config_and_provenance(network, checkpoint):
    config, provenance = read_model_config(checkpoint)
    assert config == SMALL and provenance['seed'] == 3
    loaded = load_network(checkpoint)
    view = views_to_tensor(images((64, 64, 4)), 'cpu')
    torch.testing.assert_close(
        loaded.embed_ground(view), network.embed_ground(view), atol=5e-3, rtol=0)


def test_the_fingerprint_changes_with_the_weights(network, checkpoint, tmp_path):
    other = tmp_path / 'other.safetensors'
    save_network(random_network(SMALL, seed=4), other, {})
    fingerprints = {load_network(path).fingerprint for path in (checkpoint, other)}
    assert len(fingerprints) == 2


def test_controls_take_sizes_and_temperature_from_the_weights(checkpoint):
    control = load_network('random_init:5', like=checkpoint)
    assert control.config == replace(SMALL, temperature=SMALL.random_temperature)
    again = load_network('random_init:5', like=checkpoint)
    other = load_network('random_init:6', like=checkpoint)
    view = views_to_tensor(images((64, 64, 4)), 'cpu')
    torch.testing.assert_close(control.embed_ground(view), again.embed_ground(view))
    assert (control.embed_ground(view) - other.embed_ground(view)).norm() > 1e-3
    assert len({control.fingerprint, other.fingerprint}) == 2


def test_raw_correlation_scores_a_tile_against_its_own_pixels_highest(checkpoint):
    control = load_network('raw_correlation', like=checkpoint)
    tiles = images((5, SMALL.tile_px, SMALL.tile_px, 3))
    core = tiles[3, 32:96, 32:96]
    view = np.concatenate((core, np.full((64, 64, 1), 255, np.uint8)), -1)
    view[:20, :, 3] = 0
    scores = control.embed_satellite(views_to_tensor(tiles, 'cpu')) @ control.embed_ground(
        views_to_tensor(view, 'cpu'))[0]
    assert int(scores.argmax()) == 3


def test_absent_foreign_truncated_and_misshapen_weights_are_named(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match='no weights at'):
        load_network(tmp_path / 'absent.safetensors')
    foreign = tmp_path / 'foreign.safetensors'
    save_file({'a': torch.zeros(2)}, foreign)
    with pytest.raises(ValueError, match='expected crossview_localizer weights'):
        load_network(foreign)
    truncated = tmp_path / 'truncated.safetensors'
    truncated.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(ValueError, match='not a readable safetensors file'):
        load_network(truncated)
    tensors = load_file(checkpoint)
    tensors['ground.aggregation.weights1'] = torch.zeros(1, 2, 3)
    misshapen = tmp_path / 'misshapen.safetensors'
    with safe_open(checkpoint, framework='pt') as file:
        save_file(tensors, misshapen, file.metadata())
    with pytest.raises(ValueError, match=r'ground\.aggregation\.weights1'):
        load_network(misshapen)


def test_raw_correlation_is_no_control_of_a_front_cameras_network(tmp_path):
    path = tmp_path / 'camera.safetensors'
    save_network(random_network(replace(SMALL, ground_view='camera'), 0), path, {})
    with pytest.raises(ValueError, match="compares bird's-eye views with tiles"):
        load_network('raw_correlation', like=path)
    assert load_network('random_init:1', like=path).config.ground_view == 'camera'


def test_match_errors_come_with_the_weights_and_leave_the_fingerprint_as_it_is(
    checkpoint, tmp_path,
):
    before = load_network(checkpoint)
    assert before.config.match_errors == MatchErrors()
    write_match_errors(checkpoint, ERRORS)
    after = load_network(checkpoint)
    assert after.config.match_errors == ERRORS
    assert after.fingerprint == before.fingerprint
    # And so it is when they are saved anew.
    save_network(after, tmp_path / 'again.safetensors', {'command': 'a test', 'seed': 3})
    again = load_network(tmp_path / 'again.safetensors')
    assert (again.config.match_errors, again.fingerprint) == (ERRORS, before.fingerprint)


def test_weights_from_before_match_errors_open_with_the_usual_ones(checkpoint):
    expected = load_network(checkpoint).fingerprint
    with safe_open(checkpoint, framework='pt') as file:
        metadata = file.metadata()
    del metadata['match_errors']
    data = save(load_file(checkpoint), metadata)
    end = 8 + int.from_bytes(data[:8], 'little')
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b' ' * (-len(header) % 8)
    checkpoint.write_bytes(len(header).to_bytes(8, 'little') + header + data[end:])
    old = load_network(checkpoint)
    assert (old.config.match_errors, old.fingerprint) == (MatchErrors(), expected)
    write_match_errors(checkpoint, ERRORS)
    assert load_network(checkpoint).fingerprint == expected


def test_match_errors_are_not_put_where_they_would_change_the_fingerprint(checkpoint):
    with safe_open(checkpoint, framework='pt') as file:
        metadata = {'zzz': 'written in another order', **file.metadata()}
    data = save(load_file(checkpoint), metadata)
    checkpoint.write_bytes(data)
    with pytest.raises(ValueError, match='early version'):
        write_match_errors(checkpoint, ERRORS)
    assert checkpoint.read_bytes() == data


def test_controls_of_other_match_errors_have_the_same_fingerprint(checkpoint):
    before = load_network('random_init:5', like=checkpoint).fingerprint
    write_match_errors(checkpoint, ERRORS)
    control = load_network('random_init:5', like=checkpoint)
    assert control.fingerprint == before and control.config.match_errors == ERRORS


def test_the_shipped_weights_have_the_fingerprint_that_maps_were_built_with():
    network = load_network(SHIPPED / 'crossview_dense_synthetic.safetensors')
    assert network.fingerprint == FINGERPRINT
    assert DenseMatcher(network).errors == MatchErrors(8.0, 10.0, 0.3, 0.1, 0.15, 0.04, 0.001)
