"""The scene for RViz in standard messages: ground, heat map, ellipses, alternatives, paths.

All coordinates are in ``map``.  The colours are those of the displays in config/robotcar.rviz.
"""

from array import array
from collections.abc import Iterator
import math

import cv2
from geometry_msgs.msg import Point, PoseStamped
from nav_msgs.msg import OccupancyGrid, Path
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray, UVCoordinate

from crossview_localizer.datatypes import PoseEstimate
from crossview_localizer.geometry import MapGrid
from crossview_localizer.ros import conversions

REFINED_RGB = (46, 194, 126)
PRIOR_RGB = (255, 163, 72)
MATCH_RGB = (87, 208, 255)

TILE_PX = 512
GROUND_Z_M = -0.3        # below heat map and ellipses, which lie at 0
# RViz draws transparent objects, textures included, in the order of the distances of their poses
# from the camera; their points do not matter. A pose far below keeps the ground under the heat
# map.
GROUND_POSE_Z_M = -5000.0
# The coarse ground lies below the ground, and has so many squares on its longer side.
COARSE_GROUND_Z_M, COARSE_GROUND_SQUARES = -1.5, 64

ELLIPSE_SIGMAS = math.sqrt(-2.0 * math.log(0.05))   # 95 % of two Gaussian coordinates
ELLIPSE_POINTS = 48
FILLED_M = 20.0
DOT_M = 0.8

# The largest value that RViz's costmap colours draw in red: 99 is cyan and 100 purple.
HEATMAP_TOP = 98
HEATMAP_SHOWN_FROM = 14  # percent of the peak, as at 2 sigma of a Gaussian; less stays clear
ALTERNATIVE_PERCENT = 20
ALTERNATIVE_APART_M = 5.0
MAX_ALTERNATIVES = 8


def ground_tiles(
    rgb: np.ndarray, grid: MapGrid, frame_id: str, first_id: int = 0,
) -> Iterator[MarkerArray]:
    """The orthophoto, rgb (rows, cols, 3) uint8, as textured squares, one in each message.

    Neighbours share a row or column of pixels, whose centres are their common edge.  Markers are
    numbered from ``first_id``: an RViz that has a marker of that number stacks the textures.
    """
    for number, (row, col) in enumerate((
            (row, col) for row in range(0, grid.rows - 1, TILE_PX - 1)
            for col in range(0, grid.cols - 1, TILE_PX - 1)), first_id):
        pixels = rgb[row:row + TILE_PX, col:col + TILE_PX]
        tile = grid.crop(row, col, *pixels.shape[:2])
        marker = _marker(Marker.TRIANGLE_LIST, 'ground', number, (255, 255, 255), 1.0, frame_id)
        marker.pose.position.z = GROUND_POSE_Z_M
        marker.scale.x = marker.scale.y = marker.scale.z = 1.0
        # Each tile has its own name: RViz stacks textures of the same name.
        marker.texture_resource = f'embedded://ground_{number}'
        marker.texture.format = 'jpg'
        bgr = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        marker.texture.data = array('B', jpeg.tobytes())

        def corner(south: bool, east: bool, tile=tile):
            x_m, y_m = tile.xy_from_row_col(
                tile.rows - 1 if south else 0, tile.cols - 1 if east else 0)
            edge_u, edge_v = 0.5 / tile.cols, 0.5 / tile.rows
            return (
                Point(x=float(x_m), y=float(y_m), z=GROUND_Z_M - GROUND_POSE_Z_M),
                # v runs down the picture.
                UVCoordinate(u=1 - edge_u if east else edge_u, v=1 - edge_v if south else edge_v))

        north_west, north_east = corner(False, False), corner(False, True)
        south_west, south_east = corner(True, False), corner(True, True)
        # Counter-clockwise seen from above, so that they are lit.
        for point, uv in (north_west, south_west, south_east, north_west, south_east, north_east):
            marker.points.append(point)
            marker.uv_coordinates.append(uv)
        yield MarkerArray(markers=[marker])


