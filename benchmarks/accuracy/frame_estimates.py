"""Estimates of single frames: their metrics per method, and the file that holds them."""

import csv
from dataclasses import dataclass, replace
import gzip
import math
from pathlib import Path

import numpy as np

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.evaluation.pose_metrics import pose_errors
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.heatmap_pose import distance2_within
from crossview_localizer.networks.dense import GAUSSIAN_DOF
from crossview_localizer.trajectory import Track

SHARES = {'coverage_68': 0.68, 'coverage_95': 0.95}


@dataclass(frozen=True)
class FrameEstimate:
    """The estimate of one method for one frame.

    ``dof`` are the degrees of freedom of the Student t by which the error is claimed to be
    distributed.
    """

    world: str
    index: int
    method: str
    truth: Pose2D
    estimate: PoseEstimate
    ambiguous: bool
    dof: float = GAUSSIAN_DOF


def with_image_blind(estimates: list[FrameEstimate]) -> list[FrameEstimate]:
    """Add, as ``image_blind``, those of the better method that never sees the right image."""
    rows = summarize([e for e in estimates if e.method in ('shuffled_images', 'blind_trained')])
    if not rows:
        return estimates
    better = min(rows, key=lambda method: rows[method]['median_m'])
    return estimates + [
        replace(e, method='image_blind') for e in estimates if e.method == better]


def summarize(frames: list[FrameEstimate]) -> dict[str, dict]:
    """The metrics of each method, as in ``docs/results/dense.json``."""
    found = {}
    for method in dict.fromkeys(frame.method for frame in frames):
        own = [frame for frame in frames if frame.method == method]
        errors = pose_errors(
            Track.from_poses(range(len(own)), [frame.estimate.pose for frame in own],
                             [frame.estimate.covariance for frame in own]),
            Track.from_poses(range(len(own)), [frame.truth for frame in own]))
        error = errors['position_m']
        semi_major = [math.sqrt(np.linalg.eigvalsh(frame.estimate.covariance[:2, :2])[-1])
                      for frame in own]
        found[method] = {
            'median_m': float(np.median(error)), 'mean_m': float(error.mean()),
            'p95_m': float(np.percentile(error, 95)),
            'heading_median_deg': float(np.degrees(np.median(np.abs(errors['heading_rad'])))),
            'lateral_median_m': float(np.median(np.abs(errors['lateral_m']))),
            'longitudinal_median_m': float(np.median(np.abs(errors['longitudinal_m']))),
            **{key: float(np.mean(
                errors['nees'] <= [distance2_within(share, frame.dof) for frame in own]))
               for key, share in SHARES.items()},
            'ambiguous': float(np.mean([frame.ambiguous for frame in own])),
            'semi_major_m': float(np.median(semi_major)), 'n': len(own)}
    return found


def table(summary: dict[str, dict]) -> str:
    lines = [f'{"":18}{"median":>8}{"mean":>8}{"p95":>8}{"lat.":>7}{"long.":>7}{"head.":>7}'
             f'{"c68":>6}{"c95":>6}{"ambig.":>7}{"major":>7}{"n":>6}']
    for method, row in summary.items():
        lines.append(
            f'{method:18}{row["median_m"]:8.2f}{row["mean_m"]:8.2f}{row["p95_m"]:8.2f}'
            f'{row["lateral_median_m"]:7.2f}{row["longitudinal_median_m"]:7.2f}'
            f'{row["heading_median_deg"]:7.2f}{row["coverage_68"]:6.2f}{row["coverage_95"]:6.2f}'
            f'{row["ambiguous"]:7.2f}{row["semi_major_m"]:7.2f}{row["n"]:6d}')
    return '\n'.join(lines)


def write_estimates(frames: list[FrameEstimate], path: Path) -> None:
    """Write a gzipped CSV with one line per frame and method."""
    with write_atomically(path) as writing, gzip.open(writing, 'wt', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['world', 'frame', 'method', 'outcome', 'truth_x_m', 'truth_y_m',
                         'truth_yaw_rad', 'x_m', 'y_m', 'yaw_rad', 'xx_m2', 'xy_m2', 'yy_m2',
                         'xyaw_mrad', 'yyaw_mrad', 'yawyaw_rad2', 'dof'])
        for frame in frames:
            c = frame.estimate.covariance
            writer.writerow([
                frame.world, frame.index, frame.method, 'ambiguous' if frame.ambiguous else 'ok',
                *(f'{value:.4f}' for value in (*frame.truth.as_array(),
                                               *frame.estimate.pose.as_array())),
                *(f'{value:.6g}' for value in (
                    c[0, 0], c[0, 1], c[1, 1], c[0, 2], c[1, 2], c[2, 2], frame.dof))])


def read_estimates(path: Path) -> list[FrameEstimate]:
    """Read what ``write_estimates`` wrote, at the precision of the file."""
    frames = []
    with gzip.open(path, 'rt', newline='') as file:
        for line in csv.DictReader(file):
            def number(name, line=line):
                return float(line[name])
            xy, xyaw, yyaw = map(number, ('xy_m2', 'xyaw_mrad', 'yyaw_mrad'))
            covariance = np.array([
                [number('xx_m2'), xy, xyaw], [xy, number('yy_m2'), yyaw],
                [xyaw, yyaw, number('yawyaw_rad2')]])
            estimate = PoseEstimate(
                0, Pose2D(number('x_m'), number('y_m'), number('yaw_rad')), covariance)
            truth = Pose2D(*map(number, ('truth_x_m', 'truth_y_m', 'truth_yaw_rad')))
            frames.append(FrameEstimate(line['world'], int(line['frame']), line['method'], truth,
                                estimate, line['outcome'] == 'ambiguous', number('dof')))
    return frames
