"""What one large image takes beyond the loaded model: a process of its own, its peak reset once all is loaded."""

from __future__ import annotations

import os
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import Mask2FormerForUniversalSegmentation

from benchmarks.memory import peak_bytes, reset_peak, resident_bytes
from services.scorers import registry
from services.scorers.base import run_batch
from synod.contracts import GenEvalClause, GenEvalMetadata, ScoreItem
from tests.forked import in_new_process

pytestmark = pytest.mark.slow

SIDE = 4096 if os.environ.get("SYNOD_FULL") else 2048  # a quarter of the pixels takes seconds, not a minute
LIMIT_GIB = 3.0 * (SIDE / 4096) ** 2


def score_and_measure(tree: dict[str, Any], side: int) -> dict[str, float]:
    """Return the peak of memory in GiB, and how many objects were found, for one image of this side.

    Every query is sure of its class, so that as many masks as there can be are made and kept at the image's size.
    """
    forward = Mask2FormerForUniversalSegmentation.forward

    def sure(self: Any, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        logits = output.class_queries_logits.clone()
        logits[:, torch.arange(logits.shape[1]), torch.arange(logits.shape[1]) % 3] += 9.0
        output.class_queries_logits = logits
        return output

    torch.set_num_threads(1)
    with patch.object(Mask2FormerForUniversalSegmentation, "forward", sure):
        scorer = registry.build("geneval", registry.SETTINGS.validate_python(tree))
        run_batch(scorer, [item(64)])
        large = item(side)
        reset_peak()
        before = resident_bytes()
        (outcome,) = run_batch(scorer, [large])
    return {"gib": (peak_bytes() - before) / 2**30, "objects": len(outcome.detail["objects"])}


def item(side: int) -> ScoreItem:
    clauses = tuple(GenEvalClause("cat", 1, color=color) for color in ("red", "blue"))
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return ScoreItem(image=image, geneval=GenEvalMetadata(tag="colors", include=clauses))


@pytest.mark.parametrize("family", ["mask2former", "semantic"])
def test_geneval_on_the_largest_image_is_bounded(tiny_models: Any, family: str) -> None:
    settings = {
        "kind": "geneval",
        "detector": {"family": family, "model": getattr(tiny_models, family)},
        "color_model": {"family": "open_clip", "model": tiny_models.open_clip},
    }
    found = in_new_process(score_and_measure, settings, SIDE)
    assert found["gib"] < LIMIT_GIB, found
    assert family == "semantic" or found["objects"] >= 16, found
