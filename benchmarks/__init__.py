"""Benchmarks of the package; only their tests import them."""

from pathlib import Path
import platform

REPOSITORY = Path(__file__).resolve().parent.parent
# The shipped weights of the dense matcher and of the tile matcher.
DENSE_WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'
TILE_WEIGHTS = REPOSITORY / 'config/weights/crossview_safa_synthetic.safetensors'


def cpu_name() -> str:
    """The name of the processor of this machine, for the results."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor()
