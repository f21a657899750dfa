"""The one place where rosbag2 recordings are opened, read and decoded."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
import struct

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_types_from_msg, get_typestore, Stores

from crossview_localizer.bags.typestore import typestore_with_geographic_msgs


class BagError(ValueError):
    """A recording that cannot be read or used; the message says what was found and expected."""


class Bag:
    """A recording (a folder, or one .mcap or .db3 file) that is open for reading.

    Raises FileNotFoundError where there is none, and BagError where it is damaged.  The types of
    topics that are not decoded need not be known.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(
                f'bag {path} does not exist; expected a folder that ros2 bag record wrote')
        with _errors_named(self.path):
            self._reader = Reader(self.path)
            self._reader.open()
        self.connections: list[Connection] = list(self._reader.connections)
        self.start_ns: int = self._reader.start_time
        self.end_ns: int = self._reader.end_time
        self.message_count: int = self._reader.message_count
        self._typestore = get_typestore(Stores.EMPTY)

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()

    @property
    def topics(self) -> set[str]:
        return {connection.topic for connection in self.connections}

    def read_raw(
        self, topics: Collection[str] | None = None, start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, bag time in ns, serialized message) in the bag's order.

        All topics, or those named; bag times in [start_ns, stop_ns).
        """
        chosen = [c for c in self.connections if topics is None or c.topic in topics]
        if not chosen:
            return
        messages = self._reader.messages(chosen, start_ns, stop_ns)
        while True:
            with _errors_named(self.path):
                entry = next(messages, None)
            if entry is None:
                return
            yield entry

    def decode(self, connection: Connection, data: bytes):
        """The message; BagError where its bytes or its type's definition are damaged."""
        try:
            if connection.msgtype not in self._typestore.fielddefs:
                self._typestore.register(_definitions(connection))
            return self._typestore.deserialize_cdr(data, connection.msgtype)
        except Exception as error:  # on damaged bytes rosbags raises whatever its decoders do
            raise BagError(f'a message on {connection.topic} is damaged') from error


def read_messages(
    path: str | Path, topics: Collection[str] | None = None,
) -> Iterator[tuple[str, int, object]]:
    """(topic, bag time in ns, message) in the bag's order; all topics, or those named.

    Raises BagError or OSError where the bag cannot be read.
    """
    with Bag(path) as bag:
        for connection, bag_ns, data in bag.read_raw(topics):
            yield connection.topic, bag_ns, bag.decode(connection, data)


def read_messages_stamped(
    path: str | Path, topic: str, stamps_ns: Iterable[int],
) -> dict[int, object]:
    """Stamp to message, for those of a topic's messages with these stamps that are there.

    Only they are decoded.  Raises BagError or OSError where the bag cannot be read.
    """
    wanted, found = set(stamps_ns), {}
    with Bag(path) as bag:
        for connection, _, data in bag.read_raw({topic}):
            stamp_ns = header_stamp_ns(data)
            if stamp_ns in wanted and stamp_ns not in found:
                found[stamp_ns] = bag.decode(connection, data)
                if len(found) == len(wanted):
                    break
    return found


def header_stamp_ns(data: bytes) -> int:
    """The stamp of a serialized message that begins with a header: CDR, 4 bytes, sec, nanosec."""
    if len(data) < 12:
        raise BagError(f'a message of {len(data)} bytes is damaged; expected a stamped header')
    order = '<' if data[1] & 1 else '>'
    sec, nanosec = struct.unpack_from(f'{order}iI', data, 4)
    return sec * 1_000_000_000 + nanosec


def _definitions(connection: Connection) -> dict:
    """The recorded definition of a type with its parts, or all known ones where it has none."""
    if connection.msgdef.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(connection.msgdef.data, connection.msgtype)
    return typestore_with_geographic_msgs().fielddefs


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """On damaged bytes rosbags raises whatever its decoders do: name the bag instead."""
    try:
        yield
    except Exception as error:
        problem = ' '.join(str(error).split()) or type(error).__name__
        raise BagError(f'{path} cannot be read as a bag ({problem}); expected a whole rosbag2 '
                       'recording') from error
