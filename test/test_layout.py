"""A city after a land-cover raster: roads, houses and trees where the raster has them."""

import json

import cv2
import numpy as np
import pytest

pytest.importorskip('embreex')

from training.simulation.drive import drive  # noqa: I001
from training.simulation.layout import build_layout, footprint_rectangles, read_layout, thinned

SIZE_M, ROAD_M = 260.0, 7.0


def write_layout(folder, px_per_m=2.0, registration=True):
    """A road along a sine from west to east, houses north of it, a wood in the south."""
    folder.mkdir(exist_ok=True)
    side = int(SIZE_M * px_per_m)
    x, y = np.meshgrid(*2 * (np.arange(side) / px_per_m,))
    middle = 130.0 + 15.0 * np.sin(x / 30.0)
    road = np.abs(y - middle) < ROAD_M / 2
    building = np.zeros_like(road)
    for west in range(30, 230, 30):
        building |= (np.abs(x - west) < 7.0) & (np.abs(y - 172.0) < 5.0)
    tree = y < 95.0
    for number, mask in ((1, road), (3, building), (4, tree), (0, ~(road | building | tree))):
        cv2.imwrite(str(folder / f'class{number}.png'), np.where(mask, 0, 255).astype(np.uint8))
    along = np.arange(20.0, 240.0, 1.0)
    poses = np.stack((along, 130.0 + 15.0 * np.sin(along / 30.0) - 1.6), 1)  # keeps right
    np.savetxt(folder / 'pose_pixels_col_row.txt', poses * px_per_m, fmt='%.2f')
    kitti = np.zeros((len(poses), 12))
    kitti[:, [3, 11]] = poses
    np.savetxt(folder / 'poses.txt', kitti)
    if registration:
        (folder / 'registration.json').write_text(json.dumps({'px_per_m': px_per_m}))
    return folder


@pytest.fixture(scope='module')
def layout(tmp_path_factory):
    return read_layout(write_layout(tmp_path_factory.mktemp('layout')))


@pytest.fixture(scope='module')
def city(layout):
    return build_layout(layout, 1)[0]


def local_from_layout(city, layout):
    """What to subtract from layout metres: by the trajectory, whose middle is the origin."""
    points = layout.trajectory_px / layout.px_per_m
    return (points.min(0) + points.max(0)) / 2


def test_roads_houses_and_trees_stand_where_the_raster_has_them(city, layout):
    origin = local_from_layout(city, layout)
    rng = np.random.default_rng(0)
    x, y = rng.uniform(25.0, 235.0, 4000), rng.uniform(60.0, 200.0, 4000)
    from_middle = np.abs(y - 130.0 - 15.0 * np.sin(x / 30.0))
    kerb_m = city.kerb_distance.sample(x - origin[0], y - origin[1])
    assert (kerb_m[from_middle < ROAD_M / 2 - 1.0] < 0).all()
    assert (kerb_m[from_middle > ROAD_M / 2 + 1.5] > 0).all()
    house = ((np.abs((x - 30.0) % 30.0 - 15.0) > 9.5) & (np.abs(y - 172.0) < 3.5)
             & (x > 27) & (x < 213))
    built = city.building_mask.sample(x[house] - origin[0], y[house] - origin[1]) > 127
    assert built.mean() > 0.9
    trees = np.array([(t.x, t.y) for t in city.trees if abs(t.x) < 90 and abs(t.y) < 60])
    assert len(trees) > 50 and (trees[:, 1] + origin[1] < 96.0).all()


def test_the_drive_follows_the_trajectory_on_the_road_to_its_end(city, layout):
    motion = drive(city, 1, 0, 300.0)
    assert 10.0 < motion.duration_s < 60.0  # 220 m at 8 to 11.5 m/s, and stops
    poses = motion.at(np.arange(0.0, motion.duration_s, 0.5)).ins().position
    assert city.kerb_distance.sample(*poses[:, :2].T).max() < -0.8
    origin = local_from_layout(city, layout)
    x, y = (poses[:, :2] + origin).T
    assert np.abs(y - (130.0 + 15.0 * np.sin(x / 30.0) - 1.6)).mean() < 0.8
    assert (np.diff(x) > -0.01).all() and x[-1] > 200.0  # eastwards: rows grow to the north


def test_the_same_seed_gives_the_same_city_and_another_seed_other_heights(city, layout):
    same, other = build_layout(layout, 1)[0], build_layout(layout, 2)[0]
    assert np.array_equal(same.mesh.vertices, city.mesh.vertices)
    spots = np.linspace(-80, 80, 30)
    assert np.abs(other.terrain(spots, spots) - city.terrain(spots, spots)).max() > 0.1