def coarse_ground(rgb: np.ndarray, grid: MapGrid, frame_id: str) -> MarkerArray:
    """The orthophoto, rgb (rows, cols, 3) uint8, as one small marker of coloured triangles.

    It has no texture: an RViz that gets it again draws the same and keeps nothing more.
    """
    squares = COARSE_GROUND_SQUARES / max(grid.rows, grid.cols)
    rows, cols = (max(2, round(side * squares) + 1) for side in (grid.rows, grid.cols))
    colours = cv2.resize(np.ascontiguousarray(rgb), (cols, rows), interpolation=cv2.INTER_AREA)
    west_m, south_m, east_m, north_m = grid.bounds_m
    x_m, y_m = np.linspace(west_m, east_m, cols), np.linspace(north_m, south_m, rows)
    corners = [[(Point(x=x, y=y, z=COARSE_GROUND_Z_M), ColorRGBA(r=red, g=green, b=blue, a=1.0))
                for x, (red, green, blue) in zip(x_m.tolist(), line)]
               for y, line in zip(y_m.tolist(), (colours / 255.0).tolist())]
    marker = _marker(Marker.TRIANGLE_LIST, 'coarse ground', 0, (255, 255, 255), 1.0, frame_id)
    marker.scale.x = marker.scale.y = marker.scale.z = 1.0
    for north, south in zip(corners, corners[1:]):
        for west in range(cols - 1):
            for point, colour in (north[west], south[west], south[west + 1],
                                  north[west], south[west + 1], north[west + 1]):
                marker.points.append(point)
                marker.colors.append(colour)
    return MarkerArray(markers=[marker])


def costmap_from_heatmap(msg: OccupancyGrid) -> OccupancyGrid:
    """The node's heat map in the values that RViz's costmap colours show from blue to red.

    Unknown and unlikely cells are clear, as are all cells of a heat map without any value.
    """
    percent = np.asarray(msg.data, dtype=np.float64)
    shown = np.where(
        percent >= HEATMAP_SHOWN_FROM, np.rint(percent * HEATMAP_TOP / 100.0), 0.0)
    return OccupancyGrid(
        header=msg.header, info=msg.info, data=array('b', shown.astype(np.int8).tobytes()))


def percent_from_heatmap(msg: OccupancyGrid) -> tuple[np.ndarray, MapGrid]:
    """Percent of the peak (rows, cols), row 0 north, -1 where unknown, with its grid."""
    info = msg.info
    percent = np.asarray(msg.data, np.int8).reshape(info.height, info.width)[::-1]
    west_m, south_m = info.origin.position.x, info.origin.position.y
    return percent, MapGrid(
        info.height, info.width, info.resolution, west_m + info.resolution / 2,
        south_m + (info.height - 0.5) * info.resolution)


def find_peaks(msg: OccupancyGrid) -> list[tuple[float, float, int]]:
    """(x_m, y_m, percent) of the heat map's peaks, highest first, ALTERNATIVE_APART_M apart."""
    percent = np.asarray(msg.data, np.int8).reshape(msg.info.height, msg.info.width)
    candidates = (percent == cv2.dilate(percent.astype(np.int16), np.ones((3, 3), np.uint8))) & (
        percent >= ALTERNATIVE_PERCENT)
    rows, cols = np.nonzero(candidates)
    found = []
    for at in np.argsort(-percent[rows, cols].astype(int), kind='stable'):
        x_m = msg.info.origin.position.x + (cols[at] + 0.5) * msg.info.resolution
        y_m = msg.info.origin.position.y + (rows[at] + 0.5) * msg.info.resolution
        if all(math.hypot(x_m - x, y_m - y) >= ALTERNATIVE_APART_M for x, y, _ in found):
            found.append((x_m, y_m, int(percent[rows[at], cols[at]])))
        if len(found) == MAX_ALTERNATIVES:
            break
    return found


def alternative_markers(msg: OccupancyGrid) -> MarkerArray:
    """A ring at each peak of the heat map, with its height relative to the highest."""
    frame_id = msg.header.frame_id
    markers = [Marker(action=Marker.DELETEALL)]
    for number, (x_m, y_m, percent) in enumerate(find_peaks(msg)):
        ring = _marker(
            Marker.LINE_STRIP, 'alternatives', number, MATCH_RGB, 0.2 + 0.008 * percent, frame_id)
        ring.scale.x = 0.3
        ring.points = _ellipse_points(np.array([x_m, y_m]), np.eye(2) * 1.5**2)
        label = _marker(
            Marker.TEXT_VIEW_FACING, 'percent', number, (255, 255, 255), 1.0, frame_id)
        label.pose.position.x, label.pose.position.y, label.pose.position.z = x_m, y_m + 3.0, 1.0
        label.scale.z = 2.0
        label.text = f'{percent} %'
        markers += [ring, label]
    return MarkerArray(markers=markers)


