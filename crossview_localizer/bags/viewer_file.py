"""A recorded run and its input as one mcap file for a viewer without ROS."""

from array import array
from collections.abc import Iterator
from contextlib import suppress
import heapq
import math
from pathlib import Path

from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import OccupancyGrid
from nav_msgs.msg import Path as PathMsg
import numpy as np
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from scipy.stats import chi2
from tf2_msgs.msg import TFMessage
from tqdm import tqdm
from visualization_msgs.msg import Marker, MarkerArray

from crossview_localizer.bags.bag import Bag, BagError
from crossview_localizer.bags.installed_types import register_installed_type
from crossview_localizer.bags.recorded_run import RecordedRun
from crossview_localizer.bags.topics import Topics
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs
from crossview_localizer.files import write_atomically
from crossview_localizer.geometry import MapGrid
from crossview_localizer.ros import conversions

MAP_FRAME = 'map'
MARGIN_M = 60.0
SATELLITE_CELL_M = 0.5
SATELLITE_MAX_CELLS = 1500
PATH_POINTS = 4000
ELLIPSE_POINTS = 40
HEIGHTS_M = {'satellite': -0.1, 'path': 0.1, 'ellipse': 0.2}
ELLIPSE_COLOURS = {'pose': (0.0, 0.85, 0.55), 'prior': (0.25, 0.6, 1.0)}
# A shorter delay between stamp and bag time is the processing time of a live run.
LIVE_DELAY_NS = 60_000_000_000


def write_viewer_file(
    out: Path, run: RecordedRun, orthophoto, bag: Path, input_bag: Path | None, topics: Topics,
    progress: bool = False,
) -> None:
    """Write the file: both bags and, below /viewer, what a viewer cannot compute.

    ``orthophoto`` gives rgb (rows, cols, 3) on a grid; None leaves the satellite image out.
    """
    # rosbags writes a folder and names the file in it after the folder.
    with write_atomically(out) as partial:
        folder = partial.with_name('viewer')
        with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            output = _Output(writer)
            _add_overview(output, run, orthophoto)
            _copy_bags(output, run, bag, input_bag, topics, progress)
        (folder / f'{folder.name}.mcap').rename(partial)


def satellite_msg(orthophoto, xy_m: np.ndarray) -> OccupancyGrid:
    """The imagery around points (n, 2) in 101 greys: 0 white to 100 black; row 0 is the south."""
    low_m, high_m = xy_m.min(axis=0) - MARGIN_M, xy_m.max(axis=0) + MARGIN_M
    size_m = high_m - low_m
    cell_m = max(SATELLITE_CELL_M, float(size_m.max()) / SATELLITE_MAX_CELLS)
    cols, rows = (math.ceil(length_m / cell_m) for length_m in size_m)
    grid = MapGrid(rows, cols, cell_m, low_m[0] + cell_m / 2, low_m[1] + (rows - 0.5) * cell_m)
    grey = orthophoto(grid).astype(float) @ np.array([0.299, 0.587, 0.114])
    msg = OccupancyGrid()
    msg.header.frame_id = MAP_FRAME
    msg.info.resolution, msg.info.width, msg.info.height = cell_m, cols, rows
    msg.info.origin.position.x, msg.info.origin.position.y = float(low_m[0]), float(low_m[1])
    msg.info.origin.position.z = HEIGHTS_M['satellite']
    msg.info.origin.orientation.w = 1.0
    percent = np.rint(100.0 - grey / 2.55).astype(np.int8)
    msg.data = array('b', percent[::-1].tobytes())
    return msg


