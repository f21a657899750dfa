"""The dense matcher: what it lifts, where it finds a view, and what the filter gets of it."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_t
import torch
import torch.nn.functional as F

from crossview_localizer.camera import views
from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import CameraModel, Heatmap, PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.matching.dense_matcher import (
    DenseMatcher,
    distance2_within,
    finer_yaws,
    ground_tensors,
    peak_pose,
    pose_from_volume,
    window_raster,
    yaw_bins,
)
from crossview_localizer.networks.checkpoint import load_network, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import correlate, DenseConfig, GAUSSIAN_DOF, turned_views

SMALL = DenseConfig(
    channels=4, ahead_cells=16, across_cells=16, patch_cells=20, block_px=64, margin_px=64)
LOOKING_AHEAD = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
CAMERA = CameraModel(320, 240, 246.0, 246.0, 159.5, 119.5, LOOKING_AHEAD, 1.5)
CONFIG = MatchConfig()


def smooth_raster(channels: int, side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, side // 4, side // 4, generator=generator)
    return F.normalize(F.interpolate(coarse, size=(side, side), mode='bicubic'), dim=1)[0]


def view_of_raster(raster, row: float, col: float, yaw_rad: float, config: DenseConfig):
    """The bird's-eye view (1, C, F, L) that a vehicle at a fractional cell would have."""
    rows, cols, cell_m = config.ahead_cells, config.across_cells, config.cell_m
    ahead = (rows - 0.5 - np.arange(rows))[:, None]
    left = ((cols - 1) / 2 - np.arange(cols))[None, :]
    east = math.cos(yaw_rad) * ahead - math.sin(yaw_rad) * left
    north = math.sin(yaw_rad) * ahead + math.cos(yaw_rad) * left
    side = raster.shape[-1]
    places = np.stack((col + east, row - north), -1) / (side - 1) * 2.0 - 1.0
    assert cell_m == 0.5 and np.abs(places).max() < 1.0
    return F.grid_sample(
        raster[None], torch.from_numpy(places)[None].float(), align_corners=True)


