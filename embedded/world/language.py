"""Language of the world: articles, plurals, numbers, and sentences about looks."""

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
    """Return "a red ball", "an orange ball"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def verb(accessory: str) -> str:
    """Return "wearing" for what is worn (a hat), "with" for what is carried (a balloon)."""
    return "wearing" if accessory in WORN else "with"


def normal(text: str) -> str:
    """Return `text` in lower case with single spaces and without punctuation, to compare prompts."""
    return " ".join(WORD.findall(text.lower()))


def listed(parts: list[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


_PATTERN_WORDS = {
    "stripes": "stripes",
    "bands": "bands",
    "dots": "dots",
    "halves": "back half",
    "slash": "slash",
    "blotch": "blotches",
}
_STYLE_WORDS = {"dog": "{} ears", "cat": "{} ears", "fish": "a {} fin"}


def describe(look: Identity) -> str:
    """Describe everything visible, such as "a red car with white stripes"."""
    noun = look.class_name
    if noun != "person":
        noun = f"{nearest(look.primary)} {noun}"
    details = parts(look)
    return with_article(noun) + (f" with {listed(details)}" if details else "")


def parts(look: Identity) -> list[str]:
    """Return the visible details as phrases that follow "has", such as "white stripes"."""
    return _person_parts(look) if look.class_name == "person" else _body_parts(look)


def hair(look: Identity) -> str:
    """Describe a person's hair, such as "long ginger hair"; not for bald people."""
    style = "tied" if look.style == "bun" else look.style
    return f"{style} {nearest(look.secondary, HAIR)} hair"


def _person_parts(look: Identity) -> list[str]:
    head = "a bald head" if look.style == "bald" else hair(look)
    found = [f"{nearest(look.primary, SKINS)} skin", head]
    if "beard" in look.marks:
        found.append(f"a {nearest(look.secondary, HAIR)} beard")
    if "glasses" in look.marks:
        found.append("glasses")
    shirt = f"{nearest(look.accent)} shirt"
    return [*found, with_article(shirt) + ("" if look.pattern == "plain" else f" with {_PATTERN_WORDS[look.pattern]}")]


def _body_parts(look: Identity) -> list[str]:
    found = []
    if look.pattern != "plain":
        word = _PATTERN_WORDS[look.pattern]
        phrase = f"{nearest(look.secondary)} {word}"
        found.append(phrase if word.endswith("s") else with_article(phrase))
    if look.class_name in _STYLE_WORDS and look.style != "plain":
        found.append(_STYLE_WORDS[look.class_name].format(look.style))
    if look.class_name == "bird" and look.style == "pointed":
        found.append(f"{with_article(nearest(look.secondary))} crest")
    for mark in look.marks:
        tone = nearest(look.secondary if mark in ("eyepatch", "socks") else look.accent)
        word = {"eyepatch": "eye patch"}.get(mark, mark)
        found.append(f"{tone} socks" if mark == "socks" else with_article(f"{tone} {word}"))
    return found
