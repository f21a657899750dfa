"""Finds the origin of the map frame if there is no map: fixes that agree, never a single one.

After a cold start the first fix is often the last place of the day before, or hundreds of
kilometres off.
"""

from crossview_localizer.fusion.motion_model import ODOMETRY_MAX_SPEED_MPS
from crossview_localizer.geometry import distance_on_earth_m

FIXES_TO_AGREE = 3
# Fixes agree if they are no farther apart than this, plus what a fast vehicle drives between them.
AGREEMENT_M = 100.0

LatLon = tuple[float, float]


class OriginFinder:
    """Collects successive fixes that agree; a repeated position does not count."""

    def __init__(self):
        self._fixes: list[tuple[int, LatLon]] = []

    def add(self, stamp_ns: int, latlon_deg: LatLon) -> LatLon | None:
        """The first of FIXES_TO_AGREE fixes that agree; None while there are fewer."""
        if self._fixes and self._fixes[-1][1] == latlon_deg:
            return None
        if self._fixes and not _agree(self._fixes[-1], (stamp_ns, latlon_deg)):
            self._fixes = []
        self._fixes = [*self._fixes, (stamp_ns, latlon_deg)][-FIXES_TO_AGREE:]
        return self._fixes[0][1] if len(self._fixes) == FIXES_TO_AGREE else None


def _agree(first: tuple[int, LatLon], second: tuple[int, LatLon]) -> bool:
    time_s = abs(second[0] - first[0]) * 1e-9
    apart_m = distance_on_earth_m(first[1], second[1])
    return apart_m <= AGREEMENT_M + ODOMETRY_MAX_SPEED_MPS * time_s
