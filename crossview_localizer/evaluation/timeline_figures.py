"""Pictures of a run over time: outcomes, inputs, diagnostics, latency."""

from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
import matplotlib.pyplot as plt
import numpy as np

from crossview_localizer.bags.recorded_diagnostics import RecordedDiagnostics
from crossview_localizer.bags.recorded_run import UNKNOWN
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.figure_style import (
    COLOURS,
    envelope,
    NS,
    put_legend_above,
    STACK_BELOW_IN,
    time_axis,
)
from crossview_localizer.trajectory import Track

TIME_BIN_S = 2.0            # width of the bins of counts, unless that gives too many bins
MOST_TIME_BINS = 150
# The group in which the timeline shows each outcome of an image; all others are NO_MATCH.
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


def draw_timeline(
    poses: Track, outcomes: np.ndarray, fixes_ns: np.ndarray, diagnostics: RecordedDiagnostics,
    start_ns: int, end_ns: int, width_in: float,
) -> Figure:
    """Draw outcomes, GNSS, ages of the inputs, and the levels in /diagnostics over time.

    ``outcomes`` (n,) has the outcome of the image of each pose.
    """
    unit_s, time_label = time_axis((end_ns - start_ns) * NS)
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
    put_legend_above(figure, panels[0], width_in)
    if known:
        time = (diagnostics.times_ns - start_ns) * NS
        _draw_ages(panels[2], time, diagnostics, unit_s)
        _draw_refusals(panels[3], time, diagnostics, edges, unit_s)
        _draw_levels(panels[4], time, diagnostics, edges, unit_s)
    panels[-1].set(xlabel=time_label, xlim=(0.0, edges[-1] / unit_s))
    figure.align_ylabels(panels[:4])
    return figure


def _draw_ages(panel: Axes, time, diagnostics: RecordedDiagnostics, unit_s: float) -> None:
    for part, age_s in diagnostics.ages_s.items():
        if np.isfinite(age_s).any():
            rows = envelope(age_s)
            panel.plot(time[rows] / unit_s, np.maximum(age_s[rows], 0.01), lw=1.1, label=part,
                       color=INPUT_COLOURS.get(part, '0.3'))
    panel.set(yscale='log', ylabel='age of the\nnewest [s]')
    panel.legend(loc='upper left', ncols=3)
    low, high = panel.get_ylim()
    panel.set(ylim=(low, 6.0 * high))


def _draw_refusals(
    panel: Axes, time, diagnostics: RecordedDiagnostics, edges, unit_s: float,
) -> None:
    """Draw how many messages were refused and images dropped in each time bin."""
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


def _draw_levels(
    panel: Axes, time, diagnostics: RecordedDiagnostics, edges, unit_s: float,
) -> None:
    """Draw the worst level of each part in each time bin."""
    parts = list(diagnostics.levels)
    worst = np.full((len(parts), len(edges) - 1), np.nan)
    column = np.clip(np.searchsorted(edges, time, side='right') - 1, 0, len(edges) - 2)
    for line, part in zip(worst, parts):
        level = diagnostics.levels[part]
        known = np.isfinite(level)
        line[np.unique(column[known])] = -1.0
        np.fmax.at(line, column[known], level[known])
        # A bin without a message of /diagnostics shows the level of the bin before it.
        last = np.maximum.accumulate(np.where(np.isfinite(line), np.arange(len(line)), -1))
        line[last >= 0] = line[last[last >= 0]]
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


def draw_latency(
    times_ns: np.ndarray, latency_ms: np.ndarray, start_ns: int, width_in: float,
) -> Figure:
    """Draw a histogram with percentiles, and the latency over time."""
    stacked = width_in < STACK_BELOW_IN
    figure, (left, right) = plt.subplots(
        *((2, 1) if stacked else (1, 2)), figsize=(width_in, 5.4 if stacked else 2.9))
    shares = pose_metrics.percentiles(latency_ms)
    end_ms = max(1.3 * shares['p99'], 1.0)
    left.hist(np.clip(latency_ms, 0.0, end_ms), bins=50, range=(0.0, end_ms), color='0.7',
              histtype='stepfilled')
    for (name, value), style in zip(shares.items(), ('-', '--', ':')):
        left.axvline(value, color=COLOURS['prior'], ls=style, label=f'{name} {value:.0f} ms')
    left.set(xlabel='latency [ms]; the last bin includes all above', ylabel='images',
             xlim=(0.0, end_ms))
    left.legend(loc='upper right')
    seconds = (times_ns - start_ns) * NS
    unit_s, time_label = time_axis(seconds[-1])
    rows = envelope(latency_ms)
    right.plot(seconds[rows] / unit_s, latency_ms[rows], color=COLOURS['prior'], lw=0.8)
    right.set(xlabel=time_label, ylabel='latency [ms]',
              ylim=(0.0, 1.05 * max(latency_ms.max(), 1.0)))
    return figure
