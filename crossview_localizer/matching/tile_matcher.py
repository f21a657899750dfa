"""From descriptors to a heat map, and from a heat map to what the filter may use of it.

Shape legend: R, C rows and columns of the window; n tiles in it; K descriptor length.
"""

import cv2
import numpy as np
import torch

from crossview_localizer.camera import views
from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.networks.safa import views_to_tensor

# Less information than this share of the reference's is none: the position it would give lies far
# outside the window.
MIN_INFORMATION = 0.05
# What is claimed of such a direction instead, as a share of the reference's information.
NO_INFORMATION = 1e-5


class TileMatcher:
    """The paper's matcher: descriptor distances from one frame to the local satellite tiles."""

    margin_m = 0.0  # how far beyond the window the map must reach

    def __init__(self, network, device: str = 'cpu', ground=None):
        """``ground`` runs in place of the network's ``embed_ground`` (OnnxBranch)."""
        self.network = network
        self.device = device
        self._embed_ground = ground or network.embed_ground

    def embed(self, image: CameraImage, yaw_rad: float, pitch_rad: float = 0.0) -> torch.Tensor:
        """One network forward: the frame's descriptor (K,).

        The heading of the prior turns bird's-eye views and panoramas; a front camera's frame is
        taken as it is.
        """
        config = self.network.config
        view = views.ground_view(config.ground_view, image.rgb, image.camera, yaw_rad,
                                 config.view_px, config.px_m, pitch_rad)
        return self._embed_ground(views_to_tensor(view, self.device))[0]

    def match(self, ground: torch.Tensor, window, prior: PoseEstimate,
              config: MatchConfig) -> Heatmap:
        """Score the window's tiles; log-likelihood = -(2 - 2 cos) / temperature, normalised.

        The SAFA part leans by a mean offset in the vehicle's axes, measured on validation drives:
        its scores are moved back by it under the prior's heading.
        """
        model = self.network.config
        safa = model.heads * model.channels if model.detail_weight else len(ground)
        descriptors = window.descriptors.to(ground.dtype)                      # (n, K)
        index = window.index.cpu().numpy()                                     # (R, C)
        known = index >= 0

        def on_grid(cosines: torch.Tensor) -> np.ndarray:
            scores = 2.0 * cosines.cpu().numpy().astype(np.float64) / model.temperature
            return np.where(known, scores[np.maximum(index, 0)], scores.min())

        offset_m = Pose2D(0.0, 0.0, prior.pose.yaw_rad).transform(
            np.array([model.offset_forward_m, model.offset_left_m]))
        scores = moved(
            on_grid(descriptors[:, :safa] @ ground[:safa]), offset_m / window.grid.cell_m)
        scores += on_grid(descriptors[:, safa:] @ ground[safa:])
        scores[~known] = -np.inf
        return heatmap_from_scores(scores, window.grid, config.refine, prior.stamp_ns)

    def estimate(self, heatmap: Heatmap, prior: PoseEstimate, config: MatchConfig):
        """See ``position_from_heatmap``."""
        return position_from_heatmap(heatmap, prior, config)


def moved(scores: np.ndarray, offset_cells: np.ndarray) -> np.ndarray:
    """Scores (R, C) moved by minus (east, north) cells, cubic; the edge is repeated."""
    if not offset_cells.any():
        return scores
    rows, cols = np.indices(scores.shape, dtype=np.float32)
    highest = scores.max()  # keeps float32 precise where it matters
    return highest + cv2.remap(
        (scores - highest).astype(np.float32), cols + np.float32(offset_cells[0]),
        rows - np.float32(offset_cells[1]), cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE).astype(np.float64)


def heatmap_from_scores(
    log_likelihood: np.ndarray, grid: MapGrid, refine: int, stamp_ns: int,
) -> Heatmap:
    """Interpolate tile scores (R, C), -inf where no tile is, to a ``refine`` times finer grid.

    Cubic in the log-likelihood, so that the peak may lie between tiles; what is nearer to a
    missing tile than to a known one stays unknown.
    """
    known = np.isfinite(log_likelihood)
    if not known.any():
        raise ValueError('no tile in the window; expected at least one')
    fine = grid.refine(refine)
    filled = np.where(known, log_likelihood, log_likelihood[known].min())
    rows = (np.arange(fine.rows) / refine).astype(np.float32)
    cols = (np.arange(fine.cols) / refine).astype(np.float32)
    map_rows, map_cols = np.meshgrid(rows, cols, indexing='ij')
    border = cv2.BORDER_REPLICATE
    offset = filled.max()  # keeps float32 precise where it matters
    scores = cv2.remap(
        (filled - offset).astype(np.float32), map_cols, map_rows, cv2.INTER_CUBIC,
        borderMode=border).astype(np.float64)
    there = cv2.remap(
        known.astype(np.uint8), map_cols, map_rows, cv2.INTER_NEAREST, borderMode=border) > 0
    scores[~there] = -np.inf
    scores -= scores.max()
    return Heatmap(stamp_ns, fine, scores - np.log(np.exp(scores).sum()))


