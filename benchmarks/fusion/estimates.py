"""Estimates of a filter beside the truth, their errors, coverage and NEES, and their file."""

import csv
from dataclasses import dataclass
import gzip
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.evaluation.pose_metrics import CHI2_95
from crossview_localizer.geometry import wrap_angle
from crossview_localizer.trajectory import Track

AXES = ('longitudinal', 'lateral', 'heading')
FRAME_FIELDS = (
    'section', 'case', 'method', 'stamp_ns', 'truth_x_m', 'truth_y_m', 'truth_yaw_rad', 'x_m',
    'y_m', 'yaw_rad', 'xx_m2', 'xy_m2', 'xyaw_mrad', 'yy_m2', 'yyaw_mrad', 'yawyaw_rad2',
    'outcome')


@dataclass(frozen=True)
class Estimates:
    """Estimates of a filter at some stamps, beside the truth.

    ``poses`` and ``truth`` (n, 3), ``covariances`` (n, 3, 3).
    """

    stamps_ns: np.ndarray
    poses: np.ndarray
    covariances: np.ndarray
    truth: np.ndarray

    @classmethod
    def beside(cls, truth: np.ndarray, found: list[PoseEstimate]) -> 'Estimates':
        """Estimates and the true poses (n, 3) at their stamps."""
        return cls(
            np.array([estimate.stamp_ns for estimate in found], np.int64),
            np.array([estimate.pose.as_array() for estimate in found]),
            np.array([estimate.covariance for estimate in found]), truth)

    def chosen(self, lines: np.ndarray) -> 'Estimates':
        """Those of some indices, or of a mask."""
        return Estimates(self.stamps_ns[lines], self.poses[lines], self.covariances[lines],
                         self.truth[lines])

    @property
    def errors(self) -> np.ndarray:
        """Signed errors (n, 3) in x, y, yaw."""
        errors = self.poses - self.truth
        errors[:, 2] = wrap_angle(errors[:, 2])
        return errors

    @property
    def position_m(self) -> np.ndarray:
        return np.linalg.norm(self.errors[:, :2], axis=1)

    @property
    def nees(self) -> np.ndarray:
        """Squared Mahalanobis error over x, y, yaw (n,); ideal mean 3."""
        errors = self.errors
        return np.einsum(
            'ni,ni->n', errors, np.linalg.solve(self.covariances, errors[..., None])[..., 0])

    def metrics(self) -> dict:
        """``sigma_median_m`` is that of the largest sigma of the position."""
        nees, variances_m2 = self.nees, np.linalg.eigvalsh(self.covariances[:, :2, :2])
        return {
            'median_m': float(np.median(self.position_m)),
            'p95_m': float(np.percentile(self.position_m, 95)),
            'heading_median_deg': float(np.degrees(np.median(np.abs(self.errors[:, 2])))),
            'coverage_95': float(np.mean(nees <= CHI2_95[3])),
            'nees_mean': float(np.mean(nees)),
            'sigma_median_m': float(np.median(np.sqrt(variances_m2[:, 1]))),
            'n': len(nees),
        }


def pooled(parts: list[Estimates]) -> Estimates:
    return Estimates(*(
        np.concatenate([getattr(part, name) for part in parts])
        for name in ('stamps_ns', 'poses', 'covariances', 'truth')))


def estimates_of(found: list[PoseEstimate], truth: Track, max_gap_s: float) -> Estimates:
    """Those of the estimates at whose stamps the truth is known."""
    true_poses = truth.at([estimate.stamp_ns for estimate in found], max_gap_s).poses
    return Estimates.beside(true_poses, found).chosen(np.isfinite(true_poses).all(axis=1))


def normalized_errors(estimates: Estimates) -> np.ndarray:
    """Signed errors (n, 3) along ``AXES`` in sigmas of the claimed covariance."""
    count = len(estimates.stamps_ns)
    cos, sin = np.cos(estimates.truth[:, 2]), np.sin(estimates.truth[:, 2])
    zero, one = np.zeros(count), np.ones(count)
    # Map to longitudinal, lateral, heading.
    turn = np.moveaxis(np.array(
        [[cos, sin, zero], [-sin, cos, zero], [zero, zero, one]]), -1, 0)        # (n, 3, 3)
    errors = np.einsum('nij,nj->ni', turn, estimates.errors)
    variances = np.einsum('nij,njk,nik->ni', turn, estimates.covariances, turn)
    return errors / np.sqrt(variances)


def calibration(estimates: Estimates) -> dict:
    """Coverage and NEES of all axes together and of each; a band holds 95 % of such means."""
    count = len(estimates.stamps_ns)
    sigmas = normalized_errors(estimates)
    return {
        'coverage_95': float(np.mean(estimates.nees <= CHI2_95[3])),
        'nees_mean': float(np.mean(estimates.nees)),
        'nees_band': (chi2.ppf([0.025, 0.975], 3 * count) / count).tolist(), 'n': count,
        'axes_nees_band': (chi2.ppf([0.025, 0.975], count) / count).tolist(),
        'axes': {
            axis: {'coverage_95': float(np.mean(sigmas[:, index]**2 <= chi2.ppf(0.95, 1))),
                   'nees_mean': float(np.mean(sigmas[:, index]**2))}
            for index, axis in enumerate(AXES)},
    }


def calibration_curve(estimates: Estimates) -> dict:
    """The share of the estimates inside each claimed interval, per axis."""
    claimed = np.linspace(0.02, 0.98, 49)
    squares = normalized_errors(estimates) ** 2                          # (n, 3)
    limits = chi2.ppf(claimed, 1)
    return {
        'claimed': claimed.round(2).tolist(), 'n': len(squares),
        'axes': {axis: np.mean(squares[:, index, None] <= limits, axis=0).round(4).tolist()
                 for index, axis in enumerate(AXES)}}


class EstimateLines:
    """The lines of frames.csv.gz, one per estimate."""

    def __init__(self):
        self.lines = []

    def add(self, section: str, case: str, method: str, estimates: Estimates) -> None:
        for stamp, truth, pose, covariance in zip(
                estimates.stamps_ns, estimates.truth, estimates.poses, estimates.covariances):
            upper = covariance[np.triu_indices(3)]
            numbers = [f'{value:.6g}' for value in (*truth, *pose, *upper)]
            self.lines.append((section, case, method, int(stamp), *numbers, 'estimated'))

    def write(self, path: Path) -> None:
        with gzip.open(path, 'wt', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(FRAME_FIELDS)
            writer.writerows(self.lines)