def path_msg(xy_m: np.ndarray) -> PathMsg:
    """Points (n, 2) as a path of at most about ``PATH_POINTS``."""
    msg = PathMsg()
    msg.header.frame_id = MAP_FRAME
    for x_m, y_m in xy_m[::max(1, len(xy_m) // PATH_POINTS)].tolist():
        pose = PoseStamped()
        pose.header.frame_id = MAP_FRAME
        pose.pose.position.x, pose.pose.position.y = x_m, y_m
        pose.pose.position.z = HEIGHTS_M['path']
        pose.pose.orientation.w = 1.0
        msg.poses.append(pose)
    return msg


def ellipse_points(pose: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """The outline (k, 2) of the 95 % ellipse of a position; pose (3,), covariance (3, 3)."""
    angle_rad = np.linspace(0.0, 2.0 * math.pi, ELLIPSE_POINTS)
    circle = np.stack((np.cos(angle_rad), np.sin(angle_rad)), axis=-1)
    root = np.linalg.cholesky(covariance[:2, :2])
    return pose[:2] + math.sqrt(chi2.ppf(0.95, 2)) * circle @ root.T


def ellipses_msg(run: RecordedRun, row: int) -> MarkerArray:
    """The 95 % ellipses of one pose and of its prior."""
    stamp_ns = int(run.poses.stamps_ns[row])
    msg = MarkerArray()
    for number, (name, track) in enumerate((('pose', run.poses), ('prior', run.priors))):
        at = int(np.searchsorted(track.stamps_ns, stamp_ns))
        if at == len(track) or track.stamps_ns[at] != stamp_ns:
            continue
        marker = Marker(type=Marker.LINE_STRIP, action=Marker.ADD, ns=name, id=number)
        marker.header.frame_id = MAP_FRAME
        marker.header.stamp = conversions.stamp_msg_from_ns(stamp_ns)
        marker.pose.orientation.w = 1.0
        marker.scale.x = 0.2
        marker.color.r, marker.color.g, marker.color.b = ELLIPSE_COLOURS[name]
        marker.color.a = 1.0
        marker.points = [
            Point(x=x_m, y=y_m, z=HEIGHTS_M['ellipse'])
            for x_m, y_m in ellipse_points(track.poses[at], track.covariances[at]).tolist()]
        msg.markers.append(marker)
    return msg


def transform_msg(odometry) -> TFMessage:
    """odom -> base_link of an odometry message; ValueError if it is not valid."""
    sample = conversions.odometry_sample_from_msg(odometry)
    return TFMessage(transforms=[conversions.transform_msg_from_pose(
        sample.odom_from_base, sample.stamp_ns, odometry.header.frame_id.lstrip('/') or 'odom',
        odometry.child_frame_id.lstrip('/') or 'base_link')])


class _Output:
    """An mcap bag to which topics are added as they come."""

    def __init__(self, writer: Writer):
        self._writer = writer
        self._typestore = typestore_with_geographic_msgs()
        self._installed = get_typestore(Stores.EMPTY)
        self._connections = {}

    def copy(self, bag_ns: int, source, data: bytes) -> None:
        """Write a recorded message with its own definition."""
        if source.topic not in self._connections:
            self._connections[source.topic] = self._writer.add_connection(
                source.topic, source.msgtype, typestore=self._typestore,
                msgdef=source.msgdef.data, rihs01=source.digest,
                offered_qos_profiles=source.ext.offered_qos_profiles)
        self._writer.write(self._connections[source.topic], bag_ns, data)

    def add(self, bag_ns: int, topic: str, message) -> None:
        """Write a message of rclpy."""
        package, _, _ = type(message).__module__.split('.', 2)
        msgtype = f'{package}/msg/{type(message).__name__}'
        if topic not in self._connections:
            register_installed_type(self._installed, msgtype)
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=self._installed)
        # The padding of rclpy is arbitrary. Serialized again it is zero, so that the same run
        # gives the same file.
        read = self._installed.deserialize_cdr(serialize_message(message), msgtype)
        self._writer.write(
            self._connections[topic], bag_ns, self._installed.serialize_cdr(read, msgtype))


def _add_overview(output: _Output, run: RecordedRun, orthophoto) -> None:
    """The satellite image, the paths of the whole drive, and the ellipse of each pose."""
    xy_m = run.poses.poses[:, :2]
    if orthophoto is not None:
        output.add(run.start_ns, '/viewer/satellite', satellite_msg(orthophoto, xy_m))
    fixes_xy_m = np.array([(fix.x_m, fix.y_m) for fix in run.fixes]).reshape(-1, 2)
    for name, points_m in (
            ('refined', xy_m), ('truth', run.truth.poses[:, :2]), ('gnss', fixes_xy_m)):
        if len(points_m):
            output.add(run.start_ns, f'/viewer/path_{name}', path_msg(points_m))
    for row, stamp_ns in enumerate(run.poses.stamps_ns.tolist()):
        output.add(stamp_ns, '/viewer/ellipses', ellipses_msg(run, row))


def _copy_bags(
    output: _Output, run: RecordedRun, bag: Path, input_bag: Path | None, topics: Topics,
    progress: bool,
) -> None:
    """Both bags in the order of time, and odom -> base_link with each odometry message.

    A recording on whose /tf that transform is already gets no second one.
    """
    with Bag(bag) as recording, Bag(input_bag or bag) as played:
        others = played.topics - recording.topics if input_bag else set()
        moving_frames = _moving_frames(played if '/tf' in others else recording)
        streams = [_shifted(0, recording, recording.topics, run.delay_ns),
                   _shifted(1, played, others, 0)]
        total = recording.message_count + sum(
            c.msgcount for c in played.connections if c.topic in others)
        for bag_ns, _, source, connection, data in tqdm(
                heapq.merge(*streams), desc='write', unit='msg', total=total,
                disable=None if progress else True):
            output.copy(bag_ns, connection, data)
            if connection.topic == topics.odometry:
                try:
                    message = transform_msg(source.decode(connection, data))
                except ValueError:  # odometry that is not valid gives no transform
                    continue
                if message.transforms[0].child_frame_id not in moving_frames:
                    output.add(bag_ns, '/tf', message)


def _moving_frames(bag: Bag) -> set[str]:
    """The frames whose transforms are on /tf."""
    found = set()
    for connection, _, data in bag.read_raw({'/tf'}):
        with suppress(BagError):
            found.update(transform.child_frame_id.lstrip('/')
                         for transform in bag.decode(connection, data).transforms)
    return found


def _shifted(rank: int, bag: Bag, topics: set[str], delay_ns: int) -> Iterator[tuple]:
    """Messages with times on the clock of the stamps; rank and number order equal times."""
    shift_ns = delay_ns if abs(delay_ns) > LIVE_DELAY_NS else 0
    for number, (connection, bag_ns, data) in enumerate(bag.read_raw(topics)):
        yield bag_ns - shift_ns, (rank, number), bag, connection, bytes(data)
