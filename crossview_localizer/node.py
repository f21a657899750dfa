"""The ROS shell around the Localizer: subscribe, convert, hand over, publish, report.

One thread runs every callback (single-threaded executor); a second one processes images, so that
odometry goes on while the network runs.  Only what /diagnostics counts is shared between them;
the Localizer has its own lock.
"""

import argparse
from collections import Counter, deque
from dataclasses import dataclass, replace
import os
from pathlib import Path
import sys
import time
import traceback

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
import cv2
from diagnostic_msgs.msg import DiagnosticArray
from geographic_msgs.msg import GeoPoseWithCovarianceStamped
from geometry_msgs.msg import (
    PoseWithCovarianceStamped,
    TwistStamped,
    TwistWithCovarianceStamped,
)
from nav_msgs.msg import OccupancyGrid, Odometry
import numpy as np
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, NavSatFix
from std_msgs.msg import Float64
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from crossview_localizer.datatypes import (
    CameraImage,
    FilterUpdate,
    GnssFix,
    Heatmap,
    Localization,
    OdometrySample,
    Outcome,
    PoseEstimate,
)
from crossview_localizer.geometry import LocalFrame, Pose2D
from crossview_localizer.localizer import load_localizer, Localizer
from crossview_localizer.ros import conversions
from crossview_localizer.ros.diagnostics import InputMonitor, Latency, Level, pose_status, Status
from crossview_localizer.ros.image_worker import ImageWorker
from crossview_localizer.ros.parameters import NodeParameters
from crossview_localizer.ros.process import qos_profile, run_node
from crossview_localizer.ros.saved_pose import LastPose, load_last_pose
from crossview_localizer.ros.sensor_rig import BlindImage, SensorRig, UnknownCalibration

# /clock may wobble by less than this without having jumped back.
CLOCK_JUMP_S = 0.1
# A fix or velocity that waited longer than this for odometry of its time is remarked on.
FIX_WAIT_WARN_S = 2.0
# Python gives way to the other thread this often: at its 5 ms each message waits several times
# for the network's thread.
SWITCH_INTERVAL_S = 0.0005
# GNSS that is refused for this long, with no match used either, puts the pose itself in doubt.
CONTRADICTED_S = 3.0
# So many odometry samples in a row from another time (before the filter's buffer, or far ahead)
# are a restart, not stragglers.
STRANGE_ODOMETRY_RESTART = 5
# Outcomes of so many last images tell the share that was matched.
OUTCOME_WINDOW = 50
# Without a map the origin of a kept pose is taken over from this near, in degrees.
KEPT_ORIGIN_DEG = 0.5
# A kept pose is not used where the first fix is farther from it than this.
KEPT_POSE_SIGMAS = 4.0
LARGE_IMAGE_HINT = (
    'large images are lost over DDS defaults: set FASTDDS_DEFAULT_PROFILES_FILE (Jazzy: '
    'FASTRTPS_DEFAULT_PROFILES_FILE) to config/fastdds_large_images.xml for publisher and node, '
    'or use image_transport compressed')


# What to do about each part of /diagnostics that is not OK, where the text itself does not say.
CAMERA_REMEDY = (
    'check the camera driver, camera_info, image_transport and image_is_rectified')
BLIND_REMEDY = 'uncover or clean the lens, check the exposure, restart a frozen camera driver'
EXTRINSICS_REMEDY = (
    'publish the missing frame on /tf_static, or set camera_xyz_rpy and antenna_xyz_m')
GNSS_REMEDY = (
    "check antenna, sky view and the receiver's clock; many gated fixes: antenna_xyz_m or "
    'filter.gnss_bias_sigma_m are wrong')
VELOCITY_REMEDY = (
    'it must be to the east and north, not ahead and left, with the stamps of the receiver; the '
    'node does without it: remap gnss_velocity to leave it out')
ODOMETRY_REMEDY = 'check the odometry source, its stamps and base_frame'
TWO_PUBLISHERS_REMEDY = 'stop all publishers of this topic but one, or remap them'
CONTRADICTED_REMEDY = (
    "check the odometry's scale, units and sense of turning (positive is counter-clockwise), then "
    'the GNSS')
CLOCK_REMEDY = 'start what publishes /clock, or set use_sim_time to false'
MAP_REMEDY = 'give map_path and weights_path of one build_map run; then clean up and configure'
GPU_REMEDY = 'free the GPU, then restart the node; or accept the CPU with device: cpu'
MATCHER_REMEDIES = {
    Outcome.NOT_STARTED: 'drive with GNSS and odometry, or publish initialpose',
    Outcome.TOO_OLD: 'synchronize the clocks of camera and odometry; raise filter.buffer_s',
    Outcome.INVALID: 'synchronize the clocks of camera and odometry',
    Outcome.GATED: 'where it stays: check camera.height_m, camera extrinsics and the map',
    Outcome.OUTSIDE_MAP: 'drive back into the corridor, or build a wider map',
    Outcome.PRIOR_TOO_WIDE: 'wait for GNSS, publish initialpose, or raise match.window_max_m',
    Outcome.AMBIGUOUS: 'none where the road looks alike; else check camera.height_m and the map',
    Outcome.NO_MATCHER: MAP_REMEDY,
    Outcome.UNUSABLE: 'see camera',
    Outcome.DISTRUSTED: 'the pose goes on without matches: check camera, extrinsics, map, pose',
}


