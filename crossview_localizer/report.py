"""Any recorded run of the node as one HTML page with its pictures.

The page says what was recorded: with ground truth errors, without it what the node claims of
itself.  Beside the outputs of ``make demo`` it also shows the demo's controls.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import json
import math
from pathlib import Path
import sys
import time

import cv2
import numpy as np
from tqdm import tqdm

from crossview_localizer.bags.recorded_run import (
    add_imagery_argument,
    add_run_arguments,
    frame_of,
    messages_stamped,
    NODE,
    read_run,
    RecordedRun,
    RunError,
    topics_of,
    USED,
)
from crossview_localizer.bags.topics import Topics
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.evaluation import pose_metrics, report_figures, report_page
from crossview_localizer.evaluation.pose_metrics import Frames
from crossview_localizer.evaluation.report_figures import COLOURS, Orthophoto, Shot
from crossview_localizer.evaluation.report_page import Section, Table
from crossview_localizer.geometry import LocalFrame, MapGrid
from crossview_localizer.ros import conversions
from crossview_localizer.trajectory import Track

PAGE = 'index.html'
WIDTHS_IN = {'': 10.5, '_narrow': 4.3}
HALF_IN = 6.0
DPI = {'': 110, '_narrow': 160}
SHOT_WIDTH_PX = 800
OUTAGE_S = 3.0
SAME_FRAME_M = 0.5
MOST_WARNINGS = 12

ROW_MEANINGS = {
    'refined': 'what the node published',
    'before_match': "the node's prior of each image: earlier matches, but not yet this one",
    'prior': 'the same filter without any match',
    'gnss_only': "the last fix, moved on for at most 1 s by the fixes' own velocity",
    'odometry_only': 'the odometry, started from the true pose',
    'image_blind': 'the node again, each image exchanged for one from elsewhere',
    'raw_correlation': 'plain correlation of the view with the orthophoto as the matcher',
    'random_init': 'the same network, untrained',
}


@dataclass(frozen=True)
class Background:
    """Where ``map`` lies and what is seen there; ``orthophoto`` is None where nothing is."""

    frame: LocalFrame | None
    orthophoto: Orthophoto | None
    attribution: tuple[str, ...] = ()


@dataclass(frozen=True)
class Demo:
    """What the demo knows beside its recording."""

    summary: dict
    frames: Frames


# --- what lies beside the recording


def background(
    bag: Path, map_path: Path | None, imagery: Sequence[Path], recorded_map: str, node: str,
) -> tuple[Background, list[str]]:
    """The orthophoto of GeoTIFFs, of a map that is named, or of the one that the node named.

    ``recorded_map`` is the path in /diagnostics; that map is left out, with a note, where it is
    gone or of another place.  Raises RunError where a map that was asked for is of another place.
    """
    frame, notes = frame_of(bag, node), []
    asked = map_path is not None
    if not asked and recorded_map and Path(recorded_map).is_file():
        map_path = Path(recorded_map)
    found = Background(frame, None)
    if map_path is not None:
        from crossview_localizer.maps.embedding_map import EmbeddingMap

        try:
            embedding_map = EmbeddingMap.open(map_path)
            _require_same_place(map_path, embedding_map.frame, frame)
        except (ValueError, OSError) as error:
            if asked:
                raise
            notes.append(f'the map that the node used is not shown: {error}')
        else:
            picture = embedding_map.orthophoto()
            found = Background(
                embedding_map.frame, picture and drawn_from(*picture), embedding_map.attribution)
    elif recorded_map:
        notes.append(f'the map {recorded_map} is not here: no orthophoto (give it with --map)')
    if imagery:
        if found.frame is None:
            raise RunError('the recording has no geopose: give --map to place the imagery')
        from crossview_localizer.maps.imagery import Imagery

        opened = Imagery.open(list(imagery), found.frame)
        found = Background(
            found.frame, lambda grid: opened.raster(grid)[0], opened.attribution)
    return found, notes


def _require_same_place(path: Path, of_map: LocalFrame, of_run: LocalFrame | None) -> None:
    if of_run is None:
        return
    apart_m = math.hypot(*of_map.xy_from_latlon(of_run.latitude_deg, of_run.longitude_deg))
    if not apart_m < SAME_FRAME_M:
        raise RunError(
            f'{path} has its origin {apart_m:.0f} m from that of the recording; expected the map '
            'that the node used')


def drawn_from(rgb: np.ndarray, grid: MapGrid) -> Orthophoto:
    """A picture (rows, cols, 3) with its grid as a function that redraws it on another grid."""

    def draw(wanted: MapGrid) -> np.ndarray:
        # Shrunk first where the wanted cells are coarser: no pixel is skipped.
        factor = max(1.0, wanted.cell_m / grid.cell_m)
        size = max(1, round(grid.cols / factor)), max(1, round(grid.rows / factor))
        source = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        x_m, y_m = wanted.cell_centres()
        rows, _ = grid.row_col_from_xy(0.0, y_m)
        _, cols = grid.row_col_from_xy(x_m, 0.0)
        # Outer edges stay where they are: the centre of cell i is at (i + 0.5) / factor - 0.5.
        rows = (rows + 0.5) * size[1] / grid.rows - 0.5
        cols = (cols + 0.5) * size[0] / grid.cols - 0.5
        map_cols, map_rows = np.meshgrid(cols.astype(np.float32), rows.astype(np.float32))
        return cv2.remap(source, map_cols, map_rows, cv2.INTER_LINEAR,
                         borderMode=cv2.BORDER_CONSTANT, borderValue=(225, 225, 225))

    return draw


def demo_beside(bag: Path, poses: Track) -> Demo | None:
    """summary.json and frames.csv in the recording's folder, where they are of this recording."""
    summary, csv = bag.parent / 'summary.json', bag.parent / 'frames.csv'
    if not (summary.is_file() and csv.is_file()):
        return None
    try:
        found = Demo(
            json.loads(summary.read_text(encoding='utf-8')), pose_metrics.read_frames(csv))
    except (ValueError, KeyError):
        return None
    refined = found.frames.rows.get('refined', Track.empty([]))
    own = report_figures.aligned(refined, poses.stamps_ns)
    known = np.isfinite(own.poses[:, 0])
    same = np.allclose(own.poses[known], poses.poses[known], rtol=0.0, atol=1e-6)
    return found if known.any() and same else None


