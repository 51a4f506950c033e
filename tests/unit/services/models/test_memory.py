"""What one large image takes beyond the loaded model: a process of its own, its peak reset once all is loaded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SIDE = 4096 if os.environ.get("SYNOD_FULL") else 2048  # a quarter of the pixels takes seconds, not a minute
LIMIT_GIB = 3.0 * (SIDE / 4096) ** 2

# Every query is sure of its class, so that as many masks as there can be are made and kept at the image's size.
SCRIPT = """
import json, sys
import numpy as np, torch
from pydantic import TypeAdapter
from transformers import Mask2FormerForUniversalSegmentation
from benchmarks.memory import peak_bytes, resident_bytes, reset_peak
from services.models import mask2former
from services.settings_types import ScorerSettings
from services.scorers import registry
from services.scorers.base import run_batch
from synod.contracts import GenEvalClause, GenEvalMetadata, ScoreItem

forward = Mask2FormerForUniversalSegmentation.forward
def sure(self, **inputs):
    output = forward(self, **inputs)
    logits = output.class_queries_logits.clone()
    logits[:, torch.arange(logits.shape[1]), torch.arange(logits.shape[1]) % 3] += 9.0
    output.class_queries_logits = logits
    return output
Mask2FormerForUniversalSegmentation.forward = sure

torch.set_num_threads(1)
settings = registry.SETTINGS.validate_python(json.loads(sys.argv[1]))
scorer = registry.build("geneval", settings)
clauses = tuple(GenEvalClause("cat", 1, color=color) for color in ("red", "blue"))
def item(side):
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return ScoreItem(image=image, geneval=GenEvalMetadata(tag="colors", include=clauses))
run_batch(scorer, [item(64)])
large = item(int(sys.argv[2]))
reset_peak()
before = resident_bytes()
(outcome,) = run_batch(scorer, [large])
print(json.dumps({"gib": (peak_bytes() - before) / 2**30, "objects": len(outcome.detail["objects"])}))
"""


@pytest.mark.parametrize("family", ["mask2former", "semantic"])
def test_geneval_on_the_largest_image_is_bounded(tiny_models: Any, family: str) -> None:
    settings = {
        "kind": "geneval",
        "detector": {"family": family, "model": getattr(tiny_models, family)},
        "color_model": {"family": "open_clip", "model": tiny_models.open_clip},
    }
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(settings), str(SIDE)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["gib"] < LIMIT_GIB, found
    assert family == "semantic" or found["objects"] >= 16, found
