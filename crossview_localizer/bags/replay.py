"""Runs the offline Localizer on a bag; if the node drops no image, both give the same poses."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from crossview_localizer.bags.events import Event, read_events, Unusable
from crossview_localizer.bags.topics import Topics
from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import (
    CameraImage,
    GnssCourse,
    GnssFix,
    Localization,
    OdometrySample,
)
from crossview_localizer.localizer import Localizer
from crossview_localizer.trajectory import Track


def localize(
    bag: str | Path, localizer: Localizer, node_config: NodeConfig | None = None,
    topics: Topics | None = None,
) -> Iterator[Localization]:
    """Feed a bag to the Localizer and yield the result of each image, in order.

    Raises BagError or OSError if the bag cannot be read.
    """
    topics = replace(topics or Topics(), truth='')
    for event in read_events(bag, localizer.frame, node_config, localizer.config, topics):
        if isinstance(event, Unusable) and event.topic == topics.image:
            yield localizer.pass_image(event.stamp_ns, event.reason)
        elif (localization := feed(localizer, event)) is not None:
            yield localization


def feed(localizer: Localizer, event: Event) -> Localization | None:
    """Give one event to the Localizer; return its result if it is an image."""
    if isinstance(event, CameraImage):
        return localizer.process_image(event)
    if isinstance(event, GnssFix):
        localizer.add_gnss(event)
    elif isinstance(event, GnssCourse):
        localizer.add_course(event)
    elif isinstance(event, OdometrySample):
        localizer.add_odometry(event)
    return None


def posteriors(localizations: list[Localization]) -> Track:
    """The poses at the images; those before the filter's start are left out."""
    return Track.from_estimates([
        result.posterior for result in localizations if result.posterior is not None])
