"""A tiny drive in RobotCar's raw format, computed on the ellipsoid without the package."""

from dataclasses import dataclass, field
from itertools import pairwise
import math
from pathlib import Path

import cv2
import numpy as np
from pyproj import Transformer

WIDTH_PX, HEIGHT_PX = 64, 48
FX_PX, CX_PX, CY_PX = 48.0, 32.2, 24.2
DISTORTION_K1 = -0.12
INS_XYZRPY = (-1.7132, 0.1181, 1.1948, -0.0125, 0.0400, 0.0050)
START_US = 1_439_804_538_000_000
IMAGE_PERIOD_US = 250_000
N_IMAGES = 10
ORIGIN = (51.7606, -1.2610, 110.0)
SPEED_MPS, TURN_RADPS = 8.0, 0.3

ECEF_FROM_LLH = Transformer.from_crs('EPSG:4979', 'EPSG:4978', always_xy=True)
UTM_FROM_LL = Transformer.from_crs('EPSG:4326', 'EPSG:32630', always_xy=True)

RTK_HEADER = (
    'timestamp,latitude,longitude,altitude,northing,easting,down,utm_zone,velocity_north,'
    'velocity_east,velocity_down,roll,pitch,yaw'
)
GPS_HEADER = (
    'timestamp,num_satellites,latitude,longitude,altitude,latitude_sigma,longitude_sigma,'
    'altitude_sigma,northing,easting,down,utm_zone'
)
VO_HEADER = 'source_timestamp,destination_timestamp,x,y,z,roll,pitch,yaw'


def rotation(roll, pitch, yaw):
    """Rz(yaw) Ry(pitch) Rx(roll), written out."""
    cr, sr, cp, sp = math.cos(roll), math.sin(roll), math.cos(pitch), math.sin(pitch)
    cy, sy = math.cos(yaw), math.sin(yaw)
    rx = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    ry = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    rz = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return rz @ ry @ rx


def rpy(matrix):
    return (
        math.atan2(matrix[2, 1], matrix[2, 2]),
        -math.asin(matrix[2, 0]),
        math.atan2(matrix[1, 0], matrix[0, 0]),
    )


def pose(matrix, position):
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = matrix, position
    return transform


def vehicle_pose(t_s):
    """ned_from_vehicle at ORIGIN: an arc to the right, rolling and pitching, on a slope."""
    heading = 5.9 + TURN_RADPS * t_s
    radius_m = SPEED_MPS / TURN_RADPS
    north = radius_m * (math.sin(heading) - math.sin(5.9))
    east = -radius_m * (math.cos(heading) - math.cos(5.9))
    attitude = rotation(0.06 + 0.02 * math.sin(2 * t_s), 0.03 * math.cos(t_s), heading)
    return pose(attitude, (north, east, -0.2 * t_s))


VEHICLE_FROM_INS = pose(rotation(*INS_XYZRPY[3:]), INS_XYZRPY[:3])


def ecef_from_ned():
    latitude, longitude = map(math.radians, ORIGIN[:2])
    north = (
        -math.sin(latitude) * math.cos(longitude),
        -math.sin(latitude) * math.sin(longitude),
        math.cos(latitude),
    )
    east = (-math.sin(longitude), math.cos(longitude), 0.0)
    down = (
        -math.cos(latitude) * math.cos(longitude),
        -math.cos(latitude) * math.sin(longitude),
        -math.sin(latitude),
    )
    origin = ECEF_FROM_LLH.transform(ORIGIN[1], ORIGIN[0], ORIGIN[2])
    return pose(np.array([north, east, down]).T, origin)


def latlon_from_ned(ned):
    ecef = ecef_from_ned() @ np.append(ned, 1.0)
    longitude, latitude, altitude = ECEF_FROM_LLH.transform(*ecef[:3], direction='INVERSE')
    return latitude, longitude, altitude


def ned_from_latlon(latitude, longitude, altitude):
    ecef = np.append(ECEF_FROM_LLH.transform(longitude, latitude, altitude), 1.0)
    return (np.linalg.inv(ecef_from_ned()) @ ecef)[:3]


def position_fields(ned):
    """Latitude to utm_zone as the files have them: 6 decimals in degrees, 10 in metres."""
    latitude, longitude, altitude = latlon_from_ned(ned)
    easting, northing = UTM_FROM_LL.transform(longitude, latitude)
    return (
        f'{latitude:.6f},{longitude:.6f},{altitude:.10f},{northing:.10f},{easting:.10f},'
        f'{-altitude:.10f},30U'
    )


def rtk_line(stamp_us, t_s):
    ins = vehicle_pose(t_s) @ VEHICLE_FROM_INS
    roll, pitch, yaw = rpy(ins[:3, :3])
    published_yaw = math.remainder(yaw + math.pi / 2, 2 * math.pi)
    return (
        f'{stamp_us},{position_fields(ins[:3, 3])},0,0,0,{-roll:.12f},{pitch:.12f},'
        f'{published_yaw:.12f}'
    )


