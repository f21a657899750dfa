"""Recordings are opened in one place, which names what is wrong with them."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='no ROS 2')

import recorded_drive as made
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from std_msgs.msg import Float64

from crossview_localizer.bags.bag import (
    Bag,
    BagError,
    header_stamp_ns,
    read_messages,
    read_messages_stamped,
)


@pytest.fixture(scope='module')
def bag(ros, tmp_path_factory):
    return made.write_bag(tmp_path_factory.mktemp('bag') / 'drive', made.input_messages(4.0))


def test_messages_of_the_named_topics_come_in_the_order_of_the_bag(bag):
    found = list(read_messages(bag, {'/camera/camera_info', '/gnss/fix'}))
    assert {topic for topic, _, _ in found} == {'/camera/camera_info', '/gnss/fix'}
    times_ns = [bag_ns for _, bag_ns, _ in found]
    assert times_ns == sorted(times_ns) and times_ns[0] == made.START_NS
    assert len(found) == 16 + 20


def test_raw_messages_can_be_limited_in_time(bag):
    second_ns = made.START_NS + 1_000_000_000
    with Bag(bag) as opened:
        found = [bag_ns for _, bag_ns, _ in opened.read_raw(
            {'/gnss/fix'}, second_ns, second_ns + 500_000_000)]
    assert (np.array(found) - second_ns).tolist() == [0, 200_000_000, 400_000_000]


def test_single_messages_are_found_by_their_stamp(bag):
    stamps_ns = [made.START_NS, made.START_NS + 2_000_000_000, 7]
    found = read_messages_stamped(bag, '/camera/image/compressed', stamps_ns)
    assert sorted(found) == stamps_ns[:2]
    assert found[stamps_ns[1]].format.startswith('rgb8')


def test_a_type_that_is_not_known_is_no_obstacle_to_the_others(ros, tmp_path, caplog):
    typestore = get_typestore(Stores.ROS2_JAZZY)
    with Writer(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        # A part of it is not defined: this matters only to who decodes it.
        thing = writer.add_connection(
            '/thing', 'nowhere_msgs/msg/Thing', msgdef='nowhere_msgs/Part part', rihs01='RIHS01_0')
        number = writer.add_connection('/number', 'std_msgs/msg/Float64', typestore=typestore)
        writer.write(thing, 1, b'\0\1\0\0\7')
        writer.write(number, 2, typestore.serialize_cdr(
            typestore.types['std_msgs/msg/Float64'](data=4.0), 'std_msgs/msg/Float64'))
    assert [msg.data for _, _, msg in read_messages(tmp_path / 'bag', {'/number'})] == [4.0]
    assert len(list(read_messages(tmp_path / 'bag'))) == 1
    assert '1 message on /thing cannot be used' in caplog.text


def test_what_is_no_bag_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing_here'):
        Bag(tmp_path / 'nothing_here')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BagError, match='empty cannot be read as a bag'):
        Bag(tmp_path / 'empty')
    (tmp_path / 'empty/metadata.yaml').write_text('none of ours')
    with pytest.raises(BagError, match='expected a whole rosbag2 recording'):
        Bag(tmp_path / 'empty')


def test_a_message_that_is_too_short_for_a_header_is_named(ros, tmp_path):
    bag = made.write_bag(tmp_path / 'bag', [('/number', 0.0, Float64(data=1.0))])
    with Bag(bag) as opened:
        [(connection, _, data)] = opened.read_raw()
        assert opened.decode(connection, data).data == 1.0
        with pytest.raises(BagError, match='/number is damaged'):
            opened.decode(connection, data[:6])
    with pytest.raises(BagError, match='a message of 6 bytes'):
        header_stamp_ns(data[:6])
