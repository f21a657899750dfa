"""A closed-form world for trials of the node: a drive in a circle on a textured plane.

The sensors follow from the plane and the pose alone, so that the truth is exact and a frame takes
milliseconds. Map and weights are small, but real files that the node loads. This simulation is as
simple as can be; it tells nothing about accuracy on a road.
"""

from array import array
from dataclasses import dataclass
import math
from pathlib import Path
import tempfile

import cv2
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
import numpy as np
import rasterio
from rasterio.transform import Affine
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from tf2_msgs.msg import TFMessage

from crossview_localizer import build_map
from crossview_localizer.config import CameraConfig
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import ModelConfig
from crossview_localizer.ros import conversions

FRAME = LocalFrame(51.76, -1.26)
START_NS = 1_400_000_000_000_000_000
RADIUS_M = 50.0
SPEED_MPS = 8.0
LEVER_ARM_M = (-1.7, 0.1)
GNSS_BIAS_M = np.array([0.9, -0.6])
GNSS_SIGMA_M = 0.5
PX_M = 0.25
HALF_WIDTH_M = 110.0
# A network whose descriptor is nearly all grey pixels: it matches without having been trained.
MODEL = ModelConfig(
    channels=8, heads=4, hidden=4, px_m=0.5, view_px=64, margin_px=16, temperature=0.06,
    detail_weight=0.98)
SPACING_M = 4.0


def true_pose(time_s: float) -> Pose2D:
    """Counter-clockwise about the map's origin."""
    angle_rad = SPEED_MPS / RADIUS_M * time_s
    return Pose2D(RADIUS_M * math.sin(angle_rad), -RADIUS_M * math.cos(angle_rad), angle_rad)


def stamp_ns_at(time_s: float) -> int:
    return START_NS + round(time_s * 1e9)


def time_s_of(stamp_ns: int) -> float:
    return (stamp_ns - START_NS) * 1e-9


def texture(seed: int = 0) -> np.ndarray:
    """Smooth random colours at three scales, rgb (S, S, 3) uint8; row 0 is north."""
    generator = np.random.default_rng(seed)
    size_px = round(2 * HALF_WIDTH_M / PX_M)
    total = np.zeros((size_px, size_px, 3), np.float32)
    for cell_m, weight in ((16.0, 0.3), (5.0, 0.5), (1.5, 0.4)):
        count = round(2 * HALF_WIDTH_M / cell_m)
        noise = generator.standard_normal((count, count, 3)).astype(np.float32)
        total += weight * cv2.resize(noise, (size_px, size_px), interpolation=cv2.INTER_CUBIC)
    return (127.0 + 60.0 * total).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Files:
    """What a node is started with."""

    orthophoto: Path
    weights: Path
    map: Path


def make_files(folder: Path, seed: int = 0) -> Files:
    """Orthophoto, weights and the map that build_map makes of them."""
    files = Files(folder / 'ortho.tif', folder / 'weights.safetensors', folder / 'flat.map.zip')
    pixels = texture()
    with rasterio.open(
        files.orthophoto, 'w', driver='GTiff', height=pixels.shape[0], width=pixels.shape[1],
        count=3, dtype='uint8', crs=rasterio.CRS.from_string(FRAME.proj4),
        transform=Affine(PX_M, 0, -HALF_WIDTH_M, 0, -PX_M, HALF_WIDTH_M),
    ) as file:
        file.write(np.moveaxis(pixels, 2, 0))
    save_network(random_network(MODEL, seed), files.weights, {'seed': seed})
    arguments = [
        files.orthophoto, '--weights', files.weights, '--area', '--out', files.map, '--spacing-m',
        SPACING_M, '--origin', FRAME.latitude_deg, FRAME.longitude_deg, '--threads', 1]
    if build_map.main([str(value) for value in arguments]) != 0:
        raise RuntimeError('the map could not be built')
    return files


