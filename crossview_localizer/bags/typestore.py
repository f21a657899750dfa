"""The message types of bags that hold no definitions, and of the bags that we write."""

from rosbags.typesys import get_types_from_msg, get_typestore, Stores
from rosbags.typesys.store import Typestore

GEOGRAPHIC_MESSAGES = {
    'geographic_msgs/msg/GeoPoint': 'float64 latitude\nfloat64 longitude\nfloat64 altitude\n',
    'geographic_msgs/msg/GeoPose': (
        'geographic_msgs/GeoPoint position\ngeometry_msgs/Quaternion orientation\n'
    ),
    'geographic_msgs/msg/GeoPoseStamped': 'std_msgs/Header header\ngeographic_msgs/GeoPose pose\n',
}


def typestore_with_geographic_msgs() -> Typestore:
    """The message types of Jazzy (the same in Kilted) and the geographic ones, which it lacks."""
    typestore = get_typestore(Stores.ROS2_JAZZY)
    for name, definition in GEOGRAPHIC_MESSAGES.items():
        typestore.register(get_types_from_msg(definition, name))
    return typestore
