"""Real pairs: each folder's geometry on painted ground, how answers are scored, a whole run."""

import csv
from dataclasses import replace
import gzip
import json
import math

import numpy as np
import pytest
import synthetic_pairs
from synthetic_pairs import Plane, resemblance
import torch

from benchmarks.accuracy import real_pairs
from benchmarks.accuracy.real_pairs import Answer, Row
from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.networks.checkpoint import load_network, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig, GAUSSIAN_DOF
from training.data.real_pairs import Overhead, read_views, View
from training.evaluation.gradient_correlation import GradientCorrelation, SHARPNESS
from training.evaluation.overhead_raster import describe, RasterMatcher
from training.recipes.dense_groups import uniform_window

WRITERS = ('cvact', 'cvusa', 'dayton', 'london', 'nuscenes', 'neutral')
SMALL = DenseConfig(channels=4, width=8, ahead_cells=32, across_cells=32, patch_cells=40)


def write(folder, writer: str, seed: int = 0):
    getattr(synthetic_pairs, f'write_{writer}')(folder, Plane(seed))
    return folder


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    return {writer: write(tmp_path_factory.mktemp(writer), writer) for writer in WRITERS}


@pytest.mark.parametrize('writer, sets', [
    ('cvact', {'cvact_256': 8, 'cvact_native': 8}),
    ('cvusa', {'cvusa_crop256': 1, 'cvusa_native': 8}),
    ('dayton', {'dayton_exact': 1, 'dayton_approx': 1, 'dayton_unknown_range': 1}),
    ('london', {'london': 8}), ('nuscenes', {'nuscenes_scene1': 2}), ('neutral', {'mine': 1})])
def test_views_lie_on_the_overhead_picture_where_the_truth_says(folders, writer, sets):
    views = read_views(folders[writer])
    assert {name: sum(v.set == name for v in views) for name in sets} == sets
    assert sum(sets.values()) == len(views)
    for view in views:
        here = resemblance(view, view.truth)
        assert here > 0.75, view.name
        for wrong in (replace(view.truth, x_m=view.truth.x_m + 1.5),
                      replace(view.truth, y_m=view.truth.y_m - 1.5),
                      replace(view.truth, yaw_rad=view.truth.yaw_rad + 0.25)):
            assert resemblance(view, wrong) < here - 0.2, view.name


def test_a_panorama_whose_label_was_measured_is_read_where_it_was_taken(tmp_path):
    synthetic_pairs.write_cvact(tmp_path, Plane(0), 'oricnn_sample', 90.0, 1.5, 6.3)
    views = read_views(tmp_path)
    assert len(views) == 16
    for view in views:
        assert resemblance(view, view.truth) > 0.75, view.name


def test_an_untrained_matcher_finds_a_camera_away_from_the_middle_of_the_tile(folders):
    views = read_views(folders['dayton'])
    network = GradientCorrelation(DenseConfig())
    rows = {view.set: real_pairs.summarize(next(iter(real_pairs.judge([view], Row(network)))))
            for view in views}
    for name in ('dayton_exact', 'dayton_approx'):
        row = rows[name]
        assert row['median_m'] < 0.5 and row['heading_median_deg'] < 1.0
        assert row['evidence_nats'] > 2.0 and row['n'] == real_pairs.PRIORS
    unknown = rows['dayton_unknown_range']
    assert unknown['median_m'] is None and unknown['evidence_nats'] is None
    assert unknown['lateral_median_m'] < 0.5 and unknown['heading_median_deg'] < 1.0


def test_the_likelihood_of_the_untrained_matcher_is_a_correlation_coefficient(folders):
    view = next(iter(read_views(folders['dayton'])))
    network = GradientCorrelation(DenseConfig())
    matcher = RasterMatcher(network)
    scores, *_ = matcher.scores(
        matcher.embed(view.image, 0.0), describe(view.overhead, network),
        real_pairs.priors_of(view)[0], uniform_window(view.prior_m))
    assert 0.5 * SHARPNESS < scores.max() <= SHARPNESS * 1.001


def test_beyond_the_picture_and_in_its_black_corners_cells_are_missing(folders):
    view = next(v for v in read_views(folders['dayton']) if v.set == 'dayton_approx')
    network = random_network(SMALL, 0)
    raster = describe(view.overhead, network)
    # 256 px of 0.2295 m are 117 cells of 0.5 m; the corner is 40 rows by 30 columns.
    assert raster.missing.shape == (117, 117)
    assert raster.missing[:17, :12].all() and not raster.missing[20:].any()
    cells, missing, grid = raster.square(20.0, 0.0, 100)
    assert missing[:, 70:].all() and not cells[:, :, 70:].any()
    col = (29.0 - grid.x0_m) / 0.5   # the last cell begins at 29.0 m
    assert missing[50, int(col) + 1:].all() and not missing[50, :int(col)].any()


