"""Runs of the offline Localizer through a rendered town: outages, wrong images, searches."""

import math

import numpy as np

from benchmarks.fusion.estimates import Estimates, estimates_of
from benchmarks.fusion.towns import feed, ImageAt, Town
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.datatypes import GnssFix, OdometrySample, Outcome, PoseEstimate
from crossview_localizer.geometry import Pose2D, wrap_angle
from crossview_localizer.trajectory import TRUTH_MAX_GAP_S

OUTAGES_S = (10.0, 30.0, 60.0, 300.0)
CONVERGED_SIGMA_M = 1.0    # a run has converged when no position sigma is larger;
CONVERGED_WITHIN_S = 60.0  # it has this long for it,
SETTLED_S = 60.0           # and GNSS is lost this much later
WARM_UP_S = 30.0           # of a whole drive, which does not count
START_RADIUS_M = 100.0
LOCK_M = 40.0              # one street
SEARCH_S = 120.0
WRONG_S = 120.0            # images are wrong for so long, in the middle of a part of a drive,
RIGHT_S = (120.0, 90.0)    # and right for so long before and after


def run_outage(town: Town, config: LocalizerConfig, begin_ns: int, rng) -> dict[str, Estimates]:
    """Start with noise, use GNSS until the pose has settled, then none, with and without matches.

    The estimates begin at the first image without GNSS.
    """
    localizer = town.localizer(config)
    localizer.set_pose(noisy_start(town.truth, begin_ns, rng))
    events = [event for event in town.events if event.stamp_ns > begin_ns]
    lost_ns = begin_ns + round((CONVERGED_WITHIN_S + SETTLED_S) * 1e9)
    converged, index = False, 0
    while index < len(events) and events[index].stamp_ns < lost_ns:
        [*found] = feed(localizer, events[index:index + 1])
        index += 1
        if converged or not found or found[0].posterior is None:
            continue
        sigmas_m = np.sqrt(np.linalg.eigvalsh(found[0].posterior.covariance[:2, :2]))
        if sigmas_m.max() < CONVERGED_SIGMA_M:
            converged = True
            lost_ns = found[0].stamp_ns + round(SETTLED_S * 1e9)
    end_ns = lost_ns + round((OUTAGES_S[-1] + 2.0) * 1e9)
    rest = [event for event in events[index:]
            if event.stamp_ns < end_ns and not isinstance(event, GnssFix)]
    odometry_only = localizer.filter.copy()
    with_matches = [result.posterior for result in feed(localizer, rest)]
    without = []
    for event in rest:
        if isinstance(event, ImageAt):
            without.append(odometry_only.estimate_at(event.stamp_ns))
        elif isinstance(event, OdometrySample):
            odometry_only.add_odometry(event)
    return {'match': estimates_of(with_matches, town.truth, TRUTH_MAX_GAP_S),
            'odometry': estimates_of(without, town.truth, TRUTH_MAX_GAP_S)}


def run_whole_drive(town: Town, localizer) -> Estimates:
    """The poses of a drive with GNSS, after the warm-up."""
    results = feed(localizer, town.events)
    from_ns = town.images[0].stamp_ns + round(WARM_UP_S * 1e9)
    return estimates_of(
        [result.posterior for result in results
         if result.posterior is not None and result.stamp_ns >= from_ns],
        town.truth, TRUTH_MAX_GAP_S)


