"""Triangle soup with materials: the one geometry that every view of the world is cast against."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Material(IntEnum):
    """What the renderer does at a hit."""

    ROAD = 0      # carriageway: asphalt and markings from the day's rasters
    LAND = 1      # pavements, gardens, lawns, car parks: land rasters
    FACADE = 2    # windows, doors and texture by wall coordinates; ``owner`` is the wall
    ROOF = 3
    PLAIN = 4     # posts, kerbs, walls, chimneys: the triangle's own colour
    LEAF = 5      # foliage: colour seen through leaves as well
    PAINT = 6     # car bodies: colour and a sky reflection
    GLASS = 7     # dark, mostly sky reflection
    GLOW = 8      # retro-reflecting signs and cones: brighter than their shading


@dataclass(frozen=True)
class Mesh:
    """vertices (V, 3) float32 metres, faces (T, 3) int32, and one entry a triangle in the r."""

    vertices: np.ndarray
    faces: np.ndarray
    material: np.ndarray  # (T,) uint8
    rgb: np.ndarray       # (T, 3) float32, linear albedo
    normal: np.ndarray    # (T, 3) float32, unit
    owner: np.ndarray     # (T,) int32, wall number where the material is FACADE

    def __add__(self, other: 'Mesh') -> 'Mesh':
        joined = [
            np.concatenate((a, b)) for a, b in (
                (self.vertices, other.vertices),
                (self.faces, other.faces + np.int32(len(self.vertices))),
                (self.material, other.material), (self.rgb, other.rgb),
                (self.normal, other.normal), (self.owner, other.owner),
            )
        ]
        return Mesh(*joined)


class MeshBuilder:
    """Collects parts and joins them once."""

    def __init__(self):
        self._vertices, self._faces, self._per_face = [], [], []
        self._count = 0

    def add(self, vertices, faces, material, rgb, owner=-1, normal=None):
        """Add triangles; all but the first two are one for all or one a triangle.

        Without ``normal`` it follows from the corners.
        """
        vertices = np.asarray(vertices, np.float32)
        faces = np.asarray(faces, np.int32)
        count = len(faces)
        self._per_face.append((
            np.broadcast_to(np.asarray(material, np.uint8), (count,)),
            np.broadcast_to(np.asarray(rgb, np.float32), (count, 3)),
            np.broadcast_to(np.asarray(np.nan if normal is None else normal, np.float32),
                            (count, 3)),
            np.broadcast_to(np.asarray(owner, np.int32), (count,)),
        ))
        self._vertices.append(vertices)
        self._faces.append(faces + np.int32(self._count))
        self._count += len(vertices)

    def quads(self, corners, material, rgb, owner=-1, normal=None):
        """Add quadrilaterals (Q, 4, 3), each in order round its edge."""
        corners = np.asarray(corners, np.float32).reshape(-1, 4, 3)
        base = 4 * np.arange(len(corners))[:, None]
        faces = np.concatenate((base + [0, 1, 2], base + [0, 2, 3]))
        if np.ndim(rgb) == 2:
            rgb = np.concatenate((rgb, rgb))
        if np.ndim(owner) == 1:
            owner = np.concatenate((owner, owner))
        self.add(corners.reshape(-1, 3), faces, material, rgb, owner, normal)

    def box(self, centre, yaw, size, material, rgb, taper=1.0):
        """Add an upright box: ``centre`` its base's middle, ``size`` (along, across, up)."""
        self.add(*box_mesh(centre, yaw, size, taper), material, rgb)

    def build(self) -> Mesh:
        columns = zip(*self._per_face, strict=True)
        material, rgb, normal, owner = (np.concatenate(column) for column in columns)
        vertices, faces = np.concatenate(self._vertices), np.concatenate(self._faces)
        unknown = np.isnan(normal[:, 0])
        a, b, c = (vertices[faces[unknown, k]] for k in range(3))
        across = np.cross(b - a, c - a)
        normal[unknown] = across / (np.linalg.norm(across, axis=1, keepdims=True) + 1e-12)
        return Mesh(vertices, faces, material, rgb, normal, owner)


_BOX_CORNERS = np.array([
    [-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0], [-1, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1],
], np.float64)
_BOX_FACES = np.array([
    [0, 1, 5], [0, 5, 4], [1, 2, 6], [1, 6, 5], [2, 3, 7], [2, 7, 6], [3, 0, 4], [3, 4, 7],
    [4, 5, 6], [4, 6, 7],
], np.int32)


def box_mesh(centre, yaw, size, taper=1.0):
    """Vertices (8, 3) and faces (10, 3) of an upright box without a floor; top scaled by taper."""
    along, across, up = size
    corners = _BOX_CORNERS * (along / 2, across / 2, up)
    corners[4:, :2] *= taper
    return turned(corners, yaw) + np.asarray(centre), _BOX_FACES


def turned(points, yaw):
    """Points (..., 3) turned about z by yaw."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    return np.stack((cos * x - sin * y, sin * x + cos * y, z), axis=-1)
