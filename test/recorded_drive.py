"""A recording of the node and its input bag, made up in closed form: a circle at 6 m/s."""

from array import array
import math
from pathlib import Path

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from geographic_msgs.msg import GeoPoseStamped
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
import numpy as np
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from sensor_msgs.msg import CameraInfo, CompressedImage, NavSatFix
from std_msgs.msg import Float64
from tf2_msgs.msg import TFMessage

from crossview_localizer.bags.installed_types import register_installed_type
from crossview_localizer.datatypes import Heatmap, Outcome, PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.ros import conversions
from crossview_localizer.ros.status import image_status, Level, Status

START_NS = 1_400_000_000_000_000_000
FRAME = LocalFrame(51.7606, -1.261)
RADIUS_M, SPEED_MPS = 60.0, 6.0
# The published pose lies ahead and to the left of the true one, the prior to its right.
AHEAD_M, LEFT_M, PRIOR_LEFT_M, PEAK_EAST_M = 1.0, 0.5, -2.0, 3.0
COVARIANCE = np.diag([1.0, 1.0, 0.02**2])
HEATMAP_CELL_M = 0.75
WIDTH_PX, HEIGHT_PX, FOCAL_PX, CAMERA_HEIGHT_M = 160, 120, 120.0, 1.52
OUTAGE_S = (8.0, 13.0)


def true_pose(time_s: float) -> Pose2D:
    angle_rad = time_s * SPEED_MPS / RADIUS_M
    return Pose2D(RADIUS_M * math.sin(angle_rad), -RADIUS_M * math.cos(angle_rad), angle_rad)


def estimate(pose: Pose2D, stamp_ns: int, ahead_m=0.0, left_m=0.0) -> PoseEstimate:
    return PoseEstimate(stamp_ns, pose @ Pose2D(ahead_m, left_m, 0.0), COVARIANCE)


def heatmap(pose: Pose2D, stamp_ns: int, cells: int) -> Heatmap:
    """A Gaussian about a point east of the pose; the peak is a cell's centre."""
    grid = MapGrid.around(
        pose.x_m + PEAK_EAST_M, pose.y_m, (cells - 1) / 2 * HEATMAP_CELL_M, HEATMAP_CELL_M)
    x_m, y_m = grid.cell_centres()
    squared = (x_m[None] - pose.x_m - PEAK_EAST_M) ** 2 + (y_m[:, None] - pose.y_m) ** 2
    return Heatmap(stamp_ns, grid, -squared / 18.0 - np.log(np.exp(-squared / 18.0).sum()))


def geopose_msg(pose: Pose2D, stamp_ns: int) -> GeoPoseStamped:
    msg = GeoPoseStamped()
    msg.header.stamp = conversions.stamp_msg_from_ns(stamp_ns)
    found = conversions.geopose_msg_from_estimate(estimate(pose, stamp_ns), FRAME)
    msg.pose.position = found.pose.pose.position
    msg.pose.orientation = found.pose.pose.orientation
    return msg


def diagnostics_msg(time_s: float, stamp_ns: int) -> DiagnosticArray:
    silent = OUTAGE_S[0] < time_s < OUTAGE_S[1]
    age_s = time_s - OUTAGE_S[0] if silent else 0.05
    gnss = Status('gnss', Level.ERROR, f'nothing received for {age_s:.1f} s', {
        'received': round(5 * time_s), 'refused': 0, 'age_s': f'{age_s:.2f}'}, 'look at it') \
        if silent else Status('gnss', Level.OK, 'receiving', {
            'received': round(5 * time_s), 'refused': 3 if time_s > 15.0 else 0,
            'age_s': f'{age_s:.2f}'})
    camera = Status('camera', Level.OK, 'receiving', {
        'received': round(4 * time_s), 'refused': 0, 'dropped': 0, 'age_s': '0.03'})
    return conversions.diagnostics_msg_from_statuses(
        [camera, gnss], stamp_ns, 'crossview_localizer')


def output_messages(
    seconds: float, rate_hz: float = 4.0, cells: int = 41, gated=(), unmatched=(), distrusted=(),
):
    """(topic, time in s, message); ``gated``, ``unmatched`` and ``distrusted`` number poses."""
    for number in range(int(seconds * rate_hz)):
        time_s = number / rate_hz
        stamp_ns = START_NS + round(time_s * 1e9)
        pose = true_pose(time_s)
        prior = estimate(pose, stamp_ns, left_m=PRIOR_LEFT_M)
        refined = estimate(pose, stamp_ns, AHEAD_M, LEFT_M)
        if number in gated or number in unmatched or number in distrusted:
            refined = prior
        for name, message in (
                ('prior', conversions.pose_msg_from_estimate(prior, 'map')),
                ('pose', conversions.pose_msg_from_estimate(refined, 'map')),
                ('geopose', conversions.geopose_msg_from_estimate(refined, FRAME)),
                ('latency', Float64(data=30.0 + number % 10))):
            yield f'/crossview_localizer/{name}', time_s, message
        outcome = next((outcome for outcome, numbers in (
            (Outcome.GATED, gated), (Outcome.AMBIGUOUS, unmatched),
            (Outcome.DISTRUSTED, distrusted)) if number in numbers), Outcome.USED)
        yield '/crossview_localizer/status', time_s, conversions.status_msg_from_status(
            image_status(
                stamp_ns, outcome, f'{outcome.name} at {number}',
                'distrusted' if outcome is Outcome.DISTRUSTED else 'trusted'),
            'crossview_localizer')
        if number not in unmatched:
            match = estimate(pose @ Pose2D(0.0, 1.0, 0.0), stamp_ns)
            yield '/crossview_localizer/match', time_s, conversions.pose_msg_from_estimate(
                match, 'map')
            yield ('/crossview_localizer/heatmap', time_s, conversions.heatmap_msg_from_heatmap(
                heatmap(pose, stamp_ns, cells), 'map'))
        if number % int(rate_hz) == 0:
            yield '/diagnostics', time_s, diagnostics_msg(time_s, stamp_ns)


