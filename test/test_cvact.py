"""The CVACT reader, on tiny files in the true formats."""

import cv2
import numpy as np
import pytest
import scipy.io

from training.data import cvact
from training.data.cvact import cvact_places, read_act_data

IDS = [f'panorama-{k:013d}' for k in range(6)]
# By place: train, train, val, val, test, train (just beyond the box).
UTM_M = np.array([
    (684_000.25, 6_096_000.0), (684_010.0, 6_096_000.5), (685_000.0, 6_095_000.0),
    (689_999.99, 6_099_459.0), (690_000.0, 6_095_123.4567), (690_500.0, 6_099_460.0)])


def mat_content(**changes):
    return {
        'panoIds': np.array(IDS), 'utm': UTM_M,
        'trainSet': {'trainInd': np.array([[1], [2], [3]])},
        'valSet': {'valInd': np.array([[4]])},
        'valSetAll': {'valInd': np.array([[4], [5]])}} | changes


@pytest.fixture
def act(tmp_path):
    scipy.io.savemat(tmp_path / 'ACT_data.mat', mat_content())
    for k, name in enumerate(IDS[:5]):
        root = tmp_path / ('ANU_data_small' if k < 3 else 'ANU_data_test')
        for folder in ('streetview', 'satview_polish'):
            (root / folder).mkdir(parents=True, exist_ok=True)
        panorama = np.zeros((832, 1664, 3), np.uint8)
        panorama[208:624] = 40 * k + 20         # what is kept
        aerial = np.full((1200, 1200, 3), 40 * k + 30, np.uint8)
        cv2.imwrite(str(root / 'streetview' / f'{name}_grdView.jpg'), panorama)
        cv2.imwrite(str(root / 'satview_polish' / f'{name}_satView_polish.jpg'), aerial)
    return tmp_path


def roots(act):
    return [act / 'ANU_data_small', act / 'ANU_data_test']


def test_ids_positions_and_splits_are_read_as_they_are(act):
    ids, utm_m, splits = read_act_data(act / 'ACT_data.mat')
    assert ids.tolist() == IDS
    assert utm_m.dtype == np.float64
    np.testing.assert_array_equal(utm_m, UTM_M)     # single precision would lose half a metre
    assert {name: index.tolist() for name, index in splits.items()} == {
        'train': [0, 1, 2], 'val': [3], 'test': [3, 4]}


def test_ids_may_be_a_cell_array(tmp_path):
    cells = np.empty((6, 1), object)
    cells[:, 0] = IDS
    scipy.io.savemat(tmp_path / 'ACT_data.mat', mat_content(panoIds=cells))
    assert read_act_data(tmp_path / 'ACT_data.mat')[0].tolist() == IDS


def test_the_papers_hold_out_two_boxes(act):
    places = cvact_places(act / 'ACT_data.mat', roots(act))
    assert places.split.tolist() == ['train', 'train', 'val', 'val', 'test']
    assert len(places.notes) == 1 and places.notes[0].startswith('1 of 6')
    assert cvact.split_by_place(UTM_M)[5] == 'train'
    original = cvact_places(act / 'ACT_data.mat', roots(act), 'original')
    assert original.split.tolist() == ['train', 'train', 'train', 'val', 'test']


def test_images_are_cropped_and_transformed_as_they_are_read(act):
    places = cvact_places(act / 'ACT_data.mat', roots(act))
    for k in range(5):
        ground, satellite = places.read_ground(k), places.read_satellite(k)
        assert ground.shape == satellite.shape == (112, 616, 3)
        assert np.abs(ground[2:-2].astype(int) - (40 * k + 20)).max() <= 3
        assert np.abs(satellite.astype(int) - (40 * k + 30)).max() <= 3


def test_prepared_images_are_taken_as_they_are(act):
    root = act / 'CVACT_full'
    pictures = np.random.default_rng(0).integers(0, 255, (2, 112, 616, 3)).astype(np.uint8)
    for folder, ending, picture in (
            ('streetview', '_grdView.png', pictures[0]), ('polarmap', '.png', pictures[1])):
        (root / folder).mkdir(parents=True)
        cv2.imwrite(str(root / folder / f'{IDS[4]}{ending}'), picture)
    places = cvact_places(act / 'ACT_data.mat', [root], prepared=True)
    assert len(places) == 1
    np.testing.assert_array_equal(places.read_ground(0), pictures[0][..., ::-1])
    np.testing.assert_array_equal(places.read_satellite(0), pictures[1][..., ::-1])


