"""Embree ray casting and NumPy shading: camera frames and orthophoto strips.

Legend: N rays; positions and directions in the city's plane (east, north, up).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from .appearance import Day, day_mesh, Surfaces, surfaces, wear_field
from .city import City, MARKING_PX_M, Raster, remap_points, WALL_FIELDS
from .mesh import Material, Mesh

_WALL = {name: k for k, name in enumerate(WALL_FIELDS)}


@dataclass(frozen=True)
class Scene:
    """Everything that a renderer needs of one day; plain arrays, so that it travels to workers."""

    day: Day
    mesh: Mesh
    walls: np.ndarray
    surfaces: Surfaces
    wear: Raster
    car_shade: Raster
    grain_seed: int


def make_scene(city: City, day: Day, grain_seed: int) -> Scene:
    """``grain_seed`` draws what an aerial image does not resolve: give each scene another one."""
    moving, cars = day_mesh(city, day)
    return Scene(day, city.mesh + moving, city.walls, surfaces(city, day), wear_field(city, day),
                _contact_shadows(city, cars), grain_seed)


def _contact_shadows(city, cars):
    count = int(round(2 * city.half_m / 0.5))
    mask = np.zeros((count, count), np.uint8)
    raster = Raster(mask, city.half_m, 0.5)
    for x, y, yaw in cars:
        cos, sin = np.cos(yaw), np.sin(yaw)
        corners = np.array([(2.1, 0.85), (-2.1, 0.85), (-2.1, -0.85), (2.1, -0.85)]) @ np.array(
            [[cos, sin], [-sin, cos]]) + (x, y)
        cv2.fillPoly(mask, [np.round(raster.pixel(corners) * 16).astype(np.int32)], 255,
                     cv2.LINE_AA, 4)
    return Raster(255 - cv2.GaussianBlur(mask, (0, 0), 0.8) // 5 * 4, city.half_m, 0.5)


class Renderer:
    """Casts and shades the rays of one scene."""

    def __init__(self, scene: Scene):
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh

        self.scene, self.day = scene, scene.day
        mesh = scene.mesh
        self._scene = rtcore_scene.EmbreeScene()
        self._triangles = TriangleMesh(self._scene, mesh.vertices, mesh.faces)
        rng = np.random.default_rng([scene.grain_seed, 9])
        self._grain = 128 + 40 * rng.standard_normal((512, 512)).astype(np.float32)
        self._grain = np.clip(cv2.GaussianBlur(self._grain, (0, 0), 0.6), 0, 255)
        self._mottle = _wrapped_noise(rng, 512, 3.0)
        self._clouds = _wrapped_noise(np.random.default_rng([scene.grain_seed, 10]), 512, 28.0)
        self._clouds += 0.45 * _wrapped_noise(rng, 512, 9.0) + 0.2 * _wrapped_noise(rng, 512, 3.0)

    def radiance(self, origins, directions, width_m, spread, time_s=0.0):
        """Linear RGB (N, 3) float32 along rays (N, 3).

        A ray's footprint across is width_m + spread * distance.
        """
        mesh, day = self.scene.mesh, self.day
        hits = self._scene.run(origins, directions, output=1)
        prim = hits['primID']
        struck = np.flatnonzero(prim >= 0)
        out = np.empty((len(origins), 3), np.float32)
        missed = np.flatnonzero(prim < 0)
        if missed.size:
            out[missed] = self._sky(directions[missed], time_s)
        if not struck.size:
            return out
        prim = prim[struck]
        distance = hits['tfar'][struck]
        ray = directions[struck]
        at = origins[struck] + ray * distance[:, None]
        normal = mesh.normal[prim]
        facing = np.einsum('ij,ij->i', normal, ray)
        material = mesh.material[prim]
        leaf = material == Material.LEAF
        normal = np.where(((facing > 0) & ~leaf)[:, None], -normal, normal)
        facing = np.abs(facing)
        width = width_m + spread * distance
        rgb = mesh.rgb[prim].copy()
        mirror = np.zeros(len(prim), np.float32)  # fraction of sky seen by reflection
        open_sky = np.ones(len(prim), np.float32)

        for kind, pyramid in ((Material.ROAD, self.scene.surfaces.road),
                              (Material.LAND, self.scene.surfaces.land)):
            index = np.flatnonzero(material == kind)
            if index.size:
                rgb[index], mirror[index] = self._ground(
                    kind, pyramid, at[index], ray[index], width[index], facing[index])
                open_sky[index] = self.scene.car_shade.sample(
                    at[index, 0], at[index, 1]).astype(np.float32) / 255
        index = np.flatnonzero(material == Material.FACADE)
        if index.size:
            rgb[index], mirror[index] = self._facade(
                mesh.owner[prim[index]], rgb[index], at[index], width[index])
        index = np.flatnonzero((material == Material.ROOF) | (material == Material.PLAIN))
        if index.size:
            rgb[index] *= self._roof_texture(at[index], normal[index], width[index])[:, None]
        gloss = (material == Material.PAINT) | (material == Material.GLASS)
        index = np.flatnonzero(gloss)
        if index.size:
            fresnel = (1 - facing[index]) ** 4
            base = np.where(material[index] == Material.GLASS, 0.10, 0.04)
            mirror[index] = base + (0.65 - base) * fresnel
        rgb[material == Material.GLOW] *= 1.3

        # Ambient light: sky above, bounce from below, less of it between houses.
        between = self.scene.surfaces.open_sky.sample(at[:, 0], at[:, 1]).astype(np.float32) / 255
        ground = material <= Material.LAND
        open_sky *= np.where(ground, between, np.where(normal[:, 2] > 0.5, 1, 0.5 + 0.5 * between))
        up = normal[:, 2:3]
        light = day.sky_rgb * (0.58 + 0.42 * up) * open_sky[:, None]
        light += (day.sky_rgb * 0.12 + day.sun_rgb * 0.13 * day.sun[2]) * (0.5 - 0.5 * up)
        light[leaf] *= 0.75
        if day.sun_rgb.max() > 0:
            towards = normal @ day.sun
            towards = np.where(leaf, np.abs(towards) * 0.75 + 0.25, towards)
            lit = np.flatnonzero(towards > 0.01)
            start = at[lit] + normal[lit] * np.float32(0.03) - ray[lit] * np.float32(0.01)
            start[leaf[lit]] += day.sun * np.float32(0.45)
            blocked = self._scene.run(start.astype(np.float32),
                                      np.broadcast_to(day.sun, start.shape).astype(np.float32),
                                      query='OCCLUDED') == 0
            sun = np.where(blocked, 0.0, towards[lit]).astype(np.float32)
            light[lit] += sun[:, None] * day.sun_rgb
        colour = rgb * light
        index = np.flatnonzero(mirror > 0)
        if index.size:
            n, d = normal[index], ray[index]
            bounced = d - 2 * np.einsum('ij,ij->i', n, d)[:, None] * n
            seen = self._clear_sky(np.maximum(bounced[:, 2], 0.02))
            seen *= np.where(bounced[:, 2] > 0.0, 1.0, 0.35)[:, None]
            share = mirror[index][:, None]
            colour[index] = colour[index] * (1 - share) + share * seen
        if spread > 0:
            haze = (1 - np.exp(-distance / day.haze_m))[:, None]
            colour = colour * (1 - haze) + day.horizon_rgb * 0.85 * haze
        out[struck] = colour
        return out

    # --- surfaces ---

    def _ground(self, kind, pyramid, at, ray, width, facing):
        """Albedo and mirror fraction of carriageway or land, filtered along the view."""
        day, half = self.day, self.scene.surfaces.half_m
        level_of = self._levels(width, facing)
        along = ray[:, :2] / (np.linalg.norm(ray[:, :2], axis=1, keepdims=True) + 1e-6)
        reach = (np.minimum(width / np.maximum(facing, 0.02), 4.0) - width)[:, None] * along
        taps = (0.0,) if float(np.abs(reach).max(initial=0)) < 0.1 else (-1 / 3, 0.0, 1 / 3)
        rgb = np.zeros((len(at), 3), np.float32)
        paint = np.zeros((len(at), 2), np.float32)
        for tap in taps:
            xy = at[:, :2] + np.float32(tap) * reach
            rgb += _lookup(pyramid, half, xy, level_of) / len(taps)
            if kind == Material.ROAD:
                coverage = _lookup(self.scene.surfaces.paint, half, xy, level_of)
                gain = np.clip(MARKING_PX_M / np.maximum(level_of, 0.02), 1.0, 2.5)[:, None]
                paint += np.clip((coverage - 110) * gain + 110, 0, 255) * (
                    coverage > 0) / len(taps)
        rgb = (rgb / 255) ** 2

        # Grain fades where the footprint averages it.
        fine = remap_points(self._grain, at[:, 0] * 28, at[:, 1] * 28, cv2.BORDER_WRAP) / 128 - 1
        broad = remap_points(self._mottle, at[:, 0] * 6.1, at[:, 1] * 6.1, cv2.BORDER_WRAP)
        across = np.sqrt(width * np.minimum(width / np.maximum(facing, 0.05), 3.0))
        rgb *= (1 + fine * np.clip(0.05 / across, 0, 1) * 0.55
                + broad * np.clip(0.35 / across, 0, 1) * 0.10)[:, None]
        mirror = np.zeros(len(at), np.float32)
        if kind == Material.ROAD:
            left = self.scene.wear.sample(at[:, 0], at[:, 1]).astype(np.float32) / 255
            left = np.clip(left * (1 + 0.5 * fine * np.clip(0.05 / across, 0, 1))
                           + 0.25 * broad * np.clip(0.35 / across, 0, 1) * day.wear, 0, 1)
            dim = 1 - 0.25 * day.wet
            for share, colour in zip(paint.T / 255, ((0.62, 0.62, 0.60), (0.58, 0.42, 0.08)),
                                     strict=True):
                share = (share * left)[:, None]
                rgb = rgb * (1 - share) + share * (np.array(colour, np.float32) * dim)
            if day.wet:
                sheen = np.clip(0.55 + 0.6 * broad, 0.15, 1.0) * day.wet
                mirror = (sheen * (0.02 + 0.65 * (1 - facing) ** 5)).astype(np.float32)
        return rgb, mirror

    @staticmethod
    def _levels(width, facing):
        """Footprint used to choose the mip level: three taps share the longer axis."""
        return np.maximum(width, np.minimum(width / np.maximum(facing, 0.02), 4.0) / 3)

    def _facade(self, owner, rgb, at, width):
        """Windows, doors, shop fronts and courses in the wall's own coordinates."""
        wall = self.scene.walls[owner]

        def of(name):
            return wall[:, _WALL[name]]

        u = (at[:, 0] - of('x')) * of('tx') + (at[:, 1] - of('y')) * of('ty')
        v = at[:, 2] - of('base')
        storey, pitch = of('storey'), of('pitch')
        floor = np.floor(v / storey)
        height = v - floor * storey
        column = np.floor(u / pitch)
        across = np.abs(u - (column + 0.5) * pitch)
        soft = np.maximum(width, 0.015)

        def inside(value, low, high):
            return np.clip(0.5 + (value - low) / soft, 0, 1) * np.clip(
                0.5 + (high - value) / soft, 0, 1)

        roll = _hash(of('seed') + 31 * column + 977 * floor)
        shop = (of('shop') > 0) & (floor == 0)
        door = (of('door') > 0) & (floor == 0) & (_hash(of('seed') + 7 * column) < 0.4)
        half_w = np.where(shop, 0.44 * pitch, np.where(door, 0.48, of('win_w') / 2))
        low = np.where(shop, 0.5, np.where(door, 0.05, of('sill')))
        high = np.where(shop, 2.45, np.where(door, 2.1, of('sill') + of('win_h')))
        allowed = ((floor >= 0) & (v < of('top') - 0.3) & (of('win_w') > 0)
                   & (u > 0) & (u < of('width'))).astype(np.float32)
        opening = inside(across, -1.0, half_w) * inside(height, low, high) * allowed
        frame = inside(across, -1.0, half_w + 0.09) * inside(
            height, low - 0.1, high + 0.12) * allowed
        bar = np.clip(0.5 + (0.035 - across) / soft, 0, 1) * ~door * ~shop

        # Courses of brick or stone, damp at the foot, grain drawn for this view only.
        fine = remap_points(self._grain, (u + of('seed') % 97) * 24, v * 24,
                            cv2.BORDER_WRAP) / 128 - 1
        broad = remap_points(self._mottle, u * 3 + of('seed') % 89, v * 2, cv2.BORDER_WRAP)
        fade = np.clip(0.04 / width, 0, 1)
        mortar = (np.mod(v, 0.15) < 0.025) * of('brick') * np.clip(0.02 / width, 0, 1) ** 2
        tone = 1 + 0.35 * fine * fade + 0.07 * broad - 0.25 * np.clip(0.5 - v, 0, 0.5)
        rgb = rgb * tone[:, None] + (0.08 * mortar)[:, None]
        rgb = rgb * (1 - frame)[:, None] + 0.55 * frame[:, None]
        panes = np.where(roll < 0.25, 0.22, 0.03 + 0.06 * roll)[:, None] * np.ones(3, np.float32)
        leafs = wall[:, [_WALL['dr'], _WALL['dg'], _WALL['db']]]
        fill = np.where(door[:, None], leafs, panes)
        share = (opening * (1 - 0.8 * bar))[:, None]
        rgb = rgb * (1 - share) + fill * share
        sign = (inside(height, 2.55, 3.05) * shop * allowed)[:, None]
        rgb = rgb * (1 - sign) + np.clip(leafs * 1.6 + 0.02, 0, 0.8) * sign
        mirror = np.where(door, 0.0, opening * (0.12 + 0.2 * roll)).astype(np.float32)
        return rgb.astype(np.float32), mirror

    def _roof_texture(self, at, normal, width):
        rows = np.sin(at[:, 2] * (2 * np.pi / 0.28)) * (normal[:, 2] < 0.97)
        fine = remap_points(self._grain, at[:, 0] * 20, (at[:, 1] + at[:, 2]) * 20,
                            cv2.BORDER_WRAP) / 128 - 1
        broad = remap_points(self._mottle, at[:, 0] * 4.3, at[:, 1] * 4.3, cv2.BORDER_WRAP)
        return (1 + (0.10 * rows + 0.3 * fine) * np.clip(0.06 / width, 0, 1)
                + 0.08 * broad * np.clip(0.4 / width, 0, 1)).astype(np.float32)

    # --- sky ---

    def _clear_sky(self, up):
        blend = np.clip(up, 0, 1)[:, None] ** 0.45
        return self.day.horizon_rgb * (1 - blend) + self.day.zenith_rgb * blend

    def _sky(self, directions, time_s):
        """Gradient and a cloud layer: a plane of wrapped noise overhead, so no seam."""
        up = directions[:, 2]
        rgb = self._clear_sky(up)
        plane = 95.0 / np.maximum(up + 0.06, 0.03)[:, None] * directions[:, :2]
        field = remap_points(self._clouds, plane[:, 0] + 1.3 * time_s, plane[:, 1] + 0.5 * time_s,
                             cv2.BORDER_WRAP)
        day = self.day
        threshold = 1.6 * (0.5 - day.cloud)
        cover = np.clip((field - threshold) * 0.9, 0, 1) * np.clip(up * 9, 0, 1)
        if day.cloud >= 1.0:
            return rgb * (1 + 0.07 * field * np.clip(up * 9, 0, 1))[:, None]
        white = np.float32(0.95) - 0.12 * np.clip(field, 0, 2)
        return rgb * (1 - cover[:, None]) + (cover * white)[:, None]


