"""Estimates poses from heat maps: the match for the filter, and the pose of a single image.

Shape legend: K headings, R, C rows and columns; d coordinates, 2 or 3.  Coordinates are in the
order x, y, yaw.  Each is an array (n,) along one axis of a volume: x along the last axis, y along
the one before (row 0 is north), yaw along the first.
"""

from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import chdtri, fdtri

from crossview_localizer.datatypes import Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle
from crossview_localizer.networks.dense import GAUSSIAN_DOF

# The reference (see ``pose_from_heatmap``) is this many times wider than the prior, plus the two
# sigmas below.
REFERENCE_INFLATION = 3.0
REFERENCE_SIGMA_M = 1.0
REFERENCE_SIGMA_RAD = 0.02
# With more probability than this at the edge of the search window a match is ambiguous.
MAX_EDGE_PROBABILITY = 0.5
# A heat map with a smaller information gain over the reference gives no match.
MIN_GAIN_NATS = 0.05
# The information of the heat map along a direction, relative to that of the reference.  Below
# MIN_INFORMATION the estimate could lie far outside the window: it is replaced by NO_INFORMATION.
MIN_INFORMATION = 0.05
NO_INFORMATION = 1e-5
NEGLIGIBLE_NATS = 16.0  # cells whose log-weight lies farther below the largest do not count
YAW_REFINE = 4        # steps per heading to which a volume is interpolated
PEAK_RADIUS_M = 3.0   # cells this near to the best place belong to its peak


def pose_from_heatmap(
    heatmap: Heatmap, prior: PoseEstimate, edge_cells: int,
) -> tuple[PoseEstimate | None, str]:
    """The pose that the heat map alone supports, or None and the reason why it supports none.

    The moments of a likelihood that a window cuts off are biased to the centre of the window,
    which is the mean of the prior: fused as they are, they would count the prior twice.  So the
    moments are taken of the product with a broad Gaussian reference q about the prior, and the
    reference is divided out again, both on the same cells:

        P0, m0 = moments of q;  P1, m1 = moments of q times likelihood
        R^-1 = P1^-1 - P0^-1;   z = R (P1^-1 m1 - P0^-1 m0)

    (the site of assumed-density filtering; Minka 2001).  A Gaussian likelihood is recovered
    exactly.  A constant likelihood gives R^-1 = 0 for any window and any holes in the map.  A
    direction in which the likelihood is broader than the reference gets a huge variance.

    ``edge_cells`` is the width of the edge of the window.  Without headings in the heat map the
    yaw variance is inf.
    """
    if probability_at_edge(heatmap, edge_cells) > MAX_EDGE_PROBABILITY:
        return None, 'the best positions lie at the edge of the search window'
    reference = prior.covariance * REFERENCE_INFLATION ** 2 + np.diag(
        [REFERENCE_SIGMA_M ** 2, REFERENCE_SIGMA_M ** 2, REFERENCE_SIGMA_RAD ** 2])
    x_m, y_m = heatmap.grid.cell_centres()
    cell_m = heatmap.grid.cell_m
    offsets, steps = [x_m - prior.pose.x_m, y_m - prior.pose.y_m], [cell_m, cell_m]
    rows, cols = _part_that_counts(
        _log_gaussian(offsets, reference[:2, :2]), heatmap.log_probability)
    offsets = [offsets[0][cols], offsets[1][rows]]
    log_likelihood = heatmap.log_probability[rows, cols]
    if heatmap.volume is not None:
        if np.exp(heatmap.volume[[0, -1]]).sum() > MAX_EDGE_PROBABILITY:
            return None, 'the best headings lie at the edge of the search window'
        yaws_rad, log_likelihood = finer_yaws(
            heatmap.yaws_rad, heatmap.volume[:, rows, cols], YAW_REFINE)
        offsets.append(yaws_rad - prior.pose.yaw_rad)
        steps.append(yaws_rad[1] - yaws_rad[0])
    size = len(offsets)
    gaussian, reason = gaussian_from_likelihood(
        log_likelihood, offsets, reference[:size, :size], np.square(steps) / 12.0)
    if gaussian is None:
        return None, reason
    mean, covariance = np.zeros(3), np.diag([0.0, 0.0, np.inf])
    mean[:size], covariance[:size, :size] = gaussian
    pose = Pose2D(prior.pose.x_m + float(mean[0]), prior.pose.y_m + float(mean[1]),
                  wrap_angle(prior.pose.yaw_rad + float(mean[2])))
    return PoseEstimate(heatmap.stamp_ns, pose, covariance), ''


def probability_at_edge(heatmap: Heatmap, width_cells: int) -> float:
    """Probability within ``width_cells`` of the edge of the grid."""
    inner = heatmap.log_probability[width_cells:-width_cells, width_cells:-width_cells]
    return float(1.0 - np.exp(inner).sum())


