"""Learning from drives without truth: what is held out, what is kept, what is refused."""

from array import array
from dataclasses import replace
from functools import partial
import json
import os
import socket
import sys

import cv2
import numpy as np
import pytest
import synthetic_pairs
import torch
from training_runs import DENSE_MODEL as MODEL
from training_runs import dense_world, LIKELIHOOD

from benchmarks.accuracy.adaptation import (
    far_from,
    shuffled,
    store,
    with_true_poses,
    world_of,
)
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseNetwork
from training.adapt import Adaptation, asked, planned_steps
from training.adapt import main as adapt_main
from training.data import own_drives
from training.data.datasets import load_world, save_world, WorldFiles
from training.data.own_drives import GUARD_M, pitched, Refused, split_by_place
from training.data.real_pairs import read_views
from training.distributed import ALONE
from training.evaluation.held_out import JudgedFrame, reason_to_refuse, summary
from training.recipes import smoothed_drives
from training.recipes.drive_offsets import reach_cells
from training.recipes.smoothed_drives import OffsetConfig, SmoothedDriveRecipe

SIGMA_M = 3.0


def smoothed_world(drive: int = 0, every: int = 1, first: int = 0):
    """The small world as a recorded drive: a frame a second, known to 3 m."""
    world = dense_world()
    rows = np.arange(first, len(world.poses), every)
    return replace(
        world, images=world.images[rows], poses=world.poses[rows],
        drive=np.full(len(rows), drive), stamps_ns=rows * 1_000_000_000,
        pose_covariances=np.repeat(SIGMA_M ** 2 * np.eye(2)[None], len(rows), 0))


@pytest.fixture
def files(tmp_path):
    """Two drives, of which every second frame is held out."""
    for drive in (0, 1):
        save_world(smoothed_world(drive, 2), tmp_path / f'train{drive}.npz')
    save_world(smoothed_world(0, 2, 1), tmp_path / 'held_out.npz')
    return [tmp_path / 'train0.npz', tmp_path / 'train1.npz'], [tmp_path / 'held_out.npz']


def test_a_prepared_file_keeps_what_is_known_of_its_poses(tmp_path):
    world = replace(smoothed_world(), true_poses=dense_world().poses + 1.0)
    save_world(world, tmp_path / 'a.npz')
    again = load_world(tmp_path / 'a.npz')
    for name in ('pose_covariances', 'stamps_ns', 'true_poses'):
        assert np.array_equal(getattr(again, name), getattr(world, name))
    save_world(dense_world(), tmp_path / 'b.npz')
    assert load_world(tmp_path / 'b.npz').pose_covariances is None
    frames = WorldFiles([tmp_path / 'a.npz']).frames(0)
    assert 'images' not in frames and np.array_equal(frames['poses'], world.poses)


def test_held_out_stretches_are_places_that_no_drive_is_trained_on():
    """Two drives along the same street, on two days."""
    street = np.stack((np.arange(0.0, 1200.0, 1.5), np.full(800, 20.0)), 1)
    parts = split_by_place([street, street[::-1] + (0.0, 3.0)], 0)
    part, positions_m = np.concatenate(parts), np.concatenate((street, street[::-1] + (0, 3.0)))
    assert 0.2 <= np.mean(part == 2) < 0.35 and np.mean(part == 1) > 0.5
    held_out = positions_m[part == 2]
    for position_m in positions_m[part == 1]:
        assert np.hypot(*(held_out - position_m).T).min() >= GUARD_M


def test_a_drive_through_one_place_is_refused():
    with pytest.raises(Refused, match='drive through more streets'):
        split_by_place([np.random.default_rng(0).uniform(10.0, 60.0, (500, 2))], 0)


def test_a_pitch_correction_in_the_mounting_moves_the_road_as_it_does_in_the_matcher():
    from crossview_localizer.camera.views import image_points
    camera = dense_world().camera
    ahead_m, left_m = np.array([8.0, 15.0]), np.array([-2.0, 3.0])
    expected = image_points(camera, ahead_m, left_m, 0.0, 0.03)
    assert np.array(image_points(pitched(camera, 0.03), ahead_m, left_m, 0.0)) == pytest.approx(
        np.array(expected))


