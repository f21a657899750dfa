"""The speed benchmark in its smallest size: what it writes, and that the page is made of it."""

from collections import Counter
import json
import shutil

import numpy as np
import pytest

from benchmarks.speed import bench, gpu_check, map_speed, page, peers, training_speed
from benchmarks.speed.world import percentiles_ms, repeated_s
from crossview_localizer.bags.drive import Drive
from crossview_localizer.datatypes import GnssFix
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track


def test_percentiles_are_those_of_the_calls():
    assert percentiles_ms(np.arange(101) * 1e-3) == {
        'p50_ms': 50.0, 'p95_ms': 95.0, 'p99_ms': 99.0}
    calls = []
    assert len(repeated_s(lambda: calls.append(1), 5, 2)) == 5 and len(calls) == 7


def test_a_written_area_is_a_map_with_every_tile_and_a_sparse_one_takes_no_room(tmp_path):
    for sparse in (False, True):
        path = tmp_path / f'{sparse}.map'
        tiles = map_speed.write_area(path, 1.0, 32.0, 4096, sparse)
        found, open_s, _, first = map_speed.open_cold(path)
        assert tiles == 32 * 32 and open_s < 30.0
        assert len(found.tiles) == (24 * 24 if sparse else tiles)
        assert found.window(map_speed.prior_at(0, 0.0), 15.0, 20.5).coverage == 1.0
        assert first['cold_ms'] > 0.0
        on_disk = map_speed.bytes_of(path)
        assert on_disk < 3e6 if sparse else on_disk > 4e6
        shutil.rmtree(path)


def test_the_sampler_is_timed_for_each_number_of_places():
    found = training_speed.measure_sampler((500, 5000))
    assert [row['places'] for row in found] == [500, 5000]
    assert all(row['batch_ms'] > 0.0 for row in found)


def test_the_peers_give_the_same_correlation_and_are_all_timed():
    found = peers.dense_match(2)
    assert found['relative_difference'] < 1e-4
    assert {'correlation (ours)', 'scipy fftconvolve'} < set(found)
    assert peers.kalman_filter(2)['states'] >= 3


def test_a_plain_ekf_and_ours_follow_a_straight_drive():
    stamps_ns = 10**9 + np.arange(100) * 100_000_000
    truth = Track.from_poses(stamps_ns, [Pose2D(0.5 * k, 2.0, 0.0) for k in range(100)])
    fixes = [GnssFix(int(ns), 0.5 * k, 2.0, np.eye(2)) for k, ns in enumerate(stamps_ns)][::10]
    found = peers.filter_drive(Drive(np.array([]), truth, fixes, truth, Counter()))
    assert len(found) == 2
    assert all(row['median_m'] < 0.2 and row['p50_ms'] > 0.0 for row in found.values())


def test_the_check_of_a_gpu_runs_every_step_and_compares_with_the_cpu(capsys):
    assert gpu_check.main(['--device', 'cpu', '--runs', '1']) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ['cpu', 'float32', 'half']
    assert found['float32']['difference'] == 0.0 and 0.0 < found['half']['difference'] < 0.5


def row(value):
    return {'p50_ms': value, 'p95_ms': 2 * value, 'p99_ms': 3 * value}


def result():
    """A result with every part, of made-up numbers."""
    about = {'device': 'a processor', 'cores': 2, 'python': '3', 'versions': {'torch': '2'},
             'load_before': 0.1, 'date': '2020-01-01'}
    live = {'quoted': 'torch, 10 Hz', 'stages': {'forward': row(10.0)}, 'end_to_end': row(40.0),
            'all_but_forward': row(9.0), 'frames_per_s': 9.0, 'bare_forward_p50_ms': 9.0,
            'bare_forward': {'eager': row(9.0)},
            'runs': {'torch, 10 Hz': {'frames_per_s': 9.0, 'end_to_end': row(40.0),
                                      'used_share': 1.0, 'memory_mb': {
                                          'all': 500.0, 'own': 240.0, 'files': 190.0,
                                          'shared': 70.0}}}}
    cost = {'cpu_ms': {'forward': 20.0, 'whole': 50.0},
            'memory_mb': {'Python': 10.0, 'NumPy': 50.0, 'ROS 2': 160.0, 'torch': 190.0,
                          'all': 540.0}}
    return {
        'cpu': about | live, 'cost': about | {'torch': cost, 'onnx': cost},
        'map_build': {'km2': 1.0, 'tiles': 9, 'km2_per_s': 0.01, 'ratio_to_bare': 1.1,
                      'pixels_per_block_pixel': 1.4, 'ratio_to_each_pixel_once': 1.5,
                      'workers': {'1': {'wall_s': 1.0, 'peak_mb': 900}},
                      'same_bytes': True, 'corridor': {
                          'km2': 0.1, 'km2_per_s': 0.01, 'ratio_to_bare': 1.1,
                          'pixels_per_block_pixel': 1.6, 'ratio_to_each_pixel_once': 1.8}},
        'map_size': [
            {'store': store, 'km2': km2, 'tiles': 9, 'gb': 0.1 * km2, 'written_in_full': True,
             'bytes_per_km2': 10**8, 'open_s': 0.1, 'memory_mb': 1.0,
             'first_window_ms': 5.0} for store in ('dense', 'tiles') for km2 in (1.0, 10.0)],
        'window': {'preload_1_km2_s': 0.5,
                   'speed_mps': 30.0, 'hz': 10.0, 'map_gb': 1.0, 'cold_ms': 9.0,
                   'warm': row(3.0),
                   'memory_first_mb': 100.0, 'memory_last_mb': 110.0},
        'training': {
            'frames_per_s': 3.0, 'device_bound_frames_per_s': 3.1, 'share_of_bound': 0.97,
            'loader_frames_per_s': 20.0, 'ranks': {'dense': {'1': {'steps_per_s': 1.0}}},
            'sampler': training_speed.measure_sampler((500,))},
        'renderer': {'image_px': [320, 240], 'render': [
            {'frames': 10, 'frames_per_s': 5.0, 'peak_mb': 100}], 'convert': []},
        'hour': about | {'image_px': [320, 240], 'rate_hz': 1.0, 'drives': [{
            'rows': {'vo/vo.csv': 57600, 'gps/gps.csv': 18000, 'gps/ins.csv': 72000},
            **dict.fromkeys(('render', 'convert'), {
                'duration_s': 3600.0, 'frames': 3600, 'frames_per_s': 5.0, 'peak_mb': 103,
                'peak_mb_by_quarter': [101, 102, 103, 103]})}]},
        'peers': about | {'tile_match': {
            'tiles': 9, 'heat map (ours)': row(1.0), 'FAISS flat': row(1.5)}},
    }


