"""The dense matcher: a bird's-eye view against the descriptor raster, over place and heading."""

import copy
from dataclasses import dataclass
import math

import numpy as np
from scipy.special import chdtri, fdtri
import torch
from torch import nn
import torch.nn.functional as F

from crossview_localizer.camera import views
from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import CameraImage, Heatmap, PoseEstimate
from crossview_localizer.geometry import MapGrid, Pose2D, wrap_angle
from crossview_localizer.maps.embedding_map import MapWindow
from crossview_localizer.matching.tile_matcher import edge_mass, likelihood_site
from crossview_localizer.networks.dense import correlate, DenseNetwork, GAUSSIAN_DOF, turned_views
from crossview_localizer.networks.trunks import normalised

YAW_REFINE = 4        # steps per yaw bin to which the scores are interpolated
PEAK_RADIUS_M = 3.0   # of what belongs to a single frame's best place
SEARCH_POOL = 4       # raster cells a side that the search for a pose averages


class DenseMatcher:
    """Scores poses in the prior's window; the interface is ``TileMatcher``'s."""

    def __init__(self, network: DenseNetwork, device: str = 'cpu', ground=None):
        """``ground`` runs in place of the network's ground branch (OnnxBranch)."""
        self.network = network
        self.device = device
        self._ground = ground or network.ground
        config = network.config
        # The patch lies ahead of the pose: the map must reach that much farther.  A block reaches
        # half its side beyond its centre; a cell more, as the raster is cut at whole cells.
        self.margin_m = (config.middle_m + (config.patch_cells / 2 + 1) * config.cell_m
                         - config.block_px * config.px_m / 2)

    @torch.inference_mode()
    def embed(self, image: CameraImage, yaw_rad: float, pitch_rad: float = 0.0):
        """One network forward: weighted descriptors (1, C, F, L) and weights (1, 1, F, L).

        In the vehicle's own axes: the heading is not needed.
        """
        lifted = views.lifted_view(image.rgb, image.camera, self.network.config, pitch_rad)
        return self._ground(*ground_tensors([lifted], self.device))

    @torch.inference_mode()
    def match(self, ground, window: MapWindow, prior: PoseEstimate,
              config: MatchConfig) -> Heatmap:
        """Log-probability over place and heading, and over place alone (its sum over yaw)."""
        found, yaws_rad, grid = self.scores(ground, window, prior, config)
        scores = found.double().cpu().numpy()
        scores = scores - scores.max()
        volume = scores - np.log(np.exp(scores).sum())
        return Heatmap(prior.stamp_ns, grid, _log_sum(volume), yaws_rad, volume)

    def scores(self, ground, window: MapWindow, prior: PoseEstimate, config: MatchConfig):
        """Log-likelihood (K, R, C) up to a constant, its yaws (K,) and the grid of its places."""
        model = self.network.config
        yaws_rad = yaw_bins(prior, config)                                      # (K,)
        places = 2 * math.ceil(config.half_width_m(prior.covariance) / model.cell_m) + 1
        heading = prior.pose.yaw_rad
        ahead_m = model.middle_m * np.array([math.cos(heading), math.sin(heading)])
        raster, missing, grid = self.cut(
            window, prior.pose.x_m + ahead_m[0], prior.pose.y_m + ahead_m[1],
            places + model.patch_cells - 1)
        scores = self.network.scores(
            *ground, raster, torch.from_numpy(yaws_rad)[None].to(self.device), heading,
            missing)[0] / model.temperature                                     # (K, R, C)
        middle = (model.patch_cells - 1) / 2 * model.cell_m
        places_grid = MapGrid(places, places, model.cell_m, grid.x0_m + middle - ahead_m[0],
                              grid.y0_m - middle - ahead_m[1])
        return scores, yaws_rad, places_grid

    def cut(self, window: MapWindow, x_m: float, y_m: float, side: int):
        """The descriptors about a point, what is missing and their grid: ``window_raster``."""
        model = self.network.config
        return window_raster(window, model.block_cells, model.cell_m, x_m, y_m, side)

    @torch.inference_mode()
    def search_heatmaps(self, ground, embedding_map, yaws_rad: np.ndarray, x_m: float, y_m: float,
                        half_width_m: float) -> list[Heatmap] | None:
        """A heat map under each heading (K,), for the search among many poses; None off the map.

        On cells of SEARCH_POOL of the raster's, whose descriptors are averaged.  The maps are
        normalised together: exp sums to K over all of them.
        """
        model = self.network.config
        middle = PoseEstimate(0, Pose2D(x_m, y_m, 0.0), np.eye(3))
        window = embedding_map.window(middle, half_width_m + 2 * self.margin_m)
        if window is None:
            return None
        cell_m = SEARCH_POOL * model.cell_m
        side = 2 * math.ceil((half_width_m + self.margin_m) / cell_m) * SEARCH_POOL
        raster, _, grid = self.cut(window, x_m, y_m, side)
        raster = F.avg_pool2d(raster, SEARCH_POOL)                      # (C, N, N)
        patches = torch.cat([
            turned_views(ground[0], torch.tensor([[yaw_rad]]).to(ground[0]), yaw_rad, model)[0]
            for yaw_rad in yaws_rad])                                   # (K, C, P, P)
        patches = F.avg_pool2d(patches, SEARCH_POOL)[None]
        scale = self.network.log_scale.exp() * SEARCH_POOL ** 2 / (
            model.ahead_cells * model.across_cells * model.temperature)
        scores = (correlate(patches, raster)[0] * scale).double().cpu().numpy()
        scores -= scores.max()
        volume = scores + math.log(len(yaws_rad)) - math.log(np.exp(scores).sum())
        places = volume.shape[1]
        # Element (0, 0): base_link, with its patch in the raster's north-west corner.
        first_m = (model.patch_cells - 1) / 2 * model.cell_m
        return [
            Heatmap(0, MapGrid(
                places, places, cell_m, grid.x0_m + first_m - model.middle_m * math.cos(yaw_rad),
                grid.y0_m - first_m - model.middle_m * math.sin(yaw_rad)), log_p)
            for yaw_rad, log_p in zip(yaws_rad, volume)]

    def estimate(self, heatmap: Heatmap, prior: PoseEstimate, config: MatchConfig):
        """See ``pose_from_volume``."""
        return pose_from_volume(heatmap, prior, config)


