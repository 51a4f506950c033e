"""UnifiedReward: a vision-language model trained to grade generated images, asked pointwise in its own words.

Wang et al. 2025, "Unified Reward Model for Multimodal Understanding and Generation". The prompts are those of the
repository CodeGoat24/UnifiedReward (MIT), verbatim: `final_score` of its 1.x models (point_score_image_generation),
`axes` of its 2.0 models (UnifiedReward-2.0-inference, point_score_ACS). The value is the final score, or the mean of
alignment, coherence and style, in [1, 5]. A reply without each score asked for, with two different ones, or with one
out of range, is a failure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from services.models.settings import JudgeEndpoint
from services.models.types import MAX_ANSWER_TOKENS, Completion, Reply
from services.scorers.base import Scorer, ScorerSpec
from services.scorers.shared.image_text import score_with_text
from services.scorers.shared.verdicts import Completing
from synod.contracts import Outcome, Pixels, Score, ScoreFailure, ScoreItem
from synod.errors import ScorerFailed, SynodError
from synod.images import encode_png
from synod.reader import quote

LOW, HIGH = 1.0, 5.0
FINAL_SCORE: Final = (
    "You are given a text caption and a generated image based on that caption. Your task is to evaluate this image "
    "based on two key criteria:\n1. Alignment with the Caption: Assess how well this image aligns with the provided "
    "caption. Consider the accuracy of depicted objects, their relationships, and attributes as described in the "
    "caption.\n2. Overall Image Quality: Examine the visual quality of this image, including clarity, detail "
    "preservation, color accuracy, and overall aesthetic appeal.\nExtract key elements from the provided text caption, "
    "evaluate their presence in the generated image using the format: 'element (type): value' (where value=0 means not "
    "generated, and value=1 means generated), and assign a score from 1 to 5 after 'Final Score:'.\nYour task is "
    "provided as follows:\nText Caption: [{prompt}]"
)
AXES: Final = (
    "You are presented with a generated image and its associated text caption. Your task is to analyze the image "
    "across multiple dimensions in relation to the caption. Specifically:\nProvide overall assessments for the image "
    "along the following axes (each rated from 1 to 5):\n- Alignment Score: How well the image matches the caption in "
    "terms of content.\n- Coherence Score: How logically consistent the image is (absence of visual glitches, object "
    "distortions, etc.).\n- Style Score: How aesthetically appealing the image looks, regardless of caption "
    "accuracy.\n\nOutput your evaluation using the format below:\n\nAlignment Score (1-5): X\nCoherence Score (1-5): "
    "Y\nStyle Score (1-5): Z\n\nYour task is provided as follows:\nText Caption: [{prompt}]"
)
_NUMBER: Final = r"\**\s*(\d+(?:\.\d+)?)(?![\d.]*\d)"
FORMS: Final[Mapping[str, tuple[str, Mapping[str, re.Pattern[str]]]]] = {  # form -> (prompt, score -> where it stands)
    "final_score": (FINAL_SCORE, {"final": re.compile(rf"Final Score\s*:{_NUMBER}", re.IGNORECASE)}),
    "axes": (
        AXES,
        {
            axis: re.compile(rf"{axis} Score\s*(?:\(1-5\))?\s*:{_NUMBER}", re.IGNORECASE)
            for axis in ("alignment", "coherence", "style")
        },
    ),
}


class UnifiedRewardSettings(JudgeEndpoint):
    """UnifiedReward behind an endpoint. `form` is that of the model: `final_score` for 1.x, `axes` for 2.0."""

    kind: Literal["unified_reward"]
    form: Literal["final_score", "axes"] = "final_score"


def spec(name: str, settings: UnifiedRewardSettings) -> ScorerSpec:
    summary = "a grade of alignment and quality by a model trained for it"
    return ScorerSpec(name, ("image", "prompt"), LOW, HIGH, "Wang et al. 2025, UnifiedReward", summary)


def build(name: str, settings: UnifiedRewardSettings) -> Scorer:
    from services.models.judge import load

    return UnifiedReward(name, load(settings), settings)


class UnifiedReward:
    def __init__(self, name: str, judge: Completing, settings: UnifiedRewardSettings) -> None:
        self.spec = spec(name, settings)
        self._judge = judge
        self._prompt, self._scores = FORMS[settings.form]

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return score_with_text(items, self._ask)

    def _ask(self, images: list[Pixels], texts: list[str]) -> list[Outcome]:
        questions = [
            Completion(self._prompt.replace("{prompt}", text), encode_png(image), MAX_ANSWER_TOKENS)
            for image, text in zip(images, texts, strict=True)
        ]
        return [self._outcome(reply) for reply in self._judge.complete_all(questions)]

    def _outcome(self, reply: Reply | SynodError) -> Outcome:
        if isinstance(reply, SynodError):
            return ScoreFailure.of(reply)
        found: dict[str, float] = {}
        for name, pattern in self._scores.items():
            values = {float(value) for value in pattern.findall(reply.text)}
            if len(values) != 1 or not LOW <= min(values) <= HIGH:
                expected = f"expected one {name} score from {LOW:g} to {HIGH:g}, found {sorted(values)}"
                said = f"in the reply that ends in {quote(reply.text[-200:], 200)}"
                return ScoreFailure.of(
                    ScorerFailed(f"{expected} {said}; give 'model' the 'form' that it was trained on")
                )
            found[name] = values.pop()
        return Score(sum(found.values()) / len(found), {**found, "reply": reply.text, "tokens": reply.tokens})
