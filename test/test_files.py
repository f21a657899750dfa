"""Files and folders are written whole or not at all."""

import numpy as np
import pytest

from crossview_localizer.files import write_atomically


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / 'new' / 'numbers.npz'
    with write_atomically(path) as partial:
        np.savez(partial, numbers=np.arange(3))  # numpy appends .npz to other names
        assert not path.exists()
    assert np.load(path)['numbers'].tolist() == [0, 1, 2]
    assert [entry.name for entry in path.parent.iterdir()] == ['numbers.npz']


def test_after_an_error_the_old_content_stays_and_nothing_else_is_left(tmp_path):
    path = tmp_path / 'page.html'
    path.write_text('old')
    with pytest.raises(ZeroDivisionError):
        with write_atomically(path) as partial:
            partial.write_text('half of the n')
            raise ZeroDivisionError
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_by_a_folder(tmp_path):
    path = tmp_path / 'bag'
    for content in ('old', 'new'):
        with write_atomically(path) as partial:
            partial.mkdir()
            (partial / content).touch()
    assert [entry.name for entry in path.iterdir()] == ['new']
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    (tmp_path / '.a.txt.partial').mkdir()
    (tmp_path / '.a.txt.partial/a.txt').write_text('left over')
    with write_atomically(tmp_path / 'a.txt') as partial:
        assert not partial.exists()
        partial.write_text('new')
    assert (tmp_path / 'a.txt').read_text() == 'new'
    assert [entry.name for entry in tmp_path.iterdir()] == ['a.txt']


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        with write_atomically(tmp_path / 'a.txt'):
            pass
    assert not list(tmp_path.iterdir())
