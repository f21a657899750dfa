"""How much a measurement counts, by its noise and by how far it lies from the prediction."""

import math

import numpy as np

# A single fix or match adds at most this squared distance to the mean.
MAX_DISTANCE2 = 25.0


def raised_to_floor(covariance: np.ndarray, sigma_floor: float) -> np.ndarray:
    """The covariance (n, n) with every principal sigma at least ``sigma_floor``."""
    if least_variance(covariance) >= sigma_floor**2:
        return covariance
    variances, axes = np.linalg.eigh(covariance)
    lacking = np.maximum(sigma_floor**2 - variances, 0.0)
    return covariance + (axes * lacking) @ axes.T


def least_variance(covariance: np.ndarray) -> float:
    """The smallest eigenvalue of a symmetric matrix (n, n)."""
    if len(covariance) == 2:  # most are; in closed form it takes a tenth of the time
        (xx, xy), (_, yy) = covariance.tolist()
        return (xx + yy) / 2.0 - math.hypot((xx - yy) / 2.0, xy)
    return float(np.linalg.eigvalsh(covariance)[0])


# w = min(1, (nu + n) / (nu + d2))       multivariate Student t with nu degrees of freedom
def tail_weight(distance2: float, size: int, tail_dof: float) -> float:
    """Share of the information that a residual with heavy-tailed errors keeps."""
    return min(1.0, (tail_dof + size) / (tail_dof + distance2))


# d2 = r' S^-1 r,  S = H P H' + R
def mahalanobis2(residual, jacobian, covariance, noise) -> float:
    """Squared Mahalanobis distance of a residual (n,)."""
    return squared_distance(residual, jacobian @ covariance @ jacobian.T + noise)


# d2 = r' S^-1 r
def squared_distance(residual: np.ndarray, spread: np.ndarray) -> float:
    """Squared Mahalanobis distance of a residual (n,) that has a covariance (n, n)."""
    if len(residual) == 2:  # as above
        (xx, xy), (_, yy) = spread.tolist()
        x, y = residual.tolist()
        return (yy * x * x - 2.0 * xy * x * y + xx * y * y) / (xx * yy - xy * xy)
    return float(residual @ np.linalg.solve(spread, residual))


def followed_distance2(mean: float, distance2: float, passed_s: float, memory_s: float) -> float:
    """The mean squared distance of the last ``memory_s``, with a new one."""
    keep = math.exp(-passed_s / memory_s)
    return keep * mean + (1.0 - keep) * min(distance2, MAX_DISTANCE2)
