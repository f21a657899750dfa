"""Write a file or a folder so that it is either whole or absent."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import shutil


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield a path to write a file or a folder to; at the end of the block it replaces ``path``.

    The yielded path has the same name, in a hidden folder beside ``path``.  If the block raises
    an error, ``path`` stays as it was and nothing else is left.
    """
    path = Path(path)
    hidden = path.with_name(f'.{path.name}.partial')
    shutil.rmtree(hidden, ignore_errors=True)  # left by a process that was killed
    hidden.mkdir(parents=True)
    try:
        yield hidden / path.name
        if path.is_dir():  # a folder cannot be replaced in one step
            path.rename(hidden / 'replaced')
        (hidden / path.name).replace(path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
