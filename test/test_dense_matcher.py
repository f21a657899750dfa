"""The dense matcher and its network: where they find a view, and what the filter gets."""

from dataclasses import replace
import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch
import torch.nn.functional as F

from crossview_localizer.camera import views
from crossview_localizer.config import MatchConfig
from crossview_localizer.datatypes import CameraImage, CameraModel, PoseEstimate
from crossview_localizer.geometry import LocalFrame, MapGrid, Pose2D
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.matching.dense_matcher import (
    DenseMatcher,
    ground_tensors,
    GroundView,
    window_raster,
    yaw_offsets,
    YAW_STEP_RAD,
)
from crossview_localizer.matching.matcher import SearchWindow
from crossview_localizer.networks.checkpoint import load_network, save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.dense import (
    correlate,
    DenseConfig,
    fewer_channels,
    turned_views,
)

SMALL = DenseConfig(
    channels=4, ahead_cells=16, across_cells=16, patch_cells=20, block_px=64)
LOOKING_AHEAD = np.array(
    [[0.0, 0.0, 1.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
CAMERA = CameraModel(320, 240, 246.0, 246.0, 159.5, 119.5, LOOKING_AHEAD, 1.5)


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


def test_a_centred_network_takes_no_notice_of_what_the_map_shows_everywhere():
    generator = torch.Generator().manual_seed(5)
    plain, centred = (random_network(replace(SMALL, centred=value), 0).eval()
                      for value in (False, True))
    rgb = np.random.default_rng(6).integers(0, 256, (240, 320, 3), np.uint8)
    tensors = ground_tensors([views.lifted_view(rgb, CAMERA, SMALL)])
    raster, yaws_rad = smooth_raster(SMALL.channels, 40, 7), torch.tensor([[0.1]])
    everywhere = torch.randn(SMALL.channels, 1, 1, generator=generator)
    moved_by = []
    with torch.inference_mode():
        for network in (plain, centred):
            view, weight = network.ground(*tensors)
            scores, others = (network.scores(view, weight, raster + added, yaws_rad, 0.1)
                              for added in (0.0, everywhere))
            moved_by.append(float((others - scores).abs().max() / scores.abs().max()))
    assert moved_by[0] > 0.1 and moved_by[1] < 1e-4


def test_correlation_equals_the_sum_over_cells():
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 3, 4, 5, 5, generator=generator, dtype=torch.float64)
    window = torch.randn(4, 9, 9, generator=generator, dtype=torch.float64)
    expected = F.conv2d(window[None], patches.flatten(0, 1)).view(2, 3, 5, 5)
    torch.testing.assert_close(correlate(patches, window), expected)
    # Where the patches are zero outside of a rectangle, and where they are zero everywhere.
    patches[..., :2, :], patches[..., 4:] = 0.0, 0.0
    expected = F.conv2d(window[None], patches.flatten(0, 1)).view(2, 3, 5, 5)
    torch.testing.assert_close(correlate(patches, window), expected)
    assert (correlate(0.0 * patches, window).abs() < 1e-12).all()


def test_channels_that_a_view_does_not_use_are_left_out_and_the_scores_stay():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:, :2]
    view = torch.einsum('cr,brfl->bcfl', mixed, torch.randn(1, 2, 5, 5, generator=generator))
    window = torch.randn(6, 9, 9, generator=generator)
    fewer_view, fewer_window = fewer_channels(view, window)
    assert fewer_view.shape == (1, 2, 5, 5) and fewer_window.shape == (2, 9, 9)
    expected = F.conv2d(window[None], view)
    torch.testing.assert_close(
        F.conv2d(fewer_window[None], fewer_view), expected, rtol=1e-3, atol=1e-3)
    # All channels of noise matter: the share of the energy that is lost is that of the scores.
    view = view + 0.03 * torch.randn(1, 6, 5, 5, generator=generator)
    expected = F.conv2d(window[None], view)
    for lost_share in (1e-2, 1e-3, 0.0):
        found = F.conv2d(*reversed([part if part.ndim == 4 else part[None] for part in (
            fewer_channels(view, window, lost_share))]))
        assert (found - expected).square().sum() <= 4 * lost_share * expected.square().sum() + 1e-5


def test_a_window_of_nearly_one_descriptor_keeps_its_scores():
    generator = torch.Generator().manual_seed(2)
    direction = F.normalize(torch.randn(16, 1, 1, generator=generator), dim=0)
    window = direction * (1.0 + 0.1 * torch.randn(1, 120, 120, generator=generator))
    view = torch.randn(1, 16, 8, 8, generator=generator)
    fewer_view, fewer_window = fewer_channels(view, window, 0.0)
    expected = F.conv2d(window[None], view)
    torch.testing.assert_close(
        F.conv2d(fewer_window[None], fewer_view), expected, rtol=1e-3, atol=1e-2)


def test_a_window_without_imagery_has_scores_of_zero():
    view, window = torch.randn(1, 4, 5, 5), torch.zeros(4, 9, 9)
    fewer_view, fewer_window = fewer_channels(view, window)
    assert (F.conv2d(fewer_window[None], fewer_view) == 0.0).all()


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


@pytest.mark.parametrize('yaw_sigma_rad, turn_rad', [(0.035, 0.04), (0.2, 0.5), (0.2, -0.5)])
def test_the_matcher_finds_place_and_heading_of_a_view_within_the_prior(yaw_sigma_rad, turn_rad):
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
    prior = PoseEstimate(5, Pose2D(74.0, -15.0, truth.yaw_rad - turn_rad),
                         np.diag([9.0, 9.0, yaw_sigma_rad ** 2]))
    search = SearchWindow.around(prior, MatchConfig())
    window = built.window(prior, search.half_width_m, matcher.margin_m)
    heatmap = matcher.match(GroundView(view, weight), window, prior, search)
    assert np.exp(heatmap.log_probability).sum() == pytest.approx(1.0)
    assert np.exp(heatmap.volume).sum() == pytest.approx(1.0)
    match, reason = matcher.estimate(heatmap, prior)
    assert match is not None, reason
    assert math.hypot(match.pose.x_m - truth.x_m, match.pose.y_m - truth.y_m) < 0.3
    assert abs(match.pose.yaw_rad - truth.yaw_rad) < YAW_STEP_RAD
    assert np.linalg.eigvalsh(match.covariance).min() > 0.0


@pytest.mark.parametrize('camera_yaw_rad', [math.pi / 2, -2.5, math.pi])
def test_a_camera_that_looks_sideways_or_back_finds_the_pose_of_the_vehicle(camera_yaw_rad):
    raster = smooth_raster(SMALL.channels, 8 * SMALL.block_cells, 3)
    built = map_of_raster(raster, SMALL)
    matcher = DenseMatcher(random_network(SMALL, 0))
    rgb = np.random.default_rng(0).integers(0, 255, (240, 320, 3)).astype(np.uint8)
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler('z', camera_yaw_rad).as_matrix()
    turned = replace(CAMERA, base_from_camera=turn @ CAMERA.base_from_camera)
    assert turned.yaw_rad == pytest.approx(camera_yaw_rad)

    def found(camera, heading_rad):
        prior = PoseEstimate(5, Pose2D(74.0, -15.0, heading_rad), np.diag([9.0, 9.0, 0.01]))
        search = SearchWindow.around(prior, MatchConfig())
        window = built.window(prior, search.half_width_m, matcher.margin_m)
        ground = matcher.embed(CameraImage(5, rgb, camera), heading_rad)
        [heatmap] = matcher.search_heatmaps(ground, built, np.array([heading_rad]), 74.0, -15.0,
                                            10.0)
        return matcher.match(ground, window, prior, search), heatmap

    # The vehicle is turned the other way, so both cameras look in the same direction.
    (ahead, ahead_search), (aside, aside_search) = (
        found(CAMERA, 1.1), found(turned, 1.1 - camera_yaw_rad))
    np.testing.assert_allclose(aside.volume, ahead.volume, atol=2e-4)
    np.testing.assert_allclose(aside.yaws_rad, ahead.yaws_rad - camera_yaw_rad, atol=1e-9)
    assert aside.grid.x0_m == pytest.approx(ahead.grid.x0_m)
    np.testing.assert_allclose(
        aside_search.log_probability, ahead_search.log_probability, atol=2e-4)
    assert aside_search.grid.x0_m == pytest.approx(ahead_search.grid.x0_m)


@pytest.mark.parametrize('half_yaw_rad', [0.07, 0.15, 0.6])
def test_headings_reach_at_least_as_far_as_the_search_window(half_yaw_rad):
    offsets = yaw_offsets(half_yaw_rad)
    assert offsets[len(offsets) // 2] == 0.0 and offsets[0] == -offsets[-1]
    assert half_yaw_rad - 1e-9 <= offsets[-1] < half_yaw_rad + YAW_STEP_RAD


def test_neighbouring_blocks_of_an_area_are_those_of_the_tiles():
    config = DenseConfig(channels=4, block_px=64)
    network = random_network(config, 1).eval()
    generator = torch.Generator().manual_seed(0)
    area = torch.randint(0, 256, (192, 192, 3), generator=generator, dtype=torch.uint8)
    blocks = network.embed_lattice(area)                                   # (2, 2, K)
    assert blocks.shape == (2, 2, 4 * 32 * 32)
    tile = network.embed_satellite(area[None, 64:, :128])[0]
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
