"""The batch contract against scorers that break it in every way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from services.scorers.base import ScorerSpec, score_batch
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem


class Fake:
    """Scores an item by its prompt, a number; `fault` sees each batch first. Remembers the batches it was given."""

    spec = ScorerSpec("fake", ("prompt",), 0.0, 100.0, "none", "none")

    def __init__(self, fault: Callable[[list[str]], Sequence[Outcome] | None]) -> None:
        self.fault, self.batches = fault, list[list[str]]()

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]:
        prompts = [item.prompt or "" for item in items]
        self.batches.append(prompts)
        broken = self.fault(prompts)
        return [Score(float(p)) for p in prompts] if broken is None else broken


def items(*prompts: str) -> list[ScoreItem]:
    return [ScoreItem(prompt=p) for p in prompts]


def raising(error: Exception) -> Callable[[list[str]], None]:
    def fault(prompts: list[str]) -> None:
        if any(p.startswith("poison") for p in prompts):
            raise error

    return fault


@given(st.lists(st.booleans(), max_size=33))
def test_bisection_finds_exactly_the_poisoned_items(poisoned: list[bool]) -> None:
    fake = Fake(raising(RuntimeError("boom")))
    outcomes = score_batch(fake, items(*("poison" if bad else str(i) for i, bad in enumerate(poisoned))))
    for i, (bad, outcome) in enumerate(zip(poisoned, outcomes, strict=True)):
        if bad:
            assert isinstance(outcome, ScoreFailure)
            assert (outcome.code, outcome.retryable) == ("scorer_failed", False)
            assert "RuntimeError: boom" in outcome.message
        else:
            assert outcome == Score(float(i))
    most = 1 + 2 * sum(poisoned) * len(poisoned).bit_length()
    assert len(fake.batches) <= most


def test_items_that_lack_a_need_never_reach_the_scorer() -> None:
    fake = Fake(lambda _: None)
    outcomes = score_batch(fake, [ScoreItem(), *items("1", "  ")])
    assert [type(o) for o in outcomes] == [ScoreFailure, Score, ScoreFailure]
    assert fake.batches == [["1"]]
