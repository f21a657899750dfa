"""What all steps of laying out a city share."""

import cv2
import numpy as np

from training.simulation.city import encode_albedo, Raster


class CityPlan:
    """A city in the making: where the ground is still free, and what its buildings share."""

    def __init__(self, city, builder, rng):
        self.city, self.builder, self.rng = city, builder, rng
        distance = city.kerb_distance
        self.taken = Raster(
            (distance.data < city.pavement_width.data + 0.3).astype(np.uint8), city.half_m,
            distance.px_m)
        self.walls = []
        self.brick = rng.dirichlet([1.5, 1.5, 1.2, 0.8])
        self.tiles = rng.dirichlet([1.5, 1.3, 1.2])
        self.lawn = np.array([0.085, 0.135, 0.045]) * rng.uniform(0.8, 1.3, 3)
        self.tree_density = rng.uniform(0.6, 1.8)
        self.driving_side = 1  # of the line where one drives: 1 left, -1 right
        self.fences = []  # (start, stop) of wanted lines between rear gardens

    def rectangle(self, centre, yaw, along, across):
        """The corners (4, 2) of a rectangle; ``along`` is its side in the direction of yaw."""
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (along / 2, across / 2)
        cos, sin = np.cos(yaw), np.sin(yaw)
        return corners @ np.array([[cos, sin], [-sin, cos]]) + centre

    def free(self, polygon, limit=0.0):
        """Whether at most this share of the ground inside a polygon is taken."""
        if np.abs(polygon).max() > self.city.size_m / 2 + 25.0:
            return False
        view, mask = cover(self.taken, polygon)
        return (self.taken.data[view] * mask).sum() <= limit * mask.sum()

    def take(self, polygon):
        """Mark the ground inside a polygon as taken."""
        view, mask = cover(self.taken, polygon)
        self.taken.data[view] |= mask

    def paint(self, polygon, albedo, grass):
        """Give the land inside a polygon this linear albedo (3,), with or without grass."""
        shape = [np.round(self.city.land_rgb.pixel(polygon) * 16).astype(np.int32)]
        cv2.fillPoly(self.city.land_rgb.data, shape,
                     [int(v) for v in encode_albedo(albedo)], cv2.LINE_AA, 4)
        cv2.fillPoly(self.city.land_grass.data, shape, 255 if grass else 0, cv2.LINE_AA, 4)


def cover(raster: Raster, polygon) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of a raster about a polygon, and 1 there where the polygon covers it."""
    pixels = raster.pixel(polygon)
    low = np.clip(np.floor(pixels.min(0)).astype(int) - 1, 0, raster.data.shape[0] - 2)
    high = np.clip(np.ceil(pixels.max(0)).astype(int) + 2, low + 1, raster.data.shape[0])
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    cv2.fillPoly(mask, [np.round((pixels - low) * 16).astype(np.int32)], 1, shift=4)
    return (slice(low[1], high[1]), slice(low[0], high[0])), mask
