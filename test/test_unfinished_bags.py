"""Recordings that are not as the book has them: unfinished, cut off, damaged, of ROS 1."""

import shutil
import sqlite3

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import recorded_drive as made
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, Reader, StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg, get_typestore, Stores

from crossview_localizer.bags.bag import Bag, BagError, read_messages
from crossview_localizer.bags.drive import read_drive
from crossview_localizer.bags.route_file import read_route
from crossview_localizer.bags.typestore import typestore_with_geographic_msgs

SECONDS = 4.0
MESSAGES = 1 + 2 * 16 + 20
MCAP, SQLITE = StoragePlugin.MCAP, StoragePlugin.SQLITE3


@pytest.fixture(scope='module')
def drive(ros, tmp_path_factory):
    return made.write_bag(tmp_path_factory.mktemp('bag') / 'drive', made.input_messages(SECONDS))


def copy_bag(source, target, storage=MCAP, compression=None, keep=lambda bag_ns: True):
    writer = Writer(target, version=9, storage_plugin=storage)
    if compression is not None:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    typestore = typestore_with_geographic_msgs()
    with Reader(source) as reader, writer:
        copies = {c.id: writer.add_connection(
            c.topic, c.msgtype, typestore=typestore,
            offered_qos_profiles=c.ext.offered_qos_profiles) for c in reader.connections}
        for connection, bag_ns, data in reader.messages():
            if keep(bag_ns):
                writer.write(copies[connection.id], bag_ns, data)
    return target


def contents(path) -> list[tuple[str, int, bytes]]:
    with Bag(path) as bag:
        found = [(c.topic, bag_ns, bytes(data)) for c, bag_ns, data in bag.read_raw()]
        assert bag.message_count == len(found)
        assert bag.start_ns == found[0][1] and bag.end_ns == found[-1][1] + 1
    return found


def only_file(folder):
    return next(file for file in folder.iterdir() if file.name != 'metadata.yaml')


@pytest.mark.parametrize('storage, compression', [
    (MCAP, None), (MCAP, CompressionMode.MESSAGE), (MCAP, CompressionMode.FILE),
    (MCAP, CompressionMode.STORAGE), (SQLITE, None), (SQLITE, CompressionMode.MESSAGE),
    (SQLITE, CompressionMode.FILE)])
def test_a_folder_without_metadata_and_its_single_file_hold_the_same(
        drive, tmp_path, storage, compression, caplog):
    bag = copy_bag(drive, tmp_path / 'bag', storage, compression)
    whole = contents(bag)
    assert len(whole) == MESSAGES and not caplog.text
    (bag / 'metadata.yaml').unlink()
    assert contents(bag) == whole
    assert 'no metadata.yaml' in caplog.text and f'ros2 bag reindex {bag}' in caplog.text
    alone = shutil.copy(only_file(bag), tmp_path / f'tuesday{"".join(only_file(bag).suffixes)}')
    assert contents(alone) == whole
    assert len(read_route(alone)) == 20


@pytest.mark.parametrize('storage, compression', [
    (MCAP, None), (SQLITE, None), (SQLITE, CompressionMode.FILE)])
def test_a_path_with_marks_of_an_address_holds_the_same(
        drive, tmp_path, storage, compression, caplog):
    bag = copy_bag(drive, tmp_path / 'bag', storage, compression)
    whole = contents(bag)
    odd = tmp_path / 'drive #2 %41?' / 'é'
    shutil.copytree(bag, odd)
    assert contents(odd) == whole and not caplog.text
    file = only_file(odd)
    assert contents(shutil.move(file, file.with_name(f'#{file.name}'))) == whole


def test_metadata_that_is_empty_or_names_other_files_is_done_without(drive, tmp_path, caplog):
    whole = contents(drive)
    for text in ('', (drive / 'metadata.yaml').read_text().replace('drive.mcap', 'old.mcap')):
        bag = shutil.copytree(drive, tmp_path / f'bag{len(text)}')
        (bag / 'metadata.yaml').write_text(text)
        assert contents(bag) == whole
        assert f'{bag}/metadata.yaml does not fit' in caplog.text


