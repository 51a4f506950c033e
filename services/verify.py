"""Check that each scorer ranks known-good inputs above known-bad ones (`synod.scoring.pairs`)."""

from __future__ import annotations

from collections.abc import Sequence

from services.backends import LocalBackend
from services.scorers.base import Scorer
from synod.scoring.pairs import Pair, Verdict

TIMEOUT_S = 600.0


async def score_pairs(scorer: Scorer, pairs: Sequence[Pair], timeout_s: float = TIMEOUT_S) -> list[Verdict]:
    """Score pairs in batches, as a replica does, and return a verdict for each."""
    name = scorer.spec.name
    backend = LocalBackend({name: scorer})
    items = tuple(item for pair in pairs for item in (pair.better, pair.worse))
    try:
        outcomes = await backend.score(name, await backend.stage(items, 1), range(len(items)), timeout_s)
    finally:
        await backend.close()
    return [Verdict(pair.name, name, *outcomes[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]
