"""Scorers and their settings for tests, as a TOML would give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel

from services.scorers import registry
from services.scorers.base import Scorer

TEXTS: Final[Mapping[str, Any]] = {  # of settings that are neither a model source nor one of several literals
    "url": "http://127.0.0.1:1/v1",
    "load": "my_package.my_scorer:load",
    "needs": ["image"],
}


def build(name: str = "it", /, **tree: Any) -> Scorer:
    """Build the scorer with the settings `tree`, as in [scorers.`name`] of a TOML; its models are loaded."""
    return registry.build(name, registry.SETTINGS.validate_python(tree))


def example(kind: str) -> dict[str, Any]:
    """Return the required settings of a kind, with the hub id "a/b" for every model."""
    return _example(registry.CLASSES[kind])


def _example(settings: type[BaseModel]) -> dict[str, Any]:
    fields = {name: field for name, field in settings.model_fields.items() if field.is_required()}
    return {name: TEXTS[name] if name in TEXTS else _value(field.annotation) for name, field in fields.items()}


def _value(annotation: Any) -> Any:
    """Return a value of the type: the first of several literals or records."""
    if get_origin(annotation) is Annotated or (get_args(annotation) and get_origin(annotation) is not Literal):
        return _value(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    return _example(annotation) if issubclass(annotation, BaseModel) else "a/b"
