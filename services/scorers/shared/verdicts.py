"""Shared by scorers that ask a judge: questions from a rubric, and outcomes from verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from services.models.types import Completion, Form, Graded, Question, Reply, Verdict
from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import to_plain_text
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import SynodError
from synod.images import encode_png


class Asked(Protocol):
    def ask_all(self, questions: Sequence[Question]) -> list[Verdict | SynodError]: ...


class Completing(Protocol):
    def complete_all(self, completions: Sequence[Completion]) -> list[Reply | SynodError]: ...


class Grader:
    """Asks a judge for one grade an image. `{prompt}` in the rubric stands for the prompt."""

    def __init__(self, spec: ScorerSpec, judge: Asked, rubric: str) -> None:
        self.spec = spec
        self._judge, self._rubric, self._form = judge, rubric, Graded(spec.low, spec.high)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        questions = [question(item, item.pixels(), self._rubric, self._form) for item in items]
        return [_outcome(answer) for answer in self._judge.ask_all(questions)]


def question(item: ScoreItem, pixels: Pixels, rubric: str, form: Form) -> Question:
    """Return the question: the image as PNG and the filled-in rubric. An invalid image raises before a request."""
    text = rubric.replace("{prompt}", to_plain_text(item.prompt or "", item.concept))
    return Question(text, encode_png(pixels), form)


def _outcome(answer: Verdict | SynodError) -> Outcome:
    if isinstance(answer, SynodError):
        return ScoreFailure.of(answer)
    return Score(answer.value, {"reason": answer.reason, "repaired": answer.repaired, "tokens": answer.tokens})
