"""An mcap file without a usable index, read record by record: unfinished, cut off, or damaged."""

from array import array
from collections.abc import Collection, Iterator
import mmap
from pathlib import Path
import struct
import sys
from zlib import crc32

from lz4.frame import LZ4FrameDecompressor
import numpy as np
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.rosbag2.metadata import parse_qos

if sys.version_info >= (3, 14):
    from compression.zstd import ZstdDecompressor, ZstdError
else:
    from backports.zstd import ZstdDecompressor, ZstdError

MAGIC = b'\x89MCAP0\r\n'
FOOTER, SCHEMA, CHANNEL, MESSAGE, CHUNK, DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0f
RECORD_HEAD = struct.Struct('<BQ')       # opcode, length of what follows
MESSAGE_HEAD = struct.Struct('<HIQQ')    # channel, sequence, log time, publish time
CHUNK_HEAD = struct.Struct('<QQQI')      # first and last log time, uncompressed size, CRC
MAX_CHUNK_BYTES = 2**30
DECOMPRESSORS = {'lz4': LZ4FrameDecompressor, 'zstd': ZstdDecompressor}
DEFINITION_FORMATS = {
    'ros1msg': MessageDefinitionFormat.MSG, 'ros2msg': MessageDefinitionFormat.MSG,
    'ros2idl': MessageDefinitionFormat.IDL}


