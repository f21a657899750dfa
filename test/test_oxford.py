"""The Oxford readers, on tiny folders in the true formats."""

import argparse

import cv2
import numpy as np
from pyproj import Transformer
import pytest
import rasterio
import robotcar_drive

from crossview_localizer.networks.safa import OXFORD
from training.data import oxford
from training.data.oxford import join, oxford_places, read_raw, read_split
from training.data.places_arguments import add_places_arguments, read_places

DATES = ('2014-11-28-12-07-13', '2015-08-17-10-42-18')
UTM_FROM_LL = Transformer.from_crs('EPSG:4326', 'EPSG:32630', always_xy=True)
LL_FROM_UTM = Transformer.from_crs('EPSG:32630', 'EPSG:4326', always_xy=True)


def place(k):
    """Full-precision strings as in the published files."""
    return f'{619988.5667022082 + 5.1 * k!r}', f'{5735846.122251766 + 3.3 * k!r}'


def colour(k, part):
    return np.array([20 + 30 * k, 200 - 25 * k, 90 if part == 'ground' else 160], np.uint8)


def write_images(root, date, k):
    east, north = place(k)
    for part, size in (('ground', (800, 1200)), ('satellite', (600, 600))):
        folder = root / date / part
        folder.mkdir(parents=True, exist_ok=True)
        image = np.tile(colour(k, part)[::-1], (*size, 1))   # OpenCV wants BGR
        cv2.imwrite(str(folder / f'{east}_{north}.png'), image)


def split_line(date, k):
    east, north = place(k)
    name = f'{east}_{north}.png'
    return f'{date}/ground/{name} {date}/satellite/{name} {east} {north}'


def lookup_line(date, k, stamp):
    east, north = place(k)
    return f'{date}/stereo/centre/{stamp}.png {date}/ground/{east}_{north}.png'


