"""What holds for photographs under any weights: an image is like itself, noise and blur have their order, the real
face is found wherever it stands, and words are read off a photograph."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from facenet_pytorch import MTCNN
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

from services.scorers.base import Scorer, score_batch
from synod.contracts import Pixels, Score, ScoreFailure, ScoreItem
from tests.building import build

Photographs = dict[str, Pixels]
NAMES = ("astronaut", "cat", "coffee", "rocket", "motorcycle", "galaxies", "retina", "tissue")


def scored(subject: Scorer, *items: ScoreItem) -> list[Score]:
    outcomes = score_batch(subject, items)
    assert all(isinstance(outcome, Score) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, Score)]


def values(subject: Scorer, *items: ScoreItem) -> list[float]:
    return [score.value for score in scored(subject, *items)]


def noisy(image: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(5).normal(0, sigma, image.shape)
    return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)


def blurred(image: Pixels, sigma: float) -> Pixels:
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))


@pytest.fixture
def facenet(tiny_models: Any) -> Scorer:
    embedder = {"family": "facenet", "weights": tiny_models.facenet}
    return build(kind="fer", finder={"family": "mtcnn"}, embedder=embedder)


@pytest.mark.parametrize("name", NAMES)
def test_psnr_falls_with_noise_and_with_blur(photographs: Photographs, name: str) -> None:
    image = photographs[name]
    for changed in (noisy, blurred):
        ladder = [image.copy(), *(changed(image, sigma) for sigma in (1, 2, 4, 8, 16))]
        found = values(build(kind="psnr"), *(ScoreItem(image=one, references=(image,)) for one in ladder))
        assert found[0] == 100.0
        assert found == sorted(set(found), reverse=True)
    by_hand = 10 * np.log10(255**2 / np.mean((noisy(image, 4).astype(float) - image) ** 2))
    assert values(build(kind="psnr"), ScoreItem(image=noisy(image, 4), references=(image,))) == [
        pytest.approx(by_hand, abs=1e-9)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_jpeg_grows_with_noise_and_shrinks_with_blur(photographs: Photographs, name: str) -> None:
    image = photographs[name]
    ladder = [blurred(image, 4), blurred(image, 1), image, noisy(image, 16), noisy(image, 48)]
    items = [ScoreItem(image=one) for one in ladder]
    sizes = values(build(kind="jpeg", direction="incompressibility"), *items)
    assert sizes == sorted(set(sizes))
    assert values(build(kind="jpeg", direction="compressibility"), *items) == pytest.approx([-s / 500 for s in sizes])


@pytest.mark.parametrize("kind", ["clip_i", "clip_i_open", "der"])
def test_a_photograph_is_most_similar_to_itself_then_its_noise(
    tiny_models: Any, photographs: Photographs, kind: str
) -> None:
    tree: dict[str, Any] = {
        "clip_i": {"kind": "clip_i", "model": {"family": "transformers", "model": tiny_models.clip}},
        "clip_i_open": {"kind": "clip_i", "model": {"family": "open_clip", "model": tiny_models.open_clip}},
        "der": {"kind": "der", "model": tiny_models.dinov2},
    }[kind]
    images = [photographs[name] for name in NAMES]
    items = [ScoreItem(image=a, references=(b.copy(),)) for a in images for b in images]
    subject = build(**tree)
    cosines = np.reshape(values(subject, *items), (len(NAMES), -1))
    assert np.diag(cosines) == pytest.approx(1.0, abs=1e-5)
    assert cosines.max() <= 1.0
    assert cosines == pytest.approx(cosines.T, abs=1e-5), "who is the reference does not count"
    near = values(subject, *(ScoreItem(image=noisy(one, 2), references=(one,)) for one in images))
    others = np.where(np.eye(len(NAMES), dtype=bool), -1.0, cosines).max(axis=1)
    assert np.all(others < near)
    assert np.all(np.array(near) < 1.0)


def test_the_astronauts_face_is_the_only_one(facenet: Scorer, photographs: Photographs) -> None:
    astronaut = photographs["astronaut"]
    found = scored(facenet, *(ScoreItem(image=photographs[name], references=(astronaut.copy(),)) for name in NAMES))
    assert found[0].value == pytest.approx(1.0, abs=1e-5)
    assert found[0].value <= 1.0
    assert found[0].detail["box"] == pytest.approx([51, 24, 85, 68], abs=4)
    theirs, _ = MTCNN().detect(Image.fromarray(astronaut))
    assert found[0].detail["box"] == pytest.approx(theirs[0].tolist(), abs=0.01)
    assert [one.detail["box"] for one in found[1:]] == [None] * 7
    assert {one.value for one in found[1:]} == {0.0}
    (refused,) = score_batch(facenet, [ScoreItem(image=astronaut, references=(astronaut, photographs["cat"]))])
    assert isinstance(refused, ScoreFailure)
    assert refused.code == "no_reference_face"


@pytest.mark.parametrize(("left", "top"), [(0, 0), (440, 200), (3, 197)])
def test_a_face_is_found_wherever_it_stands(facenet: Scorer, photographs: Photographs, left: int, top: int) -> None:
    """The portrait stands in the coffee's photograph: its box moves along, and its embedding stays."""
    portrait, scene = photographs["astronaut"], data.coffee()
    height, width, _ = portrait.shape
    scene[top : top + height, left : left + width] = portrait
    alone, placed = scored(facenet, *(ScoreItem(image=one, references=(portrait,)) for one in (portrait, scene)))
    moved = [edge + offset for edge, offset in zip(alone.detail["box"], (left, top, left, top), strict=True)]
    assert placed.detail["box"] == pytest.approx(moved, abs=4)
    assert placed.value > 0.95
    assert placed.detail["reference_boxes"] == [alone.detail["box"]]


def test_words_over_a_photograph_are_read() -> None:
    pytest.importorskip("rapidocr", reason="the extra 'ocr' is not installed")
    subject = build(kind="ocr")
    for photograph in (data.coffee(), data.rocket(), data.cat()):
        canvas = Image.fromarray(photograph)
        ImageDraw.Draw(canvas).text(
            (30, 40), "Open 24h", "white", ImageFont.load_default(size=56), stroke_width=4, stroke_fill="black"
        )
        written = np.array(canvas)
        asked = [(written, "Open 24h"), (written, "Open 25h"), (written, "Zzz"), (photograph, "Open 24h")]
        found = values(subject, *(ScoreItem(image=image, prompt=f'a sign, "{text}"') for image, text in asked))
        assert found == [1.0, pytest.approx(6 / 7), 0.0, 0.0]