def test_each_drive_gets_the_offset_that_its_own_images_see(files, monkeypatch):
    """Images that see 2 m east on the first drive, and 1.5 m south on the second."""
    seen_m = {0: (2.0, 0.0), 1: (0.0, -1.5)}

    def likelihoods(network, frames, sigma_m):
        reach = reach_cells(sigma_m, MODEL.cell_m)
        axis_m = np.arange(-reach, reach + 1) * MODEL.cell_m
        x, y = np.meshgrid(axis_m, -axis_m)
        found = []
        for world, numbers in frames:
            east_m, north_m = seen_m[int(world.drive[0])]
            found += [-0.5 * ((x - east_m) ** 2 + (y - north_m) ** 2)] * len(numbers)
        return np.array(found)

    monkeypatch.setattr(smoothed_drives, 'offset_log_likelihoods', likelihoods)
    recipe = SmoothedDriveRecipe(
        replace(LIKELIHOOD, validation_groups=0), MODEL, 0, *files, [], OffsetConfig(tau_s=600.0))
    before = [recipe._world(number).poses for number in (0, 1)]
    assert before[0] == pytest.approx(dense_world().poses[::2])
    offsets = smoothed_drives.estimate_offsets(
        random_network(MODEL, 0), recipe.files, OffsetConfig(tau_s=600.0), MODEL.match_errors)
    (train_m, covariances), (held_out_m, _) = offsets
    assert train_m[:5] == pytest.approx(np.tile(seen_m[0], (5, 1)), abs=0.2)
    assert train_m[5:] == pytest.approx(np.tile(seen_m[1], (5, 1)), abs=0.2)
    assert held_out_m == pytest.approx(np.tile(seen_m[0], (4, 1)), abs=0.2)
    assert np.sqrt(covariances[:, 0, 0]).max() < 0.6
    # Held-out frames, a second after the last, need no image of their own.
    _, (unseen_m, unseen) = smoothed_drives.estimate_offsets(
        random_network(MODEL, 0), recipe.files, OffsetConfig(tau_s=600.0), MODEL.match_errors, 1)
    assert unseen_m == pytest.approx(np.tile(seen_m[0], (4, 1)), abs=0.2)
    assert (unseen[:, 0, 0] > 0.0).all()
    corrected = smoothed_drives.CorrectedWorlds(recipe.files[0], train_m, covariances)[1]
    assert corrected.poses[:, 1] == pytest.approx(before[1][:, 1] - 1.5, abs=0.2)


def judged(evidence_nats, offsets_m=None, truth_m=None):
    """Frames 2 m apart with this evidence, and matches off by this."""
    count = len(evidence_nats)
    offsets_m = np.zeros((count, 2)) if offsets_m is None else offsets_m
    truth_m = np.full((count, 2), np.nan) if truth_m is None else truth_m
    return [JudgedFrame(0, np.array([2.0 * k, 0.0]), evidence_nats[k], offsets_m[k], truth_m[k],
                        k % 2 == 0, False) for k in range(count)]


def test_weights_are_refused_unless_evidence_rises_and_comes_from_the_images():
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.5, 100)
    before, better = judged(noise), judged(noise + 0.5 + rng.normal(0.0, 0.2, 100))
    assert reason_to_refuse(before, better, before) == ''
    assert 'did not rise' in reason_to_refuse(better, before, before)
    assert 'did not rise' in reason_to_refuse(before, before, before)
    # A network that has learned where roads are says the same whatever the image.
    shuffled = judged(noise + 0.5 + rng.normal(0.0, 0.2, 100)[::-1])
    assert 'told by their images' in reason_to_refuse(before, better, shuffled)


def test_the_table_has_agreement_with_odometry_and_metres_where_there_is_truth():
    zigzag = np.array([(1.5, 0.0), (-1.5, 0.0)] * 10)
    row = summary(judged(np.ones(20), zigzag))
    assert row == {'evidence_nats': 1.0, 'odometry_m': 3.0, 'coverage_95': 0.5, 'ambiguous': 0.0,
                   'median_m': None, 'n': 20}
    assert summary(judged(np.ones(20), zigzag, 2.0 * zigzag))['median_m'] == 3.0


