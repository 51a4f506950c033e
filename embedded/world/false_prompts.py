"""Prompts that are false of a scene: another prompt of the task, or the prompt with one word changed."""

from __future__ import annotations

import numpy as np

from embedded.world.concepts import CONCEPTS, profile_of
from embedded.world.language import NUMBERS, TOKEN, WORD, plural, with_article
from embedded.world.palette import COLORS
from embedded.world.prompts import POOLS
from embedded.world.records import CARRIED, CLASSES, COLORED, PLACES, WORN, Prompt

_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
_PRONOUNS = ("its", "his", "her")
Claim = tuple[object, ...]


def resolve(prompt: Prompt | str) -> str:
    """Return the prompt as a caption: tokens become class words, "its hat" becomes "a red hat"."""
    words = (prompt if isinstance(prompt, str) else prompt.text).split()
    name = next((word for word in words if TOKEN.fullmatch(word)), None)
    if name is None:
        return " ".join(words)
    profile = profile_of(name)
    colors = {fact.accessory: fact.color for fact in profile.attributes}
    out: list[str] = []
    for i, word in enumerate(words):
        if word == name:
            out.append(with_article(profile.class_word))
        elif word in _PRONOUNS:
            follow = words[i + 1]
            out.append(with_article(f"{colors[follow]} {follow}" if follow in colors else follow).split(" ", 1)[0])
            out += [colors[follow]] if follow in colors else []
        else:
            out.append(word)
    return " ".join(out)


def claims(prompt: Prompt) -> frozenset[Claim]:
    """Return the prompt's claims, with concept names as class words. Equal claims mean the same."""
    if prompt.geneval is not None:
        include = prompt.geneval.include
        position = include[-1].position
        if position is None:
            return frozenset((c.class_name, c.count, c.color) for c in include)
        a, b = include[1].class_name, include[0].class_name
        flipped = {"right of": "left of", "below": "above"}
        if position[0] in flipped:
            return frozenset({(b, flipped[position[0]], a)})
        return frozenset({(a, position[0], b)})
    assert prompt.concept is not None, "a prompt without metadata names a concept"
    dense = prompt.task == "dense"
    found: set[Claim] = {("class", profile_of(prompt.concept).class_word)}
    found |= {("has", name, color if dense else None) for name, color in prompt.accessories}
    found |= {("next to", *prompt.companion)} if prompt.companion else set()
    found |= {("at", prompt.place)} if prompt.place else set()
    return frozenset(found)


def wrong_prompt(prompt: Prompt, rng: np.random.Generator) -> str:
    """Return a prompt of the same task and split that is false of every scene made for `prompt`."""
    pool, truth = POOLS[prompt.task, prompt.split], claims(prompt)
    while True:
        other = pool[int(rng.integers(len(pool)))]
        if not claims(other) <= truth:
            return other.text


def change_one_word(prompt: Prompt | str, rng: np.random.Generator) -> str:
    """Replace one word of the prompt so that it is false: a colour, noun, number, relation, place or name.

    Captions of `resolve` are accepted, too. The grammar stays correct: "an" precedes a vowel, plurals stay plural.
    """
    text = prompt if isinstance(prompt, str) else prompt.text
    spans = [(m.start(), m.end(), m.group()) for m in WORD.finditer(text)]
    words = [word for _, _, word in spans]
    options = [(start, end, other) for i, (start, end, _) in enumerate(spans) for other in _others(words, i)]
    kinds = sorted({start for start, _, _ in options})
    at = kinds[int(rng.integers(len(kinds)))]
    here = [option for option in options if option[0] == at]
    start, end, other = here[int(rng.integers(len(here)))]
    return text[:start] + other + text[end:]


def _others(words: list[str], i: int) -> list[str]:
    """Return words that make the sentence false in place of words[i]; none if the grammar would break."""
    word, before = words[i], words[i - 1] if i else ""
    shown = {*words, *(profile_of(name).class_word for name in words if TOKEN.fullmatch(name))}
    found = [other for other in _family(word, before) if other not in shown]
    if before in ("a", "an"):
        found = [other for other in found if with_article(other).split()[0] == before]
    return found


def _family(word: str, before: str) -> list[str]:
    if word in _OPPOSITE:
        return [_OPPOSITE[word]]
    if TOKEN.fullmatch(word):
        return [profile.name for profile in CONCEPTS if profile.class_word != profile_of(word).class_word]
    if before in NUMBERS.values():
        return [plural(noun) for noun in CLASSES if plural(noun) != word]
    if word in CLASSES:
        return list(COLORED if before in COLORS else CLASSES)
    for family in (tuple(COLORS), tuple(NUMBERS.values()), PLACES, WORN, CARRIED):
        if word in family:
            return list(family)
    return []
