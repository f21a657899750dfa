"""The ROS node around the Localizer: subscribe, convert, hand over, publish, report.

Two threads run.  The executor's thread runs every callback, publishes everything and keeps every
count.  The image thread decodes and matches one image at a time, so that odometry goes on
meanwhile.  The ImageWorker passes images to it and results back, under a lock. The threads share
two more objects: the Localizer, which has its own lock, and the SensorRig, whose transforms and
camera_info the executor's thread replaces as a whole and the image thread reads.
"""

import argparse
from collections.abc import Callable
import sys
import time
import traceback

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from crossview_localizer.datatypes import FilterUpdate, Outcome, PoseEstimate
from crossview_localizer.localizer import Localizer
from crossview_localizer.ros import conversions
from crossview_localizer.ros.clock_jump import call_on_backward_jump
from crossview_localizer.ros.console import ConsoleLog
from crossview_localizer.ros.diagnostics import Diagnostics, NodeMonitor
from crossview_localizer.ros.gnss_input import GnssInput, Velocity
from crossview_localizer.ros.image_processor import ImageProcessor, ReceivedImage
from crossview_localizer.ros.image_results import ImageResults
from crossview_localizer.ros.image_worker import ImageWorker
from crossview_localizer.ros.initial_pose_input import InitialPoseInput
from crossview_localizer.ros.inputs import image_topic, LocalizerInputs, rectification_remark
from crossview_localizer.ros.localizer_holder import LocalizerHolder, NO_MAP_FRAME
from crossview_localizer.ros.message_info import arrived_s, publication
from crossview_localizer.ros.odometry_input import OdometryInput
from crossview_localizer.ros.odometry_timeline import OdometryTimeline
from crossview_localizer.ros.outputs import LocalizerOutputs
from crossview_localizer.ros.parameters import NodeParameters
from crossview_localizer.ros.process import run_node
from crossview_localizer.ros.saved_pose import PoseKeeper, saved_pose_path
from crossview_localizer.ros.sensor_rig import SensorRig
from crossview_localizer.ros.status import Level

# Python switches threads this often. With its default of 5 ms each message would wait several
# times for the image thread.
SWITCH_INTERVAL_S = 0.0005
DIAGNOSTICS_PERIOD_S = 1.0
# The lines of /diagnostics that are also logged; the other parts log by themselves.
CONSOLE_LINES = ('camera', 'gnss', 'gnss_velocity', 'odometry', 'matcher', 'filter')