@pytest.mark.parametrize('yaw_rad, heading_rad', [(0.3, 0.3), (2.0, 2.1), (-1.6, -1.5)])
def test_a_view_cut_from_the_raster_is_found_where_it_was_cut(yaw_rad, heading_rad):
    config, side = SMALL, 60
    raster = smooth_raster(config.channels, side, 1)
    row, col = 31.0, 29.0
    view = view_of_raster(raster, row, col, yaw_rad, config)
    wrong = torch.tensor([[yaw_rad - 0.2, yaw_rad, yaw_rad + 0.2]], dtype=torch.float64)
    turned = turned_views(view, wrong, heading_rad, config)
    found = correlate(turned, raster)[0]                                   # (3, M, M)
    # The patch's middle is ahead along the heading; its north-west cell is what is counted.
    middle = config.middle_m / config.cell_m
    expected_row = row - middle * math.sin(heading_rad) - (config.patch_cells - 1) / 2
    expected_col = col + middle * math.cos(heading_rad) - (config.patch_cells - 1) / 2
    best = int(found.argmax())
    places = found.shape[-1]
    assert best // places ** 2 == 1
    assert abs(best // places % places - expected_row) <= 0.51
    assert abs(best % places - expected_col) <= 0.51


def test_correlation_equals_the_sum_over_cells():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    window = torch.randn(4, 9, 9, generator=generator, dtype=torch.float64)
    expected = F.conv2d(window[None], patches.flatten(0, 1)).view(2, 3, 5, 5)
    torch.testing.assert_close(correlate(patches, window), expected)


def test_missing_imagery_counts_as_the_rest_of_the_view():
    network = random_network(SMALL, 0)
    raster = torch.zeros(4, 40, 40)
    raster[0] = 1.0
    missing = torch.zeros(40, 40)
    missing[:, 16:] = 1.0
    weight = torch.ones(1, 1, 16, 16)
    view = torch.zeros(1, 4, 16, 16)
    view[:, 0] = 1.0
    yaws = torch.tensor([[1.0]], dtype=torch.float64)
    with torch.no_grad():
        whole = network.scores(view, weight, raster, yaws, 1.0)
        holed = network.scores(view, weight, raster * (1.0 - missing), yaws, 1.0, missing)
    half_there = whole[0, 0, :, :6]
    torch.testing.assert_close(holed[0, 0, :, :6], half_there, rtol=1e-3, atol=1e-3)


def test_a_point_of_the_road_lies_at_its_row_and_one_above_it_higher():
    config = DenseConfig(heights_m=(0.0, 1.5))
    lifted = views.lifted_view(np.zeros((240, 320, 3), np.uint8), CAMERA, config)
    assert lifted.points.shape == (2, 64, 64, 2)
    height_px, width_px = lifted.trunk_image.shape[:2]
    assert height_px % 32 == 0 and width_px % 32 == 0
    # The cell 15.25 m ahead and 0.25 m to the left.
    row, col = 64 - 31, 31
    u_px = (lifted.points[0, row, col, 0] + 1.0) / 2.0 * width_px - 0.5
    assert u_px == pytest.approx((width_px - 1) / 2 - 180.0 * 0.25 / 15.25, abs=0.3)
    down_px = (lifted.points[0, row, col, 1] - lifted.points[1, row, col, 1]) / 2.0 * height_px
    assert down_px == pytest.approx(180.0 * 1.5 / 15.25, abs=0.3)
    # 1.5 m above the road is the camera's own height: the horizon, for every cell.
    seen = np.abs(lifted.points[1]).max(-1) <= 1.0
    assert np.ptp(lifted.points[1, seen, 1]) < 1e-5
    assert (lifted.points[:, -1] == 2.0).all(), 'what is below the image is not seen'


def test_pitching_the_camera_down_moves_the_road_up_in_the_image():
    image = np.zeros((240, 320, 3), np.uint8)
    level = views.lifted_view(image, CAMERA, DenseConfig())
    down = views.lifted_view(image, CAMERA, DenseConfig(), pitch_rad=0.02)
    seen = (np.abs(level.points[0]).max(-1) <= 1.0) & (np.abs(down.points[0]).max(-1) <= 1.0)
    assert (down.points[0, seen, 1] < level.points[0, seen, 1]).all()


def map_of_raster(raster: torch.Tensor, config: DenseConfig, leave_out=()) -> EmbeddingMap:
    """Blocks of a raster (C, N, N) whose north-west cell lies at (10, 50)."""
    side, count = config.block_cells, raster.shape[-1] // config.block_cells
    blocks = raster.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4)
    kept = [k for k in range(count ** 2) if k not in leave_out]
    index = torch.full((count ** 2,), -1)
    index[kept] = torch.arange(len(kept))
    half_m = (side - 1) / 2 * config.cell_m
    return EmbeddingMap(
        LocalFrame(51.0, -1.0),
        MapGrid(count, count, side * config.cell_m, 10.0 + half_m, 50.0 - half_m),
        index.view(count, count), blocks.flatten(0, 1).flatten(1)[kept].half(), 'f' * 64,
        config.tile_m, config.tile_px)


def test_the_window_is_cut_from_the_blocks_cell_by_cell():
    config = SMALL
    raster = smooth_raster(config.channels, 4 * config.block_cells, 2).half().float()
    built = map_of_raster(raster, config, leave_out=[0])
    prior = PoseEstimate(0, Pose2D(41.0, 17.0, 0.0), np.eye(3))
    window = built.window(prior, 8.0, 6.0)
    cut, missing, grid = window_raster(
        window, config.block_cells, config.cell_m, 41.1, 17.1, 41)
    assert missing is None
    col, row = round((grid.x0_m - 10.0) / 0.5), round((50.0 - grid.y0_m) / 0.5)
    torch.testing.assert_close(cut, raster[:, row:row + 41, col:col + 41])
    assert abs(grid.x0_m + 20 * 0.5 - 41.1) <= 0.25 and abs(grid.y0_m - 20 * 0.5 - 17.1) <= 0.25
    # At the corner whose block was left out, and beyond the map's edge.
    cut, missing, grid = window_raster(
        built.window(prior, 60.0), config.block_cells, config.cell_m, 14.0, 46.0, 41)
    col, row = round((grid.x0_m - 10.0) / 0.5), round((50.0 - grid.y0_m) / 0.5)
    assert missing[:32 - row].min() == 1.0 or missing[:32 - row, :32 - col].min() == 1.0
    assert missing[:, :-col].all(), 'west of the map'
    assert (cut[:, missing > 0] == 0).all()


