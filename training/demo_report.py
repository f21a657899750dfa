"""Pictures of one demo drive and a page that shows them; drawn from what was recorded."""

from collections.abc import Callable
from dataclasses import dataclass
import html
import math
from pathlib import Path

import matplotlib

matplotlib.use('Agg')
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from crossview_localizer import evaluation  # noqa: E402
from crossview_localizer.evaluation import Frames  # noqa: E402
from crossview_localizer.geometry import MapGrid, Pose2D  # noqa: E402

# Colours that stay apart in print and for colour-blind readers (Okabe and Ito).
COLOURS = {
    'truth': '#000000', 'gnss_only': '#e69f00', 'odometry_only': '#7f7f7f', 'prior': '#0072b2',
    'image_blind': '#cc79a7', 'refined': '#009e73', 'raw_correlation': '#56b4e9',
    'random_init': '#d55e00',
}
MARGIN_M = 40.0
BACKDROP_PX = 1600
DPI = 110


@dataclass(frozen=True)
class Shot:
    """One camera frame with its heat map and what the filter held before and after it.

    ``percent`` (rows, cols) is the heat map as published, row 0 south, NaN outside the map;
    ``extent_m`` its west, east, south and north edges.
    """

    label: str
    stamp_ns: int
    rgb: np.ndarray
    percent: np.ndarray
    extent_m: tuple[float, float, float, float]
    truth: Pose2D
    prior: Pose2D
    match: Pose2D
    refined: Pose2D