def truth_messages(seconds: float):
    for number in range(int(seconds * 10.0)):
        time_s = number / 10.0
        stamp_ns = START_NS + round(time_s * 1e9)
        yield '/ground_truth/geopose', time_s, geopose_msg(true_pose(time_s), stamp_ns)


def odometry_messages(seconds: float):
    for number in range(int(seconds * 10.0)):
        time_s = number / 10.0
        odometry, pose = Odometry(child_frame_id='base_link'), true_pose(time_s)
        odometry.header.stamp = conversions.stamp_msg_from_ns(START_NS + round(time_s * 1e9))
        odometry.header.frame_id = 'odom'
        odometry.pose.pose.position.x = pose.x_m
        odometry.pose.pose.position.y = pose.y_m
        odometry.pose.pose.orientation = conversions.quaternion_msg_from_yaw(pose.yaw_rad)
        yield '/odometry', time_s, odometry


def static_transforms(antenna_x_m: float = 0.0) -> TFMessage:
    """A camera at base_link that looks ahead, and a GNSS antenna on its x axis."""
    camera, antenna = TransformStamped(), TransformStamped()
    for transform, child in ((camera, 'camera'), (antenna, 'gnss')):
        transform.header.frame_id, transform.child_frame_id = 'base_link', child
        transform.transform.rotation.w = 1.0
    # The optical frame: z ahead, x right, y down.
    rotation = camera.transform.rotation
    rotation.x, rotation.y, rotation.z, rotation.w = -0.5, 0.5, -0.5, 0.5
    antenna.transform.translation.x = antenna_x_m
    return TFMessage(transforms=[camera, antenna])


def input_messages(seconds: float, rate_hz: float = 4.0):
    """Static transforms, pictures with their camera_info, and fixes with an outage."""
    yield '/tf_static', 0.0, static_transforms()
    info = CameraInfo(width=WIDTH_PX, height=HEIGHT_PX, distortion_model='plumb_bob')
    info.k = [FOCAL_PX, 0.0, WIDTH_PX / 2, 0.0, FOCAL_PX, HEIGHT_PX / 2, 0.0, 0.0, 1.0]
    info.d = [0.0] * 5
    for number in range(int(seconds * rate_hz)):
        time_s = number / rate_hz
        stamp = conversions.stamp_msg_from_ns(START_NS + round(time_s * 1e9))
        info.header.stamp, info.header.frame_id = stamp, 'camera'
        yield '/camera/camera_info', time_s, info
        picture = np.full((HEIGHT_PX, WIDTH_PX, 3), 90, np.uint8)
        picture[HEIGHT_PX // 2:, ::8] = 200
        image = CompressedImage(format='rgb8; jpeg compressed bgr8')
        image.header.stamp, image.header.frame_id = stamp, 'camera'
        image.data = array('B', cv2.imencode('.jpg', picture)[1].tobytes())
        yield '/camera/image/compressed', time_s, image
    for number in range(int(seconds * 5.0)):
        time_s = number / 5.0
        if OUTAGE_S[0] < time_s < OUTAGE_S[1]:
            continue
        pose = true_pose(time_s)
        fix = NavSatFix(position_covariance_type=2)
        fix.header.stamp = conversions.stamp_msg_from_ns(START_NS + round(time_s * 1e9))
        fix.header.frame_id = 'gnss'
        fix.status.status = 0
        fix.latitude, fix.longitude = FRAME.latlon_from_xy(pose.x_m + 4.0, pose.y_m)
        fix.position_covariance = np.diag([4.0, 4.0, 9.0]).ravel()
        yield '/gnss/fix', time_s, fix


def write_bags(folder, seconds: float) -> dict[str, Path]:
    """A recording with truth ('run'), the same without ('bare'), and the input bag ('input')."""
    outputs = list(output_messages(
        seconds, gated={10}, unmatched={0, 1, 30}, distrusted={20, 21}))
    return {
        'run': write_bag(folder / 'run', [*outputs, *truth_messages(seconds)]),
        'bare': write_bag(folder / 'bare', outputs),
        'input': write_bag(
            folder / 'input', [*input_messages(seconds), *odometry_messages(seconds)])}


def write_bag(path, messages, bag_delay_s: float = 0.0):
    """A bag of these messages in the order of their times, recorded that much later."""
    typestore = get_typestore(Stores.EMPTY)
    connections = {}
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, time_s, message in sorted(messages, key=lambda entry: entry[1]):
            package, _, _ = type(message).__module__.split('.', 2)
            msgtype = f'{package}/msg/{type(message).__name__}'
            if topic not in connections:
                register_installed_type(typestore, msgtype)
                connections[topic] = writer.add_connection(topic, msgtype, typestore=typestore)
            writer.write(
                connections[topic], START_NS + round((time_s + bag_delay_s) * 1e9),
                serialize_message(message))
    return path
