"""What the pictures of a report have in common: style, thinning, backdrop, legends.

Every function that draws a picture takes ``width_in``, the width of the figure in inches, and
chooses a layout for a page or for a narrow screen.  Data are thinned to what a picture can show,
so that an hour of driving takes as long to draw as a minute.
"""

import math

import matplotlib

matplotlib.use('Agg')
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.patches import Ellipse  # noqa: E402
import numpy as np  # noqa: E402

from crossview_localizer.datatypes import PoseEstimate  # noqa: E402
from crossview_localizer.evaluation import pose_metrics  # noqa: E402
from crossview_localizer.evaluation.background import Orthophoto  # noqa: E402
from crossview_localizer.geometry import MapGrid  # noqa: E402

STACK_BELOW_IN = 6.0        # narrower figures put their parts below each other
MOST_POINTS = 3000          # largest number of points of a curve
BACKDROP_PX = 1300
NS = 1e-9

# Colours that differ in print and for colour-blind readers (Okabe and Ito).
COLOURS = {
    'truth': '#000000', 'gnss_only': '#e69f00', 'odometry_only': '#7f7f7f', 'prior': '#0072b2',
    'before_match': '#0072b2', 'image_blind': '#cc79a7', 'refined': '#009e73',
    'raw_correlation': '#56b4e9', 'random_init': '#d55e00',
    'smoothed': '#332288',
}
OUTAGE_COLOUR = '#d1495b'
STYLE = {
    'font.size': 9.0, 'axes.titlesize': 9.5, 'axes.spines.top': False,
    'axes.spines.right': False, 'axes.grid': True, 'grid.alpha': 0.25, 'legend.frameon': False,
    'legend.handlelength': 1.5, 'figure.constrained_layout.use': True,
}


def envelope(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Choose ``most`` rows that show a series: the lowest and the highest of each part."""
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
    """The longer half axes (n,) of the 95 % ellipses of covariances (n, 3, 3); NaN if unknown."""
    half = np.full(len(covariances), np.nan)
    known = np.isfinite(covariances[:, :2, :2]).all(axis=(1, 2))
    largest = np.linalg.eigvalsh(covariances[known][:, :2, :2])[:, 1]
    half[known] = np.sqrt(pose_metrics.CHI2_95[2] * np.maximum(largest, 0.0))
    return half


def time_axis(span_s: float) -> tuple[float, str]:
    """The seconds in a unit of a time axis of this length, and its label."""
    return (60.0, 'time [min]') if span_s > 600.0 else (1.0, 'time [s]')


def draw_backdrop(axes: Axes, low_m, high_m, orthophoto: Orthophoto | None, pale: float) -> None:
    """Draw the orthophoto between two corners; ``pale`` (0 to 1) brightens it behind lines."""
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


def make_map_axes(axes: Axes) -> None:
    axes.grid(False)
    axes.set_aspect('equal')
    axes.set(xlabel='east of the map origin [m]', ylabel='north of the map origin [m]')


def ellipse_95(estimate: PoseEstimate, **style) -> Ellipse:
    """The 95 % ellipse of a position."""
    values, vectors = np.linalg.eigh(estimate.covariance[:2, :2])
    lengths_m = 2.0 * np.sqrt(pose_metrics.CHI2_95[2] * values)
    angle_deg = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
    return Ellipse(
        (estimate.pose.x_m, estimate.pose.y_m), lengths_m[1], lengths_m[0], angle=angle_deg,
        fill=False, **style)


def put_legend_above(figure: Figure, axes: Axes, width_in: float) -> None:
    """Put one legend above the figure, with as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    column_in = 0.55 + 0.075 * max(map(len, labels), default=0)
    columns = max(1, min(len(labels), int(width_in / column_in)))
    figure.legend(handles, labels, loc='outside upper left', ncols=columns, borderpad=0.8)


def shade_outages(panel: Axes, outages_ns, start_ns: int, unit_s: float) -> None:
    for begin_ns, end_ns in outages_ns:
        panel.axvspan((begin_ns - start_ns) * NS / unit_s, (end_ns - start_ns) * NS / unit_s,
                      color=OUTAGE_COLOUR, alpha=0.12, lw=0)
