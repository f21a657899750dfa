"""A bag of ROS 1 without a usable index (never finished, cut off), read chunk by chunk."""

from io import BytesIO
import os
from typing import BinaryIO

from rosbags.rosbag1.reader import (
    ChunkInfo,
    Header,
    IndexData,
    read_uint32,
    Reader,
    ReaderError,
    RecordType,
)


class Ros1Scan(Reader):
    """A reader that makes the index itself, of everything before the place where the bag ends.

    ``problem`` says why the reading ended there, or which chunk is damaged.
    """

    problem = ''

    def open(self) -> None:
        """Read the whole file once."""
        self.bio = self.path.open('rb')
        end = self.path.stat().st_size
        self.bio.readline()     # the version
        try:
            while (at := self.bio.tell()) < end:
                if Header.read(self.bio).get_uint8('op') == RecordType.CHUNK:
                    self.bio.seek(at)
                    self._add_chunk(at)
                else:
                    self.bio.seek(read_uint32(self.bio), os.SEEK_CUR)
        except ReaderError:
            self.problem = self.problem or f'byte {at} is where it is cut off or damaged'
        self.connections = [
            connection._replace(msgcount=len(self.indexes[connection.id]))
            for connection in self.connections]

    def _add_chunk(self, at: int) -> None:
        chunk = self.read_chunk()
        self.bio.seek(chunk.datapos)
        stored = self.bio.read(chunk.datasize)
        # One that is cut off holds whole messages if it is not compressed.
        self.chunks[at] = chunk._replace(datasize=len(stored))
        try:
            data = chunk.decompressor(stored)
        except (OSError, EOFError, RuntimeError, ValueError) as error:
            self.problem = f'the chunk at byte {at} is damaged ({error})'
            return
        times, counts = [], {}
        for number, time_ns, offset in self._records(BytesIO(data), len(data)):
            self.indexes[number].append(IndexData(time_ns, at, offset))
            times.append(time_ns)
            counts[number] = counts.get(number, 0) + 1
        if times:
            self.chunk_infos.append(ChunkInfo(at, min(times), max(times) + 1, counts))

    def _records(self, chunk: BinaryIO, size: int):
        """(connection, time in ns, offset) of each whole message; takes connections as well."""
        while (offset := chunk.tell()) < size:
            try:
                header = Header.read(chunk)
                after = chunk.tell() + 4 + read_uint32(chunk)
            except ReaderError:
                return
            if after > size:
                return
            if header.get_uint8('op') == RecordType.CONNECTION:
                self._take_connection(chunk, offset)
            elif header.get_uint32('conn') in self.indexes:
                yield header.get_uint32('conn'), header.get_time('time'), offset
            chunk.seek(after)

    def _take_connection(self, chunk: BinaryIO, offset: int) -> None:
        chunk.seek(offset)
        file, self.bio = self.bio, chunk
        try:
            connection = self.read_connection()
        finally:
            self.bio = file
        if connection.id not in self.indexes:
            self.indexes[connection.id] = []
            self.connections.append(connection)