@pytest.mark.parametrize('px_per_m', [1.6, 3.1])
def test_pixels_a_metre_are_inferred_from_the_poses(tmp_path, px_per_m):
    found = read_layout(write_layout(tmp_path / 'layout', px_per_m, registration=False))
    assert found.px_per_m == pytest.approx(px_per_m, rel=1e-3)


def test_without_trees_and_houses_there_is_still_a_road(tmp_path):
    folder = write_layout(tmp_path / 'layout')
    for number in (0, 3, 4):
        (folder / f'class{number}.png').unlink()
    found = read_layout(folder)
    assert found.road.any() and not found.tree.any() and not found.building.any()


def test_resampled_rasters_are_read_and_what_lies_beyond_them_is_left_out(tmp_path):
    folder = write_layout(tmp_path / 'layout')
    for number in (1, 3, 4):
        path = str(folder / f'class{number}.png')
        mask = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        soft = cv2.resize(mask, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
        cv2.imwrite(path, soft[:, :320])  # 200 m of 260
    poses = np.loadtxt(folder / 'pose_pixels_col_row.txt') * 0.8
    np.savetxt(folder / 'pose_pixels_col_row.txt', poses)
    (folder / 'registration.json').write_text('{"px_per_m": 1.6}')
    found = read_layout(folder)
    assert found.px_per_m == 1.6 and found.trajectory_px[:, 0].max() <= 319.5
    assert len(found.trajectory_px) == np.count_nonzero(poses[:, 0] < 319.5)
    whole = read_layout(write_layout(tmp_path / 'whole'))
    assert found.tree.mean() == pytest.approx(whole.tree.mean(), abs=0.01)


def spoil_road(folder):
    (folder / 'class1.png').unlink()


def spoil_size(folder):
    cv2.imwrite(str(folder / 'class3.png'), np.full((10, 10), 255, np.uint8))


def spoil_values(folder):
    cv2.imwrite(str(folder / 'class4.png'), np.full((520, 520), 7, np.uint8))


def spoil_with_a_photograph(folder):
    grey = np.random.default_rng(0).integers(0, 256, (520, 520), dtype=np.uint8)
    cv2.imwrite(str(folder / 'class3.png'), grey)


def spoil_most_poses(folder):
    poses = np.loadtxt(folder / 'pose_pixels_col_row.txt') + (300, 0)
    np.savetxt(folder / 'pose_pixels_col_row.txt', poses)


def spoil_axes(folder):
    poses = np.loadtxt(folder / 'pose_pixels_col_row.txt') - (0, 80)
    np.savetxt(folder / 'pose_pixels_col_row.txt', poses)


def spoil_scale(folder):
    (folder / 'registration.json').write_text('{"px": 2}')


def spoil_poses(folder):
    (folder / 'pose_pixels_col_row.txt').write_text('a b\n')


@pytest.mark.parametrize('spoil', [
    spoil_road, spoil_size, spoil_values, spoil_with_a_photograph, spoil_axes, spoil_scale,
    spoil_poses, spoil_most_poses])
def test_a_bad_layout_is_refused_with_what_was_expected(tmp_path, spoil):
    folder = write_layout(tmp_path / 'layout')
    spoil(folder)
    with pytest.raises(ValueError, match='expected'):
        read_layout(folder)


def test_an_l_shaped_house_becomes_two_rectangles_that_cover_it():
    mask = np.zeros((60, 60), np.uint8)
    mask[10:30, 5:50] = mask[30:50, 5:25] = 1
    turn = cv2.getRotationMatrix2D((30, 30), 20.0, 1.0)
    mask = (cv2.warpAffine(mask * 255, turn, (60, 60)) > 127).astype(np.uint8)
    rectangles = footprint_rectangles(mask)
    drawn = np.zeros_like(mask)
    for centre, yaw, along, across in rectangles:
        box = cv2.boxPoints(((*(centre - 0.5),), (along, across), np.degrees(yaw)))
        cv2.fillPoly(drawn, [np.round(box * 16).astype(np.int32)], 1, shift=4)
    assert 2 <= len(rectangles) <= 4
    assert (drawn & mask).sum() > 0.9 * (drawn | mask).sum()


def test_thinning_leaves_a_line_one_pixel_wide_along_the_middle():
    mask = np.zeros((40, 120), bool)
    mask[15:26, 10:110] = True
    row, col = np.nonzero(thinned(mask))
    assert len(row) == len(np.unique(col)) > 80 and np.abs(row - 20).max() <= 1
