"""The simulated world: geometry that agrees between views, formats, determinism."""

from dataclasses import replace
from datetime import datetime
import json
import shutil

import cv2
import numpy as np
import pytest

pytest.importorskip('embreex')
pytest.importorskip('rasterio')

from training.simulation import make_world  # noqa: I001
from training.simulation.appearance import day_mesh, draw_day
from training.simulation.city import MARKING_PX_M, Raster
from training.simulation.city_planning.planner import build_city
from training.simulation.drive import (
    city_surface, drive, ENU_FROM_NED, gnss_error, INS_EXTRINSIC, Poses, roll_pitch_yaw, rotation,
    same_route, visual_odometry,
)
from training.simulation.region import Region
from training.simulation.renderer import RobotcarCamera, CameraRenderer, make_scene, Renderer
from training.simulation.robotcar_writer import Georeference, OrthophotoWriter
from datetime import UTC

SEED, SIZE_M, PX_M = 3, 300.0, 0.3
MODEL = RobotcarCamera(320, 240)
WORLD = {
    'duration_s': 12.0, 'rate_hz': 0.5, 'image_size': (320, 240), 'jobs': 1, 'ortho_px_m': PX_M,
    'city_size_m': SIZE_M, 'progress': False,
}


@pytest.fixture(scope='module')
def city():
    return build_city(SEED, SIZE_M)


@pytest.fixture(scope='module')
def renderer(city):
    return Renderer(make_scene(city, draw_day(SEED, 0), 1))


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    out = tmp_path_factory.mktemp('world')
    return out, make_world(out, SEED, **WORLD)[0]


def _start_us(name):
    start = datetime.strptime(name, '%Y-%m-%d-%H-%M-%S').replace(tzinfo=UTC)
    return int(start.timestamp()) * 1_000_000


def _table(path, columns):
    return np.genfromtxt(path, delimiter=',', skip_header=1, usecols=columns)


def _looking_along(city, street, s):
    """A level camera over the lane at s: position and local_from_frd."""
    spot, ahead = street.line.offset(s, street.lane_m / 2), street.line.tangent(s)
    z = float(city.ground(spot[:1], spot[1:])[0]) + 1.52
    axes = np.stack(([*ahead, 0], [ahead[1], -ahead[0], 0], [0, 0, -1]), axis=1)
    return np.array([*spot, z]), axes


def test_one_route_is_driven_to_its_end_on_every_day(city):
    route = same_route(city, SEED, 200.0)
    assert np.linalg.norm(np.diff(route, axis=0), axis=1).sum() == pytest.approx(200.0, abs=2.0)
    days = [drive(replace(city, trajectory=route), SEED, day, 300.0) for day in (0, 1)]
    assert days[0].duration_s != days[1].duration_s < 300.0
    for day in days:
        on_road_m = day.position[:, :2]
        apart_m = np.linalg.norm(on_road_m[::50, None] - route[None], axis=2)
        assert apart_m.min(1).max() < 3.0          # the camera is ahead of the rear axle
        assert np.linalg.norm(on_road_m[-1] - route[-1]) < 25.0


def test_lut_maps_the_undistorted_image_onto_the_rays_of_the_distorted_one():
    lut = MODEL.lut().reshape(240, 320, 2)
    rays = MODEL.rays()
    for v, u in ((20, 15), (120, 160), (200, 300)):
        ray = np.array([(u - MODEL.cx_px) / MODEL.f_px, (v - MODEL.cy_px) / MODEL.f_px, 1.0])
        source_u, source_v = lut[v, u].astype(np.float32)
        seen = np.array([cv2.remap(rays[..., c].astype(np.float32), source_u.reshape(1, 1),
                                   source_v.reshape(1, 1), cv2.INTER_LINEAR)[0, 0]
                         for c in range(3)])
        assert np.allclose(seen / seen[2], ray, atol=3e-4)


def test_a_wide_lens_has_its_field_of_view_and_exact_rays():
    wide = Region(view_deg=130.0).camera(320, 240)
    assert np.degrees(2 * np.arctan(160.0 / wide.f_px)) == pytest.approx(130.0)
    u, v = np.meshgrid(np.arange(320), np.arange(240))
    assert wide.project(wide.rays()[..., [2, 0, 1]]) == pytest.approx(
        np.stack((u, v), -1), abs=1e-6)


def test_a_camera_of_another_height_rides_there(city):
    for height_m in (1.52, 2.3):
        motion = drive(city, SEED, 0, 6.0, height_m)
        above_m = motion.position[:, 2] - city_surface(city)(*motion.position[:, :2].T)
        assert above_m.mean() == pytest.approx(height_m, abs=0.1)