@pytest.fixture
def release(tmp_path):
    """Four training places of one date, two validation places of another; order shuffled."""
    root = tmp_path / 'Oxford_5m_sampling'
    for k in range(6):
        write_images(root, DATES[k // 4], k)
    order = [2, 0, 3, 1]
    files = {
        'training.txt': [split_line(DATES[0], k) for k in order],
        'lookup_training.txt': [
            lookup_line(DATES[0], k, 1417176513860754 + 10**6 * k) for k in order],
        'validation.txt': [split_line(DATES[1], k) for k in (4, 5)],
    }
    for name, lines in files.items():
        (tmp_path / name).write_text('\n'.join(lines) + '\n')
    np.save(tmp_path / 'train_yaw.npy', np.radians([135.0, -170.0, 0.0, 90.0]))
    return tmp_path, root


def test_places_come_with_their_images_positions_and_splits(release):
    folder, root = release
    entries = join([
        read_split(folder / 'training.txt', 'train', folder / 'lookup_training.txt'),
        read_split(folder / 'validation.txt', 'val')])
    places = oxford_places(entries, root)
    assert places.split.tolist() == ['train'] * 4 + ['val'] * 2
    assert places.drive.tolist() == [DATES[0]] * 4 + [DATES[1]] * 2
    for number, k in enumerate([2, 0, 3, 1, 4, 5]):
        np.testing.assert_array_equal(places.positions_m[number], [float(c) for c in place(k)])
        ground, satellite = places.read_ground(number), places.read_satellite(number)
        assert ground.shape == (154, 231, 3) and satellite.shape == (256, 256, 3)
        assert (ground == colour(k, 'ground')).all() and (satellite == colour(k, 'sat')).all()
    assert places.trainable().tolist() == [True] * 4 + [False] * 2
    assert places.queries('train').tolist() == [1, 3, 0, 2]          # in time order


def test_one_lookup_and_one_yaw_file_may_cover_several_split_files(release):
    folder, _ = release
    lines = (folder / 'training.txt').read_text().splitlines()
    for number, part in enumerate((lines[:1], lines[1:])):
        (folder / f'part{number}.txt').write_text('\r\n'.join(part) + '\r\n')
    parser = argparse.ArgumentParser()
    add_places_arguments(parser)
    call = ['--data', 'oxford', '--root', str(release[1]), '--test', str(folder / 'part0.txt'),
            str(folder / 'part1.txt'), '--test-lookup', str(folder / 'lookup_training.txt'),
            '--test-yaw', str(folder / 'train_yaw.npy')]
    places = read_places(parser.parse_args(call), OXFORD)
    expected = read_split(folder / 'training.txt', 'test', folder / 'lookup_training.txt',
                          folder / 'train_yaw.npy')
    np.testing.assert_array_equal(places.stamp_us, expected.stamp_us)
    np.testing.assert_array_equal(places.yaw_rad, expected.yaw_rad)
    with pytest.raises(ValueError, match='--raw FOLDER and --imagery'):
        read_places(parser.parse_args(call[:2] + call[4:]), OXFORD)


def test_published_yaw_is_a_heading_from_true_north_plus_90_degrees(release):
    folder, _ = release
    entries = read_split(folder / 'training.txt', 'train', yaw=folder / 'train_yaw.npy')
    # Published 135 deg is a car heading 45 deg from true north; find it by two points on a sphere.
    east_m, north_m = entries.positions_m[0]
    longitude, latitude = LL_FROM_UTM.transform(east_m, north_m)
    step = 1e-5
    ahead = UTM_FROM_LL.transform(longitude + step / np.cos(np.radians(latitude)), latitude + step)
    expected = np.arctan2(ahead[1] - north_m, ahead[0] - east_m)
    # A degree of latitude and one of longitude times its cosine differ by the flattening.
    assert entries.yaw_rad[0] == pytest.approx(expected, abs=0.004)


def test_headings_of_the_real_drives_are_their_direction_of_motion(data_dir):
    rows = np.loadtxt(data_dir / f'oxford/{DATES[0]}.csv', delimiter=',', skiprows=1)
    yaw = oxford.yaw_from_published(rows[:, 3], rows[:, 1:3])
    step_m = np.diff(rows[:, 1:3], axis=0)
    turned = np.angle(np.exp(1j * (yaw[:-1] - np.arctan2(step_m[:, 1], step_m[:, 0]))))
    assert abs(np.degrees(np.median(turned))) < 0.5


def test_tiles_come_from_one_georeferenced_image_as_well(release):
    folder, root = release
    entries = read_split(folder / 'validation.txt', 'val')
    # Levels rise to the east (red) and to the north (green) of the UTM grid, 1 a metre.
    west, north, cell = entries.positions_m[0, 0] - 80.0, entries.positions_m[0, 1] + 80.0, 0.25
    u_px, v_px = np.meshgrid(np.arange(640) + 0.5, np.arange(640) + 0.5)
    levels = np.stack((u_px * cell + 40, (640 - v_px) * cell + 40, 0 * u_px)).astype(np.uint8)
    path = folder / 'area.tif'
    with rasterio.open(
            path, 'w', driver='GTiff', width=640, height=640, count=3, dtype='uint8',
            crs='EPSG:32630', transform=rasterio.Affine(cell, 0, west, 0, -cell, north)) as file:
        file.write(levels)
    places = oxford_places(entries, root, imagery=[path])
    for number in range(2):
        tile = places.read_satellite(number).astype(float)
        middle = tile[126:130, 126:130].mean((0, 1))
        expected = 120.0 + entries.positions_m[number] - entries.positions_m[0]
        np.testing.assert_allclose(middle[:2], expected, atol=0.8)
        # 55.44 m a tile; true east points north of the UTM grid's east by its convergence.
        apart_m = 248 * 55.44 / 256
        rises = (tile[:, -8:] - tile[:, :8]).mean((0, 1))[:2]
        np.testing.assert_allclose(
            rises, apart_m * np.array([1.0, np.sin(np.radians(1.37))]), atol=0.3)
    with pytest.raises(ValueError, match='the imagery covers'):
        oxford_places(read_split(folder / 'training.txt', 'train'), root, imagery=[
            shifted(path, folder / 'elsewhere.tif')])


def shifted(path, out):
    with rasterio.open(path) as file:
        profile, pixels = file.profile, file.read()
    profile['transform'] = rasterio.Affine.translation(3000.0, 0.0) @ profile['transform']
    with rasterio.open(out, 'w', **profile) as file:
        file.write(pixels)
    return out


def test_raw_frames_stand_for_missing_crops(release):
    folder, root = release
    entries = read_split(folder / 'training.txt', 'train', folder / 'lookup_training.txt')
    raw = folder / 'raw'
    for stamp in entries.stamp_us:
        path = raw / DATES[0] / 'stereo/centre' / f'{stamp}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        bgr = np.tile(np.array([40, 80, 120], np.uint8), (960, 1280, 1))
        bgr[800:], bgr[:, :40], bgr[:, 1240:] = 255, 255, 255   # bonnet and sides
        cv2.imwrite(str(path), robotcar_drive.bayer_gbrg(bgr))
    ground = oxford_places(entries, root, raw=raw).read_ground(0)
    assert ground.shape == (154, 231, 3)
    assert np.abs(ground[2:-2, 2:-2].astype(int) - [120, 80, 40]).max() <= 1
    without_times = read_split(folder / 'training.txt', 'train')
    with pytest.raises(ValueError, match='lookup'):
        oxford_places(without_times, root, raw=raw)


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    return robotcar_drive.write_drive(tmp_path_factory.mktemp('drive'))


def test_raw_traversals_give_the_camera_at_each_image_5_m_apart(drive):
    entries = read_raw(drive.traversal, drive.rtk, 'train', drive.root / 'extrinsics')
    for stamp_us, position_m, yaw_rad in zip(
            entries.stamp_us, entries.positions_m, entries.yaw_rad):
        truth = robotcar_drive.vehicle_pose(robotcar_drive.seconds(stamp_us))
        latitude, longitude, _ = robotcar_drive.latlon_from_ned(truth[:3, 3])
        expected_m = np.array(UTM_FROM_LL.transform(longitude, latitude))
        np.testing.assert_allclose(position_m, expected_m, atol=0.01)
        forward = truth[:3, 0]
        ahead = robotcar_drive.latlon_from_ned(truth[:3, 3] + forward)
        step_m = np.array(UTM_FROM_LL.transform(ahead[1], ahead[0])) - expected_m
        assert yaw_rad == pytest.approx(np.arctan2(step_m[1], step_m[0]), abs=0.003)
    steps_m = np.linalg.norm(np.diff(entries.positions_m, axis=0), axis=1)
    assert len(entries) >= 3 and (steps_m >= 5.0).all() and (steps_m < 7.1).all()


def test_as_published_the_position_is_that_of_the_ins_at_the_nearest_row(drive):
    entries = read_raw(drive.traversal, drive.rtk, 'train', None, as_published=True, seed=1)
    for stamp_us, position_m in zip(entries.stamp_us, entries.positions_m):
        truth = robotcar_drive.vehicle_pose(robotcar_drive.seconds(stamp_us))
        camera = robotcar_drive.latlon_from_ned(truth[:3, 3])
        ins = robotcar_drive.latlon_from_ned((truth @ robotcar_drive.VEHICLE_FROM_INS)[:3, 3])
        to_ins, to_camera = (
            np.linalg.norm(position_m - UTM_FROM_LL.transform(point[1], point[0]))
            for point in (ins, camera))
        assert to_ins < 0.09 and to_camera > 1.5       # rows are 20 ms, 0.16 m, apart
    with pytest.raises(ValueError, match='extrinsics'):
        read_raw(drive.traversal, drive.rtk, 'train', None)


def test_a_cut_off_ground_image_leaves_its_tile_and_is_noted(release):
    folder, root = release
    entries = join([read_split(folder / 'training.txt', 'train')] * 15)
    east, north = place(0)
    path = root / DATES[0] / 'ground' / f'{east}_{north}.png'
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match='15 of 60 ground images are missing or cut off'):
        oxford_places(entries, root)
    few = join([read_split(folder / 'validation.txt', 'val')] * 40 + [
        read_split(folder / 'training.txt', 'train')])
    places = oxford_places(few, root)
    assert np.flatnonzero(~places.has_ground).tolist() == [81]
    assert len(places.notes) == 1 and path.name in places.notes[0]


MALFORMED = {
    'a field too few': ('{g} {s} 1000', '4: DATE'),
    'no number': ('{g} {s} 619988.5 north', 'could not convert'),
    'latitude instead of UTM': ('{g} {s} 51.76 -1.26', 'UTM'),
    'not a number': ('{g} {s} nan 5735846.1', 'UTM'),
    'another date': ('{g} 2014-01-01-00-00-00/satellite/a.png 619988.5 5735846.1', 'one date'),
    'absolute paths': ('/data/{g} {s} 619988.5 5735846.1', 'DATE/ground'),
}


@pytest.mark.parametrize('fault', MALFORMED)
def test_a_malformed_split_line_is_named(tmp_path, fault):
    text, expected = MALFORMED[fault]
    good = split_line(DATES[0], 0)
    line = text.format(g=f'{DATES[0]}/ground/a.png', s=f'{DATES[0]}/satellite/a.png')
    (tmp_path / 'training.txt').write_text(f'{good}\n{line}\n')
    with pytest.raises(ValueError, match='line 2') as caught:
        read_split(tmp_path / 'training.txt', 'train')
    assert expected in str(caught.value)


def test_files_that_are_no_splits_are_refused(tmp_path):
    (tmp_path / 'empty.txt').write_text('\n')
    with pytest.raises(ValueError, match='is empty'):
        read_split(tmp_path / 'empty.txt', 'train')
    (tmp_path / 'binary.txt').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ValueError, match='not a text file'):
        read_split(tmp_path / 'binary.txt', 'train')
    with pytest.raises(FileNotFoundError):
        read_split(tmp_path / 'none.txt', 'train')
    with pytest.raises(ValueError, match='expected one of train, val, test'):
        read_split(tmp_path / 'empty.txt', 'validation')


