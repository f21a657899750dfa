"""The topics of a drive, as ``robotcar_to_bag`` writes them and the launch file remaps them."""

from dataclasses import dataclass

IMAGE_TOPIC = '/camera/image'
COMPRESSED_IMAGE_TOPIC = '/camera/image/compressed'
CAMERA_INFO_TOPIC = '/camera/camera_info'
GNSS_TOPIC = '/gnss/fix'
GNSS_VELOCITY_TOPIC = '/gnss/velocity'  # RobotCar has none
ODOMETRY_TOPIC = '/odometry'
TF_STATIC_TOPIC = '/tf_static'
TRUTH_TOPIC = '/ground_truth/geopose'


@dataclass(frozen=True)
class Topics:
    """The topics that an offline tool reads; one whose name is empty is not read."""

    image: str = COMPRESSED_IMAGE_TOPIC
    camera_info: str = CAMERA_INFO_TOPIC
    gnss: str = GNSS_TOPIC
    gnss_velocity: str = GNSS_VELOCITY_TOPIC
    odometry: str = ODOMETRY_TOPIC
    tf_static: str = TF_STATIC_TOPIC
    truth: str = TRUTH_TOPIC
