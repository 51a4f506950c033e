"""A scorer of a table of settings, as a TOML would give it."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

from services.scorer_settings import ScorerSettings
from services.scorers import registry
from services.scorers.base import Scorer

_SETTINGS: Final[TypeAdapter[ScorerSettings]] = TypeAdapter(ScorerSettings)


def build(name: str = "it", /, **tree: Any) -> Scorer:
    """The scorer `name` of [scorers.`name`] `tree`, with its models loaded."""
    return registry.build(name, _SETTINGS.validate_python(tree))
