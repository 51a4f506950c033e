"""Claims with one wrong word, and what a reader that knows the truth, or guesses, gets of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pytest

from benchmarks.intrinsic import KINDS, Claim, draw, kind_of, measure
from trainer.policy.base import TokenLogp
from trainer.types import Query


class Knowing:
    """Finds the true prompts of some kinds likely, by the brightness of their scenes; of others the false ones."""

    def __init__(self, claims: Sequence[Claim], knows: Sequence[str]) -> None:
        self._right = {claim.true if claim.kind in knows else claim.false for claim in claims}

    def token_logps(self, queries: Sequence[Query], answers: Sequence[str]) -> list[TokenLogp]:
        rows = []
        for query, answer in zip(queries, answers, strict=True):
            assert query.image is not None
            likely = answer in self._right and bool(query.image.any())
            words = tuple(answer.split())
            rows.append(TokenLogp(words, (math.log(0.9 if likely else 0.5),) * len(words)))
        return rows

    def reference(self) -> AbstractContextManager[None]:
        return nullcontext()


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return draw(25, 0)


def test_each_kind_has_as_many_claims(claims: list[Claim]) -> None:
    assert [claim.kind for claim in claims] == list(KINDS) * 5
    assert [claim.true for claim in draw(5, 0)] == [claim.true for claim in claims[:5]]
    for claim in claims:
        words = [(a, b) for a, b in zip(claim.true.split(), claim.false.split(), strict=True) if a != b]
        assert len(words) == 1


@pytest.mark.parametrize(
    ("true", "false", "kind"),
    [
        ("a photo of two cats", "a photo of three cats", "count"),
        ("a photo of two cats", "a photo of two dogs", "object"),
        ("a photo of a red ball", "a photo of a blue ball", "colour"),
        ("a photo of a cat left of a dog", "a photo of a cat right of a dog", "relation"),
        ("a photo of a cat on the beach", "a photo of a cat on the meadow", "place"),
        ("a photo of <bo>", "a photo of <ada>", "other"),
    ],
)
def test_the_kind_is_that_of_the_changed_word(true: str, false: str, kind: str) -> None:
    assert kind_of(true, false) == kind


def test_shares_are_counted_by_kind(claims: list[Claim]) -> None:
    found = measure(Knowing(claims, ["count", "colour"]), claims)
    pairs = {kind: one["pairs"] for kind, one in found["kinds"].items()}
    assert pairs == {"count": 1.0, "colour": 1.0, "relation": 0.0, "place": 0.0, "object": 0.0, "all": 0.4}
    assert found["kinds"]["all"]["pairs_error"] == pytest.approx(math.sqrt(0.4 * 0.6 / 25))
    assert found["kinds"]["all"]["black"] == 0.0  # without the image it knows nothing
    assert (found["above_goal"], found["above_floor"]) == (False, False)
    assert measure(Knowing(claims, list(KINDS)), claims)["above_goal"]