def test_the_parts_of_a_split_recording_are_read_in_the_order_of_time(drive, tmp_path):
    middle_ns = made.START_NS + 2 * 10**9
    folder = tmp_path / 'split'
    folder.mkdir()
    for name, keep in (('split_10', lambda bag_ns: bag_ns >= middle_ns),
                       ('split_9', lambda bag_ns: bag_ns < middle_ns)):
        part = copy_bag(drive, tmp_path / name, keep=keep)
        shutil.copy(only_file(part), folder)
    assert [ns for _, ns, _ in contents(folder)] == [ns for _, ns, _ in contents(drive)]


def test_files_of_several_recordings_in_one_folder_are_not_mixed(drive, tmp_path):
    for name in ('monday', 'tuesday'):
        shutil.copy(only_file(drive), tmp_path / f'{name}_0.mcap')
    with pytest.raises(BagError, match=r'several recordings \(monday_0.mcap, tuesday_0.mcap\)'):
        Bag(tmp_path)


@pytest.mark.parametrize('compression', [None, CompressionMode.STORAGE])
def test_of_an_mcap_that_is_cut_off_everything_before_the_cut_is_read(
        drive, tmp_path, compression, caplog):
    bag = copy_bag(drive, tmp_path / 'bag', MCAP, compression)
    file, whole = only_file(bag), contents(bag)
    data = file.read_bytes()
    counts = []
    for share in (0.1, 0.3, 0.5, 0.7, 0.9, 0.999):
        file.write_bytes(data[:int(share * len(data))])
        try:
            found = contents(bag)
        except IndexError:
            found = []
        assert found == whole[:len(found)]
        counts.append(len(found))
    assert counts == sorted(counts) and counts[-1] == MESSAGES
    # A compressed chunk this small is one block, which is whole or not.
    assert compression or 0 < counts[1] < counts[2] < MESSAGES
    assert f'{file} is not finished or damaged' in caplog.text
    assert f'{counts[-1]} messages are read' in caplog.text


def test_the_zeros_that_a_power_failure_leaves_are_the_end(drive, tmp_path):
    file = tmp_path / 'cut.mcap'
    file.write_bytes(only_file(drive).read_bytes()[:20_000] + bytes(10_000))
    assert 0 < len(contents(file)) < MESSAGES


def record(opcode: int, content: bytes) -> bytes:
    return bytes([opcode]) + len(content).to_bytes(8, 'little') + content


def text(value: str) -> bytes:
    return len(value.encode()).to_bytes(4, 'little') + value.encode()


def mcap_of(messages, profile='', schema=('std_msgs/msg/Float64', 'ros2msg', 'float64 data'),
            encoding='cdr') -> bytes:
    """A file without chunks, index or summary: one topic /number, messages of (time, bytes)."""
    name, kind, definition = schema
    magic = b'\x89MCAP0\r\n'
    return magic + record(1, text(profile) + text('made')) + record(
        3, (1).to_bytes(2, 'little') + text(name) + text(kind) + text(definition)) + record(
        4, (1).to_bytes(2, 'little') * 2 + text('/number') + text(encoding) + text('')) + b''.join(
        record(5, (1).to_bytes(2, 'little') + bytes(4) + time_ns.to_bytes(8, 'little') * 2 + data)
        for time_ns, data in messages) + record(15, bytes(4)) + record(2, bytes(20)) + magic


def number(value: float) -> bytes:
    return b'\0\1\0\0' + np.float64(value).tobytes()


def test_an_mcap_without_a_profile_and_out_of_order_comes_in_the_order_of_time(tmp_path, caplog):
    file = tmp_path / 'live.mcap'
    file.write_bytes(mcap_of([(3, number(3.0)), (1, number(1.0)), (2, number(2.0))]))
    assert [msg.data for _, _, msg in read_messages(file)] == [1.0, 2.0, 3.0]
    assert not caplog.text
    with Bag(file) as bag:
        assert [ns for _, ns, _ in bag.read_raw(start_ns=2, stop_ns=3)] == [2]


