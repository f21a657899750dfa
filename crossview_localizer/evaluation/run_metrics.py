"""A recorded run as a comparison with the truth, and what can be said of it without truth."""

import numpy as np

from crossview_localizer.bags.recorded_run import RecordedRun
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.trajectory import Track, TRUTH_MAX_GAP_S

OUTAGE_S = 3.0


def compare_with_truth(run: RecordedRun) -> Comparison:
    """The published poses against the truth, where there is any: lines are the poses' stamps."""
    stamps_ns = run.poses.stamps_ns
    truth = run.truth.at(stamps_ns, TRUTH_MAX_GAP_S)
    settled = (stamps_ns - run.start_ns) * 1e-9 > pose_metrics.SETTLING_S
    evaluated = settled & np.isfinite(truth.poses).all(axis=1)
    rows = {'refined': run.poses}
    if len(run.priors):
        rows['before_match'] = run.priors.aligned(stamps_ns)
    if run.fixes and evaluated.any():
        rows['gnss_only'] = pose_metrics.gnss_only(run.fixes, stamps_ns)
    outcomes = {name: [''] * len(stamps_ns) for name in rows}
    outcomes['refined'] = run.outcomes().tolist()
    return Comparison(truth, evaluated, rows, outcomes)


def innovations(run: RecordedRun) -> np.ndarray:
    """Squared Mahalanobis lengths (m,) of match minus prior, under both covariances, over (x, y).

    Chi-square with two degrees of freedom where both are honest and independent.
    """
    priors = run.priors.aligned(run.matches.stamps_ns)
    difference_m = run.matches.poses[:, :2] - priors.poses[:, :2]
    covariance = run.matches.covariances[:, :2, :2] + priors.covariances[:, :2, :2]
    squared = pose_metrics.normalized_errors(difference_m, covariance)
    return squared[np.isfinite(squared)]


def outages(fixes_ns: np.ndarray, start_ns: int, end_ns: int) -> list[tuple[int, int]]:
    """Gaps of the fixes that are longer than ``OUTAGE_S``, as (begin, end) in ns."""
    ends_ns = np.unique(np.concatenate((np.asarray(fixes_ns, np.int64), [start_ns, end_ns])))
    ends_ns = ends_ns[(ends_ns >= start_ns) & (ends_ns <= end_ns)]
    return [(int(begin), int(end)) for begin, end in zip(ends_ns, ends_ns[1:])
            if end - begin > OUTAGE_S * 1e9]


def calibration_series(
    run: RecordedRun, comparison: Comparison,
) -> dict[str, tuple[np.ndarray, int]]:
    """Label to squared Mahalanobis lengths and their degrees of freedom, of what there is."""
    series = {}
    for name in ('refined', 'before_match'):
        if name in comparison.rows and comparison.evaluated.any():
            errors = pose_metrics.pose_errors(comparison.rows[name], comparison.truth)
            nees = errors['nees'][comparison.evaluated]
            series[name.replace('_', ' ')] = nees[~np.isnan(nees)], errors['dof']
    if len(run.matches) and len(run.priors):
        series['match minus prior'] = innovations(run), 2
    return {name: (values, dof) for name, (values, dof) in series.items() if len(values)}


def peak_references(run: RecordedRun, comparison: Comparison) -> Track:
    """For each heat map the pose that its peak is held against: the truth, else the prior."""
    if not comparison.evaluated.any():
        return run.priors.aligned(run.heatmap_ns)
    used, truth = comparison.evaluated, comparison.truth
    return Track(truth.stamps_ns[used], truth.poses[used], truth.covariances[used]).aligned(
        run.heatmap_ns)