class FlatCamera:
    """Renders what a camera on the vehicle sees of the plane."""

    def __init__(self, width_px: int = 320, height_px: int = 240):
        self.width_px, self.height_px = width_px, height_px
        self._focal_px = 0.6 * width_px
        self._pixels = texture()
        self._noise = np.random.default_rng(1)
        # Ground point of each pixel below the horizon (row cy), in base_link.
        u_px, v_px = np.meshgrid(np.arange(width_px), np.arange(height_px))
        below = (v_px - self._centre[1]).astype(float)
        self._ground = below > 0.02 * height_px
        depth_m = CameraConfig().height_m * self._focal_px / np.where(self._ground, below, 1.0)
        self._forward_m = depth_m
        self._left_m = -depth_m * (u_px - self._centre[0]) / self._focal_px

    @property
    def _centre(self) -> tuple[float, float]:
        return (self.width_px - 1) / 2.0, (self.height_px - 1) / 2.0

    def picture(self, pose: Pose2D) -> np.ndarray:
        """rgb (H, W, 3) uint8, with a little noise, so that no two are the same."""
        points_m = pose.transform(np.stack((self._forward_m, self._left_m), axis=-1))
        u_px = (points_m[..., 0] + HALF_WIDTH_M) / PX_M - 0.5
        v_px = (HALF_WIDTH_M - points_m[..., 1]) / PX_M - 0.5
        rgb = cv2.remap(
            self._pixels, u_px.astype(np.float32), v_px.astype(np.float32), cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_CONSTANT, borderValue=(127, 127, 127))
        rgb[~self._ground] = 200
        rgb[::4, ::4, 0] ^= self._noise.integers(0, 4, rgb[::4, ::4, 0].shape, np.uint8)
        return rgb

    def info_msg(self) -> CameraInfo:
        cx_px, cy_px = self._centre
        return CameraInfo(
            width=self.width_px, height=self.height_px, distortion_model='plumb_bob',
            k=[self._focal_px, 0.0, cx_px, 0.0, self._focal_px, cy_px, 0.0, 0.0, 1.0],
            d=[0.0] * 5)

    def image_msg(self, time_s: float) -> Image:
        return image_msg(self.picture(true_pose(time_s)), time_s)


def image_msg(pixels: np.ndarray, time_s: float, encoding: str = 'rgb8') -> Image:
    """Pixels (H, W) or (H, W, C) uint8 as a message."""
    msg = Image(
        height=pixels.shape[0], width=pixels.shape[1], encoding=encoding,
        step=pixels[0].nbytes, data=array('B', pixels.tobytes()))
    msg.header.frame_id = 'camera_optical'
    msg.header.stamp = conversions.stamp_msg_from_ns(stamp_ns_at(time_s))
    return msg


def compressed_msg(msg: Image, extension: str) -> CompressedImage:
    """An rgb8 image as .jpg or .png."""
    pixels = np.array(msg.data, np.uint8).reshape(msg.height, msg.width, 3)
    data = cv2.imencode(extension, pixels[..., ::-1])[1]
    return CompressedImage(
        header=msg.header, format=extension[1:], data=array('B', data.tobytes()))


def odometry_msg(time_s: float) -> Odometry:
    """Exact odometry, in a frame of its own."""
    pose = Pose2D(5.0, -3.0, 0.5) @ true_pose(time_s)
    msg = Odometry(child_frame_id='base_link')
    msg.header.frame_id = 'odom'
    msg.header.stamp = conversions.stamp_msg_from_ns(stamp_ns_at(time_s))
    msg.pose.pose.position.x, msg.pose.pose.position.y = pose.x_m, pose.y_m
    msg.pose.pose.orientation = conversions.quaternion_msg_from_yaw(pose.yaw_rad)
    msg.twist.twist.linear.x = SPEED_MPS
    return msg


def gnss_msg(time_s: float, away_m: tuple[float, float] = (0.0, 0.0)) -> NavSatFix:
    """A fix with a constant bias and white noise of the instant; ``away_m`` is added."""
    noise_m = GNSS_SIGMA_M * np.random.default_rng(stamp_ns_at(time_s)).standard_normal(2)
    antenna = true_pose(time_s) @ Pose2D(*LEVER_ARM_M, 0.0)
    x_m, y_m = np.array([antenna.x_m, antenna.y_m]) + GNSS_BIAS_M + noise_m + away_m
    msg = NavSatFix(position_covariance_type=2)
    msg.status.status = 0
    msg.header.frame_id = 'gnss_antenna'
    msg.header.stamp = conversions.stamp_msg_from_ns(stamp_ns_at(time_s))
    msg.latitude, msg.longitude = FRAME.latlon_from_xy(x_m, y_m)
    msg.position_covariance = np.diag([GNSS_SIGMA_M**2, GNSS_SIGMA_M**2, 4.0]).ravel()
    return msg


def static_transforms() -> TFMessage:
    def transform(child, x_m, y_m, rotation):
        msg = TransformStamped(child_frame_id=child)
        msg.header.frame_id = 'base_link'
        msg.transform.translation.x, msg.transform.translation.y = x_m, y_m
        q = msg.transform.rotation
        q.x, q.y, q.z, q.w = rotation
        return msg

    return TFMessage(transforms=[
        transform('gnss_antenna', *LEVER_ARM_M, (0.0, 0.0, 0.0, 1.0)),
        transform('camera_optical', 0.0, 0.0, (-0.5, 0.5, -0.5, 0.5)),
    ])


def temporary_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix='crossview_')
