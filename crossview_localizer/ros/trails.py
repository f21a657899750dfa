"""Past positions as lines on the map, of limited size however long the drive; without ROS."""

from collections import deque
from collections.abc import Iterator
import math

from crossview_localizer.geometry import LocalFrame

# If the refined pose lies farther than this from its geopose, the map frame has changed.
FRAME_TOLERANCE_M = 0.5
MAX_WAITING = 10_000


class Trail:
    """A path, thinned out so that it never has more than MAX_POINTS."""

    MAX_POINTS = 4000
    RESTART_S = 1.0
    FIRST_STEP_M = 0.25

    def __init__(self):
        self.clear()

    def clear(self) -> None:
        """Start a new path."""
        self.stamps_ns: list[int] = []
        self.xy_m: list[tuple[float, float]] = []
        self.changed = True
        self._step_m = self.FIRST_STEP_M

    def add(self, stamp_ns: int, x_m: float, y_m: float) -> None:
        """Add a point; one that is older than the last by RESTART_S starts a new path."""
        if self.stamps_ns and stamp_ns < self.stamps_ns[-1] - self.RESTART_S * 1e9:
            self.clear()
        if self.xy_m and math.dist(self.xy_m[-1], (x_m, y_m)) < self._step_m:
            return
        self.stamps_ns.append(stamp_ns)
        self.xy_m.append((float(x_m), float(y_m)))
        self.changed = True
        if len(self.xy_m) > self.MAX_POINTS:
            self.stamps_ns, self.xy_m = self.stamps_ns[::2], self.xy_m[::2]
            self._step_m *= 2.0


class Trails:
    """Named trails in the map frame.

    Points given by latitude and longitude wait until the place of the map frame is known.
    """

    def __init__(self, names):
        self._trails = {name: Trail() for name in names}
        self._frame: LocalFrame | None = None
        self._waiting: deque[tuple[str, int, tuple[float, float]]] = deque(maxlen=MAX_WAITING)

    def add(self, name: str, stamp_ns: int, x_m: float, y_m: float) -> None:
        """Add a point in the map frame."""
        self._trails[name].add(stamp_ns, x_m, y_m)

    def add_geographic(self, name: str, stamp_ns: int, latlon_deg: tuple[float, float]) -> None:
        """Add a point by its latitude and longitude."""
        self._waiting.append((name, stamp_ns, latlon_deg))
        self._place_waiting()

    def set_map_frame(self, latlon_deg: tuple[float, float], xy_m: tuple[float, float]) -> None:
        """Set the place of the map frame, by one point known in both; a new one clears all."""
        if self._frame is not None:
            if math.dist(self._frame.xy_from_latlon(*latlon_deg), xy_m) < FRAME_TOLERANCE_M:
                return
            for trail in self._trails.values():
                trail.clear()
        self._frame = LocalFrame.through_point(latlon_deg, xy_m)
        self._place_waiting()

    def take_changed(self) -> Iterator[tuple[str, Trail]]:
        """Yield each trail that has changed since it was last taken."""
        for name, trail in self._trails.items():
            if trail.changed:
                trail.changed = False
                yield name, trail

    def _place_waiting(self) -> None:
        while self._frame is not None and self._waiting:
            name, stamp_ns, latlon_deg = self._waiting.popleft()
            self.add(name, stamp_ns, *self._frame.xy_from_latlon(*latlon_deg))
