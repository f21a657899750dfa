"""Odometry of wheel speeds and yaw rates: circles that close, gaps that are covered, a node."""

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


def test_what_an_imu_says_late_is_made_good():
    """A yaw rate that was guessed until the next sample came is not lost."""
    reckoner = DeadReckoner()
    reckoner.add_yaw_rate(0, 0.0)
    reckoner.add_speed(0, 5.0)
    reckoner.add_speed(SECOND_NS // 10, 5.0)                    # straight on, as far as is known
    reckoner.add_yaw_rate(SECOND_NS // 10, 1.0)
    reckoner.add_yaw_rate(SECOND_NS // 5, 1.0)
    sample = reckoner.add_speed(SECOND_NS // 5, 5.0)
    assert sample.odom_from_base.yaw_rad == pytest.approx(0.05 + 0.1)


def test_a_speed_that_is_refused_is_covered_by_the_next():
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


def test_the_node_publishes_odometry_and_its_transform(ros, own_domain, wait_until):
    rclpy = pytest.importorskip('rclpy')
    from geometry_msgs.msg import TwistWithCovarianceStamped
    from nav_msgs.msg import Odometry
    from rclpy.parameter import Parameter
    from sensor_msgs.msg import Imu
    from tf2_msgs.msg import TFMessage

    from crossview_localizer.ros import conversions
    from crossview_localizer.wheel_odometry import WheelOdometryNode

    rclpy.init()
    executor = rclpy.executors.SingleThreadedExecutor()
    # Reliable: nothing that is sent once is lost.
    node = WheelOdometryNode(parameter_overrides=[Parameter('reliability', value='reliable')])
    car = rclpy.create_node('car')
    for part in (node, car):
        executor.add_node(part)
    heard, transforms = [], []
    car.create_subscription(Odometry, 'odometry', heard.append, 100)
    car.create_subscription(TFMessage, '/tf', transforms.append, 100)
    imu = car.create_publisher(Imu, 'imu', 100)
    twist = car.create_publisher(TwistWithCovarianceStamped, 'twist', 100)
    wait_until(lambda: executor.spin_once(0.05) or (
        imu.get_subscription_count() and twist.get_subscription_count()
        and node._odometry.get_subscription_count() and node._tf.get_subscription_count()))
    gyro = node._reckoner._gyro
    for k in range(11):
        stamp = conversions.stamp_msg_from_ns(SECOND_NS + k * SECOND_NS // 10)
        turning, driving = Imu(), TwistWithCovarianceStamped()
        turning.header.stamp = driving.header.stamp = stamp
        turning.angular_velocity.z, driving.twist.twist.linear.x = 0.1, 8.0
        imu.publish(turning)
        wait_until(lambda count=k + 1: executor.spin_once(0.05) or len(gyro) >= count)
        twist.publish(driving)
        wait_until(lambda count=k + 1: executor.spin_once(0.05) or len(heard) >= count)
    elsewhere = TwistWithCovarianceStamped()
    elsewhere.header.frame_id = 'map'
    twist.publish(elsewhere)
    wait_until(lambda: executor.spin_once(0.05) or len(transforms) == 11)
    rclpy.shutdown()
    last = heard[-1]
    assert (last.header.frame_id, last.child_frame_id) == ('odom', 'base_link')
    sample = conversions.odometry_sample_from_msg(last)
    assert len(heard) == 11 and sample.stamp_ns == 2 * SECOND_NS
    assert sample.odom_from_base.yaw_rad == pytest.approx(0.1, abs=1e-6)
    assert sample.odom_from_base.x_m == pytest.approx(80.0 * math.sin(0.1), rel=1e-3)
    assert last.twist.twist.linear.x == 8.0
    moved = transforms[-1].transforms[0]
    assert (moved.header.frame_id, moved.child_frame_id) == ('odom', 'base_link')
    assert moved.transform.translation.x == last.pose.pose.position.x
