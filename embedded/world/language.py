"""Words of the world: articles, plurals, numbers, and how a sentence about looks is made."""

from __future__ import annotations

import re

from embedded.world.palette import HAIR, SKINS, nearest
from embedded.world.records import WORN, Identity

NUMBERS = {2: "two", 3: "three", 4: "four"}
_PLURALS = {"person": "people", "fish": "fish"}
AT_PLACE = {"meadow": "in the meadow", "beach": "on the beach", "room": "in the room", "desert": "in the desert"}
TOKEN = re.compile(r"<\w+>")
WORD = re.compile(r"<\w+>|\w+")


def plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


def with_article(words: str) -> str:
    """ "a red ball", "an orange ball"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def verb(accessory: str) -> str:
    """Hats are worn, balloons are carried."""
    return "wearing" if accessory in WORN else "with"


def normal(text: str) -> str:
    """`text` in lower case with single spaces and no punctuation, to compare prompts by."""
    return " ".join(WORD.findall(text.lower()))


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


_PATTERN_WORDS = {
    "stripes": "stripes",
    "bands": "bands",
    "dots": "dots",
    "halves": "back half",
    "slash": "slash",
    "blotch": "blotches",
}
_STYLE_WORDS = {
    "dog": "{} ears",
    "cat": "{} ears",
    "fish": "a {} fin",
}


def describe(look: Identity) -> str:
    """One phrase that says everything visible, such as "a red car with white stripes"."""
    parts = _person_parts(look) if look.class_name == "person" else _body_parts(look)
    noun = look.class_name
    if noun != "person":
        noun = f"{nearest(look.primary)} {noun}"
    return with_article(noun) + (f" with {_listed(parts)}" if parts else "")


def _person_parts(look: Identity) -> list[str]:
    hair = nearest(look.secondary, HAIR)
    head = "a bald head" if look.style == "bald" else f"{_hair(look.style)} {hair} hair"
    parts = [f"{nearest(look.primary, SKINS)} skin", head]
    if "beard" in look.marks:
        parts.append(f"a {hair} beard")
    if "glasses" in look.marks:
        parts.append("glasses")
    shirt = f"{nearest(look.accent)} shirt"
    return [*parts, with_article(shirt) + ("" if look.pattern == "plain" else f" with {_PATTERN_WORDS[look.pattern]}")]


def _hair(style: str) -> str:
    return {"bun": "tied"}.get(style, style)


def _body_parts(look: Identity) -> list[str]:
    parts = []
    if look.pattern != "plain":
        word = _PATTERN_WORDS[look.pattern]
        phrase = f"{nearest(look.secondary)} {word}"
        parts.append(phrase if word.endswith("s") else with_article(phrase))
    if look.class_name in _STYLE_WORDS and look.style != "plain":
        parts.append(_STYLE_WORDS[look.class_name].format(look.style))
    if look.class_name == "bird" and look.style == "pointed":
        parts.append(f"{with_article(nearest(look.secondary))} crest")
    for mark in look.marks:
        tone = nearest(look.secondary if mark in ("eyepatch", "socks") else look.accent)
        word = {"eyepatch": "eye patch"}.get(mark, mark)
        parts.append(f"{tone} socks" if mark == "socks" else with_article(f"{tone} {word}"))
    return parts
