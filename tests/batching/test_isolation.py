"""Isolation of failing items: which items fail, its cost in runs, and the batch size afterwards."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.batch_limit import CLEAN_BATCHES, BatchLimit
from services.isolation import isolate
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.device_errors import is_out_of_memory
from synod.errors import BadImage
from tests.outcomes import values


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's exception, by which it is recognised."""


class Device:
    """Scores item i as i. Raises for a poisoned item, or when a batch holds more than `memory` images."""

    def __init__(self, poison: frozenset[int] = frozenset(), memory: int = 10**6) -> None:
        self.poison, self.memory, self.runs = poison, memory, list[list[int]]()

    def __call__(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        numbers = [number(item) for item in items]
        self.runs.append(numbers)
        if len(items) > self.memory:
            raise OutOfMemoryError("tried to allocate")
        if found := self.poison & set(numbers):
            raise ValueError(f"poison {sorted(found)}")
        return [Score(float(n)) for n in numbers]


def numbered(count: int) -> list[ScoreItem]:
    return [ScoreItem(prompt=str(n)) for n in range(count)]


def number(item: ScoreItem) -> int:
    return int(item.prompt or "")


@settings(deadline=None)
@given(st.integers(0, 40), st.sets(st.integers(0, 39)), st.integers(1, 48))
@example(32, set(range(32)), 48)
@example(33, {32}, 5)
def test_only_the_poisoned_items_fail(count: int, poison: set[int], memory: int) -> None:
    """Each failure carries the message of a run with that item alone."""
    outcomes = isolate(Device(frozenset(poison), memory), numbered(count))
    assert values(outcomes) == ["scorer_failed" if n in poison else float(n) for n in range(count)]
    for n, outcome in enumerate(outcomes):
        if isinstance(outcome, ScoreFailure):
            assert f"ValueError: poison [{n}]" in outcome.message
            assert not outcome.retryable


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33])
def test_one_poisoned_item_costs_at_most_the_bound_in_runs(count: int) -> None:
    for poisoned in range(count):
        device = Device(frozenset({poisoned}))
        isolate(device, numbered(count))
        assert len(device.runs) - 1 <= (math.ceil(math.log2(count)) + 2 if count > 1 else 0)


@settings(deadline=None)
@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=6))
def test_n_poisoned_items_cost_at_most_n_times_the_bound(count: int, poison: set[int]) -> None:
    poison = {n for n in poison if n < count}
    device = Device(frozenset(poison))
    isolate(device, numbered(count))
    assert len(device.runs) - 1 <= len(poison) * (math.ceil(math.log2(count)) + 2)


def test_items_that_raise_only_together_are_all_scored() -> None:
    """For example images of two sizes in a scorer that stacks them."""

    def stack(items: Sequence[ScoreItem]) -> list[Outcome]:
        if len({number(item) % 2 for item in items}) > 1:
            raise ValueError("all input arrays must have the same shape")
        return [Score(float(number(item))) for item in items]

    assert values(isolate(stack, numbered(7))) == [0, 1, 2, 3, 4, 5, 6]


