"""What a reply says, by rules: yes or no as whole words, the letter of an answer, points of a long answer. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_WORDS: Final = re.compile(r"[\w']+")
_LETTER: Final = re.compile(r"^\W*(?:(?:the\s+)?(?:right\s+)?(?:answer|option)(?:\s+is)?\W*)?([a-z])(?![\w'])", re.I)


def yes_or_no(reply: str) -> str | None:
    """Return "yes" or "no" if exactly one of them is a word of the reply, else None.

    UniCTokens takes substrings, by which "not", "another" and "know" say no.
    """
    said = {word for word in words(reply) if word in ("yes", "no")}
    return said.pop() if len(said) == 1 else None


def is_yes_no_right(reply: str, right: str) -> float:
    """Return 1 if the reply says "yes" or "no" as `right` does, and 0 else: an unclear reply is wrong."""
    return float(yes_or_no(reply) == yes_or_no(right))


def is_choice_right(reply: str, right: str) -> float:
    """Return 1 if the letter that the reply begins with is `right`, else 0: "b", "(B) white", "the answer is b"."""
    found = _LETTER.match(reply)
    return float(found is not None and found[1].lower() == right.strip(" .()").lower())


def share_said(reply: str, points: Sequence[str]) -> float:
    """Return the share of the points whose words, articles aside, all occur in the reply in any order."""
    said = set(words(reply))
    return sum(set(words(point)) - {"a", "an", "the"} <= said for point in points) / len(points)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; an apostrophe belongs to its word."""
    return _WORDS.findall(text.lower())
