"""The street network of a city, and how far each place is from a kerb."""

import cv2
import numpy as np

from training.simulation.city import (
    CORNER_RADIUS_M,
    DISTANCE_CAP_M,
    DISTANCE_PX_M,
    Line,
    Raster,
    Street,
    STYLES,
)
from training.simulation.mesh import turned


def draw_street_network(rng, size_m, style_weights, block_m):
    """A jittered, warped, turned grid with some streets left out; no dead ends, connected."""
    reach = size_m / 2 - 12.0
    turn = rng.uniform(-np.pi / 4, np.pi / 4)
    axes, mains = [], []
    for _ in range(2):
        lines = [-0.75 * size_m]
        while lines[-1] < 0.75 * size_m:
            lines.append(lines[-1] + rng.uniform(*block_m))
        axes.append(np.array(lines) + rng.uniform(-30, 30))
        mains.append(rng.random(len(lines)) < 0.3)
    warp = [(rng.uniform(0.5, 1.0) * 2 * np.pi / 300, rng.uniform(0, 2 * np.pi),
             rng.uniform(0, 2 * np.pi), rng.uniform(6.0, 18.0)) for _ in range(3)]

    def place(points):
        x, y = points[..., 0], points[..., 1]
        dx = sum(a * np.sin(k * (np.cos(w) * x + np.sin(w) * y) + p) for k, p, w, a in warp)
        dy = sum(a * np.cos(k * (np.cos(w) * y - np.sin(w) * x) + p) for k, p, w, a in warp)
        return turned(np.stack((x + dx, y + dy, 0 * x), -1), turn)[..., :2]

    flat = np.stack(np.meshgrid(*axes, indexing='ij'), -1)
    flat += rng.uniform(-9.0, 9.0, flat.shape)
    kept = np.abs(place(flat)).max(-1) < reach
    number = np.full(kept.shape, -1)
    number[kept] = np.arange(kept.sum())
    edges = []
    for axis in (0, 1):
        for i, j in np.argwhere(kept):
            other = (i + 1, j) if axis == 0 else (i, j + 1)
            if other[axis] < kept.shape[axis] and kept[other]:
                edges.append((number[i, j], number[other], bool(mains[1 - axis][other[1 - axis]])))
    flat = flat[kept]
    drop = 0.24 * len(edges)
    for k in rng.permutation(len(edges)):
        rest = [e for e in edges if e is not None and e is not edges[k]]
        kept_main = drop > 0 and edges[k][2] and rng.random() < 0.7
        if drop > 0 and not kept_main and are_connected(rest, len(flat)):
            edges[k] = None
            drop -= 1
    edges = without_dead_ends([e for e in edges if e is not None])

    # Each street keeps its grid line under the warp and may bulge to a side.
    streets = []
    for a, b, main in edges:
        length = np.linalg.norm(flat[b] - flat[a])
        s = np.linspace(0.0, 1.0, max(8, int(length / 2.5)))[:, None]
        run = flat[b] - flat[a]
        normal = np.array([-run[1], run[0]]) / length
        bulge = rng.normal(0.0, 4.5) * np.sin(np.pi * s) ** 2
        points = place(flat[a] + s * run + bulge * normal)
        style = 'shops' if main and rng.random() < 0.4 else rng.choice(STYLES, p=style_weights)
        streets.append(Street(
            Line(points), int(a), int(b), main,
            lane_m=rng.uniform(3.2, 3.6) if main else rng.uniform(2.7, 3.1),
            parking=bool(rng.random() < (0.35 if main else 0.65)),
            pavement_m=rng.uniform(2.2, 3.6) if main else rng.uniform(1.5, 2.4),
            style=str(style),
        ))
    nodes = place(flat)
    for street in streets:
        for end, node in (('trim_a_m', street.a), ('trim_b_m', street.b)):
            others = [o for o in streets if o is not street and node in (o.a, o.b)]
            setattr(street, end, max(o.half_width_m for o in others) + CORNER_RADIUS_M * 0.8)
    return nodes, streets


