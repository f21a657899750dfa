"""The faults of messages: what is sent, and what the node must report and publish meanwhile."""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
import math

import cv2
import numpy as np

from benchmarks.robustness import flat_world
from benchmarks.robustness.flat_world import time_s_of
from benchmarks.robustness.message_faults import (
    at_time,
    bayer,
    covariance_of,
    exchanged,
    half_size_info,
    jump_of_odometry,
    mirrored,
    moved_by,
    nan_pose,
    nan_transform,
    nothing,
    of_pixels,
    once,
    png_bomb,
    repeated,
    repeated_fix,
    reset_of_odometry,
    second_odometry,
    shift_stamps,
    small_image,
    tell_pose,
    too_fast,
    upside_down_transforms,
    wide,
    with_data,
    with_fields,
)
from benchmarks.robustness.node_trial import (
    describe_poses,
    ERROR,
    FAULT_S,
    FaultError,
    LEVELS,
    NodeTrial,
    OK,
    SETTLE_S,
    WARN,
)
from crossview_localizer.ros import conversions

GOOD = 'receiving'


@dataclass
class FaultResult:
    """The result of a fault: the report of the node, its poses meanwhile, whether it is ok."""

    fault: str
    diagnostic: str
    pose: str
    ok: bool


@dataclass(frozen=True)
class Fault:
    """A fault, and what the node must report of it: part, level and text.

    ``hooks`` change or withhold what is published; ``start`` and ``end`` do what no hook can.
    ``poses`` says whether poses go on, ``honest`` whether each must be honest (not if the node can
    only warn).
    """

    name: str
    part: str
    level: int
    text: str
    hooks: dict[str, Callable] = field(default_factory=dict)
    poses: bool = True
    honest: bool = True
    start: Callable = lambda trial: None
    end: Callable = lambda trial: None


