"""What measures the package; nothing imports it but its tests."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