class HalfFeatures(nn.Module):
    """Pyramid of a trunk in half precision; its features are float32."""

    def __init__(self, pyramid: nn.Module):
        super().__init__()
        self.pyramid = pyramid.half()

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return self.pyramid(maps).float()


class HalfGround:
    """A dense network's ground branch, its trunk in half precision, float32 in and out.

    What follows the trunk stays in float32: it normalises cells that may be zero.  On a GPU the
    many small kernels are recorded as one CUDA graph for each size of image, in the channels-last
    layout of their convolutions.
    """

    def __init__(self, network: DenseNetwork):
        self._branch = copy.deepcopy(network.ground).to(memory_format=torch.channels_last)
        self._branch.trunk.half()
        self._branch.pyramid = HalfFeatures(self._branch.pyramid)
        self._graphs: dict[tuple[int, ...], tuple] = {}

    def __call__(self, images: torch.Tensor, road: torch.Tensor, points: torch.Tensor):
        if not images.is_cuda:
            return self._branch(images.half(), road, points)
        inputs, key = (images, road, points), tuple(images.shape)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(inputs)
        graph, places, outputs = self._graphs[key]
        for place, value in zip(places, inputs):
            place.copy_(value, non_blocking=True)
        graph.replay()
        return tuple(value.clone() for value in outputs)

    def _recorded(self, inputs: tuple[torch.Tensor, ...]):
        """The graph, where its inputs belong, and where it leaves its outputs."""
        images, road, points = inputs
        places = [images.half().contiguous(memory_format=torch.channels_last), road.clone(),
                  points.clone()]
        # Libraries choose their kernels in the first runs, which must not be recorded.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._branch(*places)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = self._branch(*places)
        return graph, places, outputs


def ground_tensors(lifted: list[views.LiftedView], device: str = 'cpu'):
    """Lifted views to the ground branch's three inputs, as a batch."""
    def uploaded(values: list[np.ndarray]) -> torch.Tensor:
        found = torch.from_numpy(values[0][None] if len(values) == 1 else np.stack(values))
        if str(device).startswith('cuda'):
            return found.pin_memory().to(device, non_blocking=True)
        return found.to(device)

    images = normalised(uploaded([v.trunk_image for v in lifted]))
    road = uploaded([v.road for v in lifted])
    mask = road[..., 3:].permute(0, 3, 1, 2).float() / 255.0
    points = uploaded([v.points for v in lifted])
    return images, torch.cat((normalised(road[..., :3]) * mask, mask), 1), points