def ellipse_markers(name: str, estimate: PoseEstimate, rgb, frame_id: str) -> MarkerArray:
    """The 95 % ellipse of a position: its outline, faintly filled, with a dot at the mean.

    The dot is a quarter of the ellipse's width, and at most DOT_M: it never hides the ellipse.
    """
    mean = np.array([estimate.pose.x_m, estimate.pose.y_m])
    covariance = estimate.covariance[:2, :2]
    variances, axes = np.linalg.eigh(covariance)
    long_m, short_m = 2.0 * ELLIPSE_SIGMAS * np.sqrt(variances.clip(1e-6))[::-1]

    # A match on a straight road is uncertain along it: such a long ellipse is filled only faintly.
    alpha = 0.2 * min(1.0, FILLED_M / long_m)
    disc = _marker(Marker.CYLINDER, name, 0, rgb, alpha, frame_id)
    disc.pose.position.x, disc.pose.position.y = mean.tolist()
    disc.pose.orientation = conversions.quaternion_msg_from_yaw(
        math.atan2(axes[1, 1], axes[0, 1]))
    disc.scale.x, disc.scale.y, disc.scale.z = float(long_m), float(short_m), 0.05

    outline = _marker(Marker.LINE_STRIP, name, 1, rgb, 1.0, frame_id)
    outline.scale.x = 0.15
    outline.points = _ellipse_points(mean, covariance * ELLIPSE_SIGMAS**2)

    dot = _marker(Marker.SPHERE, name, 2, rgb, 1.0, frame_id)
    dot.pose.position.x, dot.pose.position.y = mean.tolist()
    dot.scale.x = dot.scale.y = dot.scale.z = min(DOT_M, float(short_m) / 4.0)
    return MarkerArray(markers=[disc, outline, dot])


def removal(markers: MarkerArray) -> MarkerArray:
    """Remove these markers one by one: not every RViz limits DELETEALL to one namespace."""
    return MarkerArray(markers=[
        Marker(header=marker.header, ns=marker.ns, id=marker.id, action=Marker.DELETE)
        for marker in markers.markers])


def path_msg(stamps_ns: list[int], xy_m: list[tuple[float, float]], frame_id: str) -> Path:
    """Convert points with their stamps to a message."""
    msg = Path()
    msg.header.frame_id = frame_id
    if stamps_ns:
        msg.header.stamp = conversions.stamp_msg_from_ns(stamps_ns[-1])
    for stamp_ns, (x_m, y_m) in zip(stamps_ns, xy_m):
        pose = PoseStamped()
        pose.header.frame_id = frame_id
        pose.header.stamp = conversions.stamp_msg_from_ns(stamp_ns)
        pose.pose.position.x, pose.pose.position.y = x_m, y_m
        msg.poses.append(pose)
    return msg


def image_msg(rgb: np.ndarray, stamp_ns: int, frame_id: str) -> Image:
    """Convert rgb (H, W, 3) uint8 to a message."""
    height, width = rgb.shape[:2]
    msg = Image(
        height=height, width=width, encoding='rgb8', step=3 * width,
        data=array('B', np.ascontiguousarray(rgb).tobytes()))
    msg.header.frame_id = frame_id
    msg.header.stamp = conversions.stamp_msg_from_ns(stamp_ns)
    return msg


def _marker(kind: int, name: str, number: int, rgb, alpha: float, frame_id: str) -> Marker:
    # Stamp 0 is "now" to RViz: no marker needs a transform of the past.
    marker = Marker(ns=name, id=number, type=kind, action=Marker.ADD)
    marker.header.frame_id = frame_id
    marker.pose.orientation.w = 1.0
    red, green, blue = (value / 255 for value in rgb)
    marker.color = ColorRGBA(r=red, g=green, b=blue, a=alpha)
    return marker


def _ellipse_points(mean_m: np.ndarray, matrix_m2: np.ndarray) -> list[Point]:
    """The closed curve (p - mean)' matrix^-1 (p - mean) = 1, just above the ground."""
    angle_rad = np.linspace(0.0, 2.0 * np.pi, ELLIPSE_POINTS + 1)
    variances, axes = np.linalg.eigh(matrix_m2)
    circle = np.stack((np.cos(angle_rad), np.sin(angle_rad)))
    curve = mean_m[:, None] + axes @ (np.sqrt(variances.clip(1e-6))[:, None] * circle)
    return [Point(x=float(x), y=float(y), z=0.1) for x, y in curve.T]
