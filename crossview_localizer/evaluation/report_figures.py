"""The pictures of a run report, each drawn for a page's width or for a narrow screen.

Every function takes ``width_in``, the width of the figure in inches, and lays itself out for it.
What is drawn is thinned to what a picture can show, so an hour costs as much as a minute.
"""

from collections.abc import Sequence
import math

import matplotlib

matplotlib.use('Agg')
from matplotlib import patheffects  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.colors import BoundaryNorm, ListedColormap  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Ellipse, Patch, Rectangle  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from scipy.stats import chi2  # noqa: E402

from crossview_localizer.bags.recorded_diagnostics import Diagnostics  # noqa: E402
from crossview_localizer.bags.recorded_run import UNKNOWN  # noqa: E402
from crossview_localizer.datatypes import PoseEstimate  # noqa: E402
from crossview_localizer.evaluation import pose_metrics  # noqa: E402
from crossview_localizer.evaluation.background import Orthophoto  # noqa: E402
from crossview_localizer.evaluation.pose_metrics import Comparison  # noqa: E402
from crossview_localizer.evaluation.shots import Shot  # noqa: E402
from crossview_localizer.geometry import body_axes_error, MapGrid, wrap_angle  # noqa: E402
from crossview_localizer.trajectory import Track  # noqa: E402

WIDE_IN = 10.5
STACK_BELOW_IN = 6.0        # narrower figures put their parts below each other
MOST_POINTS = 3000          # of a curve
TIME_BIN_S = 2.0             # of counts over time, longer where that would be too many bins
MOST_TIME_BINS = 150
UNOBSERVED_YAW_RAD2 = 1e3   # of a variance in a message
MARGIN_M = 30.0
JUMP_M = 50.0               # farther apart than this, points are not joined by a line
BACKDROP_PX = 1300
LEAST_ERROR_M = 0.02        # left end of a logarithmic scale
ZOOM_HALF_M = 4.0           # of the heat map about its peak
NS = 1e-9

# Colours that stay apart in print and for colour-blind readers (Okabe and Ito).
COLOURS = {
    'truth': '#000000', 'gnss_only': '#e69f00', 'odometry_only': '#7f7f7f', 'prior': '#0072b2',
    'before_match': '#0072b2', 'image_blind': '#cc79a7', 'refined': '#009e73',
    'raw_correlation': '#56b4e9', 'random_init': '#d55e00',
}
# Outcomes of images by the name of the group that the timeline shows; the rest is "no match".
NO_MATCH = 'no match'
OUTCOME_GROUPS = {
    'used': 'match used', 'gated': 'match refused by the gate',
    'distrusted': 'matches not trusted', UNKNOWN: 'not recorded',
}
GROUP_COLOURS = {
    'match used': '#009e73', 'match refused by the gate': '#e69f00',
    'matches not trusted': '#d1495b', NO_MATCH: '#b0b0b0', 'not recorded': '#e4e4e4',
}
INPUT_COLOURS = {'camera': '#cc79a7', 'gnss': '#e69f00', 'odometry': '#7f7f7f'}
LEVEL_COLOURS = ('#8fc9a9', '#f0c24b', '#d1495b')
MATCH_COLOUR = '#00e5ff'
STYLE = {
    'font.size': 9.0, 'axes.titlesize': 9.5, 'axes.spines.top': False,
    'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.25, 'legend.frameon': False,
    'legend.handlelength': 1.5, 'figure.constrained_layout.use': True,
}

# --- helpers


