"""A user's own scorer: a function named in the TOML makes it, and its values are held to the bounds it declared.

Its author imports `synod.contracts` and nothing else of ours. docs/scorers.md is the recipe.
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


class Own(Protocol):
    """What `load` gives: `score` gets items whose `needs` are present, images as uint8 [H W 3], and may raise."""

    def score(self, items: Sequence[ScoreItem]) -> Sequence[Outcome]: ...


class CustomSettings(ScorerSettings):
    """A scorer of the user's own: `load` names a function, `package.module:function`, that is called as
    load(name, settings) and gives an object with `score(items) -> outcomes`; see docs/scorers.md.

    What the gateway must know without loading it is said here: `needs` (fields of the item), `low` and `high` (the
    value's bounds, finite), `summary` (for `GET /v1/scorers`). `models` are sources by a name of the
    user's choice, resolved and digested as every scorer's; `options` is handed on as it stands.
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
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}: give the least and the greatest value")
        return self


def spec(name: str, settings: CustomSettings) -> ScorerSpec:
    summary = settings.summary or f"a scorer of {settings.load}"
    return ScorerSpec(name, settings.needs, settings.low, settings.high, settings.load, summary)


def build(name: str, settings: CustomSettings) -> Custom:
    """Call `load(name, settings)`. SettingsError when it is not there or gives no scorer, else what it raises."""
    from services.models.module_stats import record

    module, _, function = settings.load.partition(":")
    told = f"scorer '{name}', load = '{settings.load}'"
    try:
        load = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise SettingsError(
            f"{told}: {error}. Install the package, or put its folder on PYTHONPATH, on every node"
        ) from error
    if not callable(load):
        raise SettingsError(f"{told}: '{module}' has no function '{function}'; name one that takes (name, settings)")
    own = load(name, settings)
    if not callable(getattr(own, "score", None)):
        raise SettingsError(f"{told}: it gave {type(own).__name__}, which has no method score(items); return a scorer")
    record(*(part for part in getattr(own, "__dict__", {}).values() if callable(getattr(part, "parameters", None))))
    return Custom(spec(name, settings), own)


class Custom:
    def __init__(self, described: ScorerSpec, own: Own) -> None:
        self.spec = described
        self._own = own

    def score(self, items: Sequence[ScoreItem]) -> list[Outcome]:
        return [self._bounded(outcome) for outcome in self._own.score(items)]

    def _bounded(self, outcome: Outcome) -> Outcome:
        low, high = self.spec.low, self.spec.high
        if not isinstance(outcome, Score) or not (outcome.value < low or outcome.value > high):  # NaN is isolation's
            return outcome
        reason = f"scorer '{self.spec.name}' gave {outcome.value:g}, outside its range [{low:g}, {high:g}]"
        return ScoreFailure.of(ScorerFailed(f"{reason}; mend it, or set low and high"))
