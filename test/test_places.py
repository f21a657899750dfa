"""Rendered places: laid out from a seed, coloured anew for each view, geometry kept."""

import numpy as np
import pytest

from crossview_localizer.camera.views import birds_eye_view
from crossview_localizer.geometry import MapGrid
from training import render_places
from training.data.rendered_places import decode_jpeg, load_place
from training.simulation.look import draw_look, make_scene, ragged_edges
from training.simulation.place import Ground
from training.simulation.planning.planner import make_place
from training.simulation.planning.regions import REGIONS
from training.simulation.renderer import draw_aerial_look, render_aerial, Renderer
from training.simulation.rig import draw_camera, draw_poses, photograph

PX_M = 0.25


@pytest.mark.parametrize('region', REGIONS)
def test_a_place_of_each_region_is_the_same_for_the_same_seed_and_has_roads_to_drive_on(region):
    place, again = make_place(5, [region]), make_place(5, [region])
    assert place.region == region and len(place.spots) > 20
    np.testing.assert_array_equal(place.kind, again.kind)
    assert [vars(spot) for spot in place.spots] == [vars(spot) for spot in again.spots]
    assert not np.array_equal(place.kind, make_place(6, [region]).kind)


def test_a_frame_shows_the_ground_that_the_picture_from_above_shows_at_its_pose():
    place, rng = make_place(4, ['us_suburb']), np.random.default_rng(4)
    look = draw_look(3, [3, 1], aerial=True)
    camera = draw_camera(rng)
    poses = draw_poses(place, camera, 6, rng)
    renderer = Renderer(make_scene(place, look, [(pose.x_m, pose.y_m) for pose in poses]))
    side, half_m = 400, 199.5 * PX_M
    grid = MapGrid(side, side, PX_M, -half_m, half_m)
    above = render_aerial(renderer, place, draw_aerial_look(look.seed, look.day),
                          *np.meshgrid(*grid.cell_centres()), PX_M, rng, samples=1)

    def resemblance(shift_m: float, turn_rad: float) -> float:
        """Correlation of what all frames see within 10 m with the picture, poses moved left."""
        pairs = []
        for pose in poses:
            rgb = photograph(renderer, camera, pose, np.random.default_rng(0))
            yaw_rad = pose.yaw_rad + turn_rad
            view = birds_eye_view(rgb, camera, yaw_rad, 81, PX_M)
            across = (np.arange(81) - 40) * PX_M
            x_m, y_m = np.meshgrid(
                pose.x_m - shift_m * np.sin(yaw_rad) + across,
                pose.y_m + shift_m * np.cos(yaw_rad) - across)
            row, col = (np.rint(part).astype(int) for part in grid.row_col_from_xy(x_m, y_m))
            seen = (view[..., 3] > 0) & (row >= 0) & (row < side) & (col >= 0) & (col < side)
            both = view[seen][:, 1].astype(float), above[row[seen], col[seen], 1].astype(float)
            pairs.append([part - part.mean() for part in both])
        ours, theirs = (np.concatenate(part) for part in zip(*pairs))
        return float(np.corrcoef(ours, theirs)[0, 1])

    here = resemblance(0.0, 0.0)
    assert here > 0.4
    for shift_m, turn_rad in ((2.0, 0.0), (-2.0, 0.0), (0.0, 0.3), (0.0, -0.3)):
        assert resemblance(shift_m, turn_rad) < here - 0.05


def test_looks_without_lasting_colours_disagree_on_what_is_lighter_than_what(monkeypatch):
    monkeypatch.setattr('training.simulation.look.LASTING', 0.0)
    place = make_place(7, ['city'])
    grid = MapGrid(120, 120, 0.5, -29.75, 29.75)
    above = []
    for number in range(6):
        look = draw_look(7, [7, number], aerial=True)
        above.append(render_aerial(
            Renderer(make_scene(place, look)), place, draw_aerial_look(look.seed, look.day),
            *np.meshgrid(*grid.cell_centres()), 0.5, np.random.default_rng(0), samples=1)[..., 1])
    pairs = np.corrcoef([picture.ravel().astype(float) for picture in above])
    assert pairs[np.triu_indices(6, 1)].min() < 0.2


def test_most_views_of_a_place_have_its_lasting_colours():
    albedo = np.array([draw_look(7, [7, view], aerial=True).albedo.ravel() for view in range(60)])
    alike = np.abs(np.log(albedo[:, None] / albedo[None])).max(-1) < 2 * np.log(1.1 / 0.9)
    assert 0.7 < alike.sum(1).max() / 60 < 0.97


def test_lawns_have_ragged_edges_and_paint_does_not():
    place = make_place(7, ['country'])
    kind, unit = ragged_edges(place)
    moved = kind != place.kind
    assert 0.001 < moved.mean() < 0.1
    grown = np.isin(place.kind, (Ground.LAWN, Ground.ROUGH, Ground.SOIL, Ground.BED))
    built = np.isin(place.kind, (Ground.WHITE, Ground.YELLOW, Ground.COVER))
    assert moved[grown].any() and not moved[built].any()
    assert not np.isin(kind[moved], (Ground.WHITE, Ground.YELLOW, Ground.COVER)).any()
    assert np.array_equal(unit[built], place.unit[built])


def test_the_command_writes_places_that_load_and_skips_those_that_are_there(tmp_path, capsys):
    arguments = ['--seeds', '4', '5', '--out', str(tmp_path), '--aerials', '1', '--shots', '1',
                 '--frames', '1', '--jobs', '1']
    assert render_places.main(arguments) == 0
    [path] = tmp_path.glob('*.npz')
    place = load_place(path)
    [shot] = place.shots
    assert decode_jpeg(place.aerials[0]).shape == (place.grid.rows, place.grid.cols, 3)
    assert decode_jpeg(shot.frames[0]).shape == (shot.camera.height_px, shot.camera.width_px, 3)
    assert place.world(3).images.shape[0] == len(shot.poses) == 1
    written = path.stat().st_mtime_ns
    assert render_places.main(arguments) == 0
    assert path.stat().st_mtime_ns == written
    path.write_bytes(b'something else')
    with pytest.raises(ValueError, match='is not a rendered place'):
        load_place(path)
