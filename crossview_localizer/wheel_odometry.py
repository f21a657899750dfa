"""A node that computes odometry from wheel speeds and the yaw rate of an IMU."""

import argparse
import sys

from geometry_msgs.msg import TwistStamped, TwistWithCovarianceStamped
from nav_msgs.msg import Odometry
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.node import Node
from sensor_msgs.msg import Imu
from tf2_msgs.msg import TFMessage

from crossview_localizer.fusion.dead_reckoning import DeadReckoner
from crossview_localizer.ros import conversions
from crossview_localizer.ros.process import run_node
from crossview_localizer.ros.qos import qos_profile

TWISTS = {'TwistStamped': TwistStamped, 'TwistWithCovarianceStamped': TwistWithCovarianceStamped}
# Name -> default and description.
PARAMETERS = {
    'twist_type': ('TwistWithCovarianceStamped', 'message on twist, in geometry_msgs: '
                   + ' or '.join(sorted(TWISTS))),
    'use_imu': (True, 'take the yaw rate from imu; false: from angular.z of twist'),
    'imu_is_upside_down': (False, 'the z axis of the IMU points down (it must be vertical)'),
    'odom_frame': ('odom', 'frame_id of the odometry'),
    'base_frame': ('base_link', 'frame of the vehicle, in which twist is given'),
    'publish_tf': (True, 'publish odom_frame to base_frame on /tf as well'),
    'reliability': ('best_effort', 'QoS of the subscriptions: best_effort or reliable'),
}


class WheelOdometryNode(Node):
    """Publishes ``odometry`` for each message on ``twist``."""

    def __init__(self, **kwargs):
        super().__init__('wheel_odometry', **kwargs)
        for name, (default, description) in PARAMETERS.items():
            self.declare_parameter(name, default, ParameterDescriptor(
                description=description, read_only=True))
        given = {name: self.get_parameter(name).value for name in PARAMETERS}
        if given['twist_type'] not in TWISTS:
            raise ValueError(
                f'twist_type {given["twist_type"]!r}; expected {" or ".join(sorted(TWISTS))}')
        self._odom_frame, self._base_frame = given['odom_frame'], given['base_frame']
        self._use_imu = given['use_imu']
        self._imu_sign = -1.0 if given['imu_is_upside_down'] else 1.0
        self._reckoner = DeadReckoner()
        self._odometry_publisher = self.create_publisher(Odometry, 'odometry', 100)
        self._tf_publisher = None
        if given['publish_tf']:
            self._tf_publisher = self.create_publisher(TFMessage, '/tf', 100)
        qos = qos_profile(given['reliability'], 1000)
        if self._use_imu:
            self.create_subscription(Imu, 'imu', self._on_imu, qos)
        self.create_subscription(TWISTS[given['twist_type']], 'twist', self._on_twist, qos)

    def _on_imu(self, msg: Imu) -> None:
        try:
            self._reckoner.add_yaw_rate(
                conversions.stamp_ns_from_msg(msg.header.stamp),
                self._imu_sign * msg.angular_velocity.z)
        except ValueError as error:
            self._refuse('imu', error)

    def _on_twist(self, msg) -> None:
        if msg.header.frame_id.lstrip('/') not in ('', self._base_frame):
            self._refuse('twist', f'frame_id is {msg.header.frame_id!r}; expected '
                         f'{self._base_frame!r} (parameter base_frame)')
            return
        twist = getattr(msg.twist, 'twist', msg.twist)
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        try:
            sample = self._reckoner.add_speed(
                stamp_ns, twist.linear.x, twist.linear.y,
                None if self._use_imu else twist.angular.z)
        except ValueError as error:
            self._refuse('twist', error)
            return
        odom = Odometry()
        transform = conversions.transform_msg_from_pose(
            sample.odom_from_base, stamp_ns, self._odom_frame, self._base_frame)
        odom.header, odom.child_frame_id = transform.header, self._base_frame
        odom.pose.pose.position.x = sample.odom_from_base.x_m
        odom.pose.pose.position.y = sample.odom_from_base.y_m
        odom.pose.pose.orientation = transform.transform.rotation
        odom.twist.twist = twist
        self._odometry_publisher.publish(odom)
        if self._tf_publisher is not None:
            self._tf_publisher.publish(TFMessage(transforms=[transform]))

    def _refuse(self, topic: str, reason) -> None:
        self.get_logger().warning(
            f'a message on {self.resolve_topic_name(topic)} is refused: {reason}',
            throttle_duration_sec=5.0)


def main(args: list[str] | None = None) -> int:
    """Publish until SIGINT or SIGTERM."""
    return run_node(argparse.ArgumentParser(
        prog='wheel_odometry',
        description='Compute odometry from wheel speeds (twist, of base_link) and the yaw rate '
        'of an IMU (imu). Parameters: ' + '; '.join(
            f'{name} ({default}): {text}' for name, (default, text) in PARAMETERS.items()) + '.',
        epilog='example: ros2 run crossview_localizer wheel_odometry --ros-args '
        '-r twist:=/vehicle/velocity -r imu:=/imu/data'),
        args, WheelOdometryNode)


if __name__ == '__main__':
    sys.exit(main())