def test_an_mcap_of_ros_1_messages_gives_those_of_ros_2(tmp_path):
    file = tmp_path / 'converted.mcap'
    file.write_bytes(mcap_of(
        [(1, np.float64(7.0).tobytes())], 'ros1', ('std_msgs/Float64', 'ros1msg', 'float64 data'),
        'ros1'))
    assert [msg.data for _, _, msg in read_messages(file)] == [7.0]


def test_channels_that_are_not_of_ros_are_left_out_by_name(tmp_path, caplog):
    file = tmp_path / 'foreign.mcap'
    file.write_bytes(mcap_of([(1, b'{}')], 'x', ('Thing', 'jsonschema', '{}'), 'json'))
    assert not list(read_messages(file))
    assert '/number (json)' in caplog.text


def test_a_damaged_chunk_is_left_out_where_there_is_no_index(drive, tmp_path, caplog):
    seconds = 40.0  # several chunks
    bag = made.write_bag(tmp_path / 'bag', [
        entry for entry in made.input_messages(seconds) if entry[0] == '/gnss/fix'])
    file = only_file(copy_bag(bag, tmp_path / 'packed', MCAP, CompressionMode.STORAGE))
    data = bytearray(file.read_bytes())
    at = data.index(b'\x28\xb5\x2f\xfd') + 60
    data[at:at + 40] = bytes(40)
    cut = tmp_path / 'cut.mcap'
    cut.write_bytes(bytes(data[:-40]))
    with Bag(cut) as opened:
        assert opened.message_count == 0
    assert 'the chunk at byte' in caplog.text


def leave_journal(bag, mode: str):
    """Put the second half of a sqlite bag into a journal that was not taken in."""
    file = only_file(bag)
    connection = sqlite3.connect(file)
    rows = connection.execute(
        'SELECT topic_id, timestamp, data FROM messages ORDER BY timestamp').fetchall()
    half = len(rows) // 2
    connection.execute('DELETE FROM messages WHERE timestamp >= ?', (rows[half][1],))
    connection.commit()
    connection.execute(f'PRAGMA journal_mode={mode}')
    connection.execute('PRAGMA wal_autocheckpoint=0')
    connection.execute('PRAGMA cache_size=1')
    connection.executemany(
        'INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)', rows[half:])
    if mode == 'WAL':
        connection.commit()
    copy = bag.with_name(f'{bag.name}_{mode}')
    shutil.copytree(bag, copy)
    connection.rollback()
    connection.close()
    return copy, rows[:half] if mode == 'DELETE' else rows


@pytest.mark.parametrize('mode', ['WAL', 'DELETE'])
@pytest.mark.parametrize('metadata', [True, False])
def test_what_sqlite_left_beside_its_database_is_taken_in(
        drive, tmp_path, mode, metadata, caplog):
    bag = copy_bag(drive, tmp_path / 'bag', SQLITE)
    if not metadata:
        (bag / 'metadata.yaml').unlink()
    crashed, rows = leave_journal(bag, mode)
    before = {file.name: file.read_bytes() for file in crashed.iterdir()}
    for path in (crashed, next(crashed.glob('*.db3'))):
        assert [(ns, data) for _, ns, data in contents(path)] == [
            (ns, data) for _, ns, data in rows]
    assert 'beside it belongs to it' in caplog.text
    assert {file.name: file.read_bytes() for file in crashed.iterdir()} == before


def ros1_bag(drive, path):
    """The drive as ROS 1 would have recorded it, and a topic of a type that ROS 2 lacks."""
    theirs, ours = get_typestore(Stores.ROS1_NOETIC), typestore_with_geographic_msgs()
    theirs.register(get_types_from_msg(
        'geometry_msgs/TransformStamped[] transforms', 'tf2_msgs/msg/TFMessage'))
    with Ros1Writer(path) as writer:
        connections = {}
        for topic, bag_ns, msg in read_messages(drive):
            msgtype = msg.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(
                    topic, msgtype, typestore=theirs, latching=int(topic == '/tf_static'))
            writer.write(
                connections[topic], bag_ns, ours.cdr_to_ros1(
                    ours.serialize_cdr(msg, msgtype), msgtype))
        odd = writer.add_connection(
            '/odd', 'nowhere_msgs/msg/Odd', msgdef='float64 data', md5sum='0' * 32)
        writer.write(odd, made.START_NS, bytes(8))
    return path


