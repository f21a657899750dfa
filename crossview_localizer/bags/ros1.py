"""Reads recordings of ROS 1 as if they were of ROS 2."""

from collections.abc import Collection, Iterator

from rosbags.convert.converter import is_same_wireformat, LATCH, STATIC_MSGTYPE_RENAMES
from rosbags.interfaces import (
    Connection,
    ConnectionExtRosbag2,
    MessageDefinition,
    MessageDefinitionFormat,
)
from rosbags.typesys import get_types_from_msg, get_typestore, Stores, TypesysError

from crossview_localizer.bags.typestore import typestore_with_geographic_msgs


class AsRos2:
    """A reader of ROS 1 messages that gives types, definitions and bytes (CDR) of ROS 2.

    ``left_out`` are the topics whose types are not the same in both.
    """

    def __init__(self, reader):
        self.left_out: list[str] = []
        self.connections: list[Connection] = []
        self._reader = reader
        self._typestore = typestore_with_geographic_msgs()
        self._sources: dict[int, Connection] = {}
        for source in reader.connections:
            msgtype = STATIC_MSGTYPE_RENAMES.get(source.msgtype, source.msgtype)
            if not self._is_same(source, msgtype):
                self.left_out.append(f'{source.topic} ({source.msgtype})')
                continue
            definition, _ = self._typestore.generate_msgdef(msgtype, ros_version=2)
            is_latched = getattr(source.ext, 'latching', None)
            self._sources[source.id] = source
            self.connections.append(Connection(
                source.id, f'/{source.topic.lstrip("/")}', msgtype,
                MessageDefinition(MessageDefinitionFormat.MSG, definition),
                self._typestore.hash_rihs01(msgtype), source.msgcount,
                ConnectionExtRosbag2('cdr', LATCH if is_latched else []), self))

    def close(self) -> None:
        self._reader.close()

    @property
    def message_count(self) -> int:
        return sum(connection.msgcount for connection in self.connections)

    @property
    def start_time(self) -> int:
        return self._reader.start_time

    @property
    def end_time(self) -> int:
        return self._reader.end_time

    def messages(
        self, connections: Collection[Connection], start: int | None = None,
        stop: int | None = None,
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """(connection, bag time in ns, CDR) of these connections, times in [start, stop)."""
        wanted = {connection.id: connection for connection in connections}
        sources = [self._sources[number] for number in wanted]
        for source, bag_ns, data in self._reader.messages(sources, start, stop):
            connection = wanted[source.id]
            try:
                yield connection, bag_ns, bytes(
                    self._typestore.ros1_to_cdr(data, connection.msgtype))
            except Exception:  # rosbags may raise anything here; decode() reports the damage
                yield connection, bag_ns, b''

    def _is_same(self, source: Connection, msgtype: str) -> bool:
        if msgtype not in self._typestore.fielddefs:
            return False
        recorded = get_typestore(Stores.EMPTY)
        try:
            recorded.register(get_types_from_msg(source.msgdef.data, source.msgtype))
            return is_same_wireformat(recorded, self._typestore, source.msgtype, msgtype)
        except (TypesysError, KeyError):
            return False
