"""From a frame and a map window to a heat map, a pose, and whether to believe it."""
