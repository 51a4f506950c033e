"""Shared by scorers of replies: the right answers of an item, and yes or no in a text. Pure functions.

A reply is `reasoning.text`; its right answers are the segments whose truth is above 0.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from synod.contracts import Reasoning
from synod.errors import InvalidItem

YesNo = Literal["yes", "no"]
_YES_NO: Final = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)


def right_answers(reasoning: Reasoning) -> tuple[str, ...]:
    """Return the true segments, at least one. Raises InvalidItem."""
    if len(reasoning.truth) != len(reasoning.segments):
        count, truths = len(reasoning.segments), len(reasoning.truth)
        raise InvalidItem(f"reasoning has {count} segments but {truths} truth values; give one for each")
    found = tuple(s for s, truth in zip(reasoning.segments, reasoning.truth, strict=True) if truth > 0)
    if not found:
        raise InvalidItem("no segment of the reasoning is true; give the right answer as a segment of truth 1")
    return found


def right_yes_or_no(reasoning: Reasoning) -> YesNo:
    """Return the true segment if it is "Yes" or "No", ignoring case and a full stop. Raises InvalidItem."""
    found = {answer.strip().rstrip(".").lower() for answer in right_answers(reasoning)}
    if found == {"yes"}:
        return "yes"
    if found == {"no"}:
        return "no"
    raise InvalidItem(f"the right answer is {sorted(found)}; a yes/no question has one true segment, 'Yes' or 'No'")


def first_yes_or_no(text: str) -> YesNo | None:
    """Return the first whole word yes or no, in any case."""
    found = _YES_NO.search(text)
    if found is None:
        return None
    return "yes" if found.group().lower() == "yes" else "no"
