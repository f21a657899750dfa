"""Message types that are installed in the ROS 2 environment."""

import importlib
from pathlib import Path

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore


def message_class(msgtype: str) -> type:
    """The installed class of a type such as ``sensor_msgs/msg/Image``.

    Raises ImportError or AttributeError if the package or the type is not installed.
    """
    package, kind, name = msgtype.split('/')
    return getattr(importlib.import_module(f'{package}.{kind}'), name)


def register_installed_type(typestore: Typestore, msgtype: str) -> None:
    """Add a type and the types in its fields, as installed (share/PACKAGE/msg/NAME.msg).

    Raises ValueError if the definition of the type is not installed.
    """
    if msgtype in typestore.fielddefs:
        return
    package, kind, name = msgtype.split('/')
    try:
        path = Path(get_package_share_directory(package)) / kind / f'{name}.msg'
        text = path.read_text()
    except (PackageNotFoundError, OSError) as error:
        raise ValueError(f'no definition of {msgtype} is installed: {error}') from error
    types = get_types_from_msg(text, msgtype)
    for _, fields in types.values():
        for _, (_, descriptor) in fields:
            for part in nested_types(descriptor):
                register_installed_type(typestore, part)
    typestore.register(types)


def nested_types(descriptor) -> list[str]:
    """The message types in the parse tree of a field (nested tuples)."""
    if isinstance(descriptor, str):
        return [descriptor] if descriptor.count('/') == 2 else []
    if isinstance(descriptor, tuple):
        return [name for part in descriptor for name in nested_types(part)]
    return []