class LocalizerNode(LifecycleNode):
    """Lifecycle node ``crossview_localizer``.

    Its parameters are those of NodeConfig and LocalizerConfig, read when it is configured.
    Raises ValueError from the constructor for a parameter that is unknown or out of range.
    """

    def __init__(self, **kwargs):
        # There is a worker while the node is active. rclpy also destroys a node whose
        # constructor has failed.
        self._worker: ImageWorker | None = None
        super().__init__(
            'crossview_localizer', automatically_declare_parameters_from_overrides=True, **kwargs)
        self._node_parameters = NodeParameters(self)
        self._node_monitor = NodeMonitor()
        self._is_configured = False
        self._to_destroy: list[Callable[[], None]] = []  # undoes the configuration
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A steady clock: with use_sim_time and no /clock, ROS time stands still.
        self.create_timer(
            DIAGNOSTICS_PERIOD_S, self._publish_diagnostics,
            clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._results_are_there = self.create_guard_condition(self._take_results)

    def autostart(self) -> None:
        """Configure and activate, if the parameter autostart is true."""
        if not self.get_parameter('autostart').value:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- lifecycle

    def on_configure(self, state) -> TransitionCallbackReturn:
        try:
            self._configure()
        except Exception as error:  # rclpy would swallow it
            self._release()
            self.report_failure(error)
            return TransitionCallbackReturn.FAILURE
        self._node_monitor.forget_failure()
        self._is_configured = self._node_parameters.locked = True
        return super().on_configure(state)

    def on_activate(self, state) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        try:
            self._pose_keeper.load()
        except (ValueError, OSError) as error:
            self.get_logger().warning(f'there is no pose to continue from: {error}')
        self._worker = ImageWorker(
            self._processor.process, self._results_are_there.trigger,
            self._node_config.odometry_wait_s)
        self.diagnostics.start(time.monotonic())
        self._console = ConsoleLog(
            CONSOLE_LINES, self.get_logger().warning, self.get_logger().info)
        self.get_logger().info(f'active: {self._describe()}')
        if remark := rectification_remark(
                image_topic(self, self._node_config), self._node_config.image_is_rectified):
            self.get_logger().warning(remark)
        return result

    def _describe(self) -> str:
        """The map and the network, and the topics that are listened to."""
        values = self.diagnostics.map_status.values
        network = (f'map {values["map_path"]}, weights {values["weights"]}, on {values["device"]}'
                   if self.diagnostics.map_status.level is not Level.ERROR and values
                   else 'no map, the prior alone is published')
        topics = [image_topic(self, self._node_config), *(
            self.resolve_topic_name(name) for name in ('gnss', 'odometry'))]
        return f'{network}; listening to {", ".join(topics)}'

    def on_deactivate(self, state) -> TransitionCallbackReturn:
        self._stop_worker()
        return super().on_deactivate(state)

    def on_cleanup(self, state) -> TransitionCallbackReturn:
        result = super().on_cleanup(state)
        self._release()
        return result

    def on_shutdown(self, state) -> TransitionCallbackReturn:
        self._stop_worker()
        result = super().on_shutdown(state)
        self._release()
        return result

    def on_error(self, state) -> TransitionCallbackReturn:
        return self.on_shutdown(state)

    def destroy_node(self) -> None:
        self._stop_worker()
        super().destroy_node()

    def _configure(self) -> None:
        """Create everything that exists until the node is cleaned up."""
        self._node_config, self._config = self._node_parameters.configs()
        config = self._node_config
        self.diagnostics = Diagnostics(
            config, self._node_monitor, image_topic(self, config), self._find_publishers)
        self.rig = SensorRig(config, self._config.camera)
        self.timeline = OdometryTimeline(self._config.filter)
        self._holder = LocalizerHolder(config, self._config, self.get_logger().info)
        self._processor = ImageProcessor(self.rig, self._holder)
        self._pose_keeper = PoseKeeper(
            saved_pose_path(config.last_pose_path, self.get_fully_qualified_name()),
            self._config.filter, config.last_pose_max_age_s)
        self._gnss = GnssInput(
            config, self._holder, self.rig, self.timeline, self._pose_keeper, self.diagnostics,
            self.get_logger())
        self._odometry = OdometryInput(
            config, self._holder, self.timeline, self.diagnostics.odometry, self._restart)
        self._initial_pose = InitialPoseInput(
            config, self._holder, self.timeline, self._config.filter.buffer_s)
        self._estimate: PoseEstimate | None = None  # at the newest odometry
        self.diagnostics.map_status = status = self._holder.load_map()
        if status.level is not Level.OK:
            self.get_logger().warning(f'map: {status.text}')
        self._outputs = LocalizerOutputs(self, config)
        self._to_destroy.append(self._outputs.destroy)
        self._results = ImageResults(
            self._holder, self._outputs, self.diagnostics, self.report_failure)
        self._inputs = LocalizerInputs(self, config, {
            '/tf_static': self._on_static_transforms, 'camera_info': self._on_camera_info,
            'gnss': self._on_gnss, 'gnss_velocity': self._on_gnss_velocity,
            'odometry': self._on_odometry, 'initialpose': self._on_initial_pose,
            'image': self._on_image}, self._on_incompatible_qos)
        self._to_destroy.append(self._inputs.destroy)
        service = self.create_service(Trigger, '~/reset', self._on_reset)
        self._to_destroy.append(lambda: self.destroy_service(service))
        handle = call_on_backward_jump(self, self._on_clock_jump)
        self._to_destroy.append(handle.unregister)

    @property
    def localizer(self) -> Localizer | None:
        """None until the map, or without a map the first fix, places the map frame."""
        return self._holder.localizer

    def _stop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._take_results()
            self._worker = None

    def _release(self) -> None:
        """Undo the configuration."""
        for destroy in self._to_destroy:
            destroy()
        self._to_destroy = []
        # A map may be large.
        self._holder = self._processor = self._gnss = self._odometry = None
        self._initial_pose = self._results = None
        self._is_configured = self._node_parameters.locked = False
        self._node_monitor = NodeMonitor()

    # --- inputs

    def _on_static_transforms(self, msg: TFMessage) -> None:
        try:
            self.rig.static_transforms.add(msg)
        except ValueError as error:
            self._refuse('/tf_static', str(error))
            return
        self._node_monitor.add_accepted('/tf_static')

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self.rig.camera_info = msg
        self._node_monitor.add_accepted('camera_info')

    def _on_gnss(self, msg: NavSatFix, info: dict) -> None:
        if self._worker is not None:
            self.diagnostics.gnss.add_message(time.monotonic(), *publication(info))
            self._gnss.add_fix(msg, arrived_s(info))

    def _on_gnss_velocity(self, msg: Velocity, info: dict) -> None:
        if self._worker is not None:
            self.diagnostics.velocity.add_message(time.monotonic(), *publication(info))
            self._gnss.add_velocity(msg, arrived_s(info))

    def _on_odometry(self, msg: Odometry, info: dict) -> None:
        if self._worker is None:
            return
        self.diagnostics.odometry.add_message(time.monotonic(), *publication(info))
        sample = self._odometry.add(msg, arrived_s(info))
        if sample is None:
            return
        estimate = self.localizer.estimate_at(sample.stamp_ns)
        if estimate is not None:
            self._estimate = estimate
            self._outputs.publish_odometry(estimate, sample, msg)
        self._gnss.use_due()
        self._worker.add_odometry(sample)

    def _on_initial_pose(self, msg: PoseWithCovarianceStamped) -> None:
        if self._worker is None:
            return
        try:
            used = self._initial_pose.add(msg)
        except ValueError as error:
            self._refuse('initialpose', str(error))
            return
        self.get_logger().info(f'initialpose is used: {used}')
        self._node_monitor.add_accepted('initialpose')

    def _refuse(self, topic: str, reason: str) -> None:
        self.get_logger().error(f'{topic}: {reason}')
        self._node_monitor.add_refused(topic, reason)

    def _on_image(self, msg: Image | CompressedImage, info: dict) -> None:
        entered_s = time.perf_counter()
        if self._worker is None:
            return
        self.diagnostics.camera.add_message(time.monotonic(), *publication(info))
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        problem = self.timeline.find_image_problem(stamp_ns)
        if problem is None and self.localizer is None:
            problem = FilterUpdate(Outcome.NOT_STARTED, NO_MAP_FRAME)
        if problem is not None:
            self._results.publish_refused(stamp_ns, problem)
            return
        self._worker.offer(stamp_ns, ReceivedImage(msg, entered_s),
                           is_patient=self.timeline.is_behind(arrived_s(info)))

    def _on_incompatible_qos(self, topic: str, policy: str) -> None:
        text = self.diagnostics.add_qos_problem(topic, policy)
        self.get_logger().warning(text)
        for name in ('/tf_static', 'camera_info', 'initialpose'):  # without a line of their own
            if self.resolve_topic_name(name) == topic:
                self._node_monitor.add_refused(name, text)

    def _on_reset(self, request, response):
        self._restart('asked for by the service reset')
        response.success = True
        response.message = 'restarted; ' + Outcome.NOT_STARTED.value
        return response

    def _on_clock_jump(self, back_s: float) -> None:
        self._restart(f'the clock jumped back by {back_s:.1f} s')

    def _restart(self, reason: str) -> None:
        """Forget the pose, all measurements, and the images in process."""
        self.get_logger().warning(f'restart: {reason}')
        self._node_monitor.add_restart(reason)
        self.diagnostics.pose.reset()
        self.timeline.reset()
        self._gnss.reset()
        self._odometry.reset()
        self._estimate = None
        if self._worker is not None:
            self._worker.reset()
        if self.localizer is not None:
            self.localizer.reset()

    # --- results of the image thread

    def _take_results(self) -> None:
        """Publish and count the results of the image thread."""
        if self._worker is None:
            return
        for received, result in self._worker.take_finished():
            self._results.publish(received, result)

    # --- diagnostics, once a second

    def _publish_diagnostics(self) -> None:
        now_s, stamp_ns = time.monotonic(), self.get_clock().now().nanoseconds
        if self._is_configured and self.rig.camera_info is None:
            self._inputs.take_latched_camera_info()
        if self._worker is None:
            statuses = [self._node_monitor.inactive_status(self._is_configured)]
        else:
            self._gnss.use_due()
            self._save_pose()
            waits_for_clock = self.get_parameter('use_sim_time').value and stamp_ns == 0
            statuses = self.diagnostics.statuses(
                now_s, self._present_covariance(now_s), waits_for_clock)
            self._console.report(statuses)
        self._diagnostics_publisher.publish(conversions.diagnostics_msg_from_statuses(
            statuses, stamp_ns, self.get_name()))

    def _present_covariance(self, now_s: float) -> np.ndarray | None:
        """The covariance (3, 3) of the pose now; it grows if odometry has stopped."""
        if self._estimate is None:
            return None
        silent_s = self.diagnostics.odometry.age_s(now_s) or 0.0
        present = self.localizer.estimate_at(self._estimate.stamp_ns + round(silent_s * 1e9))
        return (present or self._estimate).covariance

    def _save_pose(self) -> None:
        estimate, sample, keeper = self._estimate, self.timeline.newest, self._pose_keeper
        if estimate is None or sample is None or estimate.stamp_ns != sample.stamp_ns:
            return
        if keeper.save(estimate, sample, self.localizer.frame):
            self.get_logger().warning(f'the last pose is {keeper.problem}')
        self._node_monitor.saved_pose_problem = keeper.problem

    def _find_publishers(self, topic: str) -> tuple[str, int]:
        name = self.resolve_topic_name(topic)
        return name, self.count_publishers(name)

    def report_failure(self, error: Exception) -> None:
        """Log an error inside the node and show it in /diagnostics."""
        self._node_monitor.add_failure(error)
        self.get_logger().error(
            'internal error: ' + ''.join(traceback.format_exception(error)).strip(),
            throttle_duration_sec=1.0)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; both may be repeated while it ends."""
    def started_node() -> LocalizerNode:
        node = LocalizerNode()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        node.autostart()
        return node

    return run_node(argparse.ArgumentParser(
        prog='localizer_node',
        description='Localize a vehicle by matching its camera with satellite embeddings.',
        epilog='example: ros2 run crossview_localizer localizer_node --ros-args '
        '--params-file robotcar.yaml -p map_path:=oxford.map -r image:=/camera/image'),
        # A fault in one callback must not end the localization.
        args, started_node, LocalizerNode.report_failure)


if __name__ == '__main__':
    sys.exit(main())
