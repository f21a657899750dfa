"""Opens the files of a recording by their content: ROS 2 or ROS 1, finished or not."""

from collections.abc import Iterator
from contextlib import contextmanager, ExitStack
from pathlib import Path
import re
import shutil
import sqlite3
import sys
from tempfile import TemporaryDirectory
from typing import Protocol

from rosbags.interfaces import Connection
from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2 import Reader

from crossview_localizer.bags.mcap_scan import MAGIC as MCAP_MAGIC
from crossview_localizer.bags.mcap_scan import McapScan
from crossview_localizer.bags.ros1 import AsRos2
from crossview_localizer.bags.ros1_scan import Ros1Scan

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SQLITE_MAGIC, ROS1_MAGIC, ZSTD_MAGIC = b'SQLite format 3\0', b'#ROSBAG V', b'\x28\xb5\x2f\xfd'
SUFFIXES = ('.mcap', '.db3', '.bag', '.mcap.zstd', '.db3.zstd', '.bag.active')
# Files that sqlite keeps beside a database that was not closed: later messages, or how to undo
# an incomplete change.
SQLITE_JOURNALS = ('-wal', '-journal')
REMEDIES = {
    MCAP_MAGIC: 'to save what is whole: mcap recover FILE -o NEW.mcap',
    SQLITE_MAGIC: 'to save what is whole: sqlite3 FILE .recover | sqlite3 NEW.db3',
    ROS1_MAGIC: 'where it is damaged: rosbag reindex FILE; before version 2.0: rosbag migrate'}


class BagError(ValueError):
    """A recording that cannot be read or used; the message says what was found and expected."""


