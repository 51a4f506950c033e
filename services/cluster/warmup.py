"""Warm-up batches: trigger compilation before the replica reports ready."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from services.scorers.base import Scorer, score_batch
from synod.contracts import GenEvalClause, GenEvalMetadata, Reasoning, ScoreFailure, ScoreItem
from synod.errors import ScorerFailed, SettingsError

_SIDE = 256  # px


def warm_up(scorer: Scorer, max_images: int) -> None:
    """Run batches of 1, 2 and `max_images` items, all with different images and texts.

    A compiled module has one graph for batches of one and another for all other sizes (`services.models.cache.frozen`).
    The images are noise, so modules that need real content, such as the face embedder, are compiled by the golden
    items, which a replica runs next. Raises SettingsError if the scorer raises.
    """
    for size in sorted({1, 2, max_images}):
        items = list(_items(size))
        failed = [o for o in score_batch(scorer, items) if isinstance(o, ScoreFailure) and o.code == ScorerFailed.code]
        if failed:
            raise SettingsError(
                f"scorer '{scorer.spec.name}' does not run compiled: {failed[0].message[:1000]}\n"
                "Install a C++ compiler (apt-get install g++), or set compile = false in its [serving]"
            )


def _items(count: int) -> Iterator[ScoreItem]:
    rng = np.random.default_rng(count)
    for number in range(count):
        image, reference = rng.integers(0, 256, (2, _SIDE, _SIDE, 3), dtype=np.uint8)
        text = f"a photo of person number {number}"
        yield ScoreItem(
            image=image,
            prompt=text,
            references=(reference,),
            source_prompt="a photo of nobody",
            reasoning=Reasoning(text, (f"{text} in a hat",), (1.0,)),
            geneval=GenEvalMetadata("single_object", (GenEvalClause("person", 1),)),
        )
