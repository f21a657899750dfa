"""The run report: how it judges a recording, its pictures, and the page that it writes."""

from dataclasses import replace
import json
import re
import shutil

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import recorded_drive as drive
import torch

from crossview_localizer import report
from crossview_localizer.bags import recorded_run
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import FilterConfig
from crossview_localizer.evaluation import figure_style, pose_figures, pose_metrics, run_report
from crossview_localizer.evaluation.background import orthophoto_of
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.evaluation.report_page import render_page, Section, Table
from crossview_localizer.evaluation.run_metrics import (
    compare_with_truth,
    innovations,
    outages,
    smooth_run,
    with_row,
)
from crossview_localizer.evaluation.run_report import find_demo, outcome_tables, results_table
from crossview_localizer.evaluation.shots import choose_typical, read_shots
from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.trajectory import Track

SECONDS = 20.0


@pytest.fixture(scope='module')
def bags(ros, tmp_path_factory):
    return drive.write_bags(tmp_path_factory.mktemp('bags'), SECONDS)


@pytest.fixture(scope='module')
def run(bags):
    return recorded_run.read_run(bags['run'], bags['input'])


# --- judging


def test_errors_are_those_that_were_put_in(run):
    comparison = compare_with_truth(run)
    errors = pose_metrics.pose_errors(comparison.rows['refined'], comparison.truth)
    used = comparison.evaluated & (run.outcomes() == 'used')
    assert used.sum() > 40
    assert errors['longitudinal_m'][used] == pytest.approx(drive.AHEAD_M, abs=1e-3)
    assert errors['lateral_m'][used] == pytest.approx(drive.LEFT_M, abs=1e-3)
    before = pose_metrics.pose_errors(comparison.rows['before_match'], comparison.truth)
    assert before['lateral_m'][used] == pytest.approx(drive.PRIOR_LEFT_M, abs=1e-3)
    seconds = (comparison.truth.stamps_ns - drive.START_NS) * 1e-9
    assert seconds[comparison.evaluated].min() == pose_metrics.SETTLING_S + 0.25


def test_innovations_are_held_against_both_covariances(run):
    # Match 1 m left of the truth, prior 2 m right, each with a variance of 1 m2.
    assert innovations(run) == pytest.approx(3.0**2 / 2.0, abs=1e-6)


def test_an_outage_is_found_from_the_fixes_alone():
    fixes_ns = np.array([0.5, 1.5, 2.5, 22.5, 23.5]) * 1e9
    assert outages(fixes_ns, 0, 24_000_000_000) == [(2_500_000_000, 22_500_000_000)]
    assert outages(np.array([]), 0, 24_000_000_000) == [(0, 24_000_000_000)]


def test_the_shots_are_the_frames_nearest_to_and_farthest_from_the_truth(bags, run):
    moved = np.array(run.peaks_m)
    moved[40] = run.truth.pose_at(int(run.heatmap_ns[40]), 1.0).as_array()[:2]
    moved[50, 0] += 20.0
    changed = recorded_run.RecordedRun(**{**vars(run), 'peaks_m': moved})
    comparison = compare_with_truth(changed)
    shots = read_shots(
        changed, comparison, choose_typical(changed, comparison), bags['run'], bags['input'],
        Topics(), recorded_run.NODE)
    assert [shot.label for shot in shots] == ['Best', 'Median', 'Worst']
    distances_m = [shot.distance_m for shot in shots]
    assert distances_m == pytest.approx([0.0, 3.0, 23.0], abs=1e-3)
    assert shots[0].stamp_ns == run.heatmap_ns[40]
    assert shots[1].rgb.shape == (drive.HEIGHT_PX, drive.WIDTH_PX, 3)
    assert shots[1].percent.max() == 100.0


def test_the_smoothed_trajectory_uses_odometry_fixes_and_the_used_matches(run):
    stamps_ns = run.poses.stamps_ns
    smoothed = smooth_run(run, FilterConfig(), None, stamps_ns)
    truth = run.truth.at(stamps_ns, 1.0)
    known = np.isfinite(truth.poses).all(axis=1)
    errors = pose_metrics.pose_errors(smoothed, truth)
    # Matches lie 1 m to the left, fixes 4 m to the east; odometry is perfect.
    assert errors['lateral_m'][known] == pytest.approx(1.0, abs=0.4)
    assert np.abs(errors['heading_rad'][known]).max() < 0.05
    judged = with_row(compare_with_truth(run), 'smoothed', smoothed)
    assert 'smoothed' in [row[0] for row in results_table(judged).rows]
    alone = smooth_run(replace(run, odometry=Track.empty([])), FilterConfig(), None, stamps_ns)
    assert np.isnan(alone.poses).all()


# --- drawing


