"""A drive through the city: route, motion of the car, and what its sensors report.

Vehicle frame: RobotCar's (origin at the stereo camera, x forward, y right, z down).  Attitudes are
roll, pitch, heading with R = Rz(heading) Ry(pitch) Rx(roll) from that frame to north-east-down of
the city's plane (heading clockwise from the plane's y axis).
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from .city import City

# INS in the vehicle frame: x y z roll pitch yaw (m, rad), the values of RobotCar's ins.txt.
INS_EXTRINSIC = (-1.7132, 0.1181, 1.1948, -0.0125, 0.0400, 0.0050)
CAMERA_HEIGHT_M = 1.52
ENU_FROM_NED = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
_STEP_M = 0.25
_TICK_S = 0.01


def rotation(roll, pitch, yaw) -> np.ndarray:
    """Rz(yaw) Ry(pitch) Rx(roll), (..., 3, 3)."""
    cr, sr, cp, sp = np.cos(roll), np.sin(roll), np.cos(pitch), np.sin(pitch)
    cy, sy = np.cos(yaw), np.sin(yaw)
    return np.stack((
        cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr,
        sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr,
        -sp, cp * sr, cp * cr,
    ), axis=-1).reshape(*np.shape(roll), 3, 3)


def roll_pitch_yaw(matrix) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse of ``rotation`` for |pitch| < 90 deg."""
    return (np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]),
            -np.arcsin(np.clip(matrix[..., 2, 0], -1, 1)),
            np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]))


@dataclass(frozen=True)
class Poses:
    """Vehicle poses at times: position (n, 3) east, north, up; ned_from_vehicle (n, 3, 3)."""

    time_s: np.ndarray
    position: np.ndarray
    ned_from_vehicle: np.ndarray

    def ins(self) -> 'Poses':
        """The same instants at the INS, with its mounting rotation."""
        x, y, z, roll, pitch, yaw = INS_EXTRINSIC
        offset = self.ned_from_vehicle @ np.array([x, y, z])
        return Poses(self.time_s, self.position + offset @ ENU_FROM_NED.T,
                     self.ned_from_vehicle @ rotation(roll, pitch, yaw))

    def camera_axes(self, pitch_error_rad: float) -> np.ndarray:
        """local_from_frd (n, 3, 3) of a camera mounted with an unknown pitch."""
        zero = np.float64(0.0)
        return ENU_FROM_NED @ self.ned_from_vehicle @ rotation(zero, np.float64(pitch_error_rad),
                                                               zero)


@dataclass(frozen=True)
class DriveMotion:
    """Motion on a fine time grid; ``at`` interpolates."""

    time_s: np.ndarray
    position: np.ndarray       # of the vehicle frame
    attitude: np.ndarray       # (n, 3) roll, pitch, heading; heading unwrapped
    camera_height_m: float
    camera_pitch_rad: float    # mounting error, positive nose up
    duration_s: float

    def at(self, time_s) -> Poses:
        time_s = np.asarray(time_s, np.float64)
        position, attitude = (
            np.stack([np.interp(time_s, self.time_s, column) for column in table.T], axis=-1)
            for table in (self.position, self.attitude))
        return Poses(time_s, position, rotation(*attitude.T))


