"""Errors of poses against the truth, and whether the covariances agree with the errors.

Every row of a table is judged by the same rules: the pose of base_link in ``map``, at every image
after the first ``SETTLING_S`` at which the truth is known, outages included.  At an image without
a pose, the last pose of the row is moved on by odometry (:func:`propagate`).  The node and the
Localizer use nothing of this.
"""

import csv
from dataclasses import dataclass
import math
from pathlib import Path

import numpy as np

from crossview_localizer.datatypes import GnssFix
from crossview_localizer.geometry import body_axes_error, Pose2D, wrap_angle
from crossview_localizer.trajectory import Track

SETTLING_S = 5.0
GNSS_VELOCITY_WINDOW_S = 2.0
GNSS_EXTRAPOLATION_S = 1.0
GNSS_COURSE_MIN_MPS = 1.0

# 95 % points of the chi-square distribution by degrees of freedom.
CHI2_95 = {2: 5.991464547107979, 3: 7.814727903251179}

METRICS = (
    'median_m', 'mean_m', 'p95_m', 'lateral_median_m', 'longitudinal_median_m',
    'heading_median_deg', 'coverage_95', 'nees_mean', 'n', 'n_expected',
)
ROWS = (
    'gnss_only', 'odometry_only', 'prior', 'image_blind', 'refined', 'raw_correlation',
    'random_init',
)
COVARIANCE_FIELDS = {
    'xx_m2': (0, 0), 'xy_m2': (0, 1), 'xyaw_mrad': (0, 2),
    'yy_m2': (1, 1), 'yyaw_mrad': (1, 2), 'yawyaw_rad2': (2, 2),
}


@dataclass(frozen=True)
class Comparison:
    """The poses of several methods at the images of a drive, and the truth.

    A line is an image: all tracks have the same stamps.  A row is a method: ``rows`` has its poses
    and ``outcomes`` the outcome of each image.  ``evaluated`` (n,) bool marks the lines that
    count: after the settling time, with the truth known.
    """

    truth: Track
    evaluated: np.ndarray
    rows: dict[str, Track]
    outcomes: dict[str, list[str]]


def settled(truth: Track) -> np.ndarray:
    """The lines that count: later than ``SETTLING_S`` after the first, with the truth known."""
    age_s = (truth.stamps_ns - truth.stamps_ns[0]) * 1e-9
    return (age_s > SETTLING_S) & np.isfinite(truth.poses).all(axis=1)


def propagate(outputs: Track, odometry: Track, stamps_ns) -> Track:
    """The newest output at or before each stamp, moved on by odometry; NaN before the first.

    Before its first and after its last sample the odometry is taken to stand still.  The
    covariance is propagated by the Jacobian of the motion, without added noise.
    """
    def odom_from_base(stamp_ns: int) -> Pose2D:
        first_ns, last_ns = odometry.stamps_ns[[0, -1]].tolist()
        return odometry.pose_at(min(max(stamp_ns, first_ns), last_ns), math.inf)

    moved = Track.empty(stamps_ns)
    for row, stamp_ns in enumerate(moved.stamps_ns.tolist()):
        last = int(np.searchsorted(outputs.stamps_ns, stamp_ns, side='right')) - 1
        if last < 0:
            continue
        if outputs.stamps_ns[last] == stamp_ns:
            moved.poses[row] = outputs.poses[last]
            moved.covariances[row] = outputs.covariances[last]
            continue
        odom_from_last = odom_from_base(int(outputs.stamps_ns[last]))
        last_from_now = odom_from_last.inverse() @ odom_from_base(stamp_ns)
        map_from_now = outputs.pose(last) @ last_from_now
        moved.poses[row] = map_from_now.as_array()
        # d(x, y)/d(yaw) of the composition is its translation turned by 90 degrees.
        jacobian = np.eye(3)
        jacobian[0, 2] = -(map_from_now.y_m - outputs.poses[last, 1])
        jacobian[1, 2] = map_from_now.x_m - outputs.poses[last, 0]
        moved.covariances[row] = jacobian @ outputs.covariances[last] @ jacobian.T
    return moved


def odometry_only(odometry: Track, truth: Track) -> Track:
    """Odometry alone, from the first known true pose on; it claims no covariance."""
    start = int(np.argmax(np.isfinite(truth.poses).all(axis=1)))
    starts_true = Track(
        truth.stamps_ns[start:start + 1], truth.poses[start:start + 1],
        truth.covariances[start:start + 1])
    return propagate(starts_true, odometry, truth.stamps_ns)


