"""Finds the imagery that a report shows below a recorded run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from pathlib import Path

import cv2
import numpy as np

from crossview_localizer.bags.bag import BagError
from crossview_localizer.geometry import LocalFrame, MapGrid

# A map belongs to a recording if their origins are nearer than this.
SAME_FRAME_M = 0.5
OUTSIDE_GREY = 225

# Draws the imagery on a grid as rgb (rows, cols, 3) uint8.
Orthophoto = Callable[[MapGrid], np.ndarray]


@dataclass(frozen=True)
class Background:
    """Where ``map`` lies on Earth, and the imagery there; ``orthophoto`` is None without any."""

    frame: LocalFrame | None
    orthophoto: Orthophoto | None
    attribution: tuple[str, ...] = ()


def find_background(
    frame: LocalFrame | None, map_path: Path | None, imagery: Sequence[Path], recorded_map: str,
) -> tuple[Background, list[str]]:
    """Take the orthophoto of GeoTIFFs, of the map at ``map_path``, or of the node's own map.

    ``frame`` is that of the recording.  ``recorded_map`` is the path of the node's map in
    /diagnostics; if that file is gone or of another place, a note says so.  Returns the background
    and the notes.  Raises BagError if the map at ``map_path`` is of another place.
    """
    is_named, notes = map_path is not None, []
    if not is_named and recorded_map and Path(recorded_map).is_file():
        map_path = Path(recorded_map)
    background = Background(frame, None)
    if map_path is not None:
        try:
            background = _background_of_map(map_path, frame)
        except (ValueError, OSError) as error:
            if is_named:
                raise
            notes.append(f'the map that the node used is not shown: {error}')
    elif recorded_map:
        notes.append(f'the map {recorded_map} is not here: no orthophoto (give it with --map)')
    if imagery:
        if background.frame is None:
            raise BagError('the recording has no geopose: give --map to place the imagery')
        from crossview_localizer.maps.imagery import Imagery

        opened = Imagery.open(list(imagery), background.frame)
        background = Background(
            background.frame, lambda grid: opened.raster(grid)[0], opened.attribution)
    return background, notes


def _background_of_map(path: Path, frame: LocalFrame | None) -> Background:
    from crossview_localizer.maps.embedding_map import EmbeddingMap

    opened = EmbeddingMap.open(path)
    if frame is not None:
        apart_m = math.hypot(*opened.frame.xy_from_latlon(frame.latitude_deg, frame.longitude_deg))
        if not apart_m < SAME_FRAME_M:
            raise BagError(
                f'{path} has its origin {apart_m:.0f} m from that of the recording; expected the '
                'map that the node used')
    picture = opened.orthophoto()
    return Background(opened.frame, picture and orthophoto_of(*picture), opened.attribution)


def orthophoto_of(rgb: np.ndarray, grid: MapGrid) -> Orthophoto:
    """A function that draws a picture (rows, cols, 3), which lies on ``grid``, on other grids."""

    def draw(wanted: MapGrid) -> np.ndarray:
        # Resized first if the wanted cells are coarser, so that no pixel is skipped.
        factor = max(1.0, wanted.cell_m / grid.cell_m)
        size = max(1, round(grid.cols / factor)), max(1, round(grid.rows / factor))
        source = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        x_m, y_m = wanted.cell_centres()
        rows, _ = grid.row_col_from_xy(0.0, y_m)
        _, cols = grid.row_col_from_xy(x_m, 0.0)
        # Resizing keeps the outer edges: the centre of cell i moves to (i + 0.5) / factor - 0.5.
        rows = (rows + 0.5) * size[1] / grid.rows - 0.5
        cols = (cols + 0.5) * size[0] / grid.cols - 0.5
        map_cols, map_rows = np.meshgrid(cols.astype(np.float32), rows.astype(np.float32))
        return cv2.remap(source, map_cols, map_rows, cv2.INTER_LINEAR,
                         borderMode=cv2.BORDER_CONSTANT, borderValue=(OUTSIDE_GREY,) * 3)

    return draw
