"""Reads single frames of a recorded run: the image, its heat map, and the poses around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.bags.bag import BagError, read_messages_stamped
from crossview_localizer.bags.recorded_run import RecordedRun
from crossview_localizer.bags.topics import Topics
from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.evaluation.pose_metrics import Comparison
from crossview_localizer.evaluation.run_metrics import peak_references
from crossview_localizer.geometry import Pose2D
from crossview_localizer.ros import conversions
from crossview_localizer.trajectory import Track

SHOT_WIDTH_PX = 800


@dataclass(frozen=True)
class Shot:
    """One camera frame with its heat map and the poses before and after the match.

    ``rgb`` is (H, W, 3), or None without the input bag.  ``percent`` (rows, cols) is the heat map
    as published, row 0 south, NaN outside the map; ``extent_m`` are its west, east, south and
    north edges.  ``peak_m`` (2,) is its highest point, ``distance_m`` the distance of that from
    ``truth`` or, if the truth is not known, from ``prior``.
    """

    label: str
    stamp_ns: int
    rgb: np.ndarray | None
    percent: np.ndarray
    extent_m: tuple[float, float, float, float]
    peak_m: np.ndarray
    distance_m: float
    truth: Pose2D | None
    prior: PoseEstimate | None
    match: PoseEstimate | None
    refined: PoseEstimate | None


def choose_typical(run: RecordedRun, comparison: Comparison) -> dict[str, int]:
    """Choose the heat maps with the smallest, the median and the largest error of the peak.

    The error is the distance from the truth or, without truth, from the prior.  Returns labels and
    stamps, none if there is no heat map.
    """
    reference = peak_references(run, comparison)
    distance_m = np.hypot(*(run.peaks_m - reference.poses[:, :2]).T)
    order = np.argsort(distance_m)                       # NaN last
    order = order[:np.isfinite(distance_m).sum()]
    if not len(order):
        return {}
    labels = ('Best', 'Median', 'Worst') if comparison.evaluated.any() else (
        'Nearest', 'Median', 'Farthest')
    rows = (order[0], order[len(order) // 2], order[-1])
    return {label: int(run.heatmap_ns[row]) for label, row in zip(labels, rows)}


def choose_nearest(run: RecordedRun, at_s: Sequence[float]) -> dict[str, int]:
    """Choose the heat maps nearest to these seconds of the run; returns labels and stamps."""
    usable_ns = run.heatmap_ns[np.isfinite(run.peaks_m).all(axis=1)]
    usable_ns = usable_ns[np.isin(usable_ns, run.priors.stamps_ns)]
    if not len(usable_ns):
        raise BagError('the recording has no heat map with its prior; expected a run with matches')
    stamps_ns = {}
    for second in at_s:
        nearest = usable_ns[np.argmin(np.abs(usable_ns - (run.start_ns + second * 1e9)))]
        stamps_ns[f'{(nearest - run.start_ns) * 1e-9:.1f} s'] = int(nearest)
    return stamps_ns


def read_shots(
    run: RecordedRun, comparison: Comparison, stamps_ns: dict[str, int], bag: Path,
    image_bag: Path, topics: Topics, node: str,
) -> list[Shot]:
    """Read the frames with these stamps, with their heat maps and images.

    ``stamps_ns`` has them by label.
    """
    grids = read_messages_stamped(bag, f'{node}/heatmap', stamps_ns.values())
    pictures = read_messages_stamped(image_bag, topics.image, stamps_ns.values())
    reference, has_truth = peak_references(run, comparison), bool(comparison.evaluated.any())
    shots = []
    for label, stamp_ns in stamps_ns.items():
        row = int(np.searchsorted(run.heatmap_ns, stamp_ns))
        grid = grids[stamp_ns]
        percent = np.asarray(grid.data, float).reshape(grid.info.height, grid.info.width)
        percent[percent < 0] = np.nan
        west, south = grid.info.origin.position.x, grid.info.origin.position.y
        extent_m = (west, west + grid.info.width * grid.info.resolution,
                    south, south + grid.info.height * grid.info.resolution)
        distance_m = np.hypot(*(run.peaks_m[row] - reference.poses[row, :2]))
        truth_is_known = has_truth and np.isfinite(reference.poses[row]).all()
        shots.append(Shot(
            label, stamp_ns, picture_rgb(pictures.get(stamp_ns)), percent, extent_m,
            run.peaks_m[row], float(distance_m), reference.pose(row) if truth_is_known else None,
            *(_estimate(track, stamp_ns) for track in (run.priors, run.matches, run.poses))))
    return shots


def _estimate(track: Track, stamp_ns: int) -> PoseEstimate | None:
    row = int(np.searchsorted(track.stamps_ns, stamp_ns))
    if row == len(track) or track.stamps_ns[row] != stamp_ns:
        return None
    return PoseEstimate(stamp_ns, track.pose(row), track.covariances[row])


def picture_rgb(msg) -> np.ndarray | None:
    """Decode a recorded image and resize it for a page; None if it cannot be shown.

    The image is not rectified.
    """
    if msg is None:
        return None
    try:
        rgb = conversions.rgb_from_msg(msg)
    except ValueError:
        return None
    height_px = round(rgb.shape[0] * SHOT_WIDTH_PX / rgb.shape[1])
    if rgb.shape[1] <= SHOT_WIDTH_PX:
        return rgb
    return cv2.resize(rgb, (SHOT_WIDTH_PX, height_px), interpolation=cv2.INTER_AREA)