MALFORMED = {
    'no positions': ({'utm': None}, 'expected utm too'),
    'fewer positions than ids': ({'utm': UTM_M[:4]}, r'expected \(6, 2\)'),
    'a position that is none': ({'utm': np.where(UTM_M == UTM_M[2], np.nan, UTM_M)}, 'not finite'),
    'the same id twice': ({'panoIds': np.array(IDS[:5] + IDS[:1])}, 'twice'),
    'indices from zero': ({'trainSet': {'trainInd': np.array([[0], [1]])}}, 'from 1 to 6'),
    'indices beyond the end': ({'valSet': {'valInd': np.array([[7]])}}, 'from 1 to 6'),
    'a split without its field': ({'valSet': {'indices': np.array([[4]])}}, 'no field valInd'),
    'a split that is no struct': ({'valSet': np.array([[4.0]])}, 'no field valInd'),
}


@pytest.mark.parametrize('fault', MALFORMED)
def test_a_malformed_file_is_refused_with_its_fault(tmp_path, fault):
    changes, expected = MALFORMED[fault]
    content = {key: value for key, value in mat_content(**changes).items() if value is not None}
    scipy.io.savemat(tmp_path / 'ACT_data.mat', content)
    with pytest.raises(ValueError, match=expected):
        read_act_data(tmp_path / 'ACT_data.mat')


@pytest.mark.parametrize('content', [b'', b'not a mat file at all' * 20, b'\x89HDF\r\n\x1a\n'])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / 'ACT_data.mat').write_bytes(content)
    with pytest.raises(ValueError, match='MATLAB'):
        read_act_data(tmp_path / 'ACT_data.mat')


def test_damaged_and_misshapen_images_are_named(act):
    places = cvact_places(act / 'ACT_data.mat', roots(act))
    ground = act / f'ANU_data_small/streetview/{IDS[0]}_grdView.jpg'
    ground.write_bytes(b'')
    with pytest.raises(ValueError, match=f'{IDS[0]}_grdView.jpg is not a readable image'):
        places.read_ground(0)
    aerial = act / f'ANU_data_small/satview_polish/{IDS[1]}_satView_polish.jpg'
    cv2.imwrite(str(aerial), np.zeros((1200, 1100, 3), np.uint8))
    with pytest.raises(ValueError, match='1100x1200; expected a square'):
        places.read_satellite(1)


def test_folders_without_the_images_are_refused(act, capsys):
    with pytest.raises(ValueError, match='no folder streetview'):
        cvact_places(act / 'ACT_data.mat', [act])
    for path in (act / 'ANU_data_small/streetview').iterdir():
        path.unlink()
    assert cvact.main([str(act / 'ACT_data.mat'), str(roots(act)[0])]) == 2
    error = capsys.readouterr().err
    assert 'none of the 6 panoramas' in error and error.count('\n') == 1
    with pytest.raises(ValueError, match='expected one of papers, original'):
        cvact_places(act / 'ACT_data.mat', roots(act), 'both')


def test_the_check_command_counts(act, capsys):
    assert cvact.main([str(act / 'ACT_data.mat'), *map(str, roots(act))]) == 0
    assert 'train: 2 places\nval: 2 places\ntest: 1 places' in capsys.readouterr().out


def test_the_polar_view_has_north_in_the_middle_column(act):
    # One colour per quarter of the compass, seen from the middle.
    rows, cols = np.mgrid[0:1200, 0:1200] - 599.5
    quarter = np.round(np.degrees(np.arctan2(cols, -rows)) / 90).astype(int) % 4   # N, E, S, W
    levels = np.array([50, 100, 150, 200], np.uint8)[quarter]
    cv2.imwrite(str(act / 'compass.png'), levels)
    polar = cvact.polar_satellite(act / 'compass.png')
    assert polar.shape == (112, 616, 3)
    for column, expected in ((0, 150), (154, 200), (308, 50), (462, 100)):     # S, W, N, E
        assert (polar[:100, column] == expected).all()
