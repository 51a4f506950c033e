"""Ten distinct colours, and backdrops with none of them."""

from __future__ import annotations

import colorsys
import math
from itertools import combinations

import numpy as np
import pytest

from embedded import world
from embedded.world.palette import TINTS, detail, jitter, nearest


def test_color_names_and_order_are_genevals():
    order = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]
    assert list(world.COLORS) == order


def test_colors_are_far_from_each_other():
    assert min(math.dist(a, b) for a, b in combinations(world.COLORS.values(), 2)) > 90


@pytest.mark.parametrize("tint", TINTS)
def test_tints_are_muted(tint):
    _, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in tint))
    assert saturation < 0.15
    assert 0.6 < value < 0.85
    assert min(math.dist(tint, color) for color in world.COLORS.values()) > 60


@pytest.mark.parametrize("name", world.COLORS)
def test_shades_keep_their_name(name):
    rng = np.random.default_rng(1)
    assert {nearest(jitter(world.COLORS[name], rng)) for _ in range(300)} == {name}
    if name == "black":  # its details are a dark grey, which plain RGB distance puts next to brown
        _, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in detail(world.COLORS[name])))
        assert saturation < 0.1
        assert value < 0.3
    else:
        assert nearest(detail(world.COLORS[name])) == name


def test_places_are_distinguishable():
    """Places differ in their mean tone, so that a caption with another place is visibly false."""
    placed = world.Placed(world.Entity("ball", "red"), 32, 32, 20)

    def backdrop(place: str) -> np.ndarray:
        scene = world.Scene((placed,), world.Backdrop(0, None, 44.0, place))
        drawn = world.render(scene, np.random.default_rng(0))
        return drawn.image[drawn.labels == 0].mean(0)

    tones = [backdrop(place) for place in world.PLACES]
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(tones, 2)) > 8