Velocity = TwistWithCovarianceStamped | TwistStamped


@dataclass(frozen=True)
class ReceivedImage:
    """An image message and when its callback was entered (seconds of the latency clock)."""

    msg: Image | CompressedImage
    entered_s: float


class LocalizerNode(LifecycleNode):
    """Lifecycle node ``crossview_localizer``.

    Its parameters are those of NodeConfig and LocalizerConfig, read when it is configured.
    Raises ValueError from the constructor for a parameter that is unknown or out of range.
    """

    def __init__(self, **kwargs):
        self._configured = False
        self._active = False
        self._clear_state()
        super().__init__(
            'crossview_localizer', automatically_declare_parameters_from_overrides=True, **kwargs)
        self._node_parameters = NodeParameters(self)
        self._diagnostics_publisher = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A steady clock: with use_sim_time and no /clock, ROS time stands still.
        self._diagnostics_timer = self.create_timer(
            1.0, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def autostart(self) -> None:
        """Configure and activate, where the parameter asks for it."""
        if not self.get_parameter('autostart').value:
            return
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    # --- lifecycle

    def on_configure(self, state) -> TransitionCallbackReturn:
        try:
            self._node_config, self._config = self._node_parameters.configs()
            self._rig = SensorRig(self._node_config, self._config.camera)
            self._load_localizer()
            self._create_outputs()
            self._create_inputs()
        except Exception as error:  # rclpy would swallow it
            self._release()
            self.report_failure(error)
            return TransitionCallbackReturn.FAILURE
        self._failure = ''
        self._configured = self._node_parameters.locked = True
        return super().on_configure(state)

    def on_activate(self, state) -> TransitionCallbackReturn:
        result = super().on_activate(state)
        self._load_last_pose()
        self._worker = ImageWorker(
            self._process_guarded, self._node_config.odometry_wait_s, self._node_config.settle_s)
        for monitor in self._monitors:
            monitor.start(time.monotonic())
        self._active = True
        return result

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

    def _stop_worker(self) -> None:
        if self._active:
            self._active = False
            self._worker.stop()
            self._dropped_before += self._worker.dropped

    def _clear_state(self) -> None:
        """All that lives between configure and cleanup."""
        self._localizer: Localizer | None = None
        self._map_status = Status('map', Level.WARN, 'not configured')
        self._device = ''
        self._inputs = []
        self._outputs = []
        self._tf_publisher = None
        self._reset_service = None
        self._jump_handle = None
        self._camera_monitor = InputMonitor('camera', CAMERA_REMEDY)
        self._gnss_monitor = InputMonitor('gnss', GNSS_REMEDY)
        self._odometry_monitor = InputMonitor('odometry', ODOMETRY_REMEDY)
        self._velocity_monitor = InputMonitor('gnss_velocity', VELOCITY_REMEDY, Level.WARN)
        self._monitors = (
            self._camera_monitor, self._gnss_monitor, self._odometry_monitor,
            self._velocity_monitor)
        self._dropped_before = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._latest_outcomes: deque[Outcome] = deque(maxlen=OUTCOME_WINDOW)
        self._latency = Latency()
        self._localization: Localization | None = None
        self._localized_s = 0.0
        self._matched_s: float | None = None
        self._estimate: PoseEstimate | None = None
        self._last_pose: LastPose | None = None
        self._last_pose_path: Path | None = None
        self._last_pose_problem = ''
        self._failure = ''
        self._failures = 0
        self._refused = ''
        self._works_again = False
        self._restart_reason = ''
        self._restart_is_news = False
        self._rig: SensorRig | None = None
        self._cleared_heatmap: Heatmap | None = None
        self._last_sample: OdometrySample | None = None
        self._sampled_s = 0.0
        self._gnss_refused_s: float | None = None  # since when
        self._waiting_fixes: deque[tuple[NavSatFix, float]] = deque()
        self._waiting_velocities: deque[tuple[Velocity, float]] = deque()
        self._strange_odometry = 0
        self._image_qos_problem = ''

    def _release(self) -> None:
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        for publisher in self._outputs:
            self.destroy_lifecycle_publisher(publisher)
        if self._tf_publisher is not None:
            self.destroy_publisher(self._tf_publisher)
        if self._reset_service is not None:
            self.destroy_service(self._reset_service)
        if self._jump_handle is not None:
            self._jump_handle.unregister()
        self._configured = self._node_parameters.locked = False
        self._clear_state()

    def _load_localizer(self) -> None:
        """Map and network; where they cannot be had the prior alone is published, and why."""
        config = self._node_config
        if not config.map_path:
            self._map_status = Status(
                'map', Level.WARN, 'no map_path is set: the prior alone is published',
                remedy=MAP_REMEDY)
            return
        # torch loads only where a network runs.
        from crossview_localizer.networks.checkpoint import prepare_torch
        cv2.setNumThreads(config.torch_threads)
        self._device, warning = prepare_torch(config.device, config.torch_threads)
        if warning:
            self.get_logger().warning(warning)
        values = {'map_path': config.map_path, 'device': self._device}
        try:
            weights = values['weights'] = config.weights_path or shipped_weights()
            self._localizer = load_localizer(
                config.map_path, weights, self._config, self._device,
                onnx_path=config.onnx_path, threads=config.torch_threads,
                precision=config.precision)
        except Exception as error:  # a broken file, or torch, must not take the prior with it
            problem = str(error) or type(error).__name__
            text = f'{problem}; the prior alone is published'
            self.get_logger().error(text)
            self._map_status = Status('map', Level.ERROR, text, values, MAP_REMEDY)
            return
        values['tiles'] = len(self._localizer.embedding_map.descriptors)
        self._map_status = Status(
            'map', Level.WARN if warning else Level.OK, warning or 'loaded', values,
            GPU_REMEDY if warning else '')

    def _create_outputs(self) -> None:
        def output(message_type, topic):
            publisher = self.create_lifecycle_publisher(
                message_type, f'~/{topic}', 10, qos_overriding_options=_overridable())
            self._outputs.append(publisher)
            return publisher

        self._pose_publisher = output(PoseWithCovarianceStamped, 'pose')
        self._geopose_publisher = output(GeoPoseWithCovarianceStamped, 'geopose')
        self._odometry_publisher = output(Odometry, 'odometry')
        self._match_publisher = output(PoseWithCovarianceStamped, 'match')
        self._prior_publisher = output(PoseWithCovarianceStamped, 'prior')
        self._heatmap_publisher = output(OccupancyGrid, 'heatmap')
        self._latency_publisher = output(Float64, 'latency')
        self._tf_publisher = self.create_publisher(
            TFMessage, '/tf', 100, qos_overriding_options=_overridable())
        self._reset_service = self.create_service(Trigger, '~/reset', self._on_reset)

    def _create_inputs(self) -> None:
        """Subscribe; the executor serves what is ready in this order, GNSS before odometry."""
        config = self._node_config
        # Ten seconds of odometry at 100 Hz: a machine that is busy for that long loses none.
        sensor_qos = qos_profile(config.sensor_reliability, 1000)
        image_qos = qos_profile(config.image_reliability, 5)
        static_qos = QoSProfile(
            depth=100, reliability=ReliabilityPolicy.RELIABLE,
            durability=DurabilityPolicy.TRANSIENT_LOCAL)

        def subscribe(message_type, topic, callback, qos, events=None):
            self._inputs.append(self.create_subscription(
                message_type, topic, callback, qos, event_callbacks=events,
                qos_overriding_options=_overridable()))

        subscribe(TFMessage, '/tf_static', self._on_static_transforms, static_qos)
        subscribe(CameraInfo, 'camera_info', self._on_camera_info,
                  qos_profile(config.sensor_reliability, 10))
        subscribe(NavSatFix, 'gnss', self._on_gnss, sensor_qos)
        subscribe(
            TwistStamped if config.gnss_velocity_type == 'TwistStamped'
            else TwistWithCovarianceStamped,
            'gnss_velocity', self._on_gnss_velocity, sensor_qos)
        subscribe(Odometry, 'odometry', self._on_odometry, sensor_qos)
        subscribe(PoseWithCovarianceStamped, 'initialpose', self._on_initial_pose, 10)
        # As image_transport names it: below the name that `image` is remapped to.
        self._image_topic = self.resolve_topic_name('image')
        if config.image_transport == 'compressed':
            self._image_topic += '/compressed'
        subscribe(
            CompressedImage if config.image_transport == 'compressed' else Image,
            self._image_topic, self._on_image, image_qos,
            SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible_image_qos))
        self._jump_handle = self.get_clock().create_jump_callback(
            JumpThreshold(
                min_forward=None, min_backward=Duration(seconds=-CLOCK_JUMP_S),
                on_clock_change=False),
            post_callback=self._on_clock_jump)

    # --- inputs

    def _on_static_transforms(self, msg: TFMessage) -> None:
        try:
            self._rig.static_transforms.add(msg)
        except ValueError as error:
            self._refuse(f'/tf_static: {error}')
            return
        self._refused = ''

    def _on_camera_info(self, msg: CameraInfo) -> None:
        self._rig.camera_info = msg

    def _on_gnss(self, msg: NavSatFix, info: dict) -> None:
        if not self._active:
            return
        now_s = time.monotonic()
        self._gnss_monitor.received(now_s, *_publication(info))
        self._waiting_fixes.append((msg, now_s))
        self._take_gnss()

    def _on_gnss_velocity(self, msg: Velocity, info: dict) -> None:
        if not self._active:
            return
        now_s = time.monotonic()
        self._velocity_monitor.received(now_s, *_publication(info))
        self._waiting_velocities.append((msg, now_s))
        self._take_gnss()

    def _take_gnss(self) -> None:
        """Take the fixes and velocities that odometry has reached, or all where it is silent.

        A busy node finds a queue of each topic.  Fixes taken ahead of the odometry between them
        would be computed anew with each sample of it, and the node would never catch up.
        """
        for waiting, take in ((self._waiting_fixes, self._take_fix),
                              (self._waiting_velocities, self._take_velocity)):
            while waiting and self._is_due(waiting[0][0]):
                take(*waiting.popleft())

    def _is_due(self, msg: NavSatFix | Velocity) -> bool:
        latest, silent_s = self._last_sample, time.monotonic() - self._sampled_s
        if latest is None or silent_s > self._node_config.odometry_wait_s:
            return True
        ahead_s = (conversions.stamp_ns_from_msg(msg.header.stamp) - latest.stamp_ns) * 1e-9
        return not 0.0 < ahead_s <= self._config.filter.odometry_lost_s

    def _take_fix(self, msg: NavSatFix, entered_s: float) -> None:
        try:
            if self._localizer is None:
                self._start_without_map(*conversions.gnss_latlon_from_msg(msg))
            fix = self._rig.gnss_fix(msg, self._localizer.frame)
        except UnknownCalibration as error:
            self._gnss_monitor.refused(str(error), Level.ERROR, EXTRINSICS_REMEDY)
            return
        except ValueError as error:
            self._gnss_monitor.refused(str(error))
            return
        self._go_on_from_last_pose(fix)
        remark = ''
        sigma_m = float(np.sqrt(np.linalg.eigvalsh(fix.covariance)[1]))
        if conversions.gnss_covariance_from_msg(msg) is None:
            remark = ('covariance is unknown, zero or NaN: '
                      f'{self._node_config.gnss_unknown_sigma_m} m are assumed')
        elif sigma_m > self._node_config.gnss_sigma_warn_m:
            remark = (f'fixes claim a sigma of {sigma_m:.3g} m; gnss_sigma_warn_m is '
                      f'{self._node_config.gnss_sigma_warn_m:g} m')
        else:
            remark = _wait_remark('fixes', entered_s)
        update = self._localizer.add_gnss(fix)
        if update.outcome is not Outcome.GATED:
            self._gnss_refused_s = None
        elif self._gnss_refused_s is None:
            self._gnss_refused_s = time.monotonic()
        _note(self._gnss_monitor, update, remark, GNSS_REMEDY)

    def _take_velocity(self, msg: Velocity, entered_s: float) -> None:
        if self._localizer is None:
            self._velocity_monitor.refused('waiting for a first GNSS fix to place the map frame')
            return
        try:
            course = self._rig.gnss_course(msg, self._localizer.frame)
        except UnknownCalibration as error:
            self._velocity_monitor.refused(str(error), remedy=EXTRINSICS_REMEDY)
            return
        except ValueError as error:
            self._velocity_monitor.refused(str(error))
            return
        update = self._localizer.add_course(course)
        if update.outcome is Outcome.TOO_SLOW:
            self._velocity_monitor.counts['too_slow'] += 1
            return
        _note(self._velocity_monitor, update, _wait_remark('velocities', entered_s),
              VELOCITY_REMEDY)

    def _start_without_map(self, latitude_deg: float, longitude_deg: float) -> None:
        """Without a map the frame `map` is a plane about the first fix, or stays what it was."""
        origin, where = (latitude_deg, longitude_deg), 'the first fix'
        if self._last_pose is not None:
            kept = self._last_pose.origin_deg
            if np.abs(np.subtract(kept, origin)).max() < KEPT_ORIGIN_DEG:
                origin, where = kept, 'that of the kept pose'
        self._localizer = Localizer(self._config, LocalFrame(*origin))
        self.get_logger().info(
            f'the origin of {self._node_config.map_frame} is {where}, latitude {origin[0]}, '
            f'longitude {origin[1]}')

    def _on_odometry(self, msg: Odometry, info: dict) -> None:
        if not self._active:
            return
        self._odometry_monitor.received(time.monotonic(), *_publication(info))
        base_frame = self._node_config.base_frame
        if msg.child_frame_id.lstrip('/') not in ('', base_frame):
            self._odometry_monitor.refused(
                f'child_frame_id is {msg.child_frame_id!r}; expected {base_frame!r} '
                '(parameter base_frame)', Level.ERROR)
            return
        try:
            sample = conversions.odometry_sample_from_msg(msg)
        except ValueError as error:
            self._odometry_monitor.refused(str(error))
            return
        if self._localizer is None:
            self._odometry_monitor.refused('waiting for a first GNSS fix to place the map frame')
            return
        if not self._is_of_this_time(sample.stamp_ns):
            return
        update = self._localizer.add_odometry(sample)
        _note(self._odometry_monitor, update)
        # The sample after a jump is a new one, though its increment is not used.
        newest_ns = 0 if self._last_sample is None else self._last_sample.stamp_ns
        if update.outcome is Outcome.TOO_OLD or sample.stamp_ns <= newest_ns:
            return
        self._last_sample, self._sampled_s = sample, time.monotonic()
        estimate = self._localizer.estimate_at(sample.stamp_ns)
        if estimate is not None:
            self._publish_odometry(estimate, sample, msg)
        self._take_gnss()
        self._worker.odometry_reached(sample.stamp_ns)

    def _is_of_this_time(self, stamp_ns: int) -> bool:
        """False for odometry of another time; where it keeps coming, that is the new time.

        A bag looped without /clock goes back, a clock that was set right goes either way.
        """
        if self._last_sample is None or stamp_ns <= 0:
            return True
        ahead_s = (stamp_ns - self._last_sample.stamp_ns) * 1e-9
        config = self._config.filter
        if -config.buffer_s <= ahead_s <= config.odometry_lost_s:
            self._strange_odometry = 0
            return True
        way = 'ahead' if ahead_s > 0.0 else 'back'
        self._strange_odometry += 1
        if self._strange_odometry < STRANGE_ODOMETRY_RESTART:
            self._odometry_monitor.counts['too_old' if way == 'back' else 'too_new'] += 1
            self._odometry_monitor.refused(f'stamp jumped {way} by {abs(ahead_s):.1f} s')
            return False
        self._restart(f'stamps of the odometry jumped {way} by {abs(ahead_s):.1f} s')
        return True

    def _on_initial_pose(self, msg: PoseWithCovarianceStamped) -> None:
        if not self._active:
            return
        frame_id = msg.header.frame_id.lstrip('/')
        if frame_id not in ('', self._node_config.map_frame):
            self._refuse(
                f'initialpose is in {frame_id!r}; expected {self._node_config.map_frame!r}')
            return
        if self._localizer is None:
            self._refuse('initialpose: without a map a first GNSS fix must place it')
            return
        try:
            estimate = conversions.pose_estimate_from_msg(msg)
        except ValueError as error:
            self._refuse(f'initialpose: {error}')
            return
        # RViz stamps with its own clock, which need not be the bag's.
        latest = self._last_sample
        buffer_ns = self._config.filter.buffer_s * 1e9
        if latest is not None and abs(estimate.stamp_ns - latest.stamp_ns) > buffer_ns:
            estimate = PoseEstimate(latest.stamp_ns, estimate.pose, estimate.covariance)
        update = self._localizer.set_pose(estimate)
        if update.outcome is not Outcome.USED:
            self._refuse(f'initialpose: {update.reason or update.outcome.value}')
            return
        self._refused = ''

    def _refuse(self, text: str) -> None:
        """A message on a topic that has no line of its own in /diagnostics."""
        self.get_logger().error(text)
        self._refused = text

    def _on_image(self, msg: Image | CompressedImage, info: dict) -> None:
        entered_s = time.perf_counter()
        if not self._active:
            return
        self._camera_monitor.received(time.monotonic(), *_publication(info))
        stamp_ns = conversions.stamp_ns_from_msg(msg.header.stamp)
        if problem := self._image_stamp_problem(stamp_ns):
            self._camera_monitor.refused(problem)
            return
        self._worker.offer(stamp_ns, ReceivedImage(msg, entered_s))

    def _image_stamp_problem(self, stamp_ns: int) -> str:
        """What is wrong with an image's stamp, or ''; a pose at that stamp would mean nothing."""
        if stamp_ns <= 0:
            return f'stamp is {stamp_ns} ns; expected a positive time'
        if self._last_sample is None:
            return ''
        ahead_s = (stamp_ns - self._last_sample.stamp_ns) * 1e-9
        config = self._config.filter
        if ahead_s > config.odometry_lost_s:
            return f'stamp is {ahead_s:.1f} s ahead of the last odometry'
        if ahead_s < -config.buffer_s:
            return (f'stamp is {-ahead_s:.1f} s before the last odometry; the delay buffer holds '
                    f'{config.buffer_s:.1f} s')
        return ''

    def _on_incompatible_image_qos(self, event) -> None:
        self._image_qos_problem = (
            'a publisher offers a QoS that image_reliability '
            f'{self._node_config.image_reliability} does not accept; set best_effort')

    def _on_reset(self, request, response):
        self._restart('asked for by the service reset')
        response.success = True
        response.message = 'restarted; ' + Outcome.NOT_STARTED.value
        return response

    def _on_clock_jump(self, jump) -> None:
        self._restart(f'the clock jumped back by {-jump.delta.nanoseconds / 1e9:.1f} s')

    def _restart(self, reason: str) -> None:
        self.get_logger().warning(f'restart: {reason}')
        self._restart_reason = reason
        self._restart_is_news = True
        self._failure = ''
        self._strange_odometry = 0
        self._gnss_refused_s = None
        self._waiting_fixes.clear()
        self._waiting_velocities.clear()
        self._last_sample = None
        self._last_pose = None
        self._estimate = None
        if self._active:
            self._worker.clear()
        if self._localizer is not None:
            self._localizer.reset()

    # --- the image thread

    def _process_guarded(self, received: ReceivedImage) -> None:
        try:
            self._process(received)
        except Exception as error:  # a fault in one image must not end the thread
            self.report_failure(error)

    def _process(self, received: ReceivedImage) -> None:
        image, problem = self._usable_image(received.msg)
        if self._localizer is None:
            return
        stamp_ns = conversions.stamp_ns_from_msg(received.msg.header.stamp)
        if image is None:
            localization = self._localizer.pass_image(stamp_ns, problem)
        else:
            localization = self._localize(image)
        self._publish_localization(localization, received.entered_s)
        self._localization = localization
        self._localized_s = time.monotonic()
        if localization.outcome is Outcome.USED:
            self._matched_s = self._localized_s
        self._outcomes[localization.outcome] += 1
        self._latest_outcomes.append(localization.outcome)

    def _usable_image(self, msg: Image | CompressedImage) -> tuple[CameraImage | None, str]:
        """The image, or None and what is wrong with it, which /diagnostics then shows too."""
        sample = self._last_sample
        try:
            image = self._rig.camera_image(msg, sample and sample.odom_from_base)
        except ValueError as error:
            remedy = {
                UnknownCalibration: EXTRINSICS_REMEDY, BlindImage: BLIND_REMEDY}.get(type(error))
            self._camera_monitor.refused(str(error), Level.ERROR, remedy or CAMERA_REMEDY)
            return None, str(error)
        self._camera_monitor.used()
        return image, ''

    def _localize(self, image: CameraImage) -> Localization:
        """Match the image; where the matcher fails the prior is what is left."""
        try:
            localization = self._localizer.process_image(image)
        except Exception as error:
            self.report_failure(error)
            if self._device == 'cuda' and isinstance(error, RuntimeError):
                self._fall_back_to_cpu(error)
            return self._localizer.pass_image(
                image.stamp_ns, f'the matcher failed ({type(error).__name__})')
        self._works_again = True
        return localization

    def _fall_back_to_cpu(self, error: RuntimeError) -> None:
        """A GPU that is out of memory, or gone, does not come back to a running process."""
        config, values = self._node_config, dict(self._map_status.values)
        self._device = values['device'] = 'cpu'
        text = f'{type(error).__name__} on the GPU'
        try:
            again = load_localizer(config.map_path, values['weights'], self._config, 'cpu')
        except (ValueError, OSError, RuntimeError, MemoryError) as second:
            self._localizer.matcher = None
            self._map_status = Status(
                'map', Level.ERROR, f'{text}, and on the CPU: {second}', values, GPU_REMEDY)
            return
        self._localizer.matcher = again.matcher
        self._localizer.embedding_map = again.embedding_map
        self._map_status = Status(
            'map', Level.WARN, f'{text}: running on the CPU since', values, GPU_REMEDY)

    def report_failure(self, error: Exception) -> None:
        self._failure = f'{type(error).__name__}: {error}'
        self._failures += 1
        self._works_again = False
        self.get_logger().error(
            'internal error: ' + ''.join(traceback.format_exception(error)).strip(),
            throttle_duration_sec=1.0)

    # --- the last pose, kept for a node that is killed

    def _load_last_pose(self) -> None:
        config = self._node_config
        if not config.last_pose_path:
            return
        path = Path(config.last_pose_path)
        if config.last_pose_path == 'auto':
            home = Path(os.environ.get('ROS_HOME') or Path.home() / '.ros')
            name = self.get_fully_qualified_name().strip('/').replace('/', '.')
            path = home / 'crossview_localizer' / f'{name}.json'
        self._last_pose_path = path
        try:
            self._last_pose = load_last_pose(path, config.last_pose_max_age_s)
        except (ValueError, OSError) as error:
            self.get_logger().warning(f'no pose to go on from: {error}')

    def _go_on_from_last_pose(self, fix: GnssFix) -> None:
        """Before the filter has started: start where a killed node was, if the fix agrees."""
        kept, sample = self._last_pose, self._last_sample
        if self._localizer.filter.started:
            self._last_pose = None
        if kept is None or sample is None or self._localizer.filter.started:
            return
        self._last_pose = None
        frame, config = self._localizer.frame, self._config.filter
        estimate = None
        if kept.origin_deg == (frame.latitude_deg, frame.longitude_deg):
            estimate = kept.estimate_at(sample, config, self._node_config.last_pose_max_age_s)
        if estimate is None:
            self.get_logger().info('the kept pose is of another time or map and is not used')
            return
        antenna = estimate.pose @ Pose2D(*fix.base_from_antenna_m, 0.0)
        variance_m2 = (np.trace(estimate.covariance[:2, :2]) + np.trace(fix.covariance)
                       + 2.0 * config.gnss_bias_sigma_m**2)
        away_m = float(np.hypot(antenna.x_m - fix.x_m, antenna.y_m - fix.y_m))
        if away_m > KEPT_POSE_SIGMAS * variance_m2**0.5:
            self.get_logger().warning(
                f'the kept pose is {away_m:.0f} m from the first fix and is not used')
            return
        if self._localizer.set_pose(estimate).outcome is Outcome.USED:
            self._restart_reason = 'the node was started again and goes on from its last pose'
            self.get_logger().info(self._restart_reason)

    def _keep_last_pose(self) -> None:
        estimate, sample = self._estimate, self._last_sample
        if self._last_pose_path is None or estimate is None or sample is None:
            return
        if not self._active or estimate.stamp_ns != sample.stamp_ns:
            return
        frame = self._localizer.frame
        try:
            LastPose(
                time.time(), estimate.stamp_ns, (frame.latitude_deg, frame.longitude_deg),
                estimate.pose, sample.odom_from_base, estimate.covariance,
            ).save(self._last_pose_path)
        except OSError as error:
            problem = f'not kept ({error}); set last_pose_path, or empty for none'
            if problem != self._last_pose_problem:
                self.get_logger().warning(f'the last pose is {problem}')
            self._last_pose_problem = problem
            return
        self._last_pose_problem = ''

    # --- outputs

    def _publish_localization(self, localization: Localization, entered_s: float) -> None:
        map_frame = self._node_config.map_frame
        posterior = localization.posterior
        if posterior is not None:
            self._pose_publisher.publish(conversions.pose_msg_from_estimate(posterior, map_frame))
            latency_ms = (time.perf_counter() - entered_s) * 1e3
            self._latency.add(latency_ms)
            self._latency_publisher.publish(Float64(data=latency_ms))
            self._geopose_publisher.publish(
                conversions.geopose_msg_from_estimate(posterior, self._localizer.frame))
        if localization.prior is not None:
            self._prior_publisher.publish(
                conversions.pose_msg_from_estimate(localization.prior, map_frame))
        if localization.match is not None:
            self._match_publisher.publish(
                conversions.pose_msg_from_estimate(localization.match, map_frame))
        heatmap = self._heatmap_to_show(localization)
        if heatmap is not None:
            self._heatmap_publisher.publish(
                conversions.heatmap_msg_from_heatmap(heatmap, map_frame))

    def _heatmap_to_show(self, localization: Localization) -> Heatmap | None:
        """The match's heat map; without a match a cleared one in its, or the last one's, place."""
        if localization.heatmap is not None:
            grid = localization.heatmap.grid
            self._cleared_heatmap = Heatmap(
                0, grid, np.full((grid.rows, grid.cols), -np.inf))
        if localization.match is not None:
            return localization.heatmap
        if self._cleared_heatmap is None:
            return None
        return Heatmap(
            localization.stamp_ns, self._cleared_heatmap.grid,
            self._cleared_heatmap.log_probability)

    def _publish_odometry(self, estimate: PoseEstimate, sample, msg: Odometry) -> None:
        config = self._node_config
        self._estimate = estimate
        self._odometry_publisher.publish(conversions.odometry_msg_from_estimate(
            estimate, config.map_frame, config.base_frame, msg.twist))
        if not config.publish_tf:
            return
        map_from_odom = estimate.pose @ sample.odom_from_base.inverse()
        odom_frame = config.odom_frame or msg.header.frame_id.lstrip('/') or 'odom'
        stamp_ns = sample.stamp_ns + round(config.transform_tolerance_s * 1e9)
        self._tf_publisher.publish(TFMessage(transforms=[conversions.transform_msg_from_pose(
            map_from_odom, stamp_ns, config.map_frame, odom_frame)]))

    # --- diagnostics

    def _publish_diagnostics(self) -> None:
        if self._active:
            self._take_gnss()
        self._keep_last_pose()
        stamp_ns = self.get_clock().now().nanoseconds
        self._diagnostics_publisher.publish(conversions.diagnostics_msg_from_statuses(
            self._statuses(), stamp_ns, self.get_name()))

    def _statuses(self) -> list[Status]:
        if not self._active:
            if self._failure:
                return [Status(
                    'node', Level.ERROR, f'not configured: {self._failure}',
                    remedy='correct the parameters, then configure the lifecycle node again')]
            state = 'inactive' if self._configured else 'not configured'
            return [Status(
                'node', Level.WARN, f'{state}: activate the lifecycle node',
                remedy='activate the lifecycle node, or set autostart')]
        now_s = time.monotonic()
        timeout_s = self._node_config.input_timeout_s
        self._camera_monitor.counts['dropped'] = self._dropped_before + self._worker.dropped
        return [
            self._node_status(),
            self._only_one_publishes(self._image_topic, self._camera_monitor.status(
                now_s, timeout_s, self._image_silence_hint())),
            self._gnss_monitor.status(now_s, timeout_s, self._silence_hint('gnss')),
            *self._velocity_statuses(now_s, timeout_s),
            self._only_one_publishes('odometry', self._odometry_monitor.status(
                now_s, timeout_s, self._silence_hint('odometry'))),
            self._map_status,
            self._matcher_status(now_s),
            self._filter_status(now_s),
        ]

    def _velocity_statuses(self, now_s: float, timeout_s: float) -> list[Status]:
        """One line, or none where nobody gives the optional velocity."""
        monitor = self._velocity_monitor
        if not (monitor.counts['received'] or self.count_publishers(
                self.resolve_topic_name('gnss_velocity'))):
            return []
        return [monitor.status(now_s, timeout_s, self._silence_hint('gnss_velocity'))]

    def _node_status(self) -> Status:
        values = {'last_restart': self._restart_reason or 'none', 'failures': self._failures}
        if self._last_pose_problem:
            values['last_pose'] = self._last_pose_problem
        if self._failure:
            text = f'internal error: {self._failure}'
            if self._works_again:
                self._failure = ''
            return Status(
                'node', Level.ERROR, text, values,
                'report it with the log; the node goes on with the prior')
        sim_time = self.get_parameter('use_sim_time').value
        if sim_time and self.get_clock().now().nanoseconds == 0:
            return Status(
                'node', Level.WARN, 'use_sim_time is set and nothing comes on /clock', values,
                CLOCK_REMEDY)
        if self._refused:
            return Status(
                'node', Level.WARN, self._refused, values, 'publish it again, corrected')
        if self._restart_is_news or self._restart_reason and self._estimate is None:
            self._restart_is_news = False
            return Status(
                'node', Level.WARN, f'restarted: {self._restart_reason}', values,
                MATCHER_REMEDIES[Outcome.NOT_STARTED])
        return Status('node', Level.OK, 'active', values)

    def _silence_hint(self, topic: str) -> str:
        name = self.resolve_topic_name(topic)
        publishers = self.count_publishers(name)
        return f'{name} has {publishers} publisher{"" if publishers == 1 else "s"}'

    def _only_one_publishes(self, topic: str, status: Status) -> Status:
        """The status of an input; where two odometries or cameras are mixed, that goes first."""
        name = self.resolve_topic_name(topic)
        publishers = self.count_publishers(name)
        if publishers < 2:
            return status
        return replace(
            status, level=max(status.level, Level.WARN), remedy=TWO_PUBLISHERS_REMEDY,
            text=f'{name} has {publishers} publishers, of which one was expected; {status.text}')

    def _image_silence_hint(self) -> str:
        if self._image_qos_problem:
            return f'{self._image_topic}: {self._image_qos_problem}'
        if self.count_publishers(self._image_topic) == 0:
            return (
                f'nobody publishes {self._image_topic}; check the remapping of image and '
                'image_transport')
        return f'{self._image_topic} has a publisher; {LARGE_IMAGE_HINT}'

    def _matcher_status(self, now_s: float) -> Status:
        values = {
            outcome.name.lower(): self._outcomes[outcome]
            for outcome in (Outcome.USED, *MATCHER_REMEDIES)}
        values.update(self._latency.values())
        localization, latest = self._localization, list(self._latest_outcomes)
        if localization is None:
            return Status(
                'matcher', Level.WARN, 'no image has been processed', values, 'see camera')
        age_s = now_s - self._localized_s
        values['age_s'] = f'{age_s:.2f}'
        values['since_match_s'] = (
            'never' if self._matched_s is None else f'{now_s - self._matched_s:.2f}')
        values['used_share'] = f'{latest.count(Outcome.USED) / max(len(latest), 1):.2f}'
        values['gated_share'] = f'{latest.count(Outcome.GATED) / max(len(latest), 1):.2f}'
        values.update({
            f'{stage}_ms': f'{1e3 * seconds:.1f}'
            for stage, seconds in localization.seconds.items()})
        if age_s > self._node_config.input_timeout_s:
            return Status(
                'matcher', Level.WARN, f'no image processed for {age_s:.1f} s', values,
                'see camera')
        if localization.outcome is Outcome.USED:
            return Status('matcher', Level.OK, 'matching', values)
        text = localization.outcome.value
        if localization.reason and localization.reason != text:
            text += f': {localization.reason}'
        return Status(
            'matcher', Level.WARN, text, values, MATCHER_REMEDIES[localization.outcome])

    def _filter_status(self, now_s: float) -> Status:
        if self._estimate is None:
            return Status(
                'filter', Level.WARN, Outcome.NOT_STARTED.value,
                remedy=MATCHER_REMEDIES[Outcome.NOT_STARTED])
        # As wide as it is by now, should odometry have stopped.
        silent_s = self._odometry_monitor.age_s(now_s) or 0.0
        estimate = self._localizer.estimate_at(self._estimate.stamp_ns + round(silent_s * 1e9))
        status = pose_status(
            (estimate or self._estimate).covariance,
            self._node_config.ellipse_warn_m, self._node_config.ellipse_error_m)
        refused_s = now_s - (self._gnss_refused_s or now_s)
        alone_s = min(refused_s, now_s - (self._matched_s or 0.0))
        if alone_s <= CONTRADICTED_S:
            return status
        return replace(
            status, level=Level.ERROR, remedy=CONTRADICTED_REMEDY,
            text=f'for {alone_s:.0f} s fixes contradict the odometry and no match decides: do not '
            f'trust the pose; {status.text}')


