"""The node that computes odometry from wheel speeds and the yaw rate of an IMU."""

import math

import pytest

from crossview_localizer.fusion.dead_reckoning import DeadReckoner

SECOND_NS = 10**9


def test_the_node_publishes_odometry_and_its_transform(
        ros, own_domain, wait_until, monkeypatch):
    rclpy = pytest.importorskip('rclpy')
    from geometry_msgs.msg import TwistWithCovarianceStamped
    from nav_msgs.msg import Odometry
    from rclpy.parameter import Parameter
    from sensor_msgs.msg import Imu
    from tf2_msgs.msg import TFMessage

    from crossview_localizer.ros import conversions
    from crossview_localizer.wheel_odometry import WheelOdometryNode

    yaw_rates = []
    add_yaw_rate = DeadReckoner.add_yaw_rate

    def add_and_note(reckoner, stamp_ns, yaw_rate_radps):
        yaw_rates.append(yaw_rate_radps)
        add_yaw_rate(reckoner, stamp_ns, yaw_rate_radps)

    monkeypatch.setattr(DeadReckoner, 'add_yaw_rate', add_and_note)
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
        and node.count_subscribers('odometry') and node.count_subscribers('/tf')))
    for k in range(11):
        stamp = conversions.stamp_msg_from_ns(SECOND_NS + k * SECOND_NS // 10)
        turning, driving = Imu(), TwistWithCovarianceStamped()
        turning.header.stamp = driving.header.stamp = stamp
        turning.angular_velocity.z, driving.twist.twist.linear.x = 0.1, 8.0
        imu.publish(turning)
        wait_until(lambda count=k + 1: executor.spin_once(0.05) or len(yaw_rates) >= count)
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


@pytest.mark.parametrize('given, said', [
    ('use_imu:=3', "'use_imu'"), ("use_sim_time:='true'", "'use_sim_time'")])
def test_a_parameter_of_another_kind_is_one_line_and_exit_code_2(
        ros, own_domain, signal_handlers, capsys, given, said):
    from crossview_localizer.wheel_odometry import main
    assert main(['--ros-args', '-p', given]) == 2
    message = capsys.readouterr().err
    assert message.startswith('wheel_odometry: error: ') and said in message
    assert message.count('\n') == 1
