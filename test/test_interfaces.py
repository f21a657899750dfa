"""The interfaces without a wheel are the official ones, hash for hash."""

import pytest

rclpy = pytest.importorskip('rclpy')

from geographic_msgs import msg as geographic
from tf2_msgs.msg import TFMessage

OFFICIAL = {
    TFMessage: 'e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087',
    geographic.GeoPoint: '602c647cf87bbe95a0231b459b5ac30051875d07c0c740b31ad7a8c4662b971e',
    geographic.GeoPointStamped:
        'ebe562b30db6fadf7b136d11c0c5bcccf393d24fa48874346bed64e58b6dedcf',
    geographic.GeoPose: '8052786d7663e225e38926f7d05716046c931572c25e557d4f70dca55b972626',
    geographic.GeoPoseStamped: 'a8e603c050fa992a74283bb462a96fe9d2b151b7a67b14d77250ed7cb4ed96b7',
    geographic.GeoPoseWithCovariance:
        'e5a071a4c061688377f825b777166e80c3e380aa9e41e1fac0695f54415ee474',
    geographic.GeoPoseWithCovarianceStamped:
        'e8e87d7bc02d092be564be3b6a2ca2302ff6997a82b996e4c6a9052b88e09aac',
    geographic.BoundingBox: '80a85827e595325bd0427f2fa1aa38b70f12d95640d1739db51fe020a407daa6',
}


@pytest.fixture(scope='module')
def node(ros):
    rclpy.init()
    yield rclpy.create_node('hash_reader')
    rclpy.shutdown()


@pytest.mark.parametrize('message', OFFICIAL, ids=lambda message: message.__name__)
def test_the_live_type_hash_is_the_official_one(node, wait_until, message):
    topic = f'/hash_of/{message.__name__}'
    publisher = node.create_publisher(message, topic, 1)
    (info,) = wait_until(lambda: node.get_publishers_info_by_topic(topic))
    assert str(info.topic_type_hash) == f'RIHS01_{OFFICIAL[message]}'
    node.destroy_publisher(publisher)


@pytest.mark.parametrize('message', OFFICIAL, ids=lambda message: message.__name__)
def test_a_recorded_definition_has_the_official_hash(message):
    from rosbags.typesys import get_typestore, Stores

    from crossview_localizer.bags.installed_types import register_installed_type
    package = message.__module__.split('.')[0]
    msgtype = f'{package}/msg/{message.__name__}'
    typestore = get_typestore(Stores.EMPTY)
    register_installed_type(typestore, msgtype)
    assert typestore.hash_rihs01(msgtype) == f'RIHS01_{OFFICIAL[message]}'
