"""Publishes what came of each image, and counts it for the diagnostics."""

from collections.abc import Callable
import time

from crossview_localizer.datatypes import FilterUpdate, Localization, Outcome
from crossview_localizer.ros import conversions, remedies
from crossview_localizer.ros.diagnostics import Diagnostics
from crossview_localizer.ros.image_processor import ProcessedImage, ReceivedImage
from crossview_localizer.ros.image_worker import Unprocessed
from crossview_localizer.ros.localizer_holder import LocalizerHolder
from crossview_localizer.ros.outputs import LocalizerOutputs
from crossview_localizer.ros.status import image_status


class ImageResults:
    """Publishes the result of each image; ``report_failure`` is told of errors in the code."""

    def __init__(self, holder: LocalizerHolder, outputs: LocalizerOutputs,
                 diagnostics: Diagnostics, report_failure: Callable[[Exception], object]):
        self._holder = holder
        self._outputs = outputs
        self._diagnostics = diagnostics
        self._report_failure = report_failure

    def publish_refused(self, stamp_ns: int, problem: FilterUpdate) -> None:
        """Publish why an image was not given to the image thread."""
        self._diagnostics.camera.add_refused(problem.reason)
        self._publish_status(stamp_ns, problem)

    def publish(
        self, received: ReceivedImage, result: ProcessedImage | Unprocessed | Exception,
    ) -> None:
        """Publish a result of the image thread, or that it has none or failed."""
        if isinstance(result, Exception):
            self._report_failure(result)
            result = Unprocessed(
                Outcome.UNUSABLE, f'the image thread failed ({type(result).__name__})')
        elif isinstance(result, ProcessedImage):
            if result.localization.outcome is not Outcome.SUPERSEDED:
                self._publish_processed(received, result)
                return
            result = result.localization
        self._diagnostics.camera.counts['dropped'] += 1
        self._publish_status(
            conversions.stamp_ns_from_msg(received.msg.header.stamp), result)

    def _publish_processed(self, received: ReceivedImage, processed: ProcessedImage) -> None:
        localization, problem = processed.localization, processed.problem
        latency_ms = self._outputs.publish_localization(
            localization, self._holder.localizer.frame, received.entered_s)
        self._outputs.publish_status(image_status(
            localization.stamp_ns, localization.outcome, localization.reason,
            processed.match_state))
        self._diagnostics.matcher.add_image(localization, latency_ms, time.monotonic())
        self._diagnostics.warn_of_odometry(localization.reason)
        if processed.map_status is not None:
            self._diagnostics.map_status = processed.map_status
        if problem is not None:
            self._diagnostics.camera.add_refused(problem.text, problem.level, problem.remedy)
            return
        self._diagnostics.camera.add_used(processed.remark, remedies.CAMERA_INFO)
        if processed.error is None:
            self._diagnostics.node.add_success()
        else:
            self._report_failure(processed.error)

    def _publish_status(
        self, stamp_ns: int, result: FilterUpdate | Unprocessed | Localization,
    ) -> None:
        """Publish the status of an image that was not processed."""
        localizer = self._holder.localizer
        state = 'trusted' if localizer is None else localizer.match_state
        self._outputs.publish_status(
            image_status(stamp_ns, result.outcome, result.reason, state))
