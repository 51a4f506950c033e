"""The table `[trainer.evaluate]`."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from trainer.settings.fields import Node


class EvaluateSettings(Node):
    """Held-out evaluation: `prompts` prompts are drawn before training, after it, and every `every` steps; 0: not then.

    `scorers` are scorers of the service that training does not use, by weight; a list gives each a weight of 1. Their
    weighted sum is the held-out reward. With `patience` the run ends early, after that many evaluations without a
    higher held-out reward (without `scorers`: without a higher trained reward on the held-out prompts).
    """

    prompts: int = Field(200, ge=1)
    scorers: dict[str, float] = Field(default_factory=dict)
    every: int = Field(0, ge=0)
    patience: int | None = Field(None, ge=1)

    @field_validator("scorers", mode="before")
    @classmethod
    def _a_list_weighs_alike(cls, value: Any) -> Any:
        return dict.fromkeys(value, 1.0) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _is_complete(self) -> EvaluateSettings:
        if self.patience is not None and not self.every:
            raise ValueError(
                f"patience {self.patience} counts evaluations during training, but every is 0; give every a number of "
                "steps"
            )
        if self.scorers and not any(self.scorers.values()):
            raise ValueError(
                f"every weight of {', '.join(self.scorers)} is 0; give at least one of them a nonzero weight"
            )
        return self
