"""Ten drives as those of the demo: the prior beside a plain EKF, and errors that last.

This is simulation.  Towns and drives are those of ``make demo`` with the same seeds; the images
are smaller.  What is made is kept, so that a stopped benchmark goes on.
"""

from dataclasses import dataclass, replace
import json
import math
from pathlib import Path

import numpy as np
import torch

from benchmarks.fusion.estimates import calibration, Estimates, pooled
from benchmarks.fusion.fit_match_errors import RecordedDrive
from benchmarks.fusion.peer_ekf import PeerEkf, PEERS, run_alternately
from benchmarks.fusion.rendered import segments
from benchmarks.fusion.towns import render, run_in_processes, Town, town_from_seed
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import GnssFix, OdometrySample
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.geometry import Pose2D
from crossview_localizer.trajectory import Track, TRUTH_MAX_GAP_S

DEMO_WORLDS_FROM = 9000  # as in benchmarks.demo
DRIVE_S, RATE_HZ = 130.0, 4.0
PITCH_OFF_RAD = math.radians(0.5)
# Name: how far the imagery is shifted, whether the pitch is off, and match_sigma_floor_m, which
# docs/fusion.md advises to be half of the shift.
LASTING = {
    'as_mapped': (0.0, False, 0.0),
    'pitch_off_half_a_degree': (0.0, True, 0.0),
    'imagery_shifted_half_a_metre': (0.5, False, 0.0),
    'imagery_shifted_half_a_metre_floor_0.25': (0.5, False, 0.25),
    'imagery_shifted_a_metre': (1.0, False, 0.0),
    'imagery_shifted_a_metre_floor_0.5': (1.0, False, 0.5),
}
# A pose follows a jump if it moves by more than this share of it, until JUMP_ENDS_S after its end.
FOLLOWED_SHARE, JUMP_ENDS_S = 0.5, 2.0
# The least number of images before and within a jump that tell.
JUMP_IMAGES = 2


@dataclass(frozen=True)
class DriveTask:
    """All runs over one drive; ``seed`` is that of its town."""

    folder: Path
    seed: int
    duration_s: float
    weights: Path
    config: LocalizerConfig


@dataclass(frozen=True)
class DriveResult:
    """What the runs over one drive gave.

    ``spent_s`` are processor seconds over ``samples`` of odometry.  ``jumps`` has for each row
    the share of each jump of GNSS that its pose followed.  ``lasting`` has the segments of each
    row of LASTING at each rate.
    """

    comparison: Comparison
    spent_s: dict[str, float]
    samples: int
    jumps: dict[str, list[float]]
    lasting: dict[tuple[str, str], Estimates]


def run_drives(folder: Path, seeds, duration_s: float, weights: Path, config: LocalizerConfig,
               jobs: int) -> dict:
    """The sections peer_ekf and lasting_errors, over the demo's drives of these seeds."""
    tasks = [DriveTask(folder, DEMO_WORLDS_FROM + seed, duration_s, weights, config)
             for seed in seeds]
    found = run_in_processes(run_drive, tasks, jobs)
    return {'peer_ekf': _peer_row(found), 'lasting_errors': _lasting_rows(found)}


def render_drives(folder: Path, seeds, duration_s: float, jobs: int) -> None:
    """Render the drives of ``run_drives``, which depend on no weights."""
    for seed in seeds:
        town = DEMO_WORLDS_FROM + seed
        render(drive_folder(folder, town), town, duration_s, jobs, RATE_HZ)


def drive_folder(folder: Path, town: int) -> Path:
    return folder / f'drive_{town}'


def run_drive(task: DriveTask) -> DriveResult:
    """Make the drive if it is missing, and do all runs over it."""
    torch.set_num_threads(1)
    folder = drive_folder(task.folder, task.seed)
    town, town_off = (
        town_from_seed(folder, task.seed, task.duration_s, task.weights, jobs=1, rate_hz=RATE_HZ,
                       pitch_rad=pitch_rad) for pitch_rad in (0.0, PITCH_OFF_RAD))
    recorded = RecordedDrive(town, task.config)
    fixes = [event for event in town.events if isinstance(event, GnssFix)]
    images_ns = [image.stamp_ns for image in town.images]
    truth = town.truth.at(images_ns, TRUTH_MAX_GAP_S)
    filters = {'prior': PoseFilter(task.config.filter)} | {
        name: PeerEkf(noise, _true_yaw_rad(town.truth, fixes[0].stamp_ns))
        for name, noise in PEERS.items()}
    tracks, spent_s = run_alternately(filters, town.events)
    tracks['refined'] = recorded.refined
    rows = {'gnss_only': pose_metrics.gnss_only(fixes, images_ns)} | {
        name: pose_metrics.propagate(tracks[name], town.odometry, images_ns)
        for name in (*PEERS, 'prior', 'refined')}
    comparison = Comparison(
        truth, pose_metrics.settled(truth), rows, {name: [''] * len(truth) for name in rows})
    world = json.loads((folder / 'world/world.json').read_text(encoding='utf-8'))
    jumps_us = [jump['interval_us'] for jump in world['traversals'][0]['gnss']['jumps']]
    return DriveResult(
        comparison, spent_s, sum(isinstance(event, OdometrySample) for event in town.events),
        {name: followed_shares(track, town.truth, fixes, jumps_us)
         for name, track in rows.items() if name != 'gnss_only'},
        _lasting(recorded, RecordedDrive(town_off, task.config), town, task))


