"""The field's benchmarks: their geometry on painted ground, the scores, and whole runs."""

import csv
from dataclasses import replace
import gzip
import json
import math

import cv2
import kitti_drive as made
import numpy as np
import pytest
import scipy.io
from synthetic_pairs import Plane, resemblance, save
import torch
import torch.nn.functional as F

from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.checkpoint import load_network
from crossview_localizer.networks.safa import ModelConfig
from training import benchmarks
from training.data.benchmark_frames import Frames, uniform_prior
from training.data.kitti_frames import kitti_frames, read_split, tile_px_m
from training.data.oxford import read_splits, stitched_map_transform
from training.data.oxford_patches import oxford_patches, patch_corner, PX_M
from training.evaluation.overhead_raster import describe, RasterMatcher
from training.evaluation.pose_benchmark import (
    best_pose,
    estimates,
    pose_scores,
    PUBLISHED,
    rows_of,
    sectors,
    signed_errors,
)

SHARES = [(0.5, -0.25, 0.3), (-0.9, 0.1, -1.0), (0.0, 0.0, 0.0), (0.2, 0.8, 0.6)]


# --- scores


def test_errors_are_split_along_the_true_heading_with_their_signs():
    truth = Pose2D(10.0, 5.0, math.pi / 2)                        # looks up
    assert signed_errors(Pose2D(8.0, 8.0, math.pi / 2 - 0.1), truth) == pytest.approx(
        (3.0, 2.0, -math.degrees(0.1)))
    # 0.2 rad apart, on both sides of the cut at pi.
    assert signed_errors(Pose2D(0.0, 0.0, -math.pi + 0.1), Pose2D(0.0, 0.0, math.pi - 0.1))[
        2] == pytest.approx(math.degrees(0.2))


def test_the_columns_of_known_errors():
    scores = pose_scores([(3.0, -4.0, 0.5), (-0.5, 0.0, -2.0), (0.0, 1.0, 4.0), (6.0, 8.0, -90.0)])
    assert scores['mean_m'] == pytest.approx((5.0 + 0.5 + 1.0 + 10.0) / 4)
    assert scores['median_m'] == pytest.approx(3.0)
    # An error of exactly 1 m is not within 1 m.
    assert [scores[f'lateral_{k}'] for k in (1, 3, 5)] == [25.0, 50.0, 75.0]
    assert [scores[f'longitudinal_{k}'] for k in (1, 3, 5)] == [50.0, 50.0, 75.0]
    assert [scores[f'heading_{k}'] for k in (1, 3, 5)] == [25.0, 50.0, 75.0]
    assert scores['heading_median_deg'] == pytest.approx(3.0) and scores['n'] == 4


def test_an_oracle_has_no_error_and_all_recalls():
    truths = [Pose2D(3.0, -7.0, 1.0), Pose2D(0.0, 0.0, -3.1)]
    scores = pose_scores([signed_errors(truth, truth) for truth in truths])
    assert scores.pop('n') == 2
    assert {value for key, value in scores.items() if key[-1] in '135'} == {100.0}
    assert {value for key, value in scores.items() if key[-1] not in '135'} == {0.0}


def test_no_frame_is_no_score():
    with pytest.raises(ValueError, match='no frame was scored'):
        pose_scores([])


def test_sectors_tile_all_headings_once():
    search = SearchWindow(20.0, math.pi)
    parts = list(sectors(uniform_prior(Pose2D(1.0, 2.0, 0.5), search), search))
    assert len(parts) == 5
    for k, (prior, part) in enumerate(parts):
        assert part.half_yaw_rad == pytest.approx(math.pi / 5) and part.half_width_m == 20.0
        expected = 0.5 + (k - 2) * 2 * math.pi / 5
        assert math.remainder(prior.pose.yaw_rad - expected, 2 * math.pi) == pytest.approx(0.0)
    narrow = SearchWindow(20.0, 0.17)
    ((prior, part),) = sectors(uniform_prior(Pose2D(0.0, 0.0, 0.5), narrow), narrow)
    assert part == narrow and prior.pose.yaw_rad == pytest.approx(0.5)


# --- KITTI


@pytest.fixture(scope='module')
def kitti(tmp_path_factory):
    found = made.write_kitti(tmp_path_factory.mktemp('kitti'))
    found.write_split('test1_files.txt', [
        f'{found.name(k)} {" ".join(map(str, shares))}' for k, shares in enumerate(SHARES)])
    found.write_split('train_files.txt', [found.name(k) for k in range(made.FRAMES)])
    return found