RAW_FAULTS = [
    Fault('camera stops', 'camera', ERROR, 'nothing received', {'image': nothing}, poses=False),
    Fault('camera freezes', 'camera', ERROR, 'image is frozen', {'image': repeated('data')}),
    Fault('camera goes black', 'camera', ERROR, 'image is black', {
        'image': of_pixels(lambda rgb: rgb // 100)}),
    Fault('camera saturates', 'camera', ERROR, 'image is saturated', {
        'image': of_pixels(lambda rgb: np.maximum(rgb, 252))}),
    Fault('encoding mono8', 'camera', OK, GOOD, {
        'image': of_pixels(lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), 'mono8')}),
    Fault('encoding bgr8', 'camera', OK, GOOD, {
        'image': of_pixels(lambda rgb: rgb[..., ::-1], 'bgr8')}),
    Fault('encoding bgra8', 'camera', OK, GOOD, {
        'image': of_pixels(lambda rgb: cv2.cvtColor(rgb, cv2.COLOR_RGB2BGRA), 'bgra8')}),
    Fault('encoding bayer_rggb8', 'camera', OK, GOOD, {
        'image': of_pixels(bayer, 'bayer_rggb8')}),
    Fault('encoding unknown', 'camera', ERROR, "'yuv9'", {
        'image': with_fields(encoding='yuv9')}),
    Fault('12 bit camera in rgb16', 'camera', OK, GOOD, {'image': wide(12)}),
    Fault('encoding rgb16', 'camera', OK, GOOD, {'image': wide()}),
    Fault('depth image 32FC1', 'camera', ERROR, "'32FC1'", {
        'image': with_fields(encoding='32FC1')}),
    Fault('image upside down', 'matcher', WARN, '', {
        'image': of_pixels(lambda rgb: rgb[::-1, ::-1])}),
    Fault('camera mounted upside down', 'camera', OK, GOOD, {
        'image': of_pixels(lambda rgb: rgb[::-1, ::-1])},
        start=lambda trial: trial.publish('tf_static', upside_down_transforms()),
        end=lambda trial: trial.publish('tf_static', flat_world.static_transforms())),
    Fault('image of another frame', 'camera', ERROR, "to 'rear_camera'", {
        'image': with_fields(header__frame_id='rear_camera')}),
    Fault('image of 0 x 0 pixels', 'camera', ERROR, 'image of 0x0 px', {
        'image': with_fields(width=0, height=0, step=0, data=array('B'))}),
    Fault('image that claims 1e9 pixels', 'camera', ERROR, 'expected a step of', {
        'image': with_fields(width=40000, height=25000, step=120000)}),
    Fault('image step too short', 'camera', ERROR, 'expected a step of', {
        'image': with_fields(step=1)}),
    Fault('image shorter than it says', 'camera', ERROR, 'expected a step of', {
        'image': with_fields(data=array('B', bytes(100)))}),
    Fault('image size changes', 'camera', ERROR, 'image is 160x120 px; camera_info describes', {
        'image': of_pixels(small_image)}),
    Fault('image size and camera_info change', 'camera', OK, GOOD, {
        'image': of_pixels(small_image), 'camera_info': half_size_info}),
    Fault('camera_info loses its calibration', 'camera', ERROR, 'not calibrated', {
        'camera_info': with_fields(k=np.zeros(9))}),
    Fault('camera_info without a principal point', 'camera', ERROR, 'principal point at 0, 0', {
        'camera_info': lambda msg: with_fields(
            k=[*msg.k[:2], 0.0, *msg.k[3:5], 0.0, *msg.k[6:]])(msg)}),
    Fault('camera_info with NaN', 'camera', ERROR, 'not finite', {
        'camera_info': with_fields(d=[math.nan] * 5)}),
    Fault('camera_info of 1e9 pixels', 'camera', ERROR, 'camera_info has size', {
        'camera_info': with_fields(width=40000, height=40000)}),
    Fault('camera_info of an unknown lens', 'camera', ERROR, "'octopus'", {
        'camera_info': with_fields(distortion_model='octopus', d=[0.1] * 5)}),
    Fault('GNSS NaN', 'gnss', WARN, 'not a latitude', {
        'gnss': with_fields(latitude=math.nan)}),
    Fault('GNSS without a fix', 'gnss', WARN, 'no fix', {
        'gnss': with_fields(status__status=-1)}),
    Fault('GNSS at (0, 0)', 'gnss', WARN, 'position (0, 0)', {
        'gnss': with_fields(latitude=0.0, longitude=0.0)}),
    Fault('GNSS covariance zero', 'gnss', WARN, 'are assumed', {'gnss': covariance_of(0.0)}),
    Fault('GNSS covariance NaN', 'gnss', WARN, 'are assumed', {'gnss': covariance_of(math.nan)}),
    Fault('GNSS covariance huge', 'gnss', WARN, 'claim a sigma', {'gnss': covariance_of(1e12)}),
    Fault('GNSS covariance infinite', 'gnss', WARN, 'infinite', {
        'gnss': covariance_of(math.inf)}),
    Fault('GNSS jumps by 300 m', 'gnss', WARN, 'refused by the gate', {
        'gnss': lambda msg: flat_world.gnss_msg(
            time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp)), (300.0, 0.0))}),
    Fault('GNSS of another hemisphere', 'gnss', WARN, 'loses the sign of the latitude', {
        'gnss': lambda msg: with_fields(latitude=-msg.latitude)(msg)}),
    Fault('GNSS with latitude and longitude exchanged', 'gnss', WARN,
          'exchanges latitude and longitude', {'gnss': exchanged}),
    Fault('GNSS repeats its last fix', 'gnss', WARN, 'the receiver repeats it', {
        'gnss': repeated_fix()}),
    Fault('GNSS whose driver never sets the status', 'gnss', OK, GOOD, {
        'gnss': with_fields(status__status=-2)}),
    Fault('GNSS of another antenna frame', 'gnss', ERROR, "to 'roof'", {
        'gnss': with_fields(header__frame_id='roof')}),
    Fault('GNSS clock 5 s ahead', 'gnss', WARN, 'their clock is ahead', {
        'gnss': shift_stamps(5.0)}),
    Fault('GNSS stops', 'gnss', ERROR, 'nothing received', {'gnss': nothing}),
    Fault('odometry is reset', 'odometry', WARN, 'odometry jumped', start=reset_of_odometry),
    Fault('odometry jumps', 'odometry', WARN, 'odometry jumped', {
        'odometry': once(jump_of_odometry(50.0))}),
    Fault('odometry NaN', 'odometry', WARN, 'position (nan', {
        'odometry': once(with_fields(pose__pose__position__x=math.nan), 3)}),
    Fault('odometry of 1e308 m', 'odometry', WARN, 'position (1e+308', {
        'odometry': once(with_fields(pose__pose__position__x=1e308))}),
    Fault('odometry covariance NaN', 'odometry', OK, GOOD, {
        'odometry': with_fields(pose__covariance=np.full(36, math.nan))}),
    Fault('odometry twist NaN', 'odometry', OK, GOOD, {
        'odometry': with_fields(twist__twist__linear__x=math.nan)}),
    Fault('odometry turns the wrong way', 'odometry', WARN, 'is not believed for a while',
          honest=False, start=mirrored, end=tell_pose),
    Fault('odometry three times too fast', 'odometry', WARN, 'is not believed for a while',
          start=too_fast, end=tell_pose),
    Fault('two odometries on one topic', 'odometry', WARN, 'has 2 publishers',
          start=second_odometry, end=lambda trial: trial.stop_second()),
    Fault('odometry clock 10 s behind', 'gnss', WARN, 'for odometry of their time', {
        'odometry': shift_stamps(-10.0)}, poses=False),
    Fault('odometry without rotation', 'odometry', WARN, 'is not valid; expected a quaternion', {
        'odometry': once(with_fields(
            pose__pose__orientation__w=0.0, pose__pose__orientation__z=0.0), 3)}),
    Fault('odometry of another frame', 'odometry', ERROR, "child_frame_id is 'wheel'", {
        'odometry': with_fields(child_frame_id='wheel')}),
    Fault('odometry in the map frame', 'odometry', ERROR, "frame_id is 'map'", {
        'odometry': with_fields(header__frame_id='map')}),
    Fault('odometry in the frame of the vehicle', 'odometry', ERROR, "frame_id is 'base_link'", {
        'odometry': with_fields(header__frame_id='base_link')}),
    Fault('odometry that fills its twist alone', 'odometry', WARN, 'stands still while its twist',
          {'odometry': repeated('pose')}, honest=False, end=tell_pose),
    Fault('odometry stops', 'odometry', ERROR, 'nothing received', {'odometry': nothing}),
    Fault('odometry stamps zero', 'odometry', WARN, 'stamp is 0 ns', {
        'odometry': once(shift_stamps(None), 4)}),
    Fault('odometry stamps in the future', 'odometry', WARN, 'stamp jumped ahead by 3600', {
        'odometry': once(shift_stamps(3600.0), 4)}),
    Fault('odometry stamps jump back', 'odometry', WARN, 'stamp jumped back by 10', {
        'odometry': once(shift_stamps(-10.0), 4)}),
    Fault('image stamps zero', 'camera', WARN, 'stamp is 0 ns', {'image': shift_stamps(None)},
          poses=False),
    Fault('image stamps in the future', 'camera', WARN, 'ahead of the last odometry', {
        'image': shift_stamps(3600.0)}, poses=False),
    Fault('image stamps jump back', 'camera', WARN, 'before the last odometry', {
        'image': shift_stamps(-20.0)}, poses=False),
    Fault('GNSS stamps zero', 'gnss', WARN, 'stamp is 0 ns', {'gnss': shift_stamps(None)}),
    Fault('GNSS stamps in the future', 'gnss', WARN, 'ahead of the last odometry', {
        'gnss': shift_stamps(3600.0)}),
    Fault('GNSS stamps jump back', 'gnss', WARN, 'older than the delay buffer', {
        'gnss': shift_stamps(-20.0)}),
    Fault('/tf_static with NaN', 'node', WARN, '/tf_static: camera_optical',
          start=lambda trial: trial.publish('tf_static', nan_transform()),
          end=lambda trial: trial.publish('tf_static', flat_world.static_transforms())),
    Fault('initialpose NaN', 'node', WARN, 'initialpose',
          start=lambda trial: trial.publish('initialpose', nan_pose()), end=tell_pose),
    Fault('map left by the car', 'matcher', WARN, 'outside the map', {},
          start=moved_by(500.0, 0.0), end=tell_pose),
    Fault('all inputs stop', 'odometry', ERROR, 'nothing received', {
        name: nothing for name in ('image', 'camera_info', 'gnss', 'odometry')}, poses=False),
    Fault('bag looped without /clock', 'node', WARN, 'stamps of the odometry jumped back', {},
          start=at_time(-20.0)),
]
JPEG_FAULTS = [
    Fault('encoding jpeg', 'camera', OK, GOOD, {}),
    Fault('encoding png', 'camera', OK, GOOD, {'jpeg': lambda msg: flat_world.compressed_msg(
        flat_world.image_msg(cv2.imdecode(np.frombuffer(msg.data, np.uint8), 1)[..., ::-1],
                             time_s_of(conversions.stamp_ns_from_msg(msg.header.stamp))),
        '.png')}),
    Fault('jpeg padded with zeros', 'camera', OK, GOOD, {
        'jpeg': with_data(lambda data: data + bytes(200_000))}),
    Fault('jpeg cut short', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(lambda data: data[:len(data) // 2])}),
    Fault('jpeg of random bytes', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(lambda data: np.random.default_rng(0).bytes(len(data)))}),
    Fault('jpeg empty', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(lambda data: b'')}),
    Fault('png of 3.6e9 pixels', 'camera', ERROR, 'does not decode', {
        'jpeg': with_data(png_bomb)}),
]


def try_fault(trial: NodeTrial, fault: Fault) -> FaultResult:
    """Drive until all is well, begin the fault, end it, and wait until all is well again."""
    report = poses = ''
    try:
        trial.hooks.clear()
        trial.drive_until_well()
        trial.clear_reports()
        trial.poses.clear()
        trial.hooks.update(fault.hooks)
        fault.start(trial)
        began_s = trial.time_s
        trial.drive(FAULT_S, until=lambda: trial.find_report(fault.part, fault.level, fault.text)
                    and (not fault.poses or any(
                        pose.time_s > began_s + SETTLE_S for pose in trial.poses)))
        level = LEVELS[fault.level]
        report = f'{fault.part} {level}: {trial.find_report(fault.part, fault.level, fault.text)}'
        during = [pose for pose in trial.poses if pose.time_s > began_s + SETTLE_S]
        poses = describe_poses(during)
        if bool(during) != fault.poses:
            raise FaultError(f'expected {"poses" if fault.poses else "no pose"}')
        if fault.honest and not all(pose.honest for pose in during):
            raise FaultError('a pose is not honest')
        if fault.level == OK:
            trial.drive(until=lambda: trial.find_report('matcher', OK, 'matching'))

        if fault.start is not reset_of_odometry:
            trial.hooks.clear()
        fault.end(trial)
        trial.drive_until_well()
        if trial.process.poll() is not None:
            raise FaultError(f'the node ended with {trial.process.returncode}')
        return FaultResult(fault.name, report, poses, True)
    except FaultError as error:
        return FaultResult(fault.name, f'{report} ({error})', poses, False)
