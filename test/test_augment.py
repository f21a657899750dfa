"""Changes of training pictures: what they may take away and what they leave."""

import numpy as np
import pytest

from training.recipes.augment import changed

GRASS, ROAD = (80, 130, 60), (110, 110, 112)


def picture() -> np.ndarray:
    """A road between lawns (60, 90, 3)."""
    rgb = np.full((60, 90, 3), GRASS, np.uint8)
    rgb[:, 30:60] = ROAD
    return rgb


def share_of_greener_lawns(any_colours: bool) -> float:
    """The share of 60 changed pictures in which the lawns are greener than the road."""
    greener = 0
    for seed in range(60):
        rgb = changed(picture(), np.random.default_rng(seed), 1.2, any_colours).astype(float)
        greenness = rgb[..., 1] - (rgb[..., 0] + rgb[..., 2]) / 2
        greener += greenness[:, :25].mean() > greenness[:, 35:55].mean()
    return greener / 60


def test_lawns_stay_greener_than_the_road_unless_any_colours_are_allowed():
    assert share_of_greener_lawns(any_colours=False) == 1.0
    assert share_of_greener_lawns(any_colours=True) < 0.8


@pytest.mark.parametrize('any_colours', (False, True))
def test_a_change_follows_from_its_random_generator_and_leaves_its_input(any_colours):
    rgb = picture()
    one, again, other = (
        changed(rgb, np.random.default_rng(seed), 1.2, any_colours) for seed in (3, 3, 4))
    assert np.array_equal(rgb, picture())
    assert one.shape == rgb.shape and one.dtype == np.uint8
    assert np.array_equal(one, again) and not np.array_equal(one, other)