def gnss_only(fixes: list[GnssFix], stamps_ns) -> Track:
    """The last fix, moved on by the velocity of the fixes; no heading is claimed.

    The velocity is the least-squares slope of the fixes of the last ``GNSS_VELOCITY_WINDOW_S``,
    or zero if they span less than a quarter of that.  A fix is moved on for at most
    ``GNSS_EXTRAPOLATION_S``; in an outage the position then stands still.  The lever arm is turned
    by the course of motion, or by the last known course below ``GNSS_COURSE_MIN_MPS``; before the
    first course it is left out.  The covariance is the one that the receiver reported.
    """
    track = Track.empty(stamps_ns)
    fixes = sorted(fixes, key=lambda fix: fix.stamp_ns)
    fix_stamps_ns = np.array([fix.stamp_ns for fix in fixes], np.int64)
    positions_m = np.array([(fix.x_m, fix.y_m) for fix in fixes]).reshape(-1, 2)
    course_rad = None
    for row, stamp_ns in enumerate(track.stamps_ns):
        last = int(np.searchsorted(fix_stamps_ns, stamp_ns, side='right')) - 1
        if last < 0:
            continue
        since_s = (fix_stamps_ns[:last + 1] - fix_stamps_ns[last]) * 1e-9
        recent = since_s >= -GNSS_VELOCITY_WINDOW_S
        velocity_mps = np.zeros(2)
        if since_s[recent][0] <= -GNSS_VELOCITY_WINDOW_S / 4:
            velocity_mps = np.polyfit(since_s[recent], positions_m[:last + 1][recent], 1)[0]
        if math.hypot(*velocity_mps) >= GNSS_COURSE_MIN_MPS:
            course_rad = math.atan2(velocity_mps[1], velocity_mps[0])
        age_s = min((stamp_ns - fix_stamps_ns[last]) * 1e-9, GNSS_EXTRAPOLATION_S)
        position_m = positions_m[last] + velocity_mps * age_s
        if course_rad is not None:
            turned = Pose2D(0.0, 0.0, course_rad)
            position_m = position_m - turned.transform(np.array(fixes[last].base_from_antenna_m))
        track.poses[row, :2] = position_m
        track.covariances[row, :2, :2] = fixes[last].covariance
    return track


def normalized_errors(errors: np.ndarray, covariances: np.ndarray) -> np.ndarray:
    """Squared Mahalanobis lengths (n,) of errors (n, d).

    They are NaN without a covariance, and inf if it is not positive definite.
    """
    squared = np.full(len(errors), np.nan)
    known = np.isfinite(errors).all(axis=1) & np.isfinite(covariances).all(axis=(1, 2))
    for row in np.flatnonzero(known):
        try:
            lower = np.linalg.cholesky(covariances[row])
        except np.linalg.LinAlgError:
            squared[row] = np.inf
            continue
        squared[row] = np.sum(np.linalg.solve(lower, errors[row]) ** 2)
    return squared


def pose_errors(estimate: Track, truth: Track) -> dict[str, np.ndarray]:
    """The errors of each line, (n,) each.

    They are position_m, the signed longitudinal_m and lateral_m, heading_rad, and nees, the
    squared Mahalanobis error with ``dof`` degrees of freedom.  nees is over (x, y, yaw) if the row
    claims a yaw variance anywhere, else over (x, y).
    """
    error = estimate.poses - truth.poses
    error[:, 2] = wrap_angle(error[:, 2])
    longitudinal_m, lateral_m = body_axes_error(error[:, :2], truth.poses[:, 2])
    dof = 3 if np.isfinite(estimate.covariances[:, 2, 2]).any() else 2
    return {
        'position_m': np.hypot(error[:, 0], error[:, 1]),
        'longitudinal_m': longitudinal_m,
        'lateral_m': lateral_m,
        'heading_rad': error[:, 2],
        'nees': normalized_errors(error[:, :dof], estimate.covariances[:, :dof, :dof]),
        'dof': dof,
    }


def metrics(estimate: Track, truth: Track, evaluated: np.ndarray) -> dict[str, float | int | None]:
    """The METRICS of one row; None if undefined.

    ``n_expected`` lines are evaluated; in ``n`` of them the row has a position.  ``coverage_95``
    is the share of errors inside the claimed 95 % ellipse, and ``nees_mean`` the mean squared
    Mahalanobis error (ideal: the degrees of freedom, see :func:`pose_errors`), both over the lines
    with a covariance.
    """
    errors = pose_errors(estimate, truth)
    used = evaluated & np.isfinite(errors['position_m'])
    position_m = errors['position_m'][used]
    nees = errors['nees'][used]
    nees = nees[~np.isnan(nees)]
    heading_rad = errors['heading_rad'][used]
    heading_rad = heading_rad[np.isfinite(heading_rad)]

    def statistic(function, values):
        if not len(values):
            return None
        value = float(function(values))
        return value if math.isfinite(value) else None

    return {
        'median_m': statistic(np.median, position_m),
        'mean_m': statistic(np.mean, position_m),
        'p95_m': statistic(lambda values: np.percentile(values, 95), position_m),
        'lateral_median_m': statistic(np.median, np.abs(errors['lateral_m'][used])),
        'longitudinal_median_m': statistic(np.median, np.abs(errors['longitudinal_m'][used])),
        'heading_median_deg': statistic(np.median, np.degrees(np.abs(heading_rad))),
        'coverage_95': statistic(lambda values: np.mean(values <= CHI2_95[errors['dof']]), nees),
        'nees_mean': statistic(np.mean, nees),
        'n': int(used.sum()),
        'n_expected': int(evaluated.sum()),
    }


