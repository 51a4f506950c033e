"""LocalBackend keeps the batch contract per scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from services.backends import LocalBackend, batch_cost
from services.scorers.base import Need, ScorerSpec
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import Unavailable


class Number:
    def __init__(self, name: str, needs: tuple[Need, ...] = ("prompt",)) -> None:
        self.spec = ScorerSpec(name, needs, 0.0, 1.0, "a test", "a test")
        self.batches: list[int] = []

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        self.batches.append(len(items))
        return [Score(float(item.prompt or "")) for item in items]


def told(outcomes: Sequence[Outcome]) -> list[float | str]:
    return [o.value if isinstance(o, Score) else o.code for o in outcomes]


async def test_each_scorer_answers_for_the_indexes_asked() -> None:
    backend = LocalBackend({"a": Number("a"), "b": Number("b")}, max_batch_images=2)
    staged = await backend.stage(
        (ScoreItem(prompt="0.1"), ScoreItem(), ScoreItem(prompt="x"), ScoreItem(prompt="0.4")), 2
    )
    a, b = await asyncio.gather(
        backend.score("a", staged, [0, 1, 2, 3], 10.0), backend.score("b", staged, [3, 0], 10.0)
    )
    assert told(a) == [0.1, "missing_input", "scorer_failed", 0.4]
    assert told(b) == [0.4, 0.1]
    assert all(readiness.ready for readiness in (await backend.readiness()).values())
    assert set(backend.specs) == {"a", "b"}
    await backend.close()
    with pytest.raises(Unavailable):
        await backend.score("a", staged, [0], 1.0)


async def test_references_count_where_they_are_embedded() -> None:
    item = ScoreItem(prompt="1", references=(b"", b""))
    assert batch_cost(Number("a").spec, item) == 1
    assert batch_cost(Number("a", ("references",)).spec, item) == 3
    scorer = Number("a", ("prompt", "references"))
    backend = LocalBackend({"a": scorer}, max_batch_images=6)
    staged = await backend.stage((item,) * 5, 1)
    outcomes = await backend.score("a", staged, range(5), 10.0)
    assert not [o for o in outcomes if isinstance(o, ScoreFailure)]
    assert scorer.batches == [2, 2, 1]
    await backend.close()


async def test_images_count_by_pixels_where_cost_follows_them() -> None:
    def image(height: int, width: int) -> np.ndarray:
        return np.zeros((height, width, 3), np.uint8)

    sized = replace(Number("a").spec, sized=True)
    counts = {(64, 64): 1, (1024, 1024): 1, (1024, 1025): 2, (4096, 4096): 16, (1, 65_000): 1}
    assert {size: batch_cost(sized, ScoreItem(image=image(*size))) for size in counts} == counts
    assert batch_cost(Number("a").spec, ScoreItem(image=image(4096, 4096))) == 1
    assert batch_cost(sized, ScoreItem(image=b"encoded")) == batch_cost(sized, ScoreItem()) == 1
    both = replace(sized, needs=("image", "references"))
    assert batch_cost(both, ScoreItem(image=image(8, 8), references=(image(2048, 1024), image(8, 8)))) == 4

    scorer = Number("a")
    scorer.spec = sized
    backend = LocalBackend({"a": scorer}, max_batch_images=32)
    items = [ScoreItem(prompt="1", image=image(*size)) for size in [(4096, 4096)] * 3 + [(64, 64)] * 18]
    staged = await backend.stage(tuple(items), 1)
    assert len(await backend.score("a", staged, range(len(items)), 10.0)) == len(items)
    assert scorer.batches == [2, 17, 2], "32 Mpx a batch: two of the large, one with 16 small ones, the rest"
    await backend.close()