# --- judging


def judge(run: RecordedRun) -> Frames:
    """The published poses against the truth, where there is any: lines are the poses' stamps."""
    stamps_ns = run.poses.stamps_ns
    truth = Track.empty(stamps_ns)
    if len(run.truth):
        truth = run.truth.at(stamps_ns, pose_metrics.TRUTH_MAX_GAP_S)
    settled = (stamps_ns - run.start_ns) * 1e-9 > pose_metrics.SETTLING_S
    evaluated = settled & np.isfinite(truth.poses).all(axis=1)
    rows = {'refined': run.poses}
    if len(run.priors):
        rows['before_match'] = report_figures.aligned(run.priors, stamps_ns)
    if run.fixes and evaluated.any():
        rows['gnss_only'] = pose_metrics.gnss_only(run.fixes, stamps_ns)
    outcomes = {name: [''] * len(stamps_ns) for name in rows}
    outcomes['refined'] = run.outcomes().tolist()
    return Frames(truth, evaluated, rows, outcomes)


def innovations(run: RecordedRun) -> np.ndarray:
    """Squared Mahalanobis lengths (m,) of match minus prior, under both covariances, over (x, y).

    Chi-square with two degrees of freedom where both are honest and independent.
    """
    priors = report_figures.aligned(run.priors, run.matches.stamps_ns)
    difference_m = run.matches.poses[:, :2] - priors.poses[:, :2]
    covariance = run.matches.covariances[:, :2, :2] + priors.covariances[:, :2, :2]
    squared = pose_metrics.normalized_errors(difference_m, covariance)
    return squared[np.isfinite(squared)]


