"""The best trajectory of a recorded drive: each pose from what was measured before and after.

A fixed-interval smoother (Rauch, Tung, Striebel 1965) over the states of the Kalman filter.  That
of filterpy predicts with a matrix; this one predicts with the filter's own motion, and agrees with
filterpy's where the motion is linear.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from crossview_localizer.config import FilterConfig
from crossview_localizer.datatypes import MatchErrors, OdometrySample, PoseEstimate
from crossview_localizer.fusion.belief import Belief
from crossview_localizer.fusion.event_buffer import EventBuffer, Measurement, stamp_of
from crossview_localizer.fusion.motion_model import is_jump, POSE, POSITION, YAW
from crossview_localizer.fusion.pose_filter import LOST_YAW_SIGMA_RAD, PoseFilter
from crossview_localizer.fusion.prediction import bridge_m2, is_gap, OdometryHistory, Predictor
from crossview_localizer.fusion.published import birge_ratio
from crossview_localizer.geometry import Pose2D, wrap_angle
from crossview_localizer.trajectory import Track

# All of a drive is kept.
UNLIMITED_S = 1e9
# The sigmas of the first pose, which the start of the filter gives, are multiplied by this: the
# measurements that it comes from are used once more.
FIRST_POSE_FACTOR = 3.0


def smooth_drive(
    measurements: Iterable[Measurement], config: FilterConfig, errors: MatchErrors | None = None,
    stamps_ns: Iterable[int] | None = None, start: PoseEstimate | None = None,
) -> Track:
    """The smoothed poses of base_link in ``map`` with their covariances.

    ``measurements`` are the odometry, fixes, courses and matches of the drive in any order;
    ``errors`` are those of the matcher.  The poses are those at ``stamps_ns``, or else at every
    odometry sample; NaN where the filter has no pose.  The drive starts at the pose ``start``, or
    else where odometry and fixes agree; then the odometry before that is smoothed too.
    """
    ordered = sorted(
        measurements, key=lambda m: (m.stamp_ns, not isinstance(m, OdometrySample)))
    odometry = OdometryHistory([m for m in ordered if isinstance(m, OdometrySample)])
    parts = _filtered(ordered, config, errors, start)
    if start is None and parts:
        start = _first_pose(parts[0].base, odometry)
        parts = _filtered(ordered, config, errors, start)
    if stamps_ns is None:
        stamps_ns = [sample.stamp_ns for sample in odometry.samples]
    track = Track.empty(np.unique(np.asarray(stamps_ns, np.int64)))
    predictor = Predictor(config, errors or MatchErrors())
    for part in parts:
        _smooth(part, odometry, predictor, track)
    return track


def _filtered(ordered, config, errors, start: PoseEstimate | None) -> list[EventBuffer]:
    """What the filter knew after each event; a part ends where the filter starts again."""
    pose_filter = PoseFilter(replace(config, buffer_s=UNLIMITED_S), errors)
    if start is not None:
        pose_filter.set_pose(start)
    parts: list[EventBuffer] = []
    for measurement in ordered:
        pose_filter.add(measurement)
        history, _ = pose_filter.history
        if history is not None and (not parts or history is not parts[-1]):
            parts.append(history)
    return parts


def _first_pose(base: Belief, odometry: OdometryHistory) -> PoseEstimate:
    """The pose at the first odometry sample that leads to the start of the filter."""
    samples = odometry.samples
    last = bisect_right(samples, base.stamp_ns, key=stamp_of) - 1
    first = max(last, 0)
    while first > 0 and not is_gap(*samples[first - 1:first + 1]) and not is_jump(
            *samples[first - 1:first + 1]):
        first -= 1
    pose, stamp_ns = Pose2D(*map(float, base.mean[POSE])), base.stamp_ns
    if first < last:
        pose = (pose @ samples[last].odom_from_base.inverse()) @ samples[first].odom_from_base
        stamp_ns = samples[first].stamp_ns
    return PoseEstimate(stamp_ns, pose, FIRST_POSE_FACTOR**2 * base.covariance[POSE, POSE])


# x_s = x + G (x_s' - x-'),  P_s = P + G (P_s' - P-') G',  G = P F' P-'^-1
# with x, P filtered, x-', P-' predicted from them, and x_s', P_s' smoothed at the next instant
def _smooth(part: EventBuffer, odometry: OdometryHistory, predictor: Predictor,
            track: Track) -> None:
    """Fill in the rows of the track whose stamps lie in a part."""
    beliefs = _beliefs_at(part, odometry, predictor, track.stamps_ns)
    mean, covariance = beliefs[-1].mean, beliefs[-1].covariance
    _fill(track, beliefs[-1], mean, covariance, odometry)
    for belief, following in zip(beliefs[-2::-1], beliefs[:0:-1]):
        predicted, jacobian = predictor.advance_with_jacobian(
            belief, following.stamp_ns, odometry)
        gain = belief.covariance @ jacobian.T @ _inverse(predicted.covariance)
        change = mean - predicted.mean
        change[YAW] = wrap_angle(change[YAW])
        mean = belief.mean + gain @ change
        mean[YAW] = wrap_angle(mean[YAW])
        covariance = belief.covariance + gain @ (covariance - predicted.covariance) @ gain.T
        _fill(track, belief, mean, covariance, odometry)


def _beliefs_at(part: EventBuffer, odometry: OdometryHistory, predictor: Predictor,
                stamps_ns: np.ndarray) -> list[Belief]:
    """The beliefs after all events, and those predicted to the stamps between them."""
    found = [replace(belief, memories=()) for belief in (part.base, *part.beliefs)]
    while len(found) > 1 and found[-1].covariance[YAW, YAW] > LOST_YAW_SIGMA_RAD**2:
        del found[-1]  # the filter starts again there
    event_stamps_ns = [belief.stamp_ns for belief in found]
    inside = (stamps_ns >= event_stamps_ns[0]) & (stamps_ns <= event_stamps_ns[-1])
    for stamp_ns in stamps_ns[inside].tolist():
        before = found[bisect_right(event_stamps_ns, stamp_ns) - 1]
        if before.stamp_ns < stamp_ns:
            found.append(predictor.advance(before, stamp_ns, odometry))
    return sorted(found, key=stamp_of)


def _fill(track: Track, belief: Belief, mean, covariance, odometry: OdometryHistory) -> None:
    row = int(np.searchsorted(track.stamps_ns, belief.stamp_ns))
    if row == len(track) or track.stamps_ns[row] != belief.stamp_ns:
        return
    track.poses[row] = mean[POSE]
    track.covariances[row] = birge_ratio(belief) * covariance[POSE, POSE]
    track.covariances[row][POSITION, POSITION] += bridge_m2(belief, odometry)


def _inverse(covariance: np.ndarray) -> np.ndarray:
    """The inverse (n, n); what is known exactly stays as it is."""
    sigmas = np.sqrt(np.diag(covariance))
    sigmas[sigmas == 0.0] = 1.0
    scale = np.outer(sigmas, sigmas)
    return np.linalg.pinv(covariance / scale, hermitian=True) / scale