def drive(city: City, seed: int, day_number: int, duration_s: float,
          camera_height_m: float = CAMERA_HEIGHT_M) -> DriveMotion:
    """A drive of ``duration_s`` with a second to spare at both ends.

    It is shorter if the city has its own trajectory and that ends earlier.
    """
    rng = np.random.default_rng([seed, 20, day_number])
    speed_limit = rng.uniform(8.0, 11.5)
    if city.trajectory is None:
        path, junctions = _lane_path(city, rng, (duration_s + 2.0) * speed_limit + 60.0)
    else:
        path, junctions = _given_path(city)
    path = _with_wander(path, rng)
    time_s, along = _timing(path, junctions, speed_limit, duration_s + 2.0, rng)
    if city.trajectory is not None:
        duration_s = min(duration_s, np.floor(10 * (time_s[-1] - 2.5)) / 10)
    clock = np.arange(0.0, duration_s + 2.0, _TICK_S)
    s = gaussian_filter1d(np.interp(clock, time_s, along), 0.25 / _TICK_S, mode='nearest')
    grid = np.arange(len(path)) * _STEP_M
    tangent = np.gradient(path, axis=0)
    heading = gaussian_filter1d(np.unwrap(np.arctan2(tangent[:, 0], tangent[:, 1])), 4.0)
    x, y, heading = (np.interp(s, grid, column) for column in (*path.T, heading))

    # Attitude: the road's plane under the wheels, the springs, and what bumps do.
    height = city_surface(city)
    ahead, right = np.stack((np.sin(heading), np.cos(heading))), np.stack(
        (np.cos(heading), -np.sin(heading)))
    rear, front = height(x, y), height(x + 2.7 * ahead[0], y + 2.7 * ahead[1])
    lean = height(x + 0.75 * right[0], y + 0.75 * right[1]) - height(
        x - 0.75 * right[0], y - 0.75 * right[1])
    smooth = 0.12 / _TICK_S
    rear, front, lean = (gaussian_filter1d(v, smooth) for v in (rear, front, lean))
    speed = np.gradient(s, _TICK_S)
    forward = gaussian_filter1d(np.gradient(speed, _TICK_S), smooth)
    sideways = gaussian_filter1d(speed * np.gradient(heading, _TICK_S), smooth)
    shake = np.clip(speed / 4.0, 0.15, 1.0)
    pitch = np.arctan2(front - rear, 2.7) + np.radians(0.5) * forward + np.radians(
        0.45) * shake * _bumps(rng, len(clock))
    roll = -np.arctan2(lean, 1.5) - np.radians(0.6) * sideways + np.radians(
        0.45) * shake * _bumps(rng, len(clock))

    camera_height = camera_height_m + rng.uniform(-0.05, 0.05)
    attitude = np.stack((roll, pitch, heading), axis=1)
    rear_point = np.stack((x, y, rear), axis=1)
    arm = np.array([-INS_EXTRINSIC[0], -INS_EXTRINSIC[1], -camera_height])
    position = rear_point + (rotation(*attitude.T) @ arm) @ ENU_FROM_NED.T
    return DriveMotion(clock - 1.0, position, attitude, float(camera_height),
                       float(np.radians(rng.uniform(-0.5, 0.5))), float(duration_s))


def city_surface(city: City):
    """Road height without the kerb's step, so that a wheel near it does not jump."""
    def height(x, y):
        camber = 0.025 * np.clip(-city.kerb_distance.sample(x, y), 0.0, 4.0)
        return city.terrain(x, y) + camber
    return height


def _bumps(rng, count):
    noise = gaussian_filter1d(rng.standard_normal(count), 0.18 / _TICK_S)
    return noise / noise.std()


def _lane_path(city, rng, length_m):
    """Points every _STEP_M along left-hand lanes, and the distances where junctions begin."""
    streets = city.streets
    at_node = {}
    for k, street in enumerate(streets):
        at_node.setdefault(street.a, []).append(k)
        at_node.setdefault(street.b, []).append(k)
    visits = np.zeros(len(streets))
    k, forward = int(rng.integers(len(streets))), bool(rng.random() < 0.5)
    pieces, ends, total = [], [], 0.0
    while total < length_m:
        visits[k] += 1
        street = streets[k]
        s = np.arange(street.trim_a_m, max(street.line.length - street.trim_b_m,
                                           street.trim_a_m + 1.5), 0.5)
        side = street.lane_m / 2
        lane = street.line.offset(s, np.full(s.size, side if forward else -side))
        pieces.append(lane if forward else lane[::-1])
        total += len(s) * 0.5 + 10.0
        node = street.b if forward else street.a
        options = [o for o in at_node[node] if o != k]
        weight = np.array([0.12 ** visits[o] for o in options])
        chosen = options[rng.choice(len(options), p=weight / weight.sum())]
        k, forward = chosen, streets[chosen].a == node
    joined = [pieces[0]]
    for lane in pieces[1:]:
        start, stop = joined[-1][-1], lane[0]
        leaving, entering = _unit(start - joined[-1][-4]), _unit(lane[3] - stop)
        reach = np.linalg.norm(stop - start) * 0.42
        t = np.linspace(0, 1, max(4, int(np.linalg.norm(stop - start) / 0.5)))[1:-1, None]
        joined.append((1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * (start + reach * leaving)
                      + 3 * (1 - t) * t ** 2 * (stop - reach * entering) + t ** 3 * stop)
        joined.append(lane)
    points = np.concatenate(joined)
    s = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))))
    index = np.cumsum([len(p) for p in joined])[::2] - 1  # last point of each street's lane
    ends = s[index]
    grid = np.arange(0.0, s[-1], _STEP_M)
    path = np.stack([np.interp(grid, s, points[:, c]) for c in (0, 1)], axis=1)
    return gaussian_filter1d(path, 1.2 / _STEP_M, axis=0), ends


