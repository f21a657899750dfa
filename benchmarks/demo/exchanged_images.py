"""Makes a bag whose images come from elsewhere, to show what the right images contribute."""

from pathlib import Path

import numpy as np

from benchmarks.demo.ros_run import IMAGE_TOPIC
from crossview_localizer.trajectory import Track

BLIND_MIN_M = 200.0


def far_images(truth: Track) -> list[np.ndarray]:
    """For each image those taken at least ``BLIND_MIN_M`` away; none if its truth is unknown."""
    positions_m = truth.poses[:, :2]
    return [
        np.flatnonzero(np.linalg.norm(positions_m - position_m, axis=1) >= BLIND_MIN_M)
        for position_m in positions_m]


def exchange_images(
    bag: Path, blind_bag: Path, truth: Track, elsewhere_bag: Path | None, seed: int,
) -> str:
    """Copy a bag, each image's picture exchanged for one taken at least ``BLIND_MIN_M`` away.

    Headers stay, so that stamps and order are the same.  The choice is drawn from ``seed`` among
    the drive's images (``truth`` has a line for each) that are far enough, and if there is none,
    among those of ``elsewhere_bag``, of another town.  Returns a note on what was done.
    """
    from rosbags.rosbag2 import StoragePlugin, Writer

    from crossview_localizer.bags.bag import Bag, read_messages
    from crossview_localizer.bags.typestore import typestore_with_geographic_msgs

    pictures, elsewhere = (
        [msg for _, _, msg in read_messages(path, {IMAGE_TOPIC})] if path else []
        for path in (bag, elsewhere_bag))
    candidates = far_images(truth)
    generator = np.random.default_rng(seed)
    typestore = typestore_with_geographic_msgs()
    index = from_elsewhere = 0
    with Bag(bag) as opened, Writer(
        blind_bag, version=9, storage_plugin=StoragePlugin.MCAP,
    ) as writer:
        copies = {
            connection.id: writer.add_connection(
                connection.topic, connection.msgtype, typestore=typestore,
                offered_qos_profiles=connection.ext.offered_qos_profiles)
            for connection in opened.connections}
        for connection, bag_ns, data in opened.read_raw():
            if connection.topic == IMAGE_TOPIC:
                if len(candidates[index]):
                    chosen = pictures[generator.choice(candidates[index])]
                else:
                    chosen = elsewhere[generator.integers(len(elsewhere))]
                    from_elsewhere += 1
                message = pictures[index]
                blind = type(message)(
                    header=message.header, format=chosen.format, data=chosen.data)
                data = typestore.serialize_cdr(blind, connection.msgtype)
                index += 1
            writer.write(copies[connection.id], bag_ns, data)
    note = (f'image_blind: each of {index} images was replaced by one taken at least '
            f'{BLIND_MIN_M:.0f} m away')
    if from_elsewhere:
        note += f'; for {from_elsewhere} the drive has none, they are of another town'
    return note
