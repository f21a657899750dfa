"""Decodes and checks an image and localizes with it, in the image thread."""

from collections.abc import Callable
from dataclasses import dataclass

from sensor_msgs.msg import CompressedImage, Image

from crossview_localizer.camera.blind_images import BlindImage
from crossview_localizer.datatypes import Localization, OdometrySample
from crossview_localizer.ros import conversions, remedies
from crossview_localizer.ros.input_monitor import Problem
from crossview_localizer.ros.localizer_holder import LocalizerHolder
from crossview_localizer.ros.sensor_rig import NoCameraInfo, SensorRig, UnknownCalibration
from crossview_localizer.ros.status import Level, Status


@dataclass(frozen=True)
class ReceivedImage:
    """An image message and when its callback was entered, by ``time.perf_counter``."""

    msg: Image | CompressedImage
    entered_s: float


@dataclass(frozen=True)
class ProcessedImage:
    """The result of an image, and what went wrong on the way."""

    localization: Localization
    match_state: str
    problem: Problem | None = None     # why the image could not be used
    remark: str = ''                   # what is wrong with an image that was used
    error: Exception | None = None     # what the matcher raised
    map_status: Status | None = None   # if map and network had to be loaded again


class ImageProcessor:
    """Turns a ReceivedImage into a ProcessedImage; only the image thread calls it."""

    def __init__(self, rig: SensorRig, holder: LocalizerHolder):
        self._rig = rig
        self._holder = holder

    def process(
        self, received: ReceivedImage, newest_odometry: OdometrySample | None,
        wait_until_due: Callable[[], bool],
    ) -> ProcessedImage:
        """Localize with an image; if that is not possible the result has the prior alone.

        ``wait_until_due`` is that of ``Localizer.process_image``.
        """
        localizer = self._holder.localizer
        stamp_ns = conversions.stamp_ns_from_msg(received.msg.header.stamp)
        problem = error = map_status = None
        try:
            image = self._rig.camera_image(
                received.msg, newest_odometry and newest_odometry.odom_from_base)
        except ValueError as refusal:
            remedy = {
                UnknownCalibration: remedies.EXTRINSICS, NoCameraInfo: remedies.CAMERA_INFO,
                BlindImage: remedies.BLIND_CAMERA}
            problem = Problem(
                Level.ERROR, str(refusal), remedy.get(type(refusal), remedies.CAMERA))
            wait_until_due()
            localization = localizer.pass_image(stamp_ns, problem.text)
        else:
            try:
                localization = localizer.process_image(image, wait_until_due)
            except Exception as failure:
                error = failure
                map_status = self._holder.replace_failed_gpu(failure)
                localization = localizer.pass_image(
                    stamp_ns, f'the matcher failed ({type(failure).__name__})')
        return ProcessedImage(
            localization, localizer.match_state, problem,
            self._rig.camera_info_remark(received.msg.header.frame_id), error, map_status)