def test_a_ros_1_bag_gives_the_same_drive(drive, tmp_path, caplog):
    path = ros1_bag(drive, tmp_path / 'old.bag')
    found, expected = read_drive(path, made.FRAME), read_drive(drive, made.FRAME)
    assert len(found.fixes) == 20
    assert [(f.stamp_ns, f.x_m, f.y_m) for f in found.fixes] == [
        (f.stamp_ns, f.x_m, f.y_m) for f in expected.fixes]
    assert found.image_stamps_ns.tolist() == expected.image_stamps_ns.tolist()
    assert len(read_route(path)) == 20
    assert 'left out' in caplog.text and '/odd (nowhere_msgs/msg/Odd)' in caplog.text
    with Bag(path) as bag:
        [static] = [c for c in bag.connections if c.topic == '/tf_static']
        assert static.ext.offered_qos_profiles[0].durability.name == 'TRANSIENT_LOCAL'


@pytest.mark.parametrize('share', [1.0, 0.5])
def test_a_ros_1_bag_whose_recorder_was_killed_is_read_up_to_its_end(
        drive, tmp_path, share, caplog):
    path = ros1_bag(drive, tmp_path / 'old.bag')
    whole, data = contents(path), path.read_bytes()
    active = tmp_path / 'old.bag.active'
    # index_pos is written last.
    at = data.index(b'index_pos=') + 10
    active.write_bytes((data[:at] + bytes(8) + data[at + 8:])[:int(share * len(data))])
    found = contents(active)
    assert found == whole[:len(found)] and len(found) > 0.4 * share * len(whole)
    assert (len(found) == len(whole)) == (share == 1.0)
    assert f'{active} is not finished or damaged' in caplog.text
    assert 'messages are read' in caplog.text


@pytest.mark.parametrize('storage', [MCAP, SQLITE])
def test_a_part_that_is_empty_or_damaged_is_left_out_and_named(drive, tmp_path, storage, caplog):
    folder = tmp_path / 'split'
    folder.mkdir()
    half_ns = made.START_NS + round(SECONDS / 2 * 1e9)
    for number, keep in enumerate((lambda ns: ns < half_ns, lambda ns: ns >= half_ns)):
        part = only_file(copy_bag(drive, tmp_path / f'part{number}', storage, keep=keep))
        shutil.copy(part, folder / f'run_{number}{part.suffix}')
    whole = contents(folder)
    assert len(whole) == MESSAGES
    last = folder / f'run_1{part.suffix}'
    for content, text in ((b'', 'is empty'), (b'SQLite format 3\0' + bytes(3000), '.recover')):
        last.write_bytes(content)
        found = contents(folder)
        assert found == whole[:len(found)] and found[-1][1] < half_ns
        assert 'left out: ' in caplog.text and str(last) in caplog.text and text in caplog.text


def test_a_bag_is_also_named_by_its_metadata_and_an_empty_one_has_no_length(drive, tmp_path):
    assert contents(drive / 'metadata.yaml') == contents(drive)
    with Writer(tmp_path / 'empty', version=9, storage_plugin=MCAP):
        pass
    with Bag(tmp_path / 'empty') as bag:
        assert (bag.message_count, bag.start_ns, bag.end_ns) == (0, 0, 0)


def test_a_file_of_another_kind_is_named_with_what_it_begins_with(tmp_path):
    (tmp_path / 'movie.mcap').write_bytes(b'ftypmp42 and so on')
    with pytest.raises(BagError, match=r"begins with b'ftypmp42'"):
        Bag(tmp_path / 'movie.mcap')
    (tmp_path / 'cut.db3').write_bytes(b'SQLite format 3\0' + bytes(3000))
    with pytest.raises(BagError, match='sqlite3 .*cut.db3 .recover'):
        Bag(tmp_path / 'cut.db3')