def edge_mass(heatmap: Heatmap, width_cells: int) -> float:
    """Probability within ``width_cells`` of the window's edge."""
    p = np.exp(heatmap.log_probability)
    inner = p[width_cells:-width_cells, width_cells:-width_cells]
    return float(1.0 - inner.sum())


def position_from_heatmap(
    heatmap: Heatmap, prior: PoseEstimate, config: MatchConfig,
) -> tuple[PoseEstimate | None, str]:
    """The position that the heat map alone supports, or None and the reason why it supports none.

    Moments of a likelihood cut off by a window are drawn to the window's centre, which is the
    prior's mean: fused as they are, they count the prior twice.  So the moments are taken under a
    broad Gaussian reference q about the prior and the reference is divided out again, both on the
    same cells:

        P0, m0 = moments of q;  P1, m1 = moments of q times likelihood
        R^-1 = P1^-1 - P0^-1;   z = R (P1^-1 m1 - P0^-1 m0)

    (the site of assumed-density filtering; Minka 2001).  A Gaussian likelihood comes back exactly,
    a constant one gives R^-1 = 0 whatever the window and the holes in the map.  A direction in
    which the likelihood is broader than the reference has no information and a huge variance.
    The yaw variance of the result is inf: a tile descriptor does not observe it.
    """
    if edge_mass(heatmap, config.refine) > config.max_edge_mass:
        return None, 'the best positions lie at the edge of the search window'
    x_m, y_m = heatmap.grid.cell_centres()
    offsets = np.stack(np.meshgrid(x_m - prior.pose.x_m, y_m - prior.pose.y_m), -1)  # (R, C, 2)
    reference = prior.covariance[:2, :2] * config.reference_inflation ** 2
    reference = reference + np.eye(2) * config.reference_floor_m ** 2
    cell_variances = np.full(2, heatmap.grid.cell_m ** 2 / 12.0)
    site, reason = likelihood_site(
        offsets.reshape(-1, 2), heatmap.log_probability.ravel(), reference, cell_variances,
        config.min_information_nats)
    if site is None:
        return None, reason
    mean, covariance_xy = site
    covariance = np.diag([0.0, 0.0, np.inf])
    covariance[:2, :2] = covariance_xy
    pose = Pose2D(
        prior.pose.x_m + float(mean[0]), prior.pose.y_m + float(mean[1]), prior.pose.yaw_rad)
    return PoseEstimate(heatmap.stamp_ns, pose, covariance), ''


def likelihood_site(
    offsets: np.ndarray, log_likelihood: np.ndarray, reference: np.ndarray,
    cell_variances: np.ndarray, min_information_nats: float,
) -> tuple[tuple[np.ndarray, np.ndarray] | None, str]:
    """Mean (d,) and covariance (d, d) of a likelihood on cells, or None and why there is none.

    ``offsets`` (n, d) from the prior's mean, ``log_likelihood`` (n,), -inf where unknown,
    ``reference`` (d, d) the Gaussian that is multiplied in and divided out again.  No result is
    finer than the cells, whose own variance along each axis is ``cell_variances`` (d,).
    """
    log_q = -0.5 * np.einsum('ni,ij,nj->n', offsets, np.linalg.inv(reference), offsets,
                             optimize=True)
    log_q[~np.isfinite(log_likelihood)] = -np.inf
    mean0, cov0 = _moments(offsets, log_q)
    mean1, cov1 = _moments(offsets, log_q + log_likelihood)
    precision0 = np.linalg.inv(cov0 + np.diag(cell_variances))
    precision1 = np.linalg.inv(cov1 + np.diag(cell_variances))
    gain_nats = 0.5 * (np.linalg.slogdet(precision1)[1] - np.linalg.slogdet(precision0)[1])
    if gain_nats < min_information_nats:
        return None, 'the heat map is nearly uniform'

    # Information relative to the reference's: in its axes metres and radians are alike.
    root = np.linalg.cholesky(precision0)
    relative = np.linalg.solve(root, np.linalg.solve(root, precision1 - precision0).T)
    values, vectors = np.linalg.eigh((relative + relative.T) / 2.0)
    informed = values > MIN_INFORMATION
    # Along a direction without information the reference's mean stands, with a huge variance.
    values = np.where(informed, values, NO_INFORMATION)
    axes = np.linalg.solve(root.T, vectors)                         # (d, d)
    covariance = axes @ np.diag(1.0 / values) @ axes.T
    pull = axes.T @ (precision1 @ mean1 - precision0 @ mean0)
    rest = axes.T @ precision0 @ mean0
    return (axes @ np.where(informed, pull / values, rest), covariance), ''


def _moments(offsets: np.ndarray, log_weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ offsets
    centred = offsets - mean
    return mean, (centred * weight[:, None]).T @ centred
