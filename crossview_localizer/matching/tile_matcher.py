"""The paper's matcher: distances of the descriptor of an image to those of satellite tiles.

Shape legend: R, C rows and columns of the window; n tiles in it; K descriptor length.
"""

import cv2
import numpy as np
from scipy.special import log_softmax
import torch

from crossview_localizer.camera import views
from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import MapWindow
from crossview_localizer.matching.heatmap_pose import pose_from_heatmap
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.safa import views_to_tensor

REFINE = 4  # steps per tile spacing to which scores are interpolated


class TileMatcher:
    """Matches positions; the heading is the prior's."""

    margin_m = 0.0
    needs_heading = True
    search_heatmaps = None

    def __init__(self, network, device: str = 'cpu', ground=None, refine: int = REFINE):
        """``ground`` runs in place of the network's ``embed_ground`` (OnnxBranch)."""
        self.network = network
        self.device = device
        self.refine = refine
        self.errors = network.config.match_errors
        self._embed_ground = ground or network.embed_ground

    def embed(self, image: CameraImage, yaw_rad: float, pitch_rad: float = 0.0) -> torch.Tensor:
        """Compute the descriptor (K,) of an image.

        The heading of the prior turns bird's-eye views and panoramas; the image of a front camera
        is taken as it is.
        """
        config = self.network.config
        view = views.ground_view(config.ground_view, image.rgb, image.camera, yaw_rad,
                                 config.view_px, config.px_m, pitch_rad)
        return self._embed_ground(views_to_tensor(view, self.device))[0]

    def match(self, ground: torch.Tensor, window: MapWindow, prior: PoseEstimate,
              search: SearchWindow | None = None) -> Heatmap:
        """Score all tiles of the map window: log-likelihood = -(2 - 2 cos) / temperature.

        The scores of the SAFA part are moved back by its mean error on validation drives, which is
        known in the axes of the vehicle; they are turned by the heading of the prior.
        """
        model = self.network.config
        # The length of the SAFA part of a descriptor; the detail part follows.
        safa_length = model.heads * model.channels if model.detail_weight else len(ground)
        descriptors = window.descriptors.to(ground.dtype)                      # (n, K)
        index = window.index.cpu().numpy()                                     # (R, C)
        known = index >= 0

        def on_grid(cosines: torch.Tensor) -> np.ndarray:
            scores = 2.0 * cosines.cpu().numpy().astype(np.float64) / model.temperature
            return np.where(known, scores[np.maximum(index, 0)], scores.min())

        offset_m = Pose2D(0.0, 0.0, prior.pose.yaw_rad).transform(
            np.array([model.offset_forward_m, model.offset_left_m]))
        scores = shifted_scores(
            on_grid(descriptors[:, :safa_length] @ ground[:safa_length]),
            offset_m / window.grid.cell_m)
        scores += on_grid(descriptors[:, safa_length:] @ ground[safa_length:])
        scores[~known] = -np.inf
        return heatmap_from_scores(scores, window.grid, self.refine, prior.stamp_ns)

    def estimate(self, heatmap: Heatmap,
                 prior: PoseEstimate) -> tuple[PoseEstimate | None, str]:
        """See ``pose_from_heatmap``; the edge of the window is one tile spacing wide."""
        return pose_from_heatmap(heatmap, prior, self.refine)


def shifted_scores(scores: np.ndarray, offset_cells: np.ndarray) -> np.ndarray:
    """Move scores (R, C) by minus (east, north) cells, with cubic interpolation.

    Scores from beyond the edge are those of the edge.
    """
    if not offset_cells.any():
        return scores
    rows, cols = np.indices(scores.shape, dtype=np.float32)
    highest = scores.max()  # subtracted to keep float32 precise near the highest scores
    return highest + cv2.remap(
        (scores - highest).astype(np.float32), cols + np.float32(offset_cells[0]),
        rows - np.float32(offset_cells[1]), cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE).astype(np.float64)


def heatmap_from_scores(
    log_likelihood: np.ndarray, grid: MapGrid, refine: int, stamp_ns: int,
) -> Heatmap:
    """Interpolate tile scores (R, C), -inf at missing tiles, to a ``refine`` times finer grid.

    The interpolation is cubic in the log-likelihood, so that the peak may lie between tiles.  A
    cell whose nearest tile is missing stays unknown.
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
    offset = filled.max()  # subtracted to keep float32 precise near the highest scores
    scores = cv2.remap(
        (filled - offset).astype(np.float32), map_cols, map_rows, cv2.INTER_CUBIC,
        borderMode=border).astype(np.float64)
    known_fine = cv2.remap(
        known.astype(np.uint8), map_cols, map_rows, cv2.INTER_NEAREST, borderMode=border) > 0
    scores[~known_fine] = -np.inf
    return Heatmap(stamp_ns, fine, log_softmax(scores))
