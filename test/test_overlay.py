"""Evidence for a match: shares that add up, drawn where they lie."""

from dataclasses import replace
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import cv2  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import recorded_drive as drive  # noqa: E402
import torch  # noqa: E402

from crossview_localizer import overlay  # noqa: E402
from crossview_localizer.camera import views  # noqa: E402
from crossview_localizer.datatypes import CameraImage, CameraModel, PoseEstimate  # noqa: E402
from crossview_localizer.evaluation import overlays  # noqa: E402
from crossview_localizer.evaluation.shots import Shot  # noqa: E402
from crossview_localizer.geometry import MapGrid, Pose2D  # noqa: E402
from crossview_localizer.maps.embedding_map import EmbeddingMap  # noqa: E402
from crossview_localizer.matching.attribution import (  # noqa: E402
    on_image,
    peak_contrast,
    peak_shares,
    PeakShares,
    road_points,
)
from crossview_localizer.matching.dense_matcher import DenseMatcher  # noqa: E402
from crossview_localizer.matching.matcher import SearchWindow  # noqa: E402
from crossview_localizer.matching.tile_matcher import heatmap_from_scores, TileMatcher  # noqa: E402
from crossview_localizer.networks.checkpoint import load_network  # noqa: E402
from crossview_localizer.networks.controls import random_network, RawCorrelation  # noqa: E402
from crossview_localizer.networks.dense import DenseConfig, DenseNetwork  # noqa: E402
from crossview_localizer.networks.safa import ModelConfig, views_to_tensor  # noqa: E402

SHIPPED = Path(__file__).parent.parent / 'config/weights/crossview_dense_synthetic.safetensors'
PITCH_RAD = 0.03
PRIOR = PoseEstimate(0, Pose2D(1.3, -0.4, 0.7), np.diag([4.0, 4.0, 0.01]))
SEARCH = SearchWindow(15.0, 0.3)
SMALL = ModelConfig(channels=8, heads=4, hidden=4, view_px=64, margin_px=0, temperature=0.02)


@pytest.fixture(scope='module')
def image():
    """A camera 1.5 m up and tilted a little, before a road with random marks."""
    base_from_camera = np.array(
        [[0.0, 0.0, 1.0, 0.3], [-1.0, 0.0, 0.0, 0.1], [0.0, -1.0, 0.0, 1.5], [0.0, 0.0, 0.0, 1.0]])
    camera = CameraModel(120, 90, 90.0, 90.0, 59.5, 40.0, base_from_camera, 1.5)
    rgb = cv2.resize(np.random.default_rng(2).integers(0, 255, (30, 40, 3), np.uint8), (120, 90))
    return CameraImage(0, rgb, camera)


def map_of(size: int, cells: int = 21, cell_m: float = 3.0) -> EmbeddingMap:
    """Unit descriptors drawn from a seed on every point of a lattice about the origin."""
    grid = MapGrid.around(0.0, 0.0, (cells - 1) / 2 * cell_m, cell_m)
    generator = np.random.default_rng(3)
    descriptors = generator.standard_normal((cells * cells, size))
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    index = torch.arange(cells * cells).reshape(cells, cells)
    return EmbeddingMap(
        drive.FRAME, grid, index, torch.from_numpy(descriptors).half(), 'made up', 24.0, 64)


def share_of_the_peak(heatmap, refine: int) -> float:
    """log p at the peak minus its mean, on the lattice of tiles."""
    log_p = heatmap.log_probability[::refine, ::refine]
    known = np.isfinite(log_p)
    return float((peak_contrast(heatmap, refine) * log_p)[known].sum())


def test_pixels_see_the_road_where_the_road_is_seen(image):
    forward_m, left_m = road_points(image.camera, PITCH_RAD)
    seen = np.isfinite(forward_m)
    assert not seen[0].any() and seen[-1].all()
    u_px, v_px = views.image_points(image.camera, forward_m[seen], left_m[seen], 0.0, PITCH_RAD)
    rows, cols = np.nonzero(seen)
    assert u_px == pytest.approx(cols, abs=1e-6) and v_px == pytest.approx(rows, abs=1e-6)