def _lookup(pyramid, half_m, xy, width):
    """Bilinear values (N, channels) at (N, 2) from the mip level whose pixel fits the width."""
    level = np.log2(np.maximum(width, 1e-3) * (pyramid[0].shape[0] / (2 * half_m)))
    level = np.clip(np.round(level), 0, len(pyramid) - 1).astype(np.int32)
    out = np.empty((len(xy), pyramid[0].shape[2]), np.float32)
    for k in np.flatnonzero(np.bincount(level)):
        index = np.flatnonzero(level == k)
        step = 2 * half_m / pyramid[k].shape[0]
        position = (xy[index] + half_m) / step - 0.5
        out[index] = remap_points(pyramid[k], position[:, 0].astype(np.float32),
                                  position[:, 1].astype(np.float32))
    return out


def _hash(value):
    """Pseudo-random [0, 1) of whole numbers."""
    x = np.sin(np.mod(value, 4096.0) * 12.9898) * 43758.5453
    return (x - np.floor(x)).astype(np.float32)


def _wrapped_noise(rng, count, sigma):
    """(count, count) float32 noise of unit variance that tiles."""
    noise = rng.standard_normal((count, count)).astype(np.float32)
    pad = int(4 * sigma)
    noise = cv2.GaussianBlur(np.pad(noise, pad, mode='wrap'), (0, 0), sigma)[pad:-pad, pad:-pad]
    return np.ascontiguousarray(noise / noise.std())


