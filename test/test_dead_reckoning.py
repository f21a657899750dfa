"""Odometry from wheel speeds and yaw rates: circles that close, gaps that are covered."""

import math

import numpy as np
import pytest

from crossview_localizer.fusion.dead_reckoning import DeadReckoner

SECOND_NS = 10**9


def circle(reckoner: DeadReckoner, own_yaw_rate: bool, imu_late_s: float = 0.0):
    """Once round at 10 m/s in 20 s; returns the samples."""
    radps, samples = 2.0 * math.pi / 20.0, []
    events = [(k * 0.1, 'speed', k * 0.1) for k in range(201)]
    if not own_yaw_rate:
        events += [(k * 0.01 + imu_late_s, 'gyro', k * 0.01) for k in range(2011)]
    for _, kind, time_s in sorted(events):
        stamp_ns = round(time_s * SECOND_NS)
        if kind == 'gyro':
            reckoner.add_yaw_rate(stamp_ns, radps)
        else:
            try:
                samples.append(
                    reckoner.add_speed(stamp_ns, 10.0, 0.0, radps if own_yaw_rate else None))
            except ValueError:
                assert not samples  # only until the first yaw rate has come
    return samples


@pytest.mark.parametrize(
    ('own_yaw_rate', 'imu_late_s'), [(True, 0.0), (False, 0.0), (False, 0.05)])
def test_a_circle_closes(own_yaw_rate, imu_late_s):
    samples = circle(DeadReckoner(), own_yaw_rate, imu_late_s)
    poses = np.array([sample.odom_from_base.as_array() for sample in samples])
    radius_m = 200.0 / (2.0 * math.pi)
    turned_rad = (samples[-1].stamp_ns - samples[0].stamp_ns) * 1e-9 * 2.0 * math.pi / 20.0
    assert np.ptp(poses[:, 0]) == pytest.approx(2.0 * radius_m, rel=1e-3)
    expected = (radius_m * math.sin(turned_rad), radius_m * (1.0 - math.cos(turned_rad)))
    np.testing.assert_allclose(poses[-1, :2], expected, atol=0.02)
    assert math.cos(poses[-1, 2] - turned_rad) == pytest.approx(1.0, abs=1e-9)


def test_a_turn_that_is_known_late_is_made_up_for():
    """The yaw rate was taken to stay the same until the next sample came."""
    reckoner = DeadReckoner()
    reckoner.add_yaw_rate(0, 0.0)
    reckoner.add_speed(0, 5.0)
    reckoner.add_speed(SECOND_NS // 10, 5.0)                    # straight on, as far as is known
    reckoner.add_yaw_rate(SECOND_NS // 10, 1.0)
    reckoner.add_yaw_rate(SECOND_NS // 5, 1.0)
    sample = reckoner.add_speed(SECOND_NS // 5, 5.0)
    assert sample.odom_from_base.yaw_rad == pytest.approx(0.05 + 0.1)


def test_the_time_of_a_refused_speed_is_covered_by_the_next():
    reckoner = DeadReckoner()
    reckoner.add_yaw_rate(0, 0.0)
    reckoner.add_speed(0, 10.0)
    with pytest.raises(ValueError, match=r'no yaw rate for 1\.0 s'):
        reckoner.add_speed(SECOND_NS, 10.0)
    with pytest.raises(ValueError, match='not finite'):
        reckoner.add_speed(SECOND_NS, math.nan)
    reckoner.add_yaw_rate(2 * SECOND_NS, 0.0)
    with pytest.raises(ValueError, match='not newer'):
        reckoner.add_yaw_rate(2 * SECOND_NS, 0.0)
    sample = reckoner.add_speed(2 * SECOND_NS, 10.0)
    assert sample.odom_from_base.x_m == pytest.approx(20.0)
    with pytest.raises(ValueError, match='not newer'):
        reckoner.add_speed(2 * SECOND_NS, 10.0)


def test_a_gyro_does_not_turn_a_car_that_stands():
    reckoner = DeadReckoner()
    for k in range(100):
        reckoner.add_yaw_rate(k * SECOND_NS // 10, 0.02)
        sample = reckoner.add_speed(k * SECOND_NS // 10, 0.0)
    assert sample.odom_from_base.yaw_rad == 0.0
    # Nor is that turn made when it drives off.
    reckoner.add_yaw_rate(10 * SECOND_NS, 0.0)
    assert reckoner.add_speed(10 * SECOND_NS, 1.0).odom_from_base.yaw_rad == pytest.approx(0.001)