def metrics_by_row(comparison: Comparison) -> dict[str, dict]:
    """Row name to :func:`metrics`."""
    return {
        name: metrics(track, comparison.truth, comparison.evaluated)
        for name, track in comparison.rows.items()
    }


def pool(drives: list[Comparison]) -> Comparison:
    """Join the lines of several drives to one comparison, with the rows that all drives have."""
    def joined(tracks: list[Track]) -> Track:
        return Track(
            np.concatenate([track.stamps_ns for track in tracks]),
            np.concatenate([track.poses for track in tracks]),
            np.concatenate([track.covariances for track in tracks]))

    names = [name for name in drives[0].rows if all(name in drive.rows for drive in drives)]
    return Comparison(
        joined([drive.truth for drive in drives]),
        np.concatenate([drive.evaluated for drive in drives]),
        {name: joined([drive.rows[name] for drive in drives]) for name in names},
        {name: [text for drive in drives for text in drive.outcomes[name]] for name in names},
    )


def percentiles(values) -> dict[str, float | None]:
    """p50, p95 and p99; None without values."""
    values = np.asarray(values, float)
    return {
        f'p{share}': float(np.percentile(values, share)) if len(values) else None
        for share in (50, 95, 99)
    }


def table(results: dict[str, dict]) -> str:
    """Format the metrics of each row as aligned text."""
    heads = ('median', 'mean', 'p95', 'lateral', 'longit.', 'heading', 'cover', 'nees', 'n / of')
    units = ('m', 'm', 'm', 'm', 'm', 'deg', '95 %', 'mean', '')
    lines = [
        f'{"":16}' + ''.join(f'{head:>9}' for head in heads[:-1]) + f'{heads[-1]:>13}',
        f'{"":16}' + ''.join(f'{unit:>9}' for unit in units),
    ]
    for name, result in results.items():
        cells = ''.join(
            f'{"-":>9}' if result[key] is None else f'{result[key]:9.2f}' for key in METRICS[:8])
        count = f'{result["n"]} / {result["n_expected"]}'
        lines.append(f'{name:16}{cells}{count:>13}')
    return '\n'.join(lines)


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write one line per image; the cell of a missing value is empty."""
    header = ['stamp_ns', 'evaluated', 'truth_x_m', 'truth_y_m', 'truth_yaw_rad']
    for name in comparison.rows:
        header += [f'{name}_{part}' for part in ('x_m', 'y_m', 'yaw_rad', *COVARIANCE_FIELDS)]
        header.append(f'{name}_outcome')
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for line in range(len(comparison.truth)):
            numbers = [*comparison.truth.poses[line]]
            cells = [int(comparison.truth.stamps_ns[line]), int(comparison.evaluated[line])]
            cells += _cells(numbers)
            for name, track in comparison.rows.items():
                cells += _cells(track.poses[line])
                cells += _cells(track.covariances[line][at] for at in COVARIANCE_FIELDS.values())
                cells.append(comparison.outcomes[name][line])
            writer.writerow(cells)


def _cells(numbers) -> list[str]:
    return ['' if math.isnan(number) else repr(float(number)) for number in numbers]


def read_comparison(path: Path) -> Comparison:
    """Read a file of :func:`write_comparison`; raises ValueError for another file."""
    with open(path, newline='', encoding='utf-8') as file:
        lines = list(csv.DictReader(file))
    if not lines or 'stamp_ns' not in lines[0] or 'truth_yaw_rad' not in lines[0]:
        raise ValueError(f'{path} holds no frames; expected a frames.csv that the demo wrote')

    def column(name):
        return np.array([float(line[name] or 'nan') for line in lines])

    def poses(name):
        return np.stack([column(f'{name}_{part}') for part in ('x_m', 'y_m', 'yaw_rad')], axis=-1)

    stamps_ns = np.array([int(line['stamp_ns']) for line in lines], np.int64)
    truth = Track(stamps_ns, poses('truth'), np.full((len(lines), 3, 3), np.nan))
    rows, outcomes = {}, {}
    for name in (key.removesuffix('_outcome') for key in lines[0] if key.endswith('_outcome')):
        covariances = np.empty((len(lines), 3, 3))
        for part, (row, col) in COVARIANCE_FIELDS.items():
            covariances[:, row, col] = covariances[:, col, row] = column(f'{name}_{part}')
        rows[name] = Track(stamps_ns, poses(name), covariances)
        outcomes[name] = [line[f'{name}_outcome'] for line in lines]
    evaluated = np.array([line['evaluated'] == '1' for line in lines])
    return Comparison(truth, evaluated, rows, outcomes)