def test_snow_and_colours_of_a_region_change_what_is_seen_and_not_where_it_is(city):
    town = make_scene(city, draw_day(SEED, 0), 1)
    assert Region().dress(town, True) is town
    region = Region(red_earth=True, snow=0.85)
    above, driven = region.dress(town, False), region.dress(town, True)
    red, green, _ = above.surfaces.land[3].reshape(-1, 3).mean(0)
    assert red > 1.2 * green                     # where the town is green
    assert driven.surfaces.land[3].mean() > above.surfaces.land[3].mean() + 40
    for scene in (above, driven):
        assert np.array_equal(scene.mesh.vertices, town.mesh.vertices)


def test_lut_of_the_full_size_has_the_published_byte_count():
    assert RobotcarCamera(1280, 960).lut().astype(np.float64).nbytes == 19_660_800


def test_a_known_point_is_struck_by_the_ray_of_the_pixel_it_projects_to(city, renderer):
    corners = np.concatenate([marking.polygon[:2] for marking in city.markings])
    corners = np.column_stack((corners, city.ground(*corners.T)))
    lamps = np.array([p for name, p in city.landmarks.items() if name.startswith('lamp')])
    points = np.concatenate((corners, lamps))
    rays = MODEL.rays()
    checked = 0
    for street in city.streets:
        position, axes = _looking_along(city, street, street.line.length * 0.4)
        frd = (points - position) @ axes
        near = (frd[:, 0] > 4.0) & (frd[:, 0] < 20.0)
        u, v = np.round(MODEL.project(frd[near])).astype(int).T
        inside = (u >= 0) & (u < 320) & (v >= 0) & (v < 240)
        frd, u, v = frd[near][inside], u[inside], v[inside]
        directions = rays[v, u][:, [2, 0, 1]]
        hits = renderer._scene.run(
            np.tile(position, (len(u), 1)).astype(np.float32),
            np.ascontiguousarray(directions @ axes.T, np.float32), output=1)
        struck = directions * hits['tfar'][:, None]
        open_view = struck[:, 0] > 0.8 * frd[:, 0]
        if not open_view.any():
            continue
        error = np.abs(struck - frd)[open_view]
        distance = frd[open_view, 0]
        # Half a pixel, and 4 cm of height where the mesh is coarser than the formula.
        sight_m = 0.6 * distance / MODEL.f_px + 0.04
        assert (error[:, 0] < distance * sight_m / 1.3).mean() > 0.9
        assert (error[:, 1] < sight_m + np.abs(frd[open_view, 1]) * sight_m / 1.3).mean() > 0.9
        checked += int(open_view.sum())
    assert checked >= 100


def _zebra_bars(city):
    return [m.polygon for m in city.markings if not m.yellow and _is_bar(m.polygon)]


def _is_bar(polygon):
    sides = np.sort(np.linalg.norm(polygon - np.roll(polygon, 1, axis=0), axis=1))
    return len(polygon) == 4 and abs(sides[0] - 0.6) < 0.05 and abs(sides[-1] - 3.0) < 0.1


def test_zebra_bars_are_bright_at_the_pixels_where_the_camera_model_puts_them(city, renderer):
    camera = CameraRenderer(renderer, MODEL)
    contrast = []
    for bar in _zebra_bars(city):
        centre = bar.mean(0)
        apart = [np.linalg.norm(s.line.points - centre, axis=1) for s in city.streets]
        nearest = min(range(len(apart)), key=lambda k: apart[k].min())
        street = city.streets[nearest]
        along = street.line.s[apart[nearest].argmin()]
        if along < 9.5:
            continue
        position, axes = _looking_along(city, street, along - 9.0)
        side = bar[1] - bar[0] if np.linalg.norm(bar[1] - bar[0]) < 1 else bar[2] - bar[1]
        spots = np.stack((centre, centre + side))  # the gap is as wide as the bar
        xyz = np.column_stack((spots, city.ground(spots[:, 0], spots[:, 1])))
        u, v = MODEL.project((xyz - position) @ axes).T
        if u.min() < 3 or u.max() > 316 or city.kerb_distance.sample(*spots[1:].T)[0] > -0.3:
            continue
        image = camera.linear(position, axes)[..., 1]
        bright, dark = (image[round(b), round(a)] for a, b in zip(u, v, strict=True))
        contrast.append(bright > 1.25 * dark)
        if len(contrast) == 12:
            break
    assert len(contrast) >= 6 and np.mean(contrast) > 0.8


