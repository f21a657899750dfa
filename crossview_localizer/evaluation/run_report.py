"""The report of a recorded run: one HTML page and its pictures."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import time

import numpy as np
from tqdm import tqdm

from crossview_localizer.bags.recorded_run import NODE, read_run, RecordedRun
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import MatchErrors, Outcome
from crossview_localizer.evaluation import (
    figure_style,
    heatmap_figures,
    pose_figures,
    pose_metrics,
    timeline_figures,
)
from crossview_localizer.evaluation.background import Background, find_background
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.evaluation.report_page import render_page, Section, Table
from crossview_localizer.evaluation.run_metrics import (
    calibration_series,
    compare_with_truth,
    outages,
    smooth_run,
    with_row,
)
from crossview_localizer.evaluation.shots import choose_typical, read_shots
from crossview_localizer.files import write_atomically
from crossview_localizer.trajectory import Track

PAGE = 'index.html'
WIDTHS_IN = {'': 10.5, '_narrow': 4.3}
HALF_IN = 6.0
DPI = {'': 110, '_narrow': 160}
MOST_WARNINGS = 12

ROW_MEANINGS = {
    'refined': 'what the node published',
    'smoothed': 'the best trajectory afterwards: each pose from the measurements before and after'
    ' it',
    'before_match': "the node's prior of each image: with the earlier matches, but not this one",
    'prior': 'the same filter without any match',
    'gnss_only': 'the last fix, moved on for at most 1 s by the velocity of the fixes',
    'odometry_only': 'the odometry, started from the true pose',
    'image_blind': 'the node again, each image replaced by one from another place',
    'raw_correlation': 'plain correlation of the view with the orthophoto as the matcher',
    'random_init': 'the same network, untrained',
}
OUTCOME_MEANINGS = {outcome.name.lower(): outcome.value for outcome in Outcome}


@dataclass(frozen=True)
class Demo:
    """The results of the demo that its recording does not contain."""

    summary: dict
    comparison: Comparison


def find_demo(bag: Path, poses: Track) -> Demo | None:
    """Read summary.json and frames.csv beside a recording; None if they do not belong to it."""
    summary, csv = bag.parent / 'summary.json', bag.parent / 'frames.csv'
    if not (summary.is_file() and csv.is_file()):
        return None
    try:
        demo = Demo(
            json.loads(summary.read_text(encoding='utf-8')), pose_metrics.read_comparison(csv))
    except (ValueError, KeyError):
        return None
    refined = demo.comparison.rows.get('refined', Track.empty([])).aligned(poses.stamps_ns)
    known = np.isfinite(refined.poses[:, 0])
    same = np.allclose(refined.poses[known], poses.poses[known], rtol=0.0, atol=1e-6)
    return demo if known.any() and same else None


def write_report(
    out: Path, bag: Path, *, input_bag: Path | None = None, map_path: Path | None = None,
    imagery: Sequence[Path] = (), demo: Demo | None = None, topics: Topics | None = None,
    node: str = NODE, config: FilterConfig | None = None, progress: bool = False,
) -> Path:
    """Read a recording, draw its report into ``out`` and return the path of the page.

    Without ``demo`` its files are looked for beside the recording.  ``config`` is the node's, for
    the smoothed trajectory.  Raises ValueError or OSError with what was found and expected.
    """
    topics = topics or Topics()
    run = read_run(bag, input_bag, topics=topics, node=node, progress=progress)
    recorded_map = run.diagnostics.values.get('map', {}).get('map_path', '')
    ground, notes = find_background(run.frame, map_path, imagery, recorded_map)
    demo = demo or find_demo(bag, run.poses)
    run_comparison = compare_with_truth(run)
    comparison = demo.comparison if demo else run_comparison
    smoothed = smooth_run(run, config or FilterConfig(), _match_errors(run), np.union1d(
        run_comparison.truth.stamps_ns, comparison.truth.stamps_ns))
    if np.isfinite(smoothed.poses).any() and 'smoothed' not in comparison.rows:
        comparison = with_row(
            comparison, 'smoothed', smoothed.aligned(comparison.truth.stamps_ns))
    has_truth = bool(comparison.evaluated.any())
    fixes_ns = np.array([fix.stamp_ns for fix in run.fixes], np.int64)
    end_ns = int(run.poses.stamps_ns[-1])
    gaps_ns = outages(fixes_ns, run.start_ns, end_ns) if len(fixes_ns) else []
    shots = read_shots(
        run, run_comparison, choose_typical(run, run_comparison), bag, input_bag or bag, topics,
        node)
    calibrations = calibration_series(run, comparison)

    out.mkdir(parents=True, exist_ok=True)
    # The number of pictures, for the progress bar; trajectory and timeline are always drawn.
    count = 2 + (3 if has_truth else len(run.poses) > 1) + sum(
        map(bool, (calibrations, shots, len(run.latency_ms))))
    draw = _PictureWriter(out, count, progress)
    sections = [_trajectory_section(draw, run, comparison, ground, gaps_ns, smoothed)]
    if has_truth:
        sections += _error_sections(draw, comparison, gaps_ns)
    elif len(run.poses) > 1:
        sections.append(Section(
            'Claimed 95 % bounds, and the matches',
            'No ground truth was recorded, so the errors are not known. The band shows the 95 % '
            'bounds that the filter claims for its pose. Each dot is the match of one image minus '
            'that pose.' + _outage_words(gaps_ns),
            *draw('claims', pose_figures.draw_claims, run.poses, run.matches, gaps_ns)))
    if calibrations:
        sections.append(Section(
            'Calibration', 'On the dashed line, the ellipsoid that claims a share p of the errors '
            'contains just that share. Above the line the covariance is too wide, below it too '
            'narrow. '
            + ('' if has_truth else 'Without ground truth only the distance between match and '
               'prior can be compared with their covariances; errors that both have in common do '
               'not show.'),
            *draw('calibration', pose_figures.draw_calibration, calibrations, half=True),
            half=True))
    if shots:
        sections.append(_heatmap_section(draw, shots, ground))
    sections.append(Section(
        'Inputs, outcomes and diagnostics over time',
        'The poses by the outcome of their image, the GNSS fixes, the age of the newest message '
        'of each input, what was refused or dropped, and the state of each part in /diagnostics.',
        *draw('timeline', timeline_figures.draw_timeline, run.poses, run.outcomes(), fixes_ns,
              run.diagnostics, run.start_ns, end_ns),
        tables=outcome_tables(run)))
    if run.diagnostics.warnings:
        sections.append(Section(
            'Warnings in /diagnostics', 'Each is counted once a second while it lasted, the start '
            'included.',
            tables=[_warnings_table(run)], folded=True))
    if len(run.latency_ms):
        sections.append(Section(
            'Latency', 'The time from the callback of an image to its published pose.',
            *draw('latency', timeline_figures.draw_latency, run.latency_ns, run.latency_ms,
                  run.start_ns)))
    summary = demo.summary if demo else {}
    if 'seconds' in summary:
        rows = [(name, f'{seconds:.1f}') for name, seconds in summary['seconds'].items()]
        sections.append(Section(
            'Seconds that each stage of the demo took', '',
            tables=[Table(('stage', 's'), rows)], folded=True))

    sources = ', '.join(ground.attribution)
    text = render_page(
        f'Recorded run: {bag.resolve().name}', _lead(run, bag), _banner(summary),
        _figures(run, comparison), sections,
        [*summary.get('notes', ()), *run.notes, *notes,
         *([f'Imagery: {sources}.'] if sources and ground.orthophoto else [])])
    with write_atomically(out / PAGE) as partial:
        partial.write_text(text, encoding='utf-8')
    return out / PAGE


def _match_errors(run: RecordedRun) -> MatchErrors | None:
    """The match errors of the weights that /diagnostics names, where the file is there."""
    weights = run.diagnostics.values.get('map', {}).get('weights', '')
    if not weights:
        return None
    from crossview_localizer.networks.checkpoint import read_model_config

    try:
        return read_model_config(weights)[0].match_errors
    except (ValueError, OSError):
        return None


class _PictureWriter:
    """Draws a picture for wide and for narrow screens; returns the paths of both files."""

    def __init__(self, folder: Path, count: int, progress: bool):
        self._folder = folder
        self._bar = tqdm(
            desc='draw', unit='picture', total=count, disable=None if progress else True)

    def __call__(
        self, name: str, function: Callable, *arguments, half: bool = False,
    ) -> tuple[Path, Path]:
        import matplotlib.pyplot as plt

        paths = []
        for suffix, width_in in WIDTHS_IN.items():
            if half:
                width_in = min(width_in, HALF_IN)
            with plt.rc_context(figure_style.STYLE):
                figure = function(*arguments, width_in=width_in)
                paths.append(self._folder / f'{name}{suffix}.png')
                figure.savefig(paths[-1], dpi=DPI[suffix])
                plt.close(figure)
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.close()
        return tuple(paths)


# --- the sections


def _outage_words(gaps_ns: list) -> str:
    return ' Red: no GNSS for more than three seconds.' if gaps_ns else ''


def _trajectory_section(draw, run: RecordedRun, comparison: Comparison, ground: Background,
                        gaps_ns, smoothed: Track) -> Section:
    track = comparison.rows['refined']
    if comparison.evaluated.any():
        values = pose_metrics.pose_errors(track, comparison.truth)['position_m']
        label, how = 'position error [m]', 'The published pose, coloured by its error.'
    else:
        values = figure_style.long_axis_m(track.covariances)
        label = '95 % radius claimed [m]'
        how = 'The published pose, coloured by the longer half axis of its 95 % ellipse.'
    if ground.orthophoto is None:
        how += ' No map or imagery was found for the background.'
    radius_m = figure_style.long_axis_m(smoothed.covariances)
    if np.isfinite(radius_m).any():
        how += (' Dashed: the smoothed trajectory, where each pose uses the measurements before '
                'and after it; its 95 % radius is '
                f'{np.nanmedian(radius_m):.2f} m in the median.')
    fixes_xy_m = np.array([(fix.x_m, fix.y_m) for fix in run.fixes]).reshape(-1, 2)
    return Section('Trajectory', how, *draw(
        'trajectory', pose_figures.draw_trajectory, track, values, label, comparison.truth,
        fixes_xy_m, smoothed.poses[:, :2], gaps_ns, ground.orthophoto))


def _error_sections(draw, comparison: Comparison, gaps_ns) -> list[Section]:
    return [
        Section('Results', 'Position of base_link against the ground truth at every image after '
                f'the first {pose_metrics.SETTLING_S:g} s, outages of GNSS included. Lateral, '
                'longitudinal and heading are medians of absolute errors. Coverage is the share '
                'of errors inside the claimed 95 % ellipsoid. NEES is the mean squared '
                'Mahalanobis error; it is ideal at 3 (gnss only: 2).',
                tables=[results_table(comparison), Table(
                    ('row', 'is'),
                    [(name.replace('_', ' '), ROW_MEANINGS.get(name, ''))
                     for name in _row_order(comparison.rows)],
                    text_columns=frozenset({1}))]),
        Section('Errors over time',
                'Above: distance from the truth. Below: the signed error of the published pose, '
                'and the 95 % bounds that the filter claims (band).' + _outage_words(gaps_ns),
                *draw('errors', pose_figures.draw_errors, comparison, gaps_ns)),
        Section('Errors across, along and in heading',
                'Longitudinal is positive ahead of the true vehicle, lateral to its left. The '
                'outermost bins include all larger errors. The second line shows the published '
                'pose alone, on its own scale.',
                *draw('histograms', pose_figures.draw_histograms, comparison)),
        Section('Share of images below an error', 'The error has a logarithmic scale.',
                *draw('distribution', pose_figures.draw_distribution, comparison)),
    ]


def results_table(comparison: Comparison) -> Table:
    """The metrics of every row."""
    heads = ('', 'median m', 'mean m', 'p95 m', 'lateral m', 'longit. m', 'heading deg',
             'cover 95 %', 'NEES', 'n / of')
    rows, colours = [], []
    metrics = pose_metrics.metrics_by_row(comparison)
    for name in _row_order(metrics):
        values = metrics[name]
        numbers = ['–' if values[key] is None else f'{values[key]:.2f}'
                   for key in pose_metrics.METRICS[:8]]
        rows.append((name.replace('_', ' '), *numbers, f'{values["n"]} / {values["n_expected"]}'))
        colours.append(figure_style.COLOURS.get(name, ''))
    return Table(heads, rows, colours)


def _row_order(names) -> list[str]:
    """Sort rows in the order of ROW_MEANINGS: the published pose first, then the others."""
    known = list(ROW_MEANINGS)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def _heatmap_section(draw, shots: list, ground: Background) -> Section:
    without_images = all(shot.rgb is None for shot in shots)
    reference = 'truth' if shots[0].truth else 'prior'
    return Section(
        'Heat maps of single frames',
        'The probability of the position from one image alone; brighter is more likely. These are '
        f'the frames whose peak has the smallest, the median and the largest distance from the '
        f'{reference}. First the whole search window, then the white square around its peak; '
        'metres, north is up. The match weighs the heat map by its distance from the prior: a '
        'peak far from the prior need not move the match there.'
        + (' The arrow is the true heading.' if shots[0].truth else ''),
        *draw('heatmaps', heatmap_figures.draw_heatmaps, shots, ground.orthophoto,
              half=without_images),
        half=without_images)


def outcome_tables(run: RecordedRun) -> list[Table]:
    """Count the outcomes of the images, and the states of the match supervisor.

    Without ``~/status`` in the recording there is one outcome: images that gave a pose.
    """
    statuses = run.statuses
    outcomes = Counter(status.outcome for status in statuses) if statuses else Counter(
        run.outcomes().tolist())
    last_reasons = {status.outcome: status.reason for status in statuses}
    rows = [(name.replace('_', ' '), count, OUTCOME_MEANINGS.get(name, ''), last_reasons.get(
        name, '')) for name, count in outcomes.most_common()]
    unreported = run.image_count - outcomes.total()
    if unreported > 0:
        rows.append(('not reported', unreported, 'dropped, or before the node was ready', ''))
    images = outcomes.total() + max(unreported, 0)
    tables = [Table(
        ('outcome of an image', 'images', 'share', 'meaning', 'last reason'),
        [(name, str(count), f'{count / images:.1%}', meaning, reason)
         for name, count, meaning, reason in rows], text_columns=frozenset({3, 4}))]
    if statuses:
        states = Counter(status.state for status in statuses)
        tables.append(Table(
            ('state of the match supervisor', 'images', 'share'),
            [(state, str(count), f'{count / len(statuses):.1%}')
             for state, count in states.most_common()]))
    return tables


def _warnings_table(run: RecordedRun) -> Table:
    rows = [(part, str(count), text, remedy)
            for part, text, remedy, count in run.diagnostics.warnings[:MOST_WARNINGS]]
    head = ('part', 'times', 'last text', 'what to do')
    if not any(remedy for *_, remedy in rows):
        head, rows = head[:3], [row[:3] for row in rows]
    return Table(head, rows, text_columns=frozenset({2, 3}))


# --- the top of the page


def _lead(run: RecordedRun, bag: Path) -> str:
    begin = time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(run.start_ns // 1_000_000_000))
    steps_m = np.hypot(*np.diff(run.poses.poses[:, :2], axis=0).T)
    length_m = float(steps_m.sum())
    length = f'{length_m / 1e3:.2f} km' if length_m >= 1000.0 else f'{length_m:.0f} m'
    return (f'{bag}: {begin} UTC, '
            f'{(run.poses.stamps_ns[-1] - run.start_ns) * 1e-9:.0f} s, {length}, '
            f'{len(run.poses)} poses.')


def _banner(summary: dict) -> str:
    if 'world_seed' not in summary:
        return ''
    return (f'Simulation: world seed {summary["world_seed"]}, matcher {summary["matcher"]}, '
            f'weights {summary["weights"]}. These numbers do not predict real imagery.')


def _figures(run: RecordedRun, comparison: Comparison) -> list[tuple[str, str]]:
    """(value, label) of the numbers at the top of the page."""
    metrics = pose_metrics.metrics(
        comparison.rows['refined'], comparison.truth, comparison.evaluated)
    cards = []
    if metrics['n']:
        cards += [(f'{metrics["median_m"]:.2f} m', 'median position error'),
                  (f'{metrics["p95_m"]:.2f} m', '95 % of the errors are below')]
        if metrics['coverage_95'] is not None:
            cards.append((f'{metrics["coverage_95"]:.1%}', 'inside the claimed 95 % ellipsoid'))
    radius_m = figure_style.long_axis_m(run.poses.covariances)
    cards.append((f'{np.nanmedian(radius_m):.2f} m', 'median 95 % radius claimed'))
    if run.statuses:
        used = np.mean([status.outcome == 'used' for status in run.statuses])
        cards.append((f'{used:.1%}', "of the processed images' matches were used"))
    if run.image_count:
        cards.append((f'{min(1.0, len(run.poses) / run.image_count):.1%}',
                      f'of {run.image_count} images gave a pose'))
    if len(run.latency_ms):
        shares = pose_metrics.percentiles(run.latency_ms)
        cards.append((f'{shares["p50"]:.0f} / {shares["p95"]:.0f} / {shares["p99"]:.0f}',
                      'ms latency, p50 / p95 / p99'))
    return cards
