"""A recorded run and its input as one mcap file for a viewer without ROS (Lichtblick, Foxglove).

What such a viewer cannot work out is added below /viewer: the satellite image, the paths of the
whole drive, the 95 % ellipses; and odom -> base_link on /tf.  All types are standard ones and
their definitions are in the file, so nothing else is needed; config/viewer_layout.json shows it.
"""

import argparse
from array import array
from collections.abc import Iterator, Sequence
import heapq
import math
from pathlib import Path
import shutil
import sys

from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import OccupancyGrid
from nav_msgs.msg import Path as PathMsg
import numpy as np
from rclpy.serialization import serialize_message
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer, WriterError
from rosbags.typesys import get_typestore, Stores
from tf2_msgs.msg import TFMessage
from tqdm import tqdm
from visualization_msgs.msg import Marker, MarkerArray

from crossview_localizer import report
from crossview_localizer.bags.recorded_run import (
    add_imagery_argument,
    add_run_arguments,
    decoded,
    NODE,
    open_bag,
    raw_messages,
    read_run,
    RecordedRun,
    topics_of,
)
from crossview_localizer.bags.topics import Topics
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs
from crossview_localizer.evaluation import pose_metrics
from crossview_localizer.geometry import MapGrid
from crossview_localizer.record_bag import RecordError, register_installed_type
from crossview_localizer.ros import conversions

MAP_FRAME = 'map'
MARGIN_M = 60.0
SATELLITE_CELL_M = 0.5
SATELLITE_MAX_CELLS = 1500
PATH_POINTS = 4000
ELLIPSE_POINTS = 40
HEIGHTS_M = {'satellite': -0.1, 'path': 0.1, 'ellipse': 0.2}
ELLIPSE_COLOURS = {'pose': (0.0, 0.85, 0.55), 'prior': (0.25, 0.6, 1.0)}


def satellite_msg(orthophoto: report.Orthophoto, xy_m: np.ndarray) -> OccupancyGrid:
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
    """Points (n, 2) as a path, thinned."""
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
    """The outline (k, 2) of a position's 95 % ellipse; pose (3,), covariance (3, 3)."""
    angle_rad = np.linspace(0.0, 2.0 * math.pi, ELLIPSE_POINTS)
    circle = np.stack((np.cos(angle_rad), np.sin(angle_rad)), axis=-1)
    root = np.linalg.cholesky(covariance[:2, :2])
    return pose[:2] + math.sqrt(pose_metrics.CHI2_95[2]) * circle @ root.T


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
    """odom -> base_link of an odometry message."""
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
        """A recorded message with its own definition."""
        if source.topic not in self._connections:
            self._connections[source.topic] = self._writer.add_connection(
                source.topic, source.msgtype, typestore=self._typestore,
                msgdef=source.msgdef.data, rihs01=source.digest,
                offered_qos_profiles=source.ext.offered_qos_profiles)
        self._writer.write(self._connections[source.topic], bag_ns, data)

    def add(self, bag_ns: int, topic: str, message) -> None:
        package, _, _ = type(message).__module__.split('.', 2)
        msgtype = f'{package}/msg/{type(message).__name__}'
        if topic not in self._connections:
            register_installed_type(self._installed, msgtype)
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=self._installed)
        # Its padding is what was in memory; serialized anew it is zero: the same file each time.
        read = self._installed.deserialize_cdr(serialize_message(message), msgtype)
        self._writer.write(
            self._connections[topic], bag_ns, self._installed.serialize_cdr(read, msgtype))


