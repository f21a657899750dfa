"""The records between sensor message and published pose, free of ROS."""

from dataclasses import dataclass, field, replace
from enum import Enum
import math

import numpy as np
from scipy.spatial.transform import Rotation

from crossview_localizer.geometry import MapGrid, Pose2D


class Outcome(Enum):
    """What became of one measurement; diagnostics show the text."""

    USED = 'used'
    NOT_STARTED = 'waiting for a first position and heading'
    TOO_OLD = 'older than the delay buffer'
    TOO_SLOW = 'too slow for a course'
    INVALID = 'not a valid measurement'
    GATED = 'refused by the gate'
    REPEATED = 'the position of the fix before once more'
    OUTSIDE_MAP = 'outside the map'
    PRIOR_TOO_WIDE = 'prior too wide for the search window'
    AMBIGUOUS = 'match ambiguous'
    NO_MATCHER = 'no matcher is loaded'
    UNUSABLE = 'image not usable'
    DISTRUSTED = 'images do not fit the map here'
    SEARCHING = 'the pose is searched for'
    DROPPED = 'dropped before it was processed'
    SUPERSEDED = 'a reset or a new pose came before the image was done'


@dataclass(frozen=True)
class CameraModel:
    """Pinhole intrinsics of an undistorted image, and the mounting of the camera.

    ``base_from_camera`` (4, 4) takes points in the optical frame (x right, y down, z ahead) to
    base_link (x ahead, y left, z up).  ``height_m`` is the height of the camera above the road.
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
        """The camera after its images are resized; column u reaches from u - 0.5 to u + 0.5."""
        scale_u, scale_v = width_px / self.width_px, height_px / self.height_px
        return CameraModel(
            width_px, height_px, self.fx_px * scale_u, self.fy_px * scale_v,
            (self.cx_px + 0.5) * scale_u - 0.5, (self.cy_px + 0.5) * scale_v - 0.5,
            self.base_from_camera, self.height_m)

    @property
    def quarter_turns_to_upright(self) -> int:
        """Quarters (0 to 3) by which its images are to be turned counter-clockwise to stand up.

        The nearest ones; 0 for a camera that looks so steeply down or up that no side is up.
        """
        right, down, _ = self.base_from_camera[2, :3]  # the vertical, in the optical frame
        if math.hypot(right, down) < 0.5:
            return 0
        return round(1.0 - math.atan2(-down, right) / (math.pi / 2)) % 4

    def turned(self, quarter_turns: int) -> 'CameraModel':
        """The camera after its images are turned by quarters counter-clockwise."""
        turned = self
        for _ in range(quarter_turns % 4):
            # Pixel (u, v) goes to (v, width - 1 - u).
            base_from_camera = turned.base_from_camera.copy()
            base_from_camera[:3, :3] = (
                base_from_camera[:3, :3] @ Rotation.from_euler('z', math.pi / 2).as_matrix())
            turned = CameraModel(
                turned.height_px, turned.width_px, turned.fy_px, turned.fx_px, turned.cy_px,
                turned.width_px - 1 - turned.cx_px, base_from_camera, turned.height_m)
        return turned

    @property
    def yaw_rad(self) -> float:
        """Direction in which the camera looks, from the x axis of base_link to the left.

        Zero for a camera that looks straight down or up.
        """
        ahead, left, _ = self.base_from_camera[:3, 2]
        return math.atan2(left, ahead) if math.hypot(ahead, left) > 1e-6 else 0.0

    def facing_ahead(self) -> 'CameraModel':
        """The camera in axes at base_link that are turned by its yaw: there it looks ahead."""
        turn, cos, sin = np.eye(4), math.cos(self.yaw_rad), math.sin(self.yaw_rad)
        turn[:2, :2] = (cos, sin), (-sin, cos)
        return replace(self, base_from_camera=turn @ self.base_from_camera)


@dataclass(frozen=True)
class CameraImage:
    """One undistorted frame: ``rgb`` is (H, W, 3) uint8."""

    stamp_ns: int
    rgb: np.ndarray
    camera: CameraModel


@dataclass(frozen=True)
class GnssFix:
    """Position of the antenna in ``map`` with ``covariance`` (2, 2) in m2.

    ``base_from_antenna_m`` is the antenna in base_link.
    """

    stamp_ns: int
    x_m: float
    y_m: float
    covariance: np.ndarray
    base_from_antenna_m: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class GnssCourse:
    """Direction of motion of the antenna over ground; ``course_rad`` has the sense of a yaw."""

    stamp_ns: int
    course_rad: float
    sigma_rad: float
    base_from_antenna_m: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class OdometrySample:
    """Pose of base_link in the frame ``odom``, which may drift: only increments are used."""

    stamp_ns: int
    odom_from_base: Pose2D


@dataclass(frozen=True)
class PoseEstimate:
    """A pose of base_link in ``map`` with ``covariance`` (3, 3) in the order x_m, y_m, yaw_rad.

    A coordinate that was not observed has a variance of inf and zero covariances.
    """

    stamp_ns: int
    pose: Pose2D
    covariance: np.ndarray


@dataclass(frozen=True)
class MatchErrors:
    """How the errors of a matcher's matches are distributed; fitted together with its weights.

    Matches that are near each other have correlated errors.  The information of a match is
    therefore multiplied by min(1, max(d / ``correlation_m``, t / ``correlation_s``)), d and t
    being the distance and the time since the last match.  Covariances are multiplied by
    ``inflation``; the position sigma is then at least ``sigma_floor_m``.

    All matches of a drive share an error that changes slowly, as the camera looks a little down
    or aside: its sigmas are ``ahead_bias_m``, ``left_bias_m`` and ``yaw_bias_rad``.
    """

    correlation_m: float = 15.0
    correlation_s: float = 5.0
    inflation: float = 1.0
    sigma_floor_m: float = 0.3
    ahead_bias_m: float = 0.0
    left_bias_m: float = 0.0
    yaw_bias_rad: float = 0.0


@dataclass(frozen=True)
class Heatmap:
    """Log-probability of positions on ``grid`` (rows, cols), -inf if unknown; exp sums to 1.

    A matcher that observes the heading gives ``volume`` (K, rows, cols) as well: log-probabilities
    of poses with the headings ``yaws_rad`` (K,).
    """

    stamp_ns: int
    grid: MapGrid
    log_probability: np.ndarray
    yaws_rad: np.ndarray | None = None
    volume: np.ndarray | None = None


@dataclass(frozen=True)
class FilterUpdate:
    """What the filter did with a measurement; ``mahalanobis2`` is its squared distance."""

    outcome: Outcome
    reason: str = ''
    mahalanobis2: float | None = None


@dataclass(frozen=True)
class Localization:
    """The result of one image.

    ``prior`` and ``posterior`` are None before the start of the filter, for an image older than
    its buffer, and for one that is SUPERSEDED.
    """

    stamp_ns: int
    outcome: Outcome
    reason: str
    prior: PoseEstimate | None = None
    heatmap: Heatmap | None = None
    match: PoseEstimate | None = None
    posterior: PoseEstimate | None = None
    seconds: dict[str, float] = field(default_factory=dict)