def test_lookups_and_yaws_of_another_split_are_refused(release):
    folder, _ = release
    with pytest.raises(ValueError, match='has 4 lines, .* 2'):
        read_split(folder / 'validation.txt', 'val', folder / 'lookup_training.txt')
    swapped = (folder / 'lookup_training.txt').read_text().splitlines()[::-1]
    (folder / 'swapped.txt').write_text('\n'.join(swapped))
    with pytest.raises(ValueError, match='line 1'):
        read_split(folder / 'training.txt', 'train', folder / 'swapped.txt')
    with pytest.raises(ValueError, match=r'expected \(2,\)'):
        read_split(folder / 'validation.txt', 'val', yaw=folder / 'train_yaw.npy')
    (folder / 'bad.npy').write_bytes(b'\x93NUMPY')
    with pytest.raises(ValueError, match='not a .npy'):
        read_split(folder / 'validation.txt', 'val', yaw=folder / 'bad.npy')


def test_missing_tiles_and_images_of_another_size_are_named(release):
    folder, root = release
    entries = read_split(folder / 'validation.txt', 'val')
    ground = root / entries.ground[0]
    cv2.imwrite(str(ground), np.zeros((960, 1280, 3), np.uint8))
    with pytest.raises(ValueError, match='1280x960; expected 1200x800'):
        oxford_places(entries, root).read_ground(0)
    (root / entries.satellite[1]).unlink()
    with pytest.raises(ValueError, match='1 of 2 satellite tiles are missing'):
        oxford_places(entries, root)


