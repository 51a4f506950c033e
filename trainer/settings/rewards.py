"""The table `[trainer.rewards]`."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from trainer.settings.fields import Node

INTRINSIC: Final = "intrinsic"  # the scorer that the policy itself is (GvU)


class RewardSettings(Node):
    """The reward service, and what it rewards.

    Either `scorers` (weights by name; the trainer adds the weighted scores, negative ones included) or an `ensemble` of
    the service. `aggregation` "gdpo" normalises each scorer within its group before the sum. An unavailable service is
    retried for `patience_s`.

    `surrogate` is what previews are scored by; nothing asks for it without a screen. It is "known+predicted", "known"
    or a scorer. "known+predicted" is the task's own reward of the preview: the terms that read only the answer are
    exact, the others those of an unfinished image. "known" are the terms that read only the answer: rollouts are
    screened before their images are begun, and tasks without an answer are not screened. `screen.select` "auto"
    screens finished answers by the known terms, whatever the surrogate of previews is.

    `teacher` is who scores `intrinsic`, the likelihood of the prompt as a description of the image (GvU): the policy's
    frozen "reference", the "current" policy, or the "service", by a scorer of that name.
    """

    url: str = Field("http://127.0.0.1:8000", pattern="^https?://")
    patience_s: float = Field(300.0, gt=0)
    scorers: dict[str, float] = Field(default_factory=dict)
    ensemble: str | None = Field(None, min_length=1)
    aggregation: Literal["sum", "gdpo"] = "sum"
    surrogate: str = Field("known+predicted", min_length=1)
    teacher: Literal["reference", "current", "service"] = "reference"

    @property
    def is_screened_by_reward(self) -> bool:
        """Whether previews are scored by terms of their own reward."""
        return self.surrogate in ("known", "known+predicted")

    @model_validator(mode="after")
    def _one_reward(self) -> RewardSettings:
        if self.scorers and self.ensemble is not None:
            raise ValueError(
                f"both scorers ({', '.join(self.scorers)}) and ensemble '{self.ensemble}'; give one of them: the "
                "trainer combines scorers, the service combines an ensemble"
            )
        if not self.scorers and self.ensemble is None:
            raise ValueError(
                "neither scorers nor an ensemble; give weights, such as scorers = { pickscore = 1.0 }, or the name of "
                "an ensemble of the service"
            )
        if self.scorers and not any(self.scorers.values()):
            raise ValueError(f"every weight of {', '.join(self.scorers)} is 0; give at least one scorer another weight")
        if self.ensemble is not None and self.aggregation != "sum":
            raise ValueError(
                f"aggregation '{self.aggregation}' needs scorers, but ensemble '{self.ensemble}' is combined by the "
                "service; give its components as scorers"
            )
        return self
