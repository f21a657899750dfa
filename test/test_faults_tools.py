"""Tools on a full disk, where they may not write, or killed: a clear line, no half result."""

from contextlib import contextmanager
from pathlib import Path
import resource
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip('rclpy')

import recorded_drive
import robotcar_drive

from benchmarks.robustness import flat_world
from crossview_localizer import build_map, export, report, robotcar_to_bag, viewer_bag


@contextmanager
def full_disk(left_bytes: int):
    """A file that grows beyond this cannot be written, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def said(capsys) -> str:
    error = capsys.readouterr().err.strip().splitlines()
    assert 'Traceback' not in '\n'.join(error)
    return error[-1]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    return flat_world.make_files(tmp_path_factory.mktemp('flat'))


def command(files, out) -> list[str]:
    return [str(part) for part in (
        files.orthophoto, '--weights', files.weights, '--area', '--spacing-m', 4, '--threads', 1,
        '--out', out)]


def test_a_map_on_a_full_disk_is_one_line_and_no_map(files, tmp_path, capsys):
    with full_disk(1000):
        assert build_map.main(command(files, tmp_path / 'a.map')) == 2
    assert said(capsys).startswith('build_map: ')
    assert not (tmp_path / 'a.map').exists()
    # With room again the same command ends as it should.
    assert build_map.main(command(files, tmp_path / 'a.map')) == 0


@pytest.mark.parametrize('out', ['/proc/a.map', '/nowhere/a.map'])
def test_a_map_that_may_not_be_written_is_one_line(files, out, capsys):
    assert build_map.main(command(files, out)) == 2
    assert said(capsys).startswith('build_map: ')


def bytes_of(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


def test_a_build_killed_at_some_moment_and_begun_again_gives_the_same_bytes(files, tmp_path):
    out = tmp_path / 'killed.map'
    process = subprocess.Popen(
        [sys.executable, '-m', 'crossview_localizer.build_map', *command(files, out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    partial = tmp_path / 'killed.map.partial'
    end_s = time.monotonic() + 200.0
    while process.poll() is None and not any(partial.glob('descriptors/c/0/*/*')):
        assert time.monotonic() < end_s
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert build_map.main(command(files, out)) == 0
    assert build_map.main(command(files, tmp_path / 'whole.map')) == 0
    assert bytes_of(out) == bytes_of(tmp_path / 'whole.map')
    assert not partial.exists()


@pytest.fixture(scope='module')
def drive(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robotcar_drive, 'N_IMAGES', 10)
        return robotcar_drive.write_drive(tmp_path_factory.mktemp('drive'))


def test_a_bag_on_a_full_disk_is_one_line_and_no_bag(drive, tmp_path, capsys):
    with full_disk(20_000):
        assert robotcar_to_bag.main(drive.arguments(tmp_path / 'bag')) == 2
    assert said(capsys).startswith('robotcar_to_bag: ')
    assert not (tmp_path / 'bag').exists()
    assert robotcar_to_bag.main(drive.arguments(tmp_path / 'bag')) == 0


def test_a_bag_that_may_not_be_written_is_one_line(drive, capsys):
    assert robotcar_to_bag.main(drive.arguments(Path('/proc/bag'))) == 2
    assert said(capsys).startswith('robotcar_to_bag: ')


@pytest.fixture(scope='module')
def recording(ros, tmp_path_factory):
    """Arguments that name a short recording and what was played."""
    folder = tmp_path_factory.mktemp('recording')
    run = recorded_drive.write_bag(folder / 'run', recorded_drive.output_messages(2.0))
    played = recorded_drive.write_bag(folder / 'input', recorded_drive.input_messages(2.0))
    return [str(run), '--input-bag', str(played)]


@pytest.mark.parametrize('tool', [report, viewer_bag, export])
def test_a_result_that_may_not_be_written_or_does_not_fit_is_one_line(
        tool, recording, shipped_weights, tmp_path, capsys):
    given = [str(shipped_weights[0])] if tool is export else recording
    name = tool.__name__.rpartition('.')[2]
    assert tool.main([*given, '--out', '/proc/result']) == 2
    assert said(capsys).startswith(f'{name}: ')
    with full_disk(2_000):
        assert tool.main([*given, '--out', str(tmp_path / 'result')]) == 2
    assert said(capsys).startswith(f'{name}: ')
    assert not (tmp_path / 'result').is_file()