def test_what_a_run_with_other_inputs_left_is_refused_not_mixed(tmp_path):
    from crossview_localizer.bags.topics import Topics
    from crossview_localizer.config import LocalizerConfig, NodeConfig

    (tmp_path / 'inputs.json').write_text('{"seed": 7}')
    with pytest.raises(ValueError, match=f'{tmp_path} .* delete {tmp_path.parent}'):
        own_drives.prepare_drives(
            [tmp_path / 'drive'], [tmp_path / 'a.tif'], tmp_path, 0.25, NodeConfig(),
            LocalizerConfig(), Topics())


def test_a_run_goes_on_only_with_the_weights_that_it_began_with(tmp_path):
    for seed in (0, 1):
        save_network(random_network(MODEL, seed), tmp_path / f'{seed}.safetensors', {})
    begun = Adaptation(tmp_path / '0.safetensors', [], [], tmp_path, steps=5)
    (tmp_path / 'plan.json').write_text(json.dumps({'steps': 5, 'asked': asked(begun)}))

    def steps(**changes) -> int:
        return planned_steps(replace(begun, **changes), None, None, None, ALONE)

    assert steps() == 5
    with pytest.raises(ValueError, match='other --init'):
        steps(init=tmp_path / '1.safetensors')
    with pytest.raises(ValueError, match='other --steps, --mix'):
        steps(steps=6, places=(tmp_path / 'place_1.npz',))


# --- the benchmark


def test_a_real_pair_becomes_a_world_in_the_axes_of_its_overhead_picture(tmp_path):
    synthetic_pairs.write_cvact(tmp_path, synthetic_pairs.Plane(0))
    view = read_views(tmp_path)[0]
    world = world_of(view, 0.25, 2)
    rows, cols = world.imagery.shape[:2]
    assert world.grid.row_col_from_xy(0.0, 0.0) == pytest.approx(((rows - 1) / 2, (cols - 1) / 2))
    assert rows * 0.25 == pytest.approx(view.overhead.rgb.shape[0] * view.overhead.px_m, abs=0.5)
    assert world.pose_covariances[0] == pytest.approx(view.accuracy_m ** 2 * np.eye(2))
    assert world.poses[0] == pytest.approx(view.truth.as_array())


def test_shuffled_images_are_of_other_places_and_true_poses_replace_the_smoothed_ones():
    world = replace(smoothed_world(), true_poses=dense_world().poses + 1.0)
    mixed = shuffled(world)
    kept = [k for k in range(9) if np.array_equal(mixed.images[k], world.images[k])]
    assert len(kept) <= 1
    assert sorted(image.sum() for image in mixed.images) == sorted(
        image.sum() for image in world.images)
    exact = with_true_poses(world)
    assert np.array_equal(exact.poses, world.true_poses)
    assert exact.pose_covariances.max() < 0.01


def test_a_later_run_adds_its_rows_unless_it_began_with_other_weights():
    result = {}
    store(result, 'real', 'before', {'a': 1, 'b': 2}, {'weights': 'x'}, 0.2)
    store(result, 'real', 'adapted', {'a': 3}, {'weights': 'x'}, 0.3)
    assert result['real'] == {'a': {'before': 1, 'adapted': 3}, 'b': {'before': 2}}
    assert result['real_hours'] == result['hours'] == 0.5
    store(result, 'real', 'adapted', {'a': 4}, {'weights': 'y'}, 0.1)
    assert result['real'] == {'a': {'adapted': 4}} and result['real_weights'] == 'y'
    assert result['real_hours'] == 0.1


def test_places_of_the_test_drive_near_what_was_learned_from_do_not_count():
    poses = np.array([(0.0, 29.0, 0.0), (0.0, 31.0, 0.0), (np.nan, np.nan, np.nan)])
    assert far_from(poses, np.zeros((1, 2))).tolist() == [False, True, False]


# --- with bags


def with_noise(entry):
    """The entry of a bag, with noise for its picture: the same one again would be frozen."""
    topic, time_s, message = entry
    if topic.endswith('/compressed'):
        rgb = np.random.default_rng(round(4 * time_s)).integers(0, 255, (120, 160, 3), np.uint8)
        message.data = array('B', cv2.imencode('.jpg', rgb)[1].tobytes())
    return entry


