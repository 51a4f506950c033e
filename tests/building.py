"""Build scorers from tables of settings."""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

from services.scorer_settings import ScorerSettings
from services.scorers import registry
from services.scorers.base import Scorer

_SETTINGS: Final[TypeAdapter[ScorerSettings]] = TypeAdapter(ScorerSettings)


def build(name: str = "it", /, **tree: Any) -> Scorer:
    """Build the scorer with the settings `tree`, as in [scorers.`name`] of a TOML; its models are loaded."""
    return registry.build(name, _SETTINGS.validate_python(tree))