def are_connected(edges, count):
    """Whether the nodes that the edges touch are connected."""
    neighbours = [[] for _ in range(count)]
    for a, b, _ in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)
    if any(len(n) == 1 for n in neighbours):
        return False
    used = [k for k, n in enumerate(neighbours) if n]
    if not used:
        return False
    seen, queue = {used[0]}, [used[0]]
    while queue:
        for k in neighbours[queue.pop()]:
            if k not in seen:
                seen.add(k)
                queue.append(k)
    return len(seen) == len(used)


def without_dead_ends(edges):
    """Peel off ends, then keep the largest connected part."""
    while True:
        degree = {}
        for a, b, _ in edges:
            degree[a], degree[b] = degree.get(a, 0) + 1, degree.get(b, 0) + 1
        kept = [e for e in edges if degree[e[0]] > 1 and degree[e[1]] > 1]
        if len(kept) == len(edges):
            break
        edges = kept
    best = []
    rest = list(edges)
    while rest:
        part, queue = {rest[0][0]}, [rest[0][0]]
        while queue:
            node = queue.pop()
            for a, b, _ in rest:
                for k, other in ((a, b), (b, a)):
                    if k == node and other not in part:
                        part.add(other)
                        queue.append(other)
        inside = [e for e in rest if e[0] in part]
        best = max(best, inside, key=len)
        rest = [e for e in rest if e[0] not in part]
    return best


def draw_kerb_rasters(streets, half_m):
    """Signed distance to the kerb with rounded corners, and the nearest street's pavement."""
    px = DISTANCE_PX_M
    count = int(round(2 * half_m / px))
    distance = np.full((count, count), DISTANCE_CAP_M, np.float32)
    pavement = np.full((count, count), 2.0, np.float32)
    for street in streets:
        points = street.line.points[::2]
        if (len(street.line.points) - 1) % 2:
            points = np.concatenate((points, street.line.points[-1:]))
        reach = street.half_width_m + DISTANCE_CAP_M
        low = np.clip(((points.min(0) - reach + half_m) / px).astype(int), 0, count)
        high = np.clip(((points.max(0) + reach + half_m) / px).astype(int) + 1, 0, count)
        x = (np.arange(low[0], high[0]) + 0.5) * px - half_m
        y = (np.arange(low[1], high[1]) + 0.5) * px - half_m
        x, y = x[None, :].astype(np.float32), y[:, None].astype(np.float32)
        nearest = np.full((y.size, x.size), 1e9, np.float32)
        for p, q in zip(points[:-1], points[1:], strict=True):
            run = (q - p).astype(np.float32)
            along = ((x - p[0]) * run[0] + (y - p[1]) * run[1]) / (run @ run)
            np.clip(along, 0, 1, out=along)
            np.minimum(nearest, (x - p[0] - along * run[0]) ** 2
                       + (y - p[1] - along * run[1]) ** 2, out=nearest)
        nearest = np.sqrt(nearest) - np.float32(street.half_width_m)
        view = (slice(low[1], high[1]), slice(low[0], high[0]))
        closer = nearest < distance[view]
        distance[view] = np.where(closer, nearest, distance[view])
        pavement[view] = np.where(closer, np.float32(street.pavement_m), pavement[view])

    # Morphological closing rounds the corners of blocks; straight kerbs keep the exact distance.
    fine = cv2.resize(distance, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    far = (fine >= CORNER_RADIUS_M).astype(np.uint8)
    inside = cv2.distanceTransform(1 - far, cv2.DIST_L2, 5) * (px / 2)
    closed = CORNER_RADIUS_M - inside
    closed = cv2.GaussianBlur(closed, (0, 0), 2.0)
    closed = cv2.resize(closed, (count, count), interpolation=cv2.INTER_AREA)
    near = distance < CORNER_RADIUS_M
    distance = np.where(near, np.minimum(distance, closed + 0.2), distance)
    return (Raster(distance.astype(np.float32), half_m, px),
            Raster(cv2.GaussianBlur(pavement, (0, 0), 3.0), half_m, px))
