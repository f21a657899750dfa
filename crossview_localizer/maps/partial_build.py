"""The files of an unfinished map, with which a stopped build continues.

Each process of a build appends the jobs that it has done to its own file, and process 0 reads the
files of all processes. A file begins with HEADER and a hash of everything that the descriptors
depend on.
"""

from collections.abc import Iterator
from pathlib import Path
import re
import zlib

import numpy as np

HEADER = b'crossview_localizer build_map 2 '


def partial_files(path: Path) -> list[Path]:
    """The files of an unfinished build: ``path`` of process 0, ``path``.1 of process 1, ..."""
    name = re.compile(re.escape(path.name) + r'(\.[1-9]\d*)?')
    return sorted(file for file in path.parent.iterdir()
                  if name.fullmatch(file.name) and _is_ours(file))


def _is_ours(path: Path) -> bool:
    with open(path, 'rb') as file:
        return file.read(len(HEADER)) == HEADER


class PartialBuild:
    """The jobs that an unfinished build has done, each with its number and a checksum.

    Without a path nothing is stored. Opening raises ValueError if build_map did not write the file
    at the path.
    """

    def __init__(self, path: Path | None, plan: str, record: np.dtype, sizes: list[int],
                 rank: int):
        self._path = path
        self._own = path and (path.with_name(f'{path.name}.{rank}') if rank else path)
        self._header = HEADER + f'{plan}\n'.encode()
        self._record, self._sizes = record, sizes
        self._read_to: dict[Path, int] = {}
        self.of_other_plans: set[Path] = set()
        self._file = None

    def __enter__(self) -> 'PartialBuild':
        if self._own is not None:
            if self._own.exists() and self._own.stat().st_size > 0 and not _is_ours(self._own):
                raise ValueError(f'{self._own} was not written by build_map, which needs that '
                                 'name for what is unfinished; move it away')
            self._file = open(self._own, 'r+b' if self._own.exists() else 'w+b')
            if self._file.read(len(self._header)) != self._header:
                self._file.seek(0)
                self._file.truncate()
                self._file.write(self._header)
                self._file.flush()
            # Anything after the last complete job is cut off.
            end = max([len(self._header), *(
                end for *_, end in self._jobs(self._file, len(self._header)))])
            self._file.seek(end)
            self._file.truncate()
        return self

    def _jobs(self, file, at: int) -> Iterator[tuple[int, np.ndarray, int]]:
        """Number, content and end of each complete job after the position ``at``."""
        file.seek(at)
        while len(head := file.read(8)) == 8:
            number, check = (int.from_bytes(part, 'little') for part in (head[:4], head[4:]))
            if number >= len(self._sizes):
                return
            data = file.read(self._sizes[number] * self._record.itemsize)
            if zlib.crc32(data, number) != check:
                return
            yield number, np.frombuffer(data, self._record), file.tell()

    def new(self) -> Iterator[tuple[int, np.ndarray]]:
        """Number and content of the jobs that any process has added since the last call."""
        for path in partial_files(self._path) if self._path else ():
            with open(path, 'rb') as file:
                if file.read(len(self._header)) != self._header:
                    self.of_other_plans.add(path)
                    continue
                self.of_other_plans.discard(path)
                for number, part, end in self._jobs(
                        file, self._read_to.get(path, len(self._header))):
                    self._read_to[path] = end
                    yield number, part

    def append(self, number: int, part: np.ndarray) -> None:
        if self._file is not None:
            data, number = part.tobytes(), int(number)
            check = zlib.crc32(data, number)
            self._file.write(number.to_bytes(4, 'little') + check.to_bytes(4, 'little') + data)
            self._file.flush()

    def __exit__(self, kind, *_):
        if self._file is not None:
            self._file.close()