def a_view(accuracy_m=0.3, **changes) -> View:
    overhead = Overhead('a', np.zeros((10, 10, 3), np.uint8), 1.0)
    view = View('s', 'a', None, overhead, Pose2D(0.0, 0.0, math.pi / 2), accuracy_m, 8.0)
    return replace(view, **changes)


def test_priors_are_within_their_bounds_and_do_not_depend_on_what_else_is_scored():
    priors = [p for k in range(200) for p in real_pairs.priors_of(a_view(name=str(k)))]
    offsets = np.abs([p.pose.as_array() - (0.0, 0.0, math.pi / 2) for p in priors])
    assert 7.5 < offsets[:, :2].max() <= 8.0
    assert np.radians(9.5) < offsets[:, 2].max() <= np.radians(10.0)
    assert real_pairs.priors_of(a_view(name='7'))[0].pose == priors[21].pose


def test_evidence_is_zero_for_a_flat_map_and_the_log_of_the_share_for_a_certain_one():
    grid = MapGrid(33, 33, 0.5, -8.0, 8.0)
    flat = Heatmap(0, grid, np.full((33, 33), -math.log(33 ** 2)))
    assert real_pairs.evidence_nats(flat, a_view()) == pytest.approx(0.0, abs=1e-9)
    certain, wrong = np.full((2, 33, 33), -np.inf)
    certain[16, 16] = wrong[0, 0] = 0.0
    cells = 49   # whose centres lie within 2 m
    assert real_pairs.evidence_nats(Heatmap(0, grid, certain), a_view()) == pytest.approx(
        math.log(0.95 * 33 ** 2 / cells + 0.05))
    assert real_pairs.evidence_nats(
        Heatmap(0, grid, wrong), a_view()) == pytest.approx(math.log(0.05))


def answer(x_m, y_m, ambiguous=False, sigma_m=1.0, view=None) -> Answer:
    estimate = PoseEstimate(
        0, Pose2D(x_m, y_m, math.pi / 2 + 0.1), np.diag([sigma_m ** 2, sigma_m ** 2, 0.01]))
    prior = PoseEstimate(0, Pose2D(3.0, 4.0, math.pi / 2), np.diag([21.0, 21.0, 0.01]))
    return Answer(view or a_view(), prior, estimate, ambiguous, GAUSSIAN_DOF, 0.5)


def test_the_columns_of_a_row():
    # The view looks up: y is along, x across.
    row = real_pairs.summarize(
        [answer(1.0, -2.0), answer(4.5, 0.0), answer(0.0, 5.2), answer(0.0, 9.0, True)])
    assert row['median_m'] == pytest.approx((4.5 + 5.2) / 2)
    assert row['lateral_median_m'] == pytest.approx(0.5)
    assert row['longitudinal_median_m'] == pytest.approx(3.6)
    assert row['heading_median_deg'] == pytest.approx(math.degrees(0.1))
    assert (row['within_2_m'], row['within_5_m'], row['ambiguous']) == (0.0, 0.5, 0.25)
    # 5.2 m is within 5 m and the label's 0.3 m, and an ambiguous answer is never sure.
    assert row['sure_and_wrong'] == 0.0
    assert real_pairs.summarize([answer(0.0, 5.4)])['sure_and_wrong'] == 1.0
    assert row['prior_m'] == 5.0 and row['evidence_nats'] == 0.5 and row['n'] == 4


def test_coverage_is_of_the_position_and_allows_for_the_label():
    limit_m = math.sqrt(-2.0 * math.log(0.05))   # of a circular Gaussian of 1 m
    assert real_pairs.is_covered(answer(limit_m - 0.01, 0.0, view=a_view(accuracy_m=0.0)))
    assert not real_pairs.is_covered(answer(limit_m + 0.01, 0.0, view=a_view(accuracy_m=0.0)))
    assert real_pairs.is_covered(answer(2 * limit_m, 0.0, view=a_view(accuracy_m=2.0)))


