"""Retrieval metrics with answers worked out by hand."""

import numpy as np
import pytest

from training.evaluation.recall import (
    blocks_along,
    blocks_on_grid,
    bootstrap,
    chance_recall,
    NEVER,
    noisy_centres,
    recall,
    retrieve,
    summarize,
)

VALIDATION_DRIVE = '2015-08-17-10-42-18'


def on_circle(*degrees):
    """Unit descriptors (n, 2): the nearer the angles, the nearer in descriptor space."""
    angle = np.radians(degrees)
    return np.column_stack((np.cos(angle), np.sin(angle)))


def east(*metres):
    return np.column_stack((metres, np.zeros(len(metres)))) + [620_000.0, 5_735_000.0]


# Tiles every 10 m; the query at 1 m has one right tile, the first.
TILES_M = east(0.0, 10.0, 20.0, 30.0, 40.0, 400.0)


def test_ranks_count_the_wrong_tiles_before_the_first_right_one():
    satellite = on_circle(30.0, 10.0, 50.0, 20.0, 60.0, 5.0)
    found = retrieve(satellite, on_circle(0.0), TILES_M, east(1.0), 35.0, 5.0)
    # Nearer than the right one at 30 deg: 10, 20 (local), and 5 (400 m away).
    assert found.local_rank.tolist() == [2] and found.global_rank.tolist() == [3]
    assert found.picked.tolist() == [1] and found.error_m[0].tolist() == [9.0, 0.0]
    # The tile at 40 m is outside the 35 m.
    assert (found.candidates[0], found.right[0]) == (4, 1)
    assert chance_recall(found) == 25.0


def test_any_right_tile_counts_and_right_ones_do_not_push_each_other_back():
    satellite = on_circle(3.0, 1.0, 2.0, 50.0, 60.0, 70.0)
    found = retrieve(satellite, on_circle(0.0), TILES_M, east(10.0), 50.0, 10.0)
    assert found.local_rank.tolist() == [0] and found.right.tolist() == [3]
    assert found.global_rank.tolist() == [0]


def test_a_tie_is_not_a_hit_and_costs_the_farthest():
    same = np.ones((6, 3)) / np.sqrt(3.0)
    found = retrieve(same, same[:2], TILES_M, east(1.0, 31.0), 35.0, 5.0)
    # 4 and 5 tiles within 35 m of 1 and 31 m, one of them right.
    assert found.local_rank.tolist() == [3, 4] and found.global_rank.tolist() == [5, 5]
    assert recall(found.local_rank, 1) == recall(found.global_rank, 1) == 0.0
    assert found.error_m[:, 0].tolist() == [29.0, -31.0]


def test_descriptors_that_differ_only_by_rounding_are_tied():
    rng = np.random.default_rng(0)
    constant = rng.normal(size=4096)
    constant = np.tile((constant / np.linalg.norm(constant)).astype(np.float32), (301, 1))
    constant *= 1 + 1e-7 * rng.normal(size=(301, 1)).astype(np.float32)
    tiles = rng.uniform(0.0, 60.0, (301, 2))
    found = retrieve(constant, constant[:40], tiles, tiles[:40])
    assert (found.local_rank > 100).all()


def test_recall_is_monotonous_and_in_percent():
    rank = np.array([0, 0, 1, 4, NEVER])
    assert [recall(rank, k) for k in (1, 2, 5, 10)] == [40.0, 60.0, 80.0, 80.0]


def test_a_query_without_a_right_tile_is_a_miss_and_still_has_an_error():
    found = retrieve(on_circle(0, 10, 20, 30, 40, 50), on_circle(0.0), TILES_M, east(46.0), 20.0)
    assert found.local_rank[0] == found.global_rank[0] == NEVER
    assert found.right[0] == 0 and found.error_m[0, 0] == pytest.approx(-16.0)
    nowhere = retrieve(on_circle(0, 10, 20, 30, 40, 50), on_circle(0.0), TILES_M, east(900.0))
    assert nowhere.picked[0] == -1 and np.isnan(nowhere.error_m).all()


def test_a_prior_beside_the_truth_moves_the_tiles_that_compete():
    satellite = on_circle(10.0, 50.0, 50.0, 50.0, 5.0, 70.0)
    centred = retrieve(satellite, on_circle(0.0), TILES_M, east(1.0), 25.0)
    beside = retrieve(satellite, on_circle(0.0), TILES_M, east(1.0), 25.0, centres_m=east(20.0))
    away = retrieve(satellite, on_circle(0.0), TILES_M, east(1.0), 25.0, centres_m=east(39.0))
    assert centred.local_rank[0] == 0        # tile 40 m is out of reach
    assert beside.local_rank[0] == 1         # and now it is not
    assert away.local_rank[0] == NEVER       # the right one is out of reach
    assert centred.global_rank[0] == beside.global_rank[0] == away.global_rank[0] == 1


def test_noisy_centres_have_their_sigma_and_repeat_with_the_seed():
    queries = np.tile(east(1.0), (4000, 1))
    centres = noisy_centres(queries, 10.0, 3)
    np.testing.assert_array_equal(centres, noisy_centres(queries, 10.0, 3))
    np.testing.assert_allclose((centres - queries).std(0), 10.0, rtol=0.05)


def test_tolerance_zero_takes_the_same_place_and_its_twins():
    tiles = np.concatenate((east(0.0, 0.0, 7.0),))
    satellite = on_circle(5.0, 1.0, 3.0)
    found = retrieve(satellite, on_circle(0.0), tiles, east(0.0), 100.0, 0.0)
    assert found.right.tolist() == [2] and found.local_rank.tolist() == [0]


