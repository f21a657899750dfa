"""Passes odometry messages to the Localizer."""

from collections.abc import Callable

from nav_msgs.msg import Odometry

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import OdometrySample, Outcome
from crossview_localizer.ros import conversions, remedies
from crossview_localizer.ros.input_monitor import InputMonitor
from crossview_localizer.ros.localizer_holder import LocalizerHolder, NO_MAP_FRAME
from crossview_localizer.ros.odometry_reader import OdometryReader, WrongFrame
from crossview_localizer.ros.odometry_timeline import OdometryTimeline
from crossview_localizer.ros.status import Level


class OdometryInput:
    """Gives each message to the Localizer, and counts how it was used.

    If the stamps have jumped to another time, ``restart(reason)`` is called first; it resets this
    object too.
    """

    def __init__(
        self, config: NodeConfig, holder: LocalizerHolder, timeline: OdometryTimeline,
        monitor: InputMonitor, restart: Callable[[str], None],
    ):
        self._reader = OdometryReader(config)
        self._holder = holder
        self._timeline = timeline
        self._monitor = monitor
        self._restart = restart

    def add(self, msg: Odometry, arrived_s: float | None = None) -> OdometrySample | None:
        """Use a message; return its sample if that is the newest, else None.

        Without ``arrived_s`` it has arrived now.
        """
        try:
            self._reader.check_frames(msg)
            localizer = self._holder.localizer
            if localizer is None:
                raise ValueError(NO_MAP_FRAME)
            jump = self._timeline.find_jump(conversions.stamp_ns_from_msg(msg.header.stamp))
            if jump is not None and not jump.is_restart:
                self._monitor.counts[jump.kind] += 1
                raise ValueError(f'stamp {jump.text}')
            if jump is not None:
                self._restart(f'stamps of the odometry {jump.text}')
            sample = self._reader.read(msg)
        except WrongFrame as error:
            self._monitor.add_refused(str(error), Level.ERROR, error.remedy)
            return None
        except ValueError as error:
            self._monitor.add_refused(str(error))
            return None
        update = localizer.add_odometry(sample)
        self._monitor.add_update(update, self._reader.remark, remedies.ODOMETRY_STANDS)
        # After a jump in position the sample is the newest, though its increment is not used.
        is_newest = update.outcome is not Outcome.TOO_OLD and self._timeline.advance(
            sample, arrived_s)
        return sample if is_newest else None

    def reset(self) -> None:
        """Forget the messages before a restart."""
        self._reader.reset()
