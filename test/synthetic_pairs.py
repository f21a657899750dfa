"""Pairs painted from a known plane, in the format of each folder of real pairs."""

import json
import math
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.camera.views import birds_eye_view
from crossview_localizer.geometry import Pose2D
from training.data.real_pairs import View

PLANE_PX_M, PLANE_HALF_M = 0.2, 100.0
HEIGHT_M = 2.8


class Plane:
    """Flat ground with random patches of 2 m; x to the east, y to the north, metres."""

    def __init__(self, seed: int):
        side = int(2 * PLANE_HALF_M / PLANE_PX_M)
        patches = np.random.default_rng(seed).integers(0, 255, (side // 10, side // 10, 3))
        picture = cv2.resize(
            patches.astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        self.picture = cv2.GaussianBlur(picture, (0, 0), 2.0)

    def colour(self, x_m, y_m) -> np.ndarray:
        """RGB (..., 3) at places; black beyond the plane."""
        col = (x_m + PLANE_HALF_M) / PLANE_PX_M - 0.5
        row = (PLANE_HALF_M - y_m) / PLANE_PX_M - 0.5
        return cv2.remap(self.picture, np.float32(col), np.float32(row), cv2.INTER_LINEAR)

    def overhead(self, side_px: int, px_m: float, x_m=0.0, y_m=0.0, up_deg=0.0) -> np.ndarray:
        """A tile about a place, its upper edge to a compass direction."""
        across = (np.arange(side_px) - (side_px - 1) / 2) * px_m
        right_m, up_m = np.meshgrid(across, -across)
        up = math.radians(up_deg)
        return self.colour(x_m + right_m * math.cos(up) + up_m * math.sin(up),
                           y_m - right_m * math.sin(up) + up_m * math.cos(up))

    def panorama(self, heading_deg, down_deg, x_m=0.0, y_m=0.0) -> np.ndarray:
        """What is seen along compass headings (W,) and downward angles (H,); above, grey sky."""
        down = np.radians(down_deg)[:, None]
        heading = np.radians(heading_deg)[None, :]
        distance_m = np.where(down > 0.02, HEIGHT_M / np.tan(np.maximum(down, 0.02)), 1e3)
        rgb = self.colour(x_m + distance_m * np.sin(heading), y_m + distance_m * np.cos(heading))
        rgb[np.broadcast_to(down <= 0.02, rgb.shape[:2])] = 180
        return rgb

    def pinhole(self, camera_from_world, place_m, intrinsics, width_px, height_px) -> np.ndarray:
        """What a camera sees; ``camera_from_world`` (3, 3), ``intrinsics`` fx, fy, cx, cy."""
        fx, fy, cx, cy = intrinsics
        u, v = np.meshgrid(np.arange(width_px), np.arange(height_px))
        rays = np.stack(((u - cx) / fx, (v - cy) / fy, np.ones(u.shape)), -1) @ camera_from_world
        down = -rays[..., 2]
        scale = place_m[2] / np.maximum(down, 1e-3)
        rgb = self.colour(place_m[0] + scale * rays[..., 0], place_m[1] + scale * rays[..., 1])
        rgb[down <= 0.02] = 180
        return rgb


def save(path: Path, rgb: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rgb[..., ::-1])


def degrees(count: int, step_deg: float, middle: float) -> np.ndarray:
    return (np.arange(count) - middle) * step_deg


def resemblance(view: View, truth: Pose2D) -> float:
    """Correlation of the flat-ground view with the overhead picture about a pose, within 12 m."""
    side, px_m = 97, 0.25
    ground = birds_eye_view(view.image.rgb, view.image.camera, truth.yaw_rad, side, px_m)
    across = (np.arange(side) - (side - 1) / 2) * px_m
    x_m, y_m = np.meshgrid(truth.x_m + across, truth.y_m - across)
    height, width = view.overhead.rgb.shape[:2]
    col = np.rint(x_m / view.overhead.px_m + (width - 1) / 2).astype(int)
    row = np.rint((height - 1) / 2 - y_m / view.overhead.px_m).astype(int)
    inside = (col >= 0) & (col < width) & (row >= 0) & (row < height)
    used = inside & (ground[..., 3] > 0) & (np.hypot(*np.meshgrid(across, across)) < 12.0)
    assert used.sum() > 300
    seen = view.overhead.rgb[row.clip(0, height - 1), col.clip(0, width - 1)]
    return float(np.corrcoef(ground[used][:, :3].ravel(), seen[used].ravel())[0, 1])


def write_cvact(folder: Path, plane: Plane, name: str = 'a', heading_deg: float = 0.0,
                x_m: float = 0.0, y_m: float = 0.0) -> None:
    """A native and an aligned pair, the camera that far from the middle of both tiles.

    The middle of its panorama looks to ``heading_deg``.
    """
    for part, width, side_px, px_m in (('cvact_native', 1664, 1200, 0.0609),
                                       ('cvact_256', 512, 256, 0.0609 * 1200 / 256 * 206 / 256)):
        save(folder / part / f'aerial/{name}.png', plane.overhead(side_px, px_m))
        step_deg = 360.0 / width
        save(folder / part / f'ground/{name}.png', plane.panorama(
            heading_deg + degrees(width, step_deg, (width - 1) / 2),
            degrees(width // 2, step_deg, (width // 2 - 1) / 2), x_m, y_m))


def write_cvusa(folder: Path, plane: Plane) -> None:
    """A strip with its tile, and the crops that are made of both."""
    step_deg = 360.0 / 1232
    heading, down = degrees(1232, step_deg, 615.5), degrees(224, step_deg, 132.0)
    strip, tile = plane.panorama(heading, down), plane.overhead(750, 0.23)
    save(folder / 'cvusa_native/ground/a.png', strip)
    save(folder / 'cvusa_native/aerial/a.png', tile)
    save(folder / 'cvusa_crop256/ground/a.png', cv2.resize(strip[:, :308], (256, 256)))
    save(folder / 'cvusa_crop256/aerial/a.png', cv2.resize(tile[264:486, 264:486], (256, 256)))


def write_dayton(folder: Path, plane: Plane) -> None:
    """Three qualities of pose; the camera stands below the tile's centre."""
    lines = ['name,pano_id,heading_deg_cw,pitch_down_deg,cam_px_col,cam_px_row,'
             'ground_deg_per_px,pose_quality,source']
    for name, heading_deg, row, quality in (
            ('e', 64.0, '200.5', 'exact'), ('f', -106.0, '170.0', 'approx'),
            ('g', 10.0, '', 'unknown_range')):
        ahead_m = (float(row or 180.0) - 127.5) * 0.2295
        heading = math.radians(heading_deg)
        tile = plane.overhead(
            256, 0.2295, ahead_m * math.sin(heading), ahead_m * math.cos(heading), heading_deg)
        if quality == 'approx':
            tile[:40, :30] = 0
        save(folder / f'dayton/aerial/{name}.png', tile)
        save(folder / f'dayton/ground/{name}.png', plane.panorama(
            heading_deg + degrees(256, 0.45, 127.5), 8.0 + degrees(256, 0.45, 127.5)))
        lines.append(f'{name},p{name},{heading_deg},8.0,127.5,{row},0.45,{quality},me')
    (folder / 'dayton/poses.csv').write_text('\n'.join(lines) + '\n')


def write_london(folder: Path, plane: Plane) -> None:
    save(folder / 'london/aerial/a.png', plane.overhead(256, 0.5))
    save(folder / 'london/ground/a.png', plane.panorama(
        197.7 + degrees(512, 360 / 512, 255.5), degrees(256, 360 / 512, 127.5)))
    (folder / 'london/poses.csv').write_text(
        'name,lat,lon,heading_deg_cw_of_pano_centre\na,51.5,-0.1,197.7\n')


def write_nuscenes(folder: Path, plane: Plane) -> None:
    """A front and a right-hand camera of a vehicle that moved 0.5 m north since the LIDAR."""
    folder = folder / 'nuscenes_scene1'
    save(folder / 'aerial/sat_map_origin_0.png', plane.overhead(500, 0.2985))
    yaw = math.radians(-110.2)
    ego = [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]
    tables = {
        'sample_data': [{'token': 'l', 'ego_pose_token': 'l', 'calibrated_sensor_token': 'l',
                         'filename': 'samples/LIDAR_TOP/n__LIDAR_TOP__1.pcd.bin'}],
        'ego_pose': [{'token': 'l', 'translation': [400.0, 1200.0, 0.0], 'rotation': ego}],
        'calibrated_sensor': [{'token': 'l', 'translation': [0.9, 0.0, 1.8], 'rotation': ego,
                               'camera_intrinsic': []}]}
    level = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    for name, turn_deg, (x_m, y_m) in (('CAM_FRONT', 0.0, (1.7, 0.1)),
                                       ('CAM_RIGHT', -90.0, (1.0, -0.5))):
        turn = math.radians(turn_deg)
        vehicle_from_camera = about_z(turn) @ level
        world_from_vehicle = about_z(yaw)
        place = world_from_vehicle @ (x_m, y_m, 1.5) + (0.0, 0.5, 0.0)
        save(folder / f'cameras/n__{name}__2.jpg', plane.pinhole(
            (world_from_vehicle @ vehicle_from_camera).T, place,
            (400.0, 400.0, 319.5, 199.5), 640, 400))
        half = turn / 2   # the quaternion of a level camera ahead, turned to the left
        w, z = math.cos(half), math.sin(half)
        tables['sample_data'].append({
            'token': name, 'ego_pose_token': name, 'calibrated_sensor_token': name,
            'filename': f'samples/{name}/n__{name}__2.jpg'})
        tables['ego_pose'].append(
            {'token': name, 'translation': [400.0, 1200.5, 0.0], 'rotation': ego})
        tables['calibrated_sensor'].append({
            'token': name, 'translation': [x_m, y_m, 1.5],
            'rotation': [(w + z) / 2, (-w - z) / 2, (w - z) / 2, (z - w) / 2],
            'camera_intrinsic': [[400.0, 0, 319.5], [0, 400.0, 199.5], [0, 0, 1]]})
    (folder / 'tables').mkdir()
    for name, rows in tables.items():
        (folder / f'tables/{name}.json').write_text(json.dumps(rows))


def write_neutral(folder: Path, plane: Plane) -> None:
    """A camera 1.3 m high, 3 degrees nose down, 2 degrees to the right; tile turned by 30."""
    heading, pitch, roll = (math.radians(x) for x in (75.0, 3.0, 2.0))
    ahead = np.array([math.sin(heading) * math.cos(pitch), math.cos(heading) * math.cos(pitch),
                      -math.sin(pitch)])
    level_right = np.array([math.cos(heading), -math.sin(heading), 0.0])
    level_down = np.cross(ahead, level_right)
    right = math.cos(roll) * level_right + math.sin(roll) * level_down
    camera_from_world = np.stack((right, np.cross(ahead, right), ahead))
    save(folder / 'own/front.png', plane.pinhole(
        camera_from_world, (0.0, 0.0, 1.3), (500.0, 520.0, 330.0, 190.0), 640, 400))
    # The tile's centre lies 10 px left of the camera and 20 px below it.
    up, px_m = math.radians(30.0), 0.3
    x_m = (-10 * math.cos(up) - 20 * math.sin(up)) * px_m
    y_m = (10 * math.sin(up) - 20 * math.cos(up)) * px_m
    save(folder / 'own/tile.png', plane.overhead(301, px_m, x_m, y_m, 30.0))
    (folder / 'own/views.csv').write_text(
        'set,name,image,fx_px,fy_px,cx_px,cy_px,height_m,pitch_down_deg,roll_right_deg,'
        'overhead,px_m,up_deg,col_px,row_px,heading_deg,accuracy_m,prior_m\n'
        'mine,a,front.png,500,520,330,190,1.3,3,2,tile.png,0.3,30,160,130,75,0.2,8\n')


def about_z(angle_rad: float) -> np.ndarray:
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
