"""Pictures of single frames: the camera image and its heat map."""

from collections.abc import Sequence
import math

from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
import matplotlib.pyplot as plt
import numpy as np

from crossview_localizer.evaluation.background import Orthophoto
from crossview_localizer.evaluation.figure_style import (
    draw_backdrop,
    ellipse_95,
    make_map_axes,
    put_legend_above,
    STACK_BELOW_IN,
)
from crossview_localizer.evaluation.shots import Shot

ZOOM_HALF_M = 4.0           # half width of the part around the peak
MATCH_COLOUR = '#00e5ff'


def draw_heatmaps(shots: Sequence[Shot], orthophoto: Orthophoto | None, width_in: float) -> Figure:
    """Draw for each shot its picture, its heat map, and the part of the heat map around the peak.

    In a narrow figure the picture is above the two heat maps.
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
        draw_heatmap_panel(panels['window'], shot, orthophoto)
        draw_heatmap_panel(panels['peak'], shot, orthophoto, around_peak=True)
        for name in maps:
            panels[name].locator_params(nbins=4)
            panels[name].set(xlabel='', ylabel='')
    put_legend_above(figure, panels['window'], width_in)
    return figure


def draw_heatmap_panel(
    axes: Axes, shot: Shot, orthophoto: Orthophoto | None, around_peak: bool = False,
) -> None:
    """Draw the heat map of one frame over the orthophoto, with the poses around it; metres.

    With ``around_peak`` only the part around the peak is drawn; otherwise the whole search window,
    with a frame around that part.
    """
    west, east, south, north = shot.extent_m
    zoom = (shot.peak_m[0] - ZOOM_HALF_M, shot.peak_m[0] + ZOOM_HALF_M,
            shot.peak_m[1] - ZOOM_HALF_M, shot.peak_m[1] + ZOOM_HALF_M)
    if around_peak:
        west, east, south, north = zoom
    draw_backdrop(axes, (west, south), (east, north), orthophoto, pale=0.2)
    axes.imshow(
        np.ma.masked_invalid(shot.percent), extent=shot.extent_m, origin='lower', cmap='inferno',
        vmin=0, vmax=100, interpolation='nearest' if around_peak else 'bilinear', zorder=1,
        alpha=np.where(np.isfinite(shot.percent), 0.1 + 0.65 * shot.percent / 100.0, 0.0))
    # Hollow markers of different sizes: they do not hide each other or the heat map.
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
            axes.add_patch(ellipse_95(
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
    make_map_axes(axes)
    axes.set(xlim=(west, east), ylim=(south, north), xlabel='east [m]', ylabel='north [m]')
