"""Pictures of the poses of a run, of their errors, and of the bounds that they claim."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import chi2

from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.background import Orthophoto
from crossview_localizer.evaluation.figure_style import (
    COLOURS,
    draw_backdrop,
    envelope,
    make_map_axes,
    MOST_POINTS,
    NS,
    OUTAGE_COLOUR,
    put_legend_above,
    shade_outages,
    STACK_BELOW_IN,
    time_axis,
)
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.geometry import body_axes_error, wrap_angle
from crossview_localizer.trajectory import Track

MARGIN_M = 30.0
JUMP_M = 50.0               # points that are farther apart are not joined by a line
LEAST_ERROR_M = 0.02        # left end of a logarithmic scale
UNOBSERVED_YAW_RAD2 = 1e3   # a match with a larger yaw variance does not observe the heading


def draw_trajectory(
    track: Track, values: np.ndarray, label: str, truth: Track, fixes_xy_m: np.ndarray,
    smoothed_xy_m: np.ndarray, outages_ns: Sequence[tuple[int, int]],
    orthophoto: Orthophoto | None, width_in: float,
) -> Figure:
    """Draw the published poses coloured by ``values`` (n,), with truth, fixes and outages.

    ``fixes_xy_m`` is (m, 2), the smoothed trajectory (k, 2); it and ``truth`` (n rows) are NaN
    where they are not known.
    """
    xy_m = track.poses[:, :2]
    shown = np.isfinite(xy_m).all(axis=1)
    true_m = truth.poses[np.isfinite(truth.poses).all(axis=1), :2]
    everything = np.concatenate((xy_m[shown], true_m))
    low_m, high_m = everything.min(axis=0) - MARGIN_M, everything.max(axis=0) + MARGIN_M
    # A picture of a straight road must not become a narrow strip.
    centre_m, half_m = (low_m + high_m) / 2, (high_m - low_m) / 2
    half_m = np.maximum(half_m, 0.35 * half_m.max())
    low_m, high_m = centre_m - half_m, centre_m + half_m
    size_m = high_m - low_m
    stacked = width_in < STACK_BELOW_IN
    map_in = width_in - (0.6 if stacked else 1.6)
    figure, axes = plt.subplots(
        figsize=(width_in, (1.9 if stacked else 1.2) + map_in * min(1.2, size_m[1] / size_m[0])))
    draw_backdrop(axes, low_m, high_m, orthophoto, pale=0.5)

    for begin_ns, end_ns in outages_ns:
        inside = shown & (track.stamps_ns >= begin_ns) & (track.stamps_ns <= end_ns)
        axes.plot(
            *xy_m[inside].T, color=OUTAGE_COLOUR, lw=10 if stacked else 15, alpha=0.45,
            solid_capstyle='round', zorder=1)
    if outages_ns:
        axes.plot([], [], 's', color=OUTAGE_COLOUR, alpha=0.45, ms=11, label='no GNSS')
    thin = slice(None, None, max(1, len(fixes_xy_m) // MOST_POINTS))
    if len(fixes_xy_m):
        axes.plot(*fixes_xy_m[thin].T, '.', color=COLOURS['gnss_only'], ms=3, label='GNSS fixes',
                  zorder=2)
    smoothed_xy_m = smoothed_xy_m[np.isfinite(smoothed_xy_m).all(axis=1)]
    if len(smoothed_xy_m):
        thin = slice(None, None, max(1, len(smoothed_xy_m) // MOST_POINTS))
        axes.plot(*smoothed_xy_m[thin].T, color=COLOURS['smoothed'], lw=1.2, ls='--',
                  label='smoothed', zorder=5)
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
    # No line where the pose jumped or the recording has a gap.
    connected = ~_jumps(xy_m[ends])
    segments, peaks = segments[connected], peaks[connected]
    line = LineCollection(
        segments, array=peaks, cmap='plasma_r', lw=4.0 if stacked else 6.0, zorder=4,
        capstyle='round')
    known = peaks[np.isfinite(peaks)]
    line.set_clim(0.0, max(np.percentile(known, 98), 1e-3) if len(known) else 1.0)
    axes.add_collection(line)
    axes.plot(*xy_m[rows[0]], 'o', color='white', mec='black', ms=8, label='start', zorder=6)
    axes.plot(*xy_m[rows[-1]], 's', color='white', mec='black', ms=7, label='end', zorder=6)
    axes.set(xlim=(low_m[0], high_m[0]), ylim=(low_m[1], high_m[1]))
    make_map_axes(axes)
    figure.colorbar(line, ax=axes, label=label, extend='max', aspect=30,
                    orientation='horizontal' if stacked else 'vertical',
                    pad=0.02, shrink=0.9 if stacked else 0.7)
    put_legend_above(figure, axes, width_in)
    return figure


def _jumps(xy_m: np.ndarray) -> np.ndarray:
    """Which steps (n - 1,) between points (n, 2) are jumps: long, and much longer than most."""
    steps_m = np.hypot(*np.diff(xy_m, axis=0).T)
    return steps_m > max(JUMP_M, 5.0 * np.median(steps_m)) if len(steps_m) else steps_m > 0


def draw_errors(
    comparison: Comparison, outages_ns: Sequence[tuple[int, int]], width_in: float,
) -> Figure:
    """Draw the position errors of the rows, then the errors of ``refined`` with their bounds."""
    stamps_ns = comparison.truth.stamps_ns
    seconds = (stamps_ns - stamps_ns[0]) * NS
    unit_s, time_label = time_axis(seconds[-1])
    time = seconds / unit_s
    figure, panels = plt.subplots(
        4, 1, figsize=(width_in, 8.6), sharex=True, height_ratios=(1.5, 1.0, 1.0, 1.0))
    errors = {
        name: pose_metrics.pose_errors(track, comparison.truth)
        for name, track in comparison.rows.items()}
    for name in ('gnss_only', 'prior', 'before_match', 'image_blind', 'smoothed', 'refined'):
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
         refined.covariances[:, 2, 2] * np.degrees(1.0) ** 2),
    )
    for panel, (label, error, variance) in zip(panels[1:], signed):
        _draw_error_with_bounds(panel, time, error, variance, comparison.evaluated)
        panel.set(ylabel=label)
    for panel in panels:
        shade_outages(panel, outages_ns, stamps_ns[0], unit_s)
    panels[-1].set(xlabel=time_label, xlim=(0.0, max(time[-1], 1e-3)))
    figure.align_ylabels(panels)
    put_legend_above(figure, panels[0], width_in)
    return figure


def draw_claims(
    poses: Track, matches: Track, outages_ns: Sequence[tuple[int, int]], width_in: float,
) -> Figure:
    """Draw the claimed bounds, and the distance of each match from the pose (dots).

    This needs no truth.  A match that does not observe a direction may lie outside the picture.
    """
    aligned = matches.aligned(poses.stamps_ns)
    seconds = (poses.stamps_ns - poses.stamps_ns[0]) * NS
    unit_s, time_label = time_axis(seconds[-1])
    time = seconds / unit_s
    difference = aligned.poses - poses.poses
    yaw_rad = poses.poses[:, 2]
    # A matcher that does not observe the heading repeats that of the prior.
    heading_rad = np.where(
        aligned.covariances[:, 2, 2] < UNOBSERVED_YAW_RAD2, wrap_angle(difference[:, 2]), np.nan)
    along_m, across_m = body_axes_error(difference[:, :2], yaw_rad)
    variances = _body_variances(poses.covariances, yaw_rad)
    figure, panels = plt.subplots(3, 1, figsize=(width_in, 6.6), sharex=True)
    rows = (
        ('longitudinal\n[m]', along_m, variances[0]),
        ('lateral\n[m]', across_m, variances[1]),
        ('heading\n[deg]', np.degrees(heading_rad),
         poses.covariances[:, 2, 2] * np.degrees(1.0) ** 2),
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
        shade_outages(panel, outages_ns, poses.stamps_ns[0], unit_s)
    panels[-1].set(xlabel=time_label, xlim=(0.0, max(time[-1], 1e-3)))
    figure.align_ylabels(panels)
    put_legend_above(figure, panels[0], width_in)
    return figure


def _body_variances(covariances: np.ndarray, yaw_rad: np.ndarray):
    """Variances (n,) along and across vehicles with these headings (n,)."""
    ahead = np.stack((np.cos(yaw_rad), np.sin(yaw_rad)), axis=-1)
    left = np.stack((-np.sin(yaw_rad), np.cos(yaw_rad)), axis=-1)
    return tuple(
        np.einsum('ni,nij,nj->n', axis, covariances[:, :2, :2], axis) for axis in (ahead, left))


def _draw_error_with_bounds(panel: Axes, time, error, variance, evaluated) -> None:
    """Draw a signed error over the 95 % band that its variance claims."""
    bound = 1.96 * np.sqrt(variance)
    rows = envelope(bound)
    panel.fill_between(
        time[rows], -bound[rows], bound[rows], color=COLOURS['refined'], alpha=0.22, lw=0)
    rows = envelope(error)
    panel.plot(time[rows], error[rows], color=COLOURS['refined'], lw=1.1)
    panel.axhline(0.0, color='0.4', lw=0.6)
    known = evaluated & np.isfinite(error) & np.isfinite(bound)
    if known.any():
        reach = 1.15 * max(np.abs(error[known]).max(), np.percentile(bound[known], 98))
        panel.set(ylim=(-reach, reach))


def draw_histograms(comparison: Comparison, width_in: float) -> Figure:
    """Draw the errors of ``refined``, first together with those of the prior, then alone."""
    prior = next((n for n in ('prior', 'before_match') if n in comparison.rows), None)
    stacked = width_in < STACK_BELOW_IN
    lines = [[prior, 'refined'], ['refined']] if prior else [['refined']]
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
            _draw_histogram(panel, {
                name: quantity(errors[name])[comparison.evaluated] for name in names})
            panel.set(xlabel=label)
            panel.locator_params(axis='x', nbins=4)
        panels[0].set(ylabel='images')
    figure.align_labels()
    put_legend_above(figure, np.ravel(grid)[0], width_in)
    return figure


def _draw_histogram(panel: Axes, values: dict[str, np.ndarray]) -> None:
    values = {name: value[np.isfinite(value)] for name, value in values.items()}
    reach = max(
        (np.percentile(np.abs(value), 99) for value in values.values() if len(value)),
        default=1.0) * 1.1 or 1.0
    bins = np.linspace(-reach, reach, 42)       # 41 bins: zero is in the middle of one
    for name, value in values.items():
        refined = name == 'refined'
        panel.hist(
            np.clip(value, -reach, reach), bins, color=COLOURS[name], alpha=0.6 if refined else 1,
            histtype='stepfilled' if refined else 'step', lw=1.3, label=name.replace('_', ' '))
    panel.axvline(0.0, color='0.3', lw=0.7)
    panel.set(xlim=(-reach, reach))


def draw_distribution(comparison: Comparison, width_in: float) -> Figure:
    """Draw the share of evaluated images below an error, for all rows."""
    figure, axes = plt.subplots(figsize=(width_in, 3.4))
    for name, track in comparison.rows.items():
        error_m = pose_metrics.pose_errors(track, comparison.truth)['position_m']
        error_m = np.sort(error_m[comparison.evaluated & np.isfinite(error_m)])
        if not len(error_m):
            continue
        share = np.arange(1, len(error_m) + 1) / comparison.evaluated.sum()
        thin = np.unique(np.linspace(0, len(error_m) - 1, MOST_POINTS).astype(int))
        # random_init can coincide with another row: it is dashed.
        axes.step(
            np.maximum(error_m[thin], LEAST_ERROR_M), share[thin], where='post',
            color=COLOURS.get(name, '0.3'), label=name.replace('_', ' '),
            lw=2.2 if name == 'refined' else 1.3, ls='--' if name == 'random_init' else '-')
    axes.set(xscale='log', ylim=(0.0, 1.0), xlabel='position error [m]',
             ylabel='share of images')
    axes.xaxis.set_major_formatter('{x:g}')
    axes.set_xlim(left=LEAST_ERROR_M)
    put_legend_above(figure, axes, width_in)
    return figure


def draw_calibration(series: dict[str, tuple[np.ndarray, int]], width_in: float) -> Figure:
    """Draw the share of errors inside the ellipsoid that claims a share p, over p.

    ``series`` has for each label the squared Mahalanobis lengths (n,) and their degrees of
    freedom.
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
    put_legend_above(figure, axes, width_in)
    return figure