class McapScan:
    """The messages up to the first record that is cut off or makes no sense, in order of time.

    ``problem`` says why the reading ended there; it is empty where the file is whole.  A chunk
    that is damaged is left out; of one that is cut off everything before the cut is read.
    ``encodings`` are those of the messages: cdr (ROS 2), ros1, or others.
    """

    def __init__(self, path: Path):
        self.problem = ''
        self.connections: list[Connection] = []
        self._schemas: dict[int, tuple[str, MessageDefinition]] = {}
        self._channels: dict[int, Connection] = {}
        self._file = open(path, 'rb')
        try:
            if self._file.read(len(MAGIC)) != MAGIC:
                raise ValueError('it does not begin as an mcap file does')
            self._data = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            self._chunk: tuple[int, bytes] = (0, b'')  # where the last one used begins, its bytes
            # One entry for each message: log time, channel, chunk (0: none), place and size.
            self._index = np.array(self._scan(), np.int64).reshape(-1, 5)
        except BaseException:
            self._file.close()
            raise
        self._index = self._index[np.argsort(self._index[:, 0], kind='stable')]
        counts = dict(zip(*np.unique(self._index[:, 1], return_counts=True)))
        self.connections = [
            connection._replace(msgcount=int(counts.get(number, 0)))
            for number, connection in self._channels.items()]

    def close(self) -> None:
        self._data.close()
        self._file.close()

    @property
    def encodings(self) -> set[str]:
        return {connection.ext.serialization_format for connection in self.connections}

    @property
    def message_count(self) -> int:
        return len(self._index)

    @property
    def start_time(self) -> int:
        return int(self._index[0, 0]) if len(self._index) else 2**63 - 1

    @property
    def end_time(self) -> int:
        return int(self._index[-1, 0]) + 1 if len(self._index) else 0

    def messages(
        self, connections: Collection[Connection], start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, log time in ns, bytes) of these connections, times in [start, stop)."""
        wanted = {connection.id: connection for connection in connections}
        limits = 0 if start is None else start, 2**63 - 1 if stop is None else stop
        first, last = np.searchsorted(self._index[:, 0], limits)
        for row in range(first, last):
            time_ns, channel, chunk, at, size = self._index[row].tolist()
            if channel in wanted:
                data = self._chunk_bytes(chunk) if chunk else self._data
                yield wanted[channel], time_ns, bytes(data[at:at + size])

    def _scan(self) -> array:
        index, at, end = array('q'), len(MAGIC), len(self._data)
        while True:
            if at + RECORD_HEAD.size > end:
                self.problem = self.problem or 'it ends without the mark of a finished file'
                return index
            opcode, size = RECORD_HEAD.unpack_from(self._data, at)
            at += RECORD_HEAD.size
            if opcode in (FOOTER, DATA_END):
                return index
            if not opcode or at + size > end and opcode != CHUNK:
                self.problem = self.problem or f'byte {at} is where it is cut off or damaged'
                return index
            if opcode == CHUNK:
                self._scan_chunk(at, min(at + size, end), index)
            else:
                self._take(opcode, self._data, at, size, 0, index)
            at += size

    def _scan_chunk(self, at: int, end: int, index: array) -> None:
        try:
            data = self._chunk_bytes(at, end)
        except (ValueError, struct.error, EOFError, RuntimeError, ZstdError) as error:
            self.problem = f'the chunk at byte {at} is damaged ({error})'
            return
        inner = 0
        while inner + RECORD_HEAD.size <= len(data):
            opcode, size = RECORD_HEAD.unpack_from(data, inner)
            inner += RECORD_HEAD.size
            if not opcode or inner + size > len(data):
                return
            self._take(opcode, data, inner, size, at, index)
            inner += size

    def _chunk_bytes(self, at: int, end: int | None = None) -> bytes:
        """The records of the chunk at a place; ``end`` is where it or the file ends.

        Raises ValueError, EOFError, RuntimeError, ZstdError or struct.error where it is damaged.
        """
        if self._chunk[0] == at:
            return self._chunk[1]
        end = len(self._data) if end is None else end
        _, _, size, check = CHUNK_HEAD.unpack_from(self._data, at)
        compression, after = _text(self._data, at + CHUNK_HEAD.size, end)
        (stored,) = struct.unpack_from('<Q', self._data, after)
        if size > MAX_CHUNK_BYTES:
            raise ValueError(f'{size} bytes')
        data = self._data[after + 8:min(after + 8 + stored, end)]
        is_whole = len(data) == stored
        if compression not in ('', *DECOMPRESSORS):
            raise ValueError(f'it is compressed with {compression!r}')
        if compression:
            data = DECOMPRESSORS[compression]().decompress(data, max_length=size)
        if is_whole and (len(data) != size or check and crc32(data) != check):
            raise ValueError('its check sum is wrong')
        self._chunk = at, data
        return data

    def _take(self, opcode: int, data, at: int, size: int, chunk: int, index: array) -> None:
        """Take a record of ``size`` bytes at a place in the file or in a chunk."""
        if opcode == MESSAGE and size >= MESSAGE_HEAD.size:
            channel, _, time_ns, _ = MESSAGE_HEAD.unpack_from(data, at)
            if channel in self._channels and time_ns < 2**63:
                head = MESSAGE_HEAD.size
                index.extend((time_ns, channel, chunk, at + head, size - head))
            return
        try:
            if opcode == SCHEMA:
                (number,) = struct.unpack_from('<H', data, at)
                name, after = _text(data, at + 2, at + size)
                encoding, after = _text(data, after, at + size)
                text, _ = _text(data, after, at + size)
                kind = DEFINITION_FORMATS.get(encoding, MessageDefinitionFormat.NONE)
                self._schemas[number] = name, MessageDefinition(kind, text)
            elif opcode == CHANNEL:
                self._add_channel(data, at, at + size)
        except (ValueError, struct.error) as error:
            self.problem = f'the record at byte {at} is damaged ({error})'

    def _add_channel(self, data, at: int, end: int) -> None:
        number, schema = struct.unpack_from('<HH', data, at)
        topic, at = _text(data, at + 4, end)
        encoding, at = _text(data, at, end)
        at, qos = at + 4, []
        while at < end:
            key, at = _text(data, at, end)
            value, at = _text(data, at, end)
            if key == 'offered_qos_profiles':
                qos = parse_qos(value)
        name, definition = self._schemas.get(
            schema, ('', MessageDefinition(MessageDefinitionFormat.NONE, '')))
        name = name if name.count('/') != 1 else name.replace('/', '/msg/')
        self._channels[number] = Connection(
            number, topic, name, definition, '', 0, ConnectionExtRosbag2(encoding, qos), self)


def _text(data, at: int, end: int) -> tuple[str, int]:
    """A text with its length before it, and where it ends."""
    (size,) = struct.unpack_from('<I', data, at)
    if at + 4 + size > end:
        raise ValueError(f'a text of {size} bytes')
    return bytes(data[at + 4:at + 4 + size]).decode(), at + 4 + size
