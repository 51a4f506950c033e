"""The one table of scorers: a settings' `kind` -> the module that describes and builds it.

Importing this loads no model library; `spec` neither. `build` imports what its kind needs and loads the models.
"""

from __future__ import annotations

import importlib
from typing import Any

from pydantic import TypeAdapter

from services import child, environments
from services.scorer_settings import ScorerSettings
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.custom import Custom

KINDS: dict[str, str] = {
    "tier": "services.scorers.tier",
    "ber": "services.scorers.ber",
    "der": "services.scorers.der",
    "fer": "services.scorers.fer",
    "geneval": "services.scorers.geneval.scorer",
    "jpeg": "services.scorers.jpeg",
    "psnr": "services.scorers.psnr",
    "clip_i": "services.scorers.clip_i",
    "clip_t": "services.scorers.clip_t",
    "clip_direction": "services.scorers.clip_direction",
    "pickscore": "services.scorers.pickscore",
    "hps": "services.scorers.hps",
    "aesthetic": "services.scorers.aesthetic",
    "image_reward": "services.scorers.image_reward",
    "hpsv3": "services.scorers.hpsv3",
    "ocr": "services.scorers.ocr",
    "bleu": "services.scorers.bleu",
    "recognition": "services.scorers.recognition",
    "format": "services.scorers.format",
    "reflection": "services.scorers.reflection",
    "likelihood": "services.scorers.likelihood",
    "judge": "services.scorers.judge",
    "dense_validity": "services.scorers.dense_validity",
    "quality": "services.scorers.quality",
    "unified_reward": "services.scorers.unified_reward",
    "geneval2": "services.scorers.geneval2",
    "custom": "services.scorers.custom",
}


def spec(name: str, settings: ScorerSettings) -> ScorerSpec:
    """What `name` needs and returns, without loading a model."""
    described: ScorerSpec = _module(settings).spec(name, settings)
    return described


def build(name: str, settings: ScorerSettings) -> Scorer:
    """The scorer `name` with its models on its device (`serving.device`). Raises what the model libraries raise.

    With `serving.python` other than this process's it is in a child process, and its values are held to its range.
    """
    python = settings.serving.python
    if python is not None and not environments.is_own(python):
        return Custom(spec(name, settings), child.build(name, settings))
    scorer: Scorer = _module(settings).build(name, settings)
    return scorer


def build_tree(name: str, settings: Any) -> Scorer:
    """`build` in a child process, from the `tree` of its settings."""
    found: ScorerSettings = TypeAdapter(ScorerSettings).validate_python(settings.tree)
    scorer: Scorer = _module(found).build(name, found)
    return scorer


def _module(settings: ScorerSettings) -> Any:
    return importlib.import_module(KINDS[settings.kind])
