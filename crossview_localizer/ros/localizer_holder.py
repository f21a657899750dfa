"""The node's Localizer: with its map, without one, and on the CPU once the GPU has failed."""

from collections.abc import Callable
import ctypes
import math
from pathlib import Path
import re

from ament_index_python.packages import get_package_share_directory, PackageNotFoundError
import cv2

from crossview_localizer.config import LocalizerConfig, NodeConfig
from crossview_localizer.geometry import LocalFrame
from crossview_localizer.localizer import load_localizer, Localizer
from crossview_localizer.ros import remedies
from crossview_localizer.ros.status import Level, Status

# Errors of torch and ONNX Runtime if the GPU is out of memory, or lost to the process.
GPU_FAILURE = re.compile(
    r'CUDA (error|failure|driver error|out of memory)|CU(DNN|BLAS|SOLVER|FFT)_STATUS')
GPU_FAILURE_TYPES = ('OutOfMemoryError', 'AcceleratorError')  # of torch, which may be missing
NO_MAP_FRAME = 'waiting for GNSS fixes that agree, to place the map frame'


class LocalizerHolder:
    """Makes the Localizer and holds it as ``localizer``; None until a map or fixes place it.

    ``has_map`` says whether the map places the frame `map`.  Methods that load the map return the
    line of /diagnostics about it.
    """

    def __init__(self, node_config: NodeConfig, config: LocalizerConfig,
                 report: Callable[[str], object] = print):
        self.localizer: Localizer | None = None
        self.has_map = False
        self._node_config = node_config
        self._config = config
        self._report = report  # prints what takes long
        self._device = ''
        self._values: dict[str, object] = {}

    def load_map(self) -> Status:
        """Open map and network; if that fails there is no Localizer yet."""
        if not self._node_config.map_path:
            return Status(
                'map', Level.WARN, 'no map_path is set: the prior alone is published',
                remedy=remedies.MAP)
        # torch loads only where a network runs.
        from crossview_localizer.networks.checkpoint import prepare_torch
        threads = self._node_config.torch_threads
        cv2.setNumThreads(threads)
        self._device, warning = prepare_torch(self._node_config.device, threads)
        self._values = {'map_path': self._node_config.map_path, 'device': self._device}
        try:
            self._values['weights'] = self._node_config.weights_path or shipped_weights()
            self.localizer = self._open_map()
        except Exception as error:  # a broken file, or torch, must not take the prior with it
            problem = str(error) or type(error).__name__
            return Status(
                'map', Level.ERROR, f'{problem}; the prior alone is published', self._values,
                remedies.MAP)
        return_free_memory()
        self._values['tiles'] = len(self.localizer.embedding_map.tiles)
        self.has_map = True
        if warning:
            return Status('map', Level.WARN, warning, self._values, remedies.GPU)
        return Status('map', Level.OK, 'loaded', self._values)

    def make_without_map(self, origin_deg: tuple[float, float]) -> None:
        """Make a Localizer without a matcher; `map` is a plane about this latitude, longitude."""
        self.localizer = Localizer(self._config, LocalFrame(*origin_deg))

    def distance_from_map_m(self, x_m: float, y_m: float) -> float:
        """The distance of a point from the rectangle about the map; 0 inside, or without a map."""
        embedding_map = self.localizer.embedding_map
        if embedding_map is None:
            return 0.0
        west_m, south_m, east_m, north_m = embedding_map.grid.bounds_m
        return math.hypot(max(west_m - x_m, 0.0, x_m - east_m),
                          max(south_m - y_m, 0.0, y_m - north_m))

    def replace_failed_gpu(self, error: Exception) -> Status | None:
        """Load map and network on the CPU where an error says that the GPU failed, else None.

        The CPU is used from then on: a GPU that is out of memory, or lost, does not come back to
        a running process.
        """
        if self._device != 'cuda' or not is_gpu_failure(error):
            return None
        self._device = 'cpu'
        self._values = self._values | {'device': 'cpu'}
        text = f'{type(error).__name__} on the GPU'
        try:
            replacement = self._open_map()
        except (ValueError, OSError, RuntimeError, MemoryError) as second:
            self.localizer.use_matcher(None, None)
            return Status(
                'map', Level.ERROR, f'{text}, and on the CPU: {second}; the prior alone is '
                'published', self._values, remedies.GPU)
        self.localizer.use_matcher(replacement.matcher, replacement.embedding_map)
        return Status(
            'map', Level.WARN, f'{text}: running on the CPU since then', self._values,
            remedies.GPU)

    def _open_map(self) -> Localizer:
        config = self._node_config
        return load_localizer(
            config.map_path, self._values['weights'], self._config, self._device,
            onnx_path=config.onnx_path, threads=config.torch_threads, precision=config.precision,
            report=self._report)


def return_free_memory() -> None:
    """Return to the system the memory that only loading needed (30 MB), if the C library can."""
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)


def is_gpu_failure(error: Exception) -> bool:
    """Whether an error says that the GPU failed, rather than the code that runs on it."""
    return type(error).__name__ in GPU_FAILURE_TYPES or bool(GPU_FAILURE.search(str(error)))


def shipped_weights() -> str:
    """The weights that come with the package, installed or in a source tree."""
    try:
        share = Path(get_package_share_directory('crossview_localizer'))
    except PackageNotFoundError:
        share = Path(__file__).resolve().parents[2]
    folder = share / 'config' / 'weights'
    found = sorted(folder.glob('*.safetensors'))
    if not found:
        raise ValueError(f'no weights in {folder}; set the parameter weights_path')
    return str(found[0])
