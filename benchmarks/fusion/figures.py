"""The pictures of docs/fusion.md, from the numbers in fusion.json."""

from pathlib import Path

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt  # noqa: E402

COLOURS = {'match': '#0072b2', 'odometry': '#d55e00', 'no_match': '#7f7f7f',
           'wrong_images': '#cc79a7'}
LABELS = {'match': 'with matches', 'odometry': 'odometry only', 'no_match': 'GNSS and odometry',
          'wrong_images': 'wrong images'}


def draw(results: dict, folder: Path) -> list[Path]:
    """Draw the results that are there; returns the files."""
    drawn = []
    for key, name, figure in (('outage_curve', 'fusion_outage.png', outages),
                              ('calibration_curve', 'fusion_calibration.png', calibrations),
                              ('matcher_replay', 'fusion_replay.png', replays)):
        if results.get(key):
            figure(results[key]).savefig(folder / name, dpi=110)
            plt.close('all')
            drawn.append(folder / name)
    return drawn


def outages(curves: dict):
    """Median and 95th percentile of the error against the time since GNSS was lost."""
    figure, axes = plt.subplots(figsize=(7.0, 3.6), layout='constrained')
    for method, curve in curves.items():
        seconds, colour = curve['seconds'], COLOURS[method]
        axes.plot(seconds, curve['p50_m'], color=colour, label=f'{LABELS[method]}, median')
        axes.plot(seconds, curve['p95_m'], color=colour, ls='--', lw=1.0,
                  label=f'{LABELS[method]}, 95th percentile')
        axes.fill_between(seconds, curve['p50_m'], curve['p95_m'], color=colour, alpha=0.15, lw=0)
    axes.set(yscale='log', xlabel='seconds without GNSS', ylabel='position error, m',
             xlim=(0.0, max(curve['seconds'][-1] for curve in curves.values())))
    count = max(curve['n'] for curve in curves.values())
    axes.set_title(f'SIMULATION: {count} outages in rendered towns', fontsize=10)
    axes.grid(alpha=0.3, which='both')
    axes.legend(fontsize=8, loc='upper left')
    axes.set_ylim(top=100.0)
    return figure


def calibrations(curves: dict):
    """The share of segments inside the claimed interval against the claimed share."""
    first = next(iter(curves.values()))
    figure, panels = plt.subplots(
        1, len(first['axes']), figsize=(9.0, 3.7), layout='constrained', sharey=True)
    for panel, axis in zip(panels, first['axes']):
        panel.plot((0, 1), (0, 1), color='0.6', lw=1.0)
        for method, curve in curves.items():
            panel.plot(curve['claimed'], curve['axes'][axis], color=COLOURS[method], lw=1.5,
                       label=f'{LABELS[method]} ({curve["n"]})')
        panel.set(title=axis, xlabel='claimed', xlim=(0, 1), ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    panels[0].set_ylabel('inside')
    panels[-1].legend(fontsize=8, loc='lower right')
    figure.suptitle('SIMULATION: above the line is too wide, below it is too sure', fontsize=10)
    return figure


def replays(drives: dict):
    """Median errors of the replayed matcher, of GNSS with odometry, and of their fusion."""
    figure, axes = plt.subplots(figsize=(7.0, 3.4), layout='constrained')
    bars = (('matcher_median_m', "the matcher's own", '#999999'),
            ('gnss_odometry_median_m', 'GNSS and odometry', '#d55e00'),
            ('fused_median_m', 'fused', '#0072b2'))
    for place, (key, label, colour) in enumerate(bars):
        heights = [row[key] for row in drives.values()]
        axes.bar([k + 0.27 * (place - 1) for k in range(len(drives))], heights, 0.25,
                 color=colour, label=label)
    for k, row in enumerate(drives.values()):
        half_m = row['matcher_median_m'] / 2
        axes.plot((k - 0.4, k + 0.4), (half_m, half_m), color='black', lw=1.2,
                  label="half of the matcher's: the goal" if k == 0 else None)
    axes.set_xticks(range(len(drives)), [
        'five pooled' if name == 'representative' else name for name in drives])
    axes.set(ylabel='median error, m', yscale='log')
    axes.set_title('errors of a real matcher; simulated GNSS and odometry', fontsize=10)
    axes.grid(alpha=0.3, axis='y')
    axes.legend(fontsize=8)
    return figure
