"""True poses and odometry of an Oxford RobotCar traversal, with the known errors corrected.

World orientations are true north, east, down (NED).  Positions are UTM metres, because the files
give them with more digits than latitude and longitude (6 decimals: 0.1 m).  Frames as in
``robotcar``.

Each error of the data set is corrected in one place:

- the yaw of RTK is the true heading + 90 degrees and its roll has the wrong sign
  (``RTK_YAW_OFFSET_RAD``, ``RTK_ROLL_SIGN``);
- RTK rows are poses of the INS, 1.7 m behind and 1.2 m below the camera (``base_link_track``);
- headings are from true north but positions on the UTM grid, turned by 1.4 degrees at Oxford
  (``grid_convergence_rad``);
- poses between rows are interpolated (the tools of the data set divide with ``//`` and return the
  row before); outside the rows and in gaps they are NaN (``interpolate_track``).
"""

from dataclasses import dataclass
import math
import re

import numpy as np
from scipy.spatial.transform import Rotation

from crossview_localizer.bags.robotcar import (
    FLU_FROM_FRD,
    flu_from_frd,
    NS_PER_US,
    rotation_from_rpy,
    se3_from_xyzrpy,
)
from crossview_localizer.geometry import wrap_angle
from crossview_localizer.trajectory import TRUTH_MAX_GAP_S

RTK_YAW_OFFSET_RAD = math.pi / 2
RTK_ROLL_SIGN = -1.0
ENU_FROM_NED = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
# A longer gap between two odometry rows is not bridged at constant velocity.
MAX_BRIDGED_GAP_S = 1.0


# --- true poses


@dataclass(frozen=True)
class PoseTrack:
    """Poses in time: UTM position, altitude, ``ned_from_body`` (N, 3, 3) from true north."""

    stamp_ns: np.ndarray
    easting_m: np.ndarray
    northing_m: np.ndarray
    altitude_m: np.ndarray
    ned_from_body: np.ndarray
    utm_zone: str

    def __len__(self) -> int:
        return len(self.stamp_ns)

    def select(self, chosen: np.ndarray) -> 'PoseTrack':
        """The poses of a boolean mask or of indices."""
        return PoseTrack(
            self.stamp_ns[chosen], self.easting_m[chosen], self.northing_m[chosen],
            self.altitude_m[chosen], self.ned_from_body[chosen], self.utm_zone,
        )

    def heading_rad(self) -> np.ndarray:
        """Heading of the body's forward axis, clockwise from true north, in (-pi, pi]."""
        return np.arctan2(self.ned_from_body[:, 1, 0], self.ned_from_body[:, 0, 0])


def ins_track_from_rtk(rows: np.ndarray) -> PoseTrack:
    """Rows of rtk.csv to true poses of the INS, with yaw offset and sign of roll corrected."""
    zones = np.unique(rows['utm_zone'])
    if len(zones) != 1 or not re.fullmatch('[0-9]{1,2}[C-X]', zones[0]):
        raise ValueError(
            f'column utm_zone holds {", ".join(map(repr, zones[:3]))}; expected one such as 30U'
        )
    track = PoseTrack(
        rows['timestamp'] * NS_PER_US, rows['easting'], rows['northing'], rows['altitude'],
        rotation_from_rpy(
            RTK_ROLL_SIGN * rows['roll'], rows['pitch'], rows['yaw'] - RTK_YAW_OFFSET_RAD),
        str(zones[0]),
    )
    easting_m, northing_m = _utm(track.utm_zone)(rows['longitude'], rows['latitude'])
    apart_m = np.hypot(easting_m - track.easting_m, northing_m - track.northing_m)
    if np.nanmedian(apart_m) > 5.0:
        raise ValueError(
            f'northing and easting are {np.nanmedian(apart_m):,.0f} m away from latitude and '
            'longitude: columns swapped, or not WGS84 UTM'
        )
    return track


def _utm(zone: str):
    from pyproj import Proj

    south = {'south': True} if zone[-1] < 'N' else {}
    return Proj(proj='utm', zone=int(zone[:-1]), ellps='WGS84', **south)