def test_a_typed_error_keeps_its_code() -> None:
    def run(items: Sequence[ScoreItem]) -> list[Outcome]:
        if any(number(item) == 1 for item in items):
            raise BadImage("not an image")
        return [Score(0.0) for _ in items]

    assert isolate(run, numbered(3)) == [Score(0.0), ScoreFailure("bad_image", "not an image"), Score(0.0)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_score_fails_its_item(value: float) -> None:
    outcomes = isolate(lambda items: [Score(value if number(i) == 1 else 0.5) for i in items], numbered(3))
    assert values(outcomes) == [0.5, "non_finite", 0.5]


@pytest.mark.parametrize(
    "score",
    [
        Score(0.5, {"cosine": np.float32(0.5)}),
        Score(0.5, {"cosines": [0.5, math.nan]}),
        Score(0.5, {"mask": np.zeros(2)}),
        Score(0.5, {1: "a key that is not text"}),  # type: ignore[dict-item]
        Score(np.float32(0.5)),  # type: ignore[arg-type]
    ],
)
def test_a_score_that_cannot_be_sent_fails_its_item(score: Any) -> None:
    """It fails before it is combined into a reward or stored, with the message that its caller would get."""
    good = Score(0.5, {"box": [1, 2.5], "seen": True, "reason": None})
    outcomes = isolate(lambda items: [score if number(i) == 1 else good for i in items], numbered(3))
    assert values(outcomes) == [0.5, "scorer_failed", 0.5]
    failure = outcomes[1]
    assert isinstance(failure, ScoreFailure)
    assert re.match("the score cannot be sent: (detail|value)", failure.message)


def test_a_code_of_the_scorers_own_becomes_scorer_failed() -> None:
    """Codes are labels of metrics: a code for each item would make a series for each."""
    own = [ScoreFailure(f"no cat {i}", "none found", retryable=i == 1) for i in range(2)]
    known = ScoreFailure("judge_budget", "spent")
    assert isolate(lambda items: [*own, known], numbered(3)) == [
        ScoreFailure("scorer_failed", "no cat 0: none found"),
        ScoreFailure("scorer_failed", "no cat 1: none found", retryable=True),
        known,
    ]


@pytest.mark.parametrize(
    ("run", "word"),
    [
        (lambda items: [Score(9.0)] * (len(items) - 1), "returned 2 outcomes for 3"),
        (lambda items: [Score(9.0)] * (len(items) + 1), "returned 4 outcomes for 3"),
        (lambda items: [0.5 for _ in items], "float"),
        (lambda items: None, "TypeError"),
    ],
)
def test_a_contract_violation_scores_no_item(run: Callable[[Sequence[ScoreItem]], list[Outcome]], word: str) -> None:
    outcomes = isolate(run, numbered(3))
    assert values(outcomes) == ["scorer_failed"] * 3
    assert all(word in o.message for o in outcomes if isinstance(o, ScoreFailure))


def test_out_of_memory_halves_the_batch_and_scores_every_item() -> None:
    device, limit = Device(memory=5), BatchLimit(16)
    assert values(isolate(device, numbered(16), limit)) == list(range(16))
    assert [len(run) for run in device.runs] == [16, 8, 4, 4, 8, 4, 4]
    assert limit.images == 4


def test_an_item_too_large_alone_does_not_lower_the_limit() -> None:
    def run(items: Sequence[ScoreItem]) -> list[Outcome]:
        if any(number(item) == 5 for item in items):
            raise MemoryError
        return [Score(float(number(item))) for item in items]

    limit = BatchLimit(8)
    outcomes = isolate(run, numbered(8), limit)
    assert values(outcomes) == [0, 1, 2, 3, 4, "scorer_failed", 6, 7]
    assert isinstance(outcomes[5], ScoreFailure)
    assert "out of memory" in outcomes[5].message
    assert limit.images == 8


def test_the_lowered_limit_counts_images() -> None:
    limit = BatchLimit(100)
    isolate(Device(memory=2), numbered(4), limit, cost=lambda items: 10 * len(items))
    assert limit.images == 20


def test_the_limit_doubles_after_enough_clean_batches() -> None:
    limit = BatchLimit(12)
    limit.lower(4)
    for expected in (8, 12, 12):
        for _ in range(CLEAN_BATCHES):
            before = limit.images
            limit.raise_after_success()
        assert (before, limit.images) == (min(before, expected), expected)
    limit.lower(0)
    assert limit.images == 1
    for _ in range(CLEAN_BATCHES - 1):
        limit.raise_after_success()
    limit.lower(1)  # restarts the count of clean batches
    limit.raise_after_success()
    assert limit.images == 1


def test_a_failed_run_is_freed_before_the_next() -> None:
    """Its exception's frames hold tensors that would still fill the device."""
    alive: list[int] = []

    class Tensor:
        def __del__(self) -> None:
            alive.pop()

    def run(items: Sequence[ScoreItem]) -> list[Outcome]:
        assert not alive
        tensor = Tensor()
        alive.append(1)
        if len(items) > 1:
            raise OutOfMemoryError(str(tensor))
        return [Score(0.0)]

    assert values(isolate(run, numbered(4))) == [0.0] * 4


def test_memory_errors_are_recognised_by_class_or_name() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OutOfMemoryError())
    assert is_out_of_memory(type("Child", (OutOfMemoryError,), {})())
    assert not is_out_of_memory(RuntimeError("CUDA out of memory"))


def test_torchs_memory_error_is_recognised() -> None:
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(torch.cuda.OutOfMemoryError())


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupt(items: Sequence[ScoreItem]) -> list[Outcome]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        isolate(interrupt, numbered(2))
