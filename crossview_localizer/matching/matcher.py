"""The interface of all matchers, and the window around the prior that they search."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Any, Protocol, TYPE_CHECKING

from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import CameraImage, Heatmap, MatchErrors, PoseEstimate

if TYPE_CHECKING:  # this import loads torch, which a Localizer without a matcher does not need
    from crossview_localizer.maps.embedding_map import MapWindow

WINDOW_SIGMAS = 3.0         # half width of the search window, in sigmas of the prior
MIN_HALF_YAW_RAD = 0.07     # smallest half width in heading
# Largest half width in heading: enough for a start with START_YAW_SIGMA_RAD (see
# ``fusion.heading_initializer``).
MAX_HALF_YAW_RAD = 0.75


@dataclass(frozen=True)
class SearchWindow:
    """How far from the mean of the prior poses are compared with an image, in each direction."""

    half_width_m: float
    half_yaw_rad: float

    @classmethod
    def around(cls, prior: PoseEstimate, config: MatchConfig) -> 'SearchWindow':
        """The window of WINDOW_SIGMAS of a prior, and no smaller than the smallest window."""
        x_m2, y_m2, yaw_rad2 = prior.covariance.diagonal()
        return cls(
            max(config.window_min_m, WINDOW_SIGMAS * math.sqrt(max(x_m2, y_m2))),
            max(MIN_HALF_YAW_RAD, WINDOW_SIGMAS * math.sqrt(yaw_rad2)))

    def too_wide(self, config: MatchConfig) -> str:
        """The reason why the window is too wide to be searched; '' if it is not."""
        if self.half_width_m > config.window_max_m:
            return (f'the prior needs a window of {self.half_width_m:.0f} m to each side; at most '
                    f'{config.window_max_m:.0f} m are searched')
        if self.half_yaw_rad > MAX_HALF_YAW_RAD:
            return (f'the prior needs headings of +-{math.degrees(self.half_yaw_rad):.0f} degrees;'
                    f' at most +-{math.degrees(MAX_HALF_YAW_RAD):.0f} are searched')
        return ''


class Matcher(Protocol):
    """Compares an image with the satellite embeddings around a prior."""

    margin_m: float      # how far beyond the search window the map must reach
    errors: MatchErrors  # of its matches
    needs_heading: bool  # whether ``embed`` uses its ``yaw_rad``

    @property
    def search_heatmaps(self) -> Callable[..., list[Heatmap] | None] | None:
        """See ``DenseMatcher.search_heatmaps``; None for a matcher that cannot search."""

    def embed(self, image: CameraImage, yaw_rad: float, pitch_rad: float) -> Any:
        """Run the ground branch of the network once; ``yaw_rad`` is the prior's heading."""

    def match(self, ground: Any, window: 'MapWindow', prior: PoseEstimate,
              search: SearchWindow) -> Heatmap:
        """Compare the result of ``embed`` with every pose of the search window."""

    def estimate(self, heatmap: Heatmap,
                 prior: PoseEstimate) -> tuple[PoseEstimate | None, str]:
        """The pose that the heat map alone supports, or None and the reason."""