@pytest.fixture(scope='module')
def frames(kitti):
    return kitti_frames(kitti.root, kitti.root / 'test1_files.txt')


def test_a_tile_has_the_metres_a_pixel_of_zoom_18_at_its_latitude():
    assert tile_px_m(0.0) == pytest.approx(156543.03392 / 2 ** 19)
    assert tile_px_m(60.0) == pytest.approx(tile_px_m(0.0) / 2)
    assert tile_px_m(49.015) == pytest.approx(0.19585, abs=5e-5)   # the papers' constant


def test_views_lie_on_the_crop_where_the_truth_says(frames):
    assert len(frames) == len(SHARES)
    for frame in frames:
        view = frame.view
        assert view.overhead.rgb.shape == (512, 512, 3)
        here = resemblance(view, view.truth)
        assert here > 0.75
        for change in (Pose2D(1.5, 0.0, 0.0), Pose2D(0.0, 1.5, 0.0), Pose2D(0.0, 0.0, 0.25)):
            assert resemblance(view, view.truth @ change) < here - 0.2


def test_shares_are_the_priors_error_in_the_true_axes(frames):
    for frame, (along, left, turn) in zip(frames, SHARES):
        assert frame.prior.pose == Pose2D(0.0, 0.0, 0.0)
        assert signed_errors(frame.prior.pose, frame.view.truth) == pytest.approx(
            (-20.0 * along, -20.0 * left, -10.0 * turn), abs=1e-9)
        truth = np.abs(frame.view.truth.as_array())
        window = frame.search
        assert (truth <= np.array([window.half_width_m] * 2 + [window.half_yaw_rad]) + 1e-9).all()


def test_the_crop_is_the_one_that_the_benchmark_defines(kitti, frames):
    """Its steps one after the other: turn to the heading, to the camera, shift, turn."""
    middle = (made.TILE_PX - 1) / 2

    def turned(picture, angle_deg):                 # counter-clockwise about the middle
        matrix = cv2.getRotationMatrix2D((middle, middle), angle_deg, 1.0)
        return cv2.warpAffine(picture, matrix, picture.shape[1::-1])

    def moved(picture, right_px, down_px):          # pixel (u, v) is taken from (u + right, ...)
        matrix = np.float64([[1, 0, -right_px], [0, 1, -down_px]])
        return cv2.warpAffine(picture, matrix, picture.shape[1::-1])

    for number in (0, 1, 3):
        along, left, turn = SHARES[number]
        picture = cv2.imread(str(kitti.root / 'satmap' / kitti.name(number)))[..., ::-1]
        picture = turned(picture, -math.degrees(made.unit_pose(number * made.PERIOD_S)[2]))
        picture = moved(picture, 1.08 / made.TILE_PX_M, 0.26 / made.TILE_PX_M)
        picture = moved(picture, -along * 20.0 / made.TILE_PX_M, left * 20.0 / made.TILE_PX_M)
        picture = turned(picture, 10.0 * turn)
        first = (made.TILE_PX - 512) // 2
        expected = picture[first:first + 512, first:first + 512][100:400, 100:400]
        found = frames[number].view.overhead.rgb[100:400, 100:400]
        assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.99


def test_an_untrained_matcher_finds_the_camera(frames):
    network = load_network(benchmarks.WEIGHTS)
    rows = rows_of(network, ['gradient_correlation'])
    found = pose_scores(
        [signed_errors(pose, view.truth) for _, view, pose in estimates(frames, rows)])
    assert found['median_m'] < 0.6 and found['heading_median_deg'] < 1.0
    assert found['lateral_3'] == found['longitudinal_3'] == 100.0