def test_a_thinned_series_keeps_its_extremes():
    values = np.sin(np.arange(100_000) / 500.0)
    values[54_321], values[12_345] = 9.0, -9.0
    values[70_000:80_000] = np.nan
    rows = figure_style.envelope(values, most=1000)
    assert len(rows) <= 1000 and (np.diff(rows) > 0).all()
    assert {54_321, 12_345} <= set(rows.tolist())
    assert figure_style.envelope(np.arange(10.0)).tolist() == list(range(10))


def hour_of_poses(count=36_000) -> Comparison:
    stamps_ns = drive.START_NS + np.arange(count) * 100_000_000
    angle_rad = np.arange(count) / 500.0
    poses = np.stack((60 * np.sin(angle_rad), -60 * np.cos(angle_rad), angle_rad), -1)
    truth = Track(stamps_ns, poses, np.full((count, 3, 3), np.nan))
    generator = np.random.default_rng(1)
    covariances = np.tile(drive.COVARIANCE, (count, 1, 1))
    rows = {
        name: Track(stamps_ns, poses + generator.standard_normal((count, 3)) * [1, 1, 0.02],
                    covariances)
        for name in ('before_match', 'refined')}
    outcomes = {name: [''] * count for name in rows}
    return Comparison(truth, pose_metrics.settled(truth), rows, outcomes)


def test_an_hour_is_drawn_with_no_more_points_than_a_picture_can_show():
    comparison = hour_of_poses()
    track = comparison.rows['refined']
    figures = [
        pose_figures.draw_errors(comparison, [], 10.5),
        pose_figures.draw_trajectory(
            track, np.ones(len(track)), '', comparison.truth, track.poses[:, :2],
            track.poses[:, :2], [], None, 10.5),
        pose_figures.draw_claims(track, comparison.rows['before_match'], [], 4.3),
    ]
    most = 2 * figure_style.MOST_POINTS
    for figure in figures:
        for axes in figure.axes:
            assert all(len(line.get_xdata()) <= most for line in axes.lines)
            assert all(
                len(collection.get_paths()) <= most and
                all(len(path.vertices) <= 2 * most + 3 for path in collection.get_paths())
                for collection in axes.collections)
        pose_figures.plt.close(figure)


def test_errors_drawn_from_their_covariance_lie_on_the_calibration_line():
    comparison = hour_of_poses(5000)
    errors = pose_metrics.pose_errors(comparison.rows['refined'], comparison.truth)
    figure = pose_figures.draw_calibration({'refined': (errors['nees'], 3)}, 6.0)
    curve = figure.axes[0].lines[1]
    assert curve.get_ydata() == pytest.approx(curve.get_xdata(), abs=0.03)
    pose_figures.plt.close(figure)


def test_an_orthophoto_is_redrawn_where_it_lies():
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[10:20, 30:50] = 200
    grid = MapGrid(40, 60, 0.5, 100.0, 50.0)
    draw = orthophoto_of(rgb, grid)
    assert np.array_equal(draw(grid), rgb)
    part = draw(grid.crop(10, 30, 5, 5))
    assert (part == 200).all()
    # Cells of 2 m, four by four pixels each: the bright part covers rows 2.5 to 5.
    coarse = draw(MapGrid(10, 15, 2.0, 100.75, 49.25))
    assert coarse[:, 9, 0].tolist() == pytest.approx([0, 0, 100, 200, 200, 0, 0, 0, 0, 0], abs=1)
    assert (draw(MapGrid(4, 4, 0.5, 500.0, 50.0)) == 225).all()


# --- the page


def test_the_page_holds_everything_and_asks_for_nothing(bags, tmp_path, monkeypatch):
    monkeypatch.setattr(run_report, 'DPI', dict.fromkeys(run_report.WIDTHS_IN, 30))
    out = tmp_path / 'report'
    assert report.main([str(bags['run']), '--input-bag', str(bags['input']), '--out',
                        str(out)]) == 0
    text = (out / 'index.html').read_text()
    for title in ('Trajectory', 'Results', 'Errors over time', 'Calibration', 'Latency',
                  'Heat maps of single frames', 'Inputs, outcomes and diagnostics over time'):
        assert f'<h2>{title}</h2>' in text
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', text)
    assert sources and all(source.startswith(('data:image/png;base64,', '#'))
                           for source in sources)
    assert 'http' not in re.sub(r'base64,[^"]*', '', text)
    assert '<script' not in text and 'width=device-width' in text
    assert 'the best trajectory afterwards' in text and 'Dashed: the smoothed' in text
    assert '<b>1.12 m</b><span>median position error' in text       # hypot(1, 0.5)
    assert '<td>look at it</td>' in text.replace(' class="text"', '')
    pictures = {path.stem for path in out.glob('*.png')}
    assert {'trajectory', 'trajectory_narrow', 'heatmaps', 'errors', 'timeline'} <= pictures