def write_report(
    folder: Path, *, summary: dict, frames: Frames, shots: list[Shot], fixes_xy_m: np.ndarray,
    outages_ns: list[tuple[int, int]], latency_ms: np.ndarray,
    orthophoto: Callable[[MapGrid], np.ndarray], notes: list[str],
) -> Path:
    """Draw everything into ``folder`` and return the path of its page.

    ``orthophoto`` gives RGB (rows, cols, 3) of a grid in ``map``; ``fixes_xy_m`` (n, 2).
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        'trajectories.png': ('Trajectories over the orthophoto', trajectories(
            frames, fixes_xy_m, outages_ns, orthophoto)),
        'errors.png': ('Errors over time, with the 95 % bounds that the filter claims',
                       errors_over_time(frames, outages_ns)),
        'distribution.png': ('Share of images below an error', distribution(frames)),
    }
    if shots:
        pictures['heatmaps.png'] = (
            'Heat maps of single frames, by the error of the match', heatmaps(shots, orthophoto))
    if len(latency_ms):
        pictures['latency.png'] = (
            'Latency, image callback to published pose', latency_histogram(latency_ms))
    pictures['stages.png'] = ('Seconds a stage', stage_bars(summary['seconds']))
    for name, (_, figure) in pictures.items():
        figure.savefig(folder / name, dpi=DPI, bbox_inches='tight')
        plt.close(figure)
    page = folder / 'index.html'
    titles = {name: title for name, (title, _) in pictures.items()}
    page.write_text(_page(summary, titles, notes), encoding='utf-8')
    return page


def trajectories(frames, fixes_xy_m, outages_ns, orthophoto) -> Figure:
    known = np.isfinite(frames.truth.poses).all(axis=1)
    truth_m = frames.truth.poses[known, :2]
    low_m, high_m = truth_m.min(axis=0) - MARGIN_M, truth_m.max(axis=0) + MARGIN_M
    size_m = high_m - low_m
    figure, axes = plt.subplots(figsize=(11.0, 1.0 + 11.0 * min(1.3, size_m[1] / size_m[0])))
    _backdrop(axes, low_m, high_m, orthophoto)
    axes.plot(*fixes_xy_m.T, '.', color=COLOURS['gnss_only'], ms=3, label='GNSS fixes')
    axes.plot(*truth_m.T, color='white', lw=4.0)
    axes.plot(*truth_m.T, color=COLOURS['truth'], lw=2.0, label='truth')
    for name, width in (('prior', 1.6), ('image_blind', 1.2), ('refined', 1.8)):
        if name in frames.rows:
            axes.plot(*frames.rows[name].poses[:, :2].T, color=COLOURS[name], lw=width, label=name)
    stamps_ns = frames.truth.stamps_ns
    for index, (begin_ns, end_ns) in enumerate(outages_ns):
        inside = known & (stamps_ns >= begin_ns) & (stamps_ns <= end_ns)
        axes.plot(
            *frames.truth.poses[inside, :2].T, color='red', lw=9, alpha=0.35,
            solid_capstyle='round', label=None if index else 'GNSS outage')
    axes.plot(*truth_m[0], 'o', color='white', mec='black', ms=9, label='start')
    axes.set(xlim=(low_m[0], high_m[0]), ylim=(low_m[1], high_m[1]),
             xlabel='east of the map origin [m]', ylabel='north of the map origin [m]')
    axes.set_aspect('equal')
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return figure


def errors_over_time(frames: Frames, outages_ns) -> Figure:
    stamps_ns = frames.truth.stamps_ns
    time_s = (stamps_ns - stamps_ns[0]) * 1e-9
    figure, panels = plt.subplots(
        4, 1, figsize=(11.0, 11.0), sharex=True, height_ratios=(1.6, 1.0, 1.0, 1.0))
    errors = {
        name: evaluation.pose_errors(track, frames.truth) for name, track in frames.rows.items()}
    for name in ('gnss_only', 'prior', 'image_blind', 'refined'):
        if name in errors:
            panels[0].plot(
                time_s, errors[name]['position_m'], color=COLOURS[name], label=name,
                lw=1.8 if name == 'refined' else 1.1)
    # GNSS alone may go anywhere in an outage; the others set the scale.
    highest_m = max(
        np.nanmax(error['position_m'], initial=5.0) for name, error in errors.items()
        if name in ('prior', 'image_blind', 'refined'))
    panels[0].set(ylabel='position error [m]', ylim=(0.0, 1.6 * highest_m))

    refined = frames.rows['refined']
    yaw_rad = frames.truth.poses[:, 2]
    ahead = np.stack((np.cos(yaw_rad), np.sin(yaw_rad)), axis=-1)
    left = np.stack((-np.sin(yaw_rad), np.cos(yaw_rad)), axis=-1)
    covariance_m2 = refined.covariances[:, :2, :2]
    signed = (
        ('longitudinal [m]', errors['refined']['longitudinal_m'],
         np.einsum('ni,nij,nj->n', ahead, covariance_m2, ahead)),
        ('lateral [m]', errors['refined']['lateral_m'],
         np.einsum('ni,nij,nj->n', left, covariance_m2, left)),
        ('heading [deg]', np.degrees(errors['refined']['heading_rad']),
         refined.covariances[:, 2, 2] * math.degrees(1.0) ** 2),
    )
    for panel, (label, error, variance) in zip(panels[1:], signed):
        bound = 1.96 * np.sqrt(variance)
        panel.fill_between(
            time_s, -bound, bound, color=COLOURS['refined'], alpha=0.25, lw=0,
            label='95 % claimed by the filter')
        panel.plot(time_s, error, color=COLOURS['refined'], lw=1.3, label='error of refined')
        panel.axhline(0.0, color='0.5', lw=0.6)
        seen = frames.evaluated & np.isfinite(error) & np.isfinite(bound)
        if seen.any():
            reach = 1.15 * max(np.abs(error[seen]).max(), np.percentile(bound[seen], 98))
            panel.set(ylim=(-reach, reach))
        panel.set(ylabel=label)
    for panel in panels:
        for begin_ns, end_ns in outages_ns:
            panel.axvspan(
                (begin_ns - stamps_ns[0]) * 1e-9, (end_ns - stamps_ns[0]) * 1e-9,
                color='red', alpha=0.12, lw=0, label='GNSS outage')
        panel.axvspan(
            0.0, evaluation.SETTLING_S, color='0.6', alpha=0.25, lw=0, label='not evaluated')
        panel.grid(alpha=0.3)
    for panel in panels[:2]:
        panel.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    panels[-1].set(xlabel='time since the first image [s]', xlim=(0.0, time_s[-1]))
    figure.align_ylabels(panels)
    figure.tight_layout()
    return figure


def distribution(frames: Frames) -> Figure:
    figure, axes = plt.subplots(figsize=(8.0, 4.5))
    farthest_m = 1.0
    for name, track in frames.rows.items():
        error_m = evaluation.pose_errors(track, frames.truth)['position_m'][frames.evaluated]
        error_m = np.sort(error_m[np.isfinite(error_m)])
        if not len(error_m):
            continue
        share = np.arange(1, len(error_m) + 1) / frames.evaluated.sum()
        axes.step(
            error_m, share, where='post', color=COLOURS[name], label=name,
            lw=2.2 if name == 'refined' else 1.3)
        if name not in ('gnss_only', 'odometry_only'):
            farthest_m = max(farthest_m, 1.2 * np.percentile(error_m, 97))
    axes.set(xlim=(0.0, farthest_m), ylim=(0.0, 1.0), xlabel='position error [m]',
             ylabel='share of evaluated images')
    axes.grid(alpha=0.3)
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return figure


def heatmaps(shots: list[Shot], orthophoto) -> Figure:
    figure, grid = plt.subplots(
        len(shots), 2, figsize=(11.0, 4.6 * len(shots)), squeeze=False, width_ratios=(1.35, 1.0))
    for (camera, window), shot in zip(grid, shots):
        camera.imshow(shot.rgb)
        camera.set_axis_off()
        error_m = math.hypot(shot.match.x_m - shot.truth.x_m, shot.match.y_m - shot.truth.y_m)
        camera.set_title(f'{shot.label}: match {error_m:.1f} m from the truth', loc='left')
        west, east, south, north = shot.extent_m
        _backdrop(window, (west, south), (east, north), orthophoto)
        shown = np.ma.masked_invalid(shot.percent)
        window.imshow(
            shown, extent=shot.extent_m, origin='lower', cmap='inferno', vmin=0, vmax=100,
            alpha=np.where(np.isfinite(shot.percent), 0.1 + 0.5 * shot.percent / 100.0, 0.0),
            interpolation='bilinear')
        for name, pose, marker, colour in (
            ('prior', shot.prior, 's', COLOURS['prior']),
            ('match', shot.match, 'X', '#00e5ff'),
            ('refined', shot.refined, 'D', COLOURS['refined']),
            ('truth', shot.truth, 'o', 'white'),
        ):
            window.plot(
                pose.x_m, pose.y_m, marker, color=colour, mec='black', ms=8, label=name, ls='none')
        length_m = 0.12 * (east - west)
        window.annotate(
            '', (shot.truth.x_m + length_m * math.cos(shot.truth.yaw_rad),
                 shot.truth.y_m + length_m * math.sin(shot.truth.yaw_rad)),
            (shot.truth.x_m, shot.truth.y_m),
            arrowprops={'arrowstyle': '-|>', 'color': 'white', 'lw': 1.8})
        window.set(xlim=(west, east), ylim=(south, north), xlabel='east [m]', ylabel='north [m]')
        window.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    figure.tight_layout()
    return figure


def latency_histogram(latency_ms: np.ndarray) -> Figure:
    figure, axes = plt.subplots(figsize=(8.0, 3.6))
    shares = evaluation.percentiles(latency_ms)
    end_ms = max(1.3 * shares['p99'], 1.0)
    axes.hist(np.clip(latency_ms, 0.0, end_ms), bins=50, range=(0.0, end_ms), color='0.65')
    for (name, value), style in zip(shares.items(), ('-', '--', ':')):
        axes.axvline(value, color=COLOURS['prior'], ls=style, label=f'{name} = {value:.0f} ms')
    axes.set(xlabel='latency [ms] (the last bin holds all that is above)', ylabel='images',
             xlim=(0.0, end_ms))
    axes.legend(loc='upper left', bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return figure


def stage_bars(seconds: dict[str, float]) -> Figure:
    stages = [name for name in seconds if name != 'total']
    figure, axes = plt.subplots(figsize=(8.0, 0.8 + 0.36 * len(stages)))
    bars = axes.barh(stages, [seconds[name] for name in stages], color=COLOURS['raw_correlation'])
    axes.bar_label(bars, fmt='%.1f', padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set(xlabel=f'seconds (total {seconds["total"]:.0f})')
    axes.spines[['top', 'right']].set_visible(False)
    return figure


def _backdrop(axes: Axes, low_m, high_m, orthophoto) -> None:
    """The orthophoto between two corners, paled so that lines stand out."""
    cell_m = max(high_m[0] - low_m[0], high_m[1] - low_m[1]) / BACKDROP_PX
    grid = MapGrid(
        math.ceil((high_m[1] - low_m[1]) / cell_m), math.ceil((high_m[0] - low_m[0]) / cell_m),
        cell_m, low_m[0] + cell_m / 2, high_m[1] - cell_m / 2)
    rgb = orthophoto(grid)
    paled = (0.65 * rgb.astype(np.float32) + 0.35 * 255.0).astype(np.uint8)
    extent = (low_m[0], low_m[0] + grid.cols * cell_m, high_m[1] - grid.rows * cell_m, high_m[1])
    axes.imshow(paled, extent=extent)


def _page(summary: dict, pictures: dict[str, str], notes: list[str]) -> str:
    results = {name: summary[name] for name in evaluation.ROWS if name in summary}
    units = ['m'] * 5 + ['deg', 'share', '', '', '']
    head = ''.join(
        f'<th>{key.removesuffix("_m").removesuffix("_deg").replace("_", " ")}'
        f'{f"<br>[{unit}]" if unit else ""}</th>'
        for key, unit in zip(evaluation.METRICS, units))
    body = ''
    for name, result in results.items():
        cells = ''.join(f'<td>{_number(result[key])}</td>' for key in evaluation.METRICS)
        body += f'<tr><th style="border-left:6px solid {COLOURS[name]}">{name}</th>{cells}</tr>\n'
    sections = '\n'.join(
        f'<h2>{html.escape(title)}</h2>\n<img src="{name}" alt="{html.escape(title)}">'
        for name, title in pictures.items())
    latency = ', '.join(
        f'{name} {_number(value)} ms' for name, value in summary['latency_ms'].items())
    listed = '\n'.join(f'<li>{html.escape(note)}</li>' for note in notes)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Demo drive, simulation</title>
<style>
body {{ font: 15px/1.5 sans-serif; max-width: 1150px; margin: 2em auto; padding: 0 1em; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .25em .6em; text-align: right; border-bottom: 1px solid #ccc; }}
tbody th {{ text-align: left; }}
img {{ max-width: 100%; }}
</style></head><body>
<h1>Demo drive through a simulated town</h1>
<p>Simulation: world seed {summary['world_seed']}; matcher {html.escape(str(summary['matcher']))},
weights {html.escape(str(summary['weights']))}. Latency {latency}.</p>
<table><thead><tr><th></th>{head}</tr></thead>
<tbody>
{body}</tbody></table>
<ul>
{listed}
</ul>
{sections}
</body></html>
"""


def _number(value) -> str:
    if value is None:
        return '&ndash;'
    return str(value) if isinstance(value, int) else f'{value:.2f}'
