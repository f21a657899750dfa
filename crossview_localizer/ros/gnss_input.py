"""Passes GNSS messages on to the Localizer: fixes, and the optional velocities."""

from collections import deque
from collections.abc import Callable
import time

from geometry_msgs.msg import TwistStamped, TwistWithCovarianceStamped
from sensor_msgs.msg import NavSatFix

from crossview_localizer.config import NodeConfig
from crossview_localizer.datatypes import GnssFix, Outcome
from crossview_localizer.ros import conversions, remedies
from crossview_localizer.ros.diagnostics import Diagnostics
from crossview_localizer.ros.gnss_queue import clock_problem, GnssQueue
from crossview_localizer.ros.localizer_holder import LocalizerHolder, NO_MAP_FRAME
from crossview_localizer.ros.map_origin import FIXES_TO_AGREE, OriginFinder
from crossview_localizer.ros.odometry_timeline import OdometryTimeline
from crossview_localizer.ros.saved_pose import PoseKeeper
from crossview_localizer.ros.sensor_rig import SensorRig, UnknownCalibration
from crossview_localizer.ros.status import Level

# Without a map, and before the filter has started, the origin is moved if fixes agree on a place
# farther from it than this.  A map is seldom larger.
REPLACED_ORIGIN_M = 20e3
# Fixes count as late by the smallest delay among this many last ones.
LATE_FIXES = 10

Velocity = TwistWithCovarianceStamped | TwistStamped


class GnssInput:
    """Gives each message to the Localizer once it is due, and reports the outcome.

    Without a map, fixes that agree also place the map frame.  After the node was killed, the first
    fix starts the filter at the last pose of that node.
    """

    def __init__(
        self, config: NodeConfig, holder: LocalizerHolder, rig: SensorRig,
        timeline: OdometryTimeline, pose_keeper: PoseKeeper, diagnostics: Diagnostics, logger,
        clock_s: Callable[[], float] = time.monotonic,
    ):
        self._holder = holder
        self._rig = rig
        self._timeline = timeline
        self._pose_keeper = pose_keeper
        self._diagnostics = diagnostics
        self._logger = logger
        self._fixes, self._velocities = (
            GnssQueue(timeline, config.odometry_wait_s, clock_s) for _ in range(2))
        self._late_s: deque[float] = deque(maxlen=LATE_FIXES)
        self._clock_s = clock_s
        self._origin = OriginFinder()

    def add_fix(self, msg: NavSatFix, arrived_s: float | None = None) -> None:
        """Queue a fix; without ``arrived_s`` it has arrived now."""
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        arrived_s = self._clock_s() if arrived_s is None else arrived_s
        self._late_s.append(self._timeline.late_s(stamp_ns, arrived_s))
        self._fixes.add(stamp_ns, msg, arrived_s)
        self.use_due()

    def add_velocity(self, msg: Velocity, arrived_s: float | None = None) -> None:
        """Queue a velocity; without ``arrived_s`` it has arrived now."""
        self._velocities.add(conversions.stamp_ns_from_msg(msg.header.stamp), msg, arrived_s)
        self.use_due()

    def use_due(self) -> None:
        """Use the messages that odometry has reached, or all where it is silent."""
        for msg, waited_s in self._fixes.take_due():
            self._use_fix(msg, waited_s)
        for msg, waited_s in self._velocities.take_due():
            self._use_velocity(msg, waited_s)

    def reset(self) -> None:
        """Forget the messages that wait, and the pose of the node before."""
        self._fixes.clear()
        self._velocities.clear()
        self._late_s.clear()
        self._pose_keeper.forget()

    def _use_fix(self, msg: NavSatFix, waited_s: float) -> None:
        monitor = self._diagnostics.gnss
        try:
            if problem := clock_problem('fixes', waited_s):
                raise ValueError(problem)
            self._place_map_frame(msg)
            fix = self._rig.gnss_fix(msg, self._holder.localizer.frame)
        except UnknownCalibration as error:
            monitor.add_refused(str(error), Level.ERROR, remedies.EXTRINSICS)
            return
        except ValueError as error:
            monitor.add_refused(str(error))
            return
        self._start_at_saved_pose(fix)
        update = self._holder.localizer.add_gnss(fix)
        is_covariance_known = conversions.gnss_covariance_from_msg(msg) is not None
        self._diagnostics.add_fix(
            update, fix, is_covariance_known, self._holder.distance_from_map_m(fix.x_m, fix.y_m),
            conversions.position_fault(
                (msg.latitude, msg.longitude), self._holder.localizer.frame, REPLACED_ORIGIN_M),
            min(self._late_s) if len(self._late_s) == LATE_FIXES else 0.0)

    def _use_velocity(self, msg: Velocity, waited_s: float) -> None:
        monitor, localizer = self._diagnostics.velocity, self._holder.localizer
        if localizer is None:
            monitor.add_refused(NO_MAP_FRAME)
            return
        try:
            if problem := clock_problem('velocities', waited_s):
                raise ValueError(problem)
            course = self._rig.gnss_course(msg, localizer.frame)
        except UnknownCalibration as error:
            monitor.add_refused(str(error), remedy=remedies.EXTRINSICS)
            return
        except ValueError as error:
            monitor.add_refused(str(error))
            return
        update = localizer.add_course(course)
        if update.outcome is Outcome.TOO_SLOW:
            monitor.counts['too_slow'] += 1
            return
        monitor.add_update(update)

    def _place_map_frame(self, msg: NavSatFix) -> None:
        """Without a map file, place the frame `map` about fixes that agree.

        The saved origin is used instead if it is near.  Until the filter has started, the frame is
        moved if fixes agree on a place far away.  Raises ValueError while there is no frame.
        """
        localizer = self._holder.localizer
        if self._holder.has_map or localizer is not None and localizer.filter.started:
            return
        latlon_deg = conversions.gnss_latlon_from_msg(msg)
        found_deg = self._origin.add(conversions.stamp_ns_from_msg(msg.header.stamp), latlon_deg)
        origin_deg = self._pose_keeper.choose_origin(found_deg or latlon_deg)
        is_saved = origin_deg != (found_deg or latlon_deg)
        if found_deg is None and not is_saved:
            if localizer is None:
                raise ValueError(NO_MAP_FRAME)
            return
        if localizer is not None and not conversions.far_from_origin_text(
                origin_deg, localizer.frame, REPLACED_ORIGIN_M):
            return
        self._holder.make_without_map(origin_deg)
        source = 'that of the saved pose' if is_saved else f'the first of {FIXES_TO_AGREE} fixes'
        self._logger.info(f'the origin of the map frame is {source}, latitude {origin_deg[0]}, '
                          f'longitude {origin_deg[1]}')

    def _start_at_saved_pose(self, fix: GnssFix) -> None:
        """Before the filter has started, start it where a killed node was, if the fix agrees."""
        localizer = self._holder.localizer
        if localizer.filter.started:
            self._pose_keeper.forget()
        try:
            estimate = self._pose_keeper.take_estimate(
                fix, self._timeline.newest, localizer.frame)
        except ValueError as error:
            self._logger.warning(f'the saved pose is not used: {error}')
            return
        if estimate is not None and localizer.set_pose(estimate).outcome is Outcome.USED:
            reason = 'the node was started again and goes on from its last pose'
            self._diagnostics.node.restart_reason = reason
            self._logger.info(reason)