def test_image_blind_shows_the_next_place_or_grey():
    one, two = (Overhead(name, np.zeros((4, 4, 3), np.uint8), 1.0) for name in 'ab')
    views = [a_view(overhead=one, name='a0'), a_view(overhead=one, name='a1'),
             a_view(overhead=two, name='b0')]
    assert [v.name for v in real_pairs.exchanged(views)] == ['b0', 'b0', 'a0']
    assert real_pairs.exchanged(views[:2]) == [None, None]


def test_a_run_writes_all_rows_and_a_line_an_answer_into_out_alone(folders, tmp_path, capsys):
    weights = tmp_path / 'w.safetensors'
    save_network(random_network(replace(SMALL, channels=7, pixel_channels=3), 0), weights, {})
    (tmp_path / 'other').mkdir()
    save_network(random_network(SMALL, 1), tmp_path / 'other/w.safetensors', {})
    out = tmp_path / 'out'
    assert real_pairs.main([
        '--pairs', str(folders['neutral']), '--out', str(out), '--old-weights', str(weights),
        '--weights', str(weights), str(tmp_path / 'other/w.safetensors')]) == 0
    result = json.loads((out / 'real.json').read_text())
    rows = result['sets']['mine']
    assert set(rows) == {
        'dense', str(tmp_path / 'other/w.safetensors'), 'prior_centre', 'gradient_correlation',
        'pixel_channels', 'image_blind', 'random_init', 'weights_45d2a5b'}
    assert rows['pixel_channels'] != rows['dense'] == rows['weights_45d2a5b']
    assert result['weights'] == load_network(weights).fingerprint[:12] and result['device']
    assert rows['prior_centre']['median_m'] == rows['prior_centre']['prior_m']
    with gzip.open(out / 'views.csv.gz', 'rt') as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows) * real_pairs.PRIORS
    errors = [float(line['error_m']) for line in lines if line['row'] == 'dense']
    assert np.median(errors) == pytest.approx(rows['dense']['median_m'], abs=1e-3)
    assert 'gradient_correlation' in capsys.readouterr().out
    assert real_pairs.score(weights, folder=folders['neutral']) == {'mine': rows['dense']}


def test_a_training_scores_its_own_network_and_goes_on_training(folders):
    network = random_network(SMALL, 0).train()
    threads = torch.get_num_threads()
    rows = real_pairs.score(network, ['cvact_256'], folders['cvact'], every=4)
    assert list(rows) == ['cvact_256'] and rows['cvact_256']['n'] == 2 * real_pairs.PRIORS
    assert network.training and torch.get_num_threads() == threads


def spoil_column(folder):
    text = (folder / 'dayton/poses.csv').read_text()
    (folder / 'dayton/poses.csv').write_text(text.replace('cam_px_row', 'row'))


def spoil_number(folder):
    text = (folder / 'dayton/poses.csv').read_text()
    (folder / 'dayton/poses.csv').write_text(text.replace('200.5', 'far'))


def spoil_picture(folder):
    (folder / 'dayton/ground/e.png').write_bytes(b'no picture')


def spoil_name(folder):
    (folder / 'dayton/aerial/f.png').unlink()


def spoil_folder(folder):
    (folder / 'dayton').rename(folder / 'ohio')


@pytest.mark.parametrize('spoil, text', [
    (spoil_column, 'no column cam_px_row'), (spoil_number, "cam_px_row of e is 'far'"),
    (spoil_picture, 'e.png cannot be read'), (spoil_name, 'f.png does not exist'),
    (spoil_folder, 'holds no pairs')])
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path, capsys, spoil, text):
    spoil(write(tmp_path, 'dayton'))
    assert real_pairs.main(['--pairs', str(tmp_path), '--out', str(tmp_path / 'out')]) == 2
    said = capsys.readouterr().err.strip()
    assert text in said and '\n' not in said
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('arguments, text', [
    (['--sets', 'paris'], 'no set paris; it has mine'),
    (['--rows', 'best'], 'no row best'), (['--every', '0'], 'expected at least 1'),
    (['--weights', 'absent.safetensors'], 'absent.safetensors')])
def test_a_wrong_argument_is_said_in_one_line(folders, tmp_path, capsys, arguments, text):
    assert real_pairs.main(
        ['--pairs', str(folders['neutral']), '--out', str(tmp_path / 'out'), *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert text in said and '\n' not in said


def test_nuscenes_tables_without_a_camera_are_refused(tmp_path):
    folder = write(tmp_path, 'nuscenes') / 'nuscenes_scene1'
    (folder / 'tables/sample_data.json').write_text('[]')
    with pytest.raises(ValueError, match='expected the nuScenes tables'):
        read_views(tmp_path)
