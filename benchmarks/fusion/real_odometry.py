"""Real odometry: two visual odometries on KITTI 00, and the wheels of a Husky robot.

On KITTI 00 the odometry and the truth are real; GNSS (4 m of wander) and matches are simulated.
The Husky has no truth: pieces of its own GNSS are held back, and the pose is compared with them.
"""

import math
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import Path2D, SensorLog, stamp_ns
from benchmarks.fusion.estimates import EstimateLines
from benchmarks.fusion.filter_runs import in_order, run_filter
from benchmarks.fusion.real_logs import log_outages
from crossview_localizer.bags.events import read_events
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import FilterConfig, NodeConfig
from crossview_localizer.datatypes import GnssFix, OdometrySample, PoseEstimate
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.fusion.smoother import smooth_drive
from crossview_localizer.geometry import LocalFrame, Pose2D

VISUAL_ODOMETRIES = ('ORB', 'SPTAM')
OUTAGES_S = (60.0, 300.0)
FIRST_OUTAGE_S = 60.0
# Errors of the simulated matches, about those of the shipped network in rendered towns.
MATCH_SIGMA_M, MATCH_YAW_SIGMA_RAD = 0.3, math.radians(0.7)
# Of each HELD_PERIOD_S of the Husky's drive, GNSS is held back for the last HELD_BACK_S.
HELD_PERIOD_S, HELD_BACK_S = 60.0, 30.0


def kitti_poses(path: Path) -> np.ndarray:
    """Planar poses (n, 3) of 3x4 matrices of a camera: x ahead of the first, y left of it."""
    matrices = np.loadtxt(path).reshape(-1, 3, 4)
    return np.column_stack((
        matrices[:, 2, 3], -matrices[:, 0, 3], np.arctan2(-matrices[:, 0, 2], matrices[:, 2, 2])))


def run_kitti_vo(data: Path, seed: int, lines: EstimateLines) -> dict:
    """Errors, coverage and NEES with each visual odometry, and after outages of GNSS."""
    folder = data / 'kitti_vo'
    truth = Path2D(np.loadtxt(folder / 'KITTI_00_gt_times.txt'),
                   kitti_poses(folder / 'KITTI_00_gt.txt'))
    results = {}
    for name in VISUAL_ODOMETRIES:
        rng = np.random.default_rng([seed, 23])
        odometry = [OdometrySample(stamp_ns(time_s), Pose2D(*pose)) for time_s, pose in zip(
            truth.time_s, kitti_poses(folder / f'KITTI_00_{name}.txt'))]
        fixes = drive_data.simulated_gnss(truth, rng, hz=1.0)
        match_s = np.arange(1.0, truth.duration_s, 1.0)
        errors = rng.standard_normal((len(match_s), 3)) * (
            MATCH_SIGMA_M, MATCH_SIGMA_M, MATCH_YAW_SIGMA_RAD)
        covariance = np.diag([MATCH_SIGMA_M**2, MATCH_SIGMA_M**2, MATCH_YAW_SIGMA_RAD**2])
        matches = [PoseEstimate(stamp_ns(time_s), Pose2D(*pose), covariance)
                   for time_s, pose in zip(match_s, truth.at(match_s) + errors)]
        times_s = np.arange(30.0, truth.duration_s - 1.0, 1.0)
        begins_s = np.arange(FIRST_OUTAGE_S, truth.duration_s - OUTAGES_S[-1] - 1.0, 10.0)
        log = SensorLog(truth, odometry, fixes)
        for setting, given in (('gnss', []), ('gnss_matches', matches)):
            estimates, _, filters = run_filter(
                in_order(odometry, fixes, given), FilterConfig(), times_s, truth, begins_s)
            lines.add('kitti_vo', name, setting, estimates)
            results[f'{name}_{setting}'] = estimates.metrics() | {'outages': {
                f'{length_s:.0f}': log_outages(log, begins_s, filters, length_s)
                for length_s in OUTAGES_S}}
        results[f'{name}_smoothed'] = _smoothed(log, times_s)
    return results


def _smoothed(log: SensorLog, times_s: np.ndarray) -> dict:
    """The error of the smoother without matches, at the times of the filter's."""
    track = smooth_drive(in_order(log.odometry, log.fixes), FilterConfig(),
                         stamps_ns=[stamp_ns(time_s) for time_s in times_s])
    errors_m = np.linalg.norm(track.poses[:, :2] - log.truth.at(times_s)[:, :2], axis=1)
    return {'median_m': float(np.nanmedian(errors_m)),
            'p95_m': float(np.nanpercentile(errors_m, 95)), 'n': int(np.isfinite(errors_m).sum())}


def run_husky(data: Path) -> dict:
    """How far the pose is from fixes that were held back, and how often within its ellipse."""
    bag = data / 'bags/husky_gps_imu_odom.ros1.bag'
    topics = Topics(image='', camera_info='', gnss='/fix', gnss_velocity='', truth='',
                    odometry='/husky_velocity_controller/odom')
    config = NodeConfig(antenna_xyz_m=(0.0, 0.0, 0.0))
    frame = LocalFrame(*first_fix_deg(bag))
    events = [event for event in read_events(bag, frame, config, topics=topics)
              if isinstance(event, (GnssFix, OdometrySample))]
    return _held_back(events)


def first_fix_deg(bag: Path) -> tuple[float, float]:
    """Latitude and longitude of the first fix of a bag."""
    from crossview_localizer.bags.bag import Bag

    with Bag(bag) as opened:
        for connection, _, data in opened.read_raw({'/fix': 'gnss'}):
            msg = opened.decode(connection, data)
            if msg.status.status >= 0:
                return msg.latitude, msg.longitude
    raise ValueError(f'{bag} holds no fix on /fix')


def _held_back(events: list) -> dict:
    pose_filter, errors_m, inside = PoseFilter(FilterConfig()), [], []
    for event in events:
        held_s = ((event.stamp_ns - events[0].stamp_ns) * 1e-9) % HELD_PERIOD_S
        if isinstance(event, OdometrySample) or held_s < HELD_PERIOD_S - HELD_BACK_S:
            pose_filter.add(event)
            continue
        estimate = pose_filter.estimate_at(event.stamp_ns)
        if estimate is None:
            continue
        error_m = np.array([event.x_m - estimate.pose.x_m, event.y_m - estimate.pose.y_m])
        spread_m2 = estimate.covariance[:2, :2] + event.covariance
        errors_m.append(float(np.linalg.norm(error_m)))
        inside.append(error_m @ np.linalg.solve(spread_m2, error_m) <= chi2.ppf(0.95, 2))
    return {'median_m': float(np.median(errors_m)), 'p95_m': float(np.percentile(errors_m, 95)),
            'coverage_95': float(np.mean(inside)), 'n': len(errors_m)}