def envelope(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Rows that show a series in ``most`` points: the lowest and the highest of each stretch."""
    values = np.asarray(values, float)
    if len(values) <= most:
        return np.arange(len(values))
    rows = []
    for stretch in np.array_split(np.arange(len(values)), most // 2):
        known = stretch[np.isfinite(values[stretch])]
        if len(known):
            rows += sorted({known[np.argmin(values[known])], known[np.argmax(values[known])]})
        else:
            rows.append(stretch[0])
    return np.array(rows)


def long_axis_m(covariances: np.ndarray) -> np.ndarray:
    """Half the longer axis (n,) of the 95 % ellipses of covariances (n, 3, 3); NaN unknown."""
    half = np.full(len(covariances), np.nan)
    known = np.isfinite(covariances[:, :2, :2]).all(axis=(1, 2))
    largest = np.linalg.eigvalsh(covariances[known][:, :2, :2])[:, 1]
    half[known] = np.sqrt(pose_metrics.CHI2_95[2] * np.maximum(largest, 0.0))
    return half


def _clock(span_s: float) -> tuple[float, str]:
    """Seconds a unit and the label of a time axis."""
    return (60.0, 'time [min]') if span_s > 600.0 else (1.0, 'time [s]')


def _jumps(xy_m: np.ndarray) -> np.ndarray:
    """Which steps (n - 1,) between points (n, 2) are no driving: far, and farther than most."""
    steps_m = np.hypot(*np.diff(xy_m, axis=0).T)
    return steps_m > max(JUMP_M, 5.0 * np.median(steps_m)) if len(steps_m) else steps_m > 0


def _backdrop(axes: Axes, low_m, high_m, orthophoto: Orthophoto | None, pale: float) -> None:
    """The orthophoto between two corners, paled so that lines stand out."""
    if orthophoto is None:
        return
    cell_m = max(high_m[0] - low_m[0], high_m[1] - low_m[1]) / BACKDROP_PX
    grid = MapGrid(
        math.ceil((high_m[1] - low_m[1]) / cell_m), math.ceil((high_m[0] - low_m[0]) / cell_m),
        cell_m, low_m[0] + cell_m / 2, high_m[1] - cell_m / 2)
    rgb = orthophoto(grid).astype(np.float32)
    paled = ((1.0 - pale) * rgb + pale * 255.0).astype(np.uint8)
    extent = (low_m[0], low_m[0] + grid.cols * cell_m, high_m[1] - grid.rows * cell_m, high_m[1])
    axes.imshow(paled, extent=extent, zorder=0)


def _plain_map(axes: Axes) -> None:
    axes.grid(False)
    axes.set_aspect('equal')
    axes.set(xlabel='east of the map origin [m]', ylabel='north of the map origin [m]')


def _ellipse(estimate: PoseEstimate, **style) -> Ellipse:
    """The 95 % ellipse of a position."""
    values, vectors = np.linalg.eigh(estimate.covariance[:2, :2])
    lengths_m = 2.0 * np.sqrt(pose_metrics.CHI2_95[2] * values)
    angle_deg = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    return Ellipse(
        (estimate.pose.x_m, estimate.pose.y_m), lengths_m[1], lengths_m[0], angle=angle_deg,
        fill=False, **style)


def _legend_above(figure: Figure, axes: Axes, width_in: float) -> None:
    """One legend over the figure, as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    column_in = 0.55 + 0.075 * max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(width_in / column_in)))
    figure.legend(handles, labels, loc='outside upper left', ncols=columns, borderpad=0.8)


# --- the pictures


