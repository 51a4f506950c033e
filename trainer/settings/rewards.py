"""The table `[trainer.rewards]`."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from trainer.settings.fields import Node, Result

INTRINSIC: Final = "intrinsic"  # the scorer that the policy itself is (GvU)


class TermSettings(Node):
    """A term of the reward: weight * the score of a result by one scorer of the service.

    `of` is what is scored: the rollout's first "image", its "answer", or in data.task "edits" the image that was edited
    back ("cycled"). A term of weight 0 is only recorded.
    """

    of: Result = "image"
    scorer: str = Field(min_length=1)
    weight: float = 1.0


class RewardSettings(Node):
    """The reward service, and what it rewards.

    `scorers` are weights by name of scorers of the image; `terms` are the same as a list, each of which also names what
    it scores. The trainer adds the weighted scores, negative ones included. Or the service combines an `ensemble`.
    `aggregation` "gdpo" normalises each scorer within its group, of 4 rollouts or more, before the sum. An unavailable
    service is retried for `patience_s`.

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
    terms: tuple[TermSettings, ...] = ()
    ensemble: str | None = Field(None, min_length=1)
    aggregation: Literal["sum", "gdpo"] = "sum"
    surrogate: str = Field("known+predicted", min_length=1)
    teacher: Literal["reference", "current", "service"] = "reference"

    @property
    def is_screened_by_reward(self) -> bool:
        """Whether previews are scored by terms of their own reward."""
        return self.surrogate in ("known", "known+predicted")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each scorer, of `scorers` or of `terms`; none with an ensemble."""
        return {term.scorer: term.weight for term in self.terms} or self.scorers

    @property
    def results(self) -> dict[str, Result]:
        """What each scorer of `terms` scores."""
        return {term.scorer: term.of for term in self.terms}

    @model_validator(mode="after")
    def _a_scorer_has_one_term(self) -> RewardSettings:
        names = [term.scorer for term in self.terms]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise ValueError(
                f"terms names scorer {', '.join(twice)} twice; give the service the same kind under a second name, and "
                "use that in one of the terms"
            )
        return self

    @model_validator(mode="after")
    def _one_reward(self) -> RewardSettings:
        given = {"scorers": self.scorers, "terms": self.terms, "ensemble": self.ensemble}
        named = [name for name, value in given.items() if value]
        if len(named) > 1:
            raise ValueError(
                f"both {' and '.join(named)}; give one of them: the trainer combines scorers or terms, the service "
                "combines an ensemble"
            )
        if not named:
            raise ValueError(
                "neither scorers nor terms nor an ensemble; give weights, such as scorers = { pickscore = 1.0 }, or "
                "the name of an ensemble of the service"
            )
        if self.ensemble is None and not any(self.weights.values()):
            raise ValueError(
                f"every weight of {', '.join(self.weights)} is 0; give at least one of them a nonzero weight"
            )
        if self.ensemble is not None and self.aggregation != "sum":
            raise ValueError(
                f"aggregation '{self.aggregation}' needs scorers, but ensemble '{self.ensemble}' is combined by the "
                "service; give its components as scorers"
            )
        return self