def same_route(city: City, seed: int, length_m: float) -> np.ndarray:
    """A route (n, 2) of this length along the city's lanes, for all traversals to drive."""
    path, _ = _lane_path(city, np.random.default_rng([seed, 26]), length_m + 60.0)
    return path[:int(length_m / _STEP_M)]


def _given_path(city):
    """The city's trajectory as ``_lane_path`` returns its own."""
    steps = np.linalg.norm(np.diff(city.trajectory, axis=0), axis=1)
    s = np.concatenate(([0.0], np.cumsum(steps)))
    grid = np.arange(0.0, s[-1], _STEP_M)
    path = np.stack([np.interp(grid, s, city.trajectory[:, c]) for c in (0, 1)], axis=1)
    # A junction begins where the way comes within 9 m of a node.
    apart = np.linalg.norm(path[:, None] - city.nodes[None], axis=2).min(1)
    begins = np.flatnonzero((apart[1:] < 9.0) & (apart[:-1] >= 9.0))
    return gaussian_filter1d(path, 1.2 / _STEP_M, axis=0), grid[begins]


def _unit(vector):
    return vector / np.linalg.norm(vector)


def _with_wander(path, rng):
    """Add a driver's wander about the middle of the lane: 0.2 m RMS over about 20 m."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    noise = gaussian_filter1d(rng.standard_normal(len(path)), 12.0 / _STEP_M)
    noise *= 0.2 / noise.std()
    moved = path + noise[:, None] * np.stack((-tangent[:, 1], tangent[:, 0]), axis=1)
    s = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(moved, axis=0), axis=1))))
    grid = np.arange(0.0, s[-1], _STEP_M)
    return np.stack([np.interp(grid, s, moved[:, c]) for c in (0, 1)], axis=1)


def _timing(path, junctions, speed_limit, duration_s, rng):
    """(time, distance) with slow bends, a stop or two, and 1.3 / 1.6 m/s^2 up and down."""
    tangent = np.gradient(path, axis=0)
    heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
    bend = gaussian_filter1d(np.abs(np.gradient(heading, _STEP_M)), 2.0 / _STEP_M)
    varied = gaussian_filter1d(rng.standard_normal(len(path)), 40.0 / _STEP_M)
    limit = speed_limit * (1 + 0.08 * varied / varied.std())
    limit = np.minimum(limit, np.sqrt(1.8 / np.maximum(bend, 1e-4)))
    limit[0] = min(limit[0], 4.0)
    candidates = junctions[(junctions > 30) & (junctions < duration_s * speed_limit * 0.6)]
    stops = rng.choice(candidates, min(len(candidates), 1 + int(duration_s > 90)), replace=False)
    index = (stops / _STEP_M).astype(int)
    for k in index:
        limit[max(k - 2, 0):k + 1] = 0.25
    squared = limit ** 2
    for k in range(1, len(squared)):
        squared[k] = min(squared[k], squared[k - 1] + 2 * 1.3 * _STEP_M)
    for k in range(len(squared) - 2, -1, -1):
        squared[k] = min(squared[k], squared[k + 1] + 2 * 1.6 * _STEP_M)
    speed = np.sqrt(squared)
    step = 2 * _STEP_M / (speed[1:] + speed[:-1])
    time_s, along = np.concatenate(([0.0], np.cumsum(step))), np.arange(len(path)) * _STEP_M
    for k in np.sort(index)[::-1]:  # later ones first: a wait shifts all that follows
        wait = rng.uniform(3.0, 6.0)
        time_s = np.concatenate((time_s[:k + 1], time_s[k:] + wait))
        along = np.concatenate((along[:k + 1], along[k:]))
    return time_s, along


# --- sensors -----------------------------------------------------------------------------------

def ornstein_uhlenbeck(rng, time_s, tau_s, columns) -> np.ndarray:
    """(n, columns) first-order Gauss-Markov noise of unit variance at uneven times."""
    keep = np.exp(-np.diff(time_s) / tau_s)
    noise = rng.standard_normal((len(time_s), columns))
    out = noise.copy()
    for k, a in enumerate(keep, start=1):
        out[k] = a * out[k - 1] + np.sqrt(1 - a * a) * noise[k]
    return out


def stamps(rng, start_s, stop_s, rate_hz, jitter_s) -> np.ndarray:
    """Times at a rate with uniform jitter, never out of order."""
    time_s = np.arange(start_s, stop_s, 1.0 / rate_hz)
    return time_s + rng.uniform(-1, 1, time_s.size) * min(jitter_s, 0.3 / rate_hz)


@dataclass(frozen=True)
class GnssError:
    """East, north, up errors (n, 3) at the kept times, and the outage (start, stop) or None."""

    time_s: np.ndarray
    error: np.ndarray
    outage_s: tuple[float, float] | None
    jumps_s: list[tuple[float, float, float]]  # start, stop, metres


def gnss_error(rng, duration_s: float, rms_m: float = 4.0, tau_s: float = 60.0) -> GnssError:
    """Wander, white noise and multipath jumps with this run's horizontal RMS equal to rms_m.

    One outage of 20 s after the first 30 s, if the run is long enough.
    """
    time_s = stamps(rng, 0.05, duration_s, 5.0, 0.02)
    outage = None
    if duration_s >= 60.0:
        start = rng.uniform(30.0, duration_s - 25.0)
        outage = (float(start), float(start + 20.0))
        time_s = time_s[(time_s < outage[0]) | (time_s > outage[1])]
    rest = 0.5 / np.sqrt(2) * rng.standard_normal((len(time_s), 2))
    jumps = []
    if duration_s >= 30.0:
        for _ in range(rng.integers(1, 3)):
            begin, length = rng.uniform(5.0, duration_s - 12.0), rng.uniform(5.0, 10.0)
            size, direction = rng.uniform(5.0, 10.0), rng.uniform(0, 2 * np.pi)
            inside = (time_s > begin) & (time_s < begin + length)
            rest[inside] += size * np.array([np.cos(direction), np.sin(direction)])
            jumps.append((float(begin), float(begin + length), float(size)))
    budget = rms_m ** 2
    spent = (rest ** 2).sum(1).mean()
    if spent > 0.7 * budget:  # short run: the jumps alone would be too much
        rest *= np.sqrt(0.7 * budget / spent)
    wander = ornstein_uhlenbeck(rng, time_s, tau_s, 2)
    # |rest + a wander|^2 averages to the budget: a quadratic in a.
    a2, a1 = (wander ** 2).sum(1).mean(), 2 * (wander * rest).sum(1).mean()
    a0 = (rest ** 2).sum(1).mean() - budget
    scale = (-a1 + np.sqrt(a1 * a1 - 4 * a2 * a0)) / (2 * a2)
    height = 1.5 * rms_m * 0.6 * ornstein_uhlenbeck(rng, time_s, tau_s, 1)
    return GnssError(time_s, np.hstack((rest + scale * wander, height)), outage, jumps)


def visual_odometry(rng, poses: Poses) -> tuple[np.ndarray, dict]:
    """Relative poses (n-1, 6) x y z roll pitch yaw with drift in scale and yaw, and the drift."""
    rel_rotation = np.swapaxes(poses.ned_from_vehicle[:-1], 1, 2) @ poses.ned_from_vehicle[1:]
    step = np.diff(poses.position, axis=0) @ ENU_FROM_NED  # east-north-up to north-east-down
    step = np.einsum('nji,nj->ni', poses.ned_from_vehicle[:-1], step)
    length = np.linalg.norm(step, axis=1)
    scale_bias = rng.choice([-1, 1]) * rng.uniform(0.005, 0.013)
    yaw_bias = np.radians(rng.choice([-1, 1]) * rng.uniform(0.15, 0.4)) / 100.0  # a metre
    slow = ornstein_uhlenbeck(rng, poses.time_s[1:], 40.0, 2)
    scale = 1 + scale_bias + 0.003 * slow[:, 0]
    roll, pitch, yaw = roll_pitch_yaw(rel_rotation)
    noise = rng.standard_normal((len(step), 6))
    moved = step * scale[:, None] + noise[:, :3] * (0.002 + 0.004 * length)[:, None]
    yaw = yaw + (yaw_bias + np.radians(0.1) / 100 * slow[:, 1]) * length
    angles = np.stack((roll, pitch, yaw), axis=1) + np.radians(0.01) * noise[:, 3:]
    return np.hstack((moved, angles)), {
        'scale_error': round(float(scale_bias), 5),
        'yaw_drift_deg_per_100m': round(float(np.degrees(yaw_bias) * 100), 4),
    }
