"""LocalBackend keeps the batch contract of each scorer; the cost of items in images."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from services.backends import LocalBackend, batch_cost, batch_images
from services.scorers.base import Need, ScorerSpec
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Unavailable
from synod.images import encode_png


class Number:
    def __init__(self, name: str, needs: tuple[Need, ...] = ("prompt",)) -> None:
        self.spec = ScorerSpec(name, needs, 0.0, 1.0, "a test", "a test")
        self.batches: list[int] = []

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.batches.append(len(items))
        return [Score(float(item.prompt or "")) for item in items]


def blank(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def values(outcomes: Sequence[Outcome]) -> list[float | str]:
    return [o.value if isinstance(o, Score) else o.code for o in outcomes]


async def test_each_scorer_scores_the_given_indexes() -> None:
    backend = LocalBackend({"a": Number("a"), "b": Number("b")}, max_batch_images=2)
    staged = await backend.stage(
        (ScoreItem(prompt="0.1"), ScoreItem(), ScoreItem(prompt="x"), ScoreItem(prompt="0.4")), 2
    )
    a, b = await asyncio.gather(
        backend.score("a", staged, [0, 1, 2, 3], 10.0), backend.score("b", staged, [3, 0], 10.0)
    )
    assert values(a) == [0.1, "missing_input", "scorer_failed", 0.4]
    assert values(b) == [0.4, 0.1]
    assert all(readiness.ready for readiness in (await backend.readiness()).values())
    assert set(backend.specs) == {"a", "b"}
    await backend.close()
    with pytest.raises(Unavailable):
        await backend.score("a", staged, [0], 1.0)


async def test_references_count_if_the_scorer_needs_them() -> None:
    item = ScoreItem(prompt="1", references=(b"a", b"b"))
    assert batch_cost(Number("a").spec, item) == 1
    assert batch_cost(Number("a", ("references",)).spec, item) == 3
    scorer = Number("a", ("prompt", "references"))
    backend = LocalBackend({"a": scorer}, max_batch_images=6)
    apart = [ScoreItem(prompt="1", references=(bytes([i]), bytes([i, i]))) for i in range(5)]
    for items in (apart, [item] * 5):
        staged = await backend.stage(tuple(items), 1)
        outcomes = await backend.score("a", staged, range(5), 10.0)
        assert not [o for o in outcomes if isinstance(o, ScoreFailure)]
    assert scorer.batches == [2, 2, 1, 4, 1]
    await backend.close()


async def test_images_count_by_pixels_for_sized_scorers() -> None:
    sized = replace(Number("a").spec, sized=True)
    counts = {(64, 64): 1, (1024, 1024): 1, (1024, 1025): 2, (4096, 4096): 16, (1, 65_000): 1}
    assert {size: batch_cost(sized, ScoreItem(image=blank(*size))) for size in counts} == counts
    assert batch_cost(Number("a").spec, ScoreItem(image=blank(4096, 4096))) == 1
    assert {size: batch_cost(sized, ScoreItem(image=encode_png(blank(*size)))) for size in counts} == counts
    assert batch_cost(sized, ScoreItem(image=b"no image")) == batch_cost(sized, ScoreItem()) == 1
    both = replace(sized, needs=("image", "references"))
    assert batch_cost(both, ScoreItem(image=blank(8, 8), references=(blank(2048, 1024), blank(8, 8)))) == 4

    scorer = Number("a")
    scorer.spec = sized
    backend = LocalBackend({"a": scorer}, max_batch_images=32)
    items = [ScoreItem(prompt="1", image=blank(*size)) for size in [(4096, 4096)] * 3 + [(64, 64)] * 18]
    staged = await backend.stage(tuple(items), 1)
    assert len(await backend.score("a", staged, range(len(items)), 10.0)) == len(items)
    assert scorer.batches == [2, 17, 2], "32 Mpx a batch: two large images, one large and 16 small, the rest"
    await backend.close()


def test_shared_references_count_once_in_a_batch() -> None:
    """Only the same array counts once; equal arrays that were decoded separately count twice."""
    first, second = blank(8, 8), blank(8, 8)
    items = [ScoreItem(image=blank(8, 8), references=(first, second)), ScoreItem(image=first, references=(first,))]
    spec = Number("a", ("references",)).spec
    assert batch_images(spec, items) == 4
    assert batch_images(Number("a").spec, items) == 2
    large = blank(2048, 1024)
    sized = replace(spec, sized=True)
    assert batch_images(sized, [ScoreItem(references=(large,)), ScoreItem(references=(large,))]) == 4
