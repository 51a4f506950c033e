"""Dense validity: which share of a long prompt's segments does the image show? UnifyBench++ (Sync-R1, app. C).

The prompt is split at punctuation, a judge says of each segment whether the image shows it, and the value is the
mean. Where the paper is silent: punctuation counts where white space or the end follows it, so that "3.5" stays whole;
concept tokens become their class word first; a segment without a verdict makes the whole item fail, since a mean over
the others would be another measure. A prompt has at most MAX_SEGMENTS segments, each of which is a question.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

from services.models.settings import JudgeEndpoint
from services.models.types import Question, TrueFalse, Verdict
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.shared.image_text import no_text_failure, to_plain_text
from services.scorers.shared.verdicts import Asked, question
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem, SynodError
from synod.images import encode_png

RUBRIC: Final = "Does the picture show this? It counts only if all of it is there, as it is said: {prompt}"
MAX_SEGMENTS: Final = 64  # of a prompt; as many as a reasoning may have
_BREAK: Final = re.compile(r"[,.;:!?]+(?=\s|$)|[\u3001\u3002\uff0c\uff1b\uff1a\uff01\uff1f]+|\n+")


class DenseValiditySettings(JudgeEndpoint):
    """The share of a prompt's segments that a judge sees in the image (UnifyBench++)."""

    kind: Literal["dense_validity"]


def spec(name: str, settings: DenseValiditySettings) -> ScorerSpec:
    summary = "the share of the prompt's segments that the image shows, by a judge"
    return ScorerSpec(name, ("image", "prompt"), 0.0, 1.0, "Sync-R1, app. (UnifyBench++)", summary)


def build(name: str, settings: DenseValiditySettings) -> Scorer:
    from services.models.judge import load

    return DenseValidity(name, load(settings), settings)


class DenseValidity:
    def __init__(self, name: str, judge: Asked, settings: DenseValiditySettings) -> None:
        self.spec = spec(name, settings)
        self._judge = judge

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        parts = [segments(to_plain_text(item.prompt or "", item.concept)) for item in items]
        questions = [_questions(item, of_item) for item, of_item in zip(items, parts, strict=True)]
        answers = iter(self._judge.ask_all([one for of_item in questions for one in of_item]))
        return [
            _mean(of_item, [next(answers) for _ in of_item]) if asked else _unasked(item, of_item)
            for item, of_item, asked in zip(items, parts, questions, strict=True)
        ]


def segments(prompt: str) -> list[str]:
    """Return the parts between punctuation that contain a letter or digit."""
    return [part.strip() for part in _BREAK.split(prompt) if any(map(str.isalnum, part))]


def _questions(item: ScoreItem, parts: Sequence[str]) -> list[Question]:
    """Return a question for each segment of an item, with one PNG for all; none for an item that cannot be scored."""
    if not 0 < len(parts) <= MAX_SEGMENTS:
        return []
    png = encode_png(item.pixels())
    return [question(ScoreItem(prompt=part), png, RUBRIC, TrueFalse()) for part in parts]


def _unasked(item: ScoreItem, parts: Sequence[str]) -> ScoreFailure:
    """Return the failure of an item without questions."""
    if not parts:
        return no_text_failure(item.prompt)
    reason = f"the prompt has {len(parts)} segments, the limit is {MAX_SEGMENTS}"
    return ScoreFailure.of(InvalidItem(f"{reason}; shorten it, or send several items"))


def _mean(parts: Sequence[str], answers: Sequence[Verdict | SynodError]) -> Outcome:
    found = [answer for answer in answers if isinstance(answer, Verdict)]
    for answer in answers:
        if isinstance(answer, SynodError):
            missing = f"{len(answers) - len(found)} of {len(answers)} segments have no verdict"
            return ScoreFailure(answer.code, f"{missing}; the first: {answer.message}", answer.retryable)
    detail = [
        {"segment": part, "valid": bool(answer.value), "reason": answer.reason}
        for part, answer in zip(parts, found, strict=True)
    ]
    value = sum(answer.value for answer in found) / len(found)
    return Score(value, {"segments": detail, "tokens": sum(answer.tokens for answer in found)})
