"""Real odometry: two visual odometries on KITTI 00, and the wheels of a Husky robot.

On KITTI 00 the odometry and the truth are real.  GNSS (4 m of wander) is simulated.  Matches are
simulated with what is believed of the shipped weights, or are the replayed errors of a real
matcher (``matcher_replay``) where its vehicle moved.
The Husky has no truth: pieces of its own GNSS are held back, and the pose is compared with them.
"""

import math
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from benchmarks.fusion import drive_data
from benchmarks.fusion.drive_data import Path2D, SensorLog, stamp_ns
from benchmarks.fusion.estimates import EstimateLines, Estimates
from benchmarks.fusion.filter_runs import in_order, run_filter
from benchmarks.fusion.matcher_replay import replayed_matches
from benchmarks.fusion.real_logs import log_outages
from crossview_localizer.bags.events import read_events
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import FilterConfig, NodeConfig
from crossview_localizer.datatypes import GnssFix, MatchErrors, OdometrySample, PoseEstimate
from crossview_localizer.fusion.pose_filter import PoseFilter
from crossview_localizer.fusion.smoother import smooth_drive
from crossview_localizer.geometry import LocalFrame, Pose2D

VISUAL_ODOMETRIES = ('ORB', 'SPTAM')
OUTAGES_S = (60.0, 300.0)
FIRST_OUTAGE_S = 60.0
# White errors of the simulated matches, about those of the shipped network in rendered towns.
MATCH_SIGMA_M, MATCH_YAW_SIGMA_RAD = 0.3, math.radians(0.7)
# Of each HELD_PERIOD_S of the Husky's drive, GNSS is held back for the last HELD_BACK_S.
HELD_PERIOD_S, HELD_BACK_S = 60.0, 30.0


def kitti_poses(path: Path) -> np.ndarray:
    """Planar poses (n, 3) of 3x4 matrices of a camera: x ahead of the first, y left of it."""
    matrices = np.loadtxt(path).reshape(-1, 3, 4)
    return np.column_stack((
        matrices[:, 2, 3], -matrices[:, 0, 3], np.arctan2(-matrices[:, 0, 2], matrices[:, 2, 2])))


def run_kitti_vo(data: Path, seed: int, errors: MatchErrors, lines: EstimateLines,
                 smoke: bool) -> tuple[dict, dict]:
    """Errors, coverage and NEES with each visual odometry, after outages, and of the smoother.

    An outage is one of GNSS and of matches.  ``errors`` are those of the shipped weights.
    """
    folder = data / 'kitti_vo'
    truth = Path2D(np.loadtxt(folder / 'KITTI_00_gt_times.txt'),
                   kitti_poses(folder / 'KITTI_00_gt.txt'))
    truth = truth.part(0.0, 200.0 if smoke else truth.duration_s)
    outages_s = OUTAGES_S[:1] if smoke else OUTAGES_S
    rng = np.random.default_rng([seed, 23])
    fixes = drive_data.simulated_gnss(truth, rng, hz=1.0)
    settings = {
        'gnss': ([], None), 'gnss_matches': (_simulated_matches(truth, errors, rng), errors)}
    if not smoke:
        settings['gnss_replayed_matches'] = replayed_matches(data, truth)
    times_s = np.arange(30.0, truth.duration_s - 1.0, 1.0)
    begins_s = np.arange(FIRST_OUTAGE_S, truth.duration_s - outages_s[-1] - 1.0, 10.0)
    results, smoothed = {}, {}
    for name in VISUAL_ODOMETRIES:
        odometry = [
            OdometrySample(stamp_ns(time_s), Pose2D(*pose)) for time_s, pose in zip(
                np.loadtxt(folder / 'KITTI_00_gt_times.txt'),
                kitti_poses(folder / f'KITTI_00_{name}.txt')) if time_s <= truth.duration_s]
        log = SensorLog(truth, odometry, fixes)
        for setting, (matches, known) in settings.items():
            measurements = in_order(odometry, fixes, matches)
            estimates, _, filters = run_filter(
                measurements, FilterConfig(), times_s, truth, begins_s, known)
            lines.add('kitti_vo', name, setting, estimates)
            results[f'{name}_{setting}'] = estimates.metrics() | {'outages': {
                f'{length_s:.0f}': log_outages(log, begins_s, filters, length_s)
                for length_s in outages_s}}
            track = smooth_drive(measurements, FilterConfig(), known,
                                 [stamp_ns(time_s) for time_s in times_s])
            smoothed[f'{name}_{setting}'] = Estimates(
                track.stamps_ns, track.poses, track.covariances, truth.at(times_s)).metrics() | {
                    'filter_median_m': results[f'{name}_{setting}']['median_m']}
    return results, smoothed


def _simulated_matches(truth: Path2D, errors: MatchErrors, rng) -> list[PoseEstimate]:
    """Matches at 1 Hz with white errors and one that lasts, as ``errors`` have them."""
    time_s = np.arange(1.0, truth.duration_s, 1.0)
    sigmas = np.array([MATCH_SIGMA_M, MATCH_SIGMA_M, MATCH_YAW_SIGMA_RAD])
    lasting = Pose2D(*rng.standard_normal(3) * (
        errors.ahead_bias_m, errors.left_bias_m, errors.yaw_bias_rad))
    covariance = np.diag(sigmas**2) / errors.inflation  # which the filter multiplies by it
    poses = np.array([(Pose2D(*pose) @ lasting).as_array() for pose in truth.at(time_s)])
    return [PoseEstimate(stamp_ns(time), Pose2D(*pose), covariance) for time, pose in zip(
        time_s, poses + sigmas * rng.standard_normal((len(time_s), 3)))]


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