def outages(fixes_ns: np.ndarray, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """Gaps of the fixes that are longer than three seconds, as the receiver sees them."""
    ends_ns = np.unique(np.concatenate((np.asarray(fixes_ns, np.int64), [start_ns, end_ns])))
    ends_ns = ends_ns[(ends_ns >= start_ns) & (ends_ns <= end_ns)]
    return [(int(begin), int(end)) for begin, end in zip(ends_ns, ends_ns[1:])
            if end - begin > OUTAGE_S * 1e9]


# --- single frames


def choose_frames(run: RecordedRun, frames: Frames) -> dict[str, int]:
    """The stamps of the heat maps whose peak is nearest to the truth, in the middle, and farthest.

    Without truth: nearest to and farthest from the prior.  Empty where there is no heat map.
    """
    reference = _reference(run, frames)
    distance_m = np.hypot(*(run.peaks_m - reference.poses[:, :2]).T)
    order = np.argsort(distance_m)                       # NaN last
    order = order[:np.isfinite(distance_m).sum()]
    if not len(order):
        return {}
    labels = ('Best', 'Median', 'Worst') if frames.evaluated.any() else (
        'Nearest', 'Median', 'Farthest')
    rows = (order[0], order[len(order) // 2], order[-1])
    return {label: int(run.heatmap_ns[row]) for label, row in zip(labels, rows)}


def _reference(run: RecordedRun, frames: Frames) -> Track:
    """What the peaks are held against, a line a heat map: the truth, else the prior."""
    if not frames.evaluated.any():
        return report_figures.aligned(run.priors, run.heatmap_ns)
    used = frames.evaluated
    return report_figures.aligned(
        Track(frames.truth.stamps_ns[used], frames.truth.poses[used],
              frames.truth.covariances[used]), run.heatmap_ns)


def read_shots(
    run: RecordedRun, frames: Frames, stamps_ns: dict[str, int], bag: Path, image_bag: Path,
    topics: Topics, node: str,
) -> list[Shot]:
    """These frames of a recording, by label, with their heat maps and pictures."""
    grids = messages_stamped(bag, f'{node}/heatmap', stamps_ns.values())
    pictures = messages_stamped(image_bag, topics.image, stamps_ns.values())
    reference, judged = _reference(run, frames), bool(frames.evaluated.any())
    shots = []
    for label, stamp_ns in stamps_ns.items():
        row = int(np.searchsorted(run.heatmap_ns, stamp_ns))
        grid = grids[stamp_ns]
        percent = np.asarray(grid.data, float).reshape(grid.info.height, grid.info.width)
        percent[percent < 0] = np.nan
        west, south = grid.info.origin.position.x, grid.info.origin.position.y
        extent_m = (west, west + grid.info.width * grid.info.resolution,
                    south, south + grid.info.height * grid.info.resolution)
        apart_m = np.hypot(*(run.peaks_m[row] - reference.poses[row, :2]))
        known = judged and np.isfinite(reference.poses[row]).all()
        shots.append(Shot(
            label, stamp_ns, picture_rgb(pictures.get(stamp_ns)), percent, extent_m,
            run.peaks_m[row], float(apart_m), reference.pose(row) if known else None,
            *(_estimate(track, stamp_ns) for track in (run.priors, run.matches, run.poses))))
    return shots


def _estimate(track: Track, stamp_ns: int) -> PoseEstimate | None:
    row = int(np.searchsorted(track.stamps_ns, stamp_ns))
    if row == len(track) or track.stamps_ns[row] != stamp_ns:
        return None
    return PoseEstimate(stamp_ns, track.pose(row), track.covariances[row])


def picture_rgb(msg) -> np.ndarray | None:
    """A recorded image, not rectified, small enough for a page; None where it cannot be shown."""
    if msg is None:
        return None
    try:
        rgb = conversions.rgb_from_msg(msg)
    except ValueError:
        return None
    height_px = round(rgb.shape[0] * SHOT_WIDTH_PX / rgb.shape[1])
    if rgb.shape[1] <= SHOT_WIDTH_PX:
        return rgb
    return cv2.resize(rgb, (SHOT_WIDTH_PX, height_px), interpolation=cv2.INTER_AREA)


# --- the page


def write_report(
    out: Path, bag: Path, *, input_bag: Path | None = None, map_path: Path | None = None,
    imagery: Sequence[Path] = (), demo: Demo | None = None, topics: Topics | None = None,
    node: str = NODE, progress: bool = False,
) -> Path:
    """Read a recording, draw all of it into ``out`` and return the path of its page.

    ``demo`` is what stands beside the recording where it is not given.  Raises ValueError or
    OSError with what was found and expected.
    """
    topics = topics or Topics()
    run = read_run(bag, input_bag, topics=topics, node=node, progress=progress)
    recorded_map = run.diagnostics.values.get('map', {}).get('map_path', '')
    ground, notes = background(bag, map_path, imagery, recorded_map, node)
    demo = demo or demo_beside(bag, run.poses)
    own = judge(run)
    frames = demo.frames if demo else own
    judged = bool(frames.evaluated.any())
    fixes_ns = np.array([fix.stamp_ns for fix in run.fixes], np.int64)
    end_ns = int(run.poses.stamps_ns[-1])
    gaps_ns = outages(fixes_ns, run.start_ns, end_ns) if len(fixes_ns) else []
    shots = read_shots(run, own, choose_frames(run, own), bag, input_bag or bag, topics, node)
    calibrated = calibration_series(run, frames)

    out.mkdir(parents=True, exist_ok=True)
    # Trajectory and timeline are there in any case.
    count = 2 + (3 if judged else len(run.poses) > 1) + sum(
        map(bool, (calibrated, shots, len(run.latency_ms))))
    draw = _Pictures(out, count, progress)
    sections = [_trajectory(draw, run, frames, ground, gaps_ns)]
    if judged:
        sections += _judged_sections(draw, frames, gaps_ns)
    elif len(run.poses) > 1:
        sections.append(Section(
            'Claimed 95 % bounds, and the matches',
            'No ground truth was recorded, so errors are not known. The band is the 95 % that the '
            'filter claims of its pose; a dot is where the match of one image lay from that pose.'
            + _outage_words(gaps_ns),
            *draw('claims', report_figures.claims_over_time, run.poses, run.matches, gaps_ns)))
    if calibrated:
        sections.append(Section(
            'Calibration', 'On the dashed line a claimed share p of the errors lies inside the '
            'ellipsoid of p. Above it the covariance is too wide, below it too narrow. '
            + ('' if judged else 'Without ground truth only the distance between match and prior '
               'can be held against what both claim; both may err alike.'),
            *draw('calibration', report_figures.calibration, calibrated, half=True), half=True))
    if shots:
        alone = all(shot.rgb is None for shot in shots)
        reference = 'truth' if shots[0].truth else 'prior'
        sections.append(Section(
            'Heat maps of single frames',
            'Where one image alone puts the vehicle, brighter is more likely: the frames whose '
            f'peak is nearest to the {reference}, in the middle, and farthest from it. First the '
            'whole search window, then the white square about its peak; metres, north is up. The '
            'match is what the heat map says of the neighbourhood of the prior, so that a peak '
            'far from it need not carry the match away.'
            + (' The arrow is the true heading.' if shots[0].truth else ''),
            *draw('heatmaps', report_figures.heatmaps, shots, ground.orthophoto, half=alone),
            half=alone))
    sections.append(Section(
        'Inputs, gate and diagnostics over time',
        'Poses by what became of their match, GNSS fixes, how old the newest message of each '
        'input was, what was refused or dropped, and the state of each part in /diagnostics.',
        *draw('timeline', report_figures.timeline, run.poses, run.outcomes(), fixes_ns,
              run.diagnostics, run.start_ns, end_ns),
        tables=[_outcomes_table(run)]))
    if run.diagnostics.warnings:
        sections.append(Section(
            'What /diagnostics warned of', 'Once a second while it lasted, the start included.',
            tables=[_warnings_table(run)], folded=True))
    if len(run.latency_ms):
        sections.append(Section(
            'Latency', 'From the callback of an image to its published pose.',
            *draw('latency', report_figures.latency, run.latency_ns, run.latency_ms,
                  run.start_ns)))
    summary = demo.summary if demo else {}
    if 'seconds' in summary:
        rows = [(name, f'{seconds:.1f}') for name, seconds in summary['seconds'].items()]
        sections.append(Section(
            'Seconds that each stage of the demo took', '',
            tables=[Table(('stage', 's'), rows)], folded=True))

    sources = ', '.join(ground.attribution)
    page = out / PAGE
    text = report_page.page(
        f'Recorded run: {bag.resolve().name}', _lead(run, bag), _banner(summary),
        _figures(run, frames), sections,
        [*summary.get('notes', ()), *run.notes, *notes,
         *([f'Imagery: {sources}.'] if sources and ground.orthophoto else [])])
    partial = page.with_name(page.name + '.partial')
    partial.write_text(text, encoding='utf-8')
    partial.replace(page)
    return page


class _Pictures:
    """Draws a picture for wide and for narrow screens and says where both are."""

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
            with plt.rc_context(report_figures.STYLE):
                figure = function(*arguments, width_in=width_in)
                paths.append(self._folder / f'{name}{suffix}.png')
                figure.savefig(paths[-1], dpi=DPI[suffix])
                plt.close(figure)
        self._bar.update()
        if self._bar.n == self._bar.total:
            self._bar.close()
        return tuple(paths)


def _outage_words(gaps_ns: list) -> str:
    return ' Red: no GNSS for more than three seconds.' if gaps_ns else ''


def _trajectory(draw, run: RecordedRun, frames: Frames, ground: Background, gaps_ns) -> Section:
    judged = bool(frames.evaluated.any())
    track = frames.rows['refined']
    if judged:
        values = pose_metrics.pose_errors(track, frames.truth)['position_m']
        label, how = 'position error [m]', 'The published pose, coloured by its error.'
    else:
        values = report_figures.long_axis_m(track.covariances)
        label = '95 % radius claimed [m]'
        how = 'The published pose, coloured by the longer half axis of its 95 % ellipse.'
    if ground.orthophoto is None:
        how += ' No map or imagery was found, so nothing lies below it.'
    fixes_xy_m = np.array([(fix.x_m, fix.y_m) for fix in run.fixes]).reshape(-1, 2)
    return Section('Trajectory', how, *draw(
        'trajectory', report_figures.trajectory, track, values, label, frames.truth, fixes_xy_m,
        gaps_ns, ground.orthophoto))


def _judged_sections(draw, frames: Frames, gaps_ns) -> list[Section]:
    return [
        Section('Results', 'Position of base_link against the ground truth at every image after '
                f'the first {pose_metrics.SETTLING_S:g} s, outages of GNSS included; lateral, '
                'longitudinal and heading are medians of absolute errors. Coverage is the share '
                'of poses inside their claimed 95 % ellipsoid; NEES, the mean squared Mahalanobis '
                'error, is ideal at 3 (gnss only: 2).',
                tables=[results_table(frames), Table(
                    ('row', 'is'),
                    [(_words(name), ROW_MEANINGS.get(name, ''))
                     for name in _row_order(frames.rows)],
                    text_columns=frozenset({1}))]),
        Section('Errors over time',
                'Above: distance from the truth. Below: the signed error of the published pose '
                'in the 95 % that the filter claims (band).' + _outage_words(gaps_ns),
                *draw('errors', report_figures.errors_over_time, frames, gaps_ns)),
        Section('Errors across, along and in heading',
                'Longitudinal is positive ahead of the true vehicle, lateral to its left; the '
                'outermost bins hold what lies beyond. The published pose alone once more on a '
                'scale of its own.',
                *draw('histograms', report_figures.histograms, frames)),
        Section('Share of images below an error', 'Logarithmic: each grid line to the right is '
                'a larger error.',
                *draw('distribution', report_figures.distribution, frames)),
    ]


def results_table(frames: Frames) -> Table:
    """The metrics of every row."""
    heads = ('', 'median m', 'mean m', 'p95 m', 'lateral m', 'longit. m', 'heading deg',
             'cover 95 %', 'NEES', 'n / of')
    rows, colours = [], []
    metrics = pose_metrics.evaluate(frames)
    for name in _row_order(metrics):
        found = metrics[name]
        numbers = ['–' if found[key] is None else f'{found[key]:.2f}'
                   for key in pose_metrics.METRICS[:8]]
        rows.append((_words(name), *numbers, f'{found["n"]} / {found["n_expected"]}'))
        colours.append(COLOURS.get(name, ''))
    return Table(heads, rows, colours)


def _row_order(names) -> list[str]:
    """What the run is judged by first, then what it is held against."""
    known = list(ROW_MEANINGS)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def _words(name: str) -> str:
    return name.replace('_', ' ')


def calibration_series(run: RecordedRun, frames: Frames) -> dict[str, tuple[np.ndarray, int]]:
    """Label to squared Mahalanobis lengths and their degrees of freedom; see ``calibration``."""
    series = {}
    for name in ('refined', 'before_match'):
        if name in frames.rows and frames.evaluated.any():
            errors = pose_metrics.pose_errors(frames.rows[name], frames.truth)
            nees = errors['nees'][frames.evaluated]
            series[_words(name)] = nees[~np.isnan(nees)], errors['dof']
    if len(run.matches) and len(run.priors):
        series['match minus prior'] = innovations(run), 2
    return {name: (values, dof) for name, (values, dof) in series.items() if len(values)}


def _outcomes_table(run: RecordedRun) -> Table:
    outcomes = Counter(run.outcomes().tolist())
    silent = run.image_count - len(run.poses)
    if silent > 0:
        outcomes['no pose: before the start, or dropped'] = silent
    images = outcomes.total()
    rows = [(name, str(count), f'{count / images:.1%}') for name, count in outcomes.most_common()]
    return Table(('what became of an image', 'images', 'share'), rows)


def _warnings_table(run: RecordedRun) -> Table:
    rows = [(part, str(count), text, remedy)
            for part, text, remedy, count in run.diagnostics.warnings[:MOST_WARNINGS]]
    head = ('part', 'times', 'last text', 'what to do')
    if not any(remedy for *_, remedy in rows):
        head, rows = head[:3], [row[:3] for row in rows]
    return Table(head, rows, text_columns=frozenset({2, 3}))


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


def _figures(run: RecordedRun, frames: Frames) -> list[tuple[str, str]]:
    """The numbers at the top of the page."""
    found = pose_metrics.metrics(frames.rows['refined'], frames.truth, frames.evaluated)
    cards = []
    if found['n']:
        cards += [(f'{found["median_m"]:.2f} m', 'median position error'),
                  (f'{found["p95_m"]:.2f} m', '95 % of the errors are below')]
        if found['coverage_95'] is not None:
            cards.append((f'{found["coverage_95"]:.1%}', 'inside the claimed 95 % ellipsoid'))
    radius_m = report_figures.long_axis_m(run.poses.covariances)
    cards.append((f'{np.nanmedian(radius_m):.2f} m', 'median 95 % radius claimed'))
    outcomes = run.outcomes().tolist()
    cards.append((f'{outcomes.count(USED) / len(outcomes):.1%}',
                  'of the poses used their match'))
    if run.image_count:
        cards.append((f'{min(1.0, len(run.poses) / run.image_count):.1%}',
                      f'of {run.image_count} images gave a pose'))
    if len(run.latency_ms):
        shares = pose_metrics.percentiles(run.latency_ms)
        cards.append((f'{shares["p50"]:.0f} / {shares["p95"]:.0f} / {shares["p99"]:.0f}',
                      'ms latency, p50 / p95 / p99'))
    return cards


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='report', formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog='examples:\n'
        '  ros2 run crossview_localizer report run1 --input-bag drive\n'
        '  ros2 run crossview_localizer report demo/run --input-bag demo/bag --out report\n\n'
        'Open index.html in the folder --out with any browser; it needs no other file.')
    add_run_arguments(parser, ('image', 'gnss', 'truth'))
    add_imagery_argument(parser)
    parser.add_argument(
        '--out', type=Path, metavar='DIR', help='folder to write to (default: BAG_report)')
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    out = arguments.out or arguments.bag.with_name(arguments.bag.resolve().name + '_report')
    try:
        page = write_report(
            out, arguments.bag, input_bag=arguments.input_bag, map_path=arguments.map,
            imagery=arguments.imagery, topics=topics_of(arguments),
            node=arguments.node.rstrip('/'), progress=True)
    except (ValueError, OSError) as error:
        print(f'report: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('report: interrupted', file=sys.stderr)
        return 130
    print(f'report: {page}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
