"""What to do about each part of /diagnostics that is not OK, unless its message says so."""

from crossview_localizer.datatypes import Outcome

CAMERA = 'check the camera driver, camera_info, image_transport and image_is_rectified'
BLIND_CAMERA = 'uncover or clean the lens, check the exposure, restart a frozen camera driver'
EXTRINSICS = 'publish the missing frame on /tf_static, or set camera_xyz_rpy and antenna_xyz_m'
CAMERA_INFO = (
    'publish camera_info with the images, or remap it: -r camera_info:=TOPIC; compare the QoS of '
    'its publisher with sensor_reliability')
SENSOR_QOS = 'for RELIABILITY set sensor_reliability: best_effort; else change the publisher'
IMAGE_QOS = 'for RELIABILITY set image_reliability: best_effort; else change the publisher'
NO_PUBLISHER = 'start the sensor or the bag; compare ROS_DOMAIN_ID on both sides; or remap:'
NO_IMAGE_PUBLISHER = (
    'start the camera or the bag; check the remapping of image (-r image:=TOPIC) and '
    'image_transport')
SILENT_PUBLISHER = 'see whether its publisher is paused or has no data: ros2 topic hz TOPIC'
LARGE_IMAGES = (
    'with the defaults of DDS large images are lost: set FASTDDS_DEFAULT_PROFILES_FILE (Jazzy: '
    'FASTRTPS_DEFAULT_PROFILES_FILE) to config/fastdds_large_images.xml for their publisher, or '
    'use image_transport compressed')
LOST_MESSAGES = (
    'free the processor or slow the publisher down; publish reliably; for large images see '
    'config/fastdds_large_images.xml')
GNSS = (
    "check the antenna, its view of the sky and the receiver's clock; if many fixes are refused "
    'by the gate, antenna_xyz_m or filter.gnss_bias_sigma_m is wrong')
GNSS_VELOCITY = (
    'the velocity must be to the east and north, not ahead and left, with the stamps of the '
    'receiver; the node works without it: remap gnss_velocity to leave it out')
ODOMETRY = 'check the source of the odometry, its stamps and base_frame'
ODOMETRY_FRAME = 'set the frame of the odometry driver (often odom_frame) to odom'
ODOMETRY_IN_MAP = (
    'remap odometry to the odometry of the wheels or the camera: that of a filter with GNSS in it '
    'jumps, and its GNSS would count twice')
ODOMETRY_STANDS = (
    'set odometry_from_twist: true if the source fills its twist alone, else check the source')
NO_ODOM_TF = (
    'nobody publishes odom -> base_link on /tf, which RViz and Nav2 need: let the odometry do it, '
    'or set publish_odom_tf of the scene (an argument of the launch file)')
TWO_PUBLISHERS = 'stop all publishers of this topic but one, or remap them'
CONTRADICTION = (
    "check the odometry's scale, units and direction of turning (positive is counter-clockwise), "
    'then the GNSS')
WIDE_POSE = (
    'see which of gnss, odometry and matcher is not OK; publish initialpose where the position '
    'is known')
CLOCK = 'start what publishes /clock, or set use_sim_time to false'
MAP = (
    'set map_path and weights_path to a map and the weights that build_map made it with; then '
    'clean up and configure the node')
GPU = 'free the GPU, then restart the node; or accept the CPU with device: cpu'
SEE_CAMERA = 'see camera'
INACTIVE = 'activate the lifecycle node, or set autostart'
NOT_CONFIGURED = 'correct the parameters, then configure the lifecycle node again'
REFUSED_MESSAGE = 'publish it again, corrected'
INTERNAL_ERROR = 'report it with the log; the node goes on with the prior'
START = 'drive with GNSS and odometry, or publish initialpose'

MATCHER = {
    Outcome.NOT_STARTED: START,
    Outcome.TOO_OLD: 'synchronize the clocks of camera and odometry; raise filter.buffer_s',
    Outcome.INVALID: 'synchronize the clocks of camera and odometry',
    Outcome.GATED: 'if it goes on, check camera.height_m, the camera extrinsics and the map',
    Outcome.OUTSIDE_MAP: 'drive back into the corridor, or build a wider map',
    Outcome.PRIOR_TOO_WIDE: 'wait for GNSS, publish initialpose, or raise match.window_max_m',
    Outcome.AMBIGUOUS:
        'none is needed where the road looks alike; else check camera.height_m and the map',
    Outcome.NO_MATCHER: MAP,
    Outcome.UNUSABLE: SEE_CAMERA,
    Outcome.DISTRUSTED:
        'the pose goes on without matches: check the camera, its extrinsics, the map and the pose',
}