def test_orthophoto_shows_the_markings_at_their_georeferenced_place(city, renderer, world):
    import rasterio

    with rasterio.open(world[0] / 'orthophoto.tif') as source:
        assert source.crs.to_epsg() == 32630
        image, transform = source.read(2).astype(np.float32), source.transform
    image -= cv2.GaussianBlur(image, (0, 0), 1.5 / PX_M)
    col, row = np.meshgrid(np.arange(image.shape[1]) + 0.5, np.arange(image.shape[0]) + 0.5)
    x, y = Georeference().xy_from_utm(*(transform @ (col.ravel(), row.ravel())))
    road = city.kerb_distance.sample(x, y) < -0.3
    x, y, image = x[road], y[road], image.ravel()[road]
    paint = Raster(cv2.GaussianBlur(renderer.scene.surfaces.paint[0][..., 0], (0, 0), 1.5),
                   city.half_m, MARKING_PX_M)
    shifts = [(dx, dy) for dx in np.arange(-1.2, 1.21, 0.15) for dy in np.arange(-1.2, 1.21, 0.15)]
    score = [np.corrcoef(image, paint.sample(x + dx, y + dy))[0, 1] for dx, dy in shifts]
    assert max(score) > 0.3
    assert np.hypot(*shifts[int(np.argmax(score))]) <= PX_M


def test_orthophoto_pixel_grid_is_exact_between_its_knots():
    writer, geo = OrthophotoWriter(500.0, 0.5, 1, 0.0), Georeference()
    x, y = writer.xy(300, 310)
    east, north = geo.utm_from_xy(x, y)
    columns, rows = np.meshgrid(np.arange(1000) + 0.5, np.arange(300, 310) + 0.5)
    assert np.abs(east - (writer.west + 0.5 * columns)).max() < 1e-3
    assert np.abs(north - (writer.north - 0.5 * rows)).max() < 1e-3


def test_flat_ground_view_matches_the_orthophoto_best_at_the_true_pose(city, world):
    import rasterio

    with rasterio.open(world[0] / 'orthophoto.tif') as source:
        ortho, transform = source.read().mean(0).astype(np.float32), source.transform
    geo = Georeference()
    # The same day from above and from the car: what is compared is geometry, not appearance.
    scene = make_scene(city, draw_day(SEED, 1000, aerial=True), 5)
    camera = CameraRenderer(Renderer(scene), MODEL)
    ahead, left = np.meshgrid(np.arange(5.0, 16.0, 0.25), np.arange(-6.0, 6.1, 0.25))
    frd = np.stack((ahead.ravel(), -left.ravel(), np.full(ahead.size, 1.52)), axis=1)
    u, v = MODEL.project(frd).astype(np.float32).T
    inside = (u > 2) & (u < 317) & (v < 200)  # below is the bonnet
    frd, u, v = frd[inside], u[inside], v[inside]

    def ortho_at(xy):
        col, row = ~transform @ geo.utm_from_xy(xy[:, 0], xy[:, 1])
        return cv2.remap(ortho, (col - 0.5).astype(np.float32), (row - 0.5).astype(np.float32),
                         cv2.INTER_LINEAR).ravel()

    scores = []
    streets = [s for s in city.streets if s.line.length > 50][:10]
    for street in streets:
        position, axes = _looking_along(city, street, street.line.length * 0.75)
        image = np.sqrt(camera.linear(position, axes)[..., 1])  # as the orthophoto's gamma
        seen = cv2.remap(image, u, v, cv2.INTER_LINEAR).ravel()
        scores.append([
            np.corrcoef(seen, ortho_at(position + (frd + [*shift, 0.0]) @ axes.T))[0, 1]
            for shift in ((0, 0), (5, 0), (-5, 0), (0, 5), (0, -5))])
    true, *shifted = np.mean(scores, axis=0)
    assert true > 0.5 and true > max(shifted) + 0.15