# --- the camera --------------------------------------------------------------------------------

@dataclass(frozen=True)
class RobotcarCamera:
    """RobotCar's stereo_narrow_left scaled to the image, with a mild barrel distortion.

    The distorted radius is r (1 + k1 r^2 + k2 r^4) of the undistorted one, in units of the focal
    length.
    """

    width_px: int
    height_px: int
    k1: float = -0.075
    k2: float = 0.012
    focal_scale: float = 1.0   # below 1: a wider lens than RobotCar's

    @property
    def scale(self) -> float:
        return self.width_px / 1280.0

    @property
    def f_px(self) -> float:
        return 964.828979 * self.scale * self.focal_scale

    @property
    def cx_px(self) -> float:
        return (643.788025 + 0.5) * self.scale - 0.5

    @property
    def cy_px(self) -> float:
        return (484.407990 + 0.5) * self.scale - 0.5

    def lut(self) -> np.ndarray:
        """(H*W, 2): for each pixel of the undistorted image its (u, v) in the distorted one."""
        u, v = np.meshgrid(np.arange(self.width_px), np.arange(self.height_px))
        x, y = (u - self.cx_px) / self.f_px, (v - self.cy_px) / self.f_px
        factor = self._factor(x * x + y * y)
        return np.stack((x * factor * self.f_px + self.cx_px, y * factor * self.f_px + self.cy_px),
                        axis=-1).reshape(-1, 2)

    def _factor(self, r2):
        return 1 + self.k1 * r2 + self.k2 * r2 * r2

    def rays(self) -> np.ndarray:
        """Unit directions (H, W, 3) of the distorted image: x right, y down, z forward."""
        u, v = np.meshgrid(np.arange(self.width_px), np.arange(self.height_px))
        xd, yd = (u - self.cx_px) / self.f_px, (v - self.cy_px) / self.f_px
        rd = np.sqrt(xd * xd + yd * yd)
        r = rd.copy()
        for _ in range(12):  # Newton on r factor(r^2) = rd
            r -= (r * self._factor(r * r) - rd) / (1 + 3 * self.k1 * r ** 2 + 5 * self.k2 * r ** 4)
        grow = np.where(rd > 1e-9, r / np.maximum(rd, 1e-9), 1.0)
        rays = np.stack((xd * grow, yd * grow, np.ones_like(xd)), axis=-1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    def project(self, points_frd) -> np.ndarray:
        """Points (..., 3) in the camera's FRD frame to (u, v) in the distorted image."""
        x, y = points_frd[..., 1] / points_frd[..., 0], points_frd[..., 2] / points_frd[..., 0]
        factor = self._factor(x * x + y * y)
        return np.stack((x * factor * self.f_px + self.cx_px,
                         y * factor * self.f_px + self.cy_px), axis=-1)


class CameraRenderer:
    """Renders frames of one camera in one scene."""

    def __init__(self, renderer: Renderer, model: RobotcarCamera):
        self.renderer, self.model = renderer, model
        rays = model.rays()
        self._rays_frd = rays[..., [2, 0, 1]].reshape(-1, 3).astype(np.float64)
        u, v = np.meshgrid(np.linspace(-1, 1, model.width_px), np.arange(model.height_px))
        edge = (0.86 + 0.055 * u ** 2) * model.height_px  # the bonnet hides what lies below
        self._bonnet = (v > edge).ravel()
        self._bonnet_shade = np.clip(0.10 + 0.16 * (v - edge) / model.height_px, 0.05, 0.3).ravel()
        self._seen = np.flatnonzero(~self._bonnet)
        radius2 = (self._rays_frd[:, 1] ** 2 + self._rays_frd[:, 2] ** 2)
        self._vignette = (1 - 0.35 * radius2).astype(np.float32).reshape(
            model.height_px, model.width_px, 1)

    def linear(self, position, local_from_frd, time_s=0.0) -> np.ndarray:
        """Radiance (H, W, 3); ``local_from_frd`` (3, 3) turns camera axes into east, north, up."""
        model = self.model
        directions = (self._rays_frd[self._seen] @ np.asarray(local_from_frd).T).astype(np.float32)
        origins = np.broadcast_to(np.asarray(position, np.float32), directions.shape)
        image = np.empty((len(self._rays_frd), 3), np.float32)
        image[self._seen] = self.renderer.radiance(
            np.ascontiguousarray(origins), np.ascontiguousarray(directions), 0.0, 1 / model.f_px,
            time_s)
        sky = self.renderer.day.horizon_rgb * 0.3
        image[self._bonnet] = (self._bonnet_shade[self._bonnet, None] * sky).astype(np.float32)
        return image.reshape(model.height_px, model.width_px, 3)

    def bayer(self, position, local_from_frd, rng, time_s=0.0, exposure=1.0) -> np.ndarray:
        """The sensor's 8-bit gbrg mosaic: blur, vignetting, auto-exposure, noise, gamma."""
        day = self.renderer.day
        image = self.linear(position, local_from_frd, time_s) * day.gains * self._vignette
        image = cv2.GaussianBlur(image, (0, 0), 0.7)  # enough that the mosaic makes no colours
        rows = slice(int(0.42 * self.model.height_px), int(0.84 * self.model.height_px))
        level = float(np.percentile(image[rows, ::4, 1], 60))
        image *= exposure * day.brightness ** 2.2 / max(level, 0.01)
        mosaic = image[..., 1].copy()                     # G B
        mosaic[0::2, 1::2] = image[0::2, 1::2, 2]         # R G
        mosaic[1::2, 0::2] = image[1::2, 0::2, 0]
        mosaic = np.clip(mosaic, 0, 4)
        noise = rng.standard_normal(mosaic.shape, dtype=np.float32)
        mosaic += noise * np.sqrt(1e-5 + 4e-4 * mosaic)
        # A soft shoulder keeps bright walls and sky from clipping flat.
        mosaic = np.clip(mosaic, 0, None)
        mosaic = mosaic * (1 + mosaic / 6) / (1 + mosaic)
        return np.clip(255 * (mosaic * 1.35) ** (1 / 2.2) + 0.5, 0, 255).astype(np.uint8)


# --- the orthophoto ----------------------------------------------------------------------------

@dataclass(frozen=True)
class AerialLook:
    """How the aerial camera sees: off-nadir lean, exposure, haze, noise."""

    lean: tuple[float, float]  # horizontal shift a metre of height
    gain: float
    haze: float
    noise: float
    blur_px: float


def draw_aerial_look(seed: int, day: Day) -> AerialLook:
    rng = np.random.default_rng([seed, 11, day.number])
    direction, amount = rng.uniform(0, 2 * np.pi), rng.uniform(0.0, 0.13)
    white = float((day.sun_rgb * day.sun[2] + day.sky_rgb).mean())
    return AerialLook((float(amount * np.cos(direction)), float(amount * np.sin(direction))),
                      float(rng.uniform(0.75, 1.1) / white), float(rng.uniform(0.0, 0.04)),
                      float(rng.uniform(0.006, 0.014)), float(rng.uniform(0.4, 0.8)))


def render_aerial(renderer: Renderer, city: City, look: AerialLook, x, y, px_m, rng, samples=2):
    """8-bit RGB (rows, cols, 3) of pixels with centres at local x, y, each (rows, cols)."""
    total = np.zeros((*x.shape, 3), np.float32)
    up = np.array([*look.lean, 1.0])
    up /= np.linalg.norm(up)
    for k in range(samples):
        # Rotated-grid offsets inside the pixel.
        dx, dy = ((0, 0), (0.25, 0.25), (-0.25, -0.25))[k if samples == 1 else k + 1]
        px, py = (x + dx * px_m).ravel(), (y + dy * px_m).ravel()
        ground = np.stack((px, py, city.ground(px, py)), axis=-1)
        origins = (ground + 120.0 * up).astype(np.float32)
        directions = np.broadcast_to((-up).astype(np.float32), origins.shape)
        total += renderer.radiance(np.ascontiguousarray(origins), np.ascontiguousarray(directions),
                                   px_m * 0.8, 0.0).reshape(total.shape)
    image = total / samples * look.gain * renderer.day.gains
    image = image * (1 - look.haze) + look.haze
    image = np.clip(image, 0, None) ** (1 / 2.2)
    image += look.noise * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(255 * image + 0.5, 0, 255).astype(np.uint8)
