"""JPEG sizes against libjpeg-turbo's own command, on photographs and noise."""

from __future__ import annotations

import io
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from skimage import data, filters

from services.scorers import jpeg
from services.scorers.jpeg import Jpeg, JpegSettings, kilobytes
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem


def scored(direction: str, *images: Pixels, **settings: float) -> list[Outcome]:
    tree = {"kind": "jpeg", "direction": direction, **settings}
    return Jpeg("jpeg", JpegSettings.model_validate(tree)).score([ScoreItem(image=image) for image in images])


def values(direction: str, *images: Pixels, **settings: float) -> list[float]:
    return [outcome.value for outcome in scored(direction, *images, **settings) if isinstance(outcome, Score)]


def noisy(image: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(5).normal(0, sigma, image.shape)
    clipped: Pixels = np.clip(image + noise, 0, 255).astype(np.uint8)
    return clipped


@pytest.mark.skipif(shutil.which("cjpeg") is None, reason="cjpeg is not installed (Debian: libjpeg-turbo-progs)")
@pytest.mark.parametrize("sigma", [0.0, 20.0])
@pytest.mark.parametrize("name", ["astronaut", "coffee", "cat"])
def test_the_size_is_cjpegs(name: str, sigma: float) -> None:
    image = noisy(getattr(data, name)(), sigma)
    ppm = io.BytesIO()
    Image.fromarray(image).save(ppm, "PPM")
    done = subprocess.run(["cjpeg", "-quality", "95"], input=ppm.getvalue(), capture_output=True, check=True)
    assert kilobytes(image) == pytest.approx(len(done.stdout) / 1000, rel=0.02)


def test_noise_grows_the_file_and_blur_shrinks_it() -> None:
    photograph = data.astronaut()
    blurred = (filters.gaussian(photograph, 3, channel_axis=2) * 255).astype(np.uint8)
    ladder = [np.full_like(photograph, 127), blurred, *(noisy(photograph, sigma) for sigma in (0, 4, 8, 16, 32, 64))]
    sizes = values("incompressibility", *ladder)
    assert sizes == sorted(set(sizes))
    assert values("compressibility", *ladder) == pytest.approx([-size / 500 for size in sizes])


def test_larger_file_counts_as_the_end_of_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "MAX_KB", 50.0)
    large, small = data.astronaut(), np.zeros((8, 8, 3), np.uint8)
    kept = scored("incompressibility", large, small)
    assert isinstance(kept[0], Score)
    assert isinstance(kept[1], Score)
    assert kept[0].value == 50.0
    assert kept[0].detail["kb"] == kilobytes(large) > 50
    assert kept[1].value == kept[1].detail["kb"] < 1
    assert values("compressibility", large) == [-0.1]


def test_a_side_beyond_jpegs_own_limit_is_no_score() -> None:
    wide, good = scored("compressibility", np.zeros((1, 65_501, 3), np.uint8), np.zeros((1, 65_500, 3), np.uint8))
    assert isinstance(wide, ScoreFailure)
    assert (wide.code, wide.message) == ("invalid_item", "65501 x 1 pixels; a JPEG has at most 65500 a side")
    assert isinstance(good, Score)
