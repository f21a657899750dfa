"""The ground of a city: its terrain, its mesh, and the empty rasters of its land."""

import numpy as np

from training.simulation.city import above_terrain, encode_albedo, KERB_M, LAND_PX_M, Raster
from training.simulation.mesh import Material

GROUND_STEP_M = 1.5


def draw_terrain_waves(rng, half_m):
    """Plane waves scaled so that the steepest slope is 2.5 to 5 %."""
    count = 6
    length = rng.uniform(220.0, 700.0, count)
    direction = rng.uniform(0, 2 * np.pi, count)
    k = 2 * np.pi / length
    waves = np.stack(
        (k * np.cos(direction), k * np.sin(direction), rng.uniform(0, 2 * np.pi, count),
         rng.uniform(0.3, 1.0, count) * length), axis=1)
    g = np.linspace(-half_m, half_m, 40)
    x, y = np.meshgrid(g, g)
    cos = np.cos(np.multiply.outer(x, waves[:, 0]) + np.multiply.outer(y, waves[:, 1])
                 + waves[:, 2]) * waves[:, 3]
    slope = np.hypot(cos @ waves[:, 0], cos @ waves[:, 1]).max()
    waves[:, 3] *= rng.uniform(0.025, 0.05) / slope
    return waves


def add_ground(city, builder):
    """Carriageway and land sheets, cut apart along the kerb line, and the kerb's face between."""
    n = int(np.ceil(2 * city.half_m / GROUND_STEP_M)) + 1
    g = np.linspace(-city.half_m, city.half_m, n)
    x, y = (v.ravel() for v in np.meshgrid(g, g))
    distance = city.kerb_distance.sample(x, y).astype(np.float64)
    distance[np.abs(distance) < 0.01] = 0.01
    z = city.terrain(x, y)
    i = np.arange(n * n).reshape(n, n)
    a, b, c, d = i[:-1, :-1].ravel(), i[:-1, 1:].ravel(), i[1:, 1:].ravel(), i[1:, :-1].ravel()
    triangles = np.concatenate((np.stack((a, b, c), 1), np.stack((a, c, d), 1)))
    on_road = distance[triangles] < 0
    roads = on_road.sum(1)
    xyz = np.stack((x, y, z + above_terrain(distance)), 1)
    grey = (0.3, 0.3, 0.3)
    for whole, material in ((3, Material.ROAD), (0, Material.LAND)):
        builder.add(*_compact(xyz, triangles[roads == whole]), material, grey)

    # A mixed triangle: turn it so that its lone vertex comes first.
    mixed, road = triangles[(roads == 1) | (roads == 2)], on_road[(roads == 1) | (roads == 2)]
    lone_is_road = road.sum(1) == 1
    lone = np.argmax(road == lone_is_road[:, None], axis=1)
    order = (lone[:, None] + np.arange(3)) % 3
    mixed = np.take_along_axis(mixed, order, 1)
    flat = np.stack((x, y, z), 1)
    A, B, C = (flat[mixed[:, k]] for k in range(3))
    dA, dB, dC = (distance[mixed[:, k]][:, None] for k in range(3))
    P, Q = A + (B - A) * dA / (dA - dB), A + (C - A) * dA / (dA - dC)
    up = np.array([0, 0, KERB_M])
    heights = np.stack((above_terrain(dA), above_terrain(dB), above_terrain(dC)))
    A, B, C = (v + h * [0, 0, 1] for v, h in zip((A, B, C), heights, strict=True))
    for lone_road in (True, False):
        m = lone_is_road == lone_road
        lone_up, pair_up = (0 * up, up) if lone_road else (up, 0 * up)
        corner = np.stack((A, P + lone_up, Q + lone_up), 1)[m]
        builder.add(corner.reshape(-1, 3), np.arange(3 * len(corner)).reshape(-1, 3),
                    Material.ROAD if lone_road else Material.LAND, grey)
        builder.quads(np.stack((P + pair_up, B, C, Q + pair_up), 1)[m],
                      Material.LAND if lone_road else Material.ROAD, grey)
    builder.quads(np.stack((P, Q, Q + up, P + up), 1), Material.PLAIN, (0.36, 0.35, 0.33))


def _compact(vertices, faces):
    used, renumbered = np.unique(faces, return_inverse=True)
    return vertices[used], renumbered.reshape(faces.shape)


def add_far_ground(city, builder):
    """Fields, out to the distance at which haze hides them."""
    half, cells = city.half_m, 8
    g = np.linspace(-5 * half, 5 * half, 5 * cells + 1)
    x, y = np.meshgrid(g, g)
    xyz = np.stack((x, y, city.terrain(x, y) + KERB_M - 0.02), -1)
    quads = np.stack((xyz[:-1, :-1], xyz[:-1, 1:], xyz[1:, 1:], xyz[1:, :-1]), 2)
    centre = quads[..., :2].mean(2)
    outside = np.abs(centre).max(-1) > half
    builder.quads(quads[outside], Material.PLAIN, (0.10, 0.12, 0.06))


def make_empty_rasters(half_m, rng):
    """The land's colour, its grass and the mask of buildings, of a city without plots."""
    count = int(round(2 * half_m / LAND_PX_M))
    rgb = np.empty((count, count, 3), np.uint8)
    rgb[:] = encode_albedo(np.array([0.10, 0.13, 0.055]) * rng.uniform(0.8, 1.25, 3))
    grass = np.full((count, count), 255, np.uint8)
    mask = np.zeros((int(round(2 * half_m)),) * 2, np.uint8)
    return (Raster(rgb, half_m, LAND_PX_M), Raster(grass, half_m, LAND_PX_M),
            Raster(mask, half_m, 1.0))
