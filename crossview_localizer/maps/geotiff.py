"""GeoTIFFs that are whole or absent, also where the disk is full."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from crossview_localizer.files import write_atomically


@contextmanager
def new_geotiff(
    path: Path, tags: dict[str, str] | None = None, **profile,
) -> Iterator[Callable[[np.ndarray, Window], None]]:
    """Yield a function that writes pixels (B, H, W) to a window; windows must not overlap.

    GDAL does not say that the disk is full while it closes a file. So all windows are read again:
    raises OSError if they do not hold what was written to them.
    """
    written = []
    with write_atomically(path) as writing:
        with rasterio.open(writing, 'w', driver='GTiff', **profile) as file:
            file.update_tags(**(tags or {}))

            def write(pixels: np.ndarray, window: Window) -> None:
                try:
                    file.write(pixels, window=window)
                except RasterioError as error:
                    raise _incomplete(path) from error
                written.append((window, crc32(np.ascontiguousarray(pixels))))

            yield write
        if not _holds(writing, written):
            raise _incomplete(path)


def _incomplete(path: Path) -> OSError:
    return OSError(f'{path} could not be written whole; expected room on the disk: free some, and '
                   'run the same command again')


def _holds(path: Path, written: list[tuple[Window, int]]) -> bool:
    """Whether the windows of a file have these check sums."""
    try:
        with rasterio.open(path) as file:
            return all(crc32(file.read(window=window)) == check for window, check in written)
    except RasterioError:
        return False