def _true_yaw_rad(truth: Track, stamp_ns: int) -> float:
    return float(truth.poses[np.argmin(np.abs(truth.stamps_ns - stamp_ns)), 2])


def followed_shares(track: Track, truth: Track, fixes: list[GnssFix], jumps_us) -> list[float]:
    """The largest share of each jump of GNSS by which a pose moved with it.

    ``jumps_us`` are their begins and ends in microseconds.  A jump that no fixes show, as in an
    outage, is left out.
    """
    fix_ns = np.array([fix.stamp_ns for fix in fixes], np.int64)
    fix_errors_m = np.array([(fix.x_m, fix.y_m) for fix in fixes]) - np.array(
        [_antenna_m(truth.pose_at(fix.stamp_ns, TRUTH_MAX_GAP_S), fix) for fix in fixes])
    errors_m = (track.poses - truth.at(track.stamps_ns, TRUTH_MAX_GAP_S).poses)[:, :2]
    shares = []
    for begin_ns, end_ns in 1000 * np.asarray(jumps_us, np.int64).reshape(-1, 2):
        until_ns = min(end_ns, begin_ns + 2 * 10**9)
        jump_m = (_median_between(fix_ns, fix_errors_m, begin_ns, until_ns)
                  - _median_between(fix_ns, fix_errors_m, begin_ns - 2 * 10**9, begin_ns))
        before_m = _median_between(track.stamps_ns, errors_m, begin_ns - 10**9, begin_ns)
        during = (track.stamps_ns > begin_ns) & (
            track.stamps_ns <= end_ns + JUMP_ENDS_S * 1e9) & np.isfinite(errors_m[:, 0])
        if np.isfinite(jump_m).all() and np.isfinite(before_m).all() and during.any():
            moved = (errors_m[during] - before_m) @ jump_m / (jump_m @ jump_m)
            shares.append(float(moved.max()))
    return shares


def _antenna_m(pose: Pose2D | None, fix: GnssFix) -> np.ndarray:
    """Where the antenna truly was, or NaN."""
    if pose is None:
        return np.full(2, np.nan)
    return pose.transform(np.array(fix.base_from_antenna_m))


def _median_between(stamps_ns, values, begin_ns: int, end_ns: int) -> np.ndarray:
    """The median (2,) of what is known after one stamp and until another; NaN if it is little."""
    inside = (stamps_ns > begin_ns) & (stamps_ns <= end_ns) & np.isfinite(values[:, 0])
    return np.median(values[inside], axis=0) if inside.sum() >= JUMP_IMAGES else np.full(2, np.nan)


def _lasting(recorded: RecordedDrive, recorded_off: RecordedDrive, town: Town,
             task: DriveTask) -> dict[tuple[str, str], Estimates]:
    errors, found = town.loaded.matcher.errors, {}
    bearing_rad = np.random.default_rng([task.seed, 19]).uniform(-math.pi, math.pi)
    towards = np.array([math.cos(bearing_rad), math.sin(bearing_rad)])
    for name, (shift_m, pitched, floor_m) in LASTING.items():
        config = replace(task.config.filter, match_sigma_floor_m=floor_m)
        drive = recorded_off if pitched else recorded
        for rate, every in (('4_hz', 1), ('1_hz', 4)):
            found[name, rate] = segments(
                drive.run(errors, every, shift_m * towards, config))
    return found


def _peer_row(found: list[DriveResult]) -> dict:
    rows = pose_metrics.metrics_by_row(pose_metrics.pool([part.comparison for part in found]))
    samples = sum(part.samples for part in found)
    spent_ms = {name: 1e3 * sum(part.spent_s[name] for part in found) / samples
                for name in found[0].spent_s}
    jumps = {name: [share for part in found for share in part.jumps[name]]
             for name in found[0].jumps}
    return {
        'rows': rows,
        'prior_to_gnss_only': {
            key: rows['prior'][key] / rows['gnss_only'][key] for key in ('median_m', 'p95_m')},
        'cpu_ms_per_odometry': spent_ms,
        'cpu_prior_to_peer': spent_ms['prior'] / spent_ms['peer_ekf'],
        'jumps': {name: {'followed': sum(share > FOLLOWED_SHARE for share in shares),
                         'largest_share': max(shares, default=None), 'n': len(shares)}
                  for name, shares in jumps.items()},
        'median_m_by_drive': {
            name: [pose_metrics.metrics(
                part.comparison.rows[name], part.comparison.truth,
                part.comparison.evaluated)['median_m'] for part in found] for name in rows},
        'statement': 'SIMULATION: drives of the demo at images after 5 s, outages included; the '
                     'peers are told the true heading at the start',
    }


def _lasting_rows(found: list[DriveResult]) -> dict:
    rows: dict[str, dict] = {}
    for name, rate in found[0].lasting:
        parts = [part.lasting[name, rate] for part in found]
        estimates = pooled(parts)
        rows.setdefault(name, {})[rate] = calibration(estimates) | {
            'median_m': float(np.median(estimates.position_m)),
            'least_coverage_95': min(calibration(part)['coverage_95'] for part in parts)}
    return rows
