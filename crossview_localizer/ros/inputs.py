"""The topics that the localizer node subscribes to."""

from collections.abc import Callable

from geometry_msgs.msg import (
    PoseWithCovarianceStamped,
    TwistStamped,
    TwistWithCovarianceStamped,
)
from nav_msgs.msg import Odometry
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, qos_policy_name_from_kind
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from tf2_msgs.msg import TFMessage

from crossview_localizer.config import NodeConfig
from crossview_localizer.ros.qos import latched_profile, overridable, qos_profile

VELOCITIES = {kind.__name__: kind for kind in (TwistWithCovarianceStamped, TwistStamped)}
# Ten seconds of odometry at 100 Hz: a machine that is busy for that long loses none.
SENSOR_DEPTH = 1000


class LocalizerInputs:
    """The subscriptions of a configured node.

    ``callbacks`` has the callback of each topic; the executor serves what is ready in the order
    below, GNSS before odometry.  ``on_incompatible_qos(topic, policy)`` is called with the full
    name of a topic where a publisher offers a QoS that does not fit.  The name of the policy is
    that of ROS, such as RELIABILITY.
    """

    def __init__(
        self, node: Node, config: NodeConfig, callbacks: dict[str, Callable],
        on_incompatible_qos: Callable[[str, str], None],
    ):
        self._node = node
        self._subscriptions = []
        sensor_qos = qos_profile(config.sensor_reliability, SENSOR_DEPTH)
        compressed = config.image_transport == 'compressed'
        for topic, kind, qos in (
                ('/tf_static', TFMessage, latched_profile(100)),
                ('camera_info', CameraInfo, qos_profile(config.sensor_reliability, 10)),
                ('gnss', NavSatFix, sensor_qos),
                ('gnss_velocity', VELOCITIES[config.gnss_velocity_type], sensor_qos),
                ('odometry', Odometry, sensor_qos),
                ('initialpose', PoseWithCovarianceStamped, 10),
                ('image', CompressedImage if compressed else Image,
                 qos_profile(config.image_reliability, 5))):
            callback = callbacks[topic]
            topic = image_topic(node, config) if topic == 'image' else topic
            name = node.resolve_topic_name(topic)
            self._subscriptions.append(node.create_subscription(
                kind, topic, callback, qos, qos_overriding_options=overridable(),
                event_callbacks=SubscriptionEventCallbacks(
                    incompatible_qos=lambda event, name=name: on_incompatible_qos(
                        name, qos_policy_name_from_kind(event.last_policy_kind)))))
        self._on_camera_info = callbacks['camera_info']
        self._latched_camera_info = None

    def take_latched_camera_info(self) -> None:
        """Subscribe anew where camera_info is latched: call this until one has come."""
        if self._latched_camera_info is None:
            self._latched_camera_info = subscribe_if_latched(
                self._node, CameraInfo, 'camera_info', self._on_camera_info)

    def destroy(self) -> None:
        """Destroy all subscriptions."""
        if self._latched_camera_info is not None:
            self._subscriptions.append(self._latched_camera_info)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)


def subscribe_if_latched(node: Node, kind, topic: str, callback: Callable):
    """A subscription that gets what was latched on a topic before; None where nobody latches it.

    Publishers that do not latch would warn of it.
    """
    publishers = node.get_publishers_info_by_topic(node.resolve_topic_name(topic))
    if any(info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for info in publishers):
        return node.create_subscription(kind, topic, callback, latched_profile(1))
    return None


def image_topic(node: Node, config: NodeConfig) -> str:
    """The full name of the image topic, with /compressed if image_transport says so."""
    name = node.resolve_topic_name('image')
    return f'{name}/compressed' if config.image_transport == 'compressed' else name


def rectification_remark(image_topic: str, image_is_rectified: bool) -> str:
    """What to say where the name of a topic contradicts ``image_is_rectified``, else ''.

    Such images would be undistorted twice, or not at all.
    """
    for name, is_so in (('image_rect', True), ('image_raw', False)):
        if name in image_topic and image_is_rectified is not is_so:
            return (f'by its name {image_topic} is {"" if is_so else "not "}rectified: set '
                    f'image_is_rectified to {str(is_so).lower()} if the name is right')
    return ''