@pytest.fixture(scope='module')
def recording(ros, tmp_path_factory):
    """A circle of 90 s at 6 m/s with fixes 4 m too far east, and imagery of noise about it."""
    rasterio = pytest.importorskip('rasterio')
    import recorded_drive as made

    folder = tmp_path_factory.mktemp('recording')
    with rasterio.open(
            folder / 'ortho.tif', 'w', driver='GTiff', width=200, height=200, count=3,
            dtype='uint8', crs=made.FRAME.proj4,
            transform=rasterio.Affine(2.0, 0.0, -200.0, 0.0, -2.0, 200.0)) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 200, 200)).astype(np.uint8))
    made.write_bag(folder / 'drive', [
        *map(with_noise, made.input_messages(60.0)), *made.odometry_messages(60.0),
        *made.truth_messages(60.0)])
    made.write_bag(folder / 'short', [
        *made.input_messages(16.0), *made.odometry_messages(16.0)])
    save_network(random_network(MODEL, 0), folder / 'init.safetensors', {})
    return folder


def do_little_of_everything(patch) -> None:
    from training import adapt as module

    patch.setattr(own_drives, 'MARGIN_M', 30.0)
    patch.setattr(DenseNetwork, 'lattice_points', 4)
    patch.setattr(module, 'Adaptation', partial(
        module.Adaptation, held_out_frames=6, validations=1, likelihood=LIKELIHOOD,
        offsets=OffsetConfig(frames=4, confidence_frames=8)))


def command(recording, folder, bag: str, *options: str) -> list[str]:
    return [str(recording / bag), '--imagery', str(recording / 'ortho.tif'), '--init',
            str(recording / 'init.safetensors'), '--out', str(folder / 'mine.safetensors'),
            '--steps', '2', *options]


@pytest.fixture
def adapt(recording, tmp_path, monkeypatch, capsys):
    """Runs the command on a bag of the recording; its exit code, and what it printed."""
    from crossview_localizer.adapt import main

    do_little_of_everything(monkeypatch)

    def call(bag: str, *options: str):
        return main(command(recording, tmp_path, bag, *options)), capsys.readouterr()

    return call


def test_a_drive_that_hardly_moves_is_refused_in_one_line(adapt, tmp_path):
    code, printed = adapt('short')
    assert code == 2 and printed.err == 'adapt: error: no drive is left to learn from\n'
    assert 'short moves 9' in printed.out and 'expected at least 200 m' in printed.out
    assert not (tmp_path / 'mine.safetensors').exists()


def test_the_camera_is_fitted_to_the_topics_that_are_named(adapt):
    code, printed = adapt('short', '--fit-camera')
    assert code == 2 and 'height and pitch: not determined' in printed.out
    code, printed = adapt('short', '--fit-camera', '--odometry-topic', '/wheels')
    assert code == 2 and 'short holds no odometry on /wheels' in printed.err


def _one_rank(rank, port, recording, folder):
    torch.set_num_threads(1)
    os.environ |= {'RANK': str(rank), 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
                   'MASTER_PORT': str(port)}
    with pytest.MonkeyPatch.context() as patch, (folder / f'{rank}').open('w') as out:
        do_little_of_everything(patch)
        patch.setattr(sys, 'stdout', out)
        patch.setattr(sys, 'stderr', out)
        code = adapt_main(command(recording, folder, 'drive'))
        out.write(f'exit code {code}')


def test_two_processes_whose_images_teach_nothing_leave_the_weights_that_one_had(
        recording, tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_rank, (port, recording, tmp_path), nprocs=2)
    first, second = ((tmp_path / f'{rank}').read_text() for rank in (0, 1))
    assert not (tmp_path / 'mine.safetensors').exists()
    assert 'a step takes' in first and 'median m' in first and first.endswith('exit code 2')
    line = first.splitlines()[-2]
    assert line.startswith('adapt: ') and 'keep' in line and 'init.safetensors' in line
    assert 'a step takes' not in second and second.endswith('exit code 0')
    world = load_world(sorted((tmp_path / 'mine.adapt/prepared/train').iterdir())[0])
    off_m = (world.poses - world.true_poses)[:, :2].mean(0)
    assert off_m == pytest.approx((4.0, 0.0), abs=1.5)
    assert np.sqrt(world.pose_covariances[:, 0, 0]).mean() > 1.5