def test_the_matcher_finds_place_and_heading_of_a_view_within_the_prior():
    config = SMALL
    raster = smooth_raster(config.channels, 8 * config.block_cells, 3)
    built = map_of_raster(raster, config)
    network = random_network(config, 0)
    with torch.no_grad():
        network.log_scale.fill_(math.log(600.0))
    matcher = DenseMatcher(network)
    truth = Pose2D(71.3, -12.8, 1.1)
    view = view_of_raster(
        raster, (50.0 - truth.y_m) / 0.5, (truth.x_m - 10.0) / 0.5, truth.yaw_rad, config)
    weight = torch.ones(1, 1, config.ahead_cells, config.across_cells)
    prior = PoseEstimate(
        5, Pose2D(74.0, -15.0, 1.06), np.diag([9.0, 9.0, math.radians(2.0) ** 2]))
    window = built.window(prior, 9.0, matcher.margin_m)
    heatmap = matcher.match((view, weight), window, prior, CONFIG)
    assert np.exp(heatmap.log_probability).sum() == pytest.approx(1.0)
    assert np.exp(heatmap.volume).sum() == pytest.approx(1.0)
    match, reason = matcher.estimate(heatmap, prior, CONFIG)
    assert match is not None, reason
    assert math.hypot(match.pose.x_m - truth.x_m, match.pose.y_m - truth.y_m) < 0.25
    assert abs(match.pose.yaw_rad - truth.yaw_rad) < math.radians(0.7)
    assert np.linalg.eigvalsh(match.covariance).min() > 0.0


def gaussian_volume(mean, covariance, prior, cell_m=0.5) -> Heatmap:
    grid = MapGrid.around(prior.pose.x_m, prior.pose.y_m, 15.0, cell_m)
    yaws_rad = prior.pose.yaw_rad + math.radians(1.0) * np.arange(-8, 9)
    x_m, y_m = grid.cell_centres()
    offset = np.stack(np.broadcast_arrays(
        (x_m - mean[0])[None, None, :], (y_m - mean[1])[None, :, None],
        (yaws_rad - mean[2])[:, None, None]), -1)
    volume = -0.5 * np.einsum('krci,ij,krcj->krc', offset, np.linalg.inv(covariance), offset)
    volume -= np.log(np.exp(volume).sum())
    highest = volume.max(0)
    marginal = highest + np.log(np.exp(volume - highest).sum(0))
    return Heatmap(3, grid, marginal, yaws_rad, volume)


PRIOR = PoseEstimate(
    3, Pose2D(100.0, 50.0, 0.5), np.diag([4.0, 4.0, math.radians(1.5) ** 2]))


def test_a_gaussian_volume_comes_back_with_mean_and_covariance():
    covariance = np.array([[1.5, -0.4, 0.01], [-0.4, 1.0, 0.0], [0.01, 0.0, 0.0006]])
    mean = np.array([101.2, 49.3, 0.52])
    match, _ = pose_from_volume(gaussian_volume(mean, covariance, PRIOR), PRIOR, CONFIG)
    np.testing.assert_allclose(match.pose.as_array(), mean, atol=0.03)
    np.testing.assert_allclose(match.covariance, covariance, rtol=0.15, atol=0.03)


def test_a_constant_volume_and_one_at_the_edge_give_no_update():
    flat = gaussian_volume((100.0, 50.0, 0.5), np.eye(3) * 1e8, PRIOR)
    match, reason = pose_from_volume(flat, PRIOR, CONFIG)
    assert match is None and 'uniform' in reason
    edge = gaussian_volume((115.0, 50.0, 0.5), np.diag([0.3, 0.3, 0.001]), PRIOR)
    match, reason = pose_from_volume(edge, PRIOR, CONFIG)
    assert match is None and 'edge' in reason


def two_peaks(second: float) -> Heatmap:
    """One peak at PRIOR's place, another 10 m north of ``second`` times its mass."""
    covariance = np.diag([0.3, 0.5, 0.0009])
    first = gaussian_volume((100.0, 50.0, 0.52), covariance, PRIOR)
    other = gaussian_volume((100.0, 60.0, 0.52), covariance, PRIOR)
    volume = np.logaddexp(first.volume, math.log(second) + other.volume)
    return Heatmap(3, first.grid, np.log(np.exp(volume).sum(0)), first.yaws_rad, volume)


