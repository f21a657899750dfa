"""The node with a clock on each stage of the live path; otherwise the very same process.

``python -m benchmarks.speed.timed_node SPANS.json --ros-args ...`` runs the node until it
is interrupted
and then writes one record an image: seconds of each stage, and of the whole.
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
from crossview_localizer.ros.sensor_rig import SensorRig


class Spans:
    """Seconds of each stage of the image that the image thread is at."""

    def __init__(self):
        self.images: list[dict] = []
        self._current: dict[str, float] = {}

    def clock(self, owner, name: str, stage: str, synchronize: Callable = lambda: None) -> None:
        """Let ``owner.name`` add the time of its calls to a stage."""
        call = getattr(owner, name)

        def timed(*arguments, **keywords):
            begin_s = time.perf_counter()
            try:
                found = call(*arguments, **keywords)
                synchronize()
                return found
            finally:
                spent_s = time.perf_counter() - begin_s
                self._current[stage] = self._current.get(stage, 0.0) + spent_s
        setattr(owner, name, timed)

    def clock_images(self) -> None:
        """Begin a record with each image and end it once all is published."""
        process = node.LocalizerNode._process

        def timed(shell, received):
            self._current = {'wait': time.perf_counter() - received.entered_s}
            process(shell, received)
            localization = shell._localization
            self.images.append({
                **self._current, 'end_to_end': time.perf_counter() - received.entered_s,
                'stamp_ns': localization.stamp_ns, 'outcome': localization.outcome.name})
        node.LocalizerNode._process = timed

    def clock_matcher(self) -> None:
        """Clock each stage of whatever matcher the node loads."""
        load = node.load_localizer

        def loading(*arguments, **keywords):
            localizer = load(*arguments, **keywords)
            matcher, synchronize = localizer.matcher, lambda: None
            if str(matcher.device).startswith('cuda'):
                import torch
                synchronize = torch.cuda.synchronize
            self.clock(matcher, '_ground', 'forward', synchronize)
            self.clock(matcher, 'match', 'match', synchronize)
            self.clock(matcher, 'estimate', 'match')
            self.clock(localizer.filter, 'add_match', 'filter')
            self.clock(localizer.filter, 'estimate_at', 'filter')
            return localizer
        node.load_localizer = loading
        self.clock(EmbeddingMap, 'window', 'window')
        self.clock(SensorRig, 'camera_image', 'decode')
        self.clock(views, 'lifted_view', 'resize')
        self.clock(dense_matcher, 'ground_tensors', 'upload')
        self.clock(node.LocalizerNode, '_publish_localization', 'publish')


def main() -> int:
    path, spans = Path(sys.argv.pop(1)), Spans()
    spans.clock_matcher()
    spans.clock_images()
    result = node.main()
    path.write_text(json.dumps(spans.images))
    return result


if __name__ == '__main__':
    sys.exit(main())
