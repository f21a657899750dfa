"""calibrate_camera: an offset of known likelihood comes back; what is not sure is kept."""

import math

import numpy as np
import pytest

from crossview_localizer import calibrate_camera
from crossview_localizer.bags.camera_calibration import fitted_camera, summary
from crossview_localizer.camera.motion import MotionFit
from crossview_localizer.config import CameraConfig
from crossview_localizer.geometry import Pose2D
from crossview_localizer.matching.imagery_offset import fit_offset, Offset, PosedImage

CELL_M, REACH = 0.5, 10
TRUE_M = np.array([0.7, -0.45])  # the imagery's offset east and north
CAMERA = CameraConfig(1.52, 0.0)


def frames(count):
    return [PosedImage(None, Pose2D(10.0 * k, 0.0, 0.0)) for k in range(count)]


def gaussian_volume(noise_m=0.0, true_m=TRUE_M):
    """Log-likelihoods whose maximum lies at ``true_m``, moved by the noise of each frame."""
    def volume(frame):
        rng = np.random.default_rng(round(frame.pose.x_m))
        x_m, y_m = true_m + noise_m * rng.standard_normal(2)
        offset_m = CELL_M * np.arange(-REACH, REACH + 1)
        east, north = np.meshgrid(offset_m, -offset_m)
        return -0.5 * (((east - x_m) / 0.8) ** 2 + ((north - y_m) / 0.8) ** 2), CELL_M
    return volume


def test_a_quadratic_likelihood_gives_back_its_offset_exactly():
    found = fit_offset(frames(12), gaussian_volume())
    np.testing.assert_allclose(found.xy_m, TRUE_M, atol=5e-3)
    assert not found.at_edge and found.frames == 12
    assert found.gain_nats == pytest.approx(0.5 * (0.7 ** 2 + 0.45 ** 2) / 0.8 ** 2, abs=0.02)


def test_the_offsets_uncertainty_is_that_of_the_mean_over_frames():
    found = fit_offset(frames(40), gaussian_volume(noise_m=0.6))
    assert np.abs(found.xy_m - TRUE_M).max() < 4 * 0.6 / np.sqrt(40)
    assert np.all(found.sigmas_m > 0.5 * 0.6 / np.sqrt(40))
    assert np.all(found.sigmas_m < 2.0 * 0.6 / np.sqrt(40))


def test_an_offset_beyond_the_tried_ones_is_reported_at_the_edge():
    far = fit_offset(frames(12), gaussian_volume(true_m=np.array([4.6, 0.0])))
    assert far.at_edge and 'at the edge' in summary(None, far, CAMERA)


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match='9 frames.*at least 10'):
        fit_offset(frames(9), gaussian_volume())


def motion(height_m, pitch_rad, sigmas=(0.04, 0.003)):
    return MotionFit(np.array([height_m, pitch_rad]), np.array(sigmas), 120)


def test_only_values_that_the_drive_determines_are_proposed():
    both = summary(motion(1.70, 0.010), None, CAMERA)
    assert 'height_m: 1.700' in both and 'pitch_rad: 0.01000' in both
    unsure = summary(motion(1.58, 0.010), None, CAMERA)
    assert 'pitch_rad:' in unsure and 'height_m:' not in unsure
    assert 'keep it' in summary(motion(1.55, 0.002), None, CAMERA)
    unknown = summary(motion(math.nan, 0.010), None, CAMERA)
    assert 'camera height   not determined' in unknown and 'height_m:' not in unknown
    assert 'height and pitch: not determined' in summary(None, None, CAMERA)


def test_the_offset_is_fitted_with_the_camera_that_was_found():
    assert fitted_camera(motion(1.70, 0.010), CAMERA) == CameraConfig(1.70, 0.010)
    assert fitted_camera(motion(1.55, 0.010), CAMERA) == CameraConfig(1.52, 0.010)
    assert fitted_camera(None, CAMERA) == fitted_camera(motion(math.nan, 0.0), CAMERA) == CAMERA
    offset = Offset(TRUE_M, np.array([0.05, 0.06]), 40, 0.2, False, True, without_pose=7)
    said = summary(None, offset, CAMERA)
    assert '7 images left out for want of a known pose' in said
    assert '0.70 m east +- 0.05' in said and '-0.45 m north' in said and 'the filter' in said


def test_missing_files_give_one_line_and_exit_code_2(tmp_path, capsys):
    def message_of(*arguments):
        assert calibrate_camera.main([str(tmp_path / 'bag'), *arguments]) == 2
        message = capsys.readouterr().err
        assert message.startswith('calibrate_camera: ') and message.count('\n') == 1
        return message

    assert 'does not exist' in message_of()
    assert 'needs both' in message_of('--map', str(tmp_path / 'no.map'))


def test_topics_of_other_names_are_proposed_and_taken_and_stamps_of_two_clocks_are_told(
        ros, tmp_path, capsys):
    import recorded_drive as made
    names = {'/odometry': '/wheels', '/camera/image/compressed': '/cam0/compressed'}
    drive = [(names.get(topic, topic), time_s, msg) for topic, time_s, msg in (
        *made.input_messages(2.0), *made.odometry_messages(2.0))]
    bag = str(made.write_bag(tmp_path / 'drive', drive))
    for options, said in (
            ([], f'{bag} holds no odometry on /odometry, but on /wheels: name it with '
             '--odometry-topic'),
            (['--odometry-topic', '/wheels'], 'on /cam0/compressed: name it with --image-topic')):
        assert calibrate_camera.main([bag, *options]) == 2
        assert said in capsys.readouterr().err
    assert calibrate_camera.main(
        [bag, '--odometry-topic', '/wheels', '--image-topic', '/cam0/compressed']) == 0
    assert 'height and pitch: not determined' in capsys.readouterr().out  # all pictures are alike

    for topic, _, msg in drive:
        if topic == '/cam0/compressed':
            msg.header.stamp.sec -= 10**9  # since the camera was switched on
    bag = str(made.write_bag(tmp_path / 'two_clocks', drive))
    assert calibrate_camera.main(
        [bag, '--odometry-topic', '/wheels', '--image-topic', '/cam0/compressed']) == 2
    assert 'images are stamped 400000000.0 to 400000001.8 s, odometry 1400000000' in (
        capsys.readouterr().err)
