"""The records that flow from sensor message to published pose; none of them knows ROS."""

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from crossview_localizer.geometry import MapGrid, Pose2D


class Outcome(Enum):
    """What became of one measurement; the text is what diagnostics show."""

    USED = 'used'
    NOT_STARTED = 'waiting for a first position and heading'
    TOO_OLD = 'older than the delay buffer'
    TOO_SLOW = 'too slow for a course'
    INVALID = 'not a valid measurement'
    GATED = 'refused by the gate'
    OUTSIDE_MAP = 'outside the map'
    PRIOR_TOO_WIDE = 'prior too wide for the search window'
    AMBIGUOUS = 'match ambiguous'
    NO_MATCHER = 'no matcher is loaded'
    UNUSABLE = 'image not usable'
    DISTRUSTED = 'images do not fit the map here'
    SEARCHING = 'the pose is searched for'
    SUPERSEDED = 'the localizer was reset, or given a pose, while the image was processed'


@dataclass(frozen=True)
class CameraModel:
    """Pinhole intrinsics of an undistorted image, and where the camera sits.

    ``base_from_camera`` (4, 4) takes points in the optical frame (x right, y down, z ahead) to
    base_link (x ahead, y left, z up).  ``height_m`` is the camera centre's height above the road.
    """

    width_px: int
    height_px: int
    fx_px: float
    fy_px: float
    cx_px: float
    cy_px: float
    base_from_camera: np.ndarray
    height_m: float

    def resized(self, width_px: int, height_px: int) -> 'CameraModel':
        """The camera of its images resized: the centre of column u is u, its left edge u - 0.5."""
        across, down = width_px / self.width_px, height_px / self.height_px
        return CameraModel(
            width_px, height_px, self.fx_px * across, self.fy_px * down,
            (self.cx_px + 0.5) * across - 0.5, (self.cy_px + 0.5) * down - 0.5,
            self.base_from_camera, self.height_m)


@dataclass(frozen=True)
class CameraImage:
    """One undistorted frame: ``rgb`` is (H, W, 3) uint8."""

    stamp_ns: int
    rgb: np.ndarray
    camera: CameraModel


@dataclass(frozen=True)
class GnssFix:
    """The antenna's position in ``map``; ``covariance`` (2, 2) in m2; lever arm in base_link."""

    stamp_ns: int
    x_m: float
    y_m: float
    covariance: np.ndarray
    base_from_antenna_m: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class GnssCourse:
    """Direction of the antenna's motion over ground: ``course_rad`` like a yaw, and its sigma."""

    stamp_ns: int
    course_rad: float
    sigma_rad: float
    base_from_antenna_m: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class OdometrySample:
    """Pose of base_link in the drifting ``odom`` frame; only increments are used."""

    stamp_ns: int
    odom_from_base: Pose2D


@dataclass(frozen=True)
class PoseEstimate:
    """A pose of base_link in ``map`` with ``covariance`` (3, 3) in the order x_m, y_m, yaw_rad.

    A diagonal entry of inf (with zero covariances) marks a coordinate that was not observed.
    """

    stamp_ns: int
    pose: Pose2D
    covariance: np.ndarray


@dataclass(frozen=True)
class MatchErrors:
    """How the errors of a matcher's matches are distributed; fitted with its weights.

    Matches that follow within ``correlation_m`` along the road and within ``correlation_s`` share
    their errors: their information is scaled by the part of either length that has passed.
    Covariances are multiplied by ``inflation``; then ``sigma_floor_m`` is the smallest position
    sigma that is believed.
    """

    correlation_m: float = 15.0
    correlation_s: float = 5.0
    inflation: float = 1.0
    sigma_floor_m: float = 0.3


@dataclass(frozen=True)
class Heatmap:
    """Log-probability over ``grid`` (rows, cols), -inf where unknown; exp sums to 1.

    A matcher that observes the heading has it for each of ``yaws_rad`` (K,) as well: ``volume``
    (K, rows, cols), of which ``log_probability`` is the sum over yaw.
    """

    stamp_ns: int
    grid: MapGrid
    log_probability: np.ndarray
    yaws_rad: np.ndarray | None = None
    volume: np.ndarray | None = None


@dataclass(frozen=True)
class FilterUpdate:
    """What the filter did with a measurement; ``mahalanobis2`` is the gate's squared distance."""

    outcome: Outcome
    reason: str = ''
    mahalanobis2: float | None = None


@dataclass(frozen=True)
class Localization:
    """All that one image gave; ``posterior`` is None only before the filter has started."""

    stamp_ns: int
    outcome: Outcome
    reason: str
    prior: PoseEstimate | None = None
    heatmap: Heatmap | None = None
    match: PoseEstimate | None = None
    posterior: PoseEstimate | None = None
    seconds: dict[str, float] = field(default_factory=dict)