def test_truth_is_the_ins_with_turned_heading_and_flipped_roll(city, world):
    out, name = world
    motion = drive(city, SEED, 0, 12.0)
    start_us = _start_us(name)
    rows = _table(out / 'rtk' / name / 'rtk.csv', (0, 1, 2, 3, 4, 5, 11, 12, 13))
    geo = Georeference()
    poses = motion.at((rows[:, 0] - start_us) / 1e6)
    # Undo the file's conventions by hand and come back to the vehicle frame.
    true_yaw = rows[:, 8] - np.pi / 2 - geo.frame.convergence_rad(*poses.position[0, :2])
    ned_from_ins = rotation(-rows[:, 6], rows[:, 7], true_yaw)
    x, y, z, roll, pitch, yaw = INS_EXTRINSIC
    vehicle_from_ins = rotation(*(np.float64(v) for v in (roll, pitch, yaw)))
    ned_from_vehicle = ned_from_ins @ vehicle_from_ins.T
    east, north = geo.xy_from_utm(rows[:, 5], rows[:, 4])
    ins = np.column_stack((east, north, rows[:, 3] - 110.0))
    vehicle = ins - (ned_from_vehicle @ np.array([x, y, z])) @ ENU_FROM_NED.T
    assert np.abs(vehicle - poses.position).max() < 2e-3
    assert np.abs(ned_from_vehicle - poses.ned_from_vehicle).max() < 2e-4
    # Without the 90 deg the car would drive sideways.
    course = np.unwrap(np.arctan2(*np.gradient(ins[:, :2], axis=0).T))
    moving = np.linalg.norm(np.gradient(ins[:, :2], axis=0), axis=1) > 0.05
    apart = np.angle(np.exp(1j * (true_yaw - yaw - course)))[moving]
    assert np.degrees(np.abs(apart)).max() < 3.0


def test_odometry_chain_in_row_order_drifts_from_the_truth_by_about_one_percent(city, world):
    out, name = world
    rows = np.genfromtxt(out / name / 'vo/vo.csv', delimiter=',', skip_header=1)
    assert (rows[:, 0] > rows[:, 1]).all()
    motion = drive(city, SEED, 0, 12.0)
    start = _start_us(name)
    first, last = (motion.at((t - start) / 1e6) for t in (rows[0, 1], rows[-1, 0]))
    position, axes = first.position @ ENU_FROM_NED, first.ned_from_vehicle
    for row in rows:
        position = position + axes @ row[2:5]
        axes = axes @ rotation(*row[5:8])
    truth = last.position @ ENU_FROM_NED
    travelled = np.linalg.norm(rows[:, 2:5], axis=1).sum()
    error = np.linalg.norm(position[:2] - truth[:2])
    assert 0.0 < error < 0.05 * travelled


def test_odometry_without_noise_or_drift_is_the_relative_pose(monkeypatch):
    class Silent:
        def choice(self, options):
            return 0.0

        def uniform(self, low, high):
            return 0.0

        def standard_normal(self, shape):
            return np.zeros(shape)

    axes = rotation(*np.radians(np.array([[0.0, 1.0, 30.0], [1.0, -1.0, 50.0]])).T)
    poses = Poses(np.array([0.0, 0.1]), np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 3.5]]), axes)
    relative, _ = visual_odometry(Silent(), poses)
    step = axes[0] @ relative[0, :3]
    assert np.allclose(step, [2.0, 1.0, -0.5])
    assert np.allclose(axes[0] @ rotation(*relative[0, 3:]), axes[1])


def test_euler_angles_come_back_from_their_rotation():
    angles = np.random.default_rng(0).uniform(-1.4, 1.4, (50, 3))
    assert np.allclose(np.stack(roll_pitch_yaw(rotation(*angles.T)), axis=1), angles)


@pytest.mark.parametrize('seed', range(5))
def test_gnss_error_has_four_metres_rms_and_one_outage_of_twenty_seconds(seed):
    error = gnss_error(np.random.default_rng(seed), 130.0)
    assert np.sqrt((error.error[:, :2] ** 2).sum(1).mean()) == pytest.approx(4.0, abs=1e-6)
    gaps = np.diff(error.time_s)
    assert gaps.max() == pytest.approx(20.0, abs=0.5) and (gaps > 1.0).sum() == 1
    assert error.outage_s[0] >= 30.0
    assert 1 <= len(error.jumps_s) <= 2


def test_at_least_a_quarter_of_the_parked_cars_differ_between_days(city):
    places = [{(round(x), round(y)) for x, y, _ in day_mesh(city, draw_day(SEED, day))[1]}
              for day in (0, 1)]
    assert places[0] and places[1]
    kept = len(places[0] & places[1])
    assert kept < 0.75 * len(places[0])


def test_slopes_stay_below_five_percent_and_kerbs_are_twelve_centimetres(city):
    g = np.linspace(-SIZE_M / 2, SIZE_M / 2, 61)
    x, y = (v.ravel() for v in np.meshgrid(g, g))
    slope = np.hypot(city.terrain(x + 0.5, y) - city.terrain(x - 0.5, y),
                     city.terrain(x, y + 0.5) - city.terrain(x, y - 0.5))
    assert 0.01 < slope.max() < 0.052
    pavement = np.flatnonzero(np.abs(city.kerb_distance.sample(x, y) - 1.0) < 0.3)
    step = city.ground(x[pavement], y[pavement]) - city.terrain(x[pavement], y[pavement])
    assert np.allclose(step, 0.12)