@pytest.mark.parametrize('sharpening', [1.0, 2.5])
def test_a_single_frame_takes_the_shape_of_its_best_peak_alone(sharpening):
    estimate, ambiguous = peak_pose(two_peaks(0.3), PRIOR, sharpening)
    assert not ambiguous
    np.testing.assert_allclose(estimate.pose.as_array(), (100.0, 50.0, 0.52), atol=0.02)
    np.testing.assert_allclose(
        np.diag(estimate.covariance)[:2], np.array([0.3, 0.5]) / sharpening + 0.25 / 12, rtol=0.1)
    assert estimate.covariance[2, 2] == pytest.approx(0.0009 / sharpening, rel=0.15)


def test_a_single_frame_of_two_like_peaks_is_ambiguous_and_claims_the_window():
    estimate, ambiguous = peak_pose(two_peaks(0.95), PRIOR, 1.0, 0.6)
    assert ambiguous
    np.testing.assert_allclose(estimate.pose.as_array()[:2], (100.0, 50.0), atol=0.01)
    # About the better place, not their mean: half of 10 m squared.
    assert estimate.covariance[1, 1] == pytest.approx(49.0, rel=0.05)
    # A factor on log-likelihoods makes more of the difference.
    assert peak_pose(two_peaks(0.7), PRIOR, 1.0, 0.6)[1]
    assert not peak_pose(two_peaks(0.7), PRIOR, 3.0, 0.6)[1]


@pytest.mark.parametrize('dof', [2.5, 5.0, GAUSSIAN_DOF])
def test_ellipsoids_hold_their_share_of_errors_with_such_tails(dof):
    spread = 1.0 if dof == GAUSSIAN_DOF else dof / (dof - 2.0)  # covariance over shape
    covariance = np.array([[0.6, 0.2, 0.0], [0.2, 0.9, 0.01], [0.0, 0.01, 0.001]])
    errors = multivariate_t(shape=covariance / spread, df=dof, seed=0).rvs(40000)
    distances2 = (errors * np.linalg.solve(covariance, errors.T).T).sum(1)
    for share in (0.3, 0.68, 0.95):
        assert np.mean(distances2 <= distance2_within(share, dof)) == pytest.approx(
            share, abs=0.01)


def test_yaw_bins_reach_three_sigma_within_their_limits():
    def reach(sigma_rad):
        prior = PoseEstimate(0, Pose2D(0.0, 0.0, 1.0), np.diag([1.0, 1.0, sigma_rad ** 2]))
        bins = yaw_bins(prior, CONFIG)
        assert bins[len(bins) // 2] == 1.0
        return bins[-1] - 1.0
    assert reach(0.001) == pytest.approx(0.07)
    assert 0.15 <= reach(0.05) <= 0.15 + CONFIG.yaw_step_rad
    assert reach(1.0) == pytest.approx(CONFIG.yaw_max_rad)


def test_interpolated_yaws_keep_the_values_at_the_bins():
    yaws = np.array([0.0, 0.1, 0.2])
    volume = np.array([1.0, 3.0, 2.0])[:, None, None] * np.ones((1, 2, 2))
    fine_yaws, fine = finer_yaws(yaws, volume, 4)
    np.testing.assert_allclose(fine_yaws[::4], yaws)
    np.testing.assert_allclose(fine[::4], volume)
    np.testing.assert_allclose(fine[2], 2.0)


def test_neighbouring_blocks_of_an_area_are_those_of_the_tiles():
    config = DenseConfig(channels=4, block_px=64, margin_px=64)
    network = random_network(config, 1).eval()
    generator = torch.Generator().manual_seed(0)
    area = torch.randint(0, 256, (256, 256, 3), generator=generator, dtype=torch.uint8)
    blocks = network.embed_lattice(area)                                   # (2, 2, K)
    assert blocks.shape == (2, 2, 4 * 32 * 32)
    tile = network.embed_satellite(area[None, 64:, :192])[0]
    # Unit vectors, alike up to what lies beyond the margin.
    own, other = (tile - blocks[1, 0]).norm(), (tile - blocks[0, 0]).norm()
    assert own < 0.5 * other


def test_weights_carry_their_config_and_come_back(tmp_path):
    config = DenseConfig(channels=4, temperature=1.3, heights_m=(0.0, 2.0))
    network = random_network(config, 1).eval()
    save_network(network, tmp_path / 'w.safetensors', {'seed': 1})
    found = load_network(tmp_path / 'w.safetensors')
    assert found.config == config
    lifted = views.lifted_view(np.full((240, 320, 3), 90, np.uint8), CAMERA, config)
    with torch.inference_mode():
        ours = network.ground(*ground_tensors([lifted]))[0]
        theirs = found.ground(*ground_tensors([lifted]))[0]
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)