def _part_that_counts(log_q: np.ndarray, log_p: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns outside of which neither q nor q p (R, C) has any weight."""
    product = log_q + log_p
    counts = (log_q > log_q.max() - NEGLIGIBLE_NATS) | (product > product.max() - NEGLIGIBLE_NATS)
    rows, cols = (np.flatnonzero(counts.any(axis)) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)


def gaussian_from_likelihood(
    log_likelihood: np.ndarray, offsets: list[np.ndarray], reference: np.ndarray,
    cell_variances: np.ndarray,
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Mean (d,) and covariance (d, d) of a likelihood on cells, or None and the reason.

    ``log_likelihood`` ([K,] R, C) is -inf where unknown.  ``offsets`` are the d coordinates of the
    cells, from the mean of the prior.  ``reference`` (d, d) is the covariance of the reference in
    ``pose_from_heatmap``.  ``cell_variances`` (d,) are those within a cell, added to the moments.
    """
    log_q = _log_gaussian(offsets, reference)
    log_q[~np.isfinite(log_likelihood)] = -np.inf
    mean0, cov0 = _moments_of_log(log_q, offsets)
    mean1, cov1 = _moments_of_log(log_q + log_likelihood, offsets)
    precision0 = np.linalg.inv(cov0 + np.diag(cell_variances))
    precision1 = np.linalg.inv(cov1 + np.diag(cell_variances))
    gain_nats = 0.5 * (np.linalg.slogdet(precision1)[1] - np.linalg.slogdet(precision0)[1])
    if gain_nats < MIN_GAIN_NATS:
        return None, 'the heat map is nearly uniform'

    # Relative to the reference, information in metres and in radians can be compared.
    root = np.linalg.cholesky(precision0)
    relative = np.linalg.solve(root, np.linalg.solve(root, precision1 - precision0).T)
    values, vectors = np.linalg.eigh((relative + relative.T) / 2.0)
    informed = values > MIN_INFORMATION
    # A direction without information keeps the mean of the reference, with a huge variance.
    values = np.where(informed, values, NO_INFORMATION)
    axes = np.linalg.solve(root.T, vectors)                         # (d, d)
    covariance = axes @ np.diag(1.0 / values) @ axes.T
    information_mean = axes.T @ (precision1 @ mean1 - precision0 @ mean0)
    reference_mean = axes.T @ precision0 @ mean0
    mean = axes @ np.where(informed, information_mean / values, reference_mean)
    return (mean, covariance), ''


def _log_gaussian(offsets: list[np.ndarray], covariance: np.ndarray) -> np.ndarray:
    """Log-density ([K,] R, C) up to a constant, without an array of all coordinates."""
    precision = np.linalg.inv(covariance)
    columns = [u.reshape(-1, *[1] * axis) for axis, u in enumerate(offsets)]
    log_q = np.zeros([len(u) for u in reversed(offsets)])
    for i, u in enumerate(columns):
        log_q -= 0.5 * precision[i, i] * u * u
        for j in range(i):
            log_q -= precision[i, j] * (columns[j] * u)
    return log_q


def _moments_of_log(
    log_weight: np.ndarray, offsets: list[np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    return moments(np.exp(log_weight - log_weight.max()), offsets)


def moments(weight: np.ndarray, offsets: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of cells with a weight ([K,] R, C)."""
    weight = weight / weight.sum()
    size = len(offsets)
    # The sums over all coordinates but j and i; j lies along the last axis.
    pairs = {(j, i): weight.sum(tuple(-1 - k for k in range(size) if k not in (j, i)))
             for i in range(size) for j in range(i)}
    alone = [pairs[0, 1].sum(0), *(pairs[0, i].sum(1) for i in range(1, size))]
    mean = np.array([w @ u for w, u in zip(alone, offsets)])
    centred = [u - m for u, m in zip(offsets, mean)]
    covariance = np.diag([w @ (u * u) for w, u in zip(alone, centred)])
    for (j, i), pair in pairs.items():
        covariance[i, j] = covariance[j, i] = centred[i] @ pair @ centred[j]
    return mean, covariance


def finer_yaws(
    yaws_rad: np.ndarray, volume: np.ndarray, factor: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate log-probabilities (K, R, C) linearly to ``factor`` times as many headings."""
    count = len(yaws_rad)
    index = np.arange((count - 1) * factor + 1) / factor
    lower = np.minimum(index.astype(int), count - 2)
    fraction = (index - lower)[:, None, None]
    fine = volume[lower] * (1.0 - fraction) + volume[lower + 1] * fraction
    return np.interp(index, np.arange(count), yaws_rad), fine


@dataclass(frozen=True)
class Peak:
    """The best place of a heat map: its cell, the cells near it (R, C), and their probability."""

    row: int
    col: int
    near: np.ndarray
    mass: float


def peak_of(heatmap: Heatmap, sharpening: float = 1.0) -> Peak:
    """The place with the highest sum over yaw, and the probability within PEAK_RADIUS_M of it."""
    volume = heatmap.log_probability[None] if heatmap.volume is None else heatmap.volume
    places = np.exp(sharpening * (volume - volume.max())).sum(0)                 # (R, C)
    row, col = np.unravel_index(int(places.argmax()), places.shape)
    near = _cells_near(heatmap.grid, row, col)
    return Peak(int(row), int(col), near, float(places[near].sum() / places.sum()))


def _cells_near(grid: MapGrid, row: int, col: int) -> np.ndarray:
    """The cells (R, C) within PEAK_RADIUS_M of one."""
    x_m, y_m = grid.cell_centres()
    return np.hypot(x_m - x_m[col], (y_m - y_m[row])[:, None]) <= PEAK_RADIUS_M


# n(c) = sum_d p(d) / (1 + |c - d|^2 / r^2)        r = PEAK_RADIUS_M
def best_surroundings(heatmap: Heatmap) -> np.ndarray:
    """The position (2,) with the most probability n about it, near cells counting more.

    It is the mean of the probability within PEAK_RADIUS_M of the cell with the largest n.  A
    cluster of likely cells wins against one that is a little likelier than each of them.  In a
    heat map that says nothing it is the middle, which is the least wrong answer.
    """
    probability = np.exp(heatmap.log_probability)
    rows, cols = probability.shape
    row, col = np.arange(1 - rows, rows)[:, None], np.arange(1 - cols, cols)
    distance2_m2 = heatmap.grid.cell_m ** 2 * (row ** 2 + col ** 2)
    n = fftconvolve(probability, 1.0 / (1.0 + distance2_m2 / PEAK_RADIUS_M ** 2))[
        rows - 1:2 * rows - 1, cols - 1:2 * cols - 1]
    near = _cells_near(heatmap.grid, *np.unravel_index(int(n.argmax()), n.shape))
    mean_m, _ = moments(probability * near, list(heatmap.grid.cell_centres()))
    return mean_m


def peak_pose(heatmap: Heatmap, prior: PoseEstimate, sharpening: float = 1.0,
              min_mass: float = 0.5, inflation: float = 1.0) -> tuple[PoseEstimate, bool]:
    """The pose of a single image at the peak of its heat map, and whether it is ambiguous.

    The pose has the mean of the peak, and its covariance times ``inflation``.  If less than
    ``min_mass`` of the probability lies at the peak, the image is ambiguous: the position is that
    of ``best_surroundings`` and the covariance that of the whole window.  The mass and the
    covariance of a peak are of log-probabilities times ``sharpening``, because a temperature that
    allows for wrong images makes the peaks of right ones too wide.  Without headings in the heat
    map the heading is that of the prior.
    """
    if heatmap.volume is None:
        yaws_rad, volume = np.array([prior.pose.yaw_rad]), heatmap.log_probability[None]
        yaw_variance = prior.covariance[2, 2]
    else:
        yaws_rad, volume = finer_yaws(heatmap.yaws_rad, heatmap.volume, YAW_REFINE)
        yaw_variance = (yaws_rad[1] - yaws_rad[0]) ** 2 / 12.0
    x_m, y_m = heatmap.grid.cell_centres()
    peak = peak_of(heatmap, sharpening)
    ambiguous = peak.mass < min_mass
    factor = 1.0 if ambiguous else sharpening
    weight = np.exp(factor * (volume - volume.max()))                           # (K, R, C)
    best_m = np.array([x_m[peak.col], y_m[peak.row]])
    if ambiguous:
        best_m = best_surroundings(heatmap)
    else:
        rows, cols = peak.near.any(1), peak.near.any(0)
        weight = (weight * peak.near)[:, rows][:, :, cols]
        x_m, y_m = x_m[cols], y_m[rows]
    mean, covariance = moments(
        weight, [x_m - best_m[0], y_m - best_m[1], yaws_rad - prior.pose.yaw_rad])
    if ambiguous:  # the second moments about that place, not about the mean
        mean_from_best = np.array([mean[0], mean[1], 0.0])
        covariance += np.outer(mean_from_best, mean_from_best)
        mean[:2] = 0.0
    cell_variance = heatmap.grid.cell_m ** 2 / 12.0
    covariance += np.diag([cell_variance, cell_variance, yaw_variance])
    if not ambiguous:
        covariance *= inflation
    pose = Pose2D(float(best_m[0] + mean[0]), float(best_m[1] + mean[1]),
                  wrap_angle(prior.pose.yaw_rad + float(mean[2])))
    return PoseEstimate(heatmap.stamp_ns, pose, covariance), ambiguous


def distance2_within(share: float, dof: float, dimensions: int = 3) -> float:
    """The quantile ``share`` of the squared Mahalanobis distance of errors, by their covariance.

    The errors have a multivariate Student t distribution with ``dof`` > 2 degrees of freedom.  Its
    covariance is dof / (dof - 2) times its shape matrix.  With the shape matrix, distance2 /
    dimensions has an F distribution (Kotz and Nadarajah, Multivariate t Distributions, 2004).
    """
    if dof >= GAUSSIAN_DOF:
        return float(chdtri(dimensions, 1.0 - share))
    return float(dimensions * fdtri(dimensions, dof, share) * (dof - 2.0) / dof)