def test_the_page_says_which_goals_are_reached_and_which_are_missed(tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/bench.json').write_text(json.dumps(result()))
    assert page.main(['--docs', str(tmp_path)]) == 0
    text = (tmp_path / 'performance.md').read_text()
    lines = {line.split('|')[1].strip(): line for line in text.splitlines() if line[:1] == '|'}
    assert 'missed' in lines[
        'frames per second with the player on the same cores, fastest run']            # 9 of 10
    assert 'missed' in lines['p99 of the live path, torch, 10 Hz offered, ms']       # 120 of 100
    assert 'reached' in lines['opening any of the maps, s']
    assert 'missed' in lines['warm window at 30 m/s, p99 ms']                         # 9 of 5
    assert 'Nothing was measured on a GPU' in text
    assert '2.50 times as long as the' in text
    assert '500.00' in lines['resident memory of the node, torch, 10 Hz, MB']
    assert 'missed' in lines['p50 of the live path, torch, 10 Hz, / bare forward pass']   # 4.44
    assert 'one run' in text
    assert '| tile match | FAISS flat | 1.500 | 1.500' in text
    assert '57600 steps of visual odometry' in text and '101 / 102 / 103 / 103' in text
    assert (tmp_path / 'results/bench.png').stat().st_size > 1000


def test_of_several_rounds_the_page_shows_medians_and_how_far_they_spread(tmp_path):
    rounds = []
    for p99_ms in (4.0, 6.0, 4.5):
        rounds.append(result()['window'] | {'warm': row(1.0) | {'p99_ms': p99_ms}})
    found = result() | {'window': bench.merged(rounds), 'rounds': {'window': 3},
                        'low': {'window': bench.merged(rounds, min)},
                        'high': {'window': bench.merged(rounds, max)}}
    assert found['window']['warm'] == {'p50_ms': 1.0, 'p95_ms': 2.0, 'p99_ms': 4.5}
    text = page.page(found)
    [line] = [line for line in text.splitlines() if line.startswith('| warm window')]
    assert '4.50 | 4.00 to 6.00 | reached' in line and 'medians of 3 rounds' in text


def test_rounds_of_lists_texts_and_names_that_one_lacks_become_one():
    runs = [{'a': [1, 5], 'b': 'x', 'c': True}, {'a': [3, 2], 'b': 'y', 'c': True}]
    assert bench.merged(runs) == {'a': [2.0, 3.5], 'b': 'x', 'c': True}
    assert bench.merged([{'a': 1, 'b': 2}, {'a': 5}], max) == {'a': 5}


def test_a_smaller_run_keeps_the_maps_that_a_larger_one_wrote_in_full():
    def size(tiles, full, bytes_per_km2=100):
        return {'store': 'dense', 'tiles': tiles, 'written_in_full': full,
                'bytes_per_km2': bytes_per_km2}
    earlier = [size(1, True) | {'old': 1}, size(20, True), size(300, False)]
    found = [size(1, True), size(20, False)]
    assert map_speed.with_earlier_sizes(found, earlier) == [
        size(1, True), size(20, True), size(300, False)]
    # Of a store that takes another size by now, nothing is kept.
    other = [size(20, True, 200)]
    assert map_speed.with_earlier_sizes(found, other) == found


def test_the_table_has_a_line_for_every_number():
    lines = dict(bench.rows(result()))
    assert lines['cpu.end_to_end'] == '40.00 / 80.00 / 120.00 ms'
    assert lines['map_size[3].km2'] == '10.0'


@pytest.mark.parametrize('arguments, says', [
    (['--only', 'speed'], 'expected some of'),
    (['--json', '/dev/null/x/bench.json'], 'speed: error: ')])
def test_a_wrong_argument_ends_with_one_line(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, 'parts', lambda *_: {'peers': dict})
    assert bench.main([*arguments, '--out', str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