def test_the_car_keeps_to_the_carriageway_and_looks_where_it_goes(city):
    motion = drive(city, SEED, 4, 60.0)
    poses = motion.at(np.arange(0.0, 60.0, 0.5)).ins()
    distance = city.kerb_distance.sample(*poses.position[:, :2].T)
    assert distance.max() < -0.4
    roll, pitch, _ = roll_pitch_yaw(motion.at(np.arange(0.0, 60.0, 0.1)).ned_from_vehicle)
    assert 0.2 < np.degrees(roll.std()) < 2.0 and 0.2 < np.degrees(pitch.std()) < 2.5


def test_grain_below_aerial_resolution_differs_in_each_view(city, renderer):
    street = max(city.streets, key=lambda s: s.line.length)
    along, out = np.meshgrid(40.0 + 0.02 * np.arange(150), 0.4 + 0.02 * np.arange(40))
    xy = street.line.offset(along.ravel(), street.half_width_m + out.ravel())
    origins = np.column_stack((xy, city.ground(*xy.T) + 0.3)).astype(np.float32)
    down = np.tile(np.float32([0, 0, -1]), (len(xy), 1))

    def detail(a_renderer):
        seen = a_renderer.radiance(origins, down, 0.01, 0.0)[:, 1].reshape(along.shape)
        return (seen - cv2.GaussianBlur(seen, (0, 0), 5)).ravel() / seen.mean()

    same, other = detail(renderer), detail(Renderer(make_scene(city, renderer.day, 2)))
    assert same.std() > 0.02 and other.std() > 0.02
    assert abs(np.corrcoef(same, other)[0, 1]) < 0.3


def test_formats_are_robotcars(world):
    out, name = world
    assert (out / name / 'gps/ins.csv').read_text().splitlines()[0].count(',') == 14
    assert (out / 'rtk' / name / 'rtk.csv').read_text().splitlines()[0].count(',') == 13
    images = sorted((out / name / 'stereo/centre').glob('*.png'))
    lines = (out / name / 'stereo.timestamps').read_text().splitlines()
    listed = [line.split()[0] for line in lines]
    assert [p.stem for p in images] == listed
    image = cv2.imread(str(images[0]), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint8 and image.shape == (240, 320)
    facts = json.loads((out / 'world.json').read_text())
    assert 'SIMULATION' in facts['statement']


def test_bayer_mosaic_is_gbrg(renderer, monkeypatch):
    camera = CameraRenderer(renderer, MODEL)
    pure = np.zeros((240, 320, 3), np.float32)
    pure[..., 0] = 0.5  # red
    pure[..., 1] = 0.02
    monkeypatch.setattr(camera, 'linear', lambda *_: pure)
    mosaic = camera.bayer(None, None, np.random.default_rng(0)).astype(int)
    red = mosaic[101::2, 100::2]
    assert red[:10].mean() > mosaic[100::2, 100::2][:10].mean() + 20
    assert red[:10].mean() > mosaic[100::2, 101::2][:10].mean() + 20


def test_a_killed_run_resumes_with_the_same_bytes_and_another_world_is_refused(world, tmp_path):
    out = tmp_path / 'resumed'
    shutil.copytree(world[0], out)
    files = {p: p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file()}
    images = sorted((out / world[1] / 'stereo/centre').glob('*.png'))
    for path in [*images[::2], out / 'orthophoto.tif', out / 'world.json']:
        path.unlink()
    make_world(out, SEED, **WORLD)
    assert {p: p.read_bytes() for p in sorted(out.rglob('*')) if p.is_file()} == files
    with pytest.raises(ValueError, match='another world'):
        make_world(out, SEED + 1, **WORLD)


def test_warp_has_the_asked_rms_and_is_smooth():
    straight = OrthophotoWriter(200.0, 1.0, 1, 0.0)
    bent = OrthophotoWriter(200.0, 1.0, 1, 0.5)
    dx, dy = (b - s for b, s in zip(bent.xy(0, 200), straight.xy(0, 200), strict=True))
    assert np.sqrt((dx ** 2 + dy ** 2).mean()) == pytest.approx(0.5, rel=0.1)
    assert np.abs(np.diff(dx, axis=0)).max() < 0.05


@pytest.mark.parametrize('bad', [
    {'image_size': (640, 400)}, {'rate_hz': 30.0}, {'ortho_day': 0}, {'city_size_m': 50.0},
    {'seed': -1},
])
def test_arguments_that_make_no_world_are_refused(tmp_path, bad):
    with pytest.raises(ValueError, match='expected'):
        make_world(tmp_path, **{'seed': 1} | bad)
