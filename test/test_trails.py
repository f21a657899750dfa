"""The lines of the scene: thinned, begun again when time goes back, placed once the map is."""

import numpy as np

from crossview_localizer.geometry import LocalFrame
from crossview_localizer.ros.trails import Trail, Trails

FRAME = LocalFrame(51.76, -1.26)
STAMP_NS = 1_400_000_000_000_000_000


def test_a_trail_is_thinned_and_starts_again_when_time_goes_back():
    trail = Trail()
    for k in range(3 * Trail.MAX_POINTS):
        trail.add(STAMP_NS + k * 10**8, 1.0 * k, 0.0)
    assert Trail.MAX_POINTS / 4 < len(trail.xy_m) <= Trail.MAX_POINTS
    assert trail.xy_m[0] == (0.0, 0.0) and trail.xy_m[-1][0] > 3 * Trail.MAX_POINTS - 20
    trail.add(STAMP_NS, 5.0, 5.0)
    assert trail.xy_m == [(5.0, 5.0)]


def test_points_on_earth_wait_until_the_place_of_the_map_is_known():
    trails = Trails(('gnss', 'refined'))
    trails.add('refined', STAMP_NS, 1.0, 2.0)
    trails.add_geographic('gnss', STAMP_NS, FRAME.latlon_from_xy(10.0, 20.0))
    assert {name: len(trail.xy_m) for name, trail in trails.take_changed()} == {
        'gnss': 0, 'refined': 1}
    assert list(trails.take_changed()) == []
    trails.set_map_frame(FRAME.latlon_from_xy(1.0, 2.0), (1.0, 2.0))
    trails.add_geographic('gnss', STAMP_NS + 10**9, FRAME.latlon_from_xy(30.0, 20.0))
    (name, trail), = trails.take_changed()
    assert name == 'gnss'
    np.testing.assert_allclose(trail.xy_m, [(10.0, 20.0), (30.0, 20.0)], atol=1e-3)


def test_another_map_clears_the_trails_and_the_same_does_not():
    trails = Trails(('refined',))
    trails.set_map_frame(FRAME.latlon_from_xy(1.0, 2.0), (1.0, 2.0))
    trails.add('refined', STAMP_NS, 1.0, 2.0)
    trails.set_map_frame(FRAME.latlon_from_xy(50.0, 60.0), (50.2, 60.0))
    (_, trail), = trails.take_changed()
    assert len(trail.xy_m) == 1
    trails.set_map_frame(FRAME.latlon_from_xy(50.0, 60.0), (150.0, 60.0))
    assert trail.xy_m == []
