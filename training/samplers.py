"""Which images are seen together in a training step: geographically local groups."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LocalGroup:
    """Images of one world near one place; ``centre_m`` (2,) is the satellite area's middle."""

    world: int
    centre_m: np.ndarray
    members: np.ndarray


class LocalGroupSampler:
    """An epoch of local groups: every image is once the centre, its companions are near.

    ``positions`` holds, a world, the images' (N, 2) metres.  A group's companions are drawn from
    the images within ``half_width_m`` of the jittered centre on both axes; a place with fewer than
    ``size`` images gives a smaller group, never fewer than two.
    """

    def __init__(self, positions: list[np.ndarray], size: int, half_width_m: float,
                 jitter_m: float):
        self.positions = positions
        self.size = size
        self.half_width_m = half_width_m
        self.jitter_m = jitter_m
        self._starts = [(w, k) for w, xy in enumerate(positions) for k in range(len(xy))]

    def __len__(self) -> int:
        return len(self._starts)

    def epoch(self, seed: int):
        """Yield the groups of one epoch; the same seed gives the same groups."""
        rng = np.random.default_rng(seed)
        for start in rng.permutation(len(self._starts)):
            world, image = self._starts[start]
            xy = self.positions[world]
            centre_m = xy[image] + rng.uniform(-self.jitter_m, self.jitter_m, 2)
            near = np.flatnonzero((np.abs(xy - centre_m) <= self.half_width_m).all(1))
            others = near[near != image]
            if len(others) == 0:
                continue
            chosen = rng.permutation(others)[:self.size - 1]
            yield LocalGroup(world, centre_m, np.concatenate(([image], chosen)))
