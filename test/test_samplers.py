"""The samplers: which places a batch holds, how many batches there are, and how fast."""

import time

import numpy as np
import pytest

from training.samplers import LocalBatchSampler, RandomBatchSampler

VALIDATION_DRIVE = '2015-08-17-10-42-18'


@pytest.fixture(scope='module')
def oxford(data_dir):
    """Positions (N, 2), UTM metres, of the 12 drives, and which are of training drives."""
    positions, training = [], []
    for path in sorted((data_dir / 'oxford').glob('*.csv')):
        rows = np.loadtxt(path, delimiter=',', skiprows=1, usecols=(1, 2))
        positions.append(rows)
        training.append(np.full(len(rows), path.stem != VALIDATION_DRIVE))
    return np.concatenate(positions), np.concatenate(training)


def street(count, step_m=1.0):
    positions = np.column_stack((np.arange(count) * step_m, np.zeros(count)))
    return positions + [619_519.0, 5_734_746.0]


def test_the_original_rule_gives_the_original_number_of_batches(oxford):
    sampler = LocalBatchSampler(*oxford, original_epoch_end=True)
    for seed in range(3):
        batches = list(sampler.epoch(seed))
        assert 220 <= len(batches) <= 236
        assert np.mean([batch.has_ground.sum() for batch in batches]) == pytest.approx(58.2, abs=1)


def test_an_epoch_has_more_batches_if_failed_centres_use_up_no_places(oxford):
    sampler = LocalBatchSampler(*oxford)
    for seed in range(3):
        assert 237 <= len(list(sampler.epoch(seed))) <= 249


def test_an_epoch_over_all_oxford_drives_takes_well_under_a_second(oxford):
    sampler = LocalBatchSampler(*oxford)
    fastest_s = np.inf
    for seed in range(3):
        begun_s = time.process_time()
        for _ in sampler.epoch(seed):
            pass
        fastest_s = min(fastest_s, time.process_time() - begun_s)
    assert fastest_s < 0.5


@pytest.mark.parametrize('original', [False, True])
def test_members_are_local_to_the_centre_and_are_used_once(original):
    rng = np.random.default_rng(0)
    positions = rng.uniform(0.0, 120.0, (600, 2))
    sampler = LocalBatchSampler(positions, rng.random(600) < 0.8, 16, 30.0, 4.0, original)
    seen = []
    for batch in sampler.epoch(5):
        offset_m = positions[batch.ground] - positions[batch.ground[0]]
        from_centre_m = np.linalg.norm(offset_m, axis=1)
        assert len(batch.ground) == 16 and (from_centre_m[1:] > 4.0).all()
        assert (from_centre_m <= 30.0).all()
        seen += batch.ground.tolist()
    assert len(seen) == len(set(seen)) and len(seen) > 300


def test_a_tile_is_drawn_evenly_from_those_near_its_ground_image():
    # Place 3 of a street of metre steps has the tiles 1 to 5 within 2 m.
    sampler = LocalBatchSampler(street(7), np.ones(7, bool), 2, 50.0, 2.0)
    drawn = [batch.satellite[batch.ground == 3] for seed in range(400)
             for batch in sampler.epoch(seed)]
    counts = np.bincount(np.concatenate(drawn), minlength=7)
    assert counts[[0, 6]].sum() == 0
    share = counts[1:6] / counts.sum()
    np.testing.assert_allclose(share, 0.2, atol=0.08)


def test_distances_lead_from_the_chosen_tile_to_each_ground_image_in_double_precision():
    positions = street(40, 0.123456789)
    [batch, *_] = LocalBatchSampler(positions, np.ones(40, bool), 8, 50.0, 1.0).epoch(0)
    for i, tile in enumerate(batch.satellite):
        for j, ground in enumerate(batch.ground):
            expected = abs(int(tile) - int(ground)) * 0.123456789
            assert batch.distance_m[i, j] == pytest.approx(expected, abs=1e-8)


def test_held_out_places_take_part_with_their_tiles_and_are_marked():
    has_ground = np.arange(64) % 4 != 0
    batches = list(LocalBatchSampler(street(64), has_ground, 8, 50.0, 1.5).epoch(1))
    for batch in batches:
        np.testing.assert_array_equal(batch.has_ground, has_ground[batch.ground])
    assert not all(batch.has_ground.all() for batch in batches)


def test_streets_without_a_training_image_give_no_batch():
    # Two streets a kilometre apart; only the first was driven for training.
    positions = np.concatenate((street(32), street(32) + [0.0, 1000.0]))
    sampler = LocalBatchSampler(positions, np.arange(64) < 32, 8, 50.0, 1.5)
    ground = np.concatenate([batch.ground for batch in sampler.epoch(0)])
    assert len(ground) >= 24 and (ground < 32).all()


def test_without_a_positive_reach_each_image_keeps_its_own_tile_and_no_twin_competes():
    positions = np.repeat(street(10, 5.0), 2, axis=0)     # each place twice
    for batch in LocalBatchSampler(positions, np.ones(20, bool), 4, 100.0, 0.0).epoch(2):
        np.testing.assert_array_equal(batch.satellite // 2, batch.ground // 2)
        assert (batch.ground[1:] // 2 != batch.ground[0] // 2).all()


def test_a_place_without_neighbours_gives_no_batch():
    positions = np.concatenate((street(8), [[700_000.0, 5_734_746.0]]))
    batches = list(LocalBatchSampler(positions, np.ones(9, bool), 4, 50.0, 0.0).epoch(0))
    assert len(batches) == 2
    assert not any(8 in batch.ground for batch in batches)


@pytest.mark.parametrize('sampler', [
    LocalBatchSampler(street(64), np.ones(64, bool), 8, 20.0, 1.5),
    RandomBatchSampler(street(64), np.ones(64, bool), 8, 1.5)])
def test_the_seed_decides_the_epoch(sampler):
    def drawn(seed):
        return [(b.ground.tolist(), b.satellite.tolist()) for b in sampler.epoch(seed)]

    assert drawn(3) == drawn(3) != drawn(4)


def test_random_batches_hold_each_training_image_once():
    has_ground = np.arange(70) < 45
    batches = list(RandomBatchSampler(street(70), has_ground, 8, 1.5).epoch(0))
    ground = np.concatenate([batch.ground for batch in batches])
    assert len(batches) == 5 and len(set(ground.tolist())) == 40
    assert has_ground[ground].all()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r'expected \(N, 2\) and \(N,\)'):
        LocalBatchSampler(street(5), np.ones(4, bool), 2)
    with pytest.raises(ValueError, match='not finite'):
        RandomBatchSampler(np.array([[0.0, np.nan], [0.0, 0.0]]), np.ones(2, bool), 2)
    with pytest.raises(ValueError, match='at least 2'):
        LocalBatchSampler(street(5), np.ones(5, bool), 1)