def test_the_stitched_map_lies_within_its_control_points_and_true_north_up():
    affine, residual_px = oxford.stitched_map_transform()
    assert residual_px < 1.4
    east, north = affine[:, 0], affine[:, 1]                 # columns and rows a metre
    assert np.hypot(*east) == pytest.approx(10.801, abs=0.002)
    assert np.hypot(*north) == pytest.approx(10.829, abs=0.002)
    assert np.degrees(np.arctan2(east[1], east[0])) == pytest.approx(1.365, abs=0.01)


def test_the_stitched_map_becomes_a_geotiff(tmp_path, monkeypatch):
    # The same map at a hundredth of its size.
    monkeypatch.setattr(oxford, 'STITCHED_MAP_PX', (170, 200))
    points = oxford.STITCHED_MAP_POINTS * [1, 1, 0.01, 0.01]
    monkeypatch.setattr(oxford, 'STITCHED_MAP_POINTS', points)
    picture = np.random.default_rng(0).integers(0, 255, (200, 170, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'map.png'), picture)
    assert oxford.main(['georeference', str(tmp_path / 'map.png'), str(tmp_path / 'map.tif')]) == 0
    with rasterio.open(tmp_path / 'map.tif') as file:
        assert file.crs == 'EPSG:32630'
        np.testing.assert_array_equal(np.moveaxis(file.read(), 0, 2), picture[..., ::-1])
        for east_m, north_m, col, row in points:
            u_px, v_px = ~file.transform @ (east_m, north_m)
            assert abs(u_px - 0.5 - col) < 0.02 and abs(v_px - 0.5 - row) < 0.02


def test_the_check_command_counts_and_reports_in_one_line(release, capsys):
    folder, root = release
    good = ['check', '--root', str(root), '--train', str(folder / 'training.txt'),
            '--val', str(folder / 'validation.txt')]
    assert oxford.main(good) == 0
    assert 'train: 4 places of 1 drives, 4 with a ground image' in capsys.readouterr().out
    assert oxford.main([*good[:3], '--test', str(folder / 'none.txt')]) == 2
    error = capsys.readouterr().err
    assert error.startswith('python -m training.data.oxford: error: ') and error.count('\n') == 1
