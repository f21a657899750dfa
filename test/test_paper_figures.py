"""Heat maps and overlays: where a score lies, and what a cell adds."""

import cv2
import numpy as np
import pytest
import torch

from crossview_localizer.datatypes import CameraModel
from crossview_localizer.geometry import MapGrid
from crossview_localizer.networks.checkpoint import save_network
from crossview_localizer.networks.controls import random_network
from crossview_localizer.networks.safa import ModelConfig, views_to_tensor
from training import paper_figures
from training.data.datasets import save_world, World
from training.paper_figures import cell_shares, ground_view_of, project_to_camera, score_around

MODEL = ModelConfig(channels=4, heads=4, hidden=2, view_px=64, margin_px=32)
BASE_FROM_CAMERA = np.array(
    [[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=float)
CAMERA = CameraModel(300, 200, 240.0, 240.0, 149.5, 99.5, BASE_FROM_CAMERA, 1.5)
SIDE = 300


@pytest.fixture(scope='module')
def world():
    rng = np.random.default_rng(0)
    imagery = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    imagery[..., 0] = np.linspace(0, 255, SIDE)[None, :]      # red rises to the east,
    imagery[..., 1] = np.linspace(0, 255, SIDE)[:, None]      # green to the south
    return World(
        'noise', imagery, MapGrid(SIDE, SIDE, MODEL.px_m, 0.0, 0.0),
        rng.integers(0, 255, (3, 200, 300, 3)).astype(np.uint8), CAMERA,
        np.array([[55.0, -60.0, 0.3], [60.0, -50.0, 1.0], [2.0, -60.0, 0.0]]),
        np.zeros(3, int))


@pytest.fixture(scope='module')
def network():
    return random_network(MODEL, 0).eval()


class ColourNetwork:
    """Describes a tile by the mean colour of its core; knows the colour at the true place."""

    config = MODEL

    def __init__(self, world, image):
        row, col = world.grid.row_col_from_xy(*world.poses[image, :2])
        self.truth = torch.tensor([float(col), float(row)]) * 255 / (SIDE - 1)

    def _described(self, colour):
        angles = colour / 255.0
        return torch.cat((angles.cos(), angles.sin()), -1) / 2 ** 0.5

    def embed_ground(self, views):
        return self._described(self.truth[None])

    def embed_satellite(self, tiles):
        core = tiles[:, 32:-32, 32:-32, :2].float()
        return self._described(core.mean((1, 2)))


def test_the_most_similar_tile_is_the_one_at_the_truth(world):
    scored = score_around(ColourNetwork(world, 0), world, 0, 60.0, 3.0)
    best_m, truth_m = np.array(scored.best_m()), world.poses[0, :2]
    assert np.abs(best_m - truth_m).max() <= MODEL.px_m
    assert scored.distance.min() < 1e-4 and scored.grid.cell_m == pytest.approx(3.0)
    west_m, east_m, south_m, north_m = scored.extent_m()
    assert east_m - west_m == pytest.approx(63.0) and north_m - south_m == pytest.approx(63.0)


def test_a_square_beyond_the_imagery_is_cut(world):
    scored = score_around(ColourNetwork(world, 2), world, 2, 60.0, 3.0)
    # The described part of a tile, 24 m, stays inside the 112.5 m.
    assert scored.extent_m()[0] + 1.5 - 12.0 >= -0.5 * MODEL.px_m - 1e-9
    assert scored.grid.cols < scored.grid.rows


def test_tiles_described_at_once_lie_where_the_grid_says(world, network):
    scored = score_around(network, world, 0, 40.0, 3.0)
    ground = network.embed_ground(views_to_tensor(ground_view_of(network, world, 0), 'cpu'))[0]
    # The same area by hand: its first tile is centred on the grid's first cell.
    row, col = world.grid.row_col_from_xy(scored.grid.x0_m, scored.grid.y0_m)
    top, left = (float(value) - (MODEL.tile_px - 1) / 2 for value in (row, col))
    assert top == pytest.approx(round(top)) and left == pytest.approx(round(left))
    side = MODEL.tile_px + 8 * (scored.grid.rows - 1)
    area = world.imagery[round(top):round(top) + side, round(left):round(left) + side]
    lattice = network.embed_lattice(torch.from_numpy(area.copy()))
    np.testing.assert_allclose(scored.distance, 2.0 - 2.0 * (lattice @ ground).numpy(), atol=1e-5)


def test_a_world_of_another_resolution_is_refused(world, network):
    other = World(world.name, world.imagery, MapGrid(SIDE, SIDE, 0.2, 0.0, 0.0), world.images,
                  world.camera, world.poses, world.drive)
    with pytest.raises(ValueError, match='--px-m 0.375'):
        score_around(network, other, 0, 40.0, 3.0)


def test_the_parts_of_the_cells_add_up_to_the_similarity(world, network):
    view = ground_view_of(network, world, 0)
    tile, _ = world.area(*world.poses[0, :2], MODEL.tile_px)
    cells = cell_shares(network, view, tile)
    cosine = float(network.ground_descriptors(views_to_tensor(view, 'cpu'))[0].detach()
                   @ network.satellite_descriptors(views_to_tensor(tile, 'cpu'))[0].detach())
    assert cells.similarity.sum() == pytest.approx(cosine, abs=1e-5)
    assert cells.strength.shape == (8, 8) and (cells.strength >= 0).all()
    # What the camera does not see adds nothing.
    unseen = cv2.resize(view[..., 3], (8, 8), interpolation=cv2.INTER_AREA) == 0
    assert unseen.any() and np.abs(cells.similarity[unseen]).max() < 1e-7


@pytest.mark.parametrize('yaw_rad', [0.0, 0.5 * np.pi, 2.0])
def test_a_cell_of_the_road_appears_where_the_camera_sees_it(network, yaw_rad):
    # Cells that hold how far ahead, and how far to the left, their middle is.
    cell_m = MODEL.view_px * MODEL.px_m / 8
    rows, cols = np.mgrid[0:8, 0:8]
    east_m, north_m = (cols - 3.5) * cell_m, (3.5 - rows) * cell_m
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    ahead = project_to_camera(cos * east_m + sin * north_m, network, CAMERA, yaw_rad)
    left = project_to_camera(cos * north_m - sin * east_m, network, CAMERA, yaw_rad)
    for u_px, v_px in ((149, 140), (100, 145), (220, 190)):
        # The camera is 1.5 m above the road.
        expected_m = 240.0 * 1.5 / (v_px - 99.5)
        assert ahead[v_px, u_px] == pytest.approx(expected_m, abs=0.12)
        assert left[v_px, u_px] == pytest.approx(
            -(u_px - 149.5) / 240.0 * expected_m, abs=0.12)
    assert np.isnan(ahead[:100]).all()           # no road above the horizon


def test_the_cells_of_a_front_camera_lie_over_its_part_of_the_frame(network):
    class Front:
        config = ModelConfig(ground_view='camera')

    values = np.tile(np.arange(8.0), (5, 1))
    whole = project_to_camera(values, Front, CAMERA, 0.0)               # 3:2: all of it
    assert np.isfinite(whole).all()
    np.testing.assert_allclose(whole[100], np.clip((np.arange(300) + 0.5) * 8 / 300 - 0.5, 0, 7),
                               atol=0.05)
    # RobotCar's 1280x960: columns 40 to 1240, rows 0 to 800.
    raw = CameraModel(1280, 960, 900.0, 900.0, 639.5, 479.5, BASE_FROM_CAMERA, 1.5)
    cut = project_to_camera(values, Front, raw, 0.0)
    known = np.isfinite(cut)
    rows, cols = np.flatnonzero(known.any(1)), np.flatnonzero(known.any(0))
    assert np.abs(np.array([rows[0], rows[-1], cols[0], cols[-1]]) - [0, 799, 40, 1239]).max() <= 3
    assert cut[400, 640] == pytest.approx(3.5, abs=0.1)


def test_the_commands_write_pictures_and_refuse_in_one_line(world, network, tmp_path, capsys):
    save_world(world, tmp_path / 'world.npz')
    save_network(network, tmp_path / 'weights.safetensors', {})
    call = ['--world', str(tmp_path / 'world.npz'), '--weights',
            str(tmp_path / 'weights.safetensors'), '--images', '0']
    out = tmp_path / 'heat.png'
    assert paper_figures.main(['heatmaps', *call, '--baseline', 'raw_correlation', '--sizes-m',
                               '20', '30', '--spacing-m', '10', '--out', str(out)]) == 0
    assert cv2.imread(str(out)).shape[1] > cv2.imread(str(out)).shape[0] > 300
    assert paper_figures.main(['overlays', *call, '--out', str(tmp_path / 'over.png')]) == 0
    assert (tmp_path / 'over.png').stat().st_size > 10_000
    capsys.readouterr()
    for wrong in (['--images', '7'], ['--weights', 'raw_correlation'],
                  ['--world', str(tmp_path / 'none.npz')]):
        call_wrong = ['overlays', *call, *wrong, '--out', str(tmp_path / 'x.png')]
        assert paper_figures.main(call_wrong) == 2
        error = capsys.readouterr().err
        assert error.startswith('python -m training.paper_figures: error: ')
        assert error.count('\n') == 1