def yaw_bins(prior: PoseEstimate, config: MatchConfig) -> np.ndarray:
    """Headings about the prior's: ``window_sigmas`` each way, within the configured limits."""
    reach = config.window_sigmas * math.sqrt(prior.covariance[2, 2])
    reach = min(max(reach, config.yaw_min_rad), config.yaw_max_rad)
    steps = math.ceil(reach / config.yaw_step_rad)
    return prior.pose.yaw_rad + config.yaw_step_rad * np.arange(-steps, steps + 1)


def window_raster(window: MapWindow, block_cells: int, cell_m: float, x_m: float, y_m: float,
                  side: int) -> tuple[torch.Tensor, torch.Tensor | None, MapGrid]:
    """The square of ``side`` cells nearest to a point, cut from the blocks of a map window.

    Returns descriptors (C, side, side), zero where missing; a mask (side, side) that is 1 there,
    or None where nothing is missing; and the cells' grid.
    """
    blocks = window.grid
    # Cell (0, 0) of the window's north-west block.
    x0_m = blocks.x0_m - (block_cells - 1) / 2 * cell_m
    y0_m = blocks.y0_m + (block_cells - 1) / 2 * cell_m
    left = round((x_m - x0_m) / cell_m - (side - 1) / 2)
    top = round((y0_m - y_m) / cell_m - (side - 1) / 2)
    grid = MapGrid(side, side, cell_m, x0_m + left * cell_m, y0_m - top * cell_m)
    channels = window.rows.shape[1] // block_cells ** 2
    raster = torch.zeros(channels, side, side, device=window.rows.device)
    missing = torch.ones(side, side, device=window.rows.device)
    index = window.index.numpy()
    for row, col in zip(*np.nonzero(index >= 0)):
        # Where the block lies in the square, cut off at its edges.
        r, c = row * block_cells - top, col * block_cells - left
        r0, r1 = max(r, 0), min(r + block_cells, side)
        c0, c1 = max(c, 0), min(c + block_cells, side)
        if r0 < r1 and c0 < c1:
            block = window.rows[index[row, col]].view(channels, block_cells, block_cells)
            raster[:, r0:r1, c0:c1] = block[:, r0 - r:r1 - r, c0 - c:c1 - c]
            missing[r0:r1, c0:c1] = 0.0
    return raster, missing if missing.any() else None, grid


def pose_from_volume(
    heatmap: Heatmap, prior: PoseEstimate, config: MatchConfig,
) -> tuple[PoseEstimate | None, str]:
    """The pose that the score volume alone supports, or None and the reason why there is none.

    As ``matching.position_from_heatmap``, over x, y and yaw.
    """
    edge_cells = max(1, round(config.edge_m / heatmap.grid.cell_m))
    if edge_mass(heatmap, edge_cells) > config.max_edge_mass:
        return None, 'the best positions lie at the edge of the search window'
    yaws_rad, volume = finer_yaws(heatmap.yaws_rad, heatmap.volume, YAW_REFINE)
    x_m, y_m = heatmap.grid.cell_centres()
    yaw_step_rad = yaws_rad[1] - yaws_rad[0]
    offsets = np.stack(np.broadcast_arrays(
        (x_m - prior.pose.x_m)[None, None, :], (y_m - prior.pose.y_m)[None, :, None],
        (yaws_rad - prior.pose.yaw_rad)[:, None, None]), -1)                    # (K, R, C, 3)
    reference = prior.covariance * config.reference_inflation ** 2 + np.diag(
        [config.reference_floor_m ** 2] * 2 + [config.reference_floor_rad ** 2])
    cell_variances = np.array(
        [heatmap.grid.cell_m ** 2, heatmap.grid.cell_m ** 2, yaw_step_rad ** 2]) / 12.0
    site, reason = likelihood_site(
        offsets.reshape(-1, 3), volume.ravel(), reference, cell_variances,
        config.min_information_nats)
    if site is None:
        return None, reason
    mean, covariance = site
    pose = Pose2D(prior.pose.x_m + float(mean[0]), prior.pose.y_m + float(mean[1]),
                  wrap_angle(prior.pose.yaw_rad + float(mean[2])))
    return PoseEstimate(heatmap.stamp_ns, pose, covariance), ''


def finer_yaws(yaws_rad: np.ndarray, volume: np.ndarray, factor: int):
    """Log-probabilities (K, R, C) interpolated linearly to ``factor`` times as many yaws."""
    count = len(yaws_rad)
    places = np.arange((count - 1) * factor + 1) / factor
    low = np.minimum(places.astype(int), count - 2)
    share = (places - low)[:, None, None]
    fine = volume[low] * (1.0 - share) + volume[low + 1] * share
    return np.interp(places, np.arange(count), yaws_rad), fine


