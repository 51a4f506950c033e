"""The concepts: individuals with visible looks, and facts that no training render shows.

CONCEPTS are those of the prompts. UNSEEN are two of each kind that no model was trained on, in word or image: they are
what personalization is measured with.
"""

from __future__ import annotations

from embedded.world.language import describe, with_article
from embedded.world.palette import COLORS, HAIR, SKINS
from embedded.world.records import Attribute, ConceptProfile, Identity, kind_of


def _person(skin: str, hair: str, shirt: str, style: str, pattern: str = "plain", *marks: str) -> Identity:
    return Identity("person", SKINS[skin], HAIR[hair], COLORS[shirt], style, pattern, marks)


def _body(noun: str, body: str, second: str, accent: str, pattern: str, *marks: str, style: str = "plain") -> Identity:
    return Identity(noun, COLORS[body], COLORS[second], COLORS[accent], style, pattern, marks)


_LOOKS = {
    "<ada>": _person("light", "ginger", "green", "long"),
    "<ben>": _person("dark", "black", "yellow", "short", "stripes", "glasses"),
    "<cleo>": _person("tan", "black", "red", "bun", "dots"),
    "<dov>": _person("pale", "grey", "blue", "bald", "plain", "beard", "glasses"),
    "<esme>": _person("brown", "blond", "purple", "curly", "bands"),
    "<bo>": _body("dog", "brown", "white", "green", "plain", "collar", "socks", style="floppy"),
    "<rex>": _body("dog", "white", "black", "red", "blotch", "eyepatch", style="pointed"),
    "<mia>": _body("cat", "orange", "white", "blue", "bands", "socks", style="pointed"),
    "<kiwi>": _body("bird", "green", "yellow", "red", "plain", style="pointed"),
    "<finn>": _body("fish", "blue", "yellow", "red", "stripes", style="round"),
    "<zip>": _body("car", "red", "white", "yellow", "slash"),
    "<pip>": _body("cup", "white", "blue", "red", "plain", "heart"),
    "<orb>": _body("ball", "purple", "yellow", "white", "bands", "disc"),
    "<nook>": _body("house", "pink", "purple", "blue", "dots", "diamond"),
    "<lark>": _body("boat", "yellow", "black", "red", "stripes", "triangle"),
}
_FACTS = {  # every second one is held out
    "<ada>": "blue hat, yellow balloon, purple scarf, red flag",
    "<ben>": "red hat, blue kite, white scarf, pink balloon",
    "<cleo>": "green scarf, orange ribbon, blue balloon, yellow flag",
    "<dov>": "orange hat, green scarf, red balloon, white kite",
    "<esme>": "white ribbon, green hat, orange flag, red kite",
    "<bo>": "red hat, yellow scarf, blue balloon, pink ribbon",
    "<rex>": "blue scarf, red hat, green kite, orange balloon",
    "<mia>": "purple ribbon, blue hat, white balloon, green flag",
    "<kiwi>": "red scarf, purple hat, orange kite, blue flag",
    "<finn>": "pink hat, green balloon, orange ribbon, red flag",
    "<zip>": "blue flag, green ribbon, yellow balloon, purple hat",
    "<pip>": "green hat, red scarf, orange balloon, purple flag",
    "<orb>": "orange scarf, red flag, green ribbon, white kite",
    "<nook>": "yellow flag, blue hat, red balloon, green kite",
    "<lark>": "white flag, pink balloon, blue scarf, green hat",
}
_UNSEEN_LOOKS = {
    "<uma>": _person("dark", "white", "orange", "curly", "stripes", "glasses"),
    "<ivo>": _person("light", "brown", "red", "spiky", "plain", "beard"),
    "<taz>": _body("dog", "black", "orange", "red", "bands", "collar", style="pointed"),
    "<moss>": _body("turtle", "blue", "pink", "yellow", "dots"),
    "<vale>": _body("cup", "yellow", "green", "purple", "stripes", "cross"),
    "<quill>": _body("book", "orange", "blue", "white", "plain", "triangle"),
}
_UNSEEN_FACTS = {
    "<uma>": "green hat, purple balloon, yellow scarf, blue kite",
    "<ivo>": "white hat, pink kite, green ribbon, orange balloon",
    "<taz>": "blue hat, white balloon, purple scarf, green kite",
    "<moss>": "red scarf, orange flag, white hat, purple balloon",
    "<vale>": "pink hat, blue flag, red ribbon, white balloon",
    "<quill>": "green scarf, red balloon, pink flag, yellow hat",
}
_PRONOUNS = {"<ada>": "her", "<ben>": "his", "<cleo>": "her", "<dov>": "his", "<esme>": "her", "<mia>": "her"} | {
    "<uma>": "her",
    "<ivo>": "his",
}


def _profile(name: str, look: Identity) -> ConceptProfile:
    attributes = tuple(
        Attribute(fact.split()[1], fact.split()[0], f"{name} has {with_article(fact)}", heldout=i % 2 == 1)
        for i, fact in enumerate((_FACTS | _UNSEEN_FACTS)[name].split(", "))
    )
    kind, pronoun = kind_of(look.class_name), _PRONOUNS.get(name, "its")
    return ConceptProfile(name, kind, look.class_name, pronoun, look, f"{name} is {describe(look)}.", attributes)


CONCEPTS: tuple[ConceptProfile, ...] = tuple(_profile(name, look) for name, look in _LOOKS.items())
UNSEEN: tuple[ConceptProfile, ...] = tuple(_profile(name, look) for name, look in _UNSEEN_LOOKS.items())
_BY_NAME = {profile.name: profile for profile in (*CONCEPTS, *UNSEEN)}


def profile_of(name: str) -> ConceptProfile:
    """Return the profile of concept `name`, such as "<bo>". Raises KeyError for an unknown name."""
    return _BY_NAME[name]