def test_many_queries_are_the_same_as_one_by_one():
    rng = np.random.default_rng(0)
    tiles, queries = rng.uniform(0, 300, (400, 2)), rng.uniform(0, 300, (300, 2))
    satellite, ground = rng.normal(size=(400, 8)), rng.normal(size=(300, 8))
    satellite /= np.linalg.norm(satellite, axis=1, keepdims=True)
    ground /= np.linalg.norm(ground, axis=1, keepdims=True)
    found = retrieve(satellite, ground, tiles, queries)
    for query in (0, 255, 256, 299):
        distance = np.linalg.norm(satellite - ground[query], axis=1) ** 2
        apart_m = np.linalg.norm(tiles - queries[query], axis=1)
        best = distance[apart_m <= 5.0].min(initial=np.inf)
        wrong = (apart_m > 5.0) & (distance <= best)
        if np.isfinite(best):
            assert found.global_rank[query] == wrong.sum()
            assert found.local_rank[query] == (wrong & (apart_m <= 50.0)).sum()
        else:
            assert found.global_rank[query] == NEVER


def test_the_chance_of_a_hit_at_oxford_is_the_known_one(data_dir):
    rows = {path.stem: np.loadtxt(path, delimiter=',', skiprows=1, usecols=(1, 2))
            for path in (data_dir / 'oxford').glob('*.csv')}
    tiles = np.concatenate(list(rows.values()))
    queries = rows[VALIDATION_DRIVE][::10]
    blind = retrieve(np.ones((len(tiles), 1)), np.ones((len(queries), 1)), tiles, queries)
    # 7.5 to 7.9 % with all 15 drives; these are 12 of them.
    assert 6.5 < chance_recall(blind) < 8.5
    assert recall(blind.local_rank, 10) == 0.0


def test_blocks_follow_the_way_driven_and_never_join_two_drives():
    positions = np.concatenate((east(*range(0, 500, 50)), east(*range(0, 250, 50))))
    drive = np.array(['a'] * 10 + ['b'] * 5)
    assert blocks_along(positions, drive).tolist() == [0] * 4 + [1] * 4 + [2] * 2 + [3] * 4 + [4]
    grid = blocks_on_grid(np.array([(1.0, 1.0), (199.0, 5.0), (201.0, 5.0), (1.0, -1.0)]))
    assert grid[0] == grid[1] and len(set(grid.tolist())) == 3


def test_the_interval_of_a_mean_is_that_of_independent_blocks():
    # 100 blocks of 20 equal values each: the standard error is that of 100 numbers, not of 2000.
    rng = np.random.default_rng(1)
    levels = rng.normal(0.0, 1.0, 100)
    values = np.repeat(levels, 20)[None]
    low, value, high = bootstrap(np.mean, np.repeat(np.arange(100), 20), values)
    assert value == pytest.approx(levels.mean())
    assert high - low == pytest.approx(2 * 1.96 * levels.std() / 10, rel=0.15)


def test_a_difference_is_taken_pair_by_pair():
    rng = np.random.default_rng(2)
    base = rng.normal(0.0, 5.0, (3, 200))
    low, value, high = bootstrap(
        lambda a, b: float(a.mean() - b.mean()), np.arange(200) // 10, base + 2.0, base)
    assert (low, value, high) == pytest.approx((2.0, 2.0, 2.0))


def test_seeds_are_drawn_too():
    # All queries of a seed agree: only the seeds vary.
    per_seed = np.repeat(np.array([[0.0], [1.0], [2.0]]), 100, axis=1)
    low, value, high = bootstrap(np.mean, np.arange(100), per_seed)
    assert value == 1.0 and low == 0.0 and high == 2.0
    alone = bootstrap(np.mean, np.arange(100), per_seed[1:2])
    assert alone == (1.0, 1.0, 1.0)


def test_the_summary_holds_signed_errors_in_the_axes_of_the_vehicle():
    # Northbound; the picked tile is 10 m to the east: 10 m to the right.
    satellite = on_circle(50.0, 1.0, 60.0, 70.0, 80.0, 90.0)
    found = retrieve(satellite, on_circle(0.0), TILES_M, east(0.0), 35.0)
    lines = summarize(found, np.array([np.pi / 2]), np.array([0]))
    assert lines['lateral_mean_m'] == pytest.approx(-10.0)
    assert lines['longitudinal_mean_m'] == pytest.approx(0.0, abs=1e-9)
    assert lines['median_m'] == lines['mean_m'] == lines['p95_m'] == [10.0, 10.0, 10.0]
    assert lines['recall_local'] == {1: 0.0} | dict.fromkeys(range(2, 11), 100.0)
    assert lines['n'] == lines['n_queries'] == 1
    unknown = summarize(found, np.array([np.nan]), np.array([0]))
    assert unknown['lateral_mean_m'] is None and unknown['median_m'] == [10.0, 10.0, 10.0]


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match='expected'):
        retrieve(on_circle(0.0), on_circle(0.0), east(0.0, 1.0), east(0.0))
    with pytest.raises(ValueError, match='satellite descriptor is not finite'):
        retrieve(np.array([[np.nan, 0.0]]), on_circle(0.0), east(0.0), east(0.0))
    with pytest.raises(ValueError, match='expected'):
        bootstrap(np.mean, np.arange(3), np.zeros((1, 4)))
