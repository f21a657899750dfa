"""The benchmark of single frames: its trials, the image-blind rows, and a whole run."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.accuracy import frame_scene, frame_trials, single_frames
from benchmarks.accuracy.frame_estimates import (
    FrameEstimate,
    read_estimates,
    summarize,
    with_image_blind,
)
from crossview_localizer.datatypes import CameraModel, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import DenseConfig
from training.data.datasets import save_world, World

LOOKING_AHEAD = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


@pytest.fixture(scope='module')
def world() -> World:
    """Two drives east, an image every 2 m, over smooth random imagery."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 60, 60)).astype(np.float32))
    imagery = F.interpolate(coarse, size=(480, 480), mode='bicubic')[0].permute(1, 2, 0)
    along = np.linspace(-15.0, 15.0, 16)
    drive = np.stack((along, np.full(16, 3.0), np.full(16, 0.1)), 1)
    camera = CameraModel(231, 154, 180.0, 180.0, 115.0, 76.5, LOOKING_AHEAD, 1.5)
    images = rng.integers(0, 255, (32, 154, 231, 3), dtype=np.uint8)
    return World('w', imagery.clamp(0, 255).byte().numpy(), MapGrid(480, 480, 0.25, -60.0, 60.0),
                 images, camera, np.concatenate((drive, drive)), np.repeat((0, 1), 16))


def estimate_of(method, error_m):
    estimate = PoseEstimate(0, Pose2D(error_m, 0.0, 0.0), np.eye(3))
    return FrameEstimate('w', 0, method, Pose2D(0.0, 0.0, 0.0), estimate, False)


def test_frames_are_five_metres_apart_in_each_drive_and_priors_within_their_bounds(world):
    found = frame_trials.trials(world, 3, True, None)
    index = np.array([trial.index for trial in found])
    assert np.all(np.diff(index[index < 16]) == 3) and index[index >= 16][0] == 16
    offset = np.array([trial.prior.pose.as_array() for trial in found]) - world.poses[index]
    assert np.abs(offset[:, :2]).max() <= 18.5 and np.abs(offset[:, 2]).max() <= np.radians(10.0)
    assert [trial.far_prior is not None for trial in found[:5]] == [True, *[False] * 3, True]
    fewer = frame_trials.trials(world, 3, True, 4)
    assert [t.prior.pose for t in fewer] == [t.prior.pose for t in found[:4]]


@pytest.mark.parametrize('blind_m, better', [(2.0, 'blind_trained'), (9.0, 'shuffled_images')])
def test_image_blind_is_the_better_of_the_two_and_both_are_kept(blind_m, better):
    rows = summarize(with_image_blind([
        estimate_of('dense', 0.3), estimate_of('shuffled_images', 5.0),
        estimate_of('blind_trained', blind_m)]))
    assert rows['image_blind'] == rows[better]
    assert rows['shuffled_images']['median_m'] == 5.0
    assert rows['blind_trained']['median_m'] == blind_m


def test_a_run_has_all_methods_and_another_goes_on_where_it_was(
        world, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(frame_scene, 'TILE_STEP_PX', 8)  # quicker, as is a short search
    monkeypatch.setattr(frame_trials, 'WIDE_PRIOR_M', 20.0)
    save_world(world, tmp_path / 'w.npz')
    model = DenseConfig(channels=4, width=8, ahead_cells=32, across_cells=32, patch_cells=40)
    for seed, name in enumerate(('dense', 'blind')):
        save_network(random_network(model, seed), tmp_path / f'{name}.safetensors', {})
    out = tmp_path / 'out'
    arguments = [
        '--worlds', str(tmp_path / 'w.npz'), '--weights', str(tmp_path / 'dense.safetensors'),
        '--blind-weights', str(tmp_path / 'blind.safetensors'), '--frames', '1', '--jobs', '1',
        '--out', str(out)]
    assert single_frames.main(arguments) == 0
    result = json.loads((out / 'dense.json').read_text())
    assert set(result['synthetic']) == {
        'prior_centre', 'dense', 'shuffled_images', 'blind_trained', 'image_blind', 'paper',
        'raw_correlation', 'random_init', 'yaw_full_circle', 'dense_wide_prior'}
    assert 'random_init' not in result['warped']
    again = summarize([f for f in read_estimates(out / 'frames.csv.gz')
                             if f.method == 'dense'])
    assert again['dense']['n'] == 2  # one of each part
    written = {path: path.stat().st_mtime_ns for path in out.glob('*_0.csv.gz')}
    assert len(written) == 2 and single_frames.main(arguments) == 0
    assert written == {path: path.stat().st_mtime_ns for path in out.glob('*_0.csv.gz')}
    assert json.loads((out / 'dense.json').read_text()) == result
    capsys.readouterr()


@pytest.mark.parametrize('arguments, expected', [
    ([], 'no world is given'), (['--layouts', '{}', '--jobs', '1'], 'class1.png'),
    (['--worlds', '{}/none.npz'], 'none.npz'), (['--worlds', 'x', '--jobs', '0'], '--jobs 0')])
def test_what_cannot_be_judged_is_said_in_one_line(tmp_path, capsys, arguments, expected):
    found = single_frames.main([text.format(tmp_path) for text in arguments] + [
        '--out', str(tmp_path)])
    message = capsys.readouterr().err
    assert found == 2 and expected in message and message.count('\n') == 1
