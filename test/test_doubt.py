"""How much wider the pose is published while a measurement contradicts it."""

import math

import numpy as np
import pytest

from crossview_localizer.fusion.doubt import beyond, doubt_of, turned_rad


def test_of_a_residual_counts_the_more_the_farther_it_is_beyond_the_limit():
    residual_m = np.array([6.0, 8.0])
    assert beyond(residual_m, 9.0, 9.0) == pytest.approx([0.0, 0.0])
    assert beyond(residual_m, 16.0, 9.0) == pytest.approx([3.0, 4.0])
    assert beyond(residual_m, 36.0, 9.0) == pytest.approx([6.0, 8.0])
    assert beyond(residual_m, 90.0, 9.0) == pytest.approx([6.0, 8.0])


def test_a_heading_that_is_off_by_a_right_angle_strays_by_the_chord():
    assert turned_rad(50.0 * math.sqrt(2.0), 0.0, 50.0) == pytest.approx(math.pi / 2)
    assert turned_rad(200.0, 0.0, 50.0) == pytest.approx(math.pi)
    assert turned_rad(3.0, 4.0, 50.0) == 0.0


def test_an_offset_is_one_sigma_along_itself():
    doubt = doubt_of(np.array([3.0, 4.0]), 0.5)
    assert doubt[:2, :2] @ [0.6, 0.8] == pytest.approx([15.0, 20.0])
    assert doubt[:2, :2] @ [-0.8, 0.6] == pytest.approx([0.0, 0.0])
    assert doubt[2] == pytest.approx([0.0, 0.0, 0.25])
    assert doubt_of(np.zeros(2)) is None