def trajectory(
    track: Track, values: np.ndarray, label: str, truth: Track, fixes_xy_m: np.ndarray,
    outages_ns: Sequence[tuple[int, int]], orthophoto: Orthophoto | None, width_in: float,
) -> Figure:
    """The published poses coloured by ``values`` (n,), with truth, fixes and outages.

    ``fixes_xy_m`` is (m, 2); ``truth`` has a line a pose, NaN where it is not known.
    """
    xy_m = track.poses[:, :2]
    shown = np.isfinite(xy_m).all(axis=1)
    true_m = truth.poses[np.isfinite(truth.poses).all(axis=1), :2]
    everything = np.concatenate((xy_m[shown], true_m))
    low_m, high_m = everything.min(axis=0) - MARGIN_M, everything.max(axis=0) + MARGIN_M
    # A straight road is still a picture.
    centre_m, half_m = (low_m + high_m) / 2, (high_m - low_m) / 2
    half_m = np.maximum(half_m, 0.35 * half_m.max())
    low_m, high_m = centre_m - half_m, centre_m + half_m
    size_m = high_m - low_m
    stacked = width_in < STACK_BELOW_IN
    map_in = width_in - (0.6 if stacked else 1.6)
    figure, axes = plt.subplots(
        figsize=(width_in, (1.9 if stacked else 1.2) + map_in * min(1.2, size_m[1] / size_m[0])))
    _backdrop(axes, low_m, high_m, orthophoto, pale=0.5)

    for index, (begin_ns, end_ns) in enumerate(outages_ns):
        inside = shown & (track.stamps_ns >= begin_ns) & (track.stamps_ns <= end_ns)
        axes.plot(
            *xy_m[inside].T, color='#d1495b', lw=10 if stacked else 15, alpha=0.45,
            solid_capstyle='round', label=None if index else 'no GNSS', zorder=1)
    thin = slice(None, None, max(1, len(fixes_xy_m) // MOST_POINTS))
    if len(fixes_xy_m):
        axes.plot(*fixes_xy_m[thin].T, '.', color=COLOURS['gnss_only'], ms=3, label='GNSS fixes',
                  zorder=2)
    if len(true_m):
        thin = slice(None, None, max(1, len(true_m) // MOST_POINTS))
        pieces = np.insert(
            true_m[thin], np.flatnonzero(_jumps(true_m[thin])) + 1, np.nan, axis=0)
        axes.plot(*pieces.T, color='black', lw=0.9, label='truth', zorder=5)

    rows = np.flatnonzero(shown)
    parts = np.array_split(rows, min(MOST_POINTS, len(rows)))
    ends = np.array([part[0] for part in parts] + [rows[-1]])
    peaks = np.array([
        np.max(values[part], where=np.isfinite(values[part]), initial=-np.inf) for part in parts])
    peaks[~np.isfinite(peaks)] = np.nan
    segments = np.stack((xy_m[ends[:-1]], xy_m[ends[1:]]), axis=1)
    # No line where the pose jumped or the recording has a hole.
    whole = ~_jumps(xy_m[ends])
    segments, peaks = segments[whole], peaks[whole]
    line = LineCollection(
        segments, array=peaks, cmap='plasma_r', lw=4.0 if stacked else 6.0, zorder=4,
        capstyle='round')
    known = peaks[np.isfinite(peaks)]
    line.set_clim(0.0, max(np.percentile(known, 98), 1e-3) if len(known) else 1.0)
    axes.add_collection(line)
    axes.plot(*xy_m[rows[0]], 'o', color='white', mec='black', ms=8, label='start', zorder=6)
    axes.plot(*xy_m[rows[-1]], 's', color='white', mec='black', ms=7, label='end', zorder=6)
    axes.set(xlim=(low_m[0], high_m[0]), ylim=(low_m[1], high_m[1]))
    _plain_map(axes)
    figure.colorbar(line, ax=axes, label=label, extend='max', aspect=30,
                    orientation='horizontal' if stacked else 'vertical',
                    pad=0.02, shrink=0.9 if stacked else 0.7)
    _legend_above(figure, axes, width_in)
    return figure


def errors_over_time(
    comparison: Comparison, outages_ns: Sequence[tuple[int, int]], width_in: float,
) -> Figure:
    """Position errors of all rows with truth, then those of ``refined`` with their bounds."""
    stamps_ns = comparison.truth.stamps_ns
    seconds = (stamps_ns - stamps_ns[0]) * NS
    unit_s, time_label = _clock(seconds[-1])
    time = seconds / unit_s
    figure, panels = plt.subplots(
        4, 1, figsize=(width_in, 8.6), sharex=True, height_ratios=(1.5, 1.0, 1.0, 1.0))
    errors = {
        name: pose_metrics.pose_errors(track, comparison.truth)
        for name, track in comparison.rows.items()}
    for name in ('gnss_only', 'prior', 'before_match', 'image_blind', 'refined'):
        if name in errors:
            error_m = errors[name]['position_m']
            rows = envelope(error_m)
            panels[0].plot(
                time[rows], error_m[rows], color=COLOURS[name], label=name.replace('_', ' '),
                lw=1.6 if name == 'refined' else 1.0)
    # GNSS alone may go anywhere in an outage; the others set the scale.
    highest_m = max(
        np.nanmax(error['position_m'], initial=2.0) for name, error in errors.items()
        if name in ('prior', 'before_match', 'image_blind', 'refined'))
    panels[0].set(ylabel='position\nerror [m]', ylim=(0.0, 1.3 * highest_m))

    refined = comparison.rows['refined']
    along, across = _body_variances(refined.covariances, comparison.truth.poses[:, 2])
    signed = (
        ('longitudinal\n[m]', errors['refined']['longitudinal_m'], along),
        ('lateral\n[m]', errors['refined']['lateral_m'], across),
        ('heading\n[deg]', np.degrees(errors['refined']['heading_rad']),
         refined.covariances[:, 2, 2] * math.degrees(1.0) ** 2),
    )
    for panel, (label, error, variance) in zip(panels[1:], signed):
        _error_with_bounds(panel, time, error, variance, comparison.evaluated)
        panel.set(ylabel=label)
    for panel in panels:
        _shade(panel, outages_ns, stamps_ns[0], unit_s)
    panels[-1].set(xlabel=time_label, xlim=(0.0, max(time[-1], 1e-3)))
    figure.align_ylabels(panels)
    _legend_above(figure, panels[0], width_in)
    return figure


def _body_variances(covariances: np.ndarray, yaw_rad: np.ndarray):
    """Variances (n,) along and across a vehicle with this heading."""
    ahead = np.stack((np.cos(yaw_rad), np.sin(yaw_rad)), axis=-1)
    left = np.stack((-np.sin(yaw_rad), np.cos(yaw_rad)), axis=-1)
    return tuple(
        np.einsum('ni,nij,nj->n', axis, covariances[:, :2, :2], axis) for axis in (ahead, left))


def _error_with_bounds(panel: Axes, time, error, variance, evaluated) -> None:
    """A signed error in the 95 % band that its variance claims; the scale suits both."""
    bound = 1.96 * np.sqrt(variance)
    rows = envelope(bound)
    panel.fill_between(
        time[rows], -bound[rows], bound[rows], color=COLOURS['refined'], alpha=0.22, lw=0)
    rows = envelope(error)
    panel.plot(time[rows], error[rows], color=COLOURS['refined'], lw=1.1)
    panel.axhline(0.0, color='0.4', lw=0.6)
    seen = evaluated & np.isfinite(error) & np.isfinite(bound)
    if seen.any():
        reach = 1.15 * max(np.abs(error[seen]).max(), np.percentile(bound[seen], 98))
        panel.set(ylim=(-reach, reach))


def claims_over_time(
    poses: Track, matches: Track, outages_ns: Sequence[tuple[int, int]], width_in: float,
) -> Figure:
    """Without truth: the bounds that are claimed, and where each match lay (dots).

    A match that has no position along some direction may lie anywhere: it is off the scale.
    """
    found = matches.aligned(poses.stamps_ns)
    seconds = (poses.stamps_ns - poses.stamps_ns[0]) * NS
    unit_s, time_label = _clock(seconds[-1])
    time = seconds / unit_s
    apart = found.poses - poses.poses
    yaw_rad = poses.poses[:, 2]
    # A matcher that does not observe the heading repeats the prior's.
    turned = np.where(
        found.covariances[:, 2, 2] < UNOBSERVED_YAW_RAD2, wrap_angle(apart[:, 2]), np.nan)
    along_m, across_m = body_axes_error(apart[:, :2], yaw_rad)
    variances = _body_variances(poses.covariances, yaw_rad)
    figure, panels = plt.subplots(3, 1, figsize=(width_in, 6.6), sharex=True)
    rows = (
        ('longitudinal\n[m]', along_m, variances[0]),
        ('lateral\n[m]', across_m, variances[1]),
        ('heading\n[deg]', np.degrees(turned),
         poses.covariances[:, 2, 2] * math.degrees(1.0) ** 2),
    )
    thin = slice(None, None, max(1, len(time) // MOST_POINTS))
    for panel, (label, shift, variance) in zip(panels, rows):
        bound = 1.96 * np.sqrt(variance)
        line = envelope(bound)
        panel.fill_between(time[line], -bound[line], bound[line], color=COLOURS['refined'],
                           alpha=0.22, lw=0, label='95 % claimed of the pose')
        panel.plot(time[thin], shift[thin], '.', color=COLOURS['before_match'], ms=2.5, alpha=0.7,
                   label='match minus pose')
        panel.axhline(0.0, color='0.4', lw=0.6)
        reach = np.percentile(bound, 98)
        if np.isfinite(shift).any():
            reach = max(reach, np.nanpercentile(np.abs(shift), 90))
        panel.set(ylabel=label, ylim=(-1.15 * reach, 1.15 * reach))
        _shade(panel, outages_ns, poses.stamps_ns[0], unit_s)
    panels[-1].set(xlabel=time_label, xlim=(0.0, max(time[-1], 1e-3)))
    figure.align_ylabels(panels)
    _legend_above(figure, panels[0], width_in)
    return figure


def _shade(panel: Axes, outages_ns, start_ns: int, unit_s: float) -> None:
    for begin_ns, end_ns in outages_ns:
        panel.axvspan((begin_ns - start_ns) * NS / unit_s, (end_ns - start_ns) * NS / unit_s,
                      color='#d1495b', alpha=0.12, lw=0)


def histograms(comparison: Comparison, width_in: float) -> Figure:
    """Lateral, longitudinal and heading errors of ``refined``; above with what it started from."""
    other = next((n for n in ('prior', 'before_match') if n in comparison.rows), None)
    stacked = width_in < STACK_BELOW_IN
    lines = [[name for name in (other, 'refined') if name], ['refined']][0 if other else 1:]
    figure = plt.figure(figsize=(width_in, 6.6 if stacked else 2.5 * len(lines)))
    grid = figure.subplots(3, len(lines)).T if stacked else figure.subplots(len(lines), 3)
    errors = {
        name: pose_metrics.pose_errors(comparison.rows[name], comparison.truth)
        for name in lines[0]}
    quantities = (
        ('lateral error [m]', lambda e: e['lateral_m']),
        ('longitudinal error [m]', lambda e: e['longitudinal_m']),
        ('heading error [deg]', lambda e: np.degrees(e['heading_rad'])))
    for names, panels in zip(lines, np.reshape(grid, (len(lines), 3))):
        for panel, (label, quantity) in zip(panels, quantities):
            _histogram(panel, {
                name: quantity(errors[name])[comparison.evaluated] for name in names})
            panel.set(xlabel=label)
            panel.locator_params(axis='x', nbins=4)
        panels[0].set(ylabel='images')
    figure.align_labels()
    _legend_above(figure, np.ravel(grid)[0], width_in)
    return figure


def _histogram(panel: Axes, values: dict[str, np.ndarray]) -> None:
    values = {name: value[np.isfinite(value)] for name, value in values.items()}
    reach = max(
        (np.percentile(np.abs(value), 99) for value in values.values() if len(value)),
        default=1.0) * 1.1 or 1.0
    bins = np.linspace(-reach, reach, 42)       # one of them in the middle
    for name, value in values.items():
        own = name == 'refined'
        panel.hist(
            np.clip(value, -reach, reach), bins, color=COLOURS[name], alpha=0.6 if own else 1,
            histtype='stepfilled' if own else 'step', lw=1.3, label=name.replace('_', ' '))
    panel.axvline(0.0, color='0.3', lw=0.7)
    panel.set(xlim=(-reach, reach))


def distribution(comparison: Comparison, width_in: float) -> Figure:
    """Share of evaluated images below an error, all rows."""
    figure, axes = plt.subplots(figsize=(width_in, 3.4))
    for name, track in comparison.rows.items():
        error_m = pose_metrics.pose_errors(track, comparison.truth)['position_m']
        error_m = np.sort(error_m[comparison.evaluated & np.isfinite(error_m)])
        if not len(error_m):
            continue
        share = np.arange(1, len(error_m) + 1) / comparison.evaluated.sum()
        thin = np.unique(np.linspace(0, len(error_m) - 1, MOST_POINTS).astype(int))
        # The control that may lie exactly on another row is dashed.
        axes.step(
            np.maximum(error_m[thin], LEAST_ERROR_M), share[thin], where='post',
            color=COLOURS.get(name, '0.3'), label=name.replace('_', ' '),
            lw=2.2 if name == 'refined' else 1.3, ls='--' if name == 'random_init' else '-')
    axes.set(xscale='log', ylim=(0.0, 1.0), xlabel='position error [m]',
             ylabel='share of images')
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlim(left=LEAST_ERROR_M)
    _legend_above(figure, axes, width_in)
    return figure


def calibration(series: dict[str, tuple[np.ndarray, int]], width_in: float) -> Figure:
    """How often errors lie inside the ellipsoid that claims to hold a share p of them.

    ``series``: label to squared Mahalanobis lengths (n,) and their degrees of freedom.
    """
    figure, axes = plt.subplots(figsize=(width_in, 0.85 * width_in))
    claimed = np.linspace(0.0, 1.0, 101)
    axes.plot([0, 1], [0, 1], color='0.4', lw=1.0, ls='--', label='as claimed')
    colours = ('#009e73', '#0072b2', '#d55e00')
    for (label, (nees, dof)), colour in zip(series.items(), colours):
        inside = np.searchsorted(np.sort(nees), chi2.ppf(claimed, dof), side='right') / len(nees)
        axes.plot(claimed, inside, color=colour, lw=1.8, label=label)
    axes.text(0.03, 0.97, 'too wide', va='top', color='0.4')
    axes.text(0.97, 0.03, 'too narrow', ha='right', color='0.4')
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel='share that the covariance claims',
             ylabel='share found inside')
    _legend_above(figure, axes, width_in)
    return figure


def heatmaps(shots: Sequence[Shot], orthophoto: Orthophoto | None, width_in: float) -> Figure:
    """Each shot's picture, its heat map over the orthophoto, and that again about the peak.

    Narrow: the picture above the two.
    """
    stacked = width_in < STACK_BELOW_IN
    pictures = any(shot.rgb is not None for shot in shots)
    maps = ['window', 'peak']
    layout = [['picture', *maps]] if pictures else [maps]
    height_in = (0.275 if pictures else 0.5) * width_in
    if stacked:
        layout = [['picture', 'picture'], maps] if pictures else [maps]
        height_in = (1.18 if pictures else 0.5) * width_in
    figure = plt.figure(figsize=(width_in, (height_in + 0.25) * len(shots) + 0.3))
    for part, shot in zip(np.atleast_1d(figure.subfigures(len(shots), 1)), shots):
        panels = part.subplot_mosaic(
            layout, width_ratios=[1.3, 1.0, 1.0] if pictures and not stacked else None,
            height_ratios=[1.45, 1.0] if pictures and stacked else None)
        first = panels[layout[0][0]]
        first.set_title(f'{shot.label}: peak {shot.distance_m:.2f} m from the '
                        f'{"truth" if shot.truth else "prior"}', loc='left', weight='bold')
        if pictures:
            first.set_axis_off()
            if shot.rgb is not None:
                first.imshow(shot.rgb)
        heatmap_panel(panels['window'], shot, orthophoto)
        heatmap_panel(panels['peak'], shot, orthophoto, around_peak=True)
        for name in maps:
            panels[name].locator_params(nbins=4)
            panels[name].set(xlabel='', ylabel='')
    _legend_above(figure, panels['window'], width_in)
    return figure


def heatmap_panel(
    axes: Axes, shot: Shot, orthophoto: Orthophoto | None, around_peak: bool = False,
) -> None:
    """The heat map of one frame over the orthophoto, with the poses about it; metres.

    The whole search window, where a frame shows what ``around_peak`` shows of it.
    """
    west, east, south, north = shot.extent_m
    zoom = (shot.peak_m[0] - ZOOM_HALF_M, shot.peak_m[0] + ZOOM_HALF_M,
            shot.peak_m[1] - ZOOM_HALF_M, shot.peak_m[1] + ZOOM_HALF_M)
    if around_peak:
        west, east, south, north = zoom
    _backdrop(axes, (west, south), (east, north), orthophoto, pale=0.2)
    axes.imshow(
        np.ma.masked_invalid(shot.percent), extent=shot.extent_m, origin='lower', cmap='inferno',
        vmin=0, vmax=100, interpolation='nearest' if around_peak else 'bilinear', zorder=1,
        alpha=np.where(np.isfinite(shot.percent), 0.1 + 0.65 * shot.percent / 100.0, 0.0))
    # Hollow, and one around the other: what they mark stays in sight.
    outline = [patheffects.withStroke(linewidth=3.2, foreground='black')]
    for name, estimate, marker, colour, size, line in (
            ('prior, 95 %', shot.prior, 's', '#5ab4ff', 11, '-'),
            ('match', shot.match, 'x', MATCH_COLOUR, 5, ''),
            ('refined, 95 %', shot.refined, 'D', '#3fe0a8', 8, '--')):
        if estimate is None:
            continue
        axes.plot(estimate.pose.x_m, estimate.pose.y_m, marker, color=colour, mfc='none', mew=1.5,
                  ms=size, label=name, ls='none', zorder=3, path_effects=outline)
        if line:
            axes.add_patch(_ellipse(
                estimate, ec=colour, lw=1.5, ls=line, zorder=2,
                path_effects=outline if line == '-' else None))
    axes.plot(*shot.peak_m, '*', color='#ffe14d', mfc='none', mew=1.2, ms=9, label='peak',
              ls='none', zorder=3, path_effects=outline)
    if shot.truth is not None:
        axes.plot(shot.truth.x_m, shot.truth.y_m, 'o', color='white', mec='black', ms=4,
                  label='truth', ls='none', zorder=4)
        length_m = 0.14 * (east - west)
        axes.annotate(
            '', (shot.truth.x_m + length_m * math.cos(shot.truth.yaw_rad),
                 shot.truth.y_m + length_m * math.sin(shot.truth.yaw_rad)),
            (shot.truth.x_m, shot.truth.y_m), annotation_clip=True,
            arrowprops={'arrowstyle': '-|>', 'color': 'white', 'lw': 1.4})
    if not around_peak:
        axes.add_patch(Rectangle(
            (zoom[0], zoom[2]), 2 * ZOOM_HALF_M, 2 * ZOOM_HALF_M, fill=False, ec='white', lw=0.9,
            zorder=2))
    _plain_map(axes)
    axes.set(xlim=(west, east), ylim=(south, north), xlabel='east [m]', ylabel='north [m]')


def timeline(
    poses: Track, outcomes: np.ndarray, fixes_ns: np.ndarray, diagnostics: Diagnostics,
    start_ns: int, end_ns: int, width_in: float,
) -> Figure:
    """Outcomes of the images, GNSS, ages of the inputs, and what /diagnostics said, over time.

    ``outcomes`` (n,) has the outcome of the image of each pose.
    """
    unit_s, time_label = _clock((end_ns - start_ns) * NS)
    span_s = max((end_ns - start_ns) * NS, 1e-3)
    edges = np.linspace(0.0, span_s, int(np.clip(span_s / TIME_BIN_S, 10, MOST_TIME_BINS)) + 1)
    known = len(diagnostics.times_ns) > 0
    figure, panels = plt.subplots(
        5 if known else 2, 1, figsize=(width_in, 8.4 if known else 3.4), sharex=True,
        height_ratios=(1.2, 0.8, 1.4, 0.9, 1.6) if known else (1.2, 0.8))
    if not len(fixes_ns):
        panels[1].text(0.01, 0.5, 'no fixes were recorded', va='center', color='0.4',
                       transform=panels[1].transAxes)
        panels[1].set(yticks=())

    bottom = np.zeros(len(edges) - 1)
    every, _ = np.histogram((poses.stamps_ns - start_ns) * NS, edges)
    groups = np.array([OUTCOME_GROUPS.get(outcome, NO_MATCH) for outcome in outcomes])
    for group, colour in GROUP_COLOURS.items():
        stamps_ns = poses.stamps_ns[groups == group]
        if not len(stamps_ns):
            continue
        count, _ = np.histogram((stamps_ns - start_ns) * NS, edges)
        share = 100.0 * count / np.maximum(every, 1)
        panels[0].stairs(bottom + share, edges / unit_s, baseline=bottom, fill=True, color=colour,
                         label=group)
        bottom = bottom + share
    panels[0].set(ylabel='poses [%]', ylim=(0.0, 100.0))
    count, _ = np.histogram((fixes_ns - start_ns) * NS, edges)
    panels[1].stairs(
        count / np.diff(edges), edges / unit_s, fill=True, color=COLOURS['gnss_only'])
    panels[1].set(ylabel='fixes [1/s]')
    _legend_above(figure, panels[0], width_in)
    if known:
        time = (diagnostics.times_ns - start_ns) * NS
        _ages(panels[2], time, diagnostics, unit_s)
        _refusals(panels[3], time, diagnostics, edges, unit_s)
        _levels(panels[4], time, diagnostics, edges, unit_s)
    panels[-1].set(xlabel=time_label, xlim=(0.0, edges[-1] / unit_s))
    figure.align_ylabels(panels[:4])
    return figure


def _ages(panel: Axes, time, diagnostics: Diagnostics, unit_s: float) -> None:
    for part, age_s in diagnostics.ages_s.items():
        if np.isfinite(age_s).any():
            rows = envelope(age_s)
            panel.plot(time[rows] / unit_s, np.maximum(age_s[rows], 0.01), lw=1.1, label=part,
                       color=INPUT_COLOURS.get(part, '0.3'))
    panel.set(yscale='log', ylabel='age of the\nnewest [s]')
    panel.legend(loc='upper left', ncols=3)
    low, high = panel.get_ylim()
    panel.set(ylim=(low, 6.0 * high))


def _refusals(panel: Axes, time, diagnostics: Diagnostics, edges, unit_s: float) -> None:
    """Messages refused (and images dropped) in each stretch, from the counters' steps."""
    bottom = np.zeros(len(edges) - 1)
    refusals = [(part, 'refused', colour) for part, colour in INPUT_COLOURS.items()]
    for part, key, colour in (*refusals, ('camera', 'dropped', '#d1495b')):
        series = diagnostics.counts.get(part, {}).get(key)
        if series is None or not len(series):
            continue
        steps = np.maximum(np.diff(series, prepend=series[0]), 0)
        count, _ = np.histogram(np.clip(time, 0.0, edges[-1]), edges, weights=steps)
        if count.any():
            panel.stairs(bottom + count, edges / unit_s, baseline=bottom, fill=True, color=colour,
                         label=f'{part} {key}')
            bottom = bottom + count
    panel.set(ylabel='refused', ylim=(0.0, max(1.0, 1.6 * bottom.max())))
    if bottom.any():
        panel.legend(loc='upper left', ncols=2)
    else:
        panel.text(0.01, 0.8, 'nothing was refused or dropped', va='top', color='0.4',
                   transform=panel.transAxes)


def _levels(panel: Axes, time, diagnostics: Diagnostics, edges, unit_s: float) -> None:
    parts = list(diagnostics.levels)
    worst = np.full((len(parts), len(edges) - 1), np.nan)
    column = np.clip(np.searchsorted(edges, time, side='right') - 1, 0, len(edges) - 2)
    for line, part in zip(worst, parts):
        level = diagnostics.levels[part]
        seen = np.isfinite(level)
        line[np.unique(column[seen])] = -1.0
        np.fmax.at(line, column[seen], level[seen])
        # A stretch shorter than the period of /diagnostics has what was said last.
        filled = np.maximum.accumulate(np.where(np.isfinite(line), np.arange(len(line)), -1))
        line[filled >= 0] = line[filled[filled >= 0]]
    panel.pcolormesh(
        edges / unit_s, np.arange(len(parts) + 1), worst, cmap=ListedColormap(LEVEL_COLOURS),
        norm=BoundaryNorm((-0.5, 0.5, 1.5, 2.5), 3))
    panel.hlines(np.arange(1, len(parts)), 0, edges[-1] / unit_s, color='white', lw=1.5)
    panel.set(yticks=np.arange(len(parts)) + 0.5, yticklabels=parts)
    panel.invert_yaxis()
    panel.grid(False)
    names = ('OK', 'warning', 'error')
    panel.legend(handles=[Patch(color=c, label=n) for c, n in zip(LEVEL_COLOURS, names)],
                 loc='lower left', bbox_to_anchor=(0.0, 1.0), ncols=3, borderaxespad=0.1)


def latency(
    times_ns: np.ndarray, latency_ms: np.ndarray, start_ns: int, width_in: float,
) -> Figure:
    """Histogram with percentiles, and the course over time."""
    stacked = width_in < STACK_BELOW_IN
    figure, (left, right) = plt.subplots(
        *((2, 1) if stacked else (1, 2)), figsize=(width_in, 5.4 if stacked else 2.9))
    shares = pose_metrics.percentiles(latency_ms)
    end_ms = max(1.3 * shares['p99'], 1.0)
    left.hist(np.clip(latency_ms, 0.0, end_ms), bins=50, range=(0.0, end_ms), color='0.7',
              histtype='stepfilled')
    for (name, value), style in zip(shares.items(), ('-', '--', ':')):
        left.axvline(value, color=COLOURS['prior'], ls=style, label=f'{name} {value:.0f} ms')
    left.set(xlabel='latency [ms], the rest in the last bin', ylabel='images', xlim=(0.0, end_ms))
    left.legend(loc='upper right')
    seconds = (times_ns - start_ns) * NS
    unit_s, time_label = _clock(seconds[-1])
    rows = envelope(latency_ms)
    right.plot(seconds[rows] / unit_s, latency_ms[rows], color=COLOURS['prior'], lw=0.8)
    right.set(xlabel=time_label, ylabel='latency [ms]',
              ylim=(0.0, 1.05 * max(latency_ms.max(), 1.0)))
    return figure