class Storage(Protocol):
    """A reader of serialized messages (CDR); times are bag times in ns, the end is exclusive."""

    connections: list[Connection]
    message_count: int
    start_time: int
    end_time: int

    def messages(
        self, connections, start: int | None, stop: int | None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """The messages of these connections in [start, stop), in the order of time."""


def open_storages(path: Path, stack: ExitStack, notes: list[str]) -> list[Storage]:
    """Open all parts of a recording; ``stack`` closes them.

    ``notes`` gets a sentence about each difference from a finished recording.
    Raises FileNotFoundError, OSError or BagError.
    """
    if path.name == 'metadata.yaml':
        path = path.parent
    if not path.exists():
        raise FileNotFoundError(
            f'bag {path} does not exist; expected a folder that ros2 bag record wrote, or one '
            '.mcap, .db3 or .bag file')
    if not path.is_dir():
        return [_open_file(path, stack, notes)]
    files = _recorded_files(path)
    has_metadata = (path / 'metadata.yaml').exists()
    has_journals = any(map(_journals, files))
    if has_metadata and not has_journals and not any(map(_is_misread, files)):
        try:
            reader = Reader(path)
            reader.open()
        except Exception as error:  # on damaged bytes rosbags may raise anything
            notes.append(
                f'{path}/metadata.yaml does not fit ({_one_line(error)}): the files that are '
                f'beside it are read without it; ros2 bag reindex {path} makes it anew')
        else:
            stack.callback(reader.close)
            if all(getattr(storage, 'chunks', True) for storage in reader.storage.storages):
                return [reader]
    elif not (has_metadata or has_journals) and files and (
            files[0].suffix not in ('.bag', '.active')):
        notes.append(
            f'{path} has no metadata.yaml, as if its recorder had been killed: its files are '
            f'read without it; ros2 bag reindex {path} makes it')
    if not files:
        raise BagError(
            f'{path} cannot be read as a bag (it holds no .mcap, .db3 or .bag file); expected a '
            'whole rosbag2 recording')
    if len({_name_without_number(file) for file in files}) > 1:
        raise BagError(
            f'{path} holds several recordings ({", ".join(file.name for file in files)}) and no '
            'metadata.yaml that says which belong together; give one of the files')
    opened, problem = [], None
    for file in files:
        try:
            opened.append(_open_file(file, stack, notes))
        except BagError as error:
            problem = error
            notes.append(f'left out: {error}')
    if not opened:
        raise problem
    return opened


def _recorded_files(folder: Path) -> list[Path]:
    return sorted(
        (file for file in folder.iterdir() if file.name.lower().endswith(SUFFIXES)),
        key=lambda file: [int(part) if part.isdigit() else part
                          for part in re.split(r'(\d+)', file.name)])


def _name_without_number(file: Path) -> str:
    """The name of a recording from that of one of its parts: without number and time."""
    name = file.name.partition('.')[0]
    return re.sub(r'_?\d{4}(-\d\d){5}', '', re.sub(r'_\d+$', '', name))


def _journals(file: Path) -> list[Path]:
    """The files that sqlite left beside a database."""
    found = [file.with_name(file.name + suffix) for suffix in SQLITE_JOURNALS]
    return [path for path in found if path.exists() and path.stat().st_size]


def _is_misread(file: Path) -> bool:
    """Whether rosbags, which gives sqlite an address, would look for a file of another name."""
    return '.db3' in file.suffixes and bool(re.search('[#?%]', str(file)))


def _open_file(path: Path, stack: ExitStack, notes: list[str]) -> Storage:
    with open(path, 'rb') as file:
        head = file.read(16)
    if head.startswith(ZSTD_MAGIC):
        path, head = _decompressed(path, stack)
    if not head:
        raise BagError(f'{path} is empty; expected a recording: its recorder was ended before it '
                       'had written anything')
    magic = _magic(head)
    if magic is None:
        raise BagError(
            f'{path} cannot be read as a bag (it begins with {head[:8]!r}); expected an .mcap or '
            '.db3 file of ROS 2, or a .bag of ROS 1')
    with errors_named(path):
        if magic == MCAP_MAGIC:
            return _open_mcap(path, stack, notes)
        if magic == ROS1_MAGIC:
            return _open_ros1(path, head, stack, notes)
        if journals := _journals(path):
            path = _with_journals(path, journals, stack, notes)
        # rosbags chooses the format by the suffix.
        reader = Reader(_with_suffix(path, '.db3', stack))
        reader.open()
        stack.callback(reader.close)
        return reader


def _open_mcap(path: Path, stack: ExitStack, notes: list[str]) -> Storage:
    try:
        reader = Reader(_with_suffix(path, '.mcap', stack))
        reader.open()
    except Exception as error:
        problem = _one_line(error)
    else:
        stack.callback(reader.close)
        if reader.storage.chunks:
            return reader
        problem = ''  # without an index rosbags expects the messages in the order of time
    scan = McapScan(path)
    if scan.problem or problem and 'rofile' not in problem:
        notes.append(_unfinished(path, scan, scan.problem or problem))
    if 'ros1' in scan.encodings:
        return _as_ros2(path, scan, stack, notes)
    stack.callback(scan.close)
    if others := [f'{c.topic} ({c.ext.serialization_format})' for c in scan.connections
                  if c.ext.serialization_format != 'cdr']:
        notes.append(f'{path}: left out, as not of ROS: {", ".join(others)}')
    scan.connections = [c for c in scan.connections if c.ext.serialization_format == 'cdr']
    return scan


def _open_ros1(path: Path, head: bytes, stack: ExitStack, notes: list[str]) -> Storage:
    try:
        reader = Ros1Reader(path)
        reader.open()
    except Exception as error:
        if not head.startswith(ROS1_MAGIC + b'2.0\n'):
            raise
        reader = Ros1Scan(path)
        reader.open()
        problem = '; '.join(filter(None, (_one_line(error), reader.problem)))
        notes.append(_unfinished(path, reader, problem))
    return _as_ros2(path, reader, stack, notes)


def _unfinished(path: Path, found: Storage, problem: str) -> str:
    """What to say of a file that was read without its index."""
    what = (f'{found.message_count} messages are read, '
            f'{(found.end_time - found.start_time) * 1e-9:.1f} s'
            if found.message_count else 'no message is whole')
    return f'{path} is not finished or damaged ({problem}): {what}'


def _as_ros2(path: Path, reader, stack: ExitStack, notes: list[str]) -> Storage:
    converted = AsRos2(reader)
    stack.callback(converted.close)
    if converted.left_out:
        notes.append(f'{path}: left out, as ROS 2 has no such type or another one of that name: '
                     f'{", ".join(converted.left_out)}')
    return converted


def _decompressed(path: Path, stack: ExitStack) -> tuple[Path, bytes]:
    """A copy of a file compressed with zstd in a folder that is removed later; its first bytes."""
    copy = Path(stack.enter_context(TemporaryDirectory())) / path.name.removesuffix('.zstd')
    with errors_named(path), zstd.open(path, 'rb') as source, open(copy, 'wb') as target:
        shutil.copyfileobj(source, target)
    with open(copy, 'rb') as file:
        return copy, file.read(16)


def _with_journals(
    path: Path, journals: list[Path], stack: ExitStack, notes: list[str],
) -> Path:
    """A copy of a database with the contents of the files that sqlite left beside it."""
    folder = Path(stack.enter_context(TemporaryDirectory()))
    for file in (path, *journals):
        shutil.copy(file, folder / file.name)
    connection = sqlite3.connect(folder / path.name)
    try:
        connection.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        connection.execute('PRAGMA journal_mode=DELETE')
        connection.execute('SELECT count(*) FROM messages').fetchone()
    finally:
        connection.close()
    notes.append(
        f'{path} was not closed: {", ".join(file.name for file in journals)} beside it belongs to '
        'it and is read with it')
    return folder / path.name


def decompress_message(data: bytes) -> bytes:
    """A message of a bag whose messages are compressed one by one; CDR begins with a zero."""
    return zstd.decompress(data) if bytes(data[:4]) == ZSTD_MAGIC else data


def _with_suffix(path: Path, suffix: str, stack: ExitStack) -> Path:
    """The file under a name with this suffix that rosbags reads rightly."""
    if path.suffix == suffix and not _is_misread(path):
        return path
    link = Path(stack.enter_context(TemporaryDirectory())) / f'bag{suffix}'
    link.symlink_to(path.resolve())
    return link


def _magic(head: bytes) -> bytes | None:
    """How a file of a known format begins, from its own first bytes; None for others."""
    return next((magic for magic in REMEDIES if head.startswith(magic)), None)


def _remedy(path: Path) -> str:
    """How to save what is whole of a damaged file, or of the first one of a folder."""
    file = next(iter(_recorded_files(path)), None) if path.is_dir() else path
    if file is None:
        return ''
    with open(file, 'rb') as opened:
        remedy = REMEDIES.get(_magic(opened.read(16)), '')
    return remedy and f'; {remedy.replace("FILE", str(file))}'


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """Turn any error of rosbags, which damaged bytes can cause, into a BagError with the path."""
    try:
        yield
    except (BagError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise BagError(
            f'{path} cannot be read as a bag ({_one_line(error)}); expected a whole recording'
            f'{_remedy(path)}') from error


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split()) or type(error).__name__
