"""OCR: does the image carry the text that the prompt quotes? 1 - min(1, d / n), in [0, 1].

d is the edit distance (Levenshtein 1966) of what is read to the n characters that are wanted, 0 where they stand in it:
the rule of flow_grpo (Liu et al. 2025, section 5). Both are normalised first: NFKC, case folded, no white space.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Literal, Protocol

import numpy as np

from services.scorers.base import ScorerSpec
from services.settings_types import ScorerSettings
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

# double quotes before single ones, which are apostrophes too: those inside or at the end of a word open nothing
QUOTES: Final = (
    *(r'"([^"]+)"', r"\u201c([^\u201d]+)\u201d"),
    *(r"(?<!\w)'(.+?)'(?!\w)", r"(?<!\w)\u2018(.+?)\u2019(?!\w)"),
)


class Reader(Protocol):
    def read(self, images: Sequence[Pixels]) -> list[list[str]]:
        """Return the lines of text in each image, from the top."""
        ...


class OcrSettings(ScorerSettings):
    """OCR against the text that the prompt quotes; needs the extra `ocr`."""

    kind: Literal["ocr"]


def spec(name: str, settings: OcrSettings) -> ScorerSpec:
    summary = "the text in the image against the one that the prompt quotes"
    return ScorerSpec(name, ("image", "prompt"), 0.0, 1.0, "Liu et al. 2025, Flow-GRPO, section 5", summary)


def build(name: str, settings: OcrSettings) -> Ocr:
    """Load the models. Raises SettingsError when the engine is not installed."""
    from services.models import rapid_ocr

    return Ocr(name, rapid_ocr.load(settings.serving.threads or 1), settings)


class Ocr:
    def __init__(self, name: str, reader: Reader, settings: OcrSettings) -> None:
        self.spec = spec(name, settings)
        self._reader = reader

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        wanted = [quoted(item.prompt or "") for item in items]
        usable = [i for i, text in enumerate(wanted) if normalised(text or "")]
        lines = dict(zip(usable, self._reader.read([items[i].pixels() for i in usable]), strict=True)) if usable else {}
        return [
            _one(lines[i], text) if i in lines and text else _unquoted(item.prompt)
            for i, (item, text) in enumerate(zip(items, wanted, strict=True))
        ]


def quoted(prompt: str) -> str | None:
    """Return the first text in double quotes (straight before curly), else in single quotes; None without any."""
    found = (re.search(pattern, prompt) for pattern in QUOTES)
    return next((match[1] for match in found if match), None)


def normalised(text: str) -> str:
    """Return the text in NFKC, case folded, without white space."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def edit_distance(a: str, b: str) -> int:
    """Return the fewest insertions, deletions and substitutions from `a` to `b`. O(len(a)) steps on rows."""
    columns = np.arange(len(b) + 1)
    letters = np.array(list(b), dtype="<U1")
    row = columns
    for letter in a:
        best = row + 1  # delete the letter
        best[1:] = np.minimum(best[1:], row[:-1] + (letters != letter))  # or keep or replace it
        row = np.minimum.accumulate(best - columns) + columns  # then insert
    return int(row[-1])


def _one(lines: Sequence[str], text: str) -> Score:
    found, wanted = normalised("".join(lines)), normalised(text)
    distance = 0 if wanted in found else min(edit_distance(found, wanted), len(wanted))
    return Score(1 - distance / len(wanted), {"lines": list(lines), "wanted": text, "distance": distance})


def _unquoted(prompt: str | None) -> ScoreFailure:
    reason = "the prompt quotes no text; put the words that the image should carry in quotes"
    return ScoreFailure.of(InvalidItem(f"{reason}: {prompt!r}"))