def test_evidence_on_the_road_is_painted_where_it_lies(image):
    # Raster axes are east and north, the heading is 0.7: one cell, 8 m ahead and 1 m to the left.
    raster_from_base = Pose2D(0.0, 0.0, 0.7)
    east_m, north_m = raster_from_base.transform(np.array([8.0, 1.0]))
    nats = np.zeros((97, 97))
    nats[round(48 - north_m / 0.25), round(48 + east_m / 0.25)] = 1.0
    shown = on_image(
        PeakShares(nats, np.zeros((97, 97, 3), np.uint8), 0.25, raster_from_base), image.camera)
    u_px, v_px = views.image_points(image.camera, np.array([8.0]), np.array([1.0]), 0.0)
    row, col = np.unravel_index(np.nanargmax(shown), shown.shape)
    assert abs(col - u_px[0]) <= 3.0 and abs(row - v_px[0]) <= 1.5
    assert np.isnan(shown[:30]).all()


def test_the_contrast_of_a_peak_sums_to_nothing_and_lies_between_its_tiles():
    window = map_of(4).window(PRIOR, 15.0)
    scores = np.random.default_rng(4).standard_normal((window.grid.rows, window.grid.cols))
    heatmap = heatmap_from_scores(scores, window.grid, 4, 0)
    contrast = peak_contrast(heatmap, 4)
    assert contrast.shape == scores.shape and contrast.sum() == pytest.approx(0.0, abs=1e-12)
    row, col = np.unravel_index(np.argmax(heatmap.log_probability), heatmap.log_probability.shape)
    at_peak = contrast + 1.0 / contrast.size
    rows, cols = np.indices(at_peak.shape)
    assert ((at_peak * rows).sum(), (at_peak * cols).sum()) == pytest.approx((row / 4, col / 4))


def test_shares_of_plain_correlation_add_up_to_the_peak_s_lead(image):
    matcher = TileMatcher(RawCorrelation(SMALL), refine=1)
    window = map_of(32 * 32).window(PRIOR, 15.0)
    found, heatmap = peak_shares(matcher, image, window, PRIOR, SEARCH)
    assert found.nats.shape == (32, 32) and found.cell_m == pytest.approx(0.75)
    assert found.nats.sum() == pytest.approx(share_of_the_peak(heatmap, 1), rel=1e-3)
    # What the camera does not see says nothing.
    unseen = views.birds_eye_view(image.rgb, image.camera, 0.7, 64, SMALL.px_m)[..., 3] == 0
    assert np.abs(found.nats[unseen.reshape(32, 2, 32, 2).all(axis=(1, 3))]).max() == 0.0


def test_shares_of_safa_are_the_slopes_of_its_score(image):
    network = random_network(SMALL, 1).eval()
    matcher, window = TileMatcher(network, refine=1), map_of(32).window(PRIOR, 15.0)
    found, heatmap = peak_shares(matcher, image, window, PRIOR, SEARCH)
    view = views.birds_eye_view(image.rgb, image.camera, PRIOR.pose.yaw_rad, 64, SMALL.px_m)
    with torch.no_grad():
        features = network.ground_features(views_to_tensor(view, 'cpu'))
    contrast = torch.from_numpy(peak_contrast(heatmap, 1)).float()

    def score(weight):
        with torch.no_grad():
            described = network.ground.describe(features * weight)[0]
        cosines = window.descriptors @ described
        return float(2.0 / SMALL.temperature * (cosines[window.index] * contrast).sum())

    row, col = np.unravel_index(np.argmax(np.abs(found.nats)), found.nats.shape)
    step = torch.zeros(found.nats.shape)
    step[row, col] = 0.05
    slope = (score(1.0 + step) - score(1.0 - step)) / 0.1
    assert found.nats[row, col] == pytest.approx(slope, rel=0.02)


def test_the_detail_part_has_its_share_beside_safa(image):
    model = replace(SMALL, detail_weight=0.5)
    window = map_of(32 + 32 * 32).window(PRIOR, 15.0)
    both, _ = peak_shares(
        TileMatcher(random_network(model, 1).eval()), image, window, PRIOR, SEARCH)
    assert both.nats.shape == (32, 32) and np.isfinite(both.nats).all() and both.nats.any()


def small_dense() -> DenseNetwork:
    torch.manual_seed(5)
    return DenseNetwork(DenseConfig(
        channels=4, width=8, ahead_cells=16, across_cells=16, patch_cells=24, block_px=16,
        temperature=1.0)).eval()


@pytest.mark.parametrize(
    'network', [small_dense, lambda: load_network(SHIPPED)], ids=['untrained', 'shipped'])
