"""GenEval 2: are all parts of the prompt in the image? A judge is asked one question a part (Soft-TIFA).

Kamath et al. 2025, "GenEval 2: Addressing Benchmark Drift in Text-to-Image Evaluation"; questions, spellings and means
are those of evaluation.py in facebookresearch/GenEval2 (CC BY-NC 4.0). A question counts with the probability p of its
expected answer as the first token of the reply to "<question> Answer in one word.":

    soft_tifa_am = mean(p)    soft_tifa_gm = exp(mean(log p))    tifa = mean(the reply is the expected answer)

"all" is GenEval++'s checklist: 1 if every reply is the expected answer, else 0. Metadata without questions, as that of
GenEval's lines, is asked about by `synod.scoring.geneval.checklist`.

The server reports the TOP_LOGPROBS likeliest first tokens only. An answer that is not among them counts with the least
of their probabilities, which bounds its own; where that bound is above MOST_UNSEEN, the item is a failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

from services.models.settings import JudgeEndpoint
from services.models.types import MAX_ANSWER_TOKENS, Completion, Reply
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.shared.verdicts import Completing
from synod.contracts import GenEvalMetadata, Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem, ScorerFailed, SynodError
from synod.images import encode_png
from synod.reader import quote
from synod.records import write
from synod.scoring.geneval import NUMBERS, checklist

TOP_LOGPROBS: Final = 20  # the most that OpenAI and vLLM report by default
MOST_UNSEEN: Final = 0.01
COUNTING: Final = "How many"
NUMERALS: Final = {word: str(number) for number, word in enumerate(NUMBERS, 1)}
Asked = Sequence[tuple[str, str]]  # questions with their expected answers


class Geneval2Settings(JudgeEndpoint):
    """GenEval 2's questions behind an endpoint; `method` is its evaluation's, or "all", GenEval++'s checklist.

    `tifa` and `all` read words, not probabilities.
    """

    kind: Literal["geneval2"]
    method: Literal["soft_tifa_gm", "soft_tifa_am", "tifa", "all"] = "soft_tifa_gm"


def spec(name: str, settings: Geneval2Settings) -> ScorerSpec:
    summary = "the parts of the prompt that a judge sees in the image"
    return ScorerSpec(name, ("image", "geneval"), 0.0, 1.0, "Kamath et al. 2025, GenEval 2 (Soft-TIFA)", summary)


def build(name: str, settings: Geneval2Settings) -> Scorer:
    from services.models.judge import load

    return Geneval2(name, load(settings), settings)


class Geneval2:
    def __init__(self, name: str, judge: Completing, settings: Geneval2Settings) -> None:
        self.spec = spec(name, settings)
        self._judge, self._method = judge, settings.method
        self._hard = settings.method in ("tifa", "all")
        self._max_tokens = MAX_ANSWER_TOKENS if self._hard else 1

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        lists = [_asked(item) for item in items]
        refusals = [_refusal(asked) for asked in lists]
        questions = [
            question
            for item, asked, refusal in zip(items, lists, refusals, strict=True)
            if refusal is None
            for question in self._questions(item, asked)
        ]
        replies = iter(self._judge.complete_all(questions))
        return [
            ScoreFailure.of(refusal) if refusal is not None else self._outcome(asked, [next(replies) for _ in asked])
            for asked, refusal in zip(lists, refusals, strict=True)
        ]

    def _questions(self, item: ScoreItem, asked: Asked) -> list[Completion]:
        png, top = encode_png(item.pixels()), None if self._hard else TOP_LOGPROBS
        return [Completion(f"{question} Answer in one word.", png, self._max_tokens, top) for question, _ in asked]

    def _outcome(self, asked: Asked, replies: Sequence[Reply | SynodError]) -> Outcome:
        measure = word_is_right if self._hard else probability
        values: list[float] = []
        for (question, answer), reply in zip(asked, replies, strict=True):
            try:
                if isinstance(reply, SynodError):
                    raise reply
                values.append(measure(question, answer, reply))
            except SynodError as error:
                reason = f"the question {quote(question, 100)} has no answer: {error.message}"
                return ScoreFailure(error.code, reason, error.retryable)
        value = _MEANS[self._method](values)
        atoms = [{"question": q, "answer": a, "value": one} for (q, a), one in zip(asked, values, strict=True)]
        tokens = sum(reply.tokens for reply in replies if isinstance(reply, Reply))
        return Score(min(value, 1.0), {"method": self._method, "atoms": atoms, "tokens": tokens})


def spellings(question: str, answer: str) -> set[str]:
    """Return the first tokens that count as the expected answer."""
    words = {"Yes", "yes"}
    if question.startswith(COUNTING):
        words = {answer, answer.capitalize(), NUMERALS.get(answer, answer)}
    return words | {f" {word}" for word in words}


def probability(question: str, answer: str, reply: Reply) -> float:
    """Return the expected answer's probability or its bound. Raises ScorerFailed if the bound is too loose."""
    expected = spellings(question, answer)
    found = [math.exp(logprob) for token, logprob in reply.first if token in expected]
    if found:
        return min(math.fsum(found), 1.0)
    bound = math.exp(min(logprob for _, logprob in reply.first))
    if bound > MOST_UNSEEN:
        reason = f"'{answer}' is not among the {len(reply.first)} likeliest first tokens, of which the least has"
        remedy = f"take a server that reports {TOP_LOGPROBS}, or method = 'tifa'"
        raise ScorerFailed(f"{reason} {bound:.3g}; the limit is {MOST_UNSEEN:g}: {remedy}")
    return bound


def word_is_right(question: str, answer: str, reply: Reply) -> float:
    """Return 1 if the reply's first word is the expected answer, else 0. Raises ScorerFailed for an empty reply."""
    words = reply.text.split()
    if not words:
        raise ScorerFailed("the reply is empty; check the judge's model")
    return float(words[0].strip(".,;:!*\"'").lower() in {word.strip().lower() for word in spellings(question, answer)})


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean; 0 if one value is 0."""
    return math.exp(math.fsum(map(math.log, values)) / len(values)) if all(values) else 0.0


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return math.fsum(values) / len(values)


_MEANS: Final[Mapping[str, Callable[[Sequence[float]], float]]] = {
    "soft_tifa_gm": geometric_mean,
    "soft_tifa_am": mean,
    "tifa": mean,
    "all": min,
}


def _asked(item: ScoreItem) -> Asked:
    """Return the questions of an item, or those that its clauses make."""
    assert item.geneval is not None
    if item.geneval.vqa_list or not item.geneval.include:
        return item.geneval.vqa_list
    return [(question, answer) for question, answer in checklist(write(GenEvalMetadata, item.geneval))]


def _refusal(asked: Asked) -> InvalidItem | None:
    """Return why the questions cannot be asked, or None."""
    if not asked:
        return InvalidItem("geneval.vqa_list is empty; give GenEval 2's questions, [[question, answer], ..]")
    for question, answer in asked:
        if not question.startswith(COUNTING) and answer.lower() != "yes":
            reason = f"the expected answer to {quote(question, 100)} is {quote(answer)}"
            return InvalidItem(f"{reason}; it must be 'Yes' unless the question begins with '{COUNTING}'")
    return None
