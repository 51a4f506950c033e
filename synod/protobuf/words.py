"""Enum values <-> the words that the records use: RELATION_LEFT_OF is "left of"."""

from __future__ import annotations

from typing import Any


def word(enum: Any, value: int) -> str:
    """The word of an enum's value; a value without a meaning as digits, which no reader takes."""
    named = enum.DESCRIPTOR.values_by_number.get(value)
    if named is None or value == 0:
        return str(value)
    words: str = named.name.removeprefix(_prefix(enum))
    return words.lower().replace("_", " ")


def number(enum: Any, words: str) -> Any:
    """The enum's value of a word. Raises ValueError for one that the schema has not."""
    return enum.Value(_prefix(enum) + words.upper().replace(" ", "_"))


def _prefix(enum: Any) -> str:
    """RELATION_UNSPECIFIED -> "RELATION_"."""
    name: str = enum.Name(0)
    return name.removesuffix("UNSPECIFIED")
