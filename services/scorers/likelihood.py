"""Likelihood: how probable is the prompt as a description of the image? GvU's intrinsic reward.

    R = (prod_j p(t_j | image, question, t_<j))^(1/L) = exp(mean_j log p(t_j | ..))

over the L tokens of the prompt, in one teacher-forced pass and without a gradient. The paper's product of probabilities
is 0 in floating point for long prompts; the mean of logarithms is the same number without that. The teacher is frozen,
where the public code reads the current policy, which may learn to please itself. The image
is placed where the model's chat template has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from services.scorers.base import ScorerSpec
from services.scorers.shared.image_text import score_with_text
from services.settings_types import SingleModelSettings
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import NonFinite

if TYPE_CHECKING:
    from services.models.vlm import TokenLogProbs, Vlm


QUESTION: Final = "Describe the image in detail."


class LikelihoodSettings(SingleModelSettings):
    """The prompt's probability given the image, under a vision-language model (GvU)."""

    kind: Literal["likelihood"]


def spec(name: str, settings: LikelihoodSettings) -> ScorerSpec:
    summary = "the prompt's probability as a description of the image, a token's geometric mean"
    return ScorerSpec(name, ("image", "prompt"), 0.0, 1.0, "GvU (intrinsic reward)", summary, sized=True)


def build(name: str, settings: LikelihoodSettings) -> Likelihood:
    from services.models import vlm
    from services.models.cache import Device

    return Likelihood(name, vlm.load(settings.model, Device.of(settings.serving)), settings)


class Likelihood:
    def __init__(self, name: str, model: Vlm, settings: LikelihoodSettings) -> None:
        self.spec = spec(name, settings)
        self._model = model

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return score_with_text(items, self._probabilities)

    def _probabilities(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        found = self._model.log_probs(images, texts, QUESTION)
        return [_outcome(text, one) for text, one in zip(texts, found, strict=True)]


def _outcome(text: str, found: TokenLogProbs) -> Outcome:
    if not all(map(math.isfinite, found.values)):
        return ScoreFailure.of(NonFinite("the model gave a token's log-probability that is not finite"))
    mean = math.fsum(found.values) / len(found.values)
    detail = {"text": text, "tokens": list(found.tokens), "log_probs": list(found.values)}
    return Score(min(1.0, math.exp(mean)), detail)