def test_a_blind_row_is_shown_another_image_but_judged_by_its_own_truth(frames, monkeypatch):
    shown = []

    def remember(matcher, image, raster, prior, search):
        shown.append(image.rgb)
        return prior.pose

    monkeypatch.setattr('training.evaluation.pose_benchmark.best_pose', remember)
    rows = rows_of(load_network(benchmarks.WEIGHTS), ['gradient_correlation'])
    rows['blind'] = replace(rows['gradient_correlation'], blind=True)
    for number, (name, view, _) in enumerate(estimates(frames, rows)):
        assert view.truth == frames[number // 2].view.truth
        seen = number // 2 + (2 if name == 'blind' else 0)
        assert np.array_equal(shown[number], frames[seen % 4].view.image.rgb)


def test_a_line_without_shares_gets_the_same_ones_each_time(kitti):
    lines = read_split(kitti.root / 'train_files.txt')
    assert lines == read_split(kitti.root / 'train_files.txt')
    shares = np.array([(line.shift_along, line.shift_left, line.turn) for line in lines])
    assert (np.abs(shares) <= 1.0).all() and np.unique(shares).size == shares.size


@pytest.mark.parametrize('line', [
    'image.png 0 0 0', '{name} 0.1 0.2', '{name} a b c', '{name} 1.5 0 0',
    '2011_09_26/2011_09_28_drive_0001_sync/0000000000.png 0 0 0'])
def test_a_line_of_another_format_is_named(kitti, line):
    path = kitti.write_split('wrong.txt', [line.format(name=kitti.name(0))])
    with pytest.raises(ValueError, match='wrong.txt, line 1'):
        read_split(path)


def test_what_is_missing_is_counted_before_anything_is_scored(kitti, tmp_path):
    other = made.write_kitti(tmp_path)
    (other.root / 'satmap' / other.name(1)).unlink()
    path = other.write_split('test1_files.txt', [f'{other.name(k)} 0 0 0' for k in range(3)])
    with pytest.raises(FileNotFoundError, match='1 files of .*0000000001.png'):
        kitti_frames(other.root, path)
    with pytest.raises(FileNotFoundError, match='has no folder raw_data'):
        kitti_frames(tmp_path / 'elsewhere', path)


def test_the_kitti_command_prints_our_numbers_beside_the_published_ones(kitti, tmp_path, capsys):
    assert benchmarks.main([
        'kitti', '--root', str(kitti.root), '--splits', str(kitti.root), '--split', 'test1',
        '--rows', 'prior_centre', 'gradient_correlation', '--every', '2',
        '--out', str(tmp_path), '--device', 'cpu']) == 0
    printed = capsys.readouterr().out
    assert 'test1: 4 images; the published figures are of 3773' in printed
    lines = {line.split('  ')[0]: line.split() for line in printed.splitlines()}
    assert lines['CCVPE (published)'][2:5] == ['1.22', '0.62', '-']
    # Frames 0 and 2: priors off by (10, 5) m and by nothing.
    assert lines['prior_centre'][1:3] == [f'{math.hypot(10, 5) / 2:.2f}'] * 2
    assert float(lines['gradient_correlation'][1]) < 0.6
    result = json.loads((tmp_path / 'kitti.json').read_text())
    ours = result['ours']['kitti test1']
    assert ours['prior_centre']['longitudinal_5'] == 50.0
    assert ours['prior_centre']['n'] == 2
    assert result['published']['kitti test1'][0]['method'] == 'CCVPE'
    with gzip.open(tmp_path / 'kitti_test1.csv.gz', 'rt') as file:
        answers = list(csv.DictReader(file))
    assert [answer['frame'] for answer in answers[::2]] == [kitti.name(0), kitti.name(2)]
    assert float(answers[0]['longitudinal_m']) == pytest.approx(-10.0)


def test_every_published_figure_names_its_source():
    for papers in PUBLISHED.values():
        assert {paper.method for paper in papers} == {'CCVPE', 'HC-Net', 'FG2'}
        assert all(paper.source for paper in papers)


# --- Oxford RobotCar


SIDE_PX = 1800
DATES = ('2015-08-14-14-54-57', '2015-08-12-15-04-18')
# Of three images: column and row on the map, and the true heading, clockwise from north.
PLACES = ((905.3, 950.8, 30.0), (1010.0, 830.0, 250.0), (790.0, 1000.0, 135.0))


@pytest.fixture(scope='module')
def oxford(tmp_path_factory):
    """A stitched map of a plane that has its origin at column and row 900."""
    root, plane = tmp_path_factory.mktemp('oxford'), Plane(3)
    middle = (SIDE_PX - 1) / 2
    save(root / 'satellite_map_new.png', plane.overhead(
        SIDE_PX, PX_M, (middle - 900) * PX_M, (900 - middle) * PX_M))
    affine, _ = stitched_map_transform()
    lines, yaws = [[], []], []
    for k, (col, row, heading_deg) in enumerate(PLACES):
        heading = math.radians(heading_deg)
        ahead, right = np.array([math.sin(heading), math.cos(heading)]), np.array(
            [math.cos(heading), -math.sin(heading)])
        camera = np.array([(col - 900) * PX_M, (900 - row) * PX_M]) + 1.7132 * ahead - (
            0.1181 * right)
        camera_from_world = np.array([
            [*right, 0.0], [0.0, 0.0, -1.0], [*ahead, 0.0]])
        scale = 0.5                                      # of 1200x800
        focal = 964.828979 * scale
        rgb = plane.pinhole(
            camera_from_world, (*camera, 1.52), (
                focal, focal, (643.788025 - 40 + 0.5) * scale - 0.5,
                (484.40799 + 0.5) * scale - 0.5), 600, 400)
        east, north = np.linalg.solve(affine[:, :2], (col, row) - affine[:, 2])
        date = DATES[k // 2]
        name = f'{east!r}_{north!r}.png'.replace('np.float64(', '').replace(')', '')
        save(root / date / 'ground' / name, rgb)
        lines[k // 2].append(f'{date}/ground/{name} {date}/satellite/{name} {east} {north}')
        yaws.append(math.remainder(heading + math.pi / 2, 2 * math.pi))
    for number, part in enumerate(lines, 1):
        (root / f'test{number}_j.txt').write_text('\n'.join(part) + '\n')
    np.save(root / 'test_yaw.npy', np.array(yaws))
    return root


def oxford_entries(root):
    return read_splits([root / 'test1_j.txt', root / 'test2_j.txt'], 'test',
                       yaw=root / 'test_yaw.npy')


def test_patches_begin_at_every_400_pixels_with_the_place_in_their_middle_half():
    assert [patch_corner(x) for x in (900.0, 999.4, 1000.0, 1399.4, 1400.0)] == [
        400, 400, 800, 800, 1200]
    for along in np.arange(600.0, 2600.0, 7.3):
        corner = patch_corner(along)
        assert corner % 400 == 0 and 199.5 <= along - corner < 600.0


def test_oxford_views_lie_on_the_patch_where_the_truth_says(oxford):
    frames = oxford_patches(oxford_entries(oxford), oxford, oxford / 'satellite_map_new.png')
    for frame, (_, _, heading_deg) in zip(frames, PLACES):
        view = frame.view
        assert view.overhead.rgb.shape == (800, 800, 3) and view.overhead.px_m == PX_M
        # The map is north up: the heading is the published yaw - 90 degrees, without the grid's.
        assert math.degrees(math.remainder(
            math.pi / 2 - math.radians(heading_deg) - view.truth.yaw_rad, 2 * math.pi)
        ) == pytest.approx(0.0, abs=0.01)
        here = resemblance(view, view.truth)
        assert here > 0.75
        for change in (Pose2D(1.5, 0.0, 0.0), Pose2D(0.0, 1.5, 0.0), Pose2D(0.0, 0.0, 0.25)):
            assert resemblance(view, view.truth @ change) < here - 0.2
        ins = view.truth @ Pose2D(1.7132, 0.1181, 0.0).inverse()
        assert max(abs(ins.x_m), abs(ins.y_m)) <= 200.5 * PX_M
        assert frame.prior.pose == Pose2D(0.0, 0.0, 0.0)
        assert frame.search.half_yaw_rad == pytest.approx(math.pi)


def test_a_heading_that_is_not_given_is_found_among_all(oxford):
    frames = oxford_patches(oxford_entries(oxford), oxford, oxford / 'satellite_map_new.png')
    network = rows_of(load_network(benchmarks.WEIGHTS), ['gradient_correlation'])[
        'gradient_correlation'].network
    frame = frames[1]
    found = best_pose(RasterMatcher(network), frame.view.image,
                      describe(frame.view.overhead, network), frame.prior, frame.search)
    along_m, left_m, turn_deg = signed_errors(found, frame.view.truth)
    assert math.hypot(along_m, left_m) < 0.6 and abs(turn_deg) < 1.5


def test_the_oxford_command_has_a_table_for_each_day(oxford, tmp_path, capsys):
    assert benchmarks.main([
        'oxford', '--root', str(oxford), '--test', str(oxford / 'test1_j.txt'),
        str(oxford / 'test2_j.txt'), '--yaw', str(oxford / 'test_yaw.npy'), '--map',
        str(oxford / 'satellite_map_new.png'), '--heading-prior-deg', '10', '--rows',
        'prior_centre', 'gradient_correlation', '--out', str(tmp_path), '--device', 'cpu']) == 0
    printed = capsys.readouterr().out
    assert 'median error below 1 m' in printed
    ours = json.loads((tmp_path / 'oxford.json').read_text())['ours']
    assert list(ours) == [f'oxford {date}' for date in DATES]
    assert [ours[name]['prior_centre']['n'] for name in ours] == [2, 1]
    for rows in ours.values():
        assert rows['gradient_correlation']['mean_m'] < 0.6
        assert rows['prior_centre']['heading_mean_deg'] <= 10.0


def test_a_map_that_ends_before_a_patch_is_refused(oxford, tmp_path):
    save(tmp_path / 'map.png', np.zeros((1000, 1000, 3), np.uint8))
    with pytest.raises(ValueError, match='beyond .*map.png of 1000x1000'):
        oxford_patches(oxford_entries(oxford), oxford, tmp_path / 'map.png')


# --- CVACT


class Pixels(torch.nn.Module):
    """A matcher of equal pictures: descriptors are coarse pixels."""

    config, fingerprint = ModelConfig(ground_view='polar'), 'pixels'

    def embed_ground(self, images):
        coarse = F.avg_pool2d(images.permute(0, 3, 1, 2).float(), 8).flatten(1)
        return F.normalize(coarse - coarse.mean(1, keepdim=True), dim=1)

    embed_satellite = satellite_descriptors = embed_ground


def test_the_cvact_command_ranks_the_validation_tiles_alone(tmp_path, monkeypatch, capsys):
    """The tiles for training equal those for validation: among all six there would be ties."""
    ids = [f'panorama-{k:013d}' for k in range(6)]
    scipy.io.savemat(tmp_path / 'ACT_data.mat', {
        'panoIds': np.array(ids), 'utm': np.array([[684e3 + 400 * k, 6.09e6] for k in range(6)]),
        'trainSet': {'trainInd': np.array([[1], [2], [3]])},
        'valSet': {'valInd': np.array([[4], [5], [6]])},
        'valSetAll': {'valInd': np.array([[4], [5], [6]])}})
    for k, name in enumerate(ids):
        picture = np.random.default_rng(k % 3).integers(0, 255, (14, 77, 3)).astype(np.uint8)
        picture = cv2.resize(picture, (616, 112), interpolation=cv2.INTER_NEAREST)
        for folder in ('streetview', 'polarmap'):
            save(tmp_path / folder / f'{name}.png', picture)
    monkeypatch.setattr(benchmarks, 'load_network', lambda source, device: Pixels())
    assert benchmarks.main([
        'cvact', '--mat', str(tmp_path / 'ACT_data.mat'), '--root', str(tmp_path), '--prepared',
        '--weights', 'pixels', '--out', str(tmp_path / 'out'), '--device', 'cpu']) == 0
    lines = {line[:24].strip(): line[24:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines['match'] == ['100.00'] * 4 + ['3']
    assert lines['image_blind'][0] == '0.00'
    assert lines['SAFA (published)'] == ['81.03', '92.80', '94.84', '98.17']
    assert lines['Sample4Geo (published)'] == ['90.80', '-', '-', '-']
    assert json.loads((tmp_path / 'out/cvact.json').read_text())['places'] == 3


def test_a_tile_network_is_refused_for_poses(kitti, tmp_path, capsys):
    weights = benchmarks.WEIGHTS.with_name('crossview_safa_synthetic.safetensors')
    assert benchmarks.main([
        'kitti', '--root', str(kitti.root), '--splits', str(kitti.root), '--split', 'test1',
        '--weights', str(weights), '--out', str(tmp_path), '--device', 'cpu']) == 2
    assert 'expected weights of the dense matcher' in capsys.readouterr().err


def test_frames_end_after_the_last_one_and_a_subset_counts_anew():
    with pytest.raises(IndexError):
        Frames('none', 2, lambda number: number)[2]
    assert list(Frames('some', 5, lambda number: number).subset('odd', [1, 3])) == [1, 3]
