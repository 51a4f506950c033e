"""The batch contract against scorers that break it in every way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.scorers.base import ScorerSpec, score_batch
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import BadImage


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


def test_a_typed_error_keeps_its_code() -> None:
    outcomes = score_batch(Fake(raising(BadImage("not an image"))), items("1", "poison", "2"))
    assert outcomes == [Score(1.0), ScoreFailure("bad_image", "not an image"), Score(2.0)]


@pytest.mark.parametrize("surplus", [-1, 1])
def test_a_wrong_length_never_pairs_a_score_with_another_item(surplus: int) -> None:
    wrong = Fake(lambda prompts: [Score(9.0)] * (len(prompts) + surplus))
    outcomes = score_batch(wrong, items("1", "2", "3"))
    assert [type(o) for o in outcomes] == [ScoreFailure] * 3
    assert all(o.code == "scorer_failed" for o in outcomes if isinstance(o, ScoreFailure))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_value_that_is_not_finite_leaves_a_scorer(value: float) -> None:
    def fault(prompts: list[str]) -> list[Outcome]:
        return [Score(value if p == "bad" else 1.0) for p in prompts]

    good, bad = score_batch(Fake(fault), items("1", "bad"))
    assert good == Score(1.0)
    assert isinstance(bad, ScoreFailure)
    assert bad.code == "non_finite"


def test_items_that_lack_a_need_never_reach_the_scorer() -> None:
    fake = Fake(lambda _: None)
    outcomes = score_batch(fake, [ScoreItem(), *items("1", "  ")])
    assert [type(o) for o in outcomes] == [ScoreFailure, Score, ScoreFailure]
    assert fake.batches == [["1"]]


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupt(prompts: list[str]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_batch(Fake(interrupt), items("1"))
