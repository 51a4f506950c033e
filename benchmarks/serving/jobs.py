"""The job of every other server: Synod's scorers, built by the same `build` from the same model directories.

A request is `{"items": [..]}`, with the images in their items; an answer is `{"scores": {scorer: [value..]}}`. An image
that occurs twice in a request (a reference) is decoded once.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.serving import fakes
from services.scorers.base import score_batch
from services.scorers.ber import BerSettings
from services.settings import load
from services.settings_types import ScorerSettings
from synod.contracts import Concept, GenEvalClause, GenEvalMetadata, Pixels, Reasoning, Score, ScoreItem

EMBEDDED = Path(__file__).parents[2] / "deploy/configs/embedded.toml"
Scores = dict[str, list[float]]


class Job:
    """The scorers that the environment variable BENCH_SCORERS names. They run one after another."""

    def __init__(self) -> None:
        names = os.environ["BENCH_SCORERS"].split(",")
        self._scorers = {name: fakes.build(name, settings_of(name)) for name in names}

    def score(self, items: Sequence[ScoreItem]) -> Scores:
        """Return the values of each scorer, in the order of the items. Raises RuntimeError if a score fails."""
        return {name: [_value(outcome) for outcome in score_batch(one, items)] for name, one in self._scorers.items()}

    def score_many(self, requests: Sequence[Sequence[ScoreItem]]) -> list[Scores]:
        """Return the scores of each request, computed in one batch."""
        together = self.score([item for items in requests for item in items])
        found, start = [], 0
        for items in requests:
            found.append({name: values[start : start + len(items)] for name, values in together.items()})
            start += len(items)
        return found


def settings_of(name: str) -> ScorerSettings:
    scorers = load(EMBEDDED, {}).scorers
    return scorers[name] if name in scorers else BerSettings(kind="ber", model=str(EMBEDDED.parent))


def read_items(request: Mapping[str, Any]) -> list[ScoreItem]:
    """Read the items of a request whose images are bytes (pickle, msgpack) or base64 (JSON)."""
    memo: dict[Any, Pixels] = {}
    return [_item(item, partial(_decoded, memo)) for item in request["items"]]


def _item(item: Mapping[str, Any], image: Callable[[Any], Pixels]) -> ScoreItem:
    reasoning, geneval = item.get("reasoning"), item.get("geneval")
    return ScoreItem(
        image=image(item["image"]) if "image" in item else None,
        prompt=item.get("prompt"),
        references=tuple(map(image, item.get("references", ()))),
        reasoning=Reasoning(**reasoning) if reasoning else None,
        geneval=_geneval(geneval) if geneval else None,
        concept=Concept(**item["concept"]) if "concept" in item else None,
        source_prompt=item.get("source_prompt"),
    )


def _geneval(tree: Mapping[str, Any]) -> GenEvalMetadata:
    include, exclude = (tuple(GenEvalClause(**clause) for clause in tree[key]) for key in ("include", "exclude"))
    return GenEvalMetadata(tree["tag"], include, exclude)


def _decoded(memo: dict[Any, Pixels], image: Any) -> Pixels:
    if isinstance(image, Mapping):
        return np.frombuffer(_bytes(image["data"]), np.uint8).reshape(image["shape"])
    if image not in memo:
        memo[image] = np.asarray(Image.open(BytesIO(_bytes(image))).convert("RGB"))
    return memo[image]


def _bytes(data: bytes | str) -> bytes:
    return base64.b64decode(data) if isinstance(data, str) else data


def _value(outcome: Any) -> float:
    if not isinstance(outcome, Score):
        raise RuntimeError(f"not scored: {outcome}")
    return outcome.value
