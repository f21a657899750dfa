"""The slow offset of a drive: the posterior is the one of Gaussian processes in closed form."""

import numpy as np
import pytest

from training.recipes.drive_offsets import offset_posterior, reach_cells

CELL_M, SIGMA_M, TAU_S = 0.5, 3.0, 60.0


def gaussian_log_likelihoods(seen_m: np.ndarray, noise: np.ndarray, sigma_m=SIGMA_M):
    """Log-likelihoods (N, R, R) of offsets that were seen at (N, 2) with a covariance (2, 2)."""
    reach = reach_cells(sigma_m, CELL_M)
    axis_m = np.arange(-reach, reach + 1) * CELL_M
    x, y = np.meshgrid(axis_m, -axis_m)
    off = np.stack((x, y), -1)[None] - seen_m[:, None, None]            # (N, R, R, 2)
    return -0.5 * np.einsum('nrci,ij,nrcj->nrc', off, np.linalg.inv(noise), off)


def gaussian_process(times_s, seen_m, noise):
    """Mean (N, 2) and covariance (N, 2, 2) of an Ornstein-Uhlenbeck process seen with noise."""
    count = len(times_s)
    correlation = np.exp(-np.abs(times_s[:, None] - times_s[None]) / TAU_S)
    prior = np.kron(SIGMA_M ** 2 * correlation, np.eye(2))
    gain = prior @ np.linalg.inv(prior + np.kron(np.eye(count), noise))
    mean = (gain @ seen_m.ravel()).reshape(count, 2)
    covariance = prior - gain @ prior
    return mean, np.array([covariance[2 * k:2 * k + 2, 2 * k:2 * k + 2] for k in range(count)])


def test_the_posterior_of_gaussian_images_is_that_of_the_gaussian_process():
    rng = np.random.default_rng(0)
    times_s = np.cumsum(rng.uniform(4.0, 12.0, 20))
    noise = np.array([[4.0, 1.5], [1.5, 2.0]])
    offset_m = 2.0 * np.stack((np.sin(times_s / 60.0), np.cos(times_s / 45.0)), 1)
    seen_m = offset_m + rng.multivariate_normal((0.0, 0.0), noise, 20)
    means, covariances = offset_posterior(
        gaussian_log_likelihoods(seen_m, noise), times_s, CELL_M, SIGMA_M, TAU_S)
    expected, expected_covariances = gaussian_process(times_s, seen_m, noise)
    assert means == pytest.approx(expected, abs=0.08)
    assert covariances == pytest.approx(expected_covariances, abs=0.12)


def test_images_that_say_nothing_leave_the_offset_as_unknown_as_it_was():
    times_s = np.arange(0.0, 300.0, 3.0)
    reach = reach_cells(2.0, CELL_M)
    flat = np.zeros((100, 2 * reach + 1, 2 * reach + 1))
    means, covariances = offset_posterior(flat, times_s, CELL_M, 2.0, TAU_S)
    assert np.abs(means).max() < 1e-6
    # Cut off at three sigmas, a Gaussian has 0.97 of its variance.
    assert covariances == pytest.approx(np.repeat(4.0 * np.eye(2)[None], 100, 0), rel=0.06,
                                        abs=1e-6)


def test_many_vague_images_of_one_offset_find_it():
    rng = np.random.default_rng(1)
    times_s, noise = np.arange(0.0, 120.0, 0.5), 30.0 * np.eye(2)
    seen_m = np.array([2.5, -1.5]) + rng.multivariate_normal((0.0, 0.0), noise, len(times_s))
    means, covariances = offset_posterior(
        gaussian_log_likelihoods(seen_m, noise), times_s, CELL_M, SIGMA_M, 600.0)
    assert np.hypot(*(means - (2.5, -1.5)).T).max() < 1.2
    assert np.sqrt(covariances.trace(axis1=1, axis2=2)).max() < 1.2
