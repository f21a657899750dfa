"""The node with a timer on each stage of the live path; it is the same process otherwise.

``python -m benchmarks.speed.timed_node SPANS.json --ros-args ...`` runs the node until it is
interrupted and then writes one record per image: seconds of each stage, and of all of them.
"""

from collections.abc import Callable
import json
from pathlib import Path
import sys
import time

from crossview_localizer import node
from crossview_localizer.camera import views
from crossview_localizer.maps.embedding_map import EmbeddingMap
from crossview_localizer.matching import dense_matcher
from crossview_localizer.ros import localizer_holder
from crossview_localizer.ros.image_processor import ImageProcessor
from crossview_localizer.ros.image_worker import ImageWorker
from crossview_localizer.ros.outputs import LocalizerOutputs
from crossview_localizer.ros.sensor_rig import SensorRig


class StageTimes:
    """Seconds of each stage, for each image that the node processes, by ``clock``."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self.images: list[dict] = []
        self.current: dict[str, float] = {}

    def time_calls(self, owner, name: str, stage: str,
                   synchronize: Callable = lambda: None) -> None:
        """Add the time of each call of ``owner.name`` to a stage."""
        call = getattr(owner, name)

        def timed(*arguments, **keywords):
            begin_s = self._clock()
            try:
                found = call(*arguments, **keywords)
                synchronize()
                return found
            finally:
                spent_s = self._clock() - begin_s
                self.current[stage] = self.current.get(stage, 0.0) + spent_s
        setattr(owner, name, timed)

    def time_images(self) -> None:
        """Make a record of each image, from its arrival until all is published."""
        process, publish = ImageProcessor.process, LocalizerOutputs.publish_localization
        records = {}        # by the time at which the image's callback was entered

        def timed_process(processor, received, *arguments):
            self.current = {'wait': time.perf_counter() - received.entered_s}
            processed = process(processor, received, *arguments)
            records[received.entered_s] = self.current
            return processed

        def timed_publish(outputs, localization, frame, entered_s):
            begin_s = time.perf_counter()
            latency_ms = publish(outputs, localization, frame, entered_s)
            end_s = time.perf_counter()
            self.images.append({
                **records.pop(entered_s), 'publish': end_s - begin_s,
                'end_to_end': end_s - entered_s, 'stamp_ns': localization.stamp_ns,
                'outcome': localization.outcome.name})
            return latency_ms
        ImageProcessor.process = timed_process
        LocalizerOutputs.publish_localization = timed_publish

    def time_stages(self) -> None:
        """Time each stage, of whichever matcher the node loads."""
        load = localizer_holder.load_localizer

        def loading(*arguments, **keywords):
            localizer = load(*arguments, **keywords)
            matcher, synchronize = localizer.matcher, lambda: None
            if str(matcher.device).startswith('cuda'):
                import torch
                synchronize = torch.cuda.synchronize
            self.time_calls(matcher, '_ground', 'forward', synchronize)
            self.time_calls(matcher, 'match', 'match', synchronize)
            self.time_calls(matcher, 'estimate', 'match')
            self.time_calls(localizer.filter, 'add_match', 'filter')
            self.time_calls(localizer.filter, 'estimate_at', 'filter')
            return localizer
        localizer_holder.load_localizer = loading
        self.time_calls(ImageWorker, '_wait_until_due', 'wait')
        self.time_calls(EmbeddingMap, 'window', 'window')
        self.time_calls(SensorRig, 'camera_image', 'decode')
        self.time_calls(views, 'lifted_view', 'resize')
        self.time_calls(dense_matcher, 'ground_tensors', 'upload')


def main() -> int:
    path, times = Path(sys.argv.pop(1)), StageTimes()
    times.time_stages()
    times.time_images()
    result = node.main()
    path.write_text(json.dumps(times.images))
    return result


if __name__ == '__main__':
    sys.exit(main())