def gps_line(stamp_us, t_s):
    antenna = (vehicle_pose(t_s) @ VEHICLE_FROM_INS)[:3, 3]
    latitude, longitude, altitude = latlon_from_ned(antenna)
    easting, northing = UTM_FROM_LL.transform(longitude, latitude)
    return (
        f'{stamp_us},9,{latitude:.10f},{longitude:.10f},{altitude:.6f},2.0,1.5,4.0,'
        f'{northing:.6f},{easting:.6f},{-altitude:.6f},30U'
    )


def vo_line(earlier_us, later_us, later_first=True):
    step = np.linalg.inv(vehicle_pose(seconds(earlier_us))) @ vehicle_pose(seconds(later_us))
    values = (*step[:3, 3], *rpy(step[:3, :3]))
    stamps = (later_us, earlier_us) if later_first else (earlier_us, later_us)
    return f'{stamps[0]},{stamps[1]},' + ','.join(f'{value:.14f}' for value in values)


def seconds(stamp_us):
    return (stamp_us - START_US) * 1e-6


def distorted_pixel(u, v):
    """Where the lens puts the point seen at (u, v) of the pinhole image."""
    x, y = (u - CX_PX) / FX_PX, (v - CY_PX) / FX_PX
    scale = 1 + DISTORTION_K1 * (x**2 + y**2)
    return FX_PX * x * scale + CX_PX, FX_PX * y * scale + CY_PX


def bayer_gbrg(bgr):
    """Sample a BGR image through the filter: first row G B, second R G."""
    raw = np.empty(bgr.shape[:2], np.uint8)
    raw[0::2, 0::2], raw[0::2, 1::2] = bgr[0::2, 0::2, 1], bgr[0::2, 1::2, 0]
    raw[1::2, 0::2], raw[1::2, 1::2] = bgr[1::2, 0::2, 2], bgr[1::2, 1::2, 1]
    return raw


@dataclass
class Drive:
    """Paths and stamps of a written drive."""

    root: Path
    image_us: list[int] = field(default_factory=list)

    @property
    def traversal(self):
        return self.root / '2015-08-17-10-42-18'

    @property
    def rtk(self):
        return self.root / 'rtk' / '2015-08-17-10-42-18' / 'rtk.csv'

    def arguments(self, out, *more):
        return [
            str(self.traversal), '--models', str(self.root / 'models'),
            '--extrinsics', str(self.root / 'extrinsics'), '--rtk', str(self.rtk),
            '--out', str(out), *map(str, more),
        ]


def write_drive(root, image=None):
    """Write everything; ``image`` is the BGR picture as the lens sees it (default: a gradient)."""
    image_us = [START_US + k * IMAGE_PERIOD_US for k in range(N_IMAGES)]
    drive = Drive(Path(root), image_us)
    for folder in ('stereo/centre', 'gps', 'vo'):
        (drive.traversal / folder).mkdir(parents=True)
    drive.rtk.parent.mkdir(parents=True)

    if image is None:
        ramp = np.linspace(40, 200, WIDTH_PX).astype(np.uint8)
        image = np.repeat(np.tile(ramp, (HEIGHT_PX, 1))[..., None], 3, axis=-1)
    for stamp_us in image_us:
        cv2.imwrite(str(drive.traversal / f'stereo/centre/{stamp_us}.png'), bayer_gbrg(image))
    write_lines(drive.traversal / 'stereo.timestamps', [f'{stamp_us} 1' for stamp_us in image_us])

    # Rows at their own rates, not at the images' times; the truth reaches beyond both ends.
    end_us = image_us[-1]
    rtk_us = range(START_US - 507_000, end_us + 500_000, 20_000)
    rows = [(stamp_us, seconds(stamp_us)) for stamp_us in rtk_us]
    write_lines(drive.rtk, [RTK_HEADER, *(rtk_line(*row) for row in rows)])
    gps_us = range(START_US + 31_000, end_us, 200_000)
    write_lines(
        drive.traversal / 'gps/gps.csv',
        [GPS_HEADER, *(gps_line(stamp_us, seconds(stamp_us)) for stamp_us in gps_us)],
    )
    write_lines(
        drive.traversal / 'vo/vo.csv',
        [VO_HEADER, *(vo_line(*pair) for pair in pairwise(image_us))],
    )
    _write_calibration(drive.root)
    return drive


def _write_calibration(root):
    (root / 'models').mkdir()
    (root / 'extrinsics').mkdir()
    write_lines(
        root / 'models/stereo_narrow_left.txt',
        [f'{FX_PX} {FX_PX} {CX_PX} {CY_PX}', '0 0 1 0', '1 0 0 0', '0 1 0 0', '0 0 0 1'],
    )
    v, u = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX].astype(float)
    np.stack(distorted_pixel(u, v)).tofile(
        root / 'models/stereo_narrow_left_distortion_lut.bin'
    )
    write_lines(root / 'extrinsics/stereo.txt', ['0 0 0 0 0 0'])
    write_lines(root / 'extrinsics/ins.txt', [' '.join(map(str, INS_XYZRPY))])


def write_lines(path, lines):
    path.write_text(''.join(f'{line}\n' for line in lines))
