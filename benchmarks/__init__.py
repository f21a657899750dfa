"""Benchmarks of the package; only their tests import them."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