@pytest.fixture
def drawn_once(monkeypatch):
    """Every picture is drawn, but once and coarsely."""
    monkeypatch.setattr(run_report, 'WIDTHS_IN', {'': 4.3})
    monkeypatch.setattr(run_report, 'DPI', {'': 20})
    draw = run_report._PictureWriter.__call__
    monkeypatch.setattr(run_report._PictureWriter, '__call__', lambda *args, **options: (
        draw(*args, **options) * 2))


def test_without_truth_inputs_and_map_the_page_says_what_the_node_claims(
        bags, tmp_path, drawn_once):
    assert report.main([str(bags['bare']), '--out', str(tmp_path)]) == 0
    text = (tmp_path / 'index.html').read_text()
    assert 'No ground truth was recorded' in text
    assert '<h2>Results</h2>' not in text and 'median position error' not in text
    assert '2.45 m</b><span>median 95 % radius claimed' in text     # sqrt of chi2(2) at 0.95
    assert 'the largest distance' in text


def test_a_recording_without_geopose_is_reported_too(ros, tmp_path, drawn_once):
    kept = [entry for entry in drive.output_messages(6.0)
            if entry[0].rsplit('/', 1)[1] in ('pose', 'diagnostics')]
    bag = drive.write_bag(tmp_path / 'run', [*kept, *drive.truth_messages(6.0)])
    assert report.main([str(bag)]) == 0
    assert 'where the map lies is not known' in (tmp_path / 'run_report/index.html').read_text()


def test_the_controls_beside_a_recording_are_shown_only_if_they_are_of_it(bags, run, tmp_path):
    comparison = compare_with_truth(run)
    comparison.rows['image_blind'] = comparison.rows['before_match']
    comparison.outcomes['image_blind'] = comparison.outcomes['refined']
    (tmp_path / 'summary.json').write_text(json.dumps({'world_seed': 9001}))
    pose_metrics.write_comparison(tmp_path / 'frames.csv', comparison)
    beside = find_demo(tmp_path / 'run', run.poses)
    assert beside.summary['world_seed'] == 9001
    assert 'image blind' in [row[0] for row in results_table(beside.comparison).rows]
    other = Track(run.poses.stamps_ns, run.poses.poses + 0.1, run.poses.covariances)
    assert find_demo(tmp_path / 'run', other) is None
    assert find_demo(bags['run'], run.poses) is None


def test_the_tables_name_outcomes_as_the_node_does(run):
    outcomes, states = outcome_tables(run)
    rows = {row[0]: row[1:] for row in outcomes.rows}
    assert rows['used'] == ('74', '92.5%', 'used', 'USED at 79')
    assert rows['distrusted'] == (
        '2', '2.5%', 'images do not fit the map here', 'DISTRUSTED at 21')
    assert rows['gated'][:3] == ('1', '1.2%', 'refused by the gate')
    assert rows['ambiguous'][0] == '3' and 'not reported' not in rows
    assert states.rows == [('trusted', '78', '97.5%'), ('distrusted', '2', '2.5%')]


def test_text_is_escaped_and_tables_scroll():
    text = render_page('<run>', 'a & b', '', [('1', '<m>')], [Section(
        'T', '<how>', tables=[Table(('', '<h>'), [('<r>', '<c>')])], folded=True)], ['<n>'])
    assert '<run>' not in text and '&lt;run&gt;' in text and 'a &amp; b' in text
    for name in ('m', 'how', 'h', 'r', 'c', 'n'):
        assert f'<{name}>' not in text and f'&lt;{name}&gt;' in text
    assert '<div class="scroll"><table>' in text and '<details>' in text


def test_what_cannot_be_reported_ends_with_one_line(bags, tmp_path, capsys):
    elsewhere = tmp_path / 'elsewhere.map'
    EmbeddingMap(
        LocalFrame(48.0, 11.0), MapGrid(1, 1, 3.0, 0.0, 0.0), torch.zeros(1, 1, dtype=torch.int64),
        torch.ones(1, 4, dtype=torch.float16), 'f', 72.0, 192).save(elsewhere)
    (tmp_path / 'empty').mkdir()
    cut = tmp_path / 'cut'
    shutil.copytree(bags['bare'], cut)
    [file] = cut.glob('*.mcap')
    file.write_bytes(b'not a recording')
    for arguments, expected in (
            ([tmp_path / 'nothing'], 'does not exist'),
            ([tmp_path / 'empty'], 'empty'),
            ([cut], 'cannot be read as a bag'),
            ([bags['input']], '/crossview_localizer/pose'),
            ([bags['bare'], '--node', '/other'], '/other/pose'),
            ([bags['bare'], '--map', tmp_path / 'no.map'], 'no.map'),
            ([bags['bare'], '--map', elsewhere], 'from that of the recording')):
        assert report.main([*map(str, arguments), '--out', str(tmp_path / 'out')]) == 2
        error = capsys.readouterr().err
        assert error.startswith('report: error: ') and error.count('\n') == 1
        assert expected in error
