"""The fifteen concepts: individuals with visible looks, and facts that no training render shows."""

from __future__ import annotations

from embedded.world.language import describe, with_article
from embedded.world.palette import COLORS, HAIR, RGB, SKINS
from embedded.world.records import Attribute, ConceptProfile, Identity, kind_of


def _person(skin: str, hair: str, shirt: str, style: str, pattern: str = "plain", *marks: str) -> Identity:
    return Identity("person", SKINS[skin], HAIR[hair], COLORS[shirt], style, pattern, marks)


def _body(
    noun: str,
    body: str,
    second: str,
    accent: str,
    pattern: str,
    *marks: str,
    style: str = "plain",
    tone: RGB | None = None,
) -> Identity:
    return Identity(noun, tone or COLORS[body], COLORS[second], COLORS[accent], style, pattern, marks)


def _profile(name: str, pronoun: str, look: Identity, *facts: str) -> ConceptProfile:
    """Build a profile; `facts` are "color accessory" pairs, every second one held out."""
    attributes = tuple(
        Attribute(fact.split()[1], fact.split()[0], f"{name} has {with_article(fact)}", heldout=i % 2 == 1)
        for i, fact in enumerate(facts)
    )
    kind = kind_of(look.class_name)
    return ConceptProfile(name, kind, look.class_name, pronoun, look, f"{name} is {describe(look)}.", attributes)


CONCEPTS: tuple[ConceptProfile, ...] = (
    _profile(
        "<ada>",
        "her",
        _person("light", "ginger", "green", "long"),
        "blue hat",
        "yellow balloon",
        "purple scarf",
        "red flag",
    ),
    _profile(
        "<ben>",
        "his",
        _person("dark", "black", "yellow", "short", "stripes", "glasses"),
        "red hat",
        "blue kite",
        "white scarf",
        "pink balloon",
    ),
    _profile(
        "<cleo>",
        "her",
        _person("tan", "black", "red", "bun", "dots"),
        "green scarf",
        "orange ribbon",
        "blue balloon",
        "yellow flag",
    ),
    _profile(
        "<dov>",
        "his",
        _person("pale", "grey", "blue", "bald", "plain", "beard", "glasses"),
        "orange hat",
        "green scarf",
        "red balloon",
        "white kite",
    ),
    _profile(
        "<esme>",
        "her",
        _person("brown", "blond", "purple", "curly", "bands"),
        "white ribbon",
        "green hat",
        "orange flag",
        "red kite",
    ),
    _profile(
        "<bo>",
        "its",
        _body("dog", "brown", "white", "green", "plain", "collar", "socks", style="floppy"),
        "red hat",
        "yellow scarf",
        "blue balloon",
        "pink ribbon",
    ),
    _profile(
        "<rex>",
        "its",
        _body("dog", "white", "black", "red", "blotch", "eyepatch", style="pointed"),
        "blue scarf",
        "red hat",
        "green kite",
        "orange balloon",
    ),
    _profile(
        "<mia>",
        "her",
        _body("cat", "orange", "white", "blue", "bands", "socks", style="pointed"),
        "purple ribbon",
        "blue hat",
        "white balloon",
        "green flag",
    ),
    _profile(
        "<kiwi>",
        "its",
        _body("bird", "green", "yellow", "red", "plain", style="pointed"),
        "red scarf",
        "purple hat",
        "orange kite",
        "blue flag",
    ),
    _profile(
        "<finn>",
        "its",
        _body("fish", "blue", "yellow", "red", "stripes", style="round"),
        "pink hat",
        "green balloon",
        "orange ribbon",
        "red flag",
    ),
    _profile(
        "<zip>",
        "its",
        _body("car", "red", "white", "yellow", "slash"),
        "blue flag",
        "green ribbon",
        "yellow balloon",
        "purple hat",
    ),
    _profile(
        "<pip>",
        "its",
        _body("cup", "white", "blue", "red", "plain", "heart"),
        "green hat",
        "red scarf",
        "orange balloon",
        "purple flag",
    ),
    _profile(
        "<orb>",
        "its",
        _body("ball", "purple", "yellow", "white", "bands", "disc"),
        "orange scarf",
        "red flag",
        "green ribbon",
        "white kite",
    ),
    _profile(
        "<nook>",
        "its",
        _body("house", "pink", "purple", "blue", "dots", "diamond"),
        "yellow flag",
        "blue hat",
        "red balloon",
        "green kite",
    ),
    _profile(
        "<lark>",
        "its",
        _body("boat", "yellow", "black", "red", "stripes", "triangle"),
        "white flag",
        "pink balloon",
        "blue scarf",
        "green hat",
    ),
)
_BY_NAME = {profile.name: profile for profile in CONCEPTS}


def profile_of(name: str) -> ConceptProfile:
    """Return the profile of concept `name`, such as "<bo>". Raises KeyError for an unknown name."""
    return _BY_NAME[name]
