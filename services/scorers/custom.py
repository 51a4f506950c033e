"""A user's own scorer: a function named in the TOML builds it, and its values are checked against their bounds.

Its module needs nothing of this project but `synod.contracts`. docs/scorers.md has a recipe.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from pydantic import Field, model_validator

from services.scorers.base import ScorerSpec
from services.settings_types import ModelSource, ScorerSettings
from synod.contracts import Outcome, Score, ScoreFailure, ScoreItem
from synod.errors import ScorerFailed, SettingsError


class UserScorer(Protocol):
    """What `load` returns. `score` gets items that have all `needs`, images as uint8 [H W 3]; it may raise."""

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]: ...


class CustomSettings(ScorerSettings):
    """A user's scorer. `load` names a function, `package.module:function`, that is called as load(name, settings) and
    returns an object with `score(items) -> outcomes`; see docs/scorers.md.

    The gateway does not load it, so the settings have its `needs` (fields of the item), the finite bounds `low` and
    `high` of its values, and `summary` (for `GET /v1/scorers`). `models` are sources by names of the user's choice,
    resolved and digested as every scorer's; `options` is passed through.
    """

    kind: Literal["custom"]
    load: str = Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
    needs: tuple[Literal["image", "prompt", "references", "reasoning", "geneval", "source_prompt"], ...] = Field(
        min_length=1
    )
    low: float = Field(0.0, allow_inf_nan=False)
    high: float = Field(1.0, allow_inf_nan=False)
    summary: str = ""
    models: Mapping[str, ModelSource] = {}
    options: Mapping[str, Any] = {}

    @model_validator(mode="after")
    def _bounds_in_order(self) -> CustomSettings:
        if self.low >= self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}: give the lowest and the highest value")
        return self


def spec(name: str, settings: CustomSettings) -> ScorerSpec:
    summary = settings.summary or f"a scorer of {settings.load}"
    return ScorerSpec(name, settings.needs, settings.low, settings.high, settings.load, summary)


def build(name: str, settings: CustomSettings) -> Custom:
    """Call `load(name, settings)`. Raises SettingsError if it is missing or returns no scorer, and what it raises."""
    from services.models.module_stats import record

    module, _, function = settings.load.partition(":")
    where = f"scorer '{name}', load = '{settings.load}'"
    try:
        load = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise SettingsError(
            f"{where}: {error}. Install the package, or put its folder on PYTHONPATH, on every node"
        ) from error
    if not callable(load):
        raise SettingsError(f"{where}: '{module}' has no function '{function}'; name one that takes (name, settings)")
    own = load(name, settings)
    if not callable(getattr(own, "score", None)):
        raise SettingsError(
            f"{where}: it returned a {type(own).__name__}, which has no method score(items); return a scorer"
        )
    record(*(part for part in getattr(own, "__dict__", {}).values() if callable(getattr(part, "parameters", None))))
    return Custom(spec(name, settings), own)


class Custom:
    def __init__(self, described: ScorerSpec, own: UserScorer) -> None:
        self.spec = described
        self._own = own

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self._bounded(outcome) for outcome in self._own.score(items)]

    def _bounded(self, outcome: Outcome) -> Outcome:
        low, high = self.spec.low, self.spec.high
        if not isinstance(outcome, Score) or not (outcome.value < low or outcome.value > high):  # isolation refuses NaN
            return outcome
        reason = f"scorer '{self.spec.name}' returned {outcome.value:g}, outside its range [{low:g}, {high:g}]"
        return ScoreFailure.of(ScorerFailed(f"{reason}; correct it, or set low and high"))
