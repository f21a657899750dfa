"""Where the tiles of a map lie, for the tests of maps."""

import numpy as np

from crossview_localizer.maps.embedding_map import EmbeddingMap


def tile_xy_m(embedding_map: EmbeddingMap) -> np.ndarray:
    """The centre of each tile in ``map``, (T, 2), in the order of the descriptors in memory."""
    index = embedding_map.tiles.index
    row, col = np.nonzero(index >= 0)
    centres_m = np.empty((len(row), 2))
    centres_m[index[row, col]] = np.stack(embedding_map.grid.xy_from_row_col(row, col), axis=1)
    return centres_m