def track_from_geodetic(
    stamp_ns: np.ndarray, latitude_deg: np.ndarray, longitude_deg: np.ndarray,
    altitude_m: np.ndarray, enu_from_flu: np.ndarray,
) -> PoseTrack:
    """Poses given by degrees and ``enu_from_flu`` (N, 3, 3), all in the zone of the first one."""
    band = 'CDEFGHJKLMNPQRSTUVWX'[int(np.clip((latitude_deg[0] + 80.0) // 8.0, 0, 19))]
    zone = f'{int((longitude_deg[0] + 180.0) // 6.0) % 60 + 1}{band}'
    easting_m, northing_m = _utm(zone)(longitude_deg, latitude_deg)
    ned_from_frd = ENU_FROM_NED.T @ enu_from_flu @ FLU_FROM_FRD[:3, :3]
    return PoseTrack(stamp_ns, easting_m, northing_m, altitude_m, ned_from_frd, zone)


def grid_convergence_rad(track: PoseTrack) -> np.ndarray:
    """Bearing of the UTM grid's north, clockwise from true north, at each pose (N,)."""
    utm = _utm(track.utm_zone)
    longitude_deg, latitude_deg = utm(track.easting_m, track.northing_m, inverse=True)
    return np.radians(utm.get_factors(longitude_deg, latitude_deg).meridian_convergence)


def interpolation_fraction(stamp_ns, lower_ns, upper_ns) -> np.ndarray:
    """Where a stamp lies between the row before it (0) and the row after it (1)."""
    return (stamp_ns - lower_ns) / np.maximum(upper_ns - lower_ns, 1)


def interpolate_track(
    track: PoseTrack, stamp_ns: np.ndarray, max_gap_s: float = TRUTH_MAX_GAP_S
) -> PoseTrack:
    """The poses at other times: positions linear, orientations along the shorter arc.

    Requests before the first row, after the last one or between two rows more than ``max_gap_s``
    apart give NaN.
    """
    stamp_ns = np.asarray(stamp_ns, dtype=np.int64)
    upper = np.clip(np.searchsorted(track.stamp_ns, stamp_ns, side='left'), 0, len(track) - 1)
    lower = np.where(track.stamp_ns[upper] == stamp_ns, upper, np.maximum(upper - 1, 0))
    lower_ns, upper_ns = track.stamp_ns[lower], track.stamp_ns[upper]
    fraction = interpolation_fraction(stamp_ns, lower_ns, upper_ns)
    known = (lower_ns <= stamp_ns) & (stamp_ns <= upper_ns)
    known &= upper_ns - lower_ns <= round(max_gap_s * 1e9)

    def between(values):
        mixed = values[lower] + fraction * (values[upper] - values[lower])
        return np.where(known, mixed, np.nan)

    start = Rotation.from_matrix(track.ned_from_body[lower])
    turn = start.inv() * Rotation.from_matrix(track.ned_from_body[upper])
    part = Rotation.from_rotvec(fraction[:, None] * turn.as_rotvec())
    ned_from_body = np.where(known[:, None, None], (start * part).as_matrix(), np.nan)
    return PoseTrack(
        stamp_ns, between(track.easting_m), between(track.northing_m), between(track.altitude_m),
        ned_from_body, track.utm_zone,
    )


def base_link_track(ins_track: PoseTrack, vehicle_from_ins: np.ndarray) -> PoseTrack:
    """Poses of the INS to poses of the vehicle frame (FRD axes): the lever arm in 3D.

    world_from_vehicle = world_from_ins @ vehicle_from_ins^-1; the shift is found north, east,
    down and turned to the UTM grid.
    """
    ins_from_vehicle = np.linalg.inv(vehicle_from_ins)
    ned_from_vehicle = ins_track.ned_from_body @ ins_from_vehicle[:3, :3]
    north_m, east_m, down_m = (ins_track.ned_from_body @ ins_from_vehicle[:3, 3]).T
    convergence_rad = grid_convergence_rad(ins_track)
    cos, sin = np.cos(convergence_rad), np.sin(convergence_rad)
    return PoseTrack(
        ins_track.stamp_ns,
        ins_track.easting_m + cos * east_m - sin * north_m,
        ins_track.northing_m + sin * east_m + cos * north_m,
        ins_track.altitude_m - down_m,
        ned_from_vehicle,
        ins_track.utm_zone,
    )


def geodetic_from_track(track: PoseTrack) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latitude, longitude (deg, (N,)) and the orientation (N, 4) of the FLU body as quaternions.

    The quaternion (x, y, z, w) takes FLU axes to true east, north, up: REP-103, yaw
    counter-clockwise from true east.
    """
    longitude_deg, latitude_deg = _utm(track.utm_zone)(
        track.easting_m, track.northing_m, inverse=True
    )
    enu_from_flu = ENU_FROM_NED @ track.ned_from_body @ FLU_FROM_FRD[:3, :3]
    return latitude_deg, longitude_deg, Rotation.from_matrix(enu_from_flu).as_quat()


def heading_minus_course_deg(track: PoseTrack, min_step_m: float = 1.0) -> np.ndarray:
    """True heading minus true direction of motion, over steps of ``min_step_m`` or more, (M,).

    Near zero for a car that does not slide; 90 where the yaw has another convention.
    """
    kept = [0]
    for k in range(1, len(track)):
        east_m = track.easting_m[k] - track.easting_m[kept[-1]]
        north_m = track.northing_m[k] - track.northing_m[kept[-1]]
        if math.hypot(east_m, north_m) >= min_step_m:
            kept.append(k)
    kept = np.array(kept)
    grid_course_rad = np.arctan2(np.diff(track.easting_m[kept]), np.diff(track.northing_m[kept]))
    course_rad = grid_course_rad + grid_convergence_rad(track)[kept[:-1]]
    heading_rad = track.heading_rad()
    # Heading in the middle of the step, where the chord has the direction of motion.
    turn_rad = wrap_angle(heading_rad[kept[1:]] - heading_rad[kept[:-1]])
    return np.degrees(wrap_angle(heading_rad[kept[:-1]] + turn_rad / 2 - course_rad))


# --- visual odometry


@dataclass(frozen=True)
class OdometryTrack:
    """Integrated odometry in FLU axes.

    ``odom_from_base`` (N, 4, 4) starts at the identity; ``linear_mps`` and ``angular_radps``
    (N, 3) are those of the body over the last step; ``travelled_m`` (N,) is the distance driven
    and ``unseen_m`` (N,) the part of it in gaps without odometry.
    """

    stamp_ns: np.ndarray
    odom_from_base: np.ndarray
    linear_mps: np.ndarray
    angular_radps: np.ndarray
    travelled_m: np.ndarray
    unseen_m: np.ndarray
    notes: tuple[str, ...]


def integrate_vo(vo: np.ndarray) -> OdometryTrack:
    """Chain the rows of vo.csv: odom_from_later = odom_from_earlier @ earlier_from_later.

    A gap between rows of up to ``MAX_BRIDGED_GAP_S`` is bridged with the velocity of the next row;
    in a longer one the pose stands still.  Both count in ``unseen_m``.  A row that starts before
    the one before it has ended is left out.
    """
    start_us = np.minimum(vo['source_timestamp'], vo['destination_timestamp'])
    end_us = np.maximum(vo['source_timestamp'], vo['destination_timestamp'])
    xyzrpy = np.stack([vo[name] for name in ('x', 'y', 'z', 'roll', 'pitch', 'yaw')], axis=-1)
    steps = flu_from_frd(se3_from_xyzrpy(xyzrpy))  # (N, 4, 4)

    pose, travelled_m, unseen_m = np.eye(4), 0.0, 0.0
    rows = []  # the fields of OdometryTrack
    bridged = held = overlapping = 0
    for k in range(len(vo)):
        duration_s = (end_us[k] - start_us[k]) * 1e-6
        if duration_s <= 0 or (rows and start_us[k] < rows[-1][0]):
            overlapping += 1
            continue
        turn_rad = Rotation.from_matrix(steps[k, :3, :3]).as_rotvec()
        rate_radps = turn_rad / duration_s
        # On an arc the chord points along the heading of its middle.
        midway = Rotation.from_rotvec(-turn_rad / 2)
        velocity_mps = midway.apply(steps[k, :3, 3]) / duration_s
        if not rows:
            rows.append((start_us[k], pose, velocity_mps, rate_radps, 0.0, 0.0))
        gap_s = (start_us[k] - rows[-1][0]) * 1e-6
        if gap_s > 0:
            speed_mps = math.hypot(*velocity_mps)
            unseen_m += speed_mps * gap_s
            if gap_s <= MAX_BRIDGED_GAP_S:
                pose = pose @ constant_twist_motion(velocity_mps, rate_radps, gap_s)
                travelled_m += speed_mps * gap_s
                bridged += 1
            else:
                held += 1
        pose = pose @ steps[k]
        travelled_m += math.hypot(*steps[k, :3, 3])
        rows.append((end_us[k], pose, velocity_mps, rate_radps, travelled_m, unseen_m))
    if not rows:
        raise ValueError('no row of vo.csv lies in the time asked for')
    notes = [
        f'vo.csv: {count:,} {what}'
        for count, what in (
            (overlapping, 'rows overlap the row before or last no time, left out'),
            (bridged, f'gaps of at most {MAX_BRIDGED_GAP_S:g} s bridged at constant velocity'),
            (held, f'gaps longer than {MAX_BRIDGED_GAP_S:g} s: odometry stands still over them'),
        )
        if count
    ]
    stamp_us, *fields = (np.array(field) for field in zip(*rows))
    return OdometryTrack(stamp_us * NS_PER_US, *fields, tuple(notes))


def constant_twist_motion(
    velocity_mps: np.ndarray, rate_radps: np.ndarray, duration_s: float
) -> np.ndarray:
    """The motion (4, 4) of a body with constant velocity and rate of turn."""
    step = np.eye(4)
    step[:3, :3] = Rotation.from_rotvec(rate_radps * duration_s).as_matrix()
    step[:3, 3] = Rotation.from_rotvec(rate_radps * duration_s / 2).apply(
        velocity_mps * duration_s
    )
    return step
