"""The one place where rosbag2 recordings are opened, read and decoded."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, ExitStack, suppress
from functools import cache
import heapq
import logging
from pathlib import Path
import struct

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.typesys import get_types_from_msg, get_typestore, Stores

from crossview_localizer.bags.storage import (
    BagError,
    decompress_message,
    errors_named,
    open_storages,
)
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs


class Bag:
    """A recording (a folder, or one .mcap, .db3 or ROS 1 .bag file) that is open for reading.

    A bag that its recorder could not finish is read as far as it goes; ``notes`` and, once, the
    log say what it lacks.  Messages of ROS 1 are converted to those of ROS 2.

    Raises FileNotFoundError if the bag does not exist, and BagError if nothing of it can be read.
    The types of topics that are not decoded need not be known.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.notes: list[str] = []
        self._stack = ExitStack()
        try:
            with errors_named(self.path):
                self._storages = open_storages(self.path, self._stack, self.notes)
        except BaseException:
            self._stack.close()
            raise
        for note in self.notes:
            _warn_once(note)
        self.connections: list[Connection] = [
            connection for storage in self._storages for connection in storage.connections]
        filled = [storage for storage in self._storages if storage.message_count]
        self.start_ns: int = min((storage.start_time for storage in filled), default=0)
        self.end_ns: int = max((storage.end_time for storage in filled), default=0)
        self.message_count: int = sum(storage.message_count for storage in filled)
        self._typestore = get_typestore(Stores.EMPTY)

    def __enter__(self) -> 'Bag':
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    @property
    def topics(self) -> set[str]:
        return {connection.topic for connection in self.connections}

    def topics_of(self, *msgtypes: str) -> list[str]:
        """The topics of these types, such as sensor_msgs/msg/NavSatFix, by name."""
        return sorted({c.topic for c in self.connections if c.msgtype in msgtypes})

    def read_raw(
        self, topics: Collection[str] | None = None, start_ns: int | None = None,
        stop_ns: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, bag time in ns, serialized message) in the bag's order.

        All topics, or those named; bag times in [start_ns, stop_ns).
        """
        streams = []
        for storage in self._storages:
            chosen = [c for c in storage.connections if topics is None or c.topic in topics]
            if chosen:
                streams.append(storage.messages(chosen, start_ns, stop_ns))
        messages = heapq.merge(*streams, key=lambda entry: entry[1])
        while True:
            with errors_named(self.path):
                entry = next(messages, None)
                if entry is None:
                    return
                connection, bag_ns, data = entry
                data = decompress_message(data)
            yield connection, bag_ns, data

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

    Damaged ones are left out, and named in the log.  Raises BagError or OSError where the bag
    cannot be read.
    """
    with Bag(path) as bag, refused_messages(path) as refused:
        for connection, bag_ns, data in bag.read_raw(topics):
            try:
                msg = bag.decode(connection, data)
            except BagError as error:
                refused.add(connection.topic, str(error))
            else:
                yield connection.topic, bag_ns, msg


def read_messages_stamped(
    path: str | Path, topic: str, stamps_ns: Iterable[int],
) -> dict[int, object]:
    """The messages of a topic with these stamps, by stamp; those that do not exist are left out.

    No other message is decoded; damaged ones are left out.  Raises BagError or OSError if the bag
    cannot be read.
    """
    wanted, found = set(stamps_ns), {}
    with Bag(path) as bag:
        for connection, _, data in bag.read_raw({topic}):
            with suppress(BagError):
                stamp_ns = header_stamp_ns(data)
                if stamp_ns in wanted and stamp_ns not in found:
                    found[stamp_ns] = bag.decode(connection, data)
            if len(found) == len(wanted):
                break
    return found


def read_stamps_ns(bag: Bag, topic: str) -> Iterator[int]:
    """The stamps of a topic's messages, which are not decoded; too short ones are left out."""
    for _, _, data in bag.read_raw({topic}):
        with suppress(BagError):
            yield header_stamp_ns(data)


class RefusedMessages:
    """Counts the messages of each topic that cannot be used, and keeps the first reason."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}

    def add(self, topic: str, reason: str) -> None:
        self.counts[topic] += 1
        self._reasons.setdefault(topic, reason)

    def __str__(self) -> str:
        return '; '.join(
            f'{count} {"messages" if count > 1 else "message"} on {topic} cannot be used '
            f'({"the first: " if count > 1 else ""}{self._reasons[topic]})'
            for topic, count in self.counts.items())


@contextmanager
def refused_messages(path: str | Path) -> Iterator[RefusedMessages]:
    """Collect the unusable messages of a bag; the log names them, once, when the block ends."""
    refused = RefusedMessages()
    try:
        yield refused
    finally:
        if refused.counts:
            _warn_once(f'{path}: {refused}')


def header_stamp_ns(data: bytes) -> int:
    """The stamp of a serialized message that begins with a header: CDR, 4 bytes, sec, nanosec."""
    if len(data) < 12:
        raise BagError(f'a message of {len(data)} bytes is damaged; expected a stamped header')
    order = '<' if data[1] & 1 else '>'
    sec, nanosec = struct.unpack_from(f'{order}iI', data, 4)
    return sec * 1_000_000_000 + nanosec


def _definitions(connection: Connection) -> dict:
    """The recorded definition of a type with its parts; without one, all known definitions."""
    if connection.msgdef.format == MessageDefinitionFormat.MSG:
        return get_types_from_msg(connection.msgdef.data, connection.msgtype)
    return typestore_with_geographic_msgs().fielddefs


@cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)
