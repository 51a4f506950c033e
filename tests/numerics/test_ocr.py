"""The rule by hand, the edit distance against its definition, and the real engine on drawn text."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from skimage import data

from services.models import rapid_ocr
from services.scorers.ocr import Ocr, OcrSettings, build, edit_distance, normalised, quoted
from synod.contracts import Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import SettingsError

BLANK = np.zeros((4, 4, 3), np.uint8)
SETTINGS = OcrSettings(kind="ocr")


def defined(a: str, b: str) -> int:
    """Levenshtein's recursion as it is defined."""

    @cache
    def at(i: int, j: int) -> int:
        if not (i and j):
            return i + j
        return min(at(i - 1, j) + 1, at(i, j - 1) + 1, at(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return at(len(a), len(b))


def test_the_edit_distance_is_levenshteins() -> None:
    draw = random.Random(3)
    words = ["", "a", "kitten", "sitting", "straße", "文字ab"]
    words += ["".join(draw.choices("abc", k=draw.randrange(9))) for _ in range(30)]
    for a in words:
        for b in words:
            assert edit_distance(a, b) == defined(a, b), (a, b)
    assert edit_distance("kitten", "sitting") == 3


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('a sign that says "Open 24h" at night', "Open 24h"),
        ("a sign that says 'Open 24h' at night", "Open 24h"),
        ("a sign that says “Open” or \u2018Shut\u2019", "Open"),
        ("a sign that says \u2018Open\u2019", "Open"),
        ('"one" and "two"', "one"),
        ("the dog's 'don't walk' sign", "don't walk"),
        ("the dogs' bowl and the cats' bed", None),
        ("'single' before \"double\"", "double"),
        ('an empty "" says nothing', None),
        ("a sign", None),
    ],
)
def test_what_a_prompt_quotes(prompt: str, expected: str | None) -> None:
    assert quoted(prompt) == expected


def test_normalised_text_has_one_case_one_form_and_no_space() -> None:
    assert normalised("  \uff28ello \n World\tSTRASSE") == normalised("hello worldstraße") == "helloworldstrasse"
    assert normalised("\ufb01ne") == "fine"  # a ligature


class FixedReader:
    """Returns fixed texts and counts the images that it was given."""

    def __init__(self, *lines: list[str]) -> None:
        self.lines, self.asked = list(lines), 0

    def read(self, images: Sequence[Pixels]) -> list[list[str]]:
        self.asked += len(images)
        return self.lines[: len(images)]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["Hello", "World"], 1.0),
        (["xx HELLO world yy"], 1.0),  # it stands in what is read
        (["Helo World"], 0.9),
        (["Hallo", "Welt"], 0.6),  # a to e, e to o, insert r, t to d
        ([], 0.0),
        (["z" * 500], 0.0),  # never below 0
    ],
)
def test_the_score_by_hand(lines: list[str], expected: float) -> None:
    (outcome,) = Ocr("ocr", FixedReader(lines), SETTINGS).score([ScoreItem(image=BLANK, prompt='"Hello World"')])
    assert isinstance(outcome, Score)
    assert outcome.value == pytest.approx(expected)
    assert outcome.detail["lines"] == lines


def test_a_prompt_that_quotes_nothing_fails_alone_and_unread() -> None:
    reader = FixedReader(["cat"], ["dog"])
    prompts = ('"cat"', "a cat", '" "', '"dog"')
    outcomes = Ocr("ocr", reader, SETTINGS).score([ScoreItem(image=BLANK, prompt=prompt) for prompt in prompts])
    assert [one.value for one in outcomes if isinstance(one, Score)] == [1.0, 1.0]
    assert [type(one) for one in outcomes] == [Score, ScoreFailure, ScoreFailure, Score]
    assert isinstance(outcomes[1], ScoreFailure)
    assert outcomes[1].code == "invalid_item"
    assert "'a cat'" in outcomes[1].message
    assert reader.asked == 2


def written(text: str, blur: float = 0.0) -> Pixels:
    image = Image.new("RGB", (420, 120), (250, 240, 220))
    ImageDraw.Draw(image).text((20, 34), text, (20, 30, 90), ImageFont.load_default(size=44))
    return np.array(image.filter(ImageFilter.GaussianBlur(blur)))


def test_the_engine_reads_drawn_words_and_no_photograph() -> None:
    pytest.importorskip("rapidocr", reason="the extra 'ocr' is not installed")
    subject = build("ocr", SETTINGS)
    images = (written("Reward 42"), written("Reward 47"), written("Reward 42", blur=14), data.cat()[:200, :300], BLANK)
    outcomes = subject.score([ScoreItem(image=image, prompt='a sign, "Reward 42"') for image in images])
    values = [one.value for one in outcomes if isinstance(one, Score)]
    assert values == [1.0, pytest.approx(7 / 8), 0.0, 0.0, 0.0]


def test_without_the_package_the_error_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    rapid_ocr.load.cache_clear()
    with pytest.raises(SettingsError, match=r"needs the package rapidocr: pip install .*\[ocr\]"):
        build("ocr", SETTINGS)
