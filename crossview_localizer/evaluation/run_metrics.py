"""Compares a recorded run with the truth, or, without truth, its matches with its priors."""

from dataclasses import replace

import numpy as np

from crossview_localizer.bags.recorded_run import RecordedRun
from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import MatchErrors, OdometrySample, PoseEstimate
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.fusion.smoother import smooth_drive
from crossview_localizer.trajectory import Track, TRUTH_MAX_GAP_S

OUTAGE_S = 3.0


def compare_with_truth(run: RecordedRun) -> Comparison:
    """Compare the published poses with the truth; the lines are the stamps of the poses.

    No line is evaluated if the recording has no truth.
    """
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


def with_row(comparison: Comparison, name: str, track: Track) -> Comparison:
    """The comparison with one more row, whose images have no outcomes."""
    return replace(
        comparison, rows=comparison.rows | {name: track},
        outcomes=comparison.outcomes | {name: [''] * len(track)})


def smooth_run(
    run: RecordedRun, config: FilterConfig, errors: MatchErrors | None, stamps_ns: np.ndarray,
) -> Track:
    """The smoothed poses at these stamps, from odometry, fixes and the matches that were used.

    NaN where there is none, and everywhere without odometry.  ``config`` is that of the node,
    ``errors`` are the matcher's.
    """
    odometry = run.odometry
    used = {status.stamp_ns for status in run.statuses if status.outcome == 'used'}
    measurements = [
        OdometrySample(int(stamp_ns), odometry.pose(row))
        for row, stamp_ns in enumerate(odometry.stamps_ns)]
    measurements += run.fixes
    measurements += [
        PoseEstimate(int(stamp_ns), run.matches.pose(row), run.matches.covariances[row])
        for row, stamp_ns in enumerate(run.matches.stamps_ns)
        if not run.statuses or int(stamp_ns) in used]
    return smooth_drive(measurements, config, errors, stamps_ns)


def innovations(run: RecordedRun) -> np.ndarray:
    """Squared Mahalanobis lengths (m,) of match minus prior over (x, y), by the summed covariance.

    They are chi-square with two degrees of freedom if both covariances are right and the errors
    independent.
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
    """What the calibration plot can show: see ``pose_figures.draw_calibration``."""
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
    """The pose with which the peak of each heat map is compared: the truth, else the prior."""
    if not comparison.evaluated.any():
        return run.priors.aligned(run.heatmap_ns)
    used, truth = comparison.evaluated, comparison.truth
    return Track(truth.stamps_ns[used], truth.poses[used], truth.covariances[used]).aligned(
        run.heatmap_ns)
