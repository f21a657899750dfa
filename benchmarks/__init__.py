"""Benchmarks of the package; only their tests import them."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
# The shipped weights of the dense matcher and of the tile matcher.
DENSE_WEIGHTS = REPOSITORY / 'config/weights/crossview_dense_synthetic.safetensors'
TILE_WEIGHTS = REPOSITORY / 'config/weights/crossview_safa_synthetic.safetensors'
