"""Shared by scorers that ask a judge: questions from a rubric, and outcomes from verdicts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from services.models.types import Completion, Form, Graded, Question, Reply, Verdict
from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import bare_names, to_plain_text
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem, SynodError
from synod.images import encode_png


class Asked(Protocol):
    def ask_all(self, questions: Sequence[Question]) -> list[Verdict | SynodError]: ...


class Completing(Protocol):
    def complete_all(self, completions: Sequence[Completion]) -> list[Reply | SynodError]: ...


class Grader:
    """Asks a judge for one grade an image, by a rubric that `fill` completes."""

    def __init__(self, spec: ScorerSpec, judge: Asked, rubric: str) -> None:
        self.spec = spec
        self._judge, self._rubric, self._form = judge, rubric, Graded(spec.low, spec.high)

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        texts = [fill(self._rubric, item) for item in items]
        questions = [
            Question(text, encode_png(item.pixels()), self._form)
            for item, text in zip(items, texts, strict=True)
            if isinstance(text, str)
        ]
        answers = iter(self._judge.ask_all(questions))
        return [outcome(next(answers)) if isinstance(text, str) else ScoreFailure.of(text) for text in texts]


def fill(rubric: str, item: ScoreItem) -> str | InvalidItem:
    """Return the rubric with what it asks for in place, or the error of an item that lacks it.

    `{prompt}` is the prompt; `{info}` and `{facts}` are what `concept.about` says, and `{name}` is the concept's name
    without its brackets. A rubric with `{name}` has that name in all texts, others the class word.
    """
    about, token = item.concept and item.concept.about, item.concept and item.concept.token
    wanted = {name for name in ("info", "facts", "name") if f"{{{name}}}" in rubric}
    if (wanted & {"info", "facts"} and about is None) or ("name" in wanted and not token):
        lacks = "concept.token" if "name" in wanted and not token else "concept.about"
        return InvalidItem(f"the rubric asks for {', '.join(sorted(wanted))}, and the item has no {lacks}; send it")

    def words(text: str) -> str:
        return bare_names(text) if "name" in wanted else to_plain_text(text, item.concept)

    facts = "; ".join(words(fact) for fact in about.facts) if about else ""
    known = {"prompt": words(item.prompt or ""), "info": words((about and about.info) or ""), "facts": facts or "none"}
    known["name"] = bare_names(token or "")
    return re.sub(r"\{(prompt|info|facts|name)\}", lambda found: known[found[1]], rubric)


def question(item: ScoreItem, png: bytes, rubric: str, form: Form) -> Question:
    """Return the question: the image `png` and the filled-in rubric."""
    text = rubric.replace("{prompt}", to_plain_text(item.prompt or "", item.concept))
    return Question(text, png, form)


def outcome(answer: Verdict | SynodError) -> Outcome:
    """Return the score of a verdict, or the failure of an error."""
    if isinstance(answer, SynodError):
        return ScoreFailure.of(answer)
    return Score(answer.value, {"reason": answer.reason, "repaired": answer.repaired, "tokens": answer.tokens})