def write_viewer_bag(
    out: Path, bag: Path, input_bag: Path | None = None, map_path: Path | None = None,
    imagery: Sequence[Path] = (), topics: Topics | None = None, node: str = NODE,
    progress: bool = False,
) -> list[str]:
    """Write the bag ``out`` and return notes on what it lacks.

    Raises ValueError or OSError with what was found and expected.
    """
    topics = topics or Topics()
    run = read_run(bag, input_bag, topics=topics, node=node, progress=progress)
    recorded_map = run.diagnostics.values.get('map', {}).get('map_path', '')
    ground, notes = report.background(bag, map_path, imagery, recorded_map, node)
    # The file appears whole or not at all; rosbags writes a folder and names the file after it.
    partial = out.with_name(out.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with Writer(partial, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            _write(_Output(writer), run, ground, bag, input_bag, topics, progress)
        (partial / f'{partial.name}.mcap').rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [*run.notes, *notes]


def _write(
    output: _Output, run: RecordedRun, ground: report.Background, bag: Path,
    input_bag: Path | None, topics: Topics, progress: bool,
) -> None:
    xy_m = run.poses.poses[:, :2]
    if ground.orthophoto is not None:
        output.add(run.start_ns, '/viewer/satellite', satellite_msg(ground.orthophoto, xy_m))
    fixes_xy_m = np.array([(fix.x_m, fix.y_m) for fix in run.fixes]).reshape(-1, 2)
    for name, points_m in (
            ('refined', xy_m), ('truth', run.truth.poses[:, :2]), ('gnss', fixes_xy_m)):
        if len(points_m):
            output.add(run.start_ns, f'/viewer/path_{name}', path_msg(points_m))
    for row, stamp_ns in enumerate(run.poses.stamps_ns.tolist()):
        output.add(stamp_ns, '/viewer/ellipses', ellipses_msg(run, row))
    _copy(output, run, bag, input_bag, topics, progress)


def _copy(
    output: _Output, run: RecordedRun, bag: Path, input_bag: Path | None, topics: Topics,
    progress: bool,
) -> None:
    """Both bags in the order of time, and odom -> base_link with each odometry message."""
    with open_bag(bag) as recording, open_bag(input_bag or bag) as played:
        own = {c.topic for c in recording.connections}
        others = [c for c in played.connections if input_bag and c.topic not in own]
        streams = [_shifted(0, recording, recording.connections, run.delay_ns)]
        if others:
            streams.append(_shifted(1, played, others, 0))
        for bag_ns, _, reader, connection, data in tqdm(
                heapq.merge(*streams), desc='write', unit='msg',
                total=recording.message_count + sum(c.msgcount for c in others),
                disable=None if progress else True):
            output.copy(bag_ns, connection, data)
            if connection.topic == topics.odometry:
                try:
                    message = transform_msg(decoded(reader, connection, data))
                except ValueError:  # such odometry moves nothing
                    continue
                output.add(bag_ns, '/tf', message)


def _shifted(rank: int, reader: AnyReader, connections, delay_ns: int) -> Iterator[tuple]:
    """Messages with times on the clock of the stamps; rank and number settle the order of ties."""
    # A delay of less than a minute is the processing time of a live run.
    shift_ns = delay_ns if abs(delay_ns) > 60_000_000_000 else 0
    for number, (connection, bag_ns, data) in enumerate(
            raw_messages(reader, connections)):
        yield bag_ns - shift_ns, (rank, number), reader, connection, bytes(data)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='viewer_bag', formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog='example:\n  ros2 run crossview_localizer viewer_bag demo/run --input-bag demo/bag '
        '--out demo/replay.mcap')
    add_run_arguments(parser, ('odometry', 'gnss', 'truth'))
    add_imagery_argument(parser)
    parser.add_argument(
        '--out', type=Path, metavar='FILE', help='mcap file to write (default: BAG_viewer.mcap)')
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    bag = arguments.bag
    out = arguments.out or bag.with_name(bag.resolve().name + '_viewer.mcap')
    try:
        notes = write_viewer_bag(
            out, bag, arguments.input_bag, arguments.map, arguments.imagery, topics_of(arguments),
            arguments.node.rstrip('/'), progress=True)
    except (RecordError, WriterError, ValueError, OSError) as error:
        print(f'viewer_bag: error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('viewer_bag: interrupted', file=sys.stderr)
        return 130
    for note in notes:
        print(f'viewer_bag: {note}')
    print(f'viewer_bag: {out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
