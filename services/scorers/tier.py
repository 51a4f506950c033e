"""TIER: does a reasoning text match the right segments? Sync-R1, eq. 30.

s = cosines of the text to the l segments, y = the truth. Two forms:

* `paper_clipped`: (2 - ||s - y||) / 2 as printed, clipped to [0, 1]. The paper's claim ||s - y|| <= 2 does not hold for
  cosines (the bound is sqrt(l + 3)), so the unclipped form falls below 0 as l grows.
* `softmax` (default): p = softmax(s / temperature), R = (2 - ||p - y||^2) / 2 with y rescaled to sum 1: in [0, 1] by
  construction, and it ranks right above wrong for any l.

Where eq. 30 is silent: with nothing relevant (no segment true, or no segments) an empty text scores 1; an empty text
scores 0 otherwise. A text that is not empty scores 0 when there are no segments; when there are, but none is true, it
scores 0 in `softmax` (y has no direction) and by the formula in `paper_clipped`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from services.scorers.base import ScorerSpec
from services.settings_types import SingleModelSettings
from synod.contracts import Outcome, Reasoning, Score, ScoreFailure, ScoreItem
from synod.errors import InvalidItem

Vector = NDArray[np.floating]


class Encoder(Protocol):
    def encode(self, texts: Sequence[str], pooling: Literal["mean", "cls", "pooler"]) -> NDArray[np.float32]: ...


class TierSettings(SingleModelSettings):
    """TIER (Sync-R1 eq. 30). `softmax` is our default, `paper_clipped` is as printed (seeds: the norm exceeds 2)."""

    kind: Literal["tier"]
    mode: Literal["softmax", "paper_clipped"] = "softmax"
    temperature: float = Field(0.05, gt=0)
    pooling: Literal["mean", "cls", "pooler"] = "mean"


def spec(name: str, settings: TierSettings) -> ScorerSpec:
    summary = "the reasoning text against candidate segments, of which some are true"
    return ScorerSpec(name, ("reasoning",), 0.0, 1.0, "Sync-R1, eq. 30", summary)


def build(name: str, settings: TierSettings) -> Tier:
    from services.models import text_encoder
    from services.models.cache import Device

    return Tier(name, text_encoder.load(settings.model, Device.of(settings.serving)), settings)


class Tier:
    def __init__(self, name: str, encoder: Encoder, settings: TierSettings) -> None:
        self.spec = spec(name, settings)
        self._encoder, self._settings = encoder, settings

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        reasonings = [item.reasoning for item in items if item.reasoning is not None]
        assert len(reasonings) == len(items)
        texts = sorted({text for r in reasonings for text in (r.text.strip(), *r.segments)})
        embedded = dict(zip(texts, self._encoder.encode(texts, self._settings.pooling), strict=True)) if texts else {}
        return [self._one(reasoning, embedded) for reasoning in reasonings]

    def _one(self, reasoning: Reasoning, embedded: Mapping[str, Vector]) -> Outcome:
        truth, text, mode = np.array(reasoning.truth, np.float64), reasoning.text.strip(), self._settings.mode
        if len(truth) != len(reasoning.segments):
            reason = (
                f"reasoning has {len(reasoning.segments)} segments but {len(truth)} truth values; give one for each"
            )
            return ScoreFailure.of(InvalidItem(reason))
        if not np.all((truth >= 0) & (truth <= 1)):  # NaN fails both
            return ScoreFailure.of(InvalidItem(f"reasoning.truth {truth.tolist()}: each value must be in [0, 1]"))
        relevant = bool(truth.any())
        if not text:
            return Score(0.0 if relevant else 1.0, {"mode": mode, "reason": "empty text"})
        if not len(truth) or (mode == "softmax" and not relevant):
            return Score(0.0, {"mode": mode, "reason": "a text, but nothing is relevant"})
        similarities = np.stack([embedded[s] for s in reasoning.segments]).astype(np.float64) @ embedded[text]
        detail = {"mode": mode, "similarities": similarities.tolist()}
        if mode == "paper_clipped":
            return Score(min(max(paper(similarities, truth), 0.0), 1.0), detail)
        value, probabilities = softmax(similarities, truth, self._settings.temperature)
        return Score(value, {**detail, "probabilities": probabilities.tolist()})


def paper(similarities: Vector, truth: Vector) -> float:
    """Return (2 - ||s - y||) / 2 as printed, before clipping: at most 1, below 0 for long lists."""
    return float((2.0 - np.linalg.norm(similarities - truth)) / 2.0)


def softmax(similarities: Vector, truth: Vector, temperature: float) -> tuple[float, Vector]:
    """Return (2 - ||p - y / sum(y)||^2) / 2 in [0, 1], and p. `truth` must have a positive sum."""
    weights = np.exp((similarities - similarities.max()) / temperature)
    probabilities = weights / weights.sum()
    return float((2.0 - np.sum((probabilities - truth / truth.sum()) ** 2)) / 2.0), probabilities
