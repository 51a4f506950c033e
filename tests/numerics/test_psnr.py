"""PSNR against scikit-image's, and by hand at its ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage import data, filters
from skimage.metrics import peak_signal_noise_ratio

from services.scorers.psnr import CAP_DB, Psnr, PsnrSettings
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem


def psnr(image: Pixels, *references: Pixels) -> Outcome:
    (outcome,) = Psnr("psnr", PsnrSettings(kind="psnr")).score([ScoreItem(image=image, references=references)])
    return outcome


def value(image: Pixels, reference: Pixels) -> float:
    outcome = psnr(image, reference)
    assert isinstance(outcome, Score)
    return outcome.value


def blurred(image: Pixels, sigma: float) -> Pixels:
    smooth: Pixels = np.rint(filters.gaussian(image, sigma, channel_axis=2) * 255).astype(np.uint8)
    return smooth


def test_photographs_and_their_blurs_score_as_in_scikit_image() -> None:
    astronaut = data.astronaut()
    others = [*(blurred(astronaut, sigma) for sigma in (0.5, 1, 2, 4)), astronaut[::-1], 255 - astronaut]
    expected = [peak_signal_noise_ratio(astronaut, other) for other in others]
    assert [value(other, astronaut) for other in others] == pytest.approx(expected, abs=1e-9)
    assert expected[:4] == sorted(expected[:4], reverse=True)
    assert value(astronaut, astronaut.copy()) == CAP_DB > max(expected)


def test_the_ends_of_the_range_by_hand() -> None:
    black, white = np.zeros((4, 5, 3), np.uint8), np.full((4, 5, 3), 255, np.uint8)
    assert value(black, white) == value(white, black) == 0.0
    assert value(black, black) == 100.0
    off = black.copy()
    off[0, 0, 0] = 1
    assert value(off, black) == pytest.approx(10 * math.log10(255**2 * 60))
    large = np.zeros((300, 300, 3), np.uint8)
    large[0, 0, 0] = 1  # 102.4 dB by the formula
    assert value(large, np.zeros_like(large)) == 100.0


def test_only_the_first_reference_counts_and_sizes_must_agree() -> None:
    image, other = data.astronaut()[:40, :60], data.astronaut()[40:80, :60]
    first = psnr(image, other, image)
    assert isinstance(first, Score)
    assert first.value < 50
    turned = psnr(image, np.ascontiguousarray(image.transpose(1, 0, 2)), image)
    assert isinstance(turned, ScoreFailure)
    assert turned.code == "invalid_item"
    assert turned.message.startswith("60 x 40 pixels against a reference of 40 x 60; PSNR needs equal sizes")