def _log_sum(volume: np.ndarray) -> np.ndarray:
    highest = volume.max()
    with np.errstate(divide='ignore'):
        total = np.log(np.exp(volume - highest).sum(0))
    return total - np.log(np.exp(total).sum())


@dataclass(frozen=True)
class Peak:
    """The best place of a heat map: its element, what lies about it (R, C), and how much."""

    row: int
    col: int
    near: np.ndarray
    mass: float


def peak_of(heatmap: Heatmap, sharpening: float = 1.0) -> Peak:
    """The highest place, summed over yaw, and the probability within PEAK_RADIUS_M of it."""
    volume = heatmap.log_probability[None] if heatmap.volume is None else heatmap.volume
    places = np.exp(sharpening * (volume - volume.max())).sum(0)                 # (R, C)
    x_m, y_m = heatmap.grid.cell_centres()
    row, col = np.unravel_index(int(places.argmax()), places.shape)
    near = np.hypot(x_m - x_m[col], (y_m - y_m[row])[:, None]) <= PEAK_RADIUS_M
    return Peak(int(row), int(col), near, float(places[near].sum() / places.sum()))


def peak_pose(heatmap: Heatmap, prior: PoseEstimate, sharpening: float = 1.0,
              min_mass: float = 0.5, inflation: float = 1.0) -> tuple[PoseEstimate, bool]:
    """What one frame says by itself: its best place and heading, and whether it is ambiguous.

    Mean and covariance (times ``inflation``) of the probability about the highest place; where
    that is less than ``min_mass`` of all the answer is ambiguous and the covariance is the whole
    window's.
    Log-probabilities are multiplied by ``sharpening`` first: the temperature of least surprise at
    the true pose makes room for the frames that are wrong, and the others' peaks too wide.
    A heat map without headings takes the prior's.  For single frames; the filter takes
    ``pose_from_volume``.
    """
    if heatmap.volume is None:
        yaws_rad, volume = np.array([prior.pose.yaw_rad]), heatmap.log_probability[None]
        yaw_variance = prior.covariance[2, 2]
    else:
        yaws_rad, volume = finer_yaws(heatmap.yaws_rad, heatmap.volume, YAW_REFINE)
        yaw_variance = (yaws_rad[1] - yaws_rad[0]) ** 2 / 12.0
    weight = np.exp(sharpening * (volume - volume.max()))                       # (K, R, C)
    x_m, y_m = heatmap.grid.cell_centres()
    peak = peak_of(heatmap, sharpening)
    row, col, ambiguous = peak.row, peak.col, peak.mass < min_mass
    if not ambiguous:
        rows, cols = peak.near.any(1), peak.near.any(0)
        weight = (weight * peak.near)[:, rows][:, :, cols]
        x_m, y_m, row, col = x_m[cols], y_m[rows], row - rows.argmax(), col - cols.argmax()
    weight /= weight.sum()
    cell_variance = heatmap.grid.cell_m ** 2 / 12.0
    offsets = np.stack(np.broadcast_arrays(
        (x_m - x_m[col])[None, None, :], (y_m - y_m[row])[None, :, None],
        (yaws_rad - prior.pose.yaw_rad)[:, None, None]), -1).reshape(-1, 3)
    mean = weight.ravel() @ offsets
    if ambiguous:
        mean[:2] = 0.0  # the best place stands
    centred = offsets - mean
    covariance = (centred * weight.reshape(-1, 1)).T @ centred
    covariance += np.diag([cell_variance, cell_variance, yaw_variance])
    pose = Pose2D(float(x_m[col] + mean[0]), float(y_m[row] + mean[1]),
                  wrap_angle(prior.pose.yaw_rad + float(mean[2])))
    if not ambiguous:
        covariance *= inflation
    return PoseEstimate(heatmap.stamp_ns, pose, covariance), ambiguous


def distance2_within(share: float, dof: float, dimensions: int = 3) -> float:
    """Squared Mahalanobis distance, by the covariance, that a share of the errors keeps within.

    For a multivariate Student t with ``dof`` > 2 degrees of freedom: its covariance is dof /
    (dof - 2) times its shape matrix, and by that a distance2 / dimensions has the F distribution
    (Kotz and Nadarajah, Multivariate t Distributions, 2004).
    """
    if dof >= GAUSSIAN_DOF:
        return float(chdtri(dimensions, 1.0 - share))
    return float(dimensions * fdtri(dimensions, dof, share) * (dof - 2.0) / dof)