def _wait_remark(what: str, entered_s: float) -> str:
    """What to say of GNSS that waited long for odometry of its time, or ''."""
    waited_s = time.monotonic() - entered_s
    if waited_s <= FIX_WAIT_WARN_S:
        return ''
    return (f'{what} wait {waited_s:.1f} s for odometry of their time: their clock is ahead, or '
            'the machine is too busy')


def _note(
    monitor: InputMonitor, update: FilterUpdate, remark: str = '', remedy: str = '',
) -> None:
    """Enter what the filter did with a measurement."""
    if update.mahalanobis2 is not None:
        monitor.gate(update.outcome is not Outcome.GATED, update.mahalanobis2)
    if update.outcome in (Outcome.USED, Outcome.NOT_STARTED):
        monitor.used(remark, remedy)
        return
    monitor.counts[update.outcome.name.lower()] += 1
    text = '; '.join(filter(None, (f'{update.outcome.value}: {update.reason}', remark)))
    if update.outcome is Outcome.GATED:
        monitor.gated(text)
    else:
        monitor.refused(text)


def _publication(info: dict) -> tuple[bytes | None, int | None]:
    """Who published a message and which of its messages it is; None where DDS does not tell."""
    publisher = info.get('publisher_gid')
    return publisher and publisher['data'], info.get('publication_sequence_number')


def _overridable() -> QoSOverridingOptions:
    """History, depth and reliability can be set by the parameters ``qos_overrides.TOPIC...``."""
    return QoSOverridingOptions.with_default_policies()


def shipped_weights() -> str:
    """The weights that come with the package, installed or in a source tree."""
    try:
        share = Path(get_package_share_directory('crossview_localizer'))
    except PackageNotFoundError:
        share = Path(__file__).resolve().parents[1]
    found = sorted((share / 'config' / 'weights').glob('*.safetensors'))
    if not found:
        raise ValueError(
            f'no weights in {share / "config" / "weights"}; set the parameter weights_path')
    return str(found[0])


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; both may come again while it ends."""
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
