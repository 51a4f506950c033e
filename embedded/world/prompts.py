"""All prompts, in two disjoint splits. The split of a prompt follows from its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations

from embedded.world.concepts import CONCEPTS
from embedded.world.language import AT_PLACE, NUMBERS, plural, verb, with_article
from embedded.world.palette import COLORS
from embedded.world.records import (
    CLASSES,
    COLORED,
    PLACES,
    TASKS,
    Attribute,
    ConceptProfile,
    Prompt,
    Split,
    Task,
)
from synod.contracts import GenEvalClause, GenEvalMetadata, Relation

_HELD_SINGLE = ("cat", "turtle", "star", "boat")
_PLAIN = ("a photo of {}", "a picture of {}", "a small drawing of {}", "here is {}", "one more photo of {}")
ATTRIBUTE = ("{}", "a photo of {}", "a picture of {}")
_INVERSE: dict[Relation, Relation] = {"left of": "right of", "above": "below"}


def _hash_uniform(key: str) -> float:
    """Return a number in [0, 1) that depends only on `key`."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6], "big") / 2**48


def _split(key: str) -> Split:
    return "heldout" if _hash_uniform(key) < 0.25 else "train"


def _geneval(
    text: str, task: Task, split: Split, *include: GenEvalClause, exclude: tuple[GenEvalClause, ...] = ()
) -> Prompt:
    return Prompt(f"a photo of {text}", task, split, GenEvalMetadata(task, include, exclude))


def _single_object() -> Iterator[Prompt]:
    for noun in CLASSES:
        split: Split = "heldout" if noun in _HELD_SINGLE else "train"
        yield _geneval(with_article(noun), "single_object", split, GenEvalClause(noun, 1))


def _two_object() -> Iterator[Prompt]:
    for a, b in permutations(CLASSES, 2):
        text = f"{with_article(a)} and {with_article(b)}"
        split = _split("two " + " ".join(sorted((a, b))))
        yield _geneval(text, "two_object", split, GenEvalClause(a, 1), GenEvalClause(b, 1))


def _counting() -> Iterator[Prompt]:
    for index, noun in enumerate(CLASSES):
        for count, word in NUMBERS.items():
            split: Split = "heldout" if (index + count) % 4 == 0 else "train"
            more = (GenEvalClause(noun, count + 1),)
            yield _geneval(f"{word} {plural(noun)}", "counting", split, GenEvalClause(noun, count), exclude=more)


def _colors() -> Iterator[Prompt]:
    for noun in COLORED:
        for color in COLORS:
            text = with_article(f"{color} {noun}")
            yield _geneval(text, "colors", _split(f"{color} {noun}"), GenEvalClause(noun, 1, color))


def _position() -> Iterator[Prompt]:
    """Yield both readings of an arrangement (a left of b, b right of a) in the same split."""
    for a, b in permutations(CLASSES, 2):
        for relation, inverse in _INVERSE.items():
            key = f"{a} {relation} {b}"
            if _hash_uniform("keep " + key) < 0.5:
                yield position_prompt(a, relation, b, _split(key))
                yield position_prompt(b, inverse, a, _split(key))


def position_prompt(a: str, relation: Relation, b: str, split: Split) -> Prompt:
    """Return the prompt "a photo of `a` `relation` `b`"."""
    clauses = GenEvalClause(b, 1), GenEvalClause(a, 1, position=(relation, 0))
    return _geneval(f"{with_article(a)} {relation} {with_article(b)}", "position", split, *clauses)


def _color_attr() -> Iterator[Prompt]:
    for a, b in combinations(COLORED, 2):
        for one, two in permutations(COLORS, 2):
            key = f"{one} {a} {two} {b}"
            if _hash_uniform("keep " + key) < 0.06:
                pairs = [(one, a), (two, b)]
                if _hash_uniform("swap " + key) < 0.5:
                    pairs.reverse()
                yield color_pair_prompt(pairs, _split(key))


def color_pair_prompt(pairs: Sequence[tuple[str, str]], split: Split) -> Prompt:
    """Return the prompt for two (colour, noun) pairs."""
    text = " and ".join(with_article(" ".join(pair)) for pair in pairs)
    return _geneval(text, "color_attr", split, *(GenEvalClause(noun, 1, color) for color, noun in pairs))


def _plain() -> Iterator[Prompt]:
    for i, profile in enumerate(CONCEPTS):
        for j, template in enumerate(_PLAIN):
            split: Split = "heldout" if (i + j) % len(_PLAIN) == 0 else "train"
            yield Prompt(template.format(profile.name), "plain", split, concept=profile.name)


def _attribute() -> Iterator[Prompt]:
    for profile in CONCEPTS:
        for fact in profile.attributes:
            for template in ATTRIBUTE:
                yield attribute_prompt(template, profile, (fact.accessory, fact.color), _split_of(fact))


def attribute_prompt(template: str, profile: ConceptProfile, worn: tuple[str, str], split: Split) -> Prompt:
    """Return a vague prompt for a concept's (accessory, colour), which only the profile's facts resolve."""
    text = template.format(f"{profile.name} {verb(worn[0])} {profile.pronoun} {worn[0]}")
    return Prompt(text, "attribute", split, concept=profile.name, accessories=(worn,))


def _dense() -> Iterator[Prompt]:
    for profile in CONCEPTS:
        for fact in profile.attributes:
            for i in range(6):
                key = f"{profile.name} {fact.sentence} {i}"
                nouns = [noun for noun in COLORED if noun != profile.class_word]
                noun = nouns[int(_hash_uniform("noun " + key) * len(nouns))]
                color = tuple(COLORS)[int(_hash_uniform("color " + key) * len(COLORS))]
                place = PLACES[int(_hash_uniform("place " + key) * len(PLACES))]
                yield dense_prompt(profile, (fact.accessory, fact.color), (color, noun), place, _split_of(fact))


def dense_prompt(
    profile: ConceptProfile, worn: tuple[str, str], companion: tuple[str, str], place: str, split: Split
) -> Prompt:
    """Return the prompt for a concept with an (accessory, colour), a second object (colour, noun) and a place."""
    wearing = f"{verb(worn[0])} {with_article(f'{worn[1]} {worn[0]}')}"
    text = f"a photo of {profile.name} {wearing} next to {with_article(' '.join(companion))} {AT_PLACE[place]}"
    return Prompt(text, "dense", split, None, profile.name, (worn,), companion, place)


def _split_of(fact: Attribute) -> Split:
    return "heldout" if fact.heldout else "train"


def _all_prompts() -> Iterator[Prompt]:
    for make in (_plain, _attribute, _dense, _single_object, _two_object, _counting, _colors, _position, _color_attr):
        yield from {prompt.text: prompt for prompt in make()}.values()


_PROMPTS = tuple(_all_prompts())
PROMPTS_TRAIN: tuple[Prompt, ...] = tuple(p for p in _PROMPTS if p.split == "train")
PROMPTS_HELDOUT: tuple[Prompt, ...] = tuple(p for p in _PROMPTS if p.split == "heldout")
_SPLITS: tuple[tuple[Split, tuple[Prompt, ...]], ...] = (("train", PROMPTS_TRAIN), ("heldout", PROMPTS_HELDOUT))
POOLS: dict[tuple[Task, Split], tuple[Prompt, ...]] = {
    (task, split): tuple(p for p in prompts if p.task == task) for task in TASKS for split, prompts in _SPLITS
}
