"""Passes odometry messages to the Localizer."""

from collections.abc import Callable

from nav_msgs.msg import Odometry

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import OdometrySample, Outcome
from crossview_localizer.ros import conversions
from crossview_localizer.ros.input_monitor import InputMonitor
from crossview_localizer.ros.localizer_holder import LocalizerHolder, NO_MAP_FRAME
from crossview_localizer.ros.odometry_timeline import OdometryTimeline
from crossview_localizer.ros.status import Level


class OdometryInput:
    """Gives each message to the Localizer, and counts how it was used.

    If the stamps have jumped to another time, ``restart(reason)`` is called first.
    """

    def __init__(
        self, config: NodeConfig, holder: LocalizerHolder, timeline: OdometryTimeline,
        monitor: InputMonitor, restart: Callable[[str], None],
    ):
        self._base_frame = config.base_frame
        self._holder = holder
        self._timeline = timeline
        self._monitor = monitor
        self._restart = restart

    def add(self, msg: Odometry) -> OdometrySample | None:
        """Use a message; return its sample if that is the newest, else None."""
        if msg.child_frame_id.lstrip('/') not in ('', self._base_frame):
            self._monitor.add_refused(
                f'child_frame_id is {msg.child_frame_id!r}; expected {self._base_frame!r} '
                '(parameter base_frame)', Level.ERROR)
            return None
        try:
            sample = conversions.odometry_sample_from_msg(msg)
        except ValueError as error:
            self._monitor.add_refused(str(error))
            return None
        localizer = self._holder.localizer
        if localizer is None:
            self._monitor.add_refused(NO_MAP_FRAME)
            return None
        jump = self._timeline.find_jump(sample.stamp_ns)
        if jump is not None and not jump.is_restart:
            self._monitor.counts[jump.kind] += 1
            self._monitor.add_refused(f'stamp {jump.text}')
            return None
        if jump is not None:
            self._restart(f'stamps of the odometry {jump.text}')
        update = localizer.add_odometry(sample)
        self._monitor.add_update(update)
        # After a jump in position the sample is the newest, though its increment is not used.
        is_newest = update.outcome is not Outcome.TOO_OLD and self._timeline.advance(sample)
        return sample if is_newest else None
