"""calibrate_camera: a likelihood of known shape gives back the camera that it was made with."""

import numpy as np
import pytest

from crossview_localizer import calibrate_camera
from crossview_localizer.calibrate_camera import calibrate, Calibration, Frame
from crossview_localizer.config import LocalizerConfig
from crossview_localizer.geometry import Pose2D

CELL_M, REACH = 0.5, 10
TRUE = np.array([1.58, -0.004, 0.7, -0.45])  # height, pitch, imagery's offset east and north


def frames(count):
    return [Frame(None, Pose2D(10.0 * k, 0.0, 0.0)) for k in range(count)]


def gaussian_volume(noise_m=0.0, true=TRUE, sigma=(0.1, 0.012, 0.8, 0.8)):
    """Log-likelihoods whose maximum lies at ``true``, moved by each frame's own noise."""
    def volume(frame, height_m, pitch_rad):
        rng = np.random.default_rng(round(frame.pose.x_m))
        x, y = true[2:] + noise_m * rng.standard_normal(2)
        offset_m = CELL_M * np.arange(-REACH, REACH + 1)
        east, north = np.meshgrid(offset_m, -offset_m)
        return -0.5 * (((height_m - true[0]) / sigma[0]) ** 2
                       + ((pitch_rad - true[1]) / sigma[1]) ** 2
                       + ((east - x) / sigma[2]) ** 2 + ((north - y) / sigma[3]) ** 2), CELL_M
    return volume


def test_a_quadratic_likelihood_gives_back_camera_and_offset_exactly():
    found = calibrate(frames(12), gaussian_volume(), 1.52, 0.0)
    assert np.allclose(found.values, TRUE, atol=(1e-3, 1e-4, 5e-3, 5e-3))
    assert found.at_edge == ()
    expected = 0.5 * (0.6 ** 2 + (0.004 / 0.012) ** 2 + (0.7 ** 2 + 0.45 ** 2) / 0.8 ** 2)
    assert found.gain_nats == pytest.approx(expected, abs=0.02)


def test_the_offsets_uncertainty_is_that_of_the_mean_over_frames():
    found = calibrate(frames(40), gaussian_volume(noise_m=0.6), 1.52, 0.0)
    assert np.abs(found.values[2:] - TRUE[2:]).max() < 4 * 0.6 / np.sqrt(40)
    assert np.all(found.sigmas[2:] > 0.5 * 0.6 / np.sqrt(40))
    assert np.all(found.sigmas[2:] < 2.0 * 0.6 / np.sqrt(40))


def test_a_camera_beyond_what_was_tried_is_said_to_be_at_the_edge():
    far = np.array([2.4, -0.004, 0.7, -0.45])
    assert 'height' in calibrate(frames(12), gaussian_volume(true=far), 1.52, 0.0).at_edge


def summary_of(values, sigmas, undetermined=()):
    found = Calibration(np.array(values), np.array(sigmas), 20, 0.1, (), undetermined)
    return calibrate_camera.summary(found, LocalizerConfig(), False)


def test_only_what_the_drive_tells_is_proposed():
    both = summary_of((1.62, 0.010, 0.0, 0.0), (0.02, 0.002, 0.1, 0.1))
    assert 'height_m: 1.620' in both and 'pitch_rad: 0.01000' in both
    unsure = summary_of((1.55, 0.010, 0.0, 0.0), (0.02, 0.002, 0.1, 0.1))
    assert 'height: not told apart' in unsure and 'height_m:' not in unsure
    none = summary_of((1.62, 0.001, 0.0, 0.0), (0.02, 0.002, 0.1, 0.1), ('height',))
    assert 'height: not determined' in none and 'parameter file' not in none


def test_a_pitch_that_every_frame_has_otherwise_is_not_determined():
    sure = gaussian_volume()

    def volume(frame, height_m, pitch_rad):
        rng = np.random.default_rng(round(frame.pose.x_m))
        return sure(frame, height_m, pitch_rad + rng.normal(0.0, 0.06))

    assert calibrate(frames(12), volume, 1.52, 0.0).undetermined == ('pitch',)
    assert calibrate(frames(12), sure, 1.52, 0.0).undetermined == ()


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match='9 frames.*at least 10'):
        calibrate(frames(9), gaussian_volume(), 1.52, 0.0)


def test_missing_files_give_one_line_and_exit_code_2(tmp_path, capsys):
    assert calibrate_camera.main([
        str(tmp_path / 'bag'), '--map', str(tmp_path / 'no.map'), '--weights',
        str(tmp_path / 'no.safetensors')]) == 2
    message = capsys.readouterr().err
    assert message.startswith('calibrate_camera: ') and message.count('\n') == 1