def test_shares_of_the_dense_matcher_add_up_to_the_peak_s_lead(image, network):
    matcher = DenseMatcher(network())
    model = matcher.network.config
    block_m = model.block_px * model.px_m
    made = map_of(model.channels * model.block_cells**2, math.ceil(140.0 / block_m), block_m)
    window = made.window(PRIOR, 8.0, matcher.margin_m)
    found, heatmap = peak_shares(matcher, image, window, PRIOR, SearchWindow(6.0, 0.1))
    assert found.nats.shape == (model.ahead_cells, model.across_cells)
    lead = heatmap.volume.max() - heatmap.volume.mean()
    assert found.nats.sum() == pytest.approx(lead, rel=1e-3, abs=1e-4)


def test_paint_is_strongest_at_its_reach_and_leaves_the_unknown_alone():
    rgb = np.full((1, 4, 3), 100, np.uint8)
    shown = overlays.painted(rgb, np.array([[np.nan, 0.0, 2.0, -9.0]]), 2.0)
    assert (shown[0, :2] == 100).all()
    strong = overlays.STRONGEST_ALPHA
    for pixel, colour in ((shown[0, 2], overlays.FOR_RGB), (shown[0, 3], overlays.AGAINST_RGB)):
        assert pixel == pytest.approx((1 - strong) * 100 + strong * np.array(colour), abs=1)


@pytest.fixture(scope='module')
def recorded(ros, tmp_path_factory):
    """A recording, its input bag and a map of an untrained network around it."""
    folder = tmp_path_factory.mktemp('overlay')
    network = load_network('random_init:1')
    size = network.config.heads * network.config.channels
    made = map_of(size, cells=57)
    EmbeddingMap(
        made.frame, made.grid, torch.from_numpy(made.tiles.index), made.tiles.descriptors,
        network.fingerprint, network.config.tile_m, network.config.tile_px).save(folder / 'a.map')
    drive.write_bag(folder / 'run', drive.output_messages(8.0))
    drive.write_bag(folder / 'input', drive.input_messages(8.0))
    return folder


def test_the_command_draws_the_frames_that_are_asked_for(recorded, tmp_path):
    arguments = [str(recorded / 'run'), '--input-bag', str(recorded / 'input'), '--map',
                 str(recorded / 'a.map'), '--weights', 'random_init:1', '--out', str(tmp_path)]
    assert overlay.main([*arguments, '--at', '2.1', '6.0']) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == ['overlay_2.0_s.png', 'overlay_6.0_s.png']
    picture = cv2.imread(str(tmp_path / written[0]))
    assert picture.shape[1] > 1000 and picture.std() > 10.0


def test_what_cannot_be_drawn_ends_with_one_line(recorded, tmp_path, capsys):
    run, bag, map_path = (str(recorded / name) for name in ('run', 'input', 'a.map'))
    weights = ['--weights', 'random_init:1', '--out', str(tmp_path)]
    for arguments, expected in (
            ([run, '--out', str(tmp_path)], 'give it with --map'),
            ([run, '--map', map_path, '--out', str(tmp_path)], 'give it with --weights'),
            ([run, '--map', map_path, *weights], 'has no usable image'),
            ([run, '--input-bag', bag, '--map', bag, *weights], 'does not exist'),
            ([bag, '--map', map_path, *weights], '/crossview_localizer/pose')):
        assert overlay.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith('overlay: error: ') and error.count('\n') == 1
        assert expected in error


def test_the_paper_s_own_view_of_the_frame_is_painted_on_that_view(image):
    model = replace(SMALL, ground_view='camera')
    window = map_of(32).window(PRIOR, 15.0)
    found, heatmap = peak_shares(
        TileMatcher(random_network(model, 1).eval()), image, window, PRIOR, SEARCH)
    assert found.view.shape == (154, 231, 3) and found.raster_from_base is None
    assert found.nats.any() and np.isfinite(found.nats).all()
    with pytest.raises(ValueError, match='does not lie on the road'):
        on_image(found, image.camera)
    shot = Shot('Best', 0, None, np.exp(heatmap.log_probability[::-1]), (-15.0, 15.0, -15.0, 15.0),
                np.zeros(2), 1.0, None, PRIOR, None, None)
    figure = overlays.draw_overlay(shot, image, found, 0.0, None)
    assert len(figure.axes) == 3
    plt.close(figure)
