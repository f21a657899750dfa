"""Bags and imagery become a training file; images without a known true pose do not."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import rasterio
import recorded_drive as made

from training.data.datasets import load_world
from training.prepare import main, prepare

SECONDS = 16.0


@pytest.fixture(scope='module')
def imagery(tmp_path_factory):
    """400 m by 400 m about the origin of the drive."""
    path = tmp_path_factory.mktemp('imagery') / 'ortho.tif'
    with rasterio.open(
            path, 'w', driver='GTiff', width=200, height=200, count=3, dtype='uint8',
            crs=made.FRAME.proj4,
            transform=rasterio.Affine(2.0, 0.0, -200.0, 0.0, -2.0, 200.0)) as file:
        file.write(np.random.default_rng(0).integers(0, 255, (3, 200, 200)).astype(np.uint8))
    return path


@pytest.fixture(scope='module')
def bag(ros, tmp_path_factory):
    """Images at 4 Hz; the truth is not known from 4 to 9 s and after 12 s."""
    truth = [entry for entry in made.truth_messages(SECONDS) if not 4.0 < entry[1] < 9.0]
    return made.write_bag(
        tmp_path_factory.mktemp('bag') / 'drive',
        [*made.input_messages(SECONDS), *(entry for entry in truth if entry[1] <= 12.0)])


def test_images_in_a_gap_of_the_truth_or_after_its_end_are_left_out_and_reported(bag, imagery):
    said = []
    world = prepare([bag], [imagery], 'circle', 0.5, 0.0, said.append)
    # Known: 0 to 4 s and 9 to 12 s, the ends included.
    assert len(world.images) == len(world.poses) == 17 + 13
    assert said == [f'{bag}: 34 images without a known true pose are left out']
    distance_m = np.hypot(*(world.poses[:, :2]).T)
    # A straight line through the gap of 30 m would pass 1.9 m inside the circle.
    assert distance_m == pytest.approx(made.RADIUS_M, abs=0.2)


def test_images_are_as_far_apart_as_is_asked_for(bag, imagery):
    world = prepare([bag], [imagery], 'circle', 0.5, 4.0, lambda text: None)
    steps_m = np.hypot(*np.diff(world.poses[:, :2], axis=0).T)
    assert steps_m.min() >= 4.0 and np.median(steps_m) == pytest.approx(4.5, abs=0.1)


def test_the_command_writes_a_file_that_training_reads(bag, imagery, tmp_path, capsys):
    out = tmp_path / 'circle.npz'
    assert main([str(bag), '--imagery', str(imagery), '--out', str(out), '--px-m', '0.5']) == 0
    assert 'images without a known true pose' in capsys.readouterr().out
    world = load_world(out)
    assert world.name == 'circle' and len(world.images) == len(world.poses)
    assert [path.name for path in tmp_path.iterdir()] == ['circle.npz']


def test_a_bag_without_truth_ends_with_one_line(ros, imagery, tmp_path, capsys):
    bag = made.write_bag(tmp_path / 'bag', made.input_messages(2.0))
    out = tmp_path / 'a.npz'
    assert main([str(bag), '--imagery', str(imagery), '--out', str(out)]) == 2
    error = capsys.readouterr().err
    assert 'holds no ground truth' in error and error.count('\n') == 1
    assert not out.exists()
