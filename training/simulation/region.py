"""Another region than an ordinary town: its blocks, its colours, its winter, and the car there."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .appearance import Day, encode_surface, make_pyramid, smooth_noise, Surfaces
from .city import BLOCK_M, WALL_FIELDS
from .drive import CAMERA_HEIGHT_M
from .mesh import Material
from .renderer import RobotcarCamera, Scene

SNOW_ALBEDO = np.array([0.78, 0.80, 0.84], np.float32)
# Albedo here from that of an ordinary town: red earth for green, pale roads, other walls.
_RED_EARTH = np.array([[0.2, 0.9, 0.1], [0.1, 0.45, 0.1], [0.05, 0.2, 0.1]], np.float32)
_PALE_ROAD = np.diag([3.0, 2.8, 2.4]).astype(np.float32)
_OTHER_WALLS = np.array([[0.2, 0.2, 0.7], [0.2, 0.7, 0.2], [0.9, 0.2, 0.1]], np.float32)
_DRY_LEAVES = np.diag([2.0, 1.1, 0.9]).astype(np.float32)


@dataclass(frozen=True)
class Region:
    """What a region has that an ordinary town has not; the defaults are those of a town.

    ``snow`` is the share of the ground under snow on all days that are driven; the orthophoto is
    of another season.
    """

    camera_height_m: float = CAMERA_HEIGHT_M
    view_deg: float | None = None                 # horizontal; None: RobotCar's lens
    block_m: tuple[float, float] = BLOCK_M
    red_earth: bool = False
    snow: float = 0.0

    def camera(self, width_px: int, height_px: int) -> RobotcarCamera:
        model = RobotcarCamera(width_px, height_px)
        if self.view_deg is None:
            return model
        f_px = width_px / 2 / np.tan(np.radians(self.view_deg) / 2)
        return replace(model, focal_scale=float(f_px / model.f_px))

    def season(self, day: Day) -> Day:
        """The day as it is driven."""
        return replace(day, leaf=0.0, wear=0.7) if self.snow else day

    def dress(self, scene: Scene, snowed: bool) -> Scene:
        """The scene in the colours of the region, under its snow if it is of a drive."""
        if self.red_earth:
            scene = _with_colours(scene)
        return _with_snow(scene, self.snow) if snowed and self.snow else scene


def _with_colours(scene: Scene) -> Scene:
    surfaces, mesh = scene.surfaces, scene.mesh
    rgb = mesh.rgb @ _OTHER_WALLS.T
    for material, matrix in ((Material.LAND, _RED_EARTH), (Material.LEAF, _DRY_LEAVES)):
        chosen = mesh.material == material
        rgb[chosen] = mesh.rgb[chosen] @ matrix.T
    walls = scene.walls.copy()
    for names in ('rgb', ('dr', 'dg', 'db')):
        columns = [WALL_FIELDS.index(name) for name in names]
        walls[:, columns] = np.clip(walls[:, columns] @ _OTHER_WALLS.T, 0.0, 0.9)
    return replace(
        scene, mesh=replace(mesh, rgb=np.clip(rgb, 0.0, 0.9)), walls=walls,
        surfaces=replace(
            surfaces, road=_changed(surfaces.road, lambda albedo: albedo @ _PALE_ROAD.T),
            land=_changed(surfaces.land, lambda albedo: albedo @ _RED_EARTH.T)))


def _with_snow(scene: Scene, share: float) -> Scene:
    """Snow on the land, less of it on the carriageway, on roofs and on cars."""
    rng = np.random.default_rng([scene.grain_seed, 12])
    surfaces: Surfaces = scene.surfaces
    count = surfaces.land[0].shape[0]
    across = 2 * surfaces.half_m
    field = 0.6 * smooth_noise(rng, count, across / 12) + 0.5 * smooth_noise(
        rng, count, across / 2)
    on_land = np.clip(share * (1.0 + 0.25 * field), 0.0, 1.0)[..., None]
    on_road = np.clip(share - 0.4 + 0.5 * field, 0.0, 0.95)[..., None]
    left = 1.0 - cv2.resize(on_road, surfaces.paint[0].shape[1::-1])[..., None]
    mesh = scene.mesh
    rgb = mesh.rgb.copy()
    lying = np.isin(mesh.material, (Material.ROOF, Material.PAINT, Material.GLASS)) & (
        np.abs(mesh.normal[:, 2]) > 0.4)
    rgb[lying] += share * (SNOW_ALBEDO - rgb[lying])
    return replace(
        scene, mesh=replace(mesh, rgb=rgb), surfaces=replace(
            surfaces,
            road=_changed(surfaces.road, lambda a: a + on_road * (SNOW_ALBEDO - a)),
            land=_changed(surfaces.land, lambda a: a + on_land * (SNOW_ALBEDO - a)),
            paint=make_pyramid(np.uint8(surfaces.paint[0] * left + 0.5))))


def _changed(pyramid: list[np.ndarray],
             change: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """A pyramid of a surface whose albedo is changed."""
    return make_pyramid(encode_surface(change((pyramid[0].astype(np.float32) / 255.0) ** 2)))