def run_wrong_images(town: Town, config: LocalizerConfig,
                     rng) -> tuple[dict[str, Estimates], dict]:
    """Exchange images in the middle of a drive for others; say whether and when it is noticed."""
    elsewhere, images = town.elsewhere(rng), town.images
    ages_s = np.array([(image.stamp_ns - images[0].stamp_ns) * 1e-9 for image in images])
    begin_s = (ages_s[-1] - WRONG_S) / 2
    wrong = (ages_s >= begin_s) & (ages_s < begin_s + WRONG_S)
    exchanged = np.where(wrong, elsewhere, np.arange(len(images)))
    wrong_ns = images[0].stamp_ns + round(begin_s * 1e9)
    piece = [event for event in town.events
             if -RIGHT_S[0] <= (event.stamp_ns - wrong_ns) * 1e-9 < WRONG_S + RIGHT_S[1]]
    results = feed(town.localizer(config, exchanged), piece)
    ages_s = np.array([(result.stamp_ns - wrong_ns) * 1e-9 for result in results])
    refused = np.array([result.outcome is Outcome.DISTRUSTED for result in results])
    wrong = (ages_s >= 0.0) & (ages_s < WRONG_S)
    noticed_s, again_s = ages_s[wrong & refused], ages_s[~refused & (ages_s >= WRONG_S)]
    summary = {
        'noticed_after_s': float(noticed_s[0]) if len(noticed_s) else None,
        'trusted_again_after_s': float(again_s[0] - WRONG_S) if len(again_s) else None,
        'distrusted_while_wrong': float(np.mean(refused[wrong])),
        'distrusted_before': float(np.mean(refused[ages_s < 0.0])),
    }
    posteriors = [result.posterior for result, inside in zip(results, wrong) if inside]
    return {'wrong_images': estimates_of(posteriors, town.truth, TRUTH_MAX_GAP_S)}, summary


def run_searches(town: Town, config: LocalizerConfig, rng) -> dict[str, tuple]:
    """A start without a heading and a wrong lock, both without GNSS: (seconds or None, right).

    The start is given a place within ``START_RADIUS_M``; the wrong lock is sure of a pose
    ``LOCK_M`` to the side. A search ends when the Localizer uses matches again; it is right
    within 5 m and 10 degrees.
    """
    images = town.images
    first = int(rng.integers(30, max(len(images) - int(SEARCH_S) - 5, 31)))
    begin_ns = images[first].stamp_ns
    truth = town.truth.pose_at(begin_ns, TRUTH_MAX_GAP_S)
    bearing_rad = rng.uniform(-math.pi, math.pi)
    reach_m = START_RADIUS_M * math.sqrt(rng.uniform())
    place = Pose2D(truth.x_m + reach_m * math.cos(bearing_rad),
                   truth.y_m + reach_m * math.sin(bearing_rad), 0.0)
    aside = truth @ Pose2D(0.0, LOCK_M * rng.choice((-1, 1)), 0.0)
    events = [event for event in town.events
              if begin_ns - 10**9 < event.stamp_ns <= begin_ns + SEARCH_S * 1e9
              and not isinstance(event, GnssFix)]
    starts = {
        'start': PoseEstimate(
            begin_ns, place, np.diag([(START_RADIUS_M / 3) ** 2] * 2 + [10.0])),
        'wrong_lock': PoseEstimate(begin_ns, aside, np.diag([1.0, 1.0, 0.001]))}
    return {kind: _run_search(town, config, events, start, kind == 'wrong_lock')
            for kind, start in starts.items()}


def _run_search(town: Town, config: LocalizerConfig, events, start: PoseEstimate, locked: bool):
    """When matches are used (if ``locked``, after they were distrusted), and whether rightly."""
    localizer = town.localizer(config)
    feed(localizer, [event for event in events if event.stamp_ns <= start.stamp_ns])
    localizer.set_pose(start)
    for event in events:
        if event.stamp_ns <= start.stamp_ns:
            continue
        for result in feed(localizer, [event]):
            locked = locked and result.outcome is not Outcome.DISTRUSTED
            if not locked and result.outcome is Outcome.USED:
                true = town.truth.pose_at(event.stamp_ns, TRUTH_MAX_GAP_S)
                error = true.inverse() @ result.posterior.pose
                right = math.hypot(error.x_m, error.y_m) < 5.0 and (
                    abs(error.yaw_rad) < math.radians(10.0))
                return (event.stamp_ns - start.stamp_ns) * 1e-9, right
    return None, False


def noisy_start(truth, first_ns: int, rng) -> PoseEstimate:
    sigma_m, yaw_sigma_rad = rng.uniform(5.0, 25.0), math.radians(rng.uniform(0.5, 10.0))
    sigmas = np.array([sigma_m, sigma_m, yaw_sigma_rad])
    noisy = truth.pose_at(first_ns, TRUTH_MAX_GAP_S).as_array() + sigmas * rng.standard_normal(3)
    return PoseEstimate(
        first_ns, Pose2D(*noisy[:2], wrap_angle(float(noisy[2]))), np.diag(sigmas**2))
